"""Where arrays lie on many devices, and how a function is compiled for them.

The same function runs on one device, under `jax.shard_map` over a mesh, and under `jax.pmap`. A layout knows axes and
specs, and nothing about the arrays. The axes of a mesh are `data` (batches), `head` (heads) and `copy` (devices that do
the same work).
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

from hydra_jax.devices import cpu

MODES = ('shard_map', 'pmap')

Tree = Any


class MeshShape(NamedTuple):
  """Number of devices along each axis of a mesh. Devices along `copy` do the same work."""

  data: int = 1
  head: int = 1
  copy: int = 1


EVERYWHERE = P(MeshShape._fields)  # a different value on every device


@dataclass(frozen=True)
class Layout:
  """One device. Subclasses spread the work over several devices.

  A program carries a state from call to call and reads inputs. The state is donated. Specs are those of
  `jax.shard_map`: they name the axes of the mesh over which the axes of an array are spread.
  """

  @property
  def shape(self) -> MeshShape:
    """Devices along each axis."""
    return MeshShape()

  @property
  def platform(self) -> str:
    """What kind of devices they are, such as `cpu` or `tpu`. All that depends on it is asked of the layout."""
    return jax.default_backend()

  def traced(self, f: Callable) -> Callable:
    """`f`, which knows the platform while it is traced."""

    @functools.wraps(f)  # programs are called by this name
    def on_platform(*arguments):
      with cpu.programs_for(self.platform):
        return f(*arguments)

    return on_platform

  def put(self, tree: Tree, specs: Tree) -> Tree:
    """A carried state as a program takes it.

    All arrays are committed to the device. Otherwise the first call would get uncommitted arrays and the second call
    committed arrays, and JAX would compile twice.

    Args:
      tree: The state, as arrays on the host or on any device.
      specs: A tree of specs of the same structure.
    """
    del specs
    return jax.device_put(tree, jax.local_devices()[0])

  def plain(self, tree: Tree) -> Tree:
    """A carried state as it is saved: global arrays."""
    return tree

  def replicate(self, tree: Tree) -> Tree:
    """Arrays that every device reads as a whole. On CPU, NumPy arrays from `data.arrays.aligned` are not copied."""
    return jax.device_put(tree)

  def spread(self, tree: Tree, specs: Tree) -> Tree:
    """Inputs of a program, which are read only."""
    del specs
    return self.replicate(tree)

  def rows(self, batch_size: int) -> np.ndarray:
    """Rows of each batch that the devices of this process read."""
    return np.arange(batch_size)

  def own_rows(self, batch_size: int) -> np.ndarray:
    """For each row of a batch its index on the device that holds it, `[B]` int32."""
    devices = self.shape.data
    return np.tile(np.arange(batch_size // devices, dtype=np.int32), devices)

  def join(self, tree: Tree, rows: np.ndarray, batch_size: int) -> Tree:
    """One batch from what each process has read.

    Args:
      tree: Arrays `[1, len(rows), …]` of this process.
      rows: The rows of the batch that this process has read.
      batch_size: Rows of the whole batch, B.

    Returns:
      Arrays `[1, B, …]`.
    """
    del rows, batch_size
    return tree

  def index(self, index: np.ndarray) -> np.ndarray:
    """Rows of batches `[R, K, B]` int32, equal in all processes, as a program takes them; their axis 2 is spread."""
    return index

  def vote(self, vote: np.ndarray) -> Any:
    """The vote of this process, `[V]` int32, as a program takes it with the spec `EVERYWHERE`."""
    return vote

  def compile(self, f: Callable, in_specs: tuple[Tree, Tree], out_specs: tuple[Tree, Tree], options: Mapping[str, str]):
    """Compiles `f(carried, inputs) -> (carried, found)`, where `found` must be equal on all devices.

    Args:
      f: The function of one device.
      in_specs: Specs of both arguments.
      out_specs: Specs of both results.
      options: Compiler options of XLA.

    Returns:
      The compiled function. The first argument is donated.
    """
    del in_specs, out_specs
    return jax.jit(self.traced(f), donate_argnums=0, compiler_options=dict(options))


@dataclass(frozen=True)
class MeshLayout(Layout):
  """Many devices under `jax.shard_map`.

  Attributes:
    mesh: Of the devices of all processes, with the axes of `MeshShape`.
  """

  mesh: Mesh

  @property
  def shape(self) -> MeshShape:
    return MeshShape(**self.mesh.shape)

  @property
  def platform(self) -> str:
    return self.mesh.devices.flat[0].platform

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
    value = np.asarray(leaf)  # equal in all processes
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
    mapped = jax.shard_map(self.traced(f), mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=0, compiler_options=dict(options))


@dataclass(frozen=True)
class PmapLayout(MeshLayout):
  """Many devices along `data` under `jax.pmap`.

  A carried state has a copy for each device along a new first axis. An axis that is spread becomes two axes: the
  devices of this process, and the shard of each.
  """

  @property
  def _here(self) -> int:
    return self.mesh.local_mesh.size

  def put(self, tree: Tree, specs: Tree) -> Tree:
    del specs
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self._here, *np.shape(leaf))), tree)

  def plain(self, tree: Tree) -> Tree:
    first = lambda leaf: leaf.addressable_data(0)[0] if isinstance(leaf, jax.Array) else jnp.asarray(leaf[0])
    copy = jax.tree.map(first, tree)
    return self.replicate(copy) if jax.process_count() > 1 else copy

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
    mapped = jax.pmap(
      self.traced(f), 'data', in_axes=(0, axes), donate_argnums=0, devices=tuple(self.mesh.devices.flat)
    )

    def call(carried, inputs):
      carried, found = mapped(carried, inputs)
      return carried, jax.tree.map(lambda leaf: leaf[0], found)

    return call


@dataclass(frozen=True)
class AbsentLayout(MeshLayout):
  """Many devices that are not here, under `jax.shard_map`: a program is lowered for them, and not run.

  What other layouts put on devices is here a shape that says where it would lie.

  Attributes:
    mesh: An `AbstractMesh` with the axes of `MeshShape`.
    kind: Of the devices, `tpu` or `cuda`.

  Example:
    >>> layout = AbsentLayout(jax.sharding.AbstractMesh((64, 4, 1), MeshShape._fields), 'tpu')
    >>> double = layout.compile(lambda x, y: (2 * x, y), (P('data'), P()), (P('data'), P()), {})
    >>> x, y = layout.spread((np.ones(128), np.ones(3)), (P('data'), P()))
    >>> 'tensor<2xf32>' in double.trace(x, y).lower(lowering_platforms=('tpu',)).as_text()
    True
  """

  mesh: Any
  kind: str

  @property
  def platform(self) -> str:
    return self.kind

  def _place(self, leaf: Any, spec: P) -> Any:
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype)
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=NamedSharding(self.mesh, spec))

  def vote(self, vote: np.ndarray) -> Any:
    return self._place(np.tile(vote, self.mesh.size), EVERYWHERE)


def _axis_of_devices(spec: P) -> int | None:
  """The axis of an array that holds the devices, after a spread axis became two; None where all devices read all."""
  spread = [axis for axis, names in enumerate(spec) if names is not None and 'data' in names]
  return spread[0] if spread else None


SINGLE_DEVICE = Layout()


@functools.cache
def make_layout(mode: str, shape: MeshShape) -> Layout:
  """The layout on the devices of all processes.

  Args:
    mode: One of `MODES`. On one device it makes no difference.
    shape: Of the mesh. Its product is the number of devices.

  Example:
    >>> make_layout('shard_map', MeshShape(data=jax.device_count())).shape.data == jax.device_count()
    True
  """
  if jax.device_count() == 1:
    return SINGLE_DEVICE
  mesh = Mesh(mesh_utils.create_device_mesh(shape), MeshShape._fields)
  return PmapLayout(mesh) if mode == 'pmap' else MeshLayout(mesh)
