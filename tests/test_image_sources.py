"""Images in folders, of Hugging Face and of any prepared set, and examples by number from a user's function."""

import sys

from conftest import DATA_DIR, needs
import numpy as np
from PIL import Image
import pytest

from hydra_jax import UserError, cli, data as datasets
from hydra_jax.data import address, catalog, image_folders
from hydra_jax.experiment.config import default_config

CLASSES = ('ant', 'bee', 'cat')


def load(name, data_dir='', validation=0.0, **changes):
  config = default_config().data
  for key, value in {'name': name, **changes}.items():
    config[key] = value
  return datasets.load(config, data_dir, 0, validation)


def about(name, data_dir=''):
  config = default_config().data
  config.name = name
  return datasets.about(config, data_dir)


def save(file, array, **more):
  file.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(file, **more)


def folder(root, random, count=20, size=(8, 8), names=CLASSES, channels=3):
  """Random images by class; returns them by the path relative to the root."""
  found = {}
  for name in names:
    for i in range(count):
      shape = (*size, channels) if channels > 1 else size
      array = random.integers(256, size=shape, dtype=np.uint8)
      save(root / name / f'{i:03}.png', array)
      found[f'{name}/{i:03}.png'] = array
  return found


def in_order(x):
  return sorted(image.tobytes() for image in x)


def test_a_folder_of_classes(tmp_path, random):
  images = folder(tmp_path, random)
  found = load(f'folder:{tmp_path}')
  test = found.evaluations['test'].load()
  assert found.task == 'classification' and found.classes == CLASSES
  assert found.train.x.shape == (48, 8, 8, 3) and test.x.shape == (12, 8, 8, 3) and test.x.dtype == np.uint8
  assert np.bincount(test.y).tolist() == [4, 4, 4]
  assert in_order([*found.train.x, *test.x]) == in_order(images.values())
  by_bytes = {array.tobytes(): CLASSES.index(path.partition('/')[0]) for path, array in images.items()}
  for split in (found.train, test):
    assert [by_bytes[x.tobytes()] for x in split.x] == split.y.tolist()
  assert about(f'folder:{tmp_path}') == datasets.About('classification', (8, 8, 3), 3)
  other = load(f'folder:{tmp_path}?seed=1&test=0.5').evaluations['test'].load()
  assert len(other.x) == 30 and in_order(other.x) != in_order(test.x)


def test_folders_of_parts(tmp_path, random, caplog):
  train, test = folder(tmp_path / 'train', random), folder(tmp_path / 'test', random, count=5)
  far = folder(tmp_path / 'far', random, count=7, names=('dog', 'elk'))
  save(tmp_path / 'test' / 'bee' / 'again.png', train['bee/003.png'])
  found = load(f'folder:{tmp_path}', ood=('far',))
  assert in_order(found.train.x) == in_order(train.values()) and found.classes == CLASSES
  assert in_order(found.evaluations['test'].load().x) == in_order([*test.values(), train['bee/003.png']])
  assert in_order(found.evaluations['far'].load().x) == in_order(far.values())
  assert f'{tmp_path}: 1 of 16 images of test stand in train as well: leave them out of one' in caplog.messages
  with pytest.raises(UserError, match='14 images of far are of classes that train does not have'):
    load(f'folder:{tmp_path}', test='far')
  with pytest.raises(UserError, match=f"unknown part of {tmp_path} 'tset': did you mean 'test'"):
    load(f'folder:{tmp_path}', test='tset')


def test_images_that_are_alike_stay_together(tmp_path, random):
  images = folder(tmp_path, random, count=12)
  for name in CLASSES:
    for i in range(12):
      save(tmp_path / name / f'copy{i}.bmp', images[f'{name}/{i:03}.png'])  # another file of the same pixels
  found = load(f'folder:{tmp_path}', validation=0.3)
  parts = [found.train.x, found.validation.x, found.evaluations['test'].load().x]
  rows = [set(in_order(x)) for x in parts]
  assert sum(map(len, parts)) == 72 and sum(map(len, rows)) == 36 and len(set.union(*rows)) == 36


def test_sizes_are_made_alike_and_the_middle_is_kept(tmp_path, random):
  """A wide image with a bright middle: its sides are cut off."""
  folder(tmp_path, random, count=4, size=(16, 16))
  wide = np.zeros((16, 64, 3), np.uint8)
  wide[:, 22:42] = 200
  save(tmp_path / 'ant' / 'wide.png', wide)
  save(tmp_path / 'ant' / 'high.png', wide.transpose(1, 0, 2))
  with pytest.raises(UserError, match='images are from 16 × 16 to 64 × 16 pixels: add size=|from 16 × 16 to 16 × 64'):
    load(f'folder:{tmp_path}')
  found = load(f'folder:{tmp_path}?size=8&test=0.3')
  images = np.concatenate([found.train.x, found.evaluations['test'].load().x])
  assert images.shape == (14, 8, 8, 3)
  assert sum(np.all(image == 200) for image in images) == 2
  assert len(in_order(load(f'folder:{tmp_path}?size=16&test=0.3').train.x)) + 4 == 14


def test_grey_and_coloured_images(tmp_path, random, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  grey = folder(tmp_path, random, channels=1)
  found = load(f'folder:{tmp_path}')
  assert found.train.x.shape == (48, 8, 8, 1)
  colour = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
  save(tmp_path / 'cat' / 'colour.png', colour)
  found = load(f'folder:{tmp_path}')
  test = found.evaluations['test'].load()
  expected = [colour, *(np.repeat(image[..., None], 3, axis=2) for image in grey.values())]
  assert in_order([*found.train.x, *test.x]) == in_order(expected)
  assert f'{tmp_path}: 60 of 61 images are grey, and get three colours' in caplog.messages


def test_what_is_transparent_or_turned_is_shown_as_it_is_seen(tmp_path, random):
  base = random.integers(256, size=(6, 8, 3), dtype=np.uint8)
  form = image_folders.Form((8, 6), False)
  for mode, alpha in (('opaque', 255), ('clear', 0)):
    save(tmp_path / f'{mode}.png', np.dstack([base, np.full((6, 8), alpha, np.uint8)]))
    found = image_folders.pixels(Image.open(tmp_path / f'{mode}.png'), form, 'x')
    np.testing.assert_array_equal(found, base if alpha else 0)
  exif = Image.Exif()
  exif[0x0112] = 6  # as a camera that is held upright writes it: turned by 90 degrees to be seen
  save(tmp_path / 'turned.png', base, exif=exif)
  size, _ = image_folders._about(tmp_path / 'turned.png')
  assert size == (6, 8)
  found = image_folders.pixels(Image.open(tmp_path / 'turned.png'), image_folders.Form(size, False), 'x')
  np.testing.assert_array_equal(found, np.rot90(base, -1))
  with pytest.raises(UserError, match='x has more than 8 bits a channel'):
    image_folders.pixels(Image.fromarray(np.zeros((6, 8), np.uint16)), form, 'x')


def test_classes_that_are_numbers_are_in_their_order(tmp_path, random):
  folder(tmp_path, random, count=4, names=[str(i) for i in range(11)])
  found = load(f'folder:{tmp_path}')
  assert found.classes == () and found.outputs == 11
  (tmp_path / '0').rename(tmp_path / '20')
  assert load(f'folder:{tmp_path}').classes == (*map(str, range(1, 11)), '20')


def broken(root):
  (root / 'ant' / 'broken.png').write_bytes(b'\x89PNG no image')


def cut(root):
  file = root / 'ant' / '000.png'
  file.write_bytes(file.read_bytes()[:100])


FOLDERS = {
  'no folder': (lambda root: None, 'there is no folder .*nowhere', 'nowhere'),
  'a file': (lambda root: (root / 'file').write_text(''), 'there is no folder', 'file'),
  'no sub-folders': (lambda root: (root / 'flat').mkdir(), 'has no sub-folders: put the images of each class', 'flat'),
  'no images': (lambda root: (root / 'n' / 'a').mkdir(parents=True), 'has no images', 'n'),
  'one class': (lambda root: save(root / 'o' / 'a' / 'x.png', np.zeros((4, 4), np.uint8)), 'one class only, a', 'o'),
  'parts and classes': (lambda root: (root / 'ant' / 'deep').mkdir(), 'has folders of parts, such as ant, and bee', ''),
  'no image': (broken, r'broken.png cannot be read as an image', ''),
  'half an image': (cut, r'000.png cannot be read as an image', ''),
  'a file as test part': (lambda root: None, 'test=x.csv must be a share', '?test=x.csv'),
}


@pytest.mark.parametrize('name', FOLDERS)
def test_folders_that_cannot_be_read_are_refused_in_one_line(tmp_path, random, name):
  folder(tmp_path, random, count=3)
  change, words, place = FOLDERS[name]
  change(tmp_path)
  with pytest.raises(UserError, match=words) as error:
    load(f'folder:{tmp_path}{place}' if place.startswith('?') else f'folder:{tmp_path / place}')
  assert '\n' not in str(error.value)


def test_files_that_are_no_images_are_named(tmp_path, random, caplog):
  folder(tmp_path, random)
  (tmp_path / 'ant' / 'Thumbs.db').write_bytes(b'x')
  (tmp_path / 'bee' / 'notes.txt').write_text('x')
  (tmp_path / 'bee' / '.DS_Store').write_text('x')
  found = load(f'folder:{tmp_path}')
  assert len(found.train.x) == 48
  assert f'{tmp_path}: 2 files are no images, and are left out: ant/Thumbs.db, bee/notes.txt' in caplog.messages


def test_images_are_decoded_once_until_a_file_changes(tmp_path, random, monkeypatch):
  folder(tmp_path, random)
  load(f'folder:{tmp_path}')
  image_folders._from_folder.cache_clear()
  with monkeypatch.context() as patch:
    patch.setattr(image_folders, 'pixels', lambda *a: pytest.fail('decoded twice'))
    load(f'folder:{tmp_path}')
  new = random.integers(256, size=(8, 8, 3), dtype=np.uint8)
  save(tmp_path / 'ant' / '000.png', new)
  found = load(f'folder:{tmp_path}')
  assert new.tobytes() in in_order([*found.train.x, *found.evaluations['test'].load().x])


@needs('mnist')
def test_any_prepared_set_is_that_of_its_name(tmp_path):
  known, found = (load(name, DATA_DIR, train='train[:50]', test='test[:20]') for name in ('mnist', 'tfds:mnist'))
  assert found.fingerprint == known.fingerprint and found.classes == ()
  assert about('tfds:mnist', DATA_DIR) == about('mnist')


@needs('cifar100')
def test_the_class_of_a_prepared_set_can_be_chosen():
  name = 'tfds:cifar100?target=coarse_label'
  found = load(name, DATA_DIR, train='test[:60]', test='test[60:80]')
  assert found.outputs == 20 and 'aquatic_mammals' in found.classes
  fine = load('tfds:cifar100', DATA_DIR, train='test[:60]', test='test[60:80]')
  np.testing.assert_array_equal(fine.train.x, found.train.x)
  assert fine.outputs == 100 and not np.array_equal(fine.train.y, found.train.y)
  assert about(name, DATA_DIR) == datasets.About('classification', (32, 32, 3), 20)
  with pytest.raises(UserError, match="unknown feature of cifar100: target 'coarse': did you mean 'coarse_label'"):
    about('tfds:cifar100?target=coarse', DATA_DIR)
  with pytest.raises(UserError, match="has no split 'train': choose one of: test"):
    load(name, DATA_DIR)


def test_photographs_of_any_prepared_set(miniatures):
  found = load('tfds:imagenet2012', miniatures, test='validation', image_size=16)
  assert found.train.varies and found.train.examples == 40 and found.outputs == 1000
  known = load('imagenet2012', miniatures, test='validation', image_size=16)
  test = [each.evaluations['test'].load() for each in (found, known)]
  np.testing.assert_array_equal(test[0].x, test[1].x)
  assert about('tfds:imagenet2012', miniatures).shape == (224, 224, 3)
  with pytest.raises(UserError, match="data set 'nothing' is not prepared under"):
    about('tfds:nothing', miniatures)


SOURCES = """
import numpy as np


class Examples:
  def __init__(self, n, as_dict=False, wrong=None):
    self.n, self.as_dict, self.wrong = n, as_dict, wrong

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    if i == self.wrong:
      return ODD
    x, y = np.float32([i, i * i % 7]), i % 3
    return {'x': x, 'y': y} if self.as_dict else (x, y)


ODD = None


def load():
  far = [(np.float32([90, i]), 0) for i in range(5)]
  return {'train': Examples(30), 'test': Examples(12, as_dict=True), 'far': far}


def grain_data():
  import grain

  return {'train': grain.MapDataset.source(Examples(30)).seed(0).shuffle(), 'test': Examples(12)}


def odd():
  return {'train': Examples(30, wrong=7), 'test': Examples(12)}


def no_length():
  return {'train': iter([]), 'test': Examples(12)}


def fails():
  return {'train': [1 / 0], 'test': Examples(12)}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A file of the user's with functions that return sources."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'my_data.py').write_text(SOURCES)
  return tmp_path


def test_examples_by_number(own):
  found = load('my_data.py:load', ood=('far',))
  expected = np.float32([[i, i * i % 7] for i in range(30)])
  np.testing.assert_array_equal(found.train.x, expected)
  np.testing.assert_array_equal(found.train.y, np.arange(30) % 3)
  np.testing.assert_array_equal(found.evaluations['test'].load().x, expected[:12])
  assert found.evaluations['far'].load().x.shape == (5, 2) and about('my_data.py:load').shape == (2,)


def test_sources_of_grain(own):
  pytest.importorskip('grain')
  found = load('my_data.py:grain_data')
  assert sorted(found.train.x[:, 0]) == list(range(30)) and found.train.x[:, 0].tolist() != list(range(30))
  np.testing.assert_array_equal(found.train.y, found.train.x[:, 0].astype(int) % 3)


@pytest.mark.parametrize(
  'odd, words',
  [
    ('(1, 2, 3)', r"example 7 of 'train' is a tuple: give a pair \(x, y\)"),
    ("{'image': 1, 'label': 2}", "example 7 of 'train' is a dict with image, label: name input and label 'x' and 'y'"),
    ('3', "example 7 of 'train' is a int: give a pair"),
    ('(np.zeros(3), 1)', r"'x' of 'train' has shapes \(2,\) and \(3,\): give all the same"),
  ],
)
def test_examples_of_another_form_are_refused(tmp_path, monkeypatch, odd, words):
  monkeypatch.chdir(tmp_path)
  name = f'my_data_{abs(hash(odd))}.py'
  (tmp_path / name).write_text(SOURCES.replace('ODD = None', f'ODD = {odd}'))
  with pytest.raises(UserError, match=words) as error:
    load(f'{name}:odd')
  assert '\n' not in str(error.value)


def test_sources_that_are_none_are_refused(own):
  with pytest.raises(UserError, match="'train' is a list_iterator, and must be an object with a length"):
    load('my_data.py:no_length')
  with pytest.raises(UserError, match=r'ZeroDivisionError: .*my_data.py, line \d+'):
    load('my_data.py:fails')


def hub():
  return pytest.importorskip('datasets')


def pictures(random, count, size=(8, 8)):
  return [Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8)) for _ in range(count)]


def saved(folder, **parts):
  hub().DatasetDict(parts).save_to_disk(str(folder))
  return str(folder)


def images_of(random, count, size=(8, 8), labels=('label',)):
  library = hub()
  features = {'image': library.Image(), **{name: library.ClassLabel(names=list(CLASSES)) for name in labels}}
  found = {'image': pictures(random, count, size), **{name: [i % 3 for i in range(count)] for name in labels}}
  return library.Dataset.from_dict(found, features=library.Features(features))


def test_images_of_hugging_face(tmp_path, random):
  train, test = images_of(random, 30), images_of(random, 12)
  found = load('hf:' + saved(tmp_path / 'set', train=train, test=test))
  assert found.classes == CLASSES and found.train.x.shape == (30, 8, 8, 3)
  np.testing.assert_array_equal(found.train.x, [np.asarray(image) for image in train['image']])
  np.testing.assert_array_equal(found.train.y, train['label'])
  np.testing.assert_array_equal(found.evaluations['test'].load().x, [np.asarray(image) for image in test['image']])
  assert about(f'hf:{tmp_path}/set') == datasets.About('classification', (8, 8, 3), 3)
  train.save_to_disk(str(tmp_path / 'one'))
  divided = load(f'hf:{tmp_path}/one?test=0.4')
  assert [len(divided.train.x), len(divided.evaluations['test'].load().x)] == [18, 12]
  assert load(f'hf:{tmp_path}/one?size=4').train.x.shape[1:] == (4, 4, 3)


def test_tables_of_hugging_face(tmp_path, random):
  library = hub()
  features = library.Features(
    {'a': library.Value('float64'), 'b': library.Value('string'), 'kind': library.ClassLabel(names=list(CLASSES))}
  )
  columns = {'a': random.normal(size=60).tolist(), 'b': list('uv') * 30, 'kind': [i % 3 for i in range(60)]}
  table = library.Dataset.from_dict(columns, features=features).shuffle(seed=0)  # rows by an index beside the data
  table.save_to_disk(str(tmp_path / 'table'))
  found = load(f'hf:{tmp_path}/table?target=kind')
  assert found.classes == CLASSES and found.columns.features == ('a', 'b=u', 'b=v')
  test = found.evaluations['test'].load()
  rows = zip(np.concatenate([found.train.x, test.x]).tolist(), [*found.train.y, *test.y])
  expected = [([a, float(b == 'u'), float(b == 'v')], k) for a, b, k in zip(*columns.values())]
  assert sorted(rows) == sorted(expected)
  assert about(f'hf:{tmp_path}/table?target=a').task == 'regression'
  with pytest.raises(UserError, match=r'say which column to predict, as \?target=COLUMN, one of a, b, kind'):
    load(f'hf:{tmp_path}/table')


def test_what_is_wrong_with_a_set_of_hugging_face_is_said_in_one_line(tmp_path, random, monkeypatch):
  train, other = (images_of(random, count, labels=('label', 'kind')) for count in (12, 3))
  several = saved(tmp_path / 'set', train=train, other=other)
  for name, words in {
    f'hf:{tmp_path}/nowhere': 'cannot read hf:.*nowhere .*: give a name on the hub, or the folder of a data set',
    f'hf:{several}': 'target=COLUMN must be named: choose one of label, kind',
    f'hf:{several}?target=lable': "unknown .*target=COLUMN 'lable': did you mean 'label'",
    f'hf:{several}?target=label,kind': 'images have one class each: name one target',
    f'hf:{several}?target=label&image=img': "unknown .*image=COLUMN 'img'",
    f'hf:{several}?target=label': "unknown part of .* 'test': choose one of: train, other",
  }.items():
    with pytest.raises(UserError, match=words) as error:
      load(name)
    assert '\n' not in str(error.value)
  assert len(load(f'hf:{several}?target=label', test='other').evaluations['test'].load().x) == 3
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(UserError, match=r"pip install 'hydra_jax\[datasets\]'"):
    load(f'hf:{several}?seed=3')


def test_forms_and_their_options_go_together():
  assert list(catalog.FORMS) == list(address.OPTIONS) and len(address.SHOWN) == len(catalog.FORMS)
  assert {form for form, _, _ in ((name.partition(':')[0], 0, 0) for name, *_ in address.documented())} == set(
    catalog.FORMS
  )


def test_check_of_a_folder(tmp_path, random, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  folder(tmp_path, random, count=4)
  given = ['check', '--config=configs/digits.py:members=2', f'--config.data.name=folder:{tmp_path}']
  assert cli.main([*given, '--config.data.ood=noise', '--config.students=kd', '--config.data.shifts=()']) == 0
  assert '192, 100' in capsys.readouterr().out
