"""Ensemble distribution distillation by flow matching: members are drawn from noise, as many as are wanted."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hydra_jax.methods.base import MethodContext, Phase
from hydra_jax.nets import flow
from hydra_jax.settings import COUNT, POSITIVE, setting


@dataclass(frozen=True)
class EDFM:
  """Settings of `edfm`."""

  samples: int = setting(32, COUNT, 'Members that are drawn for a prediction.')
  steps: int = setting(7, COUNT, 'Steps from noise to a member: by Heun, the last by Euler.')
  width: int = setting(256, COUNT, 'Of the layers of the flow.')
  blocks: int = setting(4, COUNT, 'Of the flow, of one layer each.')
  mean_epochs: float = setting(20.0, POSITIVE, 'Passes of a first phase, which trains the body on the mean prediction.')


def edfm(settings: EDFM, context: MethodContext) -> list[Phase]:
  """Flow matching (EDFM, Park et al. 2025): a body from KD, and on its features a flow from noise to members.

  The flow leaves the body as it is. A step draws a member for each example; the authors draw one for a whole batch.
  """
  sizes = (settings.width, settings.blocks, settings.samples, settings.steps)
  mean, members = flow.mean_and_flow(context.stages('members'), context.task.canonical, *sizes)
  of_mean = lambda outputs, batch: context.task.mean(outputs, batch['teacher'], 1.0)
  return [
    Phase(
      name='mean prediction',
      network=mean,
      loss=of_mean,
      reduction='mean',
      epochs=settings.mean_epochs,
      unread=('samples', 'steps'),
      draws='members',
    ),
    Phase(
      name='flow',
      network=members,
      loss=velocity_error,
      reduction='mean',
      unread=('mean_epochs',),
      frozen=('body',),
      draws='members',
    ),
  ]


def velocity_error(outputs_1xBx2C: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
  """Squared distance between a velocity and the wanted one, which stand side by side, `[1, B]`."""
  del batch
  found, wanted = jnp.split(outputs_1xBx2C, 2, axis=-1)
  return jnp.sum(jnp.square(found - wanted), axis=-1)
