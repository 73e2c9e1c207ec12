"""Predictions on fixed views: students learn from them what they learn from members that predict in each step."""

import json
from types import SimpleNamespace

import chex
from conftest import TINY, hydra_jax
from helpers import no_scaling, squeeze
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hydra_jax import UserError
from hydra_jax.config import default_config
from hydra_jax.data import Split, standardised
from hydra_jax.devices.layout import SINGLE_DEVICE, make_layout
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import config as configs, views
from hydra_jax.experiment.plan import arrange
from hydra_jax.experiment.teachers import online_teacher
from hydra_jax.maths import losses
from hydra_jax.nets import cut, zoo
from hydra_jax.training import augment, batches, loop
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Draw, Job, init_state

N, M, C, V, B, STEPS, DEVICES = 22, 4, 3, 2, 8, 9, 8  # STEPS · B / N: passes over more views than there are
SEED = (5, 1, 1)  # of replica 1
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 8, 10, 3)).astype(np.float32)
Y = RANDOM.integers(C, size=N).astype(np.int32)


def members():
  network = cut.multi_head(zoo.cnn(C, channels=(6, 8)), 0, M)
  params, state = network.init(jax.random.key(9), jnp.asarray(X[:2]))
  return Model(network, jax.tree.map(lambda leaf: 3 * leaf, params), state, squeeze(no_scaling()), lambda o: o)


def settings(**others):
  return TrainingSettings(**{'augment': ('crop', 'flip', 'noise'), 'augment_share': 0.7, 'views': V, **others})


def kept(folder, model, training):
  config = default_config()
  config.seed, config.evaluation.batch_size = SEED[0], 5
  replica = SimpleNamespace(config=config, index=SEED[1], data=SimpleNamespace(train=Split(X, Y)))
  views.write_predictions(folder / 'predictions.npy', replica, model, training)
  found = np.load(folder / 'predictions.npy', mmap_mode='r')
  assert found.shape == (M, V * N, C)
  return found


def trained(training, layout=SINGLE_DEVICE, teacher=None, predictions=None, draw=None):
  """A student after some steps, on fixed views in any case."""
  arrays = {'x': standardised(squeeze(no_scaling()), X), 'y': Y}
  if predictions is not None:
    arrays['teacher'] = predictions
  job = Job(
    network=cut.multi_head(zoo.cnn(C, channels=(6, 8)), -1, M),
    loss=lambda outputs, batch: losses.distillation(outputs, batch['teacher'], 2.0),
    reduction='mean',
    optimizer=optax.sgd(0.05),
    steps=STEPS,
    batch_size=B,
    draw=draw,
    augment=augment.build(training.augment, 4, training.augment_share),
    teacher=teacher,
    views=training.fixed_views,
  )
  begin, key = views.keys_of_seed(SEED)
  state = init_state(job.network, job.optimizer, begin[None], jnp.asarray(X[:2])[None])
  source = batches.resident([arrays], no_scaling(), job.views)
  return squeeze(loop.fit(job, state, source, [SEED], key[None], layout)).params


LAYOUTS = {'alone': (), 'data': ('shard_map', 8, 1), 'heads': ('shard_map', 2, 4), 'pmap': ('pmap', 8, 1)}


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.parametrize('drawn', [0, 2])
def test_members_that_predicted_before_teach_as_those_that_predict_in_the_step(name, drawn, tmp_path):
  """The members predict in the step, on the view that the student sees; or before, by another program and device."""
  model, training, layout = members(), settings(members_per_step=drawn), SINGLE_DEVICE
  if LAYOUTS[name]:
    mode, data, head = LAYOUTS[name]
    parallel = SimpleNamespace(mode=mode, mesh=SimpleNamespace(data=data, head=head))
    layout = make_layout(mode, arrange(parallel, DEVICES, model.network, False, B, 'it'))
  draw = Draw(M, drawn) if drawn else None
  online = trained(training, layout, teacher=online_teacher([model], layout, training), draw=draw)
  before = trained(training, layout, predictions=kept(tmp_path, model, training), draw=draw)
  chex.assert_trees_all_close(before, online, rtol=2e-4, atol=2e-5)
  others = trained(training, layout, predictions=kept(tmp_path, model, settings(augment_share=0.6)), draw=draw)
  assert max(map(np.max, jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b), before, others)))) > 1e-3


def test_each_pass_shows_each_example_once_on_the_next_view():
  rows = batches.batch_indices(SEED, 0, 3 * N, N, B, V).ravel().reshape(3 * B, N)
  for number, shown in enumerate(rows):
    np.testing.assert_array_equal(np.sort(shown), number % V * N + np.arange(N))
  plain = batches.batch_indices(SEED, 0, 3 * N, N, B).ravel()
  np.testing.assert_array_equal(rows.ravel() % N, plain)


@pytest.mark.parametrize('name', sorted(augment.ALONE))
def test_a_view_is_the_same_in_any_batch(name):
  """And another one for each example, and for each of its views."""
  change = augment.build((name,), 4, share=0.9)
  view = lambda rows: np.asarray(change(jax.random.key(1), {'x': X[rows % N], 'view': jnp.asarray(rows)}, None)['x'])
  rows = np.arange(V * N)
  whole = view(rows)
  some = np.random.default_rng(3).permutation(rows)[:7]
  np.testing.assert_allclose(view(some), whole[some], rtol=1e-6, atol=1e-6)
  assert np.mean([np.allclose(one, other) for one, other in zip(whole[:N], whole[N:], strict=True)]) < 0.8


def parts(run):
  return [p.name.rpartition('-')[0] for p in (run / 'artifacts').iterdir()]


def test_students_share_views_in_a_run(tmp_path):
  """Two with the same changes of inputs share them; one without changes reads predictions as they are."""
  flags = ["--config.students=('kd','endd','moments','hydra')", '--config.distillation.views=2']
  flags += [f"--config.student.{name}.augment=('noise',)" for name in ('kd', 'endd')]
  flags += ["--config.student.moments.augment=('crop','noise')", '--config.student.endd.epochs=2']
  done = hydra_jax('run', *TINY, *flags, '--config.student.moments.epochs=2', f'--workdir={tmp_path / "run"}')
  assert done.returncode == 0, done.stderr
  assert parts(tmp_path / 'run').count('predictions') == 3
  shapes = {np.load(p).shape[1] for p in (tmp_path / 'run' / 'artifacts').glob('predictions-*/predictions.npy')}
  (most, least) = sorted(shapes, reverse=True)
  assert most == 2 * least
  assert 'teacher predictions on 2 views' in done.stdout


def test_views_of_unchanged_inputs_are_these_inputs(tiny_run, tmp_path):
  done = hydra_jax('run', *TINY, '--config.distillation.views=3', f'--workdir={tmp_path / "run"}')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'run' / 'results.jsonl').read_text() == (tiny_run[0] / 'results.jsonl').read_text()


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (["--config.student.kd.augment=('mixup',)"], "config.student.kd.views=2: 'mixup' needs"),
    (["--config.student.kd.augment=('noise','ods')"], "config.student.kd.views=2: 'ods' needs"),
    (['--config.student.kd.views=-1'], 'views'),
    (['--config.training.views=2'], 'views'),
  ],
)
def test_views_that_cannot_be(flags, said, tmp_path):
  """Before anything is trained."""
  flags = ["--config.students=('kd',)", '--config.student.kd.views=2', *flags]
  done = hydra_jax('run', *TINY, *flags, f'--workdir={tmp_path / "run"}')
  assert done.returncode == 2 and said in done.stderr, done.stderr
  assert not (tmp_path / 'run').exists()


def test_streams_have_no_fixed_views():
  """Their inputs are read while a network trains, and differ each time."""
  config = default_config()
  config.students = ('kd',)
  config.student.kd.update(augment=('noise',), views=2)
  data = SimpleNamespace(varies=True, has_validation=True, shape=(8, 8, 3), task='classification')
  with pytest.raises(UserError, match=r'config.student.kd.views: these data are read while'):
    configs.settle(config, data)


def test_predictions_that_a_type_cannot_hold_are_refused(tmp_path):
  flags = ["--config.students=('kd',)", '--config.student.kd.views=2', "--config.student.kd.augment=('noise',)"]
  flags += ['--config.teacher.keep_as=float16', '--config.teacher.learning_rate=100.0']
  done = hydra_jax('run', *TINY, *flags, f'--workdir={tmp_path / "run"}')
  assert done.returncode == 2 and 'too large for float16' in done.stderr and 'Warning' not in done.stderr, done.stderr


@pytest.mark.parametrize('flags', [["augment=('noise',)", 'views=2'], ["unlabelled=('digits',)"]])
def test_scores_in_training_compare_with_the_ensemble(flags, tmp_path):
  """Also where a student has other predictions of the members than the rest."""
  flags = [f'--config.student.hydra.{flag}' for flag in flags] + ['--config.validation_scores=2']
  done = hydra_jax('run', *TINY, "--config.students=('hydra',)", *flags, f'--workdir={tmp_path / "run"}')
  assert done.returncode == 0, done.stderr
  lines = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
  found = [line['validation'] for line in lines if 'validation' in line and line['part'].startswith('members')]
  assert len(found) == 2 and all('rank_correlation' in each for each in found)
