"""Text on or under pictures: the layer stays where the picture says the same."""

import io

import pypdfium2
import pytest
from helpers.pdfs import HEIGHT, WIDTH, column, make, prose, scan
from reportlab.lib.utils import ImageReader

from data_beam.pdf import look
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import Line

TRUTH = [f'The Fox says: {line}' for line in prose('A', 40, 70)]
BAD = [line.translate(str.maketrans('aeinrst', 'o3lmn5f')) for line in TRUTH]
SEARCHED = [line.lower() for line in TRUTH]


def page(layer, *, mode=3, on_top=True, picture=True):
  """A page whose picture shows TRUTH, with `layer` in its places; render mode 3 hides text."""
  shown = ImageReader(pypdfium2.PdfDocument(scan(lambda c: column(c, 72, 700, TRUTH), 1))[0].render(
    scale=1).to_pil())

  def draw(canvas):
    if picture and on_top:
      canvas.drawImage(shown, 0, 0, WIDTH, HEIGHT)
    text = canvas.beginText(72, 700)
    text.setFont('Times-Roman', 10, 12)
    text.setTextRenderMode(mode)
    for line in layer:
      text.textLine(line)
    canvas.drawText(text)
    if picture and not on_top:
      canvas.drawImage(shown, 0, 0, WIDTH, HEIGHT)
  return make(draw)


@pytest.fixture
def asked(monkeypatch):
  """Of an engine that reads what the picture shows: how it was asked."""
  calls = []

  def read_lines(document, index, lines, languages):
    calls.append('lines')
    return ' '.join(TRUTH[round((line.middle - 88) / 12)] for line in lines), .95

  def read_page(document, index, *args):
    calls.append('page')
    return [Line(72, 84 + 12 * i, 500, 94 + 12 * i, line, 10) for i, line in enumerate(TRUTH)], .95
  monkeypatch.setattr(pdf_ocr, 'engine', lambda: 'tesseract')
  monkeypatch.setattr(pdf_ocr, 'read_lines', read_lines)
  monkeypatch.setattr(pdf_ocr, 'read_page', read_page)
  return calls


@pytest.mark.parametrize(('body', 'method', 'wanted', 'calls'), [
  (page(TRUTH), 'text', '', ['lines']),                               # somebody's good OCR
  (page(BAD), 'ocr', 'hidden', ['lines', 'page']),
  (page(SEARCHED), 'ocr', 'hidden', ['lines', 'page']),               # made for searching
  (page(TRUTH, mode=0, on_top=False), 'text', '', ['lines']),         # visible, under its picture
  (page(BAD, mode=0, on_top=False), 'ocr', 'disagrees', ['lines', 'page']),
  (page(TRUTH, mode=0), 'text', '', ['lines']),                       # a slide
  (page(TRUTH, mode=0, picture=False), 'text', '', [])])
def test_a_layer_stays_where_the_picture_says_the_same(asked, body, method, wanted, calls):
  found = pdf_text.parse(body)
  assert found.page_methods == [method] and found.features[0]['ocr_wanted'] == wanted
  assert asked == calls and 'Fox says: A0' in found.text
  assert (found.features[0].get('agreement', 0) >= look.SAME_LETTERS) == (
    bool(calls) and (method == 'text' or body == page(SEARCHED)))


def test_three_pages_speak_for_the_others(asked, monkeypatch):
  def read_lines(document, index, lines, languages):
    asked.append('lines')
    return ' '.join(line.text for line in lines), .95
  monkeypatch.setattr(pdf_ocr, 'read_lines', read_lines)
  many = pypdfium2.PdfDocument.new()
  for letter in 'BCDEF':
    many.import_pages(pypdfium2.PdfDocument(page(prose(letter, 40, 70))))
  many.import_pages(pypdfium2.PdfDocument(page(prose('G', 40, 70), picture=False, mode=0)))
  out = io.BytesIO()
  many.save(out)
  assert pdf_text.parse(out.getvalue()).page_methods == ['text'] * 6
  assert asked == ['lines'] * look.LOOKS


def test_a_caption_on_a_picture_stays_where_ocr_reads_no_more(asked, monkeypatch):
  body = page(TRUTH[:15], mode=0)
  assert pdf_text.parse(body).page_methods == ['ocr']
  monkeypatch.setattr(pdf_ocr, 'read_page', lambda *args: ([
    Line(72, 84 + 12 * i, 500, 94 + 12 * i, line, 10) for i, line in enumerate(TRUTH[:16])], .95))
  found = pdf_text.parse(body)
  assert found.page_methods == ['text'] and found.features[0]['ocr_wanted'] == ''
  assert found.features[0]['agreement'] >= look.COVERED and asked == ['page']


def test_an_engine_that_fails_leaves_the_layer(asked, monkeypatch):
  def fail(*args):
    raise PdfError('ocr_failed', 'no memory')
  monkeypatch.setattr(pdf_ocr, 'read_page', fail)
  monkeypatch.setattr(pdf_ocr, 'read_lines', fail)
  found = pdf_text.parse(page(BAD))
  assert found.page_methods == ['text'] and found.features[0]['ocr_failed'] == 'no memory'
