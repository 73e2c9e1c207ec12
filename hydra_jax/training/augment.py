"""Augmentation on the device, inside the step: pure functions `(key, batch, ask) -> batch`.

All change `batch['x']`, the scaled inputs, whose mean over the training set is 0. `mixup` adds the other labels. The
teacher of a student predicts on the augmented inputs, in the same step. `ask` is a member of the teacher, chosen at
random at each step, `x -> outputs [B, C]`, for augmentations that look for inputs on which members disagree.

The change of an example depends on the key and on its index in the batch, and on no other example (but for `mixup`). So
it is the same on any number of devices. Where the batch has `view` `[B]`, the change depends on this number in place of
the index, so that it can be made again in another batch (`training.views`).
"""

from collections.abc import Callable, Sequence
import functools
import math

import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.errors import UserError, look_up

Batch = dict[str, jax.Array]
Ask = Callable[[jax.Array], jax.Array]
Augmentation = Callable[[jax.Array, Batch, Ask | None], Batch]

PAD = 1 / 8  # of the shorter side
HOLE = 0.5  # of the height
NOISE = 0.5  # largest standard deviation
SCALES = (-1.0, 2.0)
BLOCKS = 4  # along each side
ODS = 0.3  # largest length, in standard deviations of a feature


def flip(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Mirrors an image left to right with probability one half.

  Example:
    >>> flip(jax.random.key(0), jnp.ones((8, 8, 3))).shape
    (8, 8, 3)
  """
  return jnp.where(jax.random.bernoulli(key), x_HxWxC[:, ::-1], x_HxWxC)


def crop(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Pads each side by zeros and cuts out a window of the old size at random (He et al. 2015, section 4.2).

  The padding is an eighth of the shorter side, rounded up: 4 for 32 × 32, as in the paper, and 1 for 8 × 8.
  """
  height, width, _ = x_HxWxC.shape
  pad = math.ceil(PAD * min(height, width))
  padded = jnp.pad(x_HxWxC, ((pad, pad), (pad, pad), (0, 0)))
  corner = jax.random.randint(key, (2,), 0, 2 * pad + 1)

  def rows(start, size):
    """The matrix of 0 and 1 that picks `size` of `size + 2 pad` rows. A gather would take longer than the network."""
    return jax.nn.one_hot(start + jnp.arange(size), size + 2 * pad)

  exactly = jax.lax.Precision.HIGHEST
  cut = jnp.einsum('hi,iwc->hwc', rows(corner[0], height), padded, precision=exactly)
  return jnp.einsum('wj,hjc->hwc', rows(corner[1], width), cut, precision=exactly)


def cutout(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Sets a square of half the height to 0. Its centre is anywhere in the image (DeVries and Taylor 2017)."""
  height, width, _ = x_HxWxC.shape
  side = int(HOLE * height)

  def outside(key, size):
    start = jax.random.randint(key, (), 0, size) - side // 2
    at = jnp.arange(size)
    return (at < start) | (at >= start + side)

  rows, columns = outside(jax.random.fold_in(key, 0), height), outside(jax.random.fold_in(key, 1), width)
  return jnp.where((rows[:, None] | columns[None])[..., None], x_HxWxC, 0)


def noise(key: jax.Array, x: jax.Array) -> jax.Array:
  """Adds Gaussian noise. Its standard deviation is uniform on 0 to 0.5, for each input by itself."""
  strength = NOISE * jax.random.uniform(jax.random.fold_in(key, 0))
  return x + strength * jax.random.normal(jax.random.fold_in(key, 1), x.shape)


def scale(key: jax.Array, x: jax.Array) -> jax.Array:
  """Multiplies an input by a number that is uniform on −1 to 2."""
  return x * jax.random.uniform(key, minval=SCALES[0], maxval=SCALES[1])


def shuffle(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Cuts an image into 4 × 4 blocks and permutes them. There are fewer blocks where 4 does not divide a side."""
  height, width, channels = x_HxWxC.shape
  down, across = math.gcd(height, BLOCKS), math.gcd(width, BLOCKS)
  blocks = x_HxWxC.reshape(down, height // down, across, width // across, channels).swapaxes(1, 2)
  flat = blocks.reshape(down * across, -1)
  # As a matrix of 0 and 1, as in `crop`.
  order = jax.nn.one_hot(jax.random.permutation(key, down * across), down * across)
  moved = jnp.matmul(order, flat, precision=jax.lax.Precision.HIGHEST)
  return moved.reshape(blocks.shape).swapaxes(1, 2).reshape(x_HxWxC.shape)


def ods(key: jax.Array, batch: Batch, ask: Ask | None, confident: bool = False) -> Batch:
  """Moves inputs along the gradient of w · p(x), w uniform on [−1, 1]: ODS (Tashiro et al. 2020, eq. 1).

  The length is uniform on 0 to 0.3 standard deviations of each feature, which neither paper has.

  Args:
    key: Of this step.
    batch: With scaled inputs x `[B, …]`.
    ask: The member of the teacher that gives p.
    confident: Whether the length is multiplied by the confidence of the member (ConfODS, Nam et al. 2021).
  """
  assert ask is not None  # `config.validate` checks it
  x, examples = batch['x'], len(batch['x'])
  draw = lambda part, shape: jax.vmap(lambda k: jax.random.uniform(k, shape))(
    collectives.example_keys(jax.random.fold_in(key, part), examples)
  )
  probabilities = lambda x: jax.nn.softmax(ask(x))
  p_BxC, back = jax.vjp(probabilities, x)
  (gradient,) = back(2 * draw(0, p_BxC.shape[1:]) - 1)
  flat = gradient.reshape(examples, -1)
  direction = flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), jnp.finfo(flat.dtype).tiny)
  length_B = ODS * jnp.sqrt(flat.shape[1]) * draw(1, ())
  if confident:
    length_B *= jnp.max(p_BxC, axis=1)
  return {**batch, 'x': jax.lax.stop_gradient(x + (length_B[:, None] * direction).reshape(x.shape))}


def mixup(key: jax.Array, batch: Batch, ask: Ask | None = None) -> Batch:
  """Mixes each input with another input of the batch, by a share that is uniform on [0, 1] (Zhang et al. 2018).

  Labels are not mixed. The batch gets `share` `[B]` and `other_y` `[B]`, with which a label loss mixes the losses of
  both labels. An online teacher predicts on the mixed inputs.

  Args:
    key: Of this step.
    batch: With x `[B, …]` and y `[B]`.
    ask: Not used.
  """
  x, examples = batch['x'], len(batch['x'])
  share_B = jax.vmap(jax.random.uniform)(collectives.example_keys(jax.random.fold_in(key, 0), examples))
  order = jax.random.permutation(jax.random.fold_in(key, 1), examples * collectives.size('data'))
  other = lambda part: collectives.all_gather('data', batch[part])[order[collectives.positions('data', examples)]]
  share = jnp.expand_dims(share_B, range(1, x.ndim))
  return {**batch, 'x': share * x + (1 - share) * other('x'), 'other_y': other('y'), 'share': share_B}


def _keys(key: jax.Array, batch: Batch) -> jax.Array:
  """A key for each example, `[B]`."""
  if 'view' in batch:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch['view'])
  return collectives.example_keys(key, len(batch['x']))


def of_inputs(f: Callable[[jax.Array, jax.Array], jax.Array]) -> Augmentation:
  """The augmentation that applies `(key, x) -> x` to each input, each with another key."""

  def apply(key, batch, ask=None):
    return {**batch, 'x': jax.vmap(f)(_keys(key, batch), batch['x'])}

  return apply


AUGMENTATIONS: dict[str, Augmentation] = {
  'crop': of_inputs(crop),
  'flip': of_inputs(flip),
  'cutout': of_inputs(cutout),
  'shuffle': of_inputs(shuffle),
  'mixup': mixup,
  'noise': of_inputs(noise),
  'scale': of_inputs(scale),
  'ods': ods,
  'conf_ods': functools.partial(ods, confident=True),
}

IMAGES_ONLY = {'crop', 'flip', 'cutout', 'shuffle'}
# Augmentations that ask a member of the teacher.
ASKING = {'ods', 'conf_ods'}
# Augmentations that change an input by itself, so that the same change can be made in another batch.
ALONE = set(AUGMENTATIONS) - ASKING - {'mixup'}


def asks(names: Sequence[str]) -> bool:
  """Whether any of these augmentations asks a member of the teacher.

  Example:
    >>> asks(('crop', 'ods'))
    True
  """
  return bool(ASKING.intersection(names))


def build(names: Sequence[str], ndim: int, share: float = 1.0) -> Augmentation:
  """The augmentation that applies some augmentations in turn. Without names it is the identity.

  Args:
    names: Keys of `AUGMENTATIONS`.
    ndim: Number of axes of a batch of inputs, 4 for images.
    share: Probability with which each augmentation changes each input.

  Returns:
    `(key, batch, ask=None) -> batch`.

  Raises:
    UserError: A name is unknown, or does not fit the inputs.

  Example:
    >>> augment = build(('flip', 'noise'), ndim=4)
    >>> augment(jax.random.key(0), {'x': jnp.ones((5, 8, 8, 1))})['x'].shape
    (5, 8, 8, 1)
  """
  parts = [look_up(AUGMENTATIONS, name, 'augmentation') for name in names]
  if ndim != 4 and (wrong := IMAGES_ONLY.intersection(names)):
    raise UserError(f"augmentation '{min(wrong)}' is for images: leave it out")
  if names.count('mixup') > 1:
    raise UserError("augmentation 'mixup' mixes two inputs and is named more than once: name it once")

  def apply(key, batch, ask=None):
    for i, part in enumerate(parts):
      changed = part(jax.random.fold_in(key, i), batch, ask)
      batch = changed if share == 1 else _some_of(jax.random.fold_in(key, len(parts) + i), share, changed, batch)
    return batch

  return apply


def _some_of(key: jax.Array, share: float, changed: Batch, batch: Batch) -> Batch:
  """Takes each input from `changed` with the probability `share`, else from `batch`."""
  takes_B = jax.vmap(lambda k: jax.random.bernoulli(k, share))(_keys(key, batch))
  x = jnp.where(jnp.expand_dims(takes_B, range(1, batch['x'].ndim)), changed['x'], batch['x'])
  mixed = {'share': jnp.where(takes_B, changed['share'], batch.get('share', 1))} if 'share' in changed else {}
  return {**changed, 'x': x, **mixed}
