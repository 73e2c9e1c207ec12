"""Data of the user's own: arrays by name in an `.npz` file, or from a function such as `my_data.py:load`.

`x [N, …]` and `y [N]` are to train on, `x_test` and `y_test` to evaluate on, and `x_NAME` is an
out-of-domain set. What `y` means is decided in `labels`. A file may hold predictions as well, see
`experiment.external_predictions`.

An array of a file is read when it is asked for, and no other is. Nothing is unpickled. A function takes no arguments
and returns arrays by name, or sources of examples by split: objects with a length and examples by number, as grain and
PyTorch have them, of pairs `(x, y)` or of dicts with `x` and `y`.
"""

from collections.abc import Iterator, Mapping
import contextlib
import functools
import logging
import math
from pathlib import Path
from typing import Any
import weakref
import zipfile

import numpy as np

from hydra_jax import user_files
from hydra_jax.data import labels
from hydra_jax.errors import UserError, nearest

logger = logging.getLogger(__name__)

NPY = b'\x93NUMPY'
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Predictions that a file may hold beside the data, and the task that they are for.
PREDICTIONS = {'logits': 'classification', 'probabilities': 'classification', 'mean': 'regression'}

Stamp = tuple[int, int, int]


class FunctionArrays(dict[str, np.ndarray]):
  """The arrays that a function of the user's own has returned, by name."""

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of one array."""
    return self[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Dtype of one array."""
    return self[name].dtype


class NpzArrays(Mapping[str, np.ndarray]):
  """The arrays of an `.npz` file by name. `shape` and `dtype` need no more than the header of an array."""

  def __init__(self, path: str, stamp: Stamp):
    self.path, self.stamp = path, stamp
    with _reading(path), zipfile.ZipFile(path) as archive:
      self._names = [name.removesuffix('.npy') for name in archive.namelist() if name.endswith('.npy')]
    if not self._names:
      raise UserError(f'{path} holds no arrays: save it with np.savez(path, x=…, y=…)')

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._names:
      raise KeyError(name)
    return _array(self.path, self.stamp, name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of one array, of which only the header is read."""
    return self._header(name)[0]

  def dtype(self, name: str) -> np.dtype:
    """Dtype of one array, of which only the header is read."""
    return self._header(name)[1]

  def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
    with _reading(self.path, name), zipfile.ZipFile(self.path) as archive:
      return _header(self.path, archive, name)


@contextlib.contextmanager
def _reading(path: str, name: str = '') -> Iterator[None]:
  """Turns what is wrong with a file into a `UserError`: zipfile, zlib and NumPy each have their own exceptions."""
  try:
    yield
  except UserError:
    raise
  except MemoryError as e:
    raise UserError(f"{path}: '{name}' does not fit in memory: save fewer examples") from e
  except Exception as e:
    reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
    what = f"'{name}' in {path}" if name else path
    raise UserError(f'cannot read {what} ({reason}): save it with np.savez(path, x=…, y=…)') from e


def _header(path: str, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype]:
  """Shape and dtype of an array, after a check that its header claims what is there, as memory is taken by it."""
  info = archive.getinfo(f'{name}.npy')
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
      raise UserError(f"{path}: '{name}' is in version {version} of the .npy format: save it with np.savez")
    shape, _, dtype = HEADERS[version](file)
    begin = file.tell()
  if dtype.hasobject:
    raise UserError(f"{path}: '{name}' holds Python objects, which are never unpickled: save numbers, or names as str")
  if begin + math.prod(shape) * dtype.itemsize != info.file_size:
    raise UserError(
      f"{path}: '{name}' is damaged, {list(shape)} of {dtype} are not {info.file_size - begin:,} bytes: save it again"
    )
  return shape, dtype


# Arrays that are in use. One that is divided into parts, and needed no more, takes no memory beside them.
_in_use: weakref.WeakValueDictionary[tuple[str, Stamp, str], np.ndarray] = weakref.WeakValueDictionary()


def _array(path: str, stamp: Stamp, name: str) -> np.ndarray:
  key = path, stamp, name  # with the stamp, so that a file that has changed is read again
  array = _in_use.get(key)
  if array is None:
    array = _in_use[key] = _read(path, name)
  return array


def _read(path: str, name: str) -> np.ndarray:
  with _reading(path, name), zipfile.ZipFile(path) as archive:
    _header(path, archive, name)
    with archive.open(f'{name}.npy') as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
  array = array.astype(array.dtype.newbyteorder('='), copy=False)
  array.setflags(write=False)  # later calls get the same array
  return array


def is_own(name: str) -> bool:
  """Whether the name of a data set is that of an `.npz` file or of a function."""
  return name.endswith('.npz') or user_files.is_name(name)


@functools.cache
def _returned(name: str) -> FunctionArrays:
  """What a function of the user's own returns; it is called once."""
  load, what = user_files.find_function(name, 'data set'), f"data set '{name}'"
  with user_files.one_line(what):
    found = load()
  if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
    raise UserError(f"{what} returns a {type(found).__name__}: return a dict such as {{'x': …, 'y': …, 'x_test': …}}")
  if 'x' not in found and 'train' in found:
    found = _of_sources(found, what)
  arrays = FunctionArrays({key: np.asarray(value) for key, value in found.items()})
  for key, array in arrays.items():
    if array.dtype.hasobject:
      raise UserError(f"{what}: '{key}' holds Python objects: return arrays of numbers, or of names as str")
    array.setflags(write=False)
  return arrays


def _of_sources(found: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
  """The arrays of sources of examples by split."""
  arrays = {}
  for split, source in found.items():
    if not (hasattr(source, '__len__') and hasattr(source, '__getitem__')) or isinstance(source, Mapping | str | bytes):
      raise UserError(
        f"{what}: '{split}' is a {type(source).__name__}, and must be an object with a length and examples by number"
      )
    with user_files.one_line(f"{what}: '{split}'"):
      examples = [_pair(source[i], f"{what}: example {i} of '{split}'") for i in range(len(source))]
    for part, values in zip(('x', 'y'), zip(*examples)):
      name = f"{what}: '{part}' of '{split}'"
      if len(shapes := {value.shape for value in values}) > 1:
        raise UserError(f'{name} has shapes {" and ".join(map(str, sorted(shapes)[:2]))}: give all the same')
      arrays[name_in_file(part, split)] = np.stack(values)
  return arrays


def _pair(example: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
  """Input and label of an example."""
  if isinstance(example, Mapping):
    if not {'x', 'y'} <= set(example):
      raise UserError(f"{what} is a dict with {', '.join(map(str, example))}: name input and label 'x' and 'y'")
    example = example['x'], example['y']
  if not isinstance(example, tuple | list) or len(example) != 2:
    raise UserError(f"{what} is a {type(example).__name__}: give a pair (x, y), or a dict with 'x' and 'y'")
  x, y = map(np.asarray, example)
  return x, y


def arrays_of(path: str) -> NpzArrays | FunctionArrays:
  """The arrays by name, of an `.npz` file or from a function."""
  if user_files.is_name(path):
    return _returned(path)
  if Path(path).is_dir():
    raise UserError(f"'{path}' is a folder: give the path of an .npz file")
  if not Path(path).is_file():
    raise UserError(f"there is no file '{path}': give the path of an .npz file")
  with _reading(path), open(path, 'rb') as file:
    if file.read(len(NPY)) == NPY:
      raise UserError(f'{path} is one array, in the .npy format: save it with np.savez(path, x=…, y=…)')
  return _opened(path, _stamp(path))


@functools.lru_cache(maxsize=8)
def _opened(path: str, stamp: Stamp) -> NpzArrays:
  return NpzArrays(path, stamp)


def _stamp(path: str) -> Stamp:
  """Changes whenever a file is written again; of a function it does not, as that is called once."""
  if user_files.is_name(path):
    return 0, 0, 0
  found = Path(path).stat()
  return found.st_mtime_ns, found.st_size, found.st_ino


def name_in_file(part: str, split: str) -> str:
  """What the array `part` of a set is called: `x` for the one to train on, `x_test` for `test`, …"""
  return part if split == 'train' else f'{part}_{split}'


def sets(path: str) -> list[str]:
  """Names of the sets in a file besides the one to train on."""
  return [name.removeprefix('x_') for name in arrays_of(path) if name.startswith('x_')]


def _named(path: str, part: str, split: str) -> str:
  """The array of a set by its name, which is refused where there is none."""
  arrays, name = arrays_of(path), name_in_file(part, split)
  if name in arrays:
    return name
  if part == 'y':
    raise UserError(f"{path} has no array '{name}', the labels of '{name_in_file('x', split)}': add them")
  found = [other for other in arrays if other == 'x' or other.startswith('x_')]
  raise UserError(f"{path} has no array '{name}': {nearest(name, found or arrays)}")


def shape(path: str) -> tuple[int, ...]:
  """Shape of a training input."""
  arrays, name = arrays_of(path), _named(path, 'x', 'train')
  found = arrays.shape(name)[1:]
  return (*found, 1) if _are_grey(len(found) + 1, arrays.dtype(name)) else found


def _are_grey(ndim: int, dtype: np.dtype) -> bool:
  """Whether an array is of grey images without an axis of channels."""
  return ndim == 3 and dtype == np.uint8


def inputs(path: str, split: str) -> np.ndarray:
  """Inputs `[N, …]` of a set: images of bytes as they are, all else as float32 or float64.

  Bytes `[N, height, width]` are grey images, and get an axis of one channel.
  """
  name = _named(path, 'x', split)
  x = arrays_of(path)[name]
  if x.dtype.kind not in 'biuf':
    raise UserError(f"{path}: '{name}' is of dtype {x.dtype}, and must hold real numbers: convert it")
  if x.ndim < 2:
    raise UserError(
      f"{path}: '{name}' has shape {list(x.shape)}, and must be [examples, features] or images: "
      'give a single feature as x[:, None]'
    )
  if x.dtype == np.uint8 and x.ndim > 2:
    return x[..., None] if _are_grey(x.ndim, x.dtype) else x
  # Whole numbers are features, not the pixels of an image: changes of them need not be whole.
  return x.astype(np.float32 if np.can_cast(x.dtype, np.float32) else np.float64, copy=False)


@functools.lru_cache(maxsize=8)
def _meaning(path: str, stamp: Stamp, task: str) -> labels.Labels:
  del stamp
  arrays = arrays_of(path)
  predicted = next((name for name in PREDICTIONS if name in arrays), None)
  name = _named(path, 'y', 'train')
  y = labels.flat(arrays[name], f"{path}: '{name}'")
  columns = None
  if predicted:
    task = PREDICTIONS[predicted] if task == 'auto' else task
    predicted_shape = arrays.shape(predicted)
    # Where the axes are in another order, `external_predictions` says so.
    in_order = len(predicted_shape) == 3 and predicted_shape[1] == len(y)
    columns = predicted_shape[2] if in_order and task == 'classification' else None
  return labels.meaning(y, task, f"{path}: '{name}'", columns)


def meaning(path: str, task: str) -> labels.Labels:
  """What the labels of a file mean, by those of the training split and the predictions beside them."""
  arrays_of(path)  # says what is wrong with the file
  return _meaning(path, _stamp(path), task)


def load(path: str, split: str, task: str) -> tuple[np.ndarray, np.ndarray]:
  """Inputs `[N, …]` and labels of a set, `[N]` int32 or `[N, D]` float64."""
  x, name = inputs(path, split), _named(path, 'y', split)
  if split == 'train' and x.shape != arrays_of(path).shape('x'):
    height, width = x.shape[1:3]
    logger.info(f"{path}: 'x' is taken for grey images of {height} by {width} pixels")
  what = f"{path}: '{name}'"
  return x, labels.encode(labels.flat(arrays_of(path)[name], what), meaning(path, task), what)
