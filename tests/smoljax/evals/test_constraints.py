"""Constraints on answers: what keeps each, what does not, and what IFEval's checkers let pass."""

import pytest

from smoljax.evals import constraints, ruler

KEPT = [
  ({'kind': 'words', 'exactly': 3}, "it's well-known here", 'one two'),
  ({'kind': 'words', 'at_least': 2, 'at_most': 3}, 'a b c', 'a b c d'),
  ({'kind': 'sentences', 'exactly': 2}, 'Dr. Who came. He left!', 'One. Two. Three.'),
  ({'kind': 'paragraphs', 'exactly': 2}, 'a\n\nb', 'a\nb'),
  ({'kind': 'paragraphs', 'exactly': 2}, 'a\n\nmore\n***\nb', '***'),
  ({'kind': 'bullets', 'exactly': 2}, '* a\n- b\nnot this', '**bold**\n* a'),
  ({'kind': 'keywords', 'words': ['cat', 'sea']}, 'The Cat by the sea.', 'catalogue, sea'),
  ({'kind': 'keyword_count', 'word': 'a.b', 'exactly': 2}, 'a.b, A.B', 'axb a.b'),
  ({'kind': 'forbidden', 'words': ['cat']}, 'a catalogue', 'no CAT here'),
  ({'kind': 'json', 'keys': ['a']}, '```json\n{"a": 1, "b": [2]}\n```', '{"b": 1}'),
  ({'kind': 'json'}, '[1]', '3'),
  ({'kind': 'case', 'want': 'upper'}, 'ÉTÉ 3!', 'Été'),
  ({'kind': 'case', 'want': 'lower'}, 'été 3!', '3!'),
  ({'kind': 'title'}, '<<On owls>>\ntext', '<< >> owls'),
  ({'kind': 'ends_with', 'phrase': 'That is all.'}, 'So: "that is all."', 'That is all. Bye'),
  ({'kind': 'two_answers'}, 'yes\n******\nno', 'yes ****** yes'),
  ({'kind': 'no_commas'}, 'a b', 'a, b'),
  ({'kind': 'language', 'code': 'de'}, 'Das ist die Katze und der Hund.', 'This is the cat'),
  ({'kind': 'language', 'code': 'pt'}, 'Não é para mais do que uma.', 'No es más que una.'),
]


@pytest.mark.parametrize('constraint, kept, broken', KEPT, ids=lambda x: str(x)[:30])
def test_each_kind(constraint, kept, broken):
  follows = lambda text: constraints.follows(text, [constraint])
  assert follows(kept) == [True] and follows(broken) == [False] and follows('') == [False]
  assert len(constraints.asks(constraint)) > 10


def test_loosely_as_ifeval_does():
  wanted = [{'kind': 'words', 'exactly': 2}, {'kind': 'case', 'want': 'lower'}]
  text = 'Here you are:\n*two* words'
  assert constraints.follows(text, wanted) == [False, False]
  assert constraints.follows(text, wanted, loose=True) == [True, True]


def test_the_six_languages_are_told_apart():
  for language, frame in ruler._FRAMES.items():
    assert constraints.language_of(f'{frame.task} {frame.ask} {frame.prefix}') == language
  assert constraints.language_of('7 + 5') == ''


@pytest.mark.parametrize('wrong', [
  {'kind': 'rhyme'}, {'kind': 'words'}, {'kind': 'words', 'most': 3}, {}])
def test_what_is_unknown_is_said(wrong):
  with pytest.raises(ValueError):
    constraints.follows('text', [wrong])
