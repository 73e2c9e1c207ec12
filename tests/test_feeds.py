"""Feeds: batches depend on seed and step alone, wherever the examples are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hydra_jax import UserError
from hydra_jax.data import Scaling
from hydra_jax.maths import losses
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp
from hydra_jax.training import batches, train

N, F, C, B, STEPS = 23, 4, 3, 6, 12
SEED = (0, 0, 1)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, F)).astype(np.float32), RANDOM.integers(C, size=N).astype(np.int32)


def read(row, random):
  return {'x': X[row], 'y': Y[row]}


def noisy(row, random):
  return {'x': X[row] + random.normal(size=F).astype(np.float32), 'y': Y[row]}


def shown(feed, start=0, stop=STEPS):
  """What each step is shown, as a resident feed and a stream alike give it."""
  shown = feed.begin(SEED, start, stop, B)
  for step in range(start, stop):
    data, index = shown(step, 1)
    yield jax.tree.map(np.asarray, train.take(data, index[0]))


def test_a_stream_shows_what_is_shown_of_arrays():
  chex.assert_trees_all_equal(
    list(shown(batches.streamed(N, read))), list(shown(batches.resident({'x': X, 'y': Y}))), strict=True
  )


def test_a_stream_may_start_at_any_step():
  whole = list(shown(batches.streamed(N, noisy)))
  for start, stop in ((7, STEPS), (0, 5)):
    chex.assert_trees_all_equal(list(shown(batches.streamed(N, noisy), start, stop)), whole[start:stop])


def test_every_view_is_another():
  views = np.concatenate([batch['x'] for batch in shown(batches.streamed(N, noisy))])
  assert len(np.unique(views, axis=0)) == STEPS * B


def fit(feed, state=None, steps=STEPS, **kwargs):
  network, optimizer = cut.hydra(mlp(C, (8,)), 0, 2), optax.adam(1e-2)
  loss = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  return train.fit(
    train.make_step(network, loss, jnp.sum, optimizer, STEPS),
    state or train.init(network, optimizer, jax.random.key(3), X[:2]),
    feed,
    Scaling(*(np.float32([v]) for v in (0, 1, 0, 1))),
    seed=SEED,
    key=jax.random.key(4),
    steps=steps,
    batch_size=B,
    **kwargs,
  )


def test_training_from_a_stream_gives_what_training_from_arrays_does():
  chex.assert_trees_all_close(
    fit(batches.streamed(N, read)).params, fit(batches.resident({'x': X, 'y': Y})).params, rtol=1e-5, atol=1e-6
  )


def test_continuing_from_a_stream_gives_the_same_bits():
  whole = fit(batches.streamed(N, noisy))
  middle = fit(batches.streamed(N, noisy), steps=5)
  chex.assert_trees_all_equal(fit(batches.streamed(N, noisy), middle), whole)


def test_an_example_that_cannot_be_read_stops_the_training():
  def broken(row, random):
    if row == 9:
      raise UserError('record 9 is damaged')
    return read(row, random)

  with pytest.raises(UserError, match='record 9'):
    fit(batches.streamed(N, broken))


def test_a_stream_tells_how_long_it_was_waited_for():
  feed = batches.streamed(N, read)
  list(shown(feed))
  assert feed.note().startswith('waits for input ') and feed.note().endswith('%')
  assert batches.resident({'x': X, 'y': Y}).note() == ''
