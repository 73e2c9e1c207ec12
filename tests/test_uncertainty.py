"""Identities of the decomposition, against float64 and scipy."""

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from hydra_jax.maths import uncertainty

B, M, C = 6, 5, 3
seeds = st.integers(0, 2**31)
many = settings(max_examples=30, deadline=None)


def log_p(seed, members=M, scale=3.0):
  return jax.nn.log_softmax(jnp.asarray(np.random.default_rng(seed).normal(size=(members, B, C)) * scale, jnp.float32))


@given(seeds, st.sampled_from([0.01, 1.0, 10.0]))
@many
def test_parts_are_scipys(seed, scale):
  found = uncertainty.classification(log_p(seed, scale=scale))
  p = np.exp(np.float64(log_p(seed, scale=scale)))
  p /= p.sum(-1, keepdims=True)
  total = scipy.stats.entropy(p.mean(0), axis=-1)
  data = scipy.stats.entropy(p, axis=-1).mean(0)
  np.testing.assert_allclose(found.total, total, atol=2e-6)
  np.testing.assert_allclose(found.aleatoric, data, atol=2e-6)
  np.testing.assert_allclose(found.epistemic, total - data, atol=2e-6)


@given(seeds)
@many
def test_total_is_data_plus_model_and_model_is_bounded(seed):
  found = uncertainty.classification(log_p(seed, scale=20.0))
  np.testing.assert_array_equal(found.total, found.aleatoric + found.epistemic)
  assert np.all(found.epistemic >= 0) and np.all(found.epistemic <= np.log(min(M, C)) + 1e-6)
  assert np.all(found.total <= np.log(C) + 1e-5)


@given(seeds)
@many
def test_one_member_and_identical_members_have_exactly_none(seed):
  one = log_p(seed, members=1)
  np.testing.assert_array_equal(uncertainty.classification(one).epistemic, np.zeros(B))
  np.testing.assert_array_equal(uncertainty.classification(jnp.repeat(one, 7, axis=0)).epistemic, np.zeros(B))


def test_certain_members_that_disagree():
  extreme = jax.nn.log_softmax(jnp.asarray([[[1e4, 0, 0]], [[0, 1e4, 0]]], jnp.float32))
  found = uncertainty.classification(extreme)
  np.testing.assert_allclose(
    [found.total[0], found.aleatoric[0], found.epistemic[0]], [np.log(2), 0, np.log(2)], atol=1e-6
  )


def test_impossible_classes_add_nothing():
  """0 log 0 = 0, also where no member gives a class a chance, in values and in gradients."""
  p = np.float32([[[0, 0.25, 0.75]], [[0, 0.75, 0.25]], [[0, 0, 1]]])
  with np.errstate(divide='ignore'):
    log_p = jnp.asarray(np.log(p))
  found = uncertainty.classification(log_p)
  total, data = scipy.stats.entropy(np.float64(p).mean(0), axis=-1), scipy.stats.entropy(np.float64(p), axis=-1).mean(0)
  np.testing.assert_allclose([found.total, found.aleatoric, found.epistemic], [total, data, total - data], rtol=1e-5)
  grad = jax.grad(lambda x: jnp.sum(uncertainty.entropy(jax.nn.log_softmax(x))))(jnp.asarray([[1e4, 0.0, 0.0]]))
  np.testing.assert_array_equal(grad, np.zeros((1, 3)))


def test_regression_is_the_law_of_total_variance():
  random = np.random.default_rng(0)
  mean, var = random.normal(size=(M, B, 2)), random.gamma(2, size=(M, B, 2))
  found = uncertainty.regression(jnp.asarray(mean, jnp.float32), jnp.asarray(var, jnp.float32))
  second_moment = (var + mean**2).mean(0) - mean.mean(0) ** 2
  np.testing.assert_allclose(found.total, second_moment, rtol=1e-5)
  np.testing.assert_array_equal(found.total, found.aleatoric + found.epistemic)
  one = uncertainty.regression(jnp.asarray(mean[:1], jnp.float32), jnp.asarray(var[:1], jnp.float32))
  np.testing.assert_array_equal(one.epistemic, np.zeros((B, 2)))
