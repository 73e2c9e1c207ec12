"""`hydra-jax config` has every key of what is trained, once, with what it is by default."""

import sys

from conftest import ROOT
import pytest

from hydra_jax import cli
from hydra_jax.cli import read_config
from hydra_jax.experiment import config as configs, explain, schema


@pytest.fixture(autouse=True)
def _own_hook(monkeypatch):
  """Commands set this one, in whose place pytest has its own."""
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  monkeypatch.chdir(ROOT)


def test_every_key_is_there_once_with_a_meaning():
  config = read_config('configs/digits.py:students=all', [])
  found = list(explain.entries(config))
  assert [f'{each.section}.{each.key}'.lstrip('.') for each in found] == [path for path, _ in configs.leaves(config)]
  for each in found:
    assert (
      (each.meaning.endswith('.') and each.legal) or each.section.startswith('network') or 'network' in each.section
    )


def test_what_differs_from_the_default_is_marked():
  config = read_config('configs/digits.py', ['--config.student.kd.batch_size=7', '--config.seed=3'])
  changed = {
    f'{each.section}.{each.key}': (each.value, each.default) for each in explain.entries(config) if each.is_changed
  }
  assert changed['.seed'] == (3, 0) and changed['training.epochs'] == (40.0, 20.0)
  assert changed['student.kd.batch_size'] == (7, 128)
  assert 'data.name' not in changed and 'training.learning_rate' not in changed
  assert not any(entry.is_changed for entry in explain.entries(schema.default_config()))


def test_only_students_that_are_trained_are_shown(capsys):
  assert cli.main(['config', '--config=configs/digits.py', '--config.students=("kd",)', '--config.seed=5']) == 0
  said = capsys.readouterr().out
  assert 'config.student.kd' in said and 'config.student.hydra' not in said
  assert '(default 0)' in ' '.join(said.split()) and 'Passes' in said
  assert cli.main(['config', '--config=configs/digits.py', '--config.sed=5']) == 2
  assert "did you mean 'seed'" in capsys.readouterr().err


def test_the_version_is_said(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(['--version'])
  assert end.value.code == 0 and capsys.readouterr().out.startswith('hydra_jax 0.')
