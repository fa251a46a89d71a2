"""A conversation in the terminal, with a model whose words are given."""

import contextlib
import io
import json
import os
import pathlib
import pty
import select
import subprocess
import sys
import time

import pytest
from goldens import make_lm_harness as models

from experiments import chat as chat_lib
from smoljax.checkpoints import load
from smoljax.inference.sampling import GREEDY


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  return load.load_model(models.export(str(tmp_path_factory.mktemp('chat'))))


@pytest.fixture
def talk(loaded, monkeypatch):
  """(what the model says, in order; settings) → (conversation, its prompts as text)."""
  def make(says, context=8000, **settings):
    prompts, says = [], iter(says)

    def stream(config, params, rows, **_):
      prompts.append(loaded.tokenizer.decode(rows[0]))
      text = next(says)
      for token in loaded.tokenizer.encode(text.replace('^C', '')):
        yield [token]
      if '^C' in text:
        raise KeyboardInterrupt
    monkeypatch.setattr(chat_lib, 'stream', stream)
    config = loaded.config.__class__(**{**loaded.config.__dict__, 'max_seq_len': context})
    return chat_lib.Conversation(
      loaded, config, sampling=GREEDY, max_new_tokens=64, **settings), prompts
  return make


def conversation(talk, *lines):
  out = io.StringIO()
  chat_lib.converse(talk, io.StringIO(''.join(f'{line}\n' for line in lines)), out)
  return out.getvalue()


def test_turns_modes_and_commands(talk):
  it, prompts = talk(['<think>\nhm\n</think>\none', 'two', 'thr^C', 'four'], mode='think')
  said = conversation(it, 'first', '/no_think second', '/nonsense', '/help', 'third /think',
                      '/reset', '/no_think', 'fourth', '/exit', 'never')
  assert said.splitlines()[:4] == ['<think>', 'hm', '</think>', 'one']
  assert 'two\n(/nonsense is no command; /help lists them)\n/think, /no_think' in said
  assert 'thr\n(forgotten)\n(no_think)\nfour\n' in said
  assert prompts[0].endswith('first\nassistant\n') and '/think' in prompts[0]
  assert prompts[1].endswith('<think>\n\n</think>\n') and 'second' in prompts[1]
  # The thought of the first turn is gone in no_think, and there again in think.
  assert 'hm' not in prompts[1] and '<think>\nhm\n</think>\none' in prompts[2]
  assert 'first' not in prompts[3] and len(prompts) == 4
  assert conversation(talk([])[0]) == '\n'  # the end of the input


def test_calls_are_shown_and_their_results_given_back(talk):
  call = '<tool_call>\n{"name": "time", "arguments": {"city": "Ωmega"}}\n</tool_call>'
  it, prompts = talk([f'Wait.\n{call}', 'It is noon.', call, '<tool_call>{"name": 1}</tool_call>'],
                     tools=[{'name': 'time', 'parameters': {}}], mode='no_think')
  said = conversation(it, 'What time is it?', '12:00', 'again', '', 'once more')
  assert '→ time({"city": "Ωmega"})\nIt is noon.\n' in said
  assert 'user\n12:00' in prompts[1] and '"time"' in prompts[0]
  assert len(prompts) == 4 and 'a call that cannot be read' in said
  assert it.history[2]['role'] == 'tool'


def test_what_no_longer_fits_is_forgotten_from_the_beginning(talk):
  it, prompts = talk(['yes'] * 9, context=560, mode='no_think')
  said = conversation(it, *(f'message {i} ' + 'value ' * 60 for i in range(4)), 'word ' * 2000)
  assert said.count('no longer fit') >= 1 and 'say less, or give --context' in said
  assert 'message 3' in prompts[-1] and 'message 0' not in prompts[-1]
  assert len(it.history) % 2 == 0 and it.history[0]['role'] == 'user'


def test_what_does_not_fit_changes_nothing(talk):
  it, _ = talk(['yes'] * 3, context=560, mode='no_think')
  conversation(it, 'message ' + 'value ' * 60, 'message ' + 'value ' * 60)
  before = it.dropped, list(it.history)
  conversation(it, 'word ' * 2000)
  assert (it.dropped, it.history) == before
  with pytest.raises(ValueError, match='max_new_tokens=64 leaves no room for a'):
    talk([], context=64)


TALK = """
import os
os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the terminal of this session, for Ctrl-C
from experiments import chat
class Talk:
  dropped = 0
  def say(self, messages, show):
    said = messages[0]['content']
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    show(text := call if said == 'call' else f'{len(said)} characters, {said[-2:]}')
    return text
chat.converse(Talk())
"""


def until_it_waits(child):
  """Returns when the process waits for keys: before, Python loses a Ctrl-C."""
  state = pathlib.Path(f'/proc/{child.pid}/stat')
  asleep = 0
  for _ in range(600):
    time.sleep(.05)
    # S: it waits, where R may only wait for a core.
    waits = not state.exists() or state.read_text().rpartition(')')[2].split()[0] == 'S'
    asleep = asleep + 1 if waits else 0
    if asleep == 10:
      return


def test_a_terminal_keeps_long_lines_and_ctrl_c_ends_what_it_should():
  ours, theirs = pty.openpty()
  environment = {**os.environ, 'PYTHONIOENCODING': 'utf-8', 'TERM': 'dumb'}
  child = subprocess.Popen(
    [sys.executable, '-c', TALK], stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    cwd=pathlib.Path(chat_lib.__file__).parents[1], start_new_session=True)
  os.close(theirs)
  said = b''
  try:
    for send, answer in (
      (b'', b'> '), (b'x' * 5000 + b'yz\n', b'5002 characters, yz\r\n> '),
      (b'a\xff\n', 'a\ufffd\r\n> '.encode()), (b'call\n', b'result of f: '), (b'\x03', b'> '),
      (b'on\n', b'2 characters, on\r\n> ')):
      if send == b'\x03':
        until_it_waits(child)
      os.write(ours, send)
      said = b''
      while answer not in said:
        assert select.select([ours], [], [], 60)[0], (answer, said)
        said += os.read(ours, 1 << 16)
    until_it_waits(child)
    os.write(ours, b'\x03')
    with contextlib.suppress(OSError):  # of a terminal that its last process has left
      while select.select([ours], [], [], 60)[0] and os.read(ours, 1 << 16):
        pass
    assert child.wait(60) == 0
  finally:
    child.kill()
    os.close(ours)


def test_tools_are_read_from_a_file(tmp_path):
  file = tmp_path / 'tools.json'
  for content, said in (('[', 'is no JSON'), ('{}', 'a list of signatures')):
    file.write_text(content)
    with pytest.raises(ValueError, match=said):
      chat_lib.read_tools(str(file))
  file.write_text(json.dumps([{'name': 'f'}]))
  assert chat_lib.read_tools(str(file)) == [{'name': 'f'}]
