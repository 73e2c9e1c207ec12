"""Optimizers and schedules by name. All act element by element, so that heads do not change one another."""

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
  warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps - 1)
  rate = look_up(SCHEDULES, settings.schedule, 'schedule')(settings.learning_rate, steps - warmup)
  if warmup:
    rise = optax.linear_schedule(settings.learning_rate / warmup, settings.learning_rate, warmup)
    rate = optax.join_schedules([rise, rate], [warmup])
  optimizer = look_up(OPTIMIZERS, settings.optimizer, 'optimizer')(rate, settings.weight_decay)
  if not frozen:
    return optimizer
  labels = {part: 'keep' if part in frozen else 'train' for part in ('body', 'heads')}
  return optax.multi_transform({'train': optimizer, 'keep': optax.set_to_zero()}, labels)
