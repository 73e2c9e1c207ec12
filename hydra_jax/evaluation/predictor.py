"""Trained networks as functions of inputs as the user has them: predictions with uncertainty, in the user's units."""

from dataclasses import dataclass
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import check_inputs, scale_inputs, standardised
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model, in_batches
from hydra_jax.maths import uncertainty


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
  """

  model: Model
  task: str
  shape: tuple[int, ...]
  reads_bytes: bool = False
  classes: tuple[str, ...] = ()
  has_members: bool = True

  def predict(self, x: Any, batch_size: int = 500) -> Prediction:
    """Predicts for inputs as they were in the data set: not scaled, images as uint8.

    Args:
      x: Inputs `[N, …]`.
      batch_size: Inputs that are computed at once. The last batch is padded, so that one program serves all.

    Returns:
      Predictions with uncertainty, in the units of the targets.

    Raises:
      UserError: The inputs have another shape, are not finite numbers, or are not bytes where the training set was.

    Example:
      >>> predictor = hydra_jax.load('runs/digits', 'hydra')  # doctest: +SKIP
      >>> prediction = predictor.predict(x)  # doctest: +SKIP
      >>> x[prediction.epistemic > 0.1]  # inputs on which the heads disagree  # doctest: +SKIP
    """
    x = self._checked(np.asarray(x))
    found = in_batches(self._compiled, batch_size, standardised(self.model.scaling, x))
    swap = lambda members: None if members is None else np.swapaxes(members, 0, 1)
    found |= {name: swap(found[name]) for name in ('members', 'log_members', 'member_variances')}
    if self.task == 'regression':
      shift, scale = self.model.scaling.y_shift, self.model.scaling.y_scale
      for name in ('mean', 'members'):
        found[name] = None if found[name] is None else found[name] * scale + shift
      for name in ('total', 'aleatoric', 'epistemic', 'member_variances'):
        found[name] = None if found[name] is None else found[name] * np.square(scale)
    return Prediction(**found)

  def _checked(self, x: np.ndarray) -> np.ndarray:
    """The inputs, refused where they are in another form than those of the training set."""
    check_inputs(x, 'the input', np.zeros((1, *self.shape)))
    if not self.reads_bytes or x.dtype == np.uint8:
      return x
    if x.dtype.kind not in 'iu' or x.min() < 0 or x.max() > 255:
      raise UserError(f'the input is {x.dtype}, and the network was trained on bytes: give whole numbers from 0 to 255')
    return x.astype(np.uint8)

  @functools.cached_property
  def _compiled(self):
    model, read = self.model, {'classification': _classes, 'regression': _targets}[self.task]

    def predict(x):
      outputs = model.network.apply(model.params, model.model_state, scale_inputs(model.scaling, x))[0]
      return read(outputs, model.read(outputs), self.has_members)

    return jax.jit(predict)


def _classes(logits_MxBxC: jax.Array, distribution: Any, has_members: bool) -> dict[str, Any]:
  logs = jnp.swapaxes(jax.nn.log_softmax(logits_MxBxC), 0, 1) if has_members else None
  members = {'members': None if logs is None else jnp.exp(logs), 'log_members': logs, 'member_variances': None}
  return {'mean': jnp.exp(distribution.log_mean), **distribution.uncertainty._asdict(), **members}


def _targets(outputs: jax.Array, mixture: Any, has_members: bool) -> dict[str, Any]:
  del outputs
  mean, variance = mixture
  members = [jnp.swapaxes(each, 0, 1) if has_members else None for each in mixture]
  found = {'members': members[0], 'log_members': None, 'member_variances': members[1]}
  return {'mean': jnp.mean(mean, axis=0), **uncertainty.regression(mean, variance)._asdict(), **found}
