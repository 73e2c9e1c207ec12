"""The one class of error that a user can cause."""


class UserError(Exception):
  """Something the user can put right. The message is one line that says what to change."""


def nearest(word: str, legal) -> str:
  """Returns '; did you mean …?' or the legal words, for the end of an error message."""
  import difflib

  close = difflib.get_close_matches(str(word), [str(w) for w in legal], n=1)
  return f"did you mean '{close[0]}'?" if close else 'choose one of: ' + ', '.join(map(str, legal))


def look_up(table, word: str, what: str):
  """Returns `table[word]`, or raises a `UserError` that names the nearest legal word."""
  if word not in table:
    raise UserError(f"unknown {what} '{word}': {nearest(word, table)}")
  return table[word]
