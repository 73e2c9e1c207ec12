"""The model card: metadata that Hugging Face's library reads, and the numbers of a run or of held-out rows."""

import functools
import json
import math

import huggingface_hub
import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sklearn_metrics
from untrained import CLASSES, predictor

import hydra_jax
from hydra_jax.serving import card


def page_of(made, folder, scores=None) -> huggingface_hub.ModelCard:
  hydra_jax.save(made, folder, scores)
  return huggingface_hub.ModelCard((folder / 'README.md').read_text())


def test_hugging_face_reads_the_metadata(tmp_path):
  page = page_of(predictor(classes=CLASSES), tmp_path / 'my-model', {'accuracy': (0.97, 0.004), 'nll': 0.25, 'mine': 3})
  found = page.data
  assert (found.license, found.library_name, found.pipeline_tag) == ('unknown', 'hydra_jax', 'tabular-classification')
  assert {'hydra', 'uncertainty', 'distillation'} <= set(found.tags) and found.metrics == ['accuracy', 'nll']
  assert found.model_name == 'my-model'
  results = {each.metric_type: each for each in found.eval_results}
  assert results['accuracy'].metric_value == 0.97 and 'standard error 0.004' in results['accuracy'].metric_name
  assert results['nll'].metric_value == 0.25 and 'error' not in results['nll'].metric_name
  assert '| accuracy | 0.970' in page.text and '± 0.0040 |' in page.text and '| mine | 3.000 |' in page.text
  again = huggingface_hub.ModelCard(str(page))  # what the library writes is what it reads
  assert again.data.to_dict() == found.to_dict()


def test_without_scores_there_is_no_list_of_results(tmp_path):
  page = page_of(predictor('ensemble', task='regression', outputs=1, shape=(4, 4, 1)), tmp_path / 'model')
  assert page.data.eval_results is None and page.data.pipeline_tag is None
  assert 'Not measured.' in page.text and 'What it keeps' not in page.text and 'distillation' not in page.data.tags
  assert 'Not recorded' in page.text


@pytest.mark.parametrize('name', ['a"b: [c]', '- |', '--- x', '`rm`'])
def test_names_of_others_stay_names(name, tmp_path):
  """They are neither YAML, nor Markdown, nor HTML."""
  classes = (f'<script>{name}', f'| {name}\n# head', name)
  facts = lambda predictor: {'data': {'name': f'{name} | <b>', 'training': 3}}
  page = page_of(predictor(classes=classes, facts=facts), tmp_path / name.replace('/', ''), {f'{name}|{name}': 1.0})
  assert page.data.license == 'unknown' and '<' not in page.text
  (row,) = [line for line in page.text.splitlines() if line.endswith('| 1.000 |')]
  assert row.count('|') == 3 and '# head' not in page.text.splitlines()


def test_the_three_lines_load_it(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  page = page_of(predictor(), tmp_path / 'model')
  (code,) = [part.partition('```')[0] for part in page.text.split('```python\n')[1:]]
  assert len(code.strip().splitlines()) == 3
  names = {'x': np.ones((2, 5))}
  exec(code, names)
  assert names['prediction'].members.shape == (4, 2, 3)


ROWS = {
  ('hydra', 'accuracy'): [0.9, 0.94, 0.92],
  ('hydra', 'nll'): [0.3, 0.2, 0.25],
  ('ensemble', 'nll'): [0.1, 0.2, 0.3],
}


def a_run(folder, name, replicas=3, validation=10):
  """What a run leaves beside its networks."""
  folder.mkdir()
  row = lambda method, metric, replica, value, split='test', n=50: json.dumps(
    dict(split=split, method=method, metric=metric, replica=replica, value=value, n=n)
  )
  lines = [row(m, metric, i, v) for (m, metric), values in ROWS.items() for i, v in enumerate(values[:replicas])]
  lines += [row('hydra', 'nll', 0, 0.5, 'noise'), row('hydra', 'auroc_uncertainty_epistemic', 0, 0.75, 'noise')]
  lines += [row('hydra', 'spread', 0, 1.5, 'validation', validation), row('hydra', 'flops', 0, 1e6, 'cost', 1)]
  lines += [row('kd', 'accuracy', 0, 0.1), row('hydra', 'brier', 0, math.inf)]
  (folder / 'results.jsonl').write_text('\n'.join(lines).replace('Infinity', '1e999'))
  (folder / 'config.json').write_text(json.dumps({'data': {'name': name}}))
  (folder / 'data.json').write_text(json.dumps({'train_examples': 190}))
  return card.of_run(None, folder, 'hydra')


@pytest.mark.parametrize('name, inflation', [('digits', 1.0), ('uci/wine', math.sqrt(1 + 3 * 50 / 200))])
def test_scores_of_a_run_are_means_over_replicas(name, inflation, tmp_path):
  """With standard errors, corrected where the splits of the replicas overlap; and the values of the ensemble."""
  facts = a_run(tmp_path / 'run', name)
  assert facts['data'] == {'name': name, 'training': 190, 'validation': 10, 'test': 50}
  found = {(row['split'], row['metric']): row for row in facts['scores']}
  assert set(found) == {
    *(('test', metric) for metric in ('accuracy', 'nll')),
    *(('noise', metric) for metric in ('nll', 'auroc_uncertainty_epistemic')),
    ('validation', 'spread'),
  }
  for metric in ('accuracy', 'nll'):
    values, row = ROWS['hydra', metric], found['test', metric]
    assert row['value'] == pytest.approx(np.mean(values)) and row['replicas'] == 3 and row['n'] == 50
    assert row['error'] == pytest.approx(stats.sem(values) * inflation, rel=1e-5)
  assert found['test', 'nll']['ensemble'] == pytest.approx(0.2) and found['test', 'accuracy']['ensemble'] is None
  assert found['noise', 'nll']['error'] is None


def test_of_one_replica_the_error_of_a_share_is_binomial(tmp_path):
  found = {
    row['metric']: row for row in a_run(tmp_path / 'run', 'digits', replicas=1)['scores'] if row['split'] == 'test'
  }
  assert found['accuracy']['error'] == pytest.approx(math.sqrt(0.9 * 0.1 / 50), rel=1e-5)
  assert found['nll']['error'] is None


def test_what_is_measured_on_held_out_rows(random):
  made, x = predictor(classes=CLASSES), random.normal(size=(60, 5))
  y, teacher = random.integers(3, size=60), random.normal(size=(7, 60, 3))
  facts = card.measured(made, x, teacher, y, learnt=123)
  found = {row['metric']: row for row in facts['scores']}
  prediction = made.predict(x)
  mean, right = prediction.mean.astype(np.float64), prediction.mean.argmax(axis=1) == y
  mean /= mean.sum(axis=1, keepdims=True)
  assert facts['data'] == {'training': 123, 'validation': 60}
  assert found['accuracy']['value'] == pytest.approx(sklearn_metrics.accuracy_score(y, mean.argmax(axis=1)), rel=1e-5)
  assert found['accuracy']['error'] == pytest.approx(stats.sem(right), rel=1e-5)
  assert found['nll']['value'] == pytest.approx(sklearn_metrics.log_loss(y, mean, labels=range(3)), rel=1e-4)
  assert found['nll']['error'] == pytest.approx(stats.sem(-np.log(mean[range(60), y])), rel=1e-4)
  p = special.softmax(teacher, axis=-1)
  of_teacher = stats.entropy(p.mean(axis=0), axis=-1) - stats.entropy(p, axis=-1).mean(axis=0)
  assert found['rank_correlation']['value'] == pytest.approx(
    stats.spearmanr(prediction.epistemic, of_teacher)[0], rel=1e-4
  )
  ratio = prediction.epistemic.mean() / of_teacher.mean()
  assert found['uncertainty_epistemic_ratio']['value'] == pytest.approx(ratio, rel=1e-4)
  assert found['agreement']['value'] == pytest.approx(np.mean(mean.argmax(1) == p.mean(0).argmax(1)), rel=1e-5)


def test_what_is_measured_of_a_regression(random):
  made, x = predictor(task='regression', outputs=2), random.normal(size=(60, 5))
  y, teacher = random.normal(size=(60, 2)), random.normal(size=(7, 60, 2))
  teacher[0, :20] = np.nan  # a member that has no prediction
  found = {row['metric']: row for row in card.measured(made, x, teacher, y)['scores']}
  prediction = made.predict(x)
  rmse = sklearn_metrics.root_mean_squared_error(y, prediction.mean)
  assert found['rmse']['value'] == pytest.approx(rmse, rel=1e-5)
  draws = [
    np.sqrt(np.square(prediction.mean - y)[rows].mean(axis=0)).mean() for rows in random.integers(60, size=(4000, 60))
  ]
  assert found['rmse']['error'] == pytest.approx(np.std(draws), rel=0.1)  # the bootstrap
  ours, theirs = prediction.epistemic[20:].mean(axis=1), teacher[:, 20:].var(axis=0).mean(axis=1)
  assert found['rank_correlation']['value'] == pytest.approx(stats.spearmanr(ours, theirs)[0], rel=1e-4)
  assert card.measured(made, x[:0], teacher[:, :0], y[:0], 5) == {'data': {'training': 5}, 'scores': []}


def test_facts_are_kept_when_a_model_is_saved_again(tmp_path):
  facts = functools.partial(given, facts={'data': {'training': 9}, 'scores': []})
  hydra_jax.save(predictor(facts=facts), tmp_path / 'one', {'nll': 1.0})
  hydra_jax.save(hydra_jax.load(tmp_path / 'one'), tmp_path / 'two')
  hydra_jax.save(hydra_jax.load(tmp_path / 'one'), tmp_path / 'three', {'nll': 2.0})
  scores = [json.loads((tmp_path / name / 'model.json').read_text())['facts'] for name in ('one', 'two', 'three')]
  assert [[row['value'] for row in each['scores']] for each in scores] == [[1.0], [1.0], [2.0]]
  assert all(each['data'] == {'training': 9} for each in scores)


def given(predictor, facts):
  del predictor
  return facts
