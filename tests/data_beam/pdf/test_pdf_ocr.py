"""Pages that are read by OCR: which, by what engine, and what becomes of noise."""

import base64
import io
import random
import re

import numpy as np
import pikepdf
import pypdfium2
import pytest
from helpers.model import model  # noqa: F401 (a fixture)
from helpers.pdfs import column, make, overlap, prose, reason, scan, tags
from PIL import Image

from data_beam import model_server
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import Line


@pytest.fixture(scope='module')
def extractor():
  with pdf_text.Extractor() as e:
    yield e


def test_scan_without_ocr_is_refused_and_hidden_text_is_seen(extractor):
  def draw(page):
    column(page, 72, 700, prose('A', 30, 80))
  assert reason(extractor, scan(draw), ocr='never') == 'needs_ocr'

  def hidden(page):
    text = page.beginText(72, 700)
    text.setFont('Times-Roman', 10)
    text.setTextRenderMode(3)
    for line in prose('A', 30, 80):
      text.textLine(line)
    page.drawText(text)
  found = extractor.extract(make(hidden), ocr='never')
  assert found.features[0]['hidden'] == 1 and found.features[0]['ocr_wanted'] == 'hidden'
  assert tags(found.text) == [f'A{i}' for i in range(30)]


@pytest.mark.skipif(pdf_ocr.engine() is None, reason='no OCR here')
def test_ocr_of_a_scan_beside_a_digital_page(extractor):
  sentence = ['The heron waits in the shallow water', 'until a careless fish comes near.']
  mixed = pypdfium2.PdfDocument.new()
  for part in (make(lambda page: column(page, 72, 700, prose('A', 8, 80))),
               scan(lambda page: column(page, 72, 700, sentence, 24))):
    mixed.import_pages(pypdfium2.PdfDocument(part))
  out = io.BytesIO()
  mixed.save(out)
  found = extractor.extract(out.getvalue())
  assert found.method == 'mixed' and found.page_methods == ['text', 'ocr']
  assert found.ocr_confidence[0] is None and found.ocr_confidence[1] > 0.8
  assert re.sub(r'\s+', ' ', found.pages[1]) == ' '.join(sentence)


def gray_page(angle=0.0):
  rng = random.Random(0)                    # unlike prose(), whose words stand in columns
  lines = [' '.join(rng.choice(('a', 'river', 'winter', 'of', 'gardening')) for _ in range(14))
           for _ in range(30)]
  body = make(lambda page: column(page, 72, 700, lines, 11))
  picture = pypdfium2.PdfDocument(body)[0].render(scale=1.5, grayscale=True).to_pil()
  return picture.convert('L').rotate(angle, expand=angle % 90 == 0, fillcolor=255)


@pytest.mark.parametrize('skew', [0.0, 1.0, -2.5, 5.0])
@pytest.mark.parametrize('quarter', [0, 90, 180, 270])
def test_pages_that_stand_or_lie_askew_are_straightened(skew, quarter):
  picture = np.asarray(gray_page(quarter).rotate(skew, fillcolor=255))
  straight, sideways = pdf_ocr._straight(picture)
  assert sideways == (quarter in (90, 270))
  upright = np.rot90(straight, -quarter // 90)
  away = np.abs(upright.astype(int) - np.asarray(gray_page())).mean()
  askew = np.abs(np.rot90(picture, -quarter // 90).astype(int) - np.asarray(gray_page())).mean()
  # Half a degree may stay.
  assert away < 14 and (skew in (0.0, 1.0) or away < askew), (away, askew)


def test_the_way_up_that_reads_best_is_taken():
  upright = np.asarray(gray_page())

  def read(picture):                        # a reader that knows which way is up
    same = picture.shape == upright.shape and np.array_equal(picture, upright)
    return [(0, 0, 9, 9, 'right way' if same else 'gibberish', .9 if same else .5)]
  for quarters in range(4):
    found, confidence = pdf_ocr._best(np.rot90(upright, quarters), read)
    assert found[0][4] == 'right way' and confidence == pytest.approx(.9)
  assert pdf_ocr._best(np.full((90, 60), 255, np.uint8), lambda picture: []) == ([], 0.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize('turn', [90, 180])
def test_ocr_of_a_page_that_was_scanned_the_wrong_way(extractor, turn):
  sentence = ['The heron waits in the shallow water', 'until a careless fish comes near.']
  body = scan(lambda page: column(page, 72, 700, sentence, 24))
  with pikepdf.open(io.BytesIO(body)) as pdf:
    pdf.pages[0].rotate(turn, relative=True)
    out = io.BytesIO()
    pdf.save(out)
  assert re.sub(r'\s+', ' ', extractor.extract(out.getvalue()).text) == ' '.join(sentence)


SCAN = scan(lambda page: column(page, 72, 700, prose('A', 8, 60)))


def test_a_vision_model_behind_a_server(extractor, model):
  model.text = '# A heading\n\nA paragraph\nof two lines.\n\n| a | b |\n| - | - |\n| 1 | 2 |'
  found = extractor.extract(SCAN, server=model.where)
  assert found.text == model.text and found.page_methods == ['ocr']
  assert found.ocr_confidence == [0.75]
  (asked,) = model.asked
  image, prompt = asked['messages'][0]['content']
  assert asked['model'] == 'reader' and prompt['text'] == pdf_ocr.PROMPT
  picture = Image.open(io.BytesIO(base64.b64decode(image['image_url']['url'].split(',')[1])))
  assert max(picture.size) == 1280
  model.text = 'I see the same line again.\n' * 5
  assert reason(extractor, SCAN, server=model.where) == 'ocr_noise'


def test_formulas_as_tex(extractor, model):
  model.text = ('The sum \\(\\sum_{i=1}^{n} x_i^2\\) is small.\n\n\\[\n'
                '\\int_0^1 f(x)\\,dx = \\frac{1}{2} - \\alpha_{ij}\n\\]\n\nA text follows.')
  found = extractor.extract(SCAN, server={**model.where, 'prompt': 'tex'})
  assert found.text == model.text
  assert model.asked[0]['messages'][0]['content'][1]['text'] == pdf_ocr.PROMPTS['tex']
  extractor.extract(SCAN, server={**model.where, 'prompt': 'Read aloud.'})
  assert model.asked[-2]['messages'][0]['content'][1]['text'] == 'Read aloud.'


def pages_of(*bodies):
  out, whole = io.BytesIO(), pypdfium2.PdfDocument.new()
  for body in bodies:
    whole.import_pages(pypdfium2.PdfDocument(body))
  whole.save(out)
  return out.getvalue()


def test_a_page_that_fails_is_one_page(model, monkeypatch):
  """Its text layer stays if it has one, and its reason is kept. In this process, for its pauses."""
  monkeypatch.setattr(model_server, 'PAUSE', 0.0)
  monkeypatch.setattr(model_server, '_failures', 0)
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')            # where nobody is
  monkeypatch.delenv('no_proxy', raising=False)
  digital = make(lambda page: column(page, 72, 700, prose('B', 8, 60)))
  model.text, model.drops = 'What it reads.', 2
  found = pdf_text.parse(pages_of(SCAN, digital), server=model.where)
  assert found.page_methods == ['ocr', 'text'] and len(model.asked) == 3       # dropped twice
  for texts, status, ended, detail in (
      ([], 503, 'stop', 'HTTP Error 503'), ([], 404, 'stop', 'HTTP Error 404'),
      ([], 200, 'length', 'cut off'), ([['no', 'text']] * 3, 200, 'stop', 'TypeError'),
      (['The 2011-12 season was the best of all.'], 200, 'stop', 'made up'),
      (['The following is a list of the most common types of data breaches: a'], 200, 'stop',
       'made up')):
    model.status, model.ended, model.texts = status, ended, texts
    model.asked.clear()
    found = pdf_text.parse(pages_of(SCAN, digital), server=model.where)
    assert len(model.asked) == (3 if status == 503 or detail == 'TypeError' else 1)
    assert found.page_methods == ['failed', 'text'] and tags(found.text)[0] == 'B0'
    assert detail in found.features[0]['ocr_failed']
  assert pdf_text.parse(digital, server={**model.where, 'url': 'http://127.0.0.1:9'},
                        ocr='always').page_methods == ['text']        # better than nothing
  model.status = 500
  with pytest.raises(PdfError, match='HTTP Error 500') as caught:
    pdf_text.parse(SCAN, server=model.where)
  assert caught.value.reason == 'ocr_failed'


def test_an_engine_that_fails_costs_a_page(monkeypatch, tmp_path):
  program = tmp_path / 'tesseract'
  program.write_text('#!/bin/sh\n[ "$1" = --list-langs ] && exit 0\necho no memory >&2; exit 3')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
  monkeypatch.setattr(pdf_ocr, 'engine', lambda: 'tesseract')
  digital = make(lambda page: column(page, 72, 700, prose('B', 8, 60)))
  for said in ('ended with 3: no memory', 'No such file'):
    pdf_ocr._tesseract_languages.cache_clear()
    found = pdf_text.parse(pages_of(SCAN, digital))
    assert found.page_methods == ['failed', 'text'] and said in found.features[0]['ocr_failed']
    monkeypatch.setenv('PATH', '')
  pdf_ocr._tesseract_languages.cache_clear()


def test_a_model_is_not_believed_about_pages_without_text(model, monkeypatch):
  monkeypatch.setattr(model_server, '_failures', 0)
  model.texts = ['The page shows a lake.', 'NO_TEXT', 'The heron waits.', 'TEXT']
  assert pdf_ocr.read_page(pypdfium2.PdfDocument(SCAN), 0, ['en'], model.where) == ([], None)
  found, _ = pdf_ocr.read_page(pypdfium2.PdfDocument(SCAN), 0, ['en'], model.where)
  assert [line.text for line in found] == ['The heron waits.'] and len(model.asked) == 4
  empty = scan(lambda page: page.drawString(1, 1, '.'))
  assert pdf_ocr.read_page(pypdfium2.PdfDocument(empty), 0, ['en'], model.where) == ([], None)
  assert len(model.asked) == 4                # nobody was asked about a page without ink
  number = scan(lambda page: page.drawString(300, 40, '3'))
  assert not pdf_ocr.is_blank(pypdfium2.PdfDocument(number)[0].render(
    scale=1.6, grayscale=True).to_numpy())


@pytest.mark.parametrize(('text', 'expected'), [
  ('a line\n' * 2, False), ('a longer line\n' * 3, True), ('| 1 | 2 |\n' * 8, False),
  ('| 1 | 2 |\n' * 9, True), ('short\n' * 11, False), ('short\n' * 12, True),
  ('.' * 349, False), ('.' * 350, True),
  (' '.join(['This sentence has as many as fifty characters, or more.'] * 5), True)])
def test_a_model_that_has_lost_itself(text, expected):
  assert model_server.repeats(text) == expected


def test_ocr_noise_and_limits(monkeypatch):
  # In this process, with an engine that is sure of nothing.
  noise = Line(10, 10, 50, 20, '~~ ;;', 10)
  monkeypatch.setattr(pdf_ocr, 'engine', lambda: 'rapidocr')
  monkeypatch.setattr(pdf_ocr, 'read_page', lambda *args: ([noise], 0.3))
  body = scan(lambda page: column(page, 72, 700, prose('A', 5)), scale=1)
  with pytest.raises(PdfError, match='ocr_noise'):
    pdf_text.parse(body)
  monkeypatch.setattr(pdf_text, 'MAX_OCR_PAGES', 0)
  with pytest.raises(PdfError, match='too_long'):
    pdf_text.parse(body)
  text = make(lambda page: page.drawString(72, 700, 'a text layer'))
  monkeypatch.setattr(pdf_text, 'MAX_OCR_PAGES', 9)
  assert pdf_text.parse(text, ocr='always').page_methods == ['text']      # better than noise


@pytest.mark.slow
@pytest.mark.skipif(pdf_ocr.engine() is None, reason='no OCR here')
def test_ocr_of_a_dense_page(extractor, shared_data):
  gold = (shared_data / 'pdf/gold/ocrmypdf__linn.txt').read_text()
  found = extractor.extract((shared_data / 'pdf/scan/OCRmyPDF__linn.pdf').read_bytes())
  assert found.method == 'ocr' and found.ocr_confidence[0] > 0.85
  recall, precision = overlap(gold, found.text)
  assert recall > 0.93 and precision > 0.96
