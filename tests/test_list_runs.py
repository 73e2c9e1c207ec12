"""`hydra-jax list`: what is in a folder of runs, without touching it."""

import json
import os
from pathlib import Path
import time

import pytest

from hydra_jax import UserError, cli, store
from hydra_jax.experiment import list_runs


def a_run(folder, name, finished=True, age=0.0, **config):
  place = folder / name
  (place / 'artifacts').mkdir(parents=True)
  config = {'name': name, 'data': {'name': 'digits'}, 'students': ['kd', 'hydra']} | config
  (place / 'config.json').write_text(json.dumps(config))
  (place / 'artifacts' / 'part').write_bytes(bytes(3 * 2**20))
  if finished:
    (place / 'results.jsonl').write_text('{}')
  then = time.time() - age
  for file in [*place.rglob('*'), place]:
    os.utime(file, (then, then))
  return place


def test_runs_are_listed_by_age(tmp_path):
  old, new = a_run(tmp_path, 'old', age=90_000.0), a_run(tmp_path, 'new', finished=False)
  (tmp_path / 'no-run').mkdir()
  found = list(list_runs.runs_in(tmp_path))
  assert [(run.folder, run.state, run.data, run.students) for run in found] == [
    (new, 'unfinished', 'digits', ('kd', 'hydra')),
    (old, 'finished', 'digits', ('kd', 'hydra')),
  ]
  assert 89_990 < found[1].age < 90_100 and 3 * 2**20 < found[1].size < 3 * 2**20 + 1000
  assert list(list_runs.runs_in(old))[0].folder == old


def test_a_run_that_was_begun_again_is_unfinished(tmp_path):
  place = a_run(tmp_path, 'run')
  later = time.time() + 5
  os.utime(place / 'config.json', (later, later))
  assert next(list_runs.runs_in(tmp_path)).state == 'unfinished'


def test_a_run_that_is_running_is_left_alone(tmp_path, capsys):
  place = a_run(tmp_path, 'run')
  with store.locked(place):
    before = sorted(file.stat().st_mtime_ns for file in place.rglob('*'))
    assert cli.main(['list', str(tmp_path)]) == 0
    assert sorted(file.stat().st_mtime_ns for file in place.rglob('*')) == before
  said = capsys.readouterr().out
  assert 'running' in said and 'kd hydra' in said and '3.0' in said
  assert next(list_runs.runs_in(tmp_path)).state == 'finished'


def test_a_file_that_is_removed_meanwhile_is_not_counted(tmp_path, monkeypatch):
  place, whole = a_run(tmp_path, 'run'), Path.rglob
  monkeypatch.setattr(Path, 'rglob', lambda folder, pattern: [*whole(folder, pattern), folder / 'gone'])
  assert [run.folder for run in list_runs.runs_in(tmp_path)] == [place]


def test_damaged_and_missing(tmp_path, capsys):
  place = a_run(tmp_path, 'run')
  (place / 'config.json').write_text('{"data":')
  assert next(list_runs.runs_in(tmp_path)).state == 'config.json is damaged'
  with pytest.raises(UserError, match='there is no folder'):
    list(list_runs.runs_in(tmp_path / 'nowhere'))
  (tmp_path / 'empty').mkdir()
  assert cli.main(['list', str(tmp_path / 'empty')]) == 0
  assert 'no runs in' in capsys.readouterr().out
