"""What the columns of a table become as inputs of a network: a small schema that is saved as JSON.

It is fitted to training rows and to nothing else. It then encodes rows one by one: what a row becomes depends on no
other row. Nothing in a saved schema is executed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
import logging
import math
from typing import Any, NamedTuple

import numpy as np

from hydra_jax.data import values
from hydra_jax.data.splits import text_bits
from hydra_jax.data.tables import as_table, is_table
from hydra_jax.errors import UserError, closest, look_up, nearest
from hydra_jax.store import one_line

logger = logging.getLogger(__name__)

FORMAT = 1
LEFT_OUT = 'left out'
# A category has an input of its own if it stands in so many training rows: 2 of 200, 10 of 1,000 to 10,000, and a
# thousandth of more, but no more than these many categories of a column.
LEAST_ROWS, MOST_ROWS, SHARE_OF_ROWS = 2, 10, 1000
MOST_WORDS = 50
# More different texts than this share of the rows are free text or names of the rows.
MOST_TEXTS = 0.5
# Whole numbers that are all different are numbers of rows if chance makes them so with less than this probability.
BY_CHANCE = 1e-4
DAY = 86400.0
# Columns that a summary names.
SHOWN = 100
# Bounds of a saved schema.
MOST_COLUMNS, LONGEST_TEXT, LARGEST = 100_000, 10_000, 1e300


@dataclass(frozen=True)
class Column:
  """What becomes of one column.

  Attributes:
    name: In the table.
    kind: Key of `KINDS`, or `left out`.
    means: Of its inputs in the training rows in which it is not missing. They stand in for missing values.
    missing: Training rows in which it is missing. If there are any, a further input is 1 where it is.
    words: Of a category, those that have an input of their own.
    other: Of a category, training rows with rarer words. If there are any, they and new words share a further input.
    parts: Of a date, keys of `PARTS`.
    zoned: Whether dates have a time zone.
    note: Why it is left out.
  """

  name: str
  kind: str
  means: tuple[float, ...] = ()
  missing: int = 0
  words: tuple[str, ...] = ()
  other: int = 0
  parts: tuple[str, ...] = ()
  zoned: bool = False
  note: str = ''

  @property
  def features(self) -> tuple[str, ...]:
    """Names of its inputs."""
    if self.kind == LEFT_OUT:
      return ()
    return (*KINDS[self.kind].names(self), *((f'{self.name} is missing',) if self.missing else ()))


class Kind(NamedTuple):
  """A row of `KINDS`.

  Attributes:
    fit: `(name, array) -> Column` for training rows; `array` is from `values.plain`.
    encode: `(column, array) -> [N, inputs]` float64, anything where a value is missing.
    names: `column -> names` of these inputs.
    means: Whether missing values become the means; else 0.
  """

  fit: Callable[[str, Any], Column]
  encode: Callable[[Column, Any], np.ndarray]
  names: Callable[[Column], Sequence[str]]
  means: bool = True


def _called(name: str) -> str:
  return f"column '{name}'"


def _left_out(name: str, note: str) -> Column:
  return Column(name, LEFT_OUT, note=note)


def _with_means(column: Column, array: Any) -> Column:
  """The column with its means and its number of missing values, or left out where it is always the same."""
  present = ~values.absent(array)
  found = KINDS[column.kind].encode(column, array)[present]
  missing = len(array) - len(found)
  if not len(found):
    return _left_out(column.name, 'no values')
  if not missing and (found == found[0]).all():
    return _left_out(column.name, 'the same in every row')
  return replace(column, means=tuple(map(float, found.mean(axis=0))), missing=missing)


def _fit_plainly(kind: str) -> Callable[[str, Any], Column]:
  return lambda name, array: _with_means(Column(name, kind), array)


def _numbers(column: Column, array: Any) -> np.ndarray:
  return values.numbers(array, _called(column.name))[:, None]


def _flags(column: Column, array: Any) -> np.ndarray:
  return values.flags(array, _called(column.name))[:, None]


def _fit_category(name: str, array: Any) -> Column:
  codes, words = values.words(array, _called(name))
  counts = np.bincount(codes[codes >= 0], minlength=len(words))
  rows, missing = int(counts.sum()), int((codes < 0).sum())
  least = max(LEAST_ROWS, min(MOST_ROWS, rows // 100), rows // SHARE_OF_ROWS)
  by_count = sorted(range(len(words)), key=lambda i: (-counts[i], words[i]))
  taken = [i for i in by_count if counts[i] >= least][:MOST_WORDS]
  other = rows - int(counts[taken].sum())
  if not taken:
    return _left_out(name, f'{len(words):,} different values, none in {least} rows' if words else 'no values')
  if len(taken) == 1 and not other and not missing:
    return _left_out(name, 'the same in every row')
  return Column(name, 'category', missing=missing, words=tuple(sorted(words[i] for i in taken)), other=other)


def _encode_category(column: Column, array: Any) -> np.ndarray:
  found = values.words(array, _called(column.name))
  known = {word: i for i, word in enumerate(column.words)}
  place = np.array([*(known.get(word, len(known)) for word in found.words), -1], np.int64)[found.codes]
  new = place == len(known)
  if new.any():
    row = int(np.argmax(new))
    word = values.shown(found.words[found.codes[row]])
    if not column.other:
      raise UserError(
        f'{_called(column.name)} holds {word} in row {row}, and no training row does: '
        f'{nearest(found.words[found.codes[row]], column.words)}, or leave the row out'
      )
    logger.info(f'{_called(column.name)}: {new.sum():,} rows are other, such as {word}')
  return (place[:, None] == np.arange(len(known) + (column.other > 0))).astype(np.float64)


def _category_names(column: Column) -> list[str]:
  return [*(f'{column.name}={word}' for word in column.words), *([f'{column.name} is other'] if column.other else [])]


def _share_of_year(seconds: np.ndarray) -> np.ndarray:
  """How much of its year has passed, from 0 to 1."""
  moment = np.floor(seconds).astype('datetime64[s]')
  start = moment.astype('datetime64[Y]')
  length = ((start + 1).astype('datetime64[s]') - start.astype('datetime64[s]')).astype(np.float64)
  return ((moment - start.astype('datetime64[s]')).astype(np.float64) + seconds % 1) / length


class Part(NamedTuple):
  """A row of `PARTS`: names behind that of the column, their values, and whether training dates are worth them."""

  names: tuple[str, ...]
  encode: Callable[[np.ndarray], list[np.ndarray]]
  needed: Callable[[np.ndarray], bool]


def _cycle(name: str, share: Callable[[np.ndarray], np.ndarray], needed: Callable[[np.ndarray], bool]) -> Part:
  def encode(seconds: np.ndarray) -> list[np.ndarray]:
    angle = 2 * np.pi * share(seconds)
    return [np.sin(angle), np.cos(angle)]

  return Part((f': {name}, sine', f': {name}, cosine'), encode, needed)


# What a date becomes: days since 1970, and its place in the year, in the week (from Thursday, as 1970 began with one)
# and in the day, where the training dates differ in it.
PARTS: dict[str, Part] = {
  'time': Part(('',), lambda seconds: [seconds / DAY], lambda seconds: True),
  'year': _cycle('year', _share_of_year, lambda seconds: np.ptp(seconds) > 90 * DAY),
  'week': _cycle('week', lambda seconds: seconds / DAY % 7 / 7, lambda seconds: np.ptp(seconds) >= 7 * DAY),
  'day': _cycle('day', lambda seconds: seconds / DAY % 1, lambda seconds: len(np.unique(seconds % DAY)) > 1),
}


def _fit_date(kind: str) -> Callable[[str, Any], Column]:
  """Fits a date; a `cycle` is a date without its place in time, for rows that are later than all training rows."""

  def fit(name: str, array: Any) -> Column:
    seconds, zoned = values.times(array, _called(name))
    present = seconds[~np.isnan(seconds)]
    parts = [part for part, row in PARTS.items() if len(present) and row.needed(present)]
    parts = [part for part in parts if kind == 'date' or part != 'time']
    if not parts:
      return _left_out(name, 'dates that differ neither in the season nor in the weekday nor in the time of day')
    return _with_means(Column(name, kind, parts=tuple(parts), zoned=zoned), array)

  return fit


def _encode_date(column: Column, array: Any) -> np.ndarray:
  seconds, zoned = values.times(array, _called(column.name))
  if zoned != column.zoned and not np.isnan(seconds).all():
    have, had = ('a', 'none') if zoned else ('no', 'one')
    raise UserError(f'{_called(column.name)} has {have} time zone, and in training it had {had}: give both alike')
  filled = np.where(np.isnan(seconds), 0.0, seconds)
  return np.stack([each for part in column.parts for each in PARTS[part].encode(filled)], axis=1)


def _date_names(column: Column) -> list[str]:
  return [f'{column.name}{name}' for part in column.parts for name in PARTS[part].names]


KINDS: dict[str, Kind] = {
  'number': Kind(_fit_plainly('number'), _numbers, lambda column: [column.name]),
  'boolean': Kind(_fit_plainly('boolean'), _flags, lambda column: [column.name]),
  'category': Kind(_fit_category, _encode_category, _category_names, means=False),
  'date': Kind(_fit_date('date'), _encode_date, _date_names),
  'cycle': Kind(_fit_date('cycle'), _encode_date, _date_names),
}


def _fitted(name: str, array: Any, kind: str) -> Column:
  """What becomes of a column, of the kind that is asked for or of the one that its values say."""
  if kind:
    column = KINDS[kind].fit(name, array)
    if column.kind == LEFT_OUT and kind != 'cycle':
      raise UserError(f'{_called(name)} is no {kind} to learn from ({column.note}): leave it out')
    return column
  kind = values.kind_of(array, name)
  if kind in ('nothing', 'other'):
    return _left_out(name, 'no values' if kind == 'nothing' else f'it holds {values.called(array)}')
  if kind == 'number' and _are_rows(array, name):
    return _left_out(name, f'numbers of rows: all {len(array):,} whole numbers are different')
  if kind == 'text' and (note := _free_text(array, name)):
    return _left_out(name, note)
  return KINDS['category' if kind == 'text' else kind].fit(name, array)


def _are_rows(array: Any, name: str) -> bool:
  """Whether whole numbers number the rows: n of a range of R are all different by chance once in exp(n² / 2R)."""
  if array.null_count or not values.are_whole(array):
    return False
  found = values.numbers(array, _called(name))
  span = np.ptp(found) + 1
  return len(found) ** 2 / (2 * span) > -math.log(BY_CHANCE) and len(np.unique(found)) == len(found)


def _free_text(array: Any, name: str) -> str:
  """Why a column of texts is no category, or ''."""
  codes, words = values.words(array, _called(name))
  rows = int((codes >= 0).sum())
  if len(words) <= max(1, MOST_TEXTS * rows):
    return ''
  return f'free text or names of rows: {len(words):,} different ones in {rows:,} rows'


@dataclass(frozen=True)
class Columns:
  """What the columns of a table become as inputs of a network.

  Attributes:
    columns: In the order of the inputs.
    targets: What is predicted: one column of numbers or of names, or several of numbers.
    missing: Texts, and numbers, that stand for a missing value, besides an empty text.
  """

  columns: tuple[Column, ...]
  targets: tuple[Column, ...] = ()
  missing: tuple[str, ...] = ()

  @classmethod
  def fit(
    cls,
    table: Any,
    target: str | Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    missing: Sequence[str] = (),
  ) -> 'Columns':
    """Decides what each column becomes, by training rows alone, and logs it as a table.

    * A *number* is itself. A missing one is the training mean.
    * A *boolean* is 0 or 1. Texts are booleans if they are yes and no, true and false, t and f, or y and n.
    * A *category* is one input for each value, 0 or 1. Rare values, and values that are new later, share an input,
      *other*. Where no value was rare in training, a new one is refused.
    * A *date* is days since 1970, and its place in the year, the week and the day as sine and cosine, where the
      training dates differ in it. A *cycle* is a date without the days since 1970. Texts are dates if they are as in
      ISO 8601.
    * Free text, numbers of rows, and columns without two values are left out.

    Where training rows lack a value, a further input says so. A value that is missing later is refused where no
    training row lacked it.

    Args:
      table: A DataFrame of any library that has Arrow's C stream (pandas, polars), a `pyarrow.Table`, or a dict of
        columns `[N]` by name.
      target: The columns to predict. They are no inputs.
      kinds: The kind of a column by its name, where the values do not say it: a key of `KINDS`.
      drop: Columns that are no inputs.
      missing: Texts, or numbers as texts, that stand for a missing value, such as `('unknown', '-999')`.

    Returns:
      The schema.

    Raises:
      UserError: A column is not there, holds several kinds of values, or is not of the kind that is asked for.

    Example:
      >>> table = {'size': [50.0, 80.0, None, 65.0], 'city': ['Bonn', 'Ulm', 'Ulm', 'Bonn'], 'price': [1, 2, 3, 4]}
      >>> columns = Columns.fit(table, target='price')
      >>> columns.features
      ('size', 'size is missing', 'city=Bonn', 'city=Ulm')
      >>> columns.encode({'city': ['Ulm'], 'size': [70.0]}).tolist()
      [[70.0, 0.0, 0.0, 1.0]]
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    columns = fitted(as_table(table), targets, kinds or {}, drop, missing)
    logger.info(columns.summary())
    return columns

  @property
  def used(self) -> tuple[Column, ...]:
    """Those that become inputs."""
    return tuple(column for column in self.columns if column.kind != LEFT_OUT)

  @property
  def features(self) -> tuple[str, ...]:
    """Names of the inputs, by place."""
    return tuple(name for column in self.used for name in column.features)

  def encode(self, table: Any) -> np.ndarray:
    """Rows of a table as inputs of a network.

    Columns are found by name, in any order. Columns that are not known are ignored, with a line in the log. Targets
    and columns that are left out need not be there.

    Args:
      table: As in `fit`, with N rows.

    Returns:
      Inputs `[N, features]`, float64, in the units of the table. Networks scale them.

    Raises:
      UserError: A column is missing or of another kind, or a row lacks a value that no training row lacked, or has a
        category that is new.
    """
    table = as_table(table)
    self._check_names(table.column_names)
    found = [_encoded(column, self._plain(table, column.name)) for column in self.used]
    return np.concatenate([np.zeros((table.num_rows, 0)), *found], axis=1)

  def labels(self, table: Any) -> np.ndarray:
    """The targets of a table: one as numbers or names `[N]`, several as float64 `[N, targets]`.

    Raises:
      UserError: A target is not there, is missing in a row, or is of another kind than in training.
    """
    table = as_table(table)
    for column in self.targets:
      look_up(dict.fromkeys(table.column_names), column.name, 'target')
    found = [_target(column, self._plain(table, column.name)) for column in self.targets]
    return found[0] if len(found) == 1 else np.stack([each.astype(np.float64) for each in found], axis=1)

  def identities(self, table: Any) -> list[np.ndarray]:
    """For each column that is used, and each target, numbers `[N]` uint64 that are alike where values are."""
    table = as_table(table)
    return [_identity(column, self._plain(table, column.name)) for column in (*self.used, *self.targets)]

  def summary(self) -> str:
    """What became of each column, as a small table."""
    rows = [(one_line(column.name, 30), _described(column)) for column in self.columns[:SHOWN]]
    width = max((len(name) for name, _ in rows), default=0)
    head = f'{len(self.columns)} columns become {len(self.features)} inputs:'
    more = [f'  and {len(self.columns) - SHOWN:,} more'] if len(self.columns) > SHOWN else []
    return '\n'.join([head, *(f'  {name:{width}}  {what}' for name, what in rows), *more])

  def to_json(self) -> dict[str, Any]:
    """The schema as JSON can write it."""
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    listed = lambda columns: [{key: plain(value) for key, value in asdict(column).items()} for column in columns]
    found = {'format': FORMAT, 'columns': listed(self.columns), 'targets': listed(self.targets)}
    return {**found, 'missing': list(self.missing)}

  @classmethod
  def from_json(cls, found: Any, what: str = 'the schema of columns') -> 'Columns':
    """The schema from what `to_json` gave, each value checked.

    Args:
      found: As read from JSON.
      what: Begins messages, such as the path of the file.

    Raises:
      UserError: It is not what `to_json` gives.
    """
    return _read(found, what)

  def _plain(self, table: Any, name: str) -> Any:
    return values.plain(table.column(name), self.missing, _called(name))

  def _check_names(self, names: Sequence[str]) -> None:
    """Raises a `UserError` where a column is missing, and says which columns are ignored."""
    known = {column.name for column in (*self.columns, *self.targets)}
    more = [name for name in names if name not in known]
    lacking = [column.name for column in self.used if column.name not in names]
    if lacking:
      others = f' and lacks {len(lacking) - 1} others' if len(lacking) > 1 else ''
      raise UserError(f'the table has no {_called(lacking[0])}{others}: {_renamed(lacking[0], more or names)}')
    if more:
      listed = ', '.join(one_line(name, 30) for name in more[:8]) + (', …' if len(more) > 8 else '')
      logger.info(f'columns that were not there in training are ignored: {listed}')


def encoded(x: Any, columns: Columns | None) -> np.ndarray:
  """Inputs as an array: of a table, what its columns become; of all else, itself.

  Args:
    x: An array `[N, …]`, or a table as `Columns.fit` takes it.
    columns: The schema; None where a network was trained on arrays.

  Raises:
    UserError: It is a dict, and there is no schema; or the table does not fit.
  """
  if columns is None and isinstance(x, Mapping):
    raise UserError('the network was trained on arrays, and not on a table: give an array [examples, …]')
  return np.asarray(x) if columns is None or not is_table(x) else columns.encode(x)


def _renamed(name: str, others: Sequence[str]) -> str:
  """What a column that is missing may be called, or what is there."""
  lower = {other.casefold(): other for other in others}
  if close := closest(name.casefold(), lower):
    return f"is it '{one_line(lower[close], 60)}'? Rename it"
  return f'there are {", ".join(one_line(other, 30) for other in others[:8])}: add it'


def _encoded(column: Column, array: Any) -> np.ndarray:
  """Inputs of one column, `[N, inputs]`."""
  absent = values.absent(array)
  if absent.any() and not column.missing:
    raise UserError(
      f'{_called(column.name)} is missing in row {int(np.argmax(absent))}, and no training row lacks it: '
      'fill it in, or leave the row out'
    )
  kind = KINDS[column.kind]
  found = kind.encode(column, array)
  found[absent] = column.means if kind.means else 0.0
  return np.concatenate([found, absent[:, None].astype(np.float64)], axis=1) if column.missing else found


def fitted(
  table: Any, targets: Sequence[str], kinds: Mapping[str, str], drop: Sequence[str], missing: Sequence[str]
) -> Columns:
  """`Columns.fit` of a table from `as_table`, without a line in the log."""
  names = dict.fromkeys(table.column_names)
  for name in (*targets, *kinds, *drop):
    look_up(names, name, 'column')
  for name, kind in kinds.items():
    look_up(KINDS, kind, f'kind of {_called(name)}')
  if not table.num_rows:
    raise UserError('the table has no rows: add some')
  read = lambda name: values.plain(table.column(name), tuple(missing), _called(name))
  inputs = [name for name in names if name not in (*targets, *drop)]
  columns = tuple(_fitted(name, read(name), kinds.get(name, '')) for name in inputs)
  dropped = tuple(_left_out(name, 'as asked') for name in drop if name not in targets)
  found = Columns(
    (*columns, *dropped),
    tuple(_fitted_target(name, read(name), kinds.get(name, ''), len(targets)) for name in targets),
    tuple(missing),
  )
  if not found.features:
    why = '; '.join(f'{one_line(c.name, 30)}: {c.note}' for c in found.columns[:4]) or 'there is none beside the target'
    raise UserError(f'no column can be an input ({why}): add one, or say what it is, as kinds={{…}} or number=COLUMN')
  return found


def _fitted_target(name: str, array: Any, kind: str, count: int) -> Column:
  """A target: numbers, or names of classes."""
  kind = kind or values.kind_of(array, name)
  kind = 'category' if kind in ('text', 'boolean') else kind
  if kind not in ('number', 'category'):
    raise UserError(f'target {_called(name)} holds {kind}s, and must hold numbers or names of classes: convert it')
  if kind == 'category' and count > 1:
    raise UserError(f'target {_called(name)} holds names, and several targets must be numbers: name one target')
  return Column(name, kind)


def _target(column: Column, array: Any) -> np.ndarray:
  """One target `[N]`: int64 where all are whole numbers, or float64; names as str."""
  what = f'target {_called(column.name)}'
  absent = values.absent(array)
  if absent.any():
    raise UserError(f'{what} is missing in {absent.sum():,} rows, first row {int(np.argmax(absent))}: leave them out')
  if column.kind == 'category':
    codes, words = values.words(array, what)
    return np.array(words, np.str_)[codes] if words else np.zeros(0, np.str_)
  found = values.numbers(array, what)
  return found.astype(np.int64) if values.are_whole(array) else found


def _identity(column: Column, array: Any) -> np.ndarray:
  """Numbers `[N]` uint64 that are the same where values are the same, in any table."""
  absent = values.absent(array)
  if column.kind == 'category':
    codes, words = values.words(array, _called(column.name))
    found = np.append(text_bits(words), np.uint64(0))[codes]
  else:
    read = {'boolean': values.flags, 'number': values.numbers}.get(column.kind)
    exact = read(array, column.name) if read else values.times(array, _called(column.name)).seconds
    found = (exact + 0.0).view(np.uint64)  # −0.0 + 0.0 is 0.0
  return np.where(absent, text_bits(['']), found)


def _described(column: Column) -> str:
  """What became of a column, in words."""
  missing = f', {column.missing:,} missing: {{}}and flagged' if column.missing else ''
  if column.kind == 'category':
    shown = ', '.join(one_line(word, 20) for word in column.words[:4]) + (', …' if len(column.words) > 4 else '')
    other = f' and other ({column.other:,} rows)' if column.other else ''
    return f'category: {shown}{other}{missing.format("")}'
  match column.kind:
    case 'left out':
      return f'left out: {column.note}'
    case 'number':
      return f'number{missing.format(f"filled with {column.means[0]:.6g} ")}'
    case 'boolean':
      return f'boolean{missing.format(f"filled with {column.means[0]:.2g} ")}'
  return f'{column.kind}: {", ".join(column.parts)}{missing.format("filled with means ")}'


def _read(found: Any, what: str) -> Columns:
  """The schema from JSON, each value checked."""

  def expect(right: bool, why: str) -> None:
    if not right:
      raise UserError(f'{what} is not as it was saved ({why}): save it again')

  expect(isinstance(found, dict), 'it is no object')
  if found.get('format') != FORMAT:
    raise UserError(f'{what} was written by another version of hydra_jax: save it again with this version')
  expect(set(found) == {'format', 'columns', 'targets', 'missing'}, 'its keys are others')
  expect(_are_texts(found['missing']), 'missing is no list of texts')
  lists = {}
  for key in ('columns', 'targets'):
    expect(isinstance(found[key], list) and len(found[key]) <= MOST_COLUMNS, f'{key} is no list')
    lists[key] = tuple(_read_column(each, key, expect) for each in found[key])
  names = [column.name for column in (*lists['columns'], *lists['targets'])]
  expect(len(set(names)) == len(names), 'a column stands twice in it')
  for column in lists['targets']:
    expect(column.kind in ('number', 'category'), f'target {one_line(column.name, 40)} is of another kind')
  made = Columns(lists['columns'], lists['targets'], tuple(found['missing']))
  expect(bool(made.features), 'it has no inputs')
  return made


_TYPES: dict[str, Callable[[Any], bool]] = {
  'name': lambda value: isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT,
  'kind': lambda value: isinstance(value, str) and value in (*KINDS, LEFT_OUT),
  'means': lambda value: isinstance(value, list) and all(map(_is_number, value)),
  'missing': lambda value: type(value) is int and 0 <= value,
  'words': lambda value: _are_texts(value),
  'other': lambda value: type(value) is int and 0 <= value,
  'parts': lambda value: isinstance(value, list) and value == [part for part in PARTS if part in value],
  'zoned': lambda value: isinstance(value, bool),
  'note': lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT,
}


def _are_texts(value: Any) -> bool:
  if not isinstance(value, list) or not all(isinstance(word, str) and len(word) <= LONGEST_TEXT for word in value):
    return False
  return len(set(value)) == len(value) <= LONGEST_TEXT


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and abs(value) <= LARGEST  # not so for NaN


def _read_column(found: Any, where: str, expect: Callable[[bool, str], None]) -> Column:
  expect(isinstance(found, dict), f'{where} holds something else than columns')
  known = [each.name for each in fields(Column)]
  expect(list(found) == known or set(found) == set(known), f'a column in {where} has other keys')
  for key, right in _TYPES.items():
    expect(right(found[key]), f'{key} of a column in {where} is wrong: {one_line(found[key], 40)}')
  made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
  column = Column(**made)
  if where == 'targets' or column.kind == LEFT_OUT:
    return column
  called = one_line(column.name, 40)
  expect(bool(column.words) == (column.kind == 'category'), f'words of {called} do not fit its kind')
  expect(bool(column.parts) == (column.kind in ('date', 'cycle')), f'parts of {called} do not fit its kind')
  expect(column.kind == 'cycle' or not column.parts or 'time' in column.parts, f'{called} lacks its time')
  inputs = len(KINDS[column.kind].names(column)) if KINDS[column.kind].means else 0
  expect(len(column.means) == inputs, f'{called} has {len(column.means)} means for {inputs} inputs')
  return column
