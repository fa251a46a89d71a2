"""Searches the fields of a config for the best run, with Optuna: samplers, pruning, many processes.

  python -m experiments.search --config=configs/search.py --workdir=runs/search --trials=20
  python -m experiments.search … --sampler=tpe --pruner=halving --processes=2 --max_hours=8
  python -m experiments.search … --objectives=loss,bytes      # several: the Pareto front

The config's `space()` is a dict, field → list of choices, or ('float' | 'log' | 'int', low, high).
Each trial is an experiment of its own in WORKDIR/points/trial-NUMBER, sharing steps as in
experiments.sweep. Its held-out loss at each evaluation goes to the pruner, which may end it.

The study is WORKDIR/search.db: run the same command again, or in more processes on the same disk,
and all go on with one study until --trials are done. A process that dies is noticed by its missing
heartbeat; its trial is retried and continues from its checkpoint. One process with one seed
proposes the same points each time; several do not. A winner at the edge of its range has not been
found: the range is widened, a few more trials are made, and the result says so.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import itertools
import json
import math
import pathlib
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback

from experiments import sweep
from experiments.engine.cli import exit_status
from smoljax import metrics
from smoljax.report import search_page

# Heartbeats are experimental since version 2.8.
warnings.filterwarnings('ignore', category=optuna.exceptions.ExperimentalWarning)

Space = Mapping[str, Any]
Report = Callable[[int, float], None]  # evaluation from 1, value so far; raises optuna.TrialPruned

HEARTBEAT, GRACE = 5, 20  # seconds between signs of life; without one until it is taken over
RETRIES = 2
EDGE = 0.05  # share of a range (in logs if it is 'log') that is its edge

SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
  'tpe': lambda seed: optuna.samplers.TPESampler(seed=seed),
  'random': lambda seed: optuna.samplers.RandomSampler(seed=seed),
  'quasi': lambda seed: optuna.samplers.QMCSampler(
    seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False),
  'cmaes': lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
  'gp': lambda seed: optuna.samplers.GPSampler(seed=seed),  # needs torch
  'nsga': lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
# Resources count evaluations.
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
  'none': optuna.pruners.NopPruner,
  'halving': lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
  'hyperband': lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
  'median': lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
}


def _latency(folder: pathlib.Path, _summary: dict) -> float:
  """Milliseconds a token of greedy decoding, one row, on this machine."""
  from smoljax import model
  from smoljax.checkpoints import load
  from smoljax.inference import cache as cache_lib
  from smoljax.inference.generate import generate

  config, params = model.without_mtp(*load.load_weights(str(folder / 'checkpoints'))[:2])
  new = min(64, config.max_seq_len - 1)
  params = cache_lib.prepare(config, params)
  times = []
  for _ in range(3):  # the first compiles
    began = time.perf_counter()
    generate(config, params, [[0]], max_new_tokens=new)
    times.append(time.perf_counter() - began)
  return 1000 * min(times) / new


def _memory(folder: pathlib.Path, summary: dict) -> float:
  """Bytes to serve one row of full length: weights and keys and values, two bytes each."""
  from smoljax.checkpoints import store

  config, _, _ = store.load_params(str(folder / 'checkpoints'))
  cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * config.max_seq_len
  return 2.0 * (summary['parameters'] + cache)


OBJECTIVES = {  # all are made small; of a run's workdir
  'loss': lambda folder, summary: summary['loss']['validation'],
  'parameters': lambda folder, summary: summary['parameters'],
  'bytes': lambda folder, summary: (folder / 'export/model.safetensors').stat().st_size,
  'seconds': lambda folder, summary: summary['seconds']['train'],
  'latency': _latency,
  'memory': _memory,
}


@dataclasses.dataclass(frozen=True)
class Study:
  """A study on disk that several processes may work on at once.

  Attributes:
    folder: has `search.db` and `search.lock`; local, or a network file system with flock.
    trials: how many there are to be, retries not counted.
    sampler: one of SAMPLERS, or 'grid': then choices and int ranges are gone through, floats at
      five points.
    objectives: how many values a trial has; all are made small.
    max_flops: of all trials together; 0 = no limit. Trials say theirs as the user attribute flops.
    max_hours: after which no further trial is begun; 0 = no limit.
  """

  folder: pathlib.Path
  space: Space
  trials: int
  sampler: str = 'tpe'
  pruner: str = 'none'
  objectives: int = 1
  seed: int = 0
  max_flops: float = 0.0
  max_hours: float = 0.0

  def open(self) -> optuna.Study:
    """The study; made where there is none. Raises ValueError for what is unknown or impossible."""
    for name, valid in (('sampler', ('grid', *SAMPLERS)), ('pruner', PRUNERS)):
      if getattr(self, name) not in valid:
        raise ValueError(f'unknown {name} {getattr(self, name)!r}: one of {", ".join(valid)}')
    if self.objectives > 1 and self.pruner != 'none':
      raise ValueError('with several objectives no trial can be pruned: give --pruner=none')
    check_space(self.space)
    self.folder.mkdir(parents=True, exist_ok=True)
    try:
      sampler = SAMPLERS.get(self.sampler, SAMPLERS['random'])(self.seed)
    except ImportError as e:
      raise ValueError(f'sampler {self.sampler!r} needs a package: {e}') from None
    # SQLite lets one process write at a time; the others wait.
    storage = optuna.storages.RDBStorage(
      f'sqlite:///{self.folder / "search.db"}', engine_kwargs={'connect_args': {'timeout': 120}},
      heartbeat_interval=HEARTBEAT, grace_period=GRACE,
      heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES))
    study = optuna.create_study(
      storage=storage, study_name='search', sampler=sampler, pruner=PRUNERS[self.pruner](),
      directions=['minimize'] * self.objectives, load_if_exists=True)
    if self.sampler == 'grid':
      values = map(_points, self.space.values())
      for point in itertools.islice(itertools.product(*values), self.trials):
        study.enqueue_trial(dict(zip(self.space, point, strict=True)), skip_if_exists=True)
    return study

  def run(self, objective: Callable[[optuna.Trial, Report], Sequence[float]],
          log_line: Callable[[str], None] = print) -> optuna.Study:
    """Works on the study until it is complete; what other processes do counts.

    `objective` gives a trial's values; what it raises, but for optuna.TrialPruned, ends the run and
    leaves the trial failed.
    """
    with self._locked():
      study = self.open()
    began = time.monotonic()
    while True:
      trial = None
      with self._locked():
        optuna.storages.fail_stale_trials(study)
        state = self.missing(study, time.monotonic() - began)
        if state == 'done':
          return study
        if state == 'begin':
          trial = study.ask()
          suggest(trial, self.current_space(study))
      if trial is None:  # the rest is in other processes' hands; should one die, it comes back
        time.sleep(1)
        continue
      self._run(study, trial, objective, log_line)

  def missing(self, study: optuna.Study, seconds: float) -> str:
    """'begin' another trial, 'wait' for those of others, or all are 'done'."""
    trials = study.get_trials(deepcopy=False)
    states = optuna.trial.TrialState
    begun = sum(original(t) == t.number for t in trials)
    spent = sum(t.user_attrs.get('flops', 0.0) for t in trials)
    over = (self.max_hours and seconds > 3600 * self.max_hours) or (
      self.max_flops and spent >= self.max_flops)
    if any(t.state == states.WAITING for t in trials) and not over:
      return 'begin'
    wanted = self.trials + study.user_attrs.get('more', 0)
    if begun < wanted and not over and self.sampler != 'grid':  # its points were all waiting
      return 'begin'
    return 'wait' if any(t.state == states.RUNNING for t in trials) else 'done'

  def current_space(self, study: optuna.Study) -> Space:
    """The space as it was widened, if it was."""
    return study.user_attrs.get('space') or dict(self.space)

  def widen(
    self, study: optuna.Study, times: int, more: int, log_line: Callable[[str], None]
  ) -> bool:
    """Where the best trial lies at an edge, widens the range and asks for `more` trials.

    Ranges grow by half their width (in logs if they are 'log'); an 'int' stays above 0. At most
    `times` in the study's life. Whether it did.
    """
    space, widened = dict(self.current_space(study)), study.user_attrs.get('widened', [])
    if len(widened) >= times or not any(t.state.name == 'COMPLETE' for t in study.trials):
      return False
    changes = []
    for name, side in edges(study, space).items():
      kind, low, high = space[name]
      if kind == 'log':
        factor = (high / low) ** 0.5
        wider = (low / factor, high) if side == 'low' else (low, high * factor)
      else:
        step = (high - low) / 2
        wider = (low - step, high) if side == 'low' else (low, high + step)
      if kind == 'int':
        wider = (max(1, round(wider[0])), math.ceil(wider[1]))
      if wider != (low, high):
        space[name] = (kind, *wider)
        changes.append(f'the best {name}, {study.best_params[name]:.4g}, is at the edge of '
                    f'{low:.4g} to {high:.4g}; the range becomes {wider[0]:.4g} to {wider[1]:.4g}')
    if changes:
      study.set_user_attr('space', space)
      study.set_user_attr('more', study.user_attrs.get('more', 0) + more)
      study.set_user_attr('widened', [*widened, '; '.join(changes)])
      log_line('\n'.join(changes))
    return bool(changes)

  def _run(self, study, trial, objective, log_line) -> None:
    last = 0

    def report(step: int, value: float) -> None:
      nonlocal last
      if step > last:  # a retried trial has reported the first ones
        trial.report(value, step)
        last = step
        if trial.should_prune():
          raise optuna.TrialPruned

    with _heartbeat(study, trial):
      try:
        values = objective(trial, report)
      except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        log_line(f'trial {trial.number}: stopped early')
      except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
      else:
        bad = not all(math.isfinite(v) for v in values)
        study.tell(trial, None if bad else list(values),
                   state=optuna.trial.TrialState.FAIL if bad else None)
        shown = ', '.join(f'{v:.4g}' for v in values)
        log_line(f'trial {trial.number}: {shown} with {trial.params}')

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.folder / 'search.lock', 'w') as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      yield


@contextlib.contextmanager
def _heartbeat(study: optuna.Study, trial: optuna.Trial) -> Iterator[None]:
  """Signs of life of a trial while entered."""
  over = threading.Event()
  storage: Any = study._storage

  def beat() -> None:
    while True:
      with contextlib.suppress(Exception):  # a busy database; the next one will do
        storage.record_heartbeat(trial._trial_id)
      if over.wait(HEARTBEAT):
        return

  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join()


def original(trial: optuna.Trial | optuna.trial.FrozenTrial) -> int:
  """The number of the trial that this one retries, or its own."""
  if isinstance(trial, optuna.Trial):
    trial = trial.study.get_trials(deepcopy=False)[trial.number]
  retried = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
  return trial.number if retried is None else retried


def check_space(space: Space) -> None:
  """Raises ValueError for a range that is none."""
  if not space:
    raise ValueError('space() is empty: field → list of choices, or (kind, low, high)')
  for name, values in space.items():
    if isinstance(values, list) and values:
      continue
    kind = values[0] if isinstance(values, tuple) and len(values) == 3 else ''
    if kind not in ('float', 'log', 'int') or not values[1] < values[2] or (
        kind == 'log' and values[1] <= 0):
      raise ValueError(
        f"space(): {name}: {values!r} is neither a list of choices nor ('float' | 'log' | 'int', "
        'low, high) with low < high, above 0 for log')


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
  """The trial's point."""
  for name, values in space.items():
    if isinstance(values, list) and not (len(values) == 3 and values[0] in ('float', 'log', 'int')):
      trial.suggest_categorical(name, values)
    else:  # a tuple, or what JSON made of it
      kind, low, high = values
      if kind == 'int':
        trial.suggest_int(name, low, high)
      else:
        trial.suggest_float(name, low, high, log=kind == 'log')
  return trial.params


def _points(values: Any) -> list:
  if isinstance(values, list):
    return values
  kind, low, high = values
  if kind == 'int':
    return list(range(low, high + 1))
  ratios = [i / 4 for i in range(5)]
  return [low * (high / low) ** r if kind == 'log' else low + (high - low) * r for r in ratios]


def edges(study: optuna.Study, space: Space) -> dict[str, str]:
  """Of the best trial: the numeric fields that lie at an edge of their range, 'low' or 'high'."""
  found = {}
  for name, value in study.best_params.items():
    values = space.get(name)
    if not values or values[0] not in ('float', 'log', 'int'):
      continue
    kind, low, high = values
    scale = math.log if kind == 'log' else float
    at = (scale(value) - scale(low)) / (scale(high) - scale(low))
    if at <= EDGE or at >= 1 - EDGE:
      found[name] = 'low' if at <= EDGE else 'high'
  return found


# --- Trials that are experiments ------------------------------------------------------------------


def experiment(workdir: str, config: str, flags: Sequence[str], objectives: Sequence[str],
               poll: float = 1.0) -> Callable[[optuna.Trial, Report], list[float]]:
  """The objective that runs experiments.run and watches its metrics.

  A trial whose run fails or diverges counts as failed (infinite), with the reason as its user
  attribute; its FLOPs are the user attribute flops, even if it was pruned.
  """
  root = pathlib.Path(workdir) / 'points'

  def run(trial: optuna.Trial, report: Report) -> list[float]:
    folder = root / f'trial-{original(trial):04d}'
    command = [sys.executable, '-m', 'experiments.run', f'--config={config}',
               f'--workdir={folder}', *flags,
               *(f'--config.{k}={v}' for k, v in trial.params.items())]
    point = sweep.Point(folder.name, trial.params, command, folder, set())
    gpus = sweep.find_gpus()
    sweep.start(point, gpus[trial.number % len(gpus)] if gpus else None)
    try:
      while point.process.poll() is None:
        time.sleep(poll)
        _watch(folder, report)
      _watch(folder, report)
    finally:
      if point.process.poll() is None:
        point.process.send_signal(signal.SIGTERM)  # it saves a checkpoint
        point.process.wait()
      rows = metrics.read_rows(folder / 'metrics.jsonl')
      trial.set_user_attr('flops', max((r.get('flops', 0.0) for r in rows), default=0.0))
    if point.process.returncode:
      trial.set_user_attr('failed', point.last_words())
      return [math.inf] * len(objectives)
    summary = json.loads((folder / 'summary.json').read_text())
    return [float(OBJECTIVES[name](folder, summary)) for name in objectives]

  return run


def _watch(folder: pathlib.Path, report: Report) -> None:
  """Reports the mean held-out loss of each evaluation there has been of something trained."""
  evaluations = 0
  for row in metrics.read_rows(folder / 'metrics.jsonl'):
    losses = [x for k, x in row.items() if k.startswith('val/') and k.endswith('/loss')]
    if losses and row['step']:
      evaluations += 1
      report(evaluations, sum(losses) / len(losses))


# --- Command line ---------------------------------------------------------------------------------


def results(study: optuna.Study, space: Space, objectives: Sequence[str]) -> dict[str, Any]:
  """What search_page.write needs, without Optuna's classes."""
  trials = study.get_trials(deepcopy=False)
  several = len(objectives) > 1
  complete = [t for t in trials if t.state.name == 'COMPLETE']
  importance = {}
  if not several and len(complete) > 3:
    with contextlib.suppress(ValueError, RuntimeError):  # all values the same
      importance = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
  return {
    'objectives': list(objectives), 'space': {k: list(v) for k, v in space.items()},
    'widened': study.user_attrs.get('widened', []),
    'edges': {} if several or not complete else edges(study, space),
    'importance': dict(importance),
    'best': [t.number for t in study.best_trials] if complete else [],
    'trials': [{
      'number': t.number, 'state': t.state.name.lower(), 'params': t.params,
      'values': list(t.values or ()), 'reported': sorted(t.intermediate_values.items()),
      'flops': t.user_attrs.get('flops', 0.0), 'failed': t.user_attrs.get('failed', ''),
    } for t in trials],
  }


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m experiments.search', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True, help='recipe with a space(), configs/X.py[:args]')
  parser.add_argument('--workdir', required=True, help='folder of the study and all trials')
  parser.add_argument('--trials', type=int, required=True, help='of all processes together')
  parser.add_argument('--processes', type=int, default=1, help='trials at a time')
  parser.add_argument('--sampler', default='tpe', help=f'grid or one of {", ".join(SAMPLERS)}')
  parser.add_argument('--pruner', default='none', help=f'one of {", ".join(PRUNERS)}')
  parser.add_argument('--objectives', type=lambda s: s.split(','), default=['loss'],
                      help=f'with commas, of {", ".join(OBJECTIVES)}')
  parser.add_argument('--seed', type=int, default=0, help='of the sampler')
  parser.add_argument('--widen', type=int, default=1, help='times that ranges may be widened')
  parser.add_argument('--max_flops', type=float, default=0.0, help='of all trials; 0 = no limit')
  parser.add_argument('--max_hours', type=float, default=0.0, help='of this process; 0 = no limit')
  parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
  args, args.flags = parser.parse_known_args(argv)
  if wrong := sweep.wrong_flags(args.flags):
    parser.error(wrong)
  if unknown := set(args.objectives) - OBJECTIVES.keys():
    parser.error(f'unknown objective {min(unknown)!r}: of {", ".join(OBJECTIVES)}')
  if args.trials < 1 or args.processes < 1:
    parser.error('--trials and --processes are 1 or more')
  return args


@contextlib.contextmanager
def _helpers(count: int, argv: Sequence[str]) -> Iterator[None]:
  """Other processes that work on the same study until it is complete."""
  command = [sys.executable, '-m', 'experiments.search', *argv, '--worker']
  processes = [subprocess.Popen(command) for _ in range(count)]
  try:
    yield
  finally:
    for p in processes:
      p.wait()


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; bad input is one line and exit code 2."""
  argv = sys.argv[1:] if argv is None else list(argv)
  args = _parse(argv)
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return exit_status(lambda: _main(args, argv))


def _main(args: argparse.Namespace, argv: Sequence[str]) -> None:
  log_line = lambda line: print(line, flush=True)
  study = Study(
    pathlib.Path(args.workdir), sweep.load_attribute(args.config, 'space')(), args.trials,
    args.sampler, args.pruner, len(args.objectives), args.seed, args.max_flops, args.max_hours)
  objective = experiment(args.workdir, args.config, args.flags, args.objectives)
  if args.worker:
    study.run(objective, log_line)
    return
  while True:
    with _helpers(args.processes - 1, argv):
      done = study.run(objective, log_line)
    more = max(2, args.trials // 4)
    if len(args.objectives) > 1 or not study.widen(done, args.widen, more, log_line):
      break
  found = results(done, study.current_space(done), args.objectives)
  print(f'results: {search_page.write(found, args.workdir)}')


if __name__ == '__main__':
  sys.exit(main())
