"""What tables have in common: how methods are called, the columns of a classification, and Hydra as in the paper."""

from ml_collections import ConfigDict

from hydra_jax.config import variant
from hydra_jax.tables import Column

LABELS = {
  'ensemble': 'teachers',
  'single': 'single network',
  'mc_dropout': 'MC dropout',
  'kd': 'KD',
  'small_ensemble': 'small networks',
  'hydra_train': "Hydra, the paper's setting",
  'hydra': 'Hydra',
  'batch_ensemble': 'BatchEnsemble',
  'latent_batch_ensemble': 'Latent BatchEnsemble',
  'endd': 'Prior Network (EnD²)',
  'proxy_endd': 'Proxy-EnD²',
  'dlf': 'DLF',
}


def add_hydra_train(config: ConfigDict) -> None:
  """Adds `hydra_train`, distilled on training data alone as in the paper, to a config that is complete.

  It is what `hydra` is, for as long as that has the same default.
  """
  variant(config, 'hydra_train')


def columns(outside: str) -> list[Column]:
  """What is shown of a classification."""
  scores = [
    ('accuracy', 'accuracy', 'high'),
    ('nll', 'NLL', 'low'),
    ('brier', 'Brier', 'low'),
    ('ece', 'ECE', 'low'),
    ('model', 'model unc.', ''),
  ]
  return [
    *(Column('test', metric, heading, better) for metric, heading, better in scores),
    *(Column(outside, f'auroc_{by}', f'{outside} AUROC {by}', 'high') for by in ('total', 'model')),
    Column('cost', 'parameters', 'parameters', 'low'),
    Column('cost', 'flops', 'FLOPs', 'low'),
    Column('cost', 'latency_ms', 'ms a batch', 'low'),
  ]
