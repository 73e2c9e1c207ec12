"""Copies tables of results into the README, so that both have the same numbers, and writes `docs/settings.md`.

    python -m experiments.readme

In the README a line `<!-- table: FILE -->` or `<!-- table: FILE, TITLE -->` stands above each table of results, and an
empty line below it. The table is the one below the heading TITLE in FILE, or the first one in FILE.
"""

from pathlib import Path
import re

from hydra_jax.experiment import schema

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r'<!-- table: (?P<file>[^,>]+?)(, (?P<title>.+?))? -->\n(?P<table>(\|.*\n)*)')


def table(file: str, title: str | None) -> str:
  """The lines of a table in a Markdown file."""
  text = (ROOT / file).read_text()
  if title is not None:
    _, found, text = text.partition(f'### {title}\n')
    if not found:
      raise ValueError(f"{file} has no heading '### {title}'")
  return re.search(r'(^\|.*\n)+', text, re.M)[0]


def refreshed(text: str) -> str:
  """The text of the README with each table as its file has it now."""
  return MARKER.sub(lambda m: m[0].removesuffix(m['table']) + table(m['file'], m['title']), text)


if __name__ == '__main__':
  readme = ROOT / 'README.md'
  readme.write_text(refreshed(readme.read_text()))
  (ROOT / 'docs' / 'settings.md').write_text(schema.document())
