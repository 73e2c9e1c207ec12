"""Networks for images, as lists of stages, and the names of all networks.

All read images `[B, height, width, channels]` in float32 and give outputs `[B, outputs]` in float32. Every residual
block is a stage. Pooling belongs to the stage below the outputs. So at a cut of -1 each head is a dense layer, and at a
cut of -2 of a residual network each head also has the last block.

Parameters and statistics are float32. `dtype` is the precision of the computation, 'float32' or 'bfloat16'. `norm` is
'batch' (Ioffe & Szegedy 2015; above the cut each head has its own statistics) or 'group' (Wu & He 2018; no state).
"""

from collections.abc import Callable, Sequence
import functools
from functools import partial
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hydra_jax.devices import collectives
from hydra_jax.devices.cpu import convolve
from hydra_jax.errors import UserError, look_up
from hydra_jax.nets.stages import Stage, chain, dense, from_linen, is_count, mlp
from hydra_jax.nets.tabular import tabular

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}

NORMS = {
  # Statistics are those of the whole batch, also where several devices share it.
  'batch': lambda channels, train: nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    axis_name='data' if collectives.size('data') > 1 else None,
  ),
  # 32 groups as in the paper, or fewer, so that a group has at least 4 channels if 4 divides their number.
  'group': lambda channels, train: nn.GroupNorm(max(1, math.gcd(channels, 4 * 32) // 4), epsilon=1e-5),
}


def conv(channels: int, kernel: int = 3, stride: int = 1, *, dtype: Any) -> nn.Conv:
  """A convolution without bias, initialised as in He et al. 2015 (arXiv 1502.01852) and its papers' code."""
  return nn.Conv(
    channels,
    (kernel, kernel),
    stride,
    # 'SAME' would shift strided convolutions by half a pixel against the strided shortcuts.
    padding=kernel // 2,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),
    dtype=dtype,
    conv_general_dilated=convolve,
  )


class Layers(nn.Module):
  """The two layers that the modules below are made of: convolution and norm."""

  norm: str
  dtype: Any

  def conv(self, x, channels, kernel=3, stride=1):
    return conv(channels, kernel, stride, dtype=self.dtype)(x)

  def normed(self, x, train):
    # Statistics are float32. Strict promotion does not let Flax mix them with bfloat16.
    return NORMS[self.norm](x.shape[-1], train)(x.astype(jnp.float32)).astype(self.dtype)


class Stem(Layers):
  """First layer of ResNets for CIFAR."""

  channels: int

  @nn.compact
  def __call__(self, x, train):
    return nn.relu(self.normed(self.conv(x, self.channels), train))


class ImageNetStem(Layers):
  """First layer of ResNets for ImageNet, `[B, h, w, 3] -> [B, h / 4, w / 4, 64]`."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(self.normed(self.conv(x, 64, kernel=7, stride=2), train))
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Basic(Layers):
  """Two 3x3 convolutions and a shortcut without parameters (He et al. 2015, option A)."""

  channels: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(self.normed(self.conv(x, self.channels, stride=self.stride), train))
    y = self.normed(self.conv(y, self.channels), train)
    x = x[:, :: self.stride, :: self.stride]
    return nn.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.channels - x.shape[-1]))))


class Bottleneck(Layers):
  """Convolutions 1x1, 3x3, 1x1 to four times the channels; projection where the shape changes (option B)."""

  channels: int
  stride: int

  @nn.compact
  def __call__(self, x, train):
    y = nn.relu(self.normed(self.conv(x, self.channels, kernel=1), train))
    y = nn.relu(self.normed(self.conv(y, self.channels, stride=self.stride), train))
    y = self.normed(self.conv(y, 4 * self.channels, kernel=1), train)
    if x.shape != y.shape:
      x = self.normed(self.conv(x, 4 * self.channels, kernel=1, stride=self.stride), train)
    return nn.relu(y + x)


class PreActivation(Layers):
  """Norm and ReLU before each of two 3x3 convolutions, dropout between (Zagoruyko & Komodakis 2016)."""

  channels: int
  stride: int
  dropout: float

  @nn.compact
  def __call__(self, x, train):
    active = nn.relu(self.normed(x, train))
    y = nn.relu(self.normed(self.conv(active, self.channels, stride=self.stride), train))
    y = self.conv(nn.Dropout(self.dropout, deterministic=not train)(y), self.channels)
    if x.shape != y.shape:
      x = self.conv(active, self.channels, kernel=1, stride=self.stride)
    return x + y


class Pool(nn.Module):
  """Mean over the image, `[B, h, w, channels] -> [B, channels]` in float32."""

  def __call__(self, x):
    return x.astype(jnp.float32).mean((1, 2))


class NormPool(Layers):
  """The end of a network of pre-activation blocks: norm, ReLU, mean over the image."""

  @nn.compact
  def __call__(self, x, train):
    return Pool()(nn.relu(self.normed(x, train)))


def max_pool(x: jax.Array, size: int) -> jax.Array:
  """Maximum pooling over squares that do not overlap, as `nn.max_pool(x, (size, size), (size, size))` of Flax.

  On CPUs, training with it is faster: XLA is slow there at the gradient of `nn.max_pool`. Where several entries of a
  square are the greatest, they share its gradient.

  Args:
    x: `[B, h, w, channels]`.
    size: Of a square. Rows and columns that fill no square are left out.

  Returns:
    `[B, h // size, w // size, channels]`, of the dtype of x.

  Example:
    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
  """
  batch, height, width, channels = x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3]
  squares = x[:, : height * size, : width * size].reshape(batch, height, size, width, size, channels)
  over_rows = functools.reduce(jnp.maximum, (squares[:, :, row] for row in range(size)))
  return functools.reduce(jnp.maximum, (over_rows[:, :, :, column] for column in range(size)))


class ConvPool(nn.Module):
  """Convolution 5x5 without padding, ReLU, maximum of 2x2."""

  channels: int

  @nn.compact
  def __call__(self, x):
    layer = nn.Conv(self.channels, (5, 5), padding='VALID', conv_general_dilated=convolve)
    return max_pool(nn.relu(layer(x)), 2)


def lenet(outputs: int) -> list[Stage]:
  """LeNet-5 (LeCun et al. 1998), with ReLU, maximum pooling and full connectivity, for images of 16x16 or more.

  Example:
    >>> len(lenet(10))
    5
  """
  return [_reads_images(from_linen(ConvPool(6)), at_least=16), from_linen(ConvPool(16)), *mlp(outputs, (120, 84))]


class StridedConv(nn.Module):
  """Convolution 3x3 of stride 2 with bias, ReLU."""

  channels: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    layer = nn.Conv(
      self.channels,
      (3, 3),
      2,
      padding=1,
      kernel_init=nn.initializers.he_normal(),
      dtype=self.dtype,
      conv_general_dilated=convolve,
    )
    return nn.relu(layer(x))


class Flatten(nn.Module):
  """`[B, h, w, channels] -> [B, h · w · channels]` in float32."""

  def __call__(self, x):
    return x.astype(jnp.float32).reshape(x.shape[0], -1)


def cnn(outputs: int, channels: Sequence[int] = (32, 64, 128), dtype: str = 'float32') -> list[Stage]:
  """A small network for images of 32x32 or so: 3x3 convolutions of stride 2, without norm and pooling, and outputs.

  On CIFAR-10 it learns in minutes on a CPU: strides take the place of pooling, whose gradient is slow there.

  Args:
    outputs: Number of outputs.
    channels: Of each convolution.
    dtype: `float32` or `bfloat16`.

  Returns:
    A stage for each convolution, and one for the outputs.

  Raises:
    UserError: An argument is not legal.

  Example:
    >>> len(cnn(10))
    4
  """
  if not isinstance(channels, Sequence) or not channels or not all(is_count(each) for each in channels):
    raise UserError(f'channels={channels!r} must be a tuple of whole numbers of at least 1, such as (32, 64, 128)')
  if not isinstance(dtype, str):
    raise UserError(f'dtype={dtype!r} must be a name: {", ".join(DTYPES)}')
  precision = look_up(DTYPES, dtype, 'dtype')
  *below, last = [from_linen(StridedConv(each, precision)) for each in channels]
  stages = [*below, chain([last, from_linen(Flatten())]), dense(outputs)]
  return [_reads_images(stages[0], at_least=2 ** len(channels)), *stages[1:]]


def resnet(outputs: int, depth: int = 20, width: int = 16, norm: str = 'batch', dtype: str = 'float32') -> list[Stage]:
  """ResNet for CIFAR (He et al. 2015, arXiv 1512.03385, section 4.2).

  Args:
    outputs: Number of outputs.
    depth: `6n + 2` layers.
    width: Channels of the first group of blocks.
    norm: `batch` or `group`.
    dtype: `float32` or `bfloat16`.

  Returns:
    `3n + 2` stages.

  Raises:
    UserError: An argument is not legal.

  Example:
    >>> len(resnet(10, depth=20))
    11
  """
  blocks, layers = _blocks(depth, 2), _layers(norm, dtype)
  _check_width(width)
  return _assemble(Stem(**layers, channels=width), partial(Basic, **layers), width, [blocks] * 3, Pool(), outputs)


def wide_resnet(
  outputs: int, depth: int = 28, width: int = 10, dropout: float = 0.0, norm: str = 'batch', dtype: str = 'float32'
) -> list[Stage]:
  """Wide ResNet WRN-depth-width (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

  Args:
    outputs: Number of outputs.
    depth: `6n + 4` layers.
    width: The first group of blocks has 16 times as many channels.
    dropout: Share of the values that are dropped between the convolutions of a block.
    norm: `batch` or `group`.
    dtype: `float32` or `bfloat16`.

  Returns:
    `3n + 2` stages.

  Raises:
    UserError: An argument is not legal.

  Example:
    >>> len(wide_resnet(10, depth=28, width=10))
    14
  """
  blocks, layers = _blocks(depth, 4), _layers(norm, dtype)
  _check_width(width)
  if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
    raise UserError(f'dropout={dropout!r} must be a number of at least 0 and less than 1')
  block = partial(PreActivation, **layers, dropout=dropout)
  return _assemble(conv(16, dtype=layers['dtype']), block, 16 * width, [blocks] * 3, NormPool(**layers), outputs)


def resnet50(outputs: int = 1000, norm: str = 'batch', dtype: str = 'float32') -> list[Stage]:
  """ResNet-50 for ImageNet (He et al. 2015, section 4.1), in version 1.5, which strides in the 3x3 convolution.

  Args:
    outputs: Number of outputs.
    norm: `batch` or `group`.
    dtype: `float32` or `bfloat16`.

  Returns:
    18 stages.

  Raises:
    UserError: An argument is not legal.
  """
  layers = _layers(norm, dtype)
  return _assemble(ImageNetStem(**layers), partial(Bottleneck, **layers), 64, [3, 4, 6, 3], Pool(), outputs)


def _layers(norm: str, dtype: str) -> dict[str, Any]:
  """Arguments of `Layers`, checked."""
  for word in (norm, dtype):
    if not isinstance(word, str):
      raise UserError(f'norm={norm!r} and dtype={dtype!r} must be names: {", ".join(NORMS)}; {", ".join(DTYPES)}')
  look_up(NORMS, norm, 'norm')
  return {'norm': norm, 'dtype': look_up(DTYPES, dtype, 'dtype')}


def _blocks(depth: int, extra: int) -> int:
  """Number of blocks in each of three groups. A block has two layers, and `extra` layers are outside of blocks."""
  if not is_count(depth) or depth < 6 + extra or (depth - extra) % 6:
    legal = ', '.join(str(6 * n + extra) for n in range(1, 5))
    raise UserError(f'depth={depth!r} is no depth of this network: choose 6n + {extra}, that is {legal}, …')
  return (depth - extra) // 6


def _check_width(width: Any) -> None:
  if not is_count(width):
    raise UserError(f'width={width!r} must be a whole number of at least 1')


def _assemble(
  stem: nn.Module, block: Callable[..., nn.Module], width: int, counts: Sequence[int], pool: nn.Module, outputs: int
) -> list[Stage]:
  """Stem, groups of blocks, dense outputs; each group but the first halves the image and doubles the channels."""
  blocks = [
    from_linen(block(channels=width * 2**group, stride=2 if group and i == 0 else 1))
    for group, count in enumerate(counts)
    for i in range(count)
  ]
  last = chain([blocks.pop(), from_linen(pool)])
  return [_reads_images(from_linen(stem)), *blocks, last, dense(outputs)]


def _reads_images(stage: Stage, at_least: int = 1) -> Stage:
  """The same stage, which refuses inputs that are no images, or are too small, in one line."""

  def init(key, x):
    if x.ndim != 4 or min(x.shape[1:3]) < at_least:
      size = f' of at least {at_least}x{at_least}' if at_least > 1 else ''
      grey = 'give grey images as x[..., None], or ' if x.ndim == 3 else ''
      raise UserError(
        f'this network reads images [height, width, channels]{size}, not inputs of shape {list(x.shape[1:])}: '
        f'{grey}choose another network or other data'
      )
    return stage.init(key, x)

  return stage._replace(init=init)


NETWORKS: dict[str, Callable[..., list[Stage]]] = {
  'mlp': mlp,
  'tabular': tabular,
  'lenet': lenet,
  'cnn': cnn,
  'resnet': resnet,
  'wide_resnet': wide_resnet,
  'resnet50': resnet50,
}
