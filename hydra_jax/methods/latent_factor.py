"""Gaussian distillation: the members as draws of one Gaussian process over functions.

A deep latent factor model: f(x) = μ(x) + Φ(x) z + σ(x) ε with z ~ N(0, I) the same for all x, ε ~ N(0, I) for each
(Park et al. 2025, arXiv 2510.19290).
One network gives μ, Φ and σ; a member is a z, and new members are new z.

Shapes: M members, B examples, C outputs of a member, Q factors, S samples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage

# A noise of 0 is an infinite likelihood, and as many factors as members reach it.
MIN_NOISE = 1e-4
# Φ is a tenth of its outputs: it has to start well below the spread of the members, whatever the last layer's scale.
LOADING = 0.1


class Factors(NamedTuple):
  """μ `[B, C]`, Φ `[B, C, Q]` and σ² `[B, C]`."""

  mean: jax.Array
  loadings: jax.Array
  noise: jax.Array


def width(factors: int) -> int:
  """Network outputs for each output of a member."""
  return factors + 2


def read(outputs_1xBxK: jax.Array, factors: int) -> Factors:
  """Reads outputs `[1, B, C (Q + 2)]`; σ² = softplus(·) + 1e-4, Φ = (·) / 10."""
  parts = jnp.reshape(outputs_1xBxK[0], (outputs_1xBxK.shape[1], -1, width(factors)))
  return Factors(parts[..., 0], LOADING * parts[..., 2:], jax.nn.softplus(parts[..., 1]) + MIN_NOISE)


class Posterior(NamedTuple):
  """z of each member given its values at B inputs together: means `[M, Q]` and a covariance `[Q, Q]` for all."""

  mean: jax.Array
  covariance: jax.Array


def posterior(model: Factors, members_MxBxC: jax.Array) -> Posterior:
  """E-step: covariance (I + Σ_bc φ_bc φ_bcᵀ / σ²_bc)⁻¹, and with it mean Σ_bc φ_bc (f_bc − μ_bc) / σ²_bc."""
  scaled = model.loadings / model.noise[..., None]
  over_all = lambda subscripts, *factors: collectives.sum_over('data', jnp.einsum(subscripts, *factors))
  covariance = jnp.linalg.inv(jnp.eye(scaled.shape[-1]) + over_all('bcq,bcr->qr', scaled, model.loadings))
  return Posterior(over_all('bcq,mbc->mq', scaled, members_MxBxC - model.mean[None]) @ covariance, covariance)


def standardised(z: Posterior) -> Posterior:
  """The same up to a linear map that makes z over all members N(0, I) in mean and covariance, as its prior is.

  Factors and z can trade size and place against each other and fit as well; only the prior says which, and at B C
  values a member it has next to no weight, so that EM takes forever. Fitted to standardised z, factors are right at
  once: parameter-expanded EM (Liu, Rubin and Wu 1998). What does not change any more is a fixed point of EM.
  """
  centred = z.mean - jnp.mean(z.mean, axis=0, keepdims=True)
  over_all = centred.T @ centred / len(centred) + z.covariance
  root = jnp.linalg.cholesky(over_all)
  solve = lambda a: jax.scipy.linalg.solve_triangular(root, a, lower=True)
  return Posterior(solve(centred.T).T, solve(solve(z.covariance).T))


def expected_nll(model: Factors, members_MxBxC: jax.Array, z: Posterior) -> jax.Array:
  """M-step: −1/M Σ_m E_z ln p(f_m | z), summed over outputs, `[B]`."""
  fitted = model.mean[None] + jnp.einsum('bcq,mq->mbc', model.loadings, z.mean)
  error = jnp.mean(jnp.square(members_MxBxC - fitted), axis=0)
  spread = jnp.einsum('bcq,qr,bcr->bc', model.loadings, z.covariance, model.loadings)
  return 0.5 * jnp.sum(jnp.log(2 * jnp.pi * model.noise) + (error + spread) / model.noise, axis=-1)


def expanded_nll(outputs_1xBxK: jax.Array, teacher_MxBxC: jax.Array, factors: int) -> jax.Array:
  """The loss: the M-step for standardised z, `[1, B]`.

  The paper's E-step is over all inputs; here each batch is one. But for standardising, its gradient is that of
  −1/M Σ_m ln N(f_m; μ, ΦΦᵀ + σ²) / B, f_m member m at the B inputs together.
  """
  model = read(outputs_1xBxK, factors)
  chex.assert_equal_shape_suffix([model.mean[None], teacher_MxBxC], 2)
  z = standardised(posterior(model, teacher_MxBxC))
  return expected_nll(model, teacher_MxBxC, jax.lax.stop_gradient(z))[None]


def mean_error(outputs_1xBxK: jax.Array, teacher_MxBxC: jax.Array, factors: int) -> jax.Array:
  """Squared error of μ against the mean of the members, summed over outputs, `[1, B]`."""
  mean = read(outputs_1xBxK, factors).mean
  return jnp.sum(jnp.square(mean - jnp.mean(teacher_MxBxC, axis=0)), axis=-1)[None]


def sample(model: Factors, samples: int) -> jax.Array:
  """Members `[S, B, C]`, S even, the same draws for every input: each is a function.

  In pairs of opposites and of unit variance, so that the mean of the members is μ.
  """
  factors, outputs = model.loadings.shape[-1], model.mean.shape[-1]
  half = jax.random.normal(jax.random.key(0), (samples // 2, factors + outputs))
  draws = jnp.concatenate([half, -half])
  draws /= jnp.sqrt(jnp.mean(jnp.square(draws), axis=0, keepdims=True))
  z, noise = draws[:, :factors], draws[:, factors:]
  return model.mean[None] + jnp.einsum('bcq,sq->sbc', model.loadings, z) + jnp.sqrt(model.noise)[None] * noise[:, None]


def network(stages: Sequence[Stage], factors: int, samples: int) -> cut.Network:
  """A one-headed network that predicts as `samples` members; in training its outputs are those that `read` takes.

  The stages have `width(factors)` outputs for each of a member.
  """
  one = cut.multi_head(stages, 0, 1)

  def apply(params, state, x, key=None, train=False):
    outputs, state = one.apply(params, state, x, key, train)
    return (outputs if train else sample(read(outputs, factors), samples)), state

  return one._replace(apply=apply, body_and_heads=None)
