"""The search for rates: one grid for all methods, training data alone, and the lowest mean NLL."""

import csv

import numpy as np
import pytest

from configs import cifar10
from experiments import search
from hydra_jax.data import toy
from hydra_jax.experiment.config import resolve
from hydra_jax.experiment.schema import default_config


def test_every_method_has_the_same_grid_on_training_data():
  of_digits = search.SEARCHES['digits']
  config, points = search.get_config('digits', of_digits.methods), of_digits.settings
  train, data = toy.digits('train'), search.held_out_digits()
  for name, whole in zip('xy', train, strict=True):
    np.testing.assert_array_equal(np.concatenate([data[name], data[f'{name}_test']]), whole)
  assert config.data.name.endswith('search.py:held_out_digits') and len(data['y']) == 958
  assert not config.data.ood and not config.data.shifts
  assert len(config.students) == len(points) * len(default_config().student)
  for method in default_config().student:
    found = [resolve(config, f'{method}-{i}').training for i in range(len(points))]
    assert [dict(learning_rate=each.learning_rate) for each in found] == points


@pytest.mark.parametrize('name, epochs', [('cifar10-small', 15.0), ('cifar10-long', 60.0)])
def test_inputs_are_searched_on_the_training_split_of_cifar10(name, epochs):
  config = search.get_config(name, search.OF_CIFAR10)
  assert (config.data.train, config.data.test, config.data.ood) == ('train[:90%]', 'train[90%:]', ())
  for method in search.OF_CIFAR10:
    found = [resolve(config, f'{method}-{i}').training for i in range(len(search.INPUTS))]
    assert [dict(augment=each.augment, augment_share=each.augment_share) for each in found] == list(search.INPUTS)
    assert {each.epochs for each in found} == {epochs}


def test_rates_of_small_networks_are_searched_alike_on_the_training_split_of_cifar10():
  """Each method has the same rates, passes and inputs, and the table has the best rate of each."""
  config, points = search.get_config('cifar10-rates', search.OF_RATES), search.RATES
  assert (config.data.train, config.data.test, config.data.ood) == ('train[:90%]', 'train[90%:]', ())
  with open(search.RESULTS / 'cifar10-rates.csv', newline='') as file:
    log = list(csv.DictReader(file))
  assert len(log) == len(points) * len(search.OF_RATES)
  shipped = cifar10.small()
  for method in search.OF_RATES:
    found = [resolve(config, f'{method}-{i}').training for i in range(len(points))]
    assert [dict(learning_rate=each.learning_rate) for each in found] == points
    assert {(each.epochs, each.augment, each.fixed_views) for each in found} <= {
      (10.0, cifar10.VIEWS, views) for views in (0, 10)
    }
    (best,) = [row for row in log if row['method'] == method and row['chosen'] == 'True']
    assert float(best['nll']) == min(float(row['nll']) for row in log if row['method'] == method)
    assert resolve(shipped, method).training.learning_rate == float(best['learning_rate'])


def test_the_lowest_mean_is_chosen():
  nll = {'kd-0': (0.5, 0.1), 'kd-1': (0.2, 0.3), 'hydra-0': (0.4, 0.4), 'hydra-2': (0.1, 0.9)}
  rows = [
    dict(split=split, method=method, replica=i, metric=metric, value=value * scale)
    for method, values in {'ensemble': (9.0, 9.0), **nll}.items()
    for i, value in enumerate(values)
    for split, metric, scale in (('test', 'nll', 1), ('test', 'accuracy', 0.1), ('letters', 'nll', -1))
  ]
  settings = search.SEARCHES['digits'].settings
  found = search.log(settings, rows)
  assert search.log(settings, [*rows, *rows]) == found  # two runs of the same methods
  assert [(row['method'], row['chosen']) for row in found] == [
    ('kd', False),
    ('kd', True),
    ('hydra', True),
    ('hydra', False),
  ]
  assert [row['nll'] for row in found] == [np.mean(values) for values in nll.values()]
  np.testing.assert_allclose([row['nll_error'] for row in found], [0.2, 0.05, 0, 0.4])
  assert found[3] | settings[2] == found[3] and found[3]['rank_correlation'] is None
