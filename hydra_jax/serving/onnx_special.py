"""Functions that ONNX does not have, made of those that it has. JAX traces them in place of the primitive."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# From here Stirling's series of a few terms has all digits of float32.
SERIES_FROM = 8


def _log1p(x: jax.Array) -> jax.Array:
  """W. Kahan's: the rounding error of 1 + x cancels."""
  u = 1 + x
  safe = jnp.where((u == 1) | (u == jnp.inf), 2, u)
  return jnp.where(u == 1, x, jnp.where(u == jnp.inf, u, jnp.log(safe) * (x / (safe - 1))))


def _expm1(x: jax.Array) -> jax.Array:
  """exp(x) − 1 = tanh(x/2) (exp(x) + 1), which keeps all digits near 0."""
  return jnp.where(x > 1, jnp.exp(x) - 1, jnp.tanh(x / 2) * (jnp.exp(jnp.minimum(x, 1)) + 1))


def _reflected(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """For x < ½: whether it is, 1 − x or x, whether that is small, where the series is taken, and π (x − round x)."""
  low = x < 0.5
  y = jnp.where(low, 1 - x, x)
  small = y < SERIES_FROM
  return low, y, small, jnp.where(small, y + SERIES_FROM, y), jnp.pi * (x - jnp.round(x))


def _digamma(x: jax.Array) -> jax.Array:
  """ψ(x) = ψ(x + 8) − Σ_k<8 1/(x + k), and ψ(x + 8) by Stirling's series; ψ(x) = ψ(1 − x) − π / tan πx below ½."""
  low, y, small, z, angle = _reflected(x)
  inverse = 1 / (z * z)
  series = jnp.log(z) - 0.5 / z - inverse * (1 / 12 - inverse * (1 / 120 - inverse / 252))
  above = series - jnp.where(small, sum(1 / (jnp.where(small, y, 1) + k) for k in range(SERIES_FROM)), 0)
  pole = (x <= 0) & (x == jnp.floor(x))
  return jnp.where(pole, jnp.nan, jnp.where(low, above - jnp.pi / jnp.tan(jnp.where(pole, 1, angle)), above))


def _lgamma(x: jax.Array) -> jax.Array:
  """Γ(x + 8) = Γ(x) Π_k<8 (x + k), and Γ(x + 8) by Stirling's series; |Γ(x) Γ(1 − x)| = π / |sin πx| below ½."""
  low, y, small, z, angle = _reflected(x)
  inverse = 1 / (z * z)
  series = (z - 0.5) * jnp.log(z) - z + 0.5 * np.log(2 * np.pi).item()
  series += (1 / 12 - inverse * (1 / 360 - inverse / 1260)) / z
  above = series - jnp.where(small, sum(jnp.log(jnp.where(small, y, 1) + k) for k in range(SERIES_FROM)), 0)
  return jnp.where(y == jnp.inf, y, jnp.where(low, jnp.log(jnp.pi / jnp.abs(jnp.sin(angle))) - above, above))


MADE_OF_OTHERS: dict[str, Callable[..., jax.Array]] = {
  'log1p': _log1p,
  'expm1': _expm1,
  'digamma': _digamma,
  'lgamma': _lgamma,
  'rsqrt': lambda x: 1 / jnp.sqrt(x),
  'square': lambda x: x * x,
  'one_minus_square': lambda x: (1 - x) * (1 + x),
  'is_finite': lambda x: x - x == 0,
  'exp2': lambda x: jnp.exp(x * np.log(2).item()),
  'erfc': lambda x: 1 - jax.lax.erf(x),
  'cosh': lambda x: (jnp.exp(x) + jnp.exp(-x)) / 2,
  'sinh': lambda x: (_expm1(x) - _expm1(-x)) / 2,
}
