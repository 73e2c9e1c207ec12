"""Teachers without predictions for some examples, against arithmetic member by member in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import hydra_jax
from hydra_jax import UserError
from hydra_jax.estimators import absent
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS

M, N, C, D = 5, 40, 3, 2


def outputs_with_gaps(random, columns):
  """Outputs of members, and which of them are present: at least two for each example."""
  outputs = random.normal(size=(M, N, columns)).astype(np.float32)
  present = random.random((M, N)) < 0.6
  present[:2] = True
  return np.where(present[..., None], outputs, np.nan).astype(np.float32), present


def kl(p, q):
  return np.sum(special.rel_entr(p, q), axis=-1)


def test_heads_learn_from_the_members_that_are_present(random):
  teacher, present = outputs_with_gaps(random, C)
  heads = random.normal(size=(M, N, C)).astype(np.float32)
  task = absent.with_absent(TASKS['classification'], float(present.mean()))
  found = np.asarray(task.member(jnp.asarray(heads), jnp.asarray(teacher), 2.0))
  expected = 4 * kl(special.softmax(teacher / 2, -1), special.softmax(heads / 2, -1))
  assert np.all(found[~present] == 0)
  assert found.mean() == pytest.approx(expected[present].mean(), rel=1e-5)
  gradient = jax.grad(lambda h: jnp.sum(task.member(h, jnp.asarray(teacher), 2.0)))(jnp.asarray(heads))
  assert np.isfinite(gradient).all() and np.all(np.asarray(gradient)[~present] == 0)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_the_mean_is_that_of_the_members_that_are_present(temperature, random):
  teacher, present = outputs_with_gaps(random, C)
  heads = random.normal(size=(1, N, C)).astype(np.float32)
  task = absent.with_absent(TASKS['classification'], 0.5)
  found = task.mean(jnp.asarray(heads), jnp.asarray(teacher), temperature)
  mean = np.nanmean(special.softmax(teacher / temperature, -1), axis=0)
  expected = temperature**2 * kl(mean, special.softmax(heads[0] / temperature, -1))
  np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)
  common = np.asarray(special.softmax(random.normal(size=(N, C)), -1), np.float32)
  term = task.mean_term(jnp.asarray(heads), jnp.asarray(teacher), jnp.asarray(common))
  mean = np.nanmean(special.softmax(teacher, -1), axis=0)
  np.testing.assert_allclose(term[0], kl(mean, common), rtol=1e-4, atol=1e-6)


def test_gaussians_that_are_present_are_matched(random):
  teacher, present = outputs_with_gaps(random, 2 * D)
  mean, var = losses.gaussian(jnp.asarray(teacher))
  whole = losses.gaussian(absent.mean_gaussian(jnp.asarray(teacher)))
  expected = np.nanmean(mean, axis=0), np.nanmean(var, axis=0) + np.nanvar(mean, axis=0)
  np.testing.assert_allclose(whole[0][0], expected[0], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(whole[1][0], expected[1], rtol=1e-4)
  task = absent.with_absent(TASKS['regression'], float(present.mean()))
  heads = jnp.asarray(random.normal(size=(M, N, 2 * D)).astype(np.float32))
  found = np.asarray(task.member(heads, jnp.asarray(teacher), 1.0))
  every = np.asarray(losses.gaussian_kl((mean, var), losses.gaussian(heads)))
  assert found.mean() == pytest.approx(every[present].mean(), rel=1e-5)


def test_where_all_are_present_nothing_changes(random):
  teacher, heads = (jnp.asarray(random.normal(size=(M, N, C)).astype(np.float32)) for _ in range(2))
  plain, task = TASKS['classification'], absent.with_absent(TASKS['classification'], 1.0)
  np.testing.assert_array_equal(task.member(heads, teacher, 3.0), plain.member(heads, teacher, 3.0))
  np.testing.assert_allclose(task.mean(heads, teacher, 3.0), plain.mean(heads, teacher, 3.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('task, columns', [('classification', C), ('regression', 2)])
def test_the_spread_is_right_where_few_members_are_present(task, columns, random):
  """Heads that are the members, drawn together to a third of their distance, are spread by 3 again.

  To compare all heads with the members that are present would give another number: few members disagree less.
  """
  members = random.normal(size=(8, 500, columns)).astype(np.float32)
  present = np.argsort(random.random((8, 500)), axis=0) < 2  # two of eight
  heads = np.asarray(TASKS[task].rescale(jnp.asarray(members), jnp.float32(1 / 3)))
  given = np.where(present[..., None], members, np.nan)
  assert absent.matched_spread(task, heads, given) == pytest.approx(3, rel=0.01)


def test_the_spread_of_noisy_heads_is_not_biased_by_gaps(random):
  """The spread of all members, from a third of them, for heads that are only correlated with members."""
  members = random.normal(size=(9, 4000, 2)).astype(np.float32)
  heads = (0.5 * members + 0.2 * random.normal(size=members.shape)).astype(np.float32)
  whole = absent.matched_spread('regression', heads, members)
  present = np.argsort(random.random((9, 4000)), axis=0) < 3
  some = absent.matched_spread('regression', heads, np.where(present[..., None], members, np.nan))
  assert some == pytest.approx(whole, rel=0.03)


def test_model_uncertainty_of_some_members(random):
  teacher, present = outputs_with_gaps(random, C)
  p = special.softmax(np.nan_to_num(teacher), -1)
  expected = [
    stats.entropy(p[present[:, n], n].mean(axis=0)) - stats.entropy(p[present[:, n], n], axis=-1).mean()
    for n in range(N)
  ]
  found = absent.mutual_information(jnp.asarray(np.nan_to_num(teacher)), jnp.asarray(present))
  assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.slow
def test_each_head_learns_its_member_from_a_third_of_the_rows(random):
  x = random.normal(size=(600, 3))
  mean = x @ random.normal(size=3) + 2 * np.stack([np.tanh(x @ random.normal(size=3)) for _ in range(M)])
  given = np.where(random.random(mean.shape) < 1 / 3, mean, np.nan)
  settings = dict(epochs=120.0, batch_size=50, learning_rate=1e-2, verbose=False)
  student = hydra_jax.distil(x[:500], (given[:, :500], np.where(np.isnan(given[:, :500]), np.nan, 0.01)), **settings)
  found = student.predict(x[500:]).members[..., 0]
  errors = [[np.mean(np.abs(found[m] - mean[k, 500:])) for k in range(M)] for m in range(M)]
  assert np.argmin(errors, axis=1).tolist() == list(range(M))
  assert np.trace(errors) / M < 0.5 * np.mean(errors)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'method': 'endd'}, 'endd reads all members'),
    ({'method': 'dlf'}, 'dlf reads all members'),
    ({'method': 'moments'}, 'moments reads all members'),
    ({'members_per_step': 99}, 'members_per_step=99 of'),
    ({'heads': 2, 'grouping': 'round_robin'}, 'heads=2'),
    ({'teacher': np.full((M, 20, C), np.nan)}, 'member 0 predicts nothing but NaN'),
  ],
)
def test_what_needs_all_members_is_refused(change, words, random):
  teacher = np.zeros((M, 20, C))
  teacher[1, 3] = np.nan
  with pytest.raises(UserError, match=words):
    hydra_jax.distil(**{'x': random.normal(size=(20, 5)), 'teacher': teacher, 'verbose': False} | change)
