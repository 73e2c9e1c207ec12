"""The pages of docs/ as a site, without building it: CI builds it and executes its cells."""

import inspect
from pathlib import Path
import re
import tomllib

from conftest import ROOT
import pytest

from experiments import readme
import hydra_jax

DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.md'))
API = (DOCS / 'api.md').read_text()
MODULES = ('conformal', 'diversity', 'losses', 'metrics', 'prior_networks', 'uncertainty')


def anchors(page: Path) -> set[str]:
  """Names of the headings of a page, as code-hosting sites and Sphinx form them."""
  text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.S | re.M)
  names = (re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in re.findall(r'^#+ (.*)$', text, re.M))
  return set(names)


def test_every_page_is_in_one_toctree():
  found = re.findall(r'^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)```', (DOCS / 'index.md').read_text(), re.S | re.M)
  listed = [name for block in found for name in block.split()]
  assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != 'index')


@pytest.mark.parametrize('page', [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *PAGES], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
  text = re.sub(r'^```(?!\{).*?^```$', '', page.read_text(), flags=re.S | re.M)
  links = re.findall(r'\]\(([^)\s]+)\)|^```\{include\} (.*)$', text, re.M)
  for link in (link or include for link, include in links):
    if re.match(r'https?://', link):
      continue
    file, _, anchor = link.partition('#')
    target = page.parent / file if file else page
    assert target.is_file(), link
    assert ROOT in target.resolve().parents, link
    assert not anchor or anchor in anchors(target), link


def test_what_is_public_is_in_the_api_reference():
  public = set(hydra_jax.__all__) - set(MODULES)
  for name in MODULES:
    module = getattr(hydra_jax, name)
    own = (key for key, value in vars(module).items() if getattr(value, '__module__', None) == module.__name__)
    public |= {f'{name}.{key}' for key in own if not key.startswith('_')}
  assert {name for name in hydra_jax.__all__ if inspect.ismodule(getattr(hydra_jax, name))} == set(MODULES)
  assert sorted(re.findall(r'^\.\. auto(?:function|class):: hydra_jax\.(\S+)$', API, re.M)) == sorted(public)


def test_pages_that_are_written_are_up_to_date():
  for name, text in readme.WRITTEN.items():
    assert (DOCS / name).read_text() == text(), f'{name}: run python -m experiments.readme'


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 200


def test_cells_stand_in_pages_that_are_executed():
  for page in PAGES:
    text = page.read_text()
    assert ('```{code-cell}' in text) == text.startswith('---\nfile_format: mystnb\n'), page.name


def test_one_version():
  version = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']
  assert hydra_jax.__version__ == version
  assert f'\nversion: {version}\n' in (ROOT / 'CITATION.cff').read_text()
  assert f'\n## [{version}] - ' in (ROOT / 'CHANGELOG.md').read_text()
