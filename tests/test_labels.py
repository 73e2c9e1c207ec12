"""What labels of a file are taken for, by whom it is decided, and what is asked or refused."""

import numpy as np
import pytest

from hydra_jax import UserError
from hydra_jax.data import labels

N = 300
GENRE = np.array(['bee', 'ant', 'cat'])


def kind(found):
  return found.task, found.outputs


def meaning(y, task='auto', columns=None):
  return labels.meaning(labels.flat(y, 'y'), task, 'y', columns)


def read(y, other, task='auto', columns=None):
  """Labels of another split, as those of a training split are read."""
  return labels.encode(labels.flat(other, 'y_test'), meaning(y, task, columns), 'y_test')


def numbers(count, examples=N):
  """Each of 0 to count − 1 about equally often, in no order."""
  return np.random.default_rng(0).permutation(np.arange(examples) % count)


@pytest.mark.parametrize('dtype', [np.int64, np.uint8, np.int8, np.uint64, '>i4'])
def test_whole_numbers_with_enough_examples_are_classes(dtype):
  y = numbers(10).astype(dtype)
  found = meaning(y)
  assert kind(found) == ('classification', 10) and found.names == ()
  assert '10 whole numbers, 0 to 9, 30 examples each: classification' in found.note
  assert '--config.data.task=regression if they are quantities' in found.note and '\n' not in found.note
  np.testing.assert_array_equal(read(y, y[:7]), y[:7].astype(int))
  assert read(y, y).dtype == np.int32


@pytest.mark.parametrize(
  'y',
  [
    numbers(2) == 1,
    numbers(3)[:, None],
    np.array([0, 1]),
    numbers(100, 5000),
    np.where(numbers(10) == 9, 1, 0),
  ],
  ids=['bool', 'column', 'two examples', 'hundred', 'rare'],
)
def test_surely_classes(y):
  found = meaning(y)
  assert found.task == 'classification' and found.outputs == len(np.unique(y))
  np.testing.assert_array_equal(read(y, y), np.ravel(y).astype(int))


def test_prices_are_quantities():
  prices = np.random.default_rng(0).integers(50_000, 900_000, N)
  for y in (prices, prices.astype(float), prices.astype(np.float32)):
    found = meaning(y)
    assert kind(found) == ('regression', 1) and '1 example each: regression' in found.note
    assert found.note.endswith('set --config.data.task=classification if they are classes')
    np.testing.assert_array_equal(read(y, y), prices[:, None])
    assert read(y, y).dtype == np.float64


def test_numbers_with_fractions_are_quantities():
  y = np.random.default_rng(0).normal(size=N)
  assert kind(meaning(y)) == ('regression', 1) and kind(meaning(y.reshape(100, 3))) == ('regression', 3)
  assert kind(meaning(y.astype(np.longdouble))) == kind(meaning(y.astype(np.float16))) == ('regression', 1)
  # Of which some may be whole in another split.
  np.testing.assert_array_equal(read(y, np.array([3, 4])), [[3.0], [4.0]])
  np.testing.assert_array_equal(read(y, np.array([True, False])), [[1.0], [0.0]])


@pytest.mark.parametrize(
  'y, words',
  [
    (numbers(3).astype(float), '3 whole numbers as floats, 0 to 2, 100 examples each: set --config.data.task='),
    (numbers(90), '90 whole numbers'),  # 3 or 4 examples each: ages, or people
    (numbers(60, 9000) + 18, '18 to 77, 150 examples each'),  # ages
    (np.repeat(np.arange(9), 4), '9 whole numbers, 0 to 8, 4 examples each'),
    (np.where(numbers(4) == 3, -1, numbers(4)), 'leave out examples without a label'),
    (numbers(3) - 1, '-1 to 1'),
    (np.eye(3, dtype=int)[numbers(3)], r'3 one-hot columns: save the numbers of the classes, y.argmax\(axis=1\)'),
    (np.eye(3)[numbers(3)], 'one-hot'),
    (np.ones((N, 4), int), '4 columns: set --config.data.task=regression if the columns are targets'),
  ],
)
def test_what_may_be_either_is_asked(y, words):
  with pytest.raises(UserError, match=words) as error:
    meaning(y)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'y, names, expected',
  [
    (GENRE[numbers(3)], ('ant', 'bee', 'cat'), np.array([1, 0, 2])[numbers(3)]),
    (GENRE[numbers(3)].astype('S'), ('ant', 'bee', 'cat'), np.array([1, 0, 2])[numbers(3)]),
    (numbers(3) + 1, ('1', '2', '3'), numbers(3)),
    (numbers(3) * 5, ('0', '5', '10'), numbers(3)),
    (2 * numbers(2) - 1, ('-1', '1'), numbers(2)),
  ],
)
def test_names_are_kept(y, names, expected):
  found = meaning(y)
  assert found.names == names and found.outputs == len(names)
  assert f'outputs 0 to {len(names) - 1} are the classes {", ".join(names)}, in this order' in found.note
  np.testing.assert_array_equal(read(y, y), expected)
  with pytest.raises(UserError, match='name classes alike'):
    read(y, numbers(2) if y.dtype.kind in 'SU' else np.array(['ant', 'bee']))


def test_the_user_decides():
  assert kind(meaning(numbers(3), 'regression')) == ('regression', 1)
  assert kind(meaning(numbers(3).astype(float), 'classification')) == ('classification', 3)
  assert meaning(numbers(3).astype(float) + 1, 'classification').names == ('1', '2', '3')
  assert meaning(numbers(3) - 1, 'classification').names == ('-1', '0', '1')
  assert kind(meaning(np.eye(3)[numbers(3)], 'regression')) == ('regression', 3)
  np.testing.assert_array_equal(read(numbers(3), numbers(3).astype(float), 'classification'), numbers(3))


@pytest.mark.parametrize(
  'y, task, words',
  [
    (np.linspace(0, 1, N), 'classification', 'y holds 0.00334448, which is no class'),
    (np.eye(3)[numbers(3)], 'classification', r'y.argmax\(axis=1\)'),
    (np.zeros((N, 2)) + 0.5, 'classification', 'each example has one class'),
    (GENRE[numbers(3)], 'regression', "names such as 'bee', and regression needs numbers"),
    (numbers(1), 'auto', 'the same for every example'),
    (numbers(1), 'classification', 'one class only, 0'),
    (numbers(3)[:0], 'auto', 'no examples'),
    (np.zeros((N, 2, 2)), 'auto', r'shape \[300, 2, 2\]'),
    (np.zeros((N, 0)), 'auto', r'shape \[300, 0\]'),
    (np.float64(3), 'auto', r'shape \[\]'),
    (numbers(3) + 1j, 'auto', 'complex numbers'),
    (numbers(3).astype('datetime64[D]'), 'auto', 'dates'),
    (np.zeros(N, [('a', int)]), 'auto', 'records'),
    (np.where(numbers(3) == 1, np.nan, 0.5), 'auto', r'NaN or infinite values in 100 rows, first row'),
    (np.array([b'\xff\xfe'] * N), 'auto', 'not UTF-8'),
  ],
)
def test_what_is_neither_is_refused(y, task, words):
  with pytest.raises(UserError, match=words) as error:
    meaning(y, task)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'y, other, words',
  [
    (numbers(3), np.array([0, 3, 3]), 'y_test has the class 3 in 2 rows, which no example of the training split has'),
    (GENRE[numbers(3)], GENRE[:1].astype('U9') + 's', 'class bees in 1 rows'),
    (numbers(3), np.array([0.5]), 'y_test holds 0.5, which is no class'),
    (numbers(3), np.array([-1]), 'class -1'),
    (np.linspace(0, 1, N), GENRE, "names such as 'bee', and the training split quantities"),
  ],
)
def test_labels_of_other_splits_that_do_not_fit(y, other, words):
  with pytest.raises(UserError, match=words):
    read(y, other)


def test_predictions_say_how_many_classes_there_are():
  assert kind(meaning(numbers(3), columns=7)) == ('classification', 7)
  np.testing.assert_array_equal(read(numbers(3), np.array([6]), columns=7), [6])  # a class that only members know
  assert meaning(numbers(2), columns=1).outputs == 2  # one column stands for two classes
  found = meaning(GENRE[numbers(3)], columns=3)
  assert found.outputs == 3 and 'predictions are taken to be in their order, ant, bee, cat' in found.note
  for y, columns, words in (
    (numbers(3) + 1, 3, 'counts classes from 1 to 3, and the predictions from 0: save y - 1'),
    (numbers(5), 3, 'class 4, and the classes are 0 to 2'),
    (numbers(3) - 1, 3, 'class -1'),
    (GENRE[numbers(3)], 4, '3 names, and the predictions have 4 classes'),
  ):
    with pytest.raises(UserError, match=words):
      meaning(y, 'classification', columns)
  with pytest.raises(UserError, match='y_test has the class 7'):
    read(numbers(3), np.array([7]), columns=7)
