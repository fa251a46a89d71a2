"""A content-addressed step graph: what is done is not redone, what is half done is never taken.

A step's address is the hash of its name, its version, the config fields that decide its result,
what it reads from outside, and the addresses of the steps it needs. Its output stands in
`WORKDIR/steps/NAME-HASH/`; that folder exists only when the step has finished, because a step
writes into `NAME-HASH.partial`, which is renamed at its end. A killed step starts over, unless it
is `resumable`: then it finds its partial folder again. A lock keeps two processes from running the
same step; the second one waits and takes the result. The code is not hashed: a change of code that
changes results bumps `version`.

Beside an unfinished resumable step, one of the same name with other fields does not begin in
silence: `Unfinished` says what differs, and the user says which is meant (`Graph.unfinished`).

What a step left is looked at before it is used. A step's record has the sha256 of its files, but
of those that have checksums of their own (`Step.fault`); where they are not as they were, it is run
again. Of what only a reader of every byte would notice, nothing is asked ahead: a step that fails
has the outputs that it read looked through, and is begun again if one was damaged.

In a run of several processes (smoljax/distributed.py) the lead runs the steps and knows which are
done, and the others join it in those that are for all.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_beam.redact import public
from experiments.engine.cli import write_json
from smoljax import files
from smoljax.checkpoints import seals
from smoljax.metrics import changes

RESULT_FILE = 'step.json'
_INPUTS_FILE = 'inputs.json'  # of a resumable step: what its address is made of


class Unfinished(ValueError):
  """A step would begin anew beside an unfinished one that differs from it in a few fields."""


class Damaged(OSError):
  """A step failed, and what it read was damaged: run again, the graph makes that anew first."""


@dataclasses.dataclass(frozen=True)
class Step:
  """One step of an experiment.

  Attributes:
    run: `(output folder, {needed step: its output folder}) -> result`; the result is a small
      JSON-able dict that later steps and the summary can read.
    config: the config fields the step reads and its result follows from, JSON-able.
    outside: what it reads besides config and needed steps (input files, installed versions).
    changeable: beginnings of names of config fields, such as 'optimizer.', that may have other
      values when an unfinished run goes on.
    stands: whether a finished output, a folder, is still what `run` would leave there.
    fault: of a step whose files have checksums of their own: `(output folder, every byte?) -> what
      is wrong with it`, '' if nothing.
    looks: whether it reads the outputs of the steps it needs, which are looked at before it runs.
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
  changeable: tuple[str, ...] = ()
  stands: Callable[[str], bool] = lambda output: True
  fault: Callable[[str, bool], str] | None = None
  looks: bool = True
  cost: str = ''
  links: Mapping[str, str] = dataclasses.field(default_factory=dict)
  all_processes: bool = False

  @property
  def address(self) -> str:
    """`NAME-HASH`, eight hexadecimal digits of sha256."""
    text = json.dumps(list(self.inputs.values()), sort_keys=True)
    return f'{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'

  @property
  def inputs(self) -> dict[str, Any]:
    """What the address is made of, as JSON has it."""
    what = {'name': self.name, 'version': self.version, 'config': self.config,
            'outside': self.outside, 'needs': [n.address for n in self.needs]}
    return json.loads(json.dumps(what, default=list))


class Graph:
  """Runs steps in order in one workdir (a local or network file system with rename and flock).

  Args:
    log_line: gets a line of text about each step.
    is_lead: this process runs the steps; the others of a run wait, and join in some.
    wait: waits until all processes of the run have come to the point of this name.
    share: `(name of a point, value) -> the lead's value`, at the same point in all processes.
    unfinished: what to do where a resumable step is to begin beside an unfinished one of its name:
      refuse; begin it, 'fresh'; or let the unfinished one go on with the fields that did 'change'.
  """

  def __init__(
    self,
    steps: Sequence[Step],
    workdir: str,
    log_line: Callable[[str], None] = print,
    *,
    is_lead: bool = True,
    wait: Callable[[str], None] = lambda what: None,
    share: Callable[[str, Any], Any] = lambda what, value: value,
    unfinished: str = 'refuse',
  ):
    self.steps = steps
    self._is_lead, self._wait, self._share = is_lead, wait, share
    self._unfinished = unfinished
    self.workdir = pathlib.Path(workdir)
    self._root = self.workdir / 'steps'
    self._log_line = log_line
    self._faults: dict[str, str] = {}  # finished step → what is wrong with its output

  def output(self, step: Step) -> pathlib.Path:
    """Where the step's finished output stands."""
    return self._root / step.address

  def done(self, step: Step) -> bool:
    """Whether the step has finished, now or in an earlier run, and its output still stands."""
    output = self.output(step)
    return (step.name not in self._faults and _read(output / RESULT_FILE) is not None
            and step.stands(str(output)))

  def result(self, step: Step) -> dict:
    """What a finished step returned, with its `seconds`."""
    return files.read_checked(self.output(step) / RESULT_FILE)

  def describe(self) -> list[tuple[str, str, str]]:
    """`(address, state, cost)` of each step, for a dry run; writes nothing."""
    rows = []
    for step in self.steps:
      state = 'done' if self.done(step) else 'continue' if self._resumes(step) else 'run'
      if state == 'run' and (other := self._other(step)):
        state += f', beside {other[0].name}'
      rows.append((step.address, state, step.cost))
    return rows

  def run(self, before: Callable[[Step], None] = lambda step: None) -> None:
    """Runs what is not done; a step that raises leaves the finished ones as they are.

    `before` is called ahead of each step that is to run.
    """
    self._root.mkdir(parents=True, exist_ok=True)
    if self._is_lead:
      self._look_for_faults()
    for number, step in enumerate(self.steps, start=1):
      title = f'[{number}/{len(self.steps)}] {step.name}'
      # What one host sees of a file system another may see later: the lead's word counts.
      done = self._share(f'{step.name}: done', self._is_lead and self.done(step))
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
    self._set_aside(step, title)
    if step.resumable and not self._resumes(step):
      self._settle(step, title)
    if self._resumes(step):
      self._log_line(f'{title}: continuing ({step.address})')
    else:
      self._log_line(f'{title}: {step.cost or "running"} ({step.address})')
      shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    if step.resumable:
      write_json(partial / _INPUTS_FILE, public(step.inputs))
      self._link(step, partial)  # so that a long step can be watched
    start = time.monotonic()
    try:
      if step.all_processes:
        self._wait(f'{step.name}: its folder is there')
      result = step.run(str(partial), self._inputs(step))
      if step.all_processes:
        self._wait(f'{step.name}: all have ended')
    except BaseException as e:
      if not step.resumable:
        shutil.rmtree(partial, ignore_errors=True)
      if isinstance(e, Exception) and (found := self._look_through(step.needs)):
        raise Damaged(f'{found}, and {step.name} failed: it is made again ({e})') from e
      raise
    seconds = round(time.monotonic() - start, 2)
    record = {**(result or {}), 'seconds': seconds, 'address': step.address}
    if not step.fault:
      record['files'] = _digests(partial)
    files.write_checked(partial / RESULT_FILE, public(record))
    self._faults.pop(step.name, None)
    files.replace(partial, self.output(step))
    self._log_line(f'{title}: finished in {seconds:.0f} s')

  def _set_aside(self, step: Step, title: str) -> None:
    """Makes way where an output is there but not done: its result is damaged, or it lost its use.

    A resumable step goes on from what it left, which writes the result again.
    """
    output = self.output(step)
    if not output.exists():
      return
    fault = self._faults.get(step.name, '')
    if not fault and _read(output / RESULT_FILE) is None:
      fault = f'{output / RESULT_FILE} is damaged or missing'
    if fault:
      self._log_line(f'{title}: {fault}: running the step again')
    if step.resumable and not self._resumes(step):
      (output / RESULT_FILE).unlink(missing_ok=True)
      os.replace(output, self._partial(step))
    else:
      shutil.rmtree(output)

  def _look_for_faults(self) -> None:
    """Notes what finished steps left that is no more as it was, as far as anybody reads it."""
    to_run: list[Step] = []
    for step in reversed(self.steps):
      if self.done(step):
        needed = any(step.address == n.address for other in to_run if other.looks
                     for n in other.needs)
        if not (fault := self._fault(step, needed)):
          continue
        self._faults[step.name] = fault
      to_run.append(step)

  def _fault(self, step: Step, needed: bool) -> str:
    output = self.output(step)
    if step.fault:
      return step.fault(str(output), False) if needed else ''
    was = self.result(step).get('files')
    if was is None:  # of an older version
      return ''
    now = _digests(output)
    if not now:  # somebody made room on the disk
      return ''
    return next((f'{output / name} is {"damaged" if name in now else "missing"}'
                 for name, digest in was.items() if now.get(name) != digest), '')

  def _look_through(self, steps: Sequence[Step]) -> str:
    """Says which outputs are damaged, by every byte, and takes their records from them."""
    found = []
    for step in steps:
      if step.fault and (fault := step.fault(str(self.output(step)), True)):
        self._faults[step.name] = fault
        (self.output(step) / RESULT_FILE).unlink(missing_ok=True)
        found.append(fault)
    return '; '.join(found)

  def _other(self, step: Step) -> tuple[pathlib.Path, dict[str, tuple]] | None:
    """The unfinished output that the workdir's links lead to, if it is another step of this name's.

    (Workdirs may share their steps, as those of a sweep do, and each has links of its own.)

    Returns:
      `(folder, differences)`, field → (value there, value here); 'inputs' stands for what is no
      field of the config.
    """
    links = [self.workdir / name for name in step.links] if step.resumable else []
    led = [(link.parent / os.readlink(link)) for link in links if os.path.islink(link)]
    folders = {pathlib.Path(os.path.normpath(path)).parent for path in led}
    folder = next((self._root / f.name for f in folders if re.fullmatch(
      f'{re.escape(step.name)}-[0-9a-f]{{8}}\\.partial', f.name)), None)
    if not folder or folder == self._partial(step):
      return None
    before, now = _read(folder / _INPUTS_FILE), public(step.inputs)
    if not before or os.listdir(folder) == [_INPUTS_FILE]:  # nothing was made, nothing is lost
      return None
    differ = changes(before['config'], now['config'])
    if changed := [k for k in ('version', 'outside', 'needs') if before[k] != now[k]]:
      differ['inputs'] = [before[k] for k in changed], [now[k] for k in changed]
    return folder, differ

  def _settle(self, step: Step, title: str) -> None:
    """Follows `unfinished` where the step would begin beside an unfinished one."""
    other = self._other(step)
    if not other or self._unfinished == 'fresh':
      return
    folder, differ = other
    fixed = [k for k in differ if not k.startswith(tuple(step.changeable))]
    if self._unfinished == 'change' and not fixed:
      os.replace(folder, self._partial(step))
      self._log_line(f'{title}: {folder.name} goes on with {_said(differ)}')
      return
    ways = 'set the old values to go on'
    if not fixed:
      ways += ', --change to go on with the new ones'
    elif self._unfinished == 'change':
      ways += f'; --change cannot be for {", ".join(fixed)}'
    raise Unfinished(
      f'{folder} is unfinished and differs in {_said(differ)}: {ways}, or --fresh to begin anew '
      'beside it')

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
        self._log_line(f'{step.name}: another process runs it; waiting for what it makes')
        fcntl.flock(f, fcntl.LOCK_EX)
      yield


def _said(differ: Mapping[str, tuple], most: int = 4) -> str:
  """Differences in words, the first few of them."""
  said = ['what it reads besides the config (corpora, tokenizer, other weights, versions)'
          if k == 'inputs' else f'{k} ({there!r} there, {here!r} here)'
          for k, (there, here) in differ.items()]
  return ', '.join(said[:most]) + f' and {len(said) - most} more' * (len(said) > most)


def _digests(folder: pathlib.Path) -> dict[str, list]:
  """Of the files that a step left: bytes, sha256."""
  return {k: v for k, v in seals.digests(folder).items() if k not in (RESULT_FILE, _INPUTS_FILE)}


def _read(path: pathlib.Path) -> dict | None:
  """The mapping in a JSON file; None where there is none, or it is damaged."""
  try:
    return files.read_checked(path)
  except (OSError, ValueError):
    return None

