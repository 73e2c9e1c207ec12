"""The work directory of a run: whose it is, and what is recorded in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from importlib import metadata
import json
import math
from pathlib import Path
import platform

from ml_collections import ConfigDict

from hydra_jax import store
from hydra_jax.data import Data
from hydra_jax.errors import UserError, look_up
from hydra_jax.experiment import run_report
from hydra_jax.experiment.replicas import Place

CONFIG = 'config.json'
VERSIONS = 'versions.json'
MODELS = 'models.json'
PARTS = 'parts.json'


def versions() -> dict[str, str]:
  """Versions of what the results depend on."""
  packages = ('hydra_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')
  found = {p: metadata.version(p) for p in packages}
  return {'python': platform.python_version(), **found, 'device': run_report.device(), 'platform': platform.platform()}


def check_workdir(workdir: Path, config: ConfigDict) -> None:
  """Raises a `UserError` unless a work directory is new, empty, or one of this experiment."""
  saved = workdir / CONFIG
  if _has_other_format(workdir):
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
  elif any(p.name not in ('artifacts', store.LOCK) and not p.name.startswith(store.NEW) for p in workdir.glob('*')):
    raise UserError(f'{workdir} is not empty and not a run: choose another --workdir')


def _has_other_format(workdir: Path) -> bool:
  """Whether a run was written by a version of hydra_jax whose files have other names or another meaning."""
  about = workdir / VERSIONS
  found = store.read_json(about) if about.exists() else None
  return isinstance(found, dict) and found.get('format', 1) != store.FORMAT


def record(workdir: Path, config: ConfigDict, data: Data) -> None:
  """Saves the resolved config, the versions of what the results depend on, and what the data were taken for."""
  about = {'task': data.task, 'outputs': data.outputs, 'classes': data.classes, 'train_examples': data.train.examples}
  store.replace_text(workdir / 'data.json', json.dumps(about, indent=2))
  store.replace_text(workdir / CONFIG, json.dumps(config.to_dict(), indent=2, sort_keys=True))
  store.replace_text(workdir / VERSIONS, json.dumps({'format': store.FORMAT, **versions()}, indent=2))


def record_overlap(workdir: Path, test_to_train: float) -> None:
  """Adds to what is known of the data how much replicas overlap, see `run_report.overlap`."""
  file = workdir / 'data.json'
  store.replace_text(file, json.dumps({**store.read_json(file), 'test_to_train': test_to_train}, indent=2))


def record_models(workdir: Path, locations: Mapping[str, Sequence[Place]]) -> None:
  """Saves where trained networks are: for each method and replica a folder under `artifacts`, index and spread."""
  found = {name: [astuple(place) for place in places] for name, places in locations.items()}
  store.replace_text(workdir / MODELS, json.dumps(found, indent=1))


def record_parts(workdir: Path, parts: Iterable[str]) -> None:
  """Saves which folders under `artifacts` the run has used."""
  store.replace_text(workdir / PARTS, json.dumps(sorted(parts), indent=1))


def parts_of(workdir: Path) -> set[str]:
  """The folders under `artifacts` that the run used when it was finished last.

  Raises:
    UserError: It was never finished, or the file is damaged.
  """
  file = workdir / PARTS
  if not file.is_file():
    raise UserError(f'{workdir} does not say which parts it uses: run its command again, until it is finished')
  found = store.read_json(file)
  if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
    raise UserError(f'{file} is damaged: run its command again, which writes it')
  return set(found)


def check_format(workdir: Path) -> None:
  """Raises a `UserError` if a run was written by a version whose files are others."""
  if _has_other_format(workdir):
    raise UserError(f'{workdir} {store.OTHER_FORMAT}: run the same command again with another --workdir')


def state_of(place: Path) -> str:
  """`running`, `finished`, or `unfinished`: also where a finished run was begun again with another config."""
  if store.is_locked(place):
    return 'running'
  results = place / 'results.jsonl'  # written at the end of a run, and the config at its start
  is_over = results.is_file() and results.stat().st_mtime_ns >= (place / CONFIG).stat().st_mtime_ns
  return 'finished' if is_over else 'unfinished'


def check_finished(workdir: Path) -> None:
  """Raises a `UserError` unless the results of a run are those of its config."""
  if (state := state_of(workdir)) != 'finished':
    raise UserError(f'the run in {workdir} is {state}, not finished: run its command until it has ended')


def find_model(workdir: Path, method: str, replica: int) -> tuple[Path, Place]:
  """The folder of the artifact of a method, and its place there.

  Raises:
    UserError: It is no folder of a finished run, or there is no such method or replica in it.
  """
  file = workdir / MODELS
  if not file.is_file():
    raise UserError(f'{workdir} is no folder of a finished run: it has no {MODELS}')
  check_format(workdir)
  found = store.read_json(file)
  locations = look_up(found if isinstance(found, dict) else {}, method, f'method of {workdir}')
  if not isinstance(locations, list) or not all(map(_is_location, locations)):
    raise UserError(f'{file} is damaged: run the same command again, which writes it')
  if not 0 <= replica < len(locations):
    raise UserError(
      f"{workdir} has {len(locations)} replicas of '{method}': give replica from 0 to {len(locations) - 1}"
    )
  place = Place(*locations[replica])
  return workdir / 'artifacts' / Path(place.folder).name, place  # never outside


def _is_location(location: object) -> bool:
  match location:
    case [str(name), int(index), float(spread)]:
      return bool(Path(name).name) and index >= 0 and not isinstance(index, bool) and 0 < spread < math.inf
  return False
