"""Inputs that belong to no data set with labels, and images of other sets in the shape of these."""

from collections.abc import Callable

import numpy as np

from hydra_jax.data import toy
from hydra_jax.data.arrays import Split
from hydra_jax.errors import UserError


def _noise(test: Split) -> np.ndarray:
  """Uniform noise over the range of the test inputs, 1,000 examples."""
  shape = (1000, *test.x.shape[1:])
  low, high = np.min(test.x), np.max(test.x)
  values = np.random.default_rng(0).uniform(low, high, shape)
  return (np.rint(values) if np.issubdtype(test.x.dtype, np.integer) else values).astype(test.x.dtype)


def _negative(test: Split) -> np.ndarray:
  """The test inputs, light for dark."""
  return np.min(test.x) + np.max(test.x) - test.x


def _collage(test: Split) -> np.ndarray:
  """Images whose four quarters come from four test images."""
  x, random = test.x, np.random.default_rng(0)
  if x.ndim != 4:
    raise UserError("out-of-domain set 'collage' is for images: leave it out")
  height, width = x.shape[1] // 2, x.shape[2] // 2
  made = np.empty_like(x)
  for rows in (slice(height), slice(height, None)):
    for columns in (slice(width), slice(width, None)):
      made[:, rows, columns] = x[random.permutation(len(x)), rows, columns]
  return made


# Inputs that belong to no data set with labels, each made from the test split.
UNLABELLED: dict[str, Callable[[Split], np.ndarray]] = {
  'letters': lambda test: toy.letters(test.x.shape[1]),
  'noise': _noise,
  'negative': _negative,
  'collage': _collage,
  'far': lambda test: toy.spiral('far')[0],
  'plane': lambda test: toy.plane(2.5 * float(np.max(np.abs(test.x)))),
}


def resized(x_NxHxWxC: np.ndarray, shape: tuple[int, ...], dtype) -> np.ndarray:
  """Images of another size, and grey or in three colours, as asked for."""
  from PIL import Image

  height, width, channels = shape
  if x_NxHxWxC.shape[-1] != channels:
    grey = x_NxHxWxC.mean(axis=-1, keepdims=True)
    x_NxHxWxC = np.repeat(grey, channels, axis=-1)
  size = lambda plane: np.asarray(
    Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
  )
  planes = [[size(image[..., c]) for c in range(channels)] for image in x_NxHxWxC]
  values = np.moveaxis(np.asarray(planes), 1, -1)
  return np.rint(values).astype(dtype) if np.issubdtype(dtype, np.integer) else values.astype(dtype)
