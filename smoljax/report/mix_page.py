"""The page of a mixture study: weights, predicted against actual, what validation runs say."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smoljax.report import charts
from smoljax.report.charts import Series, figure, fixed, number, section, spread, table, text
from smoljax.scaling import comparison

_KINDS = {'arm': 'the size of the proxies', 'arm_larger': 'a larger model and more tokens'}
# What is asked, decided before: of an arm less another.
_ASKED = (('proposed', 'natural'), ('proposed', 'best'), ('proposed', 'unimax'))

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]  # arm → seed → domain → bits per byte


def validation(scores: Mapping[str, Scores], blend: Mapping[str, float]) -> dict[str, Any]:
  """What the runs that validate say, by kind (arm, arm_larger).

  Returns:
    Of each kind `arms`, name → [mean, half its 95 % t-interval, seeds]; `differences`, a list of
    {of, against, mean, half, p, detectable, n, verdict, holm}, paired by seed, Holm's method over
    those of all kinds that have a verdict (the others' `holm` is NaN); `domains`,
    domain → [mean, half] of proposed less natural.
  """
  found: dict[str, Any] = {}
  asked: list[tuple[dict, comparison.Estimate]] = []
  for kind, of in scores.items():
    blended = {arm: {seed: sum(w * bpb[d] for d, w in blend.items()) for seed, bpb in runs.items()}
               for arm, runs in of.items()}
    found[kind] = {
      'arms': {arm: [*comparison.interval(list(x.values())), len(x)] for arm, x in blended.items()},
      'differences': [], 'domains': {}}
    for arm, other in _ASKED:
      if arm in blended and other in blended:
        gap = comparison.difference(blended[other], blended[arm])
        row = {'of': arm, 'against': other, 'mean': gap.mean, 'half': gap.half, 'p': gap.p,
               'detectable': gap.detectable, 'n': gap.n}
        found[kind]['differences'].append(row)
        asked.append((row, gap))
    if 'proposed' in of and 'natural' in of:
      for d in next(iter(of['natural'].values())):
        gap = comparison.difference(*({seed: bpb[d] for seed, bpb in of[arm].items()}
                                      for arm in ('natural', 'proposed')))
        found[kind]['domains'][d] = [gap.mean, gap.half]
  verdicts = comparison.judge([gap for _, gap in asked])
  corrected = comparison.corrected([gap for _, gap in asked])
  for (row, _), verdict, p in zip(asked, verdicts, corrected, strict=True):
    row |= {'verdict': verdict, 'holm': p}
  return found


def words(found: Mapping[str, Any]) -> Iterator[str]:
  """A line about each difference that was asked for."""
  for kind, of in found.items():
    for row in of['differences']:
      why = (f' (n = {row["n"]}; p {row["holm"]:.2g} by Holm\'s method; {row["detectable"]:.4f} '
             'would have been seen)') if number(row['holm']) else ''
      yield (f'{row["of"]} less {row["against"]}, {_KINDS[kind]}: '
             f'{spread(row["mean"], row["half"], "+")} bits per byte, {row["verdict"]}{why}')


def write(design: Mapping, fit: Mapping, decision: Mapping, found: Mapping[str, Any], folder: str
          ) -> str:
  """Writes FOLDER/index.html with CSVs beside it; returns the page's path.

  Args:
    design, fit, decision: the JSON files of experiments.mix.
    found: of `validation`; empty before there are such runs.
  """
  site = charts.Site()
  body = ''.join((
    _weights(site, design, decision), _predictions(site, fit, decision),
    _validated(site, found), _sensitivity(site, decision)))
  gain = (f'{decision["gain"]:.3f} bits per byte ({decision["low"]:.3f} to {decision["high"]:.3f}) '
          'less than the natural proportions are expected')
  lede = (f'{len(design["corpora"])} corpora, {len(design["mixtures"])} proxies of '
          f'{design["parameters"]:,} parameters and {design["tokens"]:,} tokens. By the law '
          f'“{text(decision["law"])}”, {gain}.')
  if not decision['plausible']:
    lede += ' <b>That is more than three times what any proxy gained: do not believe it.</b>'
  header = (f'<header><p class="kicker">smoljax · mixture</p><h1>In which proportions?</h1>'
            f'<p class="lede">{lede}</p></header>')
  return site.write(pathlib.Path(folder), 'smoljax: mixture', header + body)


def _weights(site: charts.Site, design: Mapping, decision: Mapping) -> str:
  arms, shares = decision['arms'], design['phases']
  overall = {arm: [sum(s * row[i] for s, row in zip(shares, x, strict=True))
                   for i in range(len(design['corpora']))] for arm, x in arms.items()}
  rows = [(name, size, cap, *(overall[arm][i] for arm in arms), epochs)
          for i, (name, size, cap, epochs) in enumerate(zip(
            design['corpora'], design['sizes'], design['caps'], decision['epochs'], strict=True))]
  most = max(max(x) for x in overall.values())
  body = [(text(name), charts.bar(row[-2] / most), charts.percent(row[-2]),
           *(charts.percent(x) for x in row[2:-2]), charts.compact(row[0]), fixed(row[-1], 1),
           charts.percent(row[1], 0)) for name, *row in rows]
  head = ('', '', 'proposed', *(text(a) for a in arms if a != 'proposed'), 'tokens', 'epochs',
          'cap')
  return section('weights', 'Weights', figure(
    'Share of tokens', table(head, body, words=2, kind='bars'),
    site.csv('weights', ('corpus', 'tokens', 'cap', *arms, 'epochs'), rows),
    'Proposed, beside the natural proportions, UniMax and the best proxy; how often the proposed '
    'run goes through each corpus.'), *(
      [figure('By phase', table(('', *(charts.percent(s, 0) for s in shares)), [
        (text(n), *(charts.percent(row[i]) for row in arms['proposed']))
        for i, n in enumerate(design['corpora'])]), '')] if len(shares) > 1 else []))


def _predictions(site: charts.Site, fit: Mapping, decision: Mapping) -> str:
  forms = fit['forms']
  of = forms[decision['law']]
  parts = {'out of fold': of['points_out_of_fold'], 'unseen': of.get('points', [])}
  points = [Series(name, sorted((p, a) for _, p, a in rows), i, 'points')
            for i, (name, rows) in enumerate(parts.items()) if rows]
  every = [x for rows in parts.values() for _, p, a in rows for x in (p, a)]
  line = Series('', [(min(every), min(every)), (max(every), max(every))], 3, 'faint')
  body = []
  for form, x in forms.items():
    body.append((text(form), *(fixed(x.get(where, {}).get(k), d) for where in WHERE
                               for k, (_, d) in _JUDGED.items())))
  head = ('', *(f'{name}, {words}' for words in WHERE.values()
                for name, _ in _JUDGED.values()))
  return section(
    'predictions', 'Predicted against actual',
    figure(f'Blend, bits per byte, by “{text(decision["law"])}”', charts.lines(
      [line, *points], label='predicted against actual', y_label='actual', x_label='predicted'),
      site.csv('predictions', ('run', 'where', 'predicted', 'actual'), [
        (key, where, p, a) for where, rows in parts.items() for key, p, a in rows]),
      f'The noise of a run is {fit["noise"]:.4f}; with shuffled scores ρ is {fit["control"]:.2f}.'),
    figure('Laws', table(head, body), site.csv(
      'laws', ('law', *(f'{w} {k}' for w in WHERE for k in _JUDGED)),
      [(form, *(x.get(w, {}).get(k, '') for w in WHERE for k in _JUDGED))
       for form, x in forms.items()]),
      f'The second best, “{text(decision["second_law"])}”, expects a gain of '
      f'{decision["gain_by_second_law"]:.3f} from the same mixture. Proposals look '
      f'{decision["optimism"]:.4f} better to the law that chose them, which is taken off.'))


# Proxies that laws are judged on: the key of their quality, and words for it.
WHERE = {'out_of_fold': 'out of fold',
         'out_of_fold_within': 'out of fold, each weight within what was tried',
         'unseen': 'unseen', 'unseen_within': 'unseen, each weight within what was tried'}
_JUDGED = {'spearman': ('ρ', 3), 'spearman_best_quartile': ('ρ of the best quarter', 3),
           'rmse': ('RMSE', 4), 'rmse_told_best': ('RMSE of the quarter told best', 4)}


def _validated(site: charts.Site, found: Mapping[str, Any]) -> str:
  if not found:
    return section('validation', 'Validation', charts.missing('validation', 'no arm has run yet'))
  parts = []
  for kind, of in found.items():
    arms = [(text(a), str(n), spread(mean, half))
            for a, (mean, half, n) in of['arms'].items()]
    parts.append(figure(f'Arms, {_KINDS[kind]}', table(('', 'seeds', 'bits per byte'), arms), ''))
    body = [(f'{text(r["of"])} less {text(r["against"])}', text(r['verdict']),
             str(r['n']), f'<b>{spread(r["mean"], r["half"], "+")}</b>',
             f'{r["holm"]:.2g}' if number(r['holm']) else '–', fixed(r['detectable'], 4))
            for r in of['differences']]
    parts.append(figure(
      f'Differences, {_KINDS[kind]}',
      table(('', '', 'seeds', 'bits per byte', 'p, by Holm’s method', 'could have seen'), body,
            words=2),
      site.csv(f'differences_{kind}', _COLUMNS, [[r[k] for k in _COLUMNS]
                                                 for r in of['differences']]),
      'Paired by seed, 95 % t-intervals; decided before any of these runs. Could have seen: the '
      'true difference that so many seeds show in 80 % of tries.'))
    domains = sorted(of['domains'].items(), key=lambda x: -x[1][0])
    parts.append(figure(
      f'By domain, proposed less natural, {_KINDS[kind]}',
      table(('', 'bits per byte'), [(text(d), spread(mean, half, '+'))
                                    for d, (mean, half) in domains]),
      site.csv(f'domains_{kind}', ('domain', 'difference', 'half'),
               [(d, *x) for d, x in domains]), 'Those above 0 lost.'))
  return section('validation', 'Validation', *parts)


_COLUMNS: Sequence[str] = (
  'of', 'against', 'mean', 'half', 'p', 'holm', 'detectable', 'verdict', 'n')


def _sensitivity(site: charts.Site, decision: Mapping) -> str:
  rows = [(name, *x) for name, x in decision['sensitivity'].items()]
  return section('sensitivity', 'Sensitivity', figure(
    'What .05 less or more of a corpus changes, bits per byte',
    table(('', '−.05', '+.05'), [(text(n), *('–' if x is None else f'{x:+.4f}' for x in xs))
                                 for n, *xs in rows]),
    site.csv('sensitivity', ('corpus', 'less', 'more'), rows),
    'By the law, of the blend, the others giving way in proportion. '
    'What hardly changes can be chosen for other reasons.'))
