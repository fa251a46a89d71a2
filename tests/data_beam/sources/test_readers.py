"""Reading WARC files: formats, encodings, lies in headers, damage, and files by pattern."""

import gzip
import hashlib
import http.server
import io
import json
import os
import re
import threading
import tracemalloc
import zlib
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.stream_io import BrotliWriter, GzipWriter, Lz4Writer, ZstdWriter
from helpers.warc import HTML, ID, html, write_warc
from hypothesis import given, settings
from hypothesis import strategies as st
from warcio.warcwriter import WARCWriter

from data_beam import records
from data_beam.records import Reject
from data_beam.sources import files as files_lib
from data_beam.sources import readers, warc
from data_beam.sources.files import expand
from data_beam.sources.readers import HTML_TYPES, PDF_TYPES, Page, read_warc

PDF = b'%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n'


def packed(writer, data):
  buffer = io.BytesIO()
  with writer(buffer) as w:
    while data:
      data = data[w.write(data):]   # may take less than it is given
  return buffer.getvalue()


def chunked(data, size=7):
  parts = [data[i:i + size] for i in range(0, len(data), size)]
  return b''.join(b'%x\r\n%s\r\n' % (len(p), p) for p in parts) + b'0\r\n\r\n'


def reasons(results):
  return [r.reason for r in results if isinstance(r, Reject)]


# --- files by pattern ------------------------------------------------------------------------


def test_expand_sorts_and_lists_each_file_once(tmp_path):
  for name in ('b.warc', 'a.warc', 'c.txt'):
    (tmp_path / name).write_bytes(b'x' * len(name))
  files = expand([f'{tmp_path}/b*', f'{tmp_path}/*.warc'])
  assert files == [{'path': f'{tmp_path}/{n}.warc', 'bytes': 6} for n in 'ab']


@pytest.mark.parametrize('name', ['notes [v2].txt', 'a*b.md', 'was?.html', 'ümläut ñ 文.txt'])
def test_a_file_is_itself_whatever_its_name(tmp_path, name):
  (tmp_path / name).write_text('Words.')
  assert [f['path'] for f in expand([f'{tmp_path}/{name}'])] == [f'{tmp_path}/{name}']
  assert [d.content_type for d in readers.read(f'{tmp_path}/{name}')]


def test_a_folder_is_its_files(tmp_path):
  for name in ('a.md', 'deep/er/b.txt', '.hidden', '_SUCCESS', '.git/config', 'c.html'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('# Title\n\n1 < 2 &amp; text')
  files = [f['path'] for f in expand([f'{tmp_path}/', f'{tmp_path}/a*'])]
  assert sorted(f.removeprefix(f'{tmp_path}/') for f in files) == ['a.md', 'c.html',
                                                                   'deep/er/b.txt']
  types = {f: next(readers.read(f)).content_type for f in files}
  assert sorted(types.values()) == ['text/html', 'text/plain', 'text/plain']


def test_a_query_gives_access_and_is_no_part_of_a_name(tmp_path, server):
  write_warc(tmp_path / 'x.warc.gz', [html()])
  (tmp_path / 'x.jsonl').write_text('{"text": "a"}\n{"text": 5}\n')
  secret = '?X-Amz-Signature=5ecre7&x=.warc'
  for name in ('x.warc.gz', 'x.jsonl', 'gone.html'):
    results = list(readers.read(f'{server}{name}{secret}'))
    assert results and '5ecre7' not in str(results)
  assert reasons(readers.read(f'{server}x.jsonl{secret}')) == ['bad_line']
  assert len(list(readers.read(f'{server}x.warc.gz{secret}'))) == 1
  assert records.public({'a': [f'see s3://u:pw@b/x.gz{secret} now', 5]}) == {
    'a': ['see s3://b/x.gz now', 5]}


def test_expand_says_what_is_missing(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no file matches .*/none\*\.warc'):
    expand([f'{tmp_path}/none*.warc'])
  with pytest.raises(FileNotFoundError, match='no file matches'):
    expand([str(tmp_path)])     # an empty folder
  with pytest.raises(ValueError, match='no input'):
    expand([])
  (tmp_path / 'notes.zip').write_bytes(b'PK')
  with pytest.raises(ValueError, match=r'notes\.zip is an archive: unpack it'):
    expand([f'{tmp_path}/*.zip'])
  with pytest.raises(ValueError, match='cannot open nosuch://'):
    expand(['nosuch://bucket/*.warc'])


def test_other_schemes_are_read_through_fsspec(tmp_path):
  data = Path(write_warc(tmp_path / 'x.warc.gz', [html()])).read_bytes()
  memory = fsspec.filesystem('memory')
  memory.pipe('/crawl/x.warc.gz', data)
  try:
    (file,) = expand(['memory://crawl/*.gz'])
    assert file['bytes'] == len(data)
    assert [p.body for p in read_warc(file['path'])] == [HTML]
  finally:
    memory.rm('/crawl', recursive=True)


# --- records ---------------------------------------------------------------------------------


def test_page_fields(tmp_path):
  path = write_warc(tmp_path / 'x.warc.gz', [html('https://a.test/?q=1'), html('https://b.test/')])
  first, second = read_warc(path)
  assert first == Page(
    id=ID.format(0), url='https://a.test/?q=1', date='2024-05-01T00:00:00Z',
    warc_file='x.warc.gz', warc_offset=first.warc_offset, content_type='text/html', body=HTML)
  # The offset is where a gzip member starts: the record can be fetched alone.
  member = Path(path).read_bytes()[second.warc_offset:]
  assert b'https://b.test/' in zlib.decompressobj(31).decompress(member)


def test_records_without_id_get_one_from_url_and_date(tmp_path):
  data = Path(write_warc(tmp_path / 'x.warc', [html()], compress=False)).read_bytes()
  path = tmp_path / 'y.warc'
  path.write_bytes(data.replace(b'WARC-Record-ID: ' + ID.format(0).encode(), b'X-None: 0'))
  (page,) = read_warc(str(path))
  assert page.id == hashlib.sha256(b'https://a.test/ 2024-05-01T00:00:00Z').hexdigest()


@pytest.mark.parametrize('writer', [GzipWriter, ZstdWriter, Lz4Writer])
def test_compressed_files_hold_the_same_pages(tmp_path, writer):
  plain = write_warc(tmp_path / 'x.warc', [html(f'https://a.test/{i}') for i in range(3)],
                     compress=False)
  packed_path = tmp_path / 'y.warc'   # the format is told by the bytes, not by the name
  packed_path.write_bytes(packed(writer, Path(plain).read_bytes()))
  want, got = list(read_warc(plain)), list(read_warc(str(packed_path)))
  assert [(p.id, p.url, p.body) for p in got] == [(p.id, p.url, p.body) for p in want]
  assert len(got) == 3


RAW_DEFLATE = zlib.compressobj(wbits=-15)
CODINGS = {
  'gzip': gzip.compress(HTML),
  'x-gzip': gzip.compress(HTML),
  'deflate': zlib.compress(HTML),
  'Deflate': RAW_DEFLATE.compress(HTML) + RAW_DEFLATE.flush(),
  'br': packed(BrotliWriter, HTML),
  'zstd': packed(ZstdWriter, HTML),
  'deflate, gzip': gzip.compress(zlib.compress(HTML)),
  'identity': HTML,
}


@pytest.mark.parametrize('coding', CODINGS)
def test_content_encodings_are_undone(tmp_path, coding):
  body = CODINGS[coding]
  path = write_warc(tmp_path / 'x.warc.gz', [
    html(body=body, Content_Encoding=coding),
    html(body=chunked(body), Content_Encoding=coding, Transfer_Encoding='chunked'),
    html(body=HTML, Content_Encoding=coding, Transfer_Encoding='chunked'),   # stored decoded
  ])
  assert [p.body for p in read_warc(path)] == [HTML] * 3


def test_dechunk_keeps_what_stands_before_a_break():
  assert readers.dechunk(chunked(HTML)) == HTML
  assert readers.dechunk(chunked(HTML)[:20]) == HTML[:12]
  assert readers.dechunk(b'5;x=y\nhello\n0\n') == b'hello'
  assert readers.dechunk(b'5\r\nhelloffffffffffffff\r\n') == b'hello'


@pytest.mark.parametrize(('types', 'record', 'kept'), [
  (HTML_TYPES, html(), True),
  (HTML_TYPES, html(Content_Type='Text/HTML; charset=x'), True),
  (HTML_TYPES, html(Content_Type='application/xhtml+xml'), True),
  (HTML_TYPES, html(Content_Type='image/png'), False),
  (HTML_TYPES, html(Content_Type=''), True),               # told by the bytes
  (HTML_TYPES, html(Content_Type='text/plain'), True),
  (HTML_TYPES, html(body=b'plain words', Content_Type='text/plain'), False),
  (HTML_TYPES, html(body=PDF, Content_Type=''), False),
  (PDF_TYPES, html(body=PDF, Content_Type='application/pdf'), True),
  (PDF_TYPES, html(body=PDF, Content_Type='application/octet-stream'), True),
  (PDF_TYPES, html('https://a.test/x.PDF?y', body=PDF), True),
  (PDF_TYPES, html('https://a.test/x.pdf'), False),        # an error page
  (PDF_TYPES, html(), False),
])
def test_types(tmp_path, types, record, kept):
  path = write_warc(tmp_path / 'x.warc.gz', [record])
  assert [isinstance(r, Page) for r in read_warc(path, types=types)] == [True] * kept


def test_the_crawlers_verdict_goes_before_the_servers(tmp_path):
  data = Path(write_warc(tmp_path / 'x.warc', [html(Content_Type='image/png')],
                         compress=False)).read_bytes()
  data = data.replace(b'WARC-Date', b'WARC-Identified-Payload-Type: text/html\r\nWARC-Date')
  (tmp_path / 'y.warc').write_bytes(data)
  assert [p.body for p in read_warc(str(tmp_path / 'y.warc'))] == [HTML]


@pytest.mark.parametrize(('record', 'reason'), [
  (html(status=404), 'http_status'),
  (html(body=b' \n'), 'empty'),
  (html(body=HTML + b' ' * 5000), 'too_large'),
  (html(body=gzip.compress(HTML + b' ' * 5000), Content_Encoding='gzip'), 'too_large'),
  (html(body=b'\x00garbage', Content_Encoding='br'), 'bad_encoding'),
  (html(body=b'\x1f\x8bgarbage', Content_Encoding='gzip'), 'bad_encoding'),
])
def test_unusable_pages_are_rejected_with_their_reason(tmp_path, record, reason):
  path = write_warc(tmp_path / 'x.warc.gz', [record, html()])
  reject, page = read_warc(path, max_bytes=4096)
  assert (reject.stage, reject.reason) == ('read', reason)
  assert reject.document.id == ID.format(0) and reject.document.url == 'https://a.test/'
  assert page.body == HTML


@pytest.mark.parametrize('coding', ['gzip', 'br', 'zstd', 'deflate'])
def test_bombs_cost_no_memory(tmp_path, coding):
  zeros = bytes(50 << 20)
  body = {'gzip': gzip.compress, 'deflate': zlib.compress, 'br': lambda d: packed(BrotliWriter, d),
          'zstd': lambda d: packed(ZstdWriter, d)}[coding](zeros)
  path = write_warc(tmp_path / 'x.warc.gz', [html(body=body, Content_Encoding=coding)])
  del zeros
  assert reasons(read_warc(path)) == ['too_large']
  assert reasons(read_warc(path, max_bytes=100 << 20)) == ['ratio']
  tracemalloc.start()
  list(read_warc(path))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 3 * readers.MAX_PAGE_BYTES


# --- damage ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def three_pages(tmp_path_factory):
  directory = tmp_path_factory.mktemp('damage')
  bodies = [b'<html><p>%s</p>' % hashlib.sha256(b'%d' % i).hexdigest().encode() for i in range(3)]
  data = {}
  for compress in (True, False):
    path = write_warc(directory / 'x.warc', [html(body=b) for b in bodies], compress=compress)
    data[compress] = Path(path).read_bytes()
  return directory, bodies, data


@settings(max_examples=60, deadline=None)
@given(compress=st.booleans(), cut=st.floats(0, 1))
def test_a_clipped_file_keeps_the_pages_before_the_cut(three_pages, compress, cut):
  directory, bodies, data = three_pages
  path = directory / 'cut.warc'
  path.write_bytes(data[compress][:int(cut * len(data[compress]))])
  results = list(read_warc(str(path)))
  pages = [r for r in results if isinstance(r, Page)]
  assert [p.body for p in pages if not p.truncated] == bodies[:sum(not p.truncated for p in pages)]
  for page in pages[:-1]:
    assert not page.truncated
  if pages and pages[-1].truncated:
    assert bodies[len(pages) - 1].startswith(pages[-1].body)
    assert reasons(results)[-1] in ('clipped_file', 'corrupt_file')


@settings(max_examples=100, deadline=None)
@given(compress=st.booleans(), flips=st.lists(st.tuples(st.floats(0, .999), st.integers(1, 255))))
def test_damaged_bytes_never_raise(three_pages, compress, flips):
  directory, _, data = three_pages
  damaged = bytearray(data[compress])
  for where, mask in flips:
    damaged[int(where * len(damaged))] ^= mask
  path = directory / 'damaged.warc'
  path.write_bytes(damaged)
  for result in read_warc(str(path)):
    assert isinstance(result, Page) or result.stage == 'read'


def test_a_file_that_is_no_warc_says_so(tmp_path):
  path = tmp_path / 'x.warc'
  path.write_bytes(b'hello, this is not an archive\n' * 10)
  (reject,) = read_warc(str(path))
  assert reject.reason == 'corrupt_file' and reject.document.metadata['error']


RECORDS = [html(f'https://a.test/{i}', b'<html><p>page %d %s' % (i, b'x' * 40 * i))
           for i in range(5)]


@pytest.mark.parametrize('compress', [True, False])
@pytest.mark.parametrize('length', [b'', b'\xb2', b'-5', b'9' * 30, b'900', b'30', b'0x10'])
def test_a_false_length_costs_one_record(tmp_path, compress, length):
  data = Path(write_warc(tmp_path / 'x.warc', RECORDS, compress=False)).read_bytes()
  parts = [b'WARC/1.0' + part for part in data.split(b'WARC/1.0')[1:]]
  head, _, rest = parts[3].partition(b'Content-Length: ')
  parts[3] = head + (b'Content-Length: ' + length if length else b'X: 1') + (
    rest[rest.index(b'\r\n'):])
  (tmp_path / 'y.warc').write_bytes(b''.join(map(gzip.compress, parts) if compress else parts))
  results = list(read_warc(str(tmp_path / 'y.warc')))
  pages = [r for r in results if isinstance(r, Page)]
  kept = [p.url[-1] for p in pages if not p.truncated]
  assert kept == ['0', '1', '3', '4'] and len(pages) + len(reasons(results)) >= 5
  assert reasons(results) in (['damaged_record'], ['clipped_file'])


@pytest.mark.parametrize('damage', ['flip', 'zeros', 'gone', 'junk', 'cut'])
def test_a_damaged_member_costs_one_record(tmp_path, damage):
  path = write_warc(tmp_path / 'x.warc.gz', RECORDS)
  data = bytearray(Path(path).read_bytes())
  at = [r.offset for r in warc.records(io.BytesIO(data), 1 << 20)]
  start, end = at[3:5]
  if damage == 'flip':
    data[(start + end) // 2] ^= 255
  elif damage == 'zeros':
    data[start + 20:end] = bytes(end - start - 20)
  elif damage == 'gone':      # the header of a member
    data[start:start + 5] = b'\x1f\x8bxxx'
  elif damage == 'junk':
    data[start:end] = b'\x1f\x8b\x08' * 30_000
  else:
    del data[end - 30:end]
  Path(path).write_bytes(data)
  results = list(read_warc(path))
  assert [p.url[-1] for p in results if isinstance(p, Page)] == ['0', '1', '3', '4']
  assert reasons(results) == ['damaged_record']


def test_headers_that_are_not_as_they_should_be(tmp_path):
  heads = [b'HTTP/1.1 200 OK\nContent-Type: text/html\nX: y\n\n',
           b'HTTP/1.1 200 OK\r\nContent-Type: text/html,text/html\r\n\r\n',
           b'HTTP/1.1 200 OK\r\nContent-Type: "text/html"\r\n\r\n',
           b'HTTP/1.1 200\r\nContent-Length: \xb2\r\n\r\n', b'',
           b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n',     # and no empty line
           b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n',
           b'HTTP/1.1 200 OK\r\nContent-Type: application/vnd.wap.xhtml+xml\r\n\r\n']
  block = (b'WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n'
           b'%b\r\n\r\n%b\r\n\r\n')
  (tmp_path / 'x.warc').write_bytes(b''.join(
    block % (b'Content-Length: %d' % len(head + HTML), head + HTML) for head in heads))
  assert [p.body for p in read_warc(str(tmp_path / 'x.warc'))] == [HTML] * len(heads)


@pytest.mark.parametrize('coding', [b'Transfer-Encoding: gzip, chunked', b'Server: forgets it',
                                    b'Content-Encoding: gzip'])
def test_gzip_however_it_is_said(tmp_path, coding):
  head = b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n%b\r\n\r\n' % coding
  body = gzip.compress(HTML[:20]) + gzip.compress(HTML[20:])
  block = head + (chunked(body) if b'chunked' in coding else body)
  (tmp_path / 'x.warc').write_bytes(b'WARC/1.0\r\nWARC-Type: response\r\nContent-Length: %d'
                                    b'\r\n\r\n%b\r\n\r\n' % (len(block), block))
  assert [p.body for p in read_warc(str(tmp_path / 'x.warc'))] == [HTML]


@pytest.mark.parametrize('compress', [True, False])
def test_junk_costs_no_record_but_the_one_it_is_in(tmp_path, compress):
  data = Path(write_warc(tmp_path / 'x.warc', RECORDS, compress=False)).read_bytes()
  parts = [b'WARC/1.0' + part for part in data.split(b'WARC/1.0')[2:]]
  parts = list(map(gzip.compress, parts)) if compress else parts
  for before, junk, kept in ((2, b'junk \0\xff', '01234'), (2, b'junk\n', '01234'),
                             (0, b'', '1234')):
    start, rest = b''.join(parts[:before]), b''.join(parts[before:])
    (tmp_path / 'y.warc').write_bytes(start + junk + rest if before else rest[6:])
    found = list(read_warc(str(tmp_path / 'y.warc')))
    assert ''.join(p.url[-1] for p in found if isinstance(p, Page)) == kept
    assert reasons(found) == ['damaged_record']


# Pages and rejects of archives with known faults.
EDGE = {
  'gowarc-corrupted-mid-record.warc.gz.open': (12, ['damaged_record']),
  'gowarc-corrupted-trailing-bytes.warc.gz.open': (30, ['damaged_record']),
  'resiliparse-block-sized-records.warc.gz': (0, []),       # no responses
  'warcio-example-bad.warc.gz.bad': (1, ['http_status']),
  'warcio-example-resource.warc.gz': (0, []),
  'warcio-example.arc.gz': (1, []),
  'warcio-example.warc.gz': (1, []),
  'resiliparse-clipped.warc.gz': (1, ['clipped_file']),
  'resiliparse-warcfile.warc.lz4': (16, []),
  'ukwa-transfer_compression_brotli.warc': (1, []),
  'warcio-example-bad-non-chunked.warc.gz': (1, []),
  'warcio-example-iana.org-chunked.warc': (1, []),
  'warcio-example-trunc.warc': (1, []),
  'warcio-example-wget-bad-target-uri.warc.gz': (1, []),
}


@pytest.mark.parametrize('name', EDGE)
def test_edge_files(shared_data, name):
  results = list(readers.read(str(shared_data / 'warc' / 'edge' / name)))
  pages = [r for r in results if isinstance(r, Page)]
  assert (len(pages), reasons(results)) == EDGE[name]
  assert not any(p.url.startswith('<') or p.body[:2] == b'\x1f\x8b' for p in pages)


def test_every_edge_file_is_tested(shared_data):
  assert {f.name for f in (shared_data / 'warc' / 'edge').iterdir()} == EDGE.keys()


def test_an_arc_holds_what_its_warc_holds(shared_data):
  folder = shared_data / 'warc' / 'real'
  arc, warc = (list(readers.read(str(folder / f'aut-ia2008-example.{kind}.gz')))
               for kind in ('arc', 'warc'))
  bodies = lambda results: {r.url: r.body for r in results if isinstance(r, Page)}
  arc_pages, warc_pages = bodies(arc), bodies(warc)
  assert len(arc_pages) > 90 and arc_pages.items() <= warc_pages.items()
  assert sorted(reasons(arc)) == sorted(reasons(warc))
  assert len({r.id for r in arc if isinstance(r, Page)}) == len(arc_pages)
  assert [r.id for r in readers.read(str(folder / 'aut-ia2008-example.arc.gz'))
          if isinstance(r, Page)] == [r.id for r in arc if isinstance(r, Page)]


def test_wet_records(tmp_path):
  path = tmp_path / 'x.warc.wet.gz'
  with open(path, 'wb') as f:
    writer = WARCWriter(f, gzip=True)
    writer.write_record(writer.create_warc_record(
      'https://a.test/', 'conversion', payload=io.BytesIO(b'Plain words.'), length=12,
      warc_content_type='text/plain', warc_headers_dict={'WARC-Record-ID': ID.format(4)}))
  (page,) = readers.read(str(path))
  assert (page.id, page.url, page.content_type) == (ID.format(4), 'https://a.test/', 'text/plain')
  assert page.body == b'Plain words.'
  assert not list(readers.read(str(path), types=PDF_TYPES))


def test_pdfs_in_a_warc(shared_data):
  path = shared_data / 'warc' / 'real' / 'aut-2019-example.pdf.warc.gz'
  pages = list(read_warc(str(path), types=PDF_TYPES, max_bytes=64 << 20))
  assert len(pages) == 2 and all(p.body.startswith(b'%PDF-') for p in pages)


# --- other formats, other places -------------------------------------------------------------


@pytest.mark.parametrize('pack', [bytes, gzip.compress, lambda d: packed(ZstdWriter, d),
                                  lambda d: packed(Lz4Writer, d)])
def test_html_files_and_json_lines(tmp_path, pack):
  (tmp_path / 'a.html.gz').write_bytes(pack(HTML))
  (page,) = readers.read(str(tmp_path / 'a.html.gz'))
  assert page == Page(id=hashlib.sha256(HTML).hexdigest(), url='', date='', warc_file='a.html.gz',
                      warc_offset=0, content_type='text/html', body=HTML)
  lines = [
    {'html': HTML.decode(), 'url': 'https://a.test/', 'timestamp': '2024-05-01', 'id': 7},
    {'text': 'plain words', 'url': None}, {'content': ' '}, {'other': 1}, 'words', 3]
  data = '\n'.join(map(json.dumps, lines)) + '\n\n{"text": "cut of'
  (tmp_path / 'b.jsonl').write_bytes(pack(data.encode()))
  results = list(readers.read(str(tmp_path / 'b.jsonl')))
  first, second = (r for r in results if isinstance(r, Page))
  assert (first.id, first.url, first.date, first.body) == ('7', 'https://a.test/', '2024-05-01',
                                                           HTML)
  assert second.body == b'plain words' and second.content_type.startswith('text/plain')
  assert reasons(results) == ['empty', 'bad_line', 'bad_line', 'bad_line', 'bad_line']


def test_ranges_of_an_index(tmp_path):
  urls = [f'https://a.test/{i}' for i in range(3)]
  path = write_warc(tmp_path / 'x.warc.gz', [html(url) for url in urls])
  at = [p.warc_offset for p in read_warc(path)] + [len(Path(path).read_bytes())]
  row = lambda i: json.dumps({'url': urls[i], 'filename': 'x.warc.gz', 'offset': str(at[i]),
                              'length': str(at[i + 1] - at[i])})
  (tmp_path / 'part.cdxj').write_text(
    f'test,a)/2 20240501000000 {row(2)}\n{row(0)}\n'
    '{"filename": "gone.warc.gz", "offset": 0, "length": 5}\n')
  results = list(readers.read(str(tmp_path / 'part.cdxj')))
  assert [(r.url, r.warc_file, r.warc_offset) for r in results[:2]] == [
    (urls[2], 'x.warc.gz', at[2]), (urls[0], 'x.warc.gz', at[0])]
  assert reasons(results) == ['unreadable_range']


@pytest.mark.parametrize(('name', 'offset', 'length'), [
  ('/etc/hostname', 0, 5), ('../x.warc.gz', 0, 5), ('sub/../../x.warc.gz', 0, 5), ('link', 0, 5),
  ('fifo', 0, 5), ('', 0, 5), ('.', 0, 5), ('file:///etc/hostname', 0, 5), ('http://[bad', 0, 5),
  ('https://data.commoncrawl.org@evil.test/crawl-data/x', 0, 5), ('s3://other/crawl-data/x', 0, 5),
  ('crawl-data/../../x', 0, 5), ('crawl-data/x?y', 0, 5), ('x.warc.gz', -1, 5), ('x.warc.gz', 0, 0),
  ('x.warc.gz', 0, 1 << 40), ('x.warc.gz', 1 << 70, 5), ('x.warc.gz', 1.5, 5),
  ('x.warc.gz', True, 5), ('x.warc.gz', '１', 5), ('x.warc.gz', None, 5), (['x'], 0, 5),
  ('x\0y', 0, 5), ('x.warc.gz', 1 << 40, 5), ('gone.warc.gz', 0, 5),
])
def test_an_index_names_no_bytes_but_beside_it_and_common_crawls(
  tmp_path, monkeypatch, name, offset, length,
):
  monkeypatch.setattr(files_lib, '_urlopen', lambda *a, **k: pytest.fail('fetched'))
  monkeypatch.setattr(files_lib.time, 'sleep', lambda seconds: None)
  folder = tmp_path / 'index'
  folder.mkdir()
  for place in (tmp_path, folder):
    write_warc(place / 'x.warc.gz', [html()])
  (folder / 'link').symlink_to(tmp_path / 'x.warc.gz')
  os.mkfifo(folder / 'fifo')
  (folder / 'a.jsonl').write_text('{"text": "before"}\n' + json.dumps(
    {'filename': name, 'offset': offset, 'length': length}) + '\n{"text": "after"}\n')
  pq.write_table(pa.table({
    'url': ['u'], 'warc_filename': [name if isinstance(name, str) else None],
    'warc_record_offset': pa.array([offset if type(offset) is int and offset < 1 << 60 else -1]),
    'warc_record_length': pa.array([length]), 'content_mime_type': ['text/html']}),
    folder / 'a.parquet')
  results = list(readers.read(str(folder / 'a.jsonl')))
  assert [r.body for r in results if isinstance(r, Page)] == [b'before', b'after']
  assert reasons(results) == reasons(readers.read(str(folder / 'a.parquet'))) == [
    'unreadable_range']


def test_listings_of_files(tmp_path):
  for name in 'ab':
    write_warc(tmp_path / f'{name}.warc.gz', [html()])
  (tmp_path / 'warc.paths.gz').write_bytes(gzip.compress(b'b.warc.gz\na.warc.gz\n'))
  files = expand([f'{tmp_path}/warc.paths.gz', f'{tmp_path}/a*'])
  assert [f['path'] for f in files] == [f'{tmp_path}/{n}.warc.gz' for n in 'ab']
  (tmp_path / 'wet.paths').write_text('crawl-data/CC-MAIN-2024-22/x.warc.wet.gz\ns3://b/y.gz')
  assert [f['path'] for f in expand([f'{tmp_path}/wet.paths'])] == [
    'https://data.commoncrawl.org/crawl-data/CC-MAIN-2024-22/x.warc.wet.gz', 's3://b/y.gz']


@pytest.fixture
def server(tmp_path):
  """This machine as Common Crawl's: https paths in, with ranges."""

  class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
      super().__init__(*args, directory=str(tmp_path))

    def log_message(self, *args):
      pass

    def do_GET(self):
      wanted = re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range') or '')
      if not wanted:
        return super().do_GET()
      data = Path(self.translate_path(self.path)).read_bytes()
      part = data[int(wanted[1]):int(wanted[2]) + 1]
      self.send_response(206)
      self.send_header('Content-Length', str(len(part)))
      self.end_headers()
      self.wfile.write(part)

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{httpd.server_port}/'
    httpd.shutdown()


def test_common_crawl_over_https(tmp_path, server, monkeypatch):
  monkeypatch.setattr(files_lib, 'COMMON_CRAWL', server)
  (tmp_path / 'crawl-data').mkdir()
  path = write_warc(tmp_path / 'crawl-data' / 'x.warc.gz', [html('https://a.test/1'), html()])
  (tmp_path / 'crawl-data' / 'warc.paths.gz').write_bytes(
    gzip.compress(b'crawl-data/x.warc.gz\ncrawl-data/gone.warc.gz\n'))
  want = list(read_warc(path))
  for listing in (f'{server}crawl-data/warc.paths.gz', 's3://commoncrawl/crawl-data/warc.paths.gz'):
    gone, there = (f['path'] for f in expand([listing]))
    assert list(readers.read(there)) == want
    assert reasons(readers.read(gone)) == ['unreadable_file']
  (size,) = expand(['s3://commoncrawl/crawl-data/x.warc.gz'])
  assert size['bytes'] == Path(path).stat().st_size
  row = {'filename': 'crawl-data/x.warc.gz', 'offset': want[1].warc_offset, 'length': 10_000}
  (tmp_path / 'part.jsonl').write_text(json.dumps(row))
  (page,) = readers.read(str(tmp_path / 'part.jsonl'))
  assert page == want[1]


# --- hostile files ---------------------------------------------------------------------------

MB = 1 << 20


BOMB = gzip.compress(bytes(100 * MB))
ZEROS = gzip.compress(BOMB)


@pytest.mark.parametrize(('name', 'data', 'reason'), [
  ('empty.warc.gz', b'', 'empty_file'),
  ('zeros.warc.gz', ZEROS, None),   # no record in it
  ('zeros.html.gz', ZEROS, None),   # still gzip: the extractor says that it is no text
  ('zeros.jsonl.gz', ZEROS, 'bad_line'),
  ('zeros.arc.gz', ZEROS, 'corrupt_file'),
  ('bomb.html.gz', BOMB, 'too_large'),
  ('bomb.jsonl.gz', BOMB, 'too_large'),
  ('line.jsonl', b'{"text": "' + b'x' * 40 * MB + b'"}\n', 'too_large'),
  ('page.html', b'<html><p>' + b'word ' * 8 * MB, 'too_large'),
  ('cut.html.gz', gzip.compress(HTML * 1000, mtime=0)[:50], 'corrupt_file'),
])
def test_hostile_files_cost_little_and_say_why(tmp_path, name, data, reason):
  (tmp_path / name).write_bytes(data)
  del data
  tracemalloc.start()
  found = reasons(readers.read(str(tmp_path / name)))
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert found[:1] == [reason] if reason else len(found) <= 1
  assert peak < 100 * MB


def test_a_directory_and_a_missing_file_are_losses_with_a_reason(tmp_path):
  assert reasons(readers.read(str(tmp_path))) == ['unreadable_file']
  assert reasons(readers.read(str(tmp_path / 'x.warc.gz'))) == ['unreadable_file']
