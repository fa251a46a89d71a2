"""A finished search → one page: the best, its history, what mattered, where the minimum lies."""

import base64
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smoljax.report import charts
from smoljax.report.charts import Series, figure, fixed, number, percent, section, table, text


def write(results: Mapping[str, Any], workdir: str) -> str:
  """Writes WORKDIR/report/index.html, CSVs beside it, and WORKDIR/search.json; returns the page.

  Args:
    results: as experiments.search gives them: objectives, space, trials, best, importance, edges,
      widened; and again, the points that were run with other seeds, if any were.
  """
  site, root = charts.Site(), pathlib.Path(workdir)
  (root / 'search.json').write_text(json.dumps(results, indent=1))
  trials = results['trials']
  complete = [t for t in trials if t['state'] == 'complete']
  counts = {s: sum(t['state'] == s for t in trials) for s in ('complete', 'pruned', 'fail')}
  thawed = sum(t.get('thawed', False) for t in trials)
  lede = (f'{len(trials)} trials: {counts["complete"]} complete, {counts["pruned"]} stopped early, '
          + f'{thawed} of all went on after they were stopped, ' * bool(thawed) +
          f'{counts["fail"]} failed; {sum(t["flops"] for t in trials):.2e} FLOPs of training.')
  if not complete:
    return site.write(root / 'report', 'smoljax: search', (
      f'<header><h1>No trial was completed</h1><p class="lede">{lede}</p></header>'
      + section('trials', 'Trials', _trials(results, site))))
  best = [t for t in complete if t['number'] in results['best']]
  several = len(results['objectives']) > 1
  title = (f'{len(best)} trials are not beaten in all of {charts.join(results["objectives"])}'
           if several else
           f'Least {results["objectives"][0]}: {fixed(best[0]["values"][0], 4)}, trial '
           f'{best[0]["number"]}')
  if results['edges']:
    lede += (f' <b>Not found yet</b>: the best {text(charts.join(list(results["edges"])))} lies at '
             'the edge of its range; search on with a wider one.')
  lede += ''.join(f' {text(w[0].upper() + w[1:])}.' for w in results['widened'])
  parts = [f'<header><p class="kicker">smoljax · search</p><h1>{text(title)}</h1>'
           f'<p class="lede">{lede}</p></header>']
  point = ', '.join(f'<code>--config.{text(k)}={text(v)}</code>'
                    for k, v in best[0]['params'].items())
  parts.append(f'<p>{"One of them" if several else "The best point"}: {point}</p>')
  if results.get('again'):
    parts.append(section('again', 'The best again', _again(results, site)))
  if several:
    parts.append(section('front', 'Trade-offs', _front(results, complete, site)))
  else:
    name = results['objectives'][0]
    parts.append(section('history', 'History', _history(name, complete, site)))
    parts.append(section('matters', 'What matters', _importance(results, site),
                         f'<div class="grid">{"".join(_slices(results, complete))}</div>',
                         _contour(results, complete)))
  parts.append(section('trials', 'Trials', _trials(results, site)))
  return site.write(root / 'report', 'smoljax: search', ''.join(parts))


def _trials(results: Mapping[str, Any], site: charts.Site) -> str:
  names, objectives = list(results['space']), results['objectives']
  order = sorted(results['trials'], key=lambda t: t['values'][:1] or [float('inf')])
  cells = lambda t: [t['number'], t['state'], *(t['params'].get(n, '') for n in names),
                     *(t['values'] or [''] * len(objectives)), t['flops'], t['failed']]
  link = site.csv('trials', ('trial', 'state', *names, *objectives, 'flops', 'failed'),
                  [cells(t) for t in results['trials']])
  show = lambda x: f'{x:.4g}' if number(x) else text(x)
  rows = [(f'<a href="../points/trial-{t["number"]:04d}/report/index.html">{t["number"]}</a>',
           text(t['state']), *(show(t['params'].get(n, '')) for n in names),
           *(f'<b>{show(v)}</b>' for v in t['values'] or [''] * len(objectives)), text(t['failed']))
          for t in order]
  return figure('All trials, the best first', table(
    ('trial', 'state', *names, *objectives, ''), rows, words=2), link)


def _again(results: Mapping[str, Any], site: charts.Site) -> str:
  found, name = results['again'], results['objectives'][0]
  return figure('With other seeds', table(
    ('trial', 'seeds', name, '±'),
    [(f['trial'], len(f['values']), fixed(f['mean'], 4), fixed(f['half'], 4)) for f in found]),
    site.csv('again', ('trial', 'seed', name), [
      (f['trial'], seed, value) for f in found for seed, value in f['values'].items()]),
    'Mean and 95 % interval (Student’s t) over seeds that the search has not seen: the value above '
    'was the least of many, and so a little too good; so is the first mean here, a little less. A '
    'point that failed with one of them has none.')


def _history(name: str, complete: Sequence[Mapping], site: charts.Site) -> str:
  values = [(t['number'], t['values'][0]) for t in complete]
  least = [(n, float(y)) for (n, _), y in
           zip(values, np.minimum.accumulate([v for _, v in values]), strict=True)]
  return figure(f'{_capital(name)} by trial', charts.lines(
    [Series('trials', values, 2, 'points'), Series('the best so far', least, 0)],
    label=f'{_capital(name)} by trial', y_label=name, x_label='trial', height=220),
    site.csv('history', ('trial', name), values))


def _capital(name: str) -> str:
  return name[0].upper() + name[1:]


def _importance(results: Mapping[str, Any], site: charts.Site) -> str:
  shares = results['importance']
  if not shares:
    return '<p class="missing">Too few trials to say what matters.</p>'
  return figure('Importance', table(('field', '', 'share'), [
    (text(k), charts.bar(v, color=0), percent(v, 0)) for k, v in shares.items()], kind='bars'),
    site.csv('importance', ('field', 'share'), shares.items()),
    'Share of what sets the better trials apart from the others (PED-ANOVA).')


def _slices(results: Mapping[str, Any], complete: Sequence[Mapping]) -> list[str]:
  out, objective = [], results['objectives'][0]
  for name, of in results['space'].items():
    points = sorted((t['params'][name], t['values'][0]) for t in complete
                    if number(t['params'].get(name)))
    if points:
      log = 'x' if of[0] == 'log' and points[0][0] > 0 else ''
      out.append(figure(text(name), charts.lines(
        [Series('', points, 2, 'points')], label=f'{_capital(objective)} by {name}',
        y_label=objective, x_label='', height=200, log=log), ''))
  return out


def _contour(results: Mapping[str, Any], complete: Sequence[Mapping]) -> str:
  """Of the two numeric fields that matter most."""
  numeric = [n for n in results['importance'] or results['space']
             if all(number(t['params'].get(n)) for t in complete)][:2]
  if len(numeric) < 2 or len(complete) < 5:
    return ''
  import matplotlib
  matplotlib.use('svg')
  from matplotlib import pyplot

  log = [results['space'][n][0] == 'log' for n in numeric]
  x, y = (np.array([t['params'][n] for t in complete], float) for n in numeric)
  loss = np.array([t['values'][0] for t in complete])
  fig, axis = pyplot.subplots(figsize=(7, 4.2))
  u, v = (np.log(a) if is_log else a for a, is_log in zip((x, y), log, strict=True))
  if np.linalg.matrix_rank(np.column_stack([np.ones_like(u), u, v])) == 3:
    # The worst trials would take all colours.
    levels = np.unique(np.quantile(loss, np.linspace(0, 0.8, 9)))
    if len(levels) > 1:
      axis.tricontourf(x, y, loss, levels=levels, cmap='viridis_r', extend='both', alpha=0.8)
  axis.scatter(x, y, c='k', s=10)
  best = loss.argmin()
  axis.scatter(x[best], y[best], marker='*', s=160, c='w', edgecolors='k')
  for set_, is_log in ((axis.set_xscale, log[0]), (axis.set_yscale, log[1])):
    set_('log' if is_log else 'linear')
  axis.set_xlabel(numeric[0])
  axis.set_ylabel(numeric[1])
  file = io.BytesIO()
  fig.savefig(file, format='svg', bbox_inches='tight', metadata={'Date': None})
  pyplot.close(fig)
  data = base64.b64encode(file.getvalue()).decode()
  label = f'{_capital(results["objectives"][0])} over {numeric[0]} and {numeric[1]}'
  return figure(text(label), f'<img alt="{text(label)}" style="max-width:100%" '
                f'src="data:image/svg+xml;base64,{data}">', '', 'The star is the best; lighter is '
                'less.')


def _front(results: Mapping[str, Any], complete: Sequence[Mapping], site: charts.Site) -> str:
  a, b = results['objectives'][:2]
  points = sorted((t['values'][1], t['values'][0]) for t in complete)
  front = sorted((t['values'][1], t['values'][0]) for t in complete
                 if t['number'] in results['best'])
  return figure(f'{text(a)} against {text(b)}', charts.lines(
    [Series('trials', points, 2, 'points'), Series('not beaten', front, 0, 'dots')],
    label=f'{a} against {b}', y_label=a, x_label=b, log='x' if points[0][0] > 0 else ''),
    site.csv('front', (b, a), front), 'Take the cheapest that is good enough.')
