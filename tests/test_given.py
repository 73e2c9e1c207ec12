"""Predictions from files: what they become, and every way in which a file can be wrong."""

import jax
import numpy as np
import pytest

from hydra_jax import UserError, data as datasets, given, losses
from hydra_jax.config import default_config
from hydra_jax.data import Scaling, files

M, N, C, D, E = 4, 30, 3, 2, 11
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(N, 5)), RANDOM.integers(C, size=N)
LOGITS = RANDOM.normal(size=(M, N, C)) * 3
P = np.asarray(jax.nn.softmax(LOGITS.astype(np.float32)), np.float64)
MEAN, VARIANCE = RANDOM.normal(5, 9, size=(M, N, D)), RANDOM.gamma(2, 3, size=(M, N, D))
PLAIN = Scaling(*(np.float32([v]) for v in (0, 1, 0, 1)))
UNITS = PLAIN._replace(y_shift=np.float32([5, -2]), y_scale=np.float32([9, 0.1]))


def outputs(path, split='train', examples=N, task='classification', count=C, scaling=PLAIN):
  return given.outputs(given.read(str(path)), split, examples, task, count, scaling)


def saved(tmp_path, **arrays):
  np.savez(tmp_path / 'file.npz', **arrays)
  return tmp_path / 'file.npz'


def test_logits_and_probabilities_are_the_same_members(tmp_path):
  path = saved(tmp_path, logits=LOGITS, logits_test=LOGITS[:, :E])
  assert given.read(str(path)).members == M
  np.testing.assert_allclose(outputs(path), LOGITS, rtol=1e-6)
  np.testing.assert_allclose(outputs(path, 'test', E), LOGITS[:, :E], rtol=1e-6)
  assert given.covers(given.read(str(path)), 'test') and not given.covers(given.read(str(path)), 'letters')
  read = outputs(saved(tmp_path, probabilities=P))
  np.testing.assert_allclose(jax.nn.softmax(read), P, rtol=1e-5)
  assert read.dtype == np.float32


def test_certain_members_stay_finite(tmp_path, random):
  certain = np.eye(C)[random.integers(C, size=(M, N))]
  read = outputs(saved(tmp_path, probabilities=certain))
  assert np.all(np.isfinite(read))
  np.testing.assert_allclose(jax.nn.softmax(read), certain, atol=3e-7)


@pytest.mark.parametrize('values, expected', [(LOGITS, LOGITS), (P, np.log(P))])
def test_a_single_array_says_what_it_is(tmp_path, values, expected):
  np.save(tmp_path / 'file.npy', values.astype(np.float32))
  np.testing.assert_allclose(outputs(tmp_path / 'file.npy'), expected, rtol=1e-4, atol=1e-5)


def test_means_and_variances_come_back_in_units_of_the_targets(tmp_path):
  path = saved(tmp_path, mean=MEAN, variance=VARIANCE)
  mean, var = map(np.asarray, losses.gaussian(outputs(path, task='regression', count=D, scaling=UNITS)))
  np.testing.assert_allclose(mean * UNITS.y_scale + UNITS.y_shift, MEAN, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(var * UNITS.y_scale**2, VARIANCE, rtol=1e-3)
  one = saved(tmp_path, mean=MEAN[..., 0], variance=VARIANCE[..., 0])
  assert outputs(one, task='regression', count=1).shape == (M, N, 2)


def test_the_key_is_that_of_the_content(tmp_path):
  keys = [given.read(str(saved(tmp_path, logits=a))).key for a in (LOGITS, LOGITS, LOGITS + 1e-9)]
  assert keys[0] == keys[1] != keys[2]


def spoiled(values, at, value):
  values = values.copy()
  values[at] = value
  return values


@pytest.mark.parametrize(
  'arrays, words',
  [
    (dict(x=X), 'no predictions.*logits'),
    (dict(mean=MEAN), 'no predictions'),
    (dict(logits=LOGITS[0]), r'must be floats \[members'),
    (dict(logits=np.zeros((M, N, C), int)), 'int64.*must be floats'),
    (dict(logits=LOGITS[:, :-1]), "'logits' has 29 examples, and the set 'train' has 30"),
    (dict(logits=LOGITS[..., :-1]), 'has 2 classes'),
    (dict(logits=LOGITS[:0]), '0 members'),
    (dict(logits=spoiled(LOGITS, (2, 7, 0), np.nan)), '1 values that are not finite, first for member 2, row 7'),
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
  [(VARIANCE[:, :, :1], 'classes or targets'), (spoiled(VARIANCE, (0, 3, 1), 0), 'member 0 for row 3 is not positive')],
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
    given.read(str(tmp_path / name))
  (tmp_path / name).write_bytes(b'\x93NUMPY PK truncated')
  with pytest.raises(UserError, match='cannot read'):
    given.read(str(tmp_path / name))


def load(path, **changes):
  config = default_config().data
  for key, value in {'name': str(path), **changes}.items():
    config[key] = value
  return datasets.load(config, '', 0)


SETS = dict(x=X, y=Y, x_test=X[:E], y_test=Y[:E], x_far=X + 9)


def test_data_of_a_file(tmp_path):
  found = load(saved(tmp_path, **SETS), ood=('far',))
  assert found.task == 'classification' and found.outputs == C and found.train.examples == N
  np.testing.assert_allclose(found.evaluations['far'].load().x, X + 9, rtol=1e-6)
  assert found.evaluations['far'].load().y.tolist() == [-1] * N
  assert len(found.evaluations['test'].load().x) == E
  assert load(saved(tmp_path, **SETS, logits=np.zeros((M, N, 7)))).outputs == 7
  regression = load(saved(tmp_path, **{**SETS, 'y': X[:, 0], 'y_test': X[:E, 0]}))
  assert regression.task == 'regression' and regression.outputs == 1 and regression.train.y.shape == (N, 1)


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(x_test=None), "no array 'x_test'"),
    (dict(y=None), "no array 'y'.*add them"),
    (dict(y=Y - 1), 'class -1'),
    (dict(y=Y[:-1]), '30 inputs and 29 labels'),
    (dict(x=X[:, 0]), 'must be'),
    (dict(x=spoiled(X, (3, 1), np.inf)), 'first row 3'),
  ],
)
def test_data_that_are_wrong(tmp_path, changes, words):
  arrays = {k: v for k, v in {**SETS, **changes}.items() if v is not None}
  with pytest.raises(UserError, match=words):
    load(saved(tmp_path, **arrays)).evaluations['test'].load()


def test_a_file_that_changes_is_read_again(tmp_path):
  path = saved(tmp_path, **SETS)
  before = files.load(str(path), 'train')[0]
  path = saved(tmp_path, **{**SETS, 'x': X + 1})
  assert not np.array_equal(files.load(str(path), 'train')[0], before)


def test_an_unknown_set_of_a_file(tmp_path):
  with pytest.raises(UserError, match="did you mean 'far'"):
    load(saved(tmp_path, **SETS), ood=('fare',))
