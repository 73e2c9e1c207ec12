"""How Sphinx builds the documentation: `sphinx-build -W --keep-going -b html docs FOLDER`."""

import os
from pathlib import Path
import re
import sys
import tomllib


ROOT = Path(__file__).parents[1]
about = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']

project, author = about['name'], about['authors'][0]['name']
project_copyright = f'{author}, Apache License 2.0'
version = release = about['version']

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
smartquotes = False  # -- begins an option, and is no dash
exclude_patterns = ['_build', '**/.ipynb_checkpoints']

# Pages with cells are executed at each build. `hydra-jax` is the one of this environment.
os.environ['PATH'] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')])
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]).strip(os.pathsep)
nb_execution_mode = 'force'
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_kernel_rgx_aliases = {'.*': 'python3'}

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_preserve_defaults = True
napoleon_google_docstring, napoleon_numpy_docstring, napoleon_use_ivar = True, False, True
default_role = 'code'  # docstrings write `code` as Markdown does
maximum_signature_line_length = 80

html_theme = 'sphinx_book_theme'
html_title = f'hydra_jax {version}'
html_theme_options = {'use_download_button': False, 'show_toc_level': 2, 'home_page_in_toc': True}
html_show_sourcelink = False


def as_text(app, kind, name, thing, options, lines):
  """A bar in a docstring is a bar: in reStructuredText it would begin a substitution."""
  lines[:] = [re.sub(r'(`[^`]*`)|\|', lambda m: m[1] or r'\|', line) for line in lines]


def left_out(app, kind, name, thing, skip, options):
  """Fields that the class already lists, and what scikit-learn adds to every estimator."""
  listed = type(thing).__name__ in ('_tuplegetter', 'member_descriptor')
  return True if listed or re.fullmatch(r'set_\w+_request|get_metadata_routing', name) else None


def setup(app):
  app.connect('autodoc-process-docstring', as_text)
  app.connect('autodoc-skip-member', left_out)
