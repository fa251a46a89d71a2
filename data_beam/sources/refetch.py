"""Documents fetched again from where they came: what the crawl cut off, and at will what is poor or
old. Of the two versions the better is kept, and why is kept beside it.

  python -m data_beam.pdf --refetch=truncated --agent='name (mail)' …   fetches
  python -m data_beam.refetch --input=corpora/pdf/1.0.0 --modes=truncated,poor   only reports

The report fetches nothing: of a corpus made without refetching, it says what each mode would fetch,
and what the cuts cost, in documents and tokens.

What is fetched lies in WARC files in `NAME_fetched` beside the corpus, with the answers' headers;
a second run reads it there, so that the same corpus comes out. It asks again only where the answer
was one that may pass: a server that was busy, a connection that broke.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
import statistics
import string
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.window import GlobalWindows
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_beam import records
from data_beam.command_line import Parser, complain
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
HOSTS_AT_ONCE = 32          # of a worker; each host sees one request at a time

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
  if not fetch.host_of(document.url):
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
  bad = {i for i, m in enumerate(meta.get('page_methods', ()))
         if m in ('noise', 'skipped', 'failed')}
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

  One worker has all URLs of a host, so that each host sees one request at a time, and asks many
  hosts at once.
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
    return beam.pvalue.TaggedOutput('again', (fetch.host_of(_document(result).url), result))


def _route(result: Result):
  return beam.pvalue.TaggedOutput('rejects', result) if isinstance(result, Reject) else result


class _Fetch(beam.DoFn):
  def __init__(self, folder, agent, delay, modes, stale_before, extract):
    self.folder, self.agent, self.delay = folder, agent, delay
    self.modes, self.stale_before, self.extract = modes, stale_before, extract

  def setup(self):
    self.extract.setup()
    self.fetcher = make_fetcher(self.agent, self.delay)
    self.threads = concurrent.futures.ThreadPoolExecutor(HOSTS_AT_ONCE)

  def teardown(self):
    self.threads.shutdown(cancel_futures=True)
    self.extract.teardown()

  def start_bundle(self):
    self.running = collections.deque()

  def process(self, group: tuple[str, Iterable[Result]]):
    def place(result):
      return _document(result).url, _document(result).id

    results = sorted(group[1], key=place)
    self.running.append((results, self.threads.submit(self._fetch, results)))
    while len(self.running) > HOSTS_AT_ONCE:      # so that few hosts' documents wait in memory
      yield from self._finished()

  def finish_bundle(self) -> Any:
    while self.running:
      yield from map(GlobalWindows.windowed_value, self._finished())

  def _fetch(self, results: Sequence[Result]) -> list[dict[str, Any]]:
    """What became of a host's documents: all that is done off the worker's own thread."""
    answers = []
    for start in range(0, len(results), FILES_PER_WARC):
      some = results[start:start + FILES_PER_WARC]
      answers += fetched([_document(result).url for result in some], self.folder, self._get(some))
    return answers

  def _finished(self) -> Iterator[Result]:
    results, future = self.running.popleft()
    for result, answer in zip(results, future.result(), strict=True):
      yield self._choose(result, answer)

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

  def _choose(self, old: Result, answer: dict[str, Any]) -> Result:
    reason = why(old, self.modes, self.stale_before)
    note = {'why': reason} | {k: v for k, v in answer.items() if v and k not in ('offset', 'file')}
    document, kept = _document(old), old
    if answer['outcome'] == 'ok':
      path = os.path.join(self.folder, answer['file'])
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
            get: Callable[[int], fetch.Fetched]) -> list[dict[str, Any]]:
  """What becomes of URLs, now or in a run before: outcomes, and where in WARC files the bodies are.

  What failed in passing before is tried again; the bodies of each round are a file of their own.
  Bodies and outcomes appear together: the list of outcomes is written last.
  """
  name = hashlib.sha256('\n'.join(urls).encode('utf-8', 'surrogatepass')).hexdigest()[:16]
  done, answers = os.path.join(folder, f'{name}.jsonl'), []
  if FileSystems.exists(done):
    with FileSystems.open(done) as f:
      answers = [json.loads(line) for line in io.TextIOWrapper(f, 'utf-8')]
  wanted = [i for i in range(len(urls)) if not answers
            or fetch.passing(answers[i]['outcome'], answers[i]['status'])]
  if not wanted:
    return answers
  rounds = len({answer['file'] for answer in answers})
  file = f'{name}-{rounds}.warc.gz' if rounds else f'{name}.warc.gz'
  with tempfile.TemporaryFile() as out:
    writer, found = WARCWriter(out, gzip=True), {}
    for i in wanted:
      result = get(i)
      found[i] = {'outcome': result.outcome, 'url': result.url, 'status': result.status,
                  'detail': result.detail, 'robots': result.robots, 'file': file,
                  'offset': out.tell(),
                  'date': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}
      if result.outcome == 'ok':
        _write(writer, urls[i], result, found[i]['date'])
    if answers:                         # where nothing has changed, the corpus stays as it was
      found = {i: a for i, a in found.items() if not fetch.passing(a['outcome'], a['status'])}
      if not found:
        return answers
    out.seek(0)
    with contextlib.suppress(BeamIOError, OSError):     # it is there, or another worker makes it
      FileSystems.mkdirs(folder)
    with FileSystems.create(os.path.join(folder, file),
                            compression_type=CompressionTypes.UNCOMPRESSED) as f:
      shutil.copyfileobj(out, f)
  answers = [found.get(i) or answers[i] for i in range(len(urls))]
  records.write_bytes(done, ''.join(json.dumps(a) + '\n' for a in answers).encode())
  return answers


def _write(writer: WARCWriter, url: str, result: fetch.Fetched, date: str) -> None:
  keep = ('content-type', 'etag', 'last-modified', 'date', 'server')
  headers = [(name.title(), value) for name, value in result.headers.items() if name in keep]
  headers.append(('Content-Length', str(len(result.body))))
  # A URL of a crawl may hold line breaks, which would be headers of their own.
  safe = urllib.parse.quote(url, safe=string.punctuation, errors='replace')
  writer.write_record(writer.create_warc_record(
    safe, 'response', payload=io.BytesIO(result.body),
    http_headers=StatusAndHeaders('200 OK', headers, protocol='HTTP/1.1'),
    # Its first bytes were looked at; many servers call a PDF by another name.
    warc_headers_dict={'WARC-Date': date, 'WARC-Identified-Payload-Type': 'application/pdf'}))


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
      no_url += not fetch.host_of(document.url)
    elif not rejected and size:
      density.append(length / size)
    if mode := why(result, modes, stale_before):
      modes_of[mode] += 1
      hosts.add(fetch.host_of(document.url))
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
  parser = Parser(
    prog='python -m data_beam.refetch',
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
    return complain(parser.prog, error)
  print(json.dumps(found))
  print(f'{found["cut"]:,} of {found["documents"]:,} documents were cut: that is '
        f'{found["cost_documents"]} % of the documents, and an estimated {found["cost_tokens"]} % '
        f'of the tokens ({found["tokens_lost"]:,}).')
  for mode, count in found['fetch'].items():
    print(f'--refetch={mode} would fetch {count:,} ({MODES[mode]}).')
  print(f'{found["hosts"]:,} hosts; {found["no_url"]:,} cut documents have no URL.')
  return 0

