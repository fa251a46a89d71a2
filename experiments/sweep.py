"""Trains a config with several values of its fields: resumable, with one page that compares.

  python -m experiments.sweep --config=configs/quickstart.py --workdir=runs/rates \
    --grid optimizer.learning_rate=1e-3,3e-3 --seeds=2
  python -m experiments.sweep --config=configs/mtp.py --workdir=runs/mtp --parallel=2
  python -m experiments.sweep --config=configs/mtp.py --workdir=runs/mtp --dry_run    # the commands

--grid takes every combination of the values that its fields are given; without it the points are
those of the config file's `sweep()`. --seeds=N runs each with N seeds, for intervals. The weight of
a corpus in a stage is a field too: --grid train.stages.STAGE.CORPUS=.2,.4

A point of `sweep()` is a dict of config fields, `{'mtp.weight': 0.1}`. Further entries: `name`
names it, `group` says what it is a sample of, where that is not all fields but the seed, and
`against` which group that one is compared with, where it is not the first; `factors` names the
changes that it has, for their effects and interactions; `law` says that it is a point of a scaling
law ('fit') or one to predict with it ('predict'); `aside`, that others need it and it is
not compared. Each is an experiment of its own, a process of experiments.run in WORKDIR/points/NAME,
and all share their steps: what two points have in common (corpora, tokenizer, a teacher's cache) is
made once. '@NAME/…' in a value is a path in the point NAME, which then runs before. --config.x=… is
for all.

A process that is killed, or says nothing for --stall seconds and is killed for it, is started again
and continues from its checkpoint, --retries times. A point that diverges is run again with
--backoff times its learning rate, which the page then tells, as often; one that is refused is
reported at the end, and the others go on. The same command does what is left. Several may run at
once, on machines that share the disk: a point is leased by one of them, done for all when that one
has done it, and free again when that one dies. Where a field was changed beside training that is
not finished, --fresh begins it anew and --change lets it go on, as in experiments.run.
With several GPUs each process sees one. The commands that --dry_run prints run anywhere, on TPU VMs
too, if --workdir is on a disk that all can reach.
"""

import argparse
import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from absl import flags as absl_flags
from ml_collections import config_flags

from data_beam.command_line import Parser
from data_beam.redact import public
from experiments.engine import cli, processes
from experiments.engine.cli import exit_status, read_json, write_json
from experiments.engine.config import unknown_field
from smoljax import gpu, metrics

_REFERENCE = re.compile(r'(?:^|(?<=[=,]))@([^/,]+)')
_WEIGHT = re.compile(r'--config\.train\.stages\.([^.=]+)\.([^.=]+)=(.+)')
# Of a point that are no config fields.
_ENTRIES = ('name', 'group', 'against', 'factors', 'law', 'aside')
_LONGEST = 160  # of names, which are folders'
REFUSED = 2  # exit status of experiments.run for what another try would not mend


@dataclasses.dataclass
class Point:
  """One experiment of a sweep, and how far it is."""

  name: str
  fields: dict[str, Any]
  command: list[str]
  folder: pathlib.Path
  after: set[str]  # names of points whose files it reads
  law: str = ''  # fit | predict
  group: str = ''
  against: str = ''
  factors: tuple[str, ...] | None = None
  aside: bool = False
  state: str = 'waiting'  # waiting | running | done | failed | blocked
  tries: int = 0
  process: Any = None  # subprocess.Popen, once it was started
  gpu: str | None = None
  began: float = 0.0
  lease: IO | None = None  # an open, locked file: it is ours until this process ends or closes it
  slowed: float | None = None  # the learning rate that it came down to when it diverged
  asked: str = ''  # digest of its command, before a learning rate was lowered
  ended: Any = None  # what its folder said of its end when this sweep began
  steps: pathlib.Path | None = None  # the folder of steps that it shares; None = that of the sweep

  @property
  def shared(self) -> pathlib.Path:
    """The folder of steps that it shares with others."""
    return self.steps or self.folder.parent.parent / 'steps'

  def last_words(self) -> str:
    """The last line of its log, or how its process ended."""
    lines = (self.folder / 'log.txt').read_text('utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else f'status {self.process.returncode}'


def load_attribute(config: str, name: str) -> Any:
  """`name` of a config file, `configs/X.py[:args]`. Raises ValueError where there is none."""
  path = config.partition(':')[0]
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  if not os.path.isfile(path) or spec is None or spec.loader is None:
    raise ValueError(f'no config file {path}{cli.near_file("=" + path)}: give one such as '
                     '--config=configs/mtp.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, name):
    have = [str(p) for p in sorted(pathlib.Path('configs').glob('*.py'))
            if f'def {name}(' in p.read_text()]
    raise ValueError(f'{path} has no {name}(); these have: {", ".join(have)}'
                     + '; or give --grid FIELD=A,B' * (name == 'sweep'))
  return getattr(module, name)


def load_config(config: str, flags: Sequence[str] = ()) -> Any:
  """The ConfigDict that experiments.run would make of a config file and --config.x=… flags.

  Raises ValueError for a field that does not exist or a value of another kind.
  """
  load_attribute(config, 'get_config')  # which says what is wrong with the file
  flags = with_weights(config, flags)
  if wrong := unknown_field(flags):
    raise ValueError(wrong)
  argv, values = ['', f'--config={config}', *flags], absl_flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except (absl_flags.Error, TypeError) as e:
    raise ValueError(str(e)) from None
  return values['config'].value


def with_weights(config: str, flags: Sequence[str]) -> list[str]:
  """Flags with those of single weights, --config.train.stages.STAGE.CORPUS=W, made one of all
  stages; the other weights are those of the config.

  Raises ValueError for a stage that the config lacks, or a weight that is no number.
  """
  found = [(flag, m) for flag in flags if (m := _WEIGHT.fullmatch(flag))]
  rest = [f for f in flags if not _WEIGHT.fullmatch(f)]
  if not found:
    return rest
  stages = {s['name']: {**s, 'mixture': dict(s['mixture'])}
            for s in load_config(config, rest).train.stages}
  for flag, (stage, corpus, weight) in ((f, m.groups()) for f, m in found):
    if stage not in stages:
      raise ValueError(f'{flag}: train.stages has no stage {stage!r}: {", ".join(stages)}')
    try:
      stages[stage]['mixture'][corpus] = float(weight)
    except ValueError:
      raise ValueError(f'{flag}: a weight is a number') from None
  return [*(f for f in rest if not f.startswith('--config.train.stages=')),
          f'--config.train.stages={tuple(stages.values())!r}']


def load_points(config: str, grid: Sequence[str] = (), seeds: int = 0) -> list[dict[str, Any]]:
  """The points of a grid, or of `sweep()` in a config file, whose argument follows its colon.

  Args:
    grid: FIELD=VALUE,VALUE,…, of which every combination is a point.
    seeds: how many of each point; 0 = as it is.

  Raises ValueError where there is none, or a point is no dict of fields, or two are the same.
  """
  path, _, arg = config.partition(':')
  if grid:
    points = [dict(point) for point in itertools.product(*map(_axis, grid))]
  else:
    make = load_attribute(config, 'sweep')
    points = make(arg) if arg and inspect.signature(make).parameters else make()
  if not points or not all(isinstance(p, dict) for p in points):
    raise ValueError(f'{path}: sweep() must return a list of dicts, field → value')
  if seeds:
    points = [seeded for point in points for seeded in _with_seeds(point, seeds)]
  names = [name_of(p) for p in points]
  where = '--grid' if grid else f'{path}: sweep()'
  if twice := {n for n in names if names.count(n) > 1}:
    raise ValueError(f'{where} has {", ".join(sorted(twice))} twice')
  samples: dict[Any, str] = {}
  for point, name in zip(points, names, strict=True):
    sample = point.get('group'), str(point.get('seed', 0))
    if sample[0] and not point.get('aside') and (other := samples.setdefault(sample, name)) != name:
      raise ValueError(f'{where}: {other} and {name} are both seed {sample[1]} of the group '
                       f'{sample[0]!r}: give them seeds of their own, or groups')
  return points


def _axis(entry: str) -> list[tuple[str, Any]]:
  """'optimizer.learning_rate=1e-3,3e-3' → (field, value) of each; commas in brackets stay."""
  field, found, text = entry.removeprefix('--config.').partition('=')
  values = [v for v in re.split(r',(?![^(\[{]*[)\]}])', text) if v]
  if not found or not field or not values:
    raise ValueError(f'--grid {entry}: give FIELD=VALUE,VALUE, such as '
                     'optimizer.learning_rate=1e-3,3e-3')
  return [(field, _literal(value)) for value in values]


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _with_seeds(point: dict[str, Any], seeds: int) -> Iterator[dict[str, Any]]:
  """The point once a seed; what others read (`aside`) is made once."""
  if 'seed' in point:
    raise ValueError(f'--seeds={seeds}: the point {name_of(point)} has a seed of its own: drop '
                     '--seeds, or the field seed of the points')
  if point.get('aside'):
    yield point
    return
  for seed in range(seeds):
    named = {'name': f'{point["name"]}-{seed}', 'group': point['name']} if 'name' in point else {}
    yield point | {'seed': seed} | named


def name_of(point: dict[str, Any]) -> str:
  """The point's `name`, or its fields and values as one name that is safe as a folder's; what is
  too long for that ends with a digest of itself."""
  fields = ','.join(public(f'{k.rpartition(".")[2]}={v}') for k, v in point.items()
                    if k not in _ENTRIES)
  given = str(point.get('name', fields)) or 'unchanged'
  name = re.sub(r'[^A-Za-z0-9._,=+-]+|^[.-]', '_', given)
  if len(name) <= _LONGEST:
    return name
  return f'{name[:_LONGEST - 9]}-{hashlib.sha256(given.encode()).hexdigest()[:8]}'


def plan(
  config: str, workdir: str, flags: Sequence[str] = (), grid: Sequence[str] = (), seeds: int = 0,
) -> list[Point]:
  """The points with their commands, none started. Raises ValueError as `load_points` and
  `planned` do."""
  rows, root = load_points(config, grid, seeds), pathlib.Path(workdir) / 'points'
  return planned(rows, config, root, flags)


def planned(
  rows: Iterable[dict[str, Any]], config: str, root: pathlib.Path, flags: Sequence[str] = ()
) -> list[Point]:
  """Points of `root` of their fields. Raises ValueError for fields that there are not, or that
  flags set too, and for a reference to a point that does not come before."""
  points: list[Point] = []
  fixed = {f.partition('=')[0].removeprefix('--config.') for f in flags}
  for fields in rows:
    name = name_of(fields)
    of = {k: v for k, v in fields.items() if k in _ENTRIES and k != 'name'}
    fields = {k: v for k, v in fields.items() if k not in _ENTRIES}
    if both := fixed & fields.keys():
      raise ValueError(f'--config.{min(both)} is what the sweep varies (point {name}): drop it')
    after, values = set(), {}
    for key, value in fields.items():
      if isinstance(value, str):
        others = _REFERENCE.findall(value)
        if unknown := set(others) - {p.name for p in points}:
          raise ValueError(
            f'point {name}: {key}={value!r} names no point before it: {", ".join(sorted(unknown))}')
        after.update(others)
        value = _REFERENCE.sub(lambda match: str(root / match[1]), value)
      values[key] = value
    all_flags = with_weights(config, [*flags, *(f'--config.{k}={v}' for k, v in values.items())])
    if wrong := unknown_field(all_flags):
      raise ValueError(f'point {name}: {wrong}')
    command = [sys.executable, '-m', 'experiments.run', f'--config={config}',
               f'--workdir={root / name}', *all_flags]
    points.append(Point(name, fields, command, root / name, after, **of))
  return points


def check(points: Sequence[Point], config: str) -> None:
  """Raises ValueError for a value that its field does not take.

  Of points that need others, whose files may not be there yet, only their fields' kinds are looked
  at.
  """
  from experiments.engine.config import resolve

  for p in points:
    try:
      c = load_config(config, [f for f in p.command if f.startswith('--config.')])
      if not p.after:
        resolve(c)
    except ValueError as e:
      raise ValueError(f'point {p.name}: {e}') from None


def run(points: Sequence[Point], *, parallel: int, retries: int = 1, backoff: float = 1.0,
        stall: float = math.inf, gpus: Sequence[str] = (),
        log_line: Callable[[str], None] = print) -> bool:
  """Runs all points, at most `parallel` at a time; whether all are done.

  Each process writes its folder's log.txt. A KeyboardInterrupt ends the processes first.

  Args:
    retries: new starts of a point whose process was killed, or that diverged.
    backoff: factor on the learning rate of a point that diverged; 1 = it has failed.
    stall: seconds without a word in its files after which a process is killed.
  """
  by_name = {p.name: p for p in points}
  for p in points:
    p.asked, p.ended = hashlib.sha256('\0'.join(p.command).encode()).hexdigest()[:16], _end(p)
  among = on_one(min(parallel, len(points)), gpus)
  try:
    while any(p.state in ('waiting', 'running') for p in points):
      for p in points:
        if p.state == 'running' and p.process.poll() is not None:
          _finish(p, retries, backoff, log_line)
        elif p.state == 'running' and (silent := _silence(p)) > stall:
          log_line(f'{p.name}: killed, since it has said nothing for {silent:.0f} s')
          p.process.kill()
          p.process.wait()
      for p in points:
        if p.state != 'waiting':
          continue
        states = {by_name[a].state for a in p.after}
        if states & {'failed', 'blocked'}:
          p.state = 'blocked'
          log_line(f'{p.name}: not run, since {", ".join(sorted(p.after))} failed')
        elif (states <= {'done'} and sum(q.state == 'running' for q in points) < parallel
              and _take(p)):
          if _done_meanwhile(p):
            log_line(f'{p.name}: done by another process')
            continue
          busy = [q.gpu for q in points if q.state == 'running']
          start(p, min(gpus, key=busy.count) if gpus else None, among)
          done = sum(q.state == 'done' for q in points)
          log_line(f'{p.name}: started ({done} of {len(points)} done); {p.folder}/log.txt')
      time.sleep(0.2)
  finally:
    running = [p for p in points if p.state == 'running']
    processes.stop(*(p.process for p in running))
    for p in running:
      if p.lease:
        p.lease.close()
  return all(p.state == 'done' for p in points)


def _take(point: Point) -> bool:
  """Leases the point; False while another process has it."""
  point.lease = processes.lease(point.folder / 'lease')
  return point.lease is not None


def _end(point: Point) -> Any:
  """What a sweep wrote of the point's end, when it was done; None where none did."""
  with contextlib.suppress(OSError, ValueError):
    return read_json(point.folder / 'done.json')


def _done_meanwhile(point: Point) -> bool:
  """Whether another sweep has done the leased point since this one began, which gives the lease
  back. A learning rate that an earlier one came down to is where this one begins."""
  end = _end(point)
  if not end or end['asked'] != point.asked:
    return False
  if end['learning_rate'] and not point.tries:
    _slow_down(point, end['learning_rate'])
  if end == point.ended:  # of an earlier sweep: experiments.run looks whether it is still so
    return False
  point.state = 'done'
  if point.lease:
    point.lease.close()
  return True


def _slow_down(point: Point, rate: float) -> None:
  point.fields['optimizer.learning_rate'] = point.slowed = rate
  point.command += ['--fresh', f'--config.optimizer.learning_rate={rate}']


def _silence(point: Point) -> float:
  """Seconds since the point's process was started or last wrote one of its files."""
  files = [point.folder / n for n in ('log.txt', 'metrics.jsonl', 'events.jsonl')]
  spoken = [time.time() - f.stat().st_mtime for f in files if f.exists()]
  return min([time.monotonic() - point.began, *spoken])


def make_folder(point: Point) -> None:
  """Makes the point's workdir, with a link to the steps that it shares."""
  point.folder.mkdir(parents=True, exist_ok=True)
  steps = point.folder / 'steps'
  if not steps.is_symlink():
    point.shared.mkdir(exist_ok=True)
    steps.symlink_to(os.path.relpath(point.shared, point.folder))


def start(point: Point, gpu: str | None, among: int = 1) -> None:
  """Starts the point's process, as `on_gpu` says."""
  make_folder(point)
  with open(point.folder / 'log.txt', 'ab') as log:
    point.process = processes.start(
      point.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=on_gpu(gpu, among))
  point.gpu, point.state, point.began = gpu, 'running', time.monotonic()
  point.tries += 1


def _finish(point: Point, retries: int, backoff: float, log_line: Callable[[str], None]) -> None:
  status, seconds = point.process.returncode, time.monotonic() - point.began
  if status == 0:
    write_json(point.folder / 'done.json', {
      'asked': point.asked, 'learning_rate': point.slowed, 'time': time.time()})
  if point.lease:
    point.lease.close()
  again = point.tries <= retries
  if status == 0:
    point.state = 'done'
    log_line(f'{point.name}: done in {seconds:.0f} s')
  elif status != REFUSED and again:
    point.state = 'waiting'
    log_line(f'{point.name}: ended with status {status} after {seconds:.0f} s; it is started again')
  elif again and backoff != 1 and metrics.diverged(
      metrics.read_rows(point.folder / 'events.jsonl')):
    rate = backoff * read_json(str(point.folder / 'config.json'))['optimizer']['learning_rate']
    _slow_down(point, rate)
    point.state = 'waiting'
    log_line(f'{point.name}: diverged after {seconds:.0f} s; again at a learning rate of {rate:g}')
  else:
    point.state = 'failed'
    log_line(f'{point.name}: failed: {point.last_words()}')


def on_gpu(name: str | None, among: int = 1) -> dict[str, str]:
  """The environment of a process on one GPU, if that is named, which so many processes share."""
  return os.environ | ({'CUDA_VISIBLE_DEVICES': name, **gpu.divided(among)} if name else {})


def on_one(count: int, gpus: Sequence[str]) -> int:
  """How many of so many processes share a GPU at most."""
  return max(1, -(-count // max(1, len(gpus))))


def is_field(flag: str) -> bool:
  """Whether a flag sets a field of the config, for experiments.run."""
  return flag.startswith('--config.')


def wrong_flags(flags: Sequence[str]) -> str:
  """What is wrong with flags that go to experiments.run as they are; '' if nothing."""
  wrong = [f for f in flags if not (is_field(f) and '=' in f)]
  return (f'unknown argument {wrong[0]!r}: fields for all runs look like --config.seed=1'
          if wrong else '')


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = Parser(
    prog='python -m experiments.sweep', description=__doc__, others=is_field,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--config', required=True, help='recipe, configs/X.py[:args]')
  parser.add_argument('--grid', nargs='+', action='extend', default=[], metavar='FIELD=A,B',
                      help='values of fields; without it the recipe must have a sweep()')
  parser.add_argument('--seeds', type=int, default=0, metavar='N', help='seeds of each point')
  parser.add_argument('--workdir', required=True, help='folder for all points and the comparison')
  parser.add_argument('--parallel', type=int, default=1, help='processes at a time')
  parser.add_argument('--retries', type=int, default=1, help='new starts of a killed process')
  parser.add_argument('--backoff', type=float, default=1.0, metavar='FACTOR',
                      help='on the learning rate of a point that diverged; 1 = do not try again')
  parser.add_argument('--stall', type=float, default=math.inf, metavar='SECONDS',
                      help='kill a process that has said nothing for so long')
  unfinished = parser.add_mutually_exclusive_group()
  unfinished.add_argument('--fresh', action='store_true', help='begin training anew beside an '
                          'unfinished one that other values left in a point')
  unfinished.add_argument('--change', action='store_true',
                          help='let unfinished training go on with the values that were changed')
  parser.add_argument('--dry_run', action='store_true', help='print the commands, run nothing')
  args, args.flags = parser.parse_known_args(argv)
  if wrong := wrong_flags(args.flags):
    parser.error(wrong)
  if (args.seeds < 0 or args.parallel < 1 or args.retries < 0 or not 0 < args.backoff <= 1
      or args.stall <= 0):
    parser.error('--seeds is 0 or more, --parallel 1 or more, --retries 0 or more, --backoff above '
                 '0 and at most 1, --stall above 0')
  return args


def commands(points: Sequence[Point]) -> Iterator[str]:
  """The shell command of each point, for schedulers elsewhere."""
  for p in points:
    shared = os.path.relpath(p.shared, p.folder)
    yield (f'mkdir -p {shlex.quote(str(p.folder))} {shlex.quote(str(p.shared))} && '
           f'ln -sfn {shlex.quote(shared)} {shlex.quote(str(p.folder / "steps"))} && '
           f'{shlex.join(["python", *p.command[1:]])}')


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; bad input is one line and exit code 2."""
  args = _parse(argv)
  return exit_status(lambda: _main(args))


def _warnings(points: Sequence[Point]) -> list[str]:
  """What a page of the finished points must say beside their figures."""
  compared = [p for p in points if not p.aside]
  left = [p for p in compared if p.state in ('waiting', 'running')]
  return [
    *[f'warning: the sweep is not done: {len(left)} of {len(compared)} runs are not in here: '
      + ', '.join(p.name for p in left)] * bool(left),
    *(f'warning: {p.name} diverged, and is a run at a learning rate of {p.slowed:g} instead'
      for p in compared if p.slowed and p.state == 'done')]


def _main(args: argparse.Namespace) -> int:
  # Here, since every experiments.run has this module and not the second that these take to load.
  from smoljax.report import scaling_page, sweep_page

  points = plan(args.config, args.workdir, args.flags, args.grid, args.seeds)
  check(points, args.config)
  for p in points:
    p.command += ['--fresh'] * args.fresh + ['--change'] * args.change
  if args.dry_run:
    print(*commands(points), sep='\n')
    return 0
  os.makedirs(args.workdir, exist_ok=True)
  laws = {p.name: p.law for p in points if p.law}
  write_json(os.path.join(args.workdir, 'laws.json'), laws)
  signal.signal(signal.SIGTERM, signal.default_int_handler)  # its processes must not outlive it
  ok = False
  try:
    ok = run(points, parallel=args.parallel, retries=args.retries, backoff=args.backoff,
             stall=args.stall, gpus=gpu.visible(), log_line=lambda line: print(line, flush=True))
  finally:  # of a sweep that is stopped too: what is finished is compared
    shown = lambda fields: {k: public(v) if isinstance(v, str) else v for k, v in fields.items()}
    finished = [sweep_page.load(p.name, shown(p.fields), p.folder, p.group, p.factors,
                                p.against)
                for p in points if p.state == 'done' and not p.aside]
    if finished:
      failed = [p.name for p in points if p.state in ('failed', 'blocked') and not p.aside]
      page, verdicts = sweep_page.write(finished, args.workdir, failed, _warnings(points))
      print(*verdicts, f'comparison: {page}', sep='\n', flush=True)
  if ok and laws:
    page, _ = scaling_page.write(
      scaling_page.read(args.workdir), os.path.join(args.workdir, 'scaling'), log_line=print)
    print(f'scaling law: {page}')
  for p in points:
    if p.state != 'done':
      print(f'{p.state}: {p.name} ({p.folder}/log.txt)', file=sys.stderr)
  return 0 if ok else 1


if __name__ == '__main__':
  sys.exit(main())
