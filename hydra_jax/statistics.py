"""Means with their standard errors over replicas, paired tests, and verdicts on published numbers."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np
import scipy.stats


class Estimate(NamedTuple):
  """Mean over n replicas, and its standard error: NaN where there is one replica, or where none is published."""

  mean: float
  error: float = math.nan
  n: int = 1


class Published(NamedTuple):
  """A number of a paper, and its standard error, NaN where the paper has none."""

  value: float
  error: float = math.nan


def estimate(values: Sequence[float]) -> Estimate:
  """Mean and standard error, std / √n with n − 1 degrees of freedom."""
  n = len(values)
  return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)


class Difference(NamedTuple):
  """Mean of paired differences, its standard error, p of a two-sided t-test that it is 0, and the number of pairs."""

  mean: float
  error: float
  p: float
  n: int


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
  """Ours − theirs, pair by pair. Where all differences are the same, p is 1 if they are 0, else 0; of one pair, NaN."""
  mean, error, n = estimate(np.subtract(ours, theirs, dtype=np.float64))
  if n < 2:
    return Difference(mean, error, math.nan, n)
  p = float(2 * scipy.stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
  return Difference(mean, error, p, n)


def verdict(ours: Estimate | None, published: Published, better: str) -> str:
  """`agrees` within 2 standard errors of the difference, else `better` or `worse`; `not run` where ours is missing.

  A standard error that is not known counts as 0.

  Args:
    ours: What was measured.
    published: What it is compared with.
    better: `low`, `high`, or a number that values should be close to.
  """
  if ours is None:
    return 'not run'
  error = math.hypot(*(0.0 if math.isnan(e) else e for e in (ours.error, published.error)))
  if abs(ours.mean - published.value) <= 2 * error:
    return 'agrees'
  if better == 'low':
    return 'better' if ours.mean < published.value else 'worse'
  if better == 'high':
    return 'better' if ours.mean > published.value else 'worse'
  target = float(better)
  return 'better' if abs(ours.mean - target) < abs(published.value - target) else 'worse'
