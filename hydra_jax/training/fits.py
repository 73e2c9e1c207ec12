"""What is fitted in closed form to the training examples when a phase has been trained, see `methods.base.Fit`."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any

import jax
import numpy as np

from hydra_jax.data import Data, Scaling, Split, scale_inputs
from hydra_jax.data.read_ahead import read_ahead
from hydra_jax.nets.stages import Tree
from hydra_jax.training.batches import stack
from hydra_jax.training.step import over_replicas

# Examples that are read ahead of a stream, in batches.
BATCHES_AHEAD = 2

Batches = Callable[[], Iterator[dict[str, np.ndarray]]]
Measure = Callable[[Tree, Tree, dict[str, jax.Array]], Tree]


def fitted(
  fits: Sequence[tuple[Measure, Callable[[Tree, Tree], Tree]]],
  params: Tree,
  model_state: Tree,
  batches: Batches,
  scaling: Scaling,
) -> Tree:
  """The state of networks after all fits.

  It is computed on one device of each process, the same in all, so that devices change nothing.

  Args:
    fits: Pairs `(measure, solve)`, see `methods.base.Fit`.
    params: Of the networks of R replicas, on the host, with a leading axis R.
    model_state: Of the same networks.
    batches: Gives all examples once each time that it is called, see `batches_of`.
    scaling: Of x, with a leading axis R.

  Returns:
    Arrays on the host, with a leading axis R.
  """
  for measure, solve in fits:
    total: Any = None
    program = _program(measure)
    for batch in batches():
      sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), program(params, model_state, scaling, batch))
      total = sums if total is None else jax.tree.map(np.add, total, sums)
    replicas = [_of_replica((model_state, total), i) for i in range(len(scaling.x_scale))]
    model_state = stack([_like(solve(state, sums), state) for state, sums in replicas])
  return model_state


@functools.lru_cache(maxsize=16)
def _program(measure: Measure) -> Callable:
  """Compiled `(params, state, scaling, batch) -> sums`, all with a leading axis R."""

  def of_replica(params, state, scaling, batch):
    return measure(params, state, {**batch, 'x': scale_inputs(scaling, batch['x'])})

  return jax.jit(lambda *trees: over_replicas(of_replica, *trees))


def _of_replica(tree: Tree, index: int) -> Tree:
  return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


def _like(new: Tree, old: Tree) -> Tree:
  """A state with the types of the state before."""
  return jax.tree.map(lambda leaf, before: np.asarray(leaf, before.dtype), new, old)


def batches_of(data: Sequence[Data], batch_size: int) -> Batches:
  """All training examples of replicas, in batches. A view of an example of a stream is always the same."""
  splits = [each.train for each in data if isinstance(each.train, Split)]
  if splits:
    return batches_of_arrays([split.arrays(each.scaling) for split, each in zip(splits, data, strict=True)], batch_size)
  (stream,) = [each.train for each in data if not isinstance(each.train, Split)]

  def read() -> Iterator[dict[str, np.ndarray]]:
    view = lambda row: stream.read(row, np.random.default_rng((0, row)))
    for batch in read_ahead(view, range(stream.examples), BATCHES_AHEAD * batch_size).batch(batch_size):
      yield filled([batch], batch_size)

  return read


def batches_of_arrays(replicas: Sequence[dict[str, np.ndarray]], batch_size: int) -> Batches:
  """All rows of arrays of replicas, `{'x': [N, …], 'y': [N, …]}`, in batches; maybe with the `weight` of each row."""
  examples = len(replicas[0]['x'])
  size = min(batch_size, examples)

  def read() -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, examples, size):
      rows = slice(start, start + size)
      yield filled([{name: np.asarray(each[name][rows]) for name in each} for each in replicas], size)

  return read


def filled(replicas: Sequence[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
  """A batch `[R, size, …]` of fewer rows for each replica, with the `weight` of each row: 0 for those that fill it.

  Example:
    >>> filled([{'x': np.array([5.0, 6.0])}], size=3)['weight']
    array([[1., 1., 0.]], dtype=float32)
  """
  rows = len(replicas[0]['x'])
  pad = lambda leaf, mode: np.pad(leaf, [(0, size - rows)] + [(0, 0)] * (leaf.ndim - 1), mode=mode)
  whole = [{'weight': np.ones(rows, np.float32), **each} for each in replicas]
  return stack(
    [
      {name: pad(np.asarray(leaf), 'constant' if name == 'weight' else 'edge') for name, leaf in each.items()}
      for each in whole
    ]
  )
