"""Lines, paragraphs and long runs of words that stand in several places: one copy stays.

Which one, is the same for any order and sharding: that of the best document by `exact.rank`, there
the first. FineWeb found that cutting lines makes its corpus worse (arXiv 2406.17557), so that all
of this is off unless it is asked for. Nothing here holds all that is equal in one place: of each
text only its first place travels, and places look it up in SALTS shares.

Runs of words are exact: a word is cut if it stands in a run of `words` words that stands elsewhere
before. All runs would be as many keys as there are words; winnowing (Schleimer et al. 2003) leaves
two in `words`/2: of every run of that length one gram of half of it is chosen by its hash alone, so
that equal runs choose the same, and only where a chosen gram repeats are whole runs compared.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import xxhash

from data_beam.dedup.exact import content_key, rank, record_key, with_metadata
from data_beam.dedup.minhash import ngram_hashes, word_hashes
from data_beam.records import Document, Reject
from data_beam.text.words import UNSPACED

PARTS = {'lines': 'lines of ten words and more', 'paragraphs': 'such paragraphs',
         'substrings': 'runs of substring_words words'}
LEAST = 10          # words of a line or paragraph that is compared
LITTLE = 50         # words that must be left of a document from which something was cut
SALTS = 16
_NAMES = {'lines': 'line_dedup', 'paragraphs': 'paragraph_dedup', 'substrings': 'substring_dedup'}
_SPANS = {'lines': re.compile(r'[^\n]+\n?'), 'paragraphs': re.compile(r'(?:[^\n]+\n?)+\n*')}
_PLACE = struct.Struct('>dI16sI')       # see place
_WORD = re.compile(f'{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern})\\S)+')

Span = tuple[int, int]


def parts_dedup(options: Any) -> list[tuple[str, beam.PTransform]]:
  """The stages that options ask for by `dedup_parts` and `substring_words`."""
  make = lambda kind: (
    Substrings(options.substring_words) if kind == 'substrings' else Parts(kind))
  return [(_NAMES[kind], make(kind)) for kind in PARTS if kind in options.dedup_parts]


def place(document: Document, number: int) -> bytes:
  """32 bytes that sort as documents do by `rank`, then by number: what survives is the smallest."""
  quality, length, *_ = rank(document)
  return _PLACE.pack(quality, (1 << 32) - 1 + length, record_key(document), number)


def _owner(document: Document) -> bytes:
  return place(document, 0)[:-4]


# --- what repeats --------------------------------------------------------------------------------


class _First(beam.CombineFn):
  """Places → (the smallest, whether there are several)."""

  def create_accumulator(self):
    return b'', False

  def add_input(self, found, new):
    return (min(found[0], new), True) if found[0] else (new, False)

  def merge_accumulators(self, several):
    several = [found for found in several if found[0]]
    return min((found[0] for found in several), default=b''), (
      len(several) > 1 or any(found[1] for found in several))

  def extract_output(self, found):
    return found


class Repeats(beam.PTransform):
  """PCollection[(key, place)] → PCollection[(owner, (number, whether it is the first))], of the
  places whose key is in another place too."""

  def expand(self, places: Any) -> Any:
    """The places that repeat."""
    first = (places | 'first' >> beam.CombinePerKey(_First())
             | 'repeated' >> beam.FlatMap(_for_salts))
    here = places | 'salt' >> beam.Map(lambda at: ((at[0], at[1][12] % SALTS), at[1]))
    return (first, here) | beam.CoGroupByKey() | 'compare' >> beam.FlatMap(_compare)


def _for_salts(found: tuple[bytes, tuple[bytes, bool]]) -> Iterator[Any]:
  key, (first, several) = found
  if several:
    for salt in range(SALTS):
      yield (key, salt), first


def _compare(group: tuple[Any, tuple[Iterable[bytes], Iterable[bytes]]]) -> Iterator[Any]:
  _, (first, places) = group
  for known in first:
    for at in places:
      yield at[:-4], (int.from_bytes(at[-4:], 'big'), at == known)


# --- lines and paragraphs ------------------------------------------------------------------------


class Parts(beam.PTransform):
  """PCollection[Document] → (kept, rejects): repeated lines or paragraphs of LEAST words are cut.

  Equal are those that differ in case and white space only. `metadata['cut']` counts the words that
  are gone; a document of which fewer than LITTLE are left is a Reject, little_left.
  """

  def __init__(self, kind: str):
    super().__init__()
    self.kind = kind

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    again = (documents | 'parts' >> beam.FlatMap(_part_places, self.kind) | Repeats()
             | 'later' >> beam.Filter(lambda at: not at[1][1]))
    return _cut(documents, again, _part_spans, self.kind, _NAMES[self.kind])


def _part_places(document: Document, kind: str) -> Iterator[tuple[bytes, bytes]]:
  for number, found in enumerate(_SPANS[kind].finditer(document.text)):
    if len(_WORD.findall(found[0])) >= LEAST:
      yield content_key(found[0]), place(document, number)


def _part_spans(text: str, numbers: Sequence[int], kind: str) -> list[Span]:
  spans = [found.span() for found in _SPANS[kind].finditer(text)]
  return [spans[number] for number in numbers]


# --- runs of words -------------------------------------------------------------------------------


class Substrings(beam.PTransform):
  """PCollection[Document] → (kept, rejects): runs of `words` words that stand elsewhere before are
  cut, word for word; as Parts otherwise. An ideograph, a letter of Thai counts for a word."""

  def __init__(self, words: int = 50):
    super().__init__()
    self.words = words

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    candidates = (documents | 'grams' >> beam.FlatMap(_gram_places, self.words)
                  | 'grams again' >> Repeats())
    runs = (_with_numbers(documents, candidates, 'candidates')
            | 'runs' >> beam.FlatMap(_run_places, self.words) | 'runs again' >> Repeats()
            | 'later' >> beam.Filter(lambda at: not at[1][1]))
    return _cut(documents, runs, _run_spans, self.words, _NAMES['substrings'])


def _grams(text: str, words: int) -> tuple[list[Span], np.ndarray, int]:
  """The words of a text, hashes of its grams of half a run, and their length."""
  spans = [found.span() for found in _WORD.finditer(text)]
  size = words // 2
  return spans, ngram_hashes(word_hashes([text[a:b] for a, b in spans]), size), size


def winnow(hashes: np.ndarray, window: int) -> np.ndarray:
  """Of every `window` consecutive hashes the place of the smallest, of equal ones the last: int64,
  each once, rising."""
  if len(hashes) < window:
    return np.zeros(0, np.int64)
  views = np.lib.stride_tricks.sliding_window_view(hashes, window)[:, ::-1]
  return np.unique(np.arange(len(views)) + window - 1 - views.argmin(axis=1))


def _gram_places(document: Document, words: int) -> Iterator[tuple[bytes, bytes]]:
  _, hashes, size = _grams(document.text, words)
  for at in winnow(hashes, words - size + 1).tolist():
    yield hashes[at].tobytes(), place(document, at)


def _run_places(
  element: tuple[Document, Sequence[int]], words: int,
) -> Iterator[tuple[bytes, bytes]]:
  document, grams = element
  spans, _, size = _grams(document.text, words)
  starts = {start for at in grams for start in range(max(0, at + size - words), at + 1)}
  for start in sorted(starts):
    if start + words <= len(spans):
      # Without what is between words: line breaks may differ.
      run = ' '.join(document.text[a:b] for a, b in spans[start:start + words])
      yield xxhash.xxh3_128_digest(run.encode('utf-8', 'replace')), place(document, start)


def _run_spans(text: str, starts: Sequence[int], words: int) -> list[Span]:
  spans = [found.span() for found in _WORD.finditer(text)]
  spans.append((len(text), len(text)))
  found: list[Span] = []
  for start in starts:
    a, b = spans[start][0], spans[min(start + words, len(spans) - 1)][0]
    if found and a <= found[-1][1]:
      found[-1] = found[-1][0], max(b, found[-1][1])
    else:
      found.append((a, b))
  return found


# --- cutting -------------------------------------------------------------------------------------


def _with_numbers(documents: Any, places: Any, name: str) -> Any:
  """PCollection[(document, its numbers)], of documents and (owner, (number, …))."""
  keyed = documents | f'key {name}' >> beam.Map(lambda document: (_owner(document), document))
  return ((keyed, places) | f'join {name}' >> beam.CoGroupByKey()
          | f'numbers {name}' >> beam.FlatMap(_numbers))


def _numbers(group: Any) -> Iterator[tuple[Document, list[int]]]:
  _, (documents, places) = group
  numbers = sorted({number for number, _ in places})
  for document in documents:
    yield document, numbers


def _cut(documents: Any, places: Any, spans: Any, argument: Any, stage: str) -> Any:
  split = (_with_numbers(documents, places, 'cuts')
           | 'cut' >> beam.FlatMap(_without, spans, argument, stage).with_outputs(
             'rejects', main='kept'))
  return split.kept, split.rejects


def _without(element: tuple[Document, list[int]], spans: Any, argument: Any, stage: str):
  document, numbers = element
  if not numbers:
    yield document
    return
  text, parts, end = document.text, [], 0
  for a, b in spans(text, numbers, argument):
    parts.append(text[end:a])
    end = b
  left = ''.join([*parts, text[end:]]).strip()
  words = len(_WORD.findall(left))
  counts = {**document.metadata.get('cut', {}), stage: len(_WORD.findall(text)) - words}
  document = with_metadata(document, cut=counts)
  if words < LITTLE:
    yield beam.pvalue.TaggedOutput('rejects', Reject(document, stage, 'little_left'))
    return
  document.text = left
  document.metadata.pop('page_offsets', None)     # they no longer hold
  yield document
