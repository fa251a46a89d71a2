"""Long texts: every length is kept, the same questions at each, and who knows the answer has it."""

import collections
import re

import pytest
from helpers import tokenizers

from smoljax.data import tokenizer
from smoljax.evals import ruler

LENGTHS = (4096, 9000)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  return tokenizer.load(tokenizers.write(str(tmp_path_factory.mktemp('tokenizer')), []))


@pytest.fixture(scope='module')
def sets(text):
  return ruler.make(tuple(ruler.TASKS), text, LENGTHS, languages=('en', 'fr'), num=1, seed=3)


def parts(question):
  """(prompt, grade, groups) of a question."""
  turn, = question.turns
  return turn.prompt, turn.grade, question.groups


def known(task, prompt, prefix):
  """What one who reads the text finds, with nothing but the text."""
  if task.startswith('niah'):
    keys = prefix.partition(' for ')[2].partition(' in the')[0].split(', ')
    return ' '.join(re.findall(rf'(?:{"|".join(keys)}) is ([0-9a-f-]+)\.', prompt))
  if task == 'vt':
    value = re.search(r'value (\d+)', prefix)[1]
    names = re.findall(rf'VAR (\w+) = {value}\.', prompt)
    for name in names:
      names += re.findall(rf'VAR (\w+) = VAR {name}\.', prompt)
    return ' '.join(names)
  if task == 'multihop':
    asked = prefix.split()[3]
    teacher = re.search(rf'The teacher of {asked} is (\w+)\.', prompt)[1]
    return re.search(rf'{teacher} lives in (\w+)\.', prompt)[1]
  counts = collections.Counter(re.findall(r'\b(?:[b-z][aeiou]){3}\b', prompt)).most_common(11)
  k = {'cwe': 10, 'fwe': 3}[task]
  assert counts[k - 1][1] > counts[k][1]  # what is asked for is told apart by its count
  return ' '.join(w for w, _ in counts[:k])


@pytest.mark.parametrize('task', ruler.TASKS)
def test_lengths_answers_and_floors(sets, text, task):
  for question in sets[task].questions:
    prompt, grade, groups = parts(question)
    length = groups['length']
    size = len(text.encode(prompt + question.prefix)) + ruler.TASKS[task][1]
    assert 0.97 * length <= size <= length, (task, groups, size)
    if groups['language'] == 'en':
      answer = known(task, prompt, question.prefix)
      assert grade(f'They are {answer}.') == {'recall': 1, 'precision': 1, 'exact': 1}, answer
      echoed = grade(prompt)
      # (Where all needles are asked for, nothing tells an echo from an answer.)
      everything = {'niah_single_1', 'niah_single_2', 'niah_single_3', 'niah_multivalue',
                    'niah_multiquery'}
      assert echoed['recall'] == 1 and (echoed['precision'] == 1) == (task in everything)
      # A word is matched whole.
      assert grade(answer.replace(' ', '0') + '0')['recall'] < 1
    assert grade('') == {'recall': 0, 'precision': 0, 'exact': 0}


def test_questions_are_the_same_at_every_length_and_under_every_tokenizer(sets, tmp_path):
  class Words:
    def encode(self, text):
      return text.split()

  others = ruler.make(tuple(ruler.TASKS), Words(), (1000,), languages=('en', 'fr'), num=1, seed=3)
  for task, set_ in sets.items():
    prefixes = collections.defaultdict(set)
    for question in (*set_.questions, *others[task].questions):
      prefixes[question.groups['language']].add((question.prefix, question.groups.get('depth')))
    assert all(len(found) == 1 for found in prefixes.values()), task
  with pytest.raises(ValueError, match='more than a length of 150'):
    ruler.make(('niah_multikey_1',), Words(), (150,))
  with pytest.raises(ValueError, match="unknown language 'xx'"):
    ruler.make(('vt',), Words(), (2000,), languages=('xx',))


def test_texts_to_learn_from_end_in_what_is_right(text):
  tasks = ('niah_single_1', 'niah_multiquery', 'vt')
  for task, found in zip(tasks, ruler.texts(tasks, text, (4096,), num=3), strict=True):
    prompt, _, last = found.rpartition('\n')
    prefix = last if task != 'vt' else f'value {re.search("value ([0-9]+)", last)[1]}'
    told = known(task, prompt, prefix)
    assert told and all(word in last for word in re.findall(r'[\w-]+', told))
    assert len(text.encode(found)) <= 4096


def test_what_is_learned_is_never_asked(text):
  """Whatever the seeds: those of a run's repetitions count from 0."""
  numbers = lambda texts: {n for t in texts for n in re.findall(r'\b\d{7}\b', t)}
  for seed in (0, 1):
    asked, = ruler.make(('niah_single_1',), text, (4096,), num=4, seed=seed).values()
    learned = ruler.texts(('niah_single_1',), text, (4096,), num=4, seed=seed)
    assert not numbers(learned) & numbers(q.turns[0].prompt for q in asked.questions)


def test_needles_stand_at_their_depth_in_held_out_text(text):
  documents = {'en': [f'Sentence number {i} says something of its own.' for i in range(900)]}
  set_, = ruler.make(
    ('niah_single_2',), text, (8192,), documents=documents, num=8).values()
  depths = set()
  for question in set_.questions:
    prompt, _, groups = parts(question)
    at = prompt.index('The special number for') / len(prompt)
    assert abs(at - (groups['depth'] + 0.5) / 10) < 0.1
    depths.add(groups['depth'])
    assert prompt.count('Sentence number') > 100
  assert len(depths) > 3
