"""Several runs side by side: one page and a CSV, made of the files in their workdirs.

Runs that differ in nothing but their seed are one group. Its mean and its difference from the first
group, or from that which its runs name, have intervals and verdicts by the rules of
`smoljax.scaling.comparison`, and so have the tokens that a group needs to come to the loss that all
runs reach, and the effects of changes that runs have alone or together. The loss and these tokens
are what a sweep asks, and count together; all other figures are a family of their own.
"""

import dataclasses
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smoljax import metrics
from smoljax.report import charts
from smoljax.report.charts import (
  Series,
  count,
  figure,
  fixed,
  number,
  section,
  spread,
  table,
  text,
)
from smoljax.scaling import comparison, decisive

LOSS = 'validation loss'
UNCHANGED = 'unchanged'  # the config as it is, seeds apart
_TOKENS = 'tokens to target'
_FILLED = 'tokens without padding'
_COUNTS = ('tokens', _FILLED, 'unique tokens', 'parameters', 'tokens per second')


@dataclasses.dataclass(frozen=True)
class Result:
  """What a finished run says of itself."""

  name: str
  fields: Mapping[str, Any]  # what tells it from the others
  folder: pathlib.Path
  figures: Mapping[str, float]  # by their names in words, in the order they are shown; some may be
  # NaN, which is no lack of a run
  loss: list[tuple[float, float]]  # tokens, nats per token in training
  held_out: list[tuple[float, float]]  # tokens, bits per byte, mean over corpora
  group: str = ''  # what it is a sample of; '' = its fields but the seed
  factors: frozenset[str] | None = None  # the changes it has of those whose effects are asked for
  chances: Mapping[str, float] = dataclasses.field(default_factory=dict)  # tasks, among figures
  against: str = ''  # the group that its own is compared with; '' = the first
  judges: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  # corpus → documents and bytes of it that bits per byte are of

  @property
  def seed(self) -> Any:
    """The run's seed; 0 where the sweep does not vary it."""
    return self.fields.get('seed', 0)


def load(name: str, fields: Mapping[str, Any], folder: str | pathlib.Path, group: str = '',
         factors: Iterable[str] | None = None, against: str = '') -> Result:
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
  if unique := [r['data/unique'] for r in rows if 'data/unique' in r]:
    figures['unique tokens'] = unique[-1]
  if 'tokens' in figures and (padding := [r['data/padding'] for r in rows if 'data/padding' in r]):
    figures[_FILLED] = figures['tokens'] * (1 - statistics.fmean(padding))
  bits = [(r['tokens'], [x for k, x in r.items() if k.startswith('val/') and k.endswith('/bpb')])
          for r in rows if 'tokens' in r]
  return Result(
    name, fields, folder, {k: x for k, x in figures.items() if isinstance(x, int | float)},
    [(r['tokens'], r['train/loss']) for r in rows if 'train/loss' in r],
    [(tokens, statistics.fmean(values)) for tokens, values in bits if values],
    group, None if factors is None else frozenset(factors), chances, against,
    {corpus: (of['documents'], of['bytes']) for corpus, of in scores.get(
      'bits_per_byte', {}).items() if 'documents' in of and 'bytes' in of})


def groups(results: Iterable[Result]) -> dict[str, dict[Any, Result]]:
  """What runs are samples of → {seed: run}, in the order of the runs."""
  out: dict[str, dict[Any, Result]] = {}
  for r in results:
    out.setdefault(_group(r), {})[r.seed] = r
  return out


def _group(r: Result) -> str:
  return r.group or ', '.join(
    f'{k}={v}' for k, v in r.fields.items() if k != 'seed') or UNCHANGED


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


def write(
  results: Sequence[Result], workdir: str, failed: Sequence[str] = (), warnings: Sequence[str] = ()
) -> tuple[str, list[str]]:
  """Writes WORKDIR/report/index.html about finished runs; returns its path and what it finds.

  Beside it `runs.csv` has all figures of all runs. `failed` are the names of runs that gave none,
  such as diverged ones: a mean of the rest speaks too well of their groups, and the page says so,
  with other `warnings`.
  """
  site = charts.Site()
  varied = list(dict.fromkeys(k for r in results for k in r.fields))
  names = list(dict.fromkeys(k for r in results for k in r.figures))
  link = site.csv('runs', ('run', *varied, *names), [
    (r.name, *(str(r.fields.get(k, '')) for k in varied), *(r.figures.get(k, '') for k in names))
    for r in results])
  ordered = sorted(results, key=lambda r: x if number(x := r.figures.get(LOSS)) else math.inf)
  least = ordered[0]
  rows = []
  for r in ordered:
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
  verdicts = [*warnings, *_unlike(results), *_lengths(of_seeds)]
  if failed:
    what = 'run failed and is' if len(failed) == 1 else 'runs failed and are'
    verdicts.append(f'warning: {len(failed)} {what} in no mean: {", ".join(failed)}')
  parts += [f'<p class="lede">{text(line)}</p>' for line in verdicts]
  if any(len(g) > 1 for g in of_seeds.values()):
    parts.append(section('seeds', 'Over seeds', *_over_seeds(of_seeds, site.csv, verdicts),
                         *_signals(of_seeds, site.csv)))
  if found := effects(results):
    parts.append(section('effects', 'Effects', _effects(found, site.csv, verdicts)))
  # Six colours, so that they are the groups'.
  order = list(of_seeds)
  colors = {r.name: order.index(_group(r)) for r in results}
  curves = (
    ('Loss in training', 'nats per token, smoothed', 'line',
     {r.name: charts.smooth(r.loss) for r in results}),
    ('Held-out bits per byte', 'mean over corpora', 'dots', {r.name: r.held_out for r in results}),
  )
  parts.append(section('curves', 'Against tokens', *(
    figure(title, charts.lines(
      [Series(name, xy, colors[name], style) for name, xy in of.items() if xy],
      label=f'{title} against tokens', y_label=unit, x_label='tokens'),
      site.csv(title, ('run', 'tokens', 'value'),
               [(name, x, y) for name, xy in of.items() for x, y in xy]))
    for title, unit, style, of in curves)))
  page = site.write(pathlib.Path(workdir) / 'report', 'smoljax: runs compared', ''.join(parts))
  return page, verdicts


def _unlike(results: Sequence[Result]) -> list[str]:
  """Warnings of corpora of which not all runs were judged by the same text, such as where documents
  were trained on in some that are held out in others."""
  out = []
  for corpus in dict.fromkeys(k for r in results for k in r.judges):
    found = {r.judges[corpus] for r in results if corpus in r.judges}
    if len(found) > 1:
      (few, less), (many, more) = min(found), max(found)
      out.append(
        f'warning: bits per byte of {corpus} are of {count(few)} documents in some runs '
        f'({count(less)} bytes) and of {count(many)} in others ({count(more)}): do not compare '
        'them')
  return out


def _lengths(of_seeds: Mapping[str, Mapping[Any, Result]]) -> list[str]:
  """Warnings of groups that were trained on other amounts than what they are compared with."""
  means = {name: statistics.fmean(tokens) for name, runs in of_seeds.items()
           if len(tokens := [r.figures.get(_FILLED, r.figures['tokens']) for r in runs.values()
                             if 'tokens' in r.figures]) > 1}
  out = []
  for name, mean in means.items():
    base = next(iter(of_seeds[name].values())).against or next(iter(of_seeds))
    if base in means and not 0.99 < mean / means[base] < 1.01:
      out.append(f'warning: {name} was trained on {count(round(mean))} tokens a run, {base} on '
                 f'{count(round(means[base]))}')
  return out


def _seen(detectable: float, form: str = '.4f') -> str:
  return f'{detectable:{form}}' if math.isfinite(detectable) else ''


# Of a difference, in tables and CSVs alike.
_DIFFERENCE = ('difference', 'difference_half', 'p', 'detectable', 'paired', 'correlation',
               'verdict', 'n')


def _row(e: comparison.Estimate, verdict: str) -> tuple:
  return e.mean, e.half, e.p, e.detectable, e.paired, e.correlation, verdict, e.n


def _over_seeds(
  of_seeds: Mapping[str, Mapping[Any, Result]], csv, verdicts: list[str]
) -> list[str]:
  """A table per figure that can be told apart by seeds, and the tokens to a common loss."""
  every = [r for runs in of_seeds.values() for r in runs.values()]
  metrics_of = list(dict.fromkeys(k for r in every for k in r.figures if k not in _COUNTS))
  values = {metric: {name: {seed: r.figures[metric] for seed, r in runs.items()
                            if metric in r.figures} for name, runs in of_seeds.items()}
            for metric in metrics_of}
  target = _target([r.held_out for r in every])
  if target is not None:  # in logarithms, as ratios are compared
    values[_TOKENS] = {name: {seed: math.log(max(1, comparison.tokens_to(r.held_out, target)))
                              for seed, r in runs.items()} for name, runs in of_seeds.items()}
  found: dict[str, dict[str, comparison.Estimate]] = {}
  base: dict[str, dict[str, str]] = {}  # metric → group → the one that it is compared with
  for metric, of in values.items():
    given = {name: x for name, x in of.items() if x}
    first, own = next(iter(given), ''), {name: next(iter(of_seeds[name].values())).against
                                         for name in given}
    base[metric] = {name: own[name] if own[name] in given else first for name in given}
    found[metric] = {name: comparison.difference(given[base[metric][name]], x)
                     for name, x in given.items()}
  judged: dict[tuple[str, str], str] = {}
  families = [[(m, name) for m, of in found.items() for name in of if base[m][name] != name
               and (m in (LOSS, _TOKENS)) == asked] for asked in (True, False)]
  for family in families:
    judged |= zip(family, comparison.judge([found[m][name] for m, name in family]), strict=True)
  out = []
  for metric in metrics_of:
    rows, to = [], base[metric]
    for name, gap in found[metric].items():
      of = list(values[metric][name].values())
      rows.append((name, len(of), *comparison.interval(of),
                   *_row(gap, judged.get((metric, name), ''))))
    body = [
      (text(name), count(n), f'<b>{spread(mean, half)}</b>', *(('', '') if name == to[name] else (
        f'{spread(gap, gap_half, "+")} <small>{verdict}'
        f'{"" if of == n else f", of {of} " + ("pairs" if paired else "seeds")}</small>'
        f'{_named(to, name)}', _seen(detectable))))
      for name, n, mean, half, gap, gap_half, _, detectable, paired, _, verdict, of in rows]
    if metric == LOSS:
      verdicts += [_say(f'{name}: {LOSS} {spread(mean, half)}', found[metric][name], to[name],
                        verdict)
                   for name, _, mean, half, *_, verdict, _ in rows if name != to[name]]
    counted = sum(not found[m][name].unknown for m, name in families[
      metric not in (LOSS, _TOKENS)])
    out.append(figure(
      f'{metric[0].upper()}{metric[1:]}{", nats per token" * (metric == LOSS)}: means, with 95 % '
      'intervals',
      table(('', 'seeds', metric, f'against {_what(to)}', 'could have seen'), body),
      csv(f'seeds {metric}', ('group', 'seeds', 'mean', 'half_interval', *_DIFFERENCE), rows),
      _how([e for name, e in found[metric].items() if name != to[name]], counted)))
  if target is not None:
    out.insert(1, _tokens_to_target(
      values[_TOKENS], found[_TOKENS], base[_TOKENS], judged, target, csv, verdicts))
  return out


def _target(curves: Sequence[Sequence[tuple[float, float]]]) -> float | None:
  """The loss that every run comes to while it is watched; None where a run has no finite one, was
  looked at too seldom, or was there when first looked at, as one that is trained further may be."""
  values = [[loss for _, loss in curve] for curve in curves]
  if not all(len(of) > 2 and all(map(math.isfinite, of)) for of in values):
    return None
  target = max(of[-1] for of in values)
  return target if all(of[0] > target for of in values) else None


def _what(to: Mapping[str, str]) -> str:
  """What groups are compared with, in a word or two."""
  return 'the first' if len(set(to.values())) < 2 else 'the one named'


def _named(to: Mapping[str, str], name: str) -> str:
  return f'<br><small>{text(to[name])}</small>' if len(set(to.values())) > 1 else ''


def _say(start: str, gap: comparison.Estimate, base: str, verdict: str) -> str:
  seen = _seen(gap.detectable) and f'; {_seen(gap.detectable)} would have been seen'
  of = f'{gap.n} pairs' if gap.paired else f'{gap.n} seeds or more a side'
  return f'{start}, {spread(gap.mean, gap.half, "+")} of {of} against {base} ({verdict}{seen})'


def _how(gaps: Sequence[comparison.Estimate], counted: int) -> str:
  """How the differences of a table were found, in a sentence or two."""
  if not gaps:
    return ''
  paired = [e for e in gaps if e.paired]
  how = ('seed by seed' if len(paired) == len(gaps) else
         'seed by seed where groups share seeds, else by Welch’s t' if paired else 'by Welch’s t')
  rho = [e.correlation for e in paired if number(e.correlation)]
  return (
    f'Differences {how}{f" (correlation {statistics.fmean(rho):.2f})" if rho else ""}; verdicts by '
    f'Holm’s method over {counted} comparisons, none of fewer than {comparison.LEAST} seeds. Could '
    f'have seen: the true difference that so many seeds show in {100 * comparison.POWER:.0f} % of '
    'tries.')


def _signals(of_seeds: Mapping[str, Mapping[Any, Result]], csv) -> list[str]:
  """Which tasks and corpora can tell the groups apart: [a table], where there are seeds.

  Noise is of one recipe, the mean over groups; what the groups differ by is beside it, not in it
  (Heineman et al. 2025).
  """
  runs_of = [r for runs in of_seeds.values() for r in runs.values()]
  chances = {task: chance for r in runs_of for task, chance in r.chances.items()}
  if len(of_seeds) > 1:  # a corpus has no chance to be above: it decides where groups differ
    chances |= {k: math.nan for r in runs_of for k in r.figures if k.startswith('bits per byte')}
  rows = []
  for task, chance in chances.items():
    of = [[r.figures[task] for r in runs.values() if number(r.figures.get(task))]
          for runs in of_seeds.values()]
    found = [decisive.signal({str(i): {0: x} for i, x in enumerate(scores)}, chance)
             for scores in of if len(scores) > 1]
    if not found:
      continue
    noise = statistics.fmean(f['noise'] for f in found)
    means = [statistics.fmean(scores) for scores in of if scores]
    floor = max(noise, 1e-12)
    best = min(means) if math.isnan(chance) else max(means)
    above = (best - chance) / floor
    between = (max(means) - min(means)) / floor if len(means) > 1 else math.nan
    rows.append((task, best, chance, noise, above, between,
                 not above < decisive.ABOVE_CHANCE and not between < 2))
  if not rows:
    return []
  show = lambda x: fixed(x, 1) if number(x) else ''
  return [figure('Which tasks and corpora can decide at this size', table(
    ('', 'best mean', 'chance', 'noise of a seed', 'above chance / noise',
     'between groups / noise', ''),
    [(text(task), fixed(best, 3), fixed(chance, 3) if number(chance) else '', fixed(noise, 4),
      show(above), show(between), 'can' if can else 'cannot')
     for task, best, chance, noise, above, between, can in rows]),
    csv('signals', ('task', 'best', 'chance', 'noise', 'above', 'spread', 'can'), rows),
    'A task can decide where the best group is three times the noise above chance, a task or a '
    'corpus where the groups differ by twice the noise of one seed.')]


def _tokens_to_target(
  logs: Mapping[str, Mapping[Any, float]], gaps: Mapping[str, comparison.Estimate],
  to: Mapping[str, str], judged: Mapping[tuple[str, str], str], target: float, csv,
  verdicts: list[str],
) -> str:
  rows = []
  for name, gap in gaps.items():
    verdict = judged.get((_TOKENS, name), '')
    shown = math.isfinite(gap.half) and gap.n >= comparison.LEAST
    low, high = (math.exp(min(x, 99)) for x in (gap.low, gap.high)) if shown else (math.nan,) * 2
    rows.append((name, math.exp(statistics.fmean(logs[name].values())), math.exp(gap.mean), low,
                 high, math.exp(min(gap.detectable, 99)), verdict, gap.n))
  ends = lambda low, high: f' ({low:.2f} to {high:.2f})' if number(low) else ''
  body = [
    (text(name), count(len(logs[name])), f'<b>{count(round(tokens))}</b>', *(
      ('', '') if name == to[name] else (
      f'{times:.2f} times{ends(low, high)} <small>{verdict}</small>{_named(to, name)}',
      f'{seen:.2f} times' if number(low) else '')))
    for name, tokens, times, low, high, seen, verdict, _ in rows]
  verdicts += [
    f'{name}: {times:.2f} times the tokens of {to[name]} to {target:.3f} bits per byte'
    + (f' (95 %: {low:.2f} to {high:.2f}, n = {n}; {verdict})' if number(low) else f' ({verdict})')
    for name, _, times, low, high, _, verdict, n in rows if name != to[name]]
  return figure(
    f'Tokens to {target:.3f} held-out bits per byte, which every run reaches',
    table(('', 'seeds', 'tokens, geometric mean', f'times those of {_what(to)}, 95 % interval',
           'could have seen'), body),
    csv('tokens to target', ('group', 'tokens', 'ratio', 'low', 'high', 'detectable', 'verdict',
                             'n'),
        rows))


def _effects(found: Mapping[str, Mapping[str, Mapping]], csv, verdicts: list[str]) -> str:
  names = ('alone', 'among all', 'interaction')
  cells = {factor: [comparison.estimate(list(of[k].values()))
                    for k in ('alone', 'last', 'interaction')] for factor, of in found.items()}
  words = comparison.judge([e for of in cells.values() for e in of])
  judged = dict(zip(cells, zip(*[iter(words)] * len(names), strict=True), strict=True))
  body, rows = [], []
  for factor, of in cells.items():
    body.append((f'<b>{text(factor)}</b>', count(of[0].n), *(
      f'{spread(e.mean, e.half, "+")} <small>{word}</small>'
      for e, word in zip(of, judged[factor], strict=True)),
      _seen(max(e.detectable for e in of[:2]))))
    rows.append((factor, of[0].n, *(
      x for e, word in zip(of, judged[factor], strict=True)
      for x in (e.mean, e.half, e.detectable, word))))
    verdicts.append(f'{factor}: ' + ', '.join(
      f'{name} {spread(e.mean, e.half, "+")} ({word})'
      for name, e, word in zip(names, of, judged[factor], strict=True))
      + f'; {of[0].n} seed{"s" * (of[0].n > 1)}')
  return figure(
    f'Change of {LOSS}, nats per token, with 95 % intervals over seeds',
    table(('', 'seeds', *names, 'could have seen'), body),
    csv('effects', ('factor', 'seeds', *(
      f'{n}{what}' for n in names
      for what in ('', ' half_interval', ' detectable', ' verdict'))), rows),
    'Alone: with it against without anything. Among all: with everything against all but it. Their '
    'difference is the interaction; of <b>all</b>, everything against the sum of single effects: '
    f'above 0, they overlap. Verdicts by Holm’s method over {len(words)} comparisons.')


def _figure(name: str, value: float | None) -> str:
  return count(value) if name in _COUNTS else fixed(value, 3)
