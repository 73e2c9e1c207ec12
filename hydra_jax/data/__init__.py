"""Data sets: one to train on and any number to evaluate on, in their stored form.

Images stay uint8, on disk and on the device; scaling is part of the compiled step. Loading is lazy,
because a run that only continues may need little of it.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import feeds
from hydra_jax.data import files, photos, shifts, sources, toy, uci
from hydra_jax.errors import UserError, look_up

NO_LABEL = -1


class Split(NamedTuple):
  """Examples `x [N, …]` and labels `y`, `[N]` int32 or `[N, D]` float32.

  To train on, a `photos.Stream` may stand in its place: it has all that is below x and y.
  """

  x: np.ndarray
  y: np.ndarray

  varies = False  # whether an example looks different each time it is shown

  @property
  def examples(self) -> int:
    """How many there are."""
    return len(self.x)

  @property
  def example(self) -> np.ndarray:
    """A few inputs as stored, `[≤ 8, …]`."""
    return self.x[:8]

  @property
  def fingerprint(self) -> str:
    """Hash of all there is."""
    return fingerprint(*self)

  def arrays(self, scaling: 'Scaling', kept: dict) -> dict:
    """Inputs, targets as the network learns them, and what else is kept for each example, such as predictions."""
    return {'x': self.x, 'y': scale_targets(scaling, self.y), **kept}

  def feed(self, scaling: 'Scaling', kept: dict) -> feeds.Feed:
    """Batches for training, see `arrays`."""
    return feeds.resident(self.arrays(scaling, kept))


class Scaling(NamedTuple):
  """Networks see `(x − x_shift) / x_scale`, and targets likewise, `[features]` and `[targets]`."""

  x_shift: np.ndarray
  x_scale: np.ndarray
  y_shift: np.ndarray
  y_scale: np.ndarray


class Evaluation(NamedTuple):
  """A set to evaluate on.

  Attributes:
    name: As it stands in the results.
    kind: `test`, `shift` (labels hold), `ood` (no labels) or `plane` (a grid to draw, no labels).
    load: Returns the `Split`.
    key: Returns a hash of all that the set is made from: of its content, or where that takes long to make, of the test
      split, the scaling and the name of the change.
    strength: Of a shift; 0 for all others.
    family: Of a shift, see `shifts.Shift`.
  """

  name: str
  kind: str
  load: Callable[[], Split]
  key: Callable[[], str]
  strength: float = 0.0
  family: str = ''


class Data(NamedTuple):
  """All the data of one replica.

  Attributes:
    task: Key of `tasks.TASKS`.
    train: The training split, as arrays or read as it is needed.
    outputs: Number of classes or of targets.
    scaling: Taken from the training split.
    evaluations: By name, `test` first.
    fingerprint: Hash of the training split.
    others: `name -> x`, inputs of another set, made to look like those of this one.
  """

  task: str
  train: Split | photos.Stream
  outputs: int
  scaling: Scaling
  evaluations: Mapping[str, Evaluation]
  fingerprint: str
  others: Callable[[str], np.ndarray]


class Form(NamedTuple):
  """What is wanted of a set, besides its name and split."""

  data_dir: str
  replica: int
  image_size: int


class Source(NamedTuple):
  """A row of `SOURCES`.

  Attributes:
    load: `(split, form) -> (x, y)`.
    classes: Their number, in classification.
    shape: `form -> shape` of an input, known without the data.
    stream: `(split, form) -> Stream`, to train on what may be larger than memory.
    scaling: Where it is not taken from the training split.
    outside: Out-of-domain sets of its own, made like those in `UNLABELLED`.
  """

  load: Callable[[str, Form], tuple[np.ndarray, np.ndarray]]
  classes: int | None
  shape: Callable[[Form], tuple[int, ...]]
  stream: Callable[[str, Form], photos.Stream] | None = None
  scaling: Scaling | None = None
  outside: Mapping[str, Callable[[Split], np.ndarray]] = {}


def _tfds(name: str, classes: int, *shape: int) -> Source:
  return Source(lambda split, form: sources.tfds_images(name, split, form.data_dir), classes, lambda form: shape)


def _uci(name: str) -> Source:
  load = lambda split, form: uci.split(name, split, form.data_dir, form.replica)
  return Source(load, None, lambda form: (uci.SETS[name].features,))


def _photos(name: str, classes: int) -> Source:
  return Source(
    lambda split, form: photos.images(name, split, form.data_dir, form.image_size),
    classes,
    lambda form: (form.image_size, form.image_size, 3),
    lambda split, form: photos.stream(name, split, form.data_dir, form.image_size),
    IMAGENET,
  )


# Mean and standard deviation of ImageNet's colours, as everybody has them.
IMAGENET = Scaling(
  255 * np.float32([0.485, 0.456, 0.406]), 255 * np.float32([0.229, 0.224, 0.225]), np.float32([0]), np.float32([1])
)


def _file(path: str) -> Source:
  """The user's own file, with the out-of-domain sets that are in it."""
  outside = {name: lambda test, name=name: files.load(path, name)[0] for name in files.sets(path)}
  load = lambda split, form: files.load(path, split)
  return Source(load, files.classes(path), lambda form: load('train', form)[0].shape[1:], outside=outside)


SOURCES: dict[str, Source] = {
  'digits': Source(lambda split, form: toy.digits(split), 10, lambda form: (8, 8, 1)),
  'spiral': Source(lambda split, form: toy.spiral(split), 3, lambda form: (2,)),
  'mnist': _tfds('mnist', 10, 28, 28, 1),
  'fashion_mnist': _tfds('fashion_mnist', 10, 28, 28, 1),
  'cifar10': _tfds('cifar10', 10, 32, 32, 3),
  'cifar100': _tfds('cifar100', 100, 32, 32, 3),
  'svhn_cropped': _tfds('svhn_cropped', 10, 32, 32, 3),
  'imagenet2012': _photos('imagenet2012', 1000),
  **{f'uci/{name}': _uci(name) for name in uci.SETS},
}


def _noise(test: Split) -> np.ndarray:
  """Uniform noise over the range of the test inputs, 1,000 examples."""
  shape = (1000, *test.x.shape[1:])
  low, high = np.min(test.x), np.max(test.x)
  values = np.random.default_rng(0).uniform(low, high, shape)
  return (np.rint(values) if np.issubdtype(test.x.dtype, np.integer) else values).astype(test.x.dtype)


def _negative(test: Split) -> np.ndarray:
  """The test inputs, light for dark."""
  return np.min(test.x) + np.max(test.x) - test.x


def _collage(test: Split) -> np.ndarray:
  """Images whose four quarters come from four test images."""
  x, random = test.x, np.random.default_rng(0)
  if x.ndim != 4:
    raise UserError("out-of-domain set 'collage' is for images: leave it out")
  height, width = x.shape[1] // 2, x.shape[2] // 2
  made = np.empty_like(x)
  for rows in (slice(height), slice(height, None)):
    for columns in (slice(width), slice(width, None)):
      made[:, rows, columns] = x[random.permutation(len(x)), rows, columns]
  return made


# Inputs that belong to no data set with labels, each made from the test split.
UNLABELLED: dict[str, Callable[[Split], np.ndarray]] = {
  'letters': lambda test: toy.letters(test.x.shape[1]),
  'noise': _noise,
  'negative': _negative,
  'collage': _collage,
  'far': lambda test: toy.spiral('far')[0],
  'plane': lambda test: toy.plane(2.5 * float(np.max(np.abs(test.x)))),
}


def check(split: Split, what: str) -> Split:
  """Returns a split that is not empty and has finite numbers, or raises a `UserError`."""
  if len(split.x) == 0 or len(split.x) != len(split.y):
    raise UserError(f'{what} has {len(split.x)} inputs and {len(split.y)} labels: they must match, and not be 0')
  for part, values in split._asdict().items():
    if np.issubdtype(values.dtype, np.floating) and not np.all(np.isfinite(values)):
      rows = np.nonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0]
      raise UserError(f'{what} has NaN or infinite values in {part} of {len(rows)} rows, first row {rows[0]}: clean it')
  return split


def standardise(train: Split, classification: bool) -> Scaling:
  """Mean and standard deviation of each feature (last axis), and of each target in regression."""

  def moments(values):
    flat = values.reshape(-1, values.shape[-1])
    shift, scale = flat.mean(axis=0, dtype=np.float64), flat.std(axis=0, dtype=np.float64)
    # A feature can be constant in a split, and rounding makes its deviation not exactly 0.
    return shift.astype(np.float32), np.where(scale < 1e-8, 1, scale).astype(np.float32)

  y_moments = (np.zeros(1, np.float32), np.ones(1, np.float32)) if classification else moments(train.y)
  return Scaling(*moments(train.x), *y_moments)


def scale_inputs(scaling: Scaling, x: jax.Array) -> jax.Array:
  """Stored inputs, of any dtype, as the network reads them."""
  lead = (1,) * (x.ndim - 1)
  shift, scale = (jnp.reshape(jnp.asarray(a), (*lead, -1)) for a in (scaling.x_shift, scaling.x_scale))
  return (x.astype(jnp.float32) - shift) / scale


def scale_targets(scaling: Scaling, y: np.ndarray) -> np.ndarray:
  """Targets as the network learns them; class labels as they are."""
  return y if np.issubdtype(y.dtype, np.integer) else (y - scaling.y_shift) / scaling.y_scale


def fingerprint(*arrays: np.ndarray) -> str:
  """SHA-256 of shapes, dtypes and contents."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()[:16]


def _source(config) -> Source:
  return _file(config.name) if config.name.endswith('.npz') else look_up(SOURCES, config.name, 'data set')


def outside_sets(config) -> dict[str, object]:
  """Names that `config.ood` can hold, known without the data."""
  return {**UNLABELLED, **_source(config).outside, **SOURCES}


class About(NamedTuple):
  """What is known of a data set without its files: the task, the shape of an input, and the number of outputs."""

  task: str
  shape: tuple[int, ...]
  outputs: int


def about(config) -> About:
  """What networks for a data set must fit; of a file of the user's own, it is read."""
  source = _source(config)
  shape = source.shape(Form('', 0, config.image_size))
  if source.classes:
    return About('classification', shape, source.classes)
  outputs = source.load('train', Form('', 0, 0))[1].shape[-1] if config.name.endswith('.npz') else 1
  return About('regression', shape, outputs)


def load(config, data_dir: str, replica: int) -> Data:
  """Loads what `config` (the `data` part of an experiment) names, for one replica."""
  source = _source(config)
  form = Form(data_dir, replica, config.image_size)

  def split(which) -> Split:
    return check(Split(*source.load(which, form)), f"split '{which}' of '{config.name}'")

  train = source.stream(config.train, form) if source.stream else split(config.train)
  scaling = source.scaling or standardise(train, source.classes is not None)
  test = functools.cache(lambda: split(config.test))
  evaluations = _evaluations(config, train.example, test, scaling, form, {**UNLABELLED, **source.outside})
  for evaluation in evaluations.values():
    if evaluation.kind == 'ood':
      evaluation.load()  # a set that is missing is better known before the training than after
  return Data(
    task='classification' if source.classes else 'regression',
    train=train,
    outputs=source.classes or train.y.shape[-1],
    scaling=scaling,
    evaluations=evaluations,
    fingerprint=train.fingerprint,
    others=functools.cache(lambda name: _other(name, form, train.example)),
  )


def with_unlabelled(data: Data, names: Sequence[str]) -> Data:
  """The same data, with the training inputs of other sets beside its own, without labels and scaled like them."""
  if not names:
    return data
  if not isinstance(data.train, Split):
    raise UserError('unlabelled inputs cannot stand beside images that are read as they are needed: set it to ()')
  x = np.concatenate([data.train.x, *map(data.others, names)])
  missing = len(x) - len(data.train.y)
  y = np.concatenate([data.train.y, np.full((missing, *data.train.y.shape[1:]), NO_LABEL, data.train.y.dtype)])
  train = Split(x, y)
  return data._replace(train=train, fingerprint=train.fingerprint)


def _other(name: str, form: Form, example: np.ndarray) -> np.ndarray:
  """Inputs of the training split of another set, or of a part such as `cifar10[:1000]`, in the shape of `example`."""
  source, *part = name.partition('[')
  x, _ = look_up(SOURCES, source, 'data set').load('train' + ''.join(part), form)
  shape = example.shape[1:]
  if x.shape[1:] != shape and (x.ndim != 4 or len(shape) != 3):
    raise UserError(f"'{name}' has inputs of shape {x.shape[1:]}, the training split {shape}: choose another")
  return x if x.shape[1:] == shape else _resized(x, shape, example.dtype)


def _resized(x_NxHxWxC: np.ndarray, shape: tuple[int, ...], dtype) -> np.ndarray:
  """Images of another size, and grey or in three colours, as asked for."""
  from PIL import Image

  height, width, channels = shape
  if x_NxHxWxC.shape[-1] != channels:
    grey = x_NxHxWxC.mean(axis=-1, keepdims=True)
    x_NxHxWxC = np.repeat(grey, channels, axis=-1)
  size = lambda plane: np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.BILINEAR))
  planes = [[size(image[..., c]) for c in range(channels)] for image in x_NxHxWxC]
  values = np.moveaxis(np.asarray(planes), 1, -1)
  return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


def _evaluations(config, example, test, scaling, form: Form, unlabelled) -> dict[str, Evaluation]:
  content = lambda load: lambda: load().fingerprint
  sets = {'test': Evaluation('test', 'test', test, content(test))}
  for name in config.shifts:
    shifts.check(name, config.name, example, form.data_dir)
    shift, strength = shifts.parse(name)
    shifted = functools.cache(functools.partial(_shifted, name, test, scaling, form.data_dir))
    made_from = lambda name=name: f'{name}-{test().fingerprint}-{fingerprint(*scaling)}'
    sets[name] = Evaluation(
      name, 'shift', shifted, content(shifted) if shift.only else made_from, strength, shift.family
    )
  for name in config.ood:
    look_up({**unlabelled, **SOURCES}, name.partition('[')[0], 'out-of-domain set')
    kind = 'plane' if name == 'plane' else 'ood'
    outside = functools.cache(functools.partial(_outside, name, test, form, unlabelled))
    sets[name] = Evaluation(name, kind, outside, content(outside))
  return sets


def _shifted(name: str, test: Callable[[], Split], scaling: Scaling, data_dir: str) -> Split:
  """Test inputs that are changed, or were changed by others, with their labels."""
  shift, strength = shifts.parse(name)
  return check(Split(*shift.load(test, strength, scaling.x_scale, data_dir)), f"shift '{name}'")


def outside_of(data: Data) -> list[str]:
  """Names of the sets that detection is shown for: the out-of-domain ones, or the last shift if there are none."""
  kinds = {kind: [e.name for e in data.evaluations.values() if e.kind == kind] for kind in ('ood', 'shift')}
  return kinds['ood'] or kinds['shift'][-1:]


def _outside(name: str, test: Callable[[], Split], form: Form, unlabelled) -> Split:
  """Inputs of another set, or of a part such as `cifar100[:1000]`, shaped like the test inputs, without labels."""
  inside = test()
  source, *part = name.partition('[')
  x = unlabelled[name](inside) if name in unlabelled else SOURCES[source].load('test' + ''.join(part), form)[0]
  if x.shape[1:] != inside.x.shape[1:]:
    raise UserError(f"'{name}' has inputs of shape {x.shape[1:]}, the test split {inside.x.shape[1:]}: choose another")
  labels = np.full((len(x), *inside.y.shape[1:]), NO_LABEL, inside.y.dtype)
  return check(Split(np.asarray(x), labels), f"out-of-domain set '{name}'")
