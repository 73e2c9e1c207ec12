"""Uncertainty over the plane, far beyond the data: ensemble, KD, Prior Network (EnD²), DLF and Hydra.

hydra-jax table spiral
"""

from configs import spiral
from experiments import table_style
from hydra_jax.config import update_training
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column

STUDENTS = ('kd', 'kd_equal', 'endd', 'hydra_train', 'hydra', 'dlf')
QUICK = ('kd', 'hydra_train', 'hydra', 'dlf')


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows are methods; `figures/plane.png` has the maps."""
  config = spiral.get_config()
  config.replicas, config.students = 5, QUICK if quick else STUDENTS
  if quick:
    config.name += '-quick'
    config.replicas, config.teacher.members = 2, 4
    update_training(config, epochs=20.0)
    config.student.hydra.epochs = 30.0
  table_style.add_hydra_train(config)
  table_style.add_equal_terms(config)
  columns = [
    Column('test', 'accuracy', 'accuracy', 'high'),
    Column('test', 'nll', 'NLL', 'low'),
    Column('test', 'brier', 'Brier', 'low'),
    Column('test', 'ece', 'ECE', 'low'),
    Column('test', 'uncertainty_epistemic', 'model unc., test'),
    Column('far', 'uncertainty_epistemic', 'far away'),
    Column('far', 'rank_correlation', 'rank corr. far away', 'high'),
    Column('cost', 'parameters', 'parameters', 'low'),
  ]
  table = Definition(
    title='Three spiral arms, and the plane around them',
    runs={'spiral': config},
    sections=[Section('Scores', columns, ('ensemble', *config.students))],
    labels=table_style.LABELS,
    kept=('test', 'far'),
  )
  return {'': table}
