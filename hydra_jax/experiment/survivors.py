"""What becomes of an ensemble some of whose members have diverged, where config.on_nan lets it go on."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.experiment.replicas import Replica, Trained
from hydra_jax.nets import cut
from hydra_jax.nets.stages import Tree
from hydra_jax.progress import say


def of(network: cut.Network, each: Sequence[tuple[Tree, Tree]], name: str, on_nan: str):
  """A network, with the parameters and state of each replica, without members that have diverged in any of them."""
  finite_H = lambda leaf: np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
  finite = [finite_H(np.asarray(leaf)) for params, _ in each for leaf in jax.tree.leaves(params['heads'])]
  lost = np.flatnonzero(~np.all(finite, axis=0)).tolist()
  if not lost:
    return network, each
  which = ', '.join(map(str, lost))
  if on_nan == 'stop':
    raise UserError(f'{name}: members {which} have diverged: lower the learning rate, or set on_nan to skip-member')
  say(f'{name}: goes on without members {which} of {len(network.heads)}, which have diverged')
  without = [cut.without(network, *mine, lost) for mine in each]
  return without[0][0], [mine for _, *mine in without]


def for_members(group: Sequence[Replica], members: int) -> Sequence[Replica]:
  """Replicas whose students learn from so many members, where some were lost: no more heads than that."""
  config = group[0].config
  if members == config.teacher.members:
    return group
  fewer = config.copy_and_resolve_references()
  for settings in fewer.student.values():
    if settings.get('heads') == config.teacher.members:
      settings.heads = members
  fewer.teacher.members = members
  return [replica._replace(config=fewer) for replica in group]


def note(name: str, trained: Trained, config: ConfigDict) -> str:
  """What the reader of the table has to know of a row."""
  wanted, model = config.teacher.members, trained.model
  members = name == 'ensemble' or config.student[name].method == 'small_ensemble'
  if not members or model is None or len(model.network.heads) == wanted:
    return ''
  return f'{name}: {len(model.network.heads)} of {wanted} members, the others have diverged (config.on_nan)'
