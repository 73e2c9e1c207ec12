"""What a prediction costs: parameters, FLOPs, and time measured here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import math
import time
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, JaxprEqn, jaxpr_as_fun
import numpy as np

from hydra_jax.evaluation.evaluate import Model, outputs_of, scorer
from hydra_jax.maths import uncertainty

REPEATS = 15
# Large models take fewer turns, though 3 at least.
ENOUGH_SECONDS = 20.0
# Scores that need the prediction and its uncertainty and little else.
PREDICTED = ('correct', 'squared_error', *uncertainty.WORDS)


def parameters(model: Model) -> int:
  """Number of trained numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def flops(model: Model, x: np.ndarray) -> float:
  """Floating-point operations of the outputs for one example, as XLA counts them for `x` `[B, …]`."""
  return count_flops(lambda x: outputs_of(model, x), x) / len(x)


def count_flops(f: Callable, *arguments: Any) -> float:
  """Floating-point operations of `f(*arguments)`, arrays or shapes, as XLA counts them before it optimises.

  XLA counts the body of a loop once, however often it runs. Here it counts as often as it runs, so that the number
  does not depend on how heads are mapped. Of branches the most expensive one counts. A `while` loop whose number of
  turns depends on the data counts once.

  Returns:
    NaN where XLA does not say.
  """
  return _flops(jax.make_jaxpr(f)(*arguments).jaxpr)


def _flops(jaxpr: Jaxpr) -> float:
  """What has a loop or branches is counted by itself; the rest is lowered without it, as if its results were inputs.

  Constants become inputs too: XLA would leave out the addition of a bias that is 0.
  """
  total = 0.0
  inner = [(eqn, list(called_by(eqn)) if _turns(eqn) else []) for eqn in jaxpr.eqns]
  for eqn, called in inner:
    if called:
      each = [_flops(c) for c in called]
      total += eqn.params.get('length', 1) * (max(each) if 'branches' in eqn.params else sum(each))
  rest = [eqn for eqn, called in inner if not called]
  from_calls = [v for eqn, called in inner if called for v in eqn.outvars if not isinstance(v, DropVar)]
  # A function without outputs would be empty.
  outputs = [v for eqn in rest for v in eqn.outvars if not isinstance(v, DropVar)]
  if not outputs:
    return total
  inputs = [*jaxpr.constvars, *jaxpr.invars, *from_calls]
  alone = jaxpr.replace(
    eqns=rest, constvars=[], invars=inputs, outvars=outputs, debug_info=jaxpr.debug_info.with_unknown_names()
  )
  avals: list[Any] = [v.aval for v in inputs]
  shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
  # XLA counts for a CPU before it compiles, and for a GPU only after it.
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    analysis = jax.jit(jaxpr_as_fun(ClosedJaxpr(alone, ())), keep_unused=True).lower(*shapes).cost_analysis()
  return total + (math.nan if analysis is None else analysis.get('flops', 0.0))


# What calls other functions, by the name of the primitive. Others, such as `scatter`, have a jaxpr that is no call.
TURNS = ('scan', 'while', 'cond')
CALLS = (
  *(*TURNS, 'jit', 'pjit', 'closed_call', 'core_call', 'checkpoint', 'remat'),
  *('custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr', 'shard_map'),
)


def _turns(eqn: JaxprEqn) -> bool:
  """Whether an equation has a loop or branches, at any depth."""
  return eqn.primitive.name in TURNS or any(_turns(each) for jaxpr in called_by(eqn) for each in jaxpr.eqns)


def called_by(eqn: JaxprEqn) -> Iterator[Jaxpr]:
  """The functions that an equation calls: the body of a loop, the branches of a choice, a function that is jitted."""
  for value in eqn.params.values() if eqn.primitive.name in CALLS else ():
    for each in value if isinstance(value, tuple | list) else [value]:
      if isinstance(each, ClosedJaxpr | Jaxpr):
        yield each.jaxpr if isinstance(each, ClosedJaxpr) else each


@dataclass(frozen=True)
class Latency:
  """Milliseconds of a call: the median over turns, and the quartiles."""

  median: float
  low: float
  high: float


def latencies(models: dict[str, Model], task: str, x: np.ndarray, y: np.ndarray) -> dict[str, Latency]:
  """Milliseconds from stored inputs `[B, …]` to prediction and uncertainty on the host.

  The models take turns, so that what else the machine does falls on all of them alike.
  """
  calls = {name: scorer(model, task, x.shape[1:], PREDICTED) for name, model in models.items()}
  took: dict[str, list[float]] = {name: [] for name in calls}
  begun = time.monotonic()
  for turn in range(REPEATS + 1):
    if turn > 3 and time.monotonic() - begun > ENOUGH_SECONDS:
      break
    for name, call in calls.items():
      jax.block_until_ready(call(x, y))  # the first turn compiles; later, caches are as another model left them
      start = time.perf_counter()
      jax.block_until_ready(call(x, y))
      if turn:
        took[name].append(1e3 * (time.perf_counter() - start))
  return {name: Latency(*map(float, np.percentile(t, (50, 25, 75)))) for name, t in took.items()}
