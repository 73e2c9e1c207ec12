"""Saving and restoring trees of arrays with Orbax, and the checkpoints of a phase in progress."""

from pathlib import Path
import re
import shutil

import jax
from orbax.checkpoint import v1 as ocp

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.stages import Tree


def save(folder: Path, tree: Tree) -> None:
  """Saves a tree under a folder that must not exist yet."""
  try:
    ocp.save(folder.absolute(), tree)
  except Exception as e:
    # tensorstore reports a full disk as a ValueError that quotes the error code.
    code = re.search(r"os_error_code='(\d+)'", str(e))
    if code:
      raise OSError(int(code[1]), _first_line(e)) from e
    raise


def restore(folder: Path, like: Tree) -> Tree:
  """Restores a tree of the shapes and dtypes of `like`, which may be abstract."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
  try:
    return ocp.load(folder.absolute(), abstract)
  except Exception as e:
    raise UserError(f'cannot restore {folder} ({_first_line(e)}): delete that folder and run again') from e


def _first_line(e: Exception) -> str:
  return (str(e).splitlines() or [type(e).__name__])[0][:200]


def save_progress(folder: Path, step: int, tree: Tree) -> None:
  """Saves a phase in progress as `folder/<step>`, then drops older ones."""
  with store.writing(folder / str(step)) as new:
    save(new / 'state', tree)
  for old in _steps(folder):
    if old < step:
      shutil.rmtree(folder / str(old))


def latest_progress(folder: Path, like: Tree) -> Tree | None:
  """The newest checkpoint of a phase in progress, if there is one."""
  steps = _steps(folder)
  if not steps:
    return None
  newest = folder / str(steps[-1])
  store.verify(newest)
  return restore(newest / 'state', like)


def _steps(folder: Path) -> list[int]:
  return sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())


def drop_progress(folder: Path) -> None:
  """Removes the checkpoints of a phase that has ended."""
  shutil.rmtree(folder, ignore_errors=True)
