"""Many processes that act as one: how they find each other, what all agree on, and who writes."""

from collections.abc import Callable, Iterator
import contextlib
import importlib.util
import itertools
import os
from pathlib import Path
import sys

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import multihost

from hydra_jax.errors import UserError

HEARTBEAT_SECONDS = 30
LONGEST_MESSAGE = 2048
LONGEST_WAIT_MS = 7 * 24 * 3600 * 1000
ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'


def are_many() -> bool:
  """Whether the environment is one where each host, or each GPU, runs a process of its own."""
  env = os.environ
  by_hand = COUNT in env and INDEX in env
  slurm = 'SLURM_STEP_NODELIST' in env and int(env.get('SLURM_NTASKS', 1)) > 1
  slices = ',' in env.get('TPU_WORKER_HOSTNAMES', '') or int(env.get('MEGASCALE_NUM_SLICES') or 1) > 1
  return by_hand or slurm or slices


def may_be_many() -> bool:
  """Whether this is a host of TPUs, of which only JAX finds out whether there are others."""
  return importlib.util.find_spec('libtpu') is not None and any(map(os.path.exists, ('/dev/accel0', '/dev/vfio')))


def join() -> None:
  """Joins the other processes; before JAX is used in any other way.

  Where JAX does not find out by itself, three variables say it: the address and port of process 0, the number of
  processes, and which one this is.
  """
  named = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}
  given = {}
  if COUNT in named or INDEX in named:
    if missing := {ADDRESS, COUNT, INDEX} - set(named):
      raise UserError(
        f'{", ".join(sorted(named))} is set and {", ".join(sorted(missing))} is not: set all three, or none'
      )
    try:
      given = dict(coordinator_address=named[ADDRESS], num_processes=int(named[COUNT]), process_id=int(named[INDEX]))
    except ValueError as e:
      raise UserError(f'{COUNT} and {INDEX} must be whole numbers: {e}') from e
    if not 0 <= given['process_id'] < given['num_processes']:
      raise UserError(f'{INDEX}={named[INDEX]} must be from 0 to {given["num_processes"] - 1}, less than {COUNT}')
  jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from `listen`
  try:
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
  except (RuntimeError, ValueError) as e:
    reason = (str(e).splitlines() or [type(e).__name__])[0]
    raise UserError(
      f'cannot join the other processes ({reason}): run on a TPU pod or under Slurm, '
      f'or set {ADDRESS}, {COUNT} and {INDEX}'
    ) from e


def is_main() -> bool:
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


_meetings = itertools.count()


def meet() -> None:
  """Waits until all processes are here, however long that takes; collectives of devices give up after a while."""
  if jax.process_count() > 1:
    multihost.get_barrier_sync_fn()(key=f'hydra_jax {next(_meetings)}', timeout_ms=LONGEST_WAIT_MS)


def anywhere(flag: bool) -> bool:
  """Whether a flag is set in any process."""
  if jax.process_count() == 1:
    return flag
  meet()
  return bool(np.max(multihost_utils.process_allgather(np.int32(flag))))


def on_main(f: Callable[[], object]) -> str:
  """Does something in process 0 alone, and returns what it returned, as text, in all; raises in all what it raised."""
  if jax.process_count() == 1:
    return str(f() or '')
  failed, text = None, ''
  if is_main():
    try:
      text = '+' + str(f() or '')
    except (UserError, OSError) as e:
      failed, text = e, f'-{e}'
  meet()
  message = np.zeros(LONGEST_MESSAGE, np.uint8)
  encoded = np.frombuffer(text.encode()[:LONGEST_MESSAGE], np.uint8)
  message[: len(encoded)] = encoded
  heard = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message))).rstrip(b'\0').decode(errors='ignore')
  if failed:
    raise failed
  if heard.startswith('-'):
    raise UserError(heard[1:])
  return heard[1:]


@contextlib.contextmanager
def entered(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[str]:
  """Enters a context in process 0 alone; gives all what it gives, as text."""
  with contextlib.ExitStack() as stack:
    entering = on_main(lambda: stack.enter_context(context()))
    yield entering
    on_main(stack.pop_all().close)


def leave(code: int) -> None:
  """Ends this process at once where there are others, who might wait for it or it for them; they notice."""
  if jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rank_folder(folder: Path) -> Path:
  """A folder for what each process writes by itself, such as a profile."""
  return folder / f'process-{jax.process_index()}' if jax.process_count() > 1 else folder
