"""A task's accuracy at a size not trained yet, in two steps (OLMo's ladder, arXiv:2412.04403).

The bits per byte of the task's right answers follow a law of N and D, like any loss; accuracy
follows these bits by a sigmoid, to which checkpoints along training count too. Accuracy itself
follows no law of N and D: it stays at chance, rises and saturates.
"""

import dataclasses
import math

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
  """

  top: float
  fall: float
  slope: float
  middle: float
  spread: float
  points: int

  def __call__(self, bits: Array) -> np.ndarray:
    """Accuracy at these bits per byte."""
    share = scipy.special.expit(self.slope * (np.asarray(bits, np.float64) - self.middle))
    return self.top - self.fall * share


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
  return Sigmoid(*map(float, found.x), spread=spread, points=len(x))


@dataclasses.dataclass(frozen=True)
class TaskLaw:
  """Both steps: `bits` of N and D, `accuracy` of bits."""

  bits: laws.Fit
  accuracy: Sigmoid

  def predict(self, params: float, tokens: float, *, force: bool = False) -> laws.Prediction:
    """Accuracy (as `loss`) with its 90 % interval: that of the bits, and the spread about the
    sigmoid. Raises laws.TooFar as `laws.predict` does."""
    told = laws.predict(self.bits, params, tokens, force=force)
    middle = float(self.accuracy(told.loss))
    around = 1.645 * self.accuracy.spread
    worse, better = (float(self.accuracy(x)) if math.isfinite(x) else x
                     for x in (told.high, told.low))
    if not math.isfinite(worse):  # the runs do not tell the bits
      return laws.Prediction(middle, -math.inf, math.inf)
    return laws.Prediction(middle, middle - math.hypot(middle - worse, around),
                           middle + math.hypot(better - middle, around))
