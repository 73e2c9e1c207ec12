"""Data sets that are tables: which rows are the training and the test part, and what their columns become.

The schema of the columns is fitted to the rows of the training part and to no others. Which rows these are is decided
first, by the values of all rows where chance decides.
"""

from collections.abc import Iterator, Mapping
import contextlib
from dataclasses import dataclass
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from hydra_jax.data import labels, splits, values
from hydra_jax.data.address import Address, CsvOptions, TableOptions, kinds_of, share_of
from hydra_jax.data.columns import Columns, fitted
from hydra_jax.data.tables import as_table, read_table
from hydra_jax.errors import UserError, look_up

logger = logging.getLogger(__name__)

Stamps = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class TableSet:
  """A data set from tables.

  Attributes:
    what: Begins messages.
    parts: Tables by the name of the part; all rows have targets.
    train: The part to train on.
    columns: Fitted to the training part.
    meaning: Of the targets of the training part.
    blocks: Rows of the training part with the same number stay together where it is divided further.
  """

  what: str
  parts: Mapping[str, Any]
  train: str
  columns: Columns
  meaning: labels.Labels
  blocks: np.ndarray

  def inputs(self, part: str) -> np.ndarray:
    """Inputs `[N, features]` float64 of a part."""
    table = look_up(self.parts, part, f'part of {self.what}')
    with _of(self.what, part):
      return self.columns.encode(table)

  def load(self, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a part, as in a `Split`."""
    x, what = self.inputs(part), f'{self.what}: the target of part {part!r}'
    with _of(self.what, part):
      y = labels.flat(self.columns.labels(self.parts[part]), what)
    return x, labels.encode(y, self.meaning, what)


@contextlib.contextmanager
def _of(what: str, part: str = '') -> Iterator[None]:
  """Says in what a `UserError` is."""
  try:
    yield
  except UserError as e:
    raise UserError(f'{what}{f", part {part!r}" if part else ""}: {e}') from e


def from_file(address: Address, train: str, task: str) -> TableSet:
  """The data set of a CSV or parquet file. It is read again where the file has changed.

  Args:
    address: The form is `csv` or `parquet`.
    train: The part to train on.
    task: As the user says, or `auto`.

  Raises:
    UserError: It cannot be read, or not as the options say.
  """
  if not address.options.target:
    names = read_table(address.place, **_reading(address.options)).column_names
    listed = ', '.join(names[:12]) + (', …' if len(names) > 12 else '')
    raise UserError(
      f'{address.place}: say which column to predict, as {address.form}:{address.place}?target=COLUMN, of {listed}'
    )
  files = [address.place, *([address.options.test] if share_of(address.options.test) is None else [])]
  stamps = tuple(_stamp(file) for file in files)
  return _from_file(address, train, task, stamps)


def _stamp(file: str) -> tuple[int, int, int]:
  if not Path(file).is_file():
    raise UserError(f"there is no file '{file}': give the path of a table")
  found = Path(file).stat()
  return found.st_mtime_ns, found.st_size, found.st_ino


def _reading(options: TableOptions) -> dict[str, str]:
  """Arguments of `read_table`."""
  names = ('delimiter', 'decimal', 'encoding')
  return {name: getattr(options, name) for name in names} if isinstance(options, CsvOptions) else {}


@functools.lru_cache(maxsize=4)
def _from_file(address: Address, train: str, task: str, stamps: Stamps) -> TableSet:
  del stamps  # only there so that a file that has changed is read again
  options = address.options
  table = read_table(address.place, **_reading(options))
  given = {} if share_of(options.test) is not None else {'test': read_table(options.test, **_reading(options))}
  return made(address.place, {'train': table, **given}, options, train, task)


def made(what: str, tables: Mapping[str, Any], options: TableOptions, train: str, task: str) -> TableSet:
  """The data set of tables; one alone is divided as the options say.

  Args:
    what: Begins messages.
    tables: As `as_table` takes them, by part: `train` alone, or several that are divided already.
    options: Targets, kinds of columns, and how rows are divided.
    train: The part to train on.
    task: As the user says, or `auto`.

  Raises:
    UserError: The options do not fit the tables.
  """
  with _of(what):
    tables = {name: as_table(table) for name, table in tables.items()}
    _check(options, tables)
    tables = {name: _with_targets(table, options, f'{what}, {name}') for name, table in tables.items()}
    parts = tables if len(tables) > 1 else _divided(what, next(iter(tables.values())), options, task)
    look_up(parts, train, 'part to train on')
    columns = _columns_of(parts[train], options)
    bits = {name: splits.row_bits(columns.identities(table)) for name, table in parts.items()}
    if len(tables) > 1 or options.split:
      _check_given(what, parts, bits, train, options)
    groups = _words_as_bits(parts[train], options.group, options) if options.group else None
    target = f'{what}: the target of part {train!r}'
    meaning = labels.meaning(labels.flat(columns.labels(parts[train]), target), task, target)
  counted = ', '.join(f'{table.num_rows:,} rows are {name}' for name, table in parts.items())
  logger.info(f'{what}: {counted}. Of {train}, {columns.summary()}')
  return TableSet(what, parts, train, columns, meaning, splits.blocks_of(bits[train], groups))


def _check(options: TableOptions, tables: Mapping[str, Any]) -> None:
  """Raises a `UserError` where options exclude each other, or name columns that are not there."""
  file = share_of(options.test) is None
  ways = {'split': options.split, 'time': options.time, 'test (a file)': file or len(tables) > 1}
  if len(chosen := [name for name, given in ways.items() if given]) > 1:
    raise UserError(f'the rows are divided by {" and by ".join(chosen)}: choose one')
  if options.time and options.group:
    raise UserError('the latest rows of a group are later than its other rows: choose one of time and group')
  for table in tables.values():
    for name in (*options.target, *filter(None, (options.split, options.group, options.time))):
      look_up(dict.fromkeys(table.column_names), name, 'column')


def _plain(table: Any, name: str, options: TableOptions) -> Any:
  return values.plain(table.column(name), options.missing, f"column '{name}'")


def _with_targets(table: Any, options: TableOptions, what: str) -> Any:
  """The rows that have all targets; says how many have none."""
  absent = np.any([values.absent(_plain(table, name, options)) for name in options.target], axis=0)
  if not absent.any():
    return table
  logger.warning(f'{what}: {absent.sum():,} of {len(absent):,} rows have no target, and are left out')
  return table.filter(values.arrow()[0].array(~absent))


def _columns_of(table: Any, options: TableOptions) -> Columns:
  """The schema of rows; what they are divided by is no input, because it does not generalise."""
  kinds, drop = kinds_of(options), dict.fromkeys((*options.drop, *filter(None, (options.split, options.group))))
  if options.time and options.time not in (*kinds, *drop):
    if values.kind_of(_plain(table, options.time, options), options.time) == 'date':
      kinds[options.time] = 'cycle'  # all test rows are later than all training rows
    else:
      drop[options.time] = None
  return fitted(table, options.target, kinds, tuple(drop), options.missing)


def _divided(what: str, table: Any, options: TableOptions, task: str) -> dict[str, Any]:
  """The parts of one table."""
  share = share_of(options.test)
  assert share is not None  # a file makes two tables
  if options.split:
    return _by_name(table, options)
  if options.time:
    test = splits.latest(_times(table, options), share)
  else:
    whole = _columns_of(table, options)
    rows = splits.row_bits(whole.identities(table))
    blocks = splits.blocks_of(rows, _words_as_bits(table, options.group, options) if options.group else None)
    if (repeated := len(rows) - len(np.unique(rows))) > 0:
      logger.info(f'{what}: {repeated:,} of {len(rows):,} rows repeat others; rows that are alike stay in one part')
    strata = splits.strata_of(labels.flat(whole.labels(table), what), task)
    test = splits.at_random(rows, blocks, strata, share, options.seed)
  mask = values.arrow()[0].array(test)
  return {'train': table.filter(values.arrow()[1].invert(mask)), 'test': table.filter(mask)}


def _by_name(table: Any, options: TableOptions) -> dict[str, Any]:
  """Parts as a column names them."""
  pa, _ = values.arrow()
  codes, words = _complete_words(table, options.split, options)
  by_name = sorted(enumerate(words), key=lambda row: row[1])
  return {word: table.filter(pa.array(codes == code)) for code, word in by_name}


def _complete_words(table: Any, name: str, options: TableOptions) -> values.Words:
  """A column by which rows are divided, as texts.

  Raises:
    UserError: It is missing in a row.
  """
  found = values.words(_plain(table, name, options), f"column '{name}'")
  if (found.codes < 0).any():
    row = int(np.argmin(found.codes))
    raise UserError(f"column '{name}' is missing in row {row}, and rows are divided by it: fill it in")
  return found


def _words_as_bits(table: Any, name: str, options: TableOptions) -> np.ndarray:
  codes, words = _complete_words(table, name, options)
  return splits.text_bits(words)[codes]


def _times(table: Any, options: TableOptions) -> np.ndarray:
  """The column that orders rows in time, dates or numbers, as `[N]` float64."""
  array, what = _plain(table, options.time, options), f"column '{options.time}'"
  by_kind = {'date': lambda: values.times(array, what).seconds, 'number': lambda: values.numbers(array, what)}
  kind = values.kind_of(array, options.time)
  if kind not in by_kind:
    raise UserError(f'{what} holds {values.called(array)}, and must hold dates or numbers: divide the rows otherwise')
  found = by_kind[kind]()
  if (absent := np.isnan(found)).any():
    raise UserError(f'{what} is missing in row {int(np.argmax(absent))}, and rows are divided by it: fill it in')
  return found


def _check_given(
  what: str, parts: Mapping[str, Any], bits: Mapping[str, np.ndarray], train: str, options: TableOptions
) -> None:
  """Warns of rows that stand in the training part and in another one, and refuses groups that do."""
  for name, table in parts.items():
    if name == train:
      continue
    if shared := splits.shared_rows(bits[train], bits[name]):
      logger.warning(
        f'{what}: {shared:,} of {table.num_rows:,} rows of {name} stand in {train} as well: leave them out of one'
      )
    if options.group:
      groups = [_words_as_bits(each, options.group, options) for each in (parts[train], table)]
      if shared := splits.shared_rows(*groups):
        raise UserError(f"{shared:,} rows of {name} are of groups that stand in {train} too: divide '{options.group}'")
