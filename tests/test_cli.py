"""Whatever a user can get wrong: one line, exit code 2, no traceback, nothing half-written."""

import errno
import os
from pathlib import Path
import shutil
import subprocess
import sys

from conftest import ROOT, TINY, command, hydra_jax
import pytest

from hydra_jax import cli, store

pytestmark = pytest.mark.slow


def refused(*arguments, word, **kwargs):
  """Runs a command that must be refused in one line."""
  done = hydra_jax(*arguments, **kwargs)
  assert done.returncode == 2, done.stdout + done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('hydra-jax: '), done.stderr
  assert word in lines[0], lines[0]
  return done


@pytest.mark.parametrize(
  'arguments, word',
  [
    (['--config=configs/digit.py'], 'configs/digits.py'),
    (['--config=configs/digits.py:member=3'], "did you mean 'members'"),
    (['--config=configs/digits.py', '--config.student.hydra.head=3'], 'Did you mean "heads"'),
    (['--config=configs/digits.py', '--config.student.hydra.zzz=3'], "unknown config key 'zzz'"),
    (['--config=configs/digits.py', '--config.teacher.members=2.5'], 'config.teacher.members'),
    (['--config=configs/digits.py', '--config.teacher.members=0'], 'at least 1'),
    (['--config=configs/digits.py', '--config.student.hydra.heads=0'], 'at least 1'),
    (['--config=configs/digits.py', '--config.student.hydra.heads=7'], 'set heads to 20'),
    (['--config=configs/digits.py', '--config.data.name=digit'], "did you mean 'digits'"),
    (['--config=configs/digits.py', '--config.student.kd.method=kda'], "did you mean 'kd'"),
    (['--config=configs/digits.py', '--config.data.name=zzz'], "unknown data set 'zzz'"),
    (['--config=configs/digits.py', '--confg.seed=3'], 'confg'),
    (['--config=configs/digits.py', 'seed=3'], 'seed=3'),
    (['--config=configs/mnist.py', '--data_dir=/nowhere'], 'hydra-jax prepare mnist'),
    (['--config=configs/imagenet.py', '--data_dir=/nowhere'], 'hydra-jax prepare imagenet2012'),
    (['--config=configs/digits.py', "--config.data.ood=('fashion_mnist',)", '--data_dir=/nowhere'], 'prepare fashion'),
  ],
)
@pytest.mark.filterwarnings('ignore:the load_module')  # of ml_collections
def test_bad_input(tmp_path, monkeypatch, capsys, arguments, word):
  """Without a process for each; those below are processes."""
  workdir = tmp_path / 'run'
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  assert cli.main(['run', *arguments, f'--workdir={workdir}']) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith('hydra-jax: ') and word in line
  assert not workdir.exists()


def test_prepare_without_tensorflow_or_with_a_wrong_name(tmp_path):
  refused('prepare', 'uci/concret', f'--data_dir={tmp_path}', word="did you mean 'concrete'")
  refused('prepare', 'mnist', f'--data_dir={tmp_path}', word='hydra_jax[prepare]')
  assert not list(tmp_path.iterdir())


def test_work_directory_of_another_config(tiny_run, tmp_path):
  workdir, _ = tiny_run
  before = (workdir / 'results.jsonl').read_bytes()
  refused('run', '--config=configs/spiral.py', f'--workdir={workdir}', word="holds a run of 'digits'")
  assert (workdir / 'results.jsonl').read_bytes() == before
  (tmp_path / 'thesis.tex').write_text('x')
  refused('run', '--config=configs/digits.py', f'--workdir={tmp_path}', word='not empty')
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_training_that_diverges(tmp_path):
  arguments = (*TINY, '--config.teacher.learning_rate=1e38')
  done = refused('run', *arguments, f'--workdir={tmp_path / "run"}', word='not finite at step')
  assert "in phase 'ensemble of 3'" in done.stderr
  assert not list((tmp_path / 'run' / 'parts').iterdir())


@pytest.mark.parametrize(
  'part, file, damage',
  [
    ('labels-*', 'model/**/d/*', 'change'),
    ('predictions-*', 'predictions.npy', 'truncate'),
  ],
)
def test_damaged_parts(tiny_run, tmp_path, part, file, damage):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run[0], workdir)
  path = max(next(workdir.glob(f'parts/{part}')).glob(file), key=lambda p: p.stat().st_size)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2] if damage == 'truncate' else content[:-9] + b'corrupted')
  results = (workdir / 'results.jsonl').read_bytes()
  done = refused('run', *TINY, f'--workdir={workdir}', word='is damaged')
  assert (workdir / 'results.jsonl').read_bytes() == results
  shutil.rmtree(Path(done.stderr.split()[1]))  # as the message says
  again = hydra_jax('run', *TINY, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  assert (workdir / 'results.jsonl').read_bytes() == results


def test_no_room_for_a_file(tiny_run, tmp_path):
  """A run that cannot write stops in one line and keeps what is complete; with room it goes on."""
  workdir = tmp_path / 'run'
  limited = ['bash', '-c', 'ulimit -f 60; exec "$@"', '-', *command('run', *TINY, f'--workdir={workdir}')]
  done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert not list(workdir.rglob(f'{store.NEW}*'))
  again = hydra_jax('run', *TINY, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  assert (workdir / 'results.jsonl').read_bytes() == (tiny_run[0] / 'results.jsonl').read_bytes()


@pytest.fixture
def mounted(tmp_path):
  """Mounts a small file system of its own; needs the rights to."""
  places = []

  def mount(options):
    place = tmp_path / f'disk{len(places)}'
    place.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', place], capture_output=True)
    if done.returncode:
      pytest.skip('mounting a file system needs root; test_no_room_for_a_file covers the rest')
    places.append(place)
    return place

  yield mount
  for place in places:
    subprocess.run(['umount', place], check=True)


def test_full_disk(tiny_run, mounted):
  disk = mounted('size=300k')
  refused('run', *TINY, f'--workdir={disk / "run"}', word='the disk is full')
  assert not list(disk.rglob(f'{store.NEW}*'))
  subprocess.run(['mount', '-o', 'remount,size=50m', disk], check=True)
  again = hydra_jax('run', *TINY, f'--workdir={disk / "run"}')
  assert again.returncode == 0, again.stderr
  assert (disk / 'run' / 'results.jsonl').read_bytes() == (tiny_run[0] / 'results.jsonl').read_bytes()


def test_read_only_disk(mounted):
  refused('run', *TINY, f'--workdir={mounted("ro") / "run"}', word='read-only')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere; test_read_only_disk runs instead')
def test_no_permission(tmp_path):
  tmp_path.chmod(0o555)
  refused('run', *TINY, f'--workdir={tmp_path / "run"}', word='permission denied')


UNHEARD = """
import asyncio, gc
from hydra_jax import cli
cli.set_up()
failed = asyncio.new_event_loop().create_future()
failed.set_exception(OSError(28, 'No space left on device'))
async def write(): pass
begun = write()
del failed, begun
gc.collect()
"""


def test_only_the_first_of_several_failed_writes_is_shown():
  """Orbax raises one; asyncio would print the others, each with its traceback, and those it never began."""
  done = subprocess.run([sys.executable, '-c', UNHEARD], cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_disk_messages_are_for_known_errors():
  from hydra_jax.cli import DISK

  assert {errno.ENOSPC, errno.EROFS, errno.EACCES} <= set(DISK)
