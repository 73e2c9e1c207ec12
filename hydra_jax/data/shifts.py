"""Changes to test inputs, by growing strength. Labels stay as they are.

A change is `(x, strength, x_scale) -> x` and keeps shape and dtype; x is as stored. A row of `SHIFTS`
is a change of the test split, or a set that brings inputs changed by others, and their labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # which loads scipy.ndimage when it is used: a service that predicts needs none of it

from hydra_jax.data import corruptions
from hydra_jax.errors import UserError, look_up

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Shift:
  """A row of `SHIFTS`.

  Attributes:
    load: `(test, strength, x_scale, data_dir) -> (x, y)`, where `test()` is the test split.
    strengths: Those that there are; where empty, any number.
    images: Whether it is for images only.
    family: Of kinds that are also looked at together, by their mean; may be empty.
    only: The only data set that it belongs to, where it reads files.
    unit: Of the strength.
  """

  load: Callable[..., Arrays]
  strengths: Sequence[float] = ()
  images: bool = True
  family: str = ''
  only: str = ''
  unit: str = ''


def rotate(images_NxHxWxC: np.ndarray, degrees: float, x_scale) -> np.ndarray:
  """Turns images counter-clockwise about their centre; what comes into view is 0."""
  del x_scale
  return scipy.ndimage.rotate(images_NxHxWxC, degrees, axes=(2, 1), reshape=False, order=1)


def translate(images_NxHxWxC: np.ndarray, pixels: float, x_scale) -> np.ndarray:
  """Moves images to the right; what comes into view is 0."""
  del x_scale
  return scipy.ndimage.shift(images_NxHxWxC, (0, 0, pixels, 0), order=1)


def jitter(x: np.ndarray, strength: float, x_scale: np.ndarray) -> np.ndarray:
  """Adds Gaussian noise to every feature; its size is in training standard deviations."""
  noise = np.random.default_rng(0).normal(size=x.shape) * strength * x_scale
  if np.issubdtype(x.dtype, np.integer):
    return np.clip(np.rint(x + noise), 0, np.max(x)).astype(x.dtype)
  return (x + noise).astype(x.dtype)


def _change(change: Callable, **row) -> Shift:
  def load(test, strength, x_scale, data_dir):
    split = test()
    return change(split.x, strength, x_scale), split.y

  return Shift(load, **row)


def _corruption(kind: str) -> Shift:
  change = lambda x, severity, x_scale: corruptions.corrupt(kind, x, int(severity))
  return _change(change, strengths=corruptions.SEVERITIES, family='corruptions', unit='severity')


def _published(kind: str) -> Shift:
  load = lambda test, severity, x_scale, data_dir: corruptions.published(kind, int(severity), data_dir)
  return Shift(load, corruptions.SEVERITIES, family=corruptions.RELEASE, only='cifar10', unit='severity')


SHIFTS: dict[str, Shift] = {
  'rotate': _change(rotate, unit='degrees'),
  'translate': _change(translate, unit='pixels'),
  'jitter': _change(jitter, images=False, unit='standard deviations of features'),
  **{kind: _corruption(kind) for kind in corruptions.CORRUPTIONS},
  **{f'{corruptions.RELEASE}/{kind}': _published(kind) for kind in corruptions.RELEASED},
}


def parse(name: str) -> tuple[Shift, float]:
  """The row and the strength that `kind:strength` names, or a `UserError`."""
  kind, _, text = name.partition(':')
  shift = look_up(SHIFTS, kind, 'shift')
  try:
    strength = float(text)
  except ValueError:
    raise UserError(f"shift '{name}' needs a strength, such as '{kind}:2'") from None
  if not np.isfinite(strength) or (shift.strengths and strength not in shift.strengths):
    legal = f'one of {", ".join(map(str, shift.strengths))}' if shift.strengths else 'finite'
    raise UserError(f"the strength of shift '{name}' must be {legal}")
  return shift, strength


def check(name: str, source: str, x: np.ndarray, data_dir: str) -> None:
  """Raises a `UserError` where a shift cannot be had for data set `source`, whose inputs are like x."""
  shift, strength = parse(name)
  if shift.images and x.ndim != 4:
    raise UserError(f"shift '{name}' is for images, and '{source}' has none: leave it out")
  if shift.only not in ('', source):
    raise UserError(f"shift '{name}' is made from '{shift.only}', not from '{source}': leave it out")
  if shift.only:
    shift.load(None, strength, None, data_dir)  # memory-mapped: it costs nothing to find out now
