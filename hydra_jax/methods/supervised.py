"""Methods that learn from labels: the deep ensemble, one network, and MC dropout."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.methods.base import MethodContext, NoSettings, Phase, against_labels
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage
from hydra_jax.settings import COUNT, number, setting


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
