"""Scores of targets: in their units, whatever these are, and of several targets each and all."""

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from hydra_jax import data as datasets
from hydra_jax.data import Data, Scaling, Split
from hydra_jax.evaluation import evaluate
from hydra_jax.experiment.config import default_config
from hydra_jax.maths import calibration, losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.maths.uncertainty import WORDS
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp

M, N, F = 4, 400, 3
REGRESSION = TASKS['regression']


def drawn(targets, shift=0.0, scale=1.0):
  """Gaussian members `[M, N, D]` and targets `[N, D]` that they predict, in units of `shift + scale · x`, float64."""
  random = np.random.default_rng(targets)
  mean = random.normal(size=(1, N, targets)) + 0.3 * random.normal(size=(M, N, targets))
  sd = random.uniform(0.2, 0.6, size=(M, N, targets))
  y = mean[0] + sd[0] * random.normal(size=(N, targets))
  return shift + scale * mean, np.square(scale * sd), shift + scale * y


def scored(mean, var, y, label_scale=None):
  """Scores by the evaluation, of outputs that a network with this scaling would give."""
  scaling = Scaling(np.zeros(1), np.ones(1), *datasets.moments(y))
  outputs = losses.gaussian_outputs((mean - scaling.y_shift) / scaling.y_scale, var / np.square(scaling.y_scale))
  split = Split(np.zeros((N, 1)), y)
  read = REGRESSION.predictives['members'].read
  return evaluate.score_outputs(outputs.astype(np.float32), split, read, 'regression', scaling, 150, label_scale)


def crps(mean, var, y):
  """E|X − y| − ½ E|X − X'| of a mixture `[M, N]` in float64."""

  def distance(shift, var):
    sd = np.sqrt(var)
    return 2 * sd * scipy.stats.norm.pdf(shift / sd) + shift * (2 * scipy.stats.norm.cdf(shift / sd) - 1)

  between = distance(mean[:, None] - mean[None], var[:, None] + var[None]).mean(axis=(0, 1))
  return distance(y - mean, var).mean(axis=0) - between / 2


@pytest.mark.parametrize('targets', [1, 3])
def test_calibrated_scores_are_those_of_scaled_variances(targets):
  mean, var, y = drawn(targets, 100, 7)
  found = scored(mean, var, y, 2.5)
  np.testing.assert_allclose(found['nll_calibrated'], scored(mean, 2.5 * var, y)['nll'], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(found['nll'], scored(mean, var, y)['nll'])
  assert 'nll_calibrated' not in scored(mean, var, y)


@pytest.mark.parametrize('targets', [1, 3])
def test_single_members_and_label_calibration_in_units_of_the_targets(targets):
  mean, var, y = drawn(targets, 100, 7)
  scaling = Scaling(np.zeros(1), np.ones(1), *datasets.moments(y))
  split, read = Split(np.zeros((N, 1)), y), REGRESSION.predictives['members'].read
  outputs = losses.gaussian_outputs((mean - scaling.y_shift) / scaling.y_scale, var / np.square(scaling.y_scale))
  density = scipy.stats.norm.logpdf(y, mean, np.sqrt(var)).sum(axis=-1)
  found = evaluate.label_nll(outputs.astype(np.float32), split, REGRESSION, scaling, 150)
  np.testing.assert_allclose(found, -density, rtol=1e-4, atol=1e-4)
  scale = evaluate.label_scale_of(outputs, split, read, REGRESSION, scaling)
  assert scale == pytest.approx(calibration.variance_scale(mean, var, y), rel=1e-4)


@pytest.mark.parametrize('shift, scale', [(0, 1), (1e9, 3), (0, 1e20), (5e-20, 1e-20), (-1e6, 1e-3), (3e4, 1e4)])
def test_scores_of_one_target_in_any_unit(shift, scale):
  mean, var, y = drawn(1, shift, scale)
  found = scored(mean, var, y)
  density = scipy.stats.norm.pdf((y - mean) / np.sqrt(var)).squeeze(-1) / np.sqrt(var).squeeze(-1)
  cdf = scipy.stats.norm.cdf(y, mean, np.sqrt(var)).mean(axis=0)[:, 0]
  expected = {
    'squared_error': np.square(mean.mean(axis=0) - y)[:, 0],
    'nll': -np.log(density.mean(axis=0)),
    'crps': crps(mean[..., 0], var[..., 0], y[..., 0]),
    'pit': cdf,
    'uncertainty_aleatoric': var.mean(axis=0)[:, 0],
    'uncertainty_epistemic': mean.var(axis=0)[:, 0],
    'uncertainty_total': (var.mean(axis=0) + mean.var(axis=0))[:, 0],
  }
  for name, values in expected.items():
    assert found[name].shape == (N,) and found[name].dtype == np.float64
    np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-6 * np.abs(values).max(), err_msg=name)
  assert found['covered'].mean() == np.mean(np.abs(cdf - 0.5) <= 0.475) and 0.9 < found['covered'].mean() <= 1
  rmse = sklearn.metrics.root_mean_squared_error(y, mean.mean(axis=0))
  assert REGRESSION.summary(found, 15) == {'rmse': pytest.approx(rmse, rel=1e-5)}


def test_several_targets_are_scored_one_by_one_and_together():
  """In units as different as euros and metres, of which no sum makes sense."""
  mean, var, y = drawn(3, np.array([0, 1e9, -2]), np.array([1, 1e4, 1e-5]))
  found = scored(mean, var, y)
  summary = REGRESSION.summary(found, 15)
  each = sklearn.metrics.root_mean_squared_error(y, mean.mean(axis=0), multioutput='raw_values')
  np.testing.assert_allclose([summary[f'rmse_{d}'] for d in range(3)], each, rtol=1e-5)
  np.testing.assert_allclose(summary['rmse'], sklearn.metrics.root_mean_squared_error(y, mean.mean(axis=0)), rtol=1e-5)
  of_each = np.stack([crps(mean[..., d], var[..., d], y[..., d]) for d in range(3)], axis=-1)
  np.testing.assert_allclose([summary[f'crps_{d}'] for d in range(3)], of_each.mean(axis=0), rtol=1e-4)
  np.testing.assert_allclose(found['crps'], of_each.mean(axis=-1), rtol=1e-4)
  assert set(summary) == {'rmse', *(f'{name}_{d}' for name in ('rmse', 'crps') for d in range(3))}
  # The density is that of all targets at once; it has a unit, as each of its factors has.
  joint = scipy.stats.norm.logpdf(y, mean, np.sqrt(var)).sum(axis=-1)
  np.testing.assert_allclose(found['nll'], np.log(M) - scipy.special.logsumexp(joint, axis=0), rtol=1e-4, atol=1e-4)
  # Variances, which rank examples, count each target in units of what it varies by.
  np.testing.assert_allclose(
    found['uncertainty_epistemic'], np.mean(mean.var(axis=0) / y.var(axis=0), axis=-1), rtol=1e-4
  )
  np.testing.assert_allclose(
    found['uncertainty_total'], found['uncertainty_aleatoric'] + found['uncertainty_epistemic'], rtol=1e-6
  )
  np.testing.assert_allclose(
    found['squared_error'], np.mean(np.square(mean.mean(axis=0) - y) / y.var(axis=0), axis=-1), rtol=1e-3, atol=1e-6
  )
  cdf = scipy.stats.norm.cdf(y, mean, np.sqrt(var)).mean(axis=0)
  np.testing.assert_allclose(np.stack([found[f'pit_{d}'] for d in range(3)], axis=-1), cdf, atol=1e-4)
  np.testing.assert_allclose(found['covered'].mean(), np.mean(np.abs(cdf - 0.5) <= 0.475), atol=1e-3)


def of_file(tmp_path, x_unit=1.0, y_unit=1.0, x_shift=0.0, y_shift=0.0, dtype=np.float64) -> Data:
  random = np.random.default_rng(0)
  x = random.normal(size=(2 * N, F))
  y = 3 * x[:, 0] + np.sin(2 * x[:, 1]) + 0.3 * random.normal(size=2 * N)
  x, y = (x_shift + x_unit * x).astype(dtype), (y_shift + y_unit * y).astype(dtype)
  np.savez(tmp_path / 'units.npz', x=x[:N], y=y[:N], x_test=x[N:], y_test=y[N:], x_far=x[:N] + 9 * x_unit)
  config = default_config().data
  config.name, config.shifts, config.ood = str(tmp_path / 'units.npz'), ('jitter:0.5',), ('far',)
  return datasets.load(config, '', 0)


UNITS = [
  dict(x_unit=1e-9),
  dict(x_unit=1e-3, x_shift=1e6),
  dict(x_unit=1e20, y_unit=1e20),
  dict(x_unit=1e-20, y_unit=1e-20),
  dict(y_unit=3, y_shift=1e9),
  dict(x_unit=1e-9, y_unit=1e20, dtype=np.float32),
  dict(x_unit=1e-2, x_shift=100, y_unit=1e-2, y_shift=10),
]


@pytest.mark.parametrize('units', UNITS, ids=map(str, UNITS))
def test_units_change_nothing_but_the_unit_of_the_scores(tmp_path, units):
  """What the network reads and learns is the same, and what it predicts is scored in the units of the file."""
  plain, found = of_file(tmp_path), of_file(tmp_path, **units)
  digits = 1e-5 if 'dtype' in units else 1e-6
  read = lambda data, split: split.arrays(data.scaling)
  splits = lambda data: [data.train, *(evaluation.load() for evaluation in data.evaluations.values())]
  for split, other in zip(splits(plain), splits(found), strict=True):
    before, after = read(plain, split), read(found, other)
    for name in ('x', 'y'):
      assert after[name].dtype == np.float32
      np.testing.assert_allclose(after[name], before[name], rtol=digits, atol=digits)
  network = cut.multi_head(mlp(2, (5,)), -1, M)
  params, state = network.init(jax.random.key(0), read(plain, plain.train)['x'][:2])
  scores, others = (
    evaluate.score_all(
      evaluate.Model(network, params, state, d.scaling, REGRESSION.predictives['members'].read), d, 150
    )
    for d in (plain, found)
  )
  unit = units.get('y_unit', 1.0)
  powers = {'squared_error': 2, 'crps': 1, **dict.fromkeys(WORDS, 2), 'pit': 0, 'covered': 0}
  for where in ('test', 'jitter:0.5'):
    for name, power in powers.items():
      np.testing.assert_allclose(
        others[where][name].mean(), scores[where][name].mean() * unit**power, rtol=1e-3, err_msg=name
      )
    np.testing.assert_allclose(others[where]['nll'].mean(), scores[where]['nll'].mean() + np.log(unit), rtol=1e-3)
  rows = [
    {(r['split'], r['metric']): r['value'] for r in evaluate.rows(s, d, REGRESSION, 'ensemble', 0, 15)}
    for s, d in ((scores, plain), (others, found))
  ]
  assert all(np.isfinite(list(row.values())).all() for row in rows)
  for by in ('auroc_uncertainty_epistemic', 'fpr95_uncertainty_total', 'aupr_uncertainty_total'):
    np.testing.assert_allclose(rows[1]['far', by], rows[0]['far', by], atol=0.02)
  np.testing.assert_allclose(rows[1]['test', 'rmse'], unit * rows[0]['test', 'rmse'], rtol=1e-5)
