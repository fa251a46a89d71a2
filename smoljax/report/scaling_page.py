"""Finished runs → the law they follow: a page of plots, tables and plans, with CSVs beside it."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from smoljax.report import charts
from smoljax.report.charts import Series, compact, count, figure, fixed, section, table, text
from smoljax.scaling import fitting
from smoljax.scaling import laws as laws_lib

# What a column of a CSV may be called.
_COLUMNS = {
  'params': ('params', 'n', 'N', 'Model Size'),
  'tokens': ('tokens', 't', 'D', 'Training Tokens'),
  'loss': ('loss', 'val_loss'),
  'flops': ('flops', 'C', 'Training FLOP'),
}
_BUDGET = ('budget', 'Budget', 'flop_budget')  # what a run was given, where a CSV says so


@dataclasses.dataclass(frozen=True)
class Points:
  """Runs, one entry each, and what their numbers mean."""

  params: np.ndarray
  tokens: np.ndarray
  loss: np.ndarray
  flops: np.ndarray
  convention: str  # how parameters and FLOPs were counted, in words
  unseen: tuple[tuple[str, float, float, float, float], ...] = ()  # name, N, D, loss, C: not fitted
  other_recipes: tuple[tuple[str, str], ...] = ()  # runs apart, and what differs
  budget: np.ndarray | None = None  # the compute that each was given, where a table says so
  unique: np.ndarray | None = None  # different tokens of each, where a table says so

  def __getitem__(self, rows: np.ndarray) -> 'Points':
    """These rows alone, by a mask."""
    columns = ('params', 'tokens', 'loss', 'flops', 'budget', 'unique')
    return dataclasses.replace(self, **{
      k: x[rows] for k in columns if (x := getattr(self, k)) is not None})


def read(
  source: str, *, embedding: bool = False, rows: Mapping[str, str] | None = None
) -> Points:
  """Reads a CSV file, or the finished runs under a folder: of a sweep, or workdirs in it.

  The sweep's laws.json says which runs are to be fitted and which to be predicted; without it all
  are fitted.

  Args:
    embedding: parameters of runs count the embedding too. A CSV says what it says.
    rows: column → value: only these rows of a CSV.
  Raises:
    OSError, ValueError: no such file, a column is missing, or there is no finished run.
  """
  path = pathlib.Path(source)
  if path.is_file():
    return _read_csv(path, rows or {})
  if rows:
    raise ValueError(f'{source}: rows are chosen of a CSV file')
  summaries = sorted({*path.glob('summary.json'), *path.glob('*/summary.json'),
                      *path.glob('points/*/summary.json')})
  laws = json.loads((path / 'laws.json').read_text()) if (path / 'laws.json').exists() else {}
  found, unseen, recipes = [], [], {}
  for file in summaries:
    s, name = json.loads(file.read_text()), file.parent.name
    if 'validation' in s.get('loss', {}) and (not laws or name in laws):
      recipes[name] = recipe(file.parent / 'config.json')
      n = s['parameters' if embedding else 'non_embedding_parameters']
      row = (n, s['tokens']['trained'], s['loss']['validation'], s['flops'])
      if not laws or laws.get(name) == 'fit':
        found.append(row)
      elif laws.get(name) == 'predict':
        unseen.append((name, *row))
  if not found:
    raise ValueError(f'no finished run under {source}: give a CSV file, or a folder of runs')
  params, tokens, loss, flops = map(np.array, zip(*found, strict=True))
  return Points(params, tokens, loss, flops, (
    f'N {"with" if embedding else "without"} embeddings; C = FLOPs as counted by '
    'ModelConfig.flops_per_token, head and attention included'), tuple(unseen),
    _other_recipes(recipes, {name for name, *_ in unseen}))


def _read_csv(path: pathlib.Path, only: Mapping[str, str]) -> Points:
  with open(path, newline='', encoding='utf-8') as f:
    reader = csv.DictReader(f)
    rows = list(reader)
  names = reader.fieldnames or []
  if wrong := [k for k in only if k not in names]:
    raise ValueError(f'{path} has no column {wrong[0]}; it has {", ".join(names)}')
  rows = [r for r in rows if all(r[k] == v for k, v in only.items())]
  if not rows:
    raise ValueError(f'{path} holds no rows' + ''.join(f' of {k}={v}' for k, v in only.items()))
  if len(several := {r['experiment'] for r in rows} if 'experiment' in names else set()) > 1:
    raise ValueError(
      f'{path} holds {len(several)} experiments, of which one law says nothing: give '
      f'--rows=experiment=NAME, one of {", ".join(sorted(several))}')
  of = {k: next((n for n in known if n in names), '') for k, known in _COLUMNS.items()}
  budget = next((n for n in _BUDGET if n in names), '')
  try:
    columns = {k: np.array([float(r[n]) for r in rows]) for k, n in of.items() if n}
    budgets = np.array([float(r[budget]) for r in rows]) if budget else None
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from None
  if budgets is not None and 'loss' in columns and len(columns) == 2:
    columns['flops'] = budgets
  if 'loss' not in columns or len(columns) < 3:
    raise ValueError(f'{path}: columns for loss and two of params, tokens and flops are needed, it '
                     f'has {", ".join(names)}')
  convention = f'N, D and C as in {path.name}'
  if len(columns) == 3:
    missing = next(k for k in ('params', 'tokens', 'flops') if k not in columns)
    others = [columns[k] for k in ('params', 'tokens') if k in columns]
    columns[missing] = (6 * others[0] * others[1] if missing == 'flops'
                        else columns['flops'] / (6 * others[0]))
    convention += f'; {missing} from C = 6 N D'
  return Points(convention=convention, budget=budgets, **columns)


# What a law is a law of: these sections and fields of a config. Sizes, lengths, learning rates and
# schedules may differ from run to run.
_RECIPE = ('selfdocs', 'web', 'pdf', 'corpora', 'tokenizer', 'tokenize', 'mtp', 'distill')
_FIELDS = (('data', 'seq_len'), ('train', 'stages'), ('optimizer', 'name'))
_SIZES = ('shape', 'num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')


def recipe(config: pathlib.Path) -> dict[str, object]:
  """Field → value of what makes one law differ from another: data, tokens, model's kind, optimizer.

  Empty where there is no such file.
  """
  c = json.loads(config.read_text()) if config.exists() else {}
  found = {f'{section}.{k}': c[section].get(k) for section, k in _FIELDS if section in c}
  found |= {f'model.{k}': x for k, x in c.get('model', {}).items() if k not in _SIZES}
  for name in _RECIPE:
    value = c.get(name)
    found |= ({f'{name}.{k}': x for k, x in value.items()} if isinstance(value, dict)
              else {name: value})
  return found


def _other_recipes(recipes: dict[str, dict], unseen: set[str]) -> tuple[tuple[str, str], ...]:
  """Runs whose recipe is not that of the first fitted one."""
  first = next(r for name, r in recipes.items() if name not in unseen)
  found = []
  for name, of in recipes.items():
    if other := [f'{k}={of.get(k)!r}, not {x!r}' for k, x in first.items() if of.get(k) != x]:
      found.append((name, '; '.join(other)))
  return tuple(found)


def write(
  points: Points, output: str, *, flops: Sequence[float] = (), force: bool = False,
  bootstrap: int = 200, against: Points | None = None,
  log_line: Callable[[str], None] = lambda line: None,
) -> tuple[str, laws_lib.Fit]:
  """Writes OUTPUT/index.html; returns its path and the fit.

  Args:
    against: another ladder, whose exponents are compared with these.
    flops: budgets to plan runs for, in 6 N D; the largest of the runs, three and ten times it, if
      none.
    force: plans may go beyond ten times the compute of the largest run.
    log_line: is given a line about each run that was predicted, or is of another recipe, and each
      exponent compared.
  Raises:
    ValueError: the runs do not determine a law, or a budget is too far (laws.TooFar).
  """
  p, site = points, charts.Site()
  fit = laws_lib.fit_chinchilla(p.params, p.tokens, p.loss, bootstrap=bootstrap)
  plans = [laws_lib.plan(fit, c, force=force)
           for c in (flops or [k * fit.most_flops for k in (1, 3, 10)])]
  parts = [_mixed(p, log_line), _law(p, fit, site),
           _against(fit, against, bootstrap, site, log_line), _unseen(p, fit, site, log_line),
           _curves(p, fit, site), _isoflop(p, site), _held_out(p, site), _plans(fit, plans, site)]
  header = (f'<header><p class="kicker">smoljax · scaling</p><h1>{len(p.loss)} runs of '
            f'{len(set(p.params))} sizes</h1><p class="lede">{text(p.convention)}.</p></header>')
  return site.write(pathlib.Path(output), 'smoljax: scaling', header + ''.join(parts)), fit


def _mixed(p: Points, log_line: Callable[[str], None]) -> str:
  for name, what in p.other_recipes:
    log_line(f'{name} is of another recipe than the other runs ({what}): no law holds for both')
  return ''.join(
    f'<p class="warning"><b>{text(name)} is of another corpus or recipe</b>: {text(what)}. A law '
    'fitted on one says nothing of the other.</p>' for name, what in p.other_recipes)


def _against(
  fit: laws_lib.Fit, other: Points | None, bootstrap: int, site: charts.Site,
  log_line: Callable[[str], None],
) -> str:
  if other is None:
    return ''
  their = laws_lib.fit_chinchilla(other.params, other.tokens, other.loss, bootstrap=bootstrap)
  rows = [(name, getattr(fit, name), getattr(their, name), *of, not of[1] <= 0 <= of[2])
          for name, of in laws_lib.differ(fit, their).items()]
  for name, here, there, _, low, high, differs in rows:
    log_line(f'{name}: {here:.3f} here, {there:.3f} there, difference {there - here:+.3f} '
             f'({low:+.3f} to {high:+.3f}): {"they differ" if differs else "not told apart"}')
  body = [(name, fixed(here, 3), fixed(there, 3), f'{gap:+.3f} ({low:+.3f} to {high:+.3f})',
           'differ' if differs else 'not told apart')
          for name, here, there, gap, low, high, differs in rows]
  return section('against', 'Against the other ladder', figure(
    'Exponents, with bootstrap intervals of their difference',
    table(('', 'here', 'there', 'difference, 95 %', ''), body), site.csv(
      'against', ('exponent', 'here', 'there', 'difference', 'low', 'high', 'differ'), rows)))


def _law(p: Points, fit: laws_lib.Fit, site: charts.Site) -> str:
  values = {k: getattr(fit, k) for k in laws_lib.NAMES} | {'a': fit.a}
  words = {'E': 'E, loss of endless N and D', 'A': 'A', 'B': 'B', 'alpha': 'α, exponent of N',
           'beta': 'β, exponent of D', 'a': 'a: N of least loss ∝ C^a'}
  interval = lambda k: '{} to {}'.format(*map(_digits, fit.intervals[k])) if fit.intervals else '–'
  rows = [(words[k], f'<b>{_digits(x)}</b>', interval(k)) for k, x in values.items()]
  link = site.csv('fit', ('parameter', 'value', 'low', 'high'), [
    (k, x, *fit.intervals.get(k, ('', ''))) for k, x in values.items()])
  off = fit.loss(p.params, p.tokens) / p.loss - 1
  note = (f'By Huber’s loss of {fitting.DELTA:g} on log L, the sum over runs; 95 % intervals from '
          f'{len(fit.samples)} resamples of sizes. Runs lie {100 * np.abs(off).mean():.2f} % from '
          f'it in the mean, {100 * np.abs(off).max():.2f} % at most.')
  if fit.E / p.loss.min() < 0.1:
    note += (' <b>The runs do not tell E</b>: the fit ends with next to none, as when runs are so '
             'short that their loss still falls steeply. Longer runs will do better than it says.')
  return section('law', 'The law', figure(
    'L = E + A / N^α + B / D^β', table(('', 'fit', '95 %'), rows, words=1), link, note))


def _curves(p: Points, fit: laws_lib.Fit, site: charts.Site) -> str:
  # The smaller and the larger of many sizes say as much as all of them.
  sizes = np.unique(p.params)
  shown = sizes[np.unique(np.linspace(0, len(sizes) - 1, 6).round().astype(int))]
  at = np.geomspace(p.tokens.min(), p.tokens.max(), 60)
  series = []
  for i, n in enumerate(shown):
    runs = sorted((d, x) for m, d, x in zip(p.params, p.tokens, p.loss, strict=True) if m == n)
    series += [Series('', list(zip(at, fit.loss(np.full(60, n), at), strict=True)), i),
               Series(f'N = {compact(n)}', runs, i, 'dots')]
  rows = sorted(zip(p.params, p.tokens, p.flops, p.loss, fit.loss(p.params, p.tokens), strict=True))
  link = site.csv('runs', ('params', 'tokens', 'flops', 'loss', 'fitted'), rows)
  off = [(c, 100 * (y / x - 1)) for _, _, c, x, y in sorted(rows, key=lambda r: r[2])]
  return section('runs', 'Runs and law', figure('Loss against tokens', charts.lines(
    series, label='Loss against tokens by size', y_label='nats per token', x_label='tokens',
    log='xy', height=360), link, 'Dots are runs, lines the law.'), figure(
      'What is left over', charts.lines(
        [Series('', off, 3, 'dots')], label='Residuals by compute', y_label='law over run, %',
        x_label='FLOPs', log='x', height=200, ), link))


def _budgets(flops: np.ndarray, tolerance: float = 0.03) -> np.ndarray:
  """`flops` with neighbours that are that close made one: a run ends with a whole batch."""
  order = np.argsort(flops)
  group = np.cumsum(np.diff(np.log(flops[order]), prepend=np.log(flops[order[0]])) > tolerance)
  means = np.bincount(group, flops[order]) / np.bincount(group)
  out = np.empty(len(flops))
  out[order] = means[group]
  return out


def _isoflop(p: Points, site: charts.Site) -> str:
  p = dataclasses.replace(p, flops=_budgets(p.budget))
  budgets, runs = np.unique(p.flops, return_counts=True)
  if (runs >= 3).sum() < 2:
    return ''
  keep = np.isin(p.flops, budgets[runs >= 3])
  try:
    found = laws_lib.isoflop(p.flops[keep], p.params[keep], p.loss[keep], p.tokens[keep])
  except ValueError as e:
    return section('isoflop', 'Best size by budget', f'<p class="missing">{text(e)}.</p>')
  series = []
  for i, o in enumerate(found.optima[:: -(-len(found.optima) // 6)]):
    xy = sorted((n, x) for c, n, x in zip(p.flops, p.params, p.loss, strict=True) if c == o.flops)
    series.append(Series(f'{o.flops:.1e} FLOPs', xy, i, 'dots'))
  edges = [o for o in found.optima if o.edge]
  (n, n_range), (d, d_range) = (
    (law.exponents['flops'], law.intervals['flops']) for law in (found.params, found.tokens))
  note = (f'N ∝ C^{n:.3f} ({n_range[0]:.3f} to {n_range[1]:.3f}), D ∝ C^{d:.3f} '
          f'({d_range[0]:.3f} to {d_range[1]:.3f}).')
  if edges:
    note += (f' At {len(edges)} of {len(found.optima)} budgets the best is the smallest or largest '
             'size tried, which says nothing: add sizes there.')
  rows = [(f'{o.flops:.3e}', compact(o.params), compact(o.tokens), fixed(o.loss, 4),
           'at the edge' if o.edge else f'± {100 * math.expm1(o.error):.0f} %')
          for o in found.optima]
  link = site.csv('optima', [f.name for f in dataclasses.fields(laws_lib.Optimum)],
                  [dataclasses.astuple(o) for o in found.optima])
  return section('isoflop', 'Best size by budget', figure(
    'Loss against size at equal compute', charts.lines(
      series, label='Loss by size', y_label='nats per token', x_label='parameters', log='x'),
    link, note), figure('Optima', table(('FLOPs', 'N', 'D', 'loss', 'error of N'), rows), link))


def _held_out(p: Points, site: charts.Site) -> str:
  rows = laws_lib.held_out(p.params, p.tokens, p.loss)
  if not rows:
    return ''
  errors = [abs(e) for *_, e in rows]
  body = [(compact(n), compact(d), f'{100 * e:+.2f} %') for n, d, e in rows[-12:]]
  note = (f'Each size predicted from all smaller ones: {100 * np.mean(errors):.2f} % off in the '
          f'mean, {100 * max(errors):.2f} % at most.')
  return section('held_out', 'Predicting the next size', figure(
    'Predicted over actual, less one', table(('N', 'D', 'error'), body),
    site.csv('held_out', ('params', 'tokens', 'error'), rows), note))


def _unseen(p: Points, fit: laws_lib.Fit, site: charts.Site,
            log_line: Callable[[str], None]) -> str:
  if not p.unseen:
    return ''
  rows, most = [], float(p.flops.max())
  for name, n, d, actual, flops in p.unseen:
    expected = laws_lib.predict(fit, n, d)
    error = expected.loss / actual - 1
    low, high = expected.low, expected.high
    rows.append((name, n, d, flops / most, expected.loss, low, high, actual, error))
    log_line(
      f'{name}: predicted {expected.loss:.3f} ({low:.3f} to {high:.3f}), actual {actual:.3f}: '
      f'{100 * error:+.2f} %, at {flops / most:.1f} times the compute of the largest run fitted')
  body = [(text(name), compact(n), compact(d), f'{ratio:.1f}', f'<b>{fixed(x, 3)}</b>',
           f'{fixed(low, 3)} to {fixed(high, 3)}', f'<b>{fixed(y, 3)}</b>', f'{100 * e:+.2f} %')
          for name, n, d, ratio, x, low, high, y, e in rows]
  head = ('', 'N', 'D', 'C over the largest', 'predicted', '95 %', 'actual', 'error')
  return section('unseen', 'Runs it had not seen', figure(
    'Predicted and actual loss', table(head, body), site.csv(
      'unseen', ('run', 'params', 'tokens', 'ratio', 'predicted', 'low', 'high', 'actual', 'error'),
      rows), 'The interval is that of the law, without the noise of seeds.'))


def _plans(fit: laws_lib.Fit, plans: Sequence[laws_lib.Plan], site: charts.Site) -> str:
  rows = []
  for plan in plans:
    expected = laws_lib.predict(fit, plan.params, plan.tokens, force=True)
    rows.append((plan.training_flops, plan.params, plan.tokens, plan.tokens / plan.params,
                 expected.loss, expected.low, expected.high))
  body = [(f'{c:.2e}', compact(n), compact(d), fixed(m, 1), f'<b>{fixed(x, 3)}</b>',
           f'{fixed(low, 3)} to {fixed(high, 3)}') for c, n, d, m, x, low, high in rows]
  names = ('FLOPs', 'N', 'D', 'D / N', 'loss', '95 %')
  note = (f'C = 6 N D. The largest run had {fit.most_flops:.2e} FLOPs; plans beyond '
          f'{laws_lib.MOST:.0f} times that are refused unless forced.')
  return section('plans', 'Plans', figure('Runs of least loss', table(names, body), site.csv(
    'plans', ('flops', 'params', 'tokens', 'ratio', 'loss', 'low', 'high'), rows), note))


def _digits(x: float) -> str:
  return count(x) if abs(x) >= 1000 else f'{x:.4g}'
