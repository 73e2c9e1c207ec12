"""`hydra-jax sweep --search`: runs whose values Optuna chooses, by validation scores of the runs before.

Trials are kept in Optuna's journal, a file in the folder of the sweep. Several processes add to it. A trial that a
killed process has left is continued by the next process that looks for work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
import functools
import importlib.util
import json
import logging
import math
from pathlib import Path
import re
import shlex
import time
from typing import Any, Literal

import jax
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store, text
from hydra_jax.data import about
from hydra_jax.errors import UserError, closest
from hydra_jax.experiment import compare_runs, recipes, run as runs, sweep
from hydra_jax.experiment.sweep import Point
from hydra_jax.maths.tasks import TASKS

logger = logging.getLogger(__name__)

JOURNAL = 'search.log'
RANGE = re.compile(r'([^\s:,]+?)\.\.([^\s:,]+?)(:log)?')
NUMBER = '{:.6g}'  # values are read in configs and in names of folders


@dataclass(frozen=True)
class Space:
  """The values that a key may take.

  Attributes:
    choices: Texts, of which one is chosen; where there are none, a number between `low` and `high` is.
    low: The least number.
    high: The greatest number.
    log: Whether numbers are chosen by their logarithm.
    whole: Whether numbers are whole.
  """

  choices: tuple[str, ...] = ()
  low: float = 0.0
  high: float = 0.0
  log: bool = False
  whole: bool = False


@dataclass(frozen=True)
class Target:
  """The score that is searched for: a metric of a method on the validation part."""

  method: str
  metric: str


Read = Callable[[Sequence[str]], ConfigDict]
Direction = Literal['minimize', 'maximize']


def spaces_of(arguments: Sequence[str]) -> dict[str, Space]:
  """The values of each key, from texts such as `student.hydra.temperature=1..10:log` and `training.optimizer=adam,sgd`.

  Raises:
    UserError: A text has another form, or a key stands twice.

  Example:
    >>> spaces_of(['config.seed=3,5', 'teacher.learning_rate=1e-4..1e-2:log'])['teacher.learning_rate']
    Space(choices=(), low=0.0001, high=0.01, log=True, whole=False)
  """
  spaces: dict[str, Space] = {}
  for argument in arguments:
    key, equals, values = argument.partition('=')
    key = key.removeprefix('config.').strip()
    if not key or not equals or not values.strip():
      raise UserError(f"--search '{argument}' has no values: write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=A,B")
    if key in spaces:
      raise UserError(f'--search {key} is given twice: give all its values at once')
    spaces[key] = _space(key, values.strip())
  return spaces


def _space(key: str, values: str) -> Space:
  match = RANGE.fullmatch(values)
  if match is None:
    choices = text.split(values)
    if any('..' in choice and not choice.startswith(('"', "'")) for choice in choices):
      raise UserError(f'--search {key}={values} is no range: write {key}=LOW..HIGH or {key}=LOW..HIGH:log')
    if len({*choices}) < len(choices) or len(choices) < 2:
      raise UserError(f'--search {key}={values} must name at least two different values')
    return Space(tuple(choices))
  try:
    low, high = float(match[1]), float(match[2])
  except ValueError:
    raise UserError(f'--search {key}={values}: the ends of a range are numbers, such as 1e-4..1e-2') from None
  if not -math.inf < low < high < math.inf:
    raise UserError(f'--search {key}={values}: the first number must be less than the second, and both finite')
  if match[3] and low <= 0:
    raise UserError(f'--search {key}={values}: a logarithm needs numbers above 0: leave :log out, or begin above 0')
  return Space((), low, high, bool(match[3]))


def target_of(argument: str, config: ConfigDict, data_dir: str) -> tuple[Target, Direction]:
  """The score that is searched for, and whether `minimize` or `maximize`, from a text such as `hydra:nll`.

  Raises:
    UserError: There is no such method or metric, or no validation part.
  """
  method, colon, metric = argument.partition(':')
  found = about(config.data, data_dir, config.validation)
  if not found.has_validation:
    raise UserError(
      '--search chooses by scores on the validation part, and these data have none: set config.validation to 0.1, or '
      'use --grid'
    )
  methods = [name for name, _ in recipes.recipes_in(config, found.task, found.outputs)]
  better = {name: word for name, (_, word, *_) in TASKS[found.task].headline.items() if word}
  # These are of the fitted temperature, and of the ensemble's predictions for test inputs.
  better = {name: word for name, word in better.items() if name not in ('nll_calibrated', 'rank_correlation')}
  for what, names in ((method, methods), (metric if colon else 'nll', better)):
    if what not in names:
      near = closest(what, names)
      hint = f"did you mean '{near}'?" if near else f'choose one of: {", ".join(names)}'
      raise UserError(f"--target={argument}: there is no '{what}' here: {hint}")
  return Target(method, metric or 'nll'), 'maximize' if better[metric or 'nll'] == 'high' else 'minimize'


def checked(spaces: Mapping[str, Space], read: Read) -> dict[str, Space]:
  """Checks each choice, and both ends of each range, with the other values of the config.

  Returns:
    The same values, with `whole` where the key takes whole numbers.

  Raises:
    UserError: A value is not legal; a range of numbers that are not whole is for a key that takes whole ones.
  """
  found = {}
  for key, space in spaces.items():
    if key == sweep.SEED or key == 'replicas':
      raise UserError(f'--search {key}: this is no setting to choose by scores: give it as --config.{key}')
    ends = space.choices or [NUMBER.format(end) for end in (space.low, space.high)]
    first, *_ = sweep.points_of({key: ends}, read)
    # A key that a section inherits has a value, and so a type, only where it is set.
    value = functools.reduce(lambda section, name: section[name], key.split('.'), first.config)
    found[key] = replace(space, whole=isinstance(value, int) and not isinstance(value, bool) and not space.choices)
  return found


def ask(trial: Any, spaces: Mapping[str, Space]) -> dict[str, str]:
  """The values of one of Optuna's trials, see `texts_of`. Values that it has already stay."""
  for key, space in spaces.items():
    if space.choices:
      trial.suggest_categorical(key, space.choices)
    elif space.whole:
      trial.suggest_int(key, int(space.low), int(space.high), log=space.log)
    else:
      trial.suggest_float(key, space.low, space.high, log=space.log)
  return texts_of(trial.params, spaces)


def texts_of(values: Mapping[str, Any], spaces: Mapping[str, Space]) -> dict[str, str]:
  """Values as a run is given them, in the order of the search.

  Example:
    >>> texts_of({'teacher.learning_rate': 0.000123456789}, {'teacher.learning_rate': Space((), 1e-4, 1e-2)})
    {'teacher.learning_rate': '0.000123457'}
  """
  return {key: NUMBER.format(value) if isinstance(value := values[key], float) else str(value) for key in spaces}


def check_installed() -> None:
  """Raises `UserError` where Optuna is not installed."""
  if importlib.util.find_spec('optuna') is None:
    raise UserError("--search needs Optuna: pip install 'hydra_jax[optuna]'")


class _NoLock:
  """A killed process would leave a lock of Optuna's. The journal is written under one that it cannot leave."""

  def acquire(self) -> bool:
    """Is always granted."""
    return True

  def release(self) -> None:
    """Does nothing."""


class Study:
  """The trials of a search, which several processes share.

  Args:
    folder: Of the sweep.
    key: Stands for everything but the number of trials. Trials of another key are not read.
    seed: Of the choices. Trial n depends on it, on n, and on the trials that are finished.
    direction: `minimize` or `maximize`.
  """

  def __init__(self, folder: Path, key: str, seed: int, direction: Direction):
    """Makes the journal if it is not there."""
    import optuna
    from optuna.storages import journal

    self.optuna, self.folder, self.seed = optuna, folder, seed
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    file = str(folder / JOURNAL)
    with self._alone():
      no_lock: Any = _NoLock()
      backend = journal.JournalFileBackend(file, lock_obj=no_lock)
      storage = optuna.storages.JournalStorage(backend)
      self.study = optuna.create_study(storage=storage, study_name=key, direction=direction, load_if_exists=True)

  def _alone(self):
    return store.part_locked(self.folder / 'search', lambda: time.sleep(0.1))

  def next(
    self, count: int, spaces: Mapping[str, Space], make: Callable[[Mapping[str, str]], Point], skip: set[int]
  ) -> tuple[int, Point] | None:
    """A trial to work on, `(number, point)`: one that was left, or a new one; None if there is no more.

    Args:
      count: Number of trials.
      spaces: Values by key.
      make: The point of some values.
      skip: Numbers of trials that are not taken.
    """
    with self._alone():
      trials = self.study.get_trials(deepcopy=False)
      for frozen in trials:
        if frozen.state == self.optuna.trial.TrialState.RUNNING and frozen.number not in skip:
          point = make(ask(self.optuna.trial.Trial(self.study, frozen._trial_id), spaces))
          if not store.is_locked(self.folder / point.name):
            return frozen.number, point
      if len(trials) >= count:
        return None
      words = np.random.SeedSequence([self.seed, len(trials)]).generate_state(1)
      self.study.sampler = self.optuna.samplers.TPESampler(seed=int(words[0]), constant_liar=True)
      trial = self.study.ask()
      return trial.number, make(ask(trial, spaces))

  def tell(self, number: int, score: float | None) -> None:
    """Notes the score of a trial, or None where its run failed."""
    with self._alone():
      if score is None or not math.isfinite(score):
        self.study.tell(number, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)
      else:
        self.study.tell(number, score, skip_if_finished=True)

  def scored(self) -> list[Any]:
    """The trials that have a score, by number."""
    return self.study.get_trials(states=(self.optuna.trial.TrialState.COMPLETE,))

  def running(self) -> int:
    """Number of trials that are not finished."""
    return len(self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.RUNNING,)))


def run(
  spaces: Mapping[str, Space],
  count: int,
  target: Target,
  direction: Direction,
  config: ConfigDict,
  read: Read,
  folder: Path,
  shared: Path,
  data_dir: str,
  command: Sequence[str],
) -> None:
  """Makes trials until there are `count` of them, writes the table, and says which is the best.

  Args:
    spaces: Values by key.
    count: Number of trials, of all processes together.
    target: The score that is searched for.
    direction: `minimize` or `maximize`.
    config: Of the experiment.
    read: `overrides -> config`.
    folder: Where each trial has a folder.
    shared: Where runs share what they train.
    data_dir: Where data sets are.
    command: That makes a run of the experiment, to which the best values are added.

  Raises:
    UserError: No trial has a score.
  """
  make = lambda values: sweep.points_of({key: [value] for key, value in values.items()}, read)[0]
  (digest,) = sweep.keys_of([Point('', {}, config)], data_dir).values()
  asked = [digest, {key: vars(space) for key, space in spaces.items()}, vars(target)]
  study = Study(folder, store.key_of({'search': asked}), config.seed, direction)
  done: set[int] = set()
  while (found := study.next(count, spaces, make, done)) is not None:
    number, point = found
    logger.info(f'--- trial {number + 1} of {count}: {point.name}')
    try:
      study.tell(number, _score(point, target, folder, shared, data_dir))
    except store.InUse:
      pass
    except UserError as e:
      logger.warning(f'trial {number + 1} failed: {e}')
      study.tell(number, None)
    finally:
      done.add(number)
      jax.clear_caches()
  trials = study.scored()
  if not trials:
    raise UserError(f'no trial has a score: the lines above say why; {folder} has what was made')
  trials.sort(key=lambda trial: trial.value if direction == 'minimize' else -trial.value)
  points = [make(texts_of(trial.params, spaces)) for trial in trials]
  ranges = {key: space.log for key, space in spaces.items() if not space.choices}
  sweep.report([*{point.name: point for point in points}.values()], folder, ranges)
  if left := study.running():
    logger.info(f'trials that other processes still make: {left}. The last of them writes the table of all')
  best = trials[0]
  values = [f'--config.{key}={value}' for key, value in points[0].values.items()]
  score = f'{target.metric} of {target.method} on the validation part: {best.value:.5g}'
  logger.info(f'best of {len(trials)} trials with a score, number {best.number + 1}, {score}')
  logger.info(shlex.join([*command, *values]))


def _score(point: Point, target: Target, folder: Path, shared: Path, data_dir: str) -> float:
  """Makes the run of a trial, and reads its score: the mean over replicas."""
  place = folder / point.name
  (key,) = sweep.keys_of([point], data_dir).values()
  if not sweep.is_finished(place, key):
    runs.run(point.config, place, data_dir, shared=shared)
    store.replace_text(place / sweep.POINT, json.dumps(key))
  values = compare_runs.read(place, point.name).results.values
  return float(np.mean([*values['validation', target.method, target.metric].values()]))
