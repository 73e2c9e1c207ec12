"""`hydra-jax clean`: only what the last run did not use is deleted, and only if the user agrees."""

import io
import json
import os
import shutil
import sys
import time

from conftest import TINY, hydra_jax
import pytest

from hydra_jax import UserError, cli, store
from hydra_jax.experiment import clean_run


def a_run(folder, parts=('labels-1', 'scores-2'), used=('labels-1',)):
  for name in parts:
    (folder / 'artifacts' / name).mkdir(parents=True)
    (folder / 'artifacts' / name / 'file').write_bytes(bytes(2**20))
  (folder / 'config.json').write_text('{}')
  (folder / 'versions.json').write_text(json.dumps({'format': store.FORMAT}))
  (folder / 'parts.json').write_text(json.dumps(used))
  (folder / 'results.jsonl').touch()
  return folder


def left(run):
  return sorted(place.name for place in (run / 'artifacts').iterdir())


@pytest.mark.parametrize('answer, expected', [('y', ['labels-1']), ('', None), ('no', None), ('YES ', ['labels-1'])])
def test_it_asks_first(tmp_path, monkeypatch, capsys, answer, expected):
  run, asked = a_run(tmp_path), []
  monkeypatch.setattr(sys.stdin, 'isatty', lambda: True, raising=False)
  monkeypatch.setattr('builtins.input', lambda question: asked.append(question) or answer)
  assert cli.main(['clean', str(run)]) == 0
  assert left(run) == (expected or ['labels-1', 'scores-2'])
  assert len(asked) == 1 and 'did not use 1 of its parts' in asked[0] and '1.0 MiB' in asked[0]
  assert ('deleted 1.0 MiB' if expected else 'nothing was deleted') in capsys.readouterr().out


def test_where_nobody_can_answer_it_says_so(tmp_path, monkeypatch, capsys):
  run = a_run(tmp_path)
  monkeypatch.setattr(sys, 'stdin', io.StringIO('y\n'))
  assert cli.main(['clean', str(run)]) == 2
  assert 'add --yes' in capsys.readouterr().err and left(run) == ['labels-1', 'scores-2']
  assert cli.main(['clean', str(run), '--yes']) == 0
  assert left(run) == ['labels-1']
  assert cli.main(['clean', str(run), '--yes']) == 0
  assert 'has no parts' in capsys.readouterr().out


def test_what_is_no_finished_run_is_left_alone(tmp_path, capsys):
  yes = lambda question: True
  for name in ('unfinished', 'damaged', 'old'):
    a_run(tmp_path / name)
  (tmp_path / 'unfinished' / 'parts.json').unlink()
  (tmp_path / 'damaged' / 'parts.json').write_text('{"a": 1}')
  (tmp_path / 'old' / 'versions.json').write_text('{"format": 1}')
  (tmp_path / 'other').mkdir()
  words = {
    'unfinished': 'until it is finished',
    'damaged': 'is damaged',
    'old': 'another --workdir',
    'other': 'no folder',
  }
  for name, word in words.items():
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=word):
      clean_run.clean(tmp_path / name, yes)
    assert sorted(tmp_path.rglob('*')) == before
  run = a_run(tmp_path / 'busy')
  with store.locked(run), pytest.raises(UserError, match='is running, not finished'):
    clean_run.clean(run, yes)
  assert left(run) == ['labels-1', 'scores-2']
  assert cli.main(['clean', str(run), '--no']) == 2 and "unexpected argument '--no'" in capsys.readouterr().err


def test_what_a_newer_config_has_trained_so_far_is_kept(tmp_path):
  """A finished run that was begun again with another config and interrupted: its new parts are in no list yet."""
  run = a_run(tmp_path / 'run', parts=('labels-1', 'labels-2', 'members-3.progress'))
  later = time.time() + 5
  os.utime(run / 'config.json', (later, later))
  with pytest.raises(UserError, match='is unfinished, not finished'):
    clean_run.clean(run, lambda question: True)
  assert left(run) == ['labels-1', 'labels-2', 'members-3.progress']


@pytest.mark.slow
def test_a_cleaned_run_needs_no_training_again(tiny_run, tmp_path):
  """Parts of a student with other settings go; the run itself is whole."""
  run = tmp_path / 'run'
  shutil.copytree(tiny_run[0], run)
  before = left(run)
  stranger = run / 'artifacts' / 'members-0123456789ab'
  shutil.copytree(run / 'artifacts' / next(name for name in before if name.startswith('members-')), stranger)
  done = hydra_jax('clean', run, '--yes')
  assert done.returncode == 0 and 'members-0123456789ab' in done.stdout, done.stderr
  assert left(run) == before
  results = (run / 'results.jsonl').read_bytes()
  again = hydra_jax('run', *TINY, f'--workdir={run}')
  assert again.returncode == 0 and 'done in' not in again.stdout, again.stdout
  assert (run / 'results.jsonl').read_bytes() == results
