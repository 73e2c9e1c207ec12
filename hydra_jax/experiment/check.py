"""What an experiment will take on given devices, from shapes alone: neither the data nor the devices are needed."""

from collections.abc import Iterator
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from hydra_jax.data import About, about, outside_sets
from hydra_jax.devices import parallel
from hydra_jax.errors import look_up
from hydra_jax.evaluation import cost
from hydra_jax.experiment import artifacts, config as configs
from hydra_jax.experiment.pipeline import count_members
from hydra_jax.methods.base import Phase
from hydra_jax.nets.cut import belongs_to_heads
from hydra_jax.progress import console, say
from hydra_jax.training import optimizers, train


class Plan(NamedTuple):
  """One phase on a mesh.

  Attributes:
    name: Of the method, and of the phase.
    mesh: Devices along each axis.
    parameters: Their number, in the whole network.
    flops: Of a prediction for one example.
    leaves: Name, shape, axes it is spread over, and bytes on each device, of all that training keeps.
  """

  name: str
  mesh: parallel.Shape
  parameters: int
  flops: float
  leaves: list[tuple[str, tuple[int, ...], P, int]]

  @property
  def bytes_per_device(self) -> int:
    """Of parameters, statistics, and what the optimizer keeps; without activations, gradients and data."""
    return sum(size for *_, size in self.leaves)


def plans(config: ConfigDict, devices: int) -> Iterator[Plan]:
  """A plan of every phase of an experiment; raises a `UserError` where a mesh, a batch or heads do not fit."""
  config.teacher.members = count_members(config)
  configs.validate(config)
  data = about(config.data)
  for name in config.data.ood:
    look_up(outside_sets(config.data), name.partition('[')[0], 'out-of-domain set')
  configs.settle(config, data.task)
  configs.validate(config, data.task, 1 + len(data.shape))
  for name, recipe in artifacts.recipes(config, data.task, data.outputs):
    for phase in artifacts.phases_of(recipe, config.execution.mapping):
      what, size = f'{name}: {phase.name}', recipe.settings.batch_size
      mesh = parallel.arranged(config.parallel, devices, phase, size, what)
      yield plan(what, phase, recipe.settings, data, mesh)


def plan(name: str, phase: Phase, settings: ConfigDict, data: About, mesh: parallel.Shape) -> Plan:
  """The plan of one phase."""
  x = jax.ShapeDtypeStruct((2, *data.shape), jnp.float32)
  optimizer = optimizers.build(settings, 2, 1.0, phase.frozen)
  state = jax.eval_shape(lambda key, x: train.init(phase.network, optimizer, key, x), jax.random.key(0), x)
  forward = lambda params, model_state, x: phase.network.apply(params, model_state, x)[0]
  leaves = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    tiled = belongs_to_heads(path) and mesh.head > 1
    size = math.prod(leaf.shape) * leaf.dtype.itemsize // (mesh.head if tiled else 1)
    leaves.append(
      (jax.tree_util.keystr(path, simple=True, separator='.'), leaf.shape, P('head') if tiled else P(), size)
    )
  return Plan(
    name,
    mesh,
    sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
    cost.count_flops(forward, state.params, state.model_state, x) / x.shape[0],
    leaves,
  )


def show(config: ConfigDict, devices: int) -> None:
  """Prints the plan of every phase, and where each leaf lies."""
  found = list(plans(config, devices))
  for each in found:
    leaves = Table('leaf', 'shape', 'spread over', box=box.SIMPLE_HEAD, title=each.name, title_justify='left')
    leaves.add_column('bytes per device', justify='right')
    for name, shape, spec, size in each.leaves:
      leaves.add_row(name, str(list(shape)), ', '.join(spec) or 'nothing, copied', f'{size:,}')
    console.print(leaves)
  summary = Table('phase', box=box.SIMPLE_HEAD)
  for heading in ('data × head', 'parameters', 'FLOPs per example', 'MiB per device'):
    summary.add_column(heading, justify='right')
  for each in found:
    mesh = f'{each.mesh.data} × {each.mesh.head}' + f' × {each.mesh.copy} copies' * (each.mesh.copy > 1)
    summary.add_row(
      each.name, mesh, f'{each.parameters:,}', f'{each.flops:,.0f}', f'{each.bytes_per_device / 2**20:,.2f}'
    )
  console.print(summary)
  say(f'fits {devices} devices; bytes are those of parameters, statistics and optimizer, without data and activations')
