"""Quality rules for documents: URL lists, Gopher, C4, FineWeb and FineWeb-2 (arXiv 2112.11446,
1910.10683, 2406.17557, 2506.20920), and gentler ones for software documentation and PDFs.

A rule is a function `(Document) -> None | reason`; a profile is a tuple of rules, run in order
until one gives a reason. A rule may also tidy `document.text` (C4 drops lines), and those after it
see the new text. What rules need of a text, `Stats`, is computed once and shared: it is found again
by the text itself. Parameters are those of FineWeb (datatrove's examples/fineweb.py) unless a
comment says otherwise, and so are the reasons' names and the order in which they are tried: on the
same text the rules decide as datatrove 0.10.1 does (experiments/benchmarks/parity.py).
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from data_beam.filters.ngrams import duplicates, stats
from data_beam.records import Document
from data_beam.text import words

Rule = Callable[[Document], str | None]

ALPHABETIC = re.compile(r'[^\W\d_]')
TERMINAL = tuple(sorted(words.TERMINAL))

# C4's marks of boilerplate lines.
POLICY_LINES = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies',
                'use of cookies', 'use cookies')
# Left behind by fonts without a Unicode map and by failed decoding.
BROKEN = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]')
CITATION = re.compile(r'\[\d*]|\[edit]|\[citation needed]')


# --- repetition, quality, boilerplate, lines -------------------------------------------------


def gopher_repetition(
  doc: Document, *, paragraphs: float = .3, paragraph_chars: float = .2, lines: float = .3,
  line_chars: float = .2, top: Sequence[float] = (.20, .18, .16),
  duplicated: Sequence[float] = (.15, .14, .13, .12, .11, .10),
) -> str | None:
  """Repeated paragraphs, lines and n-grams, as shares of their number or of the text's characters.

  `top` bounds the most common 2-, 3- and 4-gram, `duplicated` the repeated 5- to 10-grams. A bound
  of 0 on paragraphs or lines switches that rule off.
  """
  text = doc.text
  if not text:
    return 'empty'
  for name, parts, max_share, max_chars in (
    ('para', _split_paragraphs(text.strip()), paragraphs, paragraph_chars),
    ('line', _split_lines(text), lines, line_chars),
  ):
    number, characters = duplicates(parts)
    if max_share and number / len(parts) > max_share:
      return f'dup_{name}_frac'
    if max_chars and characters / len(text) > max_chars:
      return f'dup_{name}_char_frac'
  ngrams = stats(text, doc.language).ngrams
  for n, share in enumerate(top, start=2):
    if ngrams.top_exceeds(n, share * len(text)):
      return f'top_{n}_gram'
  # Nearly all documents end here: too little is covered for any n to be above its bound.
  if not ngrams.covers(5, min(duplicated) * len(text)):
    return None
  for n, share in enumerate(duplicated, start=5):
    if ngrams.duplicated(n) / len(text) > share:
      return f'duplicated_{n}_n_grams'
  return None


def _split_paragraphs(text: str) -> list[str]:
  return re.split(r'\n{2,}', text) if '\n\n' in text else [text]


def _split_lines(text: str) -> list[str]:
  return re.split(r'\n+', text) if '\n\n' in text else text.split('\n')


# Gopher's eight English words; the most common words of the other languages, from FineWeb-2.
STOP_WORDS: Mapping[str, frozenset[str]] = {k: frozenset(line.split()) for k, line in {
  'en': 'the be to of and that have with',
  'fr': "de la le et à en l' des du les est d' un une il dans par au",
  'de': 'der und die in von im den des mit das er dem als wurde für',
  'es': 'de la en el y a que del los se por un con una las su',
  'it': "di e il la in a del che è della un per nel l' con da i una",
  'pt': 'de a e o em do da que um no uma com para na é foi'}.items()}


def gopher_quality(
  doc: Document, *, min_words: int = 50, max_words: float = 100_000,
  word_length: tuple[float, float] = (3, 10), symbols: float = .1, bullets: float = .9,
  ellipses: float = .3, alphabetic: float = .8, stop_words: int = 2,
) -> str | None:
  """Number and length of words, shares of symbols, bullets, ellipses and words with letters.

  `stop_words` different ones of the document's language must occur (English if the language is
  unknown; a language without a list has no such rule).
  """
  text, s = doc.text, stats(doc.text, doc.language)
  tokens, (number, mean) = len(s.numbers), s.word_stats
  if number < min_words:
    return 'gopher_short_doc'
  if number > max_words:
    return 'gopher_long_doc'
  if mean < word_length[0]:
    return 'gopher_below_avg_threshold'
  if mean > word_length[1]:
    return 'gopher_above_avg_threshold'
  if text.count('#') / tokens > symbols:
    return 'gopher_too_many_hashes'
  ellipsis = text.count('...') + text.count('…')
  if ellipsis / tokens > symbols:
    return 'gopher_too_many_ellipsis'
  lines = text.splitlines()
  if sum(line.lstrip().startswith(('•', '-')) for line in lines) / len(lines) > bullets:
    return 'gopher_too_many_bullets'
  if ellipsis and (
      sum(line.rstrip().endswith(('...', '…')) for line in lines) / len(lines) > ellipses):
    return 'gopher_too_many_end_ellipsis'
  # Of all tokens, punctuation too: the rule that drops most.
  if s.alphabetic / tokens < alphabetic:
    return 'gopher_below_alpha_threshold'
  known = STOP_WORDS.get(doc.language or 'en')
  if known and s.distinct(known) < stop_words:
    return 'gopher_enough_stop_words'
  return None


def c4(doc: Document, *, min_sentences: int = 5) -> str | None:
  """Drops boilerplate lines and citation marks from the text, and documents that are code, filler
  or too short after it. C4's rule that lines end in punctuation is off, as in FineWeb.
  """
  whole = doc.text.lower()
  filler, braces, citations = 'lorem ipsum' in whole, '{' in whole, '[' in whole
  marks = [mark for mark in ('javascript', *POLICY_LINES) if mark in whole]
  kept = []
  for line in doc.text.splitlines():
    line = line.strip()
    if len(line) > 1000 and any(len(word) > 1000 for word in line.split()):
      continue
    tidy = CITATION.sub('', line) if citations and '[' in line else line
    if len(line.split(maxsplit=2)) < 3:
      continue
    if filler or braces or marks:
      lower = tidy.lower()
      if 'lorem ipsum' in lower:
        return 'lorem_ipsum'
      if 'javascript' in lower:
        continue
      if '{' in tidy:
        return 'curly_bracket'
      if any(mark in lower for mark in marks):
        continue
    kept.append(tidy)
  # A line has at least one sentence: most documents need no look at them.
  if len(kept) < min_sentences:
    sentences = sum(words.count_sentences(line, doc.language, min_sentences) for line in kept)
    if sentences < min_sentences:
      return 'too_few_sentences'
  doc.text = '\n'.join(kept).strip()
  return None


def fineweb(
  doc: Document, *, line_punctuation: float = .12, short_line: int = 30, short_lines: float = .67,
  repeated_chars: float = .01, newlines: float = .3,
) -> str | None:
  """FineWeb's own rules: lists, menus and repeated lines."""
  text = doc.text
  lines = stats(text, doc.language).lines
  if not lines:
    return 'empty'
  if sum(line.endswith(TERMINAL) for line in lines) / len(lines) < line_punctuation:
    return 'line_punct_ratio'
  if sum(len(line) <= short_line for line in lines) / len(lines) > short_lines:
    return 'short_line_ratio'
  breaks = text.count('\n')
  if duplicates(lines)[1] / (len(text) - breaks) > repeated_chars:
    return 'char_dup_ratio'
  # There are at least as many tokens as strings between spaces: most documents need no tokens here.
  if breaks / len(text.split()) > newlines and (
      breaks / len(stats(text, doc.language).numbers) > newlines):
    return 'list_ratio'
  return None


# --- FineWeb-2 -------------------------------------------------------------------------------

# Bounds by language: huggingface/fineweb-2, configs/*_Latn.yml at d0defb2. `language` is a score of
# GlotLID's, not of our detector's (language.LANGUAGE_THRESHOLDS).
FINEWEB2_TABLES: Mapping[str, Mapping] = {
  'fr': dict(language=.824, line_punctuation=.100, newlines=.185, lines=.264, word_length=(2, 11),
             alphabetic=.812, top=(.161, .149, .134),
             duplicated=(.150, .141, .131, .121, .111, .100)),
  'de': dict(language=.821, line_punctuation=.000, newlines=.152, lines=.263, word_length=(0, 15),
             alphabetic=.774, top=(.169, .153, .137),
             duplicated=(.141, .134, .126, .117, .108, .098)),
  'es': dict(language=.840, line_punctuation=.182, newlines=.138, lines=.252, word_length=(3, 14),
             alphabetic=.825, top=(.156, .140, .125),
             duplicated=(.145, .136, .127, .117, .108, .099)),
  'it': dict(language=.817, line_punctuation=.025, newlines=.200, lines=.246, word_length=(3, 21),
             alphabetic=.807, top=(.198, .156, .133),
             duplicated=(.144, .136, .127, .118, .109, .100)),
  'pt': dict(language=.799, line_punctuation=.077, newlines=.186, lines=.287, word_length=(3, 13),
             alphabetic=.814, top=(.371, .191, .163),
             duplicated=(.163, .153, .141, .130, .119, .108)),
}


def fineweb2(doc: Document) -> str | None:
  """FineWeb-2: repetition, lines, then quality, with bounds by language, and no C4. English, which
  FineWeb-2 leaves to FineWeb, goes through FineWeb's rules; other languages have no bounds."""
  if doc.language in ('', 'en'):
    return first_reason(doc, WEB)
  table = FINEWEB2_TABLES.get(doc.language)
  if table is None:
    return 'no_filter_table'
  return (
    gopher_repetition(doc, paragraphs=0, paragraph_chars=0, line_chars=0, lines=table['lines'],
                      top=table['top'], duplicated=table['duplicated'])
    or fineweb(doc, line_punctuation=table['line_punctuation'], short_lines=999,
               repeated_chars=.1, newlines=table['newlines'])
    or gopher_quality(doc, word_length=table['word_length'], alphabetic=table['alphabetic']))


# --- other kinds of text ---------------------------------------------------------------------


def garbage(
  doc: Document, *, broken: float = .01, letters: float = .5,
  word_length: tuple[float, float] = (2, 15),
) -> str | None:
  """Text that is none: undecodable characters, more symbols than letters, letters without words.

  `broken` bounds the share of U+FFFD, private-use and control characters, which a font without a
  Unicode map leaves behind; `letters` is the least share of letters among all visible characters
  but the marks of Markdown's tables.
  """
  text = doc.text
  marks = text.count('|') + 3 * text.count('| ---')
  visible = len(text) - sum(map(len, re.findall(r'\s+', text))) - marks
  if not visible:
    return 'empty'
  if len(BROKEN.findall(text)) > broken * visible:
    return 'broken_characters'
  found = len(ALPHABETIC.findall(text))
  if found < letters * visible:
    return 'few_letters'
  if len(words.UNSPACED.findall(text)) < .3 * found:
    mean = stats(text, doc.language).word_stats[1]
    if not word_length[0] <= mean <= word_length[1]:
      return 'word_length'
  return None


def length(doc: Document, *, min_words: int = 50) -> str | None:
  """At least `min_words` words; no upper bound, long PDFs are the best ones."""
  return 'short' if stats(doc.text, doc.language).word_stats[0] < min_words else None


def legible(doc: Document, *, min_letters: int = 170, min_different: int = 15) -> str | None:
  """Text that somebody can read. FinePDFs has no rules of quality beyond language and duplicates:
  tables of numbers, forms and rules of law, which repeat themselves, are good documents. What fonts
  without a map or a lost OCR leave is none, nor are a few labels or one phrase over and over:
  `min_letters` are two or three sentences (FinePDFs: 50 bytes of letters on a page), of
  `min_different` words where spaces part them.
  """
  text = doc.text
  if len(ALPHABETIC.findall(text)) < min_letters:
    return 'short'
  if reason := garbage(doc, broken=.05, letters=.3, word_length=(2, 20)):
    return reason
  few = stats(text, doc.language).different < min_different
  return 'few_words' if few and not words.UNSPACED.search(text) else None


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
FINEWEB2: tuple[Rule, ...] = (fineweb2,)
# No C4: braces and "javascript" are what this text is about.
DOCS: tuple[Rule, ...] = (docs_repetition, docs_quality, docs_lines)
# As lenient as FinePDFs; `length,garbage,gopher_repetition` are stricter. No line rules in either:
# the lines of a PDF are the printer's.
PDF: tuple[Rule, ...] = (legible,)

PROFILES: dict[str, tuple[Rule, ...]] = {
  'fineweb': WEB, 'fineweb2': FINEWEB2, 'docs': DOCS, 'pdf': PDF, 'none': ()}
RULES: dict[str, Rule] = {rule.__name__: rule for rule in (
  *WEB, *FINEWEB2, *DOCS, *PDF, length, garbage)}


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
