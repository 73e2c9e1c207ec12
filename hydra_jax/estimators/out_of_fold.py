"""Calibration of members on the rows that each has not learnt from."""

from dataclasses import replace
import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets.cut import rescaled
from hydra_jax.training import folds

logger = logging.getLogger(__name__)

# Rows that the scale is fitted on, at most: it is known to 1 to 2% by as many.
MOST_ROWS = 10_000


def calibrated(model: Model, task: str, x: Any, targets: np.ndarray, fold_of_rows: np.ndarray) -> Model:
  """An ensemble that is trained with folds, whose members are as certain as they are right on rows of their own fold.

  Members explain rows that they learn from with variances that are too small, or probabilities that are too large.
  All rows tell by how much, because each has members that did not learn from it. A student of the calibrated members
  starts from what is right, and no rows have to be set aside for it.

  Args:
    model: The ensemble.
    task: Key of `maths.tasks.TASKS`.
    x: The rows that the members were trained on, as stored.
    targets: Of these rows, as the network learns them: classes `[N]`, or targets `[N, D]` in units of the network.
    fold_of_rows: Of these rows, see `training.folds`.

  Returns:
    The model with one temperature, or one factor of all variances. It is the same model where there are fewer members
    than folds, so that some rows have none.
  """
  rows = np.unique(np.linspace(0, len(x) - 1, MOST_ROWS).astype(int))
  outputs = evaluate.predict(model, x[rows], batch_size=1000)
  fold_of_heads = folds.of_heads(len(outputs), int(fold_of_rows.max()) + 1)
  outputs = folds.out_of_fold(outputs, fold_of_rows[rows], fold_of_heads)
  if not len(outputs):
    return model
  row = TASKS[task]
  scale = row.member_scale(outputs, targets[rows])
  logger.info(f'members are calibrated on {len(rows):,} rows that they have not seen: {row.scale_name} {scale:.3g}')
  return replace(
    model, network=rescaled(model.network, row.with_scale), params={**model.params, 'spread': jnp.float32(scale)}
  )
