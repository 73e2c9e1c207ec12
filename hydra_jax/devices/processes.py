"""Many processes that act as one: how they find each other, agree, write, and end.

Processes talk through the key-value store of JAX's coordination service, which process 0 runs. There each process
writes that it is alive, and why it ends. So a process that is killed, stopped or fails ends the others too.
"""

import atexit
from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
from dataclasses import dataclass
import hashlib
import importlib.util
import itertools
import json
import logging
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any

import jax
from jax._src.distributed import global_state  # nothing public gives the key-value store

from hydra_jax import store
from hydra_jax.devices.preemption import LOST
from hydra_jax.errors import UserError

logger = logging.getLogger(__name__)

# All times are in seconds. A process that is silent for this time is lost.
LOST_AFTER = 45.0
# JAX ends processes by SIGABRT, without a helpful message. So JAX has to be slower than we are.
JAX_IS_SLOWER_BY = 60
JOIN_SECONDS = 300
# A program at the address of process 0 that does not answer like a coordinator for this time is another program.
ANOTHER_PROGRAM_AFTER = 20.0
NOBODY_THERE_AFTER = 30.0
# The store ends with process 0. So process 0 waits at most this time for the others to read why it ends.
FAREWELL_SECONDS = 5.0
ENDING_SECONDS = 0.5  # from the last line of a process to its end
# The other processes see a file that process 0 has written within this time.
SHARED_WITHIN = 10.0
ADDRESS, COUNT, INDEX = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'
HTTP2 = b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def are_many() -> bool:
  """Whether the environment starts several processes: by our variables, by Slurm, or on slices of TPUs."""
  env = os.environ
  by_hand = COUNT in env and INDEX in env
  slurm = 'SLURM_STEP_NODELIST' in env and int(env.get('SLURM_NTASKS', 1)) > 1
  slices = ',' in env.get('TPU_WORKER_HOSTNAMES', '') or int(env.get('MEGASCALE_NUM_SLICES') or 1) > 1
  return by_hand or slurm or slices


def may_be_many() -> bool:
  """Whether this is a host of TPUs. Only JAX finds out whether there are other hosts."""
  return importlib.util.find_spec('libtpu') is not None and any(map(os.path.exists, ('/dev/accel0', '/dev/vfio')))


_joining = False


def join(lost_after: float = LOST_AFTER) -> None:
  """Joins the other processes. It must be called before any other use of JAX.

  Where JAX does not find the processes by itself, three variables are needed: the address and port of process 0, the
  number of processes, and the index of this process.

  Args:
    lost_after: Seconds of silence after which a process counts as lost. The others then end.

  Raises:
    UserError: The variables are wrong, or the processes cannot join.
    TimeoutError: Not all have joined in time.
  """
  global _joining
  named = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if name in os.environ}
  options: dict[str, Any] = {}
  if COUNT in named or INDEX in named:
    if missing := {ADDRESS, COUNT, INDEX} - set(named):
      raise UserError(
        f'{", ".join(sorted(named))} is set and {", ".join(sorted(missing))} is not: set all three, or none'
      )
    try:
      options = dict(coordinator_address=named[ADDRESS], num_processes=int(named[COUNT]), process_id=int(named[INDEX]))
    except ValueError as e:
      raise UserError(f'{COUNT} and {INDEX} must be whole numbers: {e}') from e
    if not 0 <= options['process_id'] < options['num_processes']:
      raise UserError(f'{INDEX}={named[INDEX]} must be from 0 to {options["num_processes"] - 1}, less than {COUNT}')
    if options['process_id'] == 0 and _answers(named[ADDRESS]) is not None:
      raise UserError(f'{ADDRESS}={named[ADDRESS]}: another program listens on that port: choose another on all')
  jax.config.update('jax_enable_preemption_service', False)  # the service would replace our handler of SIGTERM
  seconds = int(lost_after) + JAX_IS_SLOWER_BY
  begin = lambda: jax.distributed.initialize(
    **options,
    initialization_timeout=JOIN_SECONDS + JAX_IS_SLOWER_BY,
    heartbeat_timeout_seconds=seconds,
    shutdown_timeout_seconds=seconds,
  )
  _joining = True
  try:
    _interruptible(begin, _looking_for_the_coordinator())
  except (UserError, TimeoutError):
    raise
  except (RuntimeError, ValueError) as e:
    _joining = False
    raise UserError(
      f'cannot join the other processes ({store.one_line(e)}): run on a TPU pod or under Slurm, '
      f'or set {ADDRESS}, {COUNT} and {INDEX}'
    ) from e
  _joining = False
  if group := _group():
    _watch(group, lost_after)


def _interruptible(f: Callable[[], object], meanwhile: Callable[[], None]) -> None:
  """Calls `f` in a thread, and `meanwhile` ten times a second.

  Python handles no signals while its main thread is in C++.
  """
  failed: list[BaseException] = []

  def call():
    try:
      f()
    except BaseException as e:
      failed.append(e)

  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  while thread.is_alive():
    thread.join(0.1)
    meanwhile()
  if failed:
    raise failed[0]


def _looking_for_the_coordinator() -> Callable[[], None]:
  """A function to call while a process joins.

  It prints a line if process 0 does not answer, and raises a `UserError` if another program answers. It raises a
  `TimeoutError` if not all have joined in time.
  """
  begun = asked = time.monotonic()
  wrong_since, said = None, False

  def look():
    nonlocal asked, wrong_since, said
    now, address = time.monotonic(), global_state.coordinator_address
    if now - begun > JOIN_SECONDS:
      raise TimeoutError(f'not all {global_state.num_processes} processes have joined within {JOIN_SECONDS} s')
    encrypted = getattr(jax.config, 'jax_mtls_cert_file', None)
    if not address or global_state.service is not None or encrypted or now - asked < 2:
      return
    answers, asked = _answers(address), now
    wrong_since = (wrong_since or now) if answers is False else None
    if wrong_since and now - wrong_since > ANOTHER_PROGRAM_AFTER:
      raise UserError(
        f'cannot join the other processes: what listens on {address} is another program, so process 0 could not start: '
        'choose another port on all'
      )
    if answers is None and now - begun > NOBODY_THERE_AFTER and not said:
      said = True
      logger.warning(
        f'process 0 does not answer at {address} (it has not started, or has ended, or its port is taken): '
        f'waits {JOIN_SECONDS - (now - begun):.0f} s more'
      )

  return look


def _answers(address: str) -> bool | None:
  """Whether the program at an address talks as a coordinator does; None where nothing listens."""
  host, _, port = address.rpartition(':')
  try:
    connection = socket.create_connection((host.strip('[]'), int(port)), 3)
  except (OSError, ValueError):
    return None
  with connection, contextlib.suppress(OSError):
    connection.sendall(HTTP2)
    return connection.recv(9)[3:4] == bytes([4])  # gRPC begins with a frame of settings
  return False


@dataclass(frozen=True)
class Group:
  """The processes that act as one.

  Attributes:
    client: Of the key-value store.
    index: Of this process, as the environment gives it.
    count: Number of processes.
  """

  client: Any
  index: int
  count: int


def _group() -> Group | None:
  """The group that this process has joined; None where it is the only process."""
  client, count = global_state.client, global_state.num_processes
  return Group(client, global_state.process_id, count) if client is not None and count > 1 else None


def joined() -> bool:
  """Whether this process has joined others, or tries to."""
  return _group() is not None or (_joining and global_state.num_processes > 1)


def is_main() -> bool:
  """Whether this is process 0, which writes files and prints."""
  return jax.process_index() == 0


_meetings = itertools.count()


def gather_texts(text: str = '', what: str = '', seconds: float = float('inf')) -> list[str]:
  """Gives every process a short text of each process. Waits until all have called it; signals are handled meanwhile.

  Args:
    text: Of this process.
    what: Name of the place in the program, which must be the same in all processes.
    seconds: How long to wait for processes that are alive and do not call it.

  Returns:
    The texts, by index of the process.

  Raises:
    UserError: Processes are at different places, or do not come in time.
  """
  group = _group()
  if group is None:
    return [text]
  number, begun, pause = next(_meetings), time.monotonic(), 0.001
  place = f'hydra_jax/meeting/{number}/'
  group.client.key_value_set(f'{place}{group.index}', json.dumps([what, text]))
  while len(found := group.client.key_value_dir_get(place)) < group.count:
    if time.monotonic() - begun > seconds:
      raise UserError(f"not all processes have come to '{what}' within {seconds:.0f} s: start the same command on all")
    time.sleep(pause)
    pause = min(2 * pause, 0.1)
  if group.index == 0 and number:
    group.client.key_value_delete(f'hydra_jax/meeting/{number - 1}/')  # all have read it
  said = {int(key.rpartition('/')[2]): json.loads(value) for key, value in found}
  for index in range(group.count):
    if said[index][0] != said[0][0]:
      raise UserError(
        f"the processes are not at the same place (process 0 at '{said[0][0]}', process {index} at "
        f"'{said[index][0]}'): start the same command with the same files on all"
      )
  return [said[index][1] for index in range(group.count)]


def barrier() -> None:
  """A barrier: waits until all processes have called it. Unlike collectives of devices it has no time limit."""
  gather_texts(what='barrier')


def any_process(flag: bool) -> bool:
  """Whether a flag is set in any process. All processes must call it."""
  return any(gather_texts('x' if flag else '', 'any_process'))


def run_on_main(f: Callable[[], object], what: str = '') -> str:
  """Calls a function in process 0 alone. All processes must call this.

  Args:
    f: The function. Its result is turned into text; what is false becomes ''.
    what: Name of the place in the program, see `gather_texts`; by default the name of the function.

  Returns:
    The text, in all processes.

  Raises:
    UserError: In all processes, where the function raises a `UserError` or an `OSError`. Process 0 raises the error
      itself.
  """
  if _group() is None:
    return str(f() or '')
  failed, text = None, ''
  if is_main():
    try:
      text = '+' + str(f() or '')
    except (UserError, OSError) as e:
      failed, text = e, f'-{e}'
  (heard,) = filter(None, gather_texts(text, what or f.__qualname__))
  if failed:
    raise failed
  if heard.startswith('-'):
    raise UserError(heard[1:])
  return heard[1:]


@contextlib.contextmanager
def main_process_context(context: Callable[[], contextlib.AbstractContextManager]) -> Iterator[str]:
  """Enters a context in process 0 alone. Its value is given to all processes, as text."""
  with contextlib.ExitStack() as stack:
    entering = run_on_main(lambda: stack.enter_context(context()))
    yield entering
    run_on_main(stack.pop_all().close)


def agree(facts: Mapping[str, str], seconds: float = float('inf')) -> None:
  """Compares values that must be equal in all processes.

  Args:
    facts: Values by name, such as `config.seed`.
    seconds: See `gather_texts`.

  Raises:
    UserError: In all processes, where any two differ. The message names the values and the processes.
  """
  group = _group()
  if group is None:
    return
  digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()
  if len(set(gather_texts(digest, 'agree', seconds))) == 1:
    return
  text = json.dumps(dict(facts))
  first = json.loads(gather_texts(text if group.index == 0 else '', 'facts')[0])
  names = [name for name in {**first, **facts} if first.get(name) != facts.get(name)]
  texts = [f'{n} ({_short(first.get(n))} in process 0, {_short(facts.get(n))} in process {group.index})' for n in names]
  more = f' and {len(names) - 3} more' if len(names) > 3 else ''
  found = [each for each in gather_texts(', '.join(texts[:3]) + more, 'differences') if each]
  more = f'; and so do {len(found) - 3} more processes' if len(found) > 3 else ''
  raise UserError(
    f'the processes differ in {"; ".join(found[:3])}{more}: start the same command with the same files on all'
  )


def _short(value: str | None) -> str:
  return 'none' if value is None else store.one_line(value, 60)


def check_shared(folder: Path) -> None:
  """Checks that all processes see the same folder.

  Raises:
    UserError: In all processes, where they do not.
  """
  if _group() is None:
    return
  mark = run_on_main(lambda: store.mark(folder))
  until = time.monotonic() + SHARED_WITHIN
  while not (seen := (folder / mark).exists()) and time.monotonic() < until:
    time.sleep(0.1)
  unseen = gather_texts('' if seen else str(folder.absolute()), 'work directory')
  run_on_main((folder / mark).unlink)
  if blind := {index: place for index, place in enumerate(unseen) if place}:
    index, place = next(iter(blind.items()))
    raise UserError(
      f'the processes differ in the work directory: process {index} does not see in {place} what process 0 has written '
      'there: give all the same --workdir, on a file system that all share'
    )


def _watch(group: Group, lost_after: float) -> None:
  """Starts two threads: `talk` writes that this process is alive, `look` ends it when another has ended or is lost."""
  interval = min(1.0, lost_after / 20)
  now = time.monotonic()
  answered, heard = now, {index: ('', now) for index in range(group.count)}
  ended: dict[int, list] = {}
  stopped = threading.Event()

  def talk():
    nonlocal answered
    for beat in itertools.count():
      if stopped.is_set():
        return
      with contextlib.suppress(Exception):  # a store that does not answer counts as lost, see `look`
        group.client.key_value_set(f'hydra_jax/alive/{group.index}', str(beat), allow_overwrite=True)
        for key, value in group.client.key_value_dir_get('hydra_jax/alive/'):
          index = int(key.rpartition('/')[2])
          if heard[index][0] != value:
            heard[index] = value, time.monotonic()
        ended.update(_endings(group))
        answered = time.monotonic()
      stopped.wait(interval)

  def look():
    nonlocal answered
    looked = time.monotonic()
    while not stopped.wait(interval):
      now = time.monotonic()
      if now - looked > interval + lost_after / 4:  # this process was stopped, and missed the beats of the others
        answered = now
        heard.update({index: (value, now) for index, (value, _) in heard.items()})
      looked = now
      for index, (code, line) in list(ended.items()):
        if code and index != group.index:
          exit_now(code, line if line.startswith('process ') else f'process {index} has ended: {line}')
      lost = _lost(now, answered, {index: when for index, (_, when) in heard.items()}, ended, lost_after)
      if lost is not None:
        exit_now(LOST, f'process {lost} is lost, silent for {lost_after:g} s: the same command, on all, continues')

  threads = [threading.Thread(target=target, daemon=True) for target in (talk, look)]
  for thread in threads:
    thread.start()

  def end():
    """Ends the threads. A thread that is in C++ when Python ends would abort the process."""
    _tell(group, 0, '')
    stopped.set()
    for thread in threads:
      thread.join(FAREWELL_SECONDS)

  atexit.register(end)


def _lost(
  now: float, answered: float, heard: Mapping[int, float], ended: Iterable[int], lost_after: float
) -> int | None:
  """Index of a process that is lost, or None.

  All processes are silent once the store does not answer. Only process 0, which holds the store, is lost then. So the
  silence of the others ends at the last answer.

  Args:
    now: Time in seconds.
    answered: When the store has answered last.
    heard: When each process was heard last, by index.
    ended: Processes that have ended by themselves.
    lost_after: Seconds of silence after which a process is lost.
  """
  if now - answered > lost_after:
    return 0
  silent = [index for index, when in heard.items() if answered - when > lost_after]
  return next((index for index in silent if index not in ended), None)


def _endings(group: Group) -> dict[int, list]:
  """Exit code and last line of processes that have ended by themselves. At code 0 the others need not end."""
  found = group.client.key_value_dir_get('hydra_jax/ended/')
  return {int(key.rpartition('/')[2]): json.loads(value) for key, value in found}


def _tell(group: Group, code: int, line: str) -> None:
  with contextlib.suppress(Exception):
    group.client.key_value_set(f'hydra_jax/ended/{group.index}', json.dumps([code, line]))


_leaving = threading.Lock()


def exit_now(code: int, line: str) -> None:
  """Prints a last line and ends this process at once, without barriers. Other processes read the line, and end as well.

  Args:
    code: Exit code.
    line: Without its end.
  """
  if not _leaving.acquire(blocking=False):
    time.sleep(2 * FAREWELL_SECONDS)  # another thread is ending the process
  os.write(2, f'hydra-jax: {line}\n'.encode(errors='replace'))
  if (group := _group()) and not _joining:  # JAX aborts a process that uses the store before it has joined
    others = LOST if code == 1 else code
    saying_so = threading.Thread(target=lambda: _farewell(group, others, line), daemon=True)
    saying_so.start()
    saying_so.join(FAREWELL_SECONDS)
  os._exit(code)


def _farewell(group: Group, code: int, line: str) -> None:
  """Puts the last line of this process into the store. Process 0, which holds the store, waits for all lines.

  JAX aborts a process that is left when the store is gone. So process 0 also waits until the others have ended.
  """
  _tell(group, code, line)
  if group.index == 0:
    with contextlib.suppress(Exception):
      while len(_endings(group)) < group.count:
        time.sleep(0.05)
    time.sleep(ENDING_SECONDS)


def rank_folder(folder: Path) -> Path:
  """A folder for files that each process writes by itself, such as a profile."""
  return folder / f'process-{jax.process_index()}' if jax.process_count() > 1 else folder
