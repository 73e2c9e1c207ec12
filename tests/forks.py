"""Starts processes that have their imports already: a test process starts this one, and asks it.

    python tests/forks.py SOCKET

Imports take three seconds of each process. A forked process is like any other. It has its own arguments, working
directory, variables, output and exit code. Its interpreter ends as always. It draws no figures, which take a fifth of a
small run, unless it has the variable `DRAWS`.
"""

import array
import gc
import json
import os
from pathlib import Path
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings

CLI = ['-m', 'hydra_jax.cli']
SIZE = 2**20
DRAWS = 'HYDRA_JAX_TESTS_DRAW'
# Of a variable that JAX reads when it is imported, a fork has the value that this process had. It sets these again.
READ_ON_IMPORT = ('JAX_', 'PYTHON', 'LD_', 'MPL')
SET_AGAIN = {'JAX_PLATFORMS': 'jax_platforms'}
READ_LATER = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', *SET_AGAIN)


class Process:
  """What a test can do with a process, by the names of `subprocess.Popen`."""

  def __init__(self, place: str, command: list[str], cwd: str, environment: dict[str, str], out, err):
    """Starts `command`, which begins with this Python, by the process that listens at a place."""
    self._keeper = socket.socket(socket.AF_UNIX)
    self._keeper.connect(place)
    files = array.array('i', [out.fileno(), err.fileno()])
    text = json.dumps([list(map(str, command[1:])), cwd, environment]).encode()
    self._keeper.sendmsg([text + b'\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    self._said = self._keeper.makefile('r')
    self.pid = int(self._said.readline())
    self.returncode: int | None = None

  def poll(self) -> int | None:
    """The exit code, or None while it runs."""
    if self.returncode is None and select.select([self._keeper], [], [], 0)[0]:
      self.returncode = int(self._said.readline())
      self._said.close()
      self._keeper.close()
    return self.returncode

  def wait(self, timeout: float | None = None) -> int:
    """The exit code, when it has ended."""
    if self.poll() is None and not select.select([self._keeper], [], [], timeout)[0]:
      raise subprocess.TimeoutExpired('a fork', timeout or 0)
    code = self.poll()
    assert code is not None
    return code

  def send_signal(self, number: int) -> None:
    """Sends a signal, if it runs."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    """Sends SIGKILL, if it runs."""
    self.send_signal(signal.SIGKILL)


def can_have(ours: dict[str, str], theirs: dict[str, str]) -> bool:
  """Whether a fork of a process with variables `ours` can have `theirs`."""
  differ = {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}
  return not any(name.startswith(READ_ON_IMPORT) and name not in READ_LATER for name in differ)


def become(command: list[str], cwd: str, environment: dict[str, str], files: array.array) -> list[str]:
  """Makes this process what `python *command` would be, and returns what it has to run."""
  what = command[:2] if command[:2] == CLI else command[:1]
  sys.argv[1:] = command[len(what) :]
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environment)
  sys.path[0] = cwd if what == CLI else str(Path(what[0]).parent.absolute())
  for target, file in zip((1, 2), files, strict=True):
    os.dup2(file, target)
  return what


def serve(place: str) -> list[str] | None:
  """Answers requests until nobody can ask any more. Returns what to run in a process that was asked for."""
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(place)
  listener.listen()
  parent = os.getppid()
  listener.settimeout(1.0)
  signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers end by themselves
  while os.getppid() == parent:
    try:
      client, _ = listener.accept()
    except TimeoutError:
      continue
    client.settimeout(None)
    if not os.fork():
      listener.close()
      return keep(client)
    client.close()
  return None


def keep(client: socket.socket) -> list[str]:
  """Starts one process, says its number, waits for it, says its exit code, and ends. Returns only in that process."""
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  files, text = array.array('i'), b''
  while not text.endswith(b'\n'):
    some, more, *_ = client.recvmsg(SIZE, socket.CMSG_SPACE(64))
    if not some:  # who asked has gone
      os._exit(0)
    text += some
    for _, _, data in more:
      files.frombytes(data)
  child = os.fork()
  if not child:
    client.close()
    return become(*json.loads(text), files)
  for file in files:
    os.close(file)
  try:
    client.sendall(f'{child}\n'.encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(f'{code}\n'.encode())
  finally:
    os._exit(0)


if __name__ == '__main__':
  import jax

  import hydra_jax.cli
  from hydra_jax.data import toy
  from hydra_jax.experiment import provenance
  import hydra_jax.experiment.paper_tables
  import hydra_jax.experiment.run
  from hydra_jax.report import figures
  import hydra_jax.serving.predict_files  # noqa: F401

  warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)  # JAX has no threads before it is asked for a device
  warnings.filterwarnings('ignore', 'This process', DeprecationWarning)
  for layer in ('training', 'evaluation', 'cost'):
    provenance.digest(layer)
  toy.letters()
  gc.freeze()  # a fork that looks at all these objects would copy their memory
  if what := serve(sys.argv[1]):
    warnings.resetwarnings()
    for variable, name in SET_AGAIN.items():
      if variable in os.environ:
        jax.config.update(name, os.environ[variable])
    if DRAWS not in os.environ:
      figures.save = lambda folder, drawings: folder.mkdir(exist_ok=True)
    if what == CLI:
      sys.exit(hydra_jax.cli.command())
    sys.argv[0] = what[0]
    runpy.run_path(what[0], run_name='__main__')
