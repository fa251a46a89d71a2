"""Scaling laws: fits with intervals, predictions that refuse to go too far, plans for a budget.

Conventions. N counts what the caller counts (say which: with embeddings or without, and FLOPs of
the head or not, move the exponent of N by .17, Porian et al. 2024); D are training tokens, C is
6 N D unless FLOPs are given; losses are nats per token. Losses compare within one tokenizer and one
held-out set, laws within one recipe: `differ` tells two apart.

The parametric form is L = E + A / N^α + B / D^β (Hoffmann et al. 2022, approach 3), fitted in logs
as they describe it: Huber of δ = 1e-3 on log-sum-exp, the *sum* over runs minimised by L-BFGS from
a grid of starts (a mean stops it too early: Besiroglu et al. 2024).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.interpolate
import scipy.optimize
import scipy.special

Array = np.ndarray | Sequence[float]

DELTA = 1e-3  # of Huber's loss, in log L
MOST = 10.0  # times the compute of the largest run that a prediction may go without force
NAMES = ('E', 'A', 'B', 'alpha', 'beta')

# Where L-BFGS starts, after Hoffmann et al.: log A and log B, log E, α and β.
_GRID = ((0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1),
         (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))  # fmt: skip
_TRIED = 24  # starts, those of the least objective


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

  @property
  def intervals(self) -> dict[str, tuple[float, float]]:
    """95 % of the bootstrap samples of each parameter, and of `a`, the exponent of N in C."""
    if not len(self.samples):
      return {}
    _, _, _, alpha, beta = self.samples.T
    columns = dict(zip(NAMES, self.samples.T, strict=True)) | {'a': beta / (alpha + beta)}
    return {k: (float(np.percentile(x, 2.5)), float(np.percentile(x, 97.5)))
            for k, x in columns.items()}

  @property
  def a(self) -> float:
    """N_opt ∝ C^a."""
    return self.beta / (self.alpha + self.beta)

  def loss(self, params: Array, tokens: Array) -> np.ndarray:
    """The loss that the law says of N parameters and D tokens, elementwise."""
    return _loss(np.array([self.E, self.A, self.B, self.alpha, self.beta]), params, tokens)

  def optimal(self, flops: float) -> tuple[float, float]:
    """Parameters and tokens of the least loss for C = 6 N D."""
    ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
    return ratio * (flops / 6) ** self.a, (flops / 6) ** (1 - self.a) / ratio


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
    bootstrap: resamples, of whole sizes, since runs of one size share their errors.
  Raises:
    ValueError: fewer than three sizes or five runs, or values that are not positive.
  """
  params, tokens, loss = _checked(params=params, tokens=tokens, loss=loss)
  sizes = np.unique(params)
  if len(loss) < 5 or len(sizes) < 3 or len(np.unique(tokens)) < 2:
    raise ValueError(
      f'{len(loss)} runs of {len(sizes)} sizes do not determine a law: at least five runs, three '
      'sizes and two token counts are needed')
  theta, objective = _fit(params, tokens, loss, tied)
  rng, samples = np.random.default_rng(seed), []
  rows_of = [np.flatnonzero(params == size) for size in sizes]
  while len(samples) < bootstrap:
    drawn = rng.integers(len(sizes), size=len(sizes))
    if len(set(drawn)) < 3:
      continue
    rows = np.concatenate([rows_of[i] for i in drawn])
    samples.append(_natural(_fit(params[rows], tokens[rows], loss[rows], tied, [theta])[0]))
  if flops is None:
    flops = 6 * params * tokens
  return Fit(*map(float, _natural(theta)), objective=objective,
             samples=np.array(samples).reshape(-1, 5), most_flops=float(np.max(flops)),
             recipe=recipe)


def _natural(theta: np.ndarray) -> np.ndarray:
  """(log A, log B, log E, α, β) → (E, A, B, α, β)."""
  a, b, e, alpha, beta = theta
  return np.array([math.exp(e), math.exp(a), math.exp(b), alpha, beta])


def _fit(
  params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, tied: bool,
  starts: Sequence[np.ndarray] = (),
) -> tuple[np.ndarray, float]:
  log_n, log_d, log_l = np.log(params), np.log(tokens), np.log(loss)
  free = 4 if tied else 5

  def parts(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of theta [..., free]: logs of the three terms, of their sum, and what that is off by."""
    a, b, e, alpha, beta = (theta[..., i, None] for i in (0, 1, 2, 3, -1))
    terms = np.stack([a - alpha * log_n, b - beta * log_d, e + np.zeros_like(log_n)])
    log_sum = np.logaddexp.reduce(terms, axis=0)
    return terms, log_sum, log_sum - log_l

  def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
    terms, log_sum, off = parts(theta)
    share = np.exp(terms - log_sum)
    slope = np.clip(off, -DELTA, DELTA)
    by = slope * share  # of each term
    of_exponents = -(by[0] @ log_n), -(by[1] @ log_d)
    gradient = [*by.sum(axis=1), *([sum(of_exponents)] if tied else of_exponents)]
    return float(scipy.special.huber(DELTA, off).sum()), np.array(gradient)

  if not len(starts):
    grid = np.array(list(itertools.product(*_GRID[:free])), float)
    worst_last = np.argsort(scipy.special.huber(DELTA, parts(grid)[2]).sum(axis=1))
    starts = list(grid[worst_last[:_TRIED]])
  else:
    starts = [x[:free] for x in starts]
  options = {'maxiter': 5000, 'maxfun': 10000, 'ftol': 1e-15, 'gtol': 1e-12}
  tries = [scipy.optimize.minimize(objective, x, jac=True, method='L-BFGS-B', options=options)
           for x in starts]
  # L-BFGS ends early in this narrow valley; BFGS, which knows more of its shape, goes on.
  best = min(tries, key=lambda r: r.fun)
  best = min(best, scipy.optimize.minimize(
    objective, best.x, jac=True, method='BFGS', options={'gtol': 1e-12, 'maxiter': 5000}),
    key=lambda r: r.fun)
  return (np.append(best.x, best.x[-1]) if tied else best.x), float(best.fun)


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
  """Of a run's loss; `low` and `high` are 95 % of the bootstrap, without the noise of seeds."""

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
  samples = _loss(fit.samples, params, tokens) if len(fit.samples) else [math.nan]
  low, high = map(float, np.percentile(samples, [2.5, 97.5]))
  return Prediction(float(fit.loss(params, tokens)), low, high)


def held_out(params: Array, tokens: Array, loss: Array) -> list[tuple[float, float, float]]:
  """Relative errors of predictions of each size from the smaller ones: `(N, D, error)`.

  Each size is predicted from all smaller ones, as soon as they determine a law.
  """
  params, tokens, loss = _checked(params=params, tokens=tokens, loss=loss)
  rows = []
  for size in np.unique(params)[3:]:
    smaller, these = params < size, params == size
    if smaller.sum() < 5 or len(np.unique(tokens[smaller])) < 2:
      continue
    fit = fit_chinchilla(params[smaller], tokens[smaller], loss[smaller])
    for d, actual in zip(tokens[these], loss[these], strict=True):
      rows.append((float(size), float(d), float(fit.loss(size, d) / actual - 1)))
  return rows


def differ(a: Fit, b: Fit) -> dict[str, tuple[float, float, float]]:
  """b - a of α, β and the allocation's exponent, with the ends of its 95 % bootstrap interval.

  An interval that leaves out 0 says that the two ladders follow different laws. Raises ValueError
  for fits without bootstrap samples.
  """
  if not (len(a.samples) and len(b.samples)):
    raise ValueError('fits are compared by their bootstrap samples: fit with bootstrap=1000')
  values = lambda s: {'alpha': s[:, 3], 'beta': s[:, 4], 'a': s[:, 4] / (s[:, 3] + s[:, 4])}
  rng = np.random.default_rng(0)
  rows = {}
  for name in ('alpha', 'beta', 'a'):
    x, y = (rng.choice(values(f.samples)[name], 10_000) for f in (a, b))
    low, high = map(float, np.percentile(y - x, [2.5, 97.5]))
    rows[name] = getattr(b, name) - getattr(a, name), low, high
  return rows


# --- Power laws, approaches 1 and 2 ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PowerLaw:
  """y = coefficient · Π x_i^exponent_i, fitted by least squares in logs."""

  coefficient: float
  exponents: dict[str, float]
  intervals: dict[str, tuple[float, float]]  # 95 % of the exponents, by bootstrap over points
  r2: float

  def __call__(self, **x: float) -> float:
    """y at these x, by name."""
    return self.coefficient * math.prod(x[k] ** e for k, e in self.exponents.items())


def fit_power_law(
  x: Mapping[str, Array], y: Array, *, weights: Array | None = None, bootstrap: int = 1000,
  seed: int = 0,
) -> PowerLaw:
  """Least squares of log y on log x, such as the best learning rate on N and D.

  Args:
    weights: of the squares; 1 / variance of log y. Raises ValueError for too few points.
  """
  columns = dict(zip((*x, 'y'), _checked(**x, y=y), strict=True))
  log_y = np.log(columns.pop('y'))
  design = np.column_stack([np.ones_like(log_y), *map(np.log, columns.values())])
  w = np.sqrt(np.ones_like(log_y) if weights is None else np.asarray(weights, np.float64))
  solve = lambda rows: np.linalg.lstsq(
    design[rows] * w[rows, None], log_y[rows] * w[rows], rcond=None)[0]
  if len(log_y) < design.shape[1] or np.linalg.matrix_rank(design) < design.shape[1]:
    raise ValueError(f'{len(log_y)} points do not determine {design.shape[1]} numbers')
  found = solve(np.arange(len(log_y)))
  rng, samples = np.random.default_rng(seed), []
  for _ in range(bootstrap):
    rows = rng.integers(len(log_y), size=len(log_y))
    if np.linalg.matrix_rank(design[rows]) == design.shape[1]:
      samples.append(solve(rows)[1:])
  bounds = np.percentile(samples, [2.5, 97.5], axis=0).T if samples else []
  mean = np.average(log_y, weights=w**2)
  rest = w**2 @ (log_y - design @ found) ** 2
  return PowerLaw(
    math.exp(found[0]), dict(zip(columns, map(float, found[1:]), strict=True)),
    {k: tuple(map(float, b)) for k, b in zip(columns, bounds, strict=False)},
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
  Raises ValueError where fewer than two budgets have an optimum inside, or a budget has less than
  three sizes.
  """
  flops, params, loss = _checked(flops=flops, params=params, loss=loss)
  tokens = flops / (6 * params) if tokens is None else _checked(tokens=tokens)[0]
  if method not in ('parabola', 'akima'):
    raise ValueError(f'unknown method {method!r}: parabola or akima')
  rng, optima = np.random.default_rng(seed), []
  for budget in np.unique(flops):
    rows = np.flatnonzero(flops == budget)
    rows = rows[np.argsort(params[rows])]
    if len(rows) < 3 or len(np.unique(params[rows])) < len(rows):
      raise ValueError(
        f'at {budget:.2e} FLOPs there are {len(rows)} runs of {len(np.unique(params[rows]))} '
        'sizes: an optimum needs three, each once')
    log_n, losses = np.log(params[rows]), loss[rows]
    best, least = _least(log_n, losses, method)
    spread = noise(losses) if callable(noise) else noise
    noisy = [_least(log_n, losses + spread * rng.standard_normal(len(rows)), method)[0]
             for _ in range(resamples)]
    inside = [x for x in noisy if log_n[0] < x < log_n[-1]]
    # A third of a step of the grid that the optimum is looked for on, at least.
    floor = 0.33 * (log_n[-1] - log_n[0]) / (25 * (len(rows) - 1) - 1)
    error = max(np.std(inside), floor) * resamples / len(inside) if inside else math.inf
    of_budget = float(np.exp(np.interp(best, log_n, np.log(tokens[rows]))))
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
      return float(scipy.special.huber(DELTA, off).sum())

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
