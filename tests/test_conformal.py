"""Conformal sets, intervals and thresholds: against MAPIE, crepes and SciPy, and what they promise, measured."""

from fractions import Fraction
import functools
import math
import warnings

import crepes
from crepes.base import p_values_batch
from mapie.classification import SplitConformalClassifier
from mapie.regression import SplitConformalRegressor
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from hydra_jax.maths import conformal

# With 137 parts, no rank is a whole number before it is rounded up: there, crepes takes one rank more.
N, C, D = 136, 5, 3
COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.987)


class Given(ClassifierMixin, BaseEstimator):
  """A fitted classifier for scikit-learn's friends: inputs are the probabilities."""

  def fit(self, x, y):
    self.classes_ = np.unique(y)
    return self

  def predict_proba(self, x):
    return np.asarray(x)

  def predict(self, x):
    return self.classes_[self.predict_proba(x).argmax(axis=1)]

  def __sklearn_is_fitted__(self):
    return True


class Mean(RegressorMixin, BaseEstimator):
  """A fitted regressor: inputs are the means."""

  is_fitted = True

  def fit(self, x, y):
    return self

  def predict(self, x):
    return np.asarray(x)[:, 0]


def drawn(random, n, sharpness=2.0, right=1.0):
  """Probabilities, and labels of a distribution that they are `right` times as sharp as."""
  logits = sharpness * random.normal(size=(n, C))
  labels = np.argmax(logits / right + random.gumbel(size=logits.shape), axis=1)
  return scipy.special.softmax(logits, axis=1), labels


def within_chance(found, expected, deviation):
  """A mean of independent draws: 4.5 standard errors are a chance of 7 in a million."""
  return abs(found - expected) < 4.5 * deviation


@pytest.mark.parametrize('coverage', ['0.5', '0.07', '0.9', '0.95', '0.99', '0.999', '0.123'])
def test_ranks_are_those_of_decimal_numbers(coverage):
  exact = Fraction(coverage)
  for n in (1, 5, 9, 19, 98, 99, 100, 999, 12345):
    assert conformal.rank(n, float(coverage)) == math.ceil((n + 1) * exact)
  least = conformal.least_examples(float(coverage))
  assert math.ceil((least + 1) * exact) <= least and math.ceil(least * exact) > least - 1


def test_the_quantile_is_a_sorted_score_or_infinite(random):
  scores = random.permutation(np.arange(1.0, 20.0))
  assert [float(conformal.quantile(scores, c)) for c in (0.05, 0.5, 0.9, 0.95)] == [1, 10, 18, 19]
  assert conformal.quantile(scores, 0.951) == np.inf and conformal.quantile(scores[:0], 0.5) == np.inf
  several = np.stack([scores, 2 * scores], axis=1)
  np.testing.assert_array_equal(conformal.quantile(several, 0.9), [18, 36])
  np.testing.assert_array_equal(conformal.quantile(several, 0.99), [np.inf, np.inf])


def test_the_share_of_new_scores_below_is_beta(random):
  """Of uniform scores, the share below a threshold is the threshold, and that of the k-th smallest is k / (n + 1)."""
  found = [conformal.quantile(random.random(25), 0.9) for _ in range(2000)]
  assert scipy.stats.kstest(found, scipy.stats.beta(24, 2).cdf).pvalue > 1e-5
  assert np.mean(found) >= 0.9


@pytest.mark.parametrize('n, most', [(10, 10), (11, 10), (1000, 100), (1001, 101), (5000, 64)])
def test_thinned_scores_keep_the_promise(n, most, random):
  scores = random.random((n, 2)).round(3)
  few = conformal.thinned(scores, most)
  assert len(few) == min(n, most)
  ranked = np.sort(scores, axis=0)
  for coverage in (*np.linspace(0.01, 0.99, 50), 1 - most / 3 / n, 0.999):
    exact, found = conformal.quantile(scores, coverage), conformal.quantile(few, coverage, n)
    above = min(conformal.rank(n, coverage) - 1 + 2 * n // most, n - 1)
    assert (found >= exact).all() and (np.isinf(exact) == np.isinf(found)).all()
    assert np.isinf(exact).all() or (found <= ranked[above]).all()
    if n <= most or coverage > 1 - most / 2 / n:
      np.testing.assert_array_equal(found, exact)
  new = random.random(300).round(3)
  exact, found = (conformal.p_values(new, values[:, 0], n) for values in (ranked, few))
  assert (found >= exact).all() and (found - exact <= 2 / most + 1e-9).all()
  highest = new > ranked[n - most // 2 - 1, 0]
  np.testing.assert_array_equal(found[highest], exact[highest])


@functools.cache
def classified(n=N):
  random = np.random.default_rng(3)
  return *drawn(random, n, right=2.0), drawn(random, 400, right=2.0)[0]


def mapie_sets(score, coverage, how, seed):
  p, labels, new = classified()
  other = SplitConformalClassifier(
    Given().fit(p, np.arange(C)), coverage, score, prefit=True, random_state=np.random.RandomState(seed)
  )
  other.conformalize(p, labels)
  return other.predict_set(new, conformity_score_params={'include_last_label': how})[1][..., 0]


@pytest.mark.parametrize('coverage', COVERAGES)
def test_sets_of_lac_are_those_of_mapie_and_crepes(coverage):
  p, labels, new = classified()
  scores = conformal.lac_scores(p, labels)
  sets = conformal.lac_sets(new, conformal.quantile(scores, coverage))
  np.testing.assert_array_equal(sets, mapie_sets('lac', coverage, None, 0))
  other = crepes.ConformalClassifier()
  other.fit(scores)
  found = other.predict_set(1 - new, confidence=coverage, smoothing=False)
  np.testing.assert_array_equal(sets, found)
  full = conformal.lac_sets(new, conformal.quantile(scores, coverage), never_empty=True)
  assert full.any(axis=1).all() and (full.sum(axis=1) == np.maximum(sets.sum(axis=1), 1)).all()
  assert full[np.arange(len(new)), new.argmax(axis=1)].all()


@pytest.mark.parametrize('coverage', COVERAGES)
@pytest.mark.parametrize('how', [True, False, 'randomized'])
def test_sets_of_aps_are_those_of_mapie(coverage, how):
  """With its random numbers. It counts the label whole less u, and leaves no set empty but where it draws lots."""
  p, labels, new = classified()
  u, v = np.split(1 - np.random.RandomState(5).uniform(size=len(p) + len(new)), [len(p)])
  scores = conformal.aps_scores(p, labels, u)
  share = {True: None, False: np.ones(len(new)), 'randomized': v}[how]
  sets = conformal.aps_sets(new, conformal.quantile(scores, coverage), share, never_empty=how is False)
  np.testing.assert_array_equal(sets, mapie_sets('aps', coverage, how, 5))


def test_sets_of_aps_have_the_likeliest_classes(random):
  """By a loop over classes: until their mass exceeds the threshold. Ties go to the first class."""
  p = random.dirichlet(np.ones(C), 200).round(1)
  for threshold in (0.0, 0.3, 0.75, 0.999):
    sets = conformal.aps_sets(p, threshold)
    for row, chosen in zip(p, sets):
      mass, expected = 0.0, set()
      for c in sorted(range(C), key=lambda c: (-row[c], c)):
        if mass > threshold:
          break
        expected.add(c)
        mass += row[c]
      assert set(np.flatnonzero(chosen)) == expected
  assert conformal.aps_sets(p, 1.1).all() and not conformal.aps_sets(p, -0.1).any()
  assert (conformal.aps_sets(p, -0.1, never_empty=True).sum(axis=1) == 1).all()


@pytest.mark.parametrize('method', ['lac', 'aps', 'aps with lots'])
@pytest.mark.parametrize('n, coverage', [(30, 0.9), (200, 0.8)])
def test_sets_cover_what_they_promise(method, n, coverage, random):
  """Of a model that is far too sure. Each calibration has a coverage of its own, with the mean k / (n + 1)."""
  repeats, new = 400, 100
  scores, sets = {'lac': (conformal.lac_scores, conformal.lac_sets)}.get(
    method, (conformal.aps_scores, conformal.aps_sets)
  )
  found, naive = [], []
  for _ in range(repeats):
    p, labels = drawn(random, n + new, right=2.5)
    u = [random.random(n + new)] if method == 'aps with lots' else []
    threshold = conformal.quantile(scores(p[:n], labels[:n], *(each[:n] for each in u)), coverage)
    chosen = sets(p[n:], threshold, *(each[n:] for each in u))
    found.append(chosen[np.arange(new), labels[n:]].mean())
    naive.append(sets(p[n:], coverage)[np.arange(new), labels[n:]].mean())
  k = conformal.rank(n, coverage)
  deviation = math.sqrt((scipy.stats.beta(k, n + 1 - k).var() + 0.25 / new) / repeats)
  assert np.mean(found) > coverage - 4.5 * deviation
  if method != 'aps':  # which has ties at 0, the score of the likeliest class
    assert within_chance(np.mean(found), k / (n + 1), deviation)
  assert abs(np.mean(naive) - coverage) > 4.5 * deviation


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_the_example_at_the_threshold_is_covered(dtype, random):
  """Sets and scores round alike: of n held-out labels just k are covered, where no two scores are equal."""
  p, labels = drawn(random, 500)
  p = p.astype(dtype)
  for scores, sets in ((conformal.lac_scores, conformal.lac_sets), (conformal.aps_scores, conformal.aps_sets)):
    values = scores(p, labels)
    for coverage in (0.85, 0.9, 0.95, 0.99):
      threshold = conformal.quantile(values, coverage)
      covered = sets(p, threshold)[np.arange(500), labels].sum()
      assert covered == (values <= threshold).sum() == conformal.rank(500, coverage)


def regression_data(random, n):
  mean, deviation = 1e3 + random.normal(size=(n, D)), random.uniform(0.5, 3, (n, D))
  noise = np.stack([random.normal(size=n), random.standard_t(3, n), random.exponential(size=n)], axis=1)
  return mean, deviation, mean + 4 * deviation * noise


@pytest.mark.parametrize('coverage', COVERAGES)
def test_intervals_are_those_of_crepes_and_mapie(coverage, random):
  mean, deviation, y = regression_data(random, N)
  new, new_deviation, _ = regression_data(random, 50)
  threshold = conformal.quantile(conformal.residual_scores(mean, deviation, y), coverage)
  found = conformal.intervals(new, new_deviation, threshold)
  plain = conformal.quantile(conformal.residual_scores(mean, np.ones_like(mean), y), coverage)
  of_one_width = conformal.intervals(new, np.ones_like(new), plain)
  for d in range(D):
    other = crepes.ConformalRegressor()
    other.fit(y[:, d] - mean[:, d], sigmas=deviation[:, d])
    expected = other.predict_int(new[:, d], sigmas=new_deviation[:, d], confidence=coverage)
    np.testing.assert_allclose(found[:, d], expected, rtol=1e-12)
    mapie = SplitConformalRegressor(Mean(), coverage, 'absolute', prefit=True)
    mapie.conformalize(mean[:, d : d + 1], y[:, d])
    expected = mapie.predict_interval(new[:, d : d + 1])[1][..., 0]
    np.testing.assert_allclose(of_one_width[:, d], expected, rtol=1e-12)


def test_too_few_examples_give_the_whole_line(random):
  """As in crepes, which warns."""
  mean, deviation, y = regression_data(random, 9)
  threshold = conformal.quantile(conformal.residual_scores(mean, deviation, y), 0.95)
  assert np.isinf(conformal.intervals(mean, deviation, threshold)).all()
  other = crepes.ConformalRegressor()
  other.fit(y[:, 0] - mean[:, 0])
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert np.isinf(other.predict_int(mean[:, 0], confidence=0.95)).all()


def test_intervals_cover_each_target_as_promised(random):
  repeats, n, new, coverage = 300, 40, 50, 0.9
  found = []
  for _ in range(repeats):
    mean, deviation, y = regression_data(random, n + new)
    threshold = conformal.quantile(conformal.residual_scores(mean[:n], deviation[:n], y[:n]), coverage)
    low, high = np.moveaxis(conformal.intervals(mean[n:], deviation[n:], threshold), -1, 0)
    found.append(((low <= y[n:]) & (y[n:] <= high)).mean(axis=0))
  k = conformal.rank(n, coverage)
  deviation = math.sqrt((scipy.stats.beta(k, n + 1 - k).var() + coverage * (1 - coverage) / new) / repeats)
  for each in np.mean(found, axis=0):
    assert within_chance(each, k / (n + 1), deviation)


def test_the_interval_of_a_mixture_is_central(random):
  """Against SciPy's root finder, also for members far apart."""
  mean, var = 20 * random.normal(size=(4, 3, D)), random.uniform(1e-4, 9, (4, 3, D))
  found = conformal.mixture_intervals(mean, var, 0.9)
  for n, d in np.ndindex(3, D):
    cdf = lambda y: scipy.stats.norm.cdf(y, mean[:, n, d], np.sqrt(var[:, n, d])).mean()  # noqa: B023
    ends = [scipy.optimize.brentq(lambda y: cdf(y) - level, -200, 200, xtol=1e-12) for level in (0.05, 0.95)]  # noqa: B023
    np.testing.assert_allclose([cdf(end) for end in found[n, d]], [0.05, 0.95], atol=1e-9)
    np.testing.assert_allclose(found[n, d], ends, rtol=1e-6, atol=1e-6)


def test_p_values_are_those_of_crepes(random):
  held_out, new = random.normal(size=N).round(1), random.normal(size=60).round(1)
  expected = p_values_batch(held_out, new, smoothing=False)
  found = conformal.p_values(new, held_out)
  np.testing.assert_allclose(found, expected)
  for share in (0.01, 0.07, 0.25, 0.5):
    np.testing.assert_array_equal(found <= share, new > conformal.quantile(held_out, 1 - share))


def test_p_values_of_like_inputs_are_as_rare_as_they_say(random):
  held_out, repeats = 19, 4000
  found = np.array([conformal.p_values(random.normal(size=1), random.normal(size=held_out))[0] for _ in range(repeats)])
  for share in (0.05, 0.1, 0.5, 0.95):
    assert within_chance((found <= share + 1e-9).mean(), share, math.sqrt(share * (1 - share) / repeats))


def test_bounds_of_right_and_wrong_are_exact_binomial():
  losses, counts = np.array([0, 3, 10, 7]), np.array([59, 60, 200, 7])
  found = conformal._binomial_bound(losses, counts, 0.01)
  for loss, count, bound in zip(losses.tolist(), counts.tolist(), found):
    test = scipy.stats.binomtest(loss, count, alternative='less')
    assert bound == pytest.approx(test.proportion_ci(0.99, method='exact').high, rel=1e-9)
  assert conformal._binomial_bound(np.zeros(1), np.zeros(1, int), 0.01) == 1


def test_bounds_of_losses_are_where_the_p_value_of_mapie_is(random):
  counts = np.array([30, 100, 1000, 1000])
  losses = counts * np.array([0.2, 0.013, 0.0, 0.41])
  found = conformal._hoeffding_bentkus_bound(losses, counts, 0.02)
  for loss, count, bound in zip(losses, counts.tolist(), found):
    of = lambda alpha: compute_hoeffding_bentkus_p_value(np.array([loss / count]), count, alpha)[0, 0]  # noqa: B023
    assert of(bound + 1e-9) <= 0.02 < of(bound - 1e-6)
  ends = conformal._hoeffding_bentkus_bound(np.array([0.0, 5.0]), np.array([0, 5]), 0.02)
  np.testing.assert_array_equal(ends, [1, 1])


def test_the_threshold_is_the_largest_that_keeps_the_risk(random):
  """By a loop over ranks, with SciPy's test as the bound."""
  n, risk, confidence = 1500, 0.08, 0.9
  uncertainty = random.random(n)
  wrong = random.random(n) < 0.4 * uncertainty**2
  best = conformal.Selection(-math.inf, 0.0, math.nan, 1.0)
  ordered = np.sort(uncertainty)
  for k in np.linspace(conformal.least_examples_for_risk(risk, confidence), n, 20).round().astype(int):
    threshold = ordered[k] if k < n else math.inf
    below = wrong[uncertainty < threshold]
    test = scipy.stats.binomtest(int(below.sum()), len(below), alternative='less')
    bound = test.proportion_ci(1 - (1 - confidence) / 20, method='exact').high
    if bound <= risk:
      best = conformal.Selection(threshold, len(below) / n, below.mean(), bound)
  found = conformal.threshold_for_risk(uncertainty, wrong, risk, confidence)
  assert tuple(found) == pytest.approx(tuple(best)) and 0.2 < found.coverage < 0.9
  assert conformal.threshold_for_risk(uncertainty, wrong.astype(np.int8), risk, confidence) == found
  loose = conformal.threshold_for_risk(uncertainty, wrong.astype(float), risk, confidence)
  assert 0 < loose.coverage <= found.coverage
  order = random.permutation(n)
  assert conformal.threshold_for_risk(uncertainty[order], wrong[order], risk, confidence) == found


def test_all_or_nothing_is_accepted(random):
  uncertainty = random.random(2000)
  every = conformal.threshold_for_risk(uncertainty, np.zeros(2000, bool), 0.01)
  assert every[:3] == (math.inf, 1.0, 0.0) and every.bound == pytest.approx(1 - (0.05 / 20) ** (1 / 2000))
  none = conformal.threshold_for_risk(uncertainty, np.ones(2000, bool), 0.01)
  assert none.threshold == -math.inf and none.coverage == 0 and np.isnan(none.risk) and none.bound == 1
  least = conformal.least_examples_for_risk(0.05, 0.95)
  few = [conformal.threshold_for_risk(uncertainty[:k], np.zeros(k, bool), 0.05) for k in (least - 1, least)]
  assert [found.coverage for found in few] == [0, 1]
  same = conformal.threshold_for_risk(np.ones(2000), np.arange(2000) < 100, 0.1)
  assert same.threshold == math.inf and same.risk == 0.05


@pytest.mark.parametrize('kind', ['wrong', 'rounded', 'losses'])
def test_the_risk_is_kept_as_often_as_promised(kind, random):
  """Uncertainties that say nothing, and a risk a little above the one asked for: whatever is accepted is too much.

  A bound for each threshold that does not know of the others is too low far more often.
  """
  n, repeats, risk, confidence = 400, 200 if kind == 'losses' else 600, 0.2, 0.8
  true = risk + 1e-6
  broken, careless = 0, 0
  for _ in range(repeats):
    uncertainty = random.random(n)
    if kind == 'rounded':
      uncertainty = uncertainty.round(1)
    loss = random.random(n) < true if kind != 'losses' else random.beta(0.2, 0.8, n)
    found = conformal.threshold_for_risk(uncertainty, loss, risk, confidence)
    broken += found.coverage > 0
    order = np.argsort(uncertainty, kind='stable')
    counts = np.arange(1, n + 1)
    careless += (conformal._binomial_bound(np.cumsum(loss[order]), counts, 1 - confidence) <= risk).any()
  promised = 1 - confidence
  assert broken / repeats < promised + 4.5 * math.sqrt(promised * (1 - promised) / repeats)
  assert broken or kind != 'wrong'
  assert careless / repeats > 1.5 * promised


def test_a_useful_uncertainty_is_used(random):
  """A bound that always held because nothing is accepted would be no use."""
  n, risk, kept, coverages = 1000, 0.05, 0, []
  for _ in range(100):
    uncertainty = random.random(n)
    wrong = random.random(n) < 0.3 * uncertainty**2  # the mean loss below t is 0.1 t², which is the risk at t = 0.71
    found = conformal.threshold_for_risk(uncertainty, wrong, risk)
    kept += 0.1 * min(found.threshold, 1) ** 2 <= min(risk, found.bound)
    coverages.append(found.coverage)
  assert kept >= 95 and 0.35 < np.mean(coverages) < 0.71


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: conformal.rank(9, 1.0), 'share of 1.0'),
    (lambda: conformal.rank(9, math.nan), 'share of nan'),
    (lambda: conformal.least_examples(0.0), 'share of 0.0'),
    (lambda: conformal.quantile(np.array([1.0, np.nan]), 0.5), 'NaN'),
    (lambda: conformal.p_values(np.array([np.nan]), np.ones(3)), 'NaN'),
    (lambda: conformal.p_values(np.ones(3), np.array([np.nan])), 'NaN'),
    (lambda: conformal.mixture_intervals(np.ones((1, 1, 1)), np.ones((1, 1, 1)), 2.0), 'share of 2.0'),
    (lambda: conformal.threshold_for_risk(np.ones(9), np.ones(8), 0.5), 'give both'),
    (lambda: conformal.threshold_for_risk(np.full(9, np.inf), np.ones(9), 0.5), 'not finite'),
    (lambda: conformal.threshold_for_risk(np.ones(9), np.full(9, 1.5), 0.5), 'from 0 to 1'),
    (lambda: conformal.threshold_for_risk(np.ones(9), np.full(9, np.nan), 0.5), 'from 0 to 1'),
    (lambda: conformal.threshold_for_risk(np.ones(9), np.ones(9), 0.0), 'share of 0.0'),
    (lambda: conformal.threshold_for_risk(np.ones(9), np.ones(9), 0.5, 1.0), 'share of 1.0'),
  ],
)
def test_what_would_give_wrong_numbers_is_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()
