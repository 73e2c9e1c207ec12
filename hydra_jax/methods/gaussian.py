"""Gaussian distillation by a deep latent factor model."""

from dataclasses import dataclass

from hydra_jax.errors import UserError
from hydra_jax.methods import latent_factor
from hydra_jax.methods.base import MethodContext, Phase
from hydra_jax.settings import COUNT, NOT_NEGATIVE, setting


@dataclass(frozen=True)
class DLF:
  """Settings of `dlf`."""

  factors: int = setting(10, COUNT, 'Number of latent factors.')
  samples: int = setting(64, COUNT, 'Members that are drawn for a prediction, in pairs.')
  mean_epochs: float = setting(20.0, NOT_NEGATIVE, 'Passes of a first phase that trains the mean alone; 0: none.')


def dlf(settings: DLF, context: MethodContext) -> list[Phase]:
  """Gaussian distillation (Park et al. 2025): a deep latent factor model μ(x) + Φ(x) z + noise, by EM.

  First the mean alone, against the members' mean. It predicts as `samples` members drawn from it.
  """
  if settings.samples % 2:
    raise UserError(f'samples={settings.samples} are drawn in pairs: set it to an even number')
  network = latent_factor.network(
    context.stages('members', latent_factor.width(settings.factors)), settings.factors, settings.samples
  )

  def phase(name, loss_of, epochs, unread=()):
    loss = lambda outputs, batch: loss_of(outputs, context.task.canonical(batch['teacher']), settings.factors)
    return Phase(name=name, network=network, loss=loss, reduction='mean', epochs=epochs, unread=unread)

  factors = phase('factors', latent_factor.expanded_nll, None, ('mean_epochs',))
  if not settings.mean_epochs:
    return [factors]
  return [phase('mean', latent_factor.mean_error, settings.mean_epochs), factors]
