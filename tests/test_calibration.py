"""Label calibration: what is right stays, a known factor is found, and no input makes it fail."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from hydra_jax.maths import calibration, losses, metrics
from hydra_jax.maths.tasks import TASKS

N, C, M, D = 4000, 5, 3, 2


def drawn(random, logits):
  """Labels that are distributed as the logits say."""
  return np.argmax(logits + random.gumbel(size=logits.shape), axis=1).astype(np.int32)


def log_p(logits):
  return scipy.special.log_softmax(logits, axis=1)


def nll(log_mean, labels, tau=1.0):
  found = metrics.nll(calibration.tempered(jnp.asarray(log_mean, jnp.float32), tau), jnp.asarray(labels))
  return float(np.mean(np.asarray(found, np.float64)))


@pytest.mark.parametrize('factor', [0.2, 1.0, 3.0])
def test_the_temperature_of_labels_is_found(factor, random):
  """Probabilities that are `factor` times as sharp in their logits need that temperature, within sampling error."""
  logits = 2 * random.normal(size=(N, C))
  labels = drawn(random, logits)
  assert calibration.temperature(log_p(factor * logits), labels) == pytest.approx(factor, rel=0.06)


def test_the_temperature_is_the_minimum_of_what_it_minimises(random):
  logits = random.normal(size=(200, C))
  labels = drawn(random, logits / 2)
  tau = calibration.temperature(log_p(logits), labels)
  whole = lambda t: 200 * nll(log_p(logits), labels, t) + np.log(t) ** 2 / (2 * calibration.PRIOR_OF_TEMPERATURE**2)
  assert np.argmin([whole(tau * f) for f in (0.5, 0.95, 1.0, 1.05, 2.0)]) == 2
  # The same, whatever is added to all logits of an example.
  assert calibration.temperature(logits + random.normal(size=(200, 1)), labels) == pytest.approx(tau)


def test_few_labels_move_the_temperature_little(random):
  """Five right predictions say little, and 5,000 a lot."""
  row = np.log(np.array([[0.7, 0.3]]))
  few, many = (calibration.temperature(np.repeat(row, n, axis=0), np.zeros(n, int)) for n in (5, 5000))
  assert 0.6 < few < 1 and many < 0.2


def test_no_temperature_raises_the_nll(random):
  for _ in range(30):
    count = int(random.integers(1, 20))
    logits, labels = random.normal(size=(count, C)) * random.uniform(0.01, 30), random.integers(C, size=count)
    tau = calibration.temperature(log_p(logits), labels)
    assert 1 / 16 - 1e-9 <= tau <= 16 + 1e-9
    before, after = (nll(log_p(logits), labels, t) for t in (1.0, tau))
    assert after <= before + 1e-5 * abs(before)


ROW = np.log(np.array([[0.7, 0.3]]))
DEGENERATE = {
  'always right': (np.repeat(ROW, 4, 0), [0] * 4, -1),
  'always wrong': (np.repeat(ROW, 4, 0), [1] * 4, 1),
  'all alike': (np.log(np.full((4, 2), 0.5)), [0, 1, 1, 1], 0),
  'one example': (ROW, [0], -1),
  'probability 0 of others': (np.array([[0.0, -np.inf]] * 3), [0] * 3, 0),
  'probability 0 of the label': (np.array([[0.0, -np.inf], [-0.1, -2.4]]), [1, 0], 1),
  'huge': (np.array([[0.0, -1e4], [-1e4, 0.0]]), [0, 0], 1),
  'no numbers': (np.full((3, 2), np.nan), [0, 1, 0], 0),
}


@pytest.mark.parametrize('name', DEGENERATE)
def test_temperatures_are_finite(name):
  """And less than 1 where the prediction should be surer, more than 1 where it should be less sure."""
  log_mean, labels, direction = DEGENERATE[name]
  tau = calibration.temperature(log_mean, np.array(labels))
  assert 1 / 16 - 1e-9 <= tau <= 16 + 1e-9 and np.sign(np.round(np.log(tau), 9)) == direction


def mixture(random, n=N):
  """Means and variances of members, and targets that are drawn from their mixture."""
  mean, var = random.normal(size=(M, n, D)), random.uniform(0.5, 2, size=(M, n, D))
  member = random.integers(M, size=n)
  at = (member, np.arange(n))
  return mean, var, mean[at] + np.sqrt(var[at]) * random.normal(size=(n, D))


@pytest.mark.parametrize('factor', [0.25, 1.0, 4.0])
def test_the_scale_of_variances_is_found(factor, random):
  mean, var, y = mixture(random)
  assert calibration.variance_scale(mean, var / factor, y) == pytest.approx(factor, rel=0.07)


def test_the_scale_of_variances_has_no_units(random):
  mean, var, y = mixture(random, 100)
  found = calibration.variance_scale(mean, var, y)
  assert calibration.variance_scale(3 + 1000 * mean, 1e6 * var, 3 + 1000 * y) == pytest.approx(found, rel=1e-5)
  assert calibration.variance_scale(mean[::-1], var[::-1], y) == pytest.approx(found, rel=1e-5)


def test_the_scale_of_variances_is_the_minimum(random):
  """By brute force; the NLL of labels is no higher than before, as the prior is for 1."""
  mean, var, y = mixture(random, 30)

  def objective(t, weight=1.0):
    found = metrics.mixture_nll(*(jnp.asarray(a, jnp.float32) for a in (mean, t * 5 * var, y)))
    return float(np.sum(np.asarray(found, np.float64))) + weight * np.log(t) ** 2 / (2 * 0.2**2)

  found = calibration.variance_scale(mean, 5 * var, y)
  many = np.exp(np.linspace(-3, 3, 301))
  assert objective(found) <= min(map(objective, many)) + 1e-3
  assert objective(found, 0) <= objective(1.0, 0)


def test_few_targets_move_the_scale_little(random):
  mean, var, y = mixture(random)
  found = [calibration.variance_scale(mean[:, :n], var[:, :n] / 16, y[:n]) for n in (1, 10, 100, N)]
  assert 1 < found[0] < found[1] < found[2] < found[3] < 17 and found[0] < 3


@pytest.mark.parametrize(
  'mean, var, y, low, high',
  [
    (0.0, 1.0, 0.0, 1 / 64, 1.0),
    (0.0, 1e-12, 1.0, 1.0, 64.0),
    (0.0, 1.0, 1e15, 1.0, 64.0),
    (0.0, 1e30, 1.0, 1 / 64, 1.0),
    (np.nan, 1.0, 0.0, 1.0, 1.0),
  ],
)
def test_scales_of_variances_are_finite(mean, var, y, low, high):
  found = calibration.variance_scale(np.full((M, 50, D), mean), np.full((M, 50, D), var), np.full((50, D), y))
  assert low * (1 - 1e-9) <= found <= high * (1 + 1e-9)


def test_tasks_have_both(random):
  """Scores of a task after label calibration are those before, where there is nothing to calibrate."""
  y = {'classification': random.integers(C, size=20), 'regression': random.normal(size=(20, D)).astype(np.float32)}
  for name, task in TASKS.items():
    width = C if name == 'classification' else 2 * D
    outputs = jnp.asarray(random.normal(size=(M, 20, width)), jnp.float32)
    read = task.predictives['members'].read(outputs)
    scale = task.label_scale(read, y[name])
    labels = jnp.asarray(y[name])
    same, calibrated = task.calibrated(read, labels, 1.0), task.calibrated(read, labels, scale)
    before = task.scores(read, labels)
    for score, values in same.items():
      np.testing.assert_allclose(values, before[score.removesuffix('_calibrated')], rtol=1e-5, atol=1e-6)
    assert all(values.shape == (20,) for values in calibrated.values())
    assert np.mean(calibrated['nll_calibrated']) < np.mean(same['nll_calibrated']) and scale != 1
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, jax.jit(task.calibrated)(read, labels, np.float32(scale)), calibrated)


def test_the_calibration_error_after_a_temperature_is_that_of_tempered_probabilities(random):
  """By SciPy and by hand; a prediction that is drawn from is calibrated by the temperature that undoes a factor."""
  task, logits = TASKS['classification'], random.normal(size=(3000, C)) * 2
  labels = np.array([random.choice(C, p=row) for row in scipy.special.softmax(logits, axis=1)])
  read = task.predictives['members'].read(jnp.asarray(2.5 * logits[None], jnp.float32))
  found = {**task.scores(read, jnp.asarray(labels)), **task.calibrated(read, jnp.asarray(labels), 2.5)}
  summary = task.summary({name: np.asarray(values) for name, values in found.items()}, 10)
  confidence = scipy.special.softmax(logits, axis=1).max(axis=1)
  correct, place = logits.argmax(axis=1) == labels, np.ceil(confidence * 10)
  gaps = [abs(np.sum(correct[place == b]) - np.sum(confidence[place == b])) for b in range(1, 11)]
  assert summary['ece_calibrated'] == pytest.approx(np.sum(gaps) / 3000, rel=1e-3)
  assert summary['ece_calibrated'] < 0.3 * summary['ece']


def test_members_that_are_drawn_at_a_temperature_have_this_temperature(random):
  """Alone, and as one of two equal members; a mixture of different ones has another temperature than their mean."""
  logits = random.normal(size=(4000, 3)) * 3
  labels = np.array([random.choice(3, p=scipy.special.softmax(row / 2.5)) for row in logits])
  for members in (1, 2):
    assert calibration.member_temperature(np.stack([logits] * members), labels) == pytest.approx(2.5, rel=0.06)


def test_the_temperature_of_members_minimises_the_nll_of_their_mixture(random):
  logits, labels = random.normal(size=(3, 500, 4)) * 2, random.integers(4, size=500)

  def posterior(log_t):
    p = scipy.special.softmax(logits / np.exp(log_t), axis=-1).mean(axis=0)
    return -np.log(p[np.arange(500), labels]).sum() + log_t**2 / (2 * 0.5**2)

  best = scipy.optimize.minimize_scalar(posterior, bounds=(-2.7, 2.7), method='bounded', options={'xatol': 1e-6}).x
  assert calibration.member_temperature(logits, labels) == pytest.approx(np.exp(best), rel=1e-3)


def test_scaled_variances_are_read_as_such(random):
  mean, var = random.normal(size=(2, 5, 3)), random.uniform(0.01, 4, size=(2, 5, 3))
  outputs = jnp.asarray(losses.gaussian_outputs(mean, var), jnp.float32)
  for factor in (0.1, 1.0, 30.0):
    means, variances = losses.gaussian(calibration.scaled_variances(outputs, factor))
    np.testing.assert_allclose(means, mean, rtol=1e-5)
    np.testing.assert_allclose(variances, factor * var, rtol=1e-3)
