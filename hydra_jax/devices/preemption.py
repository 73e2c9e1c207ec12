"""Requests to stop: SIGTERM, which clouds send before they take a machine away.

JAX has the same in `jax.distributed`, but needs its coordination service also for a single process.
"""

from collections.abc import Iterator
import contextlib
import os
import signal

# Exit codes besides 0 and 2: stopped on request, and another process was lost. After both the same command continues.
PREEMPTED, LOST = 75, 76


class Preempted(BaseException):
  """The process was asked to stop, and a state to continue from is saved.

  It is no `Exception`, as KeyboardInterrupt is none: handlers of errors must not catch it.

  Attributes:
    by_all: Whether all processes stop here.
  """

  def __init__(self, message: str, by_all: bool = False):
    super().__init__(message)
    self.by_all = by_all


_asked, _deferring, _raised, _begun = False, False, False, False


def _on_signal(*_) -> None:
  global _asked, _raised
  _asked = True
  if not _begun:
    os.write(2, b'hydra-jax: stopped before the work began: the same command continues\n')
    os._exit(PREEMPTED)
  if not _deferring and not _raised:  # once: a second signal must not disturb the work of saving
    _raised = True
    raise Preempted('stopped between two phases')


def listen() -> None:
  """From now on SIGTERM is a request to stop.

  Until `begin` is called the request ends the process at once. There is nothing to save, and an exception inside the
  import of compiled code has unknown effects.
  """
  global _asked, _raised, _begun
  _asked = _raised = _begun = False
  signal.signal(signal.SIGTERM, _on_signal)


def begin() -> None:
  """From now on a request to stop raises `Preempted`, so that the work can be saved."""
  global _begun
  _begun = True


def ignore() -> None:
  """From now on a request to stop has no effect."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


def asked() -> bool:
  """Whether this process was asked to stop."""
  return _asked


@contextlib.contextmanager
def deferring() -> Iterator[None]:
  """A context in which SIGTERM only sets a flag, and the code must poll `asked`.

  Raises:
    Preempted: A request came earlier, and its exception was lost.
  """
  global _deferring
  if _asked:
    raise Preempted('stopped between two phases')
  _deferring = True
  try:
    yield
  finally:
    _deferring = False
