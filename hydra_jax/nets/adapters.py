"""Stages made of Flax NNX and Equinox modules. Each library is imported where it is used.

Parameters and state are plain trees of arrays. The rest of a module is read once, from an abstract copy, so that
nothing is allocated.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.errors import UserError
from hydra_jax.nets.stages import Stage, Tree


def from_nnx(make: Callable[..., Any]) -> Stage:
  """Adapts a Flax NNX module.

  Each `nnx.Param` is a parameter. Other variables are the state, which changes in training only. `train()` and `eval()`
  set the mode of the module. Its random streams start from the key of each call and are no part of the state.

  Args:
    make: `(rngs) -> module`. Each head calls it, and so has its own parameters.

  Raises:
    UserError: A module is given in place of a function.

  Example:
    >>> from functools import partial
    >>> from flax import nnx
    >>> stages = [from_nnx(partial(nnx.Linear, 64, 32)), from_nnx(lambda rngs: nnx.Linear(32, 10, rngs=rngs))]
  """
  from flax import nnx

  _must_make(make, nnx.Module)
  moving = nnx.Not(nnx.Any(nnx.Param, nnx.RngState, nnx.Intermediate))
  plain = lambda module, kind: nnx.to_pure_dict(nnx.state(module, kind))
  create = lambda key: _marked(make(rngs=nnx.Rngs(key)))

  @functools.cache
  def abstract():
    return jax.eval_shape(lambda: nnx.split(create(0), nnx.Param, nnx.RngState, ...))

  def init(key, x):
    module = create(key)
    return plain(module, nnx.Param), plain(module, moving)

  def apply(params, state, x, key, train):
    graph, *parts = abstract()
    values = params, _streams(parts[1], None if key is None else collectives.own_key(key)), state
    module = nnx.merge(graph, *map(_filled, parts, values))
    module.train() if train else module.eval()
    y = module(x)
    return y, plain(module, moving) if train else state

  return Stage(init, apply)


def _must_make(make: Callable, kind: type) -> None:
  if isinstance(make, kind):
    raise UserError(
      f'this {type(make).__name__} has its parameters already, and each head needs its own: '
      'give a function that makes the module, such as functools.partial(Module, sizes)'
    )


def _marked(module: Any) -> Any:
  """Marks arrays that are attributes of an NNX module as data. NNX does not see arrays that are traced."""
  from flax import nnx

  parts = [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]
  for part in parts:
    for name, value in list(vars(part).items()):
      if isinstance(value, jax.Array):
        setattr(part, name, nnx.data(value))
  return module


def _filled(like: Tree, values: Tree) -> Tree:
  """The tree `like` with the leaves of another tree, in the same order."""
  return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(values))


def _streams(like: Tree, key: jax.Array | None) -> Tree:
  """Keys and counts of NNX's random streams, each with another key. Without a key, drawing is an error."""
  if key is None:
    return like

  def start(i, leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.fold_in(key, i), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)

  return [start(i, leaf) for i, leaf in enumerate(jax.tree.leaves(like))]


def from_equinox(make: Callable[..., Any]) -> Stage:
  """Adapts an Equinox module.

  The module reads one example at a time, under `vmap(axis_name='batch')`. If it takes a `key`, each example has
  another. If it has an `eqx.nn.State`, as with `eqx.nn.BatchNorm`, it is called as `module(x, state) -> (y, state)`.
  Its floating-point arrays are the parameters. Axes are not transposed: convolutions of Equinox read
  `[channels, height, width]`, but data, Flax and `hydra_jax.nets.zoo` have the channels last.

  Args:
    make: `(key) -> module`. Each head calls it, and so has its own parameters.

  Raises:
    UserError: A module is given in place of a function.

  Example:
    >>> from functools import partial
    >>> import equinox as eqx
    >>> first, last = partial(eqx.nn.Linear, 64, 32), lambda key: eqx.nn.Linear(32, 10, key=key)
    >>> stages = [from_equinox(first), from_equinox(last)]
  """
  import equinox as eqx

  _must_make(make, eqx.Module)
  create = eqx.nn.make_with_state(make)

  @functools.cache
  def abstract():
    return eqx.filter_eval_shape(create, key=jax.random.key(0))

  def init(key, x):
    module, memory = create(key=key)
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    return _by_name(params), {'buffers': _by_name(eqx.filter(rest, eqx.is_array)), 'memory': jax.tree.leaves(memory)}

  def apply(params, state, x, key, train):
    module, memory = abstract()
    arrays = {**params, **state['buffers']}
    module = jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(_name(path), leaf), module)
    y, memory = _each(eqx.nn.inference_mode(module, not train), _filled(memory, state['memory']), x, key)
    return y, {**state, 'memory': jax.tree.leaves(memory)} if train else state

  return Stage(init, apply)


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='.')


def _by_name(tree: Tree) -> dict[str, jax.Array]:
  """Leaves by their path, such as `layers.0.weight`."""
  return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _each(module: Any, memory: Tree, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, Tree]:
  """Calls an Equinox module on every example. All examples share one memory, which is returned."""
  takes_key = 'key' in inspect.signature(module.__call__).parameters

  def call(x, key):
    more = {'key': key} if takes_key else {}
    return module(x, memory, **more) if jax.tree.leaves(memory) else (module(x, **more), memory)

  keys = None if key is None else collectives.example_keys(key, len(x))
  with jax.numpy_dtype_promotion('standard'):  # BatchNorm mixes its count of batches and its momentum
    return jax.vmap(call, out_axes=(0, None), axis_name='batch')(x, keys)
