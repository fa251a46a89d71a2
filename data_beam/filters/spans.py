"""Where in a dropped document the reason shows: the span that a report or `lineage` marks.

A rule decides on statistics of the whole text; here its reason is looked up again, for the few
documents that somebody looks at. The span is the clearest example, not the whole evidence: of
repeated lines the first repetition, of a share of short lines the longest run of them. A stage that
knows better puts `span: [start, end]` into the metadata of its Reject.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

MAX_CHARS = 200_000  # of a text are looked at

Span = tuple[int, int]

_TOKEN = re.compile(r'\w+|[^\w\s]')
_LETTER = re.compile(r'[^\W\d_]')
_PARAGRAPH = re.compile(r'[^\n]+(?:\n[^\n]+)*')
_LINE = re.compile(r'[^\n]*\S[^\n]*')
_ENDS = re.compile(r'''[.!?。！？…:;]["'”’)\]]*\s*$''')


def find(reason: str, text: str, metadata: Mapping[str, Any] | None = None) -> Span | None:
  """(start, end) of what to mark in `text` for a reason, None where the whole document is meant.

  Args:
    reason: of a Reject; unknown ones have no span.
    text: of the document as it was dropped.
    metadata: of the document.
  """
  known = (metadata or {}).get('span')
  if known:
    start, end = known
    return (start, end) if 0 <= start < end <= len(text) else None
  text = text[:MAX_CHARS]
  if quoted := (metadata or {}).get('contaminated'):
    return _quote(quoted[0]['words'], text)
  number = re.search(r'\d+', reason)
  for pattern, locate in _LOCATE:
    if re.fullmatch(pattern, reason):
      return locate(text, int(number.group())) if number else locate(text)
  return None


# --- what a reason looks like --------------------------------------------------------------------


def _quote(words: str, text: str) -> Span | None:
  """Where a text has the words that decontamination found, which normalize.simplify had changed."""
  parts = [re.escape(word).replace('0', r'\d+(?:[.,]\d+)?') for word in words.split()]
  found = re.search(r'[\W_]+'.join(parts), text, re.I)
  return found.span() if found else None


def _matches(pattern: str, flags: int = 0) -> Callable[[str], Span | None]:
  compiled = re.compile(pattern, flags)

  def locate(text: str) -> Span | None:
    found = compiled.search(text)
    return found.span() if found else None

  return locate


def _line_with(pattern: str, flags: int = 0) -> Callable[[str], Span | None]:
  """The first line in which the pattern is found, from its first visible character."""
  locate = _matches(pattern, flags)

  def line(text: str) -> Span | None:
    if found := locate(text):
      start = text.rfind('\n', 0, found[0]) + 1
      end = text.find('\n', found[1])
      whole = text[start:end if end >= 0 else len(text)]
      return start + len(whole) - len(whole.lstrip()), start + len(whole)
    return None

  return line


def _repeated(pattern: re.Pattern) -> Callable[[str], Span | None]:
  """The longest part that occurred before, at its second occurrence."""

  def locate(text: str) -> Span | None:
    seen, best = set(), None
    for part in pattern.finditer(text):
      key = part.group().strip()
      if key in seen and (best is None or len(key) > best[1] - best[0]):
        best = part.span()
      seen.add(key)
    return best

  return locate


def _top_ngram(text: str, n: int) -> Span | None:
  """The first occurrence of the commonest n-gram, with its neighbours if they are the same."""
  grams = list(_ngrams(text, n))
  if not grams:
    return None
  counts = Counter(gram for gram, _ in grams)
  best = max(counts, key=lambda gram: (counts[gram], len(' '.join(gram))))
  return next(span for gram, span in grams if gram == best)


def _repeated_ngram(text: str, n: int) -> Span | None:
  """The longest stretch of n-grams that occurred before."""
  seen, runs = set(), []
  for gram, span in _ngrams(text, n):
    if gram in seen:
      if runs and span[0] < runs[-1][1]:
        runs[-1] = (runs[-1][0], span[1])
      else:
        runs.append(span)
    seen.add(gram)
  return max(runs, key=lambda run: run[1] - run[0], default=None)


def _ngrams(text: str, n: int) -> Iterator[tuple[tuple[str, ...], Span]]:
  tokens = [(token.group(), *token.span()) for token in _TOKEN.finditer(text)]
  for parts in zip(*(tokens[i:] for i in range(n)), strict=False):
    yield tuple(p[0] for p in parts), (parts[0][1], parts[-1][2])


def _longest_run(parts: Iterable[tuple[Span, bool]]) -> Span | None:
  """The longest run of neighbouring parts that are true."""
  runs, inside = [], False
  for (start, end), hit in parts:
    if hit:
      runs.append((runs.pop()[0], end) if inside else (start, end))
    inside = hit
  return max(runs, key=lambda run: run[1] - run[0], default=None)


def _lines(hit: Callable[[str], bool]) -> Callable[[str], Span | None]:
  """The longest run of lines for which `hit` holds."""
  return lambda text: _longest_run(
    (line.span(), hit(line.group().strip())) for line in _LINE.finditer(text))


def _no_letters(text: str) -> Span | None:
  """The longest run of tokens without a letter."""
  return _longest_run((t.span(), not _LETTER.search(t.group())) for t in _TOKEN.finditer(text))


def _longest(pattern: str) -> Callable[[str], Span | None]:
  compiled = re.compile(pattern)
  return lambda text: max((m.span() for m in compiled.finditer(text)),
                          key=lambda span: span[1] - span[0], default=None)


# Patterns of reasons, of filters.py and of other sources. A number in the reason is the n of its
# n-grams.
_LOCATE: list[tuple[str, Callable[..., Span | None]]] = [
  (r'dup_para_.*', _repeated(_PARAGRAPH)),
  (r'dup_line_.*|char_dup_ratio', _repeated(_LINE)),
  (r'top_\d+_gram', _top_ngram),
  (r'duplicated_\d+_n_grams', _repeated_ngram),
  (r'.*too_many_hashes', _matches(r'#+')),
  (r'.*too_many_ellipsis', _matches(r'\.\.\.+|…')),
  (r'.*too_many_bullets', _lines(lambda line: line.startswith(('•', '-')))),
  (r'.*too_many_end_ellipsis', _lines(lambda line: line.endswith(('...', '…')))),
  (r'.*below_alpha_threshold|few_letters', _no_letters),
  (r'.*above_avg_threshold|word_length', _longest(r'\S+')),
  (r'lorem_ipsum', _matches('lorem ipsum', re.I)),
  (r'curly_bracket', _matches(r'\{')),
  (r'line_punct_ratio|no_terminal_punc', _lines(lambda line: not _ENDS.search(line))),
  (r'short_line_ratio|list_ratio', _lines(lambda line: len(line) <= 30)),
  (r'long_lines', _longest(r'[^\n]+')),
  (r'generated', _line_with(r'@generated|do\s+not\s+(?:edit|modify)|generated', re.I)),
  (r'licence_.*', _line_with('SPDX|GPL|GNU|Mozilla|confidential|proprietary', re.I)),
  (r'broken_characters', _matches('[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd\ue000-\uf8ff]+')),
]
