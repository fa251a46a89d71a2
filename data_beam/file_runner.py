"""A Beam runner whose shuffles are files: memory stays flat, and what is done stays done.

  python -m data_beam.web --input='crawl/*.warc.gz' --output=corpora --runner=files

Beam's in-process runner holds every shuffle in memory, on one core, and a job that is killed starts
again. Here a pipeline is cut at its groupings into stages, a stage into tasks, one for each part of
its input. A task pushes its elements through all transforms up to the next groupings and writes
what arrives there into one file, which gets its name when it is whole. So a job that is run again
does the missing tasks only (the same files, options and code, else it begins anew), several
processes work side by side, and one holds a task's share. A worker that dies is replaced. With
`--dask_scheduler=HOST:PORT` the tasks run on Dask's workers, which must see the same folder.

It knows what our pipelines are made of: Create, ParDo with tagged outputs and side inputs, Flatten,
GroupByKey, Reshuffle, and what is made of these, in the global window. Anything else is refused.
Values of one key are a list in memory.
"""

import collections
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import apache_beam as beam
import xxhash
from apache_beam import coders, pvalue
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.common import DoFnRunner, Receiver
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState
from apache_beam.transforms.sideinputs import SideInputMap
from apache_beam.transforms.window import GlobalWindows

BUCKETS = 256           # of a shuffle: a task takes one, or several small ones
TASK_BYTES = 16 << 20   # of a task's grouped input, where buckets are smaller
FLUSH_BYTES = 16 << 20  # that a task holds before it writes
TRIES = 3               # of a task whose worker died

NAME = 'data_beam.file_runner.FileRunner'

log = logging.getLogger('data_beam')
_coder = coders.FastPrimitivesCoder()


class FileOptions(PipelineOptions):
  """Flags of the runner."""

  @classmethod
  def _add_argparse_args(cls, parser):
    parser.add_argument('--work_dir', default='', help='Where shuffles lie; by default beside the '
                        'corpus, and deleted when it is finished.')
    parser.add_argument('--work_processes', type=int, default=0,
                        help='Processes that work at once; by default one a core.')
    parser.add_argument('--dask_scheduler', default='',
                        help='Address of a Dask scheduler whose workers see --work_dir.')


# --- the plan ------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Step:
  """A transform: `kind` is impulse, pardo, flatten, or a sink: group, spread, keep."""

  kind: str
  label: str
  inputs: list[int]                     # numbers of PCollections
  outputs: dict[str | None, int]
  work: Any = None                      # of a pardo: (DoFn, args, kwargs)
  tags: tuple[str | None, ...] = ()     # of all its outputs, those that nobody takes too
  sides: list[tuple[Any, dict, int]] = dataclasses.field(default_factory=list)


class _Planner(PipelineVisitor):
  """Takes a pipeline apart into steps, in an order in which each follows what it takes."""

  def __init__(self):
    self.steps: list[_Step] = []
    self.numbers: dict[Any, int] = {}
    self.kept: dict[int, int] = {}      # PCollections that are side inputs → their step
    self.inside: Any = None             # a composite whose parts do not matter

  def number(self, pcollection: Any) -> int:
    return self.numbers.setdefault(pcollection, len(self.numbers))

  def add(self, kind: str, node: Any, **more: Any) -> None:
    self.steps.append(_Step(
      kind, node.full_label,
      [self.number(p) for p in node.inputs if not isinstance(p, pvalue.PBegin)],
      {tag: self.number(p) for tag, p in node.outputs.items()}, **more))

  def enter_composite_transform(self, transform_node: Any) -> None:
    if self.inside is None and isinstance(transform_node.transform, beam.Reshuffle):
      self.inside = transform_node
      self.add('spread', transform_node)

  def leave_composite_transform(self, transform_node: Any) -> None:
    if self.inside is transform_node:
      self.inside = None

  def visit_transform(self, transform_node: Any) -> None:
    transform = transform_node.transform
    if self.inside is not None or transform is None:
      return
    if isinstance(transform, beam.Impulse):
      self.add('impulse', transform_node)
    elif isinstance(transform, beam.Flatten):
      self.add('flatten', transform_node)
    elif isinstance(transform, beam.GroupByKey):
      self.add('group', transform_node)
    elif type(transform) is beam.ParDo:
      args, kwargs = transform.raw_side_inputs
      sides = []
      for side in transform_node.side_inputs:
        pcollection = self.number(side.pvalue)
        if pcollection not in self.kept:
          self.kept[pcollection] = len(self.steps)
          self.steps.append(_Step('keep', f'{transform_node.full_label}/side', [pcollection], {}))
        options = {k: v for k, v in side._view_options().items() if k != 'window_mapping_fn'}
        sides.append((type(side), options, self.kept[pcollection]))
      self.add('pardo', transform_node, work=(transform.fn, list(args), kwargs), sides=sides,
               tags=(None, *getattr(transform, 'output_tags', ())))
    else:
      raise NotImplementedError(
        f'{transform_node.full_label}: {type(transform).__name__} is nothing that --runner=files '
        'can do: leave the flag out')


class _Plan:
  """Steps, who takes what, and which steps are begun at: a stage each, in order."""

  def __init__(self, steps: list[_Step]):
    self.steps = steps
    self.takers: dict[int, list[int]] = collections.defaultdict(list)
    for i, step in enumerate(steps):
      for pcollection in dict.fromkeys(step.inputs):
        self.takers[pcollection].append(i)
    begun = [i for i, s in enumerate(steps) if s.kind in ('impulse', 'group', 'spread')]
    self.reached = {i: self._reach(i) for i in begun}
    self.feeders: dict[int, list[int]] = collections.defaultdict(list)  # of a sink, its stages
    for i in begun:
      for j in self.reached[i]:
        if steps[j].kind in ('group', 'spread', 'keep'):
          self.feeders[j].append(i)
    self.stages: list[int] = []
    waiting = list(begun)
    while waiting:
      ready = [i for i in waiting if all(f in self.stages for f in self._needs(i))]
      if not ready:
        raise NotImplementedError('a side input of what it is made from')
      self.stages += ready
      waiting = [i for i in waiting if i not in ready]

  def _reach(self, begin: int) -> list[int]:
    """Steps that elements of a stage come to, in the order of the steps."""
    found, front = set(), [begin]
    while front:
      for pcollection in self.steps[front.pop()].outputs.values():
        for taker in self.takers[pcollection]:
          if taker not in found:
            found.add(taker)
            if self.steps[taker].kind in ('pardo', 'flatten'):
              front.append(taker)
    return sorted(found)

  def _needs(self, begin: int) -> set[int]:
    sides = {kept for i in self.reached[begin] for *_, kept in self.steps[i].sides}
    sinks = sides | ({begin} if self.steps[begin].kind != 'impulse' else set())
    return {feeder for sink in sinks for feeder in self.feeders[sink]}


# --- files of a task -----------------------------------------------------------------------------


class _Output:
  """What a task writes: encoded elements by (sink, bucket), and behind them where each run is."""

  def __init__(self, path: str):
    self.path = path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    self.file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (close renames it)
      dir=os.path.dirname(path), prefix='.part-', delete=False)
    self.pending: dict[tuple[int, int], list[bytes]] = {}
    self.held = 0
    self.index: dict[str, list[tuple[int, int]]] = {}

  def add(self, sink: int, bucket: int, value: Any) -> None:
    data = _coder.encode(value)
    run = self.pending.setdefault((sink, bucket), [])
    run += (len(data).to_bytes(8, 'big'), data)
    self.held += len(data) + 8
    if self.held > FLUSH_BYTES:
      self._flush()

  def _flush(self) -> None:
    for (sink, bucket), pieces in self.pending.items():
      data = b''.join(pieces)
      self.index.setdefault(f'{sink}.{bucket}', []).append((self.file.tell(), len(data)))
      self.file.write(data)
    self.pending, self.held = {}, 0

  def close(self) -> None:
    """The file gets its name: the task is done."""
    self._flush()
    index = json.dumps(self.index).encode()
    self.file.write(index + len(index).to_bytes(8, 'big'))
    self.file.flush()
    os.fsync(self.file.fileno())
    self.file.close()
    os.replace(self.file.name, self.path)

  def drop(self) -> None:
    """Nothing is left of it."""
    self.file.close()
    with contextlib.suppress(FileNotFoundError):
      os.remove(self.file.name)


@functools.lru_cache(1 << 12)
def _index(path: str) -> dict[str, list[tuple[int, int]]]:
  with open(path, 'rb') as f:
    f.seek(-8, os.SEEK_END)
    size = int.from_bytes(f.read(8), 'big')
    f.seek(-8 - size, os.SEEK_END)
    return json.loads(f.read(size))


def _files(folder: str, stage: int) -> list[str]:
  """Files of a stage's tasks, in order."""
  place = os.path.join(folder, f'{stage:04d}')
  names = os.listdir(place) if os.path.isdir(place) else []
  return [os.path.join(place, name) for name in sorted(names) if not name.startswith('.')]


def _read(path: str, sink: int, bucket: int) -> Iterator[Any]:
  """What a task left for one bucket of a sink."""
  runs = _index(path).get(f'{sink}.{bucket}', ())
  if not runs:
    return
  with open(path, 'rb') as f:
    for offset, size in runs:
      f.seek(offset)
      data, at = f.read(size), 0
      while at < size:
        length = int.from_bytes(data[at:at + 8], 'big')
        yield _coder.decode(data[at + 8:at + 8 + length])
        at += 8 + length


# --- a task, in a worker -------------------------------------------------------------------------


class _Into(Receiver):
  """Hands what a transform gives to all that take it."""

  def __init__(self, takers: list[Callable[[Any], None]]):
    self.takers = takers

  def receive(self, windowed_value: Any) -> None:
    for take in self.takers:
      take(windowed_value)


@functools.lru_cache(2)
def _load(folder: str) -> _Plan:
  with open(os.path.join(folder, 'plan'), 'rb') as f:
    return pickler.loads(f.read())


def run_task(folder: str, stage: int, path: str, buckets: Sequence[int]) -> str:
  """Does one task of the plan in `folder`: the `buckets` of a stage's input. Returns `path`, the
  file that it left."""
  plan = _load(folder)
  output = _Output(path)
  try:
    _push(plan, folder, stage, buckets, output)
    output.close()
  except BaseException:
    output.drop()
    raise
  return path


def _push(
  plan: _Plan, folder: str, stage: int, buckets: Sequence[int], output: _Output,
) -> None:
  takers: dict[int, list[Callable[[Any], None]]] = collections.defaultdict(list)
  runners: list[DoFnRunner] = []
  for i in reversed(plan.reached[stage]):      # who takes before who gives
    step = plan.steps[i]
    if step.kind == 'pardo':
      take = _runner(plan, folder, step, takers, runners)
    elif step.kind == 'flatten':
      take = _Into(takers[step.outputs[None]]).receive
    else:
      take = _sink(i, step.kind, output, buckets[0])
    for pcollection in dict.fromkeys(step.inputs):
      takers[pcollection].insert(0, take)
  runners.reverse()
  for runner in runners:
    runner.setup()
  try:
    for runner in runners:
      runner.start()
    into = _Into(takers[plan.steps[stage].outputs[None]])
    for element in _elements(plan, folder, stage, buckets):
      into.receive(GlobalWindows.windowed_value(element))
    for runner in runners:
      runner.finish()
  finally:
    for runner in runners:
      runner.teardown()


def _runner(
  plan: _Plan, folder: str, step: _Step, takers: dict[int, list], runners: list[DoFnRunner],
) -> Callable[[Any], None]:
  fn, args, kwargs = step.work
  sides = [
    SideInputMap(view, options, [
      GlobalWindows.windowed_value(value) for feeder in plan.feeders[kept]
      for path in _files(folder, feeder) for value in _read(path, kept, 0)])
    for view, options, kept in step.sides]
  receivers = {tag: _Into([]) for tag in step.tags} | {
    tag: _Into(takers[p]) for tag, p in step.outputs.items()}
  runner = DoFnRunner(fn, args, kwargs, sides, beam.Windowing(GlobalWindows()), receivers,
                      step.label)
  runners.append(runner)
  return runner.process


def _sink(number: int, kind: str, output: _Output, first: int) -> Callable[[Any], None]:
  count = first

  def keep(windowed_value: Any) -> None:
    output.add(number, 0, windowed_value.value)

  def spread(windowed_value: Any) -> None:
    nonlocal count
    output.add(number, count % BUCKETS, windowed_value.value)
    count += 1

  def group(windowed_value: Any) -> None:
    key, value = windowed_value.value
    encoded = _coder.encode(key)
    output.add(number, xxhash.xxh3_64_intdigest(encoded) % BUCKETS, (encoded, value))

  return {'keep': keep, 'spread': spread, 'group': group}[kind]


def _elements(plan: _Plan, folder: str, stage: int, buckets: Sequence[int]) -> Iterator[Any]:
  kind = plan.steps[stage].kind
  if kind == 'impulse':
    yield b''
    return
  files = [path for feeder in plan.feeders[stage] for path in _files(folder, feeder)]
  for bucket in buckets:
    elements = (value for path in files for value in _read(path, stage, bucket))
    if kind == 'spread':
      yield from elements
      continue
    groups: dict[bytes, list[Any]] = {}
    for key, value in elements:
      groups.setdefault(key, []).append(value)
    while groups:
      key = next(iter(groups))
      yield _coder.decode(key), groups.pop(key)


# --- the run -------------------------------------------------------------------------------------


class FileRunner(PipelineRunner):
  """See above. Beam makes one of `--runner=data_beam.file_runner.FileRunner`, for which
  beam_options takes `files`."""

  def is_fnapi_compatible(self) -> bool:
    """Pipelines come as they are."""
    return False

  def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
    """Runs all of it. Raises what a transform raises, NotImplementedError for what it cannot do."""
    own = options.view_as(FileOptions)
    planner = _Planner()
    pipeline.visit(planner)
    plan = _Plan(planner.steps)
    folder = _kept.get()
    for needed in filter(None, (folder, own.work_dir)):
      os.makedirs(needed, exist_ok=True)
    lost = '' if folder else tempfile.mkdtemp(prefix='data_beam-', dir=own.work_dir or None)
    folder = folder or lost
    try:
      with open(os.path.join(folder, 'plan'), 'wb') as f:
        f.write(pickler.dumps(plan))
      _load.cache_clear()
      _index.cache_clear()
      with _workers(own) as work:
        for stage in plan.stages:
          _run_stage(plan, folder, stage, work)
    finally:
      if lost:
        shutil.rmtree(lost, ignore_errors=True)
    return _Done(PipelineState.DONE)


@contextlib.contextmanager
def kept(options: PipelineOptions, folder: str, identity: Any) -> Iterator[None]:
  """Within it a job with `--runner=files` keeps what it has done, until it has succeeded.

  Args:
    options: of the job.
    folder: where, unless `--work_dir` says another. On no local disk, nothing is kept.
    identity: JSON-able; another job, whose tasks would differ, has another.
  """
  own = options.view_as(FileOptions)
  base = own.work_dir or folder
  if not is_used(options) or '://' in base:
    yield
    return
  name = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
  if os.path.isdir(folder):     # of a job with other options, which nobody will end
    for other in os.listdir(folder):
      if other != name:
        shutil.rmtree(os.path.join(folder, other), ignore_errors=True)
  token = _kept.set(os.path.join(base, name))
  try:
    yield
  finally:
    _kept.reset(token)
  shutil.rmtree(os.path.join(base, name), ignore_errors=True)
  with contextlib.suppress(OSError):
    os.rmdir(base)


_kept: contextvars.ContextVar[str] = contextvars.ContextVar('kept', default='')


def is_used(options: PipelineOptions) -> bool:
  """Whether a job with these options runs here."""
  return options.view_as(StandardOptions).runner == NAME


class _Done(PipelineResult):
  def wait_until_finish(self, duration: Any = None) -> str:
    """It is."""
    return self.state


def _run_stage(plan: _Plan, folder: str, stage: int, work: Callable[[list], None]) -> None:
  place = os.path.join(folder, f'{stage:04d}')
  tasks = [(folder, stage, os.path.join(place, f'{buckets[0]:04d}'), buckets)
           for buckets in _tasks(plan, folder, stage)]
  todo = [task for task in tasks if not os.path.exists(task[2])]
  if len(todo) < len(tasks):
    log.info('%s: %d of %d tasks are done already', plan.steps[stage].label,
             len(tasks) - len(todo), len(tasks))
  work(todo)


def _tasks(plan: _Plan, folder: str, stage: int) -> list[list[int]]:
  """Buckets of each task. Small groups go together, but not what Reshuffle keeps apart."""
  kind = plan.steps[stage].kind
  if kind == 'impulse':
    return [[0]]
  sizes = [0] * BUCKETS
  for feeder in plan.feeders[stage]:
    for path in _files(folder, feeder):
      for name, runs in _index(path).items():
        sink, _, bucket = name.partition('.')
        if int(sink) == stage:
          sizes[int(bucket)] += sum(size for _, size in runs)
  tasks: list[list[int]] = []
  total = 0
  for bucket, size in enumerate(sizes):
    if not size:
      continue
    if kind == 'spread' or not tasks or total + size > TASK_BYTES:
      tasks.append([])
      total = 0
    tasks[-1].append(bucket)
    total += size
  return tasks


@contextlib.contextmanager
def _workers(own: FileOptions) -> Iterator[Callable[[list], None]]:
  """What does a list of tasks and returns when all are done."""
  if own.dask_scheduler:
    from distributed import Client, as_completed

    with Client(own.dask_scheduler) as client:
      def on_dask(tasks: list) -> None:
        futures = [client.submit(run_task, *task, pure=False, retries=TRIES) for task in tasks]
        for future in as_completed(futures):
          future.result()

      yield on_dask
    return
  processes = own.work_processes or os.cpu_count() or 1
  if processes == 1:
    yield lambda tasks: [run_task(*task) for task in tasks] and None
    return
  pool = _Pool(processes)
  try:
    yield pool.run
  finally:
    pool.close()


class _Pool:
  """Processes, made anew where one was killed."""

  def __init__(self, processes: int):
    self.processes, self.pool = processes, None

  def run(self, tasks: Iterable[tuple]) -> None:
    """Does all tasks. Raises what one raises."""
    left, deaths = list(tasks), 0
    while left:
      if self.pool is None:
        self.pool = concurrent.futures.ProcessPoolExecutor(
          self.processes, multiprocessing.get_context('spawn'), _end_with, (os.getpid(),))
      with _scripts_stay_out():
        futures = [self.pool.submit(run_task, *task) for task in left]
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
        return
      except BrokenProcessPool:
        self.close()
        still = [task for task in left if not os.path.exists(task[2])]
        deaths = deaths + 1 if len(still) == len(left) else 0
        if deaths == TRIES:
          raise
        log.warning('a worker died; %d tasks are left', len(still))
        left = still
      except BaseException:
        for future in futures:
          future.cancel()
        raise

  def close(self) -> None:
    """Ends the processes."""
    if self.pool is not None:
      self.pool.shutdown(wait=True, cancel_futures=True)
      self.pool = None


@contextlib.contextmanager
def _scripts_stay_out() -> Iterator[None]:
  """Within it new processes do not run a script that is `__main__` (they would begin the job once
  more); one that `python -m` runs is imported, since elements may be of its classes."""
  main = sys.modules['__main__']
  file = None if getattr(main, '__spec__', None) else vars(main).pop('__file__', None)
  try:
    yield
  finally:
    if file is not None:
      main.__file__ = file


def _end_with(parent: int) -> None:
  """In a worker: it ends when the process that made it is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
