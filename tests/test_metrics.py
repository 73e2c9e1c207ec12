"""Metrics against scikit-learn, scipy and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import sklearn.metrics

from hydra_jax import metrics

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
def test_ece_is_the_definition(bins):
  random = np.random.default_rng(1)
  confidence = random.uniform(0.2, 1, N).astype(np.float32)
  correct = (random.uniform(size=N) < confidence**2).astype(np.float32)
  found = metrics.calibration_error(metrics.calibration_bins(confidence, correct, bins))
  np.testing.assert_allclose(found, slow_ece(confidence, correct, np.linspace(0, 1, bins + 1)), rtol=1e-5)
  halves = sum(metrics.calibration_bins(confidence[s], correct[s], bins) for s in (slice(0, 100), slice(100, N)))
  np.testing.assert_allclose(metrics.calibration_error(halves), found, rtol=1e-5)


def test_ece_by_hand():
  sums = metrics.calibration_bins(jnp.asarray([0.9, 0.9, 0.6, 1.0]), jnp.asarray([1.0, 0.0, 1.0, 1.0]), 10)
  np.testing.assert_allclose(metrics.calibration_error(sums), (0.8 + 0.4 + 0) / 4, rtol=1e-6)


def test_adaptive_ece_is_the_definition():
  random = np.random.default_rng(2)
  confidence = np.sort(random.beta(8, 1, 300)).astype(np.float32)
  correct = (random.uniform(size=300) < 0.8).astype(np.float32)
  parts = np.split(np.arange(300), 15)
  expected = sum(abs(correct[i].mean() - confidence[i].mean()) * len(i) / 300 for i in parts)
  shuffled = random.permutation(300)
  found = metrics.adaptive_calibration_error(confidence[shuffled], correct[shuffled], 15)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('ties', [False, True])
def test_detection_is_scikit_learns(ties):
  random = np.random.default_rng(3)
  inside, outside = random.normal(size=300), random.normal(1, size=211)
  if ties:
    inside, outside = np.round(inside), np.round(outside)
  inside, outside = inside.astype(np.float32), outside.astype(np.float32)
  labels, values = np.r_[np.zeros(300), np.ones(211)], np.r_[inside, outside]
  np.testing.assert_allclose(metrics.auroc(inside, outside), sklearn.metrics.roc_auc_score(labels, values), rtol=1e-6)
  expected = sklearn.metrics.average_precision_score(labels, values)
  np.testing.assert_allclose(metrics.aupr(inside, outside), expected, rtol=1e-6)
  kept = np.sort(inside)[284]  # 285 of 300 are 95%
  np.testing.assert_allclose(metrics.fpr_at_95(inside, outside), np.mean(outside <= kept), rtol=1e-6)


def test_detection_without_information():
  same = np.zeros(50, np.float32)
  assert metrics.auroc(same, same[:20]) == 0.5
  np.testing.assert_allclose(metrics.aupr(same, same[:20]), 20 / 70, rtol=1e-6)
  assert metrics.fpr_at_95(same, same[:20]) == 1


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


def test_crps_adds_targets_and_of_one_gaussian_is_closed_form(mixture):
  mean, var, y = mixture
  apart = [metrics.crps(*(a[..., d : d + 1] for a in mixture)) for d in (0, 1)]
  np.testing.assert_allclose(metrics.crps(*mixture), apart[0] + apart[1], rtol=1e-5)
  sd = np.sqrt(var[0, :, :1])
  z = (y[:, :1] - mean[0, :, :1]) / sd
  closed = sd * (z * (2 * scipy.stats.norm.cdf(z) - 1) + 2 * scipy.stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
  np.testing.assert_allclose(metrics.crps(mean[:1, :, :1], var[:1, :, :1], y[:, :1]), closed[:, 0], rtol=1e-3)


def test_calibrated_targets_are_covered():
  random = np.random.default_rng(5)
  mean, var = np.float32(random.normal(size=(M, 1, 1)) * 2), np.float32(random.gamma(2, size=(M, 1, 1)))
  member = random.integers(M, size=20_000)
  y = np.float32(random.normal(mean[member, 0], np.sqrt(var[member, 0])))
  pit = np.asarray(metrics.mixture_cdf(*(np.repeat(a, len(y), axis=1) for a in (mean, var)), y))
  assert scipy.stats.kstest(pit[:, 0], 'uniform').pvalue > 0.01
