"""The work directory of a run: whose it is, and what is recorded in it."""

from importlib import metadata
import json
from pathlib import Path
import platform

from ml_collections import ConfigDict

from hydra_jax import store
from hydra_jax.data import Data
from hydra_jax.errors import UserError
from hydra_jax.experiment import results

CONFIG = 'config.json'
VERSIONS = 'versions.json'


def versions() -> dict[str, str]:
  """Versions of what the results depend on."""
  packages = ('hydra_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')
  found = {p: metadata.version(p) for p in packages}
  return {'python': platform.python_version(), **found, 'device': results.device(), 'platform': platform.platform()}


def check_workdir(workdir: Path, config: ConfigDict) -> None:
  """Raises a `UserError` unless a work directory is new, empty, or one of this experiment."""
  saved, about = workdir / CONFIG, workdir / VERSIONS
  if about.exists():
    found = store.read_json(about)
    if isinstance(found, dict) and found.get('format', 1) != store.FORMAT:
      raise UserError(f'{workdir} {store.OTHER_FORMAT}: choose another --workdir, or delete that folder')
  if saved.exists():
    try:
      config_then = store.read_json(saved)
      name, data = config_then['name'], config_then['data']['name']
    except (store.Damaged, KeyError, TypeError) as e:
      raise UserError(f'{saved} is damaged: delete it, or choose another --workdir') from e
    for key, old, new in (('name', name, config.name), ('data.name', data, config.data.name)):
      if old != new:
        raise UserError(f"{workdir} holds a run with {key}='{old}', not '{new}': choose another --workdir")
  elif any(p.name not in ('parts', store.LOCK) and not p.name.startswith(store.NEW) for p in workdir.glob('*')):
    raise UserError(f'{workdir} is not empty and not a run: choose another --workdir')


def record(workdir: Path, config: ConfigDict, data: Data) -> None:
  """Saves the resolved config, the versions of what the results depend on, and what the data were taken for."""
  about = {'task': data.task, 'outputs': data.outputs, 'classes': data.classes, 'train_examples': data.train.examples}
  store.replace_text(workdir / 'data.json', json.dumps(about, indent=2))
  store.replace_text(workdir / CONFIG, json.dumps(config.to_dict(), indent=2, sort_keys=True))
  store.replace_text(workdir / VERSIONS, json.dumps({'format': store.FORMAT, **versions()}, indent=2))
