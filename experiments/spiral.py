"""Uncertainty over the plane, far beyond the data.

hydra-jax table spiral          # ensemble, KD, Prior Network (EnD²), DLF and Hydra
hydra-jax table spiral:all      # eighteen students; what is trained for the other table is not trained again
"""

from configs import spiral
from experiments import table_style
from hydra_jax.config import update_training
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column

STUDENTS = ('kd', 'kd_equal', 'endd', 'hydra_train', 'hydra', 'dlf')
QUICK = ('kd', 'hydra_train', 'hydra', 'dlf')
MANY = (
  *('single', 'shallow_ensemble', 'tabm', 'mc_dropout', 'ddu', 'kd', 'kd_equal', 'small_ensemble', 'batch_ensemble'),
  *('latent_batch_ensemble', 'endd', 'proxy_endd', 'ced', 'moments', 'dlf', 'edfm', 'hydra_train', 'hydra'),
)


def get_tables(quick: bool) -> dict[str, Definition]:
  """The table of a few methods, and of many."""
  return {
    '': table_of('Three spiral arms, and the plane around them', QUICK if quick else STUDENTS, quick),
    'all': table_of('Three spiral arms, eighteen students', QUICK if quick else MANY, quick),
  }


def table_of(title: str, students: tuple[str, ...], quick: bool) -> Definition:
  """Rows are methods; `figures/plane.png` has the maps."""
  config = spiral.get_config()
  config.replicas, config.students = 5, students
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
  return Definition(
    title=title,
    runs={'spiral': config},
    sections=[Section('Scores', columns, ('ensemble', *config.students))],
    labels=table_style.LABELS,
    kept=('test', 'far'),
  )
