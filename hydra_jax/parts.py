"""Trained parts: what is saved beside their parameters, so that each can be loaded by itself."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hydra_jax import checkpoints, config as configs, processes, store
from hydra_jax.cut import Network
from hydra_jax.data import Data, scale_inputs, standardised
from hydra_jax.errors import UserError
from hydra_jax.evaluate import Model
from hydra_jax.methods import METHODS, Ground, Phase
from hydra_jax.tasks import TASKS, Predictive

RECIPE = 'recipe.json'
MODEL = 'model'


class Recipe(NamedTuple):
  """What the phases of a method are built from.

  Attributes:
    role: `teacher` or `student`.
    settings: Of the method, as in the config.
    network: Name and arguments, as in the config.
    task: Key of `tasks.TASKS`.
    outputs: Number of classes or of targets.
    members: Of the teacher.
  """

  role: str
  settings: ConfigDict
  network: ConfigDict
  task: str
  outputs: int
  members: int


def recipe_of(config: ConfigDict, role: str, settings: ConfigDict, task: str, outputs: int) -> Recipe:
  """What a method is built from; a student may have a network of its own."""
  network = settings.network if 'network' in settings else config.network[role]
  return Recipe(role, settings, network, task, outputs, config.teacher.members)


def recipes(config: ConfigDict, task: str, outputs: int) -> list[tuple[str, Recipe]]:
  """Names and recipes of all that a config trains: the ensemble, unless it is there already, and the students."""
  made = config.teacher.predictions or config.teacher.checkpoints
  rows = [] if made else [('ensemble', 'teacher', config.teacher)]
  rows += [(name, 'student', config.student[name]) for name in config.students]
  return [(name, recipe_of(config, role, settings, task, outputs)) for name, role, settings in rows]


def phases_of(recipe: Recipe, mapping: str = 'auto') -> list[Phase]:
  """The phases of a method, with their networks, whose heads are mapped as `mapping` says."""
  task = TASKS[recipe.task]

  if recipe.network.get('homoscedastic') and recipe.task != 'regression':
    raise UserError(f'config.network.{recipe.role}.homoscedastic is for regression: set it to False')

  def stages(predictive: str, times: int = 1):
    return configs.build_stages(recipe.network, times * task.predictives[predictive].outputs(recipe.outputs))

  return _method(recipe).phases(recipe.settings, Ground(task, stages, recipe.members, mapping))


def predictive_of(recipe: Recipe) -> Predictive:
  """How the outputs of a method are read."""
  return TASKS[recipe.task].predictives[_method(recipe).predictive]


def _method(recipe: Recipe):
  return METHODS[recipe.settings.get('method', 'ensemble')]  # a teacher's settings name none


def example(data: Data) -> jax.Array:
  """Two inputs as a network reads them."""
  return scale_inputs(data.scaling, jnp.asarray(standardised(data.scaling, data.train.example[:2])))


def save(folder: Path, params: Any, state: Any, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  """Saves what a phase has trained, and what it takes to build its network again.

  Of several replicas, each with data of its own, arrays are stacked along a first axis.
  """
  checkpoints.save(folder / MODEL, (params, state))
  processes.on_main(lambda: _describe(folder, recipe, phase, data))


def _describe(folder: Path, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  plain = {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in recipe._asdict().items()}
  about = {**plain, 'phase': phase, 'data': [each.fingerprint for each in data]}
  (folder / RECIPE).write_text(json.dumps(about, indent=2))


def restored(folder: Path, network: Network, data: Data, replicas: int = 0) -> tuple[Any, Any]:
  """Parameters and state in the folder of a part, stacked if they are of several replicas."""
  x, key = example(data), jax.random.key(0)
  like = jax.eval_shape(network.init, key, x)
  if replicas:
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), like)
  return checkpoints.restore(folder / MODEL, like)


def of_replica(trees: Any, index: int, replicas: int) -> Any:
  """One replica's part of what is stacked, and all of it where nothing is."""
  return jax.tree.map(lambda leaf: leaf[index], trees) if replicas else trees


def find(place: str) -> Path:
  """The folder of a part: `place` itself, or that of the teacher in the run at `place`."""
  if (Path(place) / RECIPE).is_file():
    return Path(place)
  found = sorted(p.parent for p in Path(place).glob(f'parts/*/{RECIPE}') if _read(p)['role'] == 'teacher')
  if len(found) != 1:
    which = f'one of: {", ".join(map(str, found[:4]))}' if found else 'the folder of a finished run, or of a part in it'
    raise UserError(f"'{place}' holds {len(found)} trained teachers: give {which}")
  return found[0]


def _read(file: Path) -> dict[str, Any]:
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError) as e:
    raise UserError(f'{file} is damaged ({e}): delete {file.parent} and train it again') from e


def network_of(place: str) -> tuple[Path, dict[str, Any], Network, Predictive]:
  """The folder of a part, what is saved beside it, its network, and how that is read."""
  folder = find(place)
  saved = _read(folder / RECIPE)
  fields = {k: ConfigDict(v) if isinstance(v, dict) else v for k, v in saved.items() if k in Recipe._fields}
  recipe = Recipe(**fields)
  return folder, saved, phases_of(recipe)[saved['phase']].network, predictive_of(recipe)


def load(place: str, data: Data, replica: int = 0) -> tuple[Model, str]:
  """A trained model, to be a teacher for these data, and a key that says all it depends on.

  Of replicas trained together it is the one with these data, or if there are several, such as other
  seeds, the one of the same place as `replica`.
  """
  folder, saved, network, predictive = network_of(place)
  if data.fingerprint not in saved['data']:
    raise UserError(f'{folder} was trained on other data than config.data: give members of the same training set')
  if predictive is not TASKS[data.task].predictives['members']:
    raise UserError(f'{folder} predicts one distribution and has no members to learn from: leave it out')
  store.verify(folder)
  fitting = [i for i, fingerprint in enumerate(saved['data']) if fingerprint == data.fingerprint]
  index, replicas = fitting[replica % len(fitting)], len(saved['data'])
  replicas = replicas if replicas > 1 else 0
  trees = of_replica(restored(folder, network, data, replicas), index, replicas)
  return Model(network, *trees, data.scaling, predictive.read), f'{store.digest(folder)}{index}'
