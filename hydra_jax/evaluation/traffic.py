"""What a device multiplies, sends to other devices, and reads from its memory, as a program says that is not run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from hydra_jax.evaluation.cost import called_by, count_flops

# Collectives by the name of the primitive, and what StableHLO calls them.
COLLECTIVES = {
  **dict.fromkeys(('psum', 'psum_invariant', 'pmax', 'pmin'), 'all_reduce'),
  **dict.fromkeys(('all_gather', 'all_gather_invariant', 'all_gather_reduced'), 'all_gather'),
  **{'reduce_scatter': 'reduce_scatter', 'all_to_all': 'all_to_all', 'ppermute': 'collective_permute'},
}
# Operations that XLA does not fuse with others: they read their inputs from memory, and write their outputs.
PRODUCTS = ('dot_general', 'conv_general_dilated')


@dataclass(frozen=True)
class Collective:
  """A collective of one array.

  Attributes:
    kind: As StableHLO calls it, such as `all_reduce`.
    axes: Of the mesh.
    devices: How many take part together.
    size: Bytes of the array, of the larger of input and output.
    times: How often it runs in a call of the program.
  """

  kind: str
  axes: tuple[str, ...]
  devices: int
  size: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends in all its runs, where the devices form a ring."""
    trips = 2 if self.kind == 'all_reduce' else 1
    return self.times * trips * self.size * (self.devices - 1) / self.devices


def collectives(jaxpr: Jaxpr) -> list[Collective]:
  """All collectives of a program, in order. Of a loop of unknown length one turn counts, and of branches all."""
  found = []
  for eqn, times, mesh in _equations(jaxpr, 1, {}):
    if kind := COLLECTIVES.get(eqn.primitive.name):
      names = eqn.params.get('axes') or eqn.params.get('axis_name')
      axes = names if isinstance(names, tuple) else (names,)
      devices = 1
      for axis in axes:
        devices *= mesh[axis]
      for given, made in zip(eqn.invars, eqn.outvars, strict=True):
        found.append(Collective(kind, axes, devices, max(_bytes(given), _bytes(made)), times))
  return found


def product_flops(jaxpr: Jaxpr) -> float:
  """Floating-point operations of all matrix products and convolutions on one device, as XLA counts them."""
  by_times: dict[int, list[JaxprEqn]] = {}
  for eqn, times in _products(jaxpr):
    by_times.setdefault(times, []).append(eqn)
  total = 0.0
  for times, eqns in by_times.items():
    multiply = lambda pairs, eqns=eqns: [e.primitive.bind(*pair, **e.params) for e, pair in zip(eqns, pairs)]
    total += times * count_flops(multiply, [[_shape(variable) for variable in eqn.invars] for eqn in eqns])
  return total


def memory_traffic(jaxpr: Jaxpr) -> int:
  """Bytes that all matrix products and convolutions of a device read and write; all else is taken to be fused."""
  return sum(times * sum(map(_bytes, (*eqn.invars, *eqn.outvars))) for eqn, times in _products(jaxpr))


def _products(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, int]]:
  """Matrix products and convolutions, and how often each runs."""
  return ((eqn, times) for eqn, times, _ in _equations(jaxpr, 1, {}) if eqn.primitive.name in PRODUCTS)


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(variable.aval.shape, variable.aval.dtype)


def _bytes(variable: Any) -> int:
  return variable.aval.size * variable.aval.dtype.itemsize


def _equations(jaxpr: Jaxpr, times: int, mesh: dict[str, int]) -> Iterator[tuple[JaxprEqn, int, dict[str, int]]]:
  """All equations at any depth, how often each runs, and the devices along each axis that it is mapped over."""
  for eqn in _used(jaxpr):
    yield eqn, times, mesh
    inside = dict(eqn.params['mesh'].shape) if 'mesh' in eqn.params else mesh
    turns = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    for called in called_by(eqn):
      yield from _equations(called, times * turns, inside)


def _used(jaxpr: Jaxpr) -> list[JaxprEqn]:
  """Equations whose results are read; the others are not lowered."""
  read, used = set(map(id, jaxpr.outvars)), []
  for eqn in reversed(jaxpr.eqns):
    if read.intersection(map(id, eqn.outvars)):
      used.append(eqn)
      read |= set(map(id, eqn.invars))
  return used[::-1]


def rounds(jaxpr: Jaxpr) -> int:
  """Length of the longest chain of collectives that wait for each other; others can be sent together."""
  depth: dict[Any, int] = {}
  for eqn in _used(jaxpr):
    before = max((depth.get(v, 0) for v in eqn.invars if not isinstance(v, Literal)), default=0)
    turns = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    inside = turns * max(map(rounds, called_by(eqn)), default=0)
    here = before + inside + (eqn.primitive.name in COLLECTIVES)
    depth.update((v, here) for v in eqn.outvars)
  return max(depth.values(), default=0)


def precision(jaxpr: Jaxpr) -> str:
  """Dtype in which most numbers are multiplied, such as `bfloat16`."""
  found: dict[str, int] = {}
  for eqn, times in _products(jaxpr):
    dtype = str(_shape(eqn.invars[0]).dtype)
    found[dtype] = found.get(dtype, 0) + times * _bytes(eqn.outvars[0])
  return max(found, key=lambda dtype: found[dtype], default='float32')
