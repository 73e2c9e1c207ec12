"""Gaussians of features, one for each class, and the density of all of them together (Mukhoti et al. 2023).

Shapes: B examples, C classes, D features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

# Multiples of the largest variance, of which the least that works is added to the diagonal of each covariance. The list
# of the paper's code begins at 1e-308 for float64, whatever the size of the features; predictions are float32 here.
JITTERS = (0.0, *(10.0**power for power in range(-7, 1)))
# Log of the share of a class without examples.
LEAST_LOG_SHARE = -80.0


class Gaussians(NamedTuple):
  """A mixture of Gaussians, as predictions read it.

  Attributes:
    mean: `[C, D]` float32.
    whitening: W with W Σ Wᵀ = I for the covariance Σ of each class, lower triangular, `[C, D, D]` float32.
    log_scale: Logarithm of the share of each class and of the normalisation of its density, `[C]` float32.
  """

  mean: jax.Array
  whitening: jax.Array
  log_scale: jax.Array


def empty(classes: int, features: int) -> Gaussians:
  """Gaussians before they are fitted: all numbers are 0."""
  zeros = jnp.zeros
  return Gaussians(zeros((classes, features)), zeros((classes, features, features)), zeros(classes))


def log_density(gaussians: Gaussians, features_BxD: jax.Array) -> jax.Array:
  """Log Σ_c share_c N(features; mean_c, Σ_c), `[B]` float32.

  Example:
    >>> one = fitted(np.array([2.0]), np.zeros((1, 1)), np.ones((1, 1, 1)))  # a standard normal distribution
    >>> log_density(one, jnp.array([[0.0]]))  # −½ log 2π
    Array([-0.918...], dtype=float32)
  """
  distances_BxCxD = features_BxD[:, None] - gaussians.mean[None]
  white = jnp.einsum('bcd,ced->bce', distances_BxCxD, gaussians.whitening)
  return jax.nn.logsumexp(gaussians.log_scale[None] - 0.5 * jnp.sum(jnp.square(white), axis=-1), axis=-1)


def sums(features_BxD: jax.Array, y_B: jax.Array, weight_B: jax.Array, classes: int) -> dict[str, jax.Array]:
  """Weighted number of examples `[C]` and sum of features `[C, D]` of each class; labels of −1 (none) count nowhere."""
  of_class = jax.nn.one_hot(y_B, classes) * weight_B[:, None]
  return {'count': jnp.sum(of_class, axis=0), 'features': of_class.T @ features_BxD}


def products(features_BxD: jax.Array, y_B: jax.Array, weight_B: jax.Array, mean_CxD: jax.Array) -> jax.Array:
  """Weighted sum of (f − mean)(f − mean)ᵀ over the examples of each class, `[C, D, D]`.

  Around the means, which were found before: sums of f fᵀ would leave few digits where means are large.
  """
  of_class = jax.nn.one_hot(y_B, len(mean_CxD)) * weight_B[:, None]

  def of_one(weights_B: jax.Array, mean_D: jax.Array) -> jax.Array:
    centred = features_BxD - mean_D[None]
    return (weights_B[:, None] * centred).T @ centred

  return jax.lax.map(lambda both: of_one(*both), (of_class.T, mean_CxD))


def fitted(count_C: np.ndarray, mean_CxD: np.ndarray, products_CxDxD: np.ndarray) -> Gaussians:
  """The Gaussians with these means and covariances products / (count − 1), computed in float64.

  Args:
    count_C: Number of examples of each class.
    mean_CxD: Means.
    products_CxDxD: See `products`.

  Raises:
    ValueError: Features are not finite, or so large that no jitter works.
  """
  covariance = np.float64(products_CxDxD) / np.maximum(count_C - 1, 1)[:, None, None]
  features = covariance.shape[-1]
  covariance += jitter_for(covariance) * np.eye(features)
  roots = np.linalg.cholesky(covariance)
  whitening = np.stack([scipy.linalg.solve_triangular(root, np.eye(features), lower=True) for root in roots])
  with np.errstate(divide='ignore'):
    log_share = np.maximum(np.log(count_C / np.sum(count_C)), LEAST_LOG_SHARE)
  log_roots = np.sum(np.log(np.diagonal(roots, axis1=1, axis2=2)), axis=1)
  log_scale = log_share - log_roots - 0.5 * features * np.log(2 * np.pi)
  return Gaussians(*(jnp.asarray(each, jnp.float32) for each in (mean_CxD, whitening, log_scale)))


def jitter_for(covariance_CxDxD: np.ndarray) -> float:
  """The least of `JITTERS`, times the largest variance, with which every covariance has a Cholesky factor.

  Each of its pivots must be more than a rounding error of float32: a unit that is always 0 has no variance, and
  features that depend on each other, or more features than examples, leave pivots that are nothing but noise.

  Example:
    >>> jitter_for(np.eye(2)[None]), jitter_for(np.ones((1, 2, 2)))  # the second one is singular
    (0.0, 1e-07)
  """
  largest = float(np.max(covariance_CxDxD)) or 1.0
  identity = np.eye(covariance_CxDxD.shape[-1])
  for jitter in JITTERS:
    if all(_is_factored(each + largest * jitter * identity) for each in covariance_CxDxD):
      return largest * jitter
  raise ValueError('features are not finite, or too large for their covariances')


def _is_factored(covariance_DxD: np.ndarray) -> bool:
  """Whether there is a Cholesky factor, with pivots of more than rounding errors."""
  try:
    pivots = np.square(np.diagonal(np.linalg.cholesky(covariance_DxD)))
  except np.linalg.LinAlgError:
    return False
  return bool(np.min(pivots) > np.finfo(np.float32).eps * np.max(np.diagonal(covariance_DxD)))
