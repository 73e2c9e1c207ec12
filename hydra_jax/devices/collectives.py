"""Collectives over the axes `data` and `head` that a step may be mapped over.

On an axis that is not there, or has one device, each is nothing at all: a step need not know where it runs.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def size(axis: str) -> int:
  """Number of devices along an axis that the code being traced is mapped over, or 1."""
  try:
    return jax.lax.axis_size(axis)
  except NameError:
    return 1


def mean_over(axis: str, tree: Tree) -> Tree:
  """Mean over an axis; integers, which are the same everywhere, stay as they are."""
  if size(axis) == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  moves = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
  means = iter(jax.lax.pmean([leaf for leaf, mean in zip(leaves, moves) if mean], axis))  # one collective for all
  return jax.tree.unflatten(structure, [next(means) if mean else leaf for leaf, mean in zip(leaves, moves)])


def sum_over(axis: str, tree: Tree) -> Tree:
  """Sum over an axis."""
  return tree if size(axis) == 1 else jax.lax.psum(tree, axis)


def max_over_devices(x: jax.Array) -> jax.Array:
  """Greatest value on any device, element by element."""
  axes = tuple(axis for axis in ('data', 'head', 'copy') if size(axis) > 1)
  return jax.lax.pmax(x, axes) if axes else x


def positions(axis: str, count: int) -> jax.Array:
  """Where in the whole the `count` rows or heads of this device are, `[count]`."""
  at = jnp.arange(count)
  return at if size(axis) == 1 else jax.lax.axis_index(axis) * count + at


def example_keys(key: jax.Array, examples: int) -> jax.Array:
  """A key for each example of a batch, `[B]`, the same however the batch is spread."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, positions('data', examples))


def own_key(key: jax.Array) -> jax.Array:
  """A key that differs from device to device along `data`, for noise drawn by a library for a whole batch."""
  return key if size('data') == 1 else jax.random.fold_in(key, jax.lax.axis_index('data'))


def all_gather(axis: str, x: jax.Array) -> jax.Array:
  """The whole of what is spread over an axis, along axis 0."""
  return x if size(axis) == 1 else jax.lax.all_gather(x, axis, tiled=True)


def all_gather_by_sum(axis: str, part: jax.Array, dim: int) -> jax.Array:
  """The whole of an array spread along `dim`; by a sum, as only devices that need it all pay for `all_gather`."""
  devices, own = size(axis), part.shape[dim]
  if devices == 1:
    return part
  shape = (*part.shape[:dim], own * devices, *part.shape[dim + 1 :])
  start = jax.lax.axis_index(axis) * own
  return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, part.dtype), part, start, dim), axis)
