"""MNIST, an ensemble of 50 MLPs, and what is distilled from it; Fashion-MNIST is out-of-domain.

    hydra-jax table mnist

Other tables (`heads`, `cost`) are made from the same ensembles.
"""

from configs import mnist
from hydra_jax.config import HYDRAS, distilled
from hydra_jax.reports import Definition, Section
from hydra_jax.tables import Column

OUTSIDE = 'fashion_mnist'
LABELS = {
  'ensemble': 'ensemble of 50',
  'kd': 'KD',
  'endd': 'Prior Network (EnD²)',
  'hydra': 'Hydra',
  'hydra_train': "Hydra, the paper's setting",
}


def base(quick: bool):
  """The setting that all tables on MNIST share."""
  config = mnist.get_config()
  config.replicas = 3
  if quick:
    config.name += '-quick'
    config.replicas = 2
    config.data.train, config.data.test = 'train[:2000]', 'test[:1000]'
    config.data.ood = (f'{OUTSIDE}[:1000]',)
    config.data.shifts = ('rotate:30', 'translate:4')
    config.teacher.members, config.teacher.epochs = 5, 3.0
    for settings in distilled(config):
      settings.epochs = 3.0
    for name in HYDRAS:
      config.student[name].hinton_epochs = 3.0
  return config


def columns(outside: str, run: str = '') -> list[Column]:
  """What is shown of a classification."""
  scores = [
    ('accuracy', 'accuracy', 'high'),
    ('nll', 'NLL', 'low'),
    ('brier', 'Brier', 'low'),
    ('ece', 'ECE', 'low'),
    ('model', 'model unc.', ''),
  ]
  return [
    *(Column('test', metric, heading, better, run=run) for metric, heading, better in scores),
    *(Column(outside, f'auroc_{by}', f'{outside} AUROC {by}', 'high', run=run) for by in ('total', 'model')),
    Column('cost', 'parameters', 'parameters', 'low', run=run),
    Column('cost', 'flops', 'FLOPs', 'low', run=run),
    Column('cost', 'latency_ms', 'ms a batch', 'low', run=run),
  ]


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows: single, ensemble, KD, Prior Network, Hydra as it is here, and as in the paper."""
  config = base(quick)
  config.students = ('single', 'kd', 'endd', 'hydra_train', 'hydra')
  outside = config.data.ood[0]
  table = Definition(
    title='MNIST, with Fashion-MNIST as out-of-domain data',
    runs={'mnist': config},
    sections=[Section('Scores', columns(outside), ('single', 'ensemble', 'kd', 'endd', 'hydra_train', 'hydra'))],
    labels=LABELS | ({'ensemble': 'ensemble of 5'} if quick else {}),
    tested=('nll', 'accuracy', 'brier'),
    kept=('test', 'rotate:30', 'translate:4', outside),
  )
  return {'': table}
