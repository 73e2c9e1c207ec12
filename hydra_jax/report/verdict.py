"""What a run has found, in plain words: what a student kept of its ensemble, what it costs, where it is worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hydra_jax.formats import digits
from hydra_jax.maths.statistics import Difference, Estimate, estimate, paired
from hydra_jax.maths.tasks import Task

ENSEMBLE, ONE = 'ensemble', 'single'
# With one replica there is no error bar: a smaller relative difference is not called one.
LEAST_DIFFERENCE = 0.01


@dataclass(frozen=True)
class Results:
  """Values of all replicas by split, method and metric.

  Attributes:
    values: `{(split, method, metric): {replica: value}}`.
    test_to_train: See `maths.statistics`.
    labels: How methods are called, where not by their name.
  """

  values: Mapping[tuple[str, str, str], Mapping[int, float]]
  test_to_train: float = 0.0
  labels: Mapping[str, str] = field(default_factory=dict)

  def label(self, method: str) -> str:
    """How a method is called."""
    return self.labels.get(method, method)

  def mean(self, split: str, method: str, metric: str) -> float | None:
    """The mean over replicas; None where there is no value."""
    found = self.values.get((split, method, metric))
    return float(np.mean([*found.values()])) if found else None

  def estimates(self) -> dict[tuple[str, str, str], Estimate]:
    """Mean and standard error over replicas, by (split, method, metric)."""
    return {key: estimate([*each.values()], self.test_to_train) for key, each in self.values.items()}

  def difference(self, metric: str, ours: str, theirs: str) -> Difference | None:
    """Ours − theirs on the test set, replica by replica; None where one is missing."""
    ours_R, theirs_R = (self.values.get(('test', method, metric), {}) for method in (ours, theirs))
    return pairs(ours_R, theirs_R, self.test_to_train)


def pairs(ours: Mapping[int, float], theirs: Mapping[int, float], test_to_train: float) -> Difference | None:
  """Ours − theirs, `{replica: value}`, replica by replica; None where they have other replicas, or none."""
  if not ours or ours.keys() != theirs.keys():
    return None
  return paired([*ours.values()], [theirs[replica] for replica in ours], test_to_train)


def results_of(rows: Sequence[Mapping], test_to_train: float = 0.0) -> Results:
  """Rows of `results.jsonl` and `timings.jsonl`, by what they are of."""
  values: dict[tuple[str, str, str], dict[int, float]] = {}
  for row in rows:
    values.setdefault((row['split'], row['method'], row['metric']), {})[int(row['replica'])] = float(row['value'])
  return Results(values, test_to_train)


def is_different(found: Difference, size: float) -> bool:
  """Whether a difference is more than chance: p < .05, or with one replica more than 1% of the value."""
  if found.n > 1:
    return found.p < 0.05
  return abs(found.mean) > LEAST_DIFFERENCE * abs(size)


def heading(student: str) -> str:
  """What stands above the verdict; `student` is '' where none was trained."""
  return f'What {student} kept, what it costs, where it is worse' if student else 'Verdict'


def sentences(found: Results, task: Task, student: str, outside: Sequence[str]) -> list[str]:
  """The verdict on one student.

  Args:
    found: Of the run.
    task: Of the data.
    student: Name of the method.
    outside: Names of the sets that are out of domain.
  """
  parts = [_scores(found, task, student), _gain(found, student), _kept(found, student)]
  parts += [_detection(found, student, name) for name in outside]
  return [part for part in [*parts, _cost(found, student), *_worse(found, task, student)] if part]


def brief(found: Results, task: Task, student: str) -> str:
  """The verdict on one student in two sentences or three: what it kept, what it costs, and what is better."""
  better = [found.label(other) for other, _ in _better(found, task, student)]
  text = f'In some score it is worse than {", ".join(better)}.' if better else 'No method is better in any score.'
  size, base = (found.mean('cost', method, 'parameters') for method in (student, ENSEMBLE))
  cost = f'It has {digits(size / base, 2)} × the parameters of the ensemble.' if size and base else ''
  return ' '.join(filter(None, (_gain(found, student), cost, text)))


def _scores(found: Results, task: Task, student: str) -> str:
  names = [ENSEMBLE, student, *([ONE] if student != ONE else [])]
  texts = []
  for metric, (heading, *_) in list(task.headline.items())[:2]:
    values = {name: found.mean('test', name, metric) for name in names}
    shown = [f'{found.label(name)} {digits(value, 3)}' for name, value in values.items() if value is not None]
    texts += [f'{_name(metric, heading)}: {", ".join(shown)}'] if shown else []
  return f'On the test set, {"; ".join(texts)}.' if texts else ''


def _name(metric: str, heading: str) -> str:
  return metric if metric == 'accuracy' else heading


def _gain(found: Results, student: str) -> str:
  ensemble, one, ours = (found.mean('test', name, 'nll') for name in (ENSEMBLE, ONE, student))
  if student == ONE or ensemble is None or one is None or ours is None:
    return ''
  gain = found.difference('nll', ENSEMBLE, ONE)
  if gain is None or gain.mean >= 0 or not is_different(gain, one):
    return 'The ensemble gains no NLL over one network that is more than chance.'
  share, name = (one - ours) / (one - ensemble), found.label(student)
  if share < 0:
    return f'The ensemble has a lower NLL than one network. {name} has a higher NLL than one network.'
  return f'Of the NLL that the ensemble gains over one network, {name} keeps {share:.0%}.'


def _kept(found: Results, student: str) -> str:
  kept, rank = (found.mean('test', student, metric) for metric in ('uncertainty_epistemic_ratio', 'rank_correlation'))
  if kept is None or rank is None:
    return ''
  return (
    f'Mean model uncertainty of {found.label(student)} on the test set: {kept:.0%} of that of the ensemble. '
    f'Rank correlation of both over the inputs: {digits(rank, 2)}, where 1 means that they order inputs alike.'
  )


def _detection(found: Results, student: str, name: str) -> str:
  by = 'total' if found.mean('test', student, 'uncertainty_epistemic') == 0 else 'epistemic'
  ours, theirs = (found.mean(name, method, f'auroc_uncertainty_{by}') for method in (student, ENSEMBLE))
  if ours is None or theirs is None:
    return ''
  word = 'model' if by == 'epistemic' else 'total'
  values = f'{found.label(student)} {digits(ours, 3)}, {found.label(ENSEMBLE)} {digits(theirs, 3)}'
  return f'AUROC of {name} against the test set, by {word} uncertainty: {values}.'


def _cost(found: Results, student: str) -> str:
  texts = []
  for metric, name in (('parameters', 'parameters'), ('flops', 'FLOPs'), ('latency_ms', 'time for a batch')):
    ours = found.mean('cost', student, metric)
    others = {
      'the ensemble': found.mean('cost', ENSEMBLE, metric),
      'one network': found.mean('cost', ONE, metric) if student != ONE else None,
    }
    ratios = [f'{digits(ours / other, 2)} × {what}' for what, other in others.items() if ours and other]
    texts += [f'{name} {", ".join(ratios)}'] if ratios else []
  return f'Cost of {found.label(student)}: {"; ".join(texts)}.' if texts else ''


def _better(found: Results, task: Task, student: str) -> list[tuple[str, list[str]]]:
  """The methods that are better on the test set, and in what."""
  others = list(dict.fromkeys(method for split, method, _ in found.values if split == 'test' and method != student))
  made = []
  for other in others:
    worse = []
    for metric, (heading, better, *_) in task.headline.items():
      gap = found.difference(metric, student, other) if better in ('low', 'high') else None
      is_worse = gap is not None and (gap.mean > 0) == (better == 'low') and gap.mean != 0
      if gap is not None and is_worse and is_different(gap, found.mean('test', other, metric) or 0.0):
        worse.append(f'{_name(metric, heading)} (by {digits(abs(gap.mean), 2)})')
    made += [(other, worse)] if worse else []
  return made


def _worse(found: Results, task: Task, student: str) -> list[str]:
  """Where the student is worse than another method on the test set."""
  replicas = max((len(found.values.get(('test', student, metric), {})) for metric in task.headline), default=0)
  ours, others = found.label(student), _better(found, task, student)
  texts = [f'{ours} is worse than {found.label(other)} in {", ".join(worse)}.' for other, worse in others]
  if not texts:
    texts = [f'{ours} is worse than no other method in any score of the table.']
  if replicas == 1:
    return [
      *texts,
      'There is one replica, and so no error bar. Set config.replicas to 3 or more to have one.',
    ]
  rule = f'Differences count where p < .05 in a paired t-test over {replicas} replicas'
  return [*texts, f'{rule}, not corrected for the number of tests.']
