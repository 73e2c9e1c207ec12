"""A network for tables: an embedding of numbers, and a multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hydra_jax.devices.cpu import dot_general
from hydra_jax.errors import UserError
from hydra_jax.nets.stages import Stage, from_linen, is_count, mlp


class Periodic(nn.Module):
  """Each number x beside ReLU(W [cos 2πfx, sin 2πfx] + b), with frequencies f of each column, `[B, D] -> [B, D (1+w)]`.

  W and b are shared by all columns. This is the embedding "PLR (lite)" (Gorishniy et al. 2022, arXiv 2203.05556, and
  2023, arXiv 2307.14338). A perceptron learns smooth functions of its inputs first; steps and bumps, which trees find
  at once, come late or never. Frequencies make them easy.
  """

  frequencies: int
  width: int
  scale: float

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    rows, columns = x.shape
    frequencies = self.param('frequencies', nn.initializers.normal(self.scale), (columns, self.frequencies))
    angles = 2 * jnp.pi * x[:, :, None] * frequencies[None]
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(rows * columns, -1)
    embedded = nn.relu(nn.Dense(self.width, dot_general=dot_general, name='Dense_0')(waves))
    return jnp.concatenate([x, embedded.reshape(rows, -1)], axis=-1)


def tabular(
  outputs: int,
  widths: Sequence[int] = (128, 128),
  frequencies: int = 16,
  embedding: int = 8,
  frequency_scale: float = 0.2,
) -> list[Stage]:
  """A network for tables: `Periodic`, then hidden layers as in `mlp`.

  Args:
    outputs: Number of outputs.
    widths: Of the hidden layers.
    frequencies: Of each column.
    embedding: Width of the embedding of each column.
    frequency_scale: Standard deviation of the frequencies at the start, in cycles for each standard deviation of a
      column.

  Returns:
    Stages that read standardised columns `[B, D]`.

  Raises:
    UserError: An argument is not legal.

  Example:
    >>> len(tabular(2, widths=(128, 128)))
    4
  """
  for name, value in (('frequencies', frequencies), ('embedding', embedding)):
    if not is_count(value):
      raise UserError(f'{name}={value!r} must be a whole number of at least 1')
  if not _is_positive(frequency_scale):
    raise UserError(f'frequency_scale={frequency_scale!r} must be a number of more than 0')
  return [from_linen(Periodic(frequencies, embedding, float(frequency_scale))), *mlp(outputs, widths)]


def _is_positive(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float('inf')
