"""What a network's outputs mean: one row for classification, one for regression.

Everything downstream (training, evaluation, tables, figures) reads a task and never asks which.
"""

from collections.abc import Callable, Mapping
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import losses, metrics, uncertainty

Scores = Mapping[str, np.ndarray]


class Task(NamedTuple):
  """A kind of prediction.

  Attributes:
    outputs: Number of network outputs for a number of classes or targets.
    label: Loss against labels, `(outputs [H, B, C], y) -> [H, B]`.
    member: Loss of head m against member m, `(outputs, teacher [M, B, C], temperature) -> [M, B]`.
    mean: Loss of each head against the mean prediction, same arguments, `[H, B]`.
    scores: Scores of every example in original units, `(outputs, y, y_shift, y_scale) -> {name: [B]}`.
    averages: Metric names and the score each is the mean of.
    summary: Metrics that are not plain means, `(scores, bins) -> {name: value}`.
    headline: Columns of the table, `{metric: (heading, better, relative)}`, see `tables.Column`.
    under_shift: Metrics drawn against the strength of a shift.
  """

  outputs: Callable[[int], int]
  label: Callable
  member: Callable
  mean: Callable
  scores: Callable
  averages: Mapping[str, str]
  summary: Callable[[Scores, int], dict[str, float]]
  headline: Mapping[str, tuple[str, ...]]
  under_shift: tuple[str, ...]


def classification_scores(logits_MxBxC, labels_B, y_shift, y_scale) -> dict[str, jax.Array]:
  """Scores of each example; those against the label are meaningless where it is −1 (none)."""
  del y_shift, y_scale
  log_p = jax.nn.log_softmax(logits_MxBxC)
  log_mean = losses.log_mean_exp(log_p)
  parts = uncertainty.classification(log_p)
  labels = jnp.maximum(labels_B, 0)
  guess = jnp.argmax(log_mean, axis=-1)
  return {
    'nll': metrics.nll(log_mean, labels),
    'brier': metrics.brier(log_mean, labels),
    'correct': (guess == labels).astype(jnp.float32),
    'confidence': jnp.exp(jnp.max(log_mean, axis=-1)),
    **parts._asdict(),
  }


def classification_summary(scores: Scores, bins: int) -> dict[str, float]:
  ece, adaptive = _calibration(scores['confidence'], scores['correct'], bins)
  return {'ece': float(ece), 'adaptive_ece': float(adaptive)}


@functools.partial(jax.jit, static_argnums=2)
def _calibration(confidence_N, correct_N, bins):
  ece = metrics.calibration_error(metrics.calibration_bins(confidence_N, correct_N, bins))
  return ece, metrics.adaptive_calibration_error(confidence_N, correct_N, bins)


def regression_scores(outputs_MxBx2D, y_BxD, y_shift, y_scale) -> dict[str, jax.Array]:
  """Scores of each example in the units of the target."""
  mean, var = losses.gaussian(outputs_MxBx2D)
  shift, scale = (jnp.reshape(a, (1, 1, -1)) for a in (y_shift, y_scale))
  mean, var = mean * scale + shift, var * jnp.square(scale)
  pit = metrics.mixture_cdf(mean, var, y_BxD)
  return {
    'squared_error': jnp.sum(jnp.square(jnp.mean(mean, axis=0) - y_BxD), axis=-1),
    'nll': metrics.mixture_nll(mean, var, y_BxD),
    'nll_gaussian': metrics.moment_nll(mean, var, y_BxD),
    'crps': metrics.crps(mean, var, y_BxD),
    'covered': jnp.mean((jnp.abs(pit - 0.5) <= 0.475).astype(jnp.float32), axis=-1),
    'pit': jnp.mean(pit, axis=-1),
    **uncertainty.regression(mean, var)._asdict(),
  }


def regression_summary(scores: Scores, bins: int) -> dict[str, float]:
  del bins
  return {'rmse': float(np.sqrt(np.mean(scores['squared_error'], dtype=np.float64)))}


def _at_one(loss):
  """A loss without a temperature, called with temperature 1 (`config.validate` sees to it)."""
  return lambda student, teacher, temperature: loss(student, teacher)


UNCERTAINTIES = {'total': 'total', 'data': 'data', 'model': 'model'}

TASKS = {
  'classification': Task(
    outputs=lambda classes: classes,
    label=losses.cross_entropy,
    member=losses.hydra,
    mean=losses.distillation,
    scores=classification_scores,
    averages={'accuracy': 'correct', 'nll': 'nll', 'brier': 'brier', **UNCERTAINTIES},
    summary=classification_summary,
    headline={
      'accuracy': ('acc.', 'high'),
      'nll': ('NLL', 'low'),
      'brier': ('Brier', 'low'),
      'ece': ('ECE', 'low'),
      'model': ('model unc.', ''),
    },
    under_shift=('accuracy', 'nll', 'model'),
  ),
  'regression': Task(
    outputs=lambda targets: 2 * targets,
    label=losses.gaussian_nll,
    member=_at_one(losses.gaussian_hydra),
    mean=_at_one(losses.gaussian_distillation),
    scores=regression_scores,
    averages={'nll': 'nll', 'nll_gaussian': 'nll_gaussian', 'crps': 'crps', 'coverage_95': 'covered', **UNCERTAINTIES},
    summary=regression_summary,
    headline={
      'rmse': ('RMSE', 'low'),
      'nll': ('NLL', 'low', 'difference'),
      'nll_gaussian': ('NLL (Gauss)', 'low', 'difference'),
      'crps': ('CRPS', 'low'),
      'coverage_95': ('cover. 95%', ''),
      'model': ('model unc.', ''),
    },
    under_shift=('rmse', 'crps', 'model'),
  ),
}
