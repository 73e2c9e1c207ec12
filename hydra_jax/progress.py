"""Telling the user: progress bars on a terminal and in a notebook, plain lines elsewhere.

The package logs to `logging.getLogger('hydra_jax')`: INFO for what was done or assumed, WARNING for what may be wrong.
Nothing is set up on import. The command line shows both on the console. Elsewhere Python's rules hold: warnings are
shown, and `logging.basicConfig(level=logging.INFO)` shows the rest.
"""

from collections.abc import Callable, Iterator
import contextlib
import html
import logging
import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hydra_jax.formats import digits

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

# Where output goes to a file, there is no terminal to fit, unless the user says how wide it is.
FITS = sys.stdout.isatty() or 'COLUMNS' in os.environ
console = Console(width=None if FITS else 160, highlight=False, soft_wrap=not sys.stdout.isatty())


class ConsoleHandler(logging.Handler):
  """Prints each record as a line on the console, above any progress bar.

  Attributes:
    held: Records that are kept back, see `held_back`; None where they are printed at once.
  """

  held: list[logging.LogRecord] | None = None

  def emit(self, record: logging.LogRecord) -> None:
    """Errors of printing, such as a full disk, go to the caller."""
    if self.held is None:
      console.print(self.format(record), markup=False)
    else:
      self.held.append(record)


handler = ConsoleHandler()


@contextlib.contextmanager
def lines_on_console() -> Iterator[None]:
  """Inside, what the package logs is shown on the console, and nowhere else."""
  package = logging.getLogger('hydra_jax')
  level, propagates = package.level, package.propagate
  package.addHandler(handler)
  package.setLevel(logging.INFO)
  package.propagate = False
  try:
    yield
  finally:
    package.removeHandler(handler)
    package.setLevel(level)
    package.propagate = propagates


@contextlib.contextmanager
def held_back() -> Iterator[list[logging.LogRecord]]:
  """Inside, records are collected and not printed; `handler.emit` prints them later."""
  records: list[logging.LogRecord] = []
  handler.held = records
  try:
    yield records
  finally:
    handler.held = None


@contextlib.contextmanager
def bar(label: str, total: int, per_step: int = 1, unit: str = 'examples') -> Iterator[Callable[..., None]]:
  """Yields `advance(done, loss=None, note='')` for work of `total` steps of `per_step` examples each."""
  started, first = time.monotonic(), None

  def describe(done, loss, note):
    nonlocal first
    first = done if first is None else first
    rate = (done - first) * per_step / max(time.monotonic() - started, 1e-9)
    texts = (loss is not None and f'loss {digits(loss)}', rate and f'{rate:,.0f} {unit}/s', note)
    return ' '.join(text for text in texts if text)

  if console.is_jupyter:
    with _in_notebook(label, total) as update:
      yield lambda done, loss=None, note='': update(done, describe(done, loss, note))
    return
  if console.is_terminal:
    columns = (
      TextColumn('{task.description:<24}'),
      BarColumn(),
      TextColumn('{task.percentage:>3.0f}%'),
      TextColumn('{task.fields[note]}'),
      TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as display:
      row = display.add_task(label, total=total, note='')
      yield lambda done, loss=None, note='': display.update(row, completed=done, note=describe(done, loss, note))
    return

  spoke = started

  def advance(done, loss=None, note=''):
    nonlocal spoke
    text = describe(done, loss, note)
    if done >= total or time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
      spoke = time.monotonic()
      left = (spoke - started) * (total - done) / max(done - first, 1)
      ending = f'done in {spoke - started:.1f} s' if done >= total else f'{left:.0f} s left'
      logger.info(f'{label}: {done}/{total} {text}, {ending}')

  yield advance


@contextlib.contextmanager
def _in_notebook(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
  """Yields `update(done, text)` of a bar in the output of a cell. It needs no widgets, which rich and tqdm do."""
  from IPython.display import HTML, display

  started, last = time.monotonic(), (0, '')

  def page(done: int, text: str) -> HTML:
    seconds = time.monotonic() - started
    left = f'{seconds:.1f} s' if done >= total else f'{seconds * (total - done) / done:.0f} s left' if done else ''
    bar = f'<progress value="{done}" max="{total}"></progress>'
    return HTML(f'<code>{html.escape(label)} {bar} {done / total:4.0%} {html.escape(text)} {left}</code>')

  shown = display(page(*last), display_id=True)

  def update(done: int, text: str) -> None:
    nonlocal last
    last = done, text
    shown.update(page(done, text))

  yield update
  if last[0] < total:  # it has stopped early
    total = max(last[0], 1)
    shown.update(page(*last))
