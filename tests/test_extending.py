"""The page on extending: a network, data, a metric, a tracker and a method in files of the user's, as it shows them."""

import json
import re
import shlex

from conftest import ROOT, hydra_jax as run
import numpy as np
import pytest
from scipy.special import log_softmax

import hydra_jax
from hydra_jax import UserError, cli, user_files
from hydra_jax.experiment import config as configs
from hydra_jax.experiment.schema import default_config
from hydra_jax.methods import registry

PAGE = (ROOT / 'docs' / 'extending.md').read_text()
FILES = dict(re.findall(r'```python\n# (my_\w+\.py)\n(.*?)```', PAGE, flags=re.S))
COMMANDS = [shlex.split(line) for line in re.findall(r'^    hydra-jax (run .*)$', PAGE, flags=re.M)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder with the files of the page and the config that its commands name."""
  for name, text in FILES.items():
    (tmp_path / name).write_text(text)
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'digits.py').write_text((ROOT / 'configs' / 'digits.py').read_text())
  monkeypatch.chdir(tmp_path)
  user_files.find.cache_clear()
  return tmp_path


def test_each_section_is_short():
  sections = re.split(r'^## ', PAGE, flags=re.M)[1:]
  assert [len(section.strip().splitlines()) <= 42 for section in sections] == [True] * 5
  assert all(len(text.splitlines()) <= 30 for text in FILES.values()) and len(FILES) == len(COMMANDS) == 5


@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: command[2])
def test_each_command_is_legal(command, folder):
  config, *overrides = command[1:]
  configs.validate(cli.read_config(config.removeprefix('--config='), overrides))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """All at once, in one run; its folder and its rows."""
  folder = tmp_path_factory.mktemp('own')
  for name, text in FILES.items():
    (folder / name).write_text(text)
  flags = [flag for command in COMMANDS for flag in command[2:] if not flag.startswith('--config.students')]
  flags += ['--config.students=hydra,geometric', '--config.teacher.members=3', '--config.training.epochs=20']
  flags += ['--config.distillation.epochs=20', '--config.student.hydra.epochs=20', f'--workdir={folder}/run']
  done = run('run', f'--config={ROOT}/configs/digits.py', *flags, cwd=folder)
  assert done.returncode == 0, done.stderr
  return folder, [json.loads(line) for line in (folder / 'run' / 'results.jsonl').read_text().splitlines()]


@pytest.mark.slow
def test_a_run_with_all_of_them(finished, monkeypatch):
  folder, rows = finished
  monkeypatch.chdir(folder)
  user_files.find.cache_clear()
  found = {(row['method'], row['metric']): row['value'] for row in rows if 'test' in row.values()}
  x, y = (user_files.find('my_data.py:load', 'data set').value()[name] for name in ('x_test', 'y_test'))
  for method in ('ensemble', 'hydra', 'geometric'):
    functions = ('my_networks.py:make', 'my_methods.py:geometric_kd')
    mean = hydra_jax.load('run', method, functions=functions).predict(x).mean
    rank = np.sum(mean > mean[np.arange(len(y)), y][:, None], axis=1)  # 0: the class is the most probable one
    np.testing.assert_allclose(found[method, 'top2'], np.mean(rank < 2), rtol=1e-6)
    np.testing.assert_allclose(found[method, 'accuracy'], np.mean(rank == 0), rtol=1e-6)
    assert found[method, 'accuracy'] > 0.7  # of chance 0.4
  assert 'top2' in (folder / 'run' / 'table.md').read_text()
  (told,) = (folder / 'run' / 'my_tracker.py_Lines').iterdir()
  *lines, last = told.read_text().splitlines()
  assert len(lines) == len((folder / 'run' / 'metrics.jsonl').read_text().splitlines())
  assert lines[0].startswith('ensemble_of_3 ') and "'training/loss': " in lines[0] and '/test/hydra/top2' in last
  with pytest.raises(UserError, match="its method is 'my_methods.py:geometric_kd'.*config.student.NAME.method"):
    hydra_jax.load('run', 'geometric', functions=functions[:1])
  (folder / 'my_methods.py').write_text(FILES['my_methods.py'] + '# edited\n')
  user_files.find.cache_clear()
  with pytest.raises(UserError, match='source of .my_methods.py:geometric_kd. is not that with which it was trained'):
    hydra_jax.load('run', 'geometric', functions=functions)


def test_the_loss_of_the_method_is_that_of_the_geometric_mean(folder):
  random = np.random.default_rng(0)
  teacher, outputs = random.normal(size=(4, 6, 3)).astype(np.float32), random.normal(size=(1, 6, 3)).astype(np.float32)
  method = registry.find('my_methods.py:geometric_kd')
  (phase,) = method.phases(method.settings(), method_context())
  mean = log_softmax(log_softmax(teacher, axis=-1).mean(axis=0), axis=-1)
  expected = np.sum(np.exp(mean) * (mean - log_softmax(outputs[0], axis=-1)), axis=-1)
  found = phase.loss(outputs, {'teacher': teacher})
  np.testing.assert_allclose(found, expected[None], rtol=1e-4)


def method_context():
  stages = lambda predictive, times=1: hydra_jax.mlp(3, (5,))
  return hydra_jax.MethodContext(None, stages, 4)


DATA = """\
import numpy as np
N = np.arange(40.0)
X, Y = np.stack([N, -N], axis=1), N.astype(int) % 2
GOOD = dict(x=X, y=Y, x_test=X, y_test=Y)
def number(): return 3
def takes(path): return GOOD
def fails(): return GOOD['z']
def objects(): return dict(GOOD, x=np.array([{}] * 40))
def short(): return dict(GOOD, y_test=Y[:3])
def no_test(): return dict(x=X, y=Y)
VALUE = GOOD
"""


@pytest.mark.parametrize(
  'name, word',
  [
    ('own.py:number', "data set 'own.py:number' returns a int: return a dict"),
    ('own.py:takes', r"data set 'own.py:takes': TypeError.*missing 1 required"),
    ('own.py:fails', r"KeyError: 'z' \(own.py, line 7\)"),
    ('own.py:objects', "'x' holds Python objects"),
    ('own.py:short', '3 labels for 40 inputs'),
    ('own.py:no_test', "own.py:no_test has no array 'x_test'"),
    ('own.py:lod', "no function 'lod' in own.py"),
    ('own.py:VALUE', 'is a dict, and must be a function'),
    ('none.py:load', "there is no file 'none.py'"),
  ],
)
def test_a_data_function_that_cannot_be_used(name, word, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  user_files.find.cache_clear()
  (tmp_path / 'own.py').write_text(DATA)
  flags = [f'--config={ROOT}/configs/digits.py', f'--config.data.name={name}', '--config.students=()']
  assert_refused(flags, word, tmp_path)


METRICS = """\
import numpy as np
def fails(prediction, y): return prediction.means
def scalar(prediction, y): return 0.5
def words(prediction, y): return np.array(['a'] * len(y))
def infinite(prediction, y): return np.full(len(y), np.nan)
def nll(prediction, y): return np.zeros(len(y))
def right(prediction, y): return np.zeros(len(y))
"""


@pytest.mark.parametrize(
  'metrics, word',
  [
    ('own.py:fails', r"metric 'own.py:fails': AttributeError.*\(own.py, line 2\)"),
    ('own.py:scalar', r'returns float64 \[\]: return one number for each example, \[8\]'),
    ('own.py:words', 'return one number for each example'),
    ('own.py:infinite', 'is not finite for 8 of 8 examples'),
    ('own.py:nll', "there is a metric 'nll' already"),
    ('own.py:left', "no function 'left' in own.py"),
    ('top2', 'names no function: write my_metrics.py:top2'),
  ],
)
def test_a_metric_that_cannot_be_used(metrics, word, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  user_files.find.cache_clear()
  (tmp_path / 'own.py').write_text(METRICS)
  flags = [f'--config={ROOT}/configs/digits.py', '--config.students=()', f'--config.evaluation.metrics={metrics}']
  assert_refused(flags, word, tmp_path)


METHODS = """\
from hydra_jax import Method
def phases(settings, context): return []
function = phases
broken = Method(lambda settings, context: settings.nothing)
"""


@pytest.mark.parametrize(
  'method, word',
  [
    ('own.py:phases', 'is a function: it must be a hydra_jax.Method'),
    ('own.py:none', "no method 'none' in own.py"),
    ('kdd', "did you mean 'kd'"),
    ('ensemble', 'unknown method'),
  ],
)
def test_a_method_that_cannot_be_used(method, word, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  user_files.find.cache_clear()
  (tmp_path / 'own.py').write_text(METHODS)
  flags = [f'--config={ROOT}/configs/digits.py', '--config.students=mine', f'--config.student.mine.method={method}']
  assert_refused(flags, word, tmp_path)


def assert_refused(flags, word, folder):
  """In one line, before anything is written."""
  config, *overrides = flags
  with pytest.raises(UserError, match=word) as error:
    from hydra_jax.experiment import run as runs

    made = cli.read_config(config.removeprefix('--config='), overrides)
    runs.run(made, folder / 'work', '')
  assert '\n' not in str(error.value) and not (folder / 'work').exists()


def test_a_student_is_added_on_the_command_line():
  config = default_config()
  configs.set_values(config, [('student.warm.temperature', '5'), ('student.warm.method', 'kd')])
  assert config.student.warm.to_dict() == dict(method='kd', temperature=5.0, label_weight=0.0)
