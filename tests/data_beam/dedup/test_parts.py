"""Repeated lines, paragraphs and runs of words."""

import random

import numpy as np
import pytest
from helpers.transforms import run

from data_beam.dedup.parts import LITTLE, Parts, Substrings, place, winnow
from data_beam.records import Document

RNG = random.Random(0)
FILLER = iter(range(10**9))


def own(words):
  """Words that no other text has."""
  return ' '.join(f'w{next(FILLER)}' for _ in range(words))


def test_lines_and_paragraphs_stay_once(tmp_path):
  line, short = own(12), own(4)
  texts = {
    'long': f'{own(90)}\n{line}\n{short}\n{own(9)}', 'b': f'{own(60)}\n{line.upper()}  \n{short}',
    'c': f'{line}\r\n{own(55)}', 'twice': f'{own(61)}\n\n{line}\n{line}\n\nend of it',
    'emptied': f'{own(5)}\n{line}\n', 'alone': own(70)}
  documents = [Document(name, text, metadata={'page_offsets': [0]})
               for name, text in texts.items()]
  for order in (documents, documents[::-1]):
    kept, rejects = run(Parts('lines'), order)
    assert {name for name, d in kept.items() if line in d.text} == {'long'}
    assert kept['long'].text == texts['long'] and kept['alone'].text == texts['alone']
    assert kept['b'].text == texts['b'].split('\n')[0] + '\n' + short
    assert kept['twice'].text.endswith('end of it')
    assert kept['twice'].metadata == {'cut': {'line_dedup': 24}}
    assert rejects['emptied'].reason == 'little_left'
    assert rejects['emptied'].document.text == texts['emptied']
  kept, _ = run(Parts('paragraphs'), documents)
  assert line in kept['twice'].text and line in kept['long'].text   # another paragraph each


def brute_force(documents, words):
  """What is left of each text: a word is cut if a run with it stands before."""
  seen, left = set(), {}
  for document in sorted(documents, key=lambda d: place(d, 0)):
    found = document.text.split()
    runs = [tuple(found[i:i + words]) for i in range(len(found) - words + 1)]
    cut = np.zeros(len(found), bool)
    for i, one in enumerate(runs):
      if one in seen:
        cut[i:i + words] = True
      seen.add(one)
    left[document.id] = ' '.join(w for w, gone in zip(found, cut, strict=True) if not gone)
  return left


def test_runs_of_words_are_those_of_brute_force():
  words = 20
  planted = [own(RNG.randint(15, 40)) for _ in range(12)]
  texts = [' \n'.join([own(RNG.randint(0, 40)), RNG.choice(planted), own(RNG.randint(60, 90)),
                       RNG.choice(planted), own(RNG.randint(0, 9))]) for _ in range(40)]
  texts += ['a b ' * 40 + own(60), 'a b ' * 60, own(100)]
  documents = [Document(str(i), text) for i, text in enumerate(texts)]
  expected = brute_force(documents, words)
  kept, rejects = run(Substrings(words), documents)
  for name, text in expected.items():
    if len(text.split()) < LITTLE and text != ' '.join(texts[int(name)].split()):
      assert rejects[name].reason == 'little_left'
    else:
      assert ' '.join(kept[name].text.split()) == text
  assert sum('cut' in d.metadata for d in kept.values()) > 10
  again, _ = run(Substrings(words), [*kept.values()])
  assert {k: d.text for k, d in again.items()} == {k: d.text for k, d in kept.items()}


@pytest.mark.parametrize('window', [1, 5, 26])
def test_equal_runs_choose_the_same(window):
  values = np.random.default_rng(0).integers(0, 50, 300).astype(np.uint64)
  chosen = winnow(values, window)
  for start in range(len(values) - window + 1):
    alone = winnow(values[start:start + window], window)
    assert len(alone) == 1 and start + alone[0] in chosen
  assert not len(winnow(values[:window - 1], window))
