"""Extraction in bounded processes: answers, limits, crashes, and the page after them."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from data_beam import bounded, html_text

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


@pytest.fixture
def child(tmp_path, monkeypatch):
  (tmp_path / 'hostile.py').write_text(HOSTILE)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(bounded, 'IDLE_SECONDS', .5)
  child = bounded.Child('hostile', cpu_seconds=.3, memory_bytes=1 << 29)
  yield child
  child.close(kill=True)


def test_the_same_answer_as_without():
  for tier in html_text.TIERS:
    assert b'harbour' in bounded.extract(PAGE, tier=tier).encode()
    assert bounded.extract(PAGE, tier=tier) == html_text.extract(PAGE, tier=tier)
  assert bounded.extract(b'') is None


@pytest.mark.parametrize(('page', 'reason'), [
  (b'spin', 'cpu_limit'), (b'spin in C', 'cpu_limit'), (b'memory', 'memory'), (b'crash', 'crash'),
  (b'exit', 'crash'), (b'hang', 'hung')])
def test_a_bad_page_is_lost_with_its_reason(child, page, reason):
  assert child.call(b'fine', tier='x') == 'finex'
  assert child.call(b'print', tier='') == 'print'
  with pytest.raises(bounded.Lost, match=reason):
    child.call(page, tier='x')
  assert child.process.returncode is not None


def test_only_the_bad_page_is_lost():
  assert bounded.extract(PAGE)
  child = bounded._idle.queue[-1]
  os.kill(child.process.pid, signal.SIGKILL)
  child.process.wait()
  with pytest.raises(bounded.Lost, match='crash'):
    bounded.extract(PAGE)
  assert bounded.extract(PAGE)


def test_threads_share_the_children():
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert len(set(pool.map(bounded.extract, [PAGE] * 40))) == 1
  assert bounded._idle.qsize() <= (os.cpu_count() or 1)
  bounded.close()
  assert bounded._idle.empty()


def test_children_end_with_a_killed_parent():
  program = ('import time; from data_beam import bounded; bounded.extract(b"<p>x"); '
             'print(bounded._idle.queue[0].process.pid, flush=True); time.sleep(100)')
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
