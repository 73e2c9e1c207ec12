"""Optimizers and schedules by name, element by element, so that heads do not touch one another."""

import optax

from hydra_jax.errors import look_up

# Nothing here may mix parameters (no global norm): a member must train as if it were alone.
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
    frozen: Parts of the parameters (`body`) that stay as they are.
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
