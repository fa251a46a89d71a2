"""Signatures that stay beside a corpus, and documents of another corpus to compare with.

A signature is what the stages of deduplication compare: the hash of a text that white space and
case do not change, and one of each band, 16 bytes each; a text too short for bands has zeros there.
In a finished corpus they are the sidecar `signatures`, [records, 1 + bands].
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np

from data_beam import records
from data_beam.dedup.exact import Known, content_key
from data_beam.dedup.minhash import band_hashes
from data_beam.records import Document
from data_beam.sources.files import open_file

SIZE = 16       # bytes of a hash


def sign(document: Document, *, bands: int, rows: int, hash_name: str) -> Document:
  """The document with its signature, of the same width for every text."""
  found = band_hashes(document.text, bands=bands, rows=rows, hash_name=hash_name,
                      language=document.language) if bands else []
  signature = b''.join([content_key(document.text), *found])
  return dataclasses.replace(document, signature=signature.ljust(SIZE * (1 + bands), b'\0'))


def bands_of(signature: bytes) -> list[bytes]:
  """The hashes of bands of a signature, none of a text that was too short."""
  if not signature[SIZE:].strip(b'\0'):
    return []
  return [signature[at:at + SIZE] for at in range(SIZE, len(signature), SIZE)]


class Sign(beam.PTransform):
  """PCollection[Document] → (kept, none): all documents, with their signatures."""

  def __init__(self, **settings: Any):
    """Takes `bands`, `rows` and `hash_name` of minhash.signature; `bands` may be 0."""
    super().__init__()
    self.settings = settings

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    return (documents | 'sign' >> beam.Map(sign, **self.settings),
            documents.pipeline | 'none' >> beam.Create([]))


class _Shard(NamedTuple):
  """A shard of another corpus, and where its signatures are ('' for none that fit)."""

  path: str
  records: int
  signatures: str


class Prior(beam.PTransform):
  """The pipeline → PCollection[Known] of finished corpora, without their texts.

  Signatures are read where the corpora keep some of the same settings, else made of the texts.
  """

  def __init__(self, corpora: Sequence[str], **settings: Any):
    """Takes paths of curated corpora, and the settings of Sign. Raises CorpusError."""
    super().__init__()
    self.settings, self.shards = settings, []
    for path in corpora:
      manifest = records.read_manifest(path, 'curated')
      config = manifest['config']
      same = not settings['bands'] or (config.get('minhash'), config.get('minhash_hash')) == (
        f'{settings["bands"]}x{settings["rows"]}', settings['hash_name'])
      for (file, count), entry in zip(
          records.list_shards(manifest), manifest['shards'], strict=True):
        kept = same and entry.get('signatures')
        self.shards.append(_Shard(file, count, records.FileSystems.join(
          manifest['path'], kept) if kept else ''))

  def expand(self, pipeline: Any) -> Any:
    """PCollection[Known]."""
    return (pipeline | 'shards' >> beam.Create([tuple(shard) for shard in self.shards])
            | beam.Reshuffle() | 'documents' >> beam.FlatMap(_documents, self.settings))


def _documents(shard: tuple, settings: dict[str, Any]) -> Iterator[Known]:
  path, count, signatures = shard
  stored = None
  if signatures:
    with open_file(signatures) as f:
      stored = np.load(f)
  for number, row in enumerate(records.read_shard(path, count, 'curated')):
    document = Known(**row | {'metadata': {'dump': row['metadata'].get('dump', '')}})
    if stored is None:
      document.signature = sign(document, **settings).signature
    else:
      document.signature = stored[number].tobytes()[:SIZE * (1 + settings['bands'])]
    document.text = ''
    yield document
