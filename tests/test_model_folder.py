"""A folder that is the model: what is saved is what is loaded, and what is edited is refused in one line."""

import dataclasses
import functools
import json
import os
from pathlib import Path
import pickle
import re
import shutil
import subprocess
import sys

from conftest import ROOT
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import special
from untrained import CLASSES, ODD, predictor

import hydra_jax
from hydra_jax import Columns, UserError, store
from hydra_jax.data import validation_rows
from hydra_jax.serving import model_folder

X = np.random.default_rng(0).normal(size=(40, 5))
IMAGES = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)


def rounded(model):
  """The same with parameters of bfloat16."""
  params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.model.params)
  return model.__class__(**{**fields(model), 'model': model.model.__class__(**{**vars(model.model), 'params': params})})


def pickled(model):
  """What is left of it after pickle."""
  return model_folder.unpacked(pickle.loads(pickle.dumps(model_folder.packed(model))))


def fields(model) -> dict:
  return {name: value for name, value in vars(model).items() if not name.startswith('_')}


def of_table():
  table = {'size': X[:, 0], 'city': ['Bonn', 'Ulm'] * 20, 'price': X[:, 1]}
  columns = Columns.fit(table, target='price')
  made = predictor(task='regression', outputs=1, shape=(len(columns.features),))
  return made.__class__(**{**fields(made), 'columns': columns})


def calibrated(task='classification'):
  made = predictor(task=task, outputs=3, classes=CLASSES if task == 'classification' else ())
  y = np.array(CLASSES)[np.arange(40) % 3] if task == 'classification' else X[:, :3]
  return hydra_jax.calibrate(made, X, y)


MADE = {
  **{m: functools.partial(predictor, m, classes=CLASSES) for m in ('hydra', 'kd', 'endd', 'ensemble', 'dlf')},
  **{m: functools.partial(predictor, m) for m in ('small_ensemble', 'batch_ensemble', 'single')},
  'regression in odd units': lambda: predictor(task='regression', outputs=2, scaling=ODD, spread=1.7),
  'normal-Wishart': lambda: predictor('endd', task='regression', outputs=2, scaling=ODD),
  'spread': lambda: predictor(spread=2.25),
  'bfloat16': lambda: rounded(predictor()),
  'two phases': lambda: predictor(hinton_epochs=2.0),
  'images': lambda: predictor(network=hydra_jax.lenet, shape=(16, 16, 1), reads_bytes=True),
  'batch norm': lambda: predictor(
    network=functools.partial(hydra_jax.resnet, depth=8, width=4), shape=(8, 8, 3), reads_bytes=True, members=2
  ),
  'bins': lambda: predictor(network=functools.partial(hydra_jax.tabular, widths=(8,), bins=3)),
  'table': of_table,
  'calibrated': calibrated,
  'calibrated regression': functools.partial(calibrated, 'regression'),
}


@pytest.mark.parametrize('name', [n if n != 'batch norm' else pytest.param(n, marks=pytest.mark.slow) for n in MADE])
def test_what_is_saved_is_what_is_loaded(name, tmp_path):
  made = MADE[name]()
  hydra_jax.save(made, tmp_path / 'model')
  found = hydra_jax.load(tmp_path / 'model')
  for tree in ('params', 'model_state'):
    ours, theirs = getattr(made.model, tree), getattr(found.model, tree)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)
  for a, b in zip(made.model.scaling, found.model.scaling, strict=True):
    np.testing.assert_array_equal(a, b, strict=True)
  for field in ('task', 'shape', 'reads_bytes', 'classes', 'has_members', 'columns', 'calibration'):
    assert getattr(made, field) == getattr(found, field), field
  assert found.recipe.recipe.settings == made.recipe.recipe.settings and found.recipe.phase == made.recipe.phase
  hydra_jax.save(found, tmp_path / 'again')
  hydra_jax.save(pickled(made), tmp_path / 'pickled')
  for file in (model_folder.MODEL, model_folder.PARAMETERS):
    for other in ('again', 'pickled'):
      assert (tmp_path / other / file).read_bytes() == (tmp_path / 'model' / file).read_bytes(), other


FRESH = """
import json, sys, time
import numpy as np
import jax
jax.devices()
start = time.perf_counter()
import hydra_jax
for name in sys.argv[1:]:
  model = hydra_jax.load(f'{name}/model')
  if start:
    print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
    start = None
  given, wanted = np.load(f'{name}/x.npy'), np.load(f'{name}/wanted.npz')
  found = model.predict(given)
  assert all(isinstance(getattr(found, key), np.ndarray) for key in wanted), name
  for key in wanted:
    np.testing.assert_allclose(getattr(found, key), wanted[key], rtol=2e-5, atol=1e-6, err_msg=f'{name} {key}')
"""


@pytest.mark.slow
def test_a_fresh_process_needs_nothing_but_the_folder(tmp_path):
  """And not what trains: neither Orbax nor what draws is imported, so that a service starts at once."""
  names = ['hydra', 'kd', 'endd', 'ensemble', 'regression in odd units', 'bfloat16', 'batch norm', 'calibrated']
  with jax.numpy_dtype_promotion('standard'):
    for name in names:
      made = MADE[name]()
      x = IMAGES if made.reads_bytes else X
      x = x + 1e9 * (np.arange(5) == 0) if made.model.scaling is ODD else x
      hydra_jax.save(made, tmp_path / name / 'model')
      np.save(tmp_path / name / 'x.npy', x)
      found = made.predict(x)
      np.savez(tmp_path / name / 'wanted.npz', **{k: v for k, v in vars(found).items() if v is not None})
  python = [sys.executable, '-c', FRESH, *names]
  plain = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')} | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(python, capture_output=True, text=True, cwd=tmp_path, env=plain, check=False)
  assert done.returncode == 0, done.stderr
  _, modules = json.loads(done.stdout.splitlines()[0])
  heavy = ('orbax', 'matplotlib', 'sklearn', 'pyarrow', 'scipy.stats', 'tensorflow_datasets', 'grain')
  assert not [name for name in heavy if name in modules]


def test_a_folder_is_little_larger_than_its_parameters(tmp_path):
  """50 heads for a table of 20 columns."""
  made = predictor(members=50, outputs=2, network=hydra_jax.mlp, shape=(20,), classes=('no', 'yes'), spread=1.5)
  hydra_jax.save(made, tmp_path / 'model', scores={'accuracy': (0.9, 0.01), 'nll': 0.3})
  parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(made.model.params))
  whole = sum(file.stat().st_size for file in (tmp_path / 'model').iterdir())
  assert parameters < whole <= 1.1 * parameters


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved') / 'model'
  hydra_jax.save(calibrated(), folder)
  return folder


def sign(folder: Path) -> None:
  """Gives a folder checksums that fit, as somebody would who wants an edit to be taken."""
  (folder / store.MANIFEST).write_text(json.dumps(store._digests(folder)))


def with_value(path: str, value):
  """Sets a value in `model.json` by a dotted path; `...` removes it."""

  def edit(folder: Path) -> None:
    file = folder / model_folder.MODEL
    found = json.loads(file.read_text())
    *nodes, last = path.split('.')
    node = found
    for name in nodes:
      node = node[name]
    node[last] = value
    if value is ...:
      del node[last]
    file.write_text(json.dumps(found))

  return edit


def with_tensor(name: str, change):
  """Changes a tensor; `...` removes it."""

  def edit(folder: Path) -> None:
    file = folder / model_folder.PARAMETERS
    tensors = {key: np.array(value) for key, value in load_file(file).items()}
    tensors[name] = change if change is ... or isinstance(change, np.ndarray) else np.array(change(tensors[name]))
    save_file({key: value for key, value in tensors.items() if value is not ...}, file)

  return edit


def with_content(name: str, change):
  def edit(folder: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(change(content) if callable(change) else change)

  return edit


def linked(name: str):
  def edit(folder: Path) -> None:
    shutil.move(folder / name, folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)

  return edit


KERNEL = 'params/heads/0/kernel'
# What is done, and what the message says. Checksums are not made to fit.
DAMAGED = {
  'cut parameters': (
    with_content('parameters.safetensors', lambda c: c[:-9]),
    'first bad file: parameters.safetensors',
  ),
  'one bit': (with_content('parameters.safetensors', lambda c: c[:-1] + bytes([c[-1] ^ 1])), 'first bad file'),
  'edited recipe': (with_value('spread', 2.0), 'first bad file: model.json'),
  'no parameters': (lambda f: (f / 'parameters.safetensors').unlink(), 'parameters.safetensors, which is missing'),
  'no model': (lambda f: (f / 'model.json').unlink(), 'model.json, which is missing'),
  'no manifest': (lambda f: (f / store.MANIFEST).unlink(), 'MANIFEST.json'),
  'manifest of a list': (with_content(store.MANIFEST, b'[]'), 'no list of files'),
  'empty manifest': (with_content(store.MANIFEST, b''), 'MANIFEST.json'),
  'manifest of others': (with_content(store.MANIFEST, b'{"a": "b"}'), 'first bad file: model.json'),
  'a link': (linked('parameters.safetensors'), 'parameters.safetensors, which is a link'),
  'a linked model': (linked('model.json'), 'model.json, which is a link'),
  'a linked manifest': (linked(store.MANIFEST), 'MANIFEST.json, which is a link'),
}


@pytest.mark.parametrize('name', DAMAGED)
def test_damage_is_one_line(saved, tmp_path, name):
  edit, words = DAMAGED[name]
  folder = shutil.copytree(saved, tmp_path / 'model')
  edit(folder)
  refused(folder, re.escape(words))


def refused(folder: Path, words: str) -> None:
  with pytest.raises(UserError, match=words) as e:
    hydra_jax.load(folder)
  assert str(folder) in str(e.value) and str(e.value).isprintable()


NAN = np.float32('nan')
# Checksums are made to fit.
EDITED = {
  'another version': (with_value('format', 2), 'another version of hydra_jax.*load it with that version'),
  'no version': (with_value('format', ...), 'another version of hydra_jax'),
  'a list': (with_content('model.json', b'[]'), 'it is no object'),
  'cut': (with_content('model.json', lambda c: c[:-9]), 'is damaged'),
  'bytes': (with_content('model.json', b'\xff\xfe'), 'is damaged'),
  'nan': (with_content('model.json', lambda c: c.replace(b'"spread": 1.0', b'"spread": NaN')), 'no finite number'),
  'a key missing': (with_value('spread', ...), 'spread is missing'),
  'a key unknown': (with_value('command', 'touch called'), 'command, which this version does not know'),
  'no facts': (with_value('facts', ...), 'facts is missing'),
  'no calibration': (with_value('calibration', ...), 'calibration is missing'),
  'spread of text': (with_value('spread', '1'), 'spread is no float'),
  'spread of 0': (with_value('spread', 0), 'spread is not from 0'),
  'spread too large': (with_value('spread', 1e300), 'spread is larger'),
  'shape of text': (with_value('shape', '5'), 'shape is no tuple'),
  'shape too large': (with_value('shape', [10**6, 10**6]), 'shape is no list of sizes'),
  'other shape': (with_value('shape', [6]), r'float32 \[5, 6\], and its network has float32 \[6, 6\]'),
  'dtype': (with_value('dtype', 'object'), 'dtype is none of'),
  'classes of numbers': (with_value('classes', [1, 2, 3]), 'classes are no names'),
  'fewer classes': (with_value('classes', ['a', 'b']), '2 names of 3 classes'),
  'classes twice': (with_value('classes', ['a', 'b', 'a']), 'two classes have one name'),
  'a shell': (with_value('recipe.network', {'name': 'os:system'}), 'what a saved file names is not called'),
  'a shell by file': (with_value('recipe.network', {'name': 'evil.py:make'}), 'what a saved file names is not called'),
  'a method by file': (with_value('recipe.method', 'evil.py:make'), 'what a saved file names is not called'),
  'an unknown network': (with_value('recipe.network', {'name': 'eval'}), 'network.name is none of'),
  'an unknown method': (with_value('recipe.method', 'kd.phases'), 'method is none of'),
  'widths of 300 digits': (with_value('recipe.network.widths', [10**300]), 'larger than'),
  'too many members': (with_value('recipe.members', 10**9), 'larger than'),
  'other members': (with_value('recipe.members', 5), r'bias is float32 \[4, 3\], and its network has float32 \[5, 3\]'),
  'other network': (with_value('recipe.network', {'name': 'lenet'}), 'does not read such inputs'),
  'other method': (with_value('recipe.method', 'kd'), 'has settings.heads'),
  'other task': (with_value('recipe.task', 'regression'), 'classes'),
  'setting out of range': (with_value('recipe.settings.temperature', -1.0), 'temperature=-1.0 must be'),
  'phase beyond': (with_value('recipe.phase', 1), 'its method has 1 phases'),
  'recipe of a list': (with_value('recipe', []), 'recipe is no dict'),
  'columns of a list': (with_value('columns', []), 'schema of columns'),
  'calibration of another task': (with_value('calibration.task', 'regression'), 'calibration'),
  'calibration without a scale': (with_value('calibration.label_scale', ...), 'calibration'),
  'calibration out of range': (with_value('calibration.label_scale', 1e9), 'label_scale is not from'),
  'no more calibration': (with_value('calibration', None), 'arrays of a calibration, and no calibration'),
  'facts of others': (with_value('facts', {'data': {}, 'scores': [{'split': 1}]}), 'facts are no such'),
  'long facts': (with_value('facts.data', {'name': 'a' * 10_000}), 'facts are no such'),
  'NaN in parameters': (with_tensor(KERNEL, lambda a: a * NAN), 'kernel has NaN or infinite values'),
  'infinite parameters': (
    with_tensor(KERNEL, lambda a: a * 0 + np.float32(np.inf)),
    'kernel has NaN or infinite values',
  ),
  'other dtype': (with_tensor(KERNEL, lambda a: a.astype(np.float64)), 'kernel is float64'),
  'half precision': (with_tensor(KERNEL, lambda a: a.astype(np.float16)), 'kernel is float16'),
  'whole numbers': (with_tensor(KERNEL, lambda a: a.astype(np.int32)), 'kernel is int32'),
  'other order': (with_tensor(KERNEL, lambda a: np.ascontiguousarray(a.T)), r'kernel is float32 \[3, 6, 4\]'),
  'a parameter missing': (with_tensor(KERNEL, ...), 'kernel is missing'),
  'a parameter more': (with_tensor('params/body/9', np.zeros(3, np.float32)), 'body/9 is no parameter of its network'),
  'a name with a break': (with_tensor('a\nb', np.zeros(3, np.float32)), 'a is no parameter of its network'),
  'a scale of 0': (with_tensor('scaling/x_scale', lambda a: a * 0), 'a scale is not more than 0'),
  'a scale of NaN': (with_tensor('scaling/x_scale', lambda a: a * np.nan), 'x_scale has NaN'),
  'a short shift': (with_tensor('scaling/x_shift', lambda a: a[:2]), r'x_shift is float64 \[2\]'),
  'scores out of order': (with_tensor('calibration/scores/lac', lambda a: a[::-1].copy()), 'lac is not ascending'),
  'scores of NaN': (with_tensor('calibration/scores/lac', lambda a: a * np.nan), 'lac is no number'),
  'fewer scores': (with_tensor('calibration/scores/lac', lambda a: a[:-1]), 'lac is no list'),
  'other scores': (with_tensor('calibration/scores/evil', np.zeros(3)), 'scores has other names'),
  'scores of another type': (with_tensor('calibration/scores/lac', lambda a: a.astype(np.float32)), 'no numbers'),
  'no tensors': (with_content('parameters.safetensors', b''), 'holds no tensors'),
  'a header too long': (with_content('parameters.safetensors', b'\xff' * 64), 'holds no tensors'),
  'a tensor beyond the end': (
    with_content('parameters.safetensors', lambda c: c.replace(b'"data_offsets":[0,', b'"data_offsets":[8,')),
    'holds no tensors',
  ),
}


@pytest.mark.parametrize('name', EDITED)
def test_edits_are_refused_in_one_line_and_nothing_is_called(saved, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  Path('evil.py').write_text("open('called', 'w')\nmake = None\n")
  edit, words = EDITED[name]
  folder = shutil.copytree(saved, tmp_path / 'model')
  before = {file.name: file.read_bytes() for file in folder.iterdir()}
  edit(folder)
  assert {file.name: file.read_bytes() for file in folder.iterdir()} != before
  sign(folder)
  refused(folder, words)
  assert not Path('called').exists()


def test_the_card_and_added_files_may_be_edited(saved, tmp_path):
  """A license is for the user to fill in, and other files may lie beside the model."""
  folder = shutil.copytree(saved, tmp_path / 'model')
  (folder / 'README.md').write_text('---\nlicense: mit\n---\n')
  (folder / 'LICENSE').write_text('MIT')
  (folder / 'model.onnx').symlink_to('/etc')
  assert hydra_jax.load(folder).classes == CLASSES
  (folder / 'README.md').unlink()
  assert hydra_jax.load(folder).classes == CLASSES


def test_a_place_that_is_no_model_is_one_line(tmp_path):
  for place in (tmp_path, tmp_path / 'nothing'):
    with pytest.raises(UserError, match='no folder of a finished run'):
      hydra_jax.load(place)


def test_what_a_model_is_not_asked_for(saved):
  assert hydra_jax.load(saved, 'hydra').task == 'classification'
  with pytest.raises(UserError, match="a model by 'hydra', and not by 'kd'"):
    hydra_jax.load(saved, 'kd')
  with pytest.raises(UserError, match='no replicas'):
    hydra_jax.load(saved, replica=1)


def test_nothing_is_overwritten(tmp_path):
  made = predictor()
  (tmp_path / 'empty').mkdir()
  hydra_jax.save(made, tmp_path / 'empty')
  before = (tmp_path / 'empty' / 'model.json').read_bytes()
  (tmp_path / 'file').write_text('mine')
  for place in ('empty', 'file'):
    with pytest.raises(UserError, match='is there already'):
      hydra_jax.save(predictor('kd'), tmp_path / place)
  assert (tmp_path / 'empty' / 'model.json').read_bytes() == before
  assert not [file for file in tmp_path.iterdir() if file.name.startswith(store.NEW)]


def with_model(made, **changes):
  return made.__class__(**{**fields(made), 'model': made.model.__class__(**{**vars(made.model), **changes})})


def times(factor, dtype=None):
  return lambda made: with_model(made, params=jax.tree.map(lambda a: (factor * a).astype(dtype), made.model.params))


REFUSED = {
  'by hand': (lambda made: made.__class__(**{**fields(made), 'recipe': None}), 'what it was built from'),
  'no predictor': (lambda made: made.model, 'what it was built from'),
  'NaN': (times(np.float32('nan'), jnp.float32), 'has NaN or infinite values'),
  'float16': (times(np.float32(1), jnp.float16), 'bias is float16'),
  'other parameters': (lambda made: with_model(made, params=predictor(members=5).model.params), r'\[5, '),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_loaded_is_not_saved(name, tmp_path):
  change, words = REFUSED[name]
  with pytest.raises(UserError, match=words):
    hydra_jax.save(change(predictor()), tmp_path / 'model')
  with pytest.raises(UserError, match=words):
    model_folder.packed(change(predictor()))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('scores', [{'accuracy': 'high'}, {'nll': np.nan}, {'nll': (1, 2, 3)}, {'nll': (0.1, np.inf)}])
def test_scores_are_numbers(scores, tmp_path):
  with pytest.raises(UserError, match='give a finite number'):
    hydra_jax.save(predictor(), tmp_path / 'model', scores)


WIDTH = 7


class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.tanh(nn.Dense(WIDTH)(x))


def make(outputs, more=0):
  return [hydra_jax.from_linen(Block()), *hydra_jax.mlp(outputs, (5 + more,))]


def other(outputs, more=0):
  return make(outputs, more)


def test_a_network_that_was_passed_is_passed_again(tmp_path):
  """It may be the function, or `functools.partial` of it: arguments are saved."""
  for name, network in (('plain', make), ('with', functools.partial(make, more=2))):
    made = predictor(network=network)
    hydra_jax.save(made, tmp_path / name)
    with pytest.raises(UserError, match=r"'test_model_folder:make'.*functions=\['test_model_folder:make'\]"):
      hydra_jax.load(tmp_path / name)
    for functions in ([make], make, [other, functools.partial(make, more=9)], ['test_model_folder:make']):
      found = hydra_jax.load(tmp_path / name, functions=functions)
      assert jax.tree.all(jax.tree.map(np.array_equal, found.model.params, made.model.params))
    with pytest.raises(UserError, match='is not called'):
      hydra_jax.load(tmp_path / name, functions=[other])
    page = (tmp_path / name / 'README.md').read_text()
    assert f"hydra_jax.load('{name}', functions=['test_model_folder:make'])" in page


SOURCE = """
from flax import linen as nn
import layers
from hydra_jax import from_linen, mlp

SCALE = {scale}

def helper(x):  # {comment}
  return SCALE * x

def unrelated():
  return {unrelated}

def make(outputs):
  return [from_linen(layers.Block()), *mlp(outputs, (int(helper(2.0)),))]
"""
LAYERS = """
from flax import linen as nn

class Block(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.{activation}(nn.Dense(3)(x))
"""
FIRST = dict(scale=2.0, comment='twice', unrelated=0, activation='tanh')


def module(folder: Path, name: str, monkeypatch, **changes):
  """The function of a file, as another process would have it."""
  values = FIRST | changes
  (folder / name).mkdir()
  (folder / name / 'layers.py').write_text(LAYERS.format(**values))
  (folder / name / 'nets.py').write_text(SOURCE.format(**values))
  monkeypatch.syspath_prepend(folder / name)
  for each in ('nets', 'layers'):
    monkeypatch.setitem(sys.modules, each, None)  # which is undone at the end, also where there was none
    del sys.modules[each]
  import nets

  return nets.make


def test_the_source_of_a_network_is_compared(tmp_path, monkeypatch):
  """That of all that it reaches, and of nothing else."""
  hydra_jax.save(predictor(network=module(tmp_path, 'first', monkeypatch)), tmp_path / 'model')
  for i, change in enumerate((dict(comment='other words'), dict(unrelated=1))):
    assert hydra_jax.load(tmp_path / 'model', functions=module(tmp_path, f'same {i}', monkeypatch, **change))
  for i, change in enumerate((dict(scale=3.0), dict(activation='relu'))):
    with pytest.raises(UserError, match="source of 'nets:make' is not that with which it was trained"):
      hydra_jax.load(tmp_path / 'model', functions=module(tmp_path, f'other {i}', monkeypatch, **change))


def test_a_network_without_a_name_or_a_source_is_not_saved(tmp_path):
  made = {}
  exec('import hydra_jax\ndef make(outputs):\n  return hydra_jax.mlp(outputs, (3,))\n', made)
  for network, words in (
    (lambda outputs: hydra_jax.mlp(outputs, (3,)), 'has no name'),
    (functools.partial(make, more=np.int64(2)), 'has no name'),
    (made['make'], 'no source'),
  ):
    with pytest.raises(UserError, match=words):
      hydra_jax.save(predictor(network=network), tmp_path / 'model')
  assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class OfWidth:
  """Makes networks, and is no function."""

  width: int

  def __call__(self, outputs):
    return hydra_jax.mlp(outputs, (self.width,))


def test_networks_of_modules_are_pickled_by_name_and_no_others(tmp_path, monkeypatch):
  for network in (make, functools.partial(make, more=2), functools.partial(make, more=np.int64(2)), OfWidth(3)):
    made = predictor(network=network)
    found = pickled(made)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.model.params, made.model.params))
    np.testing.assert_array_equal(found.predict(X).mean, made.predict(X).mean)
  for network in (lambda outputs: make(outputs), functools.partial(lambda outputs, more: make(outputs), more=2)):
    with pytest.raises(UserError, match='<lambda> cannot be pickled: .* by def'):
      model_folder.packed(predictor(network=network))
  first = pickle.dumps(model_folder.packed(predictor(network=module(tmp_path, 'first', monkeypatch))))
  module(tmp_path, 'edited', monkeypatch, scale=3.0)
  with pytest.raises(UserError, match="source of 'nets:make' is not that with which it was trained"):
    model_folder.unpacked(pickle.loads(first))


@pytest.mark.slow
def test_an_array_is_distilled_and_saved(tmp_path, random):
  """With what the validation part says of it."""
  x = random.normal(size=(300, 5))
  logits = np.einsum('nf,mfc->mnc', x, random.normal(size=(4, 5, 3)) + 2 * random.normal(size=(1, 5, 3)))
  student = hydra_jax.distil(
    x, logits, epochs=20.0, batch_size=50, network=functools.partial(hydra_jax.mlp, widths=(9,))
  )
  hydra_jax.save(student, tmp_path / 'model')
  found = hydra_jax.load(tmp_path / 'model')
  np.testing.assert_array_equal(found.predict(x).epistemic, student.predict(x).epistemic)
  facts = json.loads((tmp_path / 'model' / 'model.json').read_text())['facts']
  scores = {row['metric']: row['value'] for row in facts['scores']}
  rows = validation_rows(300, 0.1)
  p = special.softmax(logits[:, rows], axis=-1).mean(axis=0)
  same = student.predict(x[rows]).mean.argmax(axis=1) == p.argmax(axis=1)
  assert facts['data'] == {'training': 270, 'validation': 30} and scores['agreement'] == pytest.approx(same.mean())
  assert scores['uncertainty_epistemic_ratio'] == pytest.approx(1, rel=1e-3)  # heads were spread to this end


@pytest.mark.slow
def test_a_run_becomes_a_folder(tiny_run, tmp_path):
  run = hydra_jax.load(tiny_run[0], 'hydra')
  hydra_jax.save(run, tmp_path / 'model')
  found = hydra_jax.load(tmp_path / 'model')
  x = np.random.default_rng(0).integers(0, 17, (20, 8, 8, 1), dtype=np.uint8)
  np.testing.assert_array_equal(found.predict(x).members, run.predict(x).members)
  rows = [json.loads(line) for line in (tiny_run[0] / 'results.jsonl').read_text().splitlines()]
  (accuracy,) = [r for r in rows if (r['split'], r['method'], r['metric']) == ('test', 'hydra', 'accuracy')]
  error = np.sqrt(accuracy['value'] * (1 - accuracy['value']) / accuracy['n'])
  page = (tmp_path / 'model' / 'README.md').read_text()
  assert re.search(rf'\| accuracy \| {accuracy["value"]:.3f} ± {error:.3f} \|', page)


def test_bfloat16_takes_half_the_space(tmp_path):
  made = rounded(predictor())
  hydra_jax.save(made, tmp_path / 'model')
  assert load_file(tmp_path / 'model' / model_folder.PARAMETERS)[KERNEL].dtype == ml_dtypes.bfloat16
