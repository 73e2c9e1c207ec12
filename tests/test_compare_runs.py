"""`hydra-jax compare`: runs side by side, from made-up results and from a run."""

import json
import os
import shutil
import time

from conftest import hydra_jax
import numpy as np
import pytest

from hydra_jax import UserError, cli, store
from hydra_jax.experiment import compare_runs

CONFIG = {
  'name': 'one',
  'seed': 0,
  'replicas': 3,
  'data': {'name': 'digits', 'shifts': []},
  'students': ['kd'],
  'student': {'kd': {'epochs': 2.0}, 'endd': {'epochs': 9.0}},
  'execution': {'mapping': 'vmap'},
}


def a_run(folder, accuracy, ratio=0.0, task='classification', **changes):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(CONFIG | changes))
  about = {'task': task, 'outputs': 10, 'test_to_train': ratio}
  (folder / 'data.json').write_text(json.dumps(about))
  (folder / 'versions.json').write_text(json.dumps({'format': store.FORMAT}))
  rows = [
    {'split': 'test', 'method': 'kd', 'replica': r, 'metric': 'accuracy', 'value': value, 'n': 9}
    for r, value in enumerate(accuracy)
  ]
  rows.append({'split': 'far', 'method': 'kd', 'replica': 0, 'metric': 'auroc_uncertainty_epistemic', 'value': 0.5})
  (folder / 'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def runs_of(*folders):
  return [compare_runs.read(folder, name) for folder, name in zip(folders, compare_runs.named(folders), strict=True)]


def test_only_what_differs_and_is_used_is_shown(tmp_path):
  changed = {'student': {'kd': {'epochs': 5.0}, 'endd': {'epochs': 1.0}}, 'execution': {'mapping': 'loop'}, 'name': 'b'}
  runs = runs_of(a_run(tmp_path / 'a', [0.9]), a_run(tmp_path / 'b', [0.9], **changed))
  assert compare_runs.config_table(runs).body == [('student.kd.epochs', [('2.0', ''), ('5.0', '')])]


BASE = [0.90, 0.92, 0.94]


@pytest.mark.parametrize(
  'accuracy, changes, below',
  [
    ([0.91, 0.93, 0.951], {}, '+0.0103*'),  # each replica is better by much the same
    ([0.99, 0.85, 0.96], {}, '+0.0133'),  # within the error
    ([0.91, 0.93, 0.951], {'seed': 1}, '+0.0103'),  # no pairs
    ([0.91, 0.93, 0.951], {'data': {'name': 'mnist'}}, '+0.0103'),
    ([0.91, 0.94], {'replicas': 2}, '+0.00500'),
    ([0.91, 0.93, 0.951], {'ratio': 100.0}, '+0.0103'),  # splits that overlap so much say little
  ],
)
def test_differences_are_tested_where_replicas_are_pairs(tmp_path, accuracy, changes, below):
  runs = runs_of(a_run(tmp_path / 'a', BASE), a_run(tmp_path / 'b', accuracy, **changes))
  table = compare_runs.score_table(runs)
  (name, cells), *others = table.body
  assert name == 'kd: acc. ↑' and [row for row, _ in others] == ['kd: far AUROC model ↑']
  assert cells[0] == ('0.920 ± 0.012', '') and cells[1][1] == below
  assert float(cells[1][0].split()[0]) == pytest.approx(np.mean(accuracy), abs=6e-3)


def test_what_only_one_run_has_is_shown(tmp_path):
  one, other = a_run(tmp_path / 'a', BASE), a_run(tmp_path / 'b', BASE)
  text = (other / 'results.jsonl').read_text().replace('"kd"', '"endd"')
  (other / 'results.jsonl').write_text(text)
  cells = dict(compare_runs.score_table(runs_of(one, other)).body)
  assert cells['kd: acc. ↑'] == [('0.920 ± 0.012', ''), ('–', '')]
  assert cells['endd: acc. ↑'] == [('–', ''), ('0.920 ± 0.012', '')]


def test_other_replicas_are_no_pairs(tmp_path):
  """As many values of other replicas, where a metric is not defined for one of them."""
  one, other = a_run(tmp_path / 'a', BASE), a_run(tmp_path / 'b', [0.91, 0.93, 0.951])
  for folder, missing in ((one, 0), (other, 2)):
    rows = [json.loads(line) for line in (folder / 'results.jsonl').read_text().splitlines()]
    kept = [row for row in rows if row['metric'] != 'accuracy' or row['replica'] != missing]
    (folder / 'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in kept))
  (_, cells), *_ = compare_runs.score_table(runs_of(one, other)).body
  assert cells[1][1] == '-0.0100'


def test_results_of_another_config_are_not_compared(tmp_path):
  """A finished run that was begun again with another config has the results of the config before."""
  good, begun = a_run(tmp_path / 'a', BASE), a_run(tmp_path / 'b', BASE)
  later = time.time() + 5
  os.utime(begun / 'config.json', (later, later))
  with pytest.raises(UserError, match='is unfinished, not finished'):
    compare_runs.show([good, begun])


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path, capsys):
  good, other = a_run(tmp_path / 'good', BASE), a_run(tmp_path / 'other', BASE, task='regression')
  (tmp_path / 'empty').mkdir()
  unfinished = a_run(tmp_path / 'unfinished', BASE)
  (unfinished / 'results.jsonl').unlink()
  old = a_run(tmp_path / 'old', BASE)
  (old / 'versions.json').write_text('{"format": 1}')
  damaged = [a_run(tmp_path / f'damaged{i}', BASE) for i in range(4)]
  (damaged[0] / 'results.jsonl').write_text('{"split": "test"')
  (damaged[1] / 'config.json').write_text('[1]')
  (damaged[1] / 'results.jsonl').touch()
  (damaged[2] / 'data.json').write_text('{}')
  (damaged[3] / 'results.jsonl').write_text('[1, 2]\n')
  cases = [
    ([good], 'at least two'),
    ([good, good], 'the same run is named twice'),
    ([good, tmp_path / 'empty'], 'no folder of a run'),
    ([good, tmp_path / 'nowhere'], 'no folder of a run'),
    ([good, unfinished], 'is unfinished, not finished'),
    ([good, other], 'good is classification and other is regression'),
    ([good, old], 'another --workdir'),
    *(([good, each], 'is damaged') for each in damaged),
    ([good, '--wrong'], "unexpected argument '--wrong'"),
    ([good, ''], 'the run is empty'),
  ]
  for folders, words in cases:
    assert cli.main(['compare', *map(str, folders)]) == 2, folders
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('hydra-jax: ') and words in line, line
  with pytest.raises(UserError, match='at least two'):
    compare_runs.show([good])


@pytest.mark.slow
def test_a_run_and_its_copy(tiny_run, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(tiny_run[0], copy)
  done = hydra_jax('compare', tiny_run[0], copy)
  assert done.returncode == 0, done.stderr
  assert 'The configs are equal' in done.stdout
  assert 'The same in all runs: ensemble, single, kd, hydra.' in done.stdout
