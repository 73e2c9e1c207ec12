"""Scores of predictions, as pure functions.

Scores of single examples are float32 arrays `[B]`, computed by JAX. They are kept for every example of a set. So a mean
is one sum over one count, never a mean of means.

Scores of a whole set (calibration, detection) are computed by NumPy on the host, in float64 and with whole numbers as
counts. So they are right for sets of any size.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
import numpy as np

from hydra_jax.maths.losses import gaussian_log_density, log_mean_exp, moment_match


def nll(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log of the mean probability of the label, `[B]`, in nats.

  Args:
    log_mean_BxC: Log of the mean probabilities of the members, see `losses.log_mean_exp`.
    labels_B: Indices of the classes, int32.

  Example:
    >>> nll(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])), jnp.array([1, 0]))
    Array([0.287..., 0.693...], dtype=float32)
  """
  return -jnp.take_along_axis(log_mean_BxC, labels_B[:, None], axis=-1)[:, 0]


def brier(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """Brier score: squared error of the probabilities, summed over classes (Brier 1950), `[B]`; 0 to 2.

  Args:
    log_mean_BxC: Log of the mean probabilities of the members.
    labels_B: Indices of the classes, int32.

  Example:
    >>> brier(jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]])), jnp.array([1, 0]))
    Array([0.125, 0.5  ], dtype=float32)
  """
  labels = jax.nn.one_hot(labels_B, log_mean_BxC.shape[-1], dtype=log_mean_BxC.dtype)
  return jnp.sum(jnp.square(jnp.exp(log_mean_BxC) - labels), axis=-1)


def calibration_bins(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> np.ndarray:
  """Sums of (confidence, correct, count) in equal-width bins (l, r] of confidence, `[bins, 3]`, in float64.

  Edges have the precision of the confidence. So a float32 of 0.6 is in the bin that ends at 0.6.

  Args:
    confidence_N: Probability of the likeliest class.
    correct_N: 1 where this class is the label, else 0.
    bins: Their number.

  Example:
    >>> calibration_bins(np.array([0.5, 0.75, 1.0]), np.array([1, 0, 1]), bins=2)
    array([[0.5 , 1.  , 1.  ],
           [1.75, 1.  , 2.  ]])
  """
  edges = np.linspace(0, 1, bins + 1).astype(np.asarray(confidence_N).dtype)
  index = np.clip(np.searchsorted(edges, confidence_N, side='left') - 1, 0, bins - 1)
  return _sums(index, confidence_N, correct_N, bins)


def _sums(index_N, confidence_N, correct_N, size: int) -> np.ndarray:
  """Sums of (confidence, correct, count) by index, `[size, 3]`, in float64."""
  weights = (confidence_N, correct_N, np.ones(len(index_N)))
  return np.stack([np.bincount(index_N, np.asarray(w, np.float64), size) for w in weights], axis=-1)


def calibration_error(sums_binsx3: np.ndarray) -> float:
  """Expected calibration error Σ_b n_b / N |accuracy_b − confidence_b| (Guo et al. 2017, eq. 3).

  Args:
    sums_binsx3: See `calibration_bins`.

  Example:
    >>> calibration_error(calibration_bins(np.array([0.5, 0.75, 1.0]), np.array([1, 0, 1]), bins=2))  # (0.5 + 0.75) / 3
    0.4166...
  """
  gaps = np.abs(sums_binsx3[:, 0] - sums_binsx3[:, 1])
  return float(np.sum(gaps) / np.sum(sums_binsx3[:, 2]))


def adaptive_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> float:
  """Expected calibration error over bins that hold equally many examples (Nixon et al. 2019).

  The first N mod `bins` bins hold one example more. Where examples of equal confidence fall into several bins, each of
  these bins gets the mean accuracy of them all. So the error does not depend on the order of examples.

  Args:
    confidence_N: Probability of the likeliest class.
    correct_N: 1 where this class is the label, else 0.
    bins: Their number.

  Example:
    >>> adaptive_calibration_error(np.array([0.5, 0.5, 1.0, 1.0]), np.array([1, 0, 1, 0]), bins=2)
    0.25
  """
  levels, level_N = np.unique(np.asarray(confidence_N, np.float64), return_inverse=True)
  of_level = _sums(level_N, np.zeros(len(level_N)), correct_N, len(levels))
  count = of_level[:, 2].astype(np.int64)
  confidence, correct = (np.repeat(values, count) for values in (levels, of_level[:, 1] / count))
  sizes = [len(part) for part in np.array_split(confidence, bins)]
  return calibration_error(_sums(np.repeat(np.arange(bins), sizes), confidence, correct, bins))


def detection(inside_N: np.ndarray, outside_N: np.ndarray) -> dict[str, float]:
  """How well a score tells out-of-domain examples, which are the positives, from in-domain ones.

  Counts are exact. Examples of equal score share one threshold. All results are NaN where a score is NaN.

  Args:
    inside_N: Scores of in-domain examples, such as their model uncertainty.
    outside_N: Scores of out-of-domain examples; their number may be another.

  Returns:
    auroc: Chance that an out-of-domain example scores above an in-domain one; ties count one half.
    aupr: Average precision.
    fpr95: Share of in-domain examples at or above the highest score that 95% of the out-of-domain ones reach.

  Example:
    >>> detection(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.4]))
    {'auroc': 0.9166..., 'aupr': 0.8333..., 'fpr95': 0.3333...}
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
  """−log density of the equal-weight Gaussian mixture, targets independent within a member, `[B]`.

  Args:
    mean_MxBxD: Means of the members.
    var_MxBxD: Variances of the members.
    y_BxD: Targets.

  Example:
    >>> mixture_nll(jnp.zeros((3, 1, 1)), jnp.ones((3, 1, 1)), jnp.zeros((1, 1)))  # ½ log 2π
    Array([0.918...], dtype=float32)
  """
  return -log_mean_exp(jnp.sum(gaussian_log_density(mean_MxBxD, var_MxBxD, y_BxD[None]), axis=-1))


def moment_nll(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """−log density of the single Gaussian with the mean and variance of the mixture, `[B]`.

  Arguments of `mixture_nll`.
  """
  return -jnp.sum(gaussian_log_density(*moment_match(mean_MxBxD, var_MxBxD), y_BxD), axis=-1)


def _expected_distance(shift, var):
  """E|X| for X ~ N(shift, var)."""
  sd = jnp.sqrt(var)
  z = shift / sd
  return 2 * sd * norm.pdf(z) + shift * (2 * norm.cdf(z) - 1)


def crps(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """Continuous ranked probability score of the mixture, exact (Grimit et al. 2006, eq. 3), `[B, D]`.

  E|X − y| − ½ E|X − X'|, of each target by itself, in its units. Arguments of `mixture_nll`.

  Example:
    >>> crps(jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1)), jnp.zeros((1, 1)))  # (√2 − 1) / √π
    Array([[0.233...]], dtype=float32)
  """
  to_y = jnp.mean(_expected_distance(y_BxD[None] - mean_MxBxD, var_MxBxD), axis=0)
  apart = lambda mean, var: jnp.mean(_expected_distance(mean_MxBxD - mean[None], var_MxBxD + var[None]), axis=0)
  between = jnp.mean(jax.lax.map(lambda mv: apart(*mv), (mean_MxBxD, var_MxBxD)), axis=0)
  return to_y - 0.5 * between


def mixture_cdf(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """Cumulative probability of y under the mixture, `[B, D]`; uniform on [0, 1] if calibrated.

  Arguments of `mixture_nll`.

  Example:
    >>> mixture_cdf(jnp.array([[[-1.0]], [[1.0]]]), jnp.ones((2, 1, 1)), jnp.ones((1, 1)))
    Array([[0.738...]], dtype=float32)
  """
  return jnp.mean(norm.cdf((y_BxD[None] - mean_MxBxD) / jnp.sqrt(var_MxBxD)), axis=0)
