"""Rules for primitives that compute: what each is in ONNX. For the form of a rule see `onnx_shapes`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from hydra_jax.serving.onnx_graph import Graph, Value, known, product
from hydra_jax.serving.onnx_shapes import Rule, clip, equal, expect, pad

BOOL = np.dtype(bool)
# Elementwise, by the operator of ONNX.
OPERATORS = {
  **{'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'pow': 'Pow', 'neg': 'Neg'},
  **{'min': 'Min', 'abs': 'Abs', 'sign': 'Sign', 'floor': 'Floor', 'ceil': 'Ceil', 'exp': 'Exp', 'log': 'Log'},
  **{'sqrt': 'Sqrt', 'tanh': 'Tanh', 'logistic': 'Sigmoid', 'erf': 'Erf', 'sin': 'Sin', 'cos': 'Cos', 'tan': 'Tan'},
  **{'lt': 'Less', 'le': 'LessOrEqual', 'gt': 'Greater', 'ge': 'GreaterOrEqual'},
}
# Of truth values.
LOGICAL = {'and': 'And', 'or': 'Or', 'xor': 'Xor', 'not': 'Not'}


def _elementwise(operator: str) -> Rule:
  return lambda graph, inputs, outputs, params: graph.elementwise(operator, inputs, outputs[0].dtype)


def _logical(operator: str) -> Rule:
  def rule(graph, inputs, outputs, params):
    expect(outputs[0].dtype == BOOL, 'of whole numbers')
    return graph.elementwise(operator, inputs, BOOL)

  return rule


def _equal(graph, inputs, outputs, params):
  return equal(graph, *inputs)


def _not_equal(graph, inputs, outputs, params):
  return graph.elementwise('Not', [equal(graph, *inputs)], BOOL)


def _maximum(graph, inputs, outputs, params):
  for x, bound in (inputs, inputs[::-1]):
    if bound.is_known and not bound.stored and bound.held == -np.inf:
      return x
    if bound.is_known and not bound.stored and bound.held == 0 and x.dtype == np.float32:
      return graph.elementwise('Relu', [x], x.dtype)  # which runtimes take into the product before it
  return graph.elementwise('Max', inputs, outputs[0].dtype)


def _integer_pow(graph, inputs, outputs, params):
  (x,) = inputs
  if params['y'] == 2:
    return graph.elementwise('Mul', [x, x], x.dtype)
  return graph.elementwise('Pow', [x, known(np.asarray(params['y'], x.dtype))], x.dtype)


def _round(graph, inputs, outputs, params):
  expect(params['rounding_method'] == jax.lax.RoundingMethod.TO_NEAREST_EVEN, 'away from zero')
  return graph.elementwise('Round', inputs, inputs[0].dtype)


def _select(graph, inputs, outputs, params):
  expect(len(inputs) == 3 and inputs[0].dtype == BOOL, 'of more than two cases')
  which, no, yes = inputs
  if outputs[0].dtype != BOOL:
    return graph.elementwise('Where', [which, yes, no], outputs[0].dtype)
  otherwise = graph.elementwise('Not', [which], BOOL)
  pairs = [graph.elementwise('And', pair, BOOL) for pair in ([which, yes], [otherwise, no])]
  return graph.elementwise('Or', pairs, BOOL)


def _clamp(graph, inputs, outputs, params):
  return clip(graph, *inputs)


def _remainder(graph, inputs, outputs, params):
  return graph.elementwise('Mod', inputs, outputs[0].dtype, fmod=1)


def _same_precision(graph, inputs, outputs, params):
  given = np.finfo(inputs[0].dtype)
  expect((params['exponent_bits'], params['mantissa_bits']) == (given.nexp, given.nmant), 'to fewer bits')
  return inputs[0]


def _reduction(operator: str) -> Rule:
  """A node with the axes left out and one with axes of size 1: what follows reads one of them."""

  def rule(graph, inputs, outputs, params):
    (x,), axes = inputs, params['axes']
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    given = [x, known(np.array(axes, np.int64))]
    return graph.alternatives(
      graph.node(operator, given, outputs[0].shape, keepdims=0), graph.node(operator, given, kept, keepdims=1)
    )

  return rule


def _logical_reduction(operator: str) -> Rule:
  def rule(graph, inputs, outputs, params):
    numbers = graph.cast(inputs[0], np.dtype(np.float32))
    found = _reduction(operator)(graph, [numbers], outputs, params)
    assert isinstance(found, Value)
    return graph.cast(found, BOOL)

  return rule


def _arg(operator: str) -> Rule:
  def rule(graph, inputs, outputs, params):
    (axis,) = params['axes']
    found = graph.node(operator, inputs, outputs[0].shape, np.dtype(np.int64), axis=axis, keepdims=0)
    return graph.cast(found, outputs[0].dtype)

  return rule


def _cumsum(graph, inputs, outputs, params):
  axis = known(np.asarray(params['axis'], np.int64))
  return graph.node('CumSum', [inputs[0], axis], outputs[0].shape, reverse=int(params['reverse']))


def log_softmax(graph: Graph, x: Value) -> Value:
  """JAX's function along the last axis, as one node."""
  return graph.node('LogSoftmax', [x], x.shape, axis=-1)


# Of an operand of a product: axes of the batch, and those that are summed.
Axes = tuple[Sequence[int], Sequence[int]]


def _dot_general(graph, inputs, outputs, params):
  """One `MatMul`. The kernels of heads that read the same input are one matrix `[features, heads · outputs]` in it."""
  (left_sum, right_sum), (left_batch, right_batch) = params['dimension_numbers']
  left, right = (graph.cast(each, outputs[0].dtype) for each in inputs)
  if left.is_known and not right.is_known:  # so that kernels are on the right
    found, rows = _product(graph, right, left, (right_batch, right_sum), (left_batch, left_sum))
    axes, lead, middle = [*range(len(found.shape))], len(left_batch), len(left_batch) + len(rows)
    return graph.transpose(found, [*axes[:lead], *axes[middle:], *axes[lead:middle]])
  return _product(graph, left, right, (left_batch, left_sum), (right_batch, right_sum))[0]


def _product(graph: Graph, left: Value, right: Value, left_axes: Axes, right_axes: Axes) -> tuple[Value, list[Any]]:
  """The product with axes of the batch, of the left and of the right, and the sizes of those of the left."""
  lead = [left.shape[axis] for axis in left_axes[0]]
  left, rows = _matrices(graph, left, *left_axes, sums_last=True)
  right, columns = _matrices(graph, right, *right_axes, sums_last=False)
  if not lead and len(rows) > 1:  # ONNX multiplies any number of axes by one matrix
    left = graph.reshape(left, (*rows, left.shape[-1]))
  found = graph.node('MatMul', [left, right], (*left.shape[:-1], right.shape[-1]))
  return graph.reshape(found, (*lead, *rows, *columns)), rows


def _matrices(graph: Graph, x: Value, batch, sums, sums_last: bool) -> tuple[Value, list[Any]]:
  """An operand as matrices `[batch …, free, sums]` or `[batch …, sums, free]`, and the sizes of its free axes."""
  free = [axis for axis in range(len(x.shape)) if axis not in (*batch, *sums)]
  pair = (free, list(sums)) if sums_last else (list(sums), free)
  sizes = [x.shape[axis] for axis in batch] + [product([x.shape[axis] for axis in axes]) for axes in pair]
  moved = graph.transpose(graph.whole(x), [*batch, *pair[0], *pair[1]])
  return graph.reshape(moved, sizes), [x.shape[axis] for axis in free]


def _inverse(order: Sequence[int]) -> list[int]:
  return [int(axis) for axis in np.argsort(order)]


def _convolution(graph, inputs, outputs, params):
  expect(all(each == 1 for each in params['lhs_dilation']), 'of dilated inputs (transposed convolution)')
  expect(params['batch_group_count'] == 1, 'in groups of the batch')
  expect(all(low >= 0 and high >= 0 for low, high in params['padding']), 'with negative padding')
  numbers = params['dimension_numbers']
  x, kernel = graph.transpose(inputs[0], numbers.lhs_spec), graph.transpose(inputs[1], numbers.rhs_spec)
  found = graph.node(
    'Conv',
    [x, kernel],
    [outputs[0].shape[axis] for axis in numbers.out_spec],
    strides=list(params['window_strides']),
    pads=[low for low, _ in params['padding']] + [high for _, high in params['padding']],
    dilations=list(params['rhs_dilation']),
    group=params['feature_group_count'],
    kernel_shape=list(kernel.shape[2:]),
  )
  return graph.transpose(found, _inverse(numbers.out_spec))


def _pooling(operator: str) -> Rule:
  """Windows over some axes. The others become the two in front that ONNX has, batch and channels."""

  def rule(graph, inputs, outputs, params):
    (x,), sizes, strides, padding = (
      inputs,
      *(params[f'window_{name}'] for name in ('dimensions', 'strides')),
      params['padding'],
    )
    expect(all(each == 1 for each in (*params['base_dilation'], *params['window_dilation'])), 'with dilation')
    plain = [i for i, each in enumerate(zip(sizes, strides, padding)) if each == (1, 1, (0, 0))]
    windows = [i for i in range(len(sizes)) if i not in plain]
    if not windows:
      return x
    order, lead = [*plain, *windows], [x.shape[i] for i in plain]
    front = [product(lead[:-1]), *(lead[-1:] or [1])]
    moved = graph.reshape(graph.transpose(graph.whole(x), order), (*front, *(x.shape[i] for i in windows)))
    found = graph.node(
      operator,
      [moved],
      (*front, *(outputs[0].shape[i] for i in windows)),
      kernel_shape=[sizes[i] for i in windows],
      strides=[strides[i] for i in windows],
      pads=[padding[i][side] for side in (0, 1) for i in windows],
      **({'count_include_pad': 1} if operator == 'AveragePool' else {}),
    )
    if operator == 'AveragePool':
      count = known(np.asarray(product([sizes[i] for i in windows]), x.dtype))
      found = graph.elementwise('Mul', [found, count], x.dtype)
    return graph.transpose(graph.reshape(found, [outputs[0].shape[i] for i in order]), _inverse(order))

  return rule


def _batch(graph, inputs, outputs, params):
  """The size of the batch as a number, as in a mean over it."""
  size = replace(known(np.zeros(1, np.int64)), held=graph.size(params['dim']))
  return graph.cast(graph.reshape(size, ()), outputs[0].dtype)


# By the name of the primitive. Elementwise ones give at each place what they read at that place.
ELEMENTWISE: dict[str, Rule] = {
  **{name: _elementwise(operator) for name, operator in OPERATORS.items()},
  **{name: _logical(operator) for name, operator in LOGICAL.items()},
  'eq': _equal,
  'ne': _not_equal,
  'max': _maximum,
  'integer_pow': _integer_pow,
  'round': _round,
  'select_n': _select,
  'clamp': _clamp,
  'rem': _remainder,
  'reduce_precision': _same_precision,
}
RULES: dict[str, Rule] = {
  **ELEMENTWISE,
  **{f'reduce_{name}': _reduction(f'Reduce{name.title()}') for name in ('sum', 'max', 'min', 'prod')},
  **{f'reduce_{name}': _logical_reduction(f'Reduce{how}') for name, how in (('and', 'Min'), ('or', 'Max'))},
  'argmax': _arg('ArgMax'),
  'argmin': _arg('ArgMin'),
  'cumsum': _cumsum,
  'pad': pad,
  'dot_general': _dot_general,
  'conv_general_dilated': _convolution,
  'reduce_window_max': _pooling('MaxPool'),
  'reduce_window_sum': _pooling('AveragePool'),
  'dim_as_value': _batch,
}
