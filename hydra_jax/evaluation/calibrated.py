"""What is fitted to held-out labelled examples for one predictor: how certain it is, and conformal scores.

Held-out examples are divided at random. A quarter gives the temperature of the mean, or the scale of the variances
(`maths.calibration`). The others give the conformal scores, of predictions that are calibrated already. So for these
scores the calibrated predictor is as fixed as its network, and the promise of `maths.conformal` holds exactly. With the
same examples for both, their labels would fit the prediction better than new ones. Simulations show no effect on the
coverage (less than 0.002, with 19 to 399 examples), but nothing rules it out.

Uncertainties need no labels, and are not changed by the temperature: those of all held-out examples are kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.special

from hydra_jax.data import LEAST_VALIDATION, check_labels, labels
from hydra_jax.errors import UserError, look_up
from hydra_jax.maths import calibration as label_calibration, conformal

if TYPE_CHECKING:
  from hydra_jax.evaluation.predictor import Prediction, Predictor

logger = logging.getLogger(__name__)

# One of four examples, and at most 1,000, give the temperature or the scale. That is one number, which has a prior, so
# that few labels are enough. Scores need more: the fewer there are, the more coverage varies between calibrations.
ONE_FOR_SCALE_OF, MOST_FOR_SCALE = 4, 1000
# Of each kind of scores, the most that are kept.
MOST_SCORES = 2000
CALIBRATE = 'calibrate(predictor, x, y)'
# Ranges of what a saved calibration may have.
MOST_EXAMPLES, MOST_TARGETS, LARGEST_SCORE, ROUNDING = 10**12, 10_000, 1e300, 1e-3
SCALES = {'classification': label_calibration.TEMPERATURES, 'regression': label_calibration.VARIANCE_SCALES}
RANKINGS = ('epistemic', 'total')
# Methods of conformal sets: the scores of labels, and the sets of classes.
SET_METHODS = {'lac': (conformal.lac_scores, conformal.lac_sets), 'aps': (conformal.aps_scores, conformal.aps_sets)}


@dataclass(frozen=True)
class Calibration:
  """What was fitted to held-out labelled examples for one predictor; made by `calibrate`.

  Attributes:
    task: Key of `maths.tasks.TASKS`.
    label_scale: Classification: temperature of the mean prediction. Regression: factor of all variances.
    scores: Conformal scores by name, each ascending and `thinned`: `lac` and `aps` in classification, `residual_0`,
      `residual_1` and so on in regression, one for each target.
    scored: Number of examples that the scores were taken from.
    ranking: The uncertainty by which inputs are ranked as out-of-domain: `epistemic`, or `total` where the network has
      no epistemic uncertainty.
    uncertainties: This uncertainty of the held-out examples, ascending and `thinned`.
    examples: Number of all held-out examples.

  Example:
    >>> found = Calibration('regression', 1.5, {'residual_0': (0.1, 0.7)}, 2, 'total', (0.5, 2.0, 2.5, 3.0), 4)
    >>> Calibration.from_json(found.to_json()) == found
    True
  """

  task: str
  label_scale: float
  scores: Mapping[str, tuple[float, ...]]
  scored: int
  ranking: str
  uncertainties: tuple[float, ...]
  examples: int

  def to_json(self) -> dict[str, Any]:
    """The same as a dict of numbers, texts and plain lists."""
    scores = {name: list(values) for name, values in self.scores.items()}
    return {**vars(self), 'scores': scores, 'uncertainties': list(self.uncertainties)}

  @classmethod
  def from_json(cls, found: Any) -> 'Calibration':
    """Reads what `to_json` has made, and anybody may have changed since.

    Args:
      found: As a JSON reader returns it.

    Raises:
      UserError: Something in it is missing, unknown, of another type, out of its range, or not in order.
    """
    _expect(isinstance(found, dict), 'it is no object')
    _expect(set(found) == set(cls.__dataclass_fields__), f'its keys are not {", ".join(cls.__dataclass_fields__)}')
    _expect(isinstance(found['task'], str) and found['task'] in SCALES, f'task is none of {", ".join(SCALES)}')
    low, high = SCALES[found['task']]
    scale = _number(found['label_scale'], 'label_scale')
    _expect(low * (1 - ROUNDING) <= scale <= high * (1 + ROUNDING), f'label_scale is not from {low:g} to {high:g}')
    examples = _count(found['examples'], 'examples', MOST_EXAMPLES)
    scored = _count(found['scored'], 'scored', examples)
    _expect(found['ranking'] in RANKINGS, f'ranking is none of {", ".join(RANKINGS)}')
    _expect(isinstance(found['scores'], dict), 'scores is no object')
    names = _names_of(found['task'], len(found['scores']))
    _expect(set(found['scores']) == set(names), 'scores has other names')
    most = 1 + ROUNDING if found['task'] == 'classification' else LARGEST_SCORE
    scores = {name: _ascending(found['scores'][name], f'scores.{name}', scored, most) for name in names}
    # Where the epistemic uncertainty is −log of a density, it can be negative.
    uncertainties = _ascending(found['uncertainties'], 'uncertainties', examples, LARGEST_SCORE, -LARGEST_SCORE)
    return cls(found['task'], scale, scores, scored, found['ranking'], uncertainties, examples)


def _expect(right: bool, what: str) -> None:
  if not right:
    raise UserError(f'the calibration is not as it was saved ({what}): {CALIBRATE} makes a new one')


def _number(value: Any, what: str) -> float:
  _expect(type(value) in (int, float) and abs(value) <= LARGEST_SCORE, f'{what} is no number')  # NaN is not <=
  return float(value)


def _count(value: Any, what: str, most: int) -> int:
  _expect(type(value) is int and 1 <= value <= most, f'{what} is no whole number from 1 to {most}')
  return value


def _ascending(values: Any, what: str, examples: int, most: float, least: float = 0) -> tuple[float, ...]:
  """Saved scores, checked: in range, ascending, and as many as `thinned` keeps of this number of examples."""
  right = isinstance(values, list) and len(values) == min(examples, MOST_SCORES)
  _expect(right, f'{what} is no list of {min(examples, MOST_SCORES)} numbers')
  numbers = tuple(_number(value, what) for value in values)
  _expect(least <= numbers[0] and numbers[-1] <= most, f'{what} has a number that is not from {least:g} to {most:g}')
  _expect(all(a <= b for a, b in zip(numbers, numbers[1:])), f'{what} is not ascending')
  return numbers


def _names_of(task: str, targets: int) -> list[str]:
  """Of the scores."""
  _expect(1 <= targets <= MOST_TARGETS, 'scores has another number of rows')
  return list(SET_METHODS) if task == 'classification' else [f'residual_{d}' for d in range(targets)]


def calibrate(predictor: 'Predictor', x: Any, y: Any, batch_size: int = 500) -> 'Predictor':
  """Fits a predictor's certainty to held-out labelled examples, for `predict_set`, `predict_interval` and others.

  A quarter of the examples, drawn at random and at most 1,000, give the temperature of the mean prediction, or in
  regression a factor of all variances. The others give conformal scores. A coverage of 0.95 needs 25 examples, 0.99
  needs 131, and 0.999 needs 1,331. More make the coverage of a single calibration less random: with 1,000 examples and
  0.9, it is within 0.022 of what was asked for in 19 of 20 cases.

  Args:
    predictor: A trained network. Where it is calibrated already, that is left out.
    x: Inputs `[N, …]` as for `predict`. Nothing was trained on them.
    y: Labels, one for each input. Classification: names or numbers of the classes, as in the data set, `[N]`.
      Regression: targets `[N, D]` or `[N]`, in their units.
    batch_size: Inputs that are computed at once.

  Returns:
    The same predictor, whose `calibration` is set and changes what it predicts.

  Raises:
    UserError: There are fewer than 16 examples, labels of other classes, or shapes or values that do not fit.

  Example:
    >>> predictor = hydra_jax.calibrate(predictor, x_held_out, y_held_out)  # doctest: +SKIP
    >>> predictor.predict_set(x, coverage=0.95)  # booleans [N, C]  # doctest: +SKIP
  """
  return calibrate_by(predictor, _changed(predictor, None).predict(x, batch_size), y)


def around(prediction: 'Prediction', mean: np.ndarray) -> 'Prediction':
  """The prediction with another mean, about which the members are spread as before.

  Args:
    prediction: Of a student.
    mean: Of its teacher: probabilities `[N, C]`, or means `[N, D]`.
  """
  mean = mean.astype(prediction.mean.dtype)
  if prediction.total.ndim == 1 or prediction.members is None:
    return replace(prediction, mean=mean, log_members=None)
  return replace(prediction, mean=mean, members=prediction.members + (mean - prediction.mean))


def calibrate_by(predictor: 'Predictor', prediction: 'Prediction', y: Any) -> 'Predictor':
  """See `calibrate`.

  Args:
    predictor: A trained network.
    prediction: Of held-out examples: what the network predicts without a calibration. For a student whose teacher has
      seen these examples, it is the prediction `around` the mean of those members that have not.
    y: Labels of these examples.
  """
  _refuse_overflow(prediction)
  labelled = labels_of(predictor, prediction, y)
  examples = len(labelled)
  if examples < LEAST_VALIDATION:
    raise UserError(f'{examples} examples are too few to calibrate on: give at least {LEAST_VALIDATION}')
  rows = np.random.default_rng(0).permutation(examples)
  for_scale = min(examples // ONE_FOR_SCALE_OF, MOST_FOR_SCALE)
  scale = _label_scale(prediction, labelled, np.sort(rows[:for_scale]))
  prediction = scaled(prediction, scale, predictor.has_members)
  columns = _scores(prediction, labelled, np.sort(rows[for_scale:]))
  ranking = RANKINGS[0] if np.any(prediction.epistemic) else RANKINGS[1]
  found = Calibration(
    predictor.task,
    scale,
    {name: _kept(values) for name, values in columns.items()},
    examples - for_scale,
    ranking,
    _kept(one_number(getattr(prediction, ranking), predictor)),
    examples,
  )
  what = 'temperature' if predictor.task == 'classification' else 'factor of all variances'
  logger.info(
    f'calibrated on {examples} held-out examples, drawn at random: {what} {scale:.3g} from {for_scale}, conformal '
    f'scores from {examples - for_scale}; {ranking} uncertainty tells which inputs are out-of-domain'
  )
  return _changed(predictor, found)


def _refuse_overflow(prediction: 'Prediction') -> None:
  """Raises a `UserError` where inputs are so large that the network has no finite outputs for them."""
  values = np.concatenate([each.reshape(len(each), -1) for each in (prediction.mean, prediction.total)], axis=1)
  if len(rows := np.flatnonzero(~np.isfinite(values).all(axis=1))):
    raise UserError(f'the prediction is not finite for {len(rows)} inputs, first row {rows[0]}: leave these out')


def _changed(predictor: 'Predictor', calibration: Calibration | None) -> 'Predictor':
  """The predictor with another calibration. Its network is not compiled again."""
  made = replace(predictor, calibration=calibration)
  vars(made)['_programs'] = predictor._programs
  return made


def _kept(values_N: np.ndarray) -> tuple[float, ...]:
  return tuple(conformal.thinned(values_N, MOST_SCORES).tolist())


def labels_of(predictor: 'Predictor', prediction: 'Prediction', y: Any) -> np.ndarray:
  """Labels in the user's units, checked: columns of the classes, `[N]` int, or targets `[N, D]` float64."""
  values, (examples, outputs) = _array(y), prediction.mean.shape
  if values.ndim and len(values) != examples:
    raise UserError(f'y has {len(values):,} labels for {examples:,} inputs: they must match')
  if predictor.task == 'regression':
    if values.dtype.kind in 'SU':
      raise UserError(f'y holds names such as {str(values.flat[0])!r}, and the predictor has learnt quantities')
    targets = labels.flat(values, 'y').astype(np.float64)
    return check_labels(targets.reshape(len(targets), -1), 'y', examples, None, outputs)
  if values.dtype.kind == 'b' and predictor.classes:
    values = values.astype(str)
  found = _columns(labels.flat(values, 'y'), predictor.classes, outputs)
  return check_labels(found, 'y', examples, outputs, outputs)


def _array(y: Any) -> np.ndarray:
  """Labels as an array of numbers or of names, also where a table has them as Python objects."""
  try:
    values = np.asarray(y)
    values = np.array(values.tolist()) if values.dtype.kind in 'OT' else values
  except ValueError:
    values = np.asarray(None)
  if values.dtype.kind == 'O':
    raise UserError('y is no array of numbers or of names: give one label for each input')
  return values


def _columns(y_N: np.ndarray, classes: tuple[str, ...], outputs: int) -> np.ndarray:
  """The column of each label: by its name, or its number where classes are numbered."""
  if y_N.ndim != 1:
    raise UserError(f'y has shape {list(y_N.shape)}: give one class for each example')
  if y_N.dtype.kind == 'f':
    if not np.all(y_N == np.rint(y_N)):
      raise UserError(f'y holds {y_N[y_N != np.rint(y_N)][0]:.6g}, which is no class: give names or whole numbers')
    y_N = y_N.astype(np.int64)
  known = {name: column for column, name in enumerate(classes)}
  if not known:
    if y_N.dtype.kind == 'U':
      raise UserError(f'y holds {str(y_N[0])!r}, and the classes are numbers from 0 to {outputs - 1}: give numbers')
    return y_N
  values, at = np.unique(y_N, return_inverse=True)
  columns = np.array([known.get(str(value), -1) for value in values])
  if len(unknown := values[columns < 0]):
    some = ', '.join(classes[:8]) + (', …' if len(classes) > 8 else '')
    raise UserError(f"y has the class '{unknown[0]}', and the classes are {some}: leave out examples of others")
  return columns[at]


def _label_scale(prediction: 'Prediction', labelled: np.ndarray, rows: np.ndarray) -> float:
  """The temperature or the factor of variances that is likeliest by the labels of some rows."""
  if labelled.ndim == 1:
    return label_calibration.temperature(_log_mean(prediction)[rows], labelled[rows])
  if prediction.members is None or prediction.member_variances is None:
    mean, variance = prediction.mean[None], prediction.total[None]
  else:
    mean, variance = prediction.members, prediction.member_variances
  return label_calibration.variance_scale(mean[:, rows], variance[:, rows], labelled[rows])


def _log_mean(prediction: 'Prediction') -> np.ndarray:
  """Log of the mean probabilities, float64 `[N, C]`; from the members where one is too small for float32."""
  with np.errstate(divide='ignore'):
    log_mean = np.log(prediction.mean.astype(np.float64))
  if prediction.log_members is not None:
    rows = np.any(prediction.mean < np.finfo(np.float32).tiny, axis=1)
    members = prediction.log_members[:, rows].astype(np.float64)
    log_mean[rows] = scipy.special.logsumexp(members, axis=0) - math.log(len(members))
  return log_mean


def _scores(prediction: 'Prediction', labelled: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
  """Conformal scores of some rows by name, of predictions that are calibrated."""
  if labelled.ndim == 1:
    return {name: scores(prediction.mean[rows], labelled[rows]) for name, (scores, _) in SET_METHODS.items()}
  deviation = np.sqrt(prediction.total[rows])
  residuals = conformal.residual_scores(prediction.mean[rows], deviation, labelled[rows])
  return dict(zip(_names_of('regression', residuals.shape[1]), residuals.T, strict=True))


def scaled(prediction: 'Prediction', scale: float, has_members: bool) -> 'Prediction':
  """What is predicted after label calibration.

  Args:
    prediction: As the network makes it.
    scale: Classification: temperature of the mean. Members and uncertainties stay. Regression: factor of the variances
      of the members, and so of the aleatoric uncertainty; the total is the sum again. A network without members
      predicts one distribution, whose variance is scaled with both of its parts.
    has_members: Whether the network has members. The prediction may be without them.

  Returns:
    The same, scaled.
  """
  if prediction.total.ndim == 2:  # regression
    variances = None if prediction.member_variances is None else scale * prediction.member_variances
    aleatoric = scale * prediction.aleatoric
    epistemic = (1.0 if has_members else scale) * prediction.epistemic
    total = aleatoric + epistemic
    return replace(prediction, total=total, aleatoric=aleatoric, epistemic=epistemic, member_variances=variances)
  mean = scipy.special.softmax(_log_mean(prediction) / scale, axis=1)
  return replace(prediction, mean=mean.astype(prediction.mean.dtype))


def one_number(uncertainty: np.ndarray, predictor: 'Predictor') -> np.ndarray:
  """One for each example, `[N]`: of several targets, the mean of variances in units of the variances in training."""
  if uncertainty.ndim == 1:
    return uncertainty
  if uncertainty.shape[1] == 1:
    return uncertainty[:, 0]
  return np.mean(uncertainty / np.square(predictor.model.scaling.y_scale), axis=1)


def predict_set(predictor: 'Predictor', x: Any, coverage: float, method: str, batch_size: int) -> np.ndarray:
  """See `Predictor.predict_set`."""
  sets = sets_for(predictor, coverage, method)
  return sets(predictor.predict(x, batch_size, members=False))


def sets_for(predictor: 'Predictor', coverage: float, method: str = 'lac') -> Callable[['Prediction'], np.ndarray]:
  """A function of predictions that gives the sets of `Predictor.predict_set`."""
  _need_task(predictor, 'classification', 'predict_set')
  sets = look_up(SET_METHODS, method, 'method')[1]
  threshold = _threshold(_needed(predictor), method, coverage)
  return lambda prediction: sets(prediction.mean, threshold, never_empty=True)


def predict_interval(predictor: 'Predictor', x: Any, coverage: float, batch_size: int) -> np.ndarray:
  """See `Predictor.predict_interval`."""
  intervals = intervals_for(predictor, coverage)
  return intervals(predictor.predict(x, batch_size, members=predictor.calibration is None))


def intervals_for(predictor: 'Predictor', coverage: float) -> Callable[['Prediction'], np.ndarray]:
  """A function of predictions, with members if there is no calibration, that gives those of `predict_interval`."""
  _need_task(predictor, 'regression', 'predict_interval')
  if predictor.calibration is None and predictor.has_members:
    share = _share(coverage, 'coverage')

    def of_mixture(prediction: 'Prediction') -> np.ndarray:
      assert prediction.members is not None and prediction.member_variances is not None  # it has members
      return conformal.mixture_intervals(prediction.members, prediction.member_variances, share)

    return of_mixture
  calibration = _needed(predictor)
  thresholds = np.array([_threshold(calibration, name, coverage) for name in calibration.scores])
  return lambda prediction: conformal.intervals(prediction.mean, np.sqrt(prediction.total), thresholds)


def out_of_domain(predictor: 'Predictor', x: Any, batch_size: int) -> np.ndarray:
  """See `Predictor.out_of_domain`."""
  calibration = _needed(predictor)
  found = one_number(getattr(predictor.predict(x, batch_size, members=False), calibration.ranking), predictor)
  found = np.where(np.isfinite(found), found, np.inf)
  return conformal.p_values(found, np.array(calibration.uncertainties), calibration.examples)


def selective(
  predictor: 'Predictor', x: Any, y: Any, risk: float, confidence: float, tolerance: Any, batch_size: int
) -> conformal.Selection:
  """See `Predictor.selective`."""
  risk, confidence = _share(risk, 'risk'), _share(confidence, 'confidence')
  prediction = predictor.predict(x, batch_size, members=False)
  _refuse_overflow(prediction)
  wrong = _wrong(prediction, labels_of(predictor, prediction, y), tolerance)
  needed, asked = conformal.least_examples_for_risk(risk, confidence), f'a risk of {risk} with confidence {confidence}'
  if len(wrong) < needed:
    raise UserError(f'{len(wrong)} examples are too few for {asked}: give at least {needed}, or another risk')
  found = conformal.threshold_for_risk(one_number(prediction.total, predictor), wrong, risk, confidence)
  if not found.coverage:
    raise UserError(f'no threshold keeps {asked}: the lowest bound is {found.bound:.3g}; give more examples or a risk')
  return found


def _wrong(prediction: 'Prediction', labelled: np.ndarray, tolerance: Any) -> np.ndarray:
  """Whether each prediction is wrong, `[N]`: of another class, or a target is off by more than the tolerance."""
  if labelled.ndim == 1:
    if tolerance is not None:
      raise UserError('tolerance is for regression: leave it out')
    return prediction.mean.argmax(axis=1) != labelled
  if tolerance is None:
    raise UserError('give a tolerance, in the units of the targets: a prediction that is off by more counts as wrong')
  allowed = np.asarray(tolerance)
  if allowed.dtype.kind not in 'iuf' or allowed.shape not in ((), labelled.shape[1:]) or not np.all(allowed >= 0):
    raise UserError(f'tolerance is {tolerance!r}: give a number that is not negative, or one for each target')
  return np.any(np.abs(prediction.mean - labelled) > allowed, axis=1)


def accepts(predictor: 'Predictor', x: Any, threshold: float, batch_size: int) -> np.ndarray:
  """See `Predictor.accepts`."""
  return one_number(predictor.predict(x, batch_size, members=False).total, predictor) < threshold


def check_fits(calibration: Calibration, task: str, targets: int) -> None:
  """Raises a `UserError` where a calibration is of a predictor with another task or number of targets."""
  if calibration.task != task or (task == 'regression' and len(calibration.scores) != targets):
    found = f'{calibration.task} with {len(calibration.scores)} kinds of scores'
    raise UserError(f'the calibration is of another predictor ({found}): {CALIBRATE} makes a new one')


def _need_task(predictor: 'Predictor', task: str, what: str) -> None:
  other = {'classification': 'predict_interval', 'regression': 'predict_set'}[task]
  if predictor.task != task:
    raise UserError(f'{what} is for {task}, and this predictor is for {predictor.task}: use {other}')


def _needed(predictor: 'Predictor') -> Calibration:
  if predictor.calibration is None:
    raise UserError(f'the predictor is not calibrated: first predictor = {CALIBRATE}, with held-out labelled examples')
  return predictor.calibration


def _share(value: Any, what: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 < value < 1:
    raise UserError(f'{what} is {value!r}: give a number between 0 and 1, such as 0.95')
  return float(value)


def _threshold(calibration: Calibration, name: str, coverage: Any) -> float:
  """The quantile of the scores; refused where they are too few for the coverage."""
  coverage = _share(coverage, 'coverage')
  if (least := conformal.least_examples(coverage)) > calibration.scored:
    needed, given = _examples_for(least), calibration.examples
    raise UserError(
      f'a coverage of {coverage:.6g} needs {needed:,} held-out examples, and the predictor is calibrated on {given:,}: '
      'calibrate it on more, or ask for less'
    )
  return float(conformal.quantile(np.array(calibration.scores[name]), coverage, calibration.scored))


def _examples_for(scored: int) -> int:
  """The least number of held-out examples that leaves this number for scores."""
  left = lambda examples: examples - min(examples // ONE_FOR_SCALE_OF, MOST_FOR_SCALE)
  return next(n for n in range(scored, scored + MOST_FOR_SCALE + 1) if left(n) >= scored)
