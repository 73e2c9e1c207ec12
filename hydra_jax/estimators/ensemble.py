"""Deep ensembles trained on arrays, without a config or a work directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import logging
from typing import Any

import numpy as np

from hydra_jax.data import Split, check_inputs, labels, standardise, validation_rows
from hydra_jax.errors import UserError
from hydra_jax.estimators import training
from hydra_jax.estimators.training import Examples
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.stages import Stage, mlp

logger = logging.getLogger(__name__)

METHOD = 'ensemble'


def train_ensemble(
  x: Any,
  y: Any,
  members: int = 20,
  network: Callable[[int], list[Stage]] = mlp,
  seed: int = 0,
  validation: float = 0.1,
  sample_weight: Any = None,
  *,
  task: str = 'auto',
  verbose: bool = True,
  **settings: Any,
) -> Predictor:
  """Trains a deep ensemble (Lakshminarayanan et al. 2017): networks that differ by how they start.

  In regression a network gives a mean and a variance, and learns by likelihood.

  Args:
    x: Inputs `[N, …]`, finite numbers; images are uint8 `[N, height, width, channels]`.
    y: Classes `[N]`, as numbers or names, or targets `[N]` or `[N, D]`.
    members: M, number of networks.
    network: `outputs -> stages`.
    seed: Decides how networks start and the order of the examples.
    validation: Share of the examples that nothing is trained on, at most 1,000. Training stops where these are
      predicted no better, member by member. 0: training is as long as `epochs` says.
    sample_weight: Weight of each example in the loss `[N]`, at least 0.
    task: `classification`, `regression`, or `auto`: by the values of y.
    verbose: Whether a progress bar is shown.
    **settings: Of training, such as `epochs=50.0`, `batch_size=64`, `learning_rate=1e-3`, `weight_decay=1e-4`.

  Returns:
    The trained ensemble.

  Raises:
    UserError: An argument is wrong.

  Example:
    >>> ensemble = hydra_jax.train_ensemble(x, y, members=20, epochs=50.0)  # doctest: +SKIP
    >>> ensemble.predict(x_new).epistemic  # doctest: +SKIP
  """
  x = check_inputs(np.asarray(x), 'x')
  meaning, targets = _targets(y, task)
  if len(targets) != len(x):
    raise UserError(f'y has {len(targets):,} labels for {len(x):,} inputs: they must match')
  weight = checked_weight(sample_weight, len(x))
  given = Labelled(x=x, y=targets, outputs=meaning.outputs, weight=weight, classes=meaning.names)
  return ensemble_of(given, members, network, seed, validation_rows(len(x), validation), settings, verbose)


@dataclass(frozen=True, kw_only=True)
class Labelled:
  """Examples with labels.

  Attributes:
    x: Inputs `[N, …]`, finite numbers.
    y: Classes `[N]` int32, counted from 0, or targets `[N, D]` float64.
    outputs: Number of classes or of targets.
    weight: Of each example `[N]`; None: all alike.
    classes: Names of the classes.
  """

  x: np.ndarray
  y: np.ndarray
  outputs: int
  weight: np.ndarray | None = None
  classes: tuple[str, ...] = ()

  @property
  def task(self) -> str:
    """Key of `TASKS`."""
    return 'classification' if self.y.dtype.kind in 'iu' else 'regression'


def ensemble_of(
  given: Labelled,
  members: int,
  network: Callable[[int], list[Stage]],
  seed: int,
  held_out: np.ndarray,
  settings: Mapping[str, Any],
  verbose: bool,
) -> Predictor:
  """Trains an ensemble on all rows but those that are held out."""
  if not isinstance(members, int | np.integer) or members < 1:
    raise UserError(f'members={members!r} must be a whole number of at least 1')
  learnt = np.setdiff1d(np.arange(len(given.x)), held_out)
  how, own = training.settings_of(METHOD, settings, {})
  row = TASKS[given.task]

  phases = METHODS[METHOD].phases(own, training.context_of(row, network, int(members), given.outputs))
  scaling = standardise(Split(given.x[learnt], given.y[learnt]), given.task == 'classification')
  arrays = _arrays(given, scaling)
  part = lambda rows: {name: array[rows] for name, array in arrays.items()}
  examples = Examples(arrays=part(learnt), scaling=scaling, held_out=part(held_out) if len(held_out) else None)
  params, state = training.train(phases, examples, how, (seed, 1), 'ensemble' if verbose else '')
  model = Model(phases[-1].network, params, state, scaling, row.predictives['members'].read)
  return Predictor(model, given.task, given.x.shape[1:], given.x.dtype == np.uint8, given.classes)


def _arrays(given: Labelled, scaling: Any) -> dict[str, np.ndarray]:
  """Examples as they go to the device."""
  arrays = Split(given.x, given.y).arrays(scaling)
  if given.weight is None:
    return arrays
  return arrays | {'weight': (given.weight / given.weight.mean()).astype(np.float32)}


def checked_weight(weight: Any, rows: int) -> np.ndarray | None:
  """Weights `[N]` float64; refused where they cannot be weights."""
  if weight is None:
    return None
  weight = np.asarray(weight, np.float64)
  if weight.shape != (rows,) or not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
    raise UserError(f'sample_weight must be {rows} numbers of at least 0, of which one is more than 0')
  return weight


def _targets(y: Any, task: str) -> tuple[labels.Labels, np.ndarray]:
  """What labels mean, and labels as they are learnt. Messages are in the words of an argument."""
  y = np.asarray(y)
  if y.dtype == object and all(isinstance(value, str) for value in y.flat):
    y = y.astype(str)
  try:
    flat = labels.flat(y, 'y')
    meaning = labels.meaning(flat, task, 'y')
    if meaning.note:
      logger.info(meaning.note.replace('--config.data.', ''))
    return meaning, labels.encode(flat, meaning, 'y')
  except UserError as e:
    raise UserError(str(e).replace('--config.data.', '')) from e
