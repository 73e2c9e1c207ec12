"""How heads are mapped: side by side, one after the other, or written out.

The fastest way depends on the backend and on the network, by factors of up to 80. Results differ by rounding only.
"""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
import jax.numpy as jnp

from hydra_jax.devices.cpu import on_cpu

MAPPINGS = ('auto', 'vmap', 'unroll', 'loop')

# Above this size, the outputs of heads are computed in chunks of at most `CHUNK_OUTPUTS`. Both are bytes.
LARGE_OUTPUTS = 128 * 2**20
CHUNK_OUTPUTS = 32 * 2**20


def convolves(f: Callable, *arguments: Any) -> bool:
  """Whether `f(*arguments)` convolves anywhere; arguments are arrays or their shapes.

  Example:
    >>> convolves(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))
    False
  """
  return any(eqn.primitive.name == 'conv_general_dilated' for eqn in _equations(jax.make_jaxpr(f)(*arguments).jaxpr))


def _equations(jaxpr: Jaxpr) -> Iterator[Any]:
  """All equations of a jaxpr and of the jaxprs that it contains."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      for inner in value if isinstance(value, tuple | list) else [value]:
        if isinstance(inner, ClosedJaxpr | Jaxpr):
          yield from _equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def choose(mapping: str, convolves: Callable[[], bool]) -> str:
  """The mapping that `auto` stands for: convolutions are written out on CPU, all else is vmapped.

  On XLA's CPU backend a convolution inside a loop or mapped over weights is 4 to 80 times slower.

  Args:
    mapping: One of `MAPPINGS`.
    convolves: Whether what is mapped convolves; called only where it matters.

  Returns:
    `vmap`, `unroll` or `loop`.
  """
  if mapping != 'auto':
    return mapping
  return 'unroll' if on_cpu() and convolves() else 'vmap'


def over_heads(f: Callable, heads: int, mapping: str) -> Callable:
  """Maps a function over the leading axis of its arguments, of length `heads`.

  Args:
    f: Function of any trees.
    heads: Number of heads.
    mapping: `vmap` (one program for all at once), `unroll` (written out head by head), `loop` (one after the other, for
      the least memory), or `auto`, see `choose`.

  Example:
    >>> over_heads(jnp.sum, 2, 'loop')(jnp.ones((2, 3)))
    Array([3., 3.], dtype=float32)
  """
  if mapping == 'auto':
    first = lambda args: jax.tree.map(lambda leaf: jax.eval_shape(lambda leaf: leaf[0], leaf), args)
    return lambda *args: over_heads(f, heads, choose(mapping, lambda: convolves(f, *first(args))))(*args)
  if mapping == 'vmap':
    return jax.vmap(f)
  if mapping == 'loop':
    return lambda *args: jax.lax.map(lambda slices: f(*slices), args)

  def unrolled(*args):
    results = [f(*jax.tree.map(lambda leaf, h=h: leaf[h], args)) for h in range(heads)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

  return unrolled


def chunk_of(heads: int, heads_per_chunk: int, output_bytes: int) -> int:
  """How many heads are computed at once, a divisor of `heads`.

  Args:
    heads: Their number.
    heads_per_chunk: Upper limit. 0 is all heads, unless their outputs are large.
    output_bytes: Of all heads together.

  Example:
    >>> chunk_of(heads=20, heads_per_chunk=6, output_bytes=0)
    5
  """
  if not heads_per_chunk:
    large = output_bytes > LARGE_OUTPUTS
    heads_per_chunk = max(1, math.floor(heads * CHUNK_OUTPUTS / output_bytes)) if large else heads
  return max(k for k in range(1, heads + 1) if heads % k == 0 and k <= max(1, heads_per_chunk))
