"""One step, one loop: members stand alone, nothing depends on how steps are grouped."""

from types import SimpleNamespace

import chex
from helpers import expand, fit, restart
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from hydra_jax import UserError
from hydra_jax.maths import losses
from hydra_jax.nets import cut
from hydra_jax.nets.stages import mlp
from hydra_jax.training import augment, batches, loop, optimizers
from hydra_jax.training.step import OnlineTeacher, steps_for

N, F, C = 97, 5, 3
RANDOM = np.random.default_rng(0)
DATA = {'x': jnp.asarray(RANDOM.normal(size=(N, F)), jnp.float32), 'y': jnp.asarray(RANDOM.integers(C, size=N))}


def run(heads, steps=40, at=0, data=DATA, loss=None, **kwargs):
  loss = loss or (lambda outputs, batch: losses.cross_entropy(outputs, batch['y']))
  return fit(cut.multi_head(mlp(C, (8, 7)), at, heads), loss, data, steps=steps, **kwargs)


@pytest.mark.parametrize('optimizer', [optax.adam(1e-2), optax.sgd(0.1, momentum=0.9)])
def test_member_alone_is_member_in_ensemble(optimizer):
  together = run(4, optimizer=optimizer)
  for m in range(4):
    alone = run([m], optimizer=optimizer)
    mine = jax.tree.map(lambda p, m=m: p[m : m + 1], together.params['heads'])
    chex.assert_trees_all_close(mine, alone.params['heads'], rtol=1e-3, atol=1e-5)


def test_calls_of_any_length_give_the_same_bits(monkeypatch):
  whole = run(2)
  monkeypatch.setattr(loop, 'MAX_STEPS_PER_CALL', 3)
  chex.assert_trees_all_equal(run(2), whole)


def test_continuing_gives_the_same_bits():
  saved = []
  whole = run(2, save=lambda s: saved.append(jax.tree.map(np.array, s)), save_every=0.0)
  assert len(saved) > 2
  middle = next(s for s in saved if 0 < s.step < 40)
  chex.assert_trees_all_equal(run(2, state=jax.tree.map(jnp.asarray, middle)), whole)


@pytest.mark.parametrize('name, frozen', [('adam', ()), ('adamw', ()), ('sgd', ()), ('adam', ('body',))])
def test_the_norm_of_the_gradient_is_that_of_its_mean_over_the_last_steps(name, frozen):
  """The gradients of single steps are written down, and their weighted mean is formed by hand."""
  rule = dict(optimizer=name, learning_rate=0.05, schedule='constant', warmup_epochs=0, weight_decay=0.1)
  inner = optimizers.build(SimpleNamespace(**rule), 40, 10, frozen)

  def update(grads, state, params):
    updates, new = inner.update(grads, state[0], params)
    return updates, (new, {'gradient': grads, 'params': params})

  as_seen = lambda params: {'gradient': jax.tree.map(jnp.zeros_like, params), 'params': jax.tree.map(jnp.copy, params)}
  optimizer = optax.GradientTransformation(lambda params: (inner.init(params), as_seen(params)), update)
  state, gradients, norms = None, [], []
  for steps in range(1, 5):
    told = lambda call: norms.append(call.gradient_norms)
    state = run(3, steps, at=1, optimizer=optimizer, state=state, progress=told)
    seen = state.opt_state[1]
    decayed = lambda g, p: g + 0.1 * p if name == 'sgd' else g
    parts = jax.tree.map(decayed, seen['gradient'], seen['params'])
    leaves = [leaf for part, tree in parts.items() if part not in frozen for leaf in jax.tree.leaves(tree)]
    gradients.append(np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64))
    weights = 0.9 ** np.arange(steps)[::-1]
    assert norms[-1].shape == (1,)
    np.testing.assert_allclose(norms[-1], np.linalg.norm(weights @ gradients / weights.sum()), rtol=1e-4)


def test_training_learns():
  seen = []
  run(3, steps=1500, progress=lambda call: seen.append((call.step, call.loss)))
  assert seen[-1][0] == 1500 and seen[-1][1] < 0.5 * seen[0][1]


def test_a_student_learns_its_teachers(random):
  teachers = jnp.asarray(random.normal(size=(4, N, C)) * 2, jnp.float32)
  loss = lambda outputs, batch: losses.hydra(outputs, batch['teacher'])
  seen = []
  run(4, 3000, 1, data={**DATA, 'teacher': teachers}, loss=loss, progress=lambda call: seen.append(call.loss))
  assert seen[-1] < 0.6 * seen[0]  # .41 to .52 for six draws


def members(count=4):
  network = cut.multi_head(mlp(C, (8, 7)), 0, count)
  return network, network.init(jax.random.key(9), DATA['x'][:2])


def at_hand(network, parameters):
  predict = lambda params, x, drawn: network.apply(*params, x)[0]
  return {'teacher': OnlineTeacher(params=expand(parameters), specs=P(), predict=predict)}


def test_a_teacher_at_hand_teaches_as_its_kept_predictions_do():
  network, parameters = members()
  kept = {**DATA, 'teacher': network.apply(*parameters, DATA['x'])[0]}
  loss = lambda outputs, batch: losses.hydra(outputs, batch['teacher'])
  by_kept = run(4, at=1, data=kept, loss=loss)
  by_hand = run(4, at=1, loss=loss, job=at_hand(network, parameters))
  chex.assert_trees_all_close(by_kept.params, by_hand.params, rtol=1e-3, atol=1e-5)


def test_teacher_and_student_see_the_same_view():
  """A student that is the teacher has nothing to learn, whatever is done to the inputs."""
  network, parameters = members()
  loss = lambda outputs, batch: losses.hydra(outputs, batch['teacher'])
  seen = []
  run(
    4,
    loss=loss,
    optimizer=optax.sgd(0.1),
    state=restart(optax.sgd(0.1), *parameters),
    job={'augment': augment.build(('mixup', 'noise'), 2), **at_hand(network, parameters)},
    progress=lambda call: seen.append(call.loss),
  )
  np.testing.assert_allclose(seen, 0, atol=1e-6)


def test_every_epoch_shows_every_example_once():
  order = batches.batch_indices((0,), 0, 97, 97, 16).ravel()
  for e in range(16):
    np.testing.assert_array_equal(np.sort(order[e * 97 : (e + 1) * 97]), np.arange(97))
  assert not np.array_equal(order[:97], order[97:194])


def test_a_batch_is_a_function_of_seed_and_step():
  whole = batches.batch_indices((5, 1), 0, 40, 97, 16)
  np.testing.assert_array_equal(batches.batch_indices((5, 1), 13, 4, 97, 16), whole[13:17])
  assert not np.array_equal(batches.batch_indices((5, 2), 0, 40, 97, 16), whole)


def test_batch_larger_than_the_data():
  index = batches.batch_indices((0,), 0, 2, 5, 12)
  assert index.shape == (2, 12) and set(index.ravel()) == set(range(5))


def test_steps_for():
  assert steps_for(10, 60000, 128) == 4688
  assert steps_for(0.001, 10, 128) == 1


@pytest.mark.parametrize('save_every', [0.0, float('inf')])
def test_a_loss_that_is_not_finite_stops_and_is_never_saved(save_every):
  data = {**DATA, 'x': DATA['x'].at[7].set(jnp.nan)}
  saved = []
  with pytest.raises(UserError, match=r'step \d+ \(head or member 0\)'):
    run(2, data=data, save=lambda s: saved.append(jax.tree.map(np.array, s)), save_every=save_every)
  bad = next(s for s in range(40) if 7 in batches.batch_indices((0, 1), s, 1, N, 16))
  for state in saved:
    assert state.step <= bad
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_the_step_and_the_head_are_named():
  with pytest.raises(UserError, match=r'step 12 \(head or member 3\)'):
    loop.check_finite(np.asarray([[-1, 20, -1, 12]]))


def test_one_compilation_serves_a_phase(caplog):
  with jax.log_compiles():
    run(2, steps=37)
  assert compilations(caplog) == 1


def compilations(caplog) -> int:
  return sum('Finished XLA compilation of jit(training)' in record.getMessage() for record in caplog.records)


def test_variances_that_do_not_depend_on_the_input_make_least_squares(random):
  """A layer of means and one variance for each, by maximum likelihood: the line and the residuals of least squares."""
  y = DATA['x'] @ jnp.asarray(random.normal(size=(F, 2)), jnp.float32)
  y += jnp.asarray(random.normal(size=(N, 2)) * np.float32([0.1, 0.5]), jnp.float32)
  network = cut.multi_head(mlp(4, (), homoscedastic=True), 0, 3)
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 3000))
  loss = lambda outputs, batch: losses.gaussian_nll(outputs, batch['y'])
  data = {'x': DATA['x'], 'y': y}
  state = fit(network, loss, data, steps=3000, optimizer=optimizer, batch_size=N)
  mean, var = losses.gaussian(network.apply(state.params, state.model_state, DATA['x'])[0])
  with_ones = np.concatenate([DATA['x'], np.ones((N, 1))], axis=1)
  line, residuals, *_ = np.linalg.lstsq(with_ones, np.asarray(y), rcond=None)
  for of_head, variance in zip(mean, var):
    np.testing.assert_allclose(of_head, with_ones @ line, atol=2e-3)
    np.testing.assert_allclose(variance, np.broadcast_to(residuals / N, (N, 2)), rtol=2e-2)


def test_augmentations_may_ask_one_member_drawn_at_random_at_each_step():
  asked = []

  def ask(teacher, key, x):
    asked.append(x.shape)
    return x[:, :1] * 0 + jax.random.randint(key, (), 0, 1000).astype(jnp.float32)

  def augmentation(key, batch, ask):
    return {**batch, 'x': batch['x'] * 0 + ask(batch['x'])}

  seen = []

  def loss(outputs, batch):
    jax.debug.callback(lambda x: seen.append(float(x)), batch['x'][0, 0])
    return losses.cross_entropy(outputs, batch['y'])

  teacher = OnlineTeacher(params=jnp.zeros(1), specs=P(), predict=lambda params, x, drawn: x[None], ask=ask)
  jax.block_until_ready(run(2, steps=6, loss=loss, job={'augment': augmentation, 'teacher': teacher}))
  jax.effects_barrier()
  assert asked and set(asked) == {(16, F)}
  assert len(set(seen)) == 6
