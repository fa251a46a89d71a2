"""Near duplicates: connected components of documents that share a band, and their survivor."""

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import xxhash

from data_beam.dedup import minhash
from data_beam.dedup.exact import rank, record_key, scope_key, with_metadata
from data_beam.dedup.minhash import HASHES, signature
from data_beam.records import Document, Reject

# --- clusters --------------------------------------------------------------------------------


class Components(beam.CombineFn):
  """Edges (u, v) -> {node: the smallest node of its connected component}.

  A union-find whose accumulator is a forest, so it never holds more than one entry per node that
  has an edge; merging unites the forests. Exact for any shape of graph, long chains included.
  """

  def create_accumulator(self) -> Any:
    """No edges yet; an accumulator is node → a node nearer to its root."""
    return {}

  def add_input(self, parents: Any, edge: Any) -> Any:
    """Joins the components of an edge; the smaller root stays one."""
    u, v = sorted(_root(parents, node) for node in edge)
    parents[v] = u
    return parents

  def merge_accumulators(self, accumulators: Any) -> Any:
    """Joins components that share a node."""
    accumulators = iter(accumulators)
    merged = next(accumulators)
    for parents in accumulators:
      for edge in parents.items():
        self.add_input(merged, edge)
    return merged

  def extract_output(self, parents: Any) -> Any:
    """Node → root, the smallest node of its component."""
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
  Ids may repeat: what tells documents apart is `record_key`. All documents get `cluster_size` in
  their metadata (how many documents this one stands for, exact copies dropped by ExactDedup
  included), those of larger clusters also `cluster_id` (the survivor's id). Texts shorter than
  `ngram` words are kept.

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

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    clusters = (
      documents
      | 'bands' >> beam.FlatMap(_bands, **self.settings)
      | 'same band' >> beam.GroupByKey()
      | 'edges' >> beam.FlatMap(_star)
      | 'components' >> beam.CombineGlobally(Components())
      | 'members' >> beam.FlatMap(_members))
    split = (
      {'documents': documents | 'key' >> beam.Map(lambda d: (record_key(d), d)),
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
  if not (found := minhash.shape(shape)):
    return []
  bands, rows = found
  return [('minhash', MinHashDedup(bands=bands, rows=rows, hash_name=hash_name, scope=scope))]


def _bands(
  document: Document, *, bands, rows, ngram, hash_name, scope, max_chars,
) -> Iterator[tuple[bytes, tuple]]:
  # The node is the rank itself: the smallest node of a component is then its survivor.
  node = (*rank(document), record_key(document), document.metadata.get('copies', 1))
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


def _members(roots: dict[tuple, tuple]) -> Iterator[tuple[bytes, tuple[bytes, str, int]]]:
  sizes: dict[tuple, int] = {}
  for node, root in roots.items():
    sizes[root] = sizes.get(root, 0) + node[-1]
  for node, root in roots.items():
    yield node[-2], (root[-2], root[3], sizes[root])


def _resolve(joined: tuple[bytes, dict[str, Iterable]]) -> Iterator[Any]:
  key, group = joined
  cluster = min(group['clusters'], default=None)
  for document in group['documents']:
    if cluster is None:
      yield with_metadata(document, cluster_size=document.metadata.get('copies', 1))
      continue
    best, survivor, size = cluster
    document = with_metadata(document, cluster_id=survivor, cluster_size=size)
    if key == best:
      yield document
    else:
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        with_metadata(document, duplicate_of=survivor), 'minhash', 'near_duplicate'))


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
