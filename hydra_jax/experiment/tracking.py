"""What a run sends to experiment trackers: the lines of `metrics.jsonl`, and the scores of `results.jsonl`.

A thread for each tracker follows the file. So a slow server holds nothing up, one that fails ends no training, and
nothing that is trained depends on trackers. `trackers/` in the work directory says what was sent: a run that continues
sends no step twice, and a tracker that is new gets the lines that are there already.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import json
import logging
from pathlib import Path
import re
import threading
import time
from typing import Any
import uuid

import numpy as np

from hydra_jax import store, user_files
from hydra_jax.experiment import config as configs, metrics_log, provenance, recipes, trackers
from hydra_jax.experiment.replicas import Replica
from hydra_jax.experiment.schema import OF_THE_WORK
from hydra_jax.experiment.trackers import About, Tracker

logger = logging.getLogger(__name__)

FOLDER = 'trackers'
SECONDS = 2.0  # between two looks at the file
PATIENCE, HURRY = 60.0, 5.0  # seconds that a run waits for trackers, when it has ended and when it was stopped


@contextlib.contextmanager
def following(first: Replica, workdir: Path) -> Iterator[None]:
  """A context in which trackers follow what a run writes. If the block succeeds, they get the scores.

  Args:
    first: The first replica, whose config names the trackers.
    workdir: The work directory, which is held.

  Raises:
    UserError: A tracker cannot begin.
  """
  followers: list[_Follower] = []
  finished = False
  try:
    for name in first.config.trackers:
      followers.append(_Follower(name, first, workdir))
    yield
    finished = True
  finally:
    until = time.monotonic() + (PATIENCE if finished else HURRY)
    for follower in followers:
      follower.end(finished)
    for follower in followers:
      follower.join(max(0.1, until - time.monotonic()))
      if follower.is_alive():
        logger.warning(f"tracker '{follower.name}' did not take all in time: the same command sends the rest")


def identity(first: Replica) -> str:
  """Hash of all that makes the curves and the scores of a run. Where it differs, a tracker gets another run."""
  config, data = first.config, first.data
  values = {key: value for key, value in configs.leaves(config) if key.partition('.')[0] not in OF_THE_WORK}
  own = {**recipes.user_functions(config), **dict.fromkeys(config.evaluation.metrics, 'metric')}
  code = [provenance.package_digest(), *(user_files.find(name, what).digest for name, what in own.items())]
  of_data = [data.fingerprint, *(evaluation.key() for evaluation in data.evaluations.values())]
  return store.key_of({'config': values, 'data': of_data, 'code': code})


class _Follower(threading.Thread):
  """Sends lines to one tracker until it is told that the run has ended."""

  def __init__(self, name: str, first: Replica, workdir: Path):
    super().__init__(name=name, daemon=True)
    config, label = first.config, re.sub(r'[^\w.-]', '_', name)
    self.workdir, self.replicas, self.parts = workdir, config.replicas, first.parts
    self.sent = workdir / FOLDER / f'{label}-{identity(first)}.jsonl'
    rows = metrics_log.read(self.sent) or [{'id': uuid.uuid4().hex[:8], 'step': 0}]
    self.last = {row['sent']: row['step'] for row in rows if 'sent' in row}
    self.ended, self.finished, self.seen = threading.Event(), False, (0, 0, 0)
    about = About(
      folder=workdir / label,
      project=clean(config.name),
      name=clean(workdir.absolute().name),
      id=str(rows[0].get('id')),
      config={key: each if isinstance(each, int | float | str) else str(each) for key, each in configs.leaves(config)},
    )
    self.tracker: Tracker = trackers.begin(name, about)
    self.sent.parent.mkdir(exist_ok=True)
    store.replace_text(self.sent, ''.join(json.dumps(row) + '\n' for row in rows))  # a torn last line is left out
    self.start()

  def end(self, finished: bool) -> None:
    """Makes the thread send what is left, and end."""
    self.finished = finished
    self.ended.set()

  def run(self) -> None:
    """Runs in the thread."""
    try:
      while not self.ended.wait(SECONDS):
        self._send_lines()
      self._send_lines()
      if self.finished and 'results' not in self.last:
        rows = map(json.loads, (self.workdir / 'results.jsonl').read_text().splitlines())
        self.tracker.results(scores(rows, self.replicas))
        self._note('results', 1)
      self.tracker.close(self.finished)
    except Exception as e:
      what = f'{type(e).__name__}: {store.one_line(e)}'
      logger.warning(f"tracker '{self.name}' failed, and the run goes on without it ({what})")
      with contextlib.suppress(Exception):
        self.tracker.close(False)

  def _send_lines(self) -> None:
    file = self.workdir / metrics_log.NAME
    if not file.exists() or (now := (*_state(file), len(self.parts))) == self.seen:
      return
    for row in metrics_log.read(file):
      if row.get('part') in self.parts:  # others are of older settings
        series, values = point(row, self.replicas)
        kind = f'{row["part"]} {row["replicas"]} {"validation" in row}'
        if row['step'] > self.last.get(kind, 0):
          self._note(kind, row['step'])  # before it is sent: after a kill, a gap in a curve is better than a step twice
          self.tracker.log(series, row['step'], values)
    self.seen = now

  def _note(self, what: str, step: int) -> None:
    self.last[what] = step
    with self.sent.open('a') as file:
      file.write(json.dumps({'sent': what, 'step': step}) + '\n')


def _state(file: Path) -> tuple[int, int]:
  found = file.stat()
  return found.st_mtime_ns, found.st_size


def point(row: Mapping[str, Any], replicas: int) -> tuple[str, dict[str, float]]:
  """The series of a line of `metrics.jsonl`, and its values.

  Args:
    row: The line.
    replicas: Number of replicas of the run.

  Example:
    >>> point({'phase': 'kd: mean prediction', 'replicas': [1], 'step': 9, 'loss': 0.5}, replicas=2)
    ('kd/mean_prediction/replica_2', {'training/loss': 0.5})
  """
  series, several = row['phase'].replace(': ', '/'), row['replicas']
  if replicas > 1:
    series += f'/replica_{several[0] + 1}' + (f'-{several[-1] + 1}' if len(several) > 1 else '')
  kind = 'validation' if 'validation' in row else 'training'
  about = ('phase', 'part', 'replicas', 'step', 'steps', 'count')
  values = row.get('validation') or {name: value for name, value in row.items() if name not in about}
  return clean(series), {f'{kind}/{name}': value for name, value in values.items()}


def scores(rows: Iterable[Mapping[str, Any]], replicas: int) -> dict[str, float]:
  """Scores by name, from lines of `results.jsonl`: means over replicas and, where there are several, each of them.

  Example:
    >>> scores([{'split': 'rotate:30', 'method': 'kd', 'metric': 'nll', 'replica': 0, 'value': 0.5}], replicas=1)
    {'results/rotate_30/kd/nll': 0.5}
  """
  found: dict[str, list[float]] = {}
  for row in rows:
    name = clean(f'results/{row["split"]}/{row["method"]}/{row["metric"]}')
    found.setdefault(name, []).append(row['value'])
    if replicas > 1:
      found[f'{name}/replica_{row["replica"] + 1}'] = [row['value']]
  return {name: float(np.mean(values)) for name, values in found.items()}


def clean(name: str) -> str:
  """A name that all trackers take.

  Example:
    >>> clean('ensemble of 3')
    'ensemble_of_3'
  """
  return re.sub(r'[^\w/.-]+', '_', name)
