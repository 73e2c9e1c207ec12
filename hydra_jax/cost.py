"""What a prediction costs: parameters, FLOPs, and time measured here."""

import time

import jax
import numpy as np

from hydra_jax.evaluate import Model, outputs_of, scorer

REPEATS = 15
# Large models take fewer turns, though 3 at least.
ENOUGH_SECONDS = 20.0
# Scores that need the prediction and its uncertainty and little else.
PREDICTED = ('correct', 'squared_error', 'total', 'data', 'model')


def parameters(model: Model) -> int:
  """Number of trained numbers."""
  return sum(leaf.size for leaf in jax.tree.leaves(model.params))


def flops(model: Model, x: np.ndarray) -> float:
  """Floating-point operations of the outputs for one example, as XLA counts them for `x` `[B, …]`."""
  f = jax.jit(lambda x: outputs_of(model, x))
  return f.lower(x).cost_analysis()['flops'] / len(x)


def latencies(models: dict[str, Model], task: str, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
  """Median milliseconds from stored inputs `[B, …]` to prediction and uncertainty on the host.

  The models take turns, so that what else the machine does falls on all of them alike.
  """
  calls = {name: scorer(model, task, PREDICTED) for name, model in models.items()}
  took = {name: [] for name in calls}
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
  return {name: float(np.median(t)) for name, t in took.items()}
