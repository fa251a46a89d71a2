"""A PDF's pages through pdfium: lines of the text layer with their boxes, and cheap features.

For a child process (see pdf_text): pdfium is not thread-safe, and a hostile file can crash it.
"""
import ctypes
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from data_beam import pdf_grids, pdf_layout
from data_beam.pdf_grids import Grid
from data_beam.pdf_layout import BREAK, Box, Line

REASONS = {
  'not_pdf': 'the bytes are no PDF',
  'encrypted': 'a password is needed',
  'truncated': 'the file ends too early to be read',
  'damaged': 'the file cannot be parsed',
  'blank': 'no page holds text or a picture of text',
  'needs_ocr': 'only pictures of text, and OCR is off or not installed',
  'ocr_noise': 'OCR found nothing it was sure of',
  'ocr_failed': 'the server of the vision model gave no answer',
  'too_long': 'more pages or characters than allowed',
  'timeout': 'the time limit passed',
  'memory': 'the memory limit was reached',
  'crash': 'the parser died',
}
MAX_PAGE_CHARACTERS = 200_000
MAX_OBJECTS = 20_000         # of a page that are looked at for rules
MAX_RULES = 2_000            # more make no table

_UNREADABLE = re.compile('[\ufffd\ue000-\uf8ff]')
_LAM_ALEF = re.compile('[\u0622\u0623\u0625\u0627]\u0644')
_LATIN = re.compile('[^a-zà-öø-ÿœ]+')
_VOWELS = re.compile('[^aeiouyà-æè-ïò-öø-üÿœ]+')
_MONO = re.compile(rb'(?i)courier|mono|consol|menlo|typewriter|cmtt|fixed|code')


class PdfError(Exception):
  """A document that gave no text; `reason` is a key of `REASONS`."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(f'{reason}: {detail or REASONS[reason]}')
    self.reason, self.detail = reason, detail


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
  from data_beam import pdf_repair  # few need it, and it takes a tenth of a second

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


@functools.cache
def _calls() -> dict[str, Any]:
  """pdfium's calls made for each word, through bare pointers: 3x cheaper than checked ones."""
  pointer, number = ctypes.c_void_p, ctypes.c_int
  shapes = {
    'FPDFText_GetUnicode': (ctypes.c_uint, pointer, number),
    'FPDFText_GetLooseCharBox': (number, pointer, number, pointer),
    'FPDFText_GetCharOrigin': (number, pointer, number, pointer, pointer),
    'FPDFText_GetFontSize': (ctypes.c_double, pointer, number),
    'FPDFText_GetMatrix': (number, pointer, number, pointer),
    'FPDFText_HasUnicodeMapError': (number, pointer, number),
    'FPDFText_GetTextObject': (pointer, pointer, number),
    'FPDFTextObj_GetTextRenderMode': (number, pointer),
    'FPDFText_GetFontInfo': (ctypes.c_ulong, pointer, number, pointer, ctypes.c_ulong, pointer),
    'FPDFPage_GetObject': (pointer, pointer, number),
    'FPDFPageObj_GetType': (number, pointer),
    'FPDFPageObj_GetBounds': (number, pointer, *4 * [pointer]),
    'FPDFPageObj_GetMatrix': (number, pointer, pointer),
    'FPDFPath_CountSegments': (number, pointer),
    'FPDFPath_GetDrawMode': (number, pointer, pointer, pointer),
    'FPDFPath_GetPathSegment': (pointer, pointer, number),
    'FPDFPathSegment_GetPoint': (number, pointer, pointer, pointer),
    'FPDFPathSegment_GetType': (number, pointer),
    'FPDFPathSegment_GetClose': (number, pointer),
  }
  return {name: ctypes.CFUNCTYPE(*shape)(ctypes.cast(getattr(pdfium, name), pointer).value)
          for name, shape in shapes.items()}


class PageText(NamedTuple):
  """What a page's text layer gives."""
  lines: list[Line]
  grids: list[Grid]
  figures: list[Box]        # of pictures in the text, not those that are the page
  height: float             # points
  features: dict[str, Any]  # see `_features`


def read_page(document, index: int) -> PageText:
  """The text layer of a page: nothing where the page is too damaged."""
  nothing = PageText([], [], [], 1.0, _features(0))
  try:
    page = document[index]
  except pypdfium2.PdfiumError:             # one bad page of many
    return nothing
  try:
    text_page = page.get_textpage()
    count = min(text_page.count_chars(), MAX_PAGE_CHARACTERS)
    handle = ctypes.cast(text_page.raw, ctypes.c_void_p).value
    text = _characters(text_page, handle, count)
    lines, grids, figures, height = _lines(handle, text, page)
    characters = sum(len(line.text) for line in lines)
    feature = _features(characters, *_layer(handle, text), _vowels(text))
    if characters < 1500:
      feature['picture'] = round(_picture(page), 4)
    return PageText(lines, grids, figures, height, feature)
  except pypdfium2.PdfiumError:
    return nothing
  finally:
    page.close()


def _features(characters: int, hidden: float = 0.0, garbled: float = 0.0,
              vowels: float | None = None) -> dict[str, Any]:
  """characters of the layer, shares of them hidden and garbled, share of the page under pictures
  (of pages with less than 1,500 characters), and vowels among Latin letters (None: too few)."""
  return {'characters': characters, 'hidden': round(hidden, 4), 'garbled': round(garbled, 4),
          'picture': 0.0, 'vowels': vowels}


def _characters(text_page, handle: int, count: int) -> str:
  """The page's characters, one for each of pdfium's indices."""
  buffer = (ctypes.c_ushort * (count + 1))()
  got = pdfium.FPDFText_GetText(text_page, 0, count, buffer)
  text = bytes(buffer)[:2 * max(0, got - 1)].decode('utf-16-le', 'replace')
  if len(text) != count:                    # pdfium left some out: ask one by one
    get = _calls()['FPDFText_GetUnicode']
    codes = [get(handle, i) for i in range(count)]
    text = ''.join(chr(c) if 0 < c < 0x110000 and not 0xD800 <= c < 0xE000 else '\ufffd'
                   for c in codes)
  if _LAM_ALEF.search(text):
    text = _ligatures_in_order(handle, text)
  return text.replace('\x02', BREAK)


def _ligatures_in_order(handle: int, text: str) -> str:
  """Arabic with lam before alef where one glyph is both. pdfium turns a line round letter by
  letter, and these two with it; the article, alef before lam, has a box for each."""
  out = list(text)
  for match in _LAM_ALEF.finditer(text):
    a, b = _word_boxes(handle, [(match.start(), match.end())])[0]
    if abs(a - b).max() < 0.01:
      out[match.start()], out[match.start() + 1] = match[0][1], match[0][0]
  return ''.join(out)


def _layer(handle: int, text: str) -> tuple[float, float]:
  """Shares of hidden and of garbled characters, by a sample of 64."""
  visible = len(text) - sum(map(text.count, f' \r\n\t{BREAK}'))
  step = max(1, len(text) // 64)
  sample = [i for i in range(step // 2, len(text), step) if text[i] > ' ' and text[i] != BREAK]
  if not sample:
    return 0.0, 0.0
  calls, hidden, garbled = _calls(), 0, 0
  for i in sample:
    item = calls['FPDFText_GetTextObject'](handle, i)
    hidden += bool(item) and calls['FPDFTextObj_GetTextRenderMode'](item) == 3
    garbled += calls['FPDFText_HasUnicodeMapError'](handle, i) == 1 or text[i] < ' '
  replaced = 0 if text.isascii() else len(_UNREADABLE.findall(text))
  return hidden / len(sample), max(garbled / len(sample), replaced / max(1, visible))


def _vowels(text: str) -> float | None:
  """Share of vowels among the first Latin letters: a font whose codes are shifted or shuffled shows
  there, since all else about it is in order. Languages written so have .3 to .5."""
  letters = _LATIN.sub('', text[:4000].lower())
  return round(len(_VOWELS.sub('', letters)) / len(letters), 3) if len(letters) >= 200 else None


def _lines(handle: int, text: str, page,
           words: list[tuple[int, int]] | None = None,
           ) -> tuple[list[Line], list[Grid], list[Box], float]:
  """Words → runs on one baseline, cut at wide gaps and at the edges of ruled cells; the grids of
  those, the figures, and the page's height; coordinates as the page is displayed."""
  width, height = page.get_size()
  words = words or [match.span() for match in re.finditer(rf'[^\s{BREAK}]+', text)]
  if not words:
    return [], [], [], height
  turn = (page.get_rotation(), page.get_bbox())
  boxes_W24 = _displayed(_word_boxes(handle, words), *turn)
  move = boxes_W24[:, 1, :2] + boxes_W24[:, 1, 2:] - boxes_W24[:, 0, :2] - boxes_W24[:, 0, 2:]
  upright = np.abs(move[:, 1]) <= np.abs(move[:, 0])
  long = np.array([end - start > 2 for start, end in words])
  sideways = bool(long.any()) and upright[long].mean() < 0.5
  if sideways:                              # a landscape page set upright: turn it
    upwards = move[~upright, 1].mean() < 0
    width, height = height, width
    boxes_W24, upright = _turned(boxes_W24, upwards, width, height), ~upright
  boxes_W4 = np.concatenate([boxes_W24[..., :2].min(1), boxes_W24[..., 2:].max(1)], 1)
  rules_R4, pictures_P4 = (_displayed(raw, *turn) for raw in _drawn(page))
  if sideways:
    rules_R4, pictures_P4 = (_turned(b, upwards, width, height) for b in (rules_R4, pictures_P4))
  grids, figures = pdf_grids.find(rules_R4), _figures(pictures_P4, width, height)
  drawn_E3 = np.concatenate([np.zeros((0, 3)), *(grid.drawn_E3 for grid in grids)])
  if not sideways and len(cut := _cut(handle, words, boxes_W4, drawn_E3, turn)) > len(words):
    return _lines(handle, text, page, cut)
  edges = _between(handle, words, boxes_W4, drawn_E3)
  for i in np.flatnonzero(~long).tolist():  # one or two letters do not tell: as the word before
    joined = i and text[words[i - 1][1]:words[i][0]] == ' '
    upright[i] = upright[i - 1] if joined else True

  # Outside a crop box stand printers' marks; beyond the edge of the sheet, an overlong table.
  slack = 0 if page.get_cropbox(False) not in (None, page.get_mediabox(False)) else 1
  starts, hyphens = _runs(words, text, boxes_W4, upright, edges)
  lengths_W = np.array([end - start for start, end in words])
  order_W = np.arange(len(words))[::-1]     # of words as long, the first
  longest_R = np.maximum.reduceat(lengths_W * len(words) + order_W, starts)
  marks = len(words) - 1 - longest_R % len(words)
  x0_R = np.minimum.reduceat(boxes_W4[:, 0], starts).tolist()
  x1_R = np.maximum.reduceat(boxes_W4[:, 2], starts).tolist()
  boxes, marks = boxes_W4.tolist(), marks.tolist()
  raw_R4, sizes = _baselines(handle, [words[i][0] for i in marks])
  origins_R4 = _displayed(raw_R4, *turn)
  if sideways:
    origins_R4 = _turned(origins_R4, upwards, width, height)
  lines = []
  runs, is_mono = itertools.pairwise([*starts, len(words)]), _mono_test(handle)
  for run, hyphen, x0, x1, mark, base, size in zip(
      runs, hyphens, x0_R, x1_R, marks, origins_R4[:, 1].tolist(), sizes, strict=True):
    if not upright[mark]:
      continue                              # sideways: a stamp in the margin, an axis of a plot
    if not 0.1 < size < height:
      base, size = boxes[mark][3], max(0.1, boxes[mark][3] - boxes[mark][1])
    if not (-slack * width <= (x0 + x1) / 2 <= (1 + slack) * width
            and -slack * height <= base <= (1 + slack) * height + size):
      continue
    first, last = words[run[0]], words[run[1] - 1]
    mono = is_mono(first[0]) and is_mono(last[1] - 1)
    if mono:                                # spaces as wide as they are
      advance = max(0.1, boxes[mark][2] - boxes[mark][0]) / (words[mark][1] - words[mark][0])
      pieces = [text[slice(*first)]]
      for i in range(run[0] + 1, run[1]):
        gap = round((boxes[i][0] - boxes[i - 1][2]) / advance)
        pieces.append(' ' * max(1, min(40, gap)) + text[slice(*words[i])])
      run_text = ''.join(pieces)
    else:
      run_text = ' '.join(text[start:end] for start, end in words[slice(*run)])
    lines.append(Line(x0, base - 0.8 * size, x1, base + 0.2 * size,
                      run_text + BREAK * hyphen, size, mono))
  return lines, grids, figures, height


def _word_boxes(handle: int, words: list[tuple[int, int]]):
  """Boxes of each word's first and last character, in page space: float32 [W, 2, 4]."""
  out_W24 = np.zeros((len(words), 2, 4), np.float32)
  get_box, address = _calls()['FPDFText_GetLooseCharBox'], out_W24.ctypes.data
  for i, (start, end) in enumerate(words):
    get_box(handle, start, address + 32 * i)
    get_box(handle, end - 1, address + 32 * i + 16)
  return out_W24


def _drawn(page) -> tuple[np.ndarray, np.ndarray]:
  """Boxes of the thin straight lines drawn on a page, and of its pictures, in page space as a
  character's: [R, 4], [P, 4]."""
  calls, handle = _calls(), ctypes.cast(page.raw, ctypes.c_void_p).value
  count = pdfium.FPDFPage_CountObjects(page)
  rules, pictures, bounds = [], [], (ctypes.c_float * 4)()
  addresses = [ctypes.addressof(bounds) + 4 * i for i in range(4)]
  get, kind = calls['FPDFPage_GetObject'], calls['FPDFPageObj_GetType']
  for i in range(min(count, MAX_OBJECTS)):
    item = get(handle, i)
    which = kind(item)
    if which not in (pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_IMAGE):
      continue
    if not calls['FPDFPageObj_GetBounds'](item, *addresses):
      continue
    left, bottom, right, top = bounds
    if which == pdfium.FPDF_PAGEOBJ_IMAGE:
      pictures.append((left, top, right, bottom))
    elif right - left <= pdf_grids.THICK or top - bottom <= pdf_grids.THICK:
      rules.append((left, top, right, bottom))
    else:
      rules += _strokes(item)
    if len(rules) > MAX_RULES:              # a drawing
      break
  return tuple(np.array(boxes, np.float32).reshape(-1, 4)
               for boxes in ([] if len(rules) > MAX_RULES else rules, pictures))


def _figures(pictures_P4, width: float, height: float) -> list[Box]:
  """Those of the pictures that are neither dots nor the page itself, the first 20, as Boxes."""
  wide, high = ((pictures_P4[:, i + 2] - pictures_P4[:, i]) / max(1.0, size)
                for i, size in enumerate((width, height)))
  fit = (wide > .05) & (high > .05) & (wide * high > .01) & (wide * high < .8)
  return [tuple(box) for box in pictures_P4[fit][:20].round(1).tolist()]


def _strokes(item: int) -> list[tuple[float, float, float, float]]:
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


def _cut(handle: int, words: list[tuple[int, int]], boxes_W4, drawn_E3,
         turn) -> list[tuple[int, int]]:
  """The words, those in two of which a piece drawn for itself begins beyond the edge of a cell: no
  space was left there. What merely runs over an edge stays whole."""
  if not len(drawn_E3):
    return words
  y_W1, (x_E, top_E, bottom_E) = boxes_W4[:, 1::2].mean(1)[:, None], drawn_E3.T
  through_WE = ((boxes_W4[:, :1] + 2 < x_E) & (x_E < boxes_W4[:, 2:3] - 2)
                & (top_E <= y_W1) & (y_W1 <= bottom_E))
  if not through_WE.any():
    return words
  drawn_by, out = _calls()['FPDFText_GetTextObject'], []
  for (start, end), through, through_E in zip(words, through_WE.any(1).tolist(), through_WE,
                                              strict=True):
    if through:
      objects = [drawn_by(handle, i) for i in range(start, end)]
      for i in range(start + 1, end):
        if objects[i - start] != objects[i - start - 1]:
          box_124 = _displayed(_word_boxes(handle, [(i, i + 1)]), *turn)
          if box_124[0, 0, 0] > x_E[through_E][0] - 1:
            out.append((start, i))
            start = i
            break
    out.append((start, end))
  return out


def _between(handle: int, words: list[tuple[int, int]], boxes_W4, drawn_E3) -> list[bool]:
  """Whether a word begins in another cell than the one before it, and is drawn for itself."""
  if len(boxes_W4) < 2 or not len(drawn_E3):
    return [False] * len(boxes_W4)
  x_E, top_E, bottom_E = drawn_E3.T
  left_P1, right_P1 = np.sort(np.stack([boxes_W4[:-1, 0], boxes_W4[1:, 0]]), 0)[..., None] + 1
  y_P1 = boxes_W4[1:, 1::2].mean(1)[:, None]
  found_P = ((left_P1 < x_E) & (x_E < right_P1) & (top_E <= y_P1) & (y_P1 <= bottom_E)).any(1)
  drawn_by = _calls()['FPDFText_GetTextObject']
  return [False, *(found and drawn_by(handle, a[1] - 1) != drawn_by(handle, b[0])
                   for found, (a, b) in zip(found_P.tolist(), itertools.pairwise(words),
                                            strict=True))]


def _runs(words: list[tuple[int, int]], text: str, boxes_W4, upright,
          edges: list[bool]) -> tuple[list[int], list[bool]]:
  """The first words of runs that stand together on a line, and whether a hyphen ends each run."""
  a_P4, b_P4 = boxes_W4[:-1], boxes_W4[1:]
  heights_W = boxes_W4[:, 3] - boxes_W4[:, 1]
  size_P = np.maximum(np.maximum(heights_W[:-1], heights_W[1:]), 0.1)
  gap_P = np.maximum(b_P4[:, 0] - a_P4[:, 2], a_P4[:, 0] - b_P4[:, 2])    # either way of writing
  shift_P = np.abs(b_P4[:, 1] + b_P4[:, 3] - a_P4[:, 1] - a_P4[:, 3])
  apart_P = ((gap_P > 0.75 * size_P) | (shift_P > size_P) | (upright[1:] != upright[:-1])).tolist()
  back_P = (b_P4[:, 2] < a_P4[:, 0]).tolist()
  starts, hyphens = [0], []
  for i in range(1, len(words)):
    between = text[words[i - 1][1]:words[i][0]]
    hyphen = BREAK in between
    if (apart_P[i - 1] or hyphen or edges[i] or '\n' in between
        or (back_P[i - 1] and not pdf_layout.RTL.search(text[slice(*words[i])]))):
      starts.append(i)
      hyphens.append(hyphen)
  return starts, [*hyphens, text[words[-1][1]:][:1] == BREAK]


def _baselines(handle: int, indices: list[int]):
  """Origins of characters as degenerate boxes, float32 [R, 4] in page space, and font sizes."""
  calls = _calls()
  x, y, matrix = ctypes.c_double(), ctypes.c_double(), (ctypes.c_float * 6)()
  px, py, pm = ctypes.addressof(x), ctypes.addressof(y), ctypes.addressof(matrix)
  out, sizes = np.zeros((len(indices), 4), np.float32), []
  for row, i in enumerate(indices):
    calls['FPDFText_GetCharOrigin'](handle, i, px, py)
    out[row] = x.value, y.value, x.value, y.value
    scale = math.hypot(matrix[2], matrix[3]) if calls['FPDFText_GetMatrix'](handle, i, pm) else 1
    sizes.append(calls['FPDFText_GetFontSize'](handle, i) * scale)
  return out, sizes


def _displayed(boxes, rotation: int, box: tuple[float, float, float, float]):
  """pdfium's (left, top, right, bottom) in page space → (x0, y0, x1, y1) from the top left."""
  left, bottom, right, top = box
  x0, y1, x1, y0 = (boxes[..., i].astype(np.float64) for i in range(4))      # y1 ≥ y0, upwards
  if rotation == 90:
    out = (y0 - bottom, x0 - left, y1 - bottom, x1 - left)
  elif rotation == 180:
    out = (right - x1, y0 - bottom, right - x0, y1 - bottom)
  elif rotation == 270:
    out = (top - y1, right - x1, top - y0, right - x0)
  else:
    out = (x0 - left, top - y1, x1 - left, top - y0)
  return np.stack(out, -1)


def _turned(boxes, upwards: bool, width: float, height: float):
  """A quarter turn of displayed boxes, so that text running up or down the page lies level."""
  x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
  if upwards:
    return np.stack([width - y1, x0, width - y0, x1], -1)
  return np.stack([y0, height - x1, y1, height - x0], -1)


def _mono_test(handle: int) -> Callable[[int], bool]:
  """Whether a character's font is one of fixed width, by its flags or its name."""
  name, flags = ctypes.create_string_buffer(64), ctypes.c_int()
  addresses, call = (ctypes.addressof(name), 64, ctypes.addressof(flags)), _calls()[
    'FPDFText_GetFontInfo']

  def is_mono(index: int) -> bool:
    call(handle, index, *addresses)
    return bool(flags.value & 1) or _MONO.search(name.value) is not None

  return is_mono


def _picture(page) -> float:
  """Share of the page under pictures, overlaps counted twice, at most 1; 500 objects seen."""
  left, bottom, right, top = page.get_bbox()
  area = 0.0
  for item in itertools.islice(page.get_objects(max_depth=3), 500):
    if item.type == pdfium.FPDF_PAGEOBJ_IMAGE:
      x0, y0, x1, y1 = item.get_bounds()
      area += (max(0.0, min(x1, right) - max(x0, left))
               * max(0.0, min(y1, top) - max(y0, bottom)))
  return min(1.0, area / max(1.0, (right - left) * (top - bottom)))
