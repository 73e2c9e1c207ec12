"""What a person sees of work that goes on: on terminals of any width, in a log, and after a resume."""

import io
import logging

import pytest
from rich.console import Console

from hydra_jax import progress
from hydra_jax.progress import Pace, fitted, lasting

LONG = 'latent_batch_ensemble: members, replicas 1-5'
PARTS = ('loss 0.0001370', '9,492,094 examples/s', 'waits for data 12%')


@pytest.mark.parametrize('width', [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize('label', ['kd', LONG])
def test_a_line_fits_and_has_what_there_is_room_for(width, label):
  shown, bar, text = fitted(width, label, '0:12:34 left', PARTS)
  assert len(shown) + 1 + bar + 1 + 4 + 1 + len(text) <= max(width, 28) and bar >= (8 if width >= 40 else 1)
  assert text.endswith('0:12:34 left') and shown[:2] == label[:2] and len(shown) <= max(24, width // 3)
  assert [part in text for part in PARTS] == sorted((part in text for part in PARTS), reverse=True)
  assert ('loss' in text) == (width >= 80) and ('waits' in text) == (width >= (200 if label == LONG else 120))
  assert shown.rstrip()[-1] == label[-1]


@pytest.mark.parametrize('width', [60, 80, 120, 200])
@pytest.mark.parametrize('colour', [True, False])
def test_a_terminal_shows_whole_lines(width, colour, monkeypatch):
  file = io.StringIO()
  console = Console(file=file, force_terminal=True, width=width, no_color=not colour, legacy_windows=False)
  monkeypatch.setattr(progress, 'console', console)
  with progress.bar(LONG, 1000, 100) as advance:
    for done in (600, 610, 1000):
      advance(done, 0.5)
  lines = file.getvalue().split('\n')
  last = Console(width=width).render_str  # without codes
  plain = [last(each.split('\r')[-1]).plain for each in lines]
  shown = [each for each in plain if '100%' in each][-1]
  assert '…' not in shown.replace(shown.split('…')[0] + '…', '', 1) and 'loss 0.5' in shown and '━' in shown


def test_rate_and_time_left_are_those_after_a_resume():
  """600 steps were made before; the first report comes after 50 s of compilation."""
  times = iter([0.0, 50.0, 54.0, 59.0])
  pace = Pace(1000, lambda: next(times))
  pace.report(600)
  assert pace.rate == 0 and pace.left(600) == ''
  pace.report(640)
  assert pace.rate == 10 and pace.left(640) == '36 s left'
  assert pace.left(1000) == '59 s'


def test_times_are_read_at_a_glance():
  assert [lasting(s) for s in (0.04, 9.96, 119, 120, 3599.7, 90000)] == [
    '0.0 s', '10.0 s', '119 s', '0:02:00', '1:00:00', '25:00:00'
  ]  # fmt: skip


def test_lines_of_a_log_are_sentences(monkeypatch, caplog):
  caplog.set_level(logging.INFO, 'hydra_jax')
  monkeypatch.setattr(progress, 'console', Console(file=io.StringIO()))
  monkeypatch.setattr(progress, 'SECONDS_BETWEEN_LINES', -1.0)
  with progress.bar('kd: evaluation', 2, unit='sets') as advance:
    advance(1)
    advance(2, 0.5)
  first, last = caplog.messages
  assert (
    first == 'kd: evaluation: 1/2' and last.startswith('kd: evaluation: 2/2 loss 0.5') and ', done in 0.0 s' in last
  )
