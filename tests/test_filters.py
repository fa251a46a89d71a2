"""Quality rules: each at its bound, n-grams against the naive algorithm, datatrove's verdicts."""

import functools
import gzip
import hashlib
import json
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_beam import filters
from data_beam.filters import c4, fineweb, garbage, gopher_quality, gopher_repetition, length
from data_beam.records import Document


def word(i: int) -> str:
  """Distinct words of five letters."""
  return ''.join(chr(97 + i // 26 ** k % 26) for k in range(5))


def prose(lines: int) -> list[str]:
  """Lines of nine words and a full stop: ten tokens, 48 characters, each word but three once."""
  return [' '.join(['The', word(i), 'of', word(i + 1), 'and', *(word(i + k) for k in range(2, 6))])
          + '.' for i in range(0, 6 * lines, 6)]


def text(*lines) -> str:
  return '\n'.join(lines)


def filled(phrase: str, words: int, lines: int = 20) -> str:
  """Lines that begin alike and go on with so many words that occur once."""
  return text(*[' '.join([phrase, *(word(i * words + k) for k in range(words))])
                for i in range(lines)])


def twice(phrase_words: int, words: int) -> str:
  """Ten phrases, each at the head of two lines that go on with words that occur once."""
  return text(*[' '.join([*(word(5000 + phrase * phrase_words + k) for k in range(phrase_words)),
                          *(word((phrase + 10 * copy) * words + k) for k in range(words))])
                for copy in range(2) for phrase in range(10)])


def reason(rule, body: str, **fields) -> str | None:
  return rule(Document(id='', text=body, **fields))


BASE = prose(20)   # 180 words, 200 tokens
# Rules that look at one thing only, the others switched off.
lines_only = functools.partial(gopher_repetition, top=(1,) * 3, duplicated=(1,) * 6)
ngrams_only = functools.partial(gopher_repetition, paragraphs=1, paragraph_chars=1, lines=1,
                                line_chars=1)
long_only = functools.partial(gopher_quality, max_words=180)
list_only = functools.partial(fineweb, short_lines=1)
LONG = ' '.join(map(word, range(5000, 5051)))   # 305 characters

# (rule, reason, a document that it drops, one just within its bound)
BOUNDS = [
  # 4 of 11 paragraphs repeat an earlier one, 3 of 10; then 22 and 19 % of the characters.
  (lines_only, 'dup_para_frac', '\n\n'.join(BASE[:6] + ['a.'] * 5),
   '\n\n'.join(BASE[:6] + ['a.'] * 4)),
  (lines_only, 'dup_para_char_frac', '\n\n'.join([LONG, LONG, *BASE[:15]]),
   '\n\n'.join([LONG, LONG, *BASE])),
  (lines_only, 'dup_line_frac', text(*BASE[:6], *['a.'] * 5, '\nb'),
   text(*BASE[:6], *['a.'] * 4)),
  (lines_only, 'dup_line_char_frac', text(LONG, LONG, *BASE[:15], '\nb'),
   text(LONG, LONG, *BASE, '\nb')),
  # Shares of .208 and .167; .208 and .167; .219 and .14; .35 and .14; .110 and .097.
  (ngrams_only, 'top_2_gram', filled('so to', 3), filled('so to', 4)),
  (ngrams_only, 'top_3_gram', filled('a b c', 3), filled('a b c', 4)),
  (ngrams_only, 'top_4_gram', filled('a b c d', 4), filled('a b c d', 7)),
  (ngrams_only, 'duplicated_5_n_grams', twice(5, 1), twice(5, 10)),
  (ngrams_only, 'duplicated_10_n_grams', twice(10, 28), twice(10, 33)),
  (gopher_repetition, 'empty', '', 'a'),
  (gopher_quality, 'gopher_short_doc', text(*BASE[:5], 'and that with four'),
   text(*BASE[:5], 'and that with four words')),
  (long_only, 'gopher_long_doc', text(*BASE, 'more'), text(*BASE)),
  (gopher_quality, 'gopher_below_avg_threshold', 'the you one and ' * 20 + 'of',
   'the you one and ' * 20),
  (gopher_quality, 'gopher_above_avg_threshold', 'the and ' + 'extraordinary ' * 60,
   'the and ' + 'incredible ' * 60),
  # 23 of 223 tokens, and 22 of 222.
  (gopher_quality, 'gopher_too_many_hashes', text(*BASE) + ' #' * 23, text(*BASE) + ' #' * 22),
  (gopher_quality, 'gopher_too_many_ellipsis', text(*BASE) + ' …' * 23, text(*BASE) + ' …' * 22),
  (gopher_quality, 'gopher_too_many_bullets', text(*['• ' + x for x in BASE]),
   text(*['- ' + x for x in BASE[:18]], *BASE[18:])),
  (gopher_quality, 'gopher_too_many_end_ellipsis', text(*[x + '..' for x in BASE[:7]], *BASE[7:]),
   text(*[x + '..' for x in BASE[:6]], *BASE[6:])),
  # 180 of 226 tokens hold letters, and 180 of 225.
  (gopher_quality, 'gopher_below_alpha_threshold', text(*BASE) + ' 7' * 26,
   text(*BASE) + ' 7' * 25),
  (gopher_quality, 'gopher_enough_stop_words', ' '.join(map(word, range(60))) + ' of The',
   ' '.join(map(word, range(60))) + ' of the'),
  (c4, 'too_few_sentences', text(*BASE[:4]), text(*BASE[:5])),
  (c4, 'too_few_sentences', 'One is here. Two is here! Three, 3.5 of them? "Four."',
   'One is here. Two is here! Three, 3.5 of them? "Four." he said'),
  (c4, 'lorem_ipsum', text(*BASE, 'Some Lorem Ipsum here'), text(*BASE, 'Some lorem, some ipsum')),
  (c4, 'curly_bracket', text(*BASE, 'int main() { return'), text(*BASE, '{ short')),
  (fineweb, 'empty', ' \n ', BASE[0]),
  # 2 and 3 of 20 lines; an ellipsis ends no sentence, an ideographic full stop does.
  (fineweb, 'line_punct_ratio', text(*BASE[:2], *[x[:-1] for x in BASE[2:]]),
   text(*BASE[:3], *[x[:-1] for x in BASE[3:]])),
  (fineweb, 'line_punct_ratio', text(*[x[:-1] + '…' for x in BASE]),
   text(*[x[:-1] + '。' for x in BASE])),
  # 5 of 7 lines, of 30 characters and of 31.
  (fineweb, 'short_line_ratio', text(*BASE[:2], *[f'This is a rather short {word(i)}..'
                                                  for i in range(5)]),
   text(*BASE[:2], *[f'This is a rather short {word(i)}...' for i in range(5)])),
  (fineweb, 'char_dup_ratio', text(*BASE, 'Read on here.', 'Read on here.'),
   text(*BASE, 'Read on.', 'Read on.')),
  # 8 breaks among 18 tokens, and 8 among 27.
  (list_only, 'list_ratio', text(*[f'{word(i)}.' for i in range(9)]),
   text(*[f'{word(i)} now.' for i in range(9)])),
  (garbage, 'empty', ' \n', 'a word'),
  (garbage, 'broken_characters', 'x' * 97 + '\ufffd\ue000', 'xyz ' * 33 + '\ufffd and'),
  (garbage, 'few_letters', 'abcd 12345', 'abcd 1234'),
  (garbage, 'word_length', 'a b c d e', 'ab cd ef'),
  (garbage, 'word_length', 'x' * 15 + ' ' + 'y' * 16, 'x' * 15 + ' ' + 'y' * 15),
  (length, 'short', 'word, ' * 49, 'word, ' * 50),
]


@pytest.mark.parametrize(('rule', 'name', 'drops', 'passes'), BOUNDS,
                         ids=[f'{i}-{b[1]}' for i, b in enumerate(BOUNDS)])
def test_each_rule_at_its_bound(rule, name, drops, passes):
  assert reason(rule, drops) == name
  assert reason(rule, passes) is None


def test_ordinary_prose_passes_every_profile():
  for rules in filters.PROFILES.values():
    document = Document(id='', text=text(*BASE), language='en')
    assert filters.first_reason(document, rules) is None
    assert document.text == text(*BASE)


def test_c4_drops_lines_and_citation_marks():
  document = Document(id='', text=text(
    *BASE[:5], 'Enable JavaScript to see more.', 'We use cookies on this site.', 'Two words',
    'a' * 1001 + ' is one long word', ' Known since 1999.[12] Or so.[citation needed] '))
  assert c4(document) is None
  assert document.text == text(*BASE[:5], 'Known since 1999. Or so.')


def test_english_stop_words_are_for_english():
  french = ' '.join(map(word, range(60)))
  assert reason(gopher_quality, french, language='en') == 'gopher_enough_stop_words'
  assert reason(gopher_quality, french, language='fr') is None


def test_documentation_passes_docs_but_not_fineweb():
  page = text(
    'str.removeprefix(prefix, /)', 'If the string starts with the prefix string, return the rest.',
    'Otherwise, return a copy of the original string:', ">>> 'TestHook'.removeprefix('Test')",
    "'Hook'", ">>> 'BaseTestCase'.removeprefix('Test')", "'BaseTestCase'", 'Added in version 3.9.',
    'str.format_map(mapping, /)', 'Similar to format(**mapping), but mapping is used directly.',
    'This is useful if for example mapping is a dict subclass: {"a": 1} and so on.')
  assert filters.first_reason(Document(id='', text=page), filters.WEB)
  assert filters.first_reason(Document(id='', text=page), filters.DOCS) is None
  for junk in (text(*map(word, range(0, 900, 9))),   # an index of names
               text(*['Return a copy of the string.'] * 30),
               'Home | Next | Previous'):
    assert filters.first_reason(Document(id='', text=junk), filters.DOCS)


def test_profiles_by_name():
  assert filters.profile('fineweb') is filters.WEB
  assert filters.profile('none') == ()
  assert filters.profile('c4,length') == filters.profile(['c4', 'length']) == (c4, length)
  with pytest.raises(ValueError, match=r"unknown filter 'gopher': .*fineweb, docs, pdf, none"):
    filters.profile('gopher')


# --- n-grams, against the strings themselves -------------------------------------------------


def naive_top(tokens, n):
  grams = Counter(' '.join(tokens[i:i + n]) for i in range(len(tokens) - n + 1))
  if not grams:
    return 0
  gram, count = grams.most_common(1)[0]
  return len(gram) * count


def naive_duplicated(tokens, n):
  """datatrove's find_all_duplicate."""
  seen, total, i = set(), 0, 0
  while i < len(tokens) - n + 1:
    gram = ' '.join(tokens[i:i + n])
    if gram in seen:
      total += len(''.join(tokens[i:i + n]))
      i += n
    else:
      seen.add(gram)
      i += 1
  return total


@given(st.lists(st.sampled_from(['a', 'to', 'the', 'word', '.']), max_size=60), st.integers(1, 6))
def test_ngrams_equal_the_naive_ones(tokens, n):
  grams = filters.stats(' '.join(tokens)).ngrams
  tokens = filters.stats(' '.join(tokens)).tokens
  assert grams.top(n) == naive_top(tokens, n)
  assert grams.duplicated(n) == naive_duplicated(tokens, n)
  assert all(grams.duplicated(m) <= grams.covered(n) for m in range(n, 12))


# --- hostile text ----------------------------------------------------------------------------


@pytest.mark.parametrize('piece', [
  '. ', '.', ' ', '\n', '- ', 'a', 'a ', 'a.', "'", 'http://', '[1', '{', '…', 'word word. ', '中',
  '日本。', '#\n', '\x00'])
def test_cost_is_linear_whatever_the_text(piece):
  body = piece * (200_000 // len(piece))
  start = time.process_time()
  for rule in filters.RULES.values():
    reason(rule, body)
  assert time.process_time() - start < 4


# --- datatrove's verdicts --------------------------------------------------------------------


@pytest.fixture(scope='module')
def decisions(shared_data):
  path = shared_data / 'web_parity' / 'datatrove_decisions.jsonl.gz'
  rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
  return [r for r in rows if r.get('lang') == 'en' and 'c4' in r]


def agreement(rows, key, rule, body):
  """Share of the rows on which rule and datatrove agree to keep or to drop."""
  pairs = [(reason(rule, body(row)), row[key]) for row in rows if key in row]
  assert len(pairs) > 200
  return sum((got is None) == kept for got, (kept, _) in pairs) / len(pairs)


@pytest.mark.parametrize(('key', 'rule', 'least'), [
  ('rep', gopher_repetition, 1), ('qual', gopher_quality, .99), ('c4', c4, 1)])
def test_agreement_with_datatrove(decisions, key, rule, least):
  assert agreement(decisions, key, rule, lambda row: row['text']) >= least


def test_c4_rewrites_as_datatrove_does_and_fineweb_judges_it_alike(decisions):
  rewritten = {}
  for row in decisions:
    document = Document(id='', text=row['text'])
    if row['c4'][0] and c4(document) is None:
      rewritten[row['id']] = document.text
      assert hashlib.sha1(document.text.encode()).hexdigest() == row['c4_text_sha1']
  rows = [row for row in decisions if row['id'] in rewritten]
  assert agreement(rows, 'fw', fineweb, lambda row: rewritten[row['id']]) == 1


def test_final_verdicts_agree_with_datatrove(decisions):
  same = [(filters.first_reason(Document(id='', text=row['text'], language='en'), filters.WEB)
           is None) == row['kept'] for row in decisions]
  assert sum(same) / len(same) >= .99
