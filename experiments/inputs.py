"""What to distil on: the study behind Hydra's defaults, on validation data and what is made of training images alone.

    hydra-jax table inputs

10 MNIST members, trained on 20,000 images; each student sees as many, changed in other ways, for as many steps. Scores
are those on 10,000 further training images, rotated or moved, cut to pieces and put together anew, and light for dark.
Neither test images nor Fashion-MNIST are looked at.
"""

from hydra_jax.config import default_config, variant
from hydra_jax.reports import Definition, Section
from hydra_jax.tables import Column

ELSEWHERE = ('rotate:45', 'translate:6', 'collage', 'negative', 'noise')
MIXED = dict(augment=('mixup', 'noise'), augment_share=0.5)
# Twice the inputs, half the passes.
OTHER = dict(unlabelled=('cifar10[:20000]',), epochs=10.0, hinton_epochs=5.0)
# Name, how it is called, and what it changes. All but the first two have the hidden layer and the last in the heads.
STUDENTS = {
  'kd': ('KD, training data', {}),
  'kd_mixed': ('KD, half mixup and noise', MIXED),
  'train': ("training data, dense heads (the paper's setting)", dict(cut=-1)),
  'train_deep': ('training data', {}),
  'crop': ('moved by up to 4 pixels', dict(augment=('crop',))),
  'noise': ('noise', dict(augment=('noise',))),
  'mixup': ('mixup', dict(augment=('mixup',))),
  'ods': ('half ODS', dict(augment=('ods',), augment_share=0.5)),
  'conf_ods': ('half ConfODS', dict(augment=('conf_ods',), augment_share=0.5)),
  'shuffle': ('half shuffled blocks', dict(augment=('shuffle',), augment_share=0.5)),
  'scale': ('half scaled by −1 to 2', dict(augment=('scale',), augment_share=0.5)),
  'other': ('half CIFAR-10 images in grey', OTHER),
  'mixed': ('half mixup and noise', MIXED),
  'mixed_other': ('half mixup and noise, of both', MIXED | OTHER),
  'mixed_dense': ('half mixup and noise, dense heads', MIXED | dict(cut=-1)),
  'mixed_warm': ('half mixup and noise, T = 3', MIXED | dict(temperature=3.0)),
  'mixed_direct': ('half mixup and noise, no phase 1', MIXED | dict(hinton_epochs=0.0, epochs=30.0)),
}


def get_config(quick: bool):
  """One run, whose students differ in nothing but what is studied."""
  config = default_config()
  config.name = 'mnist-inputs' + '-quick' * quick
  config.replicas = 2 if quick else 3
  config.data.name, config.data.train, config.data.test = 'mnist', 'train[:20000]', 'train[50000:]'
  config.data.shifts, config.data.ood = ELSEWHERE[:2], ELSEWHERE[2:]
  config.teacher.members, config.teacher.epochs = 10, 20.0
  for name in ('kd', 'hydra'):
    config.student[name].epochs = 30.0 if name == 'kd' else 20.0
  config.student.hydra.update(dict(cut=-2, hinton_epochs=10.0, augment=(), augment_share=1.0))
  for name, (_, changes) in STUDENTS.items():
    if name != 'kd':
      variant(config, name, 'kd' if name.startswith('kd') else 'hydra', **changes)
  config.students = tuple(STUDENTS)
  if quick:
    config.data.train, config.data.test = 'train[:1000]', 'train[59500:]'
    config.teacher.members, config.teacher.epochs = 3, 2.0
    config.students = ('kd', 'train', 'ods', 'other', 'mixed')
    config.student.other.unlabelled = ('cifar10[:500]',)
    for name in config.students:
      config.student[name].epochs = 2.0
      if name != 'kd':
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
    Column('test', 'model_ratio', 'model unc. ÷ ensemble'),
  ]
  table = Definition(
    title='What to distil on, by validation data',
    runs={'inputs': config},
    sections=[
      Section('On validation data', scores),
      Section('Rank correlation of model uncertainty with the ensemble', of('rank_correlation', '')),
      Section('Model uncertainty ÷ ensemble', of('model_ratio', '')),
      Section('AUROC by model uncertainty ÷ ensemble', of('auroc_model_share', '')),
    ],
    labels={name: label for name, (label, _) in STUDENTS.items()},
    against='train',
    tested=('nll',),
  )
  return {'': table}
