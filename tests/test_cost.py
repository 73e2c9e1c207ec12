"""What a prediction costs does not depend on how it is computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax.data import Scaling
from hydra_jax.evaluation import cost
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut, zoo
from hydra_jax.nets.mapping import MAPPINGS
from hydra_jax.nets.stages import mlp

AS_IT_IS = Scaling(*(np.float32([v]) for v in (0, 1, 0, 1)))
B, D, C, H = 7, 5, 3, 4


def model_of(stages, x, at, mapping, heads=H):
  network = cut.multi_head(stages, at, heads, mapping=mapping)
  shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.asarray(x))
  params, state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  return Model(network, params, state, AS_IT_IS, None)


@pytest.mark.parametrize('at', [0, 1, -1])
@pytest.mark.parametrize('mapping', MAPPINGS)
def test_flops_of_dense_layers_are_those_on_paper(mapping, at):
  x, widths = np.ones((B, D), np.float32), (11, 13)
  shared = range(at % 3)
  # A dense layer multiplies and adds, and adds a bias; a hidden one takes a maximum. Bytes are converted and scaled.
  layers = [2 * i * o + o + o * (o != C) for i, o in zip((D, *widths), (*widths, C))]
  expected = sum(layer * (1 if i in shared else H) for i, layer in enumerate(layers))
  model = model_of(mlp(C, widths), x, at, mapping)
  assert cost.flops(model, x) == expected and cost.flops(model, x.astype(np.uint8)) == expected + 3 * D


@pytest.mark.parametrize('at', [0, -1])
def test_flops_of_convolutions_are_the_same_for_every_mapping(at):
  x = np.ones((2, 8, 8, 3), np.float32)
  found = [cost.flops(model_of(zoo.resnet(C, 8, 4), x, at, mapping), x) for mapping in MAPPINGS]
  np.testing.assert_allclose(found, found[0], rtol=1e-4)


@pytest.mark.parametrize(
  'f, times',
  [
    (lambda w, x: x @ w @ w @ w, 3),
    (lambda w, x: jax.lax.fori_loop(0, 3, lambda i, x: x @ w, x), 3),
    (lambda w, x: jax.lax.scan(lambda x, _: (jax.lax.fori_loop(0, 2, lambda i, x: x @ w, x), None), x, None, 5)[0], 10),
    (lambda w, x: jax.jit(lambda x: jax.checkpoint(lambda x: x @ w)(x) @ w)(x), 2),
    (lambda w, x: jax.lax.cond(w[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x), 2),
  ],
)
def test_a_loop_counts_as_often_as_it_runs(f, times):
  product = 2 * B * D * D
  found = cost.count_flops(f, jnp.ones((D, D)), jnp.ones((B, D)))
  assert product * times <= found < product * times + 20  # a loop also counts its turns


def test_a_constant_does_not_change_the_count():
  x = jnp.ones((B, D))
  assert cost.count_flops(lambda x: x + np.zeros((B, D), np.float32), x) == B * D


def test_latencies_have_a_spread():
  x = np.ones((B, D), np.float32)
  model = replace(model_of(mlp(C, (11,)), x, 0, 'vmap'), read=TASKS['classification'].predictives['members'].read)
  found = cost.latencies({'one': model}, 'classification', x, np.zeros(B, np.int32))['one']
  assert 0 < found.low <= found.median <= found.high
