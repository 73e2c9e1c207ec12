"""Published numbers, as our tables show them beside ours: nothing that is not in the papers named here.

Park et al. 2025, Knowledge Distillation of Uncertainty using Deep Latent Factor Model, NeurIPS 2025. Their Hydra
has linear heads. Standard errors are over 10 random 90/10 splits (UCI) and 5 seeds (images); teachers have none.

Wang et al. 2026, Credal Ensemble Distillation for Uncertainty Quantification, AAAI 2026 (arXiv 2511.13766): CIFAR-10,
VGG16, 5 members. Standard errors of these numbers are not known to us.
"""

from collections.abc import Mapping, Sequence

from hydra_jax.maths.statistics import Published

SOURCE = 'Published: Park et al., Knowledge Distillation of Uncertainty using Deep Latent Factor Model, NeurIPS 2025.'

SOURCE_CED = (
  'VGG16, 5 members: Wang et al., Credal Ensemble Distillation for Uncertainty Quantification, AAAI 2026, '
  'a setting that is not run here.'
)

SPLITS, SEEDS = 10, 5

UCI_SETS = ('bostonHousing', 'concrete', 'energy', 'wine-quality-red', 'power-plant', 'kin8nm')
# By metric and method, for each of these sets.
UCI: Mapping[tuple[str, str], tuple[tuple[float, ...], ...]] = {
  ('nll', 'ensemble'): ((2.3850,), (3.1134,), (0.8533,), (0.7980,), (2.8586,), (-1.1109,)),
  ('nll', 'hydra_train'): (
    (2.4843, 0.0478),
    (3.2586, 0.0293),
    (0.9914, 0.0660),
    (0.8322, 0.0166),
    (2.8604, 0.0017),
    (-0.9434, 0.0307),
  ),
  ('nll', 'batch_ensemble'): (
    (2.4892, 0.0408),
    (3.2241, 0.0332),
    (0.9879, 0.0511),
    (0.8065, 0.0138),
    (2.8628, 0.0010),
    (-0.9115, 0.0808),
  ),
  ('nll', 'dlf'): (
    (2.4346, 0.1147),
    (3.1584, 0.0463),
    (0.8525, 0.0471),
    (0.8230, 0.0199),
    (2.8591, 0.0010),
    (-1.0754, 0.0126),
  ),
  ('rmse', 'ensemble'): ((2.5786,), (5.6191,), (0.5692,), (0.5497,), (4.2197,), (0.0794,)),
  ('rmse', 'hydra_train'): (
    (2.8346, 0.0835),
    (6.0558, 0.1366),
    (0.6549, 0.0360),
    (0.5689, 0.0114),
    (4.2284, 0.0074),
    (0.0932, 0.0023),
  ),
  ('crps', 'ensemble'): ((1.4425,), (2.9926,), (0.3137,), (0.2962,), (2.3360,), (0.0443,)),
  ('crps', 'hydra_train'): (
    (1.6041, 0.0494),
    (3.3084, 0.0639),
    (0.3622, 0.0216),
    (0.3075, 0.0040),
    (2.3405, 0.0048),
    (0.0518, 0.0012),
  ),
  ('coverage_95', 'ensemble'): ((0.9608,), (0.9515,), (1.0,), (0.9750,), (0.9697,), (0.9610,)),
  ('coverage_95', 'hydra_train'): (
    (0.8995, 0.0109),
    (0.9097, 0.0115),
    (0.9948, 0.0091),
    (0.9594, 0.0053),
    (0.9782, 0.0003),
    (0.9407, 0.0046),
  ),
}

# By method: accuracy, NLL and ECE, which the paper has in per cent but for NLL, and detection by model uncertainty.
CIFAR: Mapping[str, Mapping[str, Mapping[tuple[str, str], tuple[float, ...]]]] = {
  'cifar10': {
    'ensemble': {
      ('test', 'accuracy'): (0.9424,),
      ('test', 'nll'): (0.1539,),
      ('test', 'ece'): (0.009,),
      ('svhn_cropped', 'auroc_uncertainty_epistemic'): (0.9403,),
      ('cifar100', 'auroc_uncertainty_epistemic'): (0.8604,),
    },
    'hydra_train': {
      ('test', 'accuracy'): (0.9316, 0.0006),
      ('test', 'nll'): (0.2660, 0.0063),
      ('test', 'ece'): (0.0415, 0.0001),
      ('svhn_cropped', 'auroc_uncertainty_epistemic'): (0.7178, 0.0107),
      ('cifar100', 'auroc_uncertainty_epistemic'): (0.6644, 0.0083),
    },
    'latent_batch_ensemble': {
      ('test', 'accuracy'): (0.9325, 0.0026),
      ('test', 'nll'): (0.2480, 0.0053),
      ('test', 'ece'): (0.0411, 0.0010),
      ('svhn_cropped', 'auroc_uncertainty_epistemic'): (0.8329,),
      ('cifar100', 'auroc_uncertainty_epistemic'): (0.8107,),
    },
    'proxy_endd': {
      ('test', 'accuracy'): (0.9092, 0.0028),
      ('test', 'nll'): (0.2861, 0.0027),
      ('test', 'ece'): (0.0208, 0.0019),
      ('svhn_cropped', 'auroc_uncertainty_epistemic'): (0.8427,),
      ('cifar100', 'auroc_uncertainty_epistemic'): (0.8427,),
    },
    'dlf': {
      ('test', 'accuracy'): (0.9340, 0.0014),
      ('test', 'nll'): (0.2246, 0.0023),
      ('test', 'ece'): (0.0279, 0.0020),
      ('svhn_cropped', 'auroc_uncertainty_epistemic'): (0.9359,),
      ('cifar100', 'auroc_uncertainty_epistemic'): (0.8357,),
    },
    'edfm': {
      ('test', 'accuracy'): (0.9062,),
      ('test', 'nll'): (0.2858,),
      ('test', 'ece'): (0.0278,),
    },
  },
  'cifar100': {
    'ensemble': {
      ('test', 'accuracy'): (0.8136,),
      ('test', 'nll'): (0.7167,),
      ('test', 'ece'): (0.0141,),
    },
    'hydra_train': {
      ('test', 'accuracy'): (0.7742, 0.0015),
      ('test', 'nll'): (1.2912, 0.0272),
      ('test', 'ece'): (0.1270, 0.0037),
    },
    'latent_batch_ensemble': {
      ('test', 'accuracy'): (0.7958, 0.0040),
      ('test', 'nll'): (1.0110, 0.0087),
      ('test', 'ece'): (0.1342, 0.0042),
    },
    'proxy_endd': {
      ('test', 'accuracy'): (0.6762, 0.0022),
      ('test', 'nll'): (1.2355, 0.0151),
      ('test', 'ece'): (0.0735, 0.0025),
    },
    'dlf': {
      ('test', 'accuracy'): (0.7968, 0.0023),
      ('test', 'nll'): (0.8974, 0.0042),
      ('test', 'ece'): (0.0945, 0.0031),
    },
    'edfm': {
      ('test', 'accuracy'): (0.6417,),
      ('test', 'nll'): (1.6741,),
      ('test', 'ece'): (0.1135,),
    },
  },
}


# On CIFAR-10, by method; the paper has them in per cent.
CED: Mapping[str, Mapping[tuple[str, str], float]] = {
  'ensemble': {('test', 'ece'): 0.0146, ('svhn_cropped', 'auroc_uncertainty_epistemic'): 0.8999},
  'single': {('test', 'accuracy'): 0.9179},
  'kd': {('test', 'accuracy'): 0.9218},
  'mc_dropout': {('svhn_cropped', 'auroc_uncertainty_epistemic'): 0.5142},
  'endd': {('test', 'accuracy'): 0.7456, ('svhn_cropped', 'auroc_uncertainty_epistemic'): 0.9094},
  'ced': {
    ('test', 'accuracy'): 0.9223,
    ('test', 'ece'): 0.0671,
    ('svhn_cropped', 'auroc_uncertainty_epistemic'): 0.9356,
  },
}


def _number(numbers: Sequence[float], replicas: int) -> Published:
  """A number with its standard error, if it has one, and the number of replicas it is over."""
  return Published(*numbers, replicas) if len(numbers) > 1 else Published(*numbers)


def uci() -> dict[tuple[str, str, str, str], Published]:
  """By (set, `test`, method, metric)."""
  return {
    (name, 'test', method, metric): _number(numbers, SPLITS)
    for (metric, method), sets in UCI.items()
    for name, numbers in zip(UCI_SETS, sets, strict=True)
  }


def cifar(name: str, run: str) -> dict[tuple[str, str, str, str], Published]:
  """By (run, split, method, metric)."""
  return {
    (run, split, method, metric): _number(numbers, SEEDS)
    for method, cells in CIFAR[name].items()
    for (split, metric), numbers in cells.items()
  }


def ced() -> dict[tuple[str, str, str, str], Published]:
  """By (setting, split, method, metric), on CIFAR-10."""
  return {
    ('VGG16, 5 members', split, method, metric): Published(number)
    for method, cells in CED.items()
    for (split, metric), number in cells.items()
  }
