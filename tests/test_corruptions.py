"""Corruptions: what severity does, closed forms, and the files of CIFAR-10-C in a miniature of their format."""

from conftest import DATA_DIR, needs
import numpy as np
import pytest
import scipy.ndimage

from hydra_jax import UserError, data as datasets
from hydra_jax.data import Evaluation, corruptions, shifts, sources
from hydra_jax.experiment.config import default_config
from hydra_jax.report import figures

KINDS = list(corruptions.CORRUPTIONS)


def smooth(n=40, height=32, width=32, channels=3):
  """Images without structure as fine as a pixel, whose values spread over 0 to 255."""
  noise = np.random.default_rng(0).normal(size=(n, height, width, channels))
  waves = scipy.ndimage.gaussian_filter(noise, (0, 3, 3, 0), mode='wrap')
  low, high = (f(waves, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
  return np.uint8(255 * (waves - low) / (high - low))


IMAGES = smooth()

# The farther its pixels move alone, the less they move together.
NOT_IN_ORDER = {'elastic_transform'}


def loaded(**changes):
  config = default_config().data
  config.update(changes)
  return config


def differences(kind, images):
  moved = [corruptions.corrupt(kind, images, s) for s in corruptions.SEVERITIES]
  return [float(np.mean(np.square(np.float32(m) - images))) for m in moved]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(3, 32, 32, 3), (3, 8, 8, 1), (2, 20, 13, 3)])
def test_shape_and_dtype_stay_and_nothing_is_left_to_chance(kind, shape):
  images = smooth(*shape)
  for severity in corruptions.SEVERITIES:
    found = corruptions.corrupt(kind, images, severity)
    assert found.shape == shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found, corruptions.corrupt(kind, images, severity))


@pytest.mark.parametrize('kind', KINDS)
def test_greater_severity_changes_more(kind):
  found = differences(kind, IMAGES)
  # Motion blur at severities 3 and 4 is the same but for a radius that cuts off nothing.
  steps = np.diff(np.delete(found, 3) if kind == 'motion_blur' else found)
  assert min(found) > 0 and (np.all(steps > 0) or kind in NOT_IN_ORDER), found


@needs('cifar10')
@pytest.mark.parametrize('kind', KINDS)
def test_greater_severity_changes_more_of_real_images(kind):
  found = differences(kind, np.asarray(sources.tfds_images('cifar10', 'test', DATA_DIR)[0][:300]))
  assert 3 < found[0] and (np.all(np.diff(found) > -1) or kind in NOT_IN_ORDER), found


def test_a_piece_is_corrupted_as_it_is_in_the_whole():
  images = smooth(corruptions.AT_ONCE + 3, 8, 8, 1)
  whole = corruptions.corrupt('contrast', images, 5)
  np.testing.assert_array_equal(corruptions.corrupt('contrast', images[-3:], 5), whole[-3:])


@pytest.mark.parametrize('white', [16, 255])
def test_contrast_and_brightness_are_their_closed_forms(white, random):
  images = np.uint8(random.integers(0, white + 1, size=(5, 8, 8, 3)))
  images[0, 0, 0] = white
  x = images / white
  mean = x.mean(axis=(1, 2), keepdims=True)
  np.testing.assert_allclose(corruptions.corrupt('contrast', images, 2) / white, (x + mean) / 2, atol=0.51 / white)
  brighter = corruptions.corrupt('brightness', images, 5) / white
  top = x.max(axis=-1, keepdims=True)
  np.testing.assert_allclose(brighter.max(axis=-1, keepdims=True), np.minimum(top + 0.3, 1), atol=0.51 / white)
  # Hue and saturation stay: the channels keep their proportions.
  np.testing.assert_allclose(brighter * top, x * brighter.max(axis=-1, keepdims=True), atol=1.1 / white)


def test_noise_has_its_strength():
  grey = np.full((20, 32, 32, 3), 128, np.uint8)
  grey[0, 0, 0] = 0, 255, 255
  for severity, deviation, photons, share in ((1, 0.04, 500, 0.01), (5, 0.10, 50, 0.07)):
    gaussian, shot, impulse = (
      corruptions.corrupt(f'{kind}_noise', grey, severity)[1:] for kind in ('gaussian', 'shot', 'impulse')
    )
    np.testing.assert_allclose(gaussian.std() / 255, deviation, rtol=0.02)
    np.testing.assert_allclose(shot.std() / 255, np.sqrt(128 / 255 / photons), rtol=0.02)
    assert set(np.unique(impulse)) == {0, 128, 255}
    np.testing.assert_allclose([np.mean(impulse == v) for v in (0, 255)], share / 2, rtol=0.15)


@pytest.mark.parametrize('strength', corruptions.CORRUPTIONS['defocus_blur'][1])
def test_defocus_is_a_mean(strength):
  kernel = corruptions.disk(*strength)
  np.testing.assert_allclose(kernel.sum(), 1)
  for turned in (kernel[::-1], kernel.T):
    np.testing.assert_allclose(turned, kernel)


@pytest.mark.parametrize(
  'kind', ['defocus_blur', 'motion_blur', 'zoom_blur', 'elastic_transform', 'pixelate', 'contrast']
)
def test_images_of_one_colour_stay_as_they_are(kind):
  plain = np.broadcast_to(np.uint8([250, 90, 30]), (4, 17, 17, 3))
  np.testing.assert_array_equal(corruptions.corrupt(kind, plain, 5), plain)


def test_motion_has_one_direction():
  point = np.zeros((50, 31, 31, 1), np.uint8)
  point[:, 15, 15] = 255
  for image in corruptions.corrupt('motion_blur', point, 5)[..., 0]:
    rows, columns = np.nonzero(image)
    assert columns.max() == 15 and columns.min() < 12 and image[:, 13:].max() == image.max()
    assert np.all(np.abs(rows - 15) <= 15 - columns) and (np.all(rows >= 15) or np.all(rows <= 15))


def test_zoom_keeps_the_middle():
  middle = np.zeros((1, 33, 33, 1), np.uint8)
  middle[:, 16, 16] = 255
  blurred = corruptions.corrupt('zoom_blur', middle, 5)[0, :, :, 0]
  assert blurred.argmax() == 16 * 33 + 16
  np.testing.assert_array_equal(blurred, blurred.T)


def test_enlarging_is_what_scipy_does():
  for factor, shown in ((1.25, 26), (1.1, 30)):
    start = (32 - shown) // 2
    piece = IMAGES[0, start : start + shown, start : start + shown].astype(np.float32)
    zoomed = scipy.ndimage.zoom(piece, (factor, factor, 1), order=1)
    trim = (len(zoomed) - 32) // 2
    found = corruptions.along_both(np.float32(IMAGES[:1]), [[corruptions.enlarged(32, factor)] * 2])[0]
    np.testing.assert_allclose(found, zoomed[trim : trim + 32, trim : trim + 32], atol=1e-3)


def test_pixelate_leaves_constant_blocks():
  for severity, share in ((1, 0.95), (5, 0.65)):
    image = corruptions.corrupt('pixelate', smooth(1), severity)[0]
    assert len(np.unique(image, axis=0)) == len(np.unique(image, axis=1).swapaxes(0, 1)) == int(32 * share)


def test_fog_is_from_0_to_1_and_everywhere_another():
  clouds = corruptions.plasma(np.random.default_rng(0), 30, 16, 2.0)
  np.testing.assert_allclose([clouds.min(axis=(1, 2)), clouds.max(axis=(1, 2))], [[0] * 30, [1] * 30])
  assert np.std(clouds, axis=0).min() > 0.05
  rough = [np.abs(np.diff(corruptions.plasma(np.random.default_rng(0), 30, 16, d), axis=1)).mean() for d in (3, 1.5)]
  assert rough[0] < rough[1]


@pytest.mark.parametrize(
  'name, shift, word',
  [
    ('digits', 'gaussian_noise:0', 'one of 1, 2, 3, 4, 5'),
    ('digits', 'gaussian_noise:2.5', 'one of 1, 2, 3, 4, 5'),
    ('digits', 'gaussian_noise', 'needs a strength'),
    ('digits', 'gausian_noise:3', "did you mean 'gaussian_noise'"),
    ('digits', 'rotate:nan', 'finite'),
    ('spiral', 'fog:3', 'is for images'),
    ('spiral', 'rotate:30', 'is for images'),
    ('digits', 'CIFAR-10-C/fog:3', "made from 'cifar10', not from 'digits'"),
    ('digits', 'CIFAR-10-C/frog:3', "did you mean 'CIFAR-10-C/fog'"),
  ],
)
def test_what_cannot_work_is_refused_at_once(name, shift, word):
  """By `load`, before any set is read or made."""
  with pytest.raises(UserError, match=word) as error:
    datasets.load(loaded(name=name, shifts=(shift,)), DATA_DIR, 0)
  assert '\n' not in str(error.value)


def test_corruptions_of_the_test_split():
  found = datasets.load(loaded(name='digits', shifts=('contrast:5', 'jpeg_compression:1')), DATA_DIR, 0)
  test, low, _ = (e.load() for e in found.evaluations.values())
  assert (found.evaluations['contrast:5'].family, found.evaluations['contrast:5'].strength) == ('corruptions', 5)
  np.testing.assert_array_equal(low.y, test.y)
  assert low.x.max() <= 16 and low.x.std() < 0.2 * test.x.std()


@pytest.fixture
def miniature(tmp_path, random):
  """Files as they are in the release, of 10 images at each severity; all pixels of a row are its number."""
  folder = tmp_path / 'CIFAR-10-C'
  folder.mkdir()
  rows = np.arange(50, dtype=np.uint8)
  np.save(folder / 'fog.npy', np.broadcast_to(rows[:, None, None, None], (50, 32, 32, 3)))
  np.save(folder / 'labels.npy', np.tile(random.permutation(10).astype(np.uint8), 5))
  return tmp_path


def test_published_files_bring_their_own_order(miniature):
  images, labels = corruptions.published('fog', 2, str(miniature))
  assert isinstance(images, np.memmap) and images.shape == (10, 32, 32, 3) and labels.dtype == np.int32
  np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(10, 20))
  np.testing.assert_array_equal(labels, np.load(miniature / 'CIFAR-10-C' / 'labels.npy')[:10])


def test_published_files_are_missed_or_found_damaged_before_the_training(miniature):
  ready = lambda name: shifts.check(name, 'cifar10', IMAGES, str(miniature))
  ready('CIFAR-10-C/fog:5')
  with pytest.raises(UserError, match=r'frost.npy is not there: download .*zenodo.org/records/2535967 .*unpack it in'):
    ready('CIFAR-10-C/frost:5')
  fog = miniature / 'CIFAR-10-C' / 'fog.npy'
  whole = fog.read_bytes()
  for damaged, word in ((whole[:5000], 'damaged'), (whole[:20], 'damaged')):
    fog.write_bytes(damaged)
    with pytest.raises(UserError, match=word):
      ready('CIFAR-10-C/fog:5')
  np.save(fog, np.zeros((49, 32, 32, 3), np.uint8))
  with pytest.raises(UserError, match=r'shape \(49, 32, 32, 3\) for 50 labels'):
    ready('CIFAR-10-C/fog:5')


@needs('cifar10')
def test_published_files_are_evaluated(miniature):
  (miniature / 'cifar10').symlink_to(sources.prepared('cifar10', DATA_DIR).parent)
  config = loaded(name='cifar10', train='train[:20]', test='test[:20]', shifts=('CIFAR-10-C/fog:3',))
  evaluation = datasets.load(config, str(miniature), 0).evaluations['CIFAR-10-C/fog:3']
  assert (evaluation.kind, evaluation.strength, evaluation.family) == ('shift', 3, 'CIFAR-10-C')
  np.testing.assert_array_equal(evaluation.load().x[:, 0, 0, 0], np.arange(20, 30))


def test_the_figure_shows_means_where_all_kinds_have_a_severity():
  names = ('rotate:30', 'fog:1', 'fog:5', 'contrast:5', 'contrast:3', 'CIFAR-10-C/fog:2')
  sets = [Evaluation(n, 'shift', None, None, s, shift.family) for n in names for shift, s in [shifts.parse(n)]]
  means, parts = figures._families(sets)
  assert list(means) == ['rotate', 'corruptions, mean of 2', 'CIFAR-10-C/fog']
  assert means['corruptions, mean of 2'] == {0.0: ['test', 'test'], 5.0: ['fog:5', 'contrast:5']}
  assert parts == {
    'fog': {0.0: ['test'], 1.0: ['fog:1'], 5.0: ['fog:5']},
    'contrast': {0.0: ['test'], 3.0: ['contrast:3'], 5.0: ['contrast:5']},
  }
