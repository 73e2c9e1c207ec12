"""Estimators of scikit-learn: an ensemble, or a teacher that is there, distilled into one network."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
import functools
import logging
import math
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from hydra_jax.data import LEAST_VALIDATION, MOST_VALIDATION
from hydra_jax.data.columns import Columns
from hydra_jax.errors import UserError
from hydra_jax.estimators import distil as distillation, teachers
from hydra_jax.estimators.defaults import defaults_for
from hydra_jax.estimators.distil import Lesson
from hydra_jax.estimators.ensemble import Labelled, Rule, ensemble_of
from hydra_jax.evaluation.calibrated import around, calibrate, calibrate_by
from hydra_jax.evaluation.predictor import Prediction, Predictor
from hydra_jax.maths import calibration
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.stages import Stage
from hydra_jax.nets.tabular import tabular
from hydra_jax.serving import model_folder

logger = logging.getLogger(__name__)


class Uncertainties(NamedTuple):
  """Three numbers for each row: nats in classification, and variance of each target in regression.

  Attributes:
    total: How uncertain the next label is.
    aleatoric: Part of it on which all heads agree.
    epistemic: Part of it that comes from their disagreement.
  """

  total: np.ndarray
  aleatoric: np.ndarray
  epistemic: np.ndarray


# Settings that the ensemble does not have.
OF_STUDENTS = {'augment'}


@dataclass(frozen=True, kw_only=True)
class Plan:
  """How the networks of one fit are trained.

  Attributes:
    network: `outputs -> stages`, of each member.
    student_network: The same of the student.
    ensemble: Settings of the ensemble.
    student: Settings of the student.
    rule: When training stops.
    held_out: Rows that no network learns from.
    seed: Decides all that is random.
  """

  network: Callable[[int], list[Stage]]
  student_network: Callable[[int], list[Stage]]
  ensemble: dict[str, Any]
  student: dict[str, Any]
  rule: Rule
  held_out: np.ndarray
  seed: int


# How a student is trained, besides what an ensemble is: it stops where it is as close to its teacher as it gets.
MOST_STUDENT_STEPS, STUDENT_STEPS = 3000, 2000
# Passes without an improvement after which a large set is not tried longer.
ENOUGH_PASSES = 5


@functools.lru_cache(maxsize=64)
def _tabular(arguments: tuple[tuple[str, Any], ...]) -> Callable[[int], list[Stage]]:
  """The network of these arguments, the same object each time, so that what was compiled for it serves again."""
  return functools.partial(tabular, **dict(arguments))


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
      X: Inputs `[N, features]`: numbers, or a DataFrame that may have text, categories, dates and missing values.
      y: Labels `[N]`; in regression also `[N, targets]`.
      sample_weight: Weight of each row in all losses `[N]`.

    Returns:
      This estimator.

    Raises:
      UserError: The teacher or a setting is wrong.
      ValueError: X or y cannot be used, as in other estimators of scikit-learn.
    """
    x, y = self._read(X, y)
    if len(x) < 2:
      raise ValueError('n_samples=1: give more rows')
    weight = None if sample_weight is None else _check_sample_weight(sample_weight, x, ensure_non_negative=True)
    seed = int(check_random_state(self.random_state).randint(2**31 - 1))
    kept = np.arange(len(x)) if weight is None else np.flatnonzero(weight)
    targets = self._targets(y)
    given = Labelled(
      x=x[kept],
      y=targets[kept],
      outputs=self._outputs(targets),
      weight=None if weight is None else weight[kept],
      classes=self._names(),
    )
    plan = self._plan(given, seed)
    readable = x if self.columns_ is None else X
    lesson = self._lesson(readable, y, given, weight, kept, plan)
    held_out = plan.held_out
    student = distillation.student_of(
      lesson,
      self.method,
      plan.student_network,
      seed,
      held_out,
      plan.rule,
      plan.student,
      bool(self.verbose),
      lambda predictor: label_score(predictor, given.x[held_out], given.y[held_out]),
    )
    self.predictor_ = replace(student, columns=self.columns_)
    if len(held_out):
      if self.teacher is None:  # a teacher that is there knows these labels, and so does its student in part
        recipe = replace(student.recipe, facts=functools.partial(student.recipe.facts, y=given.y[held_out]))
        self.predictor_ = replace(self.predictor_, recipe=recipe)
      self.predictor_ = self._calibrated_on(held_out, given, lesson, self._labels(y)[kept])
    return self

  def _calibrated_on(self, held_out: np.ndarray, given: Labelled, lesson: Lesson, y: np.ndarray) -> Predictor:
    """The student, calibrated on the validation part.

    A teacher that was fitted on these rows knows their labels, and so does its student in part: its errors are larger
    on new rows. Then the mean of the members that have not seen a row stands for the mean of the student (for ensembles
    alone this is the jackknife after the bootstrap: Kim, Xu and Barber 2020). In classification it is the mean of the
    heads of these members: probabilities of a few trees are rougher than those of all heads, and sets would be larger.
    """
    outputs = lesson.outputs.of(held_out)
    known = np.flatnonzero(outputs.present.any(axis=0))
    if not lesson.is_of_unseen:
      return calibrate(self.predictor_, given.x[held_out], y[held_out])
    if len(known) < LEAST_VALIDATION:
      logger.warning(f'not calibrated: all members have seen all but {len(known)} rows of the validation part')
      return self.predictor_
    rows, outputs = held_out[known], outputs.of(known)
    prediction = self.predictor_.predict(given.x[rows])
    if given.task == 'classification' and METHODS[self.method].matched and not outputs.present.all():
      heads = teachers.Outputs(logits=prediction.log_members)
      outputs = heads.without(~outputs.present) if heads.present.shape == outputs.present.shape else outputs
    return calibrate_by(self.predictor_, around(prediction, teachers.mean_of(outputs)), y[rows])

  def _plan(self, given: Labelled, seed: int) -> 'Plan':
    """How networks are trained, by the size of the table where it is not said."""
    rows, features = given.x.shape
    chosen = defaults_for(rows, features)
    held_out = held_out_rows(rows, self.validation, seed, given.y if given.task == 'classification' else None)
    epochs = {} if self.epochs == 'auto' else {'epochs': float(self.epochs)}
    said = epochs | dict(self.settings or {})
    own = {field.name for field in fields(METHODS[self.method].settings)} if self.method in METHODS else set()
    steps = MOST_STUDENT_STEPS if len(held_out) else STUDENT_STEPS
    passes = steps * chosen.training['batch_size'] / rows
    student = chosen.training | {'epochs': max(10.0, passes)}
    is_auto = isinstance(self.network, str) and self.network == 'auto'
    # A fixed number of passes is kept; what is left out is chosen in training.
    folds = chosen.folds if self.epochs == 'auto' and len(held_out) else 0
    in_passes = math.ceil(ENOUGH_PASSES * rows / chosen.training['batch_size'] / chosen.stretch)
    patience = min(chosen.patience, max(in_passes, 4)) if self.epochs == 'auto' else 0
    return Plan(
      network=_tabular(tuple(chosen.network.items())) if is_auto else self.network,
      student_network=_tabular(tuple(chosen.student_network.items())) if is_auto else self.network,
      ensemble=chosen.training | {name: value for name, value in said.items() if name not in own | OF_STUDENTS},
      student=student | said,
      rule=Rule(folds, patience, chosen.average),
      held_out=held_out,
      seed=seed,
    )

  def _lesson(self, X, y, given: Labelled, weight, kept, plan: 'Plan') -> Lesson:
    """What the student is taught: by the teacher, or by an ensemble that is trained here."""
    if self.teacher is None:
      self.ensemble_, taught = ensemble_of(
        given, self.members, plan.network, plan.seed, plan.held_out, plan.rule, plan.ensemble, bool(self.verbose)
      )
      source = teachers.read(taught)
      outputs, is_of_unseen = source.predict(given.x), False
    else:
      weights = {} if weight is None else {'sample_weight': weight}
      self.teacher_ = fitted(self.teacher, X, y, **weights)
      source = teachers.read(self.teacher_, given.task, getattr(self, 'classes_', None))
      outputs = teachers.labels(source, X, y, self.cv, **weights).of(kept)
      is_of_unseen = teachers.labels_are_of_unseen(source, len(y), self.cv)
    columns = next(iter(outputs.arrays.values())).shape[-1]
    if outputs.task != given.task or columns != given.outputs:
      raise UserError(
        f'the teacher is for {outputs.task} with {columns} outputs, and y for {given.task} with {given.outputs}'
      )
    outputs = distillation.completed(outputs, given.y if given.task == 'regression' else None, len(kept))
    # Changed inputs are arrays: a teacher that reads columns of a table by name cannot be asked about them.
    can_ask = self.columns_ is None or self.teacher is None
    return Lesson(
      x=given.x,
      outputs=outputs,
      is_of_unseen=is_of_unseen,
      source=source if can_ask else None,
      weight=given.weight,
      classes=given.classes,
    )

  def _inputs(self, X, y=None) -> np.ndarray:
    """Columns as numbers; where y is given, what becomes of each column of a table is decided."""
    if not is_table(X):
      self.columns_ = None
      return validate_data(self, X)
    validate_data(self, X, skip_check_array=True)
    self.columns_ = Columns.fit(X)
    return self.columns_.encode(X)

  def _encoded(self, X) -> np.ndarray:
    """Inputs of a fitted estimator."""
    check_is_fitted(self, 'predictor_')
    if self.columns_ is None:
      return validate_data(self, X, reset=False)
    validate_data(self, X, reset=False, skip_check_array=True)
    if not is_table(X):
      X = dict(zip(self.feature_names_in_, np.asarray(X).T, strict=True))
    return self.columns_.encode(X)

  def _predict(self, X, members: bool = False) -> Prediction:
    x = self._encoded(X)
    return self.predictor_.predict(x, members=members)

  def __sklearn_is_fitted__(self) -> bool:
    return hasattr(self, 'predictor_')

  def __getstate__(self) -> dict[str, Any]:
    """For pickle: predictors, which hold compiled functions, are plain data there."""
    pack = lambda value: model_folder.packed(value) if isinstance(value, Predictor) else value
    return {name: pack(value) for name, value in super().__getstate__().items()}

  def __setstate__(self, state: dict[str, Any]) -> None:
    unpack = lambda value: model_folder.unpacked(value) if isinstance(value, model_folder.Packed) else value
    super().__setstate__({name: unpack(value) for name, value in state.items()})

  def save(self, folder) -> None:
    """Saves the student as a folder that `hydra_jax.load` reads, see `hydra_jax.save`.

    Args:
      folder: Must not exist, or be empty.
    """
    check_is_fitted(self, 'predictor_')
    model_folder.save(self, folder)

  def calibrate(self, X, y):
    """Fits how certain the student is to rows that nothing was trained on, in place of the validation part of `fit`.

    With such rows, sets and intervals hold the label as often as they promise. The validation part of `fit` has chosen
    between students, and a teacher that is given may have seen it, so that its promise is only nearly kept.

    Args:
      X: Inputs `[N, features]`.
      y: Labels or targets.

    Returns:
      This estimator.
    """
    self.predictor_ = calibrate(self.predictor_, self._encoded(X), self._labels(y))
    return self

  def _calibrated(self) -> Predictor:
    """The student; refused where nothing was held out for what sets and intervals promise."""
    check_is_fitted(self, 'predictor_')
    if self.predictor_.calibration is None:
      raise UserError(
        f'this estimator is not calibrated, as no validation part was held out (validation={self.validation!r}; it '
        f'needs {LEAST_VALIDATION} rows): first .calibrate(X, y), with rows that it has not been fitted on'
      )
    return self.predictor_

  def uncertainty(self, X) -> 'Uncertainties':
    """How uncertain each prediction is.

    Args:
      X: Inputs `[N, features]`.

    Returns:
      `total`, `aleatoric` and `epistemic`, see `Prediction`: nats `[N]`, or variances shaped like the targets.
    """
    found = self._predict(X)
    total, aleatoric, epistemic = map(self._shaped, (found.total, found.aleatoric, found.epistemic))
    return Uncertainties(total, aleatoric, epistemic)

  def predict_members(self, X) -> np.ndarray:
    """What each head predicts: probabilities `[M, N, C]`, or means `[M, N]` or `[M, N, targets]`.

    Args:
      X: Inputs `[N, features]`.
    """
    found = self._predict(X, members=True)
    if found.members is None:
      raise UserError(f"method='{self.method}' gives one distribution and no members: use hydra")
    return self._shaped(found.members)

  def _shaped(self, values: np.ndarray) -> np.ndarray:
    return values


class HydraClassifier(ClassifierMixin, _Hydra):
  """A classifier that predicts as an ensemble does, at the price of one network.

  Without a teacher, a deep ensemble is trained and distilled (Hydra, Tran et al. 2020). A teacher is any ensemble that
  `hydra_jax.distil` takes. One of scikit-learn that is not fitted, such as `clone` makes in a grid search, is fitted on
  the rows of `fit`. A fitted estimator can be pickled, with the teacher and the network if these can; `save` makes a
  folder that is safe to load wherever it comes from.

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
    y = _checked_labels(self, y, dtype=None)
    x = self._inputs(X)
    check_consistent_length(x, y)
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

  def _labels(self, y) -> np.ndarray:
    """Names of the classes, as the predictor has them."""
    return np.asarray(self._names())[self._targets(y)]

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
    column = self.predict_proba(X).argmax(axis=1)
    return self.classes_[column]

  def predict_set(self, X, coverage: float = 0.9, method: str = 'lac') -> np.ndarray:
    """Sets of classes that hold the label with a chance of at least `coverage`, see `Predictor.predict_set`.

    Args:
      X: Inputs `[N, features]`.
      coverage: More than 0 and less than 1.
      method: `lac` for the fewest classes, or `aps` for coverage that is more even.

    Returns:
      Booleans `[N, C]`, with columns as in `classes_`.

    Raises:
      UserError: Nothing was held out in `fit`, and `calibrate` was not called; or the rows held out were too few for
        the coverage.
    """
    return self._calibrated().predict_set(self._encoded(X), coverage, method)


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
    y = _checked_labels(self, y, dtype=np.float64)
    x = self._inputs(X)
    check_consistent_length(x, y)
    self._is_flat = y.ndim == 1
    return x, y

  def _targets(self, y) -> np.ndarray:
    return np.asarray(y, np.float64).reshape(len(y), -1)

  def _outputs(self, targets) -> int:
    return targets.shape[1]

  def _names(self) -> tuple[str, ...]:
    return ()

  def _labels(self, y) -> np.ndarray:
    return self._targets(y)

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

  def predict_interval(self, X, coverage: float = 0.9) -> np.ndarray:
    """Intervals that hold each target with a chance of at least `coverage`, see `Predictor.predict_interval`.

    Args:
      X: Inputs `[N, features]`.
      coverage: More than 0 and less than 1.

    Returns:
      Lower and upper ends, `[N, 2]`, or `[N, targets, 2]`.

    Raises:
      UserError: Nothing was held out in `fit`, and `calibrate` was not called; or the rows held out were too few for
        the coverage.
    """
    found = self._calibrated().predict_interval(self._encoded(X), coverage)
    return found[:, 0] if self._is_flat else found


def is_table(X: Any) -> bool:
  """Whether X is a DataFrame of any library, with a name for each column."""
  return hasattr(X, '__arrow_c_stream__') and all(isinstance(name, str) for name in getattr(X, 'columns', ()))


def _checked_labels(estimator: BaseEstimator, y: Any, dtype: Any) -> np.ndarray:
  """Labels without missing values; refused as scikit-learn refuses them."""
  if y is None:
    raise ValueError(f'{type(estimator).__name__} requires y to be passed, but the target y is None')
  return check_array(y, ensure_2d=False, allow_nd=False, dtype=dtype, input_name='y', ensure_min_samples=0)


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
  """Mean NLL of labels under the mixture of the heads, with the temperature or scale of variances that is best for it.

  A student is calibrated before it is used. Of two, the one that is less badly calibrated need not be the better one.
  """
  found = predictor.predict(x)
  if predictor.task == 'classification':
    log_mean = np.log(np.maximum(found.mean, teachers.LEAST_PROBABILITY), dtype=np.float64)
    log_p = scipy.special.log_softmax(log_mean / calibration.temperature(log_mean, y), axis=1)
    return -float(np.mean(np.take_along_axis(log_p, y[:, None], axis=1)))
  mean, variance = found.members, found.member_variances
  if mean is None or variance is None:
    mean, variance = found.mean[None], found.total[None]
  variance = variance * calibration.variance_scale(mean, variance, y)
  log_density = -np.sum(np.square(y - mean) / variance + np.log(2 * np.pi * variance), axis=-1) / 2
  return -float(np.mean(scipy.special.logsumexp(log_density, axis=0) - np.log(len(mean))))
