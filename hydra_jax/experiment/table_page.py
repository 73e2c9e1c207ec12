"""`report.html` of a table: the page of a run, for several of them."""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
from pathlib import Path
from typing import Any

from hydra_jax.data.shifts import parse
from hydra_jax.experiment import run_report
from hydra_jax.experiment.table_definition import Results
from hydra_jax.maths.tasks import TASKS
from hydra_jax.report import dots, page, tables, verdict
from hydra_jax.report.tables import Column, Table

# Panels of scores at most, of each run.
MOST_PANELS = 12
# What `about.json` has beside versions.
NO_VERSIONS = ('command', 'seconds', 'test_to_train', 'device')


def page_of(
  found: Results, made: Sequence[Table], figures: Path, about: Mapping[str, Any], notes: Sequence[str]
) -> page.Page:
  """What stands on the page of a table.

  Args:
    found: By its runs.
    made: All its tables, in order.
    figures: A folder with its figures, and with those of its runs.
    about: Of `about.json`: the command, the seconds of each sitting, the device, and versions.
    notes: Warnings.
  """
  definition, runs = found.definition, list(found.definition.runs)
  several, student = len(runs) > 1, _student(found)
  drawings = {name: _said_of(name, draw) for name, draw in definition.drawings.items()}
  of_table, *of_runs = page.figures_in(figures, ['', *(f'{run_name}-' for run_name in runs if several)], drawings)
  each = {run_name: _results(found, run_name) for run_name in runs}
  task_of = lambda run_name: TASKS[found.outcomes[run_name].task]
  outside = lambda run_name: _outside(each[run_name], definition.runs[run_name].data.shifts)
  said = lambda run_name: verdict.sentences(each[run_name], task_of(run_name), student, outside(run_name))
  if not student:
    top = ['No student was trained.']
  elif several:
    top = [f'{run_name}: {verdict.brief(each[run_name], task_of(run_name), student)}' for run_name in runs]
    top.append('Differences count where p < .05 in a paired t-test over replicas, not corrected for their number.')
  else:
    top = said(runs[0])
  if student and any(', difference to ' in table.title for table in made):
    top.append('The tables of differences below correct p for the number of tests.')
  return page.Page(
    title=definition.title,
    about=_about(found, about),
    heading=verdict.heading(found.label(student) if student else ''),
    verdict=top,
    tables=made,
    notes=notes,
    scores=[] if several else _panels(found, runs[0], each[runs[0]]),
    figures=of_table,
    parts=[
      page.Part(
        title=run_name,
        verdict=said(run_name) if student else [],
        scores=_panels(found, run_name, each[run_name]),
        figures=shown,
      )
      for run_name, shown in zip(runs, of_runs)
    ],
    code=('The command', _commands(about)),
    configs=[
      page.Config(title=run_name if several else '', changes=run_report.changes(config))
      for run_name, config in definition.runs.items()
    ],
    versions={name: value for name, value in about.items() if name not in NO_VERSIONS},
  )


def duration(seconds: float) -> str:
  """In words.

  Example:
    >>> duration(150.0), duration(20.0)
    ('2 min', '20 s')
  """
  return f'{seconds / 60:.0f} min' if seconds >= 100 else f'{seconds:.0f} s'


def _student(found: Results) -> str:
  """The student that the verdict is on."""
  methods = found.methods(next(iter(found.definition.runs)))
  return found.definition.against if found.definition.against in methods else run_report.student_shown(methods)


def _results(found: Results, run_name: str) -> verdict.Results:
  values = {key[1:]: each for key, each in found.values.items() if key[0] == run_name}
  return verdict.Results(values, found.test_to_train(run_name), found.definition.labels)


def _outside(results: verdict.Results, shifts: Sequence[str]) -> list[str]:
  """The sets that detection is known for; of each kind of shift, the greatest of `config.data.shifts`."""
  known = dict.fromkeys(split for split, _, metric in results.values if metric.startswith('auroc_uncertainty_'))
  ascending = sorted((name for name in shifts if name in known), key=lambda name: parse(name)[1])
  greatest = {name.partition(':')[0]: name for name in ascending}
  lesser = {*ascending} - {*greatest.values()}
  return [split for split in known if split not in lesser]


def _panels(found: Results, run_name: str, results: verdict.Results) -> list[dots.Panel]:
  """The scores of a run, as the sections of the table have them, without cost."""
  columns: dict[tuple[str, str], Column] = {}
  for section in found.definition.sections:
    for column in section.columns:
      if column.run in ('', run_name) and column.split != 'cost':
        of_run = column.heading in found.definition.runs
        heading = section.title if of_run else column.heading
        columns.setdefault(
          (column.split, column.metric), Column(column.split, column.metric, heading, column.better, run=run_name)
        )
  labels = {method: found.label(method) for method in found.methods(run_name)}
  published = {
    key[1:]: (theirs.value, theirs.error) for key, theirs in found.definition.published.items() if key[0] == run_name
  }
  return dots.panels(results.estimates(), list(columns.values())[:MOST_PANELS], labels, published)


def _said_of(name: str, draw: Callable) -> tuple[str, str]:
  """Title and caption of a drawing: its name, and the first line of its docstring."""
  while isinstance(draw, functools.partial):
    draw = draw.func
  caption = (inspect.getdoc(draw) or '').partition('\n')[0]
  return name.replace('_', ' ').capitalize(), caption


def _about(found: Results, about: Mapping[str, Any]) -> str:
  seconds = [each for each in about.get('seconds', []) if isinstance(each, int | float)]
  count = lambda run_name: max((len(v) for key, v in found.values.items() if key[0] == run_name), default=0)
  replicas = ', '.join(f'{run_name} {count(run_name)}' for run_name in found.definition.runs)
  parts = [f'replicas: {replicas}', f'device: {about.get("device", "unknown")}']
  if seconds:
    parts.append(f'time: {duration(sum(seconds))} in {len(seconds)} sitting' + 's' * (len(seconds) > 1))
  return ' · '.join([*parts, tables.error_note(found.over_splits())])


def _commands(about: Mapping[str, Any]) -> str:
  command = about['command']
  return f'{command}\n{command} --from=FOLDER  # draws this page again from replicas.csv in the folder of the table'
