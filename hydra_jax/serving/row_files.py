"""Files of rows that are read and written in parts, so that they need not fit in memory: CSV, parquet and `.npz`."""

from collections.abc import Callable, Generator, Iterator, Mapping
import contextlib
import math
from pathlib import Path
import tempfile
from typing import IO, Any, NamedTuple
import zipfile

import numpy as np

from hydra_jax import store
from hydra_jax.data import tables
from hydra_jax.data.values import arrow
from hydra_jax.errors import UserError

CSV, NPZ = ('.csv',), ('.npz',)
SUFFIXES = (*CSV, *tables.PARQUET, *NPZ)
# Rows of an `.npz` file that are read at once, and the most bytes of them.
ROWS, BYTES = 2**16, 2**26


class Part(NamedTuple):
  """Some rows of a file, in order.

  Attributes:
    x: Inputs `[N, …]`, or a table with the columns that are inputs.
    others: All else by name: Arrow columns of a table, or arrays `[N, …]`.
    start: Number of rows before them.
    done: How much of the file is read, of `RowFile.total`.
  """

  x: Any
  others: dict[str, Any]
  start: int
  done: int


Parts = Generator[Part, None, None]


class RowFile(NamedTuple):
  """A file in parts; `total` is what they sum up to, in a `unit`."""

  parts: Parts
  total: int
  unit: str


def suffix_of(path: Path) -> str:
  """What the name of a file says it is, one of `SUFFIXES`; a CSV file may be compressed.

  Raises:
    UserError: It is none of these.
  """
  found = path.suffixes[-2:] if path.suffix.lower() == '.gz' else path.suffixes[-1:]
  suffix = found[0].lower() if found else ''
  if suffix not in SUFFIXES or (len(found) > 1 and suffix not in CSV):
    raise UserError(f"'{path}' is no file of rows: its name must end in {', '.join(SUFFIXES)}")
  return suffix


def read(path: Path, features: tuple[str, ...] | None, **options: str) -> RowFile:
  """Opens a file.

  Args:
    path: The file. An `.npz` file has inputs as `x`.
    features: Columns of a table that are inputs; None: tables cannot be read.
    **options: Of CSV files, see `data.tables.read_table`.

  Raises:
    UserError: It cannot be read; for what is wrong in a part, when that is reached.
  """
  if suffix_of(path) in NPZ:
    return _npz_rows(path)
  if features is None:
    raise UserError(f'the model was trained on arrays, and {path} is a table: give an .npz file with x')
  file = tables.read_parts(str(path), features, **options)
  return RowFile((_divided(part, features) for part in file.of), file.total, file.unit)


def _divided(part: tables.Part, features: tuple[str, ...]) -> Part:
  """Inputs, and all else. Where an input is missing, all are inputs: the message about it names what is there."""
  names = part.table.column_names
  complete = set(features) <= set(names)
  x = part.table.select(list(features)) if complete else part.table
  others = {name: part.table[name] for name in names if name not in features}
  return Part(x, others, part.start, part.done)


class _Array(NamedTuple):
  """An array of an `.npz` file that is read row by row."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[int], bytes]


def _npz_rows(path: Path) -> RowFile:
  """`x`, and the other arrays that have as many rows."""
  if not path.is_file():
    raise UserError(f"there is no file '{path}'")
  with contextlib.ExitStack() as files:
    try:
      archive = files.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, OSError) as e:
      raise UserError(f'cannot read {path} ({store.one_line(e)}): save it with np.savez(path, x=…)') from e
    arrays = {name.removesuffix('.npy'): _array(path, archive, name, files) for name in archive.namelist()}
    if 'x' not in arrays:
      found = ', '.join(arrays) or 'none'
      raise UserError(f"{path} has no array 'x', and has {found}: save it with np.savez(path, x=…)")
    rows = arrays['x'].shape[:1]
    if not rows or not rows[0]:
      raise UserError(f"{path}: 'x' has shape {list(arrays['x'].shape)} and no rows: add some")
    alike = {name: array for name, array in arrays.items() if array.shape[:1] == rows}
    return RowFile(_npz_parts(path, files.pop_all(), alike, rows[0]), rows[0], 'rows')


def _array(path: Path, archive: zipfile.ZipFile, name: str, files: contextlib.ExitStack) -> _Array:
  """Opens an array after its header; `files` closes it."""
  what = f"{path}: '{store.one_line(name, 60)}'"
  try:
    file = files.enter_context(archive.open(name))
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, in_columns, dtype = header(file)
  except Exception as e:  # of zipfile, zlib, NumPy and the file system
    raise UserError(f'{what} is no array ({store.one_line(e)}): save it with np.savez(path, x=…)') from e
  if dtype.hasobject:
    raise UserError(f'{what} holds Python objects, which are never unpickled: save numbers, or names as str')
  if in_columns and len(shape) > 1:
    raise UserError(f'{what} is stored column by column: save np.ascontiguousarray of it')
  return _Array(shape, dtype, file.read)


def _npz_parts(path: Path, files: contextlib.ExitStack, arrays: dict[str, _Array], rows: int) -> Parts:
  size = sum(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in arrays.values())
  count = max(1, min(ROWS, BYTES // max(size, 1)))
  with files:
    for start in range(0, rows, count):
      here = min(count, rows - start)
      found = {name: _rows_of(f"{path}: '{name}'", array, here) for name, array in arrays.items()}
      yield Part(found.pop('x'), found, start, start + here)


def _rows_of(what: str, array: _Array, rows: int) -> np.ndarray:
  shape = (rows, *array.shape[1:])
  size = int(np.prod(shape)) * array.dtype.itemsize
  try:
    content = array.read(size)
  except Exception as e:  # its checksum is wrong, or it is cut
    raise UserError(f'{what} is damaged ({store.one_line(e)}): save it again') from e
  if len(content) != size:
    raise UserError(f'{what} is damaged, it has fewer rows than it says: save it again')
  found = np.frombuffer(content, array.dtype).reshape(shape)
  return found.astype(found.dtype.newbyteorder('='), copy=False)


Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def writing(path: Path, fixed: Mapping[str, np.ndarray]) -> Iterator[Write]:
  """A context that yields `write(columns)`, called with the columns of some rows, `{name: array [N, …]}`, in order.

  The file appears, or replaces the old one, when the block has ended without an error. CSV and parquet files hold
  columns `[N]` alone.

  Args:
    path: The file.
    fixed: Arrays that are no rows, which an `.npz` file holds besides.

  Raises:
    UserError: There is no such folder, or columns cannot be written.
  """
  suffix = suffix_of(path)
  if path.suffix.lower() == '.gz':
    raise UserError(f"'{path}' would be compressed: give a name that ends in .csv, .parquet or .npz")
  if path.is_dir() or not path.absolute().parent.is_dir():
    raise UserError(f"'{path}' cannot be written: it is a folder, or its folder does not exist")
  with (
    store.replacing(path) as new,
    _writing_npz(new, fixed) if suffix in NPZ else _writing_table(new, suffix) as write,
  ):
    yield write


@contextlib.contextmanager
def _writing_table(path: Path, suffix: str) -> Iterator[Write]:
  pa, _ = arrow()
  from pyarrow import csv, parquet

  make = csv.CSVWriter if suffix in CSV else parquet.ParquetWriter
  with contextlib.ExitStack() as stack:
    opened: list[Any] = []

    def write(columns: Mapping[str, Any]) -> None:
      try:
        table = pa.table({name: _plain(column) for name, column in columns.items()})
        if not opened:
          opened.append(stack.enter_context(make(str(path), table.schema)))
          opened.append(table.schema)
        opened[0].write(table.cast(opened[1]))
      except (pa.ArrowException, TypeError, ValueError) as e:
        raise UserError(f'cannot write {", ".join(columns)} ({store.one_line(e)}): drop columns of other types') from e

    yield write


def _plain(column: Any) -> Any:
  """A column of a dictionary as what it stands for, which all formats have."""
  pa, _ = arrow()
  type_of = getattr(column, 'type', None)
  return column.cast(type_of.value_type) if type_of and pa.types.is_dictionary(type_of) else column


@contextlib.contextmanager
def _writing_npz(path: Path, fixed: Mapping[str, np.ndarray]) -> Iterator[Write]:
  """Rows go to a file for each array first: how many there are, and how long texts are, is known at the end."""
  with tempfile.TemporaryDirectory(prefix=store.NEW, dir=path.parent) as folder:
    parts: dict[str, list[tuple[tuple[int, ...], np.dtype]]] = {}

    def write(columns: Mapping[str, Any]) -> None:
      for i, (name, values) in enumerate(columns.items()):
        array = np.ascontiguousarray(_as_array(name, values))
        parts.setdefault(name, []).append((array.shape, array.dtype))
        with open(Path(folder, str(i)), 'ab') as file:
          file.write(array.tobytes())

    yield write
    with zipfile.ZipFile(path, 'w') as archive:
      for i, (name, chunks) in enumerate(parts.items()):
        with archive.open(f'{name}.npy', 'w', force_zip64=True) as out, open(Path(folder, str(i)), 'rb') as file:
          _join(file, out, chunks)
      for name, array in fixed.items():
        with archive.open(f'{name}.npy', 'w') as out:
          np.lib.format.write_array(out, array, allow_pickle=False)


def _join(file: IO[bytes], out: IO[bytes], chunks: list[tuple[tuple[int, ...], np.dtype]]) -> None:
  """Writes chunks of an array as one `.npy` file, of the dtype that holds them all."""
  dtype = np.result_type(*(each for _, each in chunks))
  shape = (sum(shape[0] for shape, _ in chunks), *chunks[0][0][1:])
  about = {'descr': np.lib.format.dtype_to_descr(dtype), 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_2_0(out, about)
  for shape, each in chunks:
    content = file.read(math.prod(shape) * each.itemsize)
    out.write(np.frombuffer(content, each).astype(dtype).tobytes())


def _as_array(name: str, values: Any) -> np.ndarray:
  """A column as an array; missing texts are empty."""
  array = values if isinstance(values, np.ndarray) else np.asarray(values.to_numpy())
  if array.dtype.kind == 'O':
    texts = ['' if value is None else value for value in array.tolist()]
    if not all(isinstance(text, str) for text in texts):
      raise UserError(f"column '{name}' holds no numbers and no texts, which .npz files cannot hold: write .parquet")
    return np.array(texts, np.str_)
  return array
