"""Image sets of TensorFlow Datasets, read without TensorFlow and decoded once.

Decoding a set takes seconds to minutes; the decoded arrays are kept in the user's cache directory,
keyed by what the prepared set itself says (name, version, files) and the split, and memory-mapped.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hydra_jax import store
from hydra_jax.errors import UserError, look_up, nearest

Arrays = tuple[np.ndarray, np.ndarray]
READ_AT_ONCE = 1024
# What image and class are called in most sets of TensorFlow Datasets.
FEATURES = ('image', 'label')


class NoCacheError(UserError):
  """Nothing can be written to the cache."""


def cache_dir() -> Path:
  """Where decoded data and compiled programs are kept: `$XDG_CACHE_HOME/hydra_jax`."""
  try:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'hydra_jax'
  except RuntimeError as e:
    raise NoCacheError('there is no home directory for the cache: set XDG_CACHE_HOME to a folder') from e


@contextlib.contextmanager
def caching() -> Iterator[None]:
  """Makes the folder of decoded data, and says of what cannot be written there or inside that it is the cache."""
  try:
    (cache_dir() / 'data').mkdir(parents=True, exist_ok=True)
    yield
  except OSError as e:
    reason = e.strerror or (str(e).splitlines() or [''])[0]
    raise NoCacheError(
      f'cannot write to the cache {cache_dir()} ({reason}): set XDG_CACHE_HOME to a folder that can be written'
    ) from e


def default_data_dir() -> str:
  """`$TFDS_DATA_DIR`, or where TensorFlow Datasets keeps its sets."""
  return os.environ.get('TFDS_DATA_DIR') or str(Path.home() / 'tensorflow_datasets')


def prepared(name: str, data_dir: str) -> Path:
  """Folder of the newest prepared version of a set."""
  found = [
    p.parent for base in (Path(data_dir), Path(data_dir) / 'tfds') for p in (base / name).glob('*/dataset_info.json')
  ]
  if not found:
    raise UserError(
      f"data set '{name}' is not prepared under {data_dir}: run `hydra-jax prepare {name} --data_dir={data_dir}`, "
      'or say where it is with --data_dir or TFDS_DATA_DIR'
    )
  return max(found, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split('.')])


def tfds_images(name: str, split: str, data_dir: str, features: tuple[str, str] = FEATURES) -> Arrays:
  """Images `[N, H, W, C]` uint8 and labels `[N]` int32 of a prepared set, in its stored order.

  Args:
    name: As TensorFlow Datasets calls it.
    split: `train`, `test`, or any sub-split such as `train[:90%]`.
    data_dir: The folder that holds the prepared sets.
    features: Those of image and class.
  """
  folder = prepared(name, data_dir)

  def write(new):
    images, labels = _decode(folder, split, *features)
    np.save(new / 'images.npy', images)
    np.save(new / 'labels.npy', labels)

  return decoded(folder, (split, *features), write)


class ImageInfo(NamedTuple):
  """Of a prepared set: the features of image and class, the shape of an image (None: of any size), and the classes."""

  features: tuple[str, str]
  shape: tuple[int, int, int] | None
  names: tuple[str, ...]


def image_info(name: str, data_dir: str, image: str = '', label: str = '') -> ImageInfo:
  """What images and classes a prepared set has; neither of them is read.

  Args:
    name: As TensorFlow Datasets calls it.
    data_dir: The folder that holds the prepared sets.
    image: The feature that is the image; empty: the only one.
    label: The feature that is the class; empty: the only one, or `label`.

  Raises:
    UserError: It is not prepared, or has no such features, or several.
  """
  import tensorflow_datasets as tfds

  folder = prepared(name, data_dir)
  try:
    found = tfds.builder_from_directory(str(folder)).info.features
  except Exception as e:
    raise UserError(f'cannot read what {folder} holds ({store.one_line(e)}): prepare it again') from e
  pick = lambda kind, wanted, option, usual: _only(
    [key for key, feature in found.items() if isinstance(feature, kind)], wanted, f'{name}: {option}', usual
  )
  image = pick(tfds.features.Image, image, 'image', FEATURES[0])
  label = pick(tfds.features.ClassLabel, label, 'target', FEATURES[1])
  shape = found[image].shape
  return ImageInfo((image, label), None if None in shape else shape, tuple(found[label].names))


def _only(keys: list[str], wanted: str, what: str, usual: str) -> str:
  """The feature that is wanted, or the only one."""
  if wanted:
    return look_up(dict(zip(keys, keys)), wanted, f'feature of {what}')
  if len(keys) != 1 and usual not in keys:
    listed = f'choose one of: {", ".join(keys)}' if keys else 'there is none in this set: choose another set'
    raise UserError(f'tfds:{what}=FEATURE must name a feature: {listed}')
  return keys[0] if len(keys) == 1 else usual


def decoded(folder: Path, form: tuple, write: Callable[[Path], None]) -> Arrays:
  """What `write(new)` makes of a prepared set; made once for each `form`."""
  files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir())
  name = folder.parent.name
  return kept(f'{name}-{folder.name}', (name, str(folder.resolve()), files, *form), write)


def kept(name: str, facts: tuple, write: Callable[[Path], None]) -> Arrays:
  """The arrays `images.npy`, memory-mapped, and `labels.npy` that `write(new)` makes; made once for the same facts.

  Args:
    name: Begins the name of the folder in the cache.
    facts: All that they depend on.
    write: Is given a new folder.
  """
  cached = cache_dir() / 'data' / f'{name}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}'
  if not cached.exists():
    with caching(), store.writing(cached) as new:
      write(new)
  try:
    return np.load(cached / 'images.npy', mmap_mode='r'), np.load(cached / 'labels.npy')
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f'the decoded data in {cached} are damaged ({e}): delete that folder and run again') from e


def records(folder: Path, split: str, **options):
  """The records of a split of a prepared set, by their number."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(str(folder))
  name = split.split('[')[0]
  if name not in builder.info.splits:
    raise UserError(f"{folder} has no split '{name}': {nearest(name, builder.info.splits)}")
  try:
    return builder.as_data_source(split, **options)
  except NotImplementedError as e:
    raise UserError(f'{folder} is not in the array_record format: prepare it again in another --data_dir') from e
  except (OSError, ValueError, RuntimeError, IndexError) as e:
    raise UserError(f"cannot read split '{split}' from {folder}: {str(e).splitlines()[0]}") from e


def _decode(folder: Path, split: str, image: str, label: str) -> Arrays:
  from hydra_jax.progress import bar

  rows = records(folder, split)
  images, labels = [], []
  try:
    with bar(f'decoding {folder.parent.name} {split}', len(rows)) as advance:
      for start in range(0, len(rows), READ_AT_ONCE):
        chunk = rows.__getitems__(list(range(start, min(start + READ_AT_ONCE, len(rows)))))
        images += [r[image] for r in chunk]
        labels += [r[label] for r in chunk]
        advance(len(images))
  except (OSError, ValueError, RuntimeError, IndexError) as e:
    raise UserError(f"cannot read split '{split}' from {folder}: {str(e).splitlines()[0]}") from e
  return np.stack(images), np.array(labels, np.int32)


def _has_tensorflow() -> bool:
  return importlib.util.find_spec('tensorflow') is not None


def prepare(name: str, data_dir: str) -> None:
  """Downloads and prepares a set of TensorFlow Datasets in the format that `tfds_images` reads."""
  if not _has_tensorflow():  # the builders of image sets use it, and find out late
    raise UserError("preparing a data set needs TensorFlow: pip install 'hydra_jax[prepare]'")
  import tensorflow_datasets as tfds

  known = tfds.list_builders(with_community_datasets=False)
  if name not in known:
    raise UserError(f"TensorFlow Datasets has no '{name}': {nearest(name, known)}")
  builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
  try:
    builder.download_and_prepare()
  except Exception as e:
    raise UserError(f"cannot prepare '{name}': {type(e).__name__}: {str(e).splitlines()[0]}") from e
