"""One training step, for teachers and students alike: a pure function of a state and a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hydra_jax.data import Scaling, scale_inputs
from hydra_jax.errors import UserError
from hydra_jax.nets import cut
from hydra_jax.nets.cut import Network
from hydra_jax.nets.stages import Tree
from hydra_jax.training import gradients
from hydra_jax.training.augment import Augmentation

# Keys of augmentations are folded with their position. This number is larger, for the key of the member that is asked.
ASKED = 2**31


class State(NamedTuple):
  """All that changes in training. With the config it is enough to continue.

  States that `loop.fit` takes and returns have a leading axis R of replicas, also for a single replica.

  Attributes:
    step: Number of steps that were made, int32.
    params: Of the network.
    model_state: State of the network, such as batch statistics.
    opt_state: State of the optimizer.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree


@dataclass(frozen=True, kw_only=True)
class OnlineTeacher:
  """A teacher that predicts in the step of its students, on the same augmented inputs.

  Attributes:
    params: What `predict` and `ask` read, such as the parameters of the members, with a leading axis R.
    specs: How the axes of `params` are spread over devices, see `devices.layout`.
    predict: `(params, x [B, …], drawn) -> [M, B, C]`, all members, on every device; where `drawn` `[K]` is not None,
      the members with these indices, `[K, B, C]`.
    ask: `(params, key, x) -> [B, C]`, a member chosen by the key, for augmentations that ask a member.
  """

  params: Tree
  specs: Tree
  predict: Callable[[Tree, jax.Array, jax.Array | None], jax.Array]
  ask: Callable[[Tree, jax.Array, jax.Array], jax.Array] | None = None


@dataclass(frozen=True)
class Draw:
  """Members that are drawn at random in each step: the step learns from these alone.

  Attributes:
    members: Number of members, M.
    count: Number of members that a step draws, K.
    with_heads: Whether head m learns from member m, so that only the heads of the drawn members are computed and
      trained. They report M/K times their loss, and the other heads report 0. So the mean is unbiased.
  """

  members: int
  count: int
  with_heads: bool = False


def draw_of(draws: str, count: int, members: int) -> Draw | None:
  """What a step draws, or None if it learns from all members.

  Args:
    draws: `Phase.draws` of the method.
    count: `members_per_step` in the settings of training.
    members: Of the teacher.

  Raises:
    UserError: The method cannot draw, or there are fewer members.
  """
  if not count:
    return None
  if draws == 'nothing':
    raise UserError('members_per_step: this method reads all members at once: set it to 0')
  if count > members:
    raise UserError(f'members_per_step={count} of {members} members: set it to fewer, or 0 for all')
  return Draw(members, count, draws == 'heads')


def unchanged(key: jax.Array, batch: dict[str, jax.Array], ask: Any = None) -> dict[str, jax.Array]:
  """The augmentation that leaves a batch as it is."""
  del key, ask
  return batch


@dataclass(frozen=True, kw_only=True)
class Job:
  """What is trained, by which loss and rule, and for how many steps.

  Attributes:
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`. The batch has `x` and `y`, for students of members `teacher`
      `[M, B, C]`, and in `done` the share of `steps` that is over. Where outputs are those of some heads only, `heads`
      `[K]` has their indices. Where members are drawn, `teacher` is `[K, B, C]` and `drawn` `[K]` has their indices.
    common: `outputs [H, B, C] -> [H, B, …]`. Its mean over all heads, without a gradient, stands in the batch as
      `common` `[B, …]`, for losses that depend on all heads.
    reduction: How the losses of the heads `[H]` become the number that is minimised.
    optimizer: Rule of the update.
    steps: Number of steps of the whole phase.
    batch_size: Examples in a step, on all devices together.
    penalty: `params -> []`, added to the number that is minimised.
    draw: Members that a step draws; None for all.
    heads_per_chunk: Upper limit on the heads that are computed together. 0 is automatic: all heads, or fewer where
      their outputs are large, or where independent networks do not fit the cache of a CPU.
    augment: `(key, batch, ask) -> batch` on scaled inputs, with another key at each step.
    teacher: A teacher that predicts in the step.
    views: Of each example, with the same keys in all phases, see `training.views`. 0: a new view in each step.
  """

  network: Network
  loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
  reduction: Literal['sum', 'mean']
  optimizer: optax.GradientTransformation
  steps: int
  batch_size: int
  common: Callable[[jax.Array], jax.Array] | None = None
  penalty: Callable[[Tree], jax.Array] | None = None
  draw: Draw | None = None
  heads_per_chunk: int = 0
  augment: Augmentation = unchanged
  teacher: OnlineTeacher | None = None
  views: int = 0

  @property
  def is_independent(self) -> bool:
    """Whether heads share nothing, so that they can be trained group by group."""
    shares = self.network.cut > 0 or self.network.body_and_heads is None or self.draw or self.penalty
    return not shares and self.reduction == 'sum'

  def weights(self, heads: int) -> jax.Array:
    """Weights of the losses of the heads that a step trains, `[heads]` float32."""
    return jnp.full(heads, 1.0 if self.reduction == 'sum' else 1 / heads, jnp.float32)


def init_state(network: Network, optimizer: optax.GradientTransformation, keys: jax.Array, x: Any) -> State:
  """State at step 0 of new networks.

  Args:
    network: The network.
    optimizer: Rule of the update.
    keys: One for each replica, `[R]`.
    x: Example inputs, `[R, B, …]`.
  """
  params, model_state = _compiled(network.init)(keys, x)
  return fresh_state(optimizer, params, model_state)


def fresh_state(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree) -> State:
  """State at step 0 of networks whose parameters and state are given, with a leading axis R."""
  count = len(jax.tree.leaves(params)[0])
  opt_state = _compiled(optimizer.init)(params)
  return State(jnp.zeros(count, jnp.int32), params, model_state, opt_state)


def abstract_state(network: Network, optimizer: optax.GradientTransformation, shape: Sequence[int]) -> State:
  """Shapes of the state at step 0 of one new network, with an axis R of length 1.

  Args:
    network: The network.
    optimizer: Rule of the update.
    shape: Of an input.
  """
  stacked = lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype)
  trees = jax.tree.map(stacked, cut.shapes_of(network, tuple(shape)))
  return jax.eval_shape(functools.partial(fresh_state, optimizer), *trees)


def grown_state(optimizer: optax.GradientTransformation, params: Tree, model_state: Tree, heads: int) -> State:
  """State at step 0 of networks whose heads start as copies of a single head.

  Args:
    optimizer: Rule of the update.
    params: Of networks with one head, with a leading axis R.
    model_state: Of the same networks.
    heads: Number of heads.
  """
  grow = lambda *trees: tuple(cut.grow(tree, heads) for tree in trees)
  return fresh_state(optimizer, *jax.jit(functools.partial(over_replicas, grow))(params, model_state))


@functools.lru_cache(maxsize=64)
def _compiled(f: Callable) -> Callable:
  """`f` over replicas, compiled once for each function."""
  return jax.jit(functools.partial(over_replicas, f))


def over_replicas(f: Callable, *stacked: Tree) -> Tree:
  """Maps `f` over the leading axis R of all leaves of its arguments. Results have this axis too.

  For a single replica the axis is squeezed, because XLA's CPU backend is slow at convolutions that are mapped.

  Example:
    >>> over_replicas(jnp.sum, jnp.ones((2, 3)))
    Array([3., 3.], dtype=float32)
  """
  if len(jax.tree.leaves(stacked)[0]) > 1:
    return jax.vmap(f)(*stacked)
  result = f(*jax.tree.map(lambda leaf: leaf[0], stacked))
  return jax.tree.map(lambda leaf: leaf[None], result)


def train_step(
  job: Job, state: State, data: dict[str, jax.Array], scaling: Scaling, teacher: Tree, index_B: jax.Array, key, heads_K
) -> tuple[State, jax.Array]:
  """One step of one replica.

  Step s uses `fold_in(key, s)`. So the state has no random key.

  Args:
    job: What is trained.
    state: Of all heads, or of those with the indices `heads_K`.
    data: `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`, as stored.
    scaling: Of x.
    teacher: Parameters of the online teacher, or ().
    index_B: Rows of this batch, int32; with views see `batches.batch_indices`.
    key: Of the phase.
    heads_K: See `state`; None for all heads.

  Returns:
    The new state, and the loss of each head `[H]`.
  """
  augment_key, step_key = jax.random.split(key)
  batch = take_rows(data, index_B, job.views)
  batch = {**batch, 'x': scale_inputs(scaling, batch['x'])}
  step_key = jax.random.fold_in(step_key, state.step)
  if job.views:
    batch['view'] = index_B
  else:
    augment_key = jax.random.fold_in(augment_key, state.step)
  ask = None
  if job.teacher and job.teacher.ask:
    ask = functools.partial(job.teacher.ask, teacher, jax.random.fold_in(augment_key, ASKED))
  batch = job.augment(augment_key, batch, ask)
  drawn = None
  if job.draw:
    drawn = jax.random.permutation(jax.random.fold_in(step_key, job.draw.members), job.draw.members)[: job.draw.count]
    batch['drawn'] = drawn
  if job.teacher:
    batch['teacher'] = job.teacher.predict(teacher, batch['x'], drawn)
  elif drawn is not None:
    batch['teacher'] = batch['teacher'][drawn]
  batch = {**batch, 'done': state.step.astype(jnp.float32) / job.steps}
  grads, losses_H, model_state = gradients.of_step(job, state, batch, step_key, heads_K)
  with jax.numpy_dtype_promotion('standard'):  # optax mixes counts and rates; all else here is strict
    updates, opt_state = job.optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return State(state.step + 1, params, model_state, opt_state), losses_H


def key_of_views(key: jax.Array) -> jax.Array:
  """The key of fixed views, from the key of a phase: as `train_step` uses it."""
  return jax.random.split(key)[0]


def take_rows(data: dict[str, jax.Array], index_B: jax.Array, views: int = 0) -> dict[str, jax.Array]:
  """Rows of `{'x': [N, …], 'y': [N, …], 'teacher': [M, N, C]}`. Predictions kept in float16 become float32.

  With views, a row is one of the V · N rows of predictions, and all that is no prediction has a row for each example.

  Example:
    >>> rows = take_rows({'x': jnp.ones((9, 4)), 'teacher': jnp.ones((5, 9, 3), jnp.float16)}, jnp.array([0, 7]))
    >>> rows['x'].shape, rows['teacher'].shape
    ((2, 4), (5, 2, 3))
  """
  example_B = index_B % len(data['x']) if views else index_B
  row = lambda k, v: jnp.take(v, index_B, axis=1) if k == 'teacher' else jnp.take(v, example_B, axis=0)
  rows = {k: row(k, v) for k, v in data.items()}
  return {k: v.astype(jnp.float32) if k == 'teacher' else v for k, v in rows.items()}


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
  """Number of steps in a number of passes over the data, at least 1.

  Example:
    >>> steps_for(epochs=2.5, examples=1000, batch_size=100)
    25
  """
  return max(1, round(epochs * examples / batch_size))
