"""Parallel coordinates: how scores go with the values of settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import math

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from hydra_jax.formats import number
from hydra_jax.report.figures import panels

WIDTH, HEIGHT = 1.25, 2.8  # inches, of one axis and of one panel
# The part of the colour map that shows on white.
PALEST = 0.85


@dataclass(frozen=True)
class Scale:
  """A vertical axis.

  Attributes:
    name: Shown below it.
    values: Of each line: texts, which are placed at equal distances in the order in which they come, or numbers.
    log: Whether numbers are placed by their logarithms.
  """

  name: str
  values: Sequence[str] | Sequence[float]
  log: bool = False

  def heights(self) -> list[float]:
    """Where each line meets the axis, from 0 to 1."""
    order: list = list(dict.fromkeys(self.values))
    if isinstance(self.values[0], str):
      return [order.index(value) / (len(order) - 1) if len(order) > 1 else 0.5 for value in self.values]
    at = [math.log(float(value)) if self.log else float(value) for value in self.values]
    low, high = min(at), max(at)
    return [(value - low) / (high - low) if high > low else 0.5 for value in at]

  def marks(self) -> dict[float, str]:
    """The texts that stand at the axis, by height: all values, or the least and the greatest number."""
    if isinstance(self.values[0], str):
      return {height: str(value) for height, value in zip(self.heights(), self.values, strict=True)}
    ends = sorted({float(min(self.values)), float(max(self.values))})
    return {0.5: number(ends[0])} if len(ends) == 1 else {0.0: number(ends[0]), 1.0: number(ends[1])}


def draw(scales: Mapping[str, Sequence[Scale]], colour_by: Sequence[str]) -> Figure:
  """A panel for each title, with a line for each combination of values.

  Args:
    scales: By title.
    colour_by: Names of axes. The first that a panel has gives the colours: the least value is the darkest.
  """
  widest = max(len(row) for row in scales.values())
  figure, axes = panels(1, len(scales), size=(WIDTH * widest + 0.8, HEIGHT))
  for ax, (title, row) in zip(axes[:, 0], scales.items(), strict=True):
    names = [scale.name for scale in row]
    by = row[names.index(next(name for name in colour_by if name in names))]
    _panel(ax, row, by)
    ax.set_title(f'{title}: the darker, the lower the {by.name}', loc='left')
  return figure


def _panel(ax: Axes, row: Sequence[Scale], by: Scale) -> None:
  ranks = np.unique(np.asarray(by.values, float), return_inverse=True)[1]  # equal values have the same colour
  lines = np.transpose([scale.heights() for scale in row])
  for i in np.argsort(-ranks):  # the best is drawn last
    colour = colormaps['viridis'](PALEST * ranks[i] / max(ranks.max(), 1))
    ax.plot(range(len(row)), lines[i], color=colour, marker='o', markersize=3, linewidth=1.4, clip_on=False)
  for x, scale in enumerate(row):
    ax.axvline(x, color='0.75', linewidth=0.8, zorder=0)
    for height, value in scale.marks().items():
      box = dict(facecolor='white', edgecolor='none', alpha=0.75, pad=0.8)
      ax.annotate(value, (x, height), (4, 5), textcoords='offset points', fontsize=7, bbox=box)
  ax.set_xticks(range(len(row)), [scale.name.replace(' ', '\n').replace('_', '_\u200b') for scale in row], fontsize=8)
  ax.set_yticks([])
  ax.set_xlim(-0.1, len(row) - 0.4)
  ax.set_ylim(-0.06, 1.16)
  for spine in ax.spines.values():
    spine.set_visible(False)
