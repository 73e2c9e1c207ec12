"""Losses as pure functions: one value for each head and example, `[H, B]`, not reduced.

Shapes: H heads, M members, B examples, C classes, D targets. All arrays are float32, but for labels, which are int32.
Predictions of a teacher carry the member axis first, `[M, B, …]`. Losses of classification read logits and work in
log-space. Losses of regression read network outputs `[…, 2D]` that stand for Gaussians, see `gaussian`.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

Gaussian = tuple[jax.Array, jax.Array]

MIN_VARIANCE = 1e-6
SMALLEST = 1e-37  # a probability whose logarithm is finite in float32


def cross_entropy(logits_HxBxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log p_h(y | x), `[H, B]`, in nats.

  `optax.losses.softmax_cross_entropy_with_integer_labels` subtracts large numbers: at logits (1e4, 1e4 − 9) it is 0 for
  the first class, where this is 1.2e-4.

  Args:
    logits_HxBxC: Logits of each head.
    labels_B: Indices of the classes.

  Example:
    >>> cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([0, 3]))  # log 4
    Array([[1.386..., 1.386...]], dtype=float32)
  """
  log_p = jax.nn.log_softmax(logits_HxBxC)
  index = jnp.broadcast_to(labels_B[None, :, None], (*log_p.shape[:2], 1))
  return -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]


def log_mean_exp(x: jax.Array, axis: int = 0) -> jax.Array:
  """Log of the mean of exp along an axis; exactly x where all entries are equal.

  Where all entries are −inf, the result is −inf, and its gradient is 0.

  Example:
    >>> log_mean_exp(jnp.log(jnp.array([0.25, 0.75])))  # log ½
    Array(-0.693..., dtype=float32)
  """
  top = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
  top = jnp.where(jnp.isfinite(top), top, 0)
  mean = jnp.mean(jnp.exp(x - top), axis=axis)
  nothing = mean == 0  # the largest entry adds 1, unless it is −inf
  return jnp.where(nothing, -jnp.inf, jnp.log(jnp.where(nothing, 1, mean)) + jnp.squeeze(top, axis))


def relative_entropy(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """KL(p ‖ q) along the last axis, in nats, of log-probabilities.

  Where p is 0, the term is 0. (`optax.losses.kl_divergence_with_log_targets` is NaN there.)

  Example:
    >>> relative_entropy(jnp.log(jnp.array([0.0, 1.0])), jnp.log(jnp.array([0.5, 0.5])))
    Array(0.693..., dtype=float32)
  """
  p = jnp.exp(log_p)
  return jnp.sum(p * jnp.where(p > 0, log_p - log_q, 0), axis=-1)


def hydra(student_MxBxC: jax.Array, teacher_MxBxC: jax.Array, temperature: float = 1.0) -> jax.Array:
  """T² KL(softmax(b_m / T) ‖ softmax(a_m / T)), head m against member m, `[M, B]`.

  The mean over heads and examples is the objective of Hydra (Tran et al. 2020, eq. 4 for T = 1). T² keeps the size of
  the gradient (Hinton et al. 2015, section 2.1).

  Args:
    student_MxBxC: Logits a of the heads.
    teacher_MxBxC: Logits b of the members.
    temperature: T.

  Raises:
    AssertionError: The shapes differ.

  Example:
    >>> hydra(jnp.zeros((1, 2, 2)), jnp.array([[[0.0, 1.0], [0.0, 2.0]]]))  # one head, two inputs
    Array([[0.110..., 0.327...]], dtype=float32)
  """
  chex.assert_equal_shape([student_MxBxC, teacher_MxBxC])
  log_b = jax.nn.log_softmax(teacher_MxBxC / temperature)
  log_a = jax.nn.log_softmax(student_MxBxC / temperature)
  return temperature**2 * relative_entropy(log_b, log_a)


def distillation(student_HxBxC: jax.Array, teacher_MxBxC: jax.Array, temperature: float = 1.0) -> jax.Array:
  """T² KL(1/M Σ_m softmax(b_m / T) ‖ softmax(a_h / T)), `[H, B]` (Hinton et al. 2015).

  Args:
    student_HxBxC: Logits a of the heads.
    teacher_MxBxC: Logits b of the members.
    temperature: T.

  Raises:
    AssertionError: B or C differ.

  Example:
    >>> members = jnp.array([[[0.0, 2.0]], [[2.0, 0.0]]])
    >>> distillation(jnp.array([[[0.0, 2.0]]]), members)  # the mean of the members is uniform
    Array([[0.433...]], dtype=float32)
  """
  chex.assert_equal_shape_suffix([student_HxBxC, teacher_MxBxC], 2)
  log_mean = log_mean_exp(jax.nn.log_softmax(teacher_MxBxC / temperature))
  log_a = jax.nn.log_softmax(student_HxBxC / temperature)
  return temperature**2 * relative_entropy(log_mean[None], log_a)


def mean_term(student_HxBxC: jax.Array, teacher_MxBxC: jax.Array, common_BxC: jax.Array) -> jax.Array:
  """KL(mean of the members ‖ mean of the heads), for each head, `[H, B]`.

  Every head has the same value. Its gradient is that head's part: the mean of the heads is taken as given, so that
  heads can be computed one after another, or on other devices. The mean over heads of these gradients is the gradient
  of the term.

  Args:
    student_HxBxC: Logits of heads, of all or of some.
    teacher_MxBxC: Logits of the members.
    common_BxC: Mean probabilities of all heads, without a gradient.

  Example:
    >>> heads = jnp.log(jnp.array([[[0.8, 0.2]], [[0.2, 0.8]]]))
    >>> mean_term(heads, heads[::-1], jnp.array([[0.5, 0.5]]))[:, 0]  # both means are uniform
    Array([0., 0.], dtype=float32)
  """
  log_q = log_mean_exp(jax.nn.log_softmax(teacher_MxBxC))
  log_mean = jnp.log(jnp.maximum(common_BxC, SMALLEST))
  # d KL / d p_h = −q / (H · mean), and the loss is a mean over heads.
  part_HxB = -jnp.sum(jnp.exp((log_q - log_mean)[None] + jax.nn.log_softmax(student_HxBxC)), axis=-1)
  return relative_entropy(log_q, log_mean)[None] + part_HxB - jax.lax.stop_gradient(part_HxB)


def of_mixture(
  statistics: Callable[[jax.Array], jax.Array],
  nll: Callable[[jax.Array, jax.Array], jax.Array],
  outputs_HxBxC: jax.Array,
  y: jax.Array,
  common_BxK: jax.Array,
) -> jax.Array:
  """The loss of the mixture of all heads against labels, for each head, `[H, B]`.

  Every head has the same value. Its gradient is that head's part, as in `mean_term`.

  Args:
    statistics: `outputs [H, B, C] -> [H, B, K]`, whose means over heads are what the mixture depends on.
    nll: `(means [B, K], y) -> [B]`.
    outputs_HxBxC: Of heads, of all or of some.
    y: Labels, with a leading axis B.
    common_BxK: Means of the statistics over all heads, without a gradient.

  Example:
    >>> logits, y = jnp.log(jnp.array([[[0.9, 0.1]], [[0.1, 0.9]]])), jnp.array([1])
    >>> of_mixture(jax.nn.softmax, mean_nll, logits, y, jnp.array([[0.5, 0.5]]))[:, 0]  # log 2
    Array([0.693..., 0.693...], dtype=float32)
  """
  value, back = jax.vjp(lambda common: nll(common, y), common_BxK)
  (slope_BxK,) = back(jnp.ones_like(value))
  part_HxB = jnp.sum(slope_BxK[None] * statistics(outputs_HxBxC), axis=-1)
  return value[None] + part_HxB - jax.lax.stop_gradient(part_HxB)


def mean_nll(means_BxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """−log of the mean probability of the label, `[B]`, of mean probabilities."""
  return -jnp.log(jnp.maximum(jnp.take_along_axis(means_BxC, labels_B[:, None], axis=-1)[:, 0], SMALLEST))


def gaussian_moments(outputs_HxBx2D: jax.Array) -> jax.Array:
  """First and second moments of the Gaussians of `gaussian`, `[H, B, 2D]`."""
  mean, var = gaussian(outputs_HxBx2D)
  return jnp.concatenate([mean, var + jnp.square(mean)], axis=-1)


def moment_nll(moments_Bx2D: jax.Array, y_BxD: jax.Array) -> jax.Array:
  """−log of the density of the Gaussian with these moments, summed over targets, `[B]`."""
  mean, second = jnp.split(moments_Bx2D, 2, axis=-1)
  return -jnp.sum(gaussian_log_density(mean, jnp.maximum(second - jnp.square(mean), MIN_VARIANCE), y_BxD), axis=-1)


def similarity(
  stacked: Sequence[jax.Array], over_devices: Callable[[jax.Array], jax.Array] = lambda mean: mean
) -> jax.Array:
  """How alike heads are in their weights, 0 to 1: 1 where all are the same (Hydra+, Ferianc and Rodrigues 2022).

  A unit of a head has the weights w_h, and w is their mean over heads. The value is (1 + cos(w_h, w)) / 2, averaged
  over heads and units, then over kernels. The paper (arXiv 2205.09526) sums where this averages.

  Args:
    stacked: Kernels `[H, …, inputs, units]` of the heads on this device.
    over_devices: Averages a mean over heads over the devices that have other heads.

  Returns:
    The mean over the heads of this device, `[]` float32.

  Example:
    >>> kernel = jnp.array([[[1.0], [2.0]]])  # one head, two inputs, one unit
    >>> round(float(similarity([jnp.concatenate([kernel, 3 * kernel])])), 3)
    1.0
  """

  def of_kernel(kernel):
    weights = jnp.reshape(kernel, (len(kernel), -1, kernel.shape[-1]))
    mean = over_devices(jnp.mean(weights, axis=0, keepdims=True))
    squares = jnp.sum(jnp.square(weights), axis=1) * jnp.sum(jnp.square(mean), axis=1)
    cosine = jnp.sum(weights * mean, axis=1) * jax.lax.rsqrt(squares + jnp.finfo(squares.dtype).tiny)
    return jnp.mean((1 + cosine) / 2)

  return jnp.mean(jnp.stack([of_kernel(kernel) for kernel in stacked]))


def gaussian(outputs: jax.Array) -> Gaussian:
  """Reads network outputs `[…, 2D]` as a mean `[…, D]` and a variance softplus(·) + 1e-6, `[…, D]`.

  Example:
    >>> mean, var = gaussian(jnp.array([5.0, 0.0]))
    >>> mean, var
    (Array([5.], dtype=float32), Array([0.693...], dtype=float32))
  """
  mean, raw = jnp.split(outputs, 2, axis=-1)
  return mean, jax.nn.softplus(raw) + MIN_VARIANCE


def gaussian_outputs(mean: np.ndarray, var: np.ndarray) -> np.ndarray:
  """The reverse of `gaussian`: outputs `[…, 2D]` of a mean and a variance `[…, D]`. Variances are raised to 2e-6.

  Example:
    >>> gaussian_outputs(np.array([5.0]), np.array([np.log(2) + 1e-6])).round(3)
    array([5., 0.])
  """
  above = np.maximum(var - MIN_VARIANCE, MIN_VARIANCE)
  return np.concatenate([mean, above + np.log(-np.expm1(-above))], axis=-1)


def moment_match(mean_MxBxD: jax.Array, var_MxBxD: jax.Array) -> Gaussian:
  """Mean and variance of the equal-weight mixture of Gaussians, both `[B, D]`.

  Example:
    >>> mean, var = moment_match(jnp.array([[[-1.0]], [[1.0]]]), jnp.full((2, 1, 1), 0.5))
    >>> mean.item(), var.item()
    (0.0, 1.5)
  """
  return jnp.mean(mean_MxBxD, axis=0), jnp.mean(var_MxBxD, axis=0) + jnp.var(mean_MxBxD, axis=0)


def gaussian_log_density(mean: jax.Array, var: jax.Array, y: jax.Array) -> jax.Array:
  """Log N(y; mean, var), element by element.

  Example:
    >>> gaussian_log_density(jnp.zeros(1), jnp.ones(1), jnp.zeros(1))  # −½ log 2π
    Array([-0.918...], dtype=float32)
  """
  return -0.5 * (jnp.log(2 * jnp.pi * var) + jnp.square(y - mean) / var)


def gaussian_nll(outputs_HxBx2D: jax.Array, y_BxD: jax.Array) -> jax.Array:
  """−log N(y; mean_h, var_h), summed over targets, `[H, B]`.

  Args:
    outputs_HxBx2D: Outputs of each head, see `gaussian`.
    y_BxD: Targets.

  Example:
    >>> outputs = jnp.asarray(gaussian_outputs(np.zeros((1, 2, 1)), np.ones((1, 2, 1))), jnp.float32)
    >>> gaussian_nll(outputs, jnp.array([[0.0], [1.0]]))
    Array([[0.918..., 1.418...]], dtype=float32)
  """
  return -jnp.sum(gaussian_log_density(*gaussian(outputs_HxBx2D), y_BxD[None]), axis=-1)


def gaussian_kl(p: Gaussian, q: Gaussian) -> jax.Array:
  """KL(N(μ, s²) ‖ N(μ', s'²)) = ½ [log(s'²/s²) + (s² + (μ − μ')²)/s'² − 1], summed over targets.

  Args:
    p: (μ, s²), each `[…, D]`.
    q: (μ', s'²), each `[…, D]`.

  Returns:
    `[…]`, in nats.

  Example:
    >>> gaussian_kl((jnp.array([3.0]), jnp.array([1.0])), (jnp.array([1.0]), jnp.array([1.0])))
    Array(2., dtype=float32)
  """
  (mean, var), (mean_q, var_q) = p, q
  terms = jnp.log(var_q) - jnp.log(var) + (var + jnp.square(mean - mean_q)) / var_q - 1
  return 0.5 * jnp.sum(terms, axis=-1)


def gaussian_hydra(student_MxBx2D: jax.Array, teacher_MxBx2D: jax.Array) -> jax.Array:
  """KL of Gaussian member m to Gaussian head m, `[M, B]`: `hydra` in regression.

  Args:
    student_MxBx2D: Outputs of the heads, see `gaussian`.
    teacher_MxBx2D: Outputs of the members.

  Raises:
    AssertionError: The shapes differ.
  """
  chex.assert_equal_shape([student_MxBx2D, teacher_MxBx2D])
  return gaussian_kl(gaussian(teacher_MxBx2D), gaussian(student_MxBx2D))


def gaussian_distillation(student_HxBx2D: jax.Array, teacher_MxBx2D: jax.Array) -> jax.Array:
  """KL of the moment-matched mixture of the members to head h, `[H, B]`: `distillation` in regression.

  Its gradient is that of KL(mixture ‖ head), because a Gaussian head sees only the first two moments of the mixture.

  Args:
    student_HxBx2D: Outputs of the heads, see `gaussian`.
    teacher_MxBx2D: Outputs of the members.

  Raises:
    AssertionError: B or D differ.
  """
  chex.assert_equal_shape_suffix([student_HxBx2D, teacher_MxBx2D], 2)
  mean, var = moment_match(*gaussian(teacher_MxBx2D))
  return gaussian_kl((mean[None], var[None]), gaussian(student_HxBx2D))
