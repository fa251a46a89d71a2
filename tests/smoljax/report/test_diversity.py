"""Diversity against brute force, scipy's entropy and planted structure."""

import itertools
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from smoljax.report import diversity

WORDS = [''.join(p) for p in itertools.product('bdfgklmnprst', 'aeiou', 'bdfgklmnprst')]


def text(rng, words=WORDS, length=120):
  return ' '.join(rng.choices(words, k=length))


@given(st.lists(st.sampled_from('abcde'), min_size=1))
def test_effective_number(labels):
  counts = [labels.count(x) for x in set(labels)]
  assert diversity.effective(labels) == pytest.approx(np.exp(scipy.stats.entropy(counts)))


def test_novelty_is_the_share_of_distinct_ngrams(monkeypatch):
  rng = random.Random(0)
  base = [text(rng, WORDS[:40], 300) for _ in range(30)]
  texts = base + [t.upper() + ' and one end' for t in base[:20]]  # case does not count
  fates = [2] * 30 + [1] * 10 + [0] * 10
  points, _ = diversity.measure([{'text': t} for t in texts], fates, ['a', 'b'])
  for i, point in enumerate(points):
    grams = [g for t, f in zip(texts, fates, strict=True) if f >= i
             for w in [t.lower().split()] for g in zip(*(w[k:] for k in range(5)), strict=False)]
    assert point.novelty == pytest.approx(len(set(grams)) / len(grams), abs=0.03)  # a sixteenth
  assert points[0].novelty < points[1].novelty < points[2].novelty > 0.99
  assert [p.documents for p in points] == [50, 40, 30]
  assert [p.stage for p in points] == ['', 'a', 'b']


def test_near_duplicates_are_those_still_in():
  rng = random.Random(1)
  texts = [text(rng) for _ in range(40)]
  for t in texts[:10]:  # one word of 120 changed: Jaccard similarity above 0.9
    words = t.split()
    words[60] = 'changed'
    texts.append(' '.join(words))
  texts += ['too short', '']
  fates = [2] * 40 + [1] * 5 + [2] * 5 + [2, 0]
  points, _ = diversity.measure([{'text': t} for t in texts], fates, ['a', 'b'])
  assert [p.duplicated for p in points] == [20 / 50, 20 / 50, 10 / 45]


def test_domains():
  urls = ['http://a.x/1', 'http://a.x/2', 'https://b.x', 'http://[bad', '']
  points, _ = diversity.measure([{'text': '', 'url': u} for u in urls], [1, 0, 1, 1, 1], ['s'])
  assert points[0].domains == pytest.approx(np.exp(scipy.stats.entropy([2, 1])))
  assert points[1].domains == pytest.approx(2)
  assert points[0].topics is points[0].novelty is points[0].duplicated is None


def test_topics_are_found_and_followed():
  rng = random.Random(2)
  subjects = {'cook': WORDS[:60], 'law': WORDS[60:120], 'sea': WORDS[120:180]}
  common = WORDS[200:230]
  texts, fates = [], []
  for words in subjects.values():
    for i in range(40):
      texts.append(' '.join(rng.choices(words, k=60) + rng.choices(common, k=60)))
      fates.append(1 if words is subjects['cook'] or i < 20 else 0)
  points, topics = diversity.measure([{'text': t} for t in texts], fates, ['filter'])
  for topic in topics:  # every topic speaks of one subject
    assert sum(set(topic.words) <= set(words) for words in subjects.values()) == 1
  share = lambda words, when: sum(getattr(t, when) for t in topics if set(t.words) <= set(words))
  assert share(subjects['cook'], 'before') == pytest.approx(1 / 3)
  assert share(subjects['cook'], 'after') == pytest.approx(1 / 2)
  assert points[0].topics > 2.9
  again = diversity.measure([{'text': t} for t in texts], fates, ['filter'])
  assert again == (points, topics)


def test_nothing_in_nothing_out():
  points, topics = diversity.measure([], [], ['a'])
  assert topics == [] and [p.documents for p in points] == [0, 0]
