"""Programs of a model: right ones pass, wrong ones do not, and none gets out."""

import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from smoljax.evals import confine, execution, problems
from smoljax.evals.execution import Limits

CONFINED = not execution.missing_layers()
confined = pytest.mark.skipif(not CONFINED, reason='this machine cannot confine programs')
QUICK = Limits(memory=256 << 20, cpu_seconds=2, wall_seconds=4)
ADD = 'def add(a, b):\n  return a + b\n'


@confined
def test_right_programs_pass_and_wrong_ones_do_not():
  tests = 'assert add(1, 2) == 3\nassert add([1], [(2, {3.5})]) == [1, (2, {3.5})]'
  assert execution.test(ADD, tests).passed
  verdict = execution.test(ADD.replace('+', '-'), tests)
  assert (verdict.passed, verdict.reason) == (False, 'wrong')
  assert execution.test(ADD + 'def (', tests).detail.startswith('SyntaxError')
  # What comes back is plain data: iterators as such, exceptions as they were, other objects as none
  program = ('import collections\ndef f(x):\n  if x == 0: raise KeyError("k")\n  if x == 1: return '
             'iter([1, 2])\n  if x == 2: return collections.Counter("aab")\n  return object\n'
             'def len(x): return 0')
  tests = ('try:\n  f(0)\nexcept KeyError:\n  pass\nelse:\n  assert False\n'
           'assert f(1) != [1, 2] and list(f(1)) == [1, 2]\nassert f(2) == {"a": 2, "b": 1}\n'
           'assert f(3) != f(3)\n'
           'assert len([1]) == 1')
  assert execution.test(program, tests).passed
  verdict = execution.run('print(int(input()) + 1)', stdin='41')
  assert verdict.passed and verdict.output == '42\n'
  # A helper that the tests trust is not the program's.
  helper = 'def half(x):\n  return x / 2\n'
  cheat = 'def half(x):\n  return 0\ndef root():\n  return 99\n'
  assert execution.test(cheat, 'assert half(root()) == 0').passed
  assert not execution.test(cheat, 'assert half(root()) == 0', prelude=helper).passed


LEAVES = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
          | st.binary() | st.complex_numbers(allow_nan=False))
VALUES = st.recursive(LEAVES, lambda inner: (
  st.lists(inner) | st.lists(inner).map(tuple) | st.sets(LEAVES) | st.frozensets(LEAVES)
  | st.dictionaries(LEAVES, inner) | st.lists(inner).map(collections.deque)), max_leaves=6)


@hypothesis.settings(max_examples=12)
@hypothesis.given(VALUES)
def test_values_go_through_the_pipe_as_they_are(value):
  again = confine.unpack(json.loads(json.dumps(confine.pack(value))))
  assert again == value and type(again) is type(value)


@pytest.mark.parametrize(
  'wrong', [[1], {}, {'list': [1], 'set': []}, {'code': 'x'}, 1.5, {'float': 'x'}])
def test_what_is_no_packed_value_is_refused(wrong):
  with pytest.raises(ValueError):
    confine.unpack(wrong)


def test_what_cannot_be_confined_is_refused(monkeypatch):
  monkeypatch.setattr(execution, '_isolate', lambda: [])
  with pytest.raises(execution.Refused, match='namespaces'):
    execution.run('print(1)')
  verdict = execution.run('print(1)', weak=True)
  assert verdict.passed and 'namespaces' in verdict.missing


@pytest.mark.skipif(os.geteuid() != 0 or not CONFINED, reason='needs root')
def test_a_user_without_privileges_has_the_same_layers():
  """By a user namespace; the interpreter must be readable to all, as the system's is."""
  python = '/usr/bin/python3'
  if not os.access(python, os.X_OK):
    pytest.skip('no system Python')
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    for file in (execution.__file__, confine.__file__):
      shutil.copy(file, folder)
    path = os.path.join(folder, 'execution.py')
    code = (
      'import importlib.util as u, sys; s = u.spec_from_file_location("execution", '
      f'{path!r}); m = u.module_from_spec(s); sys.modules["execution"] = m; '
      's.loader.exec_module(m); print(m.missing_layers(), m.run("import os; os.fork()").reason)')
    result = subprocess.run([python, '-c', code], user=12345, group=12345, extra_groups=[],
                            capture_output=True, text=True, check=False, cwd='/')
  if 'Refused' in result.stderr and 'namespaces' in result.stderr:
    pytest.skip('no user namespaces here')
  assert result.stdout.strip() == '() error', result.stderr


# Each tries something; it has got out if the machine shows it, or if it passes as a right answer.
# WITNESS is a file outside; PORT one that listens; VICTIM a process that must live on.
HOSTILE = {
  'fork bomb': 'import os\nwhile True: os.fork()',
  'fork bomb that ignores errors':
    'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
  'bomb of threads': 'import threading, time\nwhile True:\n  threading.Thread(target=time.sleep, '
                     'args=(99,)).start()',
  'subprocess': 'import subprocess\nsubprocess.run(["touch", WITNESS])',
  'shell': 'import os\nassert os.system("touch " + WITNESS) == 0',
  'exec': 'import os\nos.execv("/usr/bin/touch", ["touch", WITNESS])',
  'spawn': 'import os\nos.posix_spawn("/usr/bin/touch", ["touch", WITNESS], {})',
  'daemon': 'import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork():\n    '
            'time.sleep(6)\n    open(WITNESS, "w")',
  'vfork by ctypes': 'import ctypes\nctypes.CDLL(None).syscall(58)\nopen(WITNESS, "w")',
  'clone3 by ctypes': 'import ctypes\nassert ctypes.CDLL(None).syscall(435, 0, 0) >= 0',
  'multiprocessing': 'import multiprocessing as m\np = m.Process(target=open, args=(WITNESS, "w"))'
                     '\np.start()\np.join()',
  'file outside': 'open(WITNESS, "w").write("x")',
  'append': 'open(WITNESS, "a").write("x")',
  'low-level open': 'import os\nos.open(WITNESS, os.O_CREAT | os.O_RDWR)',
  'folder': 'import os\nos.mkdir(WITNESS)',
  'symlink': 'import os\nos.symlink("/etc/passwd", WITNESS)',
  'hard link': 'import os\nos.link("/usr/bin/env", WITNESS)',
  'named pipe': 'import os\nos.mkfifo(WITNESS)',
  'device': 'import os\nos.mknod(WITNESS)',
  'rename': 'import os\nos.rename("/usr/bin/env", WITNESS)',
  'delete': 'import os\nos.unlink(PRESENT)',
  'truncate': 'import os\nos.truncate(PRESENT, 0)',
  'chmod': 'import os\nos.chmod(PRESENT, 0o777)',
  'write through /proc': 'open("/proc/self/root" + WITNESS, "w")',
  'temporary file': 'import tempfile\ntempfile.NamedTemporaryFile(delete=False).write(b"x" * 4096)',
  'memory file': 'import os\nos.memfd_create("x")',
  'TCP': 'import socket\nsocket.create_connection(("127.0.0.1", PORT), 1)',
  'UDP': 'import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n'
         's.sendto(b"x", ("127.0.0.1", PORT))',
  'server': 'import socket\nsocket.create_server(("127.0.0.1", 0))',
  'Unix socket': 'import socket\nsocket.socket(socket.AF_UNIX)',
  'raw socket by ctypes': 'import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0',
  'web': 'import urllib.request\nurllib.request.urlopen(f"http://127.0.0.1:{PORT}")',
  'io_uring': 'import ctypes\nassert ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer('
              '200)) >= 0',
  'kill the victim': 'import os\nos.kill(VICTIM, 9)',
  'signal by queue': 'import ctypes\nassert not ctypes.CDLL(None).syscall(129, VICTIM, 9, '
                     'ctypes.create_string_buffer(128))',
  'kill everybody': 'import os\nos.kill(-1, 9)',
  'kill the parent': 'import os\nos.kill(os.getppid(), 9)',
  'ptrace': 'import ctypes\nassert ctypes.CDLL(None).ptrace(16, VICTIM, 0, 0) == 0',
  'memory of the parent': 'import os\nopen(f"/proc/{os.getppid()}/mem", "r+b")',
  'memory': 'x = bytearray(1 << 30)',
  'memory by and by': 'x = []\nwhile True: x.append(bytearray(1 << 20))',
  'endless loop': 'while True: pass',
  'endless loop in C': 'sum(range(10**12))',
  'sleep': 'import time\ntime.sleep(99)',
  'CPU signal ignored': 'import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n'
                        'while True: pass',
  'limits raised': 'import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n'
                   'x = bytearray(1 << 30)',
  'output flood': 'while True: print("x" * 10**6)',
  'flood of errors': 'import sys\nwhile True: sys.stderr.write("x" * 10**6)',
  'reads secrets': 'open(PRESENT).read()',
  'reads /etc': 'open("/etc/passwd").read()',
  'environment': 'import os\nassert os.environ["SECRET"]',
  'other processes': 'import os\nassert len([p for p in os.listdir("/proc") if p.isdigit()]) > 5',
  'namespaces': 'import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0',
  'mount': 'import ctypes\nassert not ctypes.CDLL(None).mount(b"x", b"/usr", b"tmpfs", 0, None)',
  'chroot': 'import os\nos.chroot("/usr")',
  'becomes root': 'import os\nos.setuid(0)',
  'module of the kernel': 'import ctypes\nassert ctypes.CDLL(None).syscall(175, 0, 0, b"") == 0',
  'crash': 'import ctypes\nctypes.string_at(0)',
  'recursion': 'def f(): f()\nimport sys\nsys.setrecursionlimit(10**9)\nf()',
}
# Wrong answers that try to pass.
CHEATS = {
  'exit': 'import sys\nsys.exit(0)',
  'hard exit': 'import os\nos._exit(0)',
  'exit when called': 'import os\ndef add(a, b): os._exit(0)',
  'equals everything': 'class E:\n  def __eq__(self, other): return True\n  __hash__ = None\n'
                       'def add(a, b): return E()',
  'an int that equals everything': 'class E(int):\n  def __eq__(self, other): return True\n'
                                   'def add(a, b): return E(0)',
  'patched built-ins': 'import builtins\nbuiltins.AssertionError = ValueError\n'
                       'builtins.eval = builtins.exec = lambda *a: None\ndef add(a, b): return 0',
  'reads the tests': 'import sys\ndef add(a, b):\n  f = sys._getframe()\n  while f.f_back: '
                     'f = f.f_back\n  return int(f.f_locals["tests"]["code"].split("== ")[1][0])',
  'reads the tests in memory':
    'import gc\ndef add(a, b):\n  return [int(s.split("== ")[1]) for s in gc.get_objects() '
    'if isinstance(s, str) and "assert add" in s][0]',
  'says that it passed':
    'import os, json, struct\nd = json.dumps({"passed": True, "missing": [], "reason": "passed"})'
    '.encode()\nd = struct.pack("<Q", len(d)) + d\nfor fd in range(64):\n  try: os.write(fd, d)\n'
    '  except OSError: pass\ndef add(a, b): return 0',
  'breaks the pipe':
    'import os\nfor fd in range(3, 64):\n  try: os.close(fd)\n  except OSError: pass',
}


@confined
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_no_hostile_program_gets_out(tmp_path, monkeypatch):
  """Of more than fifty none does what it tries, and what it leaves behind is nothing."""
  monkeypatch.setenv('SECRET', 'x')
  os.chmod(tmp_path, 0o777)
  for folder in list(tmp_path.parents)[:-1]:
    if folder.stat().st_uid == os.geteuid() and folder != pathlib.Path('/tmp'):
      os.chmod(folder, 0o755)
  present = tmp_path / 'present'
  present.write_text('secret')
  os.chmod(present, 0o666)
  victim = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])
  with socket.create_server(('127.0.0.1', 0)) as server:
    server.settimeout(0.01)
    port = server.getsockname()[1]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(('127.0.0.1', port))
    datagrams.settimeout(0.01)

    def attempt(name, code):
      witness = tmp_path / f'witness {len(name)} {abs(hash(name))}'.replace(' ', '_')
      values = dict(WITNESS=str(witness), PORT=port, VICTIM=victim.pid, PRESENT=str(present))
      head = ''.join(f'{k} = {v!r}\n' for k, v in values.items())
      began = time.monotonic()
      verdict = execution.test(head + code + '\nprint("GOT " + "OUT")\ndef add(a, b): return a + b',
                               'assert add(1, 2) == 3', limits=QUICK)
      # Threads and recursion may end well: what they ask for is granted, within the limits.
      harmless = name in ('bomb of threads', 'recursion', 'temporary file')
      out = 'GOT OUT' in verdict.output and not harmless
      return name, (out or os.path.lexists(witness) or time.monotonic() - began > 12
                    or len(verdict.output) > 1 << 16), verdict

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      found = list(pool.map(lambda item: attempt(*item), HOSTILE.items()))
    assert len(found) >= 50
    assert [(name, verdict) for name, out, verdict in found if out] == []
    for listener in (server.accept, lambda: datagrams.recv(9)):
      with pytest.raises(TimeoutError):
        listener()
    datagrams.close()
  cheats = {name: execution.test(code, 'assert add(1, 2) == 3', limits=QUICK)
            for name, code in CHEATS.items()}
  assert [name for name, verdict in cheats.items() if verdict.passed] == []
  time.sleep(7)  # what was to come later
  assert victim.poll() is None and present.read_text() == 'secret'
  assert [p.name for p in tmp_path.iterdir()] == ['present']
  assert present.stat().st_mode & 0o777 == 0o666
  uids = (1 << 30, 1 << 31)
  owners = [os.stat(f'/proc/{p}').st_uid for p in os.listdir('/proc') if p.isdigit()
            and os.path.exists(f'/proc/{p}')]
  assert not [uid for uid in owners if uids[0] <= uid < uids[1]]
  victim.kill()
  victim.wait()


@confined
@pytest.mark.slow
def test_reference_solutions_pass(shared_data):
  """All of HumanEval and MBPP, as answers of a chat model: arguments and results as plain data."""
  folder = shared_data / 'eval'
  read = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]
  source = problems.Source(str(folder))
  block = 'Here it is:\n```python\n{}\n```\nIt works.'.format
  docstring = re.compile(r"\n\s*'''.*?'''[^\n]*\n", re.S)  # its indentation is another
  solved = {
    'humaneval': [block(r['prompt'] + r['canonical_solution']) for r in read('humaneval.jsonl')],
    'mbpp': [block(docstring.sub('\n', r['prompt']) + r['canonical_solution'])
             for r in read('mbpp_sanitized.jsonl')[3:]]}
  for name, texts in solved.items():
    questions = problems.load_set(name, source).questions
    assert len(questions) == len(texts) == {'humaneval': 164, 'mbpp': 424}[name]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      found = list(pool.map(lambda q, t: q.turns[0].grade(t)['pass'], questions, texts))
    assert [i for i, passed in enumerate(found) if not passed] == [], name
