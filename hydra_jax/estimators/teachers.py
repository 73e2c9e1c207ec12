"""Ensembles of other libraries as teachers: what their members predict, and which rows each of them has seen.

A member that has seen a row knows its label. Such predictions are too certain, and members agree on them more than
they do on new rows. So rows that a member was fitted on are left out where the ensemble says which these are
(out-of-bag), or members are fitted again on other rows (out-of-fold), as in stacking (Wolpert 1992).

Shapes: M members, N examples, C classes, D targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import functools
import logging
import sys
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from hydra_jax.errors import UserError
from hydra_jax.evaluation.predictor import Predictor

logger = logging.getLogger(__name__)

# A probability of 0 has no finite logarithm. In KL(member ‖ head) a smaller floor changes nothing.
LEAST_PROBABILITY = 1e-6
# Rows by which the variance of members is estimated.
ENOUGH_ROWS = 5000
MOST_SAMPLES = 100
# Bounds of this variance, in units of the variance of the targets.
LEAST_VARIANCE, MOST_VARIANCE = 1e-6, 10.0


@dataclass(frozen=True, kw_only=True)
class Outputs:
  """What members predict; NaN where a member has no prediction for an example.

  Attributes:
    logits: Classification: `[M, N, C]`.
    mean: Regression: `[M, N, D]` in the units of the targets.
    variance: Regression: the same shape, or None where members give means alone.
  """

  logits: np.ndarray | None = None
  mean: np.ndarray | None = None
  variance: np.ndarray | None = None

  @property
  def task(self) -> str:
    """Key of `TASKS`."""
    return 'regression' if self.logits is None else 'classification'

  @property
  def arrays(self) -> dict[str, np.ndarray]:
    """Those that are there, by name."""
    named = {'logits': self.logits, 'mean': self.mean, 'variance': self.variance}
    return {name: array for name, array in named.items() if array is not None}

  @property
  def present(self) -> np.ndarray:
    """Which members have a prediction for which example, `[M, N]` bool."""
    return ~np.isnan(next(iter(self.arrays.values()))).any(axis=-1)

  def map(self, f: Callable[..., np.ndarray], *others: 'Outputs') -> 'Outputs':
    """Applies `f` to each array, and to the same array of others."""
    return Outputs(**{name: f(array, *(o.arrays[name] for o in others)) for name, array in self.arrays.items()})

  def of(self, rows: np.ndarray) -> 'Outputs':
    """The predictions for some examples."""
    return self.map(lambda array: array[:, rows])

  def without(self, absent_MxN: np.ndarray) -> 'Outputs':
    """The predictions, NaN where `absent`."""
    return self.map(lambda array: np.where(absent_MxN[..., None], np.nan, array))


def joined(parts: Sequence[Outputs], axis: int) -> Outputs:
  """Members one after another (`axis` 0), or examples one after another (`axis` 1)."""
  first, *rest = parts
  return first.map(lambda *arrays: np.concatenate(arrays, axis=axis), *rest)


@dataclass(frozen=True, kw_only=True)
class Teacher:
  """An ensemble as a teacher.

  Attributes:
    predict: Inputs as the ensemble reads them to what all members predict.
    name: For messages.
    classes: Labels of the classes by column; None where they are numbered, or in regression.
    seen: `rows -> [M, N]`, which member was fitted on which of its training rows; None where it does not say, and where
      members may have seen all rows.
    fits: `(x, y, **weights) -> Teacher`, the same ensemble fitted on other rows; None where it cannot be fitted.
    sharp: Whether members give probabilities that may be 0, as trees do. A temperature would change what they mean.
  """

  predict: Callable[[Any], Outputs]
  name: str
  classes: np.ndarray | None = None
  seen: Callable[[int], np.ndarray | None] | None = None
  fits: Callable[..., 'Teacher'] | None = None
  sharp: bool = True


def _from_probabilities(p_NxC: np.ndarray) -> Outputs:
  return Outputs(logits=np.log(np.maximum(np.asarray(p_NxC, np.float64), LEAST_PROBABILITY))[None])


def _columns(p_NxK: np.ndarray, own: Any, classes: np.ndarray | None) -> np.ndarray:
  """Probabilities by column of `classes`, of a member that knows some of them, by name or by number."""
  if classes is None or own is None:
    return p_NxK
  own = np.asarray(own)
  known = np.isin(own, classes).all() and own.dtype.kind == classes.dtype.kind
  is_place = own.dtype.kind in 'iuf' and own.min() >= 0 and own.max() < len(classes)
  if not known and not is_place:
    raise UserError(f'a member predicts the classes {own[:5].tolist()}, and the labels are {classes[:5].tolist()}')
  places = np.searchsorted(classes, own) if known else own.astype(int)
  whole = np.zeros((len(p_NxK), len(classes)))
  whole[:, places] = p_NxK
  return whole


def _means(mean: Any, variance: Any = None) -> Outputs:
  """Means, and maybe variances, of one member, `[N]` or `[N, D]`."""
  shaped = lambda a: None if a is None else np.asarray(a, np.float64).reshape(len(a), -1)[None]
  return Outputs(mean=shaped(mean), variance=shaped(variance))


def _of_model(model: Any, x: Any, task: str | None, classes: np.ndarray | None) -> Outputs:
  """What a model with `predict_proba`, or a regressor with `predict`, says."""
  if hasattr(model, 'predict_proba') and task != 'regression':
    return _from_probabilities(_columns(model.predict_proba(x), getattr(model, 'classes_', None), classes))
  if task == 'classification':
    found = np.asarray(model.predict(x))
    if classes is None:
      raise UserError(f'{type(model).__name__} has no predict_proba, and it is not known which classes there are')
    return _from_probabilities(_columns(found[:, None] == classes[None], classes, classes))
  return _means(model.predict(x))


def _of_function(f: Callable, x: Any, task: str | None, classes: np.ndarray | None) -> Outputs:
  """What a function of inputs says: logits or probabilities `[N, C]`, means `[N]` or `[N, D]`, or (mean, variance)."""
  found = f(x)
  if isinstance(found, tuple):
    return _means(*found)
  found = np.asarray(found, np.float64)
  if task == 'regression' or found.ndim == 1:
    return _means(found)
  if found.ndim != 2:
    raise UserError(f'a member gives an array of shape {list(found.shape)}: it must be [examples, classes]')
  shares = found.min() >= 0 and np.allclose(found.sum(axis=1), 1, atol=1e-4)
  return _from_probabilities(found) if shares else Outputs(logits=found[None])


def _is_torch(model: Any) -> bool:
  torch = sys.modules.get('torch')
  return torch is not None and isinstance(model, torch.nn.Module)


def _of_torch(module: Any, x: Any, task: str | None, classes: np.ndarray | None) -> Outputs:
  """What a PyTorch module says in evaluation mode, without gradients, for float32 on its own device."""
  import torch

  parameter = next(module.parameters(), torch.zeros(()))
  as_array = lambda tensor: tensor.detach().cpu().numpy()

  def call(x):
    with torch.no_grad():
      found = module(torch.as_tensor(np.asarray(x, np.float32)).to(parameter.device))
    return tuple(map(as_array, found)) if isinstance(found, tuple) else as_array(found)

  was_training = module.training
  module.eval()
  try:
    return _of_function(call, x, task, classes)
  finally:
    module.train(was_training)


# Kinds of members in a list: what each is told by, and what it says.
MEMBERS: tuple[tuple[Callable[[Any], bool], Callable[..., Outputs]], ...] = (
  (_is_torch, _of_torch),
  (lambda member: hasattr(member, 'predict_proba') or hasattr(member, 'predict'), _of_model),
  (callable, _of_function),
)


def _of_member(member: Any, x: Any, task: str | None, classes: np.ndarray | None) -> Outputs:
  for is_one, predict in MEMBERS:
    if is_one(member):
      return predict(member, x, task, classes)
  raise UserError(
    f'a member of the teacher is a {type(member).__name__}: give fitted models with predict_proba or predict, '
    'functions of inputs, or PyTorch modules'
  )


def _list(members: Sequence[Any], task: str | None, classes: np.ndarray | None) -> Teacher:
  """Any number of fitted models, functions or modules."""
  if not members:
    raise UserError('the teacher is an empty list: give at least one member')
  if classes is None:
    own = [m.classes_ for m in members if hasattr(m, 'classes_')]
    classes = np.unique(np.concatenate(own)) if own else None

  def predict(x):
    found = [_of_member(member, x, task, classes) for member in members]
    if len({(each.task, *(a.shape for a in each.arrays.values())) for each in found}) > 1:
      raise UserError('members of the teacher predict arrays of different shapes: they must be alike')
    return joined(found, 0)

  can_fit = all(hasattr(member, 'fit') and hasattr(member, 'get_params') for member in members)

  def fits(x, y, **weights):
    from sklearn.base import clone

    return _list([clone(member).fit(x, y, **weights) for member in members], task, classes)

  name = f'{len(members)} × {type(members[0]).__name__}'
  return Teacher(predict=predict, name=name, classes=classes, fits=fits if can_fit else None)


def _refitting(ensemble: Any, read: Callable[..., Teacher]) -> Callable[..., Teacher]:
  def fits(x, y, **weights):
    from sklearn.base import clone

    return read(clone(ensemble).fit(x, y, **weights), None, None)

  return fits


def _checked_inputs(ensemble: Any, x: Any, **options: Any) -> np.ndarray:
  """Inputs as an ensemble hands them to its members."""
  from sklearn.utils.validation import validate_data

  return validate_data(ensemble, x, reset=False, ensure_all_finite='allow-nan', **options)


def _samples(ensemble: Any, rows: int) -> np.ndarray | None:
  """`[M, N]`, which member was fitted on which row; None for other rows than those of its training set."""
  if rows != ensemble._n_samples:
    return None
  seen = np.zeros((len(ensemble.estimators_), rows), bool)
  for member, samples in enumerate(ensemble.estimators_samples_):
    seen[member, samples] = True
  return seen


def _forest(forest: Any, task: str | None, classes: np.ndarray | None) -> Teacher:
  """RandomForest and ExtraTrees."""
  del task, classes
  if hasattr(forest, 'classes_') and forest.n_outputs_ > 1:
    raise UserError('the forest predicts several labels for each row: fit one forest for each of them')

  def predict(x):
    x = _checked_inputs(forest, x, dtype=np.float32)
    if hasattr(forest, 'classes_'):
      return joined([_from_probabilities(tree.predict_proba(x, check_input=False)) for tree in forest.estimators_], 0)
    return joined([_means(tree.predict(x, check_input=False)) for tree in forest.estimators_], 0)

  return _of_ensemble(forest, predict, _forest)


def _bagging(bagging: Any, task: str | None, classes: np.ndarray | None) -> Teacher:
  """Bagging of any models, also with subsets of the columns."""
  del task, classes
  task = 'classification' if hasattr(bagging, 'classes_') else 'regression'
  numbers = np.arange(len(bagging.classes_)) if task == 'classification' else None

  def predict(x):
    x = _checked_inputs(bagging, x, dtype=None)
    pairs = zip(bagging.estimators_, bagging.estimators_features_, strict=True)
    return joined([_of_model(model, x[:, features], task, numbers) for model, features in pairs], 0)

  return _of_ensemble(bagging, predict, _bagging)


def _voting(voting: Any, task: str | None, classes: np.ndarray | None) -> Teacher:
  """Voting of any models. Weights of the vote are not kept: heads count alike."""
  del task, classes
  task = 'classification' if hasattr(voting, 'classes_') else 'regression'
  numbers = np.arange(len(voting.classes_)) if task == 'classification' else None
  if voting.weights is not None:
    logger.info('weights of the vote are not distilled: all heads count alike')

  def predict(x):
    return joined([_of_model(model, x, task, numbers) for model in voting.estimators_], 0)

  return _of_ensemble(voting, predict, _voting)


def _of_ensemble(ensemble: Any, predict: Callable[[Any], Outputs], read: Callable[..., Teacher]) -> Teacher:
  return Teacher(
    predict=predict,
    name=f'{type(ensemble).__name__} of {len(ensemble.estimators_)}',
    classes=getattr(ensemble, 'classes_', None),
    seen=functools.partial(_samples, ensemble) if hasattr(ensemble, 'estimators_samples_') else None,
    fits=_refitting(ensemble, read),
  )


def _predictor(predictor: Predictor, task: str | None, classes: np.ndarray | None) -> Teacher:
  """A trained network of this package."""
  del task, classes
  if not predictor.has_members:
    raise UserError('the teacher is one distribution over predictions and has no members: choose another network')

  def predict(x):
    found = predictor.predict(x)
    if predictor.task == 'classification':
      return Outputs(logits=found.log_members)
    return Outputs(mean=found.members, variance=found.member_variances)

  names = np.asarray(predictor.classes) if predictor.classes else None
  return Teacher(predict=predict, name='ensemble', classes=names, sharp=False)


def _bde(model: Any, task: str | None, classes: np.ndarray | None) -> Teacher:
  """An estimator of `bde` (sklearn-contrib-bde). Members are samples of all chains, at most `MOST_SAMPLES` of them."""
  del task, classes

  def predict(x):
    raw = np.asarray(model.predict(x, raw=True), np.float64)  # [chains, samples, N, C or 2]
    raw = raw.reshape(-1, *raw.shape[-2:])
    raw = raw[np.unique(np.linspace(0, len(raw) - 1, MOST_SAMPLES).round().astype(int))]
    if hasattr(model, 'classes_'):
      return Outputs(logits=raw)
    deviation = np.logaddexp(0, raw[..., 1:]) + 1e-6
    return Outputs(mean=raw[..., :1], variance=np.square(deviation))

  return Teacher(predict=predict, name=type(model).__name__, classes=getattr(model, 'classes_', None), sharp=False)


def _function(f: Callable, task: str | None, classes: np.ndarray | None) -> Teacher:
  """A function that gives all members at once: logits `[M, N, C]`, or means and variances."""
  del task, classes
  return Teacher(predict=lambda x: from_arrays(f(x)), name=getattr(f, '__name__', 'function'), sharp=False)


def from_arrays(given: Any) -> Outputs:
  """Logits `[M, N, C]`, or a tuple of means and variances `[M, N, D]` or `[M, N]`."""
  if isinstance(given, tuple):
    mean, variance = (np.asarray(each, np.float64) for each in given)
    return Outputs(**dict(zip(('mean', 'variance'), (a[..., None] if a.ndim == 2 else a for a in (mean, variance)))))
  return Outputs(logits=np.asarray(given))


def _is_of(library: str, *names: str) -> Callable[[Any], bool]:
  """Tells objects of a library by the names of their classes. Nothing is imported."""

  def is_one(teacher):
    kinds = type(teacher).__mro__
    return any(kind.__module__.split('.')[0] == library and kind.__name__ in names for kind in kinds)

  return is_one


# Kinds of ensembles: what each is told by, and how it becomes a teacher.
ADAPTERS: tuple[tuple[Callable[[Any], bool], Callable[..., Teacher]], ...] = (
  (lambda teacher: isinstance(teacher, Predictor), _predictor),
  (_is_of('sklearn', 'BaseForest'), _forest),
  (_is_of('sklearn', 'BaseBagging'), _bagging),
  (_is_of('sklearn', 'VotingClassifier', 'VotingRegressor'), _voting),
  (_is_of('bde', 'Bde'), _bde),
  (lambda teacher: isinstance(teacher, list), _list),
  (_is_torch, lambda teacher, task, classes: _list([teacher], task, classes)),
  (lambda teacher: callable(teacher) and not hasattr(teacher, 'fit'), _function),
)


def read(teacher: Any, task: str | None = None, classes: np.ndarray | None = None) -> Teacher:
  """An ensemble as a teacher.

  Args:
    teacher: A `Predictor`; a fitted forest, bagging or vote of scikit-learn; a fitted estimator of `bde`; a list of
      fitted models, functions or PyTorch modules; or a function that gives all members at once.
    task: Key of `TASKS`; None: told by what the members predict.
    classes: Labels of the classes in order, where they are known.

  Raises:
    UserError: It is nothing of the kind, or is not fitted.
  """
  for is_one, adapter in ADAPTERS:
    if is_one(teacher):
      if (
        hasattr(teacher, 'fit') and not hasattr(teacher, 'estimators_') and _is_of('sklearn', 'BaseEstimator')(teacher)
      ):
        raise UserError(f'the teacher {type(teacher).__name__} is not fitted: call its fit first')
      return adapter(teacher, task, classes)
  what = type(teacher).__name__
  if hasattr(teacher, 'estimators_'):
    raise UserError(
      f'{what} adds up its estimators, so that they are no members: give a list of several, fitted by seeds'
    )
  raise UserError(
    f'the teacher is a {what}: give arrays [M, N, C], a forest, bagging or voting of scikit-learn, a Predictor, a list '
    'of fitted models or functions, or a function that gives the predictions of all members'
  )


def labels(teacher: Teacher, x: Any, y: np.ndarray | None = None, cv: Any = 5, **weights: np.ndarray) -> Outputs:
  """What members predict for rows, where possible for rows that they have not seen.

  * The rows are those that the ensemble was fitted on, and it says which member has seen which: out-of-bag, NaN where
    a member has seen a row.
  * Members may have seen all of them, and can be fitted: out-of-fold, by the same ensemble fitted `cv` times.
  * Otherwise as they are.

  Args:
    teacher: The ensemble.
    x: Inputs as the ensemble reads them.
    y: Labels as the ensemble was fitted on; None: members are not fitted again.
    cv: Number of folds, or a splitter of scikit-learn; 0: members are not fitted again.
    **weights: `sample_weight` `[N]` for `fit`, if there is one.
  """
  seen = teacher.seen(len(x)) if teacher.seen else None
  if seen is not None and not seen.all():
    logger.info(f'{teacher.name}: out-of-bag labels, {1 - seen.mean():.0%} of {len(x):,} rows × {len(seen)} members')
    return teacher.predict(x).without(seen)
  if teacher.fits and cv and y is not None and _may_have_seen(teacher, seen):
    return _out_of_fold(teacher, x, y, cv, **weights)
  if _may_have_seen(teacher, seen):
    logger.info(
      f'{teacher.name}: its members may have seen these rows; with y and cv=5 they are fitted again on others'
    )
  return teacher.predict(x)


def _may_have_seen(teacher: Teacher, seen: np.ndarray | None) -> bool:
  return seen is not None or bool(teacher.fits and not teacher.seen)


def labels_are_of_unseen(teacher: Teacher, rows: int, cv: Any) -> bool:
  """Whether `labels`, with y, are of members that have not seen the row: out-of-bag, or out-of-fold."""
  seen = teacher.seen(rows) if teacher.seen else None
  return (seen is not None and not seen.all()) or bool(teacher.fits and cv and _may_have_seen(teacher, seen))


def mean_of(outputs: Outputs) -> np.ndarray:
  """Mean probabilities `[N, C]`, or means `[N, D]`, over the members that have a prediction; NaN where none has."""
  arrays = scipy.special.softmax(outputs.logits, axis=-1) if outputs.mean is None else outputs.mean
  present = outputs.present[..., None]
  with np.errstate(invalid='ignore'):
    return np.where(present, arrays, 0).sum(axis=0) / present.sum(axis=0)


def _out_of_fold(teacher: Teacher, x: Any, y: np.ndarray, cv: Any, **weights: np.ndarray) -> Outputs:
  """What members predict that are fitted on the other folds."""
  from sklearn.model_selection import KFold, StratifiedKFold
  from sklearn.utils import _safe_indexing

  assert teacher.fits is not None
  if isinstance(cv, int):
    rare = np.unique(y, return_counts=True)[1].min() < cv
    kind = StratifiedKFold if teacher.classes is not None and not rare else KFold
    cv = kind(min(cv, len(y)), shuffle=True, random_state=0)
  logger.info(f'{teacher.name}: out-of-fold labels, the ensemble is fitted {cv.get_n_splits()} times')
  found, order = [], []
  for others, rows in cv.split(x, y):
    own = {name: weight[others] for name, weight in weights.items() if weight is not None}
    fitted = teacher.fits(_safe_indexing(x, others), y[others], **own)
    found.append(fitted.predict(_safe_indexing(x, rows)))
    order.append(rows)
  return joined(found, 1).of(np.argsort(np.concatenate(order)))


def with_variance(outputs: Outputs, y_NxD: np.ndarray) -> Outputs:
  """Means with one variance for each target, the likeliest one of the mixture of members.

  It is the same for all members and rows. Where members have not seen the rows, it is that of the noise.

  Args:
    outputs: Means of members, NaN where they have none.
    y_NxD: Targets in the same units.
  """
  assert outputs.mean is not None
  if outputs.variance is not None:
    return outputs
  found = [likeliest_variance(outputs.mean[..., d], y_NxD[:, d]) for d in range(y_NxD.shape[1])]
  deviations = ', '.join(f'{np.sqrt(variance):.4g}' for variance in found[:5])
  logger.info(f'members predict means alone: the standard deviation of the noise is estimated as {deviations}')
  return replace(outputs, variance=np.where(np.isnan(outputs.mean), np.nan, np.asarray(found)))


def likeliest_variance(mean_MxN: np.ndarray, y_N: np.ndarray) -> float:
  """The v for which the mixtures of N(mean_m, v) over the members that are present are likeliest for y.

  Example:
    >>> y = np.random.default_rng(0).normal(scale=3, size=5000)
    >>> round(likeliest_variance(np.zeros((1, 5000)), y) ** 0.5, 1)
    3.0
  """
  some = slice(None, None, max(1, len(y_N) // ENOUGH_ROWS))
  mean, y = mean_MxN[:, some], y_N[some]
  unit = max(float(np.var(y_N)), np.finfo(float).tiny)
  squares = np.square(mean - y) / unit
  present = ~np.isnan(squares)

  def nll(log_v):
    log_p = np.where(present, -(squares / np.exp(log_v) + log_v) / 2, -np.inf)
    return -np.mean(scipy.special.logsumexp(log_p, axis=0)[present.any(axis=0)])

  bounds = np.log(LEAST_VARIANCE), np.log(MOST_VARIANCE)
  return unit * float(np.exp(scipy.optimize.minimize_scalar(nll, bounds=bounds, method='bounded').x))
