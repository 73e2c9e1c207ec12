"""A flow that carries noise to what a member would say, on the features of a network.

Between noise σ ε and what a member says, f, lies the straight line z_t = t f + (1 − t) σ ε. The flow learns the
velocity f − σ ε from z_t, t and the features (Park et al., ICML 2025). Constants are those of the authors' config for
CIFAR-10.

Shapes: M members, B examples, C outputs of a member, F features, S samples.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.devices import collectives
from hydra_jax.nets.cut import Network, multi_head
from hydra_jax.nets.stages import Stage

NOISE = 4.0  # σ
TIME_BASE, LAST = 3.0, 1e-3  # times in training end at 1 − LAST, and late ones come more often
STEP_RATIO = 0.5  # of a step of the solver to the one before it
FREQUENCIES = 16


class Velocity(nn.Module):
  """`(z [B, C], embedded time [E], features [B, F]) -> velocity [B, C]`, for members of a deviation of about 1.

  What the layers read and give is scaled as in Karras et al. (2022), so that it has a deviation of about 1 at each t.
  """

  width: int
  blocks: int

  @nn.compact
  def __call__(self, z, t, embedded, features):
    t = t[:, None]
    square = t**2 + ((1 - t) * NOISE) ** 2
    x = nn.Dense(self.width)(jnp.concatenate([z / jnp.sqrt(square), features], axis=-1))
    for _ in range(self.blocks):
      shift, scale, gate = jnp.split(nn.Dense(3 * self.width, kernel_init=nn.initializers.zeros)(embedded), 3, axis=-1)
      inner = nn.LayerNorm(use_bias=False, use_scale=False)(x) * (1 + scale) + shift
      x = x + gate * nn.gelu(nn.Dense(self.width)(inner))
    skip = (t - (1 - t) * NOISE**2) / square
    return skip * z + NOISE / jnp.sqrt(square) * nn.Dense(z.shape[-1])(x)


def embedding(t: jax.Array) -> jax.Array:
  """Cosines and sines of times `[B]`, `[B, 32]` float32."""
  angles = t[:, None] * jnp.asarray(2 ** np.linspace(-1, 7, FREQUENCIES, dtype=np.float32))[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def times(steps: int) -> np.ndarray:
  """Where the steps of the solver begin and end, `[steps + 1]` float32 from 0 to 1.

  Example:
    >>> times(2)
    array([0.       , 0.6666667, 1.       ], dtype=float32)
  """
  return ((1 - STEP_RATIO ** np.arange(steps + 1)) / (1 - STEP_RATIO**steps)).astype(np.float32)


def solved(velocity: Callable[[jax.Array, jax.Array], jax.Array], z: jax.Array, steps: int) -> jax.Array:
  """Carries z along a velocity `(z, t) -> dz / dt` from t = 0 to 1, by Heun's rule, and in the last step by Euler's."""

  def step(z, between):
    t, then = between
    slope = velocity(z, t)
    slope = 0.5 * (slope + velocity(z + (then - t) * slope, then))
    return z + (then - t) * slope, None

  *_, last, end = places = jnp.asarray(times(steps))
  z, _ = jax.lax.scan(step, z, (places[:-2], places[1:-1]))
  return z + (end - last) * velocity(z, last)


def mean_and_flow(
  stages: Sequence[Stage], canonical: Callable, width: int, blocks: int, samples: int, steps: int
) -> tuple[Network, Network]:
  """One network in two roles: it gives a mean prediction, and members from noise.

  Members are `[S, B, C]`, from the same noise for each input. In training the second one gives a velocity, and the one
  that is wanted, side by side: `[1, B, 2 C]`.

  Args:
    stages: Of a member. All but the last are the body, whose features are averaged over the axes of an image.
    canonical: Outputs of members without what a prediction does not depend on.
    width: Of the layers of the flow.
    blocks: Layers of the flow.
    samples: Members that are drawn for a prediction.
    steps: Of the solver.

  Returns:
    The network in both roles, with the same parameters.
  """
  mean, kept = (multi_head(stages, -1, 1, train_body) for train_body in (True, False))
  flow = Velocity(width, blocks)

  def features_of(network, params, state, x, key, train):
    body, _ = network.body_and_heads
    features, state = body.apply(params, state, x, key, train)
    return jnp.mean(features, axis=tuple(range(1, features.ndim - 1))), state

  def init(key, x):
    params, state = mean.init(key, x)
    outputs = mean.apply(params, state, x)[0][0]
    features, _ = features_of(mean, params['body'], state['body'], x, None, False)
    t = jnp.zeros(len(x))
    of_flow = flow.init(jax.random.fold_in(key, len(stages)), outputs, t, embedding(t), features)['params']
    heads = {'mean': params['heads'], 'flow': jax.tree.map(lambda leaf: leaf[None], of_flow)}
    return {'body': params['body'], 'heads': heads}, state

  def mean_apply(params, state, x, key=None, train=False):
    return mean.apply({'body': params['body'], 'heads': params['heads']['mean']}, state, x, key, train)

  def apply(params, state, x, key=None, train=False, teacher=None):
    features, body_state = features_of(kept, params['body'], state['body'], x, key, train)
    of_flow = {'params': jax.tree.map(lambda leaf: leaf[0], params['heads']['flow'])}
    if train:
      return _to_learn(flow, of_flow, features, canonical(teacher), key), {**state, 'body': body_state}
    outputs = jax.eval_shape(mean_apply, params, state, x)[0].shape[-1]
    noise_SxC = NOISE * jax.random.normal(jax.random.key(0), (samples, outputs))

    def velocity(z, t):
      return flow.apply(of_flow, z, jnp.full(len(x), t), embedding(t[None]), features)

    member = lambda noise_C: solved(velocity, jnp.broadcast_to(noise_C, (len(x), outputs)), steps)
    return jax.vmap(member)(noise_SxC), state

  return (
    mean._replace(init=init, apply=mean_apply, body_and_heads=None),
    mean._replace(init=init, apply=apply, body_and_heads=None, reads_teacher=True),
  )


def _to_learn(flow: Velocity, params, features_BxF: jax.Array, teacher_MxBxC: jax.Array, key: jax.Array) -> jax.Array:
  """A velocity and the wanted one, `[1, B, 2 C]`, where each example draws a member, noise and a time."""
  members, examples, outputs = teacher_MxBxC.shape

  def draws(key):
    of_member, of_noise, of_time = jax.random.split(key, 3)
    noise = NOISE * jax.random.normal(of_noise, (outputs,))
    return jax.random.randint(of_member, (), 0, members), noise, jax.random.uniform(of_time)

  which, noise, u = jax.vmap(draws)(collectives.example_keys(key, examples))
  t = jnp.log1p((TIME_BASE ** (1 - LAST) - 1) * u) / np.float32(np.log(TIME_BASE))
  chosen = teacher_MxBxC[which, jnp.arange(examples)]
  z = t[:, None] * chosen + (1 - t)[:, None] * noise
  found = jnp.asarray(flow.apply(params, z, t, embedding(t), features_BxF))
  return jnp.concatenate([found, chosen - noise], axis=-1)[None]
