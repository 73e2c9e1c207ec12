"""Gaussian distillation by a deep latent factor model."""

from typing import Any

from hydra_jax.errors import UserError
from hydra_jax.methods import latent_factor
from hydra_jax.methods.base import MethodContext, Phase


def dlf(settings: Any, context: MethodContext) -> list[Phase]:
  """Gaussian distillation (Park et al. 2025): a deep latent factor model μ(x) + Φ(x) z + noise, by EM.

  First the mean alone, against the members' mean. It predicts as `samples` members drawn from it.
  """
  if settings.samples % 2:
    raise UserError(f'samples={settings.samples} are drawn in pairs: set it to an even number')
  network = latent_factor.network(
    context.stages('members', latent_factor.width(settings.factors)), settings.factors, settings.samples
  )

  def phase(name, loss_of, epochs, unread):
    loss = lambda outputs, batch: loss_of(outputs, context.task.canonical(batch['teacher']), settings.factors)
    return Phase(name=name, network=network, loss=loss, reduction='mean', epochs=epochs, unread=unread)

  factors = phase('factors', latent_factor.expanded_nll, settings.epochs, ('mean_epochs',))
  if not settings.mean_epochs:
    return [factors]
  return [phase('mean', latent_factor.mean_error, settings.mean_epochs, ('epochs',)), factors]
