"""No test draws from a generator that other tests share: its outcome would depend on which of them ran before."""

import ast
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob('*.py'))
MAKERS = ('default_rng', 'Generator', 'RandomState')


def shared(source: str) -> list[str]:
  """What a module draws from that is shared, as `name:line`.

  That is, in functions, a generator that the module made when it was imported; and anywhere the functions of `random`
  and `numpy.random`, which draw from one generator of the whole process.
  """
  tree = ast.parse(source)
  made = {
    target.id
    for node in tree.body
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    for target in node.targets
    if isinstance(target, ast.Name) and ast.unparse(node.value.func).split('.')[-1] in MAKERS
  }
  functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
  found = {
    f'{node.id}:{node.lineno}'
    for function in functions
    for node in ast.walk(function)
    if isinstance(node, ast.Name) and node.id in made
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Import) and 'random' in [alias.name for alias in node.names]:
      found.add(f'import random:{node.lineno}')
    if isinstance(node, ast.ImportFrom) and node.module in ('random', 'numpy.random'):
      found.add(f'from {node.module}:{node.lineno}')
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ('np.random', 'numpy.random'):
      found |= {f'{ast.unparse(node)}:{node.lineno}'} if node.attr not in MAKERS else set()
  return sorted(found)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_no_generator_is_shared(file):
  assert not shared(file.read_text())


def test_what_is_shared_is_found():
  source = """
import random
import numpy as np
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=3)
def bad():
  return [RANDOM.normal() for _ in range(3)], np.random.normal()
def good(random):
  return random.normal() + np.random.default_rng(1).normal() + X
"""
  assert shared(source) == ['RANDOM:7', 'import random:2', 'np.random.normal:7']
