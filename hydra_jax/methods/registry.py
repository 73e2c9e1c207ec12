"""The table of methods, by the name that `method` has in a config."""

from hydra_jax.methods.base import Method
from hydra_jax.methods.distillation import batch_ensemble, hydra, kd, small_ensemble
from hydra_jax.methods.gaussian import dlf
from hydra_jax.methods.prior_networks import endd, proxy_endd
from hydra_jax.methods.supervised import ensemble, mc_dropout, single

METHODS: dict[str, Method] = {
  'single': Method(single),
  'ensemble': Method(ensemble),
  'mc_dropout': Method(mc_dropout),
  'kd': Method(kd),
  'hydra': Method(hydra, matched=True),
  'small_ensemble': Method(small_ensemble, matched=True),
  'batch_ensemble': Method(batch_ensemble, matched=True),
  'endd': Method(endd, 'prior'),
  'proxy_endd': Method(proxy_endd, 'prior'),
  'dlf': Method(dlf),
}
