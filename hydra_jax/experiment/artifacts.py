"""Trained parts: what is saved beside their parameters, so that each can be loaded by itself.

A saved part may come from anywhere, and is data: its files are compared with their checksums, its recipe with a schema,
and names in it are looked up in our own tables. A function of the user's own is called only if the user's own config
names it, and if its source is what it was when the part was trained.
"""

from collections.abc import Collection, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import store
from hydra_jax.data import Columns, Data, Scaling, Split, scale_inputs, standardised, starting_rows
from hydra_jax.devices import processes
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import recipes
from hydra_jax.experiment.recipes import Recipe, check_keys, expect
from hydra_jax.maths.tasks import TASKS, Predictive
from hydra_jax.nets.cut import Network
from hydra_jax.training import checkpoints

RECIPE = 'recipe.json'
MODEL = 'model'
SCALING = 'scaling.npz'
COLUMNS = 'columns.json'


def example(data: Data) -> jax.Array:
  """Inputs that a network is made with, as it reads them."""
  x = data.train.x if isinstance(data.train, Split) else data.train.example
  return scale_inputs(data.scaling, jnp.asarray(standardised(data.scaling, starting_rows(x))))


def save(folder: Path, params: Any, state: Any, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  """Saves what a phase has trained, and what it takes to build its network again.

  Arrays have a leading axis R, also for a single replica.
  """
  checkpoints.save(folder / MODEL, (params, state))
  processes.run_on_main(lambda: _describe(folder, recipe, phase, data))


def _describe(folder: Path, recipe: Recipe, phase: int, data: Sequence[Data]) -> None:
  about = {'format': store.FORMAT, **recipes.to_json(recipe, phase), 'data': [each.fingerprint for each in data]}
  about |= {'shape': data[0].train.example.shape[1:], 'dtype': data[0].train.example.dtype.name}
  about |= {'classes': data[0].classes}
  (folder / RECIPE).write_text(json.dumps(about, indent=2))
  if data[0].columns is not None:  # rows are divided alike for all replicas
    (folder / COLUMNS).write_text(json.dumps(data[0].columns.to_json(), indent=1, ensure_ascii=False), 'utf-8')
  scaling = Scaling(*(np.stack(arrays) for arrays in zip(*(each.scaling for each in data), strict=True)))
  np.savez(folder / SCALING, allow_pickle=False, **scaling._asdict())


def restore(folder: Path, network: Network, shape: Sequence[int], replicas: int) -> tuple[Any, Any]:
  """Parameters and state in the folder of an artifact, with a leading axis R, for inputs of a shape."""
  like = recipes.shapes_of(network, shape, folder)
  like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), like)
  return checkpoints.restore(folder / MODEL, like)


def of_replica(trees: Any, index: int) -> Any:
  """The arrays of one replica, on a device. They are cut on the host, where no shape needs a program."""
  return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[index]), trees)


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
    own: Functions and methods of the user's own that may be its network or its method, see `recipes.user_functions`.

  Raises:
    UserError: Where it is damaged, or is not what `save` writes.
  """
  store.verify(folder)
  file = folder / RECIPE
  found = _fields(store.read_json(file), file)
  recipe, phase = recipes.from_json(found, own, file)
  return Saved(recipe, phase, *(found[key] for key in ('data', 'shape', 'dtype', 'classes')))


def _fields(found: Any, file: Path) -> dict[str, Any]:
  """What a recipe says, its types and ranges checked."""
  like = {**recipes.FIELDS, 'data': ('',), 'shape': (), 'dtype': '', 'classes': ()}
  expect(isinstance(found, dict), file, 'it is no object')
  if found.get('format', 1) != store.FORMAT:
    raise UserError(f'{file.parent} {store.OTHER_FORMAT}: train it again with this version, or leave it out')
  found = {key: value for key, value in found.items() if key != 'format'}
  check_keys(found, like, '', file)
  expect(len(found['data']) >= 1, file, 'data is empty')
  expect(all(type(size) is int and size >= 1 for size in found['shape']), file, 'shape is no list of sizes')
  expect(all(isinstance(name, str) for name in found['classes']), file, 'classes are no names')
  return found


def read_scaling(folder: Path, replica: int) -> Scaling:
  """How inputs and targets of one replica are scaled."""
  arrays = store.read_arrays(folder / SCALING)
  expect(set(arrays) == set(Scaling._fields), folder / SCALING, 'arrays are missing')
  return Scaling(**{name: arrays[name][replica] for name in Scaling._fields})


def read_columns(folder: Path) -> Columns | None:
  """What the columns of the table become on which a part was trained, or None if it was no table."""
  file = folder / COLUMNS
  return Columns.from_json(store.read_json(file), str(file)) if file.is_file() else None


def network_of(place: str, own: Collection[str] = ()) -> tuple[Path, Saved, Network, Predictive]:
  """The folder of a part, what is saved beside it, its network, and how that is read; for `own` see `read`."""
  folder = find(place)
  saved = read(folder, own)
  return folder, saved, *recipes.network_of(saved.recipe, saved.phase, folder / RECIPE)


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
