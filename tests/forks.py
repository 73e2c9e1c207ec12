"""Runs the command line in processes that have their imports already: a test process starts this one, and asks it.

    python tests/forks.py SOCKET

Imports take three seconds of each command. A forked process is like any other. It has its own arguments, working
directory, output and exit code. Its interpreter ends as always.
"""

import array
import gc
import json
import os
import socket
import sys
import warnings

SIZE = 2**20


def ask(place: str, arguments: list[str], cwd: str, environment: dict[str, str], out, err) -> int:
  """Runs one command and returns its exit code."""
  with socket.socket(socket.AF_UNIX) as server:
    server.connect(place)
    files = array.array('i', [out.fileno(), err.fileno()])
    text = json.dumps([arguments, cwd, environment]).encode()
    server.sendmsg([text + b'\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.settimeout(600)
    return int(server.recv(SIZE))


def become(arguments: list[str], cwd: str, environment: dict[str, str], files: array.array) -> None:
  """Makes this process what `python -m hydra_jax.cli` would be."""
  sys.argv[1:] = arguments
  os.chdir(cwd)
  os.environ.clear()
  os.environ.update(environment)
  sys.path[0] = cwd
  for target, file in zip((1, 2), files, strict=True):
    os.dup2(file, target)


def serve(place: str) -> bool:
  """Answers requests until nobody can ask any more. Returns True in a process that is to run a command."""
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(place)
  listener.listen()
  parent = os.getppid()
  listener.settimeout(1.0)
  while os.getppid() == parent:
    try:
      client, _ = listener.accept()
    except TimeoutError:
      continue
    client.settimeout(None)
    files, text = array.array('i'), b''
    while not text.endswith(b'\n'):
      some, more, *_ = client.recvmsg(SIZE, socket.CMSG_SPACE(64))
      text += some
      for _, _, data in more:
        files.frombytes(data)
    child = os.fork()
    if not child:
      client.close()
      listener.close()
      become(*json.loads(text), files)
      return True
    for file in files:
      os.close(file)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall(str(code).encode())
    client.close()
  return False


if __name__ == '__main__':
  import hydra_jax.cli
  from hydra_jax.data import toy
  from hydra_jax.experiment import provenance
  import hydra_jax.experiment.paper_tables
  import hydra_jax.experiment.run
  import hydra_jax.serving.predict_files  # noqa: F401

  warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)  # JAX has no threads before it is asked for a device
  warnings.filterwarnings('ignore', 'This process', DeprecationWarning)
  for layer in ('training', 'evaluation', 'cost'):
    provenance.digest(layer)
  toy.letters()
  gc.freeze()  # a fork that looks at all these objects would copy their memory
  if serve(sys.argv[1]):
    warnings.resetwarnings()
    sys.exit(hydra_jax.cli.command())
