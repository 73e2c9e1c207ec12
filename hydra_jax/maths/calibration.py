"""Calibration on inputs that were not learnt from: the size of the heads' disagreement, and how certain the mean is.

Heads that learn from members shrink towards their mean, as any regression does. They rank inputs by their disagreement
as the members do, and disagree less. One number s for a student mends the size: outputs a_m become ā + s (a_m − ā).

Label calibration is another number for each method: a temperature of the mean prediction, or a scale of all variances.
With it, NLLs of methods can be compared that are over- or underconfident, each by its own amount (Ashukha et al. 2020).

Heads are spread first, and labels are calibrated after that. This order is sound: the spread needs no labels and leaves
the mean logits as they are, so that it is the same whatever is done to the mean prediction. It does change the mean of
the probabilities, and the temperature is fitted to just that prediction. A temperature first would be one of other
predictions than those that are made. In regression likewise: the spread leaves the mean and the variances of the heads,
and widens the mixture whose variances are then scaled.

Conformal scores come last (`maths.conformal`). They are those of calibrated predictions, as these are what sets and
intervals are made of. Their promise holds for any prediction that was fixed before their examples were seen. So the
temperature is fitted to other held-out examples than the scores: `evaluation.calibrated` divides them.

Shapes: H heads or M members, B or N examples, C outputs or classes, D targets.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from hydra_jax.maths import losses, uncertainty

# The range in which s is looked for, and the smallest disagreement, in nats, that there is something to match in.
LEAST_SPREAD, MOST_SPREAD, LEAST_DISAGREEMENT = 1 / 16, 64.0, 1e-9
STEPS = 40  # of a bisection, of log s or of the logarithm of a temperature: to 1e-11
# Ranges of label calibration, and the standard deviation that log t has before labels are seen.
TEMPERATURES, PRIOR_OF_TEMPERATURE = (1 / 16, 16.0), 0.5
VARIANCE_SCALES, PRIOR_WIDTH = (1 / 64, 64.0), 0.2


def spread_logits(logits_HxBxC: jax.Array, spread: jax.Array | float) -> jax.Array:
  """ā + s (a_m − ā) for centred logits a_m, whose mean over classes is 0. The mean of the heads stays.

  Args:
    logits_HxBxC: Of each head.
    spread: s.

  Returns:
    Logits `[H, B, C]`; the same probabilities as before where s = 1.

  Example:
    >>> spread_logits(jnp.array([[[1.0, -1.0]], [[3.0, -3.0]]]), 2.0)[:, 0, 0]
    Array([0., 4.], dtype=float32)
  """
  centred = logits_HxBxC - jnp.mean(logits_HxBxC, axis=-1, keepdims=True)
  mean = jnp.mean(centred, axis=0, keepdims=True)
  return mean + spread * (centred - mean)


def spread_means(outputs_HxBxK: jax.Array, spread: jax.Array | float) -> jax.Array:
  """The same for the means of Gaussians; their variances stay.

  Args:
    outputs_HxBxK: Of each head, as `losses.gaussian` reads them: means `[..., :D]`, then what gives the variances.
    spread: s.

  Returns:
    Outputs `[H, B, 2 D]`.
  """
  means, rest = jnp.split(outputs_HxBxK, 2, axis=-1)
  mean = jnp.mean(means, axis=0, keepdims=True)
  return jnp.concatenate([mean + spread * (means - mean), rest], axis=-1)


def mutual_information(logits_HxBxC: jax.Array) -> jax.Array:
  """Model uncertainty in nats, the mean over examples, `[]`."""
  return jnp.mean(uncertainty.classification(jax.nn.log_softmax(logits_HxBxC)).epistemic)


def variance_of_means(outputs_HxBxK: jax.Array) -> jax.Array:
  """Model uncertainty in squared units of the network, the mean over examples and targets, `[]`."""
  mean, var = losses.gaussian(outputs_HxBxK)
  return jnp.mean(uncertainty.regression(mean, var).epistemic)


def matched_spread(
  heads_HxBxC: jax.Array,
  members_MxBxC: jax.Array,
  rescale: Callable[[jax.Array, jax.Array], jax.Array],
  size: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The s for which the mean model uncertainty of the heads is that of the members. It needs no labels.

  The mean of either measure of size rises with s, so that bisection finds it.

  Args:
    heads_HxBxC: Outputs of the heads for inputs that neither heads nor members have learnt from.
    members_MxBxC: Outputs of the members for the same inputs.
    rescale: `spread_logits` or `spread_means`.
    size: `mutual_information` or `variance_of_means`.

  Returns:
    s, `[]`, from 1/16 to 64. It is 1 where either side does not disagree at all, as for one head.

  Example:
    >>> members = jax.random.normal(jax.random.key(0), (5, 100, 3))
    >>> heads = spread_logits(members, 0.5)
    >>> matched_spread(heads, members, spread_logits, mutual_information)
    Array(2., dtype=float32)
  """
  wanted = size(members_MxBxC)
  disagree = (wanted > LEAST_DISAGREEMENT) & (size(heads_HxBxC) > LEAST_DISAGREEMENT)

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    too_small = size(rescale(heads_HxBxC, jnp.exp(middle))) < wanted
    return jnp.where(too_small, middle, low), jnp.where(too_small, high, middle)

  bounds = jnp.log(jnp.float32(LEAST_SPREAD)), jnp.log(jnp.float32(MOST_SPREAD))
  low, high = jax.lax.fori_loop(0, STEPS, halve, bounds)
  return jnp.where(disagree, jnp.exp((low + high) / 2), 1.0)


def tempered(log_mean_BxC: jax.Array, temperature: jax.Array | float) -> jax.Array:
  """Log-probabilities at a temperature: `log_softmax(log_mean / τ)`.

  Args:
    log_mean_BxC: Log of the mean probabilities of the members.
    temperature: τ; above 1 the prediction becomes less certain.

  Returns:
    `[B, C]`.

  Example:
    >>> jnp.exp(tempered(jnp.log(jnp.array([[0.8, 0.2]])), 0.5))  # 16 to 1
    Array([[0.941..., 0.058...]], dtype=float32)
  """
  return jax.nn.log_softmax(log_mean_BxC / temperature)


def temperature(log_mean_NxC: np.ndarray, labels_N: np.ndarray) -> float:
  """The temperature of the mean prediction that is likeliest by labels, a posteriori (Guo et al. 2017, section 4.2).

  It minimises the summed NLL plus (log τ)² / (2 · 0.5²): log τ is normal about 0 before labels are seen, so that few of
  them move τ little. The NLL is convex in β = 1/τ, so that the sign of the derivative by log β, which has
  E_β[log p] − log p(label) in it, can be bisected. All is float64. For ensembles see Ashukha et al. 2020, section 3:
  members are averaged first.

  Args:
    log_mean_NxC: Log of the mean probabilities of the members, see `losses.log_mean_exp`.
    labels_N: Indices of the classes, of examples that nothing was trained on.

  Returns:
    τ from 1/16 to 16. The NLL is never higher than at τ = 1.

  Example:
    >>> log_mean = np.log(np.array([[0.9, 0.1]] * 4000))
    >>> round(temperature(log_mean, np.array([0, 0, 0, 1] * 1000)), 1)  # 0.75 is right: log 9 / log 3
    2.0
  """
  # A probability of 0 stays one at every temperature; products with −inf would not be numbers.
  log_p = np.nan_to_num(np.asarray(log_mean_NxC, np.float64), nan=np.nan, neginf=-1e30)
  of_label = np.take_along_axis(log_p, np.asarray(labels_N)[:, None], axis=1)[:, 0]

  def slope(log_beta):
    beta = np.exp(log_beta)
    of_nll = np.sum(np.sum(scipy.special.softmax(beta * log_p, axis=1) * log_p, axis=1) - of_label)
    return beta * of_nll + log_beta / PRIOR_OF_TEMPERATURE**2

  def nll(beta):
    return np.mean(scipy.special.logsumexp(beta * log_p, axis=1) - beta * of_label)

  low, high = -np.log(TEMPERATURES[1]), -np.log(TEMPERATURES[0])
  for _ in range(STEPS):
    middle = (low + high) / 2
    low, high = (middle, high) if slope(middle) < 0 else (low, middle)
  beta = np.exp((low + high) / 2)
  return float(1 / beta) if nll(beta) < nll(1.0) else 1.0


def variance_scale(mean_MxNxD: np.ndarray, var_MxNxD: np.ndarray, y_NxD: np.ndarray) -> float:
  """The factor t of the variances of all members that is likeliest by targets, a posteriori.

  It minimises the summed NLL of the mixture with variances t σ², plus (log t)² / (2 · 0.2²): log t is normal about 0
  before targets are seen, so that few of them move t little. It is the scaling of variances of Laves et al. 2020, for
  mixtures. Of a mixture the NLL is not convex in log t, so that it is searched on a grid first. All is float64.

  Args:
    mean_MxNxD: Means of the members.
    var_MxNxD: Variances of the members.
    y_NxD: Targets of examples that nothing was trained on, in the same units.

  Returns:
    t from 1/64 to 64. It is 1 where the NLL is not finite.

  Example:
    >>> y = np.random.default_rng(0).normal(size=(10000, 1))
    >>> round(variance_scale(np.zeros((1, 10000, 1)), np.full((1, 10000, 1), 0.25), y), 1)
    4.0
  """
  mean, var, y = (np.asarray(each, np.float64) for each in (mean_MxNxD, var_MxNxD, y_NxD))
  distance_MxN = np.sum(np.square(y - mean) / var, axis=-1)
  log_var_MxN = np.sum(np.log(var), axis=-1)

  def objective(log_t):
    log_density = -(distance_MxN / np.exp(log_t) + log_var_MxN + y.shape[-1] * log_t) / 2
    return -np.sum(scipy.special.logsumexp(log_density, axis=0)) + log_t**2 / (2 * PRIOR_WIDTH**2)

  low, high = np.log(VARIANCE_SCALES)
  grid = np.linspace(low, high, 65)  # has 0
  for _ in range(6):
    values = np.array([objective(log_t) for log_t in grid])
    if not np.isfinite(values).any():
      return 1.0
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    found = grid[best]
    grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 17)
  return float(np.exp(found))


# Temperatures at which held-out rows are scored while networks are trained, one in the middle being 1.
TRIED_TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 9))


def tempered_nlls(logits_HxBxC: jax.Array, labels_B: jax.Array) -> jax.Array:
  """NLL of each head at each of `TRIED_TEMPERATURES`, `[H, B, 9]`. See `least_tempered_nll`.

  Example:
    >>> tempered_nlls(jnp.zeros((2, 3, 4)), jnp.zeros(3, jnp.int32)).shape
    (2, 3, 9)
  """
  nlls = [losses.cross_entropy(logits_HxBxC / np.float32(each), labels_B) for each in TRIED_TEMPERATURES]
  return jnp.stack(nlls, axis=-1)


def least_tempered_nll(means: np.ndarray) -> np.ndarray:
  """NLL at the best temperature of each head, of the means over rows of `tempered_nlls`.

  Networks become overconfident before they become inaccurate (Guo et al. 2017, section 3). Where a temperature is
  fitted afterwards anyway, it is the NLL after this fit that tells when training should stop.

  Example:
    >>> least_tempered_nll(np.array([[3.0, 1.0, 2.0]]))
    array([1.])
  """
  return means.min(axis=-1)


def gaussian_statistics(outputs_HxBx2D: jax.Array, y_BxD: jax.Array) -> jax.Array:
  """Squared error in units of the variance, and the logarithm of the variance, means over targets, `[H, B, 2]`.

  Example:
    >>> outputs = jnp.asarray(losses.gaussian_outputs(np.zeros((1, 1, 1)), np.full((1, 1, 1), 4.0)), jnp.float32)
    >>> gaussian_statistics(outputs, jnp.array([[6.0]]))
    Array([[[9.      , 1.386...]]], dtype=float32)
  """
  mean, var = losses.gaussian(outputs_HxBx2D)
  of_targets = jnp.square(y_BxD[None] - mean) / var, jnp.log(var)
  return jnp.stack([jnp.mean(each, axis=-1) for each in of_targets], axis=-1)


def least_scaled_nll(means: np.ndarray) -> np.ndarray:
  """NLL for each target with the variances of each head times the best factor, of means of `gaussian_statistics`.

  The factor t that minimises ½ [log(2π t v) + e² / (t v)] on average is the mean of e² / v (Laves et al. 2020). A
  network that is trained by likelihood explains its training rows with too small variances long before its mean is as
  good as it gets. Where a factor is fitted afterwards anyway, it is the NLL after this fit that tells when training
  should stop.

  Example:
    >>> least_scaled_nll(np.array([[1.0, 0.0]]))  # of a standard Gaussian: ½ log 2πe
    array([1.418...])
  """
  return (np.log(2 * np.pi * means[..., 0]) + means[..., 1] + 1) / 2
