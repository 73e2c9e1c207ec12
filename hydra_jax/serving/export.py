"""Exports: a predictor as one file that needs neither this package nor, as ONNX, JAX."""

from collections.abc import Callable, Sequence
import json
import logging
import os
from pathlib import Path
import tempfile
from typing import Any

import jax
import numpy as np

from hydra_jax.errors import UserError, look_up
from hydra_jax.evaluation.predictor import Predictor
from hydra_jax.serving import exported, onnx_file, stablehlo
from hydra_jax.store import NEW, one_line

logger = logging.getLogger(__name__)

PLATFORMS = ('cpu', 'cuda', 'tpu')
LEGAL_PLATFORMS = (*PLATFORMS, 'rocm')
Caller = Callable[[np.ndarray], dict[str, np.ndarray]]


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
  write = look_up(FORMATS, format, 'format')
  target = _checked(predictor, Path(path), members, platforms)
  about = {'format': format, **exported.describe(predictor, members)}
  content, call, by = write(predictor, members, tuple(platforms), about)
  error = _tested(predictor, call, members, by)
  logger.info(f'{target}: {len(content):,} bytes; differs from predict by {error:.1e} at most, by {by}')
  beside = [(target.with_name(f'{target.name}.json'), json.dumps(about, indent=2, ensure_ascii=False).encode())]
  for place, what in [*(beside if format == 'stablehlo' else []), (target, content)]:
    _write(place, what)
  return about


def _checked(predictor: Predictor, path: Path, members: bool, platforms: Sequence[str]) -> Path:
  """The path, if all arguments are right."""
  if members and not predictor.has_members:
    raise UserError('this network predicts one distribution, and has no members to export: leave them out')
  for platform in platforms:
    look_up(dict.fromkeys(LEGAL_PLATFORMS), platform, 'platform')
  if not platforms:
    raise UserError(f'no platform is named: name some of {", ".join(LEGAL_PLATFORMS)}')
  if path.is_dir() or not path.parent.is_dir():
    what = 'is a folder: give the name of a file' if path.is_dir() else f'cannot be made: there is no {path.parent}'
    raise UserError(f'{path} {what}')
  return path


def _stablehlo(predictor: Predictor, members: bool, platforms: tuple[str, ...], about: dict) -> tuple[bytes, Caller, str]:
  about['platforms'] = list(platforms)
  try:
    content = stablehlo.serialize(predictor, members, platforms)
  except UserError:
    raise
  except Exception as e:  # JAX has many ways to say that it cannot
    raise UserError(f'this network cannot be exported for any batch size: {one_line(e)}') from e
  here = 'cuda' if jax.default_backend() == 'gpu' else jax.default_backend()
  if here not in platforms:
    raise UserError(f'this machine is {here}, where the file is tested: name {here} among the platforms as well')
  return content, stablehlo.caller(content), f'JAX on {here}'


def _onnx(predictor: Predictor, members: bool, platforms: tuple[str, ...], about: dict) -> tuple[bytes, Caller, str]:
  del platforms
  content = onnx_file.serialize(predictor, members, about)
  return content, *onnx_file.caller(content)


FORMATS = {'stablehlo': _stablehlo, 'onnx': _onnx}


def _tested(predictor: Predictor, call: Caller, members: bool, by: str) -> float:
  """The largest error of a file."""
  try:
    error = exported.largest_error(predictor, call, members)
  except UserError:
    raise
  except Exception as e:
    raise UserError(f'the file cannot be computed by {by}, and is not written: {one_line(e)}') from e
  if not error <= exported.TOLERANCE:  # not so for NaN
    raise UserError(
      f'the file is not written: computed by {by}, it differs from predict by {error:.1e} of the size of the output, '
      f'and {exported.TOLERANCE:g} is allowed (noise that stays on differs in each batch; bfloat16 has three digits)'
    )
  return error


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
