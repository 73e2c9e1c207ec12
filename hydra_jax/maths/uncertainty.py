"""Total, aleatoric and epistemic uncertainty of a set of members or heads.

Total uncertainty is how uncertain the next label is. It is the sum of two parts. Aleatoric uncertainty is the noise of
the data, on which all members agree. Epistemic uncertainty is the disagreement of the members. Tables and figures call
them total, data and model uncertainty.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.maths.losses import log_mean_exp, relative_entropy

# What tables and figures call each uncertainty, by its name in scores and result rows.
WORDS = {'uncertainty_total': 'total', 'uncertainty_aleatoric': 'data', 'uncertainty_epistemic': 'model'}
# Those by which inputs are rejected, or taken for out-of-domain.
RANKINGS = ('uncertainty_total', 'uncertainty_epistemic')


class Uncertainty(NamedTuple):
  """Three numbers for each example: nats in classification, `[B]`, and variance of each target, `[B, D]`.

  Epistemic is a part of the total, but where a method has a score instead, such as −log of a density, see `has_size`.
  """

  total: jax.Array
  aleatoric: jax.Array
  epistemic: jax.Array

  def named(self) -> dict[str, jax.Array]:
    """By their names in scores, the keys of `WORDS`."""
    return dict(zip(WORDS, self, strict=True))


# The name in scores that says, where it is there, that the model uncertainty is no part of the total.
ORDERS_ONLY = 'orders_only'


def has_size(scores: Mapping[str, Any]) -> bool:
  """Whether the model uncertainty in scores is a part of the total, so that its size says something.

  Where it is not, such as −log of a density, it is a number that orders inputs and can be negative: its mean, and its
  ratio to that of an ensemble, mean nothing.

  Example:
    >>> has_size({'uncertainty_epistemic': np.array([0.2])})
    True
  """
  return ORDERS_ONLY not in scores


def entropy(log_p: jax.Array) -> jax.Array:
  """Entropy in nats along the last axis, of log-probabilities; 0 log 0 = 0.

  Example:
    >>> entropy(jnp.log(jnp.array([0.5, 0.5, 0.0])))  # log 2
    Array(0.693..., dtype=float32)
  """
  p = jnp.exp(log_p)
  return -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=-1)


def classification(log_p_MxBxC: jax.Array) -> Uncertainty:
  """Entropy of the mean, mean of the entropies, and the mutual information, which is their difference.

  The mutual information is computed as the mean KL of the members to their mean (Depeweg et al. 2018). So it is exactly
  0 for one member and for identical members, where a difference would leave rounding errors.

  Args:
    log_p_MxBxC: Log-probabilities of each member.

  Returns:
    Nats, `[B]` each.

  Example:
    >>> log_p = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]], [[0.1, 0.9], [0.5, 0.5]]]))  # two members, two inputs
    >>> found = classification(log_p)
    >>> found.aleatoric, found.epistemic
    (Array([0.325..., 0.693...], dtype=float32), Array([0.368..., 0.  ...], dtype=float32))
  """
  log_mean = log_mean_exp(log_p_MxBxC)
  epistemic = jnp.maximum(jnp.mean(relative_entropy(log_p_MxBxC, log_mean[None]), axis=0), 0)
  aleatoric = jnp.mean(entropy(log_p_MxBxC), axis=0)
  return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


# Smaller shares of the total uncertainty are rounding errors where the model uncertainty is a difference.
ROUNDING = 2.0**-20


def member_by_member(logits_MxBxC: jax.Array) -> tuple[jax.Array, Uncertainty]:
  """Mean probabilities, and `classification` of their logarithms, from logits, in less than half the time on CPU.

  Members come one after the other, so that what is computed of each stays in the cache, with one exponential for each
  logit. The model uncertainty is a difference here, of two numbers that are exact to their last digits. Differences
  below a millionth are rounding errors, and are 0, as for one member and for identical members.

  Args:
    logits_MxBxC: Logits of each member.

  Returns:
    Means `[B, C]`, and nats `[B]`.

  Example:
    >>> mean, found = member_by_member(jnp.log(jnp.array([[[0.9, 0.1]], [[0.1, 0.9]]])))  # two members, one input
    >>> np.round(np.float64(mean[0]), 6), found.aleatoric, found.epistemic
    (array([0.5, 0.5]), Array([0.325...], dtype=float32), Array([0.368...], dtype=float32))
  """
  logits_MxCxB = jnp.swapaxes(logits_MxBxC, 1, 2)  # examples last: sums over classes are sums of vectors then
  members, classes, batch = logits_MxCxB.shape

  def add(means, member):
    (mean, aleatoric), (share, logits_CxB) = means, member
    low = logits_CxB - jnp.max(logits_CxB, axis=0, keepdims=True)
    weights, is_top = jnp.exp(low), low == 0
    others = jnp.sum(jnp.where(is_top, 0, weights), axis=0) + (jnp.sum(is_top, axis=0, dtype=jnp.float32) - 1)
    entropy_B = jnp.log1p(others) - jnp.sum(weights * low, axis=0) / (1 + others)
    # Means of equal numbers stay what they are.
    mean = mean + share * (weights / (1 + others)[None] - mean)
    return (mean, aleatoric + share * (entropy_B - aleatoric)), None

  shares = jnp.asarray(1 / np.arange(1, members + 1), jnp.float32)
  (mean_CxB, aleatoric), _ = jax.lax.scan(add, (jnp.zeros((classes, batch)), jnp.zeros(batch)), (shares, logits_MxCxB))
  mean = jnp.transpose(mean_CxB)
  total = entropy(_log_near_one(mean))
  epistemic = jnp.where(total - aleatoric > ROUNDING * total, total - aleatoric, 0)
  return mean, Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def _log_near_one(p_BxC: jax.Array) -> jax.Array:
  """Logarithms of probabilities. That of one close to 1 is taken from the others, which have more digits."""
  is_top = p_BxC > 0.5
  others = jnp.sum(jnp.where(is_top, 0, p_BxC), axis=-1, keepdims=True)
  return jnp.where(is_top, jnp.log1p(-others), jnp.log(p_BxC))


def disagreement(log_p_MxBxC: jax.Array) -> jax.Array:
  """Share of the pairs of members that find different classes likeliest, `[B]` float32; 0 for one member.

  Example:
    >>> log_p = jnp.log(jnp.array([[[0.9, 0.1], [0.6, 0.4]], [[0.2, 0.8], [0.7, 0.3]]]))  # two members, two inputs
    >>> disagreement(log_p)
    Array([1., 0.], dtype=float32)
  """
  members, _, classes = log_p_MxBxC.shape
  votes_BxC = jnp.sum(jax.nn.one_hot(jnp.argmax(log_p_MxBxC, axis=-1), classes), axis=0)
  same = jnp.sum(votes_BxC * (votes_BxC - 1), axis=-1)
  return 1 - same / (members * (members - 1)) if members > 1 else jnp.zeros_like(same)


def regression(mean_MxBxD: jax.Array, var_MxBxD: jax.Array) -> Uncertainty:
  """Variance of the mixture, mean of the variances, and variance of the means, of each target.

  Args:
    mean_MxBxD: Means of each member.
    var_MxBxD: Variances of each member.

  Returns:
    Squared units of the targets, `[B, D]` each.

  Example:
    >>> found = regression(jnp.array([[[-1.0]], [[1.0]]]), jnp.full((2, 1, 1), 0.5))
    >>> found.total.item(), found.aleatoric.item(), found.epistemic.item()
    (1.5, 0.5, 1.0)
  """
  aleatoric, epistemic = jnp.mean(var_MxBxD, axis=0), jnp.var(mean_MxBxD, axis=0)
  return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)
