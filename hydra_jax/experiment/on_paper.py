"""What training costs on accelerators that are not here: its programs are lowered for them, read, and not run.

Lowering is what JAX does before XLA compiles. So a program that a platform cannot have is found here, and what it
computes and sends is counted, not guessed. The time of a step is an estimate, see `Step.seconds`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, PartitionSpec as P
from ml_collections import ConfigDict
import numpy as np
from rich import box
from rich.table import Table

from hydra_jax.data import About, Scaling
from hydra_jax.devices import accelerators
from hydra_jax.devices.accelerators import Accelerator
from hydra_jax.devices.layout import AbsentLayout, Layout, MeshShape
from hydra_jax.evaluation import traffic
from hydra_jax.evaluation.evaluate import Model, concatenate_models
from hydra_jax.evaluation.traffic import Collective
from hydra_jax.experiment import artifacts, recipes
from hydra_jax.experiment.phases import assemble
from hydra_jax.experiment.plan import PlannedMethod, PlannedPhase, plan_of_config
from hydra_jax.experiment.teachers import online_teacher, predicts_in_step
from hydra_jax.formats import digits
from hydra_jax.nets.cut import shapes_of
from hydra_jax.progress import console
from hydra_jax.training.program import Inputs, head_specs, make_program
from hydra_jax.training.step import State, abstract_state

logger = logging.getLogger(__name__)

# What is assumed: shares of the published rates that a program reaches, and seconds that a collective takes at least.
COMPUTE, MEMORY, NETWORK = 0.4, 0.7, 0.7
LATENCY = 20e-6
# Times that a step reads or writes each parameter and each number of the optimizer: the gradient is written and read,
# and all are read and written.
PASSES_OF_PARAMETERS, PASSES_OF_OPTIMIZER = 4, 2


@dataclass(frozen=True)
class Step:
  """A training step of one phase, as one device sees it.

  Attributes:
    label: Of the phase.
    mesh: Devices along each axis.
    batch_size: Examples of a step, on all devices together.
    parameters: Bytes of parameters and of the state of the network.
    optimizer: Bytes that the optimizer keeps.
    batch: Bytes of its examples.
    flops: Floating-point operations of matrix products and convolutions.
    precision: Dtype of most products.
    products: Bytes that its products and convolutions read from memory and write to it.
    collectives: Of one array each.
    rounds: Number of collectives that wait for each other.
  """

  label: str
  mesh: MeshShape
  batch_size: int
  parameters: int
  optimizer: int
  batch: int
  flops: float
  precision: str
  products: int
  collectives: tuple[Collective, ...]
  rounds: int

  @property
  def memory(self) -> int:
    """Bytes that are read from memory and written to it: by products, and where parameters are updated."""
    return self.products + PASSES_OF_PARAMETERS * self.parameters + PASSES_OF_OPTIMIZER * self.optimizer

  @property
  def activations(self) -> float:
    """A rough number of bytes that wait for the way back: the input and the output of each product.

    A product and its two gradients read or write each of them three times. Members that only predict keep nothing, so
    this is too much where they do so in the step.
    """
    return self.products / 3

  @property
  def held(self) -> float:
    """A rough number of bytes that the device holds at once; gradients are as large as parameters."""
    return 2 * self.parameters + self.optimizer + self.batch + self.activations

  @property
  def sent(self) -> float:
    """Bytes that the device sends to others."""
    return sum(each.sent for each in self.collectives)

  def seconds(self, chip: Accelerator) -> dict[str, float]:
    """An estimate of how long computing, moving to and from memory, and collectives take by themselves.

    It assumes the shares of the published rates above. The time of a step is the longer of the first two, plus the
    last: that nothing is sent while something is computed.
    """
    peak = chip.bfloat16 if self.precision == 'bfloat16' else chip.float32
    sent = sum(each.sent / chip.rate_among(each.devices) for each in self.collectives if each.devices > 1)
    return {
      'compute': self.flops / (COMPUTE * peak),
      'memory': self.memory / (MEMORY * chip.memory_rate),
      'network': sent / NETWORK + LATENCY * self.rounds,
    }

  def total(self, chip: Accelerator) -> float:
    """An estimate of the seconds of a step, see `seconds`."""
    found = self.seconds(chip)
    return max(found['compute'], found['memory']) + found['network']


class Program(NamedTuple):
  """A training step that is traced, and the shapes that it is given.

  Attributes:
    traced: As `training.program.make_program` makes it.
    state: Of training.
    batch: Examples of a batch.
    teacher: Parameters of a teacher that predicts in the step, or ().
  """

  traced: Any
  state: State
  batch: dict[str, Any]
  teacher: Any


def absent(mesh: MeshShape, platform: str) -> AbsentLayout:
  """The layout of a phase on devices that are not here.

  Example:
    >>> absent(MeshShape(data=64, head=4), 'tpu').platform
    'tpu'
  """
  return AbsentLayout(AbstractMesh(tuple(mesh), MeshShape._fields), platform)


def program_of(
  config: ConfigDict, planned: PlannedPhase, data: About, teacher: Model | None, layout: Layout
) -> Program:
  """One training step of a phase, traced for the devices of a layout.

  Args:
    config: Of the experiment, settled.
    planned: The phase.
    data: What is trained on.
    teacher: What students learn from, see `teacher_of`.
    layout: The devices, which need not be here.
  """
  shaped, batch_size = jax.ShapeDtypeStruct, planned.training.batch_size
  members, online = 0, None
  if planned.phase.distils:
    members = len(teacher.network.heads) if teacher else config.teacher.members
    if teacher and predicts_in_step(data.varies, planned.training):
      online = online_teacher([teacher], layout, planned.training)
  job = assemble(config, planned, 1 + len(data.shape), batch_size, members, online)
  state = abstract_state(job.network, job.optimizer, data.shape)
  batch = {
    'x': shaped((1, batch_size, *data.shape), np.uint8 if len(data.shape) == 3 else np.float32),
    'y': shaped((1, batch_size), np.int32),
  }
  if data.task == 'regression':
    batch['y'] = shaped((1, batch_size, data.outputs), np.float32)
  if members and not online:
    outputs = data.outputs * (2 if data.task == 'regression' else 1)  # of a Gaussian, mean and variance
    batch['teacher'] = shaped((1, members, batch_size, outputs), config.teacher.keep_as)
  if planned.phase.folds:
    batch['fold'] = shaped((1, batch_size), np.int32)
  spec = P(None, 'data') if data.varies else P()
  batch = layout.spread(batch, jax.tree.map(lambda _: spec, batch))
  given = layout.spread(online.params, online.specs) if online else ()
  inputs = Inputs(
    data=batch,
    scaling=layout.replicate(Scaling(*(np.ones((1, 1), np.float32) for _ in Scaling._fields))),
    teacher=given,
    index=layout.spread(np.zeros((1, 1, batch_size), np.int32), P(None, None, 'data')),
    steps=layout.replicate(np.int32(1)),
    key=layout.replicate(np.zeros((1, 2), np.uint32)),
    vote=layout.vote(np.zeros(3, np.int32)),
  )
  program: Any = make_program(job, layout, state, data.shape, streams=data.varies, loops=False)
  state = layout.put(state, head_specs(state))
  return Program(program.trace(state, inputs), state, batch, given)


def teacher_of(config: ConfigDict, methods: Sequence[PlannedMethod], shape: Sequence[int]) -> Model | None:
  """What students learn from, with parameters that take no memory; None for predictions in a file."""
  if config.teacher.predictions:
    return None
  if config.teacher.checkpoints:
    own = recipes.user_functions(config)
    networks = [artifacts.network_of(folder, own)[2] for folder in config.teacher.checkpoints]
  else:
    networks = [next(m.phases[-1].phase.network for m in methods if m.recipe.role == 'teacher')]
  found, unscaled = [], Scaling(*(np.ones(1, np.float32) for _ in Scaling._fields))
  for network in networks:
    trees = jax.tree.map(
      lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), shapes_of(network, tuple(shape))
    )
    found.append(Model(network, trees[0], trees[1], unscaled, lambda outputs: outputs))
  return found[0] if len(found) == 1 else concatenate_models(found)


def step_of(planned: PlannedPhase, program: Program) -> Step:
  """What a step costs, as its program says."""
  jaxpr, state = program.traced.jaxpr.jaxpr, program.state
  parameters, optimizer = (_bytes_here(tree) for tree in (state[1:3], state.opt_state))
  return Step(
    label=planned.label,
    mesh=planned.mesh,
    batch_size=planned.training.batch_size,
    parameters=parameters,
    optimizer=optimizer,
    batch=_bytes_of_batch(program.batch, planned.mesh.data),
    flops=traffic.product_flops(jaxpr),
    precision=traffic.precision(jaxpr),
    products=traffic.memory_traffic(jaxpr),
    collectives=tuple(traffic.collectives(jaxpr)),
    rounds=traffic.rounds(jaxpr),
  )


def _bytes_here(tree: Any) -> int:
  """Bytes of arrays on one device."""
  sizes = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  return sum(map(sizes, jax.tree.leaves(tree)))


def _bytes_of_batch(batch: dict[str, Any], devices: int) -> int:
  """Bytes of the rows that one device reads."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in batch.values()) // devices


def steps_of(config: ConfigDict, devices: int, platform: str, data_dir: str = '') -> list[Step]:
  """A training step of each phase of an experiment, lowered for devices that are not here.

  Args:
    config: The experiment; what the data decide is set in it.
    devices: Their number.
    platform: `tpu` or `cuda`.
    data_dir: Where data sets are.

  Raises:
    UserError: Something does not fit, see `plan`.
  """
  data, methods = plan_of_config(config, devices, data_dir)
  teacher, found = teacher_of(config, methods, data.shape), []
  for planned in (phase for method in methods for phase in method.phases):
    layout = absent(planned.mesh, platform)
    program = program_of(config, planned, data, teacher, layout)
    program.traced.lower(lowering_platforms=(platform,))
    found.append(step_of(planned, program))
  return found


def show(config: ConfigDict, devices: int, platform: str, data_dir: str = '') -> None:
  """Prints what a training step of each phase takes on devices that are not here, and an estimate of its time."""
  chip = accelerators.find(platform, devices)
  steps = steps_of(config, devices, chip.platform, data_dir)
  held = Table('phase', box=box.SIMPLE_HEAD, title='one device, one training step', title_justify='left')
  of_bytes = ('params MiB', 'optim. MiB', 'batch MiB', 'all ≈ MiB')
  for heading in ('data × head', *of_bytes, 'GFLOPs', 'sent MiB', 'collectives'):
    held.add_column(heading, justify='right')
  for step in steps:
    copies = f' × {step.mesh.copy} copies' if step.mesh.copy > 1 else ''
    counts = Counter(each.kind.replace('_', '-') for each in step.collectives)
    kinds = ', '.join(f'{count} {kind}' for kind, count in counts.items()) or 'none'
    sizes = (f'{size / 2**20:,.2f}' for size in (step.parameters, step.optimizer, step.batch, step.held))
    mesh = f'{step.mesh.data} × {step.mesh.head}{copies}'
    held.add_row(step.label, mesh, *sizes, f'{step.flops / 1e9:,.3g}', f'{step.sent / 2**20:,.2f}', kinds)
  times = Table('phase', box=box.SIMPLE_HEAD, title=f'estimate for {platform}', title_justify='left')
  for heading in ('compute ms', 'memory ms', 'network ms', 'step ms', 'examples/s', 'limited by'):
    times.add_column(heading, justify='right')
  for step in steps:
    found, total = step.seconds(chip), step.total(chip)
    shown = (digits(1e3 * seconds) for seconds in (*found.values(), total))
    times.add_row(step.label, *shown, f'{step.batch_size / total:,.0f}', max(found, key=lambda name: found[name]))
  console.print(held)
  console.print(times)
  console.print(assumptions(platform, devices))
  if (most := max(step.held for step in steps)) > chip.memory:
    logger.warning(
      f'a step holds about {most / 1e9:.3g} GB on a device that has {chip.memory / 1e9:.3g} GB: take more devices, a '
      'smaller batch, or more devices for members and heads (config.parallel.mesh.head)'
    )
  if config.parallel.mode == 'pmap':
    logger.info('pmap needs devices that are here: the programs were lowered under shard_map, which is the same step')


def assumptions(platform: str, devices: int) -> str:
  """What an estimate is and what it assumes, in a few sentences."""
  return (
    f'An estimate, not a measurement: the programs were lowered for {devices} devices of {platform}, and none was run. '
    f'Assumed are {COMPUTE:.0%} of the published peak of matrix products, {MEMORY:.0%} of the memory bandwidth, '
    f'{NETWORK:.0%} of the bandwidth between devices, {1e6 * LATENCY:.0f} µs for each collective that waits for '
    'another, and that sending and computing do not overlap. What a device holds in all is '
    'parameters, gradients, optimizer, batch, and for activations a third of what products move. The start of kernels, '
    'input, checkpoints and evaluation are left out.'
  )
