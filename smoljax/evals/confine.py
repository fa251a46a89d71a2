"""The process in which a program runs that nobody has read: confined, then run, then tested.

Of the standard library alone, and read by its path: `execution.py` starts it as `python -I -S`, in
namespaces of its own, with an empty environment. It takes away what it can do (`LAYERS`), forks,
and the two halves share nothing but two pipes: one runs the program, the other holds the tests,
calls the program's functions over the pipe, and compares what comes back as plain data. So a
program can neither read the tests, nor end them early, nor return an object that equals
everything: all that it can do is answer.
"""

import builtins
import collections
import contextlib
import ctypes
import io
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

LAYERS = ('namespaces', 'files', 'user', 'limits', 'landlock', 'seccomp')
_LENGTH = struct.Struct('<Q')
_MOST = 1 << 24  # bytes of one answer
_ITEMS = 100_000  # taken from an iterator
_ROOT = '/sys'  # where the small tree of files is mounted; every Linux has it, none needs it
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
  """Reads what to run from stdin, says on stdout what came of it."""
  order = json.loads(_receive(0))
  applied = set()
  signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
  signal.alarm(int(order['wall_seconds']) + 5)  # should nobody be left who waits
  own = order['uid'] if os.geteuid() == 0 and _maps(order['uid'] + 1) else -2
  if order['isolated']:
    applied.add('namespaces')
    with contextlib.suppress(OSError):
      _small_root()
      applied.add('files')
  readable = [path for path in _needed() if os.path.exists(path)]
  to_child, to_tests = os.pipe(), os.pipe()
  # Each half says which layers hold it before anything runs.
  if (child := os.fork()) == 0:
    os.close(0)
    os.open('/dev/null', os.O_RDONLY)
    os.dup2(2, 1)  # what it prints
    os.close(to_child[1])
    os.close(to_tests[0])
    held = _confine(order, readable, own + 1)
    _send(to_tests[1], {'held': sorted(held)})
    with contextlib.suppress(EOFError, OSError):
      if json.loads(_receive(to_child[0])):
        _serve(order, to_child[0], to_tests[1])
    os._exit(0)
  os.close(2)
  os.open('/dev/null', os.O_WRONLY)
  os.close(to_child[0])
  os.close(to_tests[1])
  held = _confine(order, readable, own) & set(json.loads(_receive(to_tests[0]))['held'])
  missing = [layer for layer in LAYERS if layer not in applied | held]
  go = not missing or order['weak']
  _send(to_child[1], go)
  result = {'missing': missing, 'passed': False, 'reason': 'refused'}
  if go:
    result |= _test(json.loads(_receive(0)), to_tests[0], to_child[1], child)
  _send(1, result)
  os._exit(0)


# ---------------------------------------------------------------------------------- what is tested


def _test(tests, source, sink, child):
  """Runs the tests against the program behind the pipes."""
  def ask(*request):
    _send(sink, request)
    kind, value = json.loads(_receive(source))
    if kind == 'raised':
      name, text = value
      error = getattr(builtins, str(name), None)
      known = isinstance(error, type) and issubclass(error, Exception)
      raise error(str(text)) if known else RuntimeError(f'{name}: {text}')
    return unpack(value)

  try:
    names = ask('load')
    space: dict[str, Any] = {'__name__': 'tests', '__builtins__': builtins}
    exec(compile(tests['prelude'], '<prelude>', 'exec'), space)
    for name in names:
      if name in tests['names'] or not (name in space or hasattr(builtins, name)):
        space[name] = _remote(ask, name)
    exec(compile(tests['code'], '<tests>', 'exec'), space)
  except (EOFError, BrokenPipeError):
    return {'passed': False, 'reason': _death(child)}
  except BaseException as e:
    reason = 'wrong' if isinstance(e, AssertionError) else 'error'
    text = ''.join(traceback.format_exception_only(e)).strip()
    return {'passed': False, 'reason': reason, 'detail': text[:500]}
  return {'passed': True, 'reason': 'passed', 'token': tests['token']}


def _remote(ask, name):
  return lambda *args, **kwargs: ask('call', name, pack(args), pack(kwargs))


def _death(child):
  with contextlib.suppress(ChildProcessError):
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
      ended = {int(signal.SIGXCPU): 'time', int(signal.SIGKILL): 'killed'}
      return ended.get(os.WTERMSIG(status), 'crash')
  return 'ended'


# ----------------------------------------------------------------------------- the program's side


def _serve(order, source, sink):
  """Runs the program, then its functions as they are asked for."""
  space: dict[str, Any] = {'__name__': '__main__' if order['script'] else 'program'}
  sys.stdin, sys.stdout = io.StringIO(order['stdin']), io.TextIOWrapper(
    io.FileIO(1, 'w', closefd=False), write_through=True)
  while True:
    request = json.loads(_receive(source))
    try:
      if request[0] == 'load':
        try:
          exec(compile(order['program'], '<program>', 'exec'), space)
        except SystemExit as e:
          if not order['script'] or e.code:
            raise
        reply = pack([str(name) for name, value in space.items() if callable(value)])
      else:
        _, name, args, kwargs = request
        reply = pack(space[name](*unpack(args), **unpack(kwargs)))
      answer = ['value', reply]
    except BaseException as e:
      answer = ['raised', [type(e).__name__, str(e)[:300]]]
    _send(sink, answer)


# -------------------------------------------------------------------------------------- plain data

_SEQUENCES: dict[str, type] = {
  'list': list, 'tuple': tuple, 'set': set, 'frozenset': frozenset, 'deque': collections.deque}
_MAPPINGS: dict[str, Callable] = {
  'dict': dict, 'OrderedDict': collections.OrderedDict, 'Counter': collections.Counter,
  'defaultdict': lambda items: collections.defaultdict(None, items)}


def pack(value: Any) -> Any:
  """A value of built-in types as JSON; an iterator as its items; other objects by their names."""
  kind = type(value).__name__
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float | complex):
    return {kind: repr(value)}
  if isinstance(value, bytes | bytearray):
    return {kind: value.hex()}
  if isinstance(value, dict):
    name = kind if kind in _MAPPINGS else 'dict'
    return {name: [[pack(k), pack(v)] for k, v in value.items()]}
  if isinstance(value, list | tuple | set | frozenset | collections.deque):
    name = next((k for k in (kind, 'list', 'tuple', 'set', 'frozenset')
                 if k in _SEQUENCES and isinstance(value, _SEQUENCES[k])), 'list')
    return {name: [pack(v) for v in value]}
  if isinstance(value, range):
    return {'range': [value.start, value.stop, value.step]}
  if hasattr(value, '__next__'):
    items = [pack(v) for _, v in zip(range(_ITEMS + 1), value, strict=False)]
    if len(items) > _ITEMS:
      raise ValueError(f'an iterator of more than {_ITEMS} items')
    return {'iterator': items}
  return {'object': kind}


def unpack(value: Any) -> Any:
  """The value again. Raises ValueError for what `pack` does not write."""
  if value is None or isinstance(value, bool | str | int):
    return value
  if not isinstance(value, dict) or len(value) != 1:
    raise ValueError('not a packed value')
  (kind, inside), = value.items()
  if kind in _SEQUENCES:
    return _SEQUENCES[kind](unpack(v) for v in inside)
  if kind in _MAPPINGS:
    return _MAPPINGS[kind]({unpack(k): unpack(v) for k, v in inside})
  if kind == 'iterator':
    return iter([unpack(v) for v in inside])
  if kind in ('float', 'complex'):
    return {'float': float, 'complex': complex}[kind](inside)
  if kind in ('bytes', 'bytearray'):
    return {'bytes': bytes, 'bytearray': bytearray}[kind].fromhex(inside)
  if kind == 'range':
    return range(*inside)
  if kind == 'object':
    return object()  # it equals nothing
  raise ValueError(f'not a packed value: {kind!r}')


def _send(pipe, message):
  data = json.dumps(message).encode()
  data = _LENGTH.pack(len(data)) + data
  while data:
    data = data[os.write(pipe, data):]


def _receive(pipe):
  """One message; nothing of the next one is read. Raises EOFError."""
  def exactly(size):
    found = bytearray()
    while len(found) < size:
      select.select([pipe], [], [])
      if not (piece := os.read(pipe, min(size - len(found), 1 << 16))):
        raise EOFError
      found += piece
    return bytes(found)

  size, = _LENGTH.unpack(exactly(_LENGTH.size))
  if size > _MOST:
    raise EOFError
  return exactly(size)


# ------------------------------------------------------------------------------------------ layers


def _confine(order, readable, uid):
  """Takes away what this process can do; returns the layers that hold. The order matters."""
  held = set()
  _libc.prctl(38, 1, 0, 0, 0)  # no_new_privs
  with contextlib.suppress(OSError):
    _unprivileged(uid)
    held.add('user')
  _libc.prctl(4, 0, 0, 0, 0)  # not dumpable: nobody reads its memory
  _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with the process that started it
  with contextlib.suppress(OSError):
    _landlock(readable)
    held.add('landlock')
  limits = {  # no file can be written to, whatever else fails
    'AS': order['memory'], 'CPU': order['cpu_seconds'], 'FSIZE': 0, 'CORE': 0, 'NOFILE': 64,
    'NPROC': 16, 'MSGQUEUE': 0, 'MEMLOCK': 0, 'STACK': 64 << 20}
  for name, most in limits.items():
    if (kind := getattr(resource, f'RLIMIT_{name}', None)) is not None:
      with contextlib.suppress(ValueError, OSError):
        # (A program may ignore SIGXCPU; a second later comes SIGKILL.)
        resource.setrlimit(kind, (most, most + (name == 'CPU')))
  held.add('limits')
  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write to a file fails, with an error
  sys.setrecursionlimit(3000)
  threading.stack_size(1 << 20)
  with contextlib.suppress(OSError, KeyError):
    _seccomp()
    held.add('seccomp')
  return held


def _check(result):
  if result < 0:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
  return result


def _needed():
  """What Python reads: its own library, and shared ones. Nothing of anybody's."""
  return [*dict.fromkeys(os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)),
          '/usr', '/lib', '/lib64', '/dev/urandom', '/dev/null']


def _small_root():
  """A tree of files that holds Python and nothing else, read-only. Raises OSError."""
  def mount(source, target, kind, flags, data=None):
    encode = lambda text: None if text is None else text.encode()
    _check(_libc.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags),
                       encode(data)))

  RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC = 1, 2, 4, 32, 4096, 16384
  mount('none', _ROOT, 'tmpfs', NOSUID | NODEV, 'size=1m,mode=755')
  for path in _needed():
    target = _ROOT + path
    if os.path.islink(path):
      os.symlink(os.readlink(path), target)
      continue
    if not os.path.exists(path) or os.path.exists(target):
      continue
    folder = target if os.path.isdir(path) else os.path.dirname(target)
    os.makedirs(folder, 0o755, exist_ok=True)
    if folder != target:
      os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(path, target, None, BIND | REC)
    kept = os.statvfs(target).f_flag & (2 | 4 | 8 | 1024 | 2048)  # what may not be taken off
    dev = 0 if path.startswith('/dev/') else NODEV
    mount(None, target, None, REMOUNT | BIND | RDONLY | NOSUID | dev | kept)
  mount(None, _ROOT, None, REMOUNT | RDONLY | NOSUID | NODEV, 'size=1m,mode=755')
  os.chroot(_ROOT)
  os.chdir('/')


def _unprivileged(uid):
  """No capability is left; and, where a uid is given, no name that owns anything. Raises OSError.
  """
  for capability in range(64):
    _libc.prctl(24, capability, 0, 0, 0)  # from the bounding set
  if uid >= 0:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
  header = struct.pack('<Ii', 0x20080522, 0)
  _check(_libc.capset(header, bytes(24)))


def _maps(uid):
  """Whether the user namespace knows the id: one without privileges has a single one."""
  with open('/proc/self/uid_map') as f:
    return any(int(start) <= uid < int(start) + int(count)
               for start, _, count in map(str.split, f))


def _landlock(readable):
  """Nothing may be written, and only `readable` be read. Raises OSError."""
  create, add, restrict = 444, 445, 446
  version = _check(_libc.syscall(create, None, ctypes.c_size_t(0), 1))
  files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
  attributes = struct.pack('<QQQ', files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
  size = 8 if version < 4 else 16 if version < 6 else 24
  ruleset = _check(_libc.syscall(create, attributes, ctypes.c_size_t(size), 0))
  read_file, read_dir = 1 << 2, 1 << 3
  for path in readable:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    allowed = read_file | (read_dir if os.path.isdir(path) else 0)
    _check(_libc.syscall(add, ruleset, 1, struct.pack('<Qi', allowed, fd), 0))
    os.close(fd)
  _check(_libc.syscall(restrict, ruleset, 0))
  os.close(ruleset)


# Numbers of system calls that a program has no need of: (x86_64, aarch64).
_DENIED = {
  'socket': (41, 198), 'socketpair': (53, 199), 'connect': (42, 203), 'bind': (49, 200),
  'listen': (50, 201), 'io_uring_setup': (425, 425), 'io_uring_enter': (426, 426),
  'io_uring_register': (427, 427), 'ptrace': (101, 117), 'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271), 'kill': (62, 129), 'tkill': (200, 130), 'tgkill': (234, 131),
  'rt_sigqueueinfo': (129, 138), 'rt_tgsigqueueinfo': (297, 240),
  'pidfd_send_signal': (424, 424), 'pidfd_open': (434, 434), 'pidfd_getfd': (438, 438),
  'execve': (59, 221), 'execveat': (322, 281), 'fork': (57, None), 'vfork': (58, None),
  'unshare': (272, 97), 'setns': (308, 268), 'mount': (165, 40), 'umount2': (166, 39),
  'pivot_root': (155, 41), 'chroot': (161, 51), 'open_tree': (428, 428), 'move_mount': (429, 429),
  'fsopen': (430, 430), 'fsconfig': (431, 431), 'fsmount': (432, 432), 'fspick': (433, 433),
  'mount_setattr': (442, 442), 'bpf': (321, 280), 'perf_event_open': (298, 241),
  'userfaultfd': (323, 282), 'keyctl': (250, 219), 'add_key': (248, 217),
  'request_key': (249, 218), 'kexec_load': (246, 104), 'kexec_file_load': (320, 294),
  'init_module': (175, 105), 'finit_module': (313, 273), 'delete_module': (176, 106),
  'reboot': (169, 142), 'swapon': (167, 224), 'swapoff': (168, 225), 'acct': (163, 89),
  'personality': (135, 92), 'open_by_handle_at': (304, 265), 'name_to_handle_at': (303, 264),
  'memfd_create': (319, 279), 'memfd_secret': (447, 447), 'shmget': (29, 194), 'shmat': (30, 196),
  'msgget': (68, 186), 'semget': (64, 190), 'setuid': (105, 146), 'setgid': (106, 144),
  'setreuid': (113, 145), 'setregid': (114, 143), 'setresuid': (117, 147),
  'setresgid': (119, 149), 'setgroups': (116, 159),
}
_MACHINES = {'x86_64': (0, 0xC000003E, 56, 435), 'aarch64': (1, 0xC00000B7, 220, 435)}


def _seccomp():
  """Those calls fail, as do new processes; threads work. Raises OSError, KeyError elsewhere."""
  column, machine, clone, clone3 = _MACHINES[platform.machine()]
  numbers = [row[column] for row in _DENIED.values() if row[column] is not None]
  LOAD, EQUAL, AT_LEAST, SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
  KILL, DENY, UNKNOWN, ALLOW = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
  program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, machine), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0),
             (AT_LEAST, 0, 1, 0x40000000), (RETURN, 0, 0, KILL)]
  for number in numbers:
    program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, DENY)]
  program += [(EQUAL, 0, 1, clone3), (RETURN, 0, 0, UNKNOWN),  # its flags cannot be seen: clone's
              (EQUAL, 0, 3, clone), (LOAD, 0, 0, 16), (SET, 1, 0, 0x10000),  # CLONE_THREAD
              (RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW)]
  code = ctypes.create_string_buffer(b''.join(struct.pack('<HBBI', *row) for row in program))
  filters = struct.pack('@HP', len(program), ctypes.addressof(code))
  _check(_libc.prctl(22, 2, filters, 0, 0))
