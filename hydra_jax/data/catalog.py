"""The table of data sets: known ones by name, and forms of names for all others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import functools
from pathlib import Path
from typing import Any

import numpy as np

from hydra_jax.data import address, files, hub, image_folders, labels, photos, sources, table_sets, toy, uci
from hydra_jax.data.address import Address
from hydra_jax.data.arrays import IMAGENET, Scaling, Split
from hydra_jax.data.columns import Columns
from hydra_jax.errors import UserError, closest, look_up


@dataclass(frozen=True)
class Form:
  """What is wanted of a set, besides its name and split."""

  data_dir: str
  replica: int
  image_size: int


@dataclass(frozen=True)
class Source:
  """A row of `SOURCES`.

  Attributes:
    load: `(split, form) -> (x, y)`, y as in a `Split`.
    classes: Their number, in classification.
    shape: `form -> shape` of an input, known without the data.
    targets: Their number, in regression.
    stream: `(split, form) -> Stream`, to train on what may be larger than memory.
    scaling: Of a stream; that of arrays is taken from the training split.
    outside: Out-of-domain sets that come with it, made like those in `outside.UNLABELLED`.
    names: Of the classes, if they have any.
    note: What was assumed of the data, for the user.
    columns: Of a table, what its columns become.
    examples: `split -> N`, where that is known without reading images.
    blocks: Returns numbers `[N]` of the examples of the training split; those with the same number stay together where
      it is divided. None: each stands for itself.
    called: `(part, split) -> what` messages call `x` or `y` of a split; None: by the name of the set.
  """

  load: Callable[[str, Form], tuple[np.ndarray, np.ndarray]]
  classes: int | None
  shape: Callable[[Form], tuple[int, ...]]
  targets: int = 1
  stream: Callable[[str, Form], photos.Stream] | None = None
  scaling: Scaling = IMAGENET
  outside: Mapping[str, Callable[[Split], np.ndarray]] = field(default_factory=dict)
  names: tuple[str, ...] = ()
  note: str = ''
  columns: Columns | None = None
  examples: Callable[[str], int] | None = None
  blocks: Callable[[], np.ndarray] | None = None
  called: Callable[[str, str], str] | None = None


def _toy(load: Callable[[str], tuple[np.ndarray, np.ndarray]], classes: int, *shape: int) -> Source:
  return Source(
    lambda split, form: load(split), classes, lambda form: shape, examples=lambda split: len(load(split)[1])
  )


def _tfds(name: str, classes: int, *shape: int) -> Source:
  return Source(lambda split, form: sources.tfds_images(name, split, form.data_dir), classes, lambda form: shape)


def _uci(name: str) -> Source:
  def load(split: str, form: Form) -> tuple[np.ndarray, np.ndarray]:
    return uci.split(name, split, form.data_dir, form.replica)

  return Source(load, None, lambda form: (uci.SETS[name].features,), examples=functools.partial(uci.examples, name))


def _photos(name: str, classes: int, features: tuple[str, str] = sources.FEATURES) -> Source:
  return Source(
    lambda split, form: photos.images(name, split, form.data_dir, form.image_size, features),
    classes,
    lambda form: (form.image_size, form.image_size, 3),
    stream=lambda split, form: photos.stream(name, split, form.data_dir, form.image_size, features),
  )


SOURCES: dict[str, Source] = {
  'digits': _toy(toy.digits, 10, 8, 8, 1),
  'spiral': _toy(toy.spiral, 3, 2),
  'mnist': _tfds('mnist', 10, 28, 28, 1),
  'fashion_mnist': _tfds('fashion_mnist', 10, 28, 28, 1),
  'cifar10': _tfds('cifar10', 10, 32, 32, 3),
  'cifar100': _tfds('cifar100', 100, 32, 32, 3),
  'svhn_cropped': _tfds('svhn_cropped', 10, 32, 32, 3),
  'imagenet2012': _photos('imagenet2012', 1000),
  **{f'uci/{name}': _uci(name) for name in uci.SETS},
}


def _others(parts: Mapping[str, object], train: str, inputs: Callable[[str], np.ndarray]) -> dict[str, Callable]:
  """Parts that can be out-of-domain sets: all but those to train and test on."""
  of = lambda name: lambda test: inputs(name)
  return {name: of(name) for name in parts if name not in (train, 'train', 'test')}


def _file(path: str, task: str) -> Source:
  """The user's own arrays, with the out-of-domain sets that are in them."""
  meaning = files.meaning(path, task)
  return Source(
    load=lambda split, form: files.load(path, split, task),
    classes=meaning.outputs if meaning.task == 'classification' else None,
    shape=lambda form: files.shape(path),
    targets=meaning.outputs,
    outside=_others(dict.fromkeys(files.sets(path)), 'train', functools.partial(files.inputs, path)),
    names=meaning.names,
    note=meaning.note,
    examples=lambda split: len(files.inputs(path, split)),
    called=lambda part, split: f"{path}: '{files.name_in_file(part, split)}'",
  )


def _table(found: table_sets.TableSet) -> Source:
  meaning, train = found.meaning, found.train
  words = {'x': 'the inputs of part', 'y': 'the target of part'}
  return Source(
    load=lambda split, form: found.load(split),
    classes=meaning.outputs if meaning.task == 'classification' else None,
    shape=lambda form: (len(found.columns.features),),
    targets=meaning.outputs,
    outside=_others(found.parts, train, found.inputs),
    names=meaning.names,
    note=meaning.note,
    columns=found.columns,
    examples=lambda split: found.parts[split].num_rows,
    blocks=lambda: found.blocks,
    called=lambda part, split: f'{found.what}: {words[part]} {split!r}',
  )


def _images(found: image_folders.ImageSet) -> Source:
  words = {'x': 'the images of part', 'y': 'the classes of part'}
  return Source(
    load=lambda split, form: found.load(split),
    classes=len(found.names),
    shape=lambda form: found.shape,
    outside=_others(dict.fromkeys(found.parts), found.train, found.inputs),
    names=labels.shown_names(found.names),
    blocks=found.blocks,
    called=lambda part, split: f'{found.what}: {words[part]} {split!r}',
  )


def _hub(place: Address, train: str, task: str) -> Source:
  found = hub.load(place, train, task)
  return _table(found) if isinstance(found, table_sets.TableSet) else _images(found)


def _prepared(place: Address, data_dir: str) -> Source:
  """Any image set of TensorFlow Datasets that is prepared."""
  info = sources.image_info(place.place, data_dir, place.options.image, place.options.target)
  names = labels.shown_names(info.names)
  if info.shape is None:
    return replace(_photos(place.place, len(info.names), info.features), names=names)
  shape = info.shape
  return Source(
    lambda split, form: sources.tfds_images(place.place, split, form.data_dir, info.features),
    len(info.names),
    lambda form: shape,
    names=names,
  )


# What is made of a name with a form.
FORMS: dict[str, Callable[[Address, Any, str], Source]] = {
  'csv': lambda place, config, data_dir: _table(table_sets.from_file(place, config.train, config.task)),
  'parquet': lambda place, config, data_dir: _table(table_sets.from_file(place, config.train, config.task)),
  'folder': lambda place, config, data_dir: _images(image_folders.from_folder(place, config.train)),
  'hf': lambda place, config, data_dir: _hub(place, config.train, config.task),
  'tfds': lambda place, config, data_dir: _prepared(place, data_dir),
}
# What a file or a folder of this kind is called in a name.
BY_SUFFIX = {'.csv': 'csv', '.tsv': 'csv', '.txt': 'csv', '.parquet': 'parquet', '.pq': 'parquet'}


def find(config: Any, data_dir: str = '') -> Source:
  """The row for what the `data` part of a config names.

  Args:
    config: As above.
    data_dir: Where data sets are; empty: where they usually are.

  Raises:
    UserError: There is no such data set, or it is for another task than `config.task`.
  """
  look_up(dict.fromkeys(labels.TASKS), config.task, 'config.data.task')
  source = _find(config, data_dir or sources.default_data_dir())
  task = 'classification' if source.classes else 'regression'
  if config.task not in ('auto', task):
    raise UserError(f"config.data.task={config.task}, and '{config.name}' is for {task}: set it to auto")
  return source


def _find(config: Any, data_dir: str) -> Source:
  if place := address.read(config.name):
    return FORMS[place.form](place, config, data_dir)
  if files.is_own(config.name):
    return _file(config.name, config.task)
  if config.name not in SOURCES:
    raise UserError(f"config.data.name='{config.name}' is no data set: {_instead(config.name)}")
  return SOURCES[config.name]


def _instead(name: str) -> str:
  """What to write for a name that is none."""
  word, colon, rest = name.partition(':')
  if colon and (close := closest(word, FORMS)):
    return f"did you mean '{close}:{rest}'?"
  place = Path(name.partition('?')[0])
  if form := 'folder' if place.is_dir() else BY_SUFFIX.get(place.suffix.lower()):
    return f'write {form}:{name}' + ('?target=COLUMN' if form != 'folder' and '?' not in name else '')
  if close := closest(name, SOURCES):
    return f"did you mean '{close}'?"
  return f'choose one of {", ".join(SOURCES)}, or write {", ".join(address.SHOWN)}, FILE.npz, or FILE.py:FUNCTION'
