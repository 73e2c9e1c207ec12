"""What the labels of a user's own file mean: classes or quantities, and which class is which output.

The dtype does not tell: prices are whole numbers as classes are, and classes read from a CSV file are often floats.
Where the values do not tell either, the user is asked for `config.data.task`.
"""

from dataclasses import dataclass, replace

import numpy as np

from hydra_jax.errors import UserError

TASKS = ('auto', 'classification', 'regression')
# Whole numbers are surely classes if there are few of them; or many, if each has many examples and none is left out.
FEW_CLASSES, FEW_EXAMPLES, MANY_EXAMPLES = 30, 5, 50
NAMES_SHOWN = 8
# Values are looked at in pieces, which need little memory beside them.
ROWS_AT_ONCE = 2**16

SET_TASK = (
  '--config.data.task=classification if each is a class, or --config.data.task=regression if they are quantities'
)


@dataclass(frozen=True)
class Labels:
  """What labels mean.

  Attributes:
    task: Key of `tasks.TASKS`.
    outputs: Number of classes or targets.
    values: Of the classes as they stand in the file, sorted, so that `values[i]` is output i; of no use in regression.
    seen: Whether other splits may only have classes that the training split has.
    note: What was assumed, for the user.
  """

  task: str
  outputs: int
  values: np.ndarray
  seen: bool = True
  note: str = ''

  @property
  def names(self) -> tuple[str, ...]:
    """Of the classes, by output; empty where they are called 0, 1, … anyway."""
    return shown_names(tuple(map(str, self.values)))


def shown_names(names: tuple[str, ...]) -> tuple[str, ...]:
  """Names of classes by output, or none where they are 0, 1, … anyway.

  Example:
    >>> shown_names(('0', '1')), shown_names(('1', '2'))
    ((), ('1', '2'))
  """
  return () if names == tuple(map(str, range(len(names)))) else names


def flat(y: np.ndarray, what: str) -> np.ndarray:
  """Labels as numbers or names `[N]` or, if they are several for each example, `[N, D]`; refused if neither.

  Booleans and whole numbers are int64, other numbers float64, and names str.
  """
  kinds = {'c': 'complex numbers', 'M': 'dates', 'm': 'durations', 'V': 'records'}
  if y.dtype.kind in kinds:
    raise UserError(f'{what} holds {kinds[y.dtype.kind]}: save class numbers, class names, or real numbers')
  if y.ndim not in (1, 2) or 0 in y.shape[1:]:
    raise UserError(f'{what} has shape {list(y.shape)}, and must be [examples], or [examples, targets] in regression')
  y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
  if y.dtype.kind in 'SU':
    try:
      return np.char.decode(y, 'utf-8') if y.dtype.kind == 'S' else y
    except UnicodeDecodeError as e:
      raise UserError(f'{what} holds names that are not UTF-8 ({e.reason}): save them as str') from e
  too_large = y.dtype == np.uint64 and y.size and y.max() > np.iinfo(np.int64).max
  y = y.astype(np.float64 if y.dtype.kind == 'f' or too_large else np.int64)
  refuse_not_finite(y, what)
  return y


def refuse_not_finite(values: np.ndarray, what: str) -> None:
  """Raises a `UserError` that names the first row with NaN or an infinite value."""
  pieces = (values[start : start + ROWS_AT_ONCE] for start in range(0, len(values), ROWS_AT_ONCE))
  if values.dtype.kind == 'f' and not all(np.isfinite(piece).all() for piece in pieces):
    rows = np.nonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0]
    raise UserError(f'{what} has NaN or infinite values in {len(rows)} rows, first row {rows[0]}: clean it')


def meaning(y: np.ndarray, task: str, what: str, columns: int | None = None) -> Labels:
  """What the labels of a training split mean.

  Args:
    y: From `flat`.
    task: As the user says, or `auto`.
    what: The array, for messages.
    columns: Of given predictions, if there are any: the number of classes.

  Raises:
    UserError: Where they do not fit the task, or may be of either.
  """
  if len(y) == 0:
    raise UserError(f'{what} has no examples: add some')
  why = f'{what} holds {_described(y)}'
  if task == 'auto':
    task = _surely(y, why)
    other = 'regression if they are quantities' if task == 'classification' else 'classification if they are classes'
    why += f': {task}' + ('' if y.dtype.kind == 'U' or not _whole(y) else f'; set --config.data.task={other}')
  else:
    why += f': {task}'
  if task == 'regression':
    if y.dtype.kind == 'U':
      raise UserError(f'{what} holds names such as {str(y.flat[0])!r}, and regression needs numbers: save numbers')
    return Labels(task, 1 if y.ndim == 1 else y.shape[1], np.arange(0), note=why)
  return _classes(y, what, why, columns)


def _surely(y: np.ndarray, what: str) -> str:
  """The task that labels are surely for; asks where they may be for either."""
  if y.dtype.kind == 'U' and y.ndim == 1:
    return 'classification'
  if not _whole(y):
    return 'regression'
  if y.ndim == 2:
    if _one_hot(y):
      raise UserError(f'{what}: save the numbers of the classes, y.argmax(axis=1)')
    raise UserError(f'{what}: set --config.data.task=regression if the columns are targets')
  values, examples = np.unique(y), len(y)
  if len(values) == 1:
    raise UserError(f'{what}, the same for every example: there is nothing to learn; save it as float64 if it varies')
  many = len(values) > FEW_CLASSES
  if many and 2 * len(values) > examples:
    return 'regression'  # hardly any value comes twice
  signed = np.array_equal(values, [-1, 1])
  gaps = values[-1] - values[0] + 1 != len(values) or values[0] not in (0, 1)
  enough = examples >= (MANY_EXAMPLES if many else FEW_EXAMPLES) * len(values) or len(values) == 2
  if y.dtype.kind == 'f' or not enough or (values[0] < 0 and not signed) or (many and gaps):
    hint = ', and leave out examples without a label' if -1 in values and not signed else ''
    raise UserError(f'{what}: set {SET_TASK}{hint}')
  return 'classification'


def _described(y: np.ndarray) -> str:
  """What labels are like, in words."""
  if y.ndim == 2:
    return f'{y.shape[1]} {"one-hot " if _one_hot(y) else ""}columns'
  values, counts = np.unique(y, return_counts=True)
  least, most = counts.min(), counts.max()
  each = f'{least} example{"s" if most > 1 else ""}' if least == most else f'{least} to {most} examples'
  if y.dtype.kind == 'U':
    return f'{len(values)} names, {_listed(values)}, {each} a class'
  if not _whole(y):
    return f'numbers such as {y[y != np.rint(y)][0]:.6g}'
  float_ = ' as floats' if y.dtype.kind == 'f' else ''
  return f'{len(values):,} whole numbers{float_}, {values[0]:.6g} to {values[-1]:.6g}, {each} each'


def _listed(values: np.ndarray) -> str:
  return ', '.join(map(str, values[:NAMES_SHOWN])) + (', …' if len(values) > NAMES_SHOWN else '')


def _whole(y: np.ndarray) -> bool:
  return y.dtype.kind == 'i' or (y.dtype.kind == 'f' and bool(np.all(y == np.rint(y))))


def _one_hot(y: np.ndarray) -> bool:
  return y.ndim == 2 and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=1) == 1))


def _classes(y: np.ndarray, what: str, why: str, columns: int | None) -> Labels:
  """The classes of a training split; with given predictions, their columns."""
  values = np.unique(_numbers_or_names(y, what))
  if columns is None:
    if len(values) == 1:
      raise UserError(f'{what} holds one class only, {values[0]}: add examples of others')
    made = Labels('classification', len(values), values, note=why)
    order = f'; outputs 0 to {len(values) - 1} are the classes {_listed(values)}, in this order' if made.names else ''
    return replace(made, note=why + order)
  outputs = max(columns, 2)  # one column stands for two classes, see `external_predictions`
  if values.dtype.kind == 'U':
    if len(values) != outputs:
      raise UserError(f'{what} holds {len(values)} names, and the predictions have {outputs} classes: they must match')
    return Labels(
      'classification', outputs, values, note=f'{why}; predictions are taken to be in their order, {_listed(values)}'
    )
  _refuse_out_of_range(values, outputs, what)
  return Labels('classification', outputs, np.arange(outputs), seen=False, note=why)


def _numbers_or_names(y: np.ndarray, what: str) -> np.ndarray:
  """Labels that are classes, `[N]`."""
  if y.ndim == 2:
    how = 'save the numbers of the classes, y.argmax(axis=1)' if _one_hot(y) else 'each example has one class'
    raise UserError(f'{what} has shape {list(y.shape)}, and classification needs [examples]: {how}')
  if not (y.dtype.kind == 'U' or _whole(y)):
    raise UserError(f'{what} holds {y[y != np.rint(y)][0]:.6g}, which is no class: save whole numbers or names')
  return y if y.dtype.kind == 'U' else y.astype(np.int64)


def _refuse_out_of_range(labels: np.ndarray, classes: int, what: str) -> None:
  low, high = labels.min(), labels.max()
  if low == 1 and high == classes:
    raise UserError(f'{what} counts classes from 1 to {classes}, and the predictions from 0: save y - 1')
  if low < 0 or high >= classes:
    wrong = low if low < 0 else high
    raise UserError(f'{what} has the class {wrong}, and the classes are 0 to {classes - 1}: count them from 0')


def encode(y: np.ndarray, labels: Labels, what: str) -> np.ndarray:
  """Labels of any split as they are learnt: the number of the output `[N]` int32, or targets `[N, D]` float64.

  Args:
    y: From `flat`.
    labels: What those of the training split mean.
    what: The array, for messages.

  Raises:
    UserError: Where they are of another kind than those of the training split, or of classes that it does not have.
  """
  if labels.task == 'regression':
    if y.dtype.kind == 'U':
      raise UserError(f'{what} holds names such as {str(y.flat[0])!r}, and the training split quantities: save numbers')
    return y.astype(np.float64).reshape(len(y), -1)
  y = _numbers_or_names(y, what)
  if (y.dtype.kind == 'U') != (labels.values.dtype.kind == 'U') and len(y):
    raise UserError(f'{what} holds {str(y[0])!r}, and the training split {str(labels.values[0])!r}: name classes alike')
  if not labels.seen and len(y):
    _refuse_out_of_range(y, labels.outputs, what)
    return y.astype(np.int32)
  at = np.minimum(np.searchsorted(labels.values, y), len(labels.values) - 1)
  unknown = labels.values[at] != y
  if unknown.any():
    raise UserError(
      f'{what} has the class {y[unknown][0]} in {unknown.sum():,} rows, which no example of the training split has: '
      'leave these rows out, or make them an out-of-domain set'
    )
  return at.astype(np.int32)
