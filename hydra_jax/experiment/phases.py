"""Training one method through its phases, each of which is kept as an artifact."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
import logging
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from hydra_jax import store, user_files
from hydra_jax.data import with_unlabelled
from hydra_jax.devices import preemption, processes
from hydra_jax.devices.layout import make_layout
from hydra_jax.errors import UserError
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import artifacts, config as configs, metrics_log, provenance, recipes, scores_in_training
from hydra_jax.experiment.metrics_log import MetricsLog
from hydra_jax.experiment.plan import PlannedMethod, PlannedPhase
from hydra_jax.experiment.replicas import Place, Replica, Trained, reuse_or_make
from hydra_jax.experiment.scores_in_training import Best, Scorer
from hydra_jax.experiment.teachers import (
  Teacher,
  evaluable,
  fold_of_examples,
  online_teacher,
  predicts_in_step,
  with_predictions,
)
from hydra_jax.experiment.views import keys_of_seed, seed_of
from hydra_jax.methods import registry
from hydra_jax.methods.base import Phase
from hydra_jax.progress import bar
from hydra_jax.training import augment, checkpoints, fits, loop, optimizers
from hydra_jax.training.batches import source_of, stack
from hydra_jax.training.step import Job, OnlineTeacher, State, draw_of, grown_state, init_state, steps_for

logger = logging.getLogger(__name__)

WORSE = 'look at its learning rate, its epochs and the data'

Group = Sequence[Replica]


def train_method(group: Group, planned: PlannedMethod, teachers: Sequence[Teacher] = ()) -> list[Trained]:
  """Trains the ensemble or one student, or takes what is trained already; a row for each replica."""
  own, training = group, planned.recipe.settings.training
  if others := training.unlabelled:
    group = [replace(replica, data=with_unlabelled(replica.data, others)) for replica in group]
  if (others or training.fixed_views) and not predicts_in_step(group[0].data.train.varies, training):
    teachers = [with_predictions(*both, training) for both in zip(group, teachers, strict=True)]
  phases = [each.phase for each in planned.phases]
  keys = keys_of_phases(group, planned.recipe, planned.phases, [teacher.key for teacher in teachers])
  trees = None
  for number, (here, key) in enumerate(zip(planned.phases, keys, strict=True)):

    def make(new: Path, folder: Path, here=here, number=number, before=trees) -> None:
      scorer = scorer_of_last(group, planned, teachers) if number == len(phases) - 1 else None
      state = train_phase(group, here, planned.recipe.role, before, teachers, folder, scorer)
      data = [replica.data for replica in group]
      artifacts.save(new, state.params, state.model_state, planned.recipe, number, data)

    with preemption.deferring():
      folder = reuse_or_make(group[0], here.phase.name.replace(' ', '-'), key, here.label, make, by_all=True)
    if processes.any_process(preemption.asked()):
      raise preemption.Preempted('stopped after a phase', by_all=True)
    checkpoints.drop(_progress(group[0].made_in(folder.name)))  # only now is there nothing left to lose
    trees = artifacts.restore(folder, here.phase.network, group[0].data.train.example.shape[1:], len(group))
  network, read = phases[-1].network, recipes.predictive_of(planned.recipe).read
  rows = []
  for i, (replica, original) in enumerate(zip(group, own, strict=True)):
    params, model_state = artifacts.of_replica(trees, i)
    model = Model(network, params, model_state, replica.data.scaling, read)
    rows.append(replace(evaluable(original, model, f'{keys[-1]}-{i}'), place=Place(folder.name, i)))
  return rows


def keys_of_phases(
  group: Group, recipe: recipes.Recipe, planned: Sequence[PlannedPhase], teachers: Sequence[str] = ()
) -> list[str]:
  """For each phase of a method the key of what it trains: a hash of its code, its settings, and all that it reads.

  Args:
    group: Replicas that are trained together.
    recipe: Of the method.
    planned: Its phases.
    teachers: Keys of the teachers of the replicas.
  """
  config, keys = group[0].config, ['']
  for each in planned:
    phase, settings = each.phase, recipe.settings
    divides = [provenance.definition(fold_of_examples)] if phase.folds else []
    keys.append(
      store.key_of(
        dict(
          code=[provenance.digest('training'), _code_of(settings.method), provenance.definition(train_phase), *divides],
          data=[replica.data.fingerprint for replica in group],
          network=configs.identity(recipe.network),
          phase=[phase.name, each.epochs],
          best=[config.validation_scores, config.patience] if config.patience and each is planned[-1] else None,
          training={key: value for key, value in asdict(settings.training).items() if key != 'epochs'},
          settings={k: v for k, v in asdict(settings.own).items() if k not in (*phase.unread, *AFTER_TRAINING)},
          members=recipe.members if recipe.role == 'teacher' else None,
          seed=[config.seed, [replica.index for replica in group], recipe.role],
          before=keys[-1],
          teacher=teachers if phase.distils else [],
        )
      )
    )
  return keys[1:]


# Settings of methods that no phase reads.
AFTER_TRAINING = ('calibrate_spread',)


def _code_of(method: str) -> str:
  """Digest of the code of a method; of one of the user's own, of its file and of all that this imports."""
  if ':' in method:
    return user_files.find(method, 'method').digest
  return provenance.definition(registry.find(method).phases)


def _progress(folder: Path) -> Path:
  """Where the checkpoints of a phase in progress are."""
  return folder.with_name(f'{folder.name}.progress')


def scorer_of_last(group: Group, planned: PlannedMethod, teachers: Sequence[Teacher]) -> Scorer | None:
  """What scores the last phase of a method while it trains, if the config asks for it."""
  if not group[0].config.validation_scores:
    return None
  read, outputs = recipes.predictive_of(planned.recipe).read, [teacher.validation for teacher in teachers]
  return scores_in_training.scorer_of(group, planned.phases[-1].phase.network, read, outputs)


def train_phase(
  group: Group,
  planned: PlannedPhase,
  role: str,
  before: Any,
  teachers: Sequence[Teacher],
  folder: Path,
  scorer: Scorer | None = None,
) -> State:
  """Trains one phase of a group of replicas, from its newest checkpoint if it was interrupted.

  Args:
    group: The replicas.
    planned: The phase.
    role: `teacher` or `student`.
    before: Parameters and state that the phase before has left, with a leading axis R; None for the first phase.
    teachers: Of each replica.
    folder: Where the result will be; checkpoints are beside it.
    scorer: Gives the scores on the validation part that are taken while it trains.
  """
  config, training, phase, label = group[0].config, planned.training, planned.phase, planned.label
  layout = make_layout(config.parallel.mode, planned.mesh)
  seeds = [seed_of(replica, role) for replica in group]
  job, source = job_of(group, planned, teachers if phase.distils else (), layout)
  state, keys = initial_state(group, phase, job, seeds, before)
  place = lambda state: layout.plain(layout.put(state, loop.head_specs(state)))
  state = place(state)  # as it is saved: global arrays on these devices
  saver = checkpoints.Saver(_progress(folder), config.checkpoints_kept)
  saved = checkpoints.latest(saver.folder, state)
  if saved is not None:
    state = saved
    logger.info(f'{label}: continues at step {int(state.step[0])} of {job.steps}')
  losses: list[float] = []
  log = log_of(group, planned, job, int(state.step[0]), folder.name)

  def report(call: loop.Progress) -> None:
    losses.append(call.loss)
    advance(call.step, call.loss, source.note())
    if log:
      log.add(call)

  def save(state: State) -> None:
    if log:
      log.flush()
    saver.save(int(state.step[0]), state)

  hooks = loop.Hooks(
    stopping=preemption.asked,
    progress=report,
    save=save,
    save_every=config.checkpoint_seconds,
    least_calls=metrics_log.LEAST_LINES,
    profile=processes.rank_folder(group[0].profile / folder.name) if group[0].profile else None,
  )
  processes.barrier()
  try:
    with bar(label, job.steps, training.batch_size * len(phase.network.heads) * len(group)) as advance, saver:
      train = loop.prepared(job, state, source, seeds, keys, layout, config.execution.steps_per_call, hooks)
      if scorer is None:
        state = train(state, job.steps)
      else:
        best_file = saver.folder / 'best.npz'
        state = place(train_with_scores(state, train, job.steps, config, scorer, log, best_file, label))
  except UserError as e:
    raise UserError(f"in phase '{label}': {e}") from e
  if saved is None and losses[-1] >= losses[0]:
    logger.warning(
      f'{label}: the loss has not gone down ({losses[0]:.4g} at first, {losses[-1]:.4g} in the end): {WORSE}'
    )
  return place(with_fits(group, phase, state)) if phase.fits else state


def with_fits(group: Group, phase: Phase, state: State) -> State:
  """A trained state with what the phase finds in closed form, see `Phase.fits`. All processes must call it."""
  data, (params, model_state) = [replica.data for replica in group], scores_in_training.on_host(state)
  batches = fits.batches_of(data, group[0].config.evaluation.batch_size)
  pairs = [(fit.measure, fit.solve) for fit in phase.fits]
  return state._replace(
    model_state=fits.fitted(pairs, params, model_state, batches, stack([each.scaling for each in data]))
  )


def train_with_scores(
  state: State,
  train: Callable[[State, int], State],
  steps: int,
  config: ConfigDict,
  scorer: Scorer,
  log: MetricsLog | None,
  file: Path,
  label: str,
) -> State:
  """Trains, and stops to score the networks; with `config.patience` it returns the best, and may end early.

  Args:
    state: Where it begins.
    train: `(state, until) -> state`.
    steps: Of the whole phase.
    config: Of the experiment.
    scorer: Gives the scores.
    log: Where scores are written, in the main process.
    file: Where the best networks are kept meanwhile.
    label: Of the phase.
  """
  stops, best = scores_in_training.steps_to_score(steps, config.validation_scores), None
  if config.patience:
    best = Best(file, stops, config.patience, scores_in_training.on_host(state))
  for stop in stops[bisect.bisect_left(stops, int(state.step[0])) :]:
    state = train(state, stop)
    trees = scores_in_training.on_host(state)
    rows = scorer(trees)
    if log:
      log.add_scores(stop, scores_in_training.means(rows))
    if best and best.take(stop, trees, rows):
      break
  if best is None:
    return state
  of_replicas = ', '.join(map(str, dict.fromkeys(best.steps())))
  logger.info(f'{label}: keeps the parameters of step {of_replicas} of {steps}, the best on the validation part')
  params, model_state = best.trees()
  return state._replace(params=params, model_state=model_state)


def log_of(group: Group, planned: PlannedPhase, job: Job, start: int, part: str) -> MetricsLog | None:
  """Where the main process writes how a phase goes, from the step that it starts at; `part` is what it makes."""
  if not processes.is_main():
    return None
  schedule = optimizers.schedule_of(planned.training, job.steps, group[0].data.train.examples / job.batch_size)

  def rate(step: int) -> float:
    with jax.numpy_dtype_promotion('standard'):  # as in a training step
      return float(schedule(step))

  replicas = [replica.index for replica in group]
  file = group[0].artifacts.parent / metrics_log.NAME
  return MetricsLog(file, part, planned.label, replicas, start, job.steps, job.batch_size, rate)


def job_of(group: Group, planned: PlannedPhase, teachers: Sequence[Teacher], layout):
  """What a phase trains, and its batches; `teachers` is empty for a phase that does not distil."""
  config, training, train_set = group[0].config, planned.training, group[0].data.train
  online = bool(teachers) and predicts_in_step(train_set.varies, training)
  models = [teacher.model for teacher in teachers if online and teacher.model is not None]
  kept = [teacher.predictions for teacher in teachers if not online and teacher.predictions is not None]
  members = len(models[0].network.heads) if models else len(kept[0]) if kept else 0
  teacher = online_teacher(models, layout, training) if online else None
  job = assemble(config, planned, train_set.example.ndim, train_set.examples, members, teacher)
  fold = [fold_of_examples(replica, planned.phase.folds) for replica in group] if planned.phase.folds else []
  return job, source_of([replica.data for replica in group], kept, fold, job.views)


def assemble(
  config: ConfigDict, planned: PlannedPhase, ndim: int, examples: int, members: int, teacher: OnlineTeacher | None
) -> Job:
  """What a phase trains.

  Args:
    config: Of the experiment.
    planned: The phase.
    ndim: Number of axes of a batch of inputs.
    examples: In the training split.
    members: Of the teacher; 0 for a phase that does not distil.
    teacher: That predicts in the step, if any.
  """
  training, phase = planned.training, planned.phase
  steps = steps_for(planned.epochs, examples, training.batch_size)
  return Job(
    network=phase.network,
    loss=phase.loss,
    reduction=phase.reduction,
    optimizer=optimizers.build(training, steps, examples / training.batch_size, phase.frozen),
    steps=steps,
    batch_size=training.batch_size,
    common=phase.common,
    penalty=phase.penalty,
    draw=draw_of(phase.draws, training.members_per_step, members) if phase.distils else None,
    heads_per_chunk=config.execution.heads_per_chunk,
    augment=augment.build(training.augment, ndim, training.augment_share),
    teacher=teacher,
    views=training.fixed_views if phase.distils else 0,
  )


def initial_state(group: Group, phase: Phase, job: Job, seeds: Sequence[tuple[int, ...]], before: Any):
  """The state at step 0, and for each replica the key of all that is random in training but the order of examples."""
  init_keys, step_keys = zip(*map(keys_of_seed, seeds), strict=True)
  keys = jax.numpy.stack(step_keys)
  if before is None:
    examples = stack([artifacts.example(replica.data) for replica in group])
    return init_state(phase.network, job.optimizer, jax.numpy.stack(init_keys), examples), keys
  params, model_state = before
  return grown_state(job.optimizer, params, model_state, len(phase.network.heads)), keys
