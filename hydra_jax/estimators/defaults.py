"""How networks for tables are trained, by the number of rows and columns.

The choices come from trials on validation folds of small public sets. The trials are not part of the repository.
"""

from dataclasses import dataclass
import math
from typing import Any

# Steps that training may take at most.
MOST_STEPS = 8000
# Bins of a column; and those of all columns together, at most: the first layer must not be all the work.
BINS, MOST_BINS = 8, 1000


@dataclass(frozen=True, kw_only=True)
class TableDefaults:
  """How an ensemble for a table is trained; its student is trained alike.

  Attributes:
    network: Arguments of `nets.tabular.tabular` besides the number of outputs.
    training: Of the members, as in `training.settings.TrainingSettings`. `epochs` is the limit.
    average: Decay of the running average of parameters, see `training.optimizers.averaged`.
    folds: Number of folds, see `training.folds`.
    stretch: Steps between two scores on held-out rows.
    patience: Training stops when no member has improved for as many stretches.
    student_network: As `network`, for the student.
  """

  network: dict[str, Any]
  training: dict[str, Any]
  average: float
  folds: int
  stretch: int
  patience: int
  student_network: dict[str, Any]


def defaults_for(rows: int, features: int) -> TableDefaults:
  """Settings for a table.

  * Bins let a perceptron learn steps, which trees find at once.
  * Wider and deeper networks took longer and were no better.
  * Batches are small, because what small tables lack is steps.
  * A constant rate with a running average needs no length that is known before.
  * There is no dropout and no weight decay: beside early stopping they made no difference.
  * With 10 folds each member learns from 90% of the rows.
  * The student is twice as wide, as its heads share a body.

  Args:
    rows: Number of rows that are learnt from.
    features: Number of columns after encoding.

  Example:
    >>> defaults_for(rows=10_000, features=20).training['batch_size']
    128
  """
  batch_size = batch_for(rows)
  bins = max(1, min(BINS, MOST_BINS // features))
  passes = MOST_STEPS * batch_size / rows
  return TableDefaults(
    network=dict(widths=(128, 128), bins=bins),
    training=dict(
      optimizer='adam',
      learning_rate=4e-3,
      schedule='constant',
      batch_size=batch_size,
      epochs=float(max(4, math.ceil(passes))),
    ),
    average=0.99,
    folds=10 if rows >= 500 else 5,
    stretch=max(50, round(rows / batch_size / 4)),
    patience=12,
    student_network=dict(widths=(256, 256), bins=bins),
  )


def batch_for(rows: int) -> int:
  """Examples in a step: the power of 2 that is closest to the root of the number of rows, from 32 to 1,024.

  Example:
    >>> [batch_for(rows) for rows in (100, 1000, 10_000, 1_000_000)]
    [32, 32, 128, 1024]
  """
  return 2 ** min(10, max(5, round(math.log2(rows) / 2)))
