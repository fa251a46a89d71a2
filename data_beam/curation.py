"""What every pipeline of documents shares: its stages' frame, its run, its command line."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

from data_beam import file_runner, records
from data_beam import options as options_lib
from data_beam.beam_options import (
  explained,
  is_beams,
  pipeline_options,
  require_file_system,
)
from data_beam.command_line import Parser, complain
from data_beam.dedup.exact import with_metadata
from data_beam.filters.rules import Rule
from data_beam.filters.signals import signals
from data_beam.options import Options
from data_beam.progress import Funnel
from data_beam.records import Document, Reject
from data_beam.redact import public
from data_beam.text import pii

log = logging.getLogger('data_beam')


# --- stages --------------------------------------------------------------------------------------


class Each(beam.PTransform):
  """PCollection → (kept, rejects): applies a generator function that yields results and Rejects."""

  def __init__(self, function: Callable[..., Iterator[Any]], *args):
    super().__init__()
    self.function, self.args = function, args

  def expand(self, elements: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = elements | beam.FlatMap(_route, self.function, self.args).with_outputs(
      'rejects', main='kept')
    return split.kept, split.rejects


def _route(element, function, args):
  for result in function(element, *args):
    yield beam.pvalue.TaggedOutput('rejects', result) if isinstance(result, Reject) else result


def judge(
  document: Document, rules: Sequence[Rule], keep_signals: bool = False,
) -> Iterator[Document | Reject]:
  """The quality rules in order, which may tidy the text, until one gives a reason.

  A rejected document is reported as it came; the rule's name is in its metadata. With
  `keep_signals` metadata.signals has what FineWeb's rules measure, of kept and dropped ones.
  """
  if keep_signals:
    document = with_metadata(document, signals=signals(document))
  tidy = dataclasses.replace(document)
  for rule in rules:
    if reason := rule(tidy):
      metadata = document.metadata | {'rule': rule.__name__}
      yield Reject(dataclasses.replace(document, metadata=metadata), 'filter', reason)
      return
  yield tidy


def anonymise(
  document: Document, phones: bool = False, accounts: bool = False,
) -> Iterator[Document]:
  """E-mail and IP addresses replaced, telephone numbers and accounts if asked for; drops nothing.
  """
  yield dataclasses.replace(
    document, text=pii.replace_pii(document.text, phones=phones, accounts=accounts))


LARGE = 1 << 30     # bytes of input, from which on shuffles are files unless a runner is chosen


# --- a run ---------------------------------------------------------------------------------------


def curate(
  source: beam.PTransform, steps: Sequence[tuple[str, beam.PTransform]], *, output: str, name: str,
  options: Options, inputs: Sequence[Mapping[str, Any]], found: Mapping[str, Any] | None = None,
  beam_args: Sequence[str] = (),
) -> str:
  """Takes what `source` yields through the stages into the corpus `output/name/1.0.0`.

  Args:
    source: of what the first stage takes.
    steps: (name, transform) in order; each takes what the one before kept.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: kept in the manifest.
    inputs: [{'path': …}, …], kept in the manifest.
    found: of the manifest's options those that say more than what was asked for.
    beam_args: flags of Beam, such as ('--runner=DataflowRunner', …).

  Returns:
    The path of the corpus.

  Raises:
    ValueError: a name that is none, or an unknown flag; or no document was kept, saying where they
      went (the rejects are on disk then).
  """
  path = records.corpus_path(output, name)
  require_file_system(path)
  size = sum(i.get('bytes', 0) for i in inputs)
  if size >= LARGE and not any(a.startswith(('--runner', '--direct_')) for a in beam_args):
    beam_args = [*beam_args, '--runner=files']
    log.info('large inputs: shuffles are files, see --runner=files in docs/scale.md')
  beam_options = pipeline_options(beam_args)
  log.info('curating %d files (%.1f MB) into %s', len(inputs),
           size / 1e6, public(path))
  identity = [records.code_version(), name, output, dataclasses.asdict(options), found,
              [[i, os.path.exists(i['path']) and os.stat(i['path']).st_mtime_ns] for i in inputs]]
  with (file_runner.kept(beam_options, os.path.join(output, f'.{name}-work'), identity),
        Funnel(steps, beam_options) as funnel, beam.Pipeline(options=beam_options) as pipeline):
    kept, rejects = funnel.apply(pipeline | 'source' >> source | beam.Reshuffle())
    records.write_corpus(
      kept, rejects, output=output, name=name, stages=[stage for stage, _ in steps], inputs=inputs,
      num_shards=options.num_shards, signatures=getattr(options, 'signatures', False),
      config=dataclasses.asdict(options) | dict(found or {}))
  return announce(path)


def batches(items: Sequence[Any], limit: int | None) -> beam.PTransform:
  """A source of lists for a stage that reads: of one item each, or with a limit of all of them, so
  that one worker counts."""
  return beam.Create([list(items)] if limit else [[item] for item in items])


# What to change where a stage drops more than half: options, flags and fields of the config alike.
_HINTS = {
  'language': 'languages names those that are kept (any: all), and min_language_score=0 keeps '
              'texts whose language is unsure',
  'filter': 'the default rules are meant for web pages; filters=docs is gentler with notes and '
            'manuals, filters=none keeps everything',
  'rephrase': 'does --server answer, and has it --model?',
  'minhash': 'texts that differ only in numbers count as equal; minhash=none keeps all',
}


def announce(path: str) -> str:
  """Logs the funnel of a finished corpus, and what to change where a stage dropped more than half;
  raises CorpusError if nothing was kept."""
  manifest = records.read_manifest(path)
  hints = [f'{row["stage"]} dropped more than half: {_HINTS[row["stage"]]}'
           for row in manifest['funnel']
           if row['stage'] in _HINTS and 2 * row['documents_out'] < row['documents_in']]
  try:
    records.check_not_empty(manifest)
  except records.EmptyCorpus as error:
    raise records.EmptyCorpus('; '.join([str(error), *hints])) from None
  for row in manifest['funnel']:
    reasons = ', '.join(f'{reason} {n}' for reason, n in list(row['dropped'].items())[:5])
    log.info('%-12s %6d of %6d kept%s', row['stage'], row['documents_out'], row['documents_in'],
             f' (dropped: {reasons})' if reasons else '')
  for hint in hints:
    log.info('%s', hint)
  return path


# --- the command line ----------------------------------------------------------------------------


def command(
  argv: Sequence[str] | None, run: Callable[..., str], options: type[Options], *, prog: str,
  input: str, name: str, description: str, epilog: str = 'Any other flag goes to Apache Beam, such '
  'as --runner=DataflowRunner --project=… .',
) -> int:
  """A curation command: `run(input, output, name, options, beam_args=…)` from the flags.

  Args:
    argv: the flags, those of the process if None.
    run: the pipeline.
    options: its class of options, of each of which a flag is made.
    prog: the module's name.
    input: what --input takes.
    name: the corpus's, if none is given.
    description: what the command does, for people.
    epilog: what else they should know.

  Returns:
    0, or 2 after one line about what was wrong with the input.
  """
  parser = Parser(
    prog=f'python -m {prog}', description=description, epilog=epilog, others=is_beams)
  parser.add_argument('--input', nargs='+', action='extend', required=True, metavar='GLOB',
                      help=f'{input}; several after blanks, or as --input=A --input=B')
  parser.add_argument('--output', required=True, metavar='DIR', help='where corpora go')
  parser.add_argument('--name', default=name,
                      help='name of the corpus, a directory in DIR (default: %(default)s)')
  options_lib.add_flags(parser, options)
  args, beam_args = parser.parse_known_args(argv)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, force=True)
  try:
    with explained(beam_args):
      pipeline_options(beam_args)  # an unknown flag is said before a missing file
      log.setLevel(logging.INFO)
      path = run(args.input, args.output, args.name, options_lib.take(options, vars(args)),
                 beam_args=beam_args)
  except records.EmptyCorpus as error:
    return complain(prog, f'--input={" ".join(args.input)}: {error}')
  except (ValueError, OSError) as error:
    return complain(prog, error)
  rejects = records.corpus_path(args.output, args.name + '_rejects')
  print(public(f'The corpus is at {path}, what was dropped at {rejects}'))
  return 0
