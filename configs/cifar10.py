"""CIFAR-10 with CIFAR-100 as out-of-domain data: the paper's setting, ResNet-20 and 50 members.

    hydra-jax run --config=configs/cifar10.py                      # an accelerator's work
    hydra-jax run --config=configs/cifar10.py:wrn28_1,members=4    # Wide ResNet WRN-28-1
    hydra-jax run --config=configs/cifar10.py:small                # 10 members of three convolutions
    hydra-jax run --config=configs/cifar10.py:quick                # 2,000 images, 4 members, 4 epochs, on a CPU

Random crops and flips for teachers and students; the teacher predicts on just the view that its
student sees. Hydra's heads are the last residual block and the dense layer. SGD with Nesterov
momentum, weight decay 5e-4, 200 epochs, 5 of them warm-up to 0.1, then a cosine.

`small` has members of three convolutions of stride 2 (32-64-128), trained for 10 passes with AdamW. Students make 15
passes. The members predict once on 15 views of each image, one for each pass, and all students learn from these: ten
members that predict in each step would take most of the time on a CPU.

Test images are also corrupted, by four of the kinds of CIFAR-10-C, computed here: these are not its scores. Where
its files are in DATA_DIR/CIFAR-10-C, `--config.data.shifts="('CIFAR-10-C/fog:5', …)"` evaluates on them.
"""

from itertools import product
from typing import Any

from ml_collections import ConfigDict

from hydra_jax.config import (
  apply_argument,
  default_config,
  residual_recipe,
  split_argument,
  supervised,
  update_training,
)
from hydra_jax.errors import UserError

NETWORKS = {
  'resnet20': dict(name='resnet', depth=20, width=16, norm='batch', dtype='float32'),
  'wrn28_1': dict(name='wide_resnet', depth=28, width=1, norm='batch', dtype='float32'),
}
SMALL = dict(name='cnn', channels=(32, 64, 128), dtype='float32')
# Three halves of the FLOPs of a member: its features serve all heads.
SMALL_STUDENT = dict(name='cnn', channels=(40, 80, 160), dtype='float32')
VIEWS = ('crop', 'flip')  # of the members of `small`, and so of its students
CORRUPTIONS = ('gaussian_noise', 'defocus_blur', 'contrast', 'pixelate')


def get_config(argument=None):
  words = split_argument(argument)
  network, *more = [word for word in words if word in NETWORKS] or ['resnet20']
  if more:
    raise UserError(f'{network} and {more[0]} are two networks: name one')
  quick = 'quick' in words
  if 'small' in words:
    return apply_argument(small(), argument, words=('small',))
  config = default_config()
  config.name = f'cifar10-{network}' + ('-quick' if quick else '')
  config.data.name = 'cifar10'
  config.data.ood = ('cifar100[:1000]' if quick else 'cifar100', 'noise')
  kinds, severities = (CORRUPTIONS[:2], (1, 3, 5)) if quick else (CORRUPTIONS, (1, 2, 3, 4, 5))
  config.data.shifts = tuple(f'{kind}:{severity}' for kind, severity in product(kinds, severities))
  config.teacher.members = 4 if quick else 50
  short: dict[str, Any] = dict(epochs=4.0, hydra_epochs=6.0, warmup_epochs=1.0) if quick else {}
  residual_recipe(config, NETWORKS[network], NETWORKS[network], **short)
  if quick:
    config.data.train = 'train[:2000]'
    config.data.test = 'test[:1000]'
  return apply_argument(config, argument, words=(*NETWORKS, 'quick'))


def small():
  """The whole set, with members and students of three convolutions."""
  config = default_config()
  config.name = 'cifar10-small'
  config.data.name = 'cifar10'
  config.data.ood = ('cifar100',)
  config.data.shifts = tuple(f'{kind}:{severity}' for kind, severity in product(CORRUPTIONS, (1, 3, 5)))
  config.teacher.members = 10
  config.network.teacher, config.network.student = ConfigDict(SMALL), ConfigDict(SMALL_STUDENT)
  update_training(
    config, epochs=10.0, optimizer='adamw', learning_rate=3e-3, weight_decay=1e-2, warmup_epochs=0.5, augment=VIEWS
  )
  config.distillation.update(epochs=15.0, views=15)
  config.student.moments.learning_rate = 1e-2  # the best in `experiments.search cifar10-rates`, as 3e-3 of the others
  for section in supervised(config):
    section.epochs = 15.0  # as many as the students of members
  config.students = ('single', 'kd', 'hydra', 'endd', 'moments')
  return config
