"""What makes programs fast on XLA's CPU backend. Results differ by rounding only.

In other files only `on_cpu` decides whether it is used, so that this file can be deleted one day. `experiments.bench`
measured the numbers; see docs/speed.md.
"""

from collections.abc import Iterator
import contextlib
import contextvars
import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp

# Parameters of a network times examples in a batch, from which on XLA uses matrix products of Eigen, not of YNNPACK.
# On two cores Eigen was 13% faster at 11e6 (MNIST) and 8% at 9e6 (spiral, batch 300), YNNPACK 19% at 4e6 (batch 128).
LARGE_STEP = 8e6
# Parameters of all networks that are trained together on CPU, where networks share nothing. With gradients and the two
# moments of Adam they are 16 MB, half of the last cache of the machine that was measured. On it 200 MNIST networks then
# take 20 times as long as 10 networks; with twice the parameters, 24 times.
CACHED_PARAMETERS = 1e6
# Most outputs of a layer whose gradient is computed as sums, see `own_product`.
NARROW = 4


_platform = contextvars.ContextVar('platform', default='')


@contextlib.contextmanager
def programs_for(platform: str) -> Iterator[None]:
  """A context for programs that are traced here and run on a platform, such as `tpu`. A layout enters it."""
  token = _platform.set(platform)
  try:
    yield
  finally:
    _platform.reset(token)


def on_cpu() -> bool:
  """Whether programs that are traced here run on XLA's CPU backend. Outside `programs_for` they run on this process."""
  return (_platform.get() or jax.default_backend()) == 'cpu'


def group_of(heads: int, parameters: float) -> int:
  """How many independent networks are trained together, a divisor of `heads`: as many as fit the cache.

  Args:
    heads: Number of networks.
    parameters: Number of parameters of one network.

  Example:
    >>> group_of(heads=200, parameters=89610)
    10
  """
  most = max(1, CACHED_PARAMETERS / parameters)
  group = max(k for k in range(1, heads + 1) if heads % k == 0 and k <= most)
  return group if group > most / 3 else heads  # few divisors: one by one would be worse


def compiler_options(convolution: bool, step_size: float) -> dict[str, str]:
  """Options of XLA for a training step; none on other backends than CPU.

  Args:
    convolution: Whether the network convolves.
    step_size: Parameters of one network, times the examples in a batch.
  """
  if not on_cpu():
    return {}
  if convolution:
    kind = 'REDUCE'
  else:
    # There are no individual convolutions. So this value leaves nothing to YNNPACK.
    kind = 'INDIVIDUAL_CONVOLUTION' if step_size >= LARGE_STEP else 'DOT'
  options = {
    'xla_cpu_experimental_ynn_fusion_type': f'LIBRARY_FUSION_TYPE_{kind}',
    # This pass would remove our barriers before loops are fused. The barriers keep loops apart.
    'xla_disable_hlo_passes': 'cse_barrier_expander',
  }
  return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: str) -> bool:
  """Whether this version of XLA has an option. XLA does not promise to keep any of them."""
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options={name: value}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


# In the environment of a new process: the GNU C library asks for huge pages where programs take much memory. XLA takes
# and returns that of a step at each call. With small pages a step of ResNet-20 took 1.3 times as long (docs/speed.md).
HUGE_PAGES = 'GLIBC_TUNABLES=glibc.malloc.hugetlb=1'


def lacks_huge_pages(offered: Path = Path('/sys/kernel/mm/transparent_hugepage/enabled')) -> bool:
  """Whether `HUGE_PAGES` would change something: Linux offers huge pages, the library knows them, and nobody asked.

  Args:
    offered: The file in which Linux says so.
  """
  if not offered.exists() or '[madvise]' not in offered.read_text():
    return False
  name, _, version = (os.confstr('CS_GNU_LIBC_VERSION') or '').partition(' ')
  knows = name == 'glibc' and tuple(map(int, version.split('.'))) >= (2, 35)
  return knows and 'glibc.malloc.hugetlb' not in os.environ.get('GLIBC_TUNABLES', '')


_own_inputs = contextvars.ContextVar('own_inputs', default=False)


@contextlib.contextmanager
def own_inputs() -> Iterator[None]:
  """A context for code that is mapped over heads, where each head has other inputs, or inputs that are data."""
  token = _own_inputs.set(True)
  try:
    yield
  finally:
    _own_inputs.reset(token)


def dot_general(x: jax.Array, kernel: jax.Array, dimensions, **kwargs) -> jax.Array:
  """`jax.lax.dot_general` for dense layers, with a faster gradient in the context `own_inputs`."""
  if on_cpu() and x.ndim == 2 and _own_inputs.get():
    return own_product(x, kernel)
  return jax.lax.dot_general(x, kernel, dimensions, **kwargs)


@jax.custom_vjp
def own_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel`, `[B, inputs] @ [inputs, outputs]`, with a gradient that is fast where each head has another x.

  For few outputs, sums are faster on CPU than many small matrix products (by half for 1,000 networks 9-50-2). For more
  outputs, a product in the order of the parameters in memory is faster (by 5%). Where heads share x, this is slower
  than the gradient of JAX, which is one product for all heads.
  """
  return x @ kernel


def _own_product_backward(residuals, dy):
  x, kernel = residuals
  if kernel.shape[1] > NARROW:
    return dy @ kernel.T, x.T @ dy
  columns = range(kernel.shape[1])
  dx = sum(dy[:, o : o + 1] * kernel[None, :, o] for o in columns)
  # Without the barrier XLA would fuse the sums into the stack, and compute them element by element.
  sums = [jnp.sum(x * dy[:, o : o + 1], axis=0) for o in columns]
  return dx, jnp.stack(jax.lax.optimization_barrier(sums), axis=-1)


own_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _own_product_backward)


def convolve(x: jax.Array, kernel: jax.Array, strides, padding, **kwargs) -> jax.Array:
  """`jax.lax.conv_general_dilated`, whose inputs are not fused on CPU.

  The gradient with respect to the kernel reads the inputs transposed. XLA would compute the inputs again in that order,
  and a step of ResNet-20 would take 1.4 times as long.
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
