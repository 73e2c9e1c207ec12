"""The network for tables: its formula, its cuts, what it learns that a perceptron does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError
from hydra_jax.nets import cut
from hydra_jax.nets.tabular import Periodic, tabular

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def test_embeddings_are_those_of_the_formula():
  module = Periodic(frequencies=4, width=2, scale=0.5)
  params = module.init(jax.random.key(0), X)['params']
  found = module.apply({'params': params}, X)
  kernel, bias = (np.asarray(params['Dense_0'][name], np.float64) for name in ('kernel', 'bias'))
  for row in range(6):
    pieces = list(X[row])
    for column in range(3):
      angles = 2 * np.pi * X[row, column] * np.asarray(params['frequencies'], np.float64)[column]
      pieces += list(np.maximum(np.concatenate([np.cos(angles), np.sin(angles)]) @ kernel + bias, 0))
    np.testing.assert_allclose(found[row], pieces, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('at', [0, 1, -1])
def test_it_can_be_cut_anywhere(at):
  network = cut.multi_head(tabular(2, widths=(8, 7), frequencies=4, embedding=2), at, 5)
  params, state = network.init(jax.random.key(0), X)
  outputs, _ = network.apply(params, state, X)
  assert outputs.shape == (5, 6, 2)
  assert jnp.ptp(outputs, axis=0).min() > 0


def test_frequencies_start_as_spread_as_asked():
  params = Periodic(500, 2, 0.3).init(jax.random.key(0), X)['params']
  assert np.std(params['frequencies']) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize('bad', [dict(frequencies=0), dict(embedding=1.5), dict(frequency_scale=-1), dict(widths=3)])
def test_arguments_are_checked(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    tabular(2, **bad)
