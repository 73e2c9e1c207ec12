"""The first two moments of the members: one network predicts their mean and their spread."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from hydra_jax.errors import UserError
from hydra_jax.methods import latent_factor
from hydra_jax.methods.base import MethodContext, Phase
from hydra_jax.settings import COUNT, setting

# The power of σ that weighs the likelihood, as Seitzer et al. (2022) advise.
BETA = 0.5


@dataclass(frozen=True)
class Moments:
  """Settings of `moments`."""

  samples: int = setting(64, COUNT, 'Members that are drawn for a prediction, in pairs.')


def moments(settings: Moments, context: MethodContext) -> list[Phase]:
  """Mean and spread of the members, as in DEGU (Zhou et al. 2026): a Gaussian for each output, by likelihood.

  DEGU predicts both by squared error, in regression. Here they are of the members' outputs, so that classification is
  the same: the logits, or the mean and the width of each target. The loss is β-NLL (Seitzer et al. 2022), a mean over
  members. So members can be drawn in each step. It predicts as `samples` members drawn from the Gaussians.
  """
  if settings.samples % 2:
    raise UserError(f'samples={settings.samples} are drawn in pairs: set it to an even number')
  stages = context.stages('members', latent_factor.width(0))
  network = latent_factor.network(stages, 0, settings.samples)
  loss = lambda outputs, batch: beta_nll(outputs, context.task.canonical(batch['teacher']))
  return [Phase(name='moments', network=network, loss=loss, reduction='mean', draws='members')]


def beta_nll(outputs_1xBxK: jax.Array, members_MxBxC: jax.Array) -> jax.Array:
  """σ^2β times −1/M Σ_m ln N(f_m; μ, σ²), summed over outputs, `[1, B]`; the weight σ^2β has no gradient.

  Args:
    outputs_1xBxK: Outputs of the student, C (0 + 2) of them, see `latent_factor.read`.
    members_MxBxC: What the members say.
  """
  mean, _, var = latent_factor.read(outputs_1xBxK, 0)
  squares = jnp.mean(jnp.square(members_MxBxC - mean[None]), axis=0)
  nll = 0.5 * (jnp.log(2 * jnp.pi * var) + squares / var)
  return jnp.sum(jax.lax.stop_gradient(var**BETA) * nll, axis=-1)[None]
