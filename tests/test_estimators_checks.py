"""The estimators are estimators of scikit-learn, by its own checks."""

import functools

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from hydra_jax.estimators.scikit_learn import HydraClassifier, HydraRegressor
from hydra_jax.nets.stages import mlp

small = functools.partial(mlp, widths=(16,))
QUICK = dict(members=2, network=small, validation=0, epochs=40, verbose=False)
QUICK['settings'] = {'learning_rate': 0.02, 'batch_size': 20}


@parametrize_with_checks([HydraClassifier(**QUICK), HydraRegressor(**QUICK)])
@pytest.mark.slow
def test_it_is_an_estimator(estimator, check):
  check(estimator)
