"""Predictions from files: what they become, and every way in which a file can be wrong."""

import json

import jax
import numpy as np
import pytest
import scipy.stats

from hydra_jax import UserError, cli, data as datasets
from hydra_jax.data import Scaling
from hydra_jax.experiment import external_predictions
from hydra_jax.experiment.config import default_config
from hydra_jax.maths import losses

M, N, C, D, E = 4, 30, 3, 2, 11


def drawn():
  random = np.random.default_rng(0)
  x, y = random.normal(size=(N, 5)), np.arange(N) % C
  return x, y, random.normal(size=(M, N, C)) * 3, random.normal(5, 9, (M, N, D)), random.gamma(2, 3, (M, N, D))


X, Y, LOGITS, MEAN, VARIANCE = drawn()
P = np.asarray(jax.nn.softmax(LOGITS.astype(np.float32)), np.float64)
CERTAIN = np.broadcast_to(np.eye(C)[Y], (M, N, C))
PLAIN = Scaling(*(np.array([v]) for v in (0.0, 1.0, 0.0, 1.0)))
UNITS = PLAIN._replace(y_shift=np.array([5.0, -2]), y_scale=np.array([9, 0.1]))
FLOOR = np.log(np.finfo(np.float32).eps)


def spoiled(values, at, value):
  values = values.copy()
  values[at] = value
  return values


def outputs(path, split='train', examples=N, task='classification', count=C, scaling=PLAIN):
  return external_predictions.outputs(external_predictions.read(str(path)), split, examples, task, count, scaling)


def saved(tmp_path, **arrays):
  np.savez(tmp_path / 'file.npz', **arrays)
  return tmp_path / 'file.npz'


def test_logits_and_probabilities_are_the_same_members(tmp_path):
  path = saved(tmp_path, logits=LOGITS, logits_test=LOGITS[:, :E])
  assert external_predictions.read(str(path)).members == M
  np.testing.assert_allclose(outputs(path), LOGITS, rtol=1e-6)
  np.testing.assert_allclose(outputs(path, 'test', E), LOGITS[:, :E], rtol=1e-6)
  assert external_predictions.covers(external_predictions.read(str(path)), 'test') and not external_predictions.covers(
    external_predictions.read(str(path)), 'letters'
  )
  read = outputs(saved(tmp_path, probabilities=P))
  np.testing.assert_allclose(jax.nn.softmax(read), P, rtol=1e-5)
  assert read.dtype == np.float32


def test_a_probability_of_zero_is_a_logit_of_minus_infinity(tmp_path):
  """Both are raised to the least probability, 1.2e-7; other logits stay as they are."""
  read = outputs(saved(tmp_path, probabilities=CERTAIN))
  np.testing.assert_allclose(read, np.where(CERTAIN == 1, 0, FLOOR), rtol=1e-6)
  np.testing.assert_allclose(jax.nn.softmax(read), CERTAIN, atol=3e-7)
  with np.errstate(divide='ignore'):
    logits = np.log(CERTAIN)
  np.testing.assert_allclose(outputs(saved(tmp_path, logits=logits)), read, rtol=1e-6)
  some = spoiled(LOGITS, (0, 0, 0), -np.inf)
  found = outputs(saved(tmp_path, logits=some))
  np.testing.assert_allclose(found.ravel()[1:], LOGITS.ravel()[1:], rtol=1e-6)
  np.testing.assert_allclose(jax.nn.softmax(found)[0, 0, 0], np.finfo(np.float32).eps, rtol=1e-5)
  np.testing.assert_array_equal(outputs(saved(tmp_path, logits=LOGITS * 40)), (LOGITS * 40).astype(np.float32))


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, '>f4'])
def test_float_dtypes(tmp_path, dtype):
  many = np.random.default_rng(0).dirichlet(np.ones(500), size=(M, N)).astype(dtype)  # sums are off by rounding
  tolerance = dict(rtol=5e-3, atol=0.1) if dtype == np.float16 else dict(rtol=1e-5)
  found = outputs(saved(tmp_path, probabilities=many), count=500)
  np.testing.assert_allclose(found, np.log(np.maximum(many.astype(float), np.finfo(np.float32).eps)), **tolerance)
  np.testing.assert_allclose(outputs(saved(tmp_path, logits=LOGITS.astype(dtype))), LOGITS, rtol=2e-3)


def test_one_column_is_class_1_against_class_0(tmp_path):
  logit = LOGITS[..., :1]
  for arrays in (dict(logits=logit), dict(probabilities=1 / (1 + np.exp(-logit)))):
    found = jax.nn.softmax(outputs(saved(tmp_path, **arrays), count=2))
    np.testing.assert_allclose(found[..., 1:], 1 / (1 + np.exp(-logit)), rtol=1e-4)


@pytest.mark.parametrize('values, expected', [(LOGITS, LOGITS), (P, np.log(P))])
def test_a_single_array_says_what_it_is(tmp_path, values, expected):
  np.save(tmp_path / 'file.npy', values.astype(np.float32))
  np.testing.assert_allclose(outputs(tmp_path / 'file.npy'), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['variance', 'std'])
def test_means_and_variances_come_back_in_units_of_the_targets(tmp_path, name):
  spread = VARIANCE if name == 'variance' else np.sqrt(VARIANCE)
  path = saved(tmp_path, mean=MEAN, **{name: spread})
  mean, var = map(np.asarray, losses.gaussian(outputs(path, task='regression', count=D, scaling=UNITS)))
  np.testing.assert_allclose(mean * UNITS.y_scale + UNITS.y_shift, MEAN, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(var * UNITS.y_scale**2, VARIANCE, rtol=1e-3)
  one = saved(tmp_path, mean=MEAN[..., 0], **{name: spread[..., 0]})
  assert outputs(one, task='regression', count=1).shape == (M, N, 2)


def test_the_key_is_that_of_the_content(tmp_path):
  keys = [external_predictions.read(str(saved(tmp_path, logits=a))).key for a in (LOGITS, LOGITS, LOGITS + 1e-9)]
  assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
  'arrays, words',
  [
    (dict(x=X), 'no predictions.*logits'),
    (dict(mean=MEAN), "has 'mean' and no 'variance' or 'std' beside it: add one of them, of the same shape$"),
    (dict(mean=MEAN, sigma=VARIANCE), "has 'mean' and no 'variance' or 'std' .* instead of 'sigma'"),
    (dict(mean=MEAN, variance=VARIANCE, std=VARIANCE), 'several kinds of predictions'),
    (dict(logits=LOGITS, probabilities=P), 'several kinds of predictions'),
    (dict(logits=LOGITS[0]), r'must be floats \[members'),
    (dict(logits=np.zeros((M, N, C), int)), "'logits' holds whole numbers, int64: save the share of the votes"),
    (dict(probabilities=CERTAIN.astype(np.uint8)), 'whole numbers, uint8: save the share of the votes for each class'),
    (dict(probabilities=CERTAIN == 1), 'whole numbers, bool'),
    (dict(probabilities=7 * CERTAIN), 'sum to 7'),
    (dict(logits=LOGITS + 1j), 'complex128'),
    (dict(logits=P), 'are probabilities, which sum to 1: call them probabilities'),
    (dict(logits=np.swapaxes(LOGITS, 0, 1)), r'\[30, 4, 3\] and looks like \[examples, members, classes or targets\]'),
    (dict(logits=np.swapaxes(LOGITS, 1, 2)), r'looks like \[members, classes or targets, examples\]: transpose it to'),
    (dict(logits=LOGITS.T), r'looks like \[classes or targets, examples, members\]'),
    (dict(logits=spoiled(LOGITS, (1, 2), -np.inf)), 'member 1 for row 2 are all −inf'),
    (dict(logits=spoiled(LOGITS, (1, 2), np.inf)), '3 logits are not finite, first for member 1, row 2'),
    (dict(logits=LOGITS[:, :-1]), "'logits' has 29 examples, and the set 'train' has 30"),
    (dict(logits=LOGITS[..., :-1]), 'has 2 classes'),
    (dict(logits=LOGITS[:0]), '0 members'),
    (dict(logits=spoiled(LOGITS, (2, 7, 0), np.nan)), '1 logits are not finite, first for member 2, row 7'),
    (dict(probabilities=LOGITS), 'normalise them, or call them logits'),
    (dict(probabilities=spoiled(P, (3, 9), 0.9)), 'member 3 for row 9 sum to 2.7'),
    (dict(probabilities=spoiled(P, (1, 4), [1.5, -0.5, 0])), 'member 1 for row 4 sum to 1, the least is -0.5'),
    (dict(mean=MEAN, variance=VARIANCE), 'for regression, but the data are for classification'),
  ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, arrays, words):
  with pytest.raises(UserError, match=words) as error:
    outputs(saved(tmp_path, **arrays))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'variance, words',
  [
    (VARIANCE[:, :, :1], 'classes or targets'),
    (spoiled(VARIANCE, (0, 3, 1), 0), 'member 0 for row 3 is not positive'),
    (spoiled(VARIANCE, (0, 3, 1), np.nan), '1 variances are not finite, first for member 0, row 3'),
    (np.swapaxes(VARIANCE, 0, 1), r'looks like \[examples, members'),
  ],
)
def test_wrong_variances_are_refused(tmp_path, variance, words):
  with pytest.raises(UserError, match=words):
    outputs(saved(tmp_path, mean=MEAN, variance=variance), task='regression', count=D)


def test_members_of_another_number_for_another_set_are_refused(tmp_path):
  with pytest.raises(UserError, match='3 members.*has 4'):
    outputs(saved(tmp_path, logits=LOGITS, logits_test=LOGITS[:-1, :E]), 'test', E)


@pytest.mark.parametrize('name', ['file.npz', 'file.npy'])
def test_files_that_cannot_be_read(tmp_path, name):
  with pytest.raises(UserError, match='there is no file'):
    external_predictions.read(str(tmp_path / name))
  (tmp_path / name).write_bytes(b'\x93NUMPY PK truncated')
  with pytest.raises(UserError, match='cannot read|one array, in the .npy format'):
    external_predictions.read(str(tmp_path / name))
  if name == 'file.npy':
    np.save(tmp_path / name, np.array([{}]))  # never unpickled
    with pytest.raises(UserError, match='cannot read'):
      external_predictions.read(str(tmp_path / name))
    np.savez(tmp_path / 'file', logits=LOGITS)
    (tmp_path / 'file.npz').rename(tmp_path / name)
    with pytest.raises(UserError, match='holds several arrays: name it .npz'):
      external_predictions.read(str(tmp_path / name))


def check(tmp_path, file='data.npz', of='data.npz', **arrays):
  """Loads data from one file, and checks the predictions of another or of the same."""
  plain = dict(x=X, y=Y, x_test=X[:E], y_test=Y[:E], x_far=X)
  np.savez(tmp_path / 'data.npz', **{**plain, **(arrays if file == of else {})})
  if file != of:
    np.save(tmp_path / file, arrays['logits'])
  config = default_config().data
  config.name, config.ood = str(tmp_path / 'data.npz'), ('far',)
  data = datasets.load(config, '', 0)
  external_predictions.check(str(tmp_path / file), data)
  return data


def test_what_is_assumed_is_said(tmp_path, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  check(tmp_path, probabilities=P, probabilities_far=CERTAIN)
  assert caplog.messages[1:] == [
    f"{tmp_path}/data.npz, set 'far': 240 of 360 values are raised, probabilities to 1.2e-07",
  ]
  check(tmp_path, 'members.npy', logits=P)
  assert 'members.npy is taken for probabilities: every row sums to 1' in caplog.messages[-1]
  check(tmp_path, 'members.npy', logits=LOGITS)
  assert 'members.npy is taken for logits: not every row sums to 1' in caplog.messages[-1]
  check(tmp_path, y=Y % 2, y_test=Y[:E] % 2, logits=LOGITS[..., :1])
  assert 'one column is taken for class 1 against class 0' in caplog.messages[-1]
  y = X[:, 0]
  check(tmp_path, y=y, y_test=y[:E], mean=MEAN[..., 0], variance=np.full((M, N), 1e-9))
  assert '120 of 240 values are raised, variances to 2e-06 of that of the targets' in caplog.messages[-1]


@pytest.mark.parametrize(
  'arrays, words',
  [
    (dict(logits=LOGITS, logits_test=LOGITS[:, 1 : E + 2]), "'logits_test' has 12 examples, and the set 'test' has 11"),
    (dict(logits=LOGITS, logits_far=spoiled(LOGITS, (0, 1, 2), np.nan)), "set 'far': 1 logits are not finite"),
    (dict(logits=np.swapaxes(LOGITS, 1, 2)), 'looks like'),
    (dict(logits=np.swapaxes(LOGITS, 0, 1)), 'looks like'),
    (dict(mean=MEAN, variance=VARIANCE, y=X[:, 0], y_test=X[:E, 0]), 'has 2 classes or targets'),
  ],
)
def test_all_predictions_are_checked_at_once(tmp_path, arrays, words):
  with pytest.raises(UserError, match=words):
    check(tmp_path, **arrays)


@pytest.mark.filterwarnings('ignore:the load_module')
def test_regression_needs_no_flag_more(tmp_path, capsys):
  """The temperature of Hydra, which is for classes, is 1 by itself, and the ensemble's scores are right."""
  random = np.random.default_rng(0)
  x, sd = random.normal(size=(N, 5)), random.uniform(0.5, 1, (M, N))
  mean = x[:, 0] + 0.1 * random.normal(size=(M, N))
  y = 1e9 + 3 * (x[:, 0] + random.normal(size=N))
  test = dict(x_test=x[:E], y_test=y[:E], mean_test=1e9 + 3 * mean[:, :E], std_test=3 * sd[:, :E])
  np.savez(tmp_path / 'members.npz', x=x, y=y, mean=1e9 + 3 * mean, std=3 * sd, **test)
  command = ['run', '--config=configs/external.py', f'--config.teacher.predictions={tmp_path}/members.npz']
  command += [f'--workdir={tmp_path}/run', "--config.students=('hydra',)", '--config.student.hydra.epochs=1']
  command += ['--config.validation=0.6']
  assert cli.main(command) == 0
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())['student']['hydra']['temperature'] == 1.0
  rows = [json.loads(line) for line in (tmp_path / 'run' / 'results.jsonl').read_text().splitlines()]
  found = {(r['split'], r['method'], r['metric']): r['value'] for r in rows}
  rmse = np.sqrt(np.mean(np.square(1e9 + 3 * mean.mean(axis=0) - y)[:E]))
  density = scipy.stats.norm.pdf(y[:E], 1e9 + 3 * mean[:, :E], 3 * sd[:, :E]).mean(axis=0)
  assert found['test', 'ensemble', 'rmse'] == pytest.approx(rmse, rel=1e-4)
  assert found['test', 'ensemble', 'nll'] == pytest.approx(-np.log(density).mean(), rel=1e-4)
  for method in ('ensemble', 'hydra'):  # the file has predictions for the validation part
    assert 1 / 64 <= found['validation', method, 'variance_scale'] <= 64 and found['test', method, 'nll_calibrated']
  assert 0 <= found['test', 'hydra', 'members_worth'] <= M
  assert cli.main([*command, '--config.student.hydra.temperature=2']) == 2
  assert 'temperature is for classification: set it to 1.0' in capsys.readouterr().err
