"""What stands in several places: keys of 16 bytes, by the million, told in arrays.

One Beam element a key would cost more than all the rest. So a worker packs the keys of documents it
has at hand into a batch, of whose places each key has one, the first; that goes to the key's part,
which learns what other batches have and answers. A batch then tells its documents. A line that
stands in each of a million pages is one row a batch in its part, not a million.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import xxhash

from data_beam.dedup.components import at_the_end, by_part

OWNER = np.dtype('S28')     # what a document is called and ordered by
PLACE = np.dtype('S32')     # owner and number, which sort as places do
ROWS = 1 << 18              # keys that are packed together


class Keyed(NamedTuple):
  """What a document has: its `owner` (28 bytes), and at some `numbers` [n] a key each, KEY [n]."""

  owner: bytes
  numbers: np.ndarray
  keys: np.ndarray


class Repeats(beam.PTransform):
  """PCollection[Keyed] → PCollection[(owner, numbers)], of the places whose key is in another place
  too: all of them, or those `later` than the first one. Numbers are uint32, in no order, and may
  come in several elements. Documents of one owner count as places of their own, of equal order."""

  def __init__(self, parts: int, later: bool = False):
    """Sets up the stage: a worker holds one of `parts` of all keys at a time. They do not change
    the result."""
    super().__init__()
    self.parts, self.later = parts, later

  def expand(self, documents: Any) -> Any:
    """The places that repeat."""
    packed = documents | 'pack' >> beam.ParDo(_Pack(self.parts)).with_outputs('rows', main='firsts')
    answers = packed.firsts | 'by part' >> beam.GroupByKey() | 'compare' >> beam.FlatMap(_compare)
    return ((packed.rows, answers) | 'by batch' >> beam.CoGroupByKey()
            | 'tell' >> beam.FlatMap(_tell, self.later))


class _Rows(NamedTuple):
  """What a batch knows: its owners, sorted; of each row the key's number in the batch, and owner
  and number as one integer that sorts as places of the batch do."""

  owners: np.ndarray
  keys: np.ndarray
  places: np.ndarray


class _Firsts(NamedTuple):
  """What a batch says to a part: its keys there, their numbers in the batch, the first place of
  each, and whether there are more."""

  batch: bytes
  numbers: np.ndarray
  keys: np.ndarray
  places: np.ndarray
  several: np.ndarray


class _Pack(beam.DoFn):
  """Keyed → (part, _Firsts), and (batch, _Rows) as `rows`."""

  def __init__(self, parts: int):
    self.parts = parts

  def start_bundle(self):
    """Nothing at hand."""
    self.documents: list[Keyed] = []
    self.rows = 0

  def process(self, document: Keyed) -> Iterator[Any]:
    """A document's keys, put by."""
    if not len(document.keys):
      return
    self.documents.append(document)
    self.rows += len(document.keys)
    if self.rows >= ROWS:
      yield from self._batch()

  def finish_bundle(self) -> Any:
    """What is left."""
    return at_the_end(self._batch())

  def _batch(self) -> Iterator[Any]:
    documents = self.documents
    self.start_bundle()
    if not documents:
      return
    owners, ranks = np.unique(np.array([d.owner for d in documents], OWNER), return_inverse=True)
    places = np.repeat(ranks.astype(np.uint64) << np.uint64(32), [len(d.keys) for d in documents])
    places |= np.concatenate([d.numbers for d in documents]).astype(np.uint64)
    keys, index, counts = np.unique(
      np.concatenate([d.keys for d in documents]), return_inverse=True, return_counts=True)
    first = _least(index, places, len(keys))
    batch = xxhash.xxh3_128_digest(owners.tobytes() + places.tobytes() + keys.tobytes())
    yield beam.pvalue.TaggedOutput('rows', (batch, _Rows(owners, index.astype(np.uint32), places)))
    for part, chosen in by_part(keys, self.parts):
      yield part, _Firsts(batch, chosen.astype(np.uint32), keys[chosen],
                          _full(owners, first[chosen]), counts[chosen] > 1)


def _least(index: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
  """The smallest of the unsigned `values` with each index."""
  found = np.full(count, np.iinfo(values.dtype).max, values.dtype)
  np.minimum.at(found, index, values)
  return found


def _full(owners: np.ndarray, places: np.ndarray) -> np.ndarray:
  """PLACE of a batch's integers."""
  bytes_ = np.empty((len(places), PLACE.itemsize), np.uint8)
  bytes_[:, :28] = owners.view(np.uint8).reshape(-1, 28)[(places >> np.uint64(32)).astype(int)]
  bytes_[:, 28:] = places.astype('>u4').view(np.uint8).reshape(-1, 4)
  return bytes_.view(PLACE).ravel()


def _compare(group: tuple[int, Iterable[_Firsts]]) -> Iterator[tuple[bytes, Any]]:
  """To each batch (numbers of its keys that repeat, whether its place is the first of all)."""
  messages = list(group[1])
  keys, index, counts = np.unique(
    np.concatenate([m.keys for m in messages]), return_inverse=True, return_counts=True)
  again = counts > 1
  again[index[np.concatenate([m.several for m in messages])]] = True
  rows = np.flatnonzero(again[index])
  all_places = np.concatenate([m.places for m in messages])
  order = np.unique(all_places[rows], return_inverse=True)[1].astype(np.uint64)
  first = order == _least(index[rows], order, len(keys))[index[rows]]
  numbers = np.concatenate([m.numbers for m in messages])[rows]
  ends = np.searchsorted(rows, np.cumsum([len(m.keys) for m in messages]))
  for message, a, b in zip(messages, [0, *ends[:-1]], ends, strict=True):
    if a < b:
      yield message.batch, (numbers[a:b], first[a:b])


def _tell(
  group: tuple[bytes, tuple[Iterable[_Rows], Iterable[Any]]], later: bool,
) -> Iterator[tuple[bytes, np.ndarray]]:
  """(owner, numbers) of a batch's documents, from the answers to it."""
  _, (batches, answers) = group
  answers = list(answers)
  if not answers:
    return
  for owners, keys, places in batches:
    count = int(keys.max()) + 1
    again, ours = np.zeros(count, bool), np.zeros(count, bool)
    for numbers, first in answers:
      again[numbers] = True
      ours[numbers] = first
    found = again[keys]
    if later:
      found &= ~(ours[keys] & (places == _least(keys, places, count)[keys]))
    chosen = np.sort(places[found])
    whose, starts = np.unique(chosen >> np.uint64(32), return_index=True)
    names = owners.tobytes()
    for owner, numbers in zip(whose.tolist(), np.split(chosen.astype(np.uint32), starts[1:]),
                              strict=True):
      yield names[28 * owner:28 * owner + 28], numbers
