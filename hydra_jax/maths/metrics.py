"""Scores of predictions, as pure functions.

Scores of single examples are `[B]`, in JAX. They are kept for every example of a set, so a mean is one sum over one
count, never a mean of means. What is made of the scores of a whole set (calibration, detection) is NumPy on the host:
its sums are in float64 and its counts are whole numbers, so that it is right for sets of any size.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
import numpy as np

from hydra_jax.maths.losses import gaussian_log_density, log_mean_exp, moment_match


def nll(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log of the mean probability of the label, in nats."""
  return -jnp.take_along_axis(log_mean_BxC, labels_B[:, None], axis=-1)[:, 0]


def brier(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """Brier score: squared error of the probabilities, summed over classes (Brier 1950); 0 to 2."""
  labels = jax.nn.one_hot(labels_B, log_mean_BxC.shape[-1], dtype=log_mean_BxC.dtype)
  return jnp.sum(jnp.square(jnp.exp(log_mean_BxC) - labels), axis=-1)


def calibration_bins(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> np.ndarray:
  """Sums of (confidence, correct, count) in equal-width bins (l, r] of confidence, `[bins, 3]`, in float64.

  Edges have the precision of the confidence, so that a float32 of 0.6 is in the bin that ends at 0.6.
  """
  edges = np.linspace(0, 1, bins + 1).astype(np.asarray(confidence_N).dtype)
  index = np.clip(np.searchsorted(edges, confidence_N, side='left') - 1, 0, bins - 1)
  return _sums(index, confidence_N, correct_N, bins)


def _sums(index_N, confidence_N, correct_N, size: int) -> np.ndarray:
  """Sums of (confidence, correct, count) by index, `[size, 3]`, in float64."""
  weights = (confidence_N, correct_N, np.ones(len(index_N)))
  return np.stack([np.bincount(index_N, np.asarray(w, np.float64), size) for w in weights], axis=-1)


def calibration_error(sums_binsx3: np.ndarray) -> float:
  """Expected calibration error Σ_b n_b / N |accuracy_b − confidence_b| (Guo et al. 2017) from sums."""
  gaps = np.abs(sums_binsx3[:, 0] - sums_binsx3[:, 1])
  return float(np.sum(gaps) / np.sum(sums_binsx3[:, 2]))


def adaptive_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> float:
  """Expected calibration error over bins that hold equally many examples (Nixon et al. 2019).

  The first N mod `bins` bins hold one example more. Examples of equal confidence that fall into several bins are dealt
  out evenly: each bin gets the accuracy of all of them. So the error does not depend on their order.
  """
  levels, level_N = np.unique(np.asarray(confidence_N, np.float64), return_inverse=True)
  of_level = _sums(level_N, np.zeros(len(level_N)), correct_N, len(levels))
  count = of_level[:, 2].astype(np.int64)
  confidence, correct = (np.repeat(values, count) for values in (levels, of_level[:, 1] / count))
  sizes = [len(part) for part in np.array_split(confidence, bins)]
  return calibration_error(_sums(np.repeat(np.arange(bins), sizes), confidence, correct, bins))


def detection(inside_N: np.ndarray, outside_N: np.ndarray) -> dict[str, float]:
  """How well a score tells out-of-domain examples, which are the positives, from in-domain ones.

  Counts are exact, and examples that score the same share one threshold. All are NaN where a score is.

  Returns:
    auroc: Chance that an out-of-domain example scores above an in-domain one; ties count one half.
    aupr: Average precision.
    fpr95: Share of in-domain examples at or above the highest score that 95% of the out-of-domain ones reach.
  """
  inside, outside = np.sort(inside_N), np.sort(outside_N)
  if np.isnan(inside[-1]) or np.isnan(outside[-1]):
    return dict.fromkeys(('auroc', 'aupr', 'fpr95'), float('nan'))
  below = np.searchsorted(inside, outside, side='left')
  not_above = np.searchsorted(inside, outside, side='right')
  true = len(outside) - np.searchsorted(outside, outside, side='left')
  false = len(inside) - below
  needed = -(-95 * len(outside) // 100)
  flagged = len(inside) - np.searchsorted(inside, outside[-needed], side='left')
  return {
    'auroc': float(np.mean(below + not_above) / (2 * len(inside))),
    'aupr': float(np.mean(true / (true + false))),
    'fpr95': float(flagged / len(inside)),
  }


def mixture_nll(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """−log of the equal-weight Gaussian mixture density, targets independent within a member, `[B]`."""
  return -log_mean_exp(jnp.sum(gaussian_log_density(mean_MxBxD, var_MxBxD, y_BxD[None]), axis=-1))


def moment_nll(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """−log density of the one Gaussian with the mixture's mean and variance, `[B]`."""
  return -jnp.sum(gaussian_log_density(*moment_match(mean_MxBxD, var_MxBxD), y_BxD), axis=-1)


def _expected_distance(shift, var):
  """E|X| for X ~ N(shift, var)."""
  sd = jnp.sqrt(var)
  z = shift / sd
  return 2 * sd * norm.pdf(z) + shift * (2 * norm.cdf(z) - 1)


def crps(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """Continuous ranked probability score of the mixture, exact (Grimit et al. 2006, eq. 3), `[B, D]`.

  E|X − y| − ½ E|X − X'|, in target units, of each target by itself.
  """
  to_y = jnp.mean(_expected_distance(y_BxD[None] - mean_MxBxD, var_MxBxD), axis=0)
  apart = lambda mean, var: jnp.mean(_expected_distance(mean_MxBxD - mean[None], var_MxBxD + var[None]), axis=0)
  between = jnp.mean(jax.lax.map(lambda mv: apart(*mv), (mean_MxBxD, var_MxBxD)), axis=0)
  return to_y - 0.5 * between


def mixture_cdf(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """Cumulative probability of y under the mixture, `[B, D]`; uniform on [0, 1] if calibrated."""
  return jnp.mean(norm.cdf((y_BxD[None] - mean_MxBxD) / jnp.sqrt(var_MxBxD)), axis=0)
