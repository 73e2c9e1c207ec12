"""`report.html`: all that a run or a table has found, as one page that needs no server and no network."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
import functools
from importlib import resources
import io
import logging
from pathlib import Path
import re
from typing import Any

import numpy as np
from PIL import Image

from hydra_jax.data import Split
from hydra_jax.formats import digits
from hydra_jax.maths.tasks import Scores
from hydra_jax.report import dots, figures
from hydra_jax.report.tables import Table, fitting

logger = logging.getLogger(__name__)

# What each figure shows, in the order of the page: title and caption. What lines and bands mean stands in the figure.
CAPTIONS = {
  'cost': ('Quality against cost', 'The further to the left a method is, the cheaper it is.'),
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
    'The further unusual inputs are to the right of test inputs, the better the disagreement of heads tells them.',
  ),
  'agreement': (
    'Model uncertainty of students beside that of the ensemble',
    'Each point is an input. On the diagonal student and ensemble are equally uncertain.',
  ),
  'heads_against_members': (
    'Heads against members',
    'How far the prediction of each head is from that of each member, and how far members are from one another. A '
    'bright diagonal: each head follows its member.',
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
SCALES = ('heads_against_members', 'plane')  # figures whose colours are those of a scale
MOST_INPUTS, MOST_VALUES = 8, 6
# Bytes of all figures of a page, as they stand in it. The rest takes less than a megabyte.
BUDGET = 5 * 2**19
LETTERS_ACROSS = 150  # of a table, at most


@dataclass(frozen=True)
class ShownFigure:
  """A figure on the page.

  Attributes:
    title: Above it.
    caption: Below it.
    width: In pixels of the page.
    height: Likewise.
    source: A `data:` address.
    is_scale: Whether its colours are those of a scale, which must not be inverted on a dark page.
  """

  title: str
  caption: str
  width: int
  height: int
  source: str
  is_scale: bool = False


@dataclass(frozen=True)
class ShownInput:
  """A test input on the page.

  Attributes:
    number: In the test set.
    label: Class or targets.
    said: What methods say of it, a line each.
    png: Of an image, in base64.
    values: Of a row of numbers.
  """

  number: int
  label: str
  said: Sequence[str]
  png: str = ''
  values: str = ''


@dataclass(frozen=True)
class Inputs:
  """Test inputs that are shown together: a heading, what was chosen, and the inputs."""

  heading: str
  note: str
  shown: Sequence[ShownInput]


@dataclass(frozen=True, kw_only=True)
class Part:
  """What is said of one run of several."""

  title: str
  verdict: Sequence[str]
  scores: Sequence[dots.Panel]
  figures: Sequence[ShownFigure]


@dataclass(frozen=True, kw_only=True)
class Config:
  """Values of a config that are not the default: key, value, default. `title` is '' where there is one config."""

  title: str
  changes: Sequence[tuple[str, str, str]]


@dataclass(frozen=True, kw_only=True)
class Page:
  """What stands on the page of a run or of a table, from top to bottom.

  Attributes:
    title, about: Of the whole.
    verdict: In plain words; `heading` stands above it.
    tables: The comparison, and tables that go with it.
    notes: Warnings.
    scores: With error bars.
    figures: Of all.
    inputs: Test inputs.
    parts: One for each run, where there are several.
    code: How to go on, and a heading.
    configs: Of all runs.
    versions: Of what has made the results.
  """

  title: str
  about: str
  heading: str
  verdict: Sequence[str]
  tables: Sequence[Table]
  notes: Sequence[str] = ()
  scores: Sequence[dots.Panel] = ()
  figures: Sequence[ShownFigure] = ()
  inputs: Sequence[Inputs] = ()
  parts: Sequence[Part] = ()
  code: tuple[str, str]
  configs: Sequence[Config]
  versions: Mapping[str, Any]


@functools.cache
def _template():
  import jinja2
  import markupsafe

  text = resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  as_code = lambda said: re.sub('`([^`]+)`', r'<code>\1</code>', str(markupsafe.escape(said)))
  environment.filters['code'] = lambda said: markupsafe.Markup(as_code(said))
  return environment.from_string(text)


def html(page: Page) -> str:
  """The page as text."""
  tables = [part for table in page.tables for part in in_parts(table)]
  return _template().render(page=replace(page, tables=tables), width=dots.WIDTH, names=dots.NAMES)


def in_parts(table: Table) -> list[Table]:
  """A table that is too wide for a sheet of paper as several, each with the first column."""
  pick = lambda line, columns: [line[c] for c in columns]
  parts = fitting(table, LETTERS_ACROSS)[2]
  return [
    replace(
      table,
      headings=pick(table.headings, columns),
      body=[(name, pick(cells, columns)) for name, cells in table.body],
      title=table.title if i == 0 else '',
      note=table.note if i == len(parts) - 1 else '',
      groups=(),
    )
    for i, columns in enumerate(parts)
  ]


def figures_in(
  folder: Path, prefixes: Sequence[str] = ('',), more: Mapping[str, tuple[str, str]] | None = None
) -> list[list[ShownFigure]]:
  """The figures of a folder that have a caption, as SVG where there is one: a list for each prefix of their names.

  Where all take more than `BUDGET`, pictures have fewer colours. Where that is not enough, the last are left out, and a
  line of the log says so.

  Args:
    folder: With files `<prefix><name>.svg` and `<prefix><name>.png`.
    prefixes: Of the files.
    more: Titles and captions of further figures by name, which come first.
  """
  captions = {**(more or {}), **CAPTIONS}
  all_of = lambda small: [[*_shown(folder, prefix, captions, small)] for prefix in prefixes]
  size_of = lambda groups: sum(len(figure.source) for group in groups for figure in group)
  found = all_of(small=False)
  if size_of(found) > BUDGET:
    found = all_of(small=True)
  left_out = 0
  while size_of(found) > BUDGET:
    max(found, key=len).pop()
    left_out += 1
  if left_out:
    logger.warning(f'figures that are not on the page, as it would take too many megabytes: {left_out}; see {folder}')
  return found


def _shown(folder: Path, prefix: str, captions: Mapping[str, tuple[str, str]], small: bool) -> Iterator[ShownFigure]:
  for name, said in captions.items():
    vector, pixels = (folder / f'{prefix}{name}.{kind}' for kind in ('svg', 'png'))
    made = [_vector(*said, vector.read_bytes())] if vector.is_file() else []
    if pixels.is_file() and (small or not made):
      made.append(_pixels(*said, _fewer_colours(pixels.read_bytes()) if small else pixels.read_bytes()))
    if made:
      yield replace(min(made, key=lambda figure: len(figure.source)), is_scale=name in SCALES)


def _fewer_colours(png: bytes) -> bytes:
  file = io.BytesIO()
  with Image.open(io.BytesIO(png)) as image:
    few = image.convert('RGB').quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, 'png')
  return file.getvalue()


def _vector(title: str, caption: str, svg: bytes) -> ShownFigure:
  """An SVG of matplotlib, which has its size in points."""
  width, height = (
    round(96 / 72 * float(re.search(rf'{side}="([\d.]+)pt"'.encode(), svg)[1]))  # type: ignore[index]
    for side in ('width', 'height')
  )
  return ShownFigure(title, caption, width, height, _address(svg, 'svg+xml'))


def _pixels(title: str, caption: str, png: bytes) -> ShownFigure:
  with Image.open(io.BytesIO(png)) as image:
    width, height = (round(96 / figures.DPI * size) for size in image.size)
  return ShownFigure(title, caption, width, height, _address(png, 'png'))


def _address(content: bytes, kind: str) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def inputs_of(test: Split, student: str, ours: Scores, theirs: Scores, classes: Sequence[str] = ()) -> list[Inputs]:
  """Test inputs that are worth a look: where two methods differ, and of which a student is least and most certain.

  Args:
    test: The test set.
    student: Name of the student.
    ours: Scores of each example of it, of the student.
    theirs: Of the ensemble.
    classes: Their names; empty if they are numbered, and in regression.
  """
  gap = np.abs(ours['nll'] - theirs['nll'])
  gap, total = (np.where(np.isfinite(v), v, 0.0) for v in (gap, ours['uncertainty_total']))
  differ, order = np.argsort(-gap, kind='stable')[:MOST_INPUTS], np.argsort(total, kind='stable')
  of = lambda scores, name, n: [digits(float(value), n) for value in scores[name]]
  both = {
    name: [f'{nll} ({model})' for nll, model in zip(of(scores, 'nll', 3), of(scores, 'uncertainty_epistemic', 2))]
    for name, scores in (('ensemble', _taken(theirs, differ)), (student, _taken(ours, differ)))
  }
  lines = [[f'{name} {said[i]}' for name, said in both.items()] for i in range(len(differ))]
  note = 'Test inputs with the largest difference of the negative log likelihood of the label, in nats.'
  note += ' Model uncertainty in brackets.'
  found = [Inputs(f'Where {student} and the ensemble differ most', note, _listed(test, differ, lines, classes))]
  for word, chosen in (('least', order[::-1][:MOST_INPUTS]), ('most', order[:MOST_INPUTS])):
    shown = _taken(ours, chosen)
    lines = [
      [f'total {whole}', f'model {model}', *([right] if right else [])]
      for whole, model, right in zip(
        of(shown, 'uncertainty_total', 2), of(shown, 'uncertainty_epistemic', 2), _right(shown, len(chosen))
      )
    ]
    note = f'Test inputs of the {"greatest" if word == "least" else "least"} total uncertainty.'
    found.append(Inputs(f'Of what {student} is {word} certain', note, _listed(test, chosen, lines, classes)))
  return found


def _taken(scores: Scores, chosen: np.ndarray) -> Scores:
  return {name: np.asarray(scores[name])[chosen] for name in scores}


def _right(scores: Scores, count: int) -> list[str]:
  """Whether each class is right; '' in regression."""
  return ['right' if each else 'wrong' for each in scores['correct']] if 'correct' in scores else [''] * count


def _listed(
  test: Split, chosen: np.ndarray, lines: Sequence[Sequence[str]], classes: Sequence[str]
) -> list[ShownInput]:
  x, y = np.asarray(test.x), np.asarray(test.y)
  found = []
  for i, said in zip(chosen, lines, strict=True):
    label = str(classes[y[i]]) if len(classes) else _values(y[i])
    picture = _png(x[i], x[chosen]) if x.ndim == 4 else ''
    found.append(ShownInput(int(i), label, said, picture, '' if picture else _values(x[i])))
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
