"""Values that are given as text, on the command line and after the name of a config file."""

import ast
from collections.abc import Callable
import re
from typing import Any

from hydra_jax.errors import UserError

BRACKETS = {'(': ')', '[': ']', '{': '}'}
KINDS = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'a text'}
BARE = re.compile(r'[^\s\'"(){},]+')  # a name without quotes, such as cifar100[:1000]


def split(text: str) -> list[str]:
  """Splits at commas that are not in brackets or quotes, and leaves out empty parts.

  Raises:
    UserError: A bracket or a quote is not closed.

  Example:
    >>> split('members=3,shifts=(1,2)')
    ['members=3', 'shifts=(1,2)']
  """
  parts, closing, quote = [''], [], ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    elif letter in BRACKETS:
      closing.append(BRACKETS[letter])
    elif closing and letter == closing[-1]:
      closing.pop()
    elif letter == ',' and not closing:
      parts.append('')
      continue
    parts[-1] += letter
  if quote or closing:
    raise UserError(f"'{text}' lacks a closing {quote or closing[-1]}")
  return [part.strip() for part in parts if part.strip()]


def parse(text: str, old: Any, key: str, say: Callable[[str], Any]) -> Any:
  """The value of a text, of the type of the old value.

  A whole number can stand for a number, but not a number for a whole number. A tuple of names needs no quotes and no
  brackets.

  Args:
    text: The text.
    old: The value that is replaced.
    key: Its name, for messages.
    say: Called with a line, where a tuple is given without brackets.

  Raises:
    UserError: The text is no such value.

  Example:
    >>> parse('3', 0.5, 'rate', print)
    3.0
    >>> parse('kd,hydra', (), 'students', print)
    students=kd,hydra is taken as ('kd', 'hydra')
    ('kd', 'hydra')
  """
  text = text.strip()
  if isinstance(old, str):
    return _unquoted(text)
  if isinstance(old, tuple | list):
    return type(old)(_tuple(text, key, say))
  if isinstance(old, bool):
    words = {'true': True, 'false': False, '1': True, '0': False}
    if text.lower() in words:
      return words[text.lower()]
  elif isinstance(old, int):
    value = _literal(text)
    if isinstance(value, int) and not isinstance(value, bool):
      return value
  elif isinstance(old, float):
    try:
      return float(text)
    except ValueError:
      pass
  raise UserError(f"{key} takes {KINDS.get(type(old), f'a {type(old).__name__}')}, not '{text}'")


def parse_literal(text: str, old: Any, key: str, say: Callable[[str], Any]) -> Any:
  """The value of a text for an argument of a network. Its type may differ from that of the old value.

  If the old value is a text, the new value is a text. If the old value is a tuple, a single value becomes a tuple. All
  other values are read as Python, or are a text.

  Args:
    text: The text.
    old: The value that is replaced.
    key: Its name, for messages.
    say: See `parse`.

  Raises:
    UserError: The old value is a tuple, and the text is none.

  Example:
    >>> parse_literal('None', 100, 'width', print)
    >>> parse_literal('(4, 8)', 100, 'width', print)
    (4, 8)
  """
  text = text.strip()
  if isinstance(old, str):
    return _unquoted(text)
  if isinstance(old, tuple | list) and text != 'None':
    return type(old)(_tuple(text, key, say))
  if isinstance(old, bool) and text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  value = _literal(text)
  if isinstance(old, float) and text in ('nan', 'inf', '-inf'):
    return float(text)
  if value is None and text != 'None':
    return text
  return float(value) if isinstance(old, float) and type(value) is int else value


def _unquoted(text: str) -> str:
  value = _literal(text) if text[:1] in ('"', "'") else None
  return value if isinstance(value, str) else text


def _literal(text: str) -> Any:
  """The value of a text as a Python literal, or None."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return None


def _tuple(text: str, key: str, say: Callable[[str], Any]) -> tuple:
  value = _literal(text)
  if isinstance(value, tuple | list):
    return tuple(value)
  if value is None:
    inside = text[1:-1] if text[:1] + text[-1:] in ('()', '[]') else text
    names = split(inside)
    if not names or not all(BARE.fullmatch(name) for name in map(_unquoted, names)):
      raise UserError(f"{key} takes a tuple, not '{text}': write ('one', 'two'), or () for none")
    made: tuple[Any, ...] = tuple(map(_unquoted, names))
  elif isinstance(value, str | int | float):
    made = (value,)
  else:
    raise UserError(f"{key} takes a tuple, not '{text}': write ('one', 'two'), or () for none")
  say(f'{key}={text} is taken as {made}')
  return made
