"""Flow matching: the solver against exact flows, what is learnt from a member, and Gaussian members recovered."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from hydra_jax.methods.flow_matching import velocity_error
from hydra_jax.nets import flow
from hydra_jax.nets.stages import mlp

M, B, C = 6, 5, 3


def test_steps_end_at_1_and_each_is_half_as_long():
  found = flow.times(7)
  assert found[0] == 0 and found[-1] == 1 and found.dtype == np.float32
  np.testing.assert_allclose(np.diff(found)[1:] / np.diff(found)[:-1], 0.5, rtol=1e-4)


def test_the_solver_is_heuns_rule_and_ends_with_eulers(random):
  """A constant velocity is exact. Of one that grows with time, the last step alone is wrong, by half its square."""
  z, slope = (jnp.asarray(random.normal(size=(B, C)), jnp.float32) for _ in range(2))
  np.testing.assert_allclose(flow.solved(lambda z, t: slope, z, 4), z + slope, rtol=1e-5)
  last = 1 - flow.times(4)[-2]
  np.testing.assert_allclose(flow.solved(lambda z, t: slope * t, z, 4), z + slope * (1 - last**2) / 2, rtol=1e-5)


@pytest.mark.parametrize('mean, deviation', [(0.0, 1.0), (3.0, 0.5), (-2.0, 2.0)])
@pytest.mark.parametrize('ratio, steps, close', [(0.98, 150, 0.01), (flow.STEP_RATIO, 7, 0.2)])
def test_the_exact_flow_of_gaussian_members_gives_their_distribution(mean, deviation, ratio, steps, close, monkeypatch):
  """Velocity E[f − σ ε | z_t] carries σ ε to mean + deviation ε: with small steps, and roughly with the authors'."""
  monkeypatch.setattr(flow, 'STEP_RATIO', ratio)

  def velocity(z, t):
    variance = (t * deviation) ** 2 + ((1 - t) * flow.NOISE) ** 2
    return mean + (t * deviation**2 - (1 - t) * flow.NOISE**2) / variance * (z - t * mean)

  noise = jnp.linspace(-2, 2, 9)[:, None]
  found = flow.solved(velocity, flow.NOISE * noise, steps)
  np.testing.assert_allclose(found - mean, deviation * noise, rtol=close, atol=1e-3)


def test_each_example_draws_a_member_noise_and_a_time():
  """What is wanted is a member minus noise: members are equally frequent, and noise is normal."""
  examples = 4000
  teacher = jnp.broadcast_to(1000 * jnp.arange(1.0, M + 1)[:, None, None], (M, examples, C))
  network = flow.Velocity(8, 1)
  features = jnp.ones((examples, 4))
  one = jnp.ones(1)
  params = network.init(jax.random.key(0), jnp.ones((1, C)), one, flow.embedding(one), features[:1])
  found, wanted = jnp.split(flow._to_learn(network, params, features, teacher, jax.random.key(1))[0], 2, axis=-1)
  assert found.shape == wanted.shape == (examples, C)
  member = np.round(np.asarray(wanted) / 1000)
  assert np.all(member == member[:, :1])
  assert scipy.stats.chisquare(np.unique(member[:, 0], return_counts=True)[1]).pvalue > 1e-3
  noise = (1000 * member - wanted) / flow.NOISE
  assert scipy.stats.kstest(noise.ravel(), 'norm').pvalue > 1e-3
  assert abs(np.corrcoef(noise.T)[0, 1]) < 0.06  # two outputs have different noise
  again = flow._to_learn(network, params, features, teacher, jax.random.key(1))[0]
  np.testing.assert_array_equal(again, jnp.concatenate([found, wanted], axis=-1))


def test_the_loss_is_the_squared_distance(random):
  outputs = random.normal(size=(1, B, 2 * C))
  expected = np.sum(np.square(outputs[..., :C] - outputs[..., C:]), axis=-1)
  np.testing.assert_allclose(velocity_error(jnp.asarray(outputs, jnp.float32), {}), expected, rtol=1e-5)


def made(samples=64, steps=7):
  return flow.mean_and_flow(mlp(1, (32,)), lambda z: z, 32, 2, samples, steps)


def test_both_roles_have_the_same_parameters_and_members_are_functions(random):
  """A member is the same function whatever the other inputs of the batch; more samples begin with the same members."""
  mean, members = made(samples=5)
  x = jnp.asarray(random.normal(size=(B, 2)), jnp.float32)
  params, state = members.init(jax.random.key(0), x)
  assert jax.tree.all(jax.tree.map(np.array_equal, params, mean.init(jax.random.key(0), x)[0]))
  found = members.apply(params, state, x)[0]
  assert found.shape == (5, B, 1) and mean.apply(params, state, x)[0].shape == (1, B, 1)
  np.testing.assert_allclose(members.apply(params, state, x[2:3])[0], found[:, 2:3], rtol=1e-4, atol=1e-5)
  assert len(np.unique(np.asarray(found[:, 0, 0]))) == 5


def test_features_of_images_are_averaged(random):
  from hydra_jax.nets.stages import Stage, dense

  flatten = lambda x: x.reshape(len(x), -1)
  last = dense(C)
  flat = Stage(
    lambda key, x: last.init(key, flatten(x)), lambda p, s, x, key, train: last.apply(p, s, flatten(x), key, train)
  )
  same = Stage(lambda key, x: ((), ()), lambda p, s, x, key, train: (x, s))
  _, members = flow.mean_and_flow([same, flat], lambda z: z, 8, 1, 3, 2)
  x = jnp.asarray(random.normal(size=(2, 4, 4, 3)), jnp.float32)
  params, state = members.init(jax.random.key(0), x)
  mixed = jnp.flip(x, axis=(1, 2))  # with the same mean
  np.testing.assert_allclose(members.apply(params, state, x)[0], members.apply(params, state, mixed)[0], rtol=1e-4)


@pytest.mark.slow
def test_members_at_hand_are_recovered(random):
  """Functions f(x) = sin 2x + w (1 + x) / 2: mean and deviation at each x are those of the members."""
  x = jnp.linspace(-1, 1, 32)[:, None]
  weights = jnp.asarray(random.normal(size=(200, 1)), jnp.float32)
  teacher = (jnp.sin(2 * x)[None, :, 0] + weights * (1 + x[None, :, 0]) / 2)[..., None]
  _, members = made()
  params, state = members.init(jax.random.key(0), x)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, 3000))

  def step(carry, key):
    params, opt_state = carry
    loss = lambda p: jnp.mean(velocity_error(members.apply(p, state, x, key, True, teacher=teacher)[0], {}))
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  keys = jax.random.split(jax.random.key(1), 3000)
  (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
  drawn = members.apply(params, state, x)[0][..., 0]
  np.testing.assert_allclose(drawn.mean(axis=0), teacher[..., 0].mean(axis=0), atol=0.25)
  np.testing.assert_allclose(drawn.std(axis=0), teacher[..., 0].std(axis=0), atol=0.25)
  assert drawn.std(axis=0)[-1] > 3 * drawn.std(axis=0)[1]
