"""Methods that learn one distribution over predictions from all members: EnD² and Proxy-EnD²."""

from typing import Any

from hydra_jax.errors import UserError
from hydra_jax.maths import prior_networks
from hydra_jax.methods.base import MethodContext, Phase


def endd(settings: Any, context: MethodContext) -> list[Phase]:
  """EnD² (Malinin et al. 2020): one distribution over predictions, by likelihood of all members.

  A Dirichlet, or in regression a normal-Wishart (arXiv 2006.11590), with a temperature that falls
  from `start_temperature` to 1 over the first half of the training.
  """

  def loss(outputs, batch):
    temperature = prior_networks.annealed(batch['done'], settings.start_temperature)
    return context.task.prior(outputs, batch['teacher'], temperature)

  network = context.network(0, 1, 'prior')
  return [Phase(name='all members', network=network, loss=loss, reduction='mean', epochs=settings.epochs)]


def proxy_endd(settings: Any, context: MethodContext) -> list[Phase]:
  """Proxy-EnD² (Ryabinin et al. 2021): reverse KL to a Dirichlet that stands for the members."""
  if context.task.proxy is None:
    raise UserError('proxy_endd is for classification: leave it out of config.students, or use endd')
  loss = lambda outputs, batch: context.task.proxy(outputs, batch['teacher'])
  network = context.network(0, 1, 'prior')
  return [Phase(name='all members', network=network, loss=loss, reduction='mean', epochs=settings.epochs)]
