"""The schema of a config: every section, with the default, the rule and the meaning of each value.

Training. `config.training` holds what all networks share. `config.distillation` changes some of it for students that
learn from members, and `config.teacher` for the teacher and for students that learn from labels alone (`single`,
`mc_dropout`). A section `config.student.<name>` changes it for one student. `resolve` puts these together.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
import keyword
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hydra_jax.data import address
from hydra_jax.devices.layout import MODES
from hydra_jax.errors import UserError, look_up, nearest
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods import registry
from hydra_jax.methods.base import Method
from hydra_jax.nets.mapping import MAPPINGS
from hydra_jax.settings import (
  COUNT,
  COUNT_OR_0,
  DISTINCT_NAMES,
  FILLED_TEXT,
  NOT_NEGATIVE,
  TEXT,
  Rule,
  defaults,
  make,
  number,
  one_of,
  setting,
  table,
)
from hydra_jax.training.settings import TrainingSettings

# Keys that say how and where a run works, and not what comes out.
OF_THE_WORK = ('checkpoint_seconds', 'checkpoints_kept', 'execution', 'name', 'parallel', 'trackers')
LONGEST_NAME = 100  # names become parts of file names, which have at most 255 bytes


def _is_run_name(value: Any) -> bool:
  if not isinstance(value, str) or not value.strip() or value in ('.', '..') or value != value.strip():
    return False
  return not re.search(r'[/\\\x00-\x1f\x7f]', value) and len(value.encode(errors='replace')) <= LONGEST_NAME


def _wrong_run_name(value: Any) -> str:
  if not isinstance(value, str) or not value.strip():
    return 'must be a text that is not empty: it names the folder of the run'
  return f'must be the name of a folder: at most {LONGEST_NAME} characters, and no / or \\ or line break in it'


@dataclass(frozen=True)
class ExperimentSettings:
  """What belongs to no section."""

  name: str = setting('', Rule('the name of a folder', _is_run_name, _wrong_run_name), 'Names the folder of the run.')
  seed: int = setting(  # JAX drops the bits above
    0, number(' from 0 to 2**32 - 1', lambda v: 0 <= v < 2**32, whole=True), 'Of all that is random.'
  )
  replicas: int = setting(
    1, COUNT, 'Repetitions, by seed, or by standard split where the data have such splits. They give the error bars.'
  )
  validation: float = setting(
    0.1,
    number(' of at least 0 and less than 1', lambda v: 0 <= v < 1),
    'Share of the training split that nothing is trained on, at most 1,000 examples. The spread of heads and, for one '
    'column of the table, NLLs are calibrated on it, and inputs are chosen. 0: nothing of that is done.',
  )
  validation_scores: int = setting(
    0, COUNT_OR_0, 'Times that a network is scored on the validation part while it trains, for metrics.jsonl; 0: never.'
  )
  patience: int = setting(
    0,
    COUNT_OR_0,
    'Scores without a lower NLL on the validation part after which the last phase of a method stops; it keeps the '
    'parameters with the lowest. 0: it goes on to its end, and keeps the last.',
  )
  students: tuple[str, ...] = setting(
    ('single', 'kd', 'hydra'), DISTINCT_NAMES, 'Which sections under `student` are trained.'
  )
  checkpoint_seconds: float = setting(30.0, NOT_NEGATIVE, 'Training that lasts longer is saved this often.')
  checkpoints_kept: int = setting(2, COUNT, 'Of a phase in progress, the newest.')
  trackers: tuple[str, ...] = setting(
    (), DISTINCT_NAMES, 'Who gets metrics.jsonl too: tensorboard, wandb, trackio, mlflow, or my_tracker.py:make.'
  )


@dataclass(frozen=True)
class DataSettings:
  """What is trained and evaluated on."""

  name: str = setting(
    'digits',
    FILLED_TEXT,
    'A data set, an .npz file, a function such as my_data.py:load, or a place with options (docs/settings.md).',
  )
  train: str = setting('train', FILLED_TEXT, 'The training split, such as train[:80%].')
  test: str = setting('test', FILLED_TEXT, 'The test split.')
  shifts: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Changed test inputs, such as rotate:15 or fog:3.')
  ood: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Out-of-domain sets.')
  image_size: int = setting(224, COUNT, 'Side of the squares that photographs are cut to.')
  task: str = setting(
    'auto',
    one_of(('auto', *TASKS), 'task'),
    "Of the user's own data. auto: by the labels; asks where that is doubtful.",
  )


@dataclass(frozen=True)
class TeacherSettings:
  """The ensemble."""

  members: int = setting(20, COUNT, 'Number of members.')
  predictions: str = setting('', TEXT, 'A file of predictions of members that were made elsewhere.')
  checkpoints: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Finished runs, or artifacts in them, as members.')
  keep_as: str = setting(
    'float32', one_of(('float16', 'float32'), 'precision'), 'How predictions are kept for students.'
  )


@dataclass(frozen=True)
class EvaluationSettings:
  """How models are scored."""

  batch_size: int = setting(500, COUNT, 'Examples that are predicted at once.')
  ece_bins: int = setting(15, COUNT, 'Bins of the expected calibration error.')
  metrics: tuple[str, ...] = setting((), DISTINCT_NAMES, 'Metrics of your own: my_metrics.py:top2.')


@dataclass(frozen=True)
class ExecutionSettings:
  """How the work is laid out on the machine. It changes speed and memory, and results by rounding only."""

  mapping: str = setting('auto', one_of(MAPPINGS, 'mapping'), 'How members and heads are mapped.')
  heads_per_chunk: int = setting(
    0, COUNT_OR_0, 'Heads computed at a time in training. 0: all, or fewer where all are too large.'
  )
  steps_per_call: int = setting(
    0, COUNT_OR_0, 'Steps in one call of a program. 0: as many as take a second; 1 for convolutions on a CPU.'
  )
  replicas_together: int = setting(0, COUNT_OR_0, 'Replicas in one program, saved as one artifact. 0: all small ones.')


@dataclass(frozen=True)
class ParallelSettings:
  """How the devices of all processes are laid out."""

  mode: str = setting('shard_map', one_of(MODES, 'mode'), 'pmap spreads batches alone.')


_DEVICES = number(' of at least 1, or -1 for the rest', lambda v: v == -1 or v >= 1, whole=True)


@dataclass(frozen=True)
class MeshSettings:
  """Numbers of devices along each axis."""

  data: int = setting(-1, _DEVICES, 'Batches are spread over it. −1: the rest of the devices.')
  head: int = setting(1, _DEVICES, 'Members and heads are spread over it.')


@dataclass(frozen=True)
class StudentSettings:
  """What a section under `student` has besides the settings of its method and of training."""

  method: str = setting('', TEXT, 'A method, or my_methods.py:name. Left out, it is the name of the section.')


# The class of each section that has a fixed set of keys. All but those in `OVERRIDES` must be there.
SECTIONS: dict[str, type] = {
  '': ExperimentSettings,
  'data': DataSettings,
  'training': TrainingSettings,
  'teacher': TeacherSettings,
  'evaluation': EvaluationSettings,
  'execution': ExecutionSettings,
  'parallel': ParallelSettings,
  'parallel.mesh': MeshSettings,
}
# All keys of sections whose keys are not fixed; methods of the user's own may have others.
KNOWN = ('network', *(f.name for kind in (StudentSettings, TeacherSettings, TrainingSettings) for f in fields(kind)))
KNOWN += tuple(f.name for method in registry.METHODS.values() for f in fields(method.settings))
# Settings of training that only students that learn from members have.
OF_DISTILLATION = ('unlabelled', 'members_per_step', 'folds', 'views')
# What differs from `training` by default where a student learns from members.
DISTILLATION: dict[str, Any] = dict(learning_rate=3e-3, unlabelled=(), members_per_step=0, folds=0, views=0)
# The word in `augment` for inputs that are chosen in the run.
AUTO = 'auto'
# What Hydra distils on by default. The members agree on training data, and on changed inputs they disagree more. Images
# in grey are changed as in IMAGES; `experiments/inputs.py` is the study. Images in colour are those of the members: in
# the search on CIFAR-10 (`experiments/results/search`), further changes did harm. Vectors get noise where that predicts
# the validation part better, see `plan.CHOICES`: always, it did harm on some sets.
IMAGES: dict[str, Any] = dict(augment=('crop', 'shuffle', 'mixup'), augment_share=0.25)
VECTORS: dict[str, Any] = dict(augment=(AUTO,))


class Section(ConfigDict):
  """A section to which settings of training can be added. A key that no section has is refused at once."""

  def __setitem__(self, key: str, value: Any) -> None:
    own_method = ':' in self._fields.get('method', '')
    if key not in self._fields and key not in KNOWN and not own_method:
      raise UserError(f"unknown config key '{key}': {nearest(key, KNOWN)}")
    # A dict would become a section of this class.
    super().__setitem__(key, ConfigDict(value) if isinstance(value, dict) else value)

  def lock(self) -> 'Section':
    """Does nothing."""
    return self


def default_config() -> ConfigDict:
  """The schema as a config: every key that has a default. Experiments in `configs/` change values.

  Returns:
    A locked config. `teacher`, `distillation` and the sections under `student` also take the keys of `training`.

  Example:
    >>> config = default_config()
    >>> config.training.epochs = 5.0  # of the teacher and of all students
    >>> config.student.hydra.epochs = 10.0  # of this student
  """
  section = lambda place, without=(): {k: v for k, v in defaults(SECTIONS[place]).items() if k not in without}
  students: dict[str, dict[str, Any]] = {
    name: defaults(method.settings) for name, method in registry.METHODS.items() if name != 'ensemble'
  }
  students['hydra'] |= dict(augment=(AUTO,))
  # As many small networks as members: they need another network than the other students.
  students['small_ensemble'] |= dict(network=dict(name='mlp', widths=(20, 20)))
  config = ConfigDict(
    dict(
      **section(''),
      data=section('data'),
      # `name` and the arguments of that network. A name such as 'my_networks.py:make' is a function of the user's own.
      network=dict(teacher=dict(name='mlp', widths=(100, 100)), student=dict(name='mlp', widths=(100, 100))),
      training=section('training', OF_DISTILLATION),
      teacher=Section(section('teacher')),
      distillation=Section(DISTILLATION),
      student={name: Section(settings) for name, settings in students.items()},
      evaluation=section('evaluation'),
      execution=section('execution'),
      parallel=dict(**section('parallel'), mesh=section('parallel.mesh')),
    )
  )
  return config.lock()


def method_name(config: ConfigDict, student: str) -> str:
  """The method of a student: what its section says, or its own name."""
  return config.student[student].get('method', '') or student


def method_of(config: ConfigDict, student: str) -> Method:
  """The method of a student.

  Raises:
    UserError: There is no such method.
  """
  name, where = method_name(config, student), f'config.student.{student}.method'
  if name == 'ensemble' or (':' not in name and name not in registry.METHODS):
    students = {key: None for key in registry.METHODS if key != 'ensemble'}
    try:
      look_up(students, name, 'method')
    except UserError as e:
      raise UserError(f'{where}: {e}') from None
  return registry.find(name)


class Key(NamedTuple):
  """A key that a section can have: its default, what is legal, and what it means."""

  default: Any
  rule: Rule
  meaning: str


def keys_of(config: ConfigDict, place: str) -> dict[str, Key]:
  """Keys that a section can have; not those that are sections.

  Args:
    config: Has the students.
    place: Dotted name of the section, '' for the whole config.
  """
  kinds: list[type] = [SECTIONS[place]] if place in SECTIONS else []
  without: tuple[str, ...] = OF_DISTILLATION
  if place == 'teacher':
    kinds.append(TrainingSettings)
  elif place == 'distillation':
    kinds, without = [TrainingSettings], ()
  elif place.startswith('student.'):
    method = method_of(config, place.removeprefix('student.'))
    kinds = [StudentSettings, method.settings, TrainingSettings]
    without = OF_DISTILLATION if method.learns_from == 'labels' else ()
  return {
    field.name: Key(field.default, field.metadata['rule'], field.metadata['meaning'])
    for kind in kinds
    for field in fields(kind)
    if field.name not in without or kind is not TrainingSettings
  }


def document() -> str:
  """All sections and methods with their settings, as Markdown; `docs/settings.md` holds it."""
  head = '| key | default | legal | meaning |\n| --- | --- | --- | --- |\n'

  def rows(kind: type, without: tuple[str, ...] = ()) -> str:
    cells = [row for row in table(kind) if row[0] not in without]
    return ''.join(f'| `{name}` | `{default}` | {legal} | {meaning} |\n' for name, default, legal, meaning in cells)

  parts = ['# Settings\n', f'{DOCUMENT}\n']
  for place, kind in SECTIONS.items():
    title = f'config.{place}' if place else 'config'
    shown = rows(kind, OF_DISTILLATION if place == 'training' else ())
    parts.append(f'## {title}\n\n{(kind.__doc__ or "").splitlines()[0]}\n\n{head}{shown}')
    if place == 'data':
      parts += [
        f'### {shown}\n\n{(kind.__doc__ or "").splitlines()[0]}\n\n{head}{rows(kind, without)}'
        for shown, kind, without in address.documented()
      ]
    if place == 'training':
      only = ''.join(f'{key}={value!r}, ' for key, value in DISTILLATION.items()).rstrip(', ')
      parts.append(
        '## config.distillation\n\nWhat differs from `config.training` for students that learn from members, '
        f'`{only}` by default, and\n\n{head}{rows(kind, tuple(set(defaults(kind)) - set(OF_DISTILLATION)))}'
      )
  for name, method in registry.METHODS.items():
    if name != 'ensemble':
      what = (method.phases.__doc__ or '').splitlines()[0]
      settings = f'\n{head}{rows(method.settings)}' if defaults(method.settings) else ''
      parts.append(f'## config.student.{name}\n\n{what}\n{settings}')
  return '\n'.join(parts)


DOCUMENT = """\
Written by `python -m experiments.readme` from the classes of settings. The command line sets them as
`--config.KEY=VALUE`. Sections `config.student.NAME`, `config.distillation` and `config.teacher` also take all keys of
`config.training`, and so change them for one student, for students that learn from members, or for the teacher and
students that learn from labels alone.
"""


TRAINING = tuple(field.name for field in fields(TrainingSettings))


@dataclass(frozen=True)
class Settings:
  """How one network is trained, with nothing left open.

  Attributes:
    method: Its name in a config.
    training: What is the same for all methods.
    own: An object of the method's class of settings.
  """

  method: str
  training: TrainingSettings
  own: Any


def _training(section: Mapping[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in section.items() if key in TRAINING}


def resolve(config: ConfigDict, student: str | None = None) -> Settings:
  """The settings of a student, or of the teacher if None.

  Raises:
    UserError: A value is not legal.
  """
  if student is None:
    teacher = make(TrainingSettings, _training(config.training) | _training(config.teacher), 'config.teacher.')
    return Settings('ensemble', teacher, registry.METHODS['ensemble'].settings())
  method, section = method_of(config, student), config.student[student]
  above = config.distillation if method.learns_from == 'members' else config.teacher
  values = _training(config.training) | _training(above) | _training(section)
  known = defaults(method.settings)
  own = {key: value for key, value in section.items() if key not in ('method', 'network') and key in known}
  where = f'config.student.{student}.'
  return Settings(
    method_name(config, student), make(TrainingSettings, values, where), make(method.settings, own, where)
  )


def check_student_name(name: Any) -> None:
  """Raises a `UserError` for a name that cannot stand in keys, in file names, and after a dot in Python."""
  if (
    not isinstance(name, str)
    or not re.fullmatch(r'[\w-]+', name)
    or keyword.iskeyword(name)
    or hasattr(ConfigDict, name)
    or name == 'ensemble'
    or len(name.encode(errors='replace')) > LONGEST_NAME
  ):
    raise UserError(
      f'a student cannot be called {name!r}: take letters, digits, _ and -, but no word of Python, '
      "no method of ConfigDict, and not 'ensemble', which is the teacher"
    )
