"""Runs an experiment from one config file: data → train → evaluate → export → report.

  python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

Each step's output is kept under its content address in WORKDIR/steps: running again redoes nothing,
a changed config field redoes the steps whose results follow from it and what depends on them, and a
killed run is continued by the same command. Unfinished training does not begin again in silence
because a field differs: `--change` lets it go on with the new value, `--fresh` begins it anew.
`--dry_run` checks the config and shows what would happen.

  python -m experiments.run --config=configs/smollm3.py:size=3b --estimate --topology=v5e-256

compiles the training step for devices that are not here, and says what one of them holds and sends.
With --distributed the same command runs on each host, over a workdir that all see:

  experiments/cloud/tpu.sh run …
  srun python -m experiments.run --config=… --workdir=… --distributed
"""

import hashlib
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.table import Table

from data_beam.redact import public
from experiments import series, sweep
from experiments.engine.build import build_steps
from experiments.engine.cli import complain, console, exit_status, parse, write_json
from experiments.engine.config import (
  check,
  keep_programs,
  model_config,
  resolve,
  unknown_field,
  use_all_cores,
)
from experiments.engine.corpora import choose_corpora
from experiments.engine.graph import Damaged, Graph
from experiments.engine.summary import summarize
from smoljax import distributed, gpu

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for everything the experiment makes.')
_ESTIMATE = flags.DEFINE_bool('estimate', False, 'Compile the step for --topology; run nothing.')
_TOPOLOGY = flags.DEFINE_string('topology', 'h200', 'Such as v5e-256, v6e-64, v5p-128, h100x8.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'One of several processes of this run.')
_COORDINATOR = flags.DEFINE_string('coordinator', '', 'HOST:PORT of process 0, if jax cannot tell.')
_PROCESSES = flags.DEFINE_integer('processes', 0, 'How many there are, likewise.')
_PROCESS = flags.DEFINE_integer('process', -1, 'Which this one is, from 0, likewise.')
_FRESH = flags.DEFINE_bool(
  'fresh', False, 'Begin training anew beside an unfinished one that other values left here.')
_CHANGE = flags.DEFINE_bool(
  'change', False, 'Let unfinished training go on with the values that were changed.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the steps, what is done, and their cost.')


def run(c: ConfigDict, workdir: str, *, dry_run: bool = False) -> None:
  """Runs (or describes) the experiment `c` in `workdir`; ValueError or OSError on bad input."""
  if '://' in workdir:
    raise ValueError(
      f'--workdir={workdir}: the state of a run (locks, logs, links) needs a file system of this '
      'machine or network: give a local folder, and such an address to its checkpoints '
      '(--config.train.checkpoint_dir) or corpora (--config.corpora, --config.web.input)')
  if os.path.exists(workdir) and not os.path.isdir(workdir):
    raise NotADirectoryError(f'--workdir={workdir} is a file: give a folder')
  gpu.take()
  is_lead, wait, share = True, lambda what: None, lambda what, value: value
  if _DISTRIBUTED.value and not dry_run:
    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    is_lead, wait, share = distributed.is_lead(), distributed.wait, distributed.share
    console.quiet = not is_lead
    distributed.require_same({'config': json.loads(c.to_json_best_effort()), **_software()})
  for note in choose_corpora(c):
    console.print(note)
  resolve(c)
  unfinished = 'fresh' if _FRESH.value else 'change' if _CHANGE.value else 'refuse'
  graph = Graph(build_steps(c, workdir), workdir, console.print, is_lead=is_lead, wait=wait,
                share=share, unfinished=unfinished)
  if _DISTRIBUTED.value and not dry_run:  # hosts may see other files, or other versions of them
    distributed.require_same({'steps': {s.name: s.address for s in graph.steps}})
  began = time.monotonic()
  if not _DISTRIBUTED.value:  # whose processes have their devices already
    use_all_cores(c)
  if not dry_run:
    keep_programs(workdir)
  check(c)
  if dry_run:
    table = Table('step', 'state', 'cost', title=f'{c.name} in {workdir}')
    for row in graph.describe():
      table.add_row(*public(row))
    console.print(table)
    return
  summary_file = os.path.join(workdir, 'summary.json')
  if is_lead:
    os.makedirs(workdir, exist_ok=True)
    write_json(os.path.join(workdir, 'config.json'), public(json.loads(c.to_json_best_effort())))
  # The summary is kept current, because the report, the last step, is made of it.
  while True:
    try:
      graph.run(before=lambda step: write_json(summary_file, summarize(graph)))
      break
    except Damaged as e:
      if _DISTRIBUTED.value:  # the others wait elsewhere: all have to begin again
        raise
      console.print(f'warning: {e}')
  if not is_lead:
    return
  summary = summarize(graph)
  write_json(summary_file, summary)
  loss = summary.get('loss', {})
  if 'first' not in loss:  # an experiment that trains no model of its own
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


def run_series(c: ConfigDict, workdir: str, *, dry_run: bool = False) -> None:
  """Runs (or describes) the experiments of `c.series`, each a process of this command."""
  if _DISTRIBUTED.value:
    raise ValueError('config.series is not for --distributed: run its stages one by one')
  fields = config_flags.get_override_values(flags.FLAGS['config'])
  points = series.stages(
    c, config_flags.get_config_filename(flags.FLAGS['config']), workdir,
    [f'--config.{k}={v}' for k, v in fields.items()],
    ['--fresh'] * _FRESH.value + ['--change'] * _CHANGE.value)
  if dry_run:
    print(*sweep.commands(points), sep='\n')
    return
  os.makedirs(workdir, exist_ok=True)
  write_json(os.path.join(workdir, 'config.json'), public(json.loads(c.to_json_best_effort())))
  series.run(c, points, workdir, console.print)


def _software() -> dict[str, Any]:
  """What processes must have in common beside the config: our sources, and packages' versions."""
  root, digest = pathlib.Path(__file__).parent.parent, hashlib.sha256()
  for package in ('smoljax', 'data_beam', 'experiments'):
    for path in sorted((root / package).rglob('*.py')):
      digest.update(path.read_bytes())
  return {'code': digest.hexdigest()[:12],
          'packages': {d.metadata['Name'] or '?': d.version for d in metadata.distributions()}}


def estimate(c: ConfigDict, topology: str) -> None:
  """Prints what `smoljax.estimate` says of the config's step on that topology."""
  from smoljax.data import tokenizer
  from smoljax.train import estimate as estimate_lib

  where = estimate_lib.topology(topology)
  resolve(c)
  pieces = tokenizer.load(c.tokenizer.path).vocab_size if c.tokenizer.path else None
  config = model_config(c, pieces or c.tokenizer.vocab_size)
  found = estimate_lib.estimate(c, config, where)
  held, there = found['arguments'] + found['temporaries'], found['memory']
  table = Table('of one device, a step', title=f'{c.name} on {topology}', title_justify='left')
  table.add_column('', justify='right')
  table.add_row('devices', found['devices'])
  axes = [f'{axis}={n}' for axis, n in found['mesh'].items() if n > 1]
  table.add_row('mesh', ', '.join(axes) or 'one device')
  table.add_row('tokens a step, all devices', f'{c.train.batch_tokens:,}')
  table.add_row('parameters and optimizer', f'{found["arguments"] / 1e9:.3f} GB')
  table.add_row('temporaries', f'{found["temporaries"] / 1e9:.3f} GB')
  table.add_row('together, of what there is', f'{held / 1e9:.3f} of {there / 1e9:.3f} GB')
  table.add_row('model FLOPs', f'{found["flops"] / 1e12:.2f} TFLOP')
  if found['peak_flops']:
    table.add_row('at peak that takes', f'{found["flops"] / found["peak_flops"] * 1e3:.1f} ms')
  for kind, (calls, size) in found['collectives'].items():
    table.add_row(kind, f'{calls} calls, {size / 1e9:.2f} GB')
  table.add_row('compiled in', f'{found["compile_seconds"]} s')
  console.print(table)


def _parse(argv: list[str]) -> list[str]:
  rest = parse(argv, unknown_field)
  if _FRESH.value and _CHANGE.value:
    sys.exit(complain(ValueError('--fresh begins anew, --change goes on: give one of them')))
  if not _CONFIG.value or not (_WORKDIR.value or _ESTIMATE.value):
    sys.exit(complain(ValueError(
      'give --config=configs/quickstart.py and --workdir=runs/quickstart')))
  return rest


def main(_: Sequence[str]) -> int:
  """The command line: runs, describes or estimates; the exit code."""
  # Our own progress, and of the libraries only errors.
  logging.basicConfig(format='%(message)s', level=logging.ERROR, force=True)
  logging.getLogger('data_beam').setLevel(logging.INFO)
  if _ESTIMATE.value:
    return exit_status(lambda: estimate(_CONFIG.value, _TOPOLOGY.value))
  start = run_series if _CONFIG.value.series else run
  return exit_status(lambda: start(_CONFIG.value, _WORKDIR.value, dry_run=_DRY_RUN.value))


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
