"""hydra_jax: ensembles of neural networks, distilled into one network that keeps their disagreement.

* `distil`, `evaluate`, `load`: from arrays, and from the folder of a finished run.
* `multi_head`, `grow`, `chain`, `mlp`, `resnet` and others: networks as lists of stages, and the cut.
* `losses`, `metrics`, `uncertainty`: the mathematics, as pure functions of arrays.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hydra_jax.errors import UserError
  from hydra_jax.evaluation.arrays import evaluate
  from hydra_jax.evaluation.predictor import Prediction, Predictor
  from hydra_jax.experiment.distil import distil
  from hydra_jax.experiment.loading import load
  from hydra_jax.maths import losses, metrics, uncertainty
  from hydra_jax.methods.base import Method, MethodContext, Phase
  from hydra_jax.nets.adapters import from_equinox, from_nnx
  from hydra_jax.nets.cut import Network, grow, multi_head
  from hydra_jax.nets.stages import Stage, chain, from_linen, mlp
  from hydra_jax.nets.zoo import lenet, resnet, resnet50, wide_resnet

__version__ = '0.1.0'

_MODULES = {
  'UserError': 'errors',
  'evaluate': 'evaluation.arrays',
  'distil': 'experiment.distil',
  **dict.fromkeys(('Prediction', 'Predictor'), 'evaluation.predictor'),
  'load': 'experiment.loading',
  **dict.fromkeys(('losses', 'metrics', 'uncertainty'), 'maths'),
  **dict.fromkeys(('Method', 'MethodContext', 'Phase'), 'methods.base'),
  **dict.fromkeys(('from_equinox', 'from_nnx'), 'nets.adapters'),
  **dict.fromkeys(('Network', 'grow', 'multi_head'), 'nets.cut'),
  **dict.fromkeys(('Stage', 'chain', 'from_linen', 'mlp'), 'nets.stages'),
  **dict.fromkeys(('lenet', 'resnet', 'resnet50', 'wide_resnet'), 'nets.zoo'),
}

__all__ = [
  'Method',
  'MethodContext',
  'Network',
  'Phase',
  'Prediction',
  'Predictor',
  'Stage',
  'UserError',
  'chain',
  'distil',
  'evaluate',
  'from_equinox',
  'from_linen',
  'from_nnx',
  'grow',
  'lenet',
  'load',
  'losses',
  'metrics',
  'mlp',
  'multi_head',
  'resnet',
  'resnet50',
  'uncertainty',
  'wide_resnet',
]


def __getattr__(name: str) -> Any:
  """Imports JAX with the first name that needs it: the command line has to hear of SIGTERM before."""
  if name not in _MODULES:
    raise AttributeError(f"module 'hydra_jax' has no attribute '{name}'")
  module = importlib.import_module(f'hydra_jax.{_MODULES[name]}')
  return importlib.import_module(f'{module.__name__}.{name}') if _MODULES[name] == 'maths' else getattr(module, name)


def __dir__() -> list[str]:
  return sorted(__all__)
