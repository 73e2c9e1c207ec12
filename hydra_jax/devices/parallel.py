"""One step on many devices: their mesh, where arrays lie, and what is refused.

The same step runs on one device, under `jax.shard_map` over a mesh with the axes `data` and `head`, and under
`jax.pmap` over `data`. Batches are spread over `data`, what lies above the cut over `head`.
"""

from collections.abc import Callable, Mapping
import functools
import math
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.methods.base import Phase
from hydra_jax.nets.cut import Network, belongs_to_heads
from hydra_jax.nets.stages import Tree

MODES = ('shard_map', 'pmap')


class Program(NamedTuple):
  """A compiled function, `call`, and `lower` as that of what `jax.jit` returns."""

  call: Callable
  lower: Callable

  def __call__(self, *arguments: Any) -> Any:
    return self.call(*arguments)


class Layout(NamedTuple):
  """How one phase of training is spread.

  Attributes:
    mode: One of `MODES`; makes no difference to one device.
    mesh: Axes `data`, `head` and `copy`, see `Shape`; None on one device.
  """

  mode: str = 'shard_map'
  mesh: Mesh | None = None

  @property
  def is_pmap(self) -> bool:
    return self.mesh is not None and self.mode == 'pmap'

  def splits(self, network: Network) -> bool:
    """Whether the heads of a network can be spread as they are."""
    return self.mesh is not None and can_split(network) and len(network.heads) % self.mesh.shape['head'] == 0

  def specs(self, tree: Tree, replicas: int = 0) -> Tree:
    """Which axes of each leaf are spread: that of the heads, after that of replicas where there are any."""
    lead = (None,) * bool(replicas)
    return jax.tree_util.tree_map_with_path(lambda path, _: P(*lead, 'head') if belongs_to_heads(path) else P(), tree)

  def put(self, state: Tree, replicas: int = 0) -> Tree:
    """A state as a program takes it."""
    if self.mesh is None:
      # Parameters that were restored are committed to the device, and what a program returns is so if any of its
      # arguments is: all of it from the start, or the second call compiles once more.
      return jax.device_put(state, jax.local_devices()[0])
    if self.is_pmap:
      count = self.mesh.local_mesh.size
      return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *np.shape(leaf))), state)
    return jax.tree.map(self._put, state, self.specs(state, replicas))

  def plain(self, state: Tree) -> Tree:
    """A state as it is saved: global arrays."""
    if not self.is_pmap:
      return state
    one = lambda leaf: leaf.addressable_data(0)[0] if isinstance(leaf, jax.Array) else jnp.asarray(leaf[0])
    first = jax.tree.map(one, state)
    return self.whole(first) if jax.process_count() > 1 else first

  def whole(self, tree: Tree) -> Tree:
    """Arrays that every device reads all of."""
    if self.mesh is None:
      return jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda leaf: self._put(leaf, P()), tree)

  def spread(self, tree: Tree) -> Tree:
    """Arrays with a head axis, such as a teacher's parameters."""
    return tree if self.mesh is None else jax.tree.map(self._put, tree, self.specs(tree))

  def _put(self, leaf, spec: P) -> jax.Array:
    assert self.mesh is not None
    sharding = NamedSharding(self.mesh, spec)
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
      return leaf
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)  # the same in all processes
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  def rows(self, batch_size: int) -> np.ndarray:
    """Rows of each batch that this process reads, where it reads only its own."""
    if self.mesh is None:
      return np.arange(batch_size)
    sharding = NamedSharding(self.mesh, P('data'))
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))

  def join(self, tree: Tree, rows: np.ndarray, batch_size: int) -> Tree:
    """Batches of all processes, from arrays of this one's `rows`, as one array each."""
    if self.mesh is None:
      return tree
    if self.is_pmap:
      here = self.mesh.local_mesh.size
      return jax.tree.map(lambda leaf: leaf.reshape(here, -1, *leaf.shape[1:]), tree)
    sharding = NamedSharding(self.mesh, P('data'))

    def one(leaf):
      where = lambda index: leaf[np.searchsorted(rows, np.arange(batch_size)[index[0]])]
      return jax.make_array_from_callback((batch_size, *leaf.shape[1:]), sharding, where)

    return jax.tree.map(one, tree)

  def own_rows(self, batch_size: int) -> np.ndarray:
    """Indices `[1, B]` into arrays that hold just the rows of each device."""
    devices = 1 if self.mesh is None else self.mesh.shape['data']
    return np.tile(np.arange(batch_size // devices, dtype=np.int32), devices)[None]

  def votes(self, vote: np.ndarray) -> np.ndarray | jax.Array:
    """What this process says, `[V]`, on each of its devices."""
    if self.mesh is None:
      return vote
    if self.is_pmap:
      return np.tile(vote, (self.mesh.local_mesh.size, 1))
    sharding = NamedSharding(self.mesh, P(Shape._fields))
    shape = (self.mesh.size * len(vote),)
    return jax.make_array_from_callback(shape, sharding, lambda _: vote)

  def compile(
    self,
    train: Callable,
    state: Tree,
    *,
    replicas: int,
    streams: bool,
    teacher: Tree,
    spread_teacher: bool,
    options: Mapping[str, str],
  ) -> 'Program | Callable':
    """Compiles `train(state, data, scaling, teacher, index, n, key, vote) -> (state, found)`, for these devices.

    What is found is the same on all of them. The state is donated.
    """
    jitted = functools.partial(jax.jit, donate_argnums=0, compiler_options=options)
    if self.mesh is None:
      return jitted(train)
    at = 1 + bool(replicas)  # axis of the batch, or of the devices that share it
    data = 'data' if streams else None
    if self.is_pmap:
      share = lambda index: np.reshape(index, (*index.shape[:at], self.mesh.shape['data'], -1))
      mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == jax.process_index()]
      axes = (0, 0 if streams else None, None, None, at, None, None, 0)
      # pmap takes no compiler options
      f = jax.pmap(train, 'data', in_axes=axes, donate_argnums=0, devices=tuple(self.mesh.devices.flat))
      first = lambda state, found: (state, jax.tree.map(lambda leaf: leaf[0], found))
      return lambda state, data, scaling, teacher, index, n, key, vote: first(
        *f(state, data, scaling, teacher, np.take(share(index), mine, axis=at), n, key, vote)
      )
    specs = self.specs(state, replicas)
    inputs = (
      specs,
      P(data),
      P(),
      self.specs(teacher) if spread_teacher else P(),
      P(*(None,) * at, 'data'),
      P(),
      P(),
      P(Shape._fields),
    )

    def training(state, data, scaling, teacher, index, n, key, vote):
      return train(state, data, scaling, teacher, index, n, jax.random.wrap_key_data(key), vote)

    f = jitted(jax.shard_map(training, mesh=self.mesh, in_specs=inputs, out_specs=(specs, P()), check_vma=False))
    # A key is local to its process, and its numbers are not.
    numbers = lambda *given: (*given[:-2], np.asarray(jax.random.key_data(given[-2])), given[-1])
    return Program(lambda *given: f(*numbers(*given)), lambda *given: f.lower(*numbers(*given)))


ALONE = Layout()


def can_split(network: Network) -> bool:
  """Whether heads of a network can be trained on different devices."""
  return network.parts is not None and len(network.heads) > 1


def shape(settings, devices: int) -> tuple[int, int]:
  """Devices along `data` and `head`, as `config.parallel` says, -1 being the rest.

  Raises:
    UserError: Where the mesh does not fit the devices, with what would.
  """
  data, head = settings.mesh.data, settings.mesh.head
  if settings.mode == 'pmap' and head != 1:
    raise UserError('config.parallel.mode=pmap spreads batches alone: set config.parallel.mesh.head to 1')
  if data == -1 and head == -1:
    raise UserError('config.parallel.mesh: one of data and head can be -1, the rest; set the other')
  given = head if data == -1 else data
  if -1 in (data, head):
    if devices % given:
      raise UserError(
        f'config.parallel.mesh has an axis of {given}, and there are {devices} devices: '
        f'set it to one of {_divisors(devices)}'
      )
    data, head = (devices // given if axis == -1 else axis for axis in (data, head))
  if data * head != devices:
    raise UserError(
      f'config.parallel.mesh is data={data} by head={head}, and there are {devices} devices: '
      'set one of them to -1, the rest'
    )
  return data, head


class Shape(NamedTuple):
  """Devices along each axis of a mesh; those along `copy` do the same."""

  data: int
  head: int
  copy: int


def arranged(settings, devices: int, phase: Phase, batch_size: int, what: str) -> Shape:
  """The mesh of one phase.

  One network, members that share kernels, and heads that are drawn anew at each step are not spread over `head`: as
  many devices as divide the batch lie along `data`.

  Raises:
    UserError: Where a batch or heads do not divide, with the legal numbers.
  """
  data, head = shape(settings, devices)
  if batch_size % data:
    near = [data * k for k in (batch_size // data, batch_size // data + 1) if k]
    raise UserError(
      f"'{what}': batch_size={batch_size} does not divide over {data} devices along data: "
      f'set it to {" or ".join(map(str, near))}'
    )
  if phase.heads_per_step or not can_split(phase.network):
    shared = math.gcd(batch_size, devices)
    return Shape(shared, 1, devices // shared)
  heads = len(phase.network.heads)
  if heads % head:
    legal = [k for k in _divisors(heads) if devices % k == 0]
    raise UserError(
      f"'{what}': {heads} heads or members do not divide over config.parallel.mesh.head={head}: "
      f'set that to one of {legal}, or their number to a multiple of {head}'
    )
  return Shape(data, head, 1)


def layout(mode: str, mesh: Shape) -> Layout:
  """The layout on the devices of all processes, of which the mesh has as many."""
  if jax.device_count() == 1:
    return ALONE
  return Layout(mode, Mesh(mesh_utils.create_device_mesh(mesh), Shape._fields))


def _divisors(number: int) -> list[int]:
  return [k for k in range(1, number + 1) if number % k == 0]
