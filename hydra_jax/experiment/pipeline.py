"""From a config to results: teachers, their predictions, students, evaluation, table and figures.

Every part is kept in the work directory under a hash of what it depends on. A run that is started
again takes what is there and makes the rest, so it makes no difference whether it was interrupted.
"""

from collections.abc import Sequence
import functools
import json
from pathlib import Path
import platform
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store
from hydra_jax.data import Data, Split, load, with_unlabelled
from hydra_jax.devices import collectives, mapping, parallel, preemption, processes
from hydra_jax.errors import UserError
from hydra_jax.evaluation import diversity, evaluate
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import (
  agreement,
  artifacts,
  config as configs,
  external_predictions,
  provenance,
  results,
  survivors,
)
from hydra_jax.experiment.replicas import Replica, Trained, grouped, part
from hydra_jax.methods.base import METHODS, Phase
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Tree
from hydra_jax.progress import bar, say
from hydra_jax.training import augment, batches, checkpoints, optimizers, train

CONFIG = 'config.json'
ROLES = ('teacher', 'student')
WORSE = 'look at its learning rate, its epochs and the data'

Group = Sequence[Replica]


class Teacher(NamedTuple):
  """What students learn from: predictions `[M, N, C]` on the training inputs, if any need them, or the model itself."""

  predictions: np.ndarray | None
  model: Model | None
  key: str


class Job(NamedTuple):
  """One phase of training of a group of replicas, ready to start.

  Attributes:
    what: Shown to the user.
    recipe: What the phases are built from.
    number: Of the phase.
    phase: The phase.
    before: Parameters and state that the phase before has left, stacked if there are several replicas.
    teachers: One for each replica, where the phase distils.
  """

  what: str
  recipe: artifacts.Recipe
  number: int
  phase: Phase
  before: tuple[Tree, Tree] | None
  teachers: Sequence[Teacher]


def run(
  config: ConfigDict, workdir: Path, data_dir: str, profile: bool = False, measure: bool = False
) -> results.Outcome:
  """Does all that a config asks for, under `workdir`.

  Args:
    config: The experiment; what the data decide is set in it.
    workdir: Where everything is written.
    data_dir: Where data sets are.
    profile: Traces a few steps of each phase.
    measure: Measures latencies again, also where they are known.

  Returns:
    What was found.

  Raises:
    UserError: Where the user has to change something, before anything is trained if it can be known.
  """
  configs.check_values(config)
  agreement.on_configs({'': config})
  config.teacher.members = count_members(config)
  configs.validate(config)
  check_workdir(workdir, config)
  data = load(config.data, data_dir, 0)
  configs.settle(config, data.task)
  configs.validate(config, data.task, data.train.example.ndim)
  if config.teacher.predictions:
    external_predictions.check(config.teacher.predictions, data)
  first = Replica(config, workdir / 'parts', 0, data, workdir / 'profile' if profile else None)
  convolution = check_models(first)
  agreement.on_data(config, data)
  processes.on_main(lambda: (workdir / 'parts').mkdir(parents=True, exist_ok=True))
  with processes.entered(lambda: store.locked(workdir)):
    processes.check_shared(workdir)
    processes.on_main(lambda: record(workdir, config, data))
    rows, timings, tests = [], [], []
    notes: dict[str, str] = {}
    for group in grouped(first, data_dir, alone=convolution and mapping.on_cpu()):
      if config.replicas > 1:
        first_of, last_of = group[0].index + 1, group[-1].index + 1
        which = f'replicas {first_of} to {last_of}, together,' if len(group) > 1 else f'replica {first_of}'
        say(f'--- {which} of {config.replicas}')
      for replica, models in zip(group, train_all(group), strict=True):
        scores = {name: results.evaluated(replica, name, trained) for name, trained in models.items()}
        notes |= {name: note for name, trained in models.items() if (note := survivors.note(name, trained, config))}
        more, matrices = compared(replica, models, scores)
        rows += more
        test = replica.data.evaluations['test'].load().fingerprint
        tests.append((test, {name: found['test'] for name, found in scores.items() if 'test' in found}))
        if replica.index == 0:
          here = {name: trained for name, trained in models.items() if trained.model is not None}
          rows += results.sizes(replica, here)
          timings = results.measured(replica, here, measure)
          shown = results.Shown(replica.data, scores, matrices)
          notes |= results.weak(replica.data, scores)
    ratio = results.overlap(data, tests)
    processes.on_main(lambda: results.report(workdir, rows, timings, shown, config.evaluation.ece_bins, notes, ratio))
  return results.Outcome(data.task, rows, timings, tests, ratio)


def compared(replica: Replica, models: dict[str, Trained], scores: results.AllScores) -> tuple[list[dict], dict]:
  """Result rows of one replica: scores, and what is kept of the ensemble's diversity; and heads against members."""
  config, ensemble, rows, matrices = replica.config, models['ensemble'], [], {}
  for name, found in scores.items():
    rows += evaluate.rows(found, replica.data, name, replica.index, config.evaluation.ece_bins)
  for name in config.students:
    heads, members = (len(m.model.network.heads) if m.model else 0 for m in (models[name], ensemble))
    if METHODS[config.student[name].method].matched and heads == members:
      matrices[name] = results.divergences(replica, name, models[name], ensemble)
  return rows + diversity.rows(scores, rows, replica.data, replica.index, matrices), matrices


def check_models(replica: Replica) -> bool:
  """Raises a `UserError` for a network or a teacher that does not fit the data, before anything is written.

  Returns:
    Whether any of the networks convolves.
  """
  config, data, convolution = replica.config, replica.data, False
  if config.teacher.predictions:
    given_teacher(replica)
  for place in config.teacher.checkpoints:
    artifacts.load(place, data, own=artifacts.own_networks(config))
  for name, recipe in artifacts.recipes(config, data.task, data.outputs):
    phases = artifacts.phases_of(recipe)
    with_unlabelled(data, recipe.settings.get('unlabelled', ()))
    jax.eval_shape(phases[0].network.init, jax.random.key(0), artifacts.example(data))
    convolution |= phases[0].network.convolution
    for phase in phases:
      laid_out(config, phase, recipe.settings, f'{name}: {phase.name}')
  return convolution


def train_all(group: Group) -> list[dict[str, Trained]]:
  """For each replica, the ensemble and every student that the config lists, by name."""
  teachers, ensembles = zip(*teachers_of(group), strict=True)
  if ensembles[0].model is not None:
    group = survivors.for_members(group, len(ensembles[0].model.network.heads))
  config = group[0].config
  models = {'ensemble': ensembles}
  for name in config.students:
    if (rule := config.student[name].get('grouping', 'one_each')) != 'one_each':
      say(f'{name}: {config.student[name].heads} heads for {config.teacher.members} members, grouped {rule}')
    models[name] = fitted(group, 'student', name, config.student[name], teachers)
  return [dict(zip(models, row, strict=True)) for row in zip(*models.values(), strict=True)]


def count_members(config: ConfigDict) -> int:
  """Number of members, which teachers made before bring with them."""
  settings = config.teacher
  if settings.predictions:
    return external_predictions.read(settings.predictions).members
  if settings.checkpoints:
    return sum(
      len(artifacts.network_of(folder, artifacts.own_networks(config))[2].heads) for folder in settings.checkpoints
    )
  return settings.members


def teachers_of(group: Group) -> list[tuple[Teacher, Trained]]:
  """For each replica what students learn from, and its row: trained here, in other runs, or predictions in a file."""
  config = group[0].config
  if config.teacher.predictions:
    return [given_teacher(replica) for replica in group]
  if config.teacher.checkpoints:
    ensembles = [loaded_teacher(replica) for replica in group]
  else:
    ensembles = fitted(group, 'teacher', 'ensemble', config.teacher)
  return [teacher_of(replica, ensemble) for replica, ensemble in zip(group, ensembles, strict=True)]


def teacher_of(replica: Replica, ensemble: Trained) -> tuple[Teacher, Trained]:
  """An ensemble as a teacher, with its predictions if students need them."""
  config = replica.config
  kept = not all(sees_views(replica.data, config.student[name]) for name in config.students)
  key = key_of_teacher(config, ensemble.key)
  assert ensemble.model is not None
  return Teacher(predicted(replica, ensemble.model, key) if kept else None, ensemble.model, key), ensemble


def key_of_teacher(config: ConfigDict, ensemble: str) -> str:
  """Key of what students learn from: that of the ensemble, and how its predictions are kept."""
  return f'{ensemble}-{config.teacher.keep_as}'


def loaded_teacher(replica: Replica) -> Trained:
  """Members that other runs have trained, as one ensemble."""
  own = artifacts.own_networks(replica.config)
  loaded = [artifacts.load(folder, replica.data, replica.index, own) for folder in replica.config.teacher.checkpoints]
  model = evaluate.beside([model for model, _ in loaded])
  return trained(replica, model, store.key_of(dict(members=[key for _, key in loaded])))


def given_teacher(replica: Replica) -> tuple[Teacher, Trained]:
  """A teacher that is a file of predictions, and their scores on the evaluation sets that it covers."""
  data, size = replica.data, replica.config.evaluation.batch_size
  file = external_predictions.read(replica.config.teacher.predictions)
  of = lambda name, examples: external_predictions.outputs(file, name, examples, data.task, data.outputs, data.scaling)
  covered = {
    name: evaluation for name, evaluation in data.evaluations.items() if external_predictions.covers(file, name)
  }

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


def fitted(group: Group, role: str, name: str, settings: ConfigDict, teachers: Sequence[Teacher] = ()) -> list[Trained]:
  """Trains one method, `teacher` or a student by name, through its phases; a row for each replica."""
  config, own = group[0].config, group
  if others := settings.get('unlabelled', ()):
    group = [replica._replace(data=with_unlabelled(replica.data, others)) for replica in group]
    online = sees_views(group[0].data, settings)
    teachers = teachers if online else [taught(*both) for both in zip(group, teachers, strict=True)]
  recipe = artifacts.recipe_of(config, role, settings, group[0].data.task, group[0].data.outputs)
  phases = artifacts.phases_of(recipe, config.execution.mapping)
  trees, keys = None, keys_of_phases(group, recipe, phases, [teacher.key for teacher in teachers])
  for number, (phase, key) in enumerate(zip(phases, keys, strict=True)):
    what = f'{name}: {phase.name}' if role == 'student' else f'{name} of {len(phase.network.heads)}'
    job = Job(what, recipe, number, phase, trees, teachers if phase.distils else ())
    make = functools.partial(train_phase, group, job)
    with preemption.deferring():
      folder = part(group[0], phase.name.replace(' ', '-'), key, what, make, together=True)
    if processes.anywhere(preemption.asked()):
      raise preemption.Preempted('stopped after a phase', by_all=True)
    checkpoints.drop(_progress(folder))  # only now is there nothing left to lose
    trees = artifacts.restored(folder, phase.network, group[0].data, stacked(group))
  read = artifacts.predictive_of(recipe).read
  each = [artifacts.of_replica(trees, i, stacked(group)) for i in range(len(group))]
  network, each = survivors.of(phase.network, each, name, config.on_nan)
  models = [
    Model(network, params, state, replica.data.scaling, read)
    for (params, state), replica in zip(each, group, strict=True)
  ]
  return [
    trained(replica, model, f'{keys[-1]}-{i}') for i, (replica, model) in enumerate(zip(own, models, strict=True))
  ]


def keys_of_phases(
  group: Group, recipe: artifacts.Recipe, phases: Sequence[Phase], teachers: Sequence[str] = ()
) -> list[str]:
  """For each phase of a method the key of what it trains: a hash of its code, its settings, and all that it reads.

  Args:
    group: Replicas that are trained together.
    recipe: Of the method.
    phases: Built from it.
    teachers: Keys of the teachers of the replicas.
  """
  config, keys = group[0].config, ['']
  phases_of = METHODS[recipe.settings.get('method', 'ensemble')].phases
  for phase in phases:
    read = {k: v for k, v in recipe.settings.items() if k not in (*phase.unread, 'network')}
    keys.append(
      store.key_of(
        dict(
          code=[provenance.digest('training'), *map(provenance.definition, (phases_of, train_phase))],
          data=[replica.data.fingerprint for replica in group],
          network=configs.identity(recipe.network),
          phase=[phase.name, phase.epochs],
          settings=read,
          seed=[config.seed, [replica.index for replica in group], recipe.role],
          before=keys[-1],
          teacher=teachers if phase.distils else [],
        )
      )
    )
  return keys[1:]


def taught(replica: Replica, teacher: Teacher) -> Teacher:
  """A teacher with its predictions on the training inputs of these data, which are more than its own."""
  assert teacher.model is not None  # a file of predictions has none for other inputs, which `config.validate` says
  return teacher._replace(predictions=predicted(replica, teacher.model, teacher.key))


def stacked(group: Group) -> int:
  """How many replicas arrays are stacked of, 0 where there is one and nothing is stacked."""
  return len(group) if len(group) > 1 else 0


def stack(trees: Sequence[Tree]) -> Tree:
  """Trees of replicas along a new first axis; that of one as it is."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if len(trees) > 1 else trees[0]


def _progress(folder: Path) -> Path:
  """Where the checkpoints of a phase in progress are."""
  return folder.with_name(f'{folder.name}.progress')


def train_phase(group: Group, job: Job, new: Path, folder: Path) -> None:
  """Trains one phase into the folder `new`, from its newest checkpoint if it was interrupted."""
  config, settings, phase = group[0].config, job.recipe.settings, job.phase
  train_set, replicas, execution = group[0].data.train, stacked(group), config.execution
  steps = train.steps_for(phase.epochs, train_set.examples, settings.batch_size)
  optimizer = optimizers.build(settings, steps, train_set.examples / settings.batch_size, phase.frozen)
  seeds = [(config.seed, replica.index, ROLES.index(job.recipe.role)) for replica in group]
  init_keys, step_keys = zip(*map(keys_of, seeds), strict=True)
  if job.before is None:
    examples = stack([artifacts.example(replica.data) for replica in group])
    state = train.init(phase.network, optimizer, stack(init_keys), examples, replicas)
  else:
    grow = lambda trees: [cut.grow(tree, len(phase.network.heads)) for tree in trees]
    params, model_state = (jax.vmap(grow) if replicas else grow)(job.before)
    state = train.fresh(optimizer, params, model_state, replicas)

  layout = laid_out(config, phase, settings, job.what)
  state = layout.plain(layout.put(state, replicas))  # as it is saved: global arrays on these devices
  saver = checkpoints.Saver(_progress(folder), config.checkpoints_kept)
  saved = checkpoints.latest(saver.folder, state)
  if saved is not None:
    state = saved
    say(f'{job.what}: continues at step {int(state.step)} of {steps}')
  online = bool(job.teachers) and sees_views(group[0].data, settings)
  kept = [{'teacher': teacher.predictions} for teacher in job.teachers if not online] or [{}] * len(group)
  feed = feed_of([replica.data for replica in group], kept)
  step = train.make_step(
    phase.network,
    phase.loss,
    phase.objective,
    optimizer,
    steps,
    phase.penalty,
    phase.heads_per_step,
    execution.heads_per_chunk,
  )
  losses: list[float] = []

  def report(step: int, loss: float) -> None:
    losses.append(loss)
    advance(step, loss, feed.note())

  processes.meet()
  try:
    with (
      bar(job.what, steps, settings.batch_size * len(phase.network.heads) * len(group)) as advance,
      saver,
    ):
      state = train.fit(
        step,
        state,
        feed,
        stack([replica.data.scaling for replica in group]),
        seed=tuple(seeds) if replicas else seeds[0],
        key=stack(step_keys),
        steps=steps,
        batch_size=settings.batch_size,
        augment=augment.build(settings.augment, train_set.example.ndim, settings.augment_share),
        **(
          predicting([teacher.model for teacher in job.teachers if teacher.model], layout, settings.augment)
          if online
          else {}
        ),
        replicas=replicas,
        steps_per_call=execution.steps_per_call,
        layout=layout,
        skip=config.on_nan == 'skip-member' and step.independent,
        stopping=preemption.asked,
        progress=report,
        save=lambda state: saver.save(int(state.step), state),
        save_every=config.checkpoint_seconds,
        profile=group[0].profile and processes.rank_folder(group[0].profile / folder.name),
      )
  except UserError as e:
    raise UserError(f"in phase '{job.what}': {e}") from e
  if saved is None and losses[-1] >= losses[0]:
    say(f'{job.what}: the loss has not gone down ({losses[0]:.4g} at first, {losses[-1]:.4g} in the end): {WORSE}')
  artifacts.save(new, state.params, state.model_state, job.recipe, job.number, [replica.data for replica in group])


def keys_of(seed: tuple[int, ...]) -> jax.Array:
  """Two keys: how a network starts, and all that is random in its training but the order of the examples."""
  return jax.random.split(functools.reduce(jax.random.fold_in, seed[1:], jax.random.key(seed[0])))


def feed_of(data: Sequence[Data], kept: Sequence[dict]) -> batches.Feed:
  """Batches for one replica, or for several that are trained together."""
  if len(data) == 1:
    return data[0].train.feed(data[0].scaling, kept[0])
  # Streams are never trained together, see `replicas.grouped`.
  pairs = [(d.train, d.scaling, more) for d, more in zip(data, kept, strict=True) if isinstance(d.train, Split)]
  return batches.together([split.arrays(scaling, more) for split, scaling, more in pairs])


def sees_views(data: Data, settings: ConfigDict) -> bool:
  """Whether inputs look different each time, so that a teacher must predict in the same step as its student."""
  return data.train.varies or bool(settings.augment)


def laid_out(config: ConfigDict, phase: Phase, settings: ConfigDict, what: str) -> parallel.Layout:
  """How a phase is spread over the devices there are."""
  mesh = parallel.arranged(config.parallel, jax.device_count(), phase, settings.batch_size, what)
  return parallel.layout(config.parallel.mode, mesh)


def predicting(models: Sequence[Model], layout: parallel.Layout, augmentations: Sequence[str]) -> dict[str, Any]:
  """Teachers that predict in the step of their students, as `train.fit` takes them."""
  network, asked = models[0].network, augment.asks(augmentations)
  spread = len(models) == 1 and layout.splits(network) and not asked  # whoever is asked must be there

  def teach(teacher, x):
    devices = collectives.size('head')
    places = collectives.positions('head', len(network.heads) // devices) if spread and devices > 1 else None
    some = {} if places is None else {'places': places}
    return jax.lax.stop_gradient(network.apply(*teacher, x, **some)[0])

  def ask(teacher, key, x):
    if network.parts is None:
      return network.apply(*teacher, x)[0][jax.random.randint(key, (), 0, len(network.heads))]
    place = jax.random.randint(key, (1,), 0, len(network.heads))
    one = lambda tree: {**tree, 'heads': jax.tree.map(lambda leaf: leaf[place], tree['heads'])}
    return network.apply(*map(one, teacher), x, places=place)[0][0]

  teacher = stack([(model.params, model.model_state) for model in models])
  return {'teach': teach, 'teacher': teacher, 'spread_teacher': spread, 'ask': ask if asked else None}


def predicted(replica: Replica, teacher: Model, key: str) -> np.ndarray:
  """Outputs `[M, N, C]` of the members on the training inputs, computed once and memory-mapped."""
  dtype, key = replica.config.teacher.keep_as, key_of_predictions(replica, key)

  def make(new, folder):
    assert isinstance(replica.data.train, Split)  # a stream varies, so that nothing is kept of it
    x = np.asarray(replica.data.train.x)
    outputs = evaluate.predict(teacher, x, replica.config.evaluation.batch_size)
    if np.abs(outputs).max() > np.finfo(dtype).max:
      raise UserError(f'teacher predictions are too large for {dtype}: set config.teacher.keep_as to float32')
    np.save(new / 'predictions.npy', outputs.astype(dtype))

  folder = part(replica, 'predictions', key, 'teacher predictions', make)
  return store.read_mapped(folder / 'predictions.npy')


def key_of_predictions(replica: Replica, teacher: str) -> str:
  """Key of the predictions of a teacher, whose own key is given, on the training inputs of a replica."""
  code = [provenance.digest('training'), provenance.digest('evaluation'), provenance.definition(predicted)]
  return store.key_of(dict(teacher=teacher, data=replica.data.fingerprint, code=code))


def versions() -> dict[str, str]:
  """Versions of what the results depend on."""
  from importlib import metadata

  packages = ('hydra_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'scipy')
  found = {p: metadata.version(p) for p in packages}
  return {'python': platform.python_version(), **found, 'device': results.device(), 'platform': platform.platform()}


def check_workdir(workdir: Path, config: ConfigDict) -> None:
  """Raises a `UserError` unless a work directory is new, empty, or one of this experiment."""
  saved = workdir / CONFIG
  if saved.exists():
    try:
      config_then = store.read_json(saved)
      name, data = config_then['name'], config_then['data']['name']
    except (store.Damaged, KeyError, TypeError) as e:
      raise UserError(f'{saved} is damaged: delete it, or choose another --workdir') from e
    for key, old, new in (('name', name, config.name), ('data.name', data, config.data.name)):
      if old != new:
        raise UserError(f"{workdir} holds a run with {key}='{old}', not '{new}': choose another --workdir")
  elif any(p.name not in ('parts', store.LOCK) and not p.name.startswith(store.NEW) for p in workdir.glob('*')):
    raise UserError(f'{workdir} is not empty and not a run: choose another --workdir')


def record(workdir: Path, config: ConfigDict, data: Data) -> None:
  """Saves the resolved config, the versions of what the results depend on, and what the data were taken for."""
  about = {'task': data.task, 'outputs': data.outputs, 'classes': data.classes, 'train_examples': data.train.examples}
  store.replace_text(workdir / 'data.json', json.dumps(about, indent=2))
  store.replace_text(workdir / CONFIG, json.dumps(config.to_dict(), indent=2, sort_keys=True))
  store.replace_text(workdir / 'versions.json', json.dumps(versions(), indent=2))
