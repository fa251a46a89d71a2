"""The table and page of the architecture contest."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from smoljax.report import charts


def write_table(rows: Sequence[dict], output: str, about: Mapping[str, Any]) -> None:
  """Writes architecture.json, architecture.csv and index.html into `output`."""
  batches = list(dict.fromkeys(b for r in rows for b in r.get('decode_tokens_per_sec', {})))
  keys = [
    'variant', 'group', 'words', 'parameters', 'non_embedding_parameters', 'mlp_dim', 'context',
    'kv_bytes_per_token', 'train_tokens_per_sec', 'seeds', 'diverged', 'loss', 'loss_interval',
    'difference', 'difference_interval', 'detectable', 'verdict',
  ]
  file = io.StringIO()
  out = csv.writer(file, lineterminator='\n')
  out.writerow([*keys, *(f'decode_tokens_per_sec_batch_{b}' for b in batches)])
  for row in rows:
    speeds = row.get('decode_tokens_per_sec', {})
    out.writerow([row.get(k, '') for k in keys] + [speeds.get(b, '') for b in batches])
  data = json.dumps({**about, 'rows': list(rows)}, indent=1)
  for name, content in (('architecture.json', data), ('architecture.csv', file.getvalue()),
                        ('index.html', _page(rows, about))):
    temporary = os.path.join(output, f'.{name}.tmp')
    pathlib.Path(temporary).write_text(content, 'utf-8')
    os.replace(temporary, os.path.join(output, name))


def _page(rows: Sequence[dict], about: Mapping[str, Any]) -> str:
  batches = list(dict.fromkeys(b for r in rows for b in r.get('decode_tokens_per_sec', {})))
  most_kv = max(r['kv_bytes_per_token'] for r in rows)
  fastest = {b: max(r.get('decode_tokens_per_sec', {}).get(b, 0) for r in rows) for b in batches}
  losses = [r['loss'] for r in rows if 'loss' in r]
  link = '<a class="csv" href="architecture.csv">CSV</a>'

  def bars(value: float | None, most: float, words: str) -> list[str]:
    return [charts.bar((value or 0) / most if most else 0), words]

  parts = []
  body = [
    [charts.text(r['variant']), charts.text(r['words']), f'{r["parameters"]:,}',
     charts.count(r['mlp_dim']),
     loss(r) + (f'<small>{r["diverged"]} diverged</small>' if r['diverged'] else ''),
     difference(r), charts.fixed(r.get('detectable'), 4),
     charts.compact(r.get('train_tokens_per_sec'))]
    for r in rows
  ]
  parts.append(charts.figure(
    'Held-out loss at equal parameters',
    charts.table(['', 'change', 'parameters', 'mlp_dim', 'loss, nats per token',
                  'against the baseline', 'could have seen', 'trained, tokens/s'], body, words=2),
    link,
    'Mean ± 95 % interval over seeds. Against the baseline: the same seed and batches, seed by '
    f'seed; verdicts by Holm’s method over {sum("verdict" in r for r in rows)} variants. Could '
    'have seen: the true difference that so many seeds show in 80 % of tries.'))
  parts.append(charts.figure(
    f'Keys and values, bytes per token of a context of {rows[0]["context"]:,} tokens',
    charts.table(['', '', 'bytes'],
                 [[charts.text(r['variant']),
                   *bars(r['kv_bytes_per_token'], most_kv, charts.count(r['kv_bytes_per_token']))]
                  for r in rows], words=2, kind='bars'), link))
  for b in batches:
    body = [[charts.text(r['variant']), *bars(v := r['decode_tokens_per_sec'][b], fastest[b],
                                              charts.count(v))]
            for r in rows if 'decode_tokens_per_sec' in r]
    parts.append(charts.figure(
      f'Decoding, tokens per second, batch {b}',
      charts.table(['', '', 'tokens/s'], body, words=2, kind='bars'), link,
      'Greedy, past the prompt, at the end of that context; random weights, measured alone.'))
  spread = f'{max(losses) - min(losses):.3f} nats' if losses else '–'
  lede = (f'{len(rows)} variants of one model, each trained on {about["tokens"]:,} tokens from '
          f'{about["seeds"]} seeds on {charts.text(about["device"])}. From best to worst the loss '
          f'spans {spread}.')
  return charts.page('What an architecture costs', (
    f'<p class="kicker">smoljax</p><h1>What an architecture costs</h1><p class="lede">{lede}</p>'
    + ''.join(parts)))


def loss(row: Mapping, digits: int = 4) -> str:
  """A row's held-out loss with its interval, in words."""
  if 'loss' not in row:
    return 'diverged' if row['diverged'] else '–'
  return _with_interval(f'{row["loss"]:.{digits}f}', row['loss_interval'], digits)


def difference(row: Mapping, digits: int = 4) -> str:
  """A row's loss less the baseline's, with its interval and verdict, in words."""
  if 'difference' not in row:
    return '–'
  found = _with_interval(f'{row["difference"]:+.{digits}f}', row['difference_interval'], digits)
  return f'{found} ({row["verdict"]})'


def _with_interval(mean: str, half: float | None, digits: int) -> str:
  return mean if half is None else f'{mean} ± {half:.{digits}f}'
