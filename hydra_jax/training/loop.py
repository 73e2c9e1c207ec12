"""The loop of every teacher and every student."""

from collections.abc import Callable, Sequence
import contextlib
from dataclasses import dataclass
from pathlib import Path
import time

import jax
import numpy as np

from hydra_jax.devices.layout import SINGLE_DEVICE, Layout
from hydra_jax.devices.preemption import Preempted
from hydra_jax.errors import UserError
from hydra_jax.training.batches import BatchSource
from hydra_jax.training.program import CallSummary, Inputs, head_specs, make_program
from hydra_jax.training.step import Job, State

MAX_STEPS_PER_CALL = 1000
SECONDS_PER_CALL = 1.0


@dataclass(frozen=True)
class Progress:
  """What one call of the program has done.

  Attributes:
    step: Number of steps that are over.
    count: Steps of this call.
    losses: Of each head, mean over these steps, `[R, H]` float32.
    gradient_norms: Norm of the mean gradient over about the last ten steps, of all parameters, `[R]` float32.
    seconds: Since the call before was over.
    waited: Seconds of these in which this process waited for batches.
  """

  step: int
  count: int
  losses: np.ndarray
  gradient_norms: np.ndarray
  seconds: float
  waited: float

  @property
  def loss(self) -> float:
    """Mean over heads and replicas."""
    return float(np.mean(self.losses))


@dataclass(frozen=True, kw_only=True)
class Hooks:
  """Functions that the loop calls.

  Attributes:
    stopping: Whether this process was asked to stop. Then all processes save and stop at the same step.
    progress: Called once for each call of the program.
    save: Called with the state about every `save_every` seconds. The losses of this state are finite, and `progress`
      has been called up to its step.
    save_every: Seconds between saves.
    least_calls: Number of calls in which all steps are made at least, so that `progress` gives a curve.
    profile: Folder for a trace of the second call of the program. By then it is compiled.
  """

  stopping: Callable[[], bool] = lambda: False
  progress: Callable[[Progress], None] = lambda progress: None
  save: Callable[[State], None] = lambda state: None
  save_every: float = float('inf')
  least_calls: int = 1
  profile: Path | None = None


NO_HOOKS = Hooks()


def fit(
  job: Job,
  state: State,
  source: BatchSource,
  seeds: Sequence[tuple[int, ...]],
  keys: jax.Array,
  layout: Layout = SINGLE_DEVICE,
  steps_per_call: int = 0,
  hooks: Hooks = NO_HOOKS,
) -> State:
  """Trains from `state.step` to `job.steps`.

  A call of the compiled program makes as many steps as fit in a second. The summary of a call is read while the next
  call runs. How steps are grouped into calls changes no result.

  Processes must agree on three things: the length of the next call, whether to save, and whether to stop. Each sends
  its wish with a call; the call returns the maximum over processes.

  Args:
    job: What is trained.
    state: Where to start, with a leading axis R. It is donated.
    source: The batches.
    seeds: For each replica, the seed of the order of its examples.
    keys: For each replica, the key of everything else that is random, `[R]`.
    layout: The devices.
    steps_per_call: Upper limit. 0 is automatic. Convolutions on CPU make one step a call.
    hooks: Functions that are called in the loop.

  Returns:
    The state at the last step.

  Raises:
    UserError: A loss is not finite; the message names the step and the head.
    Preempted: A process was asked to stop; the state is saved.
  """
  return prepared(job, state, source, seeds, keys, layout, steps_per_call, hooks)(state, job.steps)


def prepared(
  job: Job,
  state: State,
  source: BatchSource,
  seeds: Sequence[tuple[int, ...]],
  keys: jax.Array,
  layout: Layout = SINGLE_DEVICE,
  steps_per_call: int = 0,
  hooks: Hooks = NO_HOOKS,
) -> Callable[[State, int], State]:
  """As `fit`, for training with breaks: the program is compiled once, and the data are put on the device once.

  Args:
    job: As in `fit`.
    state: With the step and the shapes of the state that training starts from.
    source: As in `fit`.
    seeds: As in `fit`.
    keys: As in `fit`.
    layout: As in `fit`.
    steps_per_call: As in `fit`.
    hooks: As in `fit`.

  Returns:
    `(state, until) -> state`, which trains to the step `until`, at most `job.steps`. Each call continues where the call
    before stopped. Where it is interrupted changes no result. The state is donated.
  """
  if layout.platform == 'cpu' and job.network.convolves(source.shape):
    steps_per_call = 1
  program = make_program(job, layout, state, source.shape, source.streams, loops=steps_per_call != 1)
  most = max(1, min(MAX_STEPS_PER_CALL, job.steps // hooks.least_calls))
  at_once = int(min(steps_per_call or most, source.at_once, job.steps))
  index = np.zeros((len(seeds), at_once, job.batch_size), np.int32)
  specs, scaling = head_specs(state), layout.replicate(source.scaling)
  teacher = layout.spread(job.teacher.params, job.teacher.specs) if job.teacher else ()
  key = np.asarray(jax.random.key_data(keys))
  batches = source.begin(seeds, int(state.step[0]), job.steps, job.batch_size, layout)
  wanted, agreed, saved, profile = 1, 1, time.monotonic(), hooks.profile

  def train(state: State, until: int) -> State:
    nonlocal wanted, agreed, saved, profile
    now, state = int(state.step[0]), layout.put(state, specs)
    pending, read, waited = None, time.monotonic(), 0.0

    def finish(step: int, count: int, summary: CallSummary) -> tuple[bool, bool]:
      """Waits for a call and reports it. Returns whether to stop, and whether to save."""
      nonlocal wanted, agreed, read, waited
      check_finite(np.asarray(summary.bad))
      seconds, read = time.monotonic() - read, time.monotonic()
      losses, norms = np.asarray(summary.total) / count, np.asarray(summary.gradient)
      hooks.progress(Progress(step, count, losses, norms, seconds, waited))
      wanted, waited = min(max(1, min(int(count * SECONDS_PER_CALL / seconds), 4 * count)), at_once), 0.0
      stop, due, least = np.asarray(summary.vote)
      agreed = -int(least)
      return bool(stop), bool(due)

    while now < until:
      n = min(agreed, until - now)
      begun = time.monotonic()
      data, index[:, :n] = batches(now, n)
      waited += time.monotonic() - begun
      due = time.monotonic() - saved > hooks.save_every
      vote = layout.vote(np.array([hooks.stopping(), due, -wanted], np.int32))
      saved = time.monotonic() if due else saved  # asks once
      inputs = Inputs(data, scaling, teacher, layout.index(index.copy()), n, key, vote)
      with _traced(profile if pending else None) as wait:
        state, summary = wait(program(state, inputs))
      profile = None if pending else profile
      now += n
      last, pending = pending, (now, n, summary)
      stop, due = finish(*last) if last else (False, False)
      if stop or due:
        finish(*pending)
        pending = None
        hooks.save(layout.plain(state))
        saved = time.monotonic()
      if stop and now < job.steps:
        raise Preempted(f'stopped at step {now} of {job.steps}', by_all=True)
    if pending:
      finish(*pending)
    return layout.plain(state)

  return train


@contextlib.contextmanager
def _traced(folder: Path | None):
  """A context that writes a profile, if there is a folder. It gives a function that waits for results."""
  if folder is None:
    yield lambda results: results
    return
  with jax.profiler.trace(folder):
    yield jax.block_until_ready


def check_finite(bad_RxH: np.ndarray) -> None:
  """Checks that all losses were finite.

  Args:
    bad_RxH: For each head the first step whose loss was not finite, or −1.

  Raises:
    UserError: A loss was not finite.

  Example:
    >>> check_finite(np.array([[-1, -1]]))
  """
  if np.any(bad_RxH >= 0):
    place = np.unravel_index(np.argmin(np.where(bad_RxH >= 0, bad_RxH, np.iinfo(bad_RxH.dtype).max)), bad_RxH.shape)
    replica = f', of replica {place[0]} in its group' if len(bad_RxH) > 1 else ''
    raise UserError(
      f'the loss is not finite at step {bad_RxH[place]} (head or member {place[1]}{replica}): '
      'lower the learning rate, or look at the data'
    )
