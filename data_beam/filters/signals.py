"""What the rules of FineWeb measure of a document, as numbers, and verdicts by them.

Numbers outlast thresholds: a corpus that keeps them is filtered anew without its pages
(data_beam.refine). With the bounds of `BOUNDS` the verdict is that of rules.WEB, reason by reason.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data_beam.filters import rules
from data_beam.filters.ngrams import duplicates, stats
from data_beam.filters.rules import first_reason
from data_beam.records import Document
from data_beam.text import words


class Bound(NamedTuple):
  """What a signal may be.

  Attributes:
    least: the smallest that is kept.
    most: the largest.
    reason: of those that are not.
  """

  least: float
  most: float
  reason: str


def _most(bound: float, reason: str) -> Bound:
  return Bound(-math.inf, bound, reason)


# In the order in which the rules ask. Where a signal has two bounds, the second has another name.
BOUNDS: Mapping[str, Bound] = {
  **{name: _most(share, name) for name, share in (
    ('dup_para_frac', .3), ('dup_para_char_frac', .2), ('dup_line_frac', .3),
    ('dup_line_char_frac', .2))},
  **{f'top_{n}_gram': _most(share, f'top_{n}_gram')
     for n, share in zip((2, 3, 4), (.20, .18, .16), strict=True)},
  **{f'duplicated_{n}_n_grams': _most(share, f'duplicated_{n}_n_grams')
     for n, share in zip(range(5, 11), (.15, .14, .13, .12, .11, .10), strict=True)},
  'words': Bound(50, math.inf, 'gopher_short_doc'),
  'most_words': _most(100_000, 'gopher_long_doc'),
  'word_length': Bound(3, math.inf, 'gopher_below_avg_threshold'),
  'most_word_length': _most(10, 'gopher_above_avg_threshold'),
  'hashes': _most(.1, 'gopher_too_many_hashes'), 'ellipses': _most(.1, 'gopher_too_many_ellipsis'),
  'bullets': _most(.9, 'gopher_too_many_bullets'),
  'end_ellipses': _most(.3, 'gopher_too_many_end_ellipsis'),
  'alphabetic': Bound(.8, math.inf, 'gopher_below_alpha_threshold'),
  'stop_words': Bound(2, math.inf, 'gopher_enough_stop_words'),
  'lorem_ipsum': _most(0, 'lorem_ipsum'), 'curly_bracket': _most(0, 'curly_bracket'),
  'sentences': Bound(5, math.inf, 'too_few_sentences'),
  'line_punctuation': Bound(.12, math.inf, 'line_punct_ratio'),
  'short_lines': _most(.67, 'short_line_ratio'), 'repeated_chars': _most(.01, 'char_dup_ratio'),
  'newlines': _most(.3, 'list_ratio'),
}
SAME = {'most_words': 'words', 'most_word_length': 'word_length'}


def bounds(thresholds: Sequence[str]) -> dict[str, Bound]:
  """Bounds of thresholds such as ('fineweb', 'words=30', 'top_2_gram=none'), in BOUNDS' order.

  Raises ValueError for a name or a number that is none.
  """
  found: dict[str, float | None] = {}
  for entry in thresholds:
    name, equals, value = entry.partition('=')
    if entry == 'fineweb':
      found = {name: bound.most if math.isinf(bound.least) else bound.least
               for name, bound in BOUNDS.items()}
    elif name in BOUNDS and equals and (value == 'none' or _is_number(value)):
      found[name] = None if value == 'none' else float(value)
    else:
      raise ValueError(f'thresholds: {entry!r} is no NAME=NUMBER of one of {", ".join(BOUNDS)}')
  return {name: (bound._replace(most=found[name]) if math.isinf(bound.least)
                 else bound._replace(least=found[name]))
          for name, bound in BOUNDS.items() if found.get(name) is not None}


def _is_number(text: str) -> bool:
  try:
    return not math.isnan(float(text))
  except ValueError:
    return False


def verdict(signals: Mapping[str, float], limits: Mapping[str, Bound]) -> str | None:
  """The reason of the first bound that a signal is beyond, None if there is none."""
  return next((bound.reason for name, bound in limits.items()
               if not bound.least <= signals[SAME.get(name, name)] <= bound.most), None)


def signals(document: Document) -> dict[str, float]:
  """The numbers that rules.WEB decides by: of repetition and words as the text is, of lines as C4
  leaves it. Shares are of what the rules have them of; six digits."""
  text = document.text
  if not text:
    return dict.fromkeys((name for name in BOUNDS if name not in SAME), 0.)
  s = stats(text, document.language)
  tokens, (number, mean) = max(1, len(s.tokens)), s.word_stats
  found: dict[str, float] = {}
  for name, parts in (('para', rules.split_paragraphs(text.strip())),
                      ('line', rules.split_lines(text))):
    repeated, characters = duplicates(parts)
    found[f'dup_{name}_frac'] = repeated / len(parts)
    found[f'dup_{name}_char_frac'] = characters / len(text)
  for n in (2, 3, 4):
    found[f'top_{n}_gram'] = s.ngrams.top(n) / len(text)
  for n in range(5, 11):
    found[f'duplicated_{n}_n_grams'] = s.ngrams.duplicated(n) / len(text)
  lines = text.splitlines()
  found |= {
    'words': number, 'word_length': mean, 'hashes': text.count('#') / tokens,
    'ellipses': (text.count('...') + text.count('…')) / tokens,
    'bullets': rules.bullet_share(lines), 'end_ellipses': rules.ellipsis_share(lines),
    'alphabetic': s.alphabetic / tokens, 'stop_words': rules.stop_words_in(document)}
  tidy = dataclasses.replace(document)
  refused = first_reason(dataclasses.replace(document), (rules.c4,))
  rules.c4(tidy, min_sentences=0, refuse=False)
  found |= {name: float(refused == name) for name in ('lorem_ipsum', 'curly_bracket')}
  found['sentences'] = sum(words.count_sentences(line, tidy.language)
                           for line in tidy.text.splitlines())
  kept = stats(tidy.text, tidy.language)
  count, breaks = max(1, len(kept.lines)), tidy.text.count('\n')
  short = 30 // (1 + (tidy.language in words.UNSPACED_LANGUAGES))
  found |= {
    'line_punctuation': rules.ended_share(kept.lines) if kept.lines else 0.,
    'short_lines': sum(len(line) <= short for line in kept.lines) / count,
    'repeated_chars': duplicates(kept.lines)[1] / max(1, len(tidy.text) - breaks),
    'newlines': breaks / max(1, len(kept.tokens))}
  return {name: round(min(value, 1e9), 6) for name, value in found.items()}
