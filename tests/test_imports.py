"""What each folder of the package may import. The README has the same map."""

import ast
from pathlib import Path

from conftest import ROOT
import pytest

PACKAGE = ROOT / 'hydra_jax'
# Folders, and modules that lie in none; no permission that nothing uses.
MAY_IMPORT = {
  'errors': (),
  'maths': (),
  'store': ('errors',),
  'text': ('errors',),
  'settings': ('errors',),
  'user_files': ('errors',),
  'formats': (),
  'progress': ('formats',),
  'devices': ('errors', 'store'),
  'data': ('errors', 'progress', 'settings', 'store', 'text', 'user_files'),
  'nets': ('devices', 'errors', 'user_files'),
  'methods': ('devices', 'errors', 'maths', 'nets', 'settings', 'user_files'),
  'training': ('data', 'devices', 'errors', 'nets', 'settings', 'store'),
  'evaluation': ('data', 'devices', 'errors', 'maths', 'nets', 'user_files'),
  'report': ('data', 'evaluation', 'formats', 'maths', 'progress', 'store'),
  'experiment': (
    *('data', 'devices', 'errors', 'evaluation', 'formats', 'maths', 'methods', 'nets', 'progress', 'report', 'store'),
    *('settings', 'text', 'training', 'user_files'),
  ),
  'config': ('experiment',),
  'serving': ('data', 'errors', 'evaluation', 'experiment', 'formats', 'maths', 'progress', 'store'),
  'estimators': (
    *('data', 'errors', 'evaluation', 'experiment', 'maths', 'methods', 'nets', 'progress', 'serving', 'settings'),
    'training',
  ),
}


def part_of(file: Path) -> str:
  """The folder of a module, or the module itself."""
  place = file.relative_to(PACKAGE)
  return place.parts[0] if len(place.parts) > 1 else place.stem


def imports_of(part: str) -> set[str]:
  found = set()
  for file in PACKAGE.rglob('*.py'):
    if part_of(file) != part:
      continue
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] == 'hydra_jax':
        inside = (node.module or '').split('.')[1:2]
        found |= set(inside) if inside else {alias.name for alias in node.names}
  return found - {part}


@pytest.mark.parametrize('part', MAY_IMPORT)
def test_it_imports_what_it_may(part):
  assert sorted(imports_of(part)) == sorted(MAY_IMPORT[part])


def test_every_part_has_a_rule():
  parts = {part_of(file) for file in PACKAGE.rglob('*.py')}
  assert parts - {'cli', '__init__'} == set(MAY_IMPORT)


def test_a_part_imports_only_parts_below_it():
  """Parts can be put in an order in which none imports a later one."""
  below: set[str] = set()
  while below != set(MAY_IMPORT):
    ready = {part for part, imports in MAY_IMPORT.items() if part not in below and set(imports) <= below}
    assert ready, f'a circle among {sorted(set(MAY_IMPORT) - below)}'
    below |= ready
