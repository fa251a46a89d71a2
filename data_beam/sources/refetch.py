"""Documents fetched again from where they came: what the crawl cut off, and at will what is poor or
old. Of the two versions the better is kept, and why is kept beside it.

  python -m data_beam.pdf --refetch=truncated --agent='name (mail)' …   fetches
  python -m data_beam.refetch --input=corpora/pdf/1.0.0 --modes=truncated,poor   only reports

The report fetches nothing: of a corpus made without refetching, it says what each mode would fetch,
and what the cuts cost, in documents and tokens.

What is fetched lies in WARC files in `NAME_fetched` beside the corpus, with the answers' headers;
a second run reads it there, so that the same corpus comes out.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_beam import records
from data_beam.records import Document, Reject
from data_beam.sources import fetch

MODES = {
  'truncated': 'the crawl cut it, or its end is missing',
  'poor': 'it gave no text, or most pages are pictures, hidden or garbled text',
  'stale': 'it was crawled before --stale_before',
  'all': 'every document with a URL',
}
POOR_REASONS = frozenset({'damaged', 'needs_ocr', 'ocr_noise', 'blank', 'crash'})
POOR_SHARE = 0.5            # of the pages
CHARACTERS_PER_TOKEN = 4.0
WHOLE_TO_CUT = 6.0          # pages of FinePDFs' cut files against the others: 39 to 6.5
FILES_PER_WARC = 50

Result = Document | Reject


def _document(result: Result) -> Document:
  return result.document if isinstance(result, Reject) else result


def check(modes: Sequence[str], agent: str, stale_before: str) -> None:
  """Raises ValueError for settings that cannot be meant."""
  if unknown := set(modes) - set(MODES):
    raise ValueError(f'unknown --refetch {", ".join(sorted(unknown))}: give {", ".join(MODES)}')
  if 'stale' in modes and not stale_before:
    raise ValueError('--refetch=stale needs --stale_before=YYYY-MM-DD')
  if modes and '@' not in agent and '://' not in agent:
    raise ValueError('refetching needs --agent with an address that a site may write to, such as '
                     "--agent='our-crawler/1.0 (https://example.org/crawler)'")


def why(result: Result, modes: Sequence[str], stale_before: str = '') -> str:
  """The mode by which a document is fetched again, '' if by none. Without a URL it cannot be."""
  document = _document(result)
  if urllib.parse.urlsplit(document.url).scheme not in ('http', 'https'):
    return ''
  cut = bool(document.metadata.get('truncated')) or (
    isinstance(result, Reject) and result.reason == 'truncated')
  tests = {'truncated': cut, 'poor': is_poor(result), 'all': True,
           'stale': bool(stale_before) and bool(document.date) and document.date < stale_before}
  return next((mode for mode in MODES if mode in modes and tests[mode]), '')


def is_poor(result: Result) -> bool:
  """Whether the text is likely bad: dropped for that, or of pages that read badly."""
  if isinstance(result, Reject):
    return result.reason in POOR_REASONS
  return 1 - _good_share(result) > POOR_SHARE


def value(result: Result) -> float:
  """What a version is worth: its letters, times the share of its pages that read well."""
  if isinstance(result, Reject):
    return 0.0
  return sum(map(str.isalpha, result.text)) * _good_share(result)


def _good_share(document: Document) -> float:
  meta = document.metadata
  bad = {i for i, m in enumerate(meta.get('page_methods', ())) if m in ('noise', 'skipped')}
  bad |= {int(i) for i, f in meta.get('page_features', {}).items()
          if f.get('ocr_wanted') and meta['page_methods'][int(i)] == 'text'}
  return 1 - len(bad) / max(1, meta.get('pages', 1))


def choose(old: Result, new: Result, reason: str) -> tuple[Result, str]:
  """The better version, and why it is: the newer one where they are as good."""
  worth = value(old), value(new)
  if isinstance(new, Reject):
    return old, f'the new version gives no text: {new.reason}'
  if not worth[0]:
    return new, 'the old version gives no text'
  if worth[1] > worth[0]:
    return new, 'more good text'
  if reason == 'stale' and worth[1] > 0.9 * worth[0]:
    return new, 'newer, and as good'
  return old, 'the old version has as much good text'


class Refetch(beam.PTransform):
  """(kept, rejects) of an extraction → the same with better versions where there are some.

  One worker has all URLs of a host, so that each host sees one request at a time.
  """

  def __init__(self, *, modes: Sequence[str], folder: str, agent: str, stale_before: str,
               delay: float, extract: beam.DoFn):
    """Sets up the transform.

    Args:
      modes: of MODES.
      folder: where the WARC files of what is fetched go.
      agent: the User-Agent.
      stale_before: for the mode 'stale', an ISO date.
      delay: seconds between two requests to a host, at least.
      extract: a DoFn with `setup`, `teardown` and `again(document, path, offset)`, which reads the
        new version, a record of a WARC file, and gives a Document or a Reject.
    """
    super().__init__()
    self.modes, self.stale_before = tuple(modes), stale_before
    self.fetch = _Fetch(folder, agent, delay, self.modes, stale_before, extract)

  def expand(self, both: Any) -> Any:
    """PCollections (documents, rejects), of both; some fetched again."""
    split = (both | beam.Flatten()
             | beam.Map(self._by_host).with_outputs('again', main='rest'))
    found = (split.again | beam.GroupByKey() | beam.ParDo(self.fetch))
    out = ((split.rest, found) | 'join' >> beam.Flatten()
           | 'part' >> beam.Map(_route).with_outputs('rejects', main='kept'))
    return out.kept, out.rejects

  def _by_host(self, result: Result):
    if not why(result, self.modes, self.stale_before):
      return result
    host = urllib.parse.urlsplit(_document(result).url).hostname or ''
    return beam.pvalue.TaggedOutput('again', (host, result))


def _route(result: Result):
  return beam.pvalue.TaggedOutput('rejects', result) if isinstance(result, Reject) else result


class _Fetch(beam.DoFn):
  def __init__(self, folder, agent, delay, modes, stale_before, extract):
    self.folder, self.agent, self.delay = folder, agent, delay
    self.modes, self.stale_before, self.extract = modes, stale_before, extract

  def setup(self):
    self.extract.setup()
    self.fetcher = make_fetcher(self.agent, self.delay)

  def teardown(self):
    self.extract.teardown()

  def process(self, group: tuple[str, Iterable[Result]]):
    def place(result):
      return _document(result).url, _document(result).id

    results = sorted(group[1], key=place)
    for start in range(0, len(results), FILES_PER_WARC):
      some = results[start:start + FILES_PER_WARC]
      path, answers = fetched([place(result)[0] for result in some], self.folder, self._get(some))
      for result, answer in zip(some, answers, strict=True):
        yield self._choose(result, path, answer)

  def _get(self, results: Sequence[Result]) -> Callable[[int], fetch.Fetched]:
    def get(i: int) -> fetch.Fetched:
      result = results[i]
      document = _document(result)
      same = {}
      if why(result, self.modes, self.stale_before) == 'stale':
        same = {'etag': document.metadata.get('etag', ''),
                'modified': document.metadata.get('last_modified', '')}
      return self.fetcher.fetch(document.url, expect=b'%PDF-', **same)
    return get

  def _choose(self, old: Result, path: str, answer: dict[str, Any]) -> Result:
    reason = why(old, self.modes, self.stale_before)
    note = {'why': reason} | {k: v for k, v in answer.items() if v and k != 'offset'}
    document, kept = _document(old), old
    if answer['outcome'] == 'ok':
      new = self.extract.again(document, path, answer['offset'])
      kept, note['because'] = choose(old, new, reason)
      note['values'] = [round(value(old)), round(value(new))]
    note['kept'] = 'crawled' if kept is old else 'fetched'
    document = _document(kept)
    document = dataclasses.replace(document, metadata={**document.metadata, 'refetch': note})
    return kept._replace(document=document) if isinstance(kept, Reject) else document


def make_fetcher(agent: str, delay: float) -> fetch.Fetcher:
  """The fetcher of a worker; tests put their own here."""
  return fetch.Fetcher(agent, delay=delay)


def fetched(urls: Sequence[str], folder: str,
            get: Callable[[int], fetch.Fetched]) -> tuple[str, list[dict[str, Any]]]:
  """A WARC file with what URLs gave, made now or by a run before, and of each what became of it.

  The bodies and the outcomes appear together: the list of outcomes is written last.
  """
  name = hashlib.sha256('\n'.join(urls).encode()).hexdigest()[:16]
  path, done = (os.path.join(folder, f'{name}.{end}') for end in ('warc.gz', 'jsonl'))
  if FileSystems.exists(done):
    with FileSystems.open(done) as f:
      return path, [json.loads(line) for line in io.TextIOWrapper(f, 'utf-8')]
  with tempfile.TemporaryFile() as out:
    writer, answers = WARCWriter(out, gzip=True), []
    for i, url in enumerate(urls):
      result = get(i)
      answers.append({'outcome': result.outcome, 'url': result.url, 'status': result.status,
                      'detail': result.detail, 'robots': result.robots, 'offset': out.tell(),
                      'date': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())})
      if result.outcome == 'ok':
        _write(writer, url, result, answers[-1]['date'])
    out.seek(0)
    with contextlib.suppress(BeamIOError, OSError):     # it is there, or another worker makes it
      FileSystems.mkdirs(folder)
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as f:
      shutil.copyfileobj(out, f)
  records.write_bytes(done, ''.join(json.dumps(a) + '\n' for a in answers).encode())
  return path, answers


def _write(writer: WARCWriter, url: str, result: fetch.Fetched, date: str) -> None:
  keep = ('content-type', 'etag', 'last-modified', 'date', 'server')
  headers = [(name.title(), value) for name, value in result.headers.items() if name in keep]
  headers.append(('Content-Length', str(len(result.body))))
  writer.write_record(writer.create_warc_record(
    url, 'response', payload=io.BytesIO(result.body),
    http_headers=StatusAndHeaders('200 OK', headers, protocol='HTTP/1.1'),
    warc_headers_dict={'WARC-Date': date}))


# The report.

def report(documents: Iterable[Document], rejects: Iterable[Reject], modes: Sequence[str],
           stale_before: str = '') -> dict[str, Any]:
  """What modes would fetch of a corpus, and what its cuts cost.

  The whole size of a cut document is what its server declared, else six times what there is
  (FinePDFs' cut files have 39 pages, the others 6.5); its text is as dense as the others'.

  Returns:
    'documents' and 'characters' that gave text; 'fetch': by mode, how many documents; 'hosts';
    'no_url': cut documents that cannot be fetched; 'cut': how many, `declared` of them with a
    known size; 'cost_documents' and 'cost_tokens': shares in percent, and 'tokens_lost'.
  """
  modes_of, hosts = collections.Counter(), set()
  kept = characters = no_url = cut = declared = 0
  density, missing = [], []
  for result in itertools.chain(documents, rejects):
    if isinstance(result, Reject) and result.stage != 'extract':
      result = result.document              # a document that a later stage has dropped
      if not result.text:
        continue
    rejected = isinstance(result, Reject)
    document = _document(result)
    meta = document.metadata
    size, length = meta.get('bytes', 0), 0 if rejected else len(document.text)
    kept, characters = kept + (not rejected), characters + length
    if meta.get('truncated') or (rejected and result.reason == 'truncated'):
      whole = meta.get('declared_bytes', 0)
      cut, declared = cut + 1, declared + (whole > size)
      missing.append((whole if whole > size else WHOLE_TO_CUT * size, length))
      no_url += not document.url
    elif not rejected and size:
      density.append(length / size)
    if mode := why(result, modes, stale_before):
      modes_of[mode] += 1
      hosts.add(urllib.parse.urlsplit(document.url).hostname)
  usual = statistics.fmean(density) if density else 0.0
  lost = sum(max(0.0, whole * usual - length) for whole, length in missing)
  total = kept + sum(not length for _, length in missing)
  return {
    'documents': kept, 'characters': characters, 'fetch': dict(modes_of), 'hosts': len(hosts),
    'no_url': no_url, 'cut': cut, 'declared': declared,
    'cost_documents': round(100 * cut / max(1, total), 2),
    'cost_tokens': round(100 * lost / max(1.0, characters + lost), 2),
    'tokens_lost': round(lost / CHARACTERS_PER_TOKEN)}


def main(argv: Sequence[str] | None = None) -> int:
  """The report's command line. Returns 0, or 2 after one line about what was wrong."""
  parser = argparse.ArgumentParser(
    prog='python -m data_beam.refetch', allow_abbrev=False,
    description='Says what --refetch would fetch of a corpus of PDFs, and what the cuts of the '
    'crawl cost in documents and tokens. Fetches nothing.')
  parser.add_argument('--input', required=True, metavar='DIR',
                      help='the corpus, such as corpora/pdf/1.0.0; its rejects lie beside it')
  parser.add_argument('--modes', default='truncated', help=f'of {", ".join(MODES)}')
  parser.add_argument('--stale_before', default='', metavar='DATE')
  args = parser.parse_args(argv)
  path = args.input.rstrip('/')
  rejects = os.path.join(os.path.dirname(path) + '_rejects', os.path.basename(path))
  modes = args.modes.split(',')
  try:
    check(modes, 'report@', args.stale_before)
    found = report(
      (Document(**row) for row in records.read_corpus(path)),
      (Reject(Document(**{k: v for k, v in row.items() if k not in ('stage', 'reason')}),
              row['stage'], row['reason']) for row in records.read_corpus(rejects)),
      modes, args.stale_before)
  except (ValueError, OSError) as error:
    print(f'data_beam.refetch: {error}', file=sys.stderr)
    return 2
  print(json.dumps(found))
  print(f'{found["cut"]:,} of {found["documents"]:,} documents were cut: that is '
        f'{found["cost_documents"]} % of the documents, and an estimated {found["cost_tokens"]} % '
        f'of the tokens ({found["tokens_lost"]:,}).')
  for mode, count in found['fetch'].items():
    print(f'--refetch={mode} would fetch {count:,} ({MODES[mode]}).')
  print(f'{found["hosts"]:,} hosts; {found["no_url"]:,} cut documents have no URL.')
  return 0

