"""Every key of a config: its value, its default, what is legal, and what it means."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict
from rich import box
from rich.table import Table

from hydra_jax.experiment import config as configs, schema
from hydra_jax.progress import console
from hydra_jax.settings import short


@dataclass(frozen=True)
class Entry:
  """A key of a config.

  Attributes:
    section: Dotted name; '' for what belongs to none.
    key: Name in the section.
    value: As it is set.
    default: What it is without a config file, or None where there is no default.
    legal: Which values are legal.
    meaning: In a sentence.
  """

  section: str
  key: str
  value: Any
  default: Any
  legal: str
  meaning: str

  @property
  def is_changed(self) -> bool:
    """Whether the value is another one than the default."""
    return self.default is not None and self.value != self.default


def entries(config: ConfigDict) -> Iterator[Entry]:
  """All keys of a config, but for students that are not trained.

  Args:
    config: Checked, see `config.check_values`.

  Example:
    >>> config = schema.default_config()
    >>> config.training.epochs = 5.0
    >>> [(entry.section, entry.key, entry.default) for entry in entries(config) if entry.is_changed]
    [('training', 'epochs', 20.0)]
  """
  plain = schema.default_config()
  first = dict(configs.leaves(plain))
  for path, value in configs.leaves(config):
    section, _, key = path.rpartition('.')
    words = section.split('.')
    if words[0] == 'student' and words[1] not in config.students:
      continue
    known = {} if 'network' in words else schema.keys_of(config, section)
    if key in known:
      default, rule, meaning = known[key]
      yield Entry(section, key, value, first.get(path, default), rule.meaning, meaning)
    else:
      yield Entry(section, key, value, first.get(path), '', 'Name of the network.' if key == 'name' else '')


def show(config: ConfigDict) -> None:
  """Prints a table for each section. A value that is not the default is followed by it."""
  shown: dict[str, Table] = {}
  for entry in entries(config):
    title = f'config.{entry.section}'.rstrip('.')
    if title not in shown:
      shown[title] = Table('key', 'value', 'legal', 'meaning', box=box.SIMPLE_HEAD, title=title, title_justify='left')
    value = short(entry.value) + f' (default {short(entry.default)})' * entry.is_changed
    shown[title].add_row(entry.key, value, entry.legal, entry.meaning)
  for table in shown.values():
    console.print(table)
