"""`hydra-jax clean`: removes parts of a run that its last config does not use, such as students of older settings."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
import shutil

from rich import box
from rich.table import Table

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.experiment import workdir as workdirs
from hydra_jax.progress import console


@dataclass(frozen=True)
class Part:
  """A folder under `artifacts`, and the bytes of all files in it."""

  folder: Path
  size: int


def unused(run: Path) -> list[Part]:
  """Parts that the run did not use when it was finished last, the largest first.

  Raises:
    UserError: It is no folder of a finished run, or was finished before parts were recorded.
  """
  if not (run / workdirs.CONFIG).is_file():
    raise UserError(f'{run} is no folder of a run: it has no {workdirs.CONFIG}')
  workdirs.check_format(run)
  workdirs.check_finished(run)  # else parts and checkpoints of the newer config would look unused
  used = workdirs.parts_of(run)
  folders = [place for place in (run / 'artifacts').iterdir() if place.is_dir() and place.name not in used]
  size = lambda folder: sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
  return sorted((Part(folder, size(folder)) for folder in folders), key=lambda part: (-part.size, part.folder.name))


def clean(run: Path, agrees: Callable[[str], bool]) -> None:
  """Removes what is unused, if the user agrees.

  Args:
    run: The folder of a run.
    agrees: Asks a question.

  Raises:
    UserError: See `unused`; or the run is being continued.
  """
  parts = unused(run)
  with store.locked(run):
    if not parts:
      console.print(f'{run} has no parts that its last run did not use')
      return
    table = Table('part', box=box.SIMPLE_HEAD)
    table.add_column('MiB', justify='right')
    for part in parts:
      table.add_row(part.folder.name, f'{part.size / 2**20:,.1f}')
    console.print(table)
    total = f'{sum(part.size for part in parts) / 2**20:,.1f} MiB'
    if not agrees(f'The last run in {run} did not use {len(parts)} of its parts, {total}. Delete them?'):
      console.print('nothing was deleted')
      return
    for part in parts:
      shutil.rmtree(part.folder)
    console.print(f'deleted {total}')
