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
  network: Network, loss: Callable, objective: Callable, optimizer: optax.GradientTransformation, steps: int
):
  """Returns `step(state, batch, key) -> (state, losses [H])`, pure.

  `batch` holds `x` as the network reads it; `key` is that of the phase, and step s uses
  `fold_in(key, s)`, so that nothing random needs saving. The loss reads the batch, and in
  `batch['done']` the share of all `steps` that is over.
  """

  def step(state: State, batch, key):
    batch = {**batch, 'done': state.step.astype(jnp.float32) / steps}

    def objective_of(params):
      outputs, model_state = network.apply(
        params, state.model_state, batch['x'], jax.random.fold_in(key, state.step), True
      )
      losses_H = jnp.mean(loss(outputs, batch), axis=-1)
      return objective(losses_H), (losses_H, model_state)

    grads, (losses_H, model_state) = jax.grad(objective_of, has_aux=True)(state.params)
    with jax.numpy_dtype_promotion('standard'):  # optax mixes counts and rates; all else here is strict
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, model_state, opt_state), losses_H

  return step


def take(data, index_B: jax.Array):
  """Rows of `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`."""
  return {k: jnp.take(v, index_B, axis=1 if k == 'teacher' else 0) for k, v in data.items()}


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


@functools.lru_cache(maxsize=4)
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


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
  """Steps in so many passes over the data."""
  return max(1, round(epochs * examples / batch_size))


def fit(
  step: Callable,
  state: State,
  data: dict[str, jax.Array],
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
    data: `{'x': [N, …], 'y': [N, …]}`, and `'teacher': [M, N, C]` for students; x as stored, y as
      the network learns it.
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
  index = np.zeros((1 if one_by_one else min(steps, MAX_STEPS_PER_CALL), batch_size), np.int32)
  examples = len(data['x'])
  now, n, pending = int(state.step), 1, None
  saved = read = time.monotonic()

  def finish(pending):
    at, count, total_H, bad_H = pending
    check_finite(np.asarray(bad_H))
    progress(at, float(np.mean(total_H)) / count)

  while now < steps:
    n = min(n, steps - now)
    index[:n] = batch_indices(seed, now, n, examples, batch_size)
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
