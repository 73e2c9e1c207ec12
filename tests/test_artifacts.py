"""Saved parts are data: what is edited in them is refused in one line, and nothing that they name is called."""

import copy
import json
import os
from pathlib import Path
import shutil

from conftest import ROOT
import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from hydra_jax import UserError, cli, data as datasets, store, user_files
from hydra_jax.experiment import artifacts, recipes
from hydra_jax.experiment.config import default_config

WIDTHS = (6, 5)


def config_of(network=None):
  config = default_config()
  config.name, config.teacher.members = 'a', 3
  config.network.teacher = ConfigDict(network or dict(name='mlp', widths=WIDTHS))
  return config


def save(folder: Path, config, data) -> dict:
  """The teacher of a config as a part, untrained; returns its parameters."""
  ((_, recipe),) = [each for each in recipes.recipes_in(config, 'classification', 10) if each[0] == 'ensemble']
  params, state = recipes.phases_of(recipe)[0].network.init(jax.random.key(1), artifacts.example(data))
  folder.parent.mkdir(parents=True, exist_ok=True)
  with store.writing(folder) as new:
    artifacts.save(new, *jax.tree.map(lambda leaf: leaf[None], (params, state)), recipe, 0, [data])
  return params


@pytest.fixture(scope='module')
def data():
  return datasets.load(default_config().data, '', 0)


@pytest.fixture(scope='module')
def part(tmp_path_factory, data):
  """A part, its recipe, and its parameters."""
  folder = tmp_path_factory.mktemp('run') / 'artifacts' / 'labels-a'
  params = save(folder, config_of(), data)
  return folder, json.loads((folder / artifacts.RECIPE).read_text()), params


def sign(folder: Path) -> None:
  """Gives a folder checksums that fit, as somebody would who wants an edit to be taken."""
  (folder / store.MANIFEST).write_text(json.dumps(store._digests(folder)))


def edited(part, tmp_path, content: bytes, signed: bool = True) -> Path:
  """A copy of a part with another recipe."""
  folder = tmp_path / 'run' / 'artifacts' / 'labels-a'
  shutil.copytree(part[0], folder)
  (folder / artifacts.RECIPE).write_bytes(content)
  if signed:
    sign(folder)
  return folder


def changed(recipe: dict, path: str, value) -> bytes:
  """A recipe with another value at a dotted path; none at all for `...`."""
  recipe = copy.deepcopy(recipe)
  *nodes, last = path.split('.')
  node = recipe
  for name in nodes:
    node = node[name]
  node[last] = value
  if value is ...:
    del node[last]
  return json.dumps(recipe).encode()


def test_what_is_saved_is_what_is_loaded(part, data):
  folder, recipe, params = part
  for place in (folder, folder.parents[1]):
    model, key = artifacts.load(str(place), data)
    assert len(model.network.heads) == 3 and key == f'{store.digest(folder)}0'
    for found, expected in zip(jax.tree.leaves(model.params), jax.tree.leaves(params), strict=True):
      np.testing.assert_array_equal(found, expected)
  assert recipe['sources'] == {} and recipe['data'] == [data.fingerprint]


SHELL = 'touch called'
EDITS = {
  # Functions that are no networks of ours.
  'a shell': ('network', {'name': 'os:system'}),
  'a shell by file': ('network', {'name': 'evil.py:make'}),
  'a module': ('network', {'name': 'hydra_jax.nets.stages:mlp', 'widths': [6, 5]}),
  'evaluated': ('network', {'name': '__import__("os").system("touch called")'}),
  'a method': ('method', 'os:system'),
  'a method by file': ('method', 'evil.py:make'),
  'a method by attribute': ('method', 'kd.phases'),
  # Other types.
  'role': ('role', 'owner'),
  'role of a list': ('role', ['teacher']),
  'task': ('task', 'os'),
  'task of a list': ('task', ['classification']),
  'outputs of text': ('outputs', SHELL),
  'outputs of a float': ('outputs', 10.0),
  'outputs of true': ('outputs', True),
  'no outputs': ('outputs', 0),
  'members of nothing': ('members', None),
  'no members': ('members', -1),
  'phase beyond': ('phase', 1),
  'phase before': ('phase', -1),
  'phase of text': ('phase', '0'),
  'data of text': ('data', 'abc'),
  'no data': ('data', []),
  'data of objects': ('data', [{}]),
  'settings of a list': ('settings', []),
  'settings missing': ('training.epochs', ...),
  'settings of text': ('training.batch_size', '3'),
  'settings unknown': ('training.shell', SHELL),
  'settings of the method unknown': ('settings.shell', SHELL),
  'settings out of range': ('training.batch_size', 0),
  'settings nested': ('training.optimizer', {'name': 'adam'}),
  'network of text': ('network', 'mlp'),
  'network of nothing': ('network', None),
  'network without a name': ('network.name', ...),
  'network name of a list': ('network.name', ['mlp']),
  'widths too large': ('network.widths', [10**9]),
  'widths of 300 digits': ('network.widths', [10**300]),
  'widths too many': ('network.widths', [1] * 100_000),
  'widths of text': ('network.widths', ['6', '5']),
  'widths of a number': ('network.widths', 6),
  'widths nested': ('network.widths', [[6, 5]]),
  'widths of 0': ('network.widths', [0, 5]),
  'unknown argument': ('network.dot_general', 'os:system'),
  'argument of text': ('network.homoscedastic', 'yes'),
  'too deep a network': ('network', {'name': 'resnet', 'depth': 6 * 10**8 + 2}),
  'too many members': ('members', 10**9),
  'a key missing': ('members', ...),
  'a key unknown': ('command', SHELL),
  # Legal, but not what the parameters are of.
  'other widths': ('network.widths', [6, 7]),
  'fewer members': ('members', 2),
  'other network': ('network', {'name': 'lenet'}),
  'other task': ('task', 'regression'),
}


@pytest.mark.parametrize('path, value', EDITS.values(), ids=EDITS)
def test_edited_recipes_are_refused_in_one_line_and_call_nothing(part, data, tmp_path, monkeypatch, path, value):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'evil.py').write_text("open('called', 'w')\nmake = None\n")
  recipe = part[1] if path != 'network' else {**part[1], 'outputs': SHELL if value == {'name': 'os:system'} else 10}
  folder = edited(part, tmp_path, changed(recipe, path, value))
  with pytest.raises(UserError) as e:
    artifacts.load(str(folder), data)
  assert str(folder) in str(e.value) and str(e.value).isprintable()
  assert not (tmp_path / 'called').exists()


TEXTS = {
  'list': b'[]',
  'null': b'null',
  'number': b'7',
  'empty object': b'{}',
  'cut': b'{"role": "teacher"',
  'bytes': b'\xff\xfe{}',
  'deep': b'{"role": ' * 50_000 + b'1' + b'}' * 50_000,
  'twice': b'{"role": "teacher", "role": "teacher"}',
  'nan': b'{"role": "teacher", "outputs": NaN}',
  'digits': b'{"outputs": ' + b'1' * 5000 + b'}',
}


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('content', TEXTS.values(), ids=TEXTS)
def test_recipes_that_are_none_are_refused_in_one_line(part, data, tmp_path, content, signed):
  folder = edited(part, tmp_path, content, signed)
  with pytest.raises(UserError) as e:
    artifacts.load(str(folder), data)
  assert str(folder) in str(e.value) and str(e.value).isprintable()
  assert signed or 'first bad file: recipe.json' in str(e.value)  # checksums come first


def test_checksums_come_before_anything_else(part, data, tmp_path):
  folder = edited(part, tmp_path, changed(part[1], 'network', {'name': 'os:system'}), signed=False)
  with pytest.raises(store.Damaged, match='first bad file: recipe.json'):
    artifacts.load(str(folder), data)


OWN = """
from hydra_jax import mlp

def make(outputs, width):
  return mlp(outputs, (width,)){more}
"""


def test_a_function_of_the_users_own_has_to_be_named_by_the_user_and_be_the_same(tmp_path, monkeypatch, data):
  """Named by the config, under whatever path, and with the source that it had."""
  monkeypatch.chdir(tmp_path)
  folder, name = tmp_path / 'artifacts' / 'labels-a', 'net.py:make'
  (tmp_path / 'net.py').write_text(OWN.format(more=''))
  config = config_of(dict(name=name, width=4))
  save(folder, config, data)
  sources = json.loads((folder / artifacts.RECIPE).read_text())['sources']
  assert sources == {'network': user_files.find(name, 'network').digest}
  assert recipes.user_functions(config) == {name: 'network'}

  with pytest.raises(UserError, match=r"its network is 'net.py:make'.*--config.network.teacher.name=net.py:make"):
    artifacts.load(str(folder), data)
  with pytest.raises(UserError, match='what a saved file names is not called'):
    artifacts.load(str(folder), data, own=['other.py:build'])
  model, _ = artifacts.load(str(folder), data, own=[name])
  assert [leaf.shape for leaf in jax.tree.leaves(model.params)][-1] == (3, 4, 10)
  (tmp_path / 'moved').mkdir()
  (tmp_path / 'moved' / 'mine.py').write_text(OWN.format(more=''))
  assert artifacts.load(str(folder), data, own=[f'{tmp_path}/moved/mine.py:make'])[1] == f'{store.digest(folder)}0'

  (tmp_path / 'edited.py').write_text(OWN.format(more='[:]'))
  with pytest.raises(UserError, match="source of 'edited.py:make' is not that with which it was trained"):
    artifacts.load(str(folder), data, own=['edited.py:make'])


@pytest.mark.parametrize(
  'file, content',
  [
    (artifacts.RECIPE, b'[]'),
    (store.MANIFEST, b'null'),
    ('config.json', b'[' * 99_999),
    ('config.json', b'{"name": []}'),
  ],
)
def test_on_the_command_line_it_is_one_line_and_exit_code_2(part, tmp_path, capsys, file, content):
  folder = edited(part, tmp_path, json.dumps(part[1]).encode())
  work = tmp_path / 'work'
  where = folder / file
  if file == 'config.json':
    work.mkdir()
    where = work / file
  where.write_bytes(content)
  teacher = f"--config.teacher.checkpoints=('{folder}',)"
  code = cli.main(['run', f'--config={ROOT}/configs/digits.py', teacher, f'--workdir={work}'])
  said = capsys.readouterr().err
  assert code == 2 and said.startswith('hydra-jax: ') and said.count('\n') == 1
  assert str(where.parent) in said or 'holds a run of' in said
  assert file == 'config.json' or not work.exists()


def test_links_in_a_part_are_refused(part, data, tmp_path):
  folder = edited(part, tmp_path, json.dumps(part[1]).encode())
  (folder / 'model' / 'more').symlink_to('/etc')
  sign(folder)
  with pytest.raises(store.Damaged, match='model/more, which is a link'):
    artifacts.load(str(folder), data)
  assert os.path.isdir('/etc')
