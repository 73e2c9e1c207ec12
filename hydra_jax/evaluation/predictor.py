"""Trained networks as functions of inputs as the user has them: predictions with uncertainty, in the user's units."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import check_inputs, scale_inputs, standardised
from hydra_jax.devices import cpu
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import FEW, Model, in_batches
from hydra_jax.maths import uncertainty

# Parameters of more bytes are not compiled into programs: each program would hold a copy.
SMALL = 8 * 2**20


@dataclass(frozen=True)
class Prediction:
  """What a network predicts for N inputs, as NumPy arrays: float32 in classification, float64 in regression.

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
    recipe: What it takes to save it, an `experiment.recipes.Built`; None if it was put together by hand.
  """

  model: Model
  task: str
  shape: tuple[int, ...]
  reads_bytes: bool = False
  classes: tuple[str, ...] = ()
  has_members: bool = True
  recipe: Any = None

  def predict(self, x: Any, batch_size: int = 500, members: bool = True) -> Prediction:
    """Predicts for inputs as they were in the data set: not scaled, images as uint8.

    Any number of inputs is predicted with few programs: fewer than `batch_size` are padded to a power of two.

    Args:
      x: Inputs `[N, …]`.
      batch_size: Inputs that are computed at once.
      members: Whether to return the predictions of members too. They take M times the memory of the mean.

    Returns:
      Predictions with uncertainty, in the units of the targets.

    Raises:
      UserError: The inputs have another shape, are not finite numbers, or are not bytes where the training set was.

    Example:
      >>> predictor = hydra_jax.load('runs/digits', 'hydra')  # doctest: +SKIP
      >>> prediction = predictor.predict(x)  # doctest: +SKIP
      >>> x[prediction.epistemic > 0.1]  # inputs on which the heads disagree  # doctest: +SKIP
    """
    x, members = self._checked(np.asarray(x)), members and self.has_members
    size = min(batch_size, 1 << (len(x) - 1).bit_length())
    program = self._program(size <= FEW, members)
    found = in_batches(lambda rows: program(standardised(self.model.scaling, rows)), size, x, fill=True)
    return Prediction(**self._in_units(found))

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

  def _checked(self, x: np.ndarray) -> np.ndarray:
    """The inputs, refused where they are in another form than those of the training set."""
    check_inputs(x, 'the input', np.zeros((1, *self.shape)))
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
  found = dict.fromkeys(('members', 'log_members', 'member_variances'))
  if has_members and not members and logits_MxBxC.shape[1] > FEW and cpu.on_cpu():
    mean, unsure = uncertainty.member_by_member(logits_MxBxC)
    return {'mean': mean, **unsure._asdict(), **found}
  distribution = read(logits_MxBxC)
  if members:
    logs = jnp.swapaxes(jax.nn.log_softmax(logits_MxBxC), 0, 1)
    found |= {'members': jnp.exp(logs), 'log_members': logs}
  return {'mean': jnp.exp(distribution.log_mean), **distribution.uncertainty._asdict(), **found}


def _targets(outputs: jax.Array, read: Callable, has_members: bool, members: bool) -> dict[str, Any]:
  del has_members
  mean, variance = read(outputs)
  first = [jnp.swapaxes(each, 0, 1) if members else None for each in (mean, variance)]
  found = {'members': first[0], 'log_members': None, 'member_variances': first[1]}
  return {'mean': jnp.mean(mean, axis=0), **uncertainty.regression(mean, variance)._asdict(), **found}
