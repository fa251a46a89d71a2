"""Web archives → a curated web corpus. The pipeline is the list of stages in `stages`.

  python -m data_beam.web --input='crawl/*.warc.gz' --output=corpora --name=web

Each stage passes documents on or drops them as a Reject with its reason; the corpus holds what
passed them all, `NAME_rejects` beside it what did not, and manifest.json the funnel. The result
depends on the records alone, not on their order, their files' order, or the number of workers.
"""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from data_beam import bounded, html_text, records, sources, text
from data_beam import filters as filters_lib
from data_beam.dedup import HASHES, SCOPES, Decontaminate, ExactDedup, near_duplicates
from data_beam.progress import Funnel
from data_beam.records import Document, Reject
from data_beam.sources import Page

log = logging.getLogger('data_beam')


def stages(
  *, languages: Sequence[str] = ('en',), min_language_score: float | None = None,
  rules: Sequence[filters_lib.Rule] = filters_lib.WEB, tier: str = 'default',
  markdown: bool = False, limit: int | None = None,
  url_filter: filters_lib.UrlFilter | None = None, scope: str = 'global',
  url_dedup: bool = False, minhash: str = '14x8', minhash_hash: str = 'fast',
  evaluation_files: Sequence[str] = (), phones: bool = False,
) -> list[tuple[str, beam.PTransform]]:
  """The pipeline, in the order of FineWeb, or of FineWeb-2, which looks for duplicates before it
  filters: each transform takes what the one before kept."""
  judging = [('filter', Each(judge, tuple(rules)))]
  deduplication = [
    *([('url_dedup', ExactDedup(by='url', scope=scope))] if url_dedup else []),
    ('exact_dedup', ExactDedup(scope=scope)),
    *near_duplicates(minhash, minhash_hash, scope),
  ]
  middle = (deduplication + judging if tuple(rules) == filters_lib.FINEWEB2
            else judging + deduplication)
  return [
    ('read', Each(read, limit)),
    *([('url', Each(judge_url, url_filter))] if url_filter else []),
    ('extract', Each(extract, tier, markdown)),
    ('language', Each(identify, tuple(languages), min_language_score)),
    *middle,
    *([('decontaminate', Decontaminate(evaluation_files))] if evaluation_files else []),
    ('pii', Each(anonymise, phones)),
  ]


class Each(beam.PTransform):
  """PCollection → (kept, rejects): applies a generator function that yields results and Rejects."""

  def __init__(self, function: Callable[..., Iterator[Any]], *args):
    super().__init__()
    self.function, self.args = function, args

  def expand(self, elements):
    split = elements | beam.FlatMap(_route, self.function, self.args).with_outputs(
      'rejects', main='kept')
    return split.kept, split.rejects


def _route(element, function, args):
  for result in function(element, *args):
    yield beam.pvalue.TaggedOutput('rejects', result) if isinstance(result, Reject) else result


def read(paths: Sequence[str], limit: int | None = None) -> Iterator[Page | Reject]:
  """Pages of files, the first `limit` of them."""
  pages = 0
  for path in paths:
    for result in sources.read(path):
      yield result
      pages += isinstance(result, Page)
      if pages == limit:
        return


def judge_url(page: Page, url_filter: filters_lib.UrlFilter) -> Iterator[Page | Reject]:
  """Drops pages by the user's lists, before anything dear is done with them."""
  reason = url_filter.reason(page.url)
  yield Reject(Document(id=page.id, text='', url=page.url, source='web', date=page.date), 'url',
               reason) if reason else page


def extract(
  page: Page, tier: str = 'default', markdown: bool = False
) -> Iterator[Document | Reject]:
  """The page's main text as a document, in a clean form."""
  metadata = {'warc_file': page.warc_file, 'warc_offset': page.warc_offset, 'extractor': tier}
  if page.truncated:
    metadata['truncated'] = page.truncated
  main, reason = None, 'no_text'
  try:
    main = bounded.extract(page.body, page.url, page.content_type, tier=tier, markdown=markdown)
  except bounded.Lost as lost:
    reason = str(lost)
  document = Document(id=page.id, text=text.normalize(main or '').strip(), url=page.url,
                      source='web', date=page.date, metadata=metadata)
  yield document if document.text else Reject(document, 'extract', reason)


def identify(
  document: Document, languages: Sequence[str], min_score: float | None,
) -> Iterator[Document | Reject]:
  """Names the language; keeps the wanted ones (all, if none is named) where it is fairly sure: its
  score is above `min_score`, or above the threshold fitted to the language if that is None.

  Where the detector is in doubt, `metadata['languages']` has each language's share of the text.
  """
  language, score = next(iter(text.detect_language(text.language_sample(document.text))), ('', 0.))
  document = dataclasses.replace(document, language=language, language_score=score)
  if score < .9:
    shares = text.language_shares(document.text)
    if len(shares) > 1:
      document.metadata = {**document.metadata, 'languages': {
        name: round(share, 3) for name, share in shares.items()}}
  if languages and language not in languages:
    yield Reject(document, 'language', language or 'unknown')
  elif not text.is_sure(language, score, min_score):
    yield Reject(document, 'language', 'unsure')
  else:
    yield document


def judge(document: Document, rules: Sequence[filters_lib.Rule]) -> Iterator[Document | Reject]:
  """The quality rules in order, which may tidy the text, until one gives a reason.

  A rejected document is reported as it came; the rule's name is in its metadata.
  """
  tidy = dataclasses.replace(document)
  for rule in rules:
    if reason := rule(tidy):
      metadata = document.metadata | {'rule': rule.__name__}
      yield Reject(dataclasses.replace(document, metadata=metadata), 'filter', reason)
      return
  yield tidy


def anonymise(document: Document, phones: bool = False) -> Iterator[Document]:
  """E-mail and IP addresses replaced, telephone numbers if asked for; drops nothing."""
  yield dataclasses.replace(document, text=text.replace_pii(document.text, phones=phones))


def run(
  input: Sequence[str], output: str, name: str = 'web', *, languages: Sequence[str] = ('en',),
  min_language_score: float | None = None, filters: str | Sequence[str] = 'fineweb',
  tier: str = 'default', markdown: bool = False, limit: int | None = None, num_shards: int = 8,
  url_lists: str = '', parity: bool = False, dedup_scope: str = 'global',
  url_dedup: bool = False, minhash: str = '14x8', minhash_hash: str = 'fast',
  decontaminate: Sequence[str] = (), phones: bool = False, beam_args: Sequence[str] = (),
) -> str:
  """Curates web archives into the corpus `output/name/1.0.0`. Returns that path.

  Args:
    input: files or patterns, of any scheme that sources.expand knows.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    languages: ISO 639-1 codes to keep; empty for all.
    min_language_score: the detector's probability must be above it (FineWeb: 0.65); None for
      the thresholds fitted to each language, text.LANGUAGE_THRESHOLDS.
    filters: a profile or rule names, see filters.PROFILES and filters.RULES.
    tier: of the extractor, see html_text.TIERS.
    markdown: keep headings, lists, tables and code as Markdown.
    limit: read at most so many pages, from the first files on, in one worker: for trial runs.
    num_shards: files of the corpus.
    url_lists: folder of lists for filters.UrlFilter; empty for none.
    parity: with the faults of datatrove's URL filter, to compare.
    dedup_scope: which documents may be duplicates of each other, one of dedup.SCOPES.
    url_dedup: keep one page of each URL.
    minhash: bands x rows of the signatures by which near duplicates are found, or 'none'.
    minhash_hash: one of dedup.HASHES; all but 'fast' give datatrove's signatures.
    decontaminate: JSONL files of evaluation sets; documents that quote them are dropped.
    phones: replace telephone numbers too.
    beam_args: flags of Beam, such as ('--runner=DataflowRunner', …).

  Raises:
    FileNotFoundError: a pattern matches nothing.
    ValueError: an unknown profile, rule, tier or flag; or no document was kept, saying where they
      went (the rejects are on disk then).
  """
  rules = filters_lib.profile(filters)
  url_filter = filters_lib.UrlFilter(url_lists, parity=parity) if url_lists else None
  evaluation_files = [f['path'] for f in sources.expand(decontaminate)] if decontaminate else []
  if tier not in html_text.TIERS:
    raise ValueError(f'unknown tier {tier!r}: choose one of {", ".join(html_text.TIERS)}')
  if limit is not None and limit < 1:
    raise ValueError(f'limit is {limit}: give a number of pages, at least 1')
  if not name or '/' in name:
    raise ValueError(f'{name!r} cannot be the name of a corpus: give a word such as web')
  options = records.pipeline_options(beam_args)
  files = sources.expand(input)
  log.info('curating %d files (%.1f MB) into %s', len(files),
           sum(f['bytes'] for f in files) / 1e6, records.corpus_path(output, name))
  paths = [f['path'] for f in files]
  steps = stages(languages=languages, min_language_score=min_language_score, rules=rules,
                 tier=tier, markdown=markdown, limit=limit, url_filter=url_filter,
                 scope=dedup_scope, url_dedup=url_dedup, minhash=minhash,
                 minhash_hash=minhash_hash, evaluation_files=evaluation_files, phones=phones)
  with Funnel(steps, options) as funnel, beam.Pipeline(options=options) as pipeline:
    kept, rejects = funnel.apply(
      pipeline | 'files' >> beam.Create([paths] if limit else [[path] for path in paths])
      | beam.Reshuffle())
    records.write_corpus(
      kept, rejects, output=output, name=name,
      stages=[stage for stage, _ in steps], inputs=files, num_shards=num_shards,
      config={'languages': list(languages), 'min_language_score': min_language_score,
              'filters': [rule.__name__ for rule in rules], 'tier': tier,
              'markdown': markdown, 'limit': limit, 'url_lists': url_lists, 'parity': parity,
              'dedup_scope': dedup_scope, 'url_dedup': url_dedup, 'minhash': minhash,
              'minhash_hash': minhash_hash, 'decontaminate': list(evaluation_files),
              'phones': phones})
  path = records.corpus_path(output, name)
  return announce(path)


def announce(path: str) -> str:
  """Logs the funnel of a finished corpus; raises CorpusError if nothing was kept."""
  manifest = records.read_manifest(path)
  records.check_not_empty(manifest)
  for row in manifest['funnel']:
    reasons = ', '.join(f'{reason} {n}' for reason, n in list(row['dropped'].items())[:5])
    log.info('%-12s %6d of %6d kept%s', row['stage'], row['documents_out'], row['documents_in'],
             f' (dropped: {reasons})' if reasons else '')
  return path


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = argparse.ArgumentParser(
    prog='python -m data_beam.web', allow_abbrev=False,
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    description='Turns web archives (WARC files) into a clean text corpus: takes the main text of '
    'each page, keeps the languages you name, drops low-quality and duplicate pages, and hides '
    'e-mail and IP addresses. Every page that is dropped is kept aside with the reason.',
    epilog='Any other flag goes to Apache Beam, such as --runner=DataflowRunner --project=…, or '
    '--direct_running_mode=multi_processing --direct_num_workers=4 for more cores of this machine.')
  parser.add_argument('--input', nargs='+', action='extend', required=True, metavar='GLOB',
                      default=argparse.SUPPRESS,
                      help='files or patterns, local or gs://, s3://, hf://, https://; WARC, WET, '
                      'ARC, HTML or JSONL, or listings of such files (.paths.gz); several after '
                      'spaces, or as --input=A --input=B')
  add_flags(parser, name='web', min_language_score=None, filters='fineweb', minhash='14x8')
  parser.add_argument('--tier', default='default', choices=html_text.TIERS,
                      help='how the main text is found: default for quality, fast for speed')
  parser.add_argument('--markdown', action='store_true',
                      help='keep headings, lists, tables and code as Markdown')
  parser.add_argument('--url_lists', default='', metavar='DIR',
                      help='drop pages by your own lists: domains.txt, urls.txt, words.txt, '
                      'subwords.txt, soft_words.txt in this folder')
  parser.add_argument('--parity', action='store_true',
                      help="keep datatrove's faults in comparing URLs with the lists")
  parser.add_argument('--dedup_scope', default='global', choices=SCOPES,
                      help='look for duplicates among all documents, or within a crawl dump or a '
                      'language only')
  parser.add_argument('--url_dedup', action='store_true', help='keep one page of each URL')
  parser.add_argument('--decontaminate', nargs='+', default=(), metavar='GLOB',
                      help='drop documents that quote these evaluation sets (JSONL)')
  parser.add_argument('--phones', action='store_true', help='hide telephone numbers too')
  return command(parser, run, argv)


def add_flags(
  parser: argparse.ArgumentParser, *, name: str, min_language_score: float | None, filters: str,
  minhash: str,
) -> None:
  """The flags that every curation command has, with its defaults."""
  add = parser.add_argument
  add('--output', required=True, metavar='DIR', default=argparse.SUPPRESS,
      help='where corpora go')
  add('--name', default=name, help='name of the corpus, a directory in DIR')
  add('--languages', default='en', metavar='CODES',
      help='languages to keep, such as en,fr,de; any for all of them')
  add('--min_language_score', type=float, default=min_language_score, metavar='P',
      help='drop documents whose language is less certain than this (None: a threshold fitted '
      'to each language)')
  add('--filters', default=filters, metavar='NAME',
      help=f'quality rules: a profile ({", ".join(filters_lib.PROFILES)}), or names of rules with '
      f'commas between ({", ".join(filters_lib.RULES)})')
  add('--minhash', default=minhash, metavar='BANDSxROWS',
      help='near duplicates share a band of so many hashes; none to keep them')
  add('--minhash_hash', default='fast', choices=HASHES,
      help="how words are hashed: fast, or datatrove's signatures with xxh64 or sha1")
  add('--limit', type=int, metavar='N', default=argparse.SUPPRESS,
      help='read only the first N documents')
  add('--num_shards', type=int, default=8, metavar='N', help='files of the corpus')


def command(
  parser: argparse.ArgumentParser, run: Callable[..., str], argv: Sequence[str] | None
) -> int:
  """Runs a curation command: 0, or 2 after one line about what was wrong with the input."""
  args, beam_args = parser.parse_known_args(argv)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, force=True)
  log.setLevel(logging.INFO)
  options = vars(args)
  if 'languages' in options:
    options['languages'] = [] if args.languages == 'any' else args.languages.split(',')
  try:
    path = run(**options, beam_args=beam_args)
  except (ValueError, OSError) as error:
    print(f'{parser.prog.removeprefix("python -m ")}: {error}', file=sys.stderr)
    return 2
  print(f'The corpus is at {path}, what was dropped at '
        f'{records.corpus_path(args.output, args.name + "_rejects")}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
