"""Scores on the validation part while a network trains: for `metrics.jsonl`, and to keep the best parameters.

Scores alone change no result. With `config.patience` they decide which parameters are kept, and when training stops.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from hydra_jax import store
from hydra_jax.data import Split
from hydra_jax.devices import processes
from hydra_jax.evaluation import diversity, evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import artifacts
from hydra_jax.experiment.replicas import Replica
from hydra_jax.maths.tasks import Scores
from hydra_jax.nets.cut import Network
from hydra_jax.training.step import State

# Scores of each replica, from parameters and state of the network on the host. Only the main process has them.
Scorer = Callable[[Any], list[dict[str, float]]]


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
  """Scores of networks on the validation parts of their replicas. The main process computes them.

  Args:
    group: Replicas that are trained together.
    network: What is trained.
    read: `outputs -> distribution`.
    teachers: Outputs `[M, V, C]` of the teacher of each replica on its validation part, for the rank correlation; empty
      where there are none.

  Returns:
    The scorer, or None where there is no validation part.
  """
  if any(replica.data.validation is None for replica in group):
    return None
  of_teachers = [
    None if outputs is None else _scores(group[i], outputs, read_members(group[i]))
    for i, outputs in enumerate(teachers)
  ]

  def score(trees: Any) -> list[dict[str, float]]:
    if not processes.is_main():
      return []
    rows = []
    for i, replica in enumerate(group):
      params, model_state = artifacts.of_replica(trees, i)
      model = Model(network, params, model_state, replica.data.scaling, read)
      rows.append(_row(replica, model, of_teachers[i] if teachers else None))
    return rows

  return score


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Means over replicas of the scores that all have.

  Example:
    >>> means([{'nll': 1.0, 'rmse': 2.0}, {'nll': 3.0}])
    {'nll': 2.0}
  """
  names = [name for name in rows[0] if all(name in row for row in rows)]
  return {name: float(np.mean([row[name] for row in rows])) for name in names}


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
  return evaluate.score_outputs(outputs, _validation(replica), read, replica.data.task, replica.data.scaling, size)


def _validation(replica: Replica) -> Split:
  assert replica.data.validation is not None
  return replica.data.validation


def on_host(state: State) -> Any:
  """Parameters and state of the network as NumPy arrays. All processes must call it."""
  gather = lambda leaf: (
    np.asarray(leaf) if leaf.is_fully_addressable else multihost_utils.process_allgather(leaf, tiled=True)
  )
  return jax.tree.map(gather, (state.params, state.model_state))


class Best:
  """The networks of each replica with the lowest NLL on the validation part, until its patience has run out.

  What a replica keeps does not depend on the replicas that are trained with it. All processes keep the same.

  Args:
    file: Where they are kept, so that a run that continues ends as if it had not been stopped.
    stops: Steps after which there are scores.
    patience: Scores without a lower NLL after which a replica is done.
    like: Parameters and state of the networks on the host.
  """

  def __init__(self, file: Path, stops: Sequence[int], patience: int, like: Any):
    """Reads the file, if it is there."""
    self.file, self.stops, self.patience = file, list(stops), patience
    leaves, self.tree = jax.tree.flatten(like)
    self.leaves = [leaf.copy() for leaf in leaves]
    replicas = len(leaves[0])
    self.nll, self.at = np.full(replicas, np.inf), np.zeros(replicas, int)
    if file.exists():
      saved = store.read_arrays(file)
      self.nll, self.at = saved['nll'], saved['at']
      self.leaves = [saved[f'{i}'].view(leaf.dtype).reshape(leaf.shape) for i, leaf in enumerate(self.leaves)]

  def take(self, stop: int, trees: Any, rows: Sequence[Mapping[str, float]]) -> bool:
    """Keeps what is better. All processes must call it.

    Args:
      stop: The step.
      trees: Parameters and state after it, on the host.
      rows: Scores of each replica, which the main process has.

    Returns:
      Whether no replica has patience left.
    """
    number = self.stops.index(stop)
    text = processes.run_on_main(lambda: json.dumps([row.get('nll', np.inf) for row in rows]), 'NLL')
    found = np.asarray(json.loads(text))
    is_first = np.isinf(self.nll)
    better = ((found < self.nll) | is_first) & (number - self.at <= self.patience)
    self.nll[better], self.at[better] = found[better], number
    for kept, new in zip(self.leaves, jax.tree.leaves(trees), strict=True):
      kept[better] = new[better]
    if better.any():
      processes.run_on_main(self._write, 'best')
    return bool(np.all(number - self.at >= self.patience))

  def _write(self) -> None:
    flat = {f'{i}': np.frombuffer(leaf.tobytes(), np.uint8) for i, leaf in enumerate(self.leaves)}
    store.check_held(self.file)
    self.file.parent.mkdir(exist_ok=True)
    with store.replacing(self.file) as new, open(new, 'wb') as file:
      np.savez(file, allow_pickle=False, nll=self.nll, at=self.at, **flat)

  def trees(self) -> Any:
    """Parameters and state that are kept."""
    return jax.tree.unflatten(self.tree, self.leaves)

  def steps(self) -> list[int]:
    """Steps after which they were, for each replica."""
    return [self.stops[number] for number in self.at]
