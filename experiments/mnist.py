"""MNIST, an ensemble of 50 MLPs, and what is distilled from it; Fashion-MNIST is out-of-domain.

    hydra-jax table mnist

Other tables (`heads`, `cost`) are made from the same ensembles.
"""

from configs import mnist
from experiments import table_style
from hydra_jax.config import IMAGES, update_training, variant
from hydra_jax.experiment.paper_tables import Definition, Section

OUTSIDE = 'fashion_mnist'
# Other bodies and heads than the default's, which is 100-300 with dense heads.
LIGHT = dict(network=dict(name='mlp', widths=(120, 200), bottleneck=32))
DEEP = dict(network=dict(name='mlp', widths=(100, 100)), cut=-2, augment_share=0.5, mean_weight=0.0)
STUDENTS = (
  *('single', 'shallow_ensemble', 'tabm', 'mc_dropout', 'ddu', 'kd', 'kd_equal', 'small_ensemble', 'endd'),
  *('proxy_endd', 'ced', 'moments', 'dlf', 'edfm', 'batch_ensemble', 'latent_batch_ensemble'),
  *('hydra_train', 'hydra_light', 'hydra', 'hydra_deep'),
)
QUICK = ('single', 'kd', 'kd_equal', 'endd', 'hydra_train', 'hydra_light', 'hydra', 'hydra_deep')


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
    config.teacher.members = 5
    update_training(config, epochs=3.0)
    config.student.hydra.epochs = 6.0
  table_style.add_mean_phases(config)
  table_style.add_hydra_train(config)
  table_style.add_equal_terms(config)
  variant(config, 'hydra_light', **LIGHT)
  deep = {**DEEP, 'augment': IMAGES['augment']}
  variant(config, 'hydra_deep', **deep)
  return config


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows: every method; Hydra as in the paper, light, by default, and with deep heads."""
  config = base(quick)
  config.students = QUICK if quick else STUDENTS
  outside = config.data.ood[0]
  table = Definition(
    title='MNIST, with Fashion-MNIST as out-of-domain data',
    runs={'mnist': config},
    sections=[Section('Scores', table_style.columns(outside), ('ensemble', *config.students))],
    labels=table_style.LABELS,
    tested=('nll', 'accuracy', 'brier'),
    kept=('test', 'rotate:30', 'translate:4', outside),
  )
  return {'': table}
