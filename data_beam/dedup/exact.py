"""Exact duplicates, by text or by URL, and which document of several survives.

Always the same one, whatever the order and the sharding: the best by `rank`. A dropped document
comes out as a Reject that names its survivor in `metadata['duplicate_of']`."""

import dataclasses
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import xxhash

from data_beam.records import Document, Reject

# --- which one survives ----------------------------------------------------------------------


class Known(Document):
  """One of another corpus, which documents are compared with: it survives, and is not kept again.
  """


KNOWN = 'known'     # the reason where the survivor is one


def rank(document: Document) -> tuple:
  """The smallest survives: best quality, then longest, then first by url and id."""
  quality = -document.quality if math.isfinite(document.quality) else math.inf
  if isinstance(document, Known):
    quality = -math.inf
  return (quality, -len(document.text), document.url, document.id)


# --- exact -----------------------------------------------------------------------------------


def stands_for(document: Document) -> int:
  """How many documents this one stands for: its exact copies, or the cluster that it had where it
  was imported from."""
  found = document.metadata.get('copies', document.metadata.get('cluster_size', 1))
  return found if type(found) is int and found > 0 else 1


def content_key(text: str) -> bytes:
  """A 128-bit hash of `text` that case, white space and Unicode composition do not change."""
  plain = unicodedata.normalize('NFC', ''.join(text.split()).casefold())
  return xxhash.xxh3_128_digest(plain.encode('utf-8', 'replace'))


def record_key(document: Document) -> bytes:
  """What is a document's own, though ids may repeat over files: a hash of id, URL and text."""
  own = '\0'.join((document.id, document.url, document.text))
  return xxhash.xxh3_128_digest(own.encode('utf-8', 'replace'))


def scope_key(document: Document, scope: str) -> str:
  """What documents must share to be compared: nothing ('global'), or their 'dump' or 'language'."""
  if scope not in SCOPES:
    raise ValueError(f'unknown scope {scope!r}: choose one of {", ".join(SCOPES)}')
  if scope == 'language':
    return document.language
  return str(document.metadata.get('dump', '')) if scope == 'dump' else ''


# FineWeb compares the documents of one crawl dump, FineWeb-2 those of one language over all dumps.
SCOPES = ('global', 'dump', 'language')


class ExactDedup(beam.PTransform):
  """PCollection[Document] -> (kept, rejects), one document kept of each text, or of each URL.

  Texts are the same if their `content_key` is; documents without URL are all kept by 'url'. A
  survivor that had copies has their number, itself included, in `metadata['copies']`.
  """

  def __init__(self, by: str = 'text', scope: str = 'global',
               prior: beam.PTransform | None = None):
    """Sets up the stage: `by` is 'text' or 'url', `scope` one of SCOPES; documents of `prior` (see
    prior.py) survive, but are not among what is kept.

    Of pages of one URL, those of other days may differ: the survivor is the best by `rank` there
    too, and the rejects are duplicate_url of the stage url_dedup.
    """
    super().__init__()
    if by not in _VERDICTS:
      raise ValueError(f"ExactDedup goes by 'text' or 'url', not {by!r}")
    scope_key(Document(id='', text=''), scope)
    self.by, self.scope, self.prior = by, scope, prior

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = (
      with_prior(documents, self.prior)
      | 'key' >> beam.Map(_exact_key, self.by, self.scope)
      | beam.GroupByKey()
      | 'choose' >> beam.FlatMap(_choose, *_VERDICTS[self.by]).with_outputs(
        'rejects', main='kept'))
    return split.kept, split.rejects


_VERDICTS = {'text': ('exact_dedup', 'duplicate'), 'url': ('url_dedup', 'duplicate_url')}


def _exact_key(document: Document, by: str, scope: str) -> tuple[bytes, Document]:
  if by == 'text':
    key = document.signature[:16] or content_key(document.text)
  else:
    key = (xxhash.xxh3_128_digest(document.url.encode('utf-8', 'replace')) if document.url
           else record_key(document))
  return key + scope_key(document, scope).encode(), document


def _choose(group: tuple[bytes, Iterable[Document]], stage: str, reason: str) -> Iterator[Any]:
  # Copies of one record differ at most in where they lay: the rest of a document settles ties.
  def order(document):
    details = json.dumps(document.metadata, sort_keys=True)
    return (*rank(document), document.date, details, document.text)

  # Two passes, so that a page with a million copies need not fit in memory.
  copies, best = 0, None
  for document in group[1]:
    copies += 1
    best = min(best or order(document), order(document))
  if copies == 1:
    if not isinstance(document, Known):
      yield document
    return
  copies = 0   # those dropped before, by URL, count as well
  for document in group[1]:
    copies += stands_for(document)
  found = False
  for document in group[1]:
    if not found and order(document) == best:
      found = True
      if not isinstance(document, Known):
        yield with_metadata(document, copies=copies)
    elif not isinstance(document, Known):
      yield beam.pvalue.TaggedOutput('rejects', Reject(
        with_metadata(document, duplicate_of=best[3]), stage,
        KNOWN if best[0] == -math.inf else reason))


def with_prior(documents: Any, prior: beam.PTransform | None) -> Any:
  """PCollection of the documents and those of another corpus."""
  if prior is None:
    return documents
  return (documents, documents.pipeline | 'prior' >> prior) | 'with prior' >> beam.Flatten()


def with_metadata(document: Document, **metadata: Any) -> Document:
  """The document with more metadata."""
  return dataclasses.replace(document, metadata={**document.metadata, **metadata})
