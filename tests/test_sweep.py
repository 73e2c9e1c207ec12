"""`hydra-jax sweep`: the grid, the table and the figure from made-up results, and processes that share the work."""

import csv
import json
import shutil
import signal
import time

from conftest import ROOT, command, hydra_jax, start
import numpy as np
import pytest

from hydra_jax import UserError, cli, store
from hydra_jax.experiment import sweep
from hydra_jax.experiment.compare_runs import FinishedRun
from hydra_jax.experiment.config import default_config, set_values
from hydra_jax.experiment.sweep import grid_of, points_of
from hydra_jax.report.parallel import Scale, draw
from hydra_jax.report.verdict import Results

GRID = {'student.hydra.temperature': ['1', '9'], 'seed': ['0', '1', '2']}


def read(overrides):
  config = default_config()
  config.name = 'made'
  set_values(config, [tuple(each.removeprefix('--config.').split('=', 1)) for each in overrides])
  return config


def test_values_and_ranges():
  found = grid_of(['student.hydra.temperature=1,2.5', 'config.seed=-1..2,7', "students=('kd',),('kd','hydra')"])
  assert found['student.hydra.temperature'] == ['1', '2.5']
  assert found['seed'] == ['-1', '0', '1', '2', '7']
  assert found['students'] == ["('kd',)", "('kd','hydra')"]


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['seed'], 'has no values: write --grid KEY=VALUE'),
    (['=3'], 'has no values'),
    (['seed='], 'seed has no values'),
    (['seed=3..1'], 'the range 3..1 is empty'),
    (['seed=1,2,1'], 'seed has the value 1 twice'),
    (['seed=0..3,2'], 'seed has the value 2 twice'),
    (['seed=1', 'config.seed=2'], 'seed is given twice'),
    (["students=('kd',"], 'lacks a closing'),
  ],
)
def test_a_grid_that_is_none(arguments, words):
  with pytest.raises(UserError, match=words):
    grid_of(arguments)


def test_points_are_all_combinations_with_names_of_their_own():
  points = points_of(GRID, read)
  assert [point.name for point in points[:3]] == [f'temperature=1,seed={seed}' for seed in (0, 1, 2)]
  assert [(point.config.student.hydra.temperature, point.config.seed) for point in points] == [
    (temperature, seed) for temperature in (1.0, 9.0) for seed in (0, 1, 2)
  ]
  both = {'student.hydra.temperature': ['1'], 'student.kd.temperature': ['2']}
  (point,) = points_of(both, read)
  assert point.name == 'student.hydra.temperature=1,student.kd.temperature=2'
  # Names of files must differ where texts differ, whatever characters are in them, and stay short.
  odd = {'data.ood': ["('noise',)", "('noise','letters')", '(' + ','.join(f"'noise{i}'" for i in range(30)) + ')']}
  names = [point.name for point in points_of(odd, read)]
  assert len({*names}) == 3 and all(len(name) < 100 and '/' not in name and "'" not in name for name in names)


def test_every_point_is_checked_before_any_is_run():
  with pytest.raises(UserError, match='temperature=-1'):
    points_of({'seed': ['0'], 'student.hydra.temperature': ['3', '-1']}, read)
  with pytest.raises(UserError, match="did you mean 'temperature'"):
    points_of({'student.hydra.temperatur': ['3']}, read)


def test_a_point_is_finished_while_its_config_and_its_data_are_the_same(tmp_path):
  x = np.linspace(0, 1, 40)[:, None]
  file = tmp_path / 'data.npz'

  def key(y, temperature='1'):
    np.savez(file, x=x, y=y, x_test=x + 2, y_test=y)
    points = points_of({'data.name': [str(file)], 'student.hydra.temperature': [temperature]}, read)
    (found,) = sweep.keys_of(points, '').values()
    return found

  before = key(x)
  (tmp_path / sweep.POINT).write_text(json.dumps(before))
  assert sweep.is_finished(tmp_path, key(x)) and not sweep.is_finished(tmp_path / 'elsewhere', key(x))
  assert not sweep.is_finished(tmp_path, key(x, '2')) and not sweep.is_finished(tmp_path, key(x + 1))


def made(values, of):
  """Results of a point: a value for each method and metric, from `of(method, metric)`."""
  columns = [('validation', 'nll'), ('test', 'nll'), ('test', 'accuracy')]
  found = {(split, method, m): {0: of(method, split, m)} for method in ('ensemble', 'hydra') for split, m in columns}
  return FinishedRun('a', {}, 'classification', Results(found))


def found():
  points = points_of(GRID, read)

  def of(point):
    seed, temperature = (float(point.values[key]) for key in ('seed', 'student.hydra.temperature'))
    return lambda method, split, m: seed + (10 * temperature if method == 'hydra' else 0) + (split == 'test') * 0.5

  return [(point, made(point.values, of(point))) for point in points]


def test_the_table_has_means_over_seeds_and_names_what_no_value_changes():
  table = sweep.score_table(found())
  assert table.headings[:3] == ['hydra.temperature', 'validation NLL ↓', 'acc. ↑']
  assert [name for name, _ in table.body] == ['hydra', 'hydra']
  error = f'{1 / np.sqrt(3):.2f}'
  cells = [[text for text, _ in line] for _, line in table.body]
  assert [line[0] for line in cells] == ['1', '9']
  assert [line[1] for line in cells] == [f'11.00 ± {error}', f'91.00 ± {error}']
  assert 'The same for all values: ensemble.' in table.note and 'Choose by the NLL on the validation part' in table.note


def test_every_value_is_in_the_file():
  lines = list(csv.DictReader(sweep._csv(found()).splitlines()))
  assert len(lines) == 6 * 2 * 3
  (line,) = [
    line
    for line in lines
    if (line['seed'], line['student.hydra.temperature'], line['method'], line['split'], line['metric'])
    == ('2', '9', 'hydra', 'test', 'nll')
  ]
  assert float(line['value']) == 92.5 and line['replica'] == '0'


def test_lines_of_the_figure_meet_the_axes_where_they_should():
  scales = sweep.scales_of(found())
  assert list(scales) == ['hydra'] and [scale.name for scale in scales['hydra']][:2] == [
    'hydra.temperature',
    'validation NLL',
  ]
  assert scales['hydra'][1].values == [11.0, 91.0]
  assert Scale('a', ['x', 'y', 'x', 'z']).heights() == [0, 0.5, 0, 1]
  assert Scale('a', [3.0, 5.0, 4.0]).heights() == [0, 1, 0.5] and Scale('a', [3.0, 3.0]).heights() == [0.5, 0.5]
  assert Scale('a', [3.0, 5.0, 4.0]).marks() == {0.0: '3.000', 1.0: '5.000'}
  equal = draw({'a': [Scale('NLL', [2.0, 1.0, 2.0]), Scale('b', ['x', 'y', 'z'])]}, ('NLL',)).axes[0]
  colours = {tuple(line.get_ydata()): line.get_color() for line in equal.lines if len(line.get_xdata()) == 2}
  assert colours[1, 0] == colours[1, 1] != colours[0, 0.5]
  (ax,) = draw(scales, sweep.COLOURS).axes
  lines = [line for line in ax.lines if len(line.get_xdata()) == len(scales['hydra'])]
  assert sorted(line.get_ydata()[1] for line in lines) == [0, 1] and 'validation NLL' in ax.get_title(loc='left')


def test_methods_that_only_some_runs_have():
  """As in a sweep over `students`: each has its row, and a panel where there are two to compare."""
  points = points_of({'students': ["('kd',)", "('hydra',)", "('hydra','kd')"]}, read)
  runs = []
  for i, point in enumerate(points):
    methods = ('ensemble', *point.config.students)
    values = {('test', method, 'nll'): {0: float(i)} for method in methods} | {('test', 'ensemble', 'nll'): {0: 9.0}}
    runs.append((point, FinishedRun('a', {}, 'classification', Results(values))))
  table = sweep.score_table(runs)
  assert [name for name, _ in table.body] == ['kd', 'kd', 'hydra', 'hydra'] and 'ensemble' in table.note
  # There are no scores on a validation part: no column is empty, and nothing is to choose by.
  assert table.headings == ['students', 'NLL ↓'] and sweep.NOTE not in table.note and sweep.WITHOUT in table.note
  assert list(sweep.scales_of(runs)) == ['kd', 'hydra']
  assert len(draw(sweep.scales_of(runs), sweep.COLOURS).axes) == 2
  assert sweep.scales_of(runs[:2]) == {}


@pytest.mark.parametrize(
  'arguments, word',
  [
    (['--grid', 'seed=0,1', '--config.seed=x'], 'takes a whole number'),
    (['--grid', 'sed=0,1'], "did you mean 'seed'"),
    (['--grid', 'seed=0,-1'], 'from 0 to'),
    (['--grid', 'seed=0..1', '--workdir='], '--workdir is empty'),
    (['--grid', 'seed=0..1', '--store=gs://x/y'], 'is not on a file system'),
    (['--grid', 'seed=0..1', 'more'], 'unexpected argument'),
  ],
)
def test_bad_input_is_one_line(arguments, word, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  monkeypatch.chdir(tmp_path)
  assert cli.main(['sweep', f'--config={ROOT}/configs/digits.py', *arguments]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert word in line and not list(tmp_path.iterdir())


CONFIG = ['--config=configs/digits.py:members=2,epochs=30', "--config.students=('hydra',)", '--config.data.shifts=()']
CONFIG += ['--config.data.ood=()', '--config.student.hydra.epochs=1', '--config.student.hydra.optimizer=sgd']
CONFIG += ['--config.checkpoint_seconds=0.5']
RATES = ('--grid', 'student.hydra.learning_rate=0.001,0.01,1e30')  # at the last one it diverges


def processes(folder, count):
  """Sweeps that are started together."""
  started = []
  for i in range(count):
    log = open(folder.with_name(f'log-{len(list(folder.parent.glob("log-*")))}-{i}'), 'w+')
    started.append((start(command('sweep', *CONFIG, *RATES, f'--workdir={folder}'), log, log), log))
  return started


def ended(started):
  codes, said = [process.wait(300) for process, _ in started], []
  for _, log in started:
    log.seek(0)
    said.append(log.read())
    log.close()
  return codes, said


def values(run):
  rows = [json.loads(line) for line in (run / 'results.jsonl').read_text().splitlines()]
  return {(row['split'], row['method'], row['metric']): row['value'] for row in rows}


@pytest.mark.slow
def test_processes_share_the_work_and_what_one_leaves_the_other_continues(tmp_path):
  """One is killed in training. Two go on: both good runs are made, and the bad one is named.

  A run is as one that shares nothing. The same command trains nothing again, though the store is gone.
  """
  folder = tmp_path / 'sweep'
  killed = processes(folder, 1)
  while not list(folder.glob('store/labels-*.progress/[0-9]*')):
    assert killed[0][0].poll() is None, ended(killed)
    time.sleep(0.01)
  killed[0][0].kill()
  ended(killed)
  codes, said = ended(processes(folder, 2))
  both = ''.join(said)
  assert 2 in codes and set(codes) <= {0, 2} and 'Traceback' not in both, said
  bad = said[codes.index(2)].splitlines()[-1]
  assert bad.startswith('hydra-jax: 1 of 3 runs failed') and 'learning_rate=1e30: ' in bad and 'not finite' in bad
  assert both.count('ensemble of 2: continues at step') == 1 and 'ensemble of 2: reused from' in both
  assert len(list(folder.glob('*/point.json'))) == 2 and not list(folder.glob(f'*/artifacts/{store.NEW}*'))
  assert len((folder / 'table.md').read_text().split('| hydra |')) == 3

  alone, of_point = tmp_path / 'alone', '--config.student.hydra.learning_rate=0.01'
  done = hydra_jax('run', *CONFIG, of_point, f'--workdir={alone}')
  assert done.returncode == 0, done.stderr
  assert values(alone) == values(folder / 'learning_rate=0.01')

  # Who waits for a part that another process holds hears SIGTERM.
  (ensemble,) = (folder / 'store').glob('labels-*')
  with store.part_locked(ensemble, lambda: None), open(tmp_path / 'waits', 'w') as log:
    what = command('run', *CONFIG, of_point, f'--workdir={tmp_path / "waits-run"}', f'--store={folder / "store"}')
    waits = start(what, log, log)
    while 'another run makes it, and this one waits' not in (tmp_path / 'waits').read_text():
      assert waits.poll() is None, (tmp_path / 'waits').read_text()
      time.sleep(0.05)
    waits.send_signal(signal.SIGTERM)
    assert waits.wait(60) == 75
  assert 'the same command continues' in (tmp_path / 'waits').read_text()

  shutil.rmtree(folder / 'store')  # runs are whole without it
  before = (folder / 'table.md').read_text()
  codes, said = ended(processes(folder, 1))
  assert codes == [2] and said[0].count('--- run') == 1 and (folder / 'table.md').read_text() == before
