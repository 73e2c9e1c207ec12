"""The deep latent factor model against a dense multivariate normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from hydra_jax.methods import latent_factor
from hydra_jax.nets.stages import mlp

M, B, C, Q, S = 6, 5, 3, 2, 40
RANDOM = np.random.default_rng(0)
OUTPUTS = jnp.asarray(RANDOM.normal(size=(1, B, C * latent_factor.width(Q))), jnp.float32)
TEACHER = jnp.asarray(RANDOM.normal(size=(M, B, C)), jnp.float32)


def nll(outputs, teacher):
  """−ln p of the members, shared out over the examples: the M-step's loss and what z costs, as EM has them."""
  model = latent_factor.read(outputs, Q)
  z, covariance = jax.lax.stop_gradient(latent_factor.posterior(model, teacher))
  squares = jnp.mean(jnp.sum(jnp.square(z), axis=-1)) + jnp.trace(covariance) - Q
  kl = 0.5 * (squares - jnp.linalg.slogdet(covariance)[1])
  return latent_factor.expected_nll(model, teacher, latent_factor.Posterior(z, covariance)) + kl / B


def dense(outputs):
  """Mean `[B C]` and covariance `[B C, B C]` of a member at all B inputs."""
  mean, loadings, noise = latent_factor.read(outputs, Q)
  loadings = loadings.reshape(B * C, Q)
  return mean.ravel(), loadings @ loadings.T + jnp.diag(noise.ravel())


def test_likelihood_is_that_of_the_dense_normal():
  mean, covariance = map(np.asarray, dense(OUTPUTS))
  exact = multivariate_normal(mean, covariance).logpdf(np.asarray(TEACHER).reshape(M, -1))
  found = nll(OUTPUTS, TEACHER)
  assert found.shape == (B,) and latent_factor.expanded_nll(OUTPUTS, TEACHER, Q).shape == (1, B)
  np.testing.assert_allclose(B * found.mean(), -exact.mean(), rtol=1e-4)


def test_gradient_is_that_of_the_dense_normal():
  """Fisher's identity: with z held where the E-step puts it, the gradient is that of the likelihood."""

  def exact(outputs):
    mean, covariance = dense(outputs)
    off = TEACHER.reshape(M, -1) - mean[None]
    quadratic = jnp.mean(jnp.einsum('mi,ij,mj->m', off, jnp.linalg.inv(covariance), off))
    return 0.5 * (quadratic + jnp.linalg.slogdet(covariance)[1]) / B

  found = jax.grad(lambda o: jnp.mean(nll(o, TEACHER)))(OUTPUTS)
  np.testing.assert_allclose(found, jax.grad(exact)(OUTPUTS), rtol=2e-3, atol=2e-5)


def test_posterior_is_that_of_ridge_regression():
  """Where noise is the same for all outputs, z is the ridge solution of residuals on loadings."""
  outputs = OUTPUTS.reshape(1, B, C, -1).at[..., 1].set(0.3).reshape(OUTPUTS.shape)
  model = latent_factor.read(outputs, Q)
  z = latent_factor.posterior(model, TEACHER)
  design, noise = np.asarray(model.loadings).reshape(-1, Q), float(model.noise[0, 0])
  targets = np.asarray(TEACHER - model.mean[None]).reshape(M, -1)
  precision = np.eye(Q) + design.T @ design / noise
  np.testing.assert_allclose(z.mean, np.linalg.solve(precision, design.T @ targets.T / noise).T, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(z.covariance, np.linalg.inv(precision), rtol=1e-3)


def test_standardised_z_is_as_its_prior_and_fits_as_well():
  model = latent_factor.read(OUTPUTS, Q)
  z = latent_factor.posterior(model, TEACHER)
  new = latent_factor.standardised(z)
  np.testing.assert_allclose(new.mean.mean(axis=0), 0, atol=1e-5)
  np.testing.assert_allclose(np.cov(new.mean.T, bias=True) + new.covariance, np.eye(Q), atol=1e-4)
  centred = z.mean - z.mean.mean(axis=0, keepdims=True)
  root = np.linalg.cholesky(np.cov(z.mean.T, bias=True) + z.covariance)
  moved = jnp.einsum('bcq,q->bc', model.loadings, z.mean.mean(axis=0))
  reduced = model._replace(mean=model.mean + moved, loadings=model.loadings @ root)
  np.testing.assert_allclose(root @ new.mean.T, centred.T, rtol=1e-4, atol=1e-5)
  found = latent_factor.expected_nll(reduced, TEACHER, new)
  np.testing.assert_allclose(found, latent_factor.expected_nll(model, TEACHER, z), rtol=1e-4)


def test_standardising_changes_nothing_where_z_is_as_its_prior(random):
  """Two members and one factor, put where z is ±a with a² + covariance = 1, and nothing is left to standardise."""
  model = latent_factor.read(jnp.asarray(random.normal(size=(1, B, C * latent_factor.width(1))), jnp.float32), 1)
  covariance = latent_factor.posterior(model, TEACHER).covariance
  scaled = model.loadings[..., 0] / model.noise
  away = jnp.sqrt(1 - covariance[0, 0]) / covariance[0, 0] * scaled / jnp.sum(jnp.square(scaled))
  members = model.mean[None] + jnp.stack([away, -away])
  z = latent_factor.posterior(model, members)
  for ours, theirs in zip(latent_factor.standardised(z), z):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_order_of_members_does_not_matter():
  np.testing.assert_allclose(
    latent_factor.expanded_nll(OUTPUTS, TEACHER[::-1], Q), latent_factor.expanded_nll(OUTPUTS, TEACHER, Q), rtol=1e-5
  )


def test_samples_have_the_moments_of_the_model():
  model = latent_factor.read(OUTPUTS, Q)
  members = latent_factor.sample(model, S)
  assert members.shape == (S, B, C)
  np.testing.assert_allclose(members.mean(axis=0), model.mean, atol=1e-5)
  many = latent_factor.sample(model, 20_000).reshape(20_000, -1)
  mean, covariance = dense(OUTPUTS)
  # Noise is drawn once for each output, so only what two outputs of two inputs share can be compared.
  other = np.asarray([[i // C == j // C or i % C != j % C for j in range(B * C)] for i in range(B * C)])
  np.testing.assert_allclose(np.cov(many.T)[other], np.asarray(covariance)[other], rtol=0.05, atol=0.05)


def test_members_at_hand_are_recovered(random):
  """Functions drawn from a model: Φ Φᵀ and μ found by gradient descent are the model's."""
  x = jnp.linspace(-1, 1, 24)[:, None]
  z = jnp.asarray(random.normal(size=(200, 1)), jnp.float32)
  noise = jnp.asarray(random.normal(size=(200, 24, 1)), jnp.float32)
  members = jnp.sin(2 * x)[None] + z[:, None] * (1 + x)[None] + 0.05 * noise
  network = latent_factor.network(mlp(latent_factor.width(1), (16,)), 1, 200)
  params, state = network.init(jax.random.key(0), x)
  loss = lambda p: jnp.mean(latent_factor.expanded_nll(network.apply(p, state, x, None, True)[0], members, 1))

  @jax.jit
  def descend(params, momentum):
    grads = jax.grad(loss)(params)
    momentum = jax.tree.map(lambda m, g: 0.9 * m + jnp.clip(g, -1, 1), momentum, grads)
    return jax.tree.map(lambda p, m: p - 0.003 * m, params, momentum), momentum

  momentum = jax.tree.map(jnp.zeros_like, params)
  for _ in range(1000):
    params, momentum = descend(params, momentum)
  drawn, _ = network.apply(params, state, x)
  np.testing.assert_allclose(drawn.mean(axis=0), members.mean(axis=0), atol=0.2)
  np.testing.assert_allclose(drawn.std(axis=0), members.std(axis=0), atol=0.15)
  shared = np.corrcoef(np.asarray(drawn)[..., 0].T)[8, 20]
  assert shared > 0.9


@pytest.mark.parametrize('size', [1e-3, 1e4])
def test_finite_for_members_that_agree_or_lie_far_off(size):
  teacher = jnp.broadcast_to(TEACHER[:1], TEACHER.shape) * size
  value, grad = jax.value_and_grad(lambda o: jnp.mean(latent_factor.expanded_nll(o, teacher, Q)))(OUTPUTS)
  assert np.isfinite(value) and np.all(np.isfinite(grad))
