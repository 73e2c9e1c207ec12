"""Configs: every shipped one resolves, and every bad value is answered in one line."""

import importlib.util

from conftest import ROOT
import pytest

from hydra_jax import UserError, config as configs, data as datasets

SHIPPED = ['cifar10', 'cifar100', 'digits', 'external', 'imagenet', 'mnist', 'spiral', 'svhn', 'uci']


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


def test_heads_follow_members_and_not_the_other_way():
  config = get('digits', 'members=5')
  assert config.teacher.members == config.student.hydra.heads == 5
  config.student.hydra.heads = 7
  assert config.teacher.members == 5


def test_sub_arguments():
  config = get('uci', 'energy,members=3,student.hydra.cut=-2,data.shifts=()')
  assert config.data.name == 'uci/energy' and config.student.hydra.cut == -2 and config.data.shifts == ()
  assert get('digits', 'epochs=3').teacher.epochs == 3.0


@pytest.mark.parametrize(
  'argument, word',
  [
    ('member=5', "did you mean 'members'"),
    ('teacher.member=5', "did you mean 'members'"),
    ('members', 'key=value'),
    ('members=many', 'takes a whole number'),
    ('name.x=1', 'no keys of its own'),
  ],
)
def test_bad_sub_arguments(argument, word):
  with pytest.raises(UserError, match=word):
    get('digits', argument)


def test_bad_uci_set():
  with pytest.raises(UserError, match="did you mean 'concrete'"):
    get('uci', 'concret')


@pytest.mark.parametrize(
  'key, value, word',
  [
    ('teacher.members', 0, 'at least 1'),
    ('student.hydra.heads', 0, 'at least 1'),
    ('student.hydra.heads', 7, 'set heads to 20'),
    ('student.hydra.cut', 3, 'choose -3 to 2'),
    ('student.hydra.temperature', 0.0, 'more than 0'),
    ('student.hydra.method', 'hidra', "did you mean 'hydra'"),
    ('student.kd.method', 'ensemble', 'unknown method'),
    ('student.kd.epochs', float('inf'), 'finite'),
    ('student.kd.learning_rate', -1.0, 'more than 0'),
    ('students', ('hydr',), "did you mean 'hydra'"),
    ('students', ('kd', 'kd'), 'twice'),
    ('teacher.optimizer', 'adamm', "did you mean 'adam"),
    ('teacher.schedule', 'cos', "did you mean 'cosine'"),
    ('teacher.batch_size', 0, 'at least 1'),
    ('teacher.weight_decay', 0.1, 'adamw'),
    ('network.teacher.name', 'mpl', "did you mean 'mlp'"),
    ('network.student.widths', (10, -1), 'at least 1'),
    ('replicas', 0, 'at least 1'),
    ('teacher.keep_as', 'float8', "did you mean 'float"),
    ('student.hydra.heads_per_step', 21, 'heads_per_step=21 of 20 heads'),
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
  *path, last = key.split('.')
  node = config
  for name in path:
    node = node[name]
  node[last] = value
  with pytest.raises(UserError, match=word) as error:
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


def test_variants_follow_the_members():
  config = get('digits')
  configs.variant(config, 'deep', cut=-2)
  configs.variant(config, 'few', heads=3, grouping='round_robin')
  config.students, config.teacher.members = ('deep', 'few'), 7
  assert (config.student.deep.heads, config.student.deep.cut, config.student.few.heads) == (7, -2, 3)
  assert config.student.hydra.cut == -1
  configs.validate(config)


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
