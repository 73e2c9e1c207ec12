"""Experiment trackers get each line of `metrics.jsonl` once, whatever happens to the run or to them."""

import json
from pathlib import Path
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tracked import events, in_tensorboard, in_wandb

from hydra_jax import UserError, cli
from hydra_jax.experiment import compare_runs, config as configs, list_runs, trackers, tracking
from hydra_jax.experiment.metrics_log import MetricsLog
from hydra_jax.training.loop import Progress

OWN = """
class Lines:
  def __init__(self, about):
    self.file = about.folder.parent / 'own.jsonl'
    self.write('begin', about.id, about.project, about.name, about.config['seed'])
  def write(self, *what):
    import json
    with self.file.open('a') as file:
      file.write(json.dumps(what) + chr(10))
  def log(self, series, step, values):
    if values.get('training/loss') == 9.0:
      raise ConnectionError('the server is gone' + chr(10) + 'for ever')
    self.write('log', series, step, values)
  def results(self, scores):
    self.write('results', scores)
  def close(self, finished):
    self.write('close', finished)

def lacking(about):
  return object()

def broken(about):
  raise RuntimeError('no key')
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(tracking, 'SECONDS', 0.01)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'own_tracker.py').write_text(OWN)
  (tmp_path / 'run' / 'results.jsonl').write_text('')
  return 'own_tracker.py:Lines'


def first_of(*names, parts=('part-1',), seed=0, replicas=1):
  """What a run passes on: its config, data, and the parts that it has used so far."""
  config = configs.default_config()
  config.name, config.trackers, config.seed, config.replicas = 'digits', names, seed, replicas
  data = SimpleNamespace(fingerprint='data', evaluations={})
  return SimpleNamespace(config=config, data=data, parts=set(parts))


def train(steps, start=0, loss=1.0, part='part-1', phase='kd: mean prediction', replicas=(0,)):
  """Writes a line for each step."""
  log = MetricsLog(Path('run/metrics.jsonl'), part, phase, replicas, start, 100, 8, lambda step: 0.1)
  for step in range(start + 1, steps + 1):
    log.add(Progress(step, 1, np.float32([[loss]]), np.float32([loss]), 1.0, 0.0))


def told():
  file = Path('run/own.jsonl')
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def steps(series='kd/mean_prediction'):
  return [row[2] for row in told() if row[0] == 'log' and row[1] == series]


class Killed(BaseException):
  pass


def until_killed(first, work):
  with pytest.raises(Killed), tracking.following(first, Path('run')):
    work()
    raise Killed


def test_a_run_that_continues_sends_no_step_twice(own):
  until_killed(first_of(own), lambda: train(30))
  until_killed(first_of(own), lambda: train(15, start=10))  # from its checkpoint, and not as far
  with tracking.following(first_of(own), Path('run')):
    train(50, start=10)
  assert steps() == [*range(1, 51)]
  begun = [row[1:] for row in told() if row[0] == 'begin']
  assert len(begun) == 3 and begun[0] == begun[1] == begun[2] and begun[0][1:] == ['digits', 'run', 0]
  assert [row[1] for row in told() if row[0] == 'close'] == [False, False, True]
  assert [row[0] for row in told()].count('results') == 1
  with tracking.following(first_of(own), Path('run')):
    pass  # all is there already
  assert steps() == [*range(1, 51)] and [row[0] for row in told()].count('results') == 1


def test_a_new_tracker_gets_what_is_there_and_nothing_of_older_settings(own):
  train(20, part='part-0')
  train(20, part='part-2', phase='single: labels')
  until_killed(first_of(own, parts=['part-0']), lambda: None)
  assert steps() == [*range(1, 21)] and not steps('single/labels')
  first = first_of(own, parts=[], seed=1)
  with tracking.following(first, Path('run')):
    first.parts.add('part-1')
    train(30)
  ids = [row[1] for row in told() if row[0] == 'begin']
  assert len(set(ids)) == 2  # another config is another run
  assert steps() == [*range(1, 21), *range(1, 31)]


def test_settings_of_the_work_make_no_other_run():
  first, other = first_of(), first_of('tensorboard')
  other.config.execution.steps_per_call, other.config.checkpoint_seconds = 7, 1.0
  assert tracking.identity(first) == tracking.identity(other) != tracking.identity(first_of(seed=1))
  other.data.fingerprint = 'corrected'
  assert tracking.identity(first) != tracking.identity(other)


def test_what_fails_in_the_middle_is_said_once(own, caplog):
  def work():
    train(20)
    train(40, start=20, loss=9.0)
    train(60, start=40)

  with tracking.following(first_of(own), Path('run')):
    work()
  assert [record.getMessage() for record in caplog.records] == [
    "tracker 'own_tracker.py:Lines' failed, and the run goes on without it (ConnectionError: the server is gone)"
  ]
  assert steps() == [*range(1, 21)] and told()[-1] == ['close', False]
  Path('run/metrics.jsonl').write_text(Path('run/metrics.jsonl').read_text().replace('9.0', '8.0'))
  with tracking.following(first_of(own), Path('run')):
    pass  # the same command sends the rest
  assert steps() == [*range(1, 21), *range(22, 61)]


def test_a_slow_tracker_holds_nothing_up(own, caplog, monkeypatch):
  monkeypatch.setattr(tracking, 'PATIENCE', 0.1)
  with Path('own_tracker.py').open('a') as file:
    file.write('  import time\n  time.sleep(9)\ndef slow(about):\n  found = Lines(about)\n')
    file.write('  found.close = lambda finished: __import__("time").sleep(9)\n  return found\n')
  with tracking.following(first_of('own_tracker.py:slow'), Path('run')):
    train(3)
  assert 'did not take all in time' in caplog.text


def test_replicas_have_series_of_their_own(own):
  rows = [{'split': 'test', 'method': 'kd', 'metric': 'nll', 'replica': i, 'value': float(i)} for i in (0, 1)]
  Path('run/results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with tracking.following(first_of(own, replicas=3), Path('run')):
    train(2, replicas=(0, 1))
    train(2, replicas=(2,))
  assert steps('kd/mean_prediction/replica_1-2') == steps('kd/mean_prediction/replica_3') == [1, 2]
  (found,) = (row[1] for row in told() if row[0] == 'results')
  name = 'results/test/kd/nll'
  assert found == {name: 0.5, f'{name}/replica_1': 0.0, f'{name}/replica_2': 1.0}


@pytest.mark.parametrize(
  'name, message',
  [
    ('tensorbord', "config.trackers: unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
    ('mlflow', r"config.trackers: mlflow is not installed: pip install 'hydra_jax\[mlflow\]'"),
    ('own_tracker.py:Line', "tracker 'own_tracker.py:Line': no function 'Line' in own_tracker.py"),
    ('other.py:make', "there is no file 'other.py' in .* to take a tracker from"),
  ],
)
def test_what_cannot_be_used_is_said_before_anything_is_done(own, name, message, monkeypatch):
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda module: SimpleNamespace(origin=None))
  config = configs.default_config()
  config.name, config.trackers = 'digits', (name,)
  with pytest.raises(UserError, match=message):
    configs.validate(config)


@pytest.mark.parametrize(
  'name, message', [('broken', 'RuntimeError: no key'), ('lacking', 'has no method log: add it')]
)
def test_a_tracker_that_cannot_begin_ends_the_run_before_training(own, name, message):
  others = first_of(own, f'own_tracker.py:{name}')
  with pytest.raises(UserError, match=f"tracker 'own_tracker.py:{name}'.*{message}"):
    with tracking.following(others, Path('run')):
      raise AssertionError('it trains')
  assert told()[-1] == ['close', False]  # the other one


@pytest.fixture
def finished(tiny_run, tmp_path):
  """A run that had no tracker, and then gets some by the same command: what they have to be told of it."""
  work = tmp_path / 'tiny'
  shutil.copytree(tiny_run[0], work)
  parts = json.loads((work / 'parts.json').read_text())
  lines = [json.loads(line) for line in (work / 'metrics.jsonl').read_text().splitlines()]
  points = {}
  for line in lines:
    series, values = tracking.point(line, 1)
    points |= {(series, name, line['step']): value for name, value in values.items()}
  scores = tracking.scores(map(json.loads, (work / 'results.jsonl').read_text().splitlines()), 1)
  assert len(points) > 500 and len(scores) > 100
  return SimpleNamespace(work=work, parts=parts, points=points, scores=scores)


@pytest.mark.slow
def test_tensorboard_has_all(finished):
  for _ in range(2):  # the second time there is nothing new
    with tracking.following(first_of('tensorboard', parts=finished.parts), finished.work):
      pass
  found = in_tensorboard(finished.work / 'tensorboard')
  assert found.pop('results') == [(name, 0, pytest.approx(value)) for name, value in finished.scores.items()]
  flat = {(series, *point[:2]): point[2] for series, points in found.items() for point in points}
  assert flat == pytest.approx(finished.points) and sum(map(len, found.values())) == len(flat)
  # The config is there as hyper-parameters; strings are as they are in the file.
  begun = [value.metadata.plugin_data for _, value in events(finished.work / 'tensorboard') if '_hparams_' in value.tag]
  assert any(b'training.learning_rate' in each.content for each in begun)


@pytest.mark.slow
def test_wandb_has_all_and_its_files_disturb_no_command(finished, monkeypatch, capsys):
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  for _ in range(2):
    with tracking.following(first_of('wandb', parts=finished.parts), finished.work):
      pass
  runs = [in_wandb(file) for file in sorted(finished.work.glob('wandb/offline-run-*/*.wandb'))]
  assert len(runs) == 2 and runs[0].id == runs[1].id and not runs[1].points
  assert runs[0].points == finished.points and runs[0].summary.items() >= finished.scores.items()
  assert runs[0].project == 'digits' and runs[0].config['training.epochs'] == 20.0
  assert runs[0].steps == {series: f'{series}/step' for series, _, _ in finished.points}
  (found,) = list_runs.runs_in(finished.work)
  assert found.state == 'finished'
  assert cli.main(['clean', str(finished.work), '--yes']) == 0 and 'has no parts' in capsys.readouterr().out
  assert compare_runs.read(finished.work, 'tiny').task == 'classification'


RECORDER = """
import json, pathlib
def note(*what):
  with pathlib.Path('calls.jsonl').open('a') as file:
    file.write(json.dumps(what) + chr(10))
"""
# Stand-ins for the libraries that are too large for CI, with the functions that are called.
MLFLOW = (
  RECORDER
  + """
class MlflowException(Exception): pass
is_tracking_uri_set = lambda: False
class entities:
  Param = staticmethod(lambda key, value: (key, value))
  Metric = staticmethod(lambda key, value, timestamp, step: (key, value, step))
class Thing:
  experiment_id = '7'
  class info: run_id = 'r1'
class MlflowClient:
  made = []
  def __init__(self, tracking_uri): note('uri', tracking_uri)
  def create_experiment(self, name, artifact_location):
    note('experiment', name)
    raise MlflowException('it exists')
  def get_experiment_by_name(self, name): return Thing
  def search_runs(self, numbers, query): return [*self.made]
  def create_run(self, number, run_name, tags):
    self.made.append(Thing)
    return Thing
  def update_run(self, run, status): note('status', status)
  def log_batch(self, run, metrics=(), params=()):
    assert len(params) <= 100 and len(metrics) <= 1000
    for each in (*metrics, *params): note('item', *each)
  def set_terminated(self, run, status): note('status', status)
"""
)
TRACKIO = (
  RECORDER
  + """
import os
class utils: TRACKIO_DIR = os.environ['TRACKIO_DIR']
class Run:
  def log(self, values, step):
    for name, value in values.items(): note('item', name, value, step)
  def finish(self): note('finish')
def init(project, name, resume, config):
  for item in config.items(): note('item', *item)
  note('init', project, name.partition('-')[0], resume)
  return Run()
"""
)


@pytest.mark.parametrize('name, source', [('mlflow', MLFLOW), ('trackio', TRACKIO)])
@pytest.mark.slow
def test_others_have_all(finished, name, source, tmp_path, monkeypatch):
  library = tmp_path / 'library'
  library.mkdir()
  (library / f'{name}.py').write_text(source)
  monkeypatch.syspath_prepend(library)
  monkeypatch.chdir(tmp_path)
  trackers.check((name,))
  if name == 'mlflow':
    monkeypatch.setattr(trackers, '_is_installed', lambda module: False)
    with pytest.raises(UserError, match='set MLFLOW_TRACKING_URI'), tracking.following(first_of(name), finished.work):
      pass
    monkeypatch.setattr(trackers, '_is_installed', lambda module: True)
  for _ in range(2):
    with tracking.following(first_of(name, parts=finished.parts), finished.work):
      pass
  calls = [json.loads(line) for line in Path('calls.jsonl').read_text().splitlines()]
  items = [tuple(call[1:]) for call in calls if call[0] == 'item']
  expected = {(f'{series}/{name}', value, step) for (series, name, step), value in finished.points.items()}
  expected |= {(name, value, 0) for name, value in finished.scores.items()}
  numbers = [item for item in items if len(item) == 3]
  assert len(numbers) == len(expected) and set(numbers) == expected
  assert str(dict(item for item in items if len(item) == 2)['training.epochs']) == '20.0'
  if name == 'trackio':
    assert calls.count(['init', 'digits', 'tiny', 'allow']) == 2
    # Another work directory in the same process would write into the folder of this one.
    with pytest.raises(UserError, match='set TRACKIO_DIR'), tracking.following(first_of(name), tmp_path):
      pass
  else:
    assert ['uri', f'sqlite:///{finished.work}/mlflow/mlflow.db'] in calls
    assert [call[1] for call in calls if call[0] == 'status'] == ['RUNNING', 'FINISHED'] * 2
