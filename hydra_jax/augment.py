"""Augmentation on the device, inside the step: pure functions `(key, batch) -> batch`.

All change `batch['x']` alone, what the network reads: scaled, so that 0 is the mean of the training
set; `mixup` also says whose labels it mixed. A student that is trained on augmented inputs has its
teacher predict on the same ones, in the same step. What happens to an example depends on its place in
the batch and on no other example (but for mixup), so it is the same on any number of devices.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hydra_jax import axes
from hydra_jax.errors import UserError, look_up

Batch = dict[str, jax.Array]
Augmentation = Callable[[jax.Array, Batch], Batch]

PAD = 4
HOLE = 0.5
NOISE = 0.3


def flip(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Mirrors an image left to right with probability one half."""
  return jnp.where(jax.random.bernoulli(key), x_HxWxC[:, ::-1], x_HxWxC)


def crop(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Pads each side by 4 and cuts out a window of the old size at random (He et al. 2015)."""
  height, width, _ = x_HxWxC.shape
  padded = jnp.pad(x_HxWxC, ((PAD, PAD), (PAD, PAD), (0, 0)))
  corner = jax.random.randint(key, (2,), 0, 2 * PAD + 1)

  def rows(start, size):
    """Picks `size` of `size + 8` rows, as a matrix of 0 and 1: a gather would take longer than the network."""
    return jax.nn.one_hot(start + jnp.arange(size), size + 2 * PAD)

  exactly = jax.lax.Precision.HIGHEST
  cut = jnp.einsum('hi,iwc->hwc', rows(corner[0], height), padded, precision=exactly)
  return jnp.einsum('wj,hjc->hwc', rows(corner[1], width), cut, precision=exactly)


def cutout(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Blanks a square of half the side, centred anywhere (DeVries and Taylor 2017)."""
  height, width, _ = x_HxWxC.shape
  side = int(HOLE * height)

  def outside(key, size):
    start = jax.random.randint(key, (), 0, size) - side // 2
    at = jnp.arange(size)
    return (at < start) | (at >= start + side)

  rows, columns = outside(jax.random.fold_in(key, 0), height), outside(jax.random.fold_in(key, 1), width)
  return jnp.where((rows[:, None] | columns[None])[..., None], x_HxWxC, 0)


def noise(key: jax.Array, x: jax.Array) -> jax.Array:
  """Adds Gaussian noise of a strength that is uniform on 0 to 0.3 standard deviations, input by input."""
  strength = NOISE * jax.random.uniform(jax.random.fold_in(key, 0))
  return x + strength * jax.random.normal(jax.random.fold_in(key, 1), x.shape)


def mixup(key: jax.Array, batch: Batch) -> Batch:
  """Mixes each input with another of the batch, by a share uniform on [0, 1] (Zhang et al. 2018).

  Labels are not mixed but kept: with `share` [B] of its own, `y`, an input has that of the other,
  `other_y`, for the label loss; a teacher at hand says itself what a mixture is.
  """
  x, examples = batch['x'], len(batch['x'])
  share_B = jax.vmap(jax.random.uniform)(axes.example_keys(jax.random.fold_in(key, 0), examples))
  order = jax.random.permutation(jax.random.fold_in(key, 1), examples * axes.size('data'))
  other = lambda part: axes.gathered('data', batch[part])[order[axes.positions('data', examples)]]
  share = jnp.expand_dims(share_B, range(1, x.ndim))
  return {**batch, 'x': share * x + (1 - share) * other('x'), 'other_y': other('y'), 'share': share_B}


def of_inputs(f: Callable[[jax.Array, jax.Array], jax.Array]) -> Augmentation:
  """Applies `(key, x) -> x` to each input, with a key of its own."""

  def apply(key, batch):
    keys_B = axes.example_keys(key, len(batch['x']))
    return {**batch, 'x': jax.vmap(f)(keys_B, batch['x'])}

  return apply


AUGMENTATIONS: dict[str, Augmentation] = {
  'crop': of_inputs(crop),
  'flip': of_inputs(flip),
  'cutout': of_inputs(cutout),
  'mixup': mixup,
  'noise': of_inputs(noise),
}

IMAGES_ONLY = {'crop', 'flip', 'cutout'}


def build(names: Sequence[str], ndim: int) -> Augmentation:
  """One augmentation after the other; none of them is the identity.

  Args:
    names: Keys of `AUGMENTATIONS`.
    ndim: Number of axes of a batch of inputs, 4 for images.
  """
  parts = [look_up(AUGMENTATIONS, name, 'augmentation') for name in names]
  if ndim != 4 and (wrong := IMAGES_ONLY.intersection(names)):
    raise UserError(f"augmentation '{min(wrong)}' is for images: leave it out")
  if names.count('mixup') > 1:
    raise UserError("augmentation 'mixup' mixes two inputs and is named more than once: name it once")

  def apply(key, batch):
    for i, part in enumerate(parts):
      batch = part(jax.random.fold_in(key, i), batch)
    return batch

  return apply
