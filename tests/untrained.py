"""Predictors that are not trained, with what it takes to save them: tests of files need no training."""

from dataclasses import replace
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import Predictor, mlp
from hydra_jax.data import Scaling
from hydra_jax.evaluation.evaluate import Model, apply_spread
from hydra_jax.experiment import recipes
from hydra_jax.experiment.schema import Settings
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.registry import METHODS
from hydra_jax.training.settings import TrainingSettings

SMALL = functools.partial(mlp, widths=(6,))
CLASSES = ('ant', 'bee', 'cat')
# Units that float32 cannot hold beside what varies in them.
ODD = Scaling(np.array([1e9, 0, 3, 0, 0]), np.array([2.5, 1, 1e-3, 1, 1]), np.array([1e9, -5.0]), np.array([3.0, 1e-4]))


def predictor(
  method='hydra',
  task='classification',
  outputs=3,
  members=4,
  network=SMALL,
  shape=(5,),
  reads_bytes=False,
  classes=(),
  spread=1.0,
  scaling=None,
  facts=None,
  **changes,
) -> Predictor:
  """A network with random parameters."""
  own = METHODS[method].settings(**changes)
  role = 'teacher' if method == 'ensemble' else 'student'
  built = recipes.built_from(
    role, Settings(method, TrainingSettings(), own), network, (task, outputs, members), 0, facts
  )
  phases = recipes.phases_of(built.recipe)
  built = replace(built, phase=len(phases) - 1)
  built = replace(built, facts=facts) if facts else replace(built, facts=nothing)
  cut = phases[-1].network
  params, state = cut.init(jax.random.key(1), jax.random.normal(jax.random.key(0), (8, *shape)))
  # Heads are made to differ, biases not to be 0.
  params = jax.tree.map(lambda a: a + 0.3 * jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), params)
  if scaling is None:
    features, targets = shape[-1], outputs if task == 'regression' else 1
    scaling = Scaling(np.zeros(features), np.ones(features), np.zeros(targets), np.ones(targets))
  predictive = METHODS[method].predictive
  model = Model(cut, params, state, scaling, TASKS[task].predictives[predictive].read)
  if spread != 1:
    model = apply_spread(model, spread, task)
  return Predictor(model, task, shape, reads_bytes, classes, predictive == 'members', recipe=built)


def nothing(predictor) -> dict:
  """No facts."""
  del predictor
  return {}
