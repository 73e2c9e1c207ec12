"""Data sets: real ones where they are, shifts, scaling, and what is refused."""

import io

from conftest import DATA_DIR, needs, needs_uci
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from hydra_jax import UserError, data as datasets
from hydra_jax.data import Split, arrays, checks, outside, shifts, sources, toy, uci
from hydra_jax.experiment.config import default_config


def data_config(**changes):
  config = default_config().data
  for key, value in changes.items():
    config[key] = value
  return config


def test_digits_are_split_once():
  train, test = toy.digits('train'), toy.digits('test')
  assert train[0].shape == (1198, 8, 8, 1) and test[0].shape == (599, 8, 8, 1)
  assert train[0].dtype == np.uint8 and train[0].max() == 16
  assert np.bincount(test[1]).min() > 45


def test_digits_are_those_of_scikit_learn_with_and_without_a_cache(tmp_path, monkeypatch):
  data = load_digits()
  (tmp_path / 'file').touch()
  for cache in ('cache', 'cache', 'file/below'):  # new, there already, and where nothing can be written
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / cache))
    x, y = zip(toy.digits('train'), toy.digits('test'), strict=True)
    order = np.argsort(np.concatenate([np.flatnonzero(np.arange(1797) % 3 != 2), np.arange(2, 1797, 3)]))
    np.testing.assert_array_equal(np.concatenate(x)[order, :, :, 0], data.images)
    np.testing.assert_array_equal(np.concatenate(y)[order], data.target)
  assert len(list((tmp_path / 'cache').glob('hydra_jax/data/digits-*'))) == 1


def test_letters_look_like_digits_to_a_histogram():
  letters, digits = toy.letters(), toy.digits('train')[0]
  assert letters.shape[1:] == digits.shape[1:] and letters.dtype == np.uint8 and letters.max() == 16
  assert abs(letters.mean() - digits.mean()) < 1
  assert len(np.unique(letters.reshape(len(letters), -1), axis=0)) > 300


def test_spiral():
  x, y = toy.spiral('train')
  assert x.shape == (300, 2) and np.bincount(y).tolist() == [100] * 3
  np.testing.assert_array_equal(toy.spiral('train')[0], x)
  assert np.linalg.norm(toy.spiral('far')[0], axis=1).min() >= 20


def test_load_gives_every_evaluation():
  config = data_config(name='digits', shifts=('rotate:30', 'translate:2', 'jitter:1'), ood=('letters', 'noise'))
  found = datasets.load(config, DATA_DIR, 0)
  assert list(found.evaluations) == ['test', 'rotate:30', 'translate:2', 'jitter:1', 'letters', 'noise']
  for evaluation in found.evaluations.values():
    split = evaluation.load()
    assert split.x.shape[1:] == (8, 8, 1) and split.x.dtype == np.uint8
    assert np.all(split.y == -1) == (evaluation.kind == 'ood')


def test_negatives_and_collages_are_made_of_the_test_images():
  found = datasets.load(data_config(name='digits', ood=('negative', 'collage')), DATA_DIR, 0).evaluations
  test, negative, collage = (found[name].load().x for name in ('test', 'negative', 'collage'))
  np.testing.assert_array_equal(test + negative, 16)
  for rows, columns in ((slice(4), slice(4)), (slice(4, 8), slice(4)), (slice(4), slice(4, 8))):
    quarter = lambda x, r=rows, c=columns: sorted(image[r, c].tobytes() for image in x)
    assert quarter(collage) == quarter(test)
  assert np.mean([np.array_equal(a, b) for a, b in zip(collage, test)]) < 0.1
  with pytest.raises(UserError, match='images'):
    datasets.load(data_config(name='spiral', ood=('collage',)), DATA_DIR, 0)


def test_unlabelled_inputs_stand_behind_the_others():
  found = datasets.load(data_config(name='digits'), DATA_DIR, 0)
  more = datasets.with_unlabelled(found, ('digits',))
  assert more.train.x.shape == (2 * 1198, 8, 8, 1) and more.train.x.dtype == np.uint8
  np.testing.assert_array_equal(more.train.x[1198:], found.train.x)
  np.testing.assert_array_equal(more.train.y[:1198], found.train.y)
  assert np.all(more.train.y[1198:] == -1) and more.fingerprint != found.fingerprint
  assert more.scaling is found.scaling and datasets.with_unlabelled(found, ()) is found
  for name, word in (('digit', "did you mean 'digits'"), ('spiral', 'choose another')):
    with pytest.raises(UserError, match=word):
      datasets.with_unlabelled(found, (name,))


def test_unlabelled_images_get_size_and_colours():
  grey = np.zeros((3, 32, 32, 3), np.uint8)
  grey[1], grey[2, :16] = 90, (30, 60, 90)
  small = outside.resized(grey, (8, 8, 1), np.uint8)
  assert small.shape == (3, 8, 8, 1) and small.dtype == np.uint8
  assert np.all(small[0] == 0) and np.all(small[1] == 90)
  assert np.all(small[2, :3] == 60) and np.all(small[2, 5:] == 0)
  assert outside.resized(small, (16, 16, 3), np.float32).shape == (3, 16, 16, 3)


def test_translate_and_rotate():
  image = np.zeros((1, 9, 9, 1), np.uint8)
  image[0, 4, 1] = 16
  assert np.argwhere(shifts.translate(image, 3, None)[0, :, :, 0]).tolist() == [[4, 4]]
  assert np.argwhere(shifts.rotate(image, 90, None)[0, :, :, 0]).tolist() == [[7, 4]]
  np.testing.assert_array_equal(shifts.rotate(image, 0, None), image)


def test_jitter_has_its_strength():
  x = np.zeros((20_000, 2), np.float32)
  moved = shifts.jitter(x, 3.0, np.asarray([1.0, 10.0], np.float32))
  np.testing.assert_allclose(moved.std(axis=0), [3, 30], rtol=0.03)
  assert moved.dtype == np.float32


def standard(values):
  """By another way of computing them, in extended precision."""
  exact = values.astype(np.longdouble)
  return (exact - exact.mean(axis=0)) / exact.std(axis=0)


@pytest.mark.parametrize('shift, unit', [(0, 1), (5, 3), (0, 1e-9), (1e6, 1e-3), (1e9, 3), (0, 1e20), (1e-20, 1e-21)])
def test_inputs_and_targets_are_standardised_in_any_unit(shift, unit):
  z = np.random.default_rng(0).normal(size=(200, 3))
  split = Split(shift + unit * z, shift + unit * z[:, :2])
  scaling = datasets.standardise(split, classification=False)
  arrays = split.arrays(scaling)
  assert arrays['x'].dtype == arrays['y'].dtype == np.float32
  np.testing.assert_allclose(arrays['x'], standard(split.x).astype(float), atol=1e-6)
  np.testing.assert_allclose(arrays['y'], standard(split.y).astype(float), atol=1e-6)
  np.testing.assert_array_equal(datasets.scale_inputs(scaling, jnp.asarray(arrays['x'])), arrays['x'])
  np.testing.assert_allclose([scaling.x_shift[0], scaling.x_scale[0]], [split.x[:, 0].mean(), split.x[:, 0].std()])


def test_large_sets_are_standardised_piece_by_piece(monkeypatch):
  x = 7 + np.random.default_rng(0).normal(size=(100, 3))
  whole = datasets.standardise(Split(x, np.zeros(100, int)), classification=True)
  monkeypatch.setattr(arrays, 'ROWS_AT_ONCE', 7)
  pieces = datasets.standardise(Split(x, np.zeros(100, int)), classification=True)
  np.testing.assert_allclose(np.concatenate(pieces), np.concatenate(whole), rtol=1e-13)
  np.testing.assert_allclose(datasets.standardised(pieces, x), standard(x).astype(float), atol=1e-6)


def test_images_of_bytes_are_scaled_on_the_device():
  images = np.random.default_rng(0).integers(256, size=(20, 4, 4, 3), dtype=np.uint8)
  scaling = datasets.standardise(Split(images, np.zeros(20, np.int32)), classification=True)
  stored = datasets.standardised(scaling, images)
  assert stored is images and scaling.x_shift.shape == (3,)
  expected = standard(images.reshape(-1, 3)).astype(float).reshape(images.shape)
  np.testing.assert_allclose(datasets.scale_inputs(scaling, jnp.asarray(stored)), expected, atol=1e-6)


@pytest.mark.parametrize(
  'column, same',
  [
    (np.full(9, 0.1), True),
    (np.full(9, 0.0), True),
    (np.full(9, 1e9), True),
    (np.array([0.1 + 0.2, 0.3] * 9), True),  # but for rounding
    (np.float32([0.1, np.nextafter(np.float32(0.1), 1)]), True),
    (np.array([1e9, 1e9 + 0.01]), False),
    (np.array([0, 1e-100]), False),
    (np.float32([1e6, 1e6 + 1]), False),
    (np.array([0, 0, 1], np.uint8), False),
  ],
)
def test_constant_features_are_told_by_their_size(column, same):
  assert datasets.constant(column[:, None]).tolist() == [same]
  shift, scale = datasets.moments(column[:, None])
  np.testing.assert_allclose(shift, [column.astype(float).mean()])
  np.testing.assert_allclose(scale, [1 if same else column.astype(float).std()], rtol=1e-6)


def test_a_class_that_only_the_test_split_has_is_said(caplog):
  split = lambda *y: Split(np.zeros((len(y), 1)), np.array(y))
  checks.warn_unseen(split(0, 1, 0), split(1, 2, 4, 2), 5, 'y_test')
  assert caplog.messages == ['y_test: no training example is of the classes 2, 4']
  checks.warn_unseen(split(0, 1, 2), split(2, 1), 5, 'y_test')
  assert len(caplog.messages) == 1


@pytest.mark.parametrize(
  'changes, word',
  [
    (dict(name='digit'), "did you mean 'digits'"),
    (dict(train='trian'), 'split'),
    (dict(shifts=('rotat:3',)), "did you mean 'rotate'"),
    (dict(shifts=('rotate:much',)), 'strength'),
    (dict(ood=('leters',)), "did you mean 'letters'"),
    (dict(ood=('far',)), 'shape'),
  ],
)
def test_what_cannot_work_is_refused(changes, word):
  with pytest.raises(UserError, match=word):
    found = datasets.load(data_config(**changes), DATA_DIR, 0)
    [e.load() for e in found.evaluations.values()]


@needs('mnist')
def test_mnist_is_decoded_once(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  images, labels = sources.tfds_images('mnist', 'test', DATA_DIR)
  assert images.shape == (10000, 28, 28, 1) and images.dtype == np.uint8
  assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
  monkeypatch.setattr(sources, '_decode', lambda *a: pytest.fail('decoded twice'))
  again, _ = sources.tfds_images('mnist', 'test', DATA_DIR)
  assert isinstance(again, np.memmap)
  np.testing.assert_array_equal(again, images)
  cached = next((tmp_path / 'hydra_jax' / 'data').glob('mnist-*/images.npy'))
  cached.write_bytes(cached.read_bytes()[:50])
  with pytest.raises(UserError, match='damaged'):
    sources.tfds_images('mnist', 'test', DATA_DIR)


@needs('mnist')
def test_sub_splits(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  head, tail = (sources.tfds_images('mnist', s, DATA_DIR) for s in ('test[:1%]', 'test[99%:]'))
  assert len(head[0]) == len(tail[0]) == 100
  with pytest.raises(UserError, match='test'):
    sources.tfds_images('mnist', 'tset', DATA_DIR)


def test_prepare_writes_what_is_read(tmp_path, monkeypatch):
  """The whole way for a miniature builder, whose generator, unlike those of image sets, needs no TensorFlow."""
  import tensorflow_datasets as tfds

  images = np.random.default_rng(0).integers(256, size=(7, 4, 5, 1), dtype=np.uint8)

  class MiniatureImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = {'image': tfds.features.Image(shape=(4, 5, 1)), 'label': tfds.features.ClassLabel(num_classes=7)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {'test': self._generate_examples()}

    def _generate_examples(self):
      for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(png, 'png')
        png.seek(0)
        yield i, {'image': png, 'label': i}

  monkeypatch.setattr(sources, '_has_tensorflow', lambda: True)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  sources.prepare('miniature_images', str(tmp_path))
  found, labels = sources.tfds_images('miniature_images', 'test', str(tmp_path))
  np.testing.assert_array_equal(found, images[labels])
  with pytest.raises(UserError, match="did you mean 'miniature_images'"):
    sources.prepare('miniature_image', str(tmp_path))


def test_a_set_that_is_not_prepared_says_how(tmp_path):
  with pytest.raises(UserError, match='hydra-jax prepare cifar10'):
    sources.tfds_images('cifar10', 'train', str(tmp_path))


@needs_uci('energy')
def test_uci_splits_cover_the_set():
  parts = [uci.split('energy', part, DATA_DIR, 7) for part in ('train', 'test')]
  assert parts[0][0].shape == (691, 8) and parts[1][1].shape == (77, 1)
  everything = uci.load_all('energy', DATA_DIR)
  np.testing.assert_allclose(sum(y.sum() for _, y in parts), everything['target'].sum(), rtol=1e-5)
  with pytest.raises(UserError, match='20 standard splits'):
    uci.split('energy', 'train', DATA_DIR, 20)


@needs_uci('energy')
def test_parts_of_uci_splits():
  whole, _ = uci.split('energy', 'train', DATA_DIR, 7)
  head, tail, few = (uci.split('energy', f'train[{p}]', DATA_DIR, 7)[0] for p in (':80%', '80%:', '10:30'))
  assert len(head) == 553 and len(few) == 20
  np.testing.assert_array_equal(np.concatenate([head, tail]), whole)
  np.testing.assert_array_equal(few, whole[10:30])
  with pytest.raises(UserError, match='write it like'):
    uci.split('energy', 'train[a:]', DATA_DIR, 7)


@needs_uci('energy')
def test_uci_is_downloaded_and_checked(tmp_path, monkeypatch):
  """From a folder laid out as the public source is, by file:// instead of https://."""
  arrays = uci.load_all('energy', DATA_DIR)
  folder = tmp_path / 'source' / 'energy' / 'data'
  folder.mkdir(parents=True)
  table = np.c_[arrays['features'], arrays['target']]
  np.savetxt(folder / 'data.txt', table, fmt='%.17g')
  np.savetxt(folder / 'index_features.txt', np.arange(8), fmt='%d')
  np.savetxt(folder / 'index_target.txt', [8], fmt='%d')
  for part in ('train', 'test'):
    for k, rows in enumerate(arrays[f'{part}_indices']):
      np.savetxt(folder / f'index_{part}_{k}.txt', rows, fmt='%d')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(uci, 'SOURCE', (tmp_path / 'source').as_uri())
  monkeypatch.setattr(uci.download, '__defaults__', (uci.SOURCE,))
  found = uci.load_all('energy', str(tmp_path))
  np.testing.assert_array_equal(found['features'], arrays['features'])
  assert (tmp_path / 'cache' / 'hydra_jax' / 'data' / 'uci-energy' / 'energy.npz').exists()
  table[0, 0] += 1e-9
  np.savetxt(folder / 'data.txt', table, fmt='%.17g')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'other'))
  with pytest.raises(UserError, match='checksum'):
    uci.load_all('energy', str(tmp_path))


@needs_uci('energy')
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, caplog):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  monkeypatch.setattr(sources, 'prepared', lambda name, data_dir: tmp_path)
  words = rf'cannot write to the cache {tmp_path}/file/hydra_jax \(Not a directory\): set XDG_CACHE_HOME'
  with pytest.raises(UserError, match=words):
    sources.tfds_images('mnist', 'test', '')
  arrays = uci.load_all('energy', DATA_DIR)
  monkeypatch.setattr(uci, 'download', lambda name: arrays)
  assert uci.load_all('energy', str(tmp_path)) is arrays
  assert 'XDG_CACHE_HOME to a folder that can be written; goes on without' in caplog.text
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setattr(sources.Path, 'home', lambda: (_ for _ in ()).throw(RuntimeError))
  with pytest.raises(UserError, match='no home directory for the cache: set XDG_CACHE_HOME'):
    sources.cache_dir()


def test_uci_without_network_or_with_a_damaged_file(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(uci.download, '__defaults__', ((tmp_path / 'nowhere').as_uri(),))
  with pytest.raises(UserError, match='cannot download'):
    uci.load_all('energy', str(tmp_path))
  (tmp_path / 'energy.npz').write_bytes(b'PK\x03\x04 truncated')
  with pytest.raises(UserError, match='damaged'):
    uci.load_all('energy', str(tmp_path))
