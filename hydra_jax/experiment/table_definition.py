"""What a table of several runs is made of, and what its runs have found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from hydra_jax.experiment.run_report import Outcome
from hydra_jax.maths.statistics import Difference, Estimate, Published, estimate, paired
from hydra_jax.report.tables import Column

ENSEMBLE = 'ensemble'

Key = tuple[str, str, str, str]  # run, split, method, metric


@dataclass(frozen=True)
class Section:
  """A table of scores: methods are rows, and each column is a metric of one run.

  Attributes:
    title: Above it.
    columns: What is shown.
    methods: Rows, in order; all there are if empty.
    note: Below it.
  """

  title: str
  columns: Sequence[Column]
  methods: Sequence[str] = ()
  note: str = ''


@dataclass(frozen=True)
class Definition:
  """What `hydra-jax table` makes.

  Attributes:
    title: Of the whole.
    runs: Configs by name.
    sections: Tables of scores.
    labels: How methods are called in tables, where not by the name of the student.
    published: Numbers of papers by (run, split, method, metric), where `hydra-jax` means the same by a metric.
    source: Where they come from.
    rivals: Methods that are also compared with what is published of another one.
    against: The method that others are tested against.
    tested: Metrics of the test set for which this is done.
    kept: Evaluation sets for which there is a table of what students keep of the ensemble's diversity.
    drawings: Figures of the results, besides those of each run.
  """

  title: str
  runs: Mapping[str, ConfigDict]
  sections: Sequence[Section]
  _: KW_ONLY
  labels: Mapping[str, str] = field(default_factory=dict)
  published: Mapping[Key, Published] = field(default_factory=dict)
  source: str = ''
  rivals: Mapping[str, str] = field(default_factory=dict)
  against: str = 'hydra'
  tested: Sequence[str] = ('nll',)
  kept: Sequence[str] = ()
  drawings: Mapping[str, Callable[['Results'], Figure]] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
  """All that the runs of a table have found.

  Attributes:
    definition: Of the table.
    outcomes: Of every run.
    values: By (run, split, method, metric), the value of each replica.
  """

  definition: Definition
  outcomes: Mapping[str, Outcome]
  values: Mapping[Key, Mapping[int, float]]

  def methods(self, run: str) -> list[str]:
    """Methods of a run, in order."""
    return list(dict.fromkeys(method for where, _, method, _ in self.values if where == run))

  def estimate(self, run: str, split: str, method: str, metric: str) -> Estimate | None:
    """Mean and standard error over replicas, corrected where they overlap, or None where there is no such number."""
    found = self.values.get((run, split, method, metric))
    return estimate(list(found.values()), self.test_to_train(run)) if found else None

  def difference(self, run: str, split: str, metric: str, method: str, other: str) -> Difference | None:
    """Of two methods, paired over the replicas that both have."""
    ours, theirs = (self.values.get((run, split, name, metric), {}) for name in (method, other))
    both = [replica for replica in ours if replica in theirs]
    return paired([ours[r] for r in both], [theirs[r] for r in both], self.test_to_train(run)) if both else None

  def test_to_train(self, run: str) -> float:
    """Test examples for each training example, where the replicas of a run are splits that overlap; else 0."""
    return self.outcomes[run].test_to_train if run in self.outcomes else 0.0

  def over_splits(self) -> bool:
    """Whether the replicas of any run are splits that overlap."""
    return any(outcome.test_to_train for outcome in self.outcomes.values())

  def label(self, method: str) -> str:
    """How a method is called."""
    return self.definition.labels.get(method, method)
