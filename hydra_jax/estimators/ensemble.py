"""Deep ensembles trained on arrays, without a config or a work directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import functools
import logging
from typing import Any

import numpy as np

from hydra_jax.data import Split, check_inputs, labels, standardise, validation_rows
from hydra_jax.errors import UserError
from hydra_jax.estimators import out_of_fold, training
from hydra_jax.estimators.training import Examples
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment.recipes import built_from
from hydra_jax.experiment.schema import Settings
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.stages import Stage, mlp
from hydra_jax.serving.card import measured
from hydra_jax.training.folds import of_rows as folds_of_rows

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
  folds: int = 0,
  patience: int = 12,
  average: float = 0.0,
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
    validation: Share of the examples that nothing is trained on, at most 1,000. Training stops when these are
      predicted no better, and each member is as it was when it predicted them best. 0, and where they would be fewer
      than 16: training is as long as `epochs` says.
    sample_weight: Weight of each example in the loss `[N]`, at least 0.
    task: `classification`, `regression`, or `auto`: by the values of y.
    folds: K, at least 2: member m learns from all rows but those of fold m mod K, which tell when its training stops.
      All of the ensemble has then seen all rows. 0: the validation part tells.
    patience: Training stops after as many scores without an improvement of any member. There are 4 in each pass, and
      at least 50 steps between two.
    average: Decay of a running average of the parameters, such as 0.99, which is what is kept; 0: the last ones are.
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
  held_out = validation_rows(len(x), validation)
  rule = Rule(folds, patience, average)
  return ensemble_of(given, members, network, seed, held_out, rule, settings, verbose)[0]


@dataclass(frozen=True)
class Rule:
  """When training stops, and what is kept: see `train_ensemble`."""

  folds: int = 0
  patience: int = 12
  average: float = 0.0


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
  rule: Rule,
  settings: Mapping[str, Any],
  verbose: bool,
) -> tuple[Predictor, Predictor]:
  """Trains an ensemble on all rows but those that are held out.

  Returns:
    The ensemble, and the same as a teacher: where there are folds, its members are as certain as they are right on rows
    that they have not seen.
  """
  if not isinstance(members, int | np.integer) or members < 1:
    raise UserError(f'members={members!r} must be a whole number of at least 1')
  learnt = np.setdiff1d(np.arange(len(given.x)), held_out)
  how, own = training.settings_of(METHOD, settings, {})
  row = TASKS[given.task]
  phases = METHODS[METHOD].phases(own, training.context_of(row, network, int(members), given.outputs))
  scaling = standardise(Split(given.x[learnt], given.y[learnt]), given.task == 'classification')
  arrays = _arrays(given, scaling)
  part = lambda rows: {name: array[rows] for name, array in arrays.items()}
  fold = _folds(given, learnt, rule.folds, seed) if rule.folds else None
  aside = part(held_out) if len(held_out) else None
  examples = Examples(arrays=part(learnt), scaling=scaling, held_out=aside, fold=fold)
  stopping = training.Stopping(
    stretch=training.stretch_of(len(learnt), how.batch_size), patience=rule.patience, measure=row.held_out
  )
  label = 'ensemble' if verbose else ''
  params, state = training.train(phases, examples, how, (seed, 1), label, rule.average, stopping)
  model = Model(phases[-1].network, params, state, scaling, row.predictives['members'].read)
  facts = functools.partial(measured, x=given.x[held_out], y=given.y[held_out], learnt=len(learnt))
  sizes = given.task, given.outputs, int(members)
  recipe = built_from('teacher', Settings(METHOD, how, own), network, sizes, len(phases) - 1, facts)
  is_image = given.x.dtype == np.uint8
  ensemble = Predictor(model, given.task, given.x.shape[1:], is_image, given.classes, recipe=recipe)
  if fold is None:
    return ensemble, ensemble
  surer = out_of_fold.calibrated(model, given.task, given.x[learnt], arrays['y'][learnt], fold)
  return ensemble, replace(ensemble, model=surer, recipe=None)


def _folds(given: Labelled, learnt: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The fold of each row that is learnt from."""
  return folds_of_rows(len(learnt), count, seed, given.y[learnt] if given.task == 'classification' else None)


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
