"""A network for tables: each number as a piecewise-linear encoding, and a multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from hydra_jax.errors import UserError
from hydra_jax.nets.stages import Stage, from_linen, is_count, mlp

# With fewer example rows, bins are those of a normal distribution.
LEAST_ROWS = 32
# In standard deviations. Where many rows have the same value, quantiles coincide: such a bin is a step.
LEAST_WIDTH = 0.01


class Bins(nn.Module):
  """Each number x beside its place in each of K bins, `[B, D] -> [B, D (1 + K)]`.

  The place in the bin from a to b is (x − a) / (b − a), cut to [0, 1], less ½. The bins are between quantiles of the
  rows that the network is made with. They are no parameters: they are in the state `bins`, and stay. This is the
  piecewise-linear encoding of Gorishniy et al. 2022 (arXiv 2203.05556, section 3.2), which TabM (arXiv 2410.24210)
  uses too. A perceptron learns smooth functions of its inputs first; steps and bumps, which trees find at once, come
  late or never. The bins make them easy, whatever the distribution of a column.
  """

  bins: int

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    edges = self.variable('bins', 'edges', bin_edges, x, self.bins).value
    low, width = edges[:, :-1], jnp.maximum(jnp.diff(edges, axis=1), LEAST_WIDTH)
    place = jnp.clip((x[:, :, None] - low[None]) / width[None], 0, 1) - 0.5
    return jnp.concatenate([x, place.reshape(x.shape[0], -1)], axis=-1)


def bin_edges(x_BxD: jax.Array, bins: int) -> jax.Array:
  """Edges of bins with equally many rows, `[D, bins + 1]`; of a normal distribution where there are few rows.

  Args:
    x_BxD: Rows, standardised.
    bins: Number of bins.

  Example:
    >>> bin_edges(jnp.linspace(0, 1, 101)[:, None], bins=4)
    Array([[0.  , 0.25, 0.5 , 0.75, 1.  ]], dtype=float32)
  """
  rows, columns = x_BxD.shape
  if rows >= LEAST_ROWS:
    return jnp.quantile(x_BxD, jnp.linspace(0, 1, bins + 1), axis=0).T
  normal = scipy.special.ndtri(np.linspace(0.01, 0.99, bins + 1))
  return jnp.tile(jnp.asarray(normal, jnp.float32), (columns, 1))


def tabular(outputs: int, widths: Sequence[int] = (128, 128), bins: int = 8) -> list[Stage]:
  """A network for tables: `Bins`, then hidden layers as in `mlp`.

  `init` must be given at least 32 rows of the training set, for the quantiles, standardised as in training. With fewer
  rows the quantiles are those of a normal distribution.

  Args:
    outputs: Number of outputs.
    widths: Of the hidden layers.
    bins: K, for each column.

  Returns:
    Stages that read standardised columns `[B, D]`.

  Raises:
    UserError: An argument is not legal.

  Example:
    >>> len(tabular(2, widths=(128, 128)))
    4
  """
  if not is_count(bins):
    raise UserError(f'bins={bins!r} must be a whole number of at least 1')
  return [from_linen(Bins(bins)), *mlp(outputs, widths)]
