"""Estimators of scikit-learn: an ensemble, or a teacher that is there, distilled into one network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from hydra_jax.data import LEAST_VALIDATION, MOST_VALIDATION
from hydra_jax.errors import UserError
from hydra_jax.estimators import distil as distillation, teachers
from hydra_jax.estimators.distil import Lesson
from hydra_jax.estimators.ensemble import Labelled, ensemble_of
from hydra_jax.evaluation.predictor import Prediction, Predictor
from hydra_jax.maths.uncertainty import Uncertainty
from hydra_jax.nets.stages import Stage, mlp


class _Hydra(BaseEstimator):
  """What the classifier and the regressor have in common."""

  def __init__(
    self,
    teacher=None,
    *,
    members=20,
    method='hydra',
    network='auto',
    validation=0.1,
    epochs='auto',
    cv=5,
    settings=None,
    random_state=None,
    verbose=True,
  ):
    self.teacher = teacher
    self.members = members
    self.method = method
    self.network = network
    self.validation = validation
    self.epochs = epochs
    self.cv = cv
    self.settings = settings
    self.random_state = random_state
    self.verbose = verbose

  def fit(self, X, y, sample_weight=None):
    """Trains the ensemble, or takes the teacher, and distils it.

    Args:
      X: Inputs `[N, features]`.
      y: Labels `[N]`; in regression also `[N, targets]`.
      sample_weight: Weight of each row in all losses `[N]`.

    Returns:
      This estimator.
    """
    x, y = self._read(X, y)
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, x, ensure_non_negative=True)
    seed = int(check_random_state(self.random_state).randint(2**31 - 1))
    targets = self._targets(y)
    kept = np.arange(len(x)) if weight is None else np.flatnonzero(weight)
    if not len(kept):
      raise ValueError('sample_weight is 0 for all rows')
    held_out = self._held_out(targets[kept], seed)
    given = Labelled(
      x=x[kept],
      y=targets[kept],
      outputs=self._outputs(targets),
      weight=None if weight is None else weight[kept],
      classes=self._names(),
    )
    lesson = self._lesson(X, y, given, weight, kept, held_out, seed)
    score = lambda predictor: label_score(predictor, given.x[held_out], given.y[held_out])
    student = distillation.student_of(
      lesson, self.method, self._network(), seed, held_out, self._settings(given), bool(self.verbose), score
    )
    self.predictor_ = student
    return self

  def _lesson(self, X, y, given: Labelled, weight, kept, held_out, seed: int) -> Lesson:
    """What the student is taught: by the teacher, or by an ensemble that is trained here."""
    if self.teacher is None:
      settings = self._settings(given)
      self.ensemble_ = ensemble_of(
        given, self.members, self._network(), seed, held_out, settings, bool(self.verbose)
      )
      source = teachers.read(self.ensemble_)
      outputs = source.predict(given.x)
    else:
      weights = {} if weight is None else {'sample_weight': weight}
      self.teacher_ = fitted(self.teacher, X, y, **weights)
      if isinstance(self.teacher_, Predictor):
        self.ensemble_ = self.teacher_
      source = teachers.read(self.teacher_, given.task, getattr(self, 'classes_', None))
      outputs = teachers.labels(source, X, y, self.cv, **weights).of(kept)
    targets = given.y if given.task == 'regression' else None
    outputs = distillation.completed(outputs, targets, len(kept))
    self._check_outputs(outputs, given)
    # Changed inputs are arrays: a teacher that reads names of columns cannot be asked about them.
    source = source if isinstance(X, np.ndarray) else None
    return Lesson(x=given.x, outputs=outputs, source=source, weight=given.weight, classes=given.classes)

  def _check_outputs(self, outputs: teachers.Outputs, given: Labelled) -> None:
    columns = next(iter(outputs.arrays.values())).shape[-1]
    if outputs.task != given.task or columns != given.outputs:
      raise UserError(
        f'the teacher is for {outputs.task} with {columns} outputs, and y for {given.task} with {given.outputs}'
      )

  def _network(self) -> Callable[[int], list[Stage]]:
    return mlp if isinstance(self.network, str) and self.network == 'auto' else self.network

  def _settings(self, given: Labelled) -> dict[str, Any]:
    epochs = {} if self.epochs == 'auto' else {'epochs': float(self.epochs)}
    return epochs | dict(self.settings or {})

  def _predict(self, X) -> Prediction:
    check_is_fitted(self)
    x = validate_data(self, X, reset=False)
    return self.predictor_.predict(x)

  def uncertainty(self, X) -> Uncertainty:
    """How uncertain each prediction is.

    Args:
      X: Inputs `[N, features]`.

    Returns:
      `total`, `aleatoric` and `epistemic`, see `Prediction`: nats `[N]`, or variances shaped like the targets.
    """
    found = self._predict(X)
    return Uncertainty(*(self._shaped(each) for each in (found.total, found.aleatoric, found.epistemic)))

  def predict_members(self, X) -> np.ndarray:
    """What each head predicts: probabilities `[M, N, C]`, or means `[M, N]` or `[M, N, targets]`.

    Args:
      X: Inputs `[N, features]`.
    """
    found = self._predict(X)
    if found.members is None:
      raise UserError(f"method='{self.method}' gives one distribution and no members: use hydra")
    return self._shaped(found.members)

  def _shaped(self, values: np.ndarray) -> np.ndarray:
    return values


class HydraClassifier(ClassifierMixin, _Hydra):
  """A classifier that predicts as an ensemble does, at the price of one network.

  Without a teacher, a deep ensemble is trained and distilled (Hydra, Tran et al. 2020). A teacher is any ensemble that
  `hydra_jax.distil` takes. One of scikit-learn that is not fitted, such as `clone` makes in a grid search, is fitted on
  the rows of `fit`.

  Args:
    teacher: The ensemble; None: `members` networks are trained.
    members: M, number of networks of the ensemble that is trained.
    method: A student that learns from members: `hydra`, `kd`, `endd`, …
    network: `outputs -> stages`, or `auto`.
    validation: Share of the rows that no network learns from, at most 1,000. They decide when training stops, what the
      student is distilled on, and how far its heads are spread. 0, and where they would be fewer than 16: nothing is.
    epochs: Passes over the rows, or `auto`.
    cv: Folds on which scikit-learn models without out-of-bag rows are fitted again; 0: never.
    settings: More settings of the method and of training, such as `{'cut': -2, 'learning_rate': 1e-3}`.
    random_state: Decides all that is random.
    verbose: Whether a progress bar is shown.

  Attributes:
    classes_: Labels, in the order of the columns of `predict_proba`.
    predictor_: The student, a `Predictor`.
    ensemble_: The ensemble that was trained, a `Predictor`.
    teacher_: The teacher, fitted, where one was given.
    n_features_in_: Number of columns.
    feature_names_in_: Their names, where X has names.

  Example:
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> forest = RandomForestClassifier(100).fit(X, y)  # doctest: +SKIP
    >>> student = HydraClassifier(teacher=forest).fit(X, y)  # doctest: +SKIP
    >>> student.predict_proba(X_new), student.uncertainty(X_new).epistemic  # doctest: +SKIP
  """

  def _read(self, X, y):
    x, y = validate_data(self, X, y)
    check_classification_targets(y)
    y = column_or_1d(y, warn=True)
    self.classes_ = np.unique(y)
    if len(self.classes_) < 2:
      raise ValueError(f'y has one class only, {self.classes_[0]}: add rows of another class')
    return x, y

  def _targets(self, y) -> np.ndarray:
    return np.searchsorted(self.classes_, y).astype(np.int32)

  def _outputs(self, targets) -> int:
    return len(self.classes_)

  def _names(self) -> tuple[str, ...]:
    return tuple(map(str, self.classes_))

  def _held_out(self, targets, seed: int) -> np.ndarray:
    return held_out_rows(len(targets), self.validation, seed, targets)

  def predict_proba(self, X) -> np.ndarray:
    """Mean probabilities of the heads, `[N, C]`.

    Args:
      X: Inputs `[N, features]`.
    """
    p = self._predict(X).mean.astype(np.float64)
    return p / p.sum(axis=1, keepdims=True)

  def predict(self, X) -> np.ndarray:
    """The most probable class of each row, `[N]`.

    Args:
      X: Inputs `[N, features]`.
    """
    return self.classes_[self.predict_proba(X).argmax(axis=1)]


class HydraRegressor(RegressorMixin, _Hydra):
  """A regressor that predicts as an ensemble does, at the price of one network.

  Arguments and attributes are those of `HydraClassifier`. Several targets are learnt by one network.

  Example:
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> forest = RandomForestRegressor(100).fit(X, y)  # doctest: +SKIP
    >>> student = HydraRegressor(teacher=forest).fit(X, y)  # doctest: +SKIP
    >>> mean, deviation = student.predict(X_new, return_std=True)  # doctest: +SKIP
  """

  def __sklearn_tags__(self):
    tags = super().__sklearn_tags__()
    tags.target_tags.multi_output = True
    return tags

  def _read(self, X, y):
    x, y = validate_data(self, X, y, multi_output=True, y_numeric=True)
    self._is_flat = y.ndim == 1
    return x, y

  def _targets(self, y) -> np.ndarray:
    return np.asarray(y, np.float64).reshape(len(y), -1)

  def _outputs(self, targets) -> int:
    return targets.shape[1]

  def _names(self) -> tuple[str, ...]:
    return ()

  def _held_out(self, targets, seed: int) -> np.ndarray:
    return held_out_rows(len(targets), self.validation, seed)

  def _shaped(self, values: np.ndarray) -> np.ndarray:
    return values[..., 0] if self._is_flat else values

  def predict(self, X, return_std: bool = False):
    """The mean of each target.

    Args:
      X: Inputs `[N, features]`.
      return_std: Whether the standard deviation of the mixture of all heads is returned too.

    Returns:
      Means `[N]` or `[N, targets]`; with `return_std` also standard deviations of the same shape.
    """
    found = self._predict(X)
    mean = self._shaped(found.mean)
    return (mean, self._shaped(np.sqrt(found.total))) if return_std else mean


def held_out_rows(rows: int, share: float, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
  """Rows of the validation part, in order; of each class its share, where all classes have two rows."""
  count = min(round(share * rows), MOST_VALIDATION)
  if count < LEAST_VALIDATION:
    return np.zeros(0, np.int64)
  stratify = None
  if classes is not None and np.unique(classes, return_counts=True)[1].min() > 1 and classes.max() < count:
    stratify = classes
  _, held_out = train_test_split(np.arange(rows), test_size=count, random_state=seed, stratify=stratify)
  return np.sort(held_out)


def fitted(teacher: Any, X: Any, y: Any, **weights: Any) -> Any:
  """The teacher; copies of scikit-learn models that are not fitted are fitted on these rows."""
  if isinstance(teacher, list):
    return [fitted(each, X, y, **weights) for each in teacher]
  if type(teacher).__name__ == 'FrozenEstimator':
    return teacher.estimator
  if not isinstance(teacher, BaseEstimator):
    return teacher
  try:
    check_is_fitted(teacher)
    return teacher
  except NotFittedError:
    return clone(teacher).fit(X, y, **weights)


def label_score(predictor: Predictor, x: np.ndarray, y: np.ndarray) -> float:
  """Mean NLL of labels under the mixture of the heads."""
  found = predictor.predict(x)
  if predictor.task == 'classification':
    of_label = np.take_along_axis(found.mean, y[:, None], axis=1)
    return -float(np.mean(np.log(np.maximum(of_label, teachers.LEAST_PROBABILITY), dtype=np.float64)))
  alone = found.mean[None], found.total[None]
  mean, variance = (found.members, found.member_variances) if predictor.has_members else alone
  log_density = -np.sum(np.square(y - mean) / variance + np.log(2 * np.pi * variance), axis=-1) / 2
  return -float(np.mean(scipy.special.logsumexp(log_density, axis=0) - np.log(len(mean))))
