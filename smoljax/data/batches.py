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

A conversation is one piece, and `loss_mask` says which of its targets are learned (`learned`).
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from smoljax import files
from smoljax.data import chat, packing
from smoljax.data import corpus as corpus_lib
from smoljax.data.corpus import Corpus, Piece
from smoljax.data.packing import Rows

if TYPE_CHECKING:
  from smoljax.data import teacher_cache


@dataclasses.dataclass(frozen=True)
class Stage:
  """A span of steps `[start, stop)` with one mixture of corpora, weights by token."""

  name: str
  start: int
  stop: int
  mixture: Mapping[str, float]


def make_stages(
  stages: Sequence[Mapping], steps: int, corpora: Mapping[str, Corpus] | None = None
) -> list[Stage]:
  """Turns shares of the run into steps; mixtures are normalised.

  Weights of a stage with `shares` are of the corpora: each is gone through in proportion to its
  weight, however large it is. That needs `corpora`, without which they stay as they are.

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
    if s.get('shares') and corpora:
      weights = {k: w * float(corpora[k].lengths.sum(dtype=np.int64)) if k in corpora else w
                 for k, w in weights.items()}
    start, done = round(done * steps), done + s['fraction']
    weights = {k: w / sum(weights.values()) for k, w in weights.items() if w > 0}
    result.append(Stage(s['name'], start, round(done * steps), weights))
  return result


def check_epochs(
  stages: Sequence[Stage], tokens: float, corpora: Mapping[str, Corpus], most: float
) -> None:
  """Raises ValueError where a run of so many tokens would go through a corpus more than `most`
  times."""
  steps = max(s.stop for s in stages)
  for name, corpus in corpora.items():
    size = float(corpus.lengths.sum(dtype=np.int64))
    wanted = sum(s.mixture.get(name, 0.0) * (s.stop - s.start) for s in stages) * tokens / steps
    if wanted > most * size:
      raise ValueError(
        f'{wanted:,.0f} tokens of {name!r}, which has {size:,.0f}, are more than train.max_epochs='
        f'{most:g}: give it more text or a smaller weight, train on fewer tokens, or allow repeats')


def learned(batch: Mapping[str, Any]) -> Any:
  """The mask of a batch's places whose targets are learned, [B, T] bool: not padding, and of
  conversations what the assistant writes. For arrays of numpy and of jax."""
  mask_BT = batch['segment_ids'] > 0
  return mask_BT & batch['loss_mask'] if 'loss_mask' in batch else mask_BT


class Batches(grain.IterDataset):
  """Endless-by-epochs batches for the steps of `stages`, as a grain dataset (checkpointable).

  Each batch is a dict of numpy arrays, this process's rows of it:
    inputs, targets   [B, T] int32, 0 where there is no token
    segment_ids       [B, T] int32, pieces counted from 1; 0 = padding
    positions         [B, T] int32, from 0 in each piece
    source            [B] int32, index into `sources`
  where a corpus is of conversations
    loss_mask         [B, T] bool, targets that are learned
    mode              [B, T] int32, of conversations 1 + the index of their mode in chat.MODES
    ends              [B, T] bool, learned targets that end a turn
  and with `caches` what a teacher said of each place, see `teacher_cache.Cache`; with `reference`
    reference         [B, T] float32, at the first place of each answer of a pair what it says

  Attributes:
    reference: None, or corpus → float32 [pairs, 2]: a number of each answer of its pairs.

  Args:
    corpora: name → `Corpus`; all names in the mixtures must be there.
    caches: name → `teacher_cache.Cache`, of all corpora or of none.
    pairs: of preference pairs: of pair k (from 0) in a row, segment 2k + 1 is prompt and chosen
      answer, 2k + 2 prompt and rejected answer.
    rows: rows in a global batch.
    max_segments: documents a row may hold; 0 = what `usual_segments` says of the corpora.
    local_rows: those that this process holds (`sharding.local_rows`); None = all.
    across: the documents of a row are one segment, and attention reads across them.
  Raises:
    ValueError: a mixture names an unknown corpus, or with `pairs` one that is not of pairs.
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
    pairs: bool = False,
    across: bool = False,
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
      packing.usual_segments(
        np.minimum(c.pair_lengths if pairs else c.lengths, c.longest(seq_len)), seq_len)
      for c in self.corpora.values()) * (2 if pairs else 1)
    self.has_mask = any(c.has_mask for c in self.corpora.values())
    self.options = dict(seq_len=seq_len, window=window, max_segments=self.max_segments, seed=seed)
    if pairs:
      self.options['pairs'] = True
    self.across = across
    self.local_rows = range(rows) if local_rows is None else local_rows
    self.reference: Mapping[str, np.ndarray] | None = None

  def fingerprint(self, stop: float = math.inf) -> str:
    """Identifies the stream of batches; a checkpoint of another stream must not be continued.

    With a `stop`, only of the steps before it: runs that branch off there have them in common.
    """
    spans = [(s.start, min(s.stop, stop), s.mixture) for s in self.stages if s.start < stop]
    used = {name for *_, mixture in spans for name in mixture}
    what = [{n: self.corpora[n].digest for n in used}, spans, self.rows, self.options]
    if self.across:
      what.append('across')
    if self.caches:
      what.append({n: self.caches[n].digest for n in used})
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

  def __iter__(self) -> '_BatchIterator':
    return _BatchIterator(self)

  def epochs(self, position: dict) -> dict[str, float]:
    """How often each corpus was gone through up to a position (an iterator's state)."""
    return {name: rows.epochs(position['positions'][name]) for name, rows in self._rows.items()}

  @functools.cached_property
  def _rows(self) -> dict[str, Rows]:
    return {name: Rows(c, **self.options) for name, c in self.corpora.items()}

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
    batch: dict[str, np.ndarray] = {
      k: np.zeros(shape, np.int32) for k in ('inputs', 'targets', 'segment_ids', 'positions')
    }
    batch['source'] = np.zeros(shape[0], np.int32)
    if b.has_mask:
      batch |= {k: np.zeros(shape, bool) for k in ('loss_mask', 'ends')}
      batch['mode'] = np.zeros(shape, np.int32)
    if b.caches:
      batch |= b.caches[plan[0][0]].empty(shape)
    if b.reference:
      batch['reference'] = np.zeros(shape, np.float32)
    plan = plan[b.local_rows.start : b.local_rows.stop]
    # Each call starts threads of its own: one for a whole batch.
    def rows(records: Any, name: str) -> Iterator[Mapping]:
      wanted = corpus_lib.decode_documents(plan, name)
      return iter(files.retried(lambda: records.__getitems__(wanted)))

    read = {name: rows(corpus.records, name) for name, corpus in b.corpora.items()}
    teacher_rows = {name: rows(cache.records, name) for name, cache in b.caches.items()}
    for i, (name, pieces) in enumerate(plan):
      corpus = b.corpora[name]
      batch['source'][i] = b.sources.index(name)
      at, segment, span = 0, 0, slice(0)
      for piece in pieces:
        record = next(read[name])
        parts = (record, corpus.rejected(record)) if b.options.get('pairs') else (record,)
        for which, part in enumerate(parts):
          tokens = corpus.decode(part)[piece.start : piece.start + piece.length + 1]
          span, segment = slice(at, at + len(tokens) - 1), segment + 1
          batch['inputs'][i, span] = tokens[:-1]
          batch['targets'][i, span] = tokens[1:]
          batch['segment_ids'][i, span] = segment
          batch['positions'][i, span] = np.arange(len(tokens) - 1)
          if b.has_mask:
            mask = corpus.mask(part)[piece.start + 1 :][: len(tokens) - 1]
            batch['loss_mask'][i, span] = mask
            if corpus.has_mask:
              batch['mode'][i, span] = 1 + chat.MODES.index(corpus_lib.word(record['mode']))
              batch['ends'][i, span] = mask & (tokens[1:] == corpus.manifest['end_id'])
          if b.reference:
            batch['reference'][i, at] = b.reference[name][piece.document, which]
          at = span.stop
        if b.across:
          batch['segment_ids'][i, :at], batch['positions'][i, :at] = 1, np.arange(at)
        if teacher_rows:
          places = int(corpus.lengths[piece.document]) - 1
          words = b.caches[name].read(next(teacher_rows[name]), places, piece.start, piece.length)
          for key, x in words.items():
            batch[key][i, at - piece.length : at] = x
    return batch


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
