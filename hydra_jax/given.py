"""Teachers by their predictions, which any framework can make: read from a file, and checked.

An `.npz` file says by its names what it holds, for the training set and, with `_test`, `_NAME` behind
them, for evaluation sets: `logits` or `probabilities` `[M, N, C]`; in regression `mean` and `variance`
`[M, N, D]`, in the units of the targets. An `.npy` file is `[M, N, C]` for the training set: probabilities
where it can be nothing else, or logits.
"""

from collections.abc import Callable, Mapping
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hydra_jax import losses
from hydra_jax.data import Scaling, files
from hydra_jax.errors import UserError

# float32 tells probabilities apart no closer than this from 1; a smaller one would weigh more than it says.
MIN_PROBABILITY = float(np.finfo(np.float32).eps)
SUM_WITHIN = 1e-3


class Kind(NamedTuple):
  """A row of `KINDS`: arrays that belong together, and `outputs(scaling, *arrays)` as a network gives them."""

  arrays: tuple[str, ...]
  task: str
  outputs: Callable[..., np.ndarray]


class Given(NamedTuple):
  """Predictions of a file: arrays by name, what they are, and a hash of the file."""

  path: str
  arrays: Mapping[str, np.ndarray]
  kind: Kind
  key: str

  @property
  def members(self) -> int:
    """Number of members, by the training set."""
    return len(self.arrays[self.kind.arrays[0]])


def _logits(scaling: Scaling, logits: np.ndarray) -> np.ndarray:
  del scaling
  return logits.astype(np.float32, copy=False)


def _probabilities(scaling: Scaling, p: np.ndarray) -> np.ndarray:
  del scaling
  sums = p.sum(axis=-1, dtype=np.float64)
  if p.min() < 0 or np.abs(sums - 1).max() > SUM_WITHIN:
    member, row = np.unravel_index(np.argmax(np.where((p < 0).any(axis=-1), np.inf, np.abs(sums - 1))), sums.shape)
    raise UserError(
      f'the probabilities of member {member} for row {row} sum to {sums[member, row]:.4g}, the least is '
      f'{p[member, row].min():.4g}: normalise them, or call them logits'
    )
  return np.log(np.maximum(p, MIN_PROBABILITY)).astype(np.float32)


def _gaussians(scaling: Scaling, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
  if mean.shape != variance.shape:
    raise UserError(f'mean has shape {list(mean.shape)} and variance {list(variance.shape)}: they must be the same')
  if variance.min() <= 0:
    member, row, _ = np.argwhere(variance <= 0)[0]
    raise UserError(f'the variance of member {member} for row {row} is not positive: leave that member out')
  scaled = (mean - scaling.y_shift) / scaling.y_scale, variance / np.square(scaling.y_scale)
  return losses.gaussian_outputs(*scaled).astype(np.float32)


KINDS = (
  Kind(('logits',), 'classification', _logits),
  Kind(('probabilities',), 'classification', _probabilities),
  Kind(('mean', 'variance'), 'regression', _gaussians),
)


def read(path: str) -> Given:
  """Opens a file of predictions and finds what it holds."""
  arrays = _single(path) if Path(path).suffix == '.npy' else files.arrays_of(path)
  kind = next((kind for kind in KINDS if all(name in arrays for name in kind.arrays)), None)
  if kind is None:
    raise UserError(
      f'{path} has no predictions for the training set: save them as logits, as probabilities, or as mean and variance'
    )
  with open(path, 'rb') as file:
    key = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
  return Given(path, arrays, kind, key)


def _single(path: str) -> Mapping[str, np.ndarray]:
  try:
    array = np.load(path, mmap_mode='r')
  except FileNotFoundError:
    raise UserError(f"there is no file '{path}': give the path of an .npy or .npz file") from None
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f'cannot read {path} ({str(e).splitlines()[0][:200]}): save it with np.save') from e
  sample = np.asarray(array[:, :1000]) if array.ndim == 3 and array.size else np.full((1, 1, 1), -1.0)
  within = sample.min() >= 0 and np.abs(sample.sum(axis=-1) - 1).max() < SUM_WITHIN
  return {'probabilities' if within else 'logits': array}


def covers(given: Given, split: str) -> bool:
  """Whether a file has predictions for a set."""
  return all(files.name_in_file(part, split) in given.arrays for part in given.kind.arrays)


def outputs(given: Given, split: str, examples: int, task: str, count: int, scaling: Scaling) -> np.ndarray:
  """Predictions for a set as network outputs `[M, N, C]`, checked.

  Args:
    given: From `read`.
    split: `train`, or the name of an evaluation set; one that it covers.
    examples: N that it must be.
    task: That it must be of.
    count: Number of classes or targets that it must have.
    scaling: Of the targets.
  """
  names = [files.name_in_file(part, split) for part in given.kind.arrays]
  if given.kind.task != task:
    raise UserError(f'{given.path} holds {" and ".join(names)}, for {given.kind.task}, but the data are for {task}')
  found = [np.atleast_3d(given.arrays[name]) if task == 'regression' else given.arrays[name] for name in names]
  for name, array in zip(names, found):
    _check(f"{given.path}: '{name}'", array, (given.members, examples, count), split)
  try:
    return given.kind.outputs(scaling, *found)
  except UserError as e:
    raise UserError(f"{given.path}, set '{split}': {e}") from e


def _check(what: str, array: np.ndarray, expected: tuple[int, int, int], split: str) -> None:
  axes = ('members', 'examples', 'classes or targets')
  if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
    raise UserError(f'{what} is {array.dtype} {list(array.shape)}, and must be floats [{", ".join(axes)}]')
  for axis, found, wanted in zip(axes, array.shape, expected):
    if found != wanted or not found:
      raise UserError(f"{what} has {found:,} {axis}, and the set '{split}' has {wanted:,}: they must match")
  bad = ~np.isfinite(array)
  if bad.any():
    member, row, _ = np.argwhere(bad)[0]
    raise UserError(f'{what} has {bad.sum():,} values that are not finite, first for member {member}, row {row}')
