"""Signals that ask a run to end."""

import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from smoljax.train.termination import SIGNALS, Termination


@pytest.fixture(autouse=True)
def none_is_ignored():
  """As on a terminal: a shell's background jobs ignore SIGINT, those under nohup SIGHUP."""
  before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
  signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_it_is_noted_and_the_handlers_are_as_they_were(number):
  before = signal.getsignal(number)
  with Termination() as termination:
    assert not termination.requested(1)
    signal.raise_signal(number)
    assert termination.requested(2) and termination.signal == number
  assert signal.getsignal(number) == before


def test_a_second_interrupt_ends_at_once_and_what_was_ignored_stays_so():
  previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
  try:
    with Termination() as termination:
      signal.raise_signal(signal.SIGHUP)
      assert not termination.requested(1)
      signal.raise_signal(signal.SIGINT)
      with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
  finally:
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.slow
def test_who_computes_is_told_at_once_and_ends_at_the_second():
  """As while XLA compiles: Python hears no signal before it is back."""
  code = '''
import hashlib
from smoljax.train.termination import Termination
with Termination():
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**31 - 1)
'''
  run = subprocess.Popen([sys.executable, '-c', code], cwd=REPOSITORY, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
  assert run.stdout.readline() == 'ready\n'
  run.send_signal(signal.SIGINT)
  assert 'the same command continues; Ctrl-C again' in run.stderr.readline()
  began = time.monotonic()
  run.send_signal(signal.SIGINT)
  assert run.wait(20) == 130 and time.monotonic() - began < 10
  assert run.stderr.read().count('\n') == 1
