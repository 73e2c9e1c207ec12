"""What a run says of its numbers: latencies, and methods that have learnt nothing."""

import json

import numpy as np
import pytest

from hydra_jax import cli
from hydra_jax.errors import UserError
from hydra_jax.experiment.workdir import find_model
from hydra_jax.maths.tasks import TASKS
from hydra_jax.report.tables import latency


@pytest.mark.slow
def test_a_method_that_has_learnt_nothing_is_named_and_latencies_are_measured_again(tmp_path, capsys):
  run = [
    *('run', '--config=configs/digits.py:members=2', f'--workdir={tmp_path / "run"}', "--config.students=('single',)"),
    *('--config.data.shifts=()', "--config.data.ood=('noise',)"),
    *(f'--config.{who}.epochs=0.1' for who in ('teacher', 'student.single')),
    *(f'--config.{who}.learning_rate=1e-9' for who in ('teacher', 'student.single')),
  ]
  assert cli.main(run) == 0
  table, said = (tmp_path / 'run' / 'table.md').read_text(), capsys.readouterr().out
  for name in ('ensemble', 'single'):
    assert f'{name}: hardly better than a constant prediction on the test set' in table
  assert 'hardly better' in said
  rows = [json.loads(line) for line in (tmp_path / 'run' / 'timings.jsonl').read_text().splitlines()]
  of = lambda metric: {row['method']: row['value'] for row in rows if row['metric'] == metric}
  for name in ('ensemble', 'single'):
    assert 0 < of('latency_ms_low')[name] <= of('latency_ms')[name] <= of('latency_ms_high')[name]

  about = json.loads((tmp_path / 'run' / 'data.json').read_text())
  assert (about['task'], about['outputs'], about['train_examples']) == ('classification', 10, 1078)
  (timings,) = (tmp_path / 'run' / 'artifacts').glob('timings-*')
  first, scores = (timings / 'timings.json').read_bytes(), (tmp_path / 'run' / 'results.jsonl').read_bytes()
  assert cli.main([*run, '--measure']) == 0
  assert (timings / 'timings.json').read_bytes() != first and (
    tmp_path / 'run' / 'results.jsonl'
  ).read_bytes() == scores

  capsys.readouterr()
  other = [argument.replace("--config.data.ood=('noise',)", '--config.data.name=spiral') for argument in run]
  assert cli.main([*other, '--config.data.ood=()']) == 2
  assert "holds a run with data.name='digits', not 'spiral'" in capsys.readouterr().err


@pytest.mark.parametrize('about', [{}, {'format': 2}, {'format': 99}])
def test_a_work_directory_of_another_format_is_refused(about, tmp_path, capsys):
  """Its results have other names, or nothing says which."""
  (tmp_path / 'versions.json').write_text(json.dumps(about))
  (tmp_path / 'config.json').write_text(json.dumps({'name': 'digits', 'data': {'name': 'digits'}}))
  (tmp_path / 'models.json').write_text('{}')
  (tmp_path / 'results.jsonl').write_text('{"data": "test", "metric": "model"}\n')
  assert cli.main(['run', '--config=configs/digits.py', f'--workdir={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'in another format: choose another --workdir, or delete that folder' in said
  assert (tmp_path / 'results.jsonl').read_text() == '{"data": "test", "metric": "model"}\n'
  with pytest.raises(UserError, match='in another format: run the same command again with another --workdir'):
    find_model(tmp_path, 'hydra', 0)


def test_skill_is_0_of_a_constant_and_1_of_a_perfect_prediction():
  random = np.random.default_rng(0)
  labels = random.choice(3, size=500, p=[0.5, 0.3, 0.2])
  skill = TASKS['classification'].skill
  most = np.bincount(labels).argmax()
  np.testing.assert_allclose(skill({'correct': labels == most}, labels), 0, atol=1e-12)
  assert skill({'correct': np.ones(500)}, labels) == 1
  assert np.isnan(skill({'correct': np.ones(5)}, np.zeros(5, np.int32)))


def test_skill_of_a_regression_is_r2_by_scikit_learn():
  from sklearn.metrics import r2_score

  random = np.random.default_rng(0)
  y = random.normal(size=(200, 3)) * [1e-6, 1.0, 1e6] + [0, 5, 1e9]
  predicted = y + random.normal(size=y.shape) * [5e-7, 0.1, 3e5]
  squares = np.square(predicted - y)
  skill = TASKS['regression'].skill
  several = {f'squared_error_{d}': squares[:, d] for d in range(3)}
  np.testing.assert_allclose(skill(several, y), r2_score(y, predicted), rtol=1e-9)
  np.testing.assert_allclose(skill({'squared_error': squares[:, 1]}, y[:, 1:2]), r2_score(y[:, 1], predicted[:, 1]))


@pytest.mark.parametrize('low, high, shown', [(9.5, 10.5, '10'), (9.0, 11.0, '10'), (8.9, 11.1, '≈ 10')])
def test_a_latency_is_rough_where_its_quartiles_are_far_apart(low, high, shown):
  assert latency('10', 10.0, low, high) == shown
