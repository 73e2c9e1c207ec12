"""Tables: our ensemble and student beside estimators of other libraries, with equal time.

    python -m experiments.estimators [--quick] [--only SET ...] [--splits N] [--workdir DIR]
    python -m experiments.estimators --timings [--only SET ...] [--workdir DIR]

Sets are those of scikit-learn that need no network, and all UCI sets. Splits are random, 80% for training, stratified
in classification.

* Ours, `HydraClassifier` and `HydraRegressor`, run with defaults as shipped, and without a search. One `fit` trains the
  ensemble (`ensemble`) and its student (`student`).
* Each rival has the time that this `fit` took on the same split. It searches its space (`experiments.rivals`) at
  random: the default of the library first, which is always finished, then others while there is time, 24 at most. The
  last one may end later. Configurations are compared by out-of-bag rows, cross-validation, or a validation part of the
  training rows. The best one is fitted to all training rows. No choice sees a test row.
* `student_of_forest` is our estimator with the random forest of this search as its teacher.

Each row is written to rows.jsonl in the work directory when it is there: a killed run goes on where it stopped. Splits
come one after another, so that a run that is stopped has the first splits of all sets. `--timings` measures how long
predictions take on the first split, when the machine does nothing else, and needs the rows and models of a run before.
Both write tables and a figure to experiments/results/estimators, those of `--quick` to the work directory.

`bde`: pip install -e ".[bench]". Without it, no row of it is added, and where there is none, the table says why.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
import json
import logging
import os
from pathlib import Path
import shutil
import time
from typing import Any
import warnings

import numpy as np

from experiments import estimators_tables as tables, rivals
from hydra_jax import progress
from hydra_jax.data import uci
from hydra_jax.errors import UserError, look_up
from hydra_jax.report.tables import markdown

# Largest last, as they take longest.
SETS = ('wine', 'breast_cancer', 'diabetes', 'digits')
SETS += tuple(f'uci/{name}' for name in ('bostonHousing', 'energy', 'concrete', 'wine-quality-red', 'kin8nm'))
SETS += tuple(f'uci/{name}' for name in ('power-plant', 'protein-tertiary-structure'))
CLASSIFICATION = ('wine', 'breast_cancer', 'digits')
OURS = ('student', 'ensemble')
METHODS = (*OURS, 'forest', 'student_of_forest', 'boosting', 'mlp', 'bde', 'gaussian_process')
SPLITS, TEST_SHARE = 5, 0.2
# A set of which one split has to do.
ONE_SPLIT = ('uci/protein-tertiary-structure',)
RESULTS = Path(__file__).parent / 'results' / 'estimators'
ROWS, TIMINGS = 'rows.jsonl', 'timings.jsonl'
QUICK_ROWS, QUICK_SECONDS = 120, 0.5
QUICK_SETTINGS: dict[str, Any] = dict(members=3, epochs=4)
# Seconds over which a prediction is repeated, and the least number of calls.
STRETCH, LEAST_CALLS = 1.0, 7

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
  """A split of a set: classes counted from 0, or targets."""

  task: str
  x: np.ndarray
  y: np.ndarray
  x_test: np.ndarray
  y_test: np.ndarray


def task_of(name: str) -> str:
  """Of a set."""
  return 'classification' if name in CLASSIFICATION else 'regression'


@functools.cache
def load(name: str, data_dir: str) -> tuple[np.ndarray, np.ndarray]:
  """All rows of a set, `[N, D]` and `[N]`."""
  from sklearn import datasets

  source, _, own = name.rpartition('/')
  if source == 'uci':
    arrays = uci.load_all(own, data_dir)
    return arrays['features'].astype(np.float64), arrays['target'].astype(np.float64)
  return getattr(datasets, f'load_{own}')(return_X_y=True)


def split_of(name: str, number: int, data_dir: str, most: int | None = None) -> Split:
  """A random split, of `most` rows at most."""
  from sklearn.model_selection import train_test_split

  x, y = load(name, data_dir)
  labels = task_of(name) == 'classification'
  if most is not None and len(x) > most:
    x, _, y, _ = train_test_split(x, y, train_size=most, random_state=0, stratify=y if labels else None)
  parts = train_test_split(x, y, test_size=TEST_SHARE, random_state=number, stratify=y if labels else None)
  return Split(task_of(name), parts[0], parts[2], parts[1], parts[3])


# ---------------------------------------------------------------- our estimators


def make_ours(task: str, seed: int, quick: bool, teacher: Any = None) -> Any:
  """Our estimator, as shipped."""
  import hydra_jax

  kind = hydra_jax.HydraClassifier if task == 'classification' else hydra_jax.HydraRegressor
  return kind(teacher=teacher, random_state=seed, verbose=False, **(QUICK_SETTINGS if quick else {}))


def our_forecast(predictor: Any, x: np.ndarray) -> rivals.Forecast:
  """What a predictor of ours predicts. Where it is calibrated, its sets and intervals are conformal."""
  found = predictor.predict(x)
  if predictor.task == 'classification':
    p = found.mean.astype(np.float64)
    p /= p.sum(axis=1, keepdims=True)
    if predictor.calibration is None:
      return rivals.classes(p)
    return rivals.Forecast(p, predictor.predict_set(x, rivals.COVERAGE))
  interval = predictor.predict_interval(x, rivals.COVERAGE)[:, 0]
  return rivals.Forecast(found.members[..., 0], interval, found.member_variances[..., 0])


def model_folder(workdir: Path, name: str, method: str) -> Path:
  """Where a model of the first split is kept for `--timings`."""
  return workdir / 'models' / f'{name.replace("/", "-")}-{method}'


def saved(predictor: Any, folder: Path) -> float:
  """Saves a model. Returns its bytes."""
  import hydra_jax

  shutil.rmtree(folder, ignore_errors=True)
  folder.parent.mkdir(parents=True, exist_ok=True)
  hydra_jax.save(predictor, folder)
  return float(sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()))


# ---------------------------------------------------------------- rows


def read_rows(path: Path) -> list[Row]:
  """Rows of a file. A last line that was not written to its end is cut off."""
  if not path.exists():
    return []
  text = path.read_bytes()
  whole = text[: text.rfind(b'\n') + 1]
  if whole != text:
    path.write_bytes(whole)
  return [json.loads(line) for line in whole.splitlines()]


def append(path: Path, row: Row) -> None:
  """Adds a row, which is on the disk when this returns."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a') as file:
    file.write(json.dumps(row) + '\n')
    file.flush()
    os.fsync(file.fileno())


def planned(sets: Sequence[str], splits: int, methods: Sequence[str]) -> list[tuple[str, int, str]]:
  """All (set, split, method), the first splits of all sets before the second ones."""
  numbered = [(name, number) for number in range(splits) for name in sets if number == 0 or name not in ONE_SPLIT]
  return [(name, number, method) for name, number in numbered for method in methods]


def key_of(row: Row) -> tuple[str, int, str]:
  """What a row is of."""
  return row['set'], row['split'], row['method']


@dataclass(frozen=True)
class Run:
  """Where a run is, and whether it is to take seconds."""

  workdir: Path
  data_dir: str
  quick: bool = False

  def rows(self) -> dict[tuple[str, int, str], Row]:
    """Those that are there, by what they are of."""
    return {key_of(row): row for row in read_rows(self.workdir / ROWS)}

  def split(self, name: str, number: int) -> Split:
    """See `split_of`."""
    return split_of(name, number, self.data_dir, QUICK_ROWS if self.quick else None)


def measure(run: Run, name: str, number: int, method: str) -> list[Row]:
  """Fits a method and scores it on the test rows."""
  split = run.split(name, number)
  seconds = 0.0 if method in OURS else run.rows()[name, number, 'student']['seconds']
  about = {'set': name, 'split': number, 'task': split.task, 'train': len(split.x), 'test': len(split.x_test)}
  rows_of = _ours if method in OURS else _student_of_forest if method == 'student_of_forest' else _rival
  return [about | row for row in rows_of(run, split, name, number, method, seconds)]


def _ours(run: Run, split: Split, name: str, number: int, method: str, seconds: float) -> list[Row]:
  """The ensemble and its student, which one `fit` makes."""
  started = time.perf_counter()
  model = make_ours(split.task, number, run.quick).fit(split.x, split.y)
  seconds = time.perf_counter() - started
  predictors = {'student': model.predictor_, 'ensemble': model.ensemble_}
  return [_row(run, split, name, number, each, predictor, seconds) for each, predictor in predictors.items()]


def _student_of_forest(run: Run, split: Split, name: str, number: int, method: str, seconds: float) -> list[Row]:
  """The student of the forest that was found, which is fitted once more."""
  params = run.rows()[name, number, 'forest']['params']
  forest = rivals.fitted('forest', split.task, split.x, split.y, number, seconds, params).model
  started = time.perf_counter()
  model = make_ours(split.task, number, run.quick, forest).fit(split.x, split.y)
  return [_row(run, split, name, number, method, model.predictor_, time.perf_counter() - started)]


def _row(run: Run, split: Split, name: str, number: int, method: str, predictor: Any, seconds: float) -> Row:
  """Scores of a predictor of ours."""
  folder = model_folder(run.workdir, name, method if number == 0 else f'{method}-later')
  bytes_ = saved(predictor, folder)
  if number:
    shutil.rmtree(folder)
  found = rivals.scores(our_forecast(predictor, split.x_test), split.y_test)
  return {'method': method, 'seconds': seconds, 'bytes': bytes_, 'tried': 1, 'params': {}} | found


def _rival(run: Run, split: Split, name: str, number: int, method: str, seconds: float) -> list[Row]:
  """A method of another library."""
  budget = min(seconds, QUICK_SECONDS) if run.quick else seconds
  started = time.perf_counter()
  found = rivals.fitted(method, split.task, split.x, split.y, number, budget)
  row = {'method': method, 'seconds': time.perf_counter() - started, 'bytes': rivals.size(found.model)}
  row |= {'tried': found.tried, 'params': dict(found.params)}
  return [row | rivals.scores(rivals.forecast(method, split.task, found, split.x_test), split.y_test)]


def run_all(run: Run, sets: Sequence[str], splits: int, methods: Sequence[str]) -> None:
  """Measures what is not there yet."""
  jobs = planned(sets, splits, methods)
  with progress.bar('estimators', len(jobs), unit='rows') as advance:
    for done, job in enumerate(jobs):
      advance(done, note=f'{job[0]}, split {job[1]}, {job[2]}')
      if job in run.rows():
        continue
      for row in measure(run, *job):
        if key_of(row) not in run.rows():
          append(run.workdir / ROWS, row)
    advance(len(jobs))


# ---------------------------------------------------------------- timings


def median_seconds(call: Callable[[], Any], stretch: float = STRETCH) -> float:
  """Median time of a call, after two calls that do not count."""
  for _ in range(2):
    call()
  taken: list[float] = []
  while len(taken) < LEAST_CALLS or sum(taken) < stretch:
    started = time.perf_counter()
    call()
    taken.append(time.perf_counter() - started)
  return float(np.median(taken))


def predicting(run: Run, split: Split, name: str, method: str, params: Row) -> Callable[[np.ndarray], Any]:
  """The function of inputs that gives probabilities or means."""
  import hydra_jax

  if method not in rivals.RIVALS:
    folder = model_folder(run.workdir, name, method)
    if not folder.is_dir():
      raise UserError(f'{folder} is missing: run without --timings in this work directory first')
    return functools.partial(hydra_jax.load(folder).predict, members=False)
  model = rivals.fitted(method, split.task, split.x, split.y, 0, 0.0, params).model
  return model.predict_proba if split.task == 'classification' else model.predict


def time_all(run: Run, sets: Sequence[str], methods: Sequence[str]) -> None:
  """Measures how long methods predict for 1 row and for 1,000 rows, on the first splits that were run."""
  rows, path = run.rows(), run.workdir / TIMINGS
  jobs = [job for job in planned(sets, 1, methods) if job in rows]
  there = {key_of(row) for row in read_rows(path)}
  with progress.bar('timings', len(jobs), unit='rows') as advance:
    for done, job in enumerate(jobs):
      advance(done, note=f'{job[0]}, {job[2]}')
      if job in there:
        continue
      split = run.split(job[0], 0)
      call = predicting(run, split, job[0], job[2], rows[job]['params'])
      row: Row = {'set': job[0], 'split': 0, 'method': job[2], 'task': split.task}
      for count in (1, 1000):
        x = np.resize(split.x, (count, split.x.shape[1]))
        row[f'seconds_{count}'] = median_seconds(functools.partial(call, x))
      append(path, row)
    advance(len(jobs))


# ---------------------------------------------------------------- the command


def write(run: Run, folder: Path, notes: Sequence[str]) -> None:
  """Tables, rows and figure, from the rows that are there."""
  rows, timings = list(run.rows().values()), read_rows(run.workdir / TIMINGS)
  rows = sorted(rows, key=lambda row: (SETS.index(row['set']), row['split'], METHODS.index(row['method'])))
  folder.mkdir(parents=True, exist_ok=True)
  made = tables.all_tables(rows, timings, METHODS, TEST_SHARE / (1 - TEST_SHARE))
  text = '\n\n'.join([tables.HEAD, *notes, *(markdown(table).rstrip() for table in made)])
  (folder / 'README.md').write_text(text + '\n')
  (folder / 'rows.csv').write_text(tables.csv_of(rows, timings))
  tables.draw(rows, METHODS).savefig(folder / 'estimators.png')


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs what is said on the command line."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='few rows, members and passes; the numbers mean nothing')
  parser.add_argument('--only', nargs='+', metavar='SET', default=SETS, help=f'of {", ".join(SETS)}')
  parser.add_argument('--splits', type=int, default=SPLITS, help='number of splits')
  parser.add_argument('--workdir', type=Path, help='default: runs/estimators')
  parser.add_argument('--timings', action='store_true', help='measure how long predictions take, on an idle machine')
  given = parser.parse_args(arguments)
  for name in given.only:
    look_up(dict.fromkeys(SETS), name, 'set')
  run = Run(
    given.workdir or Path('runs', 'estimators-quick' if given.quick else 'estimators'),
    os.environ.get('TFDS_DATA_DIR', ''),
    given.quick,
  )
  reasons = {name: rivals.missing(rival) for name, rival in rivals.RIVALS.items()}
  methods = [name for name in METHODS if not reasons.get(name)]
  # A network that has not converged in the time it has is a result like any other.
  warnings.filterwarnings('ignore', module='sklearn|joblib')
  if given.timings:
    time_all(run, given.only, methods)
  else:
    run_all(run, given.only, given.splits, methods)
  there = {row['method'] for row in run.rows().values()}
  notes = [f'{name} is missing: {reason}.' for name, reason in reasons.items() if reason and name not in there]
  write(run, run.workdir / 'results' if given.quick else RESULTS, notes)


if __name__ == '__main__':
  # Threads of OpenMP that wait by spinning would slow whatever else the machine does.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  for folder in ('data', 'estimators', 'evaluation'):  # each fit would say what it assumes
    logging.getLogger(f'hydra_jax.{folder}').setLevel(logging.WARNING)
  with progress.lines_on_console():
    main()
