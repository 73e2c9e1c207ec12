"""Trained parts: what is saved beside their parameters, so that each can be loaded by itself.

A saved part may come from anywhere, and is data: its files are compared with their checksums, its recipe with a schema,
and names in it are looked up in our own tables. A function of the user's own is called only if the user's own config
names it, and if its source is what it was when the part was trained.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
import inspect
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store, user_files
from hydra_jax.data import Columns, Data, Scaling, scale_inputs, standardised
from hydra_jax.devices import processes
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import config as configs
from hydra_jax.experiment.schema import Settings, method_name, resolve
from hydra_jax.maths.tasks import TASKS, Predictive
from hydra_jax.methods import registry
from hydra_jax.methods.base import Method, MethodContext, Phase
from hydra_jax.nets.cut import Network
from hydra_jax.nets.zoo import NETWORKS
from hydra_jax.settings import defaults, make
from hydra_jax.training import checkpoints
from hydra_jax.training.settings import TrainingSettings

RECIPE = 'recipe.json'
MODEL = 'model'
SCALING = 'scaling.npz'
COLUMNS = 'columns.json'
# The largest numbers that a recipe may have: what is built takes time and memory before it can be compared.
LARGEST = 1_000_000
LARGEST_OF = dict.fromkeys(('members', 'heads', 'samples', 'factors', 'depth', 'phase'), 10_000)
LONGEST = 10_000  # lists and texts
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
  """

  role: str
  settings: Settings
  network: ConfigDict
  task: str
  outputs: int
  members: int

  @property
  def method(self) -> Method:
    """The method of these settings."""
    return registry.find(self.settings.method)


def recipe_of(config: ConfigDict, student: str | None, task: str, outputs: int) -> Recipe:
  """What a student, or the teacher if None, is built from; a student may have another network than the others."""
  role = 'teacher' if student is None else 'student'
  network = config.network[role] if student is None else config.student[student].get('network', config.network[role])
  return Recipe(role, resolve(config, student), network, task, outputs, config.teacher.members)


def recipes(config: ConfigDict, task: str, outputs: int) -> list[tuple[str, Recipe]]:
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
    return configs.build_stages(recipe.network, times * task.predictives[predictive].outputs(recipe.outputs))

  return recipe.method.phases(recipe.settings.own, MethodContext(task, stages, recipe.members, mapping))


def predictive_of(recipe: Recipe) -> Predictive:
  """How the outputs of a method are read."""
  return TASKS[recipe.task].predictives[recipe.method.predictive]


def example(data: Data) -> jax.Array:
  """Two inputs as a network reads them."""
  return scale_inputs(data.scaling, jnp.asarray(standardised(data.scaling, data.train.example[:2])))


def save(folder: Path, params: Any, state: Any, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  """Saves what a phase has trained, and what it takes to build its network again.

  Arrays have a leading axis R, also for a single replica.
  """
  checkpoints.save(folder / MODEL, (params, state))
  processes.run_on_main(lambda: _describe(folder, recipe, phase, data))


def _describe(folder: Path, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  settings, network = recipe.settings, recipe.network.to_dict()
  functions = {'network': network['name'], 'method': settings.method}
  about = {'format': store.FORMAT, 'role': recipe.role, 'method': settings.method}
  about |= {'training': asdict(settings.training), 'settings': asdict(settings.own), 'network': network}
  about |= {'task': recipe.task, 'outputs': recipe.outputs, 'members': recipe.members}
  about |= {'sources': {what: user_files.find(n, what).digest for what, n in functions.items() if ':' in n}}
  about |= {'phase': phase, 'data': [each.fingerprint for each in data], 'shape': data[0].train.example.shape[1:]}
  about |= {'dtype': data[0].train.example.dtype.name, 'classes': data[0].classes}
  (folder / RECIPE).write_text(json.dumps(about, indent=2))
  if data[0].columns is not None:  # rows are divided alike for all replicas
    (folder / COLUMNS).write_text(json.dumps(data[0].columns.to_json(), indent=1, ensure_ascii=False), 'utf-8')
  scaling = Scaling(*(np.stack(arrays) for arrays in zip(*(each.scaling for each in data), strict=True)))
  np.savez(folder / SCALING, allow_pickle=False, **scaling._asdict())


def user_functions(config: ConfigDict) -> dict[str, str]:
  """What a config names of the user's own that a recipe may name too: `{name: 'network' or 'method'}`."""
  students = [section.network for section in config.student.values() if 'network' in section]
  networks = [config.network.teacher, config.network.student, *students]
  found = {network.get('name'): 'network' for network in networks}
  found |= {method_name(config, student): 'method' for student in config.student}
  return {name: what for name, what in found.items() if isinstance(name, str) and ':' in name}


def restore(folder: Path, network: Network, shape: Sequence[int], replicas: int) -> tuple[Any, Any]:
  """Parameters and state in the folder of an artifact, with a leading axis R, for inputs of a shape."""
  try:
    like = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
  except Exception as e:
    raise UserError(f'{folder} is of a network that does not read such inputs: {store.one_line(e)}') from e
  like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), like)
  return checkpoints.restore(folder / MODEL, like)


def of_replica(trees: Any, index: int) -> Any:
  """The arrays of one replica."""
  return jax.tree.map(lambda leaf: leaf[index], trees)


def find(place: str) -> Path:
  """The folder of a part: `place` itself, or that of the teacher in the run at `place`."""
  if (Path(place) / RECIPE).is_file():
    return Path(place)
  found = sorted(p.parent for p in Path(place).glob(f'*/*/{RECIPE}') if _role(p) == 'teacher')
  if len(found) != 1:
    which = f'one of: {", ".join(map(str, found[:4]))}' if found else 'the folder of a finished run, or of a part in it'
    raise UserError(f"'{place}' holds {len(found)} trained teachers: give {which}")
  return found[0]


def _role(file: Path) -> Any:
  saved = store.read_json(file)
  return saved.get('role') if isinstance(saved, dict) else None


class Saved(NamedTuple):
  """What is saved beside the parameters of a part.

  Attributes:
    recipe: What its phases were built from.
    phase: Which of these it is.
    data: Fingerprints of the training sets, one for each replica that was trained together.
    shape: Of an input.
    dtype: Of inputs as stored.
    classes: Their names, by output; empty if they are numbered, and in regression.
  """

  recipe: Recipe
  phase: int
  data: list[str]
  shape: list[int]
  dtype: str
  classes: list[str]


def read(folder: Path, own: Collection[str] = ()) -> Saved:
  """Reads what is saved beside the parameters of a part, after its checksums; nothing that it names is called.

  Args:
    folder: Of the part.
    own: Functions and methods of the user's own that may be its network or its method, see `user_functions`.

  Raises:
    UserError: Where it is damaged, or is not what `save` writes.
  """
  store.verify(folder)
  file = folder / RECIPE
  found = _fields(store.read_json(file), file)
  method = _method(found['method'], found['sources'], own, file)
  network = ConfigDict(_network(found['network'], found['sources'], own, file))
  training = _settings(TrainingSettings, found['training'], 'training', file)
  settings = Settings(method, training, _settings(registry.find(method).settings, found['settings'], 'settings', file))
  recipe = Recipe(found['role'], settings, network, found['task'], found['outputs'], found['members'])
  return Saved(recipe, *(found[key] for key in ('phase', 'data', 'shape', 'dtype', 'classes')))


def _fields(found: Any, file: Path) -> dict[str, Any]:
  """What a recipe says, its types and ranges checked."""
  like = dict(
    **dict(role='', method='', training={}, settings={}, network={}, sources={}, task='', outputs=1, members=1),
    **dict(phase=0, data=('',), shape=(), dtype='', classes=()),
  )
  _expect(isinstance(found, dict), file, 'it is no object')
  if found.get('format', 1) != store.FORMAT:
    raise UserError(f'{file.parent} {store.OTHER_FORMAT}: train it again with this version, or leave it out')
  found = {key: value for key, value in found.items() if key != 'format'}
  _check_keys(found, like, '', file)
  _check_keys(found['sources'], dict.fromkeys(('network', 'method'), ''), 'sources.', file, ('network', 'method'))
  _expect(found['role'] in ('teacher', 'student'), file, 'role is neither teacher nor student')
  _expect(found['task'] in TASKS, file, f'task is none of {", ".join(TASKS)}')
  _expect(found['outputs'] >= 1 and found['members'] >= 1 and found['phase'] >= 0, file, 'a count is negative or 0')
  _expect(len(found['data']) >= 1, file, 'data is empty')
  _expect(all(type(size) is int and size >= 1 for size in found['shape']), file, 'shape is no list of sizes')
  _expect(all(isinstance(name, str) for name in found['classes']), file, 'classes are no names')
  return found


def _settings(kind: type, found: dict[str, Any], where: str, file: Path) -> Any:
  """Settings in a recipe, each checked."""
  _check_keys(found, defaults(kind), f'{where}.', file)
  values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
  try:
    return make(kind, values, f'{where}.')
  except UserError as e:
    raise _not_as_saved(file, str(e)) from e


def _check_keys(found: dict[str, Any], like: Mapping[str, Any], where: str, file: Path, optional=()) -> None:
  for key in {**like, **found}:
    _expect(key in like, file, f'it has {where}{store.one_line(key, 40)}, which this version does not know')
    _expect(key in found or key in optional, file, f'{where}{key} is missing')
  for key, value in found.items():
    _expect(_is_like(value, like[key]), file, f'{where}{key} is no {type(like[key]).__name__}')
    _plain(value, f'{where}{key}', file)
    largest = LARGEST_OF.get(key)
    _expect(largest is None or abs(value) <= largest, file, f'{where}{key} is larger than {largest}')


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
  _expect(depth <= DEEPEST, file, f'{where} is nested too deep')
  if isinstance(value, dict | list):
    _expect(len(value) <= LONGEST, file, f'{where} is too long')
    for each in value.values() if isinstance(value, dict) else value:
      _plain(each, where, file, depth + 1)
  elif isinstance(value, str):
    _expect(len(value) <= LONGEST, file, f'{where} is too long')
  elif isinstance(value, int | float):
    _expect(math.isfinite(value) and abs(value) <= LARGEST, file, f'{where} is larger than {LARGEST}')


def _expect(right: bool, file: Path, what: str) -> None:
  if not right:
    raise _not_as_saved(file, what)


def _not_as_saved(file: Path, what: str) -> UserError:
  return UserError(f'{file} is not as it was saved ({what}): train that part again, or leave it out')


def _method(name: str, sources: Mapping[str, str], own: Collection[str], file: Path) -> str:
  """The method of a recipe, its name looked up."""
  if ':' in name:
    return _own_function(name, 'method', sources.get('method', ''), own, file)
  _expect(name in registry.METHODS, file, f'method is none of {", ".join(registry.METHODS)}, nor one of your own')
  return name


def _network(network: dict[str, Any], sources: Mapping[str, str], own: Collection[str], file: Path) -> dict[str, Any]:
  """The network of a recipe, its name looked up and its arguments checked."""
  name = network['name'] if isinstance(network.get('name'), str) else ''
  if ':' in name:
    return {**network, 'name': _own_function(name, 'network', sources.get('network', ''), own, file)}
  _expect(name in NETWORKS, file, f'network.name is none of {", ".join(NETWORKS)}, nor a function of your own')
  takes = list(inspect.signature(NETWORKS[name]).parameters.values())[1:]
  like = {'name': '', **{p.name: None if p.default is p.empty else p.default for p in takes}}
  _check_keys(network, like, 'network.', file, optional=like)
  for key, value in network.items():
    if isinstance(like[key], int) and not isinstance(like[key], bool):
      least = 0 if like[key] == 0 else 1
      _expect(value >= least, file, f'network.{key} is less than {least}')
    if isinstance(like[key], tuple):
      _expect(all(type(each) is int and each >= 1 for each in value), file, f'network.{key} is no list of sizes')
      _expect(len(value) <= 1000, file, f'network.{key} is too long')
  return network


def _own_function(name: str, what: str, source: str, own: Collection[str], file: Path) -> str:
  """The function of the user's own, by the name in the user's config, that a saved name stands for."""
  name = store.one_line(name)
  named = [mine for mine in own if mine.rpartition(':')[2] == name.rpartition(':')[2]]
  if not named:
    key = {'network': 'network.teacher.name', 'method': 'student.NAME.method'}[what]
    raise UserError(
      f"{file}: its {what} is '{name}', and what a saved file names is not called: if you trust it, name it in your "
      f'own config, as --config.{key}={name}, with its arguments beside it'
    )
  for mine in named:
    if source and user_files.find(mine, what).digest == source:
      return mine
  raise UserError(
    f"{file}: the source of '{named[0]}' is not that with which it was trained: bring that back, or train it again"
  )


def read_scaling(folder: Path, replica: int) -> Scaling:
  """How inputs and targets of one replica are scaled."""
  arrays = store.read_arrays(folder / SCALING)
  _expect(set(arrays) == set(Scaling._fields), folder / SCALING, 'arrays are missing')
  return Scaling(**{name: arrays[name][replica] for name in Scaling._fields})


def read_columns(folder: Path) -> Columns | None:
  """What the columns of the table become on which a part was trained, or None if it was no table."""
  file = folder / COLUMNS
  return Columns.from_json(store.read_json(file), str(file)) if file.is_file() else None


def network_of(place: str, own: Collection[str] = ()) -> tuple[Path, Saved, Network, Predictive]:
  """The folder of a part, what is saved beside it, its network, and how that is read; for `own` see `read`."""
  folder = find(place)
  saved = read(folder, own)
  try:
    phases, predictive = phases_of(saved.recipe), predictive_of(saved.recipe)
  except UserError as e:
    raise UserError(f'{folder / RECIPE}: {e}') from e
  except Exception as e:  # whatever does not go together, though each value is legal
    raise UserError(f'{folder / RECIPE} describes no network ({store.one_line(e)}): train that part again') from e
  _expect(saved.phase < len(phases), folder / RECIPE, f'its method has {len(phases)} phases')
  return folder, saved, phases[saved.phase].network, predictive


def load(place: str, data: Data, replica: int = 0, own: Collection[str] = ()) -> tuple[Model, str]:
  """A trained model, to be a teacher for these data, and a key that says all it depends on.

  Of replicas trained together it is the one with these data, or if there are several, such as other
  seeds, the one of the same place as `replica`. For `own` see `read`.
  """
  folder, saved, network, predictive = network_of(place, own)
  if data.fingerprint not in saved.data:
    raise UserError(f'{folder} was trained on other data than config.data: give members of the same training set')
  if saved.recipe.task != data.task or predictive is not TASKS[data.task].predictives['members']:
    raise UserError(f'{folder} predicts one distribution and has no members to learn from: leave it out')
  fitting = [i for i, fingerprint in enumerate(saved.data) if fingerprint == data.fingerprint]
  index = fitting[replica % len(fitting)]
  params, state = of_replica(restore(folder, network, data.train.example.shape[1:], len(saved.data)), index)
  return Model(network, params, state, data.scaling, predictive.read), f'{store.digest(folder)}{index}'
