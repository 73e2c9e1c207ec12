"""Data sets: one to train on and any number to evaluate on, in their stored form.

Images stay uint8, on disk and on the device; scaling is part of the compiled step. All other inputs, and targets,
are standardised on the host in float64 (`standardised`, `scale_targets`): rounded to float32 before that, values that
vary little around a large one would lose what they vary by.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
import functools
import hashlib
import logging
import math
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import files, labels, photos, shifts, sources, toy, uci
from hydra_jax.errors import UserError, look_up

logger = logging.getLogger(__name__)

NO_LABEL = -1
# Larger numbers are refused, and inputs and targets further from the training mean, in standard deviations: what is
# computed of them, such as their squares, would not be finite in float32.
LARGEST, FARTHEST = 1e37, 1e15
# Test inputs further away than this are told of.
FAR = 100
# A feature is constant if it varies by no more than this share of its size, or two steps of its dtype.
ROUNDING = 1e-12
ROWS_AT_ONCE = 2**16
# Inputs of a validation part. The spread of heads is known to 1 to 4% from 1,000, and to 10% from 16.
MOST_VALIDATION, LEAST_VALIDATION = 1000, 16


@dataclass(frozen=True)
class Split:
  """Examples `x [N, …]` as stored and labels `y`, `[N]` int32 or `[N, D]` float64, in the units of the targets.

  To train on, a `photos.Stream` may stand in its place: it has all that is below x and y.
  """

  x: np.ndarray
  y: np.ndarray

  @property
  def varies(self) -> bool:
    """Whether an example looks different each time it is shown."""
    return False

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
    return fingerprint(self.x, self.y)

  def arrays(self, scaling: 'Scaling') -> dict[str, np.ndarray]:
    """Inputs and targets as they go to the device."""
    return {'x': standardised(scaling, self.x), 'y': scale_targets(scaling, self.y)}


class Scaling(NamedTuple):
  """Networks see `(x − x_shift) / x_scale`, and targets likewise, `[features]` and `[targets]` float64."""

  x_shift: np.ndarray
  x_scale: np.ndarray
  y_shift: np.ndarray
  y_scale: np.ndarray


# Mean and standard deviation of ImageNet's colours, as everybody has them.
IMAGENET = Scaling(
  255 * np.array([0.485, 0.456, 0.406]), 255 * np.array([0.229, 0.224, 0.225]), np.zeros(1), np.ones(1)
)


@dataclass(frozen=True)
class Evaluation:
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


@dataclass(frozen=True, kw_only=True)
class Data:
  """All the data of one replica.

  Attributes:
    task: Key of `tasks.TASKS`.
    train: The training split, as arrays or read as it is needed.
    outputs: Number of classes or of targets.
    scaling: Taken from the training split.
    evaluations: By name, `test` first.
    fingerprint: Hash of the training split.
    others: `name -> x`, inputs of another set, made to look like those of this one.
    classes: Their names, by output; empty if they are numbered, and in regression.
    validation: A part of the training split that nothing is trained on; None if it was not asked for.
    train_rows: Which examples of the training split `train` holds; None: all, in order.
    validation_rows: Which of them `validation` holds.
  """

  task: str
  train: Split | photos.Stream
  outputs: int
  scaling: Scaling
  evaluations: Mapping[str, Evaluation]
  fingerprint: str
  others: Callable[[str], np.ndarray]
  classes: tuple[str, ...] = ()
  validation: Split | None = None
  train_rows: np.ndarray | None = None
  validation_rows: np.ndarray | None = None

  @property
  def given_examples(self) -> int:
    """Number of examples in the training split, with those of the validation part."""
    return self.train.examples + (0 if self.validation is None else self.validation.examples)


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
    stream: `(split, form) -> Stream`, to train on what may be larger than memory.
    scaling: Of a stream; that of arrays is taken from the training split.
    outside: Out-of-domain sets that come with it, made like those in `UNLABELLED`.
    names: Of the classes, if they have any.
    note: What was assumed of the data, for the user.
  """

  load: Callable[[str, Form], tuple[np.ndarray, np.ndarray]]
  classes: int | None
  shape: Callable[[Form], tuple[int, ...]]
  stream: Callable[[str, Form], photos.Stream] | None = None
  scaling: Scaling = IMAGENET
  outside: Mapping[str, Callable[[Split], np.ndarray]] = field(default_factory=dict)
  names: tuple[str, ...] = ()
  note: str = ''


def _tfds(name: str, classes: int, *shape: int) -> Source:
  return Source(lambda split, form: sources.tfds_images(name, split, form.data_dir), classes, lambda form: shape)


def _uci(name: str) -> Source:
  def load(split: str, form: Form) -> tuple[np.ndarray, np.ndarray]:
    return uci.split(name, split, form.data_dir, form.replica)

  return Source(load, None, lambda form: (uci.SETS[name].features,))


def _photos(name: str, classes: int) -> Source:
  return Source(
    lambda split, form: photos.images(name, split, form.data_dir, form.image_size),
    classes,
    lambda form: (form.image_size, form.image_size, 3),
    lambda split, form: photos.stream(name, split, form.data_dir, form.image_size),
  )


def _inputs_of_file(path: str, name: str, test: Split) -> np.ndarray:
  del test
  return files.inputs(path, name)


def _file(path: str, task: str) -> Source:
  """The user's own data, with the out-of-domain sets that are in them."""
  meaning = files.meaning(path, task)
  return Source(
    load=lambda split, form: files.load(path, split, task),
    classes=meaning.outputs if meaning.task == 'classification' else None,
    shape=lambda form: files.shape(path),
    outside={name: functools.partial(_inputs_of_file, path, name) for name in files.sets(path)},
    names=meaning.names,
    note=meaning.note,
  )


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


def check_inputs(x: np.ndarray, what: str, example: np.ndarray | None = None) -> np.ndarray:
  """Returns inputs that are numbers, finite, not empty, and shaped like an example `[≤ 8, …]`; refuses others."""
  if x.dtype.kind not in 'biuf':
    raise UserError(f'{what} is of dtype {x.dtype}, and must hold real numbers: convert it')
  if not x.size:
    raise UserError(f'{what} has shape {list(x.shape)} and is empty: add examples')
  if example is not None and x.shape[1:] != example.shape[1:]:
    raise UserError(
      f'{what} has inputs of shape {list(x.shape[1:])}, and the training split {list(example.shape[1:])}: '
      'give both the same features'
    )
  labels.refuse_not_finite(x, what)
  _refuse_large(x, what)
  return x


def check_labels(y: np.ndarray, what: str, examples: int, classes: int | None, targets: int) -> np.ndarray:
  """Returns labels that fit their inputs: `[N]` from 0 to `classes − 1`, or `[N, targets]`; refuses others."""
  if len(y) != examples:
    raise UserError(f'{what} has {len(y):,} labels for {examples:,} inputs: they must match')
  if classes is not None:
    if y.ndim != 1 or y.dtype.kind not in 'iu':
      raise UserError(f'{what} is {y.dtype} {list(y.shape)}, and must hold whole numbers [examples]')
    if y.min() < 0 or y.max() >= classes:
      wrong = y.min() if y.min() < 0 else y.max()
      raise UserError(f'{what} has the class {wrong}, and the classes are 0 to {classes - 1}: count them from 0')
    return y
  if y.ndim != 2 or y.shape[1] != targets:
    raise UserError(
      f'{what} has {math.prod(y.shape[1:])} targets, and the training split {targets}: give both the same'
    )
  labels.refuse_not_finite(y, what)
  _refuse_large(y, what)
  return y


def _refuse_large(values: np.ndarray, what: str) -> None:
  if values.dtype.kind == 'f' and max(-float(np.min(values)), float(np.max(values))) > LARGEST:
    raise UserError(f'{what} has numbers of more than {LARGEST:g}: give it in other units')


def standardise(train: Split, classification: bool) -> Scaling:
  """Mean and standard deviation of each feature (last axis), and of each target in regression."""
  y_moments = (np.zeros(1), np.ones(1)) if classification else moments(train.y)
  return Scaling(*moments(train.x), *y_moments)


def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation along all axes but the last, float64; the deviation is 1 where values are constant.

  They are computed in units of the size of each feature, from deviations from its first value, so that neither large
  nor small numbers lose digits.
  """
  flat = values.reshape(-1, values.shape[-1])
  pieces = [flat[start : start + ROWS_AT_ONCE] for start in range(0, len(flat), ROWS_AT_ONCE)]
  size = np.maximum(np.abs(flat.min(axis=0).astype(np.float64)), np.abs(flat.max(axis=0).astype(np.float64)))
  unit = np.ldexp(1.0, np.frexp(size)[1])  # a power of two, by which division is exact
  first = flat[0] / unit
  mean = sum((piece / unit - first).sum(axis=0) for piece in pieces) / len(flat)
  variance = sum(np.square(piece / unit - first - mean).sum(axis=0) for piece in pieces) / len(flat)
  return (first + mean) * unit, np.where(constant(values), 1, np.sqrt(variance) * unit)


def constant(values: np.ndarray) -> np.ndarray:
  """Which features (last axis) are the same everywhere, but for rounding."""
  flat = values.reshape(-1, values.shape[-1])
  low, high = (f(flat, axis=0).astype(np.float64) for f in (np.min, np.max))
  step = float(np.finfo(values.dtype).eps) if values.dtype.kind == 'f' else 0.0
  return high - low <= max(ROUNDING, 2 * step) * np.maximum(np.abs(low), np.abs(high))


def standardised(scaling: Scaling, x: np.ndarray) -> np.ndarray:
  """Stored inputs as they go to the device: images of bytes as they are, all else standardised, float32."""
  if x.dtype == np.uint8:
    return x
  out = np.empty(x.shape, np.float32)
  for start in range(0, len(x), ROWS_AT_ONCE):
    rows = slice(start, start + ROWS_AT_ONCE)
    out[rows] = (x[rows] - scaling.x_shift.astype(np.float64)) / scaling.x_scale
  return out


def scale_inputs(scaling: Scaling, x: jax.Array) -> jax.Array:
  """Inputs on the device as the network reads them: bytes are scaled here, all else was on the host."""
  if x.dtype != jnp.uint8:
    return x
  lead = (1,) * (x.ndim - 1)
  shift, scale = (jnp.reshape(jnp.asarray(a, jnp.float32), (*lead, -1)) for a in (scaling.x_shift, scaling.x_scale))
  return (x.astype(jnp.float32) - shift) / scale


def scale_targets(scaling: Scaling, y: np.ndarray) -> np.ndarray:
  """Targets as the network learns them, float32; class labels as they are."""
  if y.dtype.kind in 'iu':
    return y
  return ((y.astype(np.float64) - scaling.y_shift) / scaling.y_scale).astype(np.float32)


def fingerprint(*arrays: np.ndarray) -> str:
  """SHA-256 of shapes, dtypes and contents."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(repr((array.shape, array.dtype.str)).encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()[:16]


def _source(config) -> Source:
  """The row that the `data` part of a config names; a known set is refused for another task than its own."""
  look_up(dict.fromkeys(labels.TASKS), config.task, 'config.data.task')
  if files.is_own(config.name):
    return _file(config.name, config.task)
  if config.name not in SOURCES and (Path(config.name).suffix or Path(config.name).exists()):
    raise UserError(
      f"config.data.name='{config.name}' is no .npz file: save it with np.savez(path, x=…, y=…), or name a function, "
      'such as my_data.py:load'
    )
  source = look_up(SOURCES, config.name, 'data set')
  task = 'classification' if source.classes else 'regression'
  if config.task not in ('auto', task):
    raise UserError(f"config.data.task={config.task}, and '{config.name}' is for {task}: set it to auto")
  return source


def outside_sets(config) -> dict[str, object]:
  """Names that `config.ood` can hold, known without the data."""
  return {**UNLABELLED, **_source(config).outside, **SOURCES}


@dataclass(frozen=True)
class About:
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
  outputs = files.meaning(config.name, config.task).outputs if files.is_own(config.name) else 1
  return About('regression', shape, outputs)


def _called(config, split: str) -> tuple[str, str]:
  """What messages call the inputs and the labels of a split."""
  if files.is_own(config.name):
    x, y = (f"{config.name}: '{files.name_in_file(part, split)}'" for part in 'xy')
    return x, y
  return f"the inputs of split '{split}' of '{config.name}'", f"the labels of split '{split}' of '{config.name}'"


def validation_rows(examples: int, share: float) -> np.ndarray:
  """Which examples of a training split are the validation part, in order `[n]`; the same for all seeds.

  Args:
    examples: Of the training split.
    share: Of them that is wanted. No more than `MOST_VALIDATION` are taken, and none where that would be fewer than
      `LEAST_VALIDATION`.
  """
  count = min(round(share * examples), MOST_VALIDATION)
  if count < LEAST_VALIDATION:
    return np.zeros(0, np.int64)
  return np.sort(np.random.default_rng(0).permutation(examples)[:count])


def _divided(split: Split, share: float, what: str) -> tuple[Split, Split | None, np.ndarray | None, np.ndarray | None]:
  """The examples to train on, the validation part, and the rows of both."""
  rows = validation_rows(split.examples, share)
  if not len(rows):
    if share:
      logger.info(f'{what}: {split.examples} examples are too few for a validation part: nothing is calibrated on it')
    return split, None, None, None
  others = np.setdiff1d(np.arange(split.examples), rows)
  return Split(split.x[others], split.y[others]), Split(split.x[rows], split.y[rows]), others, rows


def load(config, data_dir: str, replica: int, validation: float = 0.0) -> Data:
  """Loads what `config` (the `data` part of an experiment) names, for one replica.

  Every split is checked against the training split here, before anything is trained.

  Args:
    config: As above.
    data_dir: Where data sets are.
    replica: Decides the split where the data have several.
    validation: Share of the training split that nothing is trained on, see `validation_rows`.

  Raises:
    UserError: The data cannot be used.
  """
  source = _source(config)
  form = Form(data_dir, replica, config.image_size)
  if source.note and replica == 0:
    logger.info(source.note)

  def split(which, example=None, targets=None) -> Split:
    x, y = source.load(which, form)
    x_called, y_called = _called(config, which)
    check_inputs(x, x_called, example)
    return Split(x, check_labels(y, y_called, len(x), source.classes, y.shape[-1] if targets is None else targets))

  train: Split | photos.Stream
  if source.stream:
    train, outputs, scaling = source.stream(config.train, form), source.classes or 1, source.scaling
    held_out, train_rows, held_out_rows = None, None, None
    if validation and replica == 0:
      logger.info(
        f"'{config.name}' is read as it is needed: it has no validation part, and nothing is calibrated on it"
      )
  else:
    train, held_out, train_rows, held_out_rows = _divided(split(config.train), validation, _called(config, 'train')[0])
    outputs, scaling = source.classes or train.y.shape[-1], standardise(train, source.classes is not None)
  test = functools.cache(lambda: split(config.test, train.example, outputs))
  if isinstance(train, Split):
    _refuse_constant(train, source.classes is not None, _called(config, config.train))
    _warn_unseen(train, test(), source.classes, _called(config, config.test)[1])
    _warn_far(train, test(), scaling, _called(config, config.test)[0])
  evaluations = _evaluations(config, train.example, test, scaling, form, {**UNLABELLED, **source.outside}, outputs)
  for name, evaluation in evaluations.items():
    if evaluation.kind != 'shift' or shifts.parse(name)[0].only:  # other shifts keep the shape of the test split
      _refuse_far(evaluation.load(), scaling, f"set '{name}'")
  return Data(
    task='classification' if source.classes else 'regression',
    train=train,
    outputs=outputs,
    scaling=scaling,
    evaluations=evaluations,
    fingerprint=train.fingerprint,
    others=functools.cache(lambda name: _other(name, form, train.example)),
    classes=source.names,
    validation=held_out,
    train_rows=train_rows,
    validation_rows=held_out_rows,
  )


def _refuse_constant(train: Split, classification: bool, called: tuple[str, str]) -> None:
  """Raises a `UserError` where there is nothing to learn."""
  if constant(train.x).all():
    raise UserError(f'{called[0]} is the same for every example: there is nothing to learn from it')
  if not classification and (same := constant(train.y)).any():
    column = int(np.argmax(same))
    raise UserError(
      f'{called[1]} is {train.y[0, column]:.10g} for every example{f" in column {column}" if len(same) > 1 else ""}: '
      'there is nothing to learn; save it as float64 if it varies, or leave it out'
    )


def _warn_far(train: Split, test: Split, scaling: Scaling, called: str) -> None:
  """Warns where test inputs are unlike all training inputs, as they are in other units or hardly vary in training."""
  flat = test.x.reshape(-1, test.x.shape[-1])
  ends = np.stack([np.min(flat, axis=0), np.max(flat, axis=0), scaling.x_shift]).astype(np.float64)
  same = constant(train.x)
  moved = same & ~constant(ends.astype(train.x.dtype))
  far = np.where(same, 0, np.max(np.abs(ends - scaling.x_shift) / scaling.x_scale, axis=0))
  if moved.any():
    value = scaling.x_shift[moved][0]
    logger.warning(f'{called}: feature {np.argmax(moved)} is {value:g} in every training example, and varies here')
  if far.max() > FAR:
    logger.warning(
      f'{called}: feature {np.argmax(far)} lies up to {far.max():.3g} standard deviations of the training split from '
      'its mean: see whether both are in the same units'
    )
  if len(shape := train.x.shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
    logger.warning(
      f'{called} has shape {list(test.x.shape)}, and the last axis is that of channels: '
      'if they come first, transpose(0, 2, 3, 1)'
    )


def _refuse_far(split: Split, scaling: Scaling, what: str) -> None:
  """Raises a `UserError` where a split is so far from the training split that it must be in other units."""
  for values, shift, scale in ((split.x, *scaling[:2]), (split.y, *scaling[2:])):
    if values.dtype.kind == 'f':
      flat = values.reshape(-1, values.shape[-1])
      far = max(np.max(np.abs((f(flat, axis=0) - shift) / scale)) for f in (np.min, np.max))
      if far > FARTHEST:
        raise UserError(
          f'{what} lies {far:.1g} standard deviations from the mean of the training split: give both in the same units'
        )


def _warn_unseen(train: Split, test: Split, classes: int | None, called: str) -> None:
  """Warns which classes of the test split no training example has."""
  if classes is not None and len(unseen := np.setdiff1d(test.y, train.y)):
    some = ', '.join(map(str, unseen[:8])) + (', …' if len(unseen) > 8 else '')
    logger.warning(f'{called}: no training example is of the classes {some}')


def with_unlabelled(data: Data, names: Sequence[str]) -> Data:
  """The same data, with the training inputs of other sets beside its own, without labels and scaled like them."""
  if not names:
    return data
  if not isinstance(data.train, Split):
    raise UserError('unlabelled inputs cannot stand beside images that are read as they are needed: set it to ()')
  x = np.concatenate([data.train.x, *map(data.others, names)])
  y = np.concatenate([data.train.y, _no_labels(len(x) - len(data.train.y), data.train.y, data.scaling)])
  train = Split(x, y)
  return replace(data, train=train, fingerprint=train.fingerprint)


def _no_labels(examples: int, like: np.ndarray, scaling: Scaling) -> np.ndarray:
  """What stands in the place of labels that there are none of: −1 for a class, the mean for a target."""
  fill = NO_LABEL if like.ndim == 1 else scaling.y_shift
  return np.broadcast_to(np.asarray(fill, like.dtype), (examples, *like.shape[1:]))


def _other(name: str, form: Form, example: np.ndarray) -> np.ndarray:
  """Inputs of the training split of another set, or of a part such as `cifar10[:1000]`, in the shape of `example`."""
  source, *part = name.partition('[')
  x = look_up(SOURCES, source, 'data set').load('train' + ''.join(part), form)[0]
  check_inputs(x, f"unlabelled set '{name}'")
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
  size = lambda plane: np.asarray(
    Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
  )
  planes = [[size(image[..., c]) for c in range(channels)] for image in x_NxHxWxC]
  values = np.moveaxis(np.asarray(planes), 1, -1)
  return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)


def _evaluations(config, example, test, scaling, form: Form, unlabelled, outputs: int) -> dict[str, Evaluation]:
  content = lambda load: lambda: load().fingerprint
  sets = {'test': Evaluation('test', 'test', test, content(test))}
  for name in config.shifts:
    shifts.check(name, config.name, example, form.data_dir)
    shift, strength = shifts.parse(name)
    shifted = functools.cache(functools.partial(_shifted, name, test, scaling, form.data_dir, outputs))
    made_from = lambda name=name: f'{name}-{test().fingerprint}-{fingerprint(*scaling)}'
    sets[name] = Evaluation(
      name, 'shift', shifted, content(shifted) if shift.only else made_from, strength, shift.family
    )
  for name in config.ood:
    look_up({**unlabelled, **SOURCES}, name.partition('[')[0], 'out-of-domain set')
    kind = 'plane' if name == 'plane' else 'ood'
    outside = functools.cache(functools.partial(_outside, name, test, form, unlabelled, scaling))
    sets[name] = Evaluation(name, kind, outside, content(outside))
  return sets


def _shifted(name: str, test: Callable[[], Split], scaling: Scaling, data_dir: str, outputs: int) -> Split:
  """Test inputs that are changed, or were changed by others, with their labels."""
  shift, strength = shifts.parse(name)
  x, y = shift.load(test, strength, scaling.x_scale, data_dir)
  check_inputs(x, f"the inputs of shift '{name}'", test().x)
  classes = outputs if y.ndim == 1 else None
  return Split(x, check_labels(y, f"the labels of shift '{name}'", len(x), classes, outputs))


def outside_of(data: Data) -> list[str]:
  """Names of the sets that detection is shown for: the out-of-domain ones, or the last shift if there are none."""
  kinds = {kind: [e.name for e in data.evaluations.values() if e.kind == kind] for kind in ('ood', 'shift')}
  return kinds['ood'] or kinds['shift'][-1:]


def _outside(name: str, test: Callable[[], Split], form: Form, unlabelled, scaling: Scaling) -> Split:
  """Inputs of another set, or of a part such as `cifar100[:1000]`, shaped like the test inputs, without labels."""
  inside = test()
  source, *part = name.partition('[')
  x = unlabelled[name](inside) if name in unlabelled else SOURCES[source].load('test' + ''.join(part), form)[0]
  x = check_inputs(np.asarray(x), f"out-of-domain set '{name}'", inside.x)
  return Split(x, _no_labels(len(x), inside.y, scaling))
