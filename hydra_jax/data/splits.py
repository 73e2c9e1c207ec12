"""Which rows of one set are the test part: by chance, by class, by group, or by time.

Rows are known by what they hold, as 64 bits each. Rows that hold the same stay together, and where they stand in the
file does not count. So a file may be sorted or shuffled, and the parts are the same.
"""

from collections.abc import Sequence
import hashlib

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hydra_jax.errors import UserError

# Multipliers of splitmix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014).
GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Whole numbers are stratified if there are no more of them.
FEW_CLASSES = 30


def mixed(bits: np.ndarray) -> np.ndarray:
  """Well mixed bits, a bijection of uint64 `[N]`: the finaliser of splitmix64."""
  bits = bits + np.uint64(GAMMA)
  bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(MIX_1)
  bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(MIX_2)
  return bits ^ (bits >> np.uint64(31))


def text_bits(texts: Sequence[str]) -> np.ndarray:
  """64 bits of each text, `[N]` uint64, the same everywhere: the first of its SHA-256."""
  digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
  return np.frombuffer(b''.join(digests), '<u8').astype(np.uint64)


def row_bits(columns: Sequence[np.ndarray]) -> np.ndarray:
  """64 bits for each row `[N]`, from those of its values, each `[N]` uint64.

  Of n different rows, two have the same bits with a probability of about n² / 2⁶⁵; they then stay together.
  """
  bits = np.zeros(len(columns[0]), np.uint64)
  for column in columns:
    bits = mixed(bits ^ mixed(column))
  return bits


def blocks_of(rows: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
  """Which rows must stay together: the number of its block for each row, `[N]` int64.

  Args:
    rows: From `row_bits`. Rows with the same bits are in the same block.
    groups: Bits of the group of each row; rows of a group are in the same block, too.
  """
  _, same = np.unique(rows, return_inverse=True)
  if groups is None:
    return same
  _, group = np.unique(groups, return_inverse=True)
  count = int(same.max()) + 1
  edges = coo_array((np.ones(len(rows), np.int8), (same, count + group)), shape=(count + int(group.max()) + 1,) * 2)
  return connected_components(edges, directed=False)[1][same].astype(np.int64)


def at_random(rows: np.ndarray, blocks: np.ndarray, strata: np.ndarray | None, share: float, seed: int) -> np.ndarray:
  """Which rows are the test part `[N]` bool, by chance; blocks stay whole, and each stratum gives its share.

  Args:
    rows: From `row_bits`. With the seed they decide, so that the order of the rows does not.
    blocks: From `blocks_of`.
    strata: The class of each row `[N]`, or None. Blocks with rows of several classes are a stratum of their own.
    share: Of the rows that are wanted.
    seed: Decides.

  Raises:
    UserError: A part would be empty.
  """
  count = int(blocks.max()) + 1
  sizes = np.bincount(blocks, minlength=count)
  bits = np.full(count, np.iinfo(np.uint64).max)
  np.minimum.at(bits, blocks, mixed(rows ^ mixed(np.full(1, seed % 2**64, np.uint64))))
  stratum = np.zeros(count, np.int64) if strata is None else _strata_of(blocks, strata, count)
  chosen = np.zeros(count, bool)
  for each in np.unique(stratum):
    (inside,) = np.nonzero(stratum == each)
    inside = inside[np.argsort(bits[inside], kind='stable')]
    chosen[inside[_taken(sizes[inside], share)]] = True
  test = chosen[blocks]
  _refuse_empty(test, count)
  return test


def _strata_of(blocks: np.ndarray, strata: np.ndarray, count: int) -> np.ndarray:
  """The class of each block, −1 where it has several."""
  _, classes = np.unique(strata, return_inverse=True)
  low, high = np.full(count, len(blocks)), np.full(count, -1)
  np.minimum.at(low, blocks, classes)
  np.maximum.at(high, blocks, classes)
  return np.where(low == high, low, -1)


def _taken(sizes: np.ndarray, share: float) -> list[int]:
  """Blocks, in order, that have about a share of the rows; those too large are passed over, and one is left."""
  wanted, taken = share * float(sizes.sum()), []
  for i, size in enumerate(sizes.tolist()):
    if abs(wanted - size) < wanted:  # with it, the part is closer to its size
      taken.append(i)
      wanted -= size
    if wanted <= 0:
      break
  return taken[:-1] if len(taken) == len(sizes) else taken


def latest(times: np.ndarray, share: float) -> np.ndarray:
  """Which rows are the test part `[N]` bool: the latest ones. Rows of one time stay together.

  Args:
    times: `[N]` float64, without NaN.
    share: Of the rows that are wanted.

  Raises:
    UserError: All rows are of one time.
  """
  order = np.unique(times)
  later = len(times) - np.searchsorted(np.sort(times), order)  # rows at each time and after it
  test = times >= order[int(np.argmin(np.abs(later - share * len(times))))]
  _refuse_empty(test, len(order))
  return test


def _refuse_empty(test: np.ndarray, blocks: int) -> None:
  if test.all() or not test.any():
    raise UserError(
      f'{len(test):,} rows are {blocks:,} that can be divided: add rows, or another share, as test=0.3, or name the '
      'rows by split=COLUMN'
    )


def strata_of(y: np.ndarray, task: str) -> np.ndarray | None:
  """What a part by chance is stratified by: classes `[N]`, or None for quantities."""
  if y.ndim > 1 or task == 'regression':
    return None
  names = y.dtype.kind == 'U' or task == 'classification'
  return y if names or (y.dtype.kind in 'iu' and len(np.unique(y)) <= FEW_CLASSES) else None


def shared_rows(train: np.ndarray, test: np.ndarray) -> int:
  """How many test rows stand in the training part as well; both from `row_bits`."""
  return int(np.isin(test, train).sum())
