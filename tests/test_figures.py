"""Figures: what is drawn, and that drawing leaves matplotlib as it was."""

import os
import subprocess
import sys

from conftest import ROOT
import matplotlib
import numpy as np
from PIL import Image
import pytest

from hydra_jax.data import Evaluation, shifts
from hydra_jax.maths.uncertainty import RANKINGS, WORDS
from hydra_jax.report import figures, verdict


def scores_of(seed, members):
  """Made-up scores of 200 examples; of one network, the model uncertainty is 0."""
  random = np.random.default_rng(seed)
  data, model = random.gamma(2, 0.1, size=(2, 200)).astype(np.float32)
  model = model if members > 1 else np.zeros_like(model)
  correct = (random.uniform(size=200) > data).astype(np.float32)
  confidence = random.uniform(0.5, 1, 200).astype(np.float32)
  return {**dict(zip(WORDS, (data + model, data, model))), 'correct': correct, 'confidence': confidence}


SCORES = {
  name: {where: scores_of(i + 10 * j, members) for j, where in enumerate(('test', 'far'))}
  for i, (name, members) in enumerate({'ensemble': 5, 'kd': 1, 'hydra': 5}.items())
}


def test_every_method_is_rejected_by_an_uncertainty_that_it_has():
  """By total uncertainty all are, and none is a flat line; by model uncertainty those that have any."""
  figure = figures.rejection(SCORES, 'far')
  (total, mixed), (model, _) = np.reshape(figure.axes, (2, 2))
  of = lambda ax: {line.get_label(): line.get_ydata() for line in ax.lines}
  assert set(of(total)) == set(of(mixed)) == set(SCORES) and set(of(model)) == {'ensemble', 'hydra'}
  for by, ax in zip(RANKINGS, (total, model)):
    assert ax.get_xlabel() == f'share kept, by {WORDS[by]} uncertainty'
    for name, curve in of(ax).items():
      test = SCORES[name]['test']
      half = test['correct'][np.argsort(test[by])][:100]
      assert curve[49] == pytest.approx(half.mean(), abs=0.02) and np.ptp(curve) > 0
      assert curve[-1] == pytest.approx(test['correct'].mean())
  assert of(mixed)['kd'][-1] == pytest.approx(SCORES['kd']['test']['correct'].mean() / 2)


def test_without_any_model_uncertainty_there_is_one_row():
  figure = figures.rejection({'kd': SCORES['kd']}, 'far')
  assert [len(ax.lines) for ax in figure.axes] == [1, 1]


def test_titles_have_the_numbers_of_the_metrics():
  figure = figures.reliability(SCORES, 15)
  test = SCORES['kd']['test']
  bins = np.minimum((test['confidence'] * 15).astype(int), 14)
  gap = sum(abs((test['correct'] - test['confidence'])[bins == b].sum()) for b in range(15)) / 200
  title = figure.axes[1].get_title()
  assert title.startswith('kd, ECE ') and float(title.split()[-1]) == pytest.approx(gap, rel=5e-3)


def test_drawing_changes_nothing_of_matplotlib(tmp_path):
  before = dict(matplotlib.rcParams)
  figures.save(tmp_path, {'rejection': lambda: figures.rejection(SCORES, 'far')})
  assert (tmp_path / 'rejection.png').read_bytes()[1:4] == b'PNG'
  assert dict(matplotlib.rcParams) == before


PROGRAM = """
import sys
from hydra_jax.experiment import paper_tables as reports
from hydra_jax.report import figures
for name in ('uci', 'heads', 'cost'):
  reports.load(name, True)
figure, axes = figures.panels(2)
figures.save(__import__('pathlib').Path(sys.argv[1]), {'empty': lambda: figure})
print('matplotlib.pyplot' in sys.modules)
"""


def test_no_backend_is_chosen(tmp_path):
  """A notebook keeps its own: pyplot, which would choose one, is not imported, by our tables neither."""
  done = subprocess.run([sys.executable, '-c', PROGRAM, tmp_path], capture_output=True, text=True, cwd=ROOT)
  assert done.stdout.strip() == 'False', done.stderr
  assert (tmp_path / 'empty.png').exists()


def test_a_backend_that_is_not_installed_does_not_stop_the_command(tmp_path):
  """A shell that is started from a notebook has its MPLBACKEND."""
  backend = 'module://matplotlib_inline.backend_inline'
  settings = '--config.teacher.members=2 --config.teacher.epochs=1 --config.data.shifts=() --config.data.ood=()'
  command = [sys.executable, '-m', 'hydra_jax.cli', 'run', f'--config={ROOT}/configs/digits.py', '--config.students=()']
  done = subprocess.run(
    [*command, *settings.split(), '--workdir=w'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={
      **os.environ,
      'MPLBACKEND': backend,
      'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path]),
    },
  )
  assert done.returncode == 0, done.stderr
  assert np.ptp(np.asarray(Image.open(tmp_path / 'w' / 'figures' / 'reliability.png'))) > 0


@pytest.mark.parametrize('value', [np.inf, np.nan, 1e38, 1e-40])
@pytest.mark.parametrize('where', [3, slice(None)])
def test_what_is_infinite_or_tiny_does_not_stop_the_drawing(tmp_path, value, where):
  """After a long training nothing is lost because one uncertainty has overflown, or all are nearly 0."""
  scores = {name: {w: {k: v.copy() for k, v in s.items()} for w, s in SCORES[name].items()} for name in SCORES}
  for found in scores['hydra'].values():
    found['uncertainty_epistemic'][where] = found['uncertainty_total'][where] = value
  both = figures._uncertain(scores)
  assert ('hydra' in both) == (where == 3 or value in (1e38, 1e-40))
  drawn = [figures.histograms] + [figures.agreement] * (len(both) > 1)
  drawings = {f.__name__: lambda f=f: f(both, ['far'], 'nats') for f in drawn}
  figures.save(tmp_path, {**drawings, 'rejection': lambda: figures.rejection(scores, 'far')})
  assert len(list(tmp_path.glob('*.png'))) == 1 + len(both)


def test_every_set_that_is_out_of_domain_is_drawn():
  scores = {name: {**found, 'noise': scores_of(7, name != 'kd')} for name, found in SCORES.items()}
  both = figures._uncertain(scores)
  for draw, panels in ((figures.histograms, 2), (figures.agreement, 1)):
    axes = draw(both, ['far', 'noise'], 'nats').axes
    assert len(axes) == panels
    for ax in axes:
      said = [text.get_text().partition(',')[0] for text in ax.get_legend().get_texts()]
      assert said == ['test', 'far', 'noise'] and '(nats)' in ax.get_xlabel()
  both['ensemble'] = {where: found for where, found in both['ensemble'].items() if where != 'far'}  # as some files lack
  for draw in (figures.histograms, figures.agreement):
    (said, *_) = (ax.get_legend().get_texts() for ax in draw(both, ['far', 'noise'], 'nats').axes)
    assert [text.get_text().partition(',')[0] for text in said] == ['test', 'noise']


def test_heads_and_members_have_one_scale():
  """Whatever the set, a colour is one number; a member beside itself has none."""
  at = lambda scale: scale * (1.0 - np.eye(3))
  figure = figures.divergences(
    {'ensemble': {'test': at(0.1), 'far': at(5.0)}, 'hydra': {'test': at(0.2), 'far': at(4.0)}}
  )
  images = [ax.images[0] for ax in figure.axes[:4]]
  assert {image.norm.vmin for image in images} == {0.1} and {image.norm.vmax for image in images} == {5.0}
  assert 'members among' in figure.axes[0].get_title() and np.isnan(images[0].get_array().filled(np.nan)[0, 0])
  assert 'nats' in figure.axes[4].get_ylabel()


def of_shifts(values: dict[str, float]) -> list[dict]:
  """Rows of two methods and two replicas, by split; the model uncertainty of `kd` is 0."""
  return [
    {'split': split, 'method': m, 'replica': r, 'metric': metric, 'value': 0.0 if m == 'kd' else value + r, 'n': 4}
    for split, value in values.items()
    for m in ('ensemble', 'kd')
    for metric in ('nll', 'uncertainty_epistemic')
    for r in range(2)
  ]


def test_shifts_have_units_and_bands_and_leave_out_what_is_0():
  sets = [Evaluation(f'rotate:{s}', 'shift', None, None, s, unit='degrees') for s in (15, 30)]
  rows = of_shifts({'test': 1.0, 'rotate:15': 2.0, 'rotate:30': 3.0})
  nll, model = figures.shift_curves(rows, sets, ('nll', 'uncertainty_epistemic'), 0.0, 'nats').axes
  assert [line.get_label() for line in nll.lines] == ['ensemble', 'kd'] and len(nll.collections) == 2
  assert [line.get_label() for line in model.lines] == ['ensemble'] and model.texts[0].get_text().endswith(': kd')
  assert model.get_xlabel() == 'rotate (degrees)' and 'nats' in model.get_ylabel()
  np.testing.assert_allclose(np.asarray(nll.lines[0].get_ydata(), float), [1.5, 2.5, 3.5])
  assert len({line.get_marker() for line in nll.lines}) == 2


@pytest.mark.parametrize(
  ('kinds', 'label'),
  [
    (('rotate',), 'rotate (degrees)'),
    (('jitter',), 'jitter (standard deviations of features)'),
    (('fog',), 'fog (severity)'),
    (('fog', 'contrast'), 'corruptions, mean of 2 (severity)'),
    (('CIFAR-10-C/fog',), 'CIFAR-10-C/fog (severity)'),
    (('CIFAR-10-C/fog', 'CIFAR-10-C/contrast'), 'CIFAR-10-C, mean of 2 (severity)'),
    (('rotate', 'fog', 'contrast'), 'rotate (degrees)'),
  ],
)
def test_each_kind_of_shift_has_its_unit(kinds, label):
  """Also means over several kinds, which have the unit of each."""
  sets = [
    Evaluation(f'{kind}:{s}', 'shift', None, None, s, shift.family, shift.unit)
    for kind in kinds
    for s in (1, 2)
    for shift, _ in [shifts.parse(f'{kind}:{s}')]
  ]
  rows = of_shifts({'test': 1.0} | {each.name: 2.0 for each in sets})
  assert figures.shift_curves(rows, sets, ('nll',)).axes[0].get_xlabel() == label


def test_quality_is_drawn_beside_cost():
  """Of those that have both; dots join what nothing beats."""
  sizes, nlls = {'a': 10.0, 'b': 20.0, 'c': 500.0}, {'a': 3.0, 'b': 4.0, 'c': 1.0, 'd': 0.0}
  rows = [{'split': 'cost', 'method': m, 'metric': 'parameters', 'replica': 0, 'value': v} for m, v in sizes.items()]
  rows += [{'split': 'test', 'method': m, 'metric': 'nll', 'replica': 0, 'value': v} for m, v in nlls.items()]
  values = verdict.results_of(rows).estimates()
  (ax,) = figures.cost_quality(values, figures._qualities(values, [])).axes
  assert [tuple(c.lines[0].get_xydata()[0]) for c in ax.containers] == [(10, 3), (20, 4), (500, 1)]
  (front,) = (line for line in ax.lines if line.get_linestyle() == ':')
  assert front.get_xydata().tolist() == [[10, 3], [500, 3], [500, 1]]
  assert figures._qualities(verdict.results_of(rows[:1]).estimates(), []) == []


def test_figures_are_also_vectors_with_text_and_the_same_bytes(tmp_path):
  about = figures.About('digits', 0, 3)
  draw = lambda: figures.noted(
    figures.agreement(figures._uncertain(SCORES), ['far'], 'nats'), about.of_one(SCORES, 'far')
  )
  for name in ('one', 'two'):
    figures.save(tmp_path, {name: draw})
  one, two = ((tmp_path / f'{name}.svg').read_bytes() for name in ('one', 'two'))
  assert one == two and len(one) < 60_000
  assert b'replica 1 of 3. Inputs: 200' in one and b'<image' in one  # points are pixels


def test_a_legend_beside_leaves_the_panels_their_width():
  def width_of_panels(label):
    figure, axes = figures.panels(2)
    axes[0][0].plot([0, 1], label=label)
    figures.legend_beside(figure, axes[0][0])
    figure.draw_without_rendering()
    return axes[0][0].get_window_extent().width

  widths = [width_of_panels(label) for label in ('kd', 'latent_batch_ensemble', 'a method of many words')]
  assert max(widths) < 1.2 * min(widths) and min(widths) > 150
