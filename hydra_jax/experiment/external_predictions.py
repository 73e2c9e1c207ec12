"""Teachers by their predictions, which any framework can make: read from a file, and checked.

An `.npz` file says by its names what it holds, for the training set and, with `_test`, `_NAME` behind
them, for evaluation sets: `logits` or `probabilities` `[M, N, C]`; in regression `mean` and `variance`, or `mean`
and `std`, `[M, N, D]`, in the units of the targets. For two classes, `[M, N, 1]` is class 1 against class 0.
An `.npy` file is `[M, N, C]` for the training set: probabilities where it can be nothing else, or logits.

Probabilities below `MIN_PROBABILITY`, and logits of −inf, are raised to that probability.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import functools
import hashlib
import itertools
import logging
from pathlib import Path

import numpy as np

from hydra_jax.data import LARGEST, Data, Scaling, files
from hydra_jax.errors import UserError, look_up
from hydra_jax.maths import losses

logger = logging.getLogger(__name__)

# float32 tells probabilities apart no closer than this from 1; a smaller one would weigh more than it says.
MIN_PROBABILITY = float(np.finfo(np.float32).eps)
SUM_WITHIN = 1e-3
AXES = ('members', 'examples', 'classes or targets')
# Other names for what is asked for, found in files of predictions.
SYNONYMS = ('var', 'variances', 'sd', 'stddev', 'sigma', 'scale', 'logvar', 'log_variance', 'log_var')


@dataclass(frozen=True)
class Outputs:
  """Network outputs `[M, N, …]`, and how many values were raised to the least that they may be."""

  values: np.ndarray
  raised: int = 0
  least: str = ''


@dataclass(frozen=True)
class Kind:
  """A row of `KINDS`: arrays that belong together, and `outputs(scaling, *arrays)` as a network gives them."""

  arrays: tuple[str, ...]
  task: str
  outputs: Callable[..., Outputs]


@dataclass(frozen=True)
class PredictionFile:
  """Predictions of a file: arrays by name, what they are, and a hash of the file."""

  path: str
  arrays: Mapping[str, np.ndarray]
  kind: Kind
  key: str

  @property
  def members(self) -> int:
    """Number of members, by the training set."""
    return _shape(self.arrays, self.kind.arrays[0])[0]


def _shape(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
  """Of one array, which need not be read for it."""
  found = arrays.shape(name) if isinstance(arrays, files.NpzArrays) else arrays[name].shape
  return found or (0,)


def _logits(scaling: Scaling, logits: np.ndarray) -> Outputs:
  del scaling
  wide = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
  _refuse(np.isnan(wide) | (np.abs(wide) > LARGEST) & (wide != -np.inf), 'logits')
  if logits.shape[-1] > 1 and _are_probabilities(logits):
    raise UserError('the logits of every row are probabilities, which sum to 1: call them probabilities')
  logits = _both_classes(logits, lambda one: np.zeros_like(one))
  never = logits == -np.inf
  if never.all(axis=-1).any():
    member, row = np.argwhere(never.all(axis=-1))[0]
    raise UserError(f'the logits of member {member} for row {row} are all −inf: leave that member out')
  if never.any():
    top = logits.max(axis=-1, keepdims=True)
    total = top + np.log(np.sum(np.exp(logits - top), axis=-1, keepdims=True))
    logits = np.where(never, total + np.log(MIN_PROBABILITY), logits)
  return Outputs(
    logits.astype(np.float32), int(never.sum()), f'logits of −inf to a probability of {MIN_PROBABILITY:.2g}'
  )


def _are_probabilities(p: np.ndarray) -> bool:
  return bool(p.min() >= 0 and np.abs(p.sum(axis=-1, dtype=np.float64) - 1).max() <= _sum_within(p))


def _sum_within(p: np.ndarray) -> float:
  """How far sums may be from 1: rounding of the dtype is allowed for."""
  return max(SUM_WITHIN, 2 * float(np.finfo(p.dtype).eps))


def _both_classes(one: np.ndarray, other: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
  """Outputs of two classes, where there is one column, that of class 1."""
  wide = one.astype(np.promote_types(one.dtype, np.float32))
  return np.concatenate([other(wide), wide], axis=-1) if one.shape[-1] == 1 else wide


def _probabilities(scaling: Scaling, p: np.ndarray) -> Outputs:
  del scaling
  _refuse(~np.isfinite(p), 'probabilities')
  within = _sum_within(p)
  p = _both_classes(p, lambda one: 1 - one)
  sums = p.sum(axis=-1, dtype=np.float64)
  if p.min() < 0 or np.abs(sums - 1).max() > within:
    member, row = np.unravel_index(np.argmax(np.where((p < 0).any(axis=-1), np.inf, np.abs(sums - 1))), sums.shape)
    raise UserError(
      f'the probabilities of member {member} for row {row} sum to {sums[member, row]:.4g}, the least is '
      f'{p[member, row].min():.4g}: normalise them, or call them logits'
    )
  raised = int((p < MIN_PROBABILITY).sum())
  return Outputs(
    np.log(np.maximum(p, MIN_PROBABILITY)).astype(np.float32), raised, f'probabilities to {MIN_PROBABILITY:.2g}'
  )


def _gaussians(scaling: Scaling, mean: np.ndarray, variance: np.ndarray, what: str = 'variance') -> Outputs:
  _refuse(~np.isfinite(mean), 'means')
  _refuse(~np.isfinite(variance), f'{what}s')
  if mean.shape != variance.shape:
    raise UserError(f'mean has shape {list(mean.shape)} and {what} {list(variance.shape)}: they must be the same')
  if variance.min() <= 0:
    member, row, _ = np.argwhere(variance <= 0)[0]
    raise UserError(f'the {what} of member {member} for row {row} is not positive: leave that member out')
  scaled_mean = (mean.astype(np.float64) - scaling.y_shift) / scaling.y_scale
  if what == 'std':
    scaled = np.square(variance.astype(np.float64) / scaling.y_scale)
  else:
    scaled = variance.astype(np.float64) / scaling.y_scale / scaling.y_scale
  least = 2 * losses.MIN_VARIANCE
  outputs = losses.gaussian_outputs(scaled_mean, scaled)
  _refuse(np.abs(outputs).max(axis=-1, keepdims=True) > LARGEST, f'means or {what}s, in units of the targets,')
  return Outputs(
    outputs.astype(np.float32), int((scaled < least).sum()), f'variances to {least:g} of that of the targets'
  )


KINDS = (
  Kind(('logits',), 'classification', _logits),
  Kind(('probabilities',), 'classification', _probabilities),
  Kind(('mean', 'variance'), 'regression', _gaussians),
  Kind(('mean', 'std'), 'regression', functools.partial(_gaussians, what='std')),
)


def read(path: str) -> PredictionFile:
  """Opens a file of predictions and finds what it holds."""
  arrays = _single(path) if Path(path).suffix == '.npy' else files.arrays_of(path)
  kinds = [kind for kind in KINDS if all(name in arrays for name in kind.arrays)]
  if not kinds:
    raise UserError(_missing(path, arrays))
  if len(kinds) > 1:
    both = ', and '.join(' with '.join(kind.arrays) for kind in kinds)
    raise UserError(f'{path} has several kinds of predictions, {both}: leave all but one out')
  with open(path, 'rb') as file:
    key = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
  return PredictionFile(path, arrays, kinds[0], key)


def _missing(path: str, arrays: Mapping[str, np.ndarray]) -> str:
  """What to say of a file that has no predictions for the training set."""
  if 'mean' in arrays:
    other = [name for name in SYNONYMS if name in arrays]
    called = f" instead of '{other[0]}'" if other else ''
    return f"{path} has 'mean' and no 'variance' or 'std' beside it: add one of them, of the same shape{called}"
  return (
    f'{path} has no predictions for the training set: save them as logits, as probabilities, or as mean and variance'
  )


def _single(path: str) -> Mapping[str, np.ndarray]:
  try:
    array = np.load(path, mmap_mode='r')
  except FileNotFoundError:
    raise UserError(f"there is no file '{path}': give the path of an .npy or .npz file") from None
  except Exception as e:  # NumPy has several for what is damaged
    raise UserError(f'cannot read {path} ({_first_line(e)}): save it with np.save') from e
  if not isinstance(array, np.ndarray):
    raise UserError(f'{path} holds several arrays: name it .npz')
  array = array.astype(array.dtype.newbyteorder('='), copy=False)
  numbers = array.ndim == 3 and array.size and array.dtype.kind == 'f'
  return {'probabilities' if numbers and _are_probabilities(np.asarray(array[:, :1000])) else 'logits': array}


def _first_line(e: Exception) -> str:
  return (str(e).splitlines() or [type(e).__name__])[0][:200]


def covers(file: PredictionFile, split: str) -> bool:
  """Whether a file has predictions for a set."""
  return all(files.name_in_file(part, split) in file.arrays for part in file.kind.arrays)


def check(path: str, data: Data) -> None:
  """Checks all predictions of a file that are used, before anything is trained, and says what was assumed."""
  file = read(path)
  if Path(path).suffix == '.npy':
    other = {'probabilities': 'every row sums to 1', 'logits': 'not every row sums to 1'}
    logger.info(f'{path} is taken for {file.kind.arrays[0]}: {other[file.kind.arrays[0]]}')
  if file.kind.task == data.task == 'classification' and _shape(file.arrays, file.kind.arrays[0])[-1] == 1:
    logger.info(f'{path}: one column is taken for class 1 against class 0')
  if data.validation is not None:
    logger.info(
      f'{path}: {data.validation.examples:,} of its training examples are the validation part; where members have '
      'learnt from these, the calibrated NLL of the ensemble says nothing: set config.validation to 0'
    )
  sets = {'train': data.given_examples}
  sets |= {name: len(e.load().x) for name, e in data.evaluations.items() if covers(file, name)}
  for name, examples in sets.items():
    found = _outputs(file, name, examples, data.task, data.outputs, data.scaling)
    if found.raised:
      logger.warning(
        f"{path}, set '{name}': {found.raised:,} of {found.values.size:,} values are raised, {found.least}"
      )


def outputs(file: PredictionFile, split: str, examples: int, task: str, count: int, scaling: Scaling) -> np.ndarray:
  """Predictions for a set as network outputs `[M, N, C]`, checked.

  Args:
    file: From `read`.
    split: `train`, or the name of an evaluation set; one that it covers.
    examples: N that it must be.
    task: That it must be of.
    count: Number of classes or targets that it must have.
    scaling: Of the targets.
  """
  return _outputs(file, split, examples, task, count, scaling).values


def _outputs(file: PredictionFile, split: str, examples: int, task: str, count: int, scaling: Scaling) -> Outputs:
  names = [files.name_in_file(part, split) for part in file.kind.arrays]
  if file.kind.task != task:
    raise UserError(f'{file.path} holds {" and ".join(names)}, for {file.kind.task}, but the data are for {task}')
  found = [look_up(file.arrays, name, f'array of {file.path}') for name in names]
  if task == 'regression':
    found = [array[..., None] if array.ndim == 2 else array for array in found]
  for name, array in zip(names, found):
    _check(f"{file.path}: '{name}'", array, (file.members, examples, count), split, task)
  try:
    return file.kind.outputs(scaling, *found)
  except UserError as e:
    raise UserError(f"{file.path}, set '{split}': {e}") from e


def _check(what: str, array: np.ndarray, expected: tuple[int, int, int], split: str, task: str) -> None:
  """Refuses what is no numbers of the right shape."""
  if array.dtype.kind in 'biu':
    shares = 'the share of the votes for each class' if task == 'classification' else 'them'
    raise UserError(f'{what} holds whole numbers, {array.dtype}: save {shares} as floats, for each member')
  if array.ndim != 3 or array.dtype.kind != 'f':
    raise UserError(f'{what} is {array.dtype} {list(array.shape)}, and must be floats [{", ".join(AXES)}]')
  _, examples, count = expected
  binary = task == 'classification' and count == 2 and array.shape[-1] == 1
  counts = (count, 1) if task == 'classification' and count == 2 else (count,)
  if array.shape[1] != examples or array.shape[2] not in counts:
    for axes in itertools.permutations(range(3)):
      if array.shape[axes[1]] == examples and array.shape[axes[2]] in counts:
        order = ', '.join(AXES[axes.index(axis)] for axis in range(3))
        raise UserError(f'{what} is {list(array.shape)} and looks like [{order}]: transpose it to [{", ".join(AXES)}]')
  for axis, found, wanted in zip(AXES, array.shape, expected):
    if (found != wanted and not (axis == AXES[2] and binary)) or not found:
      raise UserError(f"{what} has {found:,} {axis}, and the set '{split}' has {wanted:,}: they must match")


def _refuse(bad: np.ndarray, what: str) -> None:
  if bad.any():
    member, row, _ = np.argwhere(bad)[0]
    raise UserError(f'{bad.sum():,} {what} are not finite, first for member {member}, row {row}: leave that member out')
