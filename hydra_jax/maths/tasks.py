"""What a network's outputs mean: one row for classification, one for regression.

Everything downstream (training, evaluation, tables, figures) reads a task and never asks which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hydra_jax.maths import calibration, credal, losses, metrics, prior_networks, uncertainty
from hydra_jax.maths.uncertainty import Uncertainty

Scores = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Predictive:
  """How outputs become a predictive distribution.

  Attributes:
    outputs: Number of network outputs, in training, for a number of classes or targets.
    read: `outputs [H, B, …] -> distribution`, in units of the network: what `Task.scores` takes.
    epistemic: What its model uncertainty is, and its unit, where that is no part of the total.
  """

  outputs: Callable[[int], int]
  read: Callable
  epistemic: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
  """A kind of prediction.

  Attributes:
    predictives: By name; `members` (one for each head), `prior` (a distribution over predictions), `credal` (class
      intervals), `density` (of features).
    label: Loss against labels, `(outputs [H, B, C], y) -> [H, B]`.
    mixture: Loss of the mixture of all heads, in two parts: `outputs [H, B, C] -> [H, B, K]`, whose means over heads it
      depends on, and its negative log-likelihood, `(means [B, K], y) -> [B]`.
    member: Loss of head m against member m, `(outputs, teacher [M, B, C], temperature) -> [M, B]`.
    mean: Loss of each head against the mean prediction, same arguments, `[H, B]`.
    mean_term: Part of the loss that is on the mean of all heads, `(outputs, teacher, common [B, C]) -> [H, B]`.
    rescale: `(outputs [H, B, …], s) -> outputs`, whose heads differ s times as much; their mean stays.
    size: Mean model uncertainty of outputs, `[H, B, …] -> []`, which `rescale` changes.
    prior: Loss of a distribution over predictions against all members, same arguments, `[H, B]`.
    canonical: Outputs without what a prediction does not depend on, `[M, B, C] -> [M, B, C]`.
    proxy: Loss of a distribution over predictions against one that stands for all members,
      `(outputs, teacher) -> [H, B]`.
    scores: Scores of every example, `(distribution, y) -> {name: [B, …]}`, where y is what the network learns.
    in_units: The same in the units of the targets, on the host in float64, `(scores, y_scale [D]) -> {name: [N]}`.
    averages: Metric names and the score each is the mean of.
    label_scale: `(distribution, y [N]) -> float`, what label calibration finds on examples that nothing was trained on.
    scale_name: What it is, as a metric.
    held_out: What decides when a head is trained enough, its NLL after label calibration of this head alone, in two
      parts: `(outputs [H, B, C], y) -> [H, B, K]`, and `means over rows [H, K] -> [H]`.
    member_scale: `(outputs [M, N, C], y) -> float`, a label scale of the members themselves, for `with_scale`.
    with_scale: `(outputs [H, B, C], scale) -> outputs`, the temperature or factor of variances of all members.
    calibrated: `(distribution, y, label_scale) -> {score: [B]}`, scores of each example after label calibration.
    skill: `(scores, y [N] or [N, D]) -> ` how far the mean outcome is on the way from the best constant prediction, 0,
      to a perfect one, 1; NaN where y is constant.
    outcome: The score that tells how good a prediction is, whose mean is drawn where uncertain ones are rejected.
    summary: Metrics that are not plain means, `(scores, bins) -> {name: value}`.
    headline: Columns of the table, `{metric: (heading, better, relative)}`, see `tables.Column`.
    under_shift: Metrics drawn against the strength of a shift.
    unit: Of uncertainties.
  """

  predictives: Mapping[str, Predictive]
  label: Callable
  mixture: tuple[Callable, Callable]
  member: Callable
  mean: Callable
  mean_term: Callable | None
  rescale: Callable
  size: Callable
  prior: Callable
  canonical: Callable
  proxy: Callable | None
  scores: Callable
  in_units: Callable[[Scores, np.ndarray], Scores]
  averages: Mapping[str, str]
  outcome: str
  label_scale: Callable[..., float]
  scale_name: str
  held_out: tuple[Callable, Callable]
  member_scale: Callable[..., float]
  with_scale: Callable
  calibrated: Callable[..., dict[str, jax.Array]]
  skill: Callable[[Scores, np.ndarray], float]
  summary: Callable[[Scores, int], dict[str, float]]
  headline: Mapping[str, tuple[str, ...]]
  under_shift: tuple[str, ...]
  unit: str


class Categorical(NamedTuple):
  """A predictive distribution over classes: log mean probabilities `[B, C]`, and its uncertainty.

  Where it is made of members, also how many pairs of them disagree, see `uncertainty.disagreement`. Where the model
  uncertainty is no part of the total, also `orders_only`, which is 1, see `uncertainty.has_size`.
  """

  log_mean: jax.Array
  uncertainty: Uncertainty
  disagreement: jax.Array | None = None
  orders_only: jax.Array | None = None


def categorical_members(logits_MxBxC) -> Categorical:
  """The equal-weight mixture of the members."""
  log_p = jax.nn.log_softmax(logits_MxBxC)
  return Categorical(losses.log_mean_exp(log_p), uncertainty.classification(log_p), uncertainty.disagreement(log_p))


def dirichlet(logits_1xBxC) -> Categorical:
  """A Dirichlet with concentrations exp(logits): its mean and, in closed form, its uncertainty."""
  log_alpha = logits_1xBxC[0]
  return Categorical(prior_networks.dirichlet_mean(log_alpha), prior_networks.dirichlet_uncertainty(log_alpha))


def credal_set(outputs_1xBxK) -> Categorical:
  """Class intervals: their intersection probability, and the entropies of the set, see `credal.uncertainty`."""
  logits, lengths, share = credal.read(outputs_1xBxK[0])
  bounds = credal.around(jax.nn.softmax(logits), lengths, share)
  return Categorical(jax.nn.log_softmax(logits), credal.uncertainty(*bounds))


def with_density(outputs_1xBxK) -> Categorical:
  """Logits of C classes, and then −log of a density, which is the model uncertainty: it is no part of the total."""
  log_p = jax.nn.log_softmax(outputs_1xBxK[0, :, :-1])
  entropy = uncertainty.entropy(log_p)
  return Categorical(log_p, Uncertainty(entropy, entropy, outputs_1xBxK[0, :, -1]), orders_only=jnp.ones_like(entropy))


def classification_scores(prediction: Categorical, labels_B) -> dict[str, jax.Array]:
  """Scores of each example; those against the label are meaningless where it is −1 (none)."""
  log_mean, labels = prediction.log_mean, jnp.maximum(labels_B, 0)
  return {
    'nll': metrics.nll(log_mean, labels),
    'brier': metrics.brier(log_mean, labels),
    'correct': (jnp.argmax(log_mean, axis=-1) == labels).astype(jnp.float32),
    'confidence': jnp.exp(jnp.max(log_mean, axis=-1)),
    **prediction.uncertainty.named(),
    **({} if prediction.disagreement is None else {'disagreement': prediction.disagreement}),
    **({} if prediction.orders_only is None else {uncertainty.ORDERS_ONLY: prediction.orders_only}),
  }


def categorical_temperature(prediction: Categorical, labels_N) -> float:
  """See `calibration.temperature`."""
  return calibration.temperature(np.asarray(prediction.log_mean), np.asarray(labels_N))


def tempered_scores(prediction: Categorical, labels_B, temperature) -> dict[str, jax.Array]:
  """Scores of each example at a temperature of the mean prediction; without a label (−1), the NLL is no score."""
  log_mean = calibration.tempered(prediction.log_mean, temperature)
  return {
    'nll_calibrated': metrics.nll(log_mean, jnp.maximum(labels_B, 0)),
    'confidence_calibrated': jnp.exp(jnp.max(log_mean, axis=-1)),
  }


def classification_skill(scores: Scores, labels_N: np.ndarray) -> float:
  """(accuracy − share of the most frequent class) / (1 − that share)."""
  most = np.bincount(labels_N).max() / len(labels_N)
  return float((np.mean(scores['correct'], dtype=np.float64) - most) / (1 - most)) if most < 1 else math.nan


def classification_summary(scores: Scores, bins: int) -> dict[str, float]:
  """Calibration of a whole set, and where there is a temperature, also with it."""
  correct = scores['correct']
  error = lambda confidence: metrics.calibration_error(metrics.calibration_bins(confidence, correct, bins))
  found = {
    'ece': error(scores['confidence']),
    'adaptive_ece': metrics.adaptive_calibration_error(scores['confidence'], correct, bins),
  }
  if 'confidence_calibrated' in scores:
    found['ece_calibrated'] = error(scores['confidence_calibrated'])
  return found


def normal_wishart(outputs_1xBx4D) -> losses.Gaussian:
  """A normal-Wishart, as an equal-weight mixture of Gaussians that represents it."""
  return prior_networks.normal_wishart_members(outputs_1xBx4D, PRIOR_MEMBERS)


def regression_scores(mixture: losses.Gaussian, y_BxD) -> dict[str, jax.Array]:
  """Scores of each example and target, `[B, D]`, and of the joint densities, `[B]`, in units of the network."""
  mean, var = mixture
  pit = metrics.mixture_cdf(mean, var, y_BxD)
  return {
    'squared_error': jnp.square(jnp.mean(mean, axis=0) - y_BxD),
    'nll': metrics.mixture_nll(mean, var, y_BxD),
    'nll_gaussian': metrics.moment_nll(mean, var, y_BxD),
    'crps': metrics.crps(mean, var, y_BxD),
    'covered': (jnp.abs(pit - 0.5) <= 0.475).astype(jnp.float32),
    'pit': pit,
    **uncertainty.regression(mean, var).named(),
  }


def mixture_variance_scale(mixture: losses.Gaussian, y_NxD) -> float:
  """See `calibration.variance_scale`."""
  mean, var = mixture
  return calibration.variance_scale(np.asarray(mean), np.asarray(var), np.asarray(y_NxD))


def scaled_scores(mixture: losses.Gaussian, y_BxD, scale) -> dict[str, jax.Array]:
  """Scores of each example with the variances of all members times a scale: the NLL, `[B]`."""
  mean, var = mixture
  return {'nll_calibrated': metrics.mixture_nll(mean, scale * var, y_BxD)}


# Power of the unit of the target in a score. A density has it in its logarithm.
POWERS = {'squared_error': 2, 'crps': 1, 'covered': 0, 'pit': 0, **dict.fromkeys(uncertainty.WORDS, 2)}


def regression_in_units(scores: Scores, y_scale: np.ndarray) -> Scores:
  """Scores of each example, `[N]`, in the units of the targets, computed in float64.

  Of several targets, `squared_error_0`, `crps_0`, `pit_0` and so on are those of each. As their units may differ, the
  squared error and the variances of all are means over targets in units of the variance of each in the training split.
  CRPS and coverage are plain means over targets, and NLL is that of the joint density.
  """
  found, several = {}, len(y_scale) > 1
  for name, values in scores.items():
    if name not in POWERS:
      found[name] = np.asarray(values, np.float64) + np.sum(np.log(y_scale))
      continue
    standard_NxD = np.asarray(values, np.float64)
    values_NxD = standard_NxD * y_scale ** POWERS[name]
    if several and name in ('squared_error', 'crps', 'pit'):
      found |= {f'{name}_{d}': column for d, column in enumerate(values_NxD.T)}
    found[name] = np.mean(standard_NxD if several and POWERS[name] == 2 else values_NxD, axis=1)
  return found


def regression_skill(scores: Scores, y_NxD: np.ndarray) -> float:
  """R², the mean over targets: 1 − mean squared error / variance."""
  names = ['squared_error'] if y_NxD.shape[1] == 1 else [f'squared_error_{d}' for d in range(y_NxD.shape[1])]
  variances = np.var(y_NxD, axis=0, dtype=np.float64)
  found = [1 - np.mean(scores[name]) / variance for name, variance in zip(names, variances, strict=True) if variance]
  return float(np.mean(found)) if found else math.nan


def regression_summary(scores: Scores, bins: int) -> dict[str, float]:
  """Root of the mean squared error: of several targets each, and their mean, as scikit-learn has it."""
  del bins
  root = lambda name: float(np.sqrt(np.mean(scores[name], dtype=np.float64)))
  targets = [name.removeprefix('crps') for name in scores if name.startswith('crps_')]
  rmse = {f'rmse{target}': root(f'squared_error{target}') for target in targets or ['']}
  crps = {f'crps{target}': float(np.mean(scores[f'crps{target}'], dtype=np.float64)) for target in targets}
  return {**rmse, 'rmse': float(np.mean(list(rmse.values()))), **crps}


def _at_one(loss):
  """A loss without a temperature, called with temperature 1 (`config.validate` sees to it)."""
  return lambda student, teacher, temperature: loss(student, teacher)


# Gaussians that stand for a normal-Wishart in the evaluation of mixtures.
PRIOR_MEMBERS = 64
UNCERTAINTIES = {name: name for name in uncertainty.WORDS}

TASKS = {
  'classification': Task(
    predictives={
      'members': Predictive(lambda classes: classes, categorical_members),
      'prior': Predictive(lambda classes: classes, dirichlet),
      'credal': Predictive(lambda classes: 2 * classes + 1, credal_set),
      'density': Predictive(lambda classes: classes, with_density, ('−log of the density of the features', 'nats')),
    },
    label=losses.cross_entropy,
    mixture=(jax.nn.softmax, losses.mean_nll),
    member=losses.hydra,
    mean=losses.distillation,
    mean_term=losses.mean_term,
    rescale=calibration.spread_logits,
    size=calibration.mutual_information,
    prior=prior_networks.endd,
    canonical=lambda logits: logits - jnp.mean(logits, axis=-1, keepdims=True),
    proxy=prior_networks.proxy_endd,
    scores=classification_scores,
    in_units=lambda scores, y_scale: scores,
    averages={
      'accuracy': 'correct',
      **{name: name for name in ('nll', 'nll_calibrated', 'brier', 'disagreement')},
      **UNCERTAINTIES,
    },
    outcome='correct',
    label_scale=categorical_temperature,
    scale_name='temperature',
    held_out=(calibration.tempered_nlls, calibration.least_tempered_nll),
    member_scale=calibration.member_temperature,
    with_scale=calibration.tempered_logits,
    calibrated=tempered_scores,
    skill=classification_skill,
    summary=classification_summary,
    headline={
      'accuracy': ('acc.', 'high'),
      'nll': ('NLL', 'low'),
      'nll_calibrated': ('NLL cal.', 'low'),
      'brier': ('Brier', 'low'),
      'ece': ('ECE', 'low'),
      'uncertainty_epistemic': ('model unc.', ''),
      'rank_correlation': ('rank corr.', 'high'),
    },
    under_shift=('accuracy', 'nll', 'ece', *uncertainty.RANKINGS),
    unit='nats',
  ),
  'regression': Task(
    predictives={
      'members': Predictive(lambda targets: 2 * targets, losses.gaussian),
      'prior': Predictive(lambda targets: 4 * targets, normal_wishart),
    },
    label=losses.gaussian_nll,
    mixture=(losses.gaussian_moments, losses.moment_nll),
    member=_at_one(losses.gaussian_hydra),
    mean=_at_one(losses.gaussian_distillation),
    mean_term=None,
    rescale=calibration.spread_means,
    size=calibration.variance_of_means,
    prior=prior_networks.normal_wishart_nll,
    canonical=lambda outputs: outputs,
    proxy=None,
    scores=regression_scores,
    in_units=regression_in_units,
    averages={
      **{name: name for name in ('nll', 'nll_calibrated', 'nll_gaussian', 'crps')},
      'coverage_95': 'covered',
      **UNCERTAINTIES,
    },
    outcome='squared_error',
    label_scale=mixture_variance_scale,
    scale_name='variance_scale',
    held_out=(calibration.gaussian_statistics, calibration.least_scaled_nll),
    member_scale=calibration.member_variance_scale,
    with_scale=calibration.scaled_variances,
    calibrated=scaled_scores,
    skill=regression_skill,
    summary=regression_summary,
    headline={
      'rmse': ('RMSE', 'low'),
      'nll': ('NLL', 'low', 'difference'),
      'nll_calibrated': ('NLL cal.', 'low', 'difference'),
      'nll_gaussian': ('NLL (Gauss)', 'low', 'difference'),
      'crps': ('CRPS', 'low'),
      'coverage_95': ('cover. 95%', ''),
      'uncertainty_epistemic': ('model unc.', ''),
      'rank_correlation': ('rank corr.', 'high'),
    },
    under_shift=('rmse', 'crps', 'uncertainty_epistemic'),
    unit='variance',
  ),
}
