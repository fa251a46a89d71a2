"""What a model wrote: its scores by mode, turn, language and length, and some conversations."""

from typing import Any

from smoljax.report import charts, workdir
from smoljax.report.charts import (
  count,
  excerpt,
  figure,
  fixed,
  number,
  percent,
  section,
  table,
  text,
)
from smoljax.report.corpus_page import Csv
from smoljax.report.workdir import Run

SHOWN = 2  # conversations of each task and mode


def generation(run: Run, csv: Csv) -> str:
  """Tasks in which the model writes; '' where there are none."""
  tasks = {k: v for k, v in (workdir.get(run.evals, 'generation') or {}).items()
           if isinstance(v, dict)}
  rows = [(name, mode, r) for name, modes in tasks.items() for mode, r in modes.items()
          if isinstance(r, dict) and number(_score(r))]
  if not rows:
    return ''
  plain = [(name, mode, r['metric'], _score(r), *_interval(r), r.get('n'), r.get('follows'),
            r.get('ended'), r.get('unclosed'), r.get('tokens')) for name, mode, r in rows]
  parts = [figure('Scores, with 95 % intervals', table(
    ('task', 'mode', '', 'score', '95 %', 'questions', 'follows the mode', 'tokens'),
    [(text(name), text(mode), charts.bar(score, error=(high - low) / 2, mark=r.get('constant')),
      f'<b>{percent(score)}</b>', f'{percent(low)} – {percent(high)}', count(r.get('n')),
      percent(r.get('follows')), fixed(r.get('tokens'), 0))
     for (name, mode, r), (*_, score, low, high, _, _, _, _, _) in zip(rows, plain, strict=True)],
    words=3, kind='bars'), csv('generation', (
      'task', 'mode', 'metric', 'score', 'low', 'high', 'questions', 'follows', 'ended', 'unclosed',
      'tokens'), plain),
    'A thought that is not closed is no answer. A line marks what one constant answer scores.')]
  groups = [(name, mode, group, value, r['metric'], v.get(r['metric']), *_interval(v), v.get('n'))
            for name, mode, r in rows for group, values in (r.get('by') or {}).items()
            for value, v in values.items()]
  turns = [(name, mode, 'turn', str(i), 'follows', t.get('follows'), *_interval(t), t.get('n'))
           for name, mode, r in rows for i, t in enumerate(r.get('by_turn') or [], start=1)]
  for title, anchor, found in (('By group', 'generation_groups', groups),
                               ('Mode followed, turn by turn', 'generation_turns', turns)):
    if found:
      parts.append(figure(title, table(
        ('task', 'mode', 'of', 'score', '95 %', 'n'),
        [(text(name), text(mode), f'{text(group)} {text(value)}', percent(score),
          f'{percent(low)} – {percent(high)}', count(n))
         for name, mode, group, value, _, score, low, high, n in found], words=3), csv(anchor, (
           'task', 'mode', 'group', 'value', 'metric', 'score', 'low', 'high', 'n'), found)))
  parts += [_talk(name, mode, talk) for name, mode, r in rows
            for talk in (r.get('examples') or [])[:SHOWN]]
  return section('generation', 'What it writes', *parts)


def _score(row: dict[str, Any]) -> Any:
  return row.get(str(row.get('metric')))


def _interval(row: dict[str, Any]) -> list[float]:
  found = row.get('interval')
  return found if isinstance(found, list) and len(found) == 2 and all(map(number, found)) else [
    0.0, 1.0]


def _talk(name: str, mode: str, talk: Any) -> str:
  """One conversation, and how it was graded."""
  said = ''.join(
    f'<p>{excerpt(turn.get("prompt", ""), 400)}</p>'
    f'<blockquote dir="auto">{excerpt(turn.get("text", ""), 600)}</blockquote>'
    for turn in workdir.get(talk, 'turns') or [])
  graded = ', '.join(f'{text(k)} {fixed(v)}' for scores in workdir.get(talk, 'scores') or []
                     for k, v in scores.items())
  return (f'<details><summary>{text(name)}, {text(mode)}: {graded or "not graded"}</summary>{said}'
          '</details>')
