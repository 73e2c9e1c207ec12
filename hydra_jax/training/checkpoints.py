"""Saving and restoring trees of arrays with Orbax, and the checkpoints of a phase in progress.

Arrays may be spread over the devices of many processes: all take part. They may be restored to other devices than
they were saved from.
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
  """Saves a tree under a folder that must not exist yet."""
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
  """Restores a tree of the shapes and dtypes of `like`, which may be abstract, onto each process's first device.

  Args:
    folder: As given to `save`, in one made by `store.writing`.
    like: What is expected.

  Raises:
    UserError: Where the files are damaged, or hold a tree of other shapes.
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
    # The files are whole. So with other processes it is one of them that is lost, and nothing is to be deleted.
    if jax.process_count() > 1:
      raise
    raise UserError(
      f'cannot restore {folder} ({store.one_line(e)}), though its files are whole: use the versions in versions.json, '
      'or choose another --workdir'
    ) from e
  store.verify(folder.parent)
  raise UserError(f'{folder} holds parameters of another network than it is said to hold: leave it out')


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
  """Shapes by name, which are the same for what Orbax makes lists and dictionaries of."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.shape) for path, leaf in leaves}


class Saver:
  """Saves a phase in progress as `folder/<step>`, in the background.

  Args:
    folder: Of the phase.
    keep: How many of the newest checkpoints stay.
  """

  def __init__(self, folder: Path, keep: int):
    """Nothing is written yet."""
    self.folder, self.keep = folder, keep
    self._thread: threading.Thread | None = None
    self._failed: Exception | None = None

  def save(self, step: int, tree: Tree) -> None:
    """Returns when the tree may change; first waits for the checkpoint before."""
    self.wait()
    new, final = self.folder / f'{store.NEW}{step}', self.folder / str(step)
    processes.run_on_main(lambda: _fresh(new))
    tree = jax.tree.map(jnp.copy, tree)  # on CPU what Orbax reads is the array itself, which training reuses
    responses: list[Any] = []

    def begin():
      responses.append(ocp.save_async((new / 'state').absolute(), tree))

    def finish():
      try:
        _translating(new, responses[0].result)
        if processes.is_main():
          store.complete(new, final)
          self._drop_old(step)
      except Exception as e:  # shown by the thread that trains
        self._failed = e

    _translating(new, begin)
    self._thread = threading.Thread(target=finish)
    self._thread.start()

  def wait(self) -> None:
    """Returns when what was saved is complete; raises what went wrong."""
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
  store.check_held(folder)  # or the work directory, should it have been removed, would be there again
  shutil.rmtree(folder, ignore_errors=True)
  folder.parent.mkdir(exist_ok=True)
  folder.mkdir()


def latest(folder: Path, like: Tree) -> Tree | None:
  """The newest whole checkpoint of a phase in progress, if there is one; damaged ones are removed, with a line each.

  `like` is a state as it is trained, whose shapes, dtypes and places on devices the result has.
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
