"""Scores on the validation part while a network trains, for `metrics.jsonl`; they change no result."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from hydra_jax.data import Split
from hydra_jax.devices import processes
from hydra_jax.evaluation import diversity, evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import artifacts
from hydra_jax.experiment.replicas import Replica
from hydra_jax.maths.tasks import Scores
from hydra_jax.nets.cut import Network
from hydra_jax.training.step import State

Scorer = Callable[[State], dict[str, float]]


def steps_to_score(steps: int, times: int) -> list[int]:
  """Steps after which scores are taken, evenly spaced; the last is the last step.

  Example:
    >>> steps_to_score(steps=10, times=4)
    [2, 5, 8, 10]
  """
  times = min(times, steps)
  return [round(steps * (i + 1) / times) for i in range(times)]


def scorer_of(
  group: Sequence[Replica], network: Network, read: Callable, teachers: Sequence[np.ndarray | None]
) -> Scorer | None:
  """Scores of a state on the validation parts of its replicas: the means over replicas.

  All processes must call it. The main process computes the scores, the others return none.

  Args:
    group: Replicas that are trained together.
    network: What is trained.
    read: `outputs -> distribution`.
    teachers: Outputs `[M, V, C]` of the teacher of each replica on its validation part, for the rank correlation; empty
      where there are none.

  Returns:
    `state -> {metric: value}`, or None where there is no validation part.
  """
  if any(replica.data.validation is None for replica in group):
    return None
  of_teachers = [
    None if outputs is None else _scores(group[i], outputs, read_members(group[i]))
    for i, outputs in enumerate(teachers)
  ]

  def score(state: State) -> dict[str, float]:
    trees = _on_host((state.params, state.model_state))
    if not processes.is_main():
      return {}
    rows = []
    for i, replica in enumerate(group):
      params, model_state = artifacts.of_replica(trees, i)
      model = Model(network, params, model_state, replica.data.scaling, read)
      rows.append(_row(replica, model, of_teachers[i] if teachers else None))
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}

  return score


def read_members(replica: Replica) -> Callable:
  """How outputs of members are read."""
  return replica.task.predictives['members'].read


def _row(replica: Replica, model: Model, teacher: Scores | None) -> dict[str, float]:
  """Scores of one replica, by the names that its table has."""
  split, config = _validation(replica), replica.config.evaluation
  scores = _scores(replica, evaluate.predict(model, split.x, config.batch_size), model.read)
  found = evaluate.averages(scores, replica.task, config.ece_bins)
  if teacher is not None:
    epistemic = 'uncertainty_epistemic'
    found['rank_correlation'] = diversity.rank_correlation(scores[epistemic], teacher[epistemic])
  return {name: found[name] for name in replica.task.headline if np.isfinite(found.get(name, np.nan))}


def _scores(replica: Replica, outputs: np.ndarray, read: Callable) -> Scores:
  size = replica.config.evaluation.batch_size
  return evaluate.score_outputs(outputs, _validation(replica), read, replica.task, replica.data.scaling, size)


def _validation(replica: Replica) -> Split:
  assert replica.data.validation is not None
  return replica.data.validation


def _on_host(trees: Any) -> Any:
  """Arrays that may be spread over devices and processes, as NumPy arrays."""
  gather = lambda leaf: (
    np.asarray(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
  )
  return jax.tree.map(gather, trees)
