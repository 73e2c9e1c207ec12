"""Predictors that are calibrated on held-out examples: what they promise, measured, and what is refused."""

from dataclasses import replace
import functools
import json
import logging
import math

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special
import scipy.stats

import hydra_jax
from hydra_jax import UserError
from hydra_jax.data import Scaling
from hydra_jax.evaluation.calibrated import MOST_SCORES, Calibration, around, calibrate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.maths import calibration, conformal
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets.cut import Network

M, C, F, D = 4, 3, 5, 2
SURE = 3.0  # times as sharp as the labels are
NAMES = ('cat', 'dog', 'eel')
SHIFT, SCALE = np.array([1e3, -5.0]), np.array([200.0, 0.1])
random_weights = np.random.default_rng(7)
WEIGHTS = random_weights.normal(size=(1, F, C)) + 0.2 * random_weights.normal(size=(M, F, C))
SLOPES = random_weights.normal(size=(1, F, D)) + 0.2 * random_weights.normal(size=(M, F, D))


def made(task, apply, members=M, predictive='members', y=(SHIFT[:0], SCALE[:0]), classes=()):
  """A predictor whose network is a formula."""
  network = Network(lambda key, x: ({}, {}), lambda params, state, x: (apply(x), state), tuple(range(members)), 0)
  model = Model(network, {}, {}, Scaling(np.zeros(F), np.ones(F), *y), TASKS[task].predictives[predictive].read)
  return Predictor(model, task, (F,), False, classes, predictive == 'members')


def classifier(classes=(), members=M, predictive='members'):
  weights = jnp.asarray(SURE * WEIGHTS[:members], jnp.float32)
  return made('classification', lambda x: jnp.einsum('bf,mfc->mbc', x, weights), members, predictive, classes=classes)


def regressor(members=M, predictive='members', width=2):
  """Its variances are a quarter of what they should be."""
  slopes = jnp.asarray(SLOPES[:members], jnp.float32)

  def apply(x):
    mean = jnp.einsum('bf,mfd->mbd', x, slopes)
    variance = 0.25 * noise(x) ** 2
    raw = variance + jnp.log(-jnp.expm1(-variance))  # softplus of this is the variance
    return jnp.concatenate([mean, *[jnp.broadcast_to(raw, mean.shape)] * (width - 1)], axis=-1)

  return made('regression', apply, members, predictive, (SHIFT, SCALE))


def noise(x):
  """Standard deviation of the targets, in units of the network, `[N, 1]`."""
  return 0.3 + abs(x[:, :1])


def examples(random, n, task='classification'):
  x = random.normal(size=(n, F))
  if task == 'classification':
    return x, np.argmax(x @ WEIGHTS.mean(axis=0) + random.gumbel(size=(n, C)), axis=1)
  mean = x @ SLOPES.mean(axis=0)
  return x, SHIFT + SCALE * (mean + noise(x) * random.normal(size=mean.shape))


@functools.cache
def calibrated(task):
  predictor = classifier(NAMES) if task == 'classification' else regressor()
  x, y = examples(np.random.default_rng(1), 1500, task)
  return calibrate(predictor, x, np.array(NAMES)[y] if task == 'classification' else y)


def within_chance(found, expected, deviation):
  return abs(found - expected) < 4.5 * deviation


def test_the_temperature_changes_the_mean_alone(random):
  predictor = calibrated('classification')
  tau = predictor.calibration.label_scale
  assert tau == pytest.approx(SURE, rel=0.15)
  x, y = examples(random, 2000)
  before, after = replace(predictor, calibration=None).predict(x), predictor.predict(x)
  for name in ('total', 'aleatoric', 'epistemic', 'members', 'log_members'):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
  np.testing.assert_allclose(after.mean, scipy.special.softmax(np.log(before.mean) / tau, axis=1), rtol=1e-4)
  assert after.mean.dtype == before.mean.dtype and (after.mean.argmax(1) == before.mean.argmax(1)).all()
  nll = lambda mean: -np.log(mean[np.arange(len(y)), y]).mean()
  assert nll(after.mean) < nll(before.mean) - 0.1


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_a_prediction_is_put_around_another_mean(task, random):
  """Members move with it, and uncertainty stays."""
  predictor = (classifier if task == 'classification' else regressor)()
  prediction = predictor.predict(random.normal(size=(9, F)))
  mean = random.dirichlet(np.ones(C), 9) if task == 'classification' else prediction.mean + random.normal(size=(9, D))
  found = around(prediction, mean)
  np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
  for name in ('total', 'aleatoric', 'epistemic', 'member_variances'):
    assert getattr(found, name) is getattr(prediction, name)
  if task == 'regression':
    np.testing.assert_allclose(found.members.mean(axis=0), mean, rtol=1e-6)
    np.testing.assert_allclose(found.members.var(axis=0), prediction.epistemic, rtol=1e-5)


def test_probabilities_too_small_for_float32_are_not_lost():
  predictor = calibrated('classification')
  direction = WEIGHTS.mean(axis=0)[:, 0] - WEIGHTS.mean(axis=0)[:, 1]
  x = np.array([[60 / SURE], [150 / SURE]]) * direction / np.sum(direction**2)
  before, after = replace(predictor, calibration=None).predict(x), predictor.predict(x)
  assert before.mean[0].min() > 0 == before.mean[1].min() and np.isfinite(before.log_members).all()
  log_mean = scipy.special.logsumexp(before.log_members.astype(np.float64), axis=0) - math.log(M)
  expected = scipy.special.softmax(log_mean / predictor.calibration.label_scale, axis=1)
  np.testing.assert_allclose(after.mean, expected, rtol=1e-4)
  assert 1e-30 < after.mean[1].min() < 1e-10


def test_the_scale_changes_all_variances(random):
  predictor = calibrated('regression')
  t = predictor.calibration.label_scale
  assert 3 < t < 5
  x, _ = examples(random, 50, 'regression')
  before, after = replace(predictor, calibration=None).predict(x), predictor.predict(x)
  for name in ('mean', 'members', 'epistemic'):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
  for name in ('aleatoric', 'member_variances'):
    np.testing.assert_allclose(getattr(after, name), t * getattr(before, name))
  np.testing.assert_allclose(after.total, after.aleatoric + after.epistemic)
  np.testing.assert_allclose(after.aleatoric, after.member_variances.mean(axis=0), rtol=1e-5)


def test_scores_are_those_of_calibrated_predictions_of_other_examples():
  """The whole of `calibrate`, by hand."""
  x, y = examples(np.random.default_rng(5), 101)
  predictor = classifier()
  found = calibrate(predictor, x, y).calibration
  rows = np.random.default_rng(0).permutation(101)
  first, second = rows[:25], rows[25:]
  plain = predictor.predict(x)
  tau = calibration.temperature(np.log(plain.mean[first].astype(np.float64)), y[first])
  assert found.label_scale == pytest.approx(tau, rel=1e-6)
  p = scipy.special.softmax(np.log(plain.mean.astype(np.float64)) / tau, axis=1)
  np.testing.assert_allclose(found.scores['lac'], np.sort(1 - p[second, y[second]]), atol=1e-6)
  np.testing.assert_allclose(
    found.scores['aps'], np.sort((p[second] * (p[second] > p[second, y[second]][:, None])).sum(1)), atol=1e-6
  )
  np.testing.assert_array_equal(found.uncertainties, np.sort(plain.epistemic))
  assert (found.scored, found.examples, found.ranking) == (76, 101, 'epistemic')


@pytest.mark.parametrize('method', ['lac', 'aps'])
def test_sets_cover_what_they_promise(method, random):
  """Over many calibrations, with the temperature of each. Sets are never empty, so coverage is that or more."""
  predictor, n, new, repeats, coverage = classifier(), 60, 40, 250, 0.9
  found, sizes = [], []
  for _ in range(repeats):
    x, y = examples(random, n + new)
    predictor = calibrate(predictor, x[:n], y[:n], batch_size=n)
    sets = predictor.predict_set(x[n:], coverage, method, batch_size=n)
    assert sets.dtype == bool and sets.shape == (new, C) and sets.any(axis=1).all()
    found.append(sets[np.arange(new), y[n:]].mean())
    sizes.append(sets.sum(axis=1).mean())
  scored = predictor.calibration.scored
  k = conformal.rank(scored, coverage)
  expected = k / (scored + 1)
  deviation = math.sqrt((scipy.stats.beta(k, scored + 1 - k).var() + coverage * (1 - coverage) / new) / repeats)
  assert np.mean(found) > expected - 4.5 * deviation and 1.2 < np.mean(sizes) < 2.8
  if method == 'lac':
    assert np.mean(found) < expected + 4.5 * deviation


def test_the_likeliest_class_is_in_every_set(random):
  predictor = calibrated('classification')
  x, _ = examples(random, 300)
  likeliest = predictor.predict(x).mean.argmax(axis=1)
  for method in ('lac', 'aps'):
    sets = predictor.predict_set(x, 0.05, method)
    assert sets[np.arange(300), likeliest].all() and sets.sum(axis=1).mean() < 1.2
    assert (predictor.predict_set(x, 0.999, method) >= sets).all()


def test_intervals_cover_each_target_as_promised(random):
  predictor, n, new, repeats, coverage = regressor(), 60, 100, 100, 0.8
  found = []
  for _ in range(repeats):
    x, y = examples(random, n + new, 'regression')
    predictor = calibrate(predictor, x[:n], y[:n], batch_size=n)
    intervals = predictor.predict_interval(x[n:], coverage, batch_size=n)
    assert intervals.shape == (new, D, 2)
    found.append(((intervals[..., 0] <= y[n:]) & (y[n:] <= intervals[..., 1])).mean(axis=0))
  scored = predictor.calibration.scored
  k = conformal.rank(scored, coverage)
  deviation = math.sqrt((scipy.stats.beta(k, scored + 1 - k).var() + coverage * (1 - coverage) / new) / repeats)
  for each in np.mean(found, axis=0):
    assert within_chance(each, k / (scored + 1), deviation)


def test_without_calibration_the_interval_is_that_of_the_mixture(random):
  """In the units of the targets; a single Gaussian by its quantiles. Here it covers less than it says."""
  x, y = examples(random, 2000, 'regression')
  predictor = regressor(members=1)
  prediction, found = predictor.predict(x), predictor.predict_interval(x, 0.9)
  ends = [scipy.stats.norm.ppf(level, prediction.mean, np.sqrt(prediction.total)) for level in (0.05, 0.95)]
  np.testing.assert_allclose(found, np.stack(ends, axis=-1), rtol=1e-6)
  several = regressor().predict_interval(x, 0.9)
  covered = (several[..., 0] <= y) & (y <= several[..., 1])
  assert 0.5 < covered.mean() < 0.75


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_p_values_are_uniform_in_the_domain_and_low_outside(task, random):
  predictor = calibrated(task)
  inside, outside = random.normal(size=(3000, F)), 8 * random.normal(size=(300, F))
  found = predictor.out_of_domain(inside)
  for share in (0.01, 0.1, 0.5):
    expected = math.floor(share * 1501) / 1501
    deviation = math.sqrt(share * (1 - share) * (1 / 3000 + 1 / 1500))
    assert within_chance((found <= share).mean(), expected, deviation)
  far = predictor.out_of_domain(outside)
  if task == 'regression':  # far out a classifier's heads agree again
    assert np.median(far) < 0.01
    np.testing.assert_array_equal(predictor.out_of_domain(np.full((2, F), 1e37)), [1 / 1501] * 2)
  assert found.min() >= 1 / 1501


def test_inputs_are_ranked_by_what_uncertainty_there_is(random, caplog):
  """One head has no epistemic uncertainty."""
  x, y = examples(random, 100)
  with caplog.at_level(logging.INFO):
    predictor = calibrate(classifier(members=1), x, y)
  assert predictor.calibration.ranking == 'total' and 'total uncertainty tells' in caplog.text
  assert 'temperature' in caplog.text and 'from 25' in caplog.text
  np.testing.assert_allclose(predictor.calibration.uncertainties, np.sort(predictor.predict(x).total), rtol=1e-6)
  assert len(np.unique(predictor.out_of_domain(x))) > 90


def test_a_threshold_keeps_few_wrong(random):
  predictor = calibrated('classification')
  x, y = examples(random, 4000)
  found = predictor.selective(x, np.array(NAMES)[y], risk=0.2)
  accepted = predictor.accepts(x, found.threshold)
  prediction = predictor.predict(x)
  np.testing.assert_array_equal(accepted, prediction.total < found.threshold)
  assert found.coverage == accepted.mean() and 0.1 < found.coverage < 0.9
  assert found.risk == pytest.approx((prediction.mean.argmax(1) != y)[accepted].mean())
  assert found.risk < found.bound <= 0.2
  same = conformal.threshold_for_risk(prediction.total, prediction.mean.argmax(1) != y, 0.2, 0.95)
  assert same == found
  assert replace(predictor, calibration=None).selective(x, np.array(NAMES)[y], risk=0.2) == found


def test_a_tolerance_says_what_is_wrong_in_regression(random):
  predictor = calibrated('regression')
  x, y = examples(random, 3000, 'regression')
  found = predictor.selective(x, y, risk=0.1, tolerance=1.5 * SCALE)
  accepted, prediction = predictor.accepts(x, found.threshold), predictor.predict(x)
  np.testing.assert_array_equal(accepted, (prediction.total / SCALE**2).mean(axis=1) < found.threshold)
  off = (np.abs(prediction.mean - y) > 1.5 * SCALE).any(axis=1)
  assert found.coverage == accepted.mean() and 0.1 < found.coverage < 0.9
  assert found.risk == pytest.approx(off[accepted].mean()) and off.mean() > 0.15


def test_one_target_is_ranked_in_its_units(random):
  x, y = examples(random, 500, 'regression')
  slopes = jnp.asarray(SLOPES[..., :1], jnp.float32)
  apply = lambda x: jnp.concatenate(
    [jnp.einsum('bf,mfd->mbd', x, slopes), jnp.broadcast_to(jnp.log(noise(x)), (M, len(x), 1))], axis=-1
  )
  predictor = made('regression', apply, y=(SHIFT[:1], SCALE[:1]))
  predictor = calibrate(predictor, x, y[:, 0])
  prediction = predictor.predict(x)
  np.testing.assert_array_equal(predictor.calibration.uncertainties, np.sort(prediction.epistemic[:, 0]))
  found = predictor.selective(x, y[:, :1], risk=0.3, tolerance=2 * SCALE[0])
  np.testing.assert_array_equal(predictor.accepts(x, found.threshold), prediction.total[:, 0] < found.threshold)


def test_prior_networks_are_calibrated_as_one_distribution(random):
  x, y = examples(random, 400)
  predictor = calibrate(classifier(members=1, predictive='prior'), x, y)
  assert predictor.calibration.label_scale > 1.5 and predictor.predict_set(x, 0.9).any(axis=1).all()
  assert predictor.calibration.ranking == 'epistemic'
  x, y = examples(random, 400, 'regression')
  plain = regressor(members=1, predictive='prior', width=4)
  with pytest.raises(UserError, match='first predictor = calibrate'):
    plain.predict_interval(x, 0.9)
  predictor = calibrate(plain, x, y)
  before, after, t = plain.predict(x), predictor.predict(x), predictor.calibration.label_scale
  assert t != 1
  for name in ('total', 'aleatoric', 'epistemic'):
    np.testing.assert_allclose(getattr(after, name), t * getattr(before, name), rtol=1e-5)
  low, high = np.moveaxis(predictor.predict_interval(x, 0.9), -1, 0)
  assert ((low <= y) & (y <= high)).mean() > 0.8


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_a_calibration_is_plain_json(task, random):
  predictor = calibrated(task)
  text = json.dumps(predictor.calibration.to_json(), allow_nan=False, sort_keys=True)
  again = Calibration.from_json(json.loads(text))
  assert list(again.scores) == list(predictor.calibration.scores)
  assert again == predictor.calibration and len(text) < 200_000
  x, _ = examples(random, 20, task)
  other = replace(replace(predictor, calibration=None), calibration=again)
  np.testing.assert_array_equal(other.out_of_domain(x), predictor.out_of_domain(x))
  for each in (predictor, other):
    made_from = each.predict_set(x, 0.95) if task == 'classification' else each.predict_interval(x, 0.95)
    assert made_from.shape[:2] == (20, C if task == 'classification' else D)


def test_many_examples_are_kept_as_few_scores(random):
  """And all but 1,000 give scores, as a temperature needs no more."""
  x, y = examples(random, 9000)
  predictor = calibrate(classifier(), x, y)
  found = predictor.calibration
  assert found.scored == 8000 and found.examples == 9000
  assert {len(v) for v in (*found.scores.values(), found.uncertainties)} == {MOST_SCORES}
  x, y = examples(random, 20000)
  for coverage in (0.6, 0.9, 0.99, 0.999):
    hit = predictor.predict_set(x, coverage, batch_size=5000)[np.arange(20000), y].mean()
    likeliest = (predictor.predict(x, 5000).mean.argmax(1) == y).mean()
    deviation = math.sqrt(coverage * (1 - coverage) * (1 / 8000 + 1 / 20000))
    assert hit > coverage - 4.5 * deviation
    assert hit < max(coverage, likeliest) + 2 / MOST_SCORES + 4.5 * deviation + 0.05 * (coverage < likeliest)
  deviation = math.sqrt(0.01 * 0.99 * (1 / 9000 + 1 / 20000))
  assert within_chance((predictor.out_of_domain(x, batch_size=5000) <= 0.01).mean(), 0.01, deviation)
  assert Calibration.from_json(found.to_json()) == found


CHANGES = {
  'no object': lambda c: [],
  'key missing': lambda c: {k: v for k, v in c.items() if k != 'scored'},
  'key more': lambda c: c | {'code': 'print'},
  'other task': lambda c: c | {'task': 'ranking'},
  'task no text': lambda c: c | {'task': ['classification']},
  'scale text': lambda c: c | {'label_scale': '1'},
  'scale bool': lambda c: c | {'label_scale': True},
  'scale nan': lambda c: c | {'label_scale': math.nan},
  'scale negative': lambda c: c | {'label_scale': -1.0},
  'scale huge': lambda c: c | {'label_scale': 10**400},
  'examples float': lambda c: c | {'examples': 1500.0},
  'examples zero': lambda c: c | {'examples': 0},
  'examples huge': lambda c: c | {'examples': 10**30},
  'scored more': lambda c: c | {'scored': 1501},
  'scored other': lambda c: c | {'scored': 700},
  'other ranking': lambda c: c | {'ranking': '__class__'},
  'ranking list': lambda c: c | {'ranking': []},
  'scores list': lambda c: c | {'scores': []},
  'scores empty': lambda c: c | {'scores': {}},
  'scores other names': lambda c: c | {'scores': {'lac': c['scores']['lac'], 'raps': c['scores']['aps']}},
  'scores short': lambda c: c | {'scores': c['scores'] | {'lac': c['scores']['lac'][1:]}},
  'scores text': lambda c: c | {'scores': c['scores'] | {'lac': 'x' * 1125}},
  'scores of text': lambda c: c | {'scores': c['scores'] | {'lac': ['0.1'] * 1125}},
  'scores nan': lambda c: c | {'scores': c['scores'] | {'lac': [math.nan] * 1125}},
  'scores infinite': lambda c: c | {'scores': c['scores'] | {'lac': [math.inf] * 1125}},
  'scores negative': lambda c: c | {'scores': c['scores'] | {'lac': [-0.1] * 1125}},
  'scores above 1': lambda c: c | {'scores': c['scores'] | {'lac': [1.1] * 1125}},
  'scores falling': lambda c: c | {'scores': c['scores'] | {'lac': c['scores']['lac'][::-1]}},
  'uncertainties none': lambda c: c | {'uncertainties': None},
  'uncertainties huge': lambda c: c | {'uncertainties': [1e308] * 1500},
}


@pytest.mark.parametrize('name', CHANGES)
def test_an_edited_calibration_is_refused(name):
  found = calibrated('classification').calibration.to_json()
  with pytest.raises(UserError, match='the calibration is not as it was saved') as refused:
    Calibration.from_json(CHANGES[name](found))
  assert '\n' not in str(refused.value) and len(str(refused.value)) < 250


def test_a_calibration_of_another_predictor_is_refused():
  with pytest.raises(UserError, match='of another predictor'):
    replace(regressor(), calibration=calibrated('classification').calibration)
  found = calibrated('regression').calibration.to_json()
  found['scores'].pop('residual_1')
  with pytest.raises(UserError, match='of another predictor'):
    replace(regressor(), calibration=Calibration.from_json(found))


X, Y = examples(np.random.default_rng(2), 40)
_, TARGETS = examples(np.random.default_rng(2), 40, 'regression')


@pytest.mark.parametrize(
  'y',
  [
    np.array(NAMES)[Y],
    list(np.array(NAMES)[Y]),
    np.array(NAMES)[Y][:, None],
    np.array(NAMES, object)[Y],
    pd.Series(np.array(NAMES)[Y]),
    pd.DataFrame({'pet': np.array(NAMES)[Y]}),
    pd.Series(np.array(NAMES)[Y], dtype='category'),
  ],
)
def test_names_of_classes_may_come_in_any_form(y):
  assert calibrate(classifier(NAMES), X, y).calibration == calibrate(classifier(), X, Y).calibration


@pytest.mark.parametrize(
  'classes, y',
  [
    ((), Y.astype(float)),
    ((), pd.Series(Y)),
    ((), Y.astype(np.uint8)),
    (('10', '2', '7'), np.array([10, 2, 7])[Y]),
    (('10', '2', '7'), np.array(['10', '2', '7'])[Y]),
  ],
)
def test_numbers_of_classes_may_come_in_any_form(classes, y):
  assert calibrate(classifier(classes), X, y).calibration == calibrate(classifier(), X, Y).calibration


def test_booleans_are_names_where_classes_are_called_so():
  weights = jnp.asarray(WEIGHTS[..., :2], jnp.float32)
  apply = lambda x: jnp.einsum('bf,mfc->mbc', x, weights)
  named, numbered = (made('classification', apply, classes=c) for c in (('False', 'True'), ()))
  assert calibrate(named, X, Y == 1).calibration == calibrate(numbered, X, (Y == 1).astype(int)).calibration


@pytest.mark.parametrize(
  'classes, x, y, words',
  [
    (NAMES, X, ['cow'] * 40, "the class 'cow', and the classes are cat, dog, eel"),
    (NAMES, X, Y, "the class '0', and the classes are cat"),
    (NAMES, X, np.array([*NAMES, None] * 10), 'no array of numbers or of names'),
    (NAMES, X, [['cat'], ['dog', 'eel']] * 20, 'no array of numbers or of names'),
    ((), X, np.array(NAMES)[Y], "y holds '.*', and the classes are numbers from 0 to 2"),
    ((), X, Y + 1, 'the class 3, and the classes are 0 to 2'),
    ((), X, Y - 1, 'the class -1'),
    ((), X, Y + 0.5, 'which is no class'),
    ((), X, np.where(Y == 1, np.nan, Y), 'NaN or infinite values in'),
    ((), X, np.eye(3)[Y], r'shape \[40, 3\]: give one class'),
    ((), X, Y[:30], '30 labels for 40 inputs'),
    ((), X, 3, 'shape'),
    ((), X[:15], Y[:15], '15 examples are too few to calibrate on: give at least 16'),
    ((), X[:, :2], Y, 'inputs of shape'),
    ((), np.full_like(X, np.nan), Y, 'NaN'),
  ],
)
def test_labels_that_do_not_fit_are_refused(classes, x, y, words):
  with pytest.raises(UserError, match=words):
    calibrate(classifier(classes), x, y)


@pytest.mark.parametrize(
  'y, words',
  [
    (np.array(NAMES)[Y], 'y holds names such as'),
    (TARGETS[:, 0], '1 targets, and the training split 2'),
    (np.where(TARGETS > 1e3, np.nan, TARGETS), 'NaN or infinite values'),
    (np.full_like(TARGETS, 1e38), 'numbers of more than'),
    (TARGETS[:20], '20 labels for 40 inputs'),
    (TARGETS[..., None], 'shape'),
  ],
)
def test_targets_that_do_not_fit_are_refused(y, words):
  with pytest.raises(UserError, match=words):
    calibrate(regressor(), X, y)


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda c, r: c.predict_set(X, 0.9999), r'coverage of 0.9999 needs 10,999 held-out examples, and .* on 1,500'),
    (lambda c, r: r.predict_interval(X, 0.9995), 'needs 2,665 held-out examples'),
    (lambda c, r: c.predict_set(X, 1.0), 'coverage is 1.0: give a number between 0 and 1'),
    (lambda c, r: c.predict_set(X, 95), 'coverage is 95'),
    (lambda c, r: c.predict_set(X, True), 'coverage is True'),
    (lambda c, r: c.predict_set(X, '0.9'), "coverage is '0.9'"),
    (lambda c, r: c.predict_set(X, math.nan), 'coverage is nan'),
    (lambda c, r: c.predict_set(X, 0.9, 'acs'), "unknown method 'acs': did you mean 'lac'"),
    (lambda c, r: c.predict_interval(X, 0.9), 'this predictor is for classification: use predict_set'),
    (lambda c, r: r.predict_set(X, 0.9), 'this predictor is for regression: use predict_interval'),
    (lambda c, r: classifier().predict_set(X, 0.9), r'first predictor = calibrate\(predictor, x, y\)'),
    (lambda c, r: classifier().out_of_domain(X), r'first predictor = calibrate\(predictor, x, y\)'),
    (lambda c, r: regressor().predict_interval(X, 1.5), 'coverage is 1.5'),
    (lambda c, r: calibrate(r, np.where(np.arange(40)[:, None] == 7, 1e37, X), TARGETS), 'for 1 inputs, first row 7'),
    (lambda c, r: r.selective(1e37 + X, TARGETS, tolerance=1.0), 'not finite for 40 inputs'),
    (lambda c, r: c.selective(X, np.array(NAMES)[Y], risk=0), 'risk is 0'),
    (lambda c, r: c.selective(X, np.array(NAMES)[Y], confidence=2), 'confidence is 2'),
    (lambda c, r: c.selective(X, np.array(NAMES)[Y]), '40 examples are too few for a risk of 0.05 .* at least 117'),
    (
      lambda c, r: c.selective(X, np.array(NAMES)[Y], 0.2, 0.8),
      'no threshold keeps a risk of 0.2 .* lowest bound is',
    ),
    (lambda c, r: c.selective(X, np.array(NAMES)[Y], tolerance=1.0), 'tolerance is for regression'),
    (lambda c, r: r.selective(X, TARGETS), 'give a tolerance'),
    (lambda c, r: r.selective(X, TARGETS, tolerance=-1.0), 'tolerance is -1.0'),
    (lambda c, r: r.selective(X, TARGETS, tolerance=np.nan), 'tolerance is nan'),
    (lambda c, r: r.selective(X, TARGETS, tolerance=np.ones(3)), 'one for each target'),
    (lambda c, r: r.selective(X, TARGETS, tolerance='1'), 'give a number'),
  ],
)
def test_what_cannot_be_promised_is_refused(call, words):
  with pytest.raises(UserError, match=words) as refused:
    call(calibrated('classification'), calibrated('regression'))
  assert '\n' not in str(refused.value)


def test_the_least_examples_that_are_named_are_enough(random):
  x, y = examples(random, 25)
  assert calibrate(classifier(), x, y).predict_set(x, 0.95).shape == (25, C)
  with pytest.raises(UserError, match='needs 25 held-out examples, and the predictor is calibrated on 24'):
    calibrate(classifier(), x[:24], y[:24]).predict_set(x, 0.95)


def test_the_network_is_compiled_once():
  plain = classifier()
  assert calibrate(plain, X, Y)._programs is plain._programs


def test_a_calibrated_predictor_is_calibrated_from_the_start():
  once = calibrate(classifier(), X, Y)
  assert calibrate(once, X, Y).calibration == once.calibration


def test_names_are_public():
  assert hydra_jax.calibrate is calibrate and hydra_jax.Calibration is Calibration and hydra_jax.conformal is conformal
