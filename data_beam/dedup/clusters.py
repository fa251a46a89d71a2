"""Near duplicates: connected components of documents that share a band, and their survivor."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import xxhash

from data_beam.dedup import minhash, prior
from data_beam.dedup.components import KEY, Components, Total, at_the_end, by_part
from data_beam.dedup.exact import (
  KNOWN,
  ExactDedup,
  rank,
  record_key,
  scope_key,
  stands_for,
  with_metadata,
  with_prior,
)
from data_beam.dedup.minhash import HASHES, band_hashes
from data_beam.records import Document, Reject

# --- clusters --------------------------------------------------------------------------------


class MinHashDedup(beam.PTransform):
  """PCollection[Document] -> (kept, rejects): one document kept of each cluster of near duplicates.

  Documents that share a band of their signatures are joined; a cluster is a connected component.
  Ids may repeat: what tells documents apart is `record_key`. All documents get `cluster_size` in
  their metadata (how many documents this one stands for, exact copies dropped by ExactDedup
  included), those of larger clusters also `cluster_id` (the survivor's id). Texts shorter than
  `ngram` words are kept.

  Only hashes and ranks travel to find the clusters, packed into arrays, and a star of edges per
  shared band rather than all pairs. Of the documents that a worker has at hand, one stands for all
  that share a band, so that boilerplate which occurs a million times crowds nobody.
  """

  def __init__(self, *, bands: int = 14, rows: int = 8, ngram: int = 5, hash_name: str = 'fast',
               scope: str = 'global', max_chars: int = 1_000_000, parts: int = 8,
               prior: beam.PTransform | None = None):
    """Sets up the stage.

    Args:
      bands: see `signature`, as for `rows`, `ngram` and `hash_name`.
      rows: FineWeb has 14 x 8, FinePDFs 32 x 10.
      ngram: words per shingle.
      hash_name: one of HASHES.
      scope: one of SCOPES; documents of different scopes are never duplicates.
      max_chars: only so much of a text is looked at.
      parts: of the documents' hashes, see Components: about one for each shard of the corpus.
      prior: of another corpus, whose documents survive and are not among what is kept (prior.py).
    """
    super().__init__()
    if hash_name not in HASHES:
      raise ValueError(f'unknown hash {hash_name!r}: choose one of {", ".join(HASHES)}')
    scope_key(Document(id='', text=''), scope)
    self.parts, self.prior = parts, prior
    self.settings = {'bands': bands, 'rows': rows, 'ngram': ngram, 'hash_name': hash_name,
                     'scope': scope, 'max_chars': max_chars}

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    packed = (with_prior(documents, self.prior)
              | 'bands' >> beam.ParDo(_Bands(self.parts, self.settings)).with_outputs(
                'edges', 'members', main='bands'))
    edges = ((packed.bands | 'same band' >> beam.GroupByKey() | 'stars' >> beam.Map(_stars),
              packed.edges) | 'edges' >> beam.Flatten())
    clusters = ((edges, packed.members) | 'components' >> Components(self.parts)
                | 'clusters' >> beam.FlatMap(_unpacked))
    split = (
      {'documents': documents | 'key' >> beam.Map(lambda d: (record_key(d), d)),
       'clusters': clusters}
      | beam.CoGroupByKey()
      | 'choose' >> beam.FlatMap(_resolve).with_outputs('rejects', main='kept'))
    return split.kept, split.rejects


PART_BYTES = 1 << 30    # of input a part: some hundred thousand documents


def deduplication(
  options: Any, *, by_url: bool = False, exact: bool = True, size: int = 0,
) -> list[tuple[str, beam.PTransform]]:
  """The stages that options ask for: signatures kept, exact duplicates (by URL too), near ones.

  Exact ones are looked for where near ones or those of another corpus are, whatever `exact` is.
  The input has about `size` bytes: of it follows in how many parts clusters are looked for.

  Of `options` are taken, where it has them: minhash, minhash_hash, dedup_scope, num_shards,
  signatures, against. Raises ValueError or CorpusError for what they cannot be.
  """
  shape, scope = minhash.shape(options.minhash), getattr(options, 'dedup_scope', 'global')
  bands, rows = shape or (0, 1)
  settings = {'bands': bands, 'rows': rows, 'hash_name': options.minhash_hash}
  known = prior.Prior(options.against, **settings) if getattr(options, 'against', ()) else None
  stages: list[tuple[str, beam.PTransform]] = []
  if getattr(options, 'signatures', False):
    stages.append(('sign', prior.Sign(**settings)))
  if by_url:
    stages.append(('url_dedup', ExactDedup(by='url', scope=scope, prior=known)))
  if exact or shape or known:
    stages.append(('exact_dedup', ExactDedup(scope=scope, prior=known)))
  if shape:
    stages.append(('minhash', MinHashDedup(
      **settings, scope=scope, parts=max(options.num_shards, size // PART_BYTES), prior=known)))
  return stages


class _Bands(beam.DoFn):
  """Document → blocks of (hashes of bands, their documents) by part of the hashes; where several
  documents at hand share a band, the first is in the block, and `edges` join the others to it."""

  def __init__(self, parts: int, settings: dict[str, Any]):
    self.parts, self.settings = parts, settings

  def start_bundle(self):
    """Nothing at hand."""
    self.bands: list[bytes] = []
    self.owners: list[int] = []
    self.nodes: list[bytes] = []
    self.totals: list[Total] = []

  def process(self, document: Document) -> Iterator[Any]:
    """A document's bands, put by."""
    number, key = len(self.nodes), record_key(document)
    self.nodes.append(key)
    self.totals.append(Total((*rank(document), key), stands_for(document)))
    bands = _bands(document, **self.settings)
    self.bands += bands
    self.owners += [number] * len(bands)
    if len(self.nodes) == _AT_HAND:
      yield from self._blocks()

  def finish_bundle(self) -> Any:
    """What is left."""
    return at_the_end(self._blocks())

  def _blocks(self) -> Iterator[Any]:
    if not self.nodes:
      return
    nodes, totals, owners = np.array(self.nodes, KEY), self.totals, np.array(self.owners, int)
    hashes, first, index = np.unique(
      np.array(self.bands, KEY), return_index=True, return_inverse=True)
    self.start_bundle()
    yield beam.pvalue.TaggedOutput('members', (nodes, totals))
    yield beam.pvalue.TaggedOutput('edges', _star_edges(nodes[owners], first, index))
    for part, chosen in by_part(hashes, self.parts):
      yield part, (hashes[chosen], nodes[owners[first[chosen]]])


_AT_HAND = 1 << 15      # documents, of which a worker packs the hashes


def _bands(
  document: Document, *, bands, rows, ngram, hash_name, scope, max_chars,
) -> list[bytes]:
  if document.signature:
    found = prior.bands_of(document.signature)
  else:
    found = band_hashes(document.text, max_chars=max_chars, bands=bands, rows=rows, ngram=ngram,
                        hash_name=hash_name, language=document.language)
  within = scope_key(document, scope).encode()
  return [xxhash.xxh3_128_digest(band + within) for band in found] if within else found


def _stars(group: tuple[int, Iterable[tuple]]) -> tuple[np.ndarray, np.ndarray]:
  """Blocks of a part → its edges: all documents of a band to one of them."""
  hashes, nodes = map(np.concatenate, zip(*group[1], strict=True))
  _, first, index = np.unique(hashes, return_index=True, return_inverse=True)
  return _star_edges(nodes, first, index)


def _star_edges(nodes, first, index) -> tuple[np.ndarray, np.ndarray]:
  """Edges from each node to the first of its group, but of that one itself."""
  others = np.flatnonzero(first[index] != np.arange(len(index)))
  return nodes[others], nodes[first[index[others]]]


def _unpacked(block: tuple[np.ndarray, list[Total]]) -> Iterator[tuple[bytes, Total]]:
  for node, total in zip(block[0].tolist(), block[1], strict=True):
    yield node.ljust(KEY.itemsize, b'\0'), total     # of which numpy has cut zeros


def _resolve(joined: tuple[bytes, dict[str, Iterable]]) -> Iterator[Any]:
  key, group = joined
  cluster = next(iter(group['clusters']), None)
  for document in group['documents']:
    if cluster is None:
      yield with_metadata(document, cluster_size=stands_for(document))
      continue
    (quality, *_, survivor, best), size = cluster
    document = with_metadata(document, cluster_id=survivor, cluster_size=size)
    if key == best:
      yield document
    else:
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        with_metadata(document, duplicate_of=survivor), 'minhash',
        KNOWN if quality == -math.inf else 'near_duplicate'))


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
