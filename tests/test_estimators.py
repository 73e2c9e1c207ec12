"""Training on arrays: ensembles, students of fitted teachers, and the estimators of scikit-learn."""

import functools
import json
import logging
import pickle

import joblib
from joblib.externals.loky import get_reusable_executor
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, ShuffleSplit, cross_validate, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import check_random_state

import hydra_jax
from hydra_jax import HydraClassifier, HydraRegressor, UserError, mlp
from hydra_jax.estimators import distil as distillation, teachers
from hydra_jax.estimators.scikit_learn import held_out_rows, label_score

small = functools.partial(mlp, widths=(16,))
SETTINGS = {'learning_rate': 0.02, 'batch_size': 32}
QUICK = dict(network=small, epochs=60, settings=SETTINGS | {'augment': ()}, random_state=0, verbose=False)
WINE = train_test_split(*load_wine(return_X_y=True), random_state=0, stratify=load_wine().target)
DIABETES = train_test_split(*load_diabetes(return_X_y=True), random_state=0)
OF_WINE = np.array(['c', 'a', 'b'])


@pytest.fixture(scope='module')
def classifier():
  """A student of networks, on names of classes and a table with gaps."""
  x, _, y, _ = WINE
  return HydraClassifier(members=4, **QUICK).fit(as_table(x), OF_WINE[y])


def as_table(x):
  """The same with names, a column of texts in place of numbers, and gaps."""
  table = pd.DataFrame(x[:, :6], columns=list('abcdef'))
  table['strength'] = np.where(x[:, 9] > 5, 'strong', np.where(x[:, 9] > 3, 'medium', 'weak'))
  table['tint'] = x[:, 10]
  table.loc[table.index % 11 == 0, 'tint'] = np.nan
  return table.join(pd.DataFrame(x[:, 11:], columns=['hue', 'proline']))


@pytest.mark.slow
def test_a_table_with_texts_and_gaps_is_learnt(classifier):
  _, x, _, y = WINE
  table = as_table(x)
  p = classifier.predict_proba(table)
  assert classifier.score(table, OF_WINE[y]) > 0.85
  assert p.shape == (45, 3) and list(classifier.classes_) == ['a', 'b', 'c']
  np.testing.assert_array_equal(classifier.predict(table), classifier.classes_[p.argmax(axis=1)])
  assert classifier.n_features_in_ == 10 and classifier.feature_names_in_[6] == 'strength'
  found = classifier.uncertainty(table)
  np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, rtol=1e-4, atol=1e-6)
  members = classifier.predict_members(table)
  assert members.shape == (4, 45, 3) and np.ptp(members, axis=0).max() > 0.01
  np.testing.assert_array_equal(classifier.predictor_.classes, ('a', 'b', 'c'))
  assert classifier.ensemble_.predict(classifier.columns_.encode(table)).members.shape == (4, 45, 3)


@pytest.mark.slow
def test_sets_hold_the_label_as_often_as_promised(classifier):
  _, x, _, y = WINE
  table, columns = as_table(x), np.searchsorted(classifier.classes_, OF_WINE[y])
  classifier = classifier.calibrate(table[:25], OF_WINE[y][:25])
  sets = classifier.predict_set(table, 0.8)
  assert sets.shape == (45, 3) and sets[np.arange(45), columns].mean() > 0.7
  with pytest.raises(UserError, match='coverage'):
    classifier.predict_set(table, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize('validation', [0, 0.1])  # a tenth of 133 rows is too few
def test_sets_and_intervals_without_held_out_rows_are_refused(validation):
  few = QUICK | {'epochs': 2, 'validation': validation}
  sets = HydraClassifier(RandomForestClassifier(3, random_state=0), **few).fit(WINE[0], WINE[2])
  intervals = HydraRegressor(RandomForestRegressor(3, random_state=0), **few).fit(WINE[0], WINE[2])
  for ask in (sets.predict_set, intervals.predict_interval):
    with pytest.raises(UserError, match=r'not calibrated.*validation=.*first \.calibrate\(X, y\)'):
      ask(WINE[1])
  found = intervals.calibrate(WINE[1], WINE[3]).predict_interval(WINE[1], 0.8)
  assert np.mean((found[:, 0] <= WINE[3]) & (WINE[3] <= found[:, 1])) > 0.7
  assert sets.calibrate(WINE[1], WINE[3]).predict_set(WINE[1], 0.8)[np.arange(45), WINE[3]].mean() > 0.7


def test_columns_in_another_order_or_missing_are_refused(classifier):
  table = as_table(WINE[1])
  for wrong in (table[table.columns[::-1]], table.drop(columns='hue'), table.rename(columns={'hue': 'shade'})):
    with pytest.raises(ValueError, match='feature names'):
      classifier.predict(wrong)


@pytest.mark.slow
def test_several_targets_and_intervals_in_units_of_the_targets():
  x, x_new, y, y_new = DIABETES
  forest = RandomForestRegressor(15, random_state=0)
  both = np.stack([y, 1e4 - 3 * y], axis=1)
  student = HydraRegressor(forest, **QUICK).fit(x, both)
  assert not hasattr(forest, 'estimators_') and len(student.teacher_.estimators_) == 15
  mean, deviation = student.predict(x_new, return_std=True)
  assert mean.shape == deviation.shape == (111, 2)
  np.testing.assert_allclose(1e4 - 3 * mean[:, 0], mean[:, 1], atol=60)
  forest_error = np.sqrt(np.mean((student.teacher_.predict(x_new)[:, 0] - y_new) ** 2))
  assert np.sqrt(np.mean((mean[:, 0] - y_new) ** 2)) < 1.02 * forest_error
  found = student.predict_interval(x_new, 0.9)
  assert found.shape == (111, 2, 2) and np.all(found[..., 0] < found[..., 1])
  assert 0.8 < np.mean((found[:, 0, 0] <= y_new) & (y_new <= found[:, 0, 1])) <= 1
  assert student.predict_members(x_new).shape == (15, 111, 2)
  total, aleatoric, epistemic = student.uncertainty(x_new)
  np.testing.assert_allclose(deviation**2, total, rtol=1e-5)
  np.testing.assert_allclose(total, aleatoric + epistemic, rtol=1e-4)


@pytest.mark.slow
def test_a_student_of_a_forest_is_as_accurate_and_surer_of_the_truth():
  x, x_new, y, y_new = WINE
  forest = RandomForestClassifier(40, random_state=0).fit(x, y)
  student = HydraClassifier(forest, **QUICK).fit(x, y)
  assert student.teacher_ is forest and not hasattr(student, 'ensemble_')
  assert student.score(x_new, y_new) > 0.95 * forest.score(x_new, y_new)
  assert log_loss(y_new, student.predict_proba(x_new)) < log_loss(y_new, forest.predict_proba(x_new)) + 0.1
  assert student.predict_members(x_new).shape[0] == 40


@pytest.mark.slow
@pytest.mark.parametrize('trees', [3, 30])
def test_a_card_has_no_scores_on_labels_that_the_teacher_knows(trees, tmp_path):
  """Where all of a few trees have seen a row, what is kept of the forest is measured without it."""
  x, _, y, _ = WINE
  forest = RandomForestClassifier(trees, random_state=0).fit(x, y)
  student = HydraClassifier(forest, **QUICK | {'validation': 0.3, 'epochs': 3}).fit(x, y)
  student.save(tmp_path / 'model')
  scores = json.loads((tmp_path / 'model' / 'model.json').read_text())['facts']['scores']
  held_out = held_out_rows(len(x), 0.3, check_random_state(0).randint(2**31 - 1), y)
  seen_by_all = functools.reduce(np.intersect1d, forest.estimators_samples_)
  assert (len(np.intersect1d(held_out, seen_by_all)) > 0) == (trees == 3)
  assert not {'accuracy', 'nll', 'brier'} & {score['metric'] for score in scores}
  assert 'Not measured' in (tmp_path / 'model' / 'README.md').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['regression', 'classification'])
def test_a_forest_that_has_seen_the_validation_part_makes_no_promise_too_large(kind, random):
  """Its trees know all labels, and the noise in them: only errors of those that have not are as large as new ones."""
  x, x_new = random.normal(size=(600, 3)), random.normal(size=(2000, 3))
  settings = QUICK | dict(validation=0.5, epochs=20)
  if kind == 'regression':
    y, y_new = random.normal(size=600), random.normal(size=2000)
    forest = RandomForestRegressor(20, random_state=0).fit(x, y)
    assert np.mean(abs(forest.predict(x) - y)) < 0.6 * np.mean(abs(forest.predict(x_new) - y_new))
    low, high = HydraRegressor(forest, **settings).fit(x, y).predict_interval(x_new, 0.8).T
    covered = np.mean((low <= y_new) & (y_new <= high))
  else:
    noisy = lambda x: np.where(random.random(len(x)) < 0.6, x.argmax(axis=1), random.integers(3, size=len(x)))
    y, y_new = noisy(x), noisy(x_new)
    forest = RandomForestClassifier(20, random_state=0).fit(x, y)
    sets = HydraClassifier(forest, **settings).fit(x, y).predict_set(x_new, 0.8)
    covered = np.mean(sets[np.arange(2000), y_new])
  assert 0.74 < covered < 0.96  # sets of few trees are larger than they had to be


@pytest.mark.slow
def test_grid_search_fits_an_unfitted_teacher_on_each_fold():
  """`clone` makes an unfitted forest of a fitted one, so that no fold is seen before."""
  x, _, y, _ = WINE
  forest = RandomForestClassifier(3, random_state=0).fit(x, y)
  estimator = HydraClassifier(forest, **QUICK | {'epochs': 3})
  assert not hasattr(clone(estimator).teacher, 'estimators_')
  search = GridSearchCV(make_pipeline(StandardScaler(), estimator), {'hydraclassifier__epochs': [1, 20]}, cv=2)
  search.fit(x, y)
  assert search.best_params_ == {'hydraclassifier__epochs': 20}
  assert search.score(x, y) > 0.8


@pytest.mark.slow
def test_an_estimator_that_another_process_has_fitted():
  """A worker pickles it, with the ensemble; here it predicts as there."""
  x, _, y, _ = WINE
  estimator, table = HydraClassifier(members=2, **QUICK | {'epochs': 5, 'validation': 0.3}), as_table(x)
  split = ShuffleSplit(1, test_size=0.5, random_state=0)
  try:
    found = cross_validate(estimator, table, OF_WINE[y], cv=split, n_jobs=2, return_estimator=True)
  finally:
    get_reusable_executor().shutdown(wait=True)
  (student,), ((_, rows),) = found['estimator'], split.split(x)
  assert student.score(table.iloc[rows], OF_WINE[y][rows]) == pytest.approx(found['test_score'][0])
  members = student.ensemble_.predict(student.columns_.encode(table)).members
  assert members.shape == (2, len(x), 3) and student.predictor_.calibration.examples == 20


@pytest.mark.slow
def test_pickled_estimators_are_the_same(classifier, tmp_path):
  table = as_table(WINE[1])
  joblib.dump(classifier, tmp_path / 'estimator')
  found = joblib.load(tmp_path / 'estimator')
  for method in ('predict_proba', 'uncertainty', 'predict_members', 'predict'):
    np.testing.assert_array_equal(getattr(found, method)(table), getattr(classifier, method)(table))
  student = pickle.loads(pickle.dumps(HydraClassifier(classifier.ensemble_)))  # not fitted, with a network as teacher
  x = classifier.columns_.encode(table)
  np.testing.assert_array_equal(student.teacher.predict(x).mean, classifier.ensemble_.predict(x).mean)
  found.save(tmp_path / 'found')
  classifier.save(tmp_path / 'classifier')
  assert (tmp_path / 'found' / 'model.json').read_text() == (tmp_path / 'classifier' / 'model.json').read_text()


@pytest.mark.slow
def test_weights_count_and_rows_of_weight_0_do_not():
  x, x_new, y, _ = WINE
  weight = np.where(np.arange(len(x)) % 3, 1.0, 0.0)
  quick = QUICK | {'members': 2, 'validation': 0, 'epochs': 20}
  wrong = np.where(weight, y, (y + 1) % 3)
  found = HydraClassifier(**quick).fit(x, wrong, weight).predict_proba(x_new)
  np.testing.assert_array_equal(found, HydraClassifier(**quick).fit(x[weight > 0], y[weight > 0]).predict_proba(x_new))
  heavy = HydraClassifier(**quick).fit(x, y, np.where(y == 1, 50.0, 1.0)).predict_proba(x_new)
  assert heavy[:, 1].mean() > found[:, 1].mean() + 0.02


@pytest.mark.slow
@pytest.mark.parametrize('folds', [0, 3])
def test_an_ensemble_stops_where_it_is_best(folds, caplog, random):
  """On noise that can be learnt by heart, members that train to the end are worse than those that stop."""
  x, y = random.normal(size=(200, 10)), random.integers(2, size=200)
  settings = dict(members=3, network=small, epochs=200.0, verbose=False, seed=1, task='classification', **SETTINGS)
  with caplog.at_level(logging.INFO, 'hydra_jax'):
    stopped = hydra_jax.train_ensemble(x[:100], y[:100], validation=0.2, folds=folds, patience=2, **settings)
  assert 'best after' in caplog.text
  to_the_end = hydra_jax.train_ensemble(x[:100], y[:100], validation=0, **settings)
  nll = lambda found: log_loss(y[100:], found.predict(x[100:]).mean)
  assert nll(stopped) < nll(to_the_end) - 0.3
  assert stopped.predict(x).members.shape == (3, 200, 2)


@pytest.mark.slow
def test_an_ensemble_of_regressors_knows_the_noise(random):
  x = random.uniform(-2, 2, (500, 1))
  y = 100 + 10 * np.sin(2 * x[:, 0]) + 2 * random.normal(size=500)
  found = hydra_jax.train_ensemble(x, y, 3, small, epochs=80.0, verbose=False, **SETTINGS).predict(x)
  assert np.sqrt(np.mean((found.mean[:, 0] - 100 - 10 * np.sin(2 * x[:, 0])) ** 2)) < 1
  assert np.sqrt(np.median(found.aleatoric)) == pytest.approx(2, rel=0.3)


@pytest.mark.slow
def test_a_function_teaches_on_more_inputs_and_noise_is_chosen_by_the_validation_part(random, caplog):
  """A few rows do not show the whole function. A teacher that can be asked does."""
  x, x_new = random.normal(size=(40, 2)), random.normal(size=(500, 2))
  teacher = [lambda x, m=m: np.stack([3 * np.sin(2 * x[:, 0] + m / 5), 2 * x[:, 1]], axis=1) for m in range(3)]
  settings = dict(
    network=functools.partial(mlp, widths=(64,)), epochs=300.0, temperature=1.0, verbose=False, **SETTINGS
  )
  truth = np.mean([np.exp(f(x_new)) / np.exp(f(x_new)).sum(axis=1, keepdims=True) for f in teacher], axis=0)
  error = lambda student: np.abs(student.predict(x_new).mean - truth).mean()
  alone = hydra_jax.distil(x, teacher, augment=(), validation=0, **settings)
  more = hydra_jax.distil(x, teacher, augment=(), validation=0, x_unlabelled=random.normal(size=(400, 2)), **settings)
  assert error(more) < 0.7 * error(alone)
  with caplog.at_level(logging.INFO, 'hydra_jax'):
    chosen = hydra_jax.distil(x, teacher, validation=0.4, **settings | {'epochs': 50.0})
  assert 'that predicts held-out rows best' in caplog.text
  assert error(chosen) < 0.3


def test_noise_is_that_of_the_config_and_all_members_teach_on_copies(random):
  x = random.normal(size=(3000, 2)) * [1, 100]
  given = np.where(random.random((2, 3000)) < [[0.5], [0.0]], np.nan, 1.0)
  outputs = teachers.Outputs(mean=given[..., None], variance=given[..., None])
  asked, ones = [], lambda x: np.ones((2, len(x), 1))

  def predict(x):
    asked.append(x)
    return teachers.Outputs(mean=ones(x), variance=ones(x))

  source = teachers.Teacher(predict=predict, name='ones')
  lesson = distillation.Lesson(x=x, outputs=outputs, source=source)
  scaling = distillation.scaling_of(x, outputs)
  noisy = distillation.with_copies(lesson, 'noise', scaling, seed=0)
  moved = ((asked[0] - np.tile(x, (4, 1))) / scaling.x_scale).reshape(4, 3000, 2)
  # Deviations are uniform on 0 to ½: the mean square is 1/12.
  np.testing.assert_allclose(np.square(moved).mean(axis=(0, 1)), 1 / 12, rtol=0.05)
  assert noisy.more.present.all() and noisy.outputs.present.mean() < 0.8


def test_the_validation_part_has_all_classes_in_their_shares():
  classes = np.repeat([0, 1, 2], [600, 300, 100])
  rows = held_out_rows(1000, 0.1, 3, classes)
  np.testing.assert_array_equal(np.bincount(classes[rows]), [60, 30, 10])
  assert len(held_out_rows(100, 0.1, 3)) == 0 and len(held_out_rows(10**6, 0.1, 3)) == 1000


def test_labels_score_students(random):
  """As scikit-learn and SciPy score them, with the best scale; a student that is badly calibrated is no worse."""
  from scipy import stats
  from scipy.optimize import minimize_scalar

  p = random.dirichlet(np.ones(3), 4000)
  y = np.array([random.choice(3, p=each) for each in p])

  def classifier(p):
    predict = lambda self, x: hydra_jax.Prediction(p, p, p, p)
    return type('Fake', (), {'predict': predict, 'task': 'classification'})()

  right = log_loss(y, p)
  assert label_score(classifier(p), p, y) == pytest.approx(right, rel=2e-3)
  unsure = p**0.4 / (p**0.4).sum(axis=1, keepdims=True)
  assert log_loss(y, unsure) > 1.05 * right and label_score(classifier(unsure), p, y) == pytest.approx(right, rel=2e-3)

  mean, variance = random.normal(size=(4, 4000, 2)), random.uniform(1, 2, (4, 4000, 2))
  y = mean[0] + random.normal(size=(4000, 2))

  def regressor(variance):
    predict = lambda self, x: hydra_jax.Prediction(p, p, p, p, members=mean, member_variances=variance)
    return type('Fake', (), {'predict': predict, 'task': 'regression'})()

  def nll(log_t):
    density = stats.norm.pdf(y, mean, np.sqrt(np.exp(log_t) * variance)).prod(axis=-1).mean(axis=0)
    return -np.log(density).mean()

  best = minimize_scalar(nll, bounds=(-3, 3), method='bounded').fun
  for factor in (1.0, 3.0):
    assert label_score(regressor(factor * variance), p, y) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(
  'arguments, error, words',
  [
    ({'teacher': 3}, UserError, 'the teacher is a int'),
    ({'teacher': DecisionTreeClassifier()}, UserError, 'the teacher is a DecisionTreeClassifier'),
    ({'teacher': RandomForestRegressor(2)}, UserError, 'the teacher is for regression'),
    ({'method': 'hydro'}, UserError, "did you mean 'hydra'"),
    ({'members': 0}, UserError, 'members=0'),
    ({'settings': {'learning_rat': 1}}, UserError, "did you mean 'learning_rate'"),
  ],
)
def test_wrong_arguments_are_one_line(arguments, error, words):
  x, _, y, _ = WINE
  with pytest.raises(error, match=words):
    HydraClassifier(**QUICK | arguments).fit(x, y)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'y': np.zeros(20)}, 'one class|same for every|set task'),
    ({'y': np.arange(19) % 2}, '19 labels for 20'),
    ({'sample_weight': -np.ones(20)}, 'sample_weight'),
    ({'folds': 1}, '1 folds of'),
    ({'y': np.arange(20) % 7}, 'set task=classification'),
  ],
)
def test_what_no_ensemble_learns_from_is_refused(change, words, random):
  with pytest.raises(UserError, match=words):
    hydra_jax.train_ensemble(**{'x': random.normal(size=(20, 2)), 'y': np.arange(20) % 2, 'members': 2} | change)
