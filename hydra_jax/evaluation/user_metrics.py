"""Metrics of the user's own: in a config, `evaluation.metrics=('my_metrics.py:top2',)`.

A metric is a function `(prediction, y) -> scores [N]`, of NumPy arrays. `prediction` is a `Prediction`, in the units of
the targets. `y` is as in the data: classes `[N]`, or targets `[N, D]`. The mean over examples is the result.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hydra_jax import user_files
from hydra_jax.data import Data
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Prediction, Predictor
from hydra_jax.maths.tasks import TASKS, Task


def names(metrics: Sequence[str], task: str) -> dict[str, str]:
  """What each metric is called in the results, by its name in the config.

  Raises:
    UserError: There is no such function, or two metrics have one name.
  """
  taken = {*TASKS[task].averages, *TASKS[task].headline}
  found = {}
  for metric in metrics:
    if not user_files.is_name(metric):
      raise UserError(f"config.evaluation.metrics: '{metric}' names no function: write my_metrics.py:{metric}")
    user_files.find_function(metric, 'metric')
    short = metric.rpartition(':')[2]
    if short in taken:
      raise UserError(f"config.evaluation.metrics: there is a metric '{short}' already: rename that function")
    taken.add(short)
    found[metric] = short
  return found


def extended(task: Task, kind: str, metrics: Sequence[str]) -> Task:
  """The task with the metrics as results, and as columns of the table.

  Args:
    task: Classification or regression.
    kind: Its key in `TASKS`.
    metrics: Their names in the config.
  """
  found = names(metrics, kind)
  better = {short: getattr(user_files.find_function(metric, 'metric'), 'better', '') for metric, short in found.items()}
  averages = {**task.averages, **{short: short for short in better}}
  return replace(task, averages=averages, headline={**task.headline, **{s: (s, high) for s, high in better.items()}})


def sources(metrics: Sequence[str]) -> list[str]:
  """Digests of the source of each metric."""
  return [user_files.find(metric, 'metric').digest for metric in metrics]


def check(metrics: Sequence[str], data: Data) -> None:
  """Raises a `UserError` where a metric fails on a few test examples, for which nothing is predicted yet."""
  test = data.evaluations['test'].load()
  y = test.y[:8]
  n, members = len(y), 2
  shape = (n, data.outputs)
  if data.task == 'classification':
    zeros = np.zeros(n, np.float32)
    each = np.full((members, *shape), 1 / data.outputs, np.float32)
    prediction = Prediction(each[0], zeros, zeros, zeros, each, np.log(each))
  else:
    mean = np.broadcast_to(data.scaling.y_shift, (members, *shape)).astype(np.float64)
    variance = np.broadcast_to(np.square(data.scaling.y_scale), mean.shape).astype(np.float64)
    prediction = Prediction(mean[0], variance[0], variance[0], 0 * variance[0], mean, None, variance)
  for metric in metrics:
    _score(metric, prediction, y)


def scores(metrics: Sequence[str], model: Model, data: Data, batch_size: int) -> dict[str, dict[str, np.ndarray]]:
  """Scores of each example of every set with labels, `{set: {metric: [N]}}`.

  Raises:
    UserError: A metric fails, or does not return one finite number for each example.
  """
  if not metrics:
    return {}
  example = data.train.example
  has_members = model.read is TASKS[data.task].predictives['members'].read
  predictor = Predictor(
    model, data.task, example.shape[1:], example.dtype == np.uint8, tuple(data.classes), has_members
  )
  found: dict[str, dict[str, np.ndarray]] = {}
  for where, evaluation in data.evaluations.items():
    if evaluation.kind in ('test', 'shift'):
      split = evaluation.load()
      prediction = predictor.predict(split.x, batch_size)
      found[where] = {short: _score(metric, prediction, split.y) for metric, short in names(metrics, data.task).items()}
  return found


def _score(metric: str, prediction: Prediction, y: np.ndarray) -> np.ndarray:
  function, what = user_files.find_function(metric, 'metric'), f"metric '{metric}'"
  with user_files.one_line(what):
    values = np.asarray(function(prediction, y))
  if values.shape != (len(y),) or values.dtype.kind not in 'biuf':
    raise UserError(
      f'{what} returns {values.dtype} {list(values.shape)}: return one number for each example, [{len(y)}]'
    )
  values = values.astype(np.float64)
  if not np.isfinite(values).all():
    raise UserError(f'{what} is not finite for {np.sum(~np.isfinite(values))} of {len(y)} examples')
  return values
