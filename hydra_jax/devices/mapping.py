"""How many networks, and many steps, become one program, and what XLA is told about it.

Which way is fastest depends on the backend and on the network, by factors of up to 80; none changes a
result but for rounding. Measured by `experiments.bench`; see Speed in the README.
"""

from collections.abc import Callable
import functools
import math

import jax
import jax.numpy as jnp

MAPPINGS = ('auto', 'vmap', 'unroll', 'loop')

# Outputs of heads that are larger than this are computed in chunks of at most this.
LARGE_OUTPUTS = 128 * 2**20
CHUNK_OUTPUTS = 32 * 2**20
# Parameters of a network times examples in a batch, above which Eigen's matrix products beat YNNPACK's. On two
# cores Eigen was 13% faster at 11e6 (MNIST) and 8% at 9e6 (spiral, batch 300), and YNNPACK 19% at 4e6 (batch 128).
LARGE_STEP = 8e6
# Parameters of the networks that are trained together on CPU, where they share nothing. With gradients and Adam's two
# moments these are 16 MB, half of the last cache of the machine on which 200 MNIST networks then cost 20 times what
# 10 cost, and 24 times with twice as many.
CACHED_PARAMETERS = 1e6


def on_cpu() -> bool:
  """Whether programs run on XLA's CPU backend."""
  return jax.default_backend() == 'cpu'


def chosen(mapping: str, convolution: bool) -> str:
  """The mapping that `auto` stands for: convolutions are written out on CPU, all else is vmapped.

  XLA's CPU backend is 4 to 80 times slower at convolutions inside a loop or mapped over weights.
  """
  return mapping if mapping != 'auto' else 'unroll' if convolution and on_cpu() else 'vmap'


def over_heads(one: Callable, heads: int, mapping: str) -> Callable:
  """Maps a function over the leading axis of its arguments, of length `heads`.

  Args:
    one: Function of any trees.
    heads: Number of heads.
    mapping: `vmap` (one program for all at once), `unroll` (written out head by head), or `loop` (one
      after the other, for the least memory).
  """
  if mapping == 'vmap':
    return jax.vmap(one)
  if mapping == 'loop':
    return lambda *args: jax.lax.map(lambda some: one(*some), args)

  def each(*args):
    results = [one(*jax.tree.map(lambda leaf, h=h: leaf[h], args)) for h in range(heads)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

  return each


def chunk_of(heads: int, heads_per_chunk: int, output_bytes: int) -> int:
  """How many heads are computed at once, a divisor of `heads`.

  Args:
    heads: Their number.
    heads_per_chunk: At most so many; if 0, all, unless their outputs are large.
    output_bytes: Of all heads together.
  """
  if not heads_per_chunk:
    large = output_bytes > LARGE_OUTPUTS
    heads_per_chunk = max(1, math.floor(heads * CHUNK_OUTPUTS / output_bytes)) if large else heads
  return max(k for k in _divisors(heads) if k <= max(1, heads_per_chunk))


def group_of(heads: int, heads_per_chunk: int, parameters: float) -> int:
  """How many networks that share nothing are trained together, a divisor of `heads`.

  Args:
    heads: Their number.
    heads_per_chunk: At most so many; if 0, all, unless on CPU they do not fit the cache together.
    parameters: Of one.
  """
  if heads_per_chunk or not on_cpu():
    return chunk_of(heads, heads_per_chunk or heads, 0)
  most = max(1, CACHED_PARAMETERS / parameters)
  group = max(k for k in _divisors(heads) if k <= most)
  return group if group > most / 3 else heads  # few divisors: one by one would be worse


def _divisors(number: int) -> list[int]:
  return [k for k in range(1, number + 1) if number % k == 0]


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
