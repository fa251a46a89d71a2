"""PDF files → a curated corpus. The pipeline is the list of stages in `stages`.

  python -m data_beam.pdf --input='papers/*.pdf' --output=corpora --name=pdf

Inputs are PDFs, WARC files with PDFs in them, or indexes of such (Common Crawl's Parquet or JSON
lines). What travels between workers is a reference to a document's bytes, not the bytes: `read`
finds and hashes them, equal ones are dropped before the costly part, and `extract` reads each again
where it will be parsed. Every worker parses in a child process of its own (see text), so one
bad file is one reject.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import logging
import os
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam

from data_beam import curation
from data_beam.curation import Each
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import decontamination
from data_beam.filters.rules import Rule, profile
from data_beam.options import PdfOptions
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import router
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError
from data_beam.records import Document, Reject
from data_beam.sources import common_crawl, readers, refetch
from data_beam.sources.files import decompressed, expand, open_file, read_range
from data_beam.text import pii
from data_beam.text.language import detect_language, is_sure, language_sample
from data_beam.text.normalize import normalize

MAX_PDF_BYTES = 256 << 20

log = logging.getLogger('data_beam')


class Reference(NamedTuple):
  """Where a PDF's bytes are, and what they are known by."""
  digest: str            # sha256 of the bytes
  id: str                # the WARC-Record-ID, or the digest for a file
  url: str
  date: str
  path: str
  offset: int            # of the record in a WARC file, -1 for a file of its own
  truncated: str         # why the payload is incomplete, see `truncation`
  length: int = 0        # bytes of the record where an index tells them, so that they are a range
  bytes: int = 0         # of the PDF
  declared: int = 0      # what the server said they would be, 0 if it did not
  etag: str = ''         # of the server's answer
  modified: str = ''


def stages(
  options: PdfOptions, source: str = 'pdf', folder: str = '',
) -> list[tuple[str, beam.PTransform]]:
  """The pipeline, in the order of FinePDFs: each transform takes what the one before kept.

  Args:
    options: see options.py.
    source: of the documents.
    folder: where the files of what is fetched again go.
  """
  o = options
  how = {'ocr': o.ocr, 'languages': o.languages, 'router': o.router, 'figures': o.figures,
         'markdown': o.markdown, 'unseen': o.unseen,
         'server': {'url': o.ocr_server, 'model': o.ocr_model, 'prompt': o.ocr_prompt}
                   if o.ocr_server else None}
  refetching = {'modes': o.refetch, 'stale_before': o.stale_before, 'agent': o.agent,
                'delay': o.fetch_delay, 'folder': folder}
  return [
    ('read', Each(read, source, o.limit)),
    ('same_bytes', SameBytes(source)),
    ('extract', Extract(how, source, refetching if o.refetch else None)),
    ('language', Each(identify, o.languages, o.min_language_score)),
    ('filter', Each(judge, profile(o.filters))),
    *deduplication(o),
    *decontamination(o),
    ('pii', Each(anonymise)),
  ]


def read(paths: Sequence[str], source: str, limit: int | None) -> Iterator[Reference | Reject]:
  """References to the PDFs in files, the first `limit` of them."""
  found = itertools.chain.from_iterable(_references(path, source) for path in paths)
  count = 0
  for result in found:
    yield result
    count += isinstance(result, Reference)
    if count == limit:
      return


def _references(path: str, source: str) -> Iterator[Reference | Reject]:
  kind = readers.kind(path)
  if kind in common_crawl.INDEXES:
    for capture in common_crawl.captures(path, readers.PDF_TYPES):
      if isinstance(capture, Reject):
        yield _of(capture, source)
        continue
      for page in readers.read_capture(capture, types=readers.PDF_TYPES, max_bytes=MAX_PDF_BYTES):
        yield (_of(page, source) if isinstance(page, Reject)
               else _reference(page, capture.file, capture.length))
  elif kind in ('.warc', '.arc'):
    for page in readers.read(path, types=readers.PDF_TYPES, max_bytes=MAX_PDF_BYTES):
      yield _of(page, source) if isinstance(page, Reject) else _reference(page, path)
  else:                                     # anything else is taken for a PDF, and refused if none
    try:
      body = _unpacked(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      yield _of(readers.reject_file(readers.base_name(path), 0, 0, 'corrupt_file',
                                    f'{type(error).__name__}: {error}'), source)
      return
    digest = hashlib.sha256(body).hexdigest()
    page = readers.Page(id=digest, url='', date='', warc_file='', warc_offset=-1, content_type='',
                        body=body)
    reference = _reference(page, path)
    large = len(body) > MAX_PDF_BYTES
    yield Reject(_document(reference, source), 'read', 'too_large') if large else reference


def _unpacked(path: str) -> bytes:
  """A file, which may be gzipped or the like, up to one byte more than a PDF may have."""
  with open_file(path) as f, decompressed(f) as plain:
    return plain.read(MAX_PDF_BYTES + 1)


def _of(reject: Reject, source: str) -> Reject:
  return reject._replace(document=dataclasses.replace(reject.document, source=source))


def _reference(page: readers.Page, path: str, length: int = 0) -> Reference:
  return Reference(
    hashlib.sha256(page.body).hexdigest(), page.id, page.url, page.date, path, page.warc_offset,
    truncation(page), length, len(page.body), page.declared, page.etag, page.modified)


def truncation(page: readers.Page) -> str:
  """Why a PDF is incomplete: the crawler's word (`length`, `time`, `disconnect`), `clipped` (its
  WARC file ends in it), `declared` (the server said that there was more), `cap` (a mebibyte to
  the byte, where crawls before 2013 cut without a word), `no_eof` (no %%EOF near its end); or ''.
  """
  if page.truncated:
    return page.truncated
  if page.declared > len(page.body):
    return 'declared'
  if b'%%EOF' in page.body[-2048:] or b'%PDF-' not in page.body[:1024]:
    return ''
  return 'cap' if len(page.body) == 1 << 20 else 'no_eof'


def body_of(reference: Reference) -> bytes:
  """The bytes again: those that `read` has hashed."""
  if reference.offset < 0:
    return _unpacked(reference.path)
  with contextlib.ExitStack() as stack:
    if reference.length:
      f = io.BytesIO(read_range(reference.path, reference.offset, reference.length))
    else:
      f = stack.enter_context(open_file(reference.path))
      f.seek(reference.offset)
    from fastwarc.warc import ArchiveIterator

    record = next(iter(ArchiveIterator(f, parse_http=True, auto_decode='none', strict_mode=False)))
    raw = record.reader.read(MAX_PDF_BYTES + 1)
    return readers.decode_payload(raw, record.http_headers, MAX_PDF_BYTES)


def _document(reference: Reference, source: str, text: str = '', **metadata: Any) -> Document:
  name = os.path.basename(reference.path)        # so that a corpus does not depend on where it lay
  where = ({'file': name} if reference.offset < 0
           else {'warc_file': name, 'warc_offset': reference.offset})
  where |= {name: found for name, found in (
    ('bytes', reference.bytes), ('truncated', reference.truncated), ('etag', reference.etag),
    ('last_modified', reference.modified),
    ('declared_bytes', reference.declared if reference.truncated else 0)) if found}
  return Document(id=reference.id, text=text, url=reference.url, source=source,
                  date=reference.date,
                  metadata={'pdf_digest': reference.digest, **where, **metadata})


class SameBytes(beam.PTransform):
  """PCollection[Reference] → (kept, rejects): one of each digest, the first by url, id, place."""

  def __init__(self, source: str):
    super().__init__()
    self.source = source

  def expand(self, references: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = (references
             | beam.Map(lambda reference: (reference.digest, tuple(reference)))
             | beam.GroupByKey()
             | beam.FlatMap(_first, self.source).with_outputs('rejects', main='kept'))
    return split.kept | beam.Reshuffle(), split.rejects


def _first(group: tuple[str, Iterable[tuple]], source: str) -> Iterator[Any]:
  def order(reference):
    return (reference.url, reference.id, os.path.basename(reference.path), reference.offset)

  first, *others = sorted((Reference(*fields) for fields in group[1]), key=order)
  yield first
  for reference in others:
    yield beam.pvalue.TaggedOutput('rejects', Reject(
      _document(reference, source, duplicate_of=first.id), 'same_bytes', 'duplicate'))


class Extract(beam.PTransform):
  """PCollection[Reference] → (kept: Document, rejects); reasons are errors.REASONS."""

  def __init__(self, options: dict[str, Any], source: str,
               refetching: dict[str, Any] | None = None):
    """Takes the options of text.extract, and the settings of refetch.Refetch if any."""
    super().__init__()
    self.extract, self.refetching = _Extract(options, source), refetching

  def expand(self, references: Any) -> Any:
    """PCollections (documents, rejects)."""
    split = references | beam.ParDo(self.extract).with_outputs('rejects', main='kept')
    both = split.kept, split.rejects
    return both | refetch.Refetch(extract=self.extract, **self.refetching) if (
      self.refetching) else both


class _Extract(beam.DoFn):
  def __init__(self, options, source):
    self.options, self.source = options, source

  def setup(self):
    self.held, self.how = contextlib.ExitStack(), self.options
    self.extractor = self.held.enter_context(pdf_text.Extractor())
    if '://' in (path := self.options.get('router', '')):     # the child has no keys to read it
      copy = os.path.join(self.held.enter_context(tempfile.TemporaryDirectory()), 'router')
      with open_file(path) as f, open(copy, 'wb') as out:
        shutil.copyfileobj(f, out)
      self.how = {**self.options, 'router': copy}
    self.documents, self.pages, self.said = 0, 0, time.monotonic()

  def teardown(self):
    self.held.close()

  def process(self, reference: Reference):
    result = self.read(reference, body_of(reference))
    if isinstance(result, Reject):
      yield beam.pvalue.TaggedOutput('rejects', result)
      return
    yield result
    self.documents, self.pages = self.documents + 1, self.pages + result.metadata['pages']
    if time.monotonic() - self.said > 5:
      self.said = time.monotonic()
      log.info('%d PDFs, %d pages so far', self.documents, self.pages)

  def read(self, reference: Reference, body: bytes) -> Document | Reject:
    try:
      found = self.extractor.extract(body, **self.how)
    except PdfError as error:
      cut = reference.truncated and error.reason == 'damaged'
      document = _document(reference, self.source, **({'error': error.detail} if error.detail
                                                      else {}))
      return Reject(document, 'extract', 'truncated' if cut else error.reason)
    return to_document(reference, found, self.source)

  def again(self, document: Document, path: str, offset: int) -> Document | Reject:
    """A newer version of a document, a record of a WARC file: for refetch.Refetch."""
    with open_file(path) as f:
      f.seek(offset)
      page = next(readers.read_stream(f, os.path.basename(path), readers.PDF_TYPES, MAX_PDF_BYTES),
                  None)
    if page is None or isinstance(page, Reject):
      return page or Reject(document, 'read', 'not_pdf')
    page = dataclasses.replace(page, id=document.id, url=document.url, warc_offset=offset)
    return self.read(_reference(page, path), page.body)


def to_document(reference: Reference, found: pdf_text.PdfText, source: str = 'pdf') -> Document:
  """A document with all that is known of its pages."""
  found = dataclasses.replace(found, pages=[normalize(page).strip() for page in found.pages])
  sure = [c for c, method in zip(found.ocr_confidence, found.page_methods, strict=True)
          if method == 'ocr']
  wanted = {i: f for i, f in enumerate(found.features)
            if f['ocr_wanted'] or f.keys() & {'agreement', 'ocr_failed'}}
  return _document(
    reference, source, found.text, extractor=found.method, pages=len(found.pages),
    page_offsets=found.page_offsets, page_methods=found.page_methods,
    **({'figures': found.figures} if found.figures else {}),
    **({'repaired': found.repaired} if found.repaired else {}),
    **({'ocr_confidence': round(statistics.fmean(sure), 4)} if sure else {}),
    **({'page_features': {str(i): f for i, f in wanted.items()}} if wanted else {}))


def identify(document: Document, languages: Sequence[str],
             min_score: float | None) -> Iterator[Document | Reject]:
  """The language by the average over pages; keeps the wanted ones, where it is fairly sure.

  FinePDFs' rule: a language's score is the sum of its probabilities on the pages, over their
  number; the first whose score is above its threshold is the document's (`min_score`, or that
  fitted to each language where it is None). Unlike there, pages of few letters are not counted, and
  tables have a say on pages where little else is. `metadata` gets `languages`, the scores above
  .01, and `page_languages`, each page's likeliest.
  """
  offsets = document.metadata.get('page_offsets') or [0]
  pages = [_page_languages(document.text[a:b]) for a, b in itertools.zip_longest(
    offsets, offsets[1:])]
  if not any(pages):                        # short ones have no page of fifty letters
    pages = [detect_language(language_sample(_words(document.text)))]
  scores: dict[str, float] = {}
  for page in pages:
    for name, probability in page:
      scores[name] = scores.get(name, 0.0) + probability / sum(map(bool, pages))
  ranked = sorted(((name, score) for name, score in scores.items() if score > .01),
                  key=lambda item: (-item[1], item[0]))
  metadata = {**document.metadata, 'languages': {n: round(score, 3) for n, score in ranked},
              'page_languages': [page[0][0] if page else '' for page in pages]}

  found = next(((name, score) for name, score in ranked
                if is_sure(name, score, min_score)), None)
  name, score = found or (ranked[0] if ranked else ('', 0.0))
  document = dataclasses.replace(document, language=name, language_score=score, metadata=metadata)
  if languages and name not in languages:
    yield Reject(document, 'language', name or 'unknown')
  elif not found:
    yield Reject(document, 'language', 'unsure')
  else:
    yield document


def _words(page: str) -> str:
  """A page without its tables; where they have nearly all of its letters, with their words.

  In small letters where most are capitals, of which detectors have seen few.
  """
  lines = page.split('\n')
  prose = '\n'.join(line for line in lines if not line.startswith('|'))
  cells = [cell for line in lines if line.startswith('|') for cell in line.split(' | ')]
  words = '\n'.join(cell.strip('| ') for cell in cells if any(map(str.isalpha, cell)))
  least = max(50, 0.2 * _letters(words))
  found = prose if not words or _letters(prose) >= least else f'{prose}\n{words}'
  return found.lower() if sum(map(str.isupper, found)) > sum(map(str.islower, found)) else found


def _letters(text: str) -> int:
  """Bytes of the letters."""
  return len(''.join(filter(str.isalpha, text)).encode())


def _page_languages(page: str) -> list[tuple[str, float]]:
  """Languages of a page, none where it has fewer than 50 bytes or a fifth of letters (FinePDFs)."""
  words = _words(page)
  if _letters(words) < 50 or sum(map(str.isalpha, words)) < 0.2 * len(words):
    return []
  return detect_language(language_sample(words, windows=3, size=500))


def judge(document: Document, rules: Sequence[Rule]) -> Iterator[Document | Reject]:
  """The quality rules. Where one tidies the text, its page offsets no longer hold and go."""
  for result in curation.judge(document, rules):
    if isinstance(result, Document) and result.text != document.text:
      result.metadata = {k: v for k, v in result.metadata.items() if k != 'page_offsets'}
    yield result


def anonymise(document: Document) -> Iterator[Document]:
  """E-mail and IP addresses replaced, page by page, so that the offsets stay true."""
  offsets = document.metadata.get('page_offsets') or [0]
  pages = [pii.replace_pii(document.text[a:b])
           for a, b in itertools.zip_longest(offsets, offsets[1:])]
  metadata = dict(document.metadata)
  if 'page_offsets' in metadata:
    metadata['page_offsets'] = [0, *itertools.accumulate(map(len, pages[:-1]))]
  yield dataclasses.replace(document, text=''.join(pages), metadata=metadata)


def run(
  input: Sequence[str], output: str, name: str = 'pdf', options: PdfOptions | None = None, *,
  beam_args: Sequence[str] = (),
) -> str:
  """Curates PDFs into the corpus `output/name/1.0.0`. Returns that path.

  Args:
    input: PDF or WARC files or patterns, of any scheme that files.expand knows.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: what each means is said in options.py.
    beam_args: flags of Beam. Without a choice of its own, as many threads as cores are used on
      this machine: the work is done in child processes.

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown profile, rule or flag; or no document was kept, saying where they went
      (the rejects are on disk then).
  """
  options = options or PdfOptions()
  refetch.check(options.refetch, options.agent, options.stale_before)
  found: dict[str, Any] = {'filters': [r.__name__ for r in profile(options.filters)]}
  if options.router:
    found['router'] = router.digest(options.router)
    if '://' not in options.router:
      options = dataclasses.replace(options, router=os.path.abspath(options.router))
  found['ocr_engine'] = (
    None if options.ocr == 'never' else options.ocr_model or pdf_ocr.engine())
  if options.ocr != 'never':
    log.info('OCR: %s', found['ocr_engine'] or 'not installed, scanned pages will be dropped')
  files = expand(input)
  return curation.curate(
    curation.batches([f['path'] for f in files], options.limit),
    stages(options, name, os.path.join(output, f'{name}_fetched')),
    output=output, name=name, inputs=files, options=options, found=found,
    beam_args=with_threads(beam_args))


def with_threads(beam_args: Sequence[str]) -> list[str]:
  """Beam's flags, with a thread for each core unless they choose a runner or a mode."""
  chosen = ('--runner', '--direct_num_workers', '--direct_running_mode')
  if any(arg.startswith(chosen) for arg in beam_args) or (os.cpu_count() or 1) < 2:
    return list(beam_args)
  return [*beam_args, '--direct_running_mode=multi_threading',
          f'--direct_num_workers={os.cpu_count()}']


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, PdfOptions, prog='data_beam.pdf', name='pdf',
    input='PDF files, or WARC files with PDFs in them, or patterns; local or gs://, s3://, hf://, '
    'https://',
    description='Turns PDF files into a clean text corpus: reads each page from its text layer, or '
    'from its picture by OCR where it has none, puts columns and tables in order, leaves out '
    'running headers and page numbers, keeps the languages you name, drops poor and duplicate '
    'documents, and hides e-mail and IP addresses. Every document that is dropped is kept aside '
    'with the reason.',
    epilog='OCR is done by the tesseract program if it is installed, else by the rapidocr package, '
    'ten CPU seconds a page. Any other flag goes to Apache Beam, such as '
    '--runner=DataflowRunner --project=… .')

