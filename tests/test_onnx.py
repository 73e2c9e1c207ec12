"""The translator from functions of JAX to ONNX: ONNX Runtime gives what JAX gives, whatever the batch is."""

import ast
import collections
from functools import partial

from conftest import ROOT
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.special

from hydra_jax import UserError
from hydra_jax.serving.onnx_file import caller, model_of, reference

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def model(f, sizes, dtype=F32) -> bytes:
  return model_of(lambda x: {'y': f(x)}, sizes, dtype, ['y'], {})


def operators(content: bytes) -> collections.Counter:
  return collections.Counter(node.op_type for node in onnx.load_model_from_string(content).graph.node)


def check(f, sizes, random, dtype=F32, draw=None, tolerance=1e-5):
  """Compares for several batches; returns how often each operator stands in the file."""
  content = model(f, sizes, dtype)
  call, by = caller(content)
  assert by == f'onnxruntime {onnxruntime.__version__}'
  for batch in (1, 5):
    x = (draw or (lambda shape: random.normal(size=shape)))((batch, *sizes)).astype(dtype)
    with jax.enable_x64(True):
      wanted = np.asarray(jax.jit(f)(x))
    found = call(x)['y']
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    scale = max(1.0, float(np.max(np.abs(wanted), where=np.isfinite(wanted), initial=0.0))) if wanted.size else 1.0
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale)
  return operators(content)


W = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 2, 4)).astype(np.float32)
TABLE = np.random.default_rng(2).normal(size=(7, 3)).astype(np.float32)


def conv(x, kernel=KERNEL, strides=(1, 1), padding='SAME', **more):
  return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **more)


def whole(f):
  """Of whole numbers from 0 to 6."""
  return lambda x: f(jnp.floor(jnp.abs(3 * x)).astype(jnp.int32) % 7)


FUNCTIONS = {
  'arithmetic': lambda x: (x + 1) * (2 - x) / (x * x + 3) - jnp.minimum(x, 0.1) + jnp.maximum(0.2, x),
  'powers': lambda x: x**2 + jnp.abs(x) ** 3 + jnp.abs(x) ** 0.3 + jnp.abs(x + 3) ** -2 + jnp.square(x),
  'exponentials': lambda x: jnp.exp(x) + jnp.log(x * x + 1) + jnp.exp2(x) + jnp.expm1(x / 100) * 100,
  'logarithms': lambda x: jnp.log1p(x * x) + 1e6 * jnp.log1p(1e-6 * x) + jax.nn.softplus(5 * x),
  'hyperbolic': lambda x: jnp.tanh(x) + jnp.sinh(x) + jnp.cosh(x) + jax.nn.sigmoid(x),
  'trigonometric': lambda x: jnp.sin(x) + jnp.cos(3 * x) + jnp.tan(x / 10),
  'roots': lambda x: jnp.sqrt(jnp.abs(x)) + jax.lax.rsqrt(x * x + 0.1),
  'rounding': lambda x: jnp.floor(x) + jnp.ceil(x) + jnp.round(3 * x) + jnp.sign(x) + jnp.fmod(5 * x, 2.0),
  'activations': lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.elu(x) + jax.nn.leaky_relu(x) + jax.nn.hard_tanh(x),
  'exact gelu': partial(jax.nn.gelu, approximate=False),
  'error function': lambda x: jax.scipy.special.erf(x) + jax.scipy.special.erfc(x),
  'clipped': lambda x: jnp.clip(x, -0.5, 0.5) + jax.lax.clamp(jnp.zeros_like(x), x, jnp.abs(x) / 2),
  'log_softmax': jax.nn.log_softmax,
  'log_softmax of another axis': lambda x: jax.nn.log_softmax(x, axis=0)[:, :2] + jax.nn.softmax(x, axis=1)[:, :2],
  'logsumexp': lambda x: jax.nn.logsumexp(50 * x, axis=1),
  'finite': lambda x: jnp.where(jnp.isfinite(jnp.log(x)), x, -1),
  'comparisons': lambda x: jnp.where((x > 0.5) | ~(x <= -0.5) & (x != 0.25), x, 2 * x),
  'truth values': lambda x: jnp.where(jnp.any(x > 1, axis=1) ^ jnp.all(x < 1, axis=1), 1.0, 2.0),
  'cases of truth values': lambda x: jnp.where(x > 0, x > 1, x < -1).astype(jnp.float32),
  'sums': lambda x: jnp.sum(x, axis=1) + jnp.max(x, axis=1) - jnp.min(x, axis=1) + jnp.prod(x, axis=1),
  'sums, kept': lambda x: x - jnp.mean(x, axis=1, keepdims=True) + jnp.var(x, axis=1)[:, None],
  'mean over the batch': lambda x: x - jnp.mean(x, axis=0, keepdims=True),
  'cumulative': lambda x: jnp.cumsum(x, axis=1) + jax.lax.cumsum(x, 1, reverse=True),
  'largest': lambda x: (10 * jnp.argmax(x, axis=1) + jnp.argmin(x, axis=1)).astype(jnp.int32),
  'reversed': lambda x: x[:, ::-1] + jnp.flip(x, 1),
  'padded': lambda x: jnp.pad(x, ((0, 0), (2, 1)), constant_values=3.0),
  'split': lambda x: jnp.split(x, 2, axis=1)[1] * x[:, :2],
  'parts': lambda x: jnp.concatenate([x[:, 1:], x[:, :1], x[:, ::3]], axis=1),
  'stacked': lambda x: jnp.stack([x, 2 * x], axis=1).reshape(x.shape[0], -1),
  'columns in any order': lambda x: x[:, jnp.array([3, 0, 0, 2])],
  'transposed': lambda x: jnp.transpose(x.reshape(-1, 2, 2), (2, 0, 1)).swapaxes(0, 1).reshape(-1, 4),
  'broadcast': lambda x: jnp.concatenate([x, jnp.broadcast_to(jnp.ones((1, 2), x.dtype), (x.shape[0], 2))], 1),
  'reduced where it does not vary': lambda x: jnp.sum(jnp.broadcast_to(x[:, None], (x.shape[0], 6, 4)), axis=1),
  'look-up': whole(lambda i: jnp.take(jnp.asarray(TABLE), i, axis=0)),
  'look-up, clipped': whole(lambda i: jnp.take(jnp.asarray(TABLE), 2 * i - 3, axis=0, mode='clip')),
  'look-up of nothing': whole(lambda i: jnp.nan_to_num(jnp.take(jnp.asarray(TABLE), 2 * i, axis=0), nan=9.0)),
  'one_hot': whole(lambda i: jax.nn.one_hot(i, 7, dtype=jnp.float32)),
  'whole numbers': whole(lambda i: (i * 3 - 1) // 2 + i % 3),
  'loop': lambda x: jax.lax.scan(lambda c, w: (c * w, c + w), x, jnp.arange(1, 4, dtype=x.dtype))[1].sum(0),
  'map': lambda x: jax.lax.map(lambda w: jnp.tanh(x @ w), jnp.asarray(np.swapaxes(W, 1, 2)[:, :4])).sum(0),
  'random numbers that are fixed': lambda x: x + jax.random.normal(jax.random.key(0), (1, 4), x.dtype),
  'derivative': jax.vmap(jax.grad(lambda row: jnp.sum(jnp.tanh(row) ** 2))),
  'remat': jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_functions(name, random):
  with jax.numpy_dtype_promotion('standard'):
    check(FUNCTIONS[name], (4,), random)


IMAGES = {
  'convolution': conv,
  'strides and padding': partial(conv, strides=(2, 1), padding=((2, 1), (0, 3))),
  'dilation': partial(conv, rhs_dilation=(2, 1)),
  'groups': partial(conv, kernel=KERNEL[:, :, :1], feature_group_count=2),
  'convolutions of one input': lambda x: jax.vmap(partial(conv, x))(jnp.stack([KERNEL, 2 + KERNEL])).sum(0),
  'convolutions of their own': lambda x: jax.vmap(conv)(jnp.stack([x, 2 * x]), jnp.stack([KERNEL, KERNEL**2])).sum(0),
  'maxima': lambda x: nn.max_pool(x, (3, 2), (2, 2), padding='SAME'),
  'means': lambda x: nn.avg_pool(x, (3, 2), (2, 1), padding=((1, 0), (0, 1))),
  'maxima of each': lambda x: jax.vmap(lambda x: nn.max_pool(x, (2, 2), (2, 2)))(jnp.stack([x, -x])).sum(0),
  'every other': lambda x: x[:, ::2, 1::3] * 2,
}


@pytest.mark.parametrize('name', IMAGES)
def test_functions_of_images(name, random):
  with jax.numpy_dtype_promotion('standard'):
    check(IMAGES[name], (7, 8, 2), random)


def test_in_one_dimension(random):
  kernel = random.normal(size=(3, 2, 4)).astype(np.float32)
  f = lambda x: jax.lax.conv_general_dilated(x, kernel, (2,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC'))
  check(f, (9, 2), random)


PRODUCTS = {
  'one matrix': (lambda x: x @ W[0], (3,), 1),
  'of rows of rows': (lambda x: x @ W[0], (2, 3), 1),
  'one input, many matrices': (lambda x: jax.vmap(lambda w: x @ w)(W).swapaxes(0, 1), (3,), 1),
  'inputs of their own': (lambda x: jnp.einsum('bmi,mio->mbo', x, W).swapaxes(0, 1), (4, 3), 1),
  'of two axes': (lambda x: jnp.einsum('bij,oij->bo', x, W), (3, 5), 1),
  'from the left': (lambda x: jnp.einsum('oi,bi->bo', W[0].T, x), (3,), 1),
  'of two inputs': (lambda x: jnp.einsum('bij,bkj->bik', x, x), (3, 5), 1),
  'outer': (lambda x: jnp.einsum('bi,bj->bij', x, x), (3,), None),
}


@pytest.mark.parametrize('name', PRODUCTS)
def test_products(name, random):
  f, sizes, products = PRODUCTS[name]
  found = check(f, sizes, random)
  assert products is None or found['MatMul'] == products


def test_what_is_affine_in_a_product_is_part_of_its_matrix(random):
  def spread(x):
    y = jnp.einsum('bi,mio->mbo', x, W) + 1
    mean = jnp.mean(y, axis=0, keepdims=True)
    return jnp.exp((mean + 1.5 * (y - mean)).swapaxes(0, 1) / 5)

  assert check(spread, (3,), random) == {'MatMul': 1, 'Add': 1, 'Reshape': 1, 'Exp': 1, 'Identity': 1}


def test_what_is_affine_and_mixes_the_batch_is_not(random):
  found = check(lambda x: (x @ W[0]) + 2 * jnp.sum(x @ W[0], axis=0, keepdims=True) - 1, (3,), random)
  assert found['ReduceSum'] == 1


def test_what_is_read_twice_is_one_product(random):
  """As in layer normalisation: the product and its mean are both read, and a second one would be slower."""

  def normed(x):
    y = x @ W[0]
    return (y - jnp.mean(y, axis=1, keepdims=True)) * jax.lax.rsqrt(jnp.mean(y * y, axis=1, keepdims=True) + 1e-6)

  assert check(normed, (3,), random)['MatMul'] == 1


@pytest.mark.parametrize('name', ['digamma', 'gammaln'])
def test_functions_that_onnx_does_not_have(name):
  """Against SciPy, in float32, from small to large numbers, and below 0."""
  f = getattr(jax.scipy.special, name)
  x = np.concatenate([np.logspace(-6, 8, 200), -np.linspace(0.1, 20.37, 100)]).astype(np.float32)[:, None]
  found, wanted = caller(model(f, (1,)))[0](x)['y'], getattr(scipy.special, name)(x.astype(np.float64))
  np.testing.assert_allclose(found[:200], wanted[:200], rtol=3e-6, atol=3e-6)
  np.testing.assert_allclose(found[200:], wanted[200:], rtol=1e-3, atol=1e-4)  # near poles x has few digits


@pytest.mark.parametrize('name', ['log1p', 'expm1'])
def test_small_numbers_keep_their_digits(name):
  x = np.logspace(-30, 1, 100, dtype=np.float32)[:, None]
  x = np.concatenate([x, -x[x[:, 0] < 0.9]])
  found = caller(model(getattr(jnp, name), (1,)))[0](x)['y']
  np.testing.assert_allclose(found, getattr(np, name)(x.astype(np.float64)), rtol=2e-6)


def test_float64_keeps_its_digits(random):
  f = lambda x: ((x - 1e9) / 3).astype(jnp.float32)
  check(f, (4,), random, F64, draw=lambda shape: 1e9 + 3 * random.normal(size=shape), tolerance=1e-7)


def test_the_evaluator_of_onnx_agrees(random):
  content = model(lambda x: jnp.tanh(x @ W[0]), (3,))
  x = random.normal(size=(4, 3)).astype(np.float32)
  call, by = reference(content)
  assert by == f'onnx.reference {onnx.__version__}'
  np.testing.assert_allclose(call(x)['y'], np.tanh(x @ W[0]), rtol=1e-5)


UNKNOWN = {
  'sort': lambda x: jnp.sort(x, axis=1),
  'while': lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x),
  'conv_general_dilated': lambda x: conv(x.reshape(-1, 2, 1, 2), padding=((2, 2), (2, 2)), lhs_dilation=(2, 2)),
  'dynamic_slice': lambda x: jax.lax.dynamic_slice_in_dim(x, x[0, 0].astype(jnp.int32), 2, axis=1),
}


@pytest.mark.parametrize('name', UNKNOWN)
def test_what_has_no_rule_is_named_with_its_place(name):
  def f(x):
    with jax.named_scope('stage_1'), jax.named_scope('Mine_0'):
      return jnp.sin(UNKNOWN[name](x))

  with pytest.raises(UserError, match=f"^there is no rule for the primitive '{name}'.* in stage_1/Mine_0 in ONNX: use"):
    model(f, (4,))


def test_what_no_output_depends_on_needs_no_rule(random):
  def f(x):
    jnp.sort(x, axis=1)
    return x + 1

  assert check(f, (4,), random) == {'Add': 1, 'Identity': 1}


def test_other_shapes_of_the_batch_are_refused():
  with pytest.raises(UserError, match='no multiple of the batch'):
    model(lambda x: jnp.cumsum(jnp.broadcast_to(x[:1], (x.shape[0] + 1, 4)), axis=0), (4,))


def test_outputs_have_the_batch_first():
  with pytest.raises(UserError, match='not the batch as its first axis'):
    model(lambda x: x.T, (4,))


def test_a_file_of_more_than_two_gigabytes_is_refused(monkeypatch):
  monkeypatch.setattr('hydra_jax.serving.onnx_file.LARGEST_FILE', 40)
  with pytest.raises(UserError, match='2 are the limit'):
    model(lambda x: x @ W[0], (3,))


def test_no_module_imports_the_libraries_of_onnx():
  """They are extras: functions import them."""
  for file in (ROOT / 'hydra_jax').rglob('*.py'):
    for node in ast.parse(file.read_text()).body:
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = [node.module or ''] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        assert not {name.partition('.')[0] for name in names} & {'onnx', 'onnxruntime', 'flatbuffers'}, file
