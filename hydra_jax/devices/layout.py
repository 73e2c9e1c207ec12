"""Where arrays lie on many devices, and how a function is compiled for them.

The same function runs on one device, under `jax.shard_map` over a mesh, and under `jax.pmap`. A layout knows axes and
specs, and nothing of what it spreads. The axes of a mesh are `data` (batches), `head` (what lies above the cut) and
`copy` (devices that do the same work).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import numpy as np

MODES = ('shard_map', 'pmap')

Tree = Any


class MeshShape(NamedTuple):
  """Devices along each axis of a mesh; those along `copy` do the same."""

  data: int = 1
  head: int = 1
  copy: int = 1


EVERYWHERE = P(MeshShape._fields)  # another value on every device


@dataclass(frozen=True)
class Layout:
  """One device. Subclasses spread the work over several.

  A program carries a state from call to call, which is donated, and reads inputs. `specs` say over which axes of the
  mesh the axes of each array are spread, as those of `jax.shard_map`.
  """

  @property
  def shape(self) -> MeshShape:
    """Devices along each axis."""
    return MeshShape()

  def put(self, tree: Tree, specs: Tree) -> Tree:
    """A carried state as a program takes it.

    All arrays are committed to the device. Otherwise the first call would get uncommitted arrays and the second call
    committed ones, and JAX would compile twice.
    """
    del specs
    return jax.device_put(tree, jax.local_devices()[0])

  def plain(self, tree: Tree) -> Tree:
    """A carried state as it is saved: global arrays."""
    return tree

  def replicate(self, tree: Tree) -> Tree:
    """Arrays that every device reads as a whole."""
    return jax.tree.map(jnp.asarray, tree)

  def spread(self, tree: Tree, specs: Tree) -> Tree:
    """Arrays that are read only."""
    del specs
    return self.replicate(tree)

  def rows(self, batch_size: int) -> np.ndarray:
    """Rows of each batch that the devices of this process read."""
    return np.arange(batch_size)

  def own_rows(self, batch_size: int) -> np.ndarray:
    """For each row of a batch its place on the device that holds it, `[B]`."""
    devices = self.shape.data
    return np.tile(np.arange(batch_size // devices, dtype=np.int32), devices)

  def join(self, tree: Tree, rows: np.ndarray, batch_size: int) -> Tree:
    """One batch `[1, B, …]` from arrays `[1, len(rows), …]` of the `rows` that each process has read."""
    del rows, batch_size
    return tree

  def index(self, index: np.ndarray) -> np.ndarray:
    """Rows of batches `[R, K, B]`, the same in all processes, as a program takes them with the spec of axis 2, data."""
    return index

  def vote(self, vote: np.ndarray) -> Any:
    """What this process says, `[V]`, as a program takes it with the spec `EVERYWHERE`."""
    return vote

  def compile(self, f: Callable, in_specs: tuple[Tree, Tree], out_specs: tuple[Tree, Tree], options: Mapping[str, str]):
    """Compiles `f(carried, inputs) -> (carried, found)`; what is found must be the same on all devices.

    Args:
      f: The function of one device.
      in_specs: Specs of both arguments.
      out_specs: Specs of both results.
      options: Compiler options of XLA.

    Returns:
      The compiled function. The first argument is donated.
    """
    del in_specs, out_specs
    return jax.jit(f, donate_argnums=0, compiler_options=dict(options))


@dataclass(frozen=True)
class MeshLayout(Layout):
  """Many devices under `jax.shard_map`."""

  mesh: Mesh

  @property
  def shape(self) -> MeshShape:
    return MeshShape(**self.mesh.shape)

  def put(self, tree: Tree, specs: Tree) -> Tree:
    return self.spread(tree, specs)

  def replicate(self, tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: self._place(leaf, P()), tree)

  def spread(self, tree: Tree, specs: Tree) -> Tree:
    return jax.tree.map(self._place, tree, specs)

  def _place(self, leaf: Any, spec: P) -> jax.Array:
    sharding = NamedSharding(self.mesh, spec)
    if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
      return leaf
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)  # the same in all processes
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

  def rows(self, batch_size: int) -> np.ndarray:
    sharding = NamedSharding(self.mesh, P('data'))
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))

  def join(self, tree: Tree, rows: np.ndarray, batch_size: int) -> Tree:
    sharding = NamedSharding(self.mesh, P(None, 'data'))

    def join_leaf(leaf):
      where = lambda index: leaf[:, np.searchsorted(rows, np.arange(batch_size)[index[1]])]
      return jax.make_array_from_callback((1, batch_size, *leaf.shape[2:]), sharding, where)

    return jax.tree.map(join_leaf, tree)

  def vote(self, vote: np.ndarray) -> Any:
    sharding = NamedSharding(self.mesh, EVERYWHERE)
    return jax.make_array_from_callback((self.mesh.size * len(vote),), sharding, lambda _: vote)

  def compile(self, f: Callable, in_specs: tuple[Tree, Tree], out_specs: tuple[Tree, Tree], options: Mapping[str, str]):
    mapped = jax.shard_map(f, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=0, compiler_options=dict(options))


@dataclass(frozen=True)
class PmapLayout(MeshLayout):
  """Many devices along `data` under `jax.pmap`.

  A carried state has a copy for each device along a new first axis. An axis that is spread becomes two: devices of
  this process, and what each of them has.
  """

  @property
  def _here(self) -> int:
    return self.mesh.local_mesh.size

  def put(self, tree: Tree, specs: Tree) -> Tree:
    del specs
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self._here, *np.shape(leaf))), tree)

  def plain(self, tree: Tree) -> Tree:
    first = lambda leaf: leaf.addressable_data(0)[0] if isinstance(leaf, jax.Array) else jnp.asarray(leaf[0])
    one = jax.tree.map(first, tree)
    return self.replicate(one) if jax.process_count() > 1 else one

  def join(self, tree: Tree, rows: np.ndarray, batch_size: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf.reshape(1, self._here, -1, *leaf.shape[2:]), tree)

  def index(self, index: np.ndarray) -> np.ndarray:
    shares = np.reshape(index, (*index.shape[:2], self.shape.data, -1))
    mine = [i for i, d in enumerate(self.mesh.devices.flat) if d.process_index == jax.process_index()]
    return np.take(shares, mine, axis=2)

  def vote(self, vote: np.ndarray) -> Any:
    return np.tile(vote, (self._here, 1))

  def compile(self, f: Callable, in_specs: tuple[Tree, Tree], out_specs: tuple[Tree, Tree], options: Mapping[str, str]):
    del out_specs, options  # pmap takes no compiler options
    axes = jax.tree.map(_axis_of_devices, in_specs[1], is_leaf=lambda spec: isinstance(spec, P))
    mapped = jax.pmap(f, 'data', in_axes=(0, axes), donate_argnums=0, devices=tuple(self.mesh.devices.flat))

    def call(carried, inputs):
      carried, found = mapped(carried, inputs)
      return carried, jax.tree.map(lambda leaf: leaf[0], found)

    return call


def _axis_of_devices(spec: P) -> int | None:
  """The axis of an array that holds the devices, after it became two; None where every device reads all."""
  spread = [axis for axis, names in enumerate(spec) if names is not None and 'data' in names]
  return spread[0] if spread else None


SINGLE_DEVICE = Layout()


@functools.cache
def make_layout(mode: str, shape: MeshShape) -> Layout:
  """The layout on the devices of all processes, of which the mesh has as many.

  Args:
    mode: One of `MODES`; makes no difference to one device.
    shape: Of the mesh.
  """
  if jax.device_count() == 1:
    return SINGLE_DEVICE
  mesh = Mesh(mesh_utils.create_device_mesh(shape), MeshShape._fields)
  return PmapLayout(mesh) if mode == 'pmap' else MeshLayout(mesh)
