"""Repeated lines, paragraphs and runs of words."""

import random

import apache_beam as beam
import numpy as np
import pytest
from helpers.transforms import FOUND, remember, run

from data_beam.beam_options import pipeline_options
from data_beam.dedup import repeats
from data_beam.dedup.components import KEY
from data_beam.dedup.parts import LITTLE, Parts, Substrings, chosen, owner
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
  for document in sorted(documents, key=owner):
    found = document.text.split()
    runs = [tuple(found[i:i + words]) for i in range(len(found) - words + 1)]
    cut = np.zeros(len(found), bool)
    for i, one in enumerate(runs):
      if one in seen:
        cut[i:i + words] = True
      seen.add(one)
    left[document.id] = ' '.join(w for w, gone in zip(found, cut, strict=True) if not gone)
  return left


@pytest.mark.parametrize(('words', 'rows', 'parts'), [(20, 1 << 18, 8), (21, 300, 3)])
def test_runs_of_words_are_those_of_brute_force(monkeypatch, words, rows, parts):
  monkeypatch.setattr(repeats, 'ROWS', rows)
  planted = [own(RNG.randint(15, 40)) for _ in range(12)]
  texts = [' \n'.join([own(RNG.randint(0, 40)), RNG.choice(planted), own(RNG.randint(60, 90)),
                       RNG.choice(planted), own(RNG.randint(0, 9))]) for _ in range(40)]
  texts += ['a b ' * 40 + own(60), 'a b ' * 60, own(100)]
  documents = [Document(str(i), text) for i, text in enumerate(texts)]
  expected = brute_force(documents, words)
  kept, rejects = run(Substrings(words, parts), documents)
  for name, text in expected.items():
    if len(text.split()) < LITTLE and text != ' '.join(texts[int(name)].split()):
      assert rejects[name].reason == 'little_left'
    else:
      assert ' '.join(kept[name].text.split()) == text
  assert sum('cut' in d.metadata for d in kept.values()) > 10
  if words == 20:
    return
  again, _ = run(Substrings(words, parts), [*kept.values()])
  assert {k: d.text for k, d in again.items()} == {k: d.text for k, d in kept.items()}


@pytest.mark.parametrize('window', [1, 5, 26])
def test_equal_runs_choose_the_same(window):
  values = np.random.default_rng(0).integers(0, 50, 300).astype(np.uint64)
  places = chosen(values, window)
  for start in range(len(values) - window + 1):
    assert places[start] == start + chosen(values[start:start + window], window)[0]
  assert not len(chosen(values[:window - 1], window))


@pytest.mark.parametrize('later', [False, True])
def test_places_that_repeat_are_told_in_any_batches(later, monkeypatch):
  owners = [bytes([0, i]) + bytes(25) + bytes([i % 3]) for i in range(9)]  # numpy cuts zeros
  keys = [bytes([i % 7]) + bytes(7) + bytes([i % 3]) + bytes(7) for i in range(40)]
  rows = [(RNG.choice(owners), i, RNG.choice(keys)) for i in range(60)]
  places = {}
  for own_, number, key in rows:
    places.setdefault(key, []).append((own_, number))
  expected = sorted(place for found in places.values() if len(found) > 1
                    for place in (sorted(found)[1:] if later else found))
  monkeypatch.setattr(repeats, 'ROWS', 7)
  documents = [repeats.Keyed(one, np.array([i for o, i, _ in rows if o == one], np.uint32),
                             np.array([k for o, _, k in rows if o == one], KEY))
               for one in owners]
  FOUND.clear()
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    _ = (pipeline | beam.Create(documents) | beam.Reshuffle() | repeats.Repeats(4, later)
         | beam.Map(remember))
  assert sorted((own_, n) for own_, numbers in FOUND for n in numbers.tolist()) == expected
