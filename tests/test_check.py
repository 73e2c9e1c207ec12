"""What `check` says beforehand is what a run then has."""

import math
import sys

from conftest import DATA_DIR, needs_uci
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hydra_jax import cli, mlp
from hydra_jax.cli import read_config
from hydra_jax.data import about, load
from hydra_jax.devices.layout import make_layout
from hydra_jax.experiment import plan
from hydra_jax.nets import cut
from hydra_jax.nets.mapping import MAPPINGS
from hydra_jax.training.program import head_specs
from hydra_jax.training.step import init_state


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch):
  """Commands set this one, in whose place pytest has its own."""
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)


def config(*more, file='configs/digits.py:members=4'):
  return read_config(file, list(more))


def test_the_plan_is_what_devices_then_hold():
  data, methods = plan.plan_of_config(config('--config.parallel.mesh.head=4'), 8)
  (first, *_, last) = [phase for method in methods for phase in method.phases]
  assert first.mesh == (2, 4, 1) and last.label == 'hydra: members' and last.mesh == (2, 4, 1)
  size = plan.size_of(first, data.shape)
  network = cut.multi_head(mlp(10), 0, 4)
  optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, 2))
  state = init_state(network, optimizer, jax.random.key(0)[None], jnp.zeros((1, 2, 8, 8, 1)))
  state = make_layout('shard_map', first.mesh).put(state, head_specs(state))
  held = sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(state))
  assert size.bytes_per_device == held
  assert size.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
  assert sum(math.prod(shape) for name, shape, *_ in size.leaves if name.startswith('params')) == size.parameters


def only_size(config):
  """Of the one phase of an experiment."""
  data, (method,) = plan.plan_of_config(config, 1)
  (phase,) = method.phases
  return plan.size_of(phase, data.shape)


def test_it_needs_neither_data_nor_devices(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  given = ['check', '--config=configs/cifar10.py:members=4', '--devices=256', '--config.parallel.mesh.head=4']
  assert cli.main([*given, '--config.students=("hydra",)', '--config.network.teacher.depth=8']) == 0
  said = capsys.readouterr().out
  assert '64 × 4' in said and 'fits 256 devices' in said and 'params.heads' in said and 'copied' in said


def test_flops_do_not_depend_on_how_heads_are_mapped():
  """Two for each weight and one for each bias and each ReLU of 4 networks 64-100-100-10, within 2%."""
  found = {}
  for mapping in MAPPINGS:
    given = (f'--config.execution.mapping={mapping}', '--config.students=()')
    found[mapping] = only_size(config(*given)).flops
  weights, units = 64 * 100 + 100 * 100 + 100 * 10, 210
  assert len(set(found.values())) == 1
  np.testing.assert_allclose(found['loop'], 4 * (2 * weights + 2 * units), rtol=0.02)


def test_it_counts_the_members_of_given_predictions(tmp_path):
  """As a run does; the config says 20."""
  random = np.random.default_rng(0)
  arrays = {name: random.normal(size=shape) for name, shape in (('x', (30, 5)), ('x_test', (9, 5)))}
  labels = {'y': np.arange(30) % 3, 'y_test': np.arange(9) % 3}
  np.savez(tmp_path / 'members.npz', **arrays, **labels, logits=random.normal(size=(4, 30, 3)))
  given = ['--config.student.hydra.cut=0', "--config.students=('hydra',)"]
  size = only_size(
    config(f'--config.teacher.predictions={tmp_path / "members.npz"}', *given, file='configs/external.py')
  )
  hidden = 5 * 100 + 100 + 100 * 100 + 100
  assert size.parameters == 4 * (hidden + 100 * 3 + 3)


def test_what_cannot_be_is_refused(capsys):
  for more, words in (
    (['--devices=10', '--config.parallel.mesh.head=4'], 'set it to one of [1, 2, 5, 10]'),
    (['--devices=3', '--config.parallel.mesh.head=3'], 'set that to one of [1]'),
    (['--devices=0'], 'at least 1'),
    (['--config.parallel.mode=pmapp'], "did you mean 'pmap'"),
    (['--config.parallel.mesh.head=0'], 'or -1 for the rest'),
    (["--config.data.ood=('lettres',)"], "did you mean 'letters'"),
    (['--config.student.kd.augment=crp'], "did you mean 'crop'"),
    (['--config.network.student.name=lenet'], 'of at least 16x16'),
  ):
    assert cli.main(['check', '--config=configs/digits.py:members=4', *more]) == 2
    assert words in capsys.readouterr().err


def agrees(data, validation=0.1):
  found = about(data, DATA_DIR, validation)
  assert found == load(data, DATA_DIR, 0, validation).about
  return found


@pytest.mark.parametrize('name', ['digits', 'spiral'])
def test_shapes_are_known_without_the_data(name):
  agrees(config(f'--config.data.name={name}', '--config.data.ood=()', '--config.data.shifts=()').data)


@needs_uci('concrete')
@pytest.mark.parametrize('name', ['concrete', 'energy'])
def test_shapes_of_uci_sets_are_known(name):
  data = config(file=f'configs/uci.py:{name}').data
  assert agrees(data).has_validation and not agrees(data, 0.0).has_validation
  data.train = 'train[:20%]'  # 185 and 138 rows: 18 and 14 for the validation part, which takes 16 at least
  assert agrees(data).has_validation == (name == 'concrete')


@pytest.mark.parametrize('rows, repeated, expected', [(300, 1, True), (100, 1, False), (300, 60, False)])
def test_whether_a_table_has_a_validation_part_is_known(rows, repeated, expected, tmp_path):
  """Rows that are alike stay together, and where none fit in the part there is none."""
  random = np.random.default_rng(0)
  features = np.repeat(random.normal(size=(rows // repeated, 2)), repeated, axis=0)
  np.savetxt(tmp_path / 'a.csv', np.c_[features, features[:, 0]], delimiter=',', header='a,b,y', comments='')
  data = config(f'--config.data.name=csv:{tmp_path}/a.csv?target=y', '--config.data.ood=()', '--config.data.shifts=()')
  assert agrees(data.data).has_validation == expected


def test_shapes_of_miniatures_are_known(miniatures):
  data = config('--config.data.name=cifar100', '--config.data.ood=()', '--config.data.shifts=()').data
  assert about(data, miniatures) == load(data, miniatures, 0).about
