"""Configs: values from the command line, changes that experiments make, and checks before anything is trained.

The schema is in `schema`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import inspect
import logging
import re
from typing import Any

from ml_collections import ConfigDict

from hydra_jax import text, user_files
from hydra_jax.data import About, shifts
from hydra_jax.errors import UserError, closest, look_up, nearest, without_place
from hydra_jax.evaluation import user_metrics
from hydra_jax.experiment import schema, trackers
from hydra_jax.experiment.schema import AUTO, IMAGES, check_student_name, default_config, method_of, resolve
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import MethodContext
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets import user_networks
from hydra_jax.nets.stages import Stage
from hydra_jax.nets.zoo import NETWORKS
from hydra_jax.settings import FILLED_TEXT, short
from hydra_jax.training import augment
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import draw_of

logger = logging.getLogger(__name__)


def learns_from_members(config: ConfigDict, student: str) -> bool:
  """Whether a student learns from members of the teacher, and not from labels alone."""
  return method_of(config, student).learns_from == 'members'


def settle(config: ConfigDict, data: About) -> None:
  """Sets what the data decide and the user has left to them: the inputs to distil on, and no temperature in regression.

  Args:
    config: Is changed.
    data: What is trained on.

  Raises:
    UserError: The config asks for scores on a validation part, and there is none.
  """
  if config.validation_scores and not data.has_validation:
    raise UserError('config.validation_scores: these data have no validation part: set it to 0')
  for name in config.students:
    training = resolve(config, name).training
    if training.augment != (AUTO,):
      continue
    section, is_image = config.student[name], len(data.shape) == 3
    fixed = config.teacher.predictions or training.folds or data.varies
    if fixed or (not is_image and not data.has_validation):
      section.augment = ()  # there are no predictions for other inputs, or nothing to choose by
      if training.folds:
        logger.info(f'config.student.{name}.folds: it learns from the inputs as they are, which augment would change')
    elif is_image:
      members = resolve(config).training
      inputs = IMAGES if data.shape[-1] == 1 else dict(augment=members.augment, augment_share=members.augment_share)
      section.augment = inputs['augment']
      section.augment_share = section.get('augment_share', inputs['augment_share'])
  for name in config.students:
    training = resolve(config, name).training
    if data.varies and training.fixed_views and learns_from_members(config, name):
      raise UserError(f'config.student.{name}.views: these data are read while a network trains: set it to 0')
  if data.task == 'regression':
    for name in config.students:
      default = schema.defaults(method_of(config, name).settings).get('temperature')
      if default is not None and config.student[name].get('temperature', default) == default:
        config.student[name].temperature = 1.0


def distilled(config: ConfigDict) -> list[ConfigDict]:
  """Sections of the students that learn from the teacher, to be changed together."""
  return [section for name, section in config.student.items() if learns_from_members(config, name)]


def supervised(config: ConfigDict) -> list[ConfigDict]:
  """Sections of the students that learn from labels alone, to be changed together."""
  return [section for name, section in config.student.items() if not learns_from_members(config, name)]


def update_training(config: ConfigDict, **values: Any) -> None:
  """Gives the teacher and all students the same settings of training, such as `batch_size` or `epochs`.

  Example:
    >>> config = default_config()
    >>> update_training(config, optimizer='sgd', learning_rate=0.1)
    >>> resolve(config, 'kd').training.learning_rate
    0.1
  """
  config.training.update(values)
  for section in (config.teacher, config.distillation, *config.student.values()):
    for key in set(values).intersection(section):
      del section[key]


def variant(config: ConfigDict, name: str, of: str = 'hydra', **changes: Any) -> None:
  """Adds a section `student.<name>`: that of another student, but for some changes.

  Args:
    config: Is changed.
    name: Of the new student.
    of: The student whose section is copied.
    **changes: Settings of its method, of training, or a `network`.

  Raises:
    UserError: The name cannot be used, there is no student `of`, or a change has no such key.
  """
  check_student_name(name)
  section = look_up(config.student, of, 'student').copy_and_resolve_references().unlock()
  known = dict.fromkeys((*schema.keys_of(config, f'student.{of}'), 'network'))
  for key in changes:
    look_up(known, key, f"key of config.student.{of}, of which '{name}' is a variant,")
  section.method = schema.method_name(config, of)
  for key, value in changes.items():
    section[key] = ConfigDict(value) if key == 'network' else value
  with config.unlocked():
    config.student[name] = section


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
  and the dense layer. All see the same inputs.
  """
  config.network.teacher, config.network.student = ConfigDict(teacher), ConfigDict(student)
  update_training(
    config,
    epochs=epochs,
    warmup_epochs=warmup_epochs,
    optimizer='sgd',
    learning_rate=0.1,
    weight_decay=weight_decay,
    augment=augment,
  )
  config.student.hydra.update(cut=-2, epochs=hydra_epochs)


# Keys of a sub-argument that stand for longer ones.
SHORTCUTS = {'members': 'teacher.members', 'epochs': 'training.epochs'}
NETWORK_NAME = re.compile(r'(network\.(teacher|student)|student\.[^.]+\.network)\.name')
METHOD_NAME = re.compile(r'student\.([^.]+)\.method')

Say = Callable[[str], Any]  # is told what was assumed, in one line


def apply_argument(
  config: ConfigDict, argument: str | None, words: Iterable[str] = (), say: Say = logger.info
) -> ConfigDict:
  """Applies `key=value,…`, what stands behind the colon in `--config=configs/mnist.py:members=5`.

  Commas in brackets or quotes belong to a value: `students=('kd','hydra'),members=3`. A key is the dotted name of a
  config value, or a shortcut. `members` is the number of members. `epochs` is that of the teacher and of all students
  whose config gives them no other. `students=all` trains every student that has a section.

  Args:
    config: Is changed.
    argument: As above.
    words: Words without a value that the config file itself has read.
    say: Is told what was assumed.

  Returns:
    The same config.

  Raises:
    UserError: There is no such key, or the value is wrong.
  """
  try:
    pairs = [_pair(config, part, words) for part in split_argument(argument) if part not in words]
    set_values(config, pairs, say)
  except UserError as e:
    raise without_place(e) from e.__cause__
  return config


def _pair(config: ConfigDict, part: str, words: Iterable[str]) -> tuple[str, str]:
  """Key and value of a part of a sub-argument."""
  key, equals, value = (piece.strip() for piece in part.partition('='))
  if not equals:
    hint = f' ({nearest(part, words)})' if words else ''
    raise UserError(f"config argument '{part}' is not of the form key=value, such as members=5{hint}")
  if '.' not in key:
    look_up(dict.fromkeys((*SHORTCUTS, *config)), key, 'config argument')
  return SHORTCUTS.get(key, key), value


def split_argument(argument: str | None) -> list[str]:
  """The parts of a sub-argument, for configs that take words as well, such as `configs/cifar10.py:quick`."""
  return text.split(argument or '')


def set_values(config: ConfigDict, pairs: Iterable[tuple[str, str]], say: Say = logger.info) -> None:
  """Sets dotted keys from text, converted to the types they have.

  The method of a student and the name of a network are set first, in any order of the pairs, because they decide which
  other keys there are. A new student gets a section. A new network replaces the section by that network with its
  default arguments.

  Args:
    config: Is changed.
    pairs: Keys and texts. Of a key that is given several times, the last text counts.
    say: Is told what was assumed.

  Raises:
    UserError: There is no such key, or its value is wrong.
  """
  texts: dict[str, str] = {}
  for key, value in pairs:
    if texts.get(key, value) != value:
      say(f'config.{key} is given more than once: the last value counts, {value}')
    texts[key] = value
  for key in texts:
    if match := METHOD_NAME.fullmatch(key):
      _set_method(config, match[1], texts[key], say)
  for key in texts:
    if NETWORK_NAME.fullmatch(key):
      _set_network(config, key.rpartition('.')[0], text.parse(texts[key], '', f'config.{key}', say), say)
  for key in texts:
    if not NETWORK_NAME.fullmatch(key) and not METHOD_NAME.fullmatch(key):
      _set_value(config, key, texts[key], say)
  _say_who_keeps_another(config, texts, say)


def _say_who_keeps_another(config: ConfigDict, texts: Mapping[str, str], say: Say) -> None:
  """Says which sections keep a setting of training that was given for all."""
  for key in texts:
    section, _, last = key.rpartition('.')
    if section != 'training':
      continue
    students = {f'student.{name}': config.student[name] for name in config.students if name in config.student}
    places = {'teacher': config.teacher, 'distillation': config.distillation, **students}
    found = [f'config.{place}.{last}={short(values[last])}' for place, values in places.items() if last in values]
    if found:
      say(f'config.{key}={texts[key]} leaves these as they are: {", ".join(found)}')


def _set_method(config: ConfigDict, student: str, value: str, say: Say) -> None:
  """Gives a student a method; a student that is new gets a section with the defaults of that method."""
  check_student_name(student)
  method = text.parse(value, '', f'config.student.{student}.method', say)
  with config.unlocked():
    if student not in config.student:
      config.student[student] = schema.Section({'method': method})
      config.student[student].update(schema.defaults(method_of(config, student).settings))
    config.student[student].method = method


def _set_value(config: ConfigDict, key: str, value: str, say: Say) -> None:
  *path, last = key.split('.')
  section = _section(config, path, key)
  if network := _network_of(config, path):
    arguments, any_key = _arguments(network.name)
    if last not in section and last not in arguments and not any_key:
      raise UserError(f"unknown config key '{key}': network '{network.name}' takes {_listed(arguments)}")
    found = text.parse_literal(value, section.get(last, arguments.get(last)), f'config.{key}', say)
    with config.unlocked(), section.ignore_type():
      section[last] = found
    return
  known = _keys_of(config, path)
  if last not in section and last not in known:
    raise UserError(_unknown(config, path, last, key))
  if last not in known:
    raise UserError(f'config.{key} is a section: set one of its keys, {_listed(section[last])}')
  default, rule, _ = known[last]
  if key == 'students' and value == 'all':
    order = list(METHODS)
    found = tuple(sorted(config.student, key=lambda name: order.index(schema.method_name(config, name))))
  else:
    found = text.parse(value, default, f'config.{key}', say)
  if wrong := rule(found):
    raise UserError(f'config.{key}={short(found)} {wrong}')
  with config.unlocked():
    section[last] = found


def _section(config: ConfigDict, path: list[str], key: str) -> ConfigDict:
  """The section that a key is in."""
  section = config
  for i, name in enumerate(path):
    if name not in section and name in _keys_of(config, path[:i]):
      raise UserError(f"config key '{key}': '{name}' has no keys")
    if name not in section:
      raise UserError(_unknown(config, path[:i], name, key))
    section = section[name]
    if not isinstance(section, ConfigDict):
      raise UserError(f"config key '{key}': '{name}' has no keys")
  return section


def _keys_of(config: ConfigDict, path: list[str]) -> Mapping[str, Any]:
  """What `schema.keys_of` says of a section; sections whose keys are names or arguments have none."""
  place = '.'.join(path)
  return (
    {} if place == 'student' or place.startswith('network') or '.network' in place else schema.keys_of(config, place)
  )


def _unknown(config: ConfigDict, path: list[str], name: str, key: str) -> str:
  """What to say of a key that is not there: the nearest one in its section, or the same one in another section."""
  here = list(dict.fromkeys((*_section(config, path, key), *_keys_of(config, path))))
  elsewhere = [other for other, _ in leaves(config) if other.rpartition('.')[2] == name]
  elsewhere.sort(key=lambda known: not known.startswith('training.'))  # that for all first
  close = f"did you mean '{elsewhere[0]}'?" if elsewhere and not closest(name, here) else nearest(name, here)
  if path == ['student']:
    close += f'; a new student needs config.student.{name}.method'
  return f"unknown config key '{key}'" + (f": config.{'.'.join(path)} has no '{name}'" if path else '') + f': {close}'


def _network_of(config: ConfigDict, path: list[str]) -> ConfigDict | None:
  """The section of a network, if that is what a path leads to."""
  return _section(config, path, '.'.join(path)) if NETWORK_NAME.fullmatch('.'.join([*path, 'name'])) else None


def _set_network(config: ConfigDict, place: str, name: str, say: Say) -> None:
  """Replaces a network by another one with its default arguments; the same name changes nothing."""
  *path, last = place.split('.')
  parent = _section(config, path, place)
  if last in parent and parent[last].name == name:
    return
  arguments, _ = _arguments(name)
  defaults = {key: value for key, value in arguments.items() if value is not inspect.Parameter.empty}
  with config.unlocked():
    parent[last] = ConfigDict({'name': name, **defaults})
  shown = ', '.join(f'{key}={value!r}' for key, value in defaults.items())
  say(f'config.{place} is {name} with {f"its default arguments {shown}" if shown else "no default arguments"}')


def _arguments(name: str) -> tuple[dict[str, Any], bool]:
  """Arguments of a network with their defaults, but for the number of outputs; and whether it takes any other key."""
  make = user_files.find_function(name, 'network') if ':' in name else look_up(NETWORKS, name, 'network')
  try:
    _, *parameters = inspect.signature(make).parameters.values()
  except (TypeError, ValueError) as e:
    raise UserError(f"network '{name}' must be a function of the number of outputs") from e
  named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
  any_key = any(each.kind == each.VAR_KEYWORD for each in parameters)
  return {each.name: each.default for each in named}, any_key


def _listed(names: Iterable[str]) -> str:
  return ', '.join(names) or 'no arguments'


def build_stages(network: ConfigDict, outputs: int) -> list[Stage]:
  """The stages of a network: `name` selects it, here or as 'file.py:function', the other keys are its arguments."""
  arguments = {k: v for k, v in network.items() if k != 'name'}
  if ':' in network.name:
    return user_networks.stages(network.name, outputs, arguments)
  make = look_up(NETWORKS, network.name, 'network')
  try:
    inspect.signature(make).bind(outputs, **arguments)
  except TypeError as e:
    takes, _ = _arguments(network.name)
    raise UserError(f"network '{network.name}' {e}: it takes {_listed(takes)}") from e
  try:
    return make(outputs, **arguments)
  except UserError as e:
    raise UserError(f"network '{network.name}': {e}") from e


def identity(network: ConfigDict) -> dict[str, Any]:
  """What a network depends on: its config, and the source of a function of the user's own."""
  name = [network.name, user_files.find(network.name, 'network').digest] if ':' in network.name else network.name
  return {**network.to_dict(), 'name': name}


def check_values(config: Any) -> None:
  """Raises a `UserError` unless a config has the keys of the schema, and each value is legal by itself."""
  if not isinstance(config, ConfigDict):
    raise UserError(f'the config is {short(config)}, and must be a ConfigDict: start from {START}')
  _check_section(config, '')
  _check_sections(config, default_config(), '')
  for role, network in config.network.items():
    _check_network(network, f'config.network.{role}')
  for place in schema.SECTIONS:
    _check_section(config, place)
  _check_section(config, 'distillation')
  for name in config.student:
    _check_student(config, name)
  for name in config.students:
    look_up(config.student, name, 'student')


def leaves(node: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys and values of all that is no section."""
  for key, value in node.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


START = 'hydra_jax.config.default_config()'


def _check_sections(node: ConfigDict, like: ConfigDict, where: str) -> None:
  """Raises a `UserError` unless `node` has the sections of `like`, and all its keys where these must be there."""
  for key, default in like.items():
    here = f'{where}.{key}'.lstrip('.')
    if key not in node:
      raise UserError(f"the config has no key 'config.{here}': start from {START}, which has all keys")
    if not isinstance(default, ConfigDict):
      continue
    if not isinstance(node[key], ConfigDict):
      raise UserError(f'config.{here}={short(node[key])} must be a section, a ConfigDict: start from {START}')
    if key not in ('student', 'distillation') and not here.startswith('network.'):
      _check_sections(node[key], default, here)


def _check_section(config: ConfigDict, place: str) -> None:
  """Raises a `UserError` unless each key of a section is known and its value is legal."""
  section = _section(config, place.split('.') if place else [], place)
  known = schema.keys_of(config, place)
  inside = [*SECTIONS_INSIDE.get(place, ())] if not place.startswith('student.') else ['network']
  for key, value in section.items():
    here = f'config.{place}.{key}'.replace('..', '.')
    if key in inside:
      continue
    if key not in known:
      raise UserError(f"unknown config key '{here}': {nearest(key, (*known, *inside))}")
    default, rule, _ = known[key]
    if isinstance(value, ConfigDict):
      raise UserError(f'{here} is a section, and must be a value such as {default!r}')
    if wrong := rule(value):
      raise UserError(f'{here}={short(value)} {wrong}')


# Sections in sections.
SECTIONS_INSIDE = {
  '': ('data', 'network', 'training', 'teacher', 'distillation', 'student', 'evaluation', 'execution', 'parallel'),
  'parallel': ('mesh',),
}


def _check_network(network: Any, where: str) -> None:
  if not isinstance(network, ConfigDict) or not isinstance(network.get('name'), str):
    raise UserError(f"{where}={short(network)} must be a section with a name, such as ConfigDict(dict(name='lenet'))")
  if wrong := FILLED_TEXT(network.name):
    raise UserError(f'{where}.name={short(network.name)} {wrong}')


def _check_student(config: ConfigDict, name: str) -> None:
  """Its method is known, its keys are those of this method and of training, and maybe a network."""
  check_student_name(name)
  where, section = f'config.student.{name}', config.student[name]
  if not isinstance(section, ConfigDict):
    raise UserError(f"{where} must be a section: add it with hydra_jax.config.variant(config, '{name}')")
  if not isinstance(section.get('method', ''), str):
    raise UserError(f'{where}.method={short(section.method)} must be a text')
  if 'method' not in section and name not in METHODS:
    raise UserError(f"{where} must have a method: add it with hydra_jax.config.variant(config, '{name}')")
  if 'network' in section:
    _check_network(section.network, f'{where}.network')
  _check_section(config, f'student.{name}')


def validate(config: ConfigDict, task: str = 'classification', ndim: int = 4) -> None:
  """Raises a `UserError` for the first value that cannot work, before anything is done.

  Once before the data are there, and once more when their task and the axes of a batch are known.
  """
  check_values(config)
  trackers.check(config.trackers)
  if config.patience and not config.validation_scores:
    raise UserError(
      f'config.patience={config.patience} needs scores: set config.validation_scores to 20, or patience to 0'
    )
  if config.validation_scores and not config.validation:
    raise UserError('config.validation_scores: there is no validation part: set it to 0, or validation to 0.1')
  for name in config.data.shifts:
    shifts.parse(name)
  user_metrics.names(config.evaluation.metrics, task)
  build_stages(config.network.teacher, 2)
  teacher = resolve(config).training
  _check_training('teacher', teacher, ndim)
  if AUTO in teacher.augment:
    raise UserError(f"config.teacher.augment: '{AUTO}' is for students that learn from members: leave it out")
  if augment.asks(teacher.augment):
    raise UserError("config.teacher.augment: 'ods' and 'conf_ods' ask members of a teacher: leave them out")
  if config.teacher.predictions and config.teacher.checkpoints:
    raise UserError('config.teacher has both predictions and checkpoints: set one of them')
  for name in config.students:
    _check_trained(config, name, task, ndim)


def doubtful(config: ConfigDict) -> Iterator[str]:
  """What is possible, but hardly meant, a line each."""
  for name, student in (('teacher', None), *((f'student.{name}', name) for name in config.students)):
    training = resolve(config, student).training
    if training.warmup_epochs >= training.epochs:
      yield (
        f'config.{name}.warmup_epochs={training.warmup_epochs} takes all of its epochs={training.epochs}: '
        'the learning rate rises to the end'
      )


def _check_trained(config: ConfigDict, name: str, task: str, ndim: int) -> None:
  """What a student that is to be trained needs."""
  where, settings = f'config.student.{name}', resolve(config, name)
  training = settings.training
  _check_training(f'student.{name}', training, ndim)
  network = config.student[name].get('network', config.network.student)
  context = MethodContext(TASKS[task], lambda *_: build_stages(network, 2), config.teacher.members)
  try:
    phases = method_of(config, name).phases(settings.own, context)
    for phase in phases:
      if phase.distils:
        draw_of(phase.draws, training.members_per_step, config.teacher.members)
  except UserError as e:
    raise UserError(f'{where}: {e}') from e
  learns = phases[-1].distils
  if training.augment == (AUTO,) and not learns:
    raise UserError(f"{where}.augment: '{AUTO}' is for students that learn from members: leave it out")
  if augment.asks(training.augment) and (task != 'classification' or not learns):
    raise UserError(
      f"{where}.augment: '{augment.ASKING.intersection(training.augment).pop()}' is for students "
      'that learn classes from members: leave it out'
    )
  label_weight: float = getattr(settings.own, 'label_weight', 0.0)
  if training.unlabelled and label_weight:
    raise UserError(f'{where}.unlabelled has no labels for label_weight: leave one of them out')
  if training.folds:
    _check_folds(config, f'{where}.folds={training.folds}')
  kept = 'config.teacher.predictions' if config.teacher.predictions else f'{where}.folds' if training.folds else ''
  if training.fixed_views and learns and AUTO not in training.augment:
    _check_views(f'{where}.views={training.views}', training)
  if kept and training.unlabelled:
    raise UserError(f'{where}.unlabelled: {kept} has no predictions for other inputs: leave one of them out')
  if kept and training.augment not in ((), (AUTO,)) and learns:
    raise UserError(
      f'{kept}: predictions are for the inputs in the data, and {where}.augment changes them: '
      f'add --{where}.augment="()"'
    )
  if task == 'regression' and getattr(settings.own, 'temperature', 1) != 1:
    raise UserError(f'{where}.temperature is for classification: set it to 1.0')


def _check_views(views: str, training: TrainingSettings) -> None:
  """What changes of inputs need that are the same in each step."""
  if wrong := set(training.augment) - augment.ALONE:
    raise UserError(
      f"{views}: '{min(wrong)}' needs the other inputs of a step, or its members: leave it out, or set views to 0"
    )


def _check_folds(config: ConfigDict, folds: str) -> None:
  """What members that leave out a part of the examples need."""
  if made := next((key for key in ('predictions', 'checkpoints') if config.teacher[key]), ''):
    raise UserError(f'{folds} trains members, and those in config.teacher.{made} are trained: leave one of them out')
  if 'mixup' in resolve(config).training.augment:
    raise UserError(f"{folds}: 'mixup' in config.teacher.augment mixes examples of all folds: leave one of them out")


def _check_training(part: str, training: TrainingSettings, ndim: int) -> None:
  try:
    if training.augment != (AUTO,):
      augment.build(training.augment, ndim, training.augment_share)
  except UserError as e:
    raise UserError(f'config.{part}.augment: {e}') from e
  if training.optimizer == 'adam' and training.weight_decay:
    raise UserError(f'config.{part}: adam has no weight decay: set optimizer to adamw, or weight_decay to 0')
