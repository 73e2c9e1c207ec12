"""Augmentations move, blank and mix as they say, differently for each example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydra_jax import UserError, augment

B, H, W, C = 64, 8, 10, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, W, C)), jnp.float32)
KEY = jax.random.key(1)


@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_shape_stays_and_the_key_decides(name):
  f = augment.AUGMENTATIONS[name]
  y = f(KEY, X)
  assert y.shape == X.shape and y.dtype == X.dtype
  np.testing.assert_array_equal(y, f(KEY, X))
  assert not np.array_equal(y, f(jax.random.key(2), X)) and not np.array_equal(y, X)


def test_flip_mirrors_about_half():
  y = augment.flip(KEY, X)
  mirrored = np.asarray([np.array_equal(a, b[:, ::-1]) for a, b in zip(y, X)])
  same = np.asarray([np.array_equal(a, b) for a, b in zip(y, X)])
  assert np.all(mirrored ^ same) and 16 < mirrored.sum() < 48


def test_crop_is_a_window_of_the_padded_image():
  y = np.asarray(augment.crop(KEY, X))
  padded = np.pad(X, ((0, 0), (4, 4), (4, 4), (0, 0)))
  places = set()
  for image, whole in zip(y, padded):
    found = [(i, j) for i in range(9) for j in range(9) if np.array_equal(whole[i : i + H, j : j + W], image)]
    assert found
    places.add(found[0])
  assert len(places) > 20


def test_cutout_blanks_a_square():
  blank = np.all(np.asarray(augment.cutout(KEY, X)) == 0, axis=-1)
  for image in blank:
    rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
    assert 2 <= len(rows) <= 4 and 2 <= len(columns) <= 4
    assert image[np.ix_(rows, columns)].all() and image.sum() == len(rows) * len(columns)


def test_mixup_lies_between_two_inputs():
  x = jnp.arange(B, dtype=jnp.float32)[:, None]
  y = np.asarray(augment.mixup(KEY, x))
  assert y.min() >= 0 and y.max() <= B - 1 and abs(y.mean() - (B - 1) / 2) < 6
  assert y.std() < np.std(x)


def test_noise_has_its_strengths():
  added = np.asarray(augment.noise(KEY, jnp.zeros((200, 5000))))
  strengths = added.std(axis=1)
  assert 0 < strengths.min() < 0.03 and 0.27 < strengths.max() < 0.31
  np.testing.assert_allclose(strengths.mean(), 0.15, atol=0.02)


def test_none_is_the_identity_and_nonsense_is_refused():
  np.testing.assert_array_equal(augment.build((), 4, True)(KEY, X), X)
  both = augment.build(('flip', 'crop'), 4, True)(KEY, X)
  expected = augment.crop(jax.random.fold_in(KEY, 1), augment.flip(jax.random.fold_in(KEY, 0), X))
  np.testing.assert_array_equal(both, expected)
  for names, ndim, labels, word in (
    (('flop',), 4, False, "did you mean 'flip'"),
    (('crop',), 2, False, 'images'),
    (('mixup',), 4, True, 'labels'),
  ):
    with pytest.raises(UserError, match=word):
      augment.build(names, ndim, labels)
