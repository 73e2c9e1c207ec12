"""The page of a run: what it says is true, it needs nothing but itself, and it shows what it is given as text."""

import base64
from html.parser import HTMLParser
import io
import re

import numpy as np
from PIL import Image
import pytest

from hydra_jax.data import Split
from hydra_jax.maths.statistics import Estimate, estimate
from hydra_jax.maths.tasks import TASKS
from hydra_jax.report import dots, page, verdict
from hydra_jax.report.tables import Column, Table

TASK = TASKS['classification']
# Three replicas of three methods.
VALUES = {
  'ensemble': {'accuracy': [0.90, 0.91, 0.92], 'nll': [0.30, 0.31, 0.32], 'ece': [0.04, 0.05, 0.03]},
  'single': {'accuracy': [0.85, 0.86, 0.87], 'nll': [0.50, 0.512, 0.518], 'ece': [0.08, 0.07, 0.09]},
  'hydra': {'accuracy': [0.90, 0.91, 0.92], 'nll': [0.35, 0.361, 0.369], 'ece': [0.03, 0.06, 0.03]},
}
OURS = {
  'uncertainty_epistemic': [0.1] * 3,
  'uncertainty_epistemic_ratio': [0.9, 1.0, 1.1],
  'rank_correlation': [0.8] * 3,
}


def found(replicas=3, values=VALUES):
  rows = [
    {'split': 'test', 'method': m, 'replica': r, 'metric': metric, 'value': value}
    for m, metrics in values.items()
    for metric, each in (metrics | (OURS if m == 'hydra' else {})).items()
    for r, value in enumerate(each[:replicas])
  ]
  for method, size, area in (('ensemble', 100.0, 0.8), ('single', 10.0, 0.5), ('hydra', 20.0, 0.7)):
    rows.append({'split': 'cost', 'method': method, 'replica': 0, 'metric': 'parameters', 'value': size})
    rows.append(
      {'split': 'far', 'method': method, 'replica': 0, 'metric': 'auroc_uncertainty_epistemic', 'value': area}
    )
  return verdict.results_of(rows)


def test_the_verdict_says_what_the_numbers_say():
  assert verdict.sentences(found(), TASK, 'hydra', ['far']) == [
    'On the test set, accuracy: ensemble 0.910, hydra 0.910, single 0.860; NLL: ensemble 0.310, hydra 0.360, single '
    '0.510.',
    'Of the NLL that the ensemble gains over one network, hydra keeps 75%.',
    'Mean model uncertainty of hydra on the test set: 100% of that of the ensemble. Rank correlation of both over the '
    'inputs: 0.80, where 1 means that they order inputs alike.',
    'AUROC of far against the test set, by model uncertainty: hydra 0.700, ensemble 0.800.',
    'Cost of hydra: parameters 0.20 × the ensemble, 2.0 × one network.',
    'hydra is worse than ensemble in NLL (by 0.050).',
    'Differences count where p < .05 in a paired t-test over 3 replicas, not corrected for the number of tests.',
  ]  # fmt: skip


def test_a_difference_within_the_error_is_none():
  """ECE of Hydra is the same in the mean, and its accuracy in each replica; its NLL differs by more than chance."""
  values = {**VALUES, 'hydra': {**VALUES['hydra'], 'nll': [0.30, 0.35, 0.29]}}
  said = verdict.sentences(found(values=values), TASK, 'hydra', [])
  assert 'hydra is worse than no other method in any score of the table.' in said


def test_without_error_bars_small_differences_are_none():
  values = {**VALUES, 'hydra': {'accuracy': [0.899], 'nll': [0.301], 'ece': [0.05]}}
  said = verdict.sentences(found(1, values), TASK, 'hydra', [])
  assert 'hydra is worse than ensemble in ECE (by 0.010).' in said
  assert said[-1].startswith('There is one replica, and so no error bar')


def test_a_student_may_be_worse_than_one_network():
  values = {**VALUES, 'hydra': {**VALUES['hydra'], 'nll': [0.6, 0.61, 0.62]}}
  said = verdict.sentences(found(values=values), TASK, 'hydra', [])
  assert 'The ensemble has a lower NLL than one network. hydra has a higher NLL than one network.' in said
  values = {**VALUES, 'ensemble': {**VALUES['ensemble'], 'nll': [0.7, 0.71, 0.72]}}
  assert 'The ensemble gains no NLL over one network that is more than chance.' in verdict.sentences(
    found(values=values), TASK, 'hydra', []
  )


class Reader(HTMLParser):
  """Elements in order, and whether each that is opened is closed."""

  VOID = {'meta', 'img', 'link', 'br', '!doctype'}

  def __init__(self, text):
    super().__init__()
    self.elements, self.open, self.text = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_the_page_needs_nothing_but_itself_and_shows_text_as_text(random):
  x, y = random.integers(17, size=(30, 8, 8, 1), dtype=np.uint8), random.integers(3, size=30)
  scores = [{name: random.random(30) for name in SHOWN} for _ in range(2)]
  evil = '<script>alert(1)</script>'
  text = page.html(
    page.Page(
      title=evil,
      about=evil,
      heading='Verdict',
      verdict=[evil],
      tables=[Table(['NLL ↓'], [(evil, [('0.1', '1.0×')])], f'`{evil}`')],
      notes=[evil],
      scores=dots.panels({('test', evil, 'nll'): estimate([0.1, 0.2])}, [Column('test', 'nll', evil)], {evil: evil}),
      inputs=page.inputs_of(Split(x, y), 'hydra', *scores, ('one', evil, 'three')),
      parts=[page.Part(title=evil, verdict=[evil], scores=[], figures=[])],
      code=('Load', evil),
      configs=[page.Config(title=evil, changes=[(evil, '1', '2')])],
      versions={'jax': evil},
    )
  )
  found = Reader(text)
  needs_nothing(text)
  assert [tag for tag, _ in found.elements].count('img') == 3 * page.MOST_INPUTS
  assert sum(evil in each for each in found.text) >= 12


SHOWN = ('nll', 'uncertainty_epistemic', 'uncertainty_total', 'correct')


def needs_nothing(text):
  """A page has no address but its own parts, and says in words what it shows."""
  found = Reader(text)
  places = {attributes['id'] for _, attributes in found.elements if 'id' in attributes}
  for tag, attributes in found.elements:
    assert tag not in ('script', 'link', 'iframe', 'object')
    assert attributes.get('src', 'data:').startswith('data:')
    address = attributes.get('href', '#verdict')
    assert address[0] == '#' and address[1:] in places
    assert tag != 'img' or attributes['alt']
    assert attributes.get('role') not in ('img', 'region') or attributes['aria-label']
  assert 'url(' not in text and '@import' not in text and len(text) < 3 * 2**20
  for each in re.findall('src="data:image/svg[^,]*,([^"]*)"', text):
    drawn = base64.b64decode(each).decode()
    assert not re.search('(href|src)="(?!#|data:)|url\\((?!#)|<script', drawn)


def test_tables_that_are_too_wide_come_in_parts():
  headings = [f'{"a" * 30} {i}' for i in range(9)]
  table = Table(headings, [('kd', [(str(i), '') for i in range(9)])], 'A title', 'A note.')
  parts = page.in_parts(table)
  assert len(parts) > 1 and [h for part in parts for h in part.headings] == headings
  assert [part.title for part in parts] == ['A title'] + [''] * (len(parts) - 1)
  assert [text for part in parts for text, _ in part.body[0][1]] == [str(i) for i in range(9)]


def test_scores_are_drawn_where_they_are():
  """The ends of the axis are the ends of the bars, and what is published is hollow."""
  values = {('test', name, 'nll'): Estimate(mean, 0.5, 3) for name, mean in (('a', 1.5), ('b', 3.0))}
  values['test', 'c', 'nll'] = Estimate(np.inf, np.nan, 1)
  labels = {name: name.upper() for name in 'abc'}
  columns = [Column('test', 'nll', 'NLL', 'low'), Column('test', 'none has it', 'ECE')]
  (panel,) = dots.panels(values, columns, labels, {('test', 'b', 'nll'): (2.0, np.nan)})
  published, a, b = panel.dots
  assert published.is_published and published.y == b.y and published.low == published.high == published.x
  assert a.low < a.x < a.high and b.high > b.x > a.x and panel.reference == a.x
  assert (published.x - a.x) / (b.x - a.x) == pytest.approx(1 / 3, abs=0.01)
  assert [name for _, name in panel.names] == ['A', 'B', 'C'] and 'B, published, 2.000' in panel.text
  assert {text for _, text in panel.ticks} >= {'1', '2', '3'} and panel.title == ['NLL ↓']


def test_figures_of_a_page_fit_its_budget(tmp_path, monkeypatch, random, caplog):
  """As they are; then in fewer colours; and then some are left out."""
  noise = random.integers(256, size=(60, 90, 3), dtype=np.uint8)
  for name in ('a-reliability', 'b-reliability', 'b-shifts'):
    Image.fromarray(noise).save(tmp_path / f'{name}.png')
  of = lambda: page.figures_in(tmp_path, ['a-', 'b-', 'c-'])
  whole = of()
  sizes = [sum(len(each.source) for group in found for each in group) for found in (whole,)]
  assert [len(group) for group in whole] == [1, 2, 0] and whole[0][0].title == 'Reliability'
  monkeypatch.setattr(page, 'BUDGET', sizes[0] - 1)
  fewer = of()
  assert [len(group) for group in fewer] == [1, 2, 0] and len(fewer[0][0].source) < len(whole[0][0].source) / 2
  monkeypatch.setattr(page, 'BUDGET', len(fewer[0][0].source) + 1)
  assert not caplog.records
  assert [len(group) for group in of()] in ([1, 0, 0], [0, 1, 0])
  (said,) = caplog.messages
  assert said.endswith(f': 2; see {tmp_path}')


def test_the_inputs_are_those_that_differ_most(random):
  images, y = random.normal(size=(50, 6, 5, 3)), np.arange(50)
  ours, theirs = ({name: random.random(50) * 5 for name in SHOWN} for _ in range(2))
  ours['nll'][7] = np.inf  # which cannot be shown as the largest: others would be hidden behind it
  groups = page.inputs_of(Split(images, y), 'hydra', ours, theirs)
  order = np.argsort(ours['uncertainty_total'])
  for group, chosen in zip(groups[1:], (order[::-1], order)):
    assert [each.number for each in group.shown] == chosen[: page.MOST_INPUTS].tolist()
  assert [group.heading for group in groups] == [
    'Where hydra and the ensemble differ most',
    'Of what hydra is least certain',
    'Of what hydra is most certain',
  ]
  shown = groups[0].shown
  gap = np.abs(ours['nll'] - theirs['nll'])
  gap[7] = 0
  assert [each.number for each in shown] == np.argsort(-gap)[: page.MOST_INPUTS].tolist()
  assert [each.label for each in shown] == [str(each.number) for each in shown]
  for each in shown:
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(each.png))), float)
    assert picture.shape == (6, 5, 3)
    assert np.corrcoef(picture.ravel(), images[each.number].ravel())[0, 1] > 0.999


def test_rows_of_numbers_are_shown_as_numbers():
  both = lambda k: {'nll': np.float32([1.0, 3.0]) * k, 'uncertainty_epistemic': np.float32([0.5, 0.25])}
  scores = [both(k) | {'uncertainty_total': np.float32([1.5, 2.5])} for k in (1, 2)]
  groups = page.inputs_of(Split(np.arange(20.0).reshape(2, 10), np.array([[1.5], [2.5]])), 'hydra', *scores)
  shown = groups[0].shown
  assert groups[1].shown[0].said == ['total 2.5', 'model 0.25']
  assert shown[0].number == 1 and shown[0].values == '10, 11, 12, 13, 14, 15, …'
  assert shown[0].label == '2.500' and shown[0].png == ''
  assert shown[0].said == ['ensemble 6.00 (0.25)', 'hydra 3.00 (0.25)']


@pytest.mark.slow
def test_the_page_of_a_run(tiny_run):
  text = (tiny_run[0] / 'report.html').read_text()
  found = Reader(text)
  said = ''.join(found.text)
  for heading in (
    'What hydra kept',
    'Comparison',
    'Reliability',
    'Losses in training',
    'Load and predict',
    'teacher.members',
  ):
    assert heading in said, heading
  needs_nothing(text)
  pictures = [attributes for tag, attributes in found.elements if tag == 'img']
  drawn = {kind: sorted(file.stem for file in (tiny_run[0] / 'figures').glob(f'*.{kind}')) for kind in ('png', 'svg')}
  assert drawn['png'] == drawn['svg'] and 'cost' in drawn['svg']
  assert len(pictures) == len(drawn['png']) + 3 * page.MOST_INPUTS
  assert sum('svg+xml' in each['src'] for each in pictures) == len(drawn['svg']) and '/report.html' not in said


def test_dark_pages_invert_figures_but_those_with_a_scale(tmp_path):
  """White becomes the colour of the page. What captions call bright stays bright; print stays as drawn."""
  for name in ('reliability', 'heads_against_members', 'plane'):
    Image.new('RGB', (9, 9)).save(tmp_path / f'{name}.png')
  (found,) = page.figures_in(tmp_path, [''])
  assert {each.title for each in found if each.is_scale} == {page.CAPTIONS[name][0] for name in page.SCALES}
  nothing: dict = dict(about='', heading='', verdict=[], tables=[], code=('', ''), configs=[], versions={})
  text = page.html(page.Page(title='a', figures=found, **nothing))
  boxes = re.findall('<div class="(wide[^"]*)".*?aria-label="([^"]*)"', text)
  assert {title for box, title in boxes if box == 'wide scale'} == {each.title for each in found if each.is_scale}
  rules = re.search(r'@media screen and \(prefers-color-scheme: dark\) \{(.*?)\n\}', text, re.DOTALL)[1]
  share = float(re.search(r'figure img \{ filter: invert\(([\d.]+)\) hue-rotate\(180deg\)', rules)[1])
  dark = re.search(r'prefers-color-scheme: dark\) \{\s*:root \{ --back: #(\w\w)\1\1', text)[1]
  assert round(255 * (1 - share)) == int(dark, 16) and 'figure .scale img { filter: brightness' in rules
