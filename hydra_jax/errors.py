"""The class of all errors that a user can cause."""

from collections.abc import Iterable
import difflib

SHOWN_AT_MOST = 20


class UserError(Exception):
  """An error that the user can correct. The message is one line that says what to change.

  Attributes:
    has_place: True if the message names the line of code that is wrong, or if no line of code is wrong.
  """

  has_place = False


def without_place(error: UserError) -> UserError:
  """Marks an error whose message needs no line of code, such as a wrong argument."""
  error.has_place = True
  return error


def closest(word: object, legal: Iterable[object]) -> str:
  """The legal word with a similar spelling, or ''.

  Example:
    >>> closest('hidra', ['hydra', 'kd'])
    'hydra'
  """
  found = difflib.get_close_matches(str(word), [str(w) for w in legal], n=1)
  return found[0] if found else ''


def nearest(word: object, legal: Iterable[object]) -> str:
  """The end of an error message: "did you mean '…'?" or the legal words.

  Example:
    >>> nearest('x', ['hydra', 'kd'])
    'choose one of: hydra, kd'
  """
  words = [str(w) for w in legal]
  if close := closest(word, words):
    return f"did you mean '{close}'?"
  return 'choose one of: ' + ', '.join(words[:SHOWN_AT_MOST]) + (', …' if len(words) > SHOWN_AT_MOST else '')


def look_up(table, word: str, what: str):
  """Returns `table[word]`.

  Args:
    table: Values by legal word.
    word: The word.
    what: What the word names, for the message.

  Raises:
    UserError: The word is not in the table. The message names the nearest legal word.

  Example:
    >>> look_up({'hydra': 1}, 'hydra', 'method')
    1
  """
  if word not in table:
    raise UserError(f"unknown {what} '{word}': {nearest(word, table)}")
  return table[word]
