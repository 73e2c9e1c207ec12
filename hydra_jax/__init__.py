"""hydra_jax: ensembles of neural networks, distilled into one network that keeps their disagreement.

* `distil`, `train_ensemble`, `evaluate`, `load`: from arrays, and from the folder of a finished run.
* `HydraClassifier`, `HydraRegressor`: the same as estimators of scikit-learn, for arrays and tables.
* `export`: a trained network as one file, StableHLO or ONNX.
* `calibrate`: temperature and conformal scores of a predictor, from held-out labelled examples.
* `save`, `load`, `predict_file`: a folder that is the model, and predictions for files.
* `read_table`, `Columns`: tables, and what their columns become.
* `multi_head`, `grow`, `chain`, `mlp`, `resnet` and others: networks as lists of stages, and the cut.
* `losses`, `prior_networks`, `uncertainty`, `metrics`, `diversity`, `conformal`: modules of functions of arrays.

docs/library.md shows them at work. A name is imported when it is first used. `import hydra_jax` itself imports neither
JAX nor any other library, and sets nothing.

Example:
  >>> import hydra_jax
  >>> network = hydra_jax.multi_head(hydra_jax.mlp(outputs=10), cut=-1, heads=5)
  >>> network.cut, network.heads
  (2, (0, 1, 2, 3, 4))
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from hydra_jax.data.columns import Columns
  from hydra_jax.data.tables import read_table
  from hydra_jax.errors import UserError
  from hydra_jax.estimators.distil import distil
  from hydra_jax.estimators.ensemble import train_ensemble
  from hydra_jax.estimators.scikit_learn import HydraClassifier, HydraRegressor
  from hydra_jax.evaluation import diversity
  from hydra_jax.evaluation.arrays import evaluate
  from hydra_jax.evaluation.calibrated import Calibration, calibrate
  from hydra_jax.evaluation.predictor import Prediction, Predictor
  from hydra_jax.maths import conformal, losses, metrics, prior_networks, uncertainty
  from hydra_jax.methods.base import Fit, Method, MethodContext, Phase
  from hydra_jax.nets.adapters import from_equinox, from_nnx
  from hydra_jax.nets.batch_ensemble import batch_ensemble
  from hydra_jax.nets.cut import Network, grow, multi_head, sampled
  from hydra_jax.nets.stages import Stage, chain, from_linen, mlp
  from hydra_jax.nets.tabular import tabular
  from hydra_jax.nets.zoo import lenet, max_pool, resnet, resnet50, wide_resnet
  from hydra_jax.serving.export import export
  from hydra_jax.serving.loading import load
  from hydra_jax.serving.model_folder import save
  from hydra_jax.serving.predict_files import predict_file

__version__ = '0.2.0'

# Public modules, by the folder that each is in.
_FOLDERS = {
  'diversity': 'evaluation',
  **dict.fromkeys(('conformal', 'losses', 'metrics', 'prior_networks', 'uncertainty'), 'maths'),
}
# Other public names, by the module that defines each.
_MODULES = {
  'UserError': 'errors',
  'Columns': 'data.columns',
  'read_table': 'data.tables',
  'evaluate': 'evaluation.arrays',
  **dict.fromkeys(('Calibration', 'calibrate'), 'evaluation.calibrated'),
  'distil': 'estimators.distil',
  'train_ensemble': 'estimators.ensemble',
  **dict.fromkeys(('HydraClassifier', 'HydraRegressor'), 'estimators.scikit_learn'),
  **dict.fromkeys(('Prediction', 'Predictor'), 'evaluation.predictor'),
  'export': 'serving.export',
  'load': 'serving.loading',
  'save': 'serving.model_folder',
  'predict_file': 'serving.predict_files',
  **dict.fromkeys(('Fit', 'Method', 'MethodContext', 'Phase'), 'methods.base'),
  **dict.fromkeys(('from_equinox', 'from_nnx'), 'nets.adapters'),
  'batch_ensemble': 'nets.batch_ensemble',
  **dict.fromkeys(('Network', 'grow', 'multi_head', 'sampled'), 'nets.cut'),
  **dict.fromkeys(('Stage', 'chain', 'from_linen', 'mlp'), 'nets.stages'),
  'tabular': 'nets.tabular',
  **dict.fromkeys(('lenet', 'max_pool', 'resnet', 'resnet50', 'wide_resnet'), 'nets.zoo'),
}

__all__ = [
  'Calibration',
  'Columns',
  'Fit',
  'HydraClassifier',
  'HydraRegressor',
  'Method',
  'MethodContext',
  'Network',
  'Phase',
  'Prediction',
  'Predictor',
  'Stage',
  'UserError',
  'batch_ensemble',
  'calibrate',
  'chain',
  'conformal',
  'distil',
  'diversity',
  'evaluate',
  'export',
  'from_equinox',
  'from_linen',
  'from_nnx',
  'grow',
  'lenet',
  'load',
  'losses',
  'max_pool',
  'metrics',
  'mlp',
  'multi_head',
  'predict_file',
  'prior_networks',
  'read_table',
  'resnet',
  'resnet50',
  'sampled',
  'save',
  'tabular',
  'train_ensemble',
  'uncertainty',
  'wide_resnet',
]


def __getattr__(name: str) -> Any:
  """Imports JAX with the first name that needs it: the command line has to hear of SIGTERM before."""
  if name in _FOLDERS:
    return importlib.import_module(f'hydra_jax.{_FOLDERS[name]}.{name}')
  if name in _MODULES:
    return getattr(importlib.import_module(f'hydra_jax.{_MODULES[name]}'), name)
  raise AttributeError(f"module 'hydra_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
  return sorted(__all__)
