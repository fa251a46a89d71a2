"""Words against spaCy's: recorded ones, and live where spaCy is installed."""


import itertools
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data_beam.text import lexicon as lexicons
from data_beam.text import words

# What spaCy 3.8.18's blank tokenizers make of these lines.
LINES = [
  ('en', "It's 10:45 a.m. and they don't know -- really...",
   "It 's 10:45 a.m. and they do n't know -- really ..."),
  ('en', '(see http://www.example.com/a?b=c, user@x.org or U.S.-made e-mail)!',
   '( see http://www.example.com/a?b=c , user@x.org or U.S.-made e - mail ) !'),
  ('en', "Price: $1,000; ages 2–3. “Quoted,” he’d've said :-) I'm gonna.",
   "Price : $ 1,000 ; ages 2–3 . “ Quoted , ” he’d've said :-) I 'm gon na ."),
  ('en', "well-don't 5km 20°C. U.K. end.Start a/b 3-4 C++ cannot",
   "well - don't 5 km 20 ° C . U.K. end . Start a / b 3 - 4 C++ can not"),
  ('fr', "L'été, c'est-à-dire aujourd'hui : est-ce qu'il l’a vu ?",
   "L' été , c' est - à - dire aujourd'hui : est -ce qu' il l’ a vu ?"),
  ('fr', "Dit-on M. Dupont, entr'ouvert (peut-être) faux-semblant 20% n°5.",
   "Dit -on M. Dupont , entr'ouvert ( peut-être ) faux-semblant 20 % n° 5 ."),
  ('fr', "«d'accord», dit-elle; États-Unis, arc-en-ciel 10€",
   "« d' accord » , dit -elle ; États-Unis , arc-en-ciel 10 €"),
  ('de', "Z.B. für's Haus, d.h. 3-4 Mio. Euro/Stück (ca. 20°C.).",
   "Z.B. für's Haus , d.h. 3 - 4 Mio. Euro / Stück ( ca. 20 ° C . ) ."),
  ('de', "„Er sagte's“ und/oder Baden-Württemberg usw. GmbH&Co. wir's",
   "„ Er sagte's “ und / oder Baden-Württemberg usw. GmbH&Co . wir 's"),
  ('es', 'El Sr. García (EE.UU.) pagó 5€ a las 5pm, ¿verdad? pal p.ej. mañana',
   'El Sr. García ( EE.UU. ) pagó 5 € a las 5 pm , ¿ verdad ? pa l p.ej. mañana'),
  ('es', '—Hola—dijo; año 1990-1995, y/o km/h.',
   '— Hola—dijo ; año 1990-1995 , y / o km/h .'),
  ('it', "L'acqua dell'art. 5: è un po' d'aria, c'è ecc. '68 20°",
   "L' acqua dell' art. 5 : è un po' d' aria , c' è ecc. '68 20°"),
  ('it', "Dov’è l'e-mail? centro-sinistra vent'anni.",
   "Dov’ è l' e-mail ? centro-sinistra vent' anni ."),
  ('pt', 'Disse-lhe: R$10,00 e/ou US$5, guarda-chuva, pág. 3 Sr. Silva.',
   'Disse-lhe : R$ 10,00 e/ou US$ 5 , guarda-chuva , pág. 3 Sr. Silva .'),
]


@pytest.mark.parametrize(('language', 'line', 'expected'), LINES)
def test_words_are_those_of_spacy(language, line, expected):
  assert words.words(line, language) == expected.split()


# Counts of spaCy's sentencizer.
@pytest.mark.parametrize(('line', 'count'), [
  ('One. Two! (Three?) "Four." he said... ok', 5), ('. Hello', 2), ('Wait...  what?! no', 2),
  ('3.5 of them? "Yes."  "No" U.S. is. Fine', 4), ('no end', 1)])
def test_sentences_are_those_of_spacy(line, count):
  assert words.count_sentences(line) == count
  assert words.count_sentences(line, limit=2) == min(count, 2)


ALPHABET = st.text('aBé1.,\'’"!?-–/:()$%…°&=<>@ \n中', max_size=30)


@pytest.mark.parametrize('language', words.LANGUAGES)
@hypothesis.given(ALPHABET)
def test_live_spacy(language, line):
  spacy = pytest.importorskip('spacy')
  tokens = [token.text.strip() for token in _blank(spacy, language)(line)]
  assert words.words(line, language) == [token for token in tokens if token]


_BLANK = {}


def _blank(spacy, language):
  if language not in _BLANK:
    _BLANK[language] = spacy.blank(language)
  return _BLANK[language]


def test_letters_of_french_compounds_are_those_of_either_case():
  slow = re.compile(f'(?i:[{words.LOWER}])')
  everything = ''.join(map(chr, range(0x110000)))
  assert re.findall(words._LETTER, everything) == slow.findall(everything)


@hypothesis.given(st.sampled_from(words.LANGUAGES), st.text())
def test_words_lose_nothing_but_space(language, value):
  joined = ''.join(words.words(value, language)).replace('EE._UU.', 'EE.UU.')
  assert joined == ''.join(value.split()).replace('EE._UU.', 'EE.UU.')


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.text('ab1.,-\'( \n', max_size=200), min_size=1, max_size=5))
def test_lexicon_reads_the_same_words(texts):
  lexicon = lexicons.Lexicon('en')
  for text in texts:
    places, found = lexicon.read(text), words.words(text)
    assert lexicon.spelling[places].tolist() == lexicons.spellings(tuple(found))
    assert lexicon.size[places].tolist() == list(map(len, found))
    assert lexicon.alphabetic[places].tolist() == [any(map(str.isalpha, word)) for word in found]
    # The hash of a joined pair follows from those of its words.
    for i, (a, b) in enumerate(itertools.pairwise(found)):
      power = lexicons.powers(lexicon.size[places[i:i + 1]])
      joined = lexicon.spelling[places[i]] + power * lexicon.spelling[places[i + 1]]
      assert joined.tolist() == lexicons.spellings((a + b,))


@pytest.mark.parametrize('language', ['en', 'es', 'zh'])
def test_pieces_are_those_between_any_white_space(language):
  lexicon = lexicons.Lexicon(language)
  text = 'EE. UU. a\u3000b\x85c\x1cd\x00 d e\xa0f\u2028g 三毛猫\u2003\x0bア' + 'ア' * 1500
  for value in (text, f'{text} ' * 60 + 'x' * 70_000 + f' {text}', '', ' ', '\x1f'):
    found = words.words(value, language)
    places = lexicon.read(value)
    assert lexicon.size[places].tolist() == list(map(len, found))
  assert len(np.unique(lexicon.spelling)) > 10


def test_a_full_lexicon_is_begun_anew_and_the_old_one_stays_whole(monkeypatch):
  monkeypatch.setattr(lexicons, '_MOST', 10)
  monkeypatch.setattr(lexicons, '_lexicons', {})
  first = lexicons.lexicon('en')
  numbers = first.read(' '.join(map(str, range(20))))
  assert lexicons.lexicon('en') is not first
  assert first.size[numbers].sum() == 30


@pytest.mark.parametrize('unit', [
  "'", '.', ':', '(', 'a:a@', 'a.', '1-', '\U0001f600', 'http://a.', 'U.', "don't", '{', 'a/'])
@pytest.mark.timeout(120)  # a hang guard: seconds if linear, far more if quadratic
def test_time_is_linear(unit):
  times = 300_000 // len(unit)
  assert sum(map(len, words.splitter('en')(unit * times))) == times * len(unit)
