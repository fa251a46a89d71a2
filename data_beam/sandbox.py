"""Calls in a process of their own, so that a document can cost only so much, or crash, and no more.

`Sandbox('module:function').call(body, **arguments)` is `function(body, **arguments)` at the other
end of two pipes, in a plain Python process: no fork under a runner's threads, nothing pickled,
nothing imported again from the caller's `__main__`. It serves many calls, so that models load once.

A call has a limit of CPU seconds (the kernel's RLIMIT_CPU, which counts its own time alone, so that
a busy machine changes nothing, ends it inside C code too, and holds for programs that it starts),
of memory, and of time in which nothing is computed. Whoever exceeds one, or crashes, is `Lost` with
a reason, and the next call gets a new child. Children end with the process that started them, at
once and whatever they compute, and know nothing of its environment but what `INHERITED` names:
what breaks out of a parser finds no keys there.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import gc
import importlib
import json
import math
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

_REQUEST, _ANSWER = struct.Struct('<QQ'), struct.Struct('<Q')
_PIPE_BYTES = 1 << 20
# Of a child's environment: children are the unit of parallelism, tesseract's threads mostly wait
# for each other, and stacks and malloc's arenas would eat the address space.
ONE_THREAD = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'OMP_THREAD_LIMIT': '1',
              'MALLOC_ARENA_MAX': '2'}
# What a child has of its parent's environment: where programs, libraries, fonts and tesseract's
# models are, the language, how libraries are tuned, and proxies without a password.
INHERITED = re.compile(r'PATH|LD_LIBRARY_PATH|DYLD_\w+|LANG|LC_\w+|TZ|TMPDIR|TESSDATA_PREFIX|'
                       r'PYTHON(HOME|HASHSEED|UTF8|WARNINGS|FAULTHANDLER)|OPENBLAS_\w+|MKL_\w+|'
                       r'SSL_CERT_(FILE|DIR)|(?i:(https?|no)_proxy)')
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one call may use."""
  memory: int = 1 << 30          # bytes in memory
  cpu_seconds: float = 60.0      # of CPU; counted in whole seconds
  wall_seconds: float = 240.0    # without an answer, and without computing
  part_seconds: float = 0.0      # of CPU, anew at each `tick`; wall is in the same proportion


class Lost(Exception):
  """A call that gave no answer; `reason` is cpu_limit, memory, hung, crash, or the function's."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.detail = reason, detail


class Sandbox:
  """Children that serve one function; started when first needed, safe for threads."""

  def __init__(self, function: str, limits: Limits = Limits(), *, children: int | None = None,
               calls: int = 5_000):
    """Sets up the sandbox.

    Args:
      function: 'module:function', of bytes and arguments that JSON can hold; so must be its answer.
      limits: of a call.
      children: at the same time; as many as processors if None.
      calls: after which a child is replaced, whatever memory its libraries lost track of.
    """
    self.function, self.limits, self.calls = function, limits, calls
    self._slots = threading.BoundedSemaphore(children or os.cpu_count() or 1)
    self.idle: list[Child] = []

  def call(self, body: bytes, **arguments: Any) -> Any:
    """The function's answer. Raises Lost."""
    with self._slots:
      child = self._take() or Child(self.function, self.limits)
      try:
        return child.call(body, **arguments)
      finally:
        if child.calls >= self.calls:
          child.close()
        if child.alive:
          self.idle.append(child)

  def _take(self) -> 'Child | None':
    while self.idle:
      child = self.idle.pop()
      if child.owner != os.getpid():   # this process is a fork: the child answers its parent
        child.forget()
      elif child.process.poll() is None:
        return child
      else:
        child.close()
    return None

  def close(self) -> None:
    """Ends the idle children and waits for them: their CPU time is then this process's children's.
    """
    while self.idle:
      self.idle.pop().close()


class Child:
  """A process that answers calls of one function, one at a time."""

  def __init__(self, function: str, limits: Limits):
    self.limits, self.calls, self.owner, self.alive = limits, 0, os.getpid(), True
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    for end in (ours_in, ours_out):
      with contextlib.suppress(AttributeError, OSError):   # Linux alone has larger ones
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {name: value for name, value in os.environ.items()
                   if INHERITED.fullmatch(name) and '@' not in value}
    self.process = _starter().submit(
      subprocess.Popen,
      [sys.executable, '-P', '-c', 'from data_beam import sandbox; sandbox.serve()', function,
       json.dumps(dataclasses.asdict(limits)), str(theirs_in), str(theirs_out), str(os.getpid())],
      pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL, start_new_session=True,
      env=environment | ONE_THREAD | {
        'PYTHONPATH': os.pathsep.join(filter(None, (root, *sys.path)))}).result()
    os.close(theirs_in)
    os.close(theirs_out)
    self._reader = os.fdopen(ours_in, 'rb', 0)
    self._writer = os.fdopen(ours_out, 'wb', 0)
    try:
      self._await(limits.wall_seconds)
      self._read(_ANSWER.size)
    except (EOFError, TimeoutError) as error:
      self.close()
      module = function.partition(':')[0]
      raise RuntimeError(f'{module} does not start in a process of its own; what it says: '
                         f'python -c "import {module}"') from error

  def call(self, body: bytes, **arguments: Any) -> Any:
    """The function's answer. Raises Lost; the child may have ended then."""
    self.calls += 1
    try:
      header = json.dumps(arguments).encode()
      self._write(_REQUEST.pack(len(header), len(body)) + header)
      self._write(body)
      answer = json.loads(self._receive().decode('utf-8', 'surrogatepass'))
    except TimeoutError:
      self.close()
      raise Lost('hung', 'wall time') from None
    except (OSError, EOFError):
      raise self._epitaph() from None
    except BaseException:          # interrupted: what the child says next is stale
      self.close()
      raise
    if answer['retire']:
      self.close()
    if 'lost' in answer:
      raise Lost(answer['lost'], answer['detail'])
    return answer['answer']

  def close(self) -> None:
    """Ends it, and what it has started (tesseract may run below it)."""
    if self.alive:
      self.forget()
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGKILL)
      self.process.wait()

  def forget(self) -> None:
    """Closes the pipes, at whose end the child ends."""
    self.alive = False
    self._reader.close()
    self._writer.close()

  def _write(self, data: bytes) -> None:
    view = memoryview(data)
    while view:
      view = view[self._writer.write(view):]

  def _receive(self) -> bytes:
    patience = self.limits.wall_seconds
    while True:
      self._await(patience)
      size, = _ANSWER.unpack(self._read(_ANSWER.size))
      if size:
        return self._read(size)
      # An empty frame: the next part of the work begins.
      patience = self.limits.wall_seconds / self.limits.cpu_seconds * self.limits.part_seconds

  def _await(self, patience: float) -> None:
    """Until the child says something; TimeoutError if it has computed nothing for so long."""
    spent = None
    while not select.select([self._reader], [], [], patience / 2)[0]:
      before, spent = spent, self._cpu_ticks()
      if spent == before:
        raise TimeoutError

  def _cpu_ticks(self) -> int:
    try:
      with open(f'/proc/{self.process.pid}/stat') as f:
        fields = f.read().rpartition(')')[2].split()
      return sum(map(int, fields[11:15]))    # its own, and of what it started and waited for
    except OSError:
      return -1

  def _read(self, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
      if not (piece := self._reader.read(min(size - len(out), _PIPE_BYTES))):
        raise EOFError
      out += piece
    return bytes(out)

  def _epitaph(self) -> Lost:
    """Why it died."""
    try:
      code = self.process.wait(5)
    except subprocess.TimeoutExpired:
      code = 0
    self.close()
    if code == -signal.SIGXCPU:
      return Lost('cpu_limit', 'CPU time')
    name = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    return Lost('crash', f'the process ended with {name}')


@functools.cache
def _starter() -> concurrent.futures.ThreadPoolExecutor:
  """The thread that starts children: to the kernel it is their parent, at whose end they are
  killed, so that it must live as long as this process."""
  return concurrent.futures.ThreadPoolExecutor(1, 'sandbox')


os.register_at_fork(after_in_child=_starter.cache_clear)     # a fork has not that thread


# --- the child -----------------------------------------------------------------------------------


def die_with_parent(parent: int = 0) -> None:
  """Asks Linux to kill this process when its parent ends, and ends it if `parent` is no more."""
  with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if parent and os.getppid() != parent:
    os._exit(0)


def tick() -> None:
  """Says, in a child, that another part of a call's work begins, which may take
  `Limits.part_seconds`; elsewhere it does nothing."""
  if _on_tick:
    _on_tick()


_on_tick: Callable[[], None] | None = None


def serve() -> None:
  """The child: answers calls until the pipe closes; runs under the limits."""
  global _on_tick
  name, limits, source, sink, parent = sys.argv[1:]
  die_with_parent(int(parent))
  limits = Limits(**json.loads(limits))
  module, _, attribute = name.partition(':')
  function = getattr(importlib.import_module(module), attribute)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
  sys.dont_write_bytecode = True

  def say(seconds: float, reply: dict[str, Any] | None = None) -> None:
    """An answer, or an empty frame; for what comes next, reading included, there are `seconds`."""
    held, data = _allow(limits.memory, seconds), b''
    if reply:
      retire = held > .6 * limits.memory or reply.get('lost') == 'memory'
      data = json.dumps(reply | {'retire': retire}, ensure_ascii=False).encode(
        'utf-8', 'surrogatepass')
    writer.write(_ANSWER.pack(len(data)) + data)
    writer.flush()

  with os.fdopen(int(source), 'rb') as reader, os.fdopen(int(sink), 'wb') as writer:
    # A page is thousands of small objects, in no cycles: looking for some takes a fifth of the
    # time.
    gc.freeze()
    gc.disable()
    _on_tick = lambda: say(limits.part_seconds)
    say(limits.cpu_seconds)          # ready
    while header := reader.read(_REQUEST.size):
      lengths = _REQUEST.unpack(header)
      arguments, body = json.loads(reader.read(lengths[0])), reader.read(lengths[1])
      reply: dict[str, Any]
      try:
        reply = {'answer': function(body, **arguments)}
      except Lost as lost:
        reply = {'lost': lost.reason, 'detail': lost.detail}
      except MemoryError:
        reply = {'lost': 'memory', 'detail': ''}
      except Exception as error:     # a bug of ours or of a library: one call's loss
        reply = {'lost': 'crash', 'detail': f'{type(error).__name__}: {error}'[:200]}
      del body
      gc.collect()
      say(limits.cpu_seconds, reply)


def _allow(memory: int, seconds: float) -> int:
  """From now on: RLIMIT_CPU counts the whole life, and address space may grow as much as memory
  (libraries map a gigabyte that they do not use). Returns the bytes in memory."""
  mapped, held = _memory()
  with contextlib.suppress(ValueError, OSError):     # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (mapped + max(0, memory - held),
                                            resource.RLIM_INFINITY))
  used = resource.getrusage(resource.RUSAGE_SELF)
  soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
  resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))
  return held


def _memory() -> tuple[int, int]:
  """Bytes of address space, and of them in memory; zeros where the system does not tell."""
  try:
    with open('/proc/self/statm') as f:
      mapped, held = (int(pages) * resource.getpagesize() for pages in f.read().split()[:2])
      return mapped, held
  except OSError:
    return 0, 0
