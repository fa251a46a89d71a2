"""Which mixture of corpora? Designs of proxy runs, laws fitted to their scores, the best mixture.

Conventions. A *mixture* is an array [K, m]: the weights by token of m corpora in each of K phases
of a run, each row summing to 1; `shares` [K] are the phases' parts of the run. *Epochs* of a corpus
are how often a run of T tokens goes through its N: Σ_k shares_k w_k T / N. Scores are bits per
byte, lower is better, one column a domain; a *blend* weighs the domains. Each domain has a fit of
its own and predictions are blended afterwards: the best of a mean is not the mean of the bests.

Proxies are shorter than the run that the mixture is for, and would repeat scarce corpora less: they
take a share of each corpus, so that epochs are those of the target (arXiv:2606.07597).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from smoljax.scaling import decisive, laws

REPEAT_TOKENS = 15.388  # R_D* of Muennighoff et al. 2023: how fast repeated tokens lose their worth
LEAST = 0.002  # a weight below this is none


# --- Designs --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Space:
  """What may be mixed.

  Attributes:
    names: of the m corpora.
    sizes: tokens of each that a proxy may draw from, [m].
    tokens: of a proxy run.
    shares: of its phases, [K].
    max_epochs: how often a run may go through a corpus, over all phases.
    floors: (corpora, least share of all tokens that they have together), such as of a language.
  """

  names: Sequence[str]
  sizes: np.ndarray
  tokens: float
  shares: np.ndarray = dataclasses.field(default_factory=lambda: np.ones(1))
  max_epochs: float = 8.0
  floors: Sequence[tuple[Sequence[str], float]] = ()

  def __post_init__(self):
    if not len(self.names) == len(self.sizes) > 1:
      raise ValueError(f'a mixture needs two corpora or more, not {", ".join(self.names)}')
    if self.caps.sum() < 1:
      raise ValueError(
        f'{self.tokens:,.0f} tokens are more than {self.max_epochs:g} epochs of all '
        f'{float(np.sum(self.sizes)):,.0f}: allow more epochs, or train on fewer tokens')
    for names, share in self.floors:
      if unknown := set(names) - set(self.names):
        raise ValueError(f'a floor names {", ".join(sorted(unknown))}, which is no corpus')
      if share > self.caps[[self.names.index(n) for n in names]].sum():
        raise ValueError(f'the floor {share:g} of {", ".join(names)} is above their cap')

  @property
  def caps(self) -> np.ndarray:
    """The largest share of all tokens that each corpus may have, [m]."""
    return np.minimum(1.0, self.max_epochs * np.asarray(self.sizes) / self.tokens)

  @property
  def natural(self) -> np.ndarray:
    """The mixture in proportion to size, [K, m]."""
    share = np.asarray(self.sizes, float) / np.sum(self.sizes)
    return np.tile(share, (len(self.shares), 1))

  def overall(self, mixtures: np.ndarray) -> np.ndarray:
    """Shares of all tokens, [..., K, m] → [..., m]."""
    return np.einsum('k,...km->...m', self.shares, mixtures)

  def epochs(self, mixtures: np.ndarray) -> np.ndarray:
    """How often a run goes through each corpus, [..., K, m] → [..., m]."""
    return self.overall(mixtures) * self.tokens / np.asarray(self.sizes)


def unimax(sizes: np.ndarray, tokens: float, max_epochs: float) -> np.ndarray:
  """UniMax (arXiv:2304.09151): alike for all, no corpus more than so many epochs; [m]."""
  share, left = np.zeros(len(sizes)), tokens
  for rank, i in enumerate(np.argsort(sizes)):
    share[i] = min(left / (len(sizes) - rank), max_epochs * sizes[i])
    left -= share[i]
  return share / share.sum()


def capped(mixture: np.ndarray, space: Space) -> np.ndarray:
  """The mixture [K, m] with what is above a cap given to the others in proportion; tiny weights
  dropped."""
  mixture = np.where(mixture < LEAST, 0.0, mixture)
  mixture = mixture / mixture.sum(axis=1, keepdims=True)
  for _ in range(100):
    over = space.overall(mixture) / space.caps
    if (over <= 1 + 1e-12).all():
      break
    held = over >= 1 - 1e-9
    mixture = np.where(over > 1, mixture / np.maximum(over, 1), mixture)
    # Even one that is at 0 may have to take some.
    free = np.where(held, 0.0, np.maximum(mixture, 1e-9))
    missing = 1 - mixture.sum(axis=1, keepdims=True)
    mixture = np.maximum(0.0, mixture + missing * free / free.sum(axis=1, keepdims=True))
  return mixture / mixture.sum(axis=1, keepdims=True)


def design(
  space: Space, count: int, *, temper: float = 0.5, strength: tuple[float, float] = (5.0, 40.0),
  seed: int = 0,
) -> np.ndarray:
  """Mixtures to try, [count, K, m]: Dirichlet around size^temper, cut to the caps and floors.

  Args:
    strength: Dirichlet's concentration is the prior times a number between these, log-uniform: the
      lower, the more one-sided the mixtures (RegMix, arXiv:2407.01492).
  """
  prior = np.asarray(space.sizes, float) ** temper
  prior /= prior.sum()
  rng = np.random.default_rng([11, seed])
  found: list[np.ndarray] = []
  for _ in range(1000 * count):
    s = np.exp(rng.uniform(*np.log(strength)))
    mixture = capped(rng.dirichlet(s * prior, len(space.shares)), space)
    if all(space.overall(mixture)[[space.names.index(n) for n in names]].sum() >= share
           for names, share in space.floors):
      found.append(mixture)
    if len(found) == count:
      return np.array(found)
  raise ValueError(f'of {1000 * count} mixtures {len(found)} keep the floors: lower them')


# --- Laws of one domain ---------------------------------------------------------------------------
# A law is fitted as `fit(x, y, settings) -> predict`: inputs [n, K·m] and scores [n] give a
# function of inputs. `inputs` makes them of mixtures, `grid` has the settings that
# cross-validation chooses from.

Predict = Callable[[np.ndarray], np.ndarray]


def _phases(space: Space, mixtures: np.ndarray, gamma: float, per: str) -> np.ndarray:
  """What a run sees of each corpus, later phases counting γ times as much, [n, m]: as a share of
  all tokens, as epochs, or as a share with repeats worth what the data-constrained law says."""
  worth = np.ones(len(space.shares))
  worth[1:] = gamma
  seen = np.einsum('k,...km->...m', space.shares * worth, mixtures)
  if per == 'weights':
    return seen
  sizes = np.asarray(space.sizes, float)
  tokens = seen * space.tokens
  if per == 'epochs':
    return tokens / sizes
  return laws.effective_tokens(tokens, np.minimum(sizes, tokens), REPEAT_TOKENS) / space.tokens


def _fit_linear(x: np.ndarray, y: np.ndarray, ridge: float) -> Predict:
  mean, level = x.mean(axis=0), y.mean()
  centred = x - mean
  slope = np.linalg.solve(centred.T @ centred + ridge * np.eye(x.shape[1]), centred.T @ (y - level))
  return lambda z: level + (z - mean) @ slope


def _fit_exponential(x: np.ndarray, y: np.ndarray, floor: float, ridge: float) -> Predict:
  """c + exp(b + t·x), the log-linear law of Data Mixing Laws (arXiv:2403.16952) and Olmix
  (arXiv:2602.12237), with c at `floor` times the least score: then it is linear in logs, where
  squares are weighted so that they are those of the scores."""
  c = floor * y.min()
  level = np.log(y - c)
  weight = (y - c) ** 2 / np.mean((y - c) ** 2)
  mean, middle = np.average(x, axis=0, weights=weight), np.average(level, weights=weight)
  z = x - mean
  slope = np.linalg.solve(z.T @ (weight[:, None] * z) + ridge * np.eye(x.shape[1]),
                          z.T @ (weight * (level - middle)))
  return lambda v: c + np.exp(np.minimum(middle + (v - mean) @ slope, 10.0))


def _fit_trees(x: np.ndarray, y: np.ndarray, rounds: int) -> Predict:
  """Gradient-boosted trees, RegMix's regression; a fixed number, stopped by no test set."""
  import lightgbm

  trees = lightgbm.train(
    {'learning_rate': 0.03, 'min_data_in_leaf': 4, 'num_leaves': 7, 'verbosity': -1, 'seed': 0,
     'deterministic': True, 'num_threads': 1, 'force_row_wise': True},
    lightgbm.Dataset(x, y, free_raw_data=False), num_boost_round=rounds)
  return lambda z: np.asarray(trees.predict(z))


def _fit_saturating(x: np.ndarray, y: np.ndarray, rate: float, power: float, ridge: float
                    ) -> Predict:
  """b - Σ_d a_d (1 - e^-(rate x_d)^power), a ≥ 0: more of a corpus helps, and ever less."""
  features = lambda z: np.expm1(-(rate * np.maximum(z, 0)) ** power)
  f = features(x)
  mean, level, m = f.mean(axis=0), y.mean(), x.shape[1]
  rows = np.vstack([f - mean, np.sqrt(ridge) * np.eye(m)])
  gain = scipy.optimize.nnls(rows, np.concatenate([y - level, np.zeros(m)]))[0]
  return lambda z: level + (features(z) - mean) @ gain


def _fit_kernel(x: np.ndarray, y: np.ndarray, small: float, ridge: float, length: float,
                noise: float) -> Predict:
  """Linear in log(1 + x / small), and what runs that were near had beside that: a Gaussian
  process's mean (Matérn 5/2), where two mixtures are as far apart as the linear law's scores are,
  corpus by corpus, in units of `length` bits per byte.

  Args:
    small: below such a share a corpus counts in proportion to its share.
    noise: variance of a run, as a share of the process's own.
  """
  features = lambda z: np.log1p(np.maximum(z, 0) / small)
  inputs = features(x)
  mean, level = inputs.mean(axis=0), y.mean()
  centred = inputs - mean
  slope = np.linalg.solve(centred.T @ centred + ridge * len(y) * np.eye(x.shape[1]),
                          centred.T @ (y - level))

  def alike(z: np.ndarray) -> np.ndarray:
    apart = (z[:, None] - inputs) * (slope / length)
    far = np.sqrt(5 * np.square(apart).sum(axis=-1))
    return (1 + far + far**2 / 3) * np.exp(-far)

  rest = np.linalg.solve(alike(inputs) + noise * np.eye(len(y)), y - level - centred @ slope)

  def predict(z: np.ndarray) -> np.ndarray:
    of = features(z)
    return level + (of - mean) @ slope + alike(of) @ rest

  return predict


class Form(NamedTuple):
  """A law: how it is fitted, the settings there are to choose from, whether it has a gradient."""

  fit: Callable[..., Predict]
  grid: Sequence[Mapping[str, Any]]
  smooth: bool


_PER = ('weights', 'worth')
FORMS: dict[str, Form] = {
  'linear': Form(_fit_linear, [dict(per=p, ridge=r) for p in _PER for r in (1e-3, 1e-2, 0.1)],
                 True),
  'exponential': Form(_fit_exponential, [
    dict(per=p, floor=f, ridge=r) for p in _PER for f in (0.3, 0.6, 0.8, 0.9, 0.97)
    for r in (0.01, 0.1, 1.0)], True),
  'trees': Form(_fit_trees, [dict(per='weights', rounds=300)], False),
  'saturating': Form(_fit_saturating, [
    dict(per=p, rate=r, power=q, ridge=s)
    for p, rates in (('weights', (2.0, 5.0, 15.0, 50.0)), ('epochs', (0.1, 0.3, 1.0, 3.0)))
    for r, q, s in itertools.product(rates, (0.5, 0.7, 1.0), (0.001, 0.03, 0.3))], True),
  'kernel': Form(_fit_kernel, [
    dict(per='weights', small=e, ridge=r, length=h, noise=v)
    for e, r, h, v in itertools.product((0.001, 0.004, 0.012), (0.001, 0.01, 0.1), (0.3, 1.0),
                                        (0.003, 0.03))], True),
}  # fmt: skip
GAMMAS = (0.5, 1.0, 2.0, 4.0)  # what a token of a later phase is worth, to choose from


@dataclasses.dataclass(frozen=True)
class Surrogate:
  """A law of each domain: mixtures [..., K, m] → scores [..., domains]."""

  space: Space
  form: str
  settings: Sequence[Mapping[str, Any]]  # of each domain
  laws: Sequence[Predict]

  def __call__(self, mixtures: np.ndarray) -> np.ndarray:
    """Predicted scores."""
    mixtures = np.asarray(mixtures, float)
    flat = mixtures.reshape(-1, *mixtures.shape[-2:])
    columns = [law(_phases(self.space, flat, s['gamma'], s['per']))
               for s, law in zip(self.settings, self.laws, strict=True)]
    return np.stack(columns, axis=-1).reshape(*mixtures.shape[:-2], -1)


def folds(groups: Sequence[Any], count: int, seed: int = 0) -> list[np.ndarray]:
  """Rows of each fold, of as many as there are groups at most; rows of one group, repeats of a
  mixture, are never apart."""
  names = list(dict.fromkeys(groups))
  order = np.random.default_rng([13, seed]).permutation(len(names))
  fold = {names[i]: rank % count for rank, i in enumerate(order)}
  place = np.array([fold[g] for g in groups])
  return [np.flatnonzero(place == i) for i in range(min(count, len(names)))]


def _fitted(space: Space, form: str, settings: Mapping[str, Any], mixtures: np.ndarray,
            y: np.ndarray) -> Predict:
  rest = {k: v for k, v in settings.items() if k not in ('per', 'gamma')}
  return FORMS[form].fit(_phases(space, mixtures, settings['gamma'], settings['per']), y, **rest)


def _choices(space: Space, form: str) -> list[dict[str, Any]]:
  gammas = (1.0,) if len(space.shares) == 1 else GAMMAS
  return [{**s, 'gamma': g} for s in FORMS[form].grid for g in gammas]


def fit(
  space: Space, form: str, mixtures: np.ndarray, scores: np.ndarray, groups: Sequence[Any],
  settings: Sequence[Mapping[str, Any]] = (), *, parts: int = 5,
) -> Surrogate:
  """Fits a law of one form to each domain.

  Args:
    mixtures: [n, K, m]. scores: [n, domains].
    groups: of each row; rows of a group are repeats of a mixture.
    settings: of each domain; () = those of least squared error in cross-validation.
    parts: of the cross-validation.
  Raises ValueError for a score that is no number, which every law would follow.
  """
  if not np.isfinite(scores).all():
    raise ValueError('a law of mixtures is fitted to finite scores: leave out what diverged')
  if not len(settings):
    choices, errors = _choices(space, form), []
    held_out = folds(groups, parts)
    for choice in choices if len(choices) > 1 else ():
      error = np.zeros(scores.shape[1])
      for rows in held_out:
        kept = np.setdiff1d(np.arange(len(scores)), rows)
        x = _phases(space, mixtures[rows], choice['gamma'], choice['per'])
        for d in range(scores.shape[1]):
          law = _fitted(space, form, choice, mixtures[kept], scores[kept, d])
          error[d] += np.square(law(x) - scores[rows, d]).sum()
      errors.append(error)
    best = np.argmin(errors, axis=0) if errors else np.zeros(scores.shape[1], int)
    settings = [choices[i] for i in best]
  return Surrogate(space, form, settings, [
    _fitted(space, form, s, mixtures, scores[:, d]) for d, s in enumerate(settings)])


def out_of_fold(
  space: Space, form: str, mixtures: np.ndarray, scores: np.ndarray, groups: Sequence[Any], *,
  parts: int = 8,
) -> np.ndarray:
  """Scores of each row as predicted without its fold, settings chosen without it too."""
  predicted = np.zeros_like(scores)
  for rows in folds(groups, parts, seed=1):
    kept = np.setdiff1d(np.arange(len(scores)), rows)
    law = fit(space, form, mixtures[kept], scores[kept], [groups[i] for i in kept])
    predicted[rows] = law(mixtures[rows])
  return predicted


def within_folds(mixtures: np.ndarray, groups: Sequence[Any], *, parts: int = 8) -> np.ndarray:
  """Which rows lie `within` what the others tried, without their fold as `out_of_fold` has it."""
  inside = np.zeros(len(mixtures), bool)
  for rows in folds(groups, parts, seed=1):
    inside[rows] = within(mixtures[rows], np.delete(mixtures, rows, axis=0))
  return inside


def quality(predicted: np.ndarray, actual: np.ndarray) -> dict[str, float]:
  """How well blended scores are predicted: Spearman's ρ, of the best quartile too, RMSE, of the
  quartile that is predicted best too, where decisions are made, and `regret`, how much worse than
  the best measured is the one that is predicted best."""
  rank = lambda p, a: decisive.correlation(decisive.ranks(list(p)), decisive.ranks(list(a)))
  best, told = (np.argsort(x)[:max(3, len(actual) // 4)] for x in (actual, predicted))
  return {
    'spearman': rank(predicted, actual),
    'spearman_best_quartile': rank(predicted[best], actual[best]),
    'rmse': float(np.sqrt(np.mean(np.square(predicted - actual)))),
    'rmse_told_best': float(np.sqrt(np.mean(np.square((predicted - actual)[told])))),
    'regret': float(actual[np.argmin(predicted)] - actual.min()),
  }


def within(mixtures: np.ndarray, tried: np.ndarray, slack: float = 1e-9) -> np.ndarray:
  """Which of the mixtures [n, K, m] have every weight in the range that it had in those tried: a
  law says nothing beyond, and no proposal is there; [n] bool."""
  low, high = tried.min(axis=0) - slack, tried.max(axis=0) + slack
  return ((mixtures >= low) & (mixtures <= high)).all(axis=(1, 2))


# --- The best mixture -----------------------------------------------------------------------------


def propose(
  law: Surrogate, blend: np.ndarray, tried: np.ndarray, *, kl: float = 0.0, starts: int = 4,
) -> np.ndarray:
  """The mixture [K, m] of the least blended score within the constraints; deterministic.

  Args:
    blend: weights of the domains, [domains].
    tried: mixtures of the proxies, [n, K, m]: no weight leaves their range, which a law says
      nothing beyond. The best of them by the law are where the search starts.
    kl: weight of Σ_k shares_k KL(mixture_k ‖ natural), bits per byte a nat: how much a change from
      the natural proportions must gain.
  """
  space, (K, m) = law.space, tried.shape[1:]
  natural = space.natural
  shape = lambda flat: np.maximum(flat, 0).reshape(K, m)

  def objective(mixture: np.ndarray) -> np.ndarray:
    divergence = np.sum(mixture * np.log(np.maximum(mixture, 1e-12) / natural), axis=-1)
    return law(mixture) @ blend + kl * divergence @ space.shares

  order = np.argsort(objective(tried))
  if not FORMS[law.form].smooth:  # RegMix's way: the mean of the best of many
    many = design(space, 20_000, temper=1.0, strength=(3.0, 40.0), seed=1)
    inside = within(many, tried)
    many = many[inside] if inside.any() else tried
    return capped(many[np.argsort(objective(many))[:128]].mean(axis=0), space)

  def with_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
    steps = 1e-6 * np.eye(K * m).reshape(-1, K, m)
    base = shape(flat)
    low, high = np.maximum(base - steps, 0), base + steps
    widths = np.sum(high - low, axis=(1, 2))
    values = objective(np.concatenate([base[None], low, high]))
    return float(values[0]), (values[1 + K * m:] - values[1:1 + K * m]) / widths

  bounds = list(zip(tried.min(axis=0).ravel(), tried.max(axis=0).ravel(), strict=True))
  part = lambda flat: space.overall(shape(flat))
  constraints: list[dict[str, Any]] = [
    {'type': 'eq', 'fun': lambda x: shape(x).sum(axis=1) - 1},
    {'type': 'ineq', 'fun': lambda x: space.caps - part(x)}]
  for names, share in space.floors:
    index = [space.names.index(n) for n in names]
    constraints.append({'type': 'ineq', 'fun': lambda x, i=index, s=share: part(x)[i].sum() - s})
  best, least = capped(tried[order[0]], space), np.inf
  for start in tried[order[:starts]]:
    found = scipy.optimize.minimize(
      with_gradient, start.ravel(), jac=True, method='SLSQP', bounds=bounds,
      constraints=constraints, options={'maxiter': 300, 'ftol': 1e-10})
    mixture = shape(found.x) / shape(found.x).sum(axis=1, keepdims=True)
    kept = (space.overall(mixture) <= space.caps * (1 + 1e-6)).all() and within(
      mixture[None], tried, 1e-6)[0] and all(
      part(mixture.ravel())[[space.names.index(n) for n in names]].sum() >= share - 1e-6
      for names, share in space.floors)
    if kept and (value := float(objective(mixture))) < least:
      best, least = mixture, value
  return best


@dataclasses.dataclass(frozen=True)
class Decision:
  """A mixture and what it is expected to gain over another, in bits per byte of the blend.

  Attributes:
    naive: what the law says.
    gain: less the optimism of having chosen the mixture by that law, by bootstrap.
    low, high: ends of the interval of 95 %, for one run of each.
    optimism: how much better proposals look to the law that proposed them.
  """

  mixture: np.ndarray
  naive: float
  gain: float
  low: float
  high: float
  optimism: float


def decide(
  law: Surrogate, mixtures: np.ndarray, scores: np.ndarray, groups: Sequence[Any],
  blend: np.ndarray, *, against: np.ndarray, error: float, kl: float = 0.0, resamples: int = 100,
  seed: int = 0,
) -> Decision:
  """Proposes a mixture and says what it should gain, with an interval.

  Mixtures are drawn with replacement, laws fitted to them again with the settings that `law` chose,
  and each proposes: how much better its proposal looks to it than to `law` is the optimism of such
  a choice. The interval has the spread of the predicted gain over resamples, the law's own error on
  mixtures that it has not seen, and is Student's t with as many degrees of freedom as mixtures
  beyond corpora.

  Args:
    error: root mean square of the law's errors out of fold.
    against: the mixture that the gain is over, [K, m].
  """
  chosen = propose(law, blend, mixtures, kl=kl)
  gain_of = lambda surrogate, mixture: float((surrogate(against) - surrogate(mixture)) @ blend)
  rng = np.random.default_rng([17, seed])
  names = list(dict.fromkeys(groups))
  rows_of = {g: np.flatnonzero([h == g for h in groups]) for g in names}
  gains, optimism = [], []
  for _ in range(resamples):
    drawn = [names[i] for i in rng.integers(len(names), size=len(names))]
    rows = np.concatenate([rows_of[g] for g in drawn])
    again = fit(law.space, law.form, mixtures[rows], scores[rows], drawn, law.settings)
    theirs = propose(again, blend, mixtures, kl=kl, starts=1)
    gains.append(gain_of(again, chosen))
    optimism.append(gain_of(again, theirs) - gain_of(law, theirs))
  freedom = max(2, len(names) - len(law.space.names) - 1)
  spread = float(np.hypot(np.std(gains), error))
  half = float(scipy.special.stdtrit(freedom, 0.975)) * spread
  naive = gain_of(law, chosen)
  gain = naive - float(np.mean(optimism))
  return Decision(chosen, naive, gain, gain - half, gain + half, float(np.mean(optimism)))


def sensitivity(
  law: Surrogate, blend: np.ndarray, mixture: np.ndarray, step: float = 0.05
) -> dict[str, list[float | None]]:
  """By corpus, what `step` less and more of it would change of the blended score, the others giving
  way in proportion; None where there is not so much to take."""
  base = float(law(mixture) @ blend)
  found: dict[str, list[float | None]] = {}
  for i, name in enumerate(law.space.names):
    found[name] = []
    for delta in (-step, step):
      other = mixture * (1 - (mixture[:, i:i + 1] + delta)) / (1 - mixture[:, i:i + 1])
      other[:, i] = mixture[:, i] + delta
      possible = (other[:, i] >= 0).all()
      found[name].append(float(law(other) @ blend) - base if possible else None)
  return found


# --- Does it work where the truth is known? -------------------------------------------------------


def simulate(
  *, trials: int = 40, corpora: int = 6, proxies: int = 40, noise: float = 0.003,
  form: str = 'saturating', planted: str = 'saturating', seed: int = 0,
) -> dict[str, float]:
  """Decisions on planted laws: how often the interval of `decide` covers the true gain, and what
  the proposal really gains.

  Args:
    noise: standard deviation of a run's score, bits per byte.
    planted: 'saturating', each domain learns from each corpus at rates of its own, or
      'exponential'; where it is not `form`, the law that is fitted is wrong.
  """
  covered, won, regret, gains = [], [], [], []
  for trial in range(trials):
    rng = np.random.default_rng([19, seed, trial])
    sizes = rng.dirichlet(np.full(corpora, 2.0)) * 1e7 + 2e5
    space = Space([f'c{i}' for i in range(corpora)], sizes, 5e6)
    truth = functools.partial(_planted[planted], of=_draw(rng, corpora))
    tried = np.concatenate([design(space, proxies - 4, seed=trial), [space.natural] * 4])
    groups = [*range(proxies - 4), *['natural'] * 4]
    scores = truth(tried[:, 0]) + noise * rng.standard_normal((proxies, corpora))
    blend = np.full(corpora, 1 / corpora)
    law = fit(space, form, tried, scores, groups)
    error = quality(out_of_fold(space, form, tried, scores, groups) @ blend, scores @ blend)['rmse']
    found = decide(law, tried, scores, groups, blend, against=space.natural, error=error,
                   resamples=30)
    true = float((truth(space.natural[0]) - truth(found.mixture[0])) @ blend)
    many = design(space, 3000, seed=10_000 + trial)
    best = float((truth(space.natural[0]) - truth(many[:, 0])).dot(blend).max())
    covered.append(found.low <= true <= found.high)
    won.append(true > 0)
    regret.append((best - true) / noise)
    gains.append(true)
  return {'trials': trials, 'coverage': float(np.mean(covered)), 'wins': float(np.mean(won)),
          'median_gain': float(np.median(gains)), 'median_regret_sd': float(np.median(regret))}


def _draw(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
  """What each domain [m, m] gains of each corpus, its own the most, and at what rates."""
  gain = rng.uniform(0, 0.05, (m, m)) + np.diag(rng.uniform(0.2, 0.5, m))
  return gain, np.exp(rng.uniform(np.log(3), np.log(30), (m, m)))


_planted = {
  'saturating': lambda w, of: 1.2 + np.einsum(
    'dm,...dm->...d', of[0], np.exp(-of[1] * w[..., None, :])),
  'exponential': lambda w, of: 1.2 + of[0].sum(axis=1) * np.exp(
    -3 * np.einsum('dm,...m->...d', of[0] / of[0].sum(axis=1, keepdims=True), w) * 2),
}
