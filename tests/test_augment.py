"""Augmentations move, blank and mix as they say, differently for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError
from hydra_jax.training import augment

B, H, W, C = 64, 8, 10, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, W, C)), jnp.float32)
BATCH = {'x': X, 'y': jnp.arange(B)}
KEY = jax.random.key(1)
WEIGHTS = jnp.asarray(np.random.default_rng(1).normal(size=(H * W * C, 5)), jnp.float32) / 10


def ask(x):
  """A linear member."""
  return x.reshape(len(x), -1) @ WEIGHTS


def apply(name, key, x):
  return augment.AUGMENTATIONS[name](key, {'x': x}, ask)['x']


@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_shape_stays_and_the_key_decides(name):
  f = lambda key: augment.AUGMENTATIONS[name](key, BATCH, ask)
  x = f(KEY)['x']
  assert x.shape == X.shape and x.dtype == X.dtype
  np.testing.assert_array_equal(x, f(KEY)['x'])
  assert not np.array_equal(x, f(jax.random.key(2))['x']) and not np.array_equal(x, X)
  assert f(KEY)['y'] is BATCH['y']


def test_flip_mirrors_about_half():
  y = apply('flip', KEY, X)
  mirrored = np.asarray([np.array_equal(a, b[:, ::-1]) for a, b in zip(y, X)])
  same = np.asarray([np.array_equal(a, b) for a, b in zip(y, X)])
  assert np.all(mirrored ^ same) and 16 < mirrored.sum() < 48


@pytest.mark.parametrize('shape, pad', [((32, 36), 4), ((28, 28), 4), ((8, 10), 1)])
def test_crop_is_a_window_of_the_padded_image(shape, pad):
  images = np.random.default_rng(0).normal(size=(B, *shape, 1)).astype('f')
  y = np.asarray(apply('crop', KEY, jnp.asarray(images)))
  padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  offsets, places = range(2 * pad + 1), set()
  for image, whole in zip(y, padded):
    windows = {(i, j): whole[i : i + shape[0], j : j + shape[1]] for i in offsets for j in offsets}
    found = [place for place, window in windows.items() if np.array_equal(window, image)]
    assert found
    places.add(found[0])
  assert len(places) > (20 if pad == 4 else 7)


def test_cutout_blanks_a_square():
  blank = np.all(np.asarray(apply('cutout', KEY, X)) == 0, axis=-1)
  for image in blank:
    rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
    assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
    assert image[np.ix_(rows, columns)].all() and image.sum() == len(rows) * len(columns)


@pytest.mark.parametrize('y', [jnp.arange(B), jnp.arange(2.0 * B).reshape(B, 2)])
def test_mixup_says_what_it_mixed(y):
  """Each input is its share of itself and the rest of the one whose label it also has."""
  mixed = augment.mixup(KEY, {'x': X, 'y': y})
  assert mixed['other_y'].shape == y.shape and mixed['share'].shape == (B,)
  other = np.asarray(mixed['other_y'] if y.ndim == 1 else mixed['other_y'][:, 0] / 2).astype(int)
  assert sorted(other) == list(range(B)) and np.mean(other == np.arange(B)) < 0.1
  share = np.asarray(mixed['share'])[:, None, None, None]
  np.testing.assert_allclose(mixed['x'], share * X + (1 - share) * X[other], rtol=1e-5, atol=1e-6)
  assert 0 <= share.min() < 0.1 and 0.9 < share.max() <= 1


def test_noise_has_its_strengths():
  added = np.asarray(apply('noise', KEY, jnp.zeros((200, 5000))))
  strengths = added.std(axis=1)
  assert 0 < strengths.min() < 0.05 and 0.45 < strengths.max() < 0.52
  np.testing.assert_allclose(strengths.mean(), 0.25, atol=0.03)


def test_scale_multiplies_each_input_by_a_number():
  ratio = np.asarray(apply('scale', KEY, X) / X).reshape(B, -1)
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
  assert -1 <= ratio.min() < -0.8 and 1.8 < ratio.max() <= 2


@pytest.mark.parametrize('side, blocks', [(8, 4), (6, 2), (7, 1)])
def test_shuffle_moves_blocks(side, blocks):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(20, side, 8, C)), jnp.float32)
  y = np.asarray(apply('shuffle', KEY, x))
  height, width, moved = side // blocks, 8 // 4, 0
  for before, after in zip(np.asarray(x), y):
    cut = lambda image: {
      image[i : i + height, j : j + width].tobytes() for i in range(0, side, height) for j in range(0, 8, width)
    }
    assert cut(before) == cut(after)
    moved += not np.array_equal(before, after)
  assert moved >= 15


@pytest.mark.parametrize('name, confident', [('ods', False), ('conf_ods', True)])
def test_ods_goes_along_the_gradient_of_random_weights_of_the_probabilities(name, confident):
  moved = np.asarray(apply(name, KEY, X) - X).reshape(B, -1)
  jacobian = jax.vmap(jax.jacobian(lambda x: jax.nn.softmax(ask(x[None])[0])))(X).reshape(B, 5, -1)
  # In the span of the gradients of the probabilities, and as long as it may be.
  for step, gradients in zip(moved, np.asarray(jacobian)):
    weights, *_ = np.linalg.lstsq(gradients.T, step, rcond=None)
    np.testing.assert_allclose(gradients.T @ weights, step, atol=1e-4)
  longest = augment.ODS * np.sqrt(H * W * C)
  lengths = np.linalg.norm(moved, axis=1)
  if confident:
    lengths /= np.asarray(jax.nn.softmax(ask(X)).max(axis=1))
  assert lengths.min() < 0.1 * longest and 0.9 * longest < lengths.max() <= longest * 1.0001
  assert np.std(moved @ np.asarray(WEIGHTS), axis=0).min() > 0.1


def test_a_share_is_changed_and_the_rest_is_as_it_was():
  some = augment.build(('mixup',), 4, 0.25)(KEY, BATCH)
  all_of_it = augment.build(('mixup',), 4)(KEY, BATCH)
  same = np.asarray([np.array_equal(a, b) for a, b in zip(some['x'], X)])
  assert 6 < (~same).sum() < 28
  np.testing.assert_array_equal(some['x'][~same], all_of_it['x'][~same])
  np.testing.assert_array_equal(some['share'][same], 1)
  np.testing.assert_array_equal(some['share'][~same], all_of_it['share'][~same])


def test_each_augmentation_has_a_share_of_its_own():
  """Half are mixed and half mirrored: a quarter is both, and what is only mirrored is its own."""
  found = augment.build(('mixup', 'flip'), 4, 0.5)(KEY, {'x': X[:, :, :5], 'y': BATCH['y']})
  mixed = np.asarray(found['share']) < 1
  of = lambda images: np.asarray([np.array_equal(a, b) for a, b in zip(found['x'], images)])
  same, mirrored = of(X[:, :, :5]), of(X[:, :, 4::-1])
  assert 16 < mixed.sum() < 48 and 4 < mirrored.sum() and 16 < same.sum()
  assert not np.any(mixed & (same | mirrored)) and np.all(mixed | same | mirrored)


def test_none_is_the_identity_and_nonsense_is_refused():
  assert augment.build((), 4)(KEY, BATCH) == BATCH
  both = augment.build(('flip', 'crop'), 4)(KEY, BATCH)['x']
  expected = apply('crop', jax.random.fold_in(KEY, 1), apply('flip', jax.random.fold_in(KEY, 0), X))
  np.testing.assert_array_equal(both, expected)
  for names, ndim, word in (
    (('flop',), 4, "did you mean 'flip'"),
    (('crop',), 2, 'images'),
    (('mixup', 'noise', 'mixup'), 2, 'name it once'),
  ):
    with pytest.raises(UserError, match=word):
      augment.build(names, ndim)


def test_what_comes_after_mixup_keeps_its_labels():
  mixed = augment.mixup(jax.random.fold_in(KEY, 0), BATCH)
  found = augment.build(('mixup', 'flip'), 4)(KEY, BATCH)
  np.testing.assert_array_equal(found['x'], apply('flip', jax.random.fold_in(KEY, 1), mixed['x']))
  for part in ('y', 'other_y', 'share'):
    np.testing.assert_array_equal(found[part], mixed[part])
