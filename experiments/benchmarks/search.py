"""How soon do the samplers of experiments.search find a good point? One JSON line.

  python -m experiments.benchmarks.search --data=DIR [--seeds=20] [--trials=60]

Median regret (the best value found, less the best there is) of TPE and of random proposals over
seeds: on Branin and Hartmann-6, and on the Step-Law table (DIR/steplaw_dense_lr_bs_loss.csv: losses
of real runs over grids of learning rate and batch for 17 pairs of model and tokens, of arXiv
2503.04715). There a proposal takes the nearest point of the grid, and regret is relative to the
cell's best loss.

`diverging`: the same table where runs with a rate above the middle of a cell's range diverge, and
the best is that of the others. `tpe` is told a penalty for them, as experiments.search does;
`tpe, untold` that they failed, which samplers ignore. Regret is the mean over all cells, and of
that the median over seeds, after a third, two thirds and all of the trials; beside it, with how
many of the seeds it is less than random's, and what share of the trials diverged.

`halving`: of one size's grid, all points are tried with the table's fewest tokens, the best of them
with the next, …: what share of the cost of trying all with the most tokens that takes, if nothing
is shared between lengths, and where the chosen point ranks. `thirds` keeps a third each time;
`budget` what 40 % of the whole cost pays for, spread evenly over the lengths that are left.

`thaw`: the same grids by asynchronous halving, one point after the other in random order, each as
long as it is among the best third of those before it; a length goes on from the one before. With
and without thawing of those that are among the best third later (experiments/engine/study.py), and
where such a point had to begin again: means over sizes, medians over seeds.
"""

import argparse
import collections
import csv
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np
import optuna

from experiments.engine.study import Distinct, distributions, latest, run_of, tell, thawing


def branin(p: dict) -> float:
  """Less its minimum, .397887."""
  x, y = p['x'], p['y']
  return ((y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
          + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887)


def hartmann(p: dict) -> float:
  """Less its minimum, -3.32237."""
  a = np.array([[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14],
                [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]])
  b = 1e-4 * np.array([[1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
                       [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381]])
  x = np.array([p[f'x{i}'] for i in range(6)])
  return 3.32237 - float(np.exp(-np.sum(a * (x - b) ** 2, axis=1)) @ [1, 1.2, 3, 3.2])


def load_cells(path: pathlib.Path) -> dict[tuple[float, float], dict[tuple[float, int], float]]:
  """(parameters, tokens) → (learning rate to two digits, sequences a batch) → loss."""
  cells = collections.defaultdict(dict)
  with path.open() as f:
    for r in csv.DictReader(f):
      point = float(f'{float(r["lr"]):.2g}'), int(r['bs'])
      cells[float(r['N']), float(r['D'])][point] = float(r['smooth loss'])
  return dict(sorted(cells.items()))


def search(
  objective: Callable[[dict], float], space: dict, trials: int, sampler: str, seed: int,
  told: bool = True,
) -> list[float]:
  """Values of the trials in their order; one that is not finite fails, and is told or not."""
  study, values = optuna.create_study(), []
  for _ in range(trials):
    study.sampler = Distinct(sampler, seed, space)
    trial = study.ask(distributions(space))
    values.append(objective(trial.params))
    if told or math.isfinite(values[-1]):
      tell(study, trial, values[-1:])
    else:
      study.tell(trial, state=optuna.trial.TrialState.FAIL)
  return values


def regrets(
  objective: Callable[[dict], float], space: dict, trials: int, seeds: int
) -> dict[str, list[float]]:
  """Of each sampler and seed after all trials."""
  return {name: [min(search(objective, space, trials, name, seed)) for seed in range(seeds)]
          for name in ('random', 'tpe')}


def diverging(cells: list[dict], trials: int, seeds: int) -> dict[str, dict]:
  """Of each way to search: regret after some numbers of trials, share of them that diverged."""
  rows, found, at = {}, {}, [trials // 3, trials * 2 // 3, trials]
  for name, sampler, told in (('random', 'random', True), ('tpe', 'tpe', True),
                              ('tpe, untold', 'tpe', False)):
    values_CST = np.array([[search(*_half(cell), trials, sampler, seed, told)
                            for seed in range(seeds)] for cell in cells])
    found[name] = {n: values_CST[..., :n].min(axis=-1).mean(axis=0) for n in at}
    rows[name] = {
      'regret': {n: float(np.median(of)) for n, of in found[name].items()},
      'better_than_random': {n: int(np.sum(of < found['random'][n]))
                             for n, of in found[name].items()},
      'diverged': round(float(np.mean(~np.isfinite(values_CST))), 3)}
  return rows


def _half(cell: dict) -> tuple[Callable[[dict], float], dict]:
  """As `of_cell`, where the upper half of the learning rates diverges."""
  rates = np.log([lr for lr, _ in cell])
  middle = math.exp((rates.min() + rates.max()) / 2)
  return of_cell({p: loss if p[0] <= middle else math.inf for p, loss in cell.items()})


def of_cell(cell: dict) -> tuple[Callable[[dict], float], dict]:
  """(how far a point of the table is above its best, the space to search): for one N and D."""
  points, losses = np.log(list(cell)), np.array(list(cell.values()))
  low, high = np.exp(points.min(axis=0)), np.exp(points.max(axis=0))
  space = {n: ('log', float(a), float(b)) for n, a, b in zip(('lr', 'bs'), low, high, strict=True)}
  scale = np.ptp(points, axis=0)

  def objective(p: dict) -> float:
    off = (points - np.log([p['lr'], p['bs']])) / scale
    return float(losses[np.argmin(np.sum(off**2, axis=1))] / losses.min() - 1)

  return objective, space


def halving(cells: dict, keep: Callable[[int, float, list, float], int]) -> list[dict]:
  """Of each size with at least three lengths; `keep(alive, spent, tokens left, whole) -> count`."""
  by_size = collections.defaultdict(dict)
  for (n, d), cell in cells.items():
    by_size[n][d] = cell
  rows = []
  for n, lengths in by_size.items():
    tokens = sorted(lengths)
    alive = sorted(set.intersection(*(set(lengths[d]) for d in tokens)))
    if len(tokens) < 3 or not alive:
      continue
    last, spent = lengths[tokens[-1]], 0.0
    everything, whole = sorted(last[p] for p in alive), len(alive) * tokens[-1]
    for i, d in enumerate(tokens):
      if i:
        best = sorted(alive, key=lengths[tokens[i - 1]].get)
        alive = best[: max(1, keep(len(alive), spent, tokens[i:], whole))]
      spent += len(alive) * d
    chosen = last[min(alive, key=last.get)]
    rows.append({
      'params': n, 'points': len(everything), 'cost_share': round(spent / whole, 3),
      'rank_share': round((everything.index(chosen) + 1) / len(everything), 3),
      'excess': round(chosen / everything[0] - 1, 5)})
  return rows


HALVING = {
  'thirds': lambda alive, spent, left, whole: alive // 3,
  'budget': lambda alive, spent, left, whole: int((0.4 * whole - spent) / len(left) / left[0]),
}


def asynchronous(
  lengths: dict[float, dict], seed: int, thaws: bool, again: bool = False
) -> dict[str, float]:
  """Halving of one size's grid, {tokens: {point: loss}}; the cost and the rank of its choice.

  Args:
    again: a point that thaws costs its tokens from the beginning.
  """
  tokens = sorted(lengths)
  points = sorted(set.intersection(*(set(cell) for cell in lengths.values())))
  trials, spent = [], 0.0

  def go_on(point: tuple, seen: dict[int, float], attrs: dict) -> None:
    nonlocal spent
    state, before = optuna.trial.TrialState.COMPLETE, tokens[len(seen) - 1] if seen else 0
    spent += before * (again and bool(seen))
    for i in range(len(seen), len(tokens)):
      spent, before = spent + tokens[i] - before, tokens[i]
      seen[i] = lengths[tokens[i]][point]
      as_far = sorted([seen[i], *(t.intermediate_values[i] for t in latest(trials)
                                  if i in t.intermediate_values)])
      if i < len(tokens) - 1 and seen[i] > as_far[max(1, len(as_far) // 3) - 1]:
        state = optuna.trial.TrialState.PRUNED
        break
    trials.append(optuna.trial.FrozenTrial(
      len(trials), state, seen[len(seen) - 1], None, None, {}, {}, attrs | {'point': point}, {},
      dict(seen), len(trials)))

  def thaw() -> None:
    while thaws and (t := thawing(trials)):
      go_on(t.user_attrs['point'], dict(t.intermediate_values),
            {'thaws': t.number, 'run': run_of(t)})

  for k in np.random.default_rng(seed).permutation(len(points)):
    thaw()
    go_on(points[k], {}, {})
  thaw()
  last = lengths[tokens[-1]]
  whole = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
  chosen, everything = min(t.value for t in whole), sorted(last[p] for p in points)
  return {'cost_share': spent / (len(points) * tokens[-1]),
          'rank_share': (everything.index(chosen) + 1) / len(points),
          'excess': chosen / everything[0] - 1}


def thaw(cells: dict, seeds: int) -> dict[str, dict[str, float]]:
  """`asynchronous` of each size with at least three lengths, in three ways."""
  by_size = collections.defaultdict(dict)
  for (n, d), cell in cells.items():
    by_size[n][d] = cell
  found = {}
  for name, how in (('stopped for good', (False,)), ('thaws', (True,)),
                    ('thaws, begun again', (True, True))):
    rows = [[asynchronous(lengths, seed, *how) for lengths in by_size.values()
             if len(lengths) > 2] for seed in range(seeds)]
    found[name] = {key: float(np.median([np.mean([r[key] for r in of]) for of in rows]))
                   for key in rows[0][0]}
  return found


def main() -> None:
  """Prints regrets of samplers and what halving costs, as one JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=20)
  parser.add_argument('--trials', type=int, default=60)
  args = parser.parse_args()
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  cells = load_cells(args.data / 'steplaw_dense_lr_bs_loss.csv')
  tasks = {
    'branin': (branin, {'x': ('float', -5.0, 10.0), 'y': ('float', 0.0, 15.0)}),
    'hartmann6': (hartmann, {f'x{i}': ('float', 0.0, 1.0) for i in range(6)}),
    **{f'step law {n:.2g} {d:.2g}': of_cell(cell) for (n, d), cell in cells.items()},
  }
  medians, of_table = {}, collections.defaultdict(list)
  for task, (objective, space) in tasks.items():
    found = regrets(objective, space, args.trials, args.seeds)
    if task.startswith('step law'):
      for name, values in found.items():
        of_table[name] += values
    else:
      medians[task] = {k: float(np.median(v)) for k, v in found.items()}
  medians['step law'] = {k: float(np.median(v)) for k, v in of_table.items()}
  print(json.dumps({
    'benchmark': 'search', 'seeds': args.seeds, 'trials': args.trials, 'median_regret': medians,
    'step_law_mean_regret': {k: float(np.mean(v)) for k, v in of_table.items()},
    'diverging': diverging(list(cells.values()), args.trials, args.seeds),
    'halving': {name: halving(cells, keep) for name, keep in HALVING.items()},
    'thaw': thaw(cells, args.seeds)}))


if __name__ == '__main__':
  main()
