"""Exported files compute what `predict` does: ONNX in a process without JAX, StableHLO in one without this package."""

import dataclasses
from functools import partial
import json
import logging
from pathlib import Path
import re
import subprocess
import sys

from conftest import ROOT
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

import hydra_jax
from hydra_jax import UserError, cli
from hydra_jax.data import Scaling, toy
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.experiment.validation import apply_spread
from hydra_jax.maths.tasks import TASKS
from hydra_jax.methods import latent_factor
from hydra_jax.nets import zoo
from hydra_jax.nets.batch_ensemble import averaged
from hydra_jax.nets.stages import Stage
from hydra_jax.serving import exported_columns, onnx_rules

IMAGE = (16, 16, 3)
OUTPUTS = ('mean', 'total', 'aleatoric', 'epistemic')


def predictor_of(network, task='classification', shape=(6,), kind='members', spread=1.5) -> Predictor:
  """A network with random parameters, statistics and scaling: tables of 1e9 ± 3, images of bytes."""
  random, reads_bytes = np.random.default_rng(0), len(shape) > 1
  shapes = jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape), jnp.float32))
  fans = lambda leaf: np.sqrt(np.prod(leaf.shape[-4:-1]) if leaf.ndim > 1 else 4)
  draw = lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / fans(leaf), leaf.dtype)
  params, state = jax.tree.map(draw, shapes[0]), jax.tree.map(lambda leaf: jnp.abs(draw(leaf)) + 0.5, shapes[1])
  x = (np.full(3, 120.0), np.full(3, 60.0)) if reads_bytes else (np.full(shape, 1e9), np.full(shape, 3.0))
  y = (np.zeros(1), np.ones(1)) if task == 'classification' else (np.array([1e6, 5]), np.array([3, 0.1]))
  model = Model(network, params, state, Scaling(*x, *y), TASKS[task].predictives[kind].read)
  many = spread != 1 and len(network.heads) > 1
  return Predictor(
    apply_spread(model, spread, task) if many else model, task, shape, reads_bytes, has_members=kind == 'members'
  )


def inputs_for(predictor: Predictor, count: int, random) -> np.ndarray:
  if predictor.reads_bytes:
    return random.integers(60, 180, (count, *predictor.shape)).astype(np.uint8)
  return 1e9 + 3 * random.normal(size=(count, *predictor.shape))


def run_onnx(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
  session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(None, {'x': x}), strict=True))


def assert_same(found: dict, prediction, predictor: Predictor) -> None:
  """Within 1e-5 of the size of each output: of a probability 1, of a mean the deviation of the target."""
  total = np.abs(prediction.total).max(axis=0)
  means = 1.0 if predictor.task == 'classification' else predictor.model.scaling.y_scale * 3
  for name, values in found.items():
    wanted = getattr(prediction, name)
    wanted = np.swapaxes(wanted, 0, 1) if name.startswith('member') else wanted
    assert values.dtype == wanted.dtype and values.shape == wanted.shape
    assert np.all(np.abs(values - wanted) <= 1e-5 * (means if name in ('mean', 'members') else total)), name


NETWORKS = {
  'hydra': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20)), -1, 5),
  'hydra, cut deeper': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20)), 1, 5),
  'ensemble': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20)), 0, 5),
  'hydra, head by head': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20)), 1, 5, mapping='loop'),
  'kd': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20)), 1, 1),
  'bottleneck': lambda o: hydra_jax.multi_head(hydra_jax.mlp(o, (20, 20), bottleneck=8), -1, 5),
  'batch_ensemble': lambda o: hydra_jax.batch_ensemble(hydra_jax.mlp(o, (20,)), 4),
  'averaged': lambda o: averaged(hydra_jax.mlp(o, (20,)), 4),
  'tabular': lambda o: hydra_jax.multi_head(hydra_jax.tabular(o, (20, 20)), -1, 5),
  'dlf': lambda o: latent_factor.network(hydra_jax.mlp(o * 5, (20,)), 3, 8),
}


@pytest.mark.parametrize('task', ['classification', 'regression'])
@pytest.mark.parametrize('name', NETWORKS)
def test_networks_for_tables_as_onnx(name, task, tmp_path, random):
  predictor = predictor_of(NETWORKS[name](4), task)
  about = hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx', members=True)
  x = inputs_for(predictor, 9, random)
  found = run_onnx(tmp_path / 'a.onnx', x)
  assert list(found) == list(about['outputs'])
  assert_same(found, predictor.predict(x), predictor)


def test_variances_that_do_not_depend_on_the_input(tmp_path, random):
  network = hydra_jax.multi_head(hydra_jax.mlp(4, (20,), homoscedastic=True), -1, 5)
  predictor = predictor_of(network, 'regression')
  hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  x = inputs_for(predictor, 9, random)
  assert_same(run_onnx(tmp_path / 'a.onnx', x), predictor.predict(x), predictor)


@pytest.mark.parametrize('task', ['classification', 'regression'])
def test_prior_networks_as_onnx(task, tmp_path, random):
  """Their uncertainty is made of ψ and ln Γ, which ONNX does not have."""
  outputs = TASKS[task].predictives['prior'].outputs(4 if task == 'classification' else 2)
  predictor = predictor_of(hydra_jax.multi_head(hydra_jax.mlp(outputs, (20, 20)), 0, 1), task, kind='prior')
  hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  x = inputs_for(predictor, 9, random)
  assert_same(run_onnx(tmp_path / 'a.onnx', x), predictor.predict(x), predictor)
  with pytest.raises(UserError, match='has no members to export'):
    hydra_jax.export(predictor, tmp_path / 'b.onnx', 'onnx', members=True)


def _stages_of_resnet50():
  """One block of each group, where the network has 3 to 6."""
  layers = {'norm': 'batch', 'dtype': jnp.float32}
  stem, block = zoo.ImageNetStem(**layers), partial(zoo.Bottleneck, **layers)
  return zoo._assemble(stem, block, 8, [1, 1, 1, 1], zoo.Pool(), 4)


IMAGE_NETWORKS = {
  'mlp': lambda: hydra_jax.multi_head(hydra_jax.mlp(4, (20,)), -1, 3),
  'lenet': lambda: hydra_jax.multi_head(hydra_jax.lenet(4), -1, 3),
  'lenet, cut deeper': lambda: hydra_jax.multi_head(hydra_jax.lenet(4), 1, 3),
  'resnet': lambda: hydra_jax.multi_head(hydra_jax.resnet(4, 8, 8), -1, 3),
  'resnet, cut deeper': lambda: hydra_jax.multi_head(hydra_jax.resnet(4, 8, 8), -2, 3),
  'resnet, cut deeper, side by side': lambda: hydra_jax.multi_head(hydra_jax.resnet(4, 8, 8), -2, 3, mapping='vmap'),
  'resnet with groups': lambda: hydra_jax.multi_head(hydra_jax.resnet(4, 8, 8, norm='group'), -1, 3),
  'wide_resnet': lambda: hydra_jax.multi_head(hydra_jax.wide_resnet(4, 10, 1, dropout=0.1), -1, 3),
  'batch_ensemble of lenet': lambda: hydra_jax.batch_ensemble(hydra_jax.lenet(4), 3),
  'stages of resnet50': lambda: hydra_jax.multi_head(_stages_of_resnet50(), -1, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', IMAGE_NETWORKS)
def test_networks_for_images_as_onnx(name, tmp_path, random):
  predictor = predictor_of(IMAGE_NETWORKS[name](), shape=IMAGE)
  about = hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx', members=True)
  assert about['input'] == {'name': 'x', 'dtype': 'uint8', 'shape': ['batch', *predictor.shape]}
  x = inputs_for(predictor, 3, random)
  assert_same(run_onnx(tmp_path / 'a.onnx', x), predictor.predict(x), predictor)


def test_dense_heads_are_one_product(tmp_path):
  """Their spread is part of it."""
  predictor = predictor_of(NETWORKS['hydra'](4))
  hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  graph = onnx.load(tmp_path / 'a.onnx').graph
  weights = {array.name: tuple(array.dims) for array in graph.initializer}
  products = [weights[node.input[1]] for node in graph.node if node.op_type == 'MatMul']
  assert products == [(6, 20), (20, 20), (20, 20)]
  assert 'ReduceSum' not in [node.op_type for node in graph.node][: [n.op_type for n in graph.node].index('LogSoftmax')]


def table(count: int, random, odd: bool = False) -> dict[str, list]:
  """Numbers, booleans, words and dates, some of them missing; with `odd` some words are new."""
  absent = lambda values, share: [None if gone else value for gone, value in zip(random.random(count) < share, values)]
  words = [*'abcd', *(['new', 'newer'] if odd else [])]
  times = lambda start, most: np.datetime64(start) + random.integers(0, most, count).astype('timedelta64[s]')
  return {
    'size': absent(map(float, 1e9 + 3 * random.normal(size=count)), 0.2),
    'rooms': [int(value) for value in random.integers(1, 9, count)],
    'flat': [bool(value) for value in random.integers(2, size=count)],
    'city': absent(map(str, random.choice(['Bonn', 'Ulm', 'Jena'], count)), 0.3),
    'street': [str(value) for value in random.choice(words, count)],
    'built': absent(map(str, times('1899-01-01T00:00:00', 8 * 10**9)), 0.1),
    'seen': [f'{time}Z' for time in times('2024-02-28T20:00:00', 2 * 10**7)],
  }


@pytest.fixture(scope='module')
def on_table():
  """A predictor for a table, calibrated, and rows."""
  random = np.random.default_rng(5)
  train = {**table(300, random), 'price': list(map(float, random.normal(size=300)))}
  train['street'][:5] = ['rare', 'rarer', 'rarest', 'once', 'unique']
  columns = hydra_jax.Columns.fit(train, 'price')
  x, mean = columns.encode(train), random.normal(size=(4, 300))
  with jax.numpy_dtype_promotion('standard'):
    predictor = hydra_jax.distil(x, (mean, np.full_like(mean, 0.5)), epochs=1.0, network=small)
  predictor = dataclasses.replace(predictor, columns=columns)
  predictor = hydra_jax.calibrate(predictor, table(200, random), random.normal(size=200))
  assert predictor.calibration.label_scale > 1.1
  return predictor, table(700, random, odd=True)


def small(outputs):
  return hydra_jax.mlp(outputs, (10,))


def test_tables_as_onnx(on_table, tmp_path):
  predictor, rows = on_table
  about = hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx', members=True)
  x = exported_columns.rows(predictor.columns, rows)
  assert x.shape == (700, 7) and x.dtype == np.float64
  assert_same(run_onnx(tmp_path / 'a.onnx', x), predictor.predict(rows), predictor)
  written = by_hand(about['columns'], rows)
  np.testing.assert_array_equal(written, x)
  assert about['targets'] == ['price'] and about['calibration']['label_scale'] == predictor.calibration.label_scale


def by_hand(columns: list[dict], rows: dict[str, list]) -> np.ndarray:
  """What a client does that has the metadata only."""

  def number(column, value):
    if value is None:
      return np.nan
    if column['kind'] == 'category':
      return column['words'].index(value) if value in column['words'] else -1
    if column['kind'] == 'date':
      return np.datetime64(value.removesuffix('Z'), 's').astype(float)
    return float(value)

  return np.array([[number(column, value) for value in rows[column['name']]] for column in columns]).T


def test_rows_that_predict_refuses_are_nan(on_table, tmp_path):
  predictor, rows = on_table
  hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  x = exported_columns.rows(predictor.columns, {name: values[:9] for name, values in rows.items()})
  names = [column.name for column in predictor.columns.used]
  wrong = {'rooms': np.nan, 'size': np.inf, 'flat': 0.5, 'city': -1.0, 'street': 9.0, 'seen': 1e300, 'built': -np.inf}
  for row, (name, value) in enumerate(wrong.items()):
    x[row, names.index(name)] = value
  for values in run_onnx(tmp_path / 'a.onnx', x).values():
    assert np.isnan(values[:7]).all() and np.isfinite(values[7:]).all()


def test_a_temperature_is_in_the_file(tmp_path, random):
  predictor = predictor_of(NETWORKS['hydra'](3))
  x = inputs_for(predictor, 300, random)
  predictor = hydra_jax.calibrate(predictor, x, random.integers(3, size=300))
  assert predictor.calibration.label_scale > 1.2
  hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx', members=True)
  assert_same(run_onnx(tmp_path / 'a.onnx', x), predictor.predict(x), predictor)


WITHOUT = """
import sys
class Blocked:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {blocked}:
      raise ImportError('there is no ' + name)
sys.meta_path.insert(0, Blocked())
sys.path = [place for place in sys.path if place not in ('', {root!r})]
import json
import numpy as np
given = np.load('inputs.npz')
for name in given.files:
  {call}
  np.savez(name + '-found.npz', **{{key: np.asarray(value) for key, value in found.items()}})
"""
CALLS = {
  'onnx': """session = onnxruntime.InferenceSession(name + '.onnx')
  found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {'x': given[name]})))
  about = {p: json.loads(v) for p, v in session.get_modelmeta().custom_metadata_map.items()}
  assert about['input']['name'] == 'x' and list(about['outputs']) == list(found)""",
  'stablehlo': """with jax.enable_x64(True):
    found = export.deserialize(open(name + '.stablehlo', 'rb').read()).call(given[name])
  about = json.load(open(name + '.stablehlo.json'))
  assert about['platforms'] == ['cpu', 'cuda', 'tpu'] and set(about['outputs']) == set(found)""",
}
BLOCKED = {'onnx': {'jax', 'jaxlib', 'flax', 'hydra_jax'}, 'stablehlo': {'flax', 'optax', 'hydra_jax', 'onnx'}}


@pytest.mark.slow
@pytest.mark.everywhere
@pytest.mark.parametrize('form', ['onnx', 'stablehlo'])
def test_files_in_a_process_without_what_made_them(form, on_table, tmp_path, random):
  classes = predictor_of(hydra_jax.multi_head(hydra_jax.resnet(4, 8, 4), -2, 3), shape=IMAGE)
  predictors = {'classes': classes, 'table': on_table[0], 'numbers': predictor_of(NETWORKS['hydra'](4), 'regression')}
  rows = {'classes': inputs_for(classes, 5, random), 'table': on_table[1]}
  rows['numbers'] = inputs_for(predictors['numbers'], 5, random)
  for name, predictor in predictors.items():
    hydra_jax.export(predictor, tmp_path / f'{name}.{form}', form, members=True)
  table_x = exported_columns.rows(on_table[0].columns, on_table[1])
  np.savez(tmp_path / 'inputs.npz', **rows | {'table': table_x})
  imports = {'onnx': 'import onnxruntime', 'stablehlo': 'import jax\nfrom jax import export'}[form]
  code = WITHOUT.format(blocked=BLOCKED[form], root=str(ROOT), call=CALLS[form])
  done = subprocess.run(
    [sys.executable, '-c', code.replace('import json', f'import json\n{imports}', 1)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
    env={'PATH': '', 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  for name, predictor in predictors.items():
    with np.load(tmp_path / f'{name}-found.npz') as found:
      assert_same(dict(found), predictor.predict(rows[name]), predictor)


@pytest.mark.slow
def test_bfloat16_is_for_stablehlo(tmp_path, random):
  predictor = predictor_of(hydra_jax.multi_head(hydra_jax.resnet(4, 8, 4, dtype='bfloat16'), -1, 3), shape=IMAGE)
  with pytest.raises(UserError, match='computes in bfloat16, which ONNX Runtime does not'):
    hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  hydra_jax.export(predictor, tmp_path / 'a.stablehlo', 'stablehlo')
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a.stablehlo', 'a.stablehlo.json']


def sorting() -> Stage:
  return Stage(lambda key, x: ((), ()), lambda params, state, x, key, train: (jnp.sort(x, axis=1), state))


def test_a_network_that_has_no_rule_is_refused_by_stage(tmp_path):
  first, *rest = hydra_jax.mlp(4, (10, 10))
  predictor = predictor_of(hydra_jax.multi_head([first, sorting(), *rest], -1, 3))
  with pytest.raises(
    UserError, match=r"primitive 'sort' in network/stage_1 in ONNX: use other operations, or StableHLO"
  ):
    hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx')
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('form', ['onnx', 'stablehlo'])
def test_a_file_that_computes_something_else_is_not_written(form, tmp_path, monkeypatch):
  predictor, path = predictor_of(NETWORKS['kd'](4)), tmp_path / 'a'
  path.write_text('before')
  monkeypatch.setitem(onnx_rules.RULES, 'exp', onnx_rules.RULES['tanh'])
  read = 'hydra_jax.serving.exported_function._classes'
  right = hydra_jax.serving.exported_function._classes
  if form == 'stablehlo':
    monkeypatch.setattr(read, lambda *args: {**right(*args), 'total': 1.0001 * right(*args)['total']})
  with pytest.raises(UserError, match='nothing is written: computed by .*, the file differs from predict by'):
    hydra_jax.export(predictor, path, form)
  assert [each.name for each in tmp_path.iterdir()] == ['a'] and path.read_text() == 'before'


def test_noise_that_stays_on_is_refused(tmp_path):
  network = hydra_jax.sampled(hydra_jax.multi_head(hydra_jax.wide_resnet(4, 10, 1, dropout=0.1), -1, 1), 2)
  predictor = predictor_of(network, shape=(4, 4, 3), spread=1)
  with pytest.raises(UserError, match='no rule for the primitive .* in network/stage_1/PreActivation/Dropout_0'):
    hydra_jax.export(predictor, tmp_path / 'a', 'onnx')


@pytest.mark.parametrize(
  'change, words',
  [
    ({'format': 'onyx'}, "unknown format 'onyx': did you mean 'onnx'"),
    ({'platforms': ('cpu', 'tpus')}, "unknown platform 'tpus': did you mean 'tpu'"),
    ({'platforms': ('tpu',)}, 'this machine is cpu'),
    ({'path': 'folder'}, 'is a folder'),
    ({'path': 'nowhere/a.onnx'}, 'there is no .*nowhere'),
  ],
)
def test_wrong_arguments_are_one_line(change, words, tmp_path):
  (tmp_path / 'folder').mkdir()
  given = {'path': 'a.onnx', 'format': 'onnx', **change}
  with pytest.raises(UserError, match=words):
    hydra_jax.export(predictor_of(NETWORKS['kd'](4)), **given | {'path': tmp_path / given['path']})


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnx', None)
  with pytest.raises(UserError, match=r"pip install 'hydra_jax\[onnx\]'"):
    hydra_jax.export(predictor_of(NETWORKS['kd'](4)), tmp_path / 'a.onnx', 'onnx')


def test_without_onnxruntime_the_file_is_tested_by_onnx(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  with caplog.at_level(logging.INFO, 'hydra_jax.serving.export'):
    hydra_jax.export(predictor_of(NETWORKS['hydra'](4)), tmp_path / 'a.onnx', 'onnx')
  assert f'by onnx.reference {onnx.__version__}' in caplog.text


def test_what_a_file_is_stands_in_it(tmp_path):
  predictor = dataclasses.replace(predictor_of(NETWORKS['hydra'](3)), classes=('grün', 'rot', 'blau'))
  about = hydra_jax.export(predictor, tmp_path / 'a.onnx', 'onnx', members=True)
  model = onnx.load(tmp_path / 'a.onnx')
  assert {each.key: json.loads(each.value) for each in model.metadata_props} == about
  assert about['classes'] == ['grün', 'rot', 'blau'] and about['versions']['jax'] == jax.__version__
  for side, listed in ((model.graph.input, [about['input']]), (model.graph.output, about['outputs'].values())):
    for found, wanted in zip(side, listed, strict=True):
      kind = found.type.tensor_type
      assert [each.dim_param or each.dim_value for each in kind.shape.dim] == wanted['shape']
      assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name == wanted['dtype']
  assert about['outputs']['members']['shape'] == ['batch', 5, 3] and about['outputs']['total']['unit'] == 'nats'


@pytest.mark.slow
def test_the_command(tiny_run, tmp_path, capsys):
  run, (x, _) = tiny_run[0], toy.digits('test')
  predictor = hydra_jax.load(run, 'kd')
  for form, more in (('onnx', ['--members']), ('stablehlo', ['--platforms=cpu,cuda'])):
    output = tmp_path / f'a.{form}'
    given = ['export', str(run), f'--format={form}', f'--output={output}', '--method=kd', *more]
    assert cli.main(given) == 0
    assert f'{output}: ' in capsys.readouterr().out.replace('\n', '')
  assert_same(run_onnx(tmp_path / 'a.onnx', x[:40]), predictor.predict(x[:40]), predictor)
  assert json.loads((tmp_path / 'a.stablehlo.json').read_text())['platforms'] == ['cpu', 'cuda']
  assert cli.main(['export', str(run), '--format=onnx', f'--output={tmp_path}']) == 2
  assert capsys.readouterr().err == f'hydra-jax: {tmp_path} is a folder: give the name of a file\n'
  assert cli.main(['export', str(run), '--format=onnx', f'--output={tmp_path / "b.onnx"}', '--platforms=cpu']) == 2
  assert '--platforms is for stablehlo' in capsys.readouterr().err and not (tmp_path / 'b.onnx').exists()


PAGE = (ROOT / 'docs' / 'serving.md').read_text().partition('## Export')[2].partition('\n## ')[0]


@pytest.mark.slow
def test_the_page_about_exports(tiny_run, tmp_path, monkeypatch):
  """Its code runs, and the configuration of Triton has the names, types and shapes of the file."""
  monkeypatch.chdir(tmp_path)
  names = {}
  for block in re.findall(r'```python\n(.*?)```', PAGE, flags=re.S):
    exec(block.replace("'runs/digits'", repr(str(tiny_run[0]))), names)
  assert names['mean'].shape == (3, 10) and names['epistemic'].shape == (3,) and len(names['classes']) in (0, 10)
  np.testing.assert_allclose(names['found']['mean'], names['mean'], atol=1e-6)
  about, types = names['about'], {'UINT8': 'uint8', 'FP32': 'float32', 'FP64': 'float64'}
  tensors = re.findall(r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([\d, ]+) \]( reshape { shape: \[ \] })?', PAGE)
  given = {
    name: (types[kind], [] if scalar else [*map(int, sizes.split(','))]) for name, kind, sizes, scalar in tensors
  }
  wanted = {'x': about['input'], **about['outputs']}
  assert given == {name: (each['dtype'], each['shape'][1:]) for name, each in wanted.items()}
