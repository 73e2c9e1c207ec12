"""Training: one step, one visible loop, for teachers and students alike."""

from collections.abc import Callable
import contextlib
import functools
from pathlib import Path
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hydra_jax.data import Scaling, scale_inputs
from hydra_jax.devices import collectives, mapping
from hydra_jax.devices.parallel import ALONE, Layout, Program
from hydra_jax.devices.preemption import Preempted
from hydra_jax.errors import UserError
from hydra_jax.nets.cut import Network, belongs_to_heads
from hydra_jax.nets.stages import Tree
from hydra_jax.training import gradients
from hydra_jax.training.augment import Augmentation
from hydra_jax.training.batches import Feed

MAX_STEPS_PER_CALL = 1000
SECONDS_PER_CALL = 1.0
# Sets the key that decides which member is asked apart from those of augmentations, which are few.
ASKED = 2**31


class State(NamedTuple):
  """All that changes in training; with the config, all that is needed to continue."""

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree


# Of replicas that are trained together, all but the step is stacked.
STACKED = State._make((None, 0, 0, 0))


def init(
  network: Network, optimizer: optax.GradientTransformation, key: jax.Array, x: jax.Array, replicas: int = 0
) -> State:
  """State of a new network; `x` is an example input `[B, ...]`. Of replicas, if any: keys `[R]`, x `[R, B, ...]`."""
  make = jax.vmap(network.init) if replicas else network.init
  params, model_state = jax.jit(make)(key, x)
  return fresh(optimizer, params, model_state, replicas)


def fresh(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree, replicas: int = 0) -> State:
  """State at step 0 of a network, or of stacked replicas, with parameters already."""
  make = jax.vmap(optimizer.init) if replicas else optimizer.init
  return State(jnp.zeros((), jnp.int32), params, model_state, jax.jit(make)(params))


class Step(NamedTuple):
  """A training step and what `make_program` has to know of it.

  Attributes:
    network: What it trains.
    update: `(state, batch, key, places=None) -> (state, losses [H])`, pure. `batch` holds `x` as the network
      reads it; `key` is that of the phase, and step s uses `fold_in(key, s)`, so that nothing random needs
      saving. Where the state is that of some heads, `places` `[K]` says of which.
    independent: Whether heads share nothing, so that they may be trained one group after another.
    heads_per_chunk: How many heads at a time, see `make_step`.
  """

  network: Network
  update: Callable
  independent: bool
  heads_per_chunk: int


def make_step(
  network: Network,
  loss: Callable,
  objective: Callable,
  optimizer: optax.GradientTransformation,
  steps: int,
  penalty: Callable[[Tree], jax.Array] | None = None,
  heads_per_step: int = 0,
  heads_per_chunk: int = 0,
) -> Step:
  """A step of training.

  Args:
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`. It reads the batch, and in `batch['done']` the share of all
      `steps` that is over. Outputs of some heads only are those of the places in `batch['heads']` `[K]`.
    objective: Reduces the loss of each head `[H]` to the number that is minimised; linear.
    optimizer: Rule of the update.
    steps: Of the whole phase.
    penalty: Added to the objective, `params -> ()`.
    heads_per_step: Trains so many heads at each step, drawn anew, if not 0. Those left out report a loss of
      0, and the others H/K times theirs.
    heads_per_chunk: Computes outputs and losses of at most so many heads at a time. 0: of all, unless they
      are large, or share nothing and fit a cache together no more. Needs `network.parts`.
  """
  heads = len(network.heads)
  gradient = gradients.make(network, loss, penalty, heads_per_chunk)
  weights = lambda count: jax.grad(objective)(jnp.zeros(count))  # as it is linear, each head has one in it

  def of_some(state: State, batch, key):
    """Draws heads, and takes the gradient of these."""
    drawn = jax.random.permutation(jax.random.fold_in(key, heads), heads)[:heads_per_step]
    some = lambda tree: {**tree, 'heads': jax.tree.map(lambda leaf: leaf[drawn], tree['heads'])}
    back = lambda tree, onto: {
      **tree,
      'heads': jax.tree.map(lambda leaf, old: old.at[drawn].set(leaf), tree['heads'], onto['heads']),
    }
    given = some(state.params), some(state.model_state)
    grads, losses_K, model_state = gradient(*given, batch, key, weights(heads_per_step), drawn)
    losses_H = jnp.zeros(heads).at[drawn].set(losses_K * (heads / heads_per_step))
    return back(grads, jax.tree.map(jnp.zeros_like, state.params)), losses_H, back(model_state, state.model_state)

  def update(state: State, batch, key, places=None):
    batch = {**batch, 'done': state.step.astype(jnp.float32) / steps}
    key = jax.random.fold_in(key, state.step)
    if heads_per_step:
      grads, losses_H, model_state = of_some(state, batch, key)
    else:
      weights_K = weights(heads) if places is None else weights(heads)[places]
      grads, losses_H, model_state = gradient(state.params, state.model_state, batch, key, weights_K, places)
    grads, losses_H, model_state = collectives.mean_over('data', (grads, losses_H, model_state))
    grads = {**grads, 'body': collectives.sum_over('head', grads['body'])}
    with jax.numpy_dtype_promotion('standard'):  # optax mixes counts and rates; all else here is strict
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, model_state, opt_state), losses_H

  shared = network.cut > 0 or network.parts is None or heads_per_step or penalty
  return Step(network, update, not shared and objective is jnp.sum, heads_per_chunk)


def take(data, index_B: jax.Array):
  """Rows of `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`; a teacher kept in float16 is float32 again."""
  rows = {k: jnp.take(v, index_B, axis=1 if k == 'teacher' else 0) for k, v in data.items()}
  return {k: v.astype(jnp.float32) if k == 'teacher' else v for k, v in rows.items()}


class Found(NamedTuple):
  """What a call tells, the same in all processes.

  Attributes:
    total: Sum over steps of the loss of each head, `[H]`.
    bad: The step at which the loss of each head first was not finite, or −1, `[H]`.
    vote: For each of the things that are agreed upon, the greatest that any process has said.
  """

  total: jax.Array
  bad: jax.Array
  vote: jax.Array


def make_program(
  step: Step,
  *,
  batch_size: int,
  augment: Augmentation = lambda key, batch, ask: batch,
  teach: Callable | None = None,
  ask: Callable | None = None,
  steps_per_call: int = 0,
  replicas: int = 0,
  layout: Layout = ALONE,
  streams: bool = False,
  spread_teacher: bool = False,
) -> Program:
  """Returns a compiled `program(state, data, scaling, teacher, index [K, B], n, key, vote)` of n ≤ K steps.

  n is not a compile-time constant, so one compilation serves calls of every length; nor are the
  data, their scaling and the teacher's parameters, so it serves every replica. The state is donated.
  As what `jax.jit` returns, it has a method `lower` (but under pmap).

  Args:
    step: From `make_step`.
    batch_size: Examples in a step.
    augment: See `fit`.
    teach: See `fit`.
    ask: See `fit`.
    steps_per_call: 1 makes a program of one step, without a loop.
    replicas: Trains so many at once, if not 0, whose arrays are stacked along a new first axis: all of
      the state but its step, data, scaling, teacher, index `[R, K, B]`, key and what is returned.
    layout: The devices, and how the work is spread over them.
    streams: See `feeds.Feed`.
    spread_teacher: Whether the members of the teacher are spread as heads are.

  Returns:
    The new state, and what was `Found`.
  """
  network = step.network
  loops = steps_per_call != 1

  def one(state, data, scaling, teacher, index_B, key, places):
    """A step on a batch as the network reads it; a teacher at hand predicts on just what its student sees."""
    augment_key, step_key = jax.random.split(key)
    batch = take(data, index_B)
    view = {**batch, 'x': scale_inputs(scaling, batch['x'])}
    key = jax.random.fold_in(augment_key, state.step)
    batch = augment(key, view, ask and functools.partial(ask, teacher, jax.random.fold_in(key, ASKED)))
    if teach is not None:
      predicted = teach(teacher, batch['x'])
      batch = {**batch, 'teacher': collectives.gathered('head', predicted) if spread_teacher else predicted}
    return step.update(state, batch, step_key, places)

  each = jax.vmap(one, (STACKED, 0, 0, 0, 0, 0, None), (STACKED, 0)) if replicas else one

  def training(group, state, data, scaling, teacher, index, n, key, vote):
    def of_heads(state, heads, places=None):
      def body(i, carry):
        state, total, bad = carry
        new, losses = each(state, data, scaling, teacher, index[..., i, :], key, places)
        return new, total + losses, jnp.where((bad < 0) & ~jnp.isfinite(losses), state.step, bad)

      shape = (*(replicas,) * bool(replicas), heads)
      start = (state, jnp.zeros(shape), jnp.full(shape, -1))
      return jax.lax.fori_loop(0, n, body, start) if loops else body(0, start)

    heads = len(network.heads) // collectives.size('head')
    places = collectives.positions('head', heads) if collectives.size('head') > 1 else None
    if group < heads:
      state, total, bad = by_groups(of_heads, state, heads, group, places)
    else:
      state, total, bad = of_heads(state, heads, places)
    total, bad = (collectives.placed('head', part, bool(replicas)) for part in (total, bad))
    # The vote waits for the steps. XLA's CPU backend may run a collective that does not depend on the loop in another
    # order on each device, before or between those in the loop: then devices wait for each other for ever.
    vote = jnp.where(jnp.min(bad) >= -1, vote, 0)
    return state, Found(total, bad, collectives.greatest(vote))

  def compile(state, teacher):
    heads = len(network.heads)
    size = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree)) / max(replicas, 1)
    one = size(state.params['body']) + size(state.params['heads']) / heads
    apart = step.independent and loops and not replicas and teach is None
    mine = heads // (1 if layout.mesh is None else layout.mesh.shape['head'])
    return layout.compile(
      functools.partial(training, mapping.group_of(mine, step.heads_per_chunk, one) if apart else mine),
      state,
      replicas=replicas,
      streams=streams,
      teacher=teacher,
      spread_teacher=spread_teacher,
      options=mapping.compiler_options(network.convolution, batch_size * one),
    )

  compiled: list[Callable] = []  # once the shapes are known, which stay the same

  def of(state, teacher):
    if not compiled:
      compiled.append(compile(state, teacher))
    return compiled[0]

  return Program(lambda *given: of(given[0], given[3])(*given), lambda *given: of(given[0], given[3]).lower(*given))


def by_groups(train: Callable, state: State, heads: int, size: int, places: jax.Array | None = None):
  """Trains heads that share nothing group by group, so that what a group needs stays in cache.

  Args:
    train: `(state, size, places) -> (state, total [size], bad [size])`, many steps of some heads.
    state: Of all heads; its step and the counts of the optimizer are the same for each group.
    heads: Their number.
    size: Of a group, a divisor of it.
    places: Of these heads, if they are not all.
  """
  places = jnp.arange(heads) if places is None else places
  at, tree = jax.tree_util.tree_flatten_with_path(state)
  tiled, before = [belongs_to_heads(path) for path, _ in at], [leaf for _, leaf in at]

  def body(g, carry):
    leaves, *found = carry
    take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, g * size, size)
    put = lambda onto, leaf: jax.lax.dynamic_update_slice_in_dim(onto, leaf, g * size, 0)
    some = [take(leaf) if own else old for own, leaf, old in zip(tiled, leaves, before, strict=True)]
    new, *more = train(jax.tree.unflatten(tree, some), size, take(places))
    joined = [put(leaf, n) if own else n for own, leaf, n in zip(tiled, leaves, jax.tree.leaves(new), strict=True)]
    return joined, *map(put, found, more)

  start = (before, jnp.zeros(heads), jnp.full(heads, -1))
  leaves, *found = jax.lax.fori_loop(0, heads // size, body, start)
  return jax.tree.unflatten(tree, leaves), *found


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
  """Steps in so many passes over the data."""
  return max(1, round(epochs * examples / batch_size))


def fit(
  step: Step,
  state: State,
  feed: Feed,
  scaling: Scaling,
  *,
  seed: tuple,
  key: jax.Array,
  steps: int,
  batch_size: int,
  augment: Augmentation = lambda key, batch, ask: batch,
  teach: Callable | None = None,
  ask: Callable | None = None,
  teacher: Tree = (),
  replicas: int = 0,
  steps_per_call: int = 0,
  layout: Layout = ALONE,
  spread_teacher: bool = False,
  skip: bool = False,
  stopping: Callable[[], bool] = lambda: False,
  progress: Callable[[int, float], None] = lambda step, loss: None,
  save: Callable[[State], None] = lambda state: None,
  save_every: float = float('inf'),
  profile: Path | None = None,
) -> State:
  """Trains from `state.step` to `steps`. The loop of every teacher and every student.

  One call of the compiled program makes as many steps as fit in a second; what a call found is
  read while the next one runs. How steps are grouped into calls changes no result.

  What all processes have to do at the same step (how long the next call is, whether to save, whether to stop)
  each says in a call, and reads the outcome from what that call found, which costs nothing.

  Args:
    step: From `make_step`.
    state: Where to start; donated.
    feed: The examples.
    scaling: Of x.
    seed: Decides the order of the examples.
    key: Decides everything else that is random.
    steps: Step to end at.
    batch_size: Examples in a step, on all devices together.
    augment: `(key, batch, ask) -> batch` on scaled inputs, with another key at each step.
    teach: `(teacher, x) -> [M, B, C]`, for students whose teacher predicts in the same step.
    ask: `(teacher, key, x) -> [B, C]`, one member that the key decides, for augmentations that ask it.
    teacher: What `teach` reads, such as the members' parameters.
    replicas: If not 0, so many are trained together: state, feed, scaling, teacher and key are stacked
      as for `make_program`, and seed is a tuple of theirs.
    steps_per_call: At most so many, or if 0 as many as are fastest; convolutions on CPU make one.
    layout: The devices, and how the work is spread over them.
    spread_teacher: See `make_program`.
    skip: Goes on without heads whose loss is not finite, as long as there are others.
    stopping: Whether this process was asked to stop: then all save and stop at the same step.
    progress: Called now and then with the step and the mean loss.
    save: Called with the state about every `save_every` seconds, never with one that is not finite.
    save_every: Seconds between saves.
    profile: Folder for a trace of the second call, a few steps that are compiled already.

  Raises:
    UserError: Where a loss is not finite, naming the step and the head.
    Preempted: Where a process was asked to stop; the state is saved.
  """
  if step.network.convolution and mapping.on_cpu():
    steps_per_call = 1
  program = make_program(
    step,
    batch_size=batch_size,
    augment=augment,
    teach=teach,
    ask=ask,
    steps_per_call=steps_per_call,
    replicas=replicas,
    layout=layout,
    streams=feed.streams,
    spread_teacher=spread_teacher,
  )
  at_once = int(min(steps, steps_per_call or MAX_STEPS_PER_CALL, feed.at_once))
  index = np.zeros((*(replicas,) * bool(replicas), at_once, batch_size), np.int32)
  now = int(state.step)
  state, scaling = layout.put(state, replicas), layout.whole(scaling)
  teacher = layout.spread(teacher) if spread_teacher else layout.whole(teacher)
  batches = feed.begin(seed, now, steps, batch_size, layout)
  pending, n, wanted, saved = None, 1, 1, time.monotonic()
  read = saved

  while now < steps:
    n = min(n, steps - now)
    data, index[..., :n, :] = batches(now, n)
    due = time.monotonic() - saved > save_every
    vote = np.array([stopping(), due, -wanted], np.int32)
    saved = time.monotonic() if due else saved  # asks once
    with _traced(profile if pending else None) as wait:
      state, found = wait(program(state, data, scaling, teacher, index.copy(), n, key, layout.votes(vote)))
    profile = None if pending else profile
    now += n
    last, pending = pending, (now, n, found)
    if last:
      stop, due, n = _read(*last, skip, progress)
      if stop or due:
        check_finite(np.asarray(found.bad), skip)
        save(layout.plain(state))
        saved = time.monotonic()
      if stop and now < steps:
        raise Preempted(f'stopped at step {now} of {steps}', by_all=True)
    elapsed, read = time.monotonic() - read, time.monotonic()
    count = (last or pending)[1]  # what that time went into
    wanted = min(max(1, min(int(count * SECONDS_PER_CALL / elapsed), 4 * count)), at_once)
  if pending:
    _read(*pending, skip, progress)
  return layout.plain(state)


def _read(at: int, count: int, found: Found, skip: bool, progress: Callable) -> tuple[bool, bool, int]:
  """Waits for what a call has found; whether to stop, whether to save, and how many steps the next call makes."""
  bad = np.asarray(found.bad)
  check_finite(bad, skip)
  progress(at, float(np.mean(np.asarray(found.total)[bad < 0])) / count)
  stop, due, wanted = np.asarray(found.vote)
  return bool(stop), bool(due), -int(wanted)


@contextlib.contextmanager
def _traced(folder: Path | None):
  """Writes a profile of what is done inside; gives a function that waits for its results, if there is one."""
  if folder is None:
    yield lambda results: results
    return
  with jax.profiler.trace(folder):
    yield jax.block_until_ready


def check_finite(bad: np.ndarray, skip: bool = False) -> None:
  """Raises a `UserError` if any loss was not finite, or with `skip` only if of every head of a network.

  `bad`, `[H]` or `[R, H]`, has the first such step or −1.
  """
  if np.any(np.all(bad >= 0, axis=-1) if skip else bad >= 0):
    place = np.unravel_index(np.argmin(np.where(bad >= 0, bad, np.iinfo(bad.dtype).max)), bad.shape)
    of = f', of replica {place[0]} in its group' if len(place) > 1 else ''
    raise UserError(
      f'the loss is not finite at step {bad[place]} (head or member {place[-1]}{of}): '
      'lower the learning rate, or look at the data'
    )
