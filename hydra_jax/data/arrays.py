"""Splits as arrays, and how inputs and targets are scaled.

Images stay uint8, on disk and on the device; scaling is part of the compiled step. All other inputs, and targets,
are standardised on the host in float64 (`standardised`, `scale_targets`): rounded to float32 before that, values that
vary little around a large one would lose what they vary by.
"""

from dataclasses import dataclass
import hashlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A feature is constant if it varies by no more than this share of its size, or two steps of its dtype.
ROUNDING = 1e-12
# Least scale of a feature that is 0 or 1. A rare category would else lie hundreds of deviations from all others.
LEAST_FLAG_SCALE = 0.1
ROWS_AT_ONCE = 2**16


class Scaling(NamedTuple):
  """Networks see `(x − x_shift) / x_scale`, and targets likewise, `[features]` and `[targets]` float64."""

  x_shift: np.ndarray
  x_scale: np.ndarray
  y_shift: np.ndarray
  y_scale: np.ndarray


# Mean and standard deviation of ImageNet's colours, as everybody has them.
IMAGENET = Scaling(
  255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225]), np.zeros(1), np.ones(1)
)


@dataclass(frozen=True)
class Split:
  """Examples `x [N, …]` as stored and labels `y`, `[N]` int32 or `[N, D]` float64, in the units of the targets.

  To train on, a `photos.Stream` may stand in its place: it has all that is below x and y.
  """

  x: np.ndarray
  y: np.ndarray

  @property
  def varies(self) -> bool:
    """Whether an example looks different each time it is shown."""
    return False

  @property
  def examples(self) -> int:
    """How many there are."""
    return len(self.x)

  @property
  def example(self) -> np.ndarray:
    """A few inputs as stored, `[≤ 8, …]`."""
    return self.x[:8]

  @property
  def fingerprint(self) -> str:
    """Hash of all there is."""
    return fingerprint(self.x, self.y)

  def arrays(self, scaling: Scaling) -> dict[str, np.ndarray]:
    """Inputs and targets as they go to the device."""
    return {'x': standardised(scaling, self.x), 'y': scale_targets(scaling, self.y)}


def standardise(train: Split, classification: bool) -> Scaling:
  """Mean and standard deviation of each feature (last axis), and of each target in regression."""
  y_moments = (np.zeros(1), np.ones(1)) if classification else moments(train.y)
  return Scaling(*moments(train.x), *y_moments)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation along all axes but the last, float64; the deviation is 1 where values are constant.

  They are computed in units of the size of each feature, from deviations from its first value, so that neither large
  nor small numbers lose digits. The deviation of a feature that is 0 or 1 is at least `LEAST_FLAG_SCALE`.
  """
  flat = values.reshape(-1, values.shape[-1])
  pieces = [flat[start : start + ROWS_AT_ONCE] for start in range(0, len(flat), ROWS_AT_ONCE)]
  size = np.maximum(np.abs(flat.min(axis=0).astype(np.float64)), np.abs(flat.max(axis=0).astype(np.float64)))
  unit = np.ldexp(1.0, np.frexp(size)[1])  # a power of two, by which division is exact
  first = flat[0] / unit
  mean = sum((piece / unit - first).sum(axis=0) for piece in pieces) / len(flat)
  variance = sum(np.square(piece / unit - first - mean).sum(axis=0) for piece in pieces) / len(flat)
  deviation = np.sqrt(variance) * unit
  flags = np.all([((piece == 0) | (piece == 1)).all(axis=0) for piece in pieces], axis=0)
  deviation = np.where(flags, np.maximum(deviation, LEAST_FLAG_SCALE), deviation)
  return (first + mean) * unit, np.where(constant(values), 1, deviation)


def constant(values: np.ndarray) -> np.ndarray:
  """Which features (last axis) are the same everywhere, but for rounding."""
  flat = values.reshape(-1, values.shape[-1])
  low, high = (f(flat, axis=0).astype(np.float64) for f in (np.min, np.max))
  step = float(np.finfo(values.dtype).eps) if values.dtype.kind == 'f' else 0.0
  return high - low <= max(ROUNDING, 2 * step) * np.maximum(np.abs(low), np.abs(high))


def standardised(scaling: Scaling, x: np.ndarray) -> np.ndarray:
  """Stored inputs as they go to the device: images of bytes as they are, all else standardised, float32."""
  if x.dtype == np.uint8:
    return x
  out = aligned(x.shape)
  for start in range(0, len(x), ROWS_AT_ONCE):
    rows = slice(start, start + ROWS_AT_ONCE)
    out[rows] = (x[rows] - scaling.x_shift.astype(np.float64)) / scaling.x_scale
  return out


# Bytes. XLA's CPU backend reads an array of NumPy in place where its address is a multiple of this, and else a copy.
ALIGNMENT = 64


def aligned(shape: tuple[int, ...]) -> np.ndarray:
  """An empty float32 array that `jax.device_put` need not copy on CPU. Training sets are the largest arrays there are.

  Example:
    >>> aligned((3, 2)).ctypes.data % ALIGNMENT
    0
  """
  size = 4 * math.prod(shape)
  memory = np.empty(size + ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % ALIGNMENT
  return memory[start : start + size].view(np.float32).reshape(shape)


# Rows that a network for vectors is made with: `nets.tabular` takes the quantiles of columns from them.
ROWS_TO_START_FROM = 1000


def starting_rows(x: np.ndarray) -> np.ndarray:
  """Inputs that a network is made with, evenly from all rows, `[1000, D]`; of images two, which only show the shape.

  Their number is fixed, so that one program makes the networks for data of any length.
  """
  count = ROWS_TO_START_FROM if x.ndim == 2 else 2
  return x[np.linspace(0, len(x) - 1, count).round().astype(int)]


def scale_inputs(scaling: Scaling, x: jax.Array) -> jax.Array:
  """Inputs on the device as the network reads them: bytes are scaled here, all else was on the host."""
  if x.dtype != jnp.uint8:
    return x
  lead = (1,) * (x.ndim - 1)
  shift, scale = (jnp.reshape(jnp.asarray(a, jnp.float32), (*lead, -1)) for a in (scaling.x_shift, scaling.x_scale))
  return (x.astype(jnp.float32) - shift) / scale


def scale_targets(scaling: Scaling, y: np.ndarray) -> np.ndarray:
  """Targets as the network learns them, float32; class labels as they are."""
  if y.dtype.kind in 'iu':
    return y
  return ((y.astype(np.float64) - scaling.y_shift) / scaling.y_scale).astype(np.float32)


def fingerprint(*arrays: np.ndarray) -> str:
  """SHA-256 of shapes, dtypes and contents."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:16]
