"""Dirichlets and normal-Wisharts against scipy in float64; H, M, B, C and D all differ."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import digamma, gammaincinv, gammaln, log_softmax
import scipy.stats

from hydra_jax.maths import losses, metrics, prior_networks, uncertainty

H, B, M, C, D = 2, 5, 7, 4, 3
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([1.0, 2.5, 10.0])
many = settings(max_examples=10, deadline=None)


def with_gradient(loss):
  return jax.jit(jax.value_and_grad(lambda *args: jnp.sum(loss(*args))))


# Compiled once; the tests share shapes.
endd, proxy_endd, dirichlet_kl = (
  jax.jit(f) for f in (prior_networks.endd, prior_networks.proxy_endd, prior_networks.dirichlet_kl)
)
normal_wishart_nll, dirichlet_uncertainty = (
  jax.jit(prior_networks.normal_wishart_nll),
  jax.jit(prior_networks.dirichlet_uncertainty),
)
endd_gradient, proxy_endd_gradient = with_gradient(prior_networks.endd), with_gradient(prior_networks.proxy_endd)
normal_wishart_members = jax.jit(prior_networks.normal_wishart_members, static_argnums=1)


def normal(seed, *shape, scale=2.0, shift=0.0):
  return jnp.asarray(np.random.default_rng(seed).normal(shift, scale, size=shape), jnp.float32)


def smoothed(logits, temperature=1.0, smoothing=1e-4):
  p = scipy.special.softmax(np.float64(logits) / temperature, axis=-1)
  return (1 - smoothing) * p + smoothing / p.shape[-1]


def fitted(loss, start):
  value_and_grad = jax.jit(jax.value_and_grad(lambda x: jnp.mean(loss(jnp.reshape(x, start.shape)))))
  in_float64 = lambda x: [np.float64(v) for v in value_and_grad(jnp.asarray(x, jnp.float32))]
  return np.reshape(scipy.optimize.minimize(in_float64, start.ravel(), jac=True).x, start.shape)


def kl_in_float64(alpha, beta):
  a0, b0 = alpha.sum(-1, keepdims=True), beta.sum(-1, keepdims=True)
  log_ratio = gammaln(a0) - gammaln(b0) + np.sum(gammaln(beta) - gammaln(alpha), axis=-1, keepdims=True)
  return log_ratio[..., 0] + np.sum((alpha - beta) * (digamma(alpha) - digamma(a0)), axis=-1)


# Dirichlet: likelihood.


@given(seeds, temperatures, st.sampled_from([0.0, 1e-4, 1e-2]))
@many
def test_endd_is_scipys(seed, t, smoothing):
  a, b = normal(seed, H, B, C, shift=1.0), normal(seed + 1, M, B, C)
  alpha, pi = np.exp(np.float64(a) / t), smoothed(b, t, smoothing)
  log_density = [[[scipy.stats.dirichlet.logpdf(p, a) for p, a in zip(m, h)] for m in pi] for h in alpha]
  np.testing.assert_allclose(endd(a, b, t, smoothing), -np.mean(log_density, axis=1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('log_precision', [-12, -3, 0, 3, 6, 9, 12])
def test_gradient_of_endd_is_that_of_float64(log_precision):
  a, b = normal(0, H, B, C, shift=log_precision), normal(1, M, B, C)
  alpha = np.exp(np.float64(a))
  log_g = np.log(smoothed(b)).mean(0)
  expected = alpha * (digamma(alpha) - digamma(alpha.sum(-1, keepdims=True)) - log_g)
  _, found = endd_gradient(a, b)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def test_endd_finds_the_dirichlet_that_members_were_drawn_from():
  alpha = np.asarray([[0.7, 2, 5, 1.3], [30, 4, 9, 60]])
  pi = np.stack([np.random.default_rng(0).dirichlet(a, size=4000) for a in alpha], axis=1)
  loss = lambda a: prior_networks.endd(a, jnp.asarray(np.log(pi), jnp.float32), smoothing=0.0)
  found = np.exp(fitted(loss, np.zeros((1, 2, 4))))
  np.testing.assert_allclose(found[0], alpha, rtol=0.07)


def test_temperature_is_annealed_over_the_first_half():
  found = [float(prior_networks.annealed(jnp.float32(done), 10.0)) for done in (0, 0.25, 0.5, 1)]
  np.testing.assert_allclose(found, [10, 5.5, 1, 1])
  assert float(prior_networks.annealed(jnp.float32(0.5), 3.0, 2.0, until=1.0)) == 2.5


# Dirichlet: proxy.


@given(seeds)
@many
def test_dirichlet_kl_is_that_of_float64(seed):
  random = np.random.default_rng(seed)
  log_alpha, log_beta = (np.float32(random.uniform(0, 12, size=(B, C))) for _ in range(2))
  found = dirichlet_kl(jnp.asarray(log_alpha), jnp.asarray(log_beta))
  alpha, beta = np.exp(np.float64(log_alpha)), np.exp(np.float64(log_beta))
  beta_0 = beta.sum(-1)
  np.testing.assert_allclose(found / beta_0, kl_in_float64(alpha, beta) / beta_0, rtol=1e-5, atol=3e-6)


def test_dirichlet_kl_is_the_integral():
  alpha, beta = np.asarray([1.5, 4, 2.5]), np.asarray([3, 1.0, 6])
  samples = np.random.default_rng(0).dirichlet(alpha, size=200_000).T
  expected = np.mean(scipy.stats.dirichlet.logpdf(samples, alpha) - scipy.stats.dirichlet.logpdf(samples, beta))
  found = prior_networks.dirichlet_kl(*(jnp.log(jnp.asarray(x, jnp.float32)) for x in (alpha, beta)))
  np.testing.assert_allclose(found, expected, rtol=0.02)


@pytest.mark.parametrize('precision', [1, 1e3, 1e6, 1e12])
def test_dirichlet_kl_to_itself_is_nothing(precision):
  log_alpha = jnp.log1p(precision * jnp.exp(normal(0, B, C)))
  value, grad = with_gradient(prior_networks.dirichlet_kl)(log_alpha, log_alpha)
  largest = np.max(np.sum(np.exp(log_alpha), axis=-1))
  np.testing.assert_allclose(value / largest, 0, atol=1e-6)
  np.testing.assert_allclose(grad / largest, 0, atol=1e-6)


@given(seeds)
@many
def test_proxy_is_the_equation(seed):
  b = normal(seed, M, B, C)
  log_mean, log_precision = prior_networks.proxy(b)
  log_pi = log_softmax(np.float64(b), axis=-1)
  mean = np.exp(log_pi).mean(0)
  kl = scipy.stats.entropy(mean[None], np.exp(log_pi), axis=-1).mean(0)
  np.testing.assert_allclose(log_mean, np.log(mean), atol=1e-5)
  np.testing.assert_allclose(log_precision, np.log((C - 1) / (2 * kl)), atol=1e-4)


def test_proxy_finds_the_dirichlet_that_members_were_drawn_from():
  """For large α, where Stirling's approximation holds."""
  alpha = np.asarray([20.0, 50, 130, 40])
  pi = np.random.default_rng(0).dirichlet(alpha, size=(4000, 1))
  log_mean, log_precision = prior_networks.proxy(jnp.asarray(np.log(pi), jnp.float32))
  np.testing.assert_allclose(np.exp(log_mean[0] + log_precision[0]), alpha, rtol=0.05)


@given(seeds)
@many
def test_proxy_endd_is_the_papers_sum_up_to_a_constant(seed):
  a, b = np.float64(normal(seed, H, B, C, shift=2.0)), normal(seed + 1, M, B, C)
  log_mean, log_precision = map(np.float64, prior_networks.proxy(b))
  alpha = np.exp(a) + 1
  expected_log_pi = digamma(alpha) - digamma(alpha.sum(-1, keepdims=True))
  prior = kl_in_float64(alpha, np.ones_like(alpha))
  expected = -np.sum(np.exp(log_mean) * expected_log_pi, axis=-1) + prior / np.exp(log_precision)
  found = proxy_endd(jnp.asarray(a, jnp.float32), b)
  np.testing.assert_allclose(found[1] - found[0], expected[1] - expected[0], rtol=1e-4, atol=1e-3)


@given(seeds)
@many
def test_no_proxy_loss_and_no_gradient_at_the_proxy(seed):
  b = normal(seed, M, B, C)
  log_mean, log_precision = prior_networks.proxy(b)
  target = (log_mean + log_precision[:, None])[None]
  value, grad = proxy_endd_gradient(target, b)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(grad, 0, atol=1e-5)
  assert np.all(np.asarray(proxy_endd(target + normal(seed + 1, H, B, C), b)) > 0)


def test_proxy_endd_is_distillation_where_members_agree():
  b = jnp.repeat(normal(0, 1, B, C), M, axis=0)
  a = normal(1, H, B, C, shift=14.0)
  np.testing.assert_allclose(prior_networks.proxy_endd(a, b), losses.distillation(a, b), rtol=1e-3, atol=1e-4)


# Dirichlet: both losses.


@pytest.mark.parametrize('loss', [endd, proxy_endd])
def test_members_may_be_permuted(loss):
  a, b = normal(0, H, B, C), normal(1, M, B, C)
  order = np.random.default_rng(0).permutation(M)
  np.testing.assert_allclose(loss(a, b[order]), loss(a, b), rtol=1e-4)
  assert loss(a, b).shape == (H, B)


@pytest.mark.parametrize('gradient', [endd_gradient, lambda a, b: endd_gradient(a, b, 10.0), proxy_endd_gradient])
@pytest.mark.parametrize('size', [30, 1e4])
@pytest.mark.parametrize('agree', [False, True])
def test_losses_and_gradients_are_finite_at_extremes(gradient, size, agree):
  random = np.random.default_rng(0)
  a, b = (jnp.asarray(random.choice([-size, 0, size], (n, B, C)), jnp.float32) for n in (H, M))
  b = jnp.repeat(b[:1], M, axis=0) if agree else b
  for student in (a, jnp.full_like(a, size), jnp.full_like(a, -size)):
    value, grad = gradient(student, b)
    assert np.isfinite(value) and np.all(np.isfinite(jnp.square(grad)))


# Dirichlet: uncertainty.


def test_dirichlet_mean_is_scipys():
  log_alpha = normal(0, B, C)
  expected = [scipy.stats.dirichlet.mean(np.exp(np.float64(a))) for a in log_alpha]
  np.testing.assert_allclose(np.exp(prior_networks.dirichlet_mean(log_alpha)), expected, rtol=1e-5)


@given(seeds, st.sampled_from([-3.0, 0.0, 3.0, 6.0]))
@many
def test_dirichlet_uncertainty_is_that_of_float64(seed, shift):
  log_alpha = normal(seed, B, C, shift=shift)
  found = dirichlet_uncertainty(log_alpha)
  alpha = np.exp(np.float64(log_alpha))
  alpha_0 = alpha.sum(-1, keepdims=True)
  p = alpha / alpha_0
  total = scipy.stats.entropy(p, axis=-1)
  data = -np.sum(p * (digamma(alpha + 1) - digamma(alpha_0 + 1)), axis=-1)
  np.testing.assert_allclose(found.total, total, atol=3e-6)
  np.testing.assert_allclose(found.aleatoric, data, atol=3e-6)
  np.testing.assert_allclose(found.epistemic, total - data, rtol=2e-5, atol=2e-7)


def test_dirichlet_uncertainty_is_that_of_samples():
  alpha = np.asarray([[0.4, 1, 3, 0.8], [8.0, 2, 5, 1]])
  pi = np.stack([np.random.default_rng(0).dirichlet(a, size=100_000) for a in alpha], axis=1)
  expected = uncertainty.classification(jnp.log(jnp.maximum(jnp.asarray(pi, jnp.float32), 1e-30)))
  found = dirichlet_uncertainty(jnp.log(jnp.asarray(alpha, jnp.float32)))
  np.testing.assert_allclose(jnp.stack(found), jnp.stack(expected), rtol=0.01)


@given(seeds, st.sampled_from([1.0, 30.0, 1e4]))
@many
def test_dirichlet_uncertainty_is_bounded(seed, scale):
  found = dirichlet_uncertainty(normal(seed, B, C, scale=scale))
  np.testing.assert_array_equal(found.total, found.aleatoric + found.epistemic)
  assert np.all(np.stack(found) >= 0) and np.all(np.stack(found) <= np.log(C) + 1e-5)


def test_model_uncertainty_vanishes_with_precision():
  log_p = jax.nn.log_softmax(normal(0, B, C))
  for log_precision in (10, 20, 35):
    model = dirichlet_uncertainty(log_p + log_precision).epistemic
    np.testing.assert_allclose(model, (C - 1) / 2 * np.exp(-log_precision), rtol=1e-2)
  nothing_known = dirichlet_uncertainty(log_p - 30)
  np.testing.assert_allclose(nothing_known.epistemic, nothing_known.total, rtol=1e-5)


# Normal-Wishart.


def as_scipy(prior):
  """Gamma of the precision, normal of the mean given the precision, and Student-t."""
  m, var, kappa, dof = (np.float64(x) for x in prior)
  of_precision = scipy.stats.gamma(dof / 2, scale=2 / (dof * var))
  of_mean = lambda precision: scipy.stats.norm(m, 1 / np.sqrt(kappa * precision))
  return of_precision, of_mean, scipy.stats.t(dof, m, np.sqrt(var * (kappa + 1) / kappa))


@given(seeds)
@many
def test_normal_wishart_nll_is_scipys(seed):
  a, b = normal(seed, H, B, 4 * D), normal(seed + 1, M, B, 2 * D)
  of_precision, of_mean, _ = as_scipy(jax.tree.map(lambda x: x[:, None], prior_networks.normal_wishart(a)))
  mean, var = (np.float64(x)[None] for x in losses.gaussian(b))
  expected = of_precision.logpdf(1 / var) + of_mean(1 / var).logpdf(mean)
  found = normal_wishart_nll(a, b)
  np.testing.assert_allclose(found, -expected.sum(-1).mean(1), rtol=1e-4, atol=1e-3)
  assert found.shape == (H, B)


def test_temperature_of_the_normal_wishart_is_the_authors():
  a, b, t = normal(0, H, B, 4 * D), normal(1, M, B, 2 * D), 4.0
  prior = prior_networks.normal_wishart(a)
  prior = prior._replace(kappa=prior.kappa * t, dof=(prior.dof - 3) * t + 3)
  mean, var = (((t - 1) * jnp.mean(x, axis=0, keepdims=True) + 2 * x) / (t + 1) for x in losses.gaussian(b))
  each = jax.vmap(lambda mean, var: prior_networks.normal_wishart_log_density(prior, mean[None], var[None]))(mean, var)
  np.testing.assert_allclose(normal_wishart_nll(a, b, t), -jnp.mean(jnp.sum(each, -1), axis=0) / t, rtol=1e-4)


def test_normal_wishart_finds_what_members_were_drawn_from():
  prior = prior_networks.NormalWishart(*(np.asarray(x)[:, None] for x in ([0.5, -2], [0.4, 3], [0.7, 12], [4, 25])))
  of_precision, of_mean, _ = as_scipy(prior)
  precision = of_precision.rvs((4000, 2, 1), random_state=0)
  mean = of_mean(precision).rvs(random_state=1)
  teacher = jnp.asarray(np.concatenate([mean, np.log(np.expm1(1 / precision - 1e-6))], axis=-1), jnp.float32)
  found = fitted(lambda a: prior_networks.normal_wishart_nll(a, teacher), np.zeros((1, 2, 4)))
  found = prior_networks.normal_wishart(jnp.asarray(found, jnp.float32))
  for name, expected in prior._asdict().items():
    np.testing.assert_allclose(getattr(found, name)[0], expected, rtol=0.1, err_msg=name)


def test_members_of_the_normal_wishart_may_be_permuted():
  a, b = normal(0, H, B, 4 * D), normal(1, M, B, 2 * D)
  order = np.random.default_rng(0).permutation(M)
  np.testing.assert_allclose(normal_wishart_nll(a, b[order]), normal_wishart_nll(a, b), rtol=1e-5)


@pytest.mark.parametrize('size', [30, 1e4])
def test_normal_wishart_is_finite_at_extremes(size):
  random = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(random.choice([-size, 0, size], shape), jnp.float32)
  a, b = draw(H, B, 4 * D), draw(M, B, 2 * D)
  value, grad = with_gradient(prior_networks.normal_wishart_nll)(a, b)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
  assert np.all(np.isfinite(normal_wishart_members(a[:1], 64)))


@pytest.mark.parametrize('shape', [1.5, 3, 6, 10, 1e3, 1e6])
def test_gamma_quantile_is_scipys(shape):
  u = np.concatenate([[1e-6, 1e-4], (np.arange(256) + 0.5) / 256]).astype(np.float32)
  found = prior_networks.gamma_quantile(jnp.float32(shape), jnp.asarray(u))
  expected = gammaincinv(shape, np.float64(u))
  np.testing.assert_allclose(found, expected, rtol=0.1)
  np.testing.assert_allclose(found[u > 0.1], expected[u > 0.1], rtol=0.02)
  assert np.all(np.diff(found) > 0)


@given(seeds, st.sampled_from([2, 16, 64, 100]))
@many
def test_mixture_has_the_uncertainty_of_the_normal_wishart(seed, count):
  a = normal(seed, 1, B, 4 * D)
  prior = prior_networks.normal_wishart(a[0])
  mean, var = normal_wishart_members(a, count)
  assert mean.shape == var.shape == (count, B, D)
  found = uncertainty.regression(mean, var)
  _, _, student = as_scipy(prior)
  data = prior.var * prior.dof / (prior.dof - 2)
  np.testing.assert_allclose(jnp.mean(mean, axis=0), prior.mean, atol=1e-3 * np.sqrt(np.max(found.epistemic)))
  np.testing.assert_allclose(found.total, student.var(), rtol=1e-3)
  np.testing.assert_allclose(found.aleatoric, data, rtol=1e-3)
  np.testing.assert_allclose(found.epistemic, data / prior.kappa, rtol=1e-3)


def outputs_of(mean, var, kappa, dof):
  """What a network puts out for a normal-Wishart, the same for every target, `[1, 1, 4D]`."""
  inverse = lambda x: np.log(np.expm1(x))
  raw = [mean, inverse(var - 1e-6), inverse(kappa - 1e-6), inverse(dof - 3)]
  return jnp.asarray(np.repeat(raw, D)[None, None], jnp.float32)


@pytest.mark.parametrize('kappa, tolerance', [(0.1, 0.2), (1.0, 0.03), (10.0, 0.01)])
@pytest.mark.parametrize('dof', [3.1, 6.0, 30.0])
def test_mixture_is_the_student_t(kappa, tolerance, dof):
  a = outputs_of(2.0, 0.5, kappa, dof)
  _, _, student = as_scipy(jax.tree.map(lambda x: x[0, 0, 0], prior_networks.normal_wishart(a)))
  y = student.ppf((np.arange(4000) + 0.5) / 4000)
  mean, var = (jnp.repeat(x, len(y), axis=1) for x in normal_wishart_members(a, 64))
  for d in range(D):
    one = (mean[..., d : d + 1], var[..., d : d + 1])
    nll = metrics.mixture_nll(*one, jnp.asarray(y[:, None], jnp.float32))
    assert abs(np.mean(nll) + np.mean(student.logpdf(y))) < tolerance
    covered = np.abs(metrics.mixture_cdf(*one, jnp.asarray(y[:, None], jnp.float32)) - 0.5) <= 0.475
    np.testing.assert_allclose(np.mean(covered), 0.95, atol=0.02)


def test_precisions_means_and_targets_are_independent():
  mean, var = normal_wishart_members(outputs_of(0.0, 1.0, 1.0, 8.0), 64)
  z, log_var = mean[:, 0] / np.sqrt(var[:, 0]), np.log(var[:, 0])
  correlation = np.corrcoef(np.concatenate([z, log_var], axis=-1).T)
  np.testing.assert_allclose(np.diag(correlation[:D, D:]), 0, atol=0.05)
  # Across targets no better than independent draws: 1/√64 is 0.125.
  np.testing.assert_allclose(correlation, np.eye(2 * D), atol=0.3)
