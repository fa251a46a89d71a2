"""Scaling laws: fits with intervals, predictions that refuse to go too far, plans for a budget.

Conventions. N counts what the caller counts (say which: with embeddings or without, and FLOPs of
the head or not, move the exponent of N by .17, Porian et al. 2024); D are training tokens, C is
6 N D unless FLOPs are given; losses are nats per token. Losses compare within one tokenizer and one
held-out set, laws within one recipe: `differ` tells two apart.

The parametric form is L = E + A / N^α + B / D^β (Hoffmann et al. 2022, approach 3), fitted in logs
as they describe it: Huber of δ = 1e-3 on log-sum-exp, the *sum* over runs minimised from a grid of
starts (`fitting`; a mean stops too early: Besiroglu et al. 2024).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.interpolate
import scipy.optimize
import scipy.special

from smoljax.scaling import fitting

Array = np.ndarray | Sequence[float]

MOST = 10.0  # times the compute of the largest run that a prediction may go without force
LEVEL = 0.9  # of the intervals of predictions
NAMES = ('E', 'A', 'B', 'alpha', 'beta')

_SAME = 0.05  # sizes this close, in logs, are one
_STAGES = 12  # at most so many steps of compute are looked back on
_RESAMPLES = 32  # of each of them


class TooFar(ValueError):
  """A prediction at more than `MOST` times the compute that the law was fitted on."""


@dataclasses.dataclass(frozen=True)
class Fit:
  """L(N, D) = E + A / N^α + B / D^β.

  Attributes:
    objective: the sum of Huber losses at the fit.
    samples: of E, A, B, α, β over bootstrap resamples of sizes, `[K, 5]`; empty without.
    most_flops: compute of the largest run that it was fitted on.
    recipe: what the runs had in common; predictions for another one are refused.
    sizes: how many it was fitted on.
    spread: standard deviation of log loss about log law, of the half of the runs with the most
      compute.
    scores: how wrong the law was when fitted on less compute and asked for the next step of it, in
      standard errors of that prediction, signed; `step` is the longest step, in log compute.
    size_scores: likewise when fitted on smaller sizes and asked for the next.
    most_params: of the runs that it was fitted on.
  """

  E: float
  A: float
  B: float
  alpha: float
  beta: float
  objective: float = math.nan
  samples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 5)), repr=False)
  most_flops: float = math.inf
  recipe: str = ''
  sizes: int = 0
  spread: float = math.nan
  scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)
  step: float = math.nan
  size_scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0), repr=False)
  most_params: float = math.inf

  @property
  def intervals(self) -> dict[str, tuple[float, float]]:
    """95 % of each parameter, and of `a`, the exponent of N in C; empty without samples.

    The spread of the resamples times Student's t, whose degrees of freedom are the sizes beyond the
    three numbers that sizes tell: three sizes say nothing of how wrong they are.
    """
    if not len(self.samples):
      return {}
    found = {}
    for name, (middle, half, logs) in self._halves().items():
      low, high = middle - half, middle + half
      found[name] = max(low, 0.0) if name == 'E' else low, high
      if logs:
        found[name] = math.exp(low), math.exp(high) if high < 700 else math.inf
    return found

  def _halves(self) -> dict[str, tuple[float, float, bool]]:
    """Name → value, half its 95 % interval, and whether both are logarithms."""
    t, found = _t(self.sizes - 3, 0.975), {}
    alpha, beta = self.samples[:, 3], self.samples[:, 4]
    columns = dict(zip(NAMES, self.samples.T, strict=True)) | {
      'a': beta / np.maximum(alpha + beta, 1e-12)}
    for name, x in columns.items():
      logs, value = name in 'AB', getattr(self, name)
      x = np.log(np.maximum(x, 1e-30)) if logs else x
      low, high = np.percentile(x, [15.87, 84.13])  # one standard deviation, whatever the tails
      half = t * float(high - low) / 2 if t < math.inf else math.inf
      found[name] = math.log(max(value, 1e-30)) if logs else value, half, logs
    return found

  @property
  def a(self) -> float:
    """N_opt ∝ C^a."""
    return self.beta / (self.alpha + self.beta)

  def loss(self, params: Array, tokens: Array) -> np.ndarray:
    """The loss that the law says of N parameters and D tokens, elementwise."""
    return _loss(np.array([self.E, self.A, self.B, self.alpha, self.beta]), params, tokens)

  def optimal(self, flops: float) -> tuple[float, float]:
    """Parameters and tokens of the least loss for C = 6 N D.

    Raises ValueError for a law by which more parameters, or more tokens, gain nothing.
    """
    of_params, of_tokens = self.alpha * self.A, self.beta * self.B
    flat = min(self.alpha, self.beta) < 1e-3
    if flat or not min(of_params, of_tokens) > 1e-12 * max(of_params, of_tokens):
      what = 'parameters' if (self.alpha if flat else of_params) <= (
        self.beta if flat else of_tokens) else 'tokens'
      raise ValueError(f'no size is best: by the law of these runs more {what} gain nothing')
    ratio = (of_params / of_tokens) ** (1 / (self.alpha + self.beta))
    return ratio * (flops / 6) ** self.a, (flops / 6) ** (1 - self.a) / ratio


def _t(freedom: int, share: float) -> float:
  """Student's t; infinite without a degree of freedom."""
  return float(scipy.special.stdtrit(freedom, share)) if freedom > 0 else math.inf


def _loss(theta: np.ndarray, params: Array, tokens: Array) -> np.ndarray:
  e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)[..., *[None] * np.ndim(params)]
  return e + a * np.asarray(params) ** -alpha + b * np.asarray(tokens) ** -beta


def fit_chinchilla(
  params: Array,
  tokens: Array,
  loss: Array,
  *,
  flops: Array | None = None,
  tied: bool = False,
  bootstrap: int = 0,
  seed: int = 0,
  recipe: str = '',
) -> Fit:
  """Fits approach 3 to finished runs.

  Args:
    params, tokens, loss: one entry a run (or a cooldown branched off one).
    flops: of each; 6 N D if None. Used for how far predictions may go.
    tied: α = β, as for over-training: then L depends on C and D / N as E + (a m^η + b m^-η) C^-η
      (Gadre et al. 2024).
    bootstrap: resamples, of whole sizes, since runs of one size share their errors; predictions
      have intervals only with them.
  Raises:
    ValueError: fewer than three sizes or five runs, or values that are not positive.
  """
  params, tokens, loss = _checked(params=params, tokens=tokens, loss=loss)
  sizes = np.unique(params)
  if len(loss) < 5 or len(sizes) < 3 or len(np.unique(tokens)) < 2:
    raise ValueError(
      f'{len(loss)} runs of {len(sizes)} sizes do not determine a law: at least five runs, three '
      'sizes and two token counts are needed')
  table = fitting.Table(params, tokens, loss, tied)
  theta, objective = table.best()
  labels = fitting.clusters(params, _SAME)
  flops = 6 * params * tokens if flops is None else _checked(flops=flops)[0]
  samples = _resample(table, labels, theta, bootstrap, np.random.default_rng(seed))
  scores, step, size_scores = np.zeros(0), math.nan, np.zeros(0)
  if bootstrap:
    scores, step = _look_back(table, labels, flops, flops, theta)
    size_scores, _ = _look_back(table, labels, flops, params, theta)
  return Fit(*map(float, _natural(theta)), objective=objective, samples=_natural(samples),
             most_flops=float(np.max(flops)), most_params=float(np.max(params)), recipe=recipe,
             sizes=int(labels.max()) + 1, scores=scores, step=step, size_scores=size_scores,
             spread=_spread(table, theta, flops, np.ones(len(flops), bool)))


def _resample(
  table: fitting.Table, labels: np.ndarray, theta: np.ndarray, count: int, rng: np.random.Generator,
  within: np.ndarray | None = None,
) -> np.ndarray:
  """theta of `count` resamples of the sizes, `[count, 5]`; of the runs `within` alone, if given."""
  keep = np.ones(len(labels)) if within is None else within.astype(float)
  sizes, weights = np.unique(labels[keep > 0]), []
  while len(weights) < count and len(sizes) > 2:
    drawn = rng.choice(sizes, len(sizes))
    if len(set(drawn)) > 2:
      weights.append(np.bincount(drawn, minlength=labels.max() + 1)[labels] * keep)
  if not weights:
    return np.zeros((0, 5))
  return table.fit(np.array(weights), theta)[0]


def _spread(
  table: fitting.Table, theta: np.ndarray, flops: np.ndarray, rows: np.ndarray
) -> float:
  """`spread` of Fit over these rows; a law of five numbers goes through five of them."""
  off = table.parts(theta)[1][rows & (flops >= np.median(flops[rows]))]
  count, numbers = rows.sum(), 4 if table.tied else 5
  return float(np.sqrt(np.mean(off**2) * count / max(1, count - numbers)))


def _look_back(
  table: fitting.Table, labels: np.ndarray, flops: np.ndarray, order: np.ndarray,
  theta: np.ndarray,
) -> tuple[np.ndarray, float]:
  """`scores` and `step` of Fit: of each step of `order`, compute or sizes, from all before it.

  Residuals say how well a law fits; what it misses beyond its runs is larger, of one sign, and
  grows from step to step (experiments/log/scaling.md has five public tables of it).
  """
  stages = fitting.clusters(order, 0.4)
  if stages.max() >= _STAGES:
    stages = np.searchsorted(np.quantile(order, np.arange(1, _STAGES) / _STAGES), order)
  rng, scores, steps, log_loss = np.random.default_rng(0), [], [], table.logs[2]
  for stage in range(2, stages.max() + 1):  # runs of one budget do not tell N from D
    past, now = stages < stage, stages == stage
    if past.sum() < 8 or len(set(labels[past])) < 4 or not now.any():
      continue
    starts = np.array([theta, *_STARTS])
    found, objective = table.fit(np.repeat(past[None].astype(float), len(starts), axis=0), starts)
    then = found[np.argmin(objective)]
    off, spread = table.parts(then)[1], _spread(table, then, flops, past)
    logs = table.parts(_resample(table, labels, then, _RESAMPLES, rng, past))[1] + log_loss
    error = np.hypot(logs[:, now].std(axis=0), spread)
    scores += list(-off[now] / np.maximum(error, 1e-12))
    steps.append(np.log(np.median(order[now]) / order[past].max()))
  return np.array(scores), float(max(steps)) if steps else math.nan


# Beside the fit of all runs, so that no fit of a part depends on what it should not know.
_STARTS = [np.array([a, b, 0.0, x, x])
           for a in (5.0, 12.0) for b in (5.0, 12.0) for x in (0.3, 0.5)]


def _natural(theta: np.ndarray) -> np.ndarray:
  """(log A, log B, log E, α, β) → (E, A, B, α, β), on the last axis."""
  a, b, e = np.moveaxis(np.exp(theta[..., :3]), -1, 0)
  return np.stack([e, a, b, theta[..., 3], theta[..., 4]], axis=-1)


def _checked(**columns: Array) -> list[np.ndarray]:
  arrays = {k: np.asarray(x, np.float64).ravel() for k, x in columns.items()}
  if len({len(x) for x in arrays.values()}) > 1:
    raise ValueError('as many of each are needed: ' + ', '.join(
      f'{len(x)} {k}' for k, x in arrays.items()))
  for name, x in arrays.items():
    if not (np.isfinite(x) & (x > 0)).all():
      raise ValueError(f'{name} must be positive numbers, not {x[~(np.isfinite(x) & (x > 0))][0]}')
  return list(arrays.values())


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Of a run's loss; `low` and `high` are the ends of its 90 % interval, the run's noise included.

  Infinite where the runs do not tell it, NaN for a fit without bootstrap samples.
  """

  loss: float
  low: float
  high: float


def predict(
  fit: Fit, params: float, tokens: float, *, flops: float | None = None, recipe: str = '',
  force: bool = False,
) -> Prediction:
  """The loss of a run that has not been made.

  Raises:
    TooFar: its compute is more than ten times that of the largest run fitted, and not `force`.
    ValueError: it has another recipe than the runs of the fit, and not `force`.
  """
  flops = flops or 6 * params * tokens
  if flops > MOST * fit.most_flops * (1 + 1e-9) and not force:
    raise TooFar(
      f'{flops:.2e} FLOPs are {flops / fit.most_flops:.0f} times the largest run of the fit, '
      f'{fit.most_flops:.2e}: a law is not known to hold beyond ten times; force it, or add runs')
  if recipe and fit.recipe and recipe != fit.recipe and not force:
    raise ValueError(
      f'the law was fitted on {fit.recipe!r} and says nothing of {recipe!r}: fit it there, or '
      'force it')
  loss = float(fit.loss(params, tokens))
  below, above = _halves(fit, params, tokens, flops)
  high = loss * math.exp(above) if above < 700 else math.inf
  return Prediction(loss, loss * math.exp(-below), high)


def errors(fit: Fit, params: float, tokens: float) -> tuple[float, float]:
  """Standard errors of a prediction in log loss: of the law's parameters, and of a run about it."""
  return float(np.log(_loss(fit.samples, params, tokens)).std()), fit.spread


def _halves(fit: Fit, params: float, tokens: float, flops: float) -> tuple[float, float]:
  """How far, in log loss, the 90 % interval of a prediction goes down and up.

  By its standard error (of the parameters, by resamples of sizes, and of the residuals) times what
  the law was wrong by in such units when it predicted its own larger runs from the smaller ones:
  the 5 and 95 % points of `Fit.scores` (for a size that no run had of `size_scores` too), in the
  manner of conformal prediction, never less than those of a normal distribution. Beyond the longest
  step it grows in proportion. Where fewer than 19 such predictions could be made, by Student's t
  with as many degrees of freedom as there are sizes beyond the three numbers that sizes tell:
  infinite for three.
  """
  if not len(fit.samples):
    return (math.nan, math.nan) if fit.sizes > 3 or not fit.sizes else (math.inf, math.inf)
  error = math.hypot(*errors(fit, params, tokens))
  tail = (1 - LEVEL) / 2
  if len(fit.scores) < 1 / tail - 1:
    t = _t(fit.sizes - 3, 1 - tail)
    return t * error, t * error
  below = above = float(scipy.special.ndtri(1 - tail))
  for scores in (fit.scores, fit.size_scores)[: 2 if params > fit.most_params else 1]:
    if (n := len(scores)) >= 1 / tail - 1:
      rank = math.ceil((1 - tail) * (n + 1)) - 1
      low, high = (float(np.sort(x)[rank]) for x in (-scores, scores))
      below, above = max(below, low), max(above, high)
  beyond = math.log(flops / fit.most_flops) / fit.step if fit.step > 0 else 1.0
  return below * error * max(1.0, beyond), above * error * max(1.0, beyond)


def held_out(
  params: Array, tokens: Array, loss: Array, *, tied: bool = False
) -> list[tuple[float, float, float]]:
  """Relative errors of predictions of each size from the smaller ones: `(N, D, error)`.

  Each size is predicted from all smaller ones, as soon as they determine a law; sizes within 5 %
  are one.
  """
  params, tokens, loss = _checked(params=params, tokens=tokens, loss=loss)
  labels, table = fitting.clusters(params, _SAME), fitting.Table(params, tokens, loss, tied)
  known = [label for label in range(3, labels.max() + 1) if (labels < label).sum() >= 5
           and len(np.unique(tokens[labels < label])) > 1]
  if not known:
    return []
  weights = np.array([labels < label for label in known], float)
  tries = [table.fit(weights, start, rounds=200) for start in _STARTS]
  best = np.argmin([objective for _, objective in tries], axis=0)
  rows = []
  for i, label in enumerate(known):
    off = table.parts(tries[best[i]][0][i])[1]
    rows += [(float(params[j]), float(tokens[j]), float(np.expm1(off[j])))
             for j in np.flatnonzero(labels == label)]
  return rows


def differ(a: Fit, b: Fit) -> dict[str, tuple[float, float, float]]:
  """b - a of α, β and the allocation's exponent, with the ends of its 95 % interval.

  An interval that leaves out 0 says that the two ladders follow different laws. Raises ValueError
  for fits without bootstrap samples.
  """
  if not (len(a.samples) and len(b.samples)):
    raise ValueError('fits are compared by their bootstrap samples: fit with bootstrap=1000')
  rows, (of_a, of_b) = {}, (a._halves(), b._halves())
  for name in ('alpha', 'beta', 'a'):
    gap, half = of_b[name][0] - of_a[name][0], math.hypot(of_a[name][1], of_b[name][1])
    rows[name] = gap, gap - half, gap + half
  return rows


# --- Power laws, approaches 1 and 2 ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """y = coefficient · Π x_i^exponent_i, fitted by least squares in logs."""

  coefficient: float
  exponents: dict[str, float]
  intervals: dict[str, tuple[float, float]]  # 95 % of the exponents, by Student's t
  r2: float

  def __call__(self, **x: float) -> float:
    """y at these x, by name."""
    return self.coefficient * math.prod(x[k] ** e for k, e in self.exponents.items())


def fit_power_law(x: Mapping[str, Array], y: Array, *, weights: Array | None = None) -> PowerLaw:
  """Least squares of log y on log x, such as the best learning rate on N and D.

  As many points as numbers leave no residuals to tell errors by: intervals are infinite then.

  Args:
    weights: of the squares; 1 / variance of log y. Raises ValueError for too few points.
  """
  columns = dict(zip((*x, 'y'), _checked(**x, y=y), strict=True))
  log_y = np.log(columns.pop('y'))
  design = np.column_stack([np.ones_like(log_y), *map(np.log, columns.values())])
  w = np.sqrt(np.ones_like(log_y) if weights is None else np.asarray(weights, np.float64))
  if len(log_y) < design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
    raise ValueError(f'{len(log_y)} points do not determine {design.shape[1]} numbers')
  found = np.linalg.lstsq(design * w[:, None], log_y * w, rcond=None)[0]
  rest, freedom = w**2 @ (log_y - design @ found) ** 2, len(log_y) - design.shape[1]
  halves = np.full(len(found), math.inf)
  if freedom:
    inverse = np.linalg.pinv((design * w[:, None]).T @ (design * w[:, None]))
    halves = _t(freedom, 0.975) * np.sqrt(np.maximum(np.diag(inverse), 0) * rest / freedom)
  mean = np.average(log_y, weights=w**2)
  return PowerLaw(
    math.exp(found[0]), dict(zip(columns, map(float, found[1:]), strict=True)),
    {k: (float(e - h), float(e + h))
     for k, e, h in zip(columns, found[1:], halves[1:], strict=True)},
    float(1 - rest / (w**2 @ (log_y - mean) ** 2)))


@dataclasses.dataclass(frozen=True)
class Optimum:
  """The size of least loss at one compute budget."""

  flops: float
  params: float
  tokens: float
  loss: float
  error: float  # standard deviation of log params under the noise of the losses
  edge: bool  # it is at the smallest or largest size tried: no optimum was found


@dataclasses.dataclass(frozen=True)
class IsoFlop:
  """Optima of several budgets (Chinchilla's approach 2), and power laws through them."""

  optima: list[Optimum]
  params: PowerLaw  # of N in C
  tokens: PowerLaw


def isoflop(
  flops: Array, params: Array, loss: Array, tokens: Array | None = None, *,
  method: str = 'akima', noise: Callable[[np.ndarray], np.ndarray] | float = 0.002,
  weighted: bool = False, resamples: int = 200, seed: int = 0,
) -> IsoFlop:
  """Approach 2: the best size at each budget, and its power law in compute.

  Args:
    flops: budget of each run; runs of one budget have the same number.
    tokens: of each run; C / 6 N if None.
    method: 'akima', interpolation of log loss over log N through all points (Porian et al. 2024),
      or 'parabola', which is smoother, and biased where the curve is lopsided.
    noise: standard deviation of a loss between seeds, in nats, or a function of the loss; it gives
      each optimum its `error`.
    weighted: optima count as 1 / error². Those at an edge never count.
  Runs of one size at a budget count as their mean; a budget of fewer than three sizes has no
  optimum and is left out. Raises ValueError where fewer than two budgets have one inside.
  """
  flops, params, loss = _checked(flops=flops, params=params, loss=loss)
  tokens = flops / (6 * params) if tokens is None else _checked(tokens=tokens)[0]
  if method not in ('parabola', 'akima'):
    raise ValueError(f'unknown method {method!r}: parabola or akima')
  rng, optima = np.random.default_rng(seed), []
  for budget in np.unique(flops):
    rows = np.flatnonzero(flops == budget)
    same = fitting.clusters(params[rows], 0.01)
    if same.max() < 2:
      continue
    log_n, losses, log_d = (np.bincount(same, x[rows]) / np.bincount(same)
                            for x in (np.log(params), loss, np.log(tokens)))
    best, least = _least(log_n, losses, method)
    spread = noise(losses) if callable(noise) else noise
    noisy = [_least(log_n, losses + spread * rng.standard_normal(len(losses)), method)[0]
             for _ in range(resamples)]
    inside = [x for x in noisy if log_n[0] < x < log_n[-1]]
    # A third of a step of the grid that the optimum is looked for on, at least.
    floor = 0.33 * (log_n[-1] - log_n[0]) / (25 * (len(losses) - 1) - 1)
    error = max(np.std(inside), floor) * resamples / len(inside) if inside else math.inf
    of_budget = float(np.exp(np.interp(best, log_n, log_d)))
    optima.append(Optimum(float(budget), math.exp(best), of_budget, least, float(error),
                          not log_n[0] < best < log_n[-1] or len(inside) < resamples / 2))
  good = [o for o in optima if not o.edge]
  if len(good) < 2:
    raise ValueError('fewer than two budgets have their optimum inside the sizes tried: add sizes')
  weights = [1 / o.error**2 for o in good] if weighted else None
  law = lambda field: fit_power_law(
    {'flops': [o.flops for o in good]}, [getattr(o, field) for o in good], weights=weights)
  return IsoFlop(optima, law('params'), law('tokens'))


def _least(log_n: np.ndarray, loss: np.ndarray, method: str) -> tuple[float, float]:
  """(log N, loss) at the minimum of the curve through runs of one budget."""
  if method == 'akima':
    at = np.linspace(log_n[0], log_n[-1], 25 * (len(log_n) - 1))
    curve = scipy.interpolate.Akima1DInterpolator(log_n, np.log(loss))(at)
    return float(at[curve.argmin()]), float(np.exp(curve.min()))
  middle = log_n.mean()
  a, b, c = np.polyfit(log_n - middle, np.log(loss), 2)
  if a <= 0:  # no minimum: it is at the better end
    i = int(np.argmin(loss))
    return float(log_n[0] if i < len(log_n) / 2 else log_n[-1]), float(loss.min())
  best = float(np.clip(middle - b / (2 * a), log_n[0], log_n[-1]))
  return best, float(np.exp(np.polyval([a, b, c], best - middle)))


def envelope(params: Array, tokens: Array, loss: Array, *, budgets: int = 20) -> IsoFlop:
  """Approach 1: of points along training curves, the least loss near each budget, and its laws.

  Only where the learning rate had decayed, or is constant in all runs, do points along a run say
  what a run of that length would give. Budgets are spread over where at least two sizes have
  points, each the best of the points within a ratio of the spacing.
  """
  params, tokens, loss = _checked(params=params, tokens=tokens, loss=loss)
  flops = 6 * params * tokens
  ends = sorted((flops[params == n].min(), flops[params == n].max()) for n in np.unique(params))
  if len(ends) < 2:
    raise ValueError('an envelope needs runs of at least two sizes')
  low, high = ends[1][0], sorted(e for _, e in ends)[-2]
  edges = np.geomspace(low, high, budgets + 1)
  optima, sizes = [], np.unique(params)
  for a, b in itertools.pairwise(edges):
    rows = np.flatnonzero((flops >= a) & (flops < b))
    if len(np.unique(params[rows])) > 1:
      i = rows[np.argmin(loss[rows])]
      edge = params[i] in (sizes[0], sizes[-1])
      optima.append(Optimum(flops[i], params[i], tokens[i], loss[i], math.nan, bool(edge)))
  good = [o for o in optima if not o.edge] or optima
  law = lambda field: fit_power_law(
    {'flops': [o.flops for o in good]}, [getattr(o, field) for o in good])
  return IsoFlop(optima, law('params'), law('tokens'))


# --- Repeated data --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DataConstrained:
  """A law whose tokens and parameters are worth less the more the data repeat.

  Muennighoff et al. 2023: D' = U_D (1 + R_D* (1 - e^(-R_D / R_D*))) for R_D = D / U_D - 1
  repetitions of U_D unique tokens, and likewise N' of the parameters beyond U_N, those that are
  optimal for U_D. Fits of R* are weakly identified: look at `intervals` before they are believed.
  """

  base: Fit
  repeat_tokens: float  # R_D*
  repeat_params: float  # R_N*
  objective: float = math.nan
  r2: float = math.nan
  intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def loss(self, params: Array, tokens: Array, unique: Array) -> np.ndarray:
    """The loss that the law says of D tokens of which `unique` are different (arXiv:2305.16264)."""
    params, tokens, unique = (np.asarray(x, np.float64) for x in (params, tokens, unique))
    unique = np.minimum(unique, tokens)
    f = self.base
    ratio = (f.alpha * f.A / (f.beta * f.B)) ** (1 / (f.alpha + f.beta))
    fitting = np.minimum(params, ratio * (unique * ratio) ** (f.beta / f.alpha))
    return f.loss(effective_tokens(params, fitting, self.repeat_params),
                  effective_tokens(tokens, unique, self.repeat_tokens))


def effective_tokens(tokens: Array, unique: Array, star: float) -> np.ndarray:
  """What `tokens`, of which `unique` are different, are worth in unrepeated ones: D' above; 0 of 0.

  Of parameters likewise, beyond those that are optimal for the data.
  """
  tokens, once = np.asarray(tokens, np.float64), np.maximum(np.asarray(unique, np.float64), 1e-9)
  return once * (1 + star * -np.expm1(-(np.maximum(tokens, once) / once - 1) / star))


def fit_data_constrained(
  params: Array, tokens: Array, unique: Array, loss: Array, base: Fit, *, bootstrap: int = 0,
  seed: int = 0,
) -> DataConstrained:
  """Fits R_D* and R_N* over a law of unrepeated data, by the same objective."""
  params, tokens, unique, loss = _checked(params=params, tokens=tokens, unique=unique, loss=loss)

  def solve(rows: np.ndarray, starts: Sequence[tuple[float, float]]) -> tuple[np.ndarray, float]:
    def objective(log_r: np.ndarray) -> float:
      law = DataConstrained(base, *np.exp(log_r))
      off = np.log(law.loss(params[rows], tokens[rows], unique[rows])) - np.log(loss[rows])
      return float(scipy.special.huber(fitting.DELTA, off).sum())

    options = {'xatol': 1e-6, 'fatol': 1e-12, 'maxiter': 2000}
    best = min((scipy.optimize.minimize(objective, np.log(x), method='Nelder-Mead',
                                        bounds=[(-3, 9)] * 2, options=options)
                for x in starts), key=lambda r: r.fun)
    return np.exp(best.x), float(best.fun)

  everything = np.arange(len(loss))
  found, objective = solve(everything, list(itertools.product((1, 5, 15, 100), (1, 5, 15))))
  rng = np.random.default_rng(seed)
  samples = [solve(rng.integers(len(loss), size=len(loss)), [tuple(found)])[0]
             for _ in range(bootstrap)]
  bounds = np.percentile(samples, [2.5, 97.5], axis=0).T if samples else []
  law = DataConstrained(base, *map(float, found), objective=objective)
  rest = np.sum((law.loss(params, tokens, unique) - loss) ** 2)
  return dataclasses.replace(
    law, r2=float(1 - rest / np.sum((loss - loss.mean()) ** 2)),
    intervals={k: tuple(map(float, b)) for k, b in zip(
      ('repeat_tokens', 'repeat_params'), bounds, strict=False)})


# --- Plans and published laws ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run to make."""

  params: float
  tokens: float
  loss: float
  training_flops: float
  inference_flops: float = 0.0


def plan(fit: Fit, flops: float, *, force: bool = False) -> Plan:
  """The run of least loss for a training budget. Raises TooFar beyond the fit, unless `force`."""
  params, tokens = fit.optimal(flops)
  return Plan(params, tokens, predict(fit, params, tokens, force=force).loss, flops)


def plan_lifetime(fit: Fit, loss: float, inference_tokens: float, *, force: bool = False) -> Plan:
  """The cheapest model of a given loss over training and use: 6 N D + 2 N D_inference.

  Sardana et al. 2023: the more it is used, the smaller a model and the longer its training should
  be. Raises ValueError for a loss that the law does not reach, TooFar as `plan` does.
  """
  if loss <= fit.E:
    raise ValueError(f'no model reaches {loss}: the law ends at E = {fit.E:.4f}')

  def tokens_for(log_n: float) -> float:
    left = loss - fit.E - fit.A * math.exp(-fit.alpha * log_n)
    return (fit.B / left) ** (1 / fit.beta)

  least = math.log(fit.A / (loss - fit.E)) / fit.alpha  # with endless data
  cost = lambda log_n: math.log(math.exp(log_n) * (6 * tokens_for(log_n) + 2 * inference_tokens))
  found = scipy.optimize.minimize_scalar(
    cost, bounds=(least + 1e-6, least + 20), method='bounded', options={'xatol': 1e-10})
  params, tokens = math.exp(found.x), tokens_for(found.x)
  predict(fit, params, tokens, force=force)
  return Plan(params, tokens, loss, 6 * params * tokens, 2 * params * inference_tokens)


# (N without embeddings, D) → peak learning rate of AdamW and tokens a batch, as published.
LAWS: dict[str, Callable[[float, float], tuple[float, float]]] = {
  # Li et al. 2025 (arXiv 2503.04715)
  'step': lambda n, d: (1.79 * n**-0.713 * d**0.307, 0.58 * d**0.571),
  # DeepSeek LLM (arXiv 2401.02954), in C = 6 N D
  'deepseek': lambda n, d: (0.3118 * (6 * n * d) ** -0.125, 0.292 * (6 * n * d) ** 0.3271),
  # OLMo's ladder (arXiv 2412.04403), of N alone
  'olmo': lambda n, d: (0.0047 * (n / 108e6) ** (-1 / 3), 160 * 2048 * (n / 108e6) ** (2 / 3)),
}
