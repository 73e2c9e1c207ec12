"""Scores of predictions that are arrays, made by any framework."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import in_batches
from hydra_jax.maths.tasks import TASKS, categorical_members


def evaluate(outputs: Any, y: Any, bins: int = 15, batch_size: int = 500) -> dict[str, float]:
  """Scores the predictions of M members, or of the M heads of a student, against labels.

  Args:
    outputs: Classification: logits `[M, N, C]`. Regression: a tuple of means and variances, both `[M, N, D]` or
      `[M, N]`, in the units of the targets.
    y: Classification: whole numbers from 0 to C − 1, `[N]`. Regression: targets `[N, D]` or `[N]`.
    bins: Of the calibration errors.
    batch_size: Examples that are computed at once.

  Returns:
    Means over examples. Classification: `accuracy`, `nll`, `brier`, `ece`, `adaptive_ece`, `disagreement`, and in nats
    `uncertainty_total`, `uncertainty_aleatoric` and `uncertainty_epistemic`. Regression: `rmse`, `nll`, `nll_gaussian`,
    `crps`, `coverage_95`, and the uncertainties as variances. Of several targets, `rmse` and `crps` are means over
    targets, beside `rmse_0`, `crps_0` and so on, and uncertainties are in units of the variance of each target in y.

  Raises:
    UserError: Shapes do not fit each other, or values are not finite.

  Example:
    >>> logits = np.log([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.2, 0.8]]])  # two members, two inputs, two classes
    >>> round(evaluate(logits, [0, 1])['nll'], 4)
    0.2899
  """
  if isinstance(outputs, tuple):
    mean, variance = (np.asarray(each, np.float64) for each in outputs)
    return _evaluate_regression(mean, variance, np.asarray(y, np.float64), bins, batch_size)
  return _evaluate_classification(np.asarray(outputs), np.asarray(y), bins, batch_size)


def _evaluate_classification(logits_MxNxC: np.ndarray, y_N: np.ndarray, bins: int, batch_size: int) -> dict[str, float]:
  if logits_MxNxC.ndim != 3 or not logits_MxNxC.size or y_N.shape != logits_MxNxC.shape[1:2]:
    shapes = f'{list(logits_MxNxC.shape)} and y {list(y_N.shape)}'
    raise UserError(f'logits have shape {shapes}: give logits [members, examples, classes] and y [examples]')
  classes = logits_MxNxC.shape[-1]
  if y_N.dtype.kind not in 'iu' or not 0 <= y_N.min() <= y_N.max() < classes:
    raise UserError(f'y must hold whole numbers from 0 to {classes - 1}, the last index of the logits')
  return _scores('classification', categorical_members, [logits_MxNxC], y_N, np.ones(1), bins, batch_size)


def _evaluate_regression(mean: np.ndarray, variance: np.ndarray, y: np.ndarray, bins: int, batch_size: int):
  mean, variance = (each[..., None] if each.ndim == 2 else each for each in (mean, variance))
  y_NxD = y[:, None] if y.ndim == 1 else y
  if mean.ndim != 3 or not mean.size or mean.shape != variance.shape or mean.shape[1:] != y_NxD.shape:
    shapes = f'{list(mean.shape)}, variances {list(variance.shape)} and y {list(y.shape)}'
    raise UserError(f'means have shape {shapes}: give means and variances [members, examples, targets] and y alike')
  if not np.isfinite(y).all():
    raise UserError('y must be finite: leave those examples out')
  if not variance.min() > 0:
    raise UserError('variances must be more than 0')
  # As networks see targets: float32 has too few digits for large units.
  shift, scale = y_NxD.mean(axis=0), np.where(np.ptp(y_NxD, axis=0) > 0, y_NxD.std(axis=0), 1)
  predictions = [(mean - shift) / scale, variance / np.square(scale)]
  read = lambda mean, variance: (mean, variance)
  return _scores('regression', read, predictions, (y_NxD - shift) / scale, scale, bins, batch_size)


def _scores(task, read, members_first, y, y_scale, bins, batch_size) -> dict[str, float]:
  for values in members_first:
    if not np.isfinite(values).all():
      raise UserError('predictions must be finite: leave that member out')
  rows = TASKS[task]

  @jax.jit
  def score(*batch):
    *predictions, labels = batch
    return rows.scores(read(*(jnp.swapaxes(each, 0, 1) for each in predictions)), labels)

  examples_first = [np.swapaxes(each, 0, 1).astype(np.float32) for each in members_first]
  labels = y.astype(np.int32 if task == 'classification' else np.float32)
  found = rows.in_units(in_batches(score, batch_size, *examples_first, labels), y_scale)
  means = {
    name: float(np.mean(found[score], dtype=np.float64)) for name, score in rows.averages.items() if score in found
  }
  return means | rows.summary(found, bins)
