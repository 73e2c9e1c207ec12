"""Prior Networks: students that predict the parameters of a Dirichlet or a normal-Wishart.

Losses are as in `losses`: one value for each head and example, `[H, B]` float32, not reduced; H is normally 1. Teacher
predictions are `[M, B, …]`. The members are seen as draws from the distribution that the student predicts.

A Dirichlet is given by ln α, the logits of a network. Members that agree pull α to infinity, where the error of ln Γ(α)
in float32 is α ln α / 10⁷. So Γ and ψ are only used after their leading terms for large arguments are subtracted, see
`_log_gamma_rest` and `_digamma_rest`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, ndtri
import numpy as np

from hydra_jax.maths import losses
from hydra_jax.maths.uncertainty import Uncertainty, entropy

# Optimizers square gradients. Above this bound the square is not finite in float32.
MAX_LOG_PRECISION = 40.0
# Lower bound of the KL of members: if they agree, a KL of 0 would be an infinite precision. The authors' code adds it.
MIN_KL = float(jnp.finfo(jnp.float32).eps)
# Above this argument four terms of Stirling's series are exact in float32.
SERIES_FROM = 8.0
MIN_KAPPA = 1e-6
# The authors' bound. Below 2 there is no variance, and near 2 all of it is in the tail.
MIN_DOF = 3.0
PLASTIC_NUMBER = 1.324717957244746


def annealed(done: jax.Array, start: float, end: float = 1.0, until: float = 0.5) -> jax.Array:
  """A temperature that goes linearly from `start` to `end`, and then stays.

  Malinin et al. (2020) start at 10 or 2.5 and end at 1. The likelihood of a Dirichlet is hard to maximise where its
  mass is in the corners. A high temperature moves all members to the middle.

  Args:
    done: Share of the training that is over, 0 to 1.
    start: Value at 0.
    end: Value from `until` on.
    until: Share of the training at which `end` is reached.

  Example:
    >>> annealed(jnp.array([0.0, 0.25, 1.0]), 10.0)
    Array([10. ,  5.5,  1. ], dtype=float32)
  """
  return start + (end - start) * jnp.minimum(done / until, 1)


def _log_gamma_rest(log_x: jax.Array) -> jax.Array:
  """Ln Γ(x) − x ln x + x, by Stirling's series where x is large; falls as ½ ln(2π/x)."""
  large, x, inverse = _split(log_x)
  series = 0.5 * (jnp.log(2 * jnp.pi) - log_x) + inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
  # Γ(x) = Γ(1 + x) / x stays finite where x underflows to 0 and only its logarithm is left.
  return jnp.where(large, series, gammaln(1 + x) - log_x - x * log_x + x)


def _digamma_rest(log_x: jax.Array) -> jax.Array:
  """ψ(1 + x) − ln x, positive and falling; 1/2x where x is large."""
  large, x, inverse = _split(log_x)
  series = inverse * (1 / 2 - inverse * (1 / 12 - inverse**2 * (1 / 120 - inverse**2 / 252)))
  return jnp.where(large, series, digamma(1 + x) - log_x)


def _split(log_x: jax.Array):
  """Whether x is large, x, and 1/x.

  Where x is large, 1/x is used and x is 1. Elsewhere x is used and 1/x is 1. So all gradients are finite.
  """
  large = log_x > np.log(SERIES_FROM)
  return large, jnp.exp(jnp.where(large, 0, log_x)), jnp.exp(-jnp.where(large, log_x, 0))


def _log_sum(log_x: jax.Array) -> jax.Array:
  return jax.nn.logsumexp(log_x, axis=-1, keepdims=True)


def _bounded(log_alpha: jax.Array) -> jax.Array:
  """The same mean, with a precision α_0 of at most exp(40)."""
  return log_alpha - jnp.maximum(_log_sum(log_alpha) - MAX_LOG_PRECISION, 0)


def dirichlet_mean(log_alpha: jax.Array) -> jax.Array:
  """Log mean probabilities ln(α_c / α_0), `[…, C]`.

  Example:
    >>> dirichlet_mean(jnp.log(jnp.array([1.0, 1.0])))
    Array([-0.693..., -0.693...], dtype=float32)
  """
  return jax.nn.log_softmax(log_alpha)


def dirichlet_uncertainty(log_alpha_BxC: jax.Array) -> Uncertainty:
  """Entropy of the mean, mean entropy and mutual information of a Dirichlet, `[B]` each, in nats.

  aleatoric = −Σ_c p_c [ψ(α_c + 1) − ψ(α_0 + 1)] with p_c = α_c / α_0 (Malinin and Gales 2018).
  epistemic = Σ_c p_c [g(α_c) − g(α_0)] with g(x) = ψ(x + 1) − ln x. No term is negative, because g falls. For a high
  precision it is about (C − 1) / 2α_0; there total − aleatoric would be a rounding error.

  Args:
    log_alpha_BxC: ln α.

  Example:
    >>> dirichlet_uncertainty(jnp.log(jnp.array([[1.0, 1.0]]))).epistemic  # of two classes: ln 2 − ½
    Array([0.193...], dtype=float32)
  """
  log_alpha = _bounded(log_alpha_BxC)
  log_p = dirichlet_mean(log_alpha)
  terms = jnp.exp(log_p) * (_digamma_rest(log_alpha) - _digamma_rest(_log_sum(log_alpha)))
  epistemic = jnp.maximum(jnp.sum(terms, axis=-1), 0)
  aleatoric = jnp.maximum(entropy(log_p) - epistemic, 0)
  return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def endd(
  logits_HxBxC: jax.Array, teacher_MxBxC: jax.Array, temperature: float = 1.0, smoothing: float = 1e-4
) -> jax.Array:
  """−1/M Σ_m ln Dir(π_m; α), α = exp(a / T), `[H, B]`: EnD² (Malinin et al. 2020, arXiv 1905.00076).

  Members are π_m = (1 − ε) softmax(b_m / T) + ε / C, as in the authors' code ("subtract mean, scale down, add mean
  back"), because a density at a corner of the simplex is 0 or infinite.
  With p = α / α_0, ḡ_c = 1/M Σ_m ln π_mc and s(x) = ln Γ(x) − x ln x + x the loss is

      Σ_c α_c (ln p_c − ḡ_c) + Σ_c ḡ_c − s(α_0) + Σ_c s(α_c).

  There is no factor T²; only some of the authors' code has it. Value and gradient are finite for all logits. Above
  α_0 = exp(40) the loss does not depend on the precision.

  Args:
    logits_HxBxC: Logits a of the student.
    teacher_MxBxC: Logits b of the members.
    temperature: T.
    smoothing: ε.

  Raises:
    AssertionError: B or C differ.

  Example:
    >>> endd(jnp.zeros((1, 1, 3)), jnp.ones((4, 1, 3)))  # the density of Dir(1, 1, 1) is 2
    Array([[-0.693...]], dtype=float32)
  """
  chex.assert_equal_shape_suffix([logits_HxBxC, teacher_MxBxC], 2)
  log_pi = jax.nn.log_softmax(teacher_MxBxC / temperature)
  log_pi = jnp.logaddexp(log_pi + jnp.log1p(-smoothing), jnp.log(smoothing / log_pi.shape[-1]))
  log_g = jnp.mean(log_pi, axis=0)[None]
  log_alpha = _bounded(logits_HxBxC / temperature)
  terms = jnp.exp(log_alpha) * (dirichlet_mean(log_alpha) - log_g) + log_g + _log_gamma_rest(log_alpha)
  return jnp.sum(terms, axis=-1) - _log_gamma_rest(_log_sum(log_alpha))[..., 0]


def dirichlet_kl(log_alpha: jax.Array, log_beta: jax.Array) -> jax.Array:
  """KL(Dir(α) ‖ Dir(β)), for α_c ≥ 1, summed over the last axis.

  ln Γ(α_0)/Γ(β_0) − Σ_c ln Γ(α_c)/Γ(β_c) + Σ_c (α_c − β_c) [ψ(α_c) − ψ(α_0)]. Terms are arranged as in `endd`: all
  large terms are in β_0 KL(q ‖ p), where q and p are the means of Dir(β) and Dir(α).

  Args:
    log_alpha: ln α, `[…, C]`.
    log_beta: ln β, `[…, C]`.
  """
  rest = lambda log_x: _digamma_rest(log_x) - jnp.exp(-log_x)
  log_alpha_0, log_beta_0 = _log_sum(log_alpha), _log_sum(log_beta)
  alpha, beta = jnp.exp(log_alpha), jnp.exp(log_beta)
  terms = beta * ((log_beta - log_beta_0) - (log_alpha - log_alpha_0))
  terms += (alpha - beta) * (rest(log_alpha) - rest(log_alpha_0))
  terms += _log_gamma_rest(log_beta) - _log_gamma_rest(log_alpha)
  return jnp.sum(terms, axis=-1) + (_log_gamma_rest(log_alpha_0) - _log_gamma_rest(log_beta_0))[..., 0]


def proxy(teacher_MxBxC: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and precision of the Dirichlet that stands for the members: ln π̂ `[B, C]` and ln β_0 `[B]`.

  β_0 = (C − 1) / (2 Σ_c π̂_c (ln π̂_c − 1/M Σ_m ln π_mc)), by Stirling's approximation of its likelihood
  (Ryabinin et al. 2021; Minka 2000).

  Args:
    teacher_MxBxC: Logits of the members.
  """
  log_pi = jax.nn.log_softmax(teacher_MxBxC)
  log_mean = losses.log_mean_exp(log_pi)
  kl = jnp.sum(jnp.exp(log_mean) * (log_mean - jnp.mean(log_pi, axis=0)), axis=-1)
  return log_mean, jnp.log((log_pi.shape[-1] - 1) / 2) - jnp.log(jnp.maximum(kl, MIN_KL))


def proxy_endd(logits_HxBxC: jax.Array, teacher_MxBxC: jax.Array) -> jax.Array:
  """KL(Dir(α) ‖ Dir(β)) / β_0, α = exp(a) + 1 and β = π̂ β_0 + 1, `[H, B]` (Ryabinin et al. 2021, arXiv 2105.06987).

  Up to a constant it is the paper's sum of reconstruction and prior,

      E_{π ~ Dir(α)}[−Σ_c π̂_c ln π_c] + KL(Dir(α) ‖ Dir(1)) / β_0,

  and tends to KL(π̂ ‖ p) where members agree: there it is distillation. It is 0 at a = ln(π̂ β_0). So predictions read
  the logits as α = exp(a), without the 1. (The authors' code divides by β_0 + C, for a mean as large.)

  Args:
    logits_HxBxC: Logits a of the student.
    teacher_MxBxC: Logits of the members.

  Raises:
    AssertionError: B or C differ.
  """
  chex.assert_equal_shape_suffix([logits_HxBxC, teacher_MxBxC], 2)
  log_mean, log_precision = proxy(teacher_MxBxC)
  # ln(exp(a) + 1) = softplus(a).
  log_alpha = jax.nn.softplus(_bounded(logits_HxBxC))
  log_beta = jax.nn.softplus(log_mean + log_precision[:, None])[None]
  return dirichlet_kl(log_alpha, log_beta) * jnp.exp(-log_precision)[None]


class NormalWishart(NamedTuple):
  """A distribution over Gaussians N(μ, 1/λ), for each target by itself, `[…, D]` each.

  λ ~ Gamma(ν/2, rate νσ²/2) and μ | λ ~ N(m, 1/κλ). This is the normal-Wishart in one dimension, with scale matrix
  1/νσ², so that E[λ] = 1/σ². Its mixture is a Student-t with ν degrees of freedom, location m and squared scale
  σ² (κ + 1)/κ. Data uncertainty is E[1/λ] = σ² ν/(ν − 2), model uncertainty is Var[μ] = E[1/λ]/κ.

  Attributes:
    mean: m.
    var: σ².
    kappa: κ, the number of observations that the mean is worth.
    dof: ν, the number of observations that the precision is worth.
  """

  mean: jax.Array
  var: jax.Array
  kappa: jax.Array
  dof: jax.Array


def normal_wishart(outputs: jax.Array) -> NormalWishart:
  """Reads outputs `[…, 4D]`: 2D as `losses.gaussian` does, then κ = softplus(·) + 1e-6 and ν = softplus(·) + 3."""
  gaussian, raw = jnp.split(outputs, 2, axis=-1)
  kappa, dof = jnp.split(jax.nn.softplus(raw), 2, axis=-1)
  return NormalWishart(*losses.gaussian(gaussian), kappa + MIN_KAPPA, dof + MIN_DOF)


def normal_wishart_log_density(prior: NormalWishart, mean: jax.Array, var: jax.Array) -> jax.Array:
  """Log density of (μ, λ) = (mean, 1/var), element by element.

  With w = λσ² and s as in `endd`: −s(ν/2) − ν/2 (w − 1 − ln w) − ln λ + ln N(μ; m, 1/κλ).

  Args:
    prior: The distribution.
    mean: μ, `[…, D]`.
    var: 1/λ, `[…, D]`.
  """
  log_w = jnp.log(prior.var) - jnp.log(var)
  log_gamma = jnp.log(var) - 0.5 * prior.dof * (jnp.expm1(log_w) - log_w) - _log_gamma_rest(jnp.log(prior.dof / 2))
  return log_gamma + losses.gaussian_log_density(prior.mean, var / prior.kappa, mean)


def normal_wishart_nll(outputs_HxBx4D: jax.Array, teacher_MxBx2D: jax.Array, temperature: float = 1.0) -> jax.Array:
  """−1/(MT) Σ_m ln NW(μ_m, λ_m), summed over targets, `[H, B]` (Malinin et al. 2020, arXiv 2006.11590).

  As in the authors' code, the distance of means and variances of the members from their average is multiplied by
  2 / (T + 1), and κ and ν − 3 are multiplied by T.

  Args:
    outputs_HxBx4D: Outputs of the student, see `normal_wishart`.
    teacher_MxBx2D: Outputs of the members, see `losses.gaussian`.
    temperature: T.

  Raises:
    AssertionError: B or D differ.
  """
  prior, members = normal_wishart(outputs_HxBx4D), losses.gaussian(teacher_MxBx2D)
  chex.assert_equal_shape_suffix([prior.mean, *members], 2)
  prior = prior._replace(kappa=prior.kappa * temperature, dof=MIN_DOF + (prior.dof - MIN_DOF) * temperature)
  mean, var = (_drawn_together(x, temperature) for x in members)
  of_each_head = jax.tree.map(lambda x: x[:, None], prior)
  log_density = normal_wishart_log_density(of_each_head, mean[None], var[None])
  return -jnp.sum(jnp.mean(log_density, axis=1), axis=-1) / temperature


def _drawn_together(x_MxBxD: jax.Array, temperature: float) -> jax.Array:
  share = 2 / (temperature + 1)
  # average + share (x − average) would round a small variance to a negative number.
  return share * x_MxBxD + (1 - share) * jnp.mean(x_MxBxD, axis=0, keepdims=True)


def gamma_quantile(shape: jax.Array, u: jax.Array) -> jax.Array:
  """Quantile of Gamma(shape, rate 1), shapes from 1.5: within 2% above the first decile, within 10% below.

  Wilson and Hilferty (1931): a (1 − 1/9a + Φ⁻¹(u)/3√a)³. In the lower tail this is too low, even negative. There
  (u Γ(a + 1))^(1/a) is used. It is a lower bound, because Pr(X < x) ≤ x^a / Γ(a + 1), and the limit for u → 0.

  Args:
    shape: a.
    u: Probability, 0 to 1.
  """
  cube_root = 1 - 1 / (9 * shape) + ndtri(u) / (3 * jnp.sqrt(shape))
  bound = jnp.exp((jnp.log(u) + gammaln(shape + 1)) / shape)
  return jnp.maximum(shape * cube_root**3, bound)


def _even_points(count: int, targets: int) -> np.ndarray:
  """Pairs that fill the unit square evenly, the same for each target in another order, `[S, D, 2]`.

  Each coordinate takes each value (s + ½)/S once. Their order is that of the fractions of s/φ and of s/φ², φ³ = φ + 1
  (Roberts 2018, "The Unreasonable Effectiveness of Quasirandom Sequences").
  """
  fractions = np.outer(np.arange(1, count + 1), [PLASTIC_NUMBER**-1, PLASTIC_NUMBER**-2]) % 1
  pairs = (np.argsort(np.argsort(fractions, axis=0), axis=0) + 0.5) / count
  return np.stack([pairs[np.random.default_rng(d).permutation(count)] for d in range(targets)], axis=1)


def normal_wishart_members(outputs_1xBx4D: jax.Array, count: int) -> losses.Gaussian:
  """Equally weighted Gaussians that stand for a normal-Wishart.

  Precisions are quantiles of their gamma distribution. Means are quantiles given the precision. Nothing is random. Both
  are scaled so that mean, data and model uncertainty of the mixture are exact. The NLL of 64 members exceeds that of
  the Student-t by at most .03 nats a target where κ ≥ 1, and by .2 where κ = 0.1: the tails of a finite mixture have
  gaps where members differ by more than their width.

  Args:
    outputs_1xBx4D: Outputs of the student, see `normal_wishart`.
    count: S, at least 2.

  Returns:
    Mean and variance, `[S, B, D]` each.
  """
  prior = jax.tree.map(lambda x: x[None], normal_wishart(outputs_1xBx4D[0]))
  points = jnp.asarray(_even_points(count, prior.mean.shape[-1])[:, None], outputs_1xBx4D.dtype)
  var = 1 / gamma_quantile(prior.dof / 2, points[..., 0])
  data = prior.var * prior.dof / (prior.dof - 2)
  var *= data / jnp.mean(var, axis=0, keepdims=True)
  offset = jnp.sqrt(var) * ndtri(points[..., 1])
  offset -= jnp.mean(offset, axis=0, keepdims=True)
  offset *= jnp.sqrt(data / prior.kappa / jnp.mean(jnp.square(offset), axis=0, keepdims=True))
  return prior.mean + offset, var
