"""Duplicates: exact ones, and near ones by MinHash and connected components.

Of each set of duplicates one document survives, always the same one whatever the order and the
sharding: the best by `rank`. A dropped document comes out as a Reject that names its survivor in
`metadata['duplicate_of']`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import regex
import xxhash

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


class ExactDedup(beam.PTransform):
  """PCollection[Document] -> (kept, rejects), one document kept of each `content_key`.

  A survivor that had copies has their number, itself included, in `metadata['copies']`.
  """

  def expand(self, documents):
    split = (
      documents
      | 'key' >> beam.Map(lambda document: (content_key(document.text), document))
      | beam.GroupByKey()
      | 'choose' >> beam.FlatMap(_choose).with_outputs('rejects', main='kept'))
    return split.kept, split.rejects


def _choose(group: tuple[bytes, Iterable[Document]]) -> Iterator[Any]:
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
  found = False
  for document in group[1]:
    if not found and order(document) == best:
      found = True
      yield _with(document, copies=copies)
    else:
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        _with(document, duplicate_of=best[3]), 'exact_dedup', 'duplicate'))


def _with(document: Document, **metadata) -> Document:
  return dataclasses.replace(document, metadata={**document.metadata, **metadata})


# --- MinHash signatures ----------------------------------------------------------------------

_MERSENNE = np.uint64((1 << 61) - 1)
_NUMBER = re.compile(r'\d+(?:[.,،٫⎖⎗⎘]\d+)?')
# What datatrove takes for punctuation: common signs of several scripts, and control characters.
_PUNCTUATION = (
  '!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„\';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_."}►»'
  + ''.join(map(chr, (*range(9), 11, 12, *range(13, 32), *range(127, 160)))))
_PLAIN_WORD = re.compile(rf'[^\s{re.escape(_PUNCTUATION)}]+')
_ACCENT = regex.compile(r'\p{Mn}+')

_HASHES: dict[str, Callable[[bytes], int]] = {
  'xxh64': xxhash.xxh64_intdigest,
  'sha1': lambda data: int.from_bytes(hashlib.sha1(data).digest()[:8], 'little'),
}


def simplify(text: str) -> str:
  """Words of `text` without case, punctuation, accents or the values of numbers (datatrove)."""
  text = ' '.join(_PLAIN_WORD.findall(_NUMBER.sub('0', text.lower())))
  if not text.isascii():
    text = ' '.join(_ACCENT.sub('', unicodedata.normalize('NFD', text)).split())
  return text


@functools.cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Multipliers and offsets, [count, 1] each: datatrove's, so that signatures can be compared."""
  random = np.random.RandomState(1)
  high = int(_MERSENNE)
  a = random.randint(1, high, count, np.uint64)
  b = random.randint(0, high, count, np.uint64)
  return a[:, None], b[:, None]


def shingles(text: str, ngram: int = 5, hash_name: str = 'xxh64') -> np.ndarray:
  """Hashes of the word n-grams of the simplified text: uint64 [words - ngram + 1], in order."""
  data = simplify(text).encode('utf-8', 'replace')
  spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x20).tolist()
  starts, ends = [0, *(i + 1 for i in spaces)], [*spaces, len(data)]
  hash_ = _HASHES[hash_name]
  # An n-gram joined by spaces is a slice of the simplified text.
  values = [hash_(data[i:j]) for i, j in zip(starts, ends[ngram - 1:], strict=False)]
  return np.array(values if data else [], np.uint64)


def signature(
  text: str, *, bands: int = 14, rows: int = 8, ngram: int = 5, hash_name: str = 'xxh64'
) -> np.ndarray:
  """The MinHash signature of `text`: uint64 [bands, rows], or [0, rows] if it is too short.

  Equal to datatrove's (dedup/minhash.py) where the words are: h(x) = (a x + b) mod 2^64 mod
  (2^61 - 1), the product wrapping, and the minimum over the shingles. Two texts whose sets of
  shingles have Jaccard similarity s share a band with probability 1 - (1 - s^rows)^bands: at
  14 x 8, 0.56 for s = 0.7, 0.92 for 0.8, 0.9996 for 0.9.

  Args:
    text: any text. One with fewer than `ngram` words has no shingles and so no signature.
    bands: number of bands.
    rows: hashes per band.
    ngram: words per shingle.
    hash_name: 'xxh64' (FineWeb-2, FinePDFs) or 'sha1' (FineWeb).
  """
  x = shingles(text, ngram, hash_name)
  if not len(x):
    return np.empty((0, rows), np.uint64)
  a, b = _permutations(bands * rows)
  result = np.full(bands * rows, _MERSENNE)
  for start in range(0, len(x), 512):  # a block of 112 x 512 stays in the cache
    h = a * x[start:start + 512]
    h += b
    # h mod (2^61 - 1) without dividing: as h < 2^64, one fold leaves less than twice the modulus.
    high = h >> np.uint64(61)
    h &= _MERSENNE
    h += high
    # The wrapped value of what is already below the modulus is larger, so the minimum picks right.
    np.minimum(h, h - _MERSENNE, out=h)
    np.minimum(result, h.min(axis=1), out=result)
  return result.reshape(bands, rows)


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

  def __init__(self, *, bands: int = 14, rows: int = 8, ngram: int = 5,
               max_chars: int = 1_000_000):
    """Sets up the stage.

    Args:
      bands: see `signature`.
      rows: see `signature`.
      ngram: see `signature`.
      max_chars: only so much of a text is looked at.
    """
    super().__init__()
    self.settings = {'bands': bands, 'rows': rows, 'ngram': ngram, 'max_chars': max_chars}

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


def _bands(document: Document, *, bands, rows, ngram, max_chars) -> Iterator[tuple[bytes, tuple]]:
  # The node is the rank itself: the smallest node of a component is then its survivor.
  node = (*rank(document), document.metadata.get('copies', 1))
  matrix = signature(document.text[:max_chars], bands=bands, rows=rows, ngram=ngram)
  for band, row in enumerate(matrix):
    yield xxhash.xxh3_128_digest(row.tobytes(), seed=band), node


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
