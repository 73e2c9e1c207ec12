"""Augmentation on the device, inside the step: pure functions `(key, batch, ask) -> batch`.

All change `batch['x']` alone, what the network reads: scaled, so that 0 is the mean of the training
set; `mixup` also says whose labels it mixed. `ask` is one member of the teacher, chosen at random at each step,
`x -> outputs [B, C]`, for those that look for inputs on which members disagree. A student that is trained
on augmented inputs has its teacher predict on the same ones, in the same step. What happens to an example
depends on its place in the batch and on no other example (but for mixup), so it is the same on any number
of devices.
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

PAD = 1 / 8
HOLE = 0.5
NOISE = 0.5
SCALES = (-1.0, 2.0)
BLOCKS = 4
ODS = 0.3


def flip(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Mirrors an image left to right with probability one half."""
  return jnp.where(jax.random.bernoulli(key), x_HxWxC[:, ::-1], x_HxWxC)


def crop(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Pads each side and cuts out a window of the old size at random (He et al. 2015).

  The padding is an eighth of the shorter side, rounded up: 4 for 32 × 32, as theirs, and 1 for 8 × 8.
  """
  height, width, _ = x_HxWxC.shape
  pad = math.ceil(PAD * min(height, width))
  padded = jnp.pad(x_HxWxC, ((pad, pad), (pad, pad), (0, 0)))
  corner = jax.random.randint(key, (2,), 0, 2 * pad + 1)

  def rows(start, size):
    """Picks `size` of `size + 2 pad` rows, as a matrix of 0 and 1: a gather would take longer than the network."""
    return jax.nn.one_hot(start + jnp.arange(size), size + 2 * pad)

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
  """Adds Gaussian noise of a strength that is uniform on 0 to 0.5 standard deviations, input by input."""
  strength = NOISE * jax.random.uniform(jax.random.fold_in(key, 0))
  return x + strength * jax.random.normal(jax.random.fold_in(key, 1), x.shape)


def scale(key: jax.Array, x: jax.Array) -> jax.Array:
  """Multiplies an input by a number uniform on −1 to 2: paler, stronger, and up to its negative."""
  return x * jax.random.uniform(key, minval=SCALES[0], maxval=SCALES[1])


def shuffle(key: jax.Array, x_HxWxC: jax.Array) -> jax.Array:
  """Cuts an image into 4 × 4 blocks (fewer where 4 do not divide its sides) and puts them in any order."""
  height, width, channels = x_HxWxC.shape
  down, across = math.gcd(height, BLOCKS), math.gcd(width, BLOCKS)
  blocks = x_HxWxC.reshape(down, height // down, across, width // across, channels).swapaxes(1, 2)
  flat = blocks.reshape(down * across, -1)
  # As a matrix of 0 and 1, as in `crop`.
  order = jax.nn.one_hot(jax.random.permutation(key, down * across), down * across)
  moved = jnp.matmul(order, flat, precision=jax.lax.Precision.HIGHEST)
  return moved.reshape(blocks.shape).swapaxes(1, 2).reshape(x_HxWxC.shape)


def ods(key: jax.Array, batch: Batch, ask: Ask | None, confident: bool = False) -> Batch:
  """Moves inputs where the outputs of a member change most in a random direction (Tashiro et al. 2020, eq. 1).

  ODS: along the gradient of w · p(x), w uniform on [−1, 1], by a length that is uniform on 0 to 0.3 standard
  deviations of each feature. With `confident` it is multiplied by the confidence of the member (ConfODS, Nam et al.
  2021). Both papers have lengths of their own.
  """
  assert ask is not None  # `config.validate` sees to it
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
  """Mixes each input with another of the batch, by a share uniform on [0, 1] (Zhang et al. 2018).

  Labels are kept, not mixed. The batch gets `other_y`, the label of the other input, and `share` [B], the weight of `y`
  in the label loss. An online teacher predicts on the mixture itself.
  """
  x, examples = batch['x'], len(batch['x'])
  share_B = jax.vmap(jax.random.uniform)(collectives.example_keys(jax.random.fold_in(key, 0), examples))
  order = jax.random.permutation(jax.random.fold_in(key, 1), examples * collectives.size('data'))
  other = lambda part: collectives.all_gather('data', batch[part])[order[collectives.positions('data', examples)]]
  share = jnp.expand_dims(share_B, range(1, x.ndim))
  return {**batch, 'x': share * x + (1 - share) * other('x'), 'other_y': other('y'), 'share': share_B}


def of_inputs(f: Callable[[jax.Array, jax.Array], jax.Array]) -> Augmentation:
  """Applies `(key, x) -> x` to each input, with its own key."""

  def apply(key, batch, ask=None):
    keys_B = collectives.example_keys(key, len(batch['x']))
    return {**batch, 'x': jax.vmap(f)(keys_B, batch['x'])}

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
# Those that ask a member of the teacher.
ASKING = {'ods', 'conf_ods'}


def asks(names: Sequence[str]) -> bool:
  """Whether any of these augmentations asks a member of the teacher."""
  return bool(ASKING.intersection(names))


def build(names: Sequence[str], ndim: int, share: float = 1.0) -> Augmentation:
  """One augmentation after the other; none of them is the identity.

  Args:
    names: Keys of `AUGMENTATIONS`.
    ndim: Number of axes of a batch of inputs, 4 for images.
    share: Each of them changes each input with this probability, and else leaves it as it is.
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
  """Takes each input from `changed` with a probability, and else from `batch`."""
  examples = len(batch['x'])
  takes_B = jax.vmap(lambda k: jax.random.bernoulli(k, share))(collectives.example_keys(key, examples))
  x = jnp.where(jnp.expand_dims(takes_B, range(1, batch['x'].ndim)), changed['x'], batch['x'])
  mixed = {'share': jnp.where(takes_B, changed['share'], batch.get('share', 1))} if 'share' in changed else {}
  return {**changed, 'x': x, **mixed}
