"""Where the batches of training come from: arrays on the device, or examples read as they are needed.

Either way (seed, s) alone decides what step s is shown, so training may stop and continue anywhere.
"""

from collections.abc import Callable, Sequence
import functools
import math
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from hydra_jax.devices.parallel import ALONE

BATCHES_AHEAD = 2


class Feed(NamedTuple):
  """The batches of a training.

  Attributes:
    examples: How many there are; an epoch shows each of them once.
    begin: `(seed, start, stop, batch_size, layout=ALONE) -> batches`, for the steps from `start` to `stop`.
      Called for one step after the other, `batches(step, n)` gives what n of them read: arrays
      `{'x': [N, …], 'y': [N, …]}`, and `'teacher': [M, N, C]` for students, of the same shapes each time,
      and the rows of each step, `[n, batch_size]` int32. x as stored, y as the network learns it.
    at_once: The most steps that `batches` can be asked for.
    streams: Whether arrays are those of one batch, of which each device holds its rows, and `[n, batch_size]`
      says where there. Else each device holds all of them.
    note: What there is to tell the user meanwhile.
  """

  examples: int
  begin: Callable[..., Callable[[int, int], tuple[dict[str, Any], np.ndarray]]]
  at_once: float = math.inf
  streams: bool = False
  note: Callable[[], str] = lambda: ''


@functools.lru_cache(maxsize=64)
def _shuffle(seed: tuple[int, ...], epoch: int, n: int) -> np.ndarray:
  return np.random.default_rng((*seed, epoch)).permutation(n).astype(np.int32)


def batch_indices(seed: tuple[int, ...], step: int, steps: int, examples: int, batch_size: int) -> np.ndarray:
  """Rows of the batches at `step`, `step + 1`, …, as `[steps, batch_size]` int32.

  The batch at step s is a function of (seed, s) alone: consecutive pieces of one endless row of
  shuffled epochs, so that e epochs show every example e times.
  """
  place = np.arange(step * batch_size, (step + steps) * batch_size)
  epoch, row = np.divmod(place, examples)
  index = np.empty(place.shape, np.int32)
  for e in range(epoch[0], epoch[-1] + 1):
    here = epoch == e
    index[here] = _shuffle(seed, e, examples)[row[here]]
  return index.reshape(steps, batch_size)


def resident(data: dict[str, Any]) -> Feed:
  """All examples are on the device, `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`, and looked up there."""
  examples = len(data['x'])

  def begin(seed, start, stop, batch_size, layout=ALONE):
    arrays = layout.whole(data)
    return lambda step, n: (arrays, batch_indices(seed, step, n, examples, batch_size))

  return Feed(examples, begin)


def together(replicas: Sequence[dict[str, Any]]) -> Feed:
  """The same for replicas that are trained together: everything is stacked, and each has a seed of its own."""
  examples = len(replicas[0]['x'])

  def begin(seeds, start, stop, batch_size, layout=ALONE):
    arrays = layout.whole(jax.tree.map(lambda *leaves: np.stack(leaves), *replicas))
    each = lambda step, n: [batch_indices(seed, step, n, examples, batch_size) for seed in seeds]
    return lambda step, n: (arrays, np.stack(each(step, n)))

  return Feed(examples, begin)


def streamed(examples: int, read: Callable[[int, np.random.Generator], dict[str, np.ndarray]]) -> Feed:
  """Each step is shown arrays of its own, that threads have read ahead of it; each process reads its rows only.

  Args:
    examples: How many there are.
    read: `(row, random) -> {'x', 'y'}`, one example; nothing but `random` decides in which view.
  """
  waited, opened = 0.0, 0.0

  def begin(seed, start, stop, batch_size, layout=ALONE):
    nonlocal waited, opened
    waited, opened = 0.0, time.monotonic()
    mine, rows = layout.rows(batch_size), layout.own_rows(batch_size)

    def shown(at):
      place = start * batch_size + at // len(mine) * batch_size + int(mine[at % len(mine)])
      row = batch_indices(seed, place, 1, examples, 1).item()
      # The 1 sets what is drawn here apart from what shuffles an epoch.
      return read(row, np.random.default_rng((*seed, place, 1)))

    places = range((stop - start) * len(mine))
    stream = iter(ahead(shown, places, BATCHES_AHEAD * len(mine)).batch(len(mine)))

    def batches(step, n):
      nonlocal waited
      asked = time.monotonic()
      batch = next(stream)
      waited += time.monotonic() - asked
      return layout.join(batch, mine, batch_size), rows

    return batches

  return Feed(examples, begin, 1, True, lambda: f'waits for input {waited / (time.monotonic() - opened):.0%}')


def ahead(read: Callable[[int], Any], places: range, most: int) -> Any:
  """`read(place)` for each of `places` in order, done by a thread for each core, at most so many places ahead.

  Threads, because decoding images leaves Python's lock alone: on two cores they give 720 photographs of
  500 × 375 a second, where grain's processes give 430.

  Returns:
    A `grain.IterDataset`.
  """
  import grain  # here, because only streams need it

  options = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=most)
  return grain.MapDataset.range(places.start, places.stop).map(read).to_iter_dataset(options)
