"""Augmentations move, blank and mix as they say, differently for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError, augment

B, H, W, C = 64, 8, 10, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, W, C)), jnp.float32)
BATCH = {'x': X, 'y': jnp.arange(B)}
KEY = jax.random.key(1)


def apply(name, key, x):
  return augment.AUGMENTATIONS[name](key, {'x': x})['x']


@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_shape_stays_and_the_key_decides(name):
  f = lambda key: augment.AUGMENTATIONS[name](key, BATCH)
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


def test_crop_is_a_window_of_the_padded_image():
  y = np.asarray(apply('crop', KEY, X))
  padded = np.pad(X, ((0, 0), (4, 4), (4, 4), (0, 0)))
  places = set()
  for image, whole in zip(y, padded):
    found = [(i, j) for i in range(9) for j in range(9) if np.array_equal(whole[i : i + H, j : j + W], image)]
    assert found
    places.add(found[0])
  assert len(places) > 20


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
  assert 0 < strengths.min() < 0.03 and 0.27 < strengths.max() < 0.31
  np.testing.assert_allclose(strengths.mean(), 0.15, atol=0.02)


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
