"""Repetitions of an experiment, and which of them are trained together, as one program."""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass, field, replace
import logging
from pathlib import Path
import time

from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store
from hydra_jax.data import Data, Split, load
from hydra_jax.devices import preemption, processes
from hydra_jax.evaluation import user_metrics
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment.schema import resolve
from hydra_jax.maths.tasks import TASKS, Scores, Task

logger = logging.getLogger(__name__)

# What replicas that are trained together may hold, of examples and predictions.
SMALL = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Replica:
  """One repetition of an experiment.

  Attributes:
    config: The experiment.
    artifacts: The folder of what is trained and computed.
    index: Number of the repetition.
    data: Its data.
    profile: The folder of traces of training; None: there are none.
    parts: Names of the artifacts that were made or reused so far, of all replicas together.
    store: A folder of artifacts that runs share; None: this run shares none.
  """

  config: ConfigDict
  artifacts: Path
  index: int
  data: Data
  profile: Path | None = None
  parts: set[str] = field(default_factory=set)
  store: Path | None = None

  def made_in(self, part: str) -> Path:
    """Where an artifact is made, and its checkpoints are."""
    return (self.store or self.artifacts) / part

  @property
  def task(self) -> Task:
    """Classification or regression, with the metrics of the user's own."""
    return user_metrics.extended(TASKS[self.data.task], self.data.task, self.config.evaluation.metrics)


@dataclass(frozen=True)
class Place:
  """Where a trained network is.

  Attributes:
    folder: Its artifact, a folder under `artifacts`.
    index: Of the replica in it.
    spread: By which its heads are spread, see `maths.calibration`.
  """

  folder: str
  index: int
  spread: float = 1.0


@dataclass(frozen=True)
class Trained:
  """A row of the table, to be evaluated.

  Attributes:
    model: None for teachers of whom only predictions are given.
    key: Says all it depends on.
    scores: `(advance, label_scale) -> {set: scores}`, of every example of every evaluation set that it has predictions
      for; where there is a scale, also those of `Task.calibrated`.
    on_validation: Returns outputs `[H, V, C]` for the validation part, or None where there are none.
    on_test: Returns outputs `[H, N, C]` for the test set, or None where there are none.
    place: Where its artifact is; None where it was not trained here.
  """

  model: Model | None
  key: str
  scores: Callable[[Callable, float | None], dict[str, Scores]]
  on_validation: Callable[[], np.ndarray | None]
  on_test: Callable[[], np.ndarray | None]
  place: Place | None = None


def reuse_or_make(
  replica: Replica, name: str, key: str, what: str, make: Callable[[Path, Path], None], by_all: bool = False
) -> Path:
  """The folder of an artifact: reused if it is there, or else made by `make(new, folder)`.

  It is made by process 0 while others wait, or, with `by_all`, by all processes. `folder` is where it is made.
  """
  folder = replica.artifacts / f'{name}-{key}'
  source = replica.made_in(folder.name)
  replica.parts.add(folder.name)

  def write():
    with store.writing(source) as new:
      make(new, source)

  def take() -> str:
    for place in (folder, source):
      if place.exists():
        store.verify(place)
        logger.info(f'{what}: reused from {place.name}')
        return 'taken'
    return '' if by_all else write() or ''

  def share():
    for place, other in ((source, folder), (folder, source)):
      if not other.exists():
        store.link(place, other)

  with _alone(source, what) if replica.store else contextlib.nullcontext():
    # Of what all make together, all must mean the same.
    if not processes.run_on_main(take, folder.name if by_all else name) and by_all:
      with processes.main_process_context(lambda: store.writing(source)) as new:
        make(Path(new), source)
    if replica.store:
      processes.run_on_main(share, 'share')
  return folder


def _alone(part: Path, what: str) -> contextlib.AbstractContextManager:
  """Holds a part of a store for this run. While another run makes it, this one waits."""
  said = False

  def wait() -> None:
    nonlocal said
    if preemption.asked():
      raise preemption.Preempted('stopped while it waited for another run')
    if not said:
      logger.info(f'{what}: another run makes it, and this one waits')
    said = True
    time.sleep(0.2)

  return processes.main_process_context(lambda: store.part_locked(part, wait))


def grouped(first: Replica, data_dir: str, alone: bool) -> Iterator[list[Replica]]:
  """All replicas of a config, in groups that are trained together; `first` is loaded already.

  Args:
    first: The first replica.
    data_dir: Where the data are.
    alone: Whether each replica is trained by itself.
  """
  config = first.config
  most = 1 if alone else config.execution.replicas_together or _small(first)
  group = [first]
  for index in range(1, config.replicas):
    replica = replace(first, index=index, data=load(config.data, data_dir, index, config.validation))
    if len(group) == most or not _alike(group[0].data, replica.data):
      yield group
      group = []
    group.append(replica)
  yield group


def _small(replica: Replica) -> int:
  """How many replicas are small enough to be trained together."""
  train, config = replica.data.train, replica.config
  if not isinstance(train, Split):
    return 1
  views = max([1, *(resolve(config, name).training.fixed_views for name in config.students)])
  predictions = 4 * config.teacher.members * train.examples * views * replica.data.outputs
  return max(1, SMALL // (train.x.nbytes + train.y.nbytes + predictions))


def _alike(one: Data, other: Data) -> bool:
  """Whether the training sets of two replicas can be stacked."""
  if not (isinstance(one.train, Split) and isinstance(other.train, Split)):
    return False
  return one.train.x.shape == other.train.x.shape
