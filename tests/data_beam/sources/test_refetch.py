"""Fetching again: what is chosen, what it costs, and the whole job against a server."""
import collections
import hashlib
import io
import json
import time

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.server import World, server  # noqa: F401 (fixtures)
from helpers.stories import make, story
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_beam import records
from data_beam.options import PdfOptions
from data_beam.pdf import pipeline as pdf
from data_beam.records import Document, Reject
from data_beam.sources import readers, refetch

WHOLE = make(story(1, 120))
OLD = make(story(2))
NEW = make(story(2, 60))


def document(text='some words of text', **meta):
  return Document('1', text, url='http://pub.example/a', date='2020-01-01T00:00:00Z',
                  metadata={'pages': 1, 'page_methods': ['text'], **meta})


HIDDEN = {'page_features': {'0': {'ocr_wanted': 'hidden'}}}


@pytest.mark.parametrize(('result', 'modes', 'expected'), [
  (document(), ('truncated', 'poor'), ''), (document(), ('all',), 'all'),
  (document(truncated='length'), ('poor', 'truncated'), 'truncated'),
  (document(**HIDDEN), ('truncated', 'poor'), 'poor'),
  (document(), ('stale',), 'stale'),
  (Reject(document(), 'extract', 'truncated'), ('truncated',), 'truncated'),
  (Reject(document(), 'extract', 'needs_ocr'), ('truncated', 'poor'), 'poor'),
  (Reject(document(), 'extract', 'encrypted'), ('truncated', 'poor'), '')])
def test_which_are_fetched_again(result, modes, expected):
  assert refetch.why(result, modes, '2021-01-01') == expected
  nowhere = Document('1', 'text', metadata=dict(truncated='length'))
  assert not refetch.why(nowhere, tuple(refetch.MODES))


def test_the_better_version_is_kept():
  short, long = document('ten letters'), document('many more letters than that')
  gone = Reject(document(''), 'extract', 'not_pdf')
  assert refetch.choose(short, long, 'truncated') == (long, 'more good text')
  assert refetch.choose(long, short, 'truncated')[0] is long
  assert refetch.choose(long, gone, 'stale')[0] is long
  assert refetch.choose(gone, short, 'poor') == (short, 'the old version gives no text')
  other = document('many more letters than thi')
  assert refetch.choose(long, other, 'stale') == (other, 'newer, and as good')
  assert refetch.choose(long, other, 'poor')[0] is long
  assert refetch.value(document('abc', **HIDDEN)) == 0


@pytest.mark.parametrize(('modes', 'agent', 'before', 'message'), [
  (['some'], 'a@b', '', 'unknown --refetch some'), (['stale'], 'a@b', '', '--stale_before'),
  (['poor'], 'crawler', '', '--agent')])
def test_settings_that_cannot_be_meant(modes, agent, before, message):
  with pytest.raises(ValueError, match=message):
    refetch.check(modes, agent, before)


@pytest.mark.parametrize(('body', 'declared', 'crawler', 'expected'), [
  (WHOLE, 0, '', ''), (WHOLE, len(WHOLE) + 1, '', 'declared'), (WHOLE, 0, 'length', 'length'),
  (WHOLE[:3000], 0, '', 'no_eof'), (WHOLE[:3000] + bytes((1 << 20) - 3000), 0, '', 'cap'),
  (b'<html>', 0, '', '')])
def test_how_truncation_is_told(body, declared, crawler, expected):
  page = readers.Page('1', '', '', '', 0, '', body, truncated=crawler, declared=declared)
  assert pdf.truncation(page) == expected


@pytest.fixture
def crawl(tmp_path):
  """A WARC of three PDFs: one cut, one old, one whole and new; and their records' places."""
  path, places = tmp_path / 'crawl.warc.gz', []
  with open(path, 'wb') as f:
    writer = WARCWriter(f, gzip=True)
    for name, body, year, extra in (
        ('whole', WHOLE[:300], 2024, {'WARC-Truncated': 'length'}),
        ('new', OLD, 2019, {}), ('gone', make(story(5)), 2019, {}),
        ('fine', make(story(3)), 2024, {})):
      start = f.tell()
      writer.write_record(writer.create_warc_record(
        f'http://pub.example/{name}.pdf', 'response', payload=io.BytesIO(body),
        http_headers=StatusAndHeaders('200 OK', [
          ('Content-Type', 'application/pdf'), ('ETag', f'"{name}"'),
          ('Content-Length', str(len(WHOLE) if name == 'whole' else len(body)))],
          protocol='HTTP/1.1'),
        warc_headers_dict={'WARC-Date': f'{year}-01-01T00:00:00Z',
                           'WARC-Record-ID': f'<urn:{name}>', **extra}))
      places.append((f'http://pub.example/{name}.pdf', start, f.tell() - start, extra))
  return path, places


@pytest.fixture
def world(server, monkeypatch):
  answers = {'/whole.pdf': WHOLE, '/new.pdf': NEW, '/fine.pdf': make(story(3))}

  def answer(self, path):
    if path == '/robots.txt':
      return self.send(b'', 404)
    return self.send(answers.get(path, b'gone'), 200 if path in answers else 410)
  monkeypatch.setattr(server.RequestHandlerClass, 'answer', answer)
  world = World(server)
  monkeypatch.setattr(refetch, 'make_fetcher', lambda agent, delay: world.fetcher(seconds=30))
  return world


def curate(crawl, output, **options):
  return pdf.run([str(crawl)], str(output), beam_args=['--direct_num_workers=1'],
                 options=PdfOptions(ocr='never', filters='none', minhash='none', num_shards=1,
                                    **options))


def test_the_whole_job(crawl, world, tmp_path, capsys):
  path, _ = crawl
  plain = curate(path, tmp_path / 'plain')
  assert refetch.main([f'--input={plain}', '--modes=truncated,stale',
                       '--stale_before=2020-01-01']) == 0
  found = json.loads(capsys.readouterr().out.splitlines()[0])
  assert found['cut'] == found['declared'] == found['fetch']['truncated'] == 1
  assert found['fetch']['stale'] == 2 and found['hosts'] == 1 and not world.connected
  # One of four, which has three times the others' text.
  assert found['cost_documents'] == 25 and 30 < found['cost_tokens'] < 60

  options = dict(refetch=['truncated', 'stale'], stale_before='2020-01-01', agent='t@x.org')
  corpus = curate(path, tmp_path / 'out', **options)
  rows = {row['id']: row for row in records.read_corpus(corpus)}
  assert set(rows) == {f'<urn:{name}>' for name in ('whole', 'new', 'gone', 'fine')}
  notes = {i: row['metadata'].get('refetch') for i, row in rows.items()}
  assert notes['<urn:fine>'] is None
  assert notes['<urn:gone>'] | {'date': ''} == {
    'why': 'stale', 'outcome': 'status', 'status': 410, 'detail': '410 Gone', 'robots': 'none',
    'url': 'http://pub.example/gone.pdf', 'kept': 'crawled', 'date': ''}
  cut, new = notes['<urn:whole>'], notes['<urn:new>']
  assert (cut['kept'], cut['because']) == ('fetched', 'the old version gives no text')
  assert (new['kept'], new['because']) == ('fetched', 'more good text')
  assert new['values'][1] > new['values'][0] > 0
  assert rows['<urn:whole>']['text'].count('.') == 120
  meta = rows['<urn:whole>']['metadata']
  assert meta['pdf_digest'] == hashlib.sha256(WHOLE).hexdigest() and 'truncated' not in meta
  (warc,) = (tmp_path / 'out' / 'pdf_fetched').glob('*.warc.gz')
  assert meta['warc_file'] == warc.name

  # Again, with nothing to connect to: what was fetched is there, and the corpus is the same.
  world.server = None
  (tmp_path / 'again').mkdir()
  warc.parent.rename(tmp_path / 'again' / 'pdf_fetched')
  again = curate(path, tmp_path / 'again', **options)
  assert json.dumps(list(records.read_corpus(again))) == json.dumps(list(
    records.read_corpus(corpus)))


class Extract:
  """Takes a record's letters for its text."""

  def setup(self):
    pass

  def teardown(self):
    pass

  def again(self, old, path, offset):
    with open(path, 'rb') as f:
      f.seek(offset)
      page = next(readers.read_stream(f, 'x', readers.PDF_TYPES, 1 << 20))
    return document(page.body.decode())


def run(results, folder):
  with beam.Pipeline(runner='FnApiRunner') as p:
    both = p | 'a' >> beam.Create(results), p | 'b' >> beam.Create([], reshuffle=False)
    kept, _ = both | refetch.Refetch(modes=['all'], folder=str(folder), agent='t@x.org', delay=0,
                                     stale_before='', extract=Extract())
    rows = kept | beam.Map(lambda d: json.dumps(vars(d) | {'signature': ''}))
    rows | beam.io.WriteToText(f'{folder}/out')
  return sorted(json.loads(line)['metadata']['refetch']['outcome'] for path in folder.glob('out*')
                for line in path.read_text().splitlines())


def at(url):
  return Document(url, 'a text', url=url, metadata={'pages': 1, 'page_methods': ['text']})


def test_what_failed_in_passing_is_tried_again_another_day(world, server, tmp_path, monkeypatch):
  """And malformed URLs and answers stop nobody."""
  up = False

  def answer(self, path):
    if path == '/robots.txt':
      return self.send(b'', 404)
    if path == '/bad':
      return self.send(b'', 302, Location='http://[')
    if path == '/busy' and not up:
      return self.send(b'', 503, Retry_After='²')
    if path == '/gone':
      return self.send(b'', 410)
    self.send(b'%PDF-1.4 a much longer text than before', Content_Type='text/html')
  monkeypatch.setattr(server.RequestHandlerClass, 'answer', answer)
  urls = [f'http://pub.example/{name}' for name in ('bad', 'busy', 'gone', 'fine')]
  # A crawl's URL with a line break is no header of ours.
  results = [at(url) for url in [*urls, 'http://pub.example/a\r\nWARC-Type: metadata', 'http://[',
                                 'http://pub.example/\udc80']]
  expected = ['bad_url', 'ok', 'ok', 'redirects', 'status', 'status']
  fetched = [r for r in results if refetch.why(r, ['all'])]
  assert len(fetched) == 6
  assert run(fetched, tmp_path) == expected
  lines = next(tmp_path.glob('*.jsonl')).read_text()
  before = len(server.seen)
  assert run(fetched, tmp_path) == expected
  assert {path for _, path in server.seen[before:]} == {'/robots.txt', '/busy'}
  assert next(tmp_path.glob('*.jsonl')).read_text() == lines
  assert len(list(tmp_path.glob('*.gz'))) == 1
  up = True
  assert run(fetched, tmp_path) == ['bad_url', 'ok', 'ok', 'ok', 'redirects', 'status']
  before = len(server.seen)
  assert run(fetched, tmp_path).count('ok') == 3 and len(server.seen) == before


def test_many_hosts_are_asked_at_once(world, server, tmp_path, monkeypatch):
  """20 hosts at .3 s an answer take 1 s on a quiet machine, not 12; each sees one request."""
  asked, most, of_one = collections.Counter(), 0, 0

  def answer(self, path):
    nonlocal most, of_one
    host = self.headers['Host']
    asked[host] += 1
    most, of_one = max(most, asked.total()), max(of_one, asked[host])
    time.sleep(.3)
    asked[host] -= 1
    self.send(b'%PDF-1.4 a text', 404 if path == '/robots.txt' else 200)
  monkeypatch.setattr(server.RequestHandlerClass, 'answer', answer)
  results = [at(f'http://h{i}.example/{name}') for i in range(20) for name in 'ab'[:1 + i // 19]]
  assert run(results, tmp_path) == ['ok'] * 21 and most > 10 and of_one == 1


def test_pdfs_of_an_index_are_read_by_range(crawl, tmp_path):
  path, places = crawl
  table = pa.table({
    'url': [url for url, *_ in places] + ['http://x.example/page'],
    'warc_filename': [path.name] * 5, 'warc_record_offset': [p[1] for p in places] + [0],
    'warc_record_length': [p[2] for p in places] + [10], 'fetch_status': [200] * 5,
    'content_mime_detected': ['application/pdf', None, None, None, 'text/html'],
    'content_truncated': [None, 'length', None, None, None]})
  pq.write_table(table, tmp_path / 'part-00000.gz.parquet')
  lines = [json.dumps({'url': url, 'filename': path.name, 'offset': str(offset),
                       'length': str(length)}) for url, offset, length, _ in places]
  (tmp_path / 'cdx-00000').with_suffix('.cdxj').write_text(
    ''.join(f'example,pub)/ 2024 {line}\n' for line in [*lines, '{"filename": "x"}']))
  direct = list(pdf.read([str(path)], 'pdf', None))
  for index in ('part-00000.gz.parquet', 'cdx-00000.cdxj'):
    found = list(pdf.read([str(tmp_path / index)], 'pdf', None))
    bad = [r for r in found if isinstance(r, Reject)]
    assert [r.reason for r in bad] == (['bad_line'] if index.endswith('j') else [])
    found = [r for r in found if not isinstance(r, Reject)]
    assert [r.digest for r in found] == [r.digest for r in direct]
    assert [r.offset for r in found] == [r.offset for r in direct]
    assert all(pdf.body_of(r) == pdf.body_of(d) for r, d in zip(found, direct, strict=True))
    assert [r.truncated for r in found][:2] == ['length', 'length' if 'parquet' in index else '']
  pq.write_table(pa.table({'url': ['a']}), tmp_path / 'other.parquet')
  (reject,) = pdf.read([str(tmp_path / 'other.parquet')], 'pdf', None)
  assert reject.reason == 'corrupt_file' and 'warc_filename' in reject.document.metadata['error']
