"""Data sets of Hugging Face, by name from its hub or from a local folder, as images or as tables."""

from collections.abc import Mapping
import functools
from pathlib import Path
from typing import Any

import numpy as np

from hydra_jax.data import image_folders, table_sets
from hydra_jax.data.address import Address
from hydra_jax.data.values import arrow
from hydra_jax.errors import UserError, look_up
from hydra_jax.progress import bar
from hydra_jax.store import one_line

# What `save_to_disk` writes of several parts, and of one.
SAVED = ('dataset_dict.json', 'state.json')


def _library() -> Any:
  try:
    import datasets
  except ImportError as e:
    raise UserError("data sets of Hugging Face need datasets: pip install 'hydra_jax[datasets]'") from e
  return datasets


def _parts(address: Address) -> dict[str, Any]:
  """Its parts, `datasets.Dataset` by name. Code that a data set may hold is not run: datasets 4 runs none.

  Raises:
    UserError: It cannot be found or read.
  """
  datasets, place = _library(), address.place
  saved = any((Path(place) / name).is_file() for name in SAVED)
  subset = address.options.subset or None
  try:
    found = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, subset)
  except Exception as e:  # of the library, of the network, and of those below them
    raise UserError(
      f'cannot read hf:{place} ({type(e).__name__}: {one_line(e)}): give a name on the hub, or the folder of a data set'
    ) from e
  return dict(found) if isinstance(found, Mapping) else {'train': found}


@functools.lru_cache(maxsize=2)
def load(address: Address, train: str, task: str) -> image_folders.ImageSet | table_sets.TableSet:
  """The data set at a place: of images, if a column of it holds images, or a table.

  Args:
    address: The form is `hf`.
    train: The part to train on.
    task: Of a table, as the user says, or `auto`.

  Raises:
    UserError: It cannot be read, or options do not fit it.
  """
  parts = _parts(address)
  look_up(parts, train, f'part of hf:{address.place}')
  features = parts[train].features
  images = [name for name, feature in features.items() if type(feature).__name__ == 'Image']
  if images or address.options.image:
    return _images(address, parts, train, images)
  if not address.options.target:
    listed = ', '.join(list(features)[:12])
    raise UserError(f'hf:{address.place}: say which column to predict, as ?target=COLUMN, one of {listed}')
  tables = {name: _table(part) for name, part in parts.items()}
  return table_sets.made(f'hf:{address.place}', tables, address.options, train, task)


def _table(part: Any) -> Any:
  """A part as an Arrow table, with the names of classes in the place of their numbers."""
  pa, _ = arrow()
  table = part.with_format('arrow')[:]
  for i, (name, feature) in enumerate(part.features.items()):
    if type(feature).__name__ == 'ClassLabel':
      codes = table.column(name).to_pylist()
      known = [None if code is None or code < 0 else feature.names[code] for code in codes]
      table = table.set_column(i, name, pa.array(known, pa.large_string()))
  return table


def _one(names: list[str], wanted: str, what: str) -> str:
  if wanted:
    return look_up(dict(zip(names, names)), wanted, what)
  if len(names) != 1:
    listed = 'choose one of ' + ', '.join(names) if names else 'there is none in this set'
    raise UserError(f'{what} must be named: {listed}')
  return names[0]


def _images(address: Address, parts: Mapping[str, Any], train: str, images: list[str]) -> image_folders.ImageSet:
  what, options = f'hf:{address.place}', address.options
  if len(options.target) > 1:
    raise UserError(f'{what}: images have one class each: name one target')
  features = parts[train].features
  labels = [name for name, feature in features.items() if type(feature).__name__ == 'ClassLabel']
  image = _one(images, options.image, f'{what}: image=COLUMN')
  label = _one(labels, ''.join(options.target), f'{what}: target=COLUMN')
  about = [(each.size, each.mode) for part in parts.values() for each in _decoded(part, image, what)]
  form = image_folders.form_of(about, options.size, what)

  @functools.cache
  def read() -> image_folders.Divided:
    arrays = {}
    for name, part in parts.items():
      x = np.empty((len(part), *form.shape), np.uint8)
      with bar(f'decoding {what} {name}', len(part)) as advance:
        for i, each in enumerate(_decoded(part, image, what)):
          x[i] = image_folders.pixels(each, form, f'{what}: image {i} of {name}')
          advance(i + 1)
      arrays[name] = x, np.asarray(part.with_format('numpy')[label], np.int32)
    return image_folders.divided(what, arrays, options.test, options.seed, train)

  return image_folders.image_set(what, form, tuple(features[label].names), tuple(parts), train, read)


def _decoded(part: Any, column: str, what: str) -> Any:
  """The images of a part, one by one."""
  try:
    yield from (row[column] for row in part.select_columns([column]))
  except Exception as e:
    raise UserError(f'{what}: an image cannot be read ({one_line(e)}): replace it') from e
