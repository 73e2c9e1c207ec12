"""Changes to test inputs, by growing strength. Labels stay as they are.

Each is `(x, strength, x_scale) -> x` and keeps shape and dtype; x is as stored.
"""

import numpy as np
import scipy.ndimage


def rotate(images_NxHxWxC: np.ndarray, degrees: float, x_scale) -> np.ndarray:
  """Turns images counter-clockwise about their centre; what comes into view is 0."""
  del x_scale
  return scipy.ndimage.rotate(images_NxHxWxC, degrees, axes=(2, 1), reshape=False, order=1)


def translate(images_NxHxWxC: np.ndarray, pixels: float, x_scale) -> np.ndarray:
  """Moves images to the right; what comes into view is 0."""
  del x_scale
  return scipy.ndimage.shift(images_NxHxWxC, (0, 0, pixels, 0), order=1)


def jitter(x: np.ndarray, strength: float, x_scale: np.ndarray) -> np.ndarray:
  """Adds Gaussian noise of so many training standard deviations to every feature."""
  noise = np.random.default_rng(0).normal(size=x.shape) * strength * x_scale
  if np.issubdtype(x.dtype, np.integer):
    return np.clip(np.rint(x + noise), 0, np.max(x)).astype(x.dtype)
  return (x + noise).astype(x.dtype)


SHIFTS = {'rotate': rotate, 'translate': translate, 'jitter': jitter}
