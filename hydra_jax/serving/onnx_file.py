"""A predictor as ONNX: a file for ONNX Runtime and for what serves by it, without JAX."""

from collections.abc import Callable, Mapping, Sequence
import json
from types import ModuleType
from typing import Any

import jax
from jax import export
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported_function
from hydra_jax.serving.onnx_affine import folded
from hydra_jax.serving.onnx_graph import Arrays, Graph, Node, Value
from hydra_jax.serving.onnx_translate import translate

# Versions of the operators and of the file. ONNX Runtime reads them since 1.14, of February 2023.
OPSET, IR_VERSION = 18, 8
# A protocol buffer must be smaller than 2 GiB.
LARGEST_FILE = 2**31 - 2**20


def serialize(predictor: Predictor, members: bool, about: Mapping[str, Any]) -> bytes:
  """The content of the file, for any batch size.

  Args:
    predictor: The predictor.
    members: Whether the predictions of each member are outputs as well.
    about: Written as metadata, each value as JSON.

  Raises:
    UserError: See `model_of`.
  """
  f, names = exported_function.function_of(predictor, members), exported_function.output_names(predictor, members)
  return model_of(f, *exported_function.input_spec(predictor), names, about)


def model_of(
  f: Callable[[jax.Array], Mapping[str, jax.Array]],
  sizes: Sequence[int],
  dtype: np.dtype,
  names: Sequence[str],
  about: Mapping[str, Any],
) -> bytes:
  """A function of JAX as the content of an ONNX file.

  Args:
    f: Function of an array `[batch, …]` that returns arrays by name, with the batch first. It is traced with
      `jax.enable_x64`.
    sizes: Shape of an input, without the batch.
    dtype: Of the input.
    names: Of the outputs, in order.
    about: Written as metadata, each value as JSON.

  Raises:
    UserError: `onnx` is missing, or the function cannot be written: it has an operation that no rule is written for,
      computes in bfloat16, or is too large.
  """
  onnx = library()
  with jax.enable_x64(True):
    (batch,) = export.symbolic_shape('batch')
    x = Value((batch, *sizes), dtype, exported_function.INPUT, (batch, *sizes))
    graph = Graph(batch, exported_function.INPUT, x.shape)
    values = translate(graph, f, x)
  for name in names:
    if values[name].shape[:1] != (batch,):
      raise UserError(f'output {name} of shape {list(values[name].shape)} has not the batch as its first axis')
  outputs = [Node('Identity', (graph.name(graph.whole(values[name])),), name, {}) for name in names]
  nodes, arrays = folded(graph, *graph.live(outputs), names)
  _check(nodes, arrays)
  signature = [(exported_function.INPUT, x), *((name, values[name]) for name in names)]
  return _model(onnx, nodes, arrays, [_info(onnx, *each) for each in signature], about)


def library() -> ModuleType:
  """The package `onnx`.

  Raises:
    UserError: It is not installed.
  """
  try:
    import onnx
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
  except ImportError as e:
    raise UserError("ONNX needs a library: pip install 'hydra_jax[onnx]'") from e
  return onnx


def _check(nodes: Sequence[Node], arrays: Arrays) -> None:
  """Raises a `UserError` for what a file cannot hold, or a runtime cannot compute."""
  types = {array.dtype for array in arrays.values()} | {node.attributes.get('to') for node in nodes}
  if 'bfloat16' in map(str, types):
    raise UserError(
      'this network computes in bfloat16, which ONNX Runtime does not: train in float32, or use StableHLO'
    )
  size = sum(array.nbytes for array in arrays.values())
  if size > LARGEST_FILE:
    raise UserError(f'the ONNX file would have {size / 2**30:.1f} GiB, and 2 are the limit: use StableHLO')


def _info(onnx: ModuleType, name: str, value: Value) -> Any:
  """Name, type and shape of an input or output."""
  kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype))
  return onnx.helper.make_tensor_value_info(name, kind, ['batch', *value.shape[1:]])


def _model(
  onnx: ModuleType, nodes: Sequence[Node], arrays: Arrays, signature: list[Any], about: Mapping[str, Any]
) -> bytes:
  make = onnx.helper
  graph = make.make_graph(
    [_node(onnx, node) for node in nodes],
    'hydra_jax',
    signature[:1],
    signature[1:],
    [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
  )
  opsets = [make.make_opsetid('', OPSET)]
  model = make.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name='hydra_jax')
  make.set_model_props(model, {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()})
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _node(onnx: ModuleType, node: Node) -> Any:
  to = onnx.helper.np_dtype_to_tensor_dtype
  attributes = {name: to(each) if isinstance(each, np.dtype) else each for name, each in node.attributes.items()}
  return onnx.helper.make_node(node.operator, node.inputs, [node.output], node.output, **attributes)


def caller(content: bytes) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], str]:
  """What a file computes, as a function of arrays, and what computes it: ONNX Runtime if it is installed."""
  try:
    import onnxruntime
  except ImportError:
    return reference(content)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # errors
  session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return _by_name(session, names), f'onnxruntime {onnxruntime.__version__}'


def reference(content: bytes) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], str]:
  """The same by the evaluator in `onnx`, which is slow."""
  from onnx.reference import ReferenceEvaluator

  onnx = library()
  evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))
  return _by_name(evaluator, evaluator.output_names), f'onnx.reference {onnx.__version__}'


def _by_name(session: Any, names: Sequence[str]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
  return lambda x: dict(zip(names, session.run(None, {exported_function.INPUT: x}), strict=True))
