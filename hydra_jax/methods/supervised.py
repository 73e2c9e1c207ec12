"""Methods that learn from labels: the deep ensemble, one network, a shallow ensemble, TabM, and MC dropout."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.maths import losses
from hydra_jax.methods.base import MethodContext, NoSettings, Phase, against_labels, by_shares
from hydra_jax.nets import batch_ensemble, cut
from hydra_jax.nets.stages import Stage
from hydra_jax.settings import COUNT, COUNT_OR_0, WHOLE, number, setting


def ensemble(settings: NoSettings, context: MethodContext) -> list[Phase]:
  """Deep ensemble (Lakshminarayanan et al. 2017): nothing shared, each member against the labels.

  The members' losses are added, so that each is trained as if it were alone.
  """
  del settings
  return [against_labels(context.network(0, context.members), context)]


def single(settings: NoSettings, context: MethodContext) -> list[Phase]:
  """One network against the labels."""
  del settings
  return [against_labels(context.network(0, 1), context)]


@dataclass(frozen=True)
class ShallowEnsemble:
  """Settings of `shallow_ensemble`."""

  heads: int = setting(0, COUNT_OR_0, 'Number of heads; 0: as many as the teacher has members.')
  cut: int = setting(-1, WHOLE, 'Stages in the body, as of `hydra`.')


def shallow_ensemble(settings: ShallowEnsemble, context: MethodContext) -> list[Phase]:
  """Shallow ensemble (Kellner and Ceriotti 2024): heads on one body, trained together against the labels.

  The loss is the NLL of their mixture: in regression of the Gaussian with its mean and variance, as in the paper. Heads
  with a variance, and classification, where it is the NLL of the mean probabilities, are ours.
  """
  statistics, nll = context.task.mixture

  def loss(outputs, batch):
    return by_shares(lambda y: losses.of_mixture(statistics, nll, outputs, y, batch['common']), batch)

  network = context.network(settings.cut, settings.heads or context.members)
  return [Phase(name='labels', network=network, loss=loss, common=statistics, reduction='mean', distils=False)]


@dataclass(frozen=True)
class TabM:
  """Settings of `tabm`."""

  heads: int = setting(0, COUNT_OR_0, 'Number of members, 32 in the paper; 0: as many as the teacher has.')


def tabm(settings: TabM, context: MethodContext) -> list[Phase]:
  """TabM (Gorishniy et al. 2025): members that share kernels and differ by factors, each against the labels.

  The mean of the members' losses is minimised. Inputs of tables are embedded if the network does so: `mlp` does not.
  """
  network = batch_ensemble.tabm(context.stages('members'), settings.heads or context.members, context.mapping)
  return [replace(against_labels(network, context), reduction='mean')]


@dataclass(frozen=True)
class MCDropout:
  """Settings of `mc_dropout`."""

  rate: float = setting(
    0.1, number(' of more than 0 and less than 1', lambda v: 0 < v < 1), 'Share of the features that is dropped.'
  )
  samples: int = setting(20, COUNT, 'Passes of a prediction, each with other features dropped.')


def mc_dropout(settings: MCDropout, context: MethodContext) -> list[Phase]:
  """One network against the labels with dropout, which stays on when it predicts (Gal, Ghahramani 2016).

  Each of `samples` passes with other units dropped is a member.
  """
  dropped = cut.multi_head(with_dropout(context.stages('members'), settings.rate), 0, 1)
  return [against_labels(cut.sampled(dropped, settings.samples), context)]


def with_dropout(stages: list[Stage], rate: float) -> list[Stage]:
  """Drops a share `rate` of the features between stages."""

  def apply(params, state, x, key, train):
    if not train:
      return x, state
    draw = lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:])
    kept = jax.vmap(draw)(collectives.example_keys(key, len(x)))
    return jnp.where(kept, x / (1 - rate), 0), state

  drop = Stage(lambda key, x: ((), ()), apply)
  return [s for stage in stages[:-1] for s in (stage, drop)] + stages[-1:]
