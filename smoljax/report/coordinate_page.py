"""The page of a coordinate check."""

import pathlib
from collections.abc import Mapping, Sequence

from smoljax.report import charts
from smoljax.report.charts import Series, figure, section, table, text


def write(rows: Sequence[Mapping], folder: str) -> str:
  """Writes FOLDER/index.html with CSVs beside it; returns the page's path."""
  site, parts = charts.Site(), []
  judged = [r['ok'] for r in rows if r['ok'] is not None]
  body = [(text(r['mode']), r['axis'], f'<b>{r["slope"]:+.2f}</b>', text(r['worst']),
           r['bound'],
           {True: 'yes', False: '<b>no</b>', None: '–'}[r['ok']]) for r in rows]
  parts.append(section('slopes', 'Slopes', figure(
    'Largest slope of any site',
    table(('', 'over', 'slope', 'at', 'expected', 'met'), body, words=2),
    site.csv('slopes', ('mode', 'axis', 'site', 'slope'), [
      (r['mode'], r['axis'], k, v) for r in rows for k, v in r['slopes'].items()]),
    'Of log mean |x_t - x_0| over log size. Flat is right: every size learns as much per step. The '
    'modes that must fail show that the check can.')))
  plots = [figure(f'{text(r["mode"])}, over {r["axis"]}', charts.lines(
    [Series(k, list(zip(r['sizes'], v, strict=True)), i, 'dots')
     for i, (k, v) in enumerate(r['moved'].items())],
    label=f'{r["mode"]} over {r["axis"]}', y_label='mean |x_t - x_0|', x_label=r['axis'], log='xy',
    height=220), '') for r in rows]
  parts.append(section('coordinates', 'Coordinates', f'<div class="grid">{"".join(plots)}</div>'))
  site.csv('moved', ('mode', 'axis', 'site', 'size', 'moved'), [
    (r['mode'], r['axis'], k, size, x) for r in rows for k, v in r['moved'].items()
    for size, x in zip(r['sizes'], v, strict=True)])
  header = (f'<header><p class="kicker">smoljax · coordinate check</p><h1>{sum(judged)} of '
            f'{len(judged)} expectations met</h1></header>')
  return site.write(pathlib.Path(folder), 'smoljax: coordinate check', header + ''.join(parts))
