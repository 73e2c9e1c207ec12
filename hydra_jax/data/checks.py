"""What is refused of inputs and labels before anything is trained, and what is told."""

import logging
import math

import numpy as np

from hydra_jax.data import labels
from hydra_jax.data.arrays import Scaling, Split, constant
from hydra_jax.errors import UserError

logger = logging.getLogger(__name__)

# Larger numbers are refused, and inputs and targets further from the training mean, in standard deviations: what is
# computed of them, such as their squares, would not be finite in float32.
LARGEST, FARTHEST = 1e37, 1e15
# Test inputs further away than this are told of.
FAR = 100


def check_inputs(x: np.ndarray, what: str, example: np.ndarray | None = None) -> np.ndarray:
  """Returns inputs that are numbers, finite, not empty, and shaped like an example `[≤ 8, …]`; refuses others."""
  if x.dtype.kind not in 'biuf':
    raise UserError(f'{what} is of dtype {x.dtype}, and must hold real numbers: convert it')
  if not x.size:
    raise UserError(f'{what} has shape {list(x.shape)} and is empty: add examples')
  if example is not None and x.shape[1:] != example.shape[1:]:
    raise UserError(
      f'{what} has inputs of shape {list(x.shape[1:])}, and the training split {list(example.shape[1:])}: '
      'give both the same features'
    )
  labels.refuse_not_finite(x, what)
  _refuse_large(x, what)
  return x


def check_labels(y: np.ndarray, what: str, examples: int, classes: int | None, targets: int) -> np.ndarray:
  """Returns labels that fit their inputs: `[N]` from 0 to `classes − 1`, or `[N, targets]`; refuses others."""
  if len(y) != examples:
    raise UserError(f'{what} has {len(y):,} labels for {examples:,} inputs: they must match')
  if classes is not None:
    if y.ndim != 1 or y.dtype.kind not in 'iu':
      raise UserError(f'{what} is {y.dtype} {list(y.shape)}, and must hold whole numbers [examples]')
    if y.min() < 0 or y.max() >= classes:
      wrong = y.min() if y.min() < 0 else y.max()
      raise UserError(f'{what} has the class {wrong}, and the classes are 0 to {classes - 1}: count them from 0')
    return y
  if y.ndim != 2 or y.shape[1] != targets:
    raise UserError(
      f'{what} has {math.prod(y.shape[1:])} targets, and the training split {targets}: give both the same'
    )
  labels.refuse_not_finite(y, what)
  _refuse_large(y, what)
  return y


def _refuse_large(values: np.ndarray, what: str) -> None:
  if values.dtype.kind == 'f' and max(-float(np.min(values)), float(np.max(values))) > LARGEST:
    raise UserError(f'{what} has numbers of more than {LARGEST:g}: give it in other units')


def refuse_constant(train: Split, classification: bool, called: tuple[str, str]) -> None:
  """Raises a `UserError` where there is nothing to learn."""
  if constant(train.x).all():
    raise UserError(f'{called[0]} is the same for every example: there is nothing to learn from it')
  if not classification and (same := constant(train.y)).any():
    column = int(np.argmax(same))
    raise UserError(
      f'{called[1]} is {train.y[0, column]:.10g} for every example{f" in column {column}" if len(same) > 1 else ""}: '
      'there is nothing to learn; save it as float64 if it varies, or leave it out'
    )


def warn_far(train: Split, test: Split, scaling: Scaling, called: str) -> None:
  """Warns where test inputs are unlike all training inputs, as they are in other units or hardly vary in training."""
  flat = test.x.reshape(-1, test.x.shape[-1])
  ends = np.stack([np.min(flat, axis=0), np.max(flat, axis=0), scaling.x_shift]).astype(np.float64)
  same = constant(train.x)
  moved = same & ~constant(ends.astype(train.x.dtype))
  far = np.where(same, 0, np.max(np.abs(ends - scaling.x_shift) / scaling.x_scale, axis=0))
  if moved.any():
    value = scaling.x_shift[moved][0]
    logger.warning(f'{called}: feature {np.argmax(moved)} is {value:g} in every training example, and varies here')
  if far.max() > FAR:
    logger.warning(
      f'{called}: feature {np.argmax(far)} lies up to {far.max():.3g} standard deviations of the training split from '
      'its mean: see whether both are in the same units'
    )
  if len(shape := train.x.shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
    logger.warning(
      f'{called} has shape {list(test.x.shape)}, and the last axis is that of channels: '
      'if they come first, transpose(0, 2, 3, 1)'
    )


def refuse_far(split: Split, scaling: Scaling, what: str) -> None:
  """Raises a `UserError` where a split is so far from the training split that it must be in other units."""
  for values, shift, scale in ((split.x, *scaling[:2]), (split.y, *scaling[2:])):
    if values.dtype.kind == 'f':
      flat = values.reshape(-1, values.shape[-1])
      far = max(np.max(np.abs((f(flat, axis=0) - shift) / scale)) for f in (np.min, np.max))
      if far > FARTHEST:
        raise UserError(
          f'{what} lies {far:.1g} standard deviations from the mean of the training split: give both in the same units'
        )


def warn_unseen(train: Split, test: Split, classes: int | None, called: str) -> None:
  """Warns which classes of the test split no training example has."""
  if classes is not None and len(unseen := np.setdiff1d(test.y, train.y)):
    some = ', '.join(map(str, unseen[:8])) + (', …' if len(unseen) > 8 else '')
    logger.warning(f'{called}: no training example is of the classes {some}')
