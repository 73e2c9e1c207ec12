"""What `test_processes` starts in each process: a stream and arrays, on every kind of mesh, against one device."""

from helpers import fit as trained, no_scaling
import jax
from jax.experimental import multihost_utils
import numpy as np

from hydra_jax.devices import processes
from hydra_jax.devices.layout import SINGLE_DEVICE, MeshShape, make_layout
from hydra_jax.maths import losses
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp
from hydra_jax.training import batches

N, C, H, B, STEPS = 60, 3, 8, 16, 20
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, 5)).astype(np.float32), RANDOM.integers(C, size=N).astype(np.int32)


def fit(layout, source):
  label = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  state = trained(cut.multi_head(mlp(C, (8,)), 0, H), label, source, steps=STEPS, batch_size=B, layout=layout)
  return [whole(leaf) for leaf in jax.tree.leaves(state.params)]


def whole(leaf):
  here = leaf.is_fully_addressable or leaf.is_fully_replicated
  return np.asarray(leaf if here else multihost_utils.process_allgather(leaf, tiled=True))


def main():
  processes.join()
  rows = []

  def read(row, random):
    rows.append(row)
    return {'x': X[row], 'y': Y[row]}

  arrays = batches.resident([{'x': X, 'y': Y}], no_scaling())
  alone = fit(SINGLE_DEVICE, arrays)
  for mode, shape in (
    ('shard_map', (4, 1, 1)),
    ('shard_map', (2, 2, 1)),
    ('shard_map', (1, 4, 1)),
    ('pmap', (4, 1, 1)),
  ):
    layout = make_layout(mode, MeshShape(*shape))
    for source in (arrays, batches.streamed(N, X.shape[1:], read, no_scaling())):
      rows.clear()
      for found, expected in zip(fit(layout, source), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Half of the examples of every step, but all where both processes have heads of the same examples.
    assert len(rows) == STEPS * B // (1 if shape[0] == 1 else 2), (mode, shape, len(rows))
  print('all the same')


main()
