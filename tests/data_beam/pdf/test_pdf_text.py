"""PDFs made here, and real ones: reading order, running lines, tables, OCR, and hostile files."""

import io
import re
import zlib

import numpy as np
import pikepdf
import pytest
from helpers.pdfs import HEIGHT, WIDTH, column, make, overlap, prose, reason, tags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.utils import ImageReader

from data_beam import sandbox
from data_beam.pdf import layout as pdf_layout
from data_beam.pdf import repair as pdf_repair
from data_beam.pdf import running as pdf_running
from data_beam.pdf import tables as pdf_tables
from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK, Line

# Layout of a real file.

def two_columns(page):
  for number in range(1, 7):
    page.setFont('Helvetica', 9)
    page.drawString(72, 760, f'Journal of Foxes {number}')
    page.drawRightString(540, 760, 'A. Author')
    page.drawCentredString(306, 30, f'- {number} -')
    if number == 1:
      page.setFont('Times-Bold', 18)
      page.drawCentredString(306, 700, 'A Title That Spans Both of the Columns')
    letter = chr(ord('A') + number - 1)
    # Rows are drawn across the columns: the order of the file is not the order of reading.
    left, right = prose(letter + 'L', 40), prose(letter + 'R', 40)
    page.setFont('Times-Roman', 10)
    for i in range(40):
      page.drawString(72, 660 - 12 * i, left[i])
      page.drawString(318, 660 - 12 * i, right[i])
    page.showPage()


@pytest.fixture(scope='module')
def extractor():
  with pdf_text.Extractor() as e:
    yield e


def test_two_columns_running_header_and_page_numbers(extractor):
  found = extractor.extract(make(two_columns))
  assert found.method == 'text' and found.page_methods == ['text'] * 6
  # One copy of each running line stays.
  assert found.pages[0].startswith(
    'Journal of Foxes A. Author\n\nA Title That Spans Both of the Columns\n\nAL0 ')
  for letter, page in zip('ABCDEF', found.pages, strict=True):
    assert tags(page) == [f'{letter}L{i}' for i in range(40)] + [f'{letter}R{i}' for i in range(40)]
  assert found.text.count('Journal of Foxes') == found.text.count('A. Author') == 1
  assert '- 3 -' not in found.text
  assert [found.text[o:o + 3] for o in found.page_offsets] == ['Jou', *(f'{c}L0' for c in 'BCDEF')]


def test_three_columns(extractor):
  def draw(page):
    for k in range(3):
      column(page, 60 + 170 * k, 720, prose('ABC'[k], 30, chars=32), 9)
  text = extractor.extract(make(draw)).text
  assert tags(text) == [f'{c}{i}' for c in 'ABC' for i in range(30)]


def test_short_document_loses_its_running_header_but_no_heading(extractor):
  def draw(page):
    for number, heading in enumerate(('Introduction', 'Method'), 1):
      page.drawString(72, 765, f'Annual report, page {number}')
      page.drawString(72, 730, heading)
      column(page, 72, 700, prose('ab'[number - 1], 20, 90))
      page.showPage()
  text = extractor.extract(make(draw)).text
  assert text.count('Annual report') == 1 and 'page' not in text
  assert 'Introduction' in text and 'Method' in text


def test_headings_are_marked_where_that_is_asked_for(extractor):
  def draw(page):
    for number in (1, 2):
      if number == 1:
        page.setFont('Helvetica-Bold', 24)
        page.drawString(72, 730, 'The title of all')
      page.setFont('Helvetica-Bold', 14)
      page.drawString(72, 690, f'{number}. A section')
      column(page, 72, 660, prose('ab'[number - 1], 20, 90))
      page.setFont('Times-Roman', 40)
      page.drawString(500, 100, '*')
      page.showPage()
  body = make(draw)
  plain, marked = (extractor.extract(body, markdown=m).pages for m in (False, True))
  assert [re.findall('^#.*', page, re.M) for page in marked] == [
    ['# The title of all', '## 1. A section'], ['## 2. A section']]
  assert [re.sub('^#+ ', '', page, flags=re.M) for page in marked] == plain


def test_one_page_keeps_its_first_line(extractor):
  assert extractor.extract(make(lambda page: page.drawString(72, 765, 'A lone headline'))).text == (
    'A lone headline')


def test_table_becomes_markdown(extractor):
  rows = [('Name', 'Mass (kg)', 'Diet'), ('Otter', '9', 'fish'), ('Badger', '12', 'worms | roots'),
          ('Marten', '1.5', 'voles')]

  def draw(page):
    column(page, 72, 720, prose('A', 12, 95))
    page.setFont('Times-Roman', 10)
    for i, row in enumerate(rows):
      for x, cell in zip((90, 250, 400), row, strict=True):
        page.drawString(x, 540 - 14 * i, cell)
    column(page, 72, 450, prose('B', 12, 95))
  text = extractor.extract(make(draw)).text
  table = ('| Name | Mass (kg) | Diet |\n| --- | --- | --- |\n| Otter | 9 | fish |\n'
           '| Badger | 12 | worms \\| roots |\n| Marten | 1.5 | voles |')
  assert table in text
  assert tags(text) == [f'{c}{i}' for c in 'AB' for i in range(12)]
  assert text.index('A11') < text.index('Otter') < text.index('B0')


def ruled(page, draw_rules):
  draw_rules(page)
  page.setFont('Times-Roman', 10)
  cells = {(0, 0): ['Command'], (0, 1): ['What it does'], (1, 0): ['list'],
           (1, 1): ['shows the names of all the', 'files that are there'],
           (2, 0): ['a-command-too-long-for-it'], (2, 1): ['runs over its edge'],
           (3, 0): ['cd'], (3, 1): ['goes elsewhere']}
  tops = [700, 680, 640, 620]
  for (row, col), lines in cells.items():
    for i, line in enumerate(lines):
      page.drawString(75 + 90 * col, tops[row] - 13 - 14 * i, line)
  column(page, 72, 560, prose('B', 12, 95))


def lines_of_a_table(page):
  for y in (700, 680, 640, 620, 600):
    page.line(72, y, 400, y)
  page.line(162, 700, 162, 600)             # no outer edges, as LaTeX's tables often have none


def boxes_of_cells(page):
  for top, bottom in ((700, 680), (680, 640), (640, 620), (620, 600)):
    page.rect(72, bottom, 90, top - bottom)
    page.rect(162, bottom, 238, top - bottom)


@pytest.mark.parametrize('draw_rules', [lines_of_a_table, boxes_of_cells])
@pytest.mark.parametrize('rotate', [0, 90])
def test_ruled_tables_have_the_cells_that_are_drawn(extractor, draw_rules, rotate):
  def draw(page):
    page.setPageRotation(rotate)
    if rotate:                              # drawn sideways, so that it is displayed upright
      page.translate(WIDTH, 0)
      page.rotate(90)
      page.scale(.75, .75)
    ruled(page, draw_rules)
  text = extractor.extract(make(draw)).text
  table = ('| Command | What it does |\n| --- | --- |\n'
           '| list | shows the names of all the files that are there |\n'
           '| a-command-too-long-for-it | runs over its edge |\n| cd | goes elsewhere |\n\nB0 ')
  assert table in text
  assert tags(text) == [f'B{i}' for i in range(12)]


def test_a_frame_around_text_is_no_table(extractor):
  def draw(page):
    page.rect(60, 400, 480, 350)
    column(page, 72, 720, prose('A', 12, 95))
  text = extractor.extract(make(draw)).text
  assert '|' not in text and tags(text) == [f'A{i}' for i in range(12)]


def test_a_cell_over_several_rows_stands_in_its_first():
  h, v = (lambda y, x0=0.0: (x0, y, 200.0, y + .5)), (lambda x: (x, 0.0, x + .5, 60.0))
  (grid,) = pdf_tables.find(np.array([h(0.0), h(20.0, 100.0), h(40.0), h(60.0), v(100.0)]))
  assert [grid.cell(10.0, y) for y in (5.0, 25.0, 50.0)] == [(0, 0), (0, 0), (2, 0)]
  assert [grid.cell(150.0, y) for y in (5.0, 25.0, 50.0)] == [(0, 1), (1, 1), (2, 1)]
  assert not pdf_tables.find(np.array([h(0.0), h(20.0)]))
  # Two tables apart are two, and rules that meet nothing are none.
  apart = np.array([h(0.0), h(30.0), h(60.0), v(100.0)])
  assert len(pdf_tables.find(np.concatenate([apart, apart + [0, 100, 0, 100]]))) == 2


def test_a_table_of_contents_loses_its_leaders_and_numbers(extractor):
  def draw(page):
    page.setFont('Times-Roman', 10)
    for i, (name, number) in enumerate((('1 Foxes', 1), ('1.1 Red foxes', 2), ('2 Hares', 17))):
      page.drawString(72, 700 - 14 * i, name)
      page.drawString(180, 700 - 14 * i, ' '.join('.' * 60))
      page.drawRightString(540, 700 - 14 * i, str(number))
    column(page, 72, 560, prose('B', 12, 95))
  assert extractor.extract(make(draw)).text.startswith('1 Foxes\n1.1 Red foxes\n2 Hares\n\nB0')


def illustrated(page):
  column(page, 72, 720, prose('A', 12, 95))
  picture = Image.new('RGB', (300, 150), 'white')
  ImageDraw.Draw(picture).text((20, 40), 'HERON', fill='black', font_size=60)
  page.drawImage(ImageReader(picture), 150, 420, 300, 150)
  column(page, 150, 405, ['Figure 7: A heron that waits for', 'careless fish to come near.'], 10)
  column(page, 72, 350, prose('B', 12, 95))


def test_figures_are_listed_marked_or_read(extractor):
  body = make(illustrated)
  found = extractor.extract(body, ocr='never')
  (figure,) = found.figures
  assert figure['page'] == 0 and figure['box'] == pytest.approx([150, 222, 450, 372], abs=1)
  assert figure['caption'] == 'Figure 7: A heron that waits for careless fish to come near.'
  assert '![' not in found.text
  marked = extractor.extract(body, ocr='never', figures='mark').text
  assert marked.replace(f'![{figure["caption"]}](figure 1.1)\n\n', '') == found.text
  assert marked.index('A11') < marked.index('![') < marked.index('B0')


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_text_in_a_figure_by_ocr(extractor):
  found = extractor.extract(make(illustrated), ocr='never', figures='read')
  assert found.figures[0]['text'] == 'HERON' and 'HERON' not in found.text


def test_hyphens_paragraphs_and_code(extractor):
  def draw(page):
    column(page, 72, 720, [
      'A well-known rule of typesetting is that the last word of a line may be hyphen-',
      'ated where it does not fit, and that a compound such as this well-',
      'known one keeps its hyphen all the same, wherever it happens to be cut.',
      '    A second paragraph begins with an indent and has a ligature: de\ufb01ne, to be sure.'])
    page.setFont('Courier', 10)
    for i, line in enumerate(('def area(r):', '    if r < 0:', '        raise ValueError(r)')):
      page.drawString(72, 600 - 12 * i, line)
  text = extractor.extract(make(draw)).text
  assert 'may be hyphenated where it' in text
  assert 'this well-known one keeps' in text
  assert 'def area(r):\n    if r < 0:\n        raise ValueError(r)' in text


def test_rotated_pages_read_like_upright_ones(extractor):
  def draw(page, rotation):
    page.setPageRotation(rotation)
    if rotation == 90:                      # drawn sideways, so that it is displayed upright
      page.translate(WIDTH, 0)
      page.rotate(90)
    column(page, 72, 500, prose('A', 20, 60))
  assert tags(extractor.extract(make(lambda p: draw(p, 90))).text) == [f'A{i}' for i in range(20)]
  assert tags(extractor.extract(make(lambda p: draw(p, 0))).text) == [f'A{i}' for i in range(20)]

  def sideways(page):                       # a landscape text on a page that nobody turned
    page.translate(WIDTH, 0)
    page.rotate(90)
    column(page, 72, 500, prose('A', 20, 60))
  assert tags(extractor.extract(make(sideways)).text) == [f'A{i}' for i in range(20)]


def test_text_beyond_the_sheet_stays_and_printers_marks_go(extractor):
  def draw(page, crop):
    column(page, 72, 700, prose('A', 10))
    page.drawString(72, -20, 'the last row of an overlong table')
    if crop:
      page.setCropBox((0, 0, WIDTH, HEIGHT - 30))
      page.drawString(72, HEIGHT - 10, 'job 4711 plate cyan')
  assert 'last row' in extractor.extract(make(lambda page: draw(page, False))).text
  text = extractor.extract(make(lambda page: draw(page, True))).text
  assert 'A9' in text and 'last row' not in text and 'plate' not in text


# Refusals.

def test_refusals(extractor):
  good = make(two_columns)
  assert reason(extractor, b'') == 'not_pdf'
  assert reason(extractor, b'<html>no PDF</html>') == 'not_pdf'
  assert reason(extractor, good[:300]) == 'truncated'
  assert reason(extractor, b'%PDF-1.4\n' + b'\x00' * 500 + b'\n%%EOF') == 'damaged'
  assert reason(extractor, make(lambda page: page.showPage())) == 'blank'
  assert reason(extractor, good, max_pages=5) == 'too_long'
  locked = make(two_columns, encrypt=StandardEncryption('user', 'owner', strength=128))
  assert reason(extractor, locked) == 'encrypted'
  open_to_all = make(two_columns, encrypt=StandardEncryption('', 'owner', strength=128))
  assert reason(extractor, locked[:-900]) == 'truncated'  # its key went with its end
  assert 'AL0' in extractor.extract(open_to_all).text     # only changing it takes a password
  with pytest.raises(ValueError, match='auto, never, always'):
    extractor.extract(good, ocr='sometimes')


FAULTS = '''
import ctypes, time
from data_beam.pdf import text as pdf_text
def answer(body, **options):
  if b'SEGFAULT' in body: ctypes.string_at(0)
  if b'HANG' in body: time.sleep(600)
  if b'SPIN' in body:
    while True: pass
  if b'MEMORY' in body: bytearray(1 << 33)
  if b'BUG' in body: raise KeyError('x')
  return pdf_text.answer(body, **options)
'''


@pytest.mark.timeout(300)  # HANG sleeps for 600 s, were it not killed after 3
def test_a_fault_in_the_child_loses_one_document(tmp_path, monkeypatch):
  good = make(lambda page: page.drawString(72, 700, 'still here'))
  (tmp_path / 'faulty_pdf.py').write_text(FAULTS)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(pdf_text.Extractor, 'function', 'faulty_pdf:answer')
  limits = sandbox.Limits(cpu_seconds=1, wall_seconds=3)
  with pdf_text.Extractor(limits, recycle=3) as extractor:
    for fault, expected in ((b'SEGFAULT', 'crash'), (b'HANG', 'timeout'), (b'SPIN', 'timeout'),
                            (b'MEMORY', 'memory'), (b'BUG', 'crash')):
      assert reason(extractor, good + fault) == expected
      assert extractor.extract(good).text == 'still here'
    children = []
    for _ in range(6):
      assert extractor.extract(good).text == 'still here'
      children += [child.process.pid for child in extractor.sandbox.idle]
    assert len(set(children)) > 1  # recycled
  assert not extractor.sandbox.idle


def test_bomb_is_bounded():
  # 1 MB of Flate data that holds 600 MB of operators, in one content stream.
  packer = zlib.compressobj(9)
  block = b'0 0 m 9 9 l S\n' * 75_000
  stream = b''.join(packer.compress(block) for _ in range(600)) + packer.flush()
  body = make(lambda page: page.drawString(72, 700, 'x'), pageCompression=0)
  start, end = body.index(b'stream\n') + 7, body.index(b'endstream')
  head = re.sub(rb'/Length \d+', b'/Length %d /Filter /FlateDecode' % len(stream), body[:start])
  limits = sandbox.Limits(memory=1 << 30, cpu_seconds=6)
  with pdf_text.Extractor(limits) as extractor:
    assert reason(extractor, head + stream + b'\n' + body[end:]) in ('crash', 'memory', 'timeout')


def test_extract_is_safe_by_itself():
  assert pdf_text.extract(make(lambda page: page.drawString(72, 700, 'hello'))).text == 'hello'


# Layout by itself.

@given(st.integers(1, 3), st.lists(st.integers(4, 30), min_size=3, max_size=3),
       st.floats(9, 12), st.floats(12, 40), st.randoms())
def test_columns_are_read_in_order_however_they_were_drawn(columns, lengths, size, gap, random):
  width = (WIDTH - 100) / columns - gap
  lines, expected = [], []
  for k in range(columns):
    x = 50 + k * (width + gap)
    for i in range(lengths[k]):
      text = f'{"ABC"[k]}{i} reads onwards as any line of prose would'
      y = 60 + i * 1.2 * size
      lines.append(Line(x, y, x + width, y + size, text, size))
      expected.append(f'{"ABC"[k]}{i}')
  random.shuffle(lines)
  assert tags(pdf_layout.page_text(lines)) == expected


@given(st.lists(st.text(alphabet='ab-C. \n', max_size=12).map(str.strip), max_size=6))
def test_join_pages_loses_only_hyphens(pages):
  text, offsets = pdf_layout.join_pages(pages)
  assert len(offsets) == len(pages) and offsets == sorted(offsets)
  assert re.sub(r'[\s-]', '', text) == re.sub(r'[\s-]', '', ''.join(pages))
  for page, offset in zip(pages, offsets, strict=True):
    kept = page[:-1] if page.endswith('-') else page
    assert text[offset:].startswith(kept)


def test_join_pages():
  assert pdf_layout.join_pages(['It was inter-', 'rupted.', 'New page.', '']) == (
    'It was interrupted.\n\nNew page.', [0, 12, 21, 30])


@pytest.mark.parametrize(('page', 'expected'), [
  (f'hyphen{BREAK}ated', 'hyphenated'),
  (f'well{BREAK}known, and well-known', 'well-known, and well-known'),
  (f'a post{BREAK}Soviet state', 'a post-Soviet state'),
  (f'BUIL{BREAK}TIN and BUILTIN', 'BUILTIN and BUILTIN'),
  (f'Haupt{BREAK}und Nebensatz', 'Haupt- und Nebensatz'),
  (f'https://a.example/long{BREAK}path', 'https://a.example/long-path'),
  (f'pages 10{BREAK}12', 'pages 10-12'),
  (f'in{BREAK}con{BREAK}ceivable', 'inconceivable'),
])
def test_join_hyphens(page, expected):
  assert pdf_layout.join_hyphens([page]) == [expected]


@pytest.mark.parametrize(('text', 'expected'), [
  ('بلغة R وPythonمن', 'بلغة R و Python من'), ('أي \u064bضا', 'أيض\u064bا'),
  ('de\ufb01ne e\ufb03cient', 'define efficient'),
  ('na¨ıve caf´e', 'naïve café'),
  ('C O N S E I L', 'CONSEIL'),
  ('I A M not', 'I A M not'),
  ('soft\xadhyphen\u00a0space\ue000\ufffd', 'softhyphen space'),
  ('Chapter 1 . . . . . . . . . 12', 'Chapter 1 …  12'),
])
def test_clean(text, expected):
  assert pdf_layout.clean(text) == expected


def rows_of(*texts, top=100):
  return [Line(72, top + 14 * i, 300, top + 14 * i + 10, text, 10) for i, text in enumerate(texts)]


def texts(page):
  return [page.head, *(line.text for line in page.lines), page.foot]


def test_running_lines_need_five_pages_and_a_quarter():
  body = ['one two', 'three four', 'five six', 'seven eight']

  def pages(total, marked):
    return [rows_of(*(['Chapter 7'] if i < marked else []), f'{body[i % 4]} {"x" * i}', 'end ' * i)
            for i in range(total)]

  def left(total, marked):
    stripped = pdf_running.strip(pages(total, marked), [800] * total)
    return sum(text == 'Chapter 7' for page in stripped for text in texts(page))
  assert left(8, 8) == 1 and left(20, 5) == 1       # the first copy
  assert left(8, 4) == 4                    # four pages are too few
  assert left(24, 5) == 5                   # less than a quarter
  # Odd and even pages may have lines of their own.
  odd_even = [rows_of('Left title' if i % 2 else 'Right title', f'{body[i % 4]} {"y" * i}')
              for i in range(12)]
  assert [text for page in pdf_running.strip(odd_even, [800] * 12) for text in texts(page)
          if text.endswith('title')] == ['Right title', 'Left title']


def test_heads_that_change_with_the_chapter_go_from_the_margin_alone():
  body = [f'line {"z" * i}' for i in range(18)]
  pages = [[Line(72, 30, 300, 40, f'{i + 1} CHAPTER {"ABCDEF"[i // 3]}', 10),
            *rows_of(body[i], f'Section of {"ABCDEF"[i // 3]}', 'end ' * i)] for i in range(18)]
  left = [text for page in pdf_running.strip(pages, [800] * 18) for text in texts(page)]
  assert [text for text in left if 'CHAPTER' in text] == [f'CHAPTER {c}' for c in 'ABCDEF']
  assert sum(text.startswith('Section') for text in left) == 18


def test_a_two_column_paper_in_order(extractor, shared_data):
  body = (shared_data / 'pdf/digital/pdfjs__tracemonkey.pdf').read_bytes()
  text = extractor.extract(body, ocr='never').text
  order = [
    'Trace-based Just-in-Time Type Specialization', 'Abstract',
    'Dynamic languages such as JavaScript are more difficult to compile', 'Introduction',
    'web programming and is used for the application logic',      # over the copyright notice
    'Compilers for statically typed languages rely on', 'Hence, recording and compiling a trace',
    'Section 3 is a general overview', 'TraceMonkey always begins executing a program',
    'Conclusions', 'Acknowledgments', 'References']
  places = [text.find(phrase) for phrase in order]
  assert -1 not in places and places == sorted(places)


@pytest.mark.parametrize(('number', 'least'), [('01', .99), ('03', .97)])
def test_right_to_left_text_in_logical_order(extractor, shared_data, number, least):
  # Ligatures of lam and alef, the article, marks drawn apart, Latin words between.
  gold = (shared_data / f'pdf/gold/docling__right_to_left_{number}.md').read_text()
  body = (shared_data / f'pdf/digital/docling__right_to_left_{number}.pdf').read_bytes()
  recall, precision = overlap(gold, extractor.extract(body, ocr='never').text)
  assert recall > least and precision > least, (recall, precision)


def test_hostile_and_broken_files_never_crash(extractor, shared_data):
  expected = {
    'encrypted/': {'encrypted'}, 'blank/': {'blank'}, 'corrupt/pdfplumber__empty': {'not_pdf'},
    'corrupt/truncated__': {'text'}, 'corrupt/pdfjs__poppler': {'damaged'},
    'corrupt/OCRmyPDF__invalid': {'damaged'}}
  seen = 0
  for folder in ('encrypted', 'corrupt', 'adversarial', 'blank', 'odd', 'garbled', 'form'):
    for path in sorted((shared_data / 'pdf' / folder).glob('*.pdf')):
      seen += 1
      try:
        extractor.extract(path.read_bytes(), ocr='never')
        outcome = 'text'
      except PdfError as error:
        outcome = error.reason
      assert outcome not in ('crash', 'timeout', 'memory'), path.name
      for prefix, reasons in expected.items():
        if f'{folder}/{path.name}'.startswith(prefix):
          assert outcome in reasons, (path.name, outcome)
  assert seen >= 15


def test_a_long_book_against_checked_text(extractor, shared_data):
  gold = (shared_data / 'pdf/gold/benchmarks__GeoTopo.txt').read_text()
  found = extractor.extract(
    (shared_data / 'pdf/digital/sample-files__GeoTopo-komprimiert.pdf').read_bytes(), ocr='never')
  recall, precision = overlap(gold, found.text)
  assert len(found.pages) == 117 and recall > 0.9 and precision > 0.9, (recall, precision)


# Damaged files.

def test_pages_of_a_file_without_its_end_are_found(extractor):
  def draw(page):
    for i in range(6):
      column(page, 72, 700, prose('ABCDEF'[i], 12, 90))
      page.showPage()
  body = make(draw)
  whole = extractor.extract(body)
  assert not whole.repaired
  cut = extractor.extract(body[:body.rindex(b'\nxref\n')].replace(b'/Catalog', b'/Gone'))
  assert cut.repaired == 'truncated' and cut.pages == whole.pages
  assert reason(extractor, body[:300]) == 'truncated'


def test_packed_objects_of_a_cut_file_are_laid_open(extractor):
  def draw(page):
    for i in range(6):
      column(page, 72, 700, prose('ABCDEF'[i], 12, 90))
      page.showPage()
  out = io.BytesIO()
  with pikepdf.open(io.BytesIO(make(draw))) as pdf:
    pdf.save(out, object_stream_mode=pikepdf.ObjectStreamMode.generate)
  body = out.getvalue()
  assert body.count(b'/Page ') == 0 and b'/ObjStm' in body
  cut = body[:body.rindex(b'/XRef') - 40]
  found = extractor.extract(cut)
  assert found.repaired == 'truncated' and tags(found.text)[:3] == ['A0', 'A1', 'A2']


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 4000), st.integers(0, 4000))
def test_repair_survives_anything(noise, start, end):
  body = make(lambda page: column(page, 72, 700, prose('A', 30, 90)), pageCompression=0)
  for version in pdf_repair.repaired(body[:start] + noise + body[end:]):
    assert isinstance(version, bytes)
