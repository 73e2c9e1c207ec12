"""The same numbers on any number of devices, and nothing moved that need not be."""

import chex
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from hydra_jax import augment, cut, feeds, latent, losses, networks, parallel, train
from hydra_jax.data import Scaling
from hydra_jax.methods import Phase, with_dropout
from hydra_jax.stages import mlp

DEVICES = 8
H, N, B, C, STEPS = 8, 60, 16, 3, 12
RANDOM = np.random.default_rng(0)
FLAT, IMAGES = (RANDOM.normal(size=(N, *s)).astype(np.float32) for s in ((5,), (8, 8, 3)))
LABELS = RANDOM.integers(C, size=N).astype(np.int32)
TEACHER = RANDOM.normal(size=(H, N, C)).astype(np.float32)
AS_IT_IS = Scaling(*(np.float32([v]) for v in (0, 1, 0, 1)))
LAYOUTS = {'8x1': (8, 1), '4x2': (4, 2), '2x4': (2, 4), '1x8': (1, 8), 'pmap': (8, 1)}


def settings(data=-1, head=1, mode='shard_map'):
  return ConfigDict(dict(mode=mode, mesh=dict(data=data, head=head)))


def phase(network, heads_per_step=0):
  return Phase('it', network, None, None, 1, {}, heads_per_step=heads_per_step)


def layout(name, network, **options):
  if name == 'alone':
    return parallel.ALONE
  chosen = settings(*LAYOUTS[name], 'pmap' if name == 'pmap' else 'shard_map')
  return parallel.layout(chosen.mode, parallel.arranged(chosen, DEVICES, phase(network, **options), B, 'it'))


def label(outputs, batch):
  return losses.cross_entropy(outputs, batch['y'])


def member(outputs, batch):
  return losses.hydra(outputs, batch['teacher'][batch.get('heads', jnp.arange(H))], 2.0)


def similarity(params):
  return 0.5 * losses.similarity([params['heads'][0]['Dense_0']['kernel']])


def gaussian(outputs, batch):
  return latent.expanded_nll(outputs, batch['teacher'], 2)


def case(stages, at=0, heads=H, loss=label, objective=jnp.sum, x=FLAT, optimizer=None, views=(), **step):
  return stages, at, heads, loss, objective, x, optimizer or optax.adam(1e-2), views, step


CASES = {
  'ensemble': case(lambda: mlp(C, (8, 7))),
  'ensemble in groups': case(lambda: mlp(C, (8, 7)), heads_per_chunk=1),
  'ensemble with dropout': case(lambda: with_dropout(mlp(C, (8, 7)), 0.3)),
  'hydra': case(lambda: mlp(C, (8, 7)), 1, loss=member, objective=jnp.mean),
  'hydra in chunks': case(lambda: mlp(C, (8, 7)), 1, loss=member, objective=jnp.mean, heads_per_chunk=1),
  'hydra kept apart': case(lambda: mlp(C, (8, 7)), 1, loss=member, objective=jnp.mean, penalty=similarity),
  'some heads': case(lambda: mlp(C, (8, 7)), 1, loss=member, objective=jnp.mean, heads_per_step=3),
  'one network': case(lambda: mlp(C, (8,)), heads=1),
  'mixed inputs': case(lambda: mlp(C, (8,)), heads=1, views=('mixup', 'noise')),
  'residual': case(
    lambda: networks.resnet(C, 8, 4), -2, 8, x=IMAGES, optimizer=optax.sgd(0.02, 0.9), views=('crop', 'flip', 'cutout')
  ),
}


def fit(name, layout_name, feed=None, steps=STEPS, state=None, **kwargs):
  stages, at, heads, loss, objective, x, optimizer, views, options = CASES[name]
  network = cut.hydra(stages(), at, heads)
  spread = layout(layout_name, network, heads_per_step=options.get('heads_per_step', 0))
  shown = []
  state = train.fit(
    train.make_step(network, loss, objective, optimizer, STEPS, **options),
    state or train.init(network, optimizer, jax.random.key(3), jnp.asarray(x[:2])),
    feed or feeds.resident({'x': x, 'y': LABELS, 'teacher': TEACHER}),
    AS_IT_IS,
    seed=(0, 1),
    key=jax.random.key(4),
    steps=steps,
    batch_size=B,
    augment=augment.build(views, x.ndim),
    layout=spread,
    progress=lambda step, loss: shown.append((step, loss)),
    **kwargs,
  )
  return jax.tree.map(np.asarray, state), shown


@pytest.fixture(scope='module')
def alone():
  return {name: fit(name, 'alone') for name in CASES}


# Compilation takes the time, so only what differs most is tried everywhere.
EVERYWHERE = ('ensemble in groups', 'hydra', 'residual')
HEADS_STAY = ('some heads', 'one network', 'mixed inputs')


def combinations():
  for name in CASES:
    for where in LAYOUTS if name in EVERYWHERE else ('4x2', 'pmap') if name in HEADS_STAY else ('2x4',):
      yield name, where


@pytest.mark.parametrize('name, where', list(combinations()))
def test_any_layout_trains_the_same(name, where, alone):
  expected, told = alone[name]
  found, shown = fit(name, where)
  chex.assert_trees_all_close(found, expected, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(mean_loss(shown), mean_loss(told), rtol=1e-3)


def mean_loss(shown):
  """Over all steps, from the means over those of each call."""
  steps, losses = zip(*shown)
  return np.sum(np.diff((0, *steps)) * losses) / steps[-1]
