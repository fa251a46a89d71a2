"""The spans that reasons are shown by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_beam import spans

PROSE = 'One sentence stands here. Another one follows it.\n'


@pytest.mark.parametrize('reason, text, marked', [
  ('curly_bracket', 'if (x) { y }', '{'),
  ('lorem_ipsum', 'This is Lorem Ipsum dolor', 'Lorem Ipsum'),
  ('dup_line_frac', 'a first line\nb\nlonger line\na first line\nlonger line\n', 'a first line'),
  ('dup_para_char_frac', 'one\ntwo\n\nthree\n\none\ntwo', 'one\ntwo'),
  ('char_dup_ratio', 'Menu\nText\nMenu', 'Menu'),
  ('top_2_gram', 'buy now, or buy now! Later buy now', 'buy now'),
  ('duplicated_5_n_grams', 'x a b c d e f y a b c d e f z', 'a b c d e f'),
  ('gopher_too_many_hashes', 'a ## b', '##'),
  ('gopher_too_many_ellipsis', 'a … b', '…'),
  ('gopher_too_many_bullets', f'{PROSE}- a\n- b\n{PROSE}- c', '- a\n- b'),
  ('gopher_too_many_end_ellipsis', f'{PROSE}Read more...\n{PROSE}', 'Read more...'),
  ('gopher_below_alpha_threshold', 'ab 1 cd 12 | 34, 56 ef', '12 | 34, 56'),
  ('gopher_above_avg_threshold', 'a bbb aVeryLongName c', 'aVeryLongName'),
  ('line_punct_ratio', f'{PROSE}Home\nAbout us\n{PROSE}', 'Home\nAbout us'),
  ('short_line_ratio', f'{PROSE}Home\n{PROSE}Home\nAbout us', 'Home\nAbout us'),
  ('broken_characters', 'ab \ufffd\ue000 c', '\ufffd\ue000')])
def test_spans(reason, text, marked):
  start, end = spans.find(reason, text)
  assert text[start:end] == marked


def test_a_stage_may_know_better():
  assert spans.find('contaminated', 'abcdef', {'span': [2, 4]}) == (2, 4)
  assert spans.find('contaminated', 'abc', {'span': [2, 4]}) is None  # of another text
  assert spans.find('near_duplicate', 'abc') is None


@given(st.text(alphabet='ab1 .#{\n…-', max_size=80), st.sampled_from(
  ['dup_line_frac', 'dup_para_frac', 'top_3_gram', 'duplicated_5_n_grams', 'few_letters',
   'word_length', 'line_punct_ratio', 'short_line_ratio']))
def test_spans_lie_in_the_text(text, reason):
  span = spans.find(reason, text)
  assert span is None or 0 <= span[0] < span[1] <= len(text)
