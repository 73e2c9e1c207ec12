"""The gradient of a training step, of all heads at once, or chunk by chunk where their outputs are large."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax import mapping
from hydra_jax.cut import Network


def make(network: Network, loss: Callable, objective: Callable, penalty: Callable | None, heads_per_chunk: int):
  """Returns `gradient(params, model_state, batch, key, **some)`, see `train.make_step` for the arguments.

  It gives the gradient of the objective, the loss of each head `[H]`, and the new state of the network.
  `some` is passed on to `network.apply`.
  """

  def gradient(params, model_state, batch, key, **some):
    chunk = len(network.heads) if some else _chunk(network, params, model_state, batch, key, heads_per_chunk)
    if chunk < len(network.heads):
      return _by_chunks(network, loss, objective, penalty, chunk)(params, model_state, batch, key)

    def value(params):
      outputs, new = network.apply(params, model_state, batch['x'], key, True, **some)
      losses_H = jnp.mean(loss(outputs, batch), axis=-1)
      total = objective(losses_H) if penalty is None else objective(losses_H) + penalty(params)
      return total, (losses_H, new)

    grads, (losses_H, new) = jax.grad(value, has_aux=True)(params)
    return grads, losses_H, new

  return gradient


def _chunk(network, params, model_state, batch, key, heads_per_chunk: int) -> int:
  heads = len(network.heads)
  if heads == 1 or network.parts is None:
    return heads
  first = jax.tree.map(lambda leaf: leaf[:1], (params['heads'], model_state['heads']))

  def one(x):
    body, tiled = network.parts
    features, _ = body.apply(params['body'], model_state['body'], x, key, True)
    return tiled.apply(*first, features, key, True, np.asarray(network.heads[:1], np.uint32))[0]

  output = jax.eval_shape(one, batch['x'])
  return mapping.chunk_of(heads, heads_per_chunk, heads * output.size * output.dtype.itemsize)


def _by_chunks(network: Network, loss: Callable, objective: Callable, penalty: Callable | None, chunk: int):
  """The same, where only one chunk's outputs exist at a time.

  Each chunk of heads goes forward and back before the next one does; the gradient with respect to the
  features is added up, and goes back through the body once. Nothing is computed twice.
  """
  body, tiled = network.parts
  heads = len(network.heads)
  split = lambda tree: jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, chunk, *leaf.shape[1:])), tree)
  join = lambda tree: jax.tree.map(lambda leaf: jnp.reshape(leaf, (heads, *leaf.shape[2:])), tree)

  def gradient(params, model_state, batch, key):
    below = lambda p: body.apply(p, model_state['body'], batch['x'], key, True)
    features, back, body_state = jax.vjp(below, params['body'], has_aux=True)

    def of_chunk(d_features, given):
      head_params, head_state, ids, places, weights = given

      def value(head_params, features):
        outputs, new = tiled.apply(head_params, head_state, features, key, True, ids)
        losses = jnp.mean(loss(outputs, {**batch, 'heads': places}), axis=-1)
        return jnp.sum(weights * losses), (losses, new)

      (d_params, d_more), found = jax.grad(value, (0, 1), has_aux=True)(head_params, features)
      return d_features + d_more, (d_params, *found)

    # The objective is linear, so each head has a weight in it.
    weights_H = jax.grad(objective)(jnp.zeros(heads))
    ids = jnp.asarray(network.heads, jnp.uint32)
    given = split((params['heads'], model_state['heads'], ids, jnp.arange(heads), weights_H))
    unroll = network.mapping == 'unroll'
    d_features, found = jax.lax.scan(of_chunk, jnp.zeros_like(features), given, unroll=unroll)
    d_heads, losses_H, head_state = join(found)
    grads = {'body': back(d_features)[0], 'heads': d_heads}
    if penalty is not None:
      grads = jax.tree.map(jnp.add, grads, jax.grad(penalty)(params))
    return grads, losses_H, {'body': body_state, 'heads': head_state}

  return gradient
