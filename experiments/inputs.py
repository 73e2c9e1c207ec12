"""What to distil on: the study behind Hydra's defaults, on validation data and what is made of training images alone.

    hydra-jax table inputs

10 MNIST members, trained on 20,000 images; each student sees as many, changed in other ways, for as many steps. Scores
are those on 10,000 further training images, rotated or moved, cut to pieces and put together again, and light for dark.
Neither test images nor Fashion-MNIST are looked at.
"""

from hydra_jax.config import IMAGES, default_config, variant
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column

ELSEWHERE = ('rotate:45', 'translate:6', 'collage', 'negative', 'noise')
# Twice the inputs, half the passes.
OTHER = dict(unlabelled=('cifar10[:20000]',), epochs=10.0, hinton_epochs=5.0)
FAST = dict(learning_rate=3e-3)
DIRECT = dict(hinton_epochs=0.0, epochs=30.0)
# Name, label, and what it changes. The hidden and the last layer are in the heads, but where it says dense.
STUDENTS = {
  'kd': ('KD, training data', {}),
  'kd_fast': ('KD, training data, rate × 3', FAST),
  'kd_three': ('KD, three kinds, rate × 3', IMAGES | FAST),
  'train': ("training data, dense heads (the paper's setting)", dict(cut=-1)),
  'train_deep': ('training data', {}),
  'train_fast': ('training data, rate × 3', FAST),
  'crop': ('moved by up to 4 pixels', dict(augment=('crop',))),
  'noise': ('noise', dict(augment=('noise',))),
  'mixup': ('mixup', dict(augment=('mixup',))),
  'ods': ('half ODS', dict(augment=('ods',), augment_share=0.5)),
  'conf_ods': ('half ConfODS', dict(augment=('conf_ods',), augment_share=0.5)),
  'shuffle': ('half shuffled blocks', dict(augment=('shuffle',), augment_share=0.5)),
  'scale': ('half scaled by −1 to 2', dict(augment=('scale',), augment_share=0.5)),
  'other': ('half CIFAR-10 images in grey', OTHER),
  'three': ('three kinds: half moved, half shuffled, half mixed', IMAGES),
  'three_dense': ('three kinds, dense heads', IMAGES | dict(cut=-1)),
  'three_warm': ('three kinds, T = 3', IMAGES | dict(temperature=3.0)),
  'three_direct': ('three kinds, no phase 1', IMAGES | DIRECT),
  'three_fast': ('three kinds, rate × 3', IMAGES | FAST),
  'hydra': ('three kinds, T = 3, no phase 1, rate × 3 (the default)', IMAGES | FAST | DIRECT | dict(temperature=3.0)),
}


def get_config(quick: bool):
  """One run, whose students differ in nothing but what is studied."""
  config = default_config()
  config.name = 'mnist-inputs' + '-quick' * quick
  config.replicas = 2 if quick else 3
  config.data.name, config.data.train, config.data.test = 'mnist', 'train[:20000]', 'train[50000:]'
  config.data.shifts, config.data.ood = ELSEWHERE[:2], ELSEWHERE[2:]
  config.teacher.members, config.teacher.epochs = 10, 20.0
  config.student.kd.update(dict(epochs=30.0, learning_rate=1e-3))
  plain = dict(temperature=1.0, hinton_epochs=10.0, epochs=20.0, learning_rate=1e-3, augment=(), augment_share=1.0)
  config.student.hydra.update(dict(cut=-2) | plain)
  for name, (_, changes) in STUDENTS.items():
    variant(config, name, 'kd' if name.startswith('kd') else 'hydra', **changes)
  config.students = tuple(STUDENTS)
  if quick:
    config.data.train, config.data.test = 'train[:1000]', 'train[59500:]'
    config.teacher.members, config.teacher.epochs = 3, 2.0
    config.students = ('kd', 'train', 'ods', 'other', 'hydra')
    config.student.other.unlabelled = ('cifar10[:500]',)
    for name in config.students:
      config.student[name].epochs = 2.0
      if config.student[name].get('hinton_epochs'):
        config.student[name].hinton_epochs = 1.0
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
