"""The runs in a folder: how far each is, how old and how large."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
import os
from pathlib import Path
import stat
import time

from rich import box
from rich.table import Table

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.experiment import workdir as workdirs
from hydra_jax.progress import console


@dataclass(frozen=True)
class FoundRun:
  """A run folder.

  Attributes:
    folder: Where it is.
    state: `running`, `finished`, `unfinished`, or what is wrong with it.
    data: Name of the data set.
    students: Those of its config.
    age: Seconds since something in it was written.
    size: Bytes of all files in it.
  """

  folder: Path
  state: str
  data: str
  students: tuple[str, ...]
  age: float
  size: int


def runs_in(folder: Path) -> Iterator[FoundRun]:
  """Runs directly in a folder, or the folder itself if it is a run; the newest first.

  Raises:
    UserError: There is no such folder.
  """
  if not folder.is_dir():
    raise UserError(f'there is no folder {folder}: name one in which runs are')
  places = [folder] if (folder / workdirs.CONFIG).is_file() else [p for p in folder.iterdir() if p.is_dir()]
  found = [_found(place) for place in places if (place / workdirs.CONFIG).is_file()]
  yield from sorted(found, key=lambda run: run.age)


def _found(place: Path) -> FoundRun:
  files = list(_files_in(place))
  age, size = time.time() - max(file.st_mtime for file in files), sum(file.st_size for file in files)
  try:
    config = store.read_json(place / workdirs.CONFIG)
    data, students = config['data']['name'], tuple(map(str, config['students']))
  except (store.Damaged, KeyError, TypeError):
    return FoundRun(place, f'{workdirs.CONFIG} is damaged', '', (), age, size)
  return FoundRun(place, workdirs.state_of(place), str(data), students, age, size)


def _files_in(place: Path) -> Iterator[os.stat_result]:
  for file in place.rglob('*'):
    with contextlib.suppress(FileNotFoundError):  # a run that is at work replaces and removes files
      found = file.stat()
      if stat.S_ISREG(found.st_mode):
        yield found


def show(folder: Path) -> None:
  """Prints a table of the runs in a folder."""
  found = list(runs_in(folder))
  table = Table('run', 'state', 'data', 'students', box=box.SIMPLE_HEAD)
  for heading in ('written', 'MiB'):
    table.add_column(heading, justify='right')
  for run in found:
    shown = run.data if len(run.data) <= 40 else '…' + run.data[-39:]
    table.add_row(run.folder.name, run.state, shown, ' '.join(run.students), _ago(run.age), f'{run.size / 2**20:,.1f}')
  if found:
    console.print(table)
  else:
    console.print(f'no runs in {folder}')


def _ago(seconds: float) -> str:
  """A time in the largest unit of which there are two or more.

  Example:
    >>> _ago(200.0), _ago(100_000.0)
    ('3 min ago', '28 h ago')
  """
  for unit, length in (('days', 86_400), ('h', 3_600), ('min', 60)):
    if seconds >= 2 * length:
      return f'{seconds / length:.0f} {unit} ago'
  return f'{max(seconds, 0):.0f} s ago'
