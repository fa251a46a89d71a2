"""The parametric law's least squares in logs, for one table or for many resamples of it at once.

Hoffmann et al.'s objective (approach 3): Huber of δ = 1e-3 on log-sum-exp less log loss, summed.
Levenberg and Marquardt's method with Huber's weights takes a fiftieth of the time of L-BFGS from
as many starts, and many weightings of a table (resamples, the smaller runs alone) go side by side.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special

DELTA = 1e-3  # of Huber's loss, in log L

# Where it starts: log A, log B, log E, α, β. Those of the least objective are followed.
_GRID = ((0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1),
         (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))  # fmt: skip
_TRIED = 24
# No resample may run away to numbers that overflow: a law has exponents of 0 to 5.
_BOUNDS = np.array([(-50, 150), (-50, 150), (-50, 10), (0, 5), (0, 5)], float).T


class Table:
  """Runs in logs; the objective of a law of theta = (log A, log B, log E, α, β), `[…, 5]`."""

  def __init__(self, params: np.ndarray, tokens: np.ndarray, loss: np.ndarray, tied: bool = False):
    self.logs = np.log(params), np.log(tokens), np.log(loss)
    self.tied = tied

  def parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the three terms, `[3, …, R]`, and how much the log of their sum is too high."""
    log_n, log_d, log_l = self.logs
    a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)[..., None]
    terms = np.stack([a - alpha * log_n, b - beta * log_d, e + np.zeros_like(log_n)])
    log_sum = np.logaddexp.reduce(terms, axis=0)
    return np.exp(terms - log_sum), log_sum - log_l

  def jacobian(self, share: np.ndarray) -> np.ndarray:
    """Of the residuals, `[…, R, P]`: P = 5, or 4 where α = β."""
    log_n, log_d, _ = self.logs
    by = -share[0] * log_n, -share[1] * log_d
    return np.stack([*share, *([sum(by)] if self.tied else by)], axis=-1)

  def best(self) -> tuple[np.ndarray, float]:
    """theta and objective of the least objective from a grid of starts."""
    grid = np.array(list(itertools.product(*_GRID)), float)
    if self.tied:
      grid = grid[grid[:, 3] == grid[:, 4]]
    first = np.argsort(scipy.special.huber(DELTA, self.parts(grid)[1]).sum(axis=1))[:_TRIED]
    weights = np.ones((_TRIED, len(self.logs[0])))
    found, objective = self.fit(weights, grid[first], rounds=300)
    theta = found[np.argmin(objective)]

    def of(x: np.ndarray) -> tuple[float, np.ndarray]:
      share, off = self.parts(np.append(x, x[-1]) if self.tied else x)
      gradient = np.clip(off, -DELTA, DELTA) @ self.jacobian(share)
      return float(scipy.special.huber(DELTA, off).sum()), gradient

    # To the last digits, in a narrow valley.
    polished = scipy.optimize.minimize(
      of, theta[:4] if self.tied else theta, jac=True, method='BFGS',
      options={'gtol': 1e-12, 'maxiter': 5000})
    x = np.append(polished.x, polished.x[-1]) if self.tied else polished.x
    inside = np.isfinite(x).all() and (_BOUNDS[0] <= x).all() and (x <= _BOUNDS[1]).all()
    if inside and polished.fun <= objective.min():
      return x, float(polished.fun)
    return theta, float(objective.min())

  def fit(
    self, weights_KR: np.ndarray, starts: np.ndarray | Sequence[float], rounds: int = 100
  ) -> tuple[np.ndarray, np.ndarray]:
    """theta `[K, 5]` and objective `[K]` of the table weighted K ways, each from its start."""
    K = len(weights_KR)
    theta = np.array(np.broadcast_to(np.asarray(starts, float), (K, 5)))
    value = lambda off: (weights_KR * scipy.special.huber(DELTA, off)).sum(axis=1)
    share, off = self.parts(theta)
    least, damping, todo = value(off), np.full(K, 1e-3), np.ones(K, bool)
    for _ in range(rounds):
      jacobian = self.jacobian(share)
      weighted = jacobian * (weights_KR * np.minimum(1, DELTA / np.maximum(np.abs(off), 1e-15))
                             )[..., None]
      curvature = np.einsum('krp,krq->kpq', weighted, jacobian)
      scale = np.einsum('kpp->kp', curvature) * damping[:, None] + 1e-12
      curvature += scale[..., None] * np.eye(scale.shape[1])
      step = -np.linalg.solve(curvature, np.einsum('krp,kr->kp', weighted, off)[..., None])[..., 0]
      if self.tied:
        step = np.append(step, step[:, -1:], axis=1)
      new = np.clip(theta + np.clip(step, -3, 3), *_BOUNDS)
      new_share, new_off = self.parts(new)
      there = value(new_off)
      better = (there < least) & todo
      todo &= ~(better & (least - there < 1e-10 * least)) & (damping < 1e6)
      theta[better], least[better] = new[better], there[better]
      share[:, better], off[better] = new_share[:, better], new_off[better]
      damping = np.where(better, np.maximum(damping / 5, 1e-9), damping * 4)
      if not todo.any():
        break
    return theta, least


def clusters(values: np.ndarray, tolerance: float) -> np.ndarray:
  """A number from 0 for each value, the same for those within `tolerance` (in logs) of the least of
  them: digitised sizes and budgets that end with a whole batch are one."""
  out, label, first = np.empty(len(values), int), -1, -np.inf
  for i in np.argsort(values, kind='stable'):
    if np.log(values[i]) - first > tolerance:
      label, first = label + 1, np.log(values[i])
    out[i] = label
  return out
