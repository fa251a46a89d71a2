"""Web archives → a curated web corpus. The pipeline is the list of stages in `stages`.

  python -m data_beam.web --input='crawl/*.warc.gz' --output=corpora --name=web

Each stage passes documents on or drops them as a Reject with its reason; the corpus holds what
passed them all, `NAME_rejects` beside it what did not, and manifest.json the funnel. The result
depends on the records alone, not on their order, their files' order, or the number of workers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam

from data_beam import curation
from data_beam.curation import Each, anonymise, judge
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import decontamination
from data_beam.dedup.parts import parts_dedup
from data_beam.filters.quality import scoring
from data_beam.filters.rules import FINEWEB2, profile
from data_beam.filters.urls import UrlFilter
from data_beam.options import WebOptions
from data_beam.records import Document, Reject
from data_beam.sandbox import Limits, Lost, Sandbox
from data_beam.sources import common_crawl, readers
from data_beam.sources.files import expand, size_of
from data_beam.sources.http_answer import mime
from data_beam.sources.readers import Page
from data_beam.text.language import detect_language, is_sure, language_sample, language_shares
from data_beam.text.normalize import normalize
from data_beam.web import rights, served
from data_beam.web.extract import is_cut

# Real pages take up to 0.3 s, with trafilatura 3 s.
extractor = Sandbox('data_beam.web.extract:extract',
                    Limits(memory=900 << 20, cpu_seconds=10, wall_seconds=60))


def stages(options: WebOptions, size: int = 0) -> list[tuple[str, beam.PTransform]]:
  """The pipeline, in the order of FineWeb, or of FineWeb-2, which looks for duplicates before it
  filters: each transform takes what the one before kept. `size` is of the input, in bytes."""
  o, rules = options, profile(options.filters)
  judging = [('filter', Each(judge, rules, o.signals)), *scoring(o)]
  duplicates = deduplication(o, by_url=o.url_dedup, size=size)
  middle = duplicates + judging if rules == FINEWEB2 else judging + duplicates
  url_filter = UrlFilter(o.url_lists, parity=o.parity) if o.url_lists else None
  for path in filter(None, (o.robots, o.language_model)):
    expand([path])  # it is there
  return [
    ('read', Each(read, o.limit, o.dump)),
    *([('url', Each(judge_url, url_filter))] if url_filter else []),
    *([('rights', Each(rights.judge, o.robots, o.robots_agents, o.opt_out, o.licences))]
      if o.robots or o.opt_out or o.licences != 'ignore' else []),
    ('extract', Each(extract, o.tier, o.markdown) if not o.html_server else
     Each(ask_model, o.html_server, o.html_model, o.html_prompt)),
    ('language', Each(identify, o.languages, o.min_language_score, o.language_model)),
    *middle,
    *parts_dedup(o, size),
    *decontamination(o),
    ('pii', Each(anonymise, o.phones, o.accounts)),
  ]


def read(
  paths: Sequence[str | readers.Span], limit: int | None = None, dump: str = '',
) -> Iterator[Page | Reject]:
  """Pages of files, the first `limit` of them; `dump` is of those whose file names none."""
  pages = 0
  for source in paths:
    path = source if isinstance(source, str) else source.path
    for result in readers.read(source):
      if isinstance(result, Page):
        result.dump = result.dump or common_crawl.dump_of(path) or dump
      yield result
      pages += isinstance(result, Page)
      if pages == limit:
        return


def judge_url(page: Page, url_filter: UrlFilter) -> Iterator[Page | Reject]:
  """Drops pages by the user's lists, before anything dear is done with them."""
  reason = url_filter.reason(page.url)
  yield Reject(Document(id=page.id, text='', url=page.url, source='web', date=page.date), 'url',
               reason) if reason else page


def ask_model(
  page: Page, url: str, model: str, prompt: str = '',
) -> Iterator[Document | Reject]:
  """The page's main text by a model; of plain text as it is."""
  if mime(page.content_type) == 'text/plain':
    yield from extract(page)
    return
  metadata, text, reason = _metadata(page, model), '', ''
  try:
    text, cut = served.extract(page, url, model, prompt)
    if cut and 'truncated' not in metadata:
      metadata['truncated'] = 'budget'
  except (served.NoText, Lost) as error:
    reason = error.reason
    if detail := getattr(error, 'detail', ''):
      metadata['error'] = detail
  document = Document(id=page.id, text=normalize(text).strip(), url=page.url, source='web',
                      date=page.date, metadata=metadata)
  yield document if document.text else Reject(document, 'extract', reason or 'no_text')


def _metadata(page: Page, extractor: str) -> dict[str, Any]:
  metadata = {'warc_file': page.warc_file, 'warc_offset': page.warc_offset, 'extractor': extractor,
              **page.notes}
  if page.dump:
    metadata['dump'] = page.dump
  if page.truncated:
    metadata['truncated'] = page.truncated
  return metadata


def extract(
  page: Page, tier: str = 'default', markdown: bool = False
) -> Iterator[Document | Reject]:
  """The page's main text as a document, in a clean form."""
  metadata = _metadata(page, tier)
  if not page.truncated and is_cut(page.body, tier):
    metadata['truncated'] = 'budget'
  main, reason = None, 'no_text'
  try:
    main = extractor.call(page.body, url=page.url, content_type=page.content_type, tier=tier,
                          markdown=markdown)
  except Lost as lost:
    reason = lost.reason
  document = Document(id=page.id, text=normalize(main or '').strip(), url=page.url,
                      source='web', date=page.date, metadata=metadata)
  yield document if document.text else Reject(document, 'extract', reason)


def identify(
  document: Document, languages: Sequence[str], min_score: float | None, model: str = '',
) -> Iterator[Document | Reject]:
  """Names the language; keeps the wanted ones (all, if none is named) where it is fairly sure: its
  score is above `min_score`, or above the threshold fitted to the language if that is None.

  Where the detector is in doubt, `metadata['languages']` has each language's share of the text.
  """
  found = detect_language(language_sample(document.text), model)
  language, score = next(iter(found), ('', 0.))
  document = dataclasses.replace(document, language=language, language_score=score)
  if score < .9:
    shares = language_shares(document.text, model=model)
    if len(shares) > 1:
      document.metadata = {**document.metadata, 'languages': {
        name: round(share, 3) for name, share in shares.items()}}
  if languages and language not in languages:
    yield Reject(document, 'language', language or 'unknown')
  elif not is_sure(language, score, min_score):
    yield Reject(document, 'language', 'unsure')
  else:
    yield document


def run(
  input: Sequence[str], output: str, name: str = 'web', options: WebOptions | None = None, *,
  beam_args: Sequence[str] = (),
) -> str:
  """Curates web archives into the corpus `output/name/1.0.0`. Returns that path.

  Args:
    input: files or patterns, of any scheme that files.expand knows.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: what each means is said in options.py.
    beam_args: flags of Beam, such as ('--runner=DataflowRunner', …).

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown profile, rule or flag; nothing says of which dump the files are, where
      it matters; or no document was kept, saying where they went
      (the rejects are on disk then).
  """
  options = options or WebOptions()
  files = expand(input)
  if options.dedup_scope == 'dump' and not options.dump and not any(
      common_crawl.dump_of(f['path']) or readers.tells_dumps(f['path']) for f in files):
    raise ValueError('dedup_scope is dump, but no file lies in crawl-data/NAME/: give --dump')
  return curation.curate(
    curation.batches(readers.split_all(files), options.limit), stages(options, size_of(files)),
    output=output, name=name, inputs=files, options=options, beam_args=beam_args,
    found={'filters': [rule.__name__ for rule in profile(options.filters)]})


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, WebOptions, prog='data_beam.web', name='web',
    input='files, folders or patterns, local or gs://, s3://, hf://, https://; WARC, WET, ARC, '
    'HTML, text (.txt, .md) or JSONL, or listings of such files (.paths.gz)',
    description='Turns web archives (WARC files) into a clean text corpus: takes the main text of '
    'each page, keeps the languages you name, drops low-quality and duplicate pages, and hides '
    'e-mail and IP addresses. Every page that is dropped is kept aside with the reason.',
    epilog='Any other flag goes to Apache Beam, such as --runner=DataflowRunner --project=…, or '
    '--direct_running_mode=multi_processing --direct_num_workers=4 for more cores of this machine.')

