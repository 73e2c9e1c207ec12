"""Networks that a config takes from a file or a module of the user's own."""

import json
import re
import shutil
import sys

from conftest import hydra_jax
import jax
from ml_collections import ConfigDict
import numpy as np
import pytest

from hydra_jax import UserError, chain, store, user_files
from hydra_jax.experiment import config as configs
from hydra_jax.experiment.config import build_stages, default_config

X = np.zeros((2, 8, 8), np.float32)

FILE = """\
from __future__ import annotations
from functools import partial
import equinox as eqx
from flax import linen as nn, nnx
import hydra_jax
import layers

class Block(nnx.Module):
  def __init__(self, width: int, *, rngs):
    self.dense = nnx.Linear(64, width, rngs=rngs)
    self.norm = nnx.BatchNorm(width, rngs=rngs)

  def __call__(self, x):
    return nnx.relu(self.norm(self.dense(x)))

def make(outputs: int, width: int = 8) -> list:
  head = hydra_jax.from_equinox(partial(eqx.nn.Linear, width, outputs))
  return [layers.Flat(), hydra_jax.from_nnx(partial(Block, width)), head]

def narrow(outputs):
  return make(outputs)[:2]

def apart(outputs, width=8):
  return [*make(outputs)[:2], hydra_jax.from_linen(layers.Flat()), hydra_jax.from_nnx(partial(nnx.Linear, 9, outputs))]

def fails(outputs):
  return outputs / 0

def one(outputs):
  return hydra_jax.from_linen(layers.Flat())

def bare(outputs):
  return [nnx.Linear(64, outputs, rngs=nnx.Rngs(0))]

def nothing(outputs):
  return []
"""

LAYERS = """\
from flax import linen as nn

class Flat(nn.Module):
  size: int = 64

  def __call__(self, x):
    return x.reshape(x.shape[0], -1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory with a user's files."""
  (tmp_path / 'mine.py').write_text(FILE)
  (tmp_path / 'layers.py').write_text(LAYERS)
  (tmp_path / 'broken.py').write_text('def make(:\n')
  (tmp_path / 'package').mkdir()
  (tmp_path / 'package' / '__init__.py').write_text('from package.networks import make\n')
  shutil.copy(tmp_path / 'mine.py', tmp_path / 'package' / 'networks.py')
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)
  before = set(sys.modules)
  yield tmp_path
  forget(before)


def forget(before):
  """As a new process would see the files."""
  user_files.find.cache_clear()
  for name in {n for n in sys.modules if n.partition('.')[0] in ('mine', 'layers', 'package')} - before:
    del sys.modules[name]


def network(name, **arguments):
  return ConfigDict(dict(name=name, **arguments))


@pytest.mark.parametrize('name', ['mine.py:make', 'package.networks:make', 'package:make'])
def test_a_function_by_name(folder, name):
  stages = build_stages(network(name, width=5), 3)
  params, _ = jax.eval_shape(chain(stages).init, jax.random.key(0), X)
  assert len(stages) == 3 and params[2]['weight'].shape == (3, 5)


def test_the_whole_config_is_validated_with_it(folder):
  config = default_config()
  config.name = 'mine'
  for role in ('teacher', 'student'):
    config.network[role] = network('mine.py:make', width=4)
  configs.validate(config)
  configs.set_values(config, [('network.teacher.width', '6')])
  assert config.network.teacher.width == 6


@pytest.mark.parametrize(
  'name, arguments, words',
  [
    ('none.py:make', {}, "no file 'none.py'"),
    ('broken.py:make', {}, r'SyntaxError.*broken.py, line 1'),
    ('nowhere.networks:make', {}, "No module named 'nowhere'"),
    ('mine.py:maek', {}, "no function 'maek'.*did you mean 'make'"),
    ('mine.py:', {}, "no function ''.*choose one of: make, narrow"),
    ('layers:make', {}, "no function 'make'.*none"),
    ('mine.py:make', {'widths': (3,)}, "unexpected keyword argument 'widths'.*takes outputs, width$"),
    ('mine.py:fails', {}, r'ZeroDivisionError.*mine.py, line 27'),
    ('mine.py:one', {}, 'returns a Stage, where a list of stages is needed'),
    ('mine.py:nothing', {}, 'a list of stages is needed'),
    ('mine.py:bare', {}, 'stage 0 is a Linear.*hydra_jax.from_linen, from_nnx or from_equinox'),
    ('mine.py:narrow', {}, r'stage 1, the last one, gives outputs of shape \[8\], not \[3\]'),
    ('mine.py:apart', {}, r'stage 3, on inputs of shape \[8\]: TypeError'),
  ],
)
def test_errors_are_one_line(folder, name, arguments, words):
  with pytest.raises(UserError, match=words) as error:
    chain(build_stages(network(name, **arguments), 3)).init(jax.random.key(0), X)
  assert '\n' not in str(error.value)


def key(name):
  forget(set())
  return store.key_of({'network': configs.identity(network(name, width=5))})


@pytest.mark.parametrize('name', ['mine.py:make', 'package:make'])
@pytest.mark.parametrize('edited', ['mine.py', 'package/networks.py', 'layers.py', 'other.py'])
def test_a_result_depends_on_the_source(folder, name, edited):
  before = key(name)
  assert key(name) == before
  with open(folder / edited, 'a') as f:
    f.write('#\n')
  of_this = edited == 'layers.py' or (edited == 'mine.py') == (name == 'mine.py:make')
  assert (key(name) != before) == (of_this and edited != 'other.py')


def test_the_library_is_not_part_of_it(folder):
  origin = user_files.find('mine.py:make', 'network')
  assert [re.split(r'[\\/]', file)[-1] for file in origin.files] == ['mine.py', 'layers.py']


def test_keys_of_networks_of_the_library_are_as_they_were():
  plain = default_config().network.teacher
  assert store.key_of({'network': configs.identity(plain)}) == store.key_of({'network': plain})


TINY = (
  '--config=my_config.py:members=2,epochs=1,student.hydra.hinton_epochs=0,student.hydra.epochs=1',
  "--config.students=('hydra',)",
)
CONFIG = """\
from hydra_jax.experiment.config import apply_argument, default_config
from ml_collections import ConfigDict

def get_config(argument=None):
  config = default_config()
  config.name = 'mine'
  config.network.teacher = ConfigDict(dict(name='package:make', width=8))
  config.network.student = ConfigDict(dict(name='mine.py:make', width=8))
  return apply_argument(config, argument)
"""


@pytest.mark.slow
def test_a_run_with_networks_of_the_users_own(folder):
  (folder / 'my_config.py').write_text(CONFIG)
  run = lambda *more: hydra_jax('run', *TINY, '--workdir=run', *more, cwd=folder)
  done = run('--config.network.student.name=mine.py:apart')  # seen before the teachers are trained
  assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and 'stage 3' in done.stderr
  assert not (folder / 'run').exists()
  done = run()
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in (folder / 'run' / 'results.jsonl').read_text().splitlines()]
  assert {r['method'] for r in found} == {'ensemble', 'hydra'} and all(np.isfinite(r['value']) for r in found)
  (folder / 'mine.py').write_text(FILE.replace('nnx.relu', 'nnx.gelu'))
  done = run()
  assert done.returncode == 0 and 'ensemble of 2: reused' in done.stdout
  assert 'hydra: members: reused' not in done.stdout
