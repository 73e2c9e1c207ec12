"""Ensembles of other libraries as teachers, against what these libraries say themselves."""

import logging
import sys
import types

import numpy as np
import pytest
from scipy import special
from sklearn import ensemble
from sklearn.datasets import load_diabetes, load_wine
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from hydra_jax import UserError
from hydra_jax.estimators import teachers

WINE, DIABETES = load_wine(return_X_y=True), load_diabetes(return_X_y=True)


def out_of_bag(model, x, y, **more):
  teacher = teachers.read(model)
  return teachers.labels(teacher, x, y, **more)


@pytest.mark.parametrize(
  'model',
  [
    ensemble.RandomForestClassifier(30, oob_score=True, random_state=0),
    ensemble.ExtraTreesClassifier(30, bootstrap=True, oob_score=True, random_state=0),
    ensemble.RandomForestClassifier(30, oob_score=True, random_state=0, max_samples=0.5),
    ensemble.BaggingClassifier(DecisionTreeClassifier(), 30, oob_score=True, random_state=0),
    ensemble.BaggingClassifier(DecisionTreeClassifier(), 30, oob_score=True, random_state=0, max_features=0.5),
  ],
)
def test_out_of_bag_labels_are_those_of_scikit_learn(model):
  x, y = WINE
  names = np.array(['c', 'a', 'b'])[y]
  outputs = out_of_bag(model.fit(x, names), x, names)
  mean = np.nanmean(special.softmax(outputs.logits, axis=-1), axis=0)
  np.testing.assert_allclose(mean, model.oob_decision_function_, atol=1e-5)
  assert 0.2 < outputs.present.mean() < 0.7


@pytest.mark.parametrize(
  'model',
  [
    ensemble.RandomForestRegressor(30, oob_score=True, random_state=0),
    ensemble.BaggingRegressor(DecisionTreeRegressor(), 30, oob_score=True, random_state=0, max_features=0.5),
  ],
)
@pytest.mark.parametrize('targets', [1, 2])
def test_out_of_bag_means_are_those_of_scikit_learn(model, targets):
  x, y = DIABETES
  y = y if targets == 1 else np.stack([y, np.sqrt(y)], axis=1)
  if targets == 2 and isinstance(model, ensemble.BaggingRegressor):
    pytest.skip('scikit-learn bags models of one target only')
  outputs = out_of_bag(model.fit(x, y), x, y)
  expected = model.oob_prediction_.reshape(len(x), -1)
  np.testing.assert_allclose(np.nanmean(outputs.mean, axis=0), expected, rtol=1e-6)
  assert outputs.variance is None


@pytest.mark.parametrize(
  'model, cv, unseen',
  [
    (ensemble.RandomForestRegressor(30, random_state=0), 0, True),  # out-of-bag
    (ensemble.ExtraTreesRegressor(5, random_state=0), 3, True),  # out-of-fold
    (ensemble.ExtraTreesRegressor(5, random_state=0), 0, False),
    ([Ridge(), Ridge(2.0)], 3, True),
    ([lambda x: x[:, 0], lambda x: x[:, 1]], 3, False),  # it is not known what they have seen
  ],
)
def test_it_is_known_whether_labels_are_of_members_that_have_not_seen_the_row(model, cv, unseen):
  x, y = DIABETES
  for each in model if isinstance(model, list) else [model]:
    if not callable(each):
      each.fit(x, y)
  teacher = teachers.read(model, 'regression')
  outputs = teachers.labels(teacher, x, y, cv)
  assert teachers.labels_are_of_unseen(teacher, len(x), cv) == unseen
  mean = teachers.mean_of(outputs)
  np.testing.assert_allclose(mean, np.nanmean(outputs.mean, axis=0), rtol=1e-12)
  if not isinstance(model, list):
    assert (np.corrcoef(mean[:, 0], y)[0, 1] < 0.8) == unseen  # a tree that has seen a row knows its label


def test_the_mean_of_classes_is_that_of_members_with_a_prediction(random):
  logits = random.normal(size=(3, 5, 4))
  logits[0, 1:] = logits[1:, 2] = np.nan
  mean = teachers.mean_of(teachers.Outputs(logits=logits))
  p = special.softmax(logits, axis=-1)
  np.testing.assert_allclose(mean[0], p[:, 0].mean(axis=0))
  np.testing.assert_allclose(mean[1], p[1:, 1].mean(axis=0))
  assert np.isnan(mean[2]).all()


def test_rows_that_are_new_have_labels_of_all_members():
  x, y = WINE
  forest = ensemble.RandomForestClassifier(10, random_state=0).fit(x[:100], y[:100])
  outputs = out_of_bag(forest, x[100:], y[100:])
  assert outputs.present.all()
  mean = special.softmax(outputs.logits, axis=-1).mean(axis=0)
  np.testing.assert_allclose(mean, forest.predict_proba(x[100:]), atol=1e-5)


@pytest.mark.parametrize(
  'model',
  [
    ensemble.VotingClassifier(
      [('tree', DecisionTreeClassifier(random_state=0)), ('line', LogisticRegression(max_iter=9999))], voting='soft'
    ),
    [DecisionTreeClassifier(random_state=0), DecisionTreeClassifier(random_state=1, max_depth=3)],
    ensemble.ExtraTreesClassifier(5, random_state=0),
  ],
)
def test_members_that_have_seen_all_rows_are_fitted_on_other_folds(model):
  """As a loop over folds by hand has it."""
  from sklearn.base import clone

  x, y = WINE
  x, names = x[:, :4], np.array(['c', 'a', 'b'])[y]
  fold = KFold(3, shuffle=True, random_state=5)

  def fit(rows):
    return [clone(m).fit(x[rows], names[rows]) for m in (model if isinstance(model, list) else [model])]

  whole = fit(slice(None))
  outputs = out_of_bag(whole if isinstance(model, list) else whole[0], x, names, cv=fold)
  expected = np.empty(outputs.logits.shape[1:])
  for others, rows in fold.split(x):
    expected[rows] = np.mean([fitted.predict_proba(x[rows]) for fitted in fit(others)], axis=0)
  assert outputs.present.all()
  np.testing.assert_allclose(special.softmax(outputs.logits, -1).mean(axis=0), expected, atol=1e-5)


def test_without_folds_it_says_that_members_have_seen_the_rows(caplog):
  x, y = WINE
  with caplog.at_level(logging.INFO, 'hydra_jax'):
    out_of_bag([DecisionTreeClassifier().fit(x, y)], x, y, cv=0)
  assert 'may have seen these rows' in caplog.text


def test_members_that_miss_a_class_have_its_column(random):
  """A bag without class 2 knows of two classes, and its columns are moved."""
  x, y = WINE
  full, part = (
    DecisionTreeClassifier(random_state=0).fit(x, y),
    DecisionTreeClassifier(random_state=0).fit(x[y > 0], y[y > 0]),
  )
  p = special.softmax(teachers.read([full, part]).predict(x).logits, axis=-1)
  np.testing.assert_allclose(p[1, :, 1:], part.predict_proba(x), atol=1e-5)
  assert p[1, :, 0].max() < 1e-5


@pytest.mark.parametrize('name', ['xgboost', 'lightgbm'])
def test_boosted_models_by_seeds_are_members(name):
  library = pytest.importorskip(name)
  kind, more = {'xgboost': ('XGBClassifier', {}), 'lightgbm': ('LGBMClassifier', {'verbose': -1})}[name]
  x, y = WINE
  fit = lambda seed: getattr(library, kind)(n_estimators=3, max_depth=2, random_state=seed, n_jobs=1, **more).fit(x, y)
  models = [fit(seed) for seed in range(2)]
  p = special.softmax(teachers.read(models).predict(x).logits, axis=-1)
  np.testing.assert_allclose(p, [model.predict_proba(x) for model in models], atol=1e-5)


def test_functions_say_logits_probabilities_means_or_gaussians(random):
  x = random.normal(size=(7, 2))
  logits, p = random.normal(size=(7, 3)), random.dirichlet(np.ones(3), 7)
  read = lambda f, task=None: teachers.read([f, f], task).predict(x)
  np.testing.assert_allclose(read(lambda x: logits).logits[1], logits)
  np.testing.assert_allclose(special.softmax(read(lambda x: p).logits[0], -1), p, atol=1e-6)
  assert read(lambda x: x[:, 0]).mean.shape == (2, 7, 1) and read(lambda x: x, 'regression').mean.shape == (2, 7, 2)
  found = read(lambda x: (x[:, 0], np.ones(7)))
  np.testing.assert_array_equal(found.mean[0, :, 0], x[:, 0])
  assert found.variance.shape == (2, 7, 1)
  both = teachers.read(lambda x: np.stack([logits, logits])).predict(x)
  assert both.logits.shape == (2, 7, 3)


def test_modules_of_pytorch_predict_in_evaluation_mode_without_gradients(monkeypatch, random):
  """PyTorch itself, or where it is not there, something with its protocol."""
  torch = _torch(monkeypatch)
  x = random.normal(size=(5, 3))
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
  weight, bias = (np.asarray(p.detach().numpy()) for p in module.parameters())
  module.train()
  outputs = teachers.read([module, module], 'classification').predict(x)
  np.testing.assert_allclose(outputs.logits[1], x @ weight.T + bias, rtol=1e-4, atol=1e-5)
  assert module.training


def _torch(monkeypatch):
  try:
    import torch

    return torch
  except ImportError:
    return _stand_in(monkeypatch)


class Tensor:
  """What the adapter uses of a tensor."""

  device = 'cpu'

  def __init__(self, values, needs_gradient=False):
    self.values, self.needs_gradient = np.asarray(values), needs_gradient

  def detach(self):
    return Tensor(self.values)

  def cpu(self):
    return self

  def to(self, device):
    assert device == 'cpu'
    return self

  def numpy(self):
    assert not self.needs_gradient, 'call detach'
    return self.values


class Module:
  training = True

  def train(self, mode=True):
    self.training = mode
    for part in getattr(self, 'parts', ()):
      part.train(mode)

  def eval(self):
    self.train(False)

  def parameters(self):
    return (p for part in getattr(self, 'parts', ()) for p in part.parameters())


def _stand_in(monkeypatch):
  class Linear(Module):
    def __init__(self, inputs, outputs):
      random = np.random.default_rng(0)
      self.own = Tensor(random.normal(size=(outputs, inputs)), True), Tensor(random.normal(size=outputs), True)

    def parameters(self):
      return iter(self.own)

    def __call__(self, x):
      assert x.values.dtype == np.float32
      return Tensor(x.values @ self.own[0].values.T + self.own[1].values, torch.gradients)

  class Dropout(Module):
    def __init__(self, rate):
      pass

    def __call__(self, x):
      return Tensor(x.values * np.nan, x.needs_gradient) if self.training else x

  class Sequential(Module):
    def __init__(self, *parts):
      self.parts = parts

    def __call__(self, x):
      for part in self.parts:
        x = part(x)
      return x

  class NoGradients:
    def __enter__(self):
      torch.gradients = False

    def __exit__(self, *error):
      torch.gradients = True

  nn = types.SimpleNamespace(Module=Module, Linear=Linear, Dropout=Dropout, Sequential=Sequential)
  torch = types.ModuleType('torch')
  torch.gradients = True
  torch.nn, torch.no_grad, torch.as_tensor, torch.zeros = nn, NoGradients, Tensor, lambda shape: Tensor(np.zeros(shape))
  monkeypatch.setitem(sys.modules, 'torch', torch)
  return torch


def test_samples_of_bde_are_members(random):
  """Something with the interface of sklearn-contrib-bde 1.0: outputs [chains, samples, N, …]."""
  logits, gaussians = random.normal(size=(2, 3, 5, 4)), random.normal(size=(2, 3, 5, 2))

  class Bde:
    __module__ = 'bde.bde'

    def fit(self, x, y):
      self.fitted_ = True

  Classifier = type('BdeClassifier', (Bde,), {'classes_': np.arange(4), 'predict': lambda self, x, raw: logits})
  Regressor = type('BdeRegressor', (Bde,), {'predict': lambda self, x, raw: gaussians})
  np.testing.assert_array_equal(teachers.read(Classifier()).predict(None).logits, logits.reshape(6, 5, 4))
  found = teachers.read(Regressor()).predict(None)
  np.testing.assert_array_equal(found.mean[..., 0], gaussians[..., 0].reshape(6, 5))
  deviation = np.log1p(np.exp(gaussians[..., 1])).reshape(6, 5) + 1e-6
  np.testing.assert_allclose(found.variance[..., 0], deviation**2)


def test_the_variance_of_members_is_that_of_the_noise(random):
  """Members that disagree by 1, and noise of 2: the likeliest variance is 4, however many members are present."""
  truth = random.normal(size=4000) * 5
  mean = truth + random.normal(size=(7, 1)) * 0 + random.normal(size=(7, 4000)) * 0.1
  y = truth + 2 * random.normal(size=4000)
  mean[random.random(mean.shape) < 0.5] = np.nan
  mean[0] = np.where(np.isnan(mean).all(axis=0), truth, mean[0])
  outputs = teachers.with_variance(teachers.Outputs(mean=mean[..., None]), y[:, None])
  found = outputs.variance[~np.isnan(outputs.variance)]
  np.testing.assert_allclose(found, 4, rtol=0.1)
  np.testing.assert_array_equal(np.isnan(outputs.variance), np.isnan(outputs.mean))


@pytest.mark.parametrize(
  'teacher, words',
  [
    (ensemble.RandomForestClassifier(), 'not fitted'),
    (ensemble.GradientBoostingClassifier(n_estimators=2).fit(*WINE), 'adds up its estimators'),
    (ensemble.AdaBoostRegressor(n_estimators=2).fit(*DIABETES), 'adds up its estimators'),
    ([], 'empty list'),
    ([3], 'a member of the teacher is a int'),
    (3, 'the teacher is a int'),
    (ensemble.RandomForestClassifier(2).fit(WINE[0], np.stack([WINE[1]] * 2, axis=1)), 'several labels'),
    ([Ridge().fit(*DIABETES), LogisticRegression(max_iter=9999).fit(WINE[0][:, :10], WINE[1])], 'must be alike'),
  ],
)
def test_what_is_no_ensemble_is_refused(teacher, words):
  with pytest.raises(UserError, match=words):
    teachers.read(teacher).predict(DIABETES[0][:9])


@pytest.mark.parametrize('own', [['u', 'v'], [5, 7]])
def test_a_member_of_other_classes_is_refused(own, random):
  x = random.normal(size=(20, 2))
  model = LogisticRegression().fit(x, np.resize(own, 20))
  with pytest.raises(UserError, match="a member predicts the classes .*, and the labels are .'a', 'b'"):
    teachers.read([model], classes=np.array(['a', 'b'])).predict(x)
