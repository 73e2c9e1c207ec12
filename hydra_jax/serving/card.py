"""The model card: what is known of a model, as JSON and as a page in Hugging Face's form.

A page is Markdown below metadata in YAML (https://huggingface.co/docs/hub/model-cards). Scores with their standard
errors stand in both. They come from the rows of a run, or were measured on held-out rows, or were given by the user.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special
import yaml

from hydra_jax import store
from hydra_jax.errors import UserError
from hydra_jax.evaluation.predictor import Prediction, Predictor
from hydra_jax.experiment import recipes
from hydra_jax.formats import digits, number

# Of facts: characters of a text, and rows.
LONGEST, MOST_ROWS = 1000, 1000
# Of a run: sets whose scores are kept. On a page: names of columns or classes.
MOST_SPLITS, MOST_NAMES = 20, 20
# Held-out rows for which all members have a prediction, at least.
LEAST_ROWS = 16
# How metrics are called, in the order in which they are shown.
OF_PREDICTIONS = {
  'accuracy': 'accuracy',
  'rmse': 'RMSE',
  'nll': 'negative log-likelihood',
  'nll_calibrated': 'negative log-likelihood after calibration on held-out labels',
  'brier': 'Brier score',
  'crps': 'CRPS',
  'ece': 'expected calibration error',
  'coverage_95': 'coverage of the central 95% interval',
  'uncertainty_total': 'mean total uncertainty',
  'uncertainty_epistemic': 'mean model uncertainty',
  'auroc_uncertainty_total': 'AUROC against the test set, by total uncertainty',
  'auroc_uncertainty_epistemic': 'AUROC against the test set, by model uncertainty',
}
OF_THE_ENSEMBLE = {
  'rank_correlation': 'rank correlation of the model uncertainty with that of the ensemble',
  'uncertainty_epistemic_ratio': 'share of the model uncertainty that is kept',
  'disagreement_ratio': 'share of the disagreement about classes that is kept',
  'agreement': 'share of inputs with the same predicted class as the ensemble',
  'mean_correlation': 'correlation of the mean with that of the ensemble',
  'own_head': 'share of the members to which their own head is closest',
  'members_worth': 'number of averaged members that have the same NLL',
}
OF_CALIBRATION = {
  'spread': 'factor by which heads are spread',
  'temperature': 'temperature of the mean prediction (not applied)',
  'variance_scale': 'factor of the variances (not applied)',
}
NAMES = {**OF_PREDICTIONS, **OF_THE_ENSEMBLE, **OF_CALIBRATION}
# Of a run, what is kept of sets other than the test set.
ELSEWHERE = ('accuracy', 'rmse', 'nll', 'auroc_uncertainty_total', 'auroc_uncertainty_epistemic', 'rank_correlation')
# Those whose mean over examples is a share, so that their standard error is known from the number of examples.
SHARES = ('accuracy', 'coverage_95', 'agreement')
# Where scores were measured, in words.
SPLITS = {
  'test': 'On the test set',
  'validation': 'On the validation part, which it did not learn from',
  'given': 'As measured by the user who saved it',
}


class Score(NamedTuple):
  """One number that was measured.

  Attributes:
    split: The set, such as `test`.
    metric: Its name in result rows.
    value: The mean over replicas.
    error: Its standard error; None where it is not known.
    n: Number of examples; 0 where it is not known.
    replicas: Number of repetitions of the experiment that it is the mean of.
    ensemble: The value of the ensemble, where it is known.
  """

  split: str
  metric: str
  value: float
  error: float | None = None
  n: int = 0
  replicas: int = 1
  ensemble: float | None = None


def complete(facts: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
  """What is known of a model as JSON: `data` by name, and `scores` as rows of `Score`.

  Args:
    facts: What is known already, in the same form; either may be missing.
    given: Scores of the user, by metric: a number, or a number and its standard error.

  Raises:
    UserError: A score is no such number.
  """
  scores = [row for row in facts.get('scores', ()) if given is None or row['split'] != 'given']
  for metric, value in (given or {}).items():
    pair = tuple(value) if isinstance(value, tuple | list) else (value, None)
    if len(pair) != 2 or not all(map(_is_number, (pair[0], 0 if pair[1] is None else pair[1]))):
      raise UserError(f'scores[{metric!r}] is {value!r}: give a finite number, or (number, standard error)')
    error = None if pair[1] is None else float(pair[1])
    scores.append(Score('given', store.one_line(metric, 100), float(pair[0]), error)._asdict())
  return {'data': dict(facts.get('data', {})), 'scores': scores}


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def are_facts(found: Any) -> bool:
  """Whether JSON has the form that `complete` gives it."""
  if not isinstance(found, dict) or set(found) != {'data', 'scores'}:
    return False
  data, scores = found['data'], found['scores']
  if not isinstance(data, dict) or not isinstance(scores, list) or len(data) + len(scores) > MOST_ROWS:
    return False
  short = lambda value: isinstance(value, int | float) or (isinstance(value, str) and len(value) <= LONGEST)
  return all(short(name) and short(value) for name, value in data.items()) and all(map(_is_score, scores))


def _is_score(row: Any) -> bool:
  if not isinstance(row, dict) or set(row) != set(Score._fields):
    return False
  texts = all(isinstance(row[key], str) and len(row[key]) <= LONGEST for key in ('split', 'metric'))
  numbers = all(_is_number(row[key]) for key in ('value', 'n', 'replicas'))
  return texts and numbers and all(row[key] is None or _is_number(row[key]) for key in ('error', 'ensemble'))


def of_run(predictor: Predictor, run: Path, method: str) -> dict[str, Any]:
  """What the folder of a run says of a method: its data, and its scores as means over replicas.

  Args:
    predictor: Of that method.
    run: The folder.
    method: The ensemble, or a student.
  """
  del predictor
  name, about = store.read_json(run / 'config.json')['data']['name'], store.read_json(run / 'data.json')
  rows = [json.loads(line) for line in (run / 'results.jsonl').read_text('utf-8').splitlines()]
  sizes = {row['split']: row['n'] for row in rows if row['split'] != 'cost'}
  learnt, held_out, test = about['train_examples'], sizes.get('validation', 0), sizes.get('test', 0)
  # The standard splits of these sets overlap, see `maths.statistics`.
  overlap = test / (learnt + held_out) if name.startswith('uci/') else 0.0
  values: dict[tuple[str, str, str], list[float]] = {}
  for row in rows:
    values.setdefault((row['method'], row['split'], row['metric']), []).append(row['value'])
  scores = []
  for split in list(sizes)[:MOST_SPLITS]:
    for metric in NAMES if split in SPLITS else ELSEWHERE:
      if here := values.get((method, split, metric)):
        theirs = values.get(('ensemble', split, metric), []) if method != 'ensemble' else []
        scores.append(_mean(split, metric, here, sizes[split], overlap, theirs))
  return _facts({'name': name, 'training': learnt, 'validation': held_out, 'test': test}, scores)


def _facts(data: dict[str, Any], scores: Iterable[Score]) -> dict[str, Any]:
  rounded = lambda value: float(f'{value:.6g}') if isinstance(value, float) else value
  found = (score._asdict() for score in scores if math.isfinite(score.value))
  return {'data': data, 'scores': [{key: rounded(value) for key, value in row.items()} for row in found]}


def _mean(split: str, metric: str, values: Sequence[float], n: int, overlap: float, theirs: Sequence[float]) -> Score:
  """A score of several replicas, and that of the ensemble."""
  from hydra_jax.maths.statistics import estimate

  found = estimate(values, overlap)
  error = found.error if found.n > 1 else _error_of_share(metric, found.mean, n)
  ensemble = float(np.mean(theirs)) if theirs else math.nan
  return Score(split, metric, found.mean, _finite(error), n, found.n, _finite(ensemble))


def _error_of_share(metric: str, value: float, n: int) -> float:
  """The binomial standard error of a share of n examples; NaN for other metrics."""
  return math.sqrt(value * (1 - value) / n) if metric in SHARES and n and 0 <= value <= 1 else math.nan


def _finite(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None


def measured(
  predictor: Predictor, x: np.ndarray, teacher: Any = None, y: Any = None, learnt: int = 0
) -> dict[str, Any]:
  """What is measured on held-out rows, with standard errors over rows.

  Args:
    predictor: A trained network.
    x: Inputs `[V, …]` that it did not learn from.
    teacher: Logits `[M, V, C]` of the members, or means `[M, V, D]`; NaN where a member has none. None: unknown.
    y: Labels: columns of the classes `[V]`, or targets `[V, D]`. None: unknown.
    learnt: Number of examples that it learnt from.
  """
  if not len(x):
    return _facts({'training': learnt}, ())
  prediction = predictor.predict(x)
  found: dict[str, Any] = {}
  if y is not None:
    found |= (_classified if predictor.task == 'classification' else _estimated)(prediction, np.asarray(y))
  if teacher is not None:
    rows = np.isfinite(teacher).all(axis=(0, 2))
    found |= _kept(prediction, teacher, rows, predictor.task) if rows.sum() >= LEAST_ROWS else {}
  scores = (Score('validation', name, float(value), _finite(error), len(x)) for name, (value, error) in found.items())
  return _facts({'training': learnt, 'validation': len(x)}, scores)


def _with_error(values: np.ndarray) -> tuple[float, float]:
  """Mean, and its standard error."""
  return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _classified(prediction: Prediction, y: np.ndarray) -> dict[str, tuple[float, float]]:
  mean = prediction.mean.astype(np.float64)
  with np.errstate(divide='ignore'):
    nll = -np.log(mean[np.arange(len(y)), y])
  right = (mean.argmax(axis=1) == y).astype(np.float64)
  brier = np.square(mean - np.eye(mean.shape[1])[y]).sum(axis=1)
  return {'accuracy': _with_error(right), 'nll': _with_error(nll), 'brier': _with_error(brier)}


def _estimated(prediction: Prediction, y: np.ndarray) -> dict[str, tuple[float, float]]:
  """RMSE, the mean over targets. An example moves it by its squared errors divided by 2 RMSE (delta method)."""
  squared = np.square(prediction.mean - y)
  roots = np.sqrt(squared.mean(axis=0))
  _, error = _with_error((squared / np.maximum(2 * roots, np.finfo(float).tiny)).mean(axis=1))
  return {'rmse': (float(roots.mean()), error)}


def _kept(prediction: Prediction, teacher: np.ndarray, rows: np.ndarray, task: str) -> dict[str, tuple[float, float]]:
  """What a student keeps of its ensemble, on rows for which all members have a prediction."""
  from hydra_jax.evaluation.diversity import rank_correlation

  ours, members = prediction.epistemic[rows], np.asarray(teacher[:, rows], np.float64)
  if task == 'classification':
    log_p = scipy.special.log_softmax(members, axis=-1)
    mean = scipy.special.logsumexp(log_p, axis=0) - math.log(len(members))
    theirs = (np.exp(log_p) * (log_p - mean)).sum(axis=-1).mean(axis=0)
    same = prediction.mean[rows].argmax(axis=1) == mean.argmax(axis=1)
    found = {'agreement': _with_error(same.astype(np.float64))}
  else:
    ours, theirs = ours.mean(axis=1), members.var(axis=0).mean(axis=1)
    columns = zip(prediction.mean[rows].T, members.mean(axis=0).T, strict=True)
    found = {'mean_correlation': (float(np.mean([np.corrcoef(*both)[0, 1] for both in columns])), math.nan)}
  found['rank_correlation'] = (rank_correlation(ours, theirs), math.nan)
  ratio = float(ours.mean(dtype=np.float64) / theirs.mean()) if theirs.mean() else math.nan
  return found | {'uncertainty_epistemic_ratio': (ratio, math.nan)}


LIMITS = """\
* It says how uncertain it is for inputs like those that it was trained on. On inputs of another kind it may be wrong
  and sure. The model uncertainty is larger there on average, not for each of them.
* Its heads imitate an ensemble. What the ensemble is wrong about, they are wrong about too.
* Scores hold for data like those on which they were measured.
"""


def render(name: str, predictor: Predictor, about: Mapping[str, Any]) -> str:
  """The page.

  Args:
    name: Of the model.
    predictor: The model.
    about: What stands in `model.json`.
  """
  facts = about['facts']
  scores = [Score(**row) for row in facts['scores']]
  parts = [
    f'---\n{yaml.safe_dump(metadata(name, predictor, scores, facts["data"]), sort_keys=False, allow_unicode=True)}---',
    f'# {_text(name)}',
    _what(predictor),
    f"""```python
import hydra_jax
model = hydra_jax.load({_folder(name)!r}{_functions(predictor)})
prediction = model.predict(x)  # .mean .total .aleatoric .epistemic{' .members' if predictor.has_members else ''}
```""",
    f'## Inputs and outputs\n\n{_form(predictor)}',
    f'## Data\n\n{_data(facts["data"])}',
    f'## Scores\n\n{_table(scores, OF_PREDICTIONS)}',
    f'## What it keeps of the ensemble\n\n{_table(scores, OF_THE_ENSEMBLE)}' if _is_student(predictor) else '',
    f'## Calibration\n\n{_calibrated(predictor, scores, about["spread"])}',
    f'## Limits\n\n{LIMITS}',
    '## Versions\n\n' + ', '.join(f'{package} {version}' for package, version in about['versions'].items()),
  ]
  return '\n\n'.join(part.strip() for part in parts if part) + '\n'


def metadata(name: str, predictor: Predictor, scores: Sequence[Score], data: Mapping[str, Any]) -> dict[str, Any]:
  """The metadata of the page, as https://github.com/huggingface/hub-docs/blob/main/modelcard.md has it."""
  recipe = predictor.recipe.recipe
  kind = 'image' if len(predictor.shape) == 3 else 'tabular' if len(predictor.shape) == 1 else ''
  task = f'{kind}-{predictor.task}' if kind and (kind, predictor.task) != ('image', 'regression') else ''
  shown = [score for score in scores if score.metric in OF_PREDICTIONS]
  found: dict[str, Any] = {'license': 'unknown', 'library_name': 'hydra_jax'}
  found |= {'pipeline_tag': task} if task else {}
  found['tags'] = ['jax', 'uncertainty', 'ensemble', *(['distillation'] if _is_student(predictor) else [])]
  found['tags'] += [store.one_line(recipe.settings.method, 60), predictor.task]
  if not shown:
    return found
  results = []
  for split in dict.fromkeys(score.split for score in shown):
    called = store.one_line(data.get('name') or 'the data of the user', 100)
    results.append(
      {
        'task': {'type': task or predictor.task},
        'dataset': {'name': called, 'type': called, 'split': split},
        'metrics': [_metric(score) for score in shown if score.split == split],
      }
    )
  metrics = list(dict.fromkeys(score.metric for score in shown))
  return found | {'metrics': metrics, 'model-index': [{'name': store.one_line(name, 100), 'results': results}]}


def _metric(score: Score) -> dict[str, Any]:
  name = NAMES[score.metric]
  error = '' if score.error is None else f' (standard error {score.error:.2g})'
  return {'type': score.metric, 'name': name + error, 'value': float(f'{score.value:.6g}')}


def _is_student(predictor: Predictor) -> bool:
  return predictor.recipe.recipe.role == 'student' and predictor.recipe.recipe.method.learns_from == 'members'


def _what(predictor: Predictor) -> str:
  """What the network is, in a paragraph."""
  recipe, heads = predictor.recipe.recipe, len(predictor.model.network.heads)
  size = sum(leaf.size for leaf in jax.tree.leaves(predictor.model.params))
  outputs = f'{recipe.outputs} {"classes" if predictor.task == "classification" else "targets"}'
  heads_shown = f'{heads} heads' if heads > 1 else 'one head'
  made = f'distilled by `{recipe.settings.method}` from an ensemble of {recipe.members} members'
  if not _is_student(predictor):
    made = f'trained by `{recipe.settings.method}` on labels'
  return (
    f'A network `{_text(recipe.network.name)}` with {heads_shown} and {digits(float(size), 3)} parameters, {made}, for '
    f'{predictor.task} with {outputs}. It predicts, and says how uncertain it is: in total, by the noise of the data '
    f'(aleatoric), and by {_epistemic(predictor)} (epistemic).'
  )


def _epistemic(predictor: Predictor) -> str:
  """What the model uncertainty is."""
  own = recipes.predictive_of(predictor.recipe.recipe).epistemic
  return f'{own[0]}, which orders inputs' if own else 'the disagreement of its members'


def _folder(name: str) -> str:
  return store.one_line(name, 100)


def _functions(predictor: Predictor) -> str:
  """The argument of `load` that passes functions of the user's own, if there are any."""
  recipe = predictor.recipe.recipe
  own = [name for name in (recipe.network.name, recipe.settings.method) if ':' in name]
  return f', functions={own!r}' if own else ''


def _form(predictor: Predictor) -> str:
  """What goes in and comes out."""
  sizes, columns = ', '.join(map(str, ('N', *predictor.shape))), predictor.columns
  given = 'bytes, uint8' if predictor.reads_bytes else 'numbers in the units of the training data'
  lines = [f'* Inputs: `[{sizes}]`, {given}.']
  if columns is not None:
    used = ', '.join(f'`{_text(column.name)}` ({column.kind})' for column in columns.used[:MOST_NAMES])
    more = ', …' if len(columns.used) > MOST_NAMES else ''
    lines = [f'* Inputs: a table with the columns {used}{more}, or `[{sizes}]`, {given}.']
  if predictor.task == 'regression':
    names = [f'`{_text(column.name)}`' for column in columns.targets] if columns else []
    named = f' ({", ".join(names)})' if names else ''
    return '\n'.join([*lines, f'* Outputs: mean and variances of each target{named}, in the units of the targets.'])
  classes = ', '.join(f'`{_text(name)}`' for name in predictor.classes[:MOST_NAMES]) or 'numbered from 0'
  return '\n'.join([*lines, f'* Classes: {classes}{", …" if len(predictor.classes) > MOST_NAMES else ""}.'])


def _data(data: Mapping[str, Any]) -> str:
  called = f'Trained on `{_text(data["name"])}`: ' if 'name' in data else 'Trained on '
  counts = [f'{data[part]:,} {part} examples' for part in ('training', 'validation', 'test') if data.get(part)]
  return (called + ', '.join(counts) + '.') if counts else 'Not recorded. Say here what it was trained on.'


def _table(scores: Sequence[Score], metrics: Mapping[str, str]) -> str:
  """Scores as Markdown, a table for each set."""
  parts = []
  for split in dict.fromkeys(score.split for score in scores):
    rows = [
      score for score in scores if score.split == split and (score.metric in metrics or _is_other(score, metrics))
    ]
    if not rows:
      continue
    ensemble = any(score.ensemble is not None for score in rows)
    head = ['', 'this model', *(['ensemble'] if ensemble else [])]
    lines = [f'| {" | ".join(head)} |', '| --- |' + ' ---: |' * (len(head) - 1)]
    for score in rows:
      cells = [NAMES.get(score.metric, _text(score.metric)), number(score.value, _nan(score.error))]
      cells += ([digits(score.ensemble) if score.ensemble is not None else '–']) if ensemble else []
      lines.append(f'| {" | ".join(cells)} |')
    parts.append(f'{_where(split, rows[0])}\n\n' + '\n'.join(lines))
  return '\n\n'.join(parts) or 'Not measured.'


def _is_other(score: Score, metrics: Mapping[str, str]) -> bool:
  """Whether a metric is none of ours: it is shown with those of predictions."""
  return score.metric not in NAMES and metrics is OF_PREDICTIONS


def _where(split: str, score: Score) -> str:
  """Where scores were measured, and what stands behind ±."""
  counted = f', {score.n:,} examples' if score.n else ''
  over = f'{score.replicas} repetitions' if score.replicas > 1 else 'examples, where it is known'
  return f'{SPLITS.get(split, f"On `{_text(split)}`")}{counted} (± standard error over {over}):'


def _nan(value: float | None) -> float:
  return math.nan if value is None else value


def _calibrated(predictor: Predictor, scores: Sequence[Score], spread: float) -> str:
  """What was fitted to held-out examples."""
  found, calibration = [], predictor.calibration
  if spread != 1:
    found.append(
      f'* Heads are spread by {digits(spread, 3)}, so that they disagree as much as the members on held-out inputs. So '
      'the size of the model uncertainty is kept on average; its order is what was learnt.'
    )
  if calibration is not None:
    what = 'a temperature of the mean' if calibration.task == 'classification' else 'a factor of all variances'
    method = 'predict_set' if calibration.task == 'classification' else 'predict_interval'
    found.append(
      f'* {calibration.examples:,} held-out examples with labels gave {what}, {digits(calibration.label_scale, 3)}, '
      f'and conformal scores: `model.{method}(x, coverage=0.9)` holds the label in at least 90% of cases like these.'
    )
  for score in scores:
    if score.metric in ('temperature', 'variance_scale'):
      found.append(f'* {NAMES[score.metric].capitalize()}: {number(score.value, _nan(score.error))}.')
  return '\n'.join(found) or 'Nothing was fitted to held-out examples.'


def _text(text: str) -> str:
  """A text of others, without what would be Markdown or HTML."""
  return ''.join('?' if c in '`|<>[]\\' else c for c in store.one_line(text, 100))
