"""Programs for accelerators that are not here: they lower, hold what they should and nothing of the CPU, and what
`hydra-jax check --platform` says of them is what stands in them.
"""

from collections import Counter
import dataclasses
import functools
import re

from helpers import expand, no_scaling, start
import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from hydra_jax import UserError, cli
from hydra_jax.cli import read_config
from hydra_jax.devices import accelerators
from hydra_jax.devices.accelerators import ACCELERATORS, Accelerator
from hydra_jax.devices.layout import MeshShape, PmapLayout, make_layout
from hydra_jax.evaluation import evaluate, traffic
from hydra_jax.experiment import on_paper
from hydra_jax.experiment.plan import plan_of_config
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut, zoo
from hydra_jax.nets.stages import mlp
from hydra_jax.training.program import Inputs, make_program
from hydra_jax.training.step import Job

PLATFORMS = ('tpu', 'cuda')
MEMBERS, BATCH = 4, 256
KIND = re.compile(r'stablehlo\.(all_reduce|all_gather|all_to_all|collective_permute|reduce_scatter)\b')


def collectives_in(text: str) -> Counter:
  """Those of a module, by kind; of a function that is called several times, as often."""
  functions = {name: body for name, body in re.findall(r'func\.func \w+ @(\w+)\((.*?)\n  }', text, flags=re.S)}

  def count(name: str) -> Counter:
    found = Counter(KIND.findall(functions[name]))
    for called in re.findall(r'call @(\w+)\(', functions[name]):
      found += count(called)
    return found

  return count('main')


def has_tricks_of_cpus(text: str) -> bool:
  return 'optimization_barrier' in text


def is_for_accelerators(text: str) -> bool:
  """No callback to the host, no call of a library, no barrier, and heads that are mapped and not written out."""
  return not any(word in text for word in ('callback', 'custom_call', 'infeed', 'outfeed')) and not has_tricks_of_cpus(
    text
  )


def residual(dtype: str) -> list[str]:
  """Values of a config with small residual networks, and a Hydra that reads kept predictions."""
  network = ('name=resnet', 'depth=8', 'width=4', f'dtype={dtype}')
  return [
    'student.hydra.augment=()',
    *(f'network.{role}.{each}' for role in ('teacher', 'student') for each in network),
  ]


@functools.cache
def planned_of(*more: str):
  """An experiment, its data, its phases and its teacher, for a mesh with four devices along head."""
  given = (f'training.batch_size={BATCH}', 'parallel.mesh.head=4', "students=('hydra',)", *more)
  config = read_config(f'configs/digits.py:members={MEMBERS}', [f'--config.{each}' for each in given])
  data, methods = plan_of_config(config, 8)
  phases = [phase for method in methods for phase in method.phases]
  return config, data, phases, on_paper.teacher_of(config, methods, data.shape)


def traced(devices: int, phase: int, *more: str, platform='tpu'):
  """A phase, and its step traced for some devices; 0 is the ensemble and 1 Hydra."""
  config, data, phases, teacher = planned_of(*more)
  planned = dataclasses.replace(phases[phase], mesh=MeshShape(devices // 4, 4))
  return planned, on_paper.program_of(config, planned, data, teacher, on_paper.absent(planned.mesh, platform))


def expected(planned, program, gathered=0) -> Counter:
  """What a step sends.

  A mean over `data` of each gradient, of the loss and of each statistic, and two of the moments of each batch norm.

  A sum over `head` of each gradient of the body. Two sums that join the losses of all heads, one maximum of votes, and
  where losses have something in common, its mean. The predictions of the members, and inputs that are mixed.
  """
  leaves = lambda tree: len(jax.tree.leaves(tree))
  state, norms = program.state, leaves(program.state.model_state) // 2
  means = leaves(state.params) + 1 + leaves(state.model_state) + 2 * norms
  reduced = means + leaves(state.params['body']) + 3 + (planned.phase.common is not None)
  return Counter({'all_reduce': reduced} | ({'all_gather': gathered} if gathered else {}))


def check_modules(program, wanted: Counter):
  for platform in PLATFORMS:
    text = program.traced.lower(lowering_platforms=(platform,)).as_text()
    assert collectives_in(text) == wanted and is_for_accelerators(text)
  jaxpr = program.traced.jaxpr.jaxpr
  assert Counter(each.kind for each in traffic.collectives(jaxpr)) == wanted


@pytest.mark.parametrize('devices', [8, 64, 256])
def test_mlps_lower_for_accelerators(devices):
  """The ensemble, and a Hydra whose teacher predicts in the step on mixed inputs."""
  for phase, gathered in enumerate((0, 1 + 1)):
    planned, program = traced(devices, phase, "student.hydra.augment=('mixup',)")
    check_modules(program, expected(planned, program, gathered))


@pytest.mark.parametrize('dtype, devices', [('float32', 8), ('float32', 256), ('bfloat16', 64), ('bfloat16', 256)])
def test_residual_networks_lower_for_accelerators(dtype, devices):
  planned, program = traced(devices, 1, *residual(dtype))
  check_modules(program, expected(planned, program))
  assert traffic.precision(program.traced.jaxpr.jaxpr) == dtype


def test_members_with_folds_lower_for_accelerators():
  """The members, those that leave out a fold, which send no more, and a Hydra that reads what these predict."""
  for phase in range(3):
    planned, program = traced(8, phase, 'student.hydra.augment=()', 'distillation.folds=2')
    assert len(planned.phase.network.heads) == (2 if phase == 1 else 1) * MEMBERS
    check_modules(program, expected(planned, program))


def test_students_of_fixed_views_lower_for_accelerators():
  """They send what students of kept predictions send: no member is in their step."""
  planned, program = traced(8, 1, "student.hydra.augment=('noise',)", 'distillation.views=3')
  assert planned.training.fixed_views == 3 and program.teacher == ()
  check_modules(program, expected(planned, program))


def test_the_platform_is_that_of_the_layout():
  """On this CPU, a program for CPUs has what is fast there: the test above can fail."""
  _, program = traced(8, 1, *residual('float32'), platform='cpu')
  text = program.traced.lower(lowering_platforms=('cpu',)).as_text()
  assert has_tricks_of_cpus(text)


class PmapElsewhere(PmapLayout):
  """pmap takes devices that are there, so its program is traced on those of this process for others."""

  platform = 'tpu'


@pytest.mark.parametrize(
  'stages, shape', [(lambda: mlp(3, (8,)), (5,)), (lambda: zoo.resnet(3, 8, 4, dtype='bfloat16'), (8, 8, 3))]
)
def test_pmap_lowers_for_accelerators(stages, shape):
  network, optimizer = cut.multi_head(stages(), -1, 2), optax.adam(1e-2)
  label = lambda outputs, batch: losses.cross_entropy(outputs, batch['y'])
  job = Job(network=network, loss=label, reduction='mean', optimizer=optimizer, steps=2, batch_size=16)
  x, y = np.zeros((16, *shape), np.float32), np.zeros(16, np.int32)
  shapes = jax.eval_shape(lambda: start(network, optimizer, x[:2]))
  state = expand(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
  layout = PmapElsewhere(make_layout('pmap', MeshShape(data=8)).mesh)
  program = make_program(job, layout, state, shape, loops=False)
  index, key = layout.index(np.zeros((1, 1, 16), np.int32)), np.zeros((1, 2), np.uint32)
  votes = layout.vote(np.zeros(3, np.int32))
  inputs = Inputs(expand({'x': x, 'y': y}), no_scaling(), (), index, np.int32(1), key, votes)
  lowered = jax.jit(program).trace(layout.put(state, None), inputs)
  leaves = lambda tree: len(jax.tree.leaves(tree))
  wanted = leaves(state.params) + 1 + 2 * leaves(state.model_state) + 1
  text = lowered.lower(lowering_platforms=PLATFORMS).as_text()
  assert collectives_in(text) == Counter(all_reduce=wanted) and is_for_accelerators(text)


@pytest.mark.parametrize('stages, shape', [(lambda: mlp(3, (8,)), (5,)), (lambda: zoo.resnet(3, 8, 4), (8, 8, 3))])
def test_predictions_lower_for_accelerators(stages, shape):
  """Outputs, and scores; each runs on one device, and a convolution of all heads is one."""
  network, layout = cut.multi_head(stages(), 0, 3), on_paper.absent(MeshShape(), 'tpu')
  x = jax.ShapeDtypeStruct((7, *shape), np.float32)
  trees = jax.eval_shape(network.init, jax.random.key(0), x)
  scaling, task = no_scaling(), 'classification'
  read = TASKS[task].predictives['members'].read
  y = jax.ShapeDtypeStruct((7,), np.int32)
  of_scores = evaluate.scoring(network, shape, read, task, (), layout).trace(*trees, scaling, None, x, y)
  for each in (evaluate.predicting(network, shape, layout).trace(*trees, scaling, x), of_scores):
    for platform in PLATFORMS:
      text = each.lower(lowering_platforms=(platform,)).as_text()
      assert not collectives_in(text) and is_for_accelerators(text)
      assert text.count('stablehlo.convolution') == (7 if len(shape) == 3 else 0)


def test_flops_bytes_and_collectives_are_those_of_one_device():
  """A product of rows that are spread over 4 devices, whose gradient is averaged, in a loop of 3 turns."""
  layout = on_paper.absent(MeshShape(data=4, head=2), 'tpu')
  spec = jax.sharding.PartitionSpec

  def f(w, x):
    turn = lambda w, _: (w - jax.lax.pmean(x.T @ (x @ w), 'data'), None)
    return jax.lax.scan(turn, w, None, 3)[0], jax.lax.pmax(w[0, 0], ('data', 'head'))

  program = layout.compile(f, (spec(), spec('data')), (spec(), spec()), {})
  arrays = np.zeros((6, 5), np.float32), np.zeros((8, 6), np.float32)
  jaxpr = program.trace(*layout.spread(arrays, (spec(), spec('data')))).jaxpr.jaxpr
  product = 2 * (8 // 4) * 6 * 5
  assert traffic.product_flops(jaxpr) == 3 * 2 * product
  first, last = traffic.collectives(jaxpr)
  assert first == traffic.Collective('all_reduce', ('data',), 4, 6 * 5 * 4, 3) and last.devices == 8
  assert first.sent == 3 * 2 * 120 * 3 / 4 and last.sent == 2 * 4 * 7 / 8
  read_and_written = (12 + 30 + 10) + (12 + 10 + 30)
  assert traffic.memory_traffic(jaxpr) == 3 * 4 * read_and_written
  assert traffic.rounds(jaxpr) == 3


def step(**changes):
  given = dict(
    label='it', mesh=MeshShape(8), batch_size=16, parameters=4, optimizer=8, batch=1, flops=2e9, precision='bfloat16'
  )
  collective = traffic.Collective('all_reduce', ('data',), 8, 70_000, 1)
  return on_paper.Step(**(given | dict(products=10**6, collectives=(collective,), rounds=1) | changes))


def test_the_time_of_a_step_by_hand(monkeypatch):
  chip = Accelerator('cuda', 1e13, 5e12, 1e9, 1e10, 1e9, group=8, network_rate=1e8)
  monkeypatch.setattr(on_paper, 'LATENCY', 1e-5)
  found = step().seconds(chip)
  moved = 1e6 + 4 * 4 + 2 * 8
  assert found == pytest.approx({'compute': 2e9 / 4e12, 'memory': moved / 7e9, 'network': 122_500 / 7e8 + 1e-5})
  assert step().held == pytest.approx(2 * 4 + 8 + 1 + 1e6 / 3)
  assert step().total(chip) == pytest.approx(found['compute'] + found['network'])
  assert step(precision='float32').seconds(chip)['compute'] == pytest.approx(2 * found['compute'])
  larger = dataclasses.replace(step().collectives[0], devices=16)
  assert step(collectives=(larger,)).seconds(chip)['network'] == pytest.approx(131_250 / 7e7 + 1e-5)
  assert step(collectives=(), rounds=0).total(chip) == pytest.approx(found['compute'])


def test_accelerators_are_those_of_their_makers():
  """As far as numbers hang together: peaks and bandwidths of one maker have ratios that do not depend on the chip."""
  assert set(ACCELERATORS) == {'tpu-v4', 'tpu-v5e', 'tpu-v5p', 'tpu-v6e', 'a100', 'h100', 'h200'}
  for chip in ACCELERATORS.values():
    assert chip.bfloat16 / chip.float32 == pytest.approx(1 if chip.platform == 'tpu' else 2, rel=2e-3)
    assert 100 < chip.bfloat16 / chip.memory_rate < 600 and 3 < chip.memory_rate / chip.link_rate < 11
  with pytest.raises(UserError, match='at most 256 chips'):
    accelerators.find('tpu-v5e', 257)


def test_the_command_estimates_a_step_without_the_devices(monkeypatch, capsys):
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(on_paper, 'console', Console(width=160))  # whatever width the terminal has
  config = ('--config=digits:members=4', '--config.parallel.mesh.head=4', "--config.students=('hydra',)")
  more = ('--config.training.batch_size=256', "--config.student.hydra.augment=('mixup',)")
  assert cli.main(['check', *config, *more, '--devices=256', '--platform=tpu-v5e']) == 0
  said = capsys.readouterr().out
  assert re.search(r'hydra: members +64 × 4( +[\d.]+){6} +2 all-gather, 15 all-reduce', said)
  assert re.search(r'hydra: members( +\S+){5} +network', said)
  for words in ('An estimate, not a measurement', '40% of the published peak', 'none was run'):
    assert words in said


@pytest.mark.parametrize(
  'flags, said',
  [
    (['--platform=tpu-v5'], 'choose one of tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e, a100, h100, h200'),
    (['--platform='], '--platform= is not known'),
    (['--platform=tpu-v6e', '--devices=512'], 'at most 256 chips: set it to fewer'),
    (['--platform=h100', '--devices=3'], 'does not divide over 3 devices'),
  ],
)
def test_what_cannot_be_estimated_is_refused_in_a_line(flags, said, capsys, monkeypatch):
  monkeypatch.setattr('sys.unraisablehook', None)
  assert cli.main(['check', '--config=configs/digits.py:members=4', *flags]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert said in line
