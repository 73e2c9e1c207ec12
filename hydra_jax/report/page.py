"""`report.html`: all that a run has found, as one page that needs no server and no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import functools
from importlib import resources
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hydra_jax.data import Split
from hydra_jax.formats import digits
from hydra_jax.maths.tasks import Scores
from hydra_jax.report import figures
from hydra_jax.report.tables import Table

# What each figure shows, in the order of the page: title and caption.
CAPTIONS = {
  'reliability': (
    'Reliability',
    'How often predictions are right against how sure they are, with 95% intervals. On the diagonal both are equal.',
  ),
  'calibration': (
    'Calibration',
    'Share of targets below each quantile of the prediction. On the diagonal the share is what was promised.',
  ),
  'model_uncertainty': (
    'Model uncertainty in and out of domain',
    'The further apart both histograms are, the better unusual inputs are told by the disagreement of the heads.',
  ),
  'agreement': (
    'Model uncertainty of students beside that of the ensemble',
    'Each point is an input. On the diagonal student and ensemble are equally uncertain.',
  ),
  'heads_against_members': (
    'Heads against members',
    'How far the prediction of each head is from that of each member. A bright diagonal: each head follows its member.',
  ),
  'rejection': (
    'Rejection curves',
    'The score of what is left when the most uncertain inputs are rejected. The higher a curve begins, the better.',
  ),
  'shifts': (
    'Growing shift',
    'Scores and uncertainty while inputs move away from what was learnt. Uncertainty should grow with the error.',
  ),
  'corruptions': ('Each corruption', 'The score against the severity of each corruption.'),
  'plane': (
    'Uncertainty over the plane',
    'Where each method is uncertain. Points are training data. The rows are total, data and model uncertainty.',
  ),
  'validation': (
    'Scores in training',
    'On the validation part, which nothing learns from. The rank correlation is that with the ensemble. Heads are as '
    'trained: their spread is set afterwards.',
  ),
  'losses': ('Losses in training', 'The median of the heads, and the range of all heads, step by step.'),
}
MOST_INPUTS, MOST_VALUES = 8, 6


@dataclass(frozen=True)
class ShownFigure:
  """A figure on the page: its size is in pixels of the page, and `png` is in base64."""

  title: str
  caption: str
  width: int
  height: int
  png: str


@dataclass(frozen=True)
class ShownInput:
  """A test input on the page.

  Attributes:
    number: In the test set.
    label: Class or targets.
    ensemble, student: NLL, and model uncertainty.
    png: Of an image, in base64.
    values: Of a row of numbers.
  """

  number: int
  label: str
  ensemble: str
  student: str
  png: str = ''
  values: str = ''


@dataclass(frozen=True, kw_only=True)
class Page:
  """What stands on the page, from top to bottom. `student` is '' where none was trained."""

  title: str
  about: str
  student: str
  verdict: Sequence[str]
  table: Table
  notes: Sequence[str]
  figures: Sequence[ShownFigure]
  inputs: Sequence[ShownInput]
  load: str
  changes: Sequence[tuple[str, str, str]]
  versions: Mapping[str, Any]


@functools.cache
def _template():
  import jinja2

  text = resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
  return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text)


def html(page: Page) -> str:
  """The page as text."""
  return _template().render(page=page)


def figures_in(folder: Path) -> list[ShownFigure]:
  """The figures of a folder that have a caption."""
  found = []
  for name, (title, caption) in CAPTIONS.items():
    file = folder / f'{name}.png'
    if file.is_file():
      with Image.open(file) as image:
        width, height = (round(96 / figures.DPI * size) for size in image.size)
      found.append(ShownFigure(title, caption, width, height, base64.b64encode(file.read_bytes()).decode()))
  return found


def largest_differences(test: Split, ours: Scores, theirs: Scores, classes: Sequence[str] = ()) -> list[ShownInput]:
  """Test inputs on which two methods differ most in the NLL of the label.

  Args:
    test: The test set.
    ours: Scores of each example of it, of the student.
    theirs: Of the ensemble.
    classes: Their names; empty if they are numbered.
  """
  gap = np.abs(ours['nll'] - theirs['nll'])
  gap = np.where(np.isfinite(gap), gap, 0.0)
  chosen = np.argsort(-gap, kind='stable')[:MOST_INPUTS]
  x, y = np.asarray(test.x), np.asarray(test.y)
  found = []
  of_label = lambda scores, i: digits(float(scores['nll'][i]), 3)
  of_model = lambda scores, i: digits(float(scores['uncertainty_epistemic'][i]), 2)
  for i in chosen:
    ensemble, student = (f'{of_label(scores, i)} ({of_model(scores, i)})' for scores in (theirs, ours))
    label = str(classes[y[i]]) if len(classes) else _values(y[i])
    picture = _png(x[i], x[chosen]) if x.ndim == 4 else ''
    values = '' if picture else _values(x[i])
    found.append(ShownInput(int(i), label, ensemble, student, picture, values))
  return found


def _png(image: np.ndarray, all_shown: np.ndarray) -> str:
  """An image in base64, grey or in colour, from black to white over all that are shown."""
  low, high = float(all_shown.min()), float(all_shown.max())
  share = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)
  grey = (255 * share).astype(np.uint8)
  if grey.shape[-1] not in (1, 3):
    return ''
  file = io.BytesIO()
  Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey).save(file, 'png')
  return base64.b64encode(file.getvalue()).decode()


def _values(x: np.ndarray) -> str:
  row, whole = np.ravel(x), np.issubdtype(x.dtype, np.integer)
  shown = [str(v) if whole else digits(float(v), 4) for v in row[:MOST_VALUES]]
  return ', '.join(shown) + ', …' * (len(row) > MOST_VALUES)
