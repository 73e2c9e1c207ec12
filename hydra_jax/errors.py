"""The one class of error that a user can cause."""

from collections.abc import Iterable
import difflib

SHOWN_AT_MOST = 20


class UserError(Exception):
  """Something the user can put right. The message is one line that says what to change.

  Attributes:
    has_place: Whether the message names the line of code that is to blame, or none is.
  """

  has_place = False


def without_place(error: UserError) -> UserError:
  """The same error, for which no line of code is to blame, such as a wrong argument."""
  error.has_place = True
  return error


def closest(word: object, legal: Iterable[object]) -> str:
  """The legal word that is spelt like this one, or '' if none is."""
  found = difflib.get_close_matches(str(word), [str(w) for w in legal], n=1)
  return found[0] if found else ''


def nearest(word: object, legal: Iterable[object]) -> str:
  """Returns "did you mean '…'?" or the legal words, for the end of an error message."""
  words = [str(w) for w in legal]
  if close := closest(word, words):
    return f"did you mean '{close}'?"
  return 'choose one of: ' + ', '.join(words[:SHOWN_AT_MOST]) + (', …' if len(words) > SHOWN_AT_MOST else '')


def look_up(table, word: str, what: str):
  """Returns `table[word]`, or raises a `UserError` that names the nearest legal word."""
  if word not in table:
    raise UserError(f"unknown {what} '{word}': {nearest(word, table)}")
  return table[word]
