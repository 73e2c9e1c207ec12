"""The gradient of a training step, of all heads at once, or chunk by chunk where their outputs are large."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives, mapping
from hydra_jax.nets.cut import Network
from hydra_jax.nets.stages import Tree


def make(network: Network, loss: Callable, penalty: Callable | None, heads_per_chunk: int):
  """Returns `gradient(params, model_state, batch, key, weights_K, places_K=None)`, see `train.make_step`.

  It gives the gradient of `Σ weights · losses + penalty`, the loss of each head `[K]`, and the new state of
  the network. Where parameters are those of some heads only, `places_K` says of which.
  """

  def gradient(params, model_state, batch, key, weights_K, places_K=None):
    given = (params, model_state, batch, key, weights_K)
    chunk = _chunk(network, heads_per_chunk, *given)
    if chunk < len(weights_K):
      places = jnp.arange(len(weights_K)) if places_K is None else places_K
      return _by_chunks(network, loss, penalty, chunk)(*given, places)
    some = {} if places_K is None else {'places': places_K}
    batch = batch if places_K is None else {**batch, 'heads': places_K}

    def value(params):
      outputs, new = network.apply(params, model_state, batch['x'], key, True, **some)
      losses_K = jnp.mean(loss(outputs, batch), axis=-1)
      total = jnp.sum(weights_K * losses_K)
      if penalty is not None:
        total += share(penalty)(params)
      return total, (losses_K, new)

    grads, (losses_K, new) = jax.grad(value, has_aux=True)(params)
    return grads, losses_K, new

  return gradient


def _chunk(network, heads_per_chunk: int, params, model_state, batch, key, weights_K) -> int:
  heads = len(weights_K)
  if heads == 1 or network.parts is None:
    return heads
  first = jax.tree.map(lambda leaf: leaf[:1], (params['heads'], model_state['heads']))

  def one(x):
    body, tiled = network.parts
    features, _ = body.apply(params['body'], model_state['body'], x, key, True)
    return tiled.apply(*first, features, key, True, np.asarray(network.heads[:1], np.uint32))[0]

  output = jax.eval_shape(one, batch['x'])
  return mapping.chunk_of(heads, heads_per_chunk, heads * output.size * output.dtype.itemsize)


def _by_chunks(network: Network, loss: Callable, penalty: Callable | None, chunk: int):
  """The same, where only one chunk's outputs exist at a time.

  Each chunk of heads goes forward and back before the next one does; the gradient with respect to the
  features is added up, and goes back through the body once. Nothing is computed twice.
  """
  assert network.parts is not None  # else `_chunk` is all heads
  body, tiled = network.parts

  def gradient(params, model_state, batch, key, weights_K, places_K):
    below = lambda p: body.apply(p, model_state['body'], batch['x'], key, True)
    features, back, body_state = jax.vjp(below, params['body'], has_aux=True)

    def of_chunk(d_features, given):
      head_params, head_state, weights, places = given

      def value(head_params, features):
        ids = jnp.asarray(network.heads, jnp.uint32)[places]
        outputs, new = tiled.apply(head_params, head_state, features, key, True, ids)
        losses = jnp.mean(loss(outputs, {**batch, 'heads': places}), axis=-1)
        return jnp.sum(weights * losses), (losses, new)

      (d_params, d_more), found = jax.grad(value, (0, 1), has_aux=True)(head_params, features)
      return d_features + d_more, (d_params, *found)

    given = split((params['heads'], model_state['heads'], weights_K, places_K), chunk)
    unroll = network.mapping == 'unroll'
    d_features, found = jax.lax.scan(of_chunk, jnp.zeros_like(features), given, unroll=unroll)
    d_heads, losses_K, head_state = join(found)
    grads = {'body': back(d_features)[0], 'heads': d_heads}
    if penalty is not None:
      grads = jax.tree.map(jnp.add, grads, jax.grad(share(penalty))(params))
    return grads, losses_K, {'body': body_state, 'heads': head_state}

  return gradient


def share(penalty: Callable) -> Callable:
  """A device's share of a penalty; its gradient adds those of all, as a sum over devices is its own transpose."""
  return lambda params: penalty(params) / collectives.size('head')


def split(tree: Tree, size: int) -> Tree:
  """Leaves `[H, …]` as `[H / size, size, …]`."""
  return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, size, *leaf.shape[1:])), tree)


def join(tree: Tree) -> Tree:
  """The reverse of `split`."""
  return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[2:])), tree)
