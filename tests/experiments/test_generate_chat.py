"""A conversation in the terminal, with a model whose words are given."""

import io
import json

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


def test_tools_are_read_from_a_file(tmp_path):
  file = tmp_path / 'tools.json'
  for content, said in (('[', 'is no JSON'), ('{}', 'a list of signatures')):
    file.write_text(content)
    with pytest.raises(ValueError, match=said):
      chat_lib.read_tools(str(file))
  file.write_text(json.dumps([{'name': 'f'}]))
  assert chat_lib.read_tools(str(file)) == [{'name': 'f'}]
