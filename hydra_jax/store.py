"""A content-addressed cache: folders that are complete or absent, named by a hash of what their content depends on.

Saved files may be edited, damaged or made by somebody else. They are read as data: checksums first, bounded in size and
depth, without following links. No name in them is imported or called.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
from pathlib import Path
import shutil
import stat
import tempfile
import time
from typing import Any, NoReturn
import zipfile
import zlib

import numpy as np

from hydra_jax.errors import UserError

LOCK = '.lock'
LOCKS = '.locks'  # of the parts of a folder that several processes share
MANIFEST = 'MANIFEST.json'
# Unfinished files and folders have this prefix. It is long, so that no file of the user is taken for a leftover.
NEW = '.hydra_jax-new-'
# Where leftovers can be in a work directory.
WRITTEN_TO = ('.', 'artifacts', 'artifacts/*.progress', 'figures')
# Part of every key, and written with saved files. Raise it when the meaning of saved files changes.
FORMAT = 3
OTHER_FORMAT = 'was written by another version of hydra_jax, in another format'
LONGEST_JSON = 64 * 2**20  # bytes
REMOVALS = 50  # attempts, a tenth of a second apart
# Some file systems cannot sync a folder.
CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
# Another file system; one without links; too many links.
CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Damaged(UserError):
  """A saved file is not as it was written."""


class InUse(UserError):
  """Another process holds a work directory."""


def key_of(values: Mapping[str, Any]) -> str:
  """Twelve hex digits of the SHA-256 of JSON-like values. The order of keys does not count.

  Example:
    >>> key_of({'a': 1, 'b': (2, 3)}) == key_of({'b': [2, 3], 'a': 1})
    True
  """
  text = json.dumps({**values, 'format': FORMAT}, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value):
  return value.to_dict() if hasattr(value, 'to_dict') else list(value)


def read_json(path: Path) -> Any:
  """Reads a JSON file that somebody may have edited.

  Raises:
    Damaged: It is not plain JSON: too large or too deep, not UTF-8, a key twice, a number that is not finite.
    OSError: It cannot be read.
  """
  try:
    if path.stat().st_size > LONGEST_JSON:
      raise ValueError(f'larger than {LONGEST_JSON} bytes')
    text = path.read_bytes().decode()
    found = json.loads(text, object_pairs_hook=_no_twins, parse_float=_finite, parse_constant=_not_a_number)
    json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair cannot be printed
    return found
  except RecursionError:
    raise Damaged(f'{path} is damaged (nested too deep)') from None
  except ValueError as e:
    raise Damaged(f'{path} is damaged ({one_line(e)})') from e


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('a key stands twice in it')
  return found


def _finite(text: str) -> float:
  return float(text) if math.isfinite(float(text)) else _not_a_number(text)


def _not_a_number(text: str) -> NoReturn:
  raise ValueError(f'{text[:20]} is no finite number')


def one_line(e: object, most: int = 200) -> str:
  """The first line of a message, without characters that cannot be printed.

  Args:
    e: An error or a text.
    most: Greatest number of characters.

  Example:
    >>> one_line(ValueError('no such file' + chr(10) + 'more'))
    'no such file'
  """
  first = (str(e).splitlines() or [type(e).__name__])[0]
  return ''.join(c if c.isprintable() else '?' for c in first[:most])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """The arrays of an `.npz` file by name, or the array of an `.npy` file under the name ''. Nothing is unpickled.

  Raises:
    Damaged: The file has no arrays, or is damaged.
    OSError: It cannot be read.
  """
  try:
    with open(path, 'rb') as file:
      found = np.load(file, allow_pickle=False)
      return {'': found} if isinstance(found, np.ndarray) else dict(found)
  except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError) as e:
    raise Damaged(f'{path} is damaged ({one_line(e)}): delete {path.parent} and run the same command again') from e


def read_mapped(path: Path) -> np.ndarray:
  """The array of an `.npy` file, mapped into memory. Nothing is unpickled.

  Raises:
    Damaged: The file has no array, or is damaged.
    OSError: It cannot be read.
  """
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, EOFError, MemoryError) as e:
    raise Damaged(f'{path} is damaged ({one_line(e)}): delete {path.parent} and run the same command again') from e


def _digests(folder: Path, only: Collection[str] = ()) -> dict[str, str]:
  """SHA-256 of all files below a folder but the manifest, or of `only` some, by name. Links and devices have ''."""
  found = {}
  for place, folders, files in os.walk(folder):
    for path in (Path(place, name) for name in (*folders, *files)):
      name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
      if only and name not in (*only, MANIFEST):
        continue
      if stat.S_ISREG(mode) and name != MANIFEST:
        with open(path, 'rb') as f:
          found[name] = hashlib.file_digest(f, 'sha256').hexdigest()
      elif not stat.S_ISREG(mode) and (only or not stat.S_ISDIR(mode)):
        found[name] = ''
  return dict(sorted(found.items()))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
  """A context that yields a new folder. If the block succeeds, it gets a manifest, and is renamed to `folder`.

  Raises:
    UserError: The work directory was removed during the run.
  """
  if not check_held(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
  elif not folder.parent.is_dir():
    raise UserError(f'{folder.parent} was removed during the run: run the same command again')
  new = _new_folder(folder)
  try:
    yield new
    complete(new, folder)
  finally:
    _remove(new)


def _new_folder(folder: Path) -> Path:
  """An empty folder beside another one, whose name says for which it is."""
  return Path(tempfile.mkdtemp(prefix=f'{NEW}{folder.name}-', dir=folder.parent))


def link(source: Path, folder: Path) -> None:
  """Gives a folder made by `writing` a second place. Its files take no more space, unless the disk is another one."""
  check_held(folder)
  new = _new_folder(folder)
  try:
    for place, folders, files in os.walk(source):
      there = new / Path(place).relative_to(source)
      for name in folders:
        (there / name).mkdir()
      for name in files:
        _link_or_copy(Path(place, name), there / name)
    new.chmod(0o755)
    os.rename(new, folder)
  finally:
    _remove(new)
  _sync(folder.parent)


def _link_or_copy(source: Path, target: Path) -> None:
  try:
    os.link(source, target)
  except OSError as e:
    if e.errno not in CANNOT_LINK:
      raise
    shutil.copy2(source, target)
    _sync(target)


def _remove(folder: Path) -> None:
  """Removes an unfinished folder, if it is there.

  Threads of tensorstore may still write into it, after the write of another array has failed. So it is tried again.
  """
  for _ in range(REMOVALS):
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
      return
    time.sleep(0.1)


def complete(new: Path, folder: Path) -> None:
  """Writes the manifest of a folder and renames it. Returns when all is on the disk.

  Args:
    new: The folder.
    folder: Its final name. If another process has made this folder meanwhile, that one is kept.
  """
  check_held(folder)
  try:
    (new / MANIFEST).write_text(json.dumps(_digests(new), indent=1))
    new.chmod(0o755)
    _sync_below(new)
    os.rename(new, folder)
  except OSError as e:
    # Another process may have made this folder meanwhile, with the same content.
    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not folder.exists():
      raise
    shutil.rmtree(new)
  _sync(folder.parent)


def _sync_below(folder: Path) -> None:
  for place, _, files in os.walk(folder, topdown=False):
    for name in files:
      _sync(Path(place, name))
    _sync(Path(place))


def _sync(path: Path) -> None:
  """Returns when a file, or the list of names in a folder, is on the disk."""
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    os.fsync(descriptor)
  except OSError as e:
    if e.errno not in CANNOT_SYNC:
      raise
  finally:
    os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
  """Writes a text file as a whole, or leaves the old file. Returns when it is on the disk."""
  with replacing(path) as new:
    new.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A context that yields a new path. If the block succeeds, the new file replaces `path`, and is on the disk."""
  check_held(path)
  new = path.with_name(f'{NEW}{path.name}')
  try:
    yield new
    _sync(new)
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)
  _sync(path.parent)


def digest(folder: Path) -> str:
  """Twelve hex digits of the SHA-256 of the manifest, and so of the content, of a folder made by `writing`."""
  return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]


AGAIN = 'delete that folder and run the same command again'


def verify(folder: Path, only: Collection[str] = (), advice: str = AGAIN) -> None:
  """Checks that a folder made by `writing` has the files that were written, and no others.

  Added files whose names begin with a dot do not count: the system makes them. Links always count.

  Args:
    folder: The folder.
    only: Names of the files that are checked, each of which has to be there; empty: all.
    advice: Ends the message.

  Raises:
    Damaged: It has not.
  """
  try:
    expected = read_json(folder / MANIFEST)
    found = _digests(folder, only)
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError, Damaged) as e:
    raise _damaged(folder, f'{MANIFEST}: {one_line(e)}', advice) from e
  if not isinstance(expected, dict) or not expected or not all(isinstance(v, str) for v in expected.values()):
    raise _damaged(folder, f'{MANIFEST} is no list of files with checksums', advice)
  for name in {**(dict.fromkeys(only) if only else expected), **found}:
    added = not only and name not in expected and name.rpartition('/')[2].startswith('.') and found[name]
    if not added and (not found.get(name) or found[name] != expected.get(name)):
      kind = ', which is a link' if found.get(name, name) == '' else ', which is missing' if name not in found else ''
      raise _damaged(folder, f'first bad file: {one_line(name)}{kind}', advice)


def _damaged(folder: Path, why: str, advice: str) -> Damaged:
  return Damaged(f'{folder} is damaged ({why}): {advice}')


def mark(folder: Path) -> str:
  """Makes an empty file with a new, random name, and returns the name."""
  descriptor, path = tempfile.mkstemp(prefix=NEW, dir=folder)
  os.close(descriptor)
  return Path(path).name


# Work directories that this process holds, and the file descriptors of their locks.
_held: dict[Path, int] = {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """A context that holds a work directory for this process alone.

  First, unfinished files of killed processes are removed. Functions of this module that write below the directory fail
  if it was removed or renamed.

  Raises:
    UserError: Another process holds the directory, it cannot be locked, or it was removed or renamed.
  """
  lock = _open_lock(folder / LOCK)
  try:
    if not _try_lock(lock, folder):
      raise InUse(f'another run is using {folder}: wait for it, or choose another --workdir')
    for place in WRITTEN_TO:
      for left in folder.glob(f'{place}/{NEW}*'):
        _clear(left)
    held = folder.absolute()
    _held[held] = lock
    try:
      yield
      check_held(held)
    finally:
      del _held[held]
  finally:
    os.close(lock)


def _cannot_lock(folder: Path, e: OSError) -> UserError:
  return UserError(f'cannot lock {folder} ({e.strerror}): choose a folder on another file system')


@contextlib.contextmanager
def part_locked(part: Path, wait: Callable[[], None]) -> Iterator[None]:
  """A context that holds one part of a folder that several processes share.

  First, what killed processes have left of this part is removed.

  Args:
    part: The folder of the part, which need not exist.
    wait: Is called again and again while another process holds the part.

  Raises:
    UserError: The file system has no locks.
  """
  locks = part.parent / LOCKS
  locks.mkdir(parents=True, exist_ok=True)
  lock = _open_lock(locks / part.name)
  try:
    while not _try_lock(lock, part.parent):
      wait()
    for left in (*part.parent.glob(f'{NEW}{part.name}-*'), *part.parent.glob(f'{part.name}.progress/{NEW}*')):
      _clear(left)
    yield
  finally:
    os.close(lock)


def _try_lock(lock: int, folder: Path) -> bool:
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as e:
    raise _cannot_lock(folder, e) from e
  return True


def is_locked(folder: Path) -> bool:
  """Whether a process holds a work directory, see `locked`."""
  try:
    lock = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
  except OSError:
    return False
  try:
    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except OSError:
    return True
  finally:
    os.close(lock)
  return False


def _open_lock(path: Path) -> int:
  """Opens a lock for writing. Its content is kept, and no link is followed."""
  try:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
  except OSError as e:
    if e.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
      raise
    raise _no_lock(path) from e
  if not stat.S_ISREG(os.fstat(lock).st_mode):
    os.close(lock)
    raise _no_lock(path)
  return lock


def _no_lock(path: Path) -> UserError:
  return UserError(f'{path} is a link or no plain file: remove it, or choose another --workdir')


def _clear(left: Path) -> None:
  if left.is_dir() and not left.is_symlink():
    shutil.rmtree(left, ignore_errors=True)
  else:
    left.unlink(missing_ok=True)


def check_held(path: Path) -> bool:
  """Whether `path` is in a work directory that this process holds.

  Raises:
    UserError: It is, and the directory was removed, renamed or replaced.
  """
  for folder, lock in _held.items():
    if path.absolute().is_relative_to(folder):
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(lock), os.lstat(folder / LOCK)):
          return True
      raise UserError(
        f'{folder} was removed, renamed or replaced during the run, and what is not saved is lost: '
        'leave it where it is, and run the same command again'
      )
  return False
