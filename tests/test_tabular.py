"""The network for tables: its formula, its quantiles, its cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import KBinsDiscretizer

from hydra_jax import UserError
from hydra_jax.nets import cut
from hydra_jax.nets.tabular import Bins, bin_edges, tabular

X = np.random.default_rng(0).gamma(2, size=(200, 3)).astype(np.float32)


def test_edges_are_quantiles():
  by_sklearn = KBinsDiscretizer(6, strategy='quantile', quantile_method='linear', subsample=None).fit(X).bin_edges_
  np.testing.assert_allclose(bin_edges(X, 6), np.stack(by_sklearn), rtol=1e-5)


def test_the_encoding_is_piecewise_linear():
  """By interpolation: bin k rises from −½ to ½ between its two edges."""
  module = Bins(5)
  state = module.init(jax.random.key(0), X)
  new = np.random.default_rng(1).uniform(-1, 9, size=(50, 3)).astype(np.float32)
  found = np.asarray(module.apply(state, new))
  np.testing.assert_array_equal(found[:, :3], new)
  edges = np.quantile(X, np.linspace(0, 1, 6), axis=0)
  for column in range(3):
    for k in range(5):
      expected = np.interp(new[:, column], edges[k : k + 2, column], [-0.5, 0.5])
      np.testing.assert_allclose(found[:, 3 + 5 * column + k], expected, atol=1e-5)


def test_a_value_that_many_rows_have_becomes_a_step():
  column = np.repeat([0.0, 1.0], [90, 10])[:, None].astype(np.float32)
  module = Bins(4)
  found = module.apply(module.init(jax.random.key(0), column), jnp.array([[0.0], [0.5], [1.0]]))
  np.testing.assert_allclose(found[:, 1:], [[-0.5] * 4, [0.5, 0.5, 0.5, 0.0], [0.5] * 4])  # the last bin is from 0 to 1


def test_few_rows_give_the_bins_of_a_normal_distribution():
  edges = bin_edges(jnp.zeros((2, 3)), 8)
  assert edges.shape == (3, 9)
  np.testing.assert_allclose(edges[0], -edges[0, ::-1], atol=1e-6)
  large = np.random.default_rng(2).normal(size=(200_000, 1)).astype(np.float32)
  np.testing.assert_allclose(edges[0, 1:-1], np.quantile(large, 0.01 + 0.98 * np.arange(1, 8) / 8), atol=0.02)


def test_bins_stay_as_they_are():
  """They are state, not parameters, and training mode does not change them."""
  stage = tabular(2, widths=(4,))[0]
  params, state = stage.init(jax.random.key(0), X)
  assert not jax.tree.leaves(params)
  _, after = stage.apply(params, state, X[:5], jax.random.key(1), True)
  np.testing.assert_array_equal(after['bins']['edges'], state['bins']['edges'])


@pytest.mark.parametrize('at', [0, 1, -1])
def test_it_can_be_cut_anywhere(at):
  network = cut.multi_head(tabular(2, widths=(8, 7), bins=3), at, 5)
  params, state = network.init(jax.random.key(0), X)
  outputs, _ = network.apply(params, state, X[:6])
  assert outputs.shape == (5, 6, 2)
  assert jnp.ptp(outputs, axis=0).min() > 0


@pytest.mark.parametrize('bad', [dict(bins=0), dict(bins=1.5), dict(widths=3)])
def test_arguments_are_checked(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    tabular(2, **bad)
