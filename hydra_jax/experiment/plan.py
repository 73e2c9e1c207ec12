"""What an experiment trains, phase by phase, and how each phase lies on the devices.

`hydra-jax check` prints a plan, and `hydra-jax run` carries one out. Shapes alone are needed: neither data nor devices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from hydra_jax.data import About, about, outside_sets
from hydra_jax.devices.layout import MeshShape
from hydra_jax.errors import UserError, look_up
from hydra_jax.evaluation import cost
from hydra_jax.experiment import config as configs
from hydra_jax.experiment.recipes import Recipe, phases_of, recipes_in
from hydra_jax.experiment.schema import AUTO
from hydra_jax.experiment.teachers import count_members
from hydra_jax.methods.base import Phase
from hydra_jax.nets.cut import Network, belongs_to_heads, shapes_of
from hydra_jax.progress import console
from hydra_jax.training import optimizers
from hydra_jax.training.folds import leaving_out, of_heads
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import abstract_state

Leaf = tuple[str, tuple[int, ...], P, int]  # name, shape, axes it is spread over, bytes on each device


@dataclass(frozen=True)
class PlannedPhase:
  """One phase of a method, and the mesh on which it is trained.

  Attributes:
    label: Shown to the user.
    phase: What is trained.
    training: How it is trained.
    mesh: Devices along each axis.
  """

  label: str
  phase: Phase
  training: TrainingSettings
  mesh: MeshShape

  @property
  def epochs(self) -> float:
    """Passes over the training data."""
    return self.training.epochs if self.phase.epochs is None else self.phase.epochs


@dataclass(frozen=True)
class PlannedMethod:
  """The ensemble, or a student.

  Attributes:
    name: `ensemble`, or as under `config.student`. Several students of one name are candidates, of which the
      validation part decides. A teacher with `folds` in its settings has its members once for each fold, without it.
    choice: What it is distilled on, where there are candidates; the number of folds.
    recipe: What its phases are built from.
    phases: In order.
  """

  name: str
  recipe: Recipe
  phases: tuple[PlannedPhase, ...]
  choice: str = ''

  @property
  def label(self) -> str:
    """Shown to the user."""
    return f'{self.name}, {self.choice}' if self.choice else self.name


def plan(config: ConfigDict, data: About, devices: int) -> list[PlannedMethod]:
  """All that an experiment trains; each method is built once.

  Args:
    config: The experiment, checked by itself.
    data: What is trained on.
    devices: Their number, in all processes together.

  Raises:
    UserError: A network does not read such inputs, or a mesh, a batch or heads do not fit.
  """
  planned = []
  for name, choice, recipe in _candidates(recipes_in(config, data.task, data.outputs)):
    shown = f'{name}, {choice}' if choice else name
    phases = _phases(recipe, config.execution.mapping)
    shapes_of(phases[0].network, tuple(data.shape))  # raises an error where it does not read such inputs
    here, training = [], recipe.settings.training
    for phase in phases:
      label = f'{shown}: {phase.name}' if recipe.role == 'student' else f'{shown} of {len(phase.network.heads)}'
      mesh = arrange(config.parallel, devices, phase.network, draws_heads(phase, training), training.batch_size, label)
      here.append(PlannedPhase(label, phase, training, mesh))
    planned.append(PlannedMethod(name, recipe, tuple(here), choice))
  return planned


def _phases(recipe: Recipe, mapping: str) -> list[Phase]:
  """The phases of a method; the networks of a teacher with folds each leave out the examples of one."""
  phases, folds = phases_of(recipe, mapping), recipe.settings.training.folds
  if recipe.role == 'student' or not folds:
    return phases
  leaves_out = lambda phase: leaving_out(phase.loss, of_heads(len(phase.network.heads), folds), folds)
  return [replace(phase, name='folds', loss=leaves_out(phase), folds=folds) for phase in phases]


# What a student may be distilled on where its inputs are chosen in the run: the first is taken unless another one
# predicts the labels of the validation part better.
CHOICES: dict[str, dict[str, Any]] = {
  'unchanged inputs': dict(augment=()),
  'inputs with noise': dict(augment=('noise',), augment_share=0.5),
}


def _candidates(recipes: Sequence[tuple[str, Recipe]]) -> Iterator[tuple[str, str, Recipe]]:
  """Names, choices and recipes of all that is trained."""
  counts = sorted({recipe.settings.training.folds for _, recipe in recipes} - {0})
  for name, recipe in recipes:
    settings = recipe.settings
    if recipe.role == 'teacher':
      yield name, '', recipe
      for folds in counts:
        training = replace(settings.training, folds=folds)
        more = replace(settings, training=training)
        yield name, f'{folds} folds', replace(recipe, settings=more, members=recipe.members * folds)
      continue
    if AUTO not in settings.training.augment:
      yield name, '', recipe
      continue
    for choice, changes in CHOICES.items():
      training = replace(settings.training, **changes)
      yield name, choice, replace(recipe, settings=replace(settings, training=training))


def draws_heads(phase: Phase, training: TrainingSettings) -> bool:
  """Whether each step of a phase trains other heads."""
  return bool(training.members_per_step) and phase.draws == 'heads'


def mesh_axes(settings: ConfigDict, devices: int) -> tuple[int, int]:
  """Devices along `data` and `head`, as `config.parallel` says, -1 being the rest.

  Raises:
    UserError: The mesh does not fit the devices; the message says what would.
  """
  data, head = settings.mesh.data, settings.mesh.head
  if settings.mode == 'pmap' and head != 1:
    raise UserError('config.parallel.mode=pmap spreads batches alone: set config.parallel.mesh.head to 1')
  if data == -1 and head == -1:
    raise UserError('config.parallel.mesh: one of data and head can be -1, the rest; set the other')
  given = head if data == -1 else data
  if -1 in (data, head):
    if devices % given:
      raise UserError(
        f'config.parallel.mesh has an axis of {given}, and there are {devices} devices: '
        f'set it to one of {_divisors(devices)}'
      )
    data, head = (devices // given if axis == -1 else axis for axis in (data, head))
  if data * head != devices:
    raise UserError(
      f'config.parallel.mesh is data={data} by head={head}, and there are {devices} devices: '
      'set one of them to -1, the rest'
    )
  return data, head


def arrange(
  settings: ConfigDict, devices: int, network: Network, draws_heads: bool, batch_size: int, label: str
) -> MeshShape:
  """The mesh of one phase.

  Three kinds of networks are not spread over `head`: one network, members that share kernels, and heads that are
  drawn at random in each step. For them, as many devices as divide the batch lie along `data`, and the rest along
  `copy`.

  Raises:
    UserError: A batch or heads do not divide; the message has the legal numbers.
  """
  data, head = mesh_axes(settings, devices)
  if batch_size % data:
    near = [data * k for k in (batch_size // data, batch_size // data + 1) if k]
    raise UserError(
      f"'{label}': batch_size={batch_size} does not divide over {data} devices along data: "
      f'set it to {" or ".join(map(str, near))}'
    )
  if draws_heads or not network.can_split:
    shared = math.gcd(batch_size, devices)
    return MeshShape(shared, 1, devices // shared)
  heads = len(network.heads)
  if heads % head:
    legal = [k for k in _divisors(heads) if devices % k == 0]
    raise UserError(
      f"'{label}': {heads} heads or members do not divide over config.parallel.mesh.head={head}: "
      f'set that to one of {legal}, or their number to a multiple of {head}'
    )
  return MeshShape(data, head, 1)


def _divisors(number: int) -> list[int]:
  return [k for k in range(1, number + 1) if number % k == 0]


def plan_of_config(config: ConfigDict, devices: int, data_dir: str = '') -> tuple[About, list[PlannedMethod]]:
  """The plan of an experiment whose data are not there; what the data decide is set in the config."""
  config.teacher.members = count_members(config)
  configs.validate(config)
  data = about(config.data, data_dir, config.validation)
  for name in config.data.ood:
    look_up(outside_sets(config.data, data_dir), name.partition('[')[0], 'out-of-domain set')
  configs.settle(config, data)
  configs.validate(config, data.task, 1 + len(data.shape))
  return data, plan(config, data, devices)


@dataclass(frozen=True)
class Size:
  """What a phase takes.

  Attributes:
    parameters: Their number, in the whole network.
    flops: Of a prediction for one example.
    leaves: All that training keeps: parameters, statistics, and what the optimizer keeps.
  """

  parameters: int
  flops: float
  leaves: list[Leaf]

  @property
  def bytes_per_device(self) -> int:
    """Of all leaves; without activations, gradients and data."""
    return sum(size for *_, size in self.leaves)


def size_of(planned: PlannedPhase, shape: Sequence[int]) -> Size:
  """What a phase takes for inputs of a shape."""
  network, mesh = planned.phase.network, planned.mesh
  x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
  state = abstract_state(network, optimizers.build(planned.training, 2, 1.0, planned.phase.frozen), shape)
  forward = lambda params, model_state, x: network.apply(params, model_state, x)[0]
  leaves = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    tiled = belongs_to_heads(path) and mesh.head > 1
    size = math.prod(leaf.shape) * leaf.dtype.itemsize // (mesh.head if tiled else 1)
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    leaves.append((name, leaf.shape[1:], P('head') if tiled else P(), size))
  flops = cost.count_flops(forward, *shapes_of(network, tuple(shape)), x) / len(x)
  return Size(sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)), flops, leaves)


def show(config: ConfigDict, devices: int, data_dir: str = '') -> None:
  """Prints the plan of every phase, and where each leaf lies."""
  data, methods = plan_of_config(config, devices, data_dir)
  phases = [(phase, size_of(phase, data.shape)) for method in methods for phase in method.phases]
  for planned, size in phases:
    leaves = Table('leaf', 'shape', 'spread over', box=box.SIMPLE_HEAD, title=planned.label, title_justify='left')
    leaves.add_column('bytes per device', justify='right')
    for name, shape, spec, in_bytes in size.leaves:
      leaves.add_row(name, str(list(shape)), ', '.join(spec) or 'nothing, copied', f'{in_bytes:,}')
    console.print(leaves)
  summary = Table('phase', box=box.SIMPLE_HEAD)
  for heading in ('data × head', 'parameters', 'FLOPs per example', 'MiB per device'):
    summary.add_column(heading, justify='right')
  for planned, size in phases:
    copies = f' × {planned.mesh.copy} copies' if planned.mesh.copy > 1 else ''
    mesh = f'{planned.mesh.data} × {planned.mesh.head}{copies}'
    mebibytes = f'{size.bytes_per_device / 2**20:,.2f}'
    summary.add_row(planned.label, mesh, f'{size.parameters:,}', f'{size.flops:,.0f}', mebibytes)
  console.print(summary)
  console.print(
    f'fits {devices} devices; bytes are those of parameters, statistics and optimizer, without data and activations'
  )
