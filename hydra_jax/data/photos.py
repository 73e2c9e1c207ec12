"""Photographs of all sizes: prepared sets of TensorFlow Datasets whose images are decoded and cut to squares here.

The training split may be larger than memory: it stays on disk, and each image is decoded whenever it
is shown, in another view. An evaluation split is decoded once, in its central view.
"""

from collections.abc import Callable
from dataclasses import dataclass
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from hydra_jax.data import sources
from hydra_jax.data.read_ahead import read_ahead
from hydra_jax.errors import UserError
from hydra_jax.progress import bar

# A random view has this share of the image's area, and this ratio of width to height.
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
# The central view has this share of the shorter side.
CENTRE = 224 / 256
AHEAD = 256

View = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True)
class Stream:
  """A training split that is read as it is needed; stands where a `Split` does.

  Attributes:
    examples: How many there are.
    example: A few inputs as stored, `[≤ 8, size, size, 3]` uint8.
    read: `(row, random) -> {'x': [size, size, 3], 'y': []}`.
    fingerprint: Hash of what the prepared files are called, how large they are, and what is read of them.
  """

  examples: int
  example: np.ndarray
  read: Callable[[int, np.random.Generator], dict[str, np.ndarray]]
  fingerprint: str

  @property
  def varies(self) -> bool:
    """Whether an example looks different each time it is shown."""
    return True


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[float, float, float, float]:
  """A part of an image, `(left, top, right, bottom)`: "random resized crop" (Szegedy et al. 2015)."""
  area = random.uniform(*AREA, ATTEMPTS) * width * height
  low, high = np.log(RATIO)
  ratio = np.exp(random.uniform(low, high, ATTEMPTS))
  widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
  (fits,) = np.nonzero((widths <= width) & (heights <= height))
  if len(fits):
    w, h = float(widths[fits[0]]), float(heights[fits[0]])
  else:  # a narrow image: as much of it as the ratio allows
    w, h = min(width, height * RATIO[1]), min(height, width / RATIO[0])
  left, top = random.uniform(0, (width - w, height - h))
  return left, top, left + w, top + h


def central_box(width: int, height: int) -> tuple[float, float, float, float]:
  """The square in the middle that remains when the short side is made 256 and 224 are cut out."""
  half = CENTRE * min(width, height) / 2
  return width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half


def random_view(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
  """A random part of an image at `size × size`, and with probability one half its mirror image."""
  view = image.resize((size, size), Image.Resampling.BILINEAR, random_box(*image.size, random))
  return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else view


def central_view(image: Image.Image, size: int) -> Image.Image:
  """The middle of an image at `size × size`."""
  return image.resize((size, size), Image.Resampling.BILINEAR, central_box(*image.size))


def reader(
  folder: Path, split: str, features: tuple[str, str] = sources.FEATURES
) -> tuple[int, Callable[[int, View], dict[str, np.ndarray]]]:
  """Number of records of a split, and `read(row, view) -> {'x': [size, size, 3] uint8, 'y': [] int32}`.

  `features` are those of image and class.
  """
  import tensorflow_datasets as tfds

  image, label = features
  rows = sources.records(folder, split, decoders={image: tfds.decode.SkipDecoding()})

  def read(row, view):
    try:
      record = rows[row]
      photograph = Image.open(io.BytesIO(record[image])).convert('RGB')
    except Exception as e:  # each library has its own for what is damaged
      reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
      raise UserError(f"cannot read record {row} of split '{split}' from {folder} ({reason}): prepare it again") from e
    return {'x': np.asarray(view(photograph)), 'y': np.int32(record[label])}

  return len(rows), read


def stream(name: str, split: str, data_dir: str, size: int, features: tuple[str, str] = sources.FEATURES) -> Stream:
  """A split of a prepared set, to train on in random views; `features` are those of image and class."""
  folder = sources.prepared(name, data_dir)
  examples, read = reader(folder, split, features)
  files = sorted((p.name, p.stat().st_size) for p in folder.iterdir())
  return Stream(
    examples=examples,
    example=np.stack([read(row, lambda image: central_view(image, size))['x'] for row in range(min(8, examples))]),
    read=lambda row, random: read(row, lambda image: random_view(image, size, random)),
    fingerprint=hashlib.sha256(repr((name, folder.name, files, split, size, *features)).encode()).hexdigest()[:16],
  )


def images(
  name: str, split: str, data_dir: str, size: int, features: tuple[str, str] = sources.FEATURES
) -> sources.Arrays:
  """Central views `[N, size, size, 3]` uint8 and labels `[N]` int32 of a prepared set, in its stored order.

  `features` are those of image and class.
  """
  folder = sources.prepared(name, data_dir)

  def write(new):
    examples, read = reader(folder, split, features)
    views = read_ahead(lambda row: read(row, lambda image: central_view(image, size)), range(examples), AHEAD)
    labels = []
    with bar(f'decoding {name} {split}', examples) as advance, open(new / 'images.npy', 'wb') as file:
      # One by one, because all of them may not fit in memory.
      header = {'descr': '|u1', 'fortran_order': False, 'shape': (examples, size, size, 3)}
      np.lib.format.write_array_header_1_0(file, header)
      for view in views:
        file.write(view['x'])
        labels.append(view['y'])
        advance(len(labels))
    np.save(new / 'labels.npy', np.asarray(labels, np.int32))

  return sources.decoded(folder, (split, 'central', size, *features), write)
