"""Corruptions of images at severities 1 to 5, after Hendrycks and Dietterich 2019 (arXiv 1903.12261).

They are computed here, from the test images at hand, and scores under them are not CIFAR-10-C scores.
Kinds, and what a severity means, are those of CIFAR-10-C (make_cifar_c.py in hendrycks/robustness);
random numbers, rounding and interpolation are not. Of its 15 kinds, 12 are here: frost needs
photographs, and snow and glass blur are left out. The published files are read by `published`.

Each is `(x [N, H, W, C], random, strength) -> x` on floats from 0, black, to 1, white.
"""

from collections.abc import Callable
import io
from pathlib import Path

import numpy as np
from PIL import Image
import scipy  # which loads scipy.ndimage when it is used: a service that predicts needs none of it

from hydra_jax.errors import UserError

SEVERITIES = (1, 2, 3, 4, 5)
AT_ONCE = 500  # images; more are no faster


def gaussian_noise(x, random, deviation):
  return x + deviation * random.standard_normal(x.shape, np.float32)


def shot_noise(x, random, photons):
  """Counts of photons, of which a white pixel gets a given number on average."""
  return random.poisson(photons * x) / photons


def impulse_noise(x, random, share):
  """Turns a share of all values black or white, each channel on its own."""
  u = random.random(x.shape, np.float32)
  return np.where(u < share, u < share / 2, x)


def disk(radius: float, blur: float) -> np.ndarray:
  """A disk of sum 1 that is blurred, against aliasing, by 3 × 3 points of a Gaussian."""
  reach = np.arange(-int(radius) - 1, int(radius) + 2)
  inside = np.float64(reach[:, None] ** 2 + reach[None] ** 2 <= radius**2)
  line = np.exp(-np.square([-1, 0, 1]) / (2 * blur**2))
  blurred = scipy.ndimage.convolve(inside, np.outer(line, line), mode='constant')
  return blurred / blurred.sum()


def defocus_blur(x, random, strength):
  """Blurs with a disk of a radius in pixels; images go on beyond their edges as in a mirror."""
  del random
  kernel = disk(*strength)
  reach, (height, width) = len(kernel) // 2, x.shape[1:3]
  padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), 'reflect')
  taps = zip(*np.nonzero(kernel))
  return sum(np.float32(kernel[i, j]) * padded[:, i : i + height, j : j + width] for i, j in taps)


def motion_blur(x, random, strength):
  """Blurs from each pixel on in a direction of its image's own, within 45° of the horizontal.

  The weights are half a Gaussian of `deviation` pixels; the steps are whole pixels, as in ImageMagick.
  """
  radius, deviation = strength
  images, height, width, _ = x.shape
  angle_N = np.deg2rad(random.uniform(-45, 45, images))
  weights = np.exp(-np.square(np.arange(2 * radius + 1) / deviation) / 2)
  along = lambda size, step_N: np.clip(np.arange(size) + np.rint(step_N)[:, None], 0, size - 1).astype(int)
  out = np.zeros_like(x)
  for step, weight in enumerate(weights / weights.sum()):
    rows, columns = along(height, step * np.sin(angle_N)), along(width, step * np.cos(angle_N))
    out += np.float32(weight) * x[np.arange(images)[:, None, None], rows[:, :, None], columns[:, None, :]]
  return out


def along_both(x: np.ndarray, maps) -> np.ndarray:
  """Sum over pairs of matrices (for rows `[H, H]`, for columns `[W, W]`) of what they make of images.

  They are nearly empty: one sparse matrix, for all pixels and pairs, is faster than many full ones.
  """
  images, height, width, channels = x.shape
  total = sum(scipy.sparse.kron(*map(scipy.sparse.csr_array, pair), format='csr') for pair in maps)
  mixed = total @ x.transpose(1, 2, 0, 3).reshape(height * width, -1)
  return mixed.reshape(height, width, images, channels).transpose(2, 0, 1, 3)


def enlarged(size: int, factor: float) -> np.ndarray:
  """Matrix that enlarges the middle of a row of pixels to its whole, linearly, `[size, size]`."""
  visible = int(np.ceil(size / factor))
  start = (size - visible) // 2
  rows = scipy.ndimage.zoom(np.eye(size, dtype=np.float32)[start : start + visible], (factor, 1), order=1)
  start = (len(rows) - size) // 2
  return rows[start : start + size]


def zoom_blur(x, random, end):
  """Mean of the image and of its enlargements in steps of a hundredth."""
  del random
  factors = np.arange(1, end, 0.01)
  maps = ([enlarged(size, factor) for size in x.shape[1:3]] for factor in factors)
  return (x + along_both(x, maps)) / (len(factors) + 1)


def plasma(random, images: int, size: int, decay: float) -> np.ndarray:
  """Clouds by the diamond-square algorithm on a torus, `[images, size, size]`, each from 0 to 1.

  `size` is a power of two; the random part shrinks by decay² as the distance of points halves.
  """
  z, step, noise = np.zeros((images, size, size), np.float32), size, 1.0
  between = lambda a, b, axis_a, axis_b: a + np.roll(a, -1, axis_a) + b + np.roll(b, 1, axis_b)
  while step > 1:
    half = step // 2
    wobble = lambda four, noise=noise: four / 4 + noise * random.uniform(-1, 1, four.shape)
    corners = z[:, ::step, ::step]
    pairs = corners + np.roll(corners, -1, 1)
    centres = z[:, half::step, half::step] = wobble(pairs + np.roll(pairs, -1, 2)).astype(np.float32)
    z[:, ::step, half::step] = wobble(between(corners, centres, 2, 1))
    z[:, half::step, ::step] = wobble(between(corners, centres, 1, 2))
    step, noise = half, noise / decay**2
  z -= z.min(axis=(1, 2), keepdims=True)
  return z / z.max(axis=(1, 2), keepdims=True)


def fog(x, random, strength):
  """Adds clouds, then darkens each image until its brightest value could be what it was."""
  amount, decay = strength
  images, height, width, _ = x.shape
  size = 1 << (max(height, width, 2) - 1).bit_length()
  brightest = x.max(axis=(1, 2, 3), keepdims=True)
  clouds = plasma(random, images, size, decay)[:, :height, :width, None]
  return (x + amount * clouds) * brightest / (brightest + amount)


def brightness(x, random, amount):
  """Raises the value in hue, saturation, value: all channels in proportion, up to white in the brightest."""
  del random
  value = x.max(axis=-1, keepdims=True)
  raised = np.minimum(value + amount, 1)
  return np.where(value > 0, x * (raised / np.where(value > 0, value, 1)), raised)


def contrast(x, random, share):
  """Moves values towards the mean of their channel and leaves a share of the distance."""
  del random
  mean = x.mean(axis=(1, 2), keepdims=True)
  return mean + share * (x - mean)


def elastic_transform(x, random, strength):
  """Moves three points of each image at random, all others along with them, and each pixel a little more.

  Distances are shares of the smaller side; the moves of pixels are smoothed over `smooth`.
  """
  images, height, width, _ = x.shape
  side = min(height, width)
  local, smooth, corners = (side * s for s in strength)
  centre, reach = np.asarray([height // 2, width // 2]), side // 3
  fixed = centre + reach * np.asarray([[1, 1], [1, -1], [-1, -1]])
  moved_Nx3x2 = fixed + random.uniform(-corners, corners, (images, 3, 2))
  back_Nx3x2 = np.linalg.solve(np.insert(moved_Nx3x2, 2, 1, axis=-1), np.broadcast_to(fixed, moved_Nx3x2.shape))
  pixels_2xNxHxW = np.indices((height, width), np.float32)[:, None] + local * scipy.ndimage.gaussian_filter(
    random.uniform(-1, 1, (2, images, height, width)).astype(np.float32), (0, 0, smooth, smooth), truncate=3
  )
  at = np.einsum('anhw,nab->bnhw', pixels_2xNxHxW, back_Nx3x2[:, :2]) + back_Nx3x2[:, 2].T[:, :, None, None]
  which = np.broadcast_to(np.arange(images)[:, None, None], at.shape[1:])
  sample = lambda channel: scipy.ndimage.map_coordinates(channel, (which, *at), order=1, mode='mirror')
  return np.stack([sample(channel) for channel in np.moveaxis(x, -1, 0)], axis=-1)


def coarse(size: int, share: float) -> np.ndarray:
  """Matrix that shrinks a row of pixels to a share of their number and repeats what is left, `[size, size]`."""
  pixels = Image.fromarray(np.eye(size, dtype=np.float32))
  for rows in (max(1, int(size * share)), size):
    pixels = pixels.resize((size, rows), Image.Resampling.BOX)
  return np.asarray(pixels)


def pixelate(x, random, share):
  del random
  return along_both(x, [[coarse(size, share) for size in x.shape[1:3]]])


def jpeg_compression(x, random, quality):
  """Through a JPEG file; all others take all images at once."""
  del random

  def through(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)

  return np.stack([through(image) for image in np.rint(255 * x).astype(np.uint8)]) / np.float32(255)


# What each severity means, from make_cifar_c.py.
CORRUPTIONS: dict[str, tuple[Callable, tuple]] = {
  'gaussian_noise': (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
  'shot_noise': (shot_noise, (500, 250, 100, 75, 50)),
  'impulse_noise': (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
  'defocus_blur': (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
  'motion_blur': (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
  'zoom_blur': (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
  'fog': (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
  'brightness': (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
  'contrast': (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
  'elastic_transform': (
    elastic_transform,
    ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
  ),
  'pixelate': (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
  'jpeg_compression': (jpeg_compression, (80, 65, 58, 50, 40)),
}


def corrupt(kind: str, images_NxHxWxC: np.ndarray, severity: int) -> np.ndarray:
  """Stored images, corrupted; shape and dtype stay, and the same images give the same result.

  White is the greatest value in the images: 255 in photographs, 16 in scikit-learn's digits.
  """
  corruption, strengths = CORRUPTIONS[kind]
  white = np.float32(np.max(images_NxHxWxC)) or np.float32(1)
  integer = np.issubdtype(images_NxHxWxC.dtype, np.integer)
  out = np.empty(images_NxHxWxC.shape, images_NxHxWxC.dtype)
  for start in range(0, len(out), AT_ONCE):
    piece = slice(start, start + AT_ONCE)
    x = np.asarray(images_NxHxWxC[piece], np.float32) / white
    changed = white * np.clip(corruption(x, np.random.default_rng(start), strengths[severity - 1]), 0, 1)
    out[piece] = np.rint(changed) if integer else changed
  return out


RELEASE = 'CIFAR-10-C'
RELEASED = (
  *('gaussian_noise', 'shot_noise', 'impulse_noise', 'defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
  *('snow', 'frost', 'fog', 'brightness', 'contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
  *('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),  # not among the 15
)


def published(kind: str, severity: int, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
  """Images, memory-mapped, and labels of one severity from the files of CIFAR-10-C.

  They are all 10,000 test images in the order of the original CIFAR-10, whatever `config.data.test` says.
  """
  folder = Path(data_dir) / RELEASE
  paths = [folder / f'{part}.npy' for part in (kind, 'labels')]
  if missing := [p for p in paths if not p.exists()]:
    raise UserError(
      f'{missing[0]} is not there: download {RELEASE}.tar from https://zenodo.org/records/2535967 '
      f'and unpack it in {data_dir}'
    )
  try:
    images, labels = (np.load(p, mmap_mode='r') for p in paths)
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f'a file in {folder} is damaged ({e}): unpack {RELEASE}.tar again') from e
  if images.shape != (len(labels), 32, 32, 3) or len(labels) % len(SEVERITIES):
    raise UserError(f'{paths[0]} has shape {images.shape} for {len(labels)} labels: unpack {RELEASE}.tar again')
  size = len(labels) // len(SEVERITIES)
  rows = slice((severity - 1) * size, severity * size)
  return images[rows], labels[rows].astype(np.int32)
