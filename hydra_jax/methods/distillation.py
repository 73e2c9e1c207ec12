"""Methods whose heads learn from single members, or from their mean: knowledge distillation, Hydra and its rivals."""

from dataclasses import dataclass
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.errors import UserError
from hydra_jax.maths import losses
from hydra_jax.methods.base import Loss, MethodContext, Phase, mean_prediction, with_labels
from hydra_jax.nets import batch_ensemble as batch_ensembles, cut
from hydra_jax.settings import COUNT, COUNT_OR_0, FLAG, NOT_NEGATIVE, POSITIVE, SHARE, WHOLE, one_of, setting


def _one_each(members: int, heads: int) -> np.ndarray:
  if members != heads:
    raise UserError(
      f'{heads} heads for {members} members, and each head learns one: set heads to 0 or {members}, '
      f'config.teacher.members to {heads}, or grouping to round_robin'
    )
  return np.arange(members)


def _round_robin(members: int, heads: int) -> np.ndarray:
  if heads > members:
    raise UserError(f'{heads} heads for {members} members: set heads to {members} or fewer')
  return np.arange(members) % heads


# Which head learns which member, `(members, heads) -> head of each member [M]`.
GROUPINGS = {'one_each': _one_each, 'round_robin': _round_robin}


CALIBRATE = 'Makes the disagreement of the heads as large as that of the members, on the validation part.'


@dataclass(frozen=True)
class KD:
  """Settings of `kd`."""

  temperature: float = setting(1.0, POSITIVE, 'Of the softmax of members and student.')
  label_weight: float = setting(0.0, SHARE, 'Share of the loss that is against the labels.')


def kd(settings: KD, context: MethodContext) -> list[Phase]:
  """Knowledge distillation (Hinton et al. 2015): one head against the mean of the members."""
  return [mean_prediction(context.network(0, 1), settings, context)]


@dataclass(frozen=True)
class Hydra:
  """Settings of `hydra`."""

  heads: int = setting(0, COUNT_OR_0, 'Number of heads; 0: one for each member.')
  cut: int = setting(-1, WHOLE, 'Stages in the body. Negative numbers count from the end: −1 is dense heads only.')
  grouping: str = setting('one_each', one_of(GROUPINGS, 'grouping'), 'Which members each head learns.')
  temperature: float = setting(3.0, POSITIVE, 'Of the softmax of members and heads.')
  mean_weight: float = setting(
    3.0, NOT_NEGATIVE, 'Of KL(mean of the members ‖ mean of the heads) in the loss, in classification.'
  )
  calibrate_spread: bool = setting(True, FLAG, CALIBRATE)
  label_weight: float = setting(0.0, SHARE, 'Share of the loss that is against the labels.')
  hinton_epochs: float = setting(
    0.0, NOT_NEGATIVE, 'Passes of a first phase, one head on the mean prediction; 0: none.'
  )
  diversity_weight: float = setting(0.0, NOT_NEGATIVE, 'Of the term that keeps heads apart (Hydra+).')
  freeze_body: bool = setting(False, FLAG, 'Keeps the body as the first phase left it.')


# Settings of `hydra` that its first phase, with one head, does not read.
OF_MANY_HEADS = ('heads', 'grouping', 'diversity_weight', 'freeze_body', 'mean_weight')


def hydra(settings: Hydra, context: MethodContext) -> list[Phase]:
  """Hydra (Tran et al. 2020): each head against its own members; with `hinton_epochs`, after a phase with one head."""
  count = settings.heads or context.members
  groups = GROUPINGS[settings.grouping](context.members, count)
  if settings.freeze_body and not settings.hinton_epochs:
    raise UserError('freeze_body would keep a body that has learnt nothing: set hinton_epochs, which train it first')
  one_each = count == context.members
  loss = with_labels(member_loss(groups, settings, context, rescales=not one_each), settings, context)
  has_mean_term = bool(settings.mean_weight) and context.task.mean_term is not None
  heads = Phase(
    name='members',
    network=context.network(settings.cut, count, train_body=not settings.freeze_body),
    loss=with_mean_term(loss, settings.mean_weight, context) if has_mean_term else loss,
    common=jax.nn.softmax if has_mean_term else None,
    reduction='mean',
    unread=('hinton_epochs',),  # what the first phase left is part of the key
    frozen=('body',) if settings.freeze_body else (),
    penalty=_similarity_of_heads(settings.diversity_weight) if settings.diversity_weight else None,
    draws='heads' if one_each else 'members',
  )
  if not settings.hinton_epochs:
    return [heads]
  one = context.network(settings.cut, 1)
  return [mean_prediction(one, settings, context, settings.hinton_epochs, OF_MANY_HEADS), heads]


def with_mean_term(loss: Loss, weight: float, context: MethodContext) -> Loss:
  """Adds `weight` times the term on the mean prediction of all heads, see `losses.mean_term`.

  Where heads are drawn, it compares the mean of these heads with that of their members.
  """
  mean_term = context.task.mean_term
  assert mean_term is not None  # regression has none
  return lambda outputs, batch: loss(outputs, batch) + weight * mean_term(outputs, batch['teacher'], batch['common'])


def _similarity_of_heads(weight: float):
  """The diversity term of Hydra+ (Ferianc and Rodrigues 2022), on the kernels of the heads."""
  kernels = lambda params: [leaf for leaf in jax.tree.leaves(params['heads']) if leaf.ndim > 2]
  over_devices = functools.partial(collectives.mean_over, 'head')
  return lambda params: weight * losses.similarity(kernels(params), over_devices)


def member_loss(groups_M: np.ndarray, settings, context: MethodContext, rescales: bool = False):
  """Each head against the members of its group, `[H, B]`; one each in the paper.

  Where a step trains some of the heads, these are in `batch['heads']`. Where it draws members, these are in
  `batch['drawn']`.

  Args:
    groups_M: The head that learns from each member.
    settings: With a temperature.
    context: Of the method.
    rescales: Whether all heads are computed where members are drawn. Then a loss against a member that is not drawn is
      0, and the others weigh M/K times as much, so that the expected gradient is that of all members.
  """
  groups = [np.flatnonzero(groups_M == h) for h in range(max(groups_M) + 1)]
  largest = max(map(len, groups))
  # Groups are filled up to one size with members of weight 0.
  members_HxG = np.stack([np.resize(group, largest) for group in groups])
  weights_HxG = np.stack([(np.arange(largest) < len(group)) / np.float32(len(group)) for group in groups])

  def loss(outputs, batch):
    heads = batch.get('heads', np.arange(len(groups)))
    teacher = jnp.asarray(batch['teacher'])
    members_GxH, weights_GxH = jnp.asarray(members_HxG)[heads].T, jnp.asarray(weights_HxG)[heads].T
    if 'drawn' in batch:
      is_drawn = members_GxH[..., None] == batch['drawn'][None, None]
      members_GxH = jnp.argmax(is_drawn, axis=-1)  # the place among the members that are drawn
      if rescales:
        weights_GxH = jnp.where(jnp.any(is_drawn, axis=-1), len(groups_M) / len(teacher) * weights_GxH, 0)
    # One program for all places in a group: written out, XLA compiles 50 members of one head for minutes.
    against = jax.vmap(lambda place_H: context.task.member(outputs, teacher[place_H], settings.temperature))
    return jnp.sum(weights_GxH[..., None] * against(members_GxH), axis=0)

  return loss


@dataclass(frozen=True)
class Temperature:
  """Settings of `small_ensemble`."""

  temperature: float = setting(1.0, POSITIVE, 'Of the softmax of members and student.')
  calibrate_spread: bool = setting(True, FLAG, CALIBRATE)


def small_ensemble(settings: Temperature, context: MethodContext) -> list[Phase]:
  """As many small independent networks as members, each distilled from one: a Hydra without a body."""
  network = context.network(0, context.members)
  loss = member_loss(np.arange(context.members), settings, context)
  return [Phase(name='members', network=network, loss=loss, reduction='sum', draws='heads')]


@dataclass(frozen=True)
class BatchEnsemble:
  """Settings of `batch_ensemble`."""

  rank: int = setting(1, COUNT, 'Of the factors by which a member differs. 1: as in the paper.')
  temperature: float = setting(1.0, POSITIVE, 'Of the softmax of members and student.')
  calibrate_spread: bool = setting(True, FLAG, CALIBRATE)


def batch_ensemble(settings: BatchEnsemble, context: MethodContext) -> list[Phase]:
  """BatchEnsemble (Wen et al. 2020): members that differ by factors of rank one or more, each against its own."""
  network = batch_ensembles.batch_ensemble(context.stages('members'), context.members, context.mapping, settings.rank)
  return [_shared_kernels(network, settings, context)]


def _shared_kernels(network: cut.Network, settings, context: MethodContext) -> Phase:
  loss = member_loss(np.arange(context.members), settings, context, rescales=True)
  return Phase(name='members', network=network, loss=loss, reduction='mean', draws='members')


@dataclass(frozen=True)
class LatentBatchEnsemble:
  """Settings of `latent_batch_ensemble`."""

  temperature: float = setting(1.0, POSITIVE, 'Of the softmax of members and student.')


def latent_batch_ensemble(settings: LatentBatchEnsemble, context: MethodContext) -> list[Phase]:
  """LBE (Nam et al. 2022): a BatchEnsemble, each member against its own, then averaged into one network.

  The paper trains it on `ods` inputs: set `augment`.
  """
  network = batch_ensembles.averaged(context.stages('members'), context.members, context.mapping)
  return [_shared_kernels(network, settings, context)]
