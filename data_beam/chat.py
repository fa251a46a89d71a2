"""Conversations → text, the spans to train on, token ids: one template for training and inference.

The turns, sentences and modes are those of SmolLM3's released chat template (of HuggingFaceTB's
SmolLM3-3B, Apache-2.0). A conversation renders to the same bytes, except where that is wrong:

* it never closes the system turn of a conversation without tools; here every turn is closed;
* it writes a tool given as a mapping in Python's notation; here it is JSON, as the prompt promises;
* it takes `/think` out of a system text wherever it stands, be it in a URL; here only as a word;
* it drops `tool_calls` and reasoning kept beside the content; here they are written as the model is
  told to write them.

`parity=True` gives the released bytes, errors included. `template()` is this same rendering as the
Jinja text that goes with an exported model; the tests hold the two equal.

Text is data: only the control tokens that the template itself writes become control tokens.

Both wings render by this file, curation ahead of training and training's users at inference, so it
imports the standard library alone.
"""

import dataclasses
import datetime
import hashlib
import json
import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

START, END = '<|im_start|>', '<|im_end|>'
CONTROL = (START, END)  # what a tokenizer must have as tokens of their own
MODES = ('think', 'no_think')
MODES_TOLD = ('auto', *MODES)  # how data_beam.conversations is told of those that do not say it
ROLES = ('system', 'user', 'assistant', 'tool')

NO_THOUGHT = '<think>\n\n</think>\n'
REASONING = ('reasoning_content', 'thinking', 'reasoning')  # names it goes by, as in transformers

# What the released model was trained to read.
_PERSONA = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face.'
_THINKING_PERSONA = (
  f'{_PERSONA} Your role as an assistant involves thoroughly exploring questions through a '
  'systematic thinking process before providing the final precise and accurate solutions. This '
  'requires engaging in a comprehensive cycle of analysis, summarizing, exploration, reassessment, '
  'reflection, backtracking, and iteration to develop well-considered thinking process. Please '
  'structure your response into two main sections: Thought and Solution using the specified '
  'format: <think> Thought section </think> Solution section. In the Thought section, detail your '
  'reasoning process in steps. Each step should include detailed considerations such as analysing '
  'questions, summarizing relevant findings, brainstorming new ideas, verifying the accuracy of '
  'the current steps, refining any errors, and revisiting previous steps. In the Solution section, '
  'based on various attempts, explorations, and reflections from the Thought section, '
  'systematically present the final solution that you deem correct. The Solution section should be '
  'logical, accurate, and concise and detail necessary steps needed to reach the conclusion.'
)
_XML_TOOLS = (
  'You may call one or more functions to assist with the user query.\nYou are provided with '
  'function signatures within <tools></tools> XML tags:\n\n<tools>\n',
  '</tools>\n\nFor each function call, return a json object with function name and arguments '
  'within <tool_call></tool_call> XML tags:\n<tool_call>\n'
  '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
)
_PYTHON_TOOLS = (
  "When you send a message containing Python code between '<code>' and '</code>' tags, it will be "
  'executed in a stateful Jupyter notebook environment, and you will then be given the output to '
  'continued reasoning in an agentic loop.\n\nYou can use the following tools in your python code '
  'like regular functions:\n<tools>\n',
  '</tools>\n\nThe state persists between code executions: so variables that you define in one '
  'step are still available thereafter.',
)

Message = Mapping[str, Any]  # role, content; an assistant's also tool_calls, reasoning_content
Tool = str | Mapping[str, Any]  # a signature as text, or as a JSON schema


@dataclasses.dataclass(frozen=True)
class Segment:
  """A stretch of a rendered conversation, encoded on its own.

  Attributes:
    text: never empty.
    trained: the model is to learn to write it.
    control: one control token, written by the template.
  """

  text: str
  trained: bool = False
  control: bool = False


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A rendered conversation. `mode` is the one that holds, flags in the system turn considered."""

  segments: tuple[Segment, ...]
  mode: str

  @property
  def text(self) -> str:
    """All segments as one string."""
    return ''.join(s.text for s in self.segments)

  @property
  def spans(self) -> list[tuple[int, int]]:
    """Where the text to train on begins and ends, in characters; neighbours are one span."""
    spans, position = [], 0
    for segment in self.segments:
      end = position + len(segment.text)
      if segment.trained:
        joins = spans and spans[-1][1] == position
        spans.append((spans.pop()[0] if joins else position, end))
      position = end
    return spans


def render(
  messages: Sequence[Message],
  *,
  mode: Literal['think', 'no_think'] = 'think',
  tools: Sequence[Tool] = (),
  python_tools: Sequence[Tool] = (),
  custom_instructions: str = '',
  today: datetime.date | None = None,
  knowledge_cutoff: str = 'June 2025',
  generation_prompt: bool = False,
  train_user: bool = False,
  parity: bool = False,
) -> Rendered:
  """Renders a conversation: whole for training, or as the prompt of the next assistant turn.

  Trained on are the assistant turns, from `<|im_start|>assistant` to the line break behind
  `<|im_end|>`, but for those with a `weight` of 0 (as in OpenAI's files). In no_think mode each of
  them begins with an empty thought, and reasoning given beside the content is left out. Tool
  results become user turns.

  Args:
    messages: `{'role': …, 'content': …}`; roles are system (first message only), user, assistant
      and tool. An assistant message may have `tool_calls`, each `{'name': …, 'arguments': {…}}`,
      bare or under 'function', and then needs no content; and `reasoning_content`.
      In the system message the words `/think` and `/no_think` override `mode` and are taken out,
      and `/system_override` leaves the header, and any tools, out of the system turn.
    mode: think or no_think.
    tools: functions that the model calls by writing JSON in `<tool_call>` tags.
    python_tools: functions that it calls from Python code in `<code>` tags.
    custom_instructions: stands in the header where there is no system message.
    today: date for the header; None = today's.
    knowledge_cutoff: likewise.
    generation_prompt: end with the beginning of an assistant turn, for the model to continue.
    train_user: the system, user and tool turns are trained on too, as SmolLM3's mid-training does.
    parity: the bytes of the released template, mistakes included (see the module).
  Raises:
    ValueError: naming the message, counted from 0, and what to change.
  """
  if mode not in MODES:
    raise ValueError(f'mode={mode!r}: one of {", ".join(MODES)}')
  for name, given in (('tools', tools), ('python_tools', python_tools)):
    if isinstance(given, str | Mapping):
      raise ValueError(f'{name} is one {type(given).__name__}: give a list of signatures')
  _check(messages)
  override, without = False, ''
  if messages[0]['role'] == 'system':
    if custom_instructions:
      raise ValueError(
        'message 0: a system message and custom_instructions say the same thing twice: keep one'
      )
    system = messages[0]['content']
    system, no_think = _without('/no_think', system, parity)
    system, think = _without('/think', system, parity)
    mode = 'no_think' if no_think else 'think' if think else mode
    custom_instructions = system.rstrip()
    without, override = _without('/system_override', custom_instructions, parity)

  closed = True
  if override:
    header = without.rstrip()
  else:
    today = today or datetime.date.today()
    persona = _THINKING_PERSONA if mode == 'think' else _PERSONA
    header = (
      f'## Metadata\n\nKnowledge Cutoff Date: {knowledge_cutoff}\n'
      f'Today Date: {today:%d %B %Y}\nReasoning Mode: /{mode}\n\n'
      f'## Custom Instructions\n\n{custom_instructions or persona}\n\n'
    )
    if tools or python_tools:
      header += '### Tools\n\n'
      for given, (before, after) in ((tools, _XML_TOOLS), (python_tools, _PYTHON_TOOLS)):
        if given:
          header += before + ''.join(_signature(t, parity) + '\n' for t in given) + after
      header += '\n\n'
    elif parity:
      closed = False
  segments = _turn(f'system\n{header}', trained=train_user)
  if not closed:
    del segments[-2:]

  opening = 'assistant\n' + (NO_THOUGHT if mode == 'no_think' else '')
  for i, message in enumerate(messages):
    if message['role'] in ('user', 'tool'):
      segments += _turn(f'user\n{message["content"]}', trained=train_user)
    elif message['role'] == 'assistant':
      body = _content(message) if parity else _answer(message, i, mode)
      segments += _turn(opening, body, trained=message.get('weight', 1) != 0)
  if generation_prompt:
    segments += [Segment(START, control=True), Segment(opening)]
  return Rendered(tuple(s for s in segments if s.text), mode)


_FIRST_DAY = datetime.date(2025, 7, 1)  # after the knowledge cutoff
_DAYS = 730


def render_document(
  conversation: Mapping[str, Any], id: str, *, train_user: bool = False, rejected: bool = False
) -> tuple[Rendered, Rendered | None]:
  """A conversation of a curated corpus; and of a preference pair its prompt, of which nothing is
  learned.

  The date in its header is one of two years, by the document's id: the model learns to read it, not
  one day by heart, and the same files give the same tokens on any day.

  Args:
    conversation: `metadata['conversation']` of a document, see data_beam/conversations.py.
    id: of the document.
    rejected: with the rejected answer of a pair, not the chosen one.
  """
  draw = int.from_bytes(hashlib.sha256(id.encode('utf-8', 'replace')).digest()[:8], 'big')
  fields = ('mode', 'tools', 'python_tools', 'custom_instructions')
  given = {k: conversation[k] for k in fields if k in conversation}
  given['today'] = _FIRST_DAY + datetime.timedelta(days=draw % _DAYS)
  messages = conversation['messages']
  if 'rejected' not in conversation:
    return render(messages, train_user=train_user, **given), None
  prompt = messages[:conversation['prompt']]
  if rejected:
    messages = [*prompt, *conversation['rejected']]
  return render(messages, **given), render(prompt, generation_prompt=True, **given)


def encode(
  rendered: Rendered, controls: Mapping[str, int], encode_text: Callable[[str], list[int]]
) -> tuple[list[int], list[bool]]:
  """Token ids, and for each whether it is to be learnt (as a target).

  No BOS is prepended, as for SmolLM3. What the model is to write is encoded apart from the prompt
  before it, so the ids of a conversation are those of its prompt followed by those of the answer.

  Args:
    controls: of `control_ids`.
    encode_text: text → ids, in which no control token is looked for.
  """
  ids, trained = [], []
  for segment in rendered.segments:
    new = [controls[segment.text]] if segment.control else encode_text(segment.text)
    ids += new
    trained += [segment.trained] * len(new)
  return ids, trained


def control_ids(path: str, find: Callable[[str], int | None]) -> dict[str, int]:
  """Ids of `<|im_start|>` and `<|im_end|>` in a tokenizer; the latter ends an answer.

  Args:
    path: of the tokenizer, for the message.
    find: how a control token is spelt → its id.
  Raises:
    ValueError: the tokenizer lacks them; says how to add them.
  """
  found = {token: find(token) for token in CONTROL}
  if missing := [token for token, i in found.items() if i is None]:
    raise ValueError(
      f'{path} has no control token {" or ".join(missing)}, which the chat template '
      'needs: train one with --config.tokenizer.chat=True, or add them to a tokenizer.json with '
      f"transformers' add_special_tokens and resize the embedding"
    )
  return {token: i for token, i in found.items() if i is not None}


def _without(flag: str, text: str, parity: bool) -> tuple[str, bool]:
  """The text without the flag, and whether it was there: a word of its own, not part of a path."""
  flag = re.escape(flag)
  word = flag if parity else rf'(?<![^\s(]){flag}(?=[.,;:!?)]*(?:\s|\Z))'
  text, count = re.subn(word, '', text)
  return text, count > 0


def _turn(opening: str, body: str = '', trained: bool = False) -> list[Segment]:
  return [
    Segment(START, trained, control=True),
    Segment(opening, trained),
    Segment(body, trained),
    Segment(END, trained, control=True),
    Segment('\n', trained),
  ]


def _content(message: Message) -> str:
  return (message.get('content') or '').lstrip('\n')


def _answer(message: Message, index: int, mode: str) -> str:
  """What the model wrote: reasoning, content, tool calls."""
  content = _content(message)
  calls = [_tool_call(call, index) for call in message.get('tool_calls') or ()]
  text = '\n'.join(([content] if content else []) + calls)
  reasoning = next((message[k] for k in REASONING if message.get(k)), '')
  if reasoning and mode == 'think':
    return '<think>\n' + reasoning.strip('\n') + '\n</think>\n' + text
  return text


def _signature(tool: Tool, parity: bool) -> str:
  return str(tool) if parity or isinstance(tool, str) else json.dumps(tool, ensure_ascii=False)


def _tool_call(call: Any, index: int) -> str:
  where = f'message {index}: tool call {call!r}'
  function = call.get('function', call) if isinstance(call, Mapping) else None
  if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
    raise ValueError(f"{where} has no name: use {{'name': …, 'arguments': {{…}}}}")
  arguments = function.get('arguments')
  try:
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value, Mapping):
      raise ValueError(f'it is {type(value).__name__}')
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
  except (TypeError, ValueError) as e:
    raise ValueError(f"{where}: 'arguments' must be a JSON object: {e}") from None
  name = json.dumps(function['name'], ensure_ascii=False)
  return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _check(messages: Sequence[Message]) -> None:
  if not messages:
    raise ValueError("the conversation is empty: give it at least {'role': 'user', 'content': …}")
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or 'role' not in message:
      raise ValueError(f"message {i} has no role: use {{'role': …, 'content': …}}")
    role = message['role']
    if role not in ROLES:
      raise ValueError(f'message {i}: unknown role {role!r}: use {", ".join(ROLES)}')
    if role == 'system' and i:
      raise ValueError(f'message {i}: a system message can only be the first: move or merge it')
    content, calls = message.get('content'), message.get('tool_calls')
    if isinstance(content, str) or (content is None and role == 'assistant' and calls):
      continue
    if content is None:
      or_calls = ', or tool_calls' if role == 'assistant' else ''
      raise ValueError(f'message {i} ({role}) has no content: give it text{or_calls}')
    raise ValueError(
      f'message {i} ({role}): content is {type(content).__name__}: join its parts into one text'
    )


def template() -> str:
  """The rendering of this file as a Jinja chat template, for `chat_template.jinja`.

  Variables, beside those that transformers sets: `enable_thinking`, `xml_tools` (or `tools`),
  `python_tools`, `custom_instructions`, `knowledge_cutoff`, `today` (text; default: the date).
  """
  constants = {
    'START': START,
    'END': END,
    'NO_THOUGHT': NO_THOUGHT,
    'PERSONA': _PERSONA,
    'THINKING_PERSONA': _THINKING_PERSONA,
    'XML_BEFORE': _XML_TOOLS[0],
    'XML_AFTER': _XML_TOOLS[1],
    'PYTHON_BEFORE': _PYTHON_TOOLS[0],
    'PYTHON_AFTER': _PYTHON_TOOLS[1],
  }
  return string.Template(_JINJA).substitute({k: json.dumps(v) for k, v in constants.items()})


_JINJA = r"""
{#- Conversations in the format of SmolLM3; every turn is closed. Written by smoljax.chat. -#}
{%- macro without(flag, text) -%}
  {%- for part in text.split(flag) -%}
    {%- if not loop.first -%}
      {%- set before = loop.previtem -%}
      {%- set after = part.lstrip(".,;:!?)") -%}
      {%- set starts = not before[-1:].strip().strip("(") if before else loop.index0 == 1 -%}
      {%- set ends = not after[:1].strip() if after else loop.last -%}
      {{- "" if starts and ends else flag -}}
    {%- endif -%}
    {{- part -}}
  {%- endfor -%}
{%- endmacro -%}
{%- set mode = "/think" if enable_thinking is not defined or enable_thinking else "/no_think" -%}
{%- set instructions = custom_instructions or "" -%}
{%- set xml_tools = tools or xml_tools -%}
{%- set override = false -%}
{%- if not messages -%}
  {{- raise_exception("the conversation is empty") -}}
{%- elif messages[0].role == "system" -%}
  {%- set system = messages[0].content -%}
  {%- if system is not string -%}
    {{- raise_exception("message 0 (system): content must be text") -}}
  {%- elif instructions -%}
    {{- raise_exception("message 0: a system message and custom_instructions: keep one") -}}
  {%- endif -%}
  {%- set fast = without("/no_think", system) -%}
  {%- set plain = without("/think", fast) -%}
  {%- if fast != system -%}
    {%- set mode = "/no_think" -%}
  {%- elif plain != fast -%}
    {%- set mode = "/think" -%}
  {%- endif -%}
  {%- set instructions = plain.rstrip() -%}
  {%- set free = without("/system_override", instructions) -%}
  {%- set override = free != instructions -%}
{%- endif -%}

{{- $START ~ "system\n" -}}
{%- if override -%}
  {{- free.rstrip() -}}
{%- else -%}
  {{- "## Metadata\n\nKnowledge Cutoff Date: " ~ (knowledge_cutoff or "June 2025") ~ "\n" -}}
  {{- "Today Date: " ~ (today or strftime_now("%d %B %Y")) ~ "\n" -}}
  {{- "Reasoning Mode: " ~ mode ~ "\n\n## Custom Instructions\n\n" -}}
  {%- if instructions -%}
    {{- instructions -}}
  {%- elif mode == "/think" -%}
    {{- $THINKING_PERSONA -}}
  {%- else -%}
    {{- $PERSONA -}}
  {%- endif -%}
  {{- "\n\n" -}}
  {%- if xml_tools or python_tools -%}
    {{- "### Tools\n\n" -}}
    {%- if xml_tools -%}
      {{- $XML_BEFORE -}}
      {%- for tool in xml_tools -%}
        {{- (tool if tool is string else tool | tojson) ~ "\n" -}}
      {%- endfor -%}
      {{- $XML_AFTER -}}
    {%- endif -%}
    {%- if python_tools -%}
      {{- $PYTHON_BEFORE -}}
      {%- for tool in python_tools -%}
        {{- (tool if tool is string else tool | tojson) ~ "\n" -}}
      {%- endfor -%}
      {{- $PYTHON_AFTER -}}
    {%- endif -%}
    {{- "\n\n" -}}
  {%- endif -%}
{%- endif -%}
{{- $END ~ "\n" -}}

{%- set opening = $START ~ "assistant\n" ~ ($NO_THOUGHT if mode == "/no_think" else "") -%}
{%- for message in messages -%}
  {%- set role = message.role -%}
  {%- if role not in ["system", "user", "assistant", "tool"] -%}
    {{- raise_exception("message " ~ loop.index0 ~ ": unknown role " ~ role) -}}
  {%- elif role == "system" and not loop.first -%}
    {{- raise_exception("message " ~ loop.index0 ~ ": a system message can only be the first") -}}
  {%- elif message.content is not string and not (role == "assistant" and message.tool_calls) -%}
    {{- raise_exception("message " ~ loop.index0 ~ ": content must be text") -}}
  {%- elif role == "user" or role == "tool" -%}
    {{- $START ~ "user\n" ~ message.content ~ $END ~ "\n" -}}
  {%- elif role == "assistant" -%}
    {%- set content = message.content.lstrip("\n") if message.content is string else "" -%}
    {%- set reasoning = message.reasoning_content or message.thinking or message.reasoning -%}
    {%- generation -%}
    {{- opening -}}
    {%- if reasoning and mode == "/think" -%}
      {{- "<think>\n" ~ reasoning.strip("\n") ~ "\n</think>\n" -}}
    {%- endif -%}
    {{- content -}}
    {%- for call in message.tool_calls or [] -%}
      {%- set function = call.function or call -%}
      {%- if function.name is not string -%}
        {{- raise_exception("a tool call has no name") -}}
      {%- elif function.arguments is not string and function.arguments is not mapping -%}
        {{- raise_exception("the arguments of a tool call must be a JSON object") -}}
      {%- endif -%}
      {%- set arguments = function.arguments -%}
      {%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
      {{- "\n" if content or not loop.first -}}
      {{- '<tool_call>\n{"name": ' ~ (function.name | tojson) -}}
      {{- ', "arguments": ' ~ arguments ~ '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- $END ~ "\n" -}}
    {%- endgeneration -%}
  {%- endif -%}
{%- endfor -%}
{{- opening if add_generation_prompt -}}
"""
