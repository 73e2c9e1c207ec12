"""The command line: `hydra-jax run`, `hydra-jax table`, `hydra-jax check` and `hydra-jax prepare`."""

import argparse
import errno
import logging
import math
import os
from pathlib import Path
import re
import sys
import traceback
import warnings

from hydra_jax import preemption
from hydra_jax.errors import UserError
from hydra_jax.preemption import LOST, PREEMPTED

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
  commands = p.add_subparsers(dest='command', required=True)
  run = commands.add_parser('run', help='train an ensemble, distil it, compare', allow_abbrev=False)
  run.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='such as configs/mnist.py:members=5')
  run.add_argument('--workdir', help='where everything is written (default: runs/<config name>)')
  run.add_argument('--profile', action='store_true', help='trace a few steps of each phase into <workdir>/profile')
  run.epilog = 'Any config value can be set: --config.teacher.members=5 --config.student.hydra.cut=-2'
  table = commands.add_parser('table', help='a table of several runs, with error bars', allow_abbrev=False)
  table.add_argument('name', help='of a file in experiments/, such as mnist, or a file of your own, such as mine.py')
  table.add_argument('--workdir', default='runs', help='where runs and tables are written (default: runs)')
  table.add_argument('--replicas', type=int, help='repetitions of each run (default: as the table says)')
  table.add_argument('--quick', action='store_true', help='small enough to see it work, within minutes on a CPU')
  for command in (run, table):
    command.add_argument('--data_dir', help='where data sets are (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)')
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
      help='of several processes, one that has been silent for so long is lost, and the others end (default: 45)',
    )
  check = commands.add_parser(
    'check', help='what an experiment takes on given devices, without them', allow_abbrev=False
  )
  check.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='such as configs/mnist.py:members=5')
  check.add_argument('--devices', type=int, help='their number, in all processes together (default: those of this one)')
  prepare = commands.add_parser('prepare', help='download and prepare a data set', allow_abbrev=False)
  prepare.add_argument('name', help='a TensorFlow Datasets name such as mnist, or uci/<set>')
  prepare.add_argument('--data_dir', help='where to put it (default: TFDS_DATA_DIR, or ~/tensorflow_datasets)')
  return p


def read_config(file: str, overrides: list[str]):
  """Reads `FILE[:ARGUMENT]` and applies `--config.key=value` overrides."""
  from absl import flags
  from ml_collections import config_flags

  if not Path(file.split(':')[0]).is_file():
    raise UserError(f"there is no config file '{file.split(':')[0]}': try configs/digits.py")
  arguments = [f'--config={file}', *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=arguments)
  try:
    left = values(['hydra-jax', *arguments])[1:]
  except UserError:
    raise
  except (AttributeError, KeyError) as e:
    raise UserError(f'unknown config key {_one_line(e)}') from e
  except (flags.Error, TypeError, ValueError, OSError) as e:
    raise UserError(_one_line(e)) from e
  if left:
    raise UserError(f"unexpected argument '{left[0]}': config values are set as --config.key=value")
  return values.config


def _one_line(e: Exception) -> str:
  return ' '.join(str(e).replace('\\n', ' ').strip('"').split())


def set_up() -> None:
  """Keeps compiled programs in the user's cache directory, so that a second run starts at once."""
  from absl import logging as absl_logging
  import jax

  from hydra_jax.data.sources import cache_dir

  absl_logging.set_verbosity(absl_logging.FATAL)  # Orbax logs the traceback of what it then raises
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # and asyncio that of writes that failed beside it
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)  # nor those that never began
  sys.unraisablehook = _but_for_late_writes
  sys.path.append(os.getcwd())  # modules of the user's own are found as they are by `python -m`
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    jax.config.update('jax_compilation_cache_dir', str(cache_dir() / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _but_for_late_writes(unraisable) -> None:
  """Shows what nobody can catch, but for writes that end after Orbax has given a save up, as when the disk is full."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def join(options) -> None:
  """Joins the other processes, where there are any."""
  from hydra_jax import processes, progress

  if not 1 <= options.lost_after < math.inf:
    raise UserError(f'--lost_after={options.lost_after} must be at least 1 second, and finite')
  if options.distributed or processes.are_many():
    processes.join(options.lost_after)
  elif processes.may_be_many():
    try:
      processes.join(options.lost_after)
    except UserError as e:
      progress.say(f'{e}; goes on as one process')
  progress.console.quiet = not processes.is_main()


def run(options, overrides: list[str]) -> None:
  config = read_config(options.config, overrides)
  from hydra_jax import agreement, pipeline
  from hydra_jax.data import sources

  set_up()
  preemption.begin()
  join(options)
  agreement.on_command('run', {'profile': options.profile})
  workdir = Path(options.workdir or Path('runs') / config.name)
  pipeline.run(config, workdir, options.data_dir or sources.default_data_dir(), options.profile)


def table(options, overrides: list[str]) -> None:
  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}': what a table runs is in its file")
  if options.replicas is not None and options.replicas < 1:
    raise UserError(f'--replicas={options.replicas} must be at least 1')
  from hydra_jax import agreement, reports
  from hydra_jax.data import sources

  set_up()
  preemption.begin()
  join(options)
  asked = {'name': options.name, 'replicas': options.replicas, 'quick': options.quick}
  agreement.on_command('table', asked)
  data_dir = options.data_dir or sources.default_data_dir()
  reports.run(options.name, Path(options.workdir), data_dir, options.replicas, options.quick)


def check(options, overrides: list[str]) -> None:
  config = read_config(options.config, overrides)
  import jax

  from hydra_jax import check

  set_up()
  if options.devices is not None and options.devices < 1:
    raise UserError(f'--devices={options.devices} must be at least 1')
  check.show(config, options.devices or jax.device_count())


def prepare(options, overrides: list[str]) -> None:
  from hydra_jax.data import sources, uci

  if overrides:
    raise UserError(f"unexpected argument '{overrides[0]}'")
  preemption.begin()
  data_dir = options.data_dir or sources.default_data_dir()
  kind, _, name = options.name.partition('/')
  if kind == 'uci':
    uci.load_all(name, data_dir)
  else:
    sources.prepare(options.name, data_dir)
  print(f'{options.name} is ready')


def main(arguments: list[str] | None = None) -> int:
  """Runs a command. Returns an exit code: 0, 2 where the user has to change something, or see `preemption`."""
  try:
    preemption.listen()
    options, overrides = parser().parse_known_args(arguments)
    {'run': run, 'table': table, 'check': check, 'prepare': prepare}[options.command](options, overrides)
  except UserError as e:
    return _fail(str(e))
  except (
    TimeoutError,
    ConnectionError,
  ) as e:  # which are OSErrors, and no fault of the disk where others are waited for
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
  processes = sys.modules.get('hydra_jax.processes')
  return processes is not None and processes.joined()


def _fail(message: str, code: int = 2, wait: bool = False) -> int:
  # One line, whatever names of files and texts of others are in it.
  line = ''.join(c if c.isprintable() else '?' for c in ' '.join(message.split()))
  if _are_many() and not wait:
    from hydra_jax import processes

    processes.leave(code, line)
  print(f'hydra-jax: {line}', file=sys.stderr)
  return code


def command() -> int:
  """A process that is nothing but a command: once that has ended, there is nothing left to be asked to save."""
  code = main()
  preemption.ignore()
  return code


if __name__ == '__main__':
  sys.exit(command())
