"""Configs: the schema with its defaults, sub-arguments, and the check of every value."""

import ast
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
import optax

from hydra_jax.cut import hydra
from hydra_jax.errors import UserError, look_up
from hydra_jax.methods import METHODS
from hydra_jax.stages import NETWORKS, Stage

OPTIMIZERS = {
  'adam': lambda rate, c: optax.adam(rate),
  'adamw': lambda rate, c: optax.adamw(rate, weight_decay=c.weight_decay),
  'sgd': lambda rate, c: optax.chain(
    optax.add_decayed_weights(c.weight_decay), optax.sgd(rate, momentum=0.9, nesterov=True)
  ),
}

SCHEDULES = {
  'constant': lambda rate, steps: rate,
  'cosine': lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
}


def training() -> dict[str, Any]:
  """Settings that every trained thing has."""
  return dict(
    epochs=20.0,
    batch_size=128,
    optimizer='adam',  # adam | adamw | sgd (Nesterov momentum 0.9)
    learning_rate=1e-3,
    schedule='cosine',  # cosine | constant
    weight_decay=0.0,  # adamw: decoupled; sgd: added to the gradient
  )


def default_config() -> ConfigDict:
  """The schema: every key there is, with its default. Experiments in `configs/` change values."""
  config = ConfigDict(
    dict(
      name='',
      seed=0,
      replicas=1,  # repetitions, by seed, or by standard split where the data has them
      data=dict(
        name='digits',
        train='train',
        test='test',
        shifts=(),  # such as 'rotate:15': changed test inputs whose labels hold
        ood=(),  # names of out-of-domain sets
      ),
      # `name` and the arguments of that network; `student` may be another one.
      network=dict(teacher=dict(name='mlp', widths=(100, 100)), student=dict(name='mlp', widths=(100, 100))),
      teacher=dict(members=20, **training()),
      students=('single', 'kd', 'hydra'),  # which of the following to train
      student=dict(
        single=dict(method='single', **training()),
        kd=dict(method='kd', temperature=1.0, **training()),
        hydra=dict(
          method='hydra',
          heads=20,
          cut=-1,  # stages in the body; negative counts from the end: -1 is dense heads only
          temperature=1.0,
          hinton_epochs=20.0,  # phase 1: one head on the mean prediction; 0 leaves it out
          **training(),
        ),
      ),
      evaluation=dict(batch_size=500, ece_bins=15),
      checkpoint_seconds=30.0,  # training that lasts longer is saved this often
    )
  )
  config.student.hydra.heads = config.teacher.get_oneway_ref('members')
  config.student.single.epochs = config.teacher.get_oneway_ref('epochs')
  return config.lock()


SHORTCUTS = {'members': 'teacher.members', 'epochs': 'teacher.epochs'}


def apply_argument(config: ConfigDict, argument: str | None) -> ConfigDict:
  """Applies `key=value,…`, what stands behind the colon in `--config=configs/mnist.py:members=5`.

  A key is a shortcut (`members`, `epochs`) or the dotted name of any config value.
  """
  for part in (argument or '').split(','):
    key, equals, value = part.partition('=')
    if not part:
      continue
    if not equals:
      raise UserError(f"config argument '{part}' is not of the form key=value, such as members=5")
    known = {k: k for k in config} | SHORTCUTS
    set_value(config, key if '.' in key else look_up(known, key, 'config argument'), value)
  return config


def set_value(config: ConfigDict, key: str, text: str) -> None:
  """Sets a dotted key from text, converted to the type that it has."""
  *path, last = key.split('.')
  node = config
  for name in path:
    node = look_up(node, name, f"config key in '{key}':")
    if not isinstance(node, ConfigDict):
      raise UserError(f"config key '{key}': '{name}' has no keys of its own")
  old = look_up(node, last, 'config key')
  try:
    node[last] = text if isinstance(old, str) else type(old)(ast.literal_eval(text))
  except (ValueError, SyntaxError, TypeError) as e:
    raise UserError(f"config key '{key}' takes {_kind(old)}, not '{text}'") from e


def _kind(value) -> str:
  names = {int: 'a whole number', float: 'a number', tuple: 'a tuple', bool: 'True or False'}
  return names.get(type(value), f'a {type(value).__name__}')


def build_stages(network: ConfigDict, outputs: int) -> list[Stage]:
  """The stages of a network: `name` selects it, the other keys are its arguments."""
  arguments = {k: v for k, v in network.items() if k != 'name'}
  try:
    return look_up(NETWORKS, network.name, 'network')(outputs, **arguments)
  except TypeError as e:
    raise UserError(f"network '{network.name}' does not take these arguments: {e}") from e


def build_optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
  """The optimizer of one phase of so many steps."""
  schedule = look_up(SCHEDULES, settings.schedule, 'schedule')(settings.learning_rate, steps)
  return look_up(OPTIMIZERS, settings.optimizer, 'optimizer')(schedule, settings)


def validate(config: ConfigDict) -> None:
  """Raises a `UserError` for the first value that cannot work, before anything is done."""
  _at_least(config, 1, 'replicas', 'teacher.members', 'evaluation.batch_size', 'evaluation.ece_bins')
  _at_least(config, 0, 'seed', 'checkpoint_seconds')
  for role in ('teacher', 'student'):
    build_stages(config.network[role], 2)
    widths = config.network[role].get('widths', (1,))
    if not all(isinstance(w, int) and w > 0 for w in widths):
      raise UserError(f'config.network.{role}.widths={widths} must be whole numbers of at least 1')
  _check_training(config, 'teacher')
  if len(set(config.students)) < len(config.students):
    raise UserError(f'config.students={config.students} names one twice: name each once')
  for name in config.students:
    look_up(config.student, name, 'student')
    _check_training(config, f'student.{name}')
    _check_student(config, name)


def _check_training(config, part: str) -> None:
  settings = _get(config, part)
  _above_zero(config, f'{part}.epochs', f'{part}.learning_rate')
  _at_least(config, 1, f'{part}.batch_size')
  _at_least(config, 0, f'{part}.weight_decay')
  look_up(OPTIMIZERS, settings.optimizer, 'optimizer')
  look_up(SCHEDULES, settings.schedule, 'schedule')
  if settings.optimizer == 'adam' and settings.weight_decay:
    raise UserError(f'config.{part}: adam has no weight decay: set optimizer to adamw, or weight_decay to 0')


def _check_student(config, name: str) -> None:
  settings, members = config.student[name], config.teacher.members
  look_up({k: v for k, v in METHODS.items() if k != 'ensemble'}, settings.method, 'method')
  if 'temperature' in settings:
    _above_zero(config, f'student.{name}.temperature')
  if 'hinton_epochs' in settings:
    _at_least(config, 0, f'student.{name}.hinton_epochs')
  if 'heads' in settings:
    _at_least(config, 1, f'student.{name}.heads')
    if settings.heads != members:
      raise UserError(
        f'config.student.{name}.heads={settings.heads}, but there are {members} members and each head learns one: '
        f'set heads to {members}, or config.teacher.members to {settings.heads}'
      )
    hydra(build_stages(config.network.student, 2), settings.cut, settings.heads)


def check_task(config: ConfigDict, task: str) -> None:
  """Raises a `UserError` for settings that have no meaning for a task."""
  for name in config.students:
    if task == 'regression' and config.student[name].get('temperature', 1.0) != 1.0:
      raise UserError(f'config.student.{name}.temperature is for classification: set it to 1.0')


def _get(config: Mapping, key: str):
  for name in key.split('.'):
    config = config[name]
  return config


def _at_least(config, bound: float, *keys: str) -> None:
  for key in keys:
    if not _get(config, key) >= bound:
      raise UserError(f'config.{key}={_get(config, key)} must be at least {bound}')


def _above_zero(config, *keys: str) -> None:
  for key in keys:
    if not 0 < _get(config, key) < float('inf'):
      raise UserError(f'config.{key}={_get(config, key)} must be more than 0 and finite')
