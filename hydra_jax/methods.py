"""The methods: each a row that says how a cut network is trained, phase by phase.

A method is a function of its settings (the part of the config under `teacher` or `student.<name>`)
and its task, and returns phases. The network of a phase has the cut and the heads that the phase
says; where a phase has more heads than the one before, they start as copies of its one head.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hydra_jax.tasks import Task


class Phase(NamedTuple):
  """One stretch of training against one loss.

  Attributes:
    name: Shown to the user.
    cut: Number of shared stages.
    heads: Number of heads.
    loss: `(outputs [H, B, C], batch) -> [H, B]`; the batch has `x`, `y` and maybe `teacher` [M, B, C].
    objective: Reduces the loss of each head `[H]` to the number that is minimised.
    epochs: Passes over the training data.
    spec: What the loss depends on, for the hash that names the result.
    distils: Whether the loss reads the teacher's predictions.
  """

  name: str
  cut: int
  heads: int
  loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
  objective: Callable[[jax.Array], jax.Array]
  epochs: float
  spec: dict[str, Any]
  distils: bool = True


def ensemble(settings, task: Task) -> list[Phase]:
  """Deep ensemble (Lakshminarayanan et al. 2017): nothing shared, each member against the labels.

  The members' losses are added, so that each is trained as if it were alone.
  """
  loss = lambda outputs, batch: task.label(outputs, batch['y'])
  return [Phase('labels', 0, settings.members, loss, jnp.sum, settings.epochs, {'loss': 'label'}, False)]


def single(settings, task: Task) -> list[Phase]:
  """One network against the labels."""
  loss = lambda outputs, batch: task.label(outputs, batch['y'])
  return [Phase('labels', 0, 1, loss, jnp.sum, settings.epochs, {'loss': 'label'}, False)]


def _hinton(settings, task, cut, epochs):
  loss = lambda outputs, batch: task.mean(outputs, batch['teacher'], settings.temperature)
  spec = {'loss': 'mean', 'temperature': settings.temperature}
  return Phase('mean prediction', cut, 1, loss, jnp.mean, epochs, spec)


def kd(settings, task: Task) -> list[Phase]:
  """Knowledge distillation (Hinton et al. 2015): one head against the mean of the members."""
  return [_hinton(settings, task, 0, settings.epochs)]


def hydra(settings, task: Task) -> list[Phase]:
  """Hydra (Tran et al. 2020): a Hinton head first, then its copies, one against each member."""
  loss = lambda outputs, batch: task.member(outputs, batch['teacher'], settings.temperature)
  spec = {'loss': 'member', 'temperature': settings.temperature}
  heads = Phase('members', settings.cut, settings.heads, loss, jnp.mean, settings.epochs, spec)
  if not settings.hinton_epochs:
    return [heads]
  return [_hinton(settings, task, settings.cut, settings.hinton_epochs), heads]


METHODS: dict[str, Callable[[Any, Task], list[Phase]]] = {
  'single': single,
  'ensemble': ensemble,
  'kd': kd,
  'hydra': hydra,
}
