"""Networks as lists of stages.

A stage is a pair of pure functions, so a network may come from any library; `linen` adapts a Flax
Linen module, and `adapters` those of NNX and Equinox. A network is a plain list of stages, and
`cut.hydra` decides which of them are shared.
"""

from collections.abc import Callable, Sequence
import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from hydra_jax.mapping import on_cpu

Tree = Any


class Stage(NamedTuple):
  """A piece of a network as two pure functions.

  Attributes:
    init: `(key, x) -> (params, state)`; `x` is an example input `[B, ...]`.
    apply: `(params, state, x, key, train) -> (y, state)`; `key` may be None where nothing is random.
    convolution: Whether it convolves, which decides how many of it are mapped, see `mapping.chosen`.
  """

  init: Callable[..., tuple[Tree, Tree]]
  apply: Callable[..., tuple[jax.Array, Tree]]
  convolution: bool = False


def linen(module: nn.Module, convolution: bool = False) -> Stage:
  """Adapts a Flax Linen module whose `__call__` takes `x` and, if it wants, `train`."""
  takes_train = 'train' in inspect.signature(type(module).__call__).parameters

  def flags(train):
    return {'train': train} if takes_train else {}

  def init(key, x):
    variables = dict(module.init(key, x, **flags(False)))
    return variables.pop('params', {}), variables

  def apply(params, state, x, key, train):
    rngs = None if key is None else {'dropout': key}
    y, new_state = module.apply(
      {'params': params, **state}, x, **flags(train), rngs=rngs, mutable=list(state) if train else []
    )
    return y, {**state, **new_state}

  return Stage(init, apply, convolution)


def chain(stages: Sequence[Stage], first: int = 0) -> Stage:
  """Joins stages into one. An empty chain is the identity.

  Args:
    stages: The stages, in order.
    first: Position of `stages[0]` in the whole network. Stage i draws its key from its position, so
      that where a network is cut does not change how it is initialised.
  """

  def keys(key):
    return [None if key is None else jax.random.fold_in(key, first + i) for i in range(len(stages))]

  def init(key, x):
    params, states = [], []
    for stage, k in zip(stages, keys(key)):
      p, s = stage.init(k, x)
      x, _ = stage.apply(p, s, x, None, False)
      params.append(p)
      states.append(s)
    return tuple(params), tuple(states)

  def apply(params, state, x, key, train):
    new = []
    for stage, p, s, k in zip(stages, params, state, keys(key), strict=True):
      x, s = stage.apply(p, s, x, k, train)
      new.append(s)
    return x, tuple(new)

  return Stage(init, apply, any(stage.convolution for stage in stages))


NARROW = 4


def matmul(x: jax.Array, kernel: jax.Array, dimensions, **kwargs) -> jax.Array:
  """The product in a dense layer, `[B, inputs] @ [inputs, outputs]`, called as `jax.lax.dot_general`.

  For very few outputs its gradient is written as sums, which on CPU are faster for many small
  networks at once: 1.5 times as many steps a second of 1,000 networks 9-50-2.
  """
  if x.ndim != 2 or kernel.shape[1] > NARROW or not on_cpu():
    return jax.lax.dot_general(x, kernel, dimensions, **kwargs)
  return _narrow(x, kernel)


@jax.custom_vjp
def _narrow(x, kernel):
  return x @ kernel


def _narrow_backward(given, dy):
  x, kernel = given
  columns = range(kernel.shape[1])
  dx = sum(dy[:, o : o + 1] * kernel[None, :, o] for o in columns)
  return dx, jnp.stack([jnp.sum(x * dy[:, o : o + 1], axis=0) for o in columns], axis=-1)


_narrow.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _narrow_backward)


def dense(width: int) -> nn.Dense:
  """A dense layer in float32."""
  return nn.Dense(width, dot_general=matmul)


class Hidden(nn.Module):
  """Flatten, dense, ReLU."""

  width: int

  @nn.compact
  def __call__(self, x):
    return nn.relu(dense(self.width)(x.reshape(x.shape[0], -1)))


def mlp(outputs: int, widths: Sequence[int] = (100, 100)) -> list[Stage]:
  """Multi-layer perceptron: one stage for each hidden layer and one for the outputs."""
  return [linen(Hidden(w)) for w in widths] + [linen(dense(outputs))]
