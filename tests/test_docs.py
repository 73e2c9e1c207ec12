"""The code in the pages of docs/ runs, and does what is said beside it."""

import re

from conftest import ROOT
import jax
import pytest
import untrained

import hydra_jax
from hydra_jax.data import toy

PAGE, SERVING = ((ROOT / 'docs' / name).read_text() for name in ('library.md', 'serving.md'))


def test_the_page_about_the_library():
  names = {}
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):  # as users have it
    for block in re.findall(r'```python\n(.*?)```', PAGE, flags=re.S):
      exec(block, names)
  assert names['teacher'].shape == (5, 1200, 10) and names['logits'].shape == (5, 597, 10)
  assert names['scores']['accuracy'] > 0.9 and names['detected']['auroc'] > 0.75
  assert names['prediction'].members.shape == (5, 597, 10)
  assert names['apart'].shape == (5, 5) and names['kept'] > 0.5 and names['order'] > 0.5
  assert names['surest'][100] > names['surest'][-1] > 0.85
  held = names['sets'][range(298), names['y_test'][1::2]].mean()
  assert names['sets'].shape == (298, 10) and held > 0.95 - 4.5 * (0.95 * 0.05 * (1 / 225 + 1 / 298)) ** 0.5
  assert names['sets'].sum(axis=1).mean() < 4 and names['odd'].mean() > 0.3
  assert names['chosen'].risk < names['chosen'].bound <= 0.05 and names['accepted'].mean() > 0.3
  assert hydra_jax.Calibration.from_json(names['saved']) == names['surer'].calibration


def test_the_page_about_serving(tmp_path, monkeypatch, random):
  """Up to the export, with a network that is right by definition: labels are what it predicts."""
  monkeypatch.chdir(tmp_path)
  text = SERVING.partition('\n## Export')[0]
  student, x = untrained.predictor(), random.normal(size=(300, 5))
  right = student.predict(x).mean.argmax(axis=1)
  names = {'student': student, 'x': x[:100], 'x_held_out': x[100:], 'y_held_out': right[100:]}
  for block in re.findall(r'```python\n(.*?)```', text, flags=re.S):
    exec(block, names)
  assert names['prediction'].members.shape == (4, 100, 3)
  assert names['sets'].shape == (100, 3) and names['sets'][range(100), right[:100]].all()
  assert names['found'].risk == 0 and names['found'].bound <= 0.05
  assert names['sure'].mean() == pytest.approx(names['found'].coverage, abs=0.2)
  assert len(names['flagged']) == 1 and (names['flagged'][0] == (names['prediction'].epistemic > 0.1)).all()
  files = re.findall(r'^\| `([\w.]+)` \|', text.partition('| file |')[2].partition('\n\n')[0], flags=re.M)
  assert sorted(files) == sorted(path.name for path in (tmp_path / 'digits-calibrated').iterdir())
  assert '0.974' in (tmp_path / 'digits-hydra' / 'README.md').read_text()
  assert hydra_jax.load('digits-calibrated').calibration == names['model'].calibration


@pytest.mark.slow
def test_the_line_that_loads_a_finished_run(tiny_run):
  (line,) = re.findall(r'`(hydra_jax\.load.*)`', PAGE)
  images, _ = toy.digits('test')
  found = eval(line.replace("'runs/digits'", 'run'), {'hydra_jax': hydra_jax, 'run': tiny_run[0], 'images': images})
  assert found.mean.shape == (len(images), 10)


def test_the_page_names_all_that_is_public():
  named = set(re.findall(r'`(\w+)`', PAGE.partition('\n## ')[0])) - {'hydra_jax'}
  assert named == set(hydra_jax.__all__)
