"""Credal sets: intervals, their entropies against a search over all corners, and the loss."""

import itertools

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from hydra_jax.maths import credal
from hydra_jax.maths.tasks import TASKS

B, M, C = 5, 4, 3
seeds = st.integers(0, 2**31)
many = settings(max_examples=10, deadline=None)


def members(seed, classes=C, scale=2.0):
  return np.random.default_rng(seed).normal(size=(M, B, classes)).astype(np.float32) * np.float32(scale)


def bounds(seed, classes=C, scale=2.0):
  return credal.intervals(jax.nn.log_softmax(members(seed, classes, scale)))


def corners(lower, upper):
  """All corners of the set: all classes but one are at a bound."""
  for free in range(len(lower)):
    for at in itertools.product((0, 1), repeat=len(lower) - 1):
      p = np.where(np.insert(at, free, 0), upper, lower)
      p[free] = 1 - np.sum(np.delete(p, free))
      if lower[free] - 1e-9 <= p[free] <= upper[free] + 1e-9:
        yield p


@given(seeds)
@many
def test_intervals_are_those_of_the_members(seed):
  p = scipy.special.softmax(np.float64(members(seed)), axis=-1)
  for found, wanted in zip(bounds(seed), (p.min(axis=0), p.max(axis=0)), strict=True):
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@given(seeds)
@many
def test_the_intersection_is_a_distribution_at_one_share_of_all_intervals(seed):
  lower, upper = bounds(seed)
  p, share = credal.intersection(lower, upper)
  np.testing.assert_allclose(np.sum(p, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose((p - lower) / (upper - lower), np.broadcast_to(share, p.shape), rtol=1e-2, atol=1e-3)
  again = credal.around(p, upper - lower, share)
  np.testing.assert_allclose(again[0], lower, atol=1e-6)
  np.testing.assert_allclose(again[1], upper, atol=1e-6)


@given(seeds, st.sampled_from([0.2, 2.0]))
@many
def test_the_upper_entropy_is_that_of_a_search(seed, scale):
  lower, upper = (np.float64(each) for each in bounds(seed, scale=scale))
  found = credal.upper_entropy(jnp.float32(lower), jnp.float32(upper))
  for b in range(B):
    best = scipy.optimize.minimize(
      lambda p: -scipy.stats.entropy(p),
      np.asarray(credal.intersection(lower[b], upper[b])[0], np.float64),
      bounds=list(zip(lower[b], upper[b], strict=True)),
      constraints={'type': 'eq', 'fun': lambda p: np.sum(p) - 1},
      options={'ftol': 1e-12},
    )
    np.testing.assert_allclose(found[b], -best.fun, atol=2e-5)


@pytest.mark.parametrize('classes, scale', [(3, 2.0), (5, 0.5), (5, 3.0), (8, 1.0)])
def test_the_lower_entropy_is_that_of_the_best_corner(classes, scale):
  """Never below it; equal for three classes, and close to it for more."""
  gaps, widths = [], []
  for seed in range(6):
    lower, upper = bounds(seed, classes, scale)
    found = np.asarray(credal.lower_entropy(lower, upper), np.float64)
    for b in range(B):
      best = min(map(scipy.stats.entropy, corners(*(np.float64(each[b]) for each in (lower, upper)))))
      gaps.append(found[b] - best)
      widths.append(float(credal.upper_entropy(lower[b], upper[b])) - best)
  assert min(gaps) > -1e-5
  assert max(gaps) < (1e-5 if classes == 3 else 0.2 * max(widths))
  assert np.mean(gaps) < 0.02 * np.mean(widths)


def test_members_that_agree_have_no_model_uncertainty():
  lower, upper = credal.intervals(jnp.repeat(jax.nn.log_softmax(members(0)[:1]), M, axis=0))
  found = credal.uncertainty(lower, upper)
  np.testing.assert_allclose(found.epistemic, 0, atol=1e-5)
  np.testing.assert_allclose(found.total, scipy.stats.entropy(np.float64(lower), axis=-1), rtol=1e-4)


def outputs_of(p, lengths, share):
  logit = lambda v: np.log(v) - np.log1p(-v)
  return jnp.concatenate([jnp.log(p), logit(lengths), logit(share)], axis=-1)[None]


@given(seeds)
@many
def test_the_loss_is_the_equation_and_is_least_at_the_intervals_of_the_members(seed):
  teacher, random = members(seed), np.random.default_rng(seed)
  lower, upper = bounds(seed)
  p, share = credal.intersection(lower, upper)
  q, lengths, beta = random.dirichlet(np.ones(C), size=B), random.uniform(size=(B, C)), random.uniform(size=(B, 1))
  wanted, found_of = (np.concatenate(each, axis=-1) for each in ((upper - lower, share), (lengths, beta)))
  coins = scipy.special.rel_entr(wanted, found_of) + scipy.special.rel_entr(1 - wanted, 1 - found_of)
  expected = scipy.stats.entropy(p, q, axis=-1) + np.sum(coins, axis=-1)
  found = credal.distillation(jnp.float32(outputs_of(q, lengths, beta)), teacher)
  np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-5)
  best = outputs_of(p, upper - lower, share)
  np.testing.assert_allclose(credal.distillation(best, teacher), 0, atol=1e-5)
  slope = jax.grad(lambda outputs: jnp.sum(credal.distillation(outputs, teacher)))(best)
  np.testing.assert_allclose(slope, 0, atol=1e-4)
  read = TASKS['classification'].predictives['credal'].read(best)
  np.testing.assert_allclose(jnp.exp(read.log_mean), p, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(read.uncertainty.epistemic, credal.uncertainty(lower, upper).epistemic, atol=1e-3)
