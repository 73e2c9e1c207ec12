"""Distillation of an ensemble that is an array of predictions, without a config or a work directory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Scaling, Split, check_inputs, moments, standardise, standardised, validation_rows
from hydra_jax.errors import UserError, look_up
from hydra_jax.evaluation import evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment.schema import DISTILLATION
from hydra_jax.experiment.validation import apply_spread, matched
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import MethodContext
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.stages import Stage, mlp
from hydra_jax.settings import defaults, make
from hydra_jax.training import loop, optimizers
from hydra_jax.training.batches import resident, stack
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Job, State, grown_state, init_state, steps_for

# Settings for which arrays of inputs and predictions are not enough.
NEEDS_MORE = {
  'augment': 'members that predict on changed inputs',
  'label_weight': 'labels',
  'unlabelled': 'members that predict on other inputs',
}


def distil(
  x: Any,
  teacher: Any,
  method: str = 'hydra',
  network: Callable[[int], list[Stage]] = mlp,
  seed: int = 0,
  validation: float = 0.1,
  **settings: Any,
) -> Predictor:
  """Distils the predictions of an ensemble into one network.

  Args:
    x: Inputs `[N, …]`; images are uint8 `[N, height, width, channels]`.
    teacher: Classification: logits `[M, N, C]` of the members for these inputs. Regression: a tuple of means and
      variances, both `[M, N, D]` or `[M, N]`, in the units of the targets.
    method: A student that learns from members, such as `hydra`, `kd`, `endd`, `dlf`.
    network: `outputs -> stages`, the network of the student.
    seed: Decides how it starts and the order of the examples.
    validation: Share of the inputs that the student does not learn from, at most 1,000. On these, its heads are spread
      until they disagree as much as the members. 0: they are not.
    **settings: Of the method, as under `config.student`, such as `cut=-2`, `temperature=1.0`, `epochs=50.0`,
      `learning_rate=1e-3`. Inputs are not augmented: there are predictions for these inputs only.

  Returns:
    The trained student.

  Raises:
    UserError: An argument is wrong.

  Example:
    >>> student = hydra_jax.distil(x, logits, cut=-1, epochs=50.0)  # doctest: +SKIP
    >>> student.predict(x_new).epistemic  # doctest: +SKIP
  """
  x = check_inputs(np.asarray(x), 'x')
  task, outputs, scaling = _read_teacher(x, teacher)
  members, targets = len(outputs), outputs.shape[-1] // (2 if task == 'regression' else 1)
  training, own = _settings(method, settings, task)
  row = TASKS[task]

  def stages(predictive: str, times: int = 1) -> list[Stage]:
    return network(times * row.predictives[predictive].outputs(targets))

  phases = METHODS[method].phases(own, MethodContext(row, stages, members))
  if not phases[-1].distils:
    raise UserError(f"'{method}' learns from labels alone: choose a method that learns from members, such as hydra")
  held_out = validation_rows(len(x), validation if getattr(own, 'calibrate_spread', False) else 0.0)
  learnt = np.setdiff1d(np.arange(len(x)), held_out)
  data = {'x': standardised(scaling, x[learnt]), 'y': np.zeros(len(learnt), np.float32), 'teacher': outputs[:, learnt]}
  source = resident([data], stack([scaling]))
  init_key, key = jax.random.split(jax.random.key(seed))
  state: State | None = None
  for phase in phases:
    epochs = training.epochs if phase.epochs is None else phase.epochs
    steps = steps_for(epochs, len(learnt), training.batch_size)
    optimizer = optimizers.build(training, steps, len(learnt) / training.batch_size, phase.frozen)
    job = Job(
      network=phase.network,
      loss=phase.loss,
      reduction=phase.reduction,
      optimizer=optimizer,
      steps=steps,
      batch_size=training.batch_size,
      common=phase.common,
      penalty=phase.penalty,
      heads_per_step=phase.heads_per_step,
    )
    if state is None:
      examples = jnp.zeros((1, 2, *x.shape[1:]), jnp.float32)
      state = init_state(phase.network, optimizer, init_key[None], examples)
    else:
      state = grown_state(optimizer, state.params, state.model_state, len(phase.network.heads))
    state = loop.fit(job, state, source, [(seed,)], key[None])
  assert state is not None  # every method has a phase
  predictive = row.predictives[METHODS[method].predictive]
  params, model_state = jax.tree.map(lambda leaf: leaf[0], (state.params, state.model_state))
  model = Model(phases[-1].network, params, model_state, scaling, predictive.read)
  if len(held_out):
    heads = evaluate.predict(model, x[held_out], batch_size=500)
    model = apply_spread(model, float(matched(task)(heads, outputs[:, held_out])), task)
  has_members = predictive is row.predictives['members']
  return Predictor(model, task, x.shape[1:], x.dtype == np.uint8, (), has_members)


def _read_teacher(x: np.ndarray, teacher: Any) -> tuple[str, np.ndarray, Scaling]:
  """The task, the outputs `[M, N, …]` of members as of networks, and the scaling."""
  if isinstance(teacher, tuple):
    mean, variance = (np.asarray(each, np.float64) for each in teacher)
    mean, variance = (each[..., None] if each.ndim == 2 else each for each in (mean, variance))
    if mean.ndim != 3 or mean.shape != variance.shape or mean.shape[1] != len(x):
      raise UserError(f'means and variances must be [members, {len(x)} examples, targets], both alike')
    if not np.isfinite(mean).all() or not np.isfinite(variance).all() or variance.min() <= 0:
      raise UserError('means and variances must be finite, and variances more than 0')
    y_shift, y_scale = moments(mean.mean(axis=0))
    outputs = losses.gaussian_outputs((mean - y_shift) / y_scale, variance / np.square(y_scale))
    return 'regression', np.asarray(outputs, np.float32), Scaling(*moments(x), y_shift, y_scale)
  logits = np.asarray(teacher, np.float32)
  if logits.ndim != 3 or logits.shape[1] != len(x):
    raise UserError(f'teacher has shape {list(logits.shape)}: give logits [members, {len(x)} examples, classes]')
  if not np.isfinite(logits).all():
    raise UserError('logits must be finite: leave that member out')
  return 'classification', logits, standardise(Split(x, np.zeros(len(x), np.int32)), True)


def _settings(method: str, changes: dict[str, Any], task: str) -> tuple[TrainingSettings, Any]:
  """How a method is trained, and its own settings: the defaults with changes, each checked."""
  kind = look_up(METHODS, method, 'method').settings
  own, training = defaults(kind), defaults(TrainingSettings) | DISTILLATION
  if task == 'regression' and 'temperature' in own:
    own['temperature'] = 1.0
  for key, value in changes.items():
    look_up(own | training, key, f'setting of {method}')
    if key in NEEDS_MORE and value:
      raise UserError(f'{key} needs {NEEDS_MORE[key]}: leave it out, or use a config')
    (own if key in own else training)[key] = value
  return make(TrainingSettings, training, ''), make(kind, own, '')
