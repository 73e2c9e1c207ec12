"""Being asked to stop: SIGTERM, which clouds send before they take a machine away."""

from collections.abc import Iterator
import contextlib
import signal

# Exit codes beside 0 and 2: stopped on request, and another process was lost. After either the same command continues.
PREEMPTED, LOST = 75, 76


class Preempted(BaseException):
  """The process was asked to stop, and what there is to continue from is saved.

  As KeyboardInterrupt it is no `Exception`, so that nobody takes it for an error to recover from.

  Attributes:
    by_all: Whether all processes stop here.
  """

  def __init__(self, message: str, by_all: bool = False):
    super().__init__(message)
    self.by_all = by_all


_asked, _deferring, _raised = False, False, False


def _on_signal(*_) -> None:
  global _asked, _raised
  _asked = True
  if not _deferring and not _raised:  # once: what the first one makes this process do is not to be disturbed
    _raised = True
    raise Preempted('stopped between two phases')


def listen() -> None:
  """From now on SIGTERM, which clouds send before they take a machine away, is a request to save and stop."""
  global _asked, _raised
  _asked = _raised = False
  signal.signal(signal.SIGTERM, _on_signal)


def ignore() -> None:
  """From now on a request to stop means nothing."""
  signal.signal(signal.SIGTERM, signal.SIG_IGN)


def asked() -> bool:
  """Whether this process was asked to stop."""
  return _asked


@contextlib.contextmanager
def deferring() -> Iterator[None]:
  """Inside, a request to stop waits for who asks whether there is one; an earlier one stops here.

  Earlier ones that are still there were raised where nothing can be raised, as in the import of compiled code.
  """
  global _deferring
  if _asked:
    raise Preempted('stopped between two phases')
  _deferring = True
  try:
    yield
  finally:
    _deferring = False
