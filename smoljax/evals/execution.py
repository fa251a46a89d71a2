"""Programs that a model wrote, run and tested: confined as far as this machine can, or not at all.

`test(program, tests)` starts a process of its own for each (smoljax/evals/confine.py), in
namespaces without network, other processes or files but Python's own (`unshare`); in it the program
has no privilege, no environment, limits of memory and time, and under Landlock and seccomp can
neither write, nor connect, nor start or signal processes. It and its tests do not share a process,
so that only right answers pass. A machine that lacks one of these layers refuses to run programs
(`Refused` names it) unless it is told to with `weak=True`: do that in a container that may be lost.
"""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence

_CONFINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'confine.py')
# Read by its path: importing it as a module would load this package, and JAX.
_LOADER = ('import importlib.util as u; s = u.spec_from_file_location("confine", {!r}); '
           'm = u.module_from_spec(s); s.loader.exec_module(m); m.main()')
_NAMESPACES = ('--net', '--pid', '--mount', '--ipc', '--uts', '--fork', '--kill-child')
_OUTPUT = 1 << 16  # bytes of a program's output that are kept; then the pipe is closed
_LENGTH = struct.Struct('<Q')


class Refused(ValueError):
  """This machine cannot confine a program as it should; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one program may use."""

  memory: int = 512 << 20  # bytes of address space
  cpu_seconds: int = 10
  wall_seconds: float = 15.0


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What became of a program.

  `reason` is passed, wrong (an assertion), error, time, crash, killed or ended.
  """

  passed: bool
  reason: str
  detail: str = ''  # the error, in one line
  output: str = ''  # what it printed, at most 64 KiB
  missing: tuple[str, ...] = ()  # layers that this machine does not have


def test(
  program: str, tests: str, *, names: Sequence[str] = (), prelude: str = '',
  limits: Limits = Limits(), weak: bool = False,
) -> Verdict:
  """Whether the tests pass: statements that call the program's functions and assert.

  The tests run in a process that the program cannot reach; arguments and results are built-in
  values (numbers, text, lists, dicts, …), others equal nothing.

  Args:
    names: functions that are the program's even where a built-in has the same name.
    prelude: code that the tests need and trust, such as helpers in the prompt.
    weak: run it even where a layer is missing.
  Raises:
    Refused: a layer is missing.
  """
  return _run({'program': program, 'script': False, 'stdin': ''},
              {'code': tests, 'prelude': prelude, 'names': list(names)}, limits, weak)


def run(program: str, *, stdin: str = '', limits: Limits = Limits(), weak: bool = False) -> Verdict:
  """Runs a script; passed if it ended without an error, whatever it printed. Raises Refused."""
  return _run({'program': program, 'script': True, 'stdin': stdin},
              {'code': '', 'prelude': '', 'names': []}, limits, weak)


def require(weak: bool = False) -> None:
  """Raises Refused where programs could not be run, before a model writes any."""
  if not weak and (missing := missing_layers()):
    raise Refused(_refusal(missing))


@functools.cache
def missing_layers() -> tuple[str, ...]:
  """The layers that this machine does not have, tried once; () = all hold."""
  return _run({'program': '', 'script': True, 'stdin': ''},
              {'code': '', 'prelude': '', 'names': []}, Limits(), True).missing


def _refusal(missing):
  return (f'this machine cannot confine programs: {", ".join(missing)} missing (unshare of '
          'util-linux, user namespaces or root, Linux 5.13 with Landlock and seccomp). Programs of '
          'a model are not run here; in a container that may be lost, allow it with '
          '--unsafe_programs or --config.eval.generation.unsafe_programs')


@functools.cache
def _isolate() -> list[str]:
  """The command that gives namespaces; [] where there is none that works."""
  if not (unshare := shutil.which('unshare')):
    return []
  user = [] if os.geteuid() == 0 else ['--user', '--map-root-user']
  for command in ([unshare, *user, *_NAMESPACES], [unshare, '--user', '--map-root-user',
                                                   *_NAMESPACES]):
    if subprocess.run([*command, 'true'], capture_output=True, check=False).returncode == 0:
      return command
  return []


def _run(order, tests, limits, weak):
  isolate, token = _isolate(), secrets.token_hex(16)
  order = order | dataclasses.asdict(limits) | {
    'isolated': bool(isolate), 'weak': weak,
    'uid': (1 << 30) + 2 * secrets.randbelow(1 << 28)}  # nobody's, and no other program's
  messages = b''.join(_LENGTH.pack(len(data)) + data for data in (
    json.dumps(order).encode(), json.dumps(tests | {'token': token}).encode()))
  python = os.path.realpath(sys.executable)
  process = subprocess.Popen(
    [*isolate, python, '-I', '-S', '-c', _LOADER.format(_CONFINE)], stdin=subprocess.PIPE,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}, cwd='/', start_new_session=True)
  try:
    answer, output, late = _talk(process, messages, time.monotonic() + limits.wall_seconds)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
      pipe.close()
  shown = output.decode(errors='replace')
  if len(answer) < _LENGTH.size:
    return Verdict(False, 'time' if late else 'crash', '' if late else shown[-300:], shown)
  result = json.loads(answer[_LENGTH.size:])
  missing = tuple(result['missing'])
  if missing and not weak:
    raise Refused(_refusal(missing))
  passed = result['passed'] and result.get('token') == token
  return Verdict(passed, result['reason'], result.get('detail', ''), shown, missing)


def _talk(process, messages, deadline):
  """Writes the orders and reads the answer and the output: (answer, output, whether it was late).
  """
  stdin, stdout, stderr = (p.fileno() for p in (process.stdin, process.stdout, process.stderr))
  os.set_blocking(stdin, False)
  answer, output, reading = bytearray(), bytearray(), {stdout, stderr}
  while stdout in reading:
    left = deadline - time.monotonic()
    if left <= 0:
      return bytes(answer), bytes(output), True
    ready, writable, _ = select.select(reading, [stdin] if messages else [], [], left)
    if writable:
      try:
        messages = messages[os.write(stdin, messages):]
      except BrokenPipeError:
        messages = b''
    for pipe in ready:
      data = os.read(pipe, 1 << 16)
      kept = answer if pipe == stdout else output
      kept += data[: max(0, _OUTPUT - len(kept))]
      if not data or (pipe == stderr and len(output) >= _OUTPUT):
        reading.discard(pipe)
        if pipe == stderr and data:
          process.stderr.close()  # whoever floods it is told so
  return bytes(answer), bytes(output), False
