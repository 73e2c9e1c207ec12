"""What config files import: the schema with its defaults, and functions that change it."""

from hydra_jax.experiment.config import (
  apply_argument,
  distilled,
  residual_recipe,
  split_argument,
  supervised,
  update_training,
  variant,
)
from hydra_jax.experiment.schema import IMAGES, VECTORS, default_config, resolve

__all__ = [
  'IMAGES',
  'VECTORS',
  'apply_argument',
  'default_config',
  'distilled',
  'residual_recipe',
  'resolve',
  'split_argument',
  'supervised',
  'update_training',
  'variant',
]
