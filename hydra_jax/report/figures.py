"""Figures of a run, as PNG, from the scores of every example and the rows.

They are made without pyplot, which would choose a backend for the whole process: that of a notebook stays as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from hydra_jax import store
from hydra_jax.data import Data, Evaluation, Split, outside_of
from hydra_jax.evaluation import diversity
from hydra_jax.formats import digits
from hydra_jax.maths import metrics, uncertainty
from hydra_jax.maths.statistics import estimate
from hydra_jax.maths.tasks import TASKS, Scores

AllScores = dict[str, dict[str, Scores]]  # method, evaluation set, score -> [N]

EPISTEMIC = 'uncertainty_epistemic'
COLOURS = ('#222222', '#999999', '#e08214', '#1f78b4', '#33a02c', '#b2182b', '#8073ac', '#c51b7d', '#01665e', '#bf812d')
DASHES = ('-', '--', ':')
SIZE = 3.0  # inches, of one panel
LEGEND_LINE, LETTER = 0.5, 0.085  # inches, of a line in a legend, and of a letter beside it
LEGEND = 1.8  # inches, of the names of the methods beside it
STYLE: dict[Any, Any] = {
  'axes.spines.top': False,
  'axes.spines.right': False,
  'font.size': 9,
  'axes.titlesize': 10,
}
DPI = 130
SHOWN_AT_MOST = 1000
PANELS_IN_A_ROW = 5


def draw_all(
  folder: Path,
  data: Data,
  scores: AllScores,
  matrices,
  rows: Sequence[dict],
  bins: int,
  test_to_train: float = 0.0,
  lines: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Draws every figure that these data allow into a folder.

  Args:
    folder: Where they go.
    data: Of one replica.
    scores: Of every method on these data.
    matrices: How far heads are from members.
    rows: Results of all replicas.
    bins: Of the reliability diagram.
    test_to_train: See `statistics`.
    lines: Of `metrics.jsonl`.
  """
  figures: dict[str, Callable[[], Figure]] = {}
  kinds = {kind: [e for e in data.evaluations.values() if e.kind == kind] for kind in ('shift', 'plane')}
  test = _covering(scores, ['test'])
  if data.task == 'classification':
    figures['reliability'] = lambda: reliability(test, bins)
  else:
    figures['calibration'] = lambda: calibration(test)
  if matrices:
    figures['heads_against_members'] = lambda: divergences(matrices)
  if outside := outside_of(data)[:1]:
    both = _uncertain(_covering(scores, ['test', *outside]))
    if both:
      figures['model_uncertainty'] = lambda: histograms(both, *outside)
    if 'ensemble' in both and len(both) > 1:
      figures['agreement'] = lambda: agreement(both, *outside)
    if data.task == 'classification':
      figures['rejection'] = lambda: rejection(_covering(scores, ['test', *outside]), *outside)
  if kinds['shift']:
    measures = TASKS[data.task].under_shift
    methods = _covering(scores, ['test', *(e.name for e in kinds['shift'])])
    drawn = [row for row in rows if row['method'] in methods]
    figures['shifts'] = lambda: shift_curves(drawn, kinds['shift'], measures, test_to_train)
    if _families(kinds['shift'])[1]:
      figures['corruptions'] = lambda: corruption_curves(drawn, kinds['shift'], measures[0], test_to_train)
  if kinds['plane']:
    figures['plane'] = lambda: plane_maps(_covering(scores, ['plane']), data)
  if lines:
    figures['losses'] = lambda: loss_curves([line for line in lines if 'loss' in line])
  if scored := [line for line in lines if 'validation' in line]:
    figures['validation'] = lambda: validation_curves(scored, TASKS[data.task].headline)
  save(folder, figures)


def save(folder: Path, drawings: Mapping[str, Callable[[], Figure]]) -> None:
  """Draws figures into a folder, as PNG by name."""
  folder.mkdir(exist_ok=True)
  with matplotlib.rc_context(STYLE):
    for name, draw in drawings.items():
      figure = draw()
      with store.replacing(folder / f'{name}.png') as new:
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure).print_png(new)  # `savefig` would draw each figure twice


def panels(
  columns: int, rows: int = 1, size: tuple[float, float] = (SIZE, SIZE), **kwargs
) -> tuple[Figure, np.ndarray]:
  """A figure and its axes `[rows, columns]`, each of this width and height in inches; the rest goes to `subplots`."""
  figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout='constrained')
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


def _lines(names) -> dict[str, dict[str, Any]]:
  """How lines are drawn: where there are more of them than colours, dashes tell them apart."""
  return {
    name: {'color': colour, 'ls': DASHES[i // len(COLOURS) % len(DASHES)]}
    for i, (name, colour) in enumerate(_colours(names).items())
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
    ax.plot([0, 1], [0, 1], ':', color='#888888', lw=1)
    ends = np.abs(wilson(correct, count) - correct / count)
    label = 'accuracy, 95% interval'
    ax.errorbar(confidence / count, correct / count, ends, fmt='o', ms=3, lw=1, color=colour, label=label)
    gap = metrics.calibration_error(sums)
    ax.set(title=f'{name}, ECE {digits(gap, 3)}', xlabel='confidence', xlim=(0, 1), ylim=(0, 1.02))
  for ax in first:
    ax.set_ylabel('accuracy')
  axes[0].legend(frameon=False, loc='upper left')
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
  for name, line in _lines(scores).items():
    test = scores[name]['test']
    each = [values for score, values in test.items() if score.startswith('pit_')]
    pit = np.sort(np.concatenate(each or [test['pit']]))
    ax.plot(levels, np.searchsorted(pit, levels, side='right') / len(pit), **line, label=name, lw=1.3)
  ax.plot([0, 1], [0, 1], ':', color='#888888', lw=1)
  ax.set(title='calibration', xlabel='quantile of the prediction', ylabel='share of targets below it')
  legend_beside(figure)
  return figure


def _covering(scores: AllScores, sets: Sequence[str]) -> AllScores:
  """Methods with scores on all of these sets; an ensemble given by its predictions may lack some."""
  return {name: found for name, found in scores.items() if all(where in found for where in sets)}


def _uncertain(scores: AllScores) -> AllScores:
  """Methods that have model uncertainty at all, which can be drawn."""
  positive = lambda values: bool(np.any(np.isfinite(values) & (values > 0)))
  return {name: found for name, found in scores.items() if positive(found['test'][EPISTEMIC])}


def histograms(scores: AllScores, outside: str) -> Figure:
  """Model uncertainty of test and out-of-domain inputs, one panel for each method."""
  names = list(scores)
  figure, axes, first = _grid(len(names), sharex=True, sharey=True)
  of = lambda name, where: np.asarray(scores[name][where][EPISTEMIC], np.float64)
  finite = lambda values: values[np.isfinite(values)]
  top = max(np.max(finite(of(name, where)), initial=0) for name in names for where in ('test', outside))
  edges = np.geomspace(1e-6 * top, top, 41)
  for ax, name in zip(axes, names):
    found = {where: of(name, where) for where in ('test', outside)}
    for (where, values), colour in zip(found.items(), ('#1f78b4', '#e08214')):
      drawn = np.clip(finite(values), *edges[[0, -1]])
      weights = np.full(len(drawn), 1 / len(values))
      label = f'{where}, mean {digits(values.mean(), 2)}'
      ax.hist(drawn, edges, weights=weights, color=colour, alpha=0.6, label=label)
    area = metrics.detection(found['test'], found[outside])['auroc']
    ax.set(title=f'{name}, AUROC {digits(area, 3)}', xlabel='model uncertainty', xscale='log')
    ax.legend(frameon=False, loc='upper left', fontsize=8)
  for ax in first:
    ax.set_ylabel('share of examples')
  axes[0].set_ylim(0, 1.25 * axes[0].get_ylim()[1])  # room for the legends
  return figure


def agreement(scores: AllScores, outside: str) -> Figure:
  """Model uncertainty against the ensemble's, example by example, one panel for each student."""
  students = [name for name in scores if name != 'ensemble']
  figure, axes, _ = _grid(len(students))
  pick = lambda values: values[:: max(1, len(values) // SHOWN_AT_MOST)]
  for ax, name in zip(axes, students):
    title = [name]
    for where, colour in (('test', '#1f78b4'), (outside, '#e08214')):
      ours, theirs = scores[name][where][EPISTEMIC], scores['ensemble'][where][EPISTEMIC]
      ax.plot(pick(theirs), pick(ours), '.', ms=2.5, alpha=0.5, color=colour, label=where, rasterized=True)
      title.append(f'rank correlation, {where}: {digits(diversity.rank_correlation(ours, theirs), 2)}')
    top = max(ax.get_xlim()[1], ax.get_ylim()[1])
    ax.plot([1e-5 * top, top], [1e-5 * top, top], ':', color='#888888', lw=1)
    ax.set_title('\n'.join(title), fontsize=8)
    limits = (1e-5 * top, 1.5 * top)
    ax.set(xlabel='model uncertainty of the ensemble', xscale='log', yscale='log', xlim=limits, ylim=limits)
    ax.set_ylabel('of the student')
    ax.legend(frameon=False, markerscale=4, loc='upper left')
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
      for name, line in _lines(scores).items():
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
  """Every head against every member, one row of panels a student, one column an evaluation set."""
  sets = list(next(iter(matrices.values())))
  figure, axes = panels(len(sets), len(matrices))
  for line, (name, found) in zip(axes, matrices.items()):
    for ax, where in zip(line, sets):
      image = ax.imshow(found[where], cmap='viridis_r')
      own = diversity.own_head(found[where])
      ax.set(title=f'{name}, {where}\nown head closest: {own:.0%}', xlabel='member', ylabel='head')
      ax.spines[:].set_visible(False)
      for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
      figure.colorbar(image, ax=ax, shrink=0.8, label='mean KL(member ‖ head)')
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


def _draw_curve(ax: Axes, rows: Sequence[dict], curve: Curve, measure: str, test_to_train: float) -> None:
  values: dict[tuple[str, str], list[float]] = {}
  for row in rows:
    if row['metric'] == measure:
      values.setdefault((row['method'], row['split']), []).append(row['value'])
  for method, line in _lines(dict.fromkeys(row['method'] for row in rows)).items():
    means_of = [np.mean([values[method, name] for name in names], axis=0) for names in curve.values()]
    points = [estimate(each, test_to_train) for each in means_of]
    means, errors = ([getattr(point, part) for point in points] for part in ('mean', 'error'))
    bars = None if np.isnan(errors).any() else errors
    ax.errorbar(list(curve), means, bars, marker='o', ms=3, lw=1.3, capsize=2, **line, label=method)


def _measure_name(measure: str) -> str:
  if measure in uncertainty.WORDS:
    return f'{uncertainty.WORDS[measure]} uncertainty'
  return measure if measure == 'accuracy' else measure.upper()


def shift_curves(
  rows: Sequence[dict], shifts: Sequence[Evaluation], measures: Sequence[str], test_to_train: float = 0.0
) -> Figure:
  """Metrics against the strength of each kind of shift, mean over corruptions; bars: standard error over replicas."""
  curves, _ = _families(shifts)
  figure, axes = panels(len(measures), len(curves), sharex='row')
  for line, (kind, curve) in zip(axes, curves.items()):
    for ax, measure in zip(line, measures):
      _draw_curve(ax, rows, curve, measure, test_to_train)
      ax.set(xlabel=kind, ylabel=_measure_name(measure))
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
  styles = _lines(dict.fromkeys(line['phase'] for line in lines))
  figure, axes, _ = _grid(len(scores))
  for ax, score in zip(axes, scores):
    for phase, style in styles.items():
      of_phase = [line for line in lines if line['phase'] == phase and score in line['validation']]
      for replicas in dict.fromkeys(tuple(line['replicas']) for line in of_phase):
        own = [line for line in of_phase if tuple(line['replicas']) == replicas]
        label = phase if replicas == tuple(of_phase[0]['replicas']) else None
        x, y = [line['step'] / line['steps'] for line in own], [line['validation'][score] for line in own]
        ax.plot(x, y, marker='.', lw=1, label=label, **style)
    ax.set(title=headings[score][0], xlabel='share of the training')
  legend_beside(figure, axes[0])
  return figure


def plane_maps(scores: AllScores, data: Data) -> Figure:
  """Total, data and model uncertainty over the plane, one column a method, one colour scale a row."""
  grid = data.evaluations['plane'].load().x
  side, reach = round(len(grid) ** 0.5), float(grid.max())
  figure, axes = panels(len(scores), 3, (2.4, 2.4), sharex=True, sharey=True)
  for line, (part, word) in zip(axes, uncertainty.WORDS.items()):
    top = max(found['plane'][part].max() for found in scores.values()) or 1
    for ax, (name, found) in zip(line, scores.items()):
      values = found['plane'][part].reshape(side, side)
      image = ax.imshow(values, origin='lower', extent=2 * (-reach, reach), vmin=0, vmax=top, cmap='viridis')
      if isinstance(data.train, Split):
        ax.scatter(*data.train.x.T, s=0.6, color='white', alpha=0.5, linewidths=0)
      ax.spines[:].set_visible(False)
      if part == 'uncertainty_total':
        ax.set_title(name)
    line[0].set_ylabel(f'{word} uncertainty')
    figure.colorbar(image, ax=line, shrink=0.9, pad=0.01, label='nats')
  return figure
