"""BatchEnsemble: members that share kernels and differ by factors of low rank (Wen et al. 2020, arXiv 2002.06715)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hydra_jax.errors import UserError
from hydra_jax.nets.cut import Network
from hydra_jax.nets.mapping import over_heads
from hydra_jax.nets.stages import Stage, Tree, chain

# Standard deviation at the start of the factors beyond the first, and of factors that start around 1.
SMALL = 0.1


def _is_kernel(path, leaf) -> bool:
  return path[-1] == jax.tree_util.DictKey('kernel') and leaf.ndim >= 2


def batch_ensemble(
  stages: Sequence[Stage], members: int, mapping: str = 'auto', rank: int = 1, around_one: bool = False
) -> Network:
  """Member m has the kernels `W ∘ (R_m S_mᵀ)` and its own biases and scales.

  With rank 1 this is Wen et al. (2020, eq. 1). The body holds the shared kernels W. The heads hold R_m and S_m, and
  copies of all other parameters. The first columns of R_m and S_m start as ±1 as in the paper, the others as small
  random numbers, which is ours.

  Args:
    stages: Dense or convolutional. Their kernels are named `kernel` and end in the axes (inputs, outputs).
    members: Number of members.
    mapping: How members are mapped, see `mapping.over_heads`.
    rank: Columns of R_m and S_m.
    around_one: Whether the first columns start as 1 and small random numbers, so that members start close together.

  Returns:
    The network. Its outputs are `[members, B, C]`. `init` raises a `UserError` if no parameter is named `kernel`.

  Example:
    >>> network = batch_ensemble(hydra_jax.mlp(outputs=10), members=4)
    >>> params, state = network.init(jax.random.key(0), jnp.ones((1, 8)))
    >>> network.apply(params, state, jnp.ones((3, 8)))[0].shape
    (4, 3, 10)
  """

  def divide(key, x, flat):
    keys = [jax.random.fold_in(key, i + 1) for i in range(len(flat))]
    return [_factors(k, p, leaf, members, rank, around_one) for k, (p, leaf) in zip(keys, flat, strict=True)]

  return _sharing(stages, members, mapping, divide)


def tabm(stages: Sequence[Stage], members: int, mapping: str = 'auto') -> Network:
  """The network of TabM: a BatchEnsemble that starts as one network (Gorishniy et al. 2025, arXiv 2410.24210).

  All factors start as 1, but for those of the first inputs, which start as ±1. The last kernel is not shared: each
  member has its own. Members have their own biases and scales, as in `batch_ensemble`.

  Args:
    stages: As of `batch_ensemble`. The last kernel is that of the outputs.
    members: Number of members, 32 in the paper.
    mapping: How members are mapped, see `mapping.over_heads`.

  Returns:
    The network. Its outputs are `[members, B, C]`. `init` raises a `UserError` if no parameter is named `kernel`.

  Example:
    >>> network = tabm(hydra_jax.mlp(outputs=10), members=4)
    >>> params, state = network.init(jax.random.key(0), jnp.ones((1, 8)))
    >>> network.apply(params, state, jnp.ones((3, 8)))[0].shape
    (4, 3, 10)
  """
  whole = chain(stages)

  def divide(key, x, flat):
    kernels = [i for i, (p, leaf) in enumerate(flat) if _is_kernel(p, leaf)]
    drawn = jax.vmap(lambda key: jax.tree.leaves(whole.init(key, x)[0]))(jax.random.split(key, members))
    signs = jax.random.rademacher(key, (members, flat[kernels[0]][1].shape[-2], 1), jnp.float32)

    def parts(i: int, leaf: jax.Array) -> dict[str, Tree]:
      if i == kernels[-1]:
        return {'own': drawn[i]}
      if i not in kernels:
        return {'own': jnp.repeat(leaf[None], members, axis=0)}
      r, s = (jnp.ones((members, size, 1)) for size in leaf.shape[-2:])
      return {'r': signs if i == kernels[0] else r, 's': s}

    return [parts(i, leaf) for i, (_, leaf) in enumerate(flat)]

  return _sharing(stages, members, mapping, divide)


def _sharing(stages: Sequence[Stage], members: int, mapping: str, divide: Callable) -> Network:
  """Members that share kernels.

  Args:
    stages: Of one network.
    members: Number of members.
    mapping: How members are mapped.
    divide: `(key, x, leaves with paths) -> parts of each leaf`, which members have for themselves: factors `r` and `s`
      of a kernel that is shared, or `own` in place of the leaf.
  """
  whole = chain(stages)
  heads = tuple(range(members))

  def init(key, x):
    params, state = whole.init(jax.random.fold_in(key, 0), x)
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    if not any(_is_kernel(p, leaf) for p, leaf in flat):
      raise UserError("batch_ensemble shares parameters named 'kernel', and this network has none: leave it out")
    separate = divide(key, x, flat)
    shared = [None if 'own' in parts else leaf for parts, (_, leaf) in zip(separate, flat, strict=True)]
    copies = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], members, axis=0), state)
    return {'body': jax.tree.unflatten(tree, shared), 'heads': separate}, {'body': (), 'heads': copies}

  def apply(params, state, x, key=None, train=False):
    shared, tree = jax.tree.flatten(params['body'], is_leaf=lambda leaf: leaf is None)

    def member(separate, state, key):
      return whole.apply(jax.tree.unflatten(tree, map(_kernel, shared, separate)), state, x, key, train)

    keys = None if key is None else jax.random.split(key, members)
    outputs, state = over_heads(member, members, mapping)(params['heads'], state['heads'], keys)
    return outputs, {'body': (), 'heads': state}

  return Network(init, apply, heads, 0, mapping)


def averaged(stages: Sequence[Stage], members: int, mapping: str = 'auto') -> Network:
  """A `batch_ensemble` that predicts as one network, whose parameters are the means of those of its members (LBE).

  Nam et al. (2022), "Improving ensemble distillation with weight averaging and diversifying perturbation". Factors
  start around 1: of members that start with random signs, the mean is no network that has learnt anything.

  Args:
    stages: As of `batch_ensemble`.
    members: Number of members.
    mapping: How members are mapped in training, see `mapping.over_heads`.

  Returns:
    The network. Its outputs are `[members, B, C]` in training, and `[1, B, C]` in evaluation.

  Example:
    >>> network = averaged(hydra_jax.mlp(outputs=10), members=4)
    >>> params, state = network.init(jax.random.key(0), jnp.ones((1, 8)))
    >>> network.apply(params, state, jnp.ones((3, 8)))[0].shape
    (1, 3, 10)
  """
  network, whole = batch_ensemble(stages, members, mapping, around_one=True), chain(stages)

  def apply(params, state, x, key=None, train=False):
    if train:
      return network.apply(params, state, x, key, train)
    shared, tree = jax.tree.flatten(params['body'], is_leaf=lambda leaf: leaf is None)
    kernels = jax.vmap(lambda separate: [_kernel(*both) for both in zip(shared, separate, strict=True)])(
      params['heads']
    )
    mean = lambda leaf: jnp.mean(leaf, axis=0)
    one = jax.tree.unflatten(tree, jax.tree.map(mean, kernels))
    outputs, _ = whole.apply(one, jax.tree.map(mean, state['heads']), x, None, False)
    return outputs[None], state

  return network._replace(apply=apply)


def _factors(key: jax.Array, path, leaf: jax.Array, members: int, rank: int, around_one: bool) -> dict[str, Tree]:
  """The parameters of each member that stand for a leaf: factors `r` and `s` of a kernel, copies of other leaves."""
  if not _is_kernel(path, leaf):
    return {'own': jnp.repeat(leaf[None], members, axis=0)}

  def factor(key, size):
    if around_one:
      first = 1 + SMALL * jax.random.normal(key, (members, size, 1))
    else:
      first = jax.random.rademacher(key, (members, size), jnp.float32)[..., None]
    if rank == 1:
      return first
    more = SMALL * jax.random.normal(jax.random.fold_in(key, 1), (members, size, rank - 1))
    return jnp.concatenate([first, more], axis=-1)

  return {
    'r': factor(jax.random.fold_in(key, 0), leaf.shape[-2]),
    's': factor(jax.random.fold_in(key, 1), leaf.shape[-1]),
  }


def _kernel(shared: jax.Array | None, separate: dict[str, jax.Array]) -> jax.Array:
  """The reverse of `_factors`, for a single member."""
  if shared is None:
    return separate['own']
  factors = separate['r'] @ separate['s'].T
  return shared * jnp.reshape(factors, (1,) * (shared.ndim - 2) + factors.shape)
