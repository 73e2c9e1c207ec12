"""CIFAR-10 with CIFAR-100, SVHN where `TFDS_DATA_DIR` has it, and corruptions.

    hydra-jax table cifar10            # the setting of Park et al. 2025; an accelerator's work
    hydra-jax table cifar10:small      # networks of three convolutions on all images
    hydra-jax table cifar10:members    # the same; students that ask two members in a step, or all ten
    hydra-jax table cifar10:long       # the same networks; students make 60 passes; for an accelerator
    hydra-jax table cifar10 --quick    # LeNets on 500 images, on a CPU: to see that it works

Full: 4 teachers WRN-28-1, students WRN-16-1, 200 epochs, 5 seeds; Hydra's heads are the last block and the dense layer.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs import cifar10
from experiments import published, table_style
from hydra_jax.config import supervised, update_training, variant
from hydra_jax.data.sources import default_data_dir, prepared
from hydra_jax.errors import UserError
from hydra_jax.experiment.paper_tables import Definition, Section
from hydra_jax.report.tables import Column, detection

STUDENTS = ('single', 'kd', 'kd_equal', 'endd', 'proxy_endd', 'hydra_train', 'hydra', 'dlf', 'edfm')
CONVOLUTIONS = (
  *('single', 'shallow_ensemble', 'mc_dropout', 'ddu', 'kd_equal', 'endd', 'proxy_endd', 'ced', 'moments', 'dlf'),
  *('edfm',),
  *('batch_ensemble', 'latent_batch_ensemble', 'hydra_train', 'hydra'),
)
QUICK = ('kd', 'endd', 'hydra_train', 'hydra')
# Adam, where SGD at the rate of the networks that classify diverges: as the likelihood of a Dirichlet does, and a flow.
GENTLE = dict(optimizer='adam', learning_rate=1e-3, weight_decay=0.0)
GENTLE_STUDENTS = ('endd', 'proxy_endd', 'dlf', 'edfm')
# Students that can learn from members that are drawn in each step.
DRAWING = ('kd_equal', 'endd', 'moments', 'hydra')


def get_tables(quick: bool) -> dict[str, Definition]:
  """Rows as in `mnist`, and what is published."""
  config = cifar10.get_config('quick,members=4' if quick else 'wrn28_1,members=4')
  full = image_table('cifar10', config, quick)
  return {'': full, 'small': small_table(quick), 'members': members_table(quick), 'long': long_table(quick)}


def small_table(quick: bool) -> Definition:
  """Networks of three convolutions on all of CIFAR-10."""
  config = cifar10.get_config('small')
  config.replicas = 2
  return table_of_convolutions('CIFAR-10, small networks', config, quick)


def members_table(quick: bool) -> Definition:
  """What it loses that students ask two members in each step, drawn at random, and not all."""
  config = cifar10.get_config('small')
  config.name, config.replicas = 'cifar10-members', 2
  found = table_of_convolutions('CIFAR-10, small networks: members that are asked in a step', config, quick)
  config.distillation.update(members_per_step=2, views=0)
  for name in DRAWING:
    variant(config, f'{name}_all', of=name, members_per_step=0)
  config.students = tuple(f'{name}{which}' for name in DRAWING for which in ('', '_all'))
  labels = {f'{name}_all': f'{table_style.LABELS[name]}, all members' for name in DRAWING}
  columns = table_style.columns(config.data.ood[0])
  section = replace(found.sections[0], columns=columns, methods=('ensemble', *config.students))
  return replace(found, sections=[section], labels=table_style.LABELS | labels, published={}, source='')


def long_table(quick: bool) -> Definition:
  """The same members; students, single networks too, make 60 passes."""
  config = cifar10.get_config('small')
  config.name, config.replicas = 'cifar10-long', 2
  config.distillation.update(epochs=60.0, views=60)
  for section in supervised(config):
    section.epochs = 60.0
  return table_of_convolutions('CIFAR-10, small networks, students of 60 passes', config, quick)


def table_of_convolutions(title: str, config: ConfigDict, quick: bool) -> Definition:
  """Rows and columns of both; `quick` is a run of a minute on 500 images."""
  config.students = CONVOLUTIONS
  table_style.add_mean_phases(config)
  if quick:
    config.name += '-quick'
    config.students = ('kd', 'hydra')
    config.teacher.members = 3
    config.data.train, config.data.test = 'train[:500]', 'test[:500]'
    config.data.ood, config.data.shifts = ('cifar100[:500]',), ('gaussian_noise:3',)
    update_training(config, epochs=2.0, warmup_epochs=0.5, learning_rate=1e-3)
    config.distillation.views = 2
  table_style.add_hydra_train(config)
  table_style.add_equal_terms(config)
  outside = config.data.ood[0]
  worst = [name for name in config.data.shifts if name.endswith(('3', '5'))]
  return Definition(
    title=title,
    runs={'cifar10': config},
    sections=[Section('Scores', columns_of(outside), ('ensemble', *config.students))],
    labels=table_style.LABELS,
    published=published.ced(),
    source=published.SOURCE_CED,
    tested=('nll', 'accuracy', 'brier'),
    kept=('test', *worst, outside),
  )


def image_table(name: str, config: ConfigDict, quick: bool) -> Definition:
  """A table of a set of photographs, its config as that of the full setting."""
  outside = ['cifar100' if name == 'cifar10' else 'cifar10', *['svhn_cropped'] * is_prepared('svhn_cropped')]
  config.name, config.replicas = f'{name}-table{"-quick" * quick}', 2 if quick else 5
  config.students = QUICK if quick else STUDENTS
  config.data.ood = tuple(f'{where}[:500]' if quick else where for where in outside)
  for student in GENTLE_STUDENTS:
    config.student[student].update(GENTLE)
  if quick:
    small(config)
  else:
    config.data.train = 'train[:80%]'
    config.student.edfm.mean_epochs = config.distillation.get('epochs', config.training.epochs) / 2
    config.network.student = cifar10.NETWORKS['wrn28_1'] | {'depth': 16 if name == 'cifar10' else 28}
  table_style.add_hydra_train(config)
  table_style.add_equal_terms(config)
  columns = columns_of(config.data.ood[0])
  others = [detection(where, 'uncertainty_epistemic') for where in config.data.ood[1:]]
  columns = [*(c for c in columns if c.split != 'cost'), *others, *(c for c in columns if c.split == 'cost')]
  return Definition(
    title=f'{name.upper().replace("CIFAR", "CIFAR-")}' + ', small' * quick,
    runs={name: config},
    sections=[Section('Scores', columns, ('ensemble', *config.students))],
    labels=table_style.LABELS,
    # In another setting, published numbers are there to be seen, and nothing is run to compare with them.
    published=published.cifar(name, 'full setting' if quick else name) | (published.ced() if name == 'cifar10' else {}),
    source=f'{published.SOURCE} {published.SOURCE_CED}' if name == 'cifar10' else published.SOURCE,
    rivals={'hydra': 'dlf'},
    tested=('nll', 'accuracy'),
    kept=('test', *config.data.shifts[1:2], *config.data.ood),
  )


def columns_of(outside: str) -> list[Column]:
  """Columns, with the ECE after a temperature: that of CED before it is published."""
  columns = table_style.columns(outside)
  place = next(i for i, column in enumerate(columns) if column.metric == 'ece') + 1
  return [*columns[:place], Column('test', 'ece_calibrated', 'ECE cal.', 'low'), *columns[place:]]


def small(config: ConfigDict) -> None:
  """LeNets that train within a minute on two cores."""
  config.network.teacher = config.network.student = ConfigDict(dict(name='lenet'))
  config.data.train, config.data.test = 'train[:500]', 'test[:500]'
  config.data.shifts = ('gaussian_noise:1', 'gaussian_noise:3', 'gaussian_noise:5')
  update_training(config, epochs=4.0, warmup_epochs=1.0, augment=(), **GENTLE)
  config.student.hydra.epochs = 8.0


def is_prepared(name: str) -> bool:
  """Whether a data set is in `TFDS_DATA_DIR`."""
  try:
    prepared(name, default_data_dir())
  except UserError:
    return False
  return True
