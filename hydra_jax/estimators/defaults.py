"""How networks for tables are trained, by the number of rows and columns."""

from dataclasses import dataclass, field
import math
from typing import Any

# Steps that training may take at most; small sets were best after 1,000 to 5,000.
MOST_STEPS = 8000
# Columns of the embedding of all columns together, at most: the first layer must not be all the work.
MOST_EMBEDDED = 1000


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
    student: What differs from `training` and the settings of `hydra` for the student.
  """

  network: dict[str, Any]
  training: dict[str, Any]
  average: float
  folds: int
  stretch: int
  patience: int
  student: dict[str, Any] = field(default_factory=dict)


def defaults_for(rows: int, features: int, task: str) -> TableDefaults:
  """Settings for a table, the same for classification and regression.

  Args:
    rows: Number of rows that are learnt from.
    features: Number of columns after encoding.
    task: Key of `maths.tasks.TASKS`.

  Example:
    >>> defaults_for(rows=10_000, features=20, task='regression').training['batch_size']
    256
  """
  del task
  batch_size = batch_for(rows)
  epoch = rows / batch_size
  return TableDefaults(
    network=dict(widths=(128, 128), frequencies=16, embedding=max(1, min(8, MOST_EMBEDDED // features))),
    training=dict(
      optimizer='adamw',
      learning_rate=4e-3,
      schedule='constant',
      weight_decay=1e-4,
      batch_size=batch_size,
      epochs=max(10.0, math.ceil(MOST_STEPS / epoch)),
    ),
    average=0.99,
    folds=min(5, rows),
    stretch=max(50, round(epoch / 4)),
    patience=12,
  )


def batch_for(rows: int) -> int:
  """About rows / 50 examples in a step, a power of 2 from 32 to 1,024.

  Small sets need steps, and large batches would give them few.
  """
  return 2 ** min(10, max(5, round(math.log2(rows / 50))))
