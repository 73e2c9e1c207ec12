"""What the validation part decides: the spread of heads, and the inputs to distil on."""

import json
import logging

from hypothesis import given, settings, strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hydra_jax
from hydra_jax import UserError, cli, data as datasets
from hydra_jax.data import validation_rows
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import run as runs, validation
from hydra_jax.experiment.plan import CHOICES, plan, plan_of_config
from hydra_jax.experiment.schema import default_config
from hydra_jax.maths import calibration, losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp

H, N, C, F = 5, 300, 4, 6
SEEDS = st.integers(0, 2**32 - 1)


def heads_of(seed, scale=1.0, shape=(H, N, C)):
  """Logits that agree more on some inputs than on others."""
  random = np.random.default_rng(seed)
  common, own = random.normal(size=(1, *shape[1:])), random.normal(size=shape)
  size = random.uniform(0.1, 2, size=(1, shape[1], 1))
  return jnp.asarray(2 * common + scale * size * own, jnp.float32)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0.1, 8))
def test_a_spread_changes_the_differences_of_heads_alone(seed, spread):
  logits = heads_of(seed)
  found = calibration.spread_logits(logits, spread)
  centred = lambda x: x - jnp.mean(x, axis=-1, keepdims=True)
  np.testing.assert_allclose(jnp.mean(found, axis=0), jnp.mean(centred(logits), axis=0), atol=1e-4)
  expected = spread * (centred(logits[0]) - centred(logits[1]))
  np.testing.assert_allclose(centred(found[0]) - centred(found[1]), expected, rtol=1e-3, atol=1e-3)


def test_a_spread_of_one_changes_nothing(random):
  logits = heads_of(0)
  same = calibration.spread_logits(logits, 1.0)
  np.testing.assert_allclose(jax.nn.softmax(same), jax.nn.softmax(logits), rtol=1e-5, atol=1e-6)
  outputs = jnp.asarray(random.normal(size=(H, N, 6)), jnp.float32)
  np.testing.assert_allclose(calibration.spread_means(outputs, 1.0), outputs, rtol=1e-5, atol=1e-6)


def test_variances_stay(random):
  outputs = jnp.asarray(random.normal(size=(H, N, 6)), jnp.float32)
  mean, var = losses.gaussian(outputs)
  new_mean, new_var = losses.gaussian(calibration.spread_means(outputs, 3.0))
  np.testing.assert_array_equal(new_var, var)
  np.testing.assert_allclose(jnp.var(new_mean, axis=0), 9 * jnp.var(mean, axis=0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_it_folds_into_dense_heads(task):
  """W_m ← W̄ + s (W_m − W̄) gives the same predictions: for classes all columns, for Gaussians those of the means."""
  row, s = TASKS[task], 2.5
  width = row.predictives['members'].outputs(C)
  network = cut.multi_head(mlp(width, (8,)), -1, H)
  x = jax.random.normal(jax.random.key(1), (N, F))
  params, state = network.init(jax.random.key(0), x)
  columns = jnp.where(jnp.arange(width) < C, s, 1.0)  # for classes these are all

  def fold(weights):
    each = np.asarray(weights)
    mean = np.mean(each, axis=0, keepdims=True)
    return jnp.asarray(mean + np.asarray(columns) * (each - mean))

  folded = {**params, 'heads': jax.tree.map(fold, params['heads'])}
  outputs = row.rescale(network.apply(params, state, x)[0], s)
  expected = network.apply(folded, state, x)[0]
  if task == 'classification':
    outputs, expected = jax.nn.log_softmax(outputs), jax.nn.log_softmax(expected)
  np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
  wrapped = cut.rescaled(network, row.rescale)
  found = wrapped.apply({**params, 'spread': jnp.float32(s)}, state, x)[0]
  np.testing.assert_array_equal(found, row.rescale(network.apply(params, state, x)[0], jnp.float32(s)))
  assert wrapped is cut.rescaled(network, row.rescale)  # so that replicas share one compiled program


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.floats(0.05, 3))
def test_the_mean_disagreement_rises_with_the_spread(seed, scale):
  """That of a single input need not."""
  logits = heads_of(seed, scale)
  sizes = [
    float(calibration.mutual_information(calibration.spread_logits(logits, s))) for s in np.geomspace(0.1, 20, 12)
  ]
  assert all(low < high for low, high in zip(sizes, sizes[1:]))


@pytest.mark.parametrize('factor', [0.2, 0.7, 1.0, 3.0])
@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_the_spread_that_was_lost_is_found(task, factor, random):
  row = TASKS[task]
  members = heads_of(3) if task == 'classification' else jnp.asarray(random.normal(size=(H, N, 2 * C)), jnp.float32)
  shrunk = row.rescale(members, factor)
  found = calibration.matched_spread(shrunk, members, row.rescale, row.size)
  np.testing.assert_allclose(found, 1 / factor, rtol=2e-3)
  np.testing.assert_allclose(row.size(row.rescale(shrunk, found)), row.size(members), rtol=1e-3)


def test_in_regression_it_has_a_closed_form(random):
  heads, members = (jnp.asarray(random.normal(size=(h, N, 2 * C)) * s, jnp.float32) for h, s in ((3, 0.2), (7, 1.0)))
  row = TASKS['regression']
  found = calibration.matched_spread(heads, members, row.rescale, row.size)
  variance = lambda outputs: np.mean(np.var(np.asarray(outputs[..., :C], np.float64), axis=0))
  np.testing.assert_allclose(found, np.sqrt(variance(members) / variance(heads)), rtol=1e-3)


@pytest.mark.parametrize(
  'heads, members, expected',
  [
    (heads_of(0)[:1], heads_of(0), 1.0),  # one head
    (heads_of(0)[:1].repeat(3, axis=0), heads_of(0), 1.0),  # heads that agree
    (heads_of(0), heads_of(0)[:1], 1.0),  # one member
    (heads_of(0, 1e-3), heads_of(0, 50.0), calibration.MOST_SPREAD),
    (heads_of(0, 50.0), heads_of(0, 1e-3), calibration.LEAST_SPREAD),
  ],
)
def test_where_there_is_nothing_to_match(heads, members, expected):
  found = calibration.matched_spread(heads, members, calibration.spread_logits, calibration.mutual_information)
  np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_the_gradient_of_the_mean_term_is_that_of_the_equation(random):
  """Head by head, each with the mean of all as given."""
  logits, teacher = (jnp.asarray(2 * random.normal(size=(h, 7, C)), jnp.float32) for h in (H, 3))

  def equation(logits):
    q, p = (jnp.mean(jax.nn.softmax(each), axis=0) for each in (teacher, logits))
    return jnp.mean(jnp.sum(q * (jnp.log(q) - jnp.log(p)), axis=-1))

  def by_heads(logits):
    common = jax.lax.stop_gradient(jnp.mean(jax.nn.softmax(logits), axis=0))
    return jnp.mean(jnp.stack([losses.mean_term(head[None], teacher, common) for head in logits]))

  np.testing.assert_allclose(by_heads(logits), equation(logits), rtol=1e-5)
  np.testing.assert_allclose(jax.grad(by_heads)(logits), jax.grad(equation)(logits), rtol=1e-4, atol=1e-7)


def test_the_mean_term_is_finite_where_a_probability_is_0():
  logits = jnp.array([[[0.0, -1e4, 5.0]], [[3.0, -1e4, 0.0]]])
  common = jnp.mean(jax.nn.softmax(logits), axis=0)
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(losses.mean_term(x, logits + 1, common)))(logits)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
  'examples, share, expected', [(1198, 0.1, 120), (60_000, 0.1, 1000), (150, 0.1, 0), (160, 0.1, 16), (1000, 0.0, 0)]
)
def test_the_size_of_the_validation_part(examples, share, expected):
  rows = validation_rows(examples, share)
  assert len(rows) == len(set(rows)) == expected and all(0 <= row < examples for row in rows)
  np.testing.assert_array_equal(rows, validation_rows(examples, share))


def test_the_validation_part_is_seen_by_nothing_that_trains():
  config = default_config()
  whole, divided = (datasets.load(config.data, '', 0, share) for share in (0.0, 0.25))
  assert whole.validation is None and whole.given_examples == divided.given_examples == whole.train.examples
  assert divided.validation.examples == 300 and divided.train.examples == 1198 - 300
  rows = np.sort(np.concatenate([divided.train_rows, divided.validation_rows]))
  np.testing.assert_array_equal(rows, np.arange(1198))
  np.testing.assert_array_equal(whole.train.x[divided.validation_rows], divided.validation.x)
  np.testing.assert_array_equal(whole.train.y[divided.train_rows], divided.train.y)
  expected = datasets.standardise(divided.train, True)
  np.testing.assert_array_equal(divided.scaling.x_shift, expected.x_shift)


def vectors(tmp_path, name, **arrays):
  np.savez(tmp_path / 'data.npz', **arrays)
  config = default_config().unlock()
  config.name, config.data.name, config.students = name, str(tmp_path / 'data.npz'), ('hydra',)
  config.teacher.members, config.training.epochs, config.student.hydra.epochs = 3, 8.0, 8.0
  for role in ('teacher', 'student'):
    config.network[role].widths = (16,)
  return config.lock()


def phases_as_checked(config):
  """Names of all phases that `hydra-jax check` shows."""
  _, methods = plan_of_config(config.copy_and_resolve_references(), 1)
  return sorted(phase.phase.name.replace(' ', '-') for method in methods for phase in method.phases)


def phases_as_run(tmp_path):
  return sorted(file.parent.name.rpartition('-')[0] for file in tmp_path.glob('run/artifacts/*/recipe.json'))


def test_inputs_of_vectors_are_chosen_in_the_run(tmp_path, caplog, random):
  """Two students are trained; what is reported and loaded is the one that predicts the validation part better."""
  x = random.normal(size=(400, 3))
  y = x @ [1.0, 2.0, -1.0] + 0.3 * random.normal(size=400)
  config = vectors(tmp_path, 'chosen', x=x, y=y, x_test=x[:100] + 0.1, y_test=y[:100])
  checked = phases_as_checked(config)
  with caplog.at_level(logging.INFO, 'hydra_jax'):
    outcome = runs.run(config, tmp_path / 'run', '')
  assert phases_as_run(tmp_path) == checked
  assert 'inputs that predict the validation part best: unchanged inputs for ' in caplog.text
  assert len(list(tmp_path.glob('run/artifacts/spread-*'))) == len(CHOICES)
  (spread,) = [row for row in outcome.rows if row['metric'] == 'spread']
  assert spread['split'] == 'validation' and spread['n'] == 40 and 0 < spread['value'] != 1
  places = json.loads((tmp_path / 'run' / 'models.json').read_text())
  assert places['hydra'][0][2] == spread['value']
  found = {row['metric']: row['value'] for row in outcome.rows if row['split'] == 'test' and row['method'] == 'hydra'}
  prediction = hydra_jax.load(tmp_path / 'run', 'hydra').predict(x[:100] + 0.1)
  np.testing.assert_allclose(prediction.epistemic.mean(), found['uncertainty_epistemic'], rtol=1e-4)


def test_too_few_vectors_to_choose_by_are_distilled_unchanged(tmp_path, caplog, random):
  """Of 150 a tenth is too few for a validation part; and scores on it are refused before anything is trained."""
  x = random.normal(size=(150, 3))
  config = vectors(tmp_path, 'few', x=x, y=x[:, 0], x_test=x[:20] + 0.1, y_test=x[:20, 0])
  config.validation_scores = 2
  for refused in (phases_as_checked, lambda config: runs.run(config, tmp_path / 'run', '')):
    with pytest.raises(UserError, match='validation_scores: these data have no validation part: set it to 0'):
      refused(config)
  assert not (tmp_path / 'run').exists()
  config.validation_scores = 0
  checked = phases_as_checked(config)
  with caplog.at_level(logging.INFO, 'hydra_jax'):
    outcome = runs.run(config, tmp_path / 'run', '')
  assert phases_as_run(tmp_path) == checked
  assert '150 examples are too few for a validation part: nothing is calibrated on it' in caplog.text
  assert len(list(tmp_path.glob('run/artifacts/members-*'))) == 1 and not list(tmp_path.glob('run/artifacts/spread-*'))
  found = {row['metric']: row['value'] for row in outcome.rows if row['split'] == 'test' and row['method'] == 'hydra'}
  assert 0 < found['rmse'] < 3 and found['uncertainty_epistemic'] > 0


def test_the_better_candidate_is_taken_and_the_first_of_equal_ones(monkeypatch):
  nll = {'a': [1.0, 2.0, 3.0], 'b': [1.5, 1.0, 3.0]}
  monkeypatch.setattr(validation, 'validation_nll', lambda replica, trained: nll[trained][replica])
  candidate = lambda choice: type('Planned', (), dict(name='hydra', choice=choice))
  found = validation.best_of([0, 1, 2], [(candidate('x'), ['a'] * 3), (candidate('y'), ['b'] * 3)])
  assert found == ['a', 'b', 'a']


@pytest.mark.parametrize(
  'config_file, changes, expected',
  [
    ('digits', {}, [('', ('crop', 'shuffle', 'mixup'), 0.25)]),
    ('cifar10', {}, [('', ('crop', 'flip'), 1.0)]),
    ('cifar10', {'student.hydra.augment': "('auto',)"}, [('', ('crop', 'flip'), 1.0)]),
    ('cifar10', {'student.hydra.augment': "('auto',)", 'training.augment': '()'}, [('', (), 1.0)]),
    ('digits', {'student.hydra.augment_share': '0.5'}, [('', ('crop', 'shuffle', 'mixup'), 0.5)]),
    ('digits', {'student.hydra.augment': '()'}, [('', (), 1.0)]),
    ('spiral', {}, [('unchanged inputs', (), 1.0), ('inputs with noise', ('noise',), 0.5)]),
    ('spiral', {'validation': '0'}, [('', (), 1.0)]),
    ('spiral', {'student.hydra.augment': 'noise'}, [('', ('noise',), 1.0)]),
  ],
)
def test_what_is_distilled_on(config_file, changes, expected):
  from hydra_jax.experiment import config as configs

  config = cli.read_config(f'configs/{config_file}.py', [f'--config.{key}={value}' for key, value in changes.items()])
  data = datasets.about(config.data, validation=config.validation)
  configs.settle(config, data)
  planned = [each for each in plan(config, data, 1) if each.name == 'hydra']
  trainings = [each.recipe.settings.training for each in planned]
  found = [(each.choice, t.augment, t.augment_share) for each, t in zip(planned, trainings, strict=True)]
  assert found == expected


def test_a_network_with_a_spread_is_a_model_like_any_other():
  network = cut.multi_head(mlp(C, (8,)), -1, H)
  x = np.random.default_rng(0).normal(size=(N, F)).astype(np.float32)
  params, state = network.init(jax.random.key(0), x)
  scaling = datasets.Scaling(np.zeros(1), np.ones(1), np.zeros(1), np.ones(1))
  model = Model(network, params, state, scaling, TASKS['classification'].predictives['members'].read)
  wider = validation.apply_spread(model, 3.0, 'classification')
  outputs = wider.network.apply(wider.params, wider.model_state, x)[0]
  expected = calibration.spread_logits(network.apply(params, state, x)[0], 3.0)
  np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
