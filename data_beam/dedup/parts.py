"""Lines, paragraphs and long runs of words that stand in several places: one copy stays.

Which one, is the same for any order and sharding: that of the best document by `exact.rank`, there
the first. FineWeb found that cutting lines makes its corpus worse (arXiv 2406.17557), so that all
of this is off unless it is asked for. What repeats, `repeats` tells.

Runs of words are exact: a word is cut if it stands in a run of `words` words that stands elsewhere
before. All runs would be as many keys as there are words; winnowing (Schleimer et al. 2003) leaves
two in `words`/2: of every run of that length one gram of half of it is chosen by its hash alone, so
that equal runs choose the same, and only runs whose gram repeats are compared: each by the hashes
of its two halves, 128 bits.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np

from data_beam.dedup.components import KEY
from data_beam.dedup.exact import content_key, rank, record_key, with_metadata
from data_beam.dedup.minhash import ngram_hashes, word_hashes
from data_beam.dedup.repeats import Keyed, Repeats
from data_beam.records import Document, Reject
from data_beam.text.words import UNSPACED

PARTS = {'lines': 'lines of ten words and more', 'paragraphs': 'such paragraphs',
         'substrings': 'runs of substring_words words'}
LEAST = 10          # words of a line or paragraph that is compared
LITTLE = 50         # words that must be left of a document from which something was cut
PART_BYTES = 1 << 26     # of input a part: ten million words
_NAMES = {'lines': 'line_dedup', 'paragraphs': 'paragraph_dedup', 'substrings': 'substring_dedup'}
_SPANS = {'lines': re.compile(r'[^\n]+\n?'), 'paragraphs': re.compile(r'(?:[^\n]+\n?)+\n*')}
_OWNER = struct.Struct('>dI16s')
_WORD = re.compile(f'{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\\S)+')

Span = tuple[int, int]


def parts_dedup(options: Any, size: int = 0) -> list[tuple[str, beam.PTransform]]:
  """The stages that options ask for by `dedup_parts` and `substring_words`; the input has about
  `size` bytes."""
  parts = max(options.num_shards, size // PART_BYTES)
  make = lambda kind: (Substrings(options.substring_words, parts) if kind == 'substrings' else
                       Parts(kind, parts))
  return [(_NAMES[kind], make(kind)) for kind in PARTS if kind in options.dedup_parts]


def owner(document: Document) -> bytes:
  """28 bytes that sort as documents do by `rank`: what survives is the smallest."""
  quality, length, *_ = rank(document)
  return _OWNER.pack(quality, (1 << 32) - 1 + length, record_key(document))


def words_of(text: str) -> list[str]:
  """Words: what is between white space, but each letter of a script without blanks."""
  return _WORD.findall(text) if UNSPACED.search(text) else text.split()


# --- lines and paragraphs ------------------------------------------------------------------------


class Parts(beam.PTransform):
  """PCollection[Document] → (kept, rejects): repeated lines or paragraphs of LEAST words are cut.

  Equal are those that differ in case and white space only. `metadata['cut']` counts the words that
  are gone; a document of which fewer than LITTLE are left is a Reject, little_left.
  """

  def __init__(self, kind: str, parts: int = 8):
    """Sets up the stage: `kind` is lines or paragraphs; `parts` of Repeats."""
    super().__init__()
    self.kind, self.parts = kind, parts

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    again = (documents | 'parts' >> beam.Map(_part_keys, self.kind)
             | Repeats(self.parts, later=True))
    return _cut(documents, again, _part_spans, self.kind, _NAMES[self.kind])


def _part_keys(document: Document, kind: str) -> Keyed:
  found = [(number, content_key(part[0]))
           for number, part in enumerate(_SPANS[kind].finditer(document.text))
           if len(words_of(part[0])) >= LEAST]
  numbers, keys = zip(*found, strict=True) if found else ((), ())
  return Keyed(owner(document), np.array(numbers, np.uint32), np.array(keys, KEY))


def _part_spans(text: str, numbers: np.ndarray, kind: str) -> list[Span]:
  spans = [found.span() for found in _SPANS[kind].finditer(text)]
  return [spans[number] for number in numbers.tolist()]


# --- runs of words -------------------------------------------------------------------------------


class Substrings(beam.PTransform):
  """PCollection[Document] → (kept, rejects): runs of `words` words that stand elsewhere before are
  cut, word for word; as Parts otherwise. An ideograph, a letter of Thai counts for a word."""

  def __init__(self, words: int = 50, parts: int = 8):
    """Sets up the stage: `parts` of Repeats."""
    super().__init__()
    self.words, self.parts = words, parts

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    grams = documents | 'grams' >> beam.Map(_gram_keys, self.words) | Repeats(self.parts)
    runs = (_with_numbers(documents, grams, 'candidates')
            | 'runs' >> beam.Map(_run_keys, self.words)
            | 'runs again' >> Repeats(self.parts, later=True))
    return _cut(documents, runs, _run_spans, self.words, _NAMES['substrings'])


def chosen(hashes: np.ndarray, window: int) -> np.ndarray:
  """The place of the smallest in each window of so many hashes, of equal ones the last: int64
  [hashes - window + 1]."""
  if len(hashes) < window:
    return np.zeros(0, np.int64)
  views = np.lib.stride_tricks.sliding_window_view(hashes, window)[:, ::-1]
  return np.arange(len(views)) + window - 1 - views.argmin(axis=1)


def _gram_keys(document: Document, words: int) -> Keyed:
  """The grams of half a run that some run has chosen."""
  size = words // 2
  hashes = ngram_hashes(word_hashes(words_of(document.text)), size)
  found = np.unique(chosen(hashes, words - size + 1))
  return Keyed(owner(document), found.astype(np.uint32), _keys(hashes[found], hashes[found]))


def _run_keys(element: tuple[Document, np.ndarray], words: int) -> Keyed:
  """The runs whose gram is among those that repeat."""
  document, repeated = element
  size = words // 2
  if not len(repeated):
    return Keyed(owner(document), repeated, np.zeros(0, KEY))
  hashes = word_hashes(words_of(document.text))
  left = ngram_hashes(hashes, size)
  right = left if words == 2 * size else ngram_hashes(hashes, words - size)
  starts = np.flatnonzero(np.isin(chosen(left, words - size + 1), repeated))
  return Keyed(owner(document), starts.astype(np.uint32), _keys(left[starts], right[starts + size]))


def _keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  return np.stack([first, second], 1).view(KEY).ravel()


def _run_spans(text: str, starts: np.ndarray, words: int) -> list[Span]:
  spans = [found.span() for found in _WORD.finditer(text)]
  spans.append((len(text), len(text)))
  found: list[Span] = []
  for start in starts.tolist():
    a, b = spans[start][0], spans[min(start + words, len(spans) - 1)][0]
    if found and a <= found[-1][1]:
      found[-1] = found[-1][0], max(b, found[-1][1])
    else:
      found.append((a, b))
  return found


# --- cutting -------------------------------------------------------------------------------------


def _with_numbers(documents: Any, places: Any, name: str) -> Any:
  """PCollection[(document, its numbers, rising)], of documents and (owner, numbers)."""
  keyed = documents | f'key {name}' >> beam.Map(lambda document: (owner(document), document))
  return ((keyed, places) | f'join {name}' >> beam.CoGroupByKey()
          | f'numbers {name}' >> beam.FlatMap(_numbers))


def _numbers(group: Any) -> Iterator[tuple[Document, np.ndarray]]:
  _, (documents, places) = group
  numbers = np.unique(np.concatenate([np.zeros(0, np.uint32), *places]))
  for document in documents:
    yield document, numbers


def _cut(documents: Any, places: Any, spans: Any, argument: Any, stage: str) -> Any:
  split = (_with_numbers(documents, places, 'cuts')
           | 'cut' >> beam.FlatMap(_without, spans, argument, stage).with_outputs(
             'rejects', main='kept'))
  return split.kept, split.rejects


def _without(element: tuple[Document, np.ndarray], spans: Any, argument: Any, stage: str):
  document, numbers = element
  if not len(numbers):
    yield document
    return
  text, parts, end = document.text, [], 0
  for a, b in spans(text, numbers, argument):
    parts.append(text[end:a])
    end = b
  left = ''.join([*parts, text[end:]]).strip()
  words = len(words_of(left))
  counts = {**document.metadata.get('cut', {}), stage: len(words_of(text)) - words}
  document = with_metadata(document, cut=counts)
  if words < LITTLE:
    yield beam.pvalue.TaggedOutput('rejects', Reject(document, stage, 'little_left'))
    return
  document.text = left
  document.metadata.pop('page_offsets', None)     # they no longer hold
  yield document
