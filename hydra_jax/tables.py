"""Tables, made from result rows alone, and how they are written: Markdown, LaTeX, and on the screen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table as RichTable

from hydra_jax.progress import console
from hydra_jax.statistics import Estimate, Published, estimate
from hydra_jax.tasks import Task

MISSING = '–'
ARROWS = {'low': ' ↓', 'high': ' ↑', '': ''}


class Column(NamedTuple):
  """One column: where its rows are, and how it is shown.

  Attributes:
    data, metric: Of the rows.
    heading: As shown.
    better: `low`, `high`, a number that values should be close to, or empty.
    relative: `ratio` to the ensemble's value, or `difference` where a value can be negative.
    run: Of several, the run whose rows they are.
  """

  data: str
  metric: str
  heading: str
  better: str = ''
  relative: str = 'ratio'
  run: str = ''


class Table(NamedTuple):
  """What is shown.

  Attributes:
    headings: Of all columns but the first.
    body: Names of the rows, which are the first column, and cells: a text, and maybe one that stands below it.
    title, note: Above and below.
    first: Heading of the first column.
  """

  headings: list[str]
  body: list[tuple[str, list[tuple[str, str]]]]
  title: str = ''
  note: str = ''
  first: str = 'method'


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
    body.append((method, [(text, '') for text, _ in cells] if method == 'ensemble' else cells))
  return Table([c.heading.format(batch=batch) + ARROWS[c.better] for c in columns], body)


def _cell(values, base, column: Column) -> tuple[str, str]:
  if not values:
    return MISSING, ''
  shown, mean = number(found := estimate(values)), found.mean
  against = float(np.mean(base)) if base else 0.0
  if not against:
    return shown, ''
  if column.relative == 'difference':
    return shown, f'{mean - against:+.3f}'
  ratio = mean / against
  return shown, '0×' if not ratio else f'{ratio:.{3 if ratio < 1.995 else 2}f}×'


def number(found: Estimate | Published) -> str:
  """A mean ± its standard error, if it has one."""
  mean, error, *_ = found
  return digits(mean) + ('' if np.isnan(error) else f' ± {digits(error)}')


def digits(value: float) -> str:
  """Four decimals for scores; three digits and a unit for what is large."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if abs(value) >= size:
      return _three(value / (1e3 if unit == 'k' else size)) + unit
  return _three(value) if value == 0 or abs(value) >= 10 else f'{value:.4f}'


def _three(value: float) -> str:
  """Three significant digits, without an exponent."""
  if value == 0:
    return '0'
  return f'{value:.{max(0, 2 - int(np.floor(np.log10(abs(value)))))}f}'


def markdown(table: Table) -> str:
  """The table as Markdown; what stands below a text follows it in brackets."""
  lines = [f'### {table.title}', ''] * bool(table.title)
  lines += [f'| {table.first} | ' + ' | '.join(table.headings) + ' |', '| --- |' + ' ---: |' * len(table.headings)]
  for name, cells in table.body:
    lines.append(f'| {name} | ' + ' | '.join(f'{text} ({below})' if below else text for text, below in cells) + ' |')
  return '\n'.join([*lines, *['', table.note] * bool(table.note)]) + '\n'


LATEX = {
  '\\': r'\textbackslash{}',
  **{c: f'\\{c}' for c in '&%$#_{}'},
  '±': r'$\pm$',
  '−': r'$-$',
  '×': r'$\times$',
  '÷': r'$\div$',
  '↑': r'$\uparrow$',
  '↓': r'$\downarrow$',
  '–': '--',
  '²': r'\textsuperscript{2}',
  '→': r'$\to$',
  '<': r'$<$',
  '≥': r'$\ge$',
}


def latex(table: Table) -> str:
  """The table as LaTeX, for the package `booktabs`."""
  escape = lambda text: ''.join(LATEX.get(c, c) for c in text)
  row = lambda cells: ' & '.join(map(escape, cells)) + r' \\'
  body = [row([name, *(f'{text} ({below})' if below else text for text, below in cells)]) for name, cells in table.body]
  return '\n'.join(
    [
      r'\begin{table}',
      r'\centering',
      rf'\caption{{{escape(" ".join(filter(None, (table.title, table.note))))}}}',
      rf'\begin{{tabular}}{{l{"r" * len(table.headings)}}}',
      r'\toprule',
      row([table.first, *table.headings]),
      r'\midrule',
      *body,
      r'\bottomrule',
      r'\end{tabular}',
      r'\end{table}',
      '',
    ]
  )


def show(table: Table) -> None:
  """Prints the table."""
  shown = RichTable(
    box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=table.title, title_justify='left', caption=table.note
  )
  shown.add_column(table.first, no_wrap=True)
  for heading in table.headings:
    shown.add_column(heading, justify='right')
  for name, cells in table.body:
    shown.add_row(name, *(f'{text}\n[dim]{below}[/dim]' if below else text for text, below in cells))
  console.print(shown)
