"""Duplicates: exact and near ones (MinHash, connected components); quotes of evaluation sets.

Of each set of duplicates one document survives, always the same one whatever the order and the
sharding: the best by `rank`. A dropped document comes out as a Reject that names its survivor in
`metadata['duplicate_of']`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import regex
import xxhash
from apache_beam.io.filesystems import FileSystems

from data_beam import words
from data_beam.records import Document, Reject

# --- which one survives ----------------------------------------------------------------------


def rank(document: Document) -> tuple:
  """The smallest survives: best quality, then longest, then first by url and id."""
  quality = -document.quality if not math.isnan(document.quality) else math.inf
  return (quality, -len(document.text), document.url, document.id)


# --- exact -----------------------------------------------------------------------------------


def content_key(text: str) -> bytes:
  """A 128-bit hash of `text` that case, white space and Unicode composition do not change."""
  plain = unicodedata.normalize('NFC', ''.join(text.split()).casefold())
  return xxhash.xxh3_128_digest(plain.encode('utf-8', 'replace'))


def scope_key(document: Document, scope: str) -> str:
  """What documents must share to be compared: nothing ('global'), or their 'dump' or 'language'."""
  if scope not in SCOPES:
    raise ValueError(f'unknown scope {scope!r}: choose one of {", ".join(SCOPES)}')
  if scope == 'language':
    return document.language
  return str(document.metadata.get('dump', '')) if scope == 'dump' else ''


# FineWeb compares the documents of one crawl dump, FineWeb-2 those of one language over all dumps.
SCOPES = ('global', 'dump', 'language')


class ExactDedup(beam.PTransform):
  """PCollection[Document] -> (kept, rejects), one document kept of each text, or of each URL.

  Texts are the same if their `content_key` is; documents without URL are all kept by 'url'. A
  survivor that had copies has their number, itself included, in `metadata['copies']`.
  """

  def __init__(self, by: str = 'text', scope: str = 'global'):
    """Sets up the stage: `by` is 'text' or 'url', `scope` one of SCOPES.

    Of pages of one URL, those of other days may differ: the survivor is the best by `rank` there
    too, and the rejects are duplicate_url of the stage url_dedup.
    """
    super().__init__()
    if by not in _VERDICTS:
      raise ValueError(f"ExactDedup goes by 'text' or 'url', not {by!r}")
    scope_key(Document(id='', text=''), scope)
    self.by, self.scope = by, scope

  def expand(self, documents):
    split = (
      documents
      | 'key' >> beam.Map(_exact_key, self.by, self.scope)
      | beam.GroupByKey()
      | 'choose' >> beam.FlatMap(_choose, *_VERDICTS[self.by]).with_outputs(
        'rejects', main='kept'))
    return split.kept, split.rejects


_VERDICTS = {'text': ('exact_dedup', 'duplicate'), 'url': ('url_dedup', 'duplicate_url')}


def _exact_key(document: Document, by: str, scope: str) -> tuple[bytes, Document]:
  if by == 'text':
    key = content_key(document.text)
  else:
    key = xxhash.xxh3_128_digest((document.url or f'id {document.id}').encode('utf-8', 'replace'))
  return key + scope_key(document, scope).encode(), document


def _choose(group: tuple[bytes, Iterable[Document]], stage: str, reason: str) -> Iterator[Any]:
  # Copies of one record differ at most in where they lay: the rest of a document settles ties.
  def order(document):
    details = json.dumps(document.metadata, sort_keys=True)
    return (*rank(document), document.date, details, document.text)

  # Two passes, so that a page with a million copies need not fit in memory.
  copies, best = 0, None
  for document in group[1]:
    copies += 1
    best = min(best or order(document), order(document))
  if copies == 1:
    yield document
    return
  copies = 0   # those dropped before, by URL, count as well
  for document in group[1]:
    copies += document.metadata.get('copies', 1)
  found = False
  for document in group[1]:
    if not found and order(document) == best:
      found = True
      yield _with(document, copies=copies)
    else:
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        _with(document, duplicate_of=best[3]), stage, reason))


def _with(document: Document, **metadata) -> Document:
  return dataclasses.replace(document, metadata={**document.metadata, **metadata})


# --- MinHash signatures ----------------------------------------------------------------------

_MERSENNE = np.uint64((1 << 61) - 1)
_NUMBER = re.compile('0+(?:[.,،٫⎖⎗⎘]0+)?')   # a literal first: found many times faster than \d
_DIGITS = dict.fromkeys(map(ord, '123456789'), '0')
_HIGH = re.compile(r'[^\x00-\u065f]')   # where digits of other scripts are
_BLANKS = dict.fromkeys(map(ord, words.PUNCTUATION), ' ')
_ACCENT = regex.compile(r'\p{Mn}+')

_HASHES: dict[str, Callable[[bytes], int]] = {
  'xxh64': xxhash.xxh64_intdigest,
  'sha1': lambda data: int.from_bytes(hashlib.sha1(data).digest()[:8], 'little'),
}
HASHES = ('fast', *_HASHES)


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


def _word_hashes(simple: Sequence[str]) -> np.ndarray:
  data = ' '.join(simple).encode('utf-8', 'replace').split(b' ') if simple else []
  return np.fromiter(map(xxhash.xxh3_64_intdigest, data), np.uint64, len(data))


def _grams(hashes: np.ndarray, ngram: int) -> np.ndarray:
  """One hash per run of `ngram` words, by Horner's rule: uint64 [words - ngram + 1]."""
  count = max(0, len(hashes) - ngram + 1)
  total = hashes[:count].copy()
  for i in range(1, ngram):
    total *= np.uint64(0x9E3779B97F4A7C15)
    total += hashes[i:i + count]
  return total


class _SimpleWords:
  """The simplified words of a text as datatrove has them: spaCy's, joined by blanks, as bytes."""

  def __init__(self, language: str):
    self.cut = words.splitter(language)
    self.pieces: dict[str, bytes] = {}

  def join(self, pieces: Sequence[str]) -> bytes:
    for piece in dict.fromkeys(pieces):
      if piece not in self.pieces:
        self.pieces[piece] = ' '.join(self.cut(piece)).encode('utf-8', 'replace')
    return b' '.join(map(self.pieces.__getitem__, pieces))


_readers: dict[str, _SimpleWords] = {}


def _reader(language: str) -> _SimpleWords:
  language = language if language in words.LANGUAGES else 'en'
  if language not in _readers or len(_readers[language].pieces) > 200_000:
    _readers[language] = _SimpleWords(language)
  return _readers[language]


@functools.cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Multipliers and offsets, [count, 1] each: datatrove's, so that signatures can be compared."""
  random = np.random.RandomState(1)
  high = int(_MERSENNE)
  a = random.randint(1, high, count, np.uint64)
  b = random.randint(0, high, count, np.uint64)
  return a[:, None], b[:, None]


def shingles(
  text: str, ngram: int = 5, hash_name: str = 'fast', language: str = 'en'
) -> np.ndarray:
  """Hashes of the word n-grams of the simplified text: uint64 [words - ngram + 1], in order.

  See `signature` for the arguments.
  """
  simple = simplify(text)
  if hash_name == 'fast':
    return _grams(_word_hashes(simple), ngram)
  data = _reader(language).join(simple)
  spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x20).tolist()
  starts, ends = [0, *(i + 1 for i in spaces)], [*spaces, len(data)]
  hash_ = _HASHES[hash_name]
  # An n-gram joined by blanks is a slice of the text.
  values = [hash_(data[i:j]) for i, j in zip(starts, ends[ngram - 1:], strict=False)]
  return np.array(values if data else [], np.uint64)


def signature(
  text: str, *, bands: int = 14, rows: int = 8, ngram: int = 5, hash_name: str = 'fast',
  language: str = 'en',
) -> np.ndarray:
  """The MinHash signature of `text`: uint64 [bands, rows], or [0, rows] if it is too short.

  h(x) = (a x + b) mod 2^64 mod (2^61 - 1) as in datatrove (dedup/minhash.py), the product wrapping,
  and the minimum over the shingles. Two texts whose sets of shingles have Jaccard similarity s
  share a band with probability 1 - (1 - s^rows)^bands: at 14 x 8, 0.56 for s = 0.7, 0.92 for 0.8,
  0.9996 for 0.9.

  Args:
    text: any text. One with fewer than `ngram` words has no shingles and so no signature.
    bands: number of bands.
    rows: hashes per band.
    ngram: words per shingle.
    hash_name: 'fast', our own shingle hash, made from one hash per word. Or parity: signatures
      equal to datatrove's with 'xxh64' (FineWeb-2, FinePDFs) or 'sha1' (FineWeb). Signatures of
      different hashes cannot be compared.
    language: whose words make the shingles, in parity. 'fast' takes the strings between blanks.
  """
  x = shingles(text, ngram, hash_name, language)
  if not len(x):
    return np.empty((0, rows), np.uint64)
  a, b = _permutations(bands * rows)
  # The residue modulo 2^61 - 1 is the low 61 bits plus the high three (h < 2^64): it is smallest
  # where the low bits are, but for ties within 7 of 2^61, which no corpus will see. Times eight,
  # the low bits alone are left, and one multiplication and addition make them.
  a8, b8 = a << np.uint64(3), b << np.uint64(3)

  def smallest(x):
    low = a8 * x
    low += b8
    return low.argmin(axis=1)

  # A block of 112 x 512 stays in the cache.
  blocks = [x[start:start + 512] for start in range(0, len(x), 512)]
  best = np.stack([block[smallest(block)] for block in blocks], axis=1)   # [bands * rows, blocks]
  if len(blocks) > 1:
    best = np.take_along_axis(best, smallest(best)[:, None], 1)
  return ((a * best + b) % _MERSENNE).reshape(bands, rows)


# --- clusters --------------------------------------------------------------------------------


class Components(beam.CombineFn):
  """Edges (u, v) -> {node: the smallest node of its connected component}.

  A union-find whose accumulator is a forest, so it never holds more than one entry per node that
  has an edge; merging unites the forests. Exact for any shape of graph, long chains included.
  """

  def create_accumulator(self):
    return {}

  def add_input(self, parents, edge):
    u, v = sorted(_root(parents, node) for node in edge)
    parents[v] = u
    return parents

  def merge_accumulators(self, accumulators):
    accumulators = iter(accumulators)
    merged = next(accumulators)
    for parents in accumulators:
      for edge in parents.items():
        self.add_input(merged, edge)
    return merged

  def extract_output(self, parents):
    return {node: _root(parents, node) for node in parents}


def _root(parents: dict, node: Any) -> Any:
  parents.setdefault(node, node)
  while parents[node] != node:
    parents[node] = parents[parents[node]]
    node = parents[node]
  return node


class MinHashDedup(beam.PTransform):
  """PCollection[Document] -> (kept, rejects): one document kept of each cluster of near duplicates.

  Documents that share a band of their signatures are joined; a cluster is a connected component.
  Document ids must be unique. All documents get `cluster_size` in their metadata (how many
  documents this one stands for, exact copies dropped by ExactDedup included), those of larger
  clusters also `cluster_id` (the survivor's id). Texts shorter than `ngram` words are kept.

  Only hashes and ranks travel to find the clusters, and a star of edges per shared band rather
  than all pairs, so that boilerplate which occurs a million times costs a million edges.
  """

  def __init__(self, *, bands: int = 14, rows: int = 8, ngram: int = 5, hash_name: str = 'fast',
               scope: str = 'global', max_chars: int = 1_000_000):
    """Sets up the stage.

    Args:
      bands: see `signature`, as for `rows`, `ngram` and `hash_name`.
      rows: FineWeb has 14 x 8, FinePDFs 32 x 10.
      ngram: words per shingle.
      hash_name: one of HASHES.
      scope: one of SCOPES; documents of different scopes are never duplicates.
      max_chars: only so much of a text is looked at.
    """
    super().__init__()
    if hash_name not in HASHES:
      raise ValueError(f'unknown hash {hash_name!r}: choose one of {", ".join(HASHES)}')
    scope_key(Document(id='', text=''), scope)
    self.settings = {'bands': bands, 'rows': rows, 'ngram': ngram, 'hash_name': hash_name,
                     'scope': scope, 'max_chars': max_chars}

  def expand(self, documents):
    clusters = (
      documents
      | 'bands' >> beam.FlatMap(_bands, **self.settings)
      | 'same band' >> beam.GroupByKey()
      | 'edges' >> beam.FlatMap(_star)
      | 'components' >> beam.CombineGlobally(Components())
      | 'members' >> beam.FlatMap(_members))
    split = (
      {'documents': documents | 'id' >> beam.Map(lambda document: (document.id, document)),
       'clusters': clusters}
      | beam.CoGroupByKey()
      | 'choose' >> beam.FlatMap(_resolve).with_outputs('rejects', main='kept'))
    return split.kept, split.rejects


def near_duplicates(
  shape: str, hash_name: str = 'fast', scope: str = 'global',
) -> list[tuple[str, beam.PTransform]]:
  """The stage for `shape`: '14x8' is MinHashDedup with 14 bands of 8 rows; none for 'none'.

  Raises ValueError for anything else.
  """
  if shape == 'none':
    return []
  if not (numbers := re.fullmatch(r'([1-9]\d{0,2})x([1-9]\d{0,2})', shape)):
    raise ValueError(f'minhash={shape!r}: give bands x rows, such as 14x8, or none')
  bands, rows = map(int, numbers.groups())
  return [('minhash', MinHashDedup(bands=bands, rows=rows, hash_name=hash_name, scope=scope))]


def _bands(
  document: Document, *, bands, rows, ngram, hash_name, scope, max_chars,
) -> Iterator[tuple[bytes, tuple]]:
  # The node is the rank itself: the smallest node of a component is then its survivor.
  node = (*rank(document), document.metadata.get('copies', 1))
  matrix = signature(document.text[:max_chars], bands=bands, rows=rows, ngram=ngram,
                     hash_name=hash_name, language=document.language)
  within = scope_key(document, scope).encode()
  for band, row in enumerate(matrix):
    yield xxhash.xxh3_128_digest(row.tobytes() + within, seed=band), node


def _star(group: tuple[bytes, Iterable[tuple]]) -> Iterator[tuple]:
  nodes = iter(group[1])
  centre = next(nodes)
  for node in nodes:
    yield centre, node


def _members(roots: dict[tuple, tuple]) -> Iterator[tuple[str, tuple[str, int]]]:
  sizes: dict[tuple, int] = {}
  for node, root in roots.items():
    sizes[root] = sizes.get(root, 0) + node[4]
  for node, root in roots.items():
    yield node[3], (root[3], sizes[root])


def _resolve(joined: tuple[str, dict[str, Iterable]]) -> Iterator[Any]:
  _, group = joined
  cluster = min(group['clusters'], default=None)
  for document in group['documents']:
    if cluster is None:
      yield _with(document, cluster_size=document.metadata.get('copies', 1))
      continue
    survivor, size = cluster
    document = _with(document, cluster_id=survivor, cluster_size=size)
    if document.id == survivor:
      yield document
    else:
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        _with(document, duplicate_of=survivor), 'minhash', 'near_duplicate'))


# --- rehydration -----------------------------------------------------------------------------

# How often to repeat a document that stands for so many, from the given size on: FineWeb-2's table
# for all languages, and those it learned for up to five repetitions (misc/rehydration/weights at
# d0defb2). Documents with very few or very many copies are of lower quality than those between.
REHYDRATION: dict[str, dict[int, int]] = {
  '': {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1},
  'fr': {1: 1, 3: 2, 5: 3, 8: 4, 14: 5, 34: 4, 61: 3, 89: 2, 152: 1},
  'de': {1: 1, 3: 2, 5: 3, 9: 4, 16: 5, 37: 4, 73: 3, 124: 2, 185: 1, 186: 2, 194: 1, 195: 2,
         196: 1},
  'es': {1: 1, 3: 2, 4: 3, 7: 4, 13: 5, 30: 4, 69: 3, 110: 2, 144: 3, 152: 2, 163: 1},
  'it': {1: 1, 2: 2, 4: 3, 7: 4, 14: 5, 29: 4, 52: 3, 78: 2, 79: 3, 82: 2, 83: 3, 84: 2, 134: 1},
  'pt': {1: 1, 2: 2, 4: 3, 6: 4, 11: 5, 34: 4, 39: 5, 47: 4, 71: 3, 109: 2, 169: 1},
}


def rehydration_weight(cluster_size: int, language: str = '') -> int:
  """How often FineWeb-2 would repeat the survivor of a cluster of this size."""
  table = REHYDRATION.get(language, REHYDRATION[''])
  return table[max(size for size in table if size <= max(1, cluster_size))]


# --- decontamination -------------------------------------------------------------------------


class Decontaminate(beam.PTransform):
  """PCollection[Document] -> (kept, rejects): drops documents that quote an evaluation set.

  A document is dropped if it shares `ngram` consecutive words with an item of the evaluation sets,
  words as `simplify` has them (no case, punctuation, accents or values of numbers); items shorter
  than that are looked for whole if they have at least `shortest` words. Runs in which half of the
  words are repeats, such as sums of numbers, do not count. The reason is the name of
  the set; `metadata['contaminated']` lists set, line number of the item and the words shared, one
  entry per item, ten at most.
  """

  def __init__(self, evaluation_files: Sequence[str], ngram: int = 13, shortest: int = 8):
    super().__init__()
    if not evaluation_files:
      raise ValueError('Decontaminate needs the JSONL files of at least one evaluation set')
    if not 1 <= shortest <= ngram:
      raise ValueError(f'shortest is {shortest}: it must be between 1 and ngram, which is {ngram}')
    self.files, self.ngram, self.shortest = tuple(evaluation_files), ngram, shortest

  def expand(self, documents):
    split = documents | beam.FlatMap(
      _decontaminate, self.files, self.ngram, self.shortest).with_outputs('rejects', main='kept')
    return split.kept, split.rejects


def _decontaminate(document, files, ngram, shortest):
  found = contamination(document.text, files, ngram, shortest)
  if found:
    yield beam.pvalue.TaggedOutput('rejects', Reject(
      _with(document, contaminated=found[:10]), 'decontaminate', found[0]['set']))
  else:
    yield document


def contamination(
  text: str, evaluation_files: tuple[str, ...], ngram: int = 13, shortest: int = 8,
) -> list[dict[str, Any]]:
  """Which items of evaluation sets a text quotes: [{set, item, words}], in order of appearance."""
  index = _evaluation_index(tuple(evaluation_files), ngram, shortest)
  simple = simplify(text)
  hashes = _word_hashes(simple)
  found: dict[tuple[str, int], tuple[int, int]] = {}
  for length, (keys, items) in index.items():
    grams = _grams(hashes, length)
    at = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
    for place in np.flatnonzero(keys[at] == grams).tolist():
      item = items[int(at[place])]
      if item not in found or place < found[item][0]:
        found[item] = place, length
  return [{'set': name, 'item': line, 'words': ' '.join(simple[place:place + length])}
          for (name, line), (place, length) in sorted(found.items(), key=lambda f: (f[1], f[0]))]


@functools.lru_cache(maxsize=2)
def _evaluation_index(
  files: tuple[str, ...], ngram: int, shortest: int,
) -> dict[int, tuple[np.ndarray, list[tuple[str, int]]]]:
  """{length: (sorted hashes of the n-grams, the item each is from)}."""
  grams: dict[int, dict[int, tuple[str, int]]] = {}
  for path in files:
    name = os.path.basename(path).removesuffix('.jsonl')
    with FileSystems.open(path) as file:
      for number, line in enumerate(file):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except ValueError as error:
          raise ValueError(f'{path}, line {number + 1}, is not JSON: {error}') from error
        for part in _strings(row):
          hashes = _word_hashes(simplify(part))
          length = min(ngram, len(hashes))
          if length < shortest:
            continue
          window = np.sort(np.lib.stride_tricks.sliding_window_view(hashes, length), axis=1)
          varied = (window[:, 1:] != window[:, :-1]).sum(axis=1) + 1 > length // 2
          for gram in _grams(hashes, length)[varied].tolist():
            grams.setdefault(length, {}).setdefault(gram, (name, number))
  index = {}
  for length, found in grams.items():
    keys = sorted(found)
    index[length] = np.array(keys, np.uint64), [found[key] for key in keys]
  return index


def _strings(value: Any) -> Iterator[str]:
  """All texts of a JSON value, each by itself: a question, one of its answers, and so on."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for part in value.values():
      yield from _strings(part)
  elif isinstance(value, list):
    for part in value:
      yield from _strings(part)
