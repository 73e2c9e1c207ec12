"""A graph of ONNX operators while it is built. It needs no library.

Nodes are kept as tuples; `onnx_file` makes a file of them. A node that is the same as one before is not added again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np

from hydra_jax.errors import UserError

# Sizes of axes: numbers, or multiples of the symbolic size of the batch.
Shape = tuple[Any, ...]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Value:
  """An array in the graph.

  It need not be stored in full: along an axis on which it does not vary, it may have size 1. That is how ONNX
  broadcasts, so that most arrays that JAX broadcasts are never made.

  Attributes:
    shape: As JAX sees it.
    dtype: Of its elements.
    held: The array if it is known, otherwise the name of a tensor.
    stored: The shape that is held: `()`, or `shape` with 1 in place of some sizes.
  """

  shape: Shape
  dtype: Any
  held: Any
  stored: Shape

  @property
  def is_known(self) -> bool:
    """Whether it depends on no input."""
    return not isinstance(self.held, str)

  @property
  def array(self) -> np.ndarray:
    """The whole array, of one that is known and has a concrete shape."""
    return self.held if self.stored == self.shape else np.broadcast_to(self.held, self.shape)


class Node(NamedTuple):
  """An operator with the names of what it reads and of what it gives."""

  operator: str
  inputs: tuple[str, ...]
  output: str
  attributes: Mapping[str, Any]


def known(array: Any) -> Value:
  """A value that is an array, such as parameters."""
  array = array if hasattr(array, 'dtype') else np.asarray(array)
  return Value(array.shape, array.dtype, array, array.shape)


def is_one(size: Any) -> bool:
  """Whether an axis has size 1, whatever the batch is."""
  return isinstance(size, int | np.integer) and size == 1


def is_concrete(shape: Sequence[Any]) -> bool:
  """Whether no size depends on the batch."""
  return all(isinstance(size, int | np.integer) for size in shape)


def common(shapes: Sequence[Shape]) -> Shape:
  """The shape that arrays of these shapes are broadcast to; `()` goes with all."""
  ranked = [shape for shape in shapes if shape]
  return tuple(next((size for size in sizes if not is_one(size)), 1) for sizes in zip(*ranked, strict=True))


class Graph:
  """Nodes in order, and the arrays that they read.

  Attributes:
    batch: The symbolic size of the batch.
    nodes: The nodes.
    arrays: Constants by name.
    shapes: Of tensors, by name.
    refused: Names of tensors that cannot be computed, and why. It matters only if an output depends on them.
  """

  def __init__(self, batch: Any, source: str, shape: Shape):
    """Starts an empty graph whose input is `source`, of a shape `[batch, …]`."""
    self.batch, self.source = batch, source
    self.nodes: list[Node] = []
    self.arrays: dict[str, np.ndarray] = {}
    self.refused: dict[str, str] = {}
    self.shapes: dict[str, Shape] = {source: shape}
    self._made: dict[Any, str] = {}
    self._reshaped: dict[str, tuple[str, Shape]] = {}  # what a tensor was before, and its shape

  def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
    """Adds a node unless there is the same one, and returns the name of what it gives."""
    key = operator, tuple(inputs), repr(sorted(attributes.items()))
    if key not in self._made:
      self._made[key] = f'{operator}_{len(self._made)}'
      self.nodes.append(Node(operator, tuple(inputs), self._made[key], attributes))
    return self._made[key]

  def constant(self, array: Any) -> str:
    """The name of an array."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))  # NumPy makes a vector of a scalar
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(array.tobytes())
    name = f'constant_{digest.hexdigest()[:16]}'
    self.arrays[name] = array
    return name

  def name(self, value: Value) -> str:
    """The name of a value as it is stored, so that ONNX can broadcast it."""
    return self.constant(value.held) if value.is_known else value.held

  def whole(self, value: Value) -> Value:
    """The same value, stored in full."""
    if value.stored == value.shape:
      return value
    if value.is_known and is_concrete(value.shape):
      return known(value.array)
    name = self.add('Expand', [self.name(value), self.sizes(value.shape)])
    return self.named(name, value.shape, value.dtype, value.shape)

  def named(self, name: str, shape: Shape, dtype: Any, stored: Shape) -> Value:
    """A value that is a tensor of the graph."""
    self.shapes[name] = stored
    return Value(shape, dtype, name, stored)

  def elementwise(self, operator: str, values: Sequence[Value], dtype: Any, **attributes: Any) -> Value:
    """A node that broadcasts."""
    name = self.add(operator, [self.name(value) for value in values], **attributes)
    return self.named(name, common([v.shape for v in values]), dtype, common([v.stored for v in values]))

  def node(
    self, operator: str, values: Sequence[Value], shape: Sequence[Any], dtype: Any = None, **attributes: Any
  ) -> Value:
    """A node that reads values in full and gives one of a shape."""
    name = self.add(operator, [self.name(self.whole(value)) for value in values], **attributes)
    return self.named(name, tuple(shape), dtype or values[0].dtype, tuple(shape))

  def cast(self, value: Value, dtype: Any) -> Value:
    """The value in another type."""
    if value.dtype == dtype:
      return value
    if value.is_known:
      return replace(value, held=np.asarray(value.held).astype(dtype), dtype=dtype)
    name = self.add('Cast', [value.held], to=np.dtype(dtype))
    return self.named(name, value.shape, dtype, value.stored)

  def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
    """The value in another shape of as many elements."""
    shape = tuple(shape)
    if not value.stored:
      return replace(value, shape=shape)
    if shape == value.shape:
      return value
    if value.stored == value.shape:
      return self._restored(value, shape, shape)
    plain = [i for i, size in enumerate(value.shape) if not is_one(size)]
    if [size for size in shape if not is_one(size)] == [value.shape[i] for i in plain]:  # only axes of size 1 differ
      sizes = iter(value.stored[i] for i in plain)
      return self._restored(value, shape, tuple(1 if is_one(size) else next(sizes) for size in shape))
    return self.reshape(self.whole(value), shape)

  def _restored(self, value: Value, shape: Shape, stored: Shape) -> Value:
    if stored == value.stored:
      return replace(value, shape=shape)
    if value.is_known:
      return Value(shape, value.dtype, np.reshape(value.held, stored), stored)
    first, of = self._reshaped.get(value.held, (value.held, value.stored))
    name = first if stored == of else self.add('Reshape', [first, self._target(stored)])
    if name != first:
      self._reshaped[name] = first, of
    return self.named(name, shape, value.dtype, stored)

  def _target(self, stored: Shape) -> str:
    """Sizes for `Reshape`, which finds one of them by itself."""
    symbolic = [i for i, size in enumerate(stored) if not isinstance(size, int | np.integer)]
    if len(symbolic) > 1:
      return self.sizes(stored)
    return self.constant(np.array([-1 if i in symbolic else size for i, size in enumerate(stored)], np.int64))

  def broadcast(self, value: Value, shape: Shape, axes: Sequence[int]) -> Value:
    """As `jax.lax.broadcast_in_dim`: axis i of the value becomes axis `axes[i]`. Nothing is copied."""
    if not value.stored:
      return replace(value, shape=tuple(shape))
    stored: list[Any] = [1] * len(shape)
    for axis, size in zip(axes, value.stored, strict=True):
      stored[axis] = size
    return self._restored(value, tuple(shape), tuple(stored))

  def alternatives(self, value: Value, other: Value) -> Value:
    """A value of which there is another tensor in another shape, to read where it is reshaped to that."""
    self._reshaped[value.held] = other.held, other.stored
    return value

  def transpose(self, value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    order = tuple(int(axis) for axis in order)
    shape = tuple(value.shape[axis] for axis in order)
    if not value.stored or order == tuple(range(len(order))):
      return replace(value, shape=shape)
    stored = tuple(value.stored[axis] for axis in order)
    if value.is_known:
      return Value(shape, value.dtype, np.transpose(value.held, order), stored)
    moved = [axis for axis in order if not is_one(value.stored[axis])]
    if moved == sorted(moved):
      return self._restored(value, shape, stored)
    name = self.add('Transpose', [value.held], perm=order)
    return self.named(name, shape, value.dtype, stored)

  def slice(self, value: Value, shape: Shape, cuts: Mapping[int, slice]) -> Value:
    """The value cut along some axes, with concrete bounds."""
    cuts = {axis: cut for axis, cut in cuts.items() if value.stored and not is_one(value.stored[axis])}
    stored = tuple(shape[i] if i in cuts else size for i, size in enumerate(value.stored))
    if not cuts:
      return replace(value, shape=tuple(shape))
    if value.is_known:
      index = tuple(cuts.get(axis, slice(None)) for axis in range(len(shape)))
      return Value(tuple(shape), value.dtype, value.held[index], stored)
    columns = zip(*((cut.start, cut.stop, axis, cut.step) for axis, cut in cuts.items()), strict=True)
    name = self.add('Slice', [value.held, *(self.constant(np.array(column, np.int64)) for column in columns)])
    return self.named(name, tuple(shape), value.dtype, stored)

  def size(self, size: Any) -> str:
    """A tensor `[1]` that is the size of an axis."""
    if isinstance(size, int | np.integer):
      return self.constant(np.array([size], np.int64))
    name, times = self.add('Shape', [self.source], start=0, end=1), self.times(size)
    return name if times == 1 else self.add('Mul', [name, self.constant(np.array([times], np.int64))])

  def sizes(self, shape: Shape) -> str:
    """A tensor of the sizes of all axes."""
    if is_concrete(shape):
      return self.constant(np.array(shape, np.int64))
    return self.add('Concat', [self.size(size) for size in shape], axis=0)

  def times(self, size: Any) -> int:
    """How many times the batch an axis is.

    Raises:
      UserError: It is no multiple of the batch.
    """
    times = size // self.batch
    if not isinstance(times, int) or times * self.batch != size:
      raise UserError(f'an axis of size {size} is no multiple of the batch, which ONNX is not written for')
    return times

  def live(self, outputs: Sequence[Node]) -> tuple[list[Node], Arrays]:
    """Nodes that give the outputs, with all nodes and constants that they depend on.

    Raises:
      UserError: An output depends on what was refused.
    """
    wanted, nodes = {node.output for node in outputs}, []
    for node in reversed([*self.nodes, *outputs]):
      if node.output in wanted:
        nodes.append(node)
        wanted |= set(node.inputs)
    for name, why in self.refused.items():
      if name in wanted:
        raise UserError(why)
    return nodes[::-1], {name: array for name, array in self.arrays.items() if name in wanted}


def product(sizes: Sequence[Any]) -> Any:
  """Of sizes, some of which may be symbolic."""
  return functools.reduce(lambda a, b: a * b, sizes, 1)
