"""Finished runs → the law they follow: a page of plots, tables and plans, with CSVs beside it."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from smoljax.report import charts, scaling_plans
from smoljax.report.charts import Series, compact, count, figure, fixed, section, table, text
from smoljax.scaling import fitting
from smoljax.scaling import laws as laws_lib
from smoljax.scaling import tasks as tasks_lib

# What a column of a CSV may be called.
_COLUMNS = {
  'params': ('params', 'n', 'N', 'Model Size'),
  'tokens': ('tokens', 't', 'D', 'Training Tokens'),
  'loss': ('loss', 'val_loss'),
  'flops': ('flops', 'C', 'Training FLOP'),
}
# What a CSV may have besides.
_MORE = {
  'budget': ('budget', 'Budget', 'flop_budget'),
  'unique': ('unique_tokens', 'unique', 'U'),
  'rate': ('lr', 'learning_rate', 'optimizer.learning_rate'),
}


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
  unique: np.ndarray | None = None  # different tokens of each, likewise
  rate: np.ndarray | None = None  # peak learning rate of each, likewise; not under muP

  def __getitem__(self, rows: np.ndarray) -> 'Points':
    """These rows alone, by a mask."""
    columns = ('params', 'tokens', 'loss', 'flops', *_MORE)
    return dataclasses.replace(self, **{
      k: x[rows] for k in columns if (x := getattr(self, k)) is not None})


def read(
  source: str, *, embedding: bool = False, rows: Mapping[str, str] | None = None,
  curves: bool = False,
) -> Points:
  """Reads a CSV file, or the finished runs under a folder: of a sweep, or workdirs in it.

  The sweep's laws.json says which runs are to be fitted and which to be predicted; without it all
  are fitted.

  Args:
    embedding: parameters of runs count the embedding too. A CSV says what it says.
    rows: column → value: only these rows of a CSV.
    curves: rows of a CSV that have the same `run` are all taken, not the last of them alone.
  Raises:
    OSError, ValueError: no such file, a column is missing, or there is no finished run.
  """
  path = pathlib.Path(source)
  if path.is_file():
    return _read_csv(path, rows or {}, curves)
  if rows:
    raise ValueError(f'{source}: rows are chosen of a CSV file')
  summaries = sorted({*path.glob('summary.json'), *path.glob('*/summary.json'),
                      *path.glob('points/*/summary.json')})
  laws = json.loads((path / 'laws.json').read_text()) if (path / 'laws.json').exists() else {}
  found, rates, unseen, recipes = [], [], [], {}
  for file in summaries:
    s, name = json.loads(file.read_text()), file.parent.name
    if 'validation' in s.get('loss', {}) and (not laws or name in laws):
      recipes[name] = recipe(file.parent / 'config.json')
      n = s['parameters' if embedding else 'non_embedding_parameters']
      row = (n, s['tokens']['trained'], s['loss']['validation'], s['flops'])
      if not laws or laws.get(name) == 'fit':
        found.append(row)
        rates.append(_rate(file.parent / 'config.json'))
      elif laws.get(name) == 'predict':
        unseen.append((name, *row))
  if not found:
    raise ValueError(f'no finished run under {source}: give a CSV file, or a folder of runs')
  params, tokens, loss, flops = map(np.array, zip(*found, strict=True))
  return Points(params, tokens, loss, flops, (
    f'N {"with" if embedding else "without"} embeddings; C = FLOPs as counted by '
    'ModelConfig.flops_per_token, head and attention included'), tuple(unseen),
    _other_recipes(recipes, {name for name, *_ in unseen}),
    rate=np.array(rates, float) if None not in rates else None)


def _rate(config: pathlib.Path) -> float | None:
  """The learning rate of a run that published laws of rates are about: AdamW's, without muP."""
  c = json.loads(config.read_text()) if config.exists() else {}
  optimizer = c.get('optimizer', {})
  plain = c.get('parametrization', {}).get('name', 'standard') == 'standard'
  return optimizer.get('learning_rate') if plain and optimizer.get('name') == 'adamw' else None


def _read_csv(path: pathlib.Path, only: Mapping[str, str], curves: bool) -> Points:
  names, lines, note = _table(path)
  if wrong := [k for k in only if k not in names]:
    raise ValueError(f'{path} has no column {wrong[0]}; it has {", ".join(names)}')
  lines = [(i, r) for i, r in lines if all(r[k] == v for k, v in only.items())]
  rows = [r for _, r in lines]
  if not rows:
    raise ValueError(f'{path} holds no rows' + ''.join(f' of {k}={v}' for k, v in only.items()))
  if len(several := {r['experiment'] for r in rows} if 'experiment' in names else set()) > 1:
    raise ValueError(
      f'{path} holds {len(several)} experiments, of which one law says nothing: give '
      f'--rows=experiment=NAME, one of {", ".join(sorted(several))}')
  of, more = ({k: _column(names, known) for k, known in kind.items()}
              for kind in (_COLUMNS, _MORE))
  columns, besides = (
    {k: np.array([_above_0(r[n], f'{path}, line {i}: {n}') for i, r in lines])
     for k, n in found.items() if n} for found in (of, more))
  if 'budget' in besides and 'loss' in columns and len(columns) == 2:
    columns['flops'] = besides['budget']
  if 'loss' not in columns or len(columns) < 3:
    raise ValueError(f'{path}: columns for loss and two of params, tokens and flops are needed, it '
                     f'has {", ".join(names)[:200]}')
  if few := [k for k in ('params', 'tokens') if k in columns and np.median(columns[k]) < 1000]:
    raise ValueError(f'{path}: {of[few[0]]} has {columns[few[0]].min():g} to '
                     f'{columns[few[0]].max():g}: give numbers of {few[0]}, not millions of them')
  convention = f'N, D and C as in {path.name}{note}'
  if len(columns) == 3:
    missing = next(k for k in ('params', 'tokens', 'flops') if k not in columns)
    others = [columns[k] for k in ('params', 'tokens') if k in columns]
    columns[missing] = (6 * others[0] * others[1] if missing == 'flops'
                        else columns['flops'] / (6 * others[0]))
    convention += f'; {missing} from C = 6 N D'
  points = Points(convention=convention, **columns, **besides)
  last: dict[str, int] = {}
  for i in np.argsort(points.tokens, kind='stable') if 'run' in names and not curves else ():
    last[rows[i]['run']] = i
  return points[np.sort(list(last.values()))] if last else points


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


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the law of some runs is asked for.

  Attributes:
    flops: budgets to plan runs for, in 6 N D; the largest of the runs, three and ten times it, if
      none.
    predict: (N, D) of runs whose loss, and accuracy in `tasks`, is predicted.
    use: tokens of inference in a model's life, for plans that count them too; 0 = none.
    force: predictions and plans may go beyond ten times the compute of the largest run.
    tied: the law has α = β.
    envelope: the runs are points along training curves: Chinchilla's first approach too.
  """

  flops: Sequence[float] = ()
  predict: Sequence[tuple[float, float]] = ()
  use: float = 0.0
  force: bool = False
  tied: bool = False
  envelope: bool = False


def write(
  points: Points, output: str, asked: Asked = Asked(), *, bootstrap: int = 200,
  against: Points | None = None, tasks: Mapping[str, tasks_lib.TaskLaw] | None = None,
  log_line: Callable[[str], None] = lambda line: None,
) -> tuple[str, laws_lib.Fit]:
  """Writes OUTPUT/index.html; returns its path and the fit.

  Where a table says how many tokens are unique, the law is that of the runs that repeat none; where
  it has several learning rates of a size and length, that of the best.

  Args:
    against: another ladder, whose exponents are compared with these.
    tasks: laws of tasks, as `read_task` makes them.
    log_line: is given a line about what is fitted, each run that was predicted, or is of another
      recipe, each exponent compared, and each sign that runs are not tuned alike.
  Raises:
    ValueError: the runs do not determine a law, or a budget is too far (laws.TooFar).
  """
  site, again = charts.Site(), None
  if points.unique is not None:
    once = points.unique >= points.tokens * (1 - 1e-6)
    points, again = points[once], points[~once]
  p = _best_rates(points)
  fit = laws_lib.fit_chinchilla(p.params, p.tokens, p.loss, tied=asked.tied, bootstrap=bootstrap)
  plans = [laws_lib.plan(fit, c, force=asked.force)
           for c in (asked.flops or [k * fit.most_flops for k in (1, 3, 10)])]
  of = {'force': asked.force, 'site': site, 'log_line': log_line}
  parts = [
    _mixed(p, log_line), scaling_plans.tuning(fit, _rates(points), log_line), _law(p, fit, site),
    _against(fit, against, bootstrap, asked.tied, site, log_line), _unseen(p, fit, site, log_line),
    scaling_plans.predictions(fit, asked.predict, **of),
    scaling_plans.tasks(tasks or {}, asked.predict, **of), _curves(p, fit, site),
    _isoflop(p, site, log_line), _envelope(p, site, log_line) if asked.envelope else '',
    _repeated(again, p, fit, bootstrap, site, log_line), _held_out(p, asked.tied, site),
    scaling_plans.plans(fit, plans, asked.use, site, force=asked.force)]
  log_line(f'{len(p.loss)} runs of {len(set(p.params))} sizes; {p.convention}')
  header = (f'<header><p class="kicker">smoljax · scaling</p><h1>{len(p.loss)} runs of '
            f'{len(set(p.params))} sizes</h1><p class="lede">{text(p.convention)}.</p></header>')
  return site.write(pathlib.Path(output), 'smoljax: scaling', header + ''.join(parts)), fit


def _rates(p: Points) -> dict[tuple[float, float], list[tuple[float, float]]]:
  """(N, D) → (learning rate, loss) of its runs."""
  found: dict[tuple[float, float], list[tuple[float, float]]] = {}
  if p.rate is not None:
    for n, d, rate, loss in zip(p.params, p.tokens, p.rate, p.loss, strict=True):
      found.setdefault((float(n), float(d)), []).append((float(rate), float(loss)))
  return found


def _best_rates(p: Points) -> Points:
  """Of each size and length whose learning rate was searched the best run alone."""
  cells = _rates(p)
  if all(len({rate for rate, _ in runs}) == 1 for runs in cells.values()):
    return p
  least = {k: min(loss for _, loss in runs) for k, runs in cells.items()}
  keep = [loss == least[n, d] for n, d, loss in zip(p.params, p.tokens, p.loss, strict=True)]
  return dataclasses.replace(p[np.array(keep)], convention=(
    f'{p.convention}; of {len(p.loss)} runs the best learning rate of each size and length'))


def _table(path: str | pathlib.Path) -> tuple[list[str], list[tuple[int, dict[str, str]]], str]:
  """Names of the columns of a CSV, (line, row) of each row, and what was left out, in words.

  Columns are parted by what parts those of the first line, comma, semicolon or tab. A row that
  stands there twice, letter by letter, counts once. Raises ValueError for what is no such table.
  """
  try:
    content = pathlib.Path(path).read_text('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(f'{path} is no text in UTF-8: {e.reason} at byte {e.start}') from None
  first = content.partition('\n')[0]
  delimiter = max(',;\t', key=first.count)
  reader = csv.reader(io.StringIO(content, newline=''), delimiter=delimiter)
  names = [name.strip() for name in next(reader, [])]
  if twice := [n for n in names if n and names.count(n) > 1]:
    raise ValueError(f'{path} has two columns {twice[0]}')
  rows: dict[tuple[str, ...], int] = {}
  copies = 0
  for cells in reader:
    if len(cells) > len(names) and any(cells[len(names):]):
      raise ValueError(f'{path}, line {reader.line_num}: {len(cells)} cells under {len(names)} '
                       'columns (a comma inside a number wants quotes)')
    copies += tuple(cells) in rows
    if cells:
      rows.setdefault(tuple(cells), reader.line_num)
  note = f'; {copies} rows that stand there twice count once' if copies else ''
  return names, [(i, dict(itertools.zip_longest(names, cells[:len(names)])))
                 for cells, i in rows.items()], note


def _column(names: Sequence[str], known: Sequence[str]) -> str:
  """The column that is called so, large letters or small; '' for none."""
  lower = {n.lower(): n for n in reversed(names)}
  return next((n for n in known if n in names), '') or next(
    (lower[n.lower()] for n in known if n.lower() in lower), '')


def _above_0(word: str | None, of: str) -> float:
  with contextlib.suppress(TypeError, ValueError):
    if 0 < (value := float(word or '')) < math.inf:
      return value
  raise ValueError(f'{of} is {word!r}, no number above 0')


def read_task(
  source: str, accuracy: str, bits: str, *, rows: Mapping[str, str] | None = None,
  tied: bool = False, bootstrap: int = 200,
) -> tasks_lib.TaskLaw:
  """The law of a task from a CSV with columns of N, D, its accuracy and its bits per byte.

  Rows with a `run` may be points along it: the law of bits is fitted on the last of each run, the
  sigmoid on all but the first tenth. Raises OSError or ValueError as `read` does.
  """
  names, lines, _ = _table(source)
  table = [r for _, r in lines if all(r.get(k) == v for k, v in (rows or {}).items())]
  n, d = (_column(names, _COLUMNS[k]) for k in ('params', 'tokens'))
  if not (n and d) or {accuracy, bits} - set(names):
    raise ValueError(f'{source}: columns for params, tokens, {accuracy} and {bits} are needed, it '
                     f'has {", ".join(names)}')
  runs: dict[object, list[tuple[float, ...]]] = {}
  for i, r in enumerate(table):
    if r[accuracy] and r[bits]:
      try:
        runs.setdefault(r.get('run', i), []).append(
          tuple(float(r[k]) for k in (n, d, bits, accuracy)))
      except ValueError as e:
        raise ValueError(f'{source}: {e}') from None
  if not runs:
    raise ValueError(f'{source} has no row with both {accuracy} and {bits}')
  if (most := max(x[3] for of in runs.values() for x in of)) > 1:
    raise ValueError(f'{source}: {accuracy} goes up to {most:g}: give shares, from 0 to 1')
  curves = [np.array(sorted(of, key=lambda x: x[1])) for of in runs.values()]
  last = np.array([c[-1] for c in curves])
  late = np.concatenate([c[len(c) // 10 :] for c in curves])
  return tasks_lib.TaskLaw(
    laws_lib.fit_chinchilla(*last.T[:3], tied=tied, bootstrap=bootstrap),
    tasks_lib.fit_sigmoid(late[:, 2], late[:, 3]))


def _mixed(p: Points, log_line: Callable[[str], None]) -> str:
  for name, what in p.other_recipes:
    log_line(f'{name} is of another recipe than the other runs ({what}): no law holds for both')
  return ''.join(
    f'<p class="warning"><b>{text(name)} is of another corpus or recipe</b>: {text(what)}. A law '
    'fitted on one says nothing of the other.</p>' for name, what in p.other_recipes)


def _against(
  fit: laws_lib.Fit, other: Points | None, bootstrap: int, tied: bool, site: charts.Site,
  log_line: Callable[[str], None],
) -> str:
  if other is None:
    return ''
  their = laws_lib.fit_chinchilla(
    other.params, other.tokens, other.loss, tied=tied, bootstrap=bootstrap)
  rows = [(name, getattr(fit, name), getattr(their, name), *of, not of[1] <= 0 <= of[2])
          for name, of in laws_lib.differ(fit, their).items()]
  for name, here, there, _, low, high, differs in rows:
    log_line(f'{name}: {here:.3f} here, {there:.3f} there, difference {there - here:+.3f} '
             f'({low:+.3f} to {high:+.3f}): {"they differ" if differs else "not told apart"}')
  body = [(name, fixed(here, 3), fixed(there, 3), f'{gap:+.3f} ({low:+.3f} to {high:+.3f})',
           'differ' if differs else 'not told apart')
          for name, here, there, gap, low, high, differs in rows]
  return section('against', 'Against the other ladder', figure(
    'Exponents, with intervals of their difference',
    table(('', 'here', 'there', 'difference, 95 %', ''), body), site.csv(
      'against', ('exponent', 'here', 'there', 'difference', 'low', 'high', 'differ'), rows)))


def _law(p: Points, fit: laws_lib.Fit, site: charts.Site) -> str:
  values = {k: getattr(fit, k) for k in laws_lib.NAMES} | {'a': fit.a}
  words = {'E': 'E, loss of endless N and D', 'A': 'A', 'B': 'B', 'alpha': 'α, exponent of N',
           'beta': 'β, exponent of D', 'a': 'a: N of least loss ∝ C^a'}
  known = {k: x for k, x in fit.intervals.items() if all(map(math.isfinite, x))}
  interval = lambda k: '{} to {}'.format(*map(_digits, known[k])) if k in known else 'not told'
  rows = [(words[k], f'<b>{_digits(x)}</b>', interval(k)) for k, x in values.items()]
  link = site.csv('fit', ('parameter', 'value', 'low', 'high'), [
    (k, x, *fit.intervals.get(k, ('', ''))) for k, x in values.items()])
  off = fit.loss(p.params, p.tokens) / p.loss - 1
  note = (f'By Huber’s loss of {fitting.DELTA:g} on log L, the sum over runs; 95 % intervals from '
          f'{len(fit.samples)} resamples of sizes, by Student’s t with {max(0, fit.sizes - 3)} '
          f'degrees of freedom. Runs lie {100 * np.abs(off).mean():.2f} % from '
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


def _isoflop(p: Points, site: charts.Site, log_line: Callable[[str], None]) -> str:
  p = dataclasses.replace(p, flops=_budgets(p.flops if p.budget is None else p.budget))
  if (np.unique(p.flops, return_counts=True)[1] >= 3).sum() < 2:
    return ''
  try:
    found = laws_lib.isoflop(p.flops, p.params, p.loss, p.tokens)
  except ValueError as e:
    return section('isoflop', 'Best size by budget', f'<p class="missing">{text(e)}.</p>')
  series = []
  for i, o in enumerate(found.optima[:: -(-len(found.optima) // 6)]):
    xy = sorted((n, x) for c, n, x in zip(p.flops, p.params, p.loss, strict=True) if c == o.flops)
    series.append(Series(f'{o.flops:.1e} FLOPs', xy, i, 'dots'))
  edges = [o for o in found.optima if o.edge]
  (n, n_range), (d, d_range) = (
    (law.exponents['flops'], law.intervals['flops']) for law in (found.params, found.tokens))
  show = lambda ends: '{:.3f} to {:.3f}'.format(*ends) if math.isfinite(ends[0]) else 'not told'
  note = f'N ∝ C^{n:.3f} ({show(n_range)}), D ∝ C^{d:.3f} ({show(d_range)}).'
  log_line(f'best size by budget: {note}')
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


def _envelope(p: Points, site: charts.Site, log_line: Callable[[str], None]) -> str:
  found = laws_lib.envelope(p.params, p.tokens, p.loss)
  n, d = found.params.exponents['flops'], found.tokens.exponents['flops']
  note = (f'N ∝ C^{n:.3f}, D ∝ C^{d:.3f}, of {len(found.optima)} budgets. Points along a run say '
          'what a run of that length would give only where its learning rate was constant.')
  log_line(f'along training curves: N ∝ C^{n:.3f}, D ∝ C^{d:.3f}')
  rows = [(f'{o.flops:.3e}', compact(o.params), compact(o.tokens), fixed(o.loss, 4),
           'at the edge' if o.edge else '') for o in found.optima]
  return section('envelope', 'Best size along training curves', figure(
    'Least loss near each budget', table(('FLOPs', 'N', 'D', 'loss', ''), rows),
    site.csv('envelope', [f.name for f in dataclasses.fields(laws_lib.Optimum)],
             [dataclasses.astuple(o) for o in found.optima]), note))


def _repeated(
  again: Points | None, p: Points, fit: laws_lib.Fit, bootstrap: int, site: charts.Site,
  log_line: Callable[[str], None],
) -> str:
  if again is None or not len(again.loss):
    return ''
  n, d, unique, loss = (np.concatenate([getattr(p, k), getattr(again, k)])
                        for k in ('params', 'tokens', 'unique', 'loss'))
  law = laws_lib.fit_data_constrained(n, d, unique, loss, fit, bootstrap=min(bootstrap, 50))
  log_line(f'repeated data: R* of tokens {law.repeat_tokens:.1f}, of parameters '
           f'{law.repeat_params:.1f}, R² {law.r2:.3f}')
  return scaling_plans.repeated(law, len(again.loss), len(p.loss), site)


def _held_out(p: Points, tied: bool, site: charts.Site) -> str:
  rows = laws_lib.held_out(p.params, p.tokens, p.loss, tied=tied)
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
           scaling_plans.ends(laws_lib.Prediction(x, low, high)), f'<b>{fixed(y, 3)}</b>',
           f'{100 * e:+.2f} %') for name, n, d, ratio, x, low, high, y, e in rows]
  head = ('', 'N', 'D', 'C over the largest', 'predicted', scaling_plans.INTERVAL, 'actual',
          'error')
  return section('unseen', 'Runs it had not seen', figure(
    'Predicted and actual loss', table(head, body), site.csv(
      'unseen', ('run', 'params', 'tokens', 'ratio', 'predicted', 'low', 'high', 'actual', 'error'),
      rows), scaling_plans.how(fit)))


def _digits(x: float) -> str:
  return count(x) if abs(x) >= 1000 else f'{x:.4g}'
