"""Records of a corpus by id or number, without reading the others."""

import contextlib
import os
from typing import Any

from array_record.python import array_record_module as array_record

from data_beam import records


class Finder:
  """Records of a finished corpus by their id or number, without reading the others.

  An id's shard is its hash and a shard is sorted by id, so that a search reads about log2(n)
  records of one shard. (A shard that is not local is copied once.)
  """

  def __init__(self, path: str, split: str = 'train'):
    """Opens the corpus; raises CorpusError as read_corpus does."""
    self.manifest = records.read_manifest(path)
    self.shards = records.list_shards(self.manifest, split)
    self._files = contextlib.ExitStack()
    self._readers: dict[int, Any] = {}

  def __enter__(self) -> 'Finder':
    return self

  def __exit__(self, *_) -> None:
    for reader in self._readers.values():
      reader.close()
    self._files.close()

  def find(self, id: str) -> list[tuple[int, dict[str, Any]]]:
    """(number in the corpus, record) of all records with this id; a record may occur twice."""
    if not self.shards:
      return []
    shard = records.stable_hash(id) % len(self.shards)
    low, high = 0, self.shards[shard][1]
    while low < high:
      middle = (low + high) // 2
      if self._read(shard, middle)['id'] < id:
        low = middle + 1
      else:
        high = middle
    before, found = sum(n for _, n in self.shards[:shard]), []
    while low < self.shards[shard][1] and (row := self._read(shard, low))['id'] == id:
      found.append((before + low, row))
      low += 1
    return found

  def read(self, number: int) -> dict[str, Any]:
    """The record with this number, counted over all shards."""
    for shard, (_, size) in enumerate(self.shards):
      if number < size:
        return self._read(shard, number)
      number -= size
    raise IndexError(f'the corpus at {self.manifest["path"]!r} has no such record')

  def place(self, number: int) -> tuple[str, int]:
    """(shard's file, place in it) of a record number."""
    for path, size in self.shards:
      if number < size:
        return os.path.basename(path), number
      number -= size
    raise IndexError(f'the corpus at {self.manifest["path"]!r} has no such record')

  def _read(self, shard: int, place: int) -> dict[str, Any]:
    if shard not in self._readers:
      path, size = self.shards[shard]
      reader = array_record.ArrayRecordReader(self._files.enter_context(records.local_copy(path)))
      if not reader.ok() or reader.num_records() != size:
        raise records.CorpusError(f'{path} is missing or damaged, make the corpus again')
      self._readers[shard] = reader
    return records.decode(
      records.features_of(self.manifest), self._readers[shard].read([place])[0])
