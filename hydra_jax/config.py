"""Configs: the schema with its defaults, sub-arguments, and the check of every value."""

import ast
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from hydra_jax import augment, user_networks
from hydra_jax.data import shifts
from hydra_jax.errors import UserError, look_up
from hydra_jax.mapping import MAPPINGS
from hydra_jax.methods import GROUPINGS, METHODS, Ground
from hydra_jax.networks import NETWORKS
from hydra_jax.optimizers import OPTIMIZERS, SCHEDULES
from hydra_jax.parallel import MODES
from hydra_jax.stages import Stage
from hydra_jax.tasks import TASKS

# What Hydra distils on by default, by the kind of inputs: the members agree on training data, and changed inputs keep
# more of their disagreement. `experiments/inputs.py` is the study for images; for vectors, half was the best share but
# for protein, or close to it, by the NLL on validation parts of the UCI sets, of networks that predict a variance.
IMAGES = dict(augment=('crop', 'shuffle', 'mixup'), augment_share=0.5)
VECTORS = dict(augment=('noise',), augment_share=0.5)


def training(learning_rate: float = 1e-3) -> dict[str, Any]:
  """Settings that every trained thing has."""
  return dict(
    epochs=20.0,
    batch_size=128,
    optimizer='adam',  # adam | adamw | sgd (Nesterov momentum 0.9)
    learning_rate=learning_rate,
    schedule='cosine',  # cosine | constant
    warmup_epochs=0.0,  # linear, before the schedule
    weight_decay=0.0,  # adamw: decoupled; sgd: added to the gradient
    # Changes of inputs, see `augment`: crop | flip | cutout | shuffle | mixup | noise | scale, and where a student
    # learns from members also ods | conf_ods. The student's teacher then predicts in the same step.
    augment=(),
    augment_share=1.0,  # probability with which each of them changes an input
  )


def distilling() -> dict[str, Any]:
  """Settings of what learns from members, which needs no labels."""
  return dict(
    unlabelled=(),  # other sets whose training inputs it sees as well, such as 'cifar10' or 'cifar10[:10000]'
    **training(learning_rate=3e-3),
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
        shifts=(),  # such as 'rotate:15' or 'fog:3': changed test inputs whose labels hold
        ood=(),  # names of out-of-domain sets
        image_size=224,  # side of the squares that photographs are cut to
        task='auto',  # of a file: auto (by its labels, or asks) | classification | regression
      ),
      # `name` and the arguments of that network; `student` may be another one. A name such as
      # 'my_networks.py:make' is a function of the user's own.
      network=dict(teacher=dict(name='mlp', widths=(100, 100)), student=dict(name='mlp', widths=(100, 100))),
      teacher=dict(
        members=20,
        # Teachers that are there already: a file of predictions (see `given`), or finished runs or parts of them.
        predictions='',
        checkpoints=(),
        keep_as='float32',  # how predictions are kept for students: float32 | float16
        **training(),
      ),
      students=('single', 'kd', 'hydra'),  # which of the following to train
      student=dict(
        single=dict(method='single', **training()),
        kd=dict(method='kd', temperature=1.0, label_weight=0.0, **distilling()),
        hydra=dict(
          method='hydra',
          heads=20,
          cut=-1,  # stages in the body; negative counts from the end: -1 is dense heads only
          grouping='one_each',  # one_each | round_robin: which member each head learns, for fewer heads
          temperature=3.0,
          label_weight=0.0,  # share of the loss that is against the labels
          hinton_epochs=0.0,  # phase 1: one head on the mean prediction; 0 leaves it out
          heads_per_step=0,  # trains so many heads, drawn anew, at each step of phase 2; 0 is all
          diversity_weight=0.0,  # of the term that keeps heads apart (Hydra+)
          freeze_body=False,  # in phase 2
          **(distilling() | IMAGES),
        ),
        endd=dict(method='endd', start_temperature=10.0, **distilling()),
        proxy_endd=dict(method='proxy_endd', **distilling()),
        dlf=dict(method='dlf', factors=10, samples=64, mean_epochs=20.0, **distilling()),
        batch_ensemble=dict(method='batch_ensemble', temperature=1.0, **distilling()),
        # As many small networks as members: they need a network of their own.
        small_ensemble=dict(
          method='small_ensemble', temperature=1.0, network=dict(name='mlp', widths=(20, 20)), **distilling()
        ),
        mc_dropout=dict(method='mc_dropout', rate=0.1, samples=20, **training()),
      ),
      evaluation=dict(batch_size=500, ece_bins=15),
      # How the work is laid out on the machine; changes speed and memory, and results by rounding only.
      execution=dict(
        mapping='auto',  # of members and heads: auto | vmap | unroll | loop
        heads_per_chunk=0,  # heads computed at a time in training; 0: all, unless that is too much at once
        steps_per_call=0,  # steps in one call of a program; 0: as many as take a second; convolutions on CPU: 1
        replicas_together=0,  # trained in one program, and saved as one part; 0: all, if they are small
      ),
      # How the devices of all processes are laid out: batches are spread over `data`, members and heads over `head`.
      parallel=dict(
        mode='shard_map',  # shard_map | pmap (batches only)
        mesh=dict(data=-1, head=1),  # numbers of devices; -1 is the rest
      ),
      on_nan='stop',  # a loss that is not finite: stop | skip-member (an ensemble goes on without that member)
      checkpoint_seconds=30.0,  # training that lasts longer is saved this often
      checkpoints_kept=2,  # of a phase in progress, the newest
    )
  )
  config.student.hydra.heads = config.teacher.get_oneway_ref('members')
  for student in ('single', 'mc_dropout'):
    config.student[student].epochs = config.teacher.get_oneway_ref('epochs')
  return config.lock()


def settle(config: ConfigDict, task: str) -> None:
  """Sets what the task of the data decides and the user has left at its default: no temperature in regression."""
  if task == 'regression':
    defaults = default_config().student
    for name in config.students:
      settings = config.student[name]
      if 'temperature' in settings and settings.temperature == defaults[settings.method].temperature:
        settings.temperature = 1.0


def distilled(config: ConfigDict) -> list[ConfigDict]:
  """Settings of the students that learn from the teacher, to be changed together."""
  return [settings for name, settings in config.student.items() if name not in ('single', 'mc_dropout')]


def variant(config: ConfigDict, name: str, of: str = 'hydra', **changes: Any) -> None:
  """Adds settings of a student `name`: those of another one, but for some changes."""
  with config.unlocked():
    config.student[name] = config.student[of].copy_and_resolve_references()
  config.student[name].update(changes)
  if 'heads' in config.student[name] and 'heads' not in changes:
    config.student[name].heads = config.teacher.get_oneway_ref('members')


def residual_recipe(
  config: ConfigDict,
  teacher: Mapping[str, Any],
  student: Mapping[str, Any],
  *,
  epochs: float = 200.0,
  hydra_epochs: float = 300.0,
  warmup_epochs: float = 5.0,
  weight_decay: float = 5e-4,
  augment: tuple[str, ...] = ('crop', 'flip'),
) -> None:
  """How residual networks are trained on images, teachers and students alike.

  SGD with Nesterov momentum; linear warm-up to 0.1, then a cosine. Hydra's heads are the last block
  and the dense layer, and it sees images that are changed further.
  """
  config.network.teacher, config.network.student = ConfigDict(teacher), ConfigDict(student)
  for settings in (config.teacher, *config.student.values()):
    settings.epochs, settings.warmup_epochs = epochs, warmup_epochs
    settings.optimizer, settings.learning_rate, settings.weight_decay = 'sgd', 0.1, weight_decay
    settings.augment = augment
  config.student.hydra.update(
    dict(cut=-2, epochs=hydra_epochs, augment=tuple(dict.fromkeys(augment + IMAGES['augment'])))
  )


SHORTCUTS = {'members': 'teacher.members', 'epochs': 'teacher.epochs'}


def apply_argument(config: ConfigDict, argument: str | None) -> ConfigDict:
  """Applies `key=value,…`, what stands behind the colon in `--config=configs/mnist.py:members=5`.

  A key is a shortcut (`members`, `epochs`) or the dotted name of any config value; `students=all`
  trains every student that there are settings for.
  """
  for part in (argument or '').split(','):
    key, equals, value = part.partition('=')
    if not part:
      continue
    if not equals:
      raise UserError(f"config argument '{part}' is not of the form key=value, such as members=5")
    if part == 'students=all':
      config.students = tuple(sorted(config.student, key=lambda s: list(METHODS).index(config.student[s].method)))
      continue
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
  """The stages of a network: `name` selects it, here or as 'file.py:function', the other keys are its arguments."""
  arguments = {k: v for k, v in network.items() if k != 'name'}
  if ':' in network.name:
    return user_networks.stages(network.name, outputs, arguments)
  try:
    return look_up(NETWORKS, network.name, 'network')(outputs, **arguments)
  except TypeError as e:
    raise UserError(f"network '{network.name}' does not take these arguments: {e}") from e


def identity(network: ConfigDict) -> dict[str, Any]:
  """What a network depends on: its config, and the source of a function of the user's own."""
  name = [network.name, user_networks.find(network.name).digest] if ':' in network.name else network.name
  return {**network.to_dict(), 'name': name}


# What a value must be, by the last part of its key.
RANGES: dict[str, tuple[str, Callable[[Any], bool]]] = {
  **dict.fromkeys(
    ('checkpoints_kept', 'replicas', 'members', 'heads', 'samples', 'factors', 'batch_size', 'ece_bins', 'image_size'),
    ('at least 1', lambda v: v >= 1),
  ),
  **dict.fromkeys(
    (
      'seed',
      'checkpoint_seconds',
      'hinton_epochs',
      'mean_epochs',
      'warmup_epochs',
      'weight_decay',
      'heads_per_step',
      'heads_per_chunk',
      'steps_per_call',
      'replicas_together',
      'diversity_weight',
    ),
    ('at least 0 and finite', lambda v: 0 <= v < float('inf')),
  ),
  **dict.fromkeys(
    ('epochs', 'learning_rate', 'temperature'), ('more than 0 and finite', lambda v: 0 < v < float('inf'))
  ),
  'start_temperature': ('at least 1', lambda v: 1 <= v < float('inf')),
  'augment_share': ('more than 0 and at most 1', lambda v: 0 < v <= 1),
  'label_weight': ('from 0 to 1', lambda v: 0 <= v <= 1),
  'rate': ('more than 0 and less than 1', lambda v: 0 < v < 1),
  'data': ('at least 1, or -1 for the rest', lambda v: v == -1 or v >= 1),
  'head': ('at least 1, or -1 for the rest', lambda v: v == -1 or v >= 1),
  'width': ('at least 1', lambda v: v >= 1),
  'dropout': ('at least 0 and less than 1', lambda v: 0 <= v < 1),
  'widths': ('whole numbers of at least 1', lambda v: all(isinstance(w, int) and w >= 1 for w in v)),
}

# What a word must be, likewise.
WORDS = {
  'optimizer': OPTIMIZERS,
  'schedule': SCHEDULES,
  'grouping': GROUPINGS,
  'mapping': MAPPINGS,
  'mode': MODES,
  'on_nan': ('stop', 'skip-member'),
  'keep_as': ('float16', 'float32'),
  'method': {name: row for name, row in METHODS.items() if name != 'ensemble'},
}


def validate(config: ConfigDict, task: str = 'classification', ndim: int = 4) -> None:
  """Raises a `UserError` for the first value that cannot work, before anything is done.

  Once before the data are there, and once more when their task and the axes of a batch are known.
  """
  _check_values(config, 'config')
  for name in config.data.shifts:
    shifts.parse(name)
  if len(set(config.students)) < len(config.students):
    raise UserError(f'config.students={config.students} names one twice: name each once')
  build_stages(config.network.teacher, 2)
  _check_training('teacher', config.teacher, ndim)
  if augment.asks(config.teacher.augment):
    raise UserError("config.teacher.augment: 'ods' and 'conf_ods' ask members of a teacher: leave them out")
  if config.teacher.predictions and config.teacher.checkpoints:
    raise UserError('config.teacher has both predictions and checkpoints: set one of them')
  for name in config.students:
    settings = look_up(config.student, name, 'student')
    _check_training(f'student.{name}', settings, ndim)
    network = settings.get('network', config.network.student)
    ground = Ground(TASKS[task], lambda *_, n=network: build_stages(n, 2), config.teacher.members)
    try:
      METHODS[settings.method].phases(settings, ground)
    except UserError as e:
      raise UserError(f'config.student.{name}: {e}') from e
    learns = METHODS[settings.method].phases(settings, ground)[-1].distils
    if augment.asks(settings.augment) and (task != 'classification' or not learns):
      raise UserError(
        f"config.student.{name}.augment: '{augment.ASKING.intersection(settings.augment).pop()}' is for students "
        'that learn classes from members: leave it out'
      )
    if settings.get('unlabelled') and settings.get('label_weight'):
      raise UserError(f'config.student.{name}.unlabelled has no labels for label_weight: leave one of them out')
    if config.teacher.predictions and settings.get('unlabelled'):
      raise UserError(
        f'config.student.{name}.unlabelled: config.teacher.predictions has none for other inputs: leave one of them out'
      )
    if config.teacher.predictions and settings.augment and learns:
      raise UserError(
        f'config.teacher.predictions are for the inputs in the data, and config.student.{name}.augment changes them: '
        f'add --config.student.{name}.augment="()"'
      )
    if task == 'regression' and settings.get('temperature', 1.0) != 1.0:
      raise UserError(f'config.student.{name}.temperature is for classification: set it to 1.0')


def _check_training(part: str, settings: ConfigDict, ndim: int) -> None:
  try:
    augment.build(settings.augment, ndim, settings.augment_share)
  except UserError as e:
    raise UserError(f'config.{part}.augment: {e}') from e
  if settings.optimizer == 'adam' and settings.weight_decay:
    raise UserError(f'config.{part}: adam has no weight decay: set optimizer to adamw, or weight_decay to 0')


def _check_values(node: ConfigDict, where: str) -> None:
  for key, value in node.items():
    if isinstance(value, ConfigDict):
      _check_values(value, f'{where}.{key}')
    elif key in WORDS:
      look_up({word: word for word in WORDS[key]}, value, key)
    elif key in RANGES and not RANGES[key][1](value):
      raise UserError(f'{where}.{key}={value} must be {RANGES[key][0]}')
