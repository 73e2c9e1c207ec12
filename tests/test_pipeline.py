"""Whole runs: what they write, what they reuse, and that no interruption changes a bit."""

import json
import os
import shutil
import sys
import tempfile

from conftest import DATA_DIR, ROOT, TINY, hydra_jax, needs_uci, start
import jax
import numpy as np
from PIL import Image
import pytest

from experiments import soak
from hydra_jax import data as datasets, store
from hydra_jax.data import toy
from hydra_jax.evaluation import evaluate
from hydra_jax.experiment import artifacts, run as runs
from hydra_jax.experiment.config import default_config
from hydra_jax.maths.uncertainty import WORDS
from hydra_jax.training.folds import of_rows

pytestmark = pytest.mark.slow

KEYS = ['split', 'method', 'replica', 'metric', 'value', 'n']


def rows(workdir):
  return [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]


def value(workdir, data, method, metric):
  (found,) = [r['value'] for r in rows(workdir) if (r['split'], r['method'], r['metric']) == (data, method, metric)]
  return found


@pytest.mark.everywhere
def test_what_a_run_writes(tiny_run):
  workdir, printed = tiny_run
  assert all(list(row) == KEYS for row in rows(workdir))
  for method in ('ensemble', 'single', 'kd', 'hydra'):
    assert 0.5 < value(workdir, 'test', method, 'accuracy') <= 1
    assert method in printed and f'| {method} |' in (workdir / 'table.md').read_text()
    assert 0 <= value(workdir, 'letters', method, 'auroc_uncertainty_total') <= 1
  assert json.loads((workdir / 'config.json').read_text())['teacher']['members'] == 3
  assert {'python', 'jax', 'hydra_jax', 'device'} <= set(json.loads((workdir / 'versions.json').read_text()))
  for name in ('reliability', 'model_uncertainty', 'agreement', 'shifts'):
    assert np.ptp(np.asarray(Image.open(workdir / 'figures' / f'{name}.png'))) > 0
  assert not list(workdir.rglob(f'{store.NEW}*')) and not list(workdir.rglob('*.progress'))


def test_uncertainty_is_where_it_belongs(tiny_run):
  workdir, _ = tiny_run
  for where in ('test', 'letters', 'noise', 'rotate:30'):
    for method in ('single', 'kd'):
      assert value(workdir, where, method, 'uncertainty_epistemic') == 0.0
    for method in ('ensemble', 'hydra'):
      assert value(workdir, where, method, 'uncertainty_epistemic') > 0
    three = [value(workdir, where, 'ensemble', p) for p in WORDS]
    assert three[0] == pytest.approx(three[1] + three[2], rel=1e-5)


def test_labels_are_calibrated_on_the_validation_part(tiny_run):
  """Of every row of the table. 120 images say little of the temperature, so that an NLL on others may rise."""
  workdir, printed = tiny_run
  for method in ('ensemble', 'single', 'kd', 'hydra'):
    assert 1 / 16 <= value(workdir, 'validation', method, 'temperature') <= 16
    before, after = (value(workdir, 'test', method, metric) for metric in ('nll', 'nll_calibrated'))
    assert 0 < after != before
    assert method == 'ensemble' or 0 <= value(workdir, 'test', method, 'members_worth') <= 3
  assert next(row['method'] for row in rows(workdir)) == 'ensemble' and 'rank' in printed and 'cal.' in printed


def test_costs_are_counted_by_hand(tiny_run):
  workdir, _ = tiny_run
  of_body = lambda last: 64 * 100 + 100 + 100 * last + last
  of_dense = lambda last: last * 10 + 10
  assert value(workdir, 'cost', 'ensemble', 'parameters') == 3 * (of_body(100) + of_dense(100))
  assert value(workdir, 'cost', 'single', 'parameters') == of_body(300) + of_dense(300)
  assert value(workdir, 'cost', 'hydra', 'parameters') == of_body(300) + 3 * of_dense(300) + 1  # and the spread
  needed = 2 * (64 * 100 + 100 * 300 + 300 * 10)
  assert needed <= value(workdir, 'cost', 'single', 'flops') <= 1.1 * needed


def test_a_second_run_reuses_everything(tiny_run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run[0], workdir)
  before = {p: p.stat().st_mtime_ns for p in (workdir / 'artifacts').rglob('*')}
  results = (workdir / 'results.jsonl').read_bytes()
  done = hydra_jax('run', *TINY, f'--workdir={workdir}')
  assert done.returncode == 0 and 'ensemble of 3: reused' in done.stdout
  assert {p: p.stat().st_mtime_ns for p in (workdir / 'artifacts').rglob('*')} == before
  assert (workdir / 'results.jsonl').read_bytes() == results


def test_a_changed_student_does_not_train_the_teachers_again(tiny_run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run[0], workdir)
  old = {p.name for p in (workdir / 'artifacts').iterdir()}
  done = hydra_jax('run', *TINY, '--config.student.hydra.temperature=2', f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  for part in ('ensemble of 3', 'teacher predictions', 'single: labels', 'kd: mean prediction'):
    assert f'{part}: reused' in done.stdout
  new = {p.name.rpartition('-')[0] for p in (workdir / 'artifacts').iterdir() if p.name not in old}
  assert new == {'mean-prediction', 'members', 'spread', 'divergences', 'scores', 'timings'}


def forked(workdir, limited=False):
  """As `soak.start`, but for the imports."""
  read, write = os.pipe()
  errors = tempfile.TemporaryFile('w+')
  limit = soak.LIMIT_BYTES if limited else 0
  what = [sys.executable, 'tests/alone.py', str(limit), 'run', *soak.CONFIG, f'--workdir={workdir}']
  with open(write, 'w') as out:
    process = start(what, out, errors)
  process.stdout = open(read)

  def communicate(timeout):
    out = process.stdout.read()
    process.stdout.close()
    process.wait(timeout)
    with errors:
      errors.seek(0)
      return out, errors.read()

  process.communicate = communicate
  return process


def test_no_fault_changes_a_bit(monkeypatch, capsys):
  """SIGKILL, SIGTERM, a full disk and a damaged checkpoint; each time the same command goes on."""
  monkeypatch.setattr(soak, 'start', forked)
  monkeypatch.setattr(soak, 'CONFIG', [*soak.CONFIG])
  code = soak.main(['--faults=4', '--faults-per-run=4', '--quick'])
  said = capsys.readouterr().out
  assert code == 0, said
  assert '1 SIGKILL, 1 SIGTERM, 1 full disk, 1 damaged checkpoint' in said
  assert '4 faults' in said and '0 lost' in said


SHORT = [f'--config.student.{s}.epochs=1' for s in ('single', 'kd', 'hydra')] + [
  '--config.student.hydra.hinton_epochs=1'
]


def finishes(workdir, config, *more, data_dir=DATA_DIR):
  done = hydra_jax('run', f'--config={config}', *SHORT, *more, f'--workdir={workdir}', f'--data_dir={data_dir}')
  assert done.returncode == 0, done.stdout + done.stderr
  assert all(np.isfinite(r['value']) for r in rows(workdir))
  return rows(workdir)


def test_predictions_of_another_framework(tiny_run, tmp_path):
  """Those of our own teacher, through a file, give the students and the scores that the teacher itself gives."""
  workdir, _ = tiny_run
  # The file holds the whole training split, of which the same tenth is the validation part again.
  whole, data = (datasets.load(default_config().data, DATA_DIR, 0, share) for share in (0.0, 0.1))
  ensemble = next(workdir.glob('artifacts/labels-*/recipe.json'))
  if json.loads(ensemble.read_text())['role'] != 'teacher':
    ensemble = next(p for p in workdir.glob('artifacts/labels-*/recipe.json') if p != ensemble)
  model, _ = artifacts.load(str(ensemble.parent), data)
  test, letters = toy.digits('test'), toy.letters()
  predictions = {
    name: np.asarray(evaluate.predict(model, x, 500))
    for name, x in (
      ('logits', whole.train.x),
      ('logits_test', test[0]),
      ('logits_letters', letters),
    )
  }
  inputs = dict(x=whole.train.x, y=whole.train.y, x_test=test[0], y_test=test[1], x_letters=letters)
  np.savez(tmp_path / 'members.npz', **inputs, **predictions)
  config = f'--config.teacher.predictions={tmp_path / "members.npz"}'
  same = [a for a in TINY[1:] if 'shifts' not in a and 'teacher' not in a] + ["--config.data.ood=('letters','noise')"]
  same += [f'--config.student.{s}.batch_size=64' for s in ('kd', 'hydra')] + ["--config.students=('kd','hydra')"]
  same += ['--config.network.student.widths=(100,300)']
  done = hydra_jax('run', '--config=configs/external.py', config, *same, f'--workdir={tmp_path / "run"}', figures=True)
  assert done.returncode == 0, done.stdout + done.stderr
  for method in ('ensemble', 'kd', 'hydra'):
    for metric in ('accuracy', 'nll', 'uncertainty_epistemic'):
      expected, found = (value(w, 'test', method, metric) for w in (workdir, tmp_path / 'run'))
      assert found == pytest.approx(expected, rel=2e-2, abs=2e-3), (method, metric)
  assert value(tmp_path / 'run', 'letters', 'ensemble', 'auroc_uncertainty_epistemic') > 0.5
  assert 'noise' not in {r['split'] for r in rows(tmp_path / 'run') if r['method'] == 'ensemble'}
  (line,) = [t for t in (tmp_path / 'run' / 'table.md').read_text().splitlines() if t.startswith('| ensemble')]
  assert '–' in line and (tmp_path / 'run' / 'figures' / 'agreement.png').exists()
  done = hydra_jax(
    'run',
    '--config=configs/external.py',
    config,
    "--config.student.kd.augment=('noise',)",
    f'--workdir={tmp_path / "no"}',
  )
  assert done.returncode == 2 and 'config.student.kd.augment' in done.stderr and not (tmp_path / 'no').exists()


def test_members_of_other_runs_and_architectures(tiny_run, tmp_path):
  """Three members of one run and two of another, wider, are one teacher; predictions are kept in float16."""
  other, workdir = tmp_path / 'other', tmp_path / 'run'
  wider = ('--config=configs/digits.py:members=2,epochs=2', '--config.network.teacher.widths=(130,)')
  nothing = ('--config.students=()', '--config.data.shifts=()', '--config.data.ood=()')
  done = hydra_jax('run', *wider, *nothing, f'--workdir={other}')
  assert done.returncode == 0, done.stderr
  teacher = f"--config.teacher.checkpoints=('{tiny_run[0]}','{other}')"
  more = (teacher, '--config.teacher.keep_as=float16', "--config.students=('kd',)")
  quick = [a for a in TINY[1:] if 'teacher' not in a]
  done = hydra_jax('run', '--config=configs/digits.py', *quick, *more, f'--workdir={workdir}')
  assert done.returncode == 0, done.stderr
  kept = np.load(next(workdir.glob('artifacts/predictions-*/predictions.npy')))
  assert kept.shape == (5, 1078, 10) and kept.dtype == np.float16
  own = np.load(next(tiny_run[0].glob('artifacts/predictions-*/predictions.npy')))
  np.testing.assert_allclose(kept[:3], own, rtol=2e-3, atol=1e-2)
  assert json.loads((workdir / 'config.json').read_text())['teacher']['members'] == 5
  assert value(workdir, 'cost', 'ensemble', 'parameters') == 3 * 17610 + 2 * (64 * 130 + 130 + 130 * 10 + 10)
  wrong = '--config.data.train=test'
  done = hydra_jax('run', '--config=configs/digits.py', teacher, wrong, f'--workdir={tmp_path / "no"}')
  assert done.returncode == 2 and 'trained on other data' in done.stderr, done.stderr
  assert not (tmp_path / 'no').exists()
  done = hydra_jax(
    'run', '--config=configs/digits.py', "--config.teacher.checkpoints=('/nowhere',)", f'--workdir={tmp_path / "no"}'
  )
  assert done.returncode == 2 and 'holds 0 trained teachers' in done.stderr, done.stderr


# As shipped but for the networks, which would take longer to compile than all other tests together.
SMALL_NETWORKS = """
import importlib.util
from ml_collections import ConfigDict

def get_config(argument=None):
  spec = importlib.util.spec_from_file_location('shipped', '{config}')
  shipped = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(shipped)
  config = shipped.get_config(argument)
  for role in ('teacher', 'student'):
    config.network[role] = ConfigDict(dict(name='lenet'))
  return config
"""


def test_imagenet_runs_on_a_miniature(miniatures, tmp_path):
  config = tmp_path / 'imagenet.py'
  config.write_text(SMALL_NETWORKS.format(config=ROOT / 'configs' / 'imagenet.py'))
  small = ['--config.data.image_size=16', '--config.evaluation.batch_size=8', '--config.teacher.batch_size=10']
  small += ["--config.students=('hydra',)", '--config.student.hydra.batch_size=10']
  small += ['--config.student.hydra.hinton_epochs=0']
  found = finishes(tmp_path / 'run', f'{config}:members=2,epochs=1', *small, data_dir=miniatures)
  assert {r['n'] for r in found if r['split'] == 'test'} == {9}
  assert not list(tmp_path.glob('run/artifacts/predictions-*'))


@needs_uci('energy')
def test_uci_runs_over_its_splits(tmp_path):
  """Two splits at once are two splits alone; and each split finds its own teacher in a run of all."""
  config, few = 'configs/uci.py:energy,members=3,epochs=1,replicas=2', "--config.students=('kd',)"
  together = finishes(tmp_path / 'run', config, few)
  rmse = [r['value'] for r in together if r['metric'] == 'rmse' and r['split'] == 'test']
  assert len(rmse) == 4 and all(1 < v < 30 for v in rmse)
  assert ' ± ' in (tmp_path / 'run' / 'table.md').read_text()
  assert len(list(tmp_path.glob('run/artifacts/labels-*'))) == 1

  alone = finishes(tmp_path / 'alone', config, few, '--config.execution.replicas_together=1')
  assert len(list(tmp_path.glob('alone/artifacts/labels-*'))) == 2
  ours, theirs = ([{k: r[k] for k in KEYS if k != 'value'} for r in found] for found in (together, alone))
  by = lambda r: (r['replica'], r['method'], r['split'], r['metric'])
  assert sorted(ours, key=by) == sorted(theirs, key=by)
  for mine, yours in zip(sorted(together, key=by), sorted(alone, key=by)):
    np.testing.assert_allclose(mine['value'], yours['value'], rtol=2e-3, atol=2e-3, err_msg=str(mine))

  again = f"--config.teacher.checkpoints=('{tmp_path / 'run'}',)"
  found = finishes(tmp_path / 'again', config, '--config.students=()', again)
  of_ensemble = lambda rows: {
    (r['replica'], r['split'], r['metric']): r['value'] for r in rows if r['method'] == 'ensemble'
  }
  ensembles = of_ensemble(together)
  for key, found_value in of_ensemble(found).items():
    np.testing.assert_allclose(found_value, ensembles[key], rtol=1e-5, atol=1e-6)


def test_each_phase_compiles_once(tmp_path, caplog):
  """For both replicas together: one program for each phase, however many calls and whatever their length."""
  config = default_config()
  config.name, config.data.name = 'digits', 'digits'
  config.replicas, config.teacher.members, config.students = 2, 3, ('hydra',)
  config.training.epochs = 4.0
  config.student.hydra.hinton_epochs = 4.0
  with jax.log_compiles():
    runs.run(config, tmp_path / 'run', DATA_DIR)
  compiled = [r for r in caplog.records if 'Finished XLA compilation of jit(training)' in r.getMessage()]
  assert len(compiled) == len(list(tmp_path.glob('run/artifacts/labels-*'))) + len(
    [p for name in ('mean-prediction', 'members') for p in tmp_path.glob(f'run/artifacts/{name}-*')]
  )
  seeds = [
    artifacts.load(str(tmp_path / 'run'), datasets.load(config.data, DATA_DIR, r, config.validation), r)
    for r in range(2)
  ]
  assert seeds[0][1] != seeds[1][1]
  assert not np.allclose(*(jax.tree.leaves(model.params)[1] for model, _ in seeds))


N_ROWS, FOLDS = 60, 3


def taught(folder, y):
  """What 2 members teach a student on each input, by networks that have not seen it; and the fold of each input."""
  x = np.linspace(-1, 1, N_ROWS, dtype=np.float32)[:, None]
  folder.mkdir()
  np.savez(folder / 'rows.npz', x=x, y=y.astype(np.float32), x_test=x[:9], y_test=y[:9].astype(np.float32))
  config = default_config()
  config.name = 'folds'
  config.data.name, config.data.task, config.validation = str(folder / 'rows.npz'), 'regression', 0.0
  config.students, config.teacher.members, config.teacher.epochs = ('kd',), 2, 20.0
  config.training.batch_size, config.distillation.epochs, config.distillation.folds = 16, 2.0, FOLDS
  runs.run(config, folder / 'run', '')
  (file,) = (folder / 'run' / 'artifacts').glob('predictions-*/predictions.npy')
  return np.load(file)


def test_with_folds_no_label_reaches_what_is_taught_on_its_own_input(tmp_path):
  """The labels of two inputs of one fold are exchanged, so that their mean stays. What is taught there stays too."""
  fold = of_rows(N_ROWS, FOLDS, (0, 0))
  y = np.sin(4 * np.linspace(-1, 1, N_ROWS))
  here, there = np.flatnonzero(fold == 1)[[0, -1]]
  y[[here, there]] = 9.0, -9.0
  other = y.copy()
  other[[here, there]] = -9.0, 9.0
  before, after = taught(tmp_path / 'before', y), taught(tmp_path / 'after', other)
  assert before.shape[:2] == (2, N_ROWS)
  np.testing.assert_allclose(before[:, fold == 1], after[:, fold == 1], rtol=1e-3, atol=1e-4)
  moved = np.abs(before - after).max(axis=-1).min(axis=0)
  assert np.median(moved[fold != 1]) > 0.01


def test_with_folds_members_are_trained_once_for_all_students(tmp_path):
  """The ensemble is that of a run without folds; students of equal folds share what teaches them."""
  folds = ["--config.students=('kd','endd','hydra')", '--config.student.hydra.augment=()']
  folds += ['--config.student.kd.folds=2', '--config.student.endd.folds=2']
  plain = hydra_jax('run', *TINY, "--config.students=('kd',)", f'--workdir={tmp_path / "plain"}')
  done = hydra_jax('run', *TINY, *folds, f'--workdir={tmp_path / "run"}')
  assert plain.returncode == done.returncode == 0, done.stderr
  parts = sorted(p.name.rpartition('-')[0] for p in (tmp_path / 'run' / 'artifacts').iterdir())
  assert (parts.count('folds'), parts.count('predictions'), parts.count('labels')) == (1, 2, 1)
  assert 'ensemble, 2 folds of 6' in done.stdout
  for metric in ('nll', 'uncertainty_epistemic'):
    assert value(tmp_path / 'plain', 'test', 'ensemble', metric) == value(tmp_path / 'run', 'test', 'ensemble', metric)
  assert value(tmp_path / 'plain', 'test', 'kd', 'nll') != value(tmp_path / 'run', 'test', 'kd', 'nll')


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--config.student.kd.folds=5000'], 'config.student.kd.folds: 5000 folds of'),
    (['--config.student.kd.folds=2', "--config.student.kd.augment=('noise',)"], 'config.student.kd.folds: predictions'),
    (
      ['--config.student.kd.folds=2', "--config.student.kd.unlabelled=('digits',)"],
      'kd.unlabelled: config.student.kd.f',
    ),
    (['--config.student.kd.folds=2', "--config.teacher.augment=('mixup',)"], "'mixup' in config.teacher.augment mixes"),
    (
      ['--config.student.kd.folds=2', "--config.teacher.checkpoints=('{run}',)"],
      'config.teacher.checkpoints are trained',
    ),
  ],
)
def test_folds_that_cannot_be(flags, said, tiny_run, tmp_path):
  """Before anything is trained."""
  flags = [flag.format(run=tiny_run[0]) for flag in flags]
  done = hydra_jax('run', *TINY, "--config.students=('kd',)", *flags, f'--workdir={tmp_path / "run"}')
  assert done.returncode == 2 and said in done.stderr, done.stderr
  assert not (tmp_path / 'run').exists()
