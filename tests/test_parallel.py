"""The same numbers on any number of devices, and nothing moved that need not be."""

import functools
import os
import re

import chex
from helpers import expand, fit as trained, no_scaling, squeeze, start
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
import optax
import pytest

from hydra_jax import UserError
from hydra_jax.devices import collectives
from hydra_jax.devices.layout import SINGLE_DEVICE, make_layout
from hydra_jax.devices.preemption import Preempted
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment.plan import arrange, mesh_axes
from hydra_jax.experiment.teachers import online_teacher
from hydra_jax.maths import losses
from hydra_jax.methods import latent_factor
from hydra_jax.methods.supervised import with_dropout
from hydra_jax.nets import cut, zoo
from hydra_jax.nets.stages import mlp
from hydra_jax.training import augment, batches, checkpoints
from hydra_jax.training.program import Inputs, head_specs, make_program
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Draw, Job

DEVICES = 8
H, N, B, C, STEPS = 8, 60, 16, 3, 12
RANDOM = np.random.default_rng(0)
FLAT, IMAGES = (RANDOM.normal(size=(N, *s)).astype(np.float32) for s in ((5,), (8, 8, 3)))
LABELS = RANDOM.integers(C, size=N).astype(np.int32)
TEACHER = RANDOM.normal(size=(H, N, C)).astype(np.float32)
LAYOUTS = {'8x1': (8, 1), '4x2': (4, 2), '2x4': (2, 4), '1x8': (1, 8), 'pmap': (8, 1)}


def settings(data=-1, head=1, mode='shard_map'):
  return ConfigDict(dict(mode=mode, mesh=dict(data=data, head=head)))


def layout(name, network, draws_heads=False):
  if name == 'alone':
    return SINGLE_DEVICE
  chosen = settings(*LAYOUTS[name], 'pmap' if name == 'pmap' else 'shard_map')
  return make_layout(chosen.mode, arrange(chosen, DEVICES, network, draws_heads, B, 'it'))


def label(outputs, batch):
  return losses.cross_entropy(outputs, batch['y'])


def member(outputs, batch):
  teacher = batch['teacher'] if 'drawn' in batch else batch['teacher'][batch.get('heads', jnp.arange(H))]
  return losses.hydra(outputs, teacher, 2.0)


def with_mean(outputs, batch):
  """The loss of Hydra by default: with a term on the mean of all heads, which may be on other devices."""
  return member(outputs, batch) + 3 * losses.mean_term(outputs, batch['teacher'], batch['common'])


def similarity(params):
  over_devices = functools.partial(collectives.mean_over, 'head')
  return 0.5 * losses.similarity([params['heads'][0]['Dense_0']['kernel']], over_devices)


def case(stages, at=0, heads=H, loss=label, reduction='sum', x=FLAT, optimizer=None, views=(), **step):
  return stages, at, heads, loss, reduction, x, optimizer or optax.adam(1e-2), views, step


CASES = {
  'ensemble': case(lambda: mlp(C, (8, 7))),
  'ensemble in groups': case(lambda: mlp(C, (8, 7)), heads_per_chunk=1),
  'ensemble with dropout': case(lambda: with_dropout(mlp(C, (8, 7)), 0.3)),
  'hydra': case(lambda: mlp(C, (8, 7)), 1, loss=with_mean, reduction='mean', common=jax.nn.softmax),
  'hydra in chunks': case(
    lambda: mlp(C, (8, 7)), 1, loss=with_mean, reduction='mean', common=jax.nn.softmax, heads_per_chunk=1
  ),
  'hydra kept apart': case(lambda: mlp(C, (8, 7)), 1, loss=member, reduction='mean', penalty=similarity),
  'some heads': case(lambda: mlp(C, (8, 7)), 1, loss=member, reduction='mean', draw=Draw(H, 3, with_heads=True)),
  'one network': case(lambda: mlp(C, (8,)), heads=1),
  'mixed inputs': case(lambda: mlp(C, (8,)), heads=1, views=('mixup', 'noise')),
  'residual': case(
    lambda: zoo.resnet(C, 8, 4), -2, 4, x=IMAGES, optimizer=optax.sgd(0.02, 0.9), views=('crop', 'flip', 'cutout')
  ),
}


def fit(name, layout_name, source=None, job=(), **kwargs):
  stages, at, heads, loss, reduction, x, optimizer, views, options = CASES[name]
  network, shown = cut.multi_head(stages(), at, heads), []
  state = trained(
    network,
    loss,
    source or {'x': x, 'y': LABELS, 'teacher': TEACHER},
    steps=STEPS,
    reduction=reduction,
    optimizer=optimizer,
    batch_size=B,
    layout=layout(layout_name, network, 'draw' in options),
    job={'augment': augment.build(views, x.ndim), **options, **dict(job)},
    progress=lambda call: shown.append((call.step, call.loss, *call.gradient_norms)),
    **kwargs,
  )
  return jax.tree.map(np.asarray, state), shown


@pytest.fixture(scope='module')
def alone():
  """What one device finds in each case, once it is asked for."""
  return functools.cache(lambda name: fit(name, 'alone'))


# Compilation takes the time, so only what differs most is tried everywhere.
EVERYWHERE = ('hydra',)
HEADS_STAY = ('some heads', 'one network', 'mixed inputs')


QUICK = [('hydra', '2x4'), ('hydra', 'pmap')]


def combinations():
  for name in CASES:
    for where in LAYOUTS if name in EVERYWHERE else ('8x1',) if name in HEADS_STAY else ('2x4',):
      yield pytest.param(name, where, marks=[pytest.mark.slow] * ((name, where) not in QUICK))


@pytest.mark.parametrize('name, where', list(combinations()))
def test_any_layout_trains_the_same(name, where, alone):
  expected, told = alone(name)
  found, shown = fit(name, where)
  chex.assert_trees_all_close(found, expected, rtol=2e-3, atol=2e-4)
  np.testing.assert_allclose(mean_loss(shown), mean_loss(told), rtol=1e-3)
  np.testing.assert_allclose(shown[-1][2], told[-1][2], rtol=2e-3)


def mean_loss(shown):
  """Over all steps, from the means over those of each call."""
  steps, losses, _ = zip(*shown)
  return np.sum(np.diff((0, *steps)) * losses) / steps[-1]


def compiled(name, where):
  """The compiled training program of a case, as text."""
  stages, at, heads, loss, reduction, x, optimizer, _, options = CASES[name]
  network = cut.multi_head(stages(), at, heads)
  spread = layout(where, network)
  state = expand(start(network, optimizer, x[:2]))
  job = Job(network=network, loss=loss, reduction=reduction, optimizer=optimizer, steps=STEPS, batch_size=B, **options)
  program = make_program(job, spread, state, x.shape[1:])
  data = spread.replicate(expand({'x': x, 'y': LABELS, 'teacher': TEACHER}))
  key = np.zeros((1, 2), np.uint32)
  index, votes = np.zeros((1, STEPS, B), np.int32), spread.vote(np.zeros(3, np.int32))
  inputs = Inputs(data, spread.replicate(no_scaling()), (), index, 5, key, votes)
  return program.lower(spread.put(state, head_specs(state)), inputs).compile().as_text()


@pytest.mark.parametrize('name, where', [('hydra', '2x4'), ('ensemble', '1x8'), ('hydra kept apart', '4x2')])
def test_heads_on_devices_of_their_own_gather_nothing(name, where):
  text = compiled(name, where)
  assert 'all-reduce' in text
  for moved in ('all-gather', 'all-to-all', 'collective-permute', 'reduce-scatter'):
    assert moved not in text


@pytest.mark.parametrize('where', ['8x1', '4x2', '1x8'])
def test_the_vote_waits_for_the_steps(where):
  """XLA's CPU backend runs independent collectives in any order, and devices may then wait for ever."""
  lines = {}
  for line in compiled('hydra', where).partition('\nENTRY ')[2].splitlines():
    name, equals, rest = line.strip().removeprefix('ROOT ').partition(' = ')
    if equals:
      lines[name] = rest
  (vote,) = [name for name, rest in lines.items() if re.match(r's32\[3\]\S* all-reduce', rest)]
  reached, waiting = set(), [vote]
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      waiting += [operand for operand in re.findall(r'%[\w.-]+', lines[name]) if operand in lines]
  assert any(' while(' in lines[name] for name in reached)


def test_a_teacher_is_spread_as_its_students_are():
  """Members predict where they lie, what they say is gathered, and nothing else changes."""
  teacher = cut.multi_head(mlp(C, (6,)), 0, H)
  held = teacher.init(jax.random.key(8), FLAT[:2])

  def at_hand(where):
    model = Model(teacher, *held, no_scaling(), None)
    return online_teacher([model], layout(where, teacher), TrainingSettings())

  alone, spread = (fit('hydra', where, job={'teacher': at_hand(where)})[0] for where in ('alone', '2x4'))
  is_spread = lambda where: any('head' in spec for spec in jax.tree.leaves(at_hand(where).specs))
  assert is_spread('2x4')
  chex.assert_trees_all_close(spread, alone, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('where', ['4x2', 'pmap'])
def test_each_device_reads_its_rows_of_a_stream(where, alone):
  read = lambda row, random: {'x': FLAT[row], 'y': LABELS[row]}
  found, _ = fit('ensemble', where, batches.streamed(N, FLAT.shape[1:], read, no_scaling()))
  chex.assert_trees_all_close(found, alone('ensemble')[0], rtol=2e-3, atol=2e-4)


def test_gaussian_distillation_sums_over_the_whole_batch(random):
  outputs = jnp.asarray(random.normal(size=(1, B, C * latent_factor.width(2))), jnp.float32)
  teacher = jnp.asarray(TEACHER[:, :B])
  loss = lambda outputs, teacher: collectives.mean_over(
    'data', jnp.mean(latent_factor.expanded_nll(outputs, teacher, 2))
  )
  mesh = layout('8x1', cut.multi_head(mlp(C), 0, 1)).mesh
  specs = P(None, 'data')
  spread = jax.shard_map(loss, mesh=mesh, in_specs=(specs, specs), out_specs=P(), check_vma=False)
  np.testing.assert_allclose(jax.jit(spread)(outputs, teacher), loss(outputs, teacher), rtol=1e-5)


@pytest.mark.parametrize('where', ['4x2', 'alone', 'pmap'])
def test_a_checkpoint_continues_on_other_devices(where, tmp_path, alone):
  saver = checkpoints.Saver(tmp_path, 2)
  fit('hydra', '2x4', until=7, save=lambda state: saver.save(int(state.step), expand(state)), save_every=0.0)
  saver.wait()
  steps = checkpoints.steps(tmp_path)
  assert len(steps) == 2 and 0 < steps[-1] < STEPS
  stages, at, heads, *_, optimizer, _, _ = CASES['hydra']
  network = cut.multi_head(stages(), at, heads)
  spread = layout(where, network)
  state = expand(start(network, optimizer, FLAT[:2]))
  like = spread.plain(spread.put(state, head_specs(state)))
  found, _ = fit('hydra', where, state=squeeze(checkpoints.latest(tmp_path, like)))
  chex.assert_trees_all_close(found, alone('hydra')[0], rtol=2e-3, atol=2e-4)


def test_a_damaged_checkpoint_is_left_out(tmp_path, caplog):
  saver = checkpoints.Saver(tmp_path, 3)
  for step in (1, 2, 3):
    saver.save(step, {'a': jnp.full((50, 50), step)})
  saver.wait()
  victim = max((p for p in (tmp_path / '3' / 'state').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  os.truncate(victim, victim.stat().st_size // 2)
  (tmp_path / '2' / 'MANIFEST.json').write_text('{')
  found = checkpoints.latest(tmp_path, {'a': jnp.zeros((50, 50), jnp.int32)})
  assert np.all(found['a'] == 1) and checkpoints.steps(tmp_path) == [1]
  assert caplog.text.count('is damaged: left out') == 2


def test_asked_to_stop_it_saves_where_it_stops(alone):
  saved, asked = [], iter([False, False, True])
  keep = lambda state: saved.append(jax.tree.map(np.array, state))
  with pytest.raises(Preempted, match='stopped at step'):
    fit('hydra', '2x4', stopping=lambda: next(asked, True), save=keep, steps_per_call=1)
  (state,) = saved
  assert 2 <= state.step <= 4
  chex.assert_trees_all_close(fit('hydra', '2x4', state=state)[0], alone('hydra')[0], rtol=2e-3, atol=2e-4)


MESHES = {
  'an axis of 3': (dict(data=-1, head=3), r'set it to one of \[1, 2, 4, 8\]'),
  'data=2 by head=2': (dict(data=2, head=2), 'there are 8 devices'),
  'can be -1': (dict(data=-1, head=-1), 'set the other'),
  '6 heads or members': (dict(data=2, head=4), r'set that to one of \[1, 2\], or their number to a multiple of 4'),
  'does not divide over 8': (dict(data=8, head=1), 'set it to 8 or 16'),
}


@pytest.mark.parametrize('what', MESHES)
def test_what_does_not_divide_is_refused_with_what_does(what):
  mesh, legal = MESHES[what]
  with pytest.raises(UserError, match=f'(?s){what}.*{legal}'):
    arrange(settings(**mesh), DEVICES, cut.multi_head(mlp(C), 0, 6), 0, 12, 'it')
  with pytest.raises(UserError, match='head to 1'):
    mesh_axes(settings(-1, 2, 'pmap'), DEVICES)


def test_one_network_lies_along_data_as_far_as_its_batch_divides():
  one = cut.multi_head(mlp(C), 0, 1)
  assert arrange(settings(-1, 4), 8, one, 0, 16, 'it') == (8, 1, 1)
  assert arrange(settings(-1, 4), 8, one, 0, 12, 'it') == (4, 1, 2)
