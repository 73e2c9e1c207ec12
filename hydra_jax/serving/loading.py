"""Trained networks, ready to predict, from the folder of a finished run or from a folder that is the model."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hydra_jax.errors import UserError
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import model_folder

Function = str | Callable[..., Any]


def load(
  place: str | Path, method: str | None = None, replica: int = 0, functions: Function | Collection[Function] = ()
) -> Predictor:
  """Loads a trained network.

  Args:
    place: A folder made by `save`, or the folder of a finished run, such as `runs/digits`.
    method: Of a run: `ensemble`, or the name of a student. None: `hydra`.
    replica: Of a run: which repetition.
    functions: Networks and methods of your own that it has: names such as `my_networks.py:make`, or for networks also
      the functions themselves. What a saved file names is never called by itself.

  Returns:
    A predictor.

  Raises:
    UserError: There is no such network, its files are damaged, or a function of your own is missing or was edited.

  Example:
    >>> prediction = hydra_jax.load('runs/digits', 'hydra').predict(x)  # doctest: +SKIP
    >>> prediction = hydra_jax.load('digits-hydra').predict(x)  # a folder made by save  # doctest: +SKIP
  """
  given = (functions,) if isinstance(functions, str) or callable(functions) else functions
  folder = Path(place)
  if not model_folder.is_model_folder(folder):
    from hydra_jax.serving import run_folder  # imports Orbax, and what draws figures: a second or more

    return run_folder.load(folder, 'hydra' if method is None else method, replica, given)
  predictor = model_folder.load(folder, given)
  found = predictor.recipe.recipe.settings.method
  if method not in (None, found):
    raise UserError(f"{folder} is a model by '{found}', and not by '{method}': leave method out")
  if replica:
    raise UserError(f'{folder} holds one model, and no replicas: leave replica out')
  return predictor
