"""The table of methods, by the name that `method` has in a config, and methods of the user's own."""

from hydra_jax import user_files
from hydra_jax.errors import UserError, look_up
from hydra_jax.methods.base import Method, NoSettings
from hydra_jax.methods.credal import ced
from hydra_jax.methods.density import ddu
from hydra_jax.methods.distillation import (
  KD,
  BatchEnsemble,
  Hydra,
  LatentBatchEnsemble,
  Temperature,
  batch_ensemble,
  hydra,
  kd,
  latent_batch_ensemble,
  small_ensemble,
)
from hydra_jax.methods.flow_matching import EDFM, edfm
from hydra_jax.methods.gaussian import DLF, dlf
from hydra_jax.methods.moments import Moments, moments
from hydra_jax.methods.prior_networks import EnDD, endd, proxy_endd
from hydra_jax.methods.supervised import (
  MCDropout,
  ShallowEnsemble,
  TabM,
  ensemble,
  mc_dropout,
  shallow_ensemble,
  single,
  tabm,
)

METHODS: dict[str, Method] = {
  'ensemble': Method(ensemble, learns_from='labels'),
  'single': Method(single, learns_from='labels'),
  'shallow_ensemble': Method(shallow_ensemble, ShallowEnsemble, learns_from='labels'),
  'tabm': Method(tabm, TabM, learns_from='labels'),
  'mc_dropout': Method(mc_dropout, MCDropout, learns_from='labels'),
  'ddu': Method(ddu, learns_from='labels', predictive='density'),
  'kd': Method(kd, KD),
  'hydra': Method(hydra, Hydra, matched=True),
  'small_ensemble': Method(small_ensemble, Temperature, matched=True),
  'batch_ensemble': Method(batch_ensemble, BatchEnsemble, matched=True),
  'latent_batch_ensemble': Method(latent_batch_ensemble, LatentBatchEnsemble),
  'endd': Method(endd, EnDD, predictive='prior'),
  'proxy_endd': Method(proxy_endd, NoSettings, predictive='prior'),
  'ced': Method(ced, predictive='credal'),
  'moments': Method(moments, Moments),
  'dlf': Method(dlf, DLF),
  'edfm': Method(edfm, EDFM),
}


def find(name: str) -> Method:
  """The method of a name in a config: a row of the table, or `my_methods.py:geometric_kd` or `package.module:name`.

  Raises:
    UserError: There is no such method.
  """
  if ':' not in name:
    return look_up(METHODS, name, 'method')
  method = user_files.find(name, 'method').value
  if not isinstance(method, Method):
    raise UserError(f"method '{name}' is a {type(method).__name__}: it must be a hydra_jax.Method(phases, settings)")
  return method
