"""Notices that a run stands still, says where, and ends it so that its launcher starts it again.

A hung read or a peer that no longer takes part leaves a process alive and waiting for ever. Here a
thread looks on. It is given each step's result and sees when it is there, so that it knows how long
steps take, however far ahead of the devices the host is. When none has ended for ten times as long
as any of the last did, and for `floor` seconds at the least, the stacks of all threads go to stderr
and to `hang-PROCESS.txt`, and the process ends with the status EXIT. It tells the other processes
of the run, which do likewise; one that dies ends the others with os.EX_TEMPFAIL.

Compiling, checkpoints and evaluations have no such measure: they may take PATIENCE times the floor.
"""

import collections
import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from smoljax import distributed

EXIT = 87
PATIENCE = 60
_FACTOR = 10
_COMPILING = 3  # steps: the state that the first one gives may be laid out anew for the next
_GRACE = 1.0  # seconds for a peer's good-bye to be one at the end of the run
_FAREWELL = 3.0  # seconds that the lead stays, so that the others hear why


class Watchdog:
  """Use as a context manager around the steps of a run.

  Args:
    floor: seconds without a step that are never too many; 0 = it does not look.
    directory: gets hang-PROCESS.txt.
    tell: gets, beside the stacks, one line that says what happened.
  """

  def __init__(self, floor: float, directory: str, tell: Callable[[str], None]):
    self._floor, self._directory, self._tell = floor, directory, tell
    self._running: collections.deque[Any] = collections.deque()  # jax.Array
    self._gaps: collections.deque[float] = collections.deque(maxlen=100)  # seconds
    self._phase, self._compiling, self._since = '', _COMPILING, time.monotonic()
    self._closed, self._ending = threading.Event(), threading.Lock()

  def __enter__(self) -> 'Watchdog':
    if self._floor:
      threading.Thread(target=self._watch, daemon=True, name='watchdog').start()
      if jax.process_count() > 1:
        threading.Thread(target=self._listen, daemon=True, name='peers').start()
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()

  def step(self, result: Any) -> None:
    """A step was dispatched, of which this is a resulting jax.Array."""
    if self._floor:
      self._running.append(result)

  def compiling(self) -> None:
    """The next steps may have to be compiled."""
    self._compiling = _COMPILING

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """What is done inside is no step."""
    self._phase, self._since = name, time.monotonic()
    yield
    self._phase, self._since = '', time.monotonic()

  @property
  def limit(self) -> float:
    """Seconds that may pass now without a step."""
    if self._phase or self._compiling:
      return PATIENCE * self._floor
    return max(self._floor, _FACTOR * max(self._gaps, default=0.0))

  def _watch(self) -> None:
    tick, before = min(1.0, self._floor / 4), time.monotonic()
    while not self._closed.wait(tick):
      now = time.monotonic()
      if now - before > tick + 5:  # this process itself was stopped for a while
        self._since += now - before
      before = now
      done = 0
      while self._running and _there(self._running[0]):
        self._running.popleft()
        done += 1
      if done:
        if not self._phase and not self._compiling:
          self._gaps.append(now - self._since)
        self._compiling = max(0, self._compiling - done)
        self._since = now
      if (still := now - self._since) > (limit := self.limit):
        what = self._phase or ('compiling or a first step' if self._compiling else 'a step')
        self._end(f'process {jax.process_index()} stands still: {what} for {still:.0f} s, '
                  f'the limit is {limit:.0f} s', EXIT, post=True)

  def _listen(self) -> None:
    reason, status = '', 0
    while not reason and not self._closed.is_set():
      try:
        reason, status = distributed.over(seconds=2.0)
      except ConnectionError as e:
        reason = str(e)
    if not self._closed.wait(_GRACE):
      self._end(f'the run is over: {reason}', status or os.EX_TEMPFAIL, post=False)

  def _end(self, reason: str, status: int, post: bool) -> None:
    with self._ending:  # the process ends while it is held
      began = time.monotonic()
      print(f'error: {reason}', file=sys.stderr, flush=True)
      faulthandler.dump_traceback(sys.stderr, all_threads=True)
      # What hangs may be the file system, or the lead.
      several = jax.process_count() > 1
      helpers = [threading.Thread(target=f, daemon=True) for f in (
        lambda: several and post and distributed.end(reason, status), lambda: self._write(reason))]
      for helper in helpers:
        helper.start()
      for helper in helpers:
        helper.join(max(0.0, began + 2 - time.monotonic()))
      if several and distributed.is_lead():
        time.sleep(max(0.0, began + _FAREWELL - time.monotonic()))
      os._exit(status)

  def _write(self, reason: str) -> None:
    with open(os.path.join(self._directory, f'hang-{jax.process_index()}.txt'), 'a') as f:
      f.write(f'{time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} {reason}\n')
      f.flush()
      faulthandler.dump_traceback(f, all_threads=True)
    self._tell(reason)


def _there(result: Any) -> bool:
  try:
    return result.is_ready()
  except RuntimeError:  # it failed, which the run finds out for itself
    return True
