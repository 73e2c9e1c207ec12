"""What is best on the validation part is kept, replica by replica, and training stops when it has not improved."""

import json

import numpy as np
import pytest

from hydra_jax import UserError
from hydra_jax.devices import preemption
from hydra_jax.experiment import config as configs, metrics_log, run as runs
from hydra_jax.experiment.config import default_config
from hydra_jax.experiment.scores_in_training import Best, means

STOPS = [10, 20, 30, 40, 50, 60, 70]
# By stop and replica.
NLL = np.transpose(
  [[5.0, 4.0, 4.5, 4.2, 3.0, 9.0, 1.0], [5.0, 6.0, 4.0, 7.0, 3.5, 9.0, 9.0], [1, 2, 3, 0.5, 0.1, 9, 9]]
)


def trees_at(number):
  """Parameters that say to which replica and stop they belong, of several shapes and dtypes."""
  replicas = np.arange(3)
  vectors = np.tile(np.float32(100 * replicas + number)[:, None], 2)
  return {'a': vectors, 'b': np.int32(replicas + number)}


def best(tmp_path, patience, replicas=slice(None), interrupted=()):
  """Goes through all stops; with `interrupted`, it begins again from the file after these."""
  file = tmp_path / f'{patience}-{replicas}-{len(interrupted)}' / 'best.npz'
  cut = lambda trees: {name: leaf[replicas] for name, leaf in trees.items()}
  made, stopped = Best(file, STOPS, patience, cut(trees_at(-1))), None
  for number, stop in enumerate(STOPS):
    if number in interrupted:
      made = Best(file, STOPS, patience, cut(trees_at(-1)))
      made.take(STOPS[number - 1], cut(trees_at(number - 1)), rows(number - 1, replicas))  # what was after a checkpoint
    if made.take(stop, cut(trees_at(number)), rows(number, replicas)):
      stopped = stop
      break
  return made, stopped


def rows(number, replicas):
  return [{'nll': nll} for nll in NLL[number][replicas]]


@pytest.mark.parametrize(
  'patience, numbers, stopped', [(1, (1, 0, 0), 30), (2, (1, 4, 0), 70), (3, (6, 4, 4), None), (7, (6, 4, 4), None)]
)
def test_each_replica_keeps_its_best_until_its_patience_has_run_out(tmp_path, patience, numbers, stopped):
  found, at = best(tmp_path, patience)
  assert at == stopped and found.steps() == [STOPS[number] for number in numbers]
  kept = found.trees()
  for replica, number in enumerate(numbers):
    expected = trees_at(number)
    np.testing.assert_array_equal(kept['a'][replica], expected['a'][replica])
    assert kept['b'][replica] == expected['b'][replica] and kept['b'].dtype == np.int32
  # A replica by itself keeps the same; and a process that begins again does.
  for replica, number in enumerate(numbers):
    alone, _ = best(tmp_path, patience, slice(replica, replica + 1))
    assert alone.steps() == [STOPS[number]]
  again, at = best(tmp_path, patience, interrupted=(1, 2))
  assert at == stopped and again.steps() == found.steps()
  np.testing.assert_array_equal(again.trees()['a'], kept['a'])


def test_scores_that_are_not_finite_are_no_best(tmp_path, monkeypatch):
  made = Best(tmp_path / 'best.npz', STOPS, 2, trees_at(-1))
  for number, nll in enumerate([[np.inf] * 3, [np.inf, 3.0, np.inf], [2.0, np.inf, np.inf]]):
    assert not made.take(STOPS[number], trees_at(number), [{'nll': value} for value in nll])
  assert made.steps() == [30, 20, 30]


def test_means_are_over_the_replicas_that_have_all():
  assert means([{'nll': 1.0, 'rank_correlation': 0.5}, {'nll': 3.0}]) == {'nll': 2.0}


def config_of(file, patience):
  config = default_config()
  config.name, config.data.name, config.data.ood = 'small', str(file), ()
  config.students, config.teacher.members, config.replicas = ('single',), 2, 2
  configs.update_training(config, epochs=40.0, learning_rate=0.03, batch_size=16)
  config.student.single.epochs = 40.0
  config.validation, config.validation_scores, config.patience = 0.3, 10, patience
  config.checkpoint_seconds = 0.2
  return config


@pytest.fixture
def overfitted(tmp_path, random, monkeypatch):
  """Data that are soon learnt by heart, and `run(patience, folder) -> (results, scores in training)`."""
  monkeypatch.setattr('hydra_jax.report.figures.save', lambda folder, drawings: folder.mkdir(exist_ok=True))
  x = random.normal(size=(300, 10))
  y = (x[:, 0] + 1.5 * random.normal(size=300) > 0).astype(int)
  file = tmp_path / 'data.npz'
  np.savez(file, x=x[:200], y=y[:200], x_test=x[200:], y_test=y[200:])

  def run(patience, folder):
    runs.run(config_of(file, patience), tmp_path / folder, '')
    lines = [json.loads(line) for line in (tmp_path / folder / 'results.jsonl').read_text().splitlines()]
    found = {(line['split'], line['method'], line['metric'], line['replica']): line['value'] for line in lines}
    return found, [line for line in metrics_log.read(tmp_path / folder / 'metrics.jsonl') if 'validation' in line]

  return run


@pytest.mark.slow
def test_a_run_keeps_the_best_also_if_it_is_interrupted(overfitted, monkeypatch):
  last, scored = overfitted(0, 'last')
  kept, lines = overfitted(3, 'kept')
  of_replicas = lambda found, method: np.mean([found['validation', method, 'nll', replica] for replica in range(2)])
  for method, phase in (('ensemble', 'ensemble of 2'), ('single', 'single: labels')):
    assert of_replicas(kept, method) < of_replicas(last, method)
    nll = [line['validation']['nll'] for line in scored if line['phase'] == phase]
    stopped = [line['validation']['nll'] for line in lines if line['phase'] == phase]
    assert len(nll) == 10 and nll[: len(stopped)] == stopped and len(stopped) < 10
    # The mean of the lowest scores of the replicas is no more than the lowest mean.
    assert of_replicas(kept, method) <= min(stopped) * (1 + 1e-5)

  take, calls = Best.take, []

  def interrupted(self, *arguments):
    calls.append(1)
    if len(calls) in (2, 5):
      raise preemption.Preempted('here')
    return take(self, *arguments)

  monkeypatch.setattr(Best, 'take', interrupted)
  for _ in range(2):
    with pytest.raises(preemption.Preempted):
      overfitted(3, 'interrupted')
  again, after = overfitted(3, 'interrupted')
  assert again == kept
  by = lambda line: (line['phase'], line['step'])
  assert sorted(map(by, after)) == sorted(map(by, lines))


def test_patience_needs_scores():
  config = default_config()
  config.name, config.patience = 'mine', 3
  with pytest.raises(UserError, match='config.patience=3 needs scores: set config.validation_scores'):
    configs.validate(config)
