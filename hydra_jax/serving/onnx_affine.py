"""Fewer nodes: what follows a matrix product and is affine in it becomes part of its matrix.

The spread of dense heads is such: heads are centred, averaged and moved apart. At batch 1 each node takes as long as a
small product.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hydra_jax.serving.onnx_graph import Arrays, Graph, Node, is_one

# Operators by NumPy, which are affine if what they read is affine or known: of a product only one factor is not known.
SUMS: dict[str, Callable] = {'Add': np.add, 'Sub': np.subtract}
PRODUCTS: dict[str, Callable] = {'Mul': np.multiply, 'Div': np.divide}
MOVES: dict[str, Callable] = {
  'Reshape': lambda x, shape, **_: np.reshape(x, shape),
  'Transpose': lambda x, perm: np.transpose(x, perm),
  'ReduceSum': lambda x, axes, keepdims: np.sum(x, tuple(axes), keepdims=bool(keepdims)),
  'Neg': np.negative,
}
ALL = SUMS | PRODUCTS | MOVES
# Bias and product are two nodes anyway.
AT_LEAST = 3


def folded(graph: Graph, nodes: list[Node], arrays: Arrays, outputs: Sequence[str]) -> tuple[list[Node], Arrays]:
  """The nodes and constants, with affine parts of the graph as one product each.

  That is done where one tensor leaves the part, and where it is no larger than what the product gave before.
  """
  for product in [node for node in nodes if node.operator == 'MatMul' and node.inputs[1] in arrays]:
    part = _affine_part(nodes, product, arrays)
    made = {name for node in part for name in node.outputs}
    leaving = {name for node in nodes if node not in part for name in node.inputs if name in made} | (made & set(outputs))
    if len(part) < AT_LEAST or len(leaving) > 1 or len(graph.shapes[product.inputs[0]]) != 2:
      continue
    (name,) = leaving
    if found := _as_product(product, part, arrays, name):
      last = max(nodes.index(node) for node in part)
      nodes = [node for node in nodes[:last] if node not in part] + found[0] + nodes[last + 1 :]
      arrays = arrays | found[1]
  wanted = {name for node in nodes for name in node.inputs}
  return nodes, {name: array for name, array in arrays.items() if name in wanted}


def _affine_part(nodes: list[Node], product: Node, arrays: Arrays) -> list[Node]:
  """The product and all nodes that are affine in what it gives."""
  part, made = [product], set(product.outputs)
  for node in nodes[nodes.index(product) + 1 :]:
    given = [name in made for name in node.inputs]
    if not any(given) or not all(name in made or name in arrays for name in node.inputs):
      continue
    affine = node.operator in SUMS or node.operator in MOVES
    affine |= node.operator == 'Mul' and not all(given) or node.operator == 'Div' and not given[1]
    if affine:
      part.append(node)
      made |= set(node.outputs)
  return part


def _as_product(product: Node, part: list[Node], arrays: Arrays, name: str) -> tuple[list[Node], Arrays] | None:
  """Nodes and constants that give the same tensor by one product; None where they would not be smaller.

  An affine function is known from its values for no features, and for each feature alone. All of these are one batch.
  One row more shows which axis the batch is.
  """
  kernel = arrays[product.inputs[1]]
  rows = np.concatenate([np.zeros((1, kernel.shape[1])), kernel])
  found, more = (_evaluated(part, each, arrays, name) for each in (rows, np.concatenate([rows, rows[:1]])))
  axes = [axis for axis, sizes in enumerate(zip(found.shape, more.shape)) if sizes[0] != sizes[1]]
  if len(axes) != 1 or found.shape[axes[0]] != len(rows) or found.size > rows.size:
    return None
  moved = np.moveaxis(found, axes[0], 0)
  bias, matrix = (np.ascontiguousarray(each, kernel.dtype) for each in (moved[0].ravel(), _flat(moved[1:] - moved[:1])))
  return _nodes(product.inputs[0], name, matrix, bias, moved.shape[1:], axes[0])


def _flat(x: np.ndarray) -> np.ndarray:
  return x.reshape(len(x), -1)


def _evaluated(part: list[Node], rows: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
  """A tensor for given rows of the product, in float64."""
  values = {part[0].outputs[0]: rows}
  for node in part[1:]:
    read = [values[each] if each in values else arrays[each] for each in node.inputs]
    values[node.outputs[0]] = ALL[node.operator](*read, **node.attributes)
  return values[name]


def _nodes(features: str, name: str, matrix, bias, rest: Sequence[int], axis: int) -> tuple[list[Node], Arrays]:
  """A product, its bias, and what gives the result its shape, `rest` with the batch at `axis`."""
  order = [*range(1, axis + 1), 0, *range(axis + 1, len(rest) + 1)]
  steps: list[tuple[str, np.ndarray | None, dict]] = [('MatMul', matrix, {}), ('Add', bias, {})]
  if len(rest) != 1:
    steps.append(('Reshape', np.array([-1, *rest], np.int64), {}))
  if axis:
    moves = any(not is_one(size) for size in rest[:axis])
    shape = np.array([*rest[:axis], -1, *rest[axis:]], np.int64)
    steps.append(('Transpose', None, {'perm': order}) if moves else ('Reshape', shape, {}))
  nodes, arrays, read = [], {}, features
  for i, (operator, array, attributes) in enumerate(steps):
    constant = [] if array is None else [f'{name}_constant_{i}']
    arrays |= dict.fromkeys(constant, array)
    written = name if i == len(steps) - 1 else f'{name}_{i}'
    nodes.append(Node(operator, (read, *constant), (written,), attributes))
    read = written
  return nodes, arrays
