"""A clean form of a text, and a plain one to compare it by.

All takes time linear in the length of the text, whatever the text: web pages are hostile input."""

import re
import unicodedata

import ftfy
import ftfy.badness
import regex

from data_beam.text import words

# --- a clean form ----------------------------------------------------------------------------

_LINE_BREAKS = re.compile(r'[\x0b\x0c\x85\u2028\u2029]')
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
      text = '\n'.join(line if line.isascii() else _mend(line) for line in text.split('\n'))
    text = _SPACES.sub(' ', text)
  text = text.replace('\r\n', '\n').replace('\r', '\n')
  text = _INVISIBLE.sub('', _LINE_BREAKS.sub('\n', text))
  text = unicodedata.normalize('NFC', text)
  text = '\n'.join(line.rstrip() for line in text.split('\n'))  # a regex ` +$` is quadratic
  if '\n\n\n' in text:
    text = _BLANK_LINES.sub('\n\n', text)
  return text.strip('\n')


def _mend(line: str) -> str:
  if _MAYBE_MOJIBAKE.search(line) and ftfy.badness.is_bad(line):
    return ftfy.fix_encoding(line)
  return line




_NUMBER = re.compile('0+(?:[.,،٫⎖⎗⎘]0+)?')   # a literal first: found many times faster than \d
_DIGITS = dict.fromkeys(map(ord, '123456789'), '0')
_HIGH = re.compile(r'[^\x00-\u065f]')   # where digits of other scripts are
_BLANKS = dict.fromkeys(map(ord, words.PUNCTUATION), ' ')
_ACCENT = regex.compile(r'\p{Mn}+')


def simplify(text: str) -> list[str]:
  """The words of a text without case, punctuation, accents or the values of numbers (datatrove)."""
  text = text.lower()
  if text.isascii():
    return _NUMBER.sub('0', text.translate(_DIGITS)).translate(_BLANKS).split()
  # Outside ASCII, str.translate and classes of a regular expression are slow, str.replace is not.
  for digit in (*'123456789', *filter(str.isdecimal, set(_HIGH.findall(text)))):
    text = text.replace(digit, '0')
  text = _NUMBER.sub('0', text)
  for sign in words.PUNCTUATION:
    text = text.replace(sign, ' ')
  if not text.isascii():
    text = _ACCENT.sub('', unicodedata.normalize('NFD', text))
  return text.split()


def simple_words(text: str) -> list[str]:
  """`simplify`, with text of scripts that have no spaces between words cut: what is compared."""
  found = simplify(text)
  return found if text.isascii() else words.segmented(found)
