"""Optimizers and schedules by name. All act element by element, so that heads do not change one another."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hydra_jax.errors import look_up
from hydra_jax.nets.cut import belongs_to_heads
from hydra_jax.nets.stages import Tree

# Weight of the running average of gradients before, in all rules.
MOMENTUM = 0.9

# An optimizer must not mix parameters, as a global norm does: a member must train as if it were alone.
OPTIMIZERS = {
  'adam': lambda rate, decay: optax.adam(rate, b1=MOMENTUM),
  'adamw': lambda rate, decay: optax.adamw(rate, b1=MOMENTUM, weight_decay=decay),
  'sgd': lambda rate, decay: optax.chain(
    optax.add_decayed_weights(decay), optax.sgd(rate, momentum=MOMENTUM, nesterov=True)
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


class SquaredNorms(NamedTuple):
  """Squared norms of a gradient, over the parameters of a part.

  Attributes:
    body: Of the body, `[]` float32.
    heads: Of each head, `[H]` float32.
  """

  body: jax.Array
  heads: jax.Array


def mean_gradient(opt_state: Any, steps: jax.Array, heads: int) -> SquaredNorms:
  """Squared norms of the mean gradient over about the last ten steps.

  The optimizers keep a running average of gradients, with weight 0.9 on the average before. To read it costs nothing in
  a step. It is divided by `1 − 0.9^steps`, as Adam does (Kingma and Ba 2015, section 3), since it starts at 0. Of SGD,
  gradients include the term of the weight decay. Parts that are frozen count as 0.

  Args:
    opt_state: Of an optimizer of `build`, or one that is wrapped by `averaged`.
    steps: Number of steps that were made, int32.
    heads: Number of heads H of the state.

  Example:
    >>> from types import SimpleNamespace
    >>> rule = dict(optimizer='sgd', learning_rate=0.1, schedule='constant', warmup_epochs=0, weight_decay=0.0)
    >>> optimizer = build(SimpleNamespace(**rule), steps=10, steps_per_epoch=10)
    >>> params = {'body': jnp.ones(2), 'heads': jnp.ones((3, 4))}
    >>> _, state = optimizer.update(params, optimizer.init(params), params)
    >>> [jnp.round(part, 3).tolist() for part in mean_gradient(state, 1, heads=3)]
    [2.0, [4.0, 4.0, 4.0]]
  """
  body, of_heads = jnp.zeros(()), jnp.zeros(heads)
  for path, leaf in jax.tree_util.tree_leaves_with_path(_running_sums(opt_state)):
    if belongs_to_heads(path):
      of_heads += jnp.sum(jnp.square(leaf).reshape(heads, -1), axis=1)
    else:
      body += jnp.sum(jnp.square(leaf))
  scale = (1 - MOMENTUM) ** 2 / jnp.square(1 - MOMENTUM ** jnp.asarray(steps, jnp.float32))
  return SquaredNorms(scale * body, scale * of_heads)


def _running_sums(opt_state: Any) -> list[Tree]:
  """Sums `Σ 0.9^(t − s) g_s` of gradients, of each rule in the state of an optimizer."""
  kept = (optax.ScaleByAdamState, optax.TraceState)
  rules = [rule for rule in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, kept)) if isinstance(rule, kept)]
  of_adam = lambda rule: jax.tree.map(lambda mean: mean / (1 - MOMENTUM), rule.mu)
  return [rule.trace if isinstance(rule, optax.TraceState) else of_adam(rule) for rule in rules]
