"""Photographs of all sizes: their views, and what is made of sets that are damaged or absent."""

from pathlib import Path
import shutil
import sys

from helpers import squeeze
import numpy as np
from PIL import Image
import pytest

from hydra_jax import UserError, data as datasets
from hydra_jax.data import photos
from hydra_jax.experiment.config import default_config
from hydra_jax.training.batches import batch_indices, source_of

SIZE = 16


def load(data_dir):
  config = default_config().data
  config.name, config.test, config.image_size = 'imagenet2012', 'validation', SIZE
  return datasets.load(config, str(data_dir), 0)


def batches_of(data, start, stop):
  serve = source_of([data]).begin([(0, 0, 1)], start, stop, 6)
  return [squeeze(serve(step, 1)[0]) for step in range(start, stop)]


@pytest.mark.parametrize('width, height', [(500, 375), (30, 400), (1, 1)])
def test_random_boxes_lie_in_the_image_and_vary(width, height):
  random = np.random.default_rng(0)
  boxes = np.asarray([photos.random_box(width, height, random) for _ in range(500)])
  assert boxes[:, :2].min() >= 0 and np.all(boxes[:, 2:] <= np.asarray([width, height]) + 1e-9)
  w, h = (boxes[:, 2:] - boxes[:, :2]).T
  assert np.all(w * h > 0.08 * width * height - 1e-9)
  assert np.all((w / h > 3 / 4 - 1e-9) & (w / h < 4 / 3 + 1e-9))
  assert len(np.unique(boxes.round(6), axis=0)) > 400


def test_central_box_is_that_of_256_and_224():
  assert photos.central_box(256, 256) == (16, 16, 240, 240)
  assert photos.central_box(512, 1024) == (32, 288, 480, 736)


def test_half_of_the_random_views_are_mirrored():
  slope = Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (50, 1))).convert('RGB')
  random = np.random.default_rng(0)
  views = np.stack([np.asarray(photos.random_view(slope, 8, random)).astype(int) for _ in range(200)])
  falling = views[:, 0, 0, 0] > views[:, 0, -1, 0]
  assert views.shape == (200, 8, 8, 3) and 70 < falling.sum() < 130


def test_a_set_is_streamed_for_training_and_decoded_once_for_evaluation(miniatures, monkeypatch):
  data = load(miniatures)
  assert data.train.examples == 40 and data.train.example.shape == (8, SIZE, SIZE, 3) and data.train.varies
  assert data.outputs == 1000 and data.scaling.x_shift.shape == (3,)
  test = data.evaluations['test'].load()
  assert test.x.shape == (9, SIZE, SIZE, 3) and isinstance(test.x, np.memmap)
  assert sorted(test.y.tolist()) == list(range(9))
  monkeypatch.setattr(photos, 'reader', lambda *a: pytest.fail('decoded twice'))
  np.testing.assert_array_equal(photos.images('imagenet2012', 'validation', miniatures, SIZE)[0], test.x)
  assert 'tensorflow' not in sys.modules


def test_batches_are_views_of_the_rows_that_seed_and_step_decide(miniatures):
  data = load(miniatures)
  whole = batches_of(data, 0, 9)
  assert whole[0]['x'].shape == (6, SIZE, SIZE, 3) and whole[0]['x'].dtype == np.uint8
  for found, expected in zip(batches_of(data, 5, 9), whole[5:], strict=True):
    np.testing.assert_array_equal(found['x'], expected['x'])
    np.testing.assert_array_equal(found['y'], expected['y'])
  _, labels = photos.images('imagenet2012', 'train', miniatures, SIZE)
  order = batch_indices((0, 0, 1), 0, 9, 40, 6)
  np.testing.assert_array_equal(np.stack([batch['y'] for batch in whole]), labels[order])


def test_what_a_stream_is_called(miniatures, tmp_path):
  """Its fingerprint is that of a copy elsewhere, and another for other sizes and splits."""
  shutil.copytree(miniatures, tmp_path / 'copy')
  name = lambda folder, split='train', size=SIZE: photos.stream('imagenet2012', split, str(folder), size).fingerprint
  assert name(miniatures) == name(tmp_path / 'copy')
  assert len({name(miniatures), name(miniatures, 'train[:30]'), name(miniatures, size=SIZE + 1)}) == 3


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_a_damaged_record_is_named(miniatures, tmp_path, monkeypatch, split):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  shutil.copytree(Path(miniatures) / 'imagenet2012', tmp_path / 'imagenet2012')
  (path,) = tmp_path.glob(f'imagenet2012/*/*-{split}.array_record*')
  content = bytearray(path.read_bytes())
  where = content.rindex(b'JFIF')  # of the last image
  content[where : where + 200] = bytes(200)
  path.write_bytes(content)
  with pytest.raises(UserError, match=rf"cannot read record \d+ of split '{split}'") as error:
    data = load(tmp_path)
    batches_of(data, 0, 7)
    data.evaluations['test'].load()
  assert '\n' not in str(error.value)


def test_sets_that_cannot_be_streamed(miniatures, tmp_path):
  with pytest.raises(UserError, match='hydra-jax prepare imagenet2012'):
    load(tmp_path)
  with pytest.raises(UserError, match="did you mean 'train'"):
    photos.stream('imagenet2012', 'tarin', miniatures, SIZE)
  shutil.copytree(Path(miniatures) / 'imagenet2012', tmp_path / 'imagenet2012')
  (info,) = tmp_path.glob('imagenet2012/*/dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(UserError, match='not in the array_record format'):
    load(tmp_path)
