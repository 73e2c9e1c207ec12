"""Total, data and model uncertainty of a set of members or heads.

total = data + model: what is uncertain about the next label, what of it every member agrees on
(noise in the data, aleatoric), and what comes from their disagreement (epistemic).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hydra_jax.maths.losses import log_mean_exp, relative_entropy


class Uncertainty(NamedTuple):
  """Three numbers for each example: nats in classification, `[B]`, and variance of each target, `[B, D]`."""

  total: jax.Array
  data: jax.Array
  model: jax.Array


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
  model = jnp.maximum(jnp.mean(relative_entropy(log_p_MxBxC, log_mean[None]), axis=0), 0)
  data = jnp.mean(entropy(log_p_MxBxC), axis=0)
  return Uncertainty(data + model, data, model)


def disagreement(log_p_MxBxC: jax.Array) -> jax.Array:
  """Share of the pairs of members that find different classes likeliest, `[B]`; 0 for one member."""
  members, _, classes = log_p_MxBxC.shape
  votes_BxC = jnp.sum(jax.nn.one_hot(jnp.argmax(log_p_MxBxC, axis=-1), classes), axis=0)
  same = jnp.sum(votes_BxC * (votes_BxC - 1), axis=-1)
  return 1 - same / (members * (members - 1)) if members > 1 else jnp.zeros_like(same)


def regression(mean_MxBxD: jax.Array, var_MxBxD: jax.Array) -> Uncertainty:
  """Variance of the mixture, mean of the variances, variance of the means, of each target, `[B, D]`."""
  data, model = jnp.mean(var_MxBxD, axis=0), jnp.var(mean_MxBxD, axis=0)
  return Uncertainty(data + model, data, model)
