"""UCI regression sets with their standard splits; every network predicts a mean and a variance.

    hydra-jax run --config=configs/uci.py:concrete
    hydra-jax run --config=configs/uci.py:energy,members=5 --config.replicas=3

Sets: bostonHousing concrete energy kin8nm power-plant protein-tertiary-structure wine-quality-red.
Teachers: 20 networks with one hidden layer of 50 units (100 for protein), on each of the 20 standard
splits (5 for protein). Students have twice the units, as one layer has to serve 20 heads.
Out-of-domain: test inputs with Gaussian noise of 0.25 to 2 standard deviations of each feature.
"""

from hydra_jax.config import apply_argument, default_config, split_argument, update_training
from hydra_jax.data.uci import SETS
from hydra_jax.errors import look_up


def get_config(argument=None):
  named = [word for word in split_argument(argument)[:1] if '=' not in word]
  name = named[0] if named else 'concrete'
  splits = look_up(SETS, name, 'UCI set').splits
  config = default_config()
  config.name = f'uci-{name}'
  config.data.name = f'uci/{name}'
  config.data.shifts = ('jitter:0.25', 'jitter:0.5', 'jitter:1', 'jitter:2')
  config.replicas = splits
  units = 100 if name.startswith('protein') else 50
  config.network.teacher.widths, config.network.student.widths = (units,), (2 * units,)
  update_training(config, batch_size=32, epochs=40.0, learning_rate=1e-2)
  config.distillation.epochs = 120.0
  config.student.hydra.update(epochs=240.0, temperature=1.0)
  return apply_argument(config, argument, words=named)
