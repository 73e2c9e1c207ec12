"""Training of the phases of a method on arrays, without a config or a work directory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Scaling
from hydra_jax.errors import look_up
from hydra_jax.maths.tasks import Task
from hydra_jax.methods.base import Loss, MethodContext, Phase
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage
from hydra_jax.progress import bar
from hydra_jax.settings import defaults, make
from hydra_jax.training import loop, optimizers
from hydra_jax.training.batches import resident, stack
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Job, State, grown_state, init_state, steps_for

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Examples:
  """What is learnt from.

  Attributes:
    arrays: `x` `[N, …]` and `y` as they go to the device, and maybe the `teacher` `[M, N, C]` and the `weight` `[N]`
      of each example, whose mean is 1.
    scaling: Of x and y.
    held_out: The same for examples that nothing is trained on; None where there are none.
    pass_length: Number of examples that count as one pass; 0: all.
  """

  arrays: Arrays
  scaling: Scaling
  held_out: Arrays | None = None
  pass_length: int = 0


def settings_of(method: str, changes: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[TrainingSettings, Any]:
  """How a method is trained, and its own settings: the defaults with changes, each checked.

  Args:
    method: Key of `METHODS`.
    changes: By name.
    base: What differs from the defaults.

  Raises:
    UserError: A name is unknown, or a value is not legal.
  """
  kind = look_up(METHODS, method, 'method').settings
  own, training = defaults(kind), defaults(TrainingSettings)
  for key, value in {**{k: v for k, v in base.items() if k in own or k in training}, **changes}.items():
    look_up(own | training, key, f'setting of {method}')
    (own if key in own else training)[key] = value
  return make(TrainingSettings, training, ''), make(kind, own, '')


@dataclass(frozen=True)
class Context(MethodContext):
  """As `MethodContext`, for networks that are made once: what was compiled for one fit serves the next.

  Attributes:
    make: `outputs -> stages`.
    targets: Number of classes or of targets.
  """

  make: Callable[[int], list[Stage]] = field(kw_only=True)
  targets: int = field(kw_only=True)

  def network(self, at: int, heads: int, predictive: str = 'members', train_body: bool = True) -> cut.Network:
    """The network, cut and tiled."""
    return _network(self.make, self.task.predictives[predictive].outputs(self.targets), at, heads, train_body)


def context_of(task: Task, make: Callable[[int], list[Stage]], members: int, targets: int) -> Context:
  """What a method is given besides its settings.

  Args:
    task: Classification or regression.
    make: `outputs -> stages`.
    members: Of the teacher, or of the ensemble.
    targets: Number of classes or of targets.
  """

  def stages(predictive: str, times: int = 1) -> list[Stage]:
    return make(times * task.predictives[predictive].outputs(targets))

  return Context(task, stages, members, make=make, targets=targets)


@functools.lru_cache(maxsize=64)
def _network(make: Callable[[int], list[Stage]], outputs: int, at: int, heads: int, train_body: bool) -> cut.Network:
  return cut.multi_head(make(outputs), at, heads, train_body)


def train(
  phases: Sequence[Phase], examples: Examples, training: TrainingSettings, seed: tuple[int, ...], label: str = ''
) -> tuple[Any, Any]:
  """Trains the phases of a method one after another.

  Args:
    phases: Of the method. Where a phase has more heads than the one before, they start as copies of its one head.
    examples: What is learnt from.
    training: How.
    seed: Decides how networks start, the order of the examples, and all else that is random.
    label: Shown beside the progress; '': nothing is shown.

  Returns:
    The parameters and the state of the network of the last phase.
  """
  source = resident([examples.arrays], stack([examples.scaling]))
  init_key, key = jax.random.split(functools.reduce(jax.random.fold_in, seed[1:], jax.random.key(seed[0])))
  state: State | None = None
  for phase in phases:
    job = job_of(phase, examples, training)
    if state is None:
      inputs = jnp.zeros((1, 2, *source.shape), jnp.float32)
      state = init_state(phase.network, job.optimizer, init_key[None], inputs)
    else:
      state = grown_state(job.optimizer, state.params, state.model_state, len(phase.network.heads))
    with _shown(label, phase, job) as hooks:
      state = loop.fit(job, state, source, [seed], key[None], hooks=hooks)
  assert state is not None  # every method has a phase
  return jax.tree.map(lambda leaf: leaf[0], (state.params, state.model_state))


def job_of(phase: Phase, examples: Examples, training: TrainingSettings) -> Job:
  """What a phase trains, and for how many steps."""
  epochs = training.epochs if phase.epochs is None else phase.epochs
  count = examples.pass_length or len(examples.arrays['x'])
  steps = steps_for(epochs, count, training.batch_size)
  return Job(
    network=phase.network,
    loss=weighted(phase.loss) if 'weight' in examples.arrays else phase.loss,
    reduction=phase.reduction,
    optimizer=optimizers.build(training, steps, count / training.batch_size, phase.frozen),
    steps=steps,
    batch_size=training.batch_size,
    common=phase.common,
    penalty=phase.penalty,
    heads_per_step=phase.heads_per_step,
  )


def weighted(loss: Loss) -> Loss:
  """The loss of each example times its weight."""
  return lambda outputs, batch: batch['weight'][None] * loss(outputs, batch)


@contextlib.contextmanager
def _shown(label: str, phase: Phase, job: Job) -> Iterator[loop.Hooks]:
  """Shows the progress of a phase, if it has a label."""
  if not label:
    yield loop.NO_HOOKS
    return
  with bar(f'{label}: {phase.name}', job.steps, job.batch_size * len(phase.network.heads)) as advance:
    yield loop.Hooks(progress=advance)
