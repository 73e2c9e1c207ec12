"""Networks of finished runs, ready to predict."""

from collections.abc import Collection
from pathlib import Path

from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment import artifacts
from hydra_jax.experiment.validation import apply_spread
from hydra_jax.experiment.workdir import find_model


def load(run: str | Path, method: str = 'hydra', replica: int = 0, functions: Collection[str] = ()) -> Predictor:
  """Loads a trained network from the folder of a finished run.

  Args:
    run: The folder, such as `runs/digits`.
    method: `ensemble`, or the name of a student.
    replica: Which repetition.
    functions: Names of your own networks and methods that the run has, such as `my_networks.py:make`. What a saved
      file names is never called by itself.

  Returns:
    A predictor.

  Raises:
    UserError: There is no such network, or its files are damaged.

  Example:
    >>> prediction = hydra_jax.load('runs/digits', 'hydra').predict(x)  # doctest: +SKIP
  """
  folder, place = find_model(Path(run), method, replica)
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
  )
