"""Settings of training that all networks share: the teacher's members and the students."""

from dataclasses import dataclass

from hydra_jax.settings import (
  COUNT,
  COUNT_OR_0,
  DISTINCT_NAMES,
  NAMES,
  NOT_NEGATIVE,
  POSITIVE,
  SHARE_OVER_0,
  number,
  one_of,
  setting,
)
from hydra_jax.training.optimizers import OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class TrainingSettings:
  """How a network is trained."""

  epochs: float = setting(20.0, POSITIVE, 'Passes over the training split.')
  batch_size: int = setting(128, COUNT, 'Examples in a step.')
  optimizer: str = setting('adam', one_of(OPTIMIZERS, 'optimizer'), 'SGD has Nesterov momentum 0.9.')
  learning_rate: float = setting(1e-3, POSITIVE, 'The highest rate.')
  schedule: str = setting('cosine', one_of(SCHEDULES, 'schedule'), 'How the rate falls after the warm-up.')
  warmup_epochs: float = setting(0.0, NOT_NEGATIVE, 'Passes in which the rate rises from 0.')
  weight_decay: float = setting(0.0, NOT_NEGATIVE, 'adamw: decoupled. sgd: added to the gradient. adam: none.')
  augment: tuple[str, ...] = setting(
    (),
    NAMES,
    'Changes of inputs: crop, flip, cutout, shuffle, mixup, noise, scale. Students that learn from members also take '
    'ods and conf_ods. The teacher predicts on the changed inputs in the same step.',
  )
  augment_share: float = setting(1.0, SHARE_OVER_0, 'Probability with which each of these changes an input.')
  unlabelled: tuple[str, ...] = setting(
    (),
    DISTINCT_NAMES,
    'Other sets whose training inputs a student also sees, such as cifar10[:10000]. Only for students that learn from '
    'members.',
  )
  members_per_step: int = setting(
    0,
    COUNT_OR_0,
    'Members, drawn at random, from which a step learns, and with them the heads that learn from one member each; 0: '
    'all. Only for students that learn from members.',
  )
  folds: int = setting(
    0,
    number(', 0 or at least 2', lambda v: v == 0 or v >= 2, whole=True),
    'K: a student learns from members that have not seen the example. Each member is trained K more times, each time '
    'without another K-th of the training examples. 0: it learns from the members themselves. Only for students that '
    'learn from members.',
  )
  views: int = setting(
    0,
    COUNT_OR_0,
    'V: the members predict once on V changed views of each training input, and all students with the same changes '
    'learn from these. Pass number p shows view p mod V. 0: the members predict in each step, on a new view. Only for '
    'students that learn from members.',
  )

  @property
  def fixed_views(self) -> int:
    """Number of views of each input that are known before training; 0 where inputs are not changed."""
    return self.views if self.augment else 0
