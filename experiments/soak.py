"""Does a run survive what machines do to it? Faults are really injected, and results compared to the byte.

    python -m experiments.soak [--faults 50] [--seed 0] [--faults-per-run 5] [--quick] [--workdir DIR] [--output FILE]

One run of the digits config is left alone. Others are disturbed at random moments, and started again by the
same command each time, until they finish:

* SIGKILL, as when memory runs out or a machine is lost: nothing can be saved any more.
* SIGTERM, as clouds send before they take a machine away: it must save, and exit with code 75.
* The disk is full, for a while (a small tmpfs; where none can be mounted, no file can grow beyond a limit): it must
  say so in one line, and exit with code 2.
* The newest checkpoint is cut in half: it must be left out, and an older one taken.

A run is lost if it ends in any other way, or with other results. Exits with 1 if any is.
"""

import argparse
import collections
from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
import itertools
import json
import os
from pathlib import Path
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CONFIG = ['--config=configs/digits.py:epochs=150', '--config.checkpoint_seconds=0.2']
CONFIG += [f'--config.student.{s}.epochs=40' for s in ('kd', 'hydra')]
CONFIG += ['--config.student.hydra.hinton_epochs=40', '--config.data.shifts=()', '--config.data.ood=()']
# Fewer students, members and passes. The last value of a setting counts.
QUICK = ["--config.students=('hydra',)", '--config.teacher.members=4', '--config.training.epochs=60']
QUICK += ['--config.student.hydra.epochs=15', '--config.student.hydra.hinton_epochs=0']
KINDS = ('SIGKILL', 'SIGTERM', 'full disk', 'damaged checkpoint')
DISK_BYTES = 192 * 2**20
LIMIT_BYTES = 20_000
# A run that should have been stopped is given so long to finish by itself.
PATIENCE = 600


@dataclass(frozen=True)
class Disk:
  """A folder to work in, and whether it is a separate file system that can be filled."""

  folder: Path
  small: bool


@contextlib.contextmanager
def disk(parent: Path) -> Iterator[Disk]:
  """A small file system in memory, where this user may mount one, or else a plain folder."""
  folder = Path(tempfile.mkdtemp(prefix='soak-', dir=parent))
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={DISK_BYTES}', 'tmpfs', str(folder)]
  small = bool(shutil.which('mount')) and subprocess.run(mount, capture_output=True).returncode == 0
  try:
    yield Disk(folder, small)
  finally:
    if small:
      subprocess.run(['umount', str(folder)], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def start(workdir: Path, limited: bool = False) -> subprocess.Popen:
  """The command, as a separate process."""
  command = [sys.executable, '-m', 'hydra_jax.cli', 'run', *CONFIG, f'--workdir={workdir}']
  limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    preexec_fn=limit if limited else None,
  )


def checkpoints(workdir: Path) -> list[Path]:
  """Those of a phase in progress, oldest first."""
  return sorted(workdir.glob('artifacts/*.progress/[0-9]*'), key=lambda p: int(p.name))


def finished(process: subprocess.Popen) -> tuple[int, str]:
  """Exit code, and all it said."""
  out, err = process.communicate(timeout=PATIENCE)
  return process.returncode, out + err


def signalled(name: str, expected: int, workdir: Path, seconds: float) -> str | None:
  """Sends a signal after some time; returns what went wrong, '' if nothing, or None if the run was over before."""
  process = start(workdir)
  time.sleep(seconds)
  if process.poll() is None:
    os.killpg(process.pid, getattr(signal, name))
  code, said = finished(process)
  if code == 0:
    return None
  return '' if code == expected else f'exit {code} after {name}: {said[-2000:]}'


def filled(where: Disk, workdir: Path, seconds: float) -> str | None:
  """Leaves no room on the disk, until the run has noticed."""
  process = start(workdir, limited=not where.small)
  filler = where.folder / 'filler'
  if where.small:
    time.sleep(seconds)
    with contextlib.suppress(OSError), open(filler, 'wb') as file:
      while True:
        file.write(bytes(4096))
        file.flush()
  code, said = finished(process)
  filler.unlink(missing_ok=True)
  if code == 0:
    return None
  good = code == 2 and ('disk is full' in said or 'larger than the limit' in said) and 'Traceback' not in said
  return '' if good else f'exit {code} with a full disk: {said[-2000:]}'


def damaged(workdir: Path, seconds: float) -> str | None:
  """Cuts the largest file of the newest checkpoint in half, once there is one, and goes on for a while."""
  process = start(workdir)
  while process.poll() is None and not checkpoints(workdir):
    time.sleep(0.01)
  time.sleep(min(seconds, 1.0))
  if process.poll() is None:
    os.killpg(process.pid, signal.SIGKILL)
  finished(process)
  found = checkpoints(workdir)
  if not found:
    return None
  largest = max((p for p in found[-1].rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  process = start(workdir)
  said = ''
  for line in process.stdout:
    said += line
    if 'left out' in line:
      break
  os.killpg(process.pid, signal.SIGKILL)
  said += finished(process)[1]
  return '' if 'left out' in said else f'a damaged checkpoint was not noticed: {said[-2000:]}'


def inject(kind: str, where: Disk, workdir: Path, seconds: float) -> str | None:
  """One fault; returns what went wrong, '' if nothing did, or None if the run was over before."""
  if kind == 'full disk':
    return filled(where, workdir, seconds)
  if kind == 'damaged checkpoint':
    return damaged(workdir, seconds)
  return signalled(kind, {'SIGKILL': -signal.SIGKILL, 'SIGTERM': 75}[kind], workdir, seconds)


def soak(faults: int, per_run: int, seed: int, parent: Path) -> dict:
  """Disturbs runs until a number of faults were injected; returns the counts."""
  chance, kinds = random.Random(seed), itertools.cycle(KINDS)
  injected, problems, runs, identical = collections.Counter(), [], 0, 0
  kind = next(kinds)
  with disk(parent) as where:
    begun = time.monotonic()
    code, said = finished(start(where.folder / 'undisturbed'))
    undisturbed = lasts = time.monotonic() - begun
    if code:
      raise SystemExit(f'the undisturbed run failed:\n{said}')
    expected = (where.folder / 'undisturbed' / 'results.jsonl').read_bytes()
    shutil.rmtree(where.folder / 'undisturbed')
    while injected.total() < faults:
      workdir = where.folder / f'run-{runs}'
      for _ in range(min(per_run, faults - injected.total())):
        problem = inject(kind, where, workdir, chance.uniform(0.1, 0.8) * lasts)
        if problem is None:
          # It was over before. The next run gets this fault, and sooner: the first run had to compile.
          lasts /= 2
          break
        injected[kind] += 1
        kind, last = next(kinds), kind
        problems += [problem] * bool(problem)
        print(f'{injected.total():4d} {last:20s} {"LOST: " + problem if problem else "survived"}', flush=True)
      code, said = finished(start(workdir))
      runs += 1
      same = code == 0 and (workdir / 'results.jsonl').read_bytes() == expected
      identical += same
      if not same:
        problems.append(f'run {runs}: exit {code}, results {"differ" if code == 0 else "missing"}: {said[-2000:]}')
        print(problems[-1], flush=True)
      shutil.rmtree(workdir, ignore_errors=True)
    disk_kind = 'tmpfs' if where.small else 'file-size limit'
  return {
    'faults': dict(injected),
    'total': injected.total(),
    'runs finished': runs,
    'identical': identical,
    'lost': len(problems),
    'disk': disk_kind,
    'seconds undisturbed': round(undisturbed, 1),
  }


def reported(found: dict, output: Path | None) -> int:
  """Prints what came of the runs and writes it to a file, if one is given. Returns the exit code."""
  print(f'{found["total"]} faults, {found["runs finished"]} runs finished', end=', ')
  print(f'{found["identical"]} with results identical to the undisturbed run, {found["lost"]} lost')
  if output:
    output.write_text(json.dumps(found, indent=2) + '\n')
  return 1 if found['lost'] else 0


def main(arguments: list[str] | None = None) -> int:
  """Runs it and prints the counts."""
  p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  p.add_argument('--faults', type=int, default=50)
  p.add_argument('--faults-per-run', type=int, default=5)
  p.add_argument('--seed', type=int, default=0)
  p.add_argument('--quick', action='store_true', help='shorter runs')
  p.add_argument('--workdir', type=Path, default=None, help='where the small disk is mounted (default: a new folder)')
  p.add_argument('--output', type=Path, default=None, help='also write the counts there, as JSON')
  options = p.parse_args(arguments)
  if options.quick:
    CONFIG.extend(QUICK)
  with tempfile.TemporaryDirectory() as own:
    found = soak(options.faults, options.faults_per_run, options.seed, options.workdir or Path(own))
  print('faults injected: ' + ', '.join(f'{count} {kind}' for kind, count in found['faults'].items()))
  return reported(found, options.output)


if __name__ == '__main__':
  sys.exit(main())
