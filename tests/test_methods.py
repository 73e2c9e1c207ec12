"""The rows of the table of methods: what each one's losses and networks must satisfy."""

import itertools

import chex
from helpers import fit, restart, start
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from hydra_jax import UserError, chain
from hydra_jax.experiment.config import default_config
from hydra_jax.maths import losses
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods.base import MethodContext
from hydra_jax.methods.moments import beta_nll
from hydra_jax.methods.registry import METHODS
from hydra_jax.methods.supervised import with_dropout
from hydra_jax.nets import batch_ensemble, cut
from hydra_jax.nets.stages import mlp
from hydra_jax.settings import table
from hydra_jax.training import gradients, optimizers
from hydra_jax.training.settings import TrainingSettings
from hydra_jax.training.step import Draw, Job, State

B, M, C, F, N = 5, 6, 3, 4, 90
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, F)).astype(np.float32)
DATA = {'x': X, 'y': RANDOM.integers(C, size=N), 'teacher': np.float32(RANDOM.normal(size=(M, N, C)) * 3)}
BATCH = {'x': X[:B], 'y': DATA['y'][:B], 'teacher': DATA['teacher'][:, :B], 'done': jnp.float32(0.5)}


def phases(name, task='classification', **changes):
  stages = lambda predictive, times=1: mlp(times * TASKS[task].predictives[predictive].outputs(C), (8, 7))
  if name == 'hydra':  # the equation of the paper, unless a test asks for more
    changes = {'mean_weight': 0.0} | changes
  return METHODS[name].phases(METHODS[name].settings(**changes), MethodContext(TASKS[task], stages, M))


def trained(phase, steps=30, before=None, **job):
  """From the parameters of a state, if one is given."""
  optimizer = optimizers.build(TrainingSettings(learning_rate=1e-2), steps, 10, phase.frozen)
  state = restart(optimizer, before.params, before.model_state) if before else start(phase.network, optimizer, X[:2], 0)
  return fit_phase(phase, DATA, steps, more=job, state=state, optimizer=optimizer)


def fit_phase(phase, data, steps, more=(), **kwargs):
  job = {'common': phase.common, 'penalty': phase.penalty, **dict(more)}
  given = dict(steps=steps, reduction=phase.reduction, seed=(0,), key=1, job=job)
  return fit(phase.network, phase.loss, data, **given, **kwargs)


STUDENTS = [name for name in default_config().student]
NEEDS_ALL = ('proxy_endd', 'ced', 'dlf')  # methods whose loss needs all members at once


def test_every_method_has_settings_and_a_source():
  assert {*STUDENTS, 'ensemble'} == set(METHODS)
  for name, row in METHODS.items():
    assert row.phases.__doc__ and row.settings.__doc__, name
    assert all(meaning.endswith('.') for *_, meaning in table(row.settings)), name


@pytest.mark.parametrize('name', ['proxy_endd', 'ced', 'ddu'])
def test_some_methods_are_for_classification(name):
  with pytest.raises(UserError, match=f'{name} is for classification'):
    phases(name, 'regression')


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', [name for name in STUDENTS if name not in ('proxy_endd', 'ced', 'ddu', 'kd', 'hydra', 'endd', 'dlf')]
)
def test_every_method_learns_a_regression(name, random):
  """The loss of its last phase goes down, and its outputs are read and scored."""
  seen, task = [], 'regression'
  # At a temperature that changes, losses cannot be compared.
  phase = phases(name, task, **{'hydra': {'mean_weight': 3.0}, 'endd': {'start_temperature': 1.0}}.get(name, {}))[-1]
  data = {**DATA, 'teacher': np.float32(random.normal(size=(M, N, 2 * C))), 'y': np.float32(random.normal(size=(N, C)))}
  optimizer = optax.adam(1e-2)
  state = start(phase.network, optimizer, X[:2], 0)
  progress = lambda call: seen.append(call.loss)
  state = fit_phase(phase, data, 300, state=state, optimizer=optimizer, batch_size=32, progress=progress)
  assert seen[-1] < seen[0]
  out, _ = phase.network.apply(state.params, state.model_state, X[:B])
  read = TASKS[task].predictives[METHODS[name].predictive].read
  scores = TASKS[task].in_units(TASKS[task].scores(read(out), data['y'][:B]), np.ones(C))
  for score, values in scores.items():
    assert values.shape == (B,) and np.all(np.isfinite(values)), score
  np.testing.assert_allclose(
    scores['uncertainty_total'], scores['uncertainty_aleatoric'] + scores['uncertainty_epistemic'], rtol=1e-5
  )


def test_one_head_for_each_member_is_the_equation(random):
  (phase,) = phases('hydra', heads=M, hinton_epochs=0.0, temperature=2.0)
  outputs = jnp.asarray(random.normal(size=(M, B, C)), jnp.float32)
  np.testing.assert_allclose(phase.loss(outputs, BATCH), losses.hydra(outputs, BATCH['teacher'], 2.0), rtol=1e-6)


def test_fewer_heads_learn_the_mean_over_their_group(random):
  (phase,) = phases('hydra', heads=4, grouping='round_robin', temperature=3.0)
  outputs = jnp.asarray(random.normal(size=(4, B, C)), jnp.float32)
  found = phase.loss(outputs, BATCH)
  for h, group in enumerate(([0, 4], [1, 5], [2], [3])):
    each = losses.hydra(jnp.repeat(outputs[h][None], len(group), axis=0), BATCH['teacher'][np.asarray(group)], 3.0)
    np.testing.assert_allclose(found[h], np.mean(each, axis=0), rtol=1e-5)


def job_of(phase, **more):
  fields = {'network', 'loss', 'reduction', 'common', 'penalty'}
  optimizer = optax.sgd(0.1)
  return Job(**{f: getattr(phase, f) for f in fields}, optimizer=optimizer, steps=9, batch_size=B, **more)


# `edfm` draws a member for each example besides, see `test_flow`.
DRAWING = [
  (name, {}) for name in STUDENTS if name not in (*NEEDS_ALL, 'edfm') and METHODS[name].learns_from == 'members'
]
DRAWING.append(('hydra', {'heads': 4, 'grouping': 'round_robin', 'mean_weight': 2.0}))


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.parametrize('name, changes', DRAWING, ids=[f'{name}{len(changes)}' for name, changes in DRAWING])
def test_drawn_members_give_the_gradient_of_all_on_average(name, changes, task):
  """Over all pairs of members; and a head whose member is not drawn has no gradient."""
  width = TASKS[task].predictives['members'].outputs(C)
  batch = {**BATCH, 'teacher': jnp.asarray(np.random.default_rng(0).normal(size=(M, B, width)), jnp.float32)}
  phase = phases(name, task, **changes)[-1]
  state = start(phase.network, optax.sgd(0.1), X[:2], 0)

  @jax.jit
  def found(drawn):
    draw, given = None, batch
    if drawn is not None:
      draw = Draw(M, len(drawn), phase.draws == 'heads')
      given = batch | {'teacher': batch['teacher'][drawn], 'drawn': drawn}
    return gradients.of_step(job_of(phase, draw=draw), state, given, jax.random.key(0))[0]

  pairs = [found(jnp.asarray(pair)) for pair in itertools.permutations(range(M), 2)]
  grads = jax.tree.map(lambda *leaves: sum(leaves) / len(pairs), *pairs)
  if phase.draws == 'heads' and phase.reduction == 'sum':  # each head is trained as if it were alone
    grads = jax.tree.map(lambda leaf: leaf * M / 2, grads)
  chex.assert_trees_all_close(grads, found(None), rtol=2e-3, atol=2e-6)
  if phase.draws == 'heads':
    for leaf in jax.tree.leaves(pairs[0]['heads']):  # members 0 and 1
      assert not leaf[2:].any() and leaf[:2].any()


def test_all_members_in_any_order_are_all_members():
  (phase,) = phases('hydra', heads=M, hinton_epochs=0.0)
  shuffled = trained(phase, draw=Draw(M, M, with_heads=True))
  chex.assert_trees_all_close(trained(phase).params, shuffled.params, rtol=1e-3, atol=1e-5)


def test_heads_that_are_drawn_are_all_trained_in_the_end():
  (phase,) = phases('hydra', heads=M, hinton_epochs=0.0)
  before = start(phase.network, optax.sgd(0.1), X[:2], 0)
  after = trained(phase, before=before, draw=Draw(M, 2, with_heads=True))
  for old, new in zip(jax.tree.leaves(before.params['heads']), jax.tree.leaves(after.params['heads'])):
    assert np.all(np.any((np.asarray(old) != np.asarray(new)).reshape(M, -1), axis=1))


def test_diversity_term_keeps_heads_apart():
  """Hydra+: the more it weighs, the less alike the heads' weights end."""
  alike = []
  for weight in (0.0, 100.0):
    first, second = phases('hydra', heads=M, hinton_epochs=5.0, diversity_weight=weight)
    before = trained(first)
    grown = State(before.step, cut.grow(before.params, M), cut.grow(before.model_state, M), ())
    kernels = lambda params: [leaf for leaf in jax.tree.leaves(params['heads']) if leaf.ndim > 2]
    np.testing.assert_allclose(losses.similarity(kernels(grown.params)), 1, rtol=1e-5)
    alike.append(losses.similarity(kernels(trained(second, 200, grown).params)))
  assert alike[1] < alike[0] - 0.1


@pytest.mark.parametrize('heads, grouping', [(4, 'one_each'), (7, 'one_each'), (7, 'round_robin')])
def test_heads_without_a_rule_are_refused(heads, grouping):
  with pytest.raises(UserError, match=f'set heads to (0 or )?{M}'):
    phases('hydra', heads=heads, grouping=grouping)


@pytest.mark.parametrize('name', ['kd', 'hydra'])
def test_labels_can_be_mixed_in(name, random):
  changes = {'heads': M, 'hinton_epochs': 0.0} if name == 'hydra' else {}
  pure, half, labels = (phases(name, label_weight=w, **changes)[0].loss for w in (0.0, 0.5, 1.0))
  outputs = jnp.asarray(random.normal(size=(M if name == 'hydra' else 1, B, C)), jnp.float32)
  np.testing.assert_allclose(labels(outputs, BATCH), losses.cross_entropy(outputs, BATCH['y']), rtol=1e-5)
  expected = (pure(outputs, BATCH) + labels(outputs, BATCH)) / 2
  np.testing.assert_allclose(half(outputs, BATCH), expected, rtol=1e-5)


@pytest.mark.parametrize('task', ['classification', 'regression'])
@pytest.mark.parametrize('share', [1.0, 0.3])
def test_mixed_labels_are_learnt_by_their_shares(task, share, random):
  """By hand: share · loss(y) + (1 − share) · loss(y of the other); a loss that reads no labels is as it was."""
  outputs = jnp.asarray(random.normal(size=(1, B, 2 * C if task == 'regression' else C)), jnp.float32)
  y = np.float32(random.normal(size=(B, C))) if task == 'regression' else BATCH['y']
  teacher = np.float32(random.normal(size=(M, *outputs.shape[1:])))
  plain = {**BATCH, 'y': y, 'teacher': teacher}
  shares = np.full(B, share, np.float32)
  shares[0] = 1
  mixed = {**plain, 'other_y': y[::-1], 'share': shares}
  of_labels, other = (TASKS[task].label(outputs, labels)[0] for labels in (y, y[::-1]))
  expected = shares * of_labels + (1 - shares) * other
  (single,), (kd,), (half,) = phases('single', task), phases('kd', task), phases('kd', task, label_weight=0.5)
  np.testing.assert_allclose(single.loss(outputs, mixed)[0], expected, rtol=1e-5)
  np.testing.assert_allclose(single.loss(outputs, mixed)[0, 0], single.loss(outputs, plain)[0, 0], rtol=1e-6)
  np.testing.assert_array_equal(kd.loss(outputs, mixed), kd.loss(outputs, plain))
  np.testing.assert_allclose(half.loss(outputs, mixed)[0], (kd.loss(outputs, plain)[0] + expected) / 2, rtol=1e-5)


@pytest.mark.parametrize('optimizer', ['adamw', 'sgd'])
def test_a_frozen_body_stays_to_the_last_bit(optimizer):
  first, second = phases('hydra', heads=M, hinton_epochs=5.0, freeze_body=True)
  before = trained(first)
  grown = cut.grow(before.params, M), cut.grow(before.model_state, M)
  body = jax.tree.map(np.array, grown[0]['body'])
  rule = optimizers.build(TrainingSettings(optimizer=optimizer, weight_decay=0.1), 30, 10, second.frozen)
  after = trained(second, before=restart(rule, *grown))
  chex.assert_trees_all_equal(after.params['body'], body)
  spread = jax.tree.map(lambda leaf: float(jnp.max(jnp.std(leaf, axis=0))), after.params['heads'])
  assert min(jax.tree.leaves(spread)) > 0
  with pytest.raises(UserError, match='set hinton_epochs'):
    phases('hydra', heads=M, freeze_body=True)


def test_the_second_phase_begins_where_the_first_ended():
  first, second = phases('hydra', heads=M, hinton_epochs=5.0)
  before = trained(first)
  one, _ = first.network.apply(before.params, before.model_state, X[:B])
  params = cut.grow(before.params, M)
  many, _ = second.network.apply(params, cut.grow(before.model_state, M), X[:B])
  np.testing.assert_allclose(many, jnp.repeat(one, M, axis=0), rtol=1e-5, atol=1e-6)


def test_moments_are_learnt_by_likelihood(random):
  """β-NLL by scipy; at its minimum, mean and spread are those of the members."""
  members = np.float32(random.normal(size=(M, B, C)) * 2 + 1)
  outputs = jnp.asarray(random.normal(size=(1, B, 2 * C)), jnp.float32)
  raw = np.float64(outputs).reshape(B, C, 2)
  mean, var = raw[..., 0], np.log1p(np.exp(raw[..., 1])) + 1e-4
  nll = -scipy.stats.norm(mean, np.sqrt(var)).logpdf(members).mean(axis=0)
  np.testing.assert_allclose(beta_nll(outputs, members)[0], np.sum(np.sqrt(var) * nll, axis=-1), rtol=1e-4)
  mean, var = members.mean(axis=0), members.var(axis=0)
  best = jnp.asarray(np.stack([mean, np.log(np.expm1(var - 1e-4))], axis=-1).reshape(1, B, 2 * C))
  np.testing.assert_allclose(jax.grad(lambda outputs: jnp.sum(beta_nll(outputs, members)))(best), 0, atol=2e-4)


def test_drawn_moments_have_the_predicted_mean_and_spread():
  (phase,) = phases('moments', samples=4000)
  params, state = phase.network.init(jax.random.key(0), X[:2])
  outputs, _ = phase.network.apply(params, state, X[:B], None, True)
  drawn, _ = phase.network.apply(params, state, X[:B])
  raw = np.asarray(outputs).reshape(B, C, 2)
  np.testing.assert_allclose(np.mean(drawn, axis=0), raw[..., 0], atol=1e-4)
  np.testing.assert_allclose(np.var(drawn, axis=0), np.log1p(np.exp(raw[..., 1])) + 1e-4, rtol=1e-3)


@pytest.mark.parametrize('task', TASKS)
def test_a_shallow_ensemble_learns_by_its_mixture(task, random):
  """Value by scipy, and the gradient of all heads is that of the value."""
  (phase,) = phases('shallow_ensemble', task, heads=4)
  outputs = jnp.asarray(random.normal(size=(4, B, 2 * C if task == 'regression' else C)), jnp.float32)
  y = np.float32(random.normal(size=(B, C))) if task == 'regression' else BATCH['y']

  def by_hand(outputs):
    if task == 'classification':
      return -jnp.log(jnp.mean(jax.nn.softmax(outputs), axis=0))[np.arange(B), y]
    mean, var = losses.moment_match(*losses.gaussian(outputs))
    return -jnp.sum(jax.scipy.stats.norm.logpdf(y, mean, jnp.sqrt(var)), axis=-1)

  def found(outputs):
    common = jax.lax.stop_gradient(jnp.mean(phase.common(outputs), axis=0))
    return jnp.mean(phase.loss(outputs, {'y': y, 'common': common}), axis=0)

  np.testing.assert_allclose(found(outputs), by_hand(outputs), rtol=1e-5)
  gradients_of = lambda f: jax.grad(lambda outputs: jnp.sum(f(outputs)))(outputs)
  np.testing.assert_allclose(gradients_of(found), gradients_of(by_hand), rtol=1e-3, atol=1e-6)
  share = np.float32([1, 0.3, 0.5, 0, 1])
  common = jnp.mean(phase.common(outputs), axis=0)
  mixed = phase.loss(outputs, {'y': y, 'other_y': y[::-1], 'share': share, 'common': common})
  ours, other = (phase.loss(outputs, {'y': labels, 'common': common}) for labels in (y, y[::-1]))
  ours, other = np.asarray(ours), np.asarray(other)
  np.testing.assert_allclose(mixed, share * ours + (1 - share) * other, rtol=1e-5)


def test_dropout_is_noise_that_keeps_the_mean():
  x = jnp.ones((400, 50))
  (_, drop, _) = with_dropout(mlp(C, (50,)), 0.25)
  noisy, _ = drop.apply((), (), x, jax.random.key(0), True)
  assert set(np.unique(noisy)) == {0, np.float32(4 / 3)}
  np.testing.assert_allclose(noisy.mean(), 1, atol=0.02)
  np.testing.assert_array_equal(drop.apply((), (), x, None, False)[0], x)


def test_mc_dropout_predicts_with_noise_that_is_always_the_same():
  (phase,) = phases('mc_dropout', samples=9)
  params, state = phase.network.init(jax.random.key(0), X[:2])
  outputs, _ = phase.network.apply(params, state, X[:B])
  assert outputs.shape == (9, B, C) and np.std(outputs, axis=0).min() > 0
  np.testing.assert_array_equal(phase.network.apply(params, state, X[:B])[0], outputs)
  assert phase.network.apply(params, state, X[:B], jax.random.key(0), True)[0].shape == (1, B, C)


def test_batch_ensemble_without_factors_is_one_network():
  stages = mlp(C, (8, 7))
  network = batch_ensemble.batch_ensemble(stages, M)
  params, state = network.init(jax.random.key(0), X[:2])
  ones = [{k: v if k == 'own' else jnp.ones_like(v) for k, v in leaf.items()} for leaf in params['heads']]
  outputs, _ = network.apply({'body': params['body'], 'heads': ones}, state, X[:B])
  whole = chain(stages)
  plain, _ = whole.apply(*whole.init(jax.random.fold_in(jax.random.key(0), 0), X[:2]), X[:B], None, False)
  np.testing.assert_allclose(outputs, jnp.repeat(plain[None], M, axis=0), rtol=1e-5, atol=1e-6)


def test_batch_ensemble_is_the_paper_layer():
  """((x ∘ r) W) ∘ s, eq. 5 of the paper, for one dense layer."""
  network = batch_ensemble.batch_ensemble(mlp(C, ()), M)
  params, state = network.init(jax.random.key(0), X[:2])
  outputs, _ = network.apply(params, state, X[:B])
  (kernel,) = jax.tree.leaves(params['body'])
  factors = next(leaf for leaf in params['heads'] if 'r' in leaf)
  bias = next(leaf['own'] for leaf in params['heads'] if 'own' in leaf)
  for m in range(M):
    r, s = np.asarray(factors['r'])[m, :, 0], np.asarray(factors['s'])[m, :, 0]
    expected = ((X[:B] * r) @ np.asarray(kernel)) * s + np.asarray(bias)[m]
    np.testing.assert_allclose(outputs[m], expected, rtol=1e-4, atol=1e-5)


def test_factors_of_rank_two_are_the_sum_of_two():
  network = batch_ensemble.batch_ensemble(mlp(C, ()), M, rank=2)
  params, state = network.init(jax.random.key(0), X[:2])
  outputs, _ = network.apply(params, state, X[:B])
  (kernel,) = jax.tree.leaves(params['body'])
  factors = next(leaf for leaf in params['heads'] if 'r' in leaf)
  r, s = np.asarray(factors['r']), np.asarray(factors['s'])
  assert set(np.unique(r[..., 0])) == {-1, 1} and 0 < np.abs(r[..., 1]).mean() < 0.2
  for m in range(M):
    expected = sum(((X[:B] * r[m, :, k]) @ np.asarray(kernel)) * s[m, :, k] for k in range(2))
    np.testing.assert_allclose(outputs[m], expected, rtol=1e-4, atol=1e-5)


def test_a_latent_batch_ensemble_predicts_by_the_mean_of_its_kernels(random):
  stages = mlp(C, (8,))
  network = batch_ensemble.averaged(stages, M)
  params, state = network.init(jax.random.key(0), X[:2])
  params = jax.tree.map(lambda leaf: leaf + jnp.asarray(random.normal(size=leaf.shape), jnp.float32), params)
  outputs, _ = network.apply(params, state, X[:B])
  kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params['body'])]
  factors = [leaf for leaf in params['heads'] if 'r' in leaf]
  biases = [np.asarray(leaf['own']).mean(axis=0) for leaf in params['heads'] if 'own' in leaf]
  mean = [np.einsum('mik,mok->io', np.asarray(f['r']), np.asarray(f['s'])) / M for f in factors]
  hidden = np.maximum(X[:B] @ (kernels[0] * mean[0]) + biases[0], 0)
  np.testing.assert_allclose(outputs, [hidden @ (kernels[1] * mean[1]) + biases[1]], rtol=1e-4, atol=1e-5)
  trains, _ = network.apply(params, state, X[:B], None, True)
  assert trains.shape == (M, B, C)


def test_tabm_is_the_layers_of_the_paper(random):
  """((x ∘ r) W) ∘ s + b with a shared W, ReLU, and a last layer of each member; at the start r is ±1 and s is 1."""
  network = batch_ensemble.tabm(mlp(C, (8,)), M)
  params, state = network.init(jax.random.key(0), X[:2])
  (kernel,) = jax.tree.leaves(params['body'])
  (factors,) = (leaf for leaf in params['heads'] if 'r' in leaf)
  own = [leaf['own'] for leaf in params['heads'] if 'own' in leaf]
  (last,) = (leaf for leaf in own if leaf.shape == (M, 8, C))
  assert set(np.unique(factors['r'])) == {-1, 1} and np.all(factors['s'] == 1)
  assert len(np.unique(last)) == last.size  # no two members start alike
  params = jax.tree.map(lambda leaf: leaf + jnp.asarray(random.normal(size=leaf.shape), jnp.float32), params)
  outputs, _ = network.apply(params, state, X[:B])
  (kernel,) = jax.tree.leaves(params['body'])
  (factors,) = (leaf for leaf in params['heads'] if 'r' in leaf)
  parts = {leaf['own'].shape: np.asarray(leaf['own']) for leaf in params['heads'] if 'own' in leaf}
  for m in range(M):
    r, s = np.asarray(factors['r'])[m, :, 0], np.asarray(factors['s'])[m, :, 0]
    hidden = np.maximum(((X[:B] * r) @ np.asarray(kernel)) * s + parts[M, 8][m], 0)
    np.testing.assert_allclose(outputs[m], hidden @ parts[M, 8, C][m] + parts[M, C][m], rtol=1e-3, atol=1e-4)


def test_tabm_learns_from_labels_by_the_mean_of_the_losses_of_its_members(random):
  (phase,) = phases('tabm', heads=4)
  y, outputs = random.integers(C, size=B), jnp.asarray(random.normal(size=(4, B, C)), jnp.float32)
  found = phase.loss(outputs, {'y': jnp.asarray(y), 'done': 0.0})
  expected = -scipy.special.log_softmax(outputs, axis=-1)[:, np.arange(B), y]
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert phase.reduction == 'mean' and not phase.distils and len(phase.network.heads) == 4


def test_batch_ensemble_is_small():
  network = batch_ensemble.batch_ensemble(mlp(C, (80, 70)), M)
  params, _ = jax.eval_shape(network.init, jax.random.key(0), X[:2])
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  kernels = F * 80 + 80 * 70 + 70 * C
  assert count == kernels + M * ((F + 80) + (80 + 70) + (70 + C) + 80 + 70 + C)


@pytest.mark.parametrize('warmup, schedule', [(0.0, 'constant'), (2.0, 'cosine')])
def test_warm_up_then_schedule(warmup, schedule):
  rate = 1e-3
  changes = dict(optimizer='sgd', learning_rate=rate, schedule=schedule, warmup_epochs=warmup)
  rule = optimizers.build(TrainingSettings(**changes), 100, 10)
  params, grads = {'w': jnp.zeros(())}, {'w': jnp.ones(())}
  sizes, state = [], rule.init(params)
  with jax.numpy_dtype_promotion('standard'):
    for _ in range(100):
      update, state = rule.update(grads, state, params)
      sizes.append(abs(float(update['w'])))
  if warmup:
    assert sizes[0] < 0.11 * rate and max(sizes) > 3 * rate and sizes[-1] < 0.1 * rate
  else:
    np.testing.assert_allclose(sizes[-1], 10 * rate, rtol=1e-3)  # momentum 0.9 adds up to ten steps
