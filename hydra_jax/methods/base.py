"""What a method is made of: phases of training, and how the outputs are read.

A method is a class of settings and a function of such settings and of a context. The function returns phases. Where a
phase has more heads than the phase before, they start as copies of its one head. To add a method to the package, write
both and add one row to `registry.METHODS`. A method in a file of the user is a `Method` with a name in that file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax

from hydra_jax.maths.tasks import Task
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Stage

Loss = Callable[[jax.Array, dict[str, jax.Array]], jax.Array]


@dataclass(frozen=True)
class MethodContext:
  """What a method is given besides its settings.

  Attributes:
    task: Classification or regression.
    stages: `stages(predictive, times=1)` is the network, with as many outputs as that predictive
      reads, or `times` times more.
    members: Number of members of the teacher.
    mapping: How heads are mapped, see `mapping.over_heads`.
  """

  task: Task
  stages: Callable[..., list[Stage]]
  members: int
  mapping: str = 'auto'

  def network(self, at: int, heads: int, predictive: str = 'members', train_body: bool = True) -> cut.Network:
    """The network, cut and tiled."""
    return cut.multi_head(self.stages(predictive), at, heads, train_body, self.mapping)


@dataclass(frozen=True)
class Fit:
  """What a phase finds in closed form when its training is over: one pass over the training examples.

  Examples come in batches, as they are stored, not augmented. Their sums are added up in float64. Several fits are made
  one after another, so that a second one can measure around what the first one has found.

  Attributes:
    measure: `(params, state, batch) -> tree of sums over the examples of the batch`. The batch has scaled inputs `x`,
      labels `y`, and `weight` `[B]`, by which each example counts: 0 for rows that fill up the last batch. Labels of −1
      are none.
    solve: `(state, sums) -> state`, of the network. It is called on the host, with NumPy arrays, the sums in float64.

  Example:
    >>> mean = Fit(
    ...   lambda params, state, batch: (batch['weight'] @ batch['x'], batch['weight'].sum()),
    ...   lambda state, sums: {**state, 'mean': sums[0] / sums[1]},
    ... )
  """

  measure: Callable[[Any, Any, dict[str, jax.Array]], Any]
  solve: Callable[[Any, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Phase:
  """One stretch of training against one loss.

  Attributes:
    name: Shown to the user.
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`; the batch has `x`, `y`, `done` (the share of the
      phase that is over), maybe `teacher` [M, B, C], and what `augment.mixup` adds.
    common: `outputs [H, B, C] -> [H, B, …]`. Its mean over all heads, without a gradient, stands in the batch as
      `common` `[B, …]`, for losses that depend on all heads.
    reduction: The loss of each head `[H]` is reduced by this to the number that is minimised.
    epochs: Passes over the training data; None: those in the settings of training.
    unread: Settings of the method that this phase does not read. All others are part of the key of its result.
    distils: Whether the loss reads the teacher's predictions.
    frozen: Parts of the parameters that stay as they are.
    penalty: Added to the objective, `params -> ()`.
    draws: What a step draws where the settings of training have `members_per_step`. `members`: the gradient of the
      loss is a mean over the members in `batch['teacher']`, so that it is unbiased. `heads`: head m learns from member
      m, and is drawn with it. `nothing`: the loss needs all members at once.
    fits: What is found in closed form when the phase has been trained, one after another.
    folds: Number of parts of the examples; 0: there are none. The batch has `fold` `[B]`, the part of each example.
  """

  name: str
  network: cut.Network
  loss: Loss
  reduction: Literal['sum', 'mean']
  epochs: float | None = None
  unread: tuple[str, ...] = ()
  distils: bool = True
  frozen: tuple[str, ...] = ()
  common: Callable[[jax.Array], jax.Array] | None = None
  penalty: Callable[[Any], jax.Array] | None = None
  draws: Literal['members', 'heads', 'nothing'] = 'nothing'
  fits: tuple[Fit, ...] = ()
  folds: int = 0


@dataclass(frozen=True)
class NoSettings:
  """Settings of a method that has none but those of training."""


@dataclass(frozen=True)
class Method:
  """A row of `METHODS`, or a method of the user's own.

  Attributes:
    phases: How it is trained, `(settings, context) -> phases`.
    settings: The class of its settings: a frozen dataclass whose fields are made by `hydra_jax.settings.setting`.
    learns_from: Whether students learn from the `members` of the teacher, or from `labels` alone.
    predictive: Which of the task's predictives reads its outputs.
    matched: Whether head m is meant to be like member m.
  """

  phases: Callable[[Any, MethodContext], list[Phase]]
  settings: type = NoSettings
  learns_from: Literal['members', 'labels'] = 'members'
  predictive: str = 'members'
  matched: bool = False


def label_loss(task: Task, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
  """Loss against the labels `[H, B]`; of mixed inputs, against both labels by their shares (Zhang et al. 2018)."""
  return by_shares(lambda y: task.label(outputs, y), batch)


def by_shares(loss: Callable[[jax.Array], jax.Array], batch: dict[str, jax.Array]) -> jax.Array:
  """A loss `y -> [H, B]` of the labels of a batch; of mixed inputs, of both labels by their shares."""
  if 'share' not in batch:
    return loss(batch['y'])
  share = batch['share'][None]
  return share * loss(batch['y']) + (1 - share) * loss(batch['other_y'])


def against_labels(network: cut.Network, context: MethodContext) -> Phase:
  """Heads against the labels. Their losses are added, so that each head is trained as if it were alone."""
  loss = lambda outputs, batch: label_loss(context.task, outputs, batch)
  return Phase(name='labels', network=network, loss=loss, reduction='sum', distils=False)


def mean_prediction(
  network: cut.Network, settings: Any, context: MethodContext, epochs: float | None = None, unread: tuple[str, ...] = ()
) -> Phase:
  """Heads against the mean prediction of the members."""
  mean = lambda outputs, batch: context.task.mean(outputs, batch['teacher'], settings.temperature)
  loss = with_labels(mean, settings, context)
  return Phase(
    name='mean prediction',
    network=network,
    loss=loss,
    reduction='mean',
    epochs=epochs,
    unread=unread,
    draws='members',
  )


def with_labels(loss: Loss, settings: Any, context: MethodContext) -> Loss:
  """Mixes the loss with that against the labels, `(1 − w) distillation + w labels` (Hinton et al. 2015)."""
  weight = settings.label_weight
  if not weight:
    return loss
  labels = lambda outputs, batch: label_loss(context.task, outputs, batch)
  return lambda outputs, batch: (1 - weight) * loss(outputs, batch) + weight * labels(outputs, batch)
