"""Files of the user's own: what of them is read, how they can be damaged, and how splits can fail to match."""

import tracemalloc
import weakref
import zipfile

import numpy as np
import pytest

from hydra_jax import UserError, cli, data as datasets
from hydra_jax.data import files
from hydra_jax.experiment.config import default_config

N, E, C, F = 60, 11, 3, 5


def arrays(**changes):
  """Data with the arrays of a file, but for some; None leaves one out."""
  random = np.random.default_rng(0)
  x, x_test, y = random.normal(size=(N, F)), random.normal(size=(E, F)), np.arange(N) % C
  found = {**dict(x=x, y=y, x_test=x_test, y_test=y[:E], x_far=x + 9), **changes}
  return {name: value for name, value in found.items() if value is not None}


def targets(**changes):
  """The same with a target that is no class."""
  random = np.random.default_rng(1)
  return arrays(**{**dict(y=random.normal(size=N), y_test=random.normal(size=E)), **changes})


def saved(tmp_path, found, save=np.savez):
  save(tmp_path / 'data.npz', **found)
  return str(tmp_path / 'data.npz')


def load(path, validation=0.0, **changes):
  config = default_config().data
  for key, value in {'name': path, **changes}.items():
    config[key] = value
  return datasets.load(config, '', 0, validation)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_all_dtypes_and_orders_are_the_same_data(tmp_path, save):
  x = np.random.default_rng(2).integers(-100, 100, (N, F))
  plain = load(saved(tmp_path, arrays(x=x.astype(float))))
  for dtype in (np.int64, np.int8, np.float16, np.float32, np.longdouble, '>f8', '>i2'):
    found = load(saved(tmp_path, arrays(x=np.asfortranarray(x.astype(dtype)), y=arrays()['y'].astype('>i8')), save))
    inputs = found.train.arrays(found.scaling)['x']
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs, plain.train.arrays(plain.scaling)['x'], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found.train.y, plain.train.y)


def test_only_images_stay_bytes(tmp_path):
  random = np.random.default_rng(2)
  images = arrays(x=random.integers(256, size=(N, 4, 4, 1), dtype=np.uint8), x_test=np.zeros((E, 4, 4, 1), np.uint8))
  assert load(saved(tmp_path, images)).train.x.dtype == np.uint8
  features = arrays(x=random.integers(256, size=(N, F), dtype=np.uint8), x_test=np.zeros((E, F), np.uint8))
  shifted = load(saved(tmp_path, features), shifts=('jitter:1',))
  assert shifted.train.x.dtype == np.float32
  assert shifted.evaluations['jitter:1'].load().x.min() < 0  # features that are changed need be no bytes
  flags = arrays(x=random.integers(2, size=(N, F)) == 1, x_test=np.zeros((E, F), bool))
  assert set(np.unique(load(saved(tmp_path, flags)).train.x)) == {0.0, 1.0}


def test_bytes_without_an_axis_of_channels_are_grey_images(tmp_path, caplog):
  """As those of MNIST in a file are; they are the same data as with that axis. Other numbers stay features."""
  random = np.random.default_rng(2)
  x, x_test, far = (random.integers(256, size=(rows, 6, 4), dtype=np.uint8) for rows in (N, E, 7))
  with caplog.at_level('INFO', 'hydra_jax'):
    found = load(saved(tmp_path, arrays(x=x, x_test=x_test, x_far=far)), ood=('far',))
  assert [r.getMessage().partition(': ')[2] for r in caplog.records if 'grey' in r.getMessage()] == [
    "'x' is taken for grey images of 6 by 4 pixels"
  ]
  with_axis = arrays(x=x[..., None], x_test=x_test[..., None], x_far=far[..., None])
  same = load(saved(tmp_path, with_axis), ood=('far',))
  assert found.train.x.shape == (N, 6, 4, 1) and found.train.x.dtype == np.uint8
  assert found.fingerprint == same.fingerprint
  for name, evaluation in same.evaluations.items():
    assert found.evaluations[name].key() == evaluation.key()
  numbers = load(saved(tmp_path, arrays(x=x.astype(float), x_test=x_test.astype(float))))
  assert numbers.train.x.shape == (N, 6, 4) and numbers.train.x.dtype.kind == 'f'


def test_arrays_that_nobody_asks_for_are_not_read(tmp_path):
  unused = dict(huge=np.zeros(30_000_000), x_huge=np.zeros((3_000_000, F)), odd=np.array([{}], object))
  path = saved(tmp_path, arrays(**unused), np.savez_compressed)
  tracemalloc.start()
  found = load(path, ood=('far',))
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert found.train.examples == N and most < 5e6
  with pytest.raises(UserError, match="'odd' holds Python objects, which are never unpickled"):
    files.arrays_of(path)['odd']


def test_a_file_that_changes_is_read_again(tmp_path):
  path = saved(tmp_path, arrays())
  before = files.load(path, 'train', 'auto')[0]
  path = saved(tmp_path, arrays(x=before + 1))
  np.testing.assert_array_equal(files.load(path, 'train', 'auto')[0], before + 1)


def test_an_array_is_shared_while_it_is_in_use_and_then_forgotten(tmp_path):
  path = saved(tmp_path, arrays())
  first = files.arrays_of(path)['x']
  assert files.arrays_of(path)['x'] is first and not first.flags.writeable
  left = weakref.ref(first)
  del first
  assert left() is None
  np.testing.assert_array_equal(files.arrays_of(path)['x'], X)


def test_a_large_file_is_held_once(tmp_path):
  x = np.random.default_rng(0).normal(size=(100_000, 20)).astype(np.float32)
  path = saved(tmp_path, arrays(x=x, y=x[:, 0], x_test=x[:9], y_test=x[:9, 0]))
  tracemalloc.start()
  found = load(path, validation=0.1)
  held = tracemalloc.get_traced_memory()[0]
  tracemalloc.stop()
  assert len(found.validation.x) == 1000 and held < 1.5 * x.nbytes


def header(shape, dtype='<f8'):
  """An array that claims a shape, without any content."""
  text = repr({'descr': dtype, 'fortran_order': False, 'shape': shape}).ljust(117) + '\n'
  return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text.encode()


def zipped(**members):
  """A file that holds arrays, and for one of them something else."""

  def write(path):
    np.savez(path, **arrays())
    with zipfile.ZipFile(path) as archive:
      old = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, 'w') as archive:
      for name, content in {**old, **{f'{name}.npy': content for name, content in members.items()}}.items():
        archive.writestr(name, content)

  return write


def truncated(share):
  def write(path):
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

  return write


def flipped(path):
  np.savez(path, **arrays())
  content = bytearray(path.read_bytes())
  content[len(content) // 20] ^= 255
  path.write_bytes(content)


def other_zip(path):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('document.xml', '<a/>')


def single(path):
  with open(path, 'wb') as file:
    np.save(file, np.zeros(3))


DAMAGED = {
  'empty': (lambda path: path.write_bytes(b''), 'cannot read'),
  'text': (lambda path: path.write_text('x,y\n1,2\n'), 'cannot read .*not a zip'),
  'truncated': (truncated(0.5), 'cannot read'),
  'nearly whole': (truncated(0.99), 'cannot read'),
  'flipped': (flipped, 'cannot read'),
  'folder': (lambda path: path.mkdir(), 'is a folder'),
  'missing': (lambda path: None, 'there is no file'),
  'single': (single, 'one array, in the .npy format'),
  'document': (other_zip, 'holds no arrays'),
  'objects': (lambda path: np.savez(path, **arrays(x=np.array([{}] * N))), "'x' holds Python objects"),
  'object labels': (lambda path: np.savez(path, **arrays(y=np.array(['a', None] * 30))), "'y' holds Python objects"),
  'no header': (zipped(x=b''), "cannot read 'x'"),
  'bad header': (zipped(x=b'\x93NUMPY\x01\x00\x10\x00{"descr": [[[[['), "cannot read 'x'"),
  'bad version': (zipped(x=b'\x93NUMPY\x09\x00' + header((N, F))[8:]), r"'x' is in version \(9, 0\)"),
  'claims much': (zipped(x=header((10**12, F))), "'x' is damaged"),
  'claims nothing': (zipped(x=header((-1, F))), "'x' is damaged"),
  'claims other': (zipped(x=header((N, F), '<f4') + bytes(N * F * 8)), "'x' is damaged"),
  'records': (lambda path: np.savez(path, **arrays(x=np.zeros(N, [('a', float)]))), "'x' is of dtype"),
}


@pytest.mark.filterwarnings('ignore:the load_module')  # of absl, where a config file is read in a process with tests
@pytest.mark.parametrize('name', DAMAGED)
def test_damaged_files_are_refused_in_one_line(tmp_path, name, capsys):
  write, words = DAMAGED[name]
  write(tmp_path / 'data.npz')
  with pytest.raises(UserError, match=words) as error:
    load(str(tmp_path / 'data.npz'))
  assert '\n' not in str(error.value) and 'data.npz' in str(error.value)
  where = [f'--config.data.name={tmp_path / "data.npz"}', f'--workdir={tmp_path / "run"}']
  assert cli.main(['run', '--config=configs/digits.py', *where]) == 2
  assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / 'run').exists()


X, XT = arrays()['x'], arrays()['x_test']

MISFITS = {
  'one column': (arrays(x_test=XT[:, :1]), r"'x_test' has inputs of shape \[1\], and the training split \[5\]"),
  'fewer columns': (arrays(x_test=XT[:, :4]), r"'x_test' has inputs of shape \[4\]"),
  'images': (arrays(x_test=XT[:, None]), r"'x_test' has inputs of shape \[1, 5\]"),
  'far': (arrays(x_far=X[:, :4]), r"out-of-domain set 'far' has inputs of shape \[4\]"),
  'empty far': (arrays(x_far=X[:0]), r"'far' has shape \[0, 5\] and is empty"),
  'empty test': (arrays(x_test=XT[:0], y_test=np.arange(0)), r"'x_test' has shape \[0, 5\] and is empty"),
  'empty': (arrays(x=X[:0], y=np.arange(0)), 'no examples'),
  'no features': (arrays(x=X[:, :0]), r"'x' has shape \[60, 0\] and is empty"),
  'flat': (arrays(x=X[:, 0]), r"'x' has shape \[60\].*x\[:, None\]"),
  'complex': (arrays(x=X + 1j), "'x' is of dtype complex128"),
  'complex test': (arrays(x_test=XT + 1j), "'x_test' is of dtype complex128"),
  'text': (arrays(x=X.astype(str)), "'x' is of dtype <U32"),
  'dates': (arrays(x=X.astype('datetime64[s]')), "'x' is of dtype datetime64"),
  'nan': (arrays(x_test=np.where(XT > 2, np.nan, XT)), "'x_test' has NaN or infinite values in . rows, first row"),
  'inf far': (arrays(x_far=np.where(X > 2, np.inf, X)), "'far' has NaN or infinite values"),
  'large': (arrays(x=X * 1e38), "'x' has numbers of more than 1e\\+37"),
  'far off': (arrays(x=X * 1e-9, x_test=XT * 1e9), "set 'test' lies .* standard deviations .* same units"),
  'fewer labels': (arrays(y_test=np.arange(E - 1) % C), "'y_test' has 10 labels for 11 inputs"),
  'more labels': (arrays(y=np.arange(N + 1) % C), "'y' has 61 labels for 60 inputs"),
  'unknown class': (arrays(y_test=np.full(E, 3)), "'y_test' has the class 3 in 11 rows, which no example"),
  'float classes': (arrays(y_test=np.full(E, 0.5)), "'y_test' holds 0.5, which is no class"),
  'names': (arrays(y_test=np.array(['a'] * E)), "'y_test' holds 'a', and the training split '0'"),
  'two targets': (targets(y=np.random.default_rng(0).normal(size=(N, 2))), "'y_test' has 1 targets, .* split 2"),
  'nan target': (targets(y_test=np.full(E, np.nan)), "'y_test' has NaN"),
  'constant target': (targets(y=np.full(N, 0.1)), "'y' is 0.1 for every example"),
  'lost target': (
    targets(y=(1e9 + targets()['y']).astype(np.float32)),
    '1e.09, 60 examples each, the same for every example.*float64',
  ),
  'constant inputs': (arrays(x=np.full((N, F), 0.1)), "'x' is the same for every example"),
  'one example': (targets(x=X[:1], y=np.array([0.5])), 'the same for every example'),
  'no x_test': (arrays(x_test=None), "no array 'x_test'"),
  'no y': (arrays(y=None), "no array 'y', the labels of 'x': add them"),
  'no y_test': (arrays(y_test=None), "no array 'y_test', the labels of 'x_test': add them"),
}


@pytest.mark.parametrize('name', MISFITS)
def test_splits_that_do_not_match_are_refused_before_training(tmp_path, name):
  found, words = MISFITS[name]
  with pytest.raises(UserError, match=words) as error:
    load(saved(tmp_path, found), ood=('far',))
  assert '\n' not in str(error.value)


def test_whole_numbers_beside_a_target_are_targets(tmp_path):
  found = load(saved(tmp_path, targets(y_test=np.arange(E))))
  np.testing.assert_array_equal(found.evaluations['test'].load().y, np.arange(E)[:, None])
  assert found.task == 'regression' and found.evaluations['test'].load().y.dtype == np.float64


def test_test_inputs_unlike_training_inputs_are_told(tmp_path, caplog):
  def said():
    lines = [*caplog.messages]
    caplog.clear()
    return lines

  load(saved(tmp_path, arrays()))
  assert said() == []
  load(saved(tmp_path, arrays(x=X / 255)))
  (line,) = said()
  assert "'x_test': feature" in line and 'see whether both are in the same units' in line
  wide, moved = np.c_[X, np.full(N, 7.0)], np.c_[XT, np.full(E, 7.5)]
  load(saved(tmp_path, arrays(x=wide, x_test=np.c_[XT, np.full(E, 7.0)])))
  assert said() == []
  load(saved(tmp_path, arrays(x=wide, x_test=moved)))
  assert said() == [f"{tmp_path}/data.npz: 'x_test': feature 5 is 7 in every training example, and varies here"]
  images = lambda n: np.random.default_rng(0).normal(size=(n, 3, 8, 8))
  load(saved(tmp_path, arrays(x=images(N), x_test=images(E))))
  assert 'if they come first, transpose(0, 2, 3, 1)' in said()[0]


def test_what_is_taken_is_said_and_names_are_kept(tmp_path, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  names = np.array(['ant', 'bee', 'cat'])
  y = np.arange(N) % C
  found = load(saved(tmp_path, arrays(y=names[y], y_test=names[y[:E]])))
  assert found.classes == ('ant', 'bee', 'cat') and found.outputs == C
  np.testing.assert_array_equal(found.train.y, y)
  (said,) = caplog.messages
  assert "'y' holds 3 names, ant, bee, cat, 20 examples a class" in said
  assert load(saved(tmp_path, arrays())).classes == ()
  assert load(saved(tmp_path, arrays()), task='regression').task == 'regression'


def test_the_task_of_a_known_set_is_fixed(tmp_path):
  assert load('digits', task='classification').task == 'classification'
  with pytest.raises(
    UserError, match="config.data.task=regression, and 'digits' is for classification: set it to auto"
  ):
    load('digits', task='regression')
  with pytest.raises(UserError, match="did you mean 'regression'"):
    load('digits', task='regresion')


def test_names_that_are_no_data_set_are_answered_with_what_to_write(tmp_path):
  (tmp_path / 'data.csv').write_text('a,b\n1,2\n')
  words = {
    str(tmp_path / 'data.csv'): rf'write csv:{tmp_path}/data.csv\?target=COLUMN$',
    'x.parquet?target=b': r'write parquet:x.parquet\?target=b$',
    str(tmp_path): rf'write folder:{tmp_path}$',
    'digit': "did you mean 'digits'",
    'data.npy': r'csv:FILE\?target=COLUMN, parquet:.*, folder:PATH, hf:NAME, tfds:NAME, FILE.npz, or FILE.py:FUNCTION',
    'cvs:data.csv?target=a': r"did you mean 'csv:data.csv\?target=a'",
  }
  for name, word in words.items():
    with pytest.raises(UserError, match=word):
      load(name)


def test_predictions_in_the_file_say_the_task(tmp_path):
  floats = arrays(y=np.arange(N) % C + 0.0, y_test=np.arange(E) % C + 0.0)
  with pytest.raises(UserError, match='whole numbers as floats'):
    load(saved(tmp_path, floats))
  assert load(saved(tmp_path, {**floats, 'logits': np.zeros((4, N, 7))})).outputs == 7
  of_targets = {**floats, 'mean': np.zeros((4, N, 1)), 'variance': np.ones((4, N, 1))}
  assert load(saved(tmp_path, of_targets)).task == 'regression'
