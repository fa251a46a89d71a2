"""Small corpora of documents."""

import math
import pathlib
import random

import apache_beam as beam

from data_beam import records
from data_beam.beam_options import pipeline_options
from data_beam.records import Document, Reject

STAGES = ('extract', 'filter')


def make_documents(count=40):
  rng = random.Random(0)
  return [
    Document(f'<urn:{i}>', ' '.join(rng.choices(['wörd', 'and', 'line\n'], k=rng.randint(1, 90))),
             url=f'http://x/{i}', source='web', language='en' if i % 3 else 'fr',
             language_score=0.5, quality=math.nan if i % 2 else 1.5, metadata={'n': i})
    for i in range(count)]


def write(output, documents, *, is_kept=lambda d: d.metadata['n'] % 4, name='web', args=(), **kw):
  """Documents for which `is_kept` fails are dropped, by the two stages in turn."""
  def reject(document):
    return Reject(document, STAGES[document.metadata['n'] // 4 % 2], 'unlucky')

  with beam.Pipeline(options=pipeline_options(args)) as pipeline:
    everything = pipeline | beam.Create(documents) | beam.Reshuffle()
    records.write_corpus(
      everything | 'kept' >> beam.Filter(is_kept),
      everything | 'dropped' >> beam.Filter(lambda d: not is_kept(d)) | beam.Map(reject),
      output=str(output), name=name, config={'b': 1, 'a': 2},
      inputs=[{'path': 'x', 'bytes': 3}], **{'stages': STAGES, 'num_shards': 3, **kw})
  return records.corpus_path(str(output), name)


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes()
          for p in pathlib.Path(folder).rglob('*') if p.is_file()}
