"""Conversations in the common layouts → a curated corpus, from which tokens with a mask are made.

  python -m data_beam.conversations --input='sft/*.jsonl' --output=corpora --name=chat \\
    --tokenizer=tokenizer.json
  python -m data_beam.tokenize_corpus --input=corpora/chat/1.0.0 --tokenizer=… --output=tokens

A row of JSONL (or of a .json file's list) or Parquet is, by the columns that it has:

  chosen, rejected        a preference pair: two answers as texts, or as messages, to `prompt` (text
                          or messages), or two conversations that begin alike
  messages                [{"role": …, "content": …}, …], also under `conversation`
  conversations           ShareGPT: [{"from": "human", "value": …}, …]
  prompt, completion      texts or messages; `instruction`, `question` (and `input`, `context`,
                          `history`), `input` alone; `response`, `output`, `answer` are read
                          likewise. Only the completion is learned

and besides, all optional: `system`; `tools` or `xml_tools`, `python_tools` (lists, or JSON text);
`custom_instructions`; `mode` (think, no_think) or `enable_thinking`; `language`; any of them inside
`chat_template_kwargs`, as smoltalk2 has them. A message of the assistant may have
`reasoning_content`, or begin with `<think>…</think>` (an empty one is kept where others think:
the answer does without on purpose); `tool_calls`, as objects or JSON text; and `weight` 0 (`train`
or `loss` false), which keeps it from being learned. Lines end in \\n alone. Fields of calls and
signatures that are null are left out: a struct of Parquet has those of all rows.

The corpus has what people read as `text` (without system turn and tools, which many conversations
share: duplicates and quotes of evaluation sets are looked for in it), and in its metadata under
`conversation` what chat.render takes: messages, mode, tools, …; of a pair `messages` are those of
the chosen answer, `prompt` says how many of them are the question, and `rejected` is the rest of
the other. A conversation that cannot be learned from is a reject with its reason.
"""

import dataclasses
import datetime
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from data_beam import chat, curation, tables, tokenize_corpus
from data_beam.curation import Each
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import decontamination
from data_beam.options import ConversationOptions, TokenizeOptions
from data_beam.records import Document, Reject
from data_beam.sources.files import expand, size_of
from data_beam.tables import Part, RowError
from data_beam.text.language import detect_language, language_sample

_ROLES = {
  'developer': 'system', 'human': 'user', 'prompter': 'user', 'gpt': 'assistant',
  'chatgpt': 'assistant', 'bot': 'assistant', 'model': 'assistant', 'ai': 'assistant',
  'function_call': 'assistant', 'tool_call': 'assistant',
  'function': 'tool', 'function_response': 'tool', 'observation': 'tool', 'ipython': 'tool',
  'environment': 'tool', 'tool_response': 'tool', **{role: role for role in chat.ROLES},
}
_CALLERS = ('function_call', 'tool_call')  # roles whose text is a call
_QUESTIONS, _ANSWERS = ('prompt', 'instruction', 'question', 'input'), (
  'completion', 'response', 'output', 'answer')
_SCORES = 'score_chosen', 'score_rejected'
_OPEN, _CLOSE = '<think>', '</think>'
_ON_ITS_LINE = re.compile(r'\n\s*</think>|</think>[^\S\n]*\n')
_OF_CALLS = {'name', 'arguments', 'id', 'type', 'index'}


# --- rows → conversations ------------------------------------------------------------------------


def read(
  parts: Sequence[Part], source: str, mode: str = 'auto', limit: int | None = None,
) -> Iterator[Document | Reject]:
  """The conversations of parts, the first `limit` of them.

  Reasons are those of `to_conversation`, and of files those of tables.read_with.
  """
  yield from tables.read_with(
    parts, source, lambda row: to_document(row, source, mode), limit)


def to_document(row: Mapping[str, Any], source: str, mode: str = 'auto') -> Document:
  """A row as a document, whose id follows from the conversation alone. Raises RowError."""
  conversation = to_conversation(row, mode)
  key = json.dumps(conversation, sort_keys=True)
  language = _given(row, 'language')
  more = {k: str(row[k])[:200] for k in ('id', 'source', 'prompt_id') if row.get(k) is not None}
  return Document(
    id=hashlib.sha256(key.encode()).hexdigest(), text=transcript(conversation),
    source=source,
    language=tables.language_of(language) if isinstance(language, str) else '',
    metadata={'conversation': conversation, 'mode': conversation['mode'],
              **({'row': more} if more else {})})


def to_conversation(row: Mapping[str, Any], mode: str = 'auto') -> dict[str, Any]:
  """A row as what the chat template takes (see the module), checked by rendering it.

  Args:
    mode: of a row that does not say it.
  Raises:
    RowError: unknown_layout, no_text (a message that has none), unknown_role, role_order (a system
      turn that is not first, two turns of one side in a row, a tool's result that nobody asked
      for), no_answer (nothing by the assistant, or nothing to learn), bad_answer (its label is
      false), bad_thought (not closed, or
      several), bad_tool_call, bad_value; of a pair equal_pair and prompt_differs.
  """
  found: dict[str, Any] = {}
  if row.get('chosen') is not None and row.get('rejected') is not None:
    question, chosen, rejected = _pair(row)
    found |= {'messages': [*question, *chosen], 'prompt': len(question), 'rejected': rejected}
  elif (turns := _first(row, ('messages', 'conversations', 'conversation'))) is not None:
    found['messages'] = _messages(turns)
  elif (answer := _first(row, _ANSWERS)) is not None and _first(row, _QUESTIONS) is not None:
    if str(row.get('label')).lower() == 'false':
      raise RowError('bad_answer', 'its label says that the answer is not to be learned')
    question = _question(row)
    found['messages'] = [m | {'weight': 0} if m['role'] == 'assistant' else m for m in question]
    found['messages'] += _messages(answer, 'assistant')
  else:
    raise RowError('unknown_layout', f'its columns are {", ".join(row)[:100]}')
  system = _first(row, ('system', 'system_prompt'))
  custom = _given(row, 'custom_instructions')
  if isinstance(system, str) and system.strip() and found['messages'][0]['role'] != 'system':
    found['messages'].insert(0, {'role': 'system', 'content': _lines(system)})
    found |= {'prompt': found['prompt'] + 1} if 'prompt' in found else {}
  if isinstance(custom, str) and custom.strip():
    custom = _lines(custom)
    if found['messages'][0]['role'] == 'system':  # they would stand in one place
      found['messages'][0]['content'] = f'{custom}\n\n{found["messages"][0]["content"]}'
    else:
      found['custom_instructions'] = custom
  for column in ('functions', 'tools', 'xml_tools', 'python_tools'):
    if tools := _tools(_given(row, column)):
      found['python_tools' if column == 'python_tools' else 'tools'] = tools
  thinks = any(m.get('reasoning_content') for m in [*found['messages'], *found.get('rejected', [])])
  inferred = ('think' if thinks else 'no_think') if mode == 'auto' else mode
  found['mode'] = _mode(row) or inferred
  _check(found)
  # Half a character, which UTF-8 cannot hold, becomes '?'.
  return json.loads(json.dumps(found, ensure_ascii=False).encode('utf-8', 'replace'))


def _pair(row: Mapping[str, Any]) -> tuple[list, list, list]:
  """(question, chosen answer, rejected answer) as messages."""
  chosen, rejected = (_messages(row[k], 'assistant') for k in ('chosen', 'rejected'))
  question = []
  if chosen[0]['role'] == rejected[0]['role'] == 'assistant':
    question = _question(row)
  else:  # whole conversations
    while (len(question) < min(len(chosen), len(rejected)) - 1
           and chosen[len(question)] == rejected[len(question)]):
      question.append(chosen[len(question)])
    while question and question[-1]['role'] == 'assistant':  # part of both answers
      question.pop()
    chosen, rejected = chosen[len(question):], rejected[len(question):]
  if not question or chosen[0]['role'] != 'assistant' or rejected[0]['role'] != 'assistant':
    raise RowError('prompt_differs', 'the two do not answer one question')
  scores = [row.get(k) for k in _SCORES]
  if isinstance(scores[0], int | float) and scores[0] == scores[1]:
    raise RowError('equal_pair', f'both have a score of {scores[0]}')
  return question, _until_answer(chosen), _until_answer(rejected)


def _question(row):
  question = _first(row, _QUESTIONS)
  if question is None:
    raise RowError('unknown_layout', 'answers without a question')
  if not isinstance(question, str):
    return _messages(question, 'user')
  more = [row[k] for k in ('context', 'input') if isinstance(row.get(k), str)]
  more = [text for text in more if text.strip() and text.strip() not in question]
  past = row.get('history') if isinstance(row.get('history'), list | tuple) else ()
  if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in past):
    raise RowError('bad_value', 'its history is no list of questions and answers')
  turns = [(text, role) for pair in past
           for text, role in zip(pair, ('user', 'assistant'), strict=True)]
  return [message for turn in [*turns, ('\n\n'.join([question, *more]), 'user')]
          for message in _messages(*turn)]


def _first(row, names):
  """The first of some columns that says something, or at least is there."""
  there = [row[name] for name in names if row.get(name) is not None]
  return next((value for value in there if not isinstance(value, str | list) or value),
              there[0] if there else None)


def _lines(text):
  return text.replace('\r\n', '\n')


def _given(row, name):
  """A setting of the template: a column, or inside chat_template_kwargs."""
  inner = row.get('chat_template_kwargs')
  if isinstance(inner, str) and inner.strip():
    inner = _json(inner, 'chat_template_kwargs')
  value = row.get(name)
  return inner.get(name) if value is None and isinstance(inner, Mapping) else value


def _mode(row):
  mode = _given(row, 'mode') or _given(row, 'reasoning_mode')
  thinking = _given(row, 'enable_thinking')
  if mode is None and thinking is not None:
    mode = 'no_think' if str(thinking).lower() in ('false', '0', 'no') else 'think'
  if mode is not None and (mode := str(mode).strip().lstrip('/').lower()) not in chat.MODES:
    raise RowError('bad_value', f'mode is {mode[:60]!r}, not {" or ".join(chat.MODES)}')
  return mode


def _tools(value):
  if isinstance(value, str):
    value = _json(value, 'tools') if value.strip() else None
  if isinstance(value, Mapping):
    value = [value]
  if value and not (isinstance(value, list | tuple)
                    and all(isinstance(tool, str | Mapping) for tool in value)):
    raise RowError('bad_value', 'tools are no list of signatures')
  return [tool if isinstance(tool, str) else _said(tool) for tool in value or ()]


def _said(value: Any) -> Any:
  """A value as JSON can hold it, without the fields that are null."""
  def without_null(value):
    if isinstance(value, Mapping):
      return {k: without_null(v) for k, v in value.items() if v is not None}
    return [without_null(v) for v in value] if isinstance(value, list) else value
  return without_null(tables.plain(value))


def _json(text, what, reason='bad_value'):
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise RowError(reason, f'{what} is not JSON: {error}') from None


def _name(entry: Mapping[str, Any]) -> str:
  """Who speaks, as the message has it."""
  name = entry.get('role') if entry.get('role') is not None else entry.get('from')
  return name.strip().lower() if isinstance(name, str) else ''


def _messages(value: Any, role: str = '') -> list[dict[str, Any]]:
  """Messages of a list of them, of one, of lists by field, or of the JSON text of any; or of a
  text that `role` wrote."""
  if isinstance(value, str):
    value = (_listed(value) or [{'role': role, 'content': value}]) if role else _json(
      value, 'messages')
  if isinstance(value, Mapping):
    value = {k: v for k, v in value.items() if v is not None}
    by_field = value and all(isinstance(v, list | tuple) for v in value.values())
    if by_field and len({len(v) for v in value.values()}) > 1:
      raise RowError('bad_value', 'fields of messages have different lengths')
    value = [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)
             ] if by_field else [value]
  found: list[dict[str, Any]] = []
  for entry in value if isinstance(value, list | tuple) else ():
    message = _message(entry)
    if message and _name(entry) in _CALLERS and found and found[-1]['role'] == 'assistant':
      found[-1].setdefault('tool_calls', []).extend(message['tool_calls'])  # one turn in two parts
    elif message:
      found.append(message)
  if not found:
    raise RowError('no_text', 'no messages')
  return found


def _listed(text: str) -> list | None:
  """The messages that a text is as JSON; None for what is only a text."""
  try:
    value = json.loads(text) if text.startswith('[') else None
  except (ValueError, RecursionError):
    return None
  messages = isinstance(value, list) and all(
    isinstance(m, dict) and _name(m) in _ROLES for m in value)
  return value if messages else None


def _message(entry: Any) -> dict[str, Any]:
  """A message as the template takes it; an empty one for a system turn that says nothing."""
  if not isinstance(entry, Mapping):
    raise RowError('unknown_role', f'a message is {type(entry).__name__}')
  entry = {k: v for k, v in entry.items() if v is not None}  # a struct of Parquet has all fields
  role = _ROLES.get(name := _name(entry))
  if role is None:
    raise RowError('unknown_role', f'{entry.get("role", entry.get("from"))!r}'[:80])
  content = next((entry[k] for k in ('content', 'value', 'text') if k in entry), None)
  if isinstance(content, list | tuple):
    parts = [p.get('text') if isinstance(p, Mapping) else p for p in content]
    content = ''.join(parts) if all(isinstance(p, str) for p in parts) else content
  message: dict[str, Any] = {'role': role}
  if role == 'assistant':
    calls = _calls(entry.get('tool_calls') or _said(entry.get('function_call')))
    if name in _CALLERS:
      calls, content = _calls(content), ''
    if calls:
      message['tool_calls'] = calls
      content = '' if content is None else content
    if isinstance(content, str):
      thought = next((entry[k] for k in chat.REASONING if isinstance(entry.get(k), str)), '')
      thought, empty, content = _thought(_lines(content), _lines(thought))
      message |= {'reasoning_content': thought} if thought else {}
      if empty and content.strip():  # said so, in a conversation that may think in other turns
        content = chat.NO_THOUGHT + content
    if any(entry.get(k) == 0 for k in ('weight', 'train', 'loss')):
      message['weight'] = 0
  elif role == 'tool' and not isinstance(content, str):
    content = '' if content is None else json.dumps(tables.plain(content), ensure_ascii=False)
  if isinstance(content, str) and (content.strip() or role == 'tool'):
    message['content'] = _lines(content)
  elif role == 'system' and (content is None or isinstance(content, str)):
    return {}
  elif not message.get('tool_calls'):
    raise RowError('no_text', f'a message of {role} holds {content!r}'[:80])
  return message


def _calls(value: Any) -> list[Any]:
  """Calls of tools, given as a list or one, as objects or JSON text."""
  read = lambda x: _json(x, 'a call', 'bad_tool_call') if isinstance(x, str) else x
  value = read(value) if value else []
  if isinstance(value, Mapping):
    value = [value]
  if not isinstance(value, list | tuple):
    raise RowError('bad_tool_call', f'calls are {value!r}'[:80])
  calls = [_said(read(call)) for call in value]
  for call in calls:
    of = call.get('function', call) if isinstance(call, dict) else None
    if isinstance(of, dict) and not of.get('arguments') and of.keys() <= _OF_CALLS:
      of['arguments'] = {}
  return calls


def _thought(content: str, thought: str) -> tuple[str, bool, str]:
  """(thought, whether it is said to be empty, answer) of what the assistant wrote, which may begin
  with its thought, whose opening mark a prompt may have had."""
  body, empty = content.lstrip(), False
  if _OPEN not in content and content.count(_CLOSE) == 1 and _ON_ITS_LINE.search(content):
    body = _OPEN + body
  if body.startswith(_OPEN):
    inner, closed, content = body.removeprefix(_OPEN).partition(_CLOSE)
    if not closed or (thought and inner.strip() not in ('', thought.strip())):
      raise RowError('bad_thought', 'a thought that is not closed, or two')
    thought, empty = thought or inner, not inner.strip()
  content = content.lstrip('\n')  # as the template does
  if _OPEN in content or _CLOSE in content:
    raise RowError('bad_thought', 'a mark of a thought inside an answer')
  thought = thought.strip('\n') if thought.strip() else ''
  return thought, empty and not thought, content


def _until_answer(messages: list) -> list:
  """Without what follows the assistant's last turn."""
  while messages and messages[-1]['role'] != 'assistant':
    messages = messages[:-1]
  return messages


def _check(found: dict[str, Any]) -> None:
  """Raises RowError where a conversation is none, and cuts off what nobody answers."""
  messages = found['messages'] = _until_answer(found['messages'])
  answers = [messages]
  if 'rejected' in found:
    answers.append([*messages[:found['prompt']], *found['rejected']])
  if not all(any(m['role'] == 'assistant' and m.get('weight') != 0
                 for m in turns[found.get('prompt', 0):]) for turns in answers):
    raise RowError('no_answer', 'nothing by the assistant that is to be learned')
  given = {k: found[k] for k in ('tools', 'python_tools', 'custom_instructions') if k in found}
  for turns in answers:
    before = 'start'
    for turn in turns:
      if turn['role'] not in _AFTER[before]:
        raise RowError('role_order', f'{turn["role"]} after {before}')
      before = turn['role']
    try:
      rendered = chat.render(turns, mode=found['mode'], today=datetime.date.min, **given)
    except ValueError as error:
      raise RowError('bad_tool_call', str(error)) from None
    found['mode'] = rendered.mode  # which the system turn may say
  if found['mode'] == 'no_think':  # the template writes an empty thought, and leaves others out
    for message in [m for turns in answers for m in turns if m['role'] == 'assistant']:
      message.pop('reasoning_content', None)
      if 'content' in message:
        message['content'] = message['content'].removeprefix(chat.NO_THOUGHT)
  if 'rejected' in found and messages[found['prompt']:] == found['rejected']:
    raise RowError('equal_pair', 'chosen and rejected are the same')


_AFTER = {
  'start': ('system', 'user'), 'system': ('user',), 'user': ('assistant',),
  'assistant': ('user', 'tool'), 'tool': ('tool', 'assistant'),
}


def transcript(conversation: Mapping[str, Any]) -> str:
  """What was said: thoughts, texts and calls, without system turn; both answers of a pair."""
  parts = []
  for message in [*conversation['messages'], *conversation.get('rejected', ())]:
    if message['role'] != 'system':
      parts += [message.get('reasoning_content', ''), message.get('content', '')]
      parts += [json.dumps(call, ensure_ascii=False) for call in message.get('tool_calls', ())]
  return '\n\n'.join(part.strip() for part in parts if part.strip())


# --- the pipeline --------------------------------------------------------------------------------


def identify(document: Document, languages: Sequence[str]) -> Iterator[Document | Reject]:
  """Names the language where no column did; keeps the wanted ones, all if none is named."""
  if not document.language:
    found = next(iter(detect_language(language_sample(document.text))), ('', 0.))
    document = dataclasses.replace(document, language=found[0], language_score=found[1])
  keep = not languages or document.language in languages
  yield document if keep else Reject(document, 'language', document.language or 'unknown')


def run(
  input: Sequence[str], output: str, name: str = 'conversations',
  options: ConversationOptions | None = None, *, beam_args: Sequence[str] = (),
) -> str:
  """Conversations of JSONL and Parquet files into the corpus `output/name/1.0.0`: returns that.

  With `options.tokenizer`, their tokens too, into `output/name_tokens/1.0.0`.

  Args:
    input: files or patterns, of any scheme that files.expand knows.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: what each means is said in options.py.
    beam_args: flags of Beam.

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown flag; no conversation was kept, saying where they went; or a tokenizer
      without the template's control tokens, before anything is written.
  """
  options = options or ConversationOptions()
  if options.tokenizer:
    facts = tokenize_corpus.load_tokenizer(options.tokenizer)
    chat.control_ids(options.tokenizer, facts.controls.get)
  files = expand([input] if isinstance(input, str) else input)
  steps: list[tuple[str, beam.PTransform]] = [
    ('read', Each(read, name, options.mode, options.limit)),
    ('language', Each(identify, options.languages)),
    *deduplication(options, size=size_of(files)),
    *decontamination(options),
  ]
  path = curation.curate(
    tables.parts([f['path'] for f in files], options.limit), steps, output=output, name=name,
    inputs=files, options=options, beam_args=beam_args)
  if options.tokenizer:
    tokenize_corpus.run(path, options.tokenizer, output, f'{name}_tokens',
                        TokenizeOptions(num_shards=options.num_shards), beam_args=beam_args)
  return path


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, ConversationOptions, prog='data_beam.conversations', name='conversations',
    input='JSONL or Parquet files, or patterns',
    description='Turns conversations and preference pairs in the common layouts into a corpus for '
    'fine-tuning: one form, checked, without duplicates and quotes of evaluation sets. Every one '
    'that is dropped is kept aside with the reason. data_beam.tokenize_corpus makes tokens with a '
    'mask of what the model learns to write.')


if __name__ == '__main__':
  sys.exit(main())
