"""Main text in a process of its own, so that a page can cost only so much, or crash, and no more.

`extract` is html_text.extract behind a pipe. A child has a limit of CPU seconds per page (the
kernel's ITIMER_PROF, which counts its own time alone, so that a busy machine changes nothing, and
which ends it inside C code too) and of address space; a page that exceeds one, or crashes the
parser, is `Lost` with a reason, and the next page gets a new child. There are at most as many
children as processors, they are used again, and they end with the process that started them.
"""

import contextlib
import importlib
import json
import os
import queue
import resource
import select
import signal
import struct
import subprocess
import sys
import threading

CPU_SECONDS = 10           # real pages take up to 0.3 s, with trafilatura 3 s
MEMORY_BYTES = 1 << 30
IDLE_SECONDS = 60          # a child that waits and computes nothing for so long is hung
PAGES_PER_CHILD = 5_000    # then a new one, whatever memory the parsers lost track of

_LENGTH = struct.Struct('<q')
_OUT_OF_MEMORY = 9         # exit status


class Lost(Exception):
  """A page that gave no answer; the message is its reason: cpu_limit, memory, hung, crash."""


def extract(body: bytes, url: str = '', content_type: str = '', *, tier: str = 'default',
            markdown: bool = False) -> str | None:
  """html_text.extract in a bounded process. Raises Lost."""
  with _slots:
    try:
      child = _idle.get_nowait()
    except queue.Empty:
      child = Child()
    try:
      return child.call(body, url=url, content_type=content_type, tier=tier, markdown=markdown)
    finally:
      if child.pages >= PAGES_PER_CHILD or child.process.returncode is not None:
        child.close()
      else:
        _idle.put(child)


_slots = threading.BoundedSemaphore(os.cpu_count() or 1)
_idle: queue.LifoQueue['Child'] = queue.LifoQueue()
# A forked process must not write into its parent's pipes.
os.register_at_fork(after_in_child=lambda: _idle.queue.clear())


def close() -> None:
  """Ends the idle children, and waits for them (their CPU time is then this process's children's).
  """
  while not _idle.empty():
    _idle.get().close()


class Child:
  """A process that serves `MODULE.extract(body, **arguments) -> str | None`, one call at a time."""

  def __init__(self, module: str = 'data_beam.html_text', cpu_seconds: float = CPU_SECONDS,
               memory_bytes: int = MEMORY_BYTES):
    self.pages = 0
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'data_beam.bounded', module, str(cpu_seconds), str(memory_bytes)],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=1 << 20,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})

  def call(self, body: bytes, **arguments) -> str | None:
    self.pages += 1
    header = json.dumps({**arguments, 'size': len(body)}).encode() + b'\n'
    try:
      self.process.stdin.write(header)
      self.process.stdin.write(body)
      self.process.stdin.flush()
    except BrokenPipeError:
      raise Lost(self._why()) from None
    self._await_answer()
    size = self.process.stdout.read(_LENGTH.size)
    if len(size) < _LENGTH.size:
      raise Lost(self._why())
    size = _LENGTH.unpack(size)[0]
    return self.process.stdout.read(size).decode('utf-8', 'surrogatepass') if size >= 0 else None

  def _await_answer(self) -> None:
    before = -1
    while not select.select([self.process.stdout], [], [], IDLE_SECONDS)[0]:
      spent = self._cpu_ticks()
      if spent == before:
        self.close(kill=True)
        raise Lost('hung')
      before = spent

  def _cpu_ticks(self) -> int:
    try:
      with open(f'/proc/{self.process.pid}/stat') as f:
        fields = f.read().rpartition(')')[2].split()
      return int(fields[11]) + int(fields[12])
    except OSError:
      return -1

  def _why(self) -> str:
    status = self.process.wait()
    return {-signal.SIGPROF: 'cpu_limit', _OUT_OF_MEMORY: 'memory'}.get(status, 'crash')

  def close(self, kill: bool = False) -> None:
    if kill:
      self.process.kill()
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    self.process.stdout.close()
    self.process.wait()


def serve(module: str, cpu_seconds: float, memory_bytes: int) -> None:
  """The child: answers calls on stdin until it closes."""
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)    # nothing else may write between the answers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGPROF, signal.SIG_DFL)
  function = importlib.import_module(module).extract
  resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  while header := sys.stdin.buffer.readline():
    arguments = json.loads(header)
    body = sys.stdin.buffer.read(arguments.pop('size'))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
      text = function(body, **arguments)
    except MemoryError:
      os._exit(_OUT_OF_MEMORY)
    signal.setitimer(signal.ITIMER_PROF, 0)
    answer = None if text is None else text.encode('utf-8', 'surrogatepass')
    answers.write(_LENGTH.pack(-1 if answer is None else len(answer)) + (answer or b''))
    answers.flush()


if __name__ == '__main__':
  serve(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
