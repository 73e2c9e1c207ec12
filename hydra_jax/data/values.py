"""Columns of Arrow tables as NumPy arrays: numbers, flags, words and times, and which of these a column holds.

What a value means does not depend on the other values of its column. pyarrow is imported where it is used.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.store import one_line

NUMBER = r'^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?[iI]nf(inity)?$'
WHOLE = r'^[+-]?\d{1,18}$'
WITH_COMMA = r'^[+-]?(\d{1,3}(\.\d{3})*|\d*)(,\d+)+(\.\d+)?$'
# Dates as ISO 8601 writes them, with or without a time, seconds, their fraction and a zone.
DATE = r'^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?([zZ]|[+-]\d{2}:?\d{2})?)?$'
ZONE = r':\d{2}(\.\d+)?([zZ]|[+-]\d{2}:?\d{2})$'
FLAGS = {'true': 1.0, 'yes': 1.0, 't': 1.0, 'y': 1.0, 'false': 0.0, 'no': 0.0, 'f': 0.0, 'n': 0.0}
PAIRS = ({'true', 'false'}, {'yes', 'no'}, {'t', 'f'}, {'y', 'n'})
# A text column of which at least this share are numbers, or dates, but not all, is asked about.
MOSTLY = 0.5


class Words(NamedTuple):
  """A column of texts: `codes [N]` int64 are places in `words`, −1 where a value is missing."""

  codes: np.ndarray
  words: tuple[str, ...]


class Times(NamedTuple):
  """A column of dates: seconds since 1970 `[N]` float64, NaN where missing, and whether they have a time zone."""

  seconds: np.ndarray
  zoned: bool


def arrow() -> tuple[ModuleType, ModuleType]:
  """Pyarrow and its functions.

  Raises:
    UserError: It is not installed.
  """
  try:
    import pyarrow
    import pyarrow.compute
  except ImportError as e:
    raise UserError("tables need pyarrow: pip install 'hydra_jax[tables]'") from e
  return pyarrow, pyarrow.compute


def plain(column: Any, missing: tuple[str, ...], what: str) -> Any:
  """A column as one array of a simple type, whose missing values are null.

  Texts lose spaces around them, and an empty text is missing.

  Args:
    column: `pyarrow.ChunkedArray`.
    missing: Texts, or numbers as texts, that stand for a missing value.
    what: The column, for messages.

  Returns:
    `pyarrow.Array`; texts are of type `large_string`.
  """
  pa, pc = arrow()
  array, types = column.combine_chunks(), pa.types
  array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
  if types.is_dictionary(array.type):
    words = array.dictionary
    words = words.cast(pa.large_string()) if types.is_string_view(words.type) else words
    array = pa.DictionaryArray.from_arrays(array.indices, words).dictionary_decode()
  if types.is_binary(array.type) or types.is_large_binary(array.type) or types.is_fixed_size_binary(array.type):
    try:
      array = array.cast(pa.large_binary()).cast(pa.large_string())
    except pa.ArrowInvalid as e:
      raise UserError(f'{what} holds bytes that are not UTF-8: save it as text') from e
  if types.is_string(array.type) or types.is_large_string(array.type) or types.is_string_view(array.type):
    array = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
    return _without(array, ['', *missing])
  if types.is_floating(array.type):
    array = pc.if_else(pc.is_nan(array.cast(pa.float64())), None, array.cast(pa.float64()))
  if is_number(array) and (numbers := [float(word) for word in missing if _is_float(word)]):
    wide = array.cast(pa.float64(), safe=False)
    array = pc.if_else(pc.is_in(wide, value_set=pa.array(numbers, pa.float64())), None, array)
  return array


def _without(texts: Any, words: list[str]) -> Any:
  pa, pc = arrow()
  return pc.if_else(pc.is_in(texts, value_set=pa.array(words, pa.large_string())), None, texts)


def _is_float(word: str) -> bool:
  try:
    return np.isfinite(float(word))
  except ValueError:
    return False


def is_number(array: Any) -> bool:
  """Whether the type of an array is that of numbers."""
  types = arrow()[0].types
  return types.is_integer(array.type) or types.is_floating(array.type) or types.is_decimal(array.type)


def is_text(array: Any) -> bool:
  """Whether an array from `plain` holds texts."""
  return arrow()[0].types.is_large_string(array.type)


def is_date(array: Any) -> bool:
  """Whether the type of an array is that of dates or times."""
  types = arrow()[0].types
  return types.is_timestamp(array.type) or types.is_date(array.type)


def is_flag(array: Any) -> bool:
  """Whether the type of an array is boolean."""
  return arrow()[0].types.is_boolean(array.type)


def absent(array: Any) -> np.ndarray:
  """Which values are missing, `[N]` bool."""
  return np.asarray(array.is_null().to_numpy(zero_copy_only=False), bool)


def matches(texts: Any, pattern: str) -> np.ndarray:
  """Which texts fit a regular expression, `[N]` bool; missing ones do not."""
  _, pc = arrow()
  return np.asarray(pc.fill_null(pc.match_substring_regex(texts, pattern), False).to_numpy(zero_copy_only=False), bool)


def numbers(array: Any, what: str) -> np.ndarray:
  """A column of numbers as float64 `[N]`, NaN where a value is missing; `array` is from `plain`.

  Raises:
    UserError: A value is no number, or infinite.
  """
  pa, _ = arrow()
  if pa.types.is_null(array.type):
    return np.full(len(array), np.nan)
  if is_text(array):
    _refuse_others(array, matches(array, NUMBER), what, 'a number')
  elif not is_number(array):
    raise UserError(f'{what} holds {called(array)}, and must hold numbers: convert it')
  found = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
  if (infinite := np.isinf(found)).any():
    raise UserError(f'{what} has an infinite value in row {int(np.argmax(infinite))}: correct it')
  return found


def flags(array: Any, what: str) -> np.ndarray:
  """A column of booleans as 0 and 1, float64 `[N]`, NaN where a value is missing; `array` is from `plain`.

  Raises:
    UserError: A value is no boolean: neither of that type, nor 0 or 1, nor a word such as yes, no, true, false.
  """
  pa, pc = arrow()
  if pa.types.is_null(array.type):
    return np.full(len(array), np.nan)
  if is_text(array):
    lower = pc.utf8_lower(array)
    known = np.asarray(pc.is_in(lower, value_set=pa.array(list(FLAGS), pa.large_string())))
    _refuse_others(array, known, what, 'yes, no, true or false')
    at = pc.index_in(lower, value_set=pa.array(list(FLAGS), pa.large_string()))
    return _looked_up(np.array([*FLAGS.values()]), at)
  if not (is_flag(array) or is_number(array)):
    raise UserError(f'{what} holds {called(array)}, and must hold booleans: convert it')
  found = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
  if (wrong := ~np.isin(found, (0.0, 1.0)) & ~np.isnan(found)).any():
    row = int(np.argmax(wrong))
    raise UserError(f'{what} holds {found[row]:g} in row {row}, and must hold booleans: convert it')
  return found


def _looked_up(values: np.ndarray, at: Any) -> np.ndarray:
  """`values[at]`, and NaN where `at` is null."""
  _, pc = arrow()
  places = np.asarray(pc.fill_null(at, 0).to_numpy(zero_copy_only=False))
  return np.where(absent(at), np.nan, values[places])


def words(array: Any, what: str) -> Words:
  """A column as texts; `array` is from `plain`. Whole numbers are written without a point, booleans as true, false.

  Raises:
    UserError: It holds lists, records or other values that are no categories.
  """
  pa, _ = arrow()
  if pa.types.is_null(array.type):
    return Words(np.full(len(array), -1, np.int64), ())
  if not (is_text(array) or is_number(array) or is_flag(array) or is_date(array)):
    raise UserError(f'{what} holds {called(array)}, and must hold categories: convert it')
  if is_number(array) and not pa.types.is_integer(array.type):
    array = array.cast(pa.float64(), safe=False)
  coded = array.dictionary_encode()
  codes = np.where(absent(array), -1, np.asarray(coded.indices.fill_null(0).to_numpy(zero_copy_only=False), np.int64))
  texts = [_text(value) for value in coded.dictionary.to_pylist()]
  place = {word: i for i, word in enumerate(dict.fromkeys(texts))}  # 0.0 and −0.0 are one text
  same = np.array([*(place[word] for word in texts), -1], np.int64)
  return Words(same[codes], tuple(place))


def _text(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def times(array: Any, what: str) -> Times:
  """A column of dates or times as seconds; `array` is from `plain`. Texts are as in ISO 8601: 2024-01-31 12:00.

  Raises:
    UserError: A value is no date, or some have a time zone and others have none.
  """
  pa, pc = arrow()
  if pa.types.is_null(array.type):
    return Times(np.full(len(array), np.nan), False)
  zone = 'UTC' if is_text(array) and matches(array, ZONE).any() else None
  if is_text(array):
    _refuse_others(array, matches(array, DATE), what, 'a date as 2024-01-31 or 2024-01-31 12:00')
    if zone and not (matches(array, ZONE) | absent(array)).all():
      row = int(np.argmin(matches(array, ZONE) | absent(array)))
      raise UserError(f'{what} has times with a time zone, and without one in row {row}: give all of them one')
    array = pc.replace_substring_regex(array, r'(\.\d{6})\d+', r'\1')
    array = pc.replace_substring_regex(array, 'z$', 'Z')
  elif not is_date(array):
    raise UserError(f'{what} holds {called(array)}, and must hold dates: convert it')
  elif pa.types.is_timestamp(array.type):
    zone = array.type.tz
  try:
    exact = array.cast(pa.timestamp('us', zone), safe=False).cast(pa.int64())
  except pa.ArrowInvalid as e:
    raise UserError(f'{what} holds a date that there is not ({one_line(e)}): correct it') from e
  microseconds = np.asarray(exact.fill_null(0).to_numpy(zero_copy_only=False), np.float64)
  return Times(np.where(absent(exact), np.nan, microseconds / 1e6), zone is not None)


def _refuse_others(texts: Any, right: np.ndarray, what: str, wanted: str) -> None:
  """Raises a `UserError` that names the first text that is not as it should be."""
  wrong = ~(right | absent(texts))
  if wrong.any():
    row = int(np.argmax(wrong))
    raise UserError(f'{what} holds {shown(texts[row].as_py())} in row {row}, which is not {wanted}: correct it')


def shown(text: str) -> str:
  """A text in quotes, of at most 40 characters, for a message."""
  return f"'{one_line(text or ' ', 40)}'"


def called(array: Any) -> str:
  """What an array holds, in words."""
  pa, _ = arrow()
  rows = {'texts': is_text, 'numbers': is_number, 'booleans': is_flag, 'dates': is_date}
  return next((name for name, holds in rows.items() if holds(array)), f'values of type {one_line(array.type, 60)}')


def kind_of(array: Any, name: str) -> str:
  """What a column holds: `number`, `boolean`, `date`, `text`, `nothing`, or `other`; `array` is from `plain`.

  Raises:
    UserError: It holds numbers or dates, and something else beside them.
  """
  if len(array) == array.null_count:
    return 'nothing'
  by_type = {'number': is_number, 'boolean': is_flag, 'date': is_date}
  kind = next((kind for kind, holds in by_type.items() if holds(array)), '')
  if kind or not is_text(array):
    return kind or 'other'
  present = ~absent(array)
  found = {kind: matches(array, pattern) for kind, pattern in (('number', NUMBER), ('date', DATE))}
  for kind, right in found.items():
    if right[present].all():
      return kind
  _refuse_commas(array, found['number'], present, name)
  for kind, right in found.items():
    if right[present].mean() >= MOSTLY:
      _refuse_mixture(array, int(np.argmax(present & ~right)), kind, name)
  _, pc = arrow()
  lower = set(pc.unique(pc.utf8_lower(array)).to_pylist()) - {None}
  return 'boolean' if any(lower <= pair for pair in PAIRS) else 'text'


def _refuse_commas(array: Any, right: np.ndarray, present: np.ndarray, name: str) -> None:
  commas = matches(array, WITH_COMMA)
  if commas.any() and (commas | right)[present].mean() >= MOSTLY:
    row = int(np.argmax(commas))
    raise UserError(
      f"column '{name}' holds {shown(array[row].as_py())} in row {row}: if that is a decimal comma, add decimal=, to "
      f'the options of the data; if it separates thousands, remove it; if these are names, add category={name}'
    )


def _refuse_mixture(array: Any, row: int, kind: str, name: str) -> None:
  word = one_line(array[row].as_py(), 40)
  raise UserError(
    f"column '{name}' holds {kind}s, and '{word}' in row {row}: correct it, or add missing={word} or category={name} "
    f"to the options of the data; in Python, missing=('{word}',) or kinds={{'{name}': 'category'}}"
  )


def are_whole(array: Any) -> bool:
  """Whether all values are whole numbers, by the type of the array or as they are written; `array` is from `plain`."""
  pa, _ = arrow()
  if is_text(array):
    return bool((matches(array, WHOLE) | absent(array)).all())
  return pa.types.is_integer(array.type)
