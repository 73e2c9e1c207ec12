"""Each setting changes the key of what it affects, and of nothing else; so does the code, and so do the data."""

from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict
import numpy as np
import pytest

from hydra_jax.data import Split, load
from hydra_jax.devices.layout import SINGLE_DEVICE
from hydra_jax.experiment import provenance, recipes, run_report, teachers
from hydra_jax.experiment.config import default_config
from hydra_jax.experiment.phases import keys_of_phases
from hydra_jax.experiment.plan import PlannedPhase
from hydra_jax.experiment.replicas import Replica
from hydra_jax.methods.registry import METHODS

pytestmark = pytest.mark.slow

MEMBERS, PREDICTIONS = 'ensemble', 'predictions'
# Of these nothing that is saved depends: they show, name, place or check.
WITHOUT_EFFECT = (
  *('validation_scores', 'trackers'),
  *('name', 'students', 'checkpoint_seconds', 'checkpoints_kept', 'evaluation.ece_bins', 'data.image_size'),
  *('execution.', 'parallel.'),
)
# Another value of each setting that is not a number.
OTHERS = {
  'name': 'other',
  'students': ('kd',),
  'trackers': ('tensorboard',),
  'data.train': 'test',
  'data.test': 'train',
  'data.task': 'classification',
  'data.shifts': ('rotate:10',),
  'data.ood': ('noise',),
  'widths': (6,),
  'teacher.keep_as': 'float16',
  'optimizer': 'adamw',
  'schedule': 'constant',
  'augment': ('crop',),
  'unlabelled': ('digits',),
  'grouping': 'one_each',
  'heads': 2,
  'folds': 3,
  'mapping': 'unroll',
  'mode': 'pmap',
}
# These stand for another teacher, or another method, instead of changing one.
REPLACING = ('teacher.predictions', 'teacher.checkpoints', 'data.name', 'evaluation.metrics')
REPLACING += ('network.name', 'network.teacher.name', 'network.student.name')


def config_of() -> ConfigDict:
  config = default_config().copy_and_resolve_references()
  config.teacher.members, config.student.hydra.heads, config.student.hydra.grouping = 4, 4, 'round_robin'
  config.student.hydra.hinton_epochs = 1.0
  config.teacher.schedule = 'cosine'
  config.student.hydra.epochs = config.student.dlf.epochs = config.student.single.epochs = 20.0
  config.data.shifts, config.data.ood = ('rotate:30',), ('letters',)
  for role in ('teacher', 'student'):
    config.network[role].widths = (5,)
  return config


def keys(config: ConfigDict) -> dict[str, str]:
  """Keys of all that a config would save, by 'method/part'."""
  group = [
    Replica(config=config, artifacts=Path(), index=i, data=load(config.data, '', i, config.validation))
    for i in range(config.replicas)
  ]
  data, found = group[0].data, {}

  def add(name, student, taught_by=()):
    recipe = recipes.recipe_of(config, student, data.task, data.outputs)
    phases = recipes.phases_of(recipe)
    planned = [PlannedPhase('', phase, recipe.settings.training, SINGLE_DEVICE.shape) for phase in phases]
    made = keys_of_phases(group, recipe, planned, taught_by)
    found.update({f'{name}/{phase.name}': key for phase, key in zip(phases, made, strict=True)})
    found[f'{name}/scores'] = run_report.key_of_scores(group[0], made[-1])
    return made[-1]

  teacher = teachers.key_of_teacher(config, ensemble := add(MEMBERS, None))
  found[PREDICTIONS] = teachers.key_of_predictions(group[0], teacher)
  for name in config.student:
    made = add(name, name, [teacher] * config.replicas)
    if METHODS[name].matched:
      found[f'{name}/divergences'] = run_report.key_of_divergences(group[0], made, ensemble)
  return found


def leaves(config: ConfigDict, path: str = ''):
  for key, value in config.items():
    here = f'{path}.{key}'.lstrip('.')
    yield from leaves(value, here) if isinstance(value, ConfigDict) else [(here, value)]


def another(path: str, value):
  """Another legal value of a setting."""
  if path in OTHERS or path.rpartition('.')[2] in OTHERS:
    return OTHERS.get(path, OTHERS.get(path.rpartition('.')[2]))
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    return value + 2
  assert isinstance(value, float), f'{path} needs another value in OTHERS'
  return 0.25 if path.endswith(('label_weight', 'augment_share', 'rate', 'validation')) else 2 * value + 1


# Settings that the first phase of a method does not read.
UNREAD = {
  'hydra/mean prediction': (
    'epochs',
    'heads',
    'grouping',
    'diversity_weight',
    'freeze_body',
    'mean_weight',
  ),
  'dlf/mean': ('epochs',),
  'edfm/mean prediction': ('epochs', 'samples', 'steps'),
}


def belongs(part: str, path: str) -> bool:
  """Whether what is saved as `part` depends on a setting."""
  method, _, what = part.partition('/')
  distils = method not in (MEMBERS, 'single', 'shallow_ensemble', 'tabm', 'mc_dropout', 'ddu')
  if path.startswith(WITHOUT_EFFECT) or path.endswith('calibrate_spread'):  # that is another artifact
    return False
  if path in ('data.test', 'data.shifts', 'data.ood', 'evaluation.batch_size'):
    compares = what == 'divergences' and path in ('data.test', 'data.ood')
    return what == 'scores' or compares
  if path.startswith('student.'):
    _, name, setting = path.split('.', 2)
    return method == name and setting not in UNREAD.get(part, ())
  if path.startswith('network.student'):
    return method not in (MEMBERS, PREDICTIONS, 'small_ensemble')
  if path == 'teacher.keep_as':
    return distils
  if path.startswith('distillation.') or path == 'training.schedule':  # the teacher has another schedule
    return distils and method != PREDICTIONS
  if path == 'training.epochs':
    return method != 'single'
  if path == 'teacher.schedule':
    return True
  if path.startswith(('network.teacher', 'teacher.')):
    return distils or method == MEMBERS
  if path == 'data.task':
    return False
  return True


SETTINGS = [path for path, _ in leaves(config_of()) if not path.endswith(REPLACING)]


@pytest.fixture(scope='module')
def before():
  return keys(config_of())


@pytest.mark.parametrize('path', SETTINGS)
def test_a_setting_changes_the_keys_of_what_it_affects_and_no_others(path, before):
  config = config_of()
  *sections, last = path.split('.')
  node = config
  for section in sections:
    node = node[section]
  node[last] = another(path, node[last])
  after = keys(config)
  changed = {part for part in before if after[part] != before[part]}
  assert changed == {part for part in before if belongs(part, path)}


def test_a_network_of_another_kind_changes_what_has_it(before):
  config = config_of()
  config.network.student = ConfigDict(dict(name='lenet'))
  after = keys(config)
  own = {part for part in before if part.partition('/')[0] not in (MEMBERS, PREDICTIONS, 'small_ensemble')}
  assert {part for part in before if after[part] != before[part]} == own


@pytest.mark.parametrize(
  'layer, untouched',
  [
    ('training', ()),
    (
      'evaluation',
      ('labels', 'members', 'all members', 'mean prediction', 'mean', 'factors', 'moments', 'intervals', 'flow'),
    ),
  ],
)
def test_the_code_of_a_layer_changes_what_it_makes(layer, untouched, before, monkeypatch):
  whole = provenance.digest
  monkeypatch.setattr(provenance, 'digest', lambda name: f'{whole(name)} edited' if name == layer else whole(name))
  after = keys(config_of())
  same = {part for part in before if after[part] == before[part]}
  assert same == {part for part in before if part.partition('/')[2] in untouched}


def test_the_code_of_a_method_changes_what_it_makes(before, monkeypatch):
  whole = provenance.definition
  edited = METHODS['kd'].phases
  monkeypatch.setattr(provenance, 'definition', lambda f: f'{whole(f)} edited' if f is edited else whole(f))
  after = keys(config_of())
  changed = {part for part in before if after[part] != before[part]}
  assert changed == {part for part in before if part.startswith('kd/')}


def test_the_validation_part_changes_the_keys_of_scores():
  """Labels are calibrated on it, so that a corrected label there changes what is scored with it."""
  data = load(config_of().data, '', 0, 0.1)
  replica = Replica(config=config_of(), artifacts=Path(), index=0, data=data)
  edited = data.validation.y.copy()
  edited[0] += 1
  key = lambda split: run_report.key_of_scores(replace(replica, data=replace(data, validation=split)), 'model')
  x, y = data.validation.x, data.validation.y
  made = [key(split) for split in (Split(x, y), Split(x, edited), Split(x + 1, y), None)]
  assert len(set(made)) == 4 and made[0] == key(data.validation)


ARRAYS = dict(x=(30, 4), y=(30,), x_test=(20, 4), y_test=(20,), x_far=(10, 4), x_unused=(10, 4))


@pytest.fixture(scope='module')
def of_file(tmp_path_factory):
  """Keys for a file of random arrays, one of which may be changed."""
  file = tmp_path_factory.mktemp('file') / 'data.npz'

  def of(changed=None):
    random = np.random.default_rng(0)
    make = lambda name, shape: random.integers(3, size=shape) if name.startswith('y') else random.normal(size=shape)
    arrays = {name: make(name, shape) for name, shape in ARRAYS.items()}
    if changed:
      arrays[changed] = arrays[changed].copy()
      flat = arrays[changed].reshape(-1)
      flat[1] = (flat[1] + 1) % 3 if changed.startswith('y') else flat[1] + 1e-3
    np.savez(file, **arrays)
    config = config_of()
    config.data.update(dict(name=str(file), shifts=('jitter:1',), ood=('far', 'noise')))
    return keys(config)

  return of


@pytest.mark.parametrize('array', ARRAYS)
def test_a_corrected_value_in_a_file_changes_the_keys_of_what_reads_it(array, of_file):
  before, after = of_file(), of_file(array)
  changed = {part for part in before if after[part] != before[part]}
  parts_of = lambda *kinds: {part for part in before if part.partition('/')[2] in kinds}
  expected = {
    'x': set(before),
    'y': set(before),
    'x_test': parts_of('scores', 'divergences'),
    'y_test': parts_of('scores', 'divergences'),
    'x_far': parts_of('scores', 'divergences'),
    'x_unused': set(),
  }[array]
  assert changed == expected
