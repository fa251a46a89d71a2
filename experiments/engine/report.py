"""The report of a run, with what only the libraries that curate can show, where they are."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_beam import spans
from experiments.engine.cli import console
from smoljax.report import run_page


def write(workdir: str, output: str | None = None) -> str:
  """Writes the page of a workdir; see `run_page.write`."""
  return run_page.write(workdir, output, spans.find, _picture)


def _picture(metadata: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> bytes | None:
  """The first page of a document that was a PDF, None if it cannot be drawn."""
  draw = _thumbnail() if 'pdf_digest' in metadata else None
  return draw and draw(metadata, inputs)


@functools.cache
def _thumbnail() -> Callable | None:
  """What draws pages; without its libraries the report does without pictures, and says so once."""
  try:
    from data_beam import pdf
  except (ImportError, OSError) as e:  # OSError: a library's own library
    console.print(f'the report has no pictures of PDF pages: {e}')
    return None
  return pdf.thumbnail
