"""Tables: CSV and parquet files, DataFrames of any library, and dicts of columns, as Arrow tables.

A CSV file is read as text. What its columns hold is decided in `columns`, so that nothing depends on a library's guess.
"""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import logging
from pathlib import Path
import re
from typing import Any

import numpy as np

from hydra_jax.data.values import MOSTLY, arrow, matches, shown
from hydra_jax.errors import UserError
from hydra_jax.store import one_line

logger = logging.getLogger(__name__)

PARQUET = ('.parquet', '.pq')
# In CSV files these stand for a missing value.
MISSING = ('NA', 'N/A', 'n/a', '<NA>', '#N/A', 'NaN', 'nan', 'NULL', 'null', 'None', '?')
DELIMITERS = (',', ';', '\t', '|')
COMMA_NUMBER = r'^[+-]?(\d+,\d*|\d*,\d+)([eE][+-]?\d+)?$'
SAMPLE_BYTES, SAMPLE_ROWS = 2**16, 100
UTF_16 = (b'\xff\xfe', b'\xfe\xff')


def is_table(found: Any) -> bool:
  """Whether `as_table` makes a table of it: a dict of columns, or what has Arrow's C stream."""
  return isinstance(found, Mapping) or hasattr(found, '__arrow_c_stream__')


def as_table(table: Any) -> Any:
  """A `pyarrow.Table` of a DataFrame, an Arrow table, or a dict of columns; the index of a DataFrame is no column.

  Raises:
    UserError: It is none of these, columns differ in length, or a name stands twice.
  """
  pa, _ = arrow()
  if not is_table(table):
    raise UserError(
      f'an object of type {type(table).__name__} is no table: give a DataFrame (pandas 2.2 or later, polars, …), '
      'a pyarrow.Table, or a dict of columns'
    )
  try:
    if isinstance(table, Mapping):
      columns = [_column(name, column) for name, column in table.items()]
      _refuse_lengths({str(name): len(column) for name, column in table.items()})
      found = pa.Table.from_arrays(
        [pa.array(column, from_pandas=True) for column in columns], names=[str(name) for name in table]
      )
    else:
      found = pa.table(table)
  except UserError:
    raise
  except Exception as e:  # pyarrow and the library of the table have their own
    raise UserError(f'cannot read the table ({one_line(e)}): give each column values of one type') from e
  return _tidy(found, 'the table')


def _column(name: Any, column: Any) -> Any:
  """A column of a dict as Arrow has it."""
  if not hasattr(column, '__len__') or isinstance(column, str | bytes):
    raise UserError(f"column '{name}' is a {type(column).__name__}, and must be a list or an array [rows]")
  if getattr(column, 'ndim', 1) != 1:
    raise UserError(f"column '{name}' has shape {list(column.shape)}, and must be [rows]")
  return column


def _refuse_lengths(lengths: Mapping[str, int]) -> None:
  first, *others = lengths or ['']
  for name in others:
    if lengths[name] != lengths[first]:
      raise UserError(
        f"column '{name}' has {lengths[name]:,} rows, and column '{first}' {lengths[first]:,}: give all as many"
      )


def _index(table: Any) -> Sequence[str]:
  """Columns that are the index of a pandas DataFrame."""
  about = json.loads((table.schema.metadata or {}).get(b'pandas', b'{}'))
  return [name for name in about.get('index_columns', ()) if isinstance(name, str)]


def _tidy(table: Any, what: str) -> Any:
  """The table without an index, and without columns that have no name."""
  table = table.drop_columns([name for name in _index(table) if name in table.column_names])
  names = table.column_names
  if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
    raise UserError(f"{what} has {names.count(twice[0])} columns '{one_line(twice[0], 60)}': give each its own name")
  if '' in names:
    logger.info(f'{what}: columns without a name are left out: {names.count("")}')
    return table.select([i for i, name in enumerate(names) if name])
  return table


def read_table(path: str | Path, delimiter: str = '', decimal: str = '.', encoding: str = 'utf-8') -> Any:
  """Reads a CSV or parquet file as `hydra-jax run` does.

  All columns of a CSV file are texts. Spaces around values are removed. Empty values, and NA, N/A, NaN, NULL, None and
  ?, are missing; a line in the log says which were found. The first row has the names of the columns.

  Args:
    path: Ends in `.parquet` or `.pq`, or is a CSV file, which may be compressed (`.gz`).
    delimiter: Between values of a CSV file: `,` or another letter, `tab` or `space`. Empty: the one of comma,
      semicolon, tab and | that divides all rows alike.
    decimal: `,` if numbers of a CSV file have a decimal comma.
    encoding: Of a CSV file.

  Returns:
    A `pyarrow.Table`.

  Raises:
    UserError: It cannot be read, or not without a guess. The message says which argument is wanted.

  Example:
    >>> table = hydra_jax.read_table('houses.csv')  # doctest: +SKIP
    >>> hydra_jax.load('runs/table-houses', 'hydra').predict(table).mean  # doctest: +SKIP
  """
  path = str(path)
  if not Path(path).is_file():
    raise UserError(f"'{path}' is a folder: give a file" if Path(path).is_dir() else f"there is no file '{path}'")
  if Path(path).suffix.lower() in PARQUET:
    return _read_parquet(path)
  return _read_csv(path, {'tab': '\t', 'space': ' '}.get(delimiter, delimiter), decimal, encoding)


def _read_parquet(path: str) -> Any:
  arrow()
  import pyarrow.parquet

  try:
    return _tidy(pyarrow.parquet.read_table(path), path)
  except UserError:
    raise
  except Exception as e:
    raise UserError(f'cannot read {path} ({one_line(e)}): save it as parquet again') from e


def _read_csv(path: str, delimiter: str, decimal: str, encoding: str) -> Any:
  pa, pc = arrow()
  if decimal not in ('.', ',') or (len(delimiter) > 1) or (delimiter and delimiter in ('"', '\n', '\r', decimal)):
    raise UserError(f"{path}: delimiter='{delimiter}' and decimal='{decimal}' must be one letter, and one of . and ,")
  content = _utf_8(path, _bytes(path), encoding)
  names, delimiter = _header(path, content, delimiter)
  table = _parsed(path, content, len(names), delimiter)
  if not table.num_rows:
    raise UserError(f'{path} has names of columns and no rows: add some')
  table = _tidy(table.rename_columns(names), path)
  found: dict[str, int] = {}
  columns = []
  for name, column in zip(table.column_names, table.columns):
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    absent = pc.is_in(texts, value_set=pa.array(['', *MISSING], pa.large_string()))
    for word in pc.value_counts(texts.filter(absent)).to_pylist():
      found[word['values']] = found.get(word['values'], 0) + word['counts']
    texts = pc.if_else(absent, None, texts)
    columns.append(_with_points(path, name, texts) if decimal == ',' else texts)
  if words := sorted(set(found) - {''}):
    listed = ', '.join(f'{shown(word)} ({found[word]:,} times)' for word in words)
    logger.info(f'{path}: these are missing values: {listed}')
  return pa.table(columns, names=table.column_names)


def _bytes(path: str) -> bytes:
  pa, _ = arrow()
  try:
    with pa.input_stream(path, compression='detect') as file:
      content = file.read()
  except Exception as e:
    raise UserError(f'cannot read {path} ({one_line(e)}): save it again') from e
  if not content.strip():
    raise UserError(f'{path} is empty: give a file with names of columns and rows')
  return content


def _utf_8(path: str, content: bytes, encoding: str) -> bytes:
  """The content in UTF-8, without the mark of byte order and empty lines before the first row."""
  encoding = 'utf-16' if encoding == 'utf-8' and content[:2] in UTF_16 else encoding
  try:
    text = content.decode(encoding)
  except LookupError as e:
    raise UserError(f"{path}: encoding='{encoding}' is not known: give one such as utf-8, latin-1 or cp1252") from e
  except UnicodeDecodeError as e:
    line = content[: e.start].count(b'\n') + 1
    hint = 'add encoding=latin-1 (or cp1252) to the options of the data, or save it as UTF-8'
    raise UserError(f'{path} is not {encoding} (byte 0x{content[e.start]:02x} in line {line}): {hint}') from e
  if '\0' in text[:SAMPLE_BYTES]:
    raise UserError(f'{path} is no text file: give a CSV file')
  if encoding != 'utf-8' or text[0] == '\ufeff':
    content = text.removeprefix('\ufeff').encode()
  return re.sub(rb'\A([ \t]*\r?\n)+', b'', content)


def _rows(content: bytes, delimiter: str) -> list[list[str]]:
  """The first rows."""
  sample = content[:SAMPLE_BYTES].decode(errors='ignore')
  rows = [row for row in csv.reader(io.StringIO(sample, newline=''), delimiter=delimiter) if row][: SAMPLE_ROWS + 1]
  return rows[:-1] if len(rows) > 1 and (len(rows) > SAMPLE_ROWS or len(content) > SAMPLE_BYTES) else rows


def _header(path: str, content: bytes, delimiter: str) -> tuple[list[str], str]:
  """Names of the columns, and what stands between values.

  Raises:
    UserError: Several delimiters divide all rows alike, or the first row does not have names.
  """
  try:
    found = {each: _rows(content, each) for each in ([delimiter] if delimiter else DELIMITERS)}
  except csv.Error as e:
    raise UserError(f'{path} is no CSV file ({one_line(e)}): save it again') from e
  several = {each: rows for each, rows in found.items() if max(map(len, rows)) > 1}
  alike = [each for each, rows in several.items() if len(set(map(len, rows))) == 1]
  if len(alike) > 1 and not delimiter:
    listed = ' and '.join(repr(each) for each in alike)
    raise UserError(
      f'{path}: {listed} divide all rows alike: add delimiter= and the right one to the options of the data'
    )
  if not delimiter:
    # Where rows differ in length, the reader says in which row.
    by_names = max(several or [','], key=lambda each: len(found[each][0]))
    delimiter = alike[0] if alike else by_names
    if delimiter != ',':
      logger.info(f'{path}: values are taken to be divided by {delimiter!r}')
  names = [name.strip() for name in found[delimiter][0]]
  numbers = sum(_looks_like_data(name) for name in names)
  if 2 * numbers >= len(names):
    raise UserError(
      f'{path}: the first row must hold the names of the columns, and holds {", ".join(map(shown, names[:4]))}: '
      'add a row with names'
    )
  return names, delimiter


def _looks_like_data(name: str) -> bool:
  try:
    float(name.replace(',', '.'))
  except ValueError:
    return name in MISSING
  return True


def _parsed(path: str, content: bytes, columns: int, delimiter: str) -> Any:
  """All values as texts, of columns without names."""
  pa, _ = arrow()
  from pyarrow import csv as reader

  names = [str(i) for i in range(columns)]
  try:
    return reader.read_csv(
      pa.BufferReader(content),
      reader.ReadOptions(column_names=names, skip_rows_after_names=1, use_threads=False),
      reader.ParseOptions(delimiter=delimiter, newlines_in_values=True),
      reader.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )
  except pa.ArrowInvalid as e:
    reason = one_line(e).removeprefix('CSV parse error: ')
    raise UserError(f'{path}: {reason}: correct the row, or put values with a {delimiter!r} in them in quotes') from e


def _with_points(path: str, name: str, texts: Any) -> Any:
  """Numbers with a decimal comma as numbers with a point.

  Raises:
    UserError: A number has a point, which may separate thousands.
  """
  _, pc = arrow()
  commas, points = matches(texts, COMMA_NUMBER), matches(texts, r'^[+-]?\d[\d.]*\.\d+(,\d+)?$')
  if points.any() and matches(texts, r'^[+-]?[\d.,]+$').mean() >= MOSTLY:
    row = int(np.argmax(points))
    raise UserError(
      f"{path}: column '{name}' holds {shown(texts[row].as_py())} in row {row}, and decimal=, is set: write numbers "
      'without points'
    )
  return pc.if_else(commas, pc.replace_substring(texts, ',', '.', max_replacements=1), texts)
