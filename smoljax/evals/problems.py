"""The sets that are scored by generation: public tasks from JSONL files, and sets of your own.

A set of your own is a JSONL file, one question a line:

  {"prompt": "7+5*3=", "answer": "6", "depth": 2}
  {"prompt": "Combien font 2 et 2 ?", "answer": ["4", "quatre"], "language": "fr", "mode": "think"}
  {"turns": [{"prompt": "…", "answer": "…", "mode": "think"}, {"prompt": "…", "mode": "no_think"}]}
  {"prompt": "Write about owls.", "constraints": [{"kind": "words", "at_most": 40}]}
  {"prompt": "…", "tools": [{"name": "f", "parameters": {…}}], "tool_calls": [{"name": "f",
   "arguments": {"x": 1}}]}
  {"prompt": "def add(a, b):\\n", "tests": "assert add(1, 2) == 3", "names": ["add"]}

A question (or a turn of it) is graded by what it has of `answer` (one, or several of which any is
right; numbers by value, `answers.exact`), `constraints` (all kept), `tool_calls` (these and no
others; [] = none may be made) and `tests` (of the program written). `language`, `depth` and any
other text or number tell the scores apart. `system` instructs, `mode` says in which one it is put
alone, `plain` is the text for a base model where it is another. `question` is taken for `prompt`;
and a conversation, `messages`, for its turns, whose answers are what is right.
"""

import dataclasses
import functools
import itertools
import json
import os
import random
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smoljax.data import chat
from smoljax.evals import answers, constraints, execution, held_out, serial, tasks
from smoljax.evals.generative import Question, Set, Turn


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a set comes from, and how much of it.

  Attributes:
    folder: with the JSONL files of public tasks.
    limit: questions, spread evenly over the file; 0 = all.
    seed: of sets that are made by rule.
    weak: run programs even where they cannot be confined (`execution.test`).
  """

  folder: str = ''
  limit: int = 0
  seed: int = 0
  weak: bool = False


def load_set(name: str, source: Source) -> Set:
  """One of `SETS`, or the questions in a JSONL file (`tasks.own_file`).

  Raises:
    ValueError, FileNotFoundError: an unknown name, a missing file, a line that is no question.
    execution.Refused: it needs programs run, and this machine cannot confine them.
  """
  if name in SETS:
    return SETS[name](source)
  if path := tasks.own_file(name, source.folder):
    return read_set(path, limit=source.limit, weak=source.weak)
  raise ValueError(f'unknown task {name!r}: one of {", ".join(SETS)}, or a file of your own')


def read_set(path: str, *, limit: int = 0, weak: bool = False) -> Set:
  """The questions of a JSONL file (see the module). Raises as `load_set`."""
  questions = [q for _, q in _read(path, limit, lambda row: question(row, weak=weak))]
  if not questions:
    raise ValueError(f'{path} is empty')
  return Set(questions, constant=_constant(path))


def question(row: Mapping[str, Any], *, weak: bool = False) -> Question:
  """A question from its line. Raises ValueError saying what is wrong with it."""
  if not isinstance(row, Mapping):
    raise ValueError('a question is an object')
  if 'messages' in row:
    row = _of_messages(row)
  elif 'question' in row and 'prompt' not in row:
    row = {**row, 'prompt': row['question']}
  if ('prompt' in row) == ('turns' in row):
    raise ValueError('a question is an object with either prompt or turns')
  lines = row.get('turns', [row])
  if not isinstance(lines, list) or not lines:
    raise ValueError('turns must be a list of objects with a prompt')
  language = row.get('language') or 'en'
  turns = []
  for line in lines:
    prompt, mode = line.get('prompt'), line.get('mode') or row.get('mode')
    if not isinstance(prompt, str) or not prompt:
      raise ValueError('prompt must be a text')
    if mode not in (None, *chat.MODES):
      raise ValueError(f'mode {mode!r}: one of {", ".join(chat.MODES)}')
    turns.append(Turn(prompt, _grade(line, language, weak), mode, line.get('plain') or ''))
  if not any(turn.grade for turn in turns) and not any(turn.mode for turn in turns):
    raise ValueError('nothing to grade: give it an answer, constraints, tool_calls, tests or modes')
  groups = {k: v for k, v in row.items() if k not in _KEYS and isinstance(v, str | int)}
  return Question(tuple(turns), groups, row.get('system') or '', tuple(row.get('tools') or ()))


def _of_messages(row):
  """A conversation as turns: what the user says, and the answer to it without its thought."""
  turns, system = [], ''
  for message in row['messages']:
    role, content = message['role'], message.get('content') or ''
    if role == 'system':
      system = content
    elif role == 'user':
      turns.append({'prompt': content})
    elif role == 'assistant' and turns and message.get('tool_calls'):
      turns[-1]['tool_calls'] = message['tool_calls']
    elif role == 'assistant' and turns:
      turns[-1]['answer'] = answers.split(content).answer
    else:
      raise ValueError(f'{role} is no role in a conversation to be scored')
  return {**row, 'turns': turns, 'system': row.get('system') or system}


_KEYS = {'prompt', 'question', 'messages', 'turns', 'answer', 'constraints', 'tool_calls', 'tests',
         'names', 'prelude', 'mode', 'plain', 'system', 'tools', 'id'}


def _grade(line, language, weak):
  """How a turn is graded; None where it is not."""
  rules: list[Callable[[str], bool]] = []
  if (accepted := line.get('answer')) is not None:
    accepted = [str(a) for a in (accepted if isinstance(accepted, list) else [accepted])]
    rules.append(lambda text: answers.exact(text, accepted, language))
  if (kept := line.get('constraints')) is not None:
    constraints.follows('x', kept)  # that they are known
    rules.append(lambda text: all(constraints.follows(text, kept)))
  if (calls := line.get('tool_calls')) is not None:
    rules.append(lambda text: answers.same_calls(text, calls))
  if (tests := line.get('tests')) is not None:
    execution.require(weak)
    names, prelude = line.get('names') or [], line.get('prelude') or ''
    rules.append(lambda text: execution.test(
      program(text, line['prompt'], names), tests, names=names, prelude=prelude, weak=weak).passed)
  if not rules:
    return None
  return lambda text: {'exact': float(all(rule(text) for rule in rules))}


def program(text: str, prompt: str, names: Sequence[str]) -> str:
  """The program in an answer: its last block of code, or all of it; after the prompt if it only
  continues that."""
  code = answers.code_block(text)
  code = text if code is None else code
  whole = any(re.search(rf'^\s*(?:async\s+)?(?:def|class)\s+{re.escape(n)}\b', code, re.M)
              for n in names)
  return code if whole or not names else prompt + code


def _read(path, limit, make):
  """[(row, made)] of a JSONL file; ValueError naming the line."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no {path}: point --eval_data at the folder that holds it')
  with open(path, encoding='utf-8') as f:
    lines = [(i, line) for i, line in enumerate(f, start=1) if line.strip()]
  found = []
  for at in held_out.spread(len(lines), limit):
    number, line = lines[at]
    try:
      row = json.loads(line)
      found.append((row, make(row)))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as e:
      raise ValueError(f'{path}, line {number}: {e}') from None
  return found


def _constant(path):
  """The score of always giving the commonest answer; None where there is none."""
  counts: dict[str, int] = {}
  with open(path, encoding='utf-8') as f:
    rows = [json.loads(line) for line in f if line.strip()]
  for row in rows:
    if isinstance(row.get('answer'), str | int | float):
      counts[str(row['answer'])] = counts.get(str(row['answer']), 0) + 1
  return max(counts.values()) / len(rows) if counts else None


# ----------------------------------------------------------------------------------- public tasks


def _file(source, name):
  path = os.path.join(source.folder, name)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'the task needs {name}, and there is none in {source.folder or "(no folder given)"}: '
      'point --eval_data at the folder that holds it')
  return path


def _numbers(reference):
  """The grade of a question with a number as its answer: ours, and lm-eval's two for GSM8K."""
  number = reference.rpartition('####')[2].strip()
  return lambda text: {
    'exact': float(answers.last_number_is(text, number)),
    'strict': float(answers.gsm8k_equal(answers.gsm8k_strict(text), reference)),
    'flexible': float(answers.gsm8k_equal(answers.gsm8k_flexible(text), reference))}


_FINAL = 'End your answer with the number alone.'


def _gsm8k(source: Source) -> Set:
  """Five-shot for base models, the first five of its training set (lm-eval draws them)."""
  ask = lambda row: f'Question: {row["question"]}\nAnswer:'
  shots = [row for row, _ in _read(_file(source, 'gsm8k.train.jsonl'), 0, lambda row: None)[:5]]
  few = ''.join(f'{ask(row)} {row["answer"]}\n\n' for row in shots)
  rows = _read(_file(source, 'gsm8k.test.jsonl'), source.limit, lambda row: Question((Turn(
    f'{row["question"]}\n\n{_FINAL}', _numbers(row['answer']), plain=few + ask(row)),)))
  return Set([q for _, q in rows], stops=('Question:', '</s>', chat.END), max_new_tokens=512)


def _own_shots(file, count, ask, answer, grade, stops, most):
  """A task whose first rows are its shots."""
  def load(source: Source) -> Set:
    path = _file(source, file)
    rows = [row for row, _ in _read(path, 0, lambda row: (ask(row), answer(row)))]
    shots, rest = rows[:count], rows[count:]
    few = ''.join(f'{ask(row)}{answer(row)}\n\n' for row in shots)
    chosen = [rest[i] for i in held_out.spread(len(rest), source.limit)]
    return Set([Question((Turn(f'{ask(row).strip()}\n\n{_FINAL}', grade(row),
                               plain=few + ask(row)),)) for row in chosen],
               stops=stops, max_new_tokens=most)
  return load


_svamp = _own_shots(
  'svamp.jsonl', 5, lambda row: f'Question: {row["context"]}\nAnswer:',
  lambda row: f' {row["chain_of_thought"].strip("() ")} = {row["answer"]}',
  lambda row: _numbers(str(row['answer'])), ('Question:', '\n\n'), 128)
_arithmetic = _own_shots(
  'simple_arithmetic_nospaces.jsonl', 5, lambda row: row['context'],
  lambda row: row['continuation'], lambda row: _numbers(row['continuation']), ('\n',), 32)


def _tested(row, tests, weak, prelude):
  name = row['entry_point'].strip()

  def grade(text: str) -> dict[str, float]:
    verdict = execution.test(program(text, row['prompt'], [name]), tests, names=[name],
                             prelude=prelude, weak=weak)
    return {'pass': float(verdict.passed)}
  return grade


_CODE = 'Complete this Python function. Answer with the whole function in one block of code.'


def _humaneval(source: Source) -> Set:
  """Zero-shot: a base model continues the prompt, a chat model is asked for the function."""
  execution.require(source.weak)
  rows = _read(_file(source, 'humaneval.jsonl'), source.limit, lambda row: Question((Turn(
    f'{_CODE}\n\n```python\n{row["prompt"]}```',
    _tested(row, f'{row["test"]}\ncheck({row["entry_point"]})', source.weak, row['prompt']),
    plain=row['prompt']),)))
  return Set([q for _, q in rows], 'pass', ('\nclass ', '\ndef ', '\n#', '\nif ', '\nprint'), 512)


def _mbpp(source: Source) -> Set:
  """Three-shot for base models (tasks 2 to 4, as lm-eval), the sanitised tests."""
  execution.require(source.weak)
  tests = lambda row: textwrap.dedent(row['test'].partition('\n')[2]).strip()
  docstring = re.compile(r"\n\s*'''(.*?)'''[^\n]*\n", re.S)
  said = lambda row: ' '.join(docstring.findall(row['prompt'])[0].split())
  ask = lambda row: ('You are an expert Python programmer, and here is your task: '
                     f'{said(row)} Your code should pass these tests:\n\n{tests(row)}\n')
  solved = lambda row: docstring.sub('\n', row['prompt']) + row['canonical_solution'].rstrip()
  path = _file(source, 'mbpp_sanitized.jsonl')
  rows = [row for row, _ in _read(path, 0, lambda row: (ask(row), row['entry_point']))]
  few = ''.join(f'{ask(row)}[BEGIN]\n{solved(row)}\n[DONE]\n\n' for row in rows[:3])
  chosen = [rows[3:][i] for i in held_out.spread(len(rows) - 3, source.limit)]
  return Set([Question((Turn(
    f'{ask(row)}\nAnswer with the code in one block.',
    # (The sanitised tests have lost the import that some of them need.)
    _tested({**row, 'prompt': ''}, tests(row), source.weak, f'import math\n{row["prompt"]}'),
    plain=f'{few}{ask(row)}[BEGIN]\n'),)) for row in chosen], 'pass', ('[DONE]',), 384)


# ------------------------------------------------------------------------------- made by rule


_SUBJECTS = ('the sea', 'a market in winter', 'how bread is made', 'an old clock', 'owls',
             'a railway station', 'the colour green', 'learning to swim', 'a long bridge', 'rain')
_CASES = ('upper', 'lower')
_KEYWORDS = ('river', 'window', 'paper', 'morning', 'music', 'stone', 'garden', 'winter')


def _instructions(source: Source) -> Set:
  """Requests with one or two constraints that a rule checks, in the manner of IFEval."""
  rng = random.Random(source.seed)

  def draw():
    n, words = rng.randint(2, 5), rng.sample(_KEYWORDS, 2)
    return rng.choice([
      {'kind': 'words', 'at_least': 20 * n}, {'kind': 'words', 'at_most': 20 * n},
      {'kind': 'sentences', 'at_most': n}, {'kind': 'paragraphs', 'exactly': n},
      {'kind': 'bullets', 'exactly': n}, {'kind': 'keywords', 'words': words},
      {'kind': 'forbidden', 'words': words}, {'kind': 'case', 'want': rng.choice(_CASES)},
      {'kind': 'title'}, {'kind': 'ends_with', 'phrase': 'That is all.'}, {'kind': 'no_commas'},
      {'kind': 'json', 'keys': ['subject', 'text']}, {'kind': 'two_answers'},
      {'kind': 'language', 'code': rng.choice(('fr', 'es', 'de', 'it', 'pt'))}])

  questions = []
  for _ in range(source.limit or 200):
    chosen = [draw()]
    if (second := draw())['kind'] in _GO_TOGETHER and chosen[0]['kind'] in _GO_TOGETHER - {
        second['kind']}:
      chosen.append(second)
    request = f'Write about {rng.choice(_SUBJECTS)}. ' + ' '.join(map(constraints.asks, chosen))
    questions.append(Question(
      (Turn(request, functools.partial(_kept, chosen)),), {'kind': chosen[0]['kind']}))
  return Set(questions, max_new_tokens=384, constant=_always(questions))


def _always(questions):
  """What one sentence scores that is always the answer."""
  scores = [q.turns[0].grade('That is something that I do not know.')['exact'] for q in questions]
  return sum(scores) / len(scores)


_GO_TOGETHER = {'words', 'keywords', 'forbidden', 'title', 'no_commas', 'paragraphs'}


def _kept(chosen: Sequence[Mapping[str, Any]], text: str) -> dict[str, float]:
  strict, loose = (constraints.follows(text, chosen, loose=x) for x in (False, True))
  return {'exact': float(all(strict)), 'each': sum(strict) / len(strict),
          'loose': float(all(loose))}


_SUMS = {
  'en': 'What is {} plus {}?', 'fr': 'Combien font {} plus {} ?', 'es': '¿Cuánto es {} más {}?',
  'de': 'Wie viel ist {} plus {}?', 'it': 'Quanto fa {} più {}?', 'pt': 'Quanto é {} mais {}?'}


def _modes(source: Source) -> Set:
  """Conversations of three turns in six languages, a quarter each all in think, all in no_think,
  changing, and in a mode that the system text asks for against what the template is told."""
  rng = random.Random(source.seed)
  questions = []
  for i in range(source.limit or 120):
    language = list(_SUMS)[i // 4 % len(_SUMS)]
    kind = ('think', 'no_think', 'changing', 'overridden')[i % 4]
    modes = [rng.choice(chat.MODES) for _ in range(3)] if kind == 'changing' else 3 * [
      kind if kind in chat.MODES else rng.choice(chat.MODES)]
    turns = []
    for mode in modes:
      a, b = rng.randint(2, 99), rng.randint(2, 99)
      turns.append(Turn(_SUMS[language].format(a, b),
                        functools.partial(_sum_in, str(a + b), language), mode))
    overrides = kind == 'overridden'
    questions.append(Question(
      tuple(turns), {'modes': kind, 'language': language}, f'/{modes[0]}' if overrides else '',
      overrides=overrides))
  return Set(questions, max_new_tokens=128)


def _sum_in(number: str, language: str, text: str) -> dict[str, float]:
  said = constraints.language_of(text)
  return {'exact': float(answers.exact(text, number, language)),
          'language': float(bool(text.strip()) and said in ('', language))}


_CITIES = ('Lisbon', 'Paris', 'Rome', 'Berlin', 'Madrid', 'London', 'Vienna', 'Porto')


def _tools(source: Source) -> Set:
  """One call, two calls, or none that is due; arguments of several types."""
  rng = random.Random(source.seed)

  def tool(name, said, **types):
    properties = {k: {'type': v} for k, v in types.items()}
    return {'type': 'function', 'function': {'name': name, 'description': said, 'parameters': {
      'type': 'object', 'properties': properties, 'required': list(types)}}}

  offered = (tool('get_weather', 'The weather of a city in some days.', city='string',
                  days='integer'),
             tool('set_alarm', 'Sets an alarm.', hour='integer', minute='integer',
                  repeat='boolean'),
             tool('convert', 'Converts an amount of money.', amount='number', currency='string'))
  questions = []
  for i in range(source.limit or 120):
    city, days = rng.choice(_CITIES), rng.randint(1, 9)
    hour, minute, repeat = rng.randint(5, 22), rng.randint(0, 59), rng.random() < .5
    weather = {'name': 'get_weather', 'arguments': {'city': city, 'days': days}}
    alarm = {'name': 'set_alarm',
             'arguments': {'hour': hour, 'minute': minute, 'repeat': repeat}}
    asked = f'What will the weather in {city} be in {days} days?'
    wake = (f'Set an alarm for {hour}:{minute:02d}, '
            f'{"every day" if repeat else "this once, not repeated"}.')
    kind, prompt, calls = (
      ('one', asked, [weather]), ('one', wake, [alarm]), ('two', f'{asked} And: {wake}',
                                                          [weather, alarm]),
      ('none', f'How many letters are in the word {city}?', []))[i % 4]
    questions.append(Question((Turn(prompt, functools.partial(_called, calls)),), {'calls': kind},
                              tools=offered))
  return Set(questions, max_new_tokens=192, constant=_always(questions))


def _called(wanted: Sequence[Mapping[str, Any]], text: str) -> dict[str, float]:
  try:
    parsed = bool(answers.tool_calls(text)) == bool(wanted)
  except ValueError:
    parsed = False
  return {'exact': float(answers.same_calls(text, wanted) and bool(text.strip())),
          'form': float(parsed)}


def _series(family: str) -> Callable[[Source], Set]:
  """Problems of a family that are for scoring alone, of two to four steps, in six languages."""
  def load(source: Source) -> Set:
    drawn = _unseen(f'{family}/{source.seed}', (family,))
    questions = []
    for _ in range(source.limit or 120):
      found, groups = next(drawn)
      questions.append(Question((_asked(found, groups),), groups, serial.SYSTEM))
    return Set(questions, max_new_tokens=48)
  return load


def _dialogues(source: Source) -> Set:
  """Three such problems in turn, of all families, all in think, all in no_think, or changing."""
  rng, questions = random.Random(source.seed), []
  for i in range(source.limit or 120):
    kind = (*chat.MODES, 'changing')[i % 3]
    drawn = _unseen(f'dialogues/{source.seed}/{i}', _FAMILIES)
    modes = [rng.choice(chat.MODES) for _ in range(3)] if kind == 'changing' else 3 * [kind]
    turns = [_asked(*next(drawn), mode) for mode in modes]
    questions.append(Question(tuple(turns), {'modes': kind}, serial.SYSTEM))
  return Set(questions, max_new_tokens=48)


_FAMILIES = ('sums', 'rewriting')


def _unseen(name, families):
  """Problems that are for scoring alone, with what tells them apart; without end."""
  rng, languages = random.Random(name), list(serial.WORDS)
  for i in itertools.count():
    family, depth, language = rng.choice(families), 2 + i % 3, languages[i // 3 % 6]
    while not (found := serial.problem(family, f'{name}/{rng.random()}', depth, language)).held_out:
      pass
    yield found, {'depth': depth, 'language': language}


def _asked(found, groups, mode=None):
  """The turn that asks a problem."""
  grade = lambda text: {'exact': float(answers.exact(text, found.answer))}
  return Turn(found.question, grade, mode)


PROGRAMS = {'humaneval', 'mbpp'}  # whose answers are run

SETS: dict[str, Callable[[Source], Set]] = {
  'gsm8k': _gsm8k,
  'svamp': _svamp,
  'arithmetic': _arithmetic,
  'humaneval': _humaneval,
  'mbpp': _mbpp,
  'instructions': _instructions,
  'modes': _modes,
  'tools': _tools,
  'chains': _series('chains'),
  'sums': _series('sums'),
  'rewriting': _series('rewriting'),
  'dialogues': _dialogues,
}
