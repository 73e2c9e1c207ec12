"""Means with their standard errors over replicas, paired tests, and verdicts on published numbers.

Replicas with other seeds are independent. Replicas on overlapping splits of one data set are not: their training parts
share most examples, and the usual standard error of the mean is too small. Nadeau and Bengio (2003, Inference for the
Generalization Error) replace the factor 1/n of its square by 1/n + n_test/n_train. Functions take the ratio
n_test/n_train as `test_to_train`. It is 0 where replicas are independent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np
import scipy  # which loads scipy.stats when it is used: that takes a second
import scipy.special

LEVEL = 0.05
# Differences are taken as equal where their standard error is below this share of their mean.
ROUNDING = 1e-9

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
  """Mean over n replicas, and its standard error: NaN where there is one replica."""

  mean: float
  error: float = math.nan
  n: int = 1


@dataclass(frozen=True)
class Published:
  """A number of a paper, its standard error as printed (NaN: it has none), and the number of replicas (0: not said)."""

  value: float
  error: float = math.nan
  n: int = 0


@dataclass(frozen=True)
class Difference:
  """Mean of paired differences, its standard error, p of a two-sided t-test that it is 0, and the number of pairs."""

  mean: float
  error: float
  p: float
  n: int


def inflation(n: int, test_to_train: float) -> float:
  """The corrected standard error over n splits, divided by the usual one: √(1 + n · n_test/n_train).

  Example:
    >>> round(inflation(20, 1 / 9), 2)  # 20 splits of 90/10
    1.8
  """
  return math.sqrt(1 + n * test_to_train)


def estimate(values: Values, test_to_train: float = 0.0) -> Estimate:
  """Mean and standard error, std / √n with n − 1 degrees of freedom, corrected for splits that overlap.

  Args:
    values: One for each replica; at least one.
    test_to_train: See above.

  Example:
    >>> estimate([1.0, 2.0, 3.0])
    Estimate(mean=2.0, error=0.5773..., n=3)
  """
  n = len(values)
  with np.errstate(invalid='ignore'):  # infinite values, such as the NLL of what was thought impossible, give NaN
    error = float(np.std(values, ddof=1) / math.sqrt(n)) * inflation(n, test_to_train) if n > 1 else math.nan
  return Estimate(float(np.mean(values, dtype=np.float64)), error, n)


def paired(ours: Values, theirs: Values, test_to_train: float = 0.0) -> Difference:
  """Ours − theirs, pair by pair, with Nadeau and Bengio's t-test where splits overlap.

  Where all differences are 0, p is 1. Where they are equal and not 0, as accuracies may differ by chance, nothing is
  known of their error, and p is NaN. For one pair p is NaN too.

  Args:
    ours: One for each replica.
    theirs: In the same order.
    test_to_train: See above.

  Example:
    >>> paired([0.95, 0.97, 0.96], [0.94, 0.95, 0.95])
    Difference(mean=0.0133..., error=0.0033..., p=0.0571..., n=3)
  """
  found = estimate(np.subtract(ours, theirs, dtype=np.float64), test_to_train)
  if found.n < 2:
    p = math.nan
  elif found.error > ROUNDING * abs(found.mean):
    p = float(2 * scipy.special.stdtr(found.n - 1, -abs(found.mean) / found.error))
  else:
    p = math.nan if found.mean else 1.0
  return Difference(found.mean, found.error, p, found.n)


def welch(ours: Estimate, published: Published, test_to_train: float = 0.0) -> float:
  """The p-value of Welch's two-sided t-test that a published mean is ours; NaN where either has no standard error.

  The published error is taken to be the usual one, and is corrected like ours. Where the paper does not give the number
  of its replicas, the number is taken to be ours.

  Args:
    ours: What was measured, its error corrected already.
    published: As printed.
    test_to_train: See the top of the module.
  """
  n = published.n or ours.n
  error = published.error * inflation(n, test_to_train)
  if math.isnan(ours.error) or math.isnan(error):
    return math.nan
  if not ours.error and not error:
    return float(ours.mean == published.value)
  ours_std, std = ours.error * math.sqrt(ours.n), error * math.sqrt(n)
  found = scipy.stats.ttest_ind_from_stats(ours.mean, ours_std, ours.n, published.value, std, n, equal_var=False)
  return float(found.pvalue)


def holm(ps: Sequence[float]) -> list[float]:
  """Values of p adjusted for their number by Holm's method (1979), in the given order; NaN stays and is not counted.

  The i-th smallest of m is multiplied by m − i, counted from 0. Adjusted values neither fall nor exceed 1.

  Example:
    >>> holm([0.25, 0.125, float('nan')])
    [0.25, 0.25, nan]
  """
  adjusted, highest = list(ps), 0.0
  order = sorted((i for i, p in enumerate(ps) if not math.isnan(p)), key=lambda i: ps[i])
  for rank, i in enumerate(order):
    highest = max(highest, min(1.0, (len(order) - rank) * ps[i]))
    adjusted[i] = highest
  return adjusted


def verdict(ours: Estimate | None, published: Published, better: str, p: float) -> str:
  """`agrees` where the difference is not significant at 5%, else `better` or `worse`.

  `not run` where ours is missing; `no verdict` where p is NaN, as one of the two has no standard error.

  Args:
    ours: What was measured.
    published: What it is compared with.
    better: `low`, `high`, or a number that values should be close to.
    p: See `welch`, adjusted by `holm`.

  Example:
    >>> verdict(Estimate(0.95, 0.01, 5), Published(0.90, 0.01, 5), 'high', p=0.01)
    'better'
  """
  if ours is None:
    return 'not run'
  if math.isnan(p):
    return 'no verdict'
  if p > LEVEL:
    return 'agrees'
  if better == 'low':
    return 'better' if ours.mean < published.value else 'worse'
  if better == 'high':
    return 'better' if ours.mean > published.value else 'worse'
  target = float(better)
  return 'better' if abs(ours.mean - target) < abs(published.value - target) else 'worse'
