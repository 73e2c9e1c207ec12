"""The one evaluation: the same for an ensemble, a student, and whatever has members or heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.data import Data, Scaling, Split, scale_inputs, scale_targets, standardised
from hydra_jax.devices import cpu
from hydra_jax.devices.layout import SINGLE_DEVICE, Layout
from hydra_jax.maths import metrics, uncertainty
from hydra_jax.maths.tasks import TASKS, Scores, Task
from hydra_jax.nets.cut import Network, rescaled
from hydra_jax.nets.stages import Tree


@dataclass(frozen=True)
class Model:
  """A trained network with what it needs to read stored inputs, and to have its outputs read.

  `read(outputs)` gives the distribution that `Task.scores` takes.
  """

  network: Network
  params: Tree
  model_state: Tree
  scaling: Scaling
  read: Callable


def outputs_of(model: Model, x: jax.Array) -> jax.Array:
  """Outputs `[H, B, C]` for inputs as they are on the device (`data.standardised`), in evaluation mode."""
  return model.network.apply(model.params, model.model_state, scale_inputs(model.scaling, x))[0]


def apply_spread(model: Model, spread: float, task: str) -> Model:
  """The model with heads that differ `spread` times as much from their mean."""
  network = rescaled(model.network, TASKS[task].rescale)
  return replace(model, network=network, params={**model.params, 'spread': jnp.float32(spread)})


def in_batches(f: Callable, batch_size: int, *arrays: np.ndarray, axis: int = 0, fill: bool = False):
  """Applies a compiled `f` to batches of one size, the last one padded, and drops the padding.

  Args:
    f: Takes batches of `arrays` and returns a tree of arrays with the examples along `axis`.
    batch_size: Examples at once.
    *arrays: Examples along their first axis.
    axis: Axis of the examples in what `f` returns.
    fill: Whether fewer examples are padded to `batch_size`. If not, they are padded to a power of two. So numbers of
      examples that are close to each other share a compiled program.

  Returns:
    The tree as NumPy arrays with all examples along `axis`.
  """
  examples = len(arrays[0])
  size = batch_size if fill else min(batch_size, 1 << (examples - 1).bit_length())
  results: list[tuple[int, Any]] = []
  whole: Any = None
  for start in range(0, examples, size):
    results.append((start, f(*(_padded(a[start : start + size], size) for a in arrays))))
    if len(results) > 1:  # a result is copied while the device computes the next one
      whole = _filled(whole, *results.pop(0), examples, axis)
  return _filled(whole, *results.pop(), examples, axis)


def _padded(batch: np.ndarray, size: int) -> np.ndarray:
  missing = size - len(batch)
  return np.pad(batch, [(0, missing)] + [(0, 0)] * (batch.ndim - 1), mode='edge') if missing else batch


def _filled(whole: Any, start: int, result: Any, examples: int, axis: int) -> Any:
  """Copies what belongs to the examples from `start` on to its place in arrays of all examples, made if None."""
  lead = (slice(None),) * axis

  def place(into, part):
    part = np.asarray(part)
    if into is None:
      into = np.empty((*part.shape[:axis], examples, *part.shape[axis + 1 :]), part.dtype)
    stop = min(start + part.shape[axis], examples)
    into[(*lead, slice(start, stop))] = part[(*lead, slice(stop - start))]
    return into

  leaves, tree = jax.tree.flatten(result)
  return jax.tree.unflatten(tree, map(place, [None] * len(leaves) if whole is None else jax.tree.leaves(whole), leaves))


# Compiled once for all replicas whose network is the same object: parameters and scaling are arguments.
@functools.lru_cache(maxsize=64)
def predicting(network: Network, shape: tuple[int, ...], layout: Layout = SINGLE_DEVICE) -> Callable:
  """Compiled `(params, model_state, scaling, x [B, …]) -> outputs [H, B, C]`, on one device of a layout."""
  f = lambda params, state, scaling, x: network.apply(params, state, scale_inputs(scaling, x))[0]
  return jax.jit(layout.traced(f), compiler_options=options_of(network, shape, layout))


def options_of(network: Network, shape: tuple[int, ...], layout: Layout = SINGLE_DEVICE) -> dict[str, str]:
  """Options of the compiler for programs that predict: those of large training steps.

  XLA's default for CPU makes all layers one slow call of YNNPACK.
  """
  with cpu.programs_for(layout.platform):
    return cpu.compiler_options(network.convolves(shape), float('inf'))


@functools.lru_cache(maxsize=64)
def scoring(
  network: Network,
  shape: tuple[int, ...],
  read: Callable,
  task: str,
  only: tuple[str, ...],
  layout: Layout = SINGLE_DEVICE,
) -> Callable:
  """Compiled `(params, model_state, scaling, label_scale, x, y) -> {score: [B, …]}`, see `scorer`."""

  def scores(params, state, scaling, label_scale, x, y):
    outputs = outputs_of(Model(network, params, state, scaling, read), x)
    found = _scores(TASKS[task], read(outputs), y, label_scale)
    return {name: score for name, score in found.items() if not only or name in only}

  return jax.jit(layout.traced(scores), compiler_options=options_of(network, shape, layout))


def _scores(task: Task, distribution, y, label_scale) -> dict[str, jax.Array]:
  """Scores of each example, with those after label calibration where there is a scale."""
  found = task.scores(distribution, y)
  return found if label_scale is None else found | task.calibrated(distribution, y, label_scale)


# Up to this number of inputs, Eigen's products of matrices with parameters compiled in are faster than YNNPACK's.
FEW = 32


def frozen(network: Network, params: Tree, model_state: Tree) -> Callable:
  """Compiled `x -> [H, B, C]` for inputs as the network reads them, with the parameters compiled in.

  XLA lays dense heads out as one matrix then, which it would otherwise do in every call: at batch 1, 50
  heads cost little more than one. For small networks whose parameters stay as they are.
  """

  @functools.cache
  def compiled(few, shape):
    options = cpu.compiler_options(network.convolves(shape), float('inf') if few else 0.0)
    return jax.jit(lambda x: network.apply(params, model_state, x)[0], compiler_options=options)

  return lambda x: compiled(len(x) <= FEW, x.shape[1:])(x)


def predict(model: Model, x: np.ndarray, batch_size: int) -> np.ndarray:
  """Outputs `[H, N, C]` for N stored inputs; what students learn from."""
  f = functools.partial(predicting(model.network, x.shape[1:]), model.params, model.model_state, model.scaling)
  return in_batches(f, batch_size, standardised(model.scaling, x), axis=1)


def scorer(
  model: Model, task: str, shape: tuple[int, ...], only: Sequence[str] = (), label_scale: float | None = None
) -> Callable:
  """Compiled `(x, y) -> {score: [B, …]}` for inputs of a shape: all scores of the task, or `only` some by name.

  x and y are those of `Split.arrays`, and scores of targets in units of the network, see `Task.in_units`. With a
  `label_scale` there are also those of `Task.calibrated`.
  """
  f = scoring(model.network, shape, model.read, task, tuple(only))
  return functools.partial(f, model.params, model.model_state, model.scaling, _as_array(label_scale))


def _as_array(label_scale: float | None) -> np.ndarray | None:
  """So that programs do not depend on the value."""
  return None if label_scale is None else np.asarray(label_scale, np.float32)


def label_scale_of(outputs_HxVxC: np.ndarray, split: Split, read: Callable, task: Task, scaling: Scaling) -> float:
  """What label calibration finds: a temperature of the mean prediction, or a scale of all variances.

  Outputs are those that are evaluated, so heads are spread already; `maths.calibration` says why this order is sound.

  Args:
    outputs_HxVxC: For the inputs of the split.
    split: Examples that nothing was trained on.
    read: `outputs -> distribution`.
    task: Classification or regression.
    scaling: Of the targets.
  """
  distribution = jax.jit(read)(np.asarray(outputs_HxVxC, np.float32))
  return task.label_scale(distribution, scale_targets(scaling, split.y))


def concatenate_models(models: Sequence[Model]) -> Model:
  """Models of one data set, whatever their networks, as one whose heads are theirs, in order."""

  def init(key, x):
    return tuple(zip(*(model.network.init(key, x) for model in models)))

  def apply(params, state, x, key=None, train=False):
    found = [m.network.apply(p, s, x, key, train) for m, p, s in zip(models, params, state, strict=True)]
    return jnp.concatenate([outputs for outputs, _ in found]), tuple(state for _, state in found)

  heads = tuple(range(sum(len(model.network.heads) for model in models)))
  network = Network(init, apply, heads, 0)
  params, states = (tuple(getattr(model, name) for model in models) for name in ('params', 'model_state'))
  return replace(models[0], network=network, params=params, model_state=states)


@functools.lru_cache(maxsize=64)
def _scoring_outputs(read: Callable, task: str) -> Callable:
  f = lambda outputs_BxMxC, y, scale: _scores(TASKS[task], read(jnp.swapaxes(outputs_BxMxC, 0, 1)), y, scale)
  return jax.jit(f)


def score_outputs(
  outputs_MxNxC,
  split: Split,
  read: Callable,
  task: str,
  scaling: Scaling,
  batch_size: int,
  label_scale: float | None = None,
) -> Scores:
  """Scores of every example by outputs that are there already, `{score: [N]}`, in the units of the targets."""
  compiled, scale = _scoring_outputs(read, task), _as_array(label_scale)
  score = lambda outputs_BxMxC, y: compiled(outputs_BxMxC, y, scale)
  found = in_batches(score, batch_size, np.swapaxes(outputs_MxNxC, 0, 1), scale_targets(scaling, split.y))
  return TASKS[task].in_units(found, scaling.y_scale)


@functools.lru_cache(maxsize=8)
def _labelling(label: Callable) -> Callable:
  return jax.jit(lambda outputs_BxMxC, y: label(jnp.swapaxes(outputs_BxMxC, 0, 1), y))


def label_nll(outputs_MxNxC, split: Split, task: Task, scaling: Scaling, batch_size: int) -> np.ndarray:
  """−log density of the label by each member alone, `[M, N]`, in the units of the targets."""
  outputs, y = np.swapaxes(outputs_MxNxC, 0, 1), scale_targets(scaling, split.y)
  found = in_batches(_labelling(task.label), batch_size, outputs, y, axis=1)
  return task.in_units({'nll': found}, scaling.y_scale)['nll']


def score_split(score: Callable, data: Data, split: Split, size: int) -> Scores:
  """Scores of every example of one set, `{score: [N]}`, in the units of the targets.

  Args:
    score: Result of `scorer`.
    data: To which the set belongs.
    split: The set.
    size: Of a batch. Fewer examples are padded.
  """
  arrays = split.arrays(data.scaling)
  found = in_batches(score, size, np.asarray(arrays['x']), arrays['y'], fill=True)
  return TASKS[data.task].in_units(found, data.scaling.y_scale)


def score_all(
  model: Model,
  data: Data,
  batch_size: int,
  advance: Callable[[int], None] = lambda done: None,
  label_scale: float | None = None,
) -> dict[str, Scores]:
  """Scores of every example of every evaluation set, `{set: {score: [N]}}`, in the units of the targets.

  All sets are scored by one program. Batches are as large as the test set at most, and smaller sets are padded.
  """
  score = scorer(model, data.task, data.train.example.shape[1:], label_scale=label_scale)
  found, size = {}, 0
  for i, (name, evaluation) in enumerate(data.evaluations.items()):
    split = evaluation.load()
    size = size or min(batch_size, split.examples)
    found[name] = score_split(score, data, split, size)
    advance(i + 1)
  return found


# Metrics that need no labels.
LABEL_FREE = (*uncertainty.WORDS, 'disagreement')


def averages(scores: Scores, task: Task, bins: int, labelled: bool = True) -> dict[str, float]:
  """Metrics of one set, from the scores of its examples; of a set without labels, those that need none.

  Where the model uncertainty is no part of the total, there is no mean of it, see `uncertainty.has_size`.
  """
  left_out = () if uncertainty.has_size(scores) else ('uncertainty_epistemic',)
  found = {
    metric: float(np.mean(scores[score], dtype=np.float64))
    for metric, score in task.averages.items()
    if score in scores and metric not in left_out and (labelled or metric in LABEL_FREE)
  }
  return found | task.summary(scores, bins) if labelled else found


def rows(scores: dict[str, Scores], data: Data, task: Task, method: str, replica: int, bins: int) -> list[dict]:
  """Results as rows with the keys `split`, `method`, `replica`, `metric`, `value`, `n`."""
  found = []
  for name, evaluation in data.evaluations.items():
    if evaluation.kind == 'plane' or name not in scores:
      continue
    here, n = scores[name], len(scores[name]['uncertainty_epistemic'])
    values = averages(here, task, bins, labelled=evaluation.kind != 'ood')
    if name != 'test':
      values |= {
        f'{metric}_{by}': value
        for by in uncertainty.RANKINGS
        for metric, value in metrics.detection(scores['test'][by], here[by]).items()
      }
    found += [
      {'split': name, 'method': method, 'replica': replica, 'metric': m, 'value': v, 'n': n} for m, v in values.items()
    ]
  return found
