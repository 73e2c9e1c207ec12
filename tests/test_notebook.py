"""A progress bar in a notebook: one output that is updated, without widgets."""

import re
import sys
import types

from hydra_jax import progress


def shown_in(monkeypatch) -> list[str]:
  """What a cell shows, with a stand-in for IPython's display handle."""
  outputs: list[str] = []

  class Handle:
    def update(self, page):
      outputs[-1] = page

  def display(page, display_id):
    assert display_id
    outputs.append(page)
    return Handle()

  module = types.ModuleType('IPython.display')
  module.HTML, module.display = str, display
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setitem(sys.modules, 'IPython.display', module)
  monkeypatch.setattr(progress.console, 'is_jupyter', True)
  return outputs


def test_a_bar_is_one_output_that_grows(monkeypatch):
  outputs = shown_in(monkeypatch)
  with progress.bar('student <1>', 200, 10) as advance:
    assert 'value="0" max="200"' in outputs[0]
    advance(50, 0.5)
    assert 'value="50" max="200"' in outputs[0] and '25%' in outputs[0] and 'loss 0.5' in outputs[0]
    assert ' left' not in outputs[0]  # it may have begun at any step
    advance(60, 0.5)
    assert re.search(r'\d+ s left', outputs[0])
    advance(200, 0.25)
  assert len(outputs) == 1 and '100%' in outputs[0] and 'student &lt;1&gt;' in outputs[0] and ' left' not in outputs[0]


def test_a_bar_is_full_where_training_stops_early(monkeypatch):
  outputs = shown_in(monkeypatch)
  with progress.bar('ensemble', 200) as advance:
    advance(50)
  assert 'value="50" max="50"' in outputs[0] and '100%' in outputs[0]
