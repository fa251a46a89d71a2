"""The first page of a document as a picture, for reports."""

import os
from collections.abc import Mapping, Sequence
from typing import Any


def thumbnail(metadata: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> bytes | None:
  """The first page of a document as a PNG, if its file is still where it was.

  None too where the libraries that read PDFs are not installed: a page of a report does without.

  Args:
    metadata: the document's.
    inputs: of the corpus's manifest, with a `path` each.
  """
  name = metadata.get('file') or metadata.get('warc_file')
  path = next((i['path'] for i in inputs if os.path.basename(i.get('path', '')) == name), '')
  if 'pdf_digest' not in metadata or not os.path.isfile(path):
    return None
  try:
    from data_beam.pdf.pipeline import Reference, body_of
    from data_beam.pdf.text import Extractor, PdfError
  except ImportError:
    return None
  reference = Reference('', '', '', '', path, metadata.get('warc_offset', -1), '')
  try:
    with Extractor() as extractor:
      return extractor.picture(body_of(reference))
  except (PdfError, ImportError, OSError, RuntimeError, ValueError, StopIteration):
    return None
