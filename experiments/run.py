"""Runs an experiment from one config file: data → train → evaluate → export → report.

  python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

Each step's output is kept under its content address in WORKDIR/steps: running again redoes nothing,
a changed config field redoes the steps that read it and what depends on them, and a killed run is
continued by the same command. `--dry_run` shows what would happen.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Sequence

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from experiments.pipeline import (
  build_steps,
  check,
  complain,
  console,
  exit_status,
  resolve,
  summarize,
  use_all_cores,
  write_json,
)
from experiments.steps import Graph

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for everything the experiment makes.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the steps, what is done, and their cost.')


def run(c: ConfigDict, workdir: str, *, dry_run: bool = False) -> None:
  """Runs (or describes) the experiment `c` in `workdir`; ValueError or OSError on bad input."""
  resolve(c)
  graph = Graph(build_steps(c, workdir), workdir, console.print)
  if dry_run:
    table = Table('step', 'state', 'cost', title=f'{c.name} in {workdir}')
    for row in graph.describe():
      table.add_row(*row)
    console.print(table)
    return
  began = time.monotonic()
  use_all_cores(c)
  check(c)
  os.makedirs(workdir, exist_ok=True)
  write_json(os.path.join(workdir, 'config.json'), json.loads(c.to_json_best_effort()))
  # Kept current, because the report, the last step, is made of it.
  summary_file = os.path.join(workdir, 'summary.json')
  graph.run(before=lambda step: write_json(summary_file, summarize(graph)))
  summary = summarize(graph)
  write_json(summary_file, summary)
  loss = summary.get('loss')
  if not loss:  # an experiment that trains no model of its own
    console.print(f'\n{c.name}: {workdir}/report/index.html')
    return
  console.print(
    f'\n{c.name}: {summary["parameters"]:,} parameters, loss {loss["first"]:.2f} → '
    f'{loss["final"]:.2f} in training, {loss["validation"]:.2f} on held-out documents; '
    f'a unigram model: {loss["unigram"]:.2f} nats per token.\n'
    f'  this run    {time.monotonic() - began:.0f} s\n'
    f'  report      {workdir}/report/index.html\n'
    f'  checkpoint  {workdir}/checkpoints\n'
    + f'  export      {workdir}/export (Hugging Face)\n' * os.path.isdir(f'{workdir}/export') +
    f'  figures     {workdir}/summary.json'
  )


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; a wrong one is one line that says what is wrong, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f'unexpected argument {rest[1]!r}: flags look like --config.seed=1')
    if not _CONFIG.value or not _WORKDIR.value:
      raise ValueError('give --config=configs/quickstart.py and --workdir=runs/quickstart')
    return rest
  except (flags.Error, ValueError, TypeError, KeyError, AttributeError, OSError) as e:
    sys.exit(complain(e))


def main(_: Sequence[str]) -> int:
  # Our own progress, and of the libraries only errors.
  logging.basicConfig(format='%(message)s', level=logging.ERROR, force=True)
  logging.getLogger('data_beam').setLevel(logging.INFO)
  return exit_status(lambda: run(_CONFIG.value, _WORKDIR.value, dry_run=_DRY_RUN.value))


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
