"""Changed rows of a table have values of their columns, and about as many of others as is said."""

import numpy as np
import pytest

from hydra_jax.estimators import swaps


def test_values_stay_in_their_columns_and_a_share_is_swapped(random):
  x = random.normal(size=(400, 12))
  found = swaps.swapped(x, copies=5, seed=(3,))
  for column in range(12):
    assert np.isin(found[:, column], x[:, column]).all()
  changed = (found != np.tile(x, (5, 1))).mean(axis=1)
  assert changed.mean() == pytest.approx(swaps.MOST_SWAPPED / 2, rel=0.05)
  assert changed.max() > 0.4 and (changed == 0).mean() > 0.05  # the share differs from row to row


def test_columns_are_swapped_one_by_one(random):
  """A row takes values of several other rows: swapped columns are independent."""
  x = np.arange(1000)[:, None] * np.ones(2)
  found = swaps.swapped(x, copies=20, seed=(0,))
  both = found[(found != np.tile(x, (20, 1))).all(axis=1)]
  assert len(both) > 300
  assert abs(np.corrcoef(both.T)[0, 1]) < 0.2


def test_it_is_a_function_of_the_seed():
  x = np.random.default_rng(0).normal(size=(50, 4))
  np.testing.assert_array_equal(swaps.swapped(x, 2, (1, 2)), swaps.swapped(x, 2, (1, 2)))
  assert not np.array_equal(swaps.swapped(x, 2, (1, 2)), swaps.swapped(x, 2, (1, 3)))
  assert swaps.swapped(x, 0, (1,)).shape == (0, 4)
