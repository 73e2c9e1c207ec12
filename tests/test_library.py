"""The package as a library: arrays in, numbers and predictors out."""

import ast
import json
import logging
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

import hydra_jax
from hydra_jax import UserError, cli, data as datasets
from hydra_jax.data import toy
from hydra_jax.experiment.config import default_config

M, N, C, D = 4, 50, 3, 2


def test_every_public_name_is_there():
  for name in hydra_jax.__all__:
    assert getattr(hydra_jax, name).__doc__, name
  assert set(hydra_jax.__all__) <= set(dir(hydra_jax))


def test_type_checkers_see_the_names_that_are_there():
  """What is imported for type checkers, what is found lazily, and what is public are the same names."""
  tree = ast.parse(Path(hydra_jax.__file__).read_text())
  (block,) = [node for node in tree.body if isinstance(node, ast.If)]
  typed = {alias.name: node.module for node in block.body for alias in node.names}
  folders, modules = hydra_jax._FOLDERS, hydra_jax._MODULES
  assert typed == {name: f'hydra_jax.{place}' for name, place in (folders | modules).items()}
  assert sorted(typed) == sorted(hydra_jax.__all__)


def test_public_names_shadow_no_library():
  taken = sys.stdlib_module_names | {'jax', 'flax', 'optax', 'numpy', 'scipy', 'sklearn', 'nnx', 'linen', 'equinox'}
  assert not taken & set(hydra_jax.__all__)


def test_importing_it_sets_nothing():
  """Neither JAX nor a plotting backend is imported with it."""
  probe = 'import hydra_jax, sys; print([m for m in ("jax", "matplotlib", "flax") if m in sys.modules])'
  done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True, cwd=ROOT, check=True)
  assert done.stdout.strip() == '[]'


def softmax(logits):
  return np.exp(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def test_logits_are_scored(random):
  logits, y = random.normal(size=(M, N, C)) * 2, random.integers(C, size=N)
  found = hydra_jax.evaluate(logits, y)
  p = softmax(logits)
  mean = p.mean(axis=0)
  assert found['accuracy'] == pytest.approx(sklearn_metrics.accuracy_score(y, mean.argmax(-1)))
  assert found['nll'] == pytest.approx(sklearn_metrics.log_loss(y, mean, labels=range(C)), rel=1e-5)
  assert found['brier'] == pytest.approx(np.square(mean - np.eye(C)[y]).sum(-1).mean(), rel=1e-5)
  total, aleatoric = stats.entropy(mean, axis=-1).mean(), stats.entropy(p, axis=-1).mean()
  assert found['uncertainty_total'] == pytest.approx(total, rel=1e-5)
  assert found['uncertainty_aleatoric'] == pytest.approx(aleatoric, rel=1e-5)
  assert found['uncertainty_epistemic'] == pytest.approx(total - aleatoric, rel=1e-4)


@pytest.mark.parametrize('unit, shift', [(1.0, 0.0), (1e-9, 0.0), (3.0, 1e9)])
def test_gaussians_are_scored_in_any_unit(unit, shift, random):
  mean, variance = random.normal(size=(M, N, D)), random.uniform(0.5, 2, (M, N, D))
  y = random.normal(size=(N, D))
  found = hydra_jax.evaluate((mean * unit + shift, variance * unit**2), y * unit + shift)
  density = stats.norm.logpdf(y, mean, np.sqrt(variance)).sum(-1)
  nll = -np.log(np.exp(density).mean(axis=0)).mean() + D * np.log(unit)
  assert found['nll'] == pytest.approx(nll, rel=1e-4, abs=1e-4)
  each = np.sqrt(np.square(mean.mean(axis=0) - y).mean(axis=0))
  assert found['rmse'] == pytest.approx(each.mean() * unit, rel=1e-4)
  assert [found['rmse_0'], found['rmse_1']] == pytest.approx(each * unit, rel=1e-4)


@pytest.mark.parametrize(
  'outputs, y, words',
  [
    (np.zeros((M, N)), np.zeros(N, int), 'give logits'),
    (np.zeros((M, N, C)), np.zeros(N), 'whole numbers from 0 to 2'),
    (np.zeros((M, N, C)), np.full(N, C), 'whole numbers from 0 to 2'),
    (np.zeros((M, N, C)), np.zeros(N + 1, int), 'give logits'),
    (np.full((M, N, C), np.nan), np.zeros(N, int), 'finite'),
    (np.zeros((M, 0, C)), np.zeros(0, int), 'give logits'),
    ((np.zeros((M, N)), np.full((M, N), np.nan)), np.zeros(N), 'more than 0'),
    ((np.zeros((M, N)), np.ones((M, N))), np.full(N, np.nan), 'y must be finite'),
    ((np.zeros((M, N)), np.zeros((M, N))), np.zeros(N), 'more than 0'),
    ((np.zeros((M, N, D)), np.ones((M, N, D))), np.zeros(N), 'alike'),
  ],
)
def test_what_does_not_fit_is_refused(outputs, y, words):
  with pytest.raises(UserError, match=words):
    hydra_jax.evaluate(outputs, y)


def teachers(random):
  """Linear members that differ, and inputs in odd units."""
  x = random.normal(size=(400, 5))
  logits = np.einsum('nf,mfc->mnc', x, random.normal(size=(M, 5, C)) + 2 * random.normal(size=(1, 5, C)))
  return 1e6 + 3 * x, logits


@pytest.mark.slow
@pytest.mark.parametrize('method', ['hydra', 'kd', 'endd', 'dlf'])
def test_an_ensemble_in_an_array_is_distilled(method, random):
  x, logits = teachers(random)
  settings = {'epochs': 60.0, 'batch_size': 50} | ({'temperature': 1.0} if method in ('hydra', 'kd') else {})
  student = hydra_jax.distil(x[:300], logits[:, :300], method, seed=1, **settings)
  found, p = student.predict(x[300:]), softmax(logits[:, 300:])
  assert np.abs(found.mean - p.mean(axis=0)).mean() < 0.06
  np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, rtol=1e-4, atol=1e-6)
  disagreement = stats.entropy(p.mean(axis=0), axis=-1) - stats.entropy(p, axis=-1).mean(axis=0)
  if method == 'kd':
    assert not found.epistemic.any()
  else:
    assert stats.spearmanr(found.epistemic, disagreement).statistic > 0.5
  if method == 'hydra':
    assert found.members.shape == (M, 100, C)
    for m in range(M):
      apart = [np.abs(found.members[m] - p[k]).mean() for k in range(M)]
      assert np.argmin(apart) == m
  assert (found.members is None) == (method == 'endd')


@pytest.mark.slow
@pytest.mark.parametrize('shift, unit', [(1e3, 50), (1e9, 3)])
def test_an_ensemble_of_regressors_is_distilled(shift, unit, random):
  x = random.normal(size=(400, 3))
  mean = shift + unit * (x @ random.normal(size=3) + 0.3 * np.stack([np.sin(x[:, 0] + m) for m in range(M)]))
  variance = np.full_like(mean, unit**2 / 100)
  given = mean[:, :300], variance[:, :300]
  student = hydra_jax.distil(x[:300], given, epochs=100.0, batch_size=50, learning_rate=1e-2)
  found = student.predict(x[300:])
  assert found.mean.shape == (100, 1) and found.members.shape == (M, 100, 1)
  assert np.corrcoef(found.mean[:, 0], mean[:, 300:].mean(axis=0))[0, 1] > 0.98
  assert np.median(found.aleatoric) == pytest.approx(unit**2 / 100, rel=0.5)
  np.testing.assert_allclose(found.total, found.aleatoric + found.epistemic, rtol=1e-4)


@pytest.mark.slow
def test_images_of_bytes_are_not_taken_for_shares(random):
  """A network that has learnt from bytes would read numbers from 0 to 1 as black, and say nothing."""
  x = random.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
  student = hydra_jax.distil(x, random.normal(size=(M, 40, C)), epochs=1.0)
  expected = student.predict(x).mean
  np.testing.assert_array_equal(student.predict(x.astype(int)).mean, expected)
  for wrong in (x / 255, x.astype(np.float32), x.astype(int) + 1):
    with pytest.raises(UserError, match='whole numbers from 0 to 255'):
      student.predict(wrong)


@pytest.mark.parametrize('content', ['[]', '{"hydra": 3}', '{"hydra": [["..", 0]]}', '{"hydra": [["a", -1]]}', '{'])
def test_a_damaged_list_of_models_is_one_line(tmp_path, content):
  (tmp_path / 'models.json').write_text(content)
  with pytest.raises(UserError, match='damaged|unknown method|missing'):
    hydra_jax.load(tmp_path, 'hydra')


@pytest.mark.parametrize(
  'change, words',
  [
    ({'method': 'hydro'}, "did you mean 'hydra'"),
    ({'method': 'single'}, 'learns from labels alone'),
    ({'temprature': 2.0}, "did you mean 'temperature'"),
    ({'epochs': -1.0}, 'epochs=-1.0'),
    ({'augment': ('noise',)}, 'use a config'),
    ({'label_weight': 0.5}, 'label_weight needs labels'),
    ({'unlabelled': ('digits',)}, 'unlabelled needs'),
    ({'teacher': np.zeros((M, 9, C))}, '20 examples'),
    ({'teacher': np.full((M, 20, C), np.inf)}, 'finite'),
    ({'x': np.full((20, 5), np.nan)}, 'x '),
    ({'cut': 9}, 'outside this network'),
  ],
)
def test_what_cannot_be_distilled_is_refused(change, words, random):
  given = {'x': random.normal(size=(20, 5)), 'teacher': np.zeros((M, 20, C))} | change
  with pytest.raises(UserError, match=words):
    hydra_jax.distil(**given)


@pytest.mark.slow
def test_what_a_run_has_trained_is_loaded(tiny_run):
  workdir, _ = tiny_run
  x, y = toy.digits('test')
  rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  scores = {(r['method'], r['metric']): r['value'] for r in rows if r['split'] == 'test'}
  for method in ('ensemble', 'single', 'kd', 'hydra'):
    predictor = hydra_jax.load(workdir, method)
    found = predictor.predict(x)
    assert predictor.shape == (8, 8, 1) and predictor.task == 'classification' and found.mean.shape == (len(y), 10)
    assert np.mean(found.mean.argmax(-1) == y) == pytest.approx(scores[method, 'accuracy'])
    assert np.mean(found.epistemic) == pytest.approx(scores[method, 'uncertainty_epistemic'], rel=1e-4, abs=1e-7)
    np.testing.assert_allclose(found.members.mean(axis=0), found.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(predictor.predict(x[:7], batch_size=3).mean, found.mean[:7], rtol=1e-4, atol=1e-6)
  data = datasets.load(default_config().data, '', 0, default_config().validation)
  np.testing.assert_array_equal(predictor.model.scaling.x_shift, data.scaling.x_shift)
  with pytest.raises(UserError, match="did you mean 'hydra'"):
    hydra_jax.load(workdir, 'hydar')
  with pytest.raises(UserError, match='1 replicas'):
    hydra_jax.load(workdir, 'hydra', replica=1)
  with pytest.raises(UserError, match='no folder of a finished run'):
    hydra_jax.load(workdir / 'parts', 'hydra')
  with pytest.raises(UserError, match='inputs of shape'):
    predictor.predict(x[:, :4])


LOGGED = """
import logging, sys
import hydra_jax, hydra_jax.config
from hydra_jax.data import load
for name in hydra_jax.__all__:
  getattr(hydra_jax, name)
package = logging.getLogger('hydra_jax')
assert not logging.getLogger().handlers and not package.handlers and package.propagate and package.level == 0
if sys.argv[2:]:
  logging.basicConfig(level=logging.INFO, format='%(levelname)s:%(name)s:%(message)s')
config = hydra_jax.config.default_config().data
config.name, config.ood = sys.argv[1], ()
load(config, '', 0)
"""


@pytest.mark.parametrize('asked', [False, True])
def test_warnings_are_shown_by_default_and_all_lines_if_logging_is_set_up(asked, tmp_path):
  """As in a notebook. Importing the package sets nothing up."""
  x, file = np.random.default_rng(0).normal(size=(6, 2)), tmp_path / 'mine.npz'
  y, seven = [0, 1] * 3, np.full(6, 7.0)
  np.savez(file, x=np.c_[x, seven], y=y, x_test=np.c_[x, seven + 1], y_test=y)
  python = [sys.executable, '-c', LOGGED, str(file), *['asked'] * asked]
  done = subprocess.run(python, capture_output=True, text=True, cwd=ROOT, check=False)
  assert done.returncode == 0 and done.stdout == '', done.stderr
  warning = f"{file}: 'x_test': feature 2 is 7 in every training example, and varies here"
  if not asked:
    assert done.stderr.splitlines() == [warning]
  else:
    assert re.search(rf'WARNING:hydra_jax\.data[.\w]*:{re.escape(warning)}', done.stderr)
    assert f"INFO:hydra_jax.data:{file}: 'y' holds" in done.stderr


def test_a_command_shows_lines_on_the_console_and_leaves_logging_as_it_was(capsys, monkeypatch):
  package = logging.getLogger('hydra_jax')
  monkeypatch.setattr(
    cli, 'check', lambda *_: (package.info('50% of [red]'), package.warning('odd'), package.debug('x'))
  )
  assert cli.main(['check', '--config=x.py']) == 0
  assert capsys.readouterr() == ('50% of [red]\nodd\n', '')
  assert not package.handlers and package.propagate and package.level == logging.NOTSET
