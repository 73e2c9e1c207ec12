"""Tables, made from result rows alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table as RichTable

from hydra_jax.progress import console
from hydra_jax.tasks import Task

ARROWS = {'low': ' ↓', 'high': ' ↑', '': ''}


class Column(NamedTuple):
  """One column: where its rows are, and how it is shown.

  Attributes:
    data, metric: Of the rows.
    heading: As shown.
    better: `low`, `high` or empty.
    relative: `ratio` to the ensemble's value, or `difference` where a value can be negative.
  """

  data: str
  metric: str
  heading: str
  better: str
  relative: str = 'ratio'


class Table(NamedTuple):
  """Headings, and for each method its name and its cells (value, relative to the ensemble)."""

  headings: list[str]
  body: list[tuple[str, list[tuple[str, str]]]]


COSTS = (
  Column('cost', 'parameters', 'params', 'low'),
  Column('cost', 'flops', 'FLOPs', 'low'),
  Column('cost', 'latency_ms', 'ms/{batch}', 'low'),
)


def comparison(rows: Sequence[dict], task: Task, outside: Sequence[str]) -> Table:
  """The table of a run: scores in-domain, detection of out-of-domain inputs, and cost.

  Where there are several replicas, a cell is the mean ± its standard error over them.
  """
  columns = [Column('test', m, *shown) for m, shown in task.headline.items()]
  for name in outside:
    columns += [Column(name, f'auroc_{by}', f'{name} AUROC {by}', 'high') for by in ('total', 'model')]
  columns += COSTS
  batch = next((row['n'] for row in rows if row['metric'] == 'latency_ms'), '')
  values: dict[tuple[str, str, str], list[float]] = {}
  for row in rows:
    values.setdefault((row['method'], row['data'], row['metric']), []).append(row['value'])
  methods = list(dict.fromkeys(row['method'] for row in rows))
  body = []
  for method in methods:
    cells = [
      _cell(values.get((method, c.data, c.metric)), values.get(('ensemble', c.data, c.metric)), c) for c in columns
    ]
    body.append((method, cells))
  return Table([c.heading.format(batch=batch) + ARROWS[c.better] for c in columns], body)


def _cell(values, base, column: Column) -> tuple[str, str]:
  if not values:
    return '–', ''
  mean = float(np.mean(values))
  shown = _number(mean)
  if len(values) > 1:
    shown += f' ± {_number(float(np.std(values, ddof=1) / np.sqrt(len(values))))}'
  against = float(np.mean(base)) if base else 0.0
  if not against:
    return shown, ''
  if column.relative == 'difference':
    return shown, f'{mean - against:+.3f}'
  ratio = mean / against
  return shown, '0×' if not ratio else f'{ratio:.{3 if ratio < 1.995 else 2}f}×'


def _number(value: float) -> str:
  """Four decimals for scores; three digits and a unit for what is large."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= size:
      return _digits(value / (1e3 if unit == 'k' else size)) + unit
  return _digits(value) if value == 0 or abs(value) >= 10 else f'{value:.4f}'


def _digits(value: float) -> str:
  """Three significant digits, without an exponent."""
  if value == 0:
    return '0'
  return f'{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}'


def markdown(table: Table) -> str:
  """The table as Markdown; in brackets, relative to the ensemble."""
  lines = ['| method | ' + ' | '.join(table.headings) + ' |', '| --- |' + ' ---: |' * len(table.headings)]
  for method, cells in table.body:
    shown = [f'{value} ({relative})' if relative and method != 'ensemble' else value for value, relative in cells]
    lines.append(f'| {method} | ' + ' | '.join(shown) + ' |')
  return '\n'.join(lines) + '\n'


def show(table: Table) -> None:
  """Prints the table; the second line of a cell is relative to the ensemble."""
  shown = RichTable(
    box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption='second line of a cell: relative to the ensemble'
  )
  shown.add_column('method', no_wrap=True)
  for heading in table.headings:
    shown.add_column(heading, justify='right')
  for method, cells in table.body:
    below = [f'{value}\n[dim]{relative}[/dim]' if method != 'ensemble' else value for value, relative in cells]
    shown.add_row(method, *below)
  console.print(shown)
