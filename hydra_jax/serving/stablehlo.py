"""A predictor as StableHLO: one file that `jax.export.deserialize` reads, without this package."""

from collections.abc import Callable, Sequence

import jax
from jax import export
import numpy as np

from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported

PLATFORMS = ('cpu', 'cuda', 'tpu', 'rocm')


def serialize(predictor: Predictor, members: bool, platforms: Sequence[str]) -> bytes:
  """The content of the file, for all platforms and any batch size."""
  with jax.enable_x64(True):
    shape = (*export.symbolic_shape('batch'), *predictor.shape)
    spec = jax.ShapeDtypeStruct(shape, exported.input_dtype(predictor))
    f = jax.jit(exported.function_of(predictor, members))
    return bytes(export.export(f, platforms=tuple(platforms))(spec).serialize())


def caller(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
  """What a file computes, as a function of arrays."""
  loaded = export.deserialize(bytearray(content))

  def call(x):
    with jax.enable_x64(True):
      return {name: np.asarray(values) for name, values in loaded.call(x).items()}

  return call
