"""DDU: its Gaussians against SciPy in float64, the fit in batches, and a run with all that reads its results."""

import json

from conftest import ROOT
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import hydra_jax
from hydra_jax import cli
from hydra_jax.data import Scaling
from hydra_jax.evaluation import evaluate
from hydra_jax.maths import density, uncertainty
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import MethodContext
from hydra_jax.methods.registry import METHODS
from hydra_jax.report import figures
from hydra_jax.training import fits

N, D, C = 60, 4, 3


def examples(random, rank=D):
  """Features of rank `rank`, and labels, of which some are −1 (none)."""
  y = random.integers(-1, C, size=N)
  x = random.normal(size=(N, rank)) @ random.normal(size=(rank, D)) + 3 * random.normal(size=(C + 1, D))[y]
  return x, y


def gaussians_of(x, y, weight=None):
  weight = np.ones(len(x)) if weight is None else weight
  f, y, weight = jnp.float32(x), jnp.int32(y), jnp.float32(weight)
  found = jax.tree.map(np.float64, density.sums(f, y, weight, C))
  mean = found['features'] / np.maximum(found['count'], 1)[:, None]
  return density.fitted(found['count'], mean, np.float64(density.products(f, y, weight, jnp.float32(mean))))


def test_the_density_is_that_of_scipy(random):
  x, y = examples(random)
  new = x + random.normal(size=x.shape)
  expected = [
    np.log(np.mean(y[y >= 0] == c))
    + scipy.stats.multivariate_normal.logpdf(new, x[y == c].mean(axis=0), np.cov(x[y == c].T))
    for c in range(C)
  ]
  found = density.log_density(gaussians_of(x, y), jnp.float32(new))
  np.testing.assert_allclose(found, scipy.special.logsumexp(expected, axis=0), rtol=1e-3)


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_singular_covariances_get_the_least_jitter_that_works(random, scale):
  """Dependent features, a feature that is always 0 as of a dead unit, a class with one example, and one without."""
  x, y = examples(random, rank=2)
  x[:, 0] = 0
  y[y == 1] = 0
  y[0] = 1
  x *= scale
  y[y == 2] = 0
  covariance = np.stack([np.cov(x[y == c].T) if np.sum(y == c) > 1 else np.zeros((D, D)) for c in range(C)])
  jitter = density.jitter_for(covariance)
  assert 0 < jitter < 1e-4 * np.max(covariance)
  found = gaussians_of(x, y)
  assert all(np.isfinite(each).all() for each in found)
  near, far = (np.asarray(density.log_density(found, jnp.float32(at))) for at in (x[y >= 0], 3 * x[y >= 0] + scale))
  assert np.isfinite(far).all() and far.max() < near.min()


def test_features_that_are_not_finite_are_refused():
  with pytest.raises(ValueError, match='not finite'):
    density.jitter_for(np.full((1, 2, 2), np.nan))


def trained_like(random, count=2):
  """The phase of `ddu`, and parameters and state of some replicas, as they are before the fit."""
  stages = lambda predictive, times=1: hydra_jax.mlp(C, (6,))
  (phase,) = METHODS['ddu'].phases(METHODS['ddu'].settings(), MethodContext(TASKS['classification'], stages, 1))
  data = [{'x': np.float32(x), 'y': np.int32(y)} for x, y in (examples(random) for _ in range(count))]
  keys = jax.random.split(jax.random.key(0), count)
  trees = [phase.network.init(key, jnp.asarray(each['x'])) for key, each in zip(keys, data, strict=True)]
  return phase, data, jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def no_scaling(count):
  return Scaling(*(np.full((count, 1), v, np.float32) for v in (0, 1, 0, 1)))


def test_the_fit_in_batches_and_of_several_replicas_is_that_of_each_at_once(random):
  phase, data, (params, state) = trained_like(random)
  pairs = [(fit.measure, fit.solve) for fit in phase.fits]
  found = fits.fitted(pairs, params, state, fits.batches_of_arrays(data, 7), no_scaling(2))
  for i, each in enumerate(data):
    one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (params, state))
    alone = fits.fitted(pairs, *one, fits.batches_of_arrays([each], N), no_scaling(1))
    for name, leaf in alone['density'].items():
      size = np.abs(leaf).max()
      np.testing.assert_allclose(found['density'][name][i] / size, leaf[0] / size, atol=1e-2, err_msg=name)
    # The network is trained on logits alone, and predicts the density besides.
    params_1, state_1 = jax.tree.map(lambda leaf: leaf[0], (one[0], alone))
    logits, kept = phase.network.apply(params_1, state_1, each['x'], None, True)
    outputs, _ = phase.network.apply(params_1, state_1, each['x'])
    np.testing.assert_allclose(outputs[..., :C], logits, rtol=1e-5)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept['density'], state_1['density']))
    body = hydra_jax.mlp(C, (6,))[0]
    hidden, _ = body.apply(params_1['body'][0], (), each['x'], None, False)
    expected = density.log_density(gaussians_of(hidden, each['y']), hidden)
    np.testing.assert_allclose(-outputs[0, :, C], expected, rtol=2e-2, atol=0.1)


def test_a_score_is_no_part_of_the_total(random):
  outputs = jnp.float32(random.normal(size=(1, 5, C + 1)))
  task = TASKS['classification']
  scores = task.scores(task.predictives['density'].read(outputs), jnp.zeros(5, jnp.int32))
  scores = jax.tree.map(np.asarray, scores)
  np.testing.assert_allclose(scores['uncertainty_total'], scores['uncertainty_aleatoric'])
  assert not uncertainty.has_size(scores)
  assert 'uncertainty_epistemic' not in evaluate.averages(scores, task, 5)


@pytest.mark.slow
def test_a_run_on_eight_devices(tmp_path, monkeypatch):
  """Out-of-domain inputs have the least density; what was saved predicts, is calibrated, and is exported."""
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  monkeypatch.setattr(figures, 'draw_all', lambda *args, **kwargs: None)
  monkeypatch.chdir(ROOT)
  flags = ['--config=configs/digits.py:members=1,epochs=3,replicas=2', "--config.students=('ddu','single')"]
  flags += ["--config.data.ood=('letters',)", "--config.data.shifts=('rotate:30',)"]
  flags += [f'--config.network.{role}.widths=(16,16)' for role in ('teacher', 'student')]
  assert jax.device_count() == 8
  assert cli.main(['run', *flags, f'--workdir={tmp_path / "run"}']) == 0
  found = {}
  for row in map(json.loads, (tmp_path / 'run' / 'results.jsonl').read_text().splitlines()):
    found.setdefault((row['split'], row['method'], row['metric']), []).append(row['value'])
  by_density, by_entropy = (found['letters', 'ddu', f'auroc_{by}'] for by in uncertainty.RANKINGS[::-1])
  assert np.mean(by_density) > 0.7
  np.testing.assert_allclose(by_entropy, found['letters', 'single', 'auroc_uncertainty_total'], atol=0.02)
  np.testing.assert_allclose(found['test', 'ddu', 'nll'], found['test', 'single', 'nll'], rtol=0.05)
  meaningless = ('uncertainty_epistemic', 'uncertainty_epistemic_ratio')
  assert not [key for key in found if key[1] == 'ddu' and key[2] in meaningless]
  (line,) = [line for line in (tmp_path / 'run' / 'table.md').read_text().splitlines() if line.startswith('| ddu ')]
  assert ' – |' in line
  predictor = hydra_jax.load(tmp_path / 'run', 'ddu')
  x = np.random.default_rng(0).integers(17, size=(60, 8, 8, 1)).astype(np.uint8)
  y = predictor.predict(x).mean.argmax(axis=1)
  calibrated = hydra_jax.calibrate(predictor, x, y)
  assert calibrated.calibration.ranking == 'epistemic'
  hydra_jax.save(calibrated, tmp_path / 'model')
  again = hydra_jax.load(tmp_path / 'model')
  np.testing.assert_array_equal(again.out_of_domain(x), calibrated.out_of_domain(x))
  file = tmp_path / 'model.stablehlo'
  assert cli.main(['export', str(tmp_path / 'model'), '--format=stablehlo', f'--output={file}']) == 0
  assert 'log of the density' in (tmp_path / 'model.stablehlo.json').read_text()
