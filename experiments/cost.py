"""What every method costs and what it gives, on MNIST: NLL and detection against parameters, FLOPs and latency.

    hydra-jax table cost

The ensembles, and the students that are there already, are those of `hydra-jax table mnist`.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments import mnist, table_style
from hydra_jax.experiment.paper_tables import Definition, Results, Section
from hydra_jax.report import figures

STUDENTS = ('single', 'mc_dropout', 'kd', 'hydra_train', 'hydra_light', 'hydra', 'hydra_deep')
STUDENTS += ('small_ensemble', 'batch_ensemble')
STUDENTS += ('endd', 'proxy_endd', 'dlf')
COSTS = {'parameters': 'parameters', 'flops': 'FLOPs for an example', 'latency_ms': 'milliseconds for a batch'}


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows are all methods."""
  config = mnist.base(quick)
  config.students, outside = STUDENTS, config.data.ood[0]
  table = Definition(
    title='Cost and quality, on MNIST',
    runs={'mnist': config},
    sections=[Section('Scores and cost', table_style.columns(outside), ('ensemble', *STUDENTS))],
    labels=table_style.LABELS,
    tested=('nll', 'accuracy'),
    kept=('test', outside),
    drawings={'pareto': lambda found: pareto(found, outside)},
  )
  return {'': table}


def pareto(found: Results, outside: str) -> Figure:
  """Quality against cost; lines join the methods that none is better than at no higher cost."""
  quality = (
    ('test', 'nll', 'NLL', 1),
    (outside, 'auroc_uncertainty_total', f'AUROC by total uncertainty,\n{outside}', -1),
  )
  methods = found.methods('mnist')
  figure, axes = figures.panels(len(COSTS), 2, (4, 3.5))
  for line, (split, metric, heading, sign) in zip(axes, quality):
    for ax, (cost, what) in zip(line, COSTS.items()):
      front = []
      for i, method in enumerate(methods):
        value, price = found.estimate('mnist', split, method, metric), found.estimate('mnist', 'cost', method, cost)
        if value and price:
          colour = figures.COLOURS[i % len(figures.COLOURS)]
          marker = 'os^'[i // len(figures.COLOURS)]
          label = found.label(method)
          ax.errorbar([price.mean], [value.mean], [value.error], fmt=marker, ms=6, color=colour, label=label)
          front.append((price.mean, sign * value.mean))
      ax.plot(*best(front, sign), color='#888888', lw=1, ls=':', zorder=0)
      ax.set(xlabel=what, ylabel=heading)
      prices = [price for price, _ in front]
      if max(prices, default=0) > 10 * min(prices, default=0):  # a shorter axis in logarithms would have no labels
        ax.set(xscale='log')
        ax.xaxis.set_minor_formatter(NullFormatter())
  figures.legend_beside(figure, axes[0][0])
  return figure


def best(points: list[tuple[float, float]], sign: int) -> tuple[list[float], list[float]]:
  """Of (cost, loss), those that no other beats in both, as steps to draw."""
  x, y, least = [], [], float('inf')
  for cost, loss in sorted(points):
    if loss < least:
      x += [cost] * (2 if x else 1)
      y += [sign * least, sign * loss] if y else [sign * loss]
      least = loss
  return x, y
