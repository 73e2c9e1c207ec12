"""Python files of the user: configs, tables, networks, methods, data and metrics.

An error in such a file becomes one line. It names the file and the line of the user's code in which the error happened.
"""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, is_dataclass
import functools
import hashlib
import importlib
import inspect
from pathlib import Path
import re
import sys
import sysconfig
import traceback
from types import ModuleType
from typing import Any

from hydra_jax.errors import UserError, closest, nearest, without_place

# Code in these folders is not code of the user.
LIBRARIES = {Path(__file__).resolve().parent} | {
  Path(folder).resolve()
  for kind in ('stdlib', 'platstdlib', 'purelib', 'platlib')
  if (folder := sysconfig.get_path(kind))
}


def load(place: str, what: str) -> ModuleType:
  """Runs a Python file and returns it as a module.

  No compiled copy is used. Python would take an old copy of a file that was edited within a second.

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
  """Calls a function of a module of the user.

  Args:
    module: The module.
    name: Of the function.
    what: Begins the error message.
    *arguments: Of the function.

  Raises:
    UserError: There is no such function, the arguments do not fit, or the function raises an error.
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


@dataclass(frozen=True)
class Origin:
  """What a name such as `my_networks.py:make` stands for.

  Attributes:
    value: The function or object.
    files: The files of its source.
    digest: Of these files.
  """

  value: Any
  files: tuple[str, ...]
  digest: str


@functools.cache
def find(name: str, what: str) -> Origin:
  """Looks up `file.py:name` or `package.module:name`, once: a run sees the source as it was when it began.

  Args:
    name: As above.
    what: What it is, such as `network`, for messages.

  Raises:
    UserError: There is no such file or name.
  """
  place, _, word = name.rpartition(':')
  if place.endswith('.py'):
    if not Path(place).is_file():
      raise UserError(f"there is no file '{place}' in {Path.cwd()} to take a {what} from")
    module = load(place, f"{what} '{name}'")
  else:
    with one_line(f"{what} '{name}'"):
      module = importlib.import_module(place)
  value = getattr(module, word, None)
  if value is None:
    is_one = lambda other: inspect.isfunction(other) or (is_dataclass(other) and not isinstance(other, type))
    known = [n for n, other in vars(module).items() if is_one(other)]
    kind = 'method' if what == 'method' else 'function'
    raise UserError(f"{what} '{name}': no {kind} '{word}' in {place}: {nearest(word, known or ['none'])}")
  return Origin(value, tuple(_sources(module, {})), digest_of_module(module))


def digest_of_module(module: ModuleType | None) -> str:
  """Digest of the files of a module's source, and of all that it names from others of the user's; '' without a file."""
  sources = _sources(module, {})
  return hashlib.sha256(b''.join(sources.values())).hexdigest() if sources else ''


def is_name(text: str) -> bool:
  """Whether a text names something in a file or module of the user's: `my_data.py:load`."""
  return re.fullmatch(r'[^\[\]]+:\w+', text) is not None


def find_function(name: str, what: str) -> Callable[..., Any]:
  """The function of such a name.

  Raises:
    UserError: There is none, or it is no function.
  """
  function = find(name, what).value
  if not callable(function):
    raise UserError(f"{what} '{name}' is a {type(function).__name__}, and must be a function")
  return function


def _sources(module: ModuleType | None, found: dict[str, bytes]) -> dict[str, bytes]:
  """Sources by file: of a module, and of all that it names from others that are not installed either."""
  file = getattr(module, '__file__', None)
  if module is None or file is None or file in found or (found and is_installed(module)):
    return found
  found[file] = Path(file).read_bytes()
  for value in list(vars(module).values()):
    other = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, '__module__', None) or '')
    _sources(other, found)
  return found


def is_installed(module: ModuleType) -> bool:
  """Whether a module is none of the user's own."""
  top, file = module.__name__.partition('.')[0], getattr(module, '__file__', None) or ''
  return top in sys.stdlib_module_names or top == 'hydra_jax' or 'site-packages' in Path(file).parts


@contextlib.contextmanager
def one_line(what: str) -> Iterator[None]:
  """A context that turns errors into a `UserError` with the last line of the user's code in their traceback.

  Args:
    what: Begins the error message.

  Raises:
    UserError: The block raises an error.
  """
  try:
    yield
  except UserError as e:
    if e.has_place or not _place(e):
      raise
    raise without_place(UserError(f'{e}{_place(e)}')) from e
  except (Exception, SystemExit) as e:  # a config that exits would end the command without a message
    message = e.msg if isinstance(e, SyntaxError) else str(e)
    # ConfigDict lists all its keys when one is wrong.
    short = re.sub(r'Other fields present: .*?(?=Did you mean|$)', '', ' '.join(message.split()))
    raise without_place(UserError(f'{what}: {type(e).__name__}: {short[:300]}{_place(e)}')) from e


def _place(error: BaseException) -> str:
  """The last line of the user's code in the traceback of an error, in parentheses, or ''."""
  if isinstance(error, SyntaxError) and error.filename and error.lineno:
    return f' ({error.filename}, line {error.lineno})'
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
  return f' ({frames[-1].filename}, line {frames[-1].lineno})' if frames else ''


def _is_users(filename: str) -> bool:
  if filename.startswith('<'):
    return False
  path = Path(filename).resolve()
  return not any(path.is_relative_to(folder) for folder in LIBRARIES)
