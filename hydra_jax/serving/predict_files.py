"""Predictions for the rows of a file, written to another file."""

from collections.abc import Callable, Iterator
import contextlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.evaluation import calibrated
from hydra_jax.evaluation.predictor import Prediction, Predictor
from hydra_jax.progress import bar
from hydra_jax.serving import row_files

logger = logging.getLogger(__name__)

Columns = dict[str, Any]
Region = Callable[[Prediction], np.ndarray]


def predict_file(
  predictor: Predictor,
  source: str | Path,
  output: str | Path,
  coverage: float | None = None,
  members: bool = False,
  **options: str,
) -> int:
  """Predicts for every row of a file.

  Rows keep their order. Columns of a table that are no inputs, such as names of the rows, are written first, as they
  are; of an `.npz` file, arrays that have as many rows as `x`. After them stand, for N rows:

  * classification: `prediction` (names of classes, or their numbers) and `probability_CLASS`;
  * regression: `prediction` (the mean) and `standard_deviation`;
  * `uncertainty_total`, `uncertainty_aleatoric` and `uncertainty_epistemic`, see `Prediction`;
  * with a coverage, in regression `lower` and `upper`, and in classification `in_set_CLASS`;
  * with members, `member_0_CLASS` and so on, or `member_0` and `member_0_variance`.

  Of several targets, the names end in that of the target. An `.npz` file has arrays in place of columns whose names
  end in others: `probability [N, C]`, `in_set [N, C]`, `member [N, M, C]`, and `classes [C]`.

  Args:
    predictor: The model.
    source: A CSV, parquet or `.npz` file. Tables need a model that was trained on one.
    output: A file, whose name ends in `.csv`, `.parquet` or `.npz`. It appears when all rows are written.
    coverage: Of the interval or set of each row, see `Predictor.predict_interval` and `predict_set`.
    members: Whether the prediction of each member is written.
    **options: Of a CSV file: `delimiter`, `decimal` and `encoding`, as for `read_table`.

  Returns:
    Number of rows.

  Raises:
    UserError: A row cannot be predicted, the file cannot be read or written, or the model is not calibrated for the
      coverage. Nothing is left behind then.

  Example:
    >>> model = hydra_jax.load('houses-hydra')  # doctest: +SKIP
    >>> hydra_jax.predict_file(model, 'new.csv', 'predicted.csv', coverage=0.9)  # doctest: +SKIP
  """
  source, output = Path(source), Path(output)
  if members and not predictor.has_members:
    raise UserError('the model predicts one distribution, and has no members: leave members out')
  if output.exists() and source.exists() and output.samefile(source):
    raise UserError(f"'{output}' is the file that is read: give another one")
  region = None if coverage is None else _region(predictor, coverage)
  needs_members = members or (region is not None and predictor.calibration is None)
  features = None if predictor.columns is None else tuple(column.name for column in predictor.columns.used)
  in_table = row_files.suffix_of(output) not in row_files.NPZ
  rows, file = 0, row_files.read(source, features, **options)
  fixed = {'classes': np.array(predictor.classes)} if predictor.classes else {}
  with (
    contextlib.closing(file.parts) as parts,
    row_files.writing(output, fixed) as write,
    bar(f'predict {source.name}', file.total, unit=file.unit) as advance,
  ):
    for part in parts:
      with _counted(source, part.start):
        prediction = predictor.predict(part.x, members=needs_members)
      found = columns_of(predictor, prediction, region, members)
      rows += len(prediction.mean)
      write(_beside(part.others, _flat(found, predictor) if in_table else found, source, in_table))
      advance(part.done, note=f'{rows:,} rows' if file.unit != 'rows' else '')
  return rows


def _region(predictor: Predictor, coverage: float) -> Region:
  """Intervals or sets of a prediction."""
  if predictor.task == 'classification':
    return calibrated.sets_for(predictor, coverage)
  if predictor.calibration is None:
    logger.warning('the model is not calibrated: intervals are those of its members, and promise no coverage')
  return calibrated.intervals_for(predictor, coverage)


@contextlib.contextmanager
def _counted(source: Path, start: int) -> Iterator[None]:
  """Says of which file a `UserError` is, and from where its rows are counted."""
  try:
    yield
  except UserError as e:
    raise UserError(f'{source}: {e}' + (f' (rows are counted from row {start:,} of the file)' if start else '')) from e


def columns_of(predictor: Predictor, prediction: Prediction, region: Region | None, members: bool) -> Columns:
  """A prediction as arrays by name, with the rows first."""
  mean = prediction.mean
  found: Columns = {}
  if predictor.task == 'classification':
    best = mean.argmax(axis=1)
    found |= {'prediction': np.array(predictor.classes)[best] if predictor.classes else best, 'probability': mean}
  else:
    found |= {'prediction': mean, 'standard_deviation': np.sqrt(prediction.total)}
  found |= {f'uncertainty_{name}': getattr(prediction, name) for name in ('total', 'aleatoric', 'epistemic')}
  if region is not None and predictor.task == 'classification':
    found['in_set'] = region(prediction)
  elif region is not None:
    found |= dict(zip(('lower', 'upper'), np.moveaxis(region(prediction), -1, 0), strict=True))
  if members and prediction.members is not None:
    found['member'] = np.swapaxes(prediction.members, 0, 1)
    if prediction.member_variances is not None:
      found['member_variance'] = np.swapaxes(prediction.member_variances, 0, 1)
  return found


def _flat(found: Columns, predictor: Predictor) -> Columns:
  """Arrays `[N, …]` as columns `[N]`, whose names say which."""
  outputs = _names_of_outputs(predictor, len(predictor.model.scaling.y_scale))
  columns: Columns = {}
  for name, values in found.items():
    if values.ndim == 1:
      columns[name] = values
    elif values.ndim == 2:
      columns |= {f'{name}{output}': values[:, i] for i, output in _numbered(outputs, values.shape[1])}
    else:
      what = name.removeprefix('member')
      columns |= {
        f'member_{m}{what}{output}': values[:, m, i]
        for m in range(values.shape[1])
        for i, output in _numbered(outputs, values.shape[2])
      }
  return columns


def _numbered(outputs: list[str], count: int) -> Iterator[tuple[int, str]]:
  return enumerate(outputs or [f'_{i}' for i in range(count)])


def _names_of_outputs(predictor: Predictor, targets: int) -> list[str]:
  """What stands at the end of names of columns: classes, or targets where there are several; empty: their numbers."""
  if predictor.task == 'classification':
    return [f'_{name}' for name in predictor.classes]
  if targets == 1:
    return ['']
  return [] if predictor.columns is None else [f'_{column.name}' for column in predictor.columns.targets]


def _beside(others: Columns, found: Columns, source: Path, in_table: bool) -> Columns:
  """What was in the file and is no input, and then what was predicted."""
  if taken := [name for name in others if name in found]:
    raise UserError(f"{source} has '{taken[0]}', which is the name of a prediction: rename it")
  if in_table:  # arrays of an .npz file that are no columns
    others = {name: values for name, values in others.items() if getattr(values, 'ndim', 1) == 1}
  return others | found
