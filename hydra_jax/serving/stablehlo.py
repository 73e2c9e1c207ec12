"""A predictor as StableHLO: one file that `jax.export.deserialize` reads, without this package."""

from collections.abc import Callable, Sequence

import jax
from jax import export
import numpy as np

from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported_function


def serialize(predictor: Predictor, members: bool, platforms: Sequence[str]) -> bytes:
  """The content of the file, for all platforms and any batch size.

  Args:
    predictor: The predictor.
    members: Whether the predictions of each member are outputs as well.
    platforms: Such as `('cpu', 'cuda', 'tpu')`.
  """
  sizes, dtype = exported_function.input_spec(predictor)
  with jax.enable_x64(True):
    spec = jax.ShapeDtypeStruct((*export.symbolic_shape('batch'), *sizes), dtype)
    f = jax.jit(exported_function.function_of(predictor, members))
    return bytes(export.export(f, platforms=tuple(platforms))(spec).serialize())


def caller(content: bytes) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], str]:
  """What a file computes, as a function of arrays, and what computes it."""
  loaded = export.deserialize(bytearray(content))

  def call(x: np.ndarray) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):  # inputs may be float64
      return {name: np.asarray(values) for name, values in loaded.call(x).items()}

  return call, f'JAX on {jax.default_backend()}'
