"""PDFs drawn for one test."""

import io
import re
from collections import Counter

import pytest
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen import canvas

from data_beam.pdf.errors import REASONS, PdfError

WIDTH, HEIGHT = 612, 792


def make(draw, **options) -> bytes:
  """A PDF drawn by `draw(canvas)`."""
  out = io.BytesIO()
  page = canvas.Canvas(out, pagesize=(WIDTH, HEIGHT), invariant=1, **options)
  draw(page)
  page.save()
  return out.getvalue()


def column(page, x, y, lines, size=10):
  page.setFont('Times-Roman', size)
  for i, line in enumerate(lines):
    page.drawString(x, y - 1.2 * size * i, line)


def prose(tag, lines, chars=46):
  """Lines about as wide as a column, each beginning with its own tag."""
  filler = 'the quick brown fox jumps over the lazy dog and runs through the wide green field'
  return [f'{tag}{i} {filler}'[:chars].rsplit(' ', 1)[0] for i in range(lines)]


def tags(text):
  return re.findall(r'\b[A-Z]{1,2}\d+\b', text)


def reason(extractor, body, **options):
  with pytest.raises(PdfError) as caught:
    extractor.extract(body, **options)
  assert caught.value.reason in REASONS
  return caught.value.reason


def overlap(gold, text):
  a, b = (Counter(re.findall(r'\w+', t.lower())) for t in (gold, text))
  common = (a & b).total()
  return common / a.total(), common / b.total()


def scan(draw, scale=2) -> bytes:
  """The same page as a picture alone."""
  import pypdfium2
  picture = pypdfium2.PdfDocument(make(draw))[0].render(scale=scale).to_pil()
  return make(lambda page: page.drawImage(ImageReader(picture), 0, 0, WIDTH, HEIGHT))
