"""Rules for single values of a config: of which type and in which range each has to be."""

from collections.abc import Callable
import keyword
import re
from typing import Any

from ml_collections import ConfigDict

from hydra_jax.devices.layout import MODES
from hydra_jax.errors import UserError, nearest
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.distillation import GROUPINGS
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.mapping import MAPPINGS
from hydra_jax.training.optimizers import OPTIMIZERS, SCHEDULES

Rule = Callable[[Any], str]  # says what is wrong with a value, or nothing


def _number(what: str, holds: Callable[[Any], bool], whole: bool = False) -> Rule:
  """A rule for numbers; NaN is never right, and True and False are no numbers."""
  kind = int if whole else (int, float)
  is_right = lambda value: isinstance(value, kind) and not isinstance(value, bool) and holds(value)
  return lambda value: '' if is_right(value) else f'must be a {"whole " * whole}number{what}'


def _one_of(table: Any, what: str) -> Rule:
  words = list(table)
  is_right = lambda value: isinstance(value, str) and value in words
  return lambda value: '' if is_right(value) else f'is an unknown {what}: {nearest(value, words)}'


def _flag(value: Any) -> str:
  return '' if isinstance(value, bool) else 'must be True or False'


def _text(value: Any) -> str:
  return '' if isinstance(value, str) else 'must be a text'


def _filled_text(value: Any) -> str:
  return '' if isinstance(value, str) and value.strip() else 'must be a text that is not empty'


def _names(value: Any) -> str:
  """A tuple of names; one in parentheses without a comma is a text for Python."""
  if isinstance(value, str):
    return f"must be a tuple of names: write ('{value}',) with a comma"
  right = isinstance(value, tuple) and all(isinstance(name, str) and name.strip() for name in value)
  return '' if right else 'must be a tuple of names, each in quotes'


def _distinct_names(value: Any) -> str:
  twice = [name for name in value if value.count(name) > 1] if not _names(value) else []
  return _names(value) or (f"names '{twice[0]}' twice: name it once" if twice else '')


LONGEST_NAME = 100  # names become parts of file names, which have at most 255 bytes


def _run_name(value: Any) -> str:
  """The name of a run is that of its folder."""
  if not isinstance(value, str) or not value.strip():
    return 'must be a text that is not empty: it names the folder of the run'
  wrong = re.search(r'[/\\\x00-\x1f\x7f]', value) or value in ('.', '..') or value != value.strip()
  if wrong or len(value.encode(errors='replace')) > LONGEST_NAME:
    return f'must be the name of a folder: at most {LONGEST_NAME} characters, and no / or \\ or line break in it'
  return ''


def check_student_name(name: Any) -> None:
  """Names of students stand in keys, in file names, and after a dot in Python."""
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


_COUNT = _number(' of at least 1', lambda v: v >= 1, whole=True)
_COUNT_OR_0 = _number(' of at least 0', lambda v: v >= 0, whole=True)
_DEVICES = _number(' of at least 1, or -1 for the rest', lambda v: v == -1 or v >= 1, whole=True)
_POSITIVE = _number(' of more than 0, and finite', lambda v: 0 < v < float('inf'))
_NOT_NEGATIVE = _number(' of at least 0, and finite', lambda v: 0 <= v < float('inf'))
_SHARE = _number(' from 0 to 1', lambda v: 0 <= v <= 1)

# Rules for `training()`, and for all that a student can have.
TRAINING: dict[str, Rule] = {
  'epochs': _POSITIVE,
  'batch_size': _COUNT,
  'optimizer': _one_of(OPTIMIZERS, 'optimizer'),
  'learning_rate': _POSITIVE,
  'schedule': _one_of(SCHEDULES, 'schedule'),
  'warmup_epochs': _NOT_NEGATIVE,
  'weight_decay': _NOT_NEGATIVE,
  'augment': _names,
  'augment_share': _number(' of more than 0 and at most 1', lambda v: 0 < v <= 1),
}
STUDENT: dict[str, Rule] = {
  **TRAINING,
  # Looked up when it is asked, since a user's config may add methods.
  'method': lambda value: _one_of([name for name in METHODS if name != 'ensemble'], 'method')(value),
  'unlabelled': _distinct_names,
  'temperature': _POSITIVE,
  'label_weight': _SHARE,
  'heads': _COUNT,
  'cut': _number('', lambda v: True, whole=True),
  'grouping': _one_of(GROUPINGS, 'grouping'),
  'hinton_epochs': _NOT_NEGATIVE,
  'heads_per_step': _COUNT_OR_0,
  'diversity_weight': _NOT_NEGATIVE,
  'freeze_body': _flag,
  'start_temperature': _number(' of at least 1 and finite', lambda v: 1 <= v < float('inf')),
  'factors': _COUNT,
  'samples': _COUNT,
  'mean_epochs': _NOT_NEGATIVE,
  'rate': _number(' of more than 0 and less than 1', lambda v: 0 < v < 1),
}

# Rules by dotted key; `*` stands for the name of any student. What is below `network`, but for the name, are arguments
# of that network, which checks them itself.
RULES: dict[str, Rule] = {
  'name': _run_name,
  'seed': _number(' from 0 to 2**32 - 1', lambda v: 0 <= v < 2**32, whole=True),  # JAX drops the bits above
  'replicas': _COUNT,
  'data.name': _filled_text,
  'data.train': _filled_text,
  'data.test': _filled_text,
  'data.shifts': _distinct_names,
  'data.ood': _distinct_names,
  'data.image_size': _COUNT,
  'data.task': _one_of(('auto', *TASKS), 'task'),
  'network.teacher.name': _filled_text,
  'network.student.name': _filled_text,
  'teacher.members': _COUNT,
  'teacher.predictions': _text,
  'teacher.checkpoints': _distinct_names,
  'teacher.keep_as': _one_of(('float16', 'float32'), 'precision'),
  'students': _distinct_names,
  'evaluation.batch_size': _COUNT,
  'evaluation.ece_bins': _COUNT,
  'execution.mapping': _one_of(MAPPINGS, 'mapping'),
  'execution.heads_per_chunk': _COUNT_OR_0,
  'execution.steps_per_call': _COUNT_OR_0,
  'execution.replicas_together': _COUNT_OR_0,
  'parallel.mode': _one_of(MODES, 'mode'),
  'parallel.mesh.data': _DEVICES,
  'parallel.mesh.head': _DEVICES,
  'checkpoint_seconds': _NOT_NEGATIVE,
  'checkpoints_kept': _COUNT,
  **{f'teacher.{key}': rule for key, rule in TRAINING.items()},
  **{f'student.*.{key}': rule for key, rule in STUDENT.items()},
  'student.*.network.name': _filled_text,
}


def of(key: str) -> Rule | None:
  """The rule for a dotted key, if it has one."""
  return RULES.get(re.sub(r'^student\.[^.]*\.', 'student.*.', key))
