"""Conversations by rule in which thinking pays: problems of steps in series (evals/serial.py).

  python -m experiments.chains --output=chains.jsonl --number=20000 --depths=2,3,4 --noise=.3
  python -m experiments.chains --output=both.jsonl --families=sums,rewriting --mode=both \\
    --turns=3 --languages=en,fr,es,de,it,pt
  python -m experiments.chains --output=pairs.jsonl --families=sums --mode=both --pairs

Each line is a conversation as data_beam.conversations reads it. With --noise a share of the states
in thoughts is random, and what follows from them follows: demonstrations from which a model learns
the form, and of which reinforcement (configs/grpo.py) has much to improve. With --pairs each has a
wrong answer beside the right one: a step that slipped, or, in think, no thought. Problems that are
for scoring (`serial.Problem.held_out`) are never among them.
"""

import argparse
import dataclasses
import json
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

from data_beam.command_line import Parser, complain
from smoljax import files
from smoljax.evals import serial

MODES = ('think', 'no_think', 'both')


@dataclasses.dataclass(frozen=True)
class Chains:
  """Which conversations are made.

  Attributes:
    number: of them.
    families: of problems, in equal parts.
    depths: numbers of steps, likewise.
    languages: whose words they have, likewise.
    mode: think | no_think | both, half of each.
    turns: a conversation has 1 to so many.
    noise: share of states that are random.
    shuffled: the thoughts are those of other problems of the kind: a control.
    pairs: preference pairs.
    system: the system text, short: the header of the template is 1,300 characters without. With
      /system_override there is no header, which alone says the mode: not for `both`.
  """

  number: int = 0
  families: tuple[str, ...] = ('chains',)
  depths: tuple[int, ...] = (2, 3, 4)
  languages: tuple[str, ...] = ('en',)
  mode: str = 'think'
  turns: int = 1
  noise: float = 0.0
  shuffled: bool = False
  pairs: bool = False
  system: str = serial.SYSTEM

  def __post_init__(self):
    if self.mode not in MODES:
      raise ValueError(f'mode={self.mode!r}: one of {", ".join(MODES)}')
    if self.turns < 1 or not self.families or not self.depths or not self.languages:
      raise ValueError('give a family, a depth, a language and a turn at least')
    for family in self.families:
      for language in self.languages:
        serial.problem(family, '', min(self.depths), language, noise=self.noise)


def conversations(what: Chains, seed: int = 0) -> Iterator[dict[str, Any]]:
  """So many conversations, of different questions.

  Raises ValueError where there are not so many.
  """
  rng, asked = random.Random(f'chains/{seed}'), set()
  for i in range(what.number):
    language = rng.choice(what.languages)
    thinks = what.mode == 'think' or (what.mode == 'both' and rng.random() < 0.5)
    messages: list[dict[str, Any]] = [{'role': 'system', 'content': what.system}]
    turns, draw = 1 if what.pairs else rng.randint(1, what.turns), None
    for turn in range(turns):
      draw = _draw(what, rng, language, f'{seed}/{i}/{turn}', asked)
      question, reply = _turn(what, rng, draw, thinks)
      if thinks and turn < turns - 1 and what.mode == 'both' and rng.random() < 0.5:
        # As an answer given without thinking is read once the mode has changed.
        reply = {k: v for k, v in reply.items() if k != 'reasoning_content'} | {'weight': 0}
      messages += [question, reply]
    row = {'mode': 'think' if thinks else 'no_think', 'language': language}
    if what.pairs:
      wrong = _wrong(draw, thinks, rng, messages[-1]['content'])
      yield row | {'prompt': messages[:-1], 'chosen': messages[-1:], 'rejected': [wrong]}
    else:
      yield row | {'messages': messages}


def _draw(what, rng, language, name, asked):
  """(family, seed, depth, language) of a problem that was not asked before, nor is for scoring."""
  for attempt in range(500):
    drawn = (rng.choice(what.families), f'{name}/{attempt}', rng.choice(what.depths), language)
    found = serial.problem(*drawn)
    if not found.held_out and found.question not in asked:
      asked.add(found.question)
      return drawn
  raise ValueError(f'there are no {what.number:,} different questions of {list(what.depths)} '
                   'steps: ask for fewer, or deeper ones')


def _turn(what, rng, drawn, thinks):
  found = serial.problem(*drawn, noise=what.noise)
  thought = found.thought
  if what.shuffled:
    family, name, depth, language = drawn
    thought = serial.problem(family, f'{name}/other', depth, language).thought
  reply = {'role': 'assistant', 'content': found.answer}
  return {'role': 'user', 'content': found.question}, (
    reply | {'reasoning_content': thought} if thinks else reply)


def _wrong(drawn, thinks, rng, right):
  """A wrong answer to the question, by a slip of a step; of a third in think, one without thought.
  """
  if thinks and rng.random() < 1 / 3:
    return {'role': 'assistant', 'content': right}
  for share in (0.3, 0.5, 1.0, 1.0, 1.0, 1.0):
    other = serial.problem(*drawn, noise=share)
    if other.answer != right:
      break
  else:  # each slip gave the state that it was
    family, name, depth, language = drawn
    other = serial.problem(family, f'{name}/other', depth, language)
  reply = {'role': 'assistant', 'content': other.answer}
  return reply | {'reasoning_content': other.thought} if thinks else reply


def write(path: str, rows: Iterator[dict[str, Any]]) -> None:
  """Writes rows as JSONL, whole or not at all."""
  files.write(path, ''.join(f'{json.dumps(row, ensure_ascii=False)}\n' for row in rows).encode())


def main() -> None:
  """The command line; bad input is one line and exit code 2."""
  parser = Parser(
    prog='python -m experiments.chains', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='the JSONL file')
  parser.add_argument('--number', type=int, default=20_000, help='conversations')
  parser.add_argument('--families', default='chains',
                      help=f'of {", ".join(serial.FAMILIES)}, with commas between')
  parser.add_argument('--depths', default='2,3,4', help='steps, with commas between')
  parser.add_argument('--languages', default='en', help=f'of {", ".join(serial.WORDS)}')
  parser.add_argument('--mode', default='think', help=f'one of {", ".join(MODES)}')
  parser.add_argument('--turns', type=int, default=1, help='1 to so many a conversation')
  parser.add_argument('--noise', type=float, default=0.0, help='share of states that are random')
  parser.add_argument('--shuffled', action='store_true', help='thoughts of other problems')
  parser.add_argument('--pairs', action='store_true', help='preference pairs')
  parser.add_argument('--system', default=serial.SYSTEM, help='the system text')
  parser.add_argument('--seed', type=int, default=0)
  a = vars(parser.parse_args())
  output, seed = a.pop('output'), a.pop('seed')
  try:
    for name in ('families', 'depths', 'languages'):
      a[name] = tuple(x for x in a[name].split(',') if x)
    a['depths'] = tuple(map(int, a['depths']))
    if a['number'] < 1:
      raise ValueError(f'--number={a["number"]}: give at least 1')
    if os.path.isdir(output):
      raise IsADirectoryError(f'--output={output} is a folder: give FILE.jsonl')
    write(output, conversations(Chains(**a), seed))
  except (ValueError, OSError) as e:
    sys.exit(complain('experiments.chains', e))


if __name__ == '__main__':
  main()
