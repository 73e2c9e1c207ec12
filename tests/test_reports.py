"""Tables of several runs, from made-up results; and every definition in experiments/."""

import csv
import dataclasses
import json
import math
from pathlib import Path
import re
import shutil

from conftest import ROOT, hydra_jax, needs_uci
from matplotlib.figure import Figure
import numpy as np
from PIL import Image
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker, LatexWalkerParseError
import pytest
import scipy.stats
from test_page import needs_nothing

from experiments import heads
from hydra_jax import UserError, cli
from hydra_jax.experiment import config as configs, paper_tables, table_page
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.experiment.run_report import Outcome
from hydra_jax.maths.statistics import Published, holm
from hydra_jax.report import tables, verdict
from hydra_jax.report.tables import Column

TABLES = sorted(p.stem for p in (ROOT / 'experiments').glob('*.py') if 'def get_tables(' in p.read_text())
NLL = {
  ('one', 'ensemble'): [1.0, 1.1, 1.2],
  ('one', 'hydra'): [1.1, 1.2, 1.3],
  ('one', 'kd'): [1.3, 1.2, 1.4],
  ('two', 'ensemble'): [2.0, 2.0, 2.0],
  ('two', 'hydra'): [2.5, 2.4, 2.6],
}


def outcome(run, test_to_train=0.0):
  rows = [
    {'split': 'test', 'method': m, 'replica': r, 'metric': 'nll', 'value': v, 'n': 4}
    for (where, m), values in NLL.items()
    for r, v in enumerate(values)
    if where == run
  ]
  rows += [{'split': 'test', 'method': 'hydra', 'replica': 0, 'metric': 'uncertainty_epistemic', 'value': 0.5, 'n': 4}]
  rows += [{'split': 'test', 'method': 'hydra', 'replica': 0, 'metric': 'rank_correlation', 'value': 0.75, 'n': 4}]
  timings = [{'split': 'cost', 'method': 'hydra', 'replica': 0, 'metric': 'latency_ms', 'value': 12345.0, 'n': 500}]
  examples = {'hydra': {'nll': np.float32([1, 2, 3, 5])}, 'kd': {'nll': np.float32([2, 2, 4, 6])}}
  tests = [(f'test set {i * (test_to_train > 0)}', examples) for i in range(3)]
  return Outcome(task='classification', rows=rows, timings=timings, tests=tests, test_to_train=test_to_train)


def results(runs=('one', 'two'), test_to_train=0.0, **changes):
  columns = [Column('test', 'nll', f'NLL of {run}', 'low', run=run) for run in runs]
  published = {
    ('one', 'test', 'ensemble', 'nll'): Published(1.0),
    ('one', 'test', 'hydra', 'nll'): Published(1.3, 0.01, 5),
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
  outcomes = {run: outcome(run, test_to_train) for run in runs}
  return paper_tables.Results(definition, outcomes, paper_tables.collected(outcomes))


def cells(table):
  return {name: [text for text, _ in line] for name, line in table.body}


def test_means_and_standard_errors_of_every_run():
  table = paper_tables.scores(results().definition.sections[0], results())
  assert table.headings == ['NLL of one ↓', 'NLL of two ↓', 'ms']
  error = np.std(NLL['one', 'ensemble'], ddof=1) / math.sqrt(3)
  assert cells(table)['ensemble'] == [f'1.100 ± {error:.3f}', '2.000 ± 0', '–']
  assert cells(table)['kd'][1] == '–' and cells(table)['Hydra_1'][2] == '12.34k'


def test_beside_published_numbers_and_their_teachers():
  table = paper_tables.against_published(results(rivals={'kd': 'dlf'}))
  found = cells(table)
  assert found['ensemble'] == ['one', 'nll', '1.100 ± 0.058', '1.000', 'no verdict', '–', '–']
  assert found['Hydra_1'][2:5] == ['1.200 ± 0.058', '1.300 ± 0.010', 'agrees']
  # Ours are 0.1 above our teachers in every replica, theirs 0.3 above theirs.
  assert found['Hydra_1'][5].startswith('0.1000 ± ') and found['Hydra_1'][6] == '0.3000'
  assert found['dlf'][2:5] == ['–', '0.500 ± 0.010', 'not run']
  # Another method of ours beside it: 0.2 above our teachers, 0.5 below theirs.
  assert found['kd beside dlf'][2:] == ['1.300 ± 0.058', '0.500 ± 0.010', 'worse', '0.200 ± 0.058', '-0.5000']
  assert 'number of verdicts in this table, 2' in table.note and 'as many as ours' in table.note
  assert 'overlap' not in table.note


def test_verdicts_are_welchs_and_corrected_for_their_number():
  """By scipy, from the values."""
  t = lambda ours, theirs, error, n: scipy.stats.ttest_ind_from_stats(
    np.mean(ours), np.std(ours, ddof=1), 3, theirs, error * math.sqrt(n), n, equal_var=False
  )
  ps = [t(NLL['one', 'hydra'], 1.3, 0.01, 5).pvalue, t(NLL['one', 'kd'], 0.5, 0.01, 3).pvalue]
  assert 0.02 < ps[0] and 0.001 < ps[1] < 0.025
  said = [
    c.verdict for c in paper_tables.comparisons(results(rivals={'kd': 'dlf'})) if c.verdict in ('agrees', 'worse')
  ]
  assert said == ['agrees' if p > 0.05 else 'worse' for p in holm(ps)]
  # What is just significant by itself is not beside another test that is not.
  close = results(rivals={'kd': 'dlf'})
  for theirs in np.linspace(1.3, 1.6, 301):
    alone = t(NLL['one', 'hydra'], theirs, 0.01, 5).pvalue
    if 0.025 < alone < 0.05:
      break
  close.definition.published['one', 'test', 'hydra', 'nll'] = Published(theirs, 0.01, 5)
  close.definition.published['one', 'test', 'dlf', 'nll'] = Published(1.3, 0.01)
  one = results()
  one.definition.published['one', 'test', 'hydra', 'nll'] = Published(theirs, 0.01, 5)
  assert [cells(paper_tables.against_published(each))['Hydra_1'][4] for each in (close, one)] == ['agrees', 'better']


def test_differences_are_paired_and_corrected_for_their_number():
  (table,) = paper_tables.differences(results(('one',)))
  assert table.headings == ['over replicas', 'over test examples'] and 'Hydra_1' in table.title
  assert 'tests in this table, 2, by Holm' in table.note and 'splits' not in table.note
  found = {name: line for name, line in table.body}
  (over, p), (examples, p_of_examples) = found['kd']
  test = scipy.stats.ttest_rel(NLL['one', 'kd'], NLL['one', 'hydra'])
  of_examples = scipy.stats.ttest_rel([2, 2, 4, 6], [1, 2, 3, 5])
  assert over == '0.100 ± 0.058' and examples == '0.75 ± 0.25'
  adjusted = holm([test.pvalue, of_examples.pvalue])
  assert [p, p_of_examples] == [f'p = {a:.2f}' if a > 0.1 else f'p = {a:.3f}' for a in adjusted]
  assert adjusted[1] == pytest.approx(2 * of_examples.pvalue)
  (teachers, p), (of_teachers, _) = found['ensemble']
  assert teachers.startswith('-0.1000 ± ') and not p and of_teachers == '–'  # all their differences are the same
  (both,) = paper_tables.differences(results())
  assert both.headings == ['one', 'two'] and dict(both.body)['kd'][1][0] == '–'


def test_splits_that_overlap_have_the_corrected_error():
  """√(1 + 3/9) times the usual one in every cell, and so in tests; examples differ, and are not tested."""
  found = results(('one',), 1 / 9)
  values = np.subtract(NLL['one', 'kd'], NLL['one', 'hydra'])
  error = scipy.stats.sem(values) * math.sqrt(4 / 3)
  (table,) = paper_tables.differences(found)
  ((over, p),) = dict(table.body)['kd']
  assert over == f'0.100 ± {error:.3f}' and 'Nadeau and Bengio' in table.note
  of_one = 2 * scipy.stats.t.sf(values.mean() / error, 2)
  assert p == f'p = {holm([of_one, 0.0])[0]:.2f}'
  shown = cells(paper_tables.scores(found.definition.sections[0], found))
  assert shown['kd'][0] == f'1.300 ± {scipy.stats.sem(NLL["one", "kd"]) * math.sqrt(4 / 3):.3f}'
  assert 'corrected for overlap' in paper_tables.against_published(found).note


def test_what_is_kept_is_shown_of_every_method():
  """Also of those without heads, which have the area by total uncertainty."""
  found = results()
  found.values['one', 'test', 'kd', 'rejection_area_uncertainty_total'] = {0: 0.875}
  one, _ = paper_tables.kept(found)
  assert one.headings[-2:] == ['rejection area, by total unc.', 'rejection area, by model unc.']
  assert cells(one)['Hydra_1'][0] == '0.7500' and cells(one)['kd'][-2:] == ['0.8750', '–']


def test_empty_columns_are_named():
  found = results()
  found.definition.sections[0].columns.append(Column('test', 'acuracy', 'accuracy', run='one'))
  assert list(paper_tables.unfound(found)) == ["column 'accuracy' is empty: no method has acuracy on test"]
  assert 'no tests of differences' in list(paper_tables.unfound(results(against='hydr')))[-1]


def test_rows_without_values_are_named():
  """As of a shipped table whose definition has more students by now."""
  found = results()
  (section,) = found.definition.sections
  found.definition.sections[:] = [dataclasses.replace(section, methods=('ensemble', 'hydra', 'ced', 'edfm'))]
  assert list(paper_tables.unfound(found)) == ['rows are left out, as there are no values of them: ced, edfm']


def test_every_format_has_every_number(tmp_path):
  found = results(drawings={'empty': lambda found: Figure()})
  for run, config in found.definition.runs.items():
    assert config is None
    found.definition.runs[run] = configs.default_config()
    found.definition.runs[run].name = run
  (tmp_path / 'one' / 'figures').mkdir(parents=True)
  Image.new('L', (4, 4)).save(tmp_path / 'one' / 'figures' / 'shifts.png')
  for _ in range(2):
    paper_tables.write(found, tmp_path / 'table', tmp_path, 'hydra-jax table one', 61.0)
  out = tmp_path / 'table'
  text = (out / 'table.md').read_text()
  assert '2 min in 2 sittings' in text and 'replicas (one 3, two 3)' in text
  assert '![empty](figures/empty.png)' in text and '![one-shifts](figures/one-shifts.png)' in text
  about = json.loads((out / 'about.json').read_text())
  assert about['command'] == 'hydra-jax table one' and about['seconds'] == [61.0, 61.0] and about['jax']
  page = (out / 'report.html').read_text()
  needs_nothing(page)
  assert page.count('<img') == 2 and '2 min in 2 sittings' in page and 'Hydra_1 is worse than' in page
  lines = csv_of(out / 'table.csv')
  (hydra,) = [r for r in lines if (r['run'], r['method'], r['metric']) == ('one', 'hydra', 'nll')]
  assert float(hydra['mean']) == np.mean(NLL['one', 'hydra']) and hydra['n'] == '3' and hydra['verdict'] == 'agrees'
  (missing,) = [r for r in lines if r['method'] == 'dlf']
  assert missing['mean'] == '' and missing['n'] == '0' and missing['verdict'] == 'not run'
  latex = (out / 'table.tex').read_text()
  assert r'Hydra\_1' in latex and r'1.100 $\pm$ 0.058' in latex and r'$\downarrow$' in latex
  assert latex.count(r'\begin{tabular}') == latex.count(r'\end{tabular}') == text.count('| --- |')


def csv_of(file):
  with open(file) as lines:
    return list(csv.DictReader(lines))


def test_the_values_of_single_replicas_are_written_in_full(tmp_path):
  """They are sorted, and every mean and every test of the tables can be made from them again."""
  found = results(('one',))
  found.values['one', 'test', 'kd', 'nll'][1] = 1 / 3
  found.values['one', 'far', 'kd', 'nobody asks'] = {0: 1.0}
  found.definition.runs['one'] = configs.default_config()
  paper_tables.write(found, tmp_path / 'table', tmp_path, 'hydra-jax table one', 1.0)
  lines = csv_of(tmp_path / 'table' / 'replicas.csv')
  assert list(lines[0]) == ['run', 'split', 'method', 'metric', 'replica', 'value']
  order = [tuple(line.values())[:4] + (int(line['replica']),) for line in lines]
  assert order == sorted(order)
  values = {}
  for line in lines:
    values.setdefault((line['run'], line['split'], line['method'], line['metric']), []).append(float(line['value']))
  assert values == {
    k: list(v.values()) for k, v in found.values.items() if k[3] not in ('nobody asks', 'uncertainty_epistemic')
  }
  assert values['one', 'test', 'kd', 'nll'][1] == 1 / 3


def test_latex_leaves_nothing_that_it_would_read():
  table = tables.Table(['a_b', '50%'], [('x & y', [('1 ± 2', '3×'), ('{#}', '')])], 'T², a ÷ b → c', 'p < 1 \\ 2')
  found = tables.latex(table)
  body = found[found.index(r'\toprule') : found.index(r'\bottomrule')]
  assert not re.search(r'(?<!\\)[%#_]', found) and body.count('&') == 5 and body.count(r'\&') == 1
  assert found.isascii()


@pytest.mark.parametrize('quick', [False, True])
@pytest.mark.parametrize('name', [*TABLES, 'cifar10:small'])
def test_definitions(monkeypatch, name, quick):
  """Configs are sound, columns are of sets that runs evaluate, and published numbers are of all runs or of another."""
  monkeypatch.chdir(ROOT)
  for definition in paper_tables.load(name, quick).values():
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
        assert column.split in ('test', 'cost', *config.data.ood, *config.data.shifts), column
    assert definition.against in students
    runs = {run for run, *_ in definition.published}
    assert runs - set(definition.runs) <= {'full setting', 'VGG16, 5 members'}  # of papers alone
    for config in definition.runs.values():
      assert set(definition.kept) <= {'test', *config.data.ood, *config.data.shifts}


def configs_and_tables():
  """All configs with every student, and all that tables run."""
  arguments = {
    'digits': ['all'],
    'mnist': ['all'],
    'spiral': ['all'],
    'uci': ['all'],
    'svhn': ['all'],
    'cifar100': ['all'],
  }
  arguments |= {'cifar10': ['all', 'all,small', 'all,quick', 'all,wrn28_1']}
  for name, words in arguments.items():
    for word in words:
      students, _, more = word.partition(',')
      yield (
        f'{name}:{word}',
        cli.read_config(f'configs/{name}.py:{",".join(filter(None, (more, f"students={students}")))}', []),
      )
  for name in [*TABLES, *SHIPPED, 'cifar10:long']:
    for which, definition in paper_tables.load(name, False).items():
      for run_name, config in definition.runs.items():
        yield f'{name}, {which}, {run_name}', config


def test_networks_that_learn_from_labels_make_the_same_passes_over_the_same_inputs(monkeypatch):
  """Else one of them would be compared with a `single` that has learnt longer."""
  monkeypatch.chdir(ROOT)
  seen = set()
  for where, config in configs_and_tables():
    training = {
      name: configs.resolve(config, name).training
      for name in config.students
      if not configs.learns_from_members(config, name)
    }
    seen |= set(training)
    for name, settings in training.items():
      assert settings == training.get('single', settings), f'{where}: {name}'
  assert seen == {'single', 'shallow_ensemble', 'tabm', 'mc_dropout', 'ddu'}


def test_published_numbers_are_those_of_the_paper():
  """Some, by hand."""
  from experiments import published

  found = published.uci() | published.cifar('cifar10', 'cifar10') | published.cifar('cifar100', 'cifar100')
  assert found['concrete', 'test', 'dlf', 'nll'] == Published(3.1584, 0.0463, 10)
  assert found['kin8nm', 'test', 'hydra_train', 'nll'] == Published(-0.9434, 0.0307, 10)
  assert found['power-plant', 'test', 'ensemble', 'rmse'].value == 4.2197
  assert found['wine-quality-red', 'test', 'hydra_train', 'coverage_95'] == Published(0.9594, 0.0053, 10)
  assert found['cifar10', 'svhn_cropped', 'dlf', 'auroc_uncertainty_epistemic'].value == 0.9359
  assert found['cifar100', 'test', 'hydra_train', 'ece'] == Published(0.127, 0.0037, 5)
  theirs = published.ced()
  by_model = [theirs['VGG16, 5 members', 'svhn_cropped', m, 'auroc_uncertainty_epistemic'] for m in ('ced', 'ensemble')]
  assert by_model == [Published(0.9356), Published(0.8999)]


@pytest.mark.parametrize(
  'name, words', [('mnits', "did you mean 'mnist'"), ('nothing.py', 'no file'), ('uci:dfl', "did you mean 'dlf'")]
)
def test_tables_that_there_are_not(monkeypatch, name, words):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError, match=words):
    paper_tables.load(name, True)


def test_without_a_folder_of_tables(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='root of the project'):
    paper_tables.load('mnist', True)
  with pytest.raises(UserError, match=f"there is no file 'mine.py' in {tmp_path}"):
    paper_tables.load('mine.py', True)


GOOD = """
from hydra_jax.experiment.config import default_config
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column

def get_tables(quick):
  config = default_config()
  config.name = 'mine'
  return {'': Definition('Mine', {'run': config}, [Section('Scores', [Column('test', 'nll', 'NLL')])])}
"""


@pytest.mark.parametrize(
  'text, words',
  [
    ('x = 1\n', ['no function get_tables']),
    ('get_tables = 3\n', ['no function get_tables']),
    ('def get_tables(quick:\n', ['SyntaxError', 'mine.py, line 1']),
    ('x = 1\n  y = 2\n', ['IndentationError', 'mine.py, line 2']),
    ('import no_such_module\n', ['ModuleNotFoundError', 'no_such_module', 'mine.py, line 1']),
    ('x = 1\nraise ValueError("broken")\n', ['ValueError: broken', 'mine.py, line 2']),
    ('import sys\nsys.exit(0)\n', ['mine.py, line 2', 'SystemExit: 0']),
    ('def get_tables(quick):\n  return get_tables(quick)\n', ['RecursionError', 'mine.py, line 2']),
    ('def get_tables():\n  return {}\n', ['mine.py', 'too many positional arguments']),
    ('def get_tables(quick):\n  return 1 / 0\n', ['ZeroDivisionError', 'mine.py, line 2']),
    ('def get_tables(quick):\n  pass\n', ['mine.py', 'returns None', 'dict of Definition']),
    ('def get_tables(quick):\n  return {}\n', ['mine.py', 'a dict', 'dict of Definition']),
    ('def get_tables(quick):\n  return {"": 3}\n', ['mine.py', 'is 3', 'Definition']),
    (GOOD.replace("{'': ", "{'../x': "), ['mine.py', 'becomes that of a folder']),
    (GOOD.replace("{'run': config}", 'config'), ['mine.py', 'runs is a ConfigDict', 'a dict of configs']),
    (GOOD.replace("{'run': config}", "{'run': None}"), ['mine.py', "run 'run' is None"]),
    (
      GOOD.replace("{'run': config}", "{'run': config, 'two': config}"),
      ['mine.py', "two runs have the config.name 'mine'"],
    ),
    (GOOD.replace("[Section('Scores', ", "[('Scores', "), ['mine.py', 'a tuple is in sections']),
    (GOOD.replace("'NLL')", "'NLL', run='rum')"), ['mine.py', "unknown run of column 'NLL'", "did you mean 'run'"]),
    (GOOD.replace("'NLL')])]", "'NLL')])], published={('nll',): 1.0}"), ['mine.py', "published has ('nll',)"]),
    (GOOD.replace("'NLL')])]", "'NLL')])], drawings={'a': 1}"), ['mine.py', "drawing 'a' is 1"]),
    (GOOD.replace("name = 'mine'", "name, config.teacher.epochs = 'mine', -1.0"), ["run 'run'", 'teacher.epochs=-1.0']),
    (GOOD.replace("name = 'mine'", "name, config.replicas = 'mine', 0"), ["run 'run'", 'replicas=0']),
    (b'\xff\xfe\n', ['mine.py', 'SyntaxError']),
    (b'x = 1\0\n', ['mine.py', 'SyntaxError']),
  ],
)
def test_broken_table_files_are_one_line_before_anything_runs(monkeypatch, tmp_path, capsys, text, words):
  monkeypatch.chdir(tmp_path)
  Path('mine.py').write_bytes(text if isinstance(text, bytes) else text.encode())
  assert cli.main(['table', 'mine.py', '--workdir=w']) == 2
  said = capsys.readouterr().err
  assert len(said.splitlines()) == 1 and all(word in said for word in words), said
  assert sorted(p.name for p in tmp_path.iterdir()) == ['mine.py']


def test_a_sound_table_file_is_loaded_as_it_is_now(monkeypatch, tmp_path):
  """Also where it is edited within a second, without a change of size; there may be other files beside it."""
  monkeypatch.chdir(tmp_path)
  Path('experiments').mkdir()
  Path('experiments/broken.py').write_bytes(b'\xff\n')
  for title in ('Mine', 'Your'):
    Path('mine.py').write_text(GOOD.replace('Mine', title))
    assert paper_tables.load('mine.py', True)[''].title == title


def test_a_drawing_that_fails_is_one_line(tmp_path):
  found = results(('one',), drawings={'bad': lambda found: 1 / 0})
  found.definition.runs['one'] = configs.default_config()
  with pytest.raises(UserError, match='a drawing of the table: ZeroDivisionError'):
    paper_tables.write(found, tmp_path / 'table', tmp_path, 'hydra-jax table one', 1.0)


@pytest.mark.slow
def test_a_table_is_made_and_made_again_from_what_is_there(tmp_path, monkeypatch, capsys):
  done = hydra_jax('table', 'spiral', '--quick', f'--workdir={tmp_path}', figures=True)
  assert done.returncode == 0, done.stderr
  out = tmp_path / 'table-spiral-quick'
  saved = csv_of(out / 'table.csv')
  assert {row['method'] for row in saved} == {'ensemble', 'kd', 'hydra_train', 'hydra', 'dlf'}
  assert all(row['n'] == '2' for row in saved if row['split'] == 'test')
  (kd,) = [r['mean'] for r in saved if (r['split'], r['method'], r['metric']) == ('far', 'kd', 'uncertainty_epistemic')]
  assert float(kd) == 0 and (out / 'figures' / 'plane.png').stat().st_size > 10000
  needs_nothing((out / 'report.html').read_text())
  tables_of = lambda: (out / 'table.md').read_text().split('\n', 3)[3]
  before = tables_of()
  again = hydra_jax('table', 'spiral', '--quick', f'--workdir={tmp_path}')
  assert again.returncode == 0 and tables_of() == before
  assert 'reused' in again.stdout and 'loss' in done.stdout and 'loss' not in again.stdout
  monkeypatch.chdir(ROOT)
  for wrong, word in (('--replicas=0', 'at least 1'), ('--config.seed=1', 'in its file')):
    assert cli.main(['table', 'spiral', wrong, f'--workdir={tmp_path}']) == 2
    assert word in capsys.readouterr().err


def test_curves_over_the_number_of_heads():
  """From made-up scores: each curve has its numbers, and the dashed line is the ensemble."""
  splits = ('test', 'far')
  of_all = lambda method, score: {(method, split, m): score + len(split) for split in splits for m in heads.SHOWN}
  values = of_all('heads_1', 1) | of_all('heads_5', 5) | of_all('ensemble', 9)
  rows = [
    {'split': split, 'method': method, 'replica': r, 'metric': metric, 'value': value + (0, 2)[r], 'n': 4}
    for (method, split, metric), value in values.items()
    for r in range(2)
  ]
  found = Outcome(task='classification', rows=rows, timings=[], tests=[])
  definition = Definition(title='A table', runs={'mnist': None}, sections=[], labels={})
  outcomes = {'mnist': found}
  figure = heads.curves(paper_tables.Results(definition, outcomes, paper_tables.collected(outcomes)), [1, 5], 'far')
  for ax in figure.axes:
    for container, split in zip(ax.containers, ('test', 'far'), strict=True):
      line = container.lines[0]
      np.testing.assert_allclose(np.asarray(line.get_xdata(), float), [1, 5])
      np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [n + len(split) + 1 for n in (1, 5)])
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == '--'] == [14, 13]


@pytest.mark.slow
@needs_uci('concrete')
def test_quick_tables(monkeypatch, tmp_path):
  """All methods and replicas are there, and each table of a file has its figures."""
  monkeypatch.chdir(ROOT)
  done = hydra_jax('table', 'uci', '--quick', f'--workdir={tmp_path}', figures=True)
  assert done.returncode == 0, done.stderr
  definitions = paper_tables.load('uci', True)
  assert len(definitions) > 1
  for which, definition in definitions.items():
    out = tmp_path / f'table-uci-{which}-quick'
    rows = csv_of(out / 'table.csv')
    for run, config in definition.runs.items():
      of_run = [row for row in rows if row['run'] == run and row['split'] == 'test' and int(row['n'])]
      assert {row['method'] for row in of_run} == {'ensemble', *config.students}
      assert {int(row['n']) for row in of_run} == {config.replicas}
      assert all(math.isfinite(float(row['mean'])) for row in of_run)
    needs_nothing((out / 'report.html').read_text())
    drawn = {file.stem for file in (out / 'figures').glob('*.svg')}
    assert drawn == {file.stem for file in (out / 'figures').glob('*.png')}
    assert drawn >= set(definition.drawings) and len(drawn) > 2


def blocks(text):
  """Tables of a Markdown text, by the heading above each."""
  found = {}
  for part in text.split('\n### ')[1:]:
    title, _, rest = part.partition('\n')
    found[title] = [line for line in rest.splitlines() if line.startswith('|')]
  return found


SHIPPED = (
  *('spiral', 'spiral:all', 'mnist', 'inputs', 'heads', 'cifar10:small', 'cifar10:members'),
  *('uci:dlf', 'uci:heteroscedastic'),
)


@pytest.mark.parametrize('name', SHIPPED)
def test_a_shipped_table_is_made_again_from_its_values(name, monkeypatch, tmp_path, capsys):
  """Every score and every comparison with a paper is as it stands there; tests over test examples are left out."""
  monkeypatch.chdir(ROOT)
  place = ROOT / 'experiments' / 'results' / f'table-{name.replace(":", "-")}'
  paper_tables.again(name, place, tmp_path / 'again')
  # Values that were saved before do not say how far latencies are apart.
  made, shipped = (blocks((f / 'table.md').read_text().replace('≈ ', '')) for f in (tmp_path / 'again', place))
  compared = [title for title in made if ', difference to ' not in title]
  assert compared and set(compared) == {title for title in shipped if ', difference to ' not in title}
  for title in compared:
    assert made[title] == shipped[title], title
  text = (tmp_path / 'again' / 'report.html').read_text()
  needs_nothing(text)
  assert ' kept, what it costs' in text and text.count('class="axis"') > 3
  assert text.count('<img') >= len(list((place / 'figures').glob('*.png')))
  (definition,) = paper_tables.load(name, False).values()
  several = len(definition.runs) > 1
  assert all(f'<h2 id="part-{i + 1}"' in text for i in range(text.count('<summary>') if several else 0))
  assert ('Hollow: published' in text) == any(run_name in definition.runs for run_name, *_ in definition.published)
  latex = (tmp_path / 'again' / 'table.tex').read_text()
  assert latex.count(r'\begin{tabular}') == len(made)
  is_sound(latex)


def is_sound(text):
  """Whether LaTeX would read it: groups and environments end, characters are ASCII, and rows have as many cells."""
  assert text.isascii()
  nodes, *_ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
  found = [node for node in nodes if isinstance(node, LatexEnvironmentNode)]
  assert found and {node.environmentname for node in found} == {'table'}
  for body in re.findall(r'\\begin{tabular}{(l+r+)}\n(.*?)\\end{tabular}', text, re.S):
    rows = [line for line in body[1].splitlines() if line.endswith(r'\\')]
    assert len(rows) > 1
    assert {len(re.findall(r'(?<!\\)&', row)) + 1 for row in rows} == {len(body[0])}


def test_the_page_of_a_table_has_one_line_for_each_kind_of_shift():
  names = ['rotate:15', 'rotate:9', 'cifar100[:500]', 'hf:a:b', 'hf:1.2.3', 'jitter:0.25', 'jitter:2', 'letters']
  values = {(split, 'hydra', 'auroc_uncertainty_epistemic'): {0: 0.5} for split in names}
  shifts = ('rotate:9', 'rotate:15', 'jitter:2', 'jitter:0.25', 'scale:3')
  shown = table_page._outside(verdict.Results(values), shifts)
  assert shown == ['rotate:15', 'cifar100[:500]', 'hf:a:b', 'hf:1.2.3', 'jitter:2', 'letters']


@pytest.mark.parametrize('text', [r'\begin{table}a{b\end{table}', r'\begin{table}$x\end{table}', r'\begin{table}x'])
def test_unsound_latex_is_seen(text):
  with pytest.raises(LatexWalkerParseError):
    is_sound(text)


def test_a_table_from_values_that_are_not_its_own(monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  spiral = ROOT / 'experiments' / 'results' / 'table-spiral'
  with pytest.raises(UserError, match='has no about.json'):
    paper_tables.again('spiral', tmp_path, tmp_path / 'out')
  with pytest.raises(UserError, match="has nothing of run 'mnist'"):
    paper_tables.again('mnist', spiral, tmp_path / 'out')
  with pytest.raises(UserError, match='choose one, such as uci:'):
    paper_tables.again('uci', spiral, tmp_path / 'out')
  with pytest.raises(UserError, match='choose another --workdir'):
    paper_tables.again('spiral', spiral, spiral)
  broken = tmp_path / 'broken'
  shutil.copytree(spiral, broken)
  for content in ('run,split\n1,2\n', 'run,split,method,metric,replica,value\nspiral,test,kd,nll,x,1\n'):
    (broken / 'replicas.csv').write_text(content)
    with pytest.raises(UserError, match='name a folder as'):
      paper_tables.again('spiral', broken, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  assert cli.main(['table', 'spiral', '--from=x', '--replicas=2', f'--workdir={tmp_path}']) == 2
