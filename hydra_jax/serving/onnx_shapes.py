"""Rules for primitives that move elements and compute nothing; also of arrays that are known, by NumPy.

A rule is `(graph, inputs, outputs, params) -> value` or values: what an equation reads, abstract values of what it
gives, and its parameters. Indices and bounds must be known, but for those of `gather`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hydra_jax.serving.onnx_graph import Graph, Value, is_concrete, known

Params = Mapping[str, Any]
Rule = Callable[[Graph, list[Value], Sequence[Any], Params], Value | list[Value]]


class CannotTranslate(Exception):
  """A primitive is used in a way that no rule is written for. The message says which."""


def expect(fits: bool, what: str) -> None:
  """Refuses a use of a primitive.

  Raises:
    CannotTranslate: It does not fit.
  """
  if not fits:
    raise CannotTranslate(what)


def squeeze(graph, inputs, outputs, params):
  """`jax.lax.squeeze` and `jax.lax.expand_dims`."""
  return graph.reshape(inputs[0], outputs[0].shape)


def reshape(graph, inputs, outputs, params):
  """`jax.lax.reshape`, maybe of axes in another order."""
  (x,), order = inputs, params['dimensions']
  return graph.reshape(x if order is None else graph.transpose(x, order), outputs[0].shape)


def broadcast(graph, inputs, outputs, params):
  """`jax.lax.broadcast_in_dim`."""
  return graph.broadcast(inputs[0], outputs[0].shape, params['broadcast_dimensions'])


def transpose(graph, inputs, outputs, params):
  """`jax.lax.transpose`."""
  return graph.transpose(inputs[0], params['permutation'])


def cast(graph, inputs, outputs, params):
  """`jax.lax.convert_element_type`."""
  return graph.cast(inputs[0], outputs[0].dtype)


def unchanged(graph, inputs, outputs, params):
  """What changes nothing outside of a gradient or a compiler."""
  return list(inputs)


def slices(graph, inputs, outputs, params):
  """`jax.lax.slice`."""
  (x,) = inputs
  bounds = zip(params['start_indices'], params['limit_indices'], params['strides'] or (1,) * len(x.shape), strict=True)
  cuts = {axis: slice(*each) for axis, each in enumerate(bounds) if not _is_whole(each, x.shape[axis])}
  expect(all(is_concrete((cut.start, cut.stop)) for cut in cuts.values()), 'of the batch')
  return graph.slice(x, outputs[0].shape, cuts)


def _is_whole(bounds: tuple[Any, Any, int], size: Any) -> bool:
  start, limit, stride = bounds
  return isinstance(start, int) and start == 0 and limit == size and stride == 1


def dynamic_slice(graph, inputs, outputs, params):
  """`jax.lax.dynamic_slice`, at places that are known."""
  x, *starts = inputs
  expect(all(start.is_known for start in starts), 'at places that depend on the input')
  return graph.slice(x, outputs[0].shape, _windows(graph, x, range(len(starts)), starts, params['slice_sizes']))


def _windows(graph: Graph, x: Value, axes, starts: Sequence[Value], sizes: Sequence[Any]) -> dict[int, slice]:
  """Bounds of windows of given sizes, which are moved inside where they begin too late."""
  cuts = {}
  for axis, start in zip(axes, starts, strict=True):
    if sizes[axis] != x.shape[axis]:
      expect(is_concrete((sizes[axis], x.shape[axis])), 'of the batch')
      first = int(np.clip(int(start.held), 0, x.shape[axis] - sizes[axis]))
      cuts[axis] = slice(first, first + sizes[axis], 1)
  return cuts


def reverse(graph, inputs, outputs, params):
  """`jax.lax.rev`."""
  (x,), axes = inputs, params['dimensions']
  expect(is_concrete([x.shape[axis] for axis in axes]), 'of the batch')
  return graph.slice(x, x.shape, {axis: slice(x.shape[axis] - 1, -x.shape[axis] - 1, -1) for axis in axes})


def split(graph, inputs, outputs, params):
  """`jax.lax.split`."""
  (x,), sizes = inputs, params['sizes']
  starts = [sum(sizes[:i]) for i in range(len(sizes))]
  cuts = [{params['axis']: slice(start, start + size, 1)} for start, size in zip(starts, sizes)]
  return [graph.slice(x, output.shape, cut) for output, cut in zip(outputs, cuts, strict=True)]


def concatenate(graph, inputs, outputs, params):
  """`jax.lax.concatenate`."""
  axis = params['dimension']
  if all(x.is_known and is_concrete(x.shape) for x in inputs):
    return known(np.concatenate([x.array for x in inputs], axis))
  return inputs[0] if len(inputs) == 1 else graph.node('Concat', inputs, outputs[0].shape, axis=axis)


def stack(graph, inputs, outputs, params):
  """`jax.lax.stack`: arrays along a new axis."""
  (output,), axis = outputs, params['axis']
  shape = tuple(1 if i == axis else size for i, size in enumerate(output.shape))
  return concatenate(graph, [graph.reshape(x, shape) for x in inputs], outputs, {'dimension': axis})


def gather(graph, inputs, outputs, params):
  """`jax.lax.gather` where it is a window, rows and columns of a grid, or a look-up along one axis.

  It is what JAX makes of `x[:, ::2, 1:]` where the size of the batch is a symbol, and of `jnp.take`.
  """
  (x, indices), numbers, (output,) = inputs, params['dimension_numbers'], outputs
  axes = tuple(numbers.start_index_map)
  expect(not numbers.operand_batching_dims, 'with batches of indices')
  if len(indices.shape) == 1:
    return _window(graph, x, indices, output, params)
  expect(axes == tuple(numbers.collapsed_slice_dims), 'of windows')
  if len(axes) == 1:
    return _look_up(graph, x, graph.reshape(indices, indices.shape[:-1]), output, params)
  return _grid(graph, x, indices, output, params)


def _window(graph: Graph, x: Value, indices: Value, output, params) -> Value:
  """One window of known size at a known place; axes of size 1 may be left out."""
  axes, sizes = params['dimension_numbers'].start_index_map, params['slice_sizes']
  expect(indices.is_known, 'of a window at a place that depends on the input')
  starts = np.asarray(indices.array)
  inside = all(not is_concrete([x.shape[a]]) or 0 <= i <= x.shape[a] - sizes[a] for a, i in zip(axes, starts))
  expect(inside, 'out of bounds')
  cuts = _windows(graph, x, axes, [known(each) for each in starts], sizes)
  return graph.reshape(graph.slice(x, tuple(sizes), cuts), output.shape)


def _grid(graph: Graph, x: Value, indices: Value, output, params) -> Value:
  """Indices along several axes that are all combinations of one list for each axis."""
  numbers, lists = params['dimension_numbers'], []
  expect(indices.is_known and len(numbers.start_index_map) == len(indices.shape) - 1, 'of single elements')
  for i in range(len(numbers.start_index_map)):
    rows = np.moveaxis(indices.array[..., i], i, 0).reshape(indices.shape[i], -1)
    expect(bool((rows == rows[:, :1]).all()), 'of single elements')
    lists.append(rows[:, 0])
  for axis, at in zip(numbers.start_index_map, lists):
    expect(is_concrete([x.shape[axis]]) and 0 <= at.min() <= at.max() < x.shape[axis], 'out of bounds')
    x = _taken(graph, x, known(at), axis)
  grid = iter(numbers.start_index_map)
  rest = iter(axis for axis in range(len(x.shape)) if axis not in numbers.start_index_map)
  return graph.transpose(x, [next(rest if i in numbers.offset_dims else grid) for i in range(len(output.shape))])


def _look_up(graph: Graph, x: Value, indices: Value, output, params) -> Value:
  """Indices along one axis, which may depend on the input."""
  numbers, mode = params['dimension_numbers'], str(params['mode'])
  (axis,), lead = numbers.start_index_map, len(indices.shape)
  expect(is_concrete([x.shape[axis]]), 'along the batch')
  low, high = (known(np.asarray(each, indices.dtype)) for each in (0, x.shape[axis] - 1))
  clipped = clip(graph, low, indices, high)
  found = _taken(graph, x, clipped, axis)
  taken = iter(range(axis, axis + lead))
  rest = iter(i for i in range(len(found.shape)) if not axis <= i < axis + lead)
  found = graph.transpose(found, [next(rest if i in numbers.offset_dims else taken) for i in range(len(output.shape))])
  if 'FILL' not in mode:
    return found
  fill = np.nan if params['fill_value'] is None else params['fill_value']
  expect(np.issubdtype(output.dtype, np.floating), 'of whole numbers out of bounds')
  places = [i for i in range(len(output.shape)) if i not in numbers.offset_dims]
  inside = graph.broadcast(equal(graph, clipped, indices), output.shape, places)
  return graph.elementwise('Where', [inside, found, known(np.asarray(fill, output.dtype))], output.dtype)


def clip(graph: Graph, low: Value, x: Value, high: Value) -> Value:
  """The values, moved between two bounds."""
  if x.is_known:
    return known(np.clip(x.array, low.held, high.held))
  return graph.elementwise('Min', [graph.elementwise('Max', [x, low], x.dtype), high], x.dtype)


def equal(graph: Graph, x: Value, y: Value) -> Value:
  """Where two arrays are the same."""
  if x.is_known and y.is_known:
    return known(np.asarray(x.array == y.array))
  return graph.elementwise('Equal', [x, y], np.dtype(bool))


def _taken(graph: Graph, x: Value, indices: Value, axis: int) -> Value:
  """Elements along one axis; evenly spaced ones are a slice."""
  shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
  if indices.is_known and is_concrete(indices.shape):
    at = np.asarray(indices.array)
    steps = set(np.diff(at).tolist()) if at.ndim == 1 else {0}
    if len(steps) <= 1 and (step := min(steps, default=1)) > 0:
      return graph.slice(x, shape, {axis: slice(int(at[0]), int(at[-1]) + 1, step)})
    if x.is_known and is_concrete(x.shape):
      return known(np.take(x.array, at, axis))
  return graph.node('Gather', [x, graph.cast(indices, np.dtype(np.int64))], shape, x.dtype, axis=axis)


def pad(graph, inputs, outputs, params):
  """`jax.lax.pad`, outwards."""
  x, value = inputs
  config = [(low, high) for low, high, _ in params['padding_config']]
  expect(not any(interior for _, _, interior in params['padding_config']), 'between elements')
  expect(all(is_concrete(each) and min(each) >= 0 for each in config), 'by a negative number, or by the batch')
  if not any(map(any, config)):
    return x
  pads = known(np.array(config, np.int64).T.ravel())
  return graph.node('Pad', [x, pads, value], outputs[0].shape, mode='constant')


SHAPES: dict[str, Rule] = {
  'reshape': reshape,
  'squeeze': squeeze,
  'expand_dims': squeeze,
  'broadcast_in_dim': broadcast,
  'transpose': transpose,
  'convert_element_type': cast,
  'slice': slices,
  'dynamic_slice': dynamic_slice,
  'split': split,
  'concatenate': concatenate,
  'stack': stack,
  'gather': gather,
  'rev': reverse,
  **dict.fromkeys(
    ('copy', 'copy_p', 'stop_gradient', 'optimization_barrier', 'name', 'pvary', 'sharding_constraint'), unchanged
  ),
}
