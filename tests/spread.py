"""What `test_processes` starts in each process: a stream and arrays, on every kind of mesh, against one device."""

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import optax

from hydra_jax.data import Scaling
from hydra_jax.devices import parallel, processes
from hydra_jax.maths import losses
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp
from hydra_jax.training import batches, train

N, C, H, B, STEPS = 60, 3, 8, 16, 20
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, 5)).astype(np.float32), RANDOM.integers(C, size=N).astype(np.int32)
AS_IT_IS = Scaling(*(np.float32([v]) for v in (0, 1, 0, 1)))


def fit(layout, feed):
  network, optimizer = cut.hydra(mlp(C, (8,)), 0, H), optax.adam(1e-2)
  label = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  state = train.fit(
    train.make_step(network, label, jnp.sum, optimizer, STEPS),
    train.init(network, optimizer, jax.random.key(3), jnp.asarray(X[:2])),
    feed,
    AS_IT_IS,
    seed=(0, 1),
    key=jax.random.key(4),
    steps=STEPS,
    batch_size=B,
    layout=layout,
  )
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

  arrays = batches.resident({'x': X, 'y': Y})
  alone = fit(parallel.ALONE, arrays)
  for mode, shape in (
    ('shard_map', (4, 1, 1)),
    ('shard_map', (2, 2, 1)),
    ('shard_map', (1, 4, 1)),
    ('pmap', (4, 1, 1)),
  ):
    layout = parallel.layout(mode, parallel.Shape(*shape))
    for feed in (arrays, batches.streamed(N, read)):
      rows.clear()
      for found, expected in zip(fit(layout, feed), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Half of the examples of every step, but all where both processes have heads of the same examples.
    assert len(rows) == STEPS * B // (1 if shape[0] == 1 else 2), (mode, shape, len(rows))
  print('all the same')


main()
