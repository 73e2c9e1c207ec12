"""Tables and the figure of `experiments.estimators`, from its rows alone."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import math
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from hydra_jax.formats import digits, number, signed
from hydra_jax.maths.statistics import Difference, estimate, paired
from hydra_jax.report import figures
from hydra_jax.report.tables import MISSING, Table

Row = dict[str, Any]
Rows = Sequence[Row]

LABELS = {
  'student': 'our student',
  'ensemble': 'our ensemble',
  'forest': 'random forest',
  'student_of_forest': 'our student of the forest',
  'boosting': 'gradient boosting',
  'mlp': 'MLP ensemble',
  'bde': 'bde',
  'gaussian_process': 'Gaussian process',
}
# The student of a forest: relative loss of accuracy or RMSE, and its latency ÷ that of the forest, at most.
MOST_LOST, MOST_LATENCY = 0.02, 0.25
HEAD = """# Tables: our estimators beside those of other libraries, with equal time

Made by `python -m experiments.estimators`, whose docstring says how; `experiments/rivals.py` says what is searched and
how each method makes sets and intervals. All rows are in rows.csv. `s to fit` is that of the whole search; for our
ensemble and student it is that of the one `fit` that makes both. Of rivals, `tried` is the mean number of
configurations. `bytes` are those of the pickled model; of ours those of the saved folder. ± is the standard error over
splits, corrected for their overlap (Nadeau and Bengio 2003); where there is one split there is none. In brackets: the
difference to our student on the same splits, * where p < .05 by the corrected paired t-test, not adjusted for the
number of tests. Log loss counts probabilities below 1e-6 as 1e-6. Intervals and sets are meant to hold 90%. The
Gaussian process is fitted to 2,000 training rows at most, in classification to 1,000: its time grows with their cube.

![Beside our student](estimators.png)"""
SCORES = {'classification': ('log loss', 'accuracy', 'classes in a set'), 'regression': ('NLL', 'RMSE', 'width')}


def of(rows: Rows, **wanted: Any) -> list[Row]:
  """Rows that have these values."""
  return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def names(rows: Rows, task: str) -> list[str]:
  """Sets of a task, in order of their first rows."""
  return list(dict.fromkeys(row['set'] for row in rows if row['task'] == task))


def pairs(rows: Rows, ours: str, theirs: str, metric: str) -> tuple[list[float], list[float]]:
  """Values of two methods on the splits that both have, of one set."""
  values = {(row['method'], row['split']): row[metric] for row in rows}
  both = sorted({split for method, split in values if method == ours} & {s for m, s in values if m == theirs})
  return [values[ours, split] for split in both], [values[theirs, split] for split in both]


def difference(rows: Rows, ours: str, theirs: str, metric: str, test_to_train: float) -> Difference | None:
  """Ours − theirs on the same splits of one set; None where there are none."""
  a, b = pairs(rows, ours, theirs, metric)
  return paired(a, b, test_to_train) if a else None


def star(found: Difference) -> str:
  """A difference as it is printed in brackets."""
  return signed(found.mean, 2) + '*' * (found.p < 0.05)


def cell(rows: Rows, method: str, metric: str, test_to_train: float, against: str = '') -> tuple[str, str]:
  """Mean ± standard error, and the difference to another method."""
  values = [row[metric] for row in of(rows, method=method)]
  if not values or any(map(math.isnan, values)):
    return MISSING, ''
  found = estimate(values, test_to_train)
  gap = difference(rows, method, against, metric, test_to_train) if against and against != method else None
  return number(found.mean, found.error), star(gap) if gap else ''


def plain(rows: Rows, method: str, metric: str) -> tuple[str, str]:
  """The mean of a measure that is no score."""
  values = [row[metric] for row in of(rows, method=method) if metric in row]
  return (digits(float(np.mean(values)), 3) if values and not np.isnan(values).any() else MISSING), ''


def milliseconds(timings: Rows, method: str, count: int) -> tuple[str, str]:
  """Time of a prediction for a number of rows, in ms."""
  found = of(timings, method=method)
  return (digits(1000 * found[0][f'seconds_{count}'], 3) if found else MISSING), ''


def scores(rows: Rows, timings: Rows, task: str, methods: Sequence[str], test_to_train: float) -> Table:
  """All measures of all methods on the sets of a task."""
  nll, score, width = SCORES[task]
  headings = ['set', nll, score, 'coverage', width, 's to fit', 'tried', 'ms, 1 row', 'ms, 1,000 rows', 'bytes']
  body = []
  for name in names(rows, task):
    some, times = of(rows, set=name), of(timings, set=name)
    for method in [method for method in methods if of(some, method=method)]:
      splits = len(of(some, method=method))
      cells = [(f'{name}, {splits} {"split" if splits == 1 else "splits"}', '')]
      cells += [cell(some, method, metric, test_to_train, 'student') for metric in ('nll', 'score')]
      cells += [cell(some, method, metric, test_to_train) for metric in ('coverage', 'width')]
      cells += [plain(some, method, metric) for metric in ('seconds', 'tried')]
      cells += [milliseconds(times, method, count) for count in (1, 1000)]
      body.append((LABELS[method], [*cells, plain(some, method, 'bytes')]))
  return Table(headings, body, f'{task.capitalize()}')


def relative_loss(task: str, ours: float, theirs: float) -> float:
  """Accuracy that ours lacks, or RMSE that it has more, divided by the score of theirs. Negative: ours is better.

  Example:
    >>> relative_loss('classification', 0.98, 1.0), relative_loss('regression', 1.02, 1.0)
    (0.02..., 0.02...)
  """
  return (theirs - ours) / theirs if task == 'classification' else (ours - theirs) / theirs


def ratio(timings: Rows, name: str, count: int) -> float:
  """Latency of the student of the forest ÷ that of the forest; NaN where it was not measured."""
  ours, theirs = (of(timings, set=name, method=method) for method in ('student_of_forest', 'forest'))
  return ours[0][f'seconds_{count}'] / theirs[0][f'seconds_{count}'] if ours and theirs else math.nan


def verdict(lost: float, nll: float, ratios: Sequence[float]) -> str:
  """What the student of a forest misses: `no`s in words, or `yes`.

  Example:
    >>> verdict(0.01, -0.1, [0.1, 0.2]), verdict(0.03, 0.1, [float('nan')])
    ('yes', 'no: score, NLL; latency not measured')
  """
  fails = [lost > MOST_LOST, nll > 0, any(each > MOST_LATENCY for each in ratios)]
  missed = [what for what, fails_it in zip(('score', 'NLL', 'latency'), fails) if fails_it]
  unknown = '; latency not measured' * any(map(math.isnan, ratios))
  return (f'no: {", ".join(missed)}' if missed else 'yes') + unknown


def of_forests(rows: Rows, timings: Rows, test_to_train: float) -> Table:
  """The student of a random forest beside the forest."""
  body = []
  for task in SCORES:
    for name in names(rows, task):
      some, both = of(rows, set=name), ('student_of_forest', 'forest')
      ours, theirs = pairs(some, *both, 'score')
      nll = difference(some, *both, 'nll', test_to_train)
      if nll is None:
        continue
      lost = [relative_loss(task, a, b) for a, b in zip(ours, theirs)]
      found, ratios = estimate(lost, test_to_train), [ratio(timings, name, count) for count in (1, 1000)]
      cells = [SCORES[task][1], number(100 * found.mean, 100 * found.error), number(nll.mean, nll.error)]
      cells += [MISSING if math.isnan(each) else digits(each, 2) for each in ratios]
      body.append((name, [(text, '') for text in (*cells, verdict(found.mean, nll.mean, ratios))]))
  headings = ['score', 'worse by, %', 'NLL − that of the forest', 'latency ÷, 1 row', 'latency ÷, 1,000 rows']
  note = (
    f'Kept: at most {MOST_LOST:.0%} worse in accuracy or RMSE, better in NLL, and at most {MOST_LATENCY:g} of the '
    'latency of the forest. Latency is that of probabilities or means; the student computes its uncertainty with them.'
  )
  return Table([*headings, 'kept'], body, 'The student of the random forest', note, first='set')


def all_tables(rows: Rows, timings: Rows, methods: Sequence[str], test_to_train: float) -> list[Table]:
  """Classification, regression, and the student of the forest."""
  scored = [scores(rows, timings, task, methods, test_to_train) for task in SCORES if names(rows, task)]
  return [*scored, of_forests(rows, timings, test_to_train)]


def csv_of(rows: Rows, timings: Rows) -> str:
  """All rows, with the timings of the first splits."""
  times = {(row['set'], row['split'], row['method']): row for row in timings}
  joined = [{**row, **times.get((row['set'], row['split'], row['method']), {})} for row in rows]
  fields = list(dict.fromkeys(key for row in joined for key in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, fields, lineterminator='\n')
  writer.writeheader()
  writer.writerows({key: _plain(value) for key, value in row.items()} for row in joined)
  return text.getvalue()


def _plain(value: Any) -> Any:
  return json.dumps(value) if isinstance(value, Mapping) else value


def draw(rows: Rows, methods: Sequence[str]) -> Figure:
  """NLL − that of our student, and error rate or RMSE ÷ that of our student, on every set; 1 and 0: alike."""
  figure, [axes] = figures.panels(2, size=(5.5, 3.6))
  sets = list(dict.fromkeys(row['set'] for row in rows))
  others = [method for method in methods if method != 'student' and of(rows, method=method)]
  for i, method in enumerate(others):
    places = [place + 0.7 * ((i + 0.5) / len(others) - 0.5) for place in range(len(sets))]
    colour = figures.COLOURS[(i + 1) % len(figures.COLOURS)]
    for ax, gap in zip(axes, (nll_gap, error_ratio)):
      values = [gap(of(rows, set=name), method) for name in sets]
      ax.plot(values, places, 'os^DvpX'[i % 7], ms=5, color=colour, label=LABELS[method])
  for ax, line, label in zip(axes, (0, 1), ('NLL − that of our student', 'error rate or RMSE ÷ that of our student')):
    ax.axvline(line, color='#888888', lw=1, ls=':')
    ax.set(xlabel=label, yticks=range(len(sets)), yticklabels=sets if ax is axes[0] else [''] * len(sets))
    ax.invert_yaxis()
  axes[0].set_xscale('symlog', linthresh=0.1)
  figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc='outside lower center', ncols=4)
  return figure


def nll_gap(rows: Rows, method: str) -> float:
  """The mean difference of NLL to our student on one set."""
  found = difference(rows, method, 'student', 'nll', 0.0)
  return found.mean if found else math.nan


def error_ratio(rows: Rows, method: str) -> float:
  """The error rate or RMSE of a method ÷ that of our student, from their means; NaN where that of ours is 0."""
  theirs, ours = (float(np.mean(v)) if v else math.nan for v in pairs(rows, method, 'student', 'score'))
  if rows[0]['task'] == 'classification':
    theirs, ours = 1 - theirs, 1 - ours
  return theirs / ours if ours else math.nan
