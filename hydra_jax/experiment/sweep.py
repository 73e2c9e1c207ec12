"""`hydra-jax sweep`: runs of one config over a grid of values, which share what they train.

Several processes may work on one sweep: each takes the next point that nobody works on. What is finished is not done
again, and what was interrupted continues.
"""

from collections.abc import Mapping, Sequence
import csv
from dataclasses import dataclass
import io
import itertools
import json
import logging
import math
from pathlib import Path
import re
import time
from types import MappingProxyType

import jax
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store, text
from hydra_jax.data import load
from hydra_jax.errors import UserError
from hydra_jax.experiment import compare_runs, config as configs, provenance, run as runs
from hydra_jax.experiment.compare_runs import FinishedRun
from hydra_jax.formats import number
from hydra_jax.maths.statistics import estimate
from hydra_jax.maths.tasks import TASKS
from hydra_jax.report import figures, parallel, tables
from hydra_jax.report.tables import ARROWS, MISSING, Table

logger = logging.getLogger(__name__)

# Written into the folder of a point when it is finished: what it was made of.
POINT = 'point.json'
STORE = 'store'
RANGE = re.compile(r'(-?\d+)\.\.(-?\d+)')
LONGEST_NAME = 80
# Values of this key are repetitions: scores are means over them.
SEED = 'seed'
# The first of these headings that there are values for gives the colours of the figure.
COLOURS = ('validation NLL', 'NLL')
WITHOUT = (
  'These data have no validation part. Choose by none of these scores: a choice by test scores makes them too good.'
)
NOTE = (
  'Choose by the NLL on the validation part, which no network was trained on. A choice by test scores makes them too '
  'good. The spread and the temperature are fitted on the same part.'
)


@dataclass(frozen=True)
class Point:
  """One combination of values.

  Attributes:
    name: Of its folder.
    values: Texts by dotted key.
    config: The experiment.
  """

  name: str
  values: Mapping[str, str]
  config: ConfigDict


def keys_of(points: Sequence[Point], data_dir: str) -> dict[str, str]:
  """By name of the point, what stands for its experiment, its data as they are now, and the code."""
  data: dict[str, list[str]] = {}  # most points have the same
  keys = {}
  for point in points:
    section = json.dumps([point.config.data.to_dict(), point.config.validation])
    if section not in data:
      found = load(point.config.data, data_dir, 0, point.config.validation)
      data[section] = [found.fingerprint, *(evaluation.key() for evaluation in found.evaluations.values())]
    parts = {'config': point.config.to_dict(), 'data': data[section], 'code': provenance.package_digest()}
    keys[point.name] = store.key_of(parts)
  return keys


def is_finished(folder: Path, key: str) -> bool:
  """Whether a point was run, and was the same as it is now."""
  file = folder / POINT
  return file.is_file() and store.read_json(file) == key


def grid_of(arguments: Sequence[str]) -> dict[str, list[str]]:
  """The values of each key, from texts such as `student.hydra.temperature=1,3,5` and `seed=0..4`.

  Raises:
    UserError: A text has another form, or a key or a value stands twice.

  Example:
    >>> grid_of(['seed=0..2', "students=('kd',),('hydra',)"])
    {'seed': ['0', '1', '2'], 'students': ["('kd',)", "('hydra',)"]}
  """
  grid: dict[str, list[str]] = {}
  for argument in arguments:
    key, equals, values = argument.partition('=')
    key = key.removeprefix('config.').strip()
    if not key or not equals:
      raise UserError(f"--grid '{argument}' has no values: write --grid KEY=VALUE,VALUE, such as seed=0..4")
    found = [each for part in text.split(values) for each in _range(part)]
    if not found:
      raise UserError(f'--grid {key} has no values: write --grid {key}=VALUE,VALUE')
    if key in grid:
      raise UserError(f'--grid {key} is given twice: give all its values at once')
    if twins := [each for each in found if found.count(each) > 1]:
      raise UserError(f'--grid {key} has the value {twins[0]} twice')
    grid[key] = found
  return grid


def _range(part: str) -> list[str]:
  match = RANGE.fullmatch(part)
  if not match:
    return [part]
  first, last = map(int, match.groups())
  if last < first:
    raise UserError(f'--grid: the range {part} is empty: write the smaller number first')
  return [str(value) for value in range(first, last + 1)]


def points_of(grid: Mapping[str, Sequence[str]], read) -> list[Point]:
  """All combinations, in the order of the grid, each with a config that was checked.

  Args:
    grid: Values by key.
    read: `overrides -> config`, from texts such as `--config.seed=3`.

  Raises:
    UserError: A value is not legal.
  """
  short = {key: key.rpartition('.')[2] for key in grid}
  labels = {key: last if [*short.values()].count(last) == 1 else key for key, last in short.items()}
  points = []
  for chosen in itertools.product(*grid.values()):
    values = dict(zip(grid, chosen, strict=True))
    config = read([f'--config.{key}={value}' for key, value in values.items()])
    configs.validate(config)
    points.append(Point(_file_name(values, labels), values, config))
  return points


def _file_name(values: Mapping[str, str], labels: Mapping[str, str]) -> str:
  """Readable where it can be; what is long or has other characters ends in a hash."""
  whole = ','.join(f'{labels[key]}={value}' for key, value in values.items())
  plain = re.sub(r'[^\w.,=+-]', '_', whole)
  if plain == whole and len(plain) <= LONGEST_NAME:
    return plain
  return f'{plain[:LONGEST_NAME]}-{store.key_of(values)[:6]}'


def run(points: Sequence[Point], folder: Path, shared: Path, data_dir: str) -> None:
  """Makes all points that no other process works on, and writes the table when all are finished.

  Args:
    points: What to run.
    folder: Where each point has a folder.
    shared: Where runs share what they train.
    data_dir: Where data sets are.

  Raises:
    UserError: Points failed; all others are made before.
  """
  failed: dict[str, str] = {}
  keys = keys_of(points, data_dir)
  for i, point in enumerate(points, start=1):
    place = folder / point.name
    if is_finished(place, keys[point.name]) or store.is_locked(place):
      continue
    logger.info(f'--- run {i} of {len(points)}: {point.name}')
    try:
      runs.run(point.config, place, data_dir, shared=shared)
      store.replace_text(place / POINT, json.dumps(keys[point.name]))
    except store.InUse:
      continue
    except UserError as e:
      failed[point.name] = str(e)
      logger.warning(f'{point.name} failed: {e}')
    finally:
      jax.clear_caches()  # JAX keeps all programs of each run, up to a gigabyte
  finished = [point for point in points if is_finished(folder / point.name, keys[point.name])]
  if finished:
    report(finished, folder)
  if left := len(points) - len(finished) - len(failed):
    logger.info(f'other processes work on {left} runs: the last of them writes the table of all')
  if failed:
    name, why = next(iter(failed.items()))
    raise UserError(f'{len(failed)} of {len(points)} runs failed, the others are in {folder}. {name}: {why}')


def report(points: Sequence[Point], folder: Path, ranges: Mapping[str, bool] = MappingProxyType({})) -> None:
  """Writes `table.md`, `results.csv` and `parallel.png`, and prints the table.

  Args:
    points: All are finished.
    folder: Of the sweep.
    ranges: Keys whose values are numbers of a range, and whether their logarithms are drawn.
  """
  found = [(point, compare_runs.read(folder / point.name, point.name)) for point in points]
  table, scales = score_table(found), scales_of(found, ranges)
  with store.part_locked(folder / 'table', lambda: time.sleep(0.1)):  # two processes may end at once
    store.replace_text(folder / 'results.csv', _csv(found))
    store.replace_text(folder / 'table.md', tables.markdown(table))
    if scales:
      figures.save(folder, {'parallel': lambda: parallel.draw(scales, COLOURS)})
  tables.show(table)
  logger.info(f'everything is in {folder}: table.md, results.csv, parallel.png, and a folder for each run')


Found = Sequence[tuple[Point, FinishedRun]]


def _csv(found: Found) -> str:
  """Every value of every run: the values of its point, and its rows of results."""
  lines = io.StringIO()
  keys = list(found[0][0].values)
  writer = csv.writer(lines, lineterminator='\n')
  writer.writerow([*keys, 'split', 'method', 'metric', 'replica', 'value'])
  for point, made in found:
    for (split, method, metric), values in made.results.values.items():
      for replica, value in values.items():
        writer.writerow([*point.values.values(), split, method, metric, replica, repr(value)])
  return lines.getvalue()


def columns_of(found: Found) -> dict[tuple[str, str], tuple[str, str]]:
  """What is shown of what some run has: `{(split, metric): (heading, better)}`."""
  headline = TASKS[found[0][1].task].headline
  columns = {('validation', 'nll'): ('validation NLL', 'low')}
  columns |= {('test', metric): (heading, better) for metric, (heading, better, *_) in headline.items()}
  there = {(split, metric) for _, made in found for split, _, metric in made.results.values}
  return {column: shown for column, shown in columns.items() if column in there}


Groups = dict[tuple[str, ...], dict[tuple[str, str, str], list[float]]]


def by_values(found: Found) -> tuple[list[str], Groups]:
  """Keys of the grid but the seed, and for each combination of their values what came out, over seeds and replicas."""
  keys = [key for key in found[0][0].values if key != SEED]
  groups: Groups = {}
  for point, made in found:
    group = groups.setdefault(tuple(point.values[key] for key in keys), {})
    for name, values in made.results.values.items():
      group.setdefault(name, []).extend(values.values())
  return keys, groups


def differing(groups: Groups, columns: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
  """Methods whose scores differ between combinations, and those whose scores are the same in all."""
  methods = dict.fromkeys(method for group in groups.values() for _, method, _ in group)
  scores = {
    method: [[group.get((split, method, metric)) for split, metric in columns] for group in groups.values()]
    for method in methods
  }
  same = [method for method, found in scores.items() if all(each == found[0] for each in found) and len(groups) > 1]
  return [method for method in methods if method not in same], same


def score_table(found: Found) -> Table:
  """A row for each method and combination of values; methods that no value changes are named below."""
  columns = columns_of(found)
  keys, groups = by_values(found)
  methods, same = differing(groups, list(columns))
  overlap = found[0][1].results.test_to_train
  body: list[tuple[str, list[tuple[str, str]]]] = []
  for method, (values, group) in itertools.product(methods, groups.items()):
    cells = [group.get((split, method, metric)) for split, metric in columns]
    if any(cells):
      body.append((method, [(value, '') for value in values] + [(_cell(cell, overlap), '') for cell in cells]))
  notes = [f'The same for all values: {", ".join(same)}.'] * bool(same)
  notes.append(NOTE if ('validation', 'nll') in columns else WITHOUT)
  if any(len(cell) > 1 for group in groups.values() for cell in group.values()):
    notes.append('±: standard error over seeds and replicas.')
  headings = [shown(key) for key in keys]
  headings += [f'{heading}{ARROWS[better]}' for heading, better in columns.values()]
  return Table(headings, body, 'Sweep', ' '.join(notes), repeated=len(keys))


def _cell(values: list[float] | None, overlap: float) -> str:
  if not values:
    return MISSING
  found = estimate(values, overlap)
  return number(found.mean, found.error)


def scales_of(found: Found, ranges: Mapping[str, bool] = MappingProxyType({})) -> dict[str, list[parallel.Scale]]:
  """For each method whose scores change, the values of the grid and its mean scores, where there are two to compare."""
  columns = columns_of(found)
  keys, groups = by_values(found)
  methods, same = differing(groups, list(columns))
  scales = {}
  for method in methods or same:
    have = {values: group for values, group in groups.items() if ('test', method, 'nll') in group}
    if len(have) < 2:
      continue
    drawn = [_scale(key, [values[i] for values in have], ranges) for i, key in enumerate(keys)]
    for (split, metric), (heading, _) in columns.items():
      means = [float(np.mean(group.get((split, method, metric), math.nan))) for group in have.values()]
      drawn += [parallel.Scale(heading, means)] * bool(np.all(np.isfinite(means)))
    scales[method] = drawn
  return scales


def _scale(key: str, values: Sequence[str], ranges: Mapping[str, bool]) -> parallel.Scale:
  if key not in ranges:
    return parallel.Scale(shown(key), values)
  return parallel.Scale(shown(key), [float(value) for value in values], ranges[key])


def shown(key: str) -> str:
  """A key as tables and figures have it."""
  return key.removeprefix('student.')
