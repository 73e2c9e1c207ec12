"""Data of the user's own, in one `.npz` file.

`x [N, …]` and `y [N]` are to train on, `x_test` and `y_test` to evaluate on, and `x_NAME` is an
out-of-domain set. Whole numbers in `y` are classes 0, 1, …; others are regression targets `[N]` or `[N, D]`.
The file may hold predictions for them as well, see `given`.
"""

from collections.abc import Mapping
import functools
from pathlib import Path

import numpy as np

from hydra_jax.errors import UserError, nearest

Arrays = tuple[np.ndarray, np.ndarray]


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int) -> Mapping[str, np.ndarray]:
  del changed  # only there so that a file that has changed is read again
  try:
    with np.load(path) as arrays:
      return dict(arrays)
  except Exception as e:  # zipfile, zlib and NumPy each have their own
    reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
    raise UserError(f'cannot read {path} ({reason}): save it with np.savez(path, x=…, y=…)') from e


def arrays_of(path: str) -> Mapping[str, np.ndarray]:
  """The arrays of an `.npz` file by name."""
  if not Path(path).is_file():
    raise UserError(f"there is no file '{path}': give the path of an .npz file")
  return _read(path, Path(path).stat().st_mtime_ns)


def name_in_file(part: str, split: str) -> str:
  """What the array `part` of a set is called: `x` for the one to train on, `x_test` for `test`, …"""
  return part if split == 'train' else f'{part}_{split}'


def sets(path: str) -> list[str]:
  """Names of the sets in a file besides the one to train on."""
  return [name.removeprefix('x_') for name in arrays_of(path) if name.startswith('x_')]


def load(path: str, split: str) -> Arrays:
  """Inputs `[N, …]` and labels of a set in a file; without labels, inputs twice."""
  arrays = arrays_of(path)
  x, y = (name_in_file(part, split) for part in ('x', 'y'))
  if x not in arrays:
    sets = [name for name in arrays if name == 'x' or name.startswith('x_')]
    raise UserError(f"{path} has no array '{x}': {nearest(x, sets or arrays)}")
  if y not in arrays and split in ('train', 'test'):
    raise UserError(f"{path} has no array '{y}', the labels of '{x}': add them")
  inputs = arrays[x]
  if inputs.ndim < 2:
    raise UserError(f"{path}: '{x}' has shape {list(inputs.shape)}, and must be [examples, features] or images")
  return inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32), _labels(arrays.get(y, inputs))


def _labels(y: np.ndarray) -> np.ndarray:
  if np.issubdtype(y.dtype, np.integer):
    return y.astype(np.int32)
  return y.astype(np.float32).reshape(len(y), -1)


def classes(path: str) -> int | None:
  """Number of classes of a file, by its predictions or else its labels; None in regression."""
  arrays = arrays_of(path)
  labels = load(path, 'train')[1]
  if not np.issubdtype(labels.dtype, np.integer):
    return None
  if labels.min() < 0:
    raise UserError(f"{path}: 'y' has the class {labels.min()}: count classes from 0")
  predictions = next((arrays[k] for k in ('logits', 'probabilities') if k in arrays), None)
  return (
    int(max(labels.max(), arrays.get('y_test', labels).max())) + 1 if predictions is None else predictions.shape[-1]
  )
