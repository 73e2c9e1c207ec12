"""Settings: fields of frozen dataclasses that carry what is legal and what they mean.

The schema of a config, the checks of its values, the table in the documentation and the keys of results all come from
these fields. A class of settings stands beside the code that reads it.

Example:
  >>> @dataclasses.dataclass(frozen=True)
  ... class Smoothing:
  ...   share: float = setting(0.1, SHARE, 'Probability that is spread over all classes.')
  >>> SHARE(2.0)
  'must be a number from 0 to 1'
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import math
from typing import Any

from hydra_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is legal for one value.

  Attributes:
    meaning: What a legal value is, such as `a number from 0 to 1`.
    wrong: Says what is wrong with a value, or '' if it is legal. None: that it must be `meaning`.
    holds: Whether a value is legal.
  """

  meaning: str
  holds: Callable[[Any], bool]
  wrong: Callable[[Any], str] | None = None

  def __call__(self, value: Any) -> str:
    """What is wrong with a value, or ''."""
    if self.holds(value):
      return ''
    return self.wrong(value) if self.wrong else f'must be {self.meaning}'


def number(what: str, holds: Callable[[Any], bool], whole: bool = False) -> Rule:
  """A rule for numbers; NaN is never legal, and True and False are no numbers."""
  kind = int if whole else (int, float)
  legal = lambda value: isinstance(value, kind) and not isinstance(value, bool) and holds(value)
  return Rule(f'a whole number{what}' if whole else f'a number{what}', legal)


def one_of(words: Iterable[str], what: str) -> Rule:
  """A rule for a word from a table."""
  known = tuple(words)
  return Rule(
    f'one of {", ".join(known)}',
    lambda value: isinstance(value, str) and value in known,
    lambda value: f'is an unknown {what}: {nearest(value, known)}',
  )


def _are_names(value: Any) -> bool:
  return isinstance(value, tuple) and all(isinstance(name, str) and name.strip() for name in value)


def _wrong_names(value: Any) -> str:
  """One name in parentheses without a comma is a text for Python."""
  if isinstance(value, str):
    return f"must be a tuple of names: write ('{value}',) with a comma"
  if not _are_names(value):
    return 'must be a tuple of names, each in quotes'
  return f"names '{next(name for name in value if value.count(name) > 1)}' twice: name it once"


COUNT = number(' of at least 1', lambda v: v >= 1, whole=True)
COUNT_OR_0 = number(' of at least 0', lambda v: v >= 0, whole=True)
WHOLE = number('', lambda v: True, whole=True)
POSITIVE = number(' of more than 0, and finite', lambda v: 0 < v < math.inf)
NOT_NEGATIVE = number(' of at least 0, and finite', lambda v: 0 <= v < math.inf)
SHARE = number(' from 0 to 1', lambda v: 0 <= v <= 1)
SHARE_OVER_0 = number(' of more than 0 and at most 1', lambda v: 0 < v <= 1)
FLAG = Rule('True or False', lambda value: isinstance(value, bool))
TEXT = Rule('a text', lambda value: isinstance(value, str))
FILLED_TEXT = Rule('a text that is not empty', lambda value: isinstance(value, str) and bool(value.strip()))
NAMES = Rule('a tuple of names', _are_names, _wrong_names)
DISTINCT_NAMES = Rule(
  'a tuple of names', lambda value: _are_names(value) and len(set(value)) == len(value), _wrong_names
)


def setting(default: Any, rule: Rule, meaning: str) -> Any:
  """A field of a class of settings: its default, what is legal, and what it means in one line."""
  return dataclasses.field(default=default, metadata={'rule': rule, 'meaning': meaning})


def defaults(kind: type) -> dict[str, Any]:
  """The settings of a class with their defaults."""
  return {field.name: field.default for field in dataclasses.fields(kind)}


def rules(kind: type) -> dict[str, Rule]:
  """The rule of each setting of a class."""
  return {field.name: field.metadata['rule'] for field in dataclasses.fields(kind)}


def make(kind: type, values: Mapping[str, Any], where: str) -> Any:
  """An object of a class of settings, each value checked.

  Args:
    kind: The class.
    values: By name. Settings that are left out have their defaults.
    where: Stands before the name of a setting in an error message, such as `config.student.kd.`.

  Raises:
    UserError: There is no such setting, or a value is not legal.
  """
  known = rules(kind)
  for name, value in values.items():
    if name not in known:
      raise UserError(f"unknown setting '{where}{name}': {nearest(name, known)}")
    if wrong := known[name](value):
      raise UserError(f'{where}{name}={short(value)} {wrong}')
  return kind(**values)


def short(value: Any) -> str:
  """A value in at most 100 characters, for a message."""
  shown = ' '.join(str(value).split()) if hasattr(value, 'items') else repr(value)  # a section of a config
  return shown if len(shown) <= 100 else shown[:97] + '...'


def table(kind: type) -> list[tuple[str, str, str, str]]:
  """Rows of documentation: name, default, what is legal, meaning."""
  return [
    (field.name, repr(field.default), field.metadata['rule'].meaning, field.metadata['meaning'])
    for field in dataclasses.fields(kind)
  ]
