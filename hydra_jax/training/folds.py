"""Members that each leave out another part of the rows, so that all rows are learnt from, and all are held out.

With K folds, member m learns from all rows but those of fold m mod K (cross-validated committees, Parmanto et al. 1996;
the bagging of AutoGluon, Erickson et al. 2020). What a member has not seen decides when its training stops. All members
together have seen all rows, and each row has members that have not seen it, for calibration.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.errors import UserError


def of_rows(rows: int, folds: int, seed: int | Sequence[int], classes: np.ndarray | None = None) -> np.ndarray:
  """The fold of each row, `[rows]` int32. Folds are equally large, and of each class equally many are in each.

  Args:
    rows: Number of rows.
    folds: Number of folds, at least 2.
    seed: Decides which rows are together.
    classes: Of each row; None: there are none.

  Raises:
    UserError: There are fewer rows than folds, or fewer than 2 folds.

  Example:
    >>> np.bincount(of_rows(rows=7, folds=3, seed=0))
    array([3, 2, 2])
  """
  if not 2 <= folds <= rows:
    raise UserError(f'{folds} folds of {rows} rows: choose at least 2 and at most as many as there are rows')
  order = np.random.default_rng(seed).permutation(rows)
  if classes is not None:
    order = order[np.argsort(np.asarray(classes)[order], kind='stable')]
  found = np.empty(rows, np.int32)
  found[order] = np.arange(rows) % folds
  return found


def of_heads(heads: int, folds: int) -> np.ndarray:
  """The fold that each head does not learn from, `[heads]`.

  Example:
    >>> of_heads(heads=5, folds=3)
    array([0, 1, 2, 0, 1])
  """
  return np.arange(heads) % folds


def leaving_out(
  loss: Callable[..., jax.Array], fold_of_heads: Sequence[int] | np.ndarray, folds: int
) -> Callable[..., jax.Array]:
  """The loss of each head on the rows of other folds than its own.

  Args:
    loss: `(outputs [H, B, C], batch) -> [H, B]`.
    fold_of_heads: See `of_heads`.
    folds: Number of folds, K.

  Returns:
    A loss that reads the folds of the rows, `batch['fold']` `[B]`. It is 0 for the rows of the own fold, and
    K / (K − 1) times as large for others, so that its mean is that of the rows a head learns from.
  """
  scale = folds / (folds - 1)

  def masked(outputs: jax.Array, batch: dict[str, Any]) -> jax.Array:
    own_H = jnp.asarray(fold_of_heads, jnp.int32)
    own_H = own_H[batch['heads']] if 'heads' in batch else own_H
    return jnp.where(batch['fold'][None] == own_H[:, None], 0.0, scale * loss(outputs, batch))

  return masked


def out_of_fold(outputs_MxNxC: np.ndarray, fold_of_rows: np.ndarray, fold_of_heads: np.ndarray) -> np.ndarray:
  """For each row the outputs of heads that have not learnt from it.

  Args:
    outputs_MxNxC: Of all heads for all rows.
    fold_of_rows: See `of_rows`.
    fold_of_heads: See `of_heads`.

  Returns:
    `[m, N, C]`, of as many heads as the fold with the fewest heads has; m is 0 where there are fewer heads than folds.

  Example:
    >>> outputs = np.array([[10, 11, 12], [20, 21, 22]])[..., None]
    >>> out_of_fold(outputs, fold_of_rows=np.array([1, 0, 1]), fold_of_heads=np.array([0, 1])).ravel()
    array([20, 11, 22])
  """
  heads_of = [np.flatnonzero(fold_of_heads == fold) for fold in range(int(fold_of_rows.max()) + 1)]
  fewest = min(map(len, heads_of))
  chosen_KxM = np.array([heads[:fewest] for heads in heads_of], np.int64).reshape(len(heads_of), fewest)
  return outputs_MxNxC[chosen_KxM[fold_of_rows].T, np.arange(len(fold_of_rows))]
