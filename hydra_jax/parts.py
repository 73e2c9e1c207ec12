"""Trained parts: what is saved beside their parameters, so that each can be loaded by itself."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hydra_jax import checkpoints, config as configs, store
from hydra_jax.cut import Network
from hydra_jax.data import Data, scale_inputs
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


def phases_of(recipe: Recipe) -> list[Phase]:
  """The phases of a method, with their networks."""
  task = TASKS[recipe.task]

  def stages(predictive: str, times: int = 1):
    return configs.build_stages(recipe.network, times * task.predictives[predictive].outputs(recipe.outputs))

  return _method(recipe).phases(recipe.settings, Ground(task, stages, recipe.members))


def predictive_of(recipe: Recipe) -> Predictive:
  """How the outputs of a method are read."""
  return TASKS[recipe.task].predictives[_method(recipe).predictive]


def _method(recipe: Recipe):
  return METHODS[recipe.settings.get('method', 'ensemble')]  # a teacher's settings name none


def example(data: Data) -> jax.Array:
  """Two inputs as a network reads them."""
  return scale_inputs(data.scaling, jnp.asarray(data.train.example[:2]))


def save(folder: Path, params: Any, state: Any, recipe: Recipe, phase: int, data: Data) -> None:
  """Saves what a phase has trained, and what it takes to build its network again."""
  checkpoints.save(folder / MODEL, (params, state))
  plain = {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in recipe._asdict().items()}
  (folder / RECIPE).write_text(json.dumps({**plain, 'phase': phase, 'data': data.fingerprint}, indent=2))


def restored(folder: Path, network: Network, data: Data, predictive: Predictive) -> Model:
  """The model in the folder of a part."""
  like = jax.eval_shape(network.init, jax.random.key(0), example(data))
  return Model(network, *checkpoints.restore(folder / MODEL, like), data.scaling, predictive.read)


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


def load(place: str, data: Data) -> tuple[Model, str]:
  """A trained model, to be a teacher for these data, and a key that says all it depends on."""
  folder, saved, network, predictive = network_of(place)
  if saved['data'] != data.fingerprint:
    raise UserError(f'{folder} was trained on other data than config.data: give members of the same training set')
  if predictive is not TASKS[data.task].predictives['members']:
    raise UserError(f'{folder} predicts one distribution and has no members to learn from: leave it out')
  store.verify(folder)
  return restored(folder, network, data, predictive), store.digest(folder)
