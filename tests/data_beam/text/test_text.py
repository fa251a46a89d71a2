import functools
import re
import unicodedata

import hypothesis
import pytest
from ftfy import badness
from hypothesis import strategies as st

from data_beam.text import pii
from data_beam.text.language import (
  LANGUAGE_THRESHOLDS,
  detect_language,
  language_sample,
  language_shares,
)
from data_beam.text.normalize import normalize

SENTENCES = {
  'en': 'The committee will meet again next week to discuss the results of the survey.',
  'fr': 'Le comité se réunira de nouveau la semaine prochaine pour discuter des résultats.',
  'de': 'Der Ausschuss wird nächste Woche erneut tagen, um die Ergebnisse zu besprechen.',
  'es': 'El comité se reunirá de nuevo la próxima semana para discutir los resultados.',
  'it': 'Il comitato si riunirà di nuovo la prossima settimana per discutere i risultati.',
  'pt': 'A comissão vai reunir-se novamente na próxima semana para discutir os resultados.',
}


@pytest.mark.parametrize('language', SENTENCES)
def test_language(language):
  (best, score), *others = detect_language(SENTENCES[language])
  assert best == language
  assert 0.65 < score <= 1
  assert all(0.01 <= s <= score for _, s in others)


def test_language_of_many_lines_and_of_none():
  assert detect_language('\n'.join(SENTENCES['fr'].split()))[0][0] == 'fr'
  assert detect_language(' 12 — 34\n') == detect_language('') == []


@pytest.mark.parametrize(('value', 'clean'), [
  ('a\r\nb\rc\u2028d', 'a\nb\nc\nd'),
  ('a\xa0b\u2009c \t\nd', 'a b c\nd'),
  ('\n\na\n \n\n\n  b\n', 'a\n\n  b'),  # indentation stays
  ('x\x00\x1b\u200b\ufeff\xad\u202ey\ud800', 'xy'),
  ('e\u0301', 'é'),
  ('la ville où l’été est né', 'la ville où l’été est né'),
  ('it doesnâ€™t cafÃ©', 'it doesn’t café'),
])
def test_normalize(value, clean):
  assert normalize(value) == clean


@hypothesis.given(st.text())
def test_normalized_text_is_clean_and_stays(value):
  once = normalize(value)
  assert unicodedata.is_normalized('NFC', once)
  assert not re.search('[\x00-\x08\r\x0b-\x1f\x7f-\x9f\xa0]|\n{3}| \n', once)
  if not badness.is_bad(value) and not badness.is_bad(once):
    assert normalize(once) == once


# datatrove's patterns (formatters/pii.py), the address literal in brackets left out: quadratic,
# but right on short texts.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r'[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?'
REFERENCE_EMAIL = re.compile(rf'\b{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}\.)+{_LABEL}')
REPLACED = re.compile('|'.join(map(re.escape, pii._EMAILS + pii._IPS + pii._IPS6)))


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.text('aB3@@.-_ \'=\n', max_size=30))
def test_emails_are_those_of_fineweb(value):
  """But for hosts that end in no top-level domain."""
  def replaced(match):
    host = re.sub(r'(?:\.\d+)+$', '', match.group())
    return '<>' + match.group()[len(host):] if re.search(r'@.*\.[A-Za-z]{2,}$', host) else (
      match.group())

  expected = REFERENCE_EMAIL.sub(replaced, value)
  assert REPLACED.sub('<>', pii.replace_pii(value)) == expected


def test_pii_examples():
  # As datatrove has it (shared minhash_golden.json), but for the address 1.2.3.400, which is none.
  replaced = pii.replace_pii('Mail a.b+c@ex-ample.co.uk and root@localhost, ping 8.8.8.8 or '
                             '192.168.1.1, build 1.2.3.400.')
  assert REPLACED.sub('<>', replaced) == (
    'Mail <> and root@localhost, ping <> or 192.168.1.1, build 1.2.3.400.')
  for same in ('version 1.2.3.4.5', 'v1.2.3.4', '127.0.0.1 10.0.0.1 169.254.169.254', '1.2.3.04',
               '@decorator', 'a@b', 'user@-x.com'):
    assert pii.replace_pii(same) == same
  assert pii.replace_pii('(8.8.4.4)')[1:-1] in pii._IPS


@pytest.mark.parametrize('text', [
  'Version 4.0.0.1 of it', 'versions 1.2.3.4 and 1.2.3.5', 'Section 3.2.1.4 says', '§ 3.2.1.4',
  'as in sections 3.2.1.4, 3.2.1.5 and 4.1.1.2', '3.2.1.4 Formation of compounds',
  'Chrome/99.0.1.2', 'firmware: 8.8.4.4', 'requests==2.0.1.4', 'libfoo-1.2.3.4',
  'siehe Abschnitt 12.2.3.1',
  'release v2.10.3.1', 'in subsection\n3.2.1.4 of', 'foo_1.2.3.4', '8.8.4.4-rc1',
  'setup-9.1.2.3.exe', 'la versión 9.1.2.3', 'PHP 5.3.2.1', 'Oracle Database 12.1.0.2',
  'Windows 10.0.19041.1', '3.4.2.1. Results of it',
  'icon@2x.png', 'img/a@3x.webp', 'react@18.2.0', 'std::a::b', '10:30:00', '2a:00:14:50:40:01',
  '2001:db8::1', 'fe80::1', '2001:xyz::1'])
def test_what_is_no_address_stays(text):
  assert pii.replace_pii(text) == text


@pytest.mark.parametrize(('text', 'expected'), [
  ('jürgen.groß@müller-söhne.de schrieb', '<> schrieb'), ('пошта@приклад.укр', '<>'),
  ('联系我们info@example.com或致电', '联系我们<>或致电'), ('用户@例子.中国', '<>'),
  ('संपर्क@उदाहरण.भारत', '<>'), ('me@example.com.2', '<>.2'), ('a@xn--mller-kva.de', '<>'),
  ('from 2001:4860:4860::8888 to [2a00:1450:4001:81b::200e]:443', 'from <> to [<>]:443'),
  ('2600:1406:bc00:53:0:0:b81e:94ce, up', '<>, up'), ('from 8.8.8.8 to 9.9.9.9.', 'from <> to <>.'),
  ('12.34.5.6 - - [10/Oct/2000]', '<> - - [10/Oct/2000]'), ('http://8.8.8.8/a', 'http://<>/a'),
  ('server version 3, at 8.8.8.8', 'server version 3, at <>')])
def test_addresses_of_other_kinds(text, expected):
  assert REPLACED.sub('<>', pii.replace_pii(text)) == expected
  assert pii.replace_pii(pii.replace_pii(text)) == pii.replace_pii(text)


def test_accounts_by_checksum():
  """Numbers of registries and of payment services; each with a wrong digit is none."""
  for number in ('GB82 WEST 1234 5698 7654 32', 'DE89 3704 0044 0532 0130 01',
                 'NL91ABNA0417164300', '4012-8888-8888-1881', '5105105105105100',
                 '3714 496353 98431', '6011111111111117', 'gb82 west 1234 5698 7654 32',
                 'NL91-ABNA-0417-1643-00', 'NL91\u00a0ABNA\u00a00417\u00a01643\u00a000',
                 '4012\u00a08888\u00a08888\u00a01881'):
    line = f'To {number}, today.'
    assert pii.replace_pii(line) == line
    hidden = pii.replace_pii(line, accounts=True)
    assert (hidden != line) == (number != 'DE89 3704 0044 0532 0130 01')
    assert pii.replace_pii(hidden, accounts=True) == hidden
    wrong = line.replace(number[-1], str((int(number[-1]) + 1) % 10))
    assert pii.replace_pii(wrong, accounts=True) == wrong
  for same in ('ISBN 978-3-16-148410-0', '3.1415926535897932', '1234 5678 9012 3456',
               '4' + '0' * 15):
    assert pii.replace_pii(same, accounts=True) == same


LABEL = st.text('abcXYZ019', min_size=1, max_size=9)
EMAIL = st.builds('{}.{}@{}.{}'.format, LABEL, LABEL, LABEL, LABEL)


@hypothesis.given(st.lists(EMAIL | st.ip_addresses(), max_size=5))
def test_replacements_do_not_depend_on_what_came_before(found):
  found = list(map(str, found))
  alone = [pii.replace_pii(f) for f in found]
  together = pii.replace_pii('\n'.join(found))
  assert together == '\n'.join(alone)
  assert pii.replace_pii(together) == together


@pytest.mark.parametrize('unit', ['1 ', '+1', '+1 2', '(030)', '(030) 12-', 'tel: ',
                                  'a.', 'a@', 'x@a-', '@', 'a@a.', '1.', '1.1.1.1.', ' ', ' \n',
                                  '\u2003', "'", 'â€', '-|', 'U.', 'x@' + 'a-' * 200,
                                  'é@', '我a@', '2001:', 'v 1.1.1.1 ', 'GB82 WEST ', '4111 '])
@pytest.mark.parametrize('function', [
  functools.partial(pii.replace_pii, phones=True, accounts=True), normalize])
@pytest.mark.timeout(120)  # a hang guard: seconds if linear, far more if quadratic
def test_time_is_linear(function, unit):
  function(unit * (300_000 // len(unit)))


@pytest.mark.parametrize('number', [
  '+49 30 1234567', '+1 (212) 736-5000', '0033 1 42 68 53 00', '(030) 1234-5678', '(212) 736-5000'])
def test_phone_numbers(number):
  line = f'Call {number}, or write.'
  assert pii.replace_pii(line) == line   # only if asked for
  assert pii.replace_pii(line, phones=True).removeprefix('Call ').removesuffix(', or write.') in (
    pii._PHONES)
  once = pii.replace_pii(line, phones=True)
  assert pii.replace_pii(once, phones=True) == once


def test_phone_numbers_after_a_word_and_other_numbers():
  assert '736' not in pii.replace_pii('Tel: 212 736 5000', phones=True)
  for same in ('1,234,567.89', '2019-11-25 10:45', 'ISBN 978-3-16-148410-0', '3 + 4567890', '1/2/3',
               'x+4930123456789', '(1990) and 20 of 300', '10 000 000 000'):
    assert pii.replace_pii(same, phones=True) == same


def test_switching_languages_is_seen():
  english, french = SENTENCES['en'] * 4, SENTENCES['fr'] * 4
  shares = language_shares('\n'.join([english, french, english, '123 456 ' * 20]))
  assert list(shares)[:2] == ['en', 'fr']
  assert sum(shares.values()) == pytest.approx(1)
  assert language_shares(SENTENCES['de']) == {'de': 1}
  assert language_shares('') == {}


@hypothesis.given(st.text('ab \n', max_size=60), st.integers(2, 6), st.integers(1, 8))
def test_a_language_sample_spans_the_text(body, windows, size):
  sample = language_sample(body, windows, size)
  if len(body) <= windows * size:
    assert sample == body
  else:
    assert len(sample) == windows * size + windows - 1
    assert sample.startswith(body[:size]) and sample.endswith(body[-size:])


def test_a_foreign_preface_does_not_decide_the_language():
  book = (SENTENCES['en'] + ' ') * 60 + (SENTENCES['de'] + ' ') * 600
  assert detect_language(language_sample(book))[0][0] == 'de'


def test_thresholds_let_plain_sentences_pass():
  for language, sentence in SENTENCES.items():
    assert dict(detect_language(sentence * 5))[language] > LANGUAGE_THRESHOLDS[language]
