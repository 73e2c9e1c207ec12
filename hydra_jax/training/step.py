"""One training step, for teachers and students alike: a pure function of a state and a batch."""

from collections.abc import Callable
from dataclasses import dataclass
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hydra_jax.data import Scaling, scale_inputs
from hydra_jax.nets import cut
from hydra_jax.nets.cut import Network
from hydra_jax.nets.stages import Tree
from hydra_jax.training import gradients
from hydra_jax.training.augment import Augmentation

# Separates the key that decides which member is asked from those of augmentations, which are fewer.
ASKED = 2**31


class State(NamedTuple):
  """All that changes in training; with the config, all that is needed to continue.

  Where replicas are trained together, and in everything that `loop.fit` takes and returns, every leaf has a leading
  axis R, also for a single replica.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree


@dataclass(frozen=True, kw_only=True)
class OnlineTeacher:
  """A teacher that predicts in the step of its students, on exactly the inputs that they see.

  Attributes:
    params: What `predict` and `ask` read, such as the members' parameters, with a leading axis R.
    specs: How the axes of `params` are spread over devices, see `devices.layout`.
    predict: `(params, x [B, …]) -> [M, B, C]`, all members, on every device.
    ask: `(params, key, x) -> [B, C]`, one member that the key decides, for augmentations that ask it.
  """

  params: Tree
  specs: Tree
  predict: Callable[[Tree, jax.Array], jax.Array]
  ask: Callable[[Tree, jax.Array, jax.Array], jax.Array] | None = None


def unchanged(key: jax.Array, batch: dict[str, jax.Array], ask: Any = None) -> dict[str, jax.Array]:
  """The augmentation that leaves a batch as it is."""
  del key, ask
  return batch


@dataclass(frozen=True, kw_only=True)
class Job:
  """What is trained, on what, and how long.

  Attributes:
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`. The batch has `x` and `y`, maybe `teacher` [M, B, C], and in `done`
      the share of all `steps` that is over. Outputs of some heads only are those of the indices in `heads` [K].
    reduction: The loss of each head `[H]` is reduced by this to the number that is minimised.
    optimizer: Rule of the update.
    steps: Of the whole phase.
    batch_size: Examples in a step, on all devices together.
    penalty: Added to that number, `params -> ()`.
    heads_per_step: If K > 0, each step trains K heads chosen at random. The other heads report the loss 0, and these
      report H/K times their loss, so that the mean is unbiased.
    heads_per_chunk: Upper limit on the heads that are computed together. 0 is automatic: all heads, or fewer where
      their outputs are large, or where independent networks do not fit the cache of a CPU.
    augment: `(key, batch, ask) -> batch` on scaled inputs, with another key at each step.
    teacher: Of students whose teacher predicts in the same step.
  """

  network: Network
  loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
  reduction: Literal['sum', 'mean']
  optimizer: optax.GradientTransformation
  steps: int
  batch_size: int
  penalty: Callable[[Tree], jax.Array] | None = None
  heads_per_step: int = 0
  heads_per_chunk: int = 0
  augment: Augmentation = unchanged
  teacher: OnlineTeacher | None = None

  @property
  def is_independent(self) -> bool:
    """Whether heads share nothing, so that they may be trained one group after another."""
    shares = self.network.cut > 0 or self.network.body_and_heads is None or self.heads_per_step or self.penalty
    return not shares and self.reduction == 'sum'

  def weights(self, heads: int) -> jax.Array:
    """Weight of the loss of each of the heads that a step trains, `[heads]`."""
    return jnp.full(heads, 1.0 if self.reduction == 'sum' else 1 / heads, jnp.float32)


def init_state(network: Network, optimizer: optax.GradientTransformation, keys: jax.Array, x: Any) -> State:
  """State of new networks, one for each of the keys `[R]`; x are example inputs `[R, B, …]`."""
  params, model_state = _compiled(network.init)(keys, x)
  return fresh_state(optimizer, params, model_state)


def fresh_state(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree) -> State:
  """State at step 0 of networks that have parameters already, with a leading axis R."""
  count = len(jax.tree.leaves(params)[0])
  opt_state = _compiled(optimizer.init)(params)
  return State(jnp.zeros(count, jnp.int32), params, model_state, opt_state)


def grown_state(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree, heads: int) -> State:
  """State at step 0 of networks whose heads start as copies of the one head of others, with a leading axis R."""
  grow = lambda *trees: tuple(cut.grow(tree, heads) for tree in trees)
  return fresh_state(optimizer, *over_replicas(grow, params, model_state))


@functools.lru_cache(maxsize=64)
def _compiled(f: Callable) -> Callable:
  """`f` over replicas, compiled once for each function."""
  return jax.jit(functools.partial(over_replicas, f))


def over_replicas(f: Callable, *stacked: Tree) -> Tree:
  """Maps `f` over the leading axis R of all leaves of its arguments; results have that axis too.

  A single replica is squeezed and not mapped: XLA's CPU backend is slow at convolutions that are mapped.
  """
  if len(jax.tree.leaves(stacked)[0]) > 1:
    return jax.vmap(f)(*stacked)
  result = f(*jax.tree.map(lambda leaf: leaf[0], stacked))
  return jax.tree.map(lambda leaf: leaf[None], result)


def train_step(
  job: Job, state: State, data: dict[str, jax.Array], scaling: Scaling, teacher: Tree, index_B: jax.Array, key, heads_K
) -> tuple[State, jax.Array]:
  """One step of one replica: the new state, and the loss of each head.

  Args:
    job: What is trained.
    state: Of all heads, or of those of some indices. Step s uses `fold_in(key, s)`, so that nothing random is saved.
    data: `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`, as stored.
    scaling: Of x.
    teacher: Parameters of the online teacher, if there is one.
    index_B: Rows of this batch.
    key: Of the phase.
    heads_K: Indices of the heads whose state is given, or None for all.
  """
  augment_key, step_key = jax.random.split(key)
  batch = take_rows(data, index_B)
  batch = {**batch, 'x': scale_inputs(scaling, batch['x'])}
  augment_key = jax.random.fold_in(augment_key, state.step)
  ask = None
  if job.teacher and job.teacher.ask:
    ask = functools.partial(job.teacher.ask, teacher, jax.random.fold_in(augment_key, ASKED))
  batch = job.augment(augment_key, batch, ask)
  if job.teacher:
    batch = {**batch, 'teacher': job.teacher.predict(teacher, batch['x'])}
  batch = {**batch, 'done': state.step.astype(jnp.float32) / job.steps}
  grads, losses_H, model_state = gradients.of_step(job, state, batch, jax.random.fold_in(step_key, state.step), heads_K)
  with jax.numpy_dtype_promotion('standard'):  # optax mixes counts and rates; all else here is strict
    updates, opt_state = job.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return State(state.step + 1, params, model_state, opt_state), losses_H


def take_rows(data: dict[str, jax.Array], index_B: jax.Array) -> dict[str, jax.Array]:
  """Rows of `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`; a teacher kept in float16 is float32 again."""
  rows = {k: jnp.take(v, index_B, axis=1 if k == 'teacher' else 0) for k, v in data.items()}
  return {k: v.astype(jnp.float32) if k == 'teacher' else v for k, v in rows.items()}


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
  """Number of steps in a number of passes over the data."""
  return max(1, round(epochs * examples / batch_size))
