"""The command line: `hydra-jax` and a command, see `parser`."""

import argparse
from collections.abc import Iterator
import contextlib
import errno
import gc
from importlib import metadata
import logging
import math
import os
from pathlib import Path
import re
import sys
import tempfile
import traceback
import warnings

from hydra_jax.devices import preemption
from hydra_jax.devices.preemption import LOST, PREEMPTED
from hydra_jax.errors import UserError

logger = logging.getLogger('hydra_jax')  # `__name__` is another one under `python -m hydra_jax.cli`

DISK = {
  errno.ENOSPC: 'the disk is full: free some space',
  errno.EDQUOT: 'the disk quota is used up: free some space',
  errno.EFBIG: 'a file would be larger than the limit of this system: raise it (ulimit -f)',
  errno.EROFS: 'the file system is read-only: choose another --workdir',
  errno.EACCES: 'permission denied: choose another --workdir, or change its permissions',
  errno.EPERM: 'permission denied: choose another --workdir, or change its permissions',
}


def parser() -> argparse.ArgumentParser:
  p = argparse.ArgumentParser(prog='hydra-jax', description='Ensembles, and students that keep their disagreement.')
  p.add_argument('--version', action='version', version=_version())
  commands = p.add_subparsers(dest='command', required=True)
  for command in (*_on_training(commands), *_beside_training(commands), *_on_trained_networks(commands)):
    command.add_argument('--debug', action='store_true', help='show the traceback behind a one-line error')
  return p


def _version() -> str:
  try:
    return f'hydra_jax {metadata.version("hydra_jax")}'
  except metadata.PackageNotFoundError:  # run from its source
    return 'hydra_jax is not installed: pip install -e .'


DATA_DIR = 'where data sets are (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)'
CONFIG = dict(
  required=True, metavar='FILE[:ARGUMENT]', help='such as mine.py, or mnist:members=5, which comes with the package'
)


def _sweep(commands) -> argparse.ArgumentParser:
  """Adds the command of many runs."""
  sweep = commands.add_parser(
    'sweep', help='a run for each combination of some values, or for values that Optuna chooses', allow_abbrev=False
  )
  sweep.add_argument('--config', **CONFIG)
  sweep.add_argument(
    '--grid',
    action='append',
    metavar='KEY=VALUES',
    help='a config key and its values, such as student.hydra.temperature=1,3,5 or seed=0..4; once for each key',
  )
  sweep.add_argument(
    '--search',
    action='append',
    metavar='KEY=RANGE',
    help='instead of --grid: a config key and the values to choose from, such as student.hydra.temperature=1..10, '
    'distillation.learning_rate=1e-4..1e-2:log or distillation.optimizer=adam,sgd; once for each key',
  )
  sweep.add_argument(
    '--trials', type=int, help='with --search: number of runs, of all processes together (default: 20)'
  )
  sweep.add_argument(
    '--target',
    metavar='METHOD:METRIC',
    help='with --search: the score on the validation part by which values are chosen (default: hydra:nll)',
  )
  sweep.add_argument('--workdir', help='where everything is written (default: runs/sweep-<config name>)')
  sweep.epilog = 'Start it several times, on machines that share the folder, and each process takes runs that are left'
  return sweep


def _on_training(commands) -> tuple[argparse.ArgumentParser, ...]:
  """Adds the commands that train."""
  run = commands.add_parser('run', help='train an ensemble, distil it, compare', allow_abbrev=False)
  run.add_argument('--config', **CONFIG)
  run.add_argument(
    '--workdir', help='where everything is written (default: runs/<config name>, and -<file> for data in a file)'
  )
  run.add_argument(
    '--measure', action='store_true', help='measure latencies again, on a machine that does nothing else'
  )
  run.add_argument('--profile', action='store_true', help='trace a few steps of each phase into <workdir>/profile')
  run.epilog = 'Any config value can be set: --config.teacher.members=5 --config.student.hydra.cut=-2'
  table = commands.add_parser('table', help='a table of several runs, with error bars', allow_abbrev=False)
  table.add_argument('name', help='of a file in experiments/, such as mnist, or a file of your own, such as mine.py')
  table.add_argument('--workdir', default='runs', help='where runs and tables are written (default: runs)')
  table.add_argument('--replicas', type=int, help='repetitions of each run (default: as the table says)')
  table.add_argument('--quick', action='store_true', help='small enough to see it work, within minutes on a CPU')
  table.add_argument(
    '--from',
    dest='source',
    metavar='RESULTS',
    help='a folder that this command wrote: the table is made of its values, and nothing is trained',
  )
  sweep = _sweep(commands)
  for command, place in ((run, 'none'), (sweep, '<workdir>/store')):
    command.add_argument(
      '--store', help=f'a folder of what runs have trained, from which others take the same parts (default: {place})'
    )
  for command in (run, table, sweep):
    command.add_argument('--data_dir', help=DATA_DIR)
  for command in (run, table):
    command.add_argument(
      '--distributed',
      action='store_true',
      help='join the other processes; on TPU pods and under Slurm it does so by itself',
    )
    command.add_argument(
      '--lost_after',
      type=float,
      default=45.0,
      metavar='SECONDS',
      help='of several processes, one that is silent for longer is lost, and the others end (default: 45)',
    )
  return run, table, sweep


def _beside_training(commands) -> tuple[argparse.ArgumentParser, ...]:
  """Adds the commands that look at configs and runs, and what prepares data."""
  check = commands.add_parser(
    'check', help='what an experiment takes on given devices, without them', allow_abbrev=False
  )
  explain = commands.add_parser(
    'config', help='every key of a config: value, default, what is legal, meaning', allow_abbrev=False
  )
  for command in (check, explain):
    command.add_argument('--config', **CONFIG)
  check.add_argument('--data_dir', help=DATA_DIR)
  check.add_argument('--devices', type=int, help='their number, in all processes together (default: those of this one)')
  check.add_argument(
    '--platform',
    metavar='NAME',
    help='estimate a training step on an accelerator that need not be here, such as tpu-v5e or h100',
  )
  listing = commands.add_parser('list', help='the runs in a folder: state, age and size', allow_abbrev=False)
  listing.add_argument('folder', nargs='?', default='runs', help='in which they are (default: runs)')
  cleaning = commands.add_parser('clean', help='delete parts that the last run did not use', allow_abbrev=False)
  cleaning.add_argument('run', metavar='RUN', help='the folder of a run')
  cleaning.add_argument('--yes', action='store_true', help='do not ask')
  compare = commands.add_parser('compare', help='finished runs side by side: configs and scores', allow_abbrev=False)
  compare.add_argument('runs', nargs='+', metavar='RUN', help='a folder of a run; the first is what others differ from')
  prepare = commands.add_parser('prepare', help='download and prepare a data set', allow_abbrev=False)
  prepare.add_argument('name', help='a TensorFlow Datasets name such as mnist, or uci/<set>')
  prepare.add_argument('--data_dir', help='where to put it (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)')
  return check, explain, listing, cleaning, compare, prepare


def _on_trained_networks(commands) -> tuple[argparse.ArgumentParser, ...]:
  """Adds the commands that use a model folder, or the folder of a run."""
  predict = commands.add_parser('predict', help='predictions for the rows of a file', allow_abbrev=False)
  export = commands.add_parser('export', help='a trained network as one file to serve', allow_abbrev=False)
  for command in (predict, export):
    command.add_argument('model', help='a folder made by hydra_jax.save, or that of a finished run')
  predict.add_argument('file', help='CSV, parquet, or .npz with x')
  export.add_argument('--format', required=True, help='stablehlo (for JAX) or onnx (without JAX)')
  for command, output in ((predict, 'ends in .csv, .parquet or .npz'), (export, 'what is written')):
    command.add_argument('--output', required=True, metavar='FILE', help=output)
    command.add_argument('--method', help='of a run: ensemble, or the name of a student (default: hydra)')
    command.add_argument('--replica', type=int, default=0, help='of a run: which repetition (default: 0)')
    command.add_argument('--members', action='store_true', help='write the predictions of each member too')
    command.add_argument(
      '--function',
      action='append',
      default=[],
      metavar='NAME',
      help='a network or method of your own that the model has, such as my_networks.py:make',
    )
  predict.add_argument('--coverage', type=float, help='write an interval or a set of classes for each row, such as 0.9')
  for name, what in (('delimiter', 'between values'), ('decimal', '. or ,'), ('encoding', 'such as latin-1')):
    predict.add_argument(f'--{name}', help=f'of a CSV file: {what}')
  export.add_argument('--platforms', help='of stablehlo, with commas (default: cpu,cuda,tpu)')
  return predict, export


def read_config(file: str, overrides: list[str]):
  """Reads `FILE[:ARGUMENT]`, applies `--config.key=value` overrides, and checks every value by itself.

  Args:
    file: A Python file with a function `get_config()`, or the name of one that comes with the package, such as
      `digits`; and what its function takes.
    overrides: Such as `--config.seed=3`; of those for one key the last counts.

  Raises:
    UserError: Anything is wrong with the file or a value.
  """
  from hydra_jax import user_files
  from hydra_jax.experiment import config as configs

  place, colon, argument = file.partition(':')
  what, by_name = f"config file '{place}'", shipped_configs()
  if place in by_name and not Path(place).is_file():
    place = by_name[place]
  if not place:
    raise UserError('--config names no file: write --config=FILE or --config=FILE:ARGUMENT')
  if not Path(place).exists():
    raise UserError(f'there is no {what}: {_other_config(place)}')
  find_modules_here()
  module = user_files.load(place, what)
  config = user_files.call(module, 'get_config', what, *([argument] if colon else []))
  if not isinstance(config, configs.ConfigDict):
    raise UserError(f'{what}: get_config returns {type(config).__name__}, and must return a ConfigDict')
  try:
    configs.check_values(config)
  except UserError as e:
    raise UserError(f'{what}: {e}') from e
  configs.set_values(config, _overrides(overrides))
  configs.check_values(config)
  for line in configs.doubtful(config):
    logger.warning(line)
  return config


def _overrides(arguments: list[str]) -> list[tuple[str, str]]:
  """Keys and values of `--config.key=value` or `--config.key value`."""
  pairs, left = [], list(arguments)
  while left:
    flag, equals, value = left.pop(0).partition('=')
    key = flag.removeprefix('--config.')
    if key == flag or not key:
      raise UserError(f"unexpected argument '{flag + equals + value}': config values are set as --config.key=value")
    if not equals:
      if not left or left[0].startswith('--'):
        raise UserError(f'{flag} has no value: write {flag}=value')
      value = left.pop(0)
    pairs.append((key, value))
  return pairs


def shipped_configs() -> dict[str, str]:
  """The configs that come with the package: the place of each, by name."""
  return {file.stem: str(file) for file in sorted(Path(__file__).with_name('configs').glob('*.py'))}


def _other_config(place: str) -> str:
  """What to use instead of a config file that is not there: the nearest one that is."""
  from hydra_jax.errors import closest

  folder = Path(place).parent
  files = sorted({*folder.glob('*.py'), *Path('configs').glob('*.py')})
  by_name = {name: name for name in shipped_configs()} | {file.stem: str(file) for file in files}
  if close := by_name.get(closest(Path(place).stem, by_name)):
    return f"did you mean '{close}'?"
  return (
    f'choose one of: {", ".join(sorted(by_name.values()))}; or write a file with a function get_config() that returns '
    'hydra_jax.experiment.config.default_config() with your changes'
  )


def find_modules_here() -> None:
  """Modules of the user's own are found in the working directory, as they are by `python -m`."""
  if os.getcwd() not in sys.path:
    sys.path.append(os.getcwd())


def _one_line(e: Exception) -> str:
  return ' '.join(str(e).replace('\\n', ' ').strip('"').split())


def local_folder(place: str, flag: str) -> Path:
  """A folder that a user names, on a file system: work directories need locks and renames, which buckets do not have.

  Raises:
    UserError: It is a URL, or empty.
  """
  if not place.strip():
    raise UserError(f'{flag} is empty: give a folder, or leave {flag} out')
  if re.match(r'[A-Za-z][\w+.-]*:/', place):
    raise UserError(
      f'{flag}={place} is not on a file system, and locks and renames of folders need one: '
      'give a local or shared folder, or mount the bucket (gcsfuse, s3fs) and give the place where it is mounted'
    )
  return Path(place).expanduser()  # the shell leaves a ~ that stands behind = as it is


def writable(folder: Path, flag: str) -> Path:
  """The same folder, which exists and can be written to, or can be made.

  Raises:
    UserError: It is a file, is below a file, or cannot be written.
  """
  there = folder
  while not os.path.lexists(there) and there != there.parent:
    there = there.parent
  if not there.is_dir():
    what = 'is a link to nothing' if there.is_symlink() and not there.exists() else 'is a file'
    raise UserError(f'{flag}={folder}: {there} {what}, and must be a folder: give another one')
  if not os.access(there, os.W_OK | os.X_OK):
    why = 'read-only' if os.statvfs(there).f_flag & os.ST_RDONLY else 'permission denied'
    raise UserError(f'{flag}={folder}: cannot write to {there.absolute()} ({why}): give another folder')
  return folder


def default_workdir(config) -> Path:
  """Where a run is written if nobody says where: `runs/<name>`, and for a file of data `runs/<name>-<file>`."""
  from hydra_jax.data.address import short_name

  return Path('runs') / '-'.join(filter(None, (config.name, short_name(config.data.name))))


def _data_dir(options) -> str:
  from hydra_jax.data import sources

  if options.data_dir is None:
    return sources.default_data_dir()
  return str(local_folder(options.data_dir, '--data_dir'))


def set_up() -> None:
  """Keeps compiled programs in the user's cache directory, so that a second run starts at once."""
  from absl import logging as absl_logging
  import jax

  from hydra_jax.data import sources

  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the traceback of what it then raises
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # and asyncio that of writes that failed beside it
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)  # nor those that never began
  sys.unraisablehook = _but_for_late_writes
  find_modules_here()
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    try:
      programs = sources.cache_dir() / 'xla'
      with sources.caching():
        programs.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=programs).close()
      jax.config.update('jax_compilation_cache_dir', str(programs))
    except UserError as e:
      logger.warning(f'{e}; goes on without, and compiles every program again')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _but_for_late_writes(unraisable) -> None:
  """Shows what nobody can catch, but for writes that end after Orbax has given a save up, as when the disk is full."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def join(options) -> None:
  """Joins the other processes, where there are any."""
  from hydra_jax import progress
  from hydra_jax.devices import processes

  if not 1 <= options.lost_after < math.inf:
    raise UserError(f'--lost_after={options.lost_after} must be at least 1 second, and finite')
  if options.distributed or processes.are_many():
    processes.join(options.lost_after)
  elif processes.may_be_many():
    try:
      processes.join(options.lost_after)
    except UserError as e:
      logger.warning(f'{e}; goes on as one process')
  progress.console.quiet = not processes.is_main()


def run(options, overrides: list[str]) -> None:
  from hydra_jax import progress

  with progress.held_back() as records:  # only process 0 prints them, and which that is shows later
    config = read_config(options.config, overrides)
  place = default_workdir(config) if options.workdir is None else local_folder(options.workdir, '--workdir')
  workdir, data_dir = writable(place, '--workdir'), _data_dir(options)
  from hydra_jax.experiment import agreement, run as runs

  set_up()
  preemption.begin()
  join(options)
  agreement.on_command('run', {'profile': options.profile, 'measure': options.measure})
  for record in records:
    progress.handler.emit(record)
  runs.run(config, workdir, data_dir, options.profile, options.measure, _store(options))


def _store(options) -> Path | None:
  return None if options.store is None else writable(local_folder(options.store, '--store'), '--store')


def sweep(options, overrides: list[str]) -> None:
  from hydra_jax import progress
  from hydra_jax.experiment import search as searches, sweep as sweeps

  if bool(options.grid) == bool(options.search):
    raise UserError('give --grid KEY=VALUES, or --search KEY=RANGE: one of the two, once for each key')
  if options.grid and not (options.trials is None and options.target is None):
    raise UserError('--trials and --target are for --search: leave them out, or write --search')
  if options.trials is not None and options.trials < 1:
    raise UserError(f'--trials={options.trials} must be at least 1')
  grid, spaces = sweeps.grid_of(options.grid or ()), searches.spaces_of(options.search or ())

  def read(more):
    with progress.held_back():  # what is said of every point is said once
      return read_config(options.config, [*overrides, *more])

  with progress.held_back() as records:
    config = read_config(options.config, overrides)
  if spaces:
    searches.check_installed()
    spaces = searches.checked(spaces, read)
    target = searches.target_of(options.target or 'hydra:nll', config, _data_dir(options))
  points = sweeps.points_of(grid, read) if grid else []
  place = Path('runs') / f'sweep-{default_workdir(config).name}'
  workdir = writable(place if options.workdir is None else local_folder(options.workdir, '--workdir'), '--workdir')
  data_dir, shared = _data_dir(options), _store(options) or workdir / sweeps.STORE
  set_up()
  preemption.begin()
  for record in {record.getMessage(): record for record in records}.values():
    progress.handler.emit(record)
  if not spaces:
    sweeps.run(points, workdir, shared, data_dir)
    return
  command = ['hydra-jax', 'run', f'--config={options.config}', *overrides]
  searches.run(spaces, options.trials or 20, *target, config, read, workdir, shared, data_dir, command)


def table(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}': what a table runs is in its file")
  if options.replicas is not None and options.replicas < 1:
    raise UserError(f'--replicas={options.replicas} must be at least 1')
  workdir, data_dir = writable(local_folder(options.workdir, '--workdir'), '--workdir'), _data_dir(options)
  from hydra_jax.experiment import agreement, paper_tables

  set_up()
  preemption.begin()
  if options.source is not None:
    if options.replicas is not None:
      raise UserError('--replicas is for tables that are trained, and --from trains nothing: leave one of them out')
    source = local_folder(options.source, '--from')
    paper_tables.again(options.name, source, workdir / f'table-{options.name.replace(":", "-")}', options.quick)
    return
  join(options)
  agreement.on_command('table', {'name': options.name, 'replicas': options.replicas, 'quick': options.quick})
  paper_tables.run(options.name, workdir, data_dir, options.replicas, options.quick)


def check(options, overrides: list[str]) -> None:
  if options.devices is not None and options.devices < 1:
    raise UserError(f'--devices={options.devices} must be at least 1')
  config = read_config(options.config, overrides)
  import jax

  from hydra_jax.experiment import on_paper, plan

  set_up()
  devices = options.devices or jax.device_count()
  if options.platform is None:
    plan.show(config, devices, _data_dir(options))
  else:
    on_paper.show(config, devices, options.platform, _data_dir(options))


def explain(options, overrides: list[str]) -> None:
  config = read_config(options.config, overrides)
  from hydra_jax.experiment import explain as explaining

  explaining.show(config)


def listed(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  from hydra_jax.experiment import list_runs

  list_runs.show(local_folder(options.folder, 'the folder'))


def clean(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  from hydra_jax.experiment import clean_run

  def agrees(question: str) -> bool:
    if options.yes:
      return True
    if not sys.stdin.isatty():
      raise UserError('clean asks before it deletes, and nobody can answer here: add --yes')
    return input(f'{question} [y/N] ').strip().lower() in ('y', 'yes')

  clean_run.clean(local_folder(options.run, 'the run'), agrees)


def compare(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  from hydra_jax.experiment import compare_runs

  compare_runs.show([local_folder(folder, 'the run') for folder in options.runs])


def prepare(options, overrides: list[str]) -> None:
  from hydra_jax.data import sources, uci

  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  preemption.begin()
  data_dir = str(writable(local_folder(_data_dir(options), '--data_dir'), '--data_dir'))
  kind, _, name = options.name.partition('/')
  if kind == 'uci':
    uci.load_all(name, data_dir)
  else:
    sources.prepare(options.name, data_dir)
  print(f'{options.name} is ready')


def predict(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  from hydra_jax.serving import loading, predict_files

  set_up()
  preemption.begin()
  predictor = loading.load(options.model, options.method, options.replica, options.function)
  csv = {name: getattr(options, name) for name in ('delimiter', 'decimal', 'encoding') if getattr(options, name)}
  source, output = (Path(place).expanduser() for place in (options.file, options.output))
  rows = predict_files.predict_file(predictor, source, output, options.coverage, options.members, **csv)
  print(f'{rows:,} rows are in {output}')


def export(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  from hydra_jax.serving import export as exports, loading

  if options.platforms is not None and options.format == 'onnx':
    raise UserError('--platforms is for stablehlo, and an ONNX file is the same for all: leave it out')
  set_up()
  predictor = loading.load(options.model, options.method, options.replica, options.function)
  platforms = exports.PLATFORMS
  if options.platforms is not None:
    platforms = tuple(name.strip() for name in options.platforms.split(','))
  exports.export(predictor, Path(options.output).expanduser(), options.format, options.members, platforms)


@contextlib.contextmanager
def traceback_if(debug: bool) -> Iterator[None]:
  """With `debug`, prints the traceback of whatever is raised, before it becomes one line."""
  try:
    yield
  except BaseException:
    if debug:
      traceback.print_exc()
    raise


def main(arguments: list[str] | None = None) -> int:
  """Runs a command. Returns an exit code: 0, 2 where the user has to change something, or see `preemption`."""
  try:
    preemption.listen()
    options, overrides = parser().parse_known_args(arguments)
    from hydra_jax import progress

    with traceback_if(options.debug), progress.lines_on_console():
      commands = dict(run=run, table=table, sweep=sweep, check=check, config=explain)
      commands |= dict(list=listed, clean=clean, compare=compare, prepare=prepare, predict=predict, export=export)
      commands[options.command](options, overrides)
  except UserError as e:
    return _fail(str(e))
  except (
    TimeoutError,
    ConnectionError,
  ) as e:  # these are OSErrors, but no fault of the disk where others are waited for
    return _lost(e) if _are_many() else _fail(_of_the_disk(e))
  except OSError as e:
    return _fail(_of_the_disk(e))
  except preemption.Preempted as e:
    return _fail(f'{e}: the same command continues', PREEMPTED, wait=e.by_all)
  except KeyboardInterrupt:
    return _fail('interrupted: the same command continues', 130)
  except Exception as e:
    if preemption.asked():  # code that was being called may have made another exception of it
      return _fail('stopped between two phases: the same command continues', PREEMPTED)
    if not _are_many():
      raise
    return _lost(e)
  return 0


def _of_the_disk(e: OSError) -> str:
  where = f' ({e.filename})' if e.filename else ''
  # NumPy reports a short write without an error code.
  code = errno.ENOSPC if re.search(r'requested and \d+ written', str(e)) else e.errno
  return f'{DISK.get(code, _one_line(e)) if code else _one_line(e)}{where}'


def _lost(e: Exception) -> int:
  if not isinstance(e, (sys.modules['jax'].errors.JaxRuntimeError, OSError)):  # by which the loss of another shows
    traceback.print_exc()
  return _fail(f'another process is lost, or this one failed ({_one_line(e)}): the same command continues', LOST)


def _are_many() -> bool:
  """Whether this process is one of several that act as one."""
  processes = sys.modules.get('hydra_jax.devices.processes')  # importing it would import JAX
  return processes is not None and processes.joined()


def _fail(message: str, code: int = 2, wait: bool = False) -> int:
  # One line, whatever names of files and texts of others are in it.
  line = ''.join(c if c.isprintable() else '?' for c in ' '.join(message.split()))
  if _are_many() and not wait:
    from hydra_jax.devices import processes

    processes.exit_now(code, line)
  print(f'hydra-jax: {line}', file=sys.stderr)
  return code


def command() -> int:
  """A process that is nothing but a command: once that has ended, there is nothing left to be asked to save."""
  os.environ['MPLBACKEND'] = 'agg'  # figures go to files; the one that a notebook names may not be installed here
  gc.set_threshold(100_000, 50, 50)  # while JAX traces, the collector would take an eighth of the time
  code = main()
  preemption.ignore()
  return code


if __name__ == '__main__':
  sys.exit(command())
