"""A run that stands still ends itself, and says where; what may take long does not trip it."""

import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from smoljax.train import watchdog
from smoljax.train.watchdog import Watchdog


class Result:
  """Of a step, there when it is said to be."""

  def __init__(self, there=True):
    self.there = there

  def is_ready(self):
    return self.there


@pytest.fixture
def ended(monkeypatch):
  reasons = []
  monkeypatch.setattr(Watchdog, '_end', lambda self, reason, status, post: (
    reasons.append(reason), self._closed.set()))
  return reasons


def steps(dog, count, seconds=0.0):
  for _ in range(count):
    dog.step(Result())
    time.sleep(seconds)


def test_the_limit_is_learnt_from_the_steps(tmp_path, ended):
  with Watchdog(0.2, str(tmp_path), print) as dog:
    assert dog.limit == watchdog.PATIENCE * 0.2  # before the first steps: they compile
    steps(dog, 8, 0.1)
    learnt = dog.limit
    assert 0.9 < learnt < 3 and not ended
    dog.step(late := Result(there=False))  # dispatched, and never done
    began = time.monotonic()
    while not ended:
      assert time.monotonic() - began < learnt + 2
      time.sleep(0.02)
    assert time.monotonic() - began > learnt - 0.3 and not late.there
  assert 'process 0 stands still: a step for' in ended[0]


def test_what_is_no_step_may_take_long(tmp_path, ended):
  with Watchdog(0.1, str(tmp_path), print) as dog:
    time.sleep(0.5)  # compiling
    steps(dog, 6, 0.03)
    for name in ('evaluation', 'checkpoint'):
      with dog.phase(name):
        time.sleep(0.8)
    dog.compiling()
    time.sleep(0.8)
    steps(dog, 6, 0.03)
    assert not ended
    time.sleep(1.0)
    assert ended
  with Watchdog(0.0, str(tmp_path), print) as dog:  # not looking
    steps(dog, 3)
    time.sleep(0.3)
  assert len(ended) == 1


_HANGS = """
import sys, threading, time
sys.path.insert(0, {repository!r})
from smoljax.train.watchdog import Watchdog
class Result: is_ready = lambda self: True
def a_read_that_hangs(): time.sleep(60)
with Watchdog(.5, {folder!r}, lambda why: print('told', why, flush=True)) as dog:
  for _ in range(20):
    dog.step(Result()); time.sleep(.02)
  a_read_that_hangs()
"""


def test_the_process_ends_with_its_stacks_in_the_log(tmp_path):
  script = _HANGS.format(repository=str(REPOSITORY), folder=str(tmp_path))
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, timeout=60, check=False)
  assert done.returncode == watchdog.EXIT, done.stderr
  assert 'a_read_that_hangs' in done.stderr and 'Traceback' not in done.stderr
  assert 'told process 0 stands still' in done.stdout
  assert 'a_read_that_hangs' in (tmp_path / 'hang-0.txt').read_text()
