"""The gradient of a training step, for all heads at once, or chunk by chunk where their outputs are large."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.nets import mapping
from hydra_jax.nets.cut import Network
from hydra_jax.nets.stages import Tree

if TYPE_CHECKING:
  from hydra_jax.training.step import Job, State

Batch = dict[str, jax.Array]


def of_step(job: 'Job', state: 'State', batch: Batch, key: jax.Array, heads_K: jax.Array | None = None):
  """The gradient of a step on the whole batch: means over devices along `data`, sums for the body along `head`.

  Args:
    job: What is trained.
    state: Of all heads, or of those with the indices `heads_K`.
    batch: The rows of this device, scaled and augmented.
    key: Of this step.
    heads_K: See `state`.

  Returns:
    Gradients like `state.params`, the loss of each head `[H]`, and the new state of the network.
  """
  heads = len(job.network.heads)
  if job.draw and job.draw.with_heads:
    grads, losses_H, model_state = _of_some_heads(job, state, batch, key)
  else:
    weights_K = job.weights(heads) if heads_K is None else job.weights(heads)[heads_K]
    found = of_heads(job, state.params, state.model_state, batch, key, weights_K, heads_K)
    grads, losses_H, model_state = found
  grads, losses_H, model_state = collectives.mean_over('data', (grads, losses_H, model_state))
  return {**grads, 'body': collectives.sum_over('head', grads['body'])}, losses_H, model_state


def _of_some_heads(job: 'Job', state: 'State', batch: Batch, key: jax.Array):
  """The gradient of the heads of the drawn members. The gradient of the other heads is 0."""
  chosen_K = batch['drawn']
  heads, count = len(job.network.heads), len(chosen_K)
  some = lambda tree: {**tree, 'heads': jax.tree.map(lambda leaf: leaf[chosen_K], tree['heads'])}
  put = lambda leaf, onto: onto.at[chosen_K].set(leaf)
  back = lambda tree, onto: {**tree, 'heads': jax.tree.map(put, tree['heads'], onto['heads'])}
  params_and_state = some(state.params), some(state.model_state)
  grads, losses_K, model_state = of_heads(job, *params_and_state, batch, key, job.weights(count), chosen_K)
  losses_H = put(losses_K * (heads / count), jnp.zeros(heads))
  return back(grads, jax.tree.map(jnp.zeros_like, state.params)), losses_H, back(model_state, state.model_state)


def of_heads(job: 'Job', params: Tree, model_state: Tree, batch: Batch, key, weights_K, heads_K=None):
  """The gradient of `Σ weights · losses + penalty` on one device.

  Args:
    job: What is trained.
    params: Of all heads, or of those with the indices `heads_K`.
    model_state: Of the same heads.
    batch: The rows of this device, scaled and augmented.
    key: Of this step.
    weights_K: Weight of the loss of each head.
    heads_K: See `params`.

  Returns:
    Gradients like `params`, the loss of each head `[K]`, and the new state of the network.
  """
  network = job.network
  arguments = (params, model_state, batch, key, weights_K)
  chunk = _chunk(network, job.heads_per_chunk, *arguments)
  if chunk < len(weights_K):
    indices = jnp.arange(len(weights_K)) if heads_K is None else heads_K
    return _by_chunks(network, job, chunk)(*arguments, indices)
  some = {} if heads_K is None else {'head_indices': heads_K}
  some |= {'teacher': batch['teacher']} if network.reads_teacher else {}
  batch = batch if heads_K is None else {**batch, 'heads': heads_K}

  def objective(params):
    outputs, new = network.apply(params, model_state, batch['x'], key, True, **some)
    common = {} if job.common is None else {'common': _mean_over_heads(job.common(outputs))}
    losses_K = jnp.mean(job.loss(outputs, {**batch, **common}), axis=-1)
    total = jnp.sum(weights_K * losses_K)
    if job.penalty is not None:
      total += share(job.penalty)(params)
    return total, (losses_K, new)

  grads, (losses_K, new) = jax.grad(objective, has_aux=True)(params)
  return grads, losses_K, new


def _chunk(network, heads_per_chunk: int, params, model_state, batch, key, weights_K) -> int:
  heads = len(weights_K)
  if heads == 1 or network.body_and_heads is None:
    return heads
  first = jax.tree.map(lambda leaf: leaf[:1], (params['heads'], model_state['heads']))

  def first_outputs(x):
    body, tiled = network.body_and_heads
    features, _ = body.apply(params['body'], model_state['body'], x, key, True)
    return tiled.apply(*first, features, key, True, np.asarray(network.heads[:1], np.uint32))[0]

  output = jax.eval_shape(first_outputs, batch['x'])
  return mapping.chunk_of(heads, heads_per_chunk, heads * output.size * output.dtype.itemsize)


def _mean_over_heads(values_HxB: jax.Array) -> jax.Array:
  """The mean over all heads on all devices, without a gradient."""
  return jax.lax.stop_gradient(collectives.mean_over('head', jnp.mean(values_HxB, axis=0)))


def _by_chunks(network: Network, job: 'Job', chunk: int):
  """As `of_heads`, for networks whose heads are computed chunk by chunk, to save memory.

  Each chunk of heads goes forward and back before the next chunk. Their gradients with respect to the features are
  summed, and the sum goes back through the body once. Nothing is computed twice, unless the losses have something in
  common: that needs all heads before the first loss, so that heads go forward twice.
  """
  assert network.body_and_heads is not None  # else `_chunk` is all heads
  body, tiled = network.body_and_heads

  def gradient(params, model_state, batch, key, weights_K, heads_K):
    below = lambda p: body.apply(p, model_state['body'], batch['x'], key, True)
    features, back, body_state = jax.vjp(below, params['body'], has_aux=True)

    def forward(head_params, head_state, features, indices):
      ids = jnp.asarray(network.heads, jnp.uint32)[indices]
      return tiled.apply(head_params, head_state, features, key, True, ids)

    def of_chunk(d_features, per_head):
      head_params, head_state, weights, indices = per_head

      def value(head_params, features):
        outputs, new = forward(head_params, head_state, features, indices)
        losses = jnp.mean(job.loss(outputs, {**batch, **common, 'heads': indices}), axis=-1)
        return jnp.sum(weights * losses), (losses, new)

      (d_params, d_more), found = jax.grad(value, (0, 1), has_aux=True)(head_params, features)
      return d_features + d_more, (d_params, *found)

    per_head = split((params['heads'], model_state['heads'], weights_K, heads_K), chunk)
    first = jax.tree.map(lambda leaf: leaf[0], per_head)
    common: Batch = {}
    if (common_of := job.common) is not None:

      def mean_of_chunk(given):
        head_params, head_state, _, indices = given
        return jnp.mean(common_of(forward(head_params, head_state, features, indices)[0]), axis=0)

      common = {'common': _mean_over_heads(jax.lax.map(mean_of_chunk, per_head))}
    convolves = lambda: mapping.convolves(lambda *arguments: of_chunk(*arguments)[0], features, first)
    unroll = mapping.choose(network.mapping, convolves) == 'unroll'
    d_features, found = jax.lax.scan(of_chunk, jnp.zeros_like(features), per_head, unroll=unroll)
    d_heads, losses_K, head_state = join(found)
    grads = {'body': back(d_features)[0], 'heads': d_heads}
    if job.penalty is not None:
      grads = jax.tree.map(jnp.add, grads, jax.grad(share(job.penalty))(params))
    return grads, losses_K, {'body': body_state, 'heads': head_state}

  return gradient


def share(penalty: Callable) -> Callable:
  """Divides a penalty by the number of devices along `head`, because gradients are summed over them."""
  return lambda params: penalty(params) / collectives.size('head')


def split(tree: Tree, size: int) -> Tree:
  """Leaves `[H, …]` as `[H / size, size, …]`.

  Example:
    >>> split(jnp.ones((6, 3)), 2).shape
    (3, 2, 3)
  """
  return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, size, *leaf.shape[1:])), tree)


def join(tree: Tree) -> Tree:
  """The reverse of `split`."""
  return jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *leaf.shape[2:])), tree)
