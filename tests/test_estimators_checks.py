"""The estimators are estimators of scikit-learn, by its own checks."""

from dataclasses import dataclass

import jax
import pytest
from sklearn.ensemble import RandomForestRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from hydra_jax import HydraClassifier, HydraRegressor, mlp

WHY = 'training in batches depends on how many rows there are, so that a row of weight 2 is not a row twice'
ROUNDING = 'float32 is rounded in another way where another number of rows is computed at once'
EXPECTED = {
  'check_sample_weight_equivalence_on_dense_data': WHY,
  **dict.fromkeys(('check_methods_subset_invariance', 'check_methods_sample_order_invariance'), ROUNDING),
}


@dataclass(frozen=True)
class Small:
  """A small network. The names of tests show it, and must be the same in each process of pytest."""

  def __call__(self, outputs):
    return mlp(outputs, widths=(16,))


QUICK = dict(
  members=2,
  network=Small(),
  validation=0,
  epochs=40,
  settings={'learning_rate': 0.02, 'batch_size': 20, 'augment': ()},
  verbose=False,
)
# The classifier trains an ensemble and distils it. The regressor distils a forest.
ESTIMATORS = [HydraClassifier(**QUICK), HydraRegressor(RandomForestRegressor(5, random_state=0), **QUICK)]


@pytest.fixture(scope='module', autouse=True)
def compiled_once(tmp_path_factory):
  """Checks fit the same few shapes again and again."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(names, (str(tmp_path_factory.mktemp('compiled')), 0.0)):
    jax.config.update(name, value)
  yield
  for name, value in zip(names, before):
    jax.config.update(name, value)


@pytest.mark.slow
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda estimator: EXPECTED)
def test_it_is_an_estimator(estimator, check):
  check(estimator)
