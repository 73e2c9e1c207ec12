"""What `test_processes` starts in two processes: one after the other, all in which they may differ.

Each works in another folder. Its files have the same names as those of the other process, and other contents.
"""

import os
from pathlib import Path
import sys

import jax
import numpy as np

from hydra_jax import UserError
from hydra_jax.devices import processes
from hydra_jax.experiment import agreement, paper_tables, provenance, run as runs
from hydra_jax.experiment.config import default_config

NETWORK = 'from hydra_jax import mlp\ndef make(outputs): return mlp(outputs, ({width},))\n'
TABLE = """
from hydra_jax.experiment import config, paper_tables
def get_tables(quick):
  run = config.default_config()
  run.name, run.students, run.replicas = 'spiral', (), {replicas}
  return {{'': paper_tables.Definition('a', {{'spiral': run}}, [])}}
"""


def config_of(workdir, **changes):
  config = default_config()
  config.name, config.students, config.teacher.members, config.teacher.epochs = 'a', (), 2, 1.0
  config.data.name = 'spiral'
  for key, value in changes.items():
    *path, last = key.split('__')
    node = config
    for name in path:
      node = node[name]
    node[last] = value
  return lambda: runs.run(config, Path(workdir), '')


def data_file(own: int, **other):
  random = np.random.default_rng(0)
  arrays = {k: random.normal(size=(n, 3)) for k, n in (('x', 60), ('x_test', 20), ('x_far', 20))}
  arrays |= dict(y=np.arange(60) % 3, y_test=np.arange(20) % 3)
  np.savez('data.npz', **{k: np.roll(v, own) if k in other else v for k, v in arrays.items()})


def refused(what: str, f) -> None:
  try:
    f()
  except UserError as e:
    print(f'{what}: {e}', flush=True)
  else:
    print(f'{what}: went on', flush=True)


def main(folder: str) -> None:
  processes.join()
  own = jax.process_index()
  here = Path(folder) / f'process-{own}'
  here.mkdir()
  os.chdir(here)
  shared = Path(folder) / 'work'

  refused('seed', config_of(shared, seed=own))
  refused('value', config_of(shared, teacher__learning_rate=0.1 * (own + 1), data__shifts=('rotate:1',) * own))
  Path('net.py').write_text(NETWORK.format(width=own + 3))
  with (default := default_config()).unlocked():
    default.network.teacher = {'name': 'net.py:make'}
  refused('function', config_of(shared, network__teacher=default.network.teacher))
  for name in ('y_test', 'x', 'x_far'):
    os.chdir(here)
    (here / name).mkdir()
    os.chdir(here / name)
    data_file(own, **{name: 1})
    refused(name, config_of(shared, data__name='data.npz', data__ood=('far',)))
  refused('workdir', config_of('work'))
  Path('table.py').write_text(TABLE.format(replicas=own + 1))
  refused('table', lambda: paper_tables.run('table.py', shared, '', None, False))
  provenance.package_digest = lambda: f'source{own}'
  refused('source', lambda: agreement.on_command('run', {}))
  provenance.package_digest = lambda: 'source'
  refused('command', lambda: agreement.on_command(('run', 'table')[own], {'replicas': (None, 3)[own]}))
  refused('place', lambda: processes.gather_texts('', ('train', 'report')[own]))
  refused('nothing', lambda: agreement.on_command('run', {}))


main(sys.argv[1])
