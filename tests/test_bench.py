"""The benchmarks count what they say, judge as they say, and run. How fast anything is, is not tested."""

import json
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench
from hydra_jax.nets import cut
from hydra_jax.nets.zoo import resnet


def test_needed_operations_of_an_mlp_by_hand():
  layers = bench.mlp_layers(784, 100, 100, 10)
  forward, no_gradient_of = 2 * (78400 + 10000 + 1000), 2 * 78400
  assert bench.step_flops(layers, 128) == 128 * (3 * forward - no_gradient_of)
  heads = 2 * (78400 + 10000 + 50 * 1000)
  assert bench.step_flops(layers, 128, -1, 50) == 128 * (3 * heads - no_gradient_of)


def test_needed_operations_of_a_resnet_are_what_xla_counts():
  network = cut.multi_head(resnet(10), 0, 1)
  x = jnp.ones((4, 32, 32, 3))
  params, state = jax.eval_shape(network.init, jax.random.key(0), x)
  counted = jax.jit(network.apply).lower(params, state, x).cost_analysis()['flops'] / 4
  forward = 2 * sum(np.prod(layer) for layer in bench.resnet_layers(20))
  # XLA leaves out what falls on padding, and counts norms and activations.
  assert 0.9 < counted / forward < 1.1


def test_medians_and_verdicts():
  row = bench.Row(
    [bench.Contender('a', lambda: None, 6, 'steps'), bench.Contender('b', lambda: None, 1, 'steps')],
    [
      bench.Line('a ÷ b', bench.over('a', 'b'), at_least=3.1),
      bench.Line('b ÷ a', bench.over('b', 'a'), at_most=1 / 3),
      bench.Line('a', lambda rates: rates['a']),
    ],
  )
  seconds = {'a': [2.0, 2.0, 4.0], 'b': [1.0, 2.0, 2.0]}
  found = bench.report('row', row, seconds, judge=True)
  assert [f['rounds'] for f in found] == [[3, 6, 3], [1 / 3, 1 / 6, 1 / 3], [3, 3, 1.5]]
  assert [(f['median'], f['verdict']) for f in found] == [(3, 'missed'), (1 / 3, 'met'), (3, '')]
  assert [(f['least'], f['greatest']) for f in found][0] == (3, 6)
  assert not any(f['verdict'] for f in bench.report('row', row, seconds, judge=False))


def test_grouped_convolutions_are_found():
  def most(groups):
    f = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', feature_group_count=groups)
    return bench.most_groups(jax.jit(f).lower(jnp.ones((1, 4, 5, 5)), jnp.ones((4, 4 // groups, 3, 3))).compile())

  assert most(1) == 1 and most(4) == 4


def test_a_process_says_what_it_found(tmp_path):
  found = {}
  contender = bench.process('twice', 'import sys; print(2 * int(sys.argv[1]))', 21, work=3, unit='rows', found=found)
  contender.run()
  assert (
    found == {'twice': [[42.0]]}
    and bench.printed(found, 'twice') == 42
    and (contender.work, contender.unit) == (3, 'rows')
  )
  with pytest.raises(subprocess.CalledProcessError):
    bench.process('bad', 'raise SystemExit(1)').run()


@pytest.mark.slow
@pytest.mark.parametrize('code', [bench.STREAM, bench.FILE], ids=['batches', 'file'])
def test_memory_of_a_process_is_measured(code, tmp_path, monkeypatch, capsys):
  """In this one, where it is at least what is resident now."""
  np.savez(tmp_path / 'x.npz', x=np.zeros((10, 20), np.float32))
  monkeypatch.setattr(sys, 'argv', ['', str(bench.saved(5, 20)), str(tmp_path / 'x.npz'), '20000'])
  resident = int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text())[1])
  exec(bench.MEASURED.format(code), {})
  assert resident * 0.9 < int(capsys.readouterr().out.split()[-1]) < 2**30
  assert (tmp_path / 'x.npz.csv').exists() == (code == bench.FILE)


@pytest.mark.slow
def test_memory_and_time_of_a_pass_are_measured(tmp_path, monkeypatch, capsys):
  """In this process, as above."""
  x = np.random.default_rng(0).standard_normal((1000, 20), np.float32)
  np.savez(tmp_path / 'x.npz', x=x, y=x[:, 0], x_test=x[:9], y_test=x[:9, 0])
  monkeypatch.setattr(sys, 'argv', ['', str(tmp_path / 'x.npz')])
  exec(bench.PASS, {})
  seconds, kibibytes = map(float, capsys.readouterr().out.split())
  assert seconds > 0 and kibibytes > 2**16


@pytest.mark.slow
def test_it_runs(tmp_path):
  """Rows of each kind that need no other library, with small work; the others say in one line what they need."""
  rows = ['hydra20', 'distil', 'inference', 'evaluation', 'single_prediction', 'chunks', 'scaling', 'serving', 'rows']
  file = tmp_path / 'speed.json'
  run = lambda code, *more: subprocess.run(
    [sys.executable, *code, '--quick', *more], cwd=ROOT, capture_output=True, text=True, timeout=600
  )
  done = run(['-m', 'experiments.bench'], '--output', file, '--only', *rows)
  assert done.returncode == 0, done.stderr
  found = json.loads(file.read_text())
  assert list(found['timings']) == rows
  assert all(np.isfinite(line['median']) and line['median'] > 0 for line in found['lines'])
  (groups,) = [line['median'] for line in found['lines'] if line['line'].startswith('most groups')]
  assert groups == 1
  assert all(line['line'] in file.with_suffix('.md').read_text() for line in found['lines'])
  assert (tmp_path / 'speed-scaling.png').stat().st_size > 10000

  without = (
    'import sys\n'
    'class Without:\n'
    '  def find_spec(self, name, *_):\n'
    '    if name == "torch": raise ModuleNotFoundError(name, name=name)\n'
    'sys.meta_path.insert(0, Without())\n'
    'from experiments import bench\n'
    'sys.exit(bench.main())'
  )
  done = run(['-c', without], '--only', 'mnist')
  assert done.returncode == 2 and 'bench' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr
