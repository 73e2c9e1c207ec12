"""How fast this is here: against PyTorch, against the machine's matrix product, and against itself.

    python -m experiments.bench [--output FILE] [--only ROW ...] [--rounds N] [--quick]

Each row of the table is a function below. Its contenders do the same work in float32: the same shapes,
the same batches in the same order, looked up in training data that lie in memory; the data are random.
They take turns: in each round every contender runs once, for 0.3 s or more, and ratios are formed within
the round, so that what else the machine does falls on all alike. Reported are the median over rounds, and
the least and the greatest. Compilation is never counted.

FILE is JSON with every timing; beside it come the tables as FILE.md and a figure as FILE-scaling.png.
PyTorch: pip install -e ".[bench]"; ONNX Runtime: pip install -e ".[onnx]".
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
from importlib import metadata
import json
import math
import os
from pathlib import Path
import platform
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hydra_jax
from hydra_jax import data as datas
from hydra_jax.data import Scaling, Split
from hydra_jax.devices import cpu
from hydra_jax.devices.layout import SINGLE_DEVICE
from hydra_jax.evaluation import cost, evaluate
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.nets import cut, zoo
from hydra_jax.nets.stages import Stage, chain, dense, from_linen, mlp
from hydra_jax.training import batches, gradients
from hydra_jax.training.program import Inputs, make_program
from hydra_jax.training.step import Job, State, grown_state, init_state, steps_for

Seconds = dict[str, list[float]]  # of one call of each contender, in each round
Rates = dict[str, float]  # work in a second of each contender, in one round


@dataclass(frozen=True)
class Contender:
  """One way to do the work. `run()` returns when `work`, a number of `unit`, is done."""

  name: str
  run: Callable[[], Any]
  work: float
  unit: str


@dataclass(frozen=True)
class Line:
  """A number to report, from the rates of one round, with a bound if it has a target."""

  name: str
  value: Callable[[Rates], float]
  at_least: float | None = None
  at_most: float | None = None


@dataclass(frozen=True)
class Row:
  """What is measured together; `draw(seconds, file)` is given the timings."""

  contenders: Sequence[Contender]
  lines: Sequence[Line]
  draw: Callable[[Seconds, Path], None] | None = None


@dataclass(frozen=True)
class Training:
  """A compiled program of training with what it is called with."""

  program: Callable
  state: State
  inputs: Inputs


# ---------------------------------------------------------------- our side

LOSSES = {
  'labels': lambda outputs, batch: losses.cross_entropy(outputs, batch['y']),
  'targets': lambda outputs, batch: losses.gaussian_nll(outputs, batch['y']),
  'mean': lambda outputs, batch: losses.distillation(outputs, batch['teacher']),
  'members': lambda outputs, batch: losses.hydra(outputs, batch['teacher'][batch.get('heads', slice(None))]),
}


def make_job(network: cut.Network, loss: str, optimizer, steps: int, batch_size: int, **options) -> Job:
  """Training of the sum over heads."""
  options |= dict(network=network, loss=LOSSES[loss], reduction='sum', optimizer=optimizer, steps=steps)
  return Job(batch_size=batch_size, **options)


def compiled(job: Job, state: State, shape: tuple[int, ...]) -> Callable:
  """The program that `loop.fit` calls."""
  one = cpu.on_cpu() and job.network.convolves(shape)
  return make_program(job, SINGLE_DEVICE, state, shape, loops=not one)


def inputs_of(data: dict, index: np.ndarray) -> Inputs:
  """What a program is called with, for data `[R, N, …]` and rows `[R, K, B]`."""
  replicas, steps, _ = index.shape
  no_scaling = Scaling(*(np.full((replicas, 1), value, np.float32) for value in (0, 1, 0, 1)))
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), replicas))
  return Inputs(data, no_scaling, (), jnp.asarray(index), steps, np.asarray(keys), np.int32([0]))


def training(network: cut.Network, loss: str, optimizer, data: dict, index: np.ndarray) -> Training:
  """Training of a new network, as many steps a call as `index` has, `[K, B]`, or `[R, K, B]` for replicas."""
  if index.ndim == 2:
    data, index = jax.tree.map(lambda leaf: leaf[None], data), index[None]
  replicas, steps, batch_size = index.shape
  job = make_job(network, loss, optimizer, 1000 * steps, batch_size)
  data = jax.tree.map(jnp.asarray, data)
  state = init_state(network, optimizer, jax.random.split(jax.random.key(0), replicas), data['x'][:, :2])
  return Training(compiled(job, state, data['x'].shape[2:]), state, inputs_of(data, index))


def lowered(job: Job, params, model_state, opt_state, batch) -> jax.stages.Compiled:
  """One step of training on a batch, compiled with what a program is compiled with."""
  size = sum(leaf.size for leaf in jax.tree.leaves(params)) / len(job.network.heads) * len(batch['x'])
  options = cpu.compiler_options(job.network.convolves(batch['x'].shape[1:]), size)

  def update(params, model_state, opt_state, batch, key):
    state = State(jnp.zeros((), jnp.int32), params, model_state, opt_state)
    grads, losses_H, model_state = gradients.of_step(job, state, batch, key)
    updates, opt_state = job.optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), model_state, opt_state, losses_H

  arguments = params, model_state, opt_state, batch, jax.random.key(0)
  return jax.jit(update, compiler_options=options).lower(*arguments).compile()


def trains(name: str, job: Training, work: float, unit: str) -> Contender:
  """Goes on training, call after call."""
  state = job.state

  def run():
    nonlocal state
    state, found = job.program(state, job.inputs)
    jax.block_until_ready(found)

  return Contender(name, run, work, unit)


def frozen(network: cut.Network) -> Callable:
  """Prediction of MNIST digits by a new network, with its parameters compiled in."""
  return evaluate.frozen(network, *jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 784))))


def predicts(name: str, f: Callable, x: jax.Array) -> Contender:
  """Predicts a batch, and waits for the outputs."""
  return Contender(name, lambda: jax.block_until_ready(f(x)), len(x), 'inputs')


@functools.cache
def scratch() -> tempfile.TemporaryDirectory:
  """A folder that is removed when this process ends."""
  return tempfile.TemporaryDirectory()


@functools.cache
def saved(heads: int, features: int) -> Path:
  """The folder of an MLP 100-100 of 10 classes, which was distilled for a moment; one head learns the mean."""
  data = classes(500, (features,), members=max(heads, 2))
  method = 'hydra' if heads > 1 else 'kd'
  make = functools.partial(mlp, widths=(100, 100))
  student = hydra_jax.distil(data['x'], data['teacher'], method, make, validation=0.0, verbose=False, epochs=1.0)
  folder = Path(scratch().name) / f'{heads} heads of {features} features'
  hydra_jax.save(student, folder)
  return folder


def process(name: str, code: str, *arguments: Any, work: float = 1, unit: str = 'processes', found=None) -> Contender:
  """Runs code in another process of Python; the numbers that it prints go to `found[name]`, a list of each run's."""
  command = [sys.executable, '-c', code, *map(str, arguments)]

  def run():
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    if found is not None:
      found.setdefault(name, []).append([float(number) for number in said.split()])

  return Contender(name, run, work, unit)


def printed(found: dict[str, list[list[float]]], name: str, place: int = 0) -> float:
  """The median over runs of a number that a process has printed."""
  return float(np.median([numbers[place] for numbers in found[name]]))


def most_groups(program: jax.stages.Compiled) -> int:
  """The most groups of any of its convolutions."""
  found = re.findall(r'(?:feature|batch)_group_count=(\d+)', program.as_text())
  return max(1, *map(int, found)) if found else 1


def product(size: int) -> Callable[[], Any]:
  """A product of two square matrices."""
  a = jnp.ones((size, size))
  f = jax.jit(lambda a: a @ a)
  return lambda: f(a).block_until_ready()


# ---------------------------------------------------------------- data, and what is needed to learn from them


def classes(examples: int, shape: tuple[int, ...], outputs: int = 10, members: int = 0) -> dict[str, np.ndarray]:
  """Random inputs with labels, and with the predictions of members if there are any."""
  random = np.random.default_rng(0)
  data = {
    'x': random.standard_normal((examples, *shape), np.float32),
    'y': random.integers(0, outputs, examples, np.int32),
  }
  if members:
    data['teacher'] = random.standard_normal((members, examples, outputs), np.float32)
  return data


def order(examples: int, steps: int, batch_size: int) -> np.ndarray:
  """Rows of the batches, `[steps, batch_size]`."""
  return batches.batch_indices((0,), 0, steps, examples, batch_size)


Layer = tuple[int, int, int]  # positions in the image, inputs to a unit, units


def mlp_layers(*widths: int) -> list[Layer]:
  """Layers of an MLP, from the width of its inputs to that of its outputs."""
  return [(1, inputs, units) for inputs, units in zip(widths, widths[1:])]


def resnet_layers(depth: int) -> list[Layer]:
  """Layers of a ResNet for CIFAR with 10 classes, 2 for each block, and the two at the ends."""
  layers, inputs = [(32**2, 27, 16)], 16
  for channels, size in ((16, 32), (32, 16), (64, 8)):
    for _ in range((depth - 2) // 6):
      layers += [(size**2, 9 * inputs, channels), (size**2, 9 * channels, channels)]
      inputs = channels
  return [*layers, (1, inputs, 10)]


def step_flops(layers: Sequence[Layer], batch_size: int, shared: int = 0, heads: int = 1) -> int:
  """Operations that a step cannot do without; `layers[shared:]` are there once for each head.

  Forward, gradient of the weights, and gradient of the inputs but for the first layer. What is not a
  matrix product is not counted.
  """
  shared %= len(layers)
  products = [math.prod(layer) * (heads if i >= shared else 1) for i, layer in enumerate(layers)]
  return 2 * batch_size * (3 * sum(products) - products[0])


def over(a: str, b: str) -> Callable[[Rates], float]:
  """How many times as fast a is as b."""
  return lambda rates: rates[a] / rates[b]


# ---------------------------------------------------------------- rows


def mnist(quick: bool) -> Row:
  """An ensemble of MLPs on MNIST, batch 128, Adam."""
  from experiments import bench_torch as pt

  members, examples, steps = (5, 2000, 4) if quick else (50, 60000, 20)
  data, index = classes(examples, (784,)), order(examples, steps, 128)
  member_steps, unit = members * steps, 'member-steps'
  needed = step_flops(mlp_layers(784, 100, 100, 10), 128)
  network = cut.multi_head(mlp(10), 0, members)
  make = lambda: pt.mlp(784, 10, (100, 100))
  work = pt.cross_entropy, data['x'], data['y'], index
  loop = lambda **options: pt.one_by_one(make(), work[0], pt.adam(1e-3, **options), *work[1:])
  vectorised = lambda **options: pt.vectorised(make, (members,), work[0], pt.adam(1e-3, **options), *work[1:])
  sizes = (256,) if quick else (1024, 2048)
  products = [
    Contender(f'matrix product {size}, {library}', f(size), 2 * size**3, 'FLOP')
    for size in sizes
    for library, f in (('JAX', product), ('PyTorch', pt.matmul))
  ]
  contenders = [
    trains('ours', training(network, 'labels', optax.adam(1e-3), data, index), member_steps, unit),
    Contender('PyTorch, one by one', loop(), steps, unit),
    Contender('PyTorch, one by one, fused', loop(fused=True), steps, unit),
    Contender('PyTorch, vmap', vectorised(), member_steps, unit),
    Contender('PyTorch, vmap, fused', vectorised(fused=True), member_steps, unit),
  ]
  targets = {'PyTorch, one by one': 2.0, 'PyTorch, vmap, fused': 1.2}
  peak = lambda rates: max(rates[c.name] for c in products)
  lines = [Line(f'ours ÷ {c.name}', over('ours', c.name), targets.get(c.name)) for c in contenders[1:]]
  share = Line('share of the matrix product, needed FLOPs', lambda rates: rates['ours'] * needed / peak(rates), 0.6)
  return Row([*contenders, *products], [*lines, share])


def uci(quick: bool) -> Row:
  """Ensembles of small networks on splits of a UCI set, each with its own data: batch 32, Gaussian NLL, Adam."""
  from experiments import bench_torch as pt

  splits, members, examples, steps = (2, 5, 200, 10) if quick else (20, 50, 927, 50)
  random = np.random.default_rng(0)
  data = {name: random.standard_normal((splits, examples, n), np.float32) for name, n in (('x', 9), ('y', 1))}
  index = np.stack([batches.batch_indices((split,), 0, steps, examples, 32) for split in range(splits)])
  networks_steps, unit = splits * members * steps, 'network-steps'
  network = cut.multi_head(mlp(2, (50,)), 0, members)
  make = lambda: pt.mlp(9, 2, (50,))
  first = data['x'][0], data['y'][0], index[0]
  loop = lambda **options: pt.one_by_one(make(), pt.gaussian_nll, pt.adam(1e-2, **options), *first)
  vectorised = lambda **options: pt.vectorised(
    make, (splits, members), pt.gaussian_nll, pt.adam(1e-2, **options), data['x'], data['y'], index
  )
  contenders = [
    trains('ours', training(network, 'targets', optax.adam(1e-2), data, index), networks_steps, unit),
    Contender('PyTorch, one by one', loop(), steps, unit),
    Contender('PyTorch, one by one, fused', loop(fused=True), steps, unit),
    Contender('PyTorch, vmap', vectorised(), networks_steps, unit),
    Contender('PyTorch, vmap, fused', vectorised(fused=True), networks_steps, unit),
  ]
  targets = {'PyTorch, one by one': 60.0, 'PyTorch, vmap': 2.0}
  return Row(contenders, [Line(f'ours ÷ {c.name}', over('ours', c.name), targets.get(c.name)) for c in contenders[1:]])


def spiral_job(epochs: float, batch_size: int, members: int = 20, examples: int = 300) -> Callable[[], None]:
  """Trains an ensemble, a network on its mean prediction for half as long, and that one with a head for each member."""
  data, optimizer = classes(examples, (2,), 3), optax.adam(1e-3)
  stages = mlp(3, (100,) * 4)
  ensemble, single, student = (
    cut.multi_head(stages, at, heads) for at, heads in ((0, members), (-1, 1), (-1, members))
  )
  long, short = (steps_for(e, examples, batch_size) for e in (epochs, epochs / 2))
  arrays = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], data)
  predict = jax.jit(lambda params, state, x: ensemble.apply(params, state, x)[0])

  def begin(network):
    return init_state(network, optimizer, jax.random.key(0)[None], arrays['x'][:, :2])

  def learn(network, loss, steps):
    program = compiled(make_job(network, loss, optimizer, steps, batch_size), begin(network), (2,))
    rows = order(examples, steps, batch_size)[None]
    return lambda state, data: program(state, inputs_of(data, rows))[0]

  fit_ensemble, fit_single, fit_student = (
    learn(*each) for each in ((ensemble, 'labels', long), (single, 'mean', short), (student, 'members', long))
  )

  def run():
    teacher = fit_ensemble(begin(ensemble), arrays)
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    taught = {**arrays, 'teacher': predict(first(teacher.params), first(teacher.model_state), arrays['x'][0])[None]}
    found = fit_single(begin(single), taught)
    student_state = grown_state(optimizer, found.params, found.model_state, members)
    jax.block_until_ready(fit_student(student_state, taught).params)

  return run


def spiral(quick: bool) -> Row:
  """The whole job on the spiral: 20 members of 4 layers of 100 units, and a Hydra of them, 200 epochs of 300 points."""
  epochs, sizes = (4, (300,)) if quick else (200, (300, 32))
  contenders = [Contender(f'batch {size}', spiral_job(epochs, size), 1, 'jobs') for size in sizes]
  targets = {'batch 300': 3.0}
  return Row(
    contenders,
    [Line(f'seconds, {c.name}', lambda rates, c=c: 1 / rates[c.name], None, targets.get(c.name)) for c in contenders],
  )


SGD = optax.sgd(0.1, momentum=0.9, nesterov=True)


def photo_sizes(quick: bool) -> tuple[int, int, int]:
  """Layers of the ResNet, images in a batch, images to train on."""
  return (8, 16, 64) if quick else (20, 128, 2048)


def photos(quick: bool, loss: str = 'labels', cut_at: int = 0, heads: int = 1, members: int = 0) -> Training:
  """One step of a ResNet on CIFAR-10, SGD with Nesterov's momentum."""
  depth, batch_size, examples = photo_sizes(quick)
  data = classes(examples, (32, 32, 3), members=members)
  return training(cut.multi_head(zoo.resnet(10, depth), cut_at, heads), loss, SGD, data, order(examples, 1, batch_size))


def convolutions_of(depth: int, batch_size: int) -> Callable[[], None]:
  """All convolutions of a step of a ResNet for CIFAR, forward and back, each by itself: what XLA's take at least."""
  blocks = (depth - 2) // 6
  shapes = {(32, 3, 16, 1): 1, (32, 16, 16, 1): 2 * blocks}
  for size, channels in ((32, 16), (16, 32)):
    shapes |= {(size, channels, 2 * channels, 2): 1, (size // 2, 2 * channels, 2 * channels, 1): 2 * blocks - 1}

  def prepared(size, inputs, channels, stride):
    f = lambda x, kernel: zoo.convolve(
      x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

    def both(x, kernel, dy):
      y, back = jax.vjp(f, x, kernel)
      d_x, d_kernel = back(dy)
      return (y, d_kernel) if inputs == 3 else (y, d_x, d_kernel)

    arrays = [jnp.ones(s) for s in ((batch_size, size, size, inputs), (3, 3, inputs, channels))]
    dy = jnp.ones((batch_size, size // stride, size // stride, channels))
    return jax.jit(both, compiler_options=cpu.compiler_options(True, 0)), *arrays, dy

  calls = [(*prepared(*shape), count) for shape, count in shapes.items()]

  def run():
    for f, *arrays, count in calls:
      for _ in range(count):
        jax.block_until_ready(f(*arrays))

  return run


def resnet20(quick: bool) -> Row:
  """A step of ResNet-20, batch 128."""
  from experiments import bench_torch as pt

  depth, batch_size, examples = photo_sizes(quick)
  data, index = classes(examples, (32, 32, 3)), order(examples, 1, batch_size)

  theirs = of_images(lambda: pt.resnet(10, depth), data['x'], data['y'], pt.sgd(0.1), index)
  contenders = [
    trains('ours', photos(quick), batch_size, 'images'),
    *(Contender(name, run, batch_size, 'images') for name, run in theirs.items()),
    Contender("XLA's convolutions alone", convolutions_of(depth, batch_size), batch_size, 'images'),
  ]
  others = [c.name for c in contenders[1:3]]
  targets = {'PyTorch': 1.0, 'PyTorch, channels last': 0.9}
  lines = [Line(f'ours ÷ {name}', over('ours', name), targets[name]) for name in others]
  alone = contenders[3].name
  return Row(contenders, [*lines, *(Line(f'{alone} ÷ {name}', over(alone, name)) for name in others)])


def resnet20_members(quick: bool) -> Row:
  """Four ResNet-20 trained in one step, against one."""
  batch_size, many = photo_sizes(quick)[1], 2 if quick else 4
  names = {'1 member': 1, f'{many} members': many}
  contenders = [
    trains(name, photos(quick, heads=members), members * batch_size, 'member-images') for name, members in names.items()
  ]
  one, all_of_them = names
  return Row(contenders, [Line(f'{all_of_them} ÷ {one}', over(all_of_them, one), 1.2)])


def of_images(
  network: Callable, x: np.ndarray, y: np.ndarray, rule: Callable, index: np.ndarray
) -> dict[str, Callable]:
  """Training of a network for images by PyTorch, in the order of its memory that is the default, and channels last."""
  from experiments import bench_torch as pt

  layouts = {'PyTorch': pt.torch.contiguous_format, 'PyTorch, channels last': pt.torch.channels_last}
  return {
    name: pt.one_by_one(network().to(memory_format=layout), pt.cross_entropy, rule, pt.images(x, layout), y, index)
    for name, layout in layouts.items()
  }


def small_convolutions(quick: bool) -> Row:
  """Members of three convolutions of stride 2, as in `configs/cifar10.py:small`: batch 128, AdamW."""
  from experiments import bench_torch as pt

  members, batch_size, examples = (2, 16, 64) if quick else (10, 128, 2048)
  data, index = classes(examples, (32, 32, 3)), order(examples, 1, batch_size)
  network = cut.multi_head(zoo.cnn(10), 0, members)
  rule = optax.adamw(3e-3, weight_decay=1e-2)
  unit = 'member-images'
  theirs = of_images(lambda: pt.cnn(10), data['x'], data['y'], pt.adamw(3e-3, 1e-2), index)
  contenders = [
    trains('ours', training(network, 'labels', rule, data, index), members * batch_size, unit),
    *(Contender(f'{name}, one by one', run, batch_size, unit) for name, run in theirs.items()),
  ]
  targets = {'PyTorch, one by one': 1.3}
  return Row(contenders, [Line(f'ours ÷ {c.name}', over('ours', c.name), targets.get(c.name)) for c in contenders[1:]])


class ConvPool(nn.Module):
  """Convolution 3x3, ReLU, maximum of 2x2, as a user writes them."""

  channels: int

  @nn.compact
  def __call__(self, x):
    return hydra_jax.max_pool(nn.relu(nn.Conv(self.channels, (3, 3))(x)), 2)


def pooled(outputs: int, channels: Sequence[int]) -> list[Stage]:
  """A network of convolutions with pooling."""
  return [*(from_linen(ConvPool(each)) for each in channels), from_linen(zoo.Flatten()), dense(outputs)]


def pooling(quick: bool) -> Row:
  """A step of networks with maximum pooling, batch 128, Adam: LeNet on digits, and 3x3 convolutions on photos."""
  from experiments import bench_torch as pt

  batch_size, examples, channels = (16, 64, (4, 8, 8)) if quick else (128, 2048, (24, 48, 96))
  networks = {
    'LeNet': ((28, 28, 1), zoo.lenet(10), lambda: pt.lenet(10)),
    '3x3': ((32, 32, 3), pooled(10, channels), lambda: pt.pooled(10, channels)),
  }
  index, contenders, lines = order(examples, 1, batch_size), [], []
  for network, (shape, stages, make) in networks.items():
    data = classes(examples, shape)
    ours = training(cut.multi_head(stages, 0, 1), 'labels', optax.adam(1e-3), data, index)
    contenders.append(trains(f'{network}, ours', ours, batch_size, 'images'))
    for name, run in of_images(make, data['x'], data['y'], pt.adam(1e-3), index).items():
      contenders.append(Contender(f'{network}, {name}', run, batch_size, 'images'))
      target = 1.0 if name == 'PyTorch' else None
      lines.append(Line(f'{network}: ours ÷ {name}', over(f'{network}, ours', f'{network}, {name}'), target))
  return Row(contenders, lines)


def hydra20(quick: bool) -> Row:
  """Hydra on ResNet-20 with 20 heads of the last block and the dense layer, from given predictions."""
  depth, batch_size, _ = photo_sizes(quick)
  heads, layers = 2 if quick else 20, resnet_layers(depth)
  student = photos(quick, 'members', -2, heads, members=heads)
  contenders = [
    trains('ResNet-20', photos(quick), step_flops(layers, batch_size), 'needed FLOP'),
    trains('Hydra', student, step_flops(layers, batch_size, -3, heads), 'needed FLOP'),
  ]
  network = cut.multi_head(zoo.resnet(10, depth), -2, heads)
  batch = classes(batch_size, (32, 32, 3), members=heads)
  _, *state = jax.tree.map(lambda leaf: leaf[0], student.state)
  groups = most_groups(lowered(make_job(network, 'members', SGD, 1, batch_size), *state, batch))
  return Row(
    contenders,
    [
      Line('FLOP/s, Hydra ÷ ResNet-20', over('Hydra', 'ResNet-20'), 1.3),
      Line('most groups of a convolution in the program', lambda rates: groups, at_most=1),
    ],
  )


def distil(quick: bool) -> Row:
  """50 dense heads, against a network that learns the mean prediction, both from predictions kept for all members."""
  heads, examples, steps = (5, 500, 10) if quick else (50, 60000, 100)
  depth, batch_size, _ = photo_sizes(quick)
  digits, index = classes(examples, (784,), members=heads), order(examples, steps, 128)
  adam = optax.adam(1e-3)
  jobs = {
    'MLP, mean': (training(cut.multi_head(mlp(10), -1, 1), 'mean', adam, digits, index), steps),
    'MLP, heads': (training(cut.multi_head(mlp(10), -1, heads), 'members', adam, digits, index), steps),
    'ResNet-20, mean': (photos(quick, 'mean', -1, 1, heads), 1),
    'ResNet-20, heads': (photos(quick, 'members', -1, heads, heads), 1),
  }
  lines = []
  for name, layers, size in (
    ('MLP', mlp_layers(784, 100, 100, 10), 128),
    ('ResNet-20', resnet_layers(depth), batch_size),
  ):
    needed = step_flops(layers, size, -1, heads) / step_flops(layers, size)
    lines += [
      Line(f'{name}: time of a step, heads ÷ mean', over(f'{name}, mean', f'{name}, heads'), at_most=1.15),
      Line(f'{name}: needed FLOPs, heads ÷ mean', lambda rates, needed=needed: needed),
    ]
  return Row([trains(name, job, steps, 'steps') for name, (job, steps) in jobs.items()], lines)


def inference(quick: bool) -> Row:
  """Predictions of MNIST MLPs: one, one with 50 dense heads, and an ensemble of 50."""
  heads = 5 if quick else 50
  models = {
    name: frozen(cut.multi_head(mlp(10), cut_at, count))
    for name, cut_at, count in (('one', 0, 1), ('heads', -1, heads), ('ensemble', 0, heads))
  }
  contenders = [
    predicts(f'{name}, batch {size}', f, jnp.ones((size, 784))) for size in (1, 1024) for name, f in models.items()
  ]
  lines = [
    Line(f'batch {size}: time, heads ÷ one', over(f'one, batch {size}', f'heads, batch {size}'), at_most=1.2)
    for size in (1, 1024)
  ]
  faster = over('heads, batch 1024', 'ensemble, batch 1024')
  return Row(contenders, [*lines, Line('batch 1024: heads ÷ ensemble', faster, 20.0)])


def digits_model(network: cut.Network, predictive: str = 'members') -> evaluate.Model:
  """A new network for MNIST digits, stored as bytes."""
  params, state = jax.jit(network.init)(jax.random.key(0), jnp.ones((1, 28, 28, 1)))
  scaling = Scaling(*(np.full(1, value, np.float64) for value in (33, 79, 0, 1)))
  return evaluate.Model(network, params, state, scaling, TASKS['classification'].predictives[predictive].read)


def digit_images(examples: int) -> Split:
  """Random images of bytes with labels."""
  random = np.random.default_rng(0)
  return Split(random.integers(0, 256, (examples, 28, 28, 1), np.uint8), random.integers(0, 10, examples, np.int32))


def evaluation(quick: bool) -> Row:
  """All scores of an ensemble of MNIST MLPs on the test images, as a run computes them, against the forward pass."""
  members, examples, batch_size = (5, 1000, 500) if quick else (50, 10_000, 500)
  model, test = digits_model(cut.multi_head(mlp(10), 0, members)), digit_images(examples)
  data = datas.Data(
    task='classification',
    train=test,
    outputs=10,
    scaling=model.scaling,
    evaluations={'test': datas.Evaluation('test', 'test', lambda: test, lambda: '')},
    fingerprint='',
    others=lambda name: test.x,
  )
  apply = evaluate.predicting(model.network, test.x.shape[1:])
  parts = [jnp.asarray(test.x[start : start + batch_size]) for start in range(0, examples, batch_size)]
  forward = lambda: [apply(model.params, model.model_state, model.scaling, part) for part in parts]
  contenders = [
    Contender('all scores', lambda: evaluate.score_all(model, data, batch_size), examples, 'images'),
    Contender('forward pass', lambda: jax.block_until_ready(forward()), examples, 'images'),
  ]
  return Row(contenders, [Line('all scores ÷ forward pass', over('all scores', 'forward pass'), at_least=0.8)])


def single_prediction(quick: bool) -> Row:
  """Students with one head, as a run measures their latency: the same network, whose outputs are read in two ways."""
  test = digit_images(50 if quick else 500)
  reads = {'single': 'members', 'kd': 'members', 'endd': 'prior'}
  contenders = []
  for name, predictive in reads.items():
    model = digits_model(cut.multi_head(mlp(10, (100, 300)), 0, 1), predictive)
    score = evaluate.scorer(model, 'classification', test.x.shape[1:], cost.PREDICTED)
    run = lambda score=score: jax.block_until_ready(score(test.x, test.y))
    contenders.append(Contender(name, run, test.examples, 'images'))
  ms = lambda name: lambda rates: 1e3 * test.examples / rates[name]
  return Row(
    contenders,
    [
      *(Line(f'time, {name} ÷ endd', over('endd', name), at_most=1.2) for name in ('single', 'kd')),
      *(Line(f'ms, {name}', ms(name)) for name in reads),
    ],
  )


def chunks(quick: bool) -> Row:
  """Loss and gradient of many heads with many classes, some heads at a time, against all at once."""
  heads, outputs, batch_size, features, at_a_time = (10, 50, 64, 32, 2) if quick else (100, 1000, 1024, 2048, 5)
  network = cut.multi_head([chain([]), dense(outputs)], -1, heads)
  # The gradient comes out as the state of the rule, so that none of its memory is temporary.
  rule = optax.GradientTransformation(
    lambda params: (), lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads)
  )
  data = jax.tree.map(jnp.asarray, classes(batch_size, (features,), outputs, members=heads))
  key = jax.random.key(0)
  params, model_state = network.init(key, data['x'][:2])

  def step(heads_per_chunk):
    job = make_job(network, 'members', rule, 1, batch_size, heads_per_chunk=heads_per_chunk)
    return lowered(job, params, model_state, (), data)

  arguments = params, model_state, (), data, key
  steps = {'all at once': step(heads), 'in chunks': step(at_a_time)}
  memory = {name: f.memory_analysis().temp_size_in_bytes for name, f in steps.items()}
  contenders = [
    Contender(name, lambda f=f: jax.block_until_ready(f(*arguments)), 1, 'steps') for name, f in steps.items()
  ]
  return Row(
    contenders,
    [
      Line('temporary memory', lambda rates: memory['in chunks'] / memory['all at once'], at_most=1 / 8),
      Line('time', over('all at once', 'in chunks'), at_most=1.2),
      *(Line(f'temporary MiB, {name}', lambda rates, size=size: size / 2**20) for name, size in memory.items()),
    ],
  )


def imports(quick: bool) -> Row:
  """How long all that a run uses takes to import, as a process, against the libraries that it stands on."""
  libraries = 'import jax, flax.linen, optax, orbax.checkpoint, ml_collections, matplotlib.figure, scipy.special, rich'
  codes = {'ours': 'import hydra_jax.experiment.run', 'libraries': libraries}
  return Row(
    [process(*each) for each in codes.items()], [Line('time, ours ÷ libraries', over('libraries', 'ours'), at_most=1.1)]
  )


def serving(quick: bool) -> Row:
  """Predictions of one input of 784 features with its uncertainties: by a student with one head, and with 50."""
  import onnxruntime

  x, contenders = np.ones((1, 784)), []
  for name, heads in (('one', 1), ('heads', 5 if quick else 50)):
    predictor, file = hydra_jax.load(saved(heads, 784)), Path(scratch().name) / f'{heads}.onnx'
    hydra_jax.export(predictor, file, format='onnx')
    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    calls = {
      'load': lambda predictor=predictor: predictor.predict(x, members=False),
      'ONNX Runtime': lambda session=session: session.run(None, {'x': x}),
    }
    contenders += [Contender(f'{library}, {name}', call, 1, 'inputs') for library, call in calls.items()]
  lines = []
  for library in calls:
    one, heads = f'{library}, one', f'{library}, heads'
    lines += [
      Line(f'{library}: time, heads ÷ one', over(one, heads), at_most=1.3),
      Line(f'{library}: ms, heads', lambda rates, heads=heads: 1e3 / rates[heads]),
    ]
  return Row(contenders, lines)


def loading(quick: bool) -> Row:
  """How long a process takes to load a folder with 50 heads, beyond the import of JAX; and how large the folder is."""
  folder = saved(5 if quick else 50, 784)
  begin = 'import sys, jax; jax.devices()'
  load = f'{begin}; import hydra_jax; model = hydra_jax.load(sys.argv[1])'
  first = f'{load}; import numpy as np; model.predict(np.ones((1, 784)))'
  contenders = [process(*each, folder) for each in (('JAX', begin), ('load', load), ('first prediction', first))]
  beyond = lambda name: lambda rates: 1 / rates[name] - 1 / rates['JAX']
  parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(hydra_jax.load(folder).model.params))
  size = sum(file.stat().st_size for file in folder.iterdir()) / parameters
  return Row(
    contenders,
    [
      Line('seconds beyond JAX, load', beyond('load'), at_most=2.0),
      Line('seconds beyond JAX, first prediction', beyond('first prediction')),
      Line('bytes of the folder ÷ of its parameters', lambda rates: size, at_most=1.1),
    ],
  )


def goes_forward(
  name: str, predictor: hydra_jax.Predictor, loss: Callable, examples: int, batch_size: int
) -> Contender:
  """The forward pass of training, with a loss, for batches that are looked up on the device."""
  model, (features,) = predictor.model, predictor.shape
  data = jax.tree.map(jnp.asarray, classes(examples, (features,), members=len(model.network.heads)))
  index = jnp.asarray(order(examples, examples // batch_size, batch_size))
  size = sum(leaf.size for leaf in jax.tree.leaves(model.params)) / len(model.network.heads) * batch_size

  def losses_of(params, state, data, index):
    def step(key, rows):
      outputs, _ = model.network.apply(params, state, data['x'][rows], key, train=True)
      return key, jnp.sum(loss(outputs, lambda: {'teacher': data['teacher'][:, rows]}))

    return jax.lax.scan(step, jax.random.key(0), index)[1]

  f = jax.jit(losses_of, compiler_options=cpu.compiler_options(False, size))
  arguments = model.params, model.model_state, data, index
  return Contender(name, lambda: f(*arguments).block_until_ready(), index.size, 'rows')


def rows(quick: bool) -> Row:
  """Prediction of a million rows of 20 features by 50 heads, against the forward pass in which they learn."""
  count, examples = (20_000, 2000) if quick else (1_000_000, 20_000)
  predictor = hydra_jax.load(saved(5 if quick else 50, 20))
  x = np.random.default_rng(0).standard_normal((count, 20), np.float32)
  learn = lambda outputs, batch: LOSSES['members'](outputs, batch())
  learns = [goes_forward(f'training, batch {size}', predictor, learn, examples, size) for size in (128, 500)]
  alone = goes_forward('network alone', predictor, lambda outputs, batch: jnp.square(outputs), examples, 500)
  predict = Contender('predict', lambda: predictor.predict(x, members=False), count, 'rows')
  fastest = lambda rates: max(rates[c.name] for c in learns)
  lines = [
    Line('predict ÷ the faster training', lambda rates: rates['predict'] / fastest(rates), at_least=0.6),
    Line('predict ÷ network alone', over('predict', 'network alone')),
  ]
  return Row([predict, *learns, alone], lines)


STREAM = """
parts = (np.random.default_rng(i).standard_normal((10_000, 20), np.float32) for i in range(rows // 10_000))
for _ in model.predict_batches(parts): pass
"""
FILE = 'hydra_jax.predict_file(model, source, source + ".csv")'
# `ru_maxrss` of a process begins with that of its parent; this does not.
PEAK = """
print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])
"""
MEASURED = (
  """
import pathlib, re, sys
import numpy as np
import hydra_jax
folder, source, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = hydra_jax.load(folder)
{}
"""
  + PEAK
)


def memory(quick: bool) -> Row:
  """The most memory of a process that predicts 100,000 rows of 20 features, and a million; on Linux."""
  folder, contenders, lines, peak = saved(5 if quick else 50, 20), [], [], {}
  few, many = (20_000, 40_000) if quick else (100_000, 1_000_000)
  files = {count: Path(scratch().name) / f'{count}.npz' for count in (few, many)}
  for count, file in files.items():
    np.savez(file, x=np.random.default_rng(0).standard_normal((count, 20), np.float32))
  for what, code in (('predict_batches', STREAM), ('predict_file', FILE)):
    a, b = (f'{what}, {count:,} rows' for count in (few, many))
    for name, (count, source) in zip((a, b), files.items()):
      contenders.append(
        process(name, MEASURED.format(code), folder, source, count, work=count, unit='rows', found=peak)
      )
    lines += [
      Line(f'memory, {b} ÷ {few:,}', lambda rates, a=a, b=b: printed(peak, b) / printed(peak, a), at_most=1.1),
      Line(f'MiB, {b}', lambda rates, b=b: printed(peak, b) / 1024),
    ]
  return Row(contenders, lines)


# What a run does with a file of the user's own, and one pass over its rows. Compilation is not timed.
PASS = (
  """
import re, pathlib, sys, time
import jax, optax
import numpy as np
from experiments import bench
from hydra_jax import data as datas
from hydra_jax.config import default_config
from hydra_jax.nets import cut, stages
from hydra_jax.training import batches, loop, step
config = default_config()
config.data.name = sys.argv[1]
begin = time.perf_counter()
data = datas.load(config.data, '', 0, config.validation)
source = batches.source_of([data])
took = time.perf_counter() - begin
rule, keys, steps = optax.adam(1e-3), jax.random.split(jax.random.key(0), 1), data.train.examples // 128
job = bench.make_job(cut.multi_head(stages.mlp(2), 0, 1), 'targets', rule, steps, 128)
state = step.init_state(job.network, rule, keys, data.train.example[None])
train = loop.prepared(job, state, source, [(0,)], keys)
state = train(state, 2)
begin = time.perf_counter()
jax.block_until_ready(train(state, steps).params)
print(took + time.perf_counter() - begin)
"""
  + PEAK
)


def loading_rows(quick: bool) -> Row:
  """Loading a file of 20 features and a target, and one pass of training over it; on Linux."""
  few, some, many = (1000, 2000, 20_000) if quick else (10_000, 100_000, 1_000_000)
  names, contenders, found = {count: f'{count:,} rows' for count in (few, some, many)}, [], {}
  for count, name in names.items():
    file = Path(scratch().name) / f'{count} rows with targets.npz'
    x = np.random.default_rng(0).standard_normal((count, 20), np.float32)
    np.savez(file, x=x, y=x[:, 0], x_test=x[:1000], y_test=x[:1000, 0])
    contenders.append(process(name, PASS, file, work=count, unit='rows', found=found))
  seconds = lambda count: printed(found, names[count], 0) / count
  kibibytes = lambda: printed(found, names[many], 1) - printed(found, names[few], 1)
  array = 4 * 20 * (many - few)
  return Row(
    contenders,
    [
      Line(
        f'memory beyond {few:,} rows ÷ the array, {names[many]}', lambda rates: 1024 * kibibytes() / array, None, 2.5
      ),
      *(
        Line(
          f'time of a row, {names[many]} ÷ {fewer:,}',
          lambda rates, fewer=fewer: seconds(many) / seconds(fewer),
          None,
          most,
        )
        for fewer, most in ((few, None), (some, 1.2))
      ),
      Line(f'seconds, {names[many]}', lambda rates: many * seconds(many)),
    ],
  )


def scaling(quick: bool) -> Row:
  """Training of MNIST MLPs, batch 128, as there are more members and more examples."""
  members, examples = ((2, 4), (256, 512)) if quick else ((10, 20, 50, 100, 200), (6000, 19000, 60000))
  steps = 2 if quick else 20
  data = classes(examples[-1], (784,))

  def grown(name, members, examples, steps, work, unit):
    some = {k: v[:examples] for k, v in data.items()}
    network = cut.multi_head(mlp(10), 0, members)
    return trains(name, training(network, 'labels', optax.adam(1e-3), some, order(examples, steps, 128)), work, unit)

  names = {'members': [f'{m} members' for m in members], 'examples': [f'{n} examples' for n in examples]}
  contenders = [
    *(grown(name, m, examples[-1], steps, m * steps, 'member-steps') for name, m in zip(names['members'], members)),
    *(grown(name, members[0], n, n // 128, n // 128 * 128, 'examples') for name, n in zip(names['examples'], examples)),
  ]
  lines = [Line(f'time of each, {of[-1]} ÷ {of[0]}', over(of[0], of[-1]), at_most=1.05) for of in names.values()]

  def draw(seconds, file):
    took = lambda of, share: [np.median(seconds[name]) / share for name in of]
    draw_scaling(
      {
        'Members': (members, took(names['members'], steps), 'Seconds for a step'),
        'Examples': (examples, took(names['examples'], 1), f'Seconds for an epoch, {members[0]} members'),
      },
      file,
    )

  return Row(contenders, lines, draw)


def draw_scaling(panels: dict[str, tuple[Sequence[int], Sequence[float], str]], file: Path) -> None:
  """Measured times, and the straight line through the first of them, on logarithmic axes."""
  from hydra_jax.report import figures

  figure, [axes] = figures.panels(len(panels), size=(4, 3.4))
  for ax, (xlabel, (sizes, times, ylabel)) in zip(axes, panels.items()):
    ax.loglog(sizes, [times[0] * size / sizes[0] for size in sizes], '--', color='0.6', label='linear')
    ax.loglog(sizes, times, 'o-', color='C0', label='measured')
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_yticks(times, [f'{t:.2g}' for t in times])
    ax.minorticks_off()
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend(frameon=False)
  figure.savefig(file, dpi=150)


ROWS = {
  'mnist': mnist,
  'uci': uci,
  'spiral': spiral,
  'resnet20': resnet20,
  'resnet20_members': resnet20_members,
  'small_convolutions': small_convolutions,
  'pooling': pooling,
  'hydra20': hydra20,
  'distil': distil,
  'inference': inference,
  'evaluation': evaluation,
  'single_prediction': single_prediction,
  'chunks': chunks,
  'import': imports,
  'serving': serving,
  'loading': loading,
  'loading_rows': loading_rows,
  'rows': rows,
  'memory': memory,
  'scaling': scaling,
}
# Libraries that a row may lack: what each is called, and the extra that brings it.
EXTRAS = {'torch': ('PyTorch', 'bench'), 'onnxruntime': ('ONNX Runtime', 'onnx')}


# ---------------------------------------------------------------- measuring and reporting


def measure(contenders: Sequence[Contender], rounds: int, stretch: float) -> Seconds:
  """Seconds of one call of each contender in each round, from as many calls as fill the stretch."""
  calls = {}
  for contender in contenders:
    contender.run()  # compiles
    calls[contender.name] = max(1, math.ceil(stretch / timed(contender.run, 1)))
  seconds = {name: [] for name in calls}
  for _ in range(rounds):
    for contender in contenders:
      count = calls[contender.name]
      if count > 1:
        contender.run()  # caches and threads are as another contender left them; one long call does not mind
      seconds[contender.name].append(timed(contender.run, count))
  return seconds


def timed(run: Callable[[], Any], calls: int) -> float:
  """Mean seconds of a call."""
  start = time.perf_counter()
  for _ in range(calls):
    run()
  return (time.perf_counter() - start) / calls


def report(name: str, row: Row, seconds: Seconds, judge: bool) -> list[dict]:
  """Lines of a row with their medians and spreads, and with verdicts."""
  rounds = len(next(iter(seconds.values())))
  rates = [{c.name: c.work / seconds[c.name][i] for c in row.contenders} for i in range(rounds)]
  found = []
  for line in row.lines:
    values = [float(line.value(each)) for each in rates]
    median, target, met = float(np.median(values)), '', None
    if line.at_least is not None:
      target, met = f'≥ {line.at_least:.4g}', median >= line.at_least
    if line.at_most is not None:
      target, met = f'≤ {line.at_most:.4g}', median <= line.at_most
    verdict = '' if met is None or not judge else 'met' if met else 'missed'
    spread = {'median': median, 'least': min(values), 'greatest': max(values)}
    found.append({'row': name, 'line': line.name, **spread, 'target': target, 'verdict': verdict, 'rounds': values})
  return found


def machine() -> dict[str, Any]:
  """What the numbers depend on."""
  file = Path('/proc/cpuinfo')
  models = re.findall(r'model name\s*: (.*)', file.read_text()) if file.exists() else []
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'hydra_jax')
  return {
    'processor': models[0] if models else platform.machine(),
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
    'huge pages': cpu.HUGE_PAGES.partition('=')[2] in os.environ.get('GLIBC_TUNABLES', ''),
    'device': jax.devices()[0].device_kind,
    'system': platform.system(),
    'versions': {'python': platform.python_version(), **{name: version(name) for name in packages}},
  }


def version(package: str) -> str | None:
  """Of an installed package."""
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table, in columns also where it is read as text."""
  rows = [header, *rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
  lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |' for row in rows]
  lines.insert(1, '|' + '|'.join('-' * (width + 2) for width in widths) + '|')
  return '\n'.join(lines)


def lines_table(lines: Sequence[dict]) -> str:
  """The numbers with their targets."""
  short = lambda x: f'{x:.3g}' if abs(x) < 1000 else f'{x:.0f}'
  return table(
    ('row', 'measured', 'median', 'least to greatest', 'target', ''),
    [
      (each['row'], each['line'], short(each['median']), f'{short(each["least"])} to {short(each["greatest"])}')
      + (each['target'], each['verdict'])
      for each in lines
    ],
  )


def rates_table(timings: dict[str, dict]) -> str:
  """What each contender does in a second."""
  return table(
    ('row', 'contender', 'median in a second'),
    [
      (row, name, f'{each["work"] / np.median(each["seconds"]):,.4g} {each["unit"]}')
      for row, contenders in timings.items()
      for name, each in contenders.items()
    ],
  )


def arguments() -> argparse.Namespace:
  """Of the command line."""
  parser = argparse.ArgumentParser('python -m experiments.bench', description=__doc__.split('\n')[0])
  parser.add_argument('--output', type=Path, help='JSON to write; tables and a figure come beside it')
  parser.add_argument('--only', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW', help=', '.join(ROWS))
  parser.add_argument('--quick', action='store_true', help='small work, to see that everything runs; no verdicts')
  parser.add_argument('--rounds', type=int, help='turns of each contender; 7, or 2 if quick')
  return parser.parse_args()


def main() -> int:
  """Measures, prints, writes."""
  args = arguments()
  rounds, stretch = (2, 0.02) if args.quick else (7, 0.3)
  rounds = args.rounds or rounds
  if args.quick:
    jax.config.update('jax_disable_most_optimizations', True)  # compiling would be most of the time
  here, lines, timings = machine(), [], {}
  if here['load'] > 0.5:
    print(f'other programs are at work here (load {here["load"]:.1f}): expect worse numbers', file=sys.stderr)
  for name in args.only:
    try:
      row = ROWS[name](args.quick)
    except ModuleNotFoundError as e:
      if e.name not in EXTRAS:
        raise
      what, extra = EXTRAS[e.name]
      print(f'{name} compares with {what}, which is not installed: pip install -e ".[{extra}]"', file=sys.stderr)
      return 2
    seconds = measure(row.contenders, rounds, stretch)
    timings[name] = {c.name: {'work': c.work, 'unit': c.unit, 'seconds': seconds[c.name]} for c in row.contenders}
    lines += report(name, row, seconds, judge=not args.quick)
    if row.draw and args.output:
      row.draw(seconds, args.output.with_name(f'{args.output.stem}-{name}.png'))
    print(lines_table([each for each in lines if each['row'] == name]), flush=True)
  both = f'{lines_table(lines)}\n\n{rates_table(timings)}\n'
  if args.output:
    about = f'{here["processor"]}, {here["cores"]} cores, {here["device"]}; load {here["load"]:.1f}; {rounds} rounds; '
    about += 'huge pages; ' * here['huge pages']
    about += ', '.join(f'{k} {v}' for k, v in here['versions'].items() if v)
    found = {'quick': args.quick, 'rounds': rounds, 'machine': here, 'lines': lines, 'timings': timings}
    args.output.write_text(json.dumps(found, indent=1, ensure_ascii=False))
    args.output.with_suffix('.md').write_text(f'{both}\n{about}\n')
  print(f'\n{both}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
