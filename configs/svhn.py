"""SVHN, house numbers of 32 × 32, with CIFAR-10 as out-of-domain data.

    hydra-jax run --config=configs/svhn.py                                 # an accelerator's work
    hydra-jax run --config=configs/svhn.py --config.data.ood="('noise',)"  # without CIFAR-10

20 members ResNet-20, trained as on CIFAR-10, but a mirrored number is no number: random crops only.
`hydra-jax prepare svhn_cropped` and `hydra-jax prepare cifar10` come first.
"""

from hydra_jax.config import apply_argument, default_config, residual_recipe

RESNET20 = dict(name='resnet', depth=20, width=16, norm='batch', dtype='float32')


def get_config(argument=None):
  config = default_config()
  config.name = 'svhn'
  config.data.name = 'svhn_cropped'
  config.data.ood = ('cifar10', 'noise')
  residual_recipe(config, RESNET20, RESNET20, augment=('crop',))
  return apply_argument(config, argument)
