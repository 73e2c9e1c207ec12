"""The one idea: a network is cut at some depth, and tiled above the cut.

Below the cut is the body, which all heads share. Above the cut each head has its own parameters, stacked along a
leading axis. A deep ensemble is the cut at 0, where nothing is shared. Hydra (Tran et al. 2020, arXiv 2001.04694) is a
cut above 0. A single network has one head.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.errors import UserError
from hydra_jax.nets.mapping import choose, convolves, over_heads
from hydra_jax.nets.stages import Stage, Tree, chain


class Network(NamedTuple):
  """A cut network, as pure functions of explicit parameters.

  Attributes:
    init: `(key, x) -> (params, state)`, both `{'body': …, 'heads': …}`, heads stacked along axis 0. x is an example
      input `[B, …]`.
    apply: `(params, state, x, key=None, train=False) -> (outputs [H, B, C], state)`. The key is needed where something
      is random, such as dropout. Networks with `body_and_heads` also take `head_indices` `[K]`, for parameters and
      state of these heads only.
    heads: Identity of each head. Head h draws its randomness from `heads[h]`.
    cut: Number of shared stages.
    mapping: How heads are mapped, see `mapping.over_heads`.
    body_and_heads: The body, and the stage that is tiled above it; None for networks of another structure. `apply` of
      the tiled stage also takes the identities `[K]` of the heads whose parameters it is given.
    reads_teacher: Whether `apply`, in training, also takes what the members say, `teacher` `[M, B, C]`.
  """

  init: Callable
  apply: Callable
  heads: tuple[int, ...]
  cut: int
  mapping: str = 'auto'
  body_and_heads: tuple[Stage, Stage] | None = None
  reads_teacher: bool = False

  @property
  def can_split(self) -> bool:
    """Whether heads are independent above the cut, so that each can be trained on another device."""
    return self.body_and_heads is not None and len(self.heads) > 1

  def convolves(self, shape: tuple[int, ...]) -> bool:
    """Whether the network convolves inputs of a shape, which is given without the batch axis."""
    return _convolves(self, shape)


@functools.lru_cache(maxsize=256)
def rescaled(network: Network, rescale: Callable[[jax.Array, jax.Array], jax.Array]) -> Network:
  """The network with outputs `rescale(outputs, params['spread'])`; its params have that entry besides.

  Args:
    network: Any network.
    rescale: `(outputs [H, B, C], spread []) -> outputs`, such as `calibration.spread_logits`.

  Returns:
    A network to predict with. Its heads cannot be spread over devices.
  """

  def init(key, x):
    params, state = network.init(key, x)
    return {**params, 'spread': jnp.float32(1)}, state

  def apply(params, state, x, key=None, train=False, **some):
    inside = {name: tree for name, tree in params.items() if name != 'spread'}
    outputs, state = network.apply(inside, state, x, key, train, **some)
    return rescale(outputs, params['spread']), state

  return network._replace(init=init, apply=apply, body_and_heads=None)


@functools.lru_cache(maxsize=256)
def shapes_of(network: Network, shape: tuple[int, ...]) -> tuple[Tree, Tree]:
  """Abstract parameters and state of a network.

  Args:
    network: The network.
    shape: Of an input, without the batch axis.
  """
  return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))


@functools.lru_cache(maxsize=256)
def _convolves(network: Network, shape: tuple[int, ...]) -> bool:
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  return convolves(lambda params, state, x: network.apply(params, state, x)[0], *shapes_of(network, shape), x)


def _copies_convolve(stage: Stage, x: jax.Array, train: bool, arguments: Tree) -> bool:
  """Whether copies of a stage that read `x` convolve; the arguments have the axis of the copies."""
  leaves, tree = jax.tree.flatten(arguments)
  one = (1, *x.shape[1:])  # which is traced once for batches of all sizes
  return _stage_convolves(stage, train, (one, x.dtype), tree, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves))


@functools.lru_cache(maxsize=1024)
def _stage_convolves(stage: Stage, train: bool, of_x: tuple, tree: Any, of_leaves: tuple[tuple, ...]) -> bool:
  """Whether a stage convolves inputs of a shape and dtype; to find out, it is traced."""
  params, state, key = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*each) for each in of_leaves])
  apply = lambda params, state, x, key: stage.apply(params, state, x, key, train)
  return convolves(apply, params, state, jax.ShapeDtypeStruct(*of_x), key)


def tile(stage: Stage, mapping: str) -> Stage:
  """Copies of a stage that read the same input. Outputs, params and state gain axis 0.

  Args:
    stage: The stage.
    mapping: How copies are mapped, see `mapping.over_heads`.

  Returns:
    A stage whose `init` and `apply` take the identities `[K]` of the copies as their last argument.
  """

  def keys(key, heads_K):
    return None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, heads_K)

  def init(key, x, heads_K):
    return jax.vmap(stage.init, (0, None))(keys(key, heads_K), x)

  def apply(params, state, x, key, train, heads_K):
    copy = lambda p, s, k: stage.apply(p, s, x, k, train)
    arguments = params, state, keys(key, heads_K)
    how = choose(mapping, lambda: _copies_convolve(stage, x, train, arguments))
    return over_heads(copy, len(heads_K), how)(*arguments)

  return Stage(init, apply)


def multi_head(
  stages: Sequence[Stage], cut: int, heads: int | Sequence[int], train_body: bool = True, mapping: str = 'auto'
) -> Network:
  """Cuts a network: `stages[:cut]` is the shared body, `stages[cut:]` is tiled once for each head.

  Args:
    stages: The network.
    cut: Number of shared stages, 0 (a deep ensemble) to `len(stages) - 1` (only the last stage is in the heads). A
      negative cut counts from the end.
    heads: Number of heads, or the identity of each. The start and the noise of a head depend on its identity alone:
      `multi_head(stages, 0, [3])` is member 3 of `multi_head(stages, 0, 20)`.
    train_body: Whether the body is in training mode when the network is (dropout, batch statistics).
    mapping: How heads are mapped: `vmap`, `unroll`, `loop`, or `auto`, see `mapping.over_heads`.

  Returns:
    The network. Its outputs are `[H, B, C]`.

  Raises:
    UserError: The cut is outside the network, or there is no head.

  Example:
    >>> network = multi_head(hydra_jax.mlp(outputs=10), cut=-1, heads=5)
    >>> params, state = network.init(jax.random.key(0), jnp.ones((1, 8, 8)))
    >>> logits, state = network.apply(params, state, jnp.ones((3, 8, 8)))
    >>> logits.shape
    (5, 3, 10)
  """
  heads = tuple(range(heads) if isinstance(heads, int) else heads)
  depth = len(stages)
  if not heads:
    raise UserError('a network needs at least one head: set heads to 1 or more')
  if not -depth <= cut < depth:
    raise UserError(f'cut={cut} is outside this network of {depth} stages: choose {-depth} to {depth - 1}')
  cut %= depth
  below, above = chain(stages[:cut]), chain(stages[cut:], first=cut, tiled=True)
  tiled, ids = tile(above, mapping), np.asarray(heads, np.uint32)

  def in_body(key):
    # A one-headed network starts the same wherever it is cut.
    return None if key is None else jax.random.fold_in(key, heads[0])

  body = Stage(
    lambda key, x: below.init(in_body(key), x),
    lambda params, state, x, key, train: below.apply(params, state, x, in_body(key), train and train_body),
  )

  def init(key, x):
    params, state = body.init(key, x)
    features, _ = body.apply(params, state, x, None, False)
    head_params, head_state = tiled.init(key, features, ids)
    return {'body': params, 'heads': head_params}, {'body': state, 'heads': head_state}

  def apply(params, state, x, key=None, train=False, head_indices=None):
    x, body_state = body.apply(params['body'], state['body'], x, key, train)
    ids_K = ids if head_indices is None else jnp.asarray(ids)[head_indices]
    x, head_state = tiled.apply(params['heads'], state['heads'], x, key, train, ids_K)
    return x, {'body': body_state, 'heads': head_state}

  return Network(init, apply, heads, cut, mapping, (body, tiled))


def sampled(network: Network, samples: int) -> Network:
  """A one-headed network whose noise, such as dropout, stays on when it predicts (Gal and Ghahramani 2016).

  Args:
    network: With one head.
    samples: S, number of predictions for each input.

  Returns:
    A network with outputs `[S, B, C]` in evaluation, from S fixed keys, and `[1, B, C]` in training.

  Example:
    >>> network = sampled(multi_head(hydra_jax.wide_resnet(10, 10, 1, dropout=0.1), -1, 1), samples=20)
  """

  def apply(params, state, x, key=None, train=False):
    if train:
      return network.apply(params, state, x, key, train)
    keys = jax.random.split(jax.random.key(0), samples)
    sample = lambda k: network.apply(params, state, x, k, True)[0][0]
    return over_heads(sample, samples, 'auto')(keys), state

  return network._replace(apply=apply, body_and_heads=None)


def belongs_to_heads(path) -> bool:
  """Whether a leaf has the head axis, by its path in params, in the state of a network, or in that of an optimizer.

  Example:
    >>> paths = jax.tree_util.tree_leaves_with_path({'body': 1.0, 'heads': 2.0})
    >>> [belongs_to_heads(path) for path, _ in paths]
    [False, True]
  """
  return jax.tree_util.DictKey('heads') in path


def grow(tree: Tree, heads: int) -> Tree:
  """Turns the params or the state of a one-headed network into those of `heads` identical heads.

  Example:
    >>> grow({'body': jnp.ones(2), 'heads': jnp.ones((1, 3))}, heads=5)['heads'].shape
    (5, 3)
  """
  copies = lambda leaf: jnp.broadcast_to(leaf[:1], (heads, *leaf.shape[1:]))
  return {'body': tree['body'], 'heads': jax.tree.map(copies, tree['heads'])}
