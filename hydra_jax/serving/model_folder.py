"""A folder that is a model: parameters, what it takes to build the network and to read inputs, and a model card.

* `model.json`: the recipe of the network, the form of inputs, classes, columns, calibration, versions and scores.
* `parameters.safetensors`: parameters and state of the network, how inputs and targets are scaled, and arrays of the
  calibration. Names are paths in the trees, such as `params/heads/0/kernel`.
* `README.md`: the model card in Hugging Face's form. It may be edited.
* `MANIFEST.json`: checksums of the first two.

A folder may come from anywhere, and is data: see `experiment.recipes`. This module imports neither Orbax nor what
trains, so that a service starts at once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
import functools
from importlib import metadata
import json
import math
from pathlib import Path
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import store
from hydra_jax.data import Columns, Scaling
from hydra_jax.errors import UserError
from hydra_jax.evaluation.calibrated import Calibration
from hydra_jax.evaluation.evaluate import Model, apply_spread
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment import recipes
from hydra_jax.experiment.recipes import Built, Recipe, check_keys, expect
from hydra_jax.maths.tasks import TASKS
from hydra_jax.serving import card

MODEL, PARAMETERS, CARD = 'model.json', 'parameters.safetensors', 'README.md'
CHECKED = (MODEL, PARAMETERS)
# Stands for the file in messages.
PICKLED = Path('a pickled predictor')
# Raise it when the meaning of the files changes.
FORMAT = 1
PACKAGES = ('jax', 'flax', 'numpy')
# Keys of `model.json`, each with a value of its type.
FIELDS = dict(recipe={}, shape=(), dtype='', classes=(), spread=1.0, versions={})
# Keys whose values may be null. `_columns` and `_calibration` check them.
OPTIONAL = ('columns', 'calibration')
DTYPES = ('float', 'uint8')
# Arrays of a calibration are tensors.
ARRAYS = ('scores', 'uncertainties')
LARGEST_SPREAD, LARGEST_INPUT = 1e6, 10**9

Tensors = Mapping[str, np.ndarray]


def is_model_folder(place: Path) -> bool:
  """Whether a folder has a file of a model; it may be damaged."""
  return any((place / name).exists() for name in CHECKED)


def save(predictor: Any, folder: str | Path, scores: Mapping[str, Any] | None = None) -> None:
  """Saves a predictor as a folder that is the model: `hydra_jax.load` needs nothing else.

  No code is stored. A network of your own is named, with a digest of its source, and has to be passed to `load`.

  Args:
    predictor: From `load`, `distil`, `train_ensemble` or `calibrate`, or a fitted estimator such as `HydraClassifier`.
    folder: Must not exist, or be empty. It appears when all is written.
    scores: What you have measured, for the model card: `{metric: value}` as `evaluate` returns it, or
      `{metric: (value, standard error)}`.

  Raises:
    UserError: The folder exists, the predictor was put together by hand, or something in it cannot be saved.

  Example:
    >>> student = hydra_jax.distil(x, logits)  # doctest: +SKIP
    >>> hydra_jax.save(student, 'digits-hydra', scores={'accuracy': (0.97, 0.004)})  # doctest: +SKIP
    >>> hydra_jax.load('digits-hydra').predict(x_new).epistemic  # doctest: +SKIP
  """
  from safetensors.numpy import save_file

  predictor, folder = getattr(predictor, 'predictor_', predictor), Path(folder)
  _check_is_built(predictor)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f'{folder} is there already, and nothing is overwritten: choose another name, or delete it first')
  about, tensors = _parts(predictor, scores, folder)
  with store.writing(folder) as new:
    save_file(tensors, new / PARAMETERS)
    (new / MODEL).write_text(_written(about), 'utf-8')
    (new / PARAMETERS).chmod((new / MODEL).stat().st_mode)  # the library writes it for its owner alone
    (new / CARD).write_text(card.render(folder.absolute().name, predictor, about), 'utf-8')


def _check_is_built(predictor: Any) -> None:
  if not isinstance(predictor, Predictor) or not isinstance(predictor.recipe, Built):
    raise UserError(
      'only what load, distil, train_ensemble or an estimator returns can be saved, as it knows what it was built from'
    )


def _parts(
  predictor: Predictor, scores: Mapping[str, Any] | None, where: Path, keeps_make: bool = False
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """All that a predictor is, as JSON and as arrays by name."""
  about, tensors = described(predictor, keeps_make), tensors_of(predictor)
  if wrong := _difference(_of_predictor(tensors), _shapes(predictor.recipe, predictor.shape, where)[1]):
    raise UserError(f'the predictor is not what was built by its recipe ({wrong}): save what load or distil returned')
  about['facts'] = card.complete(predictor.recipe.facts(predictor), scores)
  return about, tensors


@dataclass(frozen=True)
class Packed:
  """A predictor as plain data, which can be pickled: texts and arrays as in the files of a folder.

  Attributes:
    about: What stands in `model.json`.
    tensors: What stands in `parameters.safetensors`.
    make: The function that makes the network, where it is the user's own.
  """

  about: str
  tensors: dict[str, np.ndarray]
  make: Callable[..., Any] | None


def packed(predictor: Predictor) -> Packed:
  """A predictor as plain data.

  Args:
    predictor: As for `save`. A network of the user's own is kept as the function that makes it, which pickle stores by
      its name.

  Raises:
    UserError: The predictor was put together by hand, or that function has no name that pickle would find.
  """
  _check_is_built(predictor)
  make = predictor.recipe.recipe.make
  function = make.func if isinstance(make, functools.partial) else make
  if '<' in getattr(function, '__qualname__', ''):  # <lambda>, or <locals> of another function
    raise UserError(
      f'a network made by {function.__qualname__} cannot be pickled: make it by def at the top of a module'
    )
  about, tensors = _parts(predictor, None, PICKLED, keeps_make=True)
  return Packed(json.dumps(about), tensors, make)


def unpacked(given: Packed) -> Predictor:
  """The predictor that `packed` was given.

  Raises:
    UserError: It was packed by another version, or edited.
  """
  return _predictor(json.loads(given.about), lambda: given.tensors, (), PICKLED, PICKLED, given.make)


def described(predictor: Predictor, keeps_make: bool = False) -> dict[str, Any]:
  """What stands in `model.json`, but for the facts of the card; see `recipes.to_json` for `keeps_make`."""
  built, columns, calibration = predictor.recipe, predictor.columns, predictor.calibration
  return {
    'format': FORMAT,
    'recipe': recipes.to_json(built.recipe, built.phase, keeps_make),
    'shape': list(predictor.shape),
    'dtype': DTYPES[predictor.reads_bytes],
    'classes': list(predictor.classes),
    'spread': spread_of(predictor.model),
    'versions': versions(),
    'columns': None if columns is None else columns.to_json(),
    'calibration': None if calibration is None else {k: v for k, v in calibration.to_json().items() if k not in ARRAYS},
  }


def _written(about: Mapping[str, Any]) -> str:
  """As JSON, with a line for each key."""
  lines = (f'{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}' for key, value in about.items())
  return '{\n' + ',\n'.join(lines) + '\n}\n'


def versions() -> dict[str, str]:
  """Of the package, and of what it computes with."""
  import hydra_jax

  found = {'hydra_jax': hydra_jax.__version__, 'python': platform.python_version()}
  return found | {name: metadata.version(name) for name in PACKAGES}


def spread_of(model: Model) -> float:
  """By which the heads are spread, see `nets.cut.rescaled`."""
  return float(model.params['spread']) if 'spread' in model.params else 1.0


def tensors_of(predictor: Predictor) -> dict[str, np.ndarray]:
  """All arrays of a predictor by name."""
  model = predictor.model
  params = {name: tree for name, tree in model.params.items() if name != 'spread'}
  found = {name: _plain(name, leaf) for name, leaf in _leaves({'params': params, 'state': model.model_state})}
  sizes = _sizes(predictor.shape, predictor.recipe.recipe)
  for name, values in model.scaling._asdict().items():
    found[f'scaling/{name}'] = np.array(np.broadcast_to(values, sizes[name]), np.float64)
  if predictor.calibration is not None:
    arrays = predictor.calibration.to_json()
    found['calibration/uncertainties'] = np.array(arrays['uncertainties'], np.float64)
    found |= {f'calibration/scores/{name}': np.array(v, np.float64) for name, v in arrays['scores'].items()}
  return found


def _leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _plain(name: str, leaf: Any) -> np.ndarray:
  """A leaf as a NumPy array, in the order in which it is written."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
    raise UserError(f'{name} holds {leaf.dtype}, which has no place in a file: keep random keys out of the state')
  return np.array(leaf, order='C')


def _sizes(shape: Collection[int], recipe: Recipe) -> dict[str, tuple[int]]:
  """Shapes of the arrays of a `Scaling`."""
  features, targets = [*shape, 1][len(shape) - 1], recipe.outputs if recipe.task == 'regression' else 1
  return {name: (features if name[0] == 'x' else targets,) for name in Scaling._fields}


def _shapes(built: Built, shape: tuple[int, ...], where: Path) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
  """Abstract parameters and state of a network, and all arrays of a predictor by name, but for a calibration."""
  network, _ = recipes.network_of(built.recipe, built.phase, where)
  trees = dict(zip(('params', 'state'), recipes.shapes_of(network, shape, where), strict=True))
  sizes = _sizes(shape, built.recipe)
  scaling = {f'scaling/{name}': jax.ShapeDtypeStruct(size, np.float64) for name, size in sizes.items()}
  return trees, dict(_leaves(trees)) | scaling


def _of_predictor(tensors: Tensors) -> dict[str, np.ndarray]:
  return {name: tensor for name, tensor in tensors.items() if not name.startswith('calibration/')}


def _difference(tensors: Tensors, expected: Mapping[str, jax.ShapeDtypeStruct]) -> str:
  """What is wrong with tensors, in words, or ''."""
  for name in {**expected, **tensors}:
    called = store.one_line(name, 80)
    if name not in expected or name not in tensors:
      return f'{called} is {"missing" if name in expected else "no parameter of its network"}'
    found, like = tensors[name], expected[name]
    if found.shape != like.shape or not _holds(found.dtype, like.dtype):
      return f'{called} is {found.dtype} {list(found.shape)}, and its network has {like.dtype} {list(like.shape)}'
    if jnp.issubdtype(found.dtype, jnp.floating) and not np.isfinite(found).all():
      return f'{called} has NaN or infinite values'
  return ''


def _holds(found: Any, like: Any) -> bool:
  """Whether a parameter may be of a dtype. Those of float32 may be rounded to bfloat16."""
  return found == like or (found == jnp.bfloat16 and like == jnp.float32)


def load(folder: Path, functions: Collection[Any] = ()) -> Predictor:
  """Loads what `save` wrote; nothing in it is executed.

  Args:
    folder: The folder.
    functions: Networks and methods of your own that the model has: names such as `my_networks.py:make`, or functions.

  Raises:
    UserError: A file is damaged, edited or from another version, or a function of your own was not passed.
  """
  store.verify(folder, CHECKED, 'take another copy of it, or save it again')
  file, parameters = folder / MODEL, folder / PARAMETERS
  return _predictor(store.read_json(file), functools.partial(_read, parameters), functions, file, parameters)


def _predictor(
  about: Any,
  read: Callable[[], Tensors],
  functions: Collection[Any],
  file: Path,
  parameters: Path,
  make: Callable[..., Any] | None = None,
) -> Predictor:
  """What `_parts` were made of.

  Args:
    about: JSON that anybody may have edited.
    read: Gives the arrays, which are not touched before the rest is checked.
    functions: Networks and methods of the user's own.
    file: Where the JSON stood, for messages.
    parameters: Where the arrays stood.
    make: The function that makes the network, where it was kept as an object.
  """
  found = _fields(about, file)
  recipe, phase = recipes.from_json(found['recipe'], functions, file, make)
  built = Built(recipe, phase, functools.partial(saved, facts=found['facts']))
  shape = tuple(found['shape'])
  network, predictive = recipes.network_of(recipe, phase, file)
  trees, expected = _shapes(built, shape, file)
  tensors = read()
  wrong = _difference(_of_predictor(tensors), expected)
  expect(not wrong, parameters, wrong)
  params, state = jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.array(tensors[jax.tree_util.keystr(path, simple=True, separator='/')]), trees
  ).values()
  scaling = Scaling(**{name: tensors[f'scaling/{name}'] for name in Scaling._fields})
  expect(scaling.x_scale.min() > 0 and scaling.y_scale.min() > 0, parameters, 'a scale is not more than 0')
  model = Model(network, params, state, scaling, predictive.read)
  return Predictor(
    model=model if found['spread'] == 1 else apply_spread(model, found['spread'], recipe.task),
    task=recipe.task,
    shape=shape,
    reads_bytes=found['dtype'] == 'uint8',
    classes=tuple(found['classes']),
    has_members=predictive is TASKS[recipe.task].predictives['members'],
    columns=_columns(found['columns'], shape, file),
    calibration=_calibration(found['calibration'], tensors, file),
    recipe=built,
  )


def saved(predictor: Predictor, facts: dict[str, Any]) -> dict[str, Any]:
  """What was known of a model when it was saved."""
  del predictor
  return facts


def _fields(found: Any, file: Path) -> dict[str, Any]:
  """What `model.json` says, its types and ranges checked."""
  expect(isinstance(found, dict), file, 'it is no object')
  if found.get('format') != FORMAT:
    raise UserError(
      f'{file} {store.OTHER_FORMAT}: load it with that version (its versions say which), or save the model again'
    )
  own = (*OPTIONAL, 'facts')
  for key in own:
    expect(key in found, file, f'{key} is missing')
  check_keys({key: value for key, value in found.items() if key not in (*own, 'format')}, FIELDS, '', file)
  check_keys(found['recipe'], recipes.FIELDS, 'recipe.', file)
  sizes = all(type(size) is int and size >= 1 for size in found['shape'])
  expect(sizes and math.prod(found['shape']) <= LARGEST_INPUT, file, 'shape is no list of sizes')
  expect(found['dtype'] in DTYPES, file, f'dtype is none of {", ".join(DTYPES)}')
  expect(0 < found['spread'] <= LARGEST_SPREAD, file, f'spread is not from 0 to {LARGEST_SPREAD:g}')
  names, outputs = found['classes'], found['recipe']['outputs'] if found['recipe']['task'] == 'classification' else 0
  expect(all(isinstance(name, str) for name in names), file, 'classes are no names')
  expect(len(names) in (0, outputs), file, f'there are {len(names)} names of {outputs} classes')
  expect(len(set(names)) == len(names), file, 'two classes have one name')
  expect(card.are_facts(found['facts']), file, 'facts are no such as are saved')
  return found


def _columns(found: Any, shape: tuple[int, ...], file: Path) -> Columns | None:
  """The schema of the table that a model reads, if there is one."""
  if found is None:
    return None
  columns = Columns.from_json(found, f'the schema of columns in {file}')
  expect(shape == (len(columns.features),), file, f'its columns become {len(columns.features)} inputs')
  return columns


def _calibration(found: Any, tensors: Tensors, file: Path) -> Calibration | None:
  """What was fitted to held-out examples, if anything was."""
  arrays = {name: tensor for name, tensor in tensors.items() if name.startswith('calibration/')}
  if found is None:
    expect(not arrays, file, 'it has arrays of a calibration, and no calibration')
    return None
  expect(isinstance(found, dict) and not set(ARRAYS) & set(found), file, 'calibration is no object')
  expect(
    all(each.dtype == np.float64 and each.ndim == 1 for each in arrays.values()), file, 'calibration is no numbers'
  )
  lists = {name.removeprefix('calibration/'): each.tolist() for name, each in arrays.items()}
  scores = {name.removeprefix('scores/'): lists.pop(name) for name in list(lists) if name.startswith('scores/')}
  try:
    return Calibration.from_json({**found, 'scores': scores, **lists})
  except UserError as e:
    raise UserError(f'{file}: {e}') from e


def _read(file: Path) -> dict[str, np.ndarray]:
  """The tensors of a file by name."""
  from safetensors.numpy import load_file

  try:
    return load_file(file)
  except Exception as e:  # its checksum is right: it was written so
    raise UserError(f'{file} holds no tensors ({store.one_line(e)}): save the model again') from e
