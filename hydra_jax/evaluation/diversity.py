"""Is the diversity kept? A student's heads beside the members that they learnt from, example by example."""

from collections.abc import Mapping, Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from hydra_jax.data import Data, outside_of
from hydra_jax.evaluation import evaluate
from hydra_jax.maths import uncertainty
from hydra_jax.maths.tasks import TASKS, Scores

# Metrics of a student against its ensemble, by heading: what is close to 1 is kept.
KEPT = {
  'rank_correlation': 'rank correlation',
  'uncertainty_epistemic_ratio': 'model unc. ÷ ensemble',
  'disagreement_ratio': 'disagreement ÷ ensemble',
  'auroc_uncertainty_epistemic_ratio': 'AUROC ÷ ensemble',
  'own_head': 'own head closest',
}
# Mean of the rejection curve by each kind of uncertainty, by heading; by model uncertainty only where there is any.
REJECTION = {
  f'rejection_area_{name}': f'rejection area, by {uncertainty.WORDS[name]} unc.' for name in uncertainty.RANKINGS
}


def is_constant(values_N: np.ndarray) -> bool:
  """Whether all values are the same, infinite ones too; not where any is NaN."""
  return bool(np.min(values_N) == np.max(values_N))


def rank_correlation(ours_N: np.ndarray, theirs_N: np.ndarray) -> float:
  """Spearman's correlation; NaN where either is constant, as the model uncertainty of one network is."""
  if is_constant(ours_N) or is_constant(theirs_N):
    return float('nan')
  return float(np.corrcoef(ranks(ours_N), ranks(theirs_N))[0, 1])


def ranks(values_N: np.ndarray) -> np.ndarray:
  """Ranks from 1, float64 `[N]`. Equal values have the mean of their ranks. All are NaN where a value is NaN.

  It is `scipy.stats.rankdata`. But scipy.stats takes a second to import, and nothing else in a run needs it.

  Example:
    >>> ranks(np.array([0.5, 0.1, 0.5]))
    array([2.5, 1. , 2.5])
  """
  if np.isnan(values_N).any():
    return np.full(len(values_N), np.nan)
  _, at, count = np.unique(values_N, return_inverse=True, return_counts=True)
  return (np.cumsum(count) - (count - 1) / 2)[at]


def rejection_curve(uncertainty_N: np.ndarray, outcome_N: np.ndarray) -> np.ndarray:
  """Mean outcome, such as accuracy, of the k examples of least uncertainty, for k = 1 … N, `[N]`.

  Examples that are equally uncertain come in no order: each counts as their mean.
  """
  levels, at, count = np.unique(uncertainty_N, return_inverse=True, return_counts=True)
  means = np.bincount(at, weights=outcome_N, minlength=len(levels)) / count
  sorted_N = np.repeat(means, count)
  return np.cumsum(sorted_N) / np.arange(1, len(sorted_N) + 1)


def rejection(scores: Mapping[str, Scores], where: str, labelled: bool, outcome: str, by: str) -> np.ndarray | None:
  """The curve for one evaluation set; inputs without labels are mixed with the test set, as wrong.

  Args:
    scores: Of one method, `{set: {score: [N]}}`.
    where: The set.
    labelled: Whether it has labels.
    outcome: Name of the score whose mean is looked at.
    by: Name of the uncertainty that decides what is rejected, one of `uncertainty.RANKINGS`.

  Returns:
    The curve, or None where the uncertainty is the same for all examples, as is the model uncertainty of one network.
  """
  sets = [where] if labelled else ['test', where]
  outcomes = [scores[name][outcome] if labelled or name == 'test' else np.zeros(len(scores[name][by])) for name in sets]
  uncertain = np.concatenate([scores[name][by] for name in sets])
  return None if is_constant(uncertain) else rejection_curve(uncertain, np.concatenate(outcomes))


def divergences(student_HxNxC: np.ndarray, ensemble_MxNxC: np.ndarray, task: str, batch_size: int) -> np.ndarray:
  """Mean over examples of KL(member m ‖ head h), `[H, M]`, of the outputs of both."""
  member = TASKS[task].member

  @jax.jit
  def of_batch(student_BxHxC, ensemble_BxMxC):
    heads, members = jnp.swapaxes(student_BxHxC, 0, 1), jnp.swapaxes(ensemble_BxMxC, 0, 1)
    one = lambda m: member(heads, jnp.broadcast_to(m[None], heads.shape), 1.0)
    return jnp.transpose(jax.lax.map(one, members), (2, 1, 0))  # [B, H, M]

  both = (np.swapaxes(outputs, 0, 1) for outputs in (student_HxNxC, ensemble_MxNxC))
  return evaluate.in_batches(of_batch, batch_size, *both).mean(axis=0, dtype=np.float64)


def own_head(divergences_HxM: np.ndarray) -> float:
  """Share of the members to whom the head that learnt from them is closer than any other.

  Heads are compared by one member, and not members by one head, as to any head sharp members are further away.
  """
  return float(np.mean(np.argmin(divergences_HxM, axis=0) == np.arange(divergences_HxM.shape[1])))


# How many random subsets of the members are drawn for each size.
SUBSETS = 5


def ladder(members: int) -> list[int]:
  """Sizes of subsets of the members, about equally far apart in their logarithm, up to all.

  Example:
    >>> ladder(60)
    [1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 60]
  """
  steps = [1, 2, 3, 5, 7, *(10**power * step // 2 for power in range(1, 7) for step in (2, 3, 4, 6, 10, 15))]
  return [*(step for step in steps if step < members), members]


def averaged_nll(nll_MxN: np.ndarray) -> dict[int, float]:
  """NLL of n averaged members, `{n: mean NLL}` for the n of `ladder`: the mean over random subsets.

  It is −log of the mean density of the label over the n members, the mean over examples. Subsets are the first n
  members in orders that are drawn with a fixed seed.

  Args:
    nll_MxN: −log density of the label by each member.

  Example:
    >>> averaged_nll(-np.log(np.array([[0.5, 0.25], [0.5, 0.75]])))[2]  # (log 2 + log 2) / 2
    0.693...
  """
  members, random = len(nll_MxN), np.random.default_rng(0)
  orders = [random.permutation(members) for _ in range(SUBSETS)]
  log_density = -np.asarray(nll_MxN, np.float64)
  of = lambda some: float(np.mean(np.log(len(some)) - logsumexp(log_density[some], axis=0)))
  return {n: float(np.mean([of(order[:n]) for order in orders])) for n in ladder(members)}


def members_worth(nll: float, of_members: Mapping[int, float]) -> float:
  """How few members of the ensemble, averaged, have the NLL of a student: its deep-ensemble equivalent.

  Ashukha et al. 2020, section 4, have it of calibrated NLLs. Here both are as predicted. It is interpolated linearly
  in log n. Where more members have a higher NLL than fewer, they count as having the lower one. This is so by chance,
  and where members are underconfident, as their mean is even more.

  Args:
    nll: Mean NLL of the student.
    of_members: `{n: mean NLL}` of n averaged members on the same examples, n rising from 1 to all.

  Returns:
    0 where the student is worse than one member, and the number of all where no fewer are as good; NaN for NaN.

  Example:
    >>> members_worth(0.3, {1: 0.5, 4: 0.1})  # half way from 1 to 4 in log n
    2.0
  """
  sizes, values = np.array(list(of_members)), np.minimum.accumulate(list(of_members.values()))
  if math.isnan(nll) or np.isnan(values).any():
    return math.nan
  if nll <= values[-1]:
    return float(sizes[-1])
  if nll > values[0]:
    return 0.0
  after = max(int(np.argmax(values <= nll)), 1)  # the smallest size that is as good
  above, below = values[after - 1], values[after]
  share = (above - nll) / (above - below)
  return float(sizes[after - 1] ** (1 - share) * sizes[after] ** share)


def compared_on(data: Data) -> list[str]:
  """The sets on which every head is compared with every member."""
  return ['test', *outside_of(data)]


def rows(
  scores: Mapping[str, Mapping[str, Scores]],
  found: Sequence[dict],
  data: Data,
  replica: int,
  matrices: Mapping,
  of_members: Mapping[int, float] | None = None,
) -> list[dict]:
  """Result rows of one replica: what of the ensemble each student has kept, and rejection curves.

  Args:
    scores: Of every method, `{method: {set: {score: [N]}}}`.
    found: Rows that there are already, of which detection is read.
    data: What was evaluated.
    replica: Its index.
    matrices: `{method: {set: [H, M]}}`, see `divergences`.
    of_members: See `averaged_nll`, on the test set in the units of the targets, if it is known.
  """
  outcome = TASKS[data.task].outcome
  auroc = {(r['split'], r['method']): r['value'] for r in found if r['metric'] == 'auroc_uncertainty_epistemic'}
  ensemble, made = scores.get('ensemble', {}), []

  def add(where, method, metric, value):
    if np.isfinite(value):
      n = len(scores[method][where]['uncertainty_epistemic'])
      made.append({'split': where, 'method': method, 'replica': replica, 'metric': metric, 'value': value, 'n': n})

  for method, where, kind in _pairs(scores, data):
    here, theirs = scores[method][where], ensemble.get(where)
    if kind != 'ood' or data.task == 'classification':
      for by in uncertainty.RANKINGS:
        curve = rejection(scores[method], where, kind != 'ood', outcome, by)
        if curve is not None:
          add(where, method, f'rejection_area_{by}', float(np.mean(curve)))
    if method == 'ensemble' or theirs is None:
      continue
    epistemic, of_ensemble = here['uncertainty_epistemic'], theirs['uncertainty_epistemic']
    add(where, method, 'rank_correlation', rank_correlation(epistemic, of_ensemble))
    for score in ('uncertainty_epistemic', 'disagreement'):
      means_something = score == 'disagreement' or uncertainty.has_size(here)
      if means_something and score in here and score in theirs and theirs[score].any():
        ratio = float(here[score].mean(dtype=np.float64) / theirs[score].mean(dtype=np.float64))
        add(where, method, f'{score}_ratio', ratio)
    if auroc.get((where, 'ensemble')) and not is_constant(epistemic):
      ratio = auroc[where, method] / auroc[where, 'ensemble']
      add(where, method, 'auroc_uncertainty_epistemic_ratio', ratio)
    if where == 'test' and of_members:
      add(where, method, 'members_worth', members_worth(float(np.mean(here['nll'], dtype=np.float64)), of_members))
    if where in matrices.get(method, {}):
      add(where, method, 'own_head', own_head(matrices[method][where]))
  return made


def _pairs(scores: Mapping, data: Data):
  """Methods and the sets that each has scores for, with the kind of the set, but for those that are only drawn."""
  for method, found in scores.items():
    for name, evaluation in data.evaluations.items():
      if name in found and evaluation.kind != 'plane':
        yield method, name, evaluation.kind
