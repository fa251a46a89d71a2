"""The page of a series of experiments, each from those before: what every stage gave, side by side.

Reads files only: of each stage evals/, and the tokens that it was evaluated on.
"""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from smoljax.report import charts
from smoljax.report.charts import figure, fixed, percent, section, table, text

MODES = ('think', 'no_think')
_RULER = 'ruler:'


def load(folder: pathlib.Path) -> dict[str, Any]:
  """What a stage scored: `bits_per_byte` by corpus, `tokens` (corpus → where its tokens lie),
  `exact` ({task: {mode: score}} of what it wrote) and `ruler` (the same of long texts, by (task,
  length)), `intervals` of these scores, and `follows` (share of turns that are as the mode asks
  for, by turn). Raises OSError or ValueError if it is not done.
  """
  newest = max((folder / 'evals').glob('*.json'), key=lambda p: int(p.stem), default=None)
  if newest is None:
    raise FileNotFoundError(f'{folder} has no evals: its stage is not finished')
  scores = json.loads(newest.read_text())
  written = scores.get('generation') or {}
  turns = [row['by_turn'] for modes in written.values() for row in modes.values()
           if row.get('by_turn')]
  pooled = [
    sum(t['follows'] * t['n'] for t in same if t) / sum(t['n'] for t in same if t)
    for same in itertools.zip_longest(*turns)]
  place = lambda task: tuple(task.removeprefix(_RULER).split('@')) if task.startswith(
    _RULER) else task
  score = lambda what: {place(task): {mode: what(row) for mode, row in modes.items()}
                        for task, modes in written.items()}
  scores_of = score(lambda row: row[row['metric']])
  return {
    'bits_per_byte': {n: row['bpb'] for n, row in scores['bits_per_byte'].items()},
    'tokens': {n: str((folder / 'tokens' / n / '1.0.0').resolve())
               for n in scores['bits_per_byte']},
    'exact': {task: of for task, of in scores_of.items() if isinstance(task, str)},
    'ruler': {task: of for task, of in scores_of.items() if isinstance(task, tuple)},
    'intervals': score(lambda row: row['interval']),
    'follows': pooled}


def figures(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Key figures of each stage, for summary.json: `bits_per_byte`, `exact` and `follows` as of
  `load`; `long`, of long texts the mean over tasks ({length: {mode: score}}); `gain`, the mean over
  tasks asked in both modes of think less no_think; and `lost`, by how much bits per byte of a
  corpus are above those of the first stage that was evaluated on the same tokens, as a share."""
  found: dict[str, dict[str, Any]] = {}
  first: dict[str, float] = {}
  for name, stage in stages.items():
    lost = {}
    for corpus, bits in stage['bits_per_byte'].items():
      before = first.setdefault(stage['tokens'][corpus], bits)
      lost[corpus] = bits / before - 1
    both = [of['think'] - of['no_think'] for of in stage['exact'].values() if {*MODES} <= of.keys()]
    # (A conversation of several turns is in both modes too, and asks the same again.)
    found[name] = {k: stage[k] for k in ('bits_per_byte', 'exact', 'follows')} | {
      'long': _long(stage['ruler']), 'lost': lost, 'gain': sum(both) / len(both) if both else None}
  return found


def _long(ruler: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, dict[str, float]]:
  found: dict[str, dict[str, list[float]]] = {}
  for (_, length), modes in ruler.items():
    for mode, score in modes.items():
      found.setdefault(length, {}).setdefault(mode, []).append(score)
  return {length: {mode: sum(scores) / len(scores) for mode, scores in modes.items()}
          for length, modes in sorted(found.items(), key=lambda item: int(item[0]))}


def write(
  name: str, stages: Mapping[str, Mapping[str, Any]], folder: pathlib.Path,
  links: Mapping[str, str] | None = None,
) -> str:
  """Writes FOLDER/index.html with CSVs beside it; returns the page's path.

  Args:
    name: of the series.
    stages: of `load`, in order.
    links: stage → address of its own page.
  """
  site, found = charts.Site(), figures(stages)
  tasks = sorted({task for stage in stages.values() for task in stage['exact']})
  modes = {task: [m for m in (*MODES, 'mixed', 'chat', 'plain') if any(
    m in stage['exact'].get(task, {}) for stage in stages.values())] for task in tasks}
  title = lambda stage: (f'<a href="{text(links[stage])}">{text(stage)}</a>'
                         if links and stage in links else text(stage))
  scored = [(stage, task, mode) for stage in stages for task in tasks for mode in modes[task]]
  score = lambda stage, task, mode: stages[stage]['exact'].get(task, {}).get(mode)
  interval = lambda stage, task, mode: stages[stage]['intervals'].get(task, {}).get(
    mode, (None, None))
  cells = lambda stage: [_cell(score(stage, t, m), *interval(stage, t, m))
                         for t in tasks for m in modes[t]]
  head = [f'{t}, {m}' for t in tasks for m in modes[t]]
  parts = []
  if head:
    parts.append(section('answers', 'What it answers', figure(
      'Right answers, with 95 % intervals, by stage',
      table(('', *map(text, head), 'think − no_think'), [
        (title(stage), *cells(stage), _points(found[stage]['gain'])) for stage in stages]),
      site.csv('answers', ('stage', 'task', 'mode', 'score', 'low', 'high'), [
        (s, t, m, score(s, t, m), *interval(s, t, m)) for s, t, m in scored]))))
  parts += _long_texts(stages, found, site, title)
  longest = max((len(row['follows']) for row in found.values()), default=0)
  if longest:
    parts.append(section('modes', 'Modes followed', figure(
      'Share of turns that are as the mode asks for',
      table(('', *(f'turn {i + 1}' for i in range(longest))), [
        (title(stage), *map(percent, _filled(row['follows'], longest)))
        for stage, row in found.items()]),
      site.csv('modes', ('stage', 'turn', 'follows'), [
        (stage, i, x) for stage, row in found.items()
        for i, x in enumerate(row['follows'], start=1)]))))
  bits = [(stage, corpus, x, row['lost'][corpus]) for stage, row in found.items()
          for corpus, x in row['bits_per_byte'].items()]
  parts.append(section('text', 'Held-out text', figure(
    'Bits per byte', table(('', 'corpus', 'bits per byte', 'since the first stage'), [
      (title(stage), text(corpus), fixed(x, 3), f'{100 * lost:+.1f} %')
      for stage, corpus, x, lost in bits], words=2),
    site.csv('text', ('stage', 'corpus', 'bits per byte', 'lost'), bits),
    'Of conversations only what is learned counts.')))
  header = (f'<header><p class="kicker">smoljax · series</p><h1>{text(name)}: {len(stages)} stages'
            '</h1></header>')
  return site.write(folder, f'smoljax: {name}', header + ''.join(parts))


def _long_texts(stages, found, site, title) -> list[str]:
  columns = list(dict.fromkeys(
    (length, mode) for row in found.values() for length, modes in row['long'].items()
    for mode in modes))
  if not columns:
    return []
  columns.sort(key=lambda column: int(column[0]))
  return [section('long', 'Long texts', figure(
    'What of them is found, mean over tasks after RULER, by tokens and how it is asked',
    table(('', *(f'{int(length):,}, {text(mode)}' for length, mode in columns)), [
      (title(stage), *(percent(row['long'].get(length, {}).get(mode)) for length, mode in columns))
      for stage, row in found.items()]),
    site.csv('long', ('stage', 'task', 'length', 'mode', 'score', 'low', 'high'), [
      (name, *place, mode, score, *stage['intervals'][place][mode])
      for name, stage in stages.items() for place, of in stage['ruler'].items()
      for mode, score in of.items()])))]


def _cell(score: float | None, low: float | None, high: float | None) -> str:
  if score is None:
    return '–'
  return f'{percent(score)} <small>{percent(low, 0)} – {percent(high, 0)}</small>'


def _points(gain: float | None) -> str:
  return '–' if gain is None else f'<b>{100 * gain:+.1f}</b>'


def _filled(values: Sequence[float], number: int) -> list[float | None]:
  return [*values, *[None] * (number - len(values))]
