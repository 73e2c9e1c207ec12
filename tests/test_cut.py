"""The cut: one construction for single networks, ensembles and students."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError, chain
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp

B, F, C = 6, 5, 3
X = np.random.default_rng(0).normal(size=(B, F)).astype(np.float32)


def build(at, heads):
  network = cut.multi_head(mlp(C, (8, 7)), at, heads)
  return network, *network.init(jax.random.key(1), X)


@pytest.mark.parametrize('at', [0, 1, 2, -1, -3])
@pytest.mark.parametrize('heads', [1, 4])
def test_outputs_have_the_head_axis_first(at, heads):
  network, params, state = build(at, heads)
  outputs, _ = network.apply(params, state, X)
  chex.assert_shape(outputs, (heads, B, C))
  assert network.cut == at % 3
  for leaf in jax.tree.leaves(params['heads']):
    assert leaf.shape[0] == heads


def test_an_ensemble_is_its_members():
  """Each head of an uncut network gives what the plain chain gives with that head's parameters."""
  network, params, state = build(0, 4)
  outputs, _ = network.apply(params, state, X)
  plain = chain(mlp(C, (8, 7)))
  for m in range(4):
    one = jax.tree.map(lambda p, m=m: p[m], params['heads'])
    alone, _ = plain.apply(one, state['heads'], X, None, False)
    np.testing.assert_allclose(outputs[m], alone, rtol=1e-5, atol=1e-6)


def test_a_member_does_not_depend_on_the_others():
  _, params, _ = build(0, 5)
  _, some, _ = build(0, [3, 1])
  chex.assert_trees_all_equal(some['heads'], jax.tree.map(lambda p: p[np.asarray([3, 1])], params['heads']))
  first, second = (jax.tree.leaves(jax.tree.map(lambda p, i=i: p[i], params['heads']))[1] for i in (0, 1))
  assert not np.allclose(first, second)


def test_where_one_head_is_cut_changes_nothing():
  reference = build(0, 1)
  for at in (1, 2):
    network, params, state = build(at, 1)
    np.testing.assert_allclose(
      network.apply(params, state, X)[0], reference[0].apply(*reference[1:], X)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('at', [0, 1, 2])
def test_grown_heads_are_copies(at):
  one, params, state = build(at, 1)
  many = cut.multi_head(mlp(C, (8, 7)), at, 4)
  outputs, _ = many.apply(cut.grow(params, 4), cut.grow(state, 4), X)
  single, _ = one.apply(params, state, X)
  np.testing.assert_allclose(outputs, jnp.repeat(single, 4, axis=0), rtol=1e-5, atol=1e-6)


def test_body_gets_the_gradient_of_every_head():
  network, params, state = build(1, 4)
  loss = lambda p, w: jnp.sum(network.apply(p, state, X)[0] * w)
  weights = np.random.default_rng(1).normal(size=(4, B, C)).astype(np.float32)
  whole = jax.grad(loss)(params, weights)['body']
  of_head = lambda h: jax.grad(loss)(params, weights * (np.arange(4) == h).astype(np.float32)[:, None, None])['body']
  added = jax.tree.map(lambda *leaves: sum(leaves), *map(of_head, range(4)))
  chex.assert_trees_all_close(whole, added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('at, heads, word', [(3, 1, 'cut'), (-4, 1, 'cut'), (1, 0, 'head')])
def test_impossible_cuts_are_refused(at, heads, word):
  with pytest.raises(UserError, match=word):
    cut.multi_head(mlp(C, (8, 7)), at, heads)
