"""A content-addressed step graph: what is done is not redone, what is half done is never taken.

A step's address is the hash of its name, its version, the config fields it reads, what it reads
from outside, and the addresses of the steps it needs. Its output stands in
`WORKDIR/steps/NAME-HASH/`; that folder exists only when the step has finished, because a step
writes into `NAME-HASH.partial`, which is renamed at its end. A killed step starts over, unless it
is `resumable`: then it finds its partial folder again. A lock keeps two processes from running the
same step; the second one waits and takes the result. The code is not hashed: a change of code that
changes results bumps `version`.

In a run of several processes (smoljax/distributed.py) the lead runs the steps, and the others join
it in those that are for all.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

RESULT_FILE = 'step.json'


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of an experiment.

  Attributes:
    run: `(output folder, {needed step: its output folder}) -> result`; the result is a small
      JSON-able dict that later steps and the summary can read.
    config: the config fields the step reads, JSON-able.
    outside: what it reads besides config and needed steps (input files, installed versions).
    cost: words about what running it takes, for `--dry_run`.
    links: name in the workdir → path in the output folder, kept pointing at the current output.
    all_processes: all processes of a run take part, not the lead alone.
  """

  name: str
  run: Callable[[str, Mapping[str, str]], Mapping[str, Any] | None]
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  needs: Sequence['Step'] = ()
  version: int = 1
  outside: Any = None
  resumable: bool = False
  cost: str = ''
  links: Mapping[str, str] = dataclasses.field(default_factory=dict)
  all_processes: bool = False

  @property
  def address(self) -> str:
    """`NAME-HASH`, eight hexadecimal digits of sha256."""
    what = [self.name, self.version, self.config, self.outside, [n.address for n in self.needs]]
    text = json.dumps(what, sort_keys=True, default=list)
    return f'{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


class Graph:
  """Runs steps in order in one workdir (a local or network file system with rename and flock).

  Args:
    log_line: gets a line of text about each step.
    is_lead: this process runs the steps; the others of a run wait, and join in some.
    wait: waits until all processes of the run have come to the point of this name.
  """

  def __init__(
    self,
    steps: Sequence[Step],
    workdir: str,
    log_line: Callable[[str], None] = print,
    *,
    is_lead: bool = True,
    wait: Callable[[str], None] = lambda what: None,
  ):
    self.steps = steps
    self._is_lead, self._wait = is_lead, wait
    self.workdir = pathlib.Path(workdir)
    self._root = self.workdir / 'steps'
    self._log_line = log_line

  def output(self, step: Step) -> pathlib.Path:
    """Where the step's finished output stands."""
    return self._root / step.address

  def done(self, step: Step) -> bool:
    """Whether the step has finished, now or in an earlier run."""
    return self.output(step).is_dir()

  def result(self, step: Step) -> dict:
    """What a finished step returned, with its `seconds`."""
    return json.loads((self.output(step) / RESULT_FILE).read_text())

  def describe(self) -> list[tuple[str, str, str]]:
    """`(address, state, cost)` of each step, for a dry run; writes nothing."""
    rows = []
    for step in self.steps:
      state = 'done' if self.done(step) else 'continue' if self._resumes(step) else 'run'
      rows.append((step.address, state, step.cost))
    return rows

  def run(self, before: Callable[[Step], None] = lambda step: None) -> None:
    """Runs what is not done; a step that raises leaves the finished ones as they are.

    `before` is called ahead of each step that is to run.
    """
    self._root.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(self.steps, start=1):
      title = f'[{number}/{len(self.steps)}] {step.name}'
      self._wait(f'{step.name}: before')
      done = self.done(step)
      self._wait(f'{step.name}: all know whether it is done')
      if done:
        self._log_line(f'{title}: done ({step.address})')
      elif self._is_lead:
        with self._lock(step):
          if not self.done(step):  # another process may have finished it while we waited
            before(step)
            self._run(step, title)
      elif step.all_processes:
        self._wait(f'{step.name}: its folder is there')
        step.run(str(self._partial(step)), self._inputs(step))
        self._wait(f'{step.name}: all have ended')
      if self._is_lead:
        self._link(step, self.output(step))
    self._wait('the end')

  def _run(self, step: Step, title: str) -> None:
    partial = self._partial(step)
    if self._resumes(step):
      self._log_line(f'{title}: continuing ({step.address})')
    else:
      self._log_line(f'{title}: {step.cost or "running"} ({step.address})')
      shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    if step.resumable:
      self._link(step, partial)  # so that a long step can be watched
    start = time.monotonic()
    try:
      if step.all_processes:
        self._wait(f'{step.name}: its folder is there')
      result = step.run(str(partial), self._inputs(step))
      if step.all_processes:
        self._wait(f'{step.name}: all have ended')
    except BaseException:
      if not step.resumable:
        shutil.rmtree(partial, ignore_errors=True)
      raise
    seconds = round(time.monotonic() - start, 2)
    record = {**(result or {}), 'seconds': seconds, 'address': step.address}
    (partial / RESULT_FILE).write_text(json.dumps(record, indent=1))
    os.replace(partial, self.output(step))
    self._log_line(f'{title}: finished in {seconds:.0f} s')

  def _inputs(self, step: Step) -> dict[str, str]:
    return {n.name: str(self.output(n)) for n in step.needs}

  def _partial(self, step: Step) -> pathlib.Path:
    return self.output(step).with_suffix('.partial')

  def _resumes(self, step: Step) -> bool:
    return step.resumable and self._partial(step).is_dir()

  def _link(self, step: Step, output: pathlib.Path) -> None:
    for name, path in step.links.items():
      link = self.workdir / name
      link.parent.mkdir(parents=True, exist_ok=True)
      target = os.path.relpath(output / path, link.parent)
      if os.path.islink(link) and os.readlink(link) == target:
        continue
      temporary = link.with_name(link.name + '.link')
      temporary.unlink(missing_ok=True)
      temporary.symlink_to(target)
      os.replace(temporary, link)

  @contextlib.contextmanager
  def _lock(self, step: Step) -> Iterator[None]:
    with open(self._root / f'{step.address}.lock', 'w') as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        self._log_line(f'{step.name}: another process runs it; waiting')
        fcntl.flock(f, fcntl.LOCK_EX)
      yield
