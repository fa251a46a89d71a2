"""A task's accuracy at a size not trained yet, in two steps (OLMo's ladder, arXiv:2412.04403).

The bits per byte of the task's right answers follow a law of N and D, like any loss; accuracy
follows these bits by a sigmoid, to which checkpoints along training count too. Accuracy itself
follows no law of N and D: it stays at chance, rises and saturates.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special

from smoljax.scaling import laws

Array = laws.Array


@dataclasses.dataclass(frozen=True)
class Sigmoid:
  """accuracy = top - fall / (1 + exp(-slope (bits - middle))).

  Attributes:
    spread: standard deviation of the points about it, with four degrees of freedom taken.
    points: how many it was fitted on.
    covariance: of the four numbers, [4, 4].
  """

  top: float
  fall: float
  slope: float
  middle: float
  spread: float
  points: int
  covariance: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((4, 4)), repr=False)

  def __call__(self, bits: Array) -> np.ndarray:
    """Accuracy at these bits per byte."""
    share = scipy.special.expit(self.slope * (np.asarray(bits, np.float64) - self.middle))
    return self.top - self.fall * share

  def half(self, bits: float) -> float:
    """Half the 90 % interval of a point at these bits: its own spread, and what the curve may be
    wrong by there, times Student's t."""
    slopes = _slopes((self.top, self.fall, self.slope, self.middle), np.array([bits]))[0]
    error = math.hypot(self.spread, math.sqrt(max(0.0, slopes @ self.covariance @ slopes)))
    return float(scipy.special.stdtrit(max(1, self.points - 4), 0.95)) * error


def _slopes(theta: Sequence[float], x: np.ndarray) -> np.ndarray:
  """Derivatives of the accuracy at x by top, fall, slope and middle, [n, 4]."""
  _, fall, slope, middle = theta
  share = scipy.special.expit(slope * (x - middle))
  steep = fall * share * (1 - share)
  return np.stack([np.ones_like(x), -share, -steep * (x - middle), steep * slope], axis=1)


def fit_sigmoid(bits: Array, accuracy: Array, *, best: float = 1.0) -> Sigmoid:
  """The least squares of Huber's loss, with the point (0 bits, `best`) added as OLMo's ladder does:
  who is sure of every right answer chooses it.

  Raises ValueError for fewer than six points.
  """
  x, y = (np.asarray(v, np.float64).ravel() for v in (bits, accuracy))
  if len(x) != len(y) or len(x) < 6 or not np.isfinite([x, y]).all():
    raise ValueError(f'{len(x)} pairs of bits and accuracy: a sigmoid needs six that are numbers')
  with_end = np.append(x, 0.0), np.append(y, best)

  def off(theta: np.ndarray) -> np.ndarray:
    top, fall, slope, middle = theta
    return top - fall * scipy.special.expit(slope * (with_end[0] - middle)) - with_end[1]

  low = [0.0, 0.0, 0.0, 0.0]
  tries = [scipy.optimize.least_squares(
    off, [best, best - min(y.min(), best - 0.01), slope, np.quantile(x, share)],
    bounds=(low, [1.5, 1.0, 100.0, 2 * x.max()]), loss='huber', f_scale=0.02)
    for slope in (1.0, 4.0) for share in (0.1, 0.5)]
  found = min(tries, key=lambda r: r.cost)
  rest = off(found.x)[:-1]
  spread = math.sqrt(float(rest @ rest) / max(1, len(x) - 4))
  slopes = _slopes(found.x, with_end[0])
  return Sigmoid(*map(float, found.x), spread=spread, points=len(x),
                 covariance=spread**2 * np.linalg.pinv(slopes.T @ slopes, rcond=1e-10))


@dataclasses.dataclass(frozen=True)
class TaskLaw:
  """Both steps: `bits` of N and D, `accuracy` of bits."""

  bits: laws.Fit
  accuracy: Sigmoid

  def predict(self, params: float, tokens: float, *, force: bool = False) -> laws.Prediction:
    """Accuracy (as `loss`) with its 90 % interval: that of the bits, and the sigmoid's.

    Raises laws.TooFar as `laws.predict` does.
    """
    told = laws.predict(self.bits, params, tokens, force=force)
    middle = float(self.accuracy(told.loss))
    around = self.accuracy.half(told.loss)
    worse, better = (float(self.accuracy(x)) if math.isfinite(x) else x
                     for x in (told.high, told.low))
    if not math.isfinite(worse):  # the runs do not tell the bits
      return laws.Prediction(middle, -math.inf, math.inf)
    return laws.Prediction(middle, middle - math.hypot(middle - worse, around),
                           middle + math.hypot(better - middle, around))
