"""Methods that learn from labels: the deep ensemble, one network, and MC dropout."""

from typing import Any

import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.methods.base import MethodContext, Phase, against_labels
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage


def ensemble(settings: Any, context: MethodContext) -> list[Phase]:
  """Deep ensemble (Lakshminarayanan et al. 2017): nothing shared, each member against the labels.

  The members' losses are added, so that each is trained as if it were alone.
  """
  network = context.network(0, settings.members)
  return [against_labels(network, settings, context, unread=('predictions', 'checkpoints', 'keep_as'))]


def single(settings: Any, context: MethodContext) -> list[Phase]:
  """One network against the labels."""
  return [against_labels(context.network(0, 1), settings, context)]


def mc_dropout(settings: Any, context: MethodContext) -> list[Phase]:
  """One network against the labels with dropout, which stays on when it predicts (Gal, Ghahramani 2016).

  Each of `samples` passes with other units dropped is a member.
  """
  dropped = cut.multi_head(with_dropout(context.stages('members'), settings.rate), 0, 1)
  network = cut.sampled(dropped, settings.samples)
  return [against_labels(network, settings, context)]


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
