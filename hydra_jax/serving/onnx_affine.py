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
    leaving = _leaving(nodes, part) | ({node.output for node in part} & set(outputs))
    if len(part) >= AT_LEAST and len(leaving) == 1 and len(graph.shapes[product.inputs[0]]) == 2:
      if found := _as_product(part, arrays, *leaving):
        last = nodes.index(part[-1])
        nodes = [node for node in nodes[:last] if node not in part] + found[0] + nodes[last + 1 :]
        arrays = arrays | found[1]
  wanted = {name for node in nodes for name in node.inputs}
  return nodes, {name: array for name, array in arrays.items() if name in wanted}


def _leaving(nodes: list[Node], part: list[Node]) -> set[str]:
  """Tensors of a part of the graph that others read."""
  made = {node.output for node in part}
  return {name for node in nodes if node not in part for name in node.inputs if name in made}


def _affine_part(nodes: list[Node], product: Node, arrays: Arrays) -> list[Node]:
  """The product and all nodes that are affine in what it gives."""
  part, made = [product], {product.output}
  for node in nodes[nodes.index(product) + 1 :]:
    given = [name in made for name in node.inputs]
    if not any(given) or not all(name in made or name in arrays for name in node.inputs):
      continue
    affine = node.operator in SUMS or node.operator in MOVES
    affine |= node.operator == 'Mul' and not all(given) or node.operator == 'Div' and not given[1]
    if affine:
      part.append(node)
      made.add(node.output)
  return part


def _as_product(part: list[Node], arrays: Arrays, name: str) -> tuple[list[Node], Arrays] | None:
  """Nodes and constants that give the same tensor by one product; None where they would not be smaller.

  An affine function is known from its values for no features, and for each feature alone. All of these are one batch.
  One row more shows which axis the batch is, and that rows do not depend on each other.
  """
  features, kernel = part[0].inputs[0], arrays[part[0].inputs[1]]
  rows = np.concatenate([np.zeros((1, kernel.shape[1])), kernel])
  found, more = (_evaluated(part, each, arrays, name) for each in (rows, np.concatenate([rows, 1 - rows[-1:]])))
  axes = [axis for axis, sizes in enumerate(zip(found.shape, more.shape)) if sizes[0] != sizes[1]]
  if len(axes) != 1 or found.shape[axes[0]] != len(rows) or found.size > rows.size:
    return None
  moved, same = np.moveaxis(found, axes[0], 0), np.moveaxis(more, axes[0], 0)[:-1]
  if not np.allclose(moved, same, rtol=1e-9, atol=1e-9 * float(np.max(np.abs(moved)))):
    return None
  bias, matrix = (np.ascontiguousarray(each, kernel.dtype) for each in (moved[0].ravel(), _flat(moved[1:] - moved[:1])))
  return _nodes(features, name, matrix, bias, moved.shape[1:], axes[0])


def _flat(x: np.ndarray) -> np.ndarray:
  return x.reshape(len(x), -1)


def _evaluated(part: list[Node], rows: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
  """A tensor for given rows of the product, in float64."""
  values = {part[0].output: rows}
  for node in part[1:]:
    read = [values[each] if each in values else arrays[each] for each in node.inputs]
    values[node.output] = ALL[node.operator](*read, **node.attributes)
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
  nodes: list[Node] = []
  arrays: Arrays = {}
  read = features
  for i, (operator, array, attributes) in enumerate(steps):
    constant, written = f'{name}_constant_{i}', name if i == len(steps) - 1 else f'{name}_{i}'
    if array is not None:
      arrays[constant] = array
    nodes.append(Node(operator, (read, *([] if array is None else [constant])), written, attributes))
    read = written
  return nodes, arrays
