"""Batches of training: from arrays on the device, or from examples that are read when they are needed.

The batch at step s depends on (seed, s) alone. So training can stop and continue at any step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import functools
import math
import time
from typing import Any

import jax
import numpy as np

from hydra_jax.data import Data, Scaling, Split
from hydra_jax.data.read_ahead import read_ahead
from hydra_jax.devices.layout import SINGLE_DEVICE

BATCHES_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class BatchSource:
  """The batches of R replicas that are trained together.

  Attributes:
    examples: Number of examples. An epoch shows each of them once.
    shape: Of an input.
    scaling: How x is scaled, each array with a leading axis R.
    begin: `(seeds, start, stop, batch_size, layout=SINGLE_DEVICE) -> batches`, for the steps from `start` to `stop`.
      `batches(step, n)` is called for consecutive steps. It gives the arrays that n steps read,
      `{'x': [R, N, …], 'y': [R, N, …], 'teacher': [R, M, N, C]}`, of the same shapes at each call, and the rows of each
      step, `[R, n, batch_size]` int32. x is as stored, y as the network learns it.
    at_once: The largest n.
    streams: True: the arrays hold a single batch, spread over devices, and a row is an index on the device that holds
      it. False: every device holds all examples.
    note: Text that is shown to the user beside the progress.
  """

  examples: int
  shape: tuple[int, ...]
  scaling: Scaling
  begin: Callable[..., Callable[[int, int], tuple[dict[str, Any], np.ndarray]]]
  at_once: float = math.inf
  streams: bool = False
  note: Callable[[], str] = lambda: ''


@functools.lru_cache(maxsize=64)
def _shuffle(seed: tuple[int, ...], epoch: int, n: int) -> np.ndarray:
  return np.random.default_rng((*seed, epoch)).permutation(n).astype(np.int32)


def batch_indices(
  seed: tuple[int, ...], step: int, steps: int, examples: int, batch_size: int, views: int = 1
) -> np.ndarray:
  """Rows of the batches at `step`, `step + 1`, …

  Batches are consecutive pieces of an endless sequence of shuffled epochs. So e epochs show every example e times.
  Where each example has several views, epoch e shows view v = e mod `views`, in row v · `examples` + example.

  Args:
    seed: Decides the order.
    step: The first step.
    steps: Number of steps.
    examples: Number of examples.
    batch_size: Rows in a batch.
    views: Of each example.

  Returns:
    `[steps, batch_size]` int32.

  Example:
    >>> np.sort(batch_indices((0,), step=0, steps=2, examples=6, batch_size=3).ravel())
    array([0, 1, 2, 3, 4, 5], dtype=int32)
  """
  place = np.arange(step * batch_size, (step + steps) * batch_size)
  epoch, row = np.divmod(place, examples)
  index = np.empty(place.shape, np.int32)
  for e in range(epoch[0], epoch[-1] + 1):
    here = epoch == e
    index[here] = _shuffle(seed, e, examples)[row[here]] + e % views * examples
  return index.reshape(steps, batch_size)


def stack(trees: Sequence[Any]) -> Any:
  """Stacks trees of replicas along a new first axis, on the host. A single tree is not copied there.

  Example:
    >>> stack([{'a': np.zeros(2)}, {'a': np.ones(2)}])['a'].shape
    (2, 2)
  """
  if len(trees) == 1:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None], trees[0])
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def resident(replicas: Sequence[Mapping[str, Any]], scaling: Scaling, views: int = 0) -> BatchSource:
  """Batches of arrays that are on the device as a whole.

  Args:
    replicas: For each `{'x': [N, …], 'y': [N, …]}`, and `'teacher': [M, N, C]` for students of kept predictions.
    scaling: Of x, with a leading axis R.
    views: Of each example, V: predictions are `[M, V · N, C]`, see `training.views`. 0: there are none.
  """
  examples = len(replicas[0]['x'])

  def begin(seeds, start, stop, batch_size, layout=SINGLE_DEVICE):
    del start, stop
    arrays = layout.replicate(stack(replicas))
    of = lambda seed, step, n: batch_indices(seed, step, n, examples, batch_size, max(views, 1))
    return lambda step, n: (arrays, np.stack([of(seed, step, n) for seed in seeds]))

  return BatchSource(examples=examples, shape=replicas[0]['x'].shape[1:], scaling=scaling, begin=begin)


def streamed(
  examples: int,
  shape: tuple[int, ...],
  read: Callable[[int, np.random.Generator], dict[str, np.ndarray]],
  scaling: Scaling,
) -> BatchSource:
  """Batches that threads read ahead of each step. A process reads the rows of its devices only. There is one replica.

  Args:
    examples: Number of examples.
    shape: Of an input.
    read: `(row, random) -> {'x', 'y'}`, one example. A view of it, such as a crop, depends on `random` alone.
    scaling: Of x, with a leading axis of length 1.
  """
  waited, opened = 0.0, 0.0

  def begin(seeds, start, stop, batch_size, layout=SINGLE_DEVICE):
    nonlocal waited, opened
    waited, opened = 0.0, time.monotonic()
    (seed,) = seeds
    mine, rows = layout.rows(batch_size), layout.own_rows(batch_size)

    def example_at(at):
      place = start * batch_size + at // len(mine) * batch_size + int(mine[at % len(mine)])
      row = batch_indices(seed, place, 1, examples, 1).item()
      # The 1 makes this generator another one than that of `_shuffle`.
      return read(row, np.random.default_rng((*seed, place, 1)))

    indices = range((stop - start) * len(mine))
    stream = iter(read_ahead(example_at, indices, BATCHES_AHEAD * len(mine)).batch(len(mine)))

    def batches(step, n):
      nonlocal waited
      del step, n
      asked = time.monotonic()
      batch = next(stream)
      waited += time.monotonic() - asked
      return layout.join(stack([batch]), mine, batch_size), rows[None, None]

    return batches

  note = lambda: f'waits for input {waited / (time.monotonic() - opened):.0%}'
  return BatchSource(examples=examples, shape=shape, scaling=scaling, begin=begin, at_once=1, streams=True, note=note)


def source_of(
  data: Sequence[Data], predictions: Sequence[np.ndarray] = (), folds: Sequence[np.ndarray] = (), views: int = 0
) -> BatchSource:
  """Batches of the training sets of replicas.

  Args:
    data: Of each replica.
    predictions: The kept predictions `[M, N, C]` of the teacher of each replica. Empty: there are none.
    folds: Of each replica the fold of each example `[N]`, see `training.folds`. Empty: there are none.
    views: Of each example, for which there are predictions. 0: these are for the examples as they are.
  """
  scaling = stack([each.scaling for each in data])
  splits = [each.train for each in data if isinstance(each.train, Split)]
  if not splits:
    (stream,) = [each.train for each in data if not isinstance(each.train, Split)]
    assert not predictions and not folds  # inputs of a stream differ in each epoch
    return streamed(stream.examples, stream.example.shape[1:], stream.read, scaling)
  kept = [{'teacher': each} for each in predictions] or [{} for _ in data]
  parts = [{'fold': each} for each in folds] or [{} for _ in data]
  arrays = [s.arrays(d.scaling) | a | b for s, d, a, b in zip(splits, data, kept, parts, strict=True)]
  return resident(arrays, scaling, views)
