"""MNIST, with Fashion-MNIST as out-of-domain data, and rotated and moved digits.

    hydra-jax run --config=configs/mnist.py [--data_dir=DIR]
    hydra-jax run --config=configs/mnist.py:members=5

Teachers: 50 MLPs 784-100-100-10. Students are 784-100-300-10: the last hidden layer has to serve 50 heads.
"""

from hydra_jax.config import apply_argument, default_config


def get_config(argument=None):
  config = default_config()
  config.name = 'mnist'
  config.data.name = 'mnist'
  config.data.ood = ('fashion_mnist',)
  config.data.shifts = tuple(f'rotate:{d}' for d in (15, 30, 45, 60, 90)) + tuple(
    f'translate:{p}' for p in (2, 4, 6, 8)
  )
  config.teacher.members = 50
  config.network.student.widths = (100, 300)
  config.training.epochs = 10.0
  config.distillation.epochs = 40.0
  for name in ('batch_ensemble', 'latent_batch_ensemble'):
    config.student[name].epochs = 10.0  # a step costs more than the ensemble's
  config.student.latent_batch_ensemble.augment = ('ods',)
  return apply_argument(config, argument)
