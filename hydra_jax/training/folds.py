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


def of_rows(rows: int, folds: int, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
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


def leaving_out(loss: Callable[..., jax.Array], fold_of_heads: Sequence[int], folds: int) -> Callable[..., jax.Array]:
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
