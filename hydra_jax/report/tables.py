"""Tables, made from result rows alone, and how they are written: Markdown, LaTeX, and on the screen."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
import itertools
import textwrap

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from hydra_jax.formats import digits, number, signed
from hydra_jax.maths import uncertainty
from hydra_jax.maths.statistics import estimate
from hydra_jax.maths.tasks import Task
from hydra_jax.progress import console

MISSING = '–'
BETWEEN = 2  # characters between columns, as rich has them in this box, which also has one at the left
ARROWS = {'low': ' ↓', 'high': ' ↑', '': ''}


@dataclass(frozen=True)
class Column:
  """One column: where its rows are, and how it is shown.

  Attributes:
    split, metric: Of the rows.
    heading: As shown.
    better: `low`, `high`, a number that values should be close to, or empty.
    relative: `ratio` to the ensemble's value, or `difference` where a value can be negative.
    run: Of several, the run whose rows they are.
  """

  split: str
  metric: str
  heading: str
  better: str = ''
  relative: str = 'ratio'
  run: str = ''


def detection(outside: str, by: str) -> Column:
  """The AUROC of an out-of-domain set, by one of `uncertainty.RANKINGS`."""
  return Column(outside, f'auroc_{by}', f'{outside} AUROC {uncertainty.WORDS[by]}', 'high')


@dataclass(frozen=True)
class Table:
  """A table of texts, ready to be written in any format.

  Attributes:
    headings: Of all columns but the first.
    body: Names of the rows, which are the first column, and cells: a text, and maybe one that stands below it.
    title, note: Above and below.
    first: Heading of the first column.
    groups: Of each heading, a word that is the same for columns that are best kept together; empty: all are.
    repeated: How many columns after the first say what a row is, so that each part of a divided table has them.
  """

  headings: list[str]
  body: list[tuple[str, list[tuple[str, str]]]]
  title: str = ''
  note: str = ''
  _: KW_ONLY
  first: str = 'method'
  groups: Sequence[str] = ()
  repeated: int = 0


COSTS = (
  Column('cost', 'parameters', 'params', 'low'),
  Column('cost', 'flops', 'FLOPs', 'low'),
  Column('cost', 'latency_ms', 'ms/{batch}', 'low'),
)


# A latency whose quartiles are further apart than this share of the median was measured beside other work.
ROUGH = 0.2
ROUGH_NOTE = '≈: quartiles are more than 20% apart, as other work ran beside; measure again with --measure.'


def latency(text: str, median: float, low: float, high: float) -> str:
  """A latency as text, marked where it is rough."""
  return f'≈ {text}' if high - low > ROUGH * median else text


def comparison(rows: Sequence[dict], task: Task, outside: Sequence[str], test_to_train: float = 0.0) -> Table:
  """The table of a run: scores in-domain, detection of out-of-domain inputs, and cost.

  Columns that no row is for are left out. Where there are several replicas, a cell is the mean ± its standard error
  over them, see `statistics`.
  """
  columns = [Column('test', m, *heading) for m, heading in task.headline.items()]
  for name in outside:
    columns += [detection(name, by) for by in uncertainty.RANKINGS]
  there = {(row['split'], row['metric']) for row in rows}
  columns = [*(column for column in columns if (column.split, column.metric) in there), *COSTS]
  batch = next((row['n'] for row in rows if row['metric'] == 'latency_ms'), '')
  values: dict[tuple[str, str, str], list[float]] = {}
  for row in rows:
    values.setdefault((row['method'], row['split'], row['metric']), []).append(row['value'])
  methods = list(dict.fromkeys(row['method'] for row in rows))
  body, several = [], any(row['replica'] for row in rows)
  for method in methods:
    cells = [
      _cell(values.get((method, c.split, c.metric)), values.get(('ensemble', c.split, c.metric)), c, test_to_train)
      for c in columns
    ]
    measured = [values.get((method, 'cost', f'latency_ms{which}'), [0.0])[0] for which in ('', '_low', '_high')]
    cells[-1] = latency(cells[-1][0], *measured), cells[-1][1]
    body.append((method, [(text, '') for text, _ in cells] if method == 'ensemble' else cells))
  rough = any(cells[-1][0].startswith('≈') for _, cells in body)
  notes = [error_note(test_to_train > 0)] * several + [ROUGH_NOTE] * rough
  headings = [c.heading.replace('{batch}', str(batch)) + ARROWS[c.better] for c in columns]
  return Table(headings, body, note=' '.join(notes), groups=[c.split for c in columns])


def error_note(over_splits: bool) -> str:
  """What stands behind ±."""
  if not over_splits:
    return '±: standard error over replicas.'
  return (
    '±: standard error over splits, corrected for their overlap (Nadeau and Bengio 2003): s √(1/n + n_test/n_train), '
    'where s is the standard deviation over n splits.'
  )


def _cell(values, base, column: Column, test_to_train: float) -> tuple[str, str]:
  if not values:
    return MISSING, ''
  found = estimate(values, test_to_train)
  text, mean = number(found.mean, found.error), found.mean
  against = float(np.mean(base)) if base else 0.0
  if not against:
    return text, ''
  if column.relative == 'difference':
    return text, signed(mean - against, 3)
  ratio = mean / against
  return text, f'{digits(ratio, 4 if 0.9995 <= ratio < 2 else 3)}×'


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
  '√': r'$\surd$',
  '≈': r'$\approx$',
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


def show(table: Table, to: Console = console) -> None:
  """Prints the table: where it is wider than the terminal, as several with fewer columns, each with the first one."""
  first, widths, parts = fitting(table, to.width)
  for i, columns in enumerate(parts):
    title = escape(table.title) if i == 0 and table.title else None
    printed = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify='left')
    printed.add_column(escape(table.first), width=first, overflow='fold')
    for c in columns:
      heading = '\n'.join(textwrap.wrap(_unbroken(table.headings[c]), widths[c], break_long_words=False))
      printed.add_column(escape(heading), justify='right', width=widths[c], overflow='fold')
    for name, cells in table.body:
      texts = [(escape(cells[c][0]), escape(cells[c][1])) for c in columns]
      printed.add_row(escape(name), *(f'{text}\n[dim]{below}[/dim]' if below else text for text, below in texts))
    to.print(printed)
  if table.note:
    to.print(table.note, markup=False)


def fitting(table: Table, width: int) -> tuple[int, list[int], list[list[int]]]:
  """Divides a table into parts that are no wider than `width` characters.

  Headings are broken between words where that makes columns narrower and the table is too wide. A group of columns is
  divided only where it is too wide by itself. Each part has one column at least.

  Returns:
    Characters of the first column, those of every other one, and the indices of the columns of each part.
  """
  first = _first_width(table, width)
  room = width - first - BETWEEN - 1
  longest = lambda c: max((len(text) for _, line in table.body for text in line[c]), default=0)
  cells = [longest(c) for c in range(len(table.headings))]
  widths = [max(least, len(heading)) for least, heading in zip(cells, table.headings)]
  if sum(w + BETWEEN for w in widths) > room:
    words = [max(map(len, _unbroken(heading).split(' '))) for heading in table.headings]
    widths = [max(1, least, word) for least, word in zip(cells, words)]
  used = lambda columns: sum(widths[c] + BETWEEN for c in columns)
  repeated, others = list(range(table.repeated)), range(table.repeated, len(widths))
  room -= used(repeated)
  parts: list[list[int]] = [[]]
  for _, group in itertools.groupby(others, key=lambda c: table.groups[c] if table.groups else ''):
    columns = list(group)
    if parts[-1] and used(parts[-1] + columns) > room >= used(columns):
      parts.append([])
    for c in columns:
      if parts[-1] and used([*parts[-1], c]) > room:
        parts.append([])
      parts[-1].append(c)
  return first, widths, [repeated + part for part in parts]


def _first_width(table: Table, width: int) -> int:
  """Characters of the first column: its names are broken between words where they take more than a third."""
  names = [table.first, *(name for name, _ in table.body)]
  word = max(len(word) for name in names for word in name.split(' '))
  return min(max(map(len, names)), max(width // 3, word))


def _unbroken(heading: str) -> str:
  """A heading whose arrow stays on the line of the word before it."""
  for arrow in filter(None, ARROWS.values()):
    heading = heading.replace(arrow, '\N{NO-BREAK SPACE}' + arrow.strip())
  return heading
