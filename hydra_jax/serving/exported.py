"""A predictor as one pure function, from inputs as the user has them to predictions in the user's units.

It has four steps: `inputs` (checked and scaled), the network, the read-out, and `units`. The network and the read-out
are those of `Predictor.predict`.
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import hydra_jax
from hydra_jax.data import LARGEST
from hydra_jax.evaluation.predictor import Predictor

INPUT = 'x'
ALWAYS = ('mean', 'total', 'aleatoric', 'epistemic')
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
    'mean': ('mean of the mixture', 'unit of the target'),
    'total': ('variance of the mixture', 'squared unit of the target'),
    'aleatoric': ('mean of the variances of the members', 'squared unit of the target'),
    'epistemic': ('variance of the means of the members', 'squared unit of the target'),
    'members': ('mean of each member', 'unit of the target'),
    'member_variances': ('variance of each member', 'squared unit of the target'),
  },
}
# Random inputs of the self-test, at these batch sizes.
TESTED = (1, 2, 7)
# Most that a file may differ from `Predictor.predict`, as a share of the size of the output.
TOLERANCE = 1e-5
BFLOAT16_TOLERANCE = 2e-2


def input_dtype(predictor: Predictor) -> np.dtype:
  """Bytes for images, float64 for all else: a feature such as 1e9 ± 3 has no digits left in float32."""
  return np.dtype(np.uint8 if predictor.reads_bytes else np.float64)


def output_names(predictor: Predictor, members: bool) -> tuple[str, ...]:
  """Names of the outputs, in order."""
  return ALWAYS + (tuple(MEANINGS[predictor.task])[len(ALWAYS) :] if members else ())


def function_of(predictor: Predictor, members: bool = False) -> Callable[[jax.Array], dict[str, jax.Array]]:
  """What `Predictor.predict` computes, as a function to trace under `jax.enable_x64(True)`.

  Args:
    predictor: The trained network.
    members: Whether the predictions of each member are outputs as well.

  Returns:
    A function of inputs `[batch, …]`, uint8 or float64, see `input_dtype`. It returns arrays by name with the batch
    first: float32 in classification, float64 in regression. `members` are `[batch, M, C]`. Rows of inputs that
    `predict` refuses (not finite, or too large) are NaN.
  """
  names = output_names(predictor, members)

  def f(x):
    with jax.named_scope('inputs'):
      features, usable = _inputs(predictor, x)
    with jax.enable_x64(False):
      found = predictor.compiled(features)
    with jax.named_scope('units'):
      found = {name: _in_units(predictor, name, found[name]) for name in names}
      return found if usable is None else {name: _where(usable, values) for name, values in found.items()}

  return f


def _inputs(predictor: Predictor, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Inputs as they go to the device, and which of them can be predicted for; None: all."""
  if predictor.reads_bytes:
    return x, None
  scaling, lead = predictor.model.scaling, (1,) * (x.ndim - 1)
  shift, scale = (jnp.asarray(np.reshape(each, (*lead, -1)), x.dtype) for each in (scaling.x_shift, scaling.x_scale))
  usable = jnp.all(jnp.abs(x) <= LARGEST, axis=tuple(range(1, x.ndim)))  # a comparison with NaN is false
  return ((x - shift) / scale).astype(jnp.float32), usable


def _in_units(predictor: Predictor, name: str, values: jax.Array) -> jax.Array:
  """An output in the units of the targets, `[batch, …, D]`."""
  if predictor.task == 'classification':
    return values
  scaling, lead = predictor.model.scaling, (1,) * (values.ndim - 1)
  shift, scale = (jnp.asarray(np.reshape(each, (*lead, -1)), float) for each in (scaling.y_shift, scaling.y_scale))
  values = values.astype(jnp.float64)
  return values * scale + shift if name in ('mean', 'members') else values * jnp.square(scale)


def _where(usable: jax.Array, values: jax.Array) -> jax.Array:
  nothing = jnp.asarray(np.nan, values.dtype)
  return jnp.where(jnp.reshape(usable, (-1, *(1,) * (values.ndim - 1))), values, nothing)


def describe(predictor: Predictor, members: bool) -> dict[str, Any]:
  """What a file is, as JSON: the input, the outputs with their units, the names of classes, and versions."""
  spec = jax.ShapeDtypeStruct((1, *predictor.shape), input_dtype(predictor))
  with jax.enable_x64(True):
    found = jax.eval_shape(function_of(predictor, members), spec)
  outputs = {}
  for name in output_names(predictor, members):
    meaning, unit = MEANINGS[predictor.task][name]
    shape = ['batch', *found[name].shape[1:]]
    outputs[name] = {'dtype': found[name].dtype.name, 'shape': shape, 'meaning': meaning, 'unit': unit}
  return {
    'task': predictor.task,
    'input': {'name': INPUT, 'dtype': spec.dtype.name, 'shape': ['batch', *predictor.shape]},
    'outputs': outputs,
    'classes': list(predictor.classes),
    'versions': {'hydra_jax': hydra_jax.__version__, **{name: metadata.version(name) for name in ('jax', 'flax')}},
  }


def examples(predictor: Predictor, count: int) -> np.ndarray:
  """Random inputs as the training set might have them, always the same."""
  random, shape = np.random.default_rng(0), (count, *predictor.shape)
  x = predictor.model.scaling.x_shift + predictor.model.scaling.x_scale * random.normal(size=shape)
  if predictor.reads_bytes:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
  return x


def expected(predictor: Predictor, x: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
  """What `Predictor.predict` gives, with the batch first."""
  found = predictor.predict(x)
  swap = lambda name, values: np.swapaxes(values, 0, 1) if name.startswith('member') else values
  return {name: swap(name, getattr(found, name)) for name in names}


def largest_error(predictor: Predictor, call: Callable[[np.ndarray], dict[str, np.ndarray]], members: bool) -> float:
  """Largest difference between what a file computes and `Predictor.predict`, as a share of the size of the output.

  The size of probabilities is 1. That of means is the deviation of the target, or the largest deviation that is
  predicted. That of uncertainties is the largest total uncertainty.

  Args:
    predictor: The predictor.
    call: `inputs -> outputs by name`, by the file.
    members: Whether the predictions of each member are among them.
  """
  names, errors = output_names(predictor, members), []
  x = examples(predictor, sum(TESTED))
  wanted = expected(predictor, x, names)
  sizes = _sizes(predictor, wanted)
  for start, size in zip(np.cumsum((0, *TESTED)), TESTED):
    rows = slice(start, start + size)
    found = call(x[rows])
    for name in names:
      if found[name].shape != wanted[name][rows].shape or found[name].dtype != wanted[name].dtype:
        return float('inf')
      errors.append(np.max(np.abs(found[name] - wanted[name][rows]) / sizes[name]))
  return float(np.max(errors))  # NaN where any is


def _sizes(predictor: Predictor, wanted: dict[str, np.ndarray]) -> dict[str, Any]:
  """What errors of each output are compared with."""
  uncertainty = np.maximum(np.max(np.abs(wanted['total']), axis=0), np.finfo(np.float32).tiny)
  if predictor.task == 'classification':
    mean = np.ones(())
  else:
    scaling = predictor.model.scaling
    mean = np.maximum(scaling.y_scale, np.max(np.abs(wanted['mean'] - scaling.y_shift), axis=0))
  return {name: mean if name in ('mean', 'members') else uncertainty for name in wanted}
