"""What columns of tables become: against pandas, scikit-learn and Python's own dates, and what is refused."""

from datetime import datetime, timedelta
import json
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

from hydra_jax import Columns, UserError
from hydra_jax.data import columns as schema

N = 120
CITIES = ['Bonn', 'Köln', 'Ulm']


def frame(random, n=N, **changes):
  """A table with a column of every kind, as a DataFrame."""
  start = pd.Timestamp('2023-03-01')
  found = {
    'size': random.normal(80, 20, n),
    'rooms': random.integers(1, 6, n),
    'cellar': random.random(n) < 0.4,
    'city': random.choice(CITIES, n),
    'sold': start + pd.to_timedelta(random.integers(0, 700 * 24, n), 'h'),
    'price': random.normal(300, 50, n),
  }
  return pd.DataFrame({**found, **changes})


def with_gaps(table, random, *names, share=0.2):
  """The same with missing values; the first row has all."""
  table = table.astype({name: 'object' for name in names if table[name].dtype == bool})
  for name in names:
    table.loc[table.index[1:][random.random(len(table) - 1) < share], name] = None
  return table


def test_numbers_and_categories_are_those_of_scikit_learn(random):
  table = with_gaps(frame(random), random, 'size', 'city')
  rows = np.arange(N) < 90
  columns = Columns.fit(table[rows], target='price', drop=('sold', 'cellar', 'rooms'))
  imputer = SimpleImputer(add_indicator=True).fit(table.loc[rows, ['size']].astype(float))
  # A missing city has zeros, and an input of its own.
  one_hot = OneHotEncoder(categories=[[*CITIES, 'missing']], sparse_output=False).fit([['Bonn']])
  expected = np.c_[
    imputer.transform(table[['size']].astype(float)), one_hot.transform(table[['city']].fillna('missing').to_numpy())
  ]
  assert columns.features == ('size', 'size is missing', *(f'city={c}' for c in CITIES), 'city is missing')
  np.testing.assert_allclose(columns.encode(table), expected, rtol=1e-12)


def test_dates_are_days_and_places_in_year_week_and_day(random):
  table = frame(random)
  columns = Columns.fit(table[['sold', 'price']], target='price')
  assert columns.columns[0].parts == ('time', 'year', 'week', 'day')
  found = columns.encode(table)
  for row, moment in zip(found, table['sold'].dt.to_pydatetime()):
    year = (moment - datetime(moment.year, 1, 1)) / (datetime(moment.year + 1, 1, 1) - datetime(moment.year, 1, 1))
    day = (moment.hour + moment.minute / 60) / 24
    week = ((moment.weekday() - 3) % 7 + day) / 7  # from Thursday
    angles = [2 * math.pi * share for share in (year, week, day)]
    expected = [(moment - datetime(1970, 1, 1)) / timedelta(days=1)]
    expected += [f(angle) for angle in angles for f in (math.sin, math.cos)]
    np.testing.assert_allclose(row, expected, atol=1e-9)


@pytest.mark.parametrize(
  'days, hours, kind, parts',
  [
    (700, 24, 'date', ('time', 'year', 'week', 'day')),
    (700, 1, 'date', ('time', 'year', 'week')),
    (30, 1, 'date', ('time', 'week')),
    (3, 1, 'date', ('time',)),
    (700, 24, 'cycle', ('year', 'week', 'day')),
  ],
)
def test_a_date_becomes_only_what_training_dates_differ_in(random, days, hours, kind, parts):
  sold = pd.Timestamp('2023-01-01') + pd.to_timedelta(
    24 * random.integers(0, days, N) + random.integers(0, hours, N), 'h'
  )
  columns = Columns.fit(frame(random, sold=sold), kinds={'sold': kind})
  assert next(column.parts for column in columns.columns if column.name == 'sold') == parts


def test_booleans_and_texts_that_are_booleans(random):
  flags = random.random(N) < 0.4
  expected = flags.astype(float)[:, None]
  for no, yes in ((False, True), ('no', 'yes'), ('False', 'true'), ('F', 'T'), (' n', 'y ')):
    table = pd.DataFrame({'flag': np.where(flags, yes, no)})
    np.testing.assert_array_equal(Columns.fit(table).encode(table), expected)
  words = pd.DataFrame({'flag': np.where(flags, 'm', 'f')})
  assert Columns.fit(words).features == ('flag=f', 'flag=m')
  columns = Columns.fit({'flag': flags})
  np.testing.assert_array_equal(columns.encode({'flag': flags.astype(int)}), expected)
  np.testing.assert_array_equal(columns.encode({'flag': np.where(flags, 'yes', 'no')}), expected)


def test_rare_categories_share_an_input_with_new_ones(random, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  city = np.repeat(['Bonn', 'Ulm', 'Trier', 'Hof'], [600, 395, 3, 2])
  columns = Columns.fit({'city': city})
  assert columns.features == ('city=Bonn', 'city=Ulm', 'city is other')
  assert columns.columns[0].other == 5 and 'and other (5 rows)' in caplog.text
  found = columns.encode({'city': ['Ulm', 'Hof', 'Rom']})
  assert found.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 1]]
  assert "column 'city': 2 rows are other, such as 'Hof'" in caplog.messages
  many = random.integers(0, 200, 40_000).astype(str)
  columns = Columns.fit({'code': many}, kinds={'code': 'category'})
  assert len(columns.columns[0].words) == schema.MOST_WORDS
  frequent = pd.Series(many).value_counts().head(schema.MOST_WORDS)
  assert columns.columns[0].other == len(many) - frequent.sum()
  assert min(frequent) >= max(np.sum(many == word) for word in set(many) - set(columns.columns[0].words))


LEFT_OUT = {
  'row numbers': (lambda r: r.permutation(N) + 1000, 'numbers of rows: all 120'),
  'names': (lambda r: [f'name {i}' for i in range(N)], 'free text or names of rows: 120 different ones in 120 rows'),
  'mostly names': (lambda r: [f'name {i % 70}' for i in range(N)], 'free text or names of rows: 70'),
  'constant': (lambda r: np.full(N, 7), 'the same in every row'),
  'constant text': (lambda r: ['x'] * N, 'the same in every row'),
  'constant date': (lambda r: [pd.Timestamp('2024-01-01')] * N, 'the same in every row'),
  'nothing': (lambda r: [None] * N, 'no values'),
  'lists': (lambda r: [[1, 2]] * N, 'it holds values of type list'),
  'durations': (lambda r: pd.to_timedelta(r.integers(0, 9, N), 'h'), 'it holds values of type duration'),
}


@pytest.mark.parametrize('name', LEFT_OUT)
def test_what_tells_nothing_is_left_out_and_named(random, name, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  make, why = LEFT_OUT[name]
  table = frame(random, odd=make(random))
  columns = Columns.fit(table, target='price', drop=('sold',))
  (column,) = [column for column in columns.columns if column.name == 'odd']
  assert column.kind == 'left out' and why in column.note
  assert f'left out: {why}' in caplog.text and 'left out: as asked' in caplog.text
  assert columns.encode(table.drop(columns=['odd', 'sold'])).shape == (N, 6)


def test_numbers_that_only_look_like_numbers_of_rows_are_inputs(random):
  for values in (random.choice(10**6, N, replace=False), np.arange(8), random.permutation(N) + 0.5, np.arange(N) // 2):
    assert Columns.fit({'a': values}).features == ('a',)
  assert Columns.fit({'year': np.arange(N)}, kinds={'year': 'number'}).features == ('year',)


def test_a_kind_can_be_given(random):
  table = {'zip': random.choice([53111, 89073], N), 'text': random.choice(['1', '2'], N)}
  assert Columns.fit(table, kinds={'zip': 'category'}).features == ('zip=53111', 'zip=89073', 'text')
  floats = {'zip': np.array([53111.0, 89073.0])}
  columns = Columns.fit(table, kinds={'zip': 'category', 'text': 'category'})
  assert columns.encode({**floats, 'text': ['2', '1']}).tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]


def test_words_that_stand_for_missing_values(random):
  table = {'age': np.array(['31', 'unknown', '-9', '45', '31', '62'])}
  columns = Columns.fit(table, missing=('unknown', '-9'))
  np.testing.assert_allclose(columns.encode(table), [[31, 0], [42.25, 1], [42.25, 1], [45, 0], [31, 0], [62, 0]])
  typed = {'age': [31, -9, 45, 31, 62, None]}
  np.testing.assert_allclose(Columns.fit(typed, missing=('-9',)).encode(typed)[:, 1], [0, 1, 0, 0, 0, 1])


def test_tables_of_all_libraries_are_the_same(random):
  """Also dicts of arrays and of lists, categoricals, an index, and other orders of the columns."""
  table = with_gaps(frame(random), random, 'size', 'city')
  columns = Columns.fit(table, target='price')
  expected = columns.encode(table)
  dates = table['sold'].dt.tz_localize(None)
  forms = {
    'arrow': pa.Table.from_pandas(table),
    'batch of columns in another order': pa.Table.from_pandas(table[table.columns[::-1]]).to_batches()[0],
    'chunks': pa.concat_tables([pa.Table.from_pandas(table[:50]), pa.Table.from_pandas(table[50:])]),
    'arrays': {name: table[name].to_numpy() for name in table},
    'lists': {name: table[name].where(table[name].notna(), None).tolist() for name in table},
    'an index': table.sample(frac=1, random_state=0).sort_index().set_axis(np.arange(N) + 7),
    'a named index': table.set_axis(pd.Index(np.arange(N), name='id')),
    'categorical': table.astype({'city': 'category'}),
    'text': table.assign(size=table['size'].map(lambda v: None if pd.isna(v) else repr(v)), sold=dates.astype(str)),
  }
  for name, form in forms.items():
    np.testing.assert_array_equal(columns.encode(form), expected, err_msg=name)


def test_polars_and_others_that_speak_the_arrow_protocol(random):
  table = frame(random)
  columns = Columns.fit(table, target='price')

  class Stream:
    def __arrow_c_stream__(self, requested_schema=None):
      return pa.Table.from_pandas(table).__arrow_c_stream__(requested_schema)

  np.testing.assert_array_equal(columns.encode(Stream()), columns.encode(table))
  polars = pytest.importorskip('polars')
  np.testing.assert_array_equal(columns.encode(polars.from_pandas(table)), columns.encode(table))
  categorical = polars.from_pandas(table).with_columns(polars.col('city').cast(polars.Categorical))
  np.testing.assert_array_equal(columns.encode(categorical), columns.encode(table))


REFUSED = {
  'missing column': (lambda t: t.drop(columns='size'), "no column 'size': there are rooms, .*add it"),
  'renamed column': (lambda t: t.rename(columns={'size': 'Size '}), "no column 'size': is it 'Size '"),
  'several missing': (lambda t: t[['rooms']], "no column 'size' and lacks 3 others"),
  'text for number': (lambda t: t.assign(size='large'), "column 'size' holds 'large' in row 0, which is not a number"),
  'booleans for number': (lambda t: t.assign(size=True), "column 'size' holds booleans, and must hold numbers"),
  'dates for number': (lambda t: t.assign(size=t['sold']), "column 'size' holds dates, and must hold numbers"),
  'missing number': (lambda t: t.assign(size=np.where(np.arange(N) == 3, np.nan, 1)), "'size' is missing in row 3"),
  'missing flag': (lambda t: t.assign(cellar=None), "'cellar' is missing in row 0, and no training row lacks it"),
  'missing word': (lambda t: t.assign(city=''), "'city' is missing in row 0"),
  'missing date': (lambda t: t.assign(sold=pd.NaT), "'sold' is missing in row 0"),
  'infinite': (lambda t: t.assign(size=np.inf), "'size' has an infinite value in row 0"),
  'new word': (lambda t: t.assign(city='Rom'), "'city' holds 'Rom' in row 0, and no training row does: .*Bonn"),
  'similar word': (lambda t: t.assign(city='Bon'), "'city' holds 'Bon' .* did you mean 'Bonn'"),
  'number for flag': (lambda t: t.assign(cellar=2), "'cellar' holds 2 in row 0, and must hold booleans"),
  'word for flag': (lambda t: t.assign(cellar='maybe'), "'cellar' holds 'maybe' in row 0, which is not yes"),
  'number for date': (lambda t: t.assign(sold=3), "'sold' holds numbers, and must hold dates"),
  'other date': (lambda t: t.assign(sold='01/02/2024'), "'sold' holds '01/02/2024' in row 0, which is not a date as"),
  'no date': (lambda t: t.assign(sold='2024-02-30'), "'sold' holds a date that there is not"),
  'time zone': (lambda t: t.assign(sold=t['sold'].dt.tz_localize('UTC')), "'sold' has a time zone, .* it had none"),
  'zone in text': (lambda t: t.assign(sold='2024-01-01 10:00+02:00'), "'sold' has a time zone"),
  'lists for words': (lambda t: t.assign(city=[['a']] * N), "'city' holds values of type list.*, and must hold categ"),
  'twice': (lambda t: pd.concat([t, t['size']], axis=1), "2 columns 'size': give each its own name|Duplicate column"),
  'array': (lambda t: t.to_numpy(), 'an object of type ndarray is no table: give a DataFrame'),
  'rows': (lambda t: {'size': [1.0], 'rooms': [1, 2]}, "column 'rooms' has 2 rows, and column 'size' 1"),
  'number': (lambda t: {'size': 3.0}, "column 'size' is a float, and must be a list"),
  'matrix': (lambda t: {'size': np.zeros((2, 2))}, r"column 'size' has shape \[2, 2\], and must be \[rows\]"),
  'mixture': (lambda t: {'size': [1, 'b']}, 'cannot read the table .*values of one type'),
  'bytes': (lambda t: {**t, 'city': np.array([b'\xff'] * N)}, "'city' holds bytes that are not UTF-8"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_tables_that_do_not_fit_are_refused_in_one_line(random, name):
  table = frame(random)
  columns = Columns.fit(table, target='price')
  change, words = REFUSED[name]
  with pytest.raises(UserError, match=words) as error:
    columns.encode(change(table))
  assert '\n' not in str(error.value)


FITS = {
  'mostly numbers': (dict(a=['1', '2', 'unknown']), {}, "'a' holds numbers, and 'unknown' in row 2: .*missing=unknown"),
  'mostly dates': (dict(a=['2024-01-01', 'x', '2024-01-02']), {}, "'a' holds dates, and 'x' in row 1"),
  'decimal commas': (dict(a=['1,5', '2', '3,25']), {}, "'a' holds '1,5' in row 0: if that is a decimal comma"),
  'thousands': (dict(a=['1,234.5', '1,234']), {}, "'a' holds '1,234.5' .*if it separates thousands"),
  'unknown target': (dict(a=[1, 2]), dict(target='b'), "unknown column 'b'"),
  'unknown kind': (dict(a=[1, 2]), dict(kinds={'a': 'numbr'}), "unknown kind of column 'a' 'numbr': did you mean"),
  'wrong kind': (dict(a=['x', 'y']), dict(kinds={'a': 'number'}), "'a' holds 'x' in row 0, which is not a number"),
  'no category': (dict(a=['x', 'y']), dict(kinds={'a': 'category'}), r"'a' is no category .*2 different values, none"),
  'nothing': (dict(a=[1, 2]), dict(target='a'), 'no column can be an input .there is none beside the target'),
  'no rows': (dict(a=[]), {}, 'the table has no rows'),
  'date to predict': (dict(a=[1, 2], t=['2024-01-01'] * 2), dict(target='t'), "target column 't' holds dates"),
  'names to predict': (
    dict(a=[1, 2], t=['x', 'y'], u=[1, 2]),
    dict(target=('t', 'u')),
    "target column 't' holds names, and several targets must be numbers",
  ),
  'zones': (
    dict(a=['2024-01-01 10:00Z', '2024-01-01 10:00'] * 2),
    {},
    "'a' has times with a time zone, and without one in row 1",
  ),
}


@pytest.mark.parametrize('name', FITS)
def test_columns_that_need_a_decision_are_asked_about(name):
  table, arguments, words = FITS[name]
  with pytest.raises(UserError, match=words) as error:
    Columns.fit(table, **arguments)
  assert '\n' not in str(error.value)


def test_columns_that_are_not_known_are_ignored_with_a_line(random, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  table = frame(random)
  columns = Columns.fit(table, target='price')
  np.testing.assert_array_equal(columns.encode(table.assign(more=1, other=2)), columns.encode(table))
  assert caplog.messages[-1] == 'columns that were not there in training are ignored: more, other'
  assert columns.encode(table.drop(columns='price')).shape == (N, 13)


def test_labels_keep_names_and_whole_numbers():
  of = lambda values, **more: Columns.fit({'x': [0, 1, 0, 1], 't': values}, target='t', **more).labels({'t': values})
  assert of([' ant', 'bee', 'ant', 'cat']).tolist() == ['ant', 'bee', 'ant', 'cat']
  assert of([True, False, True, True]).tolist() == ['true', 'false', 'true', 'true']
  assert of(['1', '2', '1', '2']).dtype == np.int64 and of([1.0, 2.0, 1.0, 2.0]).dtype == np.float64
  assert of(['1', '2.5', '1', '2']).tolist() == [1, 2.5, 1, 2]
  assert of(['1', '2', '3+', '1'], kinds={'t': 'category'}).tolist() == ['1', '2', '3+', '1']
  columns = Columns.fit({'x': [0, 1], 't': [1, 2], 'u': [0.5, 1]}, target=('t', 'u'))
  assert columns.labels({'u': [3, 4], 't': [1, 2]}).tolist() == [[1, 3], [2, 4]]
  with pytest.raises(UserError, match="target column 't' is missing in 1 rows, first row 1"):
    columns.labels({'u': [3, 4], 't': [1, None]})
  with pytest.raises(UserError, match="unknown target 't'"):
    columns.labels({'u': [3, 4]})


def fitted(random):
  table = with_gaps(
    frame(random, city=random.choice([*CITIES, *'abcdef'], N)), random, 'size', 'cellar', 'city', 'sold'
  )
  return table, Columns.fit(table.drop(columns='rooms'), target='price', missing=('unknown',), drop=('cellar',))


def test_a_schema_is_the_same_after_json(random):
  table, columns = fitted(random)
  text = json.dumps(columns.to_json())
  again = Columns.from_json(json.loads(text))
  assert again == columns and again.features == columns.features
  np.testing.assert_array_equal(again.encode(table), columns.encode(table))
  np.testing.assert_array_equal(again.labels(table), columns.labels(table))


def test_summary(random):
  _, columns = fitted(random)
  head, *lines = columns.summary().splitlines()
  assert head == f'4 columns become {len(columns.features)} inputs:'
  assert [line.split()[0] for line in lines] == ['size', 'city', 'sold', 'cellar']
  assert (
    lines[0].startswith('  size    number, ') and 'filled with' in lines[0] and lines[-1].endswith('left out: as asked')
  )


def changed(place, value):
  """A change of one value of the JSON, or None to remove it."""

  def change(found):
    *outer, last = place
    for key in outer:
      found = found[key]
    if value is None:
      del found[last]
    else:
      found[last] = value

  return change


EDITED = {
  'another version': (changed(['format'], 2), 'by another version'),
  'another key': (changed(['more'], 1), 'its keys are others'),
  'no columns': (changed(['columns'], {}), 'columns is no list'),
  'a text': (changed(['columns', 0], 'x'), 'something else than columns'),
  'a key less': (changed(['columns', 0, 'note'], None), 'other keys'),
  'a key more': (changed(['columns', 0, 'load'], 'os:system'), 'other keys'),
  'unknown kind': (changed(['columns', 0, 'kind'], 'os:system'), 'kind of a column in columns is wrong'),
  'kind as a list': (changed(['columns', 0, 'kind'], ['number']), 'kind of a column'),
  'name as a number': (changed(['columns', 0, 'name'], 3), 'name of a column'),
  'no name': (changed(['columns', 0, 'name'], ''), 'name of a column'),
  'mean as a text': (changed(['columns', 0, 'means'], ['1']), 'means of a column'),
  'mean as a flag': (changed(['columns', 0, 'means'], [True]), 'means of a column'),
  'large mean': (changed(['columns', 0, 'means'], [10**400]), 'means of a column'),
  'another mean': (changed(['columns', 0, 'means'], [1.0, 2.0]), 'size has 2 means for 1 inputs'),
  'missing as a flag': (changed(['columns', 0, 'missing'], True), 'missing of a column'),
  'missing below 0': (changed(['columns', 0, 'missing'], -1), 'missing of a column'),
  'words of a number': (changed(['columns', 0, 'words'], ['a']), 'words of size do not fit'),
  'no words': (changed(['columns', 1, 'words'], []), 'words of city do not fit'),
  'words twice': (changed(['columns', 1, 'words'], ['a', 'a']), 'words of a column'),
  'long word': (changed(['columns', 1, 'words'], ['a' * 10_001]), 'words of a column'),
  'unknown part': (changed(['columns', 2, 'parts'], ['time', 'month']), 'parts of a column'),
  'other order': (changed(['columns', 2, 'parts'], ['year', 'time']), 'parts of a column'),
  'no time': (changed(['columns', 2, 'parts'], ['year']), 'sold lacks its time'),
  'parts of a number': (changed(['columns', 0, 'parts'], ['time']), 'parts of size do not fit'),
  'column twice': (changed(['columns', 0, 'name'], 'city'), 'a column stands twice'),
  'target twice': (changed(['targets', 0, 'name'], 'city'), 'a column stands twice'),
  'date as target': (changed(['targets', 0, 'kind'], 'date'), 'target price is of another kind'),
  'missing words': (changed(['missing'], [1]), 'missing is no list of texts'),
}


@pytest.mark.parametrize('name', EDITED)
def test_a_schema_that_was_edited_is_refused_in_one_line(random, name):
  _, columns = fitted(random)
  found = json.loads(json.dumps(columns.to_json()))
  change, words = EDITED[name]
  change(found)
  with pytest.raises(UserError, match=words) as error:
    Columns.from_json(found, 'columns.json')
  assert str(error.value).startswith('columns.json') and '\n' not in str(error.value)


@pytest.mark.parametrize('found', [None, [], 'x', 3, {}, {'format': 1}])
def test_what_is_no_schema_is_refused(found):
  with pytest.raises(UserError, match='^the schema of columns'):
    Columns.from_json(found)


VALUES = {
  'number': st.one_of(st.none(), st.floats(-1e6, 1e6)),
  'boolean': st.one_of(st.none(), st.booleans()),
  'category': st.one_of(st.none(), st.sampled_from(['a', 'b', 'c', 'rare', 'Ä'])),
  'date': st.one_of(st.none(), st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1))),
}
TABLES = st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=12)
BASE = [
  dict(number=float(i), boolean=i % 3 == 0, category='abc'[i % 3], date=datetime(2000 + i, 1 + i % 12, 1, i))
  for i in range(20)
]
BASE += [dict.fromkeys(VALUES), dict(BASE[0], category='Ä')]
TYPES = pa.schema(dict(number=pa.float64(), boolean=pa.bool_(), category=pa.string(), date=pa.timestamp('us')))


@settings(max_examples=60, deadline=None)
@given(rows=TABLES, data=st.data())
def test_what_a_row_becomes_depends_on_no_other_row(rows, data):
  columns = Columns.fit(pa.Table.from_pylist(BASE, TYPES))
  encode = lambda rows: columns.encode(pa.Table.from_pylist(rows, TYPES))
  whole = encode(rows)
  order = data.draw(st.permutations(range(len(rows))))
  np.testing.assert_array_equal(encode([rows[i] for i in order]), whole[order])
  for row, expected in zip(rows, whole):
    np.testing.assert_array_equal(encode([row])[0], expected)
  again = Columns.from_json(json.loads(json.dumps(columns.to_json())))
  np.testing.assert_array_equal(again.encode(pa.Table.from_pylist(rows, TYPES)), whole)
  assert np.isfinite(whole).all() and whole.shape == (len(rows), len(columns.features))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries(VALUES), min_size=2, max_size=12), data=st.data())
def test_the_schema_of_rows_does_not_depend_on_their_order(rows, data):
  fit = lambda rows: Columns.fit(pa.Table.from_pylist(rows, TYPES))
  try:
    one = fit(rows)
  except UserError:
    return
  other = fit(data.draw(st.permutations(rows)))
  assert other.features == one.features
  for mine, theirs in zip(one.columns, other.columns):
    np.testing.assert_allclose(mine.means, theirs.means, rtol=1e-9, atol=1e-6)
