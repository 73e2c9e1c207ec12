"""Every value of every setting goes through the command line once: a table of runs, on eight devices.

Runs that differ only in how the work is laid out have to give the same numbers. A value or a setting that no run
sets fails `test_every_value_is_run` or `test_every_setting_is_set`.
"""

import json
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

from conftest import ROOT
import jax
import numpy as np
import pytest
from rich.console import Console

from hydra_jax import cli
from hydra_jax.data import UNLABELLED
from hydra_jax.data.corruptions import CORRUPTIONS, RELEASE
from hydra_jax.data.shifts import SHIFTS
from hydra_jax.devices.layout import MODES
from hydra_jax.experiment import plan
from hydra_jax.experiment.config import default_config
from hydra_jax.maths.tasks import TASKS
from hydra_jax.maths.uncertainty import RANKINGS, WORDS
from hydra_jax.methods.distillation import GROUPINGS
from hydra_jax.methods.registry import METHODS
from hydra_jax.nets.mapping import MAPPINGS
from hydra_jax.nets.zoo import DTYPES, NETWORKS, NORMS
from hydra_jax.report import figures
from hydra_jax.settings import defaults
from hydra_jax.training.augment import AUGMENTATIONS
from hydra_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from hydra_jax.training.settings import TrainingSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:the load_module')]  # of ml_collections


def student(name: str, **settings) -> list[str]:
  return [f'--config.student.{name}.{key}={value}' for key, value in settings.items()]


def each(names: tuple[str, ...], **settings) -> list[str]:
  return [flag for name in names for flag in student(name, **settings)]


# Two hidden layers of 16 units instead of 100, and so few epochs that compiling is all that takes time.
SMALL = [f'--config.network.{role}.widths=(16,16)' for role in ('teacher', 'student')]
# Slow, so that sums in another order stay rounding errors.
TAME = [
  '--config=configs/digits.py:members=8,epochs=2',
  *SMALL,
  '--config.seed=5',
  '--config.teacher.learning_rate=1e-3',
  "--config.students=('hydra',)",
  *student('hydra', epochs=2.0, learning_rate=1e-3),
  "--config.data.shifts=('rotate:30',)",
  '--config.execution.mapping=vmap',
]
# How the work is laid out, which changes results by rounding only: against `TAME` on all devices by `shard_map`.
LAYOUTS = {
  'pmap': [
    *('--config.parallel.mode=pmap', '--config.parallel.mesh.data=8', '--config.execution.mapping=unroll'),
    *('--config.evaluation.batch_size=100', '--config.checkpoint_seconds=1.0', '--config.checkpoints_kept=1'),
  ],
  'loop': [
    *('--config.parallel.mesh.head=4', '--config.execution.mapping=loop', '--config.execution.heads_per_chunk=1'),
    '--config.execution.steps_per_call=5',
  ],
}


class Run(NamedTuple):
  """A row of the table.

  Attributes:
    flags: Those of `hydra-jax run`; `{regression}` stands for a file with a regression in it.
    students: Those that are trained, in the order of the table.
    least: The accuracy that each method reaches on the test split; in regression, the share of the targets' deviation
      that its RMSE stays below.
    figures: Whether figures are drawn, which takes longest.
  """

  flags: list[str]
  students: tuple[str, ...]
  least: float
  figures: bool = False


EVERY = tuple(name for name in METHODS if name != 'ensemble')
GAUSSIAN = ('kd', 'hydra', 'endd', 'dlf')
IMAGES = tuple(f'{kind}:1' for kind in CORRUPTIONS)
RUNS = {
  # Every method, each trained in another way.
  'methods': Run(
    [
      '--config=configs/digits.py:students=all,members=4,epochs=4',
      *SMALL,
      '--config.teacher.keep_as=float16',
      *('--config.teacher.optimizer=sgd', '--config.teacher.learning_rate=0.05', '--config.teacher.batch_size=32'),
      *('--config.teacher.weight_decay=1e-4', '--config.teacher.warmup_epochs=1.0'),
      *("--config.teacher.augment=('flip','mixup')", '--config.teacher.augment_share=0.2'),
      *each(EVERY, epochs=4.0, learning_rate=0.02),
      *student('single', optimizer='adamw', weight_decay=0.01, schedule='constant', warmup_epochs=0.5),
      *student('kd', augment="('mixup','crop','cutout')", augment_share=0.3, label_weight=0.5, temperature=2.0),
      *student('hydra', heads=2, grouping='round_robin', members_per_step=3, hinton_epochs=4.0, freeze_body=True),
      '--config.validation=0.2',
      *student('hydra', mean_weight=1.0, calibrate_spread=False),
      *student('hydra', diversity_weight=0.01, cut=-2, augment="('shuffle',)", augment_share=0.2, temperature=2.0),
      *student('small_ensemble', augment="('noise','scale')", temperature=2.0, **{'network.widths': '(12,)'}),
      *student('batch_ensemble', augment="('ods',)", temperature=2.0, rank=2),
      *student('endd', members_per_step=2, start_temperature=5.0, augment="('conf_ods',)"),
      *student('proxy_endd', unlabelled="('cifar10',)"),
      *student('dlf', factors=3, samples=8, mean_epochs=2.0),
      *student('edfm', samples=4, steps=3, width=32, blocks=2, mean_epochs=4.0),
      *student('mc_dropout', rate=0.05, samples=6),
      *student('moments', samples=8),
      *student('shallow_ensemble', heads=3, cut=-2),
      *student('tabm', heads=3),
      *student('latent_batch_ensemble', temperature=2.0),
      '--config.evaluation.ece_bins=10',
      "--config.data.shifts=('jitter:0.5','translate:1')",
      "--config.data.ood=('letters','noise','negative','collage')",
    ],
    EVERY,
    least=0.3,  # of chance 0.1
  ),
  'regression': Run(
    [
      '--config=configs/digits.py:members=4,epochs=30',
      f'--config.students={GAUSSIAN}',
      *('--config.data.name={regression}', '--config.data.task=regression', '--config.validation_scores=2'),
      '--config.patience=1',
      *SMALL,
      *('--config.network.teacher.homoscedastic=True', '--config.teacher.schedule=constant'),
      *each(GAUSSIAN, epochs=30.0, learning_rate=0.02),
      *student('hydra', augment="('noise',)", temperature=1.0, views=3),
      *student('dlf', folds=2),
      *student('kd', **{'network.name': 'tabular', 'network.widths': '(50,)', 'network.bins': 4}),
      "--config.data.shifts=('jitter:0.25',)",
      "--config.data.ood=('elsewhere',)",
    ],
    GAUSSIAN,
    least=0.8,
  ),
  # Data in the plane, which have a figure of their own.
  'plane': Run(
    [
      '--config=configs/spiral.py:members=2,epochs=30,replicas=2',
      '--profile',
      "--config.students=('hydra',)",
      *('--config.execution.replicas_together=1', '--config.data.task=classification'),
      "--config.trackers=('tensorboard',)",
      *SMALL,
      *student('hydra', epochs=20.0, learning_rate=0.02),
    ],
    ('hydra',),
    least=0.4,
    figures=True,
  ),
  # Too few images to learn from, but of the right shape.
  'networks': Run(
    [
      '--config=configs/digits.py:members=1,epochs=1',
      "--config.students=('kd','small_ensemble','single')",
      *('--config.data.name=cifar10', '--config.data.train=train[:16]', '--config.data.test=test[:8]'),
      '--config.teacher.batch_size=16',
      '--config.network.teacher.name=lenet',
      *('--config.network.student.name=resnet', '--config.network.student.depth=8', '--config.network.student.width=4'),
      *('--config.network.student.norm=group', '--config.network.student.dtype=bfloat16'),
      *student('small_ensemble', **{'network.name': 'wide_resnet', 'network.depth': 10, 'network.width': 1}),
      *student('single', **{'network.name': 'cnn'}),
      *each(('kd', 'small_ensemble'), epochs=1.0, batch_size=16),
      f'--config.data.shifts={(*IMAGES, f"{RELEASE}/fog:3")}',
      "--config.data.ood=('cifar100','svhn_cropped[:4]')",
    ],
    ('kd', 'small_ensemble', 'single'),
    least=0.0,
  ),
}

# Of `hydra-jax check`.
PLAN = [
  f'--config={ROOT}/configs/digits.py:members=1',
  *('--config.students=()', '--config.data.name=imagenet2012', '--config.network.teacher.name=resnet50'),
]


@pytest.fixture(scope='module')
def files(tmp_path_factory, miniatures) -> dict[str, str]:
  """What flags name: a folder of data sets, and a file with a regression, `y = x_1 − x_2² + noise`."""
  folder = tmp_path_factory.mktemp('files')
  for prepared in Path(miniatures).iterdir():
    (folder / prepared.name).symlink_to(prepared)
  (folder / RELEASE).mkdir()
  np.save(folder / RELEASE / 'fog.npy', np.full((50, 32, 32, 3), 127, np.uint8))
  np.save(folder / RELEASE / 'labels.npy', np.arange(50, dtype=np.uint8) % 10)
  random = np.random.default_rng(0)
  x, far = random.normal(size=(400, 3)), 5 + random.normal(size=(40, 3))
  y = x[:, 0] - x[:, 1] ** 2 + 0.1 * random.normal(size=400)
  np.savez(folder / 'regression.npz', x=x[:200], y=y[:200], x_test=x[200:], y_test=y[200:], x_elsewhere=far)
  return {'data_dir': str(folder), 'regression': str(folder / 'regression.npz')}


@pytest.fixture
def run(tmp_path, monkeypatch, files):
  """`run(name, flags)` calls the command line, which must end well, and gives the work directory."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(cli, 'set_up', lambda: None)  # which changes this process
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)

  def call(name, flags):
    workdir = tmp_path / name
    flags = [flag.format(**files) if '{' in flag else flag for flag in flags]
    assert cli.main(['run', *flags, f'--workdir={workdir}', f'--data_dir={files["data_dir"]}']) == 0
    return workdir

  assert jax.device_count() == 8
  return call


def results(workdir) -> dict[tuple, float]:
  """Values of `results.jsonl` by replica, split, method and metric; all are finite."""
  rows = [json.loads(line) for line in (workdir / 'results.jsonl').read_text().splitlines()]
  assert all(math.isfinite(row['value']) for row in rows)
  found = {(row['replica'], row['split'], row['method'], row['metric']): row['value'] for row in rows}
  assert len(found) == len(rows)
  return found


def test_every_layout_gives_the_same(run, monkeypatch):
  monkeypatch.setattr(figures, 'draw_all', lambda *args, **kwargs: None)
  expected = results(run('base', TAME))
  assert {key[2] for key in expected} == {'ensemble', 'hydra'}
  assert {key[1] for key in expected} == {'test', 'rotate:30', 'letters', 'noise', 'cost', 'validation'}
  assert expected[0, 'test', 'ensemble', 'accuracy'] > 0.5
  for name, flags in LAYOUTS.items():
    found = results(run(name, [*TAME, *flags]))
    assert found.keys() == expected.keys(), name
    for key, value in expected.items():
      # One of 599 test images may lie on the border between two classes, or two bins.
      np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=2e-3, err_msg=f'{name}: {key}')


# Metrics that a set has at least, by its kind.
UNCERTAINTY = set(WORDS)
DETECTION = {f'{measure}_{by}' for measure in ('auroc', 'aupr', 'fpr95') for by in RANKINGS}
LABELLED = {
  'classification': UNCERTAINTY | {'accuracy', 'nll', 'brier', 'ece', 'adaptive_ece'},
  'regression': UNCERTAINTY | {'rmse', 'nll', 'nll_gaussian', 'crps', 'coverage_95'},
}


@pytest.mark.parametrize('name', RUNS)
def test_every_value_gives_results(name, run, monkeypatch):
  row = RUNS[name]
  if not row.figures:
    monkeypatch.setattr(figures, 'draw_all', lambda *args, **kwargs: None)
  workdir = run(name, row.flags)
  config, found = json.loads((workdir / 'config.json').read_text()), results(workdir)
  task = 'regression' if name == 'regression' else 'classification'
  methods = {'ensemble', *row.students}
  assert {key[2] for key in found} == methods
  assert {key[0] for key in found} == set(range(config['replicas']))
  shown = {*config['data']['ood']} - {'plane'}
  held_out = {key[1] for key in found} & {'validation'}  # small sets have none
  assert held_out or name == 'networks'
  assert {key[1] for key in found} == {'test', *config['data']['shifts'], *shown, 'cost', *held_out}
  for method in methods:
    of = lambda where, method=method: {metric for _, split, m, metric in found if (split, m) == (where, method)}
    # The model uncertainty of `ddu` is no part of the total: its mean says nothing.
    left_out = {'uncertainty_epistemic'} if method == 'ddu' else set()
    assert LABELLED[task] - left_out <= of('test') and of('cost') == {'parameters', 'flops'}
    assert all((LABELLED[task] | DETECTION) - left_out <= of(where) for where in config['data']['shifts'])
    assert all((UNCERTAINTY | DETECTION) - left_out <= of(where) and 'nll' not in of(where) for where in shown)
    if task == 'classification':
      assert row.least <= found[0, 'test', method, 'accuracy'] <= 1, method
    else:
      assert found[0, 'test', method, 'rmse'] < row.least * np.load(config['data']['name'])['y_test'].std(), method
    if left_out:
      assert not left_out & of('test')
      continue
    spread = found[0, 'test', method, 'uncertainty_epistemic']
    alone = method in ('single', 'kd', 'latent_batch_ensemble') or config['teacher']['members'] == 1
    assert spread == 0 if alone else spread > 0, method
  timings = [json.loads(line) for line in (workdir / 'timings.jsonl').read_text().splitlines()]
  assert {r['method'] for r in timings if r['metric'] == 'latency_ms' and r['value'] > 0} == methods
  assert bool(list(workdir.glob('profile/**/*.trace.json.gz'))) == ('--profile' in row.flags)
  assert bool(list(workdir.glob('figures/*.png'))) == row.figures


def test_the_largest_network_is_planned(monkeypatch, capsys):
  """ResNet-50 takes longer to compile than all else here; its plan goes through the command line as well."""
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(plan, 'console', Console(width=160))  # whatever width the terminal has
  assert cli.main(['check', *PLAN, '--devices=8']) == 0
  assert re.search(r'ensemble of 1 +8 × 1 +25,557,032 ', capsys.readouterr().out)  # as torchvision has it


ROWS = {'base': TAME, **{name: [*TAME, *flags] for name, flags in LAYOUTS.items()}}
ROWS |= {'plan': PLAN, **{name: row.flags for name, row in RUNS.items()}}
# Settings that other tests set.
ELSEWHERE = {
  'data.image_size': 'test_pipeline.test_imagenet_runs_on_a_miniature',
  'evaluation.metrics': 'test_extending.test_a_run_with_all_of_them',
  'name': 'configs set it',
  'teacher.checkpoints': 'test_pipeline.test_members_of_other_runs_and_architectures',
  'teacher.predictions': 'test_pipeline.test_predictions_of_another_framework',
}


def leaves(settings: dict, prefix: str = '') -> dict[str, Any]:
  """Values by dotted key."""
  found = {}
  for key, value in settings.items():
    found |= leaves(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
  return found


@pytest.fixture(scope='module')
def configs() -> list[dict[str, Any]]:
  """What each run is set to: values by dotted key, of the teacher and of students that are trained."""
  found = []
  for flags in ROWS.values():
    file, *overrides = [flag for flag in flags if flag.startswith('--config')]
    config = cli.read_config(str(ROOT / file.removeprefix('--config=')), overrides).to_dict()
    config['student'] = {name: settings for name, settings in config['student'].items() if name in config['students']}
    found.append(leaves(config))
  return found


# What must be run of the values of a setting, by the last part of its key.
VALUES = {
  'mode': MODES,
  'task': ('auto', *TASKS),
  'mapping': MAPPINGS,
  'keep_as': ('float16', 'float32'),
  'optimizer': OPTIMIZERS,
  'schedule': SCHEDULES,
  'grouping': GROUPINGS,
  'augment': AUGMENTATIONS,
  'norm': NORMS,
  'dtype': DTYPES,
  'name': NETWORKS,
  'shifts': {kind.partition('/')[0] for kind in SHIFTS},  # of published files one kind, as all are read alike
  'ood': UNLABELLED,
}


@pytest.mark.parametrize('setting', VALUES)
def test_every_value_is_run(setting, configs):
  values = [value for config in configs for key, value in config.items() if key.split('.')[-1] == setting]
  words = {word for value in values for word in (value if isinstance(value, tuple) else (value,))}
  words = {re.split(r'[:/\[]', word)[0] for word in words}
  assert not set(VALUES[setting]) - words


def test_every_setting_is_set(configs):
  """Of settings that several sections have, it is enough that one of them has another value than the default."""
  training, shared = defaults(TrainingSettings), ('temperature', 'label_weight', 'calibrate_spread')

  def general(key):
    last = key.split('.')[-1]
    return f'training.{last}' if last in training else f'student.{last}' if last in shared else key

  default = leaves(default_config().to_dict())
  standard = {**default, **{key: training.get(key.split('.')[-1]) for config in configs for key in config} | default}
  changed = {general(key) for config in configs for key, value in config.items() if value != standard[key]}
  left_out = {general(key) for key in default} - changed - {*ELSEWHERE}
  assert not left_out
