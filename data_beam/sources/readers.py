"""Readers of raw crawl files: which records, and their payload bytes.

`read` walks one file (WARC, WET, ARC, HTML, JSON Lines, or an index of ranges in WARC files) and
yields what it holds as `Page`s (bytes and provenance, nothing parsed), and a `Reject` for whatever
it had to leave. Such a file is hostile input: payloads are capped in bytes and in decompression
ratio, and a broken file yields all that stood before the break.
"""

import dataclasses
import hashlib
import http.client
import io
import itertools
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from data_beam.records import Document, Reject
from data_beam.redact import without_query
from data_beam.sources import common_crawl, warc
from data_beam.sources.files import (
  base_name,
  decompressed,
  lines,
  open_file,
  over_https,
  parse_json,
  patiently,
  read_range,
  reject_file,
)
from data_beam.sources.http_answer import HEAD_BYTES, WISHES, Answer, http_answer, mime

HTML_TYPES = frozenset({'text/html', 'application/xhtml+xml', 'application/vnd.wap.xhtml+xml'})
# Types under which servers send PDFs (the list of the FinePDFs pipeline).
PDF_TYPES = frozenset({
  'application/pdf', 'application/x-pdf', 'application/acrobat', 'applications/vnd.pdf', 'text/pdf',
})

# Common Crawl cuts payloads at 1 MiB (5 MiB since 2025), so a page beyond 8 MiB is not a page.
MAX_PAGE_BYTES = 8 << 20
# HTML deflates about five times; deflate's own limit is 1032. Only payloads above 1 MiB are judged.
MAX_RATIO = 200
RATIO_FLOOR = 1 << 20
GZIP, MAX_MEMBERS = b'\x1f\x8b\x08', 64      # of one payload

SPAN_BYTES, MAX_SPAN_BYTES = 1 << 20, 32 << 20      # of a file that is read in parts
RANGE_SLACK = 1 << 20    # of a record's bytes in a file, beyond the page it holds

# Declared types that say nothing, so that the bytes decide.
VAGUE_TYPES = frozenset({
  '', 'application/octet-stream', 'binary/octet-stream', 'application/download',
  'application/force-download', 'application/x-download', 'unknown/unknown', 'text/plain',
})
COMPRESSED = re.compile(r'\.(gz|zst|lz4)(\.open)?$', re.I)
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
  etag: str = ''      # of the server's answer, and its Last-Modified: to ask whether it has changed
  modified: str = ''
  dump: str = ''      # the crawl that it is of, where an index or a row says it
  declared: int = 0   # bytes that the server said it would send, 0 if it did not, or compressed
  # Of the server's answer, what its owner wishes (http_answer.WISHES); and what stages have found
  # out, for the document's metadata.
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class PayloadError(ValueError):
  """A payload that must not or cannot be decoded. `reason` is one word for the funnel."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.detail = reason, detail


class Span(NamedTuple):
  """Of a gzipped WARC file, the records that begin at bytes [start, end)."""

  path: str
  start: int
  end: int


def split_all(files: Sequence[Mapping[str, Any]]) -> list[str | Span]:
  """Files from `expand` in some hundred parts, if they are large enough: so much is lost by a
  worker that dies."""
  span = max(SPAN_BYTES, min(MAX_SPAN_BYTES, sum(file['bytes'] for file in files) // 256))
  return [part for file in files for part in split(file['path'], file['bytes'], span)]


def split(path: str, size: int, span: int) -> list[str | Span]:
  """A file of so many bytes as parts that can be read apart: a WARC file of gzip members in spans
  of about `span` bytes, any other as it is (a stream that begins at its start, over https, is read
  once)."""
  cuts = [*range(0, size - span // 2, span), size]
  if (len(cuts) < 3 or kind(path) in READERS or not without_query(path).lower().endswith('.gz')
      or over_https(path)):
    return [path]
  return [Span(path, start, end) for start, end in itertools.pairwise(cuts)]


def read_span(
  span: Span, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of a part of a file, as read_warc gives them; all spans together are the file."""
  name = base_name(span.path)
  try:
    with patiently(open_file, span.path) as stream:
      stream.seek(span.start)
      yield from read_stream(stream, name, types, max_bytes, span.start, span.end)
  except OSError as error:
    yield reject_file(name, span.start, 0, 'unreadable_file', f'{type(error).__name__}: {error}')


def read(
  path: str | Span, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of one file, in its order: the format is told by its name, as READERS has it, and is WARC
  otherwise. A file that cannot be opened, after three tries, or has no bytes is a Reject
  (unreadable_file, empty_file); see the readers for what else they leave.
  """
  if isinstance(path, Span):
    yield from read_span(path, types=types, max_bytes=max_bytes)
    return
  name = base_name(path)
  try:
    with patiently(open_file, path) as stream:
      if not stream.read(1):
        yield reject_file(name, 0, 0, 'empty_file', 'the file has no bytes')
        return
  except OSError as error:
    yield reject_file(name, 0, 0, 'unreadable_file', f'{type(error).__name__}: {error}')
    return
  yield from READERS.get(kind(path), read_warc)(path, types=types, max_bytes=max_bytes)


def read_warc(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of one WARC file (plain, gzip, zstd or lz4), in file order.

  Keeps `response` records whose payload is of one of `types` (by the crawler's own verdict
  WARC-Identified-Payload-Type, else by the HTTP header, else by the bytes), and `conversion`
  records (extracted plain text) if HTML is wanted. Records of other types are not documents and are
  passed over in silence. What should have been a page but is not becomes a Reject of stage 'read':
  reasons http_status, empty, too_large, ratio, bad_encoding, bad_record. So does each record that
  is damaged (damaged_record: what is wrong is in the metadata; reading goes on at the next), and
  the file itself, if it ends inside a record, whose page is kept, marked truncated (clipped_file),
  or holds no record at all (corrupt_file).
  """
  with open_file(path) as stream:
    yield from read_stream(stream, base_name(path), types, max_bytes)


def read_stream(
  stream: BinaryIO, name: str, types: Collection[str], max_bytes: int, start: int = 0,
  end: int | None = None,
) -> Iterator[Page | Reject]:
  """`read_warc` of an open file, from where it stands (`start`), up to `end`."""
  number, lost = 0, []
  for record in warc.records(stream, max_bytes + HEAD_BYTES, start, end):
    if isinstance(record, warc.Damage):
      lost.append(reject_file(name, record.offset, number, 'damaged_record', record.detail))
      if number:
        yield lost.pop()
      continue
    yield from lost
    lost.clear()
    number += 1
    page = _page_of_record(record, name, types, max_bytes)
    if page is not None:
      yield page
    if record.clipped:
      yield reject_file(name, record.offset, number, 'clipped_file', 'the file ends inside it')
  if lost and end is None:     # without a single record it is no such file
    lost = [lost[0]._replace(reason='corrupt_file')]
  yield from lost


def read_arc(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of one ARC file, WARC's predecessor (crawls before about 2010); as read_warc otherwise.

  Records have no id there, so that pages get one from url and date.
  """
  from warcio.archiveiterator import ArchiveIterator

  name, number = base_name(path), 0
  with open_file(path) as stream:
    try:
      archive = ArchiveIterator(stream, arc2warc=True)
      for record in archive:
        number += 1
        if record.rec_type == 'response' and record.http_headers:
          headers = {k.lower(): v for k, v in record.rec_headers.headers}
          headers.pop('warc-record-id', None)      # warcio's own, a random one
          status = record.http_headers.get_statuscode()
          answer = Answer(
            int(status) if status.isascii() and status.isdigit() else None,
            {k.lower(): v for k, v in reversed(record.http_headers.headers)},
            _read_up_to(record.raw_stream, max_bytes + 1))
          page = _page(headers, answer, 0, name, types, max_bytes)
          offset = archive.get_record_offset()   # known once the record is read
          if isinstance(page, Page):
            page.warc_offset = offset
          if page is not None:
            yield page
    except Exception as error:
      yield reject_file(name, 0, number, 'corrupt_file', f'{type(error).__name__}: {error}')


def read_html(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """The one page of an HTML or text file, compressed or not; its id is the sha256 of its bytes."""
  name = base_name(path)
  page = Page(id='', url='', date='', warc_file=name, warc_offset=0, body=b'',
              content_type='text/plain' if kind(path) in TEXT else 'text/html')
  with open_file(path) as stream:
    try:
      page.body = _read_up_to(decompressed(stream), max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
      yield reject_file(name, 0, 0, 'corrupt_file', f'{type(error).__name__}: {error}')
      return
  page.id = hashlib.sha256(page.body).hexdigest()
  if len(page.body) > max_bytes:
    yield reject_page(page, 'too_large', f'more than {max_bytes} bytes')
  elif not page.body.strip():
    yield reject_page(page, 'empty')
  elif 'text/html' in types:
    yield page


def read_jsonl(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of a file of JSON lines, compressed or not.

  A line is a page (`html`, or `text` or `content`: plain text; and `id`, `url`, `date` or
  `timestamp` if known), or where one lies (`filename`, `offset`, `length`, and as much before the
  first brace as cdx files have there). A line that is neither is a Reject (bad_line, too_large), a
  range that cannot be read one too (unreadable_range).
  """
  name = base_name(path)
  with open_file(path) as stream:
    number = 0
    try:
      for number, line in enumerate(lines(decompressed(stream), 2 * max_bytes), 1):
        reason, results = _read_line(line, path, name, number, types, max_bytes)
        if reason:
          yield reject_file(name, number, number, *reason)
        yield from results
    except (OSError, EOFError, zlib.error) as error:
      yield reject_file(name, number, number, 'corrupt_file', f'{type(error).__name__}: {error}')


def _read_line(line, path, name, number, types, max_bytes):
  """((reason, detail) or None, pages) of one JSON line."""
  if len(line) >= 2 * max_bytes:
    return ('too_large', f'a line of more than {2 * max_bytes} bytes'), ()
  if not line.strip():
    return None, ()
  try:
    row = parse_json(line[max(0, line.find(b'{')):])
    if 'filename' in row and 'offset' in row:
      return None, read_capture(common_crawl.capture(row, path), types, max_bytes)
    html = row.get('html')
    body = html if html is not None else row['text'] if 'text' in row else row['content']
    body = body.encode('utf-8', 'replace')
    url, date = str(row.get('url') or ''), str(row.get('date') or row.get('timestamp') or '')
    kind = 'text/plain' if html is None else 'text/html'
    page = Page(
      id=str(row.get('id') or hashlib.sha256(f'{url} {date} '.encode() + body).hexdigest()),
      url=url, date=date, warc_file=name, warc_offset=number, body=body,
      dump=str(row.get('dump') or ''),
      content_type=f'{kind}; charset=utf-8')
  except common_crawl.RangeError as error:
    return ('unreadable_range', f'line {number}: {error}'), ()
  except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
    return ('bad_line', f'line {number}: {type(error).__name__}: {error}'), ()
  if len(body) > max_bytes:
    page.body = b''
    return None, (reject_page(page, 'too_large', f'more than {max_bytes} bytes'),)
  if not body.strip():
    return None, (reject_page(page, 'empty'),)
  return None, (page,) if 'text/html' in types else ()


def read_parquet(
  path: str, *, types: Collection[str] = HTML_TYPES, max_bytes: int = MAX_PAGE_BYTES,
) -> Iterator[Page | Reject]:
  """Pages of one file of Common Crawl's columnar index (`cc-index/table/cc-main/warc/…`): the
  records are read from their WARC files by range. A range that cannot be read is a Reject
  (unreadable_range), and so is a file that is no such index (corrupt_file)."""
  for capture in common_crawl.captures(path, types):
    if isinstance(capture, Reject):
      yield capture
    else:
      yield from read_capture(capture, types, max_bytes)


def read_capture(
  capture: common_crawl.Capture, types: Collection[str], max_bytes: int,
) -> Iterator[Page | Reject]:
  """The page of a record that an index lists, or the Reject unreadable_range."""
  name = base_name(capture.file)
  try:
    if capture.length > max_bytes + RANGE_SLACK:
      raise ValueError(f'{capture.length} bytes, at most {max_bytes} are read')
    data = patiently(read_range, capture.file, capture.offset, capture.length)
    if not data:
      raise ValueError('the file ends before it')
  # Of the file, the network, or the range.
  except (OSError, ValueError, http.client.HTTPException) as error:
    yield reject_file(name, capture.offset, 1, 'unreadable_range', str(error))
    return
  for result in read_stream(io.BytesIO(data), name, types, max_bytes):
    if isinstance(result, Page):
      result.warc_offset += capture.offset
      result.dump = common_crawl.dump_of(capture.file)
      result.truncated = result.truncated or capture.truncated
    yield result


def _page_of_record(
  record: warc.Record, name: str, types: Collection[str], max_bytes: int,
) -> Page | Reject | None:
  kind = record.headers.get('warc-type', '').lower()
  if kind == 'conversion':
    if 'text/html' not in types:
      return None
    answer = Answer(None, {}, record.block)
  elif kind != 'response':
    return None
  elif 'http' in record.headers.get('content-type', 'http') or record.block.startswith(b'HTTP/'):
    answer = http_answer(record.block)
  else:
    answer = Answer(None, {}, record.block)
  left = record.length - len(record.block)      # bytes that were not read
  return _page(record.headers, answer, record.offset, name, types, max_bytes,
               conversion=kind == 'conversion', clipped=record.clipped,
               length=len(answer.body) + (0 if record.clipped else left))


def _page(
  headers: Mapping[str, str], answer: Answer, offset: int, name: str, types: Collection[str],
  max_bytes: int, *, conversion: bool = False, clipped: bool = False, length: int = 0,
) -> Page | Reject | None:
  """The page of a record's headers and of what it holds, None if it is of no type that is wanted.
  """
  http = answer.headers
  content_type = http.get('content-type') or (headers.get('content-type', '') if conversion else '')
  url, date = headers.get('warc-target-uri', '').strip('<>'), headers.get('warc-date', '')
  page = Page(
    id=headers.get('warc-record-id') or hashlib.sha256(f'{url} {date}'.encode()).hexdigest(),
    url=url, date=date, warc_file=name, warc_offset=offset, content_type=content_type,
    body=b'', truncated=headers.get('warc-truncated', ''), etag=http.get('etag', ''),
    modified=http.get('last-modified', ''),
    headers={name: http[name] for name in WISHES if name in http})
  size = http.get('x-crawl-content-length') or http.get('content-length', '')
  coded = http.get('x-crawl-content-encoding') or http.get('content-encoding')
  if size.isascii() and size.isdigit() and len(size) < 16 and not coded:
    page.declared = int(size)

  declared = mime(headers.get('warc-identified-payload-type') or content_type)
  vague = (declared in VAGUE_TYPES or '/' not in declared
           or url.partition('?')[0].lower().endswith('.pdf'))
  if not conversion and declared not in types and not vague:
    return None

  try:
    if clipped:
      page.truncated = 'clipped'
    if len(answer.body) > max_bytes:
      raise PayloadError('too_large', f'{length} bytes, at most {max_bytes} are read')
    page.body = answer.body if conversion else decode_payload(answer.body, http, max_bytes)
    if not conversion and declared not in types and sniff(page.body) not in types:
      return None
    if answer.status not in (200, None):
      raise PayloadError('http_status', str(answer.status))
    if not page.body.strip():
      raise PayloadError('empty')
  except PayloadError as error:
    return reject_page(page, error.reason, error.detail)
  except (ValueError, LookupError) as error:   # a record whose own headers do not parse
    return reject_page(page, 'bad_record', str(error))
  return page


def decode_payload(raw: bytes, headers: Mapping[str, str], max_bytes: int) -> bytes:
  """Undoes Transfer-Encoding and Content-Encoding. Raises PayloadError: too_large, ratio,
  bad_encoding. Crawlers often store a decoded body under its original headers, and some servers
  name no encoding; then the bytes win.
  """
  body = raw
  transfer = (headers.get('transfer-encoding') or '').lower()
  if 'chunked' in transfer:
    body = dechunk(body)
  codings = f'{headers.get("content-encoding") or ""},{transfer}'.lower().split(',')
  if mime(headers.get('content-type') or '') in HTML_TYPES:
    codings = ['gzip' if body.startswith(GZIP) else '', *codings]
  for coding in reversed(codings):
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
        return _members(body, max_bytes + 1)
      except zlib.error:
        return zlib.decompressobj(-15).decompress(body, max_bytes + 1)  # bare deflate
    if coding == 'br':
      from fastwarc.stream_io import BrotliReader

      return _read_up_to(BrotliReader(io.BytesIO(body)), max_bytes + 1)
    if coding == 'zstd':
      from fastwarc.stream_io import ZstdReader

      return _read_up_to(ZstdReader(io.BytesIO(body)), max_bytes + 1)
  except (OSError, zlib.error) as error:
    if LOOKS_LIKE_HTML.search(body, 0, 1024) or body.startswith(b'%PDF-'):
      return body     # stored decoded
    raise PayloadError('bad_encoding', f'{coding}: {error}') from error
  return body         # identity, or a name nobody knows: the bytes as they are


def _members(body: bytes, size: int) -> bytes:
  """At most `size` bytes of zlib, or of gzip, which may have several members."""
  parts: list[bytes] = []
  while not parts or (body.startswith(GZIP) and size > 0 and len(parts) < MAX_MEMBERS):
    inflate = zlib.decompressobj(47)     # a gzip or zlib header
    parts.append(inflate.decompress(body, size))
    size, body = size - len(parts[-1]), inflate.unused_data
  return b''.join(parts)


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
  from resiliparse.parse.encoding import detect_mime

  return detect_mime(body[:4096])


def reject_page(page: Page, reason: str, detail: str = '', *, stage: str = 'read') -> Reject:
  """The Reject of a page that never became a document: provenance, no text."""
  metadata = {'warc_file': page.warc_file, 'warc_offset': page.warc_offset}
  if detail:
    metadata['error'] = detail[:200]
  document = Document(id=page.id, text='', url=page.url, source='web', date=page.date,
                      metadata=metadata)
  return Reject(document, stage, reason)


TEXT = ('.txt', '.text', '.md', '.markdown', '.rst')
# By the ending of the name, a compression's ending left aside; any other is a WARC.
READERS = {
  '.arc': read_arc,
  '.html': read_html, '.htm': read_html, '.xhtml': read_html, **dict.fromkeys(TEXT, read_html),
  '.jsonl': read_jsonl, '.ndjson': read_jsonl, '.json': read_jsonl, '.cdx': read_jsonl,
  '.cdxj': read_jsonl,
  '.parquet': read_parquet,
}


def tells_dumps(path: str) -> bool:
  """Whether a file's rows may name the dump of each."""
  return READERS.get(kind(path)) in (read_jsonl, read_parquet)


def kind(path: str) -> str:
  """The ending by which READERS knows a file's format, a compression's ending left aside."""
  return os.path.splitext(COMPRESSED.sub('', base_name(path)))[1].lower()
