"""Readers of raw crawl files: which files, which records, and their payload bytes.

`expand` turns patterns into files (local, gs://, s3:// through Beam, other schemes through fsspec);
`read_warc` walks one WARC file and yields what it holds as `Page`s (bytes and provenance, nothing
parsed), and a `Reject` for whatever it had to leave. A WARC is hostile input: payloads are capped
in bytes and in decompression ratio, and a broken file yields all that stood before the break.
"""

import dataclasses
import hashlib
import io
import os
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import BinaryIO

import fsspec
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from fastwarc.stream_io import BrotliReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.parse.encoding import detect_mime

from data_beam.records import Document, Reject

HTML_TYPES = frozenset({'text/html', 'application/xhtml+xml'})
# Types under which servers send PDFs (the list of the FinePDFs pipeline).
PDF_TYPES = frozenset({
  'application/pdf', 'application/x-pdf', 'application/acrobat', 'applications/vnd.pdf', 'text/pdf',
})

# Common Crawl cuts payloads at 1 MiB (5 MiB since 2025), so a page beyond 8 MiB is not a page.
MAX_PAGE_BYTES = 8 << 20
# HTML deflates about five times; deflate's own limit is 1032. Only payloads above 1 MiB are judged.
MAX_RATIO = 200
RATIO_FLOOR = 1 << 20

# Declared types that say nothing, so that the bytes decide.
VAGUE_TYPES = frozenset({
  '', 'application/octet-stream', 'binary/octet-stream', 'application/download',
  'application/force-download', 'application/x-download', 'unknown/unknown', 'text/plain',
})
CHUNK_SIZE = re.compile(rb'[0-9a-fA-F]{1,8}')
LOOKS_LIKE_HTML = re.compile(rb'<(?:!doctype\s+html|html|head|body|title|meta|div|table|p)\b', re.I)


@dataclasses.dataclass
class Page:
  """One captured payload, as the crawler stored it (content and transfer encodings undone)."""

  id: str             # WARC-Record-ID; sha256 of url and date where a record has none
  url: str
  date: str           # WARC-Date, ISO 8601
  warc_file: str      # base name, so that a corpus does not depend on where its input lay
  warc_offset: int    # byte where the record (for gzip: its member) starts
  content_type: str   # HTTP Content-Type, parameters included; of the record itself for conversions
  body: bytes
  truncated: str = '' # why the payload is incomplete: WARC-Truncated's word, or 'clipped'


class PayloadError(ValueError):
  """A payload that must not or cannot be decoded. `reason` is one word for the funnel."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.detail = reason, detail


def expand(patterns: Sequence[str]) -> list[dict]:
  """Files that match the patterns: `[{'path': …, 'bytes': …}]`, sorted by path, each file once.

  Raises FileNotFoundError naming the first pattern without a match, ValueError for a scheme that
  cannot be opened here.
  """
  if isinstance(patterns, str):
    patterns = [patterns]
  if not patterns:
    raise ValueError('no input: give at least one file or pattern, such as crawl/*.warc.gz')
  files = {}
  for pattern in patterns:
    if os.path.isdir(pattern):
      raise ValueError(f'{pattern} is a directory: give a pattern, such as {pattern.rstrip("/")}/*')
    found = _match(pattern)
    if not found:
      raise FileNotFoundError(f'no file matches {pattern}')
    files.update(found)
  return [{'path': path, 'bytes': size} for path, size in sorted(files.items())]


def _match(pattern: str) -> dict[str, int]:
  if _beam_knows(pattern):
    return {m.path: m.size_in_bytes for m in FileSystems.match([pattern])[0].metadata_list}
  try:
    fs, path = fsspec.url_to_fs(pattern)
    names = fs.glob(path) if any(c in path for c in '*?[') else [path] * fs.exists(path)
    return {fs.unstrip_protocol(name): fs.size(name) or 0 for name in names}
  except (ImportError, ValueError) as error:
    raise ValueError(f'cannot open {pattern}: {error}') from error


def _beam_knows(path: str) -> bool:
  try:
    FileSystems.get_filesystem(path)
    return True
  except ValueError:
    return False


def open_file(path: str) -> BinaryIO:
  """Opens a file of any scheme `expand` understands, for reading raw bytes (nothing inflated)."""
  if os.path.exists(path):
    return open(path, 'rb')
  if _beam_knows(path):
    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
  return fsspec.open(path, 'rb').open()


def read_warc(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of one WARC file (plain, gzip, zstd or lz4), in file order.

  Keeps `response` records whose payload is of one of `types` (by the crawler's own verdict
  WARC-Identified-Payload-Type, else by the HTTP header, else by the bytes), and `conversion`
  records (extracted plain text) if HTML is wanted. Records of other types are not documents and are
  passed over in silence. What should have been a page but is not becomes a Reject of stage 'read':
  reasons http_status, empty, too_large, ratio, bad_encoding, bad_record. So does the file itself,
  once, if it breaks off (corrupt_file: the error is in the metadata; clipped_file: it ends inside a
  record, whose page is kept, marked truncated).
  """
  name = os.path.basename(path)
  offset, number = 0, 0
  with open_file(path) as stream:
    try:
      records = iter(ArchiveIterator(
        stream, record_types=WarcRecordType.response | WarcRecordType.conversion,
        parse_http=True, auto_decode='none', strict_mode=False))
      while (record := next(records, None)) is not None:
        offset, number = record.stream_pos, number + 1
        page = _read_record(record, name, types, max_bytes)
        if page is None:
          continue
        yield page
        if isinstance(page, Page) and page.truncated == 'clipped':
          yield _reject_file(name, offset, number, 'clipped_file', 'the file ends inside a record')
    # Whatever the parser says about damaged bytes, the records before them stand.
    except Exception as error:
      yield _reject_file(name, offset, number, 'corrupt_file', f'{type(error).__name__}: {error}')


def _read_record(
  record: WarcRecord, name: str, types: Collection[str], max_bytes: int,
) -> Page | Reject | None:
  headers = record.headers
  http = record.http_headers if record.is_http_parsed else None
  content_type = (http.get('Content-Type') if http else headers.get('Content-Type')) or ''
  url = (headers.get('WARC-Target-URI') or '').strip('<>')
  date = headers.get('WARC-Date') or ''
  page = Page(
    id=headers.get('WARC-Record-ID') or hashlib.sha256(f'{url} {date}'.encode()).hexdigest(),
    url=url, date=date, warc_file=name, warc_offset=record.stream_pos, content_type=content_type,
    body=b'', truncated=headers.get('WARC-Truncated') or '')

  declared = headers.get('WARC-Identified-Payload-Type') or content_type
  declared = declared.partition(';')[0].strip().lower()
  conversion = record.record_type == WarcRecordType.conversion
  if conversion and 'text/html' not in types:
    return None
  vague = declared in VAGUE_TYPES or url.partition('?')[0].lower().endswith('.pdf')
  if not conversion and declared not in types and not vague:
    return None

  try:
    length = record.content_length
    raw = _read_up_to(record.reader, max_bytes + 1)
    if len(raw) < min(length, max_bytes):
      page.truncated = 'clipped'
    if len(raw) > max_bytes:
      raise PayloadError('too_large', f'{length} bytes, at most {max_bytes} are read')
    page.body = decode_payload(raw, http, max_bytes) if http else raw
    if not conversion and declared not in types and sniff(page.body) not in types:
      return None
    if http and http.status_code not in (200, None):
      raise PayloadError('http_status', str(http.status_code))
    if not page.body.strip():
      raise PayloadError('empty')
  except PayloadError as error:
    return reject_page(page, error.reason, error.detail)
  except (ValueError, LookupError) as error:   # a record whose own headers do not parse
    return reject_page(page, 'bad_record', str(error))
  return page


def decode_payload(raw: bytes, headers, max_bytes: int) -> bytes:
  """Undoes Transfer-Encoding and Content-Encoding. Raises PayloadError: too_large, ratio,
  bad_encoding. Crawlers often store a decoded body under its original headers; then the bytes win.
  """
  body = raw
  if 'chunked' in (headers.get('Transfer-Encoding') or '').lower():
    body = dechunk(body)
  for coding in reversed((headers.get('Content-Encoding') or '').lower().split(',')):
    body = _inflate(body, coding.strip(), max_bytes)
    if len(body) > max_bytes:
      raise PayloadError('too_large', f'more than {max_bytes} bytes once inflated')
    if len(body) > max(RATIO_FLOOR, MAX_RATIO * len(raw)):
      raise PayloadError('ratio', f'{len(raw)} bytes inflate to {len(body)}')
  return body


def dechunk(body: bytes) -> bytes:
  """Joins HTTP/1.1 chunks; keeps what stands before a break; returns what is not chunked as is."""
  parts, at = [], 0
  while (end := body.find(b'\n', at, at + 64)) >= 0:
    size = body[at:end].partition(b';')[0].strip()
    if not size and at:        # the line break that ends the chunk before
      at = end + 1
      continue
    if not CHUNK_SIZE.fullmatch(size) or int(size, 16) == 0:
      break
    at = end + 1 + int(size, 16)
    parts.append(body[end + 1:at])
  return b''.join(parts) if parts else body


def _inflate(body: bytes, coding: str, max_bytes: int) -> bytes:
  """One content coding undone, at most max_bytes + 1 bytes; a cut stream gives what it holds."""
  try:
    if coding in ('gzip', 'x-gzip', 'deflate'):
      try:
        return zlib.decompressobj(47).decompress(body, max_bytes + 1)   # a gzip or zlib header
      except zlib.error:
        return zlib.decompressobj(-15).decompress(body, max_bytes + 1)  # bare deflate
    if coding == 'br':
      return _read_up_to(BrotliReader(io.BytesIO(body)), max_bytes + 1)
    if coding == 'zstd':
      return _read_up_to(ZstdReader(io.BytesIO(body)), max_bytes + 1)
  except (OSError, zlib.error) as error:
    if LOOKS_LIKE_HTML.search(body, 0, 1024) or body.startswith(b'%PDF-'):
      return body     # stored decoded
    raise PayloadError('bad_encoding', f'{coding}: {error}') from error
  return body         # identity, or a name nobody knows: the bytes as they are


def _read_up_to(reader, size: int) -> bytes:
  """`size` bytes or all there are; a single `read` of a stream may give fewer."""
  parts = []
  while size > 0 and (part := reader.read(size)):
    parts.append(part)
    size -= len(part)
  return b''.join(parts)


def sniff(body: bytes) -> str:
  """MIME type by the first bytes: application/pdf, text/html, or what resiliparse finds."""
  if b'%PDF-' in body[:1024]:
    return 'application/pdf'
  if LOOKS_LIKE_HTML.search(body, 0, 1024):
    return 'text/html'
  return detect_mime(body[:4096])


def reject_page(page: Page, reason: str, detail: str = '', *, stage: str = 'read') -> Reject:
  """The Reject of a page that never became a document: provenance, no text."""
  metadata = {'warc_file': page.warc_file, 'warc_offset': page.warc_offset}
  if detail:
    metadata['error'] = detail[:200]
  document = Document(id=page.id, text='', url=page.url, source='web', date=page.date,
                      metadata=metadata)
  return Reject(document, stage, reason)


def _reject_file(name: str, offset: int, number: int, reason: str, detail: str) -> Reject:
  metadata = {'warc_file': name, 'warc_offset': offset, 'record': number, 'error': detail[:200]}
  return Reject(Document(id=f'{name}#{offset}', text='', source='web', metadata=metadata),
                'read', reason)
