"""Parts of tables: disjoint, in whole blocks, the same in any order of the rows; training arrays know no test row."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pandas as pd
import pytest

from hydra_jax import UserError
from hydra_jax.data import splits, table_sets, validation_rows
from hydra_jax.data.address import TableOptions

N = 200


def made(table, task='auto', **options):
  """The parts of a table, which is divided as the options say."""
  given = {'target': ('y',), **options}
  return table_sets.made('data', {'train': table}, TableOptions(**given), 'train', task)


def rows_of(found):
  """Values of the column `row` by part."""
  return {part: table['row'].to_pylist() for part, table in found.parts.items()}


def frame(random, n=N, **changes):
  found = {'a': random.normal(size=n), 'b': random.choice(list('uvw'), n), 'y': random.normal(size=n)}
  return pd.DataFrame({**found, 'row': np.arange(n) + 0.5, **changes})


def test_bits_are_those_of_splitmix64():
  """The first number that splitmix64 gives from seed 0 is published with many implementations."""
  assert hex(splits.mixed(np.zeros(1, np.uint64))[0]) == '0xe220a8397b1dcdaf'
  z, mask = (12345 + splits.GAMMA), 2**64 - 1
  z = ((z ^ (z >> 30)) * splits.MIX_1) & mask
  z = ((z ^ (z >> 27)) * splits.MIX_2) & mask
  assert int(splits.mixed(np.array([12345], np.uint64))[0]) == z ^ (z >> 31)


def joined(rows, groups):
  """Numbers of blocks by joining rows one by one."""
  block = list(range(len(rows)))
  for i in range(len(rows)):
    for j in range(i):
      if (rows[i] == rows[j] or groups[i] == groups[j]) and block[i] != block[j]:
        old, new = block[i], block[j]
        block = [new if b == old else b for b in block]
  return block


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25))
def test_blocks_are_rows_that_are_joined_by_values_or_groups(pairs):
  rows, groups = (np.array(each, np.uint64) for each in zip(*pairs))
  found, expected = splits.blocks_of(rows, groups), joined(rows, groups)
  same = lambda blocks: [[a == b for a in blocks] for b in blocks]
  assert same(found) == same(expected)
  assert same(splits.blocks_of(rows)) == same(list(rows))


VALUES = st.fixed_dictionaries(
  {
    'a': st.sampled_from([0.0, 0.5, 1.5, 2.5]),
    'b': st.sampled_from(['u', 'v', None]),
    'g': st.sampled_from(['g1', 'g2', 'g3', 'g4', 'g5', 'g6']),
    'y': st.sampled_from([0.25, 1.25]),
  }
)
FIXED = [dict(a=float(i % 3), b='uv'[i % 2], g=f'g{i % 6 + 1}', y=i % 2 + 0.25) for i in range(6)]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(VALUES, min_size=14, max_size=30), grouped=st.booleans(), seed=st.integers(0, 5), data=st.data())
def test_parts_are_disjoint_and_blocks_whole_in_any_order_of_the_rows(rows, grouped, seed, data):
  table = pd.DataFrame([*FIXED, *rows])
  table['row'] = np.arange(len(table)) + 0.5
  options = dict(seed=seed, group='g') if grouped else dict(seed=seed, drop=('row', 'g'))
  if grouped:
    options['drop'] = ('row',)
  try:
    found = rows_of(made(table, **options))
  except UserError as e:
    assert 'that can be divided' in str(e) and grouped  # all groups are joined by rows that are alike
    return
  assert sorted([*found['train'], *found['test']]) == table['row'].tolist() and found['train'] and found['test']
  part = table['row'].isin(found['test'])
  for of in [['a', 'b', 'y'], *([['g']] if grouped else [])]:
    assert (part.groupby([table[c].fillna('-') for c in of]).nunique() == 1).all()
  shuffled = table.iloc[data.draw(st.permutations(range(len(table))))]
  again = rows_of(made(shuffled, **options))
  assert {name: sorted(each) for name, each in again.items()} == {name: sorted(each) for name, each in found.items()}


def test_each_class_gives_its_share(random):
  y = np.repeat(['a', 'b', 'c', 'd'], [100, 60, 33, 7])
  for options in ({}, dict(test='0.3'), dict(seed=7)):
    share = float(options.get('test', 0.2))
    test = made(frame(random, y=y), drop=('row',), **options).parts['test'].to_pandas()['y'].value_counts()
    for name, count in zip('abcd', (100, 60, 33, 7)):
      assert abs(test[name] - share * count) <= 0.5
  seeds = [frozenset(rows_of(made(frame(np.random.default_rng(0)), drop=('row',), seed=s))['test']) for s in range(5)]
  assert len(set(seeds)) == 5 and all(len(rows) == 40 for rows in seeds)


def test_quantities_and_groups_are_not_stratified(random):
  assert splits.strata_of(random.normal(size=N), 'auto') is None
  assert splits.strata_of(np.arange(N), 'auto') is None and splits.strata_of(np.arange(N), 'classification') is not None
  assert splits.strata_of(np.arange(N) % 3, 'regression') is None
  group = np.arange(N) // 10
  found = made(frame(random, y=random.choice(['k', 'l'], N), g=group), drop=('row',), group='g')
  test = found.parts['test'].to_pandas()
  assert test.groupby('g').size().tolist() == [10] * 4
  (column,) = [column for column in found.columns.columns if column.name == 'g']
  assert column.kind == 'left out'


@pytest.mark.parametrize('as_date', [True, False])
def test_the_latest_rows_are_the_test_part(random, as_date):
  day = random.integers(0, 60, N)
  when = pd.Timestamp('2023-01-01') + pd.to_timedelta(day, 'D') if as_date else day + 2000
  found = made(frame(random, when=when), drop=('row',), time='when')
  train, test = (found.parts[part].to_pandas()['when'] for part in ('train', 'test'))
  assert train.max() < test.min() and len(train) + len(test) == N and 30 <= len(test) <= 50
  (column,) = [column for column in found.columns.columns if column.name == 'when']
  assert (column.kind, column.parts) == (('cycle', ('week',)) if as_date else ('left out', ()))
  kept = made(frame(random, when=when), drop=('row',), time='when', **({'date' if as_date else 'number': ('when',)}))
  assert next(c.kind for c in kept.columns.columns if c.name == 'when') == ('date' if as_date else 'number')


def test_rows_that_are_alike_are_told(random, caplog):
  caplog.set_level('INFO', 'hydra_jax')
  table = frame(random, n=100)
  twice = pd.concat([table, table[:30]])
  made(twice, drop=('row',))
  assert 'data: 30 of 130 rows repeat others; rows that are alike stay in one part' in caplog.messages
  caplog.clear()
  where = np.array(['train'] * 100 + ['test'] * 30)
  made(twice.assign(where=where), drop=('row',), split='where')
  assert 'data: 30 of 30 rows of test stand in train as well: leave them out of one' in caplog.messages


def test_numbers_of_rows_do_not_make_rows_different(random):
  table = frame(random, n=100)
  twice = pd.concat([table, table]).assign(row=np.arange(200))
  found = made(twice)
  assert next(c.kind for c in found.columns.columns if c.name == 'row') == 'left out'
  test = found.parts['test'].to_pandas()
  assert (test.groupby('a').size() == 2).all()


def test_named_parts(random, caplog):
  where = np.repeat(['train', 'test', 'later'], [120, 50, 30])
  found = made(frame(random, where=where), split='where', drop=('row',))
  assert {name: table.num_rows for name, table in found.parts.items()} == {'train': 120, 'test': 50, 'later': 30}
  np.testing.assert_array_equal(found.load('later')[1][:, 0], found.parts['later']['y'].to_numpy())


def test_rows_without_a_target_are_left_out_and_told(random, caplog):
  y = random.normal(size=N)
  y[:7] = np.nan
  found = made(frame(random, y=y), drop=('row',))
  assert sum(table.num_rows for table in found.parts.values()) == N - 7
  assert 'data, train: 7 of 200 rows have no target, and are left out' in caplog.messages


REFUSED = {
  'two ways': (dict(split='b', time='a'), 'divided by split and by time: choose one'),
  'file and split': (dict(split='b', test='x.csv'), r'divided by split and by test .a file.: choose one'),
  'time and group': (dict(time='a', group='b'), 'choose one of time and group'),
  'unknown': (dict(split='c'), "unknown column 'c'"),
  'unknown to drop': (dict(drop=('rows',)), "unknown column 'rows': did you mean 'row'"),
  'unknown target': (dict(target=('z',)), "unknown column 'z'"),
  'no training part': (dict(split='b'), "unknown part to train on 'train': choose one of: u, v, w"),
  'words as time': (dict(time='b'), "column 'b' holds texts, and must hold dates or numbers"),
  'gaps in groups': (dict(group='h'), "column 'h' is missing in row 3, and rows are divided by it"),
  'gaps in time': (dict(time='t'), "column 't' is missing in row 3, and rows are divided by it"),
  'one group': (dict(group='one'), '200 rows are 1 that can be divided'),
  'one time': (dict(time='o'), '200 rows are 1 that can be divided'),
  'no share': (dict(test='1.5'), 'test=1.5 is no share'),
  'two kinds': (dict(number=('a',), date=('a',)), "column 'a' is named as number and as date"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_options_that_do_not_fit_are_refused_in_one_line(random, name):
  options, words = REFUSED[name]
  gaps = np.where(np.arange(N) == 3, None, 'h')
  table = frame(random, h=gaps, one='x', t=np.where(np.arange(N) == 3, np.nan, 1.0), o=1.0)
  with pytest.raises(UserError, match=words) as error:
    made(table, **{'drop': ('row',), **options})
  assert '\n' not in str(error.value)


def test_groups_in_two_given_parts_are_refused(random):
  table = frame(random, where=np.repeat(['train', 'test'], 100), g=np.arange(N) // 30)
  with pytest.raises(UserError, match="20 rows of test are of groups that stand in train too: divide 'g'"):
    made(table, split='where', group='g', drop=('row',))


@settings(max_examples=25, deadline=None)
@given(
  rows=st.lists(
    st.fixed_dictionaries(
      {
        'a': st.one_of(st.none(), st.floats(-1e9, 1e9)),
        'b': st.one_of(st.none(), st.text('abcduvw', max_size=3)),
        'y': st.floats(-1e9, 1e9),
      }
    ),
    min_size=1,
    max_size=10,
  )
)
def test_training_arrays_do_not_depend_on_test_rows(rows):
  """Whatever the test rows are, the schema and the training arrays are the same to the last bit."""
  train = frame(np.random.default_rng(0), n=50)
  train.loc[7, ['a', 'b']] = None
  types = dict(a='float64', b='object', y='float64', row='float64')
  whole = pd.concat([train, pd.DataFrame(rows, columns=list(train)).fillna({'row': 0.0}).astype(types)])
  whole['where'] = ['train'] * 50 + ['test'] * len(rows)
  options = dict(split='where', drop=('row',))
  found, alone = made(whole, 'regression', **options), made(whole[:50], 'regression', **options)
  assert found.columns == alone.columns
  for mine, theirs in zip(found.load('train'), alone.load('train')):
    assert mine.tobytes() == theirs.tobytes() and mine.dtype == theirs.dtype
  np.testing.assert_array_equal(found.blocks, alone.blocks)


def test_the_validation_part_keeps_blocks_whole(random):
  blocks = random.integers(0, 60, 400)
  rows = validation_rows(400, 0.1, blocks)
  chosen = np.isin(np.arange(400), rows)
  assert 25 <= len(rows) <= 40 and not set(blocks[chosen]) & set(blocks[~chosen])
  np.testing.assert_array_equal(validation_rows(400, 0.1, blocks), rows)
  one_large = np.where(np.arange(400) < 300, 0, np.arange(400))
  rows = validation_rows(400, 0.1, one_large)
  assert len(rows) == 40 and rows.min() >= 300
  assert len(validation_rows(400, 0.1, np.zeros(400, int))) == 0
  assert len(validation_rows(100, 0.1, np.arange(100))) == 0  # too few
