"""Several processes on one machine, as a cluster would start them, and what happens when some of them end."""

import json
import os
from pathlib import Path
import shutil
import signal
import socket
import subprocess
import sys
import time

from conftest import ROOT, TINY, command, hydra_jax, start as start_one
import numpy as np
import pytest
from tracked import in_tensorboard

from experiments import soak_two
from hydra_jax import UserError, cli, store
from hydra_jax.devices import processes

pytestmark = pytest.mark.slow

# Long enough to be stopped in the middle, and tame: other sums on other meshes stay rounding errors.
CONFIG = ['--config=configs/digits.py:members=4,epochs=40', "--config.students=('hydra',)", '--config.data.shifts=()']
CONFIG += ['--config.teacher.learning_rate=1e-4', '--config.student.hydra.learning_rate=1e-4']
CONFIG += ['--config.student.hydra.epochs=2', '--config.student.hydra.hinton_epochs=0']
CONFIG += ['--config.checkpoint_seconds=0.3', "--config.data.ood=('noise',)", '--config.validation_scores=3']
# Where nothing is to be stopped.
SELDOM = '--config.checkpoint_seconds=100.0'


def start(count, devices, workdir, *more):
  """`count` processes of one run, with `devices` devices each."""
  return launch(count, devices, workdir, command('run', *CONFIG, *more, f'--workdir={workdir}'))


def launch(count, devices, place, what, own=lambda index: {}, port=None):
  """Starts `count` processes with `devices` devices each; what they say goes to files beside `place`.

  `own(index)` is what is passed to `conftest.start` for one of them.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = port or free.getsockname()[1]
  env = os.environ | {
    'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
    'JAX_NUM_PROCESSES': str(count),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
  }
  started = []
  for index in range(count):
    log = open(place.with_name(f'log-{count}-{index}'), 'w+')
    how = dict(what=what, environment=env | {'JAX_PROCESS_ID': str(index)}) | own(index)
    started.append((start_one(out=log, err=log, **how), log))
  return started


def finish(started, seconds=300):
  """Exit codes, and what each process said; what has not ended by then is killed."""
  until = time.monotonic() + seconds
  while any(process.poll() is None for process, _ in started) and time.monotonic() < until:
    time.sleep(0.05)
  codes = [process.poll() for process, _ in started]
  for process, _ in started:
    process.kill()
    process.wait()
  said = []
  for _, log in started:
    log.seek(0)
    said.append(log.read())
    log.close()
  return codes, said


def checkpoints(workdir):
  return set(workdir.glob('artifacts/*.progress/[0-9]*'))


def until_saved(started, workdir, besides=()):
  """Waits for a checkpoint that is not one of `besides`."""
  while not checkpoints(workdir) - set(besides):
    assert all(process.poll() is None for process, _ in started), finish(started)
    time.sleep(0.02)


def results(workdir):
  rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  return {(row['split'], row['method'], row['metric']): row['value'] for row in rows}


def test_stopped_killed_and_moved_it_ends_with_the_same_numbers(tmp_path):
  """2 processes, one gets SIGTERM; the same on another mesh, one gets SIGKILL; one process alone finishes."""
  alone, moved = tmp_path / 'alone', tmp_path / 'moved'
  done = hydra_jax('run', *CONFIG, SELDOM, f'--workdir={alone}')
  assert done.returncode == 0, done.stderr

  tracked = '--config.trackers=tensorboard'
  first = start(2, 2, moved, '--config.parallel.mesh.head=2', tracked)
  until_saved(first, moved)
  first[1][0].send_signal(signal.SIGTERM)
  codes, said = finish(first)
  assert codes == [75] * 2, said
  assert 'the same command continues' in said[0]
  saved = checkpoints(moved)

  two = start(2, 2, moved, '--config.parallel.mesh.head=4', '--lost_after=10', tracked)
  until_saved(two, moved, saved)
  two[1][0].kill()
  killed = time.monotonic()
  codes, said = finish(two)
  assert 'continues at step' in said[0]
  # Now and then Gloo, on CPUs, throws where nobody can catch it, and the process ends by SIGABRT before it can say why.
  assert codes[0] == -signal.SIGABRT or (codes[0] == 76 and 'the same command' in said[0]), said
  assert time.monotonic() - killed < 60

  last = start(1, 2, moved, '--config.parallel.mesh.head=1', SELDOM, tracked)
  codes, said = finish(last)
  assert codes == [0], said
  assert 'continues at step' in said[0] and 'everything is in' in said[0]
  assert not list(moved.rglob(f'{store.NEW}*')) and not list(moved.rglob('*.progress'))
  lines = [json.loads(line) for line in (moved / 'metrics.jsonl').read_text().splitlines()]
  for phase in {line['phase'] for line in lines}:  # neither a gap nor a step twice
    scored = [line['step'] for line in lines if line['phase'] == phase and 'validation' in line]
    of_phase = [line for line in lines if line['phase'] == phase and 'loss' in line]
    assert scored == [round(of_phase[-1]['steps'] * i / 3) for i in (1, 2, 3)]
    assert np.diff([0, *(line['step'] for line in of_phase)]).tolist() == [line['count'] for line in of_phase]
    assert of_phase[-1]['step'] == of_phase[-1]['steps']
  curves = in_tensorboard(moved / 'tensorboard')
  assert {'ensemble_of_4', 'hydra/members'} < curves.keys()
  for points in curves.values():
    for name in {name for name, _, _ in points}:
      steps = [step for tag, step, _ in points if tag == name]
      assert steps == sorted(set(steps)), name  # no step twice; after a kill the last seconds may lack
  assert curves['hydra/members'][-1][1] == max(line['step'] for line in lines if line['phase'] == 'hydra: members')
  expected, found = results(alone), results(moved)
  assert set(expected) == set(found)
  for key, value in expected.items():
    if key[1:] in (('hydra', f'{measure}_uncertainty_epistemic') for measure in ('auroc', 'aupr', 'fpr95')):
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


def test_processes_that_differ_train_nothing_and_say_in_what(tmp_path):
  codes, said = finish(launch(2, 1, tmp_path / 'log', [sys.executable, 'tests/agree.py', tmp_path]))
  assert codes == [0, 0], said
  lines = [dict(line.split(': ', 1) for line in each.splitlines() if ': ' in line) for each in said]
  words = {
    'seed': 'config.seed (0 in process 0, 1 in process 1)',
    'value': 'config.data.shifts ([] in process 0, ["rotate:1"] in process 1), config.teacher.learning_rate (0.1 in',
    'function': "the source of 'net.py:make' (",
    'y_test': "the data of 'test' (",
    'x': 'the training data (',
    'x_far': "the data of 'far' (",
    'workdir': f'the work directory: process 1 does not see in {tmp_path}/process-1/',
    'table': 'spiral: config.replicas (1 in process 0, 2 in process 1)',
    'source': 'the source of hydra_jax (source0 in process 0, source1 in process 1)',
    'command': 'the command (run in process 0, table in process 1), --replicas (None in process 0, 3 in process 1)',
    'place': "the processes are not at the same place (process 0 at 'train', process 1 at 'report')",
    'nothing': 'went on',
  }
  for what, expected in words.items():
    for each in lines:
      assert expected in each[what], (what, each)
      assert what in ('nothing', 'place') or 'the processes differ in' in each[what]
  assert not list(tmp_path.rglob('recipe.json')) and not (tmp_path / 'work').exists()


def test_another_seed_in_one_process_is_exit_code_2_in_all(tmp_path):
  work = tmp_path / 'run'
  what = lambda index: {'what': command('run', *CONFIG, f'--workdir={work}', f'--config.seed={index}')}
  codes, said = finish(launch(2, 1, work, None, what), 120)
  assert codes == [2, 2], said
  line = 'hydra-jax: the processes differ in config.seed (0 in process 0, 1 in process 1): start the same command'
  assert all(line in each and 'Traceback' not in each for each in said) and not work.exists()


def test_what_is_wrong_in_one_process_ends_all_with_its_line(tmp_path):
  for index in range(2):
    (tmp_path / f'{index}').mkdir()
  random = np.random.default_rng(0)
  arrays = {f'{k}{part}': random.normal(size=(30, 2)) for k in 'xy' for part in ('', '_test')}
  np.savez(tmp_path / '0' / 'data.npz', **arrays)
  what = [*command('run', *CONFIG, f'--workdir={tmp_path / "run"}', '--config.data.name=data.npz')]
  what = [each.replace('=configs/', f'={ROOT}/configs/') for each in what if 'students' not in each]
  what += ['--config.students=()', '--config.validation_scores=0']  # 30 rows have no validation part
  started = launch(2, 1, tmp_path / 'log', what, lambda index: {'cwd': tmp_path / f'{index}'})
  codes, said = finish(started, 120)
  assert codes == [2, 2], said
  assert 'hydra-jax: process 1 has ended: ' in said[0] and 'data.npz' in said[0] and 'Traceback' not in said[0]
  assert not (tmp_path / 'run').exists()


def stopped(started, index):
  started[index][0].send_signal(signal.SIGSTOP)
  return time.monotonic()


def test_a_stopped_process_is_lost_and_the_others_say_so(tmp_path):
  """The one that is stopped ends too, when it is continued; and the same command continues what all have saved."""
  both = start(2, 1, tmp_path / 'run', '--lost_after=3')
  until_saved(both, tmp_path / 'run')
  at = stopped(both, 1)
  assert both[0][0].wait(120) == 76
  assert time.monotonic() - at < 60
  both[1][0].send_signal(signal.SIGCONT)
  both[1][0].wait(120)
  codes, said = finish(both)
  assert 'process 1 is lost, silent for 3 s: the same command, on all, continues' in said[0], said
  assert codes[1] != 0 and checkpoints(tmp_path / 'run')


def test_a_stopped_first_process_is_lost_too(tmp_path):
  """Though it is the one through which the others talk."""
  waits = 'from hydra_jax.devices import processes; processes.join(3); processes.barrier(); print("met", flush=True); '
  waits += 'import time; time.sleep(999 * (processes.global_state.process_id == 0)); processes.barrier()'
  three = launch(3, 1, tmp_path / 'log', [sys.executable, '-c', waits])
  while not all('met' in (tmp_path / f'log-3-{i}').read_text() for i in range(3)):
    assert all(process.poll() is None for process, _ in three), finish(three)
    time.sleep(0.05)
  at = stopped(three, 0)
  codes = [three[i][0].wait(120) for i in (1, 2)]
  assert time.monotonic() - at < 60
  _, said = finish(three, 0)
  assert codes == [76, 76], said
  assert all('process 0 is lost, silent for 3 s' in each for each in said[1:]), said


@pytest.mark.parametrize(
  'now, answered, heard, ended, lost',
  [
    (13.0, 12.9, {0: 12.5, 1: 12.6, 2: 9.0}, (), 2),
    (13.0, 12.9, {0: 12.5, 1: 12.6, 2: 9.0}, (2,), None),
    (13.0, 12.9, {0: 9.0, 1: 12.6, 2: 12.5}, (), 0),  # its store answers, and it does not
    # The store does not answer: process 2, heard a bit earlier than process 0, is not the one that is lost.
    (13.0, 10.2, {0: 10.1, 1: 10.1, 2: 9.9}, (), None),
    (13.3, 10.2, {0: 10.1, 1: 10.1, 2: 9.9}, (), 0),
  ],
)
def test_the_process_that_is_lost_is_named(now, answered, heard, ended, lost):
  assert processes._lost(now, answered, heard, ended, 3.0) == lost


def test_a_process_lost_while_a_part_is_restored_says_nothing_of_damage(tiny_run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run[0], workdir)
  what = [sys.executable, 'tests/lost.py', 'run', *TINY, '--config.student.kd.epochs=3', f'--workdir={workdir}']
  codes, said = finish(launch(2, 1, workdir, [*what, '--lost_after=5']), 200)
  assert codes[1] == -signal.SIGKILL and codes[0] in (76, -signal.SIGABRT), said  # for the latter, see above
  assert 'ensemble of 3: reused' in said[0]
  assert 'delete' not in said[0] and 'damaged' not in said[0]
  assert codes[0] != 76 or 'hydra-jax: ' in said[0]
  for folder in workdir.glob('artifacts/labels-*'):
    store.verify(folder)


def test_a_process_that_is_killed_changes_no_result(monkeypatch, capsys):
  """The other says so in time, and the same command goes on."""
  own = lambda command, log, environment: start_one(command, log, log, environment=environment)
  monkeypatch.setattr(soak_two, 'start', own)
  monkeypatch.setattr(soak_two, 'CONFIG', [*soak_two.CONFIG])
  code = soak_two.main(['--faults=1', '--seed=7', '--quick', '--lost_after=5'])
  said = capsys.readouterr().out
  assert code == 0, said
  assert 'SIGKILL of process 1: 1 faults' in said and '1 faults, ' in said and '0 lost' in said


def test_a_port_that_another_program_has_taken_is_said_by_all(tmp_path):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    begun = time.monotonic()
    both = launch(2, 1, tmp_path / 'run', command('run', *CONFIG), port=taken.getsockname()[1])
    codes, said = finish(both, 120)
  assert codes == [2, 2], said
  assert 'another program listens on that port' in said[0] and 'is another program' in said[1]
  assert all('Traceback' not in each for each in said) and time.monotonic() - begun < 60


@pytest.mark.parametrize('lost', [0, 1])
def test_a_process_that_nobody_joins_ends_with_code_76(tmp_path, lost):
  """Before JAX, which would end it by SIGABRT."""
  waits = 'import sys; from hydra_jax import cli; from hydra_jax.devices import processes; processes.JOIN_SECONDS = 3; '
  what = [sys.executable, '-c', waits + 'sys.exit(cli.main(sys.argv[1:]))', *command('run', *CONFIG)[3:]]
  both = launch(2, 1, tmp_path / 'run', [*what, f'--workdir={tmp_path / "run"}'])
  both[lost][0].kill()
  codes, said = finish(both, 60)
  assert codes[1 - lost] == 76, said
  assert 'not all 2 processes have joined within 3 s' in said[1 - lost] and 'Traceback' not in said[1 - lost]


@pytest.mark.parametrize('index', [0, 1])
def test_a_process_that_waits_for_the_others_hears_sigterm(tmp_path, index):
  """As process 0, and where process 0 does not answer."""
  started = launch(2, 1, tmp_path / 'run', command('run', *CONFIG))
  started[1 - index][0].kill()
  started[1 - index][0].wait()
  while not listens(started[index][0].pid):
    time.sleep(0.02)
  time.sleep(8)  # imports JAX, and waits
  started[index][0].send_signal(signal.SIGTERM)
  codes, said = finish(started, 60)
  assert codes[index] == 75 and 'the same command continues' in said[index], said


def listens(pid):
  """Whether a process has a handler for SIGTERM."""
  (caught,) = [line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('SigCgt')]
  return bool(int(caught.split()[1], 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='no /proc here')
def test_sigterm_in_the_first_seconds_is_a_request_to_stop_as_later(tmp_path):
  """From before JAX is imported, at moments all over the imports."""
  probe = 'import sys, hydra_jax.cli; print("jax" in sys.modules, "numpy" in sys.modules)'
  done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True, cwd=ROOT)
  assert done.stdout.split() == ['False', 'False'], done.stderr
  console = 'import sys; from hydra_jax.cli import command; sys.exit(command())'
  for i, seconds in enumerate((0, 0.1, 0.3, 0.6, 1.0, 1.5)):
    what = command('run', *CONFIG, f'--workdir={tmp_path / "run"}')
    what = what if i % 2 else [sys.executable, '-c', console, *what[3:]]
    process = subprocess.Popen(what, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not listens(process.pid):
      assert process.poll() is None
      time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and 'the same command continues' in err and 'Traceback' not in err, (seconds, err)


def test_a_work_directory_that_is_removed_during_a_run_is_noticed(tmp_path):
  work = tmp_path / 'run'
  with open(tmp_path / 'out', 'w') as out, open(tmp_path / 'err', 'w') as err:
    process = start_one(command('run', *CONFIG, f'--workdir={work}'), out, err)
  while not checkpoints(work):
    assert process.poll() is None
    time.sleep(0.02)
  shutil.rmtree(work, ignore_errors=True)
  code = process.wait(200)
  out, err = (tmp_path / 'out').read_text(), (tmp_path / 'err').read_text()
  assert code == 2, out + err
  assert 'was removed, renamed or replaced during the run' in err and err.count('\n') == 1
  assert 'everything is in' not in out and not list(tmp_path.rglob('results.jsonl'))


@pytest.mark.parametrize('many, code, words', [(False, 2, 'barrier'), (True, 76, 'the same command continues')])
def test_a_timeout_is_a_lost_process_and_no_fault_of_the_disk(monkeypatch, capsys, many, code, words):
  """Though it is an `OSError`."""

  def timed_out(*_):
    raise TimeoutError('barrier timed out\nmore of it')

  left = []
  monkeypatch.setattr(cli, 'run', timed_out)
  monkeypatch.setattr(cli, '_are_many', lambda: many)
  monkeypatch.setattr(processes, 'exit_now', lambda code, line: left.append((code, line)))
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  assert cli.main(['run', '--config=configs/digits.py']) == code
  said = capsys.readouterr().err
  assert words in said and said.count('\n') == 1 and 'disk' not in said
  assert [c for c, _ in left] == [76] * many


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
