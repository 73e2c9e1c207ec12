"""BatchEnsemble: members that share every kernel but for rank-one factors (Wen et al. 2020)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hydra_jax.errors import UserError
from hydra_jax.nets.cut import Network
from hydra_jax.nets.mapping import over_heads
from hydra_jax.nets.stages import Stage, Tree, chain


def _is_kernel(path, leaf) -> bool:
  return path[-1] == jax.tree_util.DictKey('kernel') and leaf.ndim >= 2


def batch_ensemble(stages: Sequence[Stage], members: int, mapping: str = 'auto') -> Network:
  """Member m has the kernels `W ∘ (r_m s_mᵀ)` and its own biases and scales.

  Works on any stages whose kernels are named `kernel` and end in the axes (inputs, outputs), dense
  and convolutional. The body holds the shared kernels, the heads what is each member's: a sign of
  ±1 for each input and output, as in the paper, and copies of the rest.
  """
  whole = chain(stages)
  heads = tuple(range(members))

  def init(key, x):
    params, state = whole.init(jax.random.fold_in(key, 0), x)
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    if not any(_is_kernel(p, leaf) for p, leaf in flat):
      raise UserError("batch_ensemble shares parameters named 'kernel', and this network has none: leave it out")
    own = [_factors(jax.random.fold_in(key, i + 1), p, leaf, members) for i, (p, leaf) in enumerate(flat)]
    shared = [leaf if _is_kernel(p, leaf) else None for p, leaf in flat]
    copies = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], members, axis=0), state)
    return {'body': jax.tree.unflatten(tree, shared), 'heads': own}, {'body': (), 'heads': copies}

  def apply(params, state, x, key=None, train=False):
    shared, tree = jax.tree.flatten(params['body'], is_leaf=lambda leaf: leaf is None)

    def member(own, state, key):
      return whole.apply(jax.tree.unflatten(tree, map(_kernel, shared, own)), state, x, key, train)

    keys = None if key is None else jax.random.split(key, members)
    each = over_heads(member, members, mapping)
    outputs, state = each(params['heads'], state['heads'], keys)
    return outputs, {'body': (), 'heads': state}

  return Network(init, apply, heads, 0, mapping)


def _factors(key: jax.Array, path, leaf: jax.Array, members: int) -> dict[str, Tree]:
  if not _is_kernel(path, leaf):
    return {'own': jnp.repeat(leaf[None], members, axis=0)}
  sign = lambda k, n: jax.random.rademacher(k, (members, n), jnp.float32)
  return {'r': sign(jax.random.fold_in(key, 0), leaf.shape[-2]), 's': sign(jax.random.fold_in(key, 1), leaf.shape[-1])}


def _kernel(shared: jax.Array | None, own: dict[str, jax.Array]) -> jax.Array:
  if shared is None:
    return own['own']
  factors = own['r'][:, None] * own['s'][None, :]
  return shared * jnp.reshape(factors, (1,) * (shared.ndim - 2) + factors.shape)
