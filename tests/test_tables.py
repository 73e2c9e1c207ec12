"""Tables on terminals of several widths, and what is in their cells."""

import io

import numpy as np
import pytest
from rich.console import Console

from hydra_jax.data import Data, Evaluation
from hydra_jax.experiment.run_report import overlap
from hydra_jax.maths.tasks import TASKS
from hydra_jax.maths.uncertainty import RANKINGS
from hydra_jax.report import tables
from hydra_jax.report.tables import Table

METHODS = ('ensemble', 'single', 'latent_batch_ensemble', 'a method whose name has many words')
OUTSIDE = ('fashion_mnist', 'noise')
TASK = TASKS['classification']


def rows(replicas):
  random = np.random.default_rng(0)
  keys = [('test', metric) for metric in TASK.headline]
  keys += [(where, f'auroc_{by}') for where in OUTSIDE for by in RANKINGS]
  keys += [('cost', metric) for metric in ('parameters', 'flops', 'latency_ms')]
  return [
    {'split': where, 'method': m, 'replica': r, 'metric': metric, 'value': random.uniform(0.1, 1), 'n': 500}
    for m in METHODS
    for where, metric in keys
    for r in range(replicas)
  ]


def printed(table, width):
  console = Console(file=io.StringIO(), width=width, highlight=False)
  tables.show(table, console)
  return console.file.getvalue()


@pytest.mark.parametrize('replicas', [1, 3])
@pytest.mark.parametrize('width', [60, 80, 120, 200])
def test_tables_fit_the_terminal_and_no_cell_is_broken(width, replicas):
  """Every cell stands whole in a line, every heading's words too, and no line is wider than the terminal."""
  table = tables.comparison(rows(replicas), TASK, OUTSIDE)
  text = printed(table, width)
  assert max(map(len, text.splitlines())) <= width and '…' not in text
  for name, cells in table.body:
    for word in name.split():
      assert word in text
    for cell in cells:
      assert all(part in text for part in cell)
  for heading in table.headings:
    assert all(word in text for word in heading.split())
  # An arrow is not left alone in a line.
  assert not any(line.split() and set(line.split()) <= {'↑', '↓'} for line in text.splitlines())


def test_columns_of_one_kind_stay_together_where_they_fit():
  table = tables.comparison([row for row in rows(1) if row['method'] in ('ensemble', 'single')], TASK, OUTSIDE)
  for width in (70, 80, 120):
    parts = tables.fitting(table, width)[2]
    assert [c for part in parts for c in part] == list(range(len(table.headings)))
    groups = [{table.groups[c] for c in part} for part in parts]
    assert sum(map(len, groups)) == len(set(table.groups)), (width, groups)
  assert len(tables.fitting(table, 70)[2]) == 3 and len(tables.fitting(table, 300)[2]) == 1


def test_columns_that_say_what_a_row_is_are_in_every_part():
  body = [('kd', [(metric, ''), ('1.000 ± 0.020', ''), ('2.000 ± 0.010', '')]) for metric in ('nll', 'rmse')]
  table = Table(['metric', 'ours', 'published'], body, repeated=1)
  assert tables.fitting(table, 30)[2] == [[0, 1], [0, 2]] and tables.fitting(table, 80)[2] == [[0, 1, 2]]


def test_a_column_wider_than_the_terminal_is_a_part():
  table = Table(['a', 'b'], [('x', [('1' * 50, ''), ('2' * 50, '')])])
  assert tables.fitting(table, 40)[2] == [[0], [1]]


def test_brackets_are_printed_as_they_are():
  """As in the name of a part of a set; rich reads some brackets as markup."""
  table = Table(['cifar100[:500]', '[bold]'], [('[red]', [('[/]', ''), ('1', '[x]')])], 'a [b]', 'note [c]')
  text = printed(table, 80)
  assert all(word in text for word in ('cifar100[:500]', '[bold]', '[red]', '[/]', '[x]', 'a [b]', 'note [c]'))


def test_cells_have_errors_and_ratios():
  values = {('ensemble', 'accuracy'): [0.9, 0.92], ('kd', 'accuracy'): [0.91, 0.95], ('kd', 'nll'): [1e-6, 2e-6]}
  values |= {
    ('ensemble', 'nll'): [1e-3, 1e-3],
    ('kd', 'uncertainty_epistemic'): [0, 0],
    ('ensemble', 'uncertainty_epistemic'): [1e20, 3e20],
  }
  made = [
    {'split': 'test', 'method': m, 'replica': r, 'metric': metric, 'value': v, 'n': 9}
    for (m, metric), both in values.items()
    for r, v in enumerate(both)
  ]
  for ratio, errors in ((0.0, ('0.020', '0.50')), (1 / 2, ('0.028', '0.71'))):
    table = tables.comparison(made, TASK, (), ratio)
    cells = dict(zip(table.headings, dict(table.body)['kd']))
    assert list(cells)[:4] == ['acc. ↑', 'NLL ↓', 'model unc.', 'params ↓']  # nothing is there for others
    assert cells['acc. ↑'] == (f'0.930 ± {errors[0]}', '1.022×')
    assert cells['NLL ↓'] == (f'1.50e-6 ± {errors[1]}e-6', '0.00150×') and cells['model unc.'] == ('0 ± 0', '0×')
    assert ('Nadeau' in table.note) == bool(ratio)
  assert tables.comparison([row for row in made if row['replica'] == 0], TASK, ()).note == ''


def test_differences_have_significant_digits():
  made = [
    {'split': 'test', 'method': m, 'replica': 0, 'metric': 'nll', 'value': v, 'n': 9}
    for m, v in (('ensemble', -1.0), ('kd', -0.99998))
  ]
  table = tables.comparison(made, TASKS['regression'], ())
  cell = dict(zip(table.headings, dict(table.body)['kd']))['NLL ↓']
  assert cell == ('-1.000', '+2.00e-5')


def test_replicas_overlap_where_their_test_splits_differ():
  """Test examples for each training example; 0 where replicas are other seeds, with the same test split."""
  split = type('Split', (), {'x': np.zeros((10, 2)), 'examples': 90})
  test = Evaluation('test', 'test', lambda: split, lambda: '')
  data = Data(
    task='regression', train=split, outputs=1, scaling=None, evaluations={'test': test}, fingerprint='', others=None
  )
  assert overlap(data, [('a', {}), ('b', {})]) == pytest.approx(1 / 9)
  assert overlap(data, [('a', {}), ('a', {})]) == 0 and overlap(data, [('a', {})]) == 0
