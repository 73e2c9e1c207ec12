"""Credal sets of class intervals: all distributions whose probability of each class is in an interval.

An ensemble has the interval from the least to the greatest probability of its members, for each class. Shapes: M
members, B examples, C classes; float32.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.maths.losses import SMALLEST
from hydra_jax.maths.uncertainty import Uncertainty, entropy

# Halvings of [0, 1] in the search for a level: more than float32 has digits.
HALVINGS = 30
# Classes that may be the first two to take the free probability, in the search for the lower entropy.
STARTS = 5


def intervals(log_p_MxBxC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Least and greatest probability of each class over members, `[B, C]` each.

  Example:
    >>> lower, upper = intervals(jnp.log(jnp.array([[[0.9, 0.1]], [[0.6, 0.4]]])))
    >>> np.float64(lower).round(3), np.float64(upper).round(3)
    (array([[0.6, 0.1]]), array([[0.9, 0.4]]))
  """
  return jnp.exp(jnp.min(log_p_MxBxC, axis=0)), jnp.exp(jnp.max(log_p_MxBxC, axis=0))


def intersection(lower: jax.Array, upper: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The distribution that lies at the same share of all intervals, and this share (Cuzzolin 2022).

  p* = lower + β (upper − lower) with β = (1 − Σ lower) / Σ (upper − lower). Where the intervals are points, β is ½.

  Args:
    lower: `[…, C]`.
    upper: `[…, C]`.

  Returns:
    p* `[…, C]` and β `[…, 1]`.

  Example:
    >>> intersection(jnp.array([0.5, 0.25]), jnp.array([0.75, 0.5]))
    (Array([0.625, 0.375], dtype=float32), Array([0.5], dtype=float32))
  """
  length = jnp.sum(upper - lower, axis=-1, keepdims=True)
  free = jnp.clip(1 - jnp.sum(lower, axis=-1, keepdims=True), 0, length)
  share = jnp.where(length > SMALLEST, free / jnp.maximum(length, SMALLEST), 0.5)
  return lower + share * (upper - lower), share


def around(p: jax.Array, lengths: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Intervals of some lengths around a distribution that lies at a share of each; the reverse of `intersection`.

  Example:
    >>> around(jnp.array([0.75, 0.25]), jnp.array([0.5, 0.5]), jnp.array([0.5]))
    (Array([0.5, 0. ], dtype=float32), Array([1. , 0.5], dtype=float32))
  """
  return jnp.maximum(p - share * lengths, 0), jnp.minimum(p + (1 - share) * lengths, 1)


def upper_entropy(lower: jax.Array, upper: jax.Array) -> jax.Array:
  """The greatest entropy of a distribution in the intervals, `[…]` in nats.

  It is that of p_c = clip(level, lower_c, upper_c), with the level at which they sum to 1.

  Args:
    lower: `[…, C]`, with a sum of at most 1.
    upper: `[…, C]`, with a sum of at least 1.

  Example:
    >>> upper_entropy(jnp.array([0.6, 0.1]), jnp.array([0.9, 0.4]))  # of (.6, .4)
    Array(0.673..., dtype=float32)
  """

  def halve(_, bounds):
    low, high = bounds
    level = (low + high) / 2
    is_high = jnp.sum(jnp.clip(level, lower, upper), axis=-1, keepdims=True) > 1
    return jnp.where(is_high, low, level), jnp.where(is_high, level, high)

  start = jnp.zeros((*lower.shape[:-1], 1)), jnp.ones((*lower.shape[:-1], 1))
  low, high = jax.lax.fori_loop(0, HALVINGS, halve, start)
  p = jnp.clip((low + high) / 2, lower, upper)
  return entropy(jnp.log(p / jnp.sum(p, axis=-1, keepdims=True)))


def lower_entropy(lower: jax.Array, upper: jax.Array) -> jax.Array:
  """The least entropy that is found of a distribution in the intervals, `[…]` in nats.

  It is that of a corner of the credal set: one class after the other is filled up to its upper bound, until the sum is
  1. Any two of the five classes with the greatest upper bounds are once the first two. The others follow by how much
  entropy they save for each unit of probability. The best of these corners counts. It is exact for three classes. For
  eight it was up to 15% of the way to the greatest entropy too high, and 1% on average.

  Args:
    lower: `[…, C]`, with a sum of at most 1.
    upper: `[…, C]`, with a sum of at least 1.

  Example:
    >>> lower_entropy(jnp.array([0.6, 0.1]), jnp.array([0.9, 0.4]))  # of (.9, .1)
    Array(0.325..., dtype=float32)
  """
  length = upper - lower
  of_class = lambda p: -p * jnp.log(jnp.maximum(p, SMALLEST))
  saved = (of_class(lower) - of_class(upper)) / jnp.maximum(length, SMALLEST)
  _, top = jax.lax.top_k(upper, min(STARTS, upper.shape[-1]))
  pairs = np.asarray(list(itertools.permutations(range(top.shape[-1]), 2)))
  free = 1 - jnp.sum(lower, axis=-1, keepdims=True)

  def corner(first, second):
    first, second = (jax.nn.one_hot(each, upper.shape[-1], dtype=bool) for each in (first, second))
    order = jnp.argsort(-jnp.where(first, jnp.inf, jnp.where(second, jnp.finfo(saved.dtype).max, saved)), axis=-1)
    room = jnp.take_along_axis(length, order, axis=-1)
    before = jnp.cumsum(room, axis=-1) - room
    p = jnp.take_along_axis(lower, order, axis=-1) + jnp.clip(free - before, 0, room)
    return entropy(jnp.log(p / jnp.sum(p, axis=-1, keepdims=True)))

  corners = jax.vmap(corner, in_axes=-1)(top[..., pairs[:, 0]], top[..., pairs[:, 1]])
  return jnp.min(corners, axis=0)


def uncertainty(lower: jax.Array, upper: jax.Array) -> Uncertainty:
  """Upper entropy as total, lower entropy as data, and their difference as model uncertainty, `[…]` each, in nats.

  Example:
    >>> found = uncertainty(jnp.array([0.6, 0.1]), jnp.array([0.9, 0.4]))
    >>> found.epistemic
    Array(0.347..., dtype=float32)
  """
  low, high = lower_entropy(lower, upper), upper_entropy(lower, upper)
  epistemic = jnp.maximum(high - low, 0)
  return Uncertainty(low + epistemic, low, epistemic)


def read(outputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Reads outputs `[…, 2C + 1]`: logits of p*, lengths sigmoid(·) `[…, C]`, and the share sigmoid(·) `[…, 1]`."""
  classes = outputs.shape[-1] // 2
  raw = jax.nn.sigmoid(outputs[..., classes:])
  return outputs[..., :classes], raw[..., :-1], raw[..., -1:]


def distillation(outputs_HxBxK: jax.Array, teacher_MxBxC: jax.Array) -> jax.Array:
  """The loss of credal ensemble distillation, `[H, B]` (Wang et al. 2026, arXiv 2511.13766, section 3.3).

  KL of the intersection probability of the members to that of the student, and the same for the lengths of the
  intervals and the share, each as a probability by itself, summed over classes. That lengths and share are compared by
  KL, and the weights of the three parts, 1 each, are ours: by squared errors, short intervals had next to no gradient.

  Args:
    outputs_HxBxK: Outputs of the student, see `read`.
    teacher_MxBxC: Logits of the members.
  """
  lower, upper = intervals(jax.nn.log_softmax(teacher_MxBxC))
  p, share = intersection(lower, upper)
  classes = p.shape[-1]
  terms = p[None] * (jnp.log(jnp.maximum(p, SMALLEST))[None] - jax.nn.log_softmax(outputs_HxBxK[..., :classes]))
  wanted = jnp.concatenate([upper - lower, share], axis=-1)
  return jnp.sum(terms, axis=-1) + jnp.sum(_bernoulli_kl(wanted[None], outputs_HxBxK[..., classes:]), axis=-1)


def _bernoulli_kl(p: jax.Array, logits: jax.Array) -> jax.Array:
  """KL of a coin with probability p to one with probability sigmoid(logits)."""
  of_log = lambda q: q * jnp.log(jnp.maximum(q, SMALLEST))
  return of_log(p) + of_log(1 - p) - p * jax.nn.log_sigmoid(logits) - (1 - p) * jax.nn.log_sigmoid(-logits)
