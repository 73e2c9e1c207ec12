"""Changed rows of a table, for a student to learn what the members predict between the rows that are there."""

import numpy as np

# Share of the values of a row that are swapped: it is drawn for each row from 0 to this number.
MOST_SWAPPED = 0.3
# Changed copies of each row, and of all rows together, at most.
MOST_COPIES, MOST_ROWS = 16, 100_000


def copies_for(rows: int) -> int:
  """Changed copies of each row: 16 of a small table, 10 of 10,000 rows, none of more than 100,000.

  Example:
    >>> copies_for(500), copies_for(10_000), copies_for(1_000_000)
    (16, 10, 0)
  """
  return min(MOST_COPIES, MOST_ROWS // rows)


def swapped(x_NxD: np.ndarray, copies: int, seed: tuple[int, ...]) -> np.ndarray:
  """Copies of rows, some of whose values are those of other rows in the same column.

  All values are such as the column has: codes stay codes, and steps stay steps, where noise would make values that no
  row has. This is the swap noise of Bucila et al. 2006 ("Model compression", their MUNGE) without the neighbours.

  Args:
    x_NxD: Rows.
    copies: Number of copies of each row.
    seed: Decides what is swapped.

  Returns:
    `[copies · N, D]`, first one copy of all rows, in order, then the next.

  Example:
    >>> x = np.array([[1, 10], [2, 20], [3, 30]])
    >>> swapped(x, copies=2, seed=(0,)).shape
    (6, 2)
  """
  random = np.random.default_rng(seed)
  x = np.tile(x_NxD, (copies, 1))
  others = np.take_along_axis(x_NxD, random.integers(len(x_NxD), size=x.shape), axis=0)
  share = MOST_SWAPPED * random.uniform(size=(len(x), 1))
  return np.where(random.uniform(size=x.shape) < share, others, x)
