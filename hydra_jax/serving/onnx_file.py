"""A predictor as ONNX: a file for ONNX Runtime and what serves by it, without JAX."""

from collections.abc import Callable, Mapping
import json
import logging
from typing import Any

import jax
from jax import export
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported
from hydra_jax.serving.onnx_affine import folded
from hydra_jax.serving.onnx_graph import Graph, Node, Value, nbytes
from hydra_jax.serving.onnx_translate import translate

logger = logging.getLogger(__name__)

# Versions of operators and of the file. ONNX Runtime reads them since 1.14, of February 2023.
OPSET, IR_VERSION = 18, 8
# A protocol buffer must be smaller than 2 GiB.
LARGEST_FILE = 2**31 - 2**20


def serialize(predictor: Predictor, members: bool, about: Mapping[str, Any]) -> bytes:
  """The content of the file, for any batch size.

  Args:
    predictor: The predictor.
    members: Whether the predictions of each member are outputs as well.
    about: What is written as metadata, each value as JSON.

  Raises:
    UserError: `onnx` is missing, the network is made of something that ONNX is not written for, or it is too large.
  """
  onnx = _library()
  with jax.enable_x64(True):
    (batch,) = export.symbolic_shape('batch')
    shape, dtype = (batch, *predictor.shape), exported.input_dtype(predictor)
    graph = Graph(batch, exported.INPUT, shape)
    values = translate(graph, exported.function_of(predictor, members), Value(shape, dtype, exported.INPUT, shape))
  for name, value in values.items():
    graph.nodes.append(_identity(graph, value, name))
  nodes, arrays = graph.live(list(values))
  nodes, arrays = folded(graph, nodes, arrays, list(values))
  if nbytes(arrays) > LARGEST_FILE:
    raise UserError(f'the ONNX file would have {nbytes(arrays) / 2**30:.1f} GiB, and 2 are the limit: use StableHLO')
  types = {array.dtype for array in arrays.values()}
  if any(dtype.name == 'bfloat16' for dtype in types):
    raise UserError("this network computes in bfloat16, which ONNX Runtime does not: train it in float32, or use StableHLO")
  make, to_type = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
  info = lambda name, dtype, shape: make.make_tensor_value_info(name, to_type(np.dtype(dtype)), ['batch', *shape[1:]])
  attributes = lambda given: {name: to_type(each) if name == 'to' else each for name, each in given.items()}
  model = make.make_model(
    make.make_graph(
      [make.make_node(n.operator, n.inputs, n.outputs, n.outputs[0], **attributes(n.attributes)) for n in nodes],
      'hydra_jax',
      [info(exported.INPUT, dtype, shape)],
      [info(name, value.dtype, value.shape) for name, value in values.items()],
      [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    ),
    opset_imports=[make.make_opsetid('', OPSET)],
    ir_version=IR_VERSION,
    producer_name='hydra_jax',
    producer_version=about['versions']['hydra_jax'],
  )
  make.set_model_props(model, {name: each if isinstance(each, str) else json.dumps(each) for name, each in about.items()})
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()


def _identity(graph: Graph, value: Value, name: str) -> Node:
  return Node('Identity', (graph.name(graph.whole(value)),), (name,), {})


def _library():
  try:
    import onnx
    import onnx.checker
    import onnx.helper
    import onnx.numpy_helper
  except ImportError as e:
    raise UserError("ONNX needs a library: pip install 'hydra_jax[onnx]'") from e
  return onnx


def caller(content: bytes) -> tuple[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
  """What a file computes, as a function of arrays, and the name of what computes it."""
  try:
    import onnxruntime
  except ImportError:
    import onnx
    from onnx.reference import ReferenceEvaluator
    session, by = ReferenceEvaluator(onnx.load_model_from_string(content)), f'onnx.reference {onnx.__version__}'
    names = session.output_names
  else:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    by, names = f'onnxruntime {onnxruntime.__version__}', [output.name for output in session.get_outputs()]
  return by, lambda x: dict(zip(names, session.run(None, {exported.INPUT: x}), strict=True))
