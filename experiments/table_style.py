"""What tables have in common: how methods are called, the columns of a classification, and Hydra as in the paper."""

from ml_collections import ConfigDict

from hydra_jax.config import resolve, variant
from hydra_jax.experiment.schema import TRAINING
from hydra_jax.maths.uncertainty import RANKINGS
from hydra_jax.report.tables import Column, detection

LABELS = {
  'ensemble': 'teachers',
  'single': 'single network',
  'shallow_ensemble': 'shallow ensemble',
  'tabm': 'TabM',
  'mc_dropout': 'MC dropout',
  'ddu': 'DDU',
  'kd': 'KD',
  'kd_equal': "KD, Hydra's terms",
  'small_ensemble': 'small networks',
  'hydra_train': "Hydra, the paper's setting",
  'hydra_light': 'Hydra, light',
  'hydra': 'Hydra',
  'hydra_deep': 'Hydra, deep heads',
  'batch_ensemble': 'BatchEnsemble',
  'latent_batch_ensemble': 'Latent BatchEnsemble',
  'endd': 'Prior Network (EnD²)',
  'proxy_endd': 'Proxy-EnD²',
  'ced': 'CED',
  'moments': 'moments',
  'dlf': 'DLF',
  'edfm': 'EDFM',
}


def add_hydra_train(config: ConfigDict) -> None:
  """Adds `hydra_train` to a config that is complete: Hydra as in the paper.

  It is distilled in two phases, without a temperature, on the inputs that the teachers were trained on; heads are dense
  layers. Passes are as many in all as those of `hydra`, a third of them in the first phase.
  """
  passes, teacher = resolve(config, 'hydra').training.epochs, resolve(config).training
  passes = dict(hinton_epochs=passes / 3, epochs=passes * 2 / 3)
  inputs = dict(augment=teacher.augment, augment_share=teacher.augment_share)
  paper = dict(cut=-1, temperature=1.0, mean_weight=0.0, calibrate_spread=False)
  variant(config, 'hydra_train', **paper, **passes, **inputs)


def add_equal_terms(config: ConfigDict) -> None:
  """Adds `kd_equal` to a config that is complete: KD with the body, the passes, the rate and the inputs of `hydra`."""
  training = {key: value for key, value in config.student.hydra.items() if key in TRAINING}
  variant(config, 'kd_equal', of='kd', **training)


def add_mean_phases(config: ConfigDict) -> None:
  """Adds a first phase to DLF and EDFM: they learn the mean of the members, in a third as many passes as the second."""
  for name in ('dlf', 'edfm'):
    config.student[name].mean_epochs = resolve(config, name).training.epochs / 3


def columns(outside: str) -> list[Column]:
  """What is shown of a classification."""
  scores = [
    ('accuracy', 'accuracy', 'high'),
    ('nll', 'NLL', 'low'),
    ('nll_calibrated', 'NLL cal.', 'low'),
    ('brier', 'Brier', 'low'),
    ('ece', 'ECE', 'low'),
    ('uncertainty_epistemic', 'model unc.', ''),
    ('rank_correlation', 'rank corr.', 'high'),
    ('members_worth', 'members worth', 'high'),
  ]
  return [
    *(Column('test', metric, heading, better) for metric, heading, better in scores),
    *(detection(outside, by) for by in RANKINGS),
    Column('cost', 'parameters', 'parameters', 'low'),
    Column('cost', 'flops', 'FLOPs', 'low'),
    Column('cost', 'latency_ms', 'ms a batch', 'low'),
  ]
