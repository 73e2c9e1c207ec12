"""Total, aleatoric and epistemic uncertainty of a set of members or heads.

Total uncertainty is how uncertain the next label is. It is the sum of two parts. Aleatoric uncertainty is the noise of
the data, on which all members agree. Epistemic uncertainty is the disagreement of the members. Tables and figures call
them total, data and model uncertainty.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydra_jax.maths.losses import log_mean_exp, relative_entropy

# What tables and figures call each uncertainty, by its name in scores and result rows.
WORDS = {'uncertainty_total': 'total', 'uncertainty_aleatoric': 'data', 'uncertainty_epistemic': 'model'}
# Those by which inputs are rejected, or taken for out-of-domain.
RANKINGS = ('uncertainty_total', 'uncertainty_epistemic')


class Uncertainty(NamedTuple):
  """Three numbers for each example: nats in classification, `[B]`, and variance of each target, `[B, D]`."""

  total: jax.Array
  aleatoric: jax.Array
  epistemic: jax.Array

  def named(self) -> dict[str, jax.Array]:
    """By their names in scores, the keys of `WORDS`."""
    return dict(zip(WORDS, self, strict=True))


def entropy(log_p: jax.Array) -> jax.Array:
  """Entropy in nats along the last axis; 0 log 0 = 0."""
  p = jnp.exp(log_p)
  return -jnp.sum(p * jnp.where(p > 0, log_p, 0), axis=-1)


def classification(log_p_MxBxC: jax.Array) -> Uncertainty:
  """Entropy of the mean, mean of the entropies, and their difference, the mutual information.

  The difference is computed as the mean KL of the members to their mean (Depeweg et al. 2018), which
  does not cancel where members agree: it is exactly 0 for one member or for identical ones.
  """
  log_mean = log_mean_exp(log_p_MxBxC)
  epistemic = jnp.maximum(jnp.mean(relative_entropy(log_p_MxBxC, log_mean[None]), axis=0), 0)
  aleatoric = jnp.mean(entropy(log_p_MxBxC), axis=0)
  return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def disagreement(log_p_MxBxC: jax.Array) -> jax.Array:
  """Share of the pairs of members that find different classes likeliest, `[B]`; 0 for one member."""
  members, _, classes = log_p_MxBxC.shape
  votes_BxC = jnp.sum(jax.nn.one_hot(jnp.argmax(log_p_MxBxC, axis=-1), classes), axis=0)
  same = jnp.sum(votes_BxC * (votes_BxC - 1), axis=-1)
  return 1 - same / (members * (members - 1)) if members > 1 else jnp.zeros_like(same)


def regression(mean_MxBxD: jax.Array, var_MxBxD: jax.Array) -> Uncertainty:
  """Variance of the mixture, mean of the variances, variance of the means, of each target, `[B, D]`."""
  aleatoric, epistemic = jnp.mean(var_MxBxD, axis=0), jnp.var(mean_MxBxD, axis=0)
  return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)
