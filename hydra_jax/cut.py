"""The one idea: a network is cut at some depth, and tiled above the cut.

Below the cut is the body, shared by all; above it each head has parameters of its own, stacked along
a leading axis. A deep ensemble is the cut at 0, where nothing is shared; Hydra (Tran et al. 2020,
arXiv 2001.04694) is a cut above 0; a single network has one head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.stages import Stage, Tree, chain, unrolled


class Network(NamedTuple):
  """A cut network, as pure functions of explicit parameters.

  Attributes:
    init: `(key, x) -> (params, state)`, both `{'body': …, 'heads': …}`, heads stacked along axis 0.
    apply: `(params, state, x, key=None, train=False) -> (outputs [H, B, C], state)`. Those of
      `hydra` also take `only`, indices `[K]` of some heads, for the outputs of these, `[K, B, C]`.
    heads: Identity of each head. Head h draws its randomness from `heads[h]`.
    cut: Number of shared stages.
    convolution: Whether it convolves, see `Stage`.
  """

  init: Callable
  apply: Callable
  heads: tuple[int, ...]
  cut: int
  convolution: bool = False


def tile(stage: Stage, heads: Sequence[int]) -> Stage:
  """Copies of a stage side by side, reading the same input. Outputs, params and state gain axis 0.

  `apply` takes one more argument, `only`, the indices of the copies to apply.
  """
  ids = np.asarray(heads, np.uint32)

  def keys(key):
    return None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, ids)

  def init(key, x):
    return jax.vmap(stage.init, (0, None))(keys(key), x)

  def apply(params, state, x, key, train, only=None):
    one = lambda p, s, k: stage.apply(p, s, x, k, train)
    some = params, state, keys(key)
    if only is not None:
      some = jax.tree.map(lambda leaf: leaf[only], some)
    count = len(ids) if only is None else len(only)
    outputs, new = over_heads(one, count, unrolled(stage.convolution))(*some)
    return outputs, new if only is None else jax.tree.map(lambda old, leaf: old.at[only].set(leaf), state, new)

  return Stage(init, apply, stage.convolution)


def over_heads(one: Callable, heads: int, unroll: bool) -> Callable:
  """Maps a function over the leading axis of its arguments, in one program or written out head by head."""
  if not unroll:
    return jax.vmap(one)

  def each(*args):
    results = [one(*jax.tree.map(lambda leaf, h=h: leaf[h], args)) for h in range(heads)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

  return each


def hydra(stages: Sequence[Stage], cut: int, heads: int | Sequence[int], train_body: bool = True) -> Network:
  """Cuts a network: `stages[:cut]` is the shared body, `stages[cut:]` is tiled once for each head.

  Args:
    stages: The network.
    cut: Number of shared stages, 0 (a deep ensemble) to `len(stages) - 1` (last stage only in the
      heads); a negative cut counts from the end.
    heads: Number of heads, or the identity of each. Head i is initialised and draws its noise in
      the same way whatever other heads stand beside it: `hydra(stages, 0, [3])` is member 3 of
      `hydra(stages, 0, 20)`.
    train_body: Whether the body is in training mode when the network is (dropout, batch statistics).
  """
  heads = tuple(range(heads) if isinstance(heads, int) else heads)
  depth = len(stages)
  if not heads:
    raise UserError('a network needs at least one head: set heads to 1 or more')
  if not -depth <= cut < depth:
    raise UserError(f'cut={cut} is outside this network of {depth} stages: choose {-depth} to {depth - 1}')
  cut %= depth
  body = chain(stages[:cut])
  tiled = tile(chain(stages[cut:], first=cut), heads)

  def init(key, x):
    # A one-headed network starts the same wherever it is cut.
    params, state = body.init(jax.random.fold_in(key, heads[0]), x)
    features, _ = body.apply(params, state, x, None, False)
    head_params, head_state = tiled.init(key, features)
    return {'body': params, 'heads': head_params}, {'body': state, 'heads': head_state}

  def apply(params, state, x, key=None, train=False, only=None):
    body_key = None if key is None else jax.random.fold_in(key, heads[0])
    x, body_state = body.apply(params['body'], state['body'], x, body_key, train and train_body)
    x, head_state = tiled.apply(params['heads'], state['heads'], x, key, train, only)
    return x, {'body': body_state, 'heads': head_state}

  return Network(init, apply, heads, cut, body.convolution or tiled.convolution)


def sampled(network: Network, samples: int) -> Network:
  """A one-headed network with noise, such as dropout, that stays on when it predicts.

  Outputs are `[samples, B, C]` in evaluation, each with noise from a fixed key, and `[1, B, C]` in
  training.
  """

  def apply(params, state, x, key=None, train=False):
    if train:
      return network.apply(params, state, x, key, train)
    keys = jax.random.split(jax.random.key(0), samples)
    one = lambda k: network.apply(params, state, x, k, True)[0][0]
    outputs = over_heads(one, samples, unrolled(network.convolution))(keys)
    return outputs, state

  return network._replace(apply=apply)


def grow(tree: Tree, heads: int) -> Tree:
  """Turns the params or state of a one-headed network into those of `heads` identical heads."""
  copies = lambda leaf: jnp.broadcast_to(leaf[:1], (heads, *leaf.shape[1:]))
  return {'body': tree['body'], 'heads': jax.tree.map(copies, tree['heads'])}
