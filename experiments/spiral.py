"""Uncertainty over the plane, far beyond the data: ensemble, KD, Prior Network (EnD²), DLF and Hydra.

hydra-jax table spiral
"""

from configs import spiral
from experiments import mnist
from hydra_jax.config import HYDRAS, distilled
from hydra_jax.reports import Definition, Section
from hydra_jax.tables import Column

STUDENTS = ('kd', 'endd', 'hydra_train', 'hydra', 'dlf')


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows are methods; `figures/plane.png` has the maps."""
  config = spiral.get_config()
  config.replicas, config.students = 5, STUDENTS
  if quick:
    config.name += '-quick'
    config.replicas, config.teacher.members, config.teacher.epochs = 2, 4, 20.0
    for settings in distilled(config):
      settings.epochs = 20.0
    for name in HYDRAS:
      config.student[name].hinton_epochs = 20.0
  columns = [
    Column('test', 'accuracy', 'accuracy', 'high'),
    Column('test', 'nll', 'NLL', 'low'),
    Column('test', 'brier', 'Brier', 'low'),
    Column('test', 'ece', 'ECE', 'low'),
    Column('test', 'model', 'model unc., test'),
    Column('far', 'model', 'far away'),
    Column('far', 'rank_correlation', 'rank corr. far away', 'high'),
    Column('cost', 'parameters', 'parameters', 'low'),
  ]
  table = Definition(
    title='Three spiral arms, and the plane around them',
    runs={'spiral': config},
    sections=[Section('Scores', columns, ('ensemble', *STUDENTS))],
    labels=mnist.LABELS | {'ensemble': f'ensemble of {config.teacher.members}', 'dlf': 'DLF'},
    kept=('test', 'far'),
  )
  return {'': table}
