"""Documents into rows: shuffled windows, packed independently, best fit.

A document longer than a row is cut into pieces. A conversation is not: what of it does not fit is
left out from the end of a turn on, since without its system turn and question an answer teaches
what nobody asked for; only a first answer that is longer than a row ends in its midst, and any turn
where all of them are learned. The two answers of a preference pair lie in one row, each behind the
prompt; a pair that does not fit is left out.
"""

import bisect
import functools
import hashlib
import heapq
import math
from collections.abc import Sequence

import numpy as np

from smoljax import files
from smoljax.data.corpus import Corpus, Piece

_SAMPLE = 1024  # documents that `usual_segments` looks at


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
  candidates = [best_fit(remainders, seq_len, max_segments)]
  candidates += [evenly(remainders, seq_len, max_segments, spare) for spare in (0.0, 0.02)]
  return rows + min(candidates, key=len)


def cut(lengths: np.ndarray, seq_len: int) -> np.ndarray:
  """How many rows a document of so many tokens fills alone; what is left fits into one."""
  return np.maximum(0, lengths - 2) // seq_len


def usual_segments(lengths: np.ndarray, seq_len: int) -> int:
  """Documents a row must be able to hold so that `pack` takes next to no rows more for it.

  The fewest with which a sample takes at most .5 % more than with plenty: attention's kernels take
  time for each that a row may hold (smoljax/model/attention/cudnn.py).
  """
  some = lengths[:: math.ceil(len(lengths) / _SAMPLE)] if len(lengths) else lengths
  rest = some - 1 - cut(some, seq_len) * seq_len
  rest = rest[rest > 0]
  mean = len(rest) * seq_len / max(1, rest.sum())
  plenty = max(8, math.ceil(1.15 * mean) + 1)
  rows = lambda most: len(pack(some.tolist(), seq_len, most))
  most = 1.005 * rows(plenty)
  return next(n for n in range(max(1, math.ceil(mean)), plenty + 1) if rows(n) <= most)


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


def fitting(corpus: Corpus, document: int, seq_len: int) -> int:
  """How many tokens of a conversation that is longer than a row go into it: up to the end of the
  last turn to learn that fits, or as many as fit of the first one, or where all turns are learned;
  0 if nothing to learn does."""
  record = files.retried(lambda: corpus.records[document])
  tokens = corpus.decode(record)[:seq_len + 2]
  mask = corpus.mask(record)[:seq_len + 2]
  if mask.all():  # an end may be a question's, and each token teaches
    return seq_len + 1
  goes_on = mask[1:] & (tokens[1:] != corpus.manifest['turn_id'])
  ends = np.flatnonzero(mask[:-1] & ~goes_on) + 1
  if len(ends):
    return int(ends[-1])
  return seq_len + 1 if mask[1:seq_len + 1].any() else 0


class Rows:
  """The endless row stream of one corpus; its position is `(epoch, window, row)`.

  With `pairs` its pieces are of preference pairs: both answers, two segments, as one piece.
  """

  def __init__(
    self, corpus: Corpus, *, seq_len: int, window: int, max_segments: int, seed: int,
    pairs: bool = False,
  ):
    self.corpus, self._pairs = corpus, pairs
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
      rows = pack(self._lengths(documents).tolist(), self._seq_len,
                  max(1, self._max_segments // 2) if self._pairs else self._max_segments)
      # Packing leaves rows of equally long documents side by side: shuffle them.
      key = f'{self._key}/{epoch}/{window}'.encode()
      order = permute(np.arange(len(rows)), max(1, len(rows)), key)
      rows = [[p._replace(document=int(documents[p.document])) for p in rows[i]] for i in order]
      self._packed = ((epoch, window), rows)
    return self._packed[1]

  def _lengths(self, documents: np.ndarray) -> np.ndarray:
    """Tokens of documents; of conversations those that go into a row."""
    lengths = (self.corpus.pair_lengths if self._pairs else self.corpus.lengths)[documents]
    if self._pairs:
      lengths[lengths > self._seq_len + 1] = 0
    elif self.corpus.has_mask:
      for i in np.flatnonzero(lengths > self._seq_len + 1):
        lengths[i] = fitting(self.corpus, int(documents[i]), self._seq_len)
    return lengths

  def __next__(self) -> list[Piece]:
    epoch, window, row = self.position
    begun = epoch, window
    while row >= len(self._rows(epoch, window)):
      if (epoch, window) == (begun[0] + 2, begun[1]):  # an epoch among them, whatever its order
        raise ValueError(
          f'{self.corpus.name}: none of its {self._size:,} documents has anything to learn that '
          f'fits into a row of {self._seq_len} tokens: give longer rows (--config.data.seq_len), '
          'or conversations with a shorter system text')
      row, window = 0, window + 1
      if window == self._num_windows:
        epoch, window = epoch + 1, 0
    self.position = (epoch, window, row + 1)
    return self._rows(epoch, window)[row]

  def epochs(self, position: Sequence[int]) -> float:
    """How often the corpus was gone through up to a position; within a window, about."""
    epoch, window, row = position
    documents = (window + min(1.0, row / self._usual_rows)) * self._window
    return epoch + min(1.0, documents / self._size)

  @functools.cached_property
  def _usual_rows(self) -> float:
    """Rows of a whole window, by the first one: as full as rows of such documents become."""
    return max(1.0, len(self._rows(0, 0)) * self._window / min(self._window, self._size))
