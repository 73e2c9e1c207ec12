"""Augmentation on the device, inside the step: pure functions `(key, batch) -> batch`.

All change `batch['x']` alone, what the network reads: scaled, so that 0 is the mean of the training
set; `mixup` also says whose labels it mixed. A student that is trained on augmented inputs has its
teacher predict on the same ones, in the same step.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hydra_jax.errors import UserError, look_up

Batch = dict[str, jax.Array]
Augmentation = Callable[[jax.Array, Batch], Batch]

PAD = 4
HOLE = 0.5
NOISE = 0.3


def flip(key: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability one half."""
  mirrored = jax.random.bernoulli(key, 0.5, (len(x_BxHxWxC), 1, 1, 1))
  return jnp.where(mirrored, x_BxHxWxC[:, :, ::-1], x_BxHxWxC)


def crop(key: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """Pads each side by 4 and cuts out a window of the old size at random (He et al. 2015)."""
  batch, height, width, _ = x_BxHxWxC.shape
  padded = jnp.pad(x_BxHxWxC, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
  corners = jax.random.randint(key, (batch, 2), 0, 2 * PAD + 1)

  def rows(corner, size):
    """Picks `size` of `size + 8` rows, as a matrix of 0 and 1: a gather would take longer than the network."""
    return jax.nn.one_hot(corner[:, None] + jnp.arange(size)[None], size + 2 * PAD)

  exactly = jax.lax.Precision.HIGHEST
  cut = jnp.einsum('bhi,biwc->bhwc', rows(corners[:, 0], height), padded, precision=exactly)
  return jnp.einsum('bwj,bhjc->bhwc', rows(corners[:, 1], width), cut, precision=exactly)


def cutout(key: jax.Array, x_BxHxWxC: jax.Array) -> jax.Array:
  """Blanks a square of half the side, centred anywhere (DeVries and Taylor 2017)."""
  batch, height, width, _ = x_BxHxWxC.shape
  side = int(HOLE * height)

  def outside(key, size):
    centre = jax.random.randint(key, (batch, 1), 0, size)
    start = centre - side // 2
    at = jnp.arange(size)[None]
    return (at < start) | (at >= start + side)

  rows, columns = outside(jax.random.fold_in(key, 0), height), outside(jax.random.fold_in(key, 1), width)
  return jnp.where((rows[:, :, None] | columns[:, None, :])[..., None], x_BxHxWxC, 0)


def mixup(key: jax.Array, batch: Batch) -> Batch:
  """Mixes each input with another of the batch, by a share uniform on [0, 1] (Zhang et al. 2018).

  Labels are not mixed but kept: with `share` [B] of its own, `y`, an input has that of the other,
  `other_y`, for the label loss; a teacher at hand says itself what a mixture is.
  """
  x = batch['x']
  share_B = jax.random.uniform(jax.random.fold_in(key, 0), (len(x),))
  other_B = jax.random.permutation(jax.random.fold_in(key, 1), len(x))
  share = jnp.expand_dims(share_B, range(1, x.ndim))
  mixed = share * x + (1 - share) * x[other_B]
  return {**batch, 'x': mixed, 'other_y': batch['y'][other_B], 'share': share_B}


def noise(key: jax.Array, x: jax.Array) -> jax.Array:
  """Adds Gaussian noise of a strength that is uniform on 0 to 0.3 standard deviations, input by input."""
  strength = NOISE * jax.random.uniform(jax.random.fold_in(key, 0), (len(x),) + (1,) * (x.ndim - 1))
  return x + strength * jax.random.normal(jax.random.fold_in(key, 1), x.shape)


def of_inputs(f: Callable[[jax.Array, jax.Array], jax.Array]) -> Augmentation:
  return lambda key, batch: {**batch, 'x': f(key, batch['x'])}


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
