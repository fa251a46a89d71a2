"""Calls in bounded processes: answers, limits, crashes, and the call after them."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import REPOSITORY

from data_beam.sandbox import INHERITED, ONE_THREAD, Child, Limits, Lost, Sandbox
from data_beam.web import extract as html_text
from data_beam.web import pipeline as web

PAGE = b'<html><p>' + b'The harbour was built in the twelfth century. ' * 20

HOSTILE = '''
import ctypes, os, time

def extract(body, **arguments):
  if body == b'spin':
    while True: pass
  if body == b'spin in C':
    sum(range(10 ** 12))
  if body == b'memory':
    return str(len([bytes(1 << 20) for _ in range(10 ** 5)]))
  if body == b'crash':
    ctypes.string_at(0)
  if body == b'exit':
    os._exit(0)
  if body == b'hang':
    time.sleep(10 ** 4)
  if body == b'print':
    print('noise')
  return body.decode() + arguments['tier']
'''

LIMITS = Limits(memory=1 << 29, cpu_seconds=.3, wall_seconds=2)


def extract(body, **arguments):
  return web.extractor.call(body, **arguments)


@pytest.fixture
def child(tmp_path, monkeypatch):
  (tmp_path / 'hostile.py').write_text(HOSTILE)
  monkeypatch.syspath_prepend(tmp_path)
  child = Child('hostile:extract', LIMITS)
  yield child
  child.close()


def test_the_same_answer_as_without():
  for tier in html_text.TIERS:
    assert b'harbour' in extract(PAGE, tier=tier).encode()
    assert extract(PAGE, tier=tier) == html_text.extract(PAGE, tier=tier)
  assert extract(b'') is None


@pytest.mark.parametrize(('page', 'reason'), [
  (b'spin', 'cpu_limit'), (b'spin in C', 'cpu_limit'), (b'memory', 'memory'), (b'crash', 'crash'),
  (b'exit', 'crash'), (b'hang', 'hung')])
def test_a_bad_page_is_lost_with_its_reason(child, page, reason):
  assert child.call(b'fine', tier='x') == 'finex'
  assert child.call(b'print', tier='') == 'print'
  with pytest.raises(Lost, match=reason):
    child.call(page, tier='x')
  assert child.process.returncode is not None or not child.alive


def test_only_the_bad_page_is_lost(tmp_path, monkeypatch):
  (tmp_path / 'hostile.py').write_text(HOSTILE)
  monkeypatch.syspath_prepend(tmp_path)
  sandbox = Sandbox('hostile:extract', LIMITS, calls=3)
  pids = []
  for page in (b'crash', b'memory', b'fine', b'fine', b'fine', b'fine'):
    if page == b'fine':
      assert sandbox.call(page, tier='x') == 'finex'
    else:
      with pytest.raises(Lost, match=page.decode()):
        sandbox.call(page, tier='x')
    pids.append([child.process.pid for child in sandbox.idle])
  assert pids[:2] == [[], []] and pids[2] == pids[3] and pids[4] == []   # replaced after three
  os.kill(sandbox.idle[0].process.pid, signal.SIGKILL)
  sandbox.idle[0].process.wait()
  assert sandbox.call(b'fine', tier='x') == 'finex'
  sandbox.close()
  with pytest.raises(RuntimeError, match='python -c "import no_such_module"'):
    Sandbox('no_such_module:f').call(b'')


def test_threads_share_the_children():
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len(set(pool.map(extract, [PAGE] * 40))) == 1
  assert len(web.extractor.idle) <= (os.cpu_count() or 1)
  web.extractor.close()
  assert not web.extractor.idle


def test_a_child_knows_no_secrets_and_outlives_the_thread_that_wanted_it(tmp_path, monkeypatch):
  (tmp_path / 'telling.py').write_text(
    'import os\ndef tell(body): return [dict(os.environ), os.getpid()]')
  monkeypatch.syspath_prepend(tmp_path)
  for name in ('AWS_SECRET_ACCESS_KEY', 'GOOGLE_APPLICATION_CREDENTIALS', 'HF_TOKEN', 'HOME',
               'DATABASE_URL', 'SSH_AUTH_SOCK'):
    monkeypatch.setenv(name, 'hunter2')
  monkeypatch.setenv('HTTPS_PROXY', 'http://me:hunter2@proxy.example')
  monkeypatch.setenv('TESSDATA_PREFIX', '/usr/share')
  sandbox, found = Sandbox('telling:tell', LIMITS), []
  thread = threading.Thread(target=lambda: found.append(sandbox.call(b'')))
  thread.start()
  thread.join()
  (environment, pid), = found
  assert 'hunter2' not in str(environment) and environment['TESSDATA_PREFIX'] == '/usr/share'
  assert set(environment) - set(ONE_THREAD) - {'PYTHONPATH', 'LC_CTYPE'} <= {
    name for name in os.environ if INHERITED.fullmatch(name)}
  assert sandbox.call(b'')[1] == pid        # the kernel kills it with its parent, a thread
  sandbox.close()


def test_a_child_that_computes_ends_with_a_killed_parent(tmp_path):
  (tmp_path / 'hostile.py').write_text(HOSTILE)
  program = ('import sys; sys.path.insert(0, sys.argv[1]); '
             'from data_beam.sandbox import Child, Limits; '
             'child = Child("hostile:extract", Limits(cpu_seconds=60)); '
             'print(child.process.pid, flush=True); child.call(b"spin in C")')
  with subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], stdout=subprocess.PIPE,
                        cwd=REPOSITORY) as parent:
    child = int(parent.stdout.readline())
    time.sleep(.3)
    parent.kill()
  deadline = time.monotonic() + 2
  while running(child) and time.monotonic() < deadline:
    time.sleep(.01)
  assert not running(child)


def test_children_end_with_a_killed_parent():
  program = ('import time; from data_beam.web.pipeline import extractor; extractor.call(b"<p>x"); '
             'print(extractor.idle[0].process.pid, flush=True); time.sleep(100)')
  with subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE,
                        cwd=REPOSITORY) as parent:
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.kill()
  deadline = time.monotonic() + 20
  while running(child) and time.monotonic() < deadline:
    time.sleep(.05)
  assert not running(child)


def running(pid: int) -> bool:
  try:
    with open(f'/proc/{pid}/stat') as f:
      return f.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
