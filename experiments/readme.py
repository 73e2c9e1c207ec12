"""Writes what the README and the pages of `docs/` take from results and from the code, so that both have the same.

    python -m experiments.readme

A line `<!-- table: FILE -->` or `<!-- table: FILE, TITLE -->` stands above each table of results, and an empty line
below it. The table is the one below the heading TITLE in FILE, or the first one in FILE. A line `<!-- methods -->`
stands above the table of methods. `docs/settings.md` and `docs/command_line.md` are written as a whole.
"""

import argparse
from pathlib import Path
import re

from hydra_jax import cli
from hydra_jax.experiment import schema
from hydra_jax.methods.registry import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
MARKER = re.compile(r'<!-- table: (?P<file>[^,>]+?)(, (?P<title>.+?))? -->\n(?P<table>(\|.*\n)*)')
OF_METHODS = re.compile(r'<!-- methods -->\n(?P<table>(\|.*\n)*)')


def table(file: str, title: str | None) -> str:
  """The lines of a table in a Markdown file."""
  text = (ROOT / file).read_text()
  if title is not None:
    _, found, text = text.partition(f'### {title}\n')
    if not found:
      raise ValueError(f"{file} has no heading '### {title}'")
  return re.search(r'(^\|.*\n)+', text, re.M)[0]


def methods() -> str:
  """A row for each method: its name, the first line of its docstring, and what it learns from."""
  rows = ['| name | what | learns from | heads are spread | settings |', '| --- | --- | --- | --- | --- |']
  for name, method in METHODS.items():
    what = method.phases.__doc__.splitlines()[0]
    settings = '' if name == 'ensemble' else f'[settings](settings.md#configstudent{name})'
    spread = 'yes' if method.matched else ''
    rows.append(f'| `{name}` | {what} | {method.learns_from} | {spread} | {settings} |')
  return '\n'.join(rows) + '\n'


def refreshed(text: str) -> str:
  """A page with each table as its file, or the code, has it now."""
  text = MARKER.sub(lambda m: m[0].removesuffix(m['table']) + table(m['file'], m['title']), text)
  return OF_METHODS.sub(lambda m: m[0].removesuffix(m['table']) + methods(), text)


def command_line() -> str:
  """All commands with their arguments, from the parser, as Markdown."""
  parser = cli.parser()
  (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
  helps = {choice.dest: choice.help for choice in commands._choices_actions}
  parts = [COMMAND_LINE]
  for name, command in commands.choices.items():
    actions = [action for action in command._actions if action.dest != 'help']
    usage = ' '.join(['hydra-jax', name, *(_in_usage(action) for action in actions if action.dest != 'debug')])
    rows = ''.join(f'| `{_written(action)}` | {_meaning(action)} |\n' for action in actions)
    end = '\n' + re.sub(r'(--\S+)', r'`\1`', command.epilog) + '.\n' if command.epilog else ''
    parts.append(
      f'## {name}\n\n{_sentence(helps[name])}\n\n    {usage}\n\n| argument | meaning |\n| --- | --- |\n{rows}{end}'
    )
  return '\n'.join(parts)


def _written(action: argparse.Action) -> str:
  value = '' if action.nargs == 0 else action.metavar or action.dest.upper()
  return f'{action.option_strings[0]} {value}'.strip() if action.option_strings else value


def _in_usage(action: argparse.Action) -> str:
  shown = f'{_written(action)} …' if action.nargs == '+' else _written(action)
  return shown if action.required else f'[{shown}]'


def _meaning(action: argparse.Action) -> str:
  return _sentence(action.help) + (' Required.' if action.option_strings and action.required else '')


def _sentence(text: str) -> str:
  return f'{text[0].upper()}{text[1:]}.'.replace('<', '&lt;')


COMMAND_LINE = """\
# Command line

Written by `python -m experiments.readme` from the parser. `hydra-jax COMMAND --help` prints the same. Square brackets
mark what may be left out. [Exit codes](exit_codes.md) says how a command ends.

    hydra-jax --version
"""


def pages() -> list[Path]:
  """The README and the pages that are written by hand."""
  return [ROOT / 'README.md', *sorted(set(DOCS.glob('*.md')) - set(map(DOCS.joinpath, WRITTEN)))]


# Pages that are written as a whole.
WRITTEN = {'settings.md': schema.document, 'command_line.md': command_line}


if __name__ == '__main__':
  for page in pages():
    page.write_text(refreshed(page.read_text()))
  for name, text in WRITTEN.items():
    (DOCS / name).write_text(text())
