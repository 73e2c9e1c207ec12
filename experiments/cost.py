"""What every method costs and what it gives, on MNIST: NLL and detection against parameters, FLOPs and latency.

    hydra-jax table cost

The ensembles, and the students that are there already, are those of `hydra-jax table mnist`.
"""

import functools

from matplotlib.figure import Figure

from experiments import mnist, table_style
from hydra_jax.experiment.paper_tables import Definition, Results, Section
from hydra_jax.report import figures
from hydra_jax.report.tables import Column

STUDENTS = (
  *('single', 'shallow_ensemble', 'mc_dropout', 'kd', 'hydra_train', 'hydra_light', 'hydra', 'hydra_deep'),
  *('small_ensemble', 'batch_ensemble', 'latent_batch_ensemble'),
  *('endd', 'proxy_endd', 'ced', 'moments', 'dlf', 'edfm'),
)


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
    drawings={'pareto': functools.partial(pareto, outside=outside)},
  )
  return {'': table}


def pareto(found: Results, outside: str) -> Figure:
  """Quality against cost; dotted lines join the methods that none is better than at no higher cost."""
  qualities = [
    Column('test', 'nll', 'NLL (nats)', 'low'),
    Column(outside, 'auroc_uncertainty_total', f'AUROC by total uncertainty,\n{outside}', 'high'),
  ]
  values = {key[1:]: found.estimate(*key) for key in found.values}
  figure = figures.cost_quality(values, qualities, found.definition.labels)
  note = 'MNIST. Mean over replicas; bars: ± standard error. Dotted: no method is better at no higher cost.'
  return figures.noted(figure, note)
