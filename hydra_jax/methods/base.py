"""The methods: each a row that says how a network is trained, phase by phase, and how it is read.

A method is a function of its settings (the part of the config under `teacher` or `student.<name>`)
and of what it builds on, and returns phases. Where a phase has more heads than the one before, they
start as copies of its one head. To add a method, write one function and add one row to `METHODS`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.errors import UserError
from hydra_jax.maths import losses, prior_networks
from hydra_jax.maths.tasks import Task
from hydra_jax.methods import latent_factor
from hydra_jax.nets import batch_ensemble as batch_ensembles, cut
from hydra_jax.nets.stages import Stage


class Ground(NamedTuple):
  """What a method builds on.

  Attributes:
    task: Classification or regression.
    stages: `stages(predictive, times=1)` is the network, with as many outputs as that predictive
      reads, or so many times more.
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


class Phase(NamedTuple):
  """One stretch of training against one loss.

  Attributes:
    name: Shown to the user.
    network: What is trained.
    loss: `(outputs [H, B, C], batch) -> [H, B]`; the batch has `x`, `y`, `done` (the share of the
      phase that is over), maybe `teacher` [M, B, C], and what `augment.mixup` adds.
    reduction: The loss of each head `[H]` is reduced by this to the number that is minimised.
    epochs: Passes over the training data.
    unread: Settings of the method that this phase does not read. All others are part of the key of its result.
    distils: Whether the loss reads the teacher's predictions.
    frozen: Parts of the parameters that stay as they are.
    penalty: Added to the objective, `params -> ()`.
    heads_per_step: So many heads, drawn anew, are trained at each step; 0 for all.
  """

  name: str
  network: cut.Network
  loss: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
  reduction: Literal['sum', 'mean']
  epochs: float
  unread: tuple[str, ...] = ()
  distils: bool = True
  frozen: tuple[str, ...] = ()
  penalty: Callable[[Any], jax.Array] | None = None
  heads_per_step: int = 0


class Method(NamedTuple):
  """A row of `METHODS`.

  Attributes:
    phases: How it is trained.
    predictive: Which of the task's predictives reads its outputs.
    matched: Whether head m is meant to be like member m.
  """

  phases: Callable[[Any, Ground], list[Phase]]
  predictive: str = 'members'
  matched: bool = False


def label_loss(task: Task, outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
  """Loss against the labels `[H, B]`; of mixed inputs, against both labels by their shares (Zhang et al. 2018)."""
  loss = task.label(outputs, batch['y'])
  if 'share' not in batch:
    return loss
  share = batch['share'][None]
  return share * loss + (1 - share) * task.label(outputs, batch['other_y'])


def _against_labels(network: cut.Network, settings, ground: Ground, unread: tuple[str, ...] = ()) -> Phase:
  loss = lambda outputs, batch: label_loss(ground.task, outputs, batch)
  return Phase('labels', network, loss, 'sum', settings.epochs, unread, distils=False)


def ensemble(settings, ground: Ground) -> list[Phase]:
  """Deep ensemble (Lakshminarayanan et al. 2017): nothing shared, each member against the labels.

  The members' losses are added, so that each is trained as if it were alone.
  """
  network = ground.network(0, settings.members)
  return [_against_labels(network, settings, ground, unread=('predictions', 'checkpoints', 'keep_as'))]


def single(settings, ground: Ground) -> list[Phase]:
  """One network against the labels."""
  return [_against_labels(ground.network(0, 1), settings, ground)]


def mc_dropout(settings, ground: Ground) -> list[Phase]:
  """One network against the labels with dropout, which stays on when it predicts (Gal, Ghahramani 2016).

  Each of `samples` passes with other units dropped is a member.
  """
  dropped = cut.multi_head(with_dropout(ground.stages('members'), settings.rate), 0, 1)
  network = cut.sampled(dropped, settings.samples)
  return [_against_labels(network, settings, ground)]


def with_dropout(stages: list[Stage], rate: float) -> list[Stage]:
  """Drops a share `rate` of the features between stages."""

  def apply(params, state, x, key, train):
    if not train:
      return x, state
    draw = lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:])
    kept = jax.vmap(draw)(collectives.example_keys(key, len(x)))
    return jnp.where(kept, x / (1 - rate), 0), state

  drop = Stage(lambda key, x: ((), ()), apply)
  return [s for stage in stages[:-1] for s in (stage, drop)] + stages[-1:]


def _hinton(network: cut.Network, settings, ground: Ground, epochs: float, unread: tuple[str, ...] = ()) -> Phase:
  mean = lambda outputs, batch: ground.task.mean(outputs, batch['teacher'], settings.temperature)
  return Phase('mean prediction', network, _with_labels(mean, settings, ground), 'mean', epochs, unread)


def _with_labels(loss, settings, ground: Ground):
  """Mixes the loss with that against the labels, `(1 − w) distillation + w labels` (Hinton et al. 2015)."""
  weight = settings.label_weight
  if not weight:
    return loss
  labels = lambda outputs, batch: label_loss(ground.task, outputs, batch)
  return lambda outputs, batch: (1 - weight) * loss(outputs, batch) + weight * labels(outputs, batch)


def kd(settings, ground: Ground) -> list[Phase]:
  """Knowledge distillation (Hinton et al. 2015): one head against the mean of the members."""
  return [_hinton(ground.network(0, 1), settings, ground, settings.epochs)]


# Settings of `hydra` that its first phase, with one head, does not read.
OF_MANY_HEADS = ('epochs', 'heads', 'grouping', 'heads_per_step', 'diversity_weight', 'freeze_body')


def hydra(settings, ground: Ground) -> list[Phase]:
  """Hydra (Tran et al. 2020): each head against its own members; with `hinton_epochs`, after a phase with one head."""
  one = ground.network(settings.cut, 1)
  network = ground.network(settings.cut, settings.heads, train_body=not settings.freeze_body)
  groups = GROUPINGS[settings.grouping](ground.members, settings.heads)
  loss = _with_labels(_member_loss(groups, settings, ground), settings, ground)
  if settings.heads_per_step > settings.heads:
    raise UserError(
      f'heads_per_step={settings.heads_per_step} of {settings.heads} heads: set it to fewer, or 0 for all'
    )
  if settings.freeze_body and not settings.hinton_epochs:
    raise UserError('freeze_body would keep a body that has learnt nothing: set hinton_epochs, which train it first')
  heads = Phase(
    'members',
    network,
    loss,
    'mean',
    settings.epochs,
    unread=('hinton_epochs',),  # what the first phase left is part of the key
    frozen=('body',) if settings.freeze_body else (),
    penalty=_similarity_of_heads(settings.diversity_weight) if settings.diversity_weight else None,
    heads_per_step=settings.heads_per_step,
  )
  if not settings.hinton_epochs:
    return [heads]
  return [_hinton(one, settings, ground, settings.hinton_epochs, OF_MANY_HEADS), heads]


def _similarity_of_heads(weight: float):
  """The diversity term of Hydra+ (Ferianc and Rodrigues 2022), on the kernels of the heads."""
  kernels = lambda params: [leaf for leaf in jax.tree.leaves(params['heads']) if leaf.ndim > 2]
  return lambda params: weight * losses.similarity(kernels(params))


def _member_loss(groups_M: np.ndarray, settings, ground: Ground):
  """Each head against the members of its group, `[H, B]`; one each in the paper.

  Where a step trains some of the heads, these are in `batch['heads']`.
  """
  groups = [np.flatnonzero(groups_M == h) for h in range(max(groups_M) + 1)]
  largest = max(map(len, groups))
  # Groups are filled up to one size with members of weight 0.
  members_HxG = np.stack([np.resize(group, largest) for group in groups])
  weights_HxG = np.stack([(np.arange(largest) < len(group)) / np.float32(len(group)) for group in groups])

  def loss(outputs, batch):
    heads = batch.get('heads', np.arange(len(groups)))
    members, weights = jnp.asarray(members_HxG)[heads], jnp.asarray(weights_HxG)[heads]
    against = lambda g: ground.task.member(outputs, batch['teacher'][members[:, g]], settings.temperature)
    return sum(weights[:, g, None] * against(g) for g in range(largest))

  return loss


def _one_each(members: int, heads: int) -> np.ndarray:
  if members != heads:
    raise UserError(
      f'{heads} heads for {members} members, and each head learns one: set heads to {members}, '
      f'config.teacher.members to {heads}, or grouping to round_robin'
    )
  return np.arange(members)


def _round_robin(members: int, heads: int) -> np.ndarray:
  if heads > members:
    raise UserError(f'{heads} heads for {members} members: set heads to {members} or fewer')
  return np.arange(members) % heads


# Which head learns which member, `(members, heads) -> head of each member [M]`.
GROUPINGS = {'one_each': _one_each, 'round_robin': _round_robin}


def small_ensemble(settings, ground: Ground) -> list[Phase]:
  """As many small independent networks as members, each distilled from one: a Hydra without a body."""
  network = ground.network(0, ground.members)
  loss = _member_loss(np.arange(ground.members), settings, ground)
  return [Phase('members', network, loss, 'sum', settings.epochs)]


def batch_ensemble(settings, ground: Ground) -> list[Phase]:
  """BatchEnsemble (Wen et al. 2020): members that differ by rank-one factors, each against its own."""
  network = batch_ensembles.batch_ensemble(ground.stages('members'), ground.members, ground.mapping)
  loss = _member_loss(np.arange(ground.members), settings, ground)
  return [Phase('members', network, loss, 'mean', settings.epochs)]


def endd(settings, ground: Ground) -> list[Phase]:
  """EnD² (Malinin et al. 2020): one distribution over predictions, by likelihood of all members.

  A Dirichlet, or in regression a normal-Wishart (arXiv 2006.11590), with a temperature that falls
  from `start_temperature` to 1 over the first half of the training.
  """

  def loss(outputs, batch):
    temperature = prior_networks.annealed(batch['done'], settings.start_temperature)
    return ground.task.prior(outputs, batch['teacher'], temperature)

  return [Phase('all members', ground.network(0, 1, 'prior'), loss, 'mean', settings.epochs)]


def proxy_endd(settings, ground: Ground) -> list[Phase]:
  """Proxy-EnD² (Ryabinin et al. 2021): reverse KL to a Dirichlet that stands for the members."""
  if ground.task.proxy is None:
    raise UserError('proxy_endd is for classification: leave it out of config.students, or use endd')
  loss = lambda outputs, batch: ground.task.proxy(outputs, batch['teacher'])
  return [Phase('all members', ground.network(0, 1, 'prior'), loss, 'mean', settings.epochs)]


def dlf(settings, ground: Ground) -> list[Phase]:
  """Gaussian distillation (Park et al. 2025): a deep latent factor model μ(x) + Φ(x) z + noise, by EM.

  First the mean alone, against the members' mean. It predicts as `samples` members drawn from it.
  """
  if settings.samples % 2:
    raise UserError(f'samples={settings.samples} are drawn in pairs: set it to an even number')
  network = latent_factor.network(
    ground.stages('members', latent_factor.width(settings.factors)), settings.factors, settings.samples
  )

  def phase(name, loss_of, epochs, unread):
    loss = lambda outputs, batch: loss_of(outputs, ground.task.canonical(batch['teacher']), settings.factors)
    return Phase(name, network, loss, 'mean', epochs, unread)

  factors = phase('factors', latent_factor.expanded_nll, settings.epochs, ('mean_epochs',))
  if not settings.mean_epochs:
    return [factors]
  return [phase('mean', latent_factor.mean_error, settings.mean_epochs, ('epochs',)), factors]


METHODS: dict[str, Method] = {
  'single': Method(single),
  'ensemble': Method(ensemble),
  'mc_dropout': Method(mc_dropout),
  'kd': Method(kd),
  'hydra': Method(hydra, matched=True),
  'small_ensemble': Method(small_ensemble, matched=True),
  'batch_ensemble': Method(batch_ensemble, matched=True),
  'endd': Method(endd, 'prior'),
  'proxy_endd': Method(proxy_endd, 'prior'),
  'dlf': Method(dlf),
}
