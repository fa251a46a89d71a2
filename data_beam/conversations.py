"""Conversations in the common layouts → a curated corpus, from which tokens with a mask are made.

  python -m data_beam.conversations --input='sft/*.jsonl' --output=corpora --name=chat \\
    --tokenizer=tokenizer.json
  python -m data_beam.tokenize_corpus --input=corpora/chat/1.0.0 --tokenizer=… --output=tokens

A row of JSONL or Parquet is, by the columns that it has:

  chosen, rejected        a preference pair: two answers as texts, or as messages, to `prompt` (text
                          or messages), or two conversations that begin alike
  messages                [{"role": …, "content": …}, …], also under `conversation`
  conversations           ShareGPT: [{"from": "human", "value": …}, …]
  prompt, completion      texts or messages; `instruction` (and `input`), `question`; `response`,
                          `output`, `answer` are read likewise. Only the completion is learned

and besides, all optional: `system`; `tools` or `xml_tools`, `python_tools` (lists, or JSON text);
`custom_instructions`; `mode` (think, no_think) or `enable_thinking`; `language`; any of them inside
`chat_template_kwargs`, as smoltalk2 has them. A message of the assistant may have
`reasoning_content`, or begin with `<think>…</think>` (an empty one is kept where others think:
the answer does without on purpose); `tool_calls`; and `weight` 0, which keeps it from being
learned.

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
  'chatgpt': 'assistant', 'bot': 'assistant', 'model': 'assistant', 'function_call': 'assistant',
  'function': 'tool', 'function_response': 'tool', 'observation': 'tool', 'ipython': 'tool',
  'environment': 'tool', 'tool_response': 'tool', **{role: role for role in chat.ROLES},
}
_QUESTIONS, _ANSWERS = ('prompt', 'instruction', 'question'), (
  'completion', 'response', 'output', 'answer')
_OPEN, _CLOSE = '<think>', '</think>'


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
    if row.get('label') is False:
      raise RowError('bad_answer', 'its label says that the answer is not to be learned')
    question = _question(row)
    found['messages'] = [m | {'weight': 0} if m['role'] == 'assistant' else m for m in question]
    found['messages'] += _messages(answer, 'assistant')
  else:
    raise RowError('unknown_layout', f'its columns are {", ".join(row)[:100]}')
  system = _first(row, ('system', 'system_prompt'))
  custom = _given(row, 'custom_instructions')
  if isinstance(system, str) and system.strip() and found['messages'][0]['role'] != 'system':
    found['messages'].insert(0, {'role': 'system', 'content': system})
    found |= {'prompt': found['prompt'] + 1} if 'prompt' in found else {}
  if isinstance(custom, str) and custom.strip():
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
  return question, _until_answer(chosen), _until_answer(rejected)


def _question(row):
  question = _first(row, _QUESTIONS)
  if question is None:
    raise RowError('unknown_layout', 'answers without a question')
  more = row.get('input')
  if isinstance(question, str) and isinstance(more, str) and more.strip():
    question = f'{question}\n\n{more}'
  return _messages(question, 'user')


def _first(row, names):
  return next((row[name] for name in names if row.get(name) is not None), None)


def _given(row, name):
  """A setting of the template: a column, or inside chat_template_kwargs."""
  inner = row.get('chat_template_kwargs')
  if isinstance(inner, str):
    inner = _json(inner, 'chat_template_kwargs')
  value = row.get(name)
  return inner.get(name) if value is None and isinstance(inner, Mapping) else value


def _mode(row):
  mode = _given(row, 'mode') or _given(row, 'reasoning_mode')
  thinking = _given(row, 'enable_thinking')
  if mode is None and thinking is not None:
    mode = 'no_think' if str(thinking).lower() in ('false', '0', 'no') else 'think'
  if mode is not None and (mode := str(mode).strip().lstrip('/')) not in chat.MODES:
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
  return [tool if isinstance(tool, str) else tables.plain(tool) for tool in value or ()]


def _json(text, what):
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise RowError('bad_value', f'{what} is not JSON: {error}') from None


def _messages(value: Any, role: str = '') -> list[dict[str, Any]]:
  """Messages of a list of them (or its JSON text), or of a text that `role` wrote."""
  if isinstance(value, str):
    if role:
      return [_message({'role': role, 'content': value})]
    value = _json(value, 'messages')
  if not isinstance(value, list | tuple) or not value:
    raise RowError('no_text', 'no messages')
  return [_message(entry) for entry in value]


def _message(entry: Any) -> dict[str, Any]:
  if not isinstance(entry, Mapping):
    raise RowError('unknown_role', f'a message is {type(entry).__name__}')
  entry = {k: v for k, v in entry.items() if v is not None}  # a struct of Parquet has all fields
  name = entry.get('role', entry.get('from'))
  role = _ROLES.get(name.lower()) if isinstance(name, str) else None
  if role is None:
    raise RowError('unknown_role', f'{name!r}'[:80])
  content = entry.get('content', entry.get('value'))
  if isinstance(content, list | tuple):
    parts = [p.get('text') if isinstance(p, Mapping) else p for p in content]
    content = ''.join(parts) if all(isinstance(p, str) for p in parts) else content
  message: dict[str, Any] = {'role': role}
  if role == 'assistant':
    calls = entry.get('tool_calls') or (
      [entry['function_call']] if isinstance(entry.get('function_call'), Mapping) else None)
    if name == 'function_call' and isinstance(content, str):
      calls, content = [_json(content, 'a function call')], None
    if calls:
      message['tool_calls'] = tables.plain(calls)
    if isinstance(content, str):
      thought = next((entry[k] for k in chat.REASONING if isinstance(entry.get(k), str)), '')
      thought, empty, content = _thought(content, thought)
      message |= {'reasoning_content': thought} if thought else {}
      if empty and content.strip():  # said so, in a conversation that may think in other turns
        content = chat.NO_THOUGHT + content
    if entry.get('weight') == 0:
      message['weight'] = 0
  if isinstance(content, str) and content.strip():
    message['content'] = content
  elif not message.get('tool_calls'):
    raise RowError('no_text', f'a message of {role} holds {content!r}'[:80])
  return message


def _thought(content: str, thought: str) -> tuple[str, bool, str]:
  """(thought, whether it is said to be empty, answer) of what the assistant wrote, which may begin
  with its thought."""
  body, empty = content.lstrip(), False
  if body.startswith(_OPEN):
    inner, closed, content = body.removeprefix(_OPEN).partition(_CLOSE)
    if not closed or (thought and inner.strip()):
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
  if not any(m['role'] == 'assistant' and m.get('weight') != 0 for m in messages):
    raise RowError('no_answer', 'nothing by the assistant that is to be learned')
  answers = [messages]
  if 'rejected' in found:
    answers.append([*messages[:found['prompt']], *found['rejected']])
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
