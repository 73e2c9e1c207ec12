"""Tables of several runs: mean ± standard error over replicas, beside published numbers, with paired tests.

A table is a `Definition`: configs, and what to show of their results. A file of `experiments/` has a function
`get_tables(quick) -> {name: Definition}`; of a single one the name is ''. Runs share the work directory with those of
other tables, so what is there already is not trained again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import csv
import importlib.util
import io
import itertools
import json
import math
from pathlib import Path
import shutil
import time
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from hydra_jax import agreement, figures, pipeline, processes, store, tables
from hydra_jax.diversity import KEPT
from hydra_jax.errors import UserError, look_up, nearest
from hydra_jax.progress import say
from hydra_jax.results import Outcome
from hydra_jax.statistics import Difference, Estimate, Published, estimate, paired, verdict
from hydra_jax.tables import ARROWS, MISSING, Column, Table, number
from hydra_jax.tasks import TASKS

ENSEMBLE = 'ensemble'
ZERO = Estimate(0.0)


class Section(NamedTuple):
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


class Definition(NamedTuple):
  """What `hydra-jax table` makes.

  Attributes:
    title: Of the whole.
    runs: Configs by name.
    sections: Tables of scores.
    labels: How methods are called in tables, where not by the name of the student.
    published: Numbers of papers by (run, data, method, metric), where `hydra-jax` means the same by a metric.
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
  labels: Mapping[str, str] = {}
  published: Mapping[tuple[str, str, str, str], Published] = {}
  source: str = ''
  rivals: Mapping[str, str] = {}
  against: str = 'hydra'
  tested: Sequence[str] = ('nll',)
  kept: Sequence[str] = ()
  drawings: Mapping[str, Callable[['Results'], Figure]] = {}


class Results(NamedTuple):
  """All that the runs of a table have found.

  Attributes:
    definition: Of the table.
    outcomes: Of every run.
    values: By (run, data, method, metric), the value of each replica.
  """

  definition: Definition
  outcomes: Mapping[str, Outcome]
  values: Mapping[tuple[str, str, str, str], Mapping[int, float]]

  def methods(self, run: str) -> list[str]:
    """Methods of a run, in order."""
    return list(dict.fromkeys(method for where, _, method, _ in self.values if where == run))

  def estimate(self, run: str, data: str, method: str, metric: str) -> Estimate | None:
    """Mean and standard error over replicas, or None where there is no such number."""
    found = self.values.get((run, data, method, metric))
    return estimate(list(found.values())) if found else None

  def difference(self, run: str, data: str, metric: str, method: str, other: str) -> Difference | None:
    """Of two methods, paired over the replicas that both have."""
    ours, theirs = (self.values.get((run, data, name, metric), {}) for name in (method, other))
    both = [replica for replica in ours if replica in theirs]
    return paired([ours[r] for r in both], [theirs[r] for r in both]) if both else None

  def label(self, method: str) -> str:
    """How a method is called."""
    return self.definition.labels.get(method, method)


def load(name: str, quick: bool) -> dict[str, Definition]:
  """The definitions in `experiments/<name>.py`, or in a file of the user's own; one of them is `<name>:<which>`."""
  name, _, which = name.partition(':')
  own = Path(name) if name.endswith('.py') else Path('experiments') / f'{name}.py'
  known = sorted(p.stem for p in Path('experiments').glob('*.py') if 'def get_tables(' in p.read_text())
  if not own.is_file() or (not name.endswith('.py') and name not in known):
    where = (
      nearest(name, known) if known else 'there is no folder experiments/ here, start from the root of the project'
    )
    raise UserError(f"there is no table '{name}': {where}")
  spec = importlib.util.spec_from_file_location(f'table_{own.stem}', own)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_tables'):
    raise UserError(f'{own} has no function get_tables(quick)')
  found = module.get_tables(quick)
  return {which: look_up(found, which, f"table of '{name}'")} if which else found


def run(name: str, workdir: Path, data_dir: str, replicas: int | None, quick: bool) -> None:
  """Runs what is missing of the tables of a file, and writes each with its figures to a folder under `workdir`."""
  definitions = load(name, quick)
  runs = {f'{which}: {run}: ': config for which, table in definitions.items() for run, config in table.runs.items()}
  agreement.on_configs(runs)
  for which, definition in definitions.items():
    parts = ['table', Path(name.partition(':')[0]).stem, which, 'quick' * quick]
    command = f'hydra-jax table {name}' + f':{which}' * bool(which and ':' not in name) + ' --quick' * quick
    made(definition, workdir, workdir / '-'.join(filter(None, parts)), data_dir, replicas, command)


def made(definition: Definition, workdir: Path, out: Path, data_dir: str, replicas: int | None, command: str) -> None:
  """Runs what is missing of a table, and writes it to the folder `out`."""
  begun, outcomes = time.monotonic(), {}
  for i, (run_name, config) in enumerate(definition.runs.items()):
    say(f'=== {definition.title}: {run_name}, {i + 1} of {len(definition.runs)}')
    if replicas is not None:
      config.replicas = replicas
    outcomes[run_name] = pipeline.run(config, workdir / config.name, data_dir)
  found = Results(definition, outcomes, collected(outcomes))
  seconds = time.monotonic() - begun
  processes.on_main(lambda: write(found, out, workdir, command, seconds))


def collected(outcomes: Mapping[str, Outcome]) -> dict[tuple[str, str, str, str], dict[int, float]]:
  """Values by (run, data, method, metric) and replica."""
  values: dict[tuple[str, str, str, str], dict[int, float]] = {}
  for run_name, outcome in outcomes.items():
    for row in (*outcome.rows, *outcome.timings):
      values.setdefault((run_name, row['data'], row['method'], row['metric']), {})[row['replica']] = row['value']
  return values


def scores(section: Section, found: Results) -> Table:
  """A section as a table."""
  only = next(iter(found.definition.runs))
  columns = [column._replace(run=column.run or only) for column in section.columns]
  methods = section.methods or found.methods(only)
  body = []
  for method in methods:
    cells = [found.estimate(c.run, c.data, method, c.metric) for c in columns]
    if any(cells):
      body.append((found.label(method), [(number(cell) if cell else MISSING, '') for cell in cells]))
  headings = [c.heading + ARROWS.get(c.better, '') for c in columns]
  return Table(headings, body, section.title, section.note)


def kept(found: Results) -> Iterator[Table]:
  """What each student has kept of the ensemble's diversity, a table for each evaluation set of each run."""
  several = len(found.definition.runs) > 1
  for run_name, data in itertools.product(found.definition.runs, found.definition.kept):
    columns = [Column(data, metric, heading, run=run_name) for metric, heading in KEPT.items()]
    columns.append(Column(data, 'rejection_area', 'rejection area', run=run_name))
    title = f'Diversity kept: {run_name}, {data}' if several else f'Diversity kept: {data}'
    # Whoever has no heads has no model uncertainty, and nothing to show here.
    uncertain = [m for m in found.methods(run_name) if (found.estimate(run_name, data, m, 'model') or ZERO).mean]
    yield scores(Section(title, columns, uncertain), found)


def against_published(found: Results) -> Table | None:
  """Our numbers beside those of papers, and how far each student is from the teachers of its own experiment."""
  body, definition = [], found.definition
  own = [(method, method) for method in dict.fromkeys(method for _, _, method, _ in definition.published)]
  pairs = [*own, *definition.rivals.items()]
  compared = [(*key, method) for method, rival in pairs for key in definition.published if key[2] == rival]
  for run_name, data, rival, metric, method in compared:
    theirs = definition.published[run_name, data, rival, metric]
    ours, better = found.estimate(run_name, data, method, metric), _better(found, run_name, data, metric)
    cells = [
      run_name,
      metric + f', {data}' * (data != 'test'),
      number(ours) if ours else MISSING,
      number(theirs),
      verdict(ours, theirs, better),
    ]
    cells += [MISSING] * 3
    base = definition.published.get((run_name, data, ENSEMBLE, metric))
    if base and method != ENSEMBLE:
      gap = found.difference(run_name, data, metric, method, ENSEMBLE)
      their_gap = Published(theirs.value - base.value, theirs.error)
      our_gap = gap and Estimate(gap.mean, gap.error, gap.n)
      cells[-3:] = [number(our_gap) if our_gap else MISSING, number(their_gap), _smaller(our_gap, their_gap, better)]
    label = found.label(method) + f' beside {found.label(rival)}' * (method != rival)
    body.append((label, [(cell, '') for cell in cells]))
  if not body:
    return None
  headings = ['set', 'metric', 'ours', 'published', 'verdict', 'our gap to our teachers', 'their gap to theirs', 'gap']
  note = (
    f'{definition.source} `agrees`: within 2 standard errors of the difference; where a paper has none, it counts as 0.'
  )
  return Table(headings, body, 'Beside published numbers', note)


def _smaller(ours: Estimate | None, theirs: Published, better: str) -> str:
  """The verdict on two gaps to teachers; where a number should be close to a target, there is none."""
  return verdict(ours, theirs, better) if better in ('low', 'high') else MISSING


def _better(found: Results, run_name: str, data: str, metric: str) -> str:
  """As the column of a metric says, or low where it has none."""
  for section in found.definition.sections:
    for column in section.columns:
      if (column.data, column.metric) == (data, metric) and column.run in ('', run_name):
        return column.better or 'low'
  return 'low'


def differences(found: Results) -> Iterator[Table]:
  """Every method against one, paired over replicas, and over test examples where these are the same ones."""
  definition, runs = found.definition, list(found.definition.runs)
  against, several = definition.against, len(runs) > 1
  note = 'Paired t-tests over replicas'
  note += '.' if several else ', and over test examples, of their mean over replicas, where all have the same ones.'
  for metric in definition.tested:
    body = []
    for method in found.methods(runs[0]):
      if method == against:
        continue
      over = [found.difference(run_name, 'test', metric, method, against) for run_name in runs]
      over += [] if several else [_over_examples(found.outcomes[runs[0]], metric, method, against)]
      if any(over):
        body.append((found.label(method), [_difference(each) for each in over]))
    headings = runs if several else ['over replicas', 'over test examples']
    if body:
      yield Table(headings, body, f'{metric}, difference to {found.label(against)}', note)


def _over_examples(outcome: Outcome, metric: str, method: str, other: str) -> Difference | None:
  sets, score = {key for key, _ in outcome.tests}, TASKS[outcome.task].averages.get(metric)
  if score is None or len(sets) > 1 or not all({method, other} <= set(found) for _, found in outcome.tests):
    return None
  mean = lambda name: sum(found[name][score].astype('float64') for _, found in outcome.tests) / len(outcome.tests)
  return paired(mean(method), mean(other))


def _difference(found: Difference | None) -> tuple[str, str]:
  if found is None:
    return MISSING, ''
  p = '' if math.isnan(found.p) else f'p = {found.p:.3f}' if found.p >= 0.001 else f'p = {found.p:.0e}'
  return number(Estimate(*found[:2])), p


def all_tables(found: Results) -> list[Table]:
  """Every table, in order."""
  sections = [scores(section, found) for section in found.definition.sections]
  return [*sections, *kept(found), *filter(None, [against_published(found)]), *differences(found)]


def records(found: Results) -> list[dict[str, Any]]:
  """Every number that runs have found, or papers published, one record each."""
  published, made = found.definition.published, []
  for key in dict.fromkeys((*found.values, *published)):
    ours, theirs = found.estimate(*key), published.get(key)
    record = dict(zip(('run', 'data', 'method', 'metric'), key, strict=True))
    record |= ours._asdict() if ours else {'mean': None, 'error': None, 'n': 0}
    if theirs:
      run_name, data, _, metric = key
      record |= {'published': theirs.value, 'published_error': theirs.error}
      record['verdict'] = verdict(ours, theirs, _better(found, run_name, data, metric))
    made.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()})
  return made


def write(found: Results, out: Path, workdir: Path, command: str, seconds: float) -> None:
  """Writes `table.md`, `.tex`, `.csv`, `.json` and `figures/`, and prints the tables."""
  out.mkdir(parents=True, exist_ok=True)
  shown, rows = all_tables(found), records(found)
  sittings = _sittings(out / 'table.json') + [round(seconds, 1)]
  about = {'command': command, 'seconds': sittings, **pipeline.versions()}
  drawn = draw(found, out / 'figures', workdir)
  replicas = ', '.join(f'{run_name} {len(o.tests)}' for run_name, o in found.outcomes.items())
  header = f'# {found.definition.title}\n\n`{command}`, {_duration(sum(sittings))} in {len(sittings)} sitting'
  header += f'{"s" * (len(sittings) > 1)} on {about["device"]}, jax {about["jax"]}. Mean ± standard error over '
  header += f'replicas ({replicas}).\n\n'
  pictures = ''.join(f'![{p.stem}](figures/{p.name})\n\n' for p in drawn)
  store.replace_text(out / 'table.md', header + '\n'.join(map(tables.markdown, shown)) + '\n' + pictures)
  store.replace_text(out / 'table.tex', '\n'.join(map(tables.latex, shown)))
  store.replace_text(out / 'table.json', json.dumps({'about': about, 'rows': rows}, indent=1) + '\n')
  text = io.StringIO()
  fields = ['run', 'data', 'method', 'metric', 'mean', 'error', 'n', 'published', 'published_error', 'verdict']
  writer = csv.DictWriter(text, fields, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  store.replace_text(out / 'table.csv', text.getvalue())
  for table in shown:
    tables.show(table)
  say(f'everything is in {out}: table.md, table.tex, table.csv, table.json, figures/')


def _sittings(file: Path) -> list[float]:
  """Seconds that earlier calls took, which found less and so trained what this one took from them."""
  try:
    found = store.read_json(file)['about']['seconds']
  except (OSError, store.Damaged, KeyError, TypeError):
    return []
  return [each for each in found if isinstance(each, int | float)] if isinstance(found, list) else []


def _duration(seconds: float) -> str:
  return f'{seconds / 60:.0f} min' if seconds >= 100 else f'{seconds:.0f} s'


def draw(found: Results, folder: Path, workdir: Path) -> list[Path]:
  """Figures of the table, and those of its runs."""
  folder.mkdir(exist_ok=True)
  figures.save(folder, {name: lambda draw=draw: draw(found) for name, draw in found.definition.drawings.items()})
  several = len(found.definition.runs) > 1
  for run_name, config in found.definition.runs.items():
    for file in sorted((workdir / config.name / 'figures').glob('*.png')):
      shutil.copyfile(file, folder / (f'{run_name}-{file.name}' if several else file.name))
  return sorted(folder.glob('*.png'))
