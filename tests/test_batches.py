"""Batches depend on seed and step alone, wherever the examples are."""

import chex
from helpers import fit as trained, no_scaling, squeeze
import jax
import numpy as np
import pytest

from hydra_jax import UserError
from hydra_jax.data import Scaling, standardised
from hydra_jax.maths import losses
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp
from hydra_jax.training import batches
from hydra_jax.training.step import take_rows

N, F, C, B, STEPS = 23, 4, 3, 6, 12
SEED = (0, 0, 1)
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, F)).astype(np.float32), RANDOM.integers(C, size=N).astype(np.int32)


def read(row, random):
  return {'x': X[row], 'y': Y[row]}


def noisy(row, random):
  return {'x': X[row] + random.normal(size=F).astype(np.float32), 'y': Y[row]}


def streamed(read):
  return batches.streamed(N, (F,), read, no_scaling())


def resident():
  return batches.resident([{'x': X, 'y': Y}], no_scaling())


def shown(source, start=0, stop=STEPS):
  """What each step is shown, as arrays and a stream alike give it."""
  serve = source.begin([SEED], start, stop, B)
  for step in range(start, stop):
    data, index = serve(step, 1)
    yield jax.tree.map(np.asarray, take_rows(squeeze(data), index[0, 0]))


def test_a_stream_shows_what_is_shown_of_arrays():
  chex.assert_trees_all_equal(list(shown(streamed(read))), list(shown(resident())), strict=True)


def test_standardised_inputs_are_not_copied_on_a_cpu():
  host = standardised(Scaling(X.mean(0), X.std(0), np.zeros(1), np.ones(1)), X)
  data, _ = batches.resident([{'x': host, 'y': Y}], no_scaling()).begin([SEED], 0, 1, B)(0, 1)
  assert data['x'].unsafe_buffer_pointer() == host.ctypes.data
  np.testing.assert_array_equal(data['x'][0], host)


def test_a_stream_may_start_at_any_step():
  whole = list(shown(streamed(noisy)))
  for start, stop in ((7, STEPS), (0, 5)):
    chex.assert_trees_all_equal(list(shown(streamed(noisy), start, stop)), whole[start:stop])


def test_every_view_is_another():
  views = np.concatenate([batch['x'] for batch in shown(streamed(noisy))])
  assert len(np.unique(views, axis=0)) == STEPS * B


def fit(source, **kwargs):
  loss = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  return trained(cut.multi_head(mlp(C, (8,)), 0, 2), loss, source, steps=STEPS, batch_size=B, seed=SEED, **kwargs)


def test_training_from_a_stream_gives_what_training_from_arrays_does():
  chex.assert_trees_all_close(fit(streamed(read)).params, fit(resident()).params, rtol=1e-5, atol=1e-6)


def test_continuing_from_a_stream_gives_the_same_bits():
  whole = fit(streamed(noisy))
  middle = fit(streamed(noisy), until=5)
  chex.assert_trees_all_equal(fit(streamed(noisy), state=middle), whole)


def test_an_example_that_cannot_be_read_stops_the_training():
  def broken(row, random):
    if row == 9:
      raise UserError('record 9 is damaged')
    return read(row, random)

  with pytest.raises(UserError, match='record 9'):
    fit(streamed(broken))


def test_a_stream_tells_how_long_it_was_waited_for():
  feed = streamed(read)
  list(shown(feed))
  assert feed.note().startswith('waits for input ') and feed.note().endswith('%')
  assert resident().note() == ''
