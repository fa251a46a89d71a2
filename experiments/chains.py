"""Questions made by rule in which thinking pays: sums from left to right, modulo 10.

  python -m experiments.chains --output=chains.jsonl --number=20000 --depths=2,3,4 --noise=.3

`7+5*3-9=` asks for ((7 + 5) · 3 - 9) mod 10; times is by 3, 7 or 9, so that no operand is lost. The
thought says operation, operand and state of each step, `+52*36-97`, and the answer is the last
state. A model of few layers that answers at once must do all steps in one pass, and learns little
beyond chance (a tenth); one that thinks does one step a token. With --noise a share of the states
in thoughts is random: demonstrations from which a model learns the form, and of which reinforcement
(configs/grpo.py) has much to improve. Each line is a conversation as data_beam.conversations reads
it, half of them answered without a thought if --mode=both.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from smoljax import files

OPERATIONS = {'+': lambda a, b: a + b, '-': lambda a, b: a - b, '*': lambda a, b: a * b}
MODES = ('think', 'no_think', 'both')


def chain(rng: random.Random, depth: int, noise: float = 0.0) -> tuple[str, str, str]:
  """(question, thought, answer) of so many steps; a share `noise` of the states is random."""
  state = rng.randrange(10)
  question, thought = str(state), ''
  for _ in range(depth):
    operation = rng.choice('+-*')
    operand = rng.choice((3, 7, 9)) if operation == '*' else rng.randrange(10)
    state = OPERATIONS[operation](state, operand) % 10
    if rng.random() < noise:
      state = rng.randrange(10)
    question += f'{operation}{operand}'
    thought += f'{operation}{operand}{state}'
  return f'{question}=', thought, str(state)


def conversations(
  number: int, depths: Sequence[int], *, noise: float = 0.0, mode: str = 'think', seed: int = 0
) -> Iterator[dict[str, Any]]:
  """So many conversations of different questions, of each depth as often as there are any.

  Raises ValueError for values out of range.
  """
  if not depths or min(depths) < 1:
    raise ValueError(f'depths={list(depths)}: give numbers of steps, 1 or more')
  if not 0 <= noise <= 1:
    raise ValueError(f'noise={noise}: give a share from 0 to 1')
  if mode not in MODES:
    raise ValueError(f'mode={mode!r}: one of {", ".join(MODES)}')
  rng, asked = random.Random(f'chains/{seed}'), set()
  for _ in range(50 * number):  # short questions are soon used up
    if len(asked) == number:
      return
    question, thought, answer = chain(rng, rng.choice(list(depths)), noise)
    if question in asked:
      continue
    asked.add(question)
    thinks = mode == 'think' or (mode == 'both' and rng.random() < 0.5)
    reply = {'role': 'assistant', 'content': answer}
    yield {
      'messages': [{'role': 'system', 'content': '/system_override'},
                   {'role': 'user', 'content': question},
                   reply | ({'reasoning_content': thought} if thinks else {})],
      'mode': 'think' if thinks else 'no_think', 'language': 'en'}
  raise ValueError(f'there are no {number:,} different questions of {list(depths)} steps: ask for '
                   'fewer, or deeper ones')


def write(path: str, rows: Iterator[dict[str, Any]]) -> None:
  """Writes conversations as JSONL, whole or not at all."""
  files.write(path, ''.join(f'{json.dumps(row)}\n' for row in rows).encode())


def main() -> None:
  """The command line; bad input is one line and exit code 2."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='the JSONL file')
  parser.add_argument('--number', type=int, default=20_000, help='conversations')
  parser.add_argument('--depths', default='2,3,4', help='steps, with commas between')
  parser.add_argument('--noise', type=float, default=0.0, help='share of states that are random')
  parser.add_argument('--mode', default='think', help=f'one of {", ".join(MODES)}')
  parser.add_argument('--seed', type=int, default=0)
  a = parser.parse_args()
  try:
    depths = [int(x) for x in a.depths.split(',')]
    write(a.output, conversations(
      a.number, depths, noise=a.noise, mode=a.mode, seed=a.seed))
  except (ValueError, OSError) as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
