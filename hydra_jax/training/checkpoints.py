"""Saving and restoring trees of arrays with Orbax, and the checkpoints of a phase in progress.

Arrays may be spread over the devices of many processes. Then all processes call these functions. Arrays can be restored
to other devices than those that they were saved from.
"""

from collections.abc import Callable
import logging
from pathlib import Path
import re
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
import numpy as np

from hydra_jax import store
from hydra_jax.devices import processes
from hydra_jax.errors import UserError
from hydra_jax.nets.stages import Tree

# Orbax logs while it is imported, which gives the root logger a handler: `logging.basicConfig` would do nothing then.
_handlers = logging.root.handlers[:]
from orbax.checkpoint import v1 as ocp  # noqa: E402

logging.root.handlers[:] = _handlers
logger = logging.getLogger(__name__)


def save(folder: Path, tree: Tree) -> None:
  """Saves a tree.

  Args:
    folder: It must not exist.
    tree: Arrays.

  Raises:
    OSError: The disk is full, or cannot be written.
  """
  _translating(folder, lambda: ocp.save(folder.absolute(), tree))


def _translating(folder: Path, write: Callable[[], object]) -> None:
  try:
    write()
  except Exception as e:
    store.check_held(folder)
    # tensorstore reports a full disk as a ValueError that quotes the error code.
    code = re.search(r"os_error_code='(\d+)'", str(e))
    if code:
      raise OSError(int(code[1]), store.one_line(e)) from e
    raise


def restore(folder: Path, like: Tree) -> Tree:
  """Restores a tree onto the first device of each process.

  Args:
    folder: As given to `save`, inside a folder made by `store.writing`.
    like: A tree of the same structure, shapes and dtypes; its leaves may be abstract.

  Raises:
    UserError: The files are damaged, or hold a tree of other shapes.
  """
  many = jax.process_count() > 1
  sharding: Sharding = SingleDeviceSharding(jax.devices()[0])
  if many:
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ('all',)), PartitionSpec())
  tree = _restore(folder, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like))
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) if many else tree


def _restore(folder: Path, like: Tree) -> Tree:
  try:
    same = _shapes(ocp.metadata(folder.absolute()).metadata) == _shapes(like)
    if same:
      return ocp.load(folder.absolute(), like)
  except Exception as e:
    store.verify(folder.parent)
    # The files are whole. With several processes, one of them is lost, and no file must be deleted.
    if jax.process_count() > 1:
      raise
    raise UserError(
      f'cannot restore {folder} ({store.one_line(e)}), though its files are whole: use the versions in versions.json, '
      'or choose another --workdir'
    ) from e
  store.verify(folder.parent)
  raise UserError(f'{folder} holds parameters of another network than it is said to hold: leave it out')


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
  """Shapes by name. Orbax turns tuples into lists; names are equal for both."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}


class Saver:
  """Saves a phase in progress as `folder/<step>`, in the background.

  As a context it waits at its end for the last checkpoint.

  Args:
    folder: Of the phase.
    keep: Number of the newest checkpoints that are kept.
  """

  def __init__(self, folder: Path, keep: int):
    """Nothing is written yet."""
    self.folder, self.keep = folder, keep
    self._thread: threading.Thread | None = None
    self._failed: Exception | None = None

  def save(self, step: int, tree: Tree) -> None:
    """Waits for the last checkpoint, and starts a new one. Then the tree may change."""
    self.wait()
    new, final = self.folder / f'{store.NEW}{step}', self.folder / str(step)
    processes.run_on_main(lambda: _fresh(new))
    tree = jax.tree.map(jnp.copy, tree)  # on CPU Orbax does not copy an array, and training reuses its memory
    responses: list[Any] = []

    def begin():
      responses.append(ocp.save_async((new / 'state').absolute(), tree))

    def finish():
      try:
        _translating(new, responses[0].result)
        if processes.is_main():
          store.complete(new, final)
          self._drop_old(step)
      except Exception as e:  # `wait` raises it in the thread that trains
        self._failed = e

    _translating(new, begin)
    self._thread = threading.Thread(target=finish)
    self._thread.start()

  def wait(self) -> None:
    """Waits until the last checkpoint is complete. Raises the error of its thread, if there is one."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._failed is not None:
      failed, self._failed = self._failed, None
      raise failed

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.wait()

  def _drop_old(self, step: int) -> None:
    for old in [s for s in steps(self.folder) if s <= step][: -self.keep]:
      shutil.rmtree(self.folder / str(old))


def _fresh(folder: Path) -> None:
  store.check_held(folder)  # must not make the work directory again, if it was removed
  shutil.rmtree(folder, ignore_errors=True)
  folder.parent.mkdir(exist_ok=True)
  folder.mkdir()


def latest(folder: Path, like: Tree) -> Tree | None:
  """The newest undamaged checkpoint of a phase in progress; None where there is none.

  Damaged checkpoints are removed, and a line is printed for each.

  Args:
    folder: Of the phase.
    like: A state as it is trained. The result has its shapes, dtypes and shardings.
  """
  found = processes.run_on_main(lambda: _newest_whole(folder))
  if not found:
    return None
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
  return _restore(folder / found / 'state', abstract)


def _newest_whole(folder: Path) -> str:
  for step in reversed(steps(folder)):
    try:
      store.verify(folder / str(step))
      return str(step)
    except store.Damaged:
      logger.warning(f'the checkpoint at step {step} in {folder} is damaged: left out')
      shutil.rmtree(folder / str(step))
  return ''


def steps(folder: Path) -> list[int]:
  """Steps at which there are checkpoints, in order."""
  return sorted(int(p.name) for p in folder.glob('*') if p.name.isdigit())


def drop(folder: Path) -> None:
  """Removes the checkpoints of a phase that has ended."""
  processes.run_on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
