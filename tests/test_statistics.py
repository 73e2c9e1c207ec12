"""Estimates, tests and corrections against scipy, brute force and simulations; verdicts by hand."""

from dataclasses import replace
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from hydra_jax.maths.statistics import Difference, Estimate, Published, estimate, holm, paired, verdict, welch

OURS, THEIRS = np.random.default_rng(0).normal(size=(2, 7))
NINTH = 1 / 9  # of splits of 90 and 10%


def test_standard_errors_are_scipys():
  found = estimate(OURS)
  assert found.n == 7
  np.testing.assert_allclose((found.mean, found.error), (OURS.mean(), scipy.stats.sem(OURS)))
  assert math.isnan(estimate([3.0]).error) and estimate([3.0]).mean == 3
  assert estimate([2.0, 2.0]) == Estimate(2, 0, 2)
  assert estimate([1.0, math.inf]).mean == math.inf and math.isnan(estimate([1.0, math.inf]).error)


def test_errors_of_means_of_what_is_large_or_small():
  for scale in (1e-30, 1e30):
    np.testing.assert_allclose(estimate(OURS * scale).error, scipy.stats.sem(OURS) * scale)


def test_pairs_are_scipys(random):
  found, expected = paired(OURS, THEIRS), scipy.stats.ttest_rel(OURS, THEIRS)
  np.testing.assert_allclose(found.p, expected.pvalue)
  np.testing.assert_allclose(found.mean, (OURS - THEIRS).mean())
  np.testing.assert_allclose(found.mean / found.error, expected.statistic)
  # What all pairs share cancels, however much larger it is than the difference.
  shared = 100 * np.random.default_rng(1).normal(size=7)
  np.testing.assert_allclose(paired(OURS + shared, THEIRS + shared).p, found.p, rtol=1e-9)


def test_pairs_that_do_not_differ():
  assert paired(OURS, OURS) == Difference(0, 0, 1, 7)
  for ours, theirs in (([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]), ([0.7675, 0.7673], [0.7498, 0.7496])):
    equal = paired(ours, theirs)  # of accuracies by chance, but for rounding
    assert math.isnan(equal.p) and equal.error == pytest.approx(0, abs=1e-12) and equal.mean > 0
  assert math.isnan(paired([1.0], [0.5]).p) and paired([1.0], [0.5]).mean == 0.5


def test_nadeau_and_bengios_correction_by_hand():
  """Over 20 splits of 90/10 the variance is s² (1/20 + 1/9), so that the error is 1.795 times as large."""
  values = np.random.default_rng(2).normal(size=20)
  expected = math.sqrt(values.var(ddof=1) * (1 / 20 + 1 / 9))
  np.testing.assert_allclose(estimate(values, NINTH).error, expected)
  np.testing.assert_allclose(expected / scipy.stats.sem(values), 1.795, atol=1e-3)
  found = paired(values + 1, np.zeros(20), NINTH)
  np.testing.assert_allclose(found.p, 2 * scipy.stats.t.sf((values.mean() + 1) / expected, 19))


def test_corrected_tests_over_splits_that_overlap_hold_their_level():
  """Where splits are correlated as Nadeau and Bengio assume, by n_test/(n_test + n_train), 5% of true nulls fall."""
  random, splits, tries = np.random.default_rng(3), 20, 4000
  correlation = NINTH / (1 + NINTH)
  shared = math.sqrt(correlation) * random.normal(size=(tries, 1))
  values = shared + math.sqrt(1 - correlation) * random.normal(size=(tries, splits))
  rates = [
    np.mean([paired(each, np.zeros(splits), test_to_train).p < 0.05 for each in values]) for test_to_train in (NINTH, 0)
  ]
  assert abs(rates[0] - 0.05) < 0.015 and rates[1] > 0.2


def test_welch_is_scipys_on_the_values_behind_the_numbers():
  theirs = 0.5 + 2 * np.random.default_rng(4).normal(size=4)
  published = Published(theirs.mean(), scipy.stats.sem(theirs), 4)
  expected = scipy.stats.ttest_ind(OURS, theirs, equal_var=False).pvalue
  np.testing.assert_allclose(welch(estimate(OURS), published), expected)
  # Of unknown number they count as many as ours; over splits both errors are corrected.
  np.testing.assert_allclose(
    welch(estimate(OURS), replace(published, n=0)), welch(estimate(OURS), replace(published, n=7))
  )
  ours, error = estimate(OURS, NINTH), published.error * math.sqrt(1 + 4 / 9)
  a, b = ours.error**2, error**2
  freedom = (a + b) ** 2 / (a**2 / 6 + b**2 / 3)
  expected = 2 * scipy.stats.t.sf(abs(ours.mean - published.value) / math.sqrt(a + b), freedom)
  np.testing.assert_allclose(welch(ours, published, NINTH), expected)


def test_welch_without_a_standard_error_is_no_test():
  assert math.isnan(welch(Estimate(1.0, 0.1, 5), Published(1.0)))
  assert math.isnan(welch(Estimate(1.0), Published(1.0, 0.1, 5)))
  assert welch(Estimate(1.0, 0.0, 5), Published(1.0, 0.0, 5)) == 1
  assert welch(Estimate(1.0, 0.0, 5), Published(1.1, 0.0, 5)) == 0


def test_verdicts_of_true_agreements_over_three_replicas():
  """About 5% are called different; by 2 standard errors it would be some 18%."""
  random, tries = np.random.default_rng(5), 3000
  both = [[estimate(values) for values in random.normal(size=(2, 3))] for _ in range(tries)]
  ps = [welch(ours, Published(theirs.mean, theirs.error, theirs.n)) for ours, theirs in both]
  assert np.mean(np.array(ps) < 0.05) < 0.06
  beyond = [abs(a.mean - b.mean) > 2 * math.hypot(a.error, b.error) for a, b in both]
  assert np.mean(beyond) > 0.1


def test_holm_is_closed_testing_by_bonferroni():
  """The adjusted p of a test is the largest that Bonferroni gives any group of tests that it is in."""
  random = np.random.default_rng(6)
  for size in (1, 2, 5):
    ps = list(random.uniform(0, 0.3, size).round(2))
    groups = [g for n in range(1, size + 1) for g in itertools.combinations(range(size), n)]
    bonferroni = {g: min(1, len(g) * min(ps[i] for i in g)) for g in groups}
    np.testing.assert_allclose(holm(ps), [max(p for g, p in bonferroni.items() if i in g) for i in range(size)])


def test_holm_by_hand():
  np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
  np.testing.assert_allclose(holm([0.04, math.nan, 0.01]), [0.04, math.nan, 0.02])
  assert holm([]) == [] and holm([0.9, 0.8]) == [1, 1]


@pytest.mark.parametrize(
  'ours, published, better, p, expected',
  [
    (Estimate(1.0, 0.1, 5), Published(1.2, 0.1), 'low', 0.051, 'agrees'),
    (Estimate(1.0, 0.1, 5), Published(1.3, 0.1), 'low', 0.049, 'better'),
    (Estimate(1.0, 0.1, 5), Published(1.3, 0.1), 'high', 0.01, 'worse'),
    (Estimate(1.3, 0.1, 5), Published(1.0, 0.1), 'low', 0.01, 'worse'),
    (Estimate(1.3, 0.1, 5), Published(1.0, 0.1), 'high', 0.01, 'better'),
    (Estimate(1.0, 0.1, 5), Published(9.0), 'low', math.nan, 'no verdict'),
    (Estimate(0.94, 0.001, 5), Published(0.90, 0.001), '0.95', 0.01, 'better'),
    (Estimate(0.99, 0.001, 5), Published(0.94, 0.001), '0.95', 0.01, 'worse'),
    (None, Published(1.0), 'low', math.nan, 'not run'),
  ],
)
def test_verdicts(ours, published, better, p, expected):
  assert verdict(ours, published, better, p) == expected
