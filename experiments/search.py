"""The learning rate of every method on the digits: one search for all, on training data alone.

    python -m experiments.search --output /tmp/search

The first four fifths of the training split are trained on, the last fifth gives the scores. The test split and the
out-of-domain sets are not read. Of each method the rate with the lowest mean NLL over three seeds is the one to
set in `configs/digits.py`. It writes the log of all settings to `experiments/results/search/log.csv`. A search that was
stopped continues.
"""

import argparse
from collections.abc import Iterable, Mapping
import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from configs import digits
from hydra_jax.config import variant
from hydra_jax.data import toy
from hydra_jax.experiment.run import run

GRID: dict[str, tuple[Any, ...]] = {'learning_rate': (1e-3, 3e-3, 1e-2)}
REPLICAS = 3
COLUMNS = ('method', *GRID, 'nll', 'nll_error', 'rank_correlation', 'accuracy', 'chosen')
RESULTS = Path(__file__).parent / 'results' / 'search'


def settings() -> list[dict[str, Any]]:
  """All points of the grid."""
  return [dict(zip(GRID, point, strict=True)) for point in itertools.product(*GRID.values())]


def held_out() -> dict[str, np.ndarray]:
  """The training split of the digits in two parts: four fifths to train on, and a fifth of other writers for scores."""
  x, y = toy.digits('train')
  count = len(x) * 4 // 5
  return {'x': x[:count], 'y': y[:count], 'x_test': x[count:], 'y_test': y[count:]}


def get_config():
  """The digits, with a student for each method and each point of the grid."""
  config = digits.get_config()
  config.name, config.replicas = 'search', REPLICAS
  config.data.name, config.data.ood, config.data.shifts = f'{__file__}:held_out', (), ()
  methods = list(config.student)
  for method, (place, point) in itertools.product(methods, enumerate(settings())):
    variant(config, f'{method}-{place}', of=method, **point)
  config.students = tuple(f'{method}-{place}' for method in methods for place in range(len(settings())))
  return config


def log(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A row for each method and point of the grid: means over seeds, and whether its NLL is the lowest of the method.

  Args:
    rows: Of `results.jsonl`.

  Returns:
    Rows with the keys `COLUMNS`, in the order of the methods in `rows`.

  Example:
    >>> row = dict(split='test', replica=0, metric='nll')
    >>> rows = [row | dict(method='kd-0', value=2.0), row | dict(method='kd-1', value=1.0)]
    >>> [(row['method'], row['learning_rate'], row['chosen']) for row in log(rows)]
    [('kd', 0.001, False), ('kd', 0.003, True)]
  """
  values: dict[tuple[str, int], dict[str, list[float]]] = {}
  for row in rows:
    method, dash, place = row['method'].rpartition('-')
    if row['split'] == 'test' and dash:
      values.setdefault((method, int(place)), {}).setdefault(row['metric'], []).append(row['value'])
  best: dict[str, float] = {}
  for (method, _), found in values.items():
    best[method] = min(best.get(method, np.inf), np.mean(found['nll']))
  points = settings()

  def row_of(method: str, place: int, found: dict[str, list[float]]) -> dict[str, Any]:
    mean = {metric: float(np.mean(found[metric])) if metric in found else None for metric in COLUMNS}
    count = len(found['nll'])
    error = float(np.std(found['nll'], ddof=1) / np.sqrt(count)) if count > 1 else None
    return mean | dict(method=method, nll_error=error, chosen=mean['nll'] == best[method]) | points[place]

  return [row_of(*key, found) for key, found in values.items()]


def main() -> None:
  """Searches, and writes the log."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', required=True, help='folder of the run')
  place = Path(parser.parse_args().output)
  run(get_config(), place, '')
  rows = log(map(json.loads, (place / 'results.jsonl').read_text().splitlines()))
  RESULTS.mkdir(parents=True, exist_ok=True)
  with open(RESULTS / 'log.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    shown = lambda value: f'{value:.6g}' if isinstance(value, float) else value
    writer.writerows({key: shown(value) for key, value in row.items()} for row in rows)
  for row in rows:
    if row['chosen']:
      print(f'{row["method"]}: learning_rate={row["learning_rate"]}, NLL {row["nll"]:.4f}')


if __name__ == '__main__':
  main()
