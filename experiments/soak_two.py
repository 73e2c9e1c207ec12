"""Does a run of two processes survive the loss of either? Faults are really injected, and results compared to the byte.

    python -m experiments.soak_two [--faults 20] [--seed 0] [--faults-per-run 4] [--quick] [--output FILE]

`experiments.soak` is the same for one process. Here two processes of this machine train one digits run. One run is left
alone. In others, process 0 or 1 gets a signal at a random moment. When both have ended, the same command starts both
again, until they finish. The signals are:

* SIGKILL, as when a host is lost: the other process must end with code 76, or by SIGABRT.
* SIGTERM, as clouds send before they take a host away: both must end with code 75.
* SIGSTOP, as when a host hangs: as SIGKILL. When the other process has ended, the stopped one is killed.

Every twelfth signal comes while the processes join. The other process must end in time, see `limit`. Its last line is
kept as its message. A run is lost if it ends in any other way, prints a traceback, or has other results than the
undisturbed run. Exits with 1 if any is.
"""

import argparse
import collections
from collections.abc import Sequence
from dataclasses import asdict, dataclass
import itertools
import os
from pathlib import Path
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import IO

from experiments import soak
from hydra_jax.devices import processes

CONFIG = ['--config=configs/digits.py:members=4,epochs=50', "--config.students=('hydra',)"]
CONFIG += ['--config.student.hydra.epochs=12', '--config.student.hydra.hinton_epochs=0']
CONFIG += ['--config.data.shifts=()', '--config.data.ood=()']
CONFIG += ['--config.checkpoint_seconds=0.2', '--config.parallel.mesh.head=2']
QUICK = ['--config.training.epochs=20', '--config.student.hydra.epochs=2']
EARLY = 12  # one signal in twelve comes while the processes join
FAULTS = tuple(itertools.product(('SIGKILL', 'SIGTERM', 'SIGSTOP'), (1, 0)))
# Seconds that a run may take that is left alone, and the saving after SIGTERM.
PATIENCE, SAVING = 600, 60
# What a busy machine may add to the times of the library.
BUSY = 10


@dataclass(frozen=True)
class Fault:
  """A signal that was sent, and what came of it.

  Attributes:
    kind: Name of the signal.
    process: Index of the process that got it.
    joined: Whether the processes had joined.
    seconds: From the signal to the end of the other process.
    codes: Exit codes of process 0 and process 1.
    message: Last line of the other process.
    problem: What went wrong, or ''.
  """

  kind: str
  process: int
  joined: bool
  seconds: float
  codes: tuple[int | None, ...]
  message: str
  problem: str


def start(command: list[str], log: IO[str], environment: dict[str, str]) -> subprocess.Popen:
  """One process."""
  return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


class Two:
  """Both processes of a run. What they say goes to files beside `workdir`."""

  def __init__(self, workdir: Path, lost_after: float):
    """Starts them."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    environment = os.environ | {
      'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
      'JAX_NUM_PROCESSES': '2',
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=1',
    }
    command = [sys.executable, '-m', 'hydra_jax.cli', 'run', *CONFIG, f'--workdir={workdir}', '--distributed']
    command.append(f'--lost_after={lost_after}')
    self.logs = [workdir.with_name(f'{workdir.name}-{index}.log') for index in range(2)]
    self.each = []
    for index, log in enumerate(self.logs):
      with open(log, 'w') as file:
        self.each.append(start(command, file, environment | {'JAX_PROCESS_ID': str(index)}))

  def wait(self, seconds: float, indices: Sequence[int] = (0, 1)) -> None:
    """Waits until some have ended, or the time is over."""
    until = time.monotonic() + seconds
    while any(self.each[index].poll() is None for index in indices) and time.monotonic() < until:
      time.sleep(0.02)

  def joined(self) -> bool:
    """Whether the processes have joined. Process 0 says its first line then."""
    return bool(self.logs[0].read_text(errors='replace'))

  def kill(self) -> None:
    """Ends what still runs."""
    for process in self.each:
      process.kill()
      process.wait()

  def codes(self) -> tuple[int | None, ...]:
    """Exit codes; None of one that runs."""
    return tuple(process.poll() for process in self.each)

  def said(self, index: int) -> str:
    """All that a process has said."""
    return self.logs[index].read_text(errors='replace')


def message(said: str) -> str:
  """The last line, without what differs from run to run. Of what JAX says before SIGABRT it is that with the reason."""
  lines = said.strip().split('\n')
  (line,) = [each for each in lines if re.match(r'F\d{4} |terminate called', each)][-1:] or lines[-1:]
  for pattern, name in (
    (r'^F\d{4} \S+ +\d+ \S+ ', ''),
    (r'\S*\d+\.\d+\.\d+\.\d+[\]:\d]*|\[[\da-f:]+\]:\d+', 'ADDRESS'),
    (r'(?<!\w)(/[\w.@-]+)+', 'PATH'),
    (r'\bstep \d+', 'step N'),
  ):
    line = re.sub(pattern, name, line)
  return line


def limit(kind: str, joined: bool, lost_after: float) -> float:
  """Seconds within which the other process must end."""
  if not joined:
    return processes.JOIN_SECONDS + BUSY
  return SAVING if kind == 'SIGTERM' else lost_after + processes.FAREWELL_SECONDS + BUSY


def promised(kind: str, joined: bool) -> tuple[int, ...]:
  """Exit codes that the other process may have, see docs/exit_codes.md."""
  lost = (76, -signal.SIGABRT)
  return (75,) if kind == 'SIGTERM' and joined else (75, *lost) if kind == 'SIGTERM' else lost


def inject(kind: str, process: int, workdir: Path, lost_after: float, early: bool, seconds: float) -> Fault | None:
  """One fault, `seconds` after the start, if `early`, or else after the processes have joined.

  None if the run was over before.
  """
  two, other = Two(workdir, lost_after), 1 - process
  try:
    while not early and not two.joined() and None in two.codes():
      time.sleep(0.02)
    two.wait(seconds)
    joined = two.joined()
    if two.each[process].poll() is None:
      two.each[process].send_signal(getattr(signal, kind))
    begun = time.monotonic()
    two.wait(limit(kind, joined, lost_after), [other])
    took, hangs = time.monotonic() - begun, two.each[other].poll() is None
    if kind == 'SIGTERM':
      two.wait(SAVING)
  finally:
    two.kill()
  codes, said = two.codes(), [two.said(index) for index in range(2)]
  if codes[other] == 0:
    return None
  problem = ''
  if codes[other] not in promised(kind, joined) or codes[process] != (75 if kind == 'SIGTERM' else -signal.SIGKILL):
    problem = f'exit codes {codes}'
  if 'Traceback' in ''.join(said):
    problem = 'traceback'
  if hangs:
    problem = f'hangs for {took:.0f} s'
  if problem:
    problem += ''.join(f'\n--- process {index}:\n{each[-3000:]}' for index, each in enumerate(said))
  return Fault(kind, process, joined, round(took, 1), codes, message(said[other]), problem)


def left_alone(workdir: Path, lost_after: float) -> tuple[float, float, str]:
  """Seconds until the processes have joined, seconds from then to the end, and what went wrong, or ''."""
  begun = time.monotonic()
  two = Two(workdir, lost_after)
  while not two.joined() and None in two.codes():
    time.sleep(0.02)
  joined = time.monotonic()
  two.wait(PATIENCE)
  codes = two.codes()
  two.kill()
  wrong = '' if codes == (0, 0) else f'exit codes {codes}\n{two.said(0)[-3000:]}\n{two.said(1)[-3000:]}'
  return joined - begun, time.monotonic() - joined, wrong


def disturb(count: int, per_run: int, seed: int, folder: Path, lost_after: float) -> dict:
  """Disturbs runs until a number of faults were injected; returns what came of them."""
  chance, kinds = random.Random(seed), itertools.cycle(FAULTS)
  faults: list[Fault] = []
  runs = identical = 0
  joining, lasts, wrong = left_alone(folder / 'undisturbed', lost_after)
  if wrong:
    raise SystemExit(f'the undisturbed run failed: {wrong}')
  expected = (folder / 'undisturbed' / 'results.jsonl').read_bytes()
  kind, process = next(kinds)
  while len(faults) < count:
    workdir = folder / f'run-{runs}'
    for _ in range(min(per_run, count - len(faults))):
      early = len(faults) % EARLY == EARLY - 1
      seconds = chance.uniform(0, joining if early else 0.8 * lasts)
      fault = inject(kind, process, workdir, lost_after, early, seconds)
      if fault is None:
        break  # the next run gets this fault
      faults.append(fault)
      when = '' if fault.joined else ' while they join'
      came = f'exit codes {fault.codes} after {fault.seconds:5.1f} s: {fault.problem or fault.message}'
      print(f'{len(faults):4d} {kind} of process {process}{when}, {came}', flush=True)
      kind, process = next(kinds)
    _, _, wrong = left_alone(workdir, lost_after)
    runs += 1
    same = not wrong and (workdir / 'results.jsonl').read_bytes() == expected
    identical += same
    print(f'run {runs}: {"identical" if same else "LOST: " + (wrong or "other results")}', flush=True)
    shutil.rmtree(workdir, ignore_errors=True)
  problems = sum(bool(fault.problem) for fault in faults)
  return {
    'total': len(faults),
    'runs finished': runs,
    'identical': identical,
    'lost': problems + runs - identical,
    'lost_after': lost_after,
    'seconds undisturbed': round(joining + lasts, 1),
    'kinds': {f'{kind} of process {process}': summary(faults, kind, process) for kind, process in FAULTS},
    'while they join': sum(not fault.joined for fault in faults),
    'faults': [asdict(fault) for fault in faults],
  }


def summary(faults: Sequence[Fault], kind: str, process: int) -> dict:
  """Counts of one kind of fault, and the seconds from the signal to the end of the other process."""
  these = [fault for fault in faults if (fault.kind, fault.process) == (kind, process)]
  found: dict = {'faults': len(these)}
  if seconds := [fault.seconds for fault in these]:
    found['seconds'] = dict(least=min(seconds), median=statistics.median(seconds), greatest=max(seconds))
  found['exit codes of processes 0 and 1'] = collections.Counter(str(fault.codes) for fault in these)
  found['messages'] = collections.Counter(fault.message for fault in these)
  return found


def main(arguments: list[str] | None = None) -> int:
  """Runs it and prints the counts."""
  p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  p.add_argument('--faults', type=int, default=20)
  p.add_argument('--faults-per-run', type=int, default=4)
  p.add_argument('--seed', type=int, default=0)
  p.add_argument('--lost_after', type=float, default=10.0, help='as of hydra-jax (default: 10)')
  p.add_argument('--quick', action='store_true', help='shorter runs')
  p.add_argument('--workdir', type=Path, default=None, help='where a new folder for the runs is made')
  p.add_argument('--output', type=Path, default=None, help='also write the counts there, as JSON')
  options = p.parse_args(arguments)
  if options.quick:
    CONFIG.extend(QUICK)
  with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
    found = disturb(options.faults, options.faults_per_run, options.seed, Path(folder), options.lost_after)
  for name, kind in found['kinds'].items():
    print(f'{name}: {kind["faults"]} faults, {kind.get("seconds", "")}')
  return soak.reported(found, options.output)


if __name__ == '__main__':
  sys.exit(main())
