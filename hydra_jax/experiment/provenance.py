"""Digests of source code, so that a result of older code is never taken for one of this code.

Comments, docstrings and annotations do not count: they change no result. A digest is part of the key of
everything that is saved, beside the settings and the data that it was made from.
"""

import ast
from collections.abc import Callable, Iterator
import functools
import hashlib
import importlib
import inspect
from pathlib import Path
import sys
import textwrap
from typing import Any

from hydra_jax import user_files
from hydra_jax.errors import UserError

PACKAGE = Path(__file__).parents[1]

# Which modules decide what a saved artifact holds. Methods and the wiring of a phase are digested function by function
# (see `definition`), so that adding a method does not retrain what other methods have trained.
LAYERS: dict[str, tuple[str, ...]] = {
  'training': (
    *(f'data/{name}' for name in ('__init__', 'arrays', 'catalog', 'checks', 'columns', 'corruptions', 'files', 'hub')),
    *(f'data/{name}' for name in ('image_folders', 'labels', 'outside', 'photos', 'read_ahead', 'shifts', 'sources')),
    *(f'data/{name}' for name in ('splits', 'table_sets', 'tables', 'toy', 'uci', 'values')),
    *(f'devices/{name}' for name in ('collectives', 'cpu', 'layout')),
    *(f'experiment/{name}' for name in ('external_predictions', 'replicas')),
    *(f'maths/{name}' for name in ('calibration', 'credal', 'density', 'losses', 'prior_networks', 'tasks')),
    'methods/latent_factor',
    *(f'nets/{name}' for name in ('adapters', 'batch_ensemble', 'cut', 'flow', 'mapping', 'stages', 'tabular')),
    *('nets/user_networks', 'nets/zoo'),
    *(
      f'training/{name}'
      for name in ('augment', 'batches', 'fits', 'gradients', 'loop', 'optimizers', 'program', 'step')
    ),
  ),
  'evaluation': (
    *('evaluation/diversity', 'evaluation/evaluate', 'evaluation/predictor', 'evaluation/user_metrics'),
    *('maths/metrics', 'maths/uncertainty'),
  ),
  'cost': ('evaluation/cost',),
}
# Modules that change no saved number of a run: they show, store, check, or do not take part in runs.
WITHOUT_NUMBERS = (
  *('__init__', 'cli', 'config', 'errors', 'formats', 'progress', 'settings', 'store', 'text', 'user_files'),
  'data/address',
  *('devices/accelerators', 'devices/preemption', 'devices/processes', 'maths/statistics', 'training/checkpoints'),
  *('evaluation/arrays', 'evaluation/calibrated', 'evaluation/traffic', 'maths/conformal'),
  *('report/dots', 'report/figures', 'report/page', 'report/parallel', 'report/tables', 'report/verdict'),
  *(f'experiment/{name}' for name in ('agreement', 'artifacts', 'config', 'explain', 'list_runs', 'recipes')),
  *('experiment/clean_run', 'experiment/compare_runs', 'experiment/metrics_log', 'experiment/scores_in_training'),
  *('experiment/on_paper', 'experiment/paper_tables', 'experiment/search', 'experiment/sweep'),
  *('experiment/table_definition', 'experiment/table_page', 'experiment/trackers', 'experiment/tracking'),
  'experiment/views',
  *(
    f'experiment/{name}'
    for name in ('phases', 'plan', 'provenance', 'run', 'run_report', 'schema', 'teachers', 'validation', 'workdir')
  ),
  *(
    f'methods/{name}' for name in ('base', 'credal', 'density', 'distillation', 'flow_matching', 'gaussian', 'moments')
  ),
  *(f'methods/{name}' for name in ('prior_networks', 'registry', 'supervised')),
  *(f'{folder}/__init__' for folder in ('devices', 'evaluation', 'experiment', 'maths', 'methods', 'nets', 'report')),
  *(f'training/{name}' for name in ('__init__', 'early_stopping', 'folds', 'settings')),
  *(f'estimators/{name}' for name in ('__init__', 'absent', 'defaults', 'distil', 'ensemble', 'out_of_fold')),
  *(f'estimators/{name}' for name in ('scikit_learn', 'swaps', 'teachers', 'training')),
  *(f'serving/{name}' for name in ('__init__', 'card', 'loading', 'model_folder', 'predict_files')),
  *('serving/row_files', 'serving/run_folder'),
  *(f'serving/{name}' for name in ('export', 'exported_columns', 'exported_function', 'stablehlo')),
  *(f'serving/onnx_{name}' for name in ('affine', 'file', 'graph', 'rules', 'shapes', 'special', 'translate')),
)


@functools.cache
def digest(layer: str) -> str:
  """Twelve hex digits that stand for the code of a layer, see `LAYERS`."""
  return _hash(_plain((PACKAGE / f'{name}.py').read_text()) for name in LAYERS[layer])


@functools.cache
def package_digest() -> str:
  """Twelve hex digits that stand for all code of the package."""
  return _hash(_plain(path.read_text()) for path in sorted(PACKAGE.rglob('*.py')))


@functools.cache
def definition(function: Callable) -> str:
  """Twelve hex digits that stand for a function, and for all that it reaches by name.

  Names are followed in its own module, and into the modules of `hydra_jax.methods` from which it imports functions.

  Example:
    >>> from hydra_jax.methods.registry import METHODS
    >>> len(definition(METHODS['kd'].phases))  # changes with `kd` and `_hinton`, and not with `hydra`
    12
  """
  function = inspect.unwrap(function)
  name = getattr(function, '__qualname__', '')
  file = Path(inspect.getsourcefile(function) or '')
  # In a notebook there is no file, but the source of each function is kept.
  source = file.read_text() if file.is_file() else textwrap.dedent(inspect.getsource(function))
  tree = _tree_of(source)
  bound = {target: node for node in tree.body for target in _binds(node)}
  imported = dict(_imported_methods(tree))
  if name not in bound:  # a lambda or a nested function
    return _hash([ast.unparse(tree)])
  reached: dict[str, str] = {}
  waiting = [name]
  while waiting:
    current = waiting.pop()
    if current in bound and current not in reached:
      reached[current] = ast.unparse(bound[current])
      waiting += [node.id for node in ast.walk(bound[current]) if isinstance(node, ast.Name)]
    elif current in imported and current not in reached:
      other = getattr(importlib.import_module(imported[current]), current)
      if inspect.isfunction(other):
        reached[current] = definition(other)
  return _hash(reached[key] for key in sorted(reached))


def source_digest(function: Callable) -> str:
  """Twelve hex digits that stand for a function of the user's, and for all of the user's own that it reaches by name.

  Names are followed as Python resolves them, so that it does not matter whether the source is in a script, in modules
  or in the cells of a notebook.

  Raises:
    UserError: Python does not have the source.
  """
  found: dict[str, str] = {}
  waiting: list[Any] = [function]
  while waiting:
    current = waiting.pop()
    if current.__qualname__ in found:
      continue
    tree = _stripped(ast.parse(_source(current)))
    found[current.__qualname__] = ast.unparse(tree)
    for name, value in _reached(tree, current):
      if _is_constant(value):
        found[name] = repr(value)
      elif inspect.isfunction(value) or inspect.isclass(value):
        waiting.append(value)
  return _hash(f'{name}: {found[name]}' for name in sorted(found))


def _is_constant(value: Any) -> bool:
  return isinstance(value, int | float | str) or (isinstance(value, tuple) and all(map(_is_constant, value)))


def _source(value: Any) -> str:
  """Source of a function or a class. In a notebook Python has that of functions alone, and so of what a class has."""
  try:
    return textwrap.dedent(inspect.getsource(value))
  except (OSError, TypeError) as e:
    inside = [each for each in vars(value).values() if inspect.isfunction(each)] if inspect.isclass(value) else []
    if not inside:
      raise UserError(
        f"Python has no source of '{value.__qualname__}': define it in a file or a notebook, and pass it from there"
      ) from e
    return ''.join(map(_source, inside))


def _reached(tree: ast.Module, value: Any) -> Iterator[tuple[str, Any]]:
  """Names in a source, and names in modules that it names, with what they stand for, where it is the user's own."""
  known = getattr(value, '__globals__', None) or vars(sys.modules[value.__module__])
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and node.id in known:
      yield from _of_the_user(node.id, known[node.id])
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      module = known.get(node.value.id)
      if inspect.ismodule(module) and not user_files.is_installed(module) and hasattr(module, node.attr):
        yield from _of_the_user(node.attr, getattr(module, node.attr))


def _of_the_user(name: str, value: Any) -> Iterator[tuple[str, Any]]:
  module = sys.modules.get(getattr(value, '__module__', None) or '')
  if module is None or not user_files.is_installed(module):
    yield name, value


def _hash(texts) -> str:
  whole = hashlib.sha256()
  for text in texts:
    whole.update(text.encode() + b'\0')
  return whole.hexdigest()[:12]


@functools.lru_cache(maxsize=64)
def _tree_of(source: str) -> ast.Module:
  """Parsed once for all functions of a module. Nothing changes the tree."""
  return _stripped(ast.parse(source))


def _plain(source: str) -> str:
  return ast.unparse(_stripped(ast.parse(source)))


def _binds(node: ast.stmt) -> Iterator[str]:
  """Names that a statement of a module defines, other than by an import."""
  if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
    yield node.name
  elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def _imported_methods(tree: ast.Module) -> Iterator[tuple[str, str]]:
  """Names that a module imports from modules of methods, and these modules."""
  for node in tree.body:
    if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('hydra_jax.methods.'):
      yield from ((alias.asname or alias.name, node.module or '') for alias in node.names)


def _stripped(tree: ast.Module) -> ast.Module:
  """Without docstrings and annotations, in place."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      first = node.body[0] if node.body else None
      if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      node.returns = None
    if isinstance(node, ast.arg):
      node.annotation = None
    if isinstance(node, ast.AnnAssign):
      node.annotation = ast.Constant(None)
  return tree
