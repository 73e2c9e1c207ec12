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


@pytest.fixture
def in_process(monkeypatch, tmp_path):
  """Commands without a process for each, which start nothing; those below are processes."""
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.chdir(tmp_path)
  yield tmp_path
  for name in ('mine.py', 'helper_of_mine'):
    sys.modules.pop(name, None)


def refused_in_process(capsys, *arguments):
  """The one line with which a command is refused."""
  assert cli.main([*map(str, arguments)]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert line.startswith('hydra-jax: ')
  return line


DIGITS = '--config=configs/digits.py'


@pytest.mark.parametrize(
  'arguments, word',
  [
    (['--config=configs/digit.py'], "did you mean 'configs/digits.py'"),
    (['--config=configs/digits'], "did you mean 'configs/digits.py'"),
    (['--config=ucy'], "did you mean 'configs/uci.py'"),
    (['--config=zzzzz.py'], 'choose one of: configs/cifar10.py, configs/cifar100.py'),
    (['--config=configs'], "'configs' is a folder"),
    (['--config='], '--config names no file'),
    (['--config=README.md'], 'must end in .py'),
    (['--config=configs/digits.py:member=3'], "did you mean 'members'"),
    (['--config=configs/cifar10.py:quik'], "did you mean 'quick'"),
    (['--config=configs/cifar10.py:resnet20,wrn28_1'], 'two networks'),
    ([DIGITS, '--config.student.hydra.head=3'], "has no 'head': did you mean 'heads'"),
    ([DIGITS, '--config.student.hydra.zzz=3'], "unknown config key 'student.hydra.zzz'"),
    ([DIGITS, '--config.student.nope.x=1'], "config.student has no 'nope': choose one of: batch_ensemble"),
    ([DIGITS, '--config.studnt.hydra.heads=1'], "did you mean 'student'"),
    ([DIGITS, '--config.members=3'], "did you mean 'teacher.members'"),
    ([DIGITS, '--config.epochs=3'], "did you mean 'training.epochs'"),
    ([DIGITS, '--config.teacher.epochs.x=3'], 'has no keys'),
    ([DIGITS, '--config.teacher=3'], 'is a section'),
    ([DIGITS, '--config.=3'], 'unexpected argument'),
    ([DIGITS, '--config.seed'], 'has no value'),
    ([DIGITS, '--config.teacher.members=2.5'], 'takes a whole number'),
    ([DIGITS, '--config.teacher.members=0'], 'config.teacher.members=0 must be a whole number of at least 1'),
    ([DIGITS, '--config.teacher.epochs=nan'], 'of more than 0, and finite'),
    ([DIGITS, '--config.teacher.epochs='], 'takes a number'),
    ([DIGITS, '--config.teacher.epochs=1,5'], 'takes a number'),
    ([DIGITS, '--config.seed=-1'], 'from 0 to'),
    ([DIGITS, f'--config.seed={2**40}'], 'from 0 to'),
    ([DIGITS, '--config.seed=1e3'], 'takes a whole number'),
    ([DIGITS, '--config.students='], 'takes a tuple'),
    ([DIGITS, "--config.students=('kd',5)"], 'must be a tuple of names'),
    ([DIGITS, '--config.student.hydra.augment=crp'], "did you mean 'crop'"),
    ([DIGITS, '--config.student.hydra.heads=-1'], 'at least 0'),
    ([DIGITS, '--config.student.hydra.heads=7'], 'set heads to 0 or 20'),
    ([DIGITS, '--config.name='], 'names the folder'),
    ([DIGITS, '--config.name=../other'], 'must be the name of a folder'),
    ([DIGITS, '--config.network.teacher.name=lenet'], 'reads images [height, width, channels] of at least 16x16'),
    ([DIGITS, '--config.data.name=digit'], "did you mean 'digits'"),
    ([DIGITS, '--config.student.kd.method=kda'], "did you mean 'kd'"),
    ([DIGITS, '--config.data.name=zzz'], "'zzz' is no data set"),
    ([DIGITS, '--confg.seed=3'], 'confg'),
    ([DIGITS, '-config.seed=3'], 'unexpected argument'),
    ([DIGITS, 'seed=3'], 'seed=3'),
    (['--config=configs/mnist.py', '--data_dir=/nowhere'], 'hydra-jax prepare mnist'),
    (['--config=configs/imagenet.py', '--data_dir=/nowhere'], 'hydra-jax prepare imagenet2012'),
    ([DIGITS, "--config.data.ood=('fashion_mnist',)", '--data_dir=/nowhere'], 'prepare fashion'),
    ([DIGITS, '--data_dir=gs://bucket/data'], 'is not on a file system'),
    ([DIGITS, '--data_dir='], '--data_dir is empty'),
  ],
)
def test_bad_input(in_process, monkeypatch, capsys, arguments, word):
  workdir = in_process / 'run'
  monkeypatch.chdir(ROOT)
  assert word in refused_in_process(capsys, 'run', *arguments, f'--workdir={workdir}')
  assert not workdir.exists()


@pytest.mark.parametrize('value', ['gs://bucket/w', 's3://bucket/w', 'http://a/b', 'hdfs://a', 'gs:/bucket', '', ' '])
@pytest.mark.parametrize('command', [('run', f'--config={ROOT}/configs/digits.py'), ('table', 'mnist')])
def test_work_directories_that_are_no_folders(in_process, capsys, command, value):
  line = refused_in_process(capsys, *command, f'--workdir={value}')
  assert '--workdir' in line and ('mount the bucket' in line or 'is empty' in line)
  assert not list(in_process.iterdir())


@pytest.mark.parametrize(
  'value, word',
  [
    ('file', 'file is a file, and must be a folder'),
    ('file/run', 'file is a file, and must be a folder'),
    ('file/a/b/c', 'file is a file, and must be a folder'),
    ('nowhere/run', 'nowhere is a link to nothing'),
  ],
)
def test_work_directories_that_cannot_be_made(in_process, capsys, value, word):
  (in_process / 'file').write_text('mine')
  (in_process / 'nowhere').symlink_to(in_process / 'gone')
  line = refused_in_process(capsys, 'run', f'--config={ROOT}/configs/digits.py', f'--workdir={value}')
  assert word in line
  assert (in_process / 'file').read_text() == 'mine' and len(list(in_process.iterdir())) == 2


def test_the_default_work_directory_is_that_of_the_name_and_the_file():
  config = cli.read_config(str(ROOT / 'configs' / 'digits.py'), [])
  assert cli.default_workdir(config) == Path('runs/digits')
  config.data.name = 'some/folder/wine.v2.npz'
  assert cli.default_workdir(config) == Path('runs/digits-wine.v2')
  config = cli.read_config(str(ROOT / 'configs' / 'external.py'), ['--config.teacher.predictions=members.npz'])
  assert cli.default_workdir(config) == Path('runs/external-members')


def test_a_home_directory_is_found_behind_an_equals_sign(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert cli.local_folder('~/runs', '--workdir') == tmp_path / 'runs'


def test_overrides_say_what_they_assume(caplog):
  caplog.set_level('INFO', 'hydra_jax')
  given = ['--config.seed=1', '--config.seed', '2', '--config.students=hydra', '--config.data.train=a=b']
  config = cli.read_config(str(ROOT / 'configs' / 'digits.py'), given)
  assert (config.seed, config.students, config.data.train) == (2, ('hydra',), 'a=b')
  said = caplog.text
  assert 'config.seed is given more than once: the last value counts, 2' in said
  assert "config.students=hydra is taken as ('hydra',)" in said


def config_file(change):
  """A config that is right but for one line, the sixth."""
  lines = ['from ml_collections import ConfigDict', 'from hydra_jax.config import default_config, variant']
  lines += [
    'def get_config():',
    '  config = default_config()',
    "  config.name = 'mine'",
    f'  {change}',
    '  return config',
  ]
  return '\n'.join(lines)


BROKEN = {
  'syntax': ('def get_config(:', 'SyntaxError: invalid syntax (mine.py, line 1)'),
  'indentation': (
    'def get_config():\n\treturn 1\n  x = 2',
    'unindent does not match any outer indentation level (mine.py, line 3)',
  ),
  'import': ('import nowhere', "ModuleNotFoundError: No module named 'nowhere' (mine.py, line 1)"),
  'error': ('def get_config():\n  return 1 / 0', 'ZeroDivisionError: division by zero (mine.py, line 2)'),
  'error of two lines': (config_file(r"raise ValueError('one\ntwo')"), 'ValueError: one two (mine.py, line 6)'),
  'assertion': (config_file('assert config.seed'), 'AssertionError: (mine.py, line 6)'),
  'recursion': (
    'def get_config():\n  return get_config()',
    'RecursionError: maximum recursion depth exceeded (mine.py, line 2)',
  ),
  'exit': (config_file('raise SystemExit(0)'), 'SystemExit: 0 (mine.py, line 6)'),
  'helper': ('import helper_of_mine\nget_config = helper_of_mine.make', "KeyError: 'x' ("),
  'empty': ('', "config file 'mine.py' has no function get_config: add one"),
  'misspelt': ('def get_confg(): pass', "did you mean 'get_confg'"),
  'no function': ('get_config = 3', 'has no function get_config'),
  'returns nothing': ('def get_config(): pass', "config file 'mine.py': get_config returns NoneType"),
  'returns a dict': ('def get_config(): return dict(seed=1)', 'get_config returns dict'),
  'returns a list': ('def get_config(): return []', 'get_config returns list'),
  'returns a text': ("def get_config(): return 'digits'", 'get_config returns str'),
  'is a class': ('class get_config: pass', 'get_config returns get_config'),
  'returns another config': (
    config_file('config = ConfigDict(dict(lr=1))'),
    "'mine.py': unknown config key 'config.lr'",
  ),
  'returns an empty config': (config_file('config = ConfigDict()'), "'mine.py': the config has no key 'config."),
  'is locked': (
    config_file('config.teacher.memebers = 3'),
    "unknown config key 'memebers': did you mean 'members'? (mine.py, line 6)",
  ),
  'adds a key': (
    config_file('config.unlock().teacher.memebers = 3'),
    "unknown config key 'memebers': did you mean 'members'? (mine.py, line 6)",
  ),
  'lacks a key': (config_file("del config.unlock()['seed']"), "'mine.py': the config has no key 'config.seed'"),
  'wrong type': (config_file("config.seed = 'three'"), '(mine.py, line 6)'),
  'wrong value': (config_file('config.seed = -1'), "'mine.py': config.seed=-1 must be a whole number from 0 to"),
  'no name': (config_file("config.name = ''"), "'mine.py': config.name='' must be a text that is not empty"),
  'student with a dot': (config_file("variant(config, 'a.b')"), "a student cannot be called 'a.b'"),
  'student of nothing': (config_file("variant(config, 'a', of='hydr')"), "did you mean 'hydra'? (mine.py, line 6)"),
  'student with a wrong key': (config_file("variant(config, 'a', cutt=1)"), "did you mean 'cut'? (mine.py, line 6)"),
  'network without a name': (
    config_file('config.network.teacher = ConfigDict()'),
    "'mine.py': config.network.teacher=",
  ),
  'takes an argument': ('def get_config(argument): pass', "config file 'mine.py', line 1: get_config is given nothing"),
  'NUL': (b'x = 1\x00', "config file 'mine.py': SyntaxError: source code string cannot contain null bytes"),
  'latin-1': ("x = 'é'".encode('latin-1'), "codec can't decode byte 0xe9"),
  'bytes': (bytes(range(1, 256)), "config file 'mine.py': SyntaxError"),
  'folder': (None, "config file 'mine.py' is a folder"),
}


@pytest.mark.parametrize('content, word', BROKEN.values(), ids=list(BROKEN))
@pytest.mark.parametrize('command', ['run', 'check'])
def test_broken_config_files(in_process, capsys, command, content, word):
  file = in_process / 'mine.py'
  (in_process / 'helper_of_mine.py').write_text("def make():\n  return {}['x']")
  if content is None:
    file.mkdir()
  else:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
  line = refused_in_process(capsys, command, '--config=mine.py')
  assert word in line
  assert sorted(path.name for path in in_process.iterdir()) == ['helper_of_mine.py', 'mine.py']


def test_an_argument_for_a_config_that_takes_none(in_process, capsys):
  (in_process / 'mine.py').write_text(config_file('pass'))
  line = refused_in_process(capsys, 'run', '--config=mine.py:seed=1')
  assert "config file 'mine.py', line 3: get_config is given 'seed=1', and that does not fit" in line


def test_interrupting_a_config_is_no_error_of_it(in_process, capsys):
  (in_process / 'mine.py').write_text(config_file('raise KeyboardInterrupt'))
  assert cli.main(['run', '--config=mine.py']) == 130
  assert 'interrupted' in capsys.readouterr().err


def test_a_config_that_prints(in_process, capsys):
  (in_process / 'mine.py').write_text(config_file("print('hello')"))
  assert cli.read_config('mine.py', []).name == 'mine' and capsys.readouterr().out == 'hello\n'


def test_a_config_that_is_edited_is_read_again(in_process):
  """Within a second, with the same size: no compiled copy is taken for the newest."""
  for seed in (3, 4, 5):
    (in_process / 'mine.py').write_text(config_file(f'config.seed = {seed}'))
    assert cli.read_config('mine.py', []).seed == seed


@pytest.mark.parametrize(
  'content, word',
  [
    ('def get_tables(:', "table file 'mine.py': SyntaxError: invalid syntax (mine.py, line 1)"),
    ('import nowhere', "No module named 'nowhere' (mine.py, line 1)"),
    ('def get_tables(quick):\n  return 1 / 0', 'division by zero (mine.py, line 2)'),
    ('def get_tables():\n  return {}', "table file 'mine.py', line 1: get_tables is given False"),
    ('def get_tables(quick):\n  return [3]', 'get_tables returns a list, where a dict of Definition by name is needed'),
    ('def get_tables(quick):\n  return {1: 3}', "table '1': the name becomes that of a folder"),
    ('x = 1', "table file 'mine.py' has no function get_tables: add one"),
    (b'\x00', "table file 'mine.py': SyntaxError"),
    (
      'from hydra_jax.experiment.config import default_config\n'
      'from hydra_jax.experiment.paper_tables import Definition\n'
      "def get_tables(quick):\n  return {'': Definition('t', {'one': default_config()}, [])}",
      "run 'one' of hydra-jax table mine.py: config.name=''",
    ),
  ],
)
def test_broken_table_files(in_process, capsys, content, word):
  (in_process / 'mine.py').write_bytes(content if isinstance(content, bytes) else content.encode())
  assert word in refused_in_process(capsys, 'table', 'mine.py')
  assert [path.name for path in in_process.iterdir()] == ['mine.py']


@pytest.mark.parametrize('file', ['configs/digits.py', 'digits.py', 'mine', 'a/b/c.py'])
def test_outside_of_a_checkout(in_process, capsys, file):
  """Those that come with the package are proposed, and no file that is not there."""
  for folder in (False, True):
    if folder:
      (in_process / 'configs').mkdir()
    line = refused_in_process(capsys, 'run', f'--config={file}')
    assert f"there is no config file '{file}': " in line
    proposed = "did you mean 'digits'?" if 'digits' in file else 'choose one of: cifar10, cifar100, digits, external, '
    assert proposed in line and 'configs/' not in line.partition(': there is no')[2].partition(': ')[2]
  (in_process / 'configs' / 'digits.py').write_text('')
  assert "'configs/digits.py'" in refused_in_process(capsys, 'check', '--config=digit')


def test_a_config_that_comes_with_the_package(in_process, capsys):
  """By its name, with an argument, anywhere; a file of that name goes before it."""
  assert set(cli.shipped_configs()) == {file.stem for file in (ROOT / 'configs').glob('*.py')}
  shipped = cli.read_config('digits:members=3', ['--config.seed=4'])
  assert (shipped.name, shipped.teacher.members, shipped.seed) == ('digits', 3, 4)
  (in_process / 'digits').write_text('def get_config():')
  assert 'its name must end in .py' in refused_in_process(capsys, 'check', '--config=digits')


@pytest.mark.parametrize(
  'command, raised',
  [
    (['run', f'--config={ROOT}/configs/digits.py', '--config.seed=-1'], 'UserError: config.seed=-1 must be'),
    (['check', '--config=mine.py'], 'ZeroDivisionError: division by zero'),
    (['table', 'mine.py'], 'UserError: table file'),
    (['prepare', 'uci/concret'], 'UserError: unknown UCI set'),
  ],
)
def test_debug_shows_the_traceback_behind_the_line(in_process, capsys, command, raised):
  (in_process / 'mine.py').write_text('def get_config():\n  return 1 / 0')
  line = refused_in_process(capsys, *command)
  assert cli.main([*command, '--debug']) == 2
  shown = capsys.readouterr().err.strip().splitlines()
  assert shown[0] == 'Traceback (most recent call last):' and shown[-1] == line
  assert any(each.startswith((raised, f'hydra_jax.errors.{raised}')) for each in shown)


def test_prepare_without_tensorflow_or_with_a_wrong_name(tmp_path):
  refused('prepare', 'uci/concret', f'--data_dir={tmp_path}', word="did you mean 'concrete'")
  refused('prepare', 'mnist', f'--data_dir={tmp_path}', word='hydra_jax[prepare]')
  assert not list(tmp_path.iterdir())


def test_work_directory_of_another_config(tiny_run, tmp_path):
  workdir, _ = tiny_run
  before = (workdir / 'results.jsonl').read_bytes()
  refused(
    'run', '--config=configs/spiral.py', f'--workdir={workdir}', word="holds a run with name='digits', not 'spiral'"
  )
  assert (workdir / 'results.jsonl').read_bytes() == before
  (tmp_path / 'thesis.tex').write_text('x')
  refused('run', '--config=configs/digits.py', f'--workdir={tmp_path}', word='not empty')
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_training_that_diverges(tmp_path):
  arguments = (*TINY, '--config.teacher.learning_rate=1e38')
  done = refused('run', *arguments, f'--workdir={tmp_path / "run"}', word='not finite at step')
  assert "in phase 'ensemble of 3'" in done.stderr
  assert not list((tmp_path / 'run' / 'artifacts').iterdir())


def test_damaged_parts(tiny_run, tmp_path):
  """Each is named; what is said is done; and then the same command makes both again, to the byte."""
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run[0], workdir)
  results = (workdir / 'results.jsonl').read_bytes()
  for part, file, damage in (
    ('predictions-*', 'predictions.npy', 'truncate'),
    ('labels-*', 'model/**/d/*', 'change'),
  ):
    path = max(next(workdir.glob(f'artifacts/{part}')).glob(file), key=lambda p: p.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == 'truncate' else content[:-9] + b'corrupted')
    done = refused('run', *TINY, f'--workdir={workdir}', word='is damaged')
    assert (workdir / 'results.jsonl').read_bytes() == results
    named = Path(done.stderr.split()[1])
    assert path.is_relative_to(named)
    shutil.rmtree(named)  # as the message says
  again = hydra_jax('run', *TINY, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  assert (workdir / 'results.jsonl').read_bytes() == results


def test_no_room_for_a_file(tiny_run, tmp_path):
  """A run that cannot write stops in one line and keeps what is complete; with room it goes on."""
  workdir = tmp_path / 'run'
  alone = [*TINY, '--config.students=()']
  limited = ['bash', '-c', 'ulimit -f 60; exec "$@"', '-', *command('run', *alone, f'--workdir={workdir}')]
  done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert not list(workdir.rglob(f'{store.NEW}*'))
  again = hydra_jax('run', *alone, f'--workdir={workdir}')
  assert again.returncode == 0, again.stderr
  rows = (workdir / 'results.jsonl').read_text().splitlines()
  expected = (tiny_run[0] / 'results.jsonl').read_text().splitlines()
  assert rows == [line for line in expected if '"method": "ensemble"' in line]


@pytest.fixture
def mounted(tmp_path):
  """Mounts a small file system; needs the rights to."""
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


def test_full_disk(mounted):
  """That the run goes on when there is room, is tested above and in `experiments.soak`."""
  disk = mounted('size=300k')
  refused('run', *TINY, f'--workdir={disk / "run"}', word='the disk is full')
  assert not list(disk.rglob(f'{store.NEW}*'))


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
