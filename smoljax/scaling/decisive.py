"""Which tasks can decide anything at this size: the signal beside a score.

The criteria of FineTasks (Kydlíček et al. 2024), by which a task is chosen for comparing small
models: it rises with training, it is not noise, it is above chance, it orders models alike from one
checkpoint to the next. Noise is that of one recipe: never of different mixtures pooled (Heineman et
al. 2025, arXiv:2508.13144).
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MONOTONE, SIGNAL_TO_NOISE, ABOVE_CHANCE = 0.5, 20.0, 3.0  # what each must reach
_LAST = 5  # checkpoints of which the noise is taken


def signal(
  runs: Mapping[str, Mapping[int, float]], chance: float = 0.0, *, generative: bool = False
) -> dict[str, Any]:
  """What the scores of one task over checkpoints and seeds say of the task.

  Args:
    runs: name of a run → step → score; runs differ in their seed alone.
    chance: the score of one who knows nothing.
    generative: such tasks need not reach `SIGNAL_TO_NOISE`.
  Returns:
    monotone: Spearman's correlation of step and score, mean of the runs with three steps or more.
    noise: standard deviation over seeds at the last common step; of one run, over its last
      checkpoints about their trend.
    signal_to_noise: mean of the last scores over the noise.
    above_chance: how many times the noise the best of them is above chance.
    order: Kendall's τ of the runs' order between successive common steps, where there are three
      runs or more.
    decides: whether it meets the criteria that could be measured; None where none could.
    why: what it fails.
  """
  steps = sorted(set.intersection(*(set(run) for run in runs.values()))) if runs else []
  long = [run for run in runs.values() if len(run) >= 3]
  result: dict[str, Any] = {'runs': len(runs), 'steps': max(map(len, runs.values()), default=0)}
  if long:
    result['monotone'] = statistics.fmean(
      correlation(ranks(sorted(run)), ranks([run[s] for s in sorted(run)])) for run in long)
  last = [run[max(run)] for run in runs.values() if run]
  noise = None
  if len(runs) > 1 and steps:
    last = [run[steps[-1]] for run in runs.values()]
    noise = statistics.stdev(last)
  elif long:
    noise = statistics.fmean(_about_trend([run[s] for s in sorted(run)][-_LAST:]) for run in long)
  if noise is not None and last:
    floor = max(noise, 1e-12)
    result |= {'noise': noise, 'signal_to_noise': statistics.fmean(last) / floor,
               'above_chance': (max(last) - chance) / floor}
  if len(runs) >= 3 and len(steps) >= 2:
    rows = [[run[s] for run in runs.values()] for s in steps]
    result['order'] = statistics.fmean(itertools.starmap(kendall, itertools.pairwise(rows)))
  return result | _verdict(result, generative)


def _verdict(found, generative):
  limits = {'monotone': MONOTONE, 'above_chance': ABOVE_CHANCE}
  if not generative:
    limits['signal_to_noise'] = SIGNAL_TO_NOISE
  measured = {name: least for name, least in limits.items() if name in found}
  why = [f'{name} {found[name]:.2f} < {least:g}' for name, least in measured.items()
         if not found[name] >= least]
  return {'decides': not why if measured else None, 'why': why}


def ranks(values: Sequence[float]) -> list[float]:
  """The rank of each value from 1, equals sharing the mean of theirs."""
  ordered = sorted(values)
  return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
  """Pearson's; 0 where one of them does not vary."""
  return statistics.correlation(x, y) if len(set(x)) > 1 and len(set(y)) > 1 else 0.0


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
  """Kendall's τ-a: pairs ordered alike less those ordered otherwise, of all."""
  pairs = list(itertools.combinations(range(len(x)), 2))
  sign = lambda a: (a > 0) - (a < 0)
  return sum(sign(x[i] - x[j]) * sign(y[i] - y[j]) for i, j in pairs) / len(pairs)


def _about_trend(values):
  """Standard deviation about the straight line through the values."""
  n = len(values)
  if n < 3:
    return 0.0
  slope, start = statistics.linear_regression(range(n), values)
  return (sum((v - start - slope * i) ** 2 for i, v in enumerate(values)) / (n - 2)) ** 0.5
