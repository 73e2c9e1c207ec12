"""Tables of several runs, from made-up results; and every definition in experiments/."""

import csv
import json
import math
from pathlib import Path
import re

from conftest import ROOT, hydra_jax, needs, needs_uci
import matplotlib.pyplot as plt
import numpy as np
import pytest

from hydra_jax import UserError, config as configs, reports, tables
from hydra_jax.reports import Definition, Section
from hydra_jax.results import Outcome
from hydra_jax.statistics import Published
from hydra_jax.tables import Column

TABLES = sorted(p.stem for p in (ROOT / 'experiments').glob('*.py') if 'def get_tables(' in p.read_text())
NLL = {
  ('one', 'ensemble'): [1.0, 1.1, 1.2],
  ('one', 'hydra'): [1.1, 1.2, 1.3],
  ('one', 'kd'): [1.3, 1.2, 1.4],
  ('two', 'ensemble'): [2.0, 2.0, 2.0],
  ('two', 'hydra'): [2.5, 2.4, 2.6],
}


def outcome(run):
  rows = [
    {'data': 'test', 'method': m, 'replica': r, 'metric': 'nll', 'value': v, 'n': 4}
    for (where, m), values in NLL.items()
    for r, v in enumerate(values)
    if where == run
  ]
  rows += [{'data': 'test', 'method': 'hydra', 'replica': 0, 'metric': 'model', 'value': 0.5, 'n': 4}]
  rows += [{'data': 'test', 'method': 'hydra', 'replica': 0, 'metric': 'rank_correlation', 'value': 0.75, 'n': 4}]
  timings = [{'data': 'cost', 'method': 'hydra', 'replica': 0, 'metric': 'latency_ms', 'value': 12345.0, 'n': 500}]
  examples = {'hydra': {'nll': np.float32([1, 2, 3, 5])}, 'kd': {'nll': np.float32([2, 2, 4, 6])}}
  return Outcome('classification', rows, timings, [('a test set', examples)] * 3)


def results(runs=('one', 'two'), **changes):
  columns = [Column('test', 'nll', f'NLL of {run}', 'low', run=run) for run in runs]
  published = {
    ('one', 'test', 'ensemble', 'nll'): Published(1.0),
    ('one', 'test', 'hydra', 'nll'): Published(1.3, 0.01),
    ('one', 'test', 'dlf', 'nll'): Published(0.5, 0.01),
  }
  definition = Definition(
    title='A table',
    runs=dict.fromkeys(runs),
    sections=[Section('Scores', [*columns, Column('cost', 'latency_ms', 'ms')], note='A note.')],
    labels={'hydra': 'Hydra_1'},
    published=published,
    source='A paper.',
    kept=('test',),
    **changes,
  )
  outcomes = {run: outcome(run) for run in runs}
  return reports.Results(definition, outcomes, reports.collected(outcomes))


def cells(table):
  return {name: [text for text, _ in line] for name, line in table.body}


def test_means_and_standard_errors_of_every_run():
  table = reports.scores(results().definition.sections[0], results())
  assert table.headings == ['NLL of one ↓', 'NLL of two ↓', 'ms']
  error = np.std(NLL['one', 'ensemble'], ddof=1) / math.sqrt(3)
  assert cells(table)['ensemble'] == [f'1.1000 ± {error:.4f}', '2.0000 ± 0', '–']
  assert cells(table)['kd'][1] == '–' and cells(table)['Hydra_1'][2] == '12.3k'


def test_beside_published_numbers_and_their_teachers():
  found = cells(reports.against_published(results(rivals={'kd': 'dlf'})))
  assert found['ensemble'] == ['one', 'nll', '1.1000 ± 0.0577', '1.0000', 'agrees', '–', '–', '–']
  assert found['Hydra_1'][2:5] == ['1.2000 ± 0.0577', '1.3000 ± 0.0100', 'agrees']
  # Ours are 0.1 above our teachers in every replica, theirs 0.3 above theirs.
  assert found['Hydra_1'][5:] == ['0.1000 ± 0.0000', '0.3000 ± 0.0100', 'better']
  assert found['dlf'][2:5] == ['–', '0.5000 ± 0.0100', 'not run']
  # Another method of ours beside it: 0.2 above our teachers, 0.5 below theirs.
  assert found['kd beside dlf'][2:5] == ['1.3000 ± 0.0577', '0.5000 ± 0.0100', 'worse']
  assert found['kd beside dlf'][5:] == ['0.2000 ± 0.0577', '-0.5000 ± 0.0100', 'worse']


def test_differences_are_paired():
  (table,) = reports.differences(results(('one',)))
  assert table.headings == ['over replicas', 'over test examples'] and 'Hydra_1' in table.title
  found = {name: line for name, line in table.body}
  (over, p), (examples, p_of_examples) = found['kd']
  difference = np.subtract(NLL['one', 'kd'], NLL['one', 'hydra'])
  assert over == f'{difference.mean():.4f} ± {difference.std(ddof=1) / math.sqrt(3):.4f}' and p.startswith('p = 0.')
  assert examples == '0.7500 ± 0.2500' and p_of_examples == 'p = 0.058'
  (teachers, p), (of_teachers, _) = found['ensemble']
  assert teachers == '-0.1000 ± 0.0000' and float(p.removeprefix('p = ')) < 1e-9 and of_teachers == '–'
  (both,) = reports.differences(results())
  assert both.headings == ['one', 'two'] and dict(both.body)['kd'][1][0] == '–'


def test_what_is_kept_is_shown_of_those_with_uncertainty():
  one, _ = reports.kept(results())
  assert cells(one)['Hydra_1'][0] == '0.7500' and 'kd' not in cells(one)


def test_every_format_has_every_number(tmp_path):
  found = results(drawings={'empty': lambda found: plt.figure()})
  for run, config in found.definition.runs.items():
    assert config is None
    found.definition.runs[run] = configs.default_config()
    found.definition.runs[run].name = run
  (tmp_path / 'one' / 'figures').mkdir(parents=True)
  (tmp_path / 'one' / 'figures' / 'shifts.png').write_bytes(b'png')
  for _ in range(2):
    reports.write(found, tmp_path / 'table', tmp_path, 'hydra-jax table one', 61.0)
  text = (tmp_path / 'table' / 'table.md').read_text()
  assert '2 min in 2 sittings' in text and 'replicas (one 3, two 3)' in text
  assert '![empty](figures/empty.png)' in text and '![one-shifts](figures/one-shifts.png)' in text
  saved = json.loads((tmp_path / 'table' / 'table.json').read_text())
  assert saved['about']['command'] == 'hydra-jax table one' and saved['about']['seconds'] == [61.0, 61.0]
  with open(tmp_path / 'table' / 'table.csv') as file:
    lines = list(csv.DictReader(file))
  assert len(lines) == len(saved['rows'])
  (hydra,) = [r for r in saved['rows'] if (r['run'], r['method'], r['metric']) == ('one', 'hydra', 'nll')]
  assert hydra['mean'] == pytest.approx(1.2) and hydra['n'] == 3 and hydra['verdict'] == 'agrees'
  (missing,) = [r for r in saved['rows'] if r['method'] == 'dlf']
  assert missing['mean'] is None and missing['n'] == 0 and missing['verdict'] == 'not run'
  latex = (tmp_path / 'table' / 'table.tex').read_text()
  assert r'Hydra\_1' in latex and r'1.1000 $\pm$ 0.0577' in latex and r'$\downarrow$' in latex
  assert latex.count(r'\begin{tabular}') == latex.count(r'\end{tabular}') == text.count('| --- |')


def test_latex_leaves_nothing_that_it_would_read():
  table = tables.Table(['a_b', '50%'], [('x & y', [('1 ± 2', '3×'), ('{#}', '')])], 'T², a ÷ b → c', 'p < 1 \\ 2')
  found = tables.latex(table)
  body = found[found.index(r'\toprule') : found.index(r'\bottomrule')]
  assert not re.search(r'(?<!\\)[%#_]', found) and body.count('&') == 5 and body.count(r'\&') == 1
  assert found.isascii()


@pytest.mark.parametrize('quick', [False, True])
@pytest.mark.parametrize('name', TABLES)
def test_definitions(monkeypatch, name, quick):
  """Configs are sound, columns are of sets that runs evaluate, and published numbers are of all runs or of another."""
  monkeypatch.chdir(ROOT)
  for definition in reports.load(name, quick).values():
    assert len({config.name for config in definition.runs.values()}) == len(definition.runs)
    for config in definition.runs.values():
      configs.validate(config, 'regression' if config.data.name.startswith('uci') else 'classification')
      assert config.replicas >= 2 and ('quick' in config.name) == quick
    students = {name for config in definition.runs.values() for name in config.students} | {'ensemble'}
    for section in definition.sections:
      assert set(section.methods) <= students
      for column in section.columns:
        assert column.run in ('', *definition.runs)
        config = definition.runs[column.run or next(iter(definition.runs))]
        assert column.data in ('test', 'cost', *config.data.ood, *config.data.shifts), column
    assert definition.against in students
    runs = {run for run, *_ in definition.published}
    assert runs <= set(definition.runs) or not runs & set(definition.runs)
    for config in definition.runs.values():
      assert set(definition.kept) <= {'test', *config.data.ood, *config.data.shifts}


def test_published_numbers_are_those_of_the_paper():
  """Some, by hand."""
  from experiments import published

  found = published.uci() | published.cifar('cifar10', 'cifar10') | published.cifar('cifar100', 'cifar100')
  assert found['concrete', 'test', 'dlf', 'nll'] == (3.1584, 0.0463)
  assert found['kin8nm', 'test', 'hydra_train', 'nll'] == (-0.9434, 0.0307)
  assert found['power-plant', 'test', 'ensemble', 'rmse'].value == 4.2197
  assert found['wine-quality-red', 'test', 'hydra_train', 'coverage_95'] == (0.9594, 0.0053)
  assert found['cifar10', 'svhn_cropped', 'dlf', 'auroc_model'].value == 0.9359
  assert found['cifar100', 'test', 'hydra_train', 'ece'] == (0.127, 0.0037)


@pytest.mark.parametrize(
  'name, words', [('mnits', "did you mean 'mnist'"), ('nothing.py', 'no table'), ('uci:dfl', "did you mean 'dlf'")]
)
def test_tables_that_there_are_not(monkeypatch, name, words):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=words):
    reports.load(name, True)


def test_without_a_folder_of_tables(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='root of the project'):
    reports.load('mnist', True)
  Path('mine.py').write_text('x = 1\n')
  with pytest.raises(UserError, match='no function get_tables'):
    reports.load('mine.py', True)


@pytest.mark.slow
def test_a_table_is_made_and_made_again_from_what_is_there(tmp_path):
  done = hydra_jax('table', 'spiral', '--quick', f'--workdir={tmp_path}')
  assert done.returncode == 0, done.stderr
  out = tmp_path / 'table-spiral-quick'
  saved = json.loads((out / 'table.json').read_text())
  assert {row['method'] for row in saved['rows']} == {'ensemble', 'kd', 'endd', 'hydra_train', 'hydra', 'dlf'}
  assert all(row['n'] == 2 for row in saved['rows'] if row['data'] == 'test')
  (kd,) = [r['mean'] for r in saved['rows'] if (r['data'], r['method'], r['metric']) == ('far', 'kd', 'model')]
  assert kd == 0 and (out / 'figures' / 'plane.png').stat().st_size > 10000
  tables_of = lambda: (out / 'table.md').read_text().split('\n', 3)[3]
  before = tables_of()
  again = hydra_jax('table', 'spiral', '--quick', f'--workdir={tmp_path}')
  assert again.returncode == 0 and tables_of() == before
  assert 'reused' in again.stdout and 'loss' in done.stdout and 'loss' not in again.stdout
  for wrong, word in ((['--replicas=0'], 'at least 1'), (['--config.seed=1'], 'in its file')):
    done = hydra_jax('table', 'spiral', *wrong, f'--workdir={tmp_path}')
    assert done.returncode == 2 and word in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
  'names',
  [
    pytest.param(('mnist', 'heads', 'cost'), marks=needs('mnist', 'fashion_mnist')),
    pytest.param(('inputs',), marks=needs('mnist', 'cifar10')),
    pytest.param(('cifar10',), marks=needs('cifar10', 'cifar100')),
    pytest.param(('cifar100',), marks=needs('cifar10', 'cifar100')),
    pytest.param(('uci',), marks=needs_uci('concrete')),
  ],
  ids='-'.join,
)
def test_quick_tables(monkeypatch, tmp_path, names):
  """All methods and replicas are there, and each table has its figures; tables of one setting share what they train."""
  monkeypatch.chdir(ROOT)
  for name in names:
    done = hydra_jax('table', name, '--quick', f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert ('ensemble of 5: reused' in done.stdout) == (name in names[1:])
    for which, definition in reports.load(name, True).items():
      out = tmp_path / '-'.join(filter(None, ('table', name, which, 'quick')))
      rows = json.loads((out / 'table.json').read_text())['rows']
      for run, config in definition.runs.items():
        of_run = [row for row in rows if row['run'] == run and row['data'] == 'test' and row['n']]
        assert {row['method'] for row in of_run} == {'ensemble', *config.students}
        assert {row['n'] for row in of_run} == {config.replicas}
        assert all(math.isfinite(row['mean']) for row in of_run)
      drawn = {file.stem for file in (out / 'figures').glob('*.png')}
      assert drawn >= set(definition.drawings) and len(drawn) > 2
