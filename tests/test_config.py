"""Configs: every shipped one resolves, and every bad value is answered in one line."""

import importlib.util
import re

from conftest import ROOT
from ml_collections import ConfigDict
import pytest

from hydra_jax import UserError, data as datasets, user_files
from hydra_jax.experiment import config as configs, recipes, schema
from hydra_jax.experiment.schema import default_config, resolve

SHIPPED = ['cifar10', 'cifar100', 'digits', 'external', 'imagenet', 'mnist', 'spiral', 'svhn', 'table', 'uci']


def get(name, argument=None):
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument)


def test_every_shipped_config_is_listed():
  assert sorted(p.stem for p in (ROOT / 'configs').glob('*.py')) == SHIPPED


@pytest.mark.parametrize('name', SHIPPED)
def test_shipped_configs_resolve(name):
  config = get(name)
  configs.validate(config)
  assert config.name.startswith(name) and config.is_locked


@pytest.mark.parametrize('name, outside', [('cifar100', ['cifar10', 'svhn_cropped']), ('svhn', ['cifar10', 'noise'])])
def test_image_configs_name_sets_that_fit_together(miniatures, name, outside):
  data = datasets.load(get(name).data, miniatures, 0)
  assert datasets.outside_of(data) == outside and data.train.x.shape == (20, 32, 32, 3)


def at(config, key):
  for name in key.split('.'):
    config = config[name]
  return config


@pytest.mark.parametrize(
  'name, argument, expected',
  [
    (
      'uci',
      'energy,members=3,student.hydra.cut=-2,data.shifts=()',
      {'data.name': 'uci/energy', 'student.hydra.cut': -2},
    ),
    ('uci', 'members=3', {'data.name': 'uci/concrete', 'teacher.members': 3}),
    ('digits', 'epochs=3', {'training.epochs': 3.0, 'distillation.epochs': 60.0}),
    ('digits', 'epochs=1e-3,', {'training.epochs': 0.001}),
    ('digits', "students=('kd','hydra'),members=3", {'students': ('kd', 'hydra'), 'teacher.members': 3}),
    ('digits', "members=3,students=['kd', 'hydra']", {'students': ('kd', 'hydra'), 'teacher.members': 3}),
    ('digits', 'students=(kd,hydra),seed=7', {'students': ('kd', 'hydra'), 'seed': 7}),
    ('digits', "students=('hydra')", {'students': ('hydra',)}),
    ('digits', 'students=hydra', {'students': ('hydra',)}),
    ('digits', 'students=()', {'students': ()}),
    ('digits', 'data.shifts=(rotate:15,)', {'data.shifts': ('rotate:15',)}),
    ('digits', 'data.ood=mnist[:100]', {'data.ood': ('mnist[:100]',)}),
    ('digits', 'data.train=a=b', {'data.train': 'a=b'}),
    ('digits', "teacher.predictions='a,b.npz',seed=2", {'teacher.predictions': 'a,b.npz', 'seed': 2}),
    ('digits', 'student.hydra.freeze_body=true', {'student.hydra.freeze_body': True}),
    ('digits', 'student.kd.temperature=2', {'student.kd.temperature': 2.0}),
    ('digits', 'student.kd.epochs=2,teacher.epochs=3', {'student.kd.epochs': 2.0, 'teacher.epochs': 3.0}),
    ('digits', 'student.kd2.method=kd,student.kd2.temperature=2', {'student.kd2.temperature': 2.0}),
    ('digits', 'student.kd2.temperature=2,student.kd2.method=kd', {'student.kd2.method': 'kd'}),
    ('digits', 'student.hydra.heads=3,members=5', {'student.hydra.heads': 3, 'teacher.members': 5}),
    ('digits', 'network.teacher.widths=50', {'network.teacher.widths': (50,)}),
    ('digits', 'network.teacher.homoscedastic=True', {'network.teacher.homoscedastic': True}),
    (
      'cifar10',
      "wrn28_1,students=('kd','hydra'),quick",
      {'name': 'cifar10-wrn28_1-quick', 'students': ('kd', 'hydra')},
    ),
    ('external', 'mnist,seed=3', {'data.name': 'mnist', 'seed': 3}),
    ('external', 'teacher.predictions=m.npz', {'data.name': 'm.npz'}),
  ],
)
def test_sub_arguments(name, argument, expected):
  config = get(name, argument)
  for key, value in expected.items():
    assert at(config, key) == value and type(at(config, key)) is type(value), key


def test_all_students():
  config = get('digits', 'students=all')
  assert config.students[0] == 'single' and set(config.students) == set(config.student)
  configs.set_values(config, [('students', 'kd')])
  configs.set_values(config, [('students', 'all')])
  assert set(config.students) == set(config.student)


@pytest.mark.parametrize(
  'argument, word',
  [
    ('member=5', "did you mean 'members'"),
    ('teacher.member=5', "did you mean 'members'"),
    ('members', 'key=value'),
    ('=5', 'unknown config argument'),
    ('members=many', 'takes a whole number'),
    ('members=2.7', 'takes a whole number'),
    ('members=True', 'takes a whole number'),
    ('members=', 'takes a whole number'),
    ('members=-3', 'config.teacher.members=-3 must be a whole number of at least 1'),
    ('seed=1.0', 'takes a whole number'),
    (f'seed={2**40}', 'from 0 to'),
    ('epochs=nan', 'of more than 0, and finite'),
    ('validation_scores=-1', 'config.validation_scores=-1 must be a whole number of at least 0'),
    ('epochs=None', 'takes a number'),
    ('student.hydra.freeze_body=maybe', 'takes True or False'),
    ("students=('kd'", r'lacks a closing \)'),
    ("students='kd", "lacks a closing '"),
    ('students=', 'takes a tuple'),
    ('students=5', 'must be a tuple of names'),
    ("students=('kd', 3)", 'must be a tuple of names'),
    ('students=kd hydra', 'takes a tuple'),
    ('students=', r'\(\) for none'),
    ('name.x=1', 'has no keys'),
    ('student.kd=3', 'is a section: set one of its keys, label_weight'),
    (
      'student.nope.x=1',
      "config.student has no 'nope': choose one of: .*a new student needs config.student.nope.method",
    ),
    ('student.hydra.head=1', "config.student.hydra has no 'head': did you mean 'heads'"),
    ('execution.epochs=1', "did you mean 'training.epochs'"),
    ('network.teacher.width=16', "network 'mlp' takes widths, homoscedastic"),
  ],
)
def test_bad_sub_arguments(argument, word):
  with pytest.raises(UserError, match=word) as error:
    get('digits', argument)
  assert '\n' not in str(error.value)


def test_what_is_assumed_is_said(caplog):
  caplog.set_level('INFO', 'hydra_jax')
  get('digits', "students=('hydra'),seed=1,seed=2")
  said = caplog.text
  assert "config.students=('hydra') is taken as ('hydra',)" in said
  assert 'config.seed is given more than once: the last value counts, 2' in said


@pytest.mark.parametrize('name', SHIPPED)
def test_epochs_and_members_mean_the_same_in_every_config(name):
  """The teacher, and all that learns from labels, have the epochs of the shortcut; who has another number keeps it."""
  plain, short = get(name), get(name, 'epochs=77,members=6')
  of = lambda config, student=None: resolve(config, student).training.epochs
  assert of(short) == of(short, 'single') == of(short, 'mc_dropout') == 77.0 and short.teacher.members == 6
  for student in short.student:
    has_another = 'epochs' in plain.student[student] or 'epochs' in plain.distillation
    if configs.learns_from_members(plain, student):
      assert of(short, student) == (of(plain, student) if has_another else 77.0)


def test_what_stays_as_it_is_is_said(caplog):
  with caplog.at_level('INFO', logger='hydra_jax'):
    get('digits', 'epochs=7')
  assert 'config.training.epochs=7 leaves these as they are: config.distillation.epochs=60.0' in caplog.text


@pytest.mark.parametrize(
  'values, expected',
  [
    ({}, dict(teacher=40.0, single=40.0, kd=60.0, hydra=120.0)),
    ({'training.epochs': '5'}, dict(teacher=5.0, single=5.0, kd=60.0, hydra=120.0)),
    ({'teacher.epochs': '5'}, dict(teacher=5.0, single=5.0, kd=60.0, hydra=120.0)),
    ({'distillation.epochs': '5'}, dict(teacher=40.0, single=40.0, kd=5.0, hydra=120.0)),
    ({'student.single.epochs': '5'}, dict(teacher=40.0, single=5.0, kd=60.0, hydra=120.0)),
    ({'student.hydra.epochs': '5'}, dict(teacher=40.0, single=40.0, kd=60.0, hydra=5.0)),
  ],
)
def test_settings_of_training_go_from_all_to_one(values, expected):
  config = get('digits')
  configs.set_values(config, values.items())
  found = {name: resolve(config, None if name == 'teacher' else name).training.epochs for name in expected}
  assert found == expected


def test_the_same_training_for_all():
  config = get('uci')
  configs.update_training(config, epochs=3.0, learning_rate=0.5)
  for student in (None, *config.student):
    training = resolve(config, student).training
    assert (training.epochs, training.learning_rate, training.batch_size) == (3.0, 0.5, 32)


def test_a_variant_has_what_its_source_has():
  config = get('digits')
  configs.variant(config, 'dropped', of='mc_dropout', rate=0.3)
  configs.variant(config, 'few', heads=3, grouping='round_robin', epochs=9.0)
  configs.variant(config, 'fewer', of='few', heads=2)
  assert resolve(config, 'dropped').own.rate == 0.3 and resolve(config, 'dropped').training.epochs == 40.0
  assert resolve(config, 'fewer').own.heads == 2 and resolve(config, 'fewer').training.epochs == 9.0
  assert config.student.fewer.method == 'hydra' and 'epochs' not in config.student.dropped
  with pytest.raises(UserError, match="did you mean 'heads'"):
    configs.variant(config, 'other', head=3)


def test_bad_uci_set():
  with pytest.raises(UserError, match="did you mean 'concrete'"):
    get('uci', 'concret')


@pytest.mark.parametrize(
  'key, value, word',
  [
    ('teacher.members', 0, 'at least 1'),
    ('student.hydra.heads', -1, 'at least 0'),
    ('student.hydra.heads', 7, 'set heads to 0 or 20'),
    ('student.hydra.cut', 3, 'choose -3 to 2'),
    ('student.hydra.temperature', 0.0, 'more than 0'),
    ('student.hydra.method', 'hidra', "did you mean 'hydra'"),
    ('student.kd.method', 'ensemble', 'unknown method'),
    ('student.kd.epochs', float('inf'), 'finite'),
    ('student.kd.learning_rate', -1.0, 'more than 0'),
    ('students', ('hydr',), "did you mean 'hydra'"),
    ('students', ('kd', 'kd'), 'twice'),
    ('data.ood', ('noise', 'noise'), 'twice'),
    ('data.shifts', ('rotate:15', 'rotate:15'), 'twice'),
    ('seed', 2**32, 'from 0 to'),
    ('name', '', 'names the folder'),
    ('name', '../x', 'name of a folder'),
    ('name', '/tmp/x', 'name of a folder'),
    ('name', '..', 'name of a folder'),
    ('name', 'a\nb', 'name of a folder'),
    ('name', 'ü' * 60, 'at most 100'),
    ('network.student.widths', (10, True), 'whole numbers'),
    ('network.student.widths', ('a',), 'whole numbers'),
    ('training.optimizer', 'adamm', "did you mean 'adam"),
    ('teacher.schedule', 'cos', "did you mean 'cosine'"),
    ('teacher.batch_size', 0, 'at least 1'),
    ('distillation.batch_size', 0, 'at least 1'),
    ('distillation.epoch', 1.0, "did you mean 'epochs'"),
    ('student.single.unlabelled', ('digits',), 'unknown config key'),
    ('teacher.weight_decay', 0.1, 'adamw'),
    ('network.teacher.name', 'mpl', "did you mean 'mlp'"),
    ('network.student.widths', (10, -1), 'at least 1'),
    ('replicas', 0, 'at least 1'),
    ('teacher.keep_as', 'float8', "did you mean 'float"),
    ('student.hydra.members_per_step', 21, 'members_per_step=21 of 20 members'),
    ('student.hydra.folds', 1, '0 or at least 2'),
    ('student.single.folds', 5, 'unknown config key'),
    ('student.hydra.diversity_weight', -1.0, 'at least 0'),
    ('student.dlf.factors', 0, 'at least 1'),
    ('evaluation.ece_bins', 0, 'at least 1'),
    ('data.shifts', ('contrast:6',), 'one of 1, 2, 3, 4, 5'),
    ('student.kd.augment', ('mixap',), r"kd.augment: unknown augmentation 'mixap': did you mean 'mixup'"),
    ('teacher.augment', ('mixup', 'mixup'), 'name it once'),
    ('teacher.augment', ('ods',), 'leave them out'),
    ('student.single.augment', ('noise', 'conf_ods'), "'conf_ods' is for students"),
    ('student.kd.augment_share', 0.0, 'more than 0 and at most 1'),
  ],
)
def test_bad_values(key, value, word):
  config = get('digits')
  section, _, last = key.rpartition('.')
  with pytest.raises(UserError, match=word) as error:
    (at(config, section) if section else config)[last] = value
    configs.validate(config)
  assert '\n' not in str(error.value)


def test_augmentations_of_images_are_for_images():
  config = get('spiral')
  config.student.kd.augment = ('crop',)
  configs.validate(config)
  with pytest.raises(UserError, match="config.student.kd.augment: augmentation 'crop' is for images"):
    configs.validate(config, ndim=2)


def test_unlabelled_inputs_have_no_labels_and_need_a_teacher_that_predicts():
  config = get('digits')
  config.student.kd.unlabelled = ('letters',)
  config.student.kd.label_weight = 0.5
  with pytest.raises(UserError, match='config.student.kd.unlabelled has no labels'):
    configs.validate(config)
  config.student.kd.label_weight, config.teacher.predictions = 0.0, 'members.npz'
  with pytest.raises(UserError, match='config.student.kd.unlabelled: config.teacher.predictions'):
    configs.validate(config)


def test_members_are_asked_about_classes():
  config = get('uci')
  config.student.kd.augment = ('ods',)
  with pytest.raises(UserError, match='learn classes'):
    configs.validate(config, 'regression', 2)


# Values that are right for no key of a kind.
NEVER = (None, object(), b'x', float('nan'), -1.5, [1], {'a': 1})
WRONG = {
  bool: (*NEVER, 1, 0, 'True'),
  int: (*NEVER, 1.0, True, '3', float('inf'), 10**0.5),
  float: (*NEVER, True, '3', float('inf'), -float('inf')),
  str: (*NEVER, 3, True, ('a',)),
  tuple: (*NEVER, 3, 'hydra', ('hydra', 3), ('',), ((),)),
}
KEYS = {
  key: value
  for key, value in configs.leaves(default_config())
  if not re.match(r'(network|student\.\w+\.network)\.', key)
}


@pytest.mark.parametrize('key', KEYS)
def test_every_key_has_a_rule_which_refuses_values_of_other_types(key):
  config = get('digits').copy_and_resolve_references()
  *path, last = key.split('.')
  section = at(config, '.'.join(path)) if path else config
  assert schema.keys_of(config, '.'.join(path))[last][1](at(config, key)) == ''
  for value in WRONG[type(KEYS[key])]:
    with section.ignore_type(), config.unlocked():
      section[last] = value
    with pytest.raises(UserError) as error:
      configs.check_values(config)
    assert str(error.value).startswith(f'config.{key.removesuffix(".name")}') and '\n' not in str(error.value), value


def test_arguments_of_a_users_network_are_its_own_business(tmp_path, monkeypatch):
  """They may be called as keys of ours are, and hold what those never could."""
  (tmp_path / 'networks.py').write_text(
    'import hydra_jax\n'
    'def make(outputs, width, heads, mode, rate, data, epochs, method, seed):\n'
    "  assert (width, heads, mode, rate, data, epochs) == (None, (4, 8), 'bilinear', 0, 'x', -1)\n"
    '  return hydra_jax.mlp(outputs, (5,))\n'
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  user_files.find.cache_clear()
  own = dict(width=None, heads=(4, 8), mode='bilinear', rate=0, data='x', epochs=-1, method='no', seed=2.5)
  config = get('digits', 'students=all')
  for section in (config.network, config.student.small_ensemble):
    for key in ('teacher', 'student') if section is config.network else ('network',):
      section[key] = ConfigDict(dict(name='networks.py:make', **own))
  configs.validate(config)
  configs.set_values(config, [('network.teacher.seed', '7'), ('network.student.method', 'other')])
  configs.set_values(config, [('network.student.width', 'None'), ('network.student.heads', '(4, 8)')])
  configs.validate(config)
  assert config.network.teacher.seed == 7 and config.network.student.method == 'other'
  configs.set_values(config, [('network.teacher.rate', '0.5')])
  with pytest.raises(UserError, match=r"network 'networks.py:make': AssertionError.*\(networks.py, line 3\)"):
    configs.validate(config)


WRN = dict(name='wide_resnet', depth=28, width=2, dropout=0.0, norm='batch', dtype='float32')


@pytest.mark.parametrize(
  'pairs, expected',
  [
    ([('network.teacher.name', 'lenet')], dict(name='lenet')),
    ([('network.teacher.name', 'mlp'), ('network.teacher.widths', '(3,4)')], dict(name='mlp', widths=(3, 4))),
    ([('network.teacher.name', 'wide_resnet'), ('network.teacher.width', '2')], WRN),
    ([('network.teacher.width', '2'), ('network.teacher.name', 'wide_resnet')], WRN),
    ([('network.teacher.dropout', '0'), ('network.teacher.name', 'wide_resnet')], WRN | dict(width=10)),
  ],
)
@pytest.mark.parametrize('shortcuts', [False, True])
def test_another_network_by_name(pairs, expected, shortcuts):
  """In any order, and as a sub-argument as well; what belonged to the old network is gone, and that is said."""
  config, said = get('digits'), []
  if shortcuts:
    configs.apply_argument(config, ','.join(f'{key}={value}' for key, value in pairs), say=said.append)
  else:
    configs.set_values(config, pairs, said.append)
  assert config.network.teacher.to_dict() == expected
  assert config.network.student.to_dict() == dict(name='mlp', widths=(100, 300))
  assert [line.split(' with')[0] for line in said] == [f'config.network.teacher is {expected["name"]}'] * (
    expected['name'] != 'mlp'
  )
  configs.validate(config)


@pytest.mark.parametrize(
  'pairs, word',
  [
    ([('network.teacher.name', 'lenett')], "unknown network 'lenett': did you mean 'lenet'"),
    ([('network.teacher.name', 'lenet'), ('network.teacher.widths', '(3,)')], "network 'lenet' takes no arguments"),
    ([('network.teacher.name', 'none.py:make')], "no file 'none.py'"),
    ([('network.teacher.name', 'builtins:int')], 'must be a function of the number of outputs'),
    ([('network.teacher.name', 'resnet'), ('network.teacher.width', '2.5')], 'width=2.5 must be a whole number'),
    ([('network.teacher.name', 'resnet'), ('network.teacher.width', '0')], 'width=0 must be a whole number'),
    ([('network.teacher.name', 'resnet'), ('network.teacher.depth', '21')], 'choose 6n'),
    ([('network.teacher.name', 'resnet'), ('network.teacher.norm', 'bath')], "did you mean 'batch'"),
    ([('network.teacher.name', 'resnet'), ('network.teacher.dtype', 'float16')], 'unknown dtype'),
    ([('network.teacher.name', 'wide_resnet'), ('network.teacher.dropout', '1.5')], 'dropout=1.5 must be'),
    ([('network.teacher.name', 'wide_resnet'), ('network.teacher.dropout', 'nan')], 'dropout=nan must be'),
    ([('network.teacher.homoscedastic', '1')], 'homoscedastic=1 must be True or False'),
    ([('network.teacher', 'lenet')], 'is a section'),
  ],
)
def test_networks_check_their_own_arguments(pairs, word):
  config = get('digits')
  with pytest.raises(UserError, match=word):
    configs.set_values(config, pairs, lambda line: None)
    configs.validate(config)


def test_a_student_gets_a_network_by_name():
  config = get('digits')
  configs.set_values(config, [('student.kd.network.widths', '(7,)'), ('student.kd.network.name', 'mlp')])
  assert config.student.kd.network.to_dict() == dict(name='mlp', widths=(7,), homoscedastic=False, bottleneck=0)
  configs.validate(config)


def without(config, section, key):
  with config.unlocked():
    del (at(config, section) if section else config)[key]


def with_more(config, section, key, value=1):
  with config.unlocked(), config.ignore_type():
    (at(config, section) if section else config)[key] = value


@pytest.mark.parametrize(
  'change, word',
  [
    (lambda c: without(c, 'teacher', 'members'), "no key 'config.teacher.members'"),
    (lambda c: without(c, '', 'training'), "no key 'config.training'"),
    (lambda c: without(c, 'training', 'epochs'), "no key 'config.training.epochs'"),
    (lambda c: without(c, 'network.teacher', 'name'), 'config.network.teacher=.*with a name'),
    (lambda c: without(c, 'network', 'student'), "no key 'config.network.student'"),
    (lambda c: with_more(c, '', 'studnts'), "unknown config key 'config.studnts': did you mean 'students'"),
    (lambda c: with_more(c, 'teacher', 'member'), "unknown config key 'member': did you mean 'members'"),
    (lambda c: with_more(c, 'student.hydra', 'head'), "unknown config key 'head': did you mean 'heads'"),
    (lambda c: with_more(c, '', 'teacher', 3), 'config.teacher=3 must be a section'),
    (lambda c: with_more(c, '', 'seed', ConfigDict()), 'config.seed is a section, and must be a value such as 0'),
    (lambda c: with_more(c, 'student', 'mine', 3), 'config.student.mine must be a section'),
    (lambda c: with_more(c, 'student', 'mine', ConfigDict(dict(method='kda'))), "did you mean 'kd'"),
    (lambda c: with_more(c, 'student', 'mine', ConfigDict(dict(epochs=3.0))), 'config.student.mine must have a method'),
    (lambda c: with_more(c, 'student.kd', 'epochs', '3'), "config.student.kd.epochs='3' must be a number"),
    (lambda c: with_more(c, 'network', 'teacher', 'lenet'), 'config.network.teacher=.lenet. must be a section'),
    (lambda c: with_more(c, 'student.kd', 'network', 'lenet'), 'config.student.kd.network=.lenet. must be a section'),
  ],
)
def test_a_config_that_is_not_made_from_the_schema(change, word):
  config = get('digits')
  with pytest.raises(UserError, match=word) as error:
    change(config)
    configs.validate(config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name', ['a.b', 'a/b', 'a|b', 'a b', 'a\n', '', 'lambda', 'ensemble', 'items', 'x' * 200, '..']
)
def test_names_of_students_that_cannot_be(name):
  """They stand in names of files, in keys such as `test|hydra`, and behind a dot."""
  config = get('digits')
  with pytest.raises(UserError, match='cannot be called'):
    configs.variant(config, name)
  assert name not in config.student
  if '.' not in name and name != 'items':  # which ConfigDict itself refuses
    with config.unlocked():
      config.student[name] = config.student.kd.copy_and_resolve_references()
    with pytest.raises(UserError, match='cannot be called'):
      configs.validate(config)


def test_variants_are_of_what_there_is():
  config = get('digits')
  with pytest.raises(UserError, match="unknown student 'hydr': did you mean 'hydra'"):
    configs.variant(config, 'deep', of='hydr')
  with pytest.raises(UserError, match="'cutt': did you mean 'cut'"):
    configs.variant(config, 'deep', cutt=-2)
  configs.variant(config, 'wide', of='small_ensemble', network=dict(name='mlp', widths=(9,)))
  assert config.student.wide.network.widths == (9,) and config.student.small_ensemble.network.widths == (20, 20)


def test_a_variant_of_a_variant_keeps_its_heads():
  config = get('digits')
  configs.variant(config, 'few', heads=3, grouping='round_robin')
  configs.variant(config, 'few_deep', of='few', cut=-2)
  configs.variant(config, 'deep', cut=-2)
  configs.variant(config, 'dropped', of='mc_dropout', rate=0.5)
  config.teacher.members, config.teacher.epochs = 7, 9.0
  assert [config.student[s].heads for s in ('few_deep', 'deep')] == [3, 0]
  assert [resolve(config, s).training.epochs for s in ('dropped', 'deep')] == [9.0, 120.0]


def test_warming_up_to_the_end_is_doubtful():
  config = get('cifar10', 'epochs=5')
  assert [line.split('=')[0] for line in configs.doubtful(config)] == [
    'config.teacher.warmup_epochs',
    'config.student.single.warmup_epochs',
    'config.student.kd.warmup_epochs',
  ]
  assert not list(configs.doubtful(get('cifar10')))


def test_heads_are_as_many_as_members_unless_said():
  config = get('digits')
  configs.variant(config, 'deep', cut=-2)
  configs.variant(config, 'few', heads=3, grouping='round_robin')
  config.students, config.teacher.members = ('deep', 'few'), 7
  configs.validate(config)
  found = dict(recipes.recipes_in(config, 'classification', 10))
  heads = {name: len(recipes.phases_of(recipe)[-1].network.heads) for name, recipe in found.items()}
  assert heads == {'ensemble': 7, 'deep': 7, 'few': 3}


def test_a_teacher_comes_from_one_place():
  config = get('digits')
  config.teacher.predictions, config.teacher.checkpoints = 'members.npz', ('runs/digits',)
  with pytest.raises(UserError, match='set one of them'):
    configs.validate(config)


def test_factor_models_are_drawn_in_pairs():
  config = get('digits', 'students=all')
  config.student.dlf.samples = 63
  with pytest.raises(UserError, match='samples=63.*even'):
    configs.validate(config)


def test_temperature_is_for_classification():
  config = get('uci')
  config.student.kd.temperature = 2.0
  with pytest.raises(UserError, match='classification'):
    configs.validate(config, 'regression')


@pytest.mark.parametrize('method', ['dlf', 'proxy_endd', 'ced'])
def test_methods_that_read_all_members_at_once_draw_none(method):
  config = get('digits')
  config.students, config.distillation.members_per_step = (method,), 2
  with pytest.raises(UserError, match=f'config.student.{method}: members_per_step: .* set it to 0'):
    configs.validate(config)


def test_scores_in_training_need_a_validation_part():
  config = get('digits')
  config.validation, config.validation_scores = 0.0, 3
  with pytest.raises(UserError, match='validation_scores: there is no validation part: set it to 0'):
    configs.validate(config)
  config.validation_scores = 0
  configs.validate(config)
