"""The code in the README and in pages of docs/ does what is said beside it, and their numbers are those of results."""

import contextlib
import json
import math
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import warnings

from conftest import ROOT, hydra_jax, serving
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.special

from experiments import readme
from hydra_jax import data as datasets, load
from hydra_jax.data import toy
from hydra_jax.experiment import external_predictions, schema
from hydra_jax.experiment.config import default_config, leaves
from hydra_jax.maths import statistics

README = (ROOT / 'README.md').read_text()
PAGES = {page.name: page.read_text() for page in readme.pages()}
RESULTS, SPEED = PAGES['results.md'], PAGES['speed.md']
BLOCKS = re.findall(r'```python\n(.*?)```', '\n'.join(PAGES.values()), flags=re.S)
# The numbers with decimals in the text of the results, and how each is found.
STATED = {
  '.0017': lambda: round(1 / 599, 4),  # one of the test images of the digits
  **{aim: lambda aim=aim: float(aim) for aim in ('.97', '.95', '.85')},  # what is aimed at, not what was measured
  '1.8': lambda: round(statistics.inflation(20, 1 / 9), 1),
}
# Numbers with decimals in the text of other pages: versions, what is asked for, and chance. None was measured.
NOT_MEASURED = {'README.md': {'3.12', '0.10', '0.12'}, 'serving.md': {'0.95', '0.99'}, 'start-command-line.md': {'0.5'}}


def block(word):
  (found,) = [b for b in BLOCKS if word in b]
  return found


def commands(section):
  """Lines of a section that are for the shell."""
  text = README.partition(f'\n## {section}\n')[2].partition('\n## ')[0]
  return re.findall(r'^    (.*)$', re.sub(r'```.*?```', '', text, flags=re.S), flags=re.M)


@contextlib.contextmanager
def as_users_have_it():
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    yield


def test_the_short_example(capsys):
  x = np.ones((3, 8, 8), np.float32)
  names = {'x': x}
  exec(block('from hydra_jax import grow'), names)
  assert names['logits'].shape == (50, 3, 10)
  np.testing.assert_array_equal(names['logits'][7], names['logits'][0])


def test_the_page_of_settings_is_that_of_the_schema():
  page = (ROOT / 'docs' / 'settings.md').read_text()
  assert page == schema.document(), 'run python -m experiments.readme'
  for key, _ in leaves(schema.default_config()):
    assert f'`{key.rpartition(".")[2]}`' in page or key.startswith('network.') or '.network.' in key, key


@pytest.mark.filterwarnings('default')
def test_an_ensemble_of_scikit_learn(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  quick = block('BaggingClassifier').replace('max_iter=1000), 20', 'max_iter=3), 2')
  assert quick != block('BaggingClassifier')
  with warnings.catch_warnings(action='ignore'):
    exec(quick, {})
  config = default_config().data
  config.name, config.ood = 'members.npz', ('noise',)
  data = datasets.load(config, '', 0)
  members = external_predictions.read('members.npz')
  assert data.outputs == 10 and members.members == 2
  for name, n in (('train', 1200), ('test', 597), ('noise', 500)):
    assert external_predictions.outputs(members, name, n, data.task, 10, data.scaling).shape == (2, n, 10)


@pytest.mark.slow
def test_the_example_in_python(tiny_run):
  x, y = toy.digits('train')
  logits = np.random.default_rng(0).normal(size=(3, 200, 10))
  text = block('hydra_jax.distil(x, logits').replace("'runs/digits'", 'run').replace('epochs=50.0', 'epochs=2.0')
  names = {'np': np, 'x': x[:200], 'logits': logits, 'x_new': x[200:260], 'y_new': y[200:260], 'run': tiny_run[0]}
  exec(text, names)
  assert names['prediction'].members.shape == (3, 60, 10) and 0 <= names['scores']['accuracy'] <= 1
  assert names['student'].shape == (8, 8, 1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('curl'), reason='curl is not installed')
def test_from_a_csv_file_to_a_service(tmp_path, monkeypatch, port):
  """What the commands answer in other processes is what the estimator answers here."""
  monkeypatch.chdir(tmp_path)
  quick = block('load_diabetes').replace('members=20', 'members=2, epochs=3')
  assert quick != block('load_diabetes')
  names = {}
  with as_users_have_it():
    exec(quick, names)
    model, new = names['model'], names['held_out'].drop(columns='target')
    new.to_csv('new.csv', index=False)
    install, predict, serve, ask = map(shlex.split, commands('Your own data: from a CSV file to a service'))
    assert (
      install[:2] == ['pip', 'install']
      and predict.pop(0) == 'hydra-jax'
      and serve.pop(0) == 'python'
      and serve.pop() == '&'
    )
    done = hydra_jax(*predict, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = pd.read_csv('predicted.csv')
    np.testing.assert_allclose(found['prediction'], model.predict(new), rtol=1e-4)
    np.testing.assert_allclose(found[['lower', 'upper']], model.predict_interval(new, coverage=0.9), rtol=1e-4)

    serve[serve.index('8000')], place = str(port), Path(serve[0])
    ask = [word.replace('localhost:8000', f'localhost:{port}') for word in ask]
    with serving([ROOT / place, *serve[1:]], port, cwd=tmp_path):
      answer = json.loads(subprocess.run(ask, capture_output=True, check=True).stdout)
    row = pd.DataFrame(json.loads(ask[-1])['rows'])
    mean, deviation = model.predict(row, return_std=True)
    np.testing.assert_allclose([answer['mean'], answer['total']], [[mean], [deviation**2]], rtol=1e-4)


@pytest.mark.slow
def test_a_random_forest(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = block('RandomForestClassifier')
  quick = text.replace('n_estimators=100', 'n_estimators=10').replace('teacher=forest', 'teacher=forest, epochs=20')
  assert len(quick) == len(text) - 1 + len(', epochs=20')
  names = {}
  with as_users_have_it():
    exec(quick, names)
    p, sets = names['student'].predict_proba(names['X_new']), names['sets']
    loaded = load('forest').predict(names['X_new'])
  entropy = lambda p: scipy.special.entr(p).sum(axis=-1)
  assert loaded.members.shape == (10, 171, 2) and sets.shape == (171, 2) and sets.any(axis=1).all()
  np.testing.assert_allclose(loaded.mean, p, atol=1e-5)
  np.testing.assert_allclose(names['total'], entropy(loaded.members.mean(axis=0)), atol=1e-5)
  np.testing.assert_allclose(names['aleatoric'], entropy(loaded.members).mean(axis=0), atol=1e-5)
  np.testing.assert_allclose(names['epistemic'], names['total'] - names['aleatoric'], atol=1e-5)
  assert np.mean(p.argmax(axis=1) == names['y_new']) > 0.85


def test_stages_of_three_libraries():
  names = {}
  exec(block('eqx.nn.Linear'), names)
  x = jnp.ones((32, 8, 8))
  outputs, _ = jax.eval_shape(names['student'].apply, names['params'], names['state'], x)
  assert outputs.shape == (20, 32, 10)


@pytest.mark.parametrize('name', PAGES)
def test_tables_of_results_are_those_of_their_files(name):
  assert readme.refreshed(PAGES[name]) == PAGES[name], 'run python -m experiments.readme'


def test_every_table_with_a_decimal_names_its_file():
  tables = [
    table for page in PAGES.values() for table in re.findall(r'(^[^|\n].*|^)\n((?:^\|.*\n)+)', page, flags=re.M)
  ]
  assert len(tables) > 10
  measured = [above for above, table in tables if re.search(r'\|[^|`]*\d\.\d', table)]
  assert measured and all(readme.MARKER.match(f'{above}\n') for above in measured), measured


def decimals(page):
  """Numbers with decimals in the text: not in tables, commands and versions."""
  text = re.sub(r'^(\||    ).*$|!\[.*?\]\(.*?\)|jax 0\.1[01]\.2|Python 3\.11', '', page, flags=re.M)
  return set(re.findall(r'(?<![\w.])\d*\.\d+(?![\w.])', text))


def test_numbers_in_the_text_of_the_results_are_few_and_right():
  assert decimals(RESULTS) == set(STATED)
  for number, of in STATED.items():
    assert float(number) == of()


def test_numbers_in_the_text_about_speed_are_those_of_its_table():
  measured = set(re.findall(r'\d+\.\d+', '\n'.join(re.findall(r'^\|.*$', SPEED, flags=re.M))))
  flops = lambda heads: 784 * 100 + 100 * 100 + heads * 100 * 10
  calculated = {f'{flops(50) / flops(1):.2f}'}
  rows = [json.loads(line) for line in (ROOT / 'experiments/results/gpu/rows.jsonl').read_text().splitlines()]
  of = {(row['members'], row['mapping']): row['member_images_per_s'] for row in rows if row['dtype'] == 'bfloat16'}
  calculated |= {f'{of[4, "vmap"] / of[4, "loop"]:.1f}', f'{of[50, "vmap"] / of[1, "vmap"]:.1f}'}
  assert decimals(re.sub(r'PyTorch 2\.13\.0', '', SPEED)) <= measured | calculated


def test_the_table_of_signals_is_that_of_its_record():
  found = json.loads((ROOT / 'experiments/results/soak-two.json').read_text())
  for name, kind in found['kinds'].items():
    codes = ' or '.join(each.strip('()') for each in kind['exit codes of processes 0 and 1'])
    cells = (name, kind['faults'], codes, *map(math.ceil, kind['seconds'].values()))
    assert f'| {" | ".join(map(str, cells))} |' in PAGES['exit_codes.md']


@pytest.mark.parametrize('name', sorted(set(PAGES) - {'results.md', 'speed.md'}))
def test_other_pages_have_their_numbers_from_tables_and_cells(name):
  text = re.sub(r'```.*?```|`[^`]*`|\]\(\S*\)|Apache License 2\.0', '', PAGES[name], flags=re.S)
  assert decimals(text) == NOT_MEASURED.get(name, set())
