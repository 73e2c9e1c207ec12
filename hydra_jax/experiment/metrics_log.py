"""How training goes, line by line: `metrics.jsonl` in the work directory of a run.

Each line is about the steps since the line before of the same phase. With `config.validation_scores` there are also
lines with `validation`, the scores on the validation part after a step. A run that was killed continues the file: lines
beyond the checkpoint that it continues from are cut off first, and so are those of the phase with older settings.
"""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
import resource
import sys
import time
from typing import Any

import jax
import numpy as np

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.training.loop import Progress

NAME = 'metrics.jsonl'
# Lines of a phase, where it has as many steps. There are more where it is slow, so that one who looks sees it move.
LEAST_LINES, LINES, MOST_SECONDS = 25, 200, 10.0


class MetricsLog:
  """Writes the lines of one phase.

  Args:
    path: The file.
    part: Name of the artifact that is trained. Lines of the same phase and replicas in another part are removed.
    phase: What is trained, as it is shown. Older lines of this phase that are beyond `start` are removed.
    replicas: Numbers of the replicas that are trained together.
    start: Step that training starts from.
    steps: Of the whole phase.
    batch_size: Examples in a step.
    rate: The learning rate, by step.
  """

  def __init__(
    self,
    path: Path,
    part: str,
    phase: str,
    replicas: Sequence[int],
    start: int,
    steps: int,
    batch_size: int,
    rate: Callable[[int], float],
  ):
    """Cuts off what is beyond `start`."""
    self.path, self.steps, self.batch_size, self.rate = path, steps, batch_size, rate
    self.about: dict[str, Any] = {'phase': phase, 'part': part, 'replicas': list(replicas)}
    self._calls: list[Progress] = []
    self._last_step, self._last_time = start, time.monotonic()
    self._scored = {row['step'] for row in _cut(path, self.about, start) if 'validation' in row}

  def add(self, call: Progress) -> None:
    """Takes note of a call of the program, and writes a line when it is time."""
    self._calls.append(call)
    is_time = time.monotonic() - self._last_time > MOST_SECONDS
    if is_time or call.step == self.steps or call.step - self._last_step >= self.steps / LINES:
      self.flush()

  def flush(self) -> None:
    """Writes what was noted since the last line."""
    if not self._calls:
      return
    self._append(summary(self._calls, self.batch_size) | self._now())
    self._last_step, self._last_time, self._calls = self._calls[-1].step, time.monotonic(), []

  def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
    """Writes scores on the validation part after a step, on a line of their own; once, also if it is called again."""
    self.flush()
    if step not in self._scored:
      self._scored.add(step)
      self._append({'step': step, 'steps': self.steps, 'validation': dict(scores)})

  def _append(self, values: dict[str, Any]) -> None:
    store.check_held(self.path)
    with self.path.open('a') as file:
      file.write(json.dumps(self.about | values) + '\n')

  def _now(self) -> dict[str, Any]:
    rate = self.rate(self._calls[-1].step - 1)
    return {'steps': self.steps, 'learning_rate': _rounded(rate), 'memory_mb': memory() // 2**20}


def summary(calls: Sequence[Progress], batch_size: int) -> dict[str, Any]:
  """What several calls of the program have done, as values of a line.

  Returns:
    `step`: the last one. `count`: number of steps. `loss`, `loss_min`, `loss_median`, `loss_max`: of the heads, means
    over steps and replicas. `gradient_norm`: of the mean gradient of about the last ten steps, of all parameters, mean
    over replicas. `examples_per_second`: of one replica, however many heads learn from each. `waiting`: share
    of the time in which the process waited for batches.
  """
  counts, seconds = [call.count for call in calls], sum(call.seconds for call in calls)
  losses_H = np.average([call.losses.mean(axis=0) for call in calls], axis=0, weights=counts)
  values = {
    'loss': losses_H.mean(),
    'loss_min': losses_H.min(),
    'loss_median': np.median(losses_H),
    'loss_max': losses_H.max(),
    'gradient_norm': calls[-1].gradient_norms.mean(),
    'examples_per_second': batch_size * sum(counts) / max(seconds, 1e-9),
    'waiting': min(1.0, sum(call.waited for call in calls) / max(seconds, 1e-9)),
  }
  return {'step': calls[-1].step, 'count': sum(counts)} | {
    name: _rounded(float(value)) for name, value in values.items()
  }


def _rounded(value: float) -> float:
  return float(f'{value:.6g}')


def memory() -> int:
  """Bytes in use on the first device; where it does not say, the most that this process has had in use."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_in_use' in stats:
    return stats['bytes_in_use']
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def read(path: Path) -> list[dict[str, Any]]:
  """All lines of a file, in order; a last line that was not written to its end is left out.

  Raises:
    UserError: Another line is damaged.
  """
  if not path.exists():
    return []
  try:
    text = path.read_text()
    rows = [json.loads(line) for line in text[: text.rfind('\n') + 1].splitlines()]
    if all(isinstance(row, dict) and isinstance(row.get('step'), int) for row in rows):
      return rows
  except ValueError:
    pass
  raise UserError(f'{path} is damaged: delete it, and run the same command again')


def _cut(path: Path, about: dict[str, Any], step: int) -> list[dict[str, Any]]:
  """Removes lines of a phase beyond a step, or with other settings, and a last line that was not written to its end.

  Returns:
    The lines of the phase that are left.
  """
  rows = read(path)
  is_same = lambda row, *keys: all(row.get(key) == about[key] for key in keys)
  is_valid = lambda row: row['step'] <= step and is_same(row, 'part')
  kept = [row for row in rows if is_valid(row) or not is_same(row, 'phase', 'replicas')]
  text = ''.join(json.dumps(row) + '\n' for row in kept)
  if path.exists() and path.read_text() != text:
    store.replace_text(path, text)
  return [row for row in kept if is_same(row, *about)]
