"""Problems of steps in series, made by rule: each step needs the state that the one before left.

A model of few layers that answers at once must do all steps in one pass; one that thinks does a
step a token or a few. Three families, at any depth (number of steps):

  chains      7+5*3-9=             modulo 10; times is by 3, 7 or 9, so that no operand is lost
  sums        Sum 27+48+35=        two-digit numbers, added by columns with carries
  rewriting   Rewrite 3815: flip,turn,swap=       a list rewritten again and again

The words are of six languages (chains have none). Which problems are for scoring follows from what
they ask, whatever the seed and the language: `held_out`.
"""

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

# language → (sum, rewrite, flip, swap, turn)
WORDS = {
  'en': ('Sum', 'Rewrite', 'flip', 'swap', 'turn'),
  'fr': ('Somme', 'Transforme', 'miroir', 'permute', 'tourne'),
  'es': ('Suma', 'Reescribe', 'espejo', 'cambia', 'gira'),
  'de': ('Summe', 'Wandle', 'spiegeln', 'tauschen', 'drehen'),
  'it': ('Somma', 'Trasforma', 'specchio', 'scambia', 'gira'),
  'pt': ('Soma', 'Reescreve', 'espelho', 'troca', 'gira'),
}
SYSTEM = 'Answer.'  # the system text that such problems are put under, in training and scoring

_OPERATIONS = {'+': lambda a, b: a + b, '-': lambda a, b: a - b, '*': lambda a, b: a * b}
# The whole list backwards, its first two exchanged, its first one last.
_REWRITE = (lambda s: s[::-1], lambda s: s[1] + s[0] + s[2:], lambda s: s[1:] + s[0])


class Problem(NamedTuple):
  """A question, the thought that answers it step by step, and its answer."""

  question: str
  thought: str
  answer: str
  asks: str  # what is asked, without words

  @property
  def held_out(self) -> bool:
    """Whether it is among the tenth of all problems that are for scoring alone."""
    return hashlib.sha256(self.asks.encode()).digest()[0] % 10 == 0


Slip = Callable[[str, str], str]  # (state, its alphabet) → the state, or another one


def chain(rng: random.Random, depth: int, language: str, slip: Slip) -> Problem:
  """`7+5*3-9=`, thought `+52*36-97`: operation, operand, state."""
  question = state = str(rng.randrange(10))
  thought = ''
  for _ in range(depth):
    operation = rng.choice('+-*')
    operand = rng.choice((3, 7, 9)) if operation == '*' else rng.randrange(10)
    question += f'{operation}{operand}'
    state = slip(str(_OPERATIONS[operation](int(state), operand) % 10), '0123456789')
    thought += f'{operation}{operand}{state}'
  return Problem(f'{question}=', thought, state, question)


def sums(rng: random.Random, depth: int, language: str, slip: Slip) -> Problem:
  """`Sum 27+48+35=`, thought `7+8=15+5=20`, and on the next line the tens, from the carry on:
  `2+2=4+4=8+3=11`; depth is how many numbers are added to the first."""
  numbers = [f'{rng.randrange(10, 100)}' for _ in range(depth + 1)]

  def column(digits: list[str]) -> str:
    written = state = digits[0]
    for digit in digits[1:]:
      total = str(int(state) + int(digit))
      state = total[:-1] + slip(total[-1], '0123456789')
      written += f'+{digit}={state}'
    return written

  ones = column([n[1] for n in numbers])
  last = ones.rpartition('=')[2]
  tens = column([last[:-1] or '0', *(n[0] for n in numbers)])
  answer = tens.rpartition('=')[2] + last[-1]
  return Problem(
    f'{WORDS[language][0]} {"+".join(numbers)}=', f'{ones}\n{tens}', answer,
    '+'.join(sorted(numbers)))


def rewriting(rng: random.Random, depth: int, language: str, slip: Slip) -> Problem:
  """`Rewrite 3815: flip,turn=`, thought a line a step, `flip 5183`; digits are 1 to 9."""
  state = ''.join(rng.sample('123456789', 4))
  steps = [rng.randrange(3) for _ in range(depth)]
  words, asks = WORDS[language], f'{state}:{steps}'
  question = f'{words[1]} {state}: {",".join(words[2 + i] for i in steps)}='
  lines = []
  for i in steps:
    state = _REWRITE[i](state)
    state = state[:-1] + slip(state[-1], '123456789')
    lines.append(f'{words[2 + i]} {state}')
  return Problem(question, '\n'.join(lines), state, asks)


FAMILIES: dict[str, Callable[[random.Random, int, str, Slip], Problem]] = {
  'chains': chain,
  'sums': sums,
  'rewriting': rewriting,
}


def problem(
  family: str, seed: str, depth: int, language: str = 'en', *, noise: float = 0.0
) -> Problem:
  """The problem of this seed, whatever the noise: a share `noise` of its states is drawn anew, and
  what follows from them follows.

  Raises ValueError for an unknown family or language, a depth or noise out of range.
  """
  if family not in FAMILIES:
    raise ValueError(f'unknown family {family!r}: one of {", ".join(FAMILIES)}')
  if language not in WORDS:
    raise ValueError(f'unknown language {language!r}: one of {", ".join(WORDS)}')
  if depth < 1 or not 0 <= noise <= 1:
    raise ValueError(f'depth={depth}, noise={noise}: give 1 or more steps, a share from 0 to 1')
  slips = random.Random(f'{seed}/slips')
  slip = lambda state, letters: slips.choice(letters) if slips.random() < noise else state
  return FAMILIES[family](random.Random(seed), depth, language, slip)
