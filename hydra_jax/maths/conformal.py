"""Conformal prediction, and thresholds that keep a promised risk: pure NumPy, on predictions of any model.

A score says how badly a prediction fits a label. Take the scores of n held-out examples, on which nothing was trained,
and the score of a new example of the same distribution. All n + 1 are exchangeable, so the new score is at most the
k-th smallest of the n with a chance of at least k / (n + 1). The `quantile` takes the k for which that is the coverage
that was asked for (Vovk et al. 2005; Lei et al. 2018). No other assumption is made, least of all that the model is
right.

The promise is a mean over held-out sets and over new examples. It is none for a single class or a part of the inputs,
and none where new inputs are of another distribution. With one held-out set, the coverage of new examples has a beta
distribution with the parameters k and n + 1 − k (Vovk 2012).

Functions raise a `ValueError` where an argument would silently give wrong numbers.

Shapes: N examples, M members, C classes, D targets, K scores that are kept.
"""

from fractions import Fraction
import math
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

BISECTIONS = 60  # to the last digit of float64
# Thresholds that are tried, each with an equal share of the chance to be wrong: one for every 5% of coverage or less.
# The distance of a bound to the mean that was seen grows with the root of the logarithm of their number, by 6% from 10.
CANDIDATES = 20


def rank(examples: int, coverage: float) -> int:
  """The k of the k-th smallest score that promises a coverage: ⌈(n + 1) · coverage⌉, which may be n + 1.

  The coverage is taken as the decimal number that it is written as. The binary number that stands for 0.07 is larger
  than 0.07, and would make k one too large for n = 99.

  Args:
    examples: n.
    coverage: More than 0 and less than 1.

  Raises:
    ValueError: The coverage is outside.

  Example:
    >>> rank(9, 0.9), rank(8, 0.9), rank(99, 0.07)
    (9, 9, 7)
  """
  return math.ceil((examples + 1) * _decimal(coverage))


def _decimal(share: float) -> Fraction:
  if not 0 < share < 1:
    raise ValueError(f'a share of {share} is not between 0 and 1')
  return Fraction(repr(float(share)))


def least_examples(coverage: float) -> int:
  """The least number of held-out examples for which a `quantile` is finite: ⌈coverage / (1 − coverage)⌉.

  Args:
    coverage: More than 0 and less than 1.

  Raises:
    ValueError: The coverage is outside.

  Example:
    >>> least_examples(0.9), least_examples(0.95), least_examples(0.99)
    (9, 19, 99)
  """
  share = _decimal(coverage)
  return math.ceil(share / (1 - share))


def quantile(scores_N: np.ndarray, coverage: float, examples: int | None = None) -> np.ndarray:
  """The bound that a new score does not exceed with a chance of at least `coverage`.

  It is the `rank`-th smallest score. Without ties, the chance is at most coverage + 1 / (n + 1).

  Args:
    scores_N: Of held-out examples, in any order, `[N]` or `[N, D]`.
    coverage: More than 0 and less than 1.
    examples: n, if the scores are `thinned` from more than there are. The next score that was kept is taken then.

  Returns:
    Float64 `[]` or `[D]`; +inf where n is smaller than `least_examples(coverage)`.

  Raises:
    ValueError: The coverage is outside, or a score is NaN.

  Example:
    >>> float(quantile(np.arange(1.0, 20.0), 0.9))  # 18 of 20 parts
    18.0
    >>> float(quantile(np.arange(1.0, 9.0), 0.9))
    inf
  """
  values = _ascending(scores_N)
  n = len(values) if examples is None else examples
  k = rank(n, coverage)
  if k > n:
    return np.full(values.shape[1:], np.inf)
  return values[np.searchsorted(kept_ranks(n, len(values)), k)]


def _ascending(scores: np.ndarray) -> np.ndarray:
  values = np.sort(np.asarray(scores, np.float64), axis=0)
  if np.isnan(values).any():
    raise ValueError('a score is NaN')
  return values


def kept_ranks(examples: int, most: int) -> np.ndarray:
  """Ranks, from 1, of the scores that `thinned` keeps: the highest half each, and the others at equal steps.

  Args:
    examples: n.
    most: K; all n are kept where they are no more.

  Returns:
    Ascending int64 `[min(n, K)]`; the last is n.

  Example:
    >>> kept_ranks(20, 6)
    array([ 6, 12, 17, 18, 19, 20])
  """
  if examples <= most:
    return np.arange(1, examples + 1)
  each = most // 2
  steps = most - each
  lower = -(-np.arange(1, steps + 1) * (examples - each) // steps)
  return np.concatenate([lower, np.arange(examples - each + 1, examples + 1)])


def thinned(scores_N: np.ndarray, most: int) -> np.ndarray:
  """At most K of the scores, ascending, for `quantile` and `p_values` with `examples=len(scores_N)`.

  What they promise still holds. A coverage becomes larger by less than 2 / K, and not at all where it is so high that
  its score is one of the K / 2 highest.

  Args:
    scores_N: In any order, `[N]` or `[N, D]`.
    most: K.

  Returns:
    Float64 `[K]` or `[K, D]`.

  Raises:
    ValueError: A score is NaN.

  Example:
    >>> thinned(np.arange(1.0, 21.0), 6)
    array([ 6., 12., 17., 18., 19., 20.])
  """
  return _ascending(scores_N)[kept_ranks(len(scores_N), most) - 1]


def p_values(scores_N: np.ndarray, held_out_K: np.ndarray, examples: int | None = None) -> np.ndarray:
  """Conformal p-values that scores are of the distribution of held-out ones (Bates et al. 2023).

  (1 + number of held-out scores that are as large) / (n + 1). For a new example of that distribution, the chance of a
  value of at most p is at most p. A high score, such as a large uncertainty, has a low p. `quantile(held_out, 1 − p)`
  is the threshold that goes with p: the p-value is at most p for just those scores that are above it.

  Args:
    scores_N: Of new examples.
    held_out_K: Of held-out ones, in any order.
    examples: n, if these are `thinned` from more than there are. The p-values are never smaller than with all.

  Returns:
    Float64 `[N]`, from 1 / (n + 1) to 1.

  Raises:
    ValueError: A score is NaN.

  Example:
    >>> p_values(np.array([0.5, 2.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    array([1.  , 0.75, 0.25])
  """
  values, scores = _ascending(held_out_K), np.asarray(scores_N, np.float64)
  if np.isnan(scores).any():
    raise ValueError('a score is NaN')
  n = len(values) if examples is None else examples
  ranks = np.concatenate([[0], kept_ranks(n, len(values))])
  return (1 + n - ranks[np.searchsorted(values, scores, side='left')]) / (n + 1)


def lac_scores(p_NxC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
  """1 − probability of the label (Sadinle et al. 2019), float64 `[N]`.

  Sets by this score have the fewest classes on average, where the probabilities are right.

  Args:
    p_NxC: Probabilities.
    labels_N: Indices of the classes.

  Example:
    >>> lac_scores(np.array([[0.75, 0.25], [0.5, 0.5]]), np.array([1, 0]))
    array([0.75, 0.5 ])
  """
  return _of_labels(1 - np.asarray(p_NxC, np.float64), labels_N)


def lac_sets(p_NxC: np.ndarray, threshold: float, never_empty: bool = False) -> np.ndarray:
  """The classes whose score is at most the threshold.

  Args:
    p_NxC: Probabilities.
    threshold: A `quantile` of `lac_scores`.
    never_empty: Whether the likeliest class is always in the set. The coverage can only grow by that.

  Returns:
    Booleans `[N, C]`.

  Example:
    >>> lac_sets(np.array([[0.75, 0.25], [0.5, 0.5]]), 0.4)
    array([[ True, False],
           [False, False]])
    >>> lac_sets(np.array([[0.75, 0.25], [0.5, 0.5]]), 0.4, never_empty=True)
    array([[ True, False],
           [ True, False]])
  """
  p = np.asarray(p_NxC, np.float64)
  return _with_likeliest(1 - p <= threshold, p, never_empty)


def aps_scores(p_NxC: np.ndarray, labels_N: np.ndarray, uniform_N: np.ndarray | None = None) -> np.ndarray:
  """Mass of the classes that are likelier than the label, plus u times that of the label (Romano et al. 2020).

  Sets by this score (adaptive prediction sets) have more classes where the model is less sure. Their coverage is less
  uneven over inputs than that of `lac_sets`. Of equally likely classes, the first counts as likelier.

  Args:
    p_NxC: Probabilities.
    labels_N: Indices of the classes.
    uniform_N: u, numbers from 0 to 1 such as `generator.random(N)`. Then the score of a right model is uniform, and the
      coverage is exact for it. None: u = 0, and nothing is random.

  Returns:
    Float64 `[N]`, from 0 to 1.

  Example:
    >>> aps_scores(np.array([[0.5, 0.375, 0.125]] * 3), np.array([0, 1, 2]))
    array([0.   , 0.5  , 0.875])
  """
  return _of_labels(_masses(p_NxC, uniform_N), labels_N)


def aps_sets(
  p_NxC: np.ndarray, threshold: float, uniform_N: np.ndarray | None = None, never_empty: bool = False
) -> np.ndarray:
  """The classes whose score is at most the threshold: the likeliest ones.

  Args:
    p_NxC: Probabilities.
    threshold: A `quantile` of `aps_scores`, which had numbers u if these sets have.
    uniform_N: Other numbers u than those of the scores. None: u = 0. Then a set is the smallest whose mass exceeds the
      threshold, and never empty.
    never_empty: Whether the likeliest class is always in the set. The coverage can only grow by that.

  Returns:
    Booleans `[N, C]`.

  Example:
    >>> aps_sets(np.array([[0.5, 0.375, 0.125], [0.8, 0.15, 0.05]]), 0.6)
    array([[ True,  True, False],
           [ True, False, False]])
  """
  p = np.asarray(p_NxC, np.float64)
  return _with_likeliest(_masses(p, uniform_N) <= threshold, p, never_empty)


def _masses(p_NxC: np.ndarray, uniform_N: np.ndarray | None) -> np.ndarray:
  """The score of every class, `[N, C]`. Sets and scores share it, so that equal probabilities give equal scores."""
  p = np.asarray(p_NxC, np.float64)
  order = np.argsort(-p, axis=1, kind='stable')
  descending = np.take_along_axis(p, order, axis=1)
  before = np.cumsum(np.pad(descending[:, :-1], [(0, 0), (1, 0)]), axis=1)
  u = 0.0 if uniform_N is None else np.asarray(uniform_N, np.float64)[:, None]
  masses = np.empty_like(p)
  np.put_along_axis(masses, order, before + u * descending, axis=1)
  return masses


def _of_labels(scores_NxC: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
  return np.take_along_axis(scores_NxC, np.asarray(labels_N)[:, None], axis=1)[:, 0]


def _with_likeliest(sets_NxC: np.ndarray, p_NxC: np.ndarray, never_empty: bool) -> np.ndarray:
  if never_empty:
    np.put_along_axis(sets_NxC, np.argmax(p_NxC, axis=1)[:, None], True, axis=1)
  return sets_NxC


def residual_scores(mean_NxD: np.ndarray, deviation_NxD: np.ndarray, y_NxD: np.ndarray) -> np.ndarray:
  """|y − mean| / deviation of each target (Papadopoulos et al. 2008; Lei et al. 2018, section 5.2), float64 `[N, D]`.

  Args:
    mean_NxD: Predicted.
    deviation_NxD: Predicted standard deviations, or other sizes of the error, more than 0. All 1 gives plain residuals,
      and intervals of one width.
    y_NxD: Targets.

  Example:
    >>> residual_scores(np.zeros((1, 2)), np.array([[1.0, 2.0]]), np.array([[-3.0, 3.0]]))
    array([[3. , 1.5]])
  """
  return np.abs(np.asarray(y_NxD, np.float64) - mean_NxD) / deviation_NxD


def intervals(mean_NxD: np.ndarray, deviation_NxD: np.ndarray, threshold_D: np.ndarray) -> np.ndarray:
  """Mean ∓ threshold · deviation, float64 `[N, D, 2]`. The coverage is that of each target by itself.

  Args:
    mean_NxD: Predicted.
    deviation_NxD: As for the scores.
    threshold_D: A `quantile` of `residual_scores`, `[D]` or `[]`.

  Example:
    >>> intervals(np.zeros((1, 2)), np.array([[1.0, 2.0]]), np.array([2.0, 3.0]))
    array([[[-2.,  2.],
            [-6.,  6.]]])
  """
  half = np.asarray(threshold_D, np.float64) * deviation_NxD
  return np.stack([mean_NxD - half, mean_NxD + half], axis=-1)


def mixture_intervals(mean_MxNxD: np.ndarray, var_MxNxD: np.ndarray, coverage: float) -> np.ndarray:
  """The central interval of the equal-weight Gaussian mixture of each target. It promises nothing: the model may err.

  Its ends are the quantiles (1 ∓ coverage) / 2, by bisection of the cumulative probability. A quantile of a mixture is
  between the lowest and the highest of that quantile of its members.

  Args:
    mean_MxNxD: Means of the members.
    var_MxNxD: Variances of the members, more than 0.
    coverage: More than 0 and less than 1.

  Returns:
    Float64 `[N, D, 2]`.

  Raises:
    ValueError: The coverage is outside.

  Example:
    >>> np.round(mixture_intervals(np.zeros((3, 1, 1)), np.ones((3, 1, 1)), 0.95), 4)
    array([[[-1.96,  1.96]]])
  """
  mean, deviation = np.asarray(mean_MxNxD, np.float64), np.sqrt(np.asarray(var_MxNxD, np.float64))
  tail = (1 - float(_decimal(coverage))) / 2

  def end(level):
    of_members = mean + deviation * scipy.special.ndtri(level)
    low, high = of_members.min(axis=0), of_members.max(axis=0)
    for _ in range(BISECTIONS):
      middle = (low + high) / 2
      below = scipy.special.ndtr((middle - mean) / deviation).mean(axis=0) < level
      low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2

  return np.stack([end(tail), end(1 - tail)], axis=-1)


class Selection(NamedTuple):
  """What `threshold_for_risk` finds.

  Attributes:
    threshold: An input is accepted where its uncertainty is less. +inf: all are; −inf: none is.
    coverage: Share of the given examples that are accepted.
    risk: Mean loss of these; NaN where there are none.
    bound: Upper bound of the mean loss of new examples that are accepted. Where none is, the lowest bound of all
      thresholds that were tried.
  """

  threshold: float
  coverage: float
  risk: float
  bound: float


def least_examples_for_risk(risk: float, confidence: float) -> int:
  """The least number of examples without any loss for which `threshold_for_risk` accepts some.

  Args:
    risk: More than 0 and less than 1.
    confidence: More than 0 and less than 1.

  Raises:
    ValueError: One of them is outside.

  Example:
    >>> least_examples_for_risk(0.05, 0.95)  # 0.95^117 < 0.05 / 20
    117
  """
  wrong = float(1 - _decimal(confidence)) / CANDIDATES
  return math.ceil(math.log(wrong) / math.log1p(-float(_decimal(risk))))


def threshold_for_risk(
  uncertainty_N: np.ndarray, loss_N: np.ndarray, risk: float, confidence: float = 0.95
) -> Selection:
  """The threshold of an uncertainty that accepts the most inputs, of those that keep a risk.

  Selection with guaranteed risk (Geifman and El-Yaniv 2017), with an exact union bound. With a chance of at least
  `confidence`, the mean losses of new examples below all thresholds that are tried are at most their bounds. So the
  bound of the threshold that is chosen holds as well. Thresholds are the values of the uncertainty at ranks that are
  fixed in advance: by the number of examples, the risk and the confidence alone. Given such a value, and the number of
  examples strictly below it, these examples are independent draws of the inputs below it, with ties or without.
  (Geifman and El-Yaniv search for the threshold by the losses, and divide the chance to be wrong among the steps of
  that search. The thresholds at which it can arrive are many more.)

  Bounds are those of Clopper and Pearson (exact binomial tails) where the loss is 0 or 1, and else of Hoeffding and
  Bentkus (Bates et al. 2021, section 3.1).

  Args:
    uncertainty_N: Of examples on which nothing was trained, finite.
    loss_N: Of the same examples. Booleans and whole numbers are losses of 0 or 1; floats are from 0 to 1.
    risk: The mean loss that accepted inputs may have, more than 0 and less than 1.
    confidence: Chance that the bound holds, more than 0 and less than 1.

  Returns:
    The threshold, and what it does.

  Raises:
    ValueError: A share or a loss is outside, an uncertainty is not finite, or the shapes differ.

  Example:
    >>> random = np.random.default_rng(0)
    >>> uncertainty = random.random(2000)
    >>> wrong = random.random(2000) < uncertainty / 5  # wrong as often as one in five
    >>> found = threshold_for_risk(uncertainty, wrong, risk=0.05)
    >>> found.threshold < 0.5, found.risk < found.bound <= 0.05
    (True, True)
  """
  uncertainty, loss = np.asarray(uncertainty_N, np.float64), np.asarray(loss_N)
  _refuse_losses(uncertainty, loss)
  n, least = len(loss), least_examples_for_risk(risk, confidence)
  if n < least:
    return Selection(-math.inf, 0.0, math.nan, 1.0)
  order = np.argsort(uncertainty, kind='stable')
  ascending = np.append(uncertainty[order], np.inf)
  thresholds = ascending[np.unique(np.linspace(least, n, CANDIDATES).round().astype(int))]
  accepted = np.searchsorted(ascending, thresholds, side='left')
  losses = np.concatenate([[0], np.cumsum(loss[order], dtype=np.float64)])[accepted]
  bound = _binomial_bound if loss.dtype.kind in 'biu' else _hoeffding_bentkus_bound
  bounds = bound(losses, accepted, float(1 - _decimal(confidence)) / CANDIDATES)
  kept = np.flatnonzero(bounds <= risk)
  if not len(kept):
    return Selection(-math.inf, 0.0, math.nan, float(bounds.min()))
  i = kept[-1]
  return Selection(float(thresholds[i]), float(accepted[i] / n), float(losses[i] / accepted[i]), float(bounds[i]))


def _refuse_losses(uncertainty: np.ndarray, loss: np.ndarray) -> None:
  if uncertainty.ndim != 1 or uncertainty.shape != loss.shape:
    raise ValueError(f'uncertainties are {list(uncertainty.shape)} and losses {list(loss.shape)}: give both [examples]')
  if not np.isfinite(uncertainty).all():
    raise ValueError('an uncertainty is not finite')
  if not np.all((loss >= 0) & (loss <= 1)):
    raise ValueError('a loss is outside the range from 0 to 1')


def _binomial_bound(losses: np.ndarray, counts: np.ndarray, wrong: float) -> np.ndarray:
  """The rate of losses at which so few are seen with a chance of `wrong`, by Clopper and Pearson; 1 for no example."""
  right = np.maximum(counts - losses, 1)
  return np.where(losses < counts, scipy.stats.beta.ppf(1 - wrong, losses + 1, right), 1.0)


def _hoeffding_bentkus_bound(losses: np.ndarray, counts: np.ndarray, wrong: float) -> np.ndarray:
  """The lowest mean above the one seen, at which the chance of that is at most `wrong` by either bound; 1 for none."""
  size = np.maximum(counts, 1)
  mean = losses / size
  low, high = mean, np.ones_like(mean)
  for _ in range(BISECTIONS):
    middle = (low + high) / 2
    # Hoeffding's exponent is the KL from a mean seen to a mean supposed.
    exponent = scipy.special.rel_entr(mean, middle) + scipy.special.rel_entr(1 - mean, 1 - middle)
    bentkus = math.e * scipy.stats.binom.cdf(np.ceil(losses), size, middle)
    likely = np.minimum(np.exp(-size * exponent), bentkus) > wrong
    low, high = np.where(likely, middle, low), np.where(likely, high, middle)
  return np.where(counts > 0, high, 1.0)
