"""What an answer says: its thought, its number, its calls of tools; and whether that is right.

Rules on text, without a model: evaluation by generation and rewards of reinforcement learning are
both made of them. Where lm-evaluation-harness has a rule of its own, it stands here beside ours
under its name, and gives its verdicts.
"""

import decimal
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from smoljax.data import chat

OPEN, CLOSE = '<think>', '</think>'
_CALL, _CALL_END = '<tool_call>', '</tool_call>'


class Parts(NamedTuple):
  """A text that a model wrote, taken apart."""

  thought: str  # the text of its thoughts
  answer: str  # what comes after the last one; '' if a thought is not closed
  thoughts: int  # how many were opened or closed
  closed: bool  # each that was opened was closed, and none else


def split(text: str) -> Parts:
  """The thought and the answer. An answer inside a thought that is not closed is none."""
  pieces = re.split(f'({OPEN}|{CLOSE})', text)
  marks = pieces[1::2]
  closed = marks == [OPEN, CLOSE] * (len(marks) // 2)
  unclosed = bool(marks) and marks[-1] == OPEN
  thought = '\n'.join(
    inside for mark, inside in zip(marks, pieces[2::2], strict=True) if mark == OPEN)
  if not closed and marks and marks[0] == CLOSE:  # the opening was left out
    thought = pieces[0] + thought
  count = max(marks.count(OPEN), marks.count(CLOSE))
  return Parts(thought.strip(), '' if unclosed else pieces[-1].strip(), count, closed)


def follows_mode(text: str, mode: str, *, ended: bool = True) -> bool:
  """Whether the text is what the mode asks for: a thought, closed and not empty, in `think`, none
  (or an empty one) in `no_think`; then an answer, and the end of the turn.

  Args:
    mode: think or no_think.
    ended: the model ended its turn by itself.
  """
  parts = split(text)
  if not (ended and parts.closed and parts.answer and parts.thoughts <= 1):
    return False
  starts = not parts.thoughts or text.lstrip().startswith(OPEN)
  return starts and bool(parts.thought) == (mode == 'think')


# ---------------------------------------------------------------------------------------- numbers


def gsm8k_strict(text: str) -> str:
  """What lm-eval's filter `strict-match` takes: the first number after `####`, or [invalid]."""
  found = re.search(r'#### (\-?[0-9\.\,]+)', text)
  return found[1].strip() if found else '[invalid]'


def gsm8k_flexible(text: str) -> str:
  """What lm-eval's filter `flexible-extract` takes: the last that looks like a number, be it '...'
  or the -5 of '3-5'; or [invalid]."""
  found = re.findall(r'(-?[$0-9.,]{2,})|(-?[0-9]+)', text)
  return next(filter(None, found[-1])).strip() if found else '[invalid]'


def gsm8k_equal(taken: str, reference: str) -> bool:
  """lm-eval's `exact_match` of GSM8K: equal text without commas, `$`, what is up to `#### `, and a
  final full stop."""
  def bare(text: str) -> str:
    for pattern in (',', r'\$', r'(?s).*#### ', r'\.$'):
      text = re.sub(pattern, '', text)
    return text.lower()
  return bare(taken) == bare(reference)


_DIGITS = r'(?:\d+(?:[.,]\d+)*|(?<!\.)\.\d+)'
_SPACED = r'\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?:[.,]\d+)?(?!\d)'  # 1 234,5: not in English
_BEFORE = r'(?<!\w)(?<!\d[.,])((?:(?<![\w)\].,])[-\u2212+])?)[$\u20ac\u00a3]?'  # the sign


def readings(text: str, language: str = 'en') -> list[set[decimal.Decimal]]:
  """The numbers in a text, in order, each with the values that it may have.

  1,234 is 1234; 1,5 is 1.5 where the language writes it so. In other languages than English a
  comma may be decimal and a full stop or a space may group: 1.234 is both 1234 and 1.234 there. A
  hyphen between two numbers is no sign.
  """
  text = text.replace('{,}', ',')  # as LaTeX groups digits
  kinds = _DIGITS if language == 'en' else f'{_SPACED}|{_DIGITS}'
  found = []
  for match in re.finditer(f'{_BEFORE}({kinds})', text):
    sign = '-' if match[1] in ('-', '\u2212') else ''
    values = {_value(match[2], ',', '.')}
    if language != 'en':
      values.add(_value(re.sub('[ \u00a0\u202f]', '', match[2]), '.', ','))
    values.discard(None)
    found.append({decimal.Decimal(sign + value) for value in values if value is not None})
  return [values for values in found if values]


def _value(text: str, group: str, point: str) -> str | None:
  """The digits of a number in one notation; None if it is none there."""
  whole = rf'\d*|\d{{1,3}}(?:{re.escape(group)}\d{{3}})+'
  if not re.fullmatch(rf'(?:{whole})(?:{re.escape(point)}\d+)?', text):
    return None
  return text.replace(group, '').replace(point, '.')


def last_number_is(text: str, reference: str, language: str = 'en') -> bool:
  """Whether the last number of the text has the value of the reference: 18, 18.00 and $18 are
  equal. False where either has none."""
  plain = _value(reference.strip().lstrip('-+'), ',', '.')
  numbers = readings(text, language)
  wanted = readings(reference, 'en' if plain else language)
  return bool(numbers and wanted) and bool(numbers[-1] & wanted[-1])


def exact(answer: str, accepted: str | Sequence[str], language: str = 'en') -> bool:
  """Whether an answer (without its thought) is one of the accepted ones.

  For one that is a number, the last number of the answer is compared by value. Otherwise the whole
  answer or its last line must be equal, case, spaces and a final full stop aside.
  """
  for want in [accepted] if isinstance(accepted, str) else accepted:
    if re.fullmatch(rf'\s*[-\u2212+]?(?:{_DIGITS}|{_SPACED})\s*', want):
      if last_number_is(answer, want, language):
        return True
    elif _plain(want) in {_plain(answer), _plain(answer.strip().rpartition('\n')[2])}:
      return True
  return False


def _plain(text: str) -> str:
  return ' '.join(unicodedata.normalize('NFC', text).casefold().split()).removesuffix('.').strip()


# ------------------------------------------------------------------------------------------ tools


class Call(NamedTuple):
  """One call of a tool."""

  name: str
  arguments: Mapping[str, Any]


def tool_calls(text: str) -> list[Call]:
  """The calls in an answer, in order; none is no error.

  Raises ValueError for what is begun and is no call: no JSON object with `name` and `arguments`
  alone between the tags, a key twice, a tag that is not closed.
  """
  calls, rest = [], text
  while True:
    before, begun, rest = rest.partition(_CALL)
    if _CALL_END in before:
      raise ValueError(f'{_CALL_END} without a call')
    if not begun:
      return calls
    start = len(rest) - len(rest.lstrip())
    try:
      value, end = _DECODER.raw_decode(rest, start)
    except RecursionError:
      raise ValueError('a call nests too deeply') from None
    space, closed, rest = rest[end:].partition(_CALL_END)
    if not closed or space.strip():
      raise ValueError(f'after a call comes {space[:40]!r}, not {_CALL_END}')
    if not isinstance(value, dict) or value.keys() != {'name', 'arguments'} or not isinstance(
        value['name'], str) or not isinstance(value['arguments'], dict):
      raise ValueError('a call is no object with a name and arguments')
    calls.append(Call(value['name'], value['arguments']))


def _once(pairs: list[tuple[str, Any]]) -> dict:
  if len(found := dict(pairs)) < len(pairs):
    raise ValueError('a key comes twice')
  return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def same_calls(text: str, wanted: Iterable[Mapping[str, Any]]) -> bool:
  """Whether the answer calls what is wanted and nothing else, in any order: names and arguments
  equal with their types (true is not 1, "1" is not 1). None wanted: none may be there.

  Args:
    wanted: each `{'name': …, 'arguments': {…}}`, bare or under 'function'.
  """
  try:
    calls = tool_calls(text)
  except ValueError:
    return False
  for call in wanted:
    call = call.get('function', call)
    found = next((c for c in calls if c.name == call['name']
                  and _same(c.arguments, call['arguments'])), None)
    if found is None:
      return False
    calls.remove(found)
  return not calls


def _same(got: Any, wanted: Any) -> bool:
  if isinstance(wanted, Mapping):
    return isinstance(got, Mapping) and got.keys() == wanted.keys() and all(
      _same(got[k], wanted[k]) for k in wanted)
  if isinstance(wanted, list | tuple):
    return isinstance(got, list) and len(got) == len(wanted) and all(map(_same, got, wanted))
  if isinstance(wanted, float) and type(got) is int:  # 2 is a number as 2.0 is
    return got == wanted
  return type(got) is type(wanted) and got == wanted


# ----------------------------------------------------------------------------------------- scores


def pass_at_k(n: int, c: int, k: int) -> float:
  """The chance that of k samples one is right, where c of n were: without bias (Chen et al. 2021,
  arXiv:2107.03374). Raises ValueError for k > n."""
  if not 1 <= k <= n:
    raise ValueError(f'pass@{k} needs at least {k} samples, there are {n}')
  return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0


def interval(mean: float, n: int, z: float = 1.96) -> list[float]:
  """Wilson's interval of a share of n questions, 95 % by default: it holds at 0 and 1 too."""
  if not n:
    return [0.0, 1.0]
  middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
  half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
  return [max(0.0, middle - half), min(1.0, middle + half)]


def code_block(text: str) -> str | None:
  """The last block of code between ``` in a text; None if there is none."""
  found = re.findall(r'```[^\n`]*\n(.*?)(?:\n?```|\Z)', text, re.DOTALL)
  return found[-1] if found else None


def turn(text: str, mode: str | None = None) -> chat.Message:
  """What a model wrote as a message of the conversation that goes on: its thought beside its
  answer, so that each template puts it where it belongs."""
  parts = split(text)
  if not parts.thoughts:
    return {'role': 'assistant', 'content': text.strip()}
  return {'role': 'assistant', 'content': parts.answer, 'reasoning_content': parts.thought}
