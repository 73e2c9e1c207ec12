"""Training of the phases of a method on arrays, without a config or a work directory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Scaling, scale_inputs, starting_rows
from hydra_jax.errors import look_up
from hydra_jax.maths.tasks import Task
from hydra_jax.methods.base import Loss, MethodContext, Phase
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage
from hydra_jax.progress import bar
from hydra_jax.settings import defaults, make
from hydra_jax.training import early_stopping, fits, folds, loop, optimizers
from hydra_jax.training.batches import resident, stack
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Job, draw_of, grown_state, init_state, steps_for

logger = logging.getLogger(__name__)

# Of the score of a head, in nats.
LEAST_IMPROVEMENT = 2e-3

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Examples:
  """What is learnt from.

  Attributes:
    arrays: `x` `[N, …]` and `y` as they go to the device, and maybe the `teacher` `[M, N, C]` and the `weight` `[N]`
      of each example, whose mean is 1.
    scaling: Of x and y.
    held_out: The same for examples that nothing is trained on; None where there are none.
    fold: Of each example `[N]`. Head h does not learn from those of fold h mod K, see `training.folds`. None: all heads
      learn from all.
    pass_length: Number of examples that count as one pass; 0: all.
  """

  arrays: Arrays
  scaling: Scaling
  held_out: Arrays | None = None
  fold: np.ndarray | None = None
  pass_length: int = 0

  @property
  def folds(self) -> int:
    """Number of folds, K; 0: there are none."""
    return 0 if self.fold is None else int(self.fold.max()) + 1


@dataclass(frozen=True, kw_only=True)
class Stopping:
  """When the last phase stops: when held-out examples are predicted no better.

  Attributes:
    stretch: Steps between two scores.
    patience: Number of stretches without any improvement.
    measure: How bad outputs are for labels, such as `Task.held_out`; None: the loss.
  """

  stretch: int
  patience: int
  measure: tuple[Callable, Callable] | None = None


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
  phases: Sequence[Phase],
  examples: Examples,
  training: TrainingSettings,
  seed: tuple[int, ...],
  label: str = '',
  average: float = 0.0,
  stopping: Stopping | None = None,
) -> tuple[Any, Any]:
  """Trains the phases of a method one after another.

  Args:
    phases: Of the method. Where a phase has more heads than the one before, they start as copies of its one head.
    examples: What is learnt from.
    training: How.
    seed: Decides how networks start, the order of the examples, and all else that is random.
    label: Shown beside the progress; '': nothing is shown.
    average: Decay of the running average of parameters, which is what is returned; 0: there is none.
    stopping: When the last phase stops before its last step, where there are held-out examples or folds.

  Returns:
    The parameters and the state of the network of the last phase.
  """
  arrays = dict(examples.arrays) | ({} if examples.fold is None else {'fold': examples.fold})
  source = resident([arrays], stack([examples.scaling]))
  init_key, key = jax.random.split(functools.reduce(jax.random.fold_in, seed[1:], jax.random.key(seed[0])))
  trees: Any = None
  for phase in phases:
    job = job_of(phase, examples, training, average)
    if trees is None:
      inputs = scale_inputs(examples.scaling, jnp.asarray(starting_rows(examples.arrays['x'])))
      state = init_state(phase.network, job.optimizer, init_key[None], inputs[None])
    else:
      params, model_state = trees
      state = grown_state(job.optimizer, params, model_state, len(phase.network.heads))
    with _shown(label, phase, job) as hooks:
      score = score_of(job, examples, stopping) if stopping and stopping.patience and phase is phases[-1] else None
      if stopping and score:
        steps = stopping.stretch, stopping.patience
        best = early_stopping.fit(job, state, source, [seed], key[None], coarse(score), *steps, hooks=hooks)
        logger.info(f'{label or phase.name}: best after {_range(best.steps)} of at most {job.steps:,} steps')
        trees = best.params, best.model_state
      else:
        state = loop.fit(job, state, source, [seed], key[None], hooks=hooks)
        trees = optimizers.averaged_params(state.opt_state, state.params), state.model_state
    if phase.fits:
      trees = trees[0], _with_fits(phase, trees[0], trees[1], examples)
  return jax.tree.map(lambda leaf: leaf[0], trees)


def _with_fits(phase: Phase, params: Any, model_state: Any, examples: Examples) -> Any:
  """The state of a network with what the phase finds in closed form, see `Phase.fits`."""
  arrays = {name: examples.arrays[name] for name in ('x', 'y', 'weight') if name in examples.arrays}
  batches = fits.batches_of_arrays([arrays], early_stopping.ROWS_AT_ONCE)
  pairs = [(fit.measure, fit.solve) for fit in phase.fits]
  return fits.fitted(pairs, params, model_state, batches, stack([examples.scaling]))


def coarse(score: early_stopping.Score) -> early_stopping.Score:
  """The score in multiples of `LEAST_IMPROVEMENT`: chance improves some head by less again and again."""
  return lambda params, state: np.round(score(params, state) / LEAST_IMPROVEMENT) * LEAST_IMPROVEMENT


def stretch_of(rows: int, batch_size: int) -> int:
  """Steps between two scores: a quarter of a pass, and at least 50."""
  return max(50, round(rows / batch_size / 4))


def _range(values: np.ndarray) -> str:
  low, high = int(values.min()), int(values.max())
  return f'{low:,}' if low == high else f'{low:,} to {high:,}'


def score_of(job: Job, examples: Examples, stopping: Stopping) -> early_stopping.Score | None:
  """How bad heads are on examples that they do not learn from: of their own fold, or held out; None without any."""
  scaling = stack([examples.scaling])
  if examples.fold is not None:
    fold = examples.fold

    def part(k: int) -> dict[str, np.ndarray]:
      return {name: np.compress(fold == k, a, axis=int(name == 'teacher')) for name, a in examples.arrays.items()}

    of_fold = lambda heads, k: early_stopping.held_out_score(job, [part(k)], scaling, stopping.measure, heads)
    return early_stopping.by_fold(of_fold, folds.of_heads(len(job.network.heads), examples.folds))
  if examples.held_out is None:
    return None
  return early_stopping.held_out_score(job, [examples.held_out], scaling, stopping.measure)


def job_of(phase: Phase, examples: Examples, training: TrainingSettings, average: float = 0.0) -> Job:
  """What a phase trains, and for how many steps."""
  epochs = training.epochs if phase.epochs is None else phase.epochs
  count = examples.pass_length or len(examples.arrays['x'])
  steps = steps_for(epochs, count, training.batch_size)
  optimizer = optimizers.build(training, steps, count / training.batch_size, phase.frozen)
  loss = weighted(phase.loss) if 'weight' in examples.arrays else phase.loss
  if examples.folds:
    loss = folds.leaving_out(loss, folds.of_heads(len(phase.network.heads), examples.folds).tolist(), examples.folds)
  members = len(examples.arrays['teacher']) if phase.distils else 0
  return Job(
    network=phase.network,
    loss=loss,
    reduction=phase.reduction,
    optimizer=optimizers.averaged(optimizer, average) if average else optimizer,
    steps=steps,
    batch_size=training.batch_size,
    common=phase.common,
    penalty=phase.penalty,
    draw=draw_of(phase.draws, training.members_per_step, members) if phase.distils else None,
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
    yield loop.Hooks(progress=lambda call: advance(call.step, call.loss))
