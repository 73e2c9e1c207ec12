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

from hydra_jax import cut
from hydra_jax.stages import Stage

# A noise of 0 is an infinite likelihood, and as many factors as members reach it.
MIN_NOISE = 1e-4


class Factors(NamedTuple):
  """μ `[B, C]`, Φ `[B, C, Q]` and σ² `[B, C]`."""

  mean: jax.Array
  loadings: jax.Array
  noise: jax.Array


def width(factors: int) -> int:
  """Network outputs for each output of a member."""
  return factors + 2


def read(outputs_1xBxK: jax.Array, factors: int) -> Factors:
  """Reads outputs `[1, B, C (Q + 2)]`; σ² = softplus(·) + 1e-4."""
  parts = jnp.reshape(outputs_1xBxK[0], (outputs_1xBxK.shape[1], -1, width(factors)))
  return Factors(parts[..., 0], parts[..., 2:], jax.nn.softplus(parts[..., 1]) + MIN_NOISE)


def posterior(model: Factors, residual_MxBxC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """E-step: z of each member given its residual f − μ at B inputs together, mean `[M, Q]` and precision `[Q, Q]`.

  The precision I + Σ_bc φ_bc φ_bcᵀ / σ²_bc is the same for all members.
  """
  scaled = model.loadings / model.noise[..., None]
  precision = jnp.eye(scaled.shape[-1]) + jnp.einsum('bcq,bcr->qr', scaled, model.loadings)
  z = jnp.linalg.solve(precision, jnp.einsum('bcq,mbc->qm', scaled, residual_MxBxC)).T
  return z, precision


def nll(outputs_1xBxK: jax.Array, teacher_MxBxC: jax.Array, factors: int) -> jax.Array:
  """−1/M Σ_m ln p(f_m) shared out over the examples, `[1, B]`; f_m is member m at the B inputs together.

  Its mean is that of −ln N(f_m; μ, ΦΦᵀ + σ²) / B, value and gradient: the free energy of EM with an exact E-step,
  under which z is a constant. The paper's E-step is over all inputs; here each batch is one.
  """
  model = read(outputs_1xBxK, factors)
  chex.assert_equal_shape_suffix([model.mean[None], teacher_MxBxC], 2)
  residual = teacher_MxBxC - model.mean[None]
  z, precision = jax.tree.map(jax.lax.stop_gradient, posterior(model, residual))
  covariance = jnp.linalg.inv(precision)
  spread = jnp.einsum('bcq,qr,bcr->bc', model.loadings, covariance, model.loadings)
  error = jnp.square(residual - jnp.einsum('bcq,mq->mbc', model.loadings, z))
  fit = jnp.log(2 * jnp.pi * model.noise) + (jnp.mean(error, axis=0) + spread) / model.noise
  from_prior = jnp.mean(jnp.sum(jnp.square(z), axis=-1)) + jnp.trace(covariance) - len(precision)
  kl = from_prior + jnp.linalg.slogdet(precision)[1]
  return 0.5 * (jnp.sum(fit, axis=-1) + kl / len(fit))[None]


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
  one = cut.hydra(stages, 0, 1)

  def apply(params, state, x, key=None, train=False):
    outputs, state = one.apply(params, state, x, key, train)
    return (outputs if train else sample(read(outputs, factors), samples)), state

  return one._replace(apply=apply)
