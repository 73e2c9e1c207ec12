"""The comparison with other libraries' estimators: scores, search, tables, and that a killed run goes on."""

import csv
import io
import json
import sys
import time

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error

from experiments import estimators, estimators_tables as tables, rivals


def test_sets_are_the_fewest_classes_with_enough_probability(random):
  p = random.dirichlet(np.full(5, 0.5), 200)
  sets = rivals.mass_sets(p, 0.9)
  for row, chosen in zip(p, sets):
    largest = np.sort(row)[::-1]
    count = np.flatnonzero(np.cumsum(largest) >= 0.9)[0] + 1
    assert chosen.sum() == count and row[chosen].sum() == pytest.approx(largest[:count].sum())


def test_scores_of_classes_are_those_of_scikit_learn(random):
  p, y = random.dirichlet(np.ones(4), 300), random.integers(4, size=300)
  sets = p > 0.2
  found = rivals.scores(rivals.Forecast(p, sets), y)
  assert found['nll'] == pytest.approx(log_loss(y, p))
  assert found['score'] == accuracy_score(y, p.argmax(axis=1))
  assert found['coverage'] == np.mean([sets[i, label] for i, label in enumerate(y)])
  assert found['width'] == pytest.approx(sets.sum() / 300)
  sure = rivals.log_loss(np.array([[1.0, 0.0]]), np.array([1]))
  assert sure == pytest.approx(-np.log(1e-6))


def test_scores_of_gaussians_and_mixtures_are_those_of_scipy(random):
  mean, variance, y = random.normal(size=200), random.uniform(0.5, 2, 200), random.normal(size=200)
  forecast = rivals.gaussian(mean, variance)
  low, high = stats.norm.interval(0.9, mean, np.sqrt(variance))
  np.testing.assert_allclose(forecast.region, np.stack([low, high], axis=1))
  found = rivals.scores(forecast, y)
  assert found['nll'] == pytest.approx(-stats.norm.logpdf(y, mean, np.sqrt(variance)).mean())
  assert found['score'] == pytest.approx(root_mean_squared_error(y, mean))
  assert found['coverage'] == np.mean((low <= y) & (y <= high))
  assert found['width'] == pytest.approx(np.mean(high - low))

  means, variances = random.normal(size=(3, 200)), random.uniform(0.1, 2, (3, 200))
  both = rivals.mixture(means, variances)
  below = stats.norm.cdf(both.region.T[:, None], means, np.sqrt(variances)).mean(axis=1)
  np.testing.assert_allclose(below, [[0.05] * 200, [0.95] * 200], atol=1e-6)
  density = stats.norm.pdf(y, means, np.sqrt(variances)).mean(axis=0)
  assert rivals.scores(both, y)['nll'] == pytest.approx(-np.log(density).mean())


def test_a_search_ends_with_its_time_and_always_tries_the_first():
  losses = iter([3.0, 1.0, 2.0, 0.0])
  now = [0.0]

  def evaluate(params):
    now[0] += 10
    return rivals.Tried(next(losses))

  tries = iter({'at': i} for i in range(4))
  best, tried, count = rivals.search(tries, evaluate, 25, lambda: now[0])
  assert (best, tried.loss, count) == ({'at': 1}, 1.0, 3)  # the fourth would have begun after the time
  best, tried, count = rivals.search(iter([{}, {'at': 1}]), lambda params: rivals.Tried(5.0), 0, lambda: 0.0)
  assert (best, count) == ({}, 1)


@pytest.mark.parametrize('name', rivals.RIVALS)
def test_candidates_begin_with_the_default_and_are_in_the_space(name):
  space = rivals.RIVALS[name].space
  first, *others = rivals.candidates(space, seed=3)
  assert first == {} and len(others) <= rivals.MOST_TRIED - 1
  assert all(params[key] in values for params in others for key, values in space.items())
  assert len({json.dumps(params, sort_keys=True) for params in others}) == len(others)


def test_a_forest_is_judged_by_rows_that_trees_have_not_seen(random):
  x = random.normal(size=(150, 4))
  y, labels = x[:, 0] + 0.1 * random.normal(size=150), (x[:, 0] + 0.3 * random.normal(size=150) > 0).astype(int)
  fit = lambda kind, y: kind(oob_score=True, random_state=1).fit(x, y)
  found = rivals.fitted('forest', 'regression', x, y, seed=1, seconds=0)
  theirs = fit(RandomForestRegressor, y)
  error = np.mean(np.square(theirs.oob_prediction_ - y))
  assert found.variance == pytest.approx(error) and found.tried == 1
  forecast = rivals.forecast('forest', 'regression', found, x[:9])
  spread = np.var([tree.predict(x[:9]) for tree in theirs.estimators_], axis=0)
  np.testing.assert_allclose(forecast.variance[0], spread + error)
  np.testing.assert_allclose(forecast.mean[0], theirs.predict(x[:9]))

  rival, theirs = rivals.RIVALS['forest'], fit(RandomForestClassifier, labels)
  tried = rival.evaluate(rival.make('classification', {}, 1), 'classification', x, labels, 1)
  p = np.clip(theirs.oob_decision_function_[np.arange(150), labels], 1e-6, None)
  assert tried.loss == pytest.approx(-np.log(p).mean())


def test_models_that_see_standardised_rows_predict_in_units(random):
  """What bde is wrapped in, around a model that predicts its training mean and the first column."""

  class Model:
    def fit(self, x, y):
      np.testing.assert_allclose([x.mean(), x.std(), y.mean(), y.std()], [0, 1, 0, 1], atol=1e-9)

    def predict(self, x, raw=False):
      # Two chains with three samples each; the second output is softplus⁻¹ of a deviation of 1.
      outputs = np.stack([x[:, 0], np.full(len(x), np.log(np.e - 1))], axis=-1)
      return np.broadcast_to(outputs, (2, 3, *outputs.shape)) if raw else x[:, 0]

  x = random.normal(5, 3, size=(80, 2))
  x[:, 1] = x[:, 0]
  y = 100 + 7 * x[:, 0]
  model = rivals.Standardised(Model()).fit(x, y)
  np.testing.assert_allclose(model.predict(x), y)
  mean, variance = model.members(x)
  np.testing.assert_allclose(mean, np.broadcast_to(y, (6, 80)))
  np.testing.assert_allclose(np.sqrt(variance), y.std(), rtol=1e-5)


def test_a_gaussian_process_has_its_own_variance_and_not_all_rows(random, monkeypatch):
  x = random.normal(5, 3, size=(300, 2))
  y = 100 + 7 * np.sin(x[:, 0]) + random.normal(0, 2, 300)
  labels = (x[:, 0] > 5).astype(int) + (x[:, 1] > 5)
  found = rivals.fitted('gaussian_process', 'regression', x[:150], y[:150], seed=1, seconds=0)
  assert found.params == {} and not found.model.capped
  near = rivals.forecast('gaussian_process', 'regression', found, x[150:])
  half = stats.norm.ppf(0.95) * np.sqrt(near.variance[0])
  np.testing.assert_allclose(near.region, near.mean.T + np.stack([-half, half], axis=1), rtol=1e-5)
  # The noise is in it, and far away there is the variance of all targets.
  assert 1.5 < np.sqrt(near.variance).min() < 2.5
  assert 0.8 < rivals.scores(near, y[150:])['coverage'] < 0.96
  far = rivals.forecast('gaussian_process', 'regression', found, x[:1] + 1000)
  assert far.mean[0, 0] == pytest.approx(y[:150].mean(), abs=3) and far.variance > 2 * near.variance.min()

  monkeypatch.setattr(rivals, 'MOST_ROWS', {'regression': 40, 'classification': 60})
  rival = rivals.RIVALS['gaussian_process']
  for task, target in (('regression', y), ('classification', labels)):
    tried = rival.evaluate(rival.make(task, {'kernel': 'Matern 3/2'}, 1), task, x, target, 1)
    process = tried.model.model[-1]  # it need not be fitted again
    assert np.isfinite(tried.loss)
    binary = process if task == 'regression' else process.base_estimator_.estimators_[0]
    assert len(binary.X_train_) == rivals.MOST_ROWS[task]
  p = tried.model.predict_proba(x)
  assert p.shape == (300, 3) and rivals.log_loss(p, labels) < np.log(3) / 2


def test_rows_are_kept_and_a_torn_line_is_not(tmp_path):
  path = tmp_path / 'rows.jsonl'
  assert estimators.read_rows(path) == []
  for number in range(2):
    estimators.append(path, {'set': 'wine', 'split': number, 'method': 'forest'})
  with path.open('a') as file:
    file.write('{"set": "wi')
  assert [estimators.key_of(row) for row in estimators.read_rows(path)] == [
    ('wine', 0, 'forest'),
    ('wine', 1, 'forest'),
  ]
  estimators.append(path, {'set': 'wine', 'split': 2, 'method': 'forest'})
  assert [row['split'] for row in estimators.read_rows(path)] == [0, 1, 2]


def test_first_splits_of_all_sets_come_first():
  found = estimators.planned(['wine', *estimators.ONE_SPLIT], 2, ['student', 'forest'])
  large = estimators.ONE_SPLIT[0]
  assert found == [
    ('wine', 0, 'student'),
    ('wine', 0, 'forest'),
    (large, 0, 'student'),
    (large, 0, 'forest'),
    ('wine', 1, 'student'),
    ('wine', 1, 'forest'),
  ]


def test_what_is_there_is_not_measured_again(tmp_path, monkeypatch):
  """One fit gives two rows; a run that is killed before the last method goes on with that one."""
  calls = []

  def measure(run, name, number, method):
    if method == 'bde' and 'killed' not in calls:
      calls.append('killed')
      raise KeyboardInterrupt
    calls.append(method)
    both = estimators.OURS if method in estimators.OURS else (method,)
    return [{'set': name, 'split': number, 'method': each} for each in both]

  monkeypatch.setattr(estimators, 'measure', measure)
  run = estimators.Run(tmp_path, '')
  with pytest.raises(KeyboardInterrupt):
    estimators.run_all(run, ['wine'], 1, ['student', 'ensemble', 'forest', 'bde'])
  estimators.run_all(run, ['wine'], 1, ['student', 'ensemble', 'forest', 'bde'])
  assert calls == ['student', 'forest', 'killed', 'bde']
  assert [row['method'] for row in estimators.read_rows(tmp_path / 'rows.jsonl')] == [
    'student',
    'ensemble',
    'forest',
    'bde',
  ]


def test_a_median_is_over_enough_calls():
  calls = []

  def call():
    calls.append(time.perf_counter())
    time.sleep(0.02 if len(calls) < 3 else 0.002)  # the first two are slow: they compile

  assert 0.002 <= estimators.median_seconds(call, stretch=0) < 0.015
  assert len(calls) == 2 + estimators.LEAST_CALLS


def made_rows():
  """Two splits of one set, for three methods."""
  of = {
    'student': [(0.20, 0.90), (0.40, 0.80)],
    'forest': [(0.50, 0.80), (0.60, 0.60)],
    'student_of_forest': [(0.40, 0.80), (0.60, 0.594)],
  }
  about = dict(set='wine', task='classification', coverage=0.9, width=1.5, seconds=2.0, tried=1, params={'a': 1})
  return [
    about | dict(split=split, method=method, nll=nll, score=score, bytes=1000.0)
    for method, pairs in of.items()
    for split, (nll, score) in enumerate(pairs)
  ]


def test_a_difference_is_over_the_splits_that_both_have():
  rows = [row for row in made_rows() if (row['method'], row['split']) != ('student', 1)]
  assert tables.pairs(rows, 'forest', 'student', 'nll') == ([0.50], [0.20])
  found = tables.difference(made_rows(), 'forest', 'student', 'nll', 0.25)
  gaps = np.array([0.3, 0.2])
  # Nadeau and Bengio's correction, by hand.
  error = gaps.std(ddof=1) * np.sqrt(1 / 2 + 0.25)
  assert found.mean == pytest.approx(0.25) and found.error == pytest.approx(error)
  assert found.p == pytest.approx(2 * stats.t.sf(0.25 / error, 1))
  assert tables.difference(made_rows(), 'bde', 'student', 'nll', 0.25) is None


def test_tables_say_what_rows_say():
  timings = [
    dict(set='wine', split=0, method=method, task='classification', seconds_1=one, seconds_1000=many)
    for method, one, many in (('forest', 0.010, 0.020), ('student_of_forest', 0.001, 0.010))
  ]
  scored, forests = tables.all_tables(made_rows(), timings, estimators.METHODS, 0.25)
  assert [name for name, _ in scored.body] == ['our student', 'random forest', 'our student of the forest']
  forest = dict(zip(scored.headings, scored.body[1][1]))
  assert forest['set'][0] == 'wine, 2 splits' and forest['log loss'][0].startswith('0.550 ±')
  assert forest['log loss'][1] == '+0.25' and forest['accuracy'][1] == '-0.15'
  assert forest['ms, 1 row'][0] == '10' and dict(zip(scored.headings, scored.body[0][1]))['ms, 1 row'][0] == '–'
  [(name, cells)] = forests.body
  row = dict(zip(forests.headings, (text for text, _ in cells)))
  assert name == 'wine' and row['worse by, %'].startswith('0.50 ±')  # the mean of 0% and 1%
  assert row['NLL − that of the forest'].startswith('-0.050 ±')
  assert (row['latency ÷, 1 row'], row['latency ÷, 1,000 rows']) == ('0.10', '0.50')
  assert row['kept'] == 'no: latency'


def test_the_csv_has_all_rows_with_timings():
  timings = [dict(set='wine', split=0, method='forest', task='classification', seconds_1=0.5, seconds_1000=1.0)]
  found = list(csv.DictReader(io.StringIO(tables.csv_of(made_rows(), timings))))
  assert len(found) == 6 and json.loads(found[0]['params']) == {'a': 1}
  timed = [row for row in found if row['seconds_1']]
  assert [(row['method'], row['split'], float(row['seconds_1'])) for row in timed] == [('forest', '0', 0.5)]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_a_quick_run_writes_tables_and_goes_on(tmp_path, monkeypatch):
  # bde takes longer to compile than all others take: here it is not found.
  monkeypatch.setitem(sys.modules, 'bde', None)
  arguments = ['--quick', '--only', 'wine', '--splits', '1', '--workdir', str(tmp_path)]
  estimators.main(arguments)
  rows = estimators.read_rows(tmp_path / 'rows.jsonl')
  assert [row['method'] for row in rows] == [name for name in estimators.METHODS if name != 'bde']
  assert all(0 <= row['score'] <= 1 and row['bytes'] > 0 for row in rows)
  page = (tmp_path / 'results' / 'README.md').read_text()
  assert 'bde is missing: it cannot be imported' in page and '| our student of the forest | wine, 1 split |' in page
  assert (tmp_path / 'results' / 'estimators.png').stat().st_size > 5000

  before = (tmp_path / 'rows.jsonl').read_bytes()
  estimators.main([*arguments, '--timings'])
  assert (tmp_path / 'rows.jsonl').read_bytes() == before
  timings = estimators.read_rows(tmp_path / 'timings.jsonl')
  assert {row['method'] for row in timings} == {row['method'] for row in rows}
  assert all(row['seconds_1'] > 0 and row['seconds_1000'] > 0 for row in timings)
