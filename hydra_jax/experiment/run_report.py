"""What comes out of a run: scores of every example, rows of results, the table and the figures."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
import functools
import json
import logging
from pathlib import Path
import platform
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np

from hydra_jax import store
from hydra_jax.data import Data, outside_of
from hydra_jax.devices import processes
from hydra_jax.evaluation import cost, diversity, evaluate, user_metrics
from hydra_jax.experiment import explain, metrics_log, provenance
from hydra_jax.experiment.replicas import Place, Replica, Trained, reuse_or_make
from hydra_jax.formats import digits
from hydra_jax.maths import uncertainty
from hydra_jax.maths.tasks import TASKS, Scores, Task
from hydra_jax.progress import bar
from hydra_jax.report import dots, figures, page, tables, verdict
from hydra_jax.settings import short

logger = logging.getLogger(__name__)

LABEL_SCALE = 'label_scale.json'
PAGE = 'report.html'

AllScores = dict[str, dict[str, Scores]]  # method, evaluation set, score -> [N]


def key_of_scores(replica: Replica, model: str) -> str:
  """Key of the scores of a model, whose own key is given.

  It has the content of all sets that the model is evaluated on, and of the validation part, if labels are calibrated.
  """
  held_out = replica.data.validation
  sets, settings = (
    {n: evaluation.key() for n, evaluation in replica.data.evaluations.items()},
    replica.config.evaluation,
  )
  code = [*_code(evaluated), *user_metrics.sources(settings.metrics)]
  held_out_key = held_out.fingerprint if held_out is not None else None
  found = dict(model=model, sets=sets, batch=settings.batch_size, metrics=list(settings.metrics), code=code)
  return store.key_of(dict(**found, validation=held_out_key))


def key_of_divergences(replica: Replica, model: str, ensemble: str) -> str:
  """Key of how far the heads of a model are from the members of an ensemble, whose own keys are given."""
  sets = {name: replica.data.evaluations[name].key() for name in diversity.compared_on(replica.data)}
  return store.key_of(dict(model=model, teacher=ensemble, sets=sets, code=_code(divergences)))


def _code(make: Callable) -> list[str]:
  return [provenance.digest('training'), provenance.digest('evaluation'), provenance.definition(make)]


class Evaluated(NamedTuple):
  """Scores of every example of every evaluation set, `{set: {score: [N]}}`, and what label calibration has found.

  The latter is None, and `validation` is empty, where there are no predictions for a validation part.
  """

  scores: dict[str, Scores]
  label_scale: float | None
  validation: Scores


def evaluated(replica: Replica, name: str, trained: Trained) -> Evaluated:
  """Evaluates one row of the table; its labels are calibrated on the validation part, if there is one."""
  data, key = replica.data, key_of_scores(replica, trained.key)

  def make(new, folder):
    with bar(f'{name}: evaluation', len(data.evaluations), unit='sets') as advance:
      scale = label_scale(replica, trained)
      scores = trained.scores(advance, scale)
    flat = {f'{where}|{score}': v for where, found in scores.items() for score, v in found.items()}
    np.savez(new / 'scores.npz', allow_pickle=False, **flat)
    size = min(replica.config.evaluation.batch_size, len(next(iter(scores['test'].values()))))
    np.savez(new / 'validation.npz', allow_pickle=False, **validation_scores(replica, trained, scale, size))
    (new / LABEL_SCALE).write_text(json.dumps(scale))

  folder = reuse_or_make(replica, 'scores', key, f'{name}: evaluation', make)
  scores: dict[str, Any] = {}
  for both, values in store.read_arrays(folder / 'scores.npz').items():
    where, _, score = both.partition('|')
    if where not in data.evaluations or values.ndim != 1:
      raise store.Damaged(f'{folder} holds no scores of these sets: delete that folder and run the same command again')
    scores.setdefault(where, {})[score] = values
  return Evaluated(scores, store.read_json(folder / LABEL_SCALE), store.read_arrays(folder / 'validation.npz'))


def validation_scores(replica: Replica, trained: Trained, label_scale: float | None, size: int) -> Scores:
  """Scores of every example of the validation part, `{score: [N]}`; empty where there are no predictions for one.

  Args:
    replica: Has the data.
    trained: What is evaluated.
    label_scale: What label calibration has found.
    size: Of the batches in which the other sets were scored.
  """
  split, data = replica.data.validation, replica.data
  if split is None or label_scale is None:
    return {}
  if trained.model is None:
    outputs, read = trained.on_validation(), replica.task.predictives['members'].read
    return evaluate.score_outputs(outputs, split, read, data.task, data.scaling, size, label_scale)
  # The program that scores the other sets.
  score = evaluate.scorer(trained.model, data.task, data.train.example.shape[1:], label_scale=label_scale)
  return evaluate.score_split(score, data, split, size)


def label_scale(replica: Replica, trained: Trained) -> float | None:
  """What label calibration finds on the validation part; None where there are no predictions for one."""
  outputs, held_out, task = trained.on_validation(), replica.data.validation, replica.task
  if outputs is None or held_out is None:
    return None
  read = trained.model.read if trained.model else task.predictives['members'].read
  return evaluate.label_scale_of(outputs, held_out, read, task, replica.data.scaling)


def averaged_nll(replica: Replica, ensemble: Trained) -> dict[int, float]:
  """NLL of n averaged members on the test set, `{n: mean NLL}`, in the units of the targets."""
  data, task = replica.data, replica.task
  test = data.evaluations['test']
  key = store.key_of(dict(ensemble=ensemble.key, test=test.key(), code=_code(averaged_nll)))

  def make(new, folder):
    outputs = ensemble.on_test()
    assert outputs is not None
    nll = evaluate.label_nll(outputs, test.load(), task, data.scaling, replica.config.evaluation.batch_size)
    (new / 'averaged.json').write_text(json.dumps(list(diversity.averaged_nll(nll).items())))

  folder = reuse_or_make(replica, 'averaged', key, 'ensemble: NLL of some of its members', make)
  return dict(map(tuple, store.read_json(folder / 'averaged.json')))


# Of the way from the best constant prediction to a perfect one.
LITTLE_SKILL = 0.1


def weak(data: Data, scores: AllScores) -> dict[str, str]:
  """Notes on methods that predict the test set hardly better than one constant prediction would."""
  task, test = TASKS[data.task], data.evaluations['test'].load()
  skills = {name: task.skill(found['test'], test.y) for name, found in scores.items() if 'test' in found}
  text = 'hardly better than a constant prediction on the test set (skill {}): look at learning rate, epochs and data'
  return {f'weak {name}': f'{name}: {text.format(digits(s))}' for name, s in skills.items() if s < LITTLE_SKILL}


def divergences(replica: Replica, name: str, trained: Trained, ensemble: Trained) -> dict[str, np.ndarray]:
  """How far each head is from each member, `{set: [H, M]}`, see `diversity.divergences`; both have a model.

  Of the ensemble itself: how far each member is from each.
  """
  data, size = replica.data, replica.config.evaluation.batch_size
  student, teacher = trained.model, ensemble.model
  assert student is not None and teacher is not None
  key = key_of_divergences(replica, trained.key, ensemble.key)

  def make(new, folder):
    found = {}
    for where in diversity.compared_on(data):
      x = np.asarray(data.evaluations[where].load().x)
      theirs = evaluate.predict(teacher, x, size)
      ours = theirs if trained is ensemble else evaluate.predict(student, x, size)
      found[where] = diversity.divergences(ours, theirs, data.task, size)
    np.savez(new / 'divergences.npz', allow_pickle=False, **found)

  folder = reuse_or_make(replica, 'divergences', key, f'{name}: heads against members', make)
  return store.read_arrays(folder / 'divergences.npz')


def validation_rows(replica: Replica, name: str, place: Place | None, found: Evaluated) -> list[dict]:
  """Rows of the validation part: scores by which settings may be chosen, and what was calibrated there.

  The latter is the spread of the heads, and a temperature or variance scale.
  """
  if replica.data.validation is None:
    return []
  values = {'spread': place.spread} if place is not None and place.spread != 1 else {}
  values |= {replica.task.scale_name: found.label_scale} if found.label_scale is not None else {}
  if found.validation:
    values |= evaluate.averages(found.validation, replica.task, replica.config.evaluation.ece_bins)
  n = replica.data.validation.examples
  return [
    {'split': 'validation', 'method': name, 'replica': replica.index, 'metric': metric, 'value': value, 'n': n}
    for metric, value in values.items()
  ]


def _models(trained: Mapping[str, Trained]) -> dict[str, evaluate.Model]:
  """The models of the methods that have one."""
  return {name: each.model for name, each in trained.items() if each.model is not None}


def sizes(replica: Replica, models: dict[str, Trained]) -> list[dict]:
  """Rows of parameters and FLOPs per example."""
  x = np.asarray(replica.data.train.example)
  rows = []
  for name, model in _models(models).items():
    for metric, value in (('parameters', cost.parameters(model)), ('flops', cost.flops(model, x))):
      rows.append({'split': 'cost', 'method': name, 'replica': 0, 'metric': metric, 'value': value, 'n': 1})
  return rows


def measured(replica: Replica, models: dict[str, Trained], again: bool = False) -> list[dict]:
  """Rows of latency: median and quartiles, measured once for each set of models, or `again`."""
  size = replica.config.evaluation.batch_size
  code = [provenance.digest('cost'), provenance.definition(measured)]
  key = store.key_of(dict(models={n: t.key for n, t in models.items()}, batch=size, on=device(), code=code))

  def make(new, folder):
    test = replica.data.evaluations['test'].load()
    batch = [np.asarray(a)[:size] for a in test.arrays(replica.data.scaling).values()]
    found = cost.latencies(_models(models), replica.data.task, *batch)
    rows = [
      {'split': 'cost', 'method': m, 'replica': 0, 'metric': metric, 'value': value, 'n': len(batch[0])}
      for m, each in found.items()
      for metric, value in (('latency_ms', each.median), ('latency_ms_low', each.low), ('latency_ms_high', each.high))
    ]
    (new / 'timings.json').write_text(json.dumps(rows))

  if again:
    for folder in (replica.artifacts / f'timings-{key}', replica.made_in(f'timings-{key}')):
      processes.run_on_main(functools.partial(shutil.rmtree, folder, ignore_errors=True), 'measure again')
  return store.read_json(reuse_or_make(replica, 'timings', key, 'latencies', make) / 'timings.json')


@dataclass(frozen=True)
class FigureInputs:
  """What figures are drawn from: the data of one replica, scores of every method, and heads against members."""

  data: Data
  scores: AllScores
  matrices: dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
  """What a run has found.

  Attributes:
    task: Key of `tasks.TASKS`.
    rows: Those of `results.jsonl`.
    timings: Those of `timings.jsonl`.
    tests: For each replica, a hash of its test split, and scores of every example of it, `{method: {score: [N]}}`.
    test_to_train: See `overlap`.
  """

  task: str
  rows: list[dict]
  timings: list[dict]
  tests: list[tuple[str, dict[str, Scores]]]
  test_to_train: float = 0.0


def overlap(data: Data, tests: list[tuple[str, dict[str, Scores]]]) -> float:
  """Test examples for each training example where replicas are overlapping splits of one data set, as UCI's, else 0.

  Replicas with other seeds have the same test split. Standard errors are corrected by this number, see `statistics`.
  """
  several = len({digest for digest, _ in tests}) > 1
  return len(data.evaluations['test'].load().x) / data.given_examples if several else 0.0


def report(
  workdir: Path, config, rows, timings, inputs: FigureInputs, task: Task, notes: Mapping[str, str], test_to_train
) -> None:
  """Writes results, table, figures and page, and prints the table, with notes below."""
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  store.replace_text(workdir / 'results.jsonl', lines(rows))
  store.replace_text(workdir / 'timings.jsonl', lines(timings))
  table = tables.comparison(rows + timings, task, outside_of(inputs.data), test_to_train)
  store.replace_text(workdir / 'table.md', tables.markdown(table) + ''.join(f'\n{note}\n' for note in notes.values()))
  found = verdict.results_of([*rows, *timings], test_to_train)
  drawn = figures.Drawn(
    about=figures.About(config.data.name, config.seed, config.replicas),
    data=inputs.data,
    scores=inputs.scores,
    matrices=inputs.matrices,
    rows=rows,
    values=found.estimates(),
    bins=config.evaluation.ece_bins,
    test_to_train=test_to_train,
    lines=metrics_log.read(workdir / metrics_log.NAME),
  )
  figures.draw_all(workdir / 'figures', drawn)
  table = replace(table, note=f'Second line of a cell: relative to the ensemble. {table.note}'.strip())
  store.replace_text(workdir / PAGE, page.html(page_of(workdir, config, found, inputs, task, table, notes)))
  tables.show(table)
  for note in notes.values():
    logger.warning(note)
  logger.info(f'everything is in {workdir}: {PAGE}, table.md, results.jsonl, figures/, artifacts/')


def page_of(
  workdir: Path, config, found: verdict.Results, inputs: FigureInputs, task: Task, table: tables.Table, notes
) -> page.Page:
  """What stands on the page of a run."""
  data, student = inputs.data, student_shown(inputs.scores)
  said, inputs_shown = ['No student was trained.'], list[page.Inputs]()
  if student:
    said = verdict.sentences(found, task, student, outside_of(data))
    ours, theirs = (inputs.scores[method].get('test') for method in (student, 'ensemble'))
    if ours and theirs:
      inputs_shown = page.inputs_of(data.evaluations['test'].load(), student, ours, theirs, data.classes)
  method = student or 'ensemble'
  lines = ['import hydra_jax', '', f'model = hydra_jax.load({str(workdir)!r}, {method!r})']
  lines += ['found = model.predict(x)  # x as in the data set, [N, …]']
  lines += ['found.mean, found.total, found.aleatoric, found.epistemic, found.members']
  about = {
    'data': config.data.name,
    'training examples': f'{data.given_examples:,}',
    'members': config.teacher.members,
    'replicas': config.replicas,
    'seed': config.seed,
    'device': device(),
  }
  scored = [tables.Column('test', metric, heading, better) for metric, (heading, better, *_) in task.headline.items()]
  scored += [tables.detection(name, by) for name in outside_of(data) for by in uncertainty.RANKINGS]
  return page.Page(
    title=config.name,
    about=' · '.join(f'{name}: {value}' for name, value in about.items()),
    heading=verdict.heading(student),
    verdict=said,
    tables=[table],
    notes=[*notes.values()],
    scores=dots.panels(found.estimates(), scored, {method: method for method in inputs.scores}),
    figures=page.figures_in(workdir / 'figures')[0],
    inputs=inputs_shown,
    code=('Load and predict', '\n'.join(lines)),
    configs=[page.Config(title='', changes=changes(config))],
    versions={name: value for name, value in store.read_json(workdir / 'versions.json').items() if name != 'format'},
  )


def changes(config) -> list[tuple[str, str, str]]:
  """Keys whose values are not the default, with value and default as text."""
  return [
    (f'{entry.section}.{entry.key}'.lstrip('.'), short(entry.value), short(entry.default))
    for entry in explain.entries(config)
    if entry.is_changed
  ]


def student_shown(methods: Iterable[str]) -> str:
  """The student that the page is about: `hydra`, or the last one; '' where there is none."""
  students = [method for method in methods if method != 'ensemble']
  return 'hydra' if 'hydra' in students else students[-1] if students else ''


def device() -> str:
  """The device that does the work, in words."""
  return f'{jax.devices()[0].device_kind} {platform.machine()}'
