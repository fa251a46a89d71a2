"""Chat templates that come with a model: Jinja, in a sandbox, rendered as transformers renders it.

SmolLM3's own template, for training, is `smoljax/data/chat.py`; what any other chat model expects
stands beside its tokenizer, in chat_template.jinja or tokenizer_config.json.

Text is data here too: a control token counts where the template writes it, not in a message.
"""

import datetime
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from smoljax.data import chat
from smoljax.data.tokenizer import Tokenizer

_GUARD = '\ue0ff'  # put inside a control token that a message spells; private use
_END = 'CONTINUE_HERE '  # a template that strips messages shows it by the last space


class ChatTemplate(NamedTuple):
  """A template and the special tokens that it may name (bos_token, eos_token, …), as text."""

  source: str
  tokens: dict[str, str]


def find(tokenizer: Tokenizer) -> ChatTemplate | None:
  """The template beside the tokenizer's file; None where there is none.

  Raises ValueError for files that are not what they should be.
  """
  folder, config = _beside(tokenizer)
  source = config.get('chat_template')
  if os.path.isfile(file := os.path.join(folder, 'chat_template.jinja')):
    source = _read(file)
  if isinstance(source, list):  # several, by name
    named = {t.get('name'): t.get('template') for t in source if isinstance(t, dict)}
    source = named.get('default')
  if not isinstance(source, str):
    return None
  text = lambda token: token.get('content') if isinstance(token, dict) else token
  tokens = {k: text(v) for k, v in config.items() if k.endswith('_token')}
  return ChatTemplate(source, {k: v for k, v in tokens.items() if isinstance(v, str)})


def reads_controls(tokenizer: Tokenizer) -> bool:
  """Whether those who use the tokenizer in transformers find control tokens in a text."""
  if tokenizer.path.endswith('.json'):
    return _beside(tokenizer)[1].get('split_special_tokens') is not True
  return chat.START in tokenizer.controls  # else `tokenizer.to_hf` turns it off


def _beside(tokenizer):
  """The folder of the tokenizer's file, and what tokenizer_config.json says there."""
  folder = os.path.dirname(os.path.abspath(tokenizer.path))
  file = os.path.join(folder, 'tokenizer_config.json')
  if not os.path.isfile(file):
    return folder, {}
  try:
    config = json.loads(_read(file))
  except ValueError as e:
    raise ValueError(f'{file} is no JSON: {e}') from None
  return folder, config if isinstance(config, dict) else {}


def _read(file):
  with open(file, encoding='utf-8') as f:
    try:
      return f.read()
    except UnicodeDecodeError as e:
      raise ValueError(f'{file} is not UTF-8 text: {e}') from None


def ours() -> ChatTemplate:
  """SmolLM3's, for models of ours that were trained with it and are not exported yet."""
  return ChatTemplate(chat.template(), {})


def render(
  template: ChatTemplate,
  messages: Sequence[chat.Message],
  *,
  generation_prompt: bool = True,
  open_end: bool = False,
  **variables: Any,
) -> str:
  """The conversation as the model expects it.

  Args:
    messages: as of `chat.render`; what is allowed is the template's business.
    generation_prompt: end with the beginning of an assistant turn.
    open_end: leave the last message open, for the model to continue.
    **variables: what the template reads besides, such as `enable_thinking` or `tools`.
  Raises:
    ValueError: the template is no Jinja, or refuses the conversation; with its reason.
  """
  turns = json.loads(json.dumps(list(messages)))  # plain data, of its own
  if open_end:
    turns[-1]['content'] += _END
  try:
    text = _compiled(template.source).render(
      messages=turns, add_generation_prompt=generation_prompt,
      **template.tokens | {'tools': None, 'documents': None} | variables)
  except (jinja2.TemplateError, TypeError, ArithmeticError, LookupError, ValueError,
          RecursionError) as e:
    raise ValueError(f'the chat template of this model does not take this conversation: {e}'
                     ) from None
  if not open_end:
    return text
  before, found, after = text.rpartition(_END.strip())
  if not found:
    raise ValueError('the chat template of this model leaves the last message out: it cannot be '
                     'continued')
  return before if after.startswith(' ') else before.rstrip()


def prompt_ids(
  template: ChatTemplate, messages: Sequence[chat.Message], tokenizer: Tokenizer, **variables: Any
) -> list[int]:
  """Token ids of `render`, up to where the model answers.

  Control tokens spelt in a message are text. Raises as `render`.
  """
  spelt = _control(tokenizer)

  def guarded(value):
    if isinstance(value, str):
      return spelt.sub(lambda m: m[0][0] + _GUARD + m[0][1:], value) if spelt else value
    if isinstance(value, Mapping):
      return {k: guarded(v) for k, v in value.items()}
    return [guarded(v) for v in value] if isinstance(value, list) else value

  text = render(template, guarded(list(messages)), **variables)
  return encode(text, tokenizer, _GUARD)


def encode(text: str, tokenizer: Tokenizer, guard: str = '') -> list[int]:
  """Token ids of a text in which control tokens are spelt; each `guard` is taken out of it."""
  spelt = _control(tokenizer)
  ids: list[int] = []
  for i, part in enumerate(spelt.split(text) if spelt else [text]):
    part = part.replace(guard, '') if guard else part
    if i % 2:
      ids.append(tokenizer.controls[part])
    elif part:
      ids += tokenizer.encode(part)
  return ids


def thinks(template: ChatTemplate) -> bool:
  """Whether the template can be told to think or not to."""
  return 'enable_thinking' in template.source


@functools.lru_cache(maxsize=8)
def _control(tokenizer):
  names = [re.escape(name) for name in tokenizer.controls]
  names.sort(key=len, reverse=True)  # the longest that fits
  return re.compile(f'({"|".join(names)})') if names else None


@functools.lru_cache(maxsize=8)
def _compiled(source):
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])

  def refuse(message):
    raise jinja2.TemplateError(message)

  environment.filters['tojson'] = lambda x, ensure_ascii=False, **how: json.dumps(
    x, ensure_ascii=ensure_ascii, **how)
  given: dict[str, Any] = environment.globals
  given['raise_exception'] = refuse
  given['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`, which marks what is trained on: nothing to a prompt."""

  tags = {'generation'}

  def parse(self, parser):
    next(parser.stream)
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    return jinja2.nodes.Scope(body)
