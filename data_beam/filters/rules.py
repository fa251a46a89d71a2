"""Quality rules for documents: URL lists, Gopher, C4, FineWeb and FineWeb-2 (arXiv 2112.11446,
1910.10683, 2406.17557, 2506.20920), and gentler ones for software documentation and PDFs.

A rule is a function `(Document) -> None | reason`; a profile is a tuple of rules, run in order
until one gives a reason. A rule may also tidy `document.text` (C4 drops lines), and those after it
see the new text. What rules need of a text, `Stats`, is computed once and shared: it is found again
by the text itself. Parameters are those of FineWeb (datatrove's examples/fineweb.py) unless a
comment says otherwise, and so are the reasons' names and the order in which they are tried: on the
same text the rules decide as datatrove 0.10.1 does (experiments/benchmarks/parity.py).

FineWeb's bounds are for English. In languages of other scripts (zh, ja, ko, th, ar, hi, ru) those
of FineWeb-2 hold in their place, in every profile, where they speak of words; a bound that is None
is of these two.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_beam.filters.ngrams import duplicates, stats
from data_beam.records import Document
from data_beam.text import words

Rule = Callable[[Document], str | None]

ALPHABETIC = re.compile(r'[^\W\d_]')

# C4's marks of boilerplate lines.
POLICY_LINES = ('terms of use', 'privacy policy', 'cookie policy', 'uses cookies',
                'use of cookies', 'use cookies')
# Left behind by fonts without a Unicode map and by failed decoding.
BROKEN = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]')
CITATION = re.compile(r'\[\d*]|\[edit]|\[citation needed]')


# --- repetition, quality, boilerplate, lines -------------------------------------------------


def gopher_repetition(
  doc: Document, *, paragraphs: float = .3, paragraph_chars: float = .2, lines: float = .3,
  line_chars: float = .2, top: Sequence[float] | None = None,
  duplicated: Sequence[float] | None = None,
) -> str | None:
  """Repeated paragraphs, lines and n-grams, as shares of their number or of the text's characters.

  `top` bounds the most common 2-, 3- and 4-gram, `duplicated` the repeated 5- to 10-grams. A bound
  of 0 on paragraphs or lines switches that rule off.
  """
  text = doc.text
  if not text:
    return 'empty'
  for name, parts, max_share, max_chars in (
    ('para', split_paragraphs(text.strip()), paragraphs, paragraph_chars),
    ('line', split_lines(text), lines, line_chars),
  ):
    number, characters = duplicates(parts)
    if max_share and number / len(parts) > max_share:
      return f'dup_{name}_frac'
    if max_chars and characters / len(text) > max_chars:
      return f'dup_{name}_char_frac'
  top = top or _bound(doc, 'top', (.20, .18, .16))
  duplicated = duplicated or _bound(doc, 'duplicated', (.15, .14, .13, .12, .11, .10))
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


def split_paragraphs(text: str) -> list[str]:
  """What empty lines part."""
  return re.split(r'\n{2,}', text) if '\n\n\n' in text else text.split('\n\n')


def split_lines(text: str) -> list[str]:
  """What line ends part."""
  if '\n\n' not in text:
    return text.split('\n')
  lines = [line for line in text.split('\n') if line]
  return [''] * text.startswith('\n') + lines + [''] * text.endswith('\n')


# Gopher's eight English words; the most common words of the other languages, from FineWeb-2.
STOP_WORDS: Mapping[str, frozenset[str]] = {k: frozenset(line.split()) for k, line in {
  'en': 'the be to of and that have with',
  'fr': "de la le et à en l' des du les est d' un une il dans par au",
  'de': 'der und die in von im den des mit das er dem als wurde für',
  'es': 'de la en el y a que del los se por un con una las su',
  'it': "di e il la in a del che è della un per nel l' con da i una",
  'pt': 'de a e o em do da que um no uma com para na é foi',
  'zh': '的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由',
  'ja': 'の に を は た て が と で 年 し ・ 月 れ さ',
  'ko': '의 다 이 는 에 을 한 년 하 은 를 했 고 에서 가 있 으로 인 월 로 되',
  'th': 'ใน ที่ และ ของ เป็น มี การ ได้',
  'ar': '، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد',
  'hi': 'के में है की और से का को एक हैं पर',
  'ru': 'в и на с года по году из был к не от что за для его как а он также до после'}.items()}


def gopher_quality(
  doc: Document, *, min_words: int = 50, max_words: float = 100_000,
  word_length: tuple[float, float] | None = None, symbols: float = .1, bullets: float = .9,
  ellipses: float = .3, alphabetic: float | None = None, stop_words: int = 2,
) -> str | None:
  """Number and length of words, shares of symbols, bullets, ellipses and words with letters.

  `stop_words` different ones of the document's language must occur (English if the language is
  unknown; a language without a list has no such rule). Of languages whose words are not parted by
  blanks they are looked for anywhere.
  """
  word_length = word_length or _bound(doc, 'word_length', (3, 10))
  alphabetic = _bound(doc, 'alphabetic', .8) if alphabetic is None else alphabetic
  text, s = doc.text, stats(doc.text, doc.language)
  tokens, (number, mean) = len(s.tokens), s.word_stats
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
  # As many of its lines at most begin and end with one as a text has of them: few need a look.
  least = max(1, text.count('\n'))    # there are more lines, or as many
  if (text.count('•') + text.count('-') >= bullets * least
      and bullet_share(text.splitlines()) > bullets):
    return 'gopher_too_many_bullets'
  if ellipsis >= max(1, ellipses * least) and ellipsis_share(text.splitlines()) > ellipses:
    return 'gopher_too_many_end_ellipsis'
  # Of all tokens, punctuation too: the rule that drops most.
  if s.alphabetic / tokens < alphabetic:
    return 'gopher_below_alpha_threshold'
  if stop_words_in(doc, stop_words) < stop_words:
    return 'gopher_enough_stop_words'
  return None


def bullet_share(lines: Sequence[str]) -> float:
  """Share of the lines that begin with a bullet."""
  return sum(line.lstrip().startswith(('•', '-')) for line in lines) / len(lines)


def ellipsis_share(lines: Sequence[str]) -> float:
  """Share of the lines that end with an ellipsis."""
  return sum(line.rstrip().endswith(('...', '…')) for line in lines) / len(lines)


def stop_words_in(doc: Document, enough: float = math.inf) -> float:
  """How many different stop words of its language a document has, `enough` at most, infinitely many
  where none are known."""
  known = STOP_WORDS.get(doc.language or 'en')
  if not known:
    return math.inf
  if doc.language in _PARTS:
    return sum(word in doc.text for word in known)
  return stats(doc.text, doc.language).distinct(known, enough)


def c4(doc: Document, *, min_sentences: int = 5, refuse: bool = True) -> str | None:
  """Drops boilerplate lines and citation marks from the text, and documents that are code, filler
  or too short after it. C4's rule that lines end in punctuation is off, as in FineWeb. Without
  `refuse` code and filler pass.
  """
  whole = doc.text.lower()
  filler, braces, citations = 'lorem ipsum' in whole, '{' in whole, '[' in whole
  marks = [mark for mark in ('javascript', *POLICY_LINES) if mark in whole]
  spaced, kept = doc.language not in words.UNSPACED_LANGUAGES, []
  for line in doc.text.splitlines():
    line = line.strip()
    if spaced and len(line) > 1000 and max(map(len, line.split())) > 1000:
      continue
    tidy = CITATION.sub('', line) if citations and '[' in line else line
    if len(line.split(maxsplit=2)) < 3 and (spaced or len(line) < 6):
      continue
    if filler or braces or marks:
      lower = tidy.lower()
      if refuse and 'lorem ipsum' in lower:
        return 'lorem_ipsum'
      if 'javascript' in lower:
        continue
      if refuse and '{' in tidy:
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
  doc: Document, *, line_punctuation: float | None = None, short_line: int = 30,
  short_lines: float = .67, repeated_chars: float = .01, newlines: float | None = None,
) -> str | None:
  """FineWeb's own rules: lists, menus and repeated lines; a line without blanks is half as long."""
  line_punctuation = (_bound(doc, 'line_punctuation', .12) if line_punctuation is None
                      else line_punctuation)
  newlines = _bound(doc, 'newlines', .3) if newlines is None else newlines
  short_line //= 1 + (doc.language in words.UNSPACED_LANGUAGES)
  text = doc.text
  lines = stats(text, doc.language).lines
  if not lines:
    return 'empty'
  if ended_share(lines) < line_punctuation:
    return 'line_punct_ratio'
  if sum(len(line) <= short_line for line in lines) / len(lines) > short_lines:
    return 'short_line_ratio'
  breaks = text.count('\n')
  if duplicates(lines)[1] / (len(text) - breaks) > repeated_chars:
    return 'char_dup_ratio'
  # There are at least as many tokens as strings between spaces: most documents need no tokens here,
  # nor all of the strings.
  if breaks / len(text.split(maxsplit=int(breaks / newlines) + 1)) > newlines and (
      breaks / len(stats(text, doc.language).tokens) > newlines):
    return 'list_ratio'
  return None


def ended_share(lines: Sequence[str]) -> float:
  """Share of the lines, none of them empty, that end with a terminal sign."""
  return sum([line[-1] in words.TERMINAL for line in lines]) / len(lines)


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
  'zh': dict(language=.692, line_punctuation=.106, newlines=.178, lines=.287, word_length=(1, 5),
             alphabetic=.735, top=(.256, .201, .171),
             duplicated=(.198, .182, .167, .154, .140, .127)),
  'ja': dict(language=.886, line_punctuation=.096, newlines=.130, lines=.328, word_length=(1, 6),
             alphabetic=.759, top=(.239, .196, .172),
             duplicated=(.243, .225, .207, .190, .175, .159)),
  'ko': dict(language=.842, line_punctuation=.062, newlines=.196, lines=.374, word_length=(1, 6),
             alphabetic=.791, top=(.282, .228, .185),
             duplicated=(.201, .184, .168, .154, .140, .127)),
  'th': dict(language=.900, line_punctuation=.000, newlines=.153, lines=.349, word_length=(2, 10),
             alphabetic=.900, top=(.221, .197, .162),
             duplicated=(.185, .168, .152, .137, .124, .111)),
  'ar': dict(language=.711, line_punctuation=.143, newlines=.189, lines=.304, word_length=(2, 9),
             alphabetic=.787, top=(.197, .172, .146),
             duplicated=(.165, .153, .142, .131, .120, .109)),
  'hi': dict(language=.692, line_punctuation=.091, newlines=.316, lines=.206, word_length=(2, 21),
             alphabetic=.837, top=(.208, .198, .161),
             duplicated=(.135, .125, .116, .108, .099, .090)),
  'ru': dict(language=.900, line_punctuation=.231, newlines=.139, lines=.322, word_length=(3, 11),
             alphabetic=.713, top=(.184, .164, .146),
             duplicated=(.168, .156, .145, .133, .121, .109)),
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


def _bound(doc: Document, name: str, default: Any) -> Any:
  """FineWeb's bound, or FineWeb-2's for a language of another script."""
  return FINEWEB2_TABLES[doc.language][name] if doc.language in _OTHER_SCRIPTS else default


_OTHER_SCRIPTS = frozenset(('zh', 'ja', 'ko', 'th', 'ar', 'hi', 'ru'))
_PARTS = frozenset(('zh', 'ja', 'ko', 'th'))    # whose stop words are parts of what blanks part


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
