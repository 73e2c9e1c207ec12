"""Hydra on MNIST by its number of heads, and by how much of the network the heads are.

    hydra-jax table heads

The ensembles are those of `hydra-jax table mnist`. With fewer heads than members, members are dealt out to heads.
"""

import functools
from typing import Any

from matplotlib.figure import Figure

from experiments import mnist, table_style
from hydra_jax.config import variant
from hydra_jax.experiment.paper_tables import Definition, Results, Section
from hydra_jax.report import figures

HEADS = (1, 2, 5, 10, 20, 50)
CUTS = {-1: 'dense layer', -2: 'hidden and dense layer', -3: 'whole network'}
BODIES: dict[str, dict[str, Any]] = {
  '100-100': dict(widths=(100, 100)),
  '120-200, bottleneck 32': dict(widths=(120, 200), bottleneck=32),
  '120-300, bottleneck 40': dict(widths=(120, 300), bottleneck=40),
  '100-300': dict(widths=(100, 300)),
  '300-300': dict(widths=(300, 300)),
}
SHOWN = {
  'nll': 'NLL',
  'uncertainty_epistemic': 'model uncertainty',
  'rank_correlation': 'rank correlation with the ensemble',
  'auroc_uncertainty_epistemic': 'AUROC by model uncertainty',
}


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows are students."""
  config = mnist.base(quick)
  members, outside = config.teacher.members, config.data.ood[0]
  counts = [1, members] if quick else [heads for heads in HEADS if heads <= members]
  labels = {'ensemble': table_style.LABELS['ensemble']}
  for heads in counts:
    name = f'heads_{heads}'
    labels[name] = f'{heads} heads' if heads > 1 else 'one head'
    variant(config, name, heads=heads, grouping='round_robin')
  for cut in [-1] if quick else CUTS:
    name = f'cut_{-cut}'
    labels[name] = f'heads of the {CUTS[cut]}'
    variant(config, name, cut=cut)
  bodies = ['120-200, bottleneck 32'] if quick else list(BODIES)
  for i, what in enumerate(bodies):
    for kind, method in (('hydra', 'Hydra'), ('kd', 'KD')):
      name = f'body_{kind}_{i}'
      labels[name] = f'{method}, {what}'
      variant(config, name, 'hydra' if kind == 'hydra' else 'kd_equal', network=dict(name='mlp', **BODIES[what]))
  config.students = tuple(name for name in labels if name != 'ensemble')
  of = lambda kind: tuple(name for name in labels if name.startswith((kind, 'ens')))
  columns = table_style.columns(outside)
  table = Definition(
    title='Hydra by its heads, on MNIST',
    runs={'mnist': config},
    sections=[
      Section('Number of heads', columns, of('heads')),
      Section('Depth of the cut', columns, of('cut')),
      Section('Body, with dense heads', columns, of('body')),
    ],
    labels=labels,
    against=f'heads_{counts[-1]}',
    kept=('test', outside),
    drawings={'heads': functools.partial(curves, counts=counts, outside=outside)},
  )
  return {'': table}


def curves(found: Results, counts: list[int], outside: str) -> Figure:
  """Scores against the number of heads; dashed, the ensemble."""
  figure, [axes] = figures.panels(len(SHOWN), size=(3.2, 3))
  for ax, (metric, heading) in zip(axes, SHOWN.items()):
    for split, colour, marker in (('test', '#1f78b4', 'o'), (outside, '#e08214', 's')):
      points = {n: found.estimate('mnist', split, f'heads_{n}', metric) for n in counts}
      points = {n: point for n, point in points.items() if point}
      if points:
        means, errors = zip(*((point.mean, point.error) for point in points.values()), strict=True)
        ax.errorbar(list(points), means, errors, fmt=f'{marker}-', ms=3, lw=1.3, color=colour, label=split)
      if base := found.estimate('mnist', split, 'ensemble', metric):
        ax.axhline(base.mean, color=colour, lw=1, ls='--')
    ax.set(xlabel='heads', ylabel=heading, xscale='log', xticks=counts, xticklabels=counts)
    ax.minorticks_off()
  figures.legend_beside(figure, axes[1])
  return figures.noted(figure, 'MNIST. Mean over replicas; bars: ± standard error. Dashed: the ensemble.')
