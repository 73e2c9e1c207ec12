"""Experiment trackers: TensorBoard, Weights & Biases, trackio, MLflow, or one of the user's own.

Their libraries are extras, and are imported when a run begins. Variables of a library, such as `WANDB_DIR`, go before
what is passed here. `tracking` says what is sent to them.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import importlib.util
import os
from pathlib import Path
import time
from typing import Any, Protocol

from hydra_jax import user_files
from hydra_jax.errors import UserError, look_up


@dataclass(frozen=True)
class About:
  """What a tracker is told of a run.

  Attributes:
    folder: For files of the tracker. It need not exist.
    project: Name of the config. The runs of a project are compared.
    name: Of the work directory.
    id: Eight hex digits. A run that continues has the same again; one with another config has another.
    config: Numbers and texts by dotted key.
  """

  folder: Path
  project: str
  name: str
  id: str
  config: Mapping[str, Any]


class Tracker(Protocol):
  """Is made by a function of `About`. An error in it ends this tracker, and not the run."""

  def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
    """Takes values after a step, such as `training/loss`. A series is a phase, such as `hydra/members`."""

  def results(self, scores: Mapping[str, float]) -> None:
    """Takes the scores of a run that has ended, such as `results/test/hydra/nll`. It is called once."""

  def close(self, finished: bool) -> None:
    """Is called last. A run that is not finished may continue in another process."""


class _TensorBoard:
  """Event files: a folder for each series, and one for the scores with the config as hyper-parameters."""

  def __init__(self, about: About):
    from tensorboardX import SummaryWriter

    self.config, self.series = dict(about.config), ''
    self.writer: Any = None
    self.open = lambda series: SummaryWriter(str(about.folder / about.id / series), flush_secs=5)

  def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
    if series != self.series:  # one file is open at a time
      self.close(False)
      self.series, self.writer = series, self.open(series)
    for name, value in values.items():
      self.writer.add_scalar(name, value, step)

  def results(self, scores: Mapping[str, float]) -> None:
    with self.open('') as writer:
      writer.add_hparams(self.config, dict(scores), name='results', global_step=0)

  def close(self, finished: bool) -> None:
    if self.writer:
      self.writer.close()
    self.series, self.writer = '', None


class _WandB:
  """A run of Weights & Biases. Its own steps may not go back, so that each series has steps beside its values."""

  def __init__(self, about: About):
    import wandb

    named = os.environ.get
    self.run = wandb.init(
      project=named('WANDB_PROJECT', about.project),
      name=named('WANDB_NAME', about.name),
      dir=named('WANDB_DIR', str(about.folder.parent)),  # the library makes a folder `wandb` there
      id=about.id,
      resume='allow',
      config=dict(about.config),
    )
    self.known = set[str]()

  def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
    if series not in self.known:
      self.known.add(series)
      self.run.define_metric(f'{series}/*', step_metric=f'{series}/step')
    self.run.log({f'{series}/step': step} | _prefixed(series, values))

  def results(self, scores: Mapping[str, float]) -> None:
    self.run.summary.update(dict(scores))

  def close(self, finished: bool) -> None:
    self.run.finish(exit_code=0 if finished else 1)


class _Trackio:
  """A run of trackio, which reads where its files are when it is imported."""

  def __init__(self, about: About):
    own = 'TRACKIO_DIR' not in os.environ
    folder = os.environ.setdefault('TRACKIO_DIR', str(about.folder.absolute()))
    import trackio

    if own:
      del os.environ['TRACKIO_DIR']
    if str(trackio.utils.TRACKIO_DIR) != folder:
      raise UserError('trackio has one folder for all runs of a process: set TRACKIO_DIR to a folder for all of them')
    name = f'{about.name}-{about.id}'
    self.run = trackio.init(project=about.project, name=name, resume='allow', config=dict(about.config))

  def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
    self.run.log(_prefixed(series, values), step=step)

  def results(self, scores: Mapping[str, float]) -> None:
    self.run.log(dict(scores), step=0)

  def close(self, finished: bool) -> None:
    self.run.finish()


class _MLflow:
  """A run of MLflow: on a server, if the library knows one, or in a database."""

  def __init__(self, about: About):
    import mlflow

    self.mlflow, folder = mlflow, about.folder.absolute()
    place, files = None, None
    if not mlflow.is_tracking_uri_set():
      if not _is_installed('sqlalchemy'):
        raise UserError("mlflow has no database here: set MLFLOW_TRACKING_URI, or pip install 'hydra_jax[mlflow]'")
      folder.mkdir(exist_ok=True)
      place, files = f'sqlite:///{folder}/mlflow.db', (folder / 'artifacts').as_uri()
    self.client = mlflow.MlflowClient(tracking_uri=place)
    experiment = os.environ.get('MLFLOW_EXPERIMENT_NAME', about.project)
    with contextlib.suppress(mlflow.MlflowException):  # it is there, maybe made by another process just now
      self.client.create_experiment(experiment, artifact_location=files)
    number = self.client.get_experiment_by_name(experiment).experiment_id
    found = self.client.search_runs([number], f"tags.hydra_jax_id = '{about.id}'")
    run = found[0] if found else self.client.create_run(number, run_name=about.name, tags={'hydra_jax_id': about.id})
    self.run = run.info.run_id
    self.client.update_run(self.run, status='RUNNING')
    params = [mlflow.entities.Param(key, str(value)) for key, value in about.config.items()]
    for first in range(0, 0 if found else len(params), 100):  # a server takes no more at once
      self.client.log_batch(self.run, params=params[first : first + 100])

  def log(self, series: str, step: int, values: Mapping[str, float]) -> None:
    now, metric = int(1000 * time.time()), self.mlflow.entities.Metric
    items = [metric(name, value, now, step) for name, value in _prefixed(series, values).items()]
    for first in range(0, len(items), 1000):
      self.client.log_batch(self.run, metrics=items[first : first + 1000])

  def results(self, scores: Mapping[str, float]) -> None:
    self.log('', 0, scores)

  def close(self, finished: bool) -> None:
    self.client.set_terminated(self.run, 'FINISHED' if finished else 'KILLED')


# By name, what makes it, and the module that it needs. The names are those of the extras in pyproject.toml.
TRACKERS: dict[str, tuple[Callable[[About], Tracker], str]] = {
  'tensorboard': (_TensorBoard, 'tensorboardX'),
  'wandb': (_WandB, 'wandb'),
  'trackio': (_Trackio, 'trackio'),
  'mlflow': (_MLflow, 'mlflow'),
}


def check(names: Sequence[str]) -> None:
  """Raises a `UserError` for a tracker that is unknown, or whose library is not installed."""
  for name in names:
    if user_files.is_name(name):
      user_files.find_function(name, 'tracker')
      continue
    try:
      _, module = look_up(TRACKERS, name, 'tracker')
    except UserError as e:
      raise UserError(f'config.trackers: {e}') from None
    if not _is_installed(module):
      raise UserError(f"config.trackers: {name} is not installed: pip install 'hydra_jax[{name}]'")


def _is_installed(module: str) -> bool:
  spec = importlib.util.find_spec(module)
  return spec is not None and spec.origin is not None  # a folder of files, such as `wandb`, is no library


def begin(name: str, about: About) -> Tracker:
  """The tracker of a name that was checked.

  Raises:
    UserError: It fails, or lacks a method.
  """
  make = TRACKERS[name][0] if name in TRACKERS else user_files.find_function(name, 'tracker')
  with user_files.one_line(f"tracker '{name}'"):
    tracker = make(about)
  for method in ('log', 'results', 'close'):
    if not callable(getattr(tracker, method, None)):
      raise UserError(f"tracker '{name}' has no method {method}: add it, see docs/extending.md")
  return tracker


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
  return {f'{prefix}/{name}'.lstrip('/'): value for name, value in values.items()}
