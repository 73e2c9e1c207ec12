"""Calibration of trained heads on inputs that they have not learnt from: the size of their disagreement.

Heads that learn from members shrink towards their mean, as any regression does. They rank inputs by their disagreement
as the members do, and disagree less. One number s for a student mends the size: outputs a_m become ā + s (a_m − ā).

Shapes: H heads or M members, B examples, C outputs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hydra_jax.maths import losses, uncertainty

# The range in which s is looked for, and the smallest disagreement, in nats, that there is something to match in.
LEAST_SPREAD, MOST_SPREAD, LEAST_DISAGREEMENT = 1 / 16, 64.0, 1e-9
STEPS = 40  # of the bisection of log s: to 1e-11


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
