"""Signals that ask a run to end: it saves first, after a step that all its processes agree on."""

import contextlib
import itertools
import os
import signal
import sys
import threading

import jax

from smoljax import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_POLL = 1.0  # seconds
_GRACE = 2.0  # seconds, in which what a second SIGINT raises ends the process, unless it compiles
_numbers = itertools.count()


class Termination:
  """While entered, SIGNALS are noted instead of ending the process, so that a step can be saved.

  One line says so at once, and how to go on. A second SIGINT ends it without saving. A signal that
  was ignored (nohup) stays so. Of several processes any may be told: a thread of each hears of it,
  says how far its own is, and all end after the step that follows the furthest.

  Attributes:
    signal: the one that some process got; 0 = none.
  """

  def __init__(self):
    self.signal = 0
    self._several = jax.process_count() > 1
    self._key, self._lock = f'smoljax/stop/{next(_numbers)}', threading.Lock()
    self._step, self._last = 0, float('inf')
    self._closed, self._previous = threading.Event(), {}
    self._wake = self._was = -1

  def requested(self, step: int) -> bool:
    """Whether to end after this step; the same answer in all processes."""
    if not self._several:
      return bool(self.signal)
    with self._lock:
      self._step = step
      return step >= self._last

  def __enter__(self) -> 'Termination':
    if threading.current_thread() is threading.main_thread():  # else the program owns the signals
      self._previous = {number: signal.signal(number, self._note) for number in SIGNALS
                        if signal.getsignal(number) not in (signal.SIG_IGN, None)}
      read, self._wake = os.pipe()
      os.set_blocking(self._wake, False)
      self._was = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
      threading.Thread(target=self._tell, args=(read,), daemon=True, name='signals').start()
    if self._several:
      threading.Thread(target=self._agree, daemon=True, name='termination').start()
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._wake >= 0:
      signal.set_wakeup_fd(self._was)
      os.close(self._wake)
    self._closed.set()
    if self._several:  # who still asks need not wait for this process
      with contextlib.suppress(ConnectionError):
        distributed.post(f'{self._key}/{jax.process_index()}', self._step)

  def _note(self, number: int, frame: object) -> None:
    if number == signal.SIGINT and self.signal == signal.SIGINT:
      raise KeyboardInterrupt
    self.signal = number

  def _tell(self, read: int) -> None:
    """Says what a signal leads to while the main thread compiles or computes, and hears no signal.
    """
    told: list[int] = []
    while number := os.read(read, 1):
      if number[0] not in self._previous:
        continue
      told.append(number[0])
      if len(told) == 1:
        print(f'{signal.Signals(told[0]).name}: ends when this step is done and saved; the same '
              'command continues' + '; Ctrl-C again ends it now' * (told[0] == signal.SIGINT),
              file=sys.stderr, flush=True)
      elif told.count(signal.SIGINT) > 1 and not self._closed.wait(_GRACE):
        print('ended without saving; the same command continues from the last checkpoint',
              file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)
    os.close(read)

  def _agree(self) -> None:
    try:
      told = None
      while told is None and not self._closed.is_set():
        if self.signal:
          distributed.post(self._key, self.signal)
        told = distributed.read(self._key, _POLL)
      if told is None:
        return
      with self._lock:  # no step more until all have said where they are
        distributed.post(f'{self._key}/{jax.process_index()}', self._step)
        steps = [self._of(i) for i in range(jax.process_count())]
        self.signal, self._last = told, max(steps) + 1
    except ConnectionError:  # the watchdog hears of it too
      return

  def _of(self, process: int) -> int:
    while (step := distributed.read(f'{self._key}/{process}', _POLL)) is None:
      pass
    return step
