"""What `metrics.jsonl` says of training, and that it goes on where training does."""

import json

from conftest import TINY, hydra_jax
import numpy as np
from PIL import Image
import pytest
from tracked import in_tensorboard

from hydra_jax import UserError
from hydra_jax.experiment import metrics_log, scores_in_training, tracking
from hydra_jax.experiment.metrics_log import MetricsLog
from hydra_jax.training.loop import Progress


def call(step, count=10, losses=(1.0, 2.0, 6.0), seconds=2.0, waited=0.5):
  return Progress(step, count, np.float32([losses]), np.float32([step]), seconds, waited)


def log_of(path, start=0, steps=100, phase='kd', replicas=(0,), part='members-1'):
  return MetricsLog(path, part, phase, replicas, start, steps, batch_size=8, rate=lambda step: 0.1 * step)


def test_a_line_is_the_mean_over_its_steps():
  calls = [call(10), call(40, count=30, losses=(5.0, 6.0, 10.0), seconds=6.0, waited=1.5)]
  assert metrics_log.summary(calls, batch_size=8) == {
    'step': 40,
    'count': 40,
    'loss': 6.0,
    'loss_min': 4.0,
    'loss_median': 5.0,
    'loss_max': 9.0,
    'gradient_norm': 40.0,
    'examples_per_second': 40.0,
    'waiting': 0.25,
  }


def test_lines_say_what_they_are_of(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  log = log_of(path)
  for step in range(10, 101, 10):
    log.add(call(step))
  rows = metrics_log.read(path)
  assert [row['step'] for row in rows] == [*range(10, 101, 10)]
  assert all(row['phase'] == 'kd' and row['replicas'] == [0] and row['steps'] == 100 for row in rows)
  assert [row['learning_rate'] for row in rows[:2]] == pytest.approx([0.9, 1.9])
  assert all(row['memory_mb'] > 10 for row in rows)


def test_there_are_not_more_lines_than_anybody_reads(tmp_path):
  log = log_of(tmp_path / 'metrics.jsonl', steps=10_000)
  for step in range(1, 10_001):
    log.add(call(step, count=1))
  rows = metrics_log.read(tmp_path / 'metrics.jsonl')
  assert len(rows) == metrics_log.LINES and rows[-1]['step'] == 10_000 and sum(row['count'] for row in rows) == 10_000


def test_training_that_continues_cuts_off_what_it_does_again(tmp_path):
  """Only in its own phase; a line that was not written to its end goes too."""
  path = tmp_path / 'metrics.jsonl'
  for phase, replicas in (('kd', (0,)), ('kd', (1,)), ('hydra', (0,))):
    log = log_of(path, phase=phase, replicas=replicas)
    for step in range(10, 51, 10):
      log.add(call(step))
  with path.open('a') as file:
    file.write('{"phase": "kd", "st')
  log = log_of(path, start=30)
  for step in range(40, 101, 10):
    log.add(call(step))
  steps = lambda phase, replica: [
    row['step'] for row in metrics_log.read(path) if row['phase'] == phase and row['replicas'] == [replica]
  ]
  assert steps('kd', 0) == [*range(10, 101, 10)]
  assert steps('kd', 1) == steps('hydra', 0) == [*range(10, 51, 10)]
  assert path.read_text().endswith('}\n')


def test_scores_of_a_step_are_written_once(tmp_path):
  """Also where training was killed before it saved a checkpoint of the step, and after."""
  path = tmp_path / 'metrics.jsonl'
  log = log_of(path)
  for step in (10, 20):
    log.add(call(step))
    log.add_scores(step, {'nll': step / 100})
  log = log_of(path, start=10)
  log.add_scores(10, {'nll': 0.1})
  log.add(call(20))
  log.add_scores(20, {'nll': 0.2})
  found = [(row['step'], row['validation']) for row in metrics_log.read(path) if 'validation' in row]
  assert found == [(10, {'nll': 0.1}), (20, {'nll': 0.2})]
  assert [row['step'] for row in metrics_log.read(path) if 'loss' in row] == [10, 20]


def test_lines_of_older_settings_are_removed(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  for start, part in ((0, 'members-1'), (20, 'members-2')):  # another run has left checkpoints of the second
    log = log_of(path, start=start, part=part)
    for step in range(start + 10, 51, 10):
      log.add(call(step))
  assert [(row['part'], row['step']) for row in metrics_log.read(path)] == [
    ('members-2', step) for step in (30, 40, 50)
  ]


@pytest.mark.parametrize('steps, times', [(1, 1), (1, 9), (3, 10), (10, 10), (10, 3), (997, 20)])
def test_scores_are_taken_at_different_steps_the_last_one_among_them(steps, times):
  found = scores_in_training.steps_to_score(steps, times)
  assert len(found) == min(steps, times) and found[0] > 0 and found[-1] == steps
  assert np.all(np.diff(found) > 0) and np.ptp(np.diff([0, *found])) <= 1


@pytest.mark.parametrize('line', ['{"phase"', '[1]', '{"phase": "kd"}', '\udcff'])
def test_a_damaged_line_is_said(tmp_path, line):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(line.encode(errors='surrogateescape') + b'\n{"phase": "kd", "step": 1}\n')
  with pytest.raises(UserError, match='metrics.jsonl is damaged: delete it'):
    log_of(path)


@pytest.mark.slow
def test_a_run_writes_all_steps_of_all_phases(tiny_run):
  rows = [json.loads(line) for line in (tiny_run[0] / 'metrics.jsonl').read_text().splitlines()]
  phases = dict.fromkeys(row['phase'] for row in rows)
  assert [*phases] == [
    'ensemble of 3', 'single: labels', 'kd: mean prediction', 'hydra: mean prediction', 'hydra: members'
  ]  # fmt: skip
  for phase in phases:
    of_phase = [row for row in rows if row['phase'] == phase]
    assert np.all(np.diff([0, *(row['step'] for row in of_phase)]) == [row['count'] for row in of_phase])
    assert of_phase[-1]['step'] == of_phase[-1]['steps'] and len(of_phase) >= 15
    for row in of_phase:
      assert row['loss_min'] <= row['loss_median'] <= row['loss_max']
      assert 0 <= row['waiting'] <= 1 and row['learning_rate'] > 0
      assert row['gradient_norm'] > 0
    losses = [row['loss'] for row in of_phase]  # each is of few batches
    assert np.mean(losses[len(losses) // 2 :]) < np.mean(losses[: len(losses) // 2])


@pytest.mark.slow
def test_scores_and_trackers_in_training_change_nothing_and_are_those_of_the_end(tiny_run, tmp_path):
  more = ('--config.validation_scores=4', "--config.students=('hydra',)", '--config.trackers=tensorboard')
  done = hydra_jax('run', *TINY, *more, f'--workdir={tmp_path}', figures=True)
  assert done.returncode == 0, done.stderr
  lines = lambda folder: [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
  whole = {(row['split'], row['method'], row['metric']): row['value'] for row in lines(tiny_run[0])}
  results = {(row['split'], row['method'], row['metric']): row['value'] for row in lines(tmp_path)}
  assert results and all(value == whole[key] for key, value in results.items() if key[2] != 'latency_ms')
  scored = [row for row in metrics_log.read(tmp_path / 'metrics.jsonl') if 'validation' in row]
  for phase in ('ensemble of 3', 'hydra: members'):
    found = [row for row in scored if row['phase'] == phase]
    steps = found[-1]['steps']
    assert [row['step'] for row in found] == [round(steps * i / 4) for i in (1, 2, 3, 4)]
    assert found[-1]['validation']['nll'] < found[0]['validation']['nll']
  assert 'rank_correlation' not in found[0]['validation'] or phase != 'ensemble of 3'
  assert 0 < found[-1]['validation']['rank_correlation'] <= 1
  assert not any(row['phase'] == 'hydra: mean prediction' for row in scored)
  assert np.ptp(np.asarray(Image.open(tmp_path / 'figures' / 'validation.png'))) > 0
  assert 'Scores in training' in (tmp_path / 'report.html').read_text()
  curves = in_tensorboard(tmp_path / 'tensorboard')
  for series in ('ensemble_of_3', 'hydra/mean_prediction', 'hydra/members'):
    rows = [row for row in metrics_log.read(tmp_path / 'metrics.jsonl') if tracking.point(row, 1)[0] == series]
    losses = [(step, value) for name, step, value in curves[series] if name == 'training/loss']
    assert losses == [(row['step'], pytest.approx(row['loss'])) for row in rows if 'loss' in row] and losses
