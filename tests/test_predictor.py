"""Prediction for service: few programs for any number of inputs, parts one by one, and the numbers of float64."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from untrained import CLASSES, ODD, predictor

import hydra_jax
from hydra_jax.data import Scaling
from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.maths import uncertainty
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp

FIELDS = ('mean', 'total', 'aleatoric', 'epistemic')
MADE = {
  'classification': lambda: predictor(classes=CLASSES, spread=2.0),
  'one head': lambda: predictor('kd'),
  'no members': lambda: predictor('endd'),
  'regression': lambda: predictor(task='regression', outputs=2, scaling=ODD),
  'regression without members': lambda: predictor('endd', task='regression', outputs=2, scaling=ODD),
}


def inputs(made, random, rows):
  x = random.normal(size=(rows, 5))
  return x + 1e9 * (np.arange(5) == 0) if made.model.scaling is ODD else x


@pytest.mark.parametrize('name', MADE)
def test_any_number_of_inputs_gives_the_same_numbers(name, random):
  """With members or without, in one call or in parts, padded or not."""
  made = MADE[name]()
  x = inputs(made, random, 90)
  whole = made.predict(x)
  close = dict(rtol=2e-5, atol=2e-6)
  for rows in (1, 33, 90):
    for found in (made.predict(x[:rows], batch_size=40), made.predict(x[:rows], members=False)):
      for field in FIELDS:
        np.testing.assert_allclose(getattr(found, field), getattr(whole, field)[:rows], **close, err_msg=field)
  assert all(value is None for value in (found.members, found.log_members, found.member_variances))
  assert (whole.members is None) == (not made.has_members)
  if made.has_members:
    np.testing.assert_allclose(made.predict(x[:3]).members, whole.members[:, :3], **close)
    np.testing.assert_allclose(whole.members.mean(axis=0), whole.mean, **close)
  parts = list(made.predict_batches(np.split(x, [7, 50]), batch_size=16))
  assert [len(part.mean) for part in parts] == [7, 43, 40] and all(part.members is None for part in parts)
  for field in FIELDS:
    np.testing.assert_allclose(np.concatenate([getattr(p, field) for p in parts]), getattr(whole, field), **close)


def test_few_programs_serve_any_number_of_inputs(random):
  """A power of two, or the size of a batch; a single input is not padded."""
  made, shapes = predictor(), []
  network = made.model.network
  apply = lambda params, state, x, key=None, train=False: shapes.append(len(x)) or network.apply(params, state, x)
  made = made.__class__(
    evaluate.Model(network._replace(apply=apply), *list(vars(made.model).values())[1:]), made.task, made.shape
  )
  for rows in (*range(1, 41), 1000, 999):
    made.predict(random.normal(size=(rows, 5)), batch_size=24)
  assert set(shapes) == {1, 2, 4, 8, 16, 24}


def test_grey_images_need_no_axis_of_channels(random):
  stages = mlp(3, (4,))
  network = cut.multi_head(stages, 0, 2)
  params, state = network.init(jax.random.key(0), np.ones((1, 6, 4, 1), np.float32))
  scaling = Scaling(*(np.ones(1) * value for value in (100.0, 50.0, 0.0, 1.0)))
  read = TASKS['classification'].predictives['members'].read
  made = Predictor(evaluate.Model(network, params, state, scaling, read), 'classification', (6, 4, 1), True)
  x = random.integers(256, size=(5, 6, 4), dtype=np.uint8)
  np.testing.assert_array_equal(made.predict(x).mean, made.predict(x[..., None]).mean)
  with pytest.raises(hydra_jax.UserError, match=r'inputs of shape \[4, 6\], and the training split \[6, 4, 1\]'):
    made.predict(np.swapaxes(x, 1, 2))


def test_parts_are_read_one_by_one_and_not_kept(random):
  """So that memory does not grow with their number."""
  made, read, alive = predictor(), [], []

  def parts():
    for i in range(5):
      read.append(i)
      x = random.normal(size=(3, 5))
      alive.append(weakref.ref(x))
      yield x

  found = made.predict_batches(parts())
  for i in range(5):
    prediction = next(found)
    assert read == list(range(i + 1)) and prediction.mean.shape == (3, 3)
    alive.append(weakref.ref(prediction))
    del prediction  # no cycle holds it
    assert sum(each() is not None for each in alive) <= 1  # the part that the generator holds


def test_a_wrong_part_is_one_line(random):
  made = predictor()
  found = made.predict_batches([random.normal(size=(2, 5)), np.full((2, 5), np.nan)])
  assert next(found).mean.shape == (2, 3)
  with pytest.raises(hydra_jax.UserError, match='NaN or infinite values in 2 rows'):
    next(found)


def in_float64(logits):
  """Mean, total, aleatoric and epistemic uncertainty, the latter from terms that do not cancel."""
  log_p = special.log_softmax(logits.astype(np.float64), axis=-1)
  log_mean = special.logsumexp(log_p, axis=0) - np.log(len(logits))
  apart = log_p - log_mean  # p (log p − log q) − p + q is at least 0, and sums to KL(p ‖ q)
  epistemic = (np.exp(log_mean) * (np.exp(apart) * apart - np.expm1(apart))).sum(axis=-1).mean(axis=0)
  aleatoric = special.entr(np.exp(log_p)).sum(axis=-1).mean(axis=0)
  return np.exp(log_mean), aleatoric + epistemic, aleatoric, epistemic


@pytest.mark.parametrize('scale, apart', [(0.1, 0.1), (1, 0.01), (3, 0.3), (3, 3), (8, 1), (1e4, 1.0)])
@pytest.mark.parametrize('members, classes', [(7, 2), (50, 10), (2, 300)])
def test_members_one_after_the_other_give_the_uncertainty_of_float64(members, classes, scale, apart, random):
  common, own = random.normal(size=(1, 60, classes)), random.normal(size=(members, 60, classes))
  logits = (scale * common + apart * own).astype(np.float32)
  mean, found = jax.jit(uncertainty.member_by_member)(logits)
  wanted = in_float64(logits)
  np.testing.assert_allclose(mean, wanted[0], rtol=1e-5, atol=1e-37)
  sure = wanted[1] > 1e-12  # entropies below it lose digits in float64 too, as 1 − p does
  for ours, theirs in zip(found[:2], wanted[1:3], strict=True):
    np.testing.assert_allclose(ours[sure], theirs[sure], rtol=3e-6)
  error = np.abs(found.epistemic - wanted[3])[sure] / wanted[1][sure]
  assert error.max(initial=0) < 2e-6  # shares below a millionth of the total are 0


@pytest.mark.parametrize('scale', [0.1, 1, 5, 30])
@pytest.mark.parametrize('members', [1, 3, 50])
def test_identical_members_have_no_model_uncertainty(members, scale, random):
  logits = np.repeat(scale * random.normal(size=(1, 200, 10)), members, axis=0).astype(np.float32)
  mean, found = jax.jit(uncertainty.member_by_member)(logits)
  assert not np.any(found.epistemic) and np.all(np.isfinite(found.total))
  np.testing.assert_allclose(mean, special.softmax(logits[0], axis=-1), rtol=1e-5, atol=1e-37)


def test_a_large_network_is_not_compiled_into_its_programs(random, monkeypatch):
  small = predictor()
  x = random.normal(size=(9, 5))
  wanted = small.predict(x)
  monkeypatch.setattr('hydra_jax.evaluation.predictor.SMALL', 0)
  large = predictor()
  found = large.predict(x)
  assert not large._is_small and small._is_small
  np.testing.assert_allclose(found.epistemic, wanted.epistemic, rtol=1e-5)


def test_probabilities_below_float32_survive_a_temperature(random):
  """They are known by the members alone, which are asked where they are not wanted."""
  made = predictor(outputs=3, members=2)
  params = jax.tree.map(lambda a: 60 * a, made.model.params)
  far = made.__class__(evaluate.Model(**{**vars(made.model), 'params': params}), made.task, made.shape)
  x = 3 * random.normal(size=(50, 5))
  calibration = hydra_jax.Calibration('classification', 16.0, {'lac': (0.5,), 'aps': (0.5,)}, 1, 'total', (0.1,), 1)
  hot = far.__class__(far.model, far.task, far.shape, calibration=calibration)
  small = np.any(far.predict(x).mean < np.finfo(np.float32).tiny, axis=1)
  assert 5 < small.sum() < 50 and np.any(hot.predict(x).mean[small] > 1e-6)
  np.testing.assert_allclose(hot.predict(x, members=False).mean, hot.predict(x).mean, rtol=1e-4, atol=1e-7)


def test_results_may_be_written_to(random):
  found = predictor().predict(random.normal(size=(3, 5)))
  for name, value in vars(found).items():
    assert value is None or value.flags.writeable, name
  assert jnp.asarray(found.mean).dtype == jnp.float32
