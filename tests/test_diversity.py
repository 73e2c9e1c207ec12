"""What is kept of an ensemble's diversity: by closed forms, by brute force, and against scipy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

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
  rows = diversity.rows(scores, detection, data, 5, matrices)
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
