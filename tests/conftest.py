"""Strict arithmetic everywhere, and where the data sets are."""

import atexit
import contextlib
import fcntl
import functools
import gc
from importlib import metadata
import io
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple
import zlib

os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
os.environ.setdefault('JAX_NUMPY_DTYPE_PROMOTION', 'strict')
# Lowering need not say where in the source each operation is.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')
# Small things are compiled and run once: compilation is nearly all the time that tests take.
# The last two halve its time; XLA of jax 0.12 does not know the first of them, and would end at it.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  if not metadata.version('jaxlib').startswith('0.10.')
  else '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1',
)

import forks
import jax
import numpy as np
from PIL import Image
import pytest

# For what spreads over devices. Processes that tests start have one each, unless they say otherwise.
jax.config.update('jax_num_cpu_devices', 8)

ROOT = Path(__file__).parents[1]
# Prepared data sets beside the project, or wherever TFDS_DATA_DIR says.
DATA_DIR = os.environ.get('TFDS_DATA_DIR') or str(ROOT.parent / 'shared')


def pytest_collection_modifyitems(items):
  """Slow tests come first, so that no process is left with a long one when all others have ended."""
  items.sort(key=lambda item: item.get_closest_marker('slow') is None)


def pytest_collection_finish():
  """What is imported by now stays: the garbage collector need not look at it again and again."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(100_000, 50, 50)


# Of what JAX has traced and lowered it keeps 1.4 MB each, and with thousands of them a process takes twice as long.
LOWERED_AT_MOST = 300
lowered = 0


def count_lowered(event: str, seconds: float, **about) -> None:
  global lowered
  lowered += event.endswith('jaxpr_to_mlir_module_duration')


jax.monitoring.register_event_duration_secs_listener(count_lowered)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
  global lowered
  if lowered > LOWERED_AT_MOST:
    jax.clear_caches()
    lowered = 0


def has_data(name: str) -> bool:
  bases = (Path(DATA_DIR), Path(DATA_DIR) / 'tfds')
  return any(any((base / name).glob('*/dataset_info.json')) for base in bases)


def needs(*names: str):
  """Skips a test, with the reason, where image sets are not prepared on this machine."""
  missing = [n for n in names if not has_data(n)]
  return pytest.mark.skipif(bool(missing), reason=f'not prepared under {DATA_DIR}: {", ".join(missing)}')


def needs_uci(name: str):
  found = any((Path(DATA_DIR) / folder / f'{name}.npz').exists() for folder in ('', 'uci'))
  return pytest.mark.skipif(not found, reason=f'no {name}.npz under {DATA_DIR}')


def prepare_miniature(folder, set_name: str, size: int | None = None, **splits: int) -> None:
  """Prepares random images, as many as each split says, as a set of TensorFlow Datasets, without TensorFlow.

  Squares of one size as PNG; or, if none is given, JPEG of many sizes, as in ImageNet.
  """
  import tensorflow_datasets as tfds

  from hydra_jax.data import SOURCES

  random = np.random.default_rng(0)
  kind = 'png' if size else 'jpeg'

  def examples(count):
    for i in range(count):
      height, width = (size, size) if size else random.integers(20, 60, 2)
      coarse = Image.fromarray(random.integers(256, size=(4, 4, 3), dtype=np.uint8))
      file = io.BytesIO()
      coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
      file.seek(0)
      yield i, {'image': file, 'label': i % 10}

  features = {
    'image': tfds.features.Image(shape=(size, size, 3), encoding_format=kind),
    'label': tfds.features.ClassLabel(num_classes=SOURCES[set_name].classes),
  }
  with tfds.core.registered.skip_registration():

    class Miniature(tfds.core.GeneratorBasedBuilder):
      name = set_name
      VERSION = tfds.core.Version('1.0.0')
      _info = lambda self: tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
      _generate_examples = lambda self, count: examples(count)
      _split_generators = lambda self, _: {split: examples(count) for split, count in splits.items()}

  Miniature(data_dir=str(folder), file_format='array_record').download_and_prepare()


@pytest.fixture
def random(request) -> np.random.Generator:
  """A generator for one test: what it draws depends on the name of the test, not on the tests before it."""
  return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> Path:
  """A folder that all processes of pytest have in common."""
  own = tmp_path_factory.getbasetemp()
  return own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own


def made_once(folder: Path, make) -> Path:
  """A folder that `make(folder)` fills, in the process that needs it first; the others wait for it."""
  complete = folder.with_name(f'{folder.name}-is-complete')
  with open(folder.with_name(f'{folder.name}-lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not complete.exists():
      folder.mkdir(exist_ok=True)
      make(folder)
      complete.touch()
  return folder


@pytest.fixture(scope='session')
def miniatures(shared) -> str:
  """A folder of prepared sets, small as can be."""

  def make(folder):
    prepare_miniature(folder, 'imagenet2012', train=40, validation=9)
    for name in ('cifar10', 'cifar100', 'svhn_cropped'):
      prepare_miniature(folder, name, 32, train=20, test=8)

  return str(made_once(shared / 'miniatures', make))


def command(*arguments) -> list[str]:
  return [sys.executable, '-m', 'hydra_jax.cli', *map(str, arguments)]


def hydra_jax(*arguments, cwd=ROOT, figures=False) -> subprocess.CompletedProcess:
  """Runs the command line as another process, from the root of the project unless `cwd` says otherwise."""
  what = command(*arguments)
  environment = {**os.environ, forks.DRAWS: '1'} if figures else None
  with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
    process = start(what, out, err, cwd, environment)
    try:
      code = process.wait(600)
    finally:
      process.kill()
    out.seek(0)
    err.seek(0)
    return subprocess.CompletedProcess(what, code, out.read(), err.read())


def start(what: list[str], out, err, cwd=ROOT, environment=None) -> forks.Process | subprocess.Popen:
  """Starts `hydra-jax`, or a file of Python, as another process.

  It is forked from a process that has imported everything, see `forks`, unless it is to have variables that are read
  on import.
  """
  environment = dict(os.environ if environment is None else environment)
  if what[1] != '-c' and forks.can_have(forking().environment, environment):
    return forks.Process(forking().place, what, str(cwd), environment, out, err)
  return subprocess.Popen(what, cwd=cwd, env=environment, stdout=out, stderr=err)


class Forking(NamedTuple):
  """A process of `forks`, the socket where it is asked, and the variables that it was started with."""

  process: subprocess.Popen
  place: str
  environment: dict[str, str]


@functools.cache
def forking() -> Forking:
  """That of this process, which is started when it is first needed, and ends with it."""
  folder = tempfile.mkdtemp()
  place = f'{folder}/socket'
  started = dict(os.environ)
  process = subprocess.Popen(
    [sys.executable, 'tests/forks.py', place], cwd=ROOT, env=started | {'PYTHONPATH': str(ROOT)}
  )
  atexit.register(lambda: (process.kill(), process.wait(), shutil.rmtree(folder)))
  while not os.path.exists(place):
    assert process.poll() is None
    time.sleep(0.05)
  return Forking(process, place, started)


@pytest.fixture
def port() -> int:
  """One that is free."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def serving(arguments: list[str], port: int, **kwargs):
  """A process of Python that answers at a port, and has printed no traceback when it is ended."""
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  python = [sys.executable, *map(str, arguments)]
  server = subprocess.Popen(python, stderr=subprocess.PIPE, text=True, env=environment, **kwargs)
  try:
    for _ in range(600):
      try:
        socket.create_connection(('127.0.0.1', port)).close()
        break
      except ConnectionRefusedError:
        assert server.poll() is None, server.stderr.read()
        time.sleep(0.1)
    yield
  finally:
    server.terminate()
    _, errors = server.communicate(timeout=30)
  assert 'Traceback' not in errors, errors


@pytest.fixture(scope='session', autouse=True)
def cache(shared):
  """One cache of decoded data and compiled programs for the whole session, and none of the user's."""
  old = os.environ.get('XDG_CACHE_HOME')
  folder = shared / 'cache'
  folder.mkdir(exist_ok=True)
  os.environ['XDG_CACHE_HOME'] = str(folder)
  # Where processes of the command line keep theirs. The same few shapes are compiled again and again: in each worker,
  # and wherever a test makes its function again.
  jax.config.update('jax_compilation_cache_dir', str(folder / 'hydra_jax' / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  yield folder
  os.environ.pop('XDG_CACHE_HOME')
  if old:
    os.environ['XDG_CACHE_HOME'] = old


TINY = (
  '--config=configs/digits.py:members=3,epochs=2',
  '--config.teacher.learning_rate=0.01',
  *(f'--config.student.{s}.{k}' for s in ('single', 'kd', 'hydra') for k in ('epochs=2', 'learning_rate=0.01')),
  '--config.student.hydra.hinton_epochs=2',
  '--config.student.hydra.augment=()',  # as students of predictions in a file learn
  "--config.data.shifts=('rotate:30',)",
)


@pytest.fixture(scope='session')
def tiny_run(shared, cache):
  """A finished run of the digits, small; tests that change it copy it first, as others read it meanwhile."""

  def make(folder):
    done = hydra_jax('run', *TINY, f'--workdir={folder / "run"}', figures=True)
    assert done.returncode == 0, done.stderr
    (folder / 'said').write_text(done.stdout)

  folder = made_once(shared / 'tiny', make)
  return folder / 'run', (folder / 'said').read_text()
