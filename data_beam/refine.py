"""A finished corpus of any kind → another: filtered, scored, deduplicated, decontaminated anew.

  python -m data_beam.refine --input=corpora/web/1.0.0 --output=corpora --name=strict \\
    --rejects --thresholds fineweb words=100 top_2_gram=none

Thresholds ask the signals that a pipeline kept (`--signals`), or measures the text where it kept
none, so that a bound is changed in minutes, without the pages. `--rejects` takes what the stage
filter dropped as well: then the result is what the pipeline would have kept with those bounds, but
for what deduplication would have done with it (`--minhash` does it here).
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam

from data_beam import curation, records
from data_beam.curation import Each, anonymise
from data_beam.dedup.clusters import deduplication
from data_beam.dedup.decontaminate import decontamination
from data_beam.dedup.exact import with_metadata
from data_beam.dedup.parts import parts_dedup
from data_beam.filters import rules
from data_beam.filters.quality import scoring
from data_beam.filters.signals import Bound, bounds, signals, verdict
from data_beam.options import RefineOptions
from data_beam.records import Document, Reject


def stages(options: RefineOptions) -> list[tuple[str, beam.PTransform]]:
  """The pipeline: each transform takes what the one before kept."""
  o = options
  exact = o.minhash != 'none' or bool(o.against)
  return [
    ('read', Each(read)),
    *([('filter', Each(judge, bounds(o.thresholds), o.signals))]
      if o.thresholds or o.signals else []),
    *scoring(o),
    *deduplication(o, exact=exact),
    *parts_dedup(o),
    *decontamination(o),
    ('pii', Each(anonymise)),     # of what the filter dropped, which came before it
  ]


def read(shards: Sequence[tuple[str, int, str, bool]]) -> Iterator[Document]:
  """Documents of shards (file, records, kind, whether C4's rule tidied the corpus); of rejects
  those of the stage filter, as they came, tidied if the others are."""
  for file, count, kind, tidied in shards:
    for row in records.read_shard(file, count, kind):
      stage = row.pop('stage', '')
      reason = row.pop('reason', '')
      document = Document(**row)
      if kind == 'curated':
        yield document
      elif stage == 'filter':
        document.metadata = {**document.metadata, 'was_dropped': reason,
                             'signals': document.metadata.get('signals') or signals(document)}
        if tidied:
          rules.c4(document, min_sentences=0, refuse=False)
        yield document


def judge(
  document: Document, limits: Mapping[str, Bound], keep: bool = False,
) -> Iterator[Document | Reject]:
  """Drops documents by their signals, which are measured where they are not kept."""
  found = document.metadata.get('signals') or signals(document)
  if keep:
    document = with_metadata(document, signals=found)
  reason = verdict(found, limits)
  yield Reject(document, 'filter', reason) if reason else document


def run(
  input: Sequence[str], output: str, name: str = 'refined', options: RefineOptions | None = None, *,
  beam_args: Sequence[str] = (),
) -> str:
  """Refines curated corpora into `output/name/1.0.0`. Returns that path.

  Args:
    input: directories of corpora, DIR/NAME/1.0.0.
    output: parent directory of the corpus and of `name_rejects`.
    name: of the corpus.
    options: what each means is said in options.py.
    beam_args: flags of Beam.

  Raises:
    ValueError: no corpus there, rejects that are gone, an unknown signal, or nothing was kept.
  """
  options = options or RefineOptions()
  shards: list[tuple[str, int, str, bool]] = []
  for path in [input] if isinstance(input, str) else input:
    manifest = records.read_manifest(path, 'curated')
    if os.path.abspath(manifest['path']) == os.path.abspath(records.corpus_path(output, name)):
      raise ValueError(f'--name: {path} is the corpus that is read: give another name')
    tidied = 'c4' in manifest['config'].get('filters', ())
    shards += [(*shard, 'curated', tidied) for shard in records.list_shards(manifest)]
    if options.rejects:
      rejects = records.read_manifest(records.rejects_path(manifest), 'rejects')
      shards += [(*shard, 'rejects', tidied) for shard in records.list_shards(rejects)]
  return curation.curate(
    curation.batches(shards, None), stages(options), output=output, name=name, options=options,
    inputs=[{'path': path} for path, *_ in shards], beam_args=beam_args)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  return curation.command(
    argv, run, RefineOptions, prog='data_beam.refine', name='refined',
    input='finished corpora, DIR/NAME/1.0.0, of any pipeline',
    description='Makes another corpus of finished ones: filters by other thresholds of the '
    'measures that were kept, scores, drops duplicates, repeated lines and quotes of evaluation '
    'sets. Every document that is dropped is kept aside with the reason.')


if __name__ == '__main__':
  sys.exit(main())
