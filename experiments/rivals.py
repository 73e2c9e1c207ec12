"""Other libraries' estimators for tables, searched in a given time, and what each offers as an uncertain prediction.

* `forest`: random forest of scikit-learn. A Gaussian around the mean of the trees. Its variance is that of the trees
  plus the mean squared error of out-of-bag predictions.
* `mlp`: bagging of 10 MLPs of scikit-learn, inputs and targets standardised. Uncertainty as that of the forest.
* `boosting`: histogram gradient boosting of scikit-learn. A Gaussian with one variance: the mean squared error of
  predictions in 5-fold cross-validation.
* `bde`: Bayesian deep ensembles (sklearn-contrib-bde), inputs and targets standardised. A mixture of the Gaussians of
  all samples.
* `gaussian_process`: Gaussian process of scikit-learn, inputs standardised. It is fitted to a random part of the
  training rows, as its time grows with their cube: 2,000 in regression, 1,000 in classification. There is one process
  for each class, which tells it from the rest (Laplace approximation). In regression each feature has a length scale,
  and the variance is that of the process, noise included. In classification all features share a length scale: one
  for each of the 64 features of digits would be too slow. The default of the library fits no kernel and knows no
  noise, so that the first configuration is a fitted RBF kernel, with noise in regression.

In classification each gives probabilities. Its set is the fewest classes that together have 90% of them.

Shapes: N examples, M members, C classes, D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import importlib
import io
import pickle
import time
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm

from hydra_jax.maths import conformal

COVERAGE = 0.9
# Of a label, in log loss and NLL: trees give probabilities of 0, whose logarithm has no mean.
LEAST_PROBABILITY = 1e-6
# Configurations of a search, at most; folds of cross-validation; share of rows in a validation part.
MOST_TRIED, FOLDS, SHARE = 24, 5, 0.2
CORES = 2
# Rows that a Gaussian process is fitted to, at most, and the smoothness of its kernels.
MOST_ROWS = {'regression': 2000, 'classification': 1000}
SMOOTHNESS = {'RBF': np.inf, 'Matern 1/2': 0.5, 'Matern 3/2': 1.5, 'Matern 5/2': 2.5}


@dataclass(frozen=True)
class Forecast:
  """What a method predicts.

  Attributes:
    mean: Probabilities `[N, C]`, or means of the members `[M, N]`.
    region: Sets of classes `[N, C]` bool, or intervals `[N, 2]`.
    variance: In regression the variances of the members `[M, N]`.
  """

  mean: np.ndarray
  region: np.ndarray
  variance: np.ndarray | None = None


@dataclass(frozen=True)
class Tried:
  """One configuration: how bad it is on rows that it was not fitted on.

  Attributes:
    loss: Log loss, or mean squared error, or NLL (`bde`, `gaussian_process`).
    variance: Mean squared error, in regression.
    model: Where it is fitted on all training rows, or on as many as it may have: it need not be fitted again.
  """

  loss: float
  variance: float = 0.0
  model: Any = None


@dataclass(frozen=True)
class Found:
  """The result of a search: the fitted estimator, its parameters, the variance of its error, configurations tried."""

  model: Any
  params: Mapping[str, Any]
  variance: float
  tried: int


# ---------------------------------------------------------------- scores and uncertain predictions


def mass_sets(p_NxC: np.ndarray, share: float = COVERAGE) -> np.ndarray:
  """The fewest classes that together have at least this probability, `[N, C]` bool."""
  order = np.argsort(-p_NxC, axis=1, kind='stable')
  before = np.cumsum(np.take_along_axis(p_NxC, order, axis=1), axis=1) - np.take_along_axis(p_NxC, order, axis=1)
  sets = np.zeros(p_NxC.shape, bool)
  np.put_along_axis(sets, order, before < share, axis=1)
  return sets


def classes(p_NxC: np.ndarray) -> Forecast:
  """Probabilities, with the sets of `mass_sets`."""
  return Forecast(p_NxC, mass_sets(p_NxC))


def gaussian(mean_N: np.ndarray, variance_N: np.ndarray) -> Forecast:
  """One Gaussian for each example, with its central interval."""
  half = norm.ppf((1 + COVERAGE) / 2) * np.sqrt(variance_N)
  return Forecast(mean_N[None], np.stack([mean_N - half, mean_N + half], axis=1), variance_N[None])


def mixture(mean_MxN: np.ndarray, variance_MxN: np.ndarray) -> Forecast:
  """An equal-weight mixture of Gaussians for each example, with its central interval."""
  ends = conformal.mixture_intervals(mean_MxN[..., None], variance_MxN[..., None], COVERAGE)
  return Forecast(mean_MxN, ends[:, 0], variance_MxN)


def log_loss(p_NxC: np.ndarray, y_N: np.ndarray) -> float:
  """Mean −log probability of the label, which counts as at least `LEAST_PROBABILITY`."""
  return -float(np.mean(np.log(np.maximum(p_NxC[np.arange(len(y_N)), y_N], LEAST_PROBABILITY), dtype=np.float64)))


def mixture_nll(mean_MxN: np.ndarray, variance_MxN: np.ndarray, y_N: np.ndarray) -> float:
  """Mean −log density of the target under the mixture."""
  log_p = -(np.square(y_N - mean_MxN) / variance_MxN + np.log(2 * np.pi * variance_MxN)) / 2
  return -float(np.mean(logsumexp(log_p, axis=0) - np.log(len(mean_MxN))))


def scores(forecast: Forecast, y_N: np.ndarray) -> dict[str, float]:
  """`nll`, `score` (accuracy or RMSE), and the `coverage` and mean `width` of intervals, or size of sets."""
  if forecast.variance is None:
    inside = forecast.region[np.arange(len(y_N)), y_N]
    found = log_loss(forecast.mean, y_N), np.mean(forecast.mean.argmax(axis=1) == y_N)
    width = forecast.region.sum(axis=1)
  else:
    low, high = forecast.region.T
    inside, width = (low <= y_N) & (y_N <= high), high - low
    error = np.sqrt(np.mean(np.square(forecast.mean.mean(axis=0) - y_N)))
    found = mixture_nll(forecast.mean, forecast.variance, y_N), error
  names = ('nll', 'score', 'coverage', 'width')
  return dict(zip(names, map(float, (*found, np.mean(inside), np.mean(width))), strict=True))


# ---------------------------------------------------------------- the search


def search(
  candidates: Iterator[dict[str, Any]],
  evaluate: Callable[[dict[str, Any]], Tried],
  seconds: float,
  clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Any], Tried, int]:
  """The best of the configurations that are begun within the time; the first one always is.

  Returns:
    Its parameters, how it did, and the number of configurations tried.
  """
  started, best, count = clock(), None, 0
  for params in candidates:
    if count and clock() - started >= seconds:
      break
    tried, count = evaluate(params), count + 1
    if best is None or tried.loss < best[1].loss:
      best = params, tried
  assert best is not None
  return *best, count


def candidates(space: Mapping[str, Sequence[Any]], seed: int) -> Iterator[dict[str, Any]]:
  """The library's default, which is {}, then points of the space in random order, none twice."""
  from sklearn.model_selection import ParameterGrid, ParameterSampler

  yield {}
  count = min(MOST_TRIED - 1, len(ParameterGrid(dict(space))))
  yield from ParameterSampler(dict(space), count, random_state=seed)


# ---------------------------------------------------------------- the estimators


def make_forest(task: str, params: Mapping[str, Any], seed: int) -> Any:
  """A random forest that predicts its out-of-bag rows."""
  from sklearn import ensemble

  kind = ensemble.RandomForestClassifier if task == 'classification' else ensemble.RandomForestRegressor
  return kind(oob_score=True, n_jobs=CORES, random_state=seed, **params)


def make_mlp(task: str, params: Mapping[str, Any], seed: int) -> Any:
  """Bagging of MLPs that predicts its out-of-bag rows."""
  from sklearn import ensemble
  from sklearn.compose import TransformedTargetRegressor
  from sklearn.neural_network import MLPClassifier, MLPRegressor
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  network = (MLPClassifier if task == 'classification' else MLPRegressor)(**params)
  member = make_pipeline(StandardScaler(), network)
  if task == 'classification':
    return ensemble.BaggingClassifier(member, oob_score=True, n_jobs=CORES, random_state=seed)
  member = TransformedTargetRegressor(member, transformer=StandardScaler())
  return ensemble.BaggingRegressor(member, oob_score=True, n_jobs=CORES, random_state=seed)


def make_boosting(task: str, params: Mapping[str, Any], seed: int) -> Any:
  """Histogram gradient boosting."""
  from sklearn import ensemble

  kinds = ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor
  return kinds[task == 'regression'](random_state=seed, **params)


@dataclass
class Standardised:
  """A model that sees standardised inputs, and in regression targets, by the moments of the rows it is fitted on."""

  model: Any
  moments: tuple[Any, ...] = field(default=(), init=False)

  def fit(self, x: np.ndarray, y: np.ndarray) -> 'Standardised':
    """Fits the model; its progress bar is not shown."""
    of = lambda a: (a.mean(axis=0), np.maximum(a.std(axis=0), 1e-12))
    self.moments = of(x) + ((0.0, 1.0) if hasattr(self.model, 'predict_proba') else of(y))
    y = y if hasattr(self.model, 'predict_proba') else (y - self.moments[2]) / self.moments[3]
    with contextlib.redirect_stderr(io.StringIO()):
      self.model.fit(self.scaled(x), y)
    return self

  def scaled(self, x: np.ndarray) -> np.ndarray:
    """Inputs as the model sees them."""
    return (x - self.moments[0]) / self.moments[1]

  def predict_proba(self, x: np.ndarray) -> np.ndarray:
    """Probabilities `[N, C]`."""
    return np.asarray(self.model.predict_proba(self.scaled(x)), np.float64)

  def predict(self, x: np.ndarray) -> np.ndarray:
    """Means `[N]`."""
    return np.asarray(self.model.predict(self.scaled(x)), np.float64) * self.moments[3] + self.moments[2]

  def members(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of all samples `[M, N]`."""
    raw = np.asarray(self.model.predict(self.scaled(x), raw=True), np.float64)
    mean, scale = np.moveaxis(raw.reshape(-1, *raw.shape[-2:]), -1, 0)
    deviation = (np.logaddexp(0, scale) + 1e-6) * self.moments[3]
    return mean * self.moments[3] + self.moments[2], np.square(deviation)


def make_bde(task: str, params: Mapping[str, Any], seed: int) -> Standardised:
  """A Bayesian deep ensemble."""
  bde = importlib.import_module('bde')
  return Standardised((bde.BdeClassifier if task == 'classification' else bde.BdeRegressor)(seed=seed, **params))


@dataclass
class Process:
  """A Gaussian process that is fitted to a random part of the rows."""

  task: str
  seed: int
  kernel: str = 'RBF'
  n_restarts_optimizer: int = 0
  model: Any = field(default=None, init=False)
  capped: bool = field(default=False, init=False)

  def fit(self, x: np.ndarray, y: np.ndarray) -> 'Process':
    """Finds the kernel by its marginal likelihood."""
    from sklearn import gaussian_process as gp
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.random.default_rng(self.seed).permutation(len(x))[: MOST_ROWS[self.task]]
    self.capped = len(rows) < len(x)
    scales = 1.0 if self.task == 'classification' else np.ones(x.shape[1])
    kernel = gp.kernels.ConstantKernel() * gp.kernels.Matern(scales, nu=SMOOTHNESS[self.kernel])
    given = dict(n_restarts_optimizer=self.n_restarts_optimizer, random_state=self.seed)
    if self.task == 'classification':
      process = gp.GaussianProcessClassifier(kernel, n_jobs=CORES, **given)
    else:
      process = gp.GaussianProcessRegressor(kernel + gp.kernels.WhiteKernel(), normalize_y=True, **given)
    self.model = make_pipeline(StandardScaler(), process).fit(x[rows], y[rows])
    return self

  def predict_proba(self, x: np.ndarray) -> np.ndarray:
    """Probabilities `[N, C]`."""
    return self.model.predict_proba(x)

  def predict(self, x: np.ndarray) -> np.ndarray:
    """Means `[N]`."""
    return self.model.predict(x)

  def members(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the variance of the one Gaussian, noise included, `[1, N]`."""
    mean, deviation = self.model.predict(x, return_std=True)
    return mean[None], np.square(deviation)[None]


def make_process(task: str, params: Mapping[str, Any], seed: int) -> Process:
  """A Gaussian process."""
  return Process(task, seed, **params)


def out_of_bag(model: Any, task: str, x: np.ndarray, y: np.ndarray, seed: int) -> Tried:
  """By the rows that each member has not seen; a row that all have seen does not count."""
  del seed
  model.fit(x, y)
  found = model.oob_decision_function_ if task == 'classification' else model.oob_prediction_
  known = np.isfinite(found.reshape(len(y), -1)).all(axis=1)
  if task == 'classification':
    return Tried(log_loss(found[known], y[known]), model=model)
  error = float(np.mean(np.square(found - y)[known]))
  return Tried(error, error, model)


def cross_validated(model: Any, task: str, x: np.ndarray, y: np.ndarray, seed: int) -> Tried:
  """By cross-validation with `FOLDS` folds."""
  from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

  if task == 'classification':
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return Tried(log_loss(cross_val_predict(model, x, y, cv=folds, method='predict_proba'), y))
  folds = KFold(FOLDS, shuffle=True, random_state=seed)
  error = float(np.mean(np.square(cross_val_predict(model, x, y, cv=folds) - y)))
  return Tried(error, error)


def validated(model: Any, task: str, x: np.ndarray, y: np.ndarray, seed: int) -> Tried:
  """By a validation part of the rows."""
  from sklearn.model_selection import train_test_split

  labels = y if task == 'classification' else None
  x, x_out, y, y_out = train_test_split(x, y, test_size=SHARE, random_state=seed, stratify=labels)
  model.fit(x, y)
  loss = (
    log_loss(model.predict_proba(x_out), y_out) if labels is not None else mixture_nll(*model.members(x_out), y_out)
  )
  # Where rows are left out anyway, those of the validation part may be among them.
  return Tried(loss if np.isfinite(loss) else np.inf, model=model if getattr(model, 'capped', False) else None)


def of_members(found: Found, x: np.ndarray) -> Forecast:
  """The mean of trees or MLPs, with the variance over them and that of out-of-bag errors."""
  mean_MxN = np.stack([member.predict(x) for member in found.model.estimators_])
  return gaussian(mean_MxN.mean(axis=0), mean_MxN.var(axis=0) + found.variance)


def of_point(found: Found, x: np.ndarray) -> Forecast:
  """A prediction with one variance."""
  return gaussian(found.model.predict(x), np.full(len(x), found.variance))


def of_samples(found: Found, x: np.ndarray) -> Forecast:
  """A mixture over samples, or the one Gaussian of a process."""
  return mixture(*found.model.members(x))


@dataclass(frozen=True)
class Rival:
  """A method of another library.

  Attributes:
    make: `(task, params, seed)` to an estimator that is not fitted.
    space: Values of its main hyperparameters.
    evaluate: How a configuration is scored, `(estimator, task, x, y, seed)`.
    forecast: What it predicts in regression.
    needs: Library that may be missing.
  """

  make: Callable[[str, Mapping[str, Any], int], Any]
  space: Mapping[str, Sequence[Any]]
  evaluate: Callable[..., Tried]
  forecast: Callable[[Found, np.ndarray], Forecast]
  needs: str = ''


RIVALS = {
  'forest': Rival(
    make_forest,
    dict(max_features=['sqrt', 0.3, 0.5, 0.7, 1.0], min_samples_leaf=[1, 2, 3, 5, 10]),
    out_of_bag,
    of_members,
  ),
  'boosting': Rival(
    make_boosting,
    dict(
      learning_rate=[0.03, 0.1, 0.3],
      max_iter=[50, 100, 300],
      max_leaf_nodes=[7, 15, 31],
      min_samples_leaf=[5, 20],
      l2_regularization=[0.0, 1.0],
    ),
    cross_validated,
    of_point,
  ),
  'mlp': Rival(
    make_mlp,
    dict(
      hidden_layer_sizes=[(100,), (50, 50), (100, 100)],
      alpha=[1e-4, 1e-2, 1.0],
      learning_rate_init=[1e-3, 1e-2],
      early_stopping=[False, True],
    ),
    out_of_bag,
    of_members,
  ),
  'bde': Rival(
    make_bde,
    dict(
      n_members=[8],
      hidden_layers=[[16, 16], [32, 32]],
      epochs=[300, 1000],
      patience=[20],
      lr=[3e-3, 1e-2],
      warmup_steps=[500],
      n_samples=[100],
    ),
    validated,
    of_samples,
    needs='bde',
  ),
  'gaussian_process': Rival(
    make_process,
    dict(kernel=list(SMOOTHNESS), n_restarts_optimizer=[0, 2]),
    validated,
    of_samples,
  ),
}


def missing(rival: Rival) -> str:
  """Why a method cannot be run here, or ''."""
  if not rival.needs:
    return ''
  try:
    importlib.import_module(rival.needs)
  except Exception as e:  # another version of JAX breaks it in any way
    return f'it cannot be imported beside the versions that are installed here: {type(e).__name__}: {e}'
  return ''


def fitted(
  name: str, task: str, x: np.ndarray, y: np.ndarray, seed: int, seconds: float, params: Mapping[str, Any] | None = None
) -> Found:
  """Searches for a configuration, and fits it to all rows. One that is given is fitted, and its error is not known."""
  import joblib
  from threadpoolctl import threadpool_limits

  rival = RIVALS[name]
  # Members are fitted in threads of their own. More threads for each small product slow them.
  with joblib.parallel_config(backend='threading'), threadpool_limits(1, user_api='blas'):
    evaluate = lambda some: rival.evaluate(rival.make(task, some, seed), task, x, y, seed)
    if params is not None:
      return Found(_alone(rival.make(task, params, seed).fit(x, y)), params, float('nan'), 1)
    tries = candidates(rival.space, seed)
    best, tried, count = search(tries, evaluate, seconds)
    model = rival.make(task, best, seed).fit(x, y) if tried.model is None else tried.model
  return Found(_alone(model), best, tried.variance, count)


def _alone(model: Any) -> Any:
  """A fitted model that predicts without more threads: they make the prediction of one row slower."""
  if hasattr(model, 'n_jobs'):
    model.n_jobs = None
  return model


def forecast(name: str, task: str, found: Found, x: np.ndarray) -> Forecast:
  """What a fitted method predicts, with its sets or intervals."""
  return classes(found.model.predict_proba(x)) if task == 'classification' else RIVALS[name].forecast(found, x)


def size(model: Any) -> float:
  """Bytes of the pickled model; NaN where it cannot be pickled."""
  try:
    return float(len(pickle.dumps(model)))
  except Exception:  # a library may hold what pickle refuses in many ways
    return float('nan')
