"""Settings of all methods: one search of the same size for each, on training data alone.

    python -m experiments.search digits --output /tmp/search          # learning rates of all methods
    python -m experiments.search cifar10-rates --output /tmp/search   # learning rates of networks of three convolutions
    python -m experiments.search cifar10-small --output /tmp/search   # inputs to distil on, 15 passes
    python -m experiments.search cifar10-long --output /tmp/search    # the same with 60 passes

Most of the training split is trained on, the rest of it gives the scores. The test split and the out-of-domain sets are
not read. Of each method the setting with the lowest mean NLL is the one to write into `configs/`. The log of all
settings goes to `experiments/results/search/`. A search that was stopped continues. `--methods` searches for some
methods alone, in a run beside those of the others, so that several processes can share the work; the log has all.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
import csv
from dataclasses import dataclass
import itertools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from configs import cifar10, digits
from experiments import table_style
from hydra_jax.config import supervised, variant
from hydra_jax.data import toy
from hydra_jax.data.sources import default_data_dir
from hydra_jax.experiment.run import run

Setting = Mapping[str, Any]
RESULTS = Path(__file__).parent / 'results' / 'search'
SCORES = ('nll', 'nll_error', 'rank_correlation', 'accuracy')


@dataclass(frozen=True)
class Search:
  """What is searched.

  Attributes:
    config: The runs without their students; the split that it calls `test` is a part of the training split.
    settings: Those that each method is trained with.
    methods: Of which settings are searched.
  """

  config: Callable[[], ConfigDict]
  settings: Sequence[Setting]
  methods: Sequence[str]


def held_out_digits() -> dict[str, np.ndarray]:
  """The training split of the digits in two parts: four fifths to train on, and a fifth of other writers for scores."""
  x, y = toy.digits('train')
  count = len(x) * 4 // 5
  return {'x': x[:count], 'y': y[:count], 'x_test': x[count:], 'y_test': y[count:]}


def of_digits() -> ConfigDict:
  """The digits, three seeds."""
  config = digits.get_config()
  config.replicas, config.data.name = 3, f'{__file__}:held_out_digits'
  return config


def of_cifar10(epochs: float) -> ConfigDict:
  """The networks of three convolutions, whose students make this number of passes."""
  config = cifar10.small()
  config.data.train, config.data.test = 'train[:90%]', 'train[90%:]'
  config.distillation.update(epochs=epochs, views=0, members_per_step=2)  # mixup mixes the inputs of a step
  return config


def of_rates() -> ConfigDict:
  """The same networks, whose students and single networks make 10 passes."""
  config = cifar10.small()
  config.data.train, config.data.test = 'train[:90%]', 'train[90%:]'
  config.distillation.update(epochs=10.0, views=10)
  for section in supervised(config):
    section.epochs = 10.0
  table_style.add_mean_phases(config)
  return config


OF_MEMBERS = cifar10.VIEWS
CHANGED = (*OF_MEMBERS, 'shuffle', 'mixup')
INPUTS = tuple(
  dict(augment=augment, augment_share=share) for augment, share in ((OF_MEMBERS, 1.0), (CHANGED, 0.25), (CHANGED, 0.5))
)
OF_CIFAR10 = ('kd', 'hydra', 'moments', 'endd')
RATES = [dict(learning_rate=rate) for rate in (1e-3, 3e-3, 1e-2)]
OF_RATES = ('single', 'shallow_ensemble', 'kd', 'endd', 'proxy_endd', 'ced', 'moments', 'dlf', 'hydra')
SEARCHES = {
  'digits': Search(of_digits, RATES, list(digits.get_config().student)),
  'cifar10-rates': Search(of_rates, RATES, OF_RATES),
  'cifar10-small': Search(lambda: of_cifar10(15.0), INPUTS, OF_CIFAR10),
  'cifar10-long': Search(lambda: of_cifar10(60.0), INPUTS, OF_CIFAR10),
}


def get_config(name: str, methods: Sequence[str]) -> ConfigDict:
  """The config of a search, with a student for each method and setting."""
  config, settings = SEARCHES[name].config(), SEARCHES[name].settings
  config.name, config.data.ood, config.data.shifts = f'search-{name}', (), ()
  for method, (place, setting) in itertools.product(methods, enumerate(settings)):
    variant(config, f'{method}-{place}', of=method, **setting)
  config.students = tuple(f'{method}-{place}' for method in methods for place in range(len(settings)))
  return config


def log(settings: Sequence[Setting], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """A row for each method and setting: means over seeds, and whether its NLL is the lowest of the method.

  Args:
    settings: Of the search.
    rows: Of `results.jsonl`.

  Returns:
    Rows with the method, the setting, `SCORES`, and `chosen`, in the order of the methods in `rows`.

  Example:
    >>> settings = [dict(learning_rate=0.001), dict(learning_rate=0.003)]
    >>> row = dict(split='test', replica=0, metric='nll')
    >>> rows = [row | dict(method='kd-0', value=2.0), row | dict(method='kd-1', value=1.0)]
    >>> [(row['method'], row['learning_rate'], row['chosen']) for row in log(settings, rows)]
    [('kd', 0.001, False), ('kd', 0.003, True)]
  """
  found_by: dict[tuple[str, int], dict[str, dict[int, float]]] = {}
  for row in rows:
    method, dash, place = row['method'].rpartition('-')
    if row['split'] == 'test' and dash:  # of a method that two runs have, a replica counts once
      found_by.setdefault((method, int(place)), {}).setdefault(row['metric'], {})[row['replica']] = row['value']
  values = {key: {name: list(each.values()) for name, each in found.items()} for key, found in found_by.items()}
  best: dict[str, float] = {}
  for (method, _), found in values.items():
    best[method] = min(best.get(method, np.inf), np.mean(found['nll']))

  def row_of(method: str, place: int, found: dict[str, list[float]]) -> dict[str, Any]:
    mean = {metric: float(np.mean(found[metric])) if metric in found else None for metric in SCORES}
    count = len(found['nll'])
    mean['nll_error'] = float(np.std(found['nll'], ddof=1) / np.sqrt(count)) if count > 1 else None
    return dict(method=method) | dict(settings[place]) | mean | dict(chosen=mean['nll'] == best[method])

  return [row_of(*key, found) for key, found in values.items()]


def shown(value: Any) -> Any:
  """A value as it stands in the log."""
  if isinstance(value, tuple):
    return '+'.join(value)
  return f'{value:.6g}' if isinstance(value, float) else value


def main() -> None:
  """Searches, and writes the log."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('search', choices=SEARCHES)
  parser.add_argument('--output', type=Path, required=True, help='folder of the runs')
  parser.add_argument('--methods', nargs='+', help='search for these alone')
  options = parser.parse_args()
  search = SEARCHES[options.search]
  methods = options.methods or search.methods
  run(get_config(options.search, methods), options.output / '+'.join(methods)[:100], default_data_dir())
  lines = [line for file in sorted(options.output.glob('*/results.jsonl')) for line in file.read_text().splitlines()]
  rows = log(search.settings, map(json.loads, lines))
  RESULTS.mkdir(parents=True, exist_ok=True)
  with open(RESULTS / f'{options.search}.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: shown(value) for key, value in row.items()} for row in rows)
  for row in rows:
    if row['chosen']:
      print(', '.join(f'{key}={shown(value)}' for key, value in row.items() if key != 'chosen'))


if __name__ == '__main__':
  main()
