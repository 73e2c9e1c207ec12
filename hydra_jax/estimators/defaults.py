"""How networks for tables are trained, by the number of rows and columns.

`experiments/results/tabular/README.md` tells what was tried, and on which sets the numbers were chosen.
"""

from dataclasses import dataclass, field
import math
from typing import Any

# Steps that training may take. Sets of 500 to 10,000 rows were best after 300 to 5,000.
MOST_STEPS = 8000
# Bins of a column; and those of all columns together, at most: the first layer must not be all the work.
BINS, MOST_BINS = 8, 1000


@dataclass(frozen=True, kw_only=True)
class TableDefaults:
  """How an ensemble for a table, and its student, are trained.

  Attributes:
    network: Arguments of `nets.tabular.tabular` besides the number of outputs.
    training: Of the members, as in `training.settings.TrainingSettings`. `epochs` is the limit.
    average: Decay of the running average of parameters, see `training.optimizers.averaged`.
    folds: Number of folds, see `training.folds`.
    stretch: Steps between two scores on held-out rows.
    patience: Training stops when no member has improved for as many stretches.
    student_network: As `network`, for the student.
    student: What differs from `training` and from the settings of `hydra` for the student.
  """

  network: dict[str, Any]
  training: dict[str, Any]
  average: float
  folds: int
  stretch: int
  patience: int
  student_network: dict[str, Any]
  student: dict[str, Any] = field(default_factory=dict)


def defaults_for(rows: int, features: int, task: str) -> TableDefaults:
  """Settings for a table.

  * Bins let a perceptron learn steps. Without them the error was 8 to 20% higher.
  * Two layers of 128: 256 units or three layers were no better, and take twice as long.
  * Batches are small, because what small tables lack is steps: at 20 passes in batches of 128 an ensemble had the
    errors of one that has hardly begun.
  * A constant rate with a running average needs no length that is known before. A falling rate was no better.
  * Dropout and weight decay made no difference beside early stopping, and there are none.
  * The student is twice as wide, as its heads share a body. It learns from copies of the rows with swapped values
    (`swaps`) where these predict the validation part better: with 16 copies its error came within 1% of the ensemble's.
  * 10 folds: each member learns from 90% of the rows. With 4 folds the error was 2 to 5% higher.

  Args:
    rows: Number of rows that are learnt from.
    features: Number of columns after encoding.
    task: Key of `maths.tasks.TASKS`. Nothing depends on it today.

  Example:
    >>> defaults_for(rows=10_000, features=20, task='regression').training['batch_size']
    128
  """
  del task
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
