"""Tokenised corpora → staged mixture → packed rows → batches.

A *corpus* is a directory of token documents (one record each). Training sees *rows* of `seq_len`
tokens, each packed from whole or cut documents of one corpus:

1. Every epoch is a keyed permutation of the documents, computed, never stored. A rehydrated corpus
   (tokenize_corpus --rehydrate) has a document in it as often as FineWeb-2 would repeat it.
2. The permuted documents are taken in *windows*; each window is packed on its own from the stored
   lengths alone, so a row can be found again from (epoch, window, row).
3. A stage's mixture hands out rows so that each corpus's share of tokens follows its weight.

So a batch depends on the seed and the step alone, not on processes or threads; the position is a
dozen integers; a restart repacks one window per corpus; and no index grows with the run.

A piece of a document with n tokens fills n - 1 places: inputs are its tokens but the last, targets
its tokens but the first. A document longer than a row is cut into pieces that share one token, so
every token but a document's first is a target exactly once. Positions restart and segment ids
change at each piece; attention, loss mask and evaluation all derive from these two.
"""

import bisect
import dataclasses
import hashlib
import heapq
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds

if TYPE_CHECKING:
  from smoljax import teacher_cache


class EmptySplit(ValueError):
  """A split of a corpus holds nothing to predict."""


class Piece(NamedTuple):
  """Tokens `[start, start + length]` of a document: `length` inputs and as many targets."""

  document: int
  start: int
  length: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split of a tokenised corpus on disk (contract: data_beam/tokenize_corpus.py)."""

  name: str
  manifest: Mapping
  lengths: np.ndarray  # [documents] int32, tokens of each document in record order
  records: Sequence[Mapping]  # random access; 'tokens', 'num_bytes', 'id', …
  digest: str  # identifies the split's bytes
  repeats: np.ndarray | None = None  # [documents] int32, how often an epoch has each; None: once

  def tokens(self, document: int) -> np.ndarray:
    """The token ids of one document, `[n]` int32."""
    return self.decode(self.records[document])

  def decode(self, record: Mapping) -> np.ndarray:
    return np.frombuffer(record['tokens'], self.manifest['dtype']).astype(np.int32)

  def ids(self, documents: Sequence[int]) -> list[str]:
    """The ids of documents by their number."""
    return [word(r['id']) for r in self.records.__getitems__(list(documents))]

  def token_counts(self, vocab_size: int, limit: int = 100_000) -> np.ndarray:
    """How often each id occurs, `[vocab_size]` int64, in up to `limit` documents evenly spread."""
    counts = np.zeros(vocab_size, np.int64)
    for document in range(0, len(self.lengths), -(-len(self.lengths) // limit)):
      counts += np.bincount(self.tokens(document), minlength=vocab_size)
    return counts


def word(value: bytes | str) -> str:
  """A field of text of a record, which the reader gives as bytes."""
  return value.decode() if isinstance(value, bytes) else value


def open_corpus(path: str, split: str = 'train', name: str | None = None) -> Corpus:
  """Opens `path` (`DIR/NAME/VERSION`).

  Raises:
    FileNotFoundError: there is no finished tokenised corpus at `path`.
    EmptySplit: the split has no tokens to predict.
    ValueError: the path holds text, or lengths that do not match the records.
  """
  if not os.path.exists(os.path.join(path, '_SUCCESS')):
    raise FileNotFoundError(
      f'{path} is not a finished corpus (no _SUCCESS): run data_beam.tokenize_corpus to its end'
    )
  with open(os.path.join(path, 'manifest.json')) as f:
    manifest = json.load(f)
  if manifest.get('kind') != 'tokenised':
    raise ValueError(f'{path} holds text, not tokens: run data_beam.tokenize_corpus on it first')
  info = manifest['splits'].get(split)
  shards = info['shards'] if info else []

  def sidecar(kind: str) -> np.ndarray:
    parts = [np.load(os.path.join(path, s[kind])).astype(np.int32) for s in shards]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)

  lengths = sidecar('lengths')
  if not (lengths > 1).any():
    raise EmptySplit(f'{path} has no tokens to predict in split {split!r}: give it more input')
  records = open_records(path, split)
  if len(lengths) != len(records):
    raise ValueError(f'{path}: {len(lengths)} lengths but {len(records)} records: tokenise again')
  repeats = sidecar('repeats') if 'repeats' in shards[0] else None
  return Corpus(name or manifest['name'], manifest, lengths, records, digest(shards), repeats)


def digest(shards: Sequence[Mapping]) -> str:
  """Identifies a split's bytes by the checksums that the manifest has of its shards."""
  return hashlib.sha256(''.join(s['sha256'] for s in shards).encode()).hexdigest()


def open_records(path: str, split: str) -> Sequence[Mapping]:
  """Random access to the records of a TFDS directory."""
  return tfds.builder_from_directory(path).as_data_source(split)


# --- Order and packing -------------------------------------------------------------------------


def permute(index: np.ndarray, size: int, key: bytes) -> np.ndarray:
  """Where a keyed permutation of `range(size)` sends `index`, `[n]` → `[n]` int64.

  A four-round Feistel network over the next power of four, walked until it lands inside the range
  (format-preserving encryption, Black and Rogaway 2002): no table, any element on its own.
  """
  half = max(1, ((size - 1).bit_length() + 1) // 2)
  mask = np.uint64((1 << half) - 1)
  rounds = np.frombuffer(hashlib.sha256(key).digest(), np.uint64)

  def encrypt(x: np.ndarray) -> np.ndarray:
    left, right = x >> np.uint64(half), x & mask
    for r in rounds:
      # splitmix64's finaliser, keyed
      h = (right + r) * np.uint64(0x9E3779B97F4A7C15)
      h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
      h ^= h >> np.uint64(27)
      left, right = right, (left ^ (h >> np.uint64(11))) & mask
    return (left << np.uint64(half)) | right

  with np.errstate(over='ignore'):
    out = encrypt(index.astype(np.uint64))
    while (outside := out >= size).any():
      out[outside] = encrypt(out[outside])
  return out.astype(np.int64)


def pack(lengths: Sequence[int], seq_len: int, max_segments: int) -> list[list[Piece]]:
  """Packs documents of these token counts into few rows of `seq_len` places.

  Long documents are cut first; the whole pieces fill rows of their own and what remains shares rows
  with at most `max_segments` pieces: by `best_fit`, or `evenly` where that takes fewer rows.
  Documents of fewer than two tokens predict nothing and are left out. Returns rows of pieces whose
  `document` indexes `lengths`.
  """
  rows, remainders = [], []
  wholes = cut(np.asarray(lengths, np.int64), seq_len).tolist()
  for document, (length, whole) in enumerate(zip(lengths, wholes, strict=True)):
    rows += [[Piece(document, i * seq_len, seq_len)] for i in range(whole)]
    if (rest := length - 1 - whole * seq_len) > 0:
      remainders.append(Piece(document, whole * seq_len, int(rest)))
  remainders.sort(key=lambda p: (-p.length, p.document))
  ways = [best_fit(remainders, seq_len, max_segments)]
  ways += [evenly(remainders, seq_len, max_segments, spare) for spare in (0.0, 0.02)]
  return rows + min(ways, key=len)


def cut(lengths: np.ndarray, seq_len: int) -> np.ndarray:
  """How many rows a document of so many tokens fills alone; what is left fits into one."""
  return np.maximum(0, lengths - 2) // seq_len


def usual_segments(lengths: np.ndarray, seq_len: int) -> int:
  """Documents a row must be able to hold so that `pack` wastes next to nothing; at least 8."""
  rest = lengths - 1 - cut(lengths, seq_len) * seq_len
  rest = rest[rest > 0]
  return max(8, math.ceil(1.15 * len(rest) * seq_len / max(1, rest.sum())) + 1)


def best_fit(pieces: Sequence[Piece], seq_len: int, max_segments: int) -> list[list[Piece]]:
  """Each piece, longest first, goes where it leaves the least room: few rows, if many short pieces
  may share one."""
  rows: list[list[Piece]] = []
  open_rows: list[tuple[int, int]] = []  # (places left, row), sorted
  for piece in pieces:
    i = bisect.bisect_left(open_rows, (piece.length, -1))
    if i == len(open_rows):
      left, row = seq_len, len(rows)
      rows.append([])
    else:
      left, row = open_rows.pop(i)
    rows[row].append(piece)
    if left > piece.length and len(rows[row]) < max_segments:
      bisect.insort(open_rows, (left - piece.length, row))
  return rows


def evenly(
  pieces: Sequence[Piece], seq_len: int, max_segments: int, spare: float
) -> list[list[Piece]]:
  """Each piece, longest first, goes to the emptiest of as many rows as all need, and `spare` more.

  Long and short pieces mix, so no row has many more than others: few rows with few segments each.
  """
  places = sum(p.length for p in pieces)
  count = max(math.ceil(places * (1 + spare) / seq_len), -(-len(pieces) // max_segments))
  rows: list[list[Piece]] = [[] for _ in range(count)]
  emptiest = [(-seq_len, row) for row in range(count)]  # (minus the places left, row), a heap
  for piece in pieces:
    if not emptiest or -emptiest[0][0] < piece.length:
      heapq.heappush(emptiest, (-seq_len, len(rows)))
      rows.append([])
    left, row = heapq.heappop(emptiest)
    rows[row].append(piece)
    if left + piece.length < 0 and len(rows[row]) < max_segments:
      heapq.heappush(emptiest, (left + piece.length, row))
  return rows


class Rows:
  """The endless row stream of one corpus; its position is `(epoch, window, row)`."""

  def __init__(self, corpus: Corpus, *, seq_len: int, window: int, max_segments: int, seed: int):
    self.corpus = corpus
    self._seq_len, self._window, self._max_segments = seq_len, window, max_segments
    self._key = f'{seed}/{corpus.name}'
    # Where each document's copies end among all copies.
    self._ends = None if corpus.repeats is None else np.cumsum(corpus.repeats, dtype=np.int64)
    self._size = len(corpus.lengths) if self._ends is None else int(self._ends[-1])
    self._num_windows = -(-self._size // window)
    self.position = (0, 0, 0)
    self._packed: tuple[tuple[int, int], list[list[Piece]]] = ((-1, -1), [])

  def _rows(self, epoch: int, window: int) -> list[list[Piece]]:
    if self._packed[0] != (epoch, window):
      index = np.arange(window * self._window, min((window + 1) * self._window, self._size))
      documents = permute(index, self._size, f'{self._key}/{epoch}'.encode())
      if self._ends is not None:
        documents = np.searchsorted(self._ends, documents, side='right')
      rows = pack(self.corpus.lengths[documents].tolist(), self._seq_len, self._max_segments)
      # Packing leaves rows of equally long documents side by side: shuffle them.
      key = f'{self._key}/{epoch}/{window}'.encode()
      order = permute(np.arange(len(rows)), max(1, len(rows)), key)
      rows = [[p._replace(document=int(documents[p.document])) for p in rows[i]] for i in order]
      self._packed = ((epoch, window), rows)
    return self._packed[1]

  def __next__(self) -> list[Piece]:
    epoch, window, row = self.position
    while row >= len(self._rows(epoch, window)):
      row, window = 0, window + 1
      if window == self._num_windows:
        epoch, window = epoch + 1, 0
    self.position = (epoch, window, row + 1)
    return self._rows(epoch, window)[row]


# --- Mixture and batches -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stage:
  """A span of steps `[start, stop)` with one mixture of corpora, weights by token."""

  name: str
  start: int
  stop: int
  mixture: Mapping[str, float]


def make_stages(stages: Sequence[Mapping], steps: int) -> list[Stage]:
  """Turns shares of the run into steps; mixtures are normalised.

  Raises:
    ValueError: fractions that do not sum to 1, or weights that are negative or all zero.
  """
  total = sum(s['fraction'] for s in stages)
  if abs(total - 1) > 1e-6:
    raise ValueError(f'train.stages: fractions sum to {total:g}, not 1')
  result, done = [], 0.0
  for s in stages:
    weights = {k: float(w) for k, w in s['mixture'].items()}
    if min(weights.values(), default=0) < 0 or sum(weights.values()) <= 0:
      raise ValueError(f'train.stages: mixture of {s["name"]!r} needs weights ≥ 0, one above 0')
    start, done = round(done * steps), done + s['fraction']
    weights = {k: w / sum(weights.values()) for k, w in weights.items() if w > 0}
    result.append(Stage(s['name'], start, round(done * steps), weights))
  return result


class Batches(grain.IterDataset):
  """Endless-by-epochs batches for the steps of `stages`, as a grain dataset (checkpointable).

  Each batch is a dict of numpy arrays, this process's rows of it:
    inputs, targets   [B, T] int32, 0 where there is no token
    segment_ids       [B, T] int32, pieces counted from 1; 0 = padding
    positions         [B, T] int32, from 0 in each piece
    source            [B] int32, index into `sources`
  and with `caches` what a teacher said of each place, see `teacher_cache.Cache`.

  Args:
    corpora: name → `Corpus`; all names in the mixtures must be there.
    caches: name → `teacher_cache.Cache`, of all corpora or of none.
    rows: rows in a global batch.
    max_segments: documents a row may hold; 0 = what `usual_segments` says of the corpora.
    local_rows: those that this process holds (`sharding.local_rows`); None = all.
  Raises:
    ValueError: a mixture names an unknown corpus.
  """

  def __init__(
    self,
    corpora: Mapping[str, Corpus],
    stages: Sequence[Stage],
    *,
    caches: Mapping[str, 'teacher_cache.Cache'] | None = None,
    rows: int,
    seq_len: int,
    window: int,
    max_segments: int,
    seed: int,
    local_rows: range | None = None,
  ):
    super().__init__()
    self.sources = sorted({name for s in stages for name in s.mixture})
    if unknown := [n for n in self.sources if n not in corpora]:
      raise ValueError(
        f'train.stages: no corpus named {", ".join(unknown)}; there are: {", ".join(corpora)}'
      )
    self.corpora = {n: corpora[n] for n in self.sources}
    self.caches = caches or {}
    if self.caches and (unknown := set(self.sources) - self.caches.keys()):
      raise ValueError(f'no teacher cache of the corpus {", ".join(sorted(unknown))}: write it '
                       'with experiments.teacher_cache')
    self.stages = stages
    self.rows, self.seq_len = rows, seq_len
    self.max_segments = max_segments or max(
      usual_segments(c.lengths, seq_len) for c in self.corpora.values())
    self.options = dict(seq_len=seq_len, window=window, max_segments=self.max_segments, seed=seed)
    self.local_rows = range(rows) if local_rows is None else local_rows

  def fingerprint(self, stop: float = math.inf) -> str:
    """Identifies the stream of batches; a checkpoint of another stream must not be continued.

    With a `stop`, only of the steps before it: runs that branch off there have them in common.
    """
    spans = [(s.start, min(s.stop, stop), s.mixture) for s in self.stages if s.start < stop]
    used = {name for *_, mixture in spans for name in mixture}
    what = [{n: self.corpora[n].digest for n in used}, spans, self.rows, self.options]
    if self.caches:
      what.append({n: self.caches[n].digest for n in used})
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

  def __iter__(self) -> '_BatchIterator':
    return _BatchIterator(self)

  def after(self, position: dict, batches: int) -> dict:
    """The position (an iterator's state) that leaves out so many batches without taking a step."""
    iterator = iter(self)
    for _ in range(batches):
      iterator.set_state(position)
      iterator.next_plan()
      position = {**iterator.get_state(), 'step': position['step']}
    return position

  def documents(self, position: dict, ahead: int) -> dict[str, list[str]]:
    """Corpus → ids of the documents of a global batch, the one `ahead` batches after `position`."""
    iterator = iter(self)
    iterator.set_state(position)
    for _ in range(ahead):
      iterator.next_plan()
    found: dict[str, set[int]] = {}
    for name, pieces in iterator.next_plan():
      found.setdefault(name, set()).update(p.document for p in pieces)
    return {name: self.corpora[name].ids(sorted(numbers)) for name, numbers in found.items()}


class _BatchIterator(grain.DatasetIterator):
  """State: the next step, tokens taken per corpus in its stage, and each corpus's position."""

  def __init__(self, batches: Batches):
    super().__init__()
    self._batches = batches
    self._streams = {n: Rows(c, **batches.options) for n, c in batches.corpora.items()}
    self._step = 0
    self._taken = dict.fromkeys(batches.sources, 0)

  def get_state(self) -> dict:
    return {
      'step': self._step,
      'taken': dict(self._taken),
      'positions': {n: list(s.position) for n, s in self._streams.items()},
    }

  def set_state(self, state: dict) -> None:
    self._step = state['step']
    for name in self._streams:  # a run that branched off may know others than the one before
      self._taken[name] = state['taken'].get(name, 0)
      self._streams[name].position = tuple(state['positions'].get(name, (0, 0, 0)))

  def next_plan(self) -> list[tuple[str, list[Piece]]]:
    """The next global batch as `[(corpus, pieces), …]`, one a row, without reading any token."""
    stage = next((s for s in self._batches.stages if s.start <= self._step < s.stop), None)
    if stage is None:
      raise StopIteration
    if self._step == stage.start:
      self._taken = dict.fromkeys(self._taken, 0)
    plan = []
    for _ in range(self._batches.rows):
      total = sum(self._taken.values())
      # The corpus furthest behind its share, counted in tokens; ties go to the heavier weight.
      name = max(
        stage.mixture,
        key=lambda n: (stage.mixture[n] * (total + 1) - self._taken[n], stage.mixture[n], n),
      )
      pieces = next(self._streams[name])
      self._taken[name] += sum(p.length for p in pieces)
      plan.append((name, pieces))
    self._step += 1
    return plan

  def __next__(self) -> dict[str, np.ndarray]:
    b = self._batches
    plan = self.next_plan()
    shape = (len(b.local_rows), b.seq_len)
    batch = {
      k: np.zeros(shape, np.int32) for k in ('inputs', 'targets', 'segment_ids', 'positions')
    }
    batch['source'] = np.zeros(shape[0], np.int32)
    if b.caches:
      batch |= b.caches[plan[0][0]].empty(shape)
    plan = plan[b.local_rows.start : b.local_rows.stop]
    # Each call starts threads of its own: one for a whole batch.
    read = {name: iter(corpus.records.__getitems__(_documents(plan, name)))
            for name, corpus in b.corpora.items()}
    said = {name: iter(cache.records.__getitems__(_documents(plan, name)))
            for name, cache in b.caches.items()}
    for i, (name, pieces) in enumerate(plan):
      corpus = b.corpora[name]
      batch['source'][i] = b.sources.index(name)
      at = 0
      for segment, piece in enumerate(pieces, 1):
        tokens = corpus.decode(next(read[name]))[piece.start : piece.start + piece.length + 1]
        span = slice(at, at + piece.length)
        batch['inputs'][i, span] = tokens[:-1]
        batch['targets'][i, span] = tokens[1:]
        batch['segment_ids'][i, span] = segment
        batch['positions'][i, span] = np.arange(piece.length)
        if said:
          places = int(corpus.lengths[piece.document]) - 1
          words = b.caches[name].read(next(said[name]), places, piece.start, piece.length)
          for key, x in words.items():
            batch[key][i, span] = x
        at += piece.length
    return batch


def _documents(plan: Sequence[tuple[str, Sequence[Piece]]], name: str) -> list[int]:
  return [p.document for of, pieces in plan if of == name for p in pieces]


def prefetch(
  batches: Batches, position: dict | None = None, size: int = 4
) -> grain.DatasetIterator:
  """An iterator over `batches`, from `position` on, that reads `size` ahead in a thread.

  Its state is that of an iterator that does not read ahead.
  """
  iterator = iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=size))
  if position is not None:
    iterator.set_state(position)
  return iterator
