"""Networks for images: their published sizes, every cut, statistics of their own for every head."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError, chain, mlp
from hydra_jax.nets import cut, zoo

pytestmark = pytest.mark.slow  # compiles a lot

B, H, C = 5, 2, 7
X = np.random.default_rng(0).normal(size=(B, 8, 8, 3)).astype(np.float32)
LARGE = np.random.default_rng(1).normal(size=(B, 16, 18, 3)).astype(np.float32)

RESNET = dict(depth=8, width=4)
SMALL = {
  'lenet': (lambda: zoo.lenet(C), LARGE),
  'cnn': (lambda: zoo.cnn(C, channels=(4, 6)), X),
  'resnet': (lambda: zoo.resnet(C, **RESNET), X),
  'resnet-group': (lambda: zoo.resnet(C, **RESNET, norm='group'), X),
  'wide_resnet': (lambda: zoo.wide_resnet(C, depth=10, width=1, dropout=0.3), X),
}


def build(stages, at, heads, x=X):
  """A network with drawn parameters and statistics, which compiling its initialisation would take longer to give."""
  network, rng = cut.multi_head(stages, at, heads), np.random.default_rng(2)
  params, state = jax.eval_shape(network.init, jax.random.key(0), x)
  draw = lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype)
  return network, jax.tree.map(draw, params), jax.tree.map(lambda leaf: 0.5 + abs(draw(leaf)), state)


def run(network, params, state, x=X, train=False):
  """As one program, which takes less to compile than its operations one by one."""
  return jax.jit(network.apply, static_argnums=4)(params, state, x, jax.random.key(2), train)


@pytest.mark.parametrize('homoscedastic', [False, True])
def test_a_network_without_hidden_layers_is_linear_in_all_pixels(homoscedastic):
  (stage,) = mlp(4, (), homoscedastic)
  params, state = stage.init(jax.random.key(0), X)
  y, _ = stage.apply(params, state, X, None, False)
  dense = params['Dense_0'] if homoscedastic else params
  expected = X.reshape(B, -1) @ np.asarray(dense['kernel']) + np.asarray(dense['bias'])
  np.testing.assert_allclose(y[:, : expected.shape[1]], expected, rtol=1e-5, atol=1e-5)
  assert y.shape == (B, 4)


def count(stages, *shape):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  params, _ = jax.eval_shape(chain(stages).init, jax.random.key(0), x)
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  'depth, size, published',
  # He et al. 2015, table 6; to the digit, the counts of github.com/akamaster/pytorch_resnet_cifar10, option A.
  [(20, 269_722, 0.27), (32, 464_154, 0.46), (56, 853_018, 0.85), (110, 1_727_962, 1.7)],
)
def test_sizes_of_resnets(depth, size, published):
  stages = zoo.resnet(10, depth=depth)
  assert count(stages, 1, 32, 32, 3) == size == pytest.approx(published * 1e6, rel=0.02)
  assert len(stages) == (depth - 2) // 2 + 2


@pytest.mark.parametrize(
  'depth, width, size, published',
  # Zagoruyko & Komodakis 2016, tables 3 and 5; to the digit, github.com/osmr/imgclsmob (WRN-28-10).
  [(28, 10, 36_479_194, 36.5), (16, 8, 10_961_370, 11.0), (40, 1, 563_930, 0.6), (40, 2, 2_243_546, 2.2)],
)
def test_sizes_of_wide_resnets(depth, width, size, published):
  stages = zoo.wide_resnet(10, depth=depth, width=width)
  assert count(stages, 1, 32, 32, 3) == size
  assert round(size / 1e6, 1) == published
  assert len(stages) == (depth - 4) // 2 + 2


def test_sizes_of_the_others():
  assert count(zoo.wide_resnet(10, depth=28, width=1), 1, 32, 32, 3) == 369_498  # published as 0.37 M
  assert count(zoo.resnet50(), 1, 224, 224, 3) == 25_557_032  # torchvision's resnet50, num_params
  # LeNet-5 with full connectivity: 156 + 2416 + 48120 + 10164 + 850.
  assert count(zoo.lenet(10), 1, 32, 32, 1) == 61_706


def test_the_image_shrinks_as_published():
  """ResNet-50 ends in 7x7x2048 before pooling, four halvings after the stem's first."""
  stages = zoo.resnet50()[:-2]
  body = chain(stages)
  x = jax.ShapeDtypeStruct((B, 224, 224, 3), jnp.float32)
  params, state = jax.eval_shape(body.init, jax.random.key(0), x)
  features, _ = jax.eval_shape(lambda *args: body.apply(*args, None, False), params, state, x)
  assert features.shape == (B, 7, 7, 2048)


@pytest.mark.parametrize('at', [*range(5), *range(-5, 0)])
def test_every_cut(at):
  network = cut.multi_head(zoo.resnet(C, **RESNET), at, H)
  params, state = jax.eval_shape(network.init, jax.random.key(0), X)
  for train in (False, True):
    outputs, new = jax.eval_shape(lambda p, s, t=train: network.apply(p, s, X, None, t), params, state)
    assert (outputs.shape, outputs.dtype) == ((H, B, C), jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
  assert all(leaf.shape[0] == H for leaf in jax.tree.leaves((params['heads'], state['heads'])))
  # One set of statistics, a mean and a variance, for each of 1 + 2 + 2 + 2 norms, in the body or in the heads.
  below = [0, 1, 3, 5, 7][at]
  assert len(jax.tree.leaves(state['body'])) == 2 * below
  assert len(jax.tree.leaves(state['heads'])) == 2 * (7 - below)


@pytest.mark.parametrize('name', SMALL)
def test_the_last_cut_leaves_one_dense_layer(name):
  make, x = SMALL[name]
  params, state = jax.eval_shape(cut.multi_head(make(), -1, H).init, jax.random.key(0), x)
  (dense,) = params['heads']
  assert set(dense) == {'kernel', 'bias'}
  assert dense['kernel'].shape[0] == H and dense['kernel'].shape[-1] == C
  assert not jax.tree.leaves(state['heads'])


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', SMALL)
def test_an_ensemble_is_its_members(name, train):
  make, x = SMALL[name]
  network, params, state = build(make(), 0, H, x)
  outputs, new = run(network, params, state, x, train)
  alone = jax.jit(chain(make()).apply, static_argnums=4)
  for m in range(H):
    own = lambda tree, m=m: jax.tree.map(lambda leaf: leaf[m], tree['heads'])
    expected, expected_state = alone(own(params), own(state), x, jax.random.fold_in(jax.random.key(2), m), train)
    np.testing.assert_allclose(outputs[m], expected, rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(own(new), expected_state, rtol=1e-4, atol=1e-5)
  assert not np.allclose(outputs[0], outputs[1], atol=1e-2)


@pytest.mark.parametrize('name', ['resnet', 'wide_resnet'])
def test_heads_mapped_in_one_program_agree(name):
  """As on accelerators, where heads are not written out one by one."""
  make, x = SMALL[name]
  network, params, state = build(make(), -2, H, x)
  mapped = cut.multi_head(make(), -2, H, mapping='vmap')
  expected = run(network, params, state, x, train=True)
  chex.assert_trees_all_close(run(mapped, params, state, x, train=True), expected, rtol=1e-3, atol=1e-4)


def test_statistics_move_in_training_only():
  network, params, state = build(zoo.resnet(C, **RESNET), -2, H)
  _, same = run(network, params, state)
  chex.assert_trees_all_equal(same, state)
  _, new = run(network, params, state, train=True)
  for old, moved in zip(jax.tree.leaves(state), jax.tree.leaves(new)):
    assert not np.allclose(old, moved)
  for mine in jax.tree.leaves(new['heads']):
    assert not np.allclose(mine[0], mine[1])
  # A tenth of the way to the mean and variance of the batch, with momentum 0.9.
  stem, before = params['body'][0]['Conv_0']['kernel'], state['body'][0]['batch_stats']['BatchNorm_0']
  y = jax.lax.conv_general_dilated(X, stem, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  after = new['body'][0]['batch_stats']['BatchNorm_0']
  np.testing.assert_allclose(after['mean'], 0.9 * before['mean'] + 0.1 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(after['var'], 0.9 * before['var'] + 0.1 * y.var((0, 1, 2)), rtol=1e-4)


def test_growth_copies_parameters_and_statistics():
  one, params, state = build(zoo.resnet(C, **RESNET), -2, 1)
  _, state = run(one, params, state, train=True)
  many = cut.multi_head(zoo.resnet(C, **RESNET), -2, H)
  grown = cut.grow(params, H), cut.grow(state, H)
  chex.assert_trees_all_equal_shapes_and_dtypes(grown, jax.eval_shape(many.init, jax.random.key(0), X))
  for train in (False, True):
    single, _ = run(one, params, state, train=train)
    outputs, new = run(many, *grown, train=train)
    np.testing.assert_allclose(outputs, jnp.repeat(single, H, axis=0), rtol=1e-4, atol=1e-5)
  for leaf in jax.tree.leaves(new['heads']):
    np.testing.assert_allclose(leaf[1:], jnp.repeat(leaf[:1], H - 1, axis=0), rtol=1e-5)


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('make', [zoo.resnet, zoo.wide_resnet])
def test_bfloat16_is_close_and_keeps_float32_outside(make, norm):
  size = RESNET if make is zoo.resnet else dict(depth=10, width=1)
  exact, params, state = build(make(C, **size, norm=norm), -2, H)
  half = cut.multi_head(make(C, **size, norm=norm, dtype='bfloat16'), -2, H)
  chex.assert_trees_all_equal_shapes_and_dtypes((params, state), jax.eval_shape(half.init, jax.random.key(1), X))
  assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {jnp.dtype('float32')}
  for train in (False, True):
    expected, _ = run(exact, params, state, train=train)
    outputs, new = run(half, params, state, train=train)
    assert outputs.dtype == jnp.float32
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    error = jnp.abs(outputs - expected).max() / jnp.abs(expected).max()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize('width', [1, 3, 4, 10])
def test_group_norm_has_no_state(width):
  network = cut.multi_head(zoo.wide_resnet(C, depth=10, width=width, norm='group'), 2, H)
  params, state = jax.eval_shape(network.init, jax.random.key(0), X)
  assert not jax.tree.leaves(state)
  outputs, _ = jax.eval_shape(lambda p: network.apply(p, state, X, None, True), params)
  assert outputs.shape == (H, B, C)


@pytest.mark.parametrize('channels, groups', [(4, 1), (7, 1), (16, 4), (64, 16), (160, 8), (128, 32), (2048, 32)])
def test_groups_have_at_least_four_channels(channels, groups):
  assert zoo.NORMS['group'](channels, False).num_groups == groups


def test_shortcuts_carry_the_input_where_convolutions_are_zero():
  """Basic blocks give ReLU of the strided, padded input; pre-activation blocks give the input itself."""
  layers = dict(norm='batch', dtype=jnp.float32)

  def block(module):
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), X, False))
    return module.apply(jax.tree.map(jnp.zeros_like, variables), X, False)

  y = block(zoo.Basic(**layers, channels=6, stride=2))
  assert y.shape == (B, 4, 4, 6)
  np.testing.assert_array_equal(y[..., :3], np.maximum(X[:, ::2, ::2], 0))
  assert not y[..., 3:].any()
  np.testing.assert_array_equal(block(zoo.PreActivation(**layers, channels=3, stride=1, dropout=0.0)), X)


def test_the_small_network_is_three_convolutions_of_stride_2():
  sizes = [9 * 3 * 32 + 32, 9 * 32 * 64 + 64, 9 * 64 * 128 + 128, 4 * 4 * 128 * 10 + 10]
  assert count(zoo.cnn(10), 1, 32, 32, 3) == sum(sizes)
  network, params, state = build(zoo.cnn(C, channels=(4, 6)), 0, 1)
  x = X
  for weights in (params['heads'][0], params['heads'][1][0]):
    layer = weights['Conv_0']
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(i, j) for i in range(0, x.shape[1], 2) for j in range(0, x.shape[2], 2)]
    windows = np.stack([padded[:, i : i + 3, j : j + 3] for i, j in places], axis=1)
    y = np.einsum('bphwc,hwco->bpo', windows, np.asarray(layer['kernel'][0])) + np.asarray(layer['bias'][0])
    x = np.maximum(y, 0).reshape(B, x.shape[1] // 2, x.shape[2] // 2, -1)
  dense = params['heads'][2]
  expected = x.reshape(B, -1) @ np.asarray(dense['kernel'][0]) + np.asarray(dense['bias'][0])
  np.testing.assert_allclose(run(network, params, state)[0][0], expected, rtol=1e-4, atol=1e-3)


def test_convolutions_start_as_he_et_al_say():
  layer = zoo.conv(64, stride=2, dtype=jnp.bfloat16)
  params = layer.init(jax.random.key(0), np.zeros((B, 8, 8, 16), np.float32))['params']
  assert set(params) == {'kernel'} and params['kernel'].dtype == jnp.float32
  np.testing.assert_allclose(params['kernel'].std(), np.sqrt(2 / (9 * 64)), rtol=0.05)


def test_table():
  assert set(zoo.NETWORKS) == {'mlp', 'tabular', 'lenet', 'cnn', 'resnet', 'wide_resnet', 'resnet50'}
  for name, make in zoo.NETWORKS.items():
    network = cut.multi_head(make(C), -1, 1)
    assert network.convolves((32, 32, 3)) == (name not in ('mlp', 'tabular'))


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: zoo.cnn(C, channels=(4, 0)), r'channels=\(4, 0\).*whole numbers'),
    (lambda: zoo.cnn(C, dtype='int8'), 'dtype.*float32.*bfloat16'),
    (lambda: build(zoo.cnn(C), 0, 1, X[:, :4]), 'at least 8x8'),
    (lambda: zoo.resnet(C, norm='layer'), 'norm.*batch.*group'),
    (lambda: zoo.wide_resnet(C, norm='btach'), 'norm.*batch'),
    (lambda: zoo.resnet50(C, dtype='int8'), 'dtype.*float32.*bfloat16'),
    (lambda: zoo.resnet(C, depth=21), r'depth=21.*6n \+ 2.*8, 14, 20'),
    (lambda: zoo.resnet(C, depth=2), r'depth=2.*6n \+ 2'),
    (lambda: zoo.wide_resnet(C, depth=20), r'depth=20.*6n \+ 4.*10, 16, 22'),
    (lambda: zoo.wide_resnet(C, depth=28.0), r'depth=28\.0.*6n \+ 4'),
    (lambda: build(zoo.resnet(C, **RESNET), 0, 1, X[:, 0, 0]), r'images.*\[3\]'),
    (lambda: build(zoo.lenet(C), 0, 1), 'at least 16x16'),
  ],
)
def test_impossible_networks_are_refused(make, words):
  with pytest.raises(UserError, match=words) as error:
    make()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('shape, size', [((2, 7, 9, 3), 2), ((2, 7, 9, 3), 3), ((1, 4, 4, 1), 4), ((3, 2, 3, 2), 1)])
def test_maximum_pooling_is_that_of_flax(random, shape, size):
  x = jnp.asarray(random.permutation(np.prod(shape)).reshape(shape), jnp.float32)  # no entry twice
  flax = lambda x: nn.max_pool(x, (size, size), (size, size))
  ours = lambda x: zoo.max_pool(x, size)
  np.testing.assert_array_equal(ours(x), flax(x))
  weight = jnp.asarray(random.normal(size=flax(x).shape), jnp.float32)
  grads = [jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x) * weight)))(x) for f in (ours, flax)]
  np.testing.assert_array_equal(*grads)
  assert ours(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_entries_that_are_equal_share_the_gradient():
  x = jnp.asarray([[1.0, 1.0], [1.0, 0.0]])[None, :, :, None]
  grad = jax.grad(lambda x: zoo.max_pool(x, 2).sum())(x)[0, :, :, 0]
  assert grad.sum() == 1 and grad[1, 1] == 0 and (grad.ravel()[:3] > 0).all()
