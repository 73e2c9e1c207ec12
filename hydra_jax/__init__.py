"""hydra_jax: ensembles of neural networks, distilled into one network that keeps their disagreement."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hydra_jax.errors import UserError
  from hydra_jax.nets.adapters import from_equinox, from_nnx
  from hydra_jax.nets.cut import Network, grow, multi_head
  from hydra_jax.nets.stages import Stage, chain, from_linen, mlp

__version__ = '0.1.0'

__all__ = [
  'Network',
  'Stage',
  'UserError',
  'chain',
  'from_equinox',
  'from_linen',
  'from_nnx',
  'grow',
  'mlp',
  'multi_head',
]

_MODULES = {
  **dict.fromkeys(('from_equinox', 'from_nnx'), 'nets.adapters'),
  **dict.fromkeys(('Network', 'grow', 'multi_head'), 'nets.cut'),
  **dict.fromkeys(('Stage', 'chain', 'from_linen', 'mlp'), 'nets.stages'),
  'UserError': 'errors',
}


def __getattr__(name: str) -> Any:
  """Imports JAX with the first name that needs it: the command line has to hear of SIGTERM before."""
  if name not in _MODULES:
    raise AttributeError(f"module 'hydra_jax' has no attribute '{name}'")
  return getattr(importlib.import_module(f'hydra_jax.{_MODULES[name]}'), name)
