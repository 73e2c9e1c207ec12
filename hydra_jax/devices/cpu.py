"""What makes programs fast on XLA's CPU backend. Nothing here changes a result but for rounding.

Elsewhere only `on_cpu` decides whether any of it is used, so that this file can be deleted one day. The numbers were
measured by `experiments.bench`; see Speed in the README.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools

import jax
import jax.numpy as jnp

# Parameters of a network times examples in a batch, above which Eigen's matrix products beat YNNPACK's. On two
# cores Eigen was 13% faster at 11e6 (MNIST) and 8% at 9e6 (spiral, batch 300), and YNNPACK 19% at 4e6 (batch 128).
LARGE_STEP = 8e6
# Parameters of the networks that are trained together on CPU, where they share nothing. With gradients and Adam's two
# moments these are 16 MB, half of the last cache of the machine on which 200 MNIST networks then cost 20 times what
# 10 cost, and 24 times with twice as many.
CACHED_PARAMETERS = 1e6
NARROW = 4


def on_cpu() -> bool:
  """Whether programs run on XLA's CPU backend."""
  return jax.default_backend() == 'cpu'


def group_of(heads: int, parameters: float) -> int:
  """How many independent networks are trained together, a divisor of `heads`: as many as fit the cache.

  Args:
    heads: Their number.
    parameters: Of one.
  """
  most = max(1, CACHED_PARAMETERS / parameters)
  group = max(k for k in range(1, heads + 1) if heads % k == 0 and k <= most)
  return group if group > most / 3 else heads  # few divisors: one by one would be worse


def compiler_options(convolution: bool, step_size: float) -> dict[str, str]:
  """What XLA is told about a training step; nothing but for CPU.

  Args:
    convolution: Whether the network convolves.
    step_size: Parameters of one of the networks, times the examples in a batch.
  """
  if not on_cpu():
    return {}
  if convolution:
    kind = 'REDUCE'
  else:
    # Individual convolutions, which there are none of, leave nothing to YNNPACK.
    kind = 'INDIVIDUAL_CONVOLUTION' if step_size >= LARGE_STEP else 'DOT'
  options = {
    'xla_cpu_experimental_ynn_fusion_type': f'LIBRARY_FUSION_TYPE_{kind}',
    # Barriers would be gone before loops are fused; ours are there to keep them apart.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
  }
  return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str) -> bool:
  """Whether this version of XLA has an option, none of which it promises to keep."""
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options={name: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


_own_inputs = contextvars.ContextVar('own_inputs', default=False)


@contextlib.contextmanager
def own_inputs() -> Iterator[None]:
  """Code that is traced inside is mapped over heads, and each head has its own inputs, or inputs that are data."""
  token = _own_inputs.set(True)
  try:
    yield
  finally:
    _own_inputs.reset(token)


def dot_general(x: jax.Array, kernel: jax.Array, dimensions, **kwargs) -> jax.Array:
  """`jax.lax.dot_general` for dense layers, with a faster gradient inside `own_inputs`."""
  if on_cpu() and x.ndim == 2 and _own_inputs.get():
    return own_product(x, kernel)
  return jax.lax.dot_general(x, kernel, dimensions, **kwargs)


@jax.custom_vjp
def own_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel`, `[B, inputs] @ [inputs, outputs]`, with a gradient that is fast where heads share neither.

  On CPU the gradient for few outputs is faster as sums than as many small matrix products (by half for
  1,000 networks 9-50-2), and that of others in the order in which parameters lie in memory (by 5%).
  Where heads share x it is slower than what JAX makes: one product for all.
  """
  return x @ kernel


def _own_product_backward(residuals, dy):
  x, kernel = residuals
  if kernel.shape[1] > NARROW:
    return dy @ kernel.T, x.T @ dy
  columns = range(kernel.shape[1])
  dx = sum(dy[:, o : o + 1] * kernel[None, :, o] for o in columns)
  # Fused into what stacks them, sums would be made element by element.
  sums = [jnp.sum(x * dy[:, o : o + 1], axis=0) for o in columns]
  return dx, jnp.stack(jax.lax.optimization_barrier(sums), axis=-1)


own_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _own_product_backward)


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **kwargs) -> jax.Array:
  """`jax.lax.conv_general_dilated`, with its inputs kept from fusion on CPU.

  The gradient with respect to the kernel reads them transposed, and XLA would compute them again in
  that order, out of all that they were computed from: a step of ResNet-20 takes 1.4 times as long.
  """
  plain = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **kwargs)
  if not on_cpu():
    return plain(x, kernel)

  @jax.custom_vjp
  def kept(x, kernel):
    return plain(x, kernel)

  def forward(x, kernel):
    x = jax.lax.optimization_barrier(x)
    return plain(x, kernel), (x, kernel)

  def backward(residuals, dy):
    return jax.vjp(plain, *residuals)[1](jax.lax.optimization_barrier(dy))

  kept.defvjp(forward, backward)
  return kept(x, kernel)
