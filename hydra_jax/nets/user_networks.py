"""Networks of the user: in a config, `name='my_networks.py:make'` or `name='package.module:make'`.

The function takes the number of outputs. Its other arguments are the keys beside the name. It returns a list of stages.
An error in it becomes one line that names the place.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any

import flax.linen as nn

from hydra_jax.errors import UserError
from hydra_jax.nets.stages import Stage, from_linen
from hydra_jax.user_files import find_function, one_line


def stages(name: str, outputs: int, arguments: Mapping[str, Any]) -> list[Stage]:
  """The stages that the function of this name makes. Errors of its stages become one line as well.

  Args:
    name: See the top of the module.
    outputs: Number of outputs.
    arguments: Keyword arguments of the function.

  Raises:
    UserError: The arguments do not fit, the function fails, or it returns something else.
  """
  return made(find_function(name, 'network'), name, outputs, arguments)


def made(make: Callable[..., Any], name: str, outputs: int, arguments: Mapping[str, Any]) -> list[Stage]:
  """The same, of a function that is there; `name` is for messages."""
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
    parts = make(outputs, **arguments)
  if isinstance(parts, Stage) or not isinstance(parts, list | tuple) or not parts:
    raise UserError(f"network '{name}' returns a {type(parts).__name__}, where a list of stages is needed")
  gives = [None] * (len(parts) - 1) + [outputs]
  return [_checked(part, f"network '{name}', stage {i}", gives[i]) for i, part in enumerate(parts)]


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
