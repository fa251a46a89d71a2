"""A PDF's pages through pdfium: lines of the text layer with their boxes, and cheap features.

For a child process (see text): pdfium is not thread-safe, and a hostile file can crash it.
"""

import ctypes
import functools
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from data_beam.pdf import layout as pdf_layout
from data_beam.pdf import tables as pdf_tables
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK, Box, Line
from data_beam.pdf.tables import Grid

MAX_PAGE_CHARACTERS = 200_000
MAX_OBJECTS = 20_000         # of a page that are looked at for rules
MAX_RULES = 2_000            # more make no table

_DRAWN = (pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_IMAGE)
_UNREADABLE = re.compile('[\ufffd\ue000-\uf8ff]')
_LAM_ALEF = re.compile('[\u0622\u0623\u0625\u0627]\u0644')
_GAPS = np.zeros(1 << 16, bool)
_GAPS[[*(c for c in range(0x3001) if chr(c).isspace()), ord(BREAK)]] = True
# Of Latin-1 in lower case: what is no letter, and what is no vowel.
_NO_LETTERS, _NO_VOWELS = (
  bytes(b for b in range(256) if not re.match(f'[{letters}]', chr(b)))
  for letters in ('a-zà-öø-ÿ', 'aeiouyà-æè-ïò-öø-üÿ'))
_MONO = re.compile(rb'(?i)courier|mono|consol|menlo|typewriter|cmtt|fixed|code')


def open_document(body: bytes) -> tuple[pypdfium2.PdfDocument, str]:
  """The document, and if it had to be repaired, of what: 'damaged' or 'truncated', else ''.

  Raises PdfError: not_pdf, encrypted (a password other than the empty one is needed), and the two
  where no repair helps.
  """
  if b'%PDF-' not in body[:1024]:
    raise PdfError('not_pdf')
  document = opened(body)
  if document:
    return document, ''
  reason = 'damaged' if b'%%EOF' in body[-2048:] else 'truncated'
  from data_beam.pdf import repair as pdf_repair  # few need it, and it takes a tenth of a second

  for version in pdf_repair.repaired(body):
    document = opened(version)
    if document:
      return document, reason
  raise PdfError(reason)


def opened(body: bytes) -> pypdfium2.PdfDocument | None:
  """What pdfium alone makes of a file: None if it has no pages. Raises PdfError: encrypted."""
  try:
    document = pypdfium2.PdfDocument(body)
  except pypdfium2.PdfiumError as error:
    if pdfium.FPDF_GetLastError() in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
      raise PdfError('encrypted') from error
    return None
  if len(document):
    return document
  document.close()
  return None


class _Object(ctypes.c_void_p):
  """A thing drawn on a page. As the type of a result it stays a pointer, and makes no int."""


@functools.cache
def _calls() -> dict[str, Any]:
  """pdfium's calls made for each word or object, by bare pointers: 3x cheaper than checked ones.

  Where no types of arguments are told, handles must be ctypes' pointers, and ints go as C's: that
  halves the cost once more.
  """
  pointer, number = ctypes.c_void_p, ctypes.c_int
  shapes = {
    'FPDFText_GetUnicode': (ctypes.c_uint,),
    'FPDFText_GetLooseCharBox': (number,),
    'FPDFText_GetCharOrigin': (number, pointer, number, pointer, pointer),
    'FPDFText_GetFontSize': (ctypes.c_double,),
    'FPDFText_GetMatrix': (number, pointer, number, pointer),
    'FPDFText_HasUnicodeMapError': (number,),
    'FPDFText_GetTextObject': (pointer,),
    'FPDFTextObj_GetTextRenderMode': (number, pointer),
    'FPDFText_GetFontInfo': (ctypes.c_ulong, pointer, number, pointer, ctypes.c_ulong, pointer),
    'FPDFPage_CountObjects': (number,),
    'FPDFPage_GetObject': (_Object,),
    'FPDFFormObj_CountObjects': (number,),
    'FPDFFormObj_GetObject': (_Object, pointer, ctypes.c_ulong),
    'FPDFPageObj_GetType': (number,),
    'FPDFPageObj_GetBounds': (number, pointer, *4 * [pointer]),
    'FPDFPageObj_GetMatrix': (number, pointer, pointer),
    'FPDFPath_CountSegments': (number,),
    'FPDFPath_GetDrawMode': (number, pointer, pointer, pointer),
    'FPDFPath_GetPathSegment': (_Object,),
    'FPDFPathSegment_GetPoint': (number, pointer, pointer, pointer),
    'FPDFPathSegment_GetType': (number,),
    'FPDFPathSegment_GetClose': (number,),
  }
  return {name: ctypes.PYFUNCTYPE(*shape)(ctypes.cast(getattr(pdfium, name), pointer).value)
          for name, shape in shapes.items()}


def _each(name: str, handle: ctypes.c_void_p, *arguments: Iterable) -> list:
  """What a call of pdfium gives for a handle and each of the arguments."""
  return list(map(_calls()[name], itertools.repeat(handle), *arguments))


def _addresses(array: np.ndarray) -> range:
  """Where in memory the rows of an array are."""
  start, step = array.ctypes.data, array.strides[0] or 1    # 0 where there are no rows
  return range(start, start + step * len(array), step)


@functools.cache
def _room() -> tuple[np.ndarray, list[ctypes.c_void_p]]:
  """Boxes for pdfium to write, and pointers to them: made anew they would cost as much as calls."""
  boxes_N4 = np.zeros((4096, 4), np.float32)
  return boxes_N4, list(map(ctypes.c_void_p, _addresses(boxes_N4)))


def _handle(wrapped) -> ctypes.c_void_p:
  """pdfium's pointer."""
  return ctypes.cast(wrapped.raw, ctypes.c_void_p)


class View(NamedTuple):
  """Which way up a page is displayed."""
  order_4: np.ndarray       # of a box's coordinates
  sign_4: np.ndarray
  shift_4: np.ndarray


class PageText(NamedTuple):
  """What a page's text layer gives."""
  lines: list[Line]
  grids: list[Grid]
  figures: list[Box]        # of pictures in the text, not those that are the page
  height: float             # points
  features: dict[str, Any]  # see `_features`


def read_pages(document: Any, indices: Iterable[int]) -> Iterator[PageText]:
  """The text layers of pages: nothing where a page is too damaged.

  Each stays open until the next one is, so that what both use, fonts above all, is loaded once.
  """
  before = None
  for index in indices:
    try:
      page = document[index]
    except pypdfium2.PdfiumError:           # one bad page of many
      yield _nothing()
      continue
    yield _read(page)
    if before:
      before.close()
    before = page
  if before:
    before.close()


def _read(page) -> PageText:
  try:
    text_page = page.get_textpage()
    count = min(text_page.count_chars(), MAX_PAGE_CHARACTERS)
    handle = _handle(text_page)
    text = _characters(text_page, handle, count)
    lines, grids, figures, height = _lines(handle, text, page)
    characters = sum([len(line.text) for line in lines])
    feature = _features(characters, *_layer(handle, text), _vowels(text))
    if characters < 1500:
      feature['picture'] = round(_picture(page), 4)
    return PageText(lines, grids, figures, height, feature)
  except pypdfium2.PdfiumError:
    return _nothing()


def _features(characters: int, hidden: float = 0.0, garbled: float = 0.0,
              vowels: float | None = None) -> dict[str, Any]:
  """characters of the layer, shares of them hidden and garbled, share of the page under pictures
  (of pages with less than 1,500 characters), and vowels among Latin letters (None: too few)."""
  return {'characters': characters, 'hidden': round(hidden, 4), 'garbled': round(garbled, 4),
          'picture': 0.0, 'vowels': vowels}


def _nothing() -> PageText:
  return PageText([], [], [], 1.0, _features(0))


def _characters(text_page, handle: ctypes.c_void_p, count: int) -> str:
  """The page's characters, one for each of pdfium's indices."""
  buffer = (ctypes.c_ushort * (count + 1))()
  got = pdfium.FPDFText_GetText(text_page, 0, count, buffer)
  text = bytes(buffer)[:2 * max(0, got - 1)].decode('utf-16-le', 'replace')
  if len(text) != count:                    # pdfium left some out: ask one by one
    text = ''.join(chr(c) if 0 < c < 0x110000 and not 0xD800 <= c < 0xE000 else '\ufffd'
                   for c in _each('FPDFText_GetUnicode', handle, range(count)))
  if _LAM_ALEF.search(text):
    text = _ligatures_in_order(handle, text)
  return text.replace('\x02', BREAK)


def _ligatures_in_order(handle: ctypes.c_void_p, text: str) -> str:
  """Arabic with lam before alef where one glyph is both. pdfium turns a line round letter by
  letter, and these two with it; the article, alef before lam, has a box for each."""
  out, spans_M2 = list(text), np.array([match.span() for match in _LAM_ALEF.finditer(text)])
  boxes_M24 = _word_boxes(handle, spans_M2)
  one_M = np.abs(boxes_M24[:, 0] - boxes_M24[:, 1]).max(1) < 0.01
  for i in spans_M2[one_M, 0].tolist():
    out[i], out[i + 1] = out[i + 1], out[i]
  return ''.join(out)


def _layer(handle: ctypes.c_void_p, text: str) -> tuple[float, float]:
  """Shares of hidden and of garbled characters, by a sample of 64."""
  visible = len(text) - sum(map(text.count, f' \r\n\t{BREAK}'))
  step = max(1, len(text) // 64)
  sample = [i for i in range(step // 2, len(text), step) if text[i] > ' ' and text[i] != BREAK]
  if not sample:
    return 0.0, 0.0
  mode = _calls()['FPDFTextObj_GetTextRenderMode']
  items = _each('FPDFText_GetTextObject', handle, sample)
  invisible = {item for item in set(items) if item and mode(item) == 3}
  hidden = sum(item in invisible for item in items)
  garbled = sum(text[i] < ' ' or error == 1 for i, error in zip(
    sample, _each('FPDFText_HasUnicodeMapError', handle, sample), strict=True))
  replaced = 0 if text.isascii() else len(_UNREADABLE.findall(text))
  return hidden / len(sample), max(garbled / len(sample), replaced / max(1, visible))


def _vowels(text: str) -> float | None:
  """Share of vowels among the first Latin letters: a font whose codes are shifted or shuffled shows
  there, since all else about it is in order. Languages written so have .3 to .5."""
  letters = text[:4000].lower().encode('latin-1', 'ignore').translate(None, _NO_LETTERS)
  if len(letters) < 200:
    return None
  return round(len(letters.translate(None, _NO_VOWELS)) / len(letters), 3)


def _words(code_N: np.ndarray) -> np.ndarray:
  """Where words begin and end: int [W, 2]."""
  solid = np.zeros(len(code_N) + 2, bool)
  solid[1:-1] = ~_GAPS.take(code_N, mode='clip')
  return np.flatnonzero(solid[1:] != solid[:-1]).reshape(-1, 2)


def _lines(handle: ctypes.c_void_p, text: str, page, cut_W2: np.ndarray | None = None,
           ) -> tuple[list[Line], list[Grid], list[Box], float]:
  """Words → runs on one baseline, cut at wide gaps and at the edges of ruled cells; the grids of
  those, the figures, and the page's height; coordinates as the page is displayed.

  Args:
    cut_W2: the words, where they are not those between spaces.
  """
  width, height = page.get_size()
  code_N = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  words_W2 = _words(code_N) if cut_W2 is None else cut_W2
  if not len(words_W2):
    return [], [], [], height
  view = _view(page.get_rotation(), page.get_bbox())
  boxes_W24 = _displayed(_word_boxes(handle, words_W2), view)
  move = boxes_W24[:, 1, :2] + boxes_W24[:, 1, 2:] - boxes_W24[:, 0, :2] - boxes_W24[:, 0, 2:]
  upright = np.abs(move[:, 1]) <= np.abs(move[:, 0])
  lengths_W = words_W2[:, 1] - words_W2[:, 0]
  long = lengths_W > 2
  sideways = bool(long.any()) and upright[long].mean() < 0.5
  if sideways:                              # a landscape page set upright: turn it
    upwards = move[~upright, 1].mean() < 0
    width, height = height, width
    boxes_W24, upright = _turned(boxes_W24, upwards, width, height), ~upright
  first_W4, last_W4 = boxes_W24[:, 0], boxes_W24[:, 1]
  boxes_W4 = np.concatenate([np.minimum(first_W4[:, :2], last_W4[:, :2]),
                             np.maximum(first_W4[:, 2:], last_W4[:, 2:])], 1)
  rules_R4, pictures_P4 = (_displayed(raw, view) for raw in _drawn(page))
  if sideways:
    rules_R4, pictures_P4 = (_turned(b, upwards, width, height) for b in (rules_R4, pictures_P4))
  grids, figures = pdf_tables.find(rules_R4), _figures(pictures_P4, width, height)
  drawn_E3 = np.concatenate([np.zeros((0, 3)), *(grid.drawn_E3 for grid in grids)])
  if not sideways and len(cut := _cut(handle, words_W2, boxes_W4, drawn_E3, view)) > len(words_W2):
    return _lines(handle, text, page, cut)
  edge_W = _between(handle, words_W2, boxes_W4, drawn_E3)
  upright |= ~long                          # one or two letters do not tell: as the word before
  if not upright.all():
    for i in (np.flatnonzero(~long[1:]) + 1).tolist():
      if text[words_W2[i - 1, 1]:words_W2[i, 0]] == ' ':
        upright[i] = upright[i - 1]

  # Outside a crop box stand printers' marks; beyond the edge of the sheet, an overlong table.
  slack = 0 if page.get_cropbox(False) not in (None, page.get_mediabox(False)) else 1
  start_R, hyphens = _runs(words_W2, text, code_N, boxes_W4, upright, edge_W)
  ends = [*start_R[1:].tolist(), len(words_W2)]
  first_R, last_R = words_W2[start_R, 0], words_W2[np.array(ends) - 1, 1]
  order_W = np.arange(len(words_W2))[::-1]  # of words as long, the first
  longest_R = np.maximum.reduceat(lengths_W * len(words_W2) + order_W, start_R)
  mark_R = len(words_W2) - 1 - longest_R % len(words_W2)
  x0_R = np.minimum.reduceat(boxes_W4[:, 0], start_R)
  x1_R = np.maximum.reduceat(boxes_W4[:, 2], start_R)
  raw_R4, sizes = _baselines(handle, words_W2[mark_R, 0])
  origins_R4 = _displayed(raw_R4, view)
  if sideways:
    origins_R4 = _turned(origins_R4, upwards, width, height)
  lines = []
  for start, end, first, last, hyphen, x0, x1, mark, base, size, mono, kept in zip(
      start_R.tolist(), ends, first_R.tolist(), last_R.tolist(), hyphens, x0_R.tolist(),
      x1_R.tolist(), mark_R.tolist(), origins_R4[:, 1].tolist(), sizes,
      _monospaced(handle, first_R, last_R - 1), upright[mark_R].tolist(), strict=True):
    if not kept:
      continue                              # sideways: a stamp in the margin, an axis of a plot
    if not 0.1 < size < height:
      _, top, _, base = boxes_W4[mark].tolist()
      size = max(0.1, base - top)
    if not (-slack * width <= (x0 + x1) / 2 <= (1 + slack) * width
            and -slack * height <= base <= (1 + slack) * height + size):
      continue
    if mono:                                # spaces as wide as they are
      left, _, right, _ = boxes_W4[mark].tolist()
      advance = max(0.1, right - left) / int(lengths_W[mark])
      gaps = (boxes_W4[start + 1:end, 0] - boxes_W4[start:end - 1, 2]) / advance
      spaces = [0, *gaps.round().clip(1, 40).astype(int).tolist()]
      run = ''.join(' ' * space + text[a:b] for space, (a, b) in zip(
        spaces, words_W2[start:end].tolist(), strict=True))
    elif cut_W2 is None:
      run = ' '.join(text[first:last].split())
    else:
      run = ' '.join(text[a:b] for a, b in words_W2[start:end].tolist())
    lines.append(Line(x0, base - 0.8 * size, x1, base + 0.2 * size, run + BREAK * hyphen, size,
                      mono))
  return lines, grids, figures, height


def _word_boxes(handle: ctypes.c_void_p, words_W2: np.ndarray):
  """Boxes of each word's first and last character, in page space: float32 [W, 2, 4]."""
  indices, (room_N4, pointers) = (words_W2 - [0, 1]).ravel().tolist(), _room()
  out_N4 = np.zeros((len(indices), 4), np.float32)
  for start in range(0, len(indices), len(pointers)):
    part = indices[start:start + len(pointers)]
    room_N4[:len(part)] = 0
    _each('FPDFText_GetLooseCharBox', handle, part, pointers)
    out_N4[start:start + len(part)] = room_N4[:len(part)]
  return out_N4.reshape(-1, 2, 4)


def _objects(handle: ctypes.c_void_p, most: int,
             of: str = 'FPDFPage') -> Iterator[tuple[_Object, int]]:
  """The first objects of a page, or of='FPDFFormObj', and their kinds."""
  items = _each(f'{of}_GetObject', handle, range(min(_calls()[f'{of}_CountObjects'](handle), most)))
  return zip(items, map(_calls()['FPDFPageObj_GetType'], items), strict=True)


def _bounds(items: list[_Object]) -> list[list[float]]:
  """Boxes of objects: left, bottom, right, top; zeros where pdfium has none."""
  out_N4 = np.zeros((len(items), 4), np.float32)
  edges = (_addresses(out_N4[:, i:]) for i in range(4))
  list(map(_calls()['FPDFPageObj_GetBounds'], items, *edges))
  return out_N4.tolist()


def _drawn(page) -> tuple[np.ndarray, np.ndarray]:
  """Boxes of the thin straight lines drawn on a page, and of its pictures, in page space as a
  character's: [R, 4], [P, 4]."""
  found = [(item, kind) for item, kind in _objects(_handle(page), MAX_OBJECTS)
           if kind in _DRAWN]
  rules, pictures = [], []
  for (item, kind), (left, bottom, right, top) in zip(
      found, _bounds([item for item, _ in found]), strict=True):
    if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
      pictures.append((left, top, right, bottom))
    elif right - left <= pdf_tables.THICK or top - bottom <= pdf_tables.THICK:
      rules.append((left, top, right, bottom))
    else:
      rules += _strokes(item)
    if len(rules) > MAX_RULES:              # a drawing
      rules = []
      break
  return tuple(np.array(boxes, np.float32).reshape(-1, 4) for boxes in (rules, pictures))


def _figures(pictures_P4, width: float, height: float) -> list[Box]:
  """Those of the pictures that are neither dots nor the page itself, the first 20, as Boxes."""
  wide, high = ((pictures_P4[:, i + 2] - pictures_P4[:, i]) / max(1.0, size)
                for i, size in enumerate((width, height)))
  fit = (wide > .05) & (high > .05) & (wide * high > .01) & (wide * high < .8)
  return [tuple(box) for box in pictures_P4[fit][:20].round(1).tolist()]


def _strokes(item: _Object) -> list[tuple[float, float, float, float]]:
  """The straight level or upright lines of a stroked path: boxes of cells, many rules in one."""
  calls, fill, stroke = _calls(), ctypes.c_int(), ctypes.c_int()
  calls['FPDFPath_GetDrawMode'](item, ctypes.addressof(fill), ctypes.addressof(stroke))
  count = calls['FPDFPath_CountSegments'](item)
  if not stroke.value or count > MAX_RULES:
    return []
  matrix, x, y = (ctypes.c_float * 6)(), ctypes.c_float(), ctypes.c_float()
  calls['FPDFPageObj_GetMatrix'](item, ctypes.addressof(matrix))
  a, b, c, d, e, f = matrix
  out, start, last = [], (0.0, 0.0), (0.0, 0.0)

  def line(p, q):
    if min(abs(p[0] - q[0]), abs(p[1] - q[1])) < 1:
      out.append((min(p[0], q[0]), max(p[1], q[1]), max(p[0], q[0]), min(p[1], q[1])))

  for i in range(count):
    segment = calls['FPDFPath_GetPathSegment'](item, i)
    calls['FPDFPathSegment_GetPoint'](segment, ctypes.addressof(x), ctypes.addressof(y))
    point = (a * x.value + c * y.value + e, b * x.value + d * y.value + f)
    kind = calls['FPDFPathSegment_GetType'](segment)
    if kind == pdfium.FPDF_SEGMENT_MOVETO:
      start = point
    elif kind == pdfium.FPDF_SEGMENT_LINETO:
      line(last, point)
    if calls['FPDFPathSegment_GetClose'](segment):
      line(point, start)
    last = point
  return out


def _cut(handle: ctypes.c_void_p, words_W2: np.ndarray, boxes_W4, drawn_E3,
         view: View) -> np.ndarray:
  """The words, those in two of which a piece drawn for itself begins beyond the edge of a cell: no
  space was left there. What merely runs over an edge stays whole."""
  if not len(drawn_E3):
    return words_W2
  y_W1, (x_E, top_E, bottom_E) = (boxes_W4[:, 1:2] + boxes_W4[:, 3:]) / 2, drawn_E3.T
  through_WE = ((boxes_W4[:, :1] + 2 < x_E) & (x_E < boxes_W4[:, 2:3] - 2)
                & (top_E <= y_W1) & (y_W1 <= bottom_E))
  places = []
  for w in np.flatnonzero(through_WE.any(1)).tolist():
    start, end = words_W2[w].tolist()
    drawn_by = _each('FPDFText_GetTextObject', handle, range(start, end))
    begins = np.array([i for i in range(start + 1, end)
                       if drawn_by[i - start] != drawn_by[i - start - 1]], int)
    left_B = _displayed(_word_boxes(handle, begins[:, None] + [0, 1]), view)[:, 0, 0]
    places += begins[left_B > x_E[through_WE[w]][0] - 1][:1].tolist()
  return np.sort(np.append(words_W2.ravel(), places + places)).astype(int).reshape(-1, 2)


def _between(handle: ctypes.c_void_p, words_W2: np.ndarray, boxes_W4, drawn_E3) -> np.ndarray:
  """Whether a word begins in another cell than the one before it, and is drawn for itself."""
  edge_W = np.zeros(len(words_W2), bool)
  if not len(drawn_E3):
    return edge_W
  x_E, top_E, bottom_E = drawn_E3.T
  left_P1, right_P1 = np.sort(np.stack([boxes_W4[:-1, 0], boxes_W4[1:, 0]]), 0)[..., None] + 1
  y_P1 = (boxes_W4[1:, 1:2] + boxes_W4[1:, 3:]) / 2
  edge_W[1:] = ((left_P1 < x_E) & (x_E < right_P1) & (top_E <= y_P1) & (y_P1 <= bottom_E)).any(1)
  drawn_by = _calls()['FPDFText_GetTextObject']
  for w in np.flatnonzero(edge_W).tolist():
    edge_W[w] = (drawn_by(handle, int(words_W2[w - 1, 1]) - 1)
                 != drawn_by(handle, int(words_W2[w, 0])))
  return edge_W


def _runs(words_W2: np.ndarray, text: str, code_N: np.ndarray, boxes_W4, upright, edge_W,
          ) -> tuple[np.ndarray, list[bool]]:
  """The first words of runs that stand together on a line, and whether a hyphen ends each run."""
  a_P4, b_P4 = boxes_W4[:-1], boxes_W4[1:]
  heights_W = boxes_W4[:, 3] - boxes_W4[:, 1]
  size_P = np.maximum(np.maximum(heights_W[:-1], heights_W[1:]), 0.1)
  gap_P = np.maximum(b_P4[:, 0] - a_P4[:, 2], a_P4[:, 0] - b_P4[:, 2])    # either way of writing
  shift_P = np.abs(b_P4[:, 1] + b_P4[:, 3] - a_P4[:, 1] - a_P4[:, 3])
  newline_P, hyphen_P = (_contain(code_N, ord(character), words_W2) for character in ('\n', BREAK))
  apart_P = ((gap_P > 0.75 * size_P) | (shift_P > size_P) | (upright[1:] != upright[:-1])
             | newline_P | hyphen_P | edge_W[1:])
  for i in np.flatnonzero((b_P4[:, 2] < a_P4[:, 0]) & ~apart_P).tolist():
    apart_P[i] = not pdf_layout.RTL.search(text[slice(*words_W2[i + 1])])
  ends_P = np.flatnonzero(apart_P)
  hyphens = [*hyphen_P[ends_P].tolist(), text[words_W2[-1, 1]:][:1] == BREAK]
  return np.append(0, ends_P + 1), hyphens


def _contain(code_N: np.ndarray, code: int, words_W2: np.ndarray) -> np.ndarray:
  """Whether the gap after each word but the last has a character: bool [W - 1]."""
  places = np.flatnonzero(code_N == code)
  return (np.searchsorted(places, words_W2[1:, 0]) > np.searchsorted(places, words_W2[:-1, 1]))


def _baselines(handle: ctypes.c_void_p, index_R: np.ndarray) -> tuple[np.ndarray, list[float]]:
  """Origins of characters as degenerate boxes, float32 [R, 4] in page space, and font sizes."""
  indices, origin_R2 = index_R.tolist(), np.zeros((len(index_R), 2))
  matrix_R6 = np.zeros((len(index_R), 6), np.float32)
  _each('FPDFText_GetCharOrigin', handle, indices, _addresses(origin_R2),
        _addresses(origin_R2[:, 1:]))
  known = _each('FPDFText_GetMatrix', handle, indices, _addresses(matrix_R6))
  scale_R = np.where(known, np.hypot(*matrix_R6[:, 2:4].T.astype(float)), 1)
  sizes_R = _each('FPDFText_GetFontSize', handle, indices) * scale_R
  return np.tile(origin_R2, 2).astype(np.float32), sizes_R.tolist()


def _view(rotation: int, box: tuple[float, float, float, float]) -> View:
  """How a page's space is displayed, see `_displayed`."""
  left, bottom, right, top = box
  order, sign, shift = {
    0: ([0, 1, 2, 3], (1, -1, 1, -1), (-left, top, -left, top)),
    90: ([3, 0, 1, 2], (1, 1, 1, 1), (-bottom, -left, -bottom, -left)),
    180: ([2, 3, 0, 1], (-1, 1, -1, 1), (right, -bottom, right, -bottom)),
    270: ([1, 2, 3, 0], (-1, -1, -1, -1), (top, right, top, right)),
  }[rotation]
  return View(np.array(order), np.array(sign, float), np.array(shift, float))


def _displayed(boxes, view: View):
  """pdfium's (left, top, right, bottom) in page space → (x0, y0, x1, y1) from the top left."""
  return boxes.take(view.order_4, -1) * view.sign_4 + view.shift_4


def _turned(boxes, upwards: bool, width: float, height: float):
  """A quarter turn of displayed boxes, so that text running up or down the page lies level."""
  x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
  if upwards:
    return np.stack([width - y1, x0, width - y0, x1], -1)
  return np.stack([y0, height - x1, y1, height - x0], -1)


def _monospaced(handle: ctypes.c_void_p, first_R: np.ndarray, last_R: np.ndarray) -> list[bool]:
  """Whether two characters' fonts are of fixed width, by their flags or their names."""
  mono_R = np.ones(len(first_R), bool)
  for index_R in (first_R, last_R):
    asked = np.flatnonzero(mono_R)
    names, flags = np.zeros(len(asked), 'S64'), np.zeros(len(asked), np.int32)
    _each('FPDFText_GetFontInfo', handle, index_R[asked].tolist(), _addresses(names),
          itertools.repeat(names.itemsize), _addresses(flags))
    names = names.tolist()
    named = {name for name in set(names) if _MONO.search(name)}
    mono_R[asked] = [flag & 1 or name in named
                     for name, flag in zip(names, flags.tolist(), strict=True)]
  return mono_R.tolist()


def _picture(page) -> float:
  """Share of the page under pictures, overlaps counted twice, at most 1; 500 objects seen."""
  def seen(handle: ctypes.c_void_p, of: str, depth: int) -> Iterator[tuple[_Object, int]]:
    for item, kind in _objects(handle, 500, of):
      yield item, kind
      if kind == pdfium.FPDF_PAGEOBJ_FORM and depth:
        yield from seen(item, 'FPDFFormObj', depth - 1)

  left, bottom, right, top = page.get_bbox()
  pictures = [item for item, kind in itertools.islice(seen(_handle(page), 'FPDFPage', 2), 500)
              if kind == pdfium.FPDF_PAGEOBJ_IMAGE]
  area = sum(max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, top) - max(y0, bottom))
             for x0, y0, x1, y1 in _bounds(pictures))
  return min(1.0, area / max(1.0, (right - left) * (top - bottom)))
