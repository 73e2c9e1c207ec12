"""Teachers without predictions for some examples: losses and the spread of heads by the members that have one.

A tree of a random forest has nothing to teach about rows that it was fitted on. There its prediction is absent, which
is NaN in the array of the teacher.

Shapes: M members, B or N examples, C classes, D targets.
"""

from collections.abc import Callable
from dataclasses import replace
import functools
from typing import Any

import jax
import jax.numpy as jnp

from hydra_jax.maths import calibration, losses
from hydra_jax.maths.tasks import TASKS, Task


def is_present(outputs_MxBxC: jax.Array) -> jax.Array:
  """Which members have a prediction for which example, `[M, B]` bool.

  Example:
    >>> is_present(jnp.array([[[1.0, 2.0], [jnp.nan, jnp.nan]]]))
    Array([[ True, False]], dtype=bool)
  """
  return ~jnp.isnan(outputs_MxBxC).any(axis=-1)


def mean_logits(logits_MxBxC: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Logits of one member whose probabilities are the mean of those that are present, `[1, B, C]`.

  Example:
    >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]], [[jnp.nan, jnp.nan]]]))
    >>> jax.nn.softmax(mean_logits(logits))  # of two members
    Array([[[0.7, 0.3]]], dtype=float32)
  """
  log_p = jax.nn.log_softmax(logits_MxBxC / temperature)
  present = is_present(logits_MxBxC)[..., None]
  return temperature * jax.nn.log_softmax(losses.log_mean_exp(jnp.where(present, log_p, -jnp.inf)))[None]


def mean_gaussian(outputs_MxBxK: jax.Array) -> jax.Array:
  """Outputs of one Gaussian with the mean and the variance of the mixture of those that are present, `[1, B, 2 D]`."""
  present = is_present(outputs_MxBxK)
  weights = _weights(present)
  mean, var = losses.gaussian(_filled(outputs_MxBxK, present))
  middle = jnp.sum(weights * mean, axis=0, keepdims=True)
  whole = jnp.sum(weights * (var + jnp.square(mean - middle)), axis=0, keepdims=True)
  above = jnp.maximum(whole - losses.MIN_VARIANCE, losses.MIN_VARIANCE)
  return jnp.concatenate([middle, above + jnp.log(-jnp.expm1(-above))], axis=-1)


def _weights(present_MxB: jax.Array) -> jax.Array:
  """Weights of the members of a mean over those that are present, `[M, B, 1]` float32."""
  present = present_MxB.astype(jnp.float32)
  return (present / jnp.sum(present, axis=0, keepdims=True))[..., None]


def _filled(outputs_MxBxC: jax.Array, present_MxB: jax.Array) -> jax.Array:
  return jnp.where(present_MxB[..., None], outputs_MxBxC, 0)


def with_absent(task: Task, share: float) -> Task:
  """The task with losses that read the predictions that are present.

  Args:
    task: A row of `TASKS`.
    share: Of the predictions `[M, N]` that are present. The loss of a member is divided by it, and is 0 where the
      member is absent. So the mean over members and examples is that over the predictions that are present.

  Returns:
    The task. Losses against the mean prediction take the mean of the members that are present.
  """
  one = mean_gaussian if task is TASKS['regression'] else mean_logits
  at = (lambda temperature: {}) if task is TASKS['regression'] else (lambda temperature: {'temperature': temperature})

  def member(outputs, teacher, temperature):
    present = is_present(teacher)
    return jnp.where(present, task.member(outputs, _filled(teacher, present), temperature) / share, 0)

  def mean(outputs, teacher, temperature):
    return task.mean(outputs, one(teacher, **at(temperature)), temperature)

  def mean_term(outputs, teacher, common):
    assert task.mean_term is not None
    return task.mean_term(outputs, one(teacher), common)

  return replace(task, member=member, mean=mean, mean_term=None if task.mean_term is None else mean_term)


def mutual_information(logits_MxNxC: jax.Array, present_MxN: jax.Array) -> jax.Array:
  """Model uncertainty in nats of the members that are present, the mean over examples, `[]`."""
  log_p = jax.nn.log_softmax(logits_MxNxC)
  log_mean = jax.nn.log_softmax(losses.log_mean_exp(jnp.where(present_MxN[..., None], log_p, -jnp.inf)))
  return _mean_of_present(losses.relative_entropy(log_p, log_mean[None]), present_MxN)


def variance_of_means(outputs_MxNxK: jax.Array, present_MxN: jax.Array) -> jax.Array:
  """Model uncertainty in squared units of the network of the members that are present, the mean over examples, `[]`."""
  mean, _ = losses.gaussian(outputs_MxNxK)
  weights = _weights(present_MxN)
  middle = jnp.sum(weights * mean, axis=0, keepdims=True)
  return _mean_of_present(jnp.mean(jnp.square(mean - middle), axis=-1), present_MxN)


def _mean_of_present(values_MxN: jax.Array, present_MxN: jax.Array) -> jax.Array:
  """The mean over the members that are present, then over examples."""
  return jnp.mean(jnp.sum(_weights(present_MxN)[..., 0] * jnp.where(present_MxN, values_MxN, 0), axis=0))


SIZES: dict[str, Callable[..., jax.Array]] = {
  'classification': mutual_information,
  'regression': variance_of_means,
}


def matched_spread(task: str, heads_MxNxC: Any, members_MxNxC: Any) -> float:
  """The spread with which heads disagree as much as members, where each example has predictions of some members.

  On an example with k of M members, these are compared with the k heads that learn from them: k members disagree less
  than M by the same share as k heads do, so that the result is not biased.

  Args:
    task: Key of `TASKS`.
    heads_MxNxC: Outputs of the heads, head m for member m.
    members_MxNxC: Outputs of the members. At least one is present for each example.

  Returns:
    The spread, see `calibration.matched_spread`.
  """
  return float(_matched(task)(jnp.asarray(heads_MxNxC), jnp.asarray(members_MxNxC, jnp.float32)))


@functools.cache
def _matched(task: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
  def matched(heads, members):
    present = is_present(members)
    size = lambda outputs: SIZES[task](outputs, present)
    return calibration.matched_spread(heads, _filled(members, present), TASKS[task].rescale, size)

  return jax.jit(matched)
