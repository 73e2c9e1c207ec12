"""Stages from Flax Linen, Flax NNX and Equinox: each is its module, and they mix in one network at every cut."""

from functools import partial
import subprocess
import sys

import chex
import equinox as eqx
from flax import linen as nn, nnx
from helpers import fit, restart
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hydra_jax
from hydra_jax import UserError, chain
from hydra_jax.maths import losses
from hydra_jax.nets import batch_ensemble, cut
from hydra_jax.training import checkpoints

B, F, C, H = 8, 5, 3, 2
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(B, F)).astype(np.float32)
KEY = jax.random.key(5)


class LinenBlock(nn.Module):
  """Batch norm, dense, dropout, as the two below."""

  width: int
  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.width)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    return nn.Dropout(self.rate, deterministic=not train)(x)


class NnxBlock(nnx.Module):
  def __init__(self, inputs, width, rate=0.5, *, rngs):
    self.layers = nnx.List([nnx.Linear(inputs, width, rngs=rngs)])
    self.norm = nnx.BatchNorm(inputs, momentum=0.9, rngs=rngs)
    self.drop = nnx.Dropout(rate, rngs=rngs)
    self.offset = jnp.full(width, 0.25)

  def __call__(self, x):
    return self.drop(self.layers[0](self.norm(x))) + self.offset[None]


class EquinoxBlock(eqx.Module):
  layers: list[eqx.nn.Linear]
  norm: eqx.nn.BatchNorm
  drop: eqx.nn.Dropout
  order: jax.Array

  def __init__(self, inputs, width, rate=0.5, mode='batch', *, key):
    self.layers = [eqx.nn.Linear(inputs, width, key=key)]
    self.norm = eqx.nn.BatchNorm(inputs, 'batch', momentum=0.9, mode=mode)
    self.drop = eqx.nn.Dropout(rate)
    self.order = jnp.arange(width)[::-1]

  def __call__(self, x, state, *, key):
    x, state = self.norm(x, state)
    return self.drop(self.layers[0](x), key=key)[self.order], state


STAGES = {
  'linen': lambda *sizes: hydra_jax.from_linen(LinenBlock(*sizes[1:])),
  'nnx': lambda *sizes: hydra_jax.from_nnx(partial(NnxBlock, *sizes)),
  'equinox': lambda *sizes: hydra_jax.from_equinox(partial(EquinoxBlock, *sizes)),
  'equinox-ema': lambda *sizes: hydra_jax.from_equinox(partial(EquinoxBlock, *sizes, mode='ema')),
}
every = pytest.mark.parametrize('library', STAGES)


def drawn(init, x=X):
  """Parameters and state, which compiling an initialisation would take longer to give."""
  rng = np.random.default_rng(2)
  params, state = jax.eval_shape(init, KEY, x)
  draw = lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype)
  positive = lambda leaf: 0.5 + abs(draw(leaf)) if leaf.dtype == jnp.float32 else jnp.zeros(leaf.shape, leaf.dtype)
  return jax.tree.map(draw, params), jax.tree.map(positive, state)


def directly(library, train):
  """Outputs of the module itself without dropout, and its statistics after one call."""
  if library == 'linen':
    module = LinenBlock(4, 0.0)
    y, new = module.apply(module.init(KEY, X, False), X, train, mutable=['batch_stats'])
    return y, jax.tree.leaves(new)
  if library == 'nnx':
    module = NnxBlock(F, 4, 0.0, rngs=nnx.Rngs(KEY))
    module.train() if train else module.eval()
    return module(X), jax.tree.leaves(nnx.state(module, nnx.BatchStat))
  mode = 'ema' if library == 'equinox-ema' else 'batch'
  module, state = eqx.nn.make_with_state(EquinoxBlock)(F, 4, 0.0, mode=mode, key=KEY)
  module = eqx.nn.inference_mode(module, not train)
  call = lambda x, state: module(x, state, key=None)
  y, state = jax.vmap(call, axis_name='batch', in_axes=(0, None), out_axes=(0, None))(X, state)
  return y, jax.tree.leaves(state)


@every
@pytest.mark.parametrize('train', [False, True])
def test_a_stage_is_its_module(library, train):
  stage = STAGES[library](F, 4, 0.0)
  params, state = stage.init(KEY, X)
  y, new = stage.apply(params, state, X, KEY, train)
  expected, statistics = directly(library, train)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
  for leaf in statistics:
    assert any(leaf.shape == mine.shape and np.allclose(mine, leaf, atol=1e-6) for mine in jax.tree.leaves(new))
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new))]
  assert any(moved) == train


@pytest.mark.parametrize('library', ['linen', 'nnx', 'equinox'])
def test_each_head_is_what_it_is_alone(library):
  stages = [STAGES[library](F, 4)]
  network, alone = cut.multi_head(stages, 0, H), chain(stages)
  params, state = jax.jit(network.init)(KEY, X)
  outputs, new = network.apply(params, state, X, jax.random.key(2), True)
  for m in range(H):
    own = lambda tree, m=m: jax.tree.map(lambda leaf: leaf[m], tree['heads'])
    chex.assert_trees_all_close((own(params), own(state)), alone.init(jax.random.fold_in(KEY, m), X), rtol=1e-6)
    expected = alone.apply(own(params), own(state), X, jax.random.fold_in(jax.random.key(2), m), True)
    chex.assert_trees_all_close((outputs[m], own(new)), expected, rtol=1e-4, atol=1e-5)
  assert not np.allclose(outputs[0], outputs[1], atol=1e-2)


@every
def test_dropout_draws_from_the_key_in_training_only(library):
  stage = STAGES[library](F, 64)
  params, state = drawn(stage.init)
  first, again, other = (stage.apply(params, state, X, jax.random.key(k), True)[0] for k in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  offset = np.asarray(state.get('offset', 0))
  dropped = np.stack([np.asarray(first) == offset, np.asarray(other) == offset])
  assert 0.4 < dropped.mean() < 0.6 and (dropped[0] != dropped[1]).any()
  assert (dropped[0][0] != dropped[0][1]).any()
  without, with_key = (stage.apply(params, state, X, key, False)[0] for key in (None, KEY))
  np.testing.assert_array_equal(without, with_key)
  with pytest.raises(Exception):  # noqa: B017 each library has another error
    stage.apply(params, state, X, None, True)


def test_every_stream_of_nnx_has_a_key_of_its_own():
  stage = hydra_jax.from_nnx(lambda rngs: nnx.Sequential(*(nnx.Dropout(0.5, rngs=rngs) for _ in range(2))))
  params, state = stage.init(KEY, X)
  assert not jax.tree.leaves((params, state))
  y, _ = stage.apply(params, state, np.ones((100, 100), np.float32), KEY, True)
  assert 0.22 < (y != 0).mean() < 0.28 and set(np.unique(y)) == {0, 4}


def mixed():
  return [
    hydra_jax.from_linen(LinenBlock(4)),
    hydra_jax.from_nnx(partial(NnxBlock, 4, 4)),
    hydra_jax.from_equinox(partial(EquinoxBlock, 4, 4)),
    hydra_jax.from_equinox(partial(eqx.nn.Linear, 4, C)),
  ]


def test_batch_ensemble_needs_kernels():
  with pytest.raises(UserError, match="named 'kernel'"):
    batch_ensemble.batch_ensemble(mixed()[-1:], H).init(KEY, X[:, :4])
  network = batch_ensemble.batch_ensemble(mixed()[:2], H)
  params, _ = jax.eval_shape(network.init, KEY, X)
  assert len(jax.tree.leaves(params['body'])) == 2


@pytest.mark.parametrize('at', [0, 2, 3])
def test_a_mixed_network_trains_and_grows_at_every_cut(at, tmp_path, random):
  optimizer = optax.sgd(0.05)
  loss = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  data = {'x': jnp.asarray(X), 'y': jnp.asarray(random.integers(C, size=B))}
  one, network = cut.multi_head(mixed(), at, 1), cut.multi_head(mixed(), at, H)
  single = drawn(one.init)
  grown = cut.grow(single[0], H), cut.grow(single[1], H)
  chex.assert_trees_all_equal_shapes_and_dtypes(grown, jax.eval_shape(network.init, KEY, X))
  outputs, _ = network.apply(*grown, X)
  np.testing.assert_allclose(outputs, jnp.repeat(one.apply(*single, X)[0], H, axis=0), rtol=1e-4, atol=1e-5)

  given = restart(optimizer, *grown)
  state = fit(network, loss, data, steps=3, state=given, optimizer=optimizer, batch_size=B, seed=(0,))
  for before, after in zip(jax.tree.leaves(grown[0]), jax.tree.leaves(state.params), strict=True):
    assert not np.array_equal(before, after)
  # A mean and a variance of each of three norms; Equinox counts batches as well.
  moved = [not np.array_equal(*both) for both in zip(jax.tree.leaves(grown[1]), jax.tree.leaves(state.model_state))]
  assert sum(moved) == 7
  for leaf in jax.tree.leaves(state.params['heads']):
    # They started as copies, and go apart where they draw dropout of their own.
    assert np.array_equal(leaf[0], leaf[1]) == (at == 3)

  checkpoints.save(tmp_path / 'model', (state.params, state.model_state))
  restored = checkpoints.restore(tmp_path / 'model', jax.eval_shape(network.init, KEY, X))
  chex.assert_trees_all_equal(restored, (state.params, state.model_state))
  np.testing.assert_array_equal(network.apply(*restored, X)[0], network.apply(state.params, state.model_state, X)[0])


def test_modules_without_state_or_key():
  class Scale(eqx.Module):
    by: jax.Array

    def __call__(self, x):
      return x * self.by

  stage = hydra_jax.from_equinox(lambda key: Scale(jnp.float32(3)))
  y, _ = stage.apply(*stage.init(KEY, X), X, KEY, True)
  np.testing.assert_array_equal(y, 3 * X)


def test_convolutions_are_found_and_equinox_has_channels_first():
  images = np.zeros((B, 3, 8, 8), np.float32)
  stage = hydra_jax.from_equinox(partial(eqx.nn.Conv2d, 3, 4, 3))
  y, _ = jax.eval_shape(lambda: stage.apply(*stage.init(KEY, images), images, None, False))
  assert y.shape == (B, 4, 6, 6) and cut.multi_head([stage], 0, 1).convolves(images.shape[1:])
  assert cut.multi_head([hydra_jax.from_nnx(partial(nnx.Conv, 3, 4, (3, 3)))], 0, 1).convolves((8, 8, 3))


@pytest.mark.parametrize(
  'adapt, module',
  [
    (hydra_jax.from_nnx, lambda: nnx.Linear(F, C, rngs=nnx.Rngs(0))),
    (hydra_jax.from_equinox, lambda: eqx.nn.Linear(F, C, key=KEY)),
  ],
)
def test_modules_that_have_their_parameters_are_refused(adapt, module):
  with pytest.raises(UserError, match='each head needs its own'):
    adapt(module())


def test_libraries_are_imported_where_they_are_used():
  found = subprocess.run(
    [sys.executable, '-c', 'import hydra_jax, sys; print({"flax.nnx", "equinox"} & set(sys.modules))'],
    capture_output=True,
    text=True,
  )
  assert found.stdout.strip() == 'set()', found.stderr
