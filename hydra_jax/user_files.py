"""Python files that the user wrote: configs, tables and networks. What goes wrong in one is told in one line.

The line names the file and the line of the user's code in which the error happened.
"""

from collections.abc import Callable, Iterator
import contextlib
import inspect
from pathlib import Path
import re
import sys
import sysconfig
import traceback
from types import ModuleType
from typing import Any

from hydra_jax.errors import UserError, closest, without_place

# Code in these folders is not the user's.
LIBRARIES = {Path(__file__).resolve().parent} | {
  Path(folder).resolve()
  for kind in ('stdlib', 'platstdlib', 'purelib', 'platlib')
  if (folder := sysconfig.get_path(kind))
}


def load(place: str, what: str) -> ModuleType:
  """Runs a Python file and returns it as a module.

  It is read without a compiled copy: Python would take that for the newest if the file is edited within a second.

  Args:
    place: Its path, which has to end in `.py`.
    what: Begins the error message, such as `config file 'my_config.py'`.

  Raises:
    UserError: The file cannot be read, or it raises an error.
  """
  path = Path(place)
  if path.is_dir():
    raise UserError(f'{what} is a folder: give the path of a Python file')
  if path.suffix != '.py':
    raise UserError(f'{what} is not a Python file: its name must end in .py')
  try:
    source = path.read_bytes()
  except OSError as e:
    raise UserError(f'{what} cannot be read ({e.strerror}): check its path and permissions') from e
  module = ModuleType(place)
  module.__file__ = place
  sys.modules[place] = module  # dataclasses look up their annotations there
  with one_line(what):
    exec(compile(source, place, 'exec'), module.__dict__)
  return module


def call(module: ModuleType, name: str, what: str, *arguments: Any) -> Any:
  """Calls a function of a user's module; its errors are one line.

  Raises:
    UserError: There is no such function, or it raises an error.
  """
  function: Callable | None = getattr(module, name, None)
  if not callable(function):
    close = closest(name, [known for known, value in vars(module).items() if callable(value)])
    raise UserError(f'{what} has no function {name}: ' + (f"did you mean '{close}'?" if close else 'add one'))
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError as e:
    line = getattr(getattr(function, '__code__', None), 'co_firstlineno', '?')
    passed = ', '.join(map(repr, arguments)) or 'nothing'
    raise UserError(f'{what}, line {line}: {name} is given {passed}, and that does not fit: {e}') from e
  with one_line(what):
    return function(*arguments)


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
  """Turns any error into a `UserError` that names the last line of the user's code on the way to it."""
  try:
    yield
  except UserError as e:
    if e.has_place or not _place(e):
      raise
    raise without_place(UserError(f'{e}{_place(e)}')) from e
  except (Exception, SystemExit) as e:  # a config that exits would end the command without a word
    message = e.msg if isinstance(e, SyntaxError) else str(e)
    # ConfigDict lists all its keys when one is wrong.
    short = re.sub(r'Other fields present: .*?(?=Did you mean|$)', '', ' '.join(message.split()))
    raise without_place(UserError(f'{what}: {type(e).__name__}: {short[:300]}{_place(e)}')) from e


def _place(error: BaseException) -> str:
  """The last line of the user's code on the way to an error, in parentheses, or ''."""
  if isinstance(error, SyntaxError) and error.filename and error.lineno:
    return f' ({error.filename}, line {error.lineno})'
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
  return f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''


def _is_users(filename: str) -> bool:
  if filename.startswith('<'):
    return False
  path = Path(filename).resolve()
  return not any(path.is_relative_to(folder) for folder in LIBRARIES)
