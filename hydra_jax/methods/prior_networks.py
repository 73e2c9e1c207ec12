"""Methods that learn one distribution over predictions from all members: EnD² and Proxy-EnD²."""

from dataclasses import dataclass
import math

from hydra_jax.errors import UserError
from hydra_jax.maths import prior_networks
from hydra_jax.methods.base import MethodContext, NoSettings, Phase
from hydra_jax.settings import number, setting


@dataclass(frozen=True)
class EnDD:
  """Settings of `endd`."""

  start_temperature: float = setting(
    10.0, number(' of at least 1 and finite', lambda v: 1 <= v < math.inf), 'Temperature of the members at the start.'
  )


def endd(settings: EnDD, context: MethodContext) -> list[Phase]:
  """EnD² (Malinin et al. 2020): one distribution over predictions, by likelihood of all members.

  A Dirichlet, or in regression a normal-Wishart (arXiv 2006.11590), with a temperature that falls
  from `start_temperature` to 1 over the first half of the training.
  """

  def loss(outputs, batch):
    temperature = prior_networks.annealed(batch['done'], settings.start_temperature)
    return context.task.prior(outputs, batch['teacher'], temperature)

  network = context.network(0, 1, 'prior')
  return [Phase(name='all members', network=network, loss=loss, reduction='mean', draws='members')]


def proxy_endd(settings: NoSettings, context: MethodContext) -> list[Phase]:
  """Proxy-EnD² (Ryabinin et al. 2021): reverse KL to a Dirichlet that stands for the members."""
  del settings
  if context.task.proxy is None:
    raise UserError('proxy_endd is for classification: leave it out of config.students, or use endd')
  loss = lambda outputs, batch: context.task.proxy(outputs, batch['teacher'])
  network = context.network(0, 1, 'prior')
  return [Phase(name='all members', network=network, loss=loss, reduction='mean')]
