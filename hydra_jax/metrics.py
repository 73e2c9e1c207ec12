"""Scores of predictions, as pure functions.

Scores of single examples are `[B]`. They are kept for every example of a set, so a mean is one sum
over one count, never a mean of means. Calibration adds up sums over bins.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from hydra_jax.losses import gaussian_log_density, log_mean_exp, moment_match


def nll(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log of the mean probability of the label, in nats."""
  return -jnp.take_along_axis(log_mean_BxC, labels_B[:, None], axis=-1)[:, 0]


def brier(log_mean_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """Brier score: squared error of the probabilities, summed over classes (Brier 1950); 0 to 2."""
  labels = jax.nn.one_hot(labels_B, log_mean_BxC.shape[-1], dtype=log_mean_BxC.dtype)
  return jnp.sum(jnp.square(jnp.exp(log_mean_BxC) - labels), axis=-1)


def calibration_bins(confidence_B, correct_B, bins: int = 15) -> jax.Array:
  """Sums of (confidence, correct, count) in equal-width bins (l, r] of confidence, `[bins, 3]`."""
  index = jnp.clip(jnp.ceil(confidence_B * bins).astype(jnp.int32) - 1, 0, bins - 1)
  columns = jnp.stack([confidence_B, correct_B, jnp.ones_like(confidence_B)], axis=-1)
  return jax.ops.segment_sum(columns, index, num_segments=bins)


def calibration_error(sums_binsx3: jax.Array) -> jax.Array:
  """Expected calibration error Σ_b n_b / N |accuracy_b − confidence_b| (Guo et al. 2017) from sums."""
  gaps = jnp.abs(sums_binsx3[:, 0] - sums_binsx3[:, 1])
  return jnp.sum(gaps) / jnp.sum(sums_binsx3[:, 2])


def adaptive_calibration_error(confidence_N, correct_N, bins: int = 15) -> jax.Array:
  """Expected calibration error over bins that hold equally many examples (Nixon et al. 2019)."""
  order = jnp.argsort(confidence_N)
  n = confidence_N.shape[0]
  index = jnp.arange(n) * bins // n
  columns = jnp.stack([confidence_N, correct_N, jnp.ones_like(confidence_N)], axis=-1)
  return calibration_error(jax.ops.segment_sum(columns[order], index, num_segments=bins))


def auroc(inside_N: jax.Array, outside_N: jax.Array) -> jax.Array:
  """Chance that an out-of-domain example scores above an in-domain one; ties count one half."""
  inside = jnp.sort(inside_N)
  below = jnp.searchsorted(inside, outside_N, side='left')
  not_above = jnp.searchsorted(inside, outside_N, side='right')
  return jnp.mean((below + not_above) / (2 * inside.shape[0]))


def aupr(inside_N: jax.Array, outside_N: jax.Array) -> jax.Array:
  """Average precision with out-of-domain examples as the positives; ties share one threshold."""
  inside, outside = jnp.sort(inside_N), jnp.sort(outside_N)
  true = outside.shape[0] - jnp.searchsorted(outside, outside_N, side='left')
  false = inside.shape[0] - jnp.searchsorted(inside, outside_N, side='left')
  return jnp.mean(true / (true + false))


def fpr_at_95(inside_N: jax.Array, outside_N: jax.Array) -> jax.Array:
  """Share of out-of-domain examples that pass for in-domain where 95% of the in-domain ones do."""
  kept = -(-95 * inside_N.shape[0] // 100)
  threshold = jnp.sort(inside_N)[kept - 1]
  return jnp.mean(outside_N <= threshold, dtype=jnp.float32)


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
  """Continuous ranked probability score of the mixture, exact (Grimit et al. 2006, eq. 3), `[B]`.

  E|X − y| − ½ E|X − X'|, in target units, summed over targets.
  """
  to_y = jnp.mean(_expected_distance(y_BxD[None] - mean_MxBxD, var_MxBxD), axis=0)
  apart = lambda mean, var: jnp.mean(_expected_distance(mean_MxBxD - mean[None], var_MxBxD + var[None]), axis=0)
  between = jnp.mean(jax.lax.map(lambda mv: apart(*mv), (mean_MxBxD, var_MxBxD)), axis=0)
  return jnp.sum(to_y - 0.5 * between, axis=-1)


def mixture_cdf(mean_MxBxD, var_MxBxD, y_BxD) -> jax.Array:
  """Cumulative probability of y under the mixture, `[B, D]`; uniform on [0, 1] if calibrated."""
  return jnp.mean(norm.cdf((y_BxD[None] - mean_MxBxD) / jnp.sqrt(var_MxBxD)), axis=0)
