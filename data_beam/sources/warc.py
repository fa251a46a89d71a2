"""Records of a WARC file, plain or compressed, and of what is damaged as little lost as can be.

A gzip member that does not inflate costs its record: reading goes on at the next member that begins
with one. A record whose Content-Length is missing, no number or not true costs itself: reading goes
on at the next line that begins a record. Each loss is a `Damage`.
"""

import io
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from data_beam.sources.files import Raw
from data_beam.sources.http_answer import HEAD_BYTES, HEAD_END, parse_headers

GZIP = b'\x1f\x8b'
_MEMBER = b'\x1f\x8b\x08'
_RECORD = re.compile(rb'WARC/[01]\.\d+\r?\n[A-Za-z-]+:')     # the line, and a header under it
_CHUNK = 64 << 10
_PROBE = 4 << 10            # bytes of a member by which it is told from chance
_REMEMBERED = 32 << 20      # compressed bytes of a member that are searched for the next
_BEGINNING = 1 << 20        # bytes of a damaged beginning that tell what the file is


class Record(NamedTuple):
  """One record as it stands."""

  offset: int               # byte of the file where it starts, or where its gzip member does
  headers: dict[str, str]   # names in lower case
  block: bytes              # what follows the headers, as much as was asked for
  length: int               # bytes of it that there should be
  clipped: bool = False     # the file ends inside it


class Damage(NamedTuple):
  """A record that was lost."""

  offset: int
  detail: str


class _Plain:
  """A stream of bytes as a single segment."""

  def __init__(self, stream: BinaryIO):
    self.read, self.broken, self.clipped = stream.read, '', False
    self.between: list[Damage] = []

  def segments(self) -> Iterator[int | None]:
    """Offsets of segments; None where the records' own are theirs."""
    yield None


class _Gzip:
  """A gzip file as one segment a member. `read` gives the plain bytes of the one reached."""

  def __init__(self, stream: BinaryIO, start: int = 0, end: int | None = None):
    self.stream, self.start, self.end = stream, start, end
    self.broken = ''        # why the member reached does not inflate
    self.clipped = False    # the file ends inside it
    self.between: list[Damage] = []     # bytes that are no member
    self._rest = b''        # compressed bytes that were read and not used
    self._at = start        # offset of the first of them
    self._member = bytearray()      # compressed bytes of the member so far, from `_kept_from` on
    self._kept_from = 0
    self._inflate = zlib.decompressobj(31)

  def segments(self) -> Iterator[int]:
    """Offsets of members, each once the one before is left; what stands between is passed over."""
    if self.start:
      self._seek()
    while self._more(len(_MEMBER)):
      if self.end is not None and self._at >= self.end:
        return
      if self._rest.startswith(GZIP):
        self._begin()
        yield self._at
        while self.read(_CHUNK):      # what its reader has left, such as the rest of a long record
          pass
        if self.broken:
          self._rest, self._at = bytes(self._member[1:]) + self._rest, self._kept_from + 1
          self._seek()
      else:
        if self._rest[:_PROBE].strip(b'\0'):
          self.between.append(Damage(self._at, 'no gzip member where one should begin'))
        self._seek()

  def _begin(self) -> None:
    self.broken, self.clipped = '', False
    self._inflate, self._member, self._kept_from = zlib.decompressobj(31), bytearray(), self._at

  def read(self, size: int) -> bytes:
    """Plain bytes of the member, b'' at its end, and where it is broken or clipped."""
    while not (self._inflate.eof or self.broken or self.clipped):
      if not self._more(1):
        self.clipped = True
        break
      used = self._rest
      self._member += used
      if len(self._member) > _REMEMBERED:
        gone = len(self._member) - _REMEMBERED // 2
        del self._member[:gone]
        self._kept_from += gone
      try:
        data = self._inflate.decompress(used, _CHUNK)
      except zlib.error as error:
        self.broken = str(error)
        self._at, self._rest = self._at + len(used), b''
        break
      self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
      self._at += len(used) - len(self._rest)
      if self._rest:
        del self._member[len(self._member) - len(self._rest):]
      if data:
        return data
    return b''

  def _more(self, size: int) -> bool:
    while len(self._rest) < size:
      data = self.stream.read(_CHUNK)
      if not data:
        return False
      self._rest += data
    return True

  def _seek(self) -> None:
    """Moves on to the next member that begins with a record."""
    while self._more(len(_MEMBER)):
      at = self._rest.find(_MEMBER)
      if at < 0:
        at = len(self._rest) - len(_MEMBER) + 1
        self._rest, self._at = self._rest[at:], self._at + at
        if not self._more(len(self._rest) + 1):
          break
        continue
      self._rest, self._at = self._rest[at:], self._at + at
      self._more(_PROBE)
      try:
        if zlib.decompressobj(31).decompress(self._rest[:_PROBE], 16).startswith(b'WARC/'):
          return
      except zlib.error:
        pass
      self._rest, self._at = self._rest[1:], self._at + 1
    self._rest = b''


class _Ahead:
  """Bytes of a segment, which can be looked at before they are taken."""

  def __init__(self, read: Callable[[int], bytes]):
    self.read, self.data, self.at = read, bytearray(), 0

  def fill(self, size: int) -> bool:
    """Whether there are so many."""
    while len(self.data) < size:
      more = self.read(max(_CHUNK, size - len(self.data)))
      if not more:
        return False
      self.data += more
    return True

  def skip(self, size: int) -> None:
    """Passes over bytes, as many as there are."""
    while size > len(self.data):
      size -= len(self.data)
      self.at += len(self.data)
      self.data.clear()
      if not self.fill(1):
        return
    del self.data[:size]
    self.at += size

  def seek_record(self) -> bool:
    """Moves on to where the next record begins; False if there is none."""
    while True:
      if found := _RECORD.search(self.data):
        self.skip(found.start())
        return True
      self.skip(max(0, len(self.data) - 256))
      if not self.fill(len(self.data) + 1):
        self.skip(len(self.data))
        return False


def records(
  stream: BinaryIO, limit: int, start: int = 0, end: int | None = None,
) -> Iterator[Record | Damage]:
  """Records of a file, plain, gzip, zstd or lz4, from where it stands, in its order.

  Args:
    stream: of the file's bytes.
    limit: bytes of a block that are read; of longer ones the rest is passed over.
    start: where the stream stands, in a gzip file, whose next member that begins with a record is
      looked for.
    end: of gzip, members that begin there or behind are not read: so [start, end) of a file gives
      what begins there. (A WARC file within a record could be taken for the file's own, if `start`
      falls into it.)
  """
  stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(Raw(stream))
  magic = stream.peek(4)[:4]
  if magic in (b'\x28\xb5\x2f\xfd', b'\x04\x22\x4d\x18'):
    yield from _of_fastwarc(stream, limit)
    return
  stream = io.BufferedReader(Raw(stream), _BEGINNING)
  beginning = stream.peek(1)
  packed = magic[:2] == GZIP or start or (_MEMBER in beginning and b'WARC/' not in beginning)
  source = _Gzip(stream, start, end) if packed else _Plain(stream)
  for offset in source.segments():
    yield from source.between
    source.between.clear()
    yield from _of_segment(source, offset, limit)
  yield from source.between


def _of_segment(
  source: _Gzip | _Plain, offset: int | None, limit: int,
) -> Iterator[Record | Damage]:
  ahead = _Ahead(source.read)
  found = False
  while True:
    while ahead.fill(1) and ahead.data[0] in b'\r\n \0':
      ahead.skip(len(ahead.data) - len(ahead.data.lstrip(b'\r\n \0')))
    place = ahead.at if offset is None else offset
    if not ahead.fill(1):
      if source.broken and not found:
        yield Damage(place, source.broken)
      return
    found = True
    head, trouble = None, 'no record where one should begin'
    if ahead.fill(5) and ahead.data.startswith(b'WARC/'):
      head, trouble = _head(ahead), 'its headers have no end'
      if not head:
        ahead.skip(1)     # so that another is looked for
    if head:
      headers, size = head
      ahead.skip(size)
      text = headers.get('content-length', '')
      if text.isascii() and text.isdigit() and len(text) < 16:
        record, trouble = _block(ahead, source, Record(place, headers, b'', int(text)), limit)
        if record:
          yield record
      else:
        trouble = f'its Content-Length is {text[:40]!r}'
    if trouble:
      yield Damage(place, source.broken or trouble)
      if not ahead.seek_record():
        return


def _head(ahead: _Ahead) -> tuple[dict[str, str], int] | None:
  """The headers of a record that begins here, and their bytes."""
  size = 1024
  while True:
    more = ahead.fill(size)
    if end := HEAD_END.search(ahead.data, 0, HEAD_BYTES):
      return parse_headers(bytes(memoryview(ahead.data)[:end.start()])), end.end()
    if not more or size >= HEAD_BYTES:
      return None
    size *= 4


def _block(
  ahead: _Ahead, source: _Gzip | _Plain, record: Record, limit: int,
) -> tuple[Record | None, str]:
  """The record with its block, or what is wrong with its length; moves behind it, or to where the
  next is looked for."""
  length, want = record.length, min(record.length, limit)
  whole = ahead.fill(want)
  record = record._replace(block=bytes(memoryview(ahead.data)[:want]))
  if whole and length > limit:
    ahead.skip(length)
    return record, ''
  if whole:
    ahead.fill(length + 16)      # so that a gzip member's checksum is looked at
    behind = bytes(ahead.data[length:length + 16]).lstrip(b'\r\n \0')[:5]
    # Two line breaks end it, whatever comes then.
    ends = b'WARC/'.startswith(behind) or ahead.data[length:].startswith(b'\r\n\r\n')
    if ends and not source.broken:
      ahead.skip(length)
      return record, ''
  if source.broken:
    return None, source.broken
  # Its end is not where it says: within the next record, or before its own.
  if inside := _RECORD.search(ahead.data, 0, length):
    ahead.skip(inside.start())
    return None, 'its Content-Length reaches into the next record'
  if whole:
    ahead.skip(max(0, length - 1))
    return None, 'its Content-Length ends before it does'
  ahead.skip(len(ahead.data))
  return record._replace(clipped=True), ''


def _of_fastwarc(stream: BinaryIO, limit: int) -> Iterator[Record | Damage]:
  """Records of zstd and lz4 files, whose frames' offsets FastWARC knows."""
  from fastwarc.warc import ArchiveIterator

  offset = 0
  try:
    for record in ArchiveIterator(stream, parse_http=False, strict_mode=False):
      offset, parts, left = record.stream_pos, [], limit
      while left > 0 and (part := record.reader.read(left)):
        parts.append(part)
        left -= len(part)
      length, block = record.content_length, b''.join(parts)
      yield Record(offset, {name.lower(): value for name, value in record.headers}, block, length,
                   len(block) < min(limit, length))
  except Exception as error:      # whatever it says about damaged bytes
    yield Damage(offset, f'{type(error).__name__}: {error}')
