"""Several processes on one machine, as a cluster would start them, and what happens when some of them end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from conftest import ROOT, command, hydra_jax
import numpy as np
import pytest

from hydra_jax import UserError, processes

pytestmark = pytest.mark.slow

# Long enough to be stopped in the middle, and tame: other sums on other meshes stay rounding errors.
CONFIG = ['--config=configs/digits.py:members=4,epochs=40', "--config.students=('hydra',)", '--config.data.shifts=()']
CONFIG += ['--config.teacher.learning_rate=1e-4', '--config.student.hydra.learning_rate=1e-4']
CONFIG += ['--config.student.hydra.epochs=2', '--config.student.hydra.hinton_epochs=2']
CONFIG += ['--config.checkpoint_seconds=0.3', "--config.data.ood=('noise',)"]


def start(count, devices, workdir, *more):
  """So many runs that are one, with so many devices each."""
  return launch(count, devices, workdir, command('run', *CONFIG, *more, f'--workdir={workdir}'))


def launch(count, devices, place, what):
  """So many processes with so many devices each; what they say goes to files beside `place`."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = os.environ | {
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': str(count),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
  }
  started = []
  for index in range(count):
    log = open(place.with_name(f'log-{count}-{index}'), 'w+')
    own = env | {'JAX_PROCESS_ID': str(index)}
    started.append((subprocess.Popen(what, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=own), log))
  return started


def finish(started, seconds=300):
  """Exit codes, and what each process said."""
  codes = [process.wait(seconds) for process, _ in started]
  said = []
  for _, log in started:
    log.seek(0)
    said.append(log.read())
    log.close()
  return codes, said


def checkpoints(workdir):
  return set(workdir.glob('parts/*.progress/[0-9]*'))


def until_saved(started, workdir, besides=()):
  """Waits for a checkpoint that is not one of `besides`."""
  while not checkpoints(workdir) - set(besides):
    assert all(process.poll() is None for process, _ in started), finish(started)
    time.sleep(0.02)


def results(workdir):
  rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  return {(row['data'], row['method'], row['metric']): row['value'] for row in rows}


def test_stopped_killed_and_moved_it_ends_with_the_same_numbers(tmp_path):
  """4 processes, one gets SIGTERM; 2 processes on another mesh, one gets SIGKILL; 2 on yet another one finish."""
  alone, moved = tmp_path / 'alone', tmp_path / 'moved'
  done = hydra_jax('run', *CONFIG, f'--workdir={alone}')
  assert done.returncode == 0, done.stderr

  four = start(4, 1, moved, '--config.parallel.mesh.head=2')
  until_saved(four, moved)
  four[2][0].send_signal(signal.SIGTERM)
  codes, said = finish(four)
  assert codes == [75] * 4, said
  assert 'the same command continues' in said[0]
  saved = checkpoints(moved)

  two = start(2, 2, moved, '--config.parallel.mesh.head=4')
  until_saved(two, moved, saved)
  two[1][0].kill()
  killed = time.monotonic()
  codes, said = finish(two)
  assert 'continues at step' in said[0]
  # Now and then Gloo, on CPUs, throws where nobody can catch it, and the process ends by SIGABRT before it can say why.
  assert codes[0] == -signal.SIGABRT or (codes[0] == 76 and 'another process' in said[0]), said
  assert time.monotonic() - killed < 60

  last = start(2, 2, moved, '--config.parallel.mesh.head=1')
  codes, said = finish(last)
  assert codes == [0, 0], said
  assert 'continues at step' in said[0] and 'everything is in' in said[0] and 'everything is in' not in said[1]
  assert not list(moved.rglob('.new-*')) and not list(moved.rglob('*.progress'))
  expected, found = results(alone), results(moved)
  assert set(expected) == set(found)
  for key, value in expected.items():
    if key[1:] in (('hydra', f'{measure}_model') for measure in ('auroc', 'aupr', 'fpr95')):
      continue  # after two epochs heads differ by little more than rounding
    np.testing.assert_allclose(found[key], value, rtol=1e-2, atol=5e-3, err_msg=str(key))


def test_arrays_and_streams_are_the_same_on_any_mesh_of_processes(tmp_path):
  """And a process reads no more of a stream than its devices need."""
  codes, said = finish(launch(2, 2, tmp_path / 'log', [sys.executable, 'tests/spread.py']))
  assert codes == [0, 0], said
  assert all('all the same' in each for each in said)


def test_what_the_user_did_wrong_is_said_once_and_ends_all(tmp_path):
  both = start(2, 1, tmp_path / 'run', '--config.parallel.mesh.head=3')
  codes, said = finish(both, 120)
  assert codes[0] == 2 and 'set it to one of [1, 2]' in said[0] and 'Traceback' not in said[0]
  assert 0 not in codes and not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'env, words',
  [
    ({'JAX_NUM_PROCESSES': '2'}, 'set all'),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2', 'JAX_COORDINATOR_ADDRESS': 'h:1'}, 'from 0 to 1'),
    ({'JAX_NUM_PROCESSES': 'two', 'JAX_PROCESS_ID': '0', 'JAX_COORDINATOR_ADDRESS': 'h:1'}, 'whole numbers'),
  ],
)
def test_a_cluster_that_is_half_described_is_refused(env, words, monkeypatch):
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=words):
    processes.join()


@pytest.mark.parametrize(
  'env, many',
  [
    ({}, False),
    ({'SLURM_STEP_NODELIST': 'a[1-2]', 'SLURM_NTASKS': '8'}, True),
    ({'SLURM_STEP_NODELIST': 'a1', 'SLURM_NTASKS': '1'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'MEGASCALE_NUM_SLICES': '2'}, True),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}, True),
  ],
)
def test_a_cluster_is_recognised(env, many, monkeypatch):
  for name in ('SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES', 'MEGASCALE_NUM_SLICES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in env.items():
    monkeypatch.setenv(name, value)
  assert processes.are_many() == many
