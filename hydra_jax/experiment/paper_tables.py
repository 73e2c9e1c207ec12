"""Tables of several runs: mean ± standard error over replicas, beside published numbers, with paired tests.

A table is a `Definition`: configs, and what to show of their results. A file of `experiments/` has a function
`get_tables(quick) -> {name: Definition}`; of a single one the name is ''. Runs share the work directory with those of
other tables, so what is there already is not trained again.
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
from dataclasses import asdict, dataclass, replace
import functools
import io
import itertools
import json
import logging
import math
from pathlib import Path
import re
import shutil
import time
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from hydra_jax import store, user_files
from hydra_jax.devices import processes
from hydra_jax.errors import UserError, look_up, nearest
from hydra_jax.evaluation.diversity import KEPT, REJECTION
from hydra_jax.experiment import (
  agreement,
  config as configs,
  run as runs,
  table_page,
  teachers,
  workdir as workdirs,
)
from hydra_jax.experiment.run_report import PAGE, Outcome
from hydra_jax.experiment.table_definition import ENSEMBLE, Definition, Key, Results, Section
from hydra_jax.formats import digits, number
from hydra_jax.maths.statistics import Difference, Estimate, Published, holm, paired, verdict, welch
from hydra_jax.maths.tasks import TASKS
from hydra_jax.report import figures, page, tables
from hydra_jax.report.tables import ARROWS, MISSING, ROUGH_NOTE, Column, Table, error_note, latency

logger = logging.getLogger(__name__)


def load(name: str, quick: bool) -> dict[str, Definition]:
  """The definitions in `experiments/<name>.py`, or in a file of the user's own.

  `<name>:<which>` is one of them. `<name>` is the one without a name, or all where each has a name.
  """
  name, _, which = name.partition(':')
  own = Path(name) if name.endswith('.py') else Path('experiments') / f'{name}.py'
  if name.endswith('.py') and not own.is_file():
    raise UserError(f"there is no file '{own}' in {Path.cwd()} to take a table from")
  folder = Path('experiments').glob('*.py')
  known = sorted(p.stem for p in folder if b'def get_tables(' in p.read_bytes())
  if not name.endswith('.py') and name not in known:
    where = (
      nearest(name, known) if known else 'there is no folder experiments/ here, start from the root of the project'
    )
    raise UserError(f"there is no table '{name}': {where}")
  what = f"table file '{own}'"
  found = checked(user_files.call(user_files.load(str(own), what), 'get_tables', what, quick), own)
  return {which: look_up(found, which, f"table of '{name}'")} if which or '' in found else found


def checked(found: Any, place: str | Path) -> dict[str, Definition]:
  """Returns what `get_tables` gave if it is `{name: Definition}`, each sound, or raises a `UserError`."""
  if not isinstance(found, Mapping) or not found:
    raise UserError(f'{place}: get_tables returns {_what(found)}, where a dict of Definition by name is needed')
  for which, definition in found.items():
    what = f"{place}, table '{which}'" if which else f'{place}'
    if not isinstance(which, str) or not re.fullmatch(r'[\w.+-]*', which):
      raise UserError(f'{what}: the name becomes that of a folder, so it takes letters, digits and any of _ . + -')
    if not isinstance(definition, Definition):
      raise UserError(f'{what} is {_what(definition)}, where a Definition is needed')
    if not isinstance(definition.runs, Mapping) or not definition.runs:
      raise UserError(f'{what}: runs is {_what(definition.runs)}, where a dict of configs by name is needed')
    for run_name, config in definition.runs.items():
      if not isinstance(config, ConfigDict) or not isinstance(config.get('name'), str):
        raise UserError(f"{what}: run '{run_name}' is {_what(config)}, where a config with a name is needed")
    names = [config.name for config in definition.runs.values()]
    if twice := next((name for name in names if names.count(name) > 1), ''):
      raise UserError(f"{what}: two runs have the config.name '{twice}', which is their folder: give them two names")
    for section in definition.sections:
      if not isinstance(section, Section) or not all(isinstance(column, Column) for column in section.columns):
        raise UserError(f'{what}: {_what(section)} is in sections, where each is a Section of Columns')
      for column in section.columns:
        if column.run:
          look_up(definition.runs, column.run, f"run of column '{column.heading}' in {what}:")
    for key, theirs in definition.published.items():
      if not isinstance(key, tuple) or len(key) != 4 or not isinstance(theirs, Published):
        raise UserError(f'{what}: published has {key!r}, where a Published by (run, split, method, metric) is needed')
    for drawing, draw in definition.drawings.items():
      if not callable(draw):
        raise UserError(f"{what}: drawing '{drawing}' is {_what(draw)}, where a function of Results is needed")
  return dict(found)


def _what(value: Any) -> str:
  """A value in an error message."""
  plain = value is None or isinstance(value, str | int | float)
  return f'{value!r}'[:60] if plain else f'a {type(value).__name__}'


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
  for run_name, config in definition.runs.items():  # what is wrong with the last is better known before the first
    try:
      configs.check_values(config)
      config.teacher.members = teachers.count_members(config)
      configs.validate(config)
    except UserError as e:
      raise UserError(f"run '{run_name}' of {command}: {e}") from e
  for i, (run_name, config) in enumerate(definition.runs.items()):
    logger.info(f'=== {definition.title}: {run_name}, {i + 1} of {len(definition.runs)}')
    if replicas is not None:
      config.replicas = replicas
    outcomes[run_name] = runs.run(config, workdir / config.name, data_dir)
    jax.clear_caches()  # JAX keeps all programs of each run, up to a gigabyte
  found = Results(definition, outcomes, collected(outcomes))
  seconds = time.monotonic() - begun
  processes.run_on_main(lambda: write(found, out, workdir, command, seconds))


def again(name: str, place: Path, out: Path, quick: bool = False) -> None:
  """Writes a table from the values that another call has left, without training: `table.md`, `.tex`, `report.html`.

  So a reader can change the columns of a table that is shipped. Tests over test examples need the runs, and are left
  out. The page shows the figures that the other call has left.

  Args:
    name: As of `load`, of a single table.
    place: A folder that `write` wrote.
    out: Where the tables are written.
    quick: Whether the values are those of the quick table.

  Raises:
    UserError: The name is that of several tables, or the folder does not hold the values of this table.
  """
  definitions = load(name, quick)
  if len(definitions) > 1:
    raise UserError(f"'{name}' is {len(definitions)} tables: choose one, such as {name}:{next(iter(definitions))}")
  if out.resolve() == place.resolve():
    raise UserError(f'--from={place} is where the new tables would be written: choose another --workdir')
  (definition,) = definitions.values()
  found = read_results(definition, place)
  made = all_tables(found)
  out.mkdir(parents=True, exist_ok=True)
  store.replace_text(out / 'table.md', f'# {definition.title}\n\n' + '\n'.join(map(tables.markdown, made)) + '\n')
  store.replace_text(out / 'table.tex', '\n'.join(map(tables.latex, made)))
  notes = list(unfound(found))
  about = {'command': f'hydra-jax table {name}' + ' --quick' * quick, **store.read_json(place / 'about.json')}
  store.replace_text(out / PAGE, page.html(table_page.page_of(found, made, place / 'figures', about, notes)))
  for table in made:
    tables.show(table)
  for line in notes:
    logger.warning(line)
  logger.info(f'everything is in {out}: {PAGE}, table.md, table.tex')


def read_results(definition: Definition, place: Path) -> Results:
  """What the runs of a table have found, from `replicas.csv` and `about.json` in its folder.

  Raises:
    UserError: They are not there, not as they were written, or of another table.
  """
  values: dict[Key, dict[int, float]] = {}
  try:
    overlaps = store.read_json(place / 'about.json').get('test_to_train', {})
    with open(place / 'replicas.csv', newline='') as file:
      for row in csv.DictReader(file):
        key = row['run'], row['split'], row['method'], row['metric']
        values.setdefault(key, {})[int(row['replica'])] = float(row['value'])
  except FileNotFoundError as e:
    raise UserError(f'{place} has no {Path(e.filename).name}: name a folder that `hydra-jax table` wrote') from e
  except (OSError, store.Damaged, AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(f'{place}: {store.one_line(e)}: name a folder as `hydra-jax table` wrote it') from e
  there = {run_name for run_name, *_ in values}
  if missing := [run_name for run_name in definition.runs if run_name not in there]:
    raise UserError(f"{place} has nothing of run '{missing[0]}' of this table, but of {', '.join(sorted(there))}")
  task = 'regression' if any(metric == 'rmse' for *_, metric in values) else 'classification'
  of_run = lambda name: Outcome(task=task, rows=[], timings=[], tests=[], test_to_train=overlaps.get(name, 0.0))
  outcomes = {run_name: of_run(run_name) for run_name in definition.runs}
  return Results(definition, outcomes, in_order(definition, values))


def in_order(definition: Definition, values: Mapping[Key, dict[int, float]]) -> dict[Key, dict[int, float]]:
  """Values by the order of methods that a run has, which a sorted file has lost."""
  orders = {run_name: [ENSEMBLE, *config.students] for run_name, config in definition.runs.items()}
  place = lambda key: orders.get(key[0], []).index(key[2]) if key[2] in orders.get(key[0], []) else len(values)
  return {key: values[key] for key in sorted(values, key=place)}


def collected(outcomes: Mapping[str, Outcome]) -> dict[Key, dict[int, float]]:
  """Values by (run, split, method, metric) and replica."""
  values: dict[Key, dict[int, float]] = {}
  for run_name, outcome in outcomes.items():
    for row in (*outcome.rows, *outcome.timings):
      values.setdefault((run_name, row['split'], row['method'], row['metric']), {})[row['replica']] = row['value']
  return values


def scores(section: Section, found: Results) -> Table:
  """A section as a table."""
  only = next(iter(found.definition.runs))
  columns = [replace(column, run=column.run or only) for column in section.columns]
  methods = section.methods or found.methods(only)
  body = []
  for method in methods:
    cells = [_score(found, column, method) for column in columns]
    if any(cell != MISSING for cell in cells):
      body.append((found.label(method), [(cell, '') for cell in cells]))
  headings = [c.heading + ARROWS.get(c.better, '') for c in columns]
  rough = any(cell.startswith('≈') for _, cells in body for cell, _ in cells)
  note = ' '.join(filter(None, (section.note, ROUGH_NOTE * rough)))
  return Table(headings, body, section.title, note, groups=[c.split for c in columns])


def _score(found: Results, column: Column, method: str) -> str:
  """One cell of a section."""
  estimates = [
    found.estimate(column.run, column.split, method, f'{column.metric}{which}') for which in ('', '_low', '_high')
  ]
  if not estimates[0]:
    return MISSING
  text = number(estimates[0].mean, estimates[0].error)
  means = [each.mean for each in estimates if each]
  return latency(text, *means) if column.metric == 'latency_ms' and len(means) == 3 else text


def kept(found: Results) -> Iterator[Table]:
  """What each student has kept of the ensemble's diversity, a table for each evaluation set of each run."""
  several = len(found.definition.runs) > 1
  for run_name, split in itertools.product(found.definition.runs, found.definition.kept):
    columns = [Column(split, metric, heading, run=run_name) for metric, heading in {**KEPT, **REJECTION}.items()]
    title = f'Diversity kept: {run_name}, {split}' if several else f'Diversity kept: {split}'
    yield scores(Section(title, columns, found.methods(run_name)), found)


@dataclass(frozen=True)
class Comparison:
  """A number of a paper beside one of ours.

  Attributes:
    key: Of the paper's, (run, split, method, metric).
    method: Of ours, which may be a rival.
    ours: What was measured, if it was.
    theirs: As printed.
    verdict: See `statistics.verdict`.
  """

  key: Key
  method: str
  ours: Estimate | None
  theirs: Published
  verdict: str


def comparisons(found: Results) -> list[Comparison]:
  """Every published number beside ours, with verdicts that are corrected for their number by Holm's method."""
  published, made = found.definition.published, []
  own = [(method, method) for method in dict.fromkeys(method for _, _, method, _ in published)]
  for method, rival in (*own, *found.definition.rivals.items()):
    made += [(key, method, found.estimate(key[0], key[1], method, key[3])) for key in published if key[2] == rival]
  ps = [welch(ours, published[key], found.test_to_train(key[0])) if ours else math.nan for key, _, ours in made]
  return [
    Comparison(key, method, ours, published[key], verdict(ours, published[key], _better(found, *key), p))
    for (key, method, ours), p in zip(made, holm(ps), strict=True)
  ]


def against_published(found: Results) -> Table | None:
  """Our numbers beside those of papers, and how far each student is from its own teachers."""
  body, definition, compared = [], found.definition, comparisons(found)
  for each in compared:
    (run_name, split, rival, metric), method, theirs = each.key, each.method, each.theirs
    cells = [
      run_name,
      metric + f', {split}' * (split != 'test'),
      number(each.ours.mean, each.ours.error) if each.ours else MISSING,
      number(theirs.value, theirs.error),
      each.verdict,
      MISSING,
      MISSING,
    ]
    base = definition.published.get((run_name, split, ENSEMBLE, metric))
    if base and method != ENSEMBLE:
      gap = found.difference(run_name, split, metric, method, ENSEMBLE)
      cells[-2:] = [number(gap.mean, gap.error) if gap else MISSING, digits(theirs.value - base.value)]
    label = found.label(method) + f' beside {found.label(rival)}' * (method != rival)
    body.append((label, [(cell, '') for cell in cells]))
  if not body:
    return None
  headings = ['set', 'metric', 'ours', 'published', 'verdict', 'our gap to our teachers', 'their gap to theirs']
  judged = [c for c in compared if c.verdict not in ('not run', 'no verdict')]
  notes = [
    definition.source,
    "`agrees`: no significant difference at 5% by Welch's t-test, corrected for the number of verdicts in this table, "
    f"{len(judged)}, by Holm's method. `no verdict`: one of the two has no standard error. Gaps have no verdict, as "
    'papers have no standard errors of them.',
  ]
  if found.over_splits():
    notes.append('Published errors are as printed; for verdicts they are corrected for overlap, as ours are.')
  if any(not c.theirs.n for c in judged):
    notes.append('Where a paper does not say over how many replicas its error is, it is taken to be as many as ours.')
  return Table(headings, body, 'Beside published numbers', ' '.join(filter(None, notes)), repeated=2)


def _better(found: Results, run_name: str, split: str, method: str, metric: str) -> str:
  """As the column of a metric says, or low where it has none."""
  del method
  for section in found.definition.sections:
    for column in section.columns:
      if (column.split, column.metric) == (split, metric) and column.run in ('', run_name):
        return column.better or 'low'
  return 'low'


def differences(found: Results) -> Iterator[Table]:
  """Every method against one, paired over replicas, and over test examples where these are the same ones."""
  definition, runs = found.definition, list(found.definition.runs)
  against = definition.against
  examples = len(runs) == 1 and len({digest for digest, _ in found.outcomes[runs[0]].tests}) == 1
  headings = ['over replicas', 'over test examples'] if examples else runs
  note = 'Paired t-tests over replicas'
  if found.over_splits():
    note = "Paired t-tests over splits, with Nadeau and Bengio's correction for their overlap"
  note += ', and over test examples, of their mean over replicas.' if examples else '.'
  for metric in definition.tested:
    lines = {}
    for method in found.methods(runs[0]):
      if method == against:
        continue
      over = [found.difference(run_name, 'test', metric, method, against) for run_name in runs]
      over += [_over_examples(found.outcomes[runs[0]], metric, method, against)] if examples else []
      if any(over):
        lines[method] = over
    ps = [each.p if each else math.nan for over in lines.values() for each in over]
    adjusted, tests = iter(holm(ps)), sum(not math.isnan(p) for p in ps)
    body = [
      (found.label(method), [_difference(each, p) for each, p in zip(over, adjusted)]) for method, over in lines.items()
    ]
    if body:
      said = f"{note} p is corrected for the number of tests in this table, {tests}, by Holm's method."
      yield Table(headings, body, f'{metric}, difference to {found.label(against)}', said)


def _over_examples(outcome: Outcome, metric: str, method: str, other: str) -> Difference | None:
  score = TASKS[outcome.task].averages.get(metric)
  has = lambda found, name: name in found and score in found[name]
  if score is None or not all(has(found, method) and has(found, other) for _, found in outcome.tests):
    return None
  mean = lambda name: np.stack([found[name][score] for _, found in outcome.tests]).mean(axis=0, dtype=np.float64)
  return paired(mean(method), mean(other))


def _difference(found: Difference | None, p: float) -> tuple[str, str]:
  if found is None:
    return MISSING, ''
  return number(found.mean, found.error), '' if math.isnan(p) else f'p = {digits(p, 2)}'


def all_tables(found: Results) -> list[Table]:
  """Every table, in order."""
  sections = [scores(section, found) for section in found.definition.sections]
  return [*sections, *kept(found), *filter(None, [against_published(found)]), *differences(found)]


def records(found: Results) -> list[dict[str, Any]]:
  """Every number that runs have found, or papers published, one record each."""
  published, made = found.definition.published, []
  verdicts = {c.key: c.verdict for c in comparisons(found) if c.method == c.key[2]}
  for key in dict.fromkeys((*found.values, *published)):
    ours, theirs = found.estimate(*key), published.get(key)
    record: dict[str, Any] = dict(zip(FIELDS, key))
    record |= asdict(ours) if ours else {'mean': None, 'error': None, 'n': 0}
    if theirs:
      record |= {'published': theirs.value, 'published_error': theirs.error, 'verdict': verdicts[key]}
    made.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()})
  return made


def shown_values(found: Results) -> list[dict[str, Any]]:
  """The values of single replicas behind every mean and every test in the tables, one record each, sorted."""
  definition, keys = found.definition, set(found.definition.published)
  for run_name in definition.runs:
    columns = [(c.split, c.metric) for s in definition.sections for c in s.columns if c.run in ('', run_name)]
    columns += [(split, f'{metric}{which}') for split, metric in columns for which in ('_low', '_high')]
    columns += [(split, metric) for split in definition.kept for metric in (*KEPT, *REJECTION)]
    columns += [('test', metric) for metric in definition.tested]
    columns += [(split, metric) for run, split, _, metric in definition.published if run == run_name]
    keys |= {(run_name, split, method, metric) for split, metric in columns for method in found.methods(run_name)}
  return [
    dict(zip(FIELDS, key)) | {'replica': replica, 'value': float(value)}
    for key in sorted(keys & set(found.values))
    for replica, value in sorted(found.values[key].items())
  ]


FIELDS = ('run', 'split', 'method', 'metric')


def _csv(rows: Sequence[Mapping[str, Any]], *fields: str) -> str:
  """Rows as CSV; numbers have all their digits."""
  text = io.StringIO()
  writer = csv.DictWriter(text, (*FIELDS, *fields), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def write(found: Results, out: Path, workdir: Path, command: str, seconds: float) -> None:
  """Writes `report.html`, `table.md`, `.tex`, `.csv`, `replicas.csv`, `about.json`, `figures/`; prints the tables."""
  out.mkdir(parents=True, exist_ok=True)
  made = all_tables(found)
  sittings = _sittings(out / 'about.json') + [round(seconds, 1)]
  overlaps = {run_name: outcome.test_to_train for run_name, outcome in found.outcomes.items()}
  about = {'command': command, 'seconds': sittings, 'test_to_train': overlaps, **workdirs.versions()}
  drawn = draw(found, out / 'figures', workdir)
  replicas = ', '.join(_replicas(run_name, outcome) for run_name, outcome in found.outcomes.items())
  header = f'# {found.definition.title}\n\n`{command}`, {table_page.duration(sum(sittings))} in {len(sittings)} sitting'
  header += f'{"s" * (len(sittings) > 1)} on {about["device"]}, jax {about["jax"]}. '
  header += f'Mean over replicas ({replicas}). {error_note(found.over_splits())}\n\n'
  pictures = ''.join(f'![{p.stem}](figures/{p.name})\n\n' for p in drawn)
  store.replace_text(out / 'table.md', header + '\n'.join(map(tables.markdown, made)) + '\n' + pictures)
  store.replace_text(out / 'table.tex', '\n'.join(map(tables.latex, made)))
  store.replace_text(out / 'about.json', json.dumps(about, indent=1) + '\n')
  judged = ('published', 'published_error', 'verdict')
  store.replace_text(out / 'table.csv', _csv(records(found), 'mean', 'error', 'n', *judged))
  store.replace_text(out / 'replicas.csv', _csv(shown_values(found), 'replica', 'value'))
  notes = list(unfound(found))
  store.replace_text(out / PAGE, page.html(table_page.page_of(found, made, out / 'figures', about, notes)))
  for table in made:
    tables.show(table)
  for line in notes:
    logger.warning(line)
  logger.info(f'everything is in {out}: {PAGE}, table.md, table.tex, table.csv, replicas.csv, about.json, figures/')


def unfound(found: Results) -> Iterator[str]:
  """A line for each empty column, for rows that are not there, and where there is nothing to test against."""
  there = {(run_name, split, metric) for run_name, split, _, metric in found.values}
  only = next(iter(found.definition.runs))
  for column in (c for section in found.definition.sections for c in section.columns):
    if (column.run or only, column.split, column.metric) not in there:
      yield f"column '{column.heading}' is empty: no method has {column.metric} on {column.split}"
  there_are = {method for _, _, method, _ in found.values}
  rows = dict.fromkeys(method for section in found.definition.sections for method in section.methods)
  if missing := [found.label(method) for method in rows if method not in there_are]:
    yield f'rows are left out, as there are no values of them: {", ".join(missing)}'
  if found.definition.tested and found.definition.against not in found.methods(only):
    yield f"there are no tests of differences: '{found.definition.against}' is not among the methods"


def _replicas(run_name: str, outcome: Outcome) -> str:
  ratio = f', n_test/n_train = {digits(outcome.test_to_train, 3)}' if outcome.test_to_train else ''
  return f'{run_name} {len(outcome.tests)}{ratio}'


def _sittings(file: Path) -> list[float]:
  """Seconds that earlier calls took, which found less and so trained what this one took from them."""
  try:
    found = store.read_json(file)['seconds']
  except (OSError, store.Damaged, KeyError, TypeError):
    return []
  return [each for each in found if isinstance(each, int | float)] if isinstance(found, list) else []


def draw(found: Results, folder: Path, workdir: Path) -> list[Path]:
  """Figures of the table, and those of its runs."""
  folder.mkdir(exist_ok=True)
  with user_files.one_line('a drawing of the table'):
    figures.save(folder, {name: functools.partial(draw, found) for name, draw in found.definition.drawings.items()})
  several = len(found.definition.runs) > 1
  for run_name, config in found.definition.runs.items():
    for file in sorted((workdir / config.name / 'figures').glob('*.[ps][nv]g')):
      shutil.copyfile(file, folder / (f'{run_name}-{file.name}' if several else file.name))
  return sorted(folder.glob('*.png'))
