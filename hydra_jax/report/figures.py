"""Figures of a run, as PNG and SVG, from the scores of every example and the rows.

They are made without pyplot, which would choose a backend for the whole process: that of a notebook stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import itertools
from pathlib import Path
import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter
import numpy as np

from hydra_jax import store
from hydra_jax.data import Data, Evaluation, Split, outside_of
from hydra_jax.evaluation import diversity
from hydra_jax.formats import digits
from hydra_jax.maths import metrics, uncertainty
from hydra_jax.maths.statistics import Estimate, estimate
from hydra_jax.maths.tasks import TASKS, Scores
from hydra_jax.report.tables import Column

AllScores = dict[str, dict[str, Scores]]  # method, evaluation set, score -> [N]
Estimates = Mapping[tuple[str, str, str], Estimate]  # (split, method, metric) -> mean and standard error

EPISTEMIC = 'uncertainty_epistemic'
COLOURS = ('#222222', '#999999', '#e08214', '#1f78b4', '#33a02c', '#b2182b', '#8073ac', '#c51b7d', '#01665e', '#bf812d')
# Dots are for what figures compare with, such as a diagonal. Markers tell methods apart where colours are printed grey:
# one less than there are colours, so that both together are others for the first 90 methods.
DASHES, MARKERS = ('-', '--', '-.'), 'os^DvPX<>'
OUTSIDE = ('#e08214', '#8073ac', '#01665e', '#b2182b')  # of sets that are out of domain
REFERENCE: dict[str, Any] = {'ls': ':', 'color': '#666666', 'lw': 1}
SIZE = 3.0  # inches, of one panel
LEGEND_LINE, LETTER = 0.5, 0.085  # inches, of a line in a legend, and of a letter beside it
PAD = 0.07  # inches, around panels
LEGEND = 1.8  # inches, of the names of the methods beside it
NOTE_SIZE, NOTE_LINE, NOTE_LETTERS = 7, 0.13, 18  # points; inches, of one line; letters an inch, of the note below
STYLE: dict[Any, Any] = {
  'font.sans-serif': ['DejaVu Sans', 'Verdana', 'sans-serif'],  # which readers of an SVG may lack, have, and have
  'svg.fonttype': 'none',  # text stays text: it is a fifth of the size, and can be searched and edited
  'svg.hashsalt': 'hydra_jax',  # the same figure has the same bytes
  'axes.spines.top': False,
  'axes.spines.right': False,
  'font.size': 9,
  'axes.titlesize': 10,
}
NO_METADATA = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))  # which have the time and addresses of the network
DPI = 130
SHOWN_AT_MOST = 1000
PANELS_IN_A_ROW = 5


@dataclass(frozen=True)
class About:
  """What the line below each figure says.

  Attributes:
    data: Name of the data set.
    seed: Of the run.
    replicas: How many there are.
  """

  data: str
  seed: int
  replicas: int

  def of_one(self, scores: AllScores, *sets: str) -> str:
    """Of a figure of the first replica: how many inputs of each set it is of.

    Example:
      >>> About('digits', 0, 3).of_one({'kd': {'test': {'nll': np.zeros(1500)}}}, 'test')
      'digits, seed 0, replica 1 of 3. Inputs: 1,500 of test.'
    """
    some = {name: next((found[name] for found in scores.values() if name in found), {}) for name in sets}
    counts = [f'{len(next(iter(found.values()))):,} of {name}' for name, found in some.items() if found]
    return f'{self._run()}, replica 1 of {self.replicas}. Inputs: {", ".join(counts)}.'

  def of_all(self, what: str) -> str:
    """Of a figure of all replicas; `what` shows the standard error."""
    if self.replicas == 1:
      return f'{self._run()}, one replica: there are no error bars.'
    return f'{self._run()}. Mean of {self.replicas} replicas; {what}: ± standard error.'

  def _run(self) -> str:
    return f'{self.data}, seed {self.seed}'


@dataclass(frozen=True, kw_only=True)
class Drawn:
  """What the figures of a run are drawn from.

  Attributes:
    about: Said below each figure.
    data: Of one replica.
    scores: Of every method on these data.
    matrices: How far heads are from members, `{method: {set: [H, M]}}`; of `ensemble`, members from members.
    rows: Results of all replicas.
    values: Mean and standard error of all metrics and latencies over replicas.
    bins: Of the reliability diagram.
    test_to_train: See `statistics`.
    lines: Of `metrics.jsonl`.
  """

  about: About
  data: Data
  scores: AllScores
  matrices: Mapping[str, Mapping[str, np.ndarray]]
  rows: Sequence[dict]
  values: Estimates
  bins: int
  test_to_train: float = 0.0
  lines: Sequence[Mapping[str, Any]] = ()


def draw_all(folder: Path, drawn: Drawn) -> None:
  """Draws every figure that a run allows into a folder."""
  data, about, task = drawn.data, drawn.about, TASKS[drawn.data.task]
  figures: dict[str, Callable[[], Figure]] = {}

  def of_one(name: str, draw: Callable[[], Figure], said: str, scores: AllScores, *sets: str) -> None:
    figures[name] = lambda: noted(draw(), f'{about.of_one(scores, *sets)} {said}')

  def of_all(name: str, draw: Callable[[], Figure], what: str, said: str) -> None:
    figures[name] = lambda: noted(draw(), f'{about.of_all(what)} {said}')

  kinds = {kind: [e for e in data.evaluations.values() if e.kind == kind] for kind in ('shift', 'plane')}
  test = _covering(drawn.scores, ['test'])
  if data.task == 'classification':
    said = 'Dotted: as often right as sure. Bars: share of the inputs.'
    of_one('reliability', lambda: reliability(test, drawn.bins), said, test, 'test')
  else:
    of_one('calibration', lambda: calibration(test), 'Dotted: what was promised.', test, 'test')
  if matrices := drawn.matrices:
    said = 'All panels have one logarithmic scale. Grey: a member beside itself, or no number.'
    sets = list(next(iter(matrices.values())))
    of_one('heads_against_members', lambda: divergences(matrices), said, drawn.scores, *sets)
  if outside := outside_of(data):
    both, unit = _uncertain(_covering(drawn.scores, ['test'])), task.unit
    if both:
      said = 'AUROC: of the set against the test set.'
      of_one('model_uncertainty', lambda: histograms(both, outside, unit), said, both, 'test', *outside)
    if 'ensemble' in both and len(both) > 1:
      said = f'Dotted: as uncertain as the ensemble. At most {SHOWN_AT_MOST:,} inputs of a set are drawn.'
      of_one('agreement', lambda: agreement(both, outside, unit), said, both, 'test', *outside)
    if data.task == 'classification':
      covered = _covering(drawn.scores, ['test', outside[0]])
      of_one('rejection', lambda: rejection(covered, outside[0]), '', covered, 'test', outside[0])
  if kinds['shift']:
    methods = _covering(drawn.scores, ['test', *(e.name for e in kinds['shift'])])
    rows = [row for row in drawn.rows if row['method'] in methods]
    curves = lambda: shift_curves(rows, kinds['shift'], task.under_shift, drawn.test_to_train, task.unit)
    of_all('shifts', curves, 'bands', 'At 0: the test set.')
    if _families(kinds['shift'])[1]:
      corrupted = lambda: corruption_curves(rows, kinds['shift'], task.under_shift[0], drawn.test_to_train)
      of_all('corruptions', corrupted, 'bands', 'At 0: the test set.')
  if qualities := _qualities(drawn.values, outside[:1]):
    said = 'Dotted: no method is better at no higher cost.'
    of_all('cost', lambda: cost_quality(drawn.values, qualities), 'bars', said)
  if kinds['plane']:
    on_plane = _covering(drawn.scores, ['plane'])
    said = 'White: training inputs.'
    of_one('plane', lambda: plane_maps(on_plane, data, task.unit), said, on_plane, 'plane')
  if lines := drawn.lines:
    losses = lambda: loss_curves([line for line in lines if 'loss' in line])
    said = f'{about.data}, seed {about.seed}, {about.replicas} replicas, one over the other. '
    figures['losses'] = lambda: noted(losses(), said + 'Line: median of the heads; band: range of all heads.')
    if scored := [line for line in lines if 'validation' in line]:
      figures['validation'] = lambda: noted(validation_curves(scored, task.headline), said)
  save(folder, figures)


def save(folder: Path, drawings: Mapping[str, Callable[[], Figure]]) -> None:
  """Draws figures into a folder, each as PNG and as SVG, by name."""
  folder.mkdir(exist_ok=True)
  with matplotlib.rc_context(STYLE):
    for name, draw in drawings.items():
      figure = draw()
      with store.replacing(folder / f'{name}.png') as new:
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(new)  # `savefig` would draw each figure twice
      figure.set_layout_engine('none')  # all is where it was laid out for the other file
      with store.replacing(folder / f'{name}.svg') as new:
        FigureCanvasSVG(figure).print_svg(new, metadata=NO_METADATA)


def noted(figure: Figure, text: str) -> Figure:
  """Adds a text below the panels, broken into lines. The figure grows by its height."""
  lines = textwrap.wrap(text, max(30, int(NOTE_LETTERS * figure.get_figwidth())))
  figure.set_figheight(figure.get_figheight() + NOTE_LINE * len(lines))
  figure.supxlabel('\n'.join(lines), x=0.01, ha='left', fontsize=NOTE_SIZE, color='#555555', linespacing=1.3)
  return figure


def panels(
  columns: int, rows: int = 1, size: tuple[float, float] = (SIZE, SIZE), **kwargs
) -> tuple[Figure, np.ndarray]:
  """A figure and its axes `[rows, columns]`, each of this width and height in inches; the rest goes to `subplots`."""
  layout = ConstrainedLayoutEngine(w_pad=PAD, h_pad=PAD)
  figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout)
  return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _grid(count: int, **kwargs):
  """A number of panels in rows of at most five, as a flat array of axes; and those that begin a row."""
  columns = min(count, PANELS_IN_A_ROW)
  figure, axes = panels(columns, -(-count // columns), **kwargs)
  for ax in axes.ravel()[count:]:
    ax.set_visible(False)
  for ax in axes.ravel()[max(0, count - columns) : count]:
    ax.tick_params(labelbottom=True)  # where the panel below it is hidden
  return figure, axes.ravel()[:count], axes[:, 0]


def legend_beside(figure: Figure, ax: Axes | None = None) -> None:
  """Adds a legend of one of the axes, or of all, to the right of the panels. The figure grows by its width."""
  of_one = ax.get_legend_handles_labels() if ax else ()
  legend = figure.legend(*of_one, frameon=False, loc='outside right upper')
  width = max((len(text.get_text()) for text in legend.get_texts()), default=0)
  figure.set_figwidth(figure.get_figwidth() + LEGEND_LINE + LETTER * width)


def _colours(names) -> dict[str, str]:
  return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def line_styles(names) -> dict[str, dict[str, Any]]:
  """How lines are drawn: by colour and marker, and where there are more of them than colours, by dashes."""
  return {
    name: {
      'color': colour,
      'ls': DASHES[i // len(COLOURS) % len(DASHES)],
      'marker': MARKERS[i % len(MARKERS)],
      'ms': 3.5,
    }
    for i, (name, colour) in enumerate(_colours(names).items())
  }


def _marked(names) -> dict[str, dict[str, Any]]:
  """How lines of many points are drawn: with a few markers, each line's at another place."""
  styles, every = line_styles(names), 0.2
  return {
    name: {**line, 'markevery': (every * i / len(styles), every)} for i, (name, line) in enumerate(styles.items())
  }


def reliability(scores: AllScores, bins: int) -> Figure:
  """Accuracy of bins against their confidence on the test set, with 95% intervals; bars show where examples are."""
  figure, axes, first = _grid(len(scores), sharey=True)
  for ax, (name, colour) in zip(axes, _colours(scores).items()):
    test = scores[name]['test']
    sums = metrics.calibration_bins(test['confidence'], test['correct'], bins)
    confidence, correct, count = sums[sums[:, 2] > 0].T
    edges = np.arange(bins) / bins
    ax.bar(edges, sums[:, 2] / sums[:, 2].sum(), 1 / bins, align='edge', color='#dddddd', label='share of examples')
    ax.plot([0, 1], [0, 1], **REFERENCE)
    ends = np.abs(wilson(correct, count) - correct / count)
    label = 'accuracy, 95% interval'
    ax.errorbar(confidence / count, correct / count, ends, fmt='o', ms=3, lw=1, color=colour, label=label)
    gap = metrics.calibration_error(sums)
    ax.set(title=f'{name}, ECE {digits(gap, 3)}', xlabel='confidence', xlim=(0, 1))
    ax.set_yticks(np.linspace(0, 1, 6))
  for ax in first:
    ax.set_ylabel('accuracy')
  axes[0].legend(frameon=False, loc='upper left', fontsize=NOTE_SIZE)
  axes[0].set_ylim(0, 1.25)  # room for the legend
  return figure


def wilson(correct: np.ndarray, count: np.ndarray, z: float = 1.96) -> np.ndarray:
  """Wilson's interval for a share, low and high `[2, N]`; z = 1.96 is that of 95%.

  Example:
    >>> wilson(np.array([9]), np.array([10])).round(2).ravel()
    array([0.6 , 0.98])
  """
  middle = (correct + z**2 / 2) / (count + z**2)
  half = z / (count + z**2) * np.sqrt(correct * (count - correct) / count + z**2 / 4)
  return np.stack([middle - half, middle + half])


def calibration(scores: AllScores) -> Figure:
  """Share of test targets below each quantile of the predictive mixture; of several targets, of all together."""
  figure, [[ax]] = panels(1, size=(SIZE + LEGEND, SIZE))
  levels = np.linspace(0, 1, 101)
  for name, line in _marked(scores).items():
    test = scores[name]['test']
    each = [values for score, values in test.items() if score.startswith('pit_')]
    pit = np.sort(np.concatenate(each or [test['pit']]))
    ax.plot(levels, np.searchsorted(pit, levels, side='right') / len(pit), **line, label=name, lw=1.3)
  ax.plot([0, 1], [0, 1], **REFERENCE)
  ax.set(title='calibration', xlabel='quantile of the prediction', ylabel='share of targets below it')
  legend_beside(figure)
  return figure


def _covering(scores: AllScores, sets: Sequence[str]) -> AllScores:
  """Methods with scores on all of these sets; an ensemble given by its predictions may lack some."""
  return {name: found for name, found in scores.items() if all(where in found for where in sets)}


def _uncertain(scores: AllScores) -> AllScores:
  """Methods that have model uncertainty at all, in the unit of the others, which can be drawn."""
  positive = lambda values: bool(np.any(np.isfinite(values) & (values > 0)))
  drawn = lambda found: positive(found[EPISTEMIC]) and uncertainty.has_size(found)
  return {name: found for name, found in scores.items() if drawn(found['test'])}


def _styles(outside: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Colour, line and marker of each evaluation set, the test set first."""
  colours, dashes = itertools.cycle(OUTSIDE), itertools.cycle(('-', '--', '-.', ':'))
  of = {'test': {'color': '#1f78b4', 'ls': '-', 'marker': 'o'}}
  return of | {
    where: {'color': next(colours), 'ls': next(dashes), 'marker': MARKERS[1 + i % (len(MARKERS) - 1)]}
    for i, where in enumerate(outside)
  }


def _least_shown(values: Sequence[np.ndarray], top: float) -> float:
  """Where a logarithmic axis begins: at the least values but for a few, and at a millionth of the greatest at least."""
  positive = np.concatenate([each[np.isfinite(each) & (each > 0)] for each in values])
  low = np.quantile(positive, 0.002) if len(positive) else 0.0
  return max(0.5 * float(low), 1e-6 * top)


def histograms(scores: AllScores, outside: Sequence[str], unit: str) -> Figure:
  """Model uncertainty of test inputs, filled, and of inputs of each set that is out of domain, a panel for a method.

  An ensemble that is given by its predictions may lack sets.
  """
  names = list(scores)
  figure, axes, first = _grid(len(names), sharex=True, sharey=True)
  sets = {name: [where for where in ('test', *outside) if where in scores[name]] for name in names}
  of = lambda name, where: np.asarray(scores[name][where][EPISTEMIC], np.float64)
  finite = lambda values: values[np.isfinite(values)]
  every = [of(name, where) for name in names for where in sets[name]]
  top = max(np.max(finite(values), initial=0) for values in every)
  edges = np.geomspace(min(_least_shown(every, top), 0.1 * top), top, 41)
  for ax, name in zip(axes, names):
    test = of(name, 'test')
    for where, style in _styles(outside).items():
      if where not in sets[name]:
        continue
      values = of(name, where)
      drawn = np.clip(finite(values), *edges[[0, -1]])
      share, label = np.histogram(drawn, edges)[0] / len(values), f'{where}, mean {digits(values.mean(), 2)}'
      if where != 'test':
        label += f', AUROC {digits(metrics.detection(test, values)["auroc"], 3)}'
      look = {'alpha': 0.35, 'lw': 0} if where == 'test' else {'fill': False, 'lw': 1.4, 'ls': style['ls']}
      ax.stairs(share, edges, fill=look.pop('fill', True), color=style['color'], label=label, **look)
    ax.set(title=name, xlabel=f'model uncertainty ({unit})', xscale='log')
    ax.legend(frameon=False, loc='upper left', fontsize=NOTE_SIZE)
  for ax in first:
    ax.set_ylabel('share of inputs')
  axes[0].set_ylim(0, (1.2 + 0.08 * len(outside)) * axes[0].get_ylim()[1])  # room for the legends
  return figure


def agreement(scores: AllScores, outside: Sequence[str], unit: str) -> Figure:
  """Model uncertainty against the ensemble's, input by input, one panel for each student."""
  students = [name for name in scores if name != 'ensemble']
  has = lambda name, where: where in scores[name] and where in scores['ensemble']
  figure, axes, first = _grid(len(students))
  pick = lambda values: values[:: -(-len(values) // SHOWN_AT_MOST)]
  for ax, name in zip(axes, students):
    every = []
    for where, style in _styles(outside).items():
      if not has(name, where):
        continue
      ours, theirs = scores[name][where][EPISTEMIC], scores['ensemble'][where][EPISTEMIC]
      label = f'{where}, rank corr. {digits(diversity.rank_correlation(ours, theirs), 2)}'
      look = {'marker': style['marker'], 'color': style['color'], 'label': label}
      ax.plot(pick(theirs), pick(ours), ls='', ms=2.5, mew=0, alpha=0.5, rasterized=True, **look)
      every += [ours, theirs]
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    limits = (min(_least_shown(every, top), 0.1 * top), 1.5 * top)
    ax.plot(limits, limits, **REFERENCE)
    ax.set(title=name, xscale='log', yscale='log', xlim=limits, ylim=limits)
    ax.set_xlabel(f"ensemble's model unc. ({unit})")
    ax.legend(frameon=False, markerscale=2.5, loc='upper left', fontsize=NOTE_SIZE, handletextpad=0)
  for ax in first:
    ax.set_ylabel(f"student's model unc. ({unit})")
  return figure


def rejection(scores: AllScores, outside: str) -> Figure:
  """Accuracy against the share of inputs that is kept, the most certain ones.

  The upper panels rank every method by total uncertainty, the lower ones by model uncertainty, which single networks do
  not have.
  """
  kinds = uncertainty.RANKINGS if _uncertain(scores) else uncertainty.RANKINGS[:1]
  figure, axes = panels(2, len(kinds), sharey='col')
  kept = np.linspace(0.02, 1, 99)
  for row, by in zip(axes, kinds):
    for ax, (where, labelled) in zip(row, {'test': True, outside: False}.items()):
      for name, line in _marked(scores).items():
        curve = diversity.rejection(scores[name], where, labelled, 'correct', by)
        if curve is not None:
          values = curve[np.maximum(np.ceil(kept * len(curve)).astype(int) - 1, 0)]
          ax.plot(kept, values, **line, lw=1.3, label=name)
      title = where if labelled else f'test and {where},\nwhich counts as wrong'
      ax.set(title=title if by == 'uncertainty_total' else 'methods that have\nmodel uncertainty')
      ax.set(xlabel=f'share kept, by {uncertainty.WORDS[by]} uncertainty', xlim=(0, 1))
    row[0].set_ylabel('accuracy')
  legend_beside(figure, axes[0][0])
  return figure


def divergences(matrices: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
  """Every head against every member, one row of panels a student, one column an evaluation set.

  The row of the ensemble, members against members, says how far it is from a member to another.
  """
  sets = list(next(iter(matrices.values())))
  figure, axes = panels(len(sets), len(matrices), (0.85 * SIZE, 0.9 * SIZE))
  every = np.concatenate([found[where].ravel() for found in matrices.values() for where in sets])
  shown = every[np.isfinite(every) & (every > 0)]
  top = float(shown.max()) if len(shown) else 1.0
  scale = LogNorm(max(float(shown.min()) if len(shown) else 0.1, 1e-4 * top), max(top, 1e-30), clip=True)
  colours = matplotlib.colormaps['viridis_r'].with_extremes(bad='#d9d9d9')
  for line, (name, found) in zip(axes, matrices.items()):
    for ax, where in zip(line, sets):
      values = np.where(np.isfinite(found[where]) & (found[where] > 0), found[where], np.nan)
      image = ax.imshow(values, cmap=colours, norm=scale)
      if name == 'ensemble':
        ax.set(title=f'members among\nthemselves, {where}', xlabel='member', ylabel='member')
      else:
        own = diversity.own_head(found[where])
        ax.set(title=f'{name}, {where}\nown head closest: {own:.0%}', xlabel='member', ylabel='head')
      ax.spines[:].set_visible(False)
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
  figure.colorbar(image, ax=axes, shrink=0.8 / len(matrices) ** 0.5, label='mean KL(member ‖ head), nats')
  return figure


Curve = dict[float, list[str]]  # strength -> evaluation sets whose mean is shown


def _curves(shifts: Sequence[Evaluation]) -> dict[str, Curve]:
  """The sets of each kind of shift by their strength, from 0, the test set, on."""
  curves: dict[str, Curve] = {}
  for e in sorted(shifts, key=lambda e: e.strength):
    curves.setdefault(e.name.partition(':')[0], {0.0: ['test']})[e.strength] = [e.name]
  return curves


def _families(shifts: Sequence[Evaluation]) -> tuple[dict[str, Curve], dict[str, Curve]]:
  """Curves, one for each family, its mean where all of its kinds have a strength; and those behind the means."""
  curves = _curves(shifts)
  families: dict[str, list[str]] = {}
  for kind, family in {e.name.partition(':')[0]: e.family for e in shifts}.items():
    families.setdefault(family or kind, []).append(kind)
  means = {}
  for family, kinds in families.items():
    shared = [s for s in curves[kinds[0]] if all(s in curves[kind] for kind in kinds)]
    label = kinds[0] if len(kinds) == 1 else f'{family}, mean of {len(kinds)}'
    means[label] = {s: [name for kind in kinds for name in curves[kind][s]] for s in shared}
  return means, {kind: curves[kind] for kinds in families.values() if len(kinds) > 1 for kind in kinds}


def _draw_curve(ax: Axes, rows: Sequence[dict], curve: Curve, measure: str, test_to_train: float) -> list[str]:
  """Draws one metric of each method, with bands; returns the methods without model uncertainty, which are left out.

  Methods that do not have the metric are left out too.
  """
  values: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    if row['metric'] == measure:
      values.setdefault((row['method'], row['split']), []).append(row['value'])
  without = []
  for method, line in line_styles(dict.fromkeys(row['method'] for row in rows)).items():
    if any((method, name) not in values for names in curve.values() for name in names):
      continue
    means_of = [np.mean([values[method, name] for name in names], axis=0) for names in curve.values()]
    if measure == EPISTEMIC and not np.any(means_of):
      without.append(method)
      continue
    points = [estimate(each, test_to_train) for each in means_of]
    means, errors = (np.asarray([getattr(point, part) for point in points]) for part in ('mean', 'error'))
    ax.plot(list(curve), means, lw=1.3, **line, label=method)
    if not np.isnan(errors).any():
      ax.fill_between(list(curve), means - errors, means + errors, color=line['color'], alpha=0.2, lw=0)
  return without


def _measure_name(measure: str, unit: str = '') -> str:
  if measure in uncertainty.WORDS:
    return f'{uncertainty.WORDS[measure]} uncertainty' + f'\n({unit})' * bool(unit)
  return {'accuracy': 'accuracy', 'nll': 'NLL (nats)'}.get(measure, measure.upper())


def shift_curves(
  rows: Sequence[dict],
  shifts: Sequence[Evaluation],
  measures: Sequence[str],
  test_to_train: float = 0.0,
  unit: str = '',
) -> Figure:
  """Metrics against the strength of each kind of shift, mean over corruptions; bands: standard error over replicas.

  One row of panels a metric, one column a kind.
  """
  curves, _ = _families(shifts)
  figure, axes = panels(len(curves), len(measures), (1.1 * SIZE, 0.7 * SIZE), sharex='col', sharey='row')
  units = {e.name: e.unit for e in shifts}
  for line, measure in zip(axes, measures):
    for ax, curve in zip(line, curves.values()):
      if without := _draw_curve(ax, rows, curve, measure, test_to_train):
        text = f'0 everywhere: {", ".join(without)}'
        ax.annotate(text, (0.02, 1.0), xycoords='axes fraction', fontsize=NOTE_SIZE, color='#555555')
    line[0].set_ylabel(_measure_name(measure, unit))
  for ax, (kind, curve) in zip(axes[-1], curves.items()):
    strength_unit = next((units[name] for names in curve.values() for name in names if name in units), '')
    ax.set_xlabel(kind + f' ({strength_unit})' * bool(strength_unit))
  for ax, kind in zip(axes[0], curves):
    ax.set_title(kind)
  legend_beside(figure, axes[0][0])
  return figure


def corruption_curves(
  rows: Sequence[dict], shifts: Sequence[Evaluation], measure: str, test_to_train: float = 0.0
) -> Figure:
  """One metric against the severity of each corruption that `shift_curves` shows the mean of."""
  _, curves = _families(shifts)
  figure, axes, first = _grid(len(curves), sharey=True)
  for ax, (kind, curve) in zip(axes, curves.items()):
    _draw_curve(ax, rows, curve, measure, test_to_train)
    ax.set(title=kind, xlabel='severity')
  for ax in first:
    ax.set_ylabel(_measure_name(measure))
  legend_beside(figure, axes[0])
  return figure


COSTS = {'parameters': 'parameters', 'flops': 'FLOPs for an example', 'latency_ms': 'milliseconds for a batch'}


def _qualities(values: Estimates, outside: Sequence[str]) -> list[Column]:
  """What is drawn against cost, where more than one method has a cost: the NLL, and detection by total uncertainty."""
  if sum((split, metric) == ('cost', 'parameters') for split, _, metric in values) < 2:
    return []
  found = [Column('test', 'nll', 'NLL (nats)', 'low')]
  found += [Column(name, 'auroc_uncertainty_total', f'AUROC, total unc.,\n{name}', 'high') for name in outside]
  there = {(split, metric) for split, _, metric in values}
  return [each for each in found if (each.split, each.metric) in there]


def cost_quality(values: Estimates, qualities: Sequence[Column], labels: Mapping[str, str] | None = None) -> Figure:
  """Quality against cost, a row of panels for each metric; dotted lines join the methods that none beats in both.

  Args:
    values: Of all methods; costs have the split `cost`.
    qualities: What is drawn.
    labels: How methods are called, where not by their name.
  """
  methods = dict.fromkeys(method for split, method, metric in values if (split, metric) == ('cost', 'parameters'))
  costs = [cost for cost in COSTS if sum((split, metric) == ('cost', cost) for split, _, metric in values) > 1]
  figure, axes = panels(len(costs), len(qualities), (1.1 * SIZE, SIZE), sharex='col', sharey='row')
  for line, quality in zip(axes, qualities):
    for ax, cost in zip(line, costs):
      points = []
      for method, style in line_styles(methods).items():
        value, price = values.get((quality.split, method, quality.metric)), values.get(('cost', method, cost))
        if value and price:
          look = {'fmt': style['marker'], 'ms': 6, 'color': style['color'], 'label': (labels or {}).get(method, method)}
          ax.errorbar([price.mean], [value.mean], [value.error], capsize=2, **look)
          points.append((price.mean, value.mean if quality.better == 'low' else -value.mean))
      sign = 1 if quality.better == 'low' else -1
      front = unbeaten(points)
      ax.plot([x for x, _ in front], [sign * y for _, y in front], **REFERENCE, zorder=0)
      prices = [price for price, _ in points]
      if max(prices, default=0) > 10 * min(prices, default=0):  # a shorter axis in logarithms would have no labels
        ax.set(xscale='log')
        ax.xaxis.set_minor_formatter(NullFormatter())
      else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if cost != 'latency_ms':  # `m` would be read as another unit
          ax.xaxis.set_major_formatter(EngFormatter(sep=''))
    line[0].set_ylabel(quality.heading)
  for ax, cost in zip(axes[-1], costs):
    ax.set_xlabel(COSTS[cost])
  legend_beside(figure, axes[0][0])
  return figure


def unbeaten(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Of (cost, loss), those that no other beats in both, as steps to draw.

  Example:
    >>> unbeaten([(1, 5), (2, 6), (3, 4)])
    [(1, 5), (3, 5), (3, 4)]
  """
  steps: list[tuple[float, float]] = []
  for cost, loss in sorted(points):
    if not steps or loss < steps[-1][1]:
      corner = [(cost, steps[-1][1])] if steps else []
      steps += [*corner, (cost, loss)]
  return steps


def loss_curves(lines: Sequence[Mapping[str, Any]]) -> Figure:
  """The loss of each phase of training, step by step: the median over heads, and the range of all heads.

  Args:
    lines: Of `metrics.jsonl`, see `experiment.metrics_log`. Groups of replicas are drawn one over the other.
  """
  phases = list(dict.fromkeys(line['phase'] for line in lines))
  figure, axes, first = _grid(len(phases))
  for ax, phase in zip(axes, phases):
    of_phase = [line for line in lines if line['phase'] == phase]
    for replicas in dict.fromkeys(tuple(line['replicas']) for line in of_phase):
      own = [line for line in of_phase if tuple(line['replicas']) == replicas]
      steps, *losses = ([line[key] for line in own] for key in ('step', 'loss_min', 'loss_median', 'loss_max'))
      ax.fill_between(steps, losses[0], losses[2], color=COLOURS[3], alpha=0.25, lw=0)
      ax.plot(steps, losses[1], color=COLOURS[3], lw=1)
    ax.set(title=phase, xlabel='step')
  for ax in first:
    ax.set_ylabel('loss, median of heads and range')
  return figure


def validation_curves(lines: Sequence[Mapping[str, Any]], headings: Mapping[str, Sequence[str]]) -> Figure:
  """Scores on the validation part while networks train, a panel for each score, a line for each network.

  Args:
    lines: Those of `metrics.jsonl` that have `validation`. Groups of replicas are drawn one over the other.
    headings: How scores are called, see `Task.headline`.
  """
  scores = list(dict.fromkeys(name for line in lines for name in line['validation']))
  styles = line_styles(dict.fromkeys(line['phase'] for line in lines))
  figure, axes, _ = _grid(len(scores))
  for ax, score in zip(axes, scores):
    for phase, style in styles.items():
      of_phase = [line for line in lines if line['phase'] == phase and score in line['validation']]
      for replicas in dict.fromkeys(tuple(line['replicas']) for line in of_phase):
        own = [line for line in of_phase if tuple(line['replicas']) == replicas]
        label = phase if replicas == tuple(of_phase[0]['replicas']) else None
        x, y = [line['step'] / line['steps'] for line in own], [line['validation'][score] for line in own]
        ax.plot(x, y, lw=1, label=label, **style)
    ax.set(title=headings[score][0], xlabel='share of the training')
  legend_beside(figure, axes[0])
  return figure


def plane_maps(scores: AllScores, data: Data, unit: str) -> Figure:
  """Total, data and model uncertainty over the plane, one column a method, one colour scale a row.

  Where model uncertainty is no part of the total, its ranks are drawn, which have a scale of their own.
  """
  grid = data.evaluations['plane'].load().x
  side, reach = round(len(grid) ** 0.5), float(grid.max())
  figure, axes = panels(len(scores), 3, (2.4, 2.4), sharex=True, sharey=True)
  for line, (part, word) in zip(axes, uncertainty.WORDS.items()):
    ranked = {name for name, found in scores.items() if part == EPISTEMIC and not uncertainty.has_size(found['plane'])}
    top = max((found['plane'][part].max() for name, found in scores.items() if name not in ranked), default=0) or 1
    for ax, (name, found) in zip(line, scores.items()):
      values = found['plane'][part]
      if name in ranked:
        values = diversity.ranks(values) * (top / len(values))
        ax.set_title('ranks', fontsize=NOTE_SIZE)
      values = values.reshape(side, side)
      image = ax.imshow(values, origin='lower', extent=2 * (-reach, reach), vmin=0, vmax=top, cmap='viridis')
      if isinstance(data.train, Split):
        ax.scatter(*data.train.x.T, s=0.6, color='white', alpha=0.5, linewidths=0, rasterized=True)
      ax.spines[:].set_visible(False)
      if part == 'uncertainty_total':
        ax.set_title(name)
    line[0].set_ylabel(f'{word} uncertainty')
    figure.colorbar(image, ax=line, shrink=0.9, pad=0.01, label=unit)
  return figure
