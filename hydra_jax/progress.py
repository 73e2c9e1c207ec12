"""Telling the user: progress bars on a terminal and in a notebook, plain lines elsewhere.

The package logs to `logging.getLogger('hydra_jax')`: INFO for what was done or assumed, WARNING for what may be wrong.
Nothing is set up on import. The command line shows both on the console. Elsewhere Python's rules hold: warnings are
shown, and `logging.basicConfig(level=logging.INFO)` shows the rest.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import html
import logging
import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from hydra_jax.formats import digits

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
LEAST_BAR, MOST_BAR = 8, 40  # columns of a terminal

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


class Pace:
  """How fast some work goes, and how long it still takes.

  Both are counted from the first report on. What is before it is no measure: compilation, and steps that were made
  before the work was interrupted.

  Args:
    total: Steps of the work.
    clock: Gives the time, in seconds.
  """

  def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
    """The work begins."""
    self.total, self.clock, self.started = total, clock, clock()
    self._first: tuple[int, float] | None = None
    self.rate = 0.0  # steps a second; 0 is unknown

  def report(self, done: int) -> None:
    """Takes note of the number of steps that are done."""
    now = self.clock()
    first, since = self._first = self._first or (done, now)
    self.rate = (done - first) / max(now - since, 1e-9)

  def left(self, done: int) -> str:
    """The time that is left, or that all has taken; '' where it is unknown."""
    if done >= self.total:
      return lasting(self.clock() - self.started)
    return f'{lasting((self.total - done) / self.rate)} left' if self.rate else ''


def lasting(seconds: float) -> str:
  """A time to read.

  Example:
    >>> lasting(7.25), lasting(80), lasting(7380)
    ('7.2 s', '80 s', '2:03:00')
  """
  if seconds < 120:
    return f'{seconds:.1f} s' if seconds < 10 else f'{seconds:.0f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes // 60}:{minutes % 60:02}:{rest:02}'


def fitted(width: int, label: str, left: str, others: Sequence[str]) -> tuple[str, int, str]:
  """What a line of a terminal holds: the label, the width of the bar, and a text behind the percentage.

  Args:
    width: Columns of the terminal.
    label: Is cut in its middle where it takes more than a third of the line.
    left: The time that is left, at the end of the text.
    others: Other parts of the text. Those that do not fit are left out.

  Example:
    >>> fitted(40, 'ensemble of 5 networks', '9 s left', ['loss 0.5', '1,000 examples/s'])
    ('ensemb…tworks', 12, '9 s left')
  """
  most = max(width // 3, 8)
  if len(label) > most:  # both ends tell phases apart
    label = f'{label[: most // 2]}…{label[len(label) - (most - 1) // 2 :]}'
  label = label.ljust(min(most, 24))
  room = width - len(label) - len('100%') - 3 - LEAST_BAR  # columns are one space apart
  kept = [left] * bool(left)
  for part in filter(None, others):
    if len(' '.join([*kept, part])) > room:
      break
    kept.insert(len(kept) - bool(left), part)
  text = ' '.join(kept)
  return label, max(1, min(MOST_BAR, room + LEAST_BAR - len(text))), text


@contextlib.contextmanager
def bar(label: str, total: int, per_step: int = 1, unit: str = 'examples') -> Iterator[Callable[..., None]]:
  """Yields `advance(done, loss=None, note='')` for work of `total` steps of `per_step` examples each."""
  pace = Pace(total)

  def describe(done: int, loss: float | None, note: str) -> list[str]:
    pace.report(done)
    rate = pace.rate * per_step
    texts = (f'loss {digits(loss)}' if loss is not None else '', f'{rate:,.0f} {unit}/s' if rate else '', note)
    return [text for text in texts if text]

  if console.is_jupyter:
    with _in_notebook(label, pace) as update:
      yield lambda done, loss=None, note='': update(done, ' '.join(describe(done, loss, note)))
    return
  if console.is_terminal:
    drawn = BarColumn()
    columns = (
      TextColumn('{task.description}', markup=False),
      drawn,
      TextColumn('{task.percentage:>3.0f}%'),
      TextColumn('{task.fields[note]}', markup=False),
    )
    with Progress(*columns, console=console) as display:

      def show(done: int, others: Sequence[str]) -> None:
        described, drawn.bar_width, note = fitted(console.width, label, pace.left(done), others)
        display.update(row, completed=done, description=described, note=note)

      row = display.add_task('', total=total, note='')
      show(0, ())
      yield lambda done, loss=None, note='': show(done, describe(done, loss, note))
    return

  spoke = pace.started

  def advance(done, loss=None, note=''):
    nonlocal spoke
    parts = describe(done, loss, note)
    if done >= total or time.monotonic() - spoke > SECONDS_BETWEEN_LINES:
      spoke = time.monotonic()
      ending = f'done in {pace.left(done)}' if done >= total else pace.left(done)
      logger.info(', '.join(filter(None, (' '.join([f'{label}: {done}/{total}', *parts]), ending))))

  yield advance


@contextlib.contextmanager
def _in_notebook(label: str, pace: Pace) -> Iterator[Callable[[int, str], None]]:
  """Yields `update(done, text)` of a bar in the output of a cell. It needs no widgets, which rich and tqdm do."""
  from IPython.display import HTML, display

  last = (0, '')

  def page(done: int, text: str) -> HTML:
    bar = f'<progress value="{done}" max="{pace.total}"></progress>'
    said = ' '.join(filter(None, (f'{done / pace.total:4.0%}', html.escape(text), pace.left(done))))
    return HTML(f'<code>{html.escape(label)} {bar} {said}</code>')

  shown = display(page(*last), display_id=True)

  def update(done: int, text: str) -> None:
    nonlocal last
    last = done, text
    shown.update(page(done, text))

  yield update
  if last[0] < pace.total:  # it has stopped early
    pace.total = max(last[0], 1)
    shown.update(page(*last))
