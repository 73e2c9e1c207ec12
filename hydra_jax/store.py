"""Folders that are complete or absent, named by a hash of what their content depends on."""

from collections.abc import Iterator, Mapping
import contextlib
import errno
import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any

from hydra_jax.errors import UserError

LOCK = '.lock'
MANIFEST = 'MANIFEST.json'
# Part of every key: raise it when the meaning of saved files changes.
FORMAT = 1


def key_of(parts: Mapping[str, Any]) -> str:
  """Twelve hex digits of the SHA-256 of some JSON-like values."""
  text = json.dumps({**parts, 'format': FORMAT}, sort_keys=True, default=_plain)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value):
  return value.to_dict() if hasattr(value, 'to_dict') else list(value)


def _digests(folder: Path) -> dict[str, str]:
  found = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file() and p.name != MANIFEST):
    with open(path, 'rb') as f:
      found[str(path.relative_to(folder))] = hashlib.file_digest(f, 'sha256').hexdigest()
  return found


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Path]:
  """Yields a new folder that becomes `folder`, at once and with a manifest, if the block succeeds."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  new = Path(tempfile.mkdtemp(prefix='.new-', dir=folder.parent))
  try:
    yield new
    complete(new, folder)
  finally:
    shutil.rmtree(new, ignore_errors=True)


def complete(new: Path, folder: Path) -> None:
  """Makes a folder that is written `folder`, at once and with a manifest."""
  try:
    (new / MANIFEST).write_text(json.dumps(_digests(new), indent=1))
    _sync(new)
    new.chmod(0o755)
    os.rename(new, folder)
  except OSError as e:
    # Another process may have made the same folder meanwhile: its content is the same.
    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not folder.exists():
      raise
    shutil.rmtree(new)


def _sync(folder: Path) -> None:
  for path in folder.rglob('*'):
    if path.is_file():
      with open(path, 'rb') as f:
        os.fsync(f.fileno())


def replace_text(path: Path, text: str) -> None:
  """Writes a text file as a whole, or leaves the old one."""
  with replacing(path) as new:
    new.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """Yields a path that takes the place of `path` if the block succeeds."""
  new = path.with_name(f'.new-{path.name}')
  try:
    yield new
    os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)


def digest(folder: Path) -> str:
  """Twelve hex digits that stand for the content of a folder made by `writing`."""
  return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]


def verify(folder: Path) -> None:
  """Raises a `UserError` unless every file of a folder made by `writing` is what was written."""
  try:
    expected = json.loads((folder / MANIFEST).read_text())
    found = _digests(folder)
    wrong = [name for name, digest in expected.items() if found.get(name) != digest]
  except (OSError, ValueError) as e:
    wrong = [f'{MANIFEST} ({e})']
  if wrong:
    raise UserError(
      f'{folder} is damaged (first bad file: {wrong[0]}): delete that folder and run the same command again'
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Holds a work directory for this process alone, and clears what a killed one left half-written."""
  with open(folder / LOCK, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise UserError(f'another run is using {folder}: wait for it, or choose another --workdir') from None
    for left in folder.rglob('.new-*'):
      shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    yield
