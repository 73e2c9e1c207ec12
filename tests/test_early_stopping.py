"""Early stopping: the right state of each head, at the right time; scores against a formula."""

import chex
from helpers import expand, no_scaling, squeeze, start
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from hydra_jax import UserError, mlp
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut
from hydra_jax.training import early_stopping, folds, loop
from hydra_jax.training.batches import resident
from hydra_jax.training.optimizers import averaged
from hydra_jax.training.step import Job

N, F, C, H = 40, 3, 2, 3
RANDOM = np.random.default_rng(0)
ROWS = {'x': RANDOM.normal(size=(N, F)).astype(np.float32), 'y': RANDOM.integers(C, size=N).astype(np.int32)}
SEED, KEY = (0, 1), jax.random.key(4)
NETWORK = cut.multi_head(mlp(C, (5,)), 0, H)
SHARED = cut.multi_head(mlp(C, (5,)), 1, H)
SGD = optax.sgd(0.1)


def cross_entropy(outputs, batch):
  return losses.cross_entropy(outputs, batch['y'])


def job_of(network=NETWORK, steps=12, optimizer=SGD, loss=cross_entropy):
  reduction = 'sum' if network.cut == 0 else 'mean'
  return Job(network=network, loss=loss, reduction=reduction, optimizer=optimizer, steps=steps, batch_size=8)


def begin(job):
  return expand(start(job.network, job.optimizer, ROWS['x'][:2])), resident([ROWS], no_scaling()), [SEED], KEY[None]


def plain(job, steps):
  """The state after some steps of a run that nothing interrupts."""
  return squeeze(loop.prepared(job, *begin(job))(begin(job)[0], steps))


def injected(*rows):
  """A score that reads one row of a table at each call, and counts the calls."""
  calls = iter(rows)
  return lambda params, model_state: np.asarray(next(calls), np.float64)[None]


def stopped(job, score, stretch=2, patience=2):
  return early_stopping.fit(job, *begin(job), score, stretch, patience)


def of_head(tree, h):
  return jax.tree.map(lambda leaf: leaf[h], tree['heads'])


def test_each_head_keeps_its_best_state():
  best = stopped(job_of(), injected([3, 3, 3], [2, 4, 3], [5, 1, 3], [5, 5, 5], [1, 5, np.nan], [9, 9, 9]))
  np.testing.assert_array_equal(best.steps, [[10, 6, 2]])
  np.testing.assert_array_equal(best.scores, [[1, 1, 3]])
  for head, steps in enumerate((10, 6, 2)):
    chex.assert_trees_all_equal(of_head(squeeze(best.params), head), of_head(plain(job_of(), steps).params, head))


def test_heads_that_share_a_body_have_one_best_state():
  job = job_of(SHARED)
  best = stopped(job, injected([3, 3, 3], [1, 2, 3], [0, 9, 9], [9, 9, 9]))
  np.testing.assert_array_equal(best.steps, [[4] * 3])
  np.testing.assert_array_equal(best.scores, [[2] * 3])
  chex.assert_trees_all_equal(squeeze(best.params), plain(job, 4).params)


def test_it_stops_when_no_head_has_improved_for_as_long_as_patience():
  rows = [[3, 3, 3], [2, 9, 9], [9, 2, 9], [9, 9, 9], [9, 9, 9]]
  score = injected(*rows)  # a further call would raise StopIteration
  best = stopped(job_of(steps=1000), score)
  np.testing.assert_array_equal(best.steps, [[4, 6, 2]])
  with pytest.raises(StopIteration):
    score(None, None)


def test_a_run_that_is_never_stopped_is_a_plain_run():
  job = job_of(steps=11)
  better_and_better = injected(*np.arange(6, 0, -1)[:, None].repeat(H, axis=1))
  best = stopped(job, better_and_better, stretch=2, patience=1)
  whole = loop.fit(job, *begin(job))
  chex.assert_trees_all_equal(best.params, whole.params)
  np.testing.assert_array_equal(best.steps, [[11] * H])


def test_the_running_average_is_scored_and_kept():
  """Polyak's average, computed here from the iterates of a plain run."""
  decay, seen = 0.8, []
  job = job_of(steps=6, optimizer=averaged(SGD, decay))

  def score(params, model_state):
    seen.append(jax.tree.map(np.asarray, params))
    return np.full((1, H), -len(seen))

  best = stopped(job, score, stretch=1, patience=9)
  iterates = [plain(job_of(steps=6), step).params for step in range(1, 7)]
  expected = iterates[0]
  for count, params in enumerate(iterates[1:], start=2):
    keep = min(decay, 1 - 1 / count)
    expected = jax.tree.map(lambda a, b, keep=keep: keep * a + (1 - keep) * b, expected, params)
  chex.assert_trees_all_close(squeeze(best.params), expected, rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_equal(best.params, seen[-1])


@pytest.mark.parametrize('bad', [dict(stretch=0), dict(patience=0)])
def test_arguments_are_checked(bad):
  with pytest.raises(UserError, match=f'{next(iter(bad))}=0 must be at least 1'):
    stopped(job_of(), injected(), **bad)


def test_scores_are_mean_losses_whatever_the_size_of_batches(random, monkeypatch):
  job, state = job_of(), begin(job_of())[0]
  rows = ROWS | {'weight': random.uniform(size=N)}
  logits = NETWORK.apply(*squeeze((state.params, state.model_state)), ROWS['x'])[0]
  log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
  nll = -log_p[:, np.arange(N), ROWS['y']]
  for size in (1000, 7):
    monkeypatch.setattr(early_stopping, 'ROWS_AT_ONCE', size)
    score = lambda rows: early_stopping.held_out_score(job, [rows], no_scaling())(state.params, state.model_state)
    np.testing.assert_allclose(score(ROWS)[0], nll.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(score(rows)[0], np.average(nll, axis=1, weights=rows['weight']), rtol=1e-5)


def test_each_head_is_scored_on_its_own_fold():
  job, state = job_of(), begin(job_of())[0]
  of_rows, of_heads = folds.of_rows(N, 2, seed=0), folds.of_heads(H, 2)
  part = lambda fold: {name: leaf[of_rows == fold] for name, leaf in ROWS.items()}
  score_of = lambda heads, fold: early_stopping.held_out_score(job, [part(fold)], no_scaling(), heads=heads)
  found = early_stopping.by_fold(score_of, of_heads)(state.params, state.model_state)
  for head, fold in enumerate((0, 1, 0)):
    alone = early_stopping.held_out_score(job, [part(fold)], no_scaling())(state.params, state.model_state)
    np.testing.assert_allclose(found[0, head], alone[0, head], rtol=1e-6)


def test_a_head_learns_nothing_from_its_own_fold():
  of_rows = folds.of_rows(N, 2, seed=0)
  job = job_of(loss=folds.leaving_out(cross_entropy, folds.of_heads(H, 2), 2))
  other_labels = np.where(of_rows == 0, 1 - ROWS['y'], ROWS['y'])
  runs = []
  for y in (ROWS['y'], other_labels):
    source = resident([ROWS | {'y': y, 'fold': of_rows}], no_scaling())
    runs.append(squeeze(loop.fit(job, begin(job)[0], source, [SEED], KEY[None])).params)
  for head, own in enumerate((0, 1, 0)):
    first, second = (of_head(run, head) for run in runs)
    if own == 0:
      chex.assert_trees_all_equal(first, second)
    else:
      assert np.abs(first[0]['Dense_0']['kernel'] - second[0]['Dense_0']['kernel']).max() > 1e-3


def test_losses_of_the_other_folds_have_the_mean_of_the_rows_that_are_learnt(random):
  of_rows, of_heads = folds.of_rows(30, 3, seed=0), folds.of_heads(4, 3)
  loss = random.normal(size=(4, 30))
  masked = folds.leaving_out(lambda outputs, batch: outputs, of_heads, 3)
  found = masked(jnp.asarray(loss, jnp.float32), {'fold': jnp.asarray(of_rows)})
  expected = [loss[h, of_rows != of_heads[h]].mean() for h in range(4)]
  np.testing.assert_allclose(found.mean(axis=1), expected, rtol=1e-5)
  some = masked(jnp.asarray(loss[[3, 1]], jnp.float32), {'fold': jnp.asarray(of_rows), 'heads': jnp.array([3, 1])})
  np.testing.assert_array_equal(some, found[jnp.array([3, 1])])


def test_folds_are_equal_and_have_equal_shares_of_each_class():
  classes = np.repeat([0, 1, 2], [50, 30, 8])
  found = folds.of_rows(88, 4, seed=1, classes=classes)
  for name, count in enumerate((50, 30, 8)):
    in_folds = np.bincount(found[classes == name], minlength=4)
    assert in_folds.sum() == count and np.ptp(in_folds) <= 1
  assert np.ptp(np.bincount(found)) == 0
  assert not np.array_equal(found, folds.of_rows(88, 4, seed=2, classes=classes))


@pytest.mark.parametrize('count', [1, 6])
def test_folds_need_rows(count):
  with pytest.raises(UserError, match=f'{count} folds of 5 rows'):
    folds.of_rows(5, count, seed=0)


def test_the_score_of_a_classifier_is_its_nll_at_the_best_temperature(random):
  """On data that are drawn at a temperature of e^0.9, which is one of those that are tried."""
  logits = random.normal(size=(2, 500, C)) * np.array([1, 4])[:, None, None]
  y = np.array([random.choice(C, p=scipy.special.softmax(row / np.exp(0.9))) for row in logits[0]])
  statistics, finish = TASKS['classification'].held_out
  found = finish(np.asarray(statistics(jnp.asarray(logits, jnp.float32), jnp.asarray(y))).mean(axis=1))

  def nll(head, temperature):
    return -scipy.special.log_softmax(logits[head] / temperature, axis=-1)[np.arange(500), y].mean()

  for head in range(2):
    best = min(nll(head, t) for t in np.exp(np.linspace(-1.2, 1.2, 200)))
    assert best - 1e-6 <= found[head] <= best + 0.01
    assert found[head] < nll(head, 1.0)


def test_the_score_of_gaussians_is_their_nll_at_the_best_scale(random):
  mean, var = random.normal(size=(2, 300, 2)), random.uniform(0.5, 2, size=(2, 300, 2))
  y = mean[0] + 3 * random.normal(size=(300, 2))
  outputs = jnp.asarray(losses.gaussian_outputs(mean, var), jnp.float32)
  statistics, finish = TASKS['regression'].held_out
  found = finish(np.asarray(statistics(outputs, jnp.asarray(y, jnp.float32)), np.float64).mean(axis=1))
  for head in range(2):
    nll = lambda log_t, h=head: -scipy.stats.norm.logpdf(y, mean[h], np.sqrt(np.exp(log_t) * var[h])).mean()
    best = scipy.optimize.minimize_scalar(nll, bounds=(-5, 5), method='bounded').fun
    np.testing.assert_allclose(found[head], best, rtol=1e-5)


def test_out_of_fold_outputs_are_those_of_heads_that_did_not_learn_from_the_row(random):
  outputs, of_rows, of_heads = random.normal(size=(7, 20, 2)), folds.of_rows(20, 3, seed=0), folds.of_heads(7, 3)
  found = folds.out_of_fold(outputs, of_rows, of_heads)
  assert found.shape == (2, 20, 2)
  for row in range(20):
    own = [head for head in range(7) if head % 3 == of_rows[row]]
    np.testing.assert_array_equal(found[:, row], outputs[own[:2], row])


def test_too_few_heads_leave_no_out_of_fold_outputs():
  assert folds.out_of_fold(np.zeros((2, 9, 1)), folds.of_rows(9, 3, seed=0), folds.of_heads(2, 3)).shape == (0, 9, 1)
