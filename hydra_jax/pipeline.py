"""From a config to results: teachers, their predictions, students, evaluation, table and figures.

Every part is kept in the work directory under a hash of what it depends on. A run that is started
again takes what is there and makes the rest, so it makes no difference whether it was interrupted.
"""

from collections.abc import Callable
import functools
import json
from pathlib import Path
import platform
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import (
  augment,
  checkpoints,
  config as configs,
  cost,
  cut,
  evaluate,
  figures,
  given,
  optimizers,
  parts,
  store,
  tables,
  train,
)
from hydra_jax.data import Data, load, outside_of
from hydra_jax.errors import UserError
from hydra_jax.evaluate import Model
from hydra_jax.methods import Phase
from hydra_jax.progress import bar, say
from hydra_jax.tasks import TASKS, Scores, Task

CONFIG = 'config.json'
ROLES = ('teacher', 'student')


class Replica(NamedTuple):
  """What the parts of one repetition have in common."""

  config: ConfigDict
  parts: Path
  index: int
  data: Data

  @property
  def task(self) -> Task:
    return TASKS[self.data.task]


class Trained(NamedTuple):
  """A row of the table, to be evaluated.

  Attributes:
    model: None for teachers of whom only predictions are given.
    key: Says all it depends on.
    scores: `advance -> {set: scores}`, of every example of every evaluation set that it has predictions for.
  """

  model: Model | None
  key: str
  scores: Callable[[Callable], dict[str, Scores]]


class Teacher(NamedTuple):
  """What students learn from: predictions `[M, N, C]` on the training inputs, if any need them, or the model itself."""

  predictions: np.ndarray | None
  model: Model | None
  key: str


class Job(NamedTuple):
  """One phase of training, ready to start."""

  what: str
  recipe: parts.Recipe
  number: int
  phase: Phase
  before: Model | None
  teacher: Teacher | None


def run(config: ConfigDict, workdir: Path, data_dir: str) -> None:
  """Does all that a config asks for, under `workdir`."""
  config.teacher.members = count_members(config.teacher)
  configs.validate(config)
  check_workdir(workdir, config)
  data = load(config.data, data_dir, 0)
  configs.validate(config, data.task, data.train.example.ndim)
  check_models(Replica(config, workdir / 'parts', 0, data))
  (workdir / 'parts').mkdir(parents=True, exist_ok=True)
  with store.locked(workdir):
    record(workdir, config)
    rows, timings, first = [], [], None
    for index in range(config.replicas):
      data = load(config.data, data_dir, index) if index else data
      replica = Replica(config, workdir / 'parts', index, data)
      if config.replicas > 1:
        say(f'--- replica {index + 1} of {config.replicas}')
      models = train_all(replica)
      scores = {name: evaluated(replica, name, trained) for name, trained in models.items()}
      for name, found in scores.items():
        rows += evaluate.rows(found, replica.data, name, index, config.evaluation.ece_bins)
      if index == 0:
        here = {name: trained for name, trained in models.items() if trained.model is not None}
        rows += sizes(replica, here)
        timings = measured(replica, here)
        first = (replica.data, scores)
    report(workdir, rows, timings, *first, config.evaluation.ece_bins)


def check_models(replica: Replica) -> None:
  """Raises a `UserError` for a network or a teacher that does not fit the data, before anything is written."""
  config = replica.config
  made = config.teacher.predictions or config.teacher.checkpoints
  teacher = [] if made else [('teacher', config.teacher)]
  if config.teacher.predictions:
    given_teacher(replica)
  for place in config.teacher.checkpoints:
    parts.load(place, replica.data)
  for role, settings in (*teacher, *(('student', config.student[name]) for name in config.students)):
    network = parts.phases_of(recipe_of(replica, role, settings))[0].network
    jax.eval_shape(network.init, jax.random.key(0), parts.example(replica.data))


def train_all(replica: Replica) -> dict[str, Trained]:
  """The ensemble and every student that the config lists, by name."""
  config = replica.config
  teacher, ensemble = teacher_of(replica)
  models = {'ensemble': ensemble}
  for name in config.students:
    if (rule := config.student[name].get('grouping', 'one_each')) != 'one_each':
      say(f'{name}: {config.student[name].heads} heads for {config.teacher.members} members, grouped {rule}')
    models[name] = fitted(replica, 'student', name, config.student[name], teacher)
  return models


def count_members(settings: ConfigDict) -> int:
  """Number of members, which teachers made before bring with them."""
  if settings.predictions:
    return given.read(settings.predictions).members
  if settings.checkpoints:
    return sum(len(parts.network_of(folder)[2].heads) for folder in settings.checkpoints)
  return settings.members


def teacher_of(replica: Replica) -> tuple[Teacher, Trained]:
  """What students learn from, and its row in the table: trained here, from other runs, or in a file."""
  config, data = replica.config, replica.data
  if config.teacher.predictions:
    return given_teacher(replica)
  if config.teacher.checkpoints:
    loaded = [parts.load(folder, data) for folder in config.teacher.checkpoints]
    model = evaluate.beside([model for model, _ in loaded])
    ensemble = trained(replica, model, store.key_of(dict(members=[key for _, key in loaded])))
  else:
    ensemble = fitted(replica, 'teacher', 'ensemble', config.teacher)
  kept = not all(sees_views(data, config.student[name]) for name in config.students)
  key = ensemble.key + config.teacher.keep_as.removeprefix('float32')
  return Teacher(predicted(replica, ensemble, key) if kept else None, ensemble.model, key), ensemble


def given_teacher(replica: Replica) -> tuple[Teacher, Trained]:
  """A teacher that is a file of predictions, and their scores on the evaluation sets that it covers."""
  data, size = replica.data, replica.config.evaluation.batch_size
  file = given.read(replica.config.teacher.predictions)
  of = lambda name, examples: given.outputs(file, name, examples, data.task, data.outputs, data.scaling)
  covered = {name: evaluation for name, evaluation in data.evaluations.items() if given.covers(file, name)}
  for name, evaluation in covered.items():
    of(name, len(evaluation.load().x))  # what is wrong is better known before the training than after

  def scores(advance):
    read, found = replica.task.predictives['members'].read, {}
    for name, evaluation in covered.items():
      split = evaluation.load()
      outputs = of(name, len(split.x))
      found[name] = evaluate.score_outputs(outputs, split, read, replica.task, data.scaling, size)
    advance(len(data.evaluations))
    return found

  key = store.key_of(dict(file=file.key, data=data.fingerprint))
  return Teacher(of('train', data.train.examples), None, key), Trained(None, key, scores)


def trained(replica: Replica, model: Model, key: str) -> Trained:
  """The row of a model."""
  size = replica.config.evaluation.batch_size
  return Trained(model, key, functools.partial(evaluate.score_all, model, replica.data, size))


def part(replica: Replica, name: str, key: str, what: str, make: Callable[[Path, Path], None]) -> Path:
  """The folder of one part: taken as it is if it is there, made by `make(new, folder)` if not."""
  folder = replica.parts / f'{name}-{key}'
  if folder.exists():
    store.verify(folder)
    say(f'{what}: reused from {folder.name}')
    return folder
  with store.writing(folder) as new:
    make(new, folder)
  return folder


def fitted(replica: Replica, role: str, name: str, settings: ConfigDict, teacher: Teacher | None = None) -> Trained:
  """Trains one method, `teacher` or a student by name, through its phases."""
  data, config = replica.data, replica.config
  recipe = recipe_of(replica, role, settings)
  model, key = None, ''
  for number, phase in enumerate(parts.phases_of(recipe)):
    key = store.key_of(
      dict(
        data=data.fingerprint,
        network=configs.identity(recipe.network),
        training={k: settings[k] for k in configs.training() if k != 'epochs'},
        phase=[phase.epochs, phase.spec],
        seed=[config.seed, replica.index, role],
        before=key,
        teacher=teacher.key if phase.distils else '',
      )
    )
    what = f'{name}: {phase.name}' if role == 'student' else f'{name} of {len(phase.network.heads)}'
    job = Job(what, recipe, number, phase, model, teacher if phase.distils else None)
    folder = part(replica, phase.name.replace(' ', '-'), key, what, functools.partial(train_phase, replica, job))
    checkpoints.drop_progress(_progress(folder))  # only now is there nothing left to lose
    model = parts.restored(folder, phase.network, data, parts.predictive_of(recipe))
  return trained(replica, model, key)


def recipe_of(replica: Replica, role: str, settings: ConfigDict) -> parts.Recipe:
  """What a method is built from; a student may have a network of its own."""
  network = settings.network if 'network' in settings else replica.config.network[role]
  return parts.Recipe(role, settings, network, replica.data.task, replica.data.outputs, replica.config.teacher.members)


def _progress(folder: Path) -> Path:
  """Where the checkpoints of a phase in progress are."""
  return folder.with_name(f'{folder.name}.progress')


def train_phase(replica: Replica, job: Job, new: Path, folder: Path) -> None:
  """Trains one phase into the folder `new`, from its newest checkpoint if it was interrupted."""
  data, config, settings, phase = replica.data, replica.config, job.recipe.settings, job.phase
  heads = len(phase.network.heads)
  steps = train.steps_for(phase.epochs, data.train.examples, settings.batch_size)
  optimizer = optimizers.build(settings, steps, data.train.examples / settings.batch_size, phase.frozen)
  seed = (config.seed, replica.index, ROLES.index(job.recipe.role))
  init_key, step_key = jax.random.split(functools.reduce(jax.random.fold_in, seed[1:], jax.random.key(seed[0])))
  if job.before is None:
    state = train.init(phase.network, optimizer, init_key, parts.example(data))
  else:
    grown = (cut.grow(tree, heads) for tree in (job.before.params, job.before.model_state))
    state = train.fresh(optimizer, *grown)

  progress = _progress(folder)
  saved = checkpoints.latest_progress(progress, state)
  if saved is not None:
    state = saved
    say(f'{job.what}: continues at step {int(state.step)} of {steps}')
  online = job.teacher is not None and sees_views(data, settings)
  kept = {'teacher': job.teacher.predictions} if job.teacher is not None and not online else {}
  feed = data.train.feed(data.scaling, kept)
  try:
    with bar(job.what, steps, per_step=settings.batch_size * heads) as advance:
      state = train.fit(
        train.make_step(
          phase.network, phase.loss, phase.objective, optimizer, steps, phase.penalty, phase.heads_per_step
        ),
        phase.network,
        state,
        feed,
        data.scaling,
        seed=seed,
        key=step_key,
        steps=steps,
        batch_size=settings.batch_size,
        augment=augment.build(settings.augment, data.train.example.ndim),
        **(predicting(job.teacher.model) if online else {}),
        progress=lambda step, loss: advance(step, loss, feed.note()),
        save=lambda state: checkpoints.save_progress(progress, int(state.step), state),
        save_every=config.checkpoint_seconds,
      )
  except UserError as e:
    raise UserError(f"in phase '{job.what}': {e}") from e
  parts.save(new, state.params, state.model_state, job.recipe, job.number, data)


def sees_views(data: Data, settings: ConfigDict) -> bool:
  """Whether inputs look different each time, so that a teacher must predict in the same step as its student."""
  return data.train.varies or bool(settings.augment)


def predicting(model: Model) -> dict[str, Any]:
  """A teacher that predicts in the step of its student, as `train.fit` takes it."""
  teach = lambda teacher, x: jax.lax.stop_gradient(model.network.apply(*teacher, x)[0])
  return {'teach': teach, 'teacher': (model.params, model.model_state)}


def predicted(replica: Replica, teacher: Trained, key: str) -> np.ndarray:
  """Outputs `[M, N, C]` of the members on the training inputs, computed once and memory-mapped."""
  dtype = replica.config.teacher.keep_as
  key = store.key_of(dict(teacher=key, data=replica.data.fingerprint))

  def make(new, folder):
    x = np.asarray(replica.data.train.x)
    outputs = evaluate.predict(teacher.model, x, replica.config.evaluation.batch_size)
    if np.abs(outputs).max() > np.finfo(dtype).max:
      raise UserError(f'teacher predictions are too large for {dtype}: set config.teacher.keep_as to float32')
    np.save(new / 'predictions.npy', outputs.astype(dtype))

  folder = part(replica, 'predictions', key, 'teacher predictions', make)
  return np.load(folder / 'predictions.npy', mmap_mode='r')


def evaluated(replica: Replica, name: str, trained: Trained) -> dict[str, Scores]:
  """Scores of every example of every evaluation set, `{set: {score: [N]}}`."""
  config, data = replica.config, replica.data
  key = store.key_of(dict(model=trained.key, data=config.data.to_dict(), replica=replica.index))

  def make(new, folder):
    with bar(f'{name}: evaluation', len(data.evaluations), unit='sets') as advance:
      scores = trained.scores(advance)
    flat = {f'{where}|{score}': v for where, found in scores.items() for score, v in found.items()}
    np.savez(new / 'scores.npz', **flat)

  folder = part(replica, 'scores', key, f'{name}: evaluation', make)
  scores: dict[str, dict[str, np.ndarray]] = {}
  with np.load(folder / 'scores.npz') as flat:
    for both, values in flat.items():
      where, score = both.split('|')
      scores.setdefault(where, {})[score] = values
  return scores


def sizes(replica: Replica, models: dict[str, Trained]) -> list[dict]:
  """Rows of parameters and FLOPs per example."""
  x = np.asarray(replica.data.train.example)
  rows = []
  for name, (model, *_) in models.items():
    for metric, value in (('parameters', cost.parameters(model)), ('flops', cost.flops(model, x))):
      rows.append({'data': 'cost', 'method': name, 'replica': 0, 'metric': metric, 'value': value, 'n': 1})
  return rows


def measured(replica: Replica, models: dict[str, Trained]) -> list[dict]:
  """Rows of latency, measured once for each set of models."""
  size = replica.config.evaluation.batch_size
  key = store.key_of(dict(models={n: t.key for n, t in models.items()}, batch=size, on=device()))

  def make(new, folder):
    test = replica.data.evaluations['test'].load()
    batch = np.asarray(test.x[:size]), test.y[:size]
    found = cost.latencies({n: t.model for n, t in models.items()}, replica.task, *batch)
    rows = [
      {'data': 'cost', 'method': m, 'replica': 0, 'metric': 'latency_ms', 'value': v, 'n': len(batch[0])}
      for m, v in found.items()
    ]
    (new / 'timings.json').write_text(json.dumps(rows))

  return json.loads((part(replica, 'timings', key, 'latencies', make) / 'timings.json').read_text())


def report(workdir: Path, rows, timings, data: Data, scores, bins: int) -> None:
  """Writes results, table and figures, and prints the table."""
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  store.replace_text(workdir / 'results.jsonl', lines(rows))
  store.replace_text(workdir / 'timings.jsonl', lines(timings))
  table = tables.comparison(rows + timings, TASKS[data.task], outside_of(data))
  store.replace_text(workdir / 'table.md', tables.markdown(table))
  figures.draw_all(workdir / 'figures', data, scores, rows, bins)
  tables.show(table)
  say(f'everything is in {workdir}: table.md, results.jsonl, figures/, parts/')


def device() -> str:
  """The device that does the work, in words."""
  return f'{jax.devices()[0].device_kind} {platform.machine()}'


def versions() -> dict[str, str]:
  """Versions of what the results depend on."""
  from importlib import metadata

  packages = ('hydra_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')
  found = {p: metadata.version(p) for p in packages}
  return {'python': platform.python_version(), **found, 'device': device(), 'platform': platform.platform()}


def check_workdir(workdir: Path, config: ConfigDict) -> None:
  """Raises a `UserError` unless a work directory is new, empty, or one of this experiment."""
  saved = workdir / CONFIG
  if saved.exists():
    try:
      name = json.loads(saved.read_text())['name']
    except (ValueError, KeyError, TypeError) as e:
      raise UserError(f'{saved} is damaged: delete it, or choose another --workdir') from e
    if name != config.name:
      raise UserError(f"{workdir} holds a run of '{name}', not of '{config.name}': choose another --workdir")
  elif workdir.exists() and {p.name for p in workdir.iterdir()} - {'parts', store.LOCK}:
    raise UserError(f'{workdir} is not empty and not a run: choose another --workdir')


def record(workdir: Path, config: ConfigDict) -> None:
  """Saves the resolved config, and the versions of what the results depend on."""
  store.replace_text(workdir / CONFIG, json.dumps(config.to_dict(), indent=2, sort_keys=True))
  store.replace_text(workdir / 'versions.json', json.dumps(versions(), indent=2))
