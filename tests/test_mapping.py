"""How heads, steps and replicas are laid out changes no result."""

import os

import chex
from flax import linen as nn
from helpers import expand, no_scaling, start
from hypothesis import given, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hydra_jax.data import Scaling
from hydra_jax.devices import cpu
from hydra_jax.devices.layout import SINGLE_DEVICE
from hydra_jax.errors import UserError
from hydra_jax.evaluation import evaluate
from hydra_jax.maths import losses
from hydra_jax.maths.uncertainty import classification
from hydra_jax.nets import batch_ensemble, cut, mapping, zoo
from hydra_jax.nets.stages import from_linen, mlp
from hydra_jax.training import batches, gradients, loop
from hydra_jax.training.program import Inputs, make_program
from hydra_jax.training.step import Job, init_state

pytestmark = pytest.mark.slow  # compiles a lot

H, B, C = 6, 9, 4
RANDOM = np.random.default_rng(0)
FLAT = jnp.asarray(RANDOM.normal(size=(B, 5)), jnp.float32)
IMAGES = jnp.asarray(RANDOM.normal(size=(B, 6, 6, 3)), jnp.float32)
TEACHER = jnp.asarray(RANDOM.normal(size=(H, B, C)), jnp.float32)
LABELS = jnp.asarray(RANDOM.integers(C, size=B))

NETWORKS = {
  'mlp': (lambda: mlp(C, (8, 7)), FLAT),
  'resnet': (lambda: zoo.resnet(C, 8, 4), IMAGES),
}


def member_loss(outputs, batch):
  heads = batch.get('heads', jnp.arange(H))
  return losses.hydra(outputs, batch['teacher'][heads], 2.0)


def job_of(network, loss=member_loss, reduction='mean', **options):
  given = dict(network=network, loss=loss, reduction=reduction, optimizer=optax.adam(1e-2), steps=30, batch_size=8)
  return Job(**(given | options))


def gradient(network, x, heads_per_chunk=H, **options):
  params, state = network.init(jax.random.key(0), x)
  batch = {'x': x, 'y': LABELS, 'teacher': TEACHER}
  job = job_of(network, heads_per_chunk=heads_per_chunk, **options)
  of = lambda *given: gradients.of_heads(job, *given)
  return jax.jit(of)(params, state, batch, jax.random.key(1), job.weights(H))


@pytest.mark.parametrize(
  'name, at, how',
  [('mlp', at, how) for at in (0, 1, -1) for how in ('unroll', 'loop')] + [('resnet', -2, 'unroll')],
)
def test_every_mapping_of_heads_gives_the_same(name, at, how):
  stages, x = NETWORKS[name]
  build = lambda how: cut.multi_head(stages(), at, H, mapping=how)
  expected = gradient(build('vmap'), x)
  assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected[0]))
  chex.assert_trees_all_close(gradient(build(how), x), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('how', ['unroll', 'loop'])
def test_every_mapping_of_a_batch_ensemble_gives_the_same(how):
  build = lambda how: batch_ensemble.batch_ensemble(mlp(C, (8,)), H, how)
  chex.assert_trees_all_close(gradient(build(how), FLAT), gradient(build('vmap'), FLAT), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name, at, chunk', [('mlp', 0, 1), ('mlp', 0, 4), ('mlp', -1, 2)])
def test_chunks_of_heads_give_the_same(name, at, chunk):
  stages, x = NETWORKS[name]
  network = cut.multi_head(stages(), at, H)
  whole = gradient(network, x)
  chex.assert_trees_all_close(gradient(network, x, chunk), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 2])
def test_chunks_have_the_mean_of_all_heads(chunk):
  loss = lambda outputs, batch: member_loss(outputs, batch) + losses.mean_term(outputs, TEACHER, batch['common'])
  network = cut.multi_head(mlp(C, (8, 7)), 1, H)
  given = dict(loss=loss, common=jax.nn.softmax)
  chex.assert_trees_all_close(gradient(network, FLAT, chunk, **given), gradient(network, FLAT, **given), rtol=1e-4)


def test_chunks_heed_the_objective_and_the_penalty():
  network = cut.multi_head(mlp(C, (8, 7)), 1, H)
  label = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  penalty = lambda params: 0.3 * losses.similarity([params['heads'][0]['Dense_0']['kernel']])
  given = dict(loss=label, reduction='sum', penalty=penalty)
  chex.assert_trees_all_close(gradient(network, FLAT, 2, **given), gradient(network, FLAT, **given), rtol=1e-4)
  without = gradient(network, FLAT, 2, loss=label, reduction='sum')
  assert not np.allclose(
    without[0]['heads'][0]['Dense_0']['kernel'], gradient(network, FLAT, **given)[0]['heads'][0]['Dense_0']['kernel']
  )


def test_chunks_of_heads_with_names_of_their_own_draw_the_same_noise():
  """Dropout of a head depends on which head it is, not on its place."""
  from hydra_jax.methods.supervised import with_dropout

  network = cut.multi_head(with_dropout(mlp(C, (8, 7)), 0.5), 0, [7, 3, 5, 11, 2, 13])
  chex.assert_trees_all_close(gradient(network, FLAT, 2), gradient(network, FLAT), rtol=1e-4, atol=1e-6)


def test_chunks_take_an_eighth_of_the_memory():
  heads, batch, classes, features = 48, 256, 100, 32
  network = cut.multi_head(mlp(classes, (features,)), 1, heads)
  x = jnp.ones((batch, 7))
  params, state = network.init(jax.random.key(0), x)
  data = {'x': x, 'teacher': jnp.ones((heads, batch, classes))}

  def temporary(chunk):
    loss = lambda outputs, batch: losses.hydra(outputs, batch['teacher'][batch.get('heads', jnp.arange(heads))])
    job = job_of(network, loss, heads_per_chunk=chunk)
    of = jax.jit(lambda *given: gradients.of_heads(job, *given))
    given = params, state, data, jax.random.key(0), jnp.ones(heads)
    return of.lower(*given).compile().memory_analysis().temp_size_in_bytes

  assert temporary(2) < temporary(heads) / 8


@given(st.integers(1, 300), st.integers(0, 400), st.integers(1, 2**34))
def test_a_chunk_divides_the_heads(heads, wanted, size):
  chunk = mapping.chunk_of(heads, wanted, size)
  assert 1 <= chunk <= heads and heads % chunk == 0
  if wanted:
    assert chunk <= wanted
  elif size <= mapping.LARGE_OUTPUTS:
    assert chunk == heads
  else:
    assert chunk == 1 or size * chunk / heads <= mapping.CHUNK_OUTPUTS


@given(st.integers(1, 400), st.floats(1, 1e8))
def test_a_group_divides_the_heads(heads, parameters):
  group = cpu.group_of(heads, parameters)
  assert 1 <= group <= heads and heads % group == 0
  assert group in (1, heads) or group * parameters <= cpu.CACHED_PARAMETERS


def test_networks_that_fill_the_cache_are_trained_in_groups():
  assert cpu.group_of(200, 89610) == 10
  assert cpu.group_of(11, 89610) == 11
  assert cpu.group_of(211, 89610) == 211  # a prime: one by one would be worse


class Conv1D(nn.Module):
  """A convolution inside a compiled function, whose kernel has three axes as those of attention have."""

  @nn.compact
  def __call__(self, x):
    return nn.jit(nn.Conv)(4, (3,))(x)


@pytest.mark.parametrize(
  'make, shape, found',
  [
    (lambda: mlp(C, (8,)), (5,), False),
    (lambda: zoo.lenet(C), (16, 16, 3), True),
    (lambda: [from_linen(nn.MultiHeadDotProductAttention(2)), *mlp(C, ())], (6, 4), False),
    (lambda: [from_linen(Conv1D()), *mlp(C, ())], (6, 4), True),
  ],
  ids=['mlp', 'lenet', 'attention', 'one axis'],
)
@pytest.mark.parametrize('at', [0, -1])
def test_convolutions_are_found_in_what_is_computed(make, shape, found, at):
  network = cut.multi_head(make(), at, H)
  assert network.convolves(shape) == found
  one = lambda x: jnp.sum(network.apply(*network.init(jax.random.key(0), x), x)[0])
  heads = mapping.choose('auto', lambda: mapping.convolves(one, jnp.ones((2, *shape))))
  assert heads == ('unroll' if found else 'vmap')


def test_convolutions_are_neither_looped_nor_grouped_on_cpu():
  network = cut.multi_head(zoo.resnet(C, 8, 4), -2, 3)
  # No labels: XLA may make a loop of looking these up.
  job = job_of(network, lambda o, b: jnp.mean(o**2, axis=-1), 'sum', batch_size=B, heads_per_chunk=1)
  state = expand(start(network, job.optimizer, IMAGES[:2], 0))
  program = make_program(job, SINGLE_DEVICE, state, IMAGES.shape[1:], loops=False)
  index, key = np.zeros((1, 1, B), np.int32), np.zeros((1, 2), np.uint32)
  inputs = Inputs(expand({'x': IMAGES, 'y': LABELS}), no_scaling(), (), index, 1, key, np.zeros(3, np.int32))
  text = program.lower(state, inputs).compile().as_text()
  assert text.count(' convolution(') >= 20
  for slow in ('feature_group_count', 'batch_group_count', ' while('):
    assert slow not in text


def test_xla_knows_the_options():
  """Else training is slower and nothing says so: look for their new names."""
  for convolution, size in ((True, 1), (False, 1), (False, 1e9)):
    assert len(cpu.compiler_options(convolution, size)) == 2
  assert not cpu._is_known('xla_cpu_no_such_option', '1')


@pytest.mark.skipif(not (os.confstr('CS_GNU_LIBC_VERSION') or '').startswith('glibc'), reason='another C library')
def test_huge_pages_are_missed_where_linux_offers_them_and_nobody_asked(tmp_path, monkeypatch):
  offered = tmp_path / 'enabled'
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=0')
  assert not cpu.lacks_huge_pages(offered)
  offered.write_text('always [madvise] never\n')
  assert cpu.lacks_huge_pages(offered)
  name, value = cpu.HUGE_PAGES.split('=', 1)
  monkeypatch.setenv(name, value)
  assert not cpu.lacks_huge_pages(offered)
  monkeypatch.delenv(name)
  offered.write_text('[always] madvise never\n')
  assert not cpu.lacks_huge_pages(offered)


@pytest.mark.parametrize('outputs', [1, 2, 4, 5])
def test_products_of_their_own_have_the_right_gradient(outputs, random):
  x, kernel, dy = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((B, 7), (7, outputs), (B, outputs)))
  expected = jax.vjp(lambda x, k: x @ k, x, kernel)
  found = jax.vjp(cpu.own_product, x, kernel)
  chex.assert_trees_all_close((found[0], found[1](dy)), (expected[0], expected[1](dy)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
def test_convolutions_have_the_right_gradient(stride, random):
  kernel = jnp.asarray(random.normal(size=(3, 3, 3, 5)), jnp.float32)
  given = (stride, stride), ((1, 1), (1, 1))
  names = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
  both = [
    jax.vjp(lambda x, k, f=f: f(x, k, *given, **names), IMAGES, kernel)
    for f in (cpu.convolve, jax.lax.conv_general_dilated)
  ]
  (y, back), (expected, expected_back) = both
  chex.assert_trees_all_close((y, back(y)), (expected, expected_back(expected)), rtol=1e-4, atol=1e-4)


R, N = 3, 50


def replica(r):
  random = np.random.default_rng(r)
  x = random.normal(size=(N, 5)).astype(np.float32)
  return {'x': x, 'y': random.integers(C, size=N), 'teacher': random.normal(size=(H, N, C)).astype(np.float32)}


def fit(which, data=None, network=None, reduction='mean', optimizer=None, chunk=0, steps_per_call=0, **hooks):
  """Trains replicas together, those of the numbers in `which`."""
  data = data or [replica(r) for r in which]
  network = network or cut.multi_head(mlp(C, (8, 7)), 1, H)
  job = job_of(network, reduction=reduction, optimizer=optimizer or optax.adam(1e-2), heads_per_chunk=chunk)
  keys = jax.random.split(jax.random.key(2), R)[np.asarray(which)]
  scaling = Scaling(*(np.float32([[v + 0.1 * r] for r in which]) for v in (0, 1, 0, 1)))
  state = init_state(network, job.optimizer, keys, np.stack([d['x'][:2] for d in data]))
  seeds = [(0, r) for r in which]
  given = loop.Hooks(**hooks)
  return loop.fit(job, state, batches.resident(data, scaling), seeds, keys, steps_per_call=steps_per_call, hooks=given)


def test_replicas_together_are_replicas_alone():
  """Each with data, scaling, order, start and teacher as in a run by itself."""
  together = fit(range(R))
  assert np.all(together.step == 30)
  for r in range(R):
    mine = jax.tree.map(lambda leaf, r=r: leaf[r : r + 1], together.params)
    chex.assert_trees_all_close(mine, fit([r]).params, rtol=2e-3, atol=2e-5)
  assert not np.allclose(*jax.tree.leaves(together.params)[0][:2])


def test_a_loss_that_is_not_finite_names_the_replica():
  data = [replica(r) for r in range(R)]
  data[2]['x'][:] = np.nan
  with pytest.raises(UserError, match=r'step 0 \(head or member 0, of replica 2 in its group\)'):
    fit(range(R), data)


@pytest.mark.parametrize('optimizer', [optax.adam(1e-2), optax.sgd(0.1, momentum=0.9)])
def test_groups_of_members_train_the_same(optimizer):
  """With noise of their own, which goes by who they are and not by their place in a group."""
  from hydra_jax.methods.supervised import with_dropout

  network = cut.multi_head(with_dropout(mlp(C, (8, 7)), 0.2), 0, [7, 3, 5, 11, 2, 13])
  settings = dict(network=network, reduction='sum', optimizer=optimizer)
  chex.assert_trees_all_close(fit([0], chunk=2, **settings), fit([0], **settings), rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_not_finite_names_the_member_in_any_group():
  data = replica(0)
  data['teacher'][4] = np.nan
  with pytest.raises(UserError, match=r'step 0 \(head or member 4\)'):
    fit([0], [data], cut.multi_head(mlp(C, (8, 7)), 0, H), 'sum', chunk=3)


@pytest.mark.parametrize('steps_per_call', [1, 7])
def test_steps_per_call_change_no_bit(steps_per_call):
  chex.assert_trees_all_equal(fit([0], steps_per_call=steps_per_call), fit([0]))


def test_a_profile_is_written(tmp_path):
  fit([0], profile=tmp_path / 'trace')
  assert list((tmp_path / 'trace').rglob('*.trace.json.gz'))


@pytest.mark.parametrize('rows', [1, 40])
@pytest.mark.parametrize('at', [0, -1])
def test_frozen_parameters_predict_the_same(at, rows, random):
  network = cut.multi_head(mlp(C, (8, 7)), at, H)
  params, state = network.init(jax.random.key(0), FLAT)
  x = jnp.asarray(random.normal(size=(rows, 5)), jnp.float32)
  expected = network.apply(params, state, x)[0]
  np.testing.assert_allclose(evaluate.frozen(network, params, state)(x), expected, rtol=1e-5, atol=1e-6)


def test_uncertainty_survives_any_mapping():
  """All the way to what is reported: the model uncertainty of the heads."""
  outputs = {}
  for how in mapping.MAPPINGS[1:]:
    network = cut.multi_head(mlp(C, (8, 7)), 1, H, mapping=how)
    outputs[how] = classification(jax.nn.log_softmax(network.apply(*network.init(jax.random.key(0), FLAT), FLAT)[0]))
  for how in ('unroll', 'loop'):
    chex.assert_trees_all_close(outputs[how], outputs['vmap'], rtol=1e-5, atol=1e-6)
