"""A predictor as one pure function: from inputs as the user has them, to predictions in the user's units.

It has four steps: inputs are checked and scaled, the network is applied, its outputs are read, and predictions are
calibrated and put in the units of the targets. The self-test compares a file with `Predictor.predict`.
"""

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import hydra_jax
from hydra_jax.data import LARGEST, scale_inputs
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.maths import calibration, uncertainty
from hydra_jax.maths.tasks import TASKS
from hydra_jax.serving import exported_columns

INPUT = 'x'
ALWAYS = ('mean', 'total', 'aleatoric', 'epistemic')
TARGET, SQUARED = 'unit of the target', 'squared unit of the target'
# What each output is, and its unit.
MEANINGS = {
  'classification': {
    'mean': ('mean probability of each class', 'probability'),
    'total': ('entropy of the mean', 'nats'),
    'aleatoric': ('mean entropy of the members', 'nats'),
    'epistemic': ('mutual information: disagreement of the members', 'nats'),
    'members': ('probabilities of each member', 'probability'),
  },
  'regression': {
    'mean': ('mean of the mixture', TARGET),
    'total': ('variance of the mixture', SQUARED),
    'aleatoric': ('mean of the variances of the members', SQUARED),
    'epistemic': ('variance of the means of the members', SQUARED),
    'members': ('mean of each member', TARGET),
    'member_variances': ('variance of each member', SQUARED),
  },
}
# Batches of random inputs of the self-test, and the most that a file may differ from `Predictor.predict`.
TESTED = (1, 2, 7)
TOLERANCES = {'float32': 1e-5, 'bfloat16': 2e-2}
# In nats. Logits of more have fewer digits behind the point.
PLAIN_LOGITS = 10


def input_spec(predictor: Predictor) -> tuple[tuple[int, ...], np.dtype]:
  """Shape of an input of the function, without the batch, and its type.

  Images are bytes. All else is float64: a feature such as 1e9 ± 3 has no digits left in float32.
  """
  if predictor.columns is not None:
    return (len(predictor.columns.used),), np.dtype(np.float64)
  return predictor.shape, np.dtype(np.uint8 if predictor.reads_bytes else np.float64)


def output_names(predictor: Predictor, members: bool) -> tuple[str, ...]:
  """Names of the outputs, in order."""
  return tuple(MEANINGS[predictor.task]) if members else ALWAYS


def function_of(predictor: Predictor, members: bool = False) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """What `Predictor.predict` computes, as a function to trace under `jax.enable_x64(True)`.

  Args:
    predictor: The trained network.
    members: Whether the predictions of each member are outputs as well.

  Returns:
    A function of inputs `[batch, …]`, see `input_spec`, and of a table as in `exported_columns`. It returns arrays by
    name with the batch first: float32 in classification, float64 in regression. `members` are `[batch, M, C]`. Where
    `predict` would refuse an input (not finite, too large), the predictions are NaN.
  """
  names = output_names(predictor, members)

  def f(x):
    with jax.named_scope('inputs'):
      features, usable = _inputs(predictor, x)
    with jax.enable_x64(False):
      found = _read(predictor, features, members)
    with jax.named_scope('units'):
      found = _in_units(predictor, found) if predictor.task == 'regression' else found
      return {name: found[name] if usable is None else _where(usable, found[name]) for name in names}

  return f


def _inputs(predictor: Predictor, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Inputs as they go to the device, as `data.standardised`, and which can be predicted for; None: all."""
  if predictor.reads_bytes:
    return x, None
  x, fits = (x, None) if predictor.columns is None else exported_columns.encode(predictor.columns, x)
  usable = jnp.all(jnp.abs(x) <= LARGEST, axis=tuple(range(1, x.ndim)))  # a comparison with NaN is false
  scaling = predictor.model.scaling
  shift, scale = (_last_axis(each, x.ndim) for each in (scaling.x_shift, scaling.x_scale))
  return ((x - shift) / scale).astype(jnp.float32), usable if fits is None else usable & fits


def _last_axis(values: np.ndarray, ndim: int) -> jax.Array:
  return jnp.asarray(np.reshape(values, (*(1,) * (ndim - 1), -1)), jnp.float64)


def _read(predictor: Predictor, x: jax.Array, members: bool) -> dict[str, jax.Array]:
  """The network, and what its outputs mean, in units of the network, after label calibration."""
  model = predictor.model
  with jax.named_scope('network'):
    outputs = model.network.apply(model.params, model.model_state, scale_inputs(model.scaling, x))[0]
  with jax.named_scope('read_out'):
    read = {'classification': _classes, 'regression': _targets}[predictor.task]
    scale = None if predictor.calibration is None else np.float32(predictor.calibration.label_scale)
    return read(outputs, model.read(outputs), predictor.has_members, scale)


def _classes(logits_MxBxC: jax.Array, distribution: Any, has_members: bool, temperature: Any) -> dict[str, jax.Array]:
  log_mean = distribution.log_mean if temperature is None else calibration.tempered(distribution.log_mean, temperature)
  members = {'members': jnp.exp(jax.nn.log_softmax(logits_MxBxC))} if has_members else {}
  return {'mean': jnp.exp(log_mean), **distribution.uncertainty._asdict(), **_batch_first(members)}


def _targets(outputs: jax.Array, mixture: Any, has_members: bool, scale: Any) -> dict[str, jax.Array]:
  """Scales variances as `calibrated.scaled` does: those of members; without members, both parts of the total."""
  del outputs
  mean, variance = mixture
  members = {'members': mean, 'member_variances': variance if scale is None else scale * variance}
  _, aleatoric, epistemic = uncertainty.regression(mean, variance)
  if scale is not None:
    aleatoric, epistemic = scale * aleatoric, epistemic if has_members else scale * epistemic
  found = {'mean': jnp.mean(mean, axis=0), 'total': aleatoric + epistemic}
  return {**found, 'aleatoric': aleatoric, 'epistemic': epistemic, **_batch_first(members)}


def _batch_first(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: jnp.swapaxes(values, 0, 1) for name, values in arrays.items()}


def _in_units(predictor: Predictor, found: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Predictions `[batch, …, D]` in the units of the targets, float64."""
  scaling = predictor.model.scaling
  in_units = {}
  for name, values in found.items():
    shift, scale = (_last_axis(each, values.ndim) for each in (scaling.y_shift, scaling.y_scale))
    values = values.astype(jnp.float64)
    in_units[name] = values * scale + shift if name in ('mean', 'members') else values * jnp.square(scale)
  return in_units


def _where(usable: jax.Array, values: jax.Array) -> jax.Array:
  nothing = jnp.asarray(np.nan, values.dtype)
  return jnp.where(jnp.reshape(usable, (-1, *(1,) * (values.ndim - 1))), values, nothing)


def describe(predictor: Predictor, members: bool) -> dict[str, Any]:
  """What a file is, as JSON: the input, the outputs with their units, names, the calibration, and versions."""
  shape, dtype = input_spec(predictor)
  with jax.enable_x64(True):
    found = jax.eval_shape(function_of(predictor, members), jax.ShapeDtypeStruct((1, *shape), dtype))
  outputs = {}
  for name in output_names(predictor, members):
    meaning, unit = _meaning(predictor, name)
    sizes = ['batch', *found[name].shape[1:]]
    outputs[name] = {'dtype': found[name].dtype.name, 'shape': sizes, 'meaning': meaning, 'unit': unit}
  columns, fitted = predictor.columns, predictor.calibration
  return {
    'task': predictor.task,
    'input': {'name': INPUT, 'dtype': dtype.name, 'shape': ['batch', *shape]},
    'outputs': outputs,
    'classes': list(predictor.classes),
    'targets': [] if columns is None else [column.name for column in columns.targets],
    'columns': [] if columns is None else exported_columns.describe(columns),
    'calibration': None if fitted is None else {'label_scale': fitted.label_scale, 'examples': fitted.examples},
    'versions': {'hydra_jax': hydra_jax.__version__, **{name: metadata.version(name) for name in ('jax', 'flax')}},
  }


def _meaning(predictor: Predictor, name: str) -> tuple[str, str]:
  """What an output is, and its unit."""
  of_read = (each for each in TASKS[predictor.task].predictives.values() if each.read is predictor.model.read)
  own = next(of_read, None)
  return own.epistemic if name == 'epistemic' and own and own.epistemic else MEANINGS[predictor.task][name]


class Examples(NamedTuple):
  """Inputs of the self-test: as the file reads them, and as `Predictor.predict` does."""

  for_file: np.ndarray
  for_predict: Any


def examples(predictor: Predictor, count: int) -> Examples:
  """Random inputs with the mean and the deviation of the training set, always the same."""
  random, scaling = np.random.default_rng(0), predictor.model.scaling
  x = scaling.x_shift + scaling.x_scale * random.normal(size=(count, *predictor.shape))
  if predictor.columns is not None:
    table = exported_columns.examples(predictor.columns, x, random)
    return Examples(exported_columns.rows(predictor.columns, table), table)
  x = np.clip(np.rint(x), 0, 255).astype(np.uint8) if predictor.reads_bytes else x
  return Examples(x, x)


def largest_error(predictor: Predictor, call: Callable[[np.ndarray], dict[str, np.ndarray]], members: bool) -> float:
  """Largest difference between what a file computes and `Predictor.predict`, as a share of the size of the output.

  Args:
    predictor: The predictor.
    call: `inputs -> outputs by name`, by the file.
    members: Whether the predictions of each member are among them.

  Returns:
    The share; infinity if a shape or type differs; NaN if a prediction is NaN in one of both.
  """
  given = examples(predictor, sum(TESTED))
  prediction = predictor.predict(given.for_predict)  # with members, whose size some errors are compared with
  wanted = {name: getattr(prediction, name) for name in output_names(predictor, members)}
  wanted |= {name: np.swapaxes(wanted[name], 0, 1) for name in wanted if name.startswith('member')}
  sizes, errors = _sizes(predictor, prediction), []
  for start, size in zip(np.cumsum((0, *TESTED)), TESTED):
    rows = slice(start, start + size)
    found = call(given.for_file[rows])
    for name, values in wanted.items():
      if found[name].shape != values[rows].shape or found[name].dtype != values.dtype:
        return np.inf
      size = sizes.get(name, sizes['total'])
      if name == 'epistemic':  # −log of a density is no part of the total
        size = np.maximum(size, np.max(np.abs(values), axis=0))
      errors.append(np.max(np.abs(found[name] - values[rows]) / size))
  return float(np.max(errors))


def tolerance(predictor: Predictor) -> float:
  """The most that a file may differ, by the precision in which the network computes."""
  shape, dtype = input_spec(predictor)
  with jax.enable_x64(True):
    traced = jax.make_jaxpr(function_of(predictor))(jax.ShapeDtypeStruct((1, *shape), dtype))
  return TOLERANCES['bfloat16' if 'bf16[' in str(traced) else 'float32']


def _sizes(predictor: Predictor, prediction: Any) -> dict[str, Any]:
  """What errors are compared with.

  For probabilities it is 1. For means of targets it is their deviation in the training set, or the largest that is
  predicted. For uncertainties it is the largest total one. All of them are larger where logits are of more than 10
  nats: these have fewer digits behind the point.
  """
  total = np.maximum(np.max(np.abs(prediction.total), axis=0), np.finfo(np.float32).tiny)
  if predictor.task == 'regression':
    scaling = predictor.model.scaling
    mean = np.maximum(scaling.y_scale, np.max(np.abs(prediction.mean - scaling.y_shift), axis=0))
    return {'total': total, 'mean': mean, 'members': mean}
  logs = prediction.log_members
  steep = 1.0 if logs is None else max(1.0, float(-np.min(logs)) / PLAIN_LOGITS)
  return {'total': steep * total, 'mean': steep, 'members': steep}
