"""Handwritten digits, with nothing to download: the first thing to run.

    hydra-jax run --config=configs/digits.py

Data: scikit-learn's `load_digits`, 8 × 8 images, 1,198 to train and 599 to test. Out-of-domain data
are made here: letters drawn in matplotlib's fonts and reduced to 8 × 8 as the digits were, uniform
noise, and the test digits rotated and moved by growing amounts.
Teachers: 20 MLPs 64-100-100-10; students 64-100-300-10. Under a minute on two CPU cores.
"""

from hydra_jax.config import apply_argument, default_config

# Chosen by `python -m experiments.search digits`, where the default is not the best of three: on training data alone.
RATES = dict(batch_ensemble=1e-2, proxy_endd=1e-2)


def get_config(argument=None):
  config = default_config()
  config.name = 'digits'
  config.data.name = 'digits'
  config.data.ood = ('letters', 'noise')
  config.network.student.widths = (100, 300)
  config.training.update(epochs=40.0, batch_size=64)
  config.distillation.epochs = 60.0
  config.student.hydra.epochs = 120.0
  for name, rate in RATES.items():
    config.student[name].learning_rate = rate
  config.student.latent_batch_ensemble.augment = ('ods',)
  config.data.shifts = ('rotate:15', 'rotate:30', 'rotate:45', 'rotate:90', 'translate:1', 'translate:2', 'translate:3')
  return apply_argument(config, argument)
