"""`hydra-jax sweep --search`: what is asked for, and trials that Optuna keeps, whatever happens to a process."""

from conftest import ROOT
import pytest
from test_sweep import read

from hydra_jax import UserError, cli, store
from hydra_jax.experiment import search, sweep
from hydra_jax.experiment.search import Space, Target, spaces_of, target_of

ASKED = ['student.hydra.temperature=1..10', 'distillation.learning_rate=1e-4..1e-2:log', 'teacher.members=2..9']
ASKED += ['config.distillation.optimizer=adam,sgd', "student.hydra.augment=('mixup',),()"]


def test_ranges_and_choices():
  assert spaces_of(ASKED) == {
    'student.hydra.temperature': Space((), 1.0, 10.0),
    'distillation.learning_rate': Space((), 1e-4, 1e-2, log=True),
    'teacher.members': Space((), 2.0, 9.0),
    'distillation.optimizer': Space(('adam', 'sgd')),
    'student.hydra.augment': Space(("('mixup',)", '()')),
  }
  assert spaces_of(['a=-2.5..-1'])['a'] == Space((), -2.5, -1.0)


@pytest.mark.parametrize(
  'argument, words',
  [
    ('seed', 'has no values: write KEY=LOW..HIGH'),
    ('=1..2', 'has no values'),
    ('a=', 'has no values'),
    ('a=3..1', 'less than the second'),
    ('a=1..1', 'less than the second'),
    ('a=1..inf', 'finite'),
    ('a=1..b', 'are numbers'),
    ('a=0..1:log', 'numbers above 0'),
    ('a=1..2:exp', 'is no range'),
    ('a=1..2,5', 'is no range'),
    ('a=1', 'two different values'),
    ('a=1,1', 'two different values'),
    ("a=('b',", 'lacks a closing'),
  ],
)
def test_a_search_that_is_none(argument, words):
  with pytest.raises(UserError, match=words):
    spaces_of([argument])
  with pytest.raises(UserError, match='given twice'):
    spaces_of(['a=1..2', 'config.a=1,2'])


def test_a_target_is_a_score_on_the_validation_part():
  config = read(['--config.data.name=digits', "--config.students=('hydra','kd')"])
  assert target_of('hydra:nll', config, '') == (Target('hydra', 'nll'), 'minimize')
  assert target_of('kd:accuracy', config, '') == (Target('kd', 'accuracy'), 'maximize')
  assert target_of('ensemble', config, '') == (Target('ensemble', 'nll'), 'minimize')
  for wrong, words in (('hidra:nll', "did you mean 'hydra'"), ('kd:acc', 'accuracy'), ('kd:rank_correlation', 'nll')):
    with pytest.raises(UserError, match=words):
      target_of(wrong, config, '')
  config.validation = 0.0
  with pytest.raises(UserError, match='these data have none'):
    target_of('hydra:nll', config, '')


@pytest.mark.parametrize(
  ('key', 'whole'),
  [
    ('teacher.members', True),
    ('training.batch_size', True),
    ('student.hydra.temperature', False),
    # Inherited: these have no value of the section's.
    *(('teacher.batch_size', True), ('student.hydra.batch_size', True)),
    *(('teacher.learning_rate', False), ('distillation.learning_rate', False), ('student.kd.epochs', False)),
  ],
)
def test_whole_numbers_are_found_by_the_key(key, whole):
  assert search.checked(spaces_of([f'{key}=1..8']), read)[key] == Space((), 1.0, 8.0, whole=whole)


@pytest.mark.parametrize(
  'arguments, word',
  [
    ([], 'give --grid'),
    (['--grid', 'seed=0,1', '--search', 'student.hydra.temperature=1..2'], 'one of the two'),
    (['--grid', 'seed=0,1', '--trials', '3'], 'are for --search'),
    (['--search', 'student.hydra.temperature=1..2', '--trials', '0'], 'must be at least 1'),
    (['--search', 'student.hydra.temperatur=1..2'], "did you mean 'temperature'"),
    (['--search', 'student.hydra.temperature=-1..2'], 'more than 0'),
    (['--search', 'teacher.members=1.5..4'], 'takes a whole number'),
    (['--search', 'seed=0..4'], 'is no setting to choose'),
    (['--search', 'student.hydra.temperature=1..2', '--target=hydra:loss'], "there is no 'loss'"),
  ],
)
def test_bad_input_is_one_line(arguments, word, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(cli, 'set_up', lambda: None)
  monkeypatch.setattr(cli.preemption, 'listen', lambda: None)
  monkeypatch.setattr(search, 'check_installed', lambda: None)
  monkeypatch.chdir(tmp_path)
  assert cli.main(['sweep', f'--config={ROOT}/configs/digits.py', *arguments]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()
  assert word in line and not list(tmp_path.iterdir())


def test_without_optuna_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setattr(search.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'hydra_jax\[optuna\]'"):
    search.check_installed()


KILLED = 4  # the trial at which a process ends
SPACES = search.checked(spaces_of(ASKED[:4]), read)


@pytest.fixture
def searched(monkeypatch, tmp_path, caplog):
  """Searches without training: temperature 3 is the best, and adam better than sgd."""
  pytest.importorskip('optuna')
  made, dies = [], set()

  def score(point, target, folder, shared, data_dir):
    made.append(point.name)
    if len(made) in dies:
      raise KeyboardInterrupt
    if float(point.values['student.hydra.temperature']) > 9:
      raise UserError('the loss is not finite')
    distance = abs(float(point.values['student.hydra.temperature']) - 3)
    return distance + (point.values['distillation.optimizer'] == 'sgd')

  monkeypatch.setattr(search, '_score', score)
  monkeypatch.setattr(sweep, 'report', lambda points, folder, ranges: None)
  monkeypatch.setattr(sweep, 'keys_of', lambda points, data_dir: {point.name: 'key' for point in points})
  caplog.set_level('INFO', 'hydra_jax')

  def run(folder, count, dies_at=()):
    made.clear()
    dies.clear()
    dies.update(dies_at)
    caplog.clear()
    config = read([])
    target = Target('hydra', 'nll'), 'minimize'
    search.run(SPACES, count, *target, config, read, tmp_path / folder, tmp_path, '', ['hydra-jax', 'run'])
    return list(made), caplog.messages

  return run


def test_a_search_that_was_killed_continues_with_the_same_trials(searched):
  """The trial that was left is made again, and is not counted twice; more trials go on from those that are there."""
  whole, said = searched('whole', 14)
  assert len({*whole}) == 14
  with pytest.raises(KeyboardInterrupt):
    searched('killed', 14, dies_at=[KILLED])
  rest, said_again = searched('killed', 14)
  assert rest == whole[KILLED - 1 :] and said_again[-2:] == said[-2:]
  assert searched('killed', 14)[0] == []
  assert searched('killed', 16)[0] == searched('whole', 16)[0]

  best = said[-1].split()
  assert best[:2] == ['hydra-jax', 'run'] and '--config.distillation.optimizer=adam' in best
  (temperature,) = (float(each.partition('=')[2]) for each in best if 'temperature' in each)
  of_names = lambda name: abs(float(name.split(',')[0].partition('=')[2]) - 3)
  assert abs(temperature - 3) == min(of_names(name) for name in whole if 'adam' in name)


def test_a_trial_that_another_process_makes_is_left_to_it(searched, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    searched('both', 3, dies_at=[2])
  folder = tmp_path / 'both'
  study = search.Study(folder, 'key', 0, 'minimize')
  make = lambda values: sweep.points_of({key: [value] for key, value in values.items()}, read)[0]
  number, point = study.next(2, SPACES, make, set())
  (folder / point.name).mkdir()
  with store.locked(folder / point.name):
    other, _ = search.Study(folder, 'key', 0, 'minimize').next(2, SPACES, make, set())
    assert (number, other) == (0, 1)
    assert search.Study(folder, 'key', 0, 'minimize').next(2, SPACES, make, {1}) is None
  study.tell(0, None)
  study.tell(1, 0.5)
  study.tell(1, 0.7)  # by who was slower
  assert [(trial.number, trial.value) for trial in study.scored()] == [(1, 0.5)] and study.running() == 0
