"""UCI regression: every set, with networks that predict a mean and a variance.

    hydra-jax table uci            # protocols `heteroscedastic` and `dlf`

* `heteroscedastic`: 50 members with one hidden layer of 50 units (100 for protein), on each of the 20 standard splits
  (5 for protein); students with twice the units.
* `dlf`: as in Park et al. 2025, 50 least-squares teachers with two hidden layers of 100 units, each with the variance
  of its residuals; students with one hidden layer of 50 units; 10 random 90/10 splits, here the first 10 standard ones.

Passes over the data fall with the root of their number beyond 1,500, so that large sets take longer, but not in
proportion. How many times as many passes the teachers of `dlf` take (¼, 1, 2 or 4) was chosen by the NLL on the last
fifth of the training parts. What Hydra is distilled on, inputs with noise or not, is chosen in each run.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from configs import uci
from experiments import published, table_style
from hydra_jax.data.uci import SETS
from hydra_jax.experiment.paper_tables import Definition, Results, Section
from hydra_jax.report import figures
from hydra_jax.report.tables import Column

ROWS = {
  'bostonHousing': 455,
  'concrete': 927,
  'energy': 691,
  'kin8nm': 7373,
  'power-plant': 8611,
  'protein-tertiary-structure': 41157,
  'wine-quality-red': 1439,
}
STUDENTS = (
  *('single', 'shallow_ensemble', 'tabm', 'kd', 'kd_equal', 'small_ensemble', 'hydra_train', 'hydra'),
  *('batch_ensemble', 'latent_batch_ensemble', 'endd', 'moments', 'dlf', 'edfm'),
)
QUICK = ('kd', 'hydra', 'dlf')
METRICS = {
  'rmse': ('RMSE', 'low'),
  'nll': ('NLL', 'low'),
  'nll_calibrated': ('NLL, variances scaled on the validation part', 'low'),
  'crps': ('CRPS', 'low'),
  'coverage_95': ('Coverage of 95% intervals', '0.95'),
}


def passes(name: str) -> float:
  """Passes of teachers over the training part of a set."""
  return round(40.0 * min(1.0, 1500 / ROWS[name]) ** 0.5, 1)


# Protocol `dlf`: how many times as many passes teachers take.
TIMES = {'energy': 2.0, 'wine-quality-red': 0.25}


def trained(config: ConfigDict, teacher: float, student: float) -> ConfigDict:
  """Sets for how many passes all are trained."""
  config.training.epochs, config.distillation.epochs = teacher, student
  config.student.hydra.epochs = 2 * student
  table_style.add_mean_phases(config)
  config.student.small_ensemble.network = ConfigDict(dict(name='mlp', widths=(10,)))
  table_style.add_hydra_train(config)
  table_style.add_equal_terms(config)
  config.students = STUDENTS
  return config


def heteroscedastic(name: str) -> ConfigDict:
  """Networks that predict mean and variance."""
  config = uci.get_config(name)
  config.name = f'uci-heteroscedastic-{name}'
  config.teacher.members = 50
  return trained(config, passes(name), 2 * passes(name))


def dlf(name: str) -> ConfigDict:
  """The setting of Park et al. 2025: what they say of it, and our schedule."""
  config = uci.get_config(name)
  config.name = f'uci-dlf-{name}'
  config.replicas, config.teacher.members = 10, 50
  config.network.teacher = ConfigDict(dict(name='mlp', widths=(100, 100), homoscedastic=True))
  config.network.student = ConfigDict(dict(name='mlp', widths=(50,), homoscedastic=True))
  times = TIMES.get(name, 1.0) * passes(name)
  return trained(config, times, 3 * times)


PROTOCOLS = {'heteroscedastic': (heteroscedastic, tuple(SETS)), 'dlf': (dlf, published.UCI_SETS)}


def quickly(config: ConfigDict) -> ConfigDict:
  """A config that takes seconds."""
  config.name += '-quick'
  config.replicas, config.teacher.members = 2, 4
  config.data.shifts = ('jitter:1',)
  config = trained(config, 10.0, 10.0)
  config.students = QUICK
  return config


def sections(sets: Sequence[str], students: Sequence[str]) -> list[Section]:
  """A table for each metric, whose columns are sets."""
  rows = ('ensemble', *students)
  of = lambda split, metric, better='': [Column(split, metric, name, better, run=name) for name in sets]
  return [
    *(Section(title, of('test', metric, better), rows) for metric, (title, better) in METRICS.items()),
    Section('Model uncertainty ÷ that of the teachers', of('test', 'uncertainty_epistemic_ratio'), rows),
    Section('Rank correlation of model uncertainty with that of the teachers', of('test', 'rank_correlation'), rows),
    Section('How many averaged teachers have the NLL of a student', of('test', 'members_worth', 'high'), rows),
    Section(
      'AUROC by model uncertainty, test inputs with noise', of('jitter:1', 'auroc_uncertainty_epistemic', 'high'), rows
    ),
    Section('Parameters', of('cost', 'parameters', 'low'), rows),
  ]


def protocol(kind: str, quick: bool) -> Definition:
  """One protocol as a table."""
  make, sets = PROTOCOLS[kind]
  sets = ('concrete',) if quick else sets
  ours = {key: number for key, number in published.uci().items() if kind == 'dlf' and key[0] in sets}
  return Definition(
    title=f'UCI regression, protocol `{kind}`',
    runs={name: quickly(make(name)) if quick else make(name) for name in sets},
    sections=sections(sets, QUICK if quick else STUDENTS),
    labels=table_style.LABELS,
    published=ours,
    source=published.SOURCE,
    rivals={'hydra': 'dlf'},
    tested=('nll', 'crps'),
    drawings={'gaps': gaps},
  )


def gaps(found: Results) -> Figure:
  """How much worse than its teachers each student is, in NLL, on every set; hollow: published."""
  runs = list(found.definition.runs)
  methods = [method for method in found.methods(runs[0]) if method != 'ensemble']
  figure, [[ax]] = figures.panels(1, size=(1.5 * len(runs) + 2, 3.2))
  width = 0.8 / len(methods)
  for i, (method, style) in enumerate(figures.line_styles(methods).items()):
    style = style | dict(ls='')
    at = [place - 0.4 + (i + 0.5) * width for place in range(len(runs))]
    over = [found.difference(run, 'test', 'nll', method, 'ensemble') for run in runs]
    ax.errorbar(at, [d.mean for d in over], [d.error for d in over], label=found.label(method), **style)
    theirs = [_published_gap(found, run, method) for run in runs]
    ax.plot(at, theirs, mfc='none', **style | dict(ms=7))
  ax.axhline(0, **figures.REFERENCE)
  ax.set_yscale('symlog', linthresh=0.1)
  ax.set(ylabel='NLL − that of the teachers (nats)', xticks=range(len(runs)), xticklabels=runs)
  ax.tick_params(axis='x', rotation=20)
  figures.legend_beside(figure)
  note = 'Mean over splits; bars: ± standard error, corrected for their overlap. Dotted: as the teachers.'
  return figures.noted(figure, f'{note} Hollow: published.' if found.definition.published else note)


def _published_gap(found: Results, run: str, method: str) -> float:
  theirs, base = (found.definition.published.get((run, 'test', name, 'nll')) for name in (method, 'ensemble'))
  return theirs.value - base.value if theirs and base else float('nan')


def get_tables(quick: bool) -> dict[str, Definition]:
  """Both protocols; `hydra-jax table uci:dlf` is one of them."""
  return {kind: protocol(kind, quick) for kind in PROTOCOLS}
