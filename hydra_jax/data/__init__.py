"""Data sets: one to train on and any number to evaluate on, in their stored form.

What there is, by name, stands in `catalog`; how inputs are scaled, in `arrays`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import functools
import hashlib
import json
import logging

import numpy as np

from hydra_jax.data import catalog, photos, shifts
from hydra_jax.data.arrays import (
  Scaling,
  Split,
  constant,
  fingerprint,
  moments,
  scale_inputs,
  scale_targets,
  standardise,
  standardised,
  starting_rows,
)
from hydra_jax.data.catalog import SOURCES, Form, Source
from hydra_jax.data.checks import (
  LARGEST,
  check_inputs,
  check_labels,
  refuse_constant,
  refuse_far,
  warn_far,
  warn_unseen,
)
from hydra_jax.data.columns import Columns, encoded
from hydra_jax.data.outside import UNLABELLED, resized
from hydra_jax.errors import UserError, look_up

# What other folders take from here.
__all__ = [
  'About',
  'Columns',
  'Data',
  'Evaluation',
  'LARGEST',
  'NO_LABEL',
  'SOURCES',
  'Scaling',
  'Split',
  'UNLABELLED',
  'about',
  'check_inputs',
  'constant',
  'encoded',
  'fingerprint',
  'load',
  'moments',
  'outside_of',
  'outside_sets',
  'scale_inputs',
  'scale_targets',
  'standardise',
  'standardised',
  'starting_rows',
  'validation_rows',
  'with_unlabelled',
]

logger = logging.getLogger(__name__)

NO_LABEL = -1
# Inputs of a validation part. The spread of heads is known to 1 to 4% from 1,000, and to 10% from 16.
MOST_VALIDATION, LEAST_VALIDATION = 1000, 16


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
    family, unit: Of a shift, see `shifts.Shift`.
  """

  name: str
  kind: str
  load: Callable[[], Split]
  key: Callable[[], str]
  strength: float = 0.0
  family: str = ''
  unit: str = ''


@dataclass(frozen=True, kw_only=True)
class Data:
  """All the data of one replica.

  Attributes:
    task: Key of `tasks.TASKS`.
    train: The training split, as arrays or read as it is needed.
    outputs: Number of classes or of targets.
    scaling: Taken from the training split.
    evaluations: By name, `test` first.
    fingerprint: Hash of the training split, and of the schema of its columns.
    others: `name -> x`, inputs of another set, made to look like those of this one.
    classes: Their names, by output; empty if they are numbered, and in regression.
    validation: A part of the training split that nothing is trained on; None if it was not asked for.
    train_rows: Which examples of the training split `train` holds; None: all, in order.
    validation_rows: Which of them `validation` holds.
    columns: Of a table, what its columns become.
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
  columns: Columns | None = None

  @property
  def about(self) -> 'About':
    """What decides what is trained."""
    shape = self.train.example.shape[1:]
    return About(self.task, shape, self.outputs, self.train.varies, self.validation is not None)

  @property
  def given_examples(self) -> int:
    """Number of examples in the training split, with those of the validation part."""
    return self.train.examples + (0 if self.validation is None else self.validation.examples)


def outside_sets(config, data_dir: str = '') -> dict[str, object]:
  """Names that `config.ood` can hold, known without the data."""
  return {**UNLABELLED, **catalog.find(config, data_dir).outside, **SOURCES}


@dataclass(frozen=True)
class About:
  """What decides what is trained on a data set.

  Attributes:
    task: Key of `tasks.TASKS`.
    shape: Of an input.
    outputs: Number of classes or of targets.
    varies: Whether training inputs look different each time, as photographs that are cropped do.
    has_validation: Whether there is a validation part.
  """

  task: str
  shape: tuple[int, ...]
  outputs: int
  varies: bool = False
  has_validation: bool = False


def about(config, data_dir: str = '', validation: float = 0.0) -> About:
  """What `Data.about` will say, without the data of known sets; a file of the user's own is read.

  Image sets, which are not read, are taken to be large enough for a validation part.

  Args:
    config: The `data` part of an experiment.
    data_dir: Where data sets are.
    validation: Share of the training split that nothing is trained on, see `validation_rows`.
  """
  source = catalog.find(config, data_dir)
  shape = source.shape(Form(data_dir, 0, config.image_size))
  task, varies = 'classification' if source.classes else 'regression', source.stream is not None
  has_validation = bool(validation) and not varies
  if has_validation and source.examples:
    blocks = source.blocks() if source.blocks else None
    has_validation = len(validation_rows(source.examples(config.train), validation, blocks)) > 0
  return About(task, shape, source.classes or source.targets, varies, has_validation)


def _called(source: Source, config, split: str) -> tuple[str, str]:
  """What messages call the inputs and the labels of a split."""
  if source.called:
    return source.called('x', split), source.called('y', split)
  return f"the inputs of split '{split}' of '{config.name}'", f"the labels of split '{split}' of '{config.name}'"


def validation_rows(examples: int, share: float, blocks: np.ndarray | None = None) -> np.ndarray:
  """Which examples of a training split are the validation part, in order `[n]`; the same for all seeds.

  Args:
    examples: Of the training split.
    share: Of them that is wanted. No more than `MOST_VALIDATION` are taken, and none where that would be fewer than
      `LEAST_VALIDATION`.
    blocks: Numbers `[examples]`; examples with the same number are taken together, or not at all.
  """
  count = min(round(share * examples), MOST_VALIDATION)
  if count >= LEAST_VALIDATION and blocks is not None:
    rows = _whole_blocks(blocks, count)
  else:
    rows = np.random.default_rng(0).permutation(examples)[:count]
  return np.sort(rows) if len(rows) >= LEAST_VALIDATION else np.zeros(0, np.int64)


def _whole_blocks(blocks: np.ndarray, count: int) -> np.ndarray:
  """Rows of blocks drawn at random, at most `count`; blocks that are too large are passed over."""
  _, number, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
  left, taken = count, []
  for block in np.random.default_rng(0).permutation(len(sizes)):
    if sizes[block] <= left:
      taken.append(block)
      left -= sizes[block]
    if not left:
      break
  return np.nonzero(np.isin(number, taken))[0]


def _divided(
  split: Split, share: float, blocks: np.ndarray | None, what: str
) -> tuple[Split, Split | None, np.ndarray | None, np.ndarray | None]:
  """The examples to train on, the validation part, and the rows of both."""
  rows = validation_rows(split.examples, share, blocks)
  if not len(rows):
    if share:
      logger.info(f'{what}: {split.examples} examples are too few for a validation part: nothing is calibrated on it')
    return split, None, None, None
  is_left = np.ones(split.examples, bool)
  is_left[rows] = False
  (others,) = np.nonzero(is_left)
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
  source = catalog.find(config, data_dir)
  form = Form(data_dir, replica, config.image_size)
  if source.note and replica == 0:
    logger.info(source.note)

  def split(which, example=None, targets=None) -> Split:
    x, y = source.load(which, form)
    x_called, y_called = _called(source, config, which)
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
    blocks = source.blocks() if source.blocks else None
    called = _called(source, config, config.train)[0]
    train, held_out, train_rows, held_out_rows = _divided(split(config.train), validation, blocks, called)
    outputs, scaling = source.classes or train.y.shape[-1], standardise(train, source.classes is not None)
  test = functools.cache(lambda: split(config.test, train.example, outputs))
  if isinstance(train, Split):
    refuse_constant(train, source.classes is not None, _called(source, config, config.train))
    warn_unseen(train, test(), source.classes, _called(source, config, config.test)[1])
    warn_far(train, test(), scaling, _called(source, config, config.test)[0])
  evaluations = _evaluations(config, train.example, test, scaling, form, {**UNLABELLED, **source.outside}, outputs)
  for name, evaluation in evaluations.items():
    if evaluation.kind != 'shift' or shifts.parse(name)[0].only:  # other shifts keep the shape of the test split
      refuse_far(evaluation.load(), scaling, f"set '{name}'")
  return Data(
    task='classification' if source.classes else 'regression',
    train=train,
    outputs=outputs,
    scaling=scaling,
    evaluations=evaluations,
    fingerprint=_fingerprint(train, source.columns),
    others=functools.cache(lambda name: _other(name, form, train.example)),
    classes=source.names,
    validation=held_out,
    train_rows=train_rows,
    validation_rows=held_out_rows,
    columns=source.columns,
  )


def _fingerprint(train: Split | photos.Stream, columns: Columns | None) -> str:
  """Hash of the training split, and of the schema of its columns: names may change where numbers do not."""
  if columns is None:
    return train.fingerprint
  return hashlib.sha256(f'{train.fingerprint}{json.dumps(columns.to_json())}'.encode()).hexdigest()[:16]


def with_unlabelled(data: Data, names: Sequence[str]) -> Data:
  """The same data, with the training inputs of other sets beside its own, without labels and scaled like them."""
  if not names:
    return data
  if not isinstance(data.train, Split):
    raise UserError('unlabelled inputs cannot stand beside images that are read as they are needed: set it to ()')
  x = np.concatenate([data.train.x, *map(data.others, names)])
  y = np.concatenate([data.train.y, _no_labels(len(x) - len(data.train.y), data.train.y, data.scaling)])
  train = Split(x, y)
  return replace(data, train=train, fingerprint=_fingerprint(train, data.columns))


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
  return x if x.shape[1:] == shape else resized(x, shape, example.dtype)


def _evaluations(config, example, test, scaling, form: Form, unlabelled, outputs: int) -> dict[str, Evaluation]:
  content = lambda load: lambda: load().fingerprint
  sets = {'test': Evaluation('test', 'test', test, content(test))}
  for name in config.shifts:
    shifts.check(name, config.name, example, form.data_dir)
    shift, strength = shifts.parse(name)
    shifted = functools.cache(functools.partial(_shifted, name, test, scaling, form.data_dir, outputs))
    made_from = lambda name=name: f'{name}-{test().fingerprint}-{fingerprint(*scaling)}'
    sets[name] = Evaluation(
      name, 'shift', shifted, content(shifted) if shift.only else made_from, strength, shift.family, shift.unit
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
