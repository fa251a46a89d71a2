"""How a page is read: forms, hidden layers, turned text, superscripts, accents, fixed width."""

import io
import re

import pikepdf
import pytest
from helpers.pdfs import HEIGHT, WIDTH, column, make, prose, tags
from pikepdf import Array, Dictionary, Name, String
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont

from data_beam.pdf import pages as pdf_pages
from data_beam.pdf import text as pdf_text


@pytest.fixture(scope='module')
def extractor():
  with pdf_text.Extractor() as e:
    yield e


def changed(body: bytes, change) -> bytes:
  out = io.BytesIO()
  with pikepdf.open(io.BytesIO(body)) as pdf:
    change(pdf)
    pdf.save(out)
  return out.getvalue()


def shown(x, y, text) -> bytes:
  return b'BT /F1 10 Tf %d %d Td (%s) Tj ET ' % (x, y, text.encode())


def words_of(text):
  return re.findall(r'SEEN-\w+', text), re.findall(r'HIDDEN-\w+', text)


# Forms and comments.

def widget(**entries):
  return Dictionary(Type=Name.Annot, Subtype=Name.Widget, F=4, **entries)


def form(pdf):
  """A form as others than reportlab write them: values of parents, no appearances."""
  parent = pdf.make_indirect(Dictionary(
    FT=Name.Tx, T=String('name'), V=String('Ada Lovelace'), DA=String('/Helv 0 Tf')))
  parent.Kids = Array([pdf.make_indirect(widget(Rect=[180, 490, 430, 512], Parent=parent))])
  radio = pdf.make_indirect(Dictionary(
    FT=Name.Btn, Ff=1 << 15, T=String('status'), V=Name('/two')))
  states = {name: Dictionary(N=Dictionary({f'/{name}': pdf.make_stream(b''),
                                           '/Off': pdf.make_stream(b'')}))
            for name in ('one', 'two')}
  radio.Kids = Array([pdf.make_indirect(widget(
    Parent=radio, Rect=[72 + 100 * i, 250, 82 + 100 * i, 260], AP=states[name],
    AS=Name('/two' if name == 'two' else '/Off'))) for i, name in enumerate(states)])
  fields = [
    widget(FT=Name.Tx, T=String('more'), Ff=1 << 12, V=String('First line\rsecond line'),
           Rect=[180, 400, 430, 470]),
    widget(FT=Name.Tx, T=String('key'), Ff=1 << 13, V=String('HIDDEN-password'),
           Rect=[180, 380, 430, 395]),
    widget(FT=Name.Ch, T=String('land'), Ff=1 << 17, V=String('ES'), Rect=[180, 340, 430, 355],
           Opt=Array([Array([String('FR'), String('France')]),
                      Array([String('ES'), String('Spain')])])),
    widget(FT=Name.Tx, T=String('off'), V=String('HIDDEN-flag'), Rect=[180, 360, 430, 375]),
    widget(FT=Name.Btn, T=String('go'), Ff=1 << 16, MK=Dictionary(CA=String('HIDDEN-button')),
           Rect=[180, 200, 250, 220]),
    widget(FT=Name.Tx, T=String('town'), V=String('London'), Rect=[105, 298, 190, 312]),
    widget(FT=Name.Tx, T=String('year'), V=String('1843'), Rect=[228, 298, 300, 312])]
  fields[3].F = 2
  fields = [pdf.make_indirect(field) for field in fields]
  pdf.Root.AcroForm = Dictionary(Fields=Array([parent, radio, *fields]), NeedAppearances=True)
  over = pdf.make_indirect(Dictionary(
    Type=Name.Annot, Subtype=Name.FreeText, DA=String('/Helv 9 Tf'), Rect=[120, 715, 300, 730],
    Contents=String('Please check this claim')))
  pdf.pages[0].obj.Annots = Array([*parent.Kids, *radio.Kids, *fields, over])


def labels(page):
  column(page, 72, 720, prose('A', 4))
  page.setFont('Helvetica', 10)
  for y, text in ((496, 'Full name'), (458, 'Remarks'), (344, 'Country'),
                  (300, 'Town: ................................ Year: ______________')):
    page.drawString(72, y, text)
  page.drawString(86, 251, 'Single')
  page.drawString(186, 251, 'Married')


@pytest.mark.parametrize('rotate', [0, 90])
def test_values_of_a_form_stand_where_they_are_on_the_page(extractor, rotate):
  def change(pdf):
    form(pdf)
    pdf.pages[0].obj.Rotate = rotate
  text = extractor.extract(changed(make(labels), change), ocr='never').text
  plain = re.sub(r'[|\s-]+', ' ', text)
  assert ('Full name Ada Lovelace Remarks First line second line Country Spain Town: London '
          'Year: 1843 [ ] Single [x] Married') in plain
  assert 'HIDDEN' not in text and tags(text) == ['A0', 'A1', 'A2', 'A3']
  # What lies over other text is not mixed with it.
  assert text.endswith('Please check this claim')


# What no reader sees.

def layers(pdf):
  """Layers by marked content, by form, by annotation, and by sets of them."""
  group = {name: pdf.make_indirect(Dictionary(Type=Name.OCG, Name=String(name)))
           for name in ('off', 'on')}
  both = Array(group.values())
  pdf.Root.OCProperties = Dictionary(
    OCGs=both, D=Dictionary(OFF=Array([group['off']]), Order=both))
  sets = {
    'all': Dictionary(Type=Name.OCMD, OCGs=both, P=Name.AllOn),
    'any': Dictionary(Type=Name.OCMD, OCGs=both),
    'none': Dictionary(Type=Name.OCMD, OCGs=group['off'], P=Name.AllOff),
    'not': Dictionary(Type=Name.OCMD, VE=Array([Name.Not, group['on']]))}
  page = pdf.pages[0]
  page.Resources.Properties = Dictionary(
    {f'/{name}': pdf.make_indirect(content) for name, content in {**sets, **group}.items()})
  inner = b'/OC /off BDC %s EMC %s' % (shown(72, 480, 'HIDDEN-inner'), shown(72, 460, 'SEEN-inner'))
  forms = {name: pdf.make_stream(content, Dictionary(
    Type=Name.XObject, Subtype=Name.Form, BBox=[0, 0, 612, 792], OC=group[layer],
    Resources=Dictionary(Font=page.Resources.Font, Properties=page.Resources.Properties)))
    for name, layer, content in (('a', 'off', shown(72, 500, 'HIDDEN-form')), ('b', 'on', inner))}
  page.Resources.XObject = Dictionary({f'/{name}': item for name, item in forms.items()})
  page.contents_add(pdf.make_stream(b'/a Do /b Do ' + b''.join(
    b'/OC /%s BDC /Span <</MCID 1>> BDC %s EMC EMC ' % (name.encode(), shown(72, y, text))
    for name, y, text in (('off', 400, 'HIDDEN-off'), ('on', 380, 'SEEN-on'),
                          ('all', 360, 'HIDDEN-all'), ('any', 340, 'SEEN-any'),
                          ('none', 320, 'SEEN-none'), ('not', 300, 'HIDDEN-not')))))
  page.obj.Annots = Array([pdf.make_indirect(Dictionary(
    Type=Name.Annot, Subtype=Name.FreeText, Rect=[72, y, 300, y + 14], OC=group[name],
    Contents=String(text))) for name, y, text in (('off', 200, 'HIDDEN-note'),
                                                  ('on', 180, 'SEEN-note'))])


def test_layers_that_are_switched_off_are_left_out(extractor):
  body = changed(make(lambda page: column(page, 72, 720, prose('A', 4))), layers)
  seen, hidden = words_of(extractor.extract(body, ocr='never').text)
  assert seen == ['SEEN-inner', 'SEEN-on', 'SEEN-any', 'SEEN-none', 'SEEN-note'] and not hidden
  seen, hidden = words_of(extractor.extract(body, ocr='never', unseen=True).text)
  assert len(seen) == 5 and len(hidden) == 6


def test_layers_that_are_off_unless_named(extractor):
  def change(pdf):
    layers(pdf)
    properties = pdf.Root.OCProperties
    properties.D = Dictionary(BaseState=Name.OFF, ON=Array([properties.OCGs[1]]))
  body = changed(make(lambda page: column(page, 72, 720, prose('A', 4))), change)
  assert not words_of(extractor.extract(body, ocr='never').text)[1]


def white(page):
  column(page, 72, 720, prose('A', 4))
  page.setFont('Helvetica', 10)
  page.setFillColorRGB(1, 1, 1)
  page.drawString(72, 500, 'HIDDEN-rgb')
  page.setFillColorCMYK(0, 0, 0, 0)
  page.drawString(72, 480, 'HIDDEN-cmyk')
  page.setFillGray(.2)
  page.rect(70, 430, 200, 20, fill=1, stroke=0)
  page.setFillGray(1)
  page.drawString(72, 435, 'SEEN-dark')
  page.rect(70, 400, 200, 20, fill=1, stroke=1)
  page.drawString(72, 405, 'HIDDEN-frame')
  page.setLineWidth(20)
  page.line(70, 380, 300, 380)
  page.drawString(72, 376, 'SEEN-line')
  page.setFillGray(0)
  page.drawString(72, 340, 'The capital is')
  page.setFillGray(1)
  page.drawString(136, 340, 'HIDDEN-answer')
  page.setFillGray(0)
  page.drawString(216, 340, 'SEEN-rest')
  page.setFillAlpha(0)
  page.drawString(72, 320, 'HIDDEN-opacity')
  page.setFillAlpha(1)
  page.setFont('Helvetica', .5)
  page.drawString(72, 300, 'HIDDEN-tiny')
  lines = page.beginText(72, 280)
  lines.setFont('Helvetica', 10)
  lines.setTextRenderMode(3)
  lines.textLine('HIDDEN-mode')
  page.drawText(lines)


def test_text_that_no_reader_sees(extractor):
  body = make(white)
  found = extractor.extract(body, ocr='never')
  seen, hidden = words_of(found.text)
  assert seen == ['SEEN-dark', 'SEEN-line', 'SEEN-rest'] and not hidden
  assert 0 < found.features[0]['hidden'] < .5
  seen, hidden = words_of(extractor.extract(body, ocr='never', unseen=True).text)
  assert len(seen) == 3 and len(hidden) == 7


def test_invisible_text_over_a_picture_stays(extractor):
  from PIL import Image

  def draw(page):
    column(page, 72, 760, prose('A', 3))
    page.drawImage(ImageReader(Image.new('L', (30, 30), 200)), 60, 500, 400, 200)
    lines = page.beginText(72, 600)
    lines.setFont('Helvetica', 10)
    lines.setTextRenderMode(3)
    lines.textLine('SEEN-below')
    page.drawText(lines)
  assert words_of(extractor.extract(make(draw), ocr='never').text) == (['SEEN-below'], [])


def test_files_of_a_portfolio_are_read(extractor):
  def change(pdf):
    for name in ('b.pdf', 'a.pdf'):
      inner = make(lambda page, name=name: page.drawString(72, 700, f'The text of {name}'))
      pdf.attachments[name] = pikepdf.AttachedFileSpec(pdf, inner, filename=name)
    pdf.attachments['c.txt'] = pikepdf.AttachedFileSpec(pdf, b'no PDF', filename='c.txt')
    if portfolio:
      pdf.Root.Collection = Dictionary(Type=Name.Collection)
  cover = make(lambda page: page.drawString(72, 700, 'Open this in another program'))
  portfolio = True
  assert extractor.extract(changed(cover, change)).pages[1:] == [
    'The text of a.pdf', 'The text of b.pdf']
  portfolio = False                         # what is attached to a letter is another document
  assert len(extractor.extract(changed(cover, change)).pages) == 1


# Directions.

def table(page, rows=12):
  page.setFont('Times-Roman', 10)
  for i, row in enumerate([('Name', 'Mass', 'Diet')] + [
      (f'Beast{k}', str(3 * k), 'fish') for k in range(rows)]):
    for x, cell in zip((0, 150, 300), row, strict=True):
      page.drawString(x, 300 - 14 * i, cell)


@pytest.mark.parametrize('angle', [90, 180, 270])
def test_a_turned_table_below_upright_text(extractor, angle):
  def draw(page):
    column(page, 72, 760, prose('A', 6))
    page.translate(*{90: (560, 80), 180: (500, 450), 270: (60, 500)}[angle])
    page.rotate(angle)
    table(page)
  text = extractor.extract(make(draw), ocr='never').text
  assert tags(text) == [f'A{i}' for i in range(6)]
  assert '| Name | Mass | Diet |\n| --- | --- | --- |\n| Beast0 | 0 | fish |\n' in text
  assert text.index('A5') < text.index('Beast0') < text.index('Beast11')


def test_a_turned_page_keeps_its_head_apart(extractor):
  def draw(page):
    for number in range(1, 7):
      page.drawString(72, 770, 'Annual report of the society')
      page.drawString(300, 20, str(number))
      if number == 3:
        page.translate(500, 80)
        page.rotate(90)
        table(page, 30)
      else:
        column(page, 72, 700, prose('ABCDEF'[number - 1], 20))
      page.showPage()
  pages = extractor.extract(make(draw), ocr='never').pages
  assert [page.count('Annual report') for page in pages] == [1, 0, 0, 0, 0, 0]
  assert pages[2].startswith('| Name | Mass | Diet |')
  assert pages[2].endswith('| Beast29 | 87 | fish |')


@pytest.mark.parametrize('draw_head', ['drawString', 'drawCentredString', 'drawRightString'])
def test_heads_of_columns_that_are_turned(extractor, draw_head):
  def draw(page):
    column(page, 72, 720, prose('A', 4))
    page.setFont('Helvetica', 9)
    for k, head in enumerate(('Length of body', 'Width', 'Height')):
      page.saveState()
      page.translate(210 + 60 * k, 540)
      page.rotate(90)
      x = {'drawString': 0, 'drawCentredString': 30}.get(draw_head, 60)
      getattr(page, draw_head)(x, 0, head)
      page.restoreState()
    for row in range(5):
      for k, cell in enumerate((f'Model {row}', *(str(10 * row + k) for k in range(3)))):
        page.drawString((72, 205, 265, 325)[k], 520 - 14 * row, cell)
  text = extractor.extract(make(draw), ocr='never').text
  assert '|  | Length of body | Width | Height |\n| --- |' in text
  assert '| Model 4 | 40 | 41 | 42 |' in text


def test_turned_text_far_off_the_page_costs_no_page(extractor):
  def draw(page):
    column(page, 72, 700, prose('A', 8, 60))
    page.translate(100, -4000)
    page.rotate(90)
    page.drawString(0, 0, 'left over from another sheet')
  assert tags(extractor.extract(make(draw), ocr='never').text) == [f'A{i}' for i in range(8)]


def test_a_page_upside_down_reads_like_others(extractor):
  def draw(page):
    page.translate(WIDTH, HEIGHT)
    page.rotate(180)
    column(page, 72, 700, prose('A', 12))
  body = make(draw)
  upright = extractor.extract(make(lambda page: column(page, 72, 700, prose('A', 12)))).text
  assert extractor.extract(body, ocr='never').text == upright
  turned = changed(body, lambda pdf: pdf.pages[0].rotate(180, relative=True))
  assert extractor.extract(turned, ocr='never').text == upright


def test_stamps_across_the_page_go_and_slanted_heads_stay(extractor):
  def draw(page):
    column(page, 72, 720, prose('A', 12))
    for size, text in ((60, 'DRAFT'), (9, 'Slanted')):
      page.saveState()
      page.translate(200, 300)
      page.rotate(45)
      page.setFont('Helvetica', size)
      page.drawString(0, 0, text)
      page.restoreState()
  text = extractor.extract(make(draw), ocr='never').text
  assert 'DRAFT' not in text and text.endswith('Slanted')


JAPANESE = '吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。'


@pytest.mark.parametrize('font', ['HeiseiMin-W3', 'HeiseiKakuGo-W5'])
def test_vertical_japanese_by_places_of_letters(extractor, font):
  pdfmetrics.registerFont(UnicodeCIDFont(font))

  def draw(page):
    page.setFont(font, 12)
    for i, letter in enumerate(JAPANESE * 3):
      page.drawString(500 - 20 * (i // 33), 700 - 13 * (i % 33), letter)
    page.drawString(72, 760, '縦書きの見本')
  text = re.sub(r'\s', '', extractor.extract(make(draw), ocr='never').text)
  assert text == '縦書きの見本' + JAPANESE * 3


# Letters.

def pieces(page, y, *parts):
  """Text in fonts of several sizes, and so much above the line."""
  x = 72
  for text, size, rise in parts:
    page.setFont('Times-Roman', size)
    page.drawString(x, y + rise, text)
    x += page.stringWidth(text, 'Times-Roman', size)


def test_superscripts_are_marked_and_notes_kept_apart(extractor):
  def draw(page):
    column(page, 72, 720, prose('A', 4))
    pieces(page, 600, ('The 1', 11, 0), ('st', 7, 4), (' of 10', 11, 0), ('-23', 7, 4),
           (' J, see Smith', 11, 0), ('12,13', 6, 4), ('. H', 11, 0), ('2', 7, -2),
           ('O and x', 11, 0), ('n', 7, 4), (' + y', 11, 0), ('2', 7, 4), ('z.', 11, 0))
    pieces(page, 560, ('1', 6, 4), ('A note in the margin of this page.', 9, 0))
    pieces(page, 520, ('I', 14, 0), ('NTRODUCTION', 10, 0), (' ', 14, 0), ('A', 14, 0),
           ('ND ', 10, 0), ('S', 14, 0), ('COPE', 10, 0))
  text = extractor.extract(make(draw), ocr='never').text
  assert 'The 1st of 10^-23 J, see Smith^12,13. H2O and x^n + y^2z.' in text
  assert '\n1 A note in the margin' in text
  assert 'INTRODUCTION AND SCOPE' in text


def test_exponents_on_a_page_on_its_side_are_marked(extractor):
  def draw(page):
    page.translate(WIDTH, 0)
    page.rotate(90)
    column(page, 72, 560, prose('A', 4))
    pieces(page, 400, ('The mass is 10', 11, 0), ('23', 7, 4), (' kg, more or less', 11, 0))
  assert 'The mass is 10^23 kg, more' in extractor.extract(make(draw), ocr='never').text


def test_accents_drawn_over_letters(extractor):
  """As TeX sets them in its old fonts: the accent first, or after the word, raised for capitals."""
  def draw(page):
    column(page, 72, 720, prose('A', 4))
    for y, word, over, accent, rise in (
        (600, 'Jan', 1, '\u00b4', 0), (570, 'Selecao', 4, '\u00b8', 0),
        (540, 'METAYER', 1, '\u00b4', 2), (510, 'code `a` stays', None, '', 0)):
      page.setFont('Times-Roman', 11)
      page.drawString(72, y, word + (' and so on' if over else ''))
      if over:
        x = 72 + page.stringWidth(word[:over], 'Times-Roman', 11)
        wide = [page.stringWidth(c, 'Times-Roman', 11) for c in (word[over], accent)]
        page.drawString(x + (wide[0] - wide[1]) / 2, y + rise, accent)
  text = extractor.extract(make(draw), ocr='never').text
  for right in ('Ján and', 'Seleçao and', 'MÉTAYER and', 'code `a` stays'):
    assert right in text


def test_letters_beyond_the_basic_plane_do_not_garble_a_page(extractor):
  def change(pdf):
    font = pdf.pages[0].Resources.Font['/F1']
    font.ToUnicode = pdf.make_stream(
      b'/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> '
      b'endcodespacerange 2 beginbfchar <78> <D835DC65> <79> <D83DDE00> endbfchar '
      b'1 beginbfrange <20> <77> <0020> endbfrange endcmap end')
  body = make(lambda page: page.drawString(72, 700, 'for x and y we have xyx. ' * 3))
  found = extractor.extract(changed(body, change), ocr='never')
  assert found.text == ' '.join(['for 𝑥 and 😀 we have 𝑥😀𝑥.'] * 3)
  assert found.features[0]['garbled'] == 0


def test_hyphens_that_a_font_calls_soft(extractor):
  def change(pdf):
    for font in pdf.pages[0].Resources.Font.values():
      font.ToUnicode = pdf.make_stream(
        b'/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> '
        b'endcodespacerange 1 beginbfchar <2d> <00AD> endbfchar endcmap end')

  def draw(page):
    column(page, 72, 700, ['Filed on 06-March-2020 under number 1-30824 by a town coun-',
                           'cil of old; the council kept it.'], size=12)
  text = extractor.extract(changed(make(draw), change), ocr='never').text
  assert '06-March-2020' in text and '1-30824' in text and 'a town council of old' in text


@pytest.mark.parametrize('shift', [0, 0.3])
def test_words_drawn_twice_are_read_once(extractor, shift):
  lines = ['The detector is very very light.', 'A A B B of 10 10 hydrocarbons.', 'Long long ago.',
           *(f'{i} {i} gases of Model {i}.' for i in range(12))]

  def draw(page):
    for dx in (0, shift):                   # bold letters, or a shadow
      for i, line in enumerate(lines):
        page.drawString(72 + dx, 700 - 40 * i, line)
  assert extractor.extract(make(draw), ocr='never').text.split('\n\n') == lines


def test_letters_that_are_drawings_with_a_unit_of_their_own(extractor):
  lines = ['heavy mesons in a happy model', 'of gauge physics they pay', 'each by day and year']
  high = {chr(c): 44 if chr(c) in 'bdfhklit' else 28 for c in range(97, 123)}

  def change(pdf):
    glyphs = {f'/{letter}': pdf.make_stream(
      b'34 0 0 %d 30 %d d1 0 %d 30 %d re f' % (low, top, low, top - low))
      for letter, top in high.items() for low in [-12 if letter in 'gpqyj' else 0]}
    font = pdf.make_indirect(Dictionary(
      Type=Name.Font, Subtype=Name.Type3, FontBBox=[0, -12, 34, 44], FontMatrix=[1, 0, 0, 1, 0, 0],
      CharProcs=Dictionary(glyphs), Resources=Dictionary(), FirstChar=97, LastChar=122,
      Widths=[34] * 26, Encoding=Dictionary(
        Type=Name.Encoding, Differences=[97, *(Name(f'/{letter}') for letter in high)])))
    page = pdf.pages[0]
    page.Resources.Font['/F1'] = font
    drawn = b''.join(b'BT /F1 .24 Tf %d %d Td (%s) Tj ET ' % (x, 700 - 13 * i, word.encode())
                     for i, line in enumerate(lines)
                     for word, x in zip(line.split(), places(line), strict=True))
    page.Contents = pdf.make_stream(drawn)

  def places(line):
    x = 72
    for word in line.split():
      yield x
      x += round(8.16 * len(word)) + 5
  text = extractor.extract(changed(make(lambda page: page.drawString(9, 9, 'x')), change),
                           ocr='never').text
  assert text.split() == ' '.join(lines).split()


def test_fixed_width_is_told_by_widths(extractor):
  listing = ('def area(shape):', '    if shape.kind:', '        return 3', 'print(area(small))')

  def draw(page):
    column(page, 72, 720, prose('A', 4))
    for i, line in enumerate(listing):
      page.setFont('Courier', 9)
      page.drawString(72, 600 - 11 * i, line)

  def named(base, widths=None):
    def change(pdf):
      for font in pdf.pages[0].Resources.Font.values():
        if (str(font.BaseFont) == '/Courier') == (widths is None):
          font.BaseFont = Name(f'/{base}')
          font.FirstChar, font.LastChar = 32, 126
          font.Widths = Array(widths or [600] * 95)
          font.FontDescriptor = pdf.make_indirect(Dictionary(
            Type=Name.FontDescriptor, FontName=Name(f'/{base}'), Flags=32, ItalicAngle=0,
            Ascent=700, Descent=-200, CapHeight=700, StemV=80, FontBBox=[-100, -200, 1000, 900]))
    return change
  code = '\n'.join(listing)
  assert code in extractor.extract(changed(make(draw), named('Grotesk')), ocr='never').text
  # Prose in a font that is called so, and is not.
  widths = [round(1000 * pdfmetrics.stringWidth(chr(c), 'Times-Roman', 1)) for c in range(32, 127)]
  text = extractor.extract(changed(make(draw), named('CodecMono', widths)), ocr='never').text
  assert code in text and '\n' not in text[:text.index('A3')]


# Headings of the body's size.

def sections(page):
  for i, (head, font) in enumerate((
      ('Scope of the work', 'Times-Bold'), ('2.1 Methods', 'Times-Roman'),
      ('3. a thing to do', 'Times-Roman'))):
    page.setFont(font, 10)
    page.drawString(72, 720 - 150 * i, head)
    column(page, 72, 700 - 150 * i, prose('ABC'[i], 8, 90))


def test_headings_of_the_bodys_size(extractor):
  body = make(sections)
  marked = extractor.extract(body, ocr='never', markdown=True).text
  assert re.findall('^#.*', marked, re.M) == ['# Scope of the work', '## 2.1 Methods']
  plain = extractor.extract(body, ocr='never').text
  assert re.sub('^#+ ', '', marked, flags=re.M) == plain
  # On a page that is all bold, bold tells nothing.
  bold = make(lambda page: [page.setFont('Times-Bold', 10)] + [
    page.drawString(72, 720 - 30 * i, f'Line number {i}, of few words') for i in range(9)])
  assert '#' not in extractor.extract(bold, ocr='never', markdown=True).text


def test_headings_by_the_files_own_tags(extractor):
  parts = (('H1', 'The title'), ('P', 'A paragraph of plain words'), ('H3', 'A small heading'),
           ('P', 'Another paragraph of words'))

  def change(pdf):
    page, root = pdf.pages[0], pdf.make_indirect(Dictionary(Type=Name.StructTreeRoot))
    elements = [pdf.make_indirect(Dictionary(
      Type=Name.StructElem, S=Name(f'/{kind}'), P=root, Pg=page.obj, K=i))
      for i, (kind, _) in enumerate(parts)]
    root.K = Array(elements)
    root.ParentTree = Dictionary(Nums=Array([0, Array(elements)]))
    pdf.Root.StructTreeRoot, pdf.Root.MarkInfo = root, Dictionary(Marked=True)
    page.obj.StructParents = 0
    page.contents_add(pdf.make_stream(b''.join(
      b'/%s <</MCID %d>> BDC %s EMC ' % (kind.encode(), i, shown(72, 700 - 30 * i, text))
      for i, (kind, text) in enumerate(parts))))
  body = changed(make(lambda page: page.setFont('Helvetica', 10)), change)
  assert extractor.extract(body, ocr='never', markdown=True).text == (
    '# The title\n\nA paragraph of plain words\n\n### A small heading\n\n'
    'Another paragraph of words')


# Blocks.

def mixed(page):
  """Pages of many kinds, which share fonts."""
  for i in range(7):
    column(page, 72, 760, prose(f'p{i}-', 12))
    page.setFont('Courier', 9)
    page.drawString(72, 400, f'if a[{i}] == b:    return x^2 `q` ~n')
    if i % 2:
      for x in (72, 200, 330):
        page.line(x, 300, x, 360)
      for y in (300, 330, 360):
        page.line(72, y, 330, y)
      for x, y in ((80, 340), (210, 340), (80, 310), (210, 310)):
        page.drawString(x, y, f'{x * y + i}')
    if i % 3 == 1:
      page.saveState()
      page.rotate(90)
      page.drawString(200, -560, f'On its side {i}')
      page.restoreState()
    if i % 3 == 2:
      page.setFillGray(1)
      page.drawString(72, 200, 'White on white')
      page.setFillGray(0)
    page.showPage()
    if i == 3:
      page.showPage()                       # blank
      page.setPageSize((HEIGHT, WIDTH))
    if i == 5:
      page.setPageSize((WIDTH, HEIGHT))


@pytest.mark.parametrize('most', [1, 3])
def test_a_page_does_not_depend_on_those_it_is_read_with(most, monkeypatch):
  body = make(mixed)
  whole = vars(pdf_text.parse(body, ocr='never'))
  monkeypatch.setattr(pdf_pages, 'BLOCK_PAGES', most)
  assert vars(pdf_text.parse(body, ocr='never')) == whole
  assert len(whole['pages']) == 8 and 'On its side' in ' '.join(whole['pages'])
