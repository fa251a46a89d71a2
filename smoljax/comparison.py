"""Several runs side by side: one page and a CSV, made of the files in their workdirs.

Runs that differ in nothing but their seed are one group: its mean has a 95 % interval (Student's t
over seeds), and its difference from the first group another, paired where the seeds are the same.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats

from smoljax import charts, metrics
from smoljax.charts import Series, count, figure, fixed, number, section, table, text

LOSS = 'validation loss'


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run says of itself."""

  name: str
  fields: Mapping[str, Any]  # what tells it from the others
  folder: pathlib.Path
  figures: Mapping[str, float]  # by their names in words, in the order they are shown
  loss: list[tuple[float, float]]  # tokens, nats per token in training
  held_out: list[tuple[float, float]]  # tokens, bits per byte, mean over corpora


def load(name: str, fields: Mapping[str, Any], folder: str | pathlib.Path) -> Result:
  """Reads a run. Raises OSError or ValueError where it is not finished."""
  folder = pathlib.Path(folder)
  summary = json.loads((folder / 'summary.json').read_text())
  found = sorted((folder / 'evals').glob('*.json'), key=lambda p: int(p.stem))
  scores = json.loads(found[-1].read_text()) if found else {}
  figures = {LOSS: summary['loss'].get('validation')}
  for corpus, of in scores.get('bits_per_byte', {}).items():
    figures[f'bits per byte, {corpus}'] = of['bpb']
    figures[f'calibration error, {corpus}'] = of.get('ece')
  figures |= {f'copying, {far}': of['accuracy'] for far, of in scores.get('copy', {}).items()}
  figures |= {task: of[of['metric']] for task, of in scores.get('tasks', {}).items()}
  figures |= {'tokens': summary['tokens'].get('trained'), 'parameters': summary.get('parameters'),
              'tokens per second': summary.get('tokens_per_sec')}
  rows = metrics.read_rows(str(folder / 'metrics.jsonl'))
  bits = [(r['tokens'], [x for k, x in r.items() if k.startswith('val/') and k.endswith('/bpb')])
          for r in rows if 'tokens' in r]
  return Result(
    name, fields, folder, {k: x for k, x in figures.items() if number(x)},
    [(r['tokens'], r['train/loss']) for r in rows if 'train/loss' in r],
    [(tokens, statistics.fmean(values)) for tokens, values in bits if values])


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half the width of its 95 % interval, by Student's t; infinite for a single value."""
  if len(values) < 2:
    return statistics.fmean(values), math.inf
  error = statistics.stdev(values) / math.sqrt(len(values))
  return statistics.fmean(values), float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error


def difference(a: Mapping[Any, float], b: Mapping[Any, float]) -> tuple[float, float]:
  """Mean of b - a and half its 95 % interval; both map seed → figure.

  Paired by seed where the seeds are the same, else by Welch's t.
  """
  if a.keys() == b.keys():
    return interval([b[seed] - a[seed] for seed in a])
  mean = statistics.fmean(b.values()) - statistics.fmean(a.values())
  if min(len(a), len(b)) < 2:
    return mean, math.inf
  test = scipy.stats.ttest_ind(list(b.values()), list(a.values()), equal_var=False)
  low, high = test.confidence_interval()
  return mean, float(high - low) / 2


def groups(results: Iterable[Result]) -> dict[tuple, dict[Any, Result]]:
  """Fields but the seed → {seed: run}, in the order of the runs."""
  out: dict[tuple, dict[Any, Result]] = {}
  for r in results:
    key = tuple((k, v) for k, v in r.fields.items() if k != 'seed')
    out.setdefault(key, {})[r.fields.get('seed', 0)] = r
  return out


def write(runs: Sequence[tuple[str, Mapping[str, Any], str | pathlib.Path]], workdir: str) -> str:
  """Writes WORKDIR/report/index.html about finished runs (name, fields, folder); returns its path.

  Beside it `runs.csv` has all figures of all runs. Raises OSError or ValueError for a run without
  its files.
  """
  results, site = [load(*r) for r in runs], charts.Site()
  varied = list(dict.fromkeys(k for r in results for k in r.fields))
  names = list(dict.fromkeys(k for r in results for k in r.figures))
  link = site.csv('runs', ('run', *varied, *names), [
    (r.name, *(str(r.fields.get(k, '')) for k in varied), *(r.figures.get(k, '') for k in names))
    for r in results])
  least = min(results, key=lambda r: r.figures.get(LOSS, math.inf))
  rows = []
  for r in sorted(results, key=lambda r: r.figures.get(LOSS, math.inf)):
    page = r.folder / 'report' / 'index.html'
    at = page.relative_to(workdir) if page.is_relative_to(workdir) else page.absolute()
    rows.append((f'<a href="../{text(at)}">{text(r.name)}</a>',
                 *(f'<b>{_figure(k, r.figures.get(k))}</b>' if k == LOSS else
                   _figure(k, r.figures.get(k)) for k in names)))
  parts = [
    f'<header><p class="kicker">smoljax · {len(results)} runs</p><h1>Least {LOSS}: '
    f'{fixed(least.figures.get(LOSS), 3)}</h1><p class="lede">{text(least.name)}</p></header>',
    section('runs', 'Runs', figure('By validation loss', table(('run', *names), rows), link)),
  ]
  of_seeds = groups(results)
  if any(len(g) > 1 for g in of_seeds.values()):
    parts.append(section('seeds', 'Over seeds', _over_seeds(of_seeds, site.csv)))
  curves = (
    ('Loss in training', 'nats per token, smoothed', 'line',
     {r.name: charts.smooth(r.loss) for r in results}),
    ('Held-out bits per byte', 'mean over corpora', 'dots', {r.name: r.held_out for r in results}),
  )
  parts.append(section('curves', 'Against tokens', *(
    figure(title, charts.lines(
      [Series(name, xy, i, style) for i, (name, xy) in enumerate(of.items()) if xy],
      label=f'{title} against tokens', y_label=unit, x_label='tokens'),
      site.csv(title, ('run', 'tokens', 'value'),
               [(name, x, y) for name, xy in of.items() for x, y in xy]))
    for title, unit, style, of in curves)))
  return site.write(pathlib.Path(workdir) / 'report', 'smoljax: runs compared', ''.join(parts))


def _over_seeds(of_seeds: Mapping[tuple, Mapping[Any, Result]], csv) -> str:
  first, rows = None, []
  for key, runs in of_seeds.items():
    of = {seed: r.figures[LOSS] for seed, r in runs.items() if LOSS in r.figures}
    if not of:
      continue
    first = first or of
    name = ', '.join(f'{k}={v}' for k, v in key) or 'all'
    rows.append((name, len(of), *interval(list(of.values())), *difference(first, of)))
  show = lambda mean, half, sign='': (
    f'{mean:{sign}.4f}' + (f' ± {half:.4f}' if math.isfinite(half) else ''))
  body = [
    (text(name), count(n), f'<b>{show(mean, half)}</b>',
     '' if i == 0 else show(gap, gap_half, '+') + (
       ' <small>apart</small>' if abs(gap) > gap_half else ' <small>within noise</small>'))
    for i, (name, n, mean, half, gap, gap_half) in enumerate(rows)]
  head = ('', 'seeds', LOSS, 'against the first')
  return figure('Means, with 95 % intervals', table(head, body), csv(
    'seeds', ('group', 'seeds', 'mean', 'half_interval', 'difference', 'half_interval'), rows))


def _figure(name: str, value: float | None) -> str:
  return count(value) if name in ('tokens', 'parameters', 'tokens per second') else fixed(value, 3)
