"""What is kept of an ensemble's diversity: by closed forms, by brute force, and against scipy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hydra_jax.data import Data, Evaluation, Split
from hydra_jax.evaluation import diversity
from hydra_jax.maths import tasks, uncertainty

M, N, C = 4, 30, 3
LOGITS = np.random.default_rng(0).normal(size=(M, N, C)).astype(np.float32) * 2


def test_disagreement_is_the_share_of_pairs_that_differ():
  votes = LOGITS.argmax(-1)
  pairs = list(itertools.combinations(range(M), 2))
  expected = np.mean([votes[a] != votes[b] for a, b in pairs], axis=0)
  found = uncertainty.disagreement(jax.nn.log_softmax(jnp.asarray(LOGITS)))
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(uncertainty.disagreement(jnp.asarray(LOGITS[:1])), np.zeros(N))


def test_rejection_of_what_is_most_uncertain():
  uncertain, right = np.float32([0.3, 0.1, 0.2, 0.4]), np.float32([0, 1, 1, 0])
  np.testing.assert_allclose(diversity.rejection_curve(uncertain, right), [1, 1, 2 / 3, 1 / 2])
  np.testing.assert_allclose(diversity.rejection_curve(-uncertain, right), [0, 0, 1 / 3, 1 / 2])


def test_rejection_by_what_is_equal_is_rejection_at_random():
  random = np.random.default_rng(1)
  right = random.integers(2, size=N).astype(np.float32)
  np.testing.assert_allclose(diversity.rejection_curve(np.zeros(N), right), np.full(N, right.mean()), rtol=1e-6)
  level = random.integers(3, size=N)
  shuffled = [random.permutation(N) for _ in range(2000)]
  curves = [np.cumsum(right[p][np.argsort(level[p], kind='stable')]) / np.arange(1, N + 1) for p in shuffled]
  np.testing.assert_allclose(diversity.rejection_curve(level, right), np.mean(curves, axis=0), atol=0.05)


@pytest.mark.parametrize('batch_size', [7, 100])
def test_divergences_of_classes_by_scipy(batch_size):
  heads, members = LOGITS, LOGITS[::-1] + 1.0
  found = diversity.divergences(heads, members, 'classification', batch_size)
  p, q = (scipy.special.softmax(logits.astype(np.float64), axis=-1) for logits in (members, heads))
  expected = scipy.special.rel_entr(p[None], q[:, None]).sum(-1).mean(-1)  # [H, M]
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  assert diversity.own_head(found) == 0 and diversity.own_head(found[::-1]) == 1


def test_divergences_of_gaussians_are_0_where_head_is_member():
  outputs = np.random.default_rng(2).normal(size=(M, N, 2 * 2)).astype(np.float32)
  found = diversity.divergences(outputs, outputs, 'regression', 8)
  np.testing.assert_allclose(np.diag(found), np.zeros(M), atol=1e-6)
  assert np.all(found[~np.eye(M, dtype=bool)] > 0.01) and diversity.own_head(found) == 1


def test_a_sharp_member_does_not_hide_whose_head_is_whose():
  """Every head is closest to the member that is least certain, but each member has its own head closest."""
  members = LOGITS * np.float32([5, 4, 3, 0.1])[:, None, None]
  found = diversity.divergences(0.05 * members, members, 'classification', N)
  assert np.all(np.argmin(found, axis=1) == 3) and diversity.own_head(found) == 1


def test_some_members_by_hand():
  """Of one all are alike; of all there is one subset; two that are sure of other labels do as well as a coin."""
  p = np.array([[0.2, 0.9, 0.5], [0.8, 0.3, 0.5]])
  found = diversity.averaged_nll(-np.log(p))
  assert list(found) == [1, 2] and found[2] == pytest.approx(-np.mean(np.log([0.5, 0.6, 0.5])))
  both = -np.mean(np.log(p), axis=1)
  assert min(both) - 1e-9 <= found[1] <= max(both) + 1e-9
  alike = diversity.averaged_nll(np.full((60, 4), 1.5))
  assert list(alike) == [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 60]
  np.testing.assert_allclose(list(alike.values()), 1.5)
  assert diversity.averaged_nll(np.ones((1, 3))) == {1: 1.0}
  assert diversity.ladder(1000) == [*diversity.ladder(60)[:-1], 75, 100, 150, 200, 300, 500, 750, 1000]


def test_more_members_have_a_lower_nll(random):
  nll = random.exponential(size=(100, 500))
  found = list(diversity.averaged_nll(nll).values())
  assert found[0] == pytest.approx(1, rel=0.1) and all(a > b for a, b in itertools.pairwise(found[:5]))
  assert diversity.averaged_nll(nll) == diversity.averaged_nll(nll)


@pytest.mark.parametrize(
  'nll, expected',
  [(0.6, 0), (0.5, 1), (0.4, 2**0.5), (0.3, 2), (0.2, 8**0.5), (0.1, 4), (0.0, 4), (np.inf, 0), (np.nan, np.nan)],
)
def test_how_many_members_a_student_is_worth(nll, expected):
  """By hand; halfway between two sizes in NLL is halfway in their logarithm."""
  assert diversity.members_worth(nll, {1: 0.5, 2: 0.3, 4: 0.1}) == pytest.approx(expected, nan_ok=True)


def test_a_size_that_is_worse_by_chance_counts_as_the_one_before():
  of_members = {1: 0.5, 2: 0.3, 3: 0.4, 5: 0.3, 7: 0.1}
  found = [diversity.members_worth(nll, of_members) for nll in (0.31, 0.3, 0.29, 0.1)]
  assert found == sorted(found) and found[1] == 2 and 5 < found[2] < 6 and found[3] == 7
  one = [diversity.members_worth(nll, {1: 0.5}) for nll in (0.6, 0.5, 0.4)]
  assert one == [0, 1, 1]


def scores_of(logits):
  read = tasks.TASKS['classification'].predictives['members'].read
  labels = jnp.asarray(np.random.default_rng(3).integers(C, size=N))
  found = tasks.classification_scores(read(jnp.asarray(logits)), labels)
  return {name: np.asarray(score) for name, score in found.items()}


def test_rows():
  """A student that is the ensemble keeps all of it; one head keeps none; half as much keeps half."""
  split = lambda: Split(np.zeros((N, 2)), np.zeros(N))
  sets = {
    name: Evaluation(name, kind, split, None) for name, kind in (('test', 'test'), ('far', 'ood'), ('plane', 'plane'))
  }
  data = Data(
    task='classification', train=split(), outputs=C, scaling=None, evaluations=sets, fingerprint='', others=None
  )
  ensemble = {name: scores_of(LOGITS + i) for i, name in enumerate(sets)}
  halved = {
    w: {s: v / 2 if s == 'uncertainty_epistemic' else v for s, v in found.items()} for w, found in ensemble.items()
  }
  one = {name: scores_of(LOGITS[:1]) for name in sets}
  detection = [
    {'split': 'far', 'method': m, 'replica': 5, 'metric': 'auroc_uncertainty_epistemic', 'value': v}
    for m, v in (('ensemble', 0.8), ('same', 0.8), ('halved', 0.6), ('one', 0.5))
  ]
  scores = {'ensemble': ensemble, 'same': ensemble, 'halved': halved, 'one': one}
  matrices = {'same': {'test': 1.0 - np.eye(M)}}
  nll = lambda name: float(np.mean(scores[name]['test']['nll'], dtype=np.float64))
  rows = diversity.rows(scores, detection, data, 5, matrices, {1: nll('one'), M: nll('ensemble')})
  found = {(r['split'], r['method'], r['metric']): r['value'] for r in rows}
  assert {r['replica'] for r in rows} == {5} and 'plane' not in {r['split'] for r in rows}
  for where in ('test', 'far'):
    for method, ratio in (('same', 1), ('halved', 0.5)):
      assert found[where, method, 'rank_correlation'] == pytest.approx(1)
      assert found[where, method, 'uncertainty_epistemic_ratio'] == pytest.approx(ratio)
      assert found[where, method, 'disagreement_ratio'] == pytest.approx(1)
    assert found[where, 'one', 'uncertainty_epistemic_ratio'] == found[where, 'one', 'disagreement_ratio'] == 0
    assert (where, 'one', 'rank_correlation') not in found
    for by in uncertainty.RANKINGS:
      assert found[where, 'same', f'rejection_area_{by}'] == found[where, 'ensemble', f'rejection_area_{by}']
    # One network is ranked by its total uncertainty: there is no other.
    assert (where, 'one', 'rejection_area_uncertainty_epistemic') not in found
  right, order = one['test']['correct'], np.argsort(one['test']['uncertainty_total'])
  by_hand = np.mean(np.cumsum(right[order]) / np.arange(1, N + 1))
  assert found['test', 'one', 'rejection_area_uncertainty_total'] == pytest.approx(by_hand)
  # Inputs without labels are mixed with the test set, as wrong.
  both = np.argsort(np.concatenate([one['test']['uncertainty_total'], one['far']['uncertainty_total']]))
  mixed = np.mean(np.cumsum(np.concatenate([right, np.zeros(N)])[both]) / np.arange(1, 2 * N + 1))
  assert found['far', 'one', 'rejection_area_uncertainty_total'] == pytest.approx(
    mixed, abs=0.02
  )  # every input is there twice
  assert found['far', 'halved', 'auroc_uncertainty_epistemic_ratio'] == pytest.approx(0.75)
  assert ('far', 'one', 'auroc_uncertainty_epistemic_ratio') not in found and (
    'test',
    'same',
    'auroc_uncertainty_epistemic_ratio',
  ) not in found
  assert found['test', 'same', 'own_head'] == 1
  assert found['test', 'same', 'members_worth'] == M and found['test', 'one', 'members_worth'] == 1
  assert {(where, method) for where, method, metric in found if metric == 'members_worth'} == {
    ('test', method) for method in ('same', 'halved', 'one')
  }
  without = diversity.rows(scores, detection, data, 5, matrices)
  assert without == [row for row in rows if row['metric'] != 'members_worth']


def test_ranks_are_those_of_scipy(random):
  values, others = (np.round(random.normal(size=200), 1) for _ in range(2))  # with ties
  np.testing.assert_array_equal(diversity.ranks(values), scipy.stats.rankdata(values))
  expected = scipy.stats.spearmanr(values, others).statistic
  assert diversity.rank_correlation(values, others) == pytest.approx(expected, rel=1e-12)
  values[3], others[5] = np.inf, -np.inf
  expected = scipy.stats.spearmanr(values, others).statistic
  assert diversity.rank_correlation(values, others) == pytest.approx(expected, rel=1e-12)
  values[7] = np.nan
  assert np.isnan(diversity.rank_correlation(values, others)) and np.isnan(diversity.rank_correlation(others, values))
