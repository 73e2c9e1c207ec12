"""What students learn from: an ensemble trained here, networks of other runs, or a file of predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store
from hydra_jax.data import Split
from hydra_jax.devices import collectives
from hydra_jax.devices.layout import Layout
from hydra_jax.errors import UserError
from hydra_jax.evaluation import evaluate, user_metrics
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import artifacts, external_predictions, provenance, recipes
from hydra_jax.experiment.replicas import Replica, Trained, reuse_or_make
from hydra_jax.experiment.views import as_kept, seed_of, write_predictions
from hydra_jax.training import augment
from hydra_jax.training.batches import stack
from hydra_jax.training.folds import of_heads, of_rows
from hydra_jax.training.program import head_specs
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import OnlineTeacher


@dataclass(frozen=True)
class Teacher:
  """What students learn from.

  Attributes:
    predictions: `[M, N, C]` on the training inputs, if any student needs them; on V views of them `[M, V · N, C]`.
    model: The members; None where only a file of predictions is given.
    key: Depends on all that the teacher depends on.
    validation: Outputs `[M, V, C]` of the members on the validation part, if there is one.
  """

  predictions: np.ndarray | None
  model: Model | None
  key: str
  validation: np.ndarray | None = None


def count_members(config: ConfigDict) -> int:
  """Number of members; teachers that exist already bring it with them."""
  settings = config.teacher
  if settings.predictions:
    return external_predictions.read(settings.predictions).members
  if settings.checkpoints:
    own = recipes.user_functions(config)
    return sum(len(artifacts.network_of(folder, own)[2].heads) for folder in settings.checkpoints)
  return settings.members


def predicts_in_step(varies: bool, training: TrainingSettings) -> bool:
  """Whether a teacher predicts in the step of its student, as the inputs of the student are not known before training.

  Args:
    varies: Whether the training inputs do by themselves, see `data.About`.
    training: How the student is trained.
  """
  return varies or (bool(training.augment) and not training.views)


def teacher_of(
  replica: Replica, ensemble: Trained, students: Sequence[recipes.Recipe], out_of_fold: Trained | None = None
) -> Teacher:
  """An ensemble as a teacher, with predictions if a student needs them.

  Args:
    replica: Of the experiment.
    ensemble: What students are compared with.
    students: What is to learn from it.
    out_of_fold: Networks that predict in its place on training examples, each where it has not seen them; None: it
      predicts there itself.
  """
  needed = any(
    recipe.method.learns_from == 'members' and not (replica.data.train.varies or recipe.settings.training.augment)
    for recipe in students
  )
  source = out_of_fold or ensemble
  key = key_of_teacher(replica.config, '-'.join(each.key for each in (ensemble, out_of_fold) if each))
  assert ensemble.model is not None and source.model is not None
  folds = len(source.model.network.heads) // len(ensemble.model.network.heads) if out_of_fold else 0
  predictions = kept_predictions(replica, source.model, key, folds) if needed else None
  return Teacher(predictions, ensemble.model, key, outputs_on_validation(replica, ensemble.model))


def outputs_on_validation(replica: Replica, model: Model) -> np.ndarray | None:
  """Outputs `[H, V, C]` on the validation part, if there is one."""
  held_out = replica.data.validation
  return None if held_out is None else evaluate.predict(model, held_out.x, replica.config.evaluation.batch_size)


def key_of_teacher(config: ConfigDict, ensemble: str) -> str:
  """Key of what students learn from: that of the ensemble, and how its predictions are kept."""
  return f'{ensemble}-{config.teacher.keep_as}'


def load_ensemble(replica: Replica) -> Trained:
  """Members that other runs have trained, as one ensemble."""
  own = recipes.user_functions(replica.config)
  loaded = [artifacts.load(folder, replica.data, replica.index, own) for folder in replica.config.teacher.checkpoints]
  model = evaluate.concatenate_models([model for model, _ in loaded])
  return evaluable(replica, model, store.key_of(dict(members=[key for _, key in loaded])))


def teacher_in_file(replica: Replica) -> tuple[Teacher, Trained]:
  """A teacher that is a file of predictions, and their scores on the evaluation sets that it covers."""
  data, size = replica.data, replica.config.evaluation.batch_size
  file = external_predictions.read(replica.config.teacher.predictions)

  def outputs(name: str, examples: int) -> np.ndarray:
    return external_predictions.outputs(file, name, examples, data.task, data.outputs, data.scaling)

  covered = {name: each for name, each in data.evaluations.items() if external_predictions.covers(file, name)}

  def scores(advance, label_scale):
    found, read = {}, replica.task.predictives['members'].read
    for name, evaluation in covered.items():
      split = evaluation.load()
      given = outputs(name, len(split.x))
      found[name] = evaluate.score_outputs(given, split, read, data.task, data.scaling, size, label_scale)
    advance(len(data.evaluations))
    return found

  def on_test():
    return outputs('test', len(covered['test'].load().x)) if 'test' in covered else None

  key = store.key_of(dict(file=file.key, data=data.fingerprint))
  given = outputs('train', data.given_examples)
  if data.train_rows is None:
    return Teacher(given, None, key), Trained(None, key, scores, lambda: None, on_test)
  held_out = given[:, data.validation_rows]
  return Teacher(given[:, data.train_rows], None, key, held_out), Trained(None, key, scores, lambda: held_out, on_test)


def evaluable(replica: Replica, model: Model, key: str) -> Trained:
  """A model as a row of the table."""
  settings = replica.config.evaluation

  def scores(advance, label_scale):
    found = evaluate.score_all(model, replica.data, settings.batch_size, advance, label_scale)
    more = user_metrics.scores(settings.metrics, model, replica.data, settings.batch_size)
    return {where: {**each, **more.get(where, {})} for where, each in found.items()}

  def on_test():
    return evaluate.predict(model, replica.data.evaluations['test'].load().x, settings.batch_size)

  return Trained(model, key, scores, lambda: outputs_on_validation(replica, model), on_test)


def kept_predictions(
  replica: Replica, teacher: Model, key: str, folds: int = 0, training: TrainingSettings | None = None
) -> np.ndarray:
  """Outputs `[M, N, C]` of the members on the training inputs, computed once and memory-mapped.

  Args:
    replica: With N training inputs.
    teacher: The members.
    key: Of the teacher.
    folds: Where it is not 0, the teacher has M · folds networks, and on each input those M predict that have not seen
      it.
    training: Of students that learn from fixed views; the outputs are `[M, V · N, C]`, see `experiment.views`.
  """
  viewed = training if training and training.fixed_views else None
  key = key_of_predictions(replica, key, viewed)

  def make(new, folder):
    del folder
    assert isinstance(replica.data.train, Split)  # the inputs of a stream vary, so nothing is kept
    file, size = new / 'predictions.npy', replica.config.evaluation.batch_size
    if viewed:
      write_predictions(file, replica, teacher, viewed)
      return
    x, fold = np.asarray(replica.data.train.x), fold_of_examples(replica, folds) if folds else None
    outputs = evaluate.predict(teacher, x, size) if fold is None else out_of_fold(teacher, x, fold, size)
    np.save(file, as_kept(outputs, replica.config.teacher.keep_as))

  folder = reuse_or_make(replica, 'predictions', key, 'teacher predictions', make)
  return store.read_mapped(folder / 'predictions.npy')


def fold_of_examples(replica: Replica, count: int) -> np.ndarray:
  """The fold of each training example `[N]`, by chance: each has equally many, and equally many of each class.

  Raises:
    UserError: There are fewer examples than folds, or they are read while a network trains.
  """
  train, config = replica.data.train, replica.config
  if not isinstance(train, Split):
    raise UserError('these data are read while a network trains, and are not divided: set it to 0')
  classes = np.asarray(train.y) if replica.data.task == 'classification' else None
  return of_rows(train.examples, count, (config.seed, replica.index), classes)


def out_of_fold(teacher: Model, x: np.ndarray, fold_N: np.ndarray, batch_size: int) -> np.ndarray:
  """Outputs `[M, N, C]` on each input of the M networks that have not seen its fold, see `folds.of_heads`."""
  fold_of_heads = of_heads(len(teacher.network.heads), int(fold_N.max()) + 1)
  outputs = np.empty(())
  for fold in np.unique(fold_N):
    found = evaluate.predict(teacher, x[fold_N == fold], batch_size)[fold_of_heads == fold]
    if not outputs.shape:
      outputs = np.empty((len(found), len(x), *found.shape[2:]), found.dtype)
    outputs[:, fold_N == fold] = found
  return outputs


def key_of_predictions(replica: Replica, teacher: str, viewed: TrainingSettings | None = None) -> str:
  """Key of the predictions of a teacher, whose own key is given, on the training inputs of a replica.

  Args:
    replica: Of the experiment.
    teacher: Its key.
    viewed: Of students that learn from fixed views of these inputs.
  """
  code = [provenance.digest('training'), provenance.digest('evaluation')]
  code += map(provenance.definition, (kept_predictions, fold_of_examples, out_of_fold))
  views = {}
  if viewed:
    code.append(provenance.definition(write_predictions))
    changes = [viewed.augment, viewed.augment_share, viewed.views]
    views = dict(views=[seed_of(replica, 'student'), *changes])
  return store.key_of(dict(teacher=teacher, data=replica.data.fingerprint, code=code, **views))


def with_predictions(replica: Replica, teacher: Teacher, training: TrainingSettings) -> Teacher:
  """A teacher with its predictions for what a student sees: more inputs than its own, or views of them."""
  assert teacher.model is not None  # a file of predictions has none for other inputs; `config.validate` says so
  return replace(teacher, predictions=kept_predictions(replica, teacher.model, teacher.key, training=training))


def online_teacher(models: Sequence[Model], layout: Layout, training: TrainingSettings) -> OnlineTeacher:
  """Teachers of replicas, which predict in the step of their students."""
  network, asked = models[0].network, augment.asks(training.augment)
  divides = network.can_split and len(network.heads) % layout.shape.head == 0
  # A member that is asked or drawn must be on every device.
  spread = len(models) == 1 and divides and not asked and not training.members_per_step

  def some_of(params: Any, members_K: jax.Array) -> Any:
    chosen = lambda tree: {**tree, 'heads': jax.tree.map(lambda leaf: leaf[members_K], tree['heads'])}
    return [chosen(tree) for tree in params]

  def predict(params: Any, x: jax.Array, drawn: jax.Array | None = None) -> jax.Array:
    if drawn is not None and network.body_and_heads is not None:
      return jax.lax.stop_gradient(network.apply(*some_of(params, drawn), x, head_indices=drawn)[0])
    devices = collectives.size('head')
    here = collectives.positions('head', len(network.heads) // devices) if spread and devices > 1 else None
    some = {} if here is None else {'head_indices': here}
    outputs = jax.lax.stop_gradient(network.apply(*params, x, **some)[0])
    if drawn is not None:  # a network that computes all members at once
      return outputs[drawn]
    return outputs if here is None else collectives.all_gather('head', outputs)

  def ask(params: Any, key: jax.Array, x: jax.Array) -> jax.Array:
    if network.body_and_heads is None:
      return network.apply(*params, x)[0][jax.random.randint(key, (), 0, len(network.heads))]
    place = jax.random.randint(key, (1,), 0, len(network.heads))
    return network.apply(*some_of(params, place), x, head_indices=place)[0][0]

  params = stack([(model.params, model.model_state) for model in models])
  specs = head_specs(params) if spread else jax.tree.map(lambda _: P(), params)
  return OnlineTeacher(params=params, specs=specs, predict=predict, ask=ask if asked else None)
