"""What a scaling law is asked for: predictions, plans for a budget or a lifetime, rates, tasks."""

import math
from collections.abc import Callable, Mapping, Sequence

from smoljax.report import charts
from smoljax.report.charts import compact, figure, fixed, number, section, table, text
from smoljax.scaling import laws as laws_lib
from smoljax.scaling import tasks as tasks_lib

INTERVAL = f'{100 * laws_lib.LEVEL:.0f} %'


def ends(of: laws_lib.Prediction, digits: int = 3) -> str:
  """A prediction's interval, or that the runs do not tell one."""
  if not (number(of.low) and number(of.high)):
    return 'not told'
  return f'{fixed(of.low, digits)} to {fixed(of.high, digits)}'


def predictions(
  fit: laws_lib.Fit, asked: Sequence[tuple[float, float]], *, force: bool, site: charts.Site,
  log_line: Callable[[str], None],
) -> str:
  """The loss of each N and D that was asked for. Raises laws.TooFar unless `force`."""
  rows = []
  for n, d in asked:
    of = laws_lib.predict(fit, n, d, force=force)
    rows.append((n, d, 6 * n * d / fit.most_flops, of.loss, of.low, of.high))
    log_line(f'N = {n:g}, D = {d:g}: {of.loss:.4f} ({INTERVAL}: {ends(of, 4)}), '
             f'{rows[-1][2]:.3g} times the compute of the largest run')
  if not rows:
    return ''
  body = [(compact(n), compact(d), fixed(ratio, 1), f'<b>{fixed(x, 4)}</b>',
           ends(laws_lib.Prediction(x, low, high), 4)) for n, d, ratio, x, low, high in rows]
  return section('predictions', 'Predictions', figure(
    'Loss of runs that were asked for',
    table(('N', 'D', 'C over the largest', 'loss', INTERVAL), body), site.csv(
      'predictions', ('params', 'tokens', 'ratio', 'loss', 'low', 'high'), rows),
    how(fit)))


def how(fit: laws_lib.Fit) -> str:
  """Where the intervals of predictions come from, in a sentence."""
  if not len(fit.samples):
    return 'No intervals: the law was fitted without resamples.'
  if len(fit.scores) >= 19:
    return (f'Intervals: what the law missed by in {len(fit.scores)} predictions of its own larger '
            'runs from the smaller ones, in standard errors of parameters and residuals.')
  if fit.sizes > 3:
    return (f'Intervals: parameters and residuals, by Student’s t with {fit.sizes - 3} degrees of '
            f'freedom of {fit.sizes} sizes; too few to look back on how wrong such predictions '
            'were.')
  return ('No intervals: three sizes determine the three numbers that sizes tell, and leave '
          'nothing that says how wrong they are. Add sizes.')


def plans(
  fit: laws_lib.Fit, made: Sequence[laws_lib.Plan], use: float, site: charts.Site, *, force: bool
) -> str:
  """Runs of least loss for each budget, with published rates; and for a lifetime of `use` tokens
  of inference the cheapest runs of the same losses."""
  rows, rates = [], []
  for plan in made:
    told = laws_lib.predict(fit, plan.params, plan.tokens, force=True)
    rows.append((plan.training_flops, plan.params, plan.tokens, plan.tokens / plan.params, told))
    rates.append((plan.params, plan.tokens, *(
      x for law in laws_lib.LAWS.values() for x in law(plan.params, plan.tokens))))
  body = [(f'{c:.2e}', compact(n), compact(d), fixed(m, 1), f'<b>{fixed(x.loss, 3)}</b>', ends(x))
          for c, n, d, m, x in rows]
  names = ('FLOPs', 'N', 'D', 'D / N', 'loss', INTERVAL)
  note = (f'C = 6 N D. The largest run had {fit.most_flops:.2e} FLOPs; plans beyond '
          f'{laws_lib.MOST:.0f} times that are refused unless forced. {how(fit)}')
  figures = [figure('Runs of least loss', table(names, body), site.csv(
    'plans', ('flops', 'params', 'tokens', 'ratio', 'loss', 'low', 'high'),
    [(*of, x.loss, x.low, x.high) for *of, x in rows]), note)]
  columns = [f'{name}: {what}' for name in laws_lib.LAWS for what in ('rate', 'batch')]
  figures.append(figure('Learning rate of AdamW and tokens a batch, by published laws', table(
    ('N', 'D', *columns), [(compact(n), compact(d), *(
      f'{x:.2e}' if i % 2 == 0 else compact(x) for i, x in enumerate(of))) for n, d, *of in rates]),
    site.csv('rates', ('params', 'tokens', *columns), rates),
    'Where to start a search at such a size: each was fitted on its own models and data.'))
  if use:
    figures.append(_lifetimes(fit, made, use, site, force))
  return section('plans', 'Plans', *figures)


def _lifetimes(
  fit: laws_lib.Fit, made: Sequence[laws_lib.Plan], use: float, site: charts.Site, force: bool
) -> str:
  rows = []
  for plan in made:
    of = laws_lib.plan_lifetime(fit, plan.loss, use, force=force)
    both = plan.training_flops + 2 * plan.params * use
    saved = 1 - (of.training_flops + of.inference_flops) / both
    rows.append((plan.loss, of.params, of.tokens, of.training_flops, of.inference_flops, saved))
  body = [(fixed(x, 3), compact(n), compact(d), f'{c:.2e}', f'{i:.2e}', f'{100 * saved:.0f} %')
          for x, n, d, c, i, saved in rows]
  return figure(
    f'The same losses, cheapest over training and {compact(use)} tokens of use',
    table(('loss', 'N', 'D', 'training FLOPs', 'FLOPs of use', 'saved'), body), site.csv(
      'lifetimes', ('loss', 'params', 'tokens', 'training', 'use', 'saved'), rows),
    'Training costs 6 N D, a token of use 2 N (Sardana et al. 2023): the more a model is used, the '
    'smaller it should be and the longer it should train. Saved: of both together, against the '
    'plan of least loss above.')


def tasks(
  found: Mapping[str, tasks_lib.TaskLaw], asked: Sequence[tuple[float, float]], *, force: bool,
  site: charts.Site, log_line: Callable[[str], None],
) -> str:
  """The accuracy of each task at each N and D that was asked for."""
  rows = []
  for name, law in found.items():
    for n, d in asked:
      of = law.predict(n, d, force=force)
      bits = float(law.bits.loss(n, d))
      rows.append((name, n, d, bits, of.loss, of.low, of.high, law.accuracy.spread))
      log_line(f'{name}: N = {n:g}, D = {d:g}: {bits:.4f} bits per byte, accuracy {of.loss:.3f} '
               f'({INTERVAL}: {ends(of)})')
  if not rows:
    return ''
  body = [(text(name), compact(n), compact(d), fixed(bits, 4), f'<b>{fixed(x, 3)}</b>',
           ends(laws_lib.Prediction(x, low, high)), fixed(spread, 3))
          for name, n, d, bits, x, low, high, spread in rows]
  return section('tasks', 'Tasks, in two steps', figure(
    'Bits per byte by the law, accuracy by a sigmoid of them',
    table(('task', 'N', 'D', 'bits per byte', 'accuracy', INTERVAL, 'spread about the sigmoid'),
          body),
    site.csv('tasks', ('task', 'params', 'tokens', 'bits', 'accuracy', 'low', 'high', 'spread'),
             rows),
    'OLMo’s ladder (arXiv:2412.04403): the right answers’ bits per byte follow a law of N and D, '
    'accuracy follows the bits. Targets of another mixture, or annealed, are off both.'))


def tuning(
  fit: laws_lib.Fit, rates: Mapping[tuple[float, float], Sequence[tuple[float, float]]],
  log_line: Callable[[str], None],
) -> str:
  """Warnings that the runs may not be tuned alike, in which case the law is one of the tuning.

  Args:
    rates: (N, D) → (learning rate, loss) of its runs, where they are known.
  """
  said = []
  edges = [(n, d, best) for (n, d), runs in rates.items() if len(tried := {r for r, _ in runs}) > 1
           and (best := min(runs, key=lambda x: x[1])[0]) in (min(tried), max(tried))]
  if edges:
    n, d, best = edges[0]
    said.append(f'at {len(edges)} of {len(rates)} sizes and lengths the best learning rate is the '
                f'least or the largest tried, such as {best:g} at N = {n:g}, D = {d:g}')
  alone = {k: runs[0][0] for k, runs in rates.items() if len({r for r, _ in runs}) == 1}
  far = {k: rate for k, rate in alone.items()
         if not 1 / 3 <= rate / laws_lib.LAWS['step'](*k)[0] <= 3}
  if far:
    (n, d), rate = next(iter(far.items()))
    expected = laws_lib.LAWS['step'](n, d)[0]
    said.append(
      f'at {len(far)} of {len(rates)} sizes and lengths the only learning rate is more than three '
      f'times off Step Law’s, such as {rate:g} at N = {n:g}, D = {d:g}, where it says '
      f'{expected:.2g}')
  if len(fit.scores) >= 19:
    better = sum(x < 0 for x in fit.scores) / len(fit.scores)
    if not 0.2 < better < 0.8:
      share = f'{100 * max(better, 1 - better):.0f} %'
      said.append(f'{share} of the runs came out {"below" if better > 0.5 else "above"} what the '
                  f'cheaper ones predicted, as where the {"cheaper" if better > 0.5 else "dearer"} '
                  'ones are tuned less well')
  for what in said:
    log_line(f'tuning: {what}')
  return ''.join(
    f'<p class="warning"><b>Tuned alike?</b> {text(what[0].upper() + what[1:])}. A law of runs '
    'that are not tuned alike is a law of their tuning.</p>' for what in said)


def repeated(
  law: laws_lib.DataConstrained, repeating: int, once: int, site: charts.Site
) -> str:
  """What repeated tokens are worth, by the data-constrained law."""
  rows = []
  for name, value, words in (('repeat_tokens', law.repeat_tokens, 'R* of tokens'),
                             ('repeat_params', law.repeat_params, 'R* of parameters')):
    low, high = law.intervals.get(name, (math.nan, math.nan))
    rows.append((words, value, low, high))
  worth = [(k, 1 + law.repeat_tokens * -math.expm1(-(k - 1) / law.repeat_tokens),
            math.exp(-(k - 1) / law.repeat_tokens)) for k in (2, 4, 8, 16, 40)]
  wide = any(number(low) and high > 3 * low for _, _, low, high in rows)
  note = (f'Muennighoff et al. 2023, fitted on {repeating} runs that repeat data over the law of '
          f'the {once} that do not; R² {law.r2:.3f}.')
  if wide:
    note += ' <b>An interval spans more than a factor of three</b>: these runs hardly tell it.'
  return section('repeated', 'Repeated data', figure(
    'What is fitted', table(('', 'value', '95 %'), [
      (words, f'<b>{fixed(x, 1)}</b>', f'{fixed(low, 1)} to {fixed(high, 1)}')
      for words, x, low, high in rows]),
    site.csv('repeated', ('number', 'value', 'low', 'high'), rows), note), figure(
      'What epochs are worth', table(
        ('epochs', 'as so many of new tokens', 'worth of the next token'),
        [(str(k), fixed(of, 2), fixed(next_, 2)) for k, of, next_ in worth]),
      site.csv('epochs', ('epochs', 'worth', 'next'), worth)))
