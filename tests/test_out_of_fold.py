"""Members are calibrated by rows that they have not learnt from."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax.data import Scaling
from hydra_jax.estimators import out_of_fold
from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets.cut import Network
from hydra_jax.training import folds

N, M, K = 6000, 4, 2
PLAIN = Scaling(np.zeros(2), np.ones(2), np.zeros(1), np.ones(1))


def memorising(task, x, y, fold):
  """Members that know the labels of rows that they have learnt from, by the first number of a row, which is its place.

  Of other rows they know the distribution, and are too certain about it.
  """
  seen = jnp.asarray(fold[None] != folds.of_heads(M, K)[:, None])
  targets = jnp.asarray(y)

  def apply(params, state, x, key=None, train=False, **some):
    place = x[:, 0].astype(jnp.int32)
    known, label = seen[:, place][..., None], targets[place]
    if task == 'regression':
      mean = jnp.where(known, label[None], 0.0)
      var = jnp.where(known, 1e-3, 0.25)  # 1 is right
      return jnp.concatenate([mean, var + jnp.log(-jnp.expm1(-var))], axis=-1), state
    certain = jnp.where(jnp.arange(2)[None] == label[:, None], 9.0, -9.0)[None]
    unsure = jnp.stack([2.5 * x[:, 1], jnp.zeros(len(x))], axis=-1)[None]
    return jnp.where(known, certain, unsure), state

  network = Network(lambda key, x: ({'body': (), 'heads': ()}, ()), apply, tuple(range(M)), 0)
  return Model(network, {'body': (), 'heads': ()}, (), PLAIN, TASKS[task].predictives['members'].read)


def rows(random):
  return np.stack([np.arange(N), random.normal(size=N)], axis=1).astype(np.float32), folds.of_rows(N, K, seed=0)


def test_variances_become_those_of_rows_that_were_not_learnt(random):
  x, fold = rows(random)
  y = random.normal(size=(N, 1)).astype(np.float32)
  model = out_of_fold.calibrated(memorising('regression', x, y, fold), 'regression', x, y, fold)
  mean, var = losses.gaussian(jnp.asarray(evaluate.predict(model, x, 500)))
  unseen = np.asarray(mean)[..., 0] == 0
  assert unseen.mean() == pytest.approx(1 / K, abs=0.01)
  np.testing.assert_allclose(np.asarray(var)[..., 0][unseen], 1.0, rtol=0.06)


def test_probabilities_become_those_of_rows_that_were_not_learnt(random):
  x, fold = rows(random)
  y = (random.uniform(size=N) > 1 / (1 + np.exp(-x[:, 1]))).astype(np.int32)  # logits are 2.5 times too large
  model = out_of_fold.calibrated(memorising('classification', x, y, fold), 'classification', x, y, fold)
  assert model.params['spread'] == pytest.approx(2.5, rel=0.1)
  logits = evaluate.predict(model, x, 500)
  unseen = fold[None] == folds.of_heads(M, K)[:, None]
  np.testing.assert_allclose((logits[..., 0] / x[None, :, 1])[unseen], 1.0, rtol=0.1)


def test_fewer_members_than_folds_stay_as_they_are(random):
  x, _ = rows(random)
  fold = folds.of_rows(N, M + 1, seed=0)
  model = memorising('regression', x, np.zeros((N, 1), np.float32), folds.of_rows(N, K, seed=0))
  assert out_of_fold.calibrated(model, 'regression', x, np.zeros((N, 1)), fold) is model
