"""Several scorers combined into buckets of quality, each a corpus that a mixture can name.

  python -m data_beam.buckets --corpus=CORPUS --models edu.npz dclm.bin#hq --output=DIR --name=NAME

As Nemotron-CC does (arXiv 2412.02595): each scorer's scores are cut at the 5th, 10th … 95th
percentile of the corpus's bytes into bins 0 to 19, and a document has the highest bin of any
scorer, so that what one of them values is not lost. The cuts are those of a sample by a hash of
ids, the same in every run, and stand in the manifests.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from data_beam import records
from data_beam.beam_options import explained, is_beams, pipeline_options
from data_beam.command_line import Parser, complain
from data_beam.filters.quality import documents_of, load
from data_beam.records import Document, Reject

BINS = 20
SAMPLE = 100_000        # documents that the cuts are of


def write_buckets(
  corpus: str, models: Sequence[str], output: str, name: str, buckets: Sequence[str], *,
  num_shards: int = 8, beam_args: Sequence[str] = (),
) -> list[str]:
  """Writes `output/NAME_BUCKET/1.0.0` for each bucket. Returns their paths.

  Documents have `metadata.scores` of each model and `metadata.bin`. Those that no model can score
  are rejects of the first bucket (no_score), those whose bin no bucket has too (no_bucket).

  Args:
    corpus: a curated one.
    models: files that quality.load reads, or names of scores that are in metadata.scores.
    output: parent directory of the buckets.
    name: of the corpora, before the bucket's.
    buckets: 'NAME=LOW-HIGH' of bins each.
    num_shards: of each.
    beam_args: flags of Beam.

  Raises:
    ValueError: a bucket that is none, a model that cannot be read, or no document has a score.
  """
  bins = parse(buckets)
  for path in models:
    if _is_file(path):
      load(path)
  options = pipeline_options(beam_args)
  manifest = records.read_manifest(corpus, 'curated')
  shards = records.list_shards(manifest)
  cuts = _cuts(shards, models, FileSystems.join(output, f'.{name}-cuts.json'), beam_args)
  names = list(dict.fromkeys(bins.values()))
  config = {'corpus': manifest['name'], 'models': list(map(os.path.basename, models)),
            'buckets': list(buckets), 'cuts': cuts}
  with beam.Pipeline(options=options) as pipeline:
    split = (pipeline | beam.Create(shards) | beam.Reshuffle() | beam.FlatMap(documents_of)
             | beam.FlatMap(_sort, models, cuts, bins).with_outputs('rejects', *names))
    for number, bucket in enumerate(names):
      rejects = split.rejects if not number else pipeline | f'none {bucket}' >> beam.Create([])
      records.write_corpus(
        split[bucket], rejects, output=output, name=f'{name}_{bucket}', stages=['quality'],
        inputs=[{'path': path, 'bytes': 0} for path, _ in shards], num_shards=num_shards,
        config=config | {'bucket': bucket})
  return [records.corpus_path(output, f'{name}_{bucket}') for bucket in names]


def parse(buckets: Sequence[str]) -> dict[int, str]:
  """{bin: bucket} of 'NAME=LOW-HIGH'. Raises ValueError for what is none, or a bin in two."""
  bins: dict[int, str] = {}
  for entry in buckets:
    name, _, span = entry.partition('=')
    low, _, high = span.partition('-')
    if not (name.isidentifier() and low.isdigit() and (high or low).isdigit()
            and int(low) <= int(high or low) < BINS):
      raise ValueError(f'--buckets: {entry!r} is no NAME=LOW-HIGH of bins 0 to {BINS - 1}')
    for number in range(int(low), int(high or low) + 1):
      if bins.setdefault(number, name) != name:
        raise ValueError(f'--buckets: bin {number} is in {bins[number]} and in {name}')
  return bins


def _is_file(model: str) -> bool:
  return model.partition('#')[0].endswith(('.npz', '.bin', '.ftz', '.safetensors'))


def scores_of(document: Document, models: Sequence[str]) -> dict[str, float]:
  """Scores by the models' base names, of those that can score the document."""
  known = document.metadata.get('scores') or {}
  found = {}
  for model in models:
    name = os.path.basename(model)
    value = known.get(name)
    if value is None and _is_file(model):
      value = round(load(model).of(document), 4)
    if isinstance(value, int | float) and not math.isnan(value):
      found[name] = float(value)
  return found


def _cuts(
  shards: Sequence[tuple[str, int]], models: Sequence[str], path: str, beam_args: Sequence[str],
) -> dict[str, list[float]]:
  with beam.Pipeline(options=pipeline_options(beam_args)) as pipeline:
    _ = (pipeline | beam.Create(shards) | beam.Reshuffle() | beam.FlatMap(documents_of)
         | 'score' >> beam.Map(_weighed, models)
         | beam.combiners.Top.Smallest(SAMPLE)
         | 'cuts' >> beam.Map(lambda rows: records.write_bytes(
           path, json.dumps([[size, json.loads(scores)] for _, size, scores in rows]).encode())))
  rows = json.loads(records.read_bytes(path))
  FileSystems.delete([path])
  cuts = {}
  for model in map(os.path.basename, models):
    found = [(scores[model], size) for size, scores in rows if model in scores]
    if found:
      cuts[model] = percentiles(*np.array(found, float).T)
  if not cuts:
    raise ValueError('no document has a score of ' + ', '.join(map(os.path.basename, models)))
  return cuts


def _weighed(document: Document, models: Sequence[str]) -> tuple[int, int, str]:
  size = len(document.text.encode('utf-8', 'replace'))
  return (records.stable_hash(document.id) >> 1, size,   # what a coder of Beam's takes, and sorts
          json.dumps(scores_of(document, models), sort_keys=True))


def percentiles(values: np.ndarray, weights: np.ndarray) -> list[float]:
  """The 19 values below which 5, 10 … 95 % of the weight is: a document as large as a cut is above
  it."""
  order = np.argsort(values, kind='stable')
  share = np.cumsum(weights[order]) / weights.sum()
  at = np.searchsorted(share, np.arange(1, BINS) / BINS, 'right')
  return values[order][np.minimum(at, len(order) - 1)].tolist()


def _sort(
  document: Document, models: Sequence[str], cuts: Mapping[str, Sequence[float]],
  bins: Mapping[int, str],
) -> Iterator[Any]:
  scores = scores_of(document, models)
  found = [int(np.searchsorted(cuts[name], value, 'right'))
           for name, value in scores.items() if name in cuts]
  if not found:
    yield beam.pvalue.TaggedOutput('rejects', Reject(document, 'quality', 'no_score'))
    return
  document = dataclasses.replace(
    document, metadata={**document.metadata, 'scores': scores, 'bin': max(found)})
  if bucket := bins.get(max(found)):
    yield beam.pvalue.TaggedOutput(bucket, document)
  else:
    yield beam.pvalue.TaggedOutput('rejects', Reject(document, 'quality', 'no_bucket'))


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = Parser(
    prog='python -m data_beam.buckets', others=is_beams,
    description='Combines several scorers into buckets of quality and writes a corpus for each, '
    'NAME_BUCKET: 20 bins of equal size in bytes by each scorer, of which a document has the '
    'highest.', epilog='Any other flag goes to Apache Beam.')
  add = parser.add_argument
  add('--corpus', required=True, metavar='DIR', help='DIR/NAME/1.0.0')
  add('--models', nargs='+', required=True, metavar='FILE',
      help='.npz, .bin, .ftz or .safetensors; or names of metadata.scores that are there already')
  add('--output', required=True, metavar='DIR', help='where corpora go')
  add('--name', required=True, help='of the corpora, before the name of the bucket')
  add('--buckets', type=lambda text: text.split(','), metavar='NAME=LOW-HIGH',
      default=['low=0-9', 'medium=10-17', 'high=18-19'],
      help='bins of each bucket (default: low=0-9,medium=10-17,high=18-19)')
  add('--num_shards', type=int, default=8, help='of each corpus (default: %(default)s)')
  args, beam_args = parser.parse_known_args(argv)
  try:
    with explained(beam_args):
      paths = write_buckets(args.corpus, args.models, args.output, args.name, args.buckets,
                            num_shards=args.num_shards, beam_args=beam_args)
  except (ValueError, OSError) as error:
    return complain(parser.prog, error)
  for path in paths:
    print(f'A bucket is at {path}')
  return 0
