"""Writes the report of a run again, from the files in its workdir.

  python -m experiments.report --workdir=runs/quickstart
  python -m experiments.report --workdir=corpora     # curated corpora alone: what data_beam wrote
  python -m experiments.report --scaling=runs/ladder --output=scaling    # the law of a sweep's runs
  python -m experiments.report --scaling=FILE.csv --output=scaling --flops=1e20,1e21 --tied
  python -m experiments.report --scaling=FILE.csv --output=scaling --predict=1.3e9:26e9 --use=1e12
  python -m experiments.report --scaling=runs/adamw --against=runs/muon --output=scaling
  python -m experiments.report --workdir=runs/ladder --watch     # a page that follows what runs now
  python -m experiments.report --workdir=runs/ladder --live      # the same in the terminal

`experiments.run` writes the same page as its last step; this is for runs that were stopped before,
or moved, or evaluated again since. Nothing is trained or computed: open the page it names in any
browser, with or without a network.
"""

import functools
import sys
import time

import rich.live
import rich.markup
import rich.table
from absl import flags, logging

from data_beam.filters import spans
from data_beam.pdf.thumbnail import thumbnail
from experiments.engine import cli
from smoljax.report import charts, run_page, scaling_page, status_page

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a run (experiments.run --workdir), or of corpora.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Where index.html and the CSV files go; WORKDIR/report if not given.')
_SCALING = flags.DEFINE_string(
  'scaling', None, 'A folder of runs, or a CSV with the columns loss and two of params, tokens, '
  'flops: their scaling law instead of a run.')
_AGAINST = flags.DEFINE_string(
  'against', None, 'With --scaling, another ladder: do their exponents differ?')
_FLOPS = flags.DEFINE_list('flops', [], 'Budgets, 6 N D, to plan runs for from the scaling law.')
_FORCE = flags.DEFINE_bool(
  'force', False, 'Plan and predict beyond ten times the largest run’s compute.')
_TIED = flags.DEFINE_bool('tied', False, 'Scaling laws with α = β, as for over-training.')
_PREDICT = flags.DEFINE_list(
  'predict', [], 'N:D of runs whose loss the scaling law is to predict, such as 1.3e9:26e9.')
_USE = flags.DEFINE_float(
  'use', 0.0, 'Tokens of inference in a model’s life: plans that are cheapest with them too.',
  lower_bound=0)
_ENVELOPE = flags.DEFINE_bool(
  'envelope', False, 'The rows are points along training curves at constant rates: the best size '
  'near each budget, Chinchilla’s first approach.')
_ROWS = flags.DEFINE_list('rows', [], 'COLUMN=VALUE: only these rows of the CSV of --scaling.')
_TASK = flags.DEFINE_list(
  'task', [], 'ACCURACY:BITS, two columns of the CSV of --scaling: a task’s accuracy and the bits '
  'per byte of its right answers, to predict it with --predict in two steps.')
_EMBEDDING = flags.DEFINE_bool('embedding', False, 'Count embeddings as parameters of runs.')
_WATCH = flags.DEFINE_bool('watch', False, 'Serve the status of a run, sweep or search instead.')
_LIVE = flags.DEFINE_bool('live', False, 'Follow it in this terminal, until nothing runs.')
_PORT = flags.DEFINE_integer(
  'port', 8008, 'Of --watch, on 127.0.0.1.',
  lower_bound=0, upper_bound=65535)


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every corpus it opens
  try:
    if bool(_WORKDIR.value) == bool(_SCALING.value):
      raise ValueError('which run? Give --workdir=DIR, or --scaling=RUNS|FILE.csv')
    if _WATCH.value and _WORKDIR.value:
      return _watch(_WORKDIR.value)
    if _LIVE.value and _WORKDIR.value:
      return _live(_WORKDIR.value)
    if _SCALING.value:
      page = _scaling(_SCALING.value)
    else:
      page = run_page.write(_WORKDIR.value, _OUTPUT.value, spans.find, thumbnail)
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))
  print(f'report: {page}')


def _watch(workdir: str) -> None:
  with status_page.serve(workdir, _PORT.value) as server:
    print(f'watching {workdir}: {server.url}  (Ctrl-C ends it; who has no token sees nothing)',
          flush=True)
    try:
      server.serve_forever()
    except KeyboardInterrupt:
      pass


def _live(workdir: str) -> None:
  status_page.runs(workdir)  # its error is no picture yet
  with rich.live.Live(auto_refresh=False, vertical_overflow='visible') as live:
    try:
      while True:
        found = status_page.statuses(workdir, time.time())
        live.update(_states(found), refresh=True)
        if not any(s.state == 'running' for s in found):
          return
        time.sleep(2)
    except KeyboardInterrupt:
      pass


def _states(found: list[status_page.Status]) -> rich.table.Table:
  """A line for each run, with the course of its loss."""
  table = rich.table.Table(box=None, padding=(0, 1, 0, 0))
  for column in ('run', 'state', 'step', '', 'loss', 'tokens/s', 'MFU', 'left', 'last word'):
    table.add_column(column, no_wrap=column not in ('run', 'last word'))
  for s in found:
    row = s.row
    values = [y for _, y in charts.smooth(s.loss)]
    table.add_row(
      s.name, s.state, f'{s.step:,} of {s.steps:,}', _sparkline(values, 16),
      charts.fixed(row.get('train/loss'), 3), charts.fixed(row.get('perf/tokens_per_sec'), 0),
      charts.percent(row.get('perf/mfu')),
      '' if s.left is None else charts.duration(s.left),
      '' if s.state == 'done' else rich.markup.escape(s.word))
  return table


def _sparkline(values: list[float], width: int) -> str:
  """The course of some numbers in block characters, the lowest the least of them."""
  if len(values) > width:
    values = [values[i * len(values) // width] for i in range(width)]
  low, high = min(values, default=0), max(values, default=0)
  return ''.join('▁▂▃▄▅▆▇█'[round(7 * (v - low) / (high - low or 1))] for v in values)


def _scaling(source: str) -> str:
  if not _OUTPUT.value:
    raise ValueError('where to? Give --output=DIR')
  rows = {k: v for k, _, v in (x.partition('=') for x in _ROWS.value)}
  read = functools.partial(scaling_page.read, embedding=_EMBEDDING.value)
  points = read(source, rows=rows, curves=_ENVELOPE.value)
  asked = scaling_page.Asked(
    flops=[_positive('flops', x) for x in _FLOPS.value], predict=[_run(x) for x in _PREDICT.value],
    use=_USE.value, force=_FORCE.value, tied=_TIED.value, envelope=_ENVELOPE.value)
  tasks = {}
  for entry in _TASK.value:
    accuracy, colon, bits = entry.partition(':')
    if not colon or not asked.predict:
      raise ValueError(f'--task={entry}: give ACCURACY:BITS, two columns, and --predict=N:D')
    tasks[accuracy] = scaling_page.read_task(source, accuracy, bits, rows=rows, tied=_TIED.value)
  page, fit = scaling_page.write(
    points, _OUTPUT.value, asked, against=read(_AGAINST.value) if _AGAINST.value else None,
    tasks=tasks, log_line=print)
  ends = {k: f' ({low:.4g} to {high:.4g})' if high < float('inf') else ''
          for k, (low, high) in fit.intervals.items()}
  print('  '.join(f'{k} = {getattr(fit, k):.5g}{ends.get(k, "")}'
                  for k in ('E', 'A', 'B', 'alpha', 'beta', 'a')))
  return page


def _positive(flag: str, word: str) -> float:
  try:
    value = float(word)
  except ValueError:
    value = 0.0
  if not 0 < value < float('inf'):
    raise ValueError(f'--{flag}: {word!r} is no number above 0')
  return value


def _run(word: str) -> tuple[float, float]:
  """N and D of --predict."""
  n, colon, d = word.partition(':')
  if not colon:
    raise ValueError(f'--predict={word}: give N:D, parameters and tokens, such as 1.3e9:26e9')
  return _positive('predict', n), _positive('predict', d)


if __name__ == '__main__':
  cli.start(main)
