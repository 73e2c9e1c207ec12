"""Many training steps as one compiled program, on one device or many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from hydra_jax.devices import collectives, cpu
from hydra_jax.devices.layout import EVERYWHERE, Layout
from hydra_jax.nets.cut import belongs_to_heads
from hydra_jax.nets.mapping import chunk_of
from hydra_jax.nets.stages import Tree
from hydra_jax.training.optimizers import mean_gradient
from hydra_jax.training.step import Job, State, over_replicas, train_step


class Inputs(NamedTuple):
  """What a call reads besides the state. R is the axis of replicas.

  Attributes:
    data: `{'x': [R, N, …], 'y': [R, N, …], 'teacher': [R, M, N, C]}`. Of a stream, a single batch `[R, B, …]`.
    scaling: Of x, `[R, …]`.
    teacher: Parameters of the online teacher, `[R, …]`, or ().
    index: Rows of the batches, `[R, K, B]` int32.
    steps: Number of the K steps that this call makes. It is no compile-time constant.
    key: Data of the key of each replica, `[R, 2]` uint32. A key itself would be local to its process.
    vote: The vote of this process, `[V]` int32.
  """

  data: Any
  scaling: Any
  teacher: Tree
  index: Any
  steps: Any
  key: Any
  vote: Any


class CallSummary(NamedTuple):
  """The results of a call besides the state, equal in all processes.

  Attributes:
    total: Sum over steps of the loss of each head, `[R, H]` float32.
    bad: The first step at which the loss of a head was not finite, or −1, `[R, H]` int32.
    gradient: Norm of the mean gradient over about the last ten steps, of all parameters, `[R]` float32.
    vote: The maximum of the votes of all processes, `[V]` int32.
  """

  total: jax.Array
  bad: jax.Array
  gradient: jax.Array
  vote: jax.Array


def head_specs(tree: Tree) -> Tree:
  """Specs that spread the head axis of each leaf over `head`. The head axis comes after the axis of replicas."""
  spread = P(None, 'head')
  return jax.tree_util.tree_map_with_path(lambda path, _: spread if belongs_to_heads(path) else P(), tree)


def make_program(
  job: Job, layout: Layout, state: State, shape: tuple[int, ...], streams: bool = False, loops: bool = True
) -> Callable:
  """Compiles `program(state, inputs) -> (state, summary)`. The state is donated.

  One compilation serves calls of all lengths and all replicas: data, scaling and teacher are arguments.

  Args:
    job: What is trained.
    layout: The devices.
    state: With the shapes of the states that are trained.
    shape: Of an input.
    streams: Whether `inputs.data` is a single batch, spread over `data`. Otherwise each device holds all examples.
    loops: False makes a program of one step, without a loop.
  """
  replicas, heads = len(state.step), len(job.network.heads)
  size = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) / replicas
  parameters = size(state.params['body']) + size(state.params['heads']) / heads
  group = heads // layout.shape.head
  if job.is_independent and loops and replicas == 1 and job.teacher is None:
    if job.heads_per_chunk:
      group = chunk_of(group, job.heads_per_chunk, 0)
    elif layout.platform == 'cpu':
      group = cpu.group_of(group, parameters)

  def training(state: State, inputs: Inputs):
    def of_replica(state, data, scaling, teacher, index_KxB, key):
      step = lambda i, state, heads: train_step(job, state, data, scaling, teacher, index_KxB[i], key, heads)
      state, total, bad = many_steps(step, state, inputs.steps if loops else None, heads, group)
      gradient = mean_gradient(state.opt_state, state.step, len(total))
      return state, jnp.stack([total, gradient.heads], axis=1), bad, gradient.body

    key = jax.random.wrap_key_data(inputs.key)
    state, sums, bad, of_body = over_replicas(of_replica, state, *inputs[:4], key)
    sums, bad = (collectives.unshard('head', part, 1) for part in (sums, bad))
    total, of_heads = sums[..., 0], sums[..., 1]
    gradient = jnp.sqrt(of_body + of_heads.sum(axis=1))
    # The vote depends on the steps. XLA's CPU backend may run a collective that does not depend on the loop at another
    # time on each device, before or between the collectives in the loop. Then devices wait for each other for ever.
    vote = jnp.where(jnp.min(bad) >= -1, inputs.vote, 0)
    return state, CallSummary(total, bad, gradient, collectives.max_over_devices(vote))

  data_spec = P(None, 'data') if streams else P()
  teacher_specs = job.teacher.specs if job.teacher else P()
  in_specs = head_specs(state), Inputs(data_spec, P(), teacher_specs, P(None, None, 'data'), P(), P(), EVERYWHERE)
  with cpu.programs_for(layout.platform):
    options = cpu.compiler_options(job.network.convolves(shape), job.batch_size * parameters)
  return layout.compile(training, in_specs, (in_specs[0], P()), options)


def many_steps(step: Callable, state: State, steps: jax.Array | None, heads: int, group: int):
  """Trains one replica for some steps.

  Args:
    step: `(i, state, heads_K) -> (state, losses [K])`.
    state: Of the heads of this device.
    steps: Number of steps, `[]` int32. None makes one step without a loop.
    heads: Number of heads on all devices together.
    group: Number of heads that are trained together. A group makes all steps before the next group begins.

  Returns:
    The new state, and for each head of this device the sum of its losses and the first step whose loss was not finite.
  """
  here = heads // collectives.size('head')
  indices = collectives.positions('head', here) if collectives.size('head') > 1 else None

  def train(state: State, count: int, heads_K: jax.Array | None):
    def body(i, carry):
      state, total, bad = carry
      new, losses = step(i, state, heads_K)
      return new, total + losses, jnp.where((bad < 0) & ~jnp.isfinite(losses), state.step, bad)

    start = (state, jnp.zeros(count), jnp.full(count, -1))
    return body(0, start) if steps is None else jax.lax.fori_loop(0, steps, body, start)

  if group == here:
    return train(state, here, indices)
  return by_groups(train, state, here, group, jnp.arange(here) if indices is None else indices)


def by_groups(train: Callable, state: State, heads: int, size: int, indices: jax.Array):
  """Trains independent heads group by group, so that a group fits the cache of a CPU.

  Args:
    train: `(state, size, heads_K) -> (state, total [size], bad [size])`, many steps of a group.
    state: Of all heads. Its step and the counts of the optimizer are equal for all groups.
    heads: Number of heads.
    size: Number of heads in a group, a divisor of `heads`.
    indices: Of these heads, `[heads]`.

  Returns:
    As `many_steps`.
  """
  at, tree = jax.tree_util.tree_flatten_with_path(state)
  tiled, before = [belongs_to_heads(path) for path, _ in at], [leaf for _, leaf in at]

  def body(g, carry):
    leaves, *summaries = carry
    take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, g * size, size)
    put = lambda onto, leaf: jax.lax.dynamic_update_slice_in_dim(onto, leaf, g * size, 0)
    group = [take(leaf) if is_tiled else old for is_tiled, leaf, old in zip(tiled, leaves, before, strict=True)]
    new, *more = train(jax.tree.unflatten(tree, group), size, take(indices))
    parts = jax.tree.leaves(new)
    joined = [put(leaf, part) if is_tiled else part for is_tiled, leaf, part in zip(tiled, leaves, parts, strict=True)]
    return joined, *map(put, summaries, more)

  start = (before, jnp.zeros(heads), jnp.full(heads, -1))
  leaves, *summaries = jax.lax.fori_loop(0, heads // size, body, start)
  return jax.tree.unflatten(tree, leaves), *summaries
