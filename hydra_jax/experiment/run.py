"""From a config to results: teachers, their predictions, students, evaluation, table and figures.

Every artifact is kept in the work directory under a hash of what it depends on. A run that is started again takes what
is there and makes the rest. So it makes no difference whether it was interrupted.
"""

from collections.abc import Sequence
import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

from hydra_jax import store
from hydra_jax.data import load, with_unlabelled
from hydra_jax.devices import processes
from hydra_jax.devices.cpu import HUGE_PAGES, lacks_huge_pages, on_cpu
from hydra_jax.errors import UserError
from hydra_jax.evaluation import diversity, evaluate, user_metrics
from hydra_jax.experiment import (
  agreement,
  artifacts,
  config as configs,
  external_predictions,
  recipes,
  run_report,
  tracking,
)
from hydra_jax.experiment.phases import train_method
from hydra_jax.experiment.plan import PlannedMethod, plan
from hydra_jax.experiment.replicas import Place, Replica, Trained, grouped
from hydra_jax.experiment.schema import method_of, resolve
from hydra_jax.experiment.teachers import (
  Teacher,
  count_members,
  fold_of_examples,
  load_ensemble,
  teacher_in_file,
  teacher_of,
)
from hydra_jax.experiment.validation import best_of, with_spread
from hydra_jax.experiment.workdir import check_workdir, record, record_models, record_overlap, record_parts

logger = logging.getLogger(__name__)


def run(
  config: ConfigDict,
  workdir: Path,
  data_dir: str,
  profile: bool = False,
  measure: bool = False,
  shared: Path | None = None,
) -> run_report.Outcome:
  """Does all that a config asks for, under `workdir`.

  Args:
    config: The experiment; what the data decide is set in it.
    workdir: Where everything is written.
    data_dir: Where data sets are.
    profile: Traces a few steps of each phase.
    measure: Measures latencies again, also where they are known.
    shared: A folder of artifacts that runs share: what is there is not trained again, and what is trained is put there.

  Returns:
    The results.

  Raises:
    UserError: The user has to change something. It is raised before anything is trained if it can be known.
  """
  configs.check_values(config)
  agreement.on_configs({'': config})
  config.teacher.members = count_members(config)
  configs.validate(config)
  check_workdir(workdir, config)
  data = load(config.data, data_dir, 0, config.validation)
  configs.settle(config, data.about)
  configs.validate(config, data.task, data.train.example.ndim)
  first = Replica(
    config=config,
    artifacts=workdir / 'artifacts',
    index=0,
    data=data,
    profile=workdir / 'profile' if profile else None,
    store=shared,
  )
  check_teachers(first)
  user_metrics.check(config.evaluation.metrics, data)
  planned = plan(config, data.about, jax.device_count())
  agreement.on_data(config, data)
  processes.run_on_main(lambda: (workdir / 'artifacts').mkdir(parents=True, exist_ok=True))
  with processes.main_process_context(lambda: store.locked(workdir)):
    processes.check_shared(workdir)
    if shared:
      processes.run_on_main(lambda: shared.mkdir(parents=True, exist_ok=True))
      processes.check_shared(shared)
    processes.run_on_main(lambda: record(workdir, config, data))
    with processes.main_process_context(lambda: tracking.following(first, workdir)):
      return carry_out(planned, first, workdir, data_dir, measure)


def check_teachers(replica: Replica) -> None:
  """Raises a `UserError` for teachers, or inputs without labels, that do not fit the data."""
  config, data = replica.config, replica.data
  if config.teacher.predictions:
    external_predictions.check(config.teacher.predictions, data)
    teacher_in_file(replica)
  for place in config.teacher.checkpoints:
    artifacts.load(place, data, own=recipes.user_functions(config))
  for name in config.students:
    training = resolve(config, name).training
    with_unlabelled(data, training.unlabelled)
    try:
      if training.folds:
        fold_of_examples(replica, training.folds)
    except UserError as e:
      raise UserError(f'config.student.{name}.folds: {e}') from e


def carry_out(
  planned: Sequence[PlannedMethod], first: Replica, workdir: Path, data_dir: str, measure: bool
) -> run_report.Outcome:
  """Trains and evaluates all replicas, and writes the report."""
  config, data = first.config, first.data
  shape = data.train.example.shape[1:]
  convolves = any(phase.phase.network.convolves(shape) for method in planned for phase in method.phases)
  rows, timings, tests = [], [], []
  notes: dict[str, str] = {}
  locations: dict[str, list[Place]] = {}
  if convolves and on_cpu() and lacks_huge_pages():
    logger.info(f'convolutions are faster on this CPU if the command is started with {HUGE_PAGES} in the environment')
  for group in grouped(first, data_dir, alone=convolves and on_cpu()):
    if config.replicas > 1:
      several = f'replicas {group[0].index + 1} to {group[-1].index + 1}, together,'
      logger.info(f'--- {several if len(group) > 1 else f"replica {group[0].index + 1}"} of {config.replicas}')
    for replica, models in zip(group, train_all(group, planned), strict=True):
      for name, trained in models.items():
        if trained.place is not None:
          locations.setdefault(name, []).append(trained.place)
      found = {name: run_report.evaluated(replica, name, trained) for name, trained in models.items()}
      scores = {name: each.scores for name, each in found.items()}
      more, matrices = compare(replica, models, scores)
      rows += more
      for name, each in found.items():
        rows += run_report.validation_rows(replica, name, models[name].place, each)
      test = replica.data.evaluations['test'].load().fingerprint
      tests.append((test, {name: each['test'] for name, each in scores.items() if 'test' in each}))
      if replica.index == 0:
        here = {name: trained for name, trained in models.items() if trained.model is not None}
        rows += run_report.sizes(replica, here)
        timings = run_report.measured(replica, here, measure)
        inputs = run_report.FigureInputs(replica.data, scores, matrices)
        notes |= run_report.weak(replica.data, scores)
  ratio = run_report.overlap(data, tests)
  processes.run_on_main(lambda: record_overlap(workdir, ratio))
  processes.run_on_main(lambda: record_models(workdir, locations))
  processes.run_on_main(lambda: record_parts(workdir, first.parts))
  task = first.task
  processes.run_on_main(lambda: run_report.report(workdir, config, rows, timings, inputs, task, notes, ratio))
  return run_report.Outcome(task=data.task, rows=rows, timings=timings, tests=tests, test_to_train=ratio)


def train_all(group: Sequence[Replica], planned: Sequence[PlannedMethod]) -> list[dict[str, Trained]]:
  """For each replica, the ensemble and every student that the config lists, by name."""
  config = group[0].config
  teachers, ensembles = teachers_of(group, planned)
  by_folds = {0: teachers} | teachers_with_folds(group, planned, ensembles)
  models = {'ensemble': ensembles}
  found: dict[str, list[tuple[PlannedMethod, list[Trained]]]] = {}
  for method in planned:
    if method.recipe.role == 'teacher':
      continue
    if (rule := getattr(method.recipe.settings.own, 'grouping', 'one_each')) != 'one_each':
      heads = len(method.phases[-1].phase.network.heads)
      logger.info(f'{method.name}: {heads} heads for {config.teacher.members} members, grouped {rule}')
    teachers = by_folds[method.recipe.settings.training.folds]
    trained = with_spread(group, method, train_method(group, method, teachers), teachers)
    found.setdefault(method.name, []).append((method, trained))
  models |= {name: rows[0][1] if len(rows) == 1 else best_of(group, rows) for name, rows in found.items()}
  return [dict(zip(models, row, strict=True)) for row in zip(*models.values(), strict=True)]


def teachers_of(group: Sequence[Replica], planned: Sequence[PlannedMethod]) -> tuple[list[Teacher], list[Trained]]:
  """For each replica what students learn from, and its row of the table."""
  config = group[0].config
  if config.teacher.predictions:
    rows = [teacher_in_file(replica) for replica in group]
    return [teacher for teacher, _ in rows], [ensemble for _, ensemble in rows]
  if config.teacher.checkpoints:
    ensembles = [load_ensemble(replica) for replica in group]
  else:
    (method,) = with_role(planned, 'teacher', 0)
    ensembles = train_method(group, method)
  students = [method.recipe for method in with_role(planned, 'student', 0)]
  return [teacher_of(*both, students) for both in zip(group, ensembles, strict=True)], ensembles


def teachers_with_folds(
  group: Sequence[Replica], planned: Sequence[PlannedMethod], ensembles: Sequence[Trained]
) -> dict[int, list[Teacher]]:
  """By number of folds, what students learn from that ask for folds, for each replica."""
  found = {}
  for folds in sorted({method.recipe.settings.training.folds for method in planned} - {0}):
    (method,) = with_role(planned, 'teacher', folds)
    students = [method.recipe for method in with_role(planned, 'student', folds)]
    rows = zip(group, ensembles, train_method(group, method), strict=True)
    found[folds] = [teacher_of(replica, ensemble, students, other) for replica, ensemble, other in rows]
  return found


def with_role(planned: Sequence[PlannedMethod], role: str, folds: int) -> list[PlannedMethod]:
  """Methods of a role, with this number of folds."""
  return [m for m in planned if m.recipe.role == role and m.recipe.settings.training.folds == folds]


def compare(replica: Replica, models: dict[str, Trained], scores: run_report.AllScores) -> tuple[list[dict], dict]:
  """Result rows of one replica: scores, and what is kept of the ensemble's diversity; and heads against members.

  Beside the latter is, as `ensemble`, how far members are from one another.
  """
  config, ensemble, rows, matrices = replica.config, models['ensemble'], [], {}
  for name, found in scores.items():
    rows += evaluate.rows(found, replica.data, replica.task, name, replica.index, config.evaluation.ece_bins)
  for name in config.students:
    heads, members = (len(m.model.network.heads) if m.model else 0 for m in (models[name], ensemble))
    if method_of(config, name).matched and heads == members:
      matrices[name] = run_report.divergences(replica, name, models[name], ensemble)
  of_members = run_report.averaged_nll(replica, ensemble) if 'test' in scores['ensemble'] else None
  rows += diversity.rows(scores, rows, replica.data, replica.index, matrices, of_members)
  if matrices and replica.index == 0:  # which figures show
    matrices = {'ensemble': run_report.divergences(replica, 'ensemble', ensemble, ensemble), **matrices}
  return rows, matrices
