"""Handwritten digits, with nothing to download: the first thing to run.

    hydra-jax run --config=configs/digits.py

Data: scikit-learn's `load_digits`, 8 × 8 images, 1,198 to train and 599 to test. Out-of-domain data
are made here: letters drawn in matplotlib's fonts and reduced to 8 × 8 as the digits were, uniform
noise, and the test digits rotated and moved by growing amounts.
Teachers: 20 MLPs 64-100-100-10. Under a minute on two CPU cores.
"""

from hydra_jax.experiment.config import apply_argument, default_config, distilled, update_training


def get_config(argument=None):
  config = default_config()
  config.name = 'digits'
  config.data.name = 'digits'
  config.data.ood = ('letters', 'noise')
  config.teacher.epochs = 40.0
  update_training(config, batch_size=64)
  for settings in distilled(config):
    settings.epochs = 60.0
  config.student.hydra.epochs = 120.0
  config.data.shifts = ('rotate:15', 'rotate:30', 'rotate:45', 'rotate:90', 'translate:1', 'translate:2', 'translate:3')
  return apply_argument(config, argument)
