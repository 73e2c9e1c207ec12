"""Recipes: what it takes to build a network again, as objects and as JSON that anybody may have edited.

A saved recipe is data. It is compared with a schema, and names in it are looked up in our own tables. A function of the
user's own is called only if the user names it or passes it, and if its source is what it was when the network was
trained.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
import functools
import inspect
import json
import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hydra_jax import store, user_files
from hydra_jax.errors import UserError
from hydra_jax.experiment import config as configs, provenance
from hydra_jax.experiment.schema import Settings, method_name, resolve
from hydra_jax.maths.tasks import TASKS, Predictive
from hydra_jax.methods import registry
from hydra_jax.methods.base import Method, MethodContext, Phase
from hydra_jax.nets import cut, user_networks
from hydra_jax.nets.cut import Network
from hydra_jax.nets.zoo import NETWORKS
from hydra_jax.settings import defaults, make
from hydra_jax.training.settings import TrainingSettings

# The largest numbers that a recipe may have: what is built takes time and memory before it can be compared.
LARGEST = 1_000_000
LARGEST_OF = dict.fromkeys(('members', 'heads', 'samples', 'factors', 'depth', 'phase'), 10_000)
LONGEST = 10_000  # lists and texts
ADDED = ('folds', 'views')  # settings that what was saved before them does not have
DEEPEST = 10  # arguments of functions of the user's own


@dataclass(frozen=True)
class Recipe:
  """What the phases of a method are built from.

  Attributes:
    role: `teacher` or `student`.
    settings: The method, and how it is trained.
    network: Name and arguments, as in the config.
    task: Key of `tasks.TASKS`.
    outputs: Number of classes or of targets.
    members: Of the teacher.
    make: The function that makes the network, where it was passed as an object; its name is in `network` too.
  """

  role: str
  settings: Settings
  network: ConfigDict
  task: str
  outputs: int
  members: int
  make: Callable[..., Any] | None = None

  @property
  def method(self) -> Method:
    """The method of these settings."""
    return registry.find(self.settings.method)


def recipe_of(config: ConfigDict, student: str | None, task: str, outputs: int) -> Recipe:
  """What a student, or the teacher if None, is built from; a student may have another network than the others."""
  role = 'teacher' if student is None else 'student'
  network = config.network[role] if student is None else config.student[student].get('network', config.network[role])
  return Recipe(role, resolve(config, student), network, task, outputs, config.teacher.members)


def recipes_in(config: ConfigDict, task: str, outputs: int) -> list[tuple[str, Recipe]]:
  """Names and recipes of all that a config trains: the ensemble, unless it is there already, and the students."""
  made = config.teacher.predictions or config.teacher.checkpoints
  rows = [] if made else [('ensemble', recipe_of(config, None, task, outputs))]
  return [*rows, *((name, recipe_of(config, name, task, outputs)) for name in config.students)]


def phases_of(recipe: Recipe, mapping: str = 'auto') -> list[Phase]:
  """The phases of a method, with their networks, whose heads are mapped as `mapping` says."""
  task = TASKS[recipe.task]

  if recipe.network.get('homoscedastic') and recipe.task != 'regression':
    raise UserError(f'config.network.{recipe.role}.homoscedastic is for regression: set it to False')

  def stages(predictive: str, times: int = 1):
    outputs = times * task.predictives[predictive].outputs(recipe.outputs)
    if recipe.make is not None:
      return user_networks.made(recipe.make, recipe.network.name, outputs, arguments_of(recipe.network))
    return configs.build_stages(recipe.network, outputs)

  return recipe.method.phases(recipe.settings.own, MethodContext(task, stages, recipe.members, mapping))


def arguments_of(network: Mapping[str, Any]) -> dict[str, Any]:
  """Keyword arguments of the function that makes a network."""
  return {key: value for key, value in network.items() if key != 'name'}


def predictive_of(recipe: Recipe) -> Predictive:
  """How the outputs of a method are read."""
  return TASKS[recipe.task].predictives[recipe.method.predictive]


def _nothing(predictor: Any) -> dict[str, Any]:
  del predictor
  return {}


@dataclass(frozen=True)
class Built:
  """What a trained network was built from, and what is known of it: all that a saved model needs besides arrays.

  Attributes:
    recipe: What its phases were built from.
    phase: Which of these it is.
    facts: `predictor -> ` what is known of it, see `serving.card.Facts`; for the model card.
  """

  recipe: Recipe
  phase: int
  facts: Callable[[Any], dict[str, Any]] = _nothing


def describe_network(network: Callable[..., Any]) -> tuple[ConfigDict, Callable[..., Any] | None]:
  """Name and arguments of a network that is given as a function of the number of outputs, for a `Recipe`.

  Args:
    network: A function of `nets.zoo`, or of the user's own, or `functools.partial` of one with keyword arguments.

  Returns:
    What stands in a recipe as `network`, and as `make`: None for a function of ours, which is found by its name.

  Example:
    >>> network, make = describe_network(functools.partial(hydra_jax.mlp, widths=(50,)))
    >>> network.to_dict(), make
    ({'name': 'mlp', 'widths': (50,)}, None)
  """
  function = network.func if isinstance(network, functools.partial) else network
  given = network.args if isinstance(network, functools.partial) else ()
  arguments = dict(network.keywords) if isinstance(network, functools.partial) else {}
  for name, ours in NETWORKS.items():
    if function is ours and not given and 'name' not in arguments:
      return ConfigDict({'name': name, **arguments}), None
  plain = inspect.isfunction(function) and not given and 'name' not in arguments and _are_plain(arguments)
  name = f'{function.__module__}:{function.__name__}' if plain else ':'
  return ConfigDict({'name': name, **(arguments if plain else {})}), function if plain else network


def _are_plain(arguments: dict[str, Any]) -> bool:
  try:
    json.dumps(arguments)
  except TypeError:
    return False
  return True


def built_from(
  role: str,
  settings: Settings,
  network: Callable[..., Any],
  sizes: tuple[str, int, int],
  phase: int,
  facts: Callable[[Any], dict[str, Any]],
) -> Built:
  """What a network was built from that was trained on arrays.

  Args:
    role: `teacher` or `student`.
    settings: The method, and how it was trained.
    network: See `describe_network`.
    sizes: The task, the number of classes or targets, and the number of members of the teacher.
    phase: Which phase of the method.
    facts: See `Built`.
  """
  task, outputs, members = sizes
  about, make = describe_network(network)
  return Built(Recipe(role, settings, about, task, outputs, members, make), phase, facts)


def network_of(recipe: Recipe, phase: int, file: Path) -> tuple[Network, Predictive]:
  """The network of a phase of a recipe, and how its outputs are read.

  Args:
    recipe: As saved.
    phase: Which of its phases.
    file: In which it is saved, for messages.

  Raises:
    UserError: It describes no network.
  """
  try:
    phases, predictive = phases_of(recipe), predictive_of(recipe)
  except UserError as e:
    raise UserError(f'{file}: {e}') from e
  except Exception as e:  # whatever does not go together, though each value is legal
    raise UserError(f'{file} describes no network ({store.one_line(e)}): make it again') from e
  expect(phase < len(phases), file, f'its method has {len(phases)} phases')
  return phases[phase].network, predictive


def shapes_of(network: Network, shape: Sequence[int], where: Path) -> tuple[Any, Any]:
  """Abstract parameters and state of a network, for inputs of a shape `[B, …]` without its first axis."""
  try:
    return cut.shapes_of(network, tuple(shape))
  except Exception as e:
    raise UserError(f'{where} is of a network that does not read such inputs: {store.one_line(e)}') from e


def to_json(recipe: Recipe, phase: int, keeps_make: bool = False) -> dict[str, Any]:
  """A recipe as JSON, with digests of the sources of functions of the user's own.

  Args:
    recipe: What it is.
    phase: Which of its phases.
    keeps_make: Whether `Recipe.make` is kept beside it as an object, and needs no name by which it is found again.

  Raises:
    UserError: A function of the user's own cannot be found again.
  """
  settings, network = recipe.settings, recipe.network.to_dict()
  functions = {'network': network['name'], 'method': settings.method}
  about: dict[str, Any] = {'role': recipe.role, 'method': settings.method}
  about |= {'training': asdict(settings.training), 'settings': asdict(settings.own), 'network': network}
  about |= {'task': recipe.task, 'outputs': recipe.outputs, 'members': recipe.members}
  named = {what: name for what, name in functions.items() if ':' in name and not (keeps_make and name == ':')}
  sources = {what: _source(name, what, recipe.make) for what, name in named.items()}
  return about | {'sources': sources, 'phase': phase}


def _source(name: str, what: str, passed: Callable[..., Any] | None) -> str:
  """Digest of the source of a function of the user's own, by its name, or as it was passed."""
  if what != 'network' or passed is None:
    return user_files.find(name, what).digest
  if name == ':' or '<' in name:
    raise UserError(
      f'the network {passed!r} has no name by which it can be asked for: pass a function that is made by def, or '
      'functools.partial of it with keyword arguments that are numbers, texts or lists of these'
    )
  return provenance.source_digest(passed)


# What `to_json` writes, each with a value of its type.
FIELDS: dict[str, Any] = dict(
  **dict(role='', method='', training={}, settings={}, network={}, sources={}, task='', outputs=1, members=1, phase=0),
)


def from_json(
  found: Mapping[str, Any], own: Collection[Any], file: Path, make: Callable[..., Any] | None = None
) -> tuple[Recipe, int]:
  """The recipe and the phase that `to_json` wrote; nothing that they name is called.

  Args:
    found: With the keys of `FIELDS`, compared with them by `check_keys`.
    own: Functions and methods of the user's own that may be its network or its method: names, or functions.
    file: In which it is saved, for messages.
    make: What makes the network, where it was kept as an object. If it is a function, its source is compared.

  Raises:
    UserError: It is not what `to_json` writes, or a function of the user's own is not in `own` or was edited.
  """
  sources = found['sources']
  check_keys(sources, dict.fromkeys(('network', 'method'), ''), 'sources.', file, ('network', 'method'))
  expect(found['role'] in ('teacher', 'student'), file, 'role is neither teacher nor student')
  expect(found['task'] in TASKS, file, f'task is none of {", ".join(TASKS)}')
  expect(found['outputs'] >= 1 and found['members'] >= 1 and found['phase'] >= 0, file, 'a count is negative or 0')
  method = _method(found['method'], sources, own, file)
  if make is None:
    network, passed = _network(found['network'], sources, own, file)
  elif found['network'].get('name') == ':':
    network, passed = found['network'], make
  else:
    network, passed = _network(found['network'], sources, (make,), file)
  training = _settings(TrainingSettings, found['training'], 'training', file)
  settings = Settings(method, training, _settings(registry.find(method).settings, found['settings'], 'settings', file))
  about = found['task'], found['outputs'], found['members']
  return Recipe(found['role'], settings, ConfigDict(network), *about, passed), found['phase']


def user_functions(config: ConfigDict) -> dict[str, str]:
  """What a config names of the user's own that a recipe may name too: `{name: 'network' or 'method'}`."""
  students = [section.network for section in config.student.values() if 'network' in section]
  networks = [config.network.teacher, config.network.student, *students]
  found = {network.get('name'): 'network' for network in networks}
  found |= {method_name(config, student): 'method' for student in config.student}
  return {name: what for name, what in found.items() if isinstance(name, str) and ':' in name}


def _settings(kind: type, found: dict[str, Any], where: str, file: Path) -> Any:
  """Settings in a recipe, each checked."""
  check_keys(found, defaults(kind), f'{where}.', file, ADDED)
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
  try:
    return make(kind, values, f'{where}.')
  except UserError as e:
    raise not_as_saved(file, str(e)) from e


def check_keys(found: dict[str, Any], like: Mapping[str, Any], where: str, file: Path, optional=()) -> None:
  for key in {**like, **found}:
    expect(key in like, file, f'it has {where}{store.one_line(key, 40)}, which this version does not know')
    expect(key in found or key in optional, file, f'{where}{key} is missing')
  for key, value in found.items():
    expect(_is_like(value, like[key]), file, f'{where}{key} is no {type(like[key]).__name__}')
    _plain(value, f'{where}{key}', file)
    largest = LARGEST_OF.get(key)
    expect(largest is None or abs(value) <= largest, file, f'{where}{key} is larger than {largest}')


def _is_like(value: Any, like: Any) -> bool:
  """Whether JSON gives a value for one of the type of `like`; None stands for any."""
  match like:
    case None:
      return True
    case bool() | str() | dict():
      return type(value) is type(like)
    case int():
      return type(value) is int
    case float():
      return type(value) in (int, float)
  return isinstance(value, list)


def _plain(value: Any, where: str, file: Path, depth: int = 0) -> None:
  """Bounds what is handed on: numbers, sizes and depth."""
  expect(depth <= DEEPEST, file, f'{where} is nested too deep')
  if isinstance(value, dict | list):
    expect(len(value) <= LONGEST, file, f'{where} is too long')
    for each in value.values() if isinstance(value, dict) else value:
      _plain(each, where, file, depth + 1)
  elif isinstance(value, str):
    expect(len(value) <= LONGEST, file, f'{where} is too long')
  elif isinstance(value, int | float):
    expect(math.isfinite(value) and abs(value) <= LARGEST, file, f'{where} is larger than {LARGEST}')


def expect(right: bool, file: Path, what: str) -> None:
  if not right:
    raise not_as_saved(file, what)


def not_as_saved(file: Path, what: str) -> UserError:
  return UserError(f'{file} is not as it was saved ({what}): make it again, or leave it out')


def _method(name: str, sources: Mapping[str, str], own: Collection[Any], file: Path) -> str:
  """The method of a recipe, its name looked up."""
  if ':' in name:
    return _own_function(name, 'method', sources.get('method', ''), own, file)
  expect(name in registry.METHODS, file, f'method is none of {", ".join(registry.METHODS)}, nor one of your own')
  return name


def _network(
  network: dict[str, Any], sources: Mapping[str, str], own: Collection[Any], file: Path
) -> tuple[dict[str, Any], Callable[..., Any] | None]:
  """The network of a recipe, its name looked up and its arguments checked; and the function, where it was passed."""
  name = network['name'] if isinstance(network.get('name'), str) else ''
  if ':' in name:
    mine = _own_function(name, 'network', sources.get('network', ''), own, file)
    return ({**network, 'name': mine}, None) if isinstance(mine, str) else (network, mine)
  expect(name in NETWORKS, file, f'network.name is none of {", ".join(NETWORKS)}, nor a function of your own')
  takes = list(inspect.signature(NETWORKS[name]).parameters.values())[1:]
  like = {'name': '', **{p.name: None if p.default is p.empty else p.default for p in takes}}
  check_keys(network, like, 'network.', file, optional=like)
  for key, value in network.items():
    if isinstance(like[key], int) and not isinstance(like[key], bool):
      least = 0 if like[key] == 0 else 1
      expect(value >= least, file, f'network.{key} is less than {least}')
    if isinstance(like[key], tuple):
      expect(all(type(each) is int and each >= 1 for each in value), file, f'network.{key} is no list of sizes')
      expect(len(value) <= 1000, file, f'network.{key} is too long')
  return network, None


def _own_function(name: str, what: str, source: str, own: Collection[Any], file: Path) -> Any:
  """What the user gave for a saved name: a name in the user's config or call, or a function.

  Raises:
    UserError: Nothing was given, or its source is not that with which the network was trained.
  """
  name = store.one_line(name)
  named = [mine for mine in map(_unwrapped, own) if _last_word(mine) == _last_word(name)]
  if not named:
    key = {'network': 'network.teacher.name', 'method': 'student.NAME.method'}[what]
    raise UserError(
      f"{file}: its {what} is '{name}', and what a saved file names is not called: if you trust it, name it in your "
      f'own config, as --config.{key}={name}, with its arguments beside it, or pass it: hydra_jax.load(…, '
      f"functions=['{name}'])"
    )
  for mine in named:
    if source and source in _digests(mine, what):
      return mine
  shown = named[0] if isinstance(named[0], str) else name
  raise UserError(
    f"{file}: the source of '{shown}' is not that with which it was trained: bring that back, or train it again"
  )


def _unwrapped(mine: Any) -> Any:
  return mine.func if isinstance(mine, functools.partial) else mine


def _last_word(mine: Any) -> str:
  """The name of a function, of what names it, or of the object."""
  return (mine if isinstance(mine, str) else getattr(mine, '__name__', '')).rpartition(':')[2]


def _digests(mine: Any, what: str) -> Iterator[str]:
  """Digests that may stand in a recipe: of the file, where it was named, and of the function, where it was passed."""
  if isinstance(mine, str):
    found = user_files.find(mine, what)
    yield found.digest
    mine = found.value
  elif digest := user_files.digest_of_module(inspect.getmodule(mine)):
    yield digest
  if inspect.isfunction(mine):
    yield provenance.source_digest(mine)
