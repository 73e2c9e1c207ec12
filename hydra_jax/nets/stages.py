"""Networks as lists of stages.

A stage is a pair of pure functions, so that a network can come from any library. `from_linen` adapts a Flax Linen
module; `adapters` has the same for NNX and Equinox. A network is a plain list of stages. `cut.multi_head` decides which
of them are shared.
"""

from collections.abc import Callable, Sequence
import contextlib
import inspect
from typing import Any, NamedTuple

import flax.linen as nn
from flax.linen.dtypes import promote_dtype
import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.devices.cpu import dot_general, own_inputs
from hydra_jax.errors import UserError

Tree = Any


class Stage(NamedTuple):
  """A piece of a network as two pure functions.

  Attributes:
    init: `(key, x) -> (params, state)`; x is an example input `[B, …]`.
    apply: `(params, state, x, key, train) -> (y, state)`; key may be None where nothing is random.

  Example:
    >>> scale = Stage(
    ...   init=lambda key, x: (jnp.ones(x.shape[1:]), ()),
    ...   apply=lambda params, state, x, key, train: (params[None] * x, state),
    ... )
  """

  init: Callable[..., tuple[Tree, Tree]]
  apply: Callable[..., tuple[jax.Array, Tree]]


def from_linen(module: nn.Module) -> Stage:
  """Adapts a Flax Linen module whose `__call__` takes `x` and, if it wants, `train`.

  Collections other than `params`, such as `batch_stats`, become the state. In training they may change, and dropout
  draws from the key.

  Example:
    >>> stages = [from_linen(nn.Dense(32)), from_linen(nn.Dense(10))]
  """
  takes_train = 'train' in inspect.signature(type(module).__call__).parameters

  def flags(train):
    return {'train': train} if takes_train else {}

  def init(key, x):
    variables = dict(module.init(key, x, **flags(False)))
    return variables.pop('params', {}), variables

  def apply(params, state, x, key, train):
    rngs = None if key is None else {'dropout': collectives.own_key(key)}
    y, new_state = module.apply(
      {'params': params, **state}, x, **flags(train), rngs=rngs, mutable=list(state) if train else []
    )
    return y, {**state, **new_state}

  return Stage(init, apply)


def chain(stages: Sequence[Stage], first: int = 0, tiled: bool = False) -> Stage:
  """Joins stages into one. An empty chain is the identity.

  Args:
    stages: The stages, in order.
    first: Position of `stages[0]` in the whole network. A stage draws its key from its position. So the start of a
      network does not depend on the cut.
    tiled: True if the chain is mapped over heads. Then every stage reads inputs of one head, or data, except the
      first stage above a shared body.

  Example:
    >>> stage = chain([from_linen(nn.Dense(32)), from_linen(nn.Dense(10))])
    >>> params, state = stage.init(jax.random.key(0), jnp.ones((1, 64)))
    >>> stage.apply(params, state, jnp.ones((3, 64)), None, False)[0].shape
    (3, 10)
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
      own = own_inputs() if tiled and (i or not first) else contextlib.nullcontext()
      with own, jax.named_scope(f'stage_{first + i}'):
        x, s = stage.apply(p, s, x, k, train)
      new.append(s)
    return x, tuple(new)

  return Stage(init, apply)


# A layer of Flax traces how its parameters are drawn each time that it is traced, to check their shapes. For a small
# network that is most of the time to trace it. So Flax draws the parameters of dense layers, and `affine` applies them.


def affine(params: Tree, x: jax.Array) -> jax.Array:
  """What `flax.linen.Dense` computes, `[B, inputs] -> [B, width]`.

  Args:
    params: `{'kernel': [inputs, width], 'bias': [width]}`.
    x: The inputs.
  """
  x, kernel, bias = promote_dtype(x, params['kernel'], params['bias'])
  return dot_general(x, kernel, (((1,), (0,)), ((), ()))) + bias[None]


def dense(width: int) -> Stage:
  """A dense layer with bias, `[B, inputs] -> [B, width]`."""
  return Stage(from_linen(nn.Dense(width)).init, lambda params, state, x, key, train: (affine(params, x), state))


class Inner(nn.Module):
  """A dense layer inside a module. Its parameters are named `Dense_0`."""

  width: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width, name='Dense_0')(x)


def hidden(width: int) -> Stage:
  """Flatten, dense, ReLU."""
  apply = lambda params, state, x, key, train: (nn.relu(affine(params['Dense_0'], x)), state)
  return _flattening(Stage(from_linen(Inner(width)).init, apply))


class Homoscedastic(nn.Module):
  """A dense layer for the means of Gaussians, and variances that are parameters and do not depend on the input.

  By maximum likelihood, the means are those of least squares, and the variances are those of the residuals.
  """

  outputs: int

  @nn.compact
  def __call__(self, x):
    mean = nn.Dense(self.outputs // 2, dot_general=dot_general)(x)
    raw = self.param('raw_variance', nn.initializers.zeros, (self.outputs // 2,))
    return jnp.concatenate([mean, jnp.broadcast_to(raw[None], mean.shape)], axis=-1)


def _flattening(stage: Stage) -> Stage:
  """The same stage, whose inputs become vectors first."""
  flat = lambda x: x.reshape(x.shape[0], -1)
  return Stage(
    lambda key, x: stage.init(key, flat(x)),
    lambda params, state, x, key, train: stage.apply(params, state, flat(x), key, train),
  )


def is_count(value: Any) -> bool:
  """Whether a value is a whole number of at least 1."""
  return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def mlp(
  outputs: int, widths: Sequence[int] = (100, 100), homoscedastic: bool = False, bottleneck: int = 0
) -> list[Stage]:
  """Multi-layer perceptron with ReLU: one stage for each hidden layer, for the bottleneck, and for the outputs.

  Args:
    outputs: Number of outputs.
    widths: Of the hidden layers.
    homoscedastic: For Gaussian outputs: the predicted variances are parameters that do not depend on the input.
    bottleneck: Width of a linear layer below the outputs; 0: there is none. Many dense heads above it cost little, as
      their kernels are of low rank.

  Returns:
    Stages that read inputs of any shape `[B, …]`.

  Raises:
    UserError: An argument is of another kind.

  Example:
    >>> len(mlp(10, widths=(100, 100)))
    3
  """
  if not isinstance(widths, Sequence) or not all(is_count(width) for width in widths):
    raise UserError(f'widths={widths!r} must be a tuple of whole numbers of at least 1, such as (100, 100)')
  if not isinstance(homoscedastic, bool):
    raise UserError(f'homoscedastic={homoscedastic!r} must be True or False')
  if not is_count(bottleneck) and bottleneck != 0:
    raise UserError(f'bottleneck={bottleneck!r} must be a whole number of at least 0')
  below = [hidden(w) for w in widths] + ([dense(bottleneck)] if bottleneck else [])
  last = from_linen(Homoscedastic(outputs)) if homoscedastic else dense(outputs)
  return [*below, last] if below else [_flattening(last)]
