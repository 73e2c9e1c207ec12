"""hydra_jax: ensembles of neural networks, distilled into one network that keeps their disagreement."""

from hydra_jax.adapters import equinox, nnx
from hydra_jax.cut import Network, grow, hydra
from hydra_jax.errors import UserError
from hydra_jax.stages import Stage, chain, linen, mlp

__version__ = '0.1.0'

__all__ = ['Network', 'Stage', 'UserError', 'chain', 'equinox', 'grow', 'hydra', 'linen', 'mlp', 'nnx']
