"""Metrics against scikit-learn, scipy and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import sklearn.metrics

from hydra_jax.maths import metrics, tasks

N, M, C = 257, 5, 4


@pytest.fixture
def predictions():
  random = np.random.default_rng(0)
  log_p = jax.nn.log_softmax(jnp.asarray(random.normal(size=(N, C)) * 2, jnp.float32))
  return log_p, jnp.asarray(random.integers(C, size=N))


def test_nll_and_brier_are_scikit_learns(predictions):
  log_p, y = predictions
  p = np.exp(np.float64(log_p))
  p /= p.sum(-1, keepdims=True)
  np.testing.assert_allclose(np.mean(metrics.nll(log_p, y)), sklearn.metrics.log_loss(y, p), rtol=1e-5)
  one_hot = np.eye(C)[np.asarray(y)]
  by_class = [sklearn.metrics.brier_score_loss(one_hot[:, c], p[:, c]) for c in range(C)]
  np.testing.assert_allclose(np.mean(metrics.brier(log_p, y)), np.sum(by_class), rtol=1e-5)


def slow_ece(confidence, correct, edges):
  gap = 0
  for low, high in zip(edges[:-1], edges[1:]):
    inside = (confidence > low) & (confidence <= high)
    if inside.any():
      gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
  return gap


@pytest.mark.parametrize('bins', [1, 7, 15])
@pytest.mark.parametrize('n', [257, 200_000])
def test_ece_is_the_definition(bins, n):
  """In float32, sums over 200,000 examples are off by more than a tenth."""
  random = np.random.default_rng(1)
  confidence = random.beta(8, 1, n).astype(np.float32)
  correct = (random.uniform(size=n) < confidence**2).astype(np.float32)
  found = metrics.calibration_error(metrics.calibration_bins(confidence, correct, bins))
  expected = slow_ece(np.float64(confidence), np.float64(correct), np.linspace(0, 1, bins + 1))
  np.testing.assert_allclose(found, expected, rtol=1e-9)
  halves = sum(metrics.calibration_bins(confidence[s], correct[s], bins) for s in (slice(0, 100), slice(100, n)))
  np.testing.assert_allclose(metrics.calibration_error(halves), found, rtol=1e-9)


def test_ece_by_hand():
  sums = metrics.calibration_bins(np.float32([0.9, 0.9, 0.6, 1.0]), np.float32([1, 0, 1, 1]), 10)
  np.testing.assert_allclose(metrics.calibration_error(sums), (0.8 + 0.4 + 0) / 4, rtol=1e-6)


def test_bins_end_at_what_float32_makes_of_their_edges():
  """As in torchmetrics: 0.6 in float32, a little above 0.6, is in the bin (0.5, 0.6]."""
  edges = np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
  sums = metrics.calibration_bins(np.r_[np.float32(0), edges], np.ones(11), 10)
  np.testing.assert_array_equal(sums[:, 2], [2, *[1] * 9])
  above = np.nextafter(edges[:-1], np.float32(2))
  np.testing.assert_array_equal(metrics.calibration_bins(above, np.ones(9), 10)[:, 2], [0, *[1] * 9])
  assert metrics.calibration_bins(np.float32([1.0000001]), np.ones(1), 10)[-1, 2] == 1


@pytest.mark.parametrize('n', [300, 307, 200_000])
def test_adaptive_ece_is_the_definition(n):
  """Torch-uncertainty's bins, those of `array_split`, over confidences that all differ."""
  random = np.random.default_rng(2)
  confidence = np.sort(random.choice(2**24, n, replace=False)).astype(np.float32) / 2**24
  correct = (random.uniform(size=n) < 0.8 * confidence).astype(np.float32)
  parts = np.array_split(np.arange(n), 15)
  exact, right = np.float64(confidence), np.float64(correct)
  expected = sum(abs(right[i].mean() - exact[i].mean()) * len(i) / n for i in parts)
  shuffled = random.permutation(n)
  found = metrics.adaptive_calibration_error(confidence[shuffled], correct[shuffled], 15)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_adaptive_ece_does_not_depend_on_the_order_of_ties():
  """A constant that is calibrated has none, however right and wrong are ordered; with ties, it is the mean order's."""
  correct = np.r_[np.ones(600), np.zeros(400)]
  for order in (correct, correct[::-1], np.tile([1, 1, 1, 0, 0], 200)):
    np.testing.assert_allclose(metrics.adaptive_calibration_error(np.full(1000, 0.6), order), 0, atol=1e-12)
  random = np.random.default_rng(6)
  confidence, correct = random.integers(5, 10, 400) / 10, random.integers(2, size=400)
  errors = []
  for _ in range(5):
    order = random.permutation(400)
    errors.append(metrics.adaptive_calibration_error(confidence[order], correct[order]))
  np.testing.assert_allclose(errors, errors[0], rtol=1e-12)
  # Within a bin that has one level alone, the gap is that of the level.
  levels = {level: correct[confidence == level].mean() for level in np.unique(confidence)}
  exact = np.sort(confidence)
  gaps = [abs(np.mean([levels[c] - c for c in exact[i]])) * len(i) / 400 for i in np.array_split(np.arange(400), 15)]
  np.testing.assert_allclose(errors[0], sum(gaps), rtol=1e-9)


def fpr95_by_scikit_learn(inside, outside):
  """As OpenOOD has it: out-of-domain is positive; the first point of the ROC curve with a recall of .95 or more."""
  labels, values = np.r_[np.zeros(len(inside)), np.ones(len(outside))], np.r_[inside, outside]
  fpr, tpr, _ = sklearn.metrics.roc_curve(labels, values, drop_intermediate=False)
  return fpr[np.argmax(tpr >= 0.95)]


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('sizes', [(300, 211), (100, 20), (7, 3), (1, 1), (40, 200_000)])
def test_detection_is_scikit_learns(ties, sizes):
  random = np.random.default_rng(3)
  inside, outside = (random.normal(mean, size=n).astype(np.float32) for mean, n in zip((0, 1), sizes))
  if ties:
    inside, outside = np.round(inside), np.round(outside)
  labels, values = np.r_[np.zeros(sizes[0]), np.ones(sizes[1])], np.r_[inside, outside]
  found = metrics.detection(inside, outside)
  np.testing.assert_allclose(found['auroc'], sklearn.metrics.roc_auc_score(labels, values), rtol=1e-9)
  np.testing.assert_allclose(found['aupr'], sklearn.metrics.average_precision_score(labels, values), rtol=1e-9)
  np.testing.assert_allclose(found['fpr95'], fpr95_by_scikit_learn(inside, outside), rtol=1e-9)


def test_fpr95_has_out_of_domain_as_the_positives():
  """By hand: 19 of 20 out-of-domain examples are found at .1; 3 of 10 in-domain ones are taken for them there."""
  outside = np.r_[0.0, 0.1, np.linspace(0.5, 1, 18)]
  inside = np.r_[np.full(7, 0.05), 0.1, 0.6, 0.9]
  assert metrics.detection(inside, outside)['fpr95'] == pytest.approx(0.3)
  # Of the in-domain examples 95% pass below .9: the other convention, where they are the positives, gives .75.
  assert np.mean(outside <= np.sort(inside)[9]) > 0.7


def test_detection_without_information():
  same = np.zeros(50, np.float32)
  found = metrics.detection(same, same[:20])
  assert found['auroc'] == 0.5 and found['aupr'] == pytest.approx(20 / 70) and found['fpr95'] == 1


def test_detection_by_what_is_not_a_number_is_none():
  assert all(np.isnan(v) for v in metrics.detection(np.float32([0, np.nan]), np.float32([1, 2])).values())


def test_impossible_labels_and_impossible_classes():
  """Probability 0 and a logit of −inf are the same; NLL is infinite only where the label had no chance."""
  p = np.float32([[[0.0, 0.25, 0.75], [1, 0, 0]], [[0, 0.75, 0.25], [1, 0, 0]]])
  with np.errstate(divide='ignore'):
    log_p = jnp.asarray(np.log(p))
  given = jax.nn.log_softmax(log_p)
  np.testing.assert_allclose(given, log_p, rtol=1e-6)
  scores = tasks.classification_scores(tasks.categorical_members(given), jnp.asarray([1, 1]))
  np.testing.assert_allclose(scores['nll'], [np.log(2), np.inf], rtol=1e-6)
  np.testing.assert_allclose(scores['brier'], [0.5, 2], rtol=1e-6)
  np.testing.assert_allclose(scores['confidence'], [0.5, 1], rtol=1e-6)
  np.testing.assert_allclose(scores['uncertainty_total'], [np.log(2), 0], rtol=1e-6)
  of_one = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  np.testing.assert_allclose(scores['uncertainty_epistemic'], [np.log(2) - of_one, 0], rtol=1e-5)


@pytest.fixture
def mixture():
  random = np.random.default_rng(4)
  mean, var, y = random.normal(size=(M, 6, 2)), random.gamma(2, 0.4, size=(M, 6, 2)), random.normal(size=(6, 2))
  return tuple(np.float32(a) for a in (mean, var, y))


def test_mixture_nll_and_moments_are_scipys(mixture):
  mean, var, y = mixture
  density = scipy.stats.norm.pdf(y, mean, np.sqrt(var)).prod(-1).mean(0)
  np.testing.assert_allclose(metrics.mixture_nll(*mixture), -np.log(density), rtol=1e-4)
  sd = np.sqrt(var.mean(0) + mean.var(0))
  expected = -scipy.stats.norm.logpdf(y, mean.mean(0), sd).sum(-1)
  np.testing.assert_allclose(metrics.moment_nll(*mixture), expected, rtol=1e-4)


def test_crps_is_the_integral(mixture):
  mean, var, y = (a[..., :1] for a in mixture)
  cdf = lambda x, b: scipy.stats.norm.cdf(x, mean[:, b, 0], np.sqrt(var[:, b, 0])).mean()
  for b in range(6):
    low, _ = scipy.integrate.quad(lambda x, b=b: cdf(x, b) ** 2, -20, y[b, 0])
    high, _ = scipy.integrate.quad(lambda x, b=b: (1 - cdf(x, b)) ** 2, y[b, 0], 20)
    np.testing.assert_allclose(metrics.crps(mean, var, y)[b], low + high, rtol=1e-3)


def test_crps_is_of_each_target_and_of_one_gaussian_is_closed_form(mixture):
  mean, var, y = mixture
  apart = [metrics.crps(*(a[..., d : d + 1] for a in mixture)) for d in (0, 1)]
  np.testing.assert_allclose(metrics.crps(*mixture), np.concatenate(apart, axis=-1), rtol=1e-5)
  sd = np.sqrt(var[0, :, :1])
  z = (y[:, :1] - mean[0, :, :1]) / sd
  closed = sd * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
  np.testing.assert_allclose(metrics.crps(mean[:1, :, :1], var[:1, :, :1], y[:, :1]), closed, rtol=1e-3)


def test_calibrated_targets_are_covered():
  random = np.random.default_rng(5)
  mean, var = np.float32(random.normal(size=(M, 1, 1)) * 2), np.float32(random.gamma(2, size=(M, 1, 1)))
  member = random.integers(M, size=20_000)
  y = np.float32(random.normal(mean[member, 0], np.sqrt(var[member, 0])))
  pit = np.asarray(metrics.mixture_cdf(*(np.repeat(a, len(y), axis=1) for a in (mean, var)), y))
  assert scipy.stats.kstest(pit[:, 0], 'uniform').pvalue > 0.01
