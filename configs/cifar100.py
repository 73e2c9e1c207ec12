"""CIFAR-100 with CIFAR-10 and SVHN as out-of-domain data: the setting of Park et al. 2025.

    hydra-jax run --config=configs/cifar100.py                                    # an accelerator's work
    hydra-jax run --config=configs/cifar100.py --config.data.train='train[:80%]'  # theirs; they kept 20% back
    hydra-jax run --config=configs/cifar100.py --config.data.ood="('cifar10',)"   # without SVHN

Teachers: 4 Wide ResNets WRN-28-4; students: WRN-28-1. Random crops and flips; the teacher predicts on
just the view that its student sees. SGD with Nesterov momentum, batches of 128, weight decay 5e-4,
200 epochs, 5 of them warm-up to 0.1, then a cosine; Hydra's heads are the last residual block and the
dense layer. All sets are prepared beforehand: `hydra-jax prepare cifar100`, and likewise `cifar10` and
`svhn_cropped`; what `data.ood` names and is not there is refused before the training.
"""

from hydra_jax.config import apply_argument, default_config, residual_recipe


def wide_resnet(width):
  return dict(name='wide_resnet', depth=28, width=width, norm='batch', dtype='float32')


def get_config(argument=None):
  config = default_config()
  config.name = 'cifar100'
  config.data.name = 'cifar100'
  config.data.ood = ('cifar10', 'svhn_cropped')
  config.teacher.members = 4
  residual_recipe(config, wide_resnet(4), wide_resnet(1))
  return apply_argument(config, argument)
