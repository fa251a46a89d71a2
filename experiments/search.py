"""Searches the fields of a config for the best run, with Optuna: samplers, pruning, many processes.

  python -m experiments.search --config=configs/search.py --workdir=runs/search --trials=20
  python -m experiments.search … --sampler=tpe --pruner=halving --processes=2 --max_hours=8
  python -m experiments.search … --pruner=halving --cooled --retest=3 --seeds=5
  python -m experiments.search … --objectives=loss,bytes      # several: the Pareto front

The config's `space()` is a dict, field → list of choices, or ('float' | 'log' | 'int', low, high),
where two more numbers are limits beyond which the range is never widened. A corpus's weight in a
stage of train.stages is a field too: 'train.stages.STAGE.CORPUS'. Each trial is an
experiment of its own in WORKDIR/points/trial-NUMBER, sharing steps as in experiments.sweep.

A pruner compares trials where they have seen as many tokens: at --rungs lengths, each three times
the one before, the last all of train.tokens (halving, hyperband), or between them too (median).
What is compared is the held-out loss on the way; with --cooled it is that of a branch that is
cooled down from there, while the run itself stays on the plateau and goes on from it (WSD).
With halving a trial that was stopped goes on from its checkpoint, not from its beginning, when it
is among the best third after all: more were tried, or those that went on turned out worse.
A run that diverges is told as worse than the worst, so that the sampler keeps away from it.

The study is WORKDIR/search.db: run the same command again, or in more processes on the same disk,
and all go on with one study until --trials are done. A process may die at any moment: its trial is
made by another, from its checkpoint. No point is tried twice. A changed config, space() or field is
refused. A winner at the edge of its range has not been found: the range is widened, a few more
trials are made, and the result says so. --retest runs the best few again with other seeds.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna

from data_beam.command_line import Parser
from data_beam.redact import public
from experiments import sweep
from experiments.engine import processes
from experiments.engine.cli import exit_status
from experiments.engine.study import (
  PRUNERS,
  SAMPLERS,
  Report,
  Space,
  Study,
  best_trial,
  check_space,
  edges,
  good,
  latest,
  run_of,
  size,
)
from smoljax import gpu, metrics
from smoljax.report import charts, search_page
from smoljax.scaling import comparison

RETRIES = 2  # new starts of a training that was killed


class Failed(Exception):
  """A run that was refused, diverged or was killed too often; says why."""


def _latency(folder: pathlib.Path, _summary: dict, environment: dict) -> float:
  """`decoding` in a process of its own: what a search held of a GPU its next trials would lack."""
  code = 'import sys; from experiments import search; print(search.decoding(sys.argv[1]))'
  child = processes.start([sys.executable, '-c', code, str(folder / 'checkpoints')],
                          stdout=subprocess.PIPE, text=True, env=environment)
  said = child.communicate()[0]
  if child.returncode:
    raise Failed(f'{folder}: its latency could not be measured')
  return float(said.split()[-1])


def decoding(path: str) -> float:
  """Milliseconds a token of greedy decoding, one row, of the model there, on this machine."""
  from smoljax import model
  from smoljax.checkpoints import load
  from smoljax.inference import cache as cache_lib
  from smoljax.inference.generate import generate

  config, params = model.without_mtp(*load.load_weights(path)[:2])
  new = min(64, config.max_seq_len - 1)
  params = cache_lib.prepare(config, params)
  times = []
  for _ in range(3):  # the first compiles
    began = time.perf_counter()
    generate(config, params, [[0]], max_new_tokens=new)
    times.append(time.perf_counter() - began)
  return 1000 * min(times) / new


def _memory(folder: pathlib.Path, summary: dict, _environment: dict) -> float:
  """Bytes to serve one row of full length: weights and keys and values, two bytes each."""
  from smoljax.checkpoints import store
  from smoljax.model import ModelConfig

  config = ModelConfig(**store.load_meta(str(folder / 'checkpoints'))['model'])
  cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * config.max_seq_len
  return 2.0 * (summary['parameters'] + cache)


# All are made small; of a run's workdir, its summary, and a process's environment on its GPU.
OBJECTIVES = {
  'loss': lambda folder, summary, _: summary['loss']['validation'],
  'parameters': lambda folder, summary, _: summary['parameters'],
  'bytes': lambda folder, summary, _: (folder / 'export/model.safetensors').stat().st_size,
  'seconds': lambda folder, summary, _: summary['seconds']['train'],
  'latency': _latency,
  'memory': _memory,
}


# --- Trials that are experiments ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rung:
  """A length at which trials are compared: steps on the plateau, then of cooling down from it."""

  tokens: float
  plateau: int
  cooldown: int


def rungs(c: Any, count: int, unit: float) -> tuple[int, list[Rung]]:
  """Steps of warm-up, and the lengths for --cooled: `unit` tokens, and each three times as many.

  Raises ValueError where a resolved config has no plateau that branches could leave.
  """
  batch, o = c.train.batch_tokens, c.optimizer
  if o.schedule != 'wsd' or len(c.train.stages) > 1:
    raise ValueError('--cooled branches off one plateau: it needs optimizer.schedule=wsd and a '
                     'single stage in train.stages')
  warmup = o.warmup_steps or round(o.warmup_fraction * c.train.steps)
  share = o.decay_steps / c.train.steps if o.decay_steps else o.decay_fraction
  found, before = [], warmup
  for i in range(count):
    steps = math.ceil(unit * 3**i / batch)
    cooldown = max(1, round(share * steps))
    if steps - cooldown <= before:
      raise ValueError(
        f'--rungs={count}: after {steps} steps of {batch} tokens the plateau has not begun, or not '
        'gone on: train longer, or give fewer rungs or a shorter warm-up')
    before = steps - cooldown
    found.append(Rung(unit * 3**i, before, cooldown))
  return warmup, found


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objective that runs experiments.run and watches its metrics.

  A run that fails or diverges has an infinite value, with the reason as the trial's user attribute
  failed; its FLOPs are the user attribute flops, even if it was pruned.

  Attributes:
    flags: of the form --config.x=…, for all runs.
    unit: tokens between two points of comparison; 0 = nothing is compared before the end.
    rungs: with `cooled`, how many lengths each trial is cooled down at.
    parallel: trials at a time on this machine; where they outnumber its GPUs, they share these.
    poll: seconds between looks at the metrics.
    runner: what takes the place of `python -m experiments.run`.
  """

  workdir: str
  config: str
  flags: Sequence[str]
  objectives: Sequence[str]
  unit: float = 0.0
  rungs: int = 1
  cooled: bool = False
  parallel: int = 1
  poll: float = 1.0
  runner: Sequence[str] = (sys.executable, '-m', 'experiments.run')

  def __call__(self, trial: optuna.Trial, report: Report) -> list[float]:
    """The trial's values, by the study's protocol."""
    prefix = 'trial' if trial.study.study_name == 'search' else trial.study.study_name
    folder = pathlib.Path(self.workdir) / 'points' / f'{prefix}-{run_of(trial):04d}'
    with self._gpu(trial.number) as mine:
      try:
        if self.cooled:
          self._train_by_rungs(trial, folder, mine, report)
        else:
          self._train(trial, folder, self._evaluations(trial.params), mine,
                      lambda: _watch(folder, report))
        summary = json.loads((folder / 'summary.json').read_text())
        return [float(OBJECTIVES[name](folder, summary, sweep.on_gpu(mine, self._among())))
                for name in self.objectives]
      except Failed as e:
        trial.set_user_attr('failed', str(e))
        return [math.inf] * len(self.objectives)

  def _evaluations(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Makes a run evaluate as often by tokens as all others, unless the user says how often."""
    flags = [*self.flags, *as_flags(params)]
    if not self.unit or any(f.startswith('--config.train.eval_every=') for f in flags):
      return {}
    batch = sweep.load_config(self.config, flags).train.batch_tokens
    return {'train.eval_every': max(1, int(self.unit / batch))}

  def _train_by_rungs(self, trial, folder, mine, report) -> None:
    """On along the plateau, and off it into a branch at each rung; the last is the trial's run."""
    from experiments.engine.config import resolve

    said = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    c = resolve(sweep.load_config(self.config, [*self.flags, *as_flags(trial.params)]))
    warmup, lengths = rungs(c, self.rungs, self.unit)
    batch, branch, start = c.train.batch_tokens, {}, 0
    shared = {'train.flops': 0.0, 'optimizer.warmup_steps': warmup,
              'optimizer.warmup_fraction': 0.0, 'train.eval_every': 10**9}
    for i, rung in enumerate(lengths, start=1):
      plateau = folder.with_name(f'{folder.name}-plateau-{i}')
      if round(rung.tokens / self.unit) in said:  # before it was killed, or stopped
        start = rung.plateau
        branch = {'train.branch_from': str(plateau / 'checkpoints' / str(start))}
        continue
      self._train(trial, plateau, {
        **shared, **branch, 'train.tokens': rung.plateau * batch, 'eval.tasks': (),
        'optimizer.schedule': 'constant'}, mine, start=start)
      start = rung.plateau
      branch = {'train.branch_from': str(plateau / 'checkpoints' / str(start))}
      cooled = folder if rung is lengths[-1] else folder.with_name(f'{folder.name}-rung-{i}')
      self._train(trial, cooled, {
        **shared, **branch, 'train.tokens': (start + rung.cooldown) * batch,
        'optimizer.decay_steps': rung.cooldown}, mine, start=start)
      summary = json.loads((cooled / 'summary.json').read_text())
      report(rung.tokens, summary['loss']['validation'])

  def _train(self, trial, folder, fields, mine, watch=lambda: None, start=0) -> None:
    """One experiment, started again where it is killed; its FLOPs after step `start` are counted.

    Raises Failed.
    """
    params = trial.params | fields
    command = [*self.runner, f'--config={self.config}', f'--workdir={folder}',
               *sweep.with_weights(self.config, [*self.flags, *as_flags(params)])]
    point = sweep.Point(folder.name, params, command, folder, set())
    spent = trial.user_attrs.get('flops_of', {})
    while True:
      sweep.start(point, mine, self._among())
      try:
        while point.process.poll() is None:
          time.sleep(self.poll)
          watch()
        watch()
      finally:
        processes.stop(point.process)  # it saves a checkpoint
        rows = [r for r in metrics.read_rows(folder / 'metrics.jsonl') if 'flops' in r]
        spent |= {folder.name: max(
          (r['flops'] * (1 - start / r['step']) for r in rows), default=0.0)}
        trial.set_user_attr('flops_of', spent)
        trial.set_user_attr('flops', sum(spent.values()))
      status = point.process.returncode
      if not status:
        return
      if status == sweep.REFUSED or point.tries > RETRIES:
        raise Failed(point.last_words())

  def _among(self) -> int:
    """How many trials share a GPU of this machine."""
    return sweep.on_one(self.parallel, gpu.visible())

  @contextlib.contextmanager
  def _gpu(self, number: int) -> Iterator[str | None]:
    """A GPU that no more trials on this machine have than are to share it, while there is one; None
    without GPUs."""
    gpus = gpu.visible()
    leases = pathlib.Path(self.workdir) / 'leases'
    for place, name in itertools.product(range(self._among()), gpus):
      if held := processes.lease(leases / f'{platform.node()}-gpu-{name}-{place}'):
        with held:
          yield name
        return
    yield gpus[number % len(gpus)] if gpus else None


def _watch(folder: pathlib.Path, report: Report) -> None:
  """Reports the mean held-out loss of each evaluation there has been, by tokens."""
  for row in metrics.read_rows(folder / 'metrics.jsonl'):
    losses = [x for k, x in row.items() if k.startswith('val/') and k.endswith('/loss')]
    if losses:
      report(row['tokens'], sum(losses) / len(losses))


# --- Command line ---------------------------------------------------------------------------------


def as_flags(fields: Mapping[str, Any]) -> list[str]:
  """Fields of a config as flags of experiments.run."""
  return [f'--config.{k}={v}' for k, v in fields.items()]


def check_fields(args: argparse.Namespace, space: Space) -> tuple[dict[str, Any], float]:
  """Tries each field of the space at its ends.

  Returns:
    What the study's trials have in common, and the tokens from one comparison to the next: no
    batch is larger.
  Raises:
    ValueError: a field that does not exist, or a value that it does not take.
  """
  from experiments.engine.build import deciding
  from experiments.engine.config import resolve

  check_space(space)
  fixed = {f.partition('=')[0].removeprefix('--config.') for f in args.flags}
  if both := fixed & space.keys():
    raise ValueError(f'--config.{min(both)} is what the search varies: drop it')
  if both := space.keys() & {*['seed'] * bool(args.retest), *['train.tokens'] * args.cooled}:
    raise ValueError(f'space() varies {min(both)}, as --retest or --cooled do: drop one')
  c = sweep.load_config(args.config, args.flags)
  common = public({
    'objectives': args.objectives, 'cooled': args.cooled, 'rungs': args.rungs,
    **{k: v for name in c for k, v in _flat(name, deciding(name, c[name])).items()}})
  ends = {k: v if isinstance(v, list) else v[1:3] for k, v in space.items()}
  first = {k: v[0] for k, v in ends.items()}
  of = lambda point: resolve(sweep.load_config(args.config, [*args.flags, *as_flags(point)]))
  runs = [of(first)]
  for name, value in ((k, v) for k, values in ends.items() for v in values[1:]):
    try:
      runs.append(of(first | {name: value}))
    except ValueError as e:
      raise ValueError(f'space(): {name}={value!r}: {e}') from None
  unit = max(max(r.train.tokens for r in runs) / 3 ** (args.rungs - 1),
             *(r.train.batch_tokens for r in runs))
  for run in runs * args.cooled:
    rungs(run, args.rungs, unit)
  return common, unit


def _flat(name: str, value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    return {name: value}
  return {k: v for key, part in value.items() for k, v in _flat(f'{name}.{key}', part).items()}


def results(study: optuna.Study, space: Space, objectives: Sequence[str]) -> dict[str, Any]:
  """What search_page.write needs, without Optuna's classes."""
  trials = latest(study.get_trials(deepcopy=False))
  several = len(objectives) > 1
  complete = {t.number for t in good(study)}
  importance = {}
  if not several and len(complete) > 3:
    with contextlib.suppress(ValueError, RuntimeError):  # all values the same
      importance = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
  best = study.best_trials if several else [best_trial(study)]
  return {
    'objectives': list(objectives), 'space': {k: list(v) for k, v in space.items()},
    'widened': study.user_attrs.get('widened', []),
    'edges': {} if several else edges(study, space),
    'importance': dict(importance),
    'best': [run_of(t) for t in best if t and t.number in complete],
    'trials': [{
      'number': run_of(t), 'thawed': 'thaws' in t.user_attrs,
      'state': 'fail' if t.user_attrs.get('failed') else t.state.name.lower(), 'params': t.params,
      'values': list(t.values or ()) if t.number in complete else [],
      'reported': sorted(t.intermediate_values.items()),
      'flops': t.user_attrs.get('flops', 0.0), 'failed': t.user_attrs.get('failed', ''),
    } for t in trials],
  }


def again(study: Study, done: optuna.Study, best: int, seeds: int, seed: int) -> Study:
  """A study of the best few points of another, each with as many other seeds after `seed`."""
  return dataclasses.replace(
    study, name='again', sampler='random', pruner='none', max_flops=0.0,
    space={**study.current_space(done), 'seed': ('int', seed + 1, seed + seeds)},
    points=[{**t.params, 'seed': seed + i} for t in good(done)[:best]
            for i in range(1, seeds + 1)])


def intervals(done: optuna.Study, retest: optuna.Study) -> list[dict[str, Any]]:
  """Of each point that was tried again: its trial, values by seed, mean and 95 % t-interval.

  The value that made it one of the best is left out, since it was chosen for it. The best first;
  last, without a mean, what has failed with a seed: those that are left would speak too well of it.
  """
  found = []
  trials = retest.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
  for trial in good(done):
    of = {t.params['seed']: math.inf if t.user_attrs.get('failed') else t.value for t in trials
          if trial.params == {k: v for k, v in t.params.items() if k != 'seed'}}
    if of:
      mean, half = comparison.interval([of[seed] for seed in sorted(of)])
      found.append((mean, {'trial': run_of(trial), 'values': of, 'mean': mean, 'half': half}))
  return [row for _, row in sorted(found, key=lambda f: f[0] if f[0] == f[0] else math.inf)]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = Parser(
    prog='python -m experiments.search', description=__doc__, others=sweep.is_field,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True, help='recipe with a space(), configs/X.py[:args]')
  parser.add_argument('--workdir', required=True, help='folder of the study and all trials')
  parser.add_argument('--trials', type=int, required=True, help='of all processes together')
  parser.add_argument('--processes', type=int, default=1, help='trials at a time')
  parser.add_argument('--sampler', default='tpe', help=f'grid or one of {", ".join(SAMPLERS)}')
  parser.add_argument('--pruner', default='none', help=f'one of {", ".join(PRUNERS)}')
  parser.add_argument('--rungs', type=int, default=3,
                      help='lengths at which a pruner compares, each three times the one before')
  parser.add_argument('--cooled', action='store_true',
                      help='compare branches that are cooled down at each length (WSD)')
  parser.add_argument('--objectives', type=lambda s: s.split(','), default=['loss'],
                      help=f'with commas, of {", ".join(OBJECTIVES)}')
  parser.add_argument('--seed', type=int, default=0, help='of the sampler')
  parser.add_argument('--widen', type=int, default=1, help='times that ranges may be widened')
  parser.add_argument('--retest', type=int, default=0, metavar='N',
                      help='run the N best again with other seeds')
  parser.add_argument('--seeds', type=int, default=3, help='how many, for --retest')
  parser.add_argument('--max_flops', type=float, default=0.0, help='of all trials; 0 = no limit')
  parser.add_argument('--max_hours', type=float, default=0.0, help='of this process; 0 = no limit')
  parser.add_argument('--dry_run', action='store_true', help='check all fields, run nothing')
  parser.add_argument('--worker', choices=('search', 'again'), help=argparse.SUPPRESS)
  args, args.flags = parser.parse_known_args(argv)
  if wrong := sweep.wrong_flags(args.flags):
    parser.error(wrong)
  if unknown := set(args.objectives) - OBJECTIVES.keys():
    parser.error(f'unknown objective {min(unknown)!r}: of {", ".join(OBJECTIVES)}')
  for name, least in (('trials', 1), ('processes', 1), ('rungs', 1), ('seed', 0), ('widen', 0),
                      ('retest', 0), ('seeds', 2), ('max_flops', 0), ('max_hours', 0)):
    if not least <= getattr(args, name) < math.inf:
      parser.error(f'--{name}={getattr(args, name)}: give {least} or more')
  if args.retest and len(args.objectives) > 1:
    parser.error('--retest needs a single objective')
  if args.cooled and (args.pruner == 'none' or args.rungs < 2):
    parser.error('--cooled is for a pruner: give --pruner=halving and --rungs=2 or more')
  return args


@contextlib.contextmanager
def _helpers(count: int, argv: Sequence[str], study: str) -> Iterator[None]:
  """Other processes that work on the same study until it is complete; none outlives this one."""
  command = [sys.executable, '-m', 'experiments.search', *argv, f'--worker={study}']
  helpers = [processes.start(command) for _ in range(count)]
  try:
    yield
    for p in helpers:
      p.wait()
  finally:
    processes.stop(*helpers)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; bad input is one line and exit code 2."""
  argv = sys.argv[1:] if argv is None else list(argv)
  args = _parse(argv)
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return exit_status(lambda: _main(args, argv))


def _main(args: argparse.Namespace, argv: Sequence[str]) -> None:
  log_line = lambda line: print(line, flush=True)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # its processes must not outlive it
  space = sweep.load_attribute(args.config, 'space')()
  common, unit = check_fields(args, space)
  study = Study(
    pathlib.Path(args.workdir), space, args.trials, args.sampler, args.pruner,
    len(args.objectives), args.seed, args.max_flops, args.max_hours, unit, identity=common)
  objective = Experiment(
    args.workdir, args.config, args.flags, args.objectives, unit * (args.pruner != 'none'),
    args.rungs, args.cooled, args.processes)
  retest = lambda done: again(study, done, args.retest, args.seeds, common['seed'])
  plain = dataclasses.replace(objective, unit=0.0, cooled=False)
  if args.dry_run:
    study.check()
    points = size(study.space)
    print(f'{args.trials} trials by {args.sampler}, pruner {args.pruner}; '
          f'{"no end of" if points == math.inf else points} points:')
    print(*(f'  {k}: {v}' for k, v in space.items()), sep='\n')
    return
  if args.worker == 'search':
    study.run(objective, log_line)
    return
  if args.worker == 'again':
    retest(study.open()).run(plain, log_line)
    return
  while True:
    with _helpers(args.processes - 1, argv, 'search'):
      done = study.run(objective, log_line)
    more = max(2, args.trials // 4)
    if len(args.objectives) > 1 or not study.widen(done, args.widen, more, log_line):
      break
  found = results(done, study.current_space(done), args.objectives)
  if args.retest and good(done):
    with _helpers(args.processes - 1, argv, 'again'):
      found['again'] = intervals(done, retest(done).run(plain, log_line))
    for f in found['again']:
      lost = sum(not math.isfinite(x) for x in f['values'].values())
      log_line(f'trial {f["trial"]} again, {len(f["values"])} seeds: ' + (
        f'{lost} failed' if lost else
        f'{args.objectives[0]} {charts.spread(f["mean"], f["half"])}'))
  print(f'results: {search_page.write(found, args.workdir)}')


if __name__ == '__main__':
  sys.exit(main())
