"""What processes that act as one must have in common, compared before anything is trained.

Each works out keys, batches and programs by itself. Two that differ in a seed would train a mixture, and save it under
the key of one of them; two that differ in the number of steps would wait for each other for ever.
"""

from collections.abc import Iterator, Mapping
from importlib import metadata
import json
import platform
from typing import Any

import jax
from ml_collections import ConfigDict

from hydra_jax import store, user_files
from hydra_jax.data import Data, fingerprint
from hydra_jax.devices import processes
from hydra_jax.experiment import artifacts, external_predictions, provenance, recipes
from hydra_jax.experiment.schema import method_name, resolve
from hydra_jax.methods.registry import METHODS

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'ml_collections')
# Settings of JAX that change programs or numbers.
JAX_SETTINGS = ('jax_enable_x64', 'jax_default_matmul_precision', 'jax_default_prng_impl', 'jax_threefry_partitionable')
# Between joining and comparing what was asked for lies nothing that takes long.
SECONDS = 300.0


def on_command(command: str, options: Mapping[str, Any]) -> None:
  """Compares what was asked for, and what does it: code, versions and settings."""
  if not processes.joined():
    return
  facts = {'the command': command, 'the source of hydra_jax': provenance.package_digest()}
  facts |= {f'--{name}': str(value) for name, value in options.items()}
  facts |= {name: metadata.version(name) for name in PACKAGES}
  facts |= {name: str(getattr(jax.config, name, None)) for name in JAX_SETTINGS}
  processes.agree({**facts, 'Python': platform.python_version().rpartition('.')[0]}, SECONDS)


def on_configs(configs: Mapping[str, ConfigDict]) -> None:
  """Compares resolved configs, by what stands before their keys in an error, and the user's functions in them."""
  if not processes.joined():
    return
  facts = {'the runs': ', '.join(configs)}
  for name, config in configs.items():
    facts |= {f'{name}{key}': value for key, value in _flat('config', config)}
    own_metrics = dict.fromkeys(config.evaluation.metrics, 'metric')
    for own, what in {**recipes.user_functions(config), **own_metrics}.items():
      facts[f"the source of '{own}'"] = user_files.find(own, what).digest[:12]
    for method in {method_name(config, student) for student in config.students if student in config.student}:
      if method in METHODS:
        facts[f"the source of method '{method}'"] = provenance.definition(METHODS[method].phases)
  processes.agree(facts)


def on_data(config: ConfigDict, data: Data) -> None:
  """Compares all that is read: data sets by their content, given predictions and members."""
  if not processes.joined():
    return  # sets that nobody reads are not loaded for this
  facts = {'the training data': data.fingerprint}
  facts |= {f"the data of '{name}'": evaluation.key() for name, evaluation in data.evaluations.items()}
  for name in {name for student in config.students for name in resolve(config, student).training.unlabelled}:
    facts[f"the data of '{name}'"] = fingerprint(data.others(name))
  if config.teacher.predictions:
    facts['config.teacher.predictions'] = external_predictions.read(config.teacher.predictions).key[:12]
  facts |= {f'the members in {place}': store.digest(artifacts.find(place)) for place in config.teacher.checkpoints}
  processes.agree(facts)


def _flat(where: str, value: Any) -> Iterator[tuple[str, str]]:
  if isinstance(value, ConfigDict):
    for key, each in value.items():
      yield from _flat(f'{where}.{key}', each)
  else:
    yield where, json.dumps(value, default=str)
