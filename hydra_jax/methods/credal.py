"""Credal ensemble distillation: a student that predicts an interval for the probability of each class."""

from hydra_jax.errors import UserError
from hydra_jax.maths import credal
from hydra_jax.methods.base import MethodContext, NoSettings, Phase


def ced(settings: NoSettings, context: MethodContext) -> list[Phase]:
  """Credal ensemble distillation (Wang et al. 2026): intervals from the least to the greatest probability of members.

  Its uncertainties are the greatest and the least entropy in the intervals, and their difference.
  """
  del settings
  if 'credal' not in context.task.predictives:
    raise UserError('ced is for classification: leave it out of config.students, or use moments')
  loss = lambda outputs, batch: credal.distillation(outputs, batch['teacher'])
  return [Phase(name='intervals', network=context.network(0, 1, 'credal'), loss=loss, reduction='mean')]
