"""Do the 90 % intervals of a scaling law's predictions hold 90 % of the runs? One JSON line.

  python -m experiments.benchmarks.law_coverage --data=chinchilla.csv,marin.csv
  python -m experiments.benchmarks.law_coverage --data=isoflops.csv --skip=misfitting,raw_loss

Each table (a CSV as `experiments.report --scaling` reads it; where it has a column `experiment`,
one a value) is cut at each of its budgets: the law of all cheaper runs predicts the runs of that
budget, as soon as it is told by eight runs of four sizes and two budgets. With --by=size the law of
all smaller sizes predicts the next. `largest` counts those of the last cut alone, `all` every one.
`parameters` is what intervals of the parameters alone would hold, `residuals` what these and the
spread of residuals would; both as normal distributions have it.

Public tables: `git clone https://github.com/Open-Athena/scaling-law-analysis`, of which
data/isoflops/transform/isoflops.csv has Chinchilla's twice, Llama 3's, Marin's three, one more.
"""

import argparse
import csv
import json
import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from smoljax.report import scaling_page
from smoljax.scaling import fitting, laws

RESAMPLES = 60


def tables(paths: Sequence[str], skip: Sequence[str]) -> Iterator[tuple[str, scaling_page.Points]]:
  """The name and runs of each table; without those whose name has one of `skip`."""
  for path in paths:
    with open(path, newline='', encoding='utf-8') as f:
      names = list(dict.fromkeys(row.get('experiment', '') for row in csv.DictReader(f)))
    for name in names:
      title = name or pathlib.Path(path).stem
      if not any(part in title for part in skip):
        yield title, scaling_page.read(path, rows={'experiment': name} if name else {})


def measure(p: scaling_page.Points, *, by: str = 'budget', tied: bool = False) -> dict:
  """What share of each budget's runs the law of the cheaper ones has in its intervals; or of each
  size's the law of the smaller ones."""
  order = p.params if by == 'size' else p.flops if p.budget is None else p.budget
  stages = fitting.clusters(order, 0.1)
  if stages.max() >= 12:
    stages = np.searchsorted(np.quantile(order, np.arange(1, 12) / 12), order)
  held: dict[str, list[list[bool]]] = {'all': [], 'parameters': [], 'residuals': []}
  widths, errors = [], []
  for stage in range(2, stages.max() + 1):
    past, now = stages < stage, np.flatnonzero(stages == stage)
    sizes = fitting.clusters(p.params[past], 0.05)
    if past.sum() < 8 or sizes.max() < 3 or not len(now):
      continue
    fit = laws.fit_chinchilla(p.params[past], p.tokens[past], p.loss[past], tied=tied,
                              bootstrap=RESAMPLES)
    found: dict[str, list[bool]] = {k: [] for k in held}
    for i in now:
      n, d, actual = p.params[i], p.tokens[i], p.loss[i]
      told = laws.predict(fit, n, d, force=True)
      error, spread = laws.errors(fit, n, d)
      off = math.log(actual / told.loss)
      found['all'].append(told.low <= actual <= told.high)
      found['parameters'].append(abs(off) <= 1.645 * error)
      found['residuals'].append(abs(off) <= 1.645 * math.hypot(error, spread))
      if math.isfinite(told.high):
        widths.append((told.high - told.low) / 2 / told.loss)
      errors.append(abs(off))
    for k, x in found.items():
      held[k].append(x)
  share = lambda x: round(float(np.mean(x)), 3)
  return {
    'runs': len(p.loss), 'cuts': len(held['all']), 'predicted': sum(map(len, held['all'])),
    **{k: share(np.concatenate(x)) for k, x in held.items()}, 'largest': share(held['all'][-1]),
    'largest_runs': len(held['all'][-1]), 'half_width': share(np.median(widths)),
    'median_error': round(float(np.median(errors)), 4)}


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.law_coverage', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True, help='CSV files, with commas')
  parser.add_argument('--skip', default='', help='leave out tables whose name has one of these')
  parser.add_argument('--by', default='budget', choices=('budget', 'size'),
                      help='what the runs that are predicted have more of')
  parser.add_argument('--tied', action='store_true', help='laws with α = β')
  args = parser.parse_args(argv)
  found = {}
  for name, points in tables(args.data.split(','), [s for s in args.skip.split(',') if s]):
    found[name] = measure(points, by=args.by, tied=args.tied)
    print(f'{name}: {found[name]}', flush=True)
  weighted = lambda k, n: round(
    sum(t[k] * t[n] for t in found.values()) / sum(t[n] for t in found.values()), 3)
  print(json.dumps({
    'benchmark': 'law_coverage', 'by': args.by, 'nominal': laws.LEVEL,
    'largest': weighted('largest', 'largest_runs'),
    **{k: weighted(k, 'predicted') for k in ('all', 'parameters', 'residuals')}, 'tables': found}))


if __name__ == '__main__':
  main()
