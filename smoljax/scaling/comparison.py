"""Are two recipes apart, and what difference could their runs have shown?

Every page that compares (sweeps, ablations, contests, mixtures) asks here, and by these rules:

- A figure over seeds has Student's t-interval. A percentile bootstrap of three seeds that claims
  95 % covers .75, of five .83; t covers .95 of both (`tests/smoljax/scaling/test_comparison.py`).
- Runs of the same seeds, which share initialisation and the order of the data, are paired.
- Ratios (tokens to a loss) are compared in logarithms.
- What is asked together counts together: `judge` lowers the bar for luck by Holm's method.
- Beside each difference stands the least that so many runs would have shown in 80 % of tries.
- Two runs give no verdict: their interval is 6.5 times as wide as that of four. Nor do runs of
  which one has no finite figure, or that seeds do not tell apart: their noise is not known.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

LEVEL = 0.95  # of intervals; 1 - LEVEL is the risk of a verdict, of a whole family
POWER = 0.8  # share of tries in which a difference of the `detectable` size would be seen
LEAST = 3  # runs of which a verdict is made


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean, or a difference of means, over seeds.

  Attributes:
    mean: of the figure, in its unit; of log ratios, in nats; NaN where a value is not finite.
    error: standard error of the mean; infinite for a single value, and beside a mean of NaN.
    freedom: its degrees of freedom.
    n: seeds; pairs where `paired`, of the smaller side otherwise.
    paired: seed by seed.
    correlation: of the two sides over seeds; NaN where they are not paired.
  """

  mean: float
  error: float
  freedom: float
  n: int
  paired: bool = False
  correlation: float = math.nan

  @property
  def half(self) -> float:
    """Half the width of the 95 % t-interval."""
    if not 0 < self.error < math.inf:
      return self.error
    return float(scipy.special.stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.error

  @property
  def low(self) -> float:
    """Lower end of the interval."""
    return self.mean - self.half

  @property
  def high(self) -> float:
    """Upper end of the interval."""
    return self.mean + self.half

  @property
  def p(self) -> float:
    """Two-sided, of a t-test that the mean is 0; 1 where the error is infinite."""
    if not 0 < self.error < math.inf:
      return 0.0 if self.error == 0 != self.mean else 1.0
    return 2 * float(scipy.special.stdtr(self.freedom, -abs(self.mean) / self.error))

  @property
  def detectable(self) -> float:
    """The difference that would be seen in 80 % of tries, with this spread and so many runs."""
    return detectable(self.error, self.freedom) if 0 < self.error < math.inf else self.error

  @property
  def unknown(self) -> str:
    """Why there can be no verdict; '' where there can be one."""
    if not math.isfinite(self.mean):
      return 'a run has no finite figure'
    if self.n < LEAST:
      return f'n = {self.n}'
    return 'seeds make no difference' if self.error < 1e-12 * abs(self.mean) else ''


def estimate(values: Sequence[float]) -> Estimate:
  """The mean of one value a seed. Raises statistics.StatisticsError for none."""
  n = len(values)
  if not all(map(math.isfinite, values)):
    return Estimate(math.nan, math.inf, n - 1, n)
  error = statistics.stdev(values) / math.sqrt(n) if n > 1 else math.inf
  return Estimate(statistics.fmean(values), error, n - 1, n)


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half the width of its 95 % interval, by Student's t; infinite for a single value."""
  found = estimate(values)
  return found.mean, found.half


def difference(a: Mapping[Any, float], b: Mapping[Any, float]) -> Estimate:
  """The mean of b - a; both map seed → figure.

  Paired over the seeds that both have, where these are three or more or all of them; else by
  Welch's t. Raises ValueError where one side is empty.
  """
  if not a or not b:
    raise ValueError('a difference needs runs on both sides')
  both = [seed for seed in a if seed in b]
  if len(both) >= LEAST or len(both) == len(a) == len(b):
    x, y = [a[s] for s in both], [b[s] for s in both]
    paired, rho = estimate([j - i for i, j in zip(x, y, strict=True)]), math.nan
    if len(set(x)) > 1 and len(set(y)) > 1 and math.isfinite(paired.mean):
      rho = statistics.correlation(x, y)
    return dataclasses.replace(paired, paired=True, correlation=rho)
  n = min(len(a), len(b))
  if not all(map(math.isfinite, (*a.values(), *b.values()))):
    return Estimate(math.nan, math.inf, 0, n)
  mean = statistics.fmean(b.values()) - statistics.fmean(a.values())
  if n < 2:
    return Estimate(mean, math.inf, 0, n)
  parts = [statistics.variance(of.values()) / len(of) for of in (a, b)]
  total, below = sum(parts), sum(v**2 / (len(of) - 1) for v, of in zip(parts, (a, b), strict=True))
  freedom = total**2 / below if below else len(a) + len(b) - 2
  return Estimate(mean, math.sqrt(total), freedom, n)


def log_ratio(a: Mapping[Any, float], b: Mapping[Any, float]) -> Estimate:
  """`difference` of logarithms: exp of its mean, low and high is b / a with its interval.

  For tokens to a target, say; all must be finite and above 0 (ValueError): runs that never came
  there are counted, not averaged.
  """
  for of in (a, b):
    if wrong := [x for x in of.values() if not (math.isfinite(x) and x > 0)]:
      raise ValueError(f'{len(wrong)} of {len(of)} values have no logarithm, such as {wrong[0]}')
  return difference(*({seed: math.log(x) for seed, x in of.items()} for of in (a, b)))


def detectable(error: float, freedom: float) -> float:
  """The true difference at which a t-test at 5 % says so in 80 % of tries.

  Args:
    error: standard error of the difference. Of k seeds against k others with a standard deviation s
      of a run s √(2 / k); of k pairs with correlation ρ s √(2 (1 - ρ) / k).
    freedom: degrees of freedom, 2 k - 2 or k - 1.
  """
  return _shift(round(float(freedom), 1)) * error


@functools.lru_cache(maxsize=1024)
def _shift(freedom: float) -> float:
  """`detectable` in standard errors. Of the noncentral t, whose distribution in scipy is NaN where
  shifts are large: the integral over the estimated spread is taken instead."""
  chances = (np.arange(2000) + 0.5) / 2000
  spread = np.sqrt(scipy.special.chdtri(freedom, chances) / freedom)
  bar = scipy.special.stdtrit(freedom, (1 + LEVEL) / 2) * spread
  power = lambda shift: float(np.mean(
    scipy.special.ndtr(shift - bar) + scipy.special.ndtr(-bar - shift)))
  return float(scipy.optimize.brentq(lambda x: power(x) - POWER, 0, 1e3, xtol=1e-6))


def holm(p: Sequence[float]) -> list[float]:
  """Holm's adjusted p-values, each times the number of those that are not smaller, never falling.

  One below 5 % is a finding even though so many were looked at together.
  """
  out, most = [0.0] * len(p), 0.0
  for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
    most = max(most, min(1.0, (len(p) - rank) * p[i]))
    out[i] = most
  return out


def judge(family: Sequence[Estimate]) -> list[str]:
  """Of each difference of what is asked together: 'apart', 'within noise', or why there is none.

  Those of fewer than three runs, or of an `unknown` error, get no verdict, and do not count.
  """
  return [f'no verdict: {e.unknown}' if e.unknown else 'apart' if p < 1 - LEVEL else 'within noise'
          for e, p in zip(family, corrected(family), strict=True)]


def corrected(family: Sequence[Estimate]) -> list[float]:
  """By Holm's method, the p-values that `judge` goes by; NaN where it gives no verdict."""
  found = iter(holm([e.p for e in family if not e.unknown]))
  return [math.nan if e.unknown else next(found) for e in family]


def tokens_to(curve: Sequence[tuple[float, float]], target: float) -> float:
  """Tokens at which a curve of (tokens, loss) first comes to `target`, straight lines in log tokens
  between its points; infinite where it does not."""
  before = None
  for tokens, value in curve:
    if value <= target:
      if before is None or before[1] == value:
        return tokens
      share = (before[1] - target) / (before[1] - value)
      if not before[0]:  # of the model before its first step
        return share * tokens
      return math.exp(math.log(before[0]) + share * math.log(tokens / before[0]))
    before = tokens, value
  return math.inf
