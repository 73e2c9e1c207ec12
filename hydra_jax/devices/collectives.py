"""Collectives over the axes `data` and `head` that a step may be mapped over.

An axis that is absent counts as an axis with one device. Over such an axis a collective returns its argument. So a step
need not know where it runs.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def size(axis: str) -> int:
  """Number of devices along an axis that the code being traced is mapped over, or 1.

  Example:
    >>> size('data')
    1
  """
  try:
    return jax.lax.axis_size(axis)
  except NameError:
    return 1


def mean_over(axis: str, tree: Tree) -> Tree:
  """Mean over an axis. Integers, which are the same on all devices, stay as they are."""
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
  """Maximum over all devices, element by element."""
  axes = tuple(axis for axis in ('data', 'head', 'copy') if size(axis) > 1)
  return jax.lax.pmax(x, axes) if axes else x


def positions(axis: str, count: int) -> jax.Array:
  """Indices of the rows or heads of this device, among those of all devices.

  Args:
    axis: `data` for rows of a batch, `head` for heads.
    count: Number of rows or heads on this device.

  Returns:
    `[count]` int32.

  Example:
    >>> positions('head', 3)
    Array([0, 1, 2], dtype=int32)
  """
  at = jnp.arange(count)
  return at if size(axis) == 1 else jax.lax.axis_index(axis) * count + at


def example_keys(key: jax.Array, examples: int) -> jax.Array:
  """A key for each example of a batch, `[B]`. It depends on the index of the example, not on its device."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, positions('data', examples))


def own_key(key: jax.Array) -> jax.Array:
  """A key that differs between devices along `data`, for libraries that draw noise for a whole batch."""
  return key if size('data') == 1 else jax.random.fold_in(key, jax.lax.axis_index('data'))


def all_gather(axis: str, x: jax.Array) -> jax.Array:
  """Rebuilds an array that is spread over an axis along its axis 0, by an all-gather."""
  return x if size(axis) == 1 else jax.lax.all_gather(x, axis, tiled=True)


def unshard(axis: str, part: jax.Array, dim: int) -> jax.Array:
  """Rebuilds an array that is spread over an axis along `dim`, by one sum of shards that are padded by zeros.

  Args:
    axis: `data` or `head`.
    part: The shard of this device.
    dim: The axis of the array that is spread.
  """
  devices, length = size(axis), part.shape[dim]
  if devices == 1:
    return part
  shape = (*part.shape[:dim], length * devices, *part.shape[dim + 1 :])
  start = jax.lax.axis_index(axis) * length
  return jax.lax.psum(jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, part.dtype), part, start, dim), axis)
