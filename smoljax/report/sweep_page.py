"""Several runs side by side: one page and a CSV, made of the files in their workdirs.

Runs that differ in nothing but their seed are one group: its mean has a 95 % interval (Student's t
over seeds), and its difference from the first group another, paired where the seeds are the same.
So have the tokens that a group needs to come to the loss that all runs reach, and the effects of
changes that runs have alone or together.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import scipy.stats

from smoljax import metrics
from smoljax.report import charts
from smoljax.report.charts import Series, count, figure, fixed, number, section, table, text
from smoljax.scaling import decisive

LOSS = 'validation loss'
_COUNTS = ('tokens', 'parameters', 'tokens per second')


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run says of itself."""

  name: str
  fields: Mapping[str, Any]  # what tells it from the others
  folder: pathlib.Path
  figures: Mapping[str, float]  # by their names in words, in the order they are shown
  loss: list[tuple[float, float]]  # tokens, nats per token in training
  held_out: list[tuple[float, float]]  # tokens, bits per byte, mean over corpora
  group: str = ''  # what it is a sample of; '' = its fields but the seed
  factors: frozenset[str] | None = None  # the changes it has of those whose effects are asked for
  chances: Mapping[str, float] = dataclasses.field(default_factory=dict)  # tasks, among figures

  @property
  def seed(self) -> Any:
    """The run's seed; 0 where the sweep does not vary it."""
    return self.fields.get('seed', 0)


def load(name: str, fields: Mapping[str, Any], folder: str | pathlib.Path, group: str = '',
         factors: Iterable[str] | None = None) -> Result:
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
  figures |= {task: of[of.get('metric', 'acc')] for task, of in scores.get('tasks', {}).items()}
  chances = {task: of.get('chance', 0.0) for task, of in scores.get('tasks', {}).items()}
  for task, modes in scores.get('generation', {}).items():
    figures |= {f'{task}, {mode}': of[of['metric']] for mode, of in modes.items()}
    chances |= {f'{task}, {mode}': of.get('constant', 0.0) for mode, of in modes.items()}
  figures |= {'tokens': summary['tokens'].get('trained'), 'parameters': summary.get('parameters'),
              'tokens per second': summary.get('tokens_per_sec')}
  rows = metrics.read_rows(folder / 'metrics.jsonl')
  bits = [(r['tokens'], [x for k, x in r.items() if k.startswith('val/') and k.endswith('/bpb')])
          for r in rows if 'tokens' in r]
  return Result(
    name, fields, folder, {k: x for k, x in figures.items() if number(x)},
    [(r['tokens'], r['train/loss']) for r in rows if 'train/loss' in r],
    [(tokens, statistics.fmean(values)) for tokens, values in bits if values],
    group, None if factors is None else frozenset(factors), chances)


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


def groups(results: Iterable[Result]) -> dict[str, dict[Any, Result]]:
  """What runs are samples of → {seed: run}, in the order of the runs."""
  out: dict[str, dict[Any, Result]] = {}
  for r in results:
    name = r.group or ', '.join(f'{k}={v}' for k, v in r.fields.items() if k != 'seed') or 'all'
    out.setdefault(name, {})[r.seed] = r
  return out


def tokens_to(held_out: Sequence[tuple[float, float]], target: float) -> float:
  """Tokens at which a run's held-out curve first comes to `target`, straight lines in log tokens
  between its points; infinite where it does not."""
  before = None
  for tokens, value in held_out:
    if value <= target:
      if before is None or before[1] == value:
        return tokens
      share = (before[1] - target) / (before[1] - value)
      if not before[0]:  # of the model before its first step
        return share * tokens
      return math.exp(math.log(before[0]) + share * math.log(tokens / before[0]))
    before = tokens, value
  return math.inf


def effects(results: Iterable[Result], metric: str = LOSS) -> dict[str, dict[str, dict]]:
  """What each factor does to `metric`: factor → {alone, last, interaction} → {seed: change}.

  `alone` is the factor against nothing, `last` all factors against all but it, and `interaction`
  the second less the first: 0 where the factor does as much among the others as by itself. The
  factor 'all' has the change of all together as `last`, and the sum of the single ones as `alone`.
  Only seeds count whose runs are all there, and a factor that lacks runs is left out.
  """
  cells: dict[frozenset, dict[Any, float]] = {}
  for r in results:
    if r.factors is not None and metric in r.figures:
      cells.setdefault(r.factors, {})[r.seed] = r.figures[metric]
  every = frozenset().union(*cells)

  def changes(parts: Mapping[str, tuple[frozenset, frozenset]]) -> dict[str, dict]:
    seeds = set.intersection(*(set(cells.get(c, {})) for pair in parts.values() for c in pair))
    out = {k: {s: cells[to][s] - cells[of][s] for s in sorted(seeds)}
           for k, (of, to) in parts.items()}
    return out if seeds else {}

  none, out = frozenset(), {}
  for factor in sorted(every):
    one = frozenset({factor})
    if found := changes({'alone': (none, one), 'last': (every - one, every)}):
      out[factor] = found
  if len(out) == len(every) > 1:
    joint = changes({'last': (none, every)}).get('last', {})
    singles = {s: sum(out[f]['alone'][s] for f in every) for s in joint
               if all(s in out[f]['alone'] for f in every)}
    if singles:
      out['all'] = {'alone': singles, 'last': {s: joint[s] for s in singles}}
  for of in out.values():
    of['interaction'] = {s: of['last'][s] - of['alone'][s] for s in of['alone']}
  return out


def write(results: Sequence[Result], workdir: str) -> tuple[str, list[str]]:
  """Writes WORKDIR/report/index.html about finished runs; returns its path and what it finds.

  Beside it `runs.csv` has all figures of all runs.
  """
  site = charts.Site()
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
  of_seeds, verdicts = groups(results), []
  if any(len(g) > 1 for g in of_seeds.values()):
    parts.append(section('seeds', 'Over seeds', *_over_seeds(of_seeds, site.csv, verdicts),
                         *_signals(of_seeds, site.csv)))
  if found := effects(results):
    parts.append(section('effects', 'Effects', _effects(found, site.csv, verdicts)))
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
  page = site.write(pathlib.Path(workdir) / 'report', 'smoljax: runs compared', ''.join(parts))
  return page, verdicts


def _show(mean: float, half: float, sign: str = '') -> str:
  return f'{mean:{sign}.4f}' + (f' ± {half:.4f}' if math.isfinite(half) else '')


def _apart(mean: float, half: float) -> str:
  return 'apart' if abs(mean) > half else 'within noise'


def _over_seeds(
  of_seeds: Mapping[str, Mapping[Any, Result]], csv, verdicts: list[str]
) -> list[str]:
  """A table per figure that can be told apart by seeds, and the tokens to a common loss."""
  every = [r for runs in of_seeds.values() for r in runs.values()]
  metrics_of = list(dict.fromkeys(k for r in every for k in r.figures if k not in _COUNTS))
  out = []
  for metric in metrics_of:
    first, rows = None, []
    for name, runs in of_seeds.items():
      of = {seed: r.figures[metric] for seed, r in runs.items() if metric in r.figures}
      if of:
        first = first or of
        rows.append((name, len(of), *interval(list(of.values())), *difference(first, of)))
    body = [
      (text(name), count(n), f'<b>{_show(mean, half)}</b>', '' if i == 0 else
       f'{_show(gap, gap_half, "+")} <small>{_apart(gap, gap_half)}</small>')
      for i, (name, n, mean, half, gap, gap_half) in enumerate(rows)]
    if metric == LOSS:
      verdicts += [
        f'{name}: {metric} {_show(mean, half)}, {_show(gap, gap_half, "+")} against {rows[0][0]} '
        f'({_apart(gap, gap_half)})' for name, _, mean, half, gap, gap_half in rows[1:]]
    out.append(figure(
      f'{metric[0].upper()}{metric[1:]}: means, with 95 % intervals',
      table(('', 'seeds', metric, 'against the first'), body),
      csv(f'seeds {metric}', ('group', 'seeds', 'mean', 'half_interval', 'difference',
                              'half_interval'), rows)))
  curves = [r.held_out for r in every]
  if all(len(c) > 2 for c in curves):
    out.insert(1, _tokens_to_target(of_seeds, max(c[-1][1] for c in curves), csv, verdicts))
  return out


def _signals(of_seeds: Mapping[str, Mapping[Any, Result]], csv) -> list[str]:
  """Which tasks can tell the groups apart: [a table], where there are tasks and seeds.

  Noise is of one recipe, the mean over groups; what the groups differ by is beside it, not in it
  (Heineman et al. 2025).
  """
  chances = {task: chance for runs in of_seeds.values() for r in runs.values()
             for task, chance in r.chances.items()}
  rows = []
  for task, chance in chances.items():
    of = [[r.figures[task] for r in runs.values() if task in r.figures]
          for runs in of_seeds.values()]
    found = [decisive.signal({str(i): {0: x} for i, x in enumerate(scores)}, chance)
             for scores in of if len(scores) > 1]
    if not found:
      continue
    noise = statistics.fmean(f['noise'] for f in found)
    means = [statistics.fmean(scores) for scores in of if scores]
    floor = max(noise, 1e-12)
    above = (max(means) - chance) / floor
    spread = (max(means) - min(means)) / floor if len(means) > 1 else math.nan
    rows.append((task, max(means), chance, noise, above, spread,
                 above >= decisive.ABOVE_CHANCE and not spread < 2))
  if not rows:
    return []
  show = lambda x: fixed(x, 1) if number(x) else ''
  return [figure('Which tasks can decide at this size', table(
    ('task', 'best mean', 'chance', 'noise of a seed', 'above chance / noise',
     'between groups / noise', ''),
    [(text(task), fixed(best, 3), fixed(chance, 3), fixed(noise, 4), show(above), show(spread),
      'can' if can else 'cannot') for task, best, chance, noise, above, spread, can in rows]),
    csv('signals', ('task', 'best', 'chance', 'noise', 'above', 'spread', 'can'), rows),
    'A task can decide where the best group is three times the noise above chance and the groups '
    'differ by twice the noise of one seed.')]


def _tokens_to_target(
  of_seeds: Mapping[str, Mapping[Any, Result]], target: float, csv, verdicts: list[str]
) -> str:
  rows, first = [], None
  for name, runs in of_seeds.items():
    logs = {seed: math.log(max(1, tokens_to(r.held_out, target))) for seed, r in runs.items()}
    first = first or logs
    gap, half = difference(first, logs)
    rows.append((name, math.exp(statistics.fmean(logs.values())), math.exp(gap),
                 math.exp(gap - half), math.exp(gap + half) if half < 100 else math.inf))
  body = [
    (text(name), f'<b>{count(round(tokens))}</b>', '' if i == 0 else f'{times:.2f} times'
     + (f' ({low:.2f} to {high:.2f})' if math.isfinite(high) else ''))
    for i, (name, tokens, times, low, high) in enumerate(rows)]
  verdicts += [
    f'{name}: {times:.2f} times the tokens of {rows[0][0]} to {target:.3f} bits per byte'
    + (f' (95 %: {low:.2f} to {high:.2f})' if math.isfinite(high) else '')
    for name, _, times, low, high in rows[1:]]
  return figure(
    f'Tokens to {target:.3f} held-out bits per byte, which every run reaches',
    table(('', 'tokens, geometric mean', 'of the first’s, 95 % interval'), body),
    csv('tokens to target', ('group', 'tokens', 'ratio', 'low', 'high'), rows))


def _effects(found: Mapping[str, Mapping[str, Mapping]], csv, verdicts: list[str]) -> str:
  rows = [(factor, len(of['alone']), *(x for k in ('alone', 'last', 'interaction')
                                       for x in interval(list(of[k].values()))))
          for factor, of in found.items()]
  body = []
  for factor, seeds, *pairs in rows:
    cells = list(zip(pairs[::2], pairs[1::2], strict=True))
    body.append((f'<b>{text(factor)}</b>', count(seeds), *(
      f'{_show(mean, half, "+")} <small>{_apart(mean, half)}</small>' for mean, half in cells)))
    verdicts.append(f'{factor}: ' + ', '.join(
      f'{word} {_show(mean, half, "+")} ({_apart(mean, half)})'
      for word, (mean, half) in zip(('alone', 'among all', 'interaction'), cells, strict=True)))
  names = ('alone', 'among all', 'interaction')
  return figure(
    f'Change of {LOSS}, with 95 % intervals over seeds', table(('', 'seeds', *names), body),
    csv('effects', ('factor', 'seeds', *(f'{n}{half}' for n in names
                                         for half in ('', ' half_interval'))), rows),
    'Alone: with it against without anything. Among all: with everything against all but it. Their '
    'difference is the interaction; of <b>all</b>, everything against the sum of single effects: '
    'above 0, they overlap.')


def _figure(name: str, value: float | None) -> str:
  return count(value) if name in _COUNTS else fixed(value, 3)
