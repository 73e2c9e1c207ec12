"""Tables from a name in a config to a prediction in service."""

import json
import re
import sys

from conftest import ROOT, hydra_jax as command
import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

import hydra_jax
from hydra_jax import Columns, Predictor, UserError, cli, data as datasets, mlp, multi_head, store
from hydra_jax.data import Scaling, address
from hydra_jax.evaluation.evaluate import Model
from hydra_jax.experiment import artifacts
from hydra_jax.experiment.config import default_config
from hydra_jax.maths.tasks import TASKS


def load(name, validation=0.0, **changes):
  config = default_config().data
  for key, value in {'name': name, **changes}.items():
    config[key] = value
  return datasets.load(config, '', 0, validation)


def about(name, **changes):
  config = default_config().data
  for key, value in {'name': name, **changes}.items():
    config[key] = value
  return datasets.about(config)


def frame(read, names=False):
  """A set of scikit-learn as a DataFrame; with names in the place of classes, if asked for."""
  found = read(as_frame=True)
  table = found.frame.rename(columns=lambda name: name.replace(' ', '_'))
  return table.assign(target=found.target_names[table['target']]) if names else table


@pytest.mark.parametrize('read', [load_iris, load_wine, load_breast_cancer])
@pytest.mark.parametrize('form', ['csv', 'parquet'])
def test_sets_of_scikit_learn(tmp_path, read, form):
  table = frame(read, names=True)
  path = tmp_path / f'data.{form}'
  table.to_csv(path, index=False) if form == 'csv' else table.to_parquet(path)
  found = load(f'{form}:{path}?target=target')
  assert found.task == 'classification' and found.classes == tuple(sorted(table['target'].unique()))
  test = found.evaluations['test'].load()
  x, y = np.concatenate([found.train.x, test.x]), np.concatenate([found.train.y, test.y])
  expected = np.c_[table.drop(columns='target').to_numpy(float), np.unique(table['target'], return_inverse=True)[1]]
  order = lambda rows: rows[np.lexsort(rows.T)]
  np.testing.assert_array_equal(order(np.c_[x, y]), order(expected))
  assert x.dtype == np.float64 and abs(len(test.x) - 0.2 * len(table)) < 2
  train = expected[:, :-1][np.isin(expected.tolist(), np.c_[found.train.x, found.train.y].tolist()).all(axis=1)]
  assert len(train) >= len(found.train.x)  # rows that are alike are in one part
  np.testing.assert_allclose(found.scaling.x_shift, found.train.x.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(found.scaling.x_scale, found.train.x.std(axis=0), rtol=1e-9)
  assert found.columns.features == tuple(table.columns[:-1])
  assert about(f'{form}:{path}?target=target') == datasets.About('classification', x.shape[1:], len(found.classes))


def test_quantities_and_several_targets(tmp_path):
  table = frame(load_diabetes)
  table['more'] = table['target'] / 2 + table['age']
  table.to_csv(tmp_path / 'data.csv', index=False)
  name = f'csv:{tmp_path}/data.csv?target=target,more'
  found = load(name, task='regression')
  test = found.evaluations['test'].load()
  assert found.task == 'regression' and found.outputs == 2 and found.train.y.shape[1] == test.y.shape[1] == 2
  assert about(name, task='regression') == datasets.About('regression', (10,), 2)
  np.testing.assert_allclose(found.train.y[:, 1], found.train.y[:, 0] / 2 + found.train.x[:, 0], rtol=1e-12)
  assert found.classes == () and found.columns.targets[1].name == 'more'


def test_a_file_of_test_rows_and_an_out_of_domain_part(tmp_path, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  table = frame(load_wine, names=True)
  table[:150:2].to_csv(tmp_path / 'train.csv', index=False)
  table[1::2].to_csv(tmp_path / 'test.csv', index=False)
  found = load(f'csv:{tmp_path}/train.csv?target=target&test={tmp_path}/test.csv')
  assert len(found.train.x) == 75 and len(found.evaluations['test'].load().x) == 89
  assert not any('as well' in line for line in caplog.messages)
  pd.concat([table[1::2], table[:10:2]]).to_csv(tmp_path / 'test.csv', index=False)
  load(f'csv:{tmp_path}/train.csv?target=target&test={tmp_path}/test.csv')
  assert any('5 of 94 rows of test stand in train as well' in line for line in caplog.messages)
  where = np.repeat(['train', 'test', 'other'], [100, 50, 28])
  table.sample(frac=1, random_state=0).assign(where=where).to_parquet(tmp_path / 'data.parquet')
  name = f'parquet:{tmp_path}/data.parquet?target=target&split=where'
  found = load(name, ood=('other', 'noise'), shifts=('jitter:1',))
  sizes = {name: len(evaluation.load().x) for name, evaluation in found.evaluations.items()}
  assert sizes == {'test': 50, 'jitter:1': 50, 'other': 28, 'noise': 1000}
  assert len(load(name, train='other', test='train').train.x) == 28
  with pytest.raises(UserError, match="unknown part of .* 'tset': did you mean 'test'"):
    load(name, test='tset')


def test_a_file_that_changes_is_read_again(tmp_path):
  table = frame(load_iris, names=True)
  name = f'csv:{tmp_path}/data.csv?target=target'
  table.to_csv(tmp_path / 'data.csv', index=False)
  one = load(name)
  assert load(name).fingerprint == one.fingerprint
  table.assign(petal=1.5 * table.pop('petal_width_(cm)')).to_csv(tmp_path / 'data.csv', index=False)
  assert load(name).columns.features[-1] == 'petal'


def test_the_fingerprint_depends_on_values_and_names(tmp_path):
  table = frame(load_iris, names=True)
  table.to_csv(tmp_path / 'a.csv', index=False)
  table.to_csv(tmp_path / 'same.csv', index=False)
  table.rename(columns={'petal_width_(cm)': 'petal'}).to_csv(tmp_path / 'b.csv', index=False)
  a, same, b = (load(f'csv:{tmp_path}/{name}.csv?target=target') for name in ('a', 'same', 'b'))
  np.testing.assert_array_equal(a.train.x, b.train.x)
  assert a.fingerprint == same.fingerprint != b.fingerprint


def test_the_validation_part_keeps_rows_that_are_alike_together(tmp_path):
  table = frame(load_breast_cancer, names=True)
  pd.concat([table] * 3).to_csv(tmp_path / 'data.csv', index=False)
  found = load(f'csv:{tmp_path}/data.csv?target=target', validation=0.1)
  rows = lambda x: set(map(tuple, x.tolist()))
  parts = [found.train.x, found.validation.x, found.evaluations['test'].load().x]
  assert sum(map(len, parts)) == 3 * 569 and len(found.validation.x) % 3 == 0
  assert not any(rows(parts[i]) & rows(parts[j]) for i in range(3) for j in range(i))


def test_rare_flags_are_not_far_from_all_others(tmp_path, random):
  """A category of 2 among 1,000 rows would lie 22 standard deviations from its mean."""
  x = random.normal(size=(1000, 2))
  x[:, 1] = np.arange(1000) < 2
  scaling = datasets.standardise(datasets.Split(x, np.zeros(1000, int)), True)
  np.testing.assert_allclose(scaling.x_scale, [x[:, 0].std(), 0.1])
  x[:, 1] = np.arange(1000) < 200
  np.testing.assert_allclose(datasets.moments(x)[1][1], 0.4)


REFUSED = {
  'no target': ('csv:{}/data.csv', r'say which column to predict, as csv:.*\?target=COLUMN, of a, b, y'),
  'unknown target': ('csv:{}/data.csv?target=z', "data.csv: unknown column 'z'"),
  'no file': ('csv:{}/nowhere.csv?target=y', 'there is no file'),
  'no test file': ('csv:{}/data.csv?target=y&test={}/nowhere.csv', "there is no file '.*nowhere.csv'"),
  'unknown option': ('csv:{}/data.csv?targt=y', "unknown option of .* 'targt': did you mean 'target'"),
  'option of csv': ('parquet:{}/data.parquet?target=y&delimiter=,', "unknown option of .* 'delimiter'"),
  'option twice': ('csv:{}/data.csv?target=y&target=b', 'option target stands twice'),
  'no value': ('csv:{}/data.csv?target=y&drop', 'option drop has no value'),
  'no seed': ('csv:{}/data.csv?target=y&seed=x', "seed takes a whole number, not 'x'"),
  'negative seed': ('csv:{}/data.csv?target=y&seed=-1', 'seed=-1 must be'),
  'no place': ('csv:?target=y', r'names no place: write csv:FILE\?target=COLUMN'),
  'other task': ('csv:{}/data.csv?target=y', "'y'.*holds numbers such as|holds names"),
  'text in a number': ('csv:{}/data.csv?target=y&number=b', "column 'b' holds 'u' in row ., which is not a number"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_names_that_do_not_fit_are_refused_in_one_line(tmp_path, random, name):
  table = pd.DataFrame({'a': random.normal(size=40), 'b': np.tile(list('uv'), 20), 'y': random.normal(size=40)})
  table.to_csv(tmp_path / 'data.csv', index=False)
  table.to_parquet(tmp_path / 'data.parquet')
  text, words = REFUSED[name]
  with pytest.raises(UserError) as error:
    load(text.replace('{}', str(tmp_path)), task='classification' if name == 'other task' else 'auto')
  assert '\n' not in str(error.value)
  if name != 'other task':
    assert re.search(words, str(error.value)), str(error.value)


def test_parts_of_a_name():
  found = address.read('csv:a b.csv?target=p%26q&drop=x,y%2Cz&seed=3&delimiter=;&test=0.3')
  assert (found.form, found.place) == ('csv', 'a b.csv')
  options = found.options
  assert (options.target, options.drop, options.seed) == (('p&q',), ('x', 'y,z'), 3)
  assert (options.delimiter, options.test) == (';', '0.3')
  assert address.read('my_data.py:load') is None and address.read('digits') is None
  named = {
    'csv:x/houses.csv.gz?target=y': 'houses',
    'hf:me/set': 'set',
    'folder:a/pets/': 'pets',
    'tfds:mnist': 'mnist',
  }
  assert {name: address.short_name(name) for name in named} == named


def predictor(table, schema, **more):
  """An untrained network for a table."""
  x = schema.encode(table)
  network = multi_head(mlp(outputs=2, widths=(5,)), cut=-1, heads=3)
  params, state = network.init(jax.random.key(0), np.asarray(x[:2], np.float32))
  scaling = Scaling(x.mean(axis=0), x.std(axis=0), np.zeros(1), np.ones(1))
  read = TASKS['classification'].predictives['members'].read
  return Predictor(Model(network, params, state, scaling, read), 'classification', x.shape[1:], **more), x


def test_a_predictor_takes_tables(random):
  table = pd.DataFrame({'a': random.normal(size=40), 'b': np.tile(list('uv'), 20), 'y': np.tile([0, 1], 20)})
  columns = Columns.fit(table, target='y')
  found, x = predictor(table, columns, columns=columns)
  expected = found.predict(x)
  for form in (table, table[['b', 'a']], {'a': table['a'].to_numpy(), 'b': list(table['b'])}):
    np.testing.assert_array_equal(found.predict(form).members, expected.members)
  with pytest.raises(UserError, match="no column 'b'"):
    found.predict(table[['a']])
  without, _ = predictor(table, columns)
  np.testing.assert_array_equal(without.predict(pd.DataFrame(x)).mean, expected.mean)  # as NumPy reads it
  with pytest.raises(UserError, match='was trained on arrays, and not on a table'):
    without.predict({'a': [1.0]})


def test_without_pyarrow_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(UserError, match=r"tables need pyarrow: pip install 'hydra_jax\[tables\]'"):
    Columns.fit({'a': [1, 2]})


def test_check_knows_the_shape(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys, 'unraisablehook', sys.unraisablehook)
  frame(load_wine, names=True).to_csv(tmp_path / 'wine.csv', index=False)
  config = f'configs/table.py:csv:{tmp_path}/wine.csv?target=target,members=2'
  assert cli.main(['check', f'--config={config}', '--config.students=kd']) == 0
  said = capsys.readouterr().out
  assert '13 columns become 13 inputs' in said and 'ensemble of 2' in said and '13, 50' in said


TRAINING = ('--config.students=hydra', '--config.student.hydra.augment=()', '--config.student.hydra.epochs=6')


@pytest.mark.slow
def test_from_a_csv_file_to_a_prediction(tmp_path, random):
  """A whole run. Its scores are those of the saved network on test rows that are encoded here, without our code."""
  table = frame(load_breast_cancer, names=True)[['mean_radius', 'mean_texture', 'worst_area', 'target']]
  table['side'] = random.choice(['left', 'right'], len(table))
  table.loc[random.random(len(table)) < 0.1, 'mean_texture'] = np.nan
  table.insert(0, 'patient', [f'p{i}' for i in range(len(table))])
  train, test = table[:400], table[400:]
  train.to_csv(tmp_path / 'cancer.csv', index=False)
  test.to_csv(tmp_path / 'later.csv', index=False)
  name = 'csv:cancer.csv?target=target&test=later.csv'
  config = f'--config={ROOT}/configs/table.py:{name},members=3,epochs=10'
  done = command('run', config, *TRAINING, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert 'patient       left out: free text or names of rows' in done.stdout
  run = tmp_path / 'runs' / 'table-cancer'
  fill = train['mean_texture'].mean()
  x = np.c_[
    test['mean_radius'],
    test['mean_texture'].fillna(fill),
    test['mean_texture'].isna(),
    test['worst_area'],
    test['side'] == 'left',
    test['side'] == 'right',
  ].astype(float)
  y = (test['target'] == 'malignant').to_numpy(int)
  rows = [json.loads(line) for line in (run / 'results.jsonl').read_text().splitlines()]
  for method in ('ensemble', 'hydra'):
    found = hydra_jax.load(run, method)
    assert found.classes == ('benign', 'malignant') and found.columns.targets[0].name == 'target'
    prediction = found.predict(test)
    np.testing.assert_array_equal(prediction.members, found.predict(x).members)
    score = {row['metric']: row['value'] for row in rows if (row['split'], row['method']) == ('test', method)}
    mean = prediction.members.mean(axis=0)
    assert score['accuracy'] == pytest.approx((mean.argmax(axis=1) == y).mean()) and score['accuracy'] > 0.85
    assert score['nll'] == pytest.approx(-np.log(mean[np.arange(len(y)), y]).mean(), rel=1e-4)
    entropy = lambda p: -(p * np.log(p)).sum(axis=-1)
    model = entropy(mean) - entropy(prediction.members).mean(axis=0)
    assert score['uncertainty_epistemic'] == pytest.approx(model.mean(), rel=1e-3, abs=1e-6)
  blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'data.md').read_text(), re.S)
  (lines,) = [block for block in blocks if 'runs/table-houses' in block]
  names: dict = {}
  test.drop(columns='target').to_csv(tmp_path / 'new.csv', index=False)
  exec(lines.replace("'runs/table-houses'", repr(str(run))).replace("'new.csv'", repr(f'{tmp_path}/new.csv')), names)
  np.testing.assert_array_equal(names['prediction'].members, found.predict(x).members)
  folder = next((run / 'artifacts').glob('*/columns.json')).parent
  saved = json.loads((folder / 'columns.json').read_text())
  assert Columns.from_json(saved) == artifacts.read_columns(folder)
  assert not re.search(r'\bp\d+', json.dumps(saved))  # no value of a column that is left out
  (folder / 'columns.json').write_text(json.dumps({**saved, 'more': 1}))
  with pytest.raises(store.Damaged, match='columns.json'):
    store.verify(folder)
