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
os.environ['TTY_COMPATIBLE'] = '0'  # or rich, in a command of a cell, would write for a terminal
nb_execution_mode = 'force'
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_render_markdown_format = 'myst'
nb_kernel_rgx_aliases = {'.*': 'python3'}

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
suppress_warnings = ['myst.header']  # results begin with headings of the third level

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
html_static_path, html_css_files = ['_static'], ['site.css']


def to_pages(app, name, source):
  """Links to results lead to the page that has all of them; files that are no pages are downloaded."""
  text = re.sub(r'\]\(\.\./experiments/results/([\w-]+)(/(table|README))?\.md\)', r'](#of-\1)', source[0])
  source[0] = re.sub(r'\]\((\.\./[^)#]+\.md)\)', r'](path:\1)', text)


def as_text(app, kind, name, thing, options, lines):
  """A bar in a docstring is a bar: in reStructuredText it would begin a substitution."""
  lines[:] = [re.sub(r'(`[^`]*`)|\|', lambda m: m[1] or r'\|', line) for line in lines]


def left_out(app, kind, name, thing, skip, options):
  """Fields that the class already lists, and what scikit-learn adds to every estimator."""
  listed = type(thing).__name__ in ('_tuplegetter', 'member_descriptor')
  return True if listed or re.fullmatch(r'set_\w+_request|get_metadata_routing', name) else None


def setup(app):
  app.connect('source-read', to_pages)
  app.connect('autodoc-process-docstring', as_text)
  app.connect('autodoc-skip-member', left_out)
