"""What `bench` compares with: the same training in PyTorch, as public code writes it.

Every function sets up and returns `run()`, which makes one step for each row of `index`. PyTorch's threads
spin while they wait for one another, which is fast on an idle machine and up to 100 times slower on a
busy one: set OMP_WAIT_POLICY=PASSIVE there.
"""

from collections.abc import Callable
import math

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
import torch.nn.functional as F

cross_entropy = F.cross_entropy


def gaussian_nll(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
  """As `hydra_jax.maths.losses.gaussian_nll`, averaged."""
  mean, raw = outputs.chunk(2, dim=-1)
  var = F.softplus(raw) + 1e-6
  return (0.5 * (torch.log(2 * torch.pi * var) + torch.square(y - mean) / var)).mean()


def adam(rate: float, **options) -> Callable:
  """`params -> optimizer`; `fused=True` is the option that few set."""
  return lambda params: torch.optim.Adam(params, rate, **options)


def adamw(rate: float, decay: float) -> Callable:
  """`params -> optimizer` with decoupled weight decay."""
  return lambda params: torch.optim.AdamW(params, rate, weight_decay=decay)


def sgd(rate: float) -> Callable:
  """`params -> optimizer` with Nesterov's momentum."""
  return lambda params: torch.optim.SGD(params, rate, momentum=0.9, nesterov=True)


def mlp(inputs: int, outputs: int, widths: tuple[int, ...]) -> nn.Module:
  """As `hydra_jax.mlp`."""
  layers = []
  for width in widths:
    layers += [nn.Linear(inputs, width), nn.ReLU()]
    inputs = width
  return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def cnn(outputs: int, channels: tuple[int, ...] = (32, 64, 128), size: int = 32) -> nn.Module:
  """As `hydra_jax.nets.zoo.cnn`, for colour images of `size` by `size` pixels."""
  layers, inputs = [], 3
  for each in channels:
    layers += [nn.Conv2d(inputs, each, 3, 2, 1), nn.ReLU()]
    inputs, size = each, -(-size // 2)
  return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size**2 * inputs, outputs))


def lenet(outputs: int) -> nn.Module:
  """As `hydra_jax.nets.zoo.lenet`, for grey images of 28 by 28 pixels."""
  layers = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
  return nn.Sequential(*layers, nn.Flatten(), *mlp(16 * 4**2, outputs, (120, 84)))


def pooled(outputs: int, channels: tuple[int, ...], size: int = 32) -> nn.Module:
  """As `bench.pooled`: 3x3 convolutions, each with ReLU and the maximum of 2x2, for colour images."""
  layers, inputs = [], 3
  for each in channels:
    layers += [nn.Conv2d(inputs, each, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    inputs, size = each, size // 2
  return nn.Sequential(*layers, nn.Flatten(), nn.Linear(size**2 * inputs, outputs))


class Basic(nn.Module):
  """As `hydra_jax.nets.zoo.Basic`."""

  def __init__(self, inputs: int, channels: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
    self.norm1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(channels)
    self.stride, self.more = stride, channels - inputs

  def forward(self, x):
    y = F.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    x = x[:, :, :: self.stride, :: self.stride]
    if self.more:
      x = F.pad(x, (0, 0, 0, 0, 0, self.more))
    return F.relu(y + x)


def resnet(outputs: int, depth: int) -> nn.Module:
  """As `hydra_jax.nets.zoo.resnet`."""
  layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
  inputs = 16
  for group, channels in enumerate((16, 32, 64)):
    for block in range((depth - 2) // 6):
      layers.append(Basic(inputs, channels, 2 if group and not block else 1))
      inputs = channels
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


def images(x_NxHxWxC: np.ndarray, layout: torch.memory_format) -> torch.Tensor:
  """Images as PyTorch reads them, in this memory layout."""
  return torch.from_numpy(x_NxHxWxC).permute(0, 3, 1, 2).contiguous(memory_format=layout)


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
  """Arrays as tensors; labels and rows as the int64 that PyTorch wants."""
  found = [torch.as_tensor(a) for a in arrays]
  return [t if t.is_floating_point() else t.long() for t in found]


def one_by_one(model: nn.Module, loss: Callable, optimizer: Callable, x, y, index) -> Callable[[], None]:
  """A plain loop that trains one member. Each of the others costs the same, so one tells."""
  x, y, index_KxB = tensors(x, y, index)
  rule = optimizer(model.parameters())

  def run():
    for rows in index_KxB:
      rule.zero_grad()
      loss(model(x[rows]), y[rows]).backward()
      rule.step()

  return run


def vectorised(
  make: Callable[[], nn.Module], axes: tuple[int, ...], loss: Callable, optimizer: Callable, x, y, index
) -> Callable[[], None]:
  """All members at once by `torch.func`: `axes` is (members,), or (splits, members) with data for each split."""
  x, y, index = tensors(x, y, index)
  stacked, _ = stack_module_state([make() for _ in range(math.prod(axes))])
  params = {k: v.detach().reshape(*axes, *v.shape[1:]).clone().requires_grad_() for k, v in stacked.items()}
  rule, skeleton = optimizer(list(params.values())), make().to('meta')
  gradient = vmap(grad(lambda p, x, y: loss(functional_call(skeleton, p, (x,)), y)), (0, None, None))
  batches = [(x, y, rows) for rows in index]
  if len(axes) == 2:
    gradient = vmap(gradient)
    batches = [(x, y, rows) for rows in index.transpose(0, 1)]

  def rows_of(a, rows):
    return a[rows] if rows.ndim == 1 else torch.take_along_dim(a, rows[..., None], 1)

  def run():
    for x, y, rows in batches:
      found = gradient(params, rows_of(x, rows), rows_of(y, rows))
      for name, p in params.items():
        p.grad = found[name]
      rule.step()

  return run


def matmul(size: int) -> Callable[[], None]:
  """A product of two square matrices."""
  a, b = torch.ones(size, size), torch.ones(size, size)
  return lambda: a @ b
