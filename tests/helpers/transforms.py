"""What a transform keeps and drops, in memory."""

import random

import apache_beam as beam

from data_beam.beam_options import pipeline_options
from data_beam.records import Document, Reject

FOUND = []  # the in-memory runner shares this process


def remember(element):
  FOUND.append(element)


def run(transform, documents, seed=0):
  """What a transform keeps and drops, by id, of the documents in an order chosen by `seed`."""
  FOUND.clear()
  documents = random.Random(seed).sample(documents, len(documents))
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    both = pipeline | beam.Create(documents) | beam.Reshuffle() | transform
    _ = both | beam.Flatten() | 'remember' >> beam.Map(remember)
  kept = {d.id: d for d in FOUND if isinstance(d, Document)}
  rejects = {r.document.id: r for r in FOUND if isinstance(r, Reject)}
  assert len(kept) + len(rejects) == len(FOUND) == len(documents)
  return kept, rejects
