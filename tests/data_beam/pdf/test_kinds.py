"""Pages of the kinds that layout took for something else, drawn here with other text than `cases`.

Each asks for what a reader would: that nothing is lost, that what belongs together stands together,
and that what looks alike but is something else (a ranking, a statement of accounts) stays it.
"""

import random
import re

import pytest
from helpers.pdfs import WIDTH, make
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont

from data_beam.pdf import lists as pdf_lists
from data_beam.pdf import text as pdf_text
from data_beam.pdf.lines import Line

WORDS = '''the ferry carried letters across the bay while two clerks counted barrels near a wall and
the wind turned the mill slowly before evening'''.split()       # noqa: SIM905


def sentence(seed, words=30):
  choose = random.Random(seed)
  text = ' '.join(choose.choice(WORDS) for _ in range(words))
  return f'{text[0].upper()}{text[1:]}.'


def wrapped(text, width, font='Times-Roman', size=10):
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if pdfmetrics.stringWidth(longer, font, size) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def paragraph(page, x, y, text, width=400, size=10, lead=12.0):
  page.setFont('Times-Roman', size)
  for line in wrapped(text, width, size=size):
    page.drawString(x, y, line)
    y -= lead
  return y


def read(draw) -> str:
  return pdf_text.parse(make(draw), ocr='never').text


# What repeats on pages, and what does not.

def test_what_differs_from_page_to_page_stays_and_one_copy_of_what_does_not():
  def draw(page):
    for i in range(6):
      page.drawString(72, 765, f'Invoice no. {1003 + i}')
      page.drawRightString(540, 765, 'Harbour Office')
      page.drawString(72, 745, f'Date: 0{i + 1}.03.2021')
      paragraph(page, 72, 700, sentence(i))
      page.drawString(72, 45, f'Due: {37 * i + 12}.50')
      page.drawCentredString(306, 25, f'Quay street 7 · page {i + 1} of 6')
      page.showPage()
  text = read(draw)
  for i in range(6):
    for line in (f'Invoice no. {1003 + i}', f'Date: 0{i + 1}.03.2021', f'Due: {37 * i + 12}.50'):
      assert line in text
  assert text.count('Quay street 7') == 1 and 'of 6' not in text


@pytest.mark.parametrize('rows', [
  [f'2021-03-{1 + i:02} 06:{7 * i % 60:02} INFO job {60 * i} done in {17 * i % 97} ms'
   for i in range(6)],
  [f'Station {i}: depth {3 * i + 2} m' for i in range(6)],
  [f'Total score: {5 * i} of 20' for i in range(6)],
  [f'Signed at the quay, fee: {15 + i} EUR' for i in range(6)],
  [('Certificate no.', f'{7000 + i}') for i in range(6)],
  [('Carried forward', f'{1250 + 310 * i}') for i in range(6)],
  [f'{3 + i} May 1901' for i in range(6)],
  [f'2024-0{1 + i}-01   {1 + i}.5   {70 + i}' for i in range(6)],
])
def test_numbers_that_go_up_with_the_pages_but_count_something_else(rows):
  def draw(page):
    for i, row in enumerate(rows):
      page.setFont('Helvetica', 10)
      for j, cell in enumerate(row if isinstance(row, tuple) else (row,)):
        page.drawString(72 + 180 * j, 760, cell)
      paragraph(page, 72, 700, sentence(i))
      page.showPage()
  text = read(draw)
  assert all(' '.join(row.split()) in text if isinstance(row, str) else row[1] in text
             for row in rows)


def test_chapters_are_no_page_numbers_though_each_page_has_one():
  def draw(page):
    for i, chapter in enumerate(('I', 'II', 'III', 'IV', 'V', 'VI')):
      page.setFont('Times-Roman', 16)
      page.drawCentredString(306, 740, chapter)
      paragraph(page, 72, 700, sentence(i, 150))
      page.drawCentredString(306, 30, str(11 + i))
      page.showPage()
  text = read(draw)
  assert re.search(r'^IV\n', text, re.M) and not re.search(r'\b1\d\b', text)


def test_heads_of_odd_and_even_pages_and_numbers_beyond_a_thousand_go():
  def draw(page):
    for i in range(8):
      if i % 2:
        page.drawString(72, 765, f'{1200 + i}')
        page.drawCentredString(306, 765, 'T. Miller and others')
      else:
        page.drawCentredString(306, 765, 'Letters across the bay')
        page.drawRightString(540, 765, f'{1200 + i}')
      paragraph(page, 72, 700, sentence(i, 90))
      page.showPage()
  text = read(draw)
  assert text.count('T. Miller') == text.count('Letters across the bay') == 1
  assert not re.search(r'\b120\d\b', text)


def test_tables_of_numbers_lose_no_row_and_no_head_is_torn_off():
  rows = [[f'{random.Random(i).random() * 10 ** k:.2f}' for k in range(4)] for i in range(240)]

  def draw(page):
    for start in range(0, 240, 40):
      page.setFont('Helvetica', 9)
      for i, row in enumerate([['Depth', 'Salinity', 'Oxygen', 'Flow'], *rows[start:start + 40]]):
        for j, cell in enumerate(row):
          page.drawRightString(150 + 100 * j, 770 - 17 * i, cell)
      page.showPage()
  text = read(draw)
  assert all(' | '.join(row) in text for row in rows)
  assert text.count('| Depth | Salinity | Oxygen | Flow |') == 6


@pytest.mark.parametrize('heading', ['1984', 'MIX', '4250', '12 %', 'No. 7', '$ 80'])
def test_a_heading_is_no_page_number(heading):
  def draw(page):
    page.setFont('Helvetica', 11)
    page.drawString(72, 760, heading)
    paragraph(page, 72, 720, sentence(1, 150))
    page.drawCentredString(306, 30, '17')
  text = read(draw)
  assert text.startswith(heading) and not text.endswith('17')


@pytest.mark.parametrize(('y', 'parts', 'goes'), [
  (30, ['Downloaded from http://example.org/ by guest on 3 May 2019'], True),
  (770, ['Heruntergeladen am 03.05.19 01:12 von 192.0.2.7'], True),
  (30, ['Revision: 2.4', 'P/N 119-036', '10 June 2019'], True),
  (770, ['400', 'RIVERS AND QUAYS', 'Ch. XIX'], True),
  (30, ['Signed', 'J. Miller', '10 June 2019'], False),
  (30, ['Total', '12', '4250'], False),
  (30, ['Downloaded files stand in the folder below'], False),
  (702, ['Downloaded from the tide gauge on 3 May 2019, the numbers'], False),
  (720, ['Downloaded from http://example.org/ by guest on 3 May 2019'], True),
])
def test_feet_of_single_pages(y, parts, goes):
  """What says who took a copy, and three parts with a revision or a page's number, go without any
  other page; a line to sign and a row of amounts do not."""
  def draw(page):
    paragraph(page, 72, 690, sentence(1, 150), WIDTH - 144)
    page.setFont('Times-Roman', 9)
    for x, part, put in zip((72, 306, 540), parts, (
        page.drawString, page.drawCentredString, page.drawRightString), strict=False):
      put(x, y, part)
  text = read(draw)
  assert [part in text for part in parts] == [not goes] * len(parts)


# What stands left of lines.

@pytest.mark.parametrize('step', [1, 5])
def test_line_numbers_go_and_paragraphs_are_whole(step):
  lines = wrapped(sentence(2, 300), 380)

  def draw(page):
    for i, line in enumerate(lines, 1):
      page.setFont('Times-Roman', 10)
      page.drawString(100, 780 - 20 * i, line)
      if i % step == 0:
        page.setFont('Helvetica', 7)
        page.drawRightString(88, 780 - 20 * i, str(i))
  assert read(draw) == ' '.join(lines)


def test_line_numbers_of_two_columns_close_to_the_text_go():
  columns = [wrapped(sentence(seed, 260), 200, size=9)[:40] for seed in (3, 4)]

  def draw(page):
    for x, lines in zip((80, 330), columns, strict=True):
      for i, line in enumerate(lines, 1):
        page.setFont('Times-Roman', 9)
        page.drawString(x, 780 - 14 * i, line)
        page.setFont('Times-Roman', 6)
        page.drawRightString(x - 6, 780 - 14 * i, str(i))
  assert read(draw).split() == ' '.join(line for lines in columns for line in lines).split()


def test_numbers_that_are_data_stay():
  towns = [('Porto', '231,800'), ('Braga', '193,324'), ('Coimbra', '140,796'), ('Aveiro', '80,880')]

  def draw(page):                           # a ranking, and numbered references
    for i, (town, people) in enumerate(towns):
      page.drawString(72, 760 - 16 * i, str(i + 1))
      page.drawString(110, 760 - 16 * i, town)
      page.drawRightString(300, 760 - 16 * i, people)
    y = 640
    for i in range(1, 8):
      page.setFont('Times-Roman', 10)
      page.drawString(72, y, f'{i}')
      y = paragraph(page, 84, y, f'www.example.org/{i} {sentence(i)}', 300)
  text = read(draw)
  assert all(f'| {i + 1} | {" | ".join(row)} |' in text for i, row in enumerate(towns))
  assert all(f'{i} www.example.org/{i} ' in text for i in range(1, 8))


def test_numbers_of_records_of_several_lines_stay():
  def draw(page):
    for i in range(8):
      page.setFont('Courier', 9)
      page.drawString(72, 740 - 48 * i, str(67 + i))
      for j, line in enumerate(('begin recording of data', 'mode: fast', 'rate: 115 k')):
        page.drawString(110 + 40 * (j > 0), 740 - 48 * i - 12 * j, line)
  text = read(draw)
  assert all(str(67 + i) in text.split() for i in range(8))


@pytest.mark.parametrize('markers', [
  '1. 2. 3.', '(a) (b) (c)', '• • •', '[7] [8] [9]', 'i) ii) iii)'])
def test_lists_are_lists(markers):
  items = [sentence(seed, 28) for seed in (5, 6, 7)]

  def draw(page):
    y = 760
    for marker, item in zip(markers.split(), items, strict=True):
      page.setFont('Times-Roman', 10)
      page.drawString(72, y, marker)
      y = paragraph(page, 100, y, item, 380) - 4
  text = read(draw)
  assert '|' not in text
  for marker, item in zip(markers.replace('•', '*').split(), items, strict=True):
    assert f'{marker} {item}' in text


@pytest.mark.parametrize(('labels', 'width'), [
  (['Aquifer', 'Base flow', 'Catchment', 'Weir'], 330),                       # a glossary
  (['1998–2001', '2001–2009', '2009–2014', 'since 2014'], 330),               # a life
])
def test_labels_stand_before_their_prose(labels, width):
  texts = [sentence(seed, 8 + 9 * seed) for seed in range(len(labels))]

  def draw(page):
    y = 760
    for label, text in zip(labels, texts, strict=True):
      page.setFont('Times-Roman', 10)
      page.drawString(72, y, label)
      y = paragraph(page, 180, y, text, width) - 6
  assert read(draw) == '\n\n'.join(f'{a} {b}' for a, b in zip(labels, texts, strict=True))


def test_cards_of_a_directory_are_read_one_by_one():
  cards = [(f'Dr. {WORDS[i].title()} Bell', f'{i + 3} Mill Street', f'Tel. 555-{1000 + i}')
           for i in range(12)]

  def draw(page):
    page.setFont('Helvetica', 9)
    for i, card in enumerate(cards):
      for j, line in enumerate(card):
        page.drawString(60 + 170 * (i % 3), 760 - 55 * (i // 3) - 11 * j, line)
  squeezed = re.sub(r'\s', '', read(draw))
  assert all(re.sub(r'\s', '', ''.join(card)) in squeezed for card in cards) and '|' not in squeezed


def test_entries_of_an_index_keep_their_lines_and_columns():
  entries = [f'{a} {b}, {i + 3}, {i + 90}–{i + 95}' for i, (a, b) in enumerate(sorted(
    {(a, b) for a in set(WORDS) for b in ('of barges', 'on rivers')})[:40])]

  def draw(page):
    page.setFont('Times-Roman', 9)
    for i, entry in enumerate(entries):
      page.drawString(60 + 220 * (i // 20), 760 - 13 * (i % 20), entry)
  assert [line for line in read(draw).split('\n') if line] == entries


def test_drop_caps_begin_their_paragraph():
  def draw(page):
    for x, cap, rest in ((60, 'W', 'hen the clerks had counted'),
                         (330, 'A', 'long wall before the mill')):
      lines = wrapped(f'{rest} {sentence(8, 60).lower()} a long wall', 200)
      page.setFont('Times-Bold', 30)
      page.drawString(x, 744, cap)
      page.setFont('Times-Roman', 10)
      for i, line in enumerate(lines):
        page.drawString(x + (30 if i < 2 else 0), 758 - 12 * i, line)
  text = read(draw)
  assert text.startswith('When the clerks had counted') and 'A long wall before the mill' in text


# Tables and what stands around them.

def test_a_letter_under_a_narrow_sign_of_a_formula_is_not_moved_past_its_end():
  lines = [Line(100, 40, 102, 80, 'Z', 30),
           *(Line(96.5, y, 99, y + 9, 'n', 9) for y in (45, 62)),
           *(Line(100, 100 + 12 * i, 300, 109 + 12 * i, f'prose {i}', 9) for i in range(6))]
  assert all(line.x0 < line.x1 for line in pdf_lists.joined(lines, rtl=False))


def test_prose_beside_a_table_and_below_it():
  prose, below = sentence(9, 110), sentence(10, 90)

  def draw(page):
    end = paragraph(page, 60, 760, prose, 220)
    page.setFont('Helvetica', 9)
    for i in range(9):
      page.drawString(320, 760 - 16 * i, f'Item {i}')
      page.drawRightString(430, 760 - 16 * i, f'{100 + 7 * i}')
      page.drawRightString(500, 760 - 16 * i, f'{200 + 9 * i}')
    paragraph(page, 60, min(end, 600) - 20, below, 460)
  text = read(draw)
  assert prose in text and below in text
  assert all(f'| Item {i} | {100 + 7 * i} | {200 + 9 * i} |' in text for i in range(9))


@pytest.mark.parametrize('ruled', [False, True])
def test_heads_over_several_columns_stand_over_each(ruled):
  def draw(page):
    x, y = [60, 160, 240, 320, 400, 480], [700 - 18 * i for i in range(7)]
    page.setFont('Helvetica', 9)
    for i, height in enumerate(y if ruled else []):
      page.line(160 if i == 1 else 60, height, 480, height)
    for j, edge in enumerate(x if ruled else []):
      page.line(edge, y[0] if j in (0, 1, 3, 5) else y[1], edge, y[-1])
    page.drawCentredString(240, y[0] - 12, '2023')
    page.drawCentredString(400, y[0] - 12, '2024')
    for i in range(1, 6):
      page.drawString(64, y[i] - 12, 'Parish' if i == 1 else f'District {i}')
      for j in range(1, 5):
        page.drawCentredString(x[j] + 40, y[i] - 12, ['Men', 'Women'][j % 2 - 1] if i == 1
                               else f'{100 * i + j}')
  lines = read(draw).split('\n')
  region = ['Parish', ''] if ruled else ['', 'Parish']       # ruled, its cell is two rows high
  assert lines[0] == f'| {region[0]} | 2023 | 2023 | 2024 | 2024 |'
  assert lines[2] == f'| {region[1]} | Men | Women | Men | Women |'
  assert lines[-1] == '| District 5 | 501 | 502 | 503 | 504 |'


def test_a_label_of_two_lines_is_one_cell():
  def draw(page):
    page.setFont('Helvetica', 10)
    y = 700
    for label, first, second in (('', '2021', '2022'), ('Ferries and', '', ''),
                                 ('barges under repair', '17', '21'),
                                 ('Mills', '3', '4'), ('Clerks', '8', '9'), ('All', '28', '34')):
      page.drawString(72, y, label)
      page.drawRightString(300, y, first)
      page.drawRightString(400, y, second)
      y -= 11 if not first else 18
  assert '| Ferries and barges under repair | 17 | 21 |' in read(draw)


def test_a_head_is_not_torn_off_by_a_line_across_the_table():
  def draw(page):
    page.setFont('Helvetica', 9)
    rows = [['Source', 'Kind', 'Barrels', 'Sacks'], ['Loaded at the old quay, before evening'],
            *([f'Mill {i}', f'oats {i}', f'{70 + i}', f'{90 + i}'] for i in range(8))]
    for i, row in enumerate(rows):
      for x, cell in zip((72, 170, 260, 330) if len(row) > 1 else (140,), row, strict=True):
        page.drawString(x, 700 - 14 * i, cell)
  lines = read(draw).split('\n')
  assert lines[0] == '| Source | Kind | Barrels | Sacks |'
  assert lines[-1] == '| Mill 7 | oats 7 | 77 | 97 |'


def test_labels_of_groups_are_rows_of_their_own_and_heads_are_one_row():
  """Two rows that are one head, a group's name that runs on into the next column, or tears the
  table, and a heading below."""
  rows = [('', '', 'Easy', 'Hard'), ('No', 'Task', '', ''),
          *(row for group in ('Ferries and barges', 'Mills and everything around them that turns')
            for row in ((group, '', '', ''), *((f'{i}', f'Task {i}', f'0.{i}4', f'0.{i}9')
                                               for i in range(1, 6))))]

  def draw(page):
    page.setFont('Helvetica', 9)
    for k, row in enumerate(rows):
      for x, cell in zip((72, 110, 240, 330), row, strict=True):
        page.drawString(x, 700 - 12 * k, cell)
    page.setFont('Helvetica-Bold', 12)
    page.drawString(72, 700 - 12 * len(rows) - 30, '4.2')
    page.drawString(100, 700 - 12 * len(rows) - 30, 'Oats and barley')
  lines = read(draw).split('\n')
  assert lines[0] == '| No | Task | Easy | Hard |'
  assert '| 5 | Task 5 | 0.54 | 0.59 |' in lines
  assert lines[-1] == '4.2 Oats and barley'


def test_verse_keeps_its_lines():
  lines = [f'{WORDS[i].title()} {" ".join(WORDS[3 * i % 20:][:(2, 4, 3, 8, 3, 5)[i % 6]])}'
           for i in range(12)]

  def draw(page):
    page.setFont('Times-Roman', 11)
    for i, line in enumerate(lines):
      page.drawString(150, 740 - 15 * i - 15 * (i // 6), line)
  assert [line for line in read(draw).split('\n') if line] == lines


def test_a_list_of_amounts_across_columns_is_not_torn():
  def draw(page):
    for x in (60, 320):
      paragraph(page, x, 750, sentence(x, 80), 230)
      paragraph(page, x, 450, sentence(x + 1, 80), 230)
    page.setFont('Times-Roman', 10)
    for i in range(6):
      page.drawString(60, 560 - 14 * i, f'Fee of boat {i}')
      page.drawRightString(550, 560 - 14 * i, f'{13 * i + 7}.00')
  text = read(draw)
  assert all(f'| Fee of boat {i} | {13 * i + 7}.00 |' in text for i in range(6))
  assert all(sentence(x + k, 80) in text for x in (60, 320) for k in (0, 1))


# Letters.

def test_chinese_that_is_justified_has_no_spaces_within():
  pdfmetrics.registerFont(UnicodeCIDFont('STSong-Light'))

  def draw(page):
    page.setFont('STSong-Light', 10)
    for i, parts in enumerate([('本集团的客户须于交易日后两', '个营业日内'),
                               ('结算其交易', '金额并支付各项费用')]):
      page.drawString(72, 740 - 16 * i, parts[0])
      page.drawString(75 + 10 * len(parts[0]), 740 - 16 * i, parts[1])
    page.drawString(72, 600, '한국어는')     # words of their own
    page.drawString(115, 600, '띄어쓴다')
  text = read(draw)
  assert '交易日后两个营业日内结算其交易金额并支付' in text and '한국어는 띄어쓴다' in text


def test_two_columns_of_chinese_are_no_table():
  pdfmetrics.registerFont(UnicodeCIDFont('STSong-Light'))
  texts = ['河水在石桥下缓慢流过市场上的人们谈论着天气和价格' * 5,
           '渡船早晨离开港口把信件送过河去风车在墙边慢慢转动' * 5]

  def draw(page):
    page.setFont('STSong-Light', 10)
    for x, text in zip((72, 330), texts, strict=True):
      for i in range(0, len(text), 18):
        page.drawString(x, 740 - 16 * (i // 18), text[i:i + 18])
  assert all(text in read(draw) for text in texts)


def test_lines_of_chinese_are_joined_without_spaces():
  pdfmetrics.registerFont(UnicodeCIDFont('STSong-Light'))
  text = '河水在石桥下缓慢流过市场上的人们谈论着天气和价格' * 6

  def draw(page):
    page.setFont('STSong-Light', 11)
    for i in range(0, len(text), 32):
      page.drawString(72, 760 - 16 * (i // 32), text[i:i + 32])
  assert read(draw) == text


def test_capitals_named_in_a_row_stay_apart():
  def draw(page):
    page.setFont('Helvetica', 11)
    page.drawString(72, 760, 'Tick one: A B C D E')
    paragraph(page, 72, 730, f'Of the classes P R S T V only two are left. {sentence(3)}',
              WIDTH - 144)
  text = read(draw)
  assert 'A B C D E' in text and 'classes P R S T V only' in text
