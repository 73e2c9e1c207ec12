"""Exports: a predictor as one file that needs neither this package nor, as ONNX, JAX."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import json
import logging
import os
from pathlib import Path
import tempfile
from typing import Any, NamedTuple

import jax

from hydra_jax.errors import UserError, look_up
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported_function, onnx_file, stablehlo
from hydra_jax.store import NEW, one_line

logger = logging.getLogger(__name__)

PLATFORMS = ('cpu', 'cuda', 'tpu')
LEGAL_PLATFORMS = (*PLATFORMS, 'rocm')


def export(
  predictor: Predictor,
  path: str | Path,
  format: str,
  members: bool = False,
  platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
  """Writes a predictor to a file that computes what `predict` does, for any batch size.

  The input is `x`: images uint8 `[batch, height, width, channels]`, all else float64 `[batch, …]`, not scaled. Rows of
  a table are numbers as `serving.exported_columns` says. The outputs are `mean`, `total`, `aleatoric` and `epistemic`,
  as in `Prediction`, and on demand `members` `[batch, M, C]` and in regression `member_variances`. Where `predict`
  refuses an input, such as one that is not finite, its predictions are NaN.

  Before the file gets its name, what it computes is compared with `predict` on random inputs, in several batches.

  Args:
    predictor: The trained network.
    path: The file. One that is there is replaced.
    format: `stablehlo` or `onnx`. StableHLO is read by `jax.export.deserialize`, and a file `<path>.json` beside it
      says what it is. ONNX has that as metadata. It needs `pip install 'hydra_jax[onnx]'`.
    members: Whether the predictions of each member are outputs as well.
    platforms: Of StableHLO: where it is to run, `cpu`, `cuda`, `tpu` or `rocm`. It is one file for all.

  Returns:
    What is written beside it: the input, the outputs with shapes and units, names of classes, and versions.

  Raises:
    UserError: The network has an operation that ONNX is not written for, the file computes something else than
      `predict`, a library is missing, or an argument is wrong. Then nothing is left at `path`.

  Example:
    >>> about = hydra_jax.export(predictor, 'digits.onnx', format='onnx')  # doctest: +SKIP
    >>> about['outputs']['mean']['shape']  # doctest: +SKIP
    ['batch', 10]
  """
  row = look_up(FORMATS, format, 'format')
  target = _checked(predictor, Path(path), members, platforms)
  about = {'format': format, **exported_function.describe(predictor, members), **row.more(platforms)}
  with _one_line(f'this network cannot be exported as {format}'):
    content = row.serialize(predictor, members, platforms, about)
    call, by = row.caller(content)
    error = exported_function.largest_error(predictor, call, members)
  allowed = exported_function.tolerance(predictor)
  if not error <= allowed:  # not so for NaN
    raise UserError(
      f'nothing is written: computed by {by}, the file differs from predict by {error:.1e} of the size of the output, '
      f'and {allowed:g} is allowed. Noise that stays on, as in mc_dropout, differs in each batch and cannot be exported'
    )
  logger.info(f'{target}: {len(content):,} bytes; differs from predict by {error:.1e} of its size, by {by}')
  if row.has_json:
    _write(target.with_name(f'{target.name}.json'), json.dumps(about, indent=2, ensure_ascii=False).encode())
  _write(target, content)
  return about


def _checked(predictor: Predictor, path: Path, members: bool, platforms: Sequence[str]) -> Path:
  """The path, if all arguments are right."""
  if members and not predictor.has_members:
    raise UserError('this network predicts one distribution, and has no members to export: leave them out')
  for platform in platforms:
    look_up(dict.fromkeys(LEGAL_PLATFORMS), platform, 'platform')
  here = 'cuda' if jax.default_backend() == 'gpu' else jax.default_backend()
  if here not in platforms:
    raise UserError(f'this machine is {here}, where the file is tested: name {here} among the platforms as well')
  if path.is_dir() or not path.parent.is_dir():
    what = 'is a folder: give the name of a file' if path.is_dir() else f'cannot be made: there is no {path.parent}'
    raise UserError(f'{path} {what}')
  return path


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
  """Errors of JAX and ONNX, which have many, in one line."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    raise UserError(f'{what}: {one_line(e)}') from e


class Format(NamedTuple):
  """A row of `FORMATS`.

  Attributes:
    serialize: `(predictor, members, platforms, about) -> content of the file`.
    caller: `content -> (function of inputs that gives outputs by name, what computes it)`.
    more: `platforms -> ` what is said about the file besides.
    has_json: Whether what is said stands in a file beside it.
  """

  serialize: Callable[..., bytes]
  caller: Callable[[bytes], tuple[Callable, str]]
  more: Callable[[Sequence[str]], dict[str, Any]]
  has_json: bool


FORMATS = {
  'stablehlo': Format(
    lambda predictor, members, platforms, about: stablehlo.serialize(predictor, members, platforms),
    stablehlo.caller,
    lambda platforms: {'platforms': list(platforms)},
    has_json=True,
  ),
  'onnx': Format(
    lambda predictor, members, platforms, about: onnx_file.serialize(predictor, members, about),
    onnx_file.caller,
    lambda platforms: {},
    has_json=False,
  ),
}


def _write(path: Path, content: bytes) -> None:
  """Writes a file that gets its name once it is complete."""
  handle, new = tempfile.mkstemp(prefix=NEW, dir=path.parent)
  try:
    with os.fdopen(handle, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(new, 0o666 & ~_umask())
    os.replace(new, path)
  finally:
    Path(new).unlink(missing_ok=True)


def _umask() -> int:
  """Permissions that new files do not get."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
