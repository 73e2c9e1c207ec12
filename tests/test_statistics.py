"""Estimates and paired tests against scipy; verdicts by hand."""

import math

import numpy as np
import pytest
import scipy.stats

from hydra_jax.statistics import Estimate, Published, estimate, paired, verdict

RANDOM = np.random.default_rng(0)
OURS, THEIRS = RANDOM.normal(size=(2, 7))


def test_standard_errors_are_scipys():
  found = estimate(OURS)
  assert found.n == 7
  np.testing.assert_allclose((found.mean, found.error), (OURS.mean(), scipy.stats.sem(OURS)))
  assert math.isnan(estimate([3.0]).error) and estimate([3.0]).mean == 3


def test_pairs_are_scipys(random):
  found, expected = paired(OURS, THEIRS), scipy.stats.ttest_rel(OURS, THEIRS)
  np.testing.assert_allclose(found.p, expected.pvalue)
  np.testing.assert_allclose(found.mean, (OURS - THEIRS).mean())
  np.testing.assert_allclose(found.mean / found.error, expected.statistic)
  # What all pairs share cancels, however much larger it is than the difference.
  shared = 100 * random.normal(size=7)
  np.testing.assert_allclose(paired(OURS + shared, THEIRS + shared).p, found.p, rtol=1e-9)


def test_pairs_that_do_not_differ():
  assert paired(OURS, OURS) == (0, 0, 1, 7)
  assert paired([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])[::2] == (1, 0)
  assert math.isnan(paired([1.0], [0.5]).p) and paired([1.0], [0.5]).mean == 0.5


@pytest.mark.parametrize(
  'ours, published, better, expected',
  [
    (Estimate(1.0, 0.1, 5), Published(1.2, 0.1), 'low', 'agrees'),
    (Estimate(1.0, 0.1, 5), Published(1.3, 0.1), 'low', 'better'),
    (Estimate(1.0, 0.1, 5), Published(1.3, 0.1), 'high', 'worse'),
    (Estimate(1.3, 0.1, 5), Published(1.0, 0.1), 'low', 'worse'),
    (Estimate(1.3, 0.1, 5), Published(1.0, 0.1), 'high', 'better'),
    (Estimate(1.0, 0.1, 5), Published(1.19), 'low', 'agrees'),
    (Estimate(1.0, math.nan, 1), Published(1.01), 'low', 'better'),
    (Estimate(0.94, 0.001, 5), Published(0.90, 0.001), '0.95', 'better'),
    (Estimate(0.99, 0.001, 5), Published(0.94, 0.001), '0.95', 'worse'),
    (None, Published(1.0), 'low', 'not run'),
  ],
)
def test_verdicts(ours, published, better, expected):
  assert verdict(ours, published, better) == expected
