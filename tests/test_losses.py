"""Identities of the losses; B, M and C all differ, so that no axis is taken for another."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from hydra_jax.maths import losses

B, M, C, D = 5, 4, 3, 2
seeds = st.integers(0, 2**31)
temperatures = st.sampled_from([0.5, 1.0, 2.0, 8.0])
scales = st.sampled_from([0.01, 1.0, 30.0])
many = settings(max_examples=30, deadline=None)


def logits(seed, *shape, scale=3.0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale, jnp.float32)


@given(seeds)
@many
def test_cross_entropy_is_scipys(seed):
  a, y = logits(seed, M, B, C), np.random.default_rng(seed).integers(C, size=B)
  expected = -scipy.special.log_softmax(np.float64(a), axis=-1)[:, np.arange(B), y]
  np.testing.assert_allclose(losses.cross_entropy(a, jnp.asarray(y)), expected, rtol=1e-5, atol=1e-5)


@given(seeds, temperatures)
@many
def test_hydra_is_the_equation(seed, t):
  a, b = logits(seed, M, B, C), logits(seed + 1, M, B, C)
  p, q = (scipy.special.softmax(np.float64(z) / t, axis=-1) for z in (b, a))
  expected = t**2 * scipy.stats.entropy(p, q, axis=-1)
  np.testing.assert_allclose(losses.hydra(a, b, t), expected, rtol=1e-4, atol=1e-6 * (1 + t**2))


@given(seeds, temperatures)
@many
def test_distillation_is_the_equation(seed, t):
  a, b = logits(seed, 1, B, C), logits(seed + 1, M, B, C)
  p = scipy.special.softmax(np.float64(b) / t, axis=-1).mean(axis=0, keepdims=True)
  q = scipy.special.softmax(np.float64(a) / t, axis=-1)
  expected = t**2 * scipy.stats.entropy(p, q, axis=-1)
  np.testing.assert_allclose(losses.distillation(a, b, t), expected, rtol=1e-4, atol=1e-6 * (1 + t**2))


@given(seeds, temperatures)
@many
def test_hydra_bounds_kl_of_the_means(seed, t):
  """KL is jointly convex: the mean over heads is at least KL(mean of members ‖ mean of heads)."""
  a, b = logits(seed, M, B, C), logits(seed + 1, M, B, C)
  log_mean = losses.log_mean_exp(jax.nn.log_softmax(a / t))
  of_means = losses.distillation(log_mean[None] * t, b, t)[0]
  assert np.all(np.mean(losses.hydra(a, b, t), axis=0) >= np.asarray(of_means) - 1e-4)


@given(seeds, temperatures)
@many
def test_hydra_with_one_member_is_distillation(seed, t):
  a, b = logits(seed, 1, B, C), logits(seed + 1, 1, B, C)
  np.testing.assert_allclose(losses.hydra(a, b, t), losses.distillation(a, b, t), rtol=1e-5, atol=1e-6)


@given(seeds, temperatures, scales)
@many
def test_no_loss_and_no_gradient_where_student_is_teacher(seed, t, scale):
  b = logits(seed, M, B, C, scale=scale)
  value, grad = jax.value_and_grad(lambda a: jnp.sum(losses.hydra(a, b, t)))(b)
  np.testing.assert_allclose(value, 0, atol=1e-5 * t**2)
  np.testing.assert_allclose(grad, 0, atol=1e-5 * t)


@given(seeds)
@many
def test_pairs_may_be_permuted(seed):
  a, b = logits(seed, M, B, C), logits(seed + 1, M, B, C)
  order = np.random.default_rng(seed).permutation(M)
  np.testing.assert_array_equal(losses.hydra(a[order], b[order]), losses.hydra(a, b)[order])


@pytest.mark.parametrize('loss', [losses.hydra, losses.distillation])
@pytest.mark.parametrize('t', [0.5, 1.0, 4.0])
def test_gradients_are_finite_at_extremes(loss, t):
  a = jnp.asarray(np.random.default_rng(0).choice([-1e4, 0, 1e4], (M, B, C)), jnp.float32)
  value, grad = jax.value_and_grad(lambda a: jnp.sum(loss(a, a[:, :, ::-1], t)))(a)
  assert np.isfinite(value) and np.all(np.isfinite(grad))


@given(seeds)
@many
def test_log_mean_exp_is_scipys_and_exact_for_equal_entries(seed):
  x = logits(seed, M, B, C)
  np.testing.assert_allclose(losses.log_mean_exp(x), scipy.special.logsumexp(x, axis=0) - np.log(M), atol=1e-5)
  np.testing.assert_array_equal(losses.log_mean_exp(jnp.repeat(x[:1], 7, axis=0)), x[0])


def test_log_mean_exp_of_nothing_is_nothing():
  """−inf where all entries are, without NaN in value or gradient; infinite and NaN entries stay what they are."""
  x = jnp.asarray([[-jnp.inf, -jnp.inf, 1.0, jnp.inf, jnp.nan], [-jnp.inf, 0.0, 2.0, 0.0, 0.0]])
  expected = [-np.inf, -np.log(2), np.log((np.exp(1) + np.exp(2)) / 2), np.inf, np.nan]
  np.testing.assert_allclose(losses.log_mean_exp(x), expected, rtol=1e-6)
  grad = jax.grad(lambda x: jnp.sum(jnp.where(jnp.isfinite(v := losses.log_mean_exp(x)), v, 0)))(x[:, :3])
  np.testing.assert_allclose(grad, [[0, 0, scipy.special.expit(-1)], [0, 1, scipy.special.expit(1)]], rtol=1e-5)


@pytest.mark.parametrize('loss', [losses.hydra, losses.distillation])
def test_teachers_that_rule_a_class_out(loss):
  """A probability of 0 adds nothing to the divergence, 0 log 0 = 0, and its class gets the gradient of softmax."""
  p = np.float32([[[0, 0.25, 0.75]], [[0, 0.5, 0.5]]])
  with np.errstate(divide='ignore'):
    teacher = jnp.asarray(np.log(p))
  a = logits(0, 2, 1, 3)
  q = scipy.special.softmax(np.float64(a), axis=-1)
  target = np.broadcast_to(p if loss is losses.hydra else p.mean(0, keepdims=True), p.shape)
  np.testing.assert_allclose(loss(a, teacher), scipy.special.rel_entr(target, q).sum(-1), rtol=1e-5)
  grad = jax.grad(lambda a: jnp.sum(loss(a, teacher)))(a)
  np.testing.assert_allclose(grad, q - target, rtol=1e-4, atol=1e-6)


def test_gaussian_nll_is_scipys():
  out, y = logits(0, M, B, 2 * D), logits(1, B, D)
  mean, var = losses.gaussian(out)
  expected = -scipy.stats.norm.logpdf(y[None], mean, np.sqrt(var)).sum(-1)
  np.testing.assert_allclose(losses.gaussian_nll(out, y), expected, rtol=1e-4)


def test_gaussian_kl_is_the_integral():
  p, q = (0.3, 0.7), (-0.5, 2.0)

  def integrand(x):
    log_p, log_q = (scipy.stats.norm.logpdf(x, m, np.sqrt(v)) for m, v in (p, q))
    return np.exp(log_p) * (log_p - log_q)

  expected, _ = scipy.integrate.quad(integrand, -12, 12)
  as_arrays = [tuple(jnp.full((1, 1), v) for v in g) for g in (p, q)]
  np.testing.assert_allclose(losses.gaussian_kl(*as_arrays), [expected], rtol=1e-5)


def test_gaussian_losses_vanish_at_the_teacher():
  b = logits(0, M, B, 2 * D)
  value, grad = jax.value_and_grad(lambda a: jnp.sum(losses.gaussian_hydra(a, b)))(b)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_gaussian_distillation_has_the_gradient_of_the_mixture():
  """The KL to the moment-matched Gaussian differs from the mixture's by what no head can change."""
  a, b = logits(0, 1, B, 2 * D), logits(1, M, B, 2 * D)
  per_member = lambda a: jnp.mean(losses.gaussian_kl(losses.gaussian(b), losses.gaussian(a)), axis=0)
  expected = jax.grad(lambda a: jnp.sum(per_member(a)))(a)
  np.testing.assert_allclose(
    jax.grad(lambda a: jnp.sum(losses.gaussian_distillation(a, b)))(a), expected, rtol=1e-3, atol=1e-4
  )


def test_moments_are_those_of_samples():
  mean, var = losses.gaussian(logits(0, M, 1, 2))
  random = np.random.default_rng(0)
  member = random.integers(M, size=400_000)
  samples = random.normal(mean[member, 0, 0], np.sqrt(var[member, 0, 0]))
  matched_mean, matched_var = losses.moment_match(mean, var)
  np.testing.assert_allclose([matched_mean.item(), matched_var.item()], [samples.mean(), samples.var()], rtol=2e-2)


def test_similarity_of_heads():
  """Against scipy's cosine; 1 where heads are the same, one half where they are opposite in pairs."""
  from scipy.spatial.distance import cosine

  random = np.random.default_rng(0)

  kernels = [random.normal(size=(4, 5, 3)).astype(np.float32), random.normal(size=(4, 2, 2, 6, 7)).astype(np.float32)]
  expected = []
  for kernel in kernels:
    flat = kernel.reshape(4, -1, kernel.shape[-1])
    pairs = [(h[:, u], flat.mean(0)[:, u]) for h in flat for u in range(flat.shape[-1])]
    expected.append(np.mean([1 - cosine(a, b) / 2 for a, b in pairs]))
  np.testing.assert_allclose(losses.similarity(kernels), np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(losses.similarity([np.repeat(kernels[0][:1], 4, axis=0)]), 1, rtol=1e-5)
  np.testing.assert_allclose(losses.similarity([np.concatenate([kernels[0], -kernels[0]])]), 0.5, rtol=1e-5)
