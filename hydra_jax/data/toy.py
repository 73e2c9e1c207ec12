"""Data that need no download: scikit-learn's digits, letters drawn like them, spirals."""

import functools
from importlib import metadata
from pathlib import Path
import string

import numpy as np

from hydra_jax.data import sources
from hydra_jax.errors import look_up

# Letters that, drawn on 8 × 8 points, are digits as well.
DIGIT_LIKE = frozenset('BDGIOQSZbdgiloqsz')


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
  """Handwritten digits `[N, 8, 8, 1]`, 0 to 16, of UCI's Optical Recognition set.

  scikit-learn has 1,797 of them; every third is the test split.
  """
  chosen = look_up({'train': np.arange(1797) % 3 != 2, 'test': np.arange(1797) % 3 == 2}, split, 'split')
  try:  # importing scikit-learn takes up to two seconds
    images, labels = sources.kept('digits', ('scikit-learn', metadata.version('scikit-learn')), _write_digits)
  except sources.NoCacheError:
    images, labels = _all_digits()
  return np.asarray(images)[chosen], labels[chosen]


def _all_digits() -> tuple[np.ndarray, np.ndarray]:
  from sklearn.datasets import load_digits

  data = load_digits()
  return data.images[..., None].astype(np.uint8), data.target.astype(np.int32)


def _write_digits(folder: Path) -> None:
  for name, array in zip(('images', 'labels'), _all_digits(), strict=True):
    np.save(folder / f'{name}.npy', array, allow_pickle=False)


@functools.cache
def letters(size: int = 8) -> np.ndarray:
  """Letters in the fonts that come with matplotlib, `[N, size, size, 1]`, 0 to 16.

  Made as the digits were: a 32 × 32 bitmap, filled by the character, in which the ink of each
  4 × 4 block is counted. Letters that look like digits at that size are left out.
  """
  from matplotlib import get_data_path
  from PIL import Image, ImageDraw, ImageFont

  dejavu = ('Sans', 'Sans-Bold', 'Sans-Oblique', 'Serif', 'Serif-Bold', 'Serif-Italic', 'SansMono', 'SansMono-Bold')
  families = [*(f'DejaVu{face}' for face in dejavu), 'STIXGeneral', 'STIXGeneralItalic']
  images = []
  for family in families:
    font = ImageFont.truetype(f'{get_data_path()}/fonts/ttf/{family}.ttf', 64)
    for letter in sorted(set(string.ascii_letters) - DIGIT_LIKE):
      sheet = Image.new('L', (160, 160))
      ImageDraw.Draw(sheet).text((40, 40), letter, fill=255, font=font)
      glyph = sheet.crop(sheet.getbbox())
      scale = 32 / max(glyph.size)
      glyph = glyph.resize([max(1, round(s * scale)) for s in glyph.size])
      page = Image.new('L', (32, 32))
      page.paste(glyph, ((32 - glyph.width) // 2, (32 - glyph.height) // 2))
      ink = (np.asarray(page) > 127).reshape(size, 32 // size, size, 32 // size)
      images.append(ink.sum(axis=(1, 3)))
  return np.stack(images)[..., None].astype(np.uint8)


def spiral(split: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Three spiral arms of classes 0, 1, 2 in the plane, with noise that grows outwards.

  100 training points for each arm, as in the spiral of the ensemble distribution distillation
  papers (Malinin et al. 2020, Lindqvist et al. 2020); 1,000 for testing. `far` are points on rings
  at two to four times the radius of the data.
  """
  sizes = {'train': 100, 'test': 1000, 'far': 1000}
  n = look_up(sizes, split, 'split')
  random = np.random.default_rng((seed, list(sizes).index(split)))
  arm = np.repeat(np.arange(3), n)
  along = random.uniform(0.02, 1, 3 * n)
  if split == 'far':
    radius, angle = random.uniform(20, 40, 3 * n), random.uniform(0, 2 * np.pi, 3 * n)
    noise = 0
  else:
    radius, angle = 10 * np.sqrt(along), 2 * np.pi * (1.5 * np.sqrt(along) + arm / 3)
    noise = random.normal(size=(3 * n, 2)) * (0.15 + 0.6 * along[:, None])
  x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1) + noise
  return x.astype(np.float32), arm.astype(np.int32)


def plane(reach: float, points: int = 121) -> np.ndarray:
  """A square grid of points `[points², 2]`, from −reach to reach, row by row from the bottom."""
  line = np.linspace(-reach, reach, points, dtype=np.float32)
  return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
