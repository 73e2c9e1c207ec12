"""Being asked to stop: SIGTERM, which clouds send before they take a machine away."""

from collections.abc import Iterator
import contextlib
import os
import signal

# Exit codes beside 0 and 2: stopped on request, and another process was lost. After either the same command continues.
PREEMPTED, LOST = 75, 76


class Preempted(BaseException):
  """The process was asked to stop, and a state to continue from is saved.

  As KeyboardInterrupt it is no `Exception`, so that nobody takes it for an error to recover from.

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
  if not _deferring and not _raised:  # once: what the first one makes this process do is not to be disturbed
    _raised = True
    raise Preempted('stopped between two phases')


def listen() -> None:
  """From now on SIGTERM, which clouds send before they take a machine away, is a request to stop.

  Until `begin` the process then ends at once: there is nothing to save, and compiled code that is being imported may
  make anything of an exception.
  """
  global _asked, _raised, _begun
  _asked = _raised = _begun = False
  signal.signal(signal.SIGTERM, _on_signal)


def begin() -> None:
  """From now on a request to stop raises `Preempted`, so that the work can be saved and tidied up."""
  global _begun
  _begun = True


def ignore() -> None:
  """From now on a request to stop means nothing."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


def asked() -> bool:
  """Whether this process was asked to stop."""
  return _asked


@contextlib.contextmanager
def deferring() -> Iterator[None]:
  """Inside, SIGTERM only sets a flag, and the code must poll `asked`. A request that was lost before is raised here."""
  global _deferring
  if _asked:
    raise Preempted('stopped between two phases')
  _deferring = True
  try:
    yield
  finally:
    _deferring = False
