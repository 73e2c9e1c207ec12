"""Rows of a table as one array of numbers, and in the graph of an exported file what its columns become.

The array is `[batch, columns]` float64, one column for each that the network reads:

* a number is itself, and a boolean is 0 or 1;
* a category is its place in the list of words, or −1 for a word that is not there;
* a date is seconds since 1970 (in UTC where it has a time zone).

NaN is a missing value. Where a table would be refused, the row cannot be used, and its predictions are NaN.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Columns, values
from hydra_jax.data.columns import DAY, Column
from hydra_jax.data.tables import as_table
from hydra_jax.errors import look_up

NEW_WORD = -1


def rows(columns: Columns, table: Any) -> np.ndarray:
  """Rows of a table as an exported file reads them.

  Args:
    columns: The schema, `Predictor.columns`.
    table: A DataFrame, a `pyarrow.Table` or a dict of columns, which are found by name.

  Returns:
    `[N, columns]` float64, see above.

  Raises:
    UserError: A column is missing, or of another kind.

  Example:
    >>> houses = {'size': [50.0, 80.0, None] * 4, 'city': ['Ulm', 'Ulm', 'Bonn'] * 4, 'price': [1, 2, 3] * 4}
    >>> columns = Columns.fit(houses, 'price')
    >>> [column.name for column in columns.used]
    ['size', 'city']
    >>> rows(columns, {'city': ['Ulm', 'Rom'], 'size': [None, 70.0]}).tolist()
    [[nan, 1.0], [70.0, -1.0]]
  """
  table = as_table(table)
  for column in columns.used:
    look_up(dict.fromkeys(table.column_names), column.name, 'column')
  return np.stack([_numbers(column, table.column(column.name), columns.missing) for column in columns.used], axis=1)


def _numbers(column: Column, given: Any, missing: tuple[str, ...]) -> np.ndarray:
  what = f"column '{column.name}'"
  array = values.plain(given, missing, what)
  match column.kind:
    case 'number':
      found = values.numbers(array, what)
    case 'boolean':
      found = values.flags(array, what)
    case 'category':
      place = {word: i for i, word in enumerate(column.words)}
      codes, words = values.words(array, what)
      found = np.array([*(place.get(word, NEW_WORD) for word in words), np.nan], np.float64)[codes]
    case _:
      found = values.times(array, what).seconds
  return np.where(values.absent(array), np.nan, found)


def encode(columns: Columns, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """In a graph: what `Columns.encode` makes of a table, and which rows it would take.

  Args:
    columns: The schema.
    x: `[batch, columns]` float64, as `rows` makes it.

  Returns:
    Inputs of the network `[batch, features]` float64, in the units of the table; and booleans `[batch]`.
  """
  features, usable = [], []
  for i, column in enumerate(columns.used):
    found, fits = _encoded(column, x[:, i])
    features += found
    usable.append(fits)
  return jnp.stack(features, axis=1), jnp.all(jnp.stack(usable, axis=1), axis=1)


def _encoded(column: Column, x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
  """Features of one column, `[batch]` each, and which rows have a value that it may have."""
  missing = x != x
  may_miss = jnp.asarray(bool(column.missing))
  if column.kind == 'category':
    places = [*range(len(column.words)), *([NEW_WORD] if column.other else [])]
    found = [(x == place).astype(x.dtype) for place in places]
    fits = jnp.where(missing, may_miss, sum(found) == 1)
  else:
    found = [x] if column.kind in ('number', 'boolean') else [f for part in column.parts for f in PARTS[part](x)]
    found = [jnp.where(missing, mean, values) for mean, values in zip(column.means, found, strict=True)]
    allowed = (x == 0) | (x == 1) if column.kind == 'boolean' else ~missing
    fits = jnp.where(missing, may_miss, allowed)
  return [*found, *([missing.astype(x.dtype)] if column.missing else [])], fits


def _share_of_year(seconds: jax.Array) -> jax.Array:
  """How much of its year has passed, 0 to 1: the Gregorian calendar in years that begin in March (H. Hinnant 2013)."""
  from_march_of_0 = jnp.floor(seconds / DAY) + 719468
  era = jnp.floor(from_march_of_0 / 146097)  # 400 years
  day = from_march_of_0 - 146097 * era
  year = jnp.floor((day - jnp.floor(day / 1460) + jnp.floor(day / 36524) - jnp.floor(day / 146096)) / 365)
  day = day - (365 * year + jnp.floor(year / 4) - jnp.floor(year / 100))
  next_year = day >= 306  # January and February
  year = jnp.where(next_year, year + 1, year)
  divides = lambda n: year == n * jnp.floor(year / n)
  leap = (divides(4) & ~divides(100)) | divides(400)
  length = jnp.where(leap, 366.0, 365.0)
  day = jnp.where(next_year, day - 306, day + length - 306)
  return (day + (seconds / DAY - jnp.floor(seconds / DAY))) / length


def _cycle(share: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], list[jax.Array]]:
  def parts(seconds):
    angle = 2 * jnp.pi * share(seconds)
    return [jnp.sin(angle), jnp.cos(angle)]

  return parts


# As `data.columns.PARTS`.
PARTS: dict[str, Callable[[jax.Array], list[jax.Array]]] = {
  'time': lambda seconds: [seconds / DAY],
  'year': _cycle(_share_of_year),
  'week': _cycle(lambda seconds: seconds / (7 * DAY) - jnp.floor(seconds / (7 * DAY))),
  'day': _cycle(lambda seconds: seconds / DAY - jnp.floor(seconds / DAY)),
}

ENCODINGS = {
  'number': 'the number; NaN: missing',
  'boolean': '0 or 1; NaN: missing',
  'category': 'place in words, from 0; -1: another word; NaN: missing',
  'date': 'seconds since 1970-01-01; NaN: missing',
  'cycle': 'seconds since 1970-01-01; NaN: missing',
}


def describe(columns: Columns) -> list[dict[str, Any]]:
  """What each number of a row is, as JSON."""
  return [
    {
      'name': column.name,
      'kind': column.kind,
      'encoding': ENCODINGS[column.kind],
      'may_be_missing': bool(column.missing),
      **({'words': list(column.words), 'may_be_new': bool(column.other)} if column.kind == 'category' else {}),
      **({'has_time_zone': column.zoned} if column.parts else {}),
    }
    for column in columns.used
  ]


def examples(columns: Columns, features: np.ndarray, random: np.random.Generator) -> dict[str, list]:
  """A table of random rows.

  Args:
    columns: The schema.
    features: Random inputs of the network `[N, features]`, from which numbers and dates are taken.
    random: Chooses words, and what is missing.
  """
  table, place = {}, 0
  for column in columns.used:
    found = _example(column, features[:, place], random)
    absent = random.random(len(found)) < (0.25 if column.missing else 0)
    table[column.name] = [None if gone else value for gone, value in zip(absent, found)]
    place += len(column.features)
  return table


def _example(column: Column, feature: np.ndarray, random: np.random.Generator) -> list:
  count = len(feature)
  if column.kind == 'number':
    return [float(value) for value in feature]
  if column.kind == 'boolean':
    return [bool(value) for value in random.integers(2, size=count)]
  if column.kind == 'category':
    new = ['new' + max(column.words, key=len)] if column.other else []
    return [str(word) for word in random.choice(np.array([*column.words, *new], object), count)]
  days = feature if 'time' in column.parts else random.uniform(0, 20000, count)
  moments = np.clip(np.rint(days * DAY), -6e10, 2e11).astype('datetime64[s]')
  return [f'{moment}Z' if column.zoned else str(moment) for moment in moments]
