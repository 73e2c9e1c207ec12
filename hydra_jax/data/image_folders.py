"""Images in folders that are called as their classes, and images of any size as arrays of one size."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import functools
import hashlib
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hydra_jax.data import sources, splits
from hydra_jax.data.address import Address, share_of
from hydra_jax.errors import UserError, look_up
from hydra_jax.progress import bar
from hydra_jax.store import one_line

logger = logging.getLogger(__name__)

Divided = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]  # images, labels and bits by part
# Pillow's modes of grey images of 8 bits or less.
GREY = ('1', 'L', 'LA')
DEEP = ('I', 'F', 'I;16', 'I;16B', 'I;16L')


@dataclass(frozen=True)
class Form:
  """What images become: squares of a size, or where it is None all of the same size; grey or in three colours."""

  size: tuple[int, int]
  grey: bool

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels."""
    width, height = self.size
    return height, width, 1 if self.grey else 3


def form_of(found: Iterable[tuple[tuple[int, int], str]], size: int, what: str) -> Form:
  """What images of these sizes and modes become.

  Args:
    found: Width and height, and Pillow's mode, of each image.
    size: Side of the squares that are wanted. 0: they are all of one size.
    what: The data set, for messages.

  Raises:
    UserError: They are of several sizes, and none is wanted.
  """
  sizes, modes = zip(*found)
  grey = all(mode in GREY for mode in modes)
  if not grey and any(mode in GREY for mode in modes):
    logger.info(f'{what}: {sum(m in GREY for m in modes):,} of {len(modes):,} images are grey, and get three colours')
  if any(mode in ('LA', 'RGBA', 'PA') for mode in modes):
    logger.info(f'{what}: some images have transparent parts, which become black')
  if size:
    return Form((size, size), grey)
  if len(set(sizes)) > 1:
    low, high = min(sizes, key=np.prod), max(sizes, key=np.prod)
    raise UserError(
      f'{what}: images are from {low[0]} × {low[1]} to {high[0]} × {high[1]} pixels: add size= and the side of the '
      'squares that they become, such as size=64'
    )
  return Form(sizes[0], grey)


def pixels(image: Image.Image, form: Form, what: str) -> np.ndarray:
  """An image `[height, width, channels]` uint8: its short side is made as long as wanted, and the middle cut out.

  Raises:
    UserError: It has more than 8 bits a channel.
  """
  if image.mode in DEEP:
    raise UserError(f'{what} has more than 8 bits a channel: save it as an 8-bit image')
  image = ImageOps.exif_transpose(image)
  if image.mode in ('LA', 'RGBA', 'PA') or (image.mode == 'P' and 'transparency' in image.info):
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, (0, 0, 0, 255)), image)
  image = image.convert('L' if form.grey else 'RGB')
  if image.size != form.size:
    image = ImageOps.fit(image, form.size, Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(form.shape)


@dataclass(frozen=True)
class ImageSet:
  """Images by part.

  Attributes:
    what: Begins messages.
    shape: Of an image.
    names: Of the classes, by output.
    parts: Names of the parts that are given.
    train: The part to train on.
    load: `part -> (images [N, height, width, channels] uint8, labels [N] int32)`.
    inputs: `part -> images`.
    blocks: Images of the training part with the same number are alike.
  """

  what: str
  shape: tuple[int, int, int]
  names: tuple[str, ...]
  parts: tuple[str, ...]
  train: str
  load: Callable[[str], tuple[np.ndarray, np.ndarray]]
  inputs: Callable[[str], np.ndarray]
  blocks: Callable[[], np.ndarray]


def image_bits(images: np.ndarray) -> np.ndarray:
  """64 bits of each image, `[N]` uint64: the first of the SHA-256 of its pixels."""
  digests = [hashlib.sha256(image.tobytes()).digest()[:8] for image in images]
  return np.frombuffer(b''.join(digests), '<u8').astype(np.uint64)


def divided(what: str, parts: Mapping[str, tuple[np.ndarray, np.ndarray]], test: str, seed: int, train: str) -> Divided:
  """Images, labels and bits by part.

  One part alone is divided by class, and images that are alike stay together. Of given parts, images that stand in two
  are told.
  """
  found = {name: (x, y, image_bits(x)) for name, (x, y) in parts.items()}
  if len(found) > 1:
    for name, (_, y, bits) in found.items():
      if name != train and train in found and (shared := splits.shared_rows(found[train][2], bits)):
        logger.warning(
          f'{what}: {shared:,} of {len(y):,} images of {name} stand in {train} as well: leave them out of one'
        )
    return found
  share = share_of(test)
  if share is None:
    raise UserError(f'{what}: test={test} must be a share, such as 0.2, or make folders train and test')
  ((x, y, bits),) = found.values()
  chosen = splits.at_random(bits, splits.blocks_of(bits), y, share, seed)
  return {name: (x[rows], y[rows], bits[rows]) for name, rows in (('train', ~chosen), ('test', chosen))}


def image_set(
  what: str, form: Form, names: tuple[str, ...], parts: tuple[str, ...], train: str, read: Callable[[], Divided]
) -> ImageSet:
  """A data set of images that are read when they are first needed.

  Args:
    what: Begins messages.
    form: Of the images.
    names: Of the classes of the training part.
    parts: Names of the parts that are given.
    train: The training part.
    read: Returns images, labels and bits by part; the label of a class that is not in the training part is −1.
  """

  def inputs(part: str) -> np.ndarray:
    return look_up(read(), part, f'part of {what}')[0]

  def load(part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = inputs(part), read()[part][1]
    if (unknown := (y < 0).sum()) > 0:
      raise UserError(
        f'{what}: {unknown:,} images of {part} are of classes that {train} does not have: leave them out, or make the '
        'part an out-of-domain set'
      )
    return x, y

  return ImageSet(what, form.shape, names, parts, train, load, inputs, lambda: splits.blocks_of(read()[train][2]))


def from_folder(address: Address, train: str) -> ImageSet:
  """The data set of a folder with a sub-folder for each class, or with sub-folders for parts that have these.

  Raises:
    UserError: It has no images, they are of several sizes, or a file cannot be read.
  """
  root = Path(address.place)
  if not root.is_dir():
    raise UserError(f"there is no folder '{root}': give one that has a sub-folder for each class")
  parts = {part: _listed(folder) for part, folder in _parts(root).items()}
  facts = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for files in parts.values() for f, _ in files)
  return _from_folder(address, train, facts)


def _parts(root: Path) -> dict[str, Path]:
  """Folders of the parts: those below the root that have folders themselves, or the root as the only one."""
  folders = _folders(root)
  if not folders:
    raise UserError(f"'{root}' has no sub-folders: put the images of each class into one that is called as the class")
  deep = [folder for folder in folders if _folders(folder)]
  if not deep:
    return {'train': root}
  if flat := [folder for folder in folders if folder not in deep]:
    raise UserError(f"'{root}' has folders of parts, such as {deep[0].name}, and {flat[0].name} beside them: move it")
  return {folder.name: folder for folder in folders}


def _folders(place: Path) -> list[Path]:
  return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith('.'))


@functools.cache
def _suffixes() -> frozenset[str]:
  """Of the files that Pillow reads."""
  return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _listed(folder: Path) -> list[tuple[Path, str]]:
  """Files of images and their classes; says which files are none, by their names."""
  found: list[tuple[Path, str]] = []
  others: list[tuple[Path, str]] = []
  for of_class in _folders(folder):
    for file in sorted(p for p in of_class.rglob('*') if p.is_file() and not p.name.startswith('.')):
      (found if file.suffix.lower() in _suffixes() else others).append((file, of_class.name))
  if others:
    listed = ', '.join(str(file.relative_to(folder)) for file, _ in others[:4]) + (', …' if len(others) > 4 else '')
    logger.warning(f'{folder}: {len(others):,} files are no images, and are left out: {listed}')
  if not found:
    raise UserError(f"'{folder}' has no images: add files such as .png and .jpg to a sub-folder for each class")
  return found


@functools.lru_cache(maxsize=2)
def _from_folder(address: Address, train: str, facts: tuple) -> ImageSet:
  parts = {part: _listed(folder) for part, folder in _parts(Path(address.place)).items()}
  opened = [_about(file) for files in parts.values() for file, _ in files]
  form = form_of(opened, address.options.size, address.place)
  look_up(parts, train, f'part of {address.place}')
  found = {name for _, name in parts[train]}
  names = tuple(sorted(found, key=int if all(name.isdecimal() for name in found) else None))
  if len(names) < 2:
    raise UserError(f"'{address.place}' has images of one class only, {names[0]}: add a sub-folder for each class")
  read = functools.cache(lambda: _read(address, parts, form, names, train, facts))
  return image_set(address.place, form, names, tuple(parts), train, read)


def _about(file: Path) -> tuple[tuple[int, int], str]:
  """Width and height as it is shown, and mode, of which only the header is read."""
  with _reading(file), Image.open(file) as image:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    width, height = image.size
    return (height, width) if turned else (width, height), image.mode


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
  """Says which file cannot be read: Pillow has many exceptions."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    raise UserError(f'{file} cannot be read as an image ({one_line(e)}): replace or remove it') from e


def _read(
  address: Address, parts: Mapping[str, Sequence[tuple[Path, str]]], form: Form, names: Sequence[str], train: str, facts
) -> Divided:
  """Images, labels and bits by part, decoded once."""
  number = {name: i for i, name in enumerate(names)}
  arrays = {}
  for part, files in parts.items():

    def write(new: Path, files=files, part=part) -> None:
      out = np.lib.format.open_memmap(new / 'images.npy', 'w+', np.uint8, (len(files), *form.shape))
      with bar(f'decoding {address.place} {part}', len(files)) as advance:
        for i, (file, _) in enumerate(files):
          with _reading(file), Image.open(file) as image:
            out[i] = pixels(image, form, str(file))
          advance(i + 1)
      out.flush()
      np.save(new / 'labels.npy', np.array([number.get(name, -1) for _, name in files], np.int32))

    key = (address.place, part, form, tuple(names), facts)
    arrays[part] = sources.kept(f'folder-{Path(address.place).name}', key, write)
  return divided(address.place, arrays, address.options.test, address.options.seed, train)
