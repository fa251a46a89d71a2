"""A conversation in the terminal: turns, modes, calls of tools, written as they come."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from smoljax import model
from smoljax.checkpoints import load
from smoljax.data import chat, chat_template
from smoljax.evals import answers
from smoljax.evals.writing import decoder
from smoljax.inference.generate import stream
from smoljax.inference.sampling import Sampling
from smoljax.inference.text import Text

with contextlib.suppress(ImportError):
  import readline  # noqa: F401  input() then takes long lines, which a terminal alone cuts at 4,095

HELP = """\
/think, /no_think  think before answering, or answer at once (alone, or before or after a message)
/reset             forget the conversation
/help              these lines
/exit              leave; so do Ctrl-D, and Ctrl-C at the prompt (in an answer it ends that; asked
                   for a result, it gives none)"""


def read_tools(path: str) -> list[chat.Tool]:
  """The tools in a JSON file: a list of signatures. Raises ValueError, OSError."""
  with open(path, encoding='utf-8') as f:
    try:
      found = json.load(f)
    except ValueError as e:
      raise ValueError(f'{path} is no JSON: {e}') from None
  if not isinstance(found, list) or not all(isinstance(t, str | dict) for t in found):
    raise ValueError(f'{path}: a list of signatures is wanted, each a JSON schema or a text')
  return found


class Conversation:
  """What was said, and how the model goes on.

  Args:
    loaded: a chat model.
    config: of it, with the context to use.
    mode: think, no_think, or chat for the template's own choice.
    system: instructions.
    tools: that it may call.
    max_new_tokens: of an answer.
    ends: more ids that end an answer.
  Raises:
    ValueError: it has no chat template, or not this mode; answers may fill the whole context.
  """

  def __init__(
    self, loaded: load.Model, config: model.ModelConfig, *, mode: str = 'chat', system: str = '',
    tools: Sequence[chat.Tool] = (), sampling: Sampling, max_new_tokens: int, seed: int = 0,
    ends: Sequence[int] = (),
  ):
    self._loaded, self._config, self._tools = loaded, config, list(tools)
    self._template = load.chat_template_of(loaded)
    self._sampling, self._most, self._seed = sampling, max_new_tokens, seed
    if max_new_tokens >= config.max_seq_len:
      raise ValueError(f'max_new_tokens={max_new_tokens} leaves no room for a message in a context '
                       f'of {config.max_seq_len}: lower it, or give --context')
    end = loaded.tokenizer.control_id(chat.END)
    self._ends = (*loaded.eos_ids, *ends, *([] if end is None else [end]))
    self._system: list[chat.Message] = (
      [{'role': 'system', 'content': system}] if system else [])
    self.history: list[chat.Message] = []
    self.dropped = 0  # messages at the beginning that no longer fit
    self.mode = ''
    self.set_mode(mode)

  def set_mode(self, mode: str) -> None:
    """From now on; ValueError where the template has no modes."""
    if mode in chat.MODES and not chat_template.thinks(self._template):
      raise ValueError('the chat template of this model has no such modes')
    self.mode = mode

  def reset(self) -> None:
    """Forgets what was said."""
    self.history, self.dropped = [], 0

  def say(self, messages: Sequence[chat.Message], show: Callable[[str], None]) -> str:
    """The model's turn after these messages, shown as it comes; an interrupt ends it.

    Raises ValueError where they do not fit into the context; then nothing was said.
    """
    before = self.history, self.dropped
    self.history = [*self.history, *messages]
    try:
      ids = self._prompt(len(messages))
    except ValueError:
      self.history, self.dropped = before
      raise
    text, pieces = Text(decoder(self._loaded.tokenizer), (), ids), []

    def put(piece: str) -> None:
      if piece:
        pieces.append(piece)
        show(piece)

    try:
      for token, in stream(
          self._config, self._loaded.params, [ids], max_new_tokens=self._most,
          sampling=self._sampling, eos_id=self._ends, seed=self._seed + len(self.history)):
        if token is not None:
          put(text.push(token))
    except KeyboardInterrupt:
      pass
    put(text.finish())
    written = ''.join(pieces)
    self.history.append(answers.turn(written))
    return written

  def _prompt(self, new: int) -> list[int]:
    """Token ids, without the oldest messages where not all fit (from one user turn to another)."""
    variables: dict[str, Any] = {}
    if self.mode in chat.MODES:
      variables['enable_thinking'] = self.mode == 'think'
    if self._tools:
      variables['tools'] = self._tools
    room = self._config.max_seq_len - self._most
    while True:
      ids = chat_template.prompt_ids(
        self._template, [*self._system, *self.history], self._loaded.tokenizer, **variables)
      if len(ids) <= room:
        return ids
      cut = next((i for i, m in enumerate(self.history) if i and m['role'] == 'user'), None)
      if cut is None or cut > len(self.history) - new:
        raise ValueError(
          f'this takes {len(ids)} tokens, and beside max_new_tokens={self._most} there is room for '
          f'{room} in a context of {self._config.max_seq_len}: say less, or give --context '
          'or a lower --max_new_tokens')
      self.history, self.dropped = self.history[cut:], self.dropped + cut


def converse(
  talk: Conversation, source: TextIO | None = None, sink: TextIO | None = None
) -> None:
  """Reads messages and commands until /exit or the end of the input."""
  source, sink = source or sys.stdin, sink or sys.stdout
  show = lambda text: print(text, end='', file=sink, flush=True)
  asks = source.isatty()
  if isinstance(source, io.TextIOWrapper):
    source.reconfigure(errors='replace')
  if asks:
    show('Say something; /help tells what else.\n')

  def read(prompt: str) -> str | None:
    try:
      if asks:
        return input(prompt)
      line = source.readline()
      return line.rstrip('\n') if line else None
    except (EOFError, KeyboardInterrupt):
      return None

  while True:
    line = read('> ')
    if line is None or line.strip() in ('/exit', '/quit'):
      show('\n' if line is None else '')
      return
    if line.strip() == '/help':
      show(f'{HELP}\n')
    elif line.strip() == '/reset':
      talk.reset()
      show('(forgotten)\n')
    else:
      try:
        if message := _switch(talk, line.strip(), show):
          _exchange(talk, message, show, read)
      except ValueError as e:
        show(f'({e})\n')


def _switch(talk, line, show):
  """Takes commands of mode out of a line; the message that is left."""
  words = line.split()
  for mode in chat.MODES:
    if f'/{mode}' in (words[:1] + words[-1:]):
      talk.set_mode(mode)
      words.remove(f'/{mode}')
      line = line.removeprefix(f'/{mode}').removesuffix(f'/{mode}').strip()
      if not words:
        show(f'({mode})\n')
  if line.startswith('/') and len(words) == 1:
    raise ValueError(f'{line} is no command; /help lists them')
  return line


def _exchange(talk, message, show, read):
  """One message and its answer; results of the tools that it calls go on from there."""
  messages, dropped = [{'role': 'user', 'content': message}], talk.dropped
  while messages:
    text = talk.say(messages, show)
    show('\n')
    if talk.dropped > dropped:
      show(f'({talk.dropped - dropped} messages at the beginning no longer fit: forgotten)\n')
      dropped = talk.dropped
    messages = []
    try:
      calls = answers.tool_calls(answers.split(text).answer)
    except ValueError as e:
      show(f'(a call that cannot be read: {e})\n')
      return
    for call in calls:
      show(f'→ {call.name}({json.dumps(call.arguments, ensure_ascii=False)})\n')
      if (result := read(f'result of {call.name}: ')) is None or not result.strip():
        show('\n' if result is None else '')
        return  # the conversation goes on without
      messages.append({'role': 'tool', 'content': result.strip()})
