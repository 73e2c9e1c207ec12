"""What config files import: the schema with its defaults, and functions that change it."""

from hydra_jax.experiment.config import (
  IMAGES,
  VECTORS,
  apply_argument,
  default_config,
  distilled,
  residual_recipe,
  split_argument,
  update_training,
  variant,
)

__all__ = [
  'IMAGES',
  'VECTORS',
  'apply_argument',
  'default_config',
  'distilled',
  'residual_recipe',
  'split_argument',
  'update_training',
  'variant',
]
