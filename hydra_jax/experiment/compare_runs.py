"""`hydra-jax compare`: finished runs side by side. In what their configs differ, and what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.experiment import workdir as workdirs
from hydra_jax.experiment.schema import OF_THE_WORK
from hydra_jax.formats import number, signed
from hydra_jax.maths.statistics import estimate
from hydra_jax.maths.tasks import TASKS
from hydra_jax.progress import console
from hydra_jax.report import tables, verdict
from hydra_jax.report.tables import ARROWS, MISSING, Table
from hydra_jax.settings import short


@dataclass(frozen=True)
class FinishedRun:
  """What is compared of a run.

  Attributes:
    name: Of its folder, or as much of its path as tells runs apart.
    config: Values by dotted key.
    task: Key of `tasks.TASKS`.
    results: What came out.
  """

  name: str
  config: Mapping[str, Any]
  task: str
  results: verdict.Results

  @property
  def replicas(self) -> Any:
    """What must be equal for replicas of two runs to be pairs: the data, the seed and the number of replicas."""
    return {key: value for key, value in self.config.items() if key in ('seed', 'replicas') or key.startswith('data.')}


def read(folder: Path, name: str) -> FinishedRun:
  """Reads the folder of a finished run.

  Raises:
    UserError: It is none, it is not finished, or a file in it is damaged.
  """
  results = folder / 'results.jsonl'
  if not (folder / workdirs.CONFIG).is_file():
    raise UserError(f'{folder} is no folder of a run: it has no {workdirs.CONFIG}')
  workdirs.check_format(folder)
  workdirs.check_finished(folder)
  try:
    config = dict(_leaves(store.read_json(folder / workdirs.CONFIG)))
    about = store.read_json(folder / 'data.json')
    task, rows = about['task'], map(json.loads, results.read_text().splitlines())
    found = verdict.results_of(list(rows), float(about['test_to_train']))
    if task not in TASKS:
      raise ValueError
  except (store.Damaged, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(f'a file in {folder} is damaged: run its command again, which writes it') from e
  return FinishedRun(name, config, task, found)


def _leaves(section: Mapping[str, Any], prefix: str = ''):
  for key, value in section.items():
    if isinstance(value, Mapping):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def named(folders: Sequence[Path]) -> list[str]:
  """A name for each folder: its own, or as many of the folders around it as tell them apart.

  Example:
    >>> named([Path('a/run'), Path('b/run'), Path('b/other')])
    ['a/run', 'b/run', 'b/other']
  """
  parts = [folder.absolute().parts for folder in folders]
  for count in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(part[-count:]) for part in parts]
    if len(set(names)) == len(names):
      return names
  raise UserError('the same run is named twice: name different runs')


def config_table(runs: Sequence[FinishedRun]) -> Table:
  """Keys on which the configs differ. Settings of students that no run trains are left out."""
  students = {name for run in runs for name in run.config.get('students', ())}
  keys = dict.fromkeys(key for run in runs for key in run.config)
  body = []
  for key in keys:
    words = key.split('.')
    if words[0] in OF_THE_WORK or (words[0] == 'student' and words[1] not in students):
      continue
    values = [short(run.config[key]) if key in run.config else MISSING for run in runs]
    if len(set(values)) > 1:
      body.append((key, [(value, '') for value in values]))
  return Table([run.name for run in runs], body, 'Configs', first='key')


def score_table(runs: Sequence[FinishedRun]) -> Table:
  """Scores on the test set, detection of out-of-domain sets, and size: a row for each method and metric.

  Methods that have the same scores in all runs are named below the table.

  Below a value is the difference to the first run, with * where p < .05 in a paired t-test over replicas. Replicas are
  pairs where both runs have the same data, seed and number of replicas.
  """
  headline = {('test', metric): heading for metric, heading in TASKS[runs[0].task].headline.items()}
  splits = list(dict.fromkeys(split for run in runs for split, _, _ in run.results.values))
  more = {(split, 'auroc_uncertainty_epistemic'): (f'{split} AUROC model', 'high') for split in splits}
  columns = headline | more | {('cost', 'parameters'): ('parameters', 'low')}
  methods = dict.fromkeys(method for run in runs for _, method, _ in run.results.values)
  body, equal = [], []
  for method in methods:
    found = {key: [run.results.values.get((key[0], method, key[1])) for run in runs] for key in columns}
    if all(value == values[0] for values in found.values() for value in values):
      equal.append(method)
      continue
    for key, (heading, better, *_) in columns.items():
      if any(found[key]):
        cells = [_cell(run, value, runs[0], found[key][0]) for run, value in zip(runs, found[key], strict=True)]
        body.append((f'{method}: {heading}{ARROWS[better]}', cells))
  note = f'The same in all runs: {", ".join(equal)}. ' if equal else ''
  note += 'Second line of a cell: the difference to the first run.' if body else ''
  if any(len(each) > 1 for run in runs for each in run.results.values.values()):
    note += (
      ' ±: standard error over replicas. *: p < .05 by a paired t-test over replicas, not corrected for the number '
    )
    note += 'of rows. Runs with other data, another seed or other replicas are not tested.'
  return Table([run.name for run in runs], body, 'Scores', note, first='method and score')


def _cell(run: FinishedRun, values, first: FinishedRun, base) -> tuple[str, str]:
  if not values:
    return MISSING, ''
  found = estimate([*values.values()], run.results.test_to_train)
  text = number(found.mean, found.error)
  if run is first or not base:
    return text, ''
  gap = signed(found.mean - float(np.mean([*base.values()])), 3)
  tested = verdict.pairs(values, base, run.results.test_to_train) if run.replicas == first.replicas else None
  return (text, f'{gap}*') if tested and tested.p < 0.05 else (text, gap)


def show(folders: Sequence[Path]) -> None:
  """Prints both tables.

  Raises:
    UserError: There are fewer than two runs, one is not finished, or their tasks differ.
  """
  if len(folders) < 2:
    raise UserError('name at least two runs to compare')
  runs = [read(folder, name) for folder, name in zip(folders, named(folders), strict=True)]
  for run in runs[1:]:
    if run.task != runs[0].task:
      raise UserError(f'{runs[0].name} is {runs[0].task} and {run.name} is {run.task}: compare runs of one task')
  configs = config_table(runs)
  if configs.body:
    tables.show(configs)
  else:
    console.print('The configs are equal, but for how and where the work is done.')
  tables.show(score_table(runs))
