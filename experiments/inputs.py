"""What to distil on: the study behind Hydra's defaults, on validation data and what is made of training images alone.

    hydra-jax table inputs

10 MNIST members, trained on 18,000 images; each student sees as many, changed in other ways, for as many steps. Two
students learn from members that have not seen the image: each is trained five times more, without a fifth of the images
(out-of-fold predictions). Scores are those on 10,000 further training images, rotated or moved, cut to pieces and put
together again, and light for dark. Neither test images nor Fashion-MNIST are looked at.
"""

from typing import Any

from hydra_jax.config import IMAGES, default_config, variant
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column

ELSEWHERE = ('rotate:45', 'translate:6', 'collage', 'negative', 'noise')
KINDS = IMAGES['augment']


def changed(share: float, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
  """Settings for inputs of which each kind changes a share."""
  return dict(augment=kinds, augment_share=share)


# Name, label, and what it changes of the default, in which a quarter of the inputs is changed in each of three ways.
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
  'kd': ('KD, training data', {}),
  'kd_quarter': ('KD, a quarter changed in each way', changed(0.25)),
  'paper': (
    "the paper's setting: training data, T = 1, two phases",
    dict(augment=(), augment_share=1.0, temperature=1.0, mean_weight=0.0, calibrate_spread=False, hinton_epochs=10.0)
    | dict(epochs=20.0),
  ),
  'train': ('training data', dict(augment=(), augment_share=1.0)),
  'tenth': ('a tenth changed in each way', changed(0.1)),
  'hydra': ('a quarter changed in each way (the default)', changed(0.25)),
  'half': ('half changed in each way', changed(0.5)),
  'crop': ('a quarter moved by up to 4 pixels', changed(0.25, ('crop',))),
  'shuffle': ('a quarter shuffled blocks', changed(0.25, ('shuffle',))),
  'mixup': ('a quarter mixed', changed(0.25, ('mixup',))),
  'noise': ('a quarter with noise', changed(0.25, ('noise',))),
  'no_mean': ('the default, without the term on the mean', changed(0.25) | dict(mean_weight=0.0)),
  'cool': ('the default, T = 1', changed(0.25) | dict(temperature=1.0)),
  'no_spread': ('the default, heads as trained', changed(0.25) | dict(calibrate_spread=False)),
  'kd_folds': ('KD, training data, members that have not seen them', dict(folds=5)),
  'folds': ('training data, members that have not seen them', dict(augment=(), augment_share=1.0, folds=5)),
}
QUICK = ('kd', 'paper', 'train', 'hydra', 'no_spread')


def get_config(quick: bool):
  """One run, whose students differ in nothing but what is studied."""
  config = default_config()
  config.name = 'mnist-inputs' + '-quick' * quick
  config.replicas = 2 if quick else 3
  config.data.name, config.data.train, config.data.test = 'mnist', 'train[:20000]', 'train[50000:]'
  config.data.shifts, config.data.ood = ELSEWHERE[:2], ELSEWHERE[2:]
  config.teacher.members, config.teacher.epochs = 10, 20.0
  config.network.student.widths = (100, 300)
  config.distillation.epochs = 30.0
  for name, (_, changes) in STUDENTS.items():
    variant(config, name, 'kd' if name.startswith('kd') else 'hydra', **changes)
  config.students = tuple(STUDENTS)
  if quick:
    config.data.train, config.data.test = 'train[:1000]', 'train[59500:]'
    config.teacher.members, config.teacher.epochs = 3, 2.0
    config.students = QUICK
    for name in config.students:
      config.student[name].epochs = 2.0
    config.student.paper.hinton_epochs = 1.0
  return config


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows are students; columns what is kept of the ensemble, in-domain and elsewhere."""
  config = get_config(quick)
  of = lambda metric, heading: [Column(where, metric, f'{where} {heading}') for where in ELSEWHERE]
  scores = [
    Column('test', 'accuracy', 'accuracy', 'high'),
    Column('test', 'nll', 'NLL', 'low'),
    Column('test', 'rank_correlation', 'rank corr.', 'high'),
    Column('test', 'uncertainty_epistemic_ratio', 'model unc. ÷ ensemble'),
  ]
  table = Definition(
    title='What to distil on, by validation data',
    runs={'inputs': config},
    sections=[
      Section('On validation data', scores),
      Section('Rank correlation of model uncertainty with the ensemble', of('rank_correlation', '')),
      Section('Model uncertainty ÷ ensemble', of('uncertainty_epistemic_ratio', '')),
      Section('AUROC by model uncertainty ÷ ensemble', of('auroc_uncertainty_epistemic_ratio', '')),
    ],
    labels={name: label for name, (label, _) in STUDENTS.items()},
    against='train',
    tested=('nll',),
  )
  return {'': table}
