"""A function that JAX has traced, as a graph of ONNX operators."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import re
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
import numpy as np

from hydra_jax.serving.onnx_graph import Graph, Value, common, is_concrete, known
from hydra_jax.serving.onnx_rules import ELEMENTWISE, RULES, log_softmax
from hydra_jax.serving.onnx_shapes import SHAPES, CannotTranslate, stack
from hydra_jax.serving.onnx_special import MADE_OF_OTHERS

# Parameters of calls that hold the function that is called, in the order of preference.
CALLED = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')
CALLS = (
  *('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint', 'custom_jvp_call', 'custom_vjp_call'),
  'custom_vjp_call_jaxpr',
)
# Loops are written out. Longer ones would be large files.
LONGEST_LOOP = 1000


def translate(graph: Graph, f: Callable, x: Value) -> dict[str, Value]:
  """Adds to a graph what a function computes.

  Args:
    graph: The graph.
    f: Function of one array that returns a dict of arrays.
    x: What it is applied to.

  Returns:
    Values by name.

  Raises:
    UserError: It is made of something that ONNX is not written for.
  """
  spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
  traced, shapes = jax.make_jaxpr(f, return_shape=True)(spec)
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    values = Translator(graph).closed(traced, [x])
  return dict(zip(jax.tree.leaves({name: name for name in shapes}), values, strict=True))


class Translator:
  """Goes through equations in order. What does not depend on the input is computed at once, by JAX."""

  def __init__(self, graph: Graph):
    """Adds to a graph."""
    self.graph = graph
    self.place: tuple[str, ...] = ()

  def closed(self, jaxpr: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Outputs of a function for inputs."""
    return self.open(jaxpr.jaxpr, [known(const) for const in jaxpr.consts], inputs)

  def open(self, jaxpr: Jaxpr, consts: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
    """The same for a function whose constants are not part of it."""
    values = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: _literal(atom) if isinstance(atom, Literal) else values[atom]
    for equation in jaxpr.eqns:
      with self.at(equation):
        found = self.equation(equation, [read(atom) for atom in equation.invars])
      values |= dict(zip(equation.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]

  @contextlib.contextmanager
  def at(self, equation: Any) -> Iterator[None]:
    """Keeps where an equation comes from."""
    before = self.place
    self.place = (*before, str(equation.source_info.name_stack))
    yield
    self.place = before

  def equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
    """What one equation gives."""
    name, params, outputs = equation.primitive.name, equation.params, [var.aval for var in equation.outvars]
    if name in CALLS:
      if params.get('name') == 'log_softmax' and _is_log_softmax(params['jaxpr'], inputs):
        return [log_softmax(self.graph, inputs[0])]
      return self.call(next(params[key] for key in CALLED if key in params), inputs)
    if name in SHAPES and all(isinstance(x.dtype, np.dtype) for x in inputs):
      return self.by_rule(SHAPES[name], name, inputs, outputs, params)
    if (computed := self.computed(equation, inputs)) is not None:
      return computed
    if name == 'scan' and params['length'] <= LONGEST_LOOP:
      return self.scan(inputs, outputs, params)
    if name in MADE_OF_OTHERS:
      specs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
      return self.closed(jax.make_jaxpr(MADE_OF_OTHERS[name])(*specs), inputs)
    if name in RULES:
      return self.by_rule(RULES[name], name, inputs, outputs, params)
    return self.refuse(name, '', outputs)

  def call(self, jaxpr: ClosedJaxpr | Jaxpr, inputs: list[Value]) -> list[Value]:
    """What a function gives that an equation calls."""
    return self.closed(jaxpr, inputs) if isinstance(jaxpr, ClosedJaxpr) else self.open(jaxpr, [], inputs)

  def by_rule(self, rule: Callable, name: str, inputs: list[Value], outputs: Sequence[Any], params) -> list[Value]:
    """What a rule gives."""
    try:
      found = rule(self.graph, inputs, outputs, params)
    except CannotTranslate as e:
      return self.refuse(name, f' {e}', outputs)
    return found if isinstance(found, list) else [found]

  def computed(self, equation: Any, inputs: list[Value]) -> list[Value] | None:
    """What an equation gives if it reads known arrays only; None where it does not."""
    name, outputs = equation.primitive.name, [var.aval for var in equation.outvars]
    if name == 'dim_as_value' or not all(x.is_known for x in inputs):
      return None
    if all(is_concrete(each.shape) for each in (*inputs, *outputs)):
      found = equation.primitive.bind(*(x.array for x in inputs), **equation.params)
      return [known(_host(array)) for array in (found if equation.primitive.multiple_results else [found])]
    if name not in ELEMENTWISE:
      return None
    stored = common([x.stored for x in inputs])  # of arrays that do not vary along the batch
    found = equation.primitive.bind(*(np.broadcast_to(x.held, stored) for x in inputs), **equation.params)
    return [Value(outputs[0].shape, outputs[0].dtype, _host(found), stored)]

  def scan(self, inputs: list[Value], outputs: Sequence[Any], params) -> list[Value]:
    """A loop, written out. Its body has one axis less of what is read row by row; all else is fixed or carried."""
    body = params['jaxpr']
    rank = lambda x: len(x.shape)
    rows_in = sum(rank(x) > rank(inner) for x, inner in zip(inputs, body.in_avals, strict=True))
    carried = sum(rank(x) == rank(inner) for x, inner in zip(outputs, body.out_avals, strict=True))
    first, last = len(inputs) - rows_in - carried, len(inputs) - rows_in
    fixed, carry, over = inputs[:first], inputs[first:last], inputs[last:]
    steps = range(params['length'])
    rows: list[list[Value]] = []
    for step in reversed(steps) if params['reverse'] else steps:
      found = self.closed(body, [*fixed, *carry, *(self._row(x, step) for x in over)])
      carry, row = found[:carried], found[carried:]
      rows.append(row)
    rows = rows[::-1] if params['reverse'] else rows
    return [*carry, *(self._stacked(each) for each in zip(*rows, strict=True))]

  def _row(self, x: Value, step: int) -> Value:
    cut = self.graph.slice(x, (1, *x.shape[1:]), {0: slice(step, step + 1, 1)})
    return self.graph.reshape(cut, x.shape[1:])

  def _stacked(self, rows: Sequence[Value]) -> Value:
    output = jax.ShapeDtypeStruct((len(rows), *rows[0].shape), rows[0].dtype)
    return stack(self.graph, list(rows), [output], {'axis': 0})

  def refuse(self, name: str, how: str, outputs: Sequence[Any]) -> list[Value]:
    """Values that cannot be computed, which is no error before an output depends on them."""
    made = [f'refused_{len(self.graph.refused) + i}' for i in range(len(outputs))]
    why = f"there is no rule for the primitive '{name}'{how}{self.where()} in ONNX: use other operations, or StableHLO"
    self.graph.refused |= dict.fromkeys(made, why)
    return [Value(output.shape, output.dtype, held, output.shape) for output, held in zip(outputs, made)]

  def where(self) -> str:
    """The stage and the module that the present equation belongs to."""
    names = re.findall(r'[\w.]+(?=[)/]|$)', '/'.join(filter(None, self.place)))
    return f' in {"/".join(names)}' if names else ''


def _is_log_softmax(jaxpr: ClosedJaxpr, inputs: list[Value]) -> bool:
  """Whether a function is JAX's own along the last axis, and no other of that name."""
  if len(inputs) != 1 or inputs[0].is_known:
    return False
  (own,) = jax.make_jaxpr(jax.nn.log_softmax)(jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)).eqns
  return str(own.params['jaxpr']) == str(jaxpr)


def _literal(atom: Any) -> Value:
  return known(np.asarray(atom.val, atom.aval.dtype))


def _host(array: Any) -> Any:
  return np.asarray(array) if isinstance(array.dtype, np.dtype) else array
