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
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.devices.mapping import on_cpu
from hydra_jax.errors import UserError

Tree = Any


class Stage(NamedTuple):
  """A piece of a network as two pure functions.

  Attributes:
    init: `(key, x) -> (params, state)`; `x` is an example input `[B, ...]`.
    apply: `(params, state, x, key, train) -> (y, state)`; `key` may be None where nothing is random.
    convolution: Whether it convolves, which decides how many of it are mapped, see `mapping.chosen`.
    own: Does the same as `apply`, faster where it is mapped over heads and each reads an x of its own, or
      where x are data, which need no gradient.
  """

  init: Callable[..., tuple[Tree, Tree]]
  apply: Callable[..., tuple[jax.Array, Tree]]
  convolution: bool = False
  own: Callable[..., tuple[jax.Array, Tree]] | None = None


def linen(module: nn.Module, convolution: bool = False, own: nn.Module | None = None) -> Stage:
  """Adapts a Flax Linen module whose `__call__` takes `x` and, if it wants, `train`; for `own` see `Stage`."""
  takes_train = 'train' in inspect.signature(type(module).__call__).parameters

  def flags(train):
    return {'train': train} if takes_train else {}

  def init(key, x):
    variables = dict(module.init(key, x, **flags(False)))
    return variables.pop('params', {}), variables

  def applying(module):
    def apply(params, state, x, key, train):
      rngs = None if key is None else {'dropout': collectives.own_key(key)}
      y, new_state = module.apply(
        {'params': params, **state}, x, **flags(train), rngs=rngs, mutable=list(state) if train else []
      )
      return y, {**state, **new_state}

    return apply

  return Stage(init, applying(module), convolution, own and applying(own))


def chain(stages: Sequence[Stage], first: int = 0, tiled: bool = False) -> Stage:
  """Joins stages into one. An empty chain is the identity.

  Args:
    stages: The stages, in order.
    first: Position of `stages[0]` in the whole network. Stage i draws its key from its position, so
      that where a network is cut does not change how it is initialised.
    tiled: Whether it will be mapped over heads: all stages then read what is each head's own, or data, but
      for the first one above a body.
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
    for i, (stage, p, s, k) in enumerate(zip(stages, params, state, keys(key), strict=True)):
      f = (stage.own or stage.apply) if tiled and (i or not first) else stage.apply
      x, s = f(p, s, x, k, train)
      new.append(s)
    return x, tuple(new)

  return Stage(init, apply, any(stage.convolution for stage in stages))


NARROW = 4


@jax.custom_vjp
def own_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`x @ kernel`, `[B, inputs] @ [inputs, outputs]`, with a gradient that is fast where heads share neither.

  On CPU the gradient for few outputs is faster as sums than as many small matrix products (by half for
  1,000 networks 9-50-2), and that of others in the order in which parameters lie in memory (by 5%).
  Where heads share x it is slower than what JAX makes: one product for all.
  """
  return x @ kernel


def _own_product_backward(given, dy):
  x, kernel = given
  if kernel.shape[1] > NARROW:
    return dy @ kernel.T, x.T @ dy
  columns = range(kernel.shape[1])
  dx = sum(dy[:, o : o + 1] * kernel[None, :, o] for o in columns)
  # Fused into what stacks them, sums would be made element by element.
  sums = [jnp.sum(x * dy[:, o : o + 1], axis=0) for o in columns]
  return dx, jnp.stack(jax.lax.optimization_barrier(sums), axis=-1)


own_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _own_product_backward)


def _own_dot_general(x, kernel, dimensions, **kwargs):
  return own_product(x, kernel) if on_cpu() and x.ndim == 2 else jax.lax.dot_general(x, kernel, dimensions, **kwargs)


def dense(width: int) -> Stage:
  """A dense layer."""
  return linen(nn.Dense(width), own=nn.Dense(width, dot_general=_own_dot_general))


class Hidden(nn.Module):
  """Flatten, dense, ReLU."""

  width: int
  dot_general: Callable | None = None

  @nn.compact
  def __call__(self, x):
    layer = nn.Dense(self.width, dot_general=self.dot_general, name='Dense_0')
    return nn.relu(layer(x.reshape(x.shape[0], -1)))


class Homoscedastic(nn.Module):
  """Dense, for the means of Gaussians, and beside them variances that are the same for every input.

  By maximum likelihood, means are then those of least squares, and variances those of the residuals.
  """

  outputs: int
  dot_general: Callable | None = None

  @nn.compact
  def __call__(self, x):
    mean = nn.Dense(self.outputs // 2, dot_general=self.dot_general)(x)
    raw = self.param('raw_variance', nn.initializers.zeros, (self.outputs // 2,))
    return jnp.concatenate([mean, jnp.broadcast_to(raw[None], mean.shape)], axis=-1)


def _flattening(stage: Stage) -> Stage:
  """The same stage, whose inputs become vectors first."""

  def on(f):
    return lambda params, state, x, key, train: f(params, state, x.reshape(x.shape[0], -1), key, train)

  return stage._replace(
    init=lambda key, x: stage.init(key, x.reshape(x.shape[0], -1)),
    apply=on(stage.apply),
    own=on(stage.own) if stage.own else None,
  )


def is_count(value: Any) -> bool:
  """Whether a value is a whole number of at least 1."""
  return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def mlp(outputs: int, widths: Sequence[int] = (100, 100), homoscedastic: bool = False) -> list[Stage]:
  """Multi-layer perceptron: one stage for each hidden layer and one for the outputs.

  With `homoscedastic`, for Gaussian outputs, the predicted variances are parameters that do not depend on the input.
  """
  if not isinstance(widths, Sequence) or not all(is_count(width) for width in widths):
    raise UserError(f'widths={widths!r} must be a tuple of whole numbers of at least 1, such as (100, 100)')
  if not isinstance(homoscedastic, bool):
    raise UserError(f'homoscedastic={homoscedastic!r} must be True or False')
  hidden = [linen(Hidden(w), own=Hidden(w, _own_dot_general)) for w in widths]
  last = dense(outputs)
  if homoscedastic:
    last = linen(Homoscedastic(outputs), own=Homoscedastic(outputs, _own_dot_general))
  return [*hidden, last] if hidden else [_flattening(last)]
