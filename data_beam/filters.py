"""Quality rules for documents: Gopher, C4 and FineWeb (arXiv 2112.11446, 1910.10683, 2406.17557),
and gentler ones for software documentation and PDFs.

A rule is a function `(Document) -> None | reason`; a profile is a tuple of rules, run in order
until one gives a reason. A rule may also tidy `document.text` (C4 drops lines), and those after it
see the new text. What rules need of a text, `Stats`, is computed once and shared: it is found again
by the text itself. Parameters are those of FineWeb (datatrove's examples/fineweb.py) unless a
comment says otherwise, and so are the reasons' names and the order in which they are tried.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import regex

from data_beam.records import Document
from data_beam.text import words

Rule = Callable[[Document], str | None]

# FineWeb's word splitter (spaCy) keeps links whole; in pieces they are mostly punctuation.
LINK = re.compile(r'''((?:https?://|www\.)[^\s<>"')\]]+)''')
ALPHABETIC = re.compile(r'[^\W\d_]')
WORDLIKE = re.compile(r'\w')
# Unicode's Sentence_Terminal, which knows neither closing quotes nor the ellipsis: FineWeb's list.
TERMINAL = tuple(c for c in map(chr, range(0x20000)) if regex.match(r'\p{Sentence_Terminal}', c))
SENTENCE_END = re.compile(r'''[.!?。！？]['"”’)\]]*\s+(?=\W{0,9}\w)''')

# The eight words of Gopher's English rule.
STOP_WORDS = frozenset(['the', 'be', 'to', 'of', 'and', 'that', 'have', 'with'])
# C4's marks of boilerplate lines.
POLICY_LINES = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies',
                'use of cookies', 'use cookies')
# Left behind by fonts without a Unicode map and by failed decoding.
BROKEN = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]')
CITATION = re.compile(r'\[\d*]|\[edit]|\[citation needed]')


class Stats:
  """What the rules ask about a text, each part computed at most once.

  A text of n tokens has far fewer distinct ones: what depends on the token alone is computed for
  those and weighted by `counts`.
  """

  def __init__(self, text: str):
    self.text = text

  @functools.cached_property
  def tokens(self) -> list[str]:
    """Words, links and punctuation marks, in order."""
    parts = LINK.split(self.text)   # text, link, text, link, …
    for i in range(0, len(parts), 2):
      parts[i] = words(parts[i])
    for i in range(1, len(parts), 2):
      parts[i] = [parts[i]]
    return list(itertools.chain.from_iterable(parts))

  @functools.cached_property
  def counts(self) -> dict[str, int]:
    """Occurrences of each distinct token, in order of first occurrence."""
    return Counter(self.tokens)

  @functools.cached_property
  def word_stats(self) -> tuple[int, float]:
    """Number and mean length of the words: the tokens that hold a letter, digit or underscore."""
    sizes = [(len(t), n) for t, n in self.counts.items() if t.isalnum() or WORDLIKE.search(t)]
    number = sum(n for _, n in sizes)
    return number, sum(size * n for size, n in sizes) / max(1, number)

  @functools.cached_property
  def alphabetic(self) -> int:
    """Number of tokens that hold a letter."""
    return sum(n for t, n in self.counts.items() if t.isalpha() or ALPHABETIC.search(t))

  @functools.cached_property
  def lines(self) -> list[str]:
    """Lines of the text that are not blank."""
    return [line for line in self.text.split('\n') if line and not line.isspace()]

  @functools.cached_property
  def ngrams(self) -> 'NGrams':
    numbers = {token: i for i, token in enumerate(self.counts)}
    ids = np.fromiter(map(numbers.__getitem__, self.tokens), np.uint64, len(self.tokens))
    sizes = np.fromiter(map(len, numbers), np.int64, len(numbers))
    return NGrams(ids, sizes[ids.astype(np.int64)])


@functools.lru_cache(maxsize=4)
def stats(text: str) -> Stats:
  """The Stats of a text; the same object while the rules of one document run."""
  return Stats(text)


class NGrams:
  """Repeated n-grams of a token sequence, found by hash rather than by joined strings.

  Args:
    ids: uint64 [tokens], equal for equal tokens.
    sizes: int64 [tokens], characters of each.
  """

  def __init__(self, ids: np.ndarray, sizes: np.ndarray):
    self.by_size = {1: ids + np.uint64(1)}
    self.ends = np.concatenate([[0], np.cumsum(sizes)])   # characters before each token

  def hashes(self, n: int) -> np.ndarray:
    """One hash per n-gram, uint64 [tokens − n + 1]: a polynomial in the ids, modulo 2^64."""
    if n not in self.by_size:
      shorter = self.hashes(n - 1)[:-1] * np.uint64(0x9E3779B97F4A7C15)
      self.by_size[n] = shorter + self.by_size[1][n - 1:]
    return self.by_size[n]

  def top(self, n: int) -> int:
    """Characters of the most common n-gram, joined by spaces, times its occurrences; of equally
    common ones the first."""
    hashes = self.hashes(n)
    if not len(hashes):
      return 0
    ordered = np.sort(hashes)
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(starts, append=len(ordered))
    most = int(counts.max())
    at = 0 if most == 1 else int(np.isin(hashes, ordered[starts[counts == most]]).argmax())
    return int(self.ends[at + n] - self.ends[at] + n - 1) * most

  def covered(self, n: int) -> int:
    """Characters of all tokens inside an n-gram seen before: at least `duplicated(n)`, and at
    least `duplicated(m)` for every larger m, since its repeats consist of repeats of n."""
    hashes = self.hashes(n)
    _, first = np.unique(hashes, return_index=True)
    if len(first) == len(hashes):
      return 0
    again = np.ones(len(hashes), np.int64)
    again[first] = 0
    inside = np.convolve(again, np.ones(n, np.int64)) > 0
    return int(np.diff(self.ends)[inside].sum())

  def duplicated(self, n: int) -> int:
    """Characters in repeated n-grams, scanned greedily without overlap as datatrove does."""
    hashes = self.hashes(n).tolist()
    seen, at, total = set(), 0, 0
    while at < len(hashes):
      if hashes[at] in seen:
        total += int(self.ends[at + n] - self.ends[at])
        at += n
      else:
        seen.add(hashes[at])
        at += 1
    return total


def duplicates(parts: Iterable[str]) -> tuple[int, int]:
  """How many of the parts repeat an earlier one, and their characters."""
  counts = Counter(parts)
  return sum(n - 1 for n in counts.values()), sum(len(p) * (n - 1) for p, n in counts.items())


def gopher_repetition(
  doc: Document, *, paragraphs: float = .3, paragraph_chars: float = .2, lines: float = .3,
  line_chars: float = .2, top: Sequence[float] = (.20, .18, .16),
  duplicated: Sequence[float] = (.15, .14, .13, .12, .11, .10),
) -> str | None:
  """Repeated paragraphs, lines and n-grams, as shares of their number or of the text's characters.

  `top` bounds the most common 2-, 3- and 4-gram, `duplicated` the repeated 5- to 10-grams.
  """
  text = doc.text
  if not text:
    return 'empty'
  stripped = text.strip()
  for name, parts, max_share, max_chars in (
    ('para', re.split(r'\n{2,}', stripped), paragraphs, paragraph_chars),
    ('line', re.split(r'\n+', stripped), lines, line_chars),
  ):
    number, characters = duplicates(parts)
    if number > max_share * len(parts):
      return f'dup_{name}_frac'
    if characters > max_chars * len(text):
      return f'dup_{name}_char_frac'
  ngrams = stats(text).ngrams
  for n, share in enumerate(top, start=2):
    if ngrams.top(n) > share * len(text):
      return f'top_{n}_gram'
  # Nearly all documents end here: too little is covered for any n to be above its bound.
  if ngrams.covered(5) <= min(duplicated) * len(text):
    return None
  for n, share in enumerate(duplicated, start=5):
    if ngrams.duplicated(n) > share * len(text):
      return f'duplicated_{n}_n_grams'
  return None


def gopher_quality(
  doc: Document, *, min_words: int = 50, max_words: float = 100_000,
  word_length: tuple[float, float] = (3, 10), symbols: float = .1, bullets: float = .9,
  ellipses: float = .3, alphabetic: float = .8, stop_words: int = 2,
) -> str | None:
  """Number and length of words, shares of symbols, bullets, ellipses and words with letters.

  Stop words are English ones, so that rule waits for documents in English (or of unknown language).
  """
  text, s = doc.text, stats(doc.text)
  tokens, (number, mean) = len(s.tokens), s.word_stats
  if number < min_words:
    return 'gopher_short_doc'
  if number > max_words:
    return 'gopher_long_doc'
  if mean < word_length[0]:
    return 'gopher_below_avg_threshold'
  if mean > word_length[1]:
    return 'gopher_above_avg_threshold'
  if text.count('#') > symbols * tokens:
    return 'gopher_too_many_hashes'
  if text.count('...') + text.count('…') > symbols * tokens:
    return 'gopher_too_many_ellipsis'
  lines = text.splitlines()
  if sum(line.lstrip().startswith(('•', '-')) for line in lines) > bullets * len(lines):
    return 'gopher_too_many_bullets'
  if sum(line.rstrip().endswith(('...', '…')) for line in lines) > ellipses * len(lines):
    return 'gopher_too_many_end_ellipsis'
  # Of all tokens, punctuation too: the rule that drops most.
  if s.alphabetic < alphabetic * tokens:
    return 'gopher_below_alpha_threshold'
  if doc.language in ('', 'en') and len(STOP_WORDS & s.counts.keys()) < stop_words:
    return 'gopher_enough_stop_words'
  return None


def c4(doc: Document, *, min_sentences: int = 5) -> str | None:
  """Drops boilerplate lines and citation marks from the text, and documents that are code, filler
  or too short after it. C4's rule that lines end in punctuation is off, as in FineWeb.
  """
  kept, sentences = [], 0
  for line in doc.text.splitlines():
    line = line.strip()
    if len(line) > 1000 and any(len(word) > 1000 for word in line.split()):
      continue
    tidy = CITATION.sub('', line) if '[' in line else line
    if len(line.split(maxsplit=2)) < 3:
      continue
    lower = tidy.lower()
    if 'lorem ipsum' in lower:
      return 'lorem_ipsum'
    if 'javascript' in lower:
      continue
    if '{' in tidy:
      return 'curly_bracket'
    if any(mark in lower for mark in POLICY_LINES):
      continue
    kept.append(tidy)
    sentences += len(SENTENCE_END.findall(tidy)) + 1
  if sentences < min_sentences:
    return 'too_few_sentences'
  doc.text = '\n'.join(kept).strip()
  return None


def fineweb(
  doc: Document, *, line_punctuation: float = .12, short_line: int = 30, short_lines: float = .67,
  repeated_chars: float = .01, newlines: float = .3,
) -> str | None:
  """FineWeb's own rules: lists, menus and repeated lines."""
  text, lines = doc.text, stats(doc.text).lines
  if not lines:
    return 'empty'
  if sum(line.endswith(TERMINAL) for line in lines) < line_punctuation * len(lines):
    return 'line_punct_ratio'
  if sum(len(line) <= short_line for line in lines) > short_lines * len(lines):
    return 'short_line_ratio'
  if duplicates(lines)[1] > repeated_chars * len(text.replace('\n', '')):
    return 'char_dup_ratio'
  breaks = text.count('\n')
  # There are at least as many tokens as strings between spaces: most documents need no tokens here.
  if breaks > newlines * len(text.split()) and breaks > newlines * len(stats(text).tokens):
    return 'list_ratio'
  return None


def garbage(
  doc: Document, *, broken: float = .01, letters: float = .5,
  word_length: tuple[float, float] = (2, 15),
) -> str | None:
  """Text that is none: undecodable characters, more symbols than letters, letters without words.

  `broken` bounds the share of U+FFFD, private-use and control characters, which a font without a
  Unicode map leaves behind; `letters` is the least share of letters among all visible characters.
  """
  text = doc.text
  visible = len(text) - sum(map(len, re.findall(r'\s+', text)))
  if not visible:
    return 'empty'
  if len(BROKEN.findall(text)) > broken * visible:
    return 'broken_characters'
  if len(ALPHABETIC.findall(text)) < letters * visible:
    return 'few_letters'
  if not word_length[0] <= stats(text).word_stats[1] <= word_length[1]:
    return 'word_length'
  return None


def length(doc: Document, *, min_words: int = 50) -> str | None:
  """At least `min_words` words; no upper bound, long PDFs are the best ones."""
  return 'short' if stats(doc.text).word_stats[0] < min_words else None


# Software documentation, by the same rules with looser bounds: it is honest text of another shape.

def docs_repetition(doc: Document) -> str | None:
  """gopher_repetition, up to three times looser: reference pages repeat signatures, headings such
  as "Parameters" and "Returns", and turns such as "Return a copy of the"."""
  return gopher_repetition(doc, lines=.5, line_chars=.4, top=(.30, .28, .26),
                           duplicated=(.40, .38, .36, .34, .32, .30))


def docs_quality(doc: Document) -> str | None:
  """gopher_quality for text with code in it: a function can be documented in thirty words, names
  are long words, changelogs are lists throughout, and half of the tokens of code are punctuation;
  tables of numbers have hardly a letter."""
  return gopher_quality(doc, min_words=30, word_length=(2.5, 12), bullets=1, alphabetic=.4)


def docs_lines(doc: Document) -> str | None:
  """fineweb for lines that are signatures, code and list items: one in thirty must close a sentence
  (a page of names alone has none), and short or repeated lines matter only in bulk."""
  return fineweb(doc, line_punctuation=.03, short_lines=.9, repeated_chars=.3, newlines=.6)


WEB: tuple[Rule, ...] = (gopher_repetition, gopher_quality, c4, fineweb)
# No C4: braces and "javascript" are what this text is about.
DOCS: tuple[Rule, ...] = (docs_repetition, docs_quality, docs_lines)
# No line rules: the lines of a PDF are the printer's.
PDF: tuple[Rule, ...] = (length, garbage, gopher_repetition)

PROFILES: dict[str, tuple[Rule, ...]] = {'fineweb': WEB, 'docs': DOCS, 'pdf': PDF, 'none': ()}
RULES: dict[str, Rule] = {rule.__name__: rule for rule in (*WEB, *DOCS, *PDF)}


def profile(filters: str | Sequence[str]) -> tuple[Rule, ...]:
  """The rules of a profile, or of a sequence of rule names (in that order).

  Raises ValueError for an unknown name, listing the valid ones.
  """
  if isinstance(filters, str):
    if filters in PROFILES:
      return PROFILES[filters]
    filters = filters.split(',')
  unknown = [name for name in filters if name not in RULES]
  if unknown:
    raise ValueError(f'unknown filter {unknown[0]!r}: choose a profile ({", ".join(PROFILES)}) '
                     f'or rules ({", ".join(RULES)})')
  return tuple(RULES[name] for name in filters)


def first_reason(doc: Document, rules: Iterable[Rule]) -> str | None:
  """Runs the rules in order; the first reason to drop the document, or None."""
  return next((reason for rule in rules if (reason := rule(doc))), None)
