"""Deep Deterministic Uncertainty: one network, and how dense the training examples are among its features."""

from collections.abc import Callable
from dataclasses import replace
import math
from typing import Any

import jax
import jax.numpy as jnp

from hydra_jax.errors import UserError
from hydra_jax.maths import density
from hydra_jax.methods.base import Fit, MethodContext, NoSettings, Phase, against_labels
from hydra_jax.nets import cut

# Of the covariances, in numbers: 1 GiB in float32.
LARGEST = 2**28

Features = Callable[[Any, Any, jax.Array], jax.Array]  # (params, state, x) -> [B, D]


def ddu(settings: NoSettings, context: MethodContext) -> list[Phase]:
  """DDU (Mukhoti et al. 2023): one network against the labels, then a Gaussian for each class of its features.

  arXiv 2102.11582. The features are what the last stage reads. Total and data uncertainty are the entropy of the
  softmax. Model uncertainty is −log of the density of the features over all classes: it orders inputs, and is no part
  of the total. As in the paper there is a full covariance for each class, with the least jitter that works. Classes
  weigh by their share of the examples.

  The paper also bounds how much the network can stretch and squeeze distances, by spectral normalisation and residual
  connections. That is left out here: the body is the network of the config, so that `ddu` differs from `single` by the
  density alone. A residual network, such as `resnet`, has the connections. Without the bound, inputs that are far apart
  may have the same features, and be taken for each other.
  """
  del settings
  if 'density' not in context.task.predictives:
    raise UserError('ddu is for classification: leave it out of config.students')
  network, fits = with_density(cut.multi_head(context.stages('density'), -1, 1, mapping=context.mapping))
  return [replace(against_labels(network, context), fits=fits)]


def with_density(one: cut.Network) -> tuple[cut.Network, tuple[Fit, ...]]:
  """A one-headed network that also predicts −log of the density of its features, and how the density is fitted.

  Args:
    one: The network, whose body gives the features.

  Returns:
    A network with outputs `[1, B, C]` in training, and `[1, B, C + 1]` in evaluation, where −log density is the last.
  """
  assert one.body_and_heads is not None
  body, head = one.body_and_heads

  def flat(x: jax.Array) -> jax.Array:
    return jnp.reshape(x, (x.shape[0], math.prod(x.shape[1:]))).astype(jnp.float32)

  def features_of(params: Any, state: Any, x: jax.Array) -> jax.Array:
    found, _ = body.apply(params['body'], state['body'], x, None, False)
    return flat(found)

  def init(key, x):
    params, state = one.init(key, x)
    features = features_of(params, state, x).shape[-1]
    classes = one.apply(params, state, x)[0].shape[-1]
    if (size := classes * features**2) > LARGEST:
      raise UserError(
        f'ddu has a covariance of {features:,} features for each of {classes:,} classes, {size / 2**28:.3g} GiB: '
        f'use a network with at most {math.isqrt(LARGEST // classes):,} features below its last stage'
      )
    return params, {**state, 'density': density.empty(classes, features)._asdict()}

  def apply(params, state, x, key=None, train=False):
    if train:
      outputs, new = one.apply(params, {'body': state['body'], 'heads': state['heads']}, x, key, train)
      return outputs, {**new, 'density': state['density']}
    below, _ = body.apply(params['body'], state['body'], x, key, train)
    outputs, _ = head.apply(params['heads'], state['heads'], below, key, train, jnp.asarray(one.heads, jnp.uint32))
    surprise = -density.log_density(density.Gaussians(**state['density']), flat(below))
    return jnp.concatenate([outputs, surprise[None, :, None]], axis=-1), state

  return one._replace(init=init, apply=apply, body_and_heads=None), _fits(features_of)


def _fits(features_of: Features) -> tuple[Fit, ...]:
  """The means of the features of each class, and then the Gaussians around them."""

  def sums(params, state, batch):
    classes = len(state['density']['mean'])
    return density.sums(features_of(params, state, batch['x']), batch['y'], batch['weight'], classes)

  def means(state, found):
    mean = found['features'] / found['count'].clip(1)[:, None]
    return {**state, 'density': {**state['density'], 'mean': mean, 'log_scale': found['count']}}

  def products(params, state, batch):
    mean = state['density']['mean']
    return density.products(features_of(params, state, batch['x']), batch['y'], batch['weight'], mean)

  def gaussians(state, found):
    before = state['density']  # `log_scale` holds the numbers of examples between both fits
    try:
      return {**state, 'density': density.fitted(before['log_scale'], before['mean'], found)._asdict()}
    except ValueError as e:
      raise UserError(f'{e}: lower the learning rate') from e

  return Fit(sums, means), Fit(products, gaussians)
