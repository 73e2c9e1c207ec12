"""Training until held-out rows are predicted no better, with the best parameters of each head.

The rule is the usual one (Prechelt 1998, "Early stopping, but when?", stop when the score has not improved for a number
of checks). It is taken head by head where heads share nothing: members of a deep ensemble are best at different times.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Scaling, scale_inputs
from hydra_jax.devices.layout import SINGLE_DEVICE, Layout
from hydra_jax.errors import UserError
from hydra_jax.nets.cut import belongs_to_heads
from hydra_jax.nets.stages import Tree
from hydra_jax.training import loop
from hydra_jax.training.batches import BatchSource
from hydra_jax.training.optimizers import averaged_params
from hydra_jax.training.step import Job, State, over_replicas

ROWS_AT_ONCE = 1000

Score = Callable[[Tree, Tree], np.ndarray]
Measure = tuple[Callable[[jax.Array, jax.Array], jax.Array], Callable[[np.ndarray], np.ndarray]]


class Best(NamedTuple):
  """The best that was seen of each head. R is the axis of replicas.

  Attributes:
    params: Of the network, with a leading axis R.
    model_state: Of the network, with a leading axis R.
    scores: Of these parameters, lower is better, `[R, H]` float64. They are equal for all heads where heads share
      something: then the mean over heads decides.
    steps: After how many steps each head was this good, `[R, H]` int.
  """

  params: Tree
  model_state: Tree
  scores: np.ndarray
  steps: np.ndarray


def fit(
  job: Job,
  state: State,
  source: BatchSource,
  seeds: Sequence[tuple[int, ...]],
  keys: jax.Array,
  score: Score,
  stretch: int,
  patience: int,
  layout: Layout = SINGLE_DEVICE,
  hooks: loop.Hooks = loop.NO_HOOKS,
) -> Best:
  """Trains as `loop.fit`, until no head has improved for `patience` stretches, or until `job.steps`.

  Args:
    job: What is trained. Its steps are the upper limit.
    state: Where to start, with a leading axis R. It is donated.
    source: As in `loop.fit`.
    seeds: As in `loop.fit`.
    keys: As in `loop.fit`.
    score: How bad each head is on rows that it does not learn from, `(params, model_state) -> [R, H]`, such as
      `held_out_score`. Where the optimizer keeps a running average of the parameters (`optimizers.averaged`), this
      average is scored and kept.
    stretch: Steps between two scores.
    patience: Number of stretches.
    layout: As in `loop.fit`.
    hooks: As in `loop.fit`.

  Returns:
    The best state of each head. Heads that share something (a body, or a penalty) have one best state.

  Raises:
    UserError: An argument is not legal, or a loss is not finite.
  """
  for name, value in (('stretch', stretch), ('patience', patience)):
    if value < 1:
      raise UserError(f'{name}={value} must be at least 1')
  train = loop.prepared(job, state, source, seeds, keys, layout, hooks=hooks)
  best = first(state, len(job.network.heads))
  while (now := int(state.step[0])) < job.steps and not is_over(best, now, stretch * patience):
    state = train(state, min(now + stretch, job.steps))
    judged = state._replace(params=averaged_params(state.opt_state, state.params))
    best = better(best, judged, score(judged.params, judged.model_state), job.is_independent)
  return best


def first(state: State, heads: int) -> Best:
  """The best before any score is known. Its arrays are copies, because training donates those of the state."""
  params, model_state = jax.tree.map(jnp.copy, (state.params, state.model_state))
  shape = (len(state.step), heads)
  return Best(params, model_state, np.full(shape, np.inf), np.full(shape, int(state.step[0])))


def is_over(best: Best, now: int, steps: int) -> bool:
  """Whether no head of any replica has improved in the last `steps` steps."""
  return bool(np.all(now - best.steps >= steps))


def better(best: Best, state: State, scores: np.ndarray, independent: bool) -> Best:
  """Takes over the heads that are better than before.

  Args:
    best: So far.
    state: The state that was scored.
    scores: Of its heads, `[R, H]`. A score that is not a number is no improvement.
    independent: Whether heads share nothing, so that each can be taken alone. Otherwise the mean of the scores decides.

  Returns:
    The best of both.
  """
  if not independent:
    scores = np.broadcast_to(scores.mean(axis=1, keepdims=True), scores.shape)
  improved = scores < best.scores
  params, model_state = _taken(improved, (state.params, state.model_state), (best.params, best.model_state))
  steps = np.where(improved, int(state.step[0]), best.steps)
  return Best(params, model_state, np.where(improved, scores, best.scores), steps)


@jax.jit
def _taken(improved_RxH: jax.Array, new: Tree, old: Tree) -> Tree:
  """Leaves of new heads where they improved; leaves of the body where all heads improved."""

  def take(path, new, old):
    which = improved_RxH if belongs_to_heads(path) else improved_RxH.all(axis=1)
    return jnp.where(jnp.expand_dims(which, tuple(range(which.ndim, new.ndim))), new, old)

  return jax.tree_util.tree_map_with_path(take, new, old)


def held_out_score(
  job: Job,
  rows: Sequence[Mapping[str, np.ndarray]],
  scaling: Scaling,
  measure: Measure | None = None,
  heads: np.ndarray | None = None,
) -> Score:
  """How bad each head is on held-out rows, in evaluation mode: by default, its mean loss.

  Args:
    job: What is trained. Where losses depend on how much of the training is over, it is all over.
    rows: For each replica the held-out rows, as in `batches.resident`. `weight` `[N]` is the weight of each row in the
      means; without it all weigh the same.
    scaling: Of x, with a leading axis R.
    measure: `(outputs [H, B, C], y) -> [H, B, K]`, of which the means over rows are taken, and
      `means [R, H, K] -> [R, H]`, the score; such as `Task.held_out`. None: the loss of the job.
    heads: Indices of the heads that are scored; None: all.

  Returns:
    `(params, model_state) -> [R, H]` float64.
  """
  statistics, finish = measure or (None, lambda means: means[..., 0])

  def sums_of(params, model_state, scaling, batch, weights_B):
    batch = {**batch, 'x': scale_inputs(scaling, batch['x']), 'done': jnp.float32(1)}
    some = {}
    if heads is not None:
      params, model_state = (_of_heads(tree, heads) for tree in (params, model_state))
      some, batch['heads'] = {'head_indices': jnp.asarray(heads)}, jnp.asarray(heads)
    outputs, _ = job.network.apply(params, model_state, batch['x'], **some)
    if job.common is not None:
      batch['common'] = jnp.mean(job.common(outputs), axis=0)
    values = statistics(outputs, batch['y']) if statistics else job.loss(outputs, batch)[..., None]
    return jnp.sum(values * weights_B[None, :, None], axis=1)

  compiled = jax.jit(lambda *trees: over_replicas(sums_of, *trees))
  count = len(rows[0]['x'])
  weights = np.stack([np.asarray(each.get('weight', np.ones(count)), np.float32) for each in rows])
  size = min(count, ROWS_AT_ONCE)
  batches = [_padded(rows, weights, start, size) for start in range(0, count, size)]
  total_Rx1x1 = weights.sum(axis=1, dtype=np.float64)[:, None, None]

  def score(params: Tree, model_state: Tree) -> np.ndarray:
    sums = [compiled(params, model_state, scaling, *batch) for batch in batches]
    return finish(np.sum(np.asarray(sums, np.float64), axis=0) / total_Rx1x1)

  return score


def _of_heads(tree: Tree, heads: np.ndarray) -> Tree:
  """Parameters or state with some heads only."""
  return {**tree, 'heads': jax.tree.map(lambda leaf: leaf[heads], tree['heads'])}


def by_fold(score_of: Callable[[np.ndarray, int], Score], fold_of_heads: np.ndarray) -> Score:
  """Scores each head on its own fold.

  Args:
    score_of: `(heads, fold) -> score` of these heads on the rows of this fold, such as `held_out_score` gives.
    fold_of_heads: See `folds.of_heads`.

  Returns:
    `(params, model_state) -> [R, H]` float64.
  """
  heads_of = [np.flatnonzero(fold_of_heads == fold) for fold in np.unique(fold_of_heads)]
  scores = [score_of(heads, int(fold_of_heads[heads[0]])) for heads in heads_of]
  order = np.argsort(np.concatenate(heads_of))
  return lambda params, model_state: np.concatenate([each(params, model_state) for each in scores], axis=1)[:, order]


def _padded(rows: Sequence[Mapping[str, np.ndarray]], weights_RxN: np.ndarray, start: int, size: int):
  """The rows from `start` for each replica, `[R, size, …]`, and their weights, which are 0 where rows are repeated."""
  count = len(rows[0]['x'])
  place = np.arange(start, start + size)
  index = np.minimum(place, count - 1)
  take = lambda name, leaf: np.take(leaf, index, axis=1 if name == 'teacher' else 0)
  batch = {name: jnp.asarray(np.stack([take(name, each[name]) for each in rows])) for name in rows[0]}
  return batch, jnp.asarray(np.where(place < count, weights_RxN[:, index], 0))
