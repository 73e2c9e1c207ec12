"""Training in a few words, for tests: one replica, without its axis."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hydra_jax.data import Scaling
from hydra_jax.devices.layout import SINGLE_DEVICE
from hydra_jax.training import loop
from hydra_jax.training.batches import BatchSource, resident
from hydra_jax.training.step import Job, fresh_state, init_state


def no_scaling(replicas: int = 1) -> Scaling:
  return Scaling(*(np.full((replicas, 1), v, np.float32) for v in (0, 1, 0, 1)))


def squeeze(tree):
  return jax.tree.map(lambda leaf: leaf[0], tree)


def expand(tree):
  return jax.tree.map(lambda leaf: leaf[None], tree)


def start(network, optimizer, x, seed=3):
  """State at step 0 of one network."""
  return squeeze(init_state(network, optimizer, jax.random.key(seed)[None], jnp.asarray(x)[None]))


def restart(optimizer, params, model_state):
  """State at step 0 of a network that has parameters already; these are not donated."""
  return squeeze(fresh_state(optimizer, *expand(jax.tree.map(jnp.copy, (params, model_state)))))


def fit(
  network,
  loss,
  source,
  *,
  steps,
  state=None,
  reduction='sum',
  optimizer=None,
  batch_size=16,
  seed=(0, 1),
  key=4,
  layout=SINGLE_DEVICE,
  steps_per_call=0,
  until=None,
  save=None,
  job=None,
  **hooks,
):
  """`loop.fit` of one replica on arrays or on a source; `save` is called with a state without the axis of replicas."""
  optimizer = optimizer or optax.adam(1e-2)
  if isinstance(source, Mapping):
    source = resident([source], no_scaling())
  assert isinstance(source, BatchSource)
  if state is None:
    state = start(network, optimizer, np.zeros((2, *source.shape), np.float32))
  what = Job(
    network=network,
    loss=loss,
    reduction=reduction,
    optimizer=optimizer,
    steps=until or steps,
    batch_size=batch_size,
    **(job or {}),
  )
  if save:
    hooks['save'] = lambda state: save(squeeze(state))
  given = loop.Hooks(**hooks)
  keys = jax.random.key(key)[None]
  return squeeze(loop.fit(what, expand(state), source, [seed], keys, layout, steps_per_call, given))
