"""Optimizers and schedules by name. All act element by element, so that heads do not change one another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hydra_jax.errors import look_up

# An optimizer must not mix parameters, as a global norm does: a member must train as if it were alone.
OPTIMIZERS = {
  'adam': lambda rate, decay: optax.adam(rate),
  'adamw': lambda rate, decay: optax.adamw(rate, weight_decay=decay),
  'sgd': lambda rate, decay: optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(rate, momentum=0.9, nesterov=True)
  ),
}

SCHEDULES = {
  'constant': lambda rate, steps: optax.constant_schedule(rate),
  'cosine': lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
}


def schedule_of(settings, steps: int, steps_per_epoch: float) -> optax.Schedule:
  """The learning rate of one phase, by step. Arguments are those of `build`."""
  warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps - 1)
  rate = look_up(SCHEDULES, settings.schedule, 'schedule')(settings.learning_rate, steps - warmup)
  if not warmup:
    return rate
  rise = optax.linear_schedule(settings.learning_rate / warmup, settings.learning_rate, warmup)
  return optax.join_schedules([rise, rate], [warmup])


def build(settings, steps: int, steps_per_epoch: float, frozen: tuple[str, ...] = ()) -> optax.GradientTransformation:
  """The optimizer of one phase.

  Args:
    settings: With `optimizer`, `learning_rate`, `schedule`, `warmup_epochs` and `weight_decay`.
    steps: Of the whole phase, warm-up included.
    steps_per_epoch: Steps in one pass over the data.
    frozen: Parts of the parameters (`body`) that are not trained.

  Raises:
    UserError: The name of the optimizer or of the schedule is unknown.

  Example:
    >>> from types import SimpleNamespace
    >>> rule = dict(optimizer='sgd', learning_rate=0.1, schedule='cosine', warmup_epochs=5, weight_decay=5e-4)
    >>> optimizer = build(SimpleNamespace(**rule), steps=2000, steps_per_epoch=10)
  """
  rate = schedule_of(settings, steps, steps_per_epoch)
  optimizer = look_up(OPTIMIZERS, settings.optimizer, 'optimizer')(rate, settings.weight_decay)
  if not frozen:
    return optimizer
  labels = {part: 'keep' if part in frozen else 'train' for part in ('body', 'heads')}
  return optax.multi_transform({'train': optimizer, 'keep': optax.set_to_zero()}, labels)


class Averaged(NamedTuple):
  """The state of an optimizer that keeps a running average of the parameters.

  Attributes:
    inner: State of the rule of the update.
    average: Of the parameters.
    steps: Number of steps that were made, int32.
  """

  inner: Any
  average: Any
  steps: jax.Array


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
  """The same updates, with an exponential average of the parameters beside (Polyak and Juditsky 1992).

  The average is better than the last iterate where the learning rate does not fall to 0. So training can stop at any
  time.

  Args:
    optimizer: Rule of the update.
    decay: Weight of the average before. In the first 1 / (1 − decay) steps it is the plain mean of all steps.

  Example:
    >>> optimizer = averaged(optax.sgd(0.1), decay=0.99)
    >>> averaged_params(optimizer.init({'w': jnp.ones(1)}), None)
    {'w': Array([1.], dtype=float32)}
  """

  def init(params):
    return Averaged(optimizer.init(params), jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32))

  def update(grads, state, params):
    updates, inner = optimizer.update(grads, state.inner, params)
    steps = state.steps + 1
    keep = jnp.minimum(decay, 1 - 1 / steps.astype(jnp.float32))
    mix = lambda average, param, change: keep * average + (1 - keep) * (param + change)
    return updates, Averaged(inner, jax.tree.map(mix, state.average, params, updates), steps)

  return optax.GradientTransformation(init, update)


def averaged_params(opt_state: Any, params: Any) -> Any:
  """The running average in the state of an optimizer; the parameters where there is none."""
  return opt_state.average if isinstance(opt_state, Averaged) else params
