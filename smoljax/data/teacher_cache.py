"""What a teacher said of a tokenised corpus, on disk beside it: the format, and reading it.

Made for random access by document, as the corpus is; smoljax/train/distill.py says what is stored
and why, experiments/teacher_cache.py writes it.
"""

import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from smoljax.data import corpus as corpus_lib
from smoljax.data.corpus import Corpus

MAX_VOCAB = 1 << 17  # of sampled: an id has 17 bits
MAX_DRAWS = (1 << 7) - 1  # and its count 7: three bytes an entry


def pack_draws(ids_XN: np.ndarray) -> bytes:
  """Sorted draws of X places → X bytes of how many ids each has, then 3 bytes an id: id and count.

  The id is in the low 17 bits, its count in the 7 above, little endian.
  """
  new_XN = np.ones(ids_XN.shape, bool)
  new_XN[:, 1:] = ids_XN[:, 1:] != ids_XN[:, :-1]
  starts = np.flatnonzero(new_XN)
  counts = np.diff(starts, append=ids_XN.size)
  entries = (ids_XN.ravel()[starts].astype('<u4') | (counts.astype('<u4') << 17)).view(np.uint8)
  return new_XN.sum(axis=1).astype(np.uint8).tobytes() + entries.reshape(-1, 4)[:, :3].tobytes()


def unpack_draws(data: bytes, places: int, start: int, length: int, width: int) -> tuple:
  """(ids, counts) of places start … start + length - 1: int32 and uint8 [length, width]."""
  lengths = np.frombuffer(data, np.uint8, places)
  ends = np.cumsum(lengths, dtype=np.int64)
  first = ends[start] - lengths[start]
  total = int(ends[start + length - 1] - first)
  raw = np.frombuffer(data, np.uint8, 3 * total, places + 3 * int(first)).reshape(-1, 3)
  entries = np.zeros((total, 4), np.uint8)
  entries[:, :3] = raw
  entries = entries.view('<u4')[:, 0]
  used = np.arange(width) < lengths[start : start + length, None]
  ids, counts = np.zeros(used.shape, np.int32), np.zeros(used.shape, np.uint8)
  ids[used], counts[used] = entries & (MAX_VOCAB - 1), entries >> 17
  return ids, counts


class Cache:
  """What a teacher said of a tokenised corpus: record i is of the corpus's record i.

  A record has the document's `id` and `values`, for each place but the document's last token, from
  which the next token is predicted:
    sampled  `pack_draws`
    topk     k ids, 3 bytes each, then k probabilities, float16; place after place, ids first
    hidden   [places, D] bfloat16

  Raises:
    FileNotFoundError: no finished cache at `path`.
    ValueError: it is of another corpus (or of another split, tokenizer or number of documents).
  """

  def __init__(self, path: str, corpus: Corpus, split: str = 'train'):
    if not os.path.exists(os.path.join(path, '_SUCCESS')):
      raise FileNotFoundError(f'{path} is not a finished teacher cache (no _SUCCESS): run '
                              'experiments.teacher_cache to its end')
    self.manifest = corpus_lib.read_manifest(path)
    if self.manifest.get('kind') != 'teacher':
      raise ValueError(f'{path} is {self.manifest.get("kind")}, not a teacher cache')
    for what, ours in (
      ('corpus', corpus.digest), ('tokenizer', corpus.manifest.get('tokenizer_sha256')),
    ):
      if self.manifest[what] != ours:
        raise ValueError(
          f'{path} was written for another {what} than that of corpus {corpus.name!r} '
          f'({str(self.manifest[what])[:12]} against {str(ours)[:12]}): write it again with '
          'experiments.teacher_cache')
    self.cache, self.width = self.manifest['cache'], self.manifest.get('width', 0)
    self.records = corpus_lib.open_records(path, split)
    if len(self.records) != len(corpus.lengths):
      raise ValueError(f'{path} has {len(self.records)} documents, the corpus '
                       f'{len(corpus.lengths)}: write it again')
    self.digest = corpus_lib.digest(self.manifest['splits'][split]['shards'])

  def empty(self, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays for a batch of `shape` [B, T] that say nothing."""
    m = self.manifest
    if self.cache == 'hidden':
      return {'teacher_hidden': np.zeros((*shape, m['embed_dim']), ml_dtypes.bfloat16)}
    dtype = np.uint8 if self.cache == 'sampled' else np.float16
    return {
      'teacher_ids': np.zeros((*shape, self.width), np.int32),
      'teacher_shares': np.zeros((*shape, self.width), dtype),
    }

  def read(self, record: Mapping, places: int, start: int, length: int) -> dict[str, np.ndarray]:
    """What is stored of places start … start + length - 1 of a document that has `places`."""
    data, width = record['values'], self.width
    if self.cache == 'sampled':
      ids, shares = unpack_draws(data, places, start, length, width)
      return {'teacher_ids': ids, 'teacher_shares': shares}
    if self.cache == 'hidden':
      values = np.frombuffer(data, ml_dtypes.bfloat16).reshape(places, -1)
      return {'teacher_hidden': values[start : start + length]}
    rows = np.frombuffer(data, np.uint8).reshape(places, 5 * width)[start : start + length]
    ids = np.zeros((length, width, 4), np.uint8)
    ids[..., :3] = rows[:, : 3 * width].reshape(length, width, 3)
    shares = np.ascontiguousarray(rows[:, 3 * width :]).view('<f2')
    return {'teacher_ids': ids.view('<i4')[..., 0], 'teacher_shares': shares}


def open_caches(paths: Mapping[str, str], corpora: Mapping[str, Corpus]) -> dict[str, Cache]:
  """The caches of corpora by name, with arrays of one width for all.

  Raises ValueError if they are of different kinds, and what `Cache` raises.
  """
  caches = {name: Cache(path, corpora[name]) for name, path in paths.items()}
  if len(kinds := {_kind(c.manifest) for c in caches.values()}) > 1:
    raise ValueError(f'teacher caches of different kinds: {sorted(map(str, kinds))}')
  for cache in caches.values():
    cache.width = max(c.width for c in caches.values())
  return caches


def _kind(manifest):
  return (manifest['cache'], *(manifest[k] for k in ('draws', 'embed_dim')))


def pack_topk(ids_XK: np.ndarray, p_XK: np.ndarray) -> bytes:
  """Ids and probabilities [X, k] as `Cache` stores them."""
  ids = ids_XK.astype('<u4')[..., None].view(np.uint8)[..., :3].reshape(len(ids_XK), -1)
  return np.concatenate([ids, p_XK.astype('<f2').view(np.uint8)], axis=1).tobytes()
