"""Digests of source: what counts, what does not, and that no module is left out."""

import importlib.util
from pathlib import Path

import pytest

from hydra_jax.experiment import provenance
from hydra_jax.methods.base import label_loss

MODULE = '''
"""A module."""
import math

SCALE = 2.0


def helper(x):
  return SCALE * x


def used(x: float) -> float:
  """Doubles."""
  # a comment
  return helper(x)


def other(x):
  return math.sin(x)
'''


def digest_of(text: str, folder: Path, name: str = 'used') -> str:
  file = folder / f'module_{abs(hash(text))}.py'
  file.write_text(text)
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return provenance.definition(getattr(module, name))


@pytest.mark.parametrize(
  'old, new',
  [
    ('return helper(x)', 'return helper(x) + 1'),
    ('return SCALE * x', 'return SCALE + x'),
    ('SCALE = 2.0', 'SCALE = 2.5'),
  ],
)
def test_a_change_of_what_a_function_reaches_changes_its_digest(old, new, tmp_path):
  assert digest_of(MODULE.replace(old, new), tmp_path) != digest_of(MODULE, tmp_path)


def test_a_change_of_a_shared_part_of_methods_changes_its_digest(tmp_path, monkeypatch):
  """Methods import what they share, and a change of that is a change of them."""
  text = MODULE.replace('import math', 'import math\nfrom hydra_jax.methods.base import label_loss').replace(
    'return helper(x)', 'return label_loss(x)'
  )
  before, whole = digest_of(text, tmp_path), provenance.definition
  monkeypatch.setattr(provenance, 'definition', lambda f: 'edited' if f is label_loss else whole(f))
  whole.cache_clear()
  assert digest_of(text, tmp_path) != before
  whole.cache_clear()


@pytest.mark.parametrize(
  'old, new',
  [
    ('# a comment', '# another one'),
    ('"""Doubles."""', '"""Multiplies by two."""'),
    ('x: float) -> float', 'x: int) -> int'),
    ('return math.sin(x)', 'return math.cos(x)'),
    ('\n\n\ndef other', '\n\n\n\n\ndef other'),
  ],
)
def test_nothing_else_changes_it(old, new, tmp_path):
  assert digest_of(MODULE.replace(old, new), tmp_path) == digest_of(MODULE, tmp_path)


def test_every_module_of_the_package_is_in_one_layer():
  found = sorted(str(p.relative_to(provenance.PACKAGE).with_suffix('')) for p in provenance.PACKAGE.rglob('*.py'))
  listed = [*provenance.WITHOUT_NUMBERS, *(name for layer in provenance.LAYERS.values() for name in layer)]
  assert sorted(listed) == found


def test_a_layer_changes_with_its_modules(tmp_path, monkeypatch):
  for path in provenance.PACKAGE.rglob('*.py'):
    copy = tmp_path / path.relative_to(provenance.PACKAGE)
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(path.read_bytes())
  monkeypatch.setattr(provenance, 'PACKAGE', tmp_path)
  kinds = {layer: lambda layer=layer: provenance.digest.__wrapped__(layer) for layer in provenance.LAYERS}
  before = {layer: make() for layer, make in kinds.items()}
  for changed, module in (('training', 'maths/losses'), ('evaluation', 'maths/metrics'), ('', 'report/figures')):
    path = tmp_path / f'{module}.py'
    text = path.read_text()
    path.write_text(text + '\nADDED = 1\n')
    after = {layer: make() for layer, make in kinds.items()}
    assert [layer for layer in kinds if after[layer] != before[layer]] == [changed] * bool(changed)
    path.write_text(text)
