"""A series of experiments, each from those before, as one: pretraining, fine-tuning, merging, ….

`config.series` of a recipe (configs/dual_mode.py) has a dict a stage: its `name`, and the fields in
which it differs from the config. '@NAME' in a value is the workdir of a stage before it. A stage is
an experiment of its own in WORKDIR/NAME, a process of experiments.run, with its own report; all
share their steps, so that the same command redoes nothing, goes on after a kill, and redoes what
follows from a field that was changed.
"""

import os
import pathlib
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments import sweep
from experiments.engine import config as config_lib
from experiments.engine import steps
from experiments.engine.cli import read_json, write_json
from smoljax.report import series_page


def stages(
  c: Any, config: str, workdir: str, flags: Sequence[str] = (), more: Sequence[str] = ()
) -> list[sweep.Point]:
  """The stages as points of a sweep, none started.

  Args:
    config: the recipe, as on the command line.
    flags: what sets fields of it there, --config.x=….
    more: further flags of experiments.run.
  Raises:
    ValueError: a stage without a name of its own, an unknown field or reference, a field that a
      stage and a flag set.
  """
  root = pathlib.Path(workdir)
  if not isinstance(c.series, tuple | list) or not all(
    isinstance(row, Mapping | ConfigDict) for row in c.series):
    raise ValueError(f'--config.series={c.series!r}: give a tuple of dicts, a name and fields each')
  rows = [dict(row) for row in c.series]
  names = [str(row.get('name')) for row in rows]
  if not all('name' in row and name == sweep.name_of(row) for name, row in zip(
      names, rows, strict=True)) or len({*names}) < len(names):
    raise ValueError(f'--config.series: its stages are called {names}: give each a name of its own')
  if taken := {*names} & {'steps', 'report', 'config.json', 'summary.json', 'evals'}:
    raise ValueError(f'--config.series: {min(taken)} is no name for a stage')
  flags = [f for f in flags if not f.startswith('--config.series')]
  points = sweep.planned(rows, config, root, flags)
  for point in points:
    point.steps = root / 'steps'
    point.command += ['--config.series=()', f'--config.name={c.name}-{point.name}', *more]
  sweep.check(points, config)
  return points


def run(
  c: Any, points: Sequence[sweep.Point], workdir: str, log_line: Callable[[str], None] = print
) -> None:
  """Runs the stages one after another; writes WORKDIR/summary.json and WORKDIR/report.

  Raises ValueError, with its last words, for a stage that failed; and before the first one begins,
  as OSError, for what can be told of a later one.
  """
  for point in points:
    if point.after:
      _look_ahead(point)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # its processes must not outlive it
  root = pathlib.Path(workdir)
  if not sweep.run(points, parallel=1, log_line=log_line):
    failed = next(p for p in points if p.state == 'failed')
    raise ValueError(f'the stage {failed.name} failed: {failed.last_words()}')
  scores = {p.name: series_page.load(p.folder) for p in points}
  page = series_page.write(
    c.name, scores, root / 'report', {n: f'../{n}/report/index.html' for n in scores})
  summaries = {p.name: read_json(str(p.folder / 'summary.json')) for p in points}
  found = series_page.figures(scores)
  last = points[-1].name
  _link(root / 'evals', f'{last}/evals')  # so that a sweep compares what the last stages gave
  write_json(os.path.join(workdir, 'summary.json'), {
    **summaries[last], 'name': c.name,
    'stages': {n: row | {'seconds': sum(summaries[n]['seconds'].values())}
               for n, row in found.items()}})
  for name, row in found.items():
    log_line(f'{name}: {_said(row)}')
  log_line(f'{c.name}: {page}')


def _look_ahead(point: sweep.Point) -> None:
  """What a stage would be refused for when those before it are done."""
  try:
    config = next(f for f in point.command if f.startswith('--config=')).removeprefix('--config=')
    c = sweep.load_config(config, [f for f in point.command if f.startswith('--config.')])
    config_lib.check_ahead(c)
    for name in ('web', 'pdf', 'conversations'):
      if c[name].enabled:
        steps.find_files(c[name].input, f'--config.{name}.input')
        steps.find_files(','.join(config_lib.options(c, name).files()), f'--config.{name}')
  except (ValueError, OSError) as e:
    raise type(e)(f'stage {point.name}: {e}') from None


def _said(row: dict[str, Any]) -> str:
  """A stage's figures in a line."""
  scores = [f'{task} {" / ".join(f"{x:.1%} {mode}" for mode, x in modes.items())}'
            for task, modes in row['exact'].items()]
  turns = ['modes followed ' + ', '.join(f'{x:.1%}' for x in row['follows'])] * bool(row['follows'])
  bits = [f'{x:.3f} bits per byte of {n} ({row["lost"][n]:+.1%})'
          for n, x in row['bits_per_byte'].items()]
  long = [f'long texts of {int(length):,} tokens ' + ' / '.join(
    f'{x:.1%} {mode}' for mode, x in modes.items()) for length, modes in row['long'].items()]
  return '; '.join([*scores, *long, *turns, *bits])


def _link(link: pathlib.Path, target: str) -> None:
  temporary = link.with_name(f'{link.name}.link')
  temporary.unlink(missing_ok=True)
  temporary.symlink_to(target)
  os.replace(temporary, link)
