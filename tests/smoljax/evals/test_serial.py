"""Problems by rule: right by another way of computing them, and apart from those to score by."""

import pytest

from experiments import chains
from smoljax.evals import problems, serial

SEEDS = range(200)


def drawn(family, depth=3, language='de', **options):
  return [serial.problem(family, str(seed), depth, language, **options) for seed in SEEDS]


def test_chains_are_what_python_computes_from_left_to_right():
  for found in drawn('chains'):
    text = found.question.removesuffix('=')
    for _ in range(3):  # brackets around what is first
      text = text.replace(text[:3], str(int(eval(text[:3])) % 10), 1)
    assert text == found.answer == found.thought[-1]


def test_sums_and_their_columns():
  for found in drawn('sums'):
    assert found.question.startswith('Summe ')
    numbers = [int(n) for n in found.question[6:-1].split('+')]
    assert len(numbers) == 4 and int(found.answer) == sum(numbers)
    ones, tens = found.thought.split('\n')
    for line in (ones, tens):  # each stretch between signs is what stands before it
      parts = line.replace('=', '+').split('+')
      for i in range(0, len(parts) - 2, 2):
        assert int(parts[i]) + int(parts[i + 1]) == int(parts[i + 2])
    assert int(tens.rpartition('=')[2]) * 10 + sum(numbers) % 10 == sum(numbers)


def test_rewriting_takes_its_steps():
  moves = {'spiegeln': [3, 2, 1, 0], 'tauschen': [1, 0, 2, 3], 'drehen': [1, 2, 3, 0]}
  for found in drawn('rewriting'):
    state, steps = found.question.removeprefix('Wandle ').removesuffix('=').split(': ')
    for step, line in zip(steps.split(','), found.thought.split('\n'), strict=True):
      state = ''.join(state[i] for i in moves[step])
      assert line == f'{step} {state}'
    assert state == found.answer


@pytest.mark.parametrize('family', serial.FAMILIES)
def test_slips_are_of_the_same_question(family):
  right, wrong = drawn(family), drawn(family, noise=0.5)
  assert [p.question for p in right] == [p.question for p in wrong]
  assert 0.5 < sum(a.answer != b.answer for a, b in zip(right, wrong, strict=True)) / 200 < 1
  assert drawn(family, noise=0.0) == right


def test_what_is_for_scoring_is_never_shown():
  for what in (chains.Chains(300, tuple(serial.FAMILIES), languages=tuple(serial.WORDS)),
               chains.Chains(100, ('sums',), mode='both', turns=3)):
    for row in chains.conversations(what):
      for message in row['messages']:
        assert message['role'] != 'user' or not _asks(message['content'])
  for name in ('chains', 'sums', 'rewriting', 'dialogues'):
    made = problems.load_set(name, problems.Source(limit=30, seed=1))
    assert all(_asks(turn.prompt) for q in made.questions for turn in q.turns)
    assert made.questions[0].turns[0].grade('nonsense') == {'exact': 0.0}


def _asks(question):
  """Whether a question is for scoring, from its text alone."""
  text = question.removesuffix('=')
  for i, words in enumerate(zip(*serial.WORDS.values(), strict=True)):
    for word in sorted(words, key=len, reverse=True):
      text = text.replace(word, '' if i < 2 else str(i - 2))
  asks = text.strip()
  if ':' in asks:
    state, steps = asks.split(': ')
    asks = f'{state}:{[int(s) for s in steps.split(",")]}'
  elif '+' in asks and len(asks.split('+')[0]) == 2:
    asks = '+'.join(sorted(asks.split('+')))
  return serial.Problem('', '', '', asks).held_out


def test_pairs_and_turns():
  rows = list(chains.conversations(chains.Chains(60, ('sums', 'rewriting'), mode='both',
                                                 pairs=True)))
  for row in rows:
    (chosen,), (rejected,) = row['chosen'], row['rejected']
    assert chosen != rejected and ('reasoning_content' in chosen) == (row['mode'] == 'think')
  rows = list(chains.conversations(chains.Chains(60, ('sums',), mode='both', turns=3)))
  assert {len(row['messages']) for row in rows} == {3, 5, 7}
  for row in rows:
    answers = row['messages'][2::2]
    assert all('reasoning_content' in m or m.get('weight') == 0 for m in answers
               ) == (row['mode'] == 'think')
  right, shuffled = (next(chains.conversations(chains.Chains(1, ('sums',), shuffled=shuffled)))
                     for shuffled in (False, True))
  assert right['messages'][1] == shuffled['messages'][1]
  answers = right['messages'][2], shuffled['messages'][2]
  assert answers[0]['content'] == answers[1]['content']
  assert answers[0]['reasoning_content'] != answers[1]['reasoning_content']


@pytest.mark.parametrize('wrong, said', [
  ({'families': ('sum',)}, "family 'sum'"), ({'languages': ('xx',)}, "language 'xx'"),
  ({'depths': (0,)}, 'depth=0'), ({'noise': 2.0}, 'noise=2'), ({'turns': 0}, 'a turn at least'),
  ({'mode': 'loud'}, "mode='loud'")])
def test_wrong_values_are_named(wrong, said):
  with pytest.raises(ValueError, match=said):
    chains.Chains(1, **wrong)


def test_more_than_there_are():
  with pytest.raises(ValueError, match='ask for'):
    list(chains.conversations(chains.Chains(1000, depths=(1,))))
