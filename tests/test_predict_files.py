"""Predictions for files: rows keep their order and names, parts do not show, and an error leaves nothing behind."""

from dataclasses import replace
import gzip
import http.client
import io
import json
from pathlib import Path
import re
import subprocess

from conftest import ROOT, command, serving
import numpy as np
import pandas as pd
import pytest
from untrained import CLASSES, predictor

import hydra_jax
from hydra_jax import Columns, UserError, cli, store
from hydra_jax.data import tables
from hydra_jax.serving import row_files

ROWS = 300


@pytest.fixture(scope='module')
def houses():
  """A table with names of rows that are no numbers, a category, missing values, and a target."""
  random = np.random.default_rng(0)
  return pd.DataFrame(
    {
      'id': [f'{i:05d}' for i in random.permutation(ROWS)],
      'size': np.where(random.random(ROWS) < 0.1, np.nan, random.normal(size=ROWS)),
      'note': ['NA, "quoted"', 'plain', '', 'NA'] * (ROWS // 4),
      'city': random.choice(['Bonn', 'Ulm', 'Köln'], ROWS),
      'price': random.normal(size=ROWS),
    }
  )


@pytest.fixture(scope='module')
def columns(houses):
  return Columns.fit(houses[['size', 'city', 'price']], target='price')


@pytest.fixture(scope='module')
def regressor(houses, columns):
  made = predictor(task='regression', outputs=1, shape=(len(columns.features),), members=3)
  return hydra_jax.calibrate(replace(made, columns=columns), houses, houses['price'])


@pytest.fixture(scope='module')
def classifier(houses, columns):
  made = predictor(shape=(len(columns.features),), classes=CLASSES, members=3)
  return hydra_jax.calibrate(replace(made, columns=columns), houses, np.array(CLASSES)[np.arange(ROWS) % 3])


def written(table, folder, suffix) -> Path:
  path = folder / f'rows{suffix}'
  if suffix == '.parquet':
    table.to_parquet(path)
  elif suffix == '.csv.gz':
    path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
  else:
    table.to_csv(path, index=False)
  return path


def read(path: Path):
  """By another library."""
  if path.suffix == '.npz':
    return dict(np.load(path))
  return pd.read_parquet(path) if path.suffix == '.parquet' else pd.read_csv(path, dtype={'id': str, 'note': str})


@pytest.mark.parametrize('suffix', ['.csv', '.csv.gz', '.parquet'])
@pytest.mark.parametrize('output', ['.csv', '.parquet', '.npz'])
def test_a_table_of_a_regression(suffix, output, houses, regressor, tmp_path):
  source, target = written(houses, tmp_path, suffix), tmp_path / f'out{output}'
  assert hydra_jax.predict_file(regressor, source, target, coverage=0.9) == ROWS
  found, wanted = read(target), regressor.predict(houses)
  assert list(found) == [
    *('id', 'note', 'price', 'prediction', 'standard_deviation'),
    *('uncertainty_total', 'uncertainty_aleatoric', 'uncertainty_epistemic', 'lower', 'upper'),
  ]
  assert list(found['id']) == list(houses['id'])
  close = dict(rtol=1e-5, atol=1e-6)
  column = lambda name: np.asarray(found[name]).reshape(ROWS)
  np.testing.assert_allclose(column('prediction'), wanted.mean[:, 0], **close)
  np.testing.assert_allclose(column('standard_deviation'), np.sqrt(wanted.total[:, 0]), **close)
  for name in ('total', 'aleatoric', 'epistemic'):
    np.testing.assert_allclose(column(f'uncertainty_{name}'), getattr(wanted, name)[:, 0], **close)
  interval = regressor.predict_interval(houses, 0.9)[:, 0]
  np.testing.assert_allclose(np.stack([column('lower'), column('upper')], axis=1), interval, **close)


def test_what_is_carried_over_is_as_it_was_written(houses, regressor, tmp_path):
  """Leading zeros, and texts that stand for missing values elsewhere."""
  target = tmp_path / 'out.csv'
  hydra_jax.predict_file(regressor, written(houses, tmp_path, '.csv'), target)
  found = pd.read_csv(target, dtype=str, keep_default_na=False)
  before = pd.read_csv(tmp_path / 'rows.csv', dtype=str, keep_default_na=False)
  for name in ('id', 'note', 'price'):
    assert list(found[name]) == list(before[name])


def test_a_table_of_a_classification(houses, classifier, tmp_path):
  source, target = written(houses, tmp_path, '.csv'), tmp_path / 'out.parquet'
  hydra_jax.predict_file(classifier, source, target, coverage=0.8, members=True)
  found, wanted = read(target), classifier.predict(houses)
  assert list(found['prediction']) == [CLASSES[i] for i in wanted.mean.argmax(axis=1)]
  sets = classifier.predict_set(houses, 0.8)
  for i, name in enumerate(CLASSES):
    np.testing.assert_allclose(found[f'probability_{name}'], wanted.mean[:, i], rtol=1e-5)
    np.testing.assert_array_equal(found[f'in_set_{name}'], sets[:, i])
    for m in range(3):
      np.testing.assert_allclose(found[f'member_{m}_{name}'], wanted.members[m, :, i], rtol=1e-5)


def test_members_of_a_regression(houses, regressor, tmp_path):
  source = written(houses, tmp_path, '.csv')
  hydra_jax.predict_file(regressor, source, tmp_path / 'out.csv', members=True)
  found, wanted = read(tmp_path / 'out.csv'), regressor.predict(houses)
  for m in range(3):
    np.testing.assert_allclose(found[f'member_{m}'], wanted.members[m, :, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[f'member_{m}_variance'], wanted.member_variances[m, :, 0], rtol=1e-5)


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.npz'])
@pytest.mark.parametrize('output', ['.csv', '.parquet', '.npz'])
def test_parts_of_a_file_do_not_show(suffix, output, houses, classifier, columns, tmp_path, monkeypatch):
  """Texts that are longer in a later part included."""
  table = houses.assign(note=[f'{"x" * (i // 20)}' for i in range(ROWS)])
  if suffix == '.npz':
    source = tmp_path / 'rows.npz'
    np.savez_compressed(source, x=columns.encode(table), id=table['id'].to_numpy(str), note=table['note'].to_numpy(str))
  else:
    source = written(table, tmp_path, suffix)
  hydra_jax.predict_file(classifier, source, tmp_path / f'one{output}')
  monkeypatch.setattr(tables, 'BYTES', 4000)
  monkeypatch.setattr(tables, 'ROWS', 64)
  monkeypatch.setattr(row_files, 'ROWS', 70)
  count, write = [], row_files.RowFile
  monkeypatch.setattr(row_files, 'RowFile', lambda parts, *more: write((count.append(p) or p for p in parts), *more))
  hydra_jax.predict_file(classifier, source, tmp_path / f'many{output}')
  assert len(count) > 3
  one, many = read(tmp_path / f'one{output}'), read(tmp_path / f'many{output}')
  assert list(one) == list(many) and list(many['id']) == list(houses['id'])
  for name in one:
    a, b = np.asarray(one[name]), np.asarray(many[name])
    if a.dtype.kind == 'f':
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    else:  # a missing text is NaN
      np.testing.assert_array_equal(a.astype(str), b.astype(str))


def test_arrays(tmp_path, random):
  made, x = predictor(classes=CLASSES, members=3), random.normal(size=(40, 5))
  ids, pixels = np.array([f'row {i}' for i in range(40)]), random.normal(size=(40, 2, 2))
  np.savez(tmp_path / 'in.npz', x=x, id=ids, pixels=pixels, about=np.arange(3))
  hydra_jax.predict_file(made, tmp_path / 'in.npz', tmp_path / 'out.npz', members=True)
  found, wanted = np.load(tmp_path / 'out.npz'), made.predict(x)
  np.testing.assert_array_equal(found['id'], ids)
  np.testing.assert_array_equal(found['pixels'], pixels)
  assert list(found['classes']) == list(CLASSES) and 'about' not in found and found['probability'].dtype == np.float32
  np.testing.assert_allclose(found['probability'], wanted.mean, rtol=1e-5)
  np.testing.assert_allclose(found['member'], np.swapaxes(wanted.members, 0, 1), rtol=1e-5)
  hydra_jax.predict_file(made, tmp_path / 'in.npz', tmp_path / 'out.csv')
  assert 'pixels' not in read(tmp_path / 'out.csv') and list(read(tmp_path / 'out.csv')['id']) == list(ids)


def test_numbered_classes_and_several_targets(tmp_path, random):
  x = random.normal(size=(9, 5))
  np.savez(tmp_path / 'in.npz', x=x)
  hydra_jax.predict_file(predictor(), tmp_path / 'in.npz', tmp_path / 'out.csv')
  found = read(tmp_path / 'out.csv')
  np.testing.assert_array_equal(found['prediction'], predictor().predict(x).mean.argmax(axis=1))
  assert [name for name in found if 'probability' in name] == ['probability_0', 'probability_1', 'probability_2']
  made = predictor(task='regression', outputs=2)
  hydra_jax.predict_file(made, tmp_path / 'in.npz', tmp_path / 'out.csv')
  np.testing.assert_allclose(
    read(tmp_path / 'out.csv')[['prediction_0', 'prediction_1']], made.predict(x).mean, rtol=1e-5
  )


def test_an_interval_without_calibration_promises_nothing(tmp_path, random, caplog):
  made, x = predictor(task='regression', outputs=1), random.normal(size=(9, 5))
  np.savez(tmp_path / 'in.npz', x=x)
  hydra_jax.predict_file(made, tmp_path / 'in.npz', tmp_path / 'out.npz', coverage=0.5)
  assert 'promise no coverage' in caplog.text
  found = np.load(tmp_path / 'out.npz')
  interval = made.predict_interval(x, 0.5)
  np.testing.assert_allclose(np.stack([found['lower'], found['upper']], axis=-1), interval, rtol=1e-5, atol=1e-6)


def npz(**arrays):
  def write(folder):
    np.savez(folder / 'bad.npz', **arrays)
    return folder / 'bad.npz'

  return write


def text(content, name='bad.csv'):
  def write(folder):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name

  return write


def cut(folder):
  content = npz(x=np.ones((999, 5)))(folder).read_bytes()
  (folder / 'bad.npz').write_bytes(content[:9000] + content[9400:])
  return folder / 'bad.npz'


HEAD = 'id,size,city\n'
GOOD = HEAD + '1,2,Bonn\n'
BAD = {
  'no file': (lambda folder: folder / 'none.csv', 'there is no file'),
  'a folder': (lambda folder: folder, 'is no file of rows'),
  'another format': (text(GOOD, 'bad.xlsx'), r'must end in .csv, .parquet, .pq, .npz'),
  'empty': (text(''), 'is empty'),
  'no rows': (text(HEAD), 'no rows'),
  'no names': (text('1,2,Bonn\n3,4,Ulm\n'), 'first row must hold the names'),
  'no text': (text(b'id,size,city\n\x00\x01'), 'is no text file'),
  'other encoding': (text(f'{HEAD}1,2,Köln\n'.encode('latin-1')), r'is not utf-8 .byte 0xf6 in line 2.'),
  'a column missing': (text('id,city\n1,Bonn\n'), "the table has no column 'size'"),
  'a column renamed': (text('id,Size,city\n1,2,Bonn\n'), "is it 'Size'"),
  'a column of another type': (text(HEAD + '1,big,Bonn\n'), "holds 'big' in row 0, which is not a number"),
  'a new category': (text(HEAD + '1,2,Rom\n'), 'Rom'),
  'a missing category': (text(HEAD + '1,2,\n'), "'city' is missing in row 0"),
  'a short row': (text(HEAD + '1,2,Bonn\n1,2\n'), 'Expected 3 columns, got 2'),
  'a name of a prediction': (text('prediction,size,city\n1,2,Bonn\n'), "has 'prediction', which is the name of"),
  'no parquet': (text(b'PAR1', 'bad.parquet'), 'cannot read'),
  'no zip': (text(b'PK', 'bad.npz'), 'cannot read'),
  'no x': (npz(inputs=np.ones((3, 4))), "has no array 'x', and has inputs"),
  'no rows of x': (npz(x=np.ones((0, 4))), 'no rows'),
  'a number as x': (npz(x=np.ones(())), 'no rows'),
  'other features': (npz(x=np.ones((3, 9))), 'inputs of shape'),
  'NaN': (npz(x=np.full((3, 5), np.nan)), 'NaN'),
  'objects': (npz(x=np.array([{}, {}])), 'never unpickled'),
  'columns first': (npz(x=np.asfortranarray(np.ones((3, 5)))), 'column by column'),
  'cut': (cut, 'damaged|cannot read|no array'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_one_line_and_leaves_nothing_behind(name, classifier, tmp_path):
  write, words = BAD[name]
  source, output = write(tmp_path), tmp_path / 'out.csv'
  output.write_text('mine')
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match=words) as e:
    hydra_jax.predict_file(classifier, source, output)
  assert str(e.value).isprintable() and str(source) in str(e.value)
  assert sorted(tmp_path.iterdir()) == before and output.read_text() == 'mine'


def test_a_bad_row_far_down_is_counted_in_the_file(houses, classifier, tmp_path, monkeypatch):
  monkeypatch.setattr(tables, 'BYTES', 4000)
  table = houses.astype({'size': object})
  table.loc[250, 'size'] = 'big'
  with pytest.raises(UserError) as e:
    hydra_jax.predict_file(classifier, written(table, tmp_path, '.csv'), tmp_path / 'out.csv')
  row, start = map(
    int, re.search(r"holds 'big' in row (\d+).*counted from row (\d+) of the file", str(e.value)).groups()
  )
  assert row + start == 250 and start > 0
  assert [file.name for file in tmp_path.iterdir()] == ['rows.csv']


OUTPUTS = {
  'no folder': ('none/out.csv', 'its folder does not exist'),
  'a folder': ('.', 'is no file of rows'),
  'another format': ('out.txt', 'must end in'),
  'compressed': ('out.csv.gz', 'would be compressed'),
  'the same': ('rows.csv', 'is the file that is read'),
}


@pytest.mark.parametrize('name', OUTPUTS)
def test_outputs_that_cannot_be(name, houses, classifier, tmp_path):
  output, words = OUTPUTS[name]
  source = written(houses, tmp_path, '.csv')
  with pytest.raises(UserError, match=words):
    hydra_jax.predict_file(classifier, source, tmp_path / output)
  assert list(tmp_path.iterdir()) == [source]


def test_what_a_model_cannot_do(houses, regressor, tmp_path, random):
  source = written(houses, tmp_path, '.csv')
  with pytest.raises(UserError, match='was trained on arrays, and .* is a table'):
    hydra_jax.predict_file(predictor(), source, tmp_path / 'out.csv')
  with pytest.raises(UserError, match='has no members'):
    hydra_jax.predict_file(predictor('endd'), source, tmp_path / 'out.csv', members=True)
  with pytest.raises(UserError, match='needs .* held-out examples'):
    hydra_jax.predict_file(regressor, source, tmp_path / 'out.csv', coverage=0.9999)
  np.savez(tmp_path / 'in.npz', x=random.normal(size=(3, 5)))
  with pytest.raises(UserError, match='is not calibrated'):
    hydra_jax.predict_file(predictor(), tmp_path / 'in.npz', tmp_path / 'out.csv', coverage=0.9)


def test_on_the_command_line(houses, regressor, tmp_path, capsys):
  hydra_jax.save(regressor, tmp_path / 'model')
  source = tmp_path / 'rows.csv'
  houses.to_csv(source, index=False, sep=';', decimal=',', encoding='latin-1')
  arguments = ['predict', str(tmp_path / 'model'), str(source), f'--output={tmp_path / "out.csv"}', '--coverage=0.9']
  assert cli.main([*arguments, '--decimal=,', '--encoding=latin-1']) == 0
  said = capsys.readouterr().out
  assert f'{ROWS} rows are in {tmp_path / "out.csv"}' in said and 'predict rows.csv: ' in said
  np.testing.assert_allclose(read(tmp_path / 'out.csv')['prediction'], regressor.predict(houses).mean[:, 0], rtol=1e-4)
  for wrong, words in (
    (['--decimal=,'], 'is not utf-8'),
    (['--batch=3'], 'unexpected argument'),
    (['--method=kd'], "'kd'"),
  ):
    assert cli.main([*arguments, *wrong]) == 2
    error = capsys.readouterr().err
    assert error.startswith('hydra-jax: ') and error.count('\n') == 1 and words in error


@pytest.mark.slow
def test_a_run_on_the_command_line(tiny_run, tmp_path):
  x = np.random.default_rng(0).integers(0, 17, (30, 8, 8, 1), dtype=np.uint8)
  np.savez(tmp_path / 'in.npz', x=x)
  for method in ('kd', 'ensemble'):
    output = tmp_path / f'{method}.csv'
    done = subprocess.run(
      command('predict', tiny_run[0], tmp_path / 'in.npz', '--output', output, '--method', method),
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = hydra_jax.load(tiny_run[0], method).predict(x).mean
    np.testing.assert_allclose(read(output).filter(like='probability'), wanted, rtol=1e-3, atol=1e-6)


def test_half_written_files_are_removed_when_a_write_fails(classifier, houses, tmp_path, monkeypatch):
  """As when the disk is full."""
  source = written(houses, tmp_path, '.csv')

  def fail(*_):
    raise OSError(28, 'No space left on device')

  for name, where in (('out.npz', '_join'), ('out.csv', '_plain')):
    monkeypatch.setattr(row_files, where, fail)
    with pytest.raises(OSError, match='No space'):
      hydra_jax.predict_file(classifier, source, tmp_path / name)
  assert list(tmp_path.iterdir()) == [source] and store.NEW not in str(source)


@pytest.mark.slow
def test_the_example_of_a_server(classifier, houses, tmp_path, port):
  """In another process, asked by a client of the standard library; rows as lists and as columns."""
  hydra_jax.save(classifier, tmp_path / 'model')

  def ask(content):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.request('POST', '/', json.dumps(content))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())

  with serving([ROOT / 'examples' / 'serve.py', tmp_path / 'model', port], port):
    some = houses[['size', 'city']].iloc[:7].fillna(0.5)
    wanted = classifier.predict(some)
    for rows in (some.to_dict('list'), classifier.columns.encode(some).tolist()):
      status, found = ask({'rows': rows})
      assert status == 200 and found['classes'] == list(CLASSES) and 'members' not in found
      for name in ('mean', 'total', 'aleatoric', 'epistemic'):
        np.testing.assert_allclose(found[name], getattr(wanted, name), rtol=1e-4, atol=1e-6)
    for bad in (
      {'rows': [[1.0]]},
      {'rows': [[1.0, 2.0], [3.0]]},
      {'x': 3},
      {'rows': {'size': [1.0]}},
      [],
      {'rows': 'x'},
    ):
      status, found = ask(bad)
      assert status == 400 and found['error'], bad
    assert ask({'rows': some.to_dict('list')})[0] == 200


def test_compressed_files_are_read_to_their_end(tmp_path):
  """And their progress is that of the compressed bytes."""
  content = 'a,b\n' + ''.join(f'{i},x\n' for i in range(50_000))
  (tmp_path / 'in.csv.gz').write_bytes(gzip.compress(content.encode()))
  file = tables.read_parts(str(tmp_path / 'in.csv.gz'), ('a',))
  parts = list(file.of)
  assert sum(part.table.num_rows for part in parts) == 50_000 and parts[-1].done == file.total
  assert io.StringIO(content).readline() == 'a,b\n'
