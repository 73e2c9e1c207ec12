"""Trained networks as functions of inputs as the user has them: predictions with uncertainty, in the user's units."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Columns, check_inputs, encoded, scale_inputs, standardised
from hydra_jax.devices import cpu
from hydra_jax.errors import UserError
from hydra_jax.evaluation import calibrated
from hydra_jax.evaluation.calibrated import Calibration
from hydra_jax.evaluation.evaluate import FEW, Model, in_batches
from hydra_jax.maths import uncertainty
from hydra_jax.maths.conformal import Selection

# Parameters of more bytes are not compiled into programs: each program would hold a copy.
SMALL = 8 * 2**20


@dataclass(frozen=True)
class Prediction:
  """What a network predicts for N inputs, as NumPy arrays: float32 in classification, float64 in regression.

  Where the predictor is calibrated, the temperature changes the mean alone. Members, and all uncertainties in
  classification, are as the members make them. In regression, the variances of all members are scaled, and with them
  `aleatoric` and `total`.

  Attributes:
    mean: Classification: mean probabilities `[N, C]`. Regression: means `[N, D]` in the units of the targets.
    total: Total uncertainty. Classification: entropy of the mean in nats, `[N]`. Regression: variance of the mixture in
      squared units of the targets, `[N, D]`.
    aleatoric: Part of it that all members agree on: mean entropy, or mean of the variances. Same shape.
    epistemic: Part of it that comes from their disagreement: mutual information, or variance of the means. Same shape.
    members: Probabilities `[M, N, C]` or means `[M, N, D]` of each member or head; None for Prior Networks.
    log_members: In classification the log-probabilities `[M, N, C]` of each member or head. They are finite where a
      probability is too small for float32.
    member_variances: In regression the variances `[M, N, D]` of each member or head.
  """

  mean: np.ndarray
  total: np.ndarray
  aleatoric: np.ndarray
  epistemic: np.ndarray
  members: np.ndarray | None = None
  log_members: np.ndarray | None = None
  member_variances: np.ndarray | None = None


@dataclass(frozen=True)
class Predictor:
  """A trained network that is ready to predict.

  Attributes:
    model: The network with its parameters, and how inputs and targets are scaled.
    task: Key of `maths.tasks.TASKS`.
    shape: Of an input.
    reads_bytes: Whether it was trained on images of bytes, uint8.
    classes: Their names, by column of the probabilities; empty if they are numbered, and in regression.
    has_members: Whether it predicts as members, and not as one distribution over predictions.
    columns: What the columns of a table become, if it was trained on one.
    calibration: What was fitted to held-out labelled examples, see `calibrate`; None: nothing was.
    recipe: What it takes to save it, an `experiment.recipes.Built`; None if it was put together by hand.
  """

  model: Model
  task: str
  shape: tuple[int, ...]
  reads_bytes: bool = False
  classes: tuple[str, ...] = ()
  has_members: bool = True
  columns: Columns | None = None
  calibration: Calibration | None = None
  recipe: Any = None

  def __post_init__(self) -> None:
    if self.calibration is not None:
      calibrated.check_fits(self.calibration, self.task, len(self.model.scaling.y_scale))

  def predict(self, x: Any, batch_size: int = 500, members: bool = True) -> Prediction:
    """Predicts for inputs as they were in the data set: not scaled, images as uint8.

    Any number of inputs is predicted with few programs: fewer than `batch_size` are padded to a power of two.

    Args:
      x: Inputs `[N, …]`. Where it was trained on a table, also a table with these columns: a DataFrame, a
        `pyarrow.Table` or a dict of columns.
      batch_size: Inputs that are computed at once.
      members: Whether to return the predictions of members too. They take M times the memory of the mean.

    Returns:
      Predictions with uncertainty, in the units of the targets.

    Raises:
      UserError: The inputs have another shape, are not finite numbers, or are not bytes where the training set was; or
        columns are missing or of another kind.

    Example:
      >>> predictor = hydra_jax.load('runs/digits', 'hydra')  # doctest: +SKIP
      >>> prediction = predictor.predict(x)  # doctest: +SKIP
      >>> x[prediction.epistemic > 0.1]  # inputs on which the heads disagree  # doctest: +SKIP
    """
    x, members = self._checked(encoded(x, self.columns)), members and self.has_members
    size = min(batch_size, 1 << (len(x) - 1).bit_length())
    program = self._program(size <= FEW, members)
    found = in_batches(lambda rows: program(standardised(self.model.scaling, rows)), size, x, fill=True)
    prediction = Prediction(**self._in_units(found))
    if self.calibration is None:
      return prediction
    prediction = calibrated.scaled(prediction, self.calibration.label_scale, self.has_members)
    if self.task == 'classification' and self.has_members and not members:
      # A probability that is too small for float32 is known by the members alone, and a temperature may make it large.
      rows = np.any(found['mean'] < np.finfo(np.float32).tiny, axis=1)
      if rows.any():
        prediction.mean[rows] = self.predict(x[rows], batch_size).mean
    return prediction

  def predict_batches(
    self, batches: Iterable[Any], batch_size: int = 500, members: bool = False
  ) -> Iterator[Prediction]:
    """Predicts for inputs that come in parts, and keeps none of them: memory does not grow with their number.

    Args:
      batches: Inputs `[N, …]` each, of any N; see `predict`.
      batch_size: Inputs that are computed at once. Parts of a few thousand inputs are faster than small ones.
      members: Whether to return the predictions of members too.

    Yields:
      A prediction for each part, as soon as it is there.

    Raises:
      UserError: See `predict`. The message counts rows in the part that is wrong.

    Example:
      >>> parts = np.array_split(x, 100)  # doctest: +SKIP
      >>> unsure = [prediction.epistemic.max() for prediction in predictor.predict_batches(parts)]  # doctest: +SKIP
    """
    for x in batches:
      yield self.predict(x, batch_size, members)

  def predict_set(self, x: Any, coverage: float, method: str = 'lac', batch_size: int = 500) -> np.ndarray:
    """Sets of classes that hold the label of a new example with a chance of at least `coverage` (`maths.conformal`).

    The likeliest class is always in the set. So the sets hold more labels than promised where the predictor is right
    more often than `coverage`.

    Args:
      x: Inputs `[N, …]` as for `predict`.
      coverage: More than 0 and less than 1.
      method: `lac` for the fewest classes on average, or `aps` (without random numbers) for coverage that is more even
        over sure and unsure inputs.
      batch_size: Inputs that are computed at once.

    Returns:
      Booleans `[N, C]`, with columns as in `classes`.

    Raises:
      UserError: The predictor is not calibrated, or on too few examples, or is for regression; or as `predict`.

    Example:
      >>> predictor = hydra_jax.calibrate(predictor, x_held_out, y_held_out)  # doctest: +SKIP
      >>> predictor.predict_set(x, 0.95).sum(axis=1)  # how many classes each set has  # doctest: +SKIP
    """
    return calibrated.predict_set(self, x, coverage, method, batch_size)

  def predict_interval(self, x: Any, coverage: float, batch_size: int = 500) -> np.ndarray:
    """Intervals that hold the target of a new example with a chance of at least `coverage`, each target by itself.

    They are the mean ∓ a number of standard deviations (the root of `Prediction.total`), the same number for all
    inputs. Where the predictor is not calibrated, they are the central intervals of the mixture of its members, which
    promise nothing.

    Args:
      x: Inputs `[N, …]` as for `predict`.
      coverage: More than 0 and less than 1.
      batch_size: Inputs that are computed at once.

    Returns:
      Lower and upper ends in the units of the targets, float64 `[N, D, 2]`.

    Raises:
      UserError: The predictor is calibrated on too few examples, is not calibrated and has no members, or is for
        classification; or as `predict`.

    Example:
      >>> low, high = np.moveaxis(predictor.predict_interval(x, 0.9), -1, 0)  # doctest: +SKIP
    """
    return calibrated.predict_interval(self, x, coverage, batch_size)

  def out_of_domain(self, x: Any, batch_size: int = 500) -> np.ndarray:
    """P-values that inputs are like the held-out ones, by their epistemic uncertainty (`maths.conformal.p_values`).

    Of inputs that are like them, no more than a share p has a value of at most p. Where the network has one head, the
    total uncertainty stands in for the epistemic one, which is 0. Of several targets, uncertainty is the mean of their
    variances, each in units of the variance in the training split. Inputs so large that the network overflows have the
    least p-value there is.

    Args:
      x: Inputs `[N, …]` as for `predict`.
      batch_size: Inputs that are computed at once.

    Returns:
      Float64 `[N]`, from 1 / (n + 1) for n held-out examples, to 1.

    Raises:
      UserError: The predictor is not calibrated; or as `predict`.

    Example:
      >>> x[predictor.out_of_domain(x) < 0.01]  # odd inputs, and at most 1% of the others  # doctest: +SKIP
    """
    return calibrated.out_of_domain(self, x, batch_size)

  def selective(
    self,
    x: Any,
    y: Any,
    risk: float = 0.05,
    confidence: float = 0.95,
    tolerance: Any = None,
    batch_size: int = 500,
  ) -> Selection:
    """The threshold of the total uncertainty below which the fewest inputs are left out, and few predictions are wrong.

    With a chance of at least `confidence`, no more than the share `risk` of new predictions below the threshold is
    wrong (`maths.conformal.threshold_for_risk`).

    Args:
      x: Inputs `[N, …]` of labelled examples, as for `predict`. Nothing was trained on them. In regression, they are
        others than those of `calibrate`, which has scaled the uncertainty by their targets.
      y: Their labels, as for `calibrate`.
      risk: Share of wrong predictions among those that are accepted, more than 0 and less than 1.
      confidence: Chance that this is kept, more than 0 and less than 1.
      tolerance: In regression a prediction is wrong if it is off by more: a number, or one for each target, in the
        units of the targets.
      batch_size: Inputs that are computed at once.

    Returns:
      The threshold, for `accepts`, with the share of inputs that it accepts, the share of wrong predictions among these
      examples, and its upper bound for new ones.

    Raises:
      UserError: No threshold keeps the risk, there are too few examples for it, or arguments do not fit.

    Example:
      >>> found = predictor.selective(x_held_out, y_held_out, risk=0.01)  # doctest: +SKIP
      >>> sure = predictor.accepts(x, found.threshold)  # doctest: +SKIP
    """
    return calibrated.selective(self, x, y, risk, confidence, tolerance, batch_size)

  def accepts(self, x: Any, threshold: float, batch_size: int = 500) -> np.ndarray:
    """Whether the total uncertainty of each input is below a threshold that `selective` has found, booleans `[N]`.

    Args:
      x: Inputs `[N, …]` as for `predict`.
      threshold: Of the total uncertainty. Of several targets, this is the mean of their variances, each in units of the
        variance in the training split.
      batch_size: Inputs that are computed at once.

    Raises:
      UserError: As `predict`.
    """
    return calibrated.accepts(self, x, threshold, batch_size)

  def _checked(self, x: np.ndarray) -> np.ndarray:
    """The inputs, refused where they are in another form than those of the training set."""
    if self.reads_bytes and (*x.shape[1:], 1) == self.shape:
      x = x[..., None]  # grey images without an axis of channels
    check_inputs(x, 'the input', np.broadcast_to(np.float32(0), (1, *self.shape)))
    if not self.reads_bytes or x.dtype == np.uint8:
      return x
    if x.dtype.kind not in 'iu' or x.min() < 0 or x.max() > 255:
      raise UserError(f'the input is {x.dtype}, and the network was trained on bytes: give whole numbers from 0 to 255')
    return x.astype(np.uint8)

  def _in_units(self, found: dict[str, Any]) -> dict[str, Any]:
    """Predictions with members first, in the units of the targets."""
    swapped = ('members', 'log_members', 'member_variances')
    found |= {name: np.swapaxes(found[name], 0, 1) for name in swapped if found[name] is not None}
    if self.task == 'regression':
      shift, scale = self.model.scaling.y_shift, self.model.scaling.y_scale
      units = {**dict.fromkeys(('mean', 'members'), (scale, shift)), 'log_members': (1, 0)}
      for name, values in found.items():
        factor, offset = units.get(name, (np.square(scale), 0))
        found[name] = None if values is None else values * factor + offset
    return found

  def _program(self, few: bool, members: bool) -> Callable[[np.ndarray], dict[str, Any]]:
    """Compiled `x -> arrays of a Prediction` for inputs on the device."""
    model, program = self.model, self._programs(few, members)
    return program if self._is_small else functools.partial(program, model.params, model.model_state)

  @functools.cached_property
  def _is_small(self) -> bool:
    """Whether parameters are compiled into programs, see `evaluate.frozen`."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.model.params)) <= SMALL

  @functools.cached_property
  def _programs(self) -> Callable[[bool, bool], Callable]:
    model, read = self.model, {'classification': _classes, 'regression': _targets}[self.task]

    def forward(members, params, state, x):
      outputs = model.network.apply(params, state, scale_inputs(model.scaling, x))[0]
      return read(outputs, model.read, self.has_members, members)

    @functools.cache
    def program(few: bool, members: bool) -> Callable:
      # On CPU, Eigen's products are faster than YNNPACK's for few inputs; for more, YNNPACK must not take all layers.
      options = cpu.compiler_options(model.network.convolves(self.shape), float('inf') if few else 0.0)
      given = (model.params, model.model_state) if self._is_small else ()
      return jax.jit(functools.partial(forward, members, *given), compiler_options=options)

    return program


def _classes(logits_MxBxC: jax.Array, read: Callable, has_members: bool, members: bool) -> dict[str, Any]:
  if has_members and logits_MxBxC.shape[1] > FEW and cpu.on_cpu():
    mean, found = uncertainty.member_by_member(logits_MxBxC)
  else:
    distribution = read(logits_MxBxC)
    mean, found = jnp.exp(distribution.log_mean), distribution.uncertainty
  logs = jnp.swapaxes(jax.nn.log_softmax(logits_MxBxC), 0, 1) if members else None
  of_members = {'members': None if logs is None else jnp.exp(logs), 'log_members': logs, 'member_variances': None}
  return {'mean': mean, **found._asdict(), **of_members}


def _targets(outputs: jax.Array, read: Callable, has_members: bool, members: bool) -> dict[str, Any]:
  del has_members
  mean, variance = read(outputs)
  first = [jnp.swapaxes(each, 0, 1) if members else None for each in (mean, variance)]
  of_members = {'members': first[0], 'log_members': None, 'member_variances': first[1]}
  return {'mean': jnp.mean(mean, axis=0), **uncertainty.regression(mean, variance)._asdict(), **of_members}
