"""Networks of the user: in a config, `name='my_networks.py:make'` or `name='package.module:make'`.

The function takes the number of outputs. Its other arguments are the keys beside the name. It returns a list of stages.
An error in it becomes one line that names the place.
"""

from collections.abc import Callable, Mapping
import functools
import hashlib
import importlib
import inspect
from pathlib import Path
import sys
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn

from hydra_jax import user_files
from hydra_jax.errors import UserError, nearest
from hydra_jax.nets.stages import Stage, from_linen
from hydra_jax.user_files import one_line


class Origin(NamedTuple):
  """What a name stands for.

  Attributes:
    make: The function.
    files: Paths of its source files.
    digest: SHA-256 of their content, in hex.
  """

  make: Callable[..., Any]
  files: tuple[str, ...]
  digest: str


@functools.cache
def find(name: str) -> Origin:
  """Looks up a name, once: a run sees the source as it was when the run began.

  Raises:
    UserError: There is no such file, module or function.
  """
  place, _, function = name.rpartition(':')
  if place.endswith('.py'):
    if not Path(place).is_file():
      raise UserError(f"there is no file '{place}' in {Path.cwd()} to take a network from")
    module = user_files.load(place, f"network '{name}'")
  else:
    with one_line(f"network '{name}'"):
      module = importlib.import_module(place)
  make = getattr(module, function, None)
  if not callable(make):
    known = [n for n, value in vars(module).items() if inspect.isfunction(value)]
    raise UserError(f"network '{name}': no function '{function}' in {place}: {nearest(function, known or ['none'])}")
  sources = _sources(module, {})
  return Origin(make, tuple(sources), hashlib.sha256(b''.join(sources.values())).hexdigest())


def _sources(module: ModuleType | None, found: dict[str, bytes]) -> dict[str, bytes]:
  """Sources by file: of a module, and of all modules that it names and that are not installed."""
  file = getattr(module, '__file__', None)
  if module is None or file is None or file in found or (found and _is_installed(module, file)):
    return found
  found[file] = Path(file).read_bytes()
  for value in list(vars(module).values()):
    other = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, '__module__', None) or '')
    _sources(other, found)
  return found


def _is_installed(module: ModuleType, file: str) -> bool:
  top = module.__name__.partition('.')[0]
  return top in sys.stdlib_module_names or top == 'hydra_jax' or 'site-packages' in Path(file).parts


def stages(name: str, outputs: int, arguments: Mapping[str, Any]) -> list[Stage]:
  """The stages that the function of this name makes. Errors of its stages become one line as well.

  Args:
    name: See the top of the module.
    outputs: Number of outputs.
    arguments: Keyword arguments of the function.

  Raises:
    UserError: The arguments do not fit, the function fails, or it returns something else.
  """
  make = find(name).make
  try:
    takes = inspect.signature(make)
  except ValueError as e:
    raise UserError(f"network '{name}' is no Python function: give one that takes the number of outputs") from e
  try:
    takes.bind(outputs, **arguments)
  except TypeError as e:
    raise UserError(
      f"network '{name}' {e}: the keys beside its name are arguments, and it takes {', '.join(takes.parameters)}"
    ) from e
  with one_line(f"network '{name}'"):
    made = make(outputs, **arguments)
  if isinstance(made, Stage) or not isinstance(made, list | tuple) or not made:
    raise UserError(f"network '{name}' returns a {type(made).__name__}, where a list of stages is needed")
  gives = [None] * (len(made) - 1) + [outputs]
  return [_checked(part, f"network '{name}', stage {i}", gives[i]) for i, part in enumerate(made)]


def _checked(part: Any, what: str, outputs: int | None) -> Stage:
  """A stage whose errors are one line. A Linen module is adapted. Only the last stage has a number of `outputs`."""
  stage = from_linen(part) if isinstance(part, nn.Module) else part
  if not isinstance(stage, Stage):
    raise UserError(
      f'{what} is a {type(part).__name__}: make a Stage of it by hydra_jax.from_linen, from_nnx or from_equinox'
    )
  on = lambda x: f'{what}, on inputs of shape {[*x.shape[1:]]}'

  def init(key, x):
    with one_line(on(x)):
      return stage.init(key, x)

  def apply(params, state, x, key, train):
    with one_line(on(x)):
      y, state = stage.apply(params, state, x, key, train)
    if outputs is not None and y.shape != (len(x), outputs):
      raise UserError(f'{what}, the last one, gives outputs of shape {[*y.shape[1:]]}, not [{outputs}]')
    return y, state

  return stage._replace(init=init, apply=apply)
