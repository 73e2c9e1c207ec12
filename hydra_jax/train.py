"""Training: one step, one visible loop, for teachers and students alike."""

from collections.abc import Callable
import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hydra_jax.augment import Augmentation
from hydra_jax.cut import Network
from hydra_jax.data import Scaling, scale_inputs
from hydra_jax.errors import UserError
from hydra_jax.feeds import Feed
from hydra_jax.stages import Tree

MAX_STEPS_PER_CALL = 1000
SECONDS_PER_CALL = 0.5


class State(NamedTuple):
  """All that changes in training; with the config, all that is needed to continue."""

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree


def init(network: Network, optimizer: optax.GradientTransformation, key: jax.Array, x: jax.Array) -> State:
  """State of a new network; `x` is an example input `[B, ...]`."""
  return fresh(optimizer, *jax.jit(network.init)(key, x))


def fresh(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree) -> State:
  """State at step 0 of a network that has parameters already."""
  return State(jnp.zeros((), jnp.int32), params, model_state, jax.jit(optimizer.init)(params))


def make_step(
  network: Network,
  loss: Callable,
  objective: Callable,
  optimizer: optax.GradientTransformation,
  steps: int,
  penalty: Callable[[Tree], jax.Array] | None = None,
  heads_per_step: int = 0,
):
  """Returns `step(state, batch, key) -> (state, losses [H])`, pure.

  `batch` holds `x` as the network reads it; `key` is that of the phase, and step s uses
  `fold_in(key, s)`, so that nothing random needs saving. The loss reads the batch, and in
  `batch['done']` the share of all `steps` that is over.

  Args:
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`.
    objective: Reduces the loss of each head `[H]` to the number that is minimised.
    optimizer: Rule of the update.
    steps: Of the whole phase.
    penalty: Added to the objective, `params -> ()`.
    heads_per_step: Trains so many heads at each step, drawn anew, if not 0. The loss finds which in
      `batch['heads']` `[K]`; those left out report a loss of 0, and the others H/K times theirs.
  """
  heads = len(network.heads)

  def step(state: State, batch, key):
    batch = {**batch, 'done': state.step.astype(jnp.float32) / steps}
    key = jax.random.fold_in(key, state.step)
    some = {}
    if heads_per_step:
      some = {'only': jax.random.permutation(jax.random.fold_in(key, heads), heads)[:heads_per_step]}
      batch['heads'] = some['only']

    def objective_of(params):
      outputs, model_state = network.apply(params, state.model_state, batch['x'], key, True, **some)
      losses_H = jnp.mean(loss(outputs, batch), axis=-1)
      value = objective(losses_H) if penalty is None else objective(losses_H) + penalty(params)
      return value, (losses_H, model_state)

    grads, (losses_H, model_state) = jax.grad(objective_of, has_aux=True)(state.params)
    if heads_per_step:
      losses_H = jnp.zeros(heads).at[batch['heads']].set(losses_H * (heads / heads_per_step))
    with jax.numpy_dtype_promotion('standard'):  # optax mixes counts and rates; all else here is strict
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, model_state, opt_state), losses_H

  return step


def take(data, index_B: jax.Array):
  """Rows of `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`; a teacher kept in float16 is float32 again."""
  rows = {k: jnp.take(v, index_B, axis=1 if k == 'teacher' else 0) for k, v in data.items()}
  return {k: v.astype(jnp.float32) if k == 'teacher' else v for k, v in rows.items()}


def make_program(step: Callable, heads: int, augment: Augmentation, teach: Callable | None, one_by_one: bool):
  """Returns a compiled `program(state, data, scaling, teacher, index [K, B], n, key)` of n ≤ K steps.

  n is not a compile-time constant, so one compilation serves calls of every length; nor are the
  data, their scaling and the teacher's parameters, so it serves every replica. With `one_by_one`
  it always makes one step, without a loop.

  Returns:
    The new state; the sum over steps of the loss of each head `[H]`; and for each head the step at
    which its loss first was not finite, or −1.
  """

  def view(data, scaling, teacher, index_B, key):
    """A batch as the network reads it; a teacher at hand predicts on just what its student sees."""
    batch = take(data, index_B)
    batch = augment(key, {**batch, 'x': scale_inputs(scaling, batch['x'])})
    return batch if teach is None else {**batch, 'teacher': teach(teacher, batch['x'])}

  @functools.partial(jax.jit, donate_argnums=0)
  def program(state, data, scaling, teacher, index_KxB, n, key):
    augment_key, step_key = jax.random.split(key)

    def body(i, carry):
      state, total_H, bad_H = carry
      batch = view(data, scaling, teacher, index_KxB[i], jax.random.fold_in(augment_key, state.step))
      new, losses_H = step(state, batch, step_key)
      bad_H = jnp.where((bad_H < 0) & ~jnp.isfinite(losses_H), state.step, bad_H)
      return new, total_H + losses_H, bad_H

    start = (state, jnp.zeros(heads), jnp.full(heads, -1))
    return body(0, start) if one_by_one else jax.lax.fori_loop(0, n, body, start)

  return program


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
  """Steps in so many passes over the data."""
  return max(1, round(epochs * examples / batch_size))


def fit(
  step: Callable,
  state: State,
  feed: Feed,
  scaling: Scaling,
  *,
  seed: tuple[int, ...],
  key: jax.Array,
  steps: int,
  batch_size: int,
  heads: int,
  augment: Augmentation = lambda key, batch: batch,
  teach: Callable | None = None,
  teacher: Tree = (),
  one_by_one: bool = False,
  progress: Callable[[int, float], None] = lambda step, loss: None,
  save: Callable[[State], None] = lambda state: None,
  save_every: float = float('inf'),
) -> State:
  """Trains from `state.step` to `steps`. The loop of every teacher and every student.

  One call of the compiled program makes as many steps as fit in half a second; what a call found is
  read while the next one runs. How steps are grouped into calls changes no result.

  Args:
    step: From `make_step`.
    state: Where to start; donated.
    feed: The examples.
    scaling: Of x.
    seed: Decides the order of the examples.
    key: Decides everything else that is random.
    steps: Step to end at.
    batch_size: Examples in a step.
    heads: Number of heads that the step reports losses of.
    augment: `(key, batch) -> batch` on scaled inputs, with another key at each step.
    teach: `(teacher, x) -> [M, B, C]`, for students whose teacher predicts in the same step.
    teacher: What `teach` reads, such as the members' parameters.
    one_by_one: Whether each call makes one step only, see `stages.unrolled`.
    progress: Called now and then with the step and the mean loss.
    save: Called with the state about every `save_every` seconds, never with one that is not finite.
    save_every: Seconds between saves.

  Raises:
    UserError: Where a loss is not finite, naming the step and the head.
  """
  program = make_program(step, heads, augment, teach, one_by_one)
  at_once = 1 if one_by_one else min(steps, MAX_STEPS_PER_CALL, feed.at_once)
  index = np.zeros((at_once, batch_size), np.int32)
  now, n, pending = int(state.step), 1, None
  batches = feed.begin(seed, now, steps, batch_size)
  saved = read = time.monotonic()

  def finish(pending):
    at, count, total_H, bad_H = pending
    check_finite(np.asarray(bad_H))
    progress(at, float(np.mean(total_H)) / count)

  while now < steps:
    n = min(n, steps - now)
    data, index[:n] = batches(now, n)
    state, total_H, bad_H = program(state, data, scaling, teacher, jnp.array(index), n, key)
    now += n
    if pending:
      finish(pending)
    pending = (now, n, total_H, bad_H)
    elapsed, read = time.monotonic() - read, time.monotonic()
    n = min(max(1, min(int(n * SECONDS_PER_CALL / elapsed), 4 * n)), len(index))
    if read - saved > save_every:
      check_finite(np.asarray(bad_H))
      save(state)
      saved = time.monotonic()
  if pending:
    finish(pending)
  return state


def check_finite(bad_H: np.ndarray) -> None:
  """Raises a `UserError` if any head's loss was not finite; `bad_H` is the first such step or −1."""
  if np.any(bad_H >= 0):
    head = int(np.argmin(np.where(bad_H >= 0, bad_H, np.iinfo(bad_H.dtype).max)))
    raise UserError(
      f'the loss is not finite at step {bad_H[head]} (head or member {head}): '
      'lower the learning rate, or look at the data'
    )
