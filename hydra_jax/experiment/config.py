"""Configs: the schema with its defaults, the rule for every value, and checks of values that belong together.

How long things are trained: `teacher.epochs` is for the teacher, and for the students that learn from labels alone
(`single`, `mc_dropout`) unless a config gives them their own number. Students that learn from members have their own.
The sub-argument `:epochs=N` sets the number for all that learns from labels, whatever the config says. Likewise
`student.*.heads` follows `teacher.members`, and `:members=N` sets both.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import inspect
import logging
import re
from typing import Any

from ml_collections import ConfigDict

from hydra_jax import text
from hydra_jax.data import shifts
from hydra_jax.errors import UserError, closest, look_up, nearest, without_place
from hydra_jax.experiment import rules
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import MethodContext
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets import user_networks
from hydra_jax.nets.stages import Stage
from hydra_jax.nets.zoo import NETWORKS
from hydra_jax.training import augment

logger = logging.getLogger(__name__)

# What Hydra distils on by default, by the kind of inputs: the members agree on training data, and changed inputs keep
# more of their disagreement. `experiments/inputs.py` is the study for images; for vectors, half was the best share but
# for protein, or close to it, by the NLL on validation parts of the UCI sets, of networks that predict a variance.
IMAGES: dict[str, Any] = dict(augment=('crop', 'shuffle', 'mixup'), augment_share=0.5)
VECTORS: dict[str, Any] = dict(augment=('noise',), augment_share=0.5)


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
        # Teachers that exist: a file of predictions (see `external_predictions`), or finished runs or parts of them.
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
          heads_per_step=0,  # number of heads, chosen at random, that a step of phase 2 trains; 0 is all
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
      checkpoint_seconds=30.0,  # training that lasts longer is saved this often
      checkpoints_kept=2,  # of a phase in progress, the newest
    )
  )
  config.student.hydra.heads = config.teacher.get_oneway_ref('members')
  for student in ('single', 'mc_dropout'):
    config.student[student].epochs = config.teacher.get_oneway_ref('epochs')
  return config.lock()


def learns_from_labels(settings: ConfigDict) -> bool:
  """Whether a student learns from labels alone, and nothing from the teacher."""
  return settings.method in ('single', 'mc_dropout')


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
  return [settings for settings in config.student.values() if not learns_from_labels(settings)]


def update_training(config: ConfigDict, **values: Any) -> None:
  """Gives the teacher and all students the same settings, such as `batch_size` or `epochs`.

  Students that learn from labels still follow `teacher.epochs`: if it is changed later, theirs changes with it.
  """
  config.teacher.update(values)
  followed = {key: value for key, value in values.items() if key != 'epochs'}
  for settings in config.student.values():
    settings.update(followed if learns_from_labels(settings) else values)


def variant(config: ConfigDict, name: str, of: str = 'hydra', **changes: Any) -> None:
  """Adds settings of a student `name`: those of another one, but for some changes.

  Raises:
    UserError: The name cannot be used, there is no student `of`, or a change has no such key.
  """
  rules.check_student_name(name)
  source = look_up(config.student, of, 'student')
  for key in changes:
    if key != 'network':
      look_up(source, key, f"key of config.student.{of}, of which '{name}' is a variant,")
  with config.unlocked():
    config.student[name] = source.copy_and_resolve_references()
    if 'network' in changes:
      config.student[name].network = ConfigDict(changes.pop('network'))
  config.student[name].update(changes)
  # What follows the teacher in the source follows it in the variant.
  for key in {'heads', 'epochs' if learns_from_labels(source) else 'heads'}.intersection(source) - set(changes):
    config.student[name][key] = source.get_oneway_ref(key)


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
  update_training(
    config,
    epochs=epochs,
    warmup_epochs=warmup_epochs,
    optimizer='sgd',
    learning_rate=0.1,
    weight_decay=weight_decay,
    augment=augment,
  )
  config.student.hydra.update(
    dict(cut=-2, epochs=hydra_epochs, augment=tuple(dict.fromkeys(augment + IMAGES['augment'])))
  )


SHORTCUTS = ('members', 'epochs')
NETWORK_NAME = re.compile(r'(network\.(teacher|student)|student\.[^.]+\.network)\.name')

Say = Callable[[str], Any]  # is told what was assumed, in one line


def apply_argument(
  config: ConfigDict, argument: str | None, words: Iterable[str] = (), say: Say = logger.info
) -> ConfigDict:
  """Applies `key=value,…`, what stands behind the colon in `--config=configs/mnist.py:members=5`.

  Commas in brackets or quotes belong to a value: `students=('kd','hydra'),members=3`. A key is a shortcut or the dotted
  name of any config value. `members` sets the number of members and that of heads which learn one each. `epochs` sets
  it for all that learns from labels. `students=all` trains every student that there are settings for.

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
    set_values(config, pairs, say, shortcuts=True)
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
    look_up({known: known for known in (*SHORTCUTS, *config)}, key, 'config argument')
  return key, value


def split_argument(argument: str | None) -> list[str]:
  """The parts of a sub-argument, for configs that take words as well, such as `configs/cifar10.py:quick`."""
  return text.split(argument or '')


def set_values(
  config: ConfigDict, pairs: Iterable[tuple[str, str]], say: Say = logger.info, shortcuts: bool = False
) -> None:
  """Sets dotted keys from text, converted to the types they have.

  The name of a network is set first, in any order of the pairs, because it decides which other keys there are: it
  replaces that section by the new network with its default arguments.

  Args:
    config: Is changed.
    pairs: Keys and texts. Of a key that is given several times, the last text counts.
    say: Is told what was assumed.
    shortcuts: Whether `members` and `epochs` are keys.

  Raises:
    UserError: There is no such key, or its value is wrong.
  """
  texts: dict[str, str] = {}
  for key, value in pairs:
    if texts.get(key, value) != value:
      say(f'config.{key} is given more than once: the last value counts, {value}')
    texts[key] = value
  first = [key for key in texts if NETWORK_NAME.fullmatch(key)]
  second = [key for key in texts if shortcuts and key in SHORTCUTS]
  for key in first:
    _set_network(config, key.rpartition('.')[0], text.parse(texts[key], '', f'config.{key}', say), say)
  for key in second:
    _set_shortcut(config, key, texts[key], say)
  for key in texts:
    if key not in first and key not in second:
      _set_value(config, key, texts[key], say)


def _set_shortcut(config: ConfigDict, key: str, value: str, say: Say) -> None:
  _set_value(config, f'teacher.{key}', value, say)
  for settings in config.student.values():
    if key == 'epochs' and learns_from_labels(settings):
      settings.epochs = config.teacher.epochs
    if key == 'members' and settings.get('grouping') == 'one_each':
      settings.heads = config.teacher.get_oneway_ref('members')


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
  if last not in section:
    raise UserError(_unknown(config, path, last, key))
  if isinstance(section[last], ConfigDict):
    raise UserError(f'config.{key} is a section: set one of its keys, {_listed(section[last])}')
  if key == 'students' and value == 'all':
    order = list(METHODS)
    found = tuple(sorted(config.student, key=lambda name: order.index(config.student[name].method)))
  else:
    found = text.parse(value, section[last], f'config.{key}', say)
  if (rule := rules.of(key)) and (wrong := rule(found)):
    raise UserError(f'config.{key}={_short(found)} {wrong}')
  section[last] = found


def _section(config: ConfigDict, path: list[str], key: str) -> ConfigDict:
  """The section that a key is in."""
  section = config
  for i, name in enumerate(path):
    if name not in section:
      raise UserError(_unknown(config, path[:i], name, key))
    section = section[name]
    if not isinstance(section, ConfigDict):
      raise UserError(f"config key '{key}': '{name}' has no keys")
  return section


def _unknown(config: ConfigDict, path: list[str], name: str, key: str) -> str:
  """What to say of a key that is not there: the nearest one in its section, or the same one in another section."""
  here = list(_section(config, path, key))
  elsewhere = [known for known, _ in leaves(config) if known.rpartition('.')[2] == name]
  elsewhere.sort(key=lambda known: known.startswith('student.'))  # the teacher's first
  close = f"did you mean '{elsewhere[0]}'?" if elsewhere and not closest(name, here) else nearest(name, here)
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
  make = user_networks.find(name).make if ':' in name else look_up(NETWORKS, name, 'network')
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
  name = [network.name, user_networks.find(network.name).digest] if ':' in network.name else network.name
  return {**network.to_dict(), 'name': name}


def check_values(config: Any) -> None:
  """Raises a `UserError` unless a config has the keys of the schema, and each value is right by itself."""
  schema = default_config()
  _check_section(config, schema, 'config')
  for role, network in config.network.items():
    _check_network(network, f'config.network.{role}')
  for name, settings in config.student.items():
    _check_student(name, settings, schema)
  # Students last: some of their values follow the teacher's, which is then the one to blame.
  for key, value in sorted(leaves(config), key=lambda pair: pair[0].startswith('student.')):
    rule = rules.of(key)
    if wrong := rule(value) if rule else '':
      raise UserError(f'config.{key}={_short(value)} {wrong}')
  for name in config.students:
    look_up(config.student, name, 'student')


def leaves(node: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys and values of all that is no section."""
  for key, value in node.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


# Sections whose keys are not those of the schema.
FREE = ('config.student', 'config.network.teacher', 'config.network.student')


def _check_section(node: Any, like: ConfigDict, where: str) -> None:
  """Raises a `UserError` unless `node` has the keys of `like`, and sections where that has sections."""
  if not isinstance(node, ConfigDict):
    raise UserError(f'{where}={_short(node)} must be a section, a ConfigDict: start from {SCHEMA}')
  for key in node:
    if key not in like:
      raise UserError(f"unknown config key '{where}.{key}': {nearest(key, like)}")
  for key, default in like.items():
    here = f'{where}.{key}'
    if key not in node:
      raise UserError(f"the config has no key '{here}': start from {SCHEMA}, which has all keys")
    if isinstance(default, ConfigDict):
      if here not in FREE:
        _check_section(node[key], default, here)
      elif not isinstance(node[key], ConfigDict):
        raise UserError(f'{here}={_short(node[key])} must be a section, a ConfigDict')
    elif isinstance(node[key], ConfigDict):
      raise UserError(f'{here} is a section, and must be a value such as {default!r}')


SCHEMA = 'hydra_jax.experiment.config.default_config()'


def _check_network(network: Any, where: str) -> None:
  if not isinstance(network, ConfigDict) or not isinstance(network.get('name'), str):
    raise UserError(f"{where}={_short(network)} must be a section with a name, such as ConfigDict(dict(name='lenet'))")


def _check_student(name: str, settings: Any, schema: ConfigDict) -> None:
  """Its keys are those of the default settings of its method, and maybe a network."""
  rules.check_student_name(name)
  where = f'config.student.{name}'
  if not isinstance(settings, ConfigDict) or 'method' not in settings:
    raise UserError(
      f"{where} must be a section with a method: add it with hydra_jax.experiment.config.variant(config, '{name}')"
    )
  if wrong := rules.STUDENT['method'](settings.method):
    raise UserError(f'{where}.method={_short(settings.method)} {wrong}')
  if 'network' in settings:
    _check_network(settings.network, f'{where}.network')
  own = {key: value for key, value in settings.items() if key != 'network'}
  default = next((each for each in schema.student.values() if each.method == settings.method), None)
  if default is None:  # a method of the user's: its own keys are its business
    own = {key: value for key, value in own.items() if key in rules.TRAINING}
    _check_section(ConfigDict(own), ConfigDict(training()), where)
  else:
    _check_section(ConfigDict(own), ConfigDict({k: v for k, v in default.items() if k != 'network'}), where)


def _short(value: Any) -> str:
  text = ' '.join(str(value).split()) if isinstance(value, ConfigDict) else repr(value)
  return text if len(text) <= 100 else text[:97] + '...'


def validate(config: ConfigDict, task: str = 'classification', ndim: int = 4) -> None:
  """Raises a `UserError` for the first value that cannot work, before anything is done.

  Once before the data are there, and once more when their task and the axes of a batch are known.
  """
  check_values(config)
  for name in config.data.shifts:
    shifts.parse(name)
  build_stages(config.network.teacher, 2)
  _check_training('teacher', config.teacher, ndim)
  if augment.asks(config.teacher.augment):
    raise UserError("config.teacher.augment: 'ods' and 'conf_ods' ask members of a teacher: leave them out")
  if config.teacher.predictions and config.teacher.checkpoints:
    raise UserError('config.teacher has both predictions and checkpoints: set one of them')
  for name in config.students:
    _check_trained(config, name, config.student[name], task, ndim)


def doubtful(config: ConfigDict) -> Iterator[str]:
  """What is possible, but hardly meant, a line each."""
  parts = [('teacher', config.teacher), *((f'student.{name}', config.student[name]) for name in config.students)]
  for name, settings in parts:
    if settings.warmup_epochs >= settings.epochs:
      yield (
        f'config.{name}.warmup_epochs={settings.warmup_epochs} takes all of its epochs={settings.epochs}: '
        'the learning rate rises to the end'
      )


def _check_trained(config: ConfigDict, name: str, settings: ConfigDict, task: str, ndim: int) -> None:
  """What a student that is to be trained needs."""
  where = f'config.student.{name}'
  _check_training(f'student.{name}', settings, ndim)
  network = settings.get('network', config.network.student)
  context = MethodContext(TASKS[task], lambda *_: build_stages(network, 2), config.teacher.members)
  try:
    learns = METHODS[settings.method].phases(settings, context)[-1].distils
  except UserError as e:
    raise UserError(f'{where}: {e}') from e
  if augment.asks(settings.augment) and (task != 'classification' or not learns):
    raise UserError(
      f"{where}.augment: '{augment.ASKING.intersection(settings.augment).pop()}' is for students "
      'that learn classes from members: leave it out'
    )
  if settings.get('unlabelled') and settings.get('label_weight'):
    raise UserError(f'{where}.unlabelled has no labels for label_weight: leave one of them out')
  if config.teacher.predictions and settings.get('unlabelled'):
    raise UserError(f'{where}.unlabelled: config.teacher.predictions has none for other inputs: leave one of them out')
  if config.teacher.predictions and settings.augment and learns:
    raise UserError(
      f'config.teacher.predictions are for the inputs in the data, and {where}.augment changes them: '
      f'add --{where}.augment="()"'
    )
  if task == 'regression' and settings.get('temperature', 1.0) != 1.0:
    raise UserError(f'{where}.temperature is for classification: set it to 1.0')


def _check_training(part: str, settings: ConfigDict, ndim: int) -> None:
  try:
    augment.build(settings.augment, ndim, settings.augment_share)
  except UserError as e:
    raise UserError(f'config.{part}.augment: {e}') from e
  if settings.optimizer == 'adam' and settings.weight_decay:
    raise UserError(f'config.{part}: adam has no weight decay: set optimizer to adamw, or weight_decay to 0')
