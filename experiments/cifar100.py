"""CIFAR-100 with CIFAR-10, and SVHN where `TFDS_DATA_DIR` has it, as out-of-domain data.

    hydra-jax table cifar100           # the setting of Park et al. 2025; an accelerator's work
    hydra-jax table cifar100 --quick   # LeNets on CIFAR-100's test images: to see that it works

Full: 4 teachers WRN-28-4, students WRN-28-1, 200 epochs, 5 seeds.
"""

from configs import cifar100
from experiments.cifar10 import image_table
from hydra_jax.experiment.paper_tables import Definition


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows as in `cifar10`."""
  table = image_table('cifar100', cifar100.get_config(), quick)
  if quick:  # where only the test images are prepared, they do to see that it works
    config = table.runs['cifar100']
    config.data.train, config.data.test = 'test[:500]', 'test[500:1000]'
    config.data.shifts = ('gaussian_noise:3',)
  return {'': table}
