"""A PDF's pages through pdfium: lines of the text layer with their boxes, and cheap features.

For a child process (see text): pdfium is not thread-safe, and a hostile file can crash it.
"""

import ctypes
import operator
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from data_beam.pdf import annotations as pdf_annotations
from data_beam.pdf import blank_font
from data_beam.pdf import drawn as pdf_drawn
from data_beam.pdf import layout as pdf_layout
from data_beam.pdf import structure as pdf_structure
from data_beam.pdf import tables as pdf_tables
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK
from data_beam.pdf.lines import Box, Line
from data_beam.pdf.pdfium import (
  Object,
  View,
  calls,
  displayed,
  each,
  handle_of,
  levelled,
  origins,
  spans,
  view_of,
)
from data_beam.pdf.tables import Grid
from data_beam.pdf.words import ASKEW, Words, characters, has_halves, holding, whole, words_of

MAX_PAGE_CHARACTERS = 200_000
MAX_PACKED = 4 << 20         # bytes of an object stream in which the catalogue is looked for
ASIDE = 5                    # as a turn: written over other text
MAX_HEAD = 60                # characters of a column's head that is turned
STAMP = 0.025                # of the page's height: askew in such a size, DRAFT, COPY

_MORE = (b'/OCProperties', b'/Collection')
_CATALOGUE = re.compile(rb'/Type[\s\0]*/Catalog\b')
_PACKED = re.compile(rb'/Type[\s\0]*/ObjStm\b')
_UNREADABLE = re.compile('[\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]')
# Of Latin-1 in lower case: what is no letter, and what is no vowel.
_NO_LETTERS, _NO_VOWELS = (
  bytes(b for b in range(256) if not re.match(f'[{letters}]', chr(b)))
  for letters in ('a-zà-öø-ÿ', 'aeiouyà-æè-ïò-öø-üÿ'))


def open_document(body: bytes, unseen: bool = False) -> tuple[pypdfium2.PdfDocument, str]:
  """The document as its reader sees it, with what its layers hide if `unseen`; and if it had to be
  repaired, of what: 'damaged' or 'truncated', else ''.

  Raises PdfError: not_pdf, encrypted (a password other than the empty one is needed), and the two
  where no repair helps.
  """
  if b'%PDF-' not in body[:1024]:
    raise PdfError('not_pdf')
  document = opened(body)
  if document:
    return _as_seen(document, body, unseen), ''
  reason = 'damaged' if b'%%EOF' in body[-2048:] else 'truncated'
  from data_beam.pdf import repair as pdf_repair  # few need it, and it takes a tenth of a second

  for version in pdf_repair.repaired(body):
    document = opened(version)
    if document:
      return _as_seen(document, version, unseen), reason
  raise PdfError(reason)


def _as_seen(document: pypdfium2.PdfDocument, body: bytes,
             unseen: bool) -> pypdfium2.PdfDocument:
  """The document, or another in its place."""
  if not _has_more(body):
    return document
  from data_beam.pdf import layers as pdf_layers  # few need it, see above

  anew = pdf_layers.as_seen(body, unseen)
  seen = opened(anew) if anew else None
  if not seen:
    return document
  document.close()
  return seen


def _has_more(body: bytes) -> bool:
  """Whether the catalogue may name layers or a portfolio, see layers. It may be packed in an object
  stream."""
  if any(name in body for name in _MORE) or b'/Encrypt' in body:
    return True
  if _CATALOGUE.search(body):
    return False
  for match in reversed(list(_PACKED.finditer(body))):
    at = body.find(b'stream', match.end())
    try:
      data = zlib.decompressobj().decompress(
        body[at + 6:at + 6 + MAX_PACKED].lstrip(b'\r\n'), MAX_PACKED)
    except zlib.error:
      return True
    if _CATALOGUE.search(data):
      return any(name in data for name in _MORE)
  return False


def opened(body: bytes) -> pypdfium2.PdfDocument | None:
  """What pdfium alone makes of a file: None if it has no pages. Raises PdfError: encrypted."""
  blank_font.install()
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


class Frame(NamedTuple):
  """Text that stands one way on a page; coordinates as if the page were turned so that it lies
  level."""
  turn: int                 # quarters clockwise by which it is turned, or words.ASKEW, or ASIDE
  lines: list[Line]
  grids: list[Grid]
  height: float             # points, of the page so turned
  before: bool = False      # whether it is read before the first: a level title of vertical text


class PageText(NamedTuple):
  """What a page's text layer gives."""
  frames: list[Frame]       # that of most of the text first; none where there is no text
  figures: list[Box]        # of pictures in the text, not those that are the page; in frames[0]
  height: float             # points, as displayed
  features: dict[str, Any]  # see `_features`


def read_pages(document: Any, indices: Iterable[int], unseen: bool = False) -> Iterator[PageText]:
  """The text layers of pages: nothing where a page is too damaged.

  Each stays open until the next one is, so that what both use, fonts above all, is loaded once.

  Args:
    indices: of the pages.
    unseen: whether to keep what no reader sees: white on white, tiny, invisible where no picture
      lies under it.
  """
  if document.get_formtype() != pdfium.FORMTYPE_NONE:
    document.init_forms()
  before, tagged = None, bool(pdfium.FPDFCatalog_IsTagged(document))
  for index in indices:
    try:
      page = document[index]
    except pypdfium2.PdfiumError:           # one bad page of many
      yield _nothing()
      continue
    yield _read(document, page, tagged, unseen)
    if before:
      before.close()
    before = page
  if before:
    before.close()


def _read(document: Any, page: Any, tagged: bool, unseen: bool) -> PageText:
  try:
    text_page = page.get_textpage()
    count = min(text_page.count_chars(), MAX_PAGE_CHARACTERS)
    handle = handle_of(text_page)
    text = characters(text_page, handle, count)
    levels = pdf_structure.heading_levels(page) if tagged else {}
    view = view_of(page)
    frames, figures, hidden = _frames(handle, text, page, view, unseen, levels)
    if calls()['FPDFPage_GetAnnotCount'](handle_of(page)):
      _annotate(document, page, view, frames)
    found = sum([len(line.text) for frame in frames for line in frame.lines])
    feature = _features(found, hidden, _garbled(handle, text), _vowels(text))
    if found < 1500:
      feature['picture'] = round(pdf_drawn.picture_share(page), 4)
    return PageText(frames, figures, view.height, feature)
  except pypdfium2.PdfiumError:
    return _nothing()


def _annotate(document: Any, page: Any, view: View, frames: list[Frame]) -> None:
  """Adds what annotations show to the frames of a page."""
  turn = frames[0].turn % ASKEW if frames else 0
  notes = pdf_annotations.notes(document, page, turn, view)
  if not notes:
    return
  if not frames:
    frames.append(Frame(turn, [], [], view.height))
  aside = pdf_annotations.put(frames[0].lines, notes)
  if aside:
    frames.append(Frame(ASIDE, aside, [], view.height))


def _features(characters: int, hidden: float = 0.0, garbled: float = 0.0,
              vowels: float | None = None) -> dict[str, Any]:
  """characters of the layer, shares of them hidden and garbled, share of the page under pictures
  (of pages with less than 1,500 characters), and vowels among Latin letters (None: too few)."""
  return {'characters': characters, 'hidden': round(hidden, 4), 'garbled': round(garbled, 4),
          'picture': 0.0, 'vowels': vowels}


def _nothing() -> PageText:
  return PageText([], [], 1.0, _features(0))


def _garbled(handle: ctypes.c_void_p, text: str) -> float:
  """Share of characters that cannot be what is meant, by a sample of 64 and by those without a
  letter in Unicode."""
  visible = len(text) - sum(map(text.count, f' \r\n\t{BREAK}'))
  step = max(1, len(text) // 64)
  sample = [i for i in range(step // 2, len(text), step) if text[i] > ' ' and text[i] != BREAK]
  if not sample:
    return 0.0
  garbled = sum(text[i] < ' ' or error == 1 for i, error in zip(
    sample, each('FPDFText_HasUnicodeMapError', handle, sample), strict=True))
  replaced = 0 if text.isascii() else len(_UNREADABLE.findall(whole(text)))
  return max(garbled / len(sample), replaced / max(1, visible))


def _vowels(text: str) -> float | None:
  """Share of vowels among the first Latin letters: a font whose codes are shifted or shuffled shows
  there, since all else about it is in order. Languages written so have .3 to .5."""
  letters = text[:4000].lower().encode('latin-1', 'ignore').translate(None, _NO_LETTERS)
  if len(letters) < 200:
    return None
  return round(len(letters.translate(None, _NO_VOWELS)) / len(letters), 3)


def _frames(handle: ctypes.c_void_p, text: str, page: Any, view: View, unseen: bool,
            levels: dict[int, int]) -> tuple[list[Frame], list[Box], float]:
  """The frames of a page, its figures, and the share of its characters that are invisible."""
  if not text.strip():
    return [], [], 0.0
  rules_R4, pictures_P4 = (displayed(boxes, view) for boxes in pdf_drawn.drawn(page))
  grids = {0: pdf_tables.find(rules_R4)}
  words = words_of(handle, page, text, view, _edges(grids[0]), unseen, levels)
  length_W = words.place_W2[:, 1] - words.place_W2[:, 0]
  share_T = np.bincount(words.turn_W, length_W * words.seen_W, 5)
  # Outside a crop box stand printers' marks; beyond the edge of the sheet, an overlong table.
  slack = 0 if page.get_cropbox(False) not in (None, page.get_mediabox(False)) else 1
  frames = []
  for turn in sorted(np.flatnonzero(share_T).tolist(), key=lambda turn: -share_T[turn]):
    (index_W,) = np.nonzero(words.seen_W & (words.turn_W == turn))
    if turn == ASKEW:
      frames.append(Frame(turn, _askew(words, index_W, view.height), [], view.height))
      continue
    if turn:
      grids[turn] = pdf_tables.find(levelled(rules_R4, turn, view))
    lines = _lines(handle, words, index_W, turn, view, _edges(grids[turn]), slack)
    frames.append(Frame(turn, lines, grids[turn], _turned(view, turn).height))
  if not frames:
    return [], [], words.hidden
  main, *others = frames
  frames = [main, *(_placed(main, _with_heads(main, other, view), view) for other in others)]
  figures = pdf_drawn.figures(levelled(pictures_P4, main.turn, view), _turned(view, main.turn))
  return [frame for frame in frames if frame.lines], figures, words.hidden


def _edges(grids: list[Grid]) -> np.ndarray:
  """(x, y0, y1) of the upright rules of tables: [E, 3]."""
  return np.concatenate([np.zeros((0, 3)), *(grid.drawn_E3 for grid in grids)])


def _askew(words: Words, index_W: np.ndarray, height: float) -> list[Line]:
  """What is neither level nor upright, in the file's order, a line each: slanted heads of columns,
  labels. Coordinates mean nothing. Stamps across the page are left out."""
  ends_P = (np.diff(index_W) > 1) | (np.diff(words.size_W[index_W]) != 0)
  parts = np.split(index_W, np.flatnonzero(ends_P) + 1)
  texts = [words.string(part) for part in parts if words.size_W[part[0]] < STAMP * height]
  return [Line(0, 40 * i, 8 * len(text), 40 * i + 10, whole(text), 10)
          for i, text in enumerate(texts)]


def _with_heads(main: Frame, other: Frame, view: View) -> Frame:
  """The other frame without what heads columns of the main one and from now on stands there: short
  lines beside each other, as far apart as columns, that begin or end at the same height."""
  turn = (other.turn - main.turn) % 4
  if not other.lines or turn % 2 == 0 or ASKEW in (main.turn, other.turn) or (
      sum(len(line.text) for line in other.lines) * 3 > sum(len(line.text) for line in main.lines)):
    return other
  left, right = min(line.x0 for line in main.lines), max(line.x1 for line in main.lines)
  turned, back = _turned(view, other.turn), -other.turn % 4
  box_N4 = np.array([(line.x0, line.y0, line.x1, line.y1) for line in other.lines])
  # Boxes, and where they begin, end or have their middle: what is level in most of them tells.
  placed = [(*box, line, (box[1] + box[3]) / 2) for line, box in zip(other.lines, levelled(
    levelled(box_N4, back, turned), main.turn, view).tolist(), strict=True)
    if left <= (box[0] + box[2]) / 2 <= right and len(line.text) <= MAX_HEAD]
  taken: set[int] = set()
  for group in sorted((group for edge in (3, 1, 5) for group in _groups(placed, edge, 1.0)),
                      key=len, reverse=True):
    heads = _groups(group, 0, 1.6)
    if len(heads) < 2 or any(len(head) > 3 for head in heads) or any(
        id(p[4]) in taken for p in group):
      continue
    bottom = max(p[3] for p in group)
    for head in heads:
      parts = [p[4] for p in (head if turn == 3 else head[::-1])]
      taken.update(map(id, parts))
      main.lines.append(Line(head[0][0], bottom - parts[0].size, head[-1][2], bottom,
                             ' '.join(part.text for part in parts), parts[0].size))
  return other._replace(lines=[line for line in other.lines if id(line) not in taken])


def _placed(main: Frame, other: Frame, view: View) -> Frame:
  """The other frame, told whether it is read first: level, and over the main one, which is not."""
  if other.turn or main.turn % 2 == 0 or not other.lines:
    return other
  box_N4 = np.array([(line.x0, line.y0, line.x1, line.y1) for line in main.lines])
  top = levelled(box_N4, -main.turn % 4, _turned(view, main.turn))[:, 1].min()
  return other._replace(before=min(line.y1 for line in other.lines) <= top)


def _groups(placed: list[tuple], axis: int, near: float) -> list[list[tuple]]:
  """Lines with their boxes, in groups of which each is `near` the one before, in sizes of its font.
  """
  out: list[list[tuple]] = []
  for item in sorted(placed, key=operator.itemgetter(axis)):
    if out and item[axis] - out[-1][-1][axis] < near * item[4].size:
      out[-1].append(item)
    else:
      out.append([item])
  return out


def _turned(view: View, turn: int) -> View:
  """The view of a page turned by quarters: its width and height."""
  return view._replace(width=view.height, height=view.width) if turn in (1, 3) else view


def _lines(handle: ctypes.c_void_p, words: Words, index_W: np.ndarray, turn: int, view: View,
           edge_E3: np.ndarray, slack: int) -> list[Line]:
  """Words that stand one way → runs on one baseline, cut at wide gaps and at the edges of ruled
  cells.

  Args:
    index_W: of the words.
    edge_E3: of ruled cells, as in tables.Grid.
    slack: how many pages beyond each edge of the page text is kept.
  """
  place_W2, ends_W24 = words.place_W2[index_W], levelled(words.box_W24[index_W], turn, view)
  box_W4 = spans(ends_W24)
  width, height = _turned(view, turn)[-2:]
  length_W = place_W2[:, 1] - place_W2[:, 0]
  start_R, hyphens = _runs(words, index_W, box_W4, _between(handle, place_W2, box_W4, edge_E3))
  end_R = np.append(start_R[1:], len(index_W))
  order_W = np.arange(len(index_W))[::-1]   # of words as long, the first
  longest_R = np.maximum.reduceat(length_W * len(index_W) + order_W, start_R)
  mark_R = len(index_W) - 1 - longest_R % len(index_W)
  x0_R = np.minimum.reduceat(box_W4[:, 0], start_R)
  x1_R = np.maximum.reduceat(box_W4[:, 2], start_R)
  origin_R4 = origins(handle, place_W2[mark_R, 0].tolist())
  base_R = levelled(displayed(origin_R4, view), turn, view)[:, 1]
  size_R = words.size_W[index_W[mark_R]]
  mono_R = words.mono_W[index_W[start_R]] & words.mono_W[index_W[end_R - 1]]
  last = place_W2[end_R[mono_R] - 1, 1] - 1
  items = map(Object, each('FPDFText_GetTextObject', handle, last.tolist()))
  mono_R[mono_R] = [font in words.fixed for font in map(calls()['FPDFTextObj_GetFont'], items)]
  spaces = []                               # of lines in fixed width, as wide as they are
  if mono_R.any():
    advance_R = np.maximum(box_W4[mark_R, 2] - box_W4[mark_R, 0], 0.1) / length_W[mark_R]
    gap_W = (box_W4[1:, 0] - box_W4[:-1, 2]) / advance_R.repeat(end_R - start_R)[1:]
    spaces = [0, *gap_W.round().clip(1, 40).astype(int).tolist()]
  odd_W = words.odd_W[index_W]
  odd_W[1:] |= index_W[1:] - index_W[:-1] > 1
  odd_R = np.logical_or.reduceat(odd_W, start_R)
  level_W = words.level_W[index_W]
  level_R = np.maximum.reduceat(level_W, start_R)
  of_level_W = length_W * (level_W == level_R.repeat(end_R - start_R))
  level_R[4 * np.add.reduceat(of_level_W, start_R) < 3 * np.add.reduceat(length_W, start_R)] = 0
  lines, places, pairs = [], place_W2.tolist(), has_halves(words.text)
  for start, end, first, last, hyphen, x0, x1, mark, base, size, mono, odd, level in zip(
      start_R.tolist(), end_R.tolist(), place_W2[start_R, 0].tolist(),
      place_W2[end_R - 1, 1].tolist(), hyphens, x0_R.tolist(), x1_R.tolist(), mark_R.tolist(),
      base_R.tolist(), size_R.tolist(), mono_R.tolist(), odd_R.tolist(),
      level_R.tolist(), strict=True):
    if not 0.1 < size < height:
      _, top, _, base = box_W4[mark].tolist()
      size = max(0.1, base - top)
    if not (-slack * width <= (x0 + x1) / 2 <= (1 + slack) * width
            and -slack * height <= base <= (1 + slack) * height + size):
      continue
    if mono:
      run = ''.join([' ' * space + words.text[a:b] for space, (a, b) in zip(
        spaces[start:end], places[start:end], strict=True)]).lstrip(' ')
    elif odd:
      run = words.string(index_W[start:end])
    else:
      run = ' '.join(words.text[first:last].split())
    if hyphen:
      run += BREAK
    lines.append(Line(x0, base - 0.8 * size, x1, base + 0.2 * size, whole(run) if pairs else run,
                      size, mono, level))
  return lines


def _between(handle: ctypes.c_void_p, place_W2: np.ndarray, box_W4: np.ndarray,
             edge_E3: np.ndarray) -> np.ndarray:
  """Whether a word begins in another cell than the one before it, and is drawn for itself."""
  edge_W = np.zeros(len(place_W2), bool)
  if not len(edge_E3):
    return edge_W
  x_E, top_E, bottom_E = edge_E3.T
  left_P, right_P = np.sort(np.stack([box_W4[:-1, 0], box_W4[1:, 0]]), 0) + 1
  (over_Q,) = holding(x_E, left_P, right_P).nonzero()
  left_Q1, right_Q1 = left_P[over_Q, None], right_P[over_Q, None]
  y_Q1 = (box_W4[over_Q + 1, 1:2] + box_W4[over_Q + 1, 3:]) / 2
  edge_W[over_Q + 1] = ((left_Q1 < x_E) & (x_E < right_Q1)
                        & (top_E <= y_Q1) & (y_Q1 <= bottom_E)).any(1)
  drawn_by = calls()['FPDFText_GetTextObject']
  for w in np.flatnonzero(edge_W).tolist():
    edge_W[w] = (drawn_by(handle, int(place_W2[w - 1, 1]) - 1)
                 != drawn_by(handle, int(place_W2[w, 0])))
  return edge_W


def _runs(words: Words, index_W: np.ndarray, box_W4: np.ndarray,
          edge_W: np.ndarray) -> tuple[np.ndarray, list[bool]]:
  """The first words of runs that stand together on a line, and whether a hyphen ends each run."""
  place_W2, lifted_W = words.place_W2[index_W], words.lifted_W[index_W]
  a_P4, b_P4 = box_W4[:-1], box_W4[1:]
  height_W = box_W4[:, 3] - box_W4[:, 1]    # where letters are drawings, no higher than each
  height_W = np.maximum(height_W, np.minimum(0.8 * words.size_W[index_W], 2 * height_W))
  size_P = np.maximum(np.maximum(height_W[:-1], height_W[1:]), 0.1)
  gap_P = np.maximum(b_P4[:, 0] - a_P4[:, 2], a_P4[:, 0] - b_P4[:, 2])    # either way of writing
  shift_P = np.abs(b_P4[:, 1] + b_P4[:, 3] - a_P4[:, 1] - a_P4[:, 3])
  newline_P, hyphen_P = (_contain(words, c, place_W2) for c in ('\n', BREAK))
  # pdfium ends a line after every letter of a column, and around superscripts.
  newline_P &= ~(words.stacked_W[index_W[1:]]
                 | (lifted_W[:-1] | lifted_W[1:]) & (np.abs(gap_P) < 0.5 * size_P))
  apart_P = ((gap_P > 0.75 * size_P) | (shift_P > size_P) | newline_P | hyphen_P | edge_W[1:])
  for i in np.flatnonzero((b_P4[:, 2] < a_P4[:, 0]) & ~apart_P).tolist():
    apart_P[i] = not pdf_layout.RTL.search(words.text[slice(*place_W2[i + 1])])
  ends_P = np.flatnonzero(apart_P)
  hyphens = [*hyphen_P[ends_P].tolist(), words.text[place_W2[-1, 1]:][:1] == BREAK]
  return np.append(0, ends_P + 1), hyphens


def _contain(words: Words, character: str, place_W2: np.ndarray) -> np.ndarray:
  """Whether the gap after each word but the last has a character: bool [W - 1]."""
  if character not in words.text:
    return np.zeros(len(place_W2) - 1, bool)
  (at_Q,) = (words.code_N == ord(character)).nonzero()
  return at_Q.searchsorted(place_W2[1:, 0]) > at_Q.searchsorted(place_W2[:-1, 1])
