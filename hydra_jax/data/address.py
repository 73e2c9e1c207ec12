"""Names of data sets that say where they are and how to read them: `csv:houses.csv?target=price&test=0.1`."""

from dataclasses import dataclass
import math
from pathlib import Path
import re
from typing import Any
from urllib.parse import unquote

from hydra_jax import text
from hydra_jax.errors import UserError, look_up
from hydra_jax.settings import COUNT_OR_0, DISTINCT_NAMES, TEXT, defaults, make, setting


@dataclass(frozen=True)
class TableOptions:
  """Of a table, divided by `&`: `csv:houses.csv?target=price&drop=id`. Commas divide columns."""

  target: tuple[str, ...] = setting((), DISTINCT_NAMES, 'The column to predict, or several of numbers.')
  drop: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Columns that are no inputs.')
  test: str = setting('', TEXT, 'The share of the rows that is the test part (0.2), or a file with test rows.')
  split: str = setting('', TEXT, 'A column that says of each row train, test, or another name.')
  group: str = setting('', TEXT, 'A column; rows with the same value stay in the same part.')
  time: str = setting('', TEXT, 'A column; the latest rows are the test part.')
  seed: int = setting(0, COUNT_OR_0, 'Decides which rows are the test part.')
  missing: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Values that stand for a missing one, such as unknown,-999.')
  number: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Columns that are numbers, where their values do not say it.')
  boolean: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Columns that are booleans.')
  category: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Columns that are categories, such as zip codes.')
  date: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Columns that are dates.')
  cycle: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Dates of which only season, weekday and time of day count.')


@dataclass(frozen=True)
class CsvOptions(TableOptions):
  """Of a CSV file, beside those of a table."""

  delimiter: str = setting('', TEXT, 'Between values, such as ; or tab. Empty: found by the rows.')
  decimal: str = setting('.', TEXT, 'A comma if numbers have a decimal comma.')
  encoding: str = setting('utf-8', TEXT, 'Of the file, such as latin-1.')


@dataclass(frozen=True)
class FolderOptions:
  """Of images in sub-folders that are called as their classes."""

  size: int = setting(0, COUNT_OR_0, 'Side of the squares that images become. 0: they are all of one size.')
  test: str = setting('', TEXT, 'The share that is the test part (0.2), where there are no folders train and test.')
  seed: int = setting(0, COUNT_OR_0, 'Decides which images are the test part.')


@dataclass(frozen=True)
class HubOptions(TableOptions):
  """Of a data set of Hugging Face, by its name or its folder, beside those of a table."""

  subset: str = setting('', TEXT, 'Which part of the data set, where it has several.')
  image: str = setting('', TEXT, 'The column of images. Empty: the only one there is.')
  size: int = setting(0, COUNT_OR_0, 'Side of the squares that images become. 0: they are all of one size.')


@dataclass(frozen=True)
class TfdsOptions:
  """Of an image set of TensorFlow Datasets that is prepared."""

  target: str = setting('', TEXT, 'The feature that is the class. Empty: the only one there is, or label.')
  image: str = setting('', TEXT, 'The feature that is the image. Empty: the only one there is.')


@dataclass(frozen=True)
class Address:
  """A name with a form, in its parts.

  Attributes:
    form: Such as `csv`.
    place: A path or a name.
    options: Of the form, an object of its class in `OPTIONS`.
  """

  form: str
  place: str
  options: Any


# What may stand before the first colon of a name, and the options that it takes.
OPTIONS: dict[str, type] = {
  'csv': CsvOptions,
  'parquet': TableOptions,
  'folder': FolderOptions,
  'hf': HubOptions,
  'tfds': TfdsOptions,
}
# Each form as messages show it.
SHOWN = ('csv:FILE?target=COLUMN', 'parquet:FILE?target=COLUMN', 'folder:PATH', 'hf:NAME', 'tfds:NAME')


def documented() -> list[tuple[str, type, tuple[str, ...]]]:
  """For the page of settings: how each form is written, its options, and those of them that stand there before."""
  table = tuple(defaults(TableOptions))
  return [
    ('parquet:FILE?OPTIONS', TableOptions, ()),
    ('csv:FILE?OPTIONS', CsvOptions, table),
    ('hf:NAME?OPTIONS', HubOptions, table),
    ('folder:PATH?OPTIONS', FolderOptions, ()),
    ('tfds:NAME?OPTIONS', TfdsOptions, ()),
  ]


def read(name: str) -> Address | None:
  """The parts of a name with a form, or None if it has none.

  Options follow a `?` and are divided by `&`. Commas divide columns. In an option, `%26` is `&`, and `%2C` a comma.

  Raises:
    UserError: An option is not known, stands twice, or its value is not legal.

  Example:
    >>> read('csv:houses.csv?target=price&drop=id,street').options.drop
    ('id', 'street')
  """
  form, colon, rest = name.partition(':')
  if not colon or form not in OPTIONS:
    return None
  place, _, query = rest.partition('?')
  if not place:
    raise UserError(f"config.data.name='{name}' names no place: write {SHOWN[list(OPTIONS).index(form)]}")
  what = f"config.data.name='{name}'"
  place = str(Path(place).expanduser()) if place.startswith('~') else place  # the shell leaves it behind a colon
  return Address(form, place, make(OPTIONS[form], _options(query, OPTIONS[form], what), f'{what}: '))


def _options(query: str, kind: type, what: str) -> dict[str, Any]:
  """Values by option, as their defaults are."""
  found: dict[str, Any] = {}
  known = defaults(kind)
  for each in filter(None, query.split('&')):
    key, equals, value = each.partition('=')
    old = look_up(known, key, f'option of {what}')
    if not equals or not value or key in found:
      raise UserError(f'{what}: option {key} {"stands twice" if key in found else "has no value"}: write {key}=VALUE')
    if isinstance(old, tuple):
      found[key] = tuple(unquote(part) for part in value.split(',') if part)
    else:
      found[key] = text.parse(unquote(value), old, f'{what}: {key}', lambda line: None)
  return found


def share_of(test: str, default: float = 0.2) -> float | None:
  """The share of rows that an option `test` names, or None where it names a file.

  Raises:
    UserError: It is a number that is no share.
  """
  if not test:
    return default
  try:
    share = float(test)
  except ValueError:
    return None
  if not (0 < share < 1 and math.isfinite(share)):
    raise UserError(f'test={test} is no share of more than 0 and less than 1: write test=0.2, or name a file')
  return share


def kinds_of(options: TableOptions) -> dict[str, str]:
  """The kind of each column that the options name.

  Raises:
    UserError: A column has two kinds.
  """
  found: dict[str, str] = {}
  for kind in ('number', 'boolean', 'category', 'date', 'cycle'):
    for name in getattr(options, kind):
      if name in found:
        raise UserError(f"column '{name}' is named as {found[name]} and as {kind}: choose one")
      found[name] = kind
  return found


def short_name(name: str) -> str:
  """What a run with data of this name is called after, or '' where the data set is a known one.

  Example:
    >>> short_name('csv:tables/houses.csv?target=price'), short_name('my_data.py:load'), short_name('digits')
    ('houses', 'my_data', '')
  """
  form, colon, rest = name.partition(':')
  place = rest.partition('?')[0] if colon and form in OPTIONS else name
  if place == name and not name.endswith('.npz') and not colon:
    return ''
  last = Path(place if place != name else name.partition(':')[0]).name
  return re.sub(r'[^\w.-]', '-', re.sub(r'(\.(csv|tsv|txt|parquet|pq|npz|py))?(\.gz)?$', '', last))
