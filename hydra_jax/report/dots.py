"""Scores with their error bars as small drawings of the page itself, which follow its colours and cost no time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math
import textwrap

from matplotlib.ticker import MaxNLocator

from hydra_jax.formats import digits, number
from hydra_jax.report.figures import Estimates
from hydra_jax.report.tables import Column

# In pixels of the page: of a panel, of the names at its left, of a letter, of a row, and of the lines of a title.
WIDTH, NAMES, LETTER, ROW, LINE = 362, 168, 6.4, 20, 17
TITLE_LETTERS = 46


@dataclass(frozen=True)
class Dot:
  """A value and its error bar, in pixels. `shape` counts the rows, so that shapes tell them apart."""

  x: float
  low: float
  high: float
  y: float
  shape: int
  is_published: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
  """One score of all methods.

  Attributes:
    title: Its lines.
    text: All that is drawn, in words.
    names: Of the rows, with the place of each.
    dots: What is drawn.
    ticks: Of the axis: place, and text.
    reference: Place of the first row's value, or None.
    top, bottom: Ends of the axis.
    height: Of the whole.
  """

  title: Sequence[str]
  text: str
  names: Sequence[tuple[float, str]]
  dots: Sequence[Dot]
  ticks: Sequence[tuple[float, str]]
  reference: float | None
  top: float
  bottom: float
  height: float

  @property
  def has_published(self) -> bool:
    """Whether any number is that of a paper."""
    return any(dot.is_published for dot in self.dots)


def panels(
  values: Estimates,
  qualities: Sequence[Column],
  labels: Mapping[str, str],
  published: Mapping[tuple[str, str, str], tuple[float, float]] | None = None,
) -> list[Panel]:
  """A panel for each metric that any method has, with all methods that have it.

  Args:
    values: Of all methods.
    qualities: What is drawn.
    labels: The methods, from top to bottom, and how they are called.
    published: Value and error, NaN where there is none, by (split, method, metric).
  """
  made = []
  for quality in qualities:
    of = lambda found, q=quality: {m: found[q.split, m, q.metric] for m in labels if (q.split, m, q.metric) in found}
    ours, theirs = of(values), of(published or {})
    if ours:
      made.append(_panel(quality, {m: (e.mean, e.error) for m, e in ours.items()}, theirs, labels))
  return made


def _panel(
  quality: Column,
  ours: Mapping[str, tuple[float, float]],
  theirs: Mapping[str, tuple[float, float]],
  labels: Mapping[str, str],
) -> Panel:
  methods = [method for method in labels if method in ours or method in theirs]
  arrow = {'low': ' ↓', 'high': ' ↑'}.get(quality.better, '')
  title = textwrap.wrap(quality.heading + arrow, TITLE_LETTERS)
  top = LINE * len(title) + 4
  place = {method: top + ROW * (i + 0.5) for i, method in enumerate(methods)}
  ends = [v + sign * _length(e) for each in (ours, theirs) for v, e in each.values() for sign in (-1, 1)]
  finite = [end for end in ends if math.isfinite(end)] or [0.0]
  low, high = min(finite), max(finite)
  if high == low:
    low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
  left, right = NAMES + 12.0, WIDTH - 14.0
  at = lambda value: round(left + (min(max(value, low), high) - low) / (high - low) * (right - left), 1)
  dots = [
    Dot(at(v), at(v - _length(e)), at(v + _length(e)), place[method], methods.index(method), is_published)
    for each, is_published in ((theirs, True), (ours, False))
    for method, (v, e) in each.items()
    if math.isfinite(v)
  ]
  bottom = top + ROW * len(methods)
  ticks = [float(tick) for tick in MaxNLocator(3).tick_values(low, high) if low <= tick <= high]
  said = [f'{labels[method]} {number(*ours[method])}' for method in methods if method in ours]
  said += [f'{labels[method]}, published, {number(*theirs[method])}' for method in methods if method in theirs]
  return Panel(
    title=title,
    text=f'{quality.heading}: {"; ".join(said)}.',
    names=[(place[method], _short(labels[method])) for method in methods],
    dots=dots,
    ticks=list(zip(map(at, ticks), different(ticks), strict=True)),
    reference=at(ours[methods[0]][0]) if methods[0] in ours else None,
    top=top,
    bottom=bottom,
    height=bottom + 24,
  )


def different(values: Sequence[float]) -> list[str]:
  """Numbers with three significant digits, or with the fewest that tell them apart.

  Example:
    >>> different([0.98, 1.0]), different([0.9982, 0.9984])
    (['0.98', '1'], ['0.9982', '0.9984'])
  """
  short = lambda text: text.rstrip('0').rstrip('.') if '.' in text and 'e' not in text else text
  texts = [[short(digits(value, significant)) for value in values] for significant in range(3, 10)]
  return next((row for row in texts if len(set(row)) == len(row)), texts[-1])


def _length(error: float) -> float:
  return error if math.isfinite(error) else 0.0


def _short(name: str) -> str:
  most = int(NAMES / LETTER)
  return name if len(name) <= most else name[: most - 1] + '…'
