"""Losses as pure functions: for every head and example, `[H, B]`, never reduced.

Shapes: H heads, M members, B examples, C classes, D targets. Teacher predictions carry the member
axis first, `[M, B, …]`. Classification works on logits in log-space; regression on Gaussians, each
given as (mean, variance), both `[M, B, D]`.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

Gaussian = tuple[jax.Array, jax.Array]

MIN_VARIANCE = 1e-6


def cross_entropy(logits_HxBxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log p_h(y | x), `[H, B]`."""
  log_p = jax.nn.log_softmax(logits_HxBxC)
  index = jnp.broadcast_to(labels_B[None, :, None], (*log_p.shape[:2], 1))
  return -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]


def log_mean_exp(x: jax.Array, axis: int = 0) -> jax.Array:
  """Log of the mean of exp along an axis; exactly x where all entries are equal.

  Where all entries are −inf, it is −inf, and the gradient is 0.
  """
  top = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0)
  mean = jnp.mean(jnp.exp(x - top), axis=axis)
  nothing = mean == 0  # the largest entry adds 1, unless it is −inf
  return jnp.where(nothing, -jnp.inf, jnp.log(jnp.where(nothing, 1, mean)) + jnp.squeeze(top, axis))


def relative_entropy(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """KL(p ‖ q) along the last axis, in nats; 0 log 0 = 0."""
  p = jnp.exp(log_p)
  return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0), axis=-1)


def hydra(student_MxBxC: jax.Array, teacher_MxBxC: jax.Array, temperature: float = 1.0) -> jax.Array:
  """T² KL(softmax(b_m / T) ‖ softmax(a_m / T)), member m against head m, `[M, B]`.

  The mean over heads and examples is the objective of Hydra (Tran et al. 2020, eq. 4 for T = 1);
  T² keeps the size of the gradient (Hinton et al. 2015, section 2.1).
  """
  chex.assert_equal_shape([student_MxBxC, teacher_MxBxC])
  log_b = jax.nn.log_softmax(teacher_MxBxC / temperature)
  log_a = jax.nn.log_softmax(student_MxBxC / temperature)
  return temperature**2 * relative_entropy(log_b, log_a)


def distillation(student_HxBxC: jax.Array, teacher_MxBxC: jax.Array, temperature: float = 1.0) -> jax.Array:
  """T² KL(1/M Σ_m softmax(b_m / T) ‖ softmax(a_h / T)), `[H, B]` (Hinton et al. 2015)."""
  chex.assert_equal_shape_suffix([student_HxBxC, teacher_MxBxC], 2)
  log_mean = log_mean_exp(jax.nn.log_softmax(teacher_MxBxC / temperature))
  log_a = jax.nn.log_softmax(student_HxBxC / temperature)
  return temperature**2 * relative_entropy(log_mean[None], log_a)


def similarity(
  stacked: Sequence[jax.Array], over_devices: Callable[[jax.Array], jax.Array] = lambda mean: mean
) -> jax.Array:
  """How alike heads are in their weights, 0 to 1: 1 where all are the same (Hydra+, Ferianc and Rodrigues 2022).

  (1 + cos) / 2 between the weights of a head into one unit and their mean over heads, averaged over heads and units,
  then over kernels. The paper (arXiv 2205.09526) adds up instead.

  Args:
    stacked: Kernels `[H, …, inputs, units]` of the heads on this device.
    over_devices: Averages a mean over heads over the devices that have other heads.

  Returns:
    The mean over the heads of this device, `[]` float32.
  """

  def of_kernel(kernel):
    weights = jnp.reshape(kernel, (len(kernel), -1, kernel.shape[-1]))
    mean = over_devices(jnp.mean(weights, axis=0, keepdims=True))
    squares = jnp.sum(jnp.square(weights), axis=1) * jnp.sum(jnp.square(mean), axis=1)
    cosine = jnp.sum(weights * mean, axis=1) * jax.lax.rsqrt(squares + jnp.finfo(squares.dtype).tiny)
    return jnp.mean((1 + cosine) / 2)

  return jnp.mean(jnp.stack([of_kernel(kernel) for kernel in stacked]))


def gaussian(outputs: jax.Array) -> Gaussian:
  """Reads network outputs `[..., 2D]` as a mean `[..., D]` and a variance softplus(·) + 1e-6."""
  mean, raw = jnp.split(outputs, 2, axis=-1)
  return mean, jax.nn.softplus(raw) + MIN_VARIANCE


def gaussian_outputs(mean: np.ndarray, var: np.ndarray) -> np.ndarray:
  """The outputs `[..., 2D]` that `gaussian` reads as this mean and this variance, which is 2e-6 at least."""
  above = np.maximum(var - MIN_VARIANCE, MIN_VARIANCE)
  return np.concatenate([mean, above + np.log(-np.expm1(-above))], axis=-1)


def moment_match(mean_MxBxD: jax.Array, var_MxBxD: jax.Array) -> Gaussian:
  """Mean and variance of the equal-weight mixture, both `[B, D]`."""
  return jnp.mean(mean_MxBxD, axis=0), jnp.mean(var_MxBxD, axis=0) + jnp.var(mean_MxBxD, axis=0)


def gaussian_log_density(mean: jax.Array, var: jax.Array, y: jax.Array) -> jax.Array:
  """Log N(y; mean, var), element by element."""
  return -0.5 * (jnp.log(2 * jnp.pi * var) + jnp.square(y - mean) / var)


def gaussian_nll(outputs_HxBx2D: jax.Array, y_BxD: jax.Array) -> jax.Array:
  """−log N(y; mean_h, var_h), summed over targets, `[H, B]`."""
  return -jnp.sum(gaussian_log_density(*gaussian(outputs_HxBx2D), y_BxD[None]), axis=-1)


def gaussian_kl(p: Gaussian, q: Gaussian) -> jax.Array:
  """KL(N(μ, s²) ‖ N(μ', s'²)) = ½ [log(s'²/s²) + (s² + (μ − μ')²)/s'² − 1], summed over targets."""
  (mean, var), (mean_q, var_q) = p, q
  terms = jnp.log(var_q) - jnp.log(var) + (var + jnp.square(mean - mean_q)) / var_q - 1
  return 0.5 * jnp.sum(terms, axis=-1)


def gaussian_hydra(student_MxBx2D: jax.Array, teacher_MxBx2D: jax.Array) -> jax.Array:
  """KL of Gaussian member m to Gaussian head m, `[M, B]`."""
  chex.assert_equal_shape([student_MxBx2D, teacher_MxBx2D])
  return gaussian_kl(gaussian(teacher_MxBx2D), gaussian(student_MxBx2D))


def gaussian_distillation(student_HxBx2D: jax.Array, teacher_MxBx2D: jax.Array) -> jax.Array:
  """KL of the moment-matched mixture to head h, `[H, B]`.

  Its gradient is that of KL(mixture ‖ head): a Gaussian sees only the first two moments.
  """
  chex.assert_equal_shape_suffix([student_HxBx2D, teacher_MxBx2D], 2)
  mean, var = moment_match(*gaussian(teacher_MxBx2D))
  return gaussian_kl((mean[None], var[None]), gaussian(student_HxBx2D))
