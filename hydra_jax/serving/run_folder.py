"""Networks in the folder of a finished run, ready to predict."""

from collections.abc import Collection
import functools
from pathlib import Path
from typing import Any

from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model, apply_spread
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment import artifacts
from hydra_jax.experiment.recipes import Built
from hydra_jax.experiment.workdir import find_model
from hydra_jax.serving import card


def load(run: Path, method: str, replica: int, functions: Collection[Any]) -> Predictor:
  """See `loading.load`."""
  folder, place = find_model(run, method, replica)
  if not folder.is_dir():
    raise UserError(f'{folder} is missing: run the same command again')
  folder, saved, network, predictive = artifacts.network_of(str(folder), functions)
  if place.index >= len(saved.data):
    raise UserError(f'{folder} has {len(saved.data)} replicas: run the same command again, which writes models.json')
  params, state = artifacts.of_replica(artifacts.restore(folder, network, saved.shape, len(saved.data)), place.index)
  model = Model(network, params, state, artifacts.read_scaling(folder, place.index), predictive.read)
  if place.spread != 1:
    model = apply_spread(model, place.spread, saved.recipe.task)
  has_members = predictive is artifacts.TASKS[saved.recipe.task].predictives['members']
  return Predictor(
    model,
    saved.recipe.task,
    tuple(saved.shape),
    saved.dtype == 'uint8',
    tuple(saved.classes),
    has_members,
    artifacts.read_columns(folder),
    recipe=Built(saved.recipe, saved.phase, functools.partial(card.of_run, run=run, method=method)),
  )
