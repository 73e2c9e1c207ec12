"""CSV files as people have them: against Python's own reader, and what is refused without a guess."""

import csv
import gzip
import io

from hypothesis import given, settings, strategies as st
import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from hydra_jax import Columns, UserError, read_table
from hydra_jax.data import tables

HEAD = 'size,city,price\n'
ROWS = '50.5,Bonn,100\n80,Ulm,210\n65.25,Bonn,150\n90,Ulm,170\n'


def saved(folder, content, name='data.csv'):
  (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(folder / name)


def rows_of(table):
  return [list(row.values()) for row in table.to_pylist()]


TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0\r', exclude_categories=('Cs',)), max_size=8)


@settings(max_examples=80, deadline=None)
@given(
  rows=st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1, max_size=6),
  delimiter=st.sampled_from(tables.DELIMITERS),
)
def test_values_are_those_of_pythons_reader(rows, delimiter, tmp_path_factory):
  """Quotes, delimiters, line breaks and empty values in values."""
  out = io.StringIO(newline='')
  csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator='\n').writerows([['a', 'b', 'c'], *rows])
  path = saved(tmp_path_factory.mktemp('csv'), out.getvalue())
  clean = lambda value: None if value.strip() in ('', *tables.MISSING) else value.strip()
  assert rows_of(read_table(path, delimiter=delimiter)) == [list(map(clean, row)) for row in rows]


FORMS = {
  'plain': (HEAD + ROWS, {}),
  'byte order mark': ('\ufeff' + HEAD + ROWS, {}),
  'Windows lines': ((HEAD + ROWS).replace('\n', '\r\n'), {}),
  'no last line break': ((HEAD + ROWS).rstrip(), {}),
  'empty lines': ('\n' + HEAD + '\n' + ROWS + '\n\n', {}),
  'spaces': (HEAD.replace(',', ' , ') + ROWS.replace(',', ' , '), {}),
  'quotes': (
    '"size","city","price"\n' + '"50.5","Bonn","100"\n"80","Ulm","210"\n"65.25","Bonn","150"\n"90","Ulm","170"\n',
    {},
  ),
  'semicolons': ((HEAD + ROWS).replace(',', ';'), {}),
  'tabs': ((HEAD + ROWS).replace(',', '\t'), {}),
  'bars': ((HEAD + ROWS).replace(',', '|'), {}),
  'a tab that is named': ((HEAD + ROWS).replace(',', '\t'), dict(delimiter='tab')),
  'spaces between': ((HEAD + ROWS).replace(',', ' '), dict(delimiter='space')),
  'stars': ((HEAD + ROWS).replace(',', '*'), dict(delimiter='*')),
  'decimal commas': ((HEAD + ROWS).replace(',', ';').replace('.', ','), dict(decimal=',')),
  'Latin 1': ((HEAD + ROWS).encode('latin-1'), dict(encoding='latin-1')),
  'UTF-16': ((HEAD + ROWS).encode('utf-16'), {}),
}


@pytest.mark.parametrize('name', FORMS)
def test_all_forms_are_the_same_table(tmp_path, name):
  content, arguments = FORMS[name]
  table = read_table(saved(tmp_path, content), **arguments)
  assert table.column_names == ['size', 'city', 'price']
  columns = Columns.fit(table, target='price')
  np.testing.assert_array_equal(columns.encode(table), [[50.5, 1, 0], [80, 0, 1], [65.25, 1, 0], [90, 0, 1]])
  assert columns.labels(table).tolist() == [100, 210, 150, 170]


def test_compressed_files(tmp_path):
  path = saved(tmp_path, gzip.compress((HEAD + ROWS).encode()), 'data.csv.gz')
  assert read_table(path).num_rows == 4


def test_umlauts_in_all_encodings(tmp_path):
  text = 'Straße;Größe\nÄußere;1\nÖde;2\n'
  for encoding in ('utf-8', 'utf-8-sig', 'latin-1', 'cp1252', 'utf-16', 'utf-16-le'):
    given = {} if encoding in ('utf-8', 'utf-8-sig', 'utf-16') else dict(encoding=encoding)
    table = read_table(saved(tmp_path, text.encode(encoding)), **given)
    assert table.column_names == ['Straße', 'Größe'] and table['Straße'].to_pylist() == ['Äußere', 'Öde']


def test_missing_values_are_told(tmp_path, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  rows = [['a', 'b'], ['1', 'x'], ['', '?'], [' NA ', 'x'], ['nan', 'y'], ['2', '?']]
  table = read_table(saved(tmp_path, '\n'.join(map(','.join, rows)) + '\n'))
  assert rows_of(table) == [['1', 'x'], [None, None], [None, 'x'], [None, 'y'], ['2', None]]
  assert caplog.messages == [
    f"{tmp_path}/data.csv: these are missing values: '?' (2 times), 'NA' (1 times), 'nan' (1 times)"
  ]


def test_columns_without_a_name_are_left_out(tmp_path, caplog):
  """As `DataFrame.to_csv` writes the index."""
  caplog.set_level('INFO', 'hydra_jax')
  frame = pd.DataFrame({'a': [1.5, 2.5], 'b': ['x', 'y']})
  frame.to_csv(tmp_path / 'data.csv')
  assert read_table(tmp_path / 'data.csv').column_names == ['a', 'b']
  assert 'columns without a name are left out: 1' in caplog.text
  frame.set_axis([5, 3]).to_parquet(tmp_path / 'data.parquet')
  assert read_table(tmp_path / 'data.parquet').column_names == ['a', 'b']


def test_what_is_taken_of_the_form_is_said(tmp_path, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  read_table(saved(tmp_path, (HEAD + ROWS).replace(',', ';')))
  assert caplog.messages == [f"{tmp_path}/data.csv: values are taken to be divided by ';'"]


REFUSED = {
  'empty': ('', {}, 'data.csv is empty'),
  'only spaces': (' \n\n', {}, 'data.csv is empty'),
  'no rows': (HEAD, {}, 'has names of columns and no rows'),
  'no header': (ROWS, {}, "first row must hold the names of the columns, and holds '50.5', 'Bonn', '100'"),
  'numbers alone': ('1,2\n3,4\n', {}, "first row must hold the names of the columns, and holds '1', '2'"),
  'decimal commas alone': ('1,5;2,5\n3,5;4,5\n', {}, "holds '1,5', '2,5'|divide all rows alike"),
  'name twice': ('a,b,a\n1,2,3\n', {}, "2 columns 'a'"),
  'name twice but for spaces': ('a,b, a\n1,2,3\n', {}, "2 columns 'a'"),
  'short row': (HEAD + '1,2,3\n4,5\n6,7,8\n', {}, r'Row #3: Expected 3 columns, got 2'),
  'long row': (HEAD + '1,2,3\n4,5,6,7\n', {}, r'Row #3: Expected 3 columns, got 4'),
  'comma in a value': (HEAD + '1,Bonn, Nord,3\n', {}, "Expected 3 columns, got 4: .*with a ',' in them in quotes"),
  'two delimiters': ('a,b;c,d\n1,2;3,4\n', {}, "',' and ';' divide all rows alike: add delimiter="),
  'not UTF-8': ('a,b\nx,1\nä,2\n'.encode('latin-1'), {}, r'is not utf-8 .byte 0xe4 in line 3.: add encoding=latin-1'),
  'unknown encoding': (HEAD + ROWS, dict(encoding='latin-111'), "encoding='latin-111' is not known"),
  'binary': (b'a,b\0\n1,2\n', {}, 'is no text file'),
  'parquet in a csv': (None, {}, 'is no text file|is not utf-8'),
  'long delimiter': (HEAD + ROWS, dict(delimiter='::'), "delimiter='::'"),
  'decimal delimiter': (HEAD + ROWS, dict(delimiter=',', decimal=','), "delimiter=',' and decimal=','"),
  'odd decimal': (HEAD + ROWS, dict(decimal='x'), "decimal='x'"),
  'points and commas': ('a;b\n1,5;2\n1.234,5;3\n', dict(decimal=','), "'a' holds '1.234,5' in row 1, and decimal=,"),
  'points': ('a;b\n1.234;2\n1.235;3\n', dict(decimal=','), "'a' holds '1.234' in row 0, and decimal=, is set"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_files_that_need_a_guess_are_refused_in_one_line(tmp_path, name):
  content, arguments, words = REFUSED[name]
  if content is None:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({'a': [1]}), out)
    content = out.getvalue()
  with pytest.raises(UserError, match=words) as error:
    read_table(saved(tmp_path, content), **arguments)
  assert '\n' not in str(error.value) and 'data.csv' in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
  for path, words in (
    (tmp_path, 'is a folder'),
    (tmp_path / 'nowhere.csv', 'there is no file'),
    (saved(tmp_path, 'PAR1', 'x.parquet'), 'cannot read .*x.parquet'),
    (saved(tmp_path, b'\x1f\x8b\x08 no gzip', 'x.csv.gz'), 'cannot read .*x.csv.gz'),
  ):
    with pytest.raises(UserError, match=words) as error:
      read_table(path)
    assert '\n' not in str(error.value)


def test_the_reader_does_not_depend_on_where_the_sample_ends(tmp_path, monkeypatch):
  content = HEAD + ''.join(f'{i}.5,"a ""b"",\n c",{i}\n' for i in range(300))
  whole = read_table(saved(tmp_path, content))
  assert whole.num_rows == 300 and whole['city'][7].as_py() == 'a "b",\n c'
  for size in range(40, 90, 7):
    monkeypatch.setattr(tables, 'SAMPLE_BYTES', size)
    assert read_table(saved(tmp_path, content)).equals(whole)
