"""Distillation of an ensemble into one network, without a config or a work directory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
import functools
import logging
from typing import Any

import numpy as np
import scipy.special

from hydra_jax.data import Scaling, Split, check_inputs, moments, standardise, standardised, validation_rows
from hydra_jax.errors import UserError
from hydra_jax.estimators import absent, swaps, teachers, training
from hydra_jax.estimators.ensemble import Rule
from hydra_jax.estimators.teachers import Outputs, Teacher
from hydra_jax.estimators.training import Examples
from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment.recipes import built_from
from hydra_jax.experiment.schema import AUTO, DISTILLATION, VECTORS, Settings
from hydra_jax.experiment.validation import apply_spread, matched
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import Phase
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.stages import Stage, mlp
from hydra_jax.serving.card import measured
from hydra_jax.settings import short
from hydra_jax.training import augment

logger = logging.getLogger(__name__)

# Settings for which arrays of inputs and predictions are not enough.
NEEDS_MORE = {
  'augment': 'members that predict on changed inputs',
  'views': 'members that predict on changed inputs',
  'label_weight': 'labels',
  'unlabelled': 'members that predict on other inputs',
  'folds': 'members that can be trained again, which is y and cv here',
}
# Methods that read all members of an example at once.
READS_ALL = ('endd', 'proxy_endd', 'ced', 'moments', 'dlf')
# Copies of each row with noise.
VIEWS = 4


def distil(
  x: Any,
  teacher: Any,
  method: str = 'hydra',
  network: Callable[[int], list[Stage]] = mlp,
  seed: int = 0,
  validation: float = 0.1,
  *,
  y: Any = None,
  cv: Any = 5,
  x_unlabelled: Any = None,
  patience: int = 0,
  average: float = 0.0,
  verbose: bool = True,
  **settings: Any,
) -> Predictor:
  """Distils an ensemble, or its predictions, into one network.

  The teacher is one of

  * logits `[M, N, C]` of the members for these inputs, or in regression a tuple of means and variances, both
    `[M, N, D]` or `[M, N]`, in the units of the targets; NaN where a member has no prediction;
  * a `Predictor`, such as `train_ensemble` gives;
  * a fitted RandomForest, ExtraTrees, Bagging or Voting of scikit-learn, or a fitted estimator of `bde`;
  * a list of fitted models with `predict_proba` or `predict`, such as XGBoost or LightGBM by seeds;
  * a list of PyTorch modules, or of functions of x that give logits, probabilities, means, or (mean, variance);
  * a function of x that gives the arrays of all members.

  A member knows the labels of rows that it was fitted on. Where x are the rows of a random forest or of bagging, each
  member teaches on rows that it has not seen (out-of-bag). Where other scikit-learn models may have seen all rows, they
  are fitted again on other folds, if y is given (out-of-fold).

  Args:
    x: Inputs `[N, …]`; images are uint8 `[N, height, width, channels]`.
    teacher: As above.
    method: A student that learns from members, such as `hydra`, `kd`, `endd`, `dlf`.
    network: `outputs -> stages`, the network of the student.
    seed: Decides how it starts and the order of the examples.
    validation: Share of the inputs that the student does not learn from, at most 1,000. On these, its heads are spread
      until they disagree as much as the members, and `augment=('auto',)` is decided. 0: neither is done.
    y: Labels `[N]` or targets `[N, D]` of x, as the teacher was fitted on. They are needed to fit members again, and to
      estimate the variance of members of a regression that give means alone. The student does not learn from them.
    cv: Number of folds, or a splitter of scikit-learn; 0: members are not fitted again.
    x_unlabelled: More inputs `[N', …]`, on which a teacher that is no array also teaches.
    patience: Training stops after as many scores on the validation part without an improvement, and the best student is
      kept. A score is how far it is from the members; there are 4 in each pass, and at least 50 steps between two. 0:
      training is as long as `epochs` says.
    average: Decay of a running average of the parameters, such as 0.99, which is what is kept; 0: the last ones are.
    verbose: Whether a progress bar is shown.
    **settings: Of the method, as under `config.student`, such as `cut=-2`, `temperature=1.0`, `epochs=50.0`,
      `learning_rate=1e-3`. Where the teacher is no array and inputs are vectors, `augment` is `('auto',)` (on
      copies of the rows with values of other rows too, or not: what predicts the validation part better), `('swap',)`,
      `('noise',)` or `()`.

  Returns:
    The trained student.

  Raises:
    UserError: An argument is wrong.

  Example:
    >>> student = hydra_jax.distil(x, logits, cut=-1, epochs=50.0)  # doctest: +SKIP
    >>> student.predict(x_new).epistemic  # doctest: +SKIP
  """
  given, x = x, check_inputs(np.asarray(x), 'x')
  y = None if y is None else np.asarray(y)
  source: Teacher | None = None
  if is_arrays(teacher):
    outputs = teachers.from_arrays(teacher)
    if x_unlabelled is not None:
      raise UserError(
        'x_unlabelled needs a teacher that predicts on other inputs: give the ensemble in place of arrays'
      )
  else:
    source = teachers.read(teacher)
    outputs = teachers.labels(source, given, y, cv)
  lesson = Lesson(x=x, outputs=completed(outputs, y, len(x)), source=source)
  if source is not None and x_unlabelled is not None:
    lesson = with_rows(lesson, check_inputs(np.asarray(x_unlabelled), 'x_unlabelled', x[:8]))
  rule = Rule(0, patience, average)
  return student_of(lesson, method, network, seed, validation_rows(len(x), validation), rule, settings, verbose)


@dataclass(frozen=True, kw_only=True)
class Lesson:
  """What a student is taught.

  Attributes:
    x: Inputs `[N, …]`, finite numbers.
    outputs: What members predict for them. In regression with variances.
    is_of_unseen: Whether these are predictions for rows that members are known not to have seen.
    source: Where members can predict for other inputs of the same form.
    more_x: Other inputs `[N', …]`.
    more: What members predict for these.
    weight: Of each row of x `[N]`; None: all alike.
    classes: Names of the classes, by column.
  """

  x: np.ndarray
  outputs: Outputs
  is_of_unseen: bool = False
  source: Teacher | None = None
  more_x: np.ndarray | None = None
  more: Outputs | None = None
  weight: np.ndarray | None = None
  classes: tuple[str, ...] = ()


def is_arrays(teacher: Any) -> bool:
  """Whether a teacher is given as predictions: an array, nested lists of numbers, or a tuple of two arrays."""
  if isinstance(teacher, list):
    first = teacher
    while isinstance(first, list) and first:
      first = first[0]
    return isinstance(first, np.ndarray | int | float | np.number)
  return isinstance(teacher, tuple) or hasattr(teacher, '__array__')


def completed(outputs: Outputs, y: np.ndarray | None, rows: int) -> Outputs:
  """Checked predictions; variances that members do not give are estimated."""
  if outputs.task == 'regression' and outputs.variance is None:
    if y is None:
      raise UserError('members give means alone: give y, by which their variance is estimated')
    outputs = teachers.with_variance(outputs, y.astype(np.float64).reshape(rows, -1))
  if outputs.task == 'classification':
    logits = outputs.logits
    assert logits is not None
    if logits.ndim != 3 or logits.shape[1] != rows:
      raise UserError(f'teacher has shape {list(logits.shape)}: give logits [members, {rows} examples, classes]')
    if logits.dtype.kind not in 'fiu' or np.isinf(logits).any():
      raise UserError('logits must be finite: leave that member out')
  else:
    mean, variance = outputs.mean, outputs.variance
    assert mean is not None and variance is not None
    if mean.ndim != 3 or mean.shape != variance.shape or mean.shape[1] != rows:
      raise UserError(f'means and variances must be [members, {rows} examples, targets], both alike')
    if np.isinf(mean).any() or np.isinf(variance).any() or not np.nanmin(variance, initial=np.inf) > 0:
      raise UserError('means and variances must be finite, and variances more than 0')
    if (np.isnan(mean) != np.isnan(variance)).any():
      raise UserError('means and variances must be absent, NaN, at the same places')
  if not (present := outputs.present).any(axis=1).all():
    raise UserError(f'member {int(np.argmin(present.any(axis=1)))} predicts nothing but NaN: leave that member out')
  return outputs


def with_rows(lesson: Lesson, x: np.ndarray) -> Lesson:
  """Also teaches on other inputs, that no member has seen."""
  assert lesson.source is not None
  more = lesson.source.predict(x)
  if more.task == 'regression' and more.variance is None:
    assert lesson.outputs.variance is not None
    variance = np.nanmax(lesson.outputs.variance, axis=(0, 1))  # one number for each target
    more = replace(more, variance=np.broadcast_to(variance, more.arrays['mean'].shape))
  return replace(lesson, more_x=x, more=more)


def noisy(x: np.ndarray, scaling: Scaling, seed: int) -> np.ndarray:
  """Copies of vectors with noise, as `augment.noise`."""
  random = np.random.default_rng((seed, 2))
  x = np.tile(x.astype(np.float64), (VIEWS, 1))
  strength = augment.NOISE * random.uniform(size=(len(x), 1))
  return x + strength * scaling.x_scale * random.normal(size=x.shape)


def swapped(x: np.ndarray, scaling: Scaling, seed: int) -> np.ndarray:
  """Copies of vectors with values of other rows, see `swaps`."""
  del scaling
  return swaps.swapped(x, swaps.copies_for(len(x)), (seed, 3))


# Copies of rows that can be made ahead of the training, `(x, scaling, seed) -> [copies · N, features]`, in order.
COPIES: dict[str, Callable[[np.ndarray, Scaling, int], np.ndarray]] = {'noise': noisy, 'swap': swapped}
# Inputs that a student can be distilled on, by what `augment` says.
CHANGES = {AUTO: ((), ('swap',)), **{name: ((name,),) for name in COPIES}}


def with_copies(lesson: Lesson, name: str, scaling: Scaling, seed: int) -> Lesson:
  """Also teaches on changed copies of its rows.

  All members teach on copies, also those that have seen the row. With a third of the trees on each copy, students of
  random forests were further from the forest, and worse.
  """
  x = COPIES[name](lesson.x, scaling, seed)
  taught = with_rows(lesson, x)
  assert taught.more is not None
  if lesson.more is None or lesson.more_x is None:
    return taught
  return replace(taught, more=teachers.joined([lesson.more, taught.more], 1), more_x=np.concatenate([lesson.more_x, x]))


@dataclass(frozen=True, kw_only=True)
class Plan:
  """How a student is trained.

  Attributes:
    method: Key of `METHODS`.
    own: Settings of the method.
    training: Settings of training.
    phases: Of the method.
    network: `outputs -> stages`.
    changes: Inputs to choose from, each names of changes.
    average: Decay of a running average of the parameters; 0: there is none.
    patience: Number of scores on held-out rows without an improvement after which training stops; 0: it does not.
  """

  method: str
  own: Any
  training: Any
  phases: list[Phase]
  network: Callable[[int], list[Stage]]
  changes: tuple[tuple[str, ...], ...] = ((),)
  average: float = 0.0
  patience: int = 0


def student_of(
  lesson: Lesson,
  method: str,
  network: Callable[[int], list[Stage]],
  seed: int,
  held_out: np.ndarray,
  rule: Rule,
  settings: Mapping[str, Any],
  verbose: bool,
  score: Callable[[Predictor], float] | None = None,
) -> Predictor:
  """Trains a student.

  Args:
    lesson: What it is taught.
    method: Key of `METHODS`.
    network: `outputs -> stages`.
    seed: Decides all that is random.
    held_out: Rows of x that it does not learn from.
    rule: When its training stops, and what is kept.
    settings: Of method and training, by name.
    verbose: Whether progress is shown.
    score: How bad a student is, where inputs are chosen from; None: how far it is from the mean of the members.
  """
  lesson, held_out = _with_labels(lesson, held_out)
  plan = replace(planned(lesson, method, network, settings), average=rule.average, patience=rule.patience)
  if not getattr(plan.own, 'calibrate_spread', False) and len(plan.changes) == 1 and not plan.patience:
    held_out = held_out[:0]
  students = []
  for changes in plan.changes if len(held_out) else plan.changes[:1]:
    label = '' if not verbose else f'student, {", ".join(changes)}' if changes else 'student'
    students.append(_trained(lesson, plan, changes, seed, held_out, label))
  if len(students) == 1:
    return students[0]
  x, outputs = lesson.x[held_out], lesson.outputs.of(held_out)
  scores = [score(each) if score else distance(each.predict(x), outputs) for each in students]
  best = int(np.argmin(scores))  # the first of equal ones
  named = [f'on rows and copies with {" and ".join(each)}' if each else 'on rows as they are' for each in plan.changes]
  logger.info(f'distilled {named[best]}: that predicts held-out rows best')
  return students[best]


def planned(lesson: Lesson, method: str, network: Callable[[int], list[Stage]], settings: Mapping[str, Any]) -> Plan:
  """How a student is trained; refused where the lesson is not enough for it."""
  outputs, source = lesson.outputs, lesson.source
  members, _, targets = next(iter(outputs.arrays.values())).shape
  base: dict[str, Any] = dict(DISTILLATION)
  if outputs.task == 'regression' or (source and source.sharp):
    base['temperature'] = 1.0
  can_change = source is not None and lesson.x.ndim == 2 and swaps.copies_for(len(lesson.x)) > 0
  if can_change:
    base |= VECTORS
  for key, value in settings.items():
    if key in NEEDS_MORE and value and not (key == 'augment' and can_change):
      raise UserError(f'{key} needs {NEEDS_MORE[key]}: leave it out, or use a config')
  how, own = training.settings_of(method, settings, base)
  if len(how.augment) > 1 or any(name not in CHANGES for name in how.augment):
    raise UserError(f'augment={short(how.augment)} must be one of auto, swap and noise, or (): copies are made ahead')
  if not outputs.present.all():
    _refuse_absent(method, own, members)
  row = TASKS[outputs.task]
  if not outputs.present.all():
    row = absent.with_absent(row, float(_share(lesson)))

  phases = METHODS[method].phases(own, training.context_of(row, network, members, targets))
  if not phases[-1].distils:
    raise UserError(f"'{method}' learns from labels alone: choose a method that learns from members, such as hydra")
  changes = CHANGES[how.augment[0]] if how.augment else ((),)
  return Plan(method=method, own=own, training=how, phases=phases, network=network, changes=changes)


def _share(lesson: Lesson) -> float:
  """Of the predictions that are present."""
  every = [lesson.outputs.present] + ([] if lesson.more is None else [lesson.more.present])
  return float(np.concatenate(every, axis=1).mean())


def _refuse_absent(method: str, own: Any, members: int) -> None:
  if method in READS_ALL:
    raise UserError(f'{method} reads all members of a row at once, and some are NaN: use hydra or kd')
  if getattr(own, 'heads', 0) not in (0, members):
    raise UserError(f'heads={own.heads} of {members} members needs predictions of all, and some are NaN: leave it out')


def _with_labels(lesson: Lesson, held_out: np.ndarray) -> tuple[Lesson, np.ndarray]:
  """Without rows for which no member has a prediction."""
  present = lesson.outputs.present
  kept = np.asarray(present.any(axis=0))
  if present.all():
    return lesson, held_out
  logger.info(f'{present.mean():.0%} of rows × members have a prediction, and {kept.mean():.1%} of the rows have any')
  if kept.all():
    return lesson, held_out
  places = np.cumsum(kept) - 1
  weight = None if lesson.weight is None else lesson.weight[kept]
  rows = replace(lesson, x=lesson.x[kept], outputs=lesson.outputs.of(kept), weight=weight)
  return rows, places[held_out[kept[held_out]]]


def _trained(
  lesson: Lesson, plan: Plan, changes: tuple[str, ...], seed: int, held_out: np.ndarray, label: str
) -> Predictor:
  """One student, on one choice of inputs."""
  x, task = lesson.x, lesson.outputs.task
  learnt = np.setdiff1d(np.arange(len(x)), held_out)
  scaling = scaling_of(x, lesson.outputs)
  weight = None if lesson.weight is None else lesson.weight[learnt]
  part = replace(lesson, x=x[learnt], outputs=lesson.outputs.of(learnt), weight=weight)
  for change in changes:
    part = with_copies(part, change, scaling, seed)
  ones = None if weight is None else np.ones(len(held_out))
  aside = replace(lesson, x=x[held_out], outputs=lesson.outputs.of(held_out), weight=ones, more=None)
  given = Examples(
    arrays=_arrays(part, scaling),
    scaling=scaling,
    held_out=_arrays(aside, scaling) if plan.patience and len(held_out) else None,
    pass_length=len(learnt),
  )
  stretch = training.stretch_of(len(learnt), plan.training.batch_size)
  stopping = training.Stopping(stretch=stretch, patience=plan.patience) if plan.patience else None
  params, state = training.train(plan.phases, given, plan.training, (seed,), label, plan.average, stopping)
  predictive = METHODS[plan.method].predictive
  model = Model(plan.phases[-1].network, params, state, scaling, TASKS[task].predictives[predictive].read)
  if len(held_out) and getattr(plan.own, 'calibrate_spread', False):
    model = spread(model, task, x[held_out], network_outputs(lesson.outputs.of(held_out), scaling))
  members, _, outputs = next(iter(lesson.outputs.arrays.values())).shape
  settings, kept = Settings(plan.method, plan.training, plan.own), lesson.outputs.of(held_out)
  facts = functools.partial(
    measured, x=x[held_out], teacher=kept.mean if kept.logits is None else kept.logits, learnt=len(learnt)
  )
  recipe = built_from('student', settings, plan.network, (task, outputs, members), len(plan.phases) - 1, facts)
  has_members = predictive == 'members'
  return Predictor(model, task, x.shape[1:], x.dtype == np.uint8, lesson.classes, has_members, recipe=recipe)


def spread(model: Model, task: str, x: np.ndarray, members: np.ndarray) -> Model:
  """The model with heads that disagree as much as the members on inputs that were not learnt from."""
  heads = evaluate.predict(model, x, batch_size=500)
  if np.isnan(members).any():
    return apply_spread(model, absent.matched_spread(task, heads, members), task)
  return apply_spread(model, float(matched(task)(heads, members)), task)


def _arrays(lesson: Lesson, scaling: Scaling) -> dict[str, np.ndarray]:
  """A lesson as it goes to the device."""
  x, outputs = lesson.x, lesson.outputs
  if lesson.more is not None and lesson.more_x is not None:
    x, outputs = np.concatenate([x, lesson.more_x]), teachers.joined([outputs, lesson.more], 1)
  arrays = {
    'x': standardised(scaling, x),
    'y': np.zeros(len(x), np.float32),
    'teacher': network_outputs(outputs, scaling),
  }
  if lesson.weight is None:
    return arrays
  weight = np.resize(lesson.weight, len(x))  # copies have the weights of their rows
  return arrays | {'weight': (weight / weight.mean()).astype(np.float32)}


def scaling_of(x: np.ndarray, outputs: Outputs) -> Scaling:
  """Scaling of inputs, and of targets by what the members predict on average."""
  if outputs.task == 'classification':
    return standardise(Split(x, np.zeros(len(x), np.int32)), True)
  assert outputs.mean is not None
  mean = outputs.mean.mean(axis=0) if outputs.present.all() else np.nanmean(outputs.mean, axis=0)
  return Scaling(*moments(x), *moments(mean))


def network_outputs(outputs: Outputs, scaling: Scaling) -> np.ndarray:
  """What members predict, as outputs of a network, `[M, N, …]` float32; NaN where absent."""
  if outputs.logits is not None:
    return np.asarray(outputs.logits, np.float32)
  assert outputs.mean is not None and outputs.variance is not None
  mean, variance = (outputs.mean - scaling.y_shift) / scaling.y_scale, outputs.variance / np.square(scaling.y_scale)
  return np.asarray(losses.gaussian_outputs(mean, variance), np.float32)


def distance(prediction: Any, outputs: Outputs) -> float:
  """How badly a student predicts the mean of the members: cross entropy, or squared error in units of its variance."""
  present = outputs.present[..., None]
  count = present.sum(axis=0)
  average = lambda values: np.where(present, values, 0).sum(axis=0) / count
  if outputs.logits is not None:
    wanted = average(scipy.special.softmax(outputs.logits, axis=-1))
    return float(-np.mean(np.sum(wanted * np.log(np.maximum(prediction.mean, teachers.LEAST_PROBABILITY)), axis=-1)))
  assert outputs.mean is not None
  wanted = average(outputs.mean)
  return float(np.mean(np.square(prediction.mean - wanted) / np.maximum(np.var(wanted, axis=0), 1e-30)))
