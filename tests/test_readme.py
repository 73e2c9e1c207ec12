"""The code in the README does what is said beside it."""

import re
import warnings

from conftest import ROOT
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import readme
from hydra_jax import data as datasets
from hydra_jax.data import toy
from hydra_jax.experiment import external_predictions, schema
from hydra_jax.experiment.config import default_config, leaves
from hydra_jax.maths import statistics

README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, flags=re.S)
# The numbers with decimals in the text below Results, and how each is found.
STATED = {
  '.0017': lambda: round(1 / 599, 4),  # one of the test images of the digits
  **{aim: lambda aim=aim: float(aim) for aim in ('.97', '.95', '.85')},  # what is aimed at, not what was measured
  '1.8': lambda: round(statistics.inflation(20, 1 / 9), 1),
}


def block(word):
  (found,) = [b for b in BLOCKS if word in b]
  return found


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
  text = block('hydra_jax.distil').replace("'runs/digits'", 'run').replace('epochs=50.0', 'epochs=2.0')
  names = {'np': np, 'x': x[:200], 'logits': logits, 'x_new': x[200:260], 'y_new': y[200:260], 'run': tiny_run[0]}
  exec(text, names)
  assert names['prediction'].members.shape == (3, 60, 10) and 0 <= names['scores']['accuracy'] <= 1
  assert names['student'].shape == (8, 8, 1)


def test_stages_of_three_libraries():
  names = {}
  exec(block('eqx.nn.Linear'), names)
  x = jnp.ones((32, 8, 8))
  outputs, _ = jax.eval_shape(names['student'].apply, names['params'], names['state'], x)
  assert outputs.shape == (20, 32, 10)


def test_tables_of_results_are_those_of_their_files():
  assert readme.refreshed(README) == README, 'run python -m experiments.readme'


def test_every_table_with_a_decimal_names_its_file():
  tables = re.findall(r'(^[^|\n].*|^)\n((?:^\|.*\n)+)', README, flags=re.M)
  assert len(tables) > 10
  measured = [above for above, table in tables if re.search(r'\|[^|`]*\d\.\d', table)]
  assert measured and all(readme.MARKER.match(f'{above}\n') for above in measured), measured


def test_numbers_in_the_text_of_the_results_are_few_and_right():
  text = re.sub(r'^(\||    ).*$|!\[.*?\]\(.*?\)|jax 0\.1[01]\.2|Python 3\.11', '', README, flags=re.M)
  text = text.partition('## Results\n')[2].partition('\n## Speed')[0]
  found = re.findall(r'(?<![\w.])\d*\.\d+(?![\w.])', text)
  assert set(found) == set(STATED)
  for number, of in STATED.items():
    assert float(number) == of()
