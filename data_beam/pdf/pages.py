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
from data_beam.pdf.characters import Characters, has_halves, text_of, together, whole
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
  spans,
  view_of,
)
from data_beam.pdf.tables import Grid
from data_beam.pdf.words import ASKEW, Words, holding, words_of

MAX_PAGE_CHARACTERS = 200_000
BLOCK_PAGES = 16             # that are read at once, at most,
BLOCK_CHARACTERS = 60_000    # with so many characters,
BLOCK_OBJECTS = 10_000       # and things drawn
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


class _Open(NamedTuple):
  """A page that is being read."""
  page: Any
  text_page: Any            # as long as there is one, pdfium keeps it
  handle: ctypes.c_void_p   # of that
  text: str                 # as pdfium spells it
  levels: dict[int, int]    # of headings, see structure
  view: View


def read_pages(document: Any, indices: Iterable[int], unseen: bool = False) -> Iterator[PageText]:
  """The text layers of pages: nothing where a page is too damaged.

  They are read in blocks of pages that are displayed alike. Each stays open until others are, so
  that what both use, fonts above all, is loaded once.

  Args:
    indices: of the pages.
    unseen: whether to keep what no reader sees: white on white, tiny, invisible where no picture
      lies under it.
  """
  if document.get_formtype() != pdfium.FORMTYPE_NONE:
    document.init_forms()
  tagged = bool(pdfium.FPDFCatalog_IsTagged(document))
  for block in _blocks(_opened(document, index, tagged) for index in indices):
    for one, found in zip(block, _frames(block, unseen), strict=True):
      yield _page_text(document, one, *found) if one else _nothing()
      if one:
        one.page.close()


def _blocks(pages: Iterable[_Open | None]) -> Iterator[list[_Open | None]]:
  """Pages in blocks to be read at once; of one that is damaged, a block of its own."""
  block, room = [], 0
  for one in pages:
    cost = 0
    if one:
      objects = calls()['FPDFPage_CountObjects'](handle_of(one.page))
      cost = max(len(one.text) / BLOCK_CHARACTERS, objects / BLOCK_OBJECTS, 1 / BLOCK_PAGES)
    if block and (not (one and block[0]) or one.view is not block[0].view or cost > room):
      yield block
      block = []
    room = (room if block else 1) - cost
    block.append(one)
  if block:
    yield block


def _opened(document: Any, index: int, tagged: bool) -> _Open | None:
  """A page with its text, None where it is too damaged."""
  try:
    page = document[index]
    text_page = page.get_textpage()
    handle, count = handle_of(text_page), min(text_page.count_chars(), MAX_PAGE_CHARACTERS)
    levels = pdf_structure.heading_levels(page) if tagged else {}
    return _Open(page, text_page, handle, text_of(handle, count), levels, view_of(page))
  except pypdfium2.PdfiumError:
    return None


def _page_text(document: Any, one: _Open, text: str, frames: list[Frame], figures: list[Box],
               hidden: float) -> PageText:
  """What is to be told of a page with this text and these frames."""
  try:
    if calls()['FPDFPage_GetAnnotCount'](handle_of(one.page)):
      _annotate(document, one.page, one.view, frames)
    found = sum([len(line.text) for frame in frames for line in frame.lines])
    feature = _features(found, hidden, _garbled(one.handle, text), _vowels(text))
    if found < 1500:
      feature['picture'] = round(pdf_drawn.picture_share(one.page), 4)
    return PageText(frames, figures, one.view.height, feature)
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


def _frames(block: list[_Open | None],
            unseen: bool) -> list[tuple[str, list[Frame], list[Box], float]]:
  """Of each page of a block its text as it is spelled there, its frames, its figures, and the share
  of its characters that are invisible."""
  out: list[tuple[str, list[Frame], list[Box], float]] = [
    (one.text if one else '', [], [], 0.0) for one in block]
  places = [i for i, one in enumerate(block) if one and one.text.strip()]
  if not places:
    return out
  pages = [one for i in places if (one := block[i])]
  view = pages[0].view
  rules, pictures = zip(*pdf_drawn.drawn([one.page for one in pages]), strict=True)
  rules = [displayed(rules_R4, view) for rules_R4 in rules]
  grids = {0: [pdf_tables.find(rules_R4) for rules_R4 in rules]}
  characters = together([(one.handle, one.text) for one in pages])
  words = words_of(characters, [one.page for one in pages], view, _edges(grids[0]), unseen,
                   [one.levels for one in pages])
  length_W = words.place_W2[:, 1] - words.place_W2[:, 0]
  share_PT = np.bincount(words.page_W * 5 + words.turn_W, length_W * words.seen_W,
                         5 * len(pages)).reshape(-1, 5)
  lines = {}
  for turn in np.flatnonzero(share_PT.any(0)).tolist():
    (index_W,) = np.nonzero(words.seen_W & (words.turn_W == turn))
    if turn == ASKEW:
      grids[turn] = [[] for _ in pages]
      lines[turn] = [_askew(words, index_W[words.page_W[index_W] == page], view.height)
                     for page in range(len(pages))]
      continue
    if turn:
      grids[turn] = [pdf_tables.find(levelled(rules_R4, turn, view)) for rules_R4 in rules]
    lines[turn] = _lines(words, index_W, turn, view, _edges(grids[turn]))
  for page, (place, share_T) in enumerate(zip(places, share_PT, strict=True)):
    frames = [Frame(turn, lines[turn][page], grids[turn][page], _turned(view, turn).height)
              for turn in sorted(np.flatnonzero(share_T).tolist(), key=lambda turn: -share_T[turn])]
    text, hidden = characters.text[characters.place(page)], float(words.hidden_P[page])
    if not frames:
      out[place] = text, [], [], hidden
      continue
    main, *others = frames
    frames = [main, *(_placed(main, _with_heads(main, other, view), view) for other in others)]
    pictures_P4 = displayed(pictures[page], view)
    figures = pdf_drawn.figures(levelled(pictures_P4, main.turn, view), _turned(view, main.turn))
    out[place] = text, [frame for frame in frames if frame.lines], figures, hidden
  return out


def _edges(pages: list[list[Grid]]) -> list[np.ndarray]:
  """Of the tables of each page, (x, y0, y1) of their upright rules: [E, 3]."""
  return [np.concatenate([np.zeros((0, 3)), *(grid.drawn_E3 for grid in grids)])
          for grids in pages]


def _askew(words: Words, index_W: np.ndarray, height: float) -> list[Line]:
  """What is neither level nor upright, in the file's order, a line each: slanted heads of columns,
  labels. Coordinates mean nothing. Stamps across the page are left out."""
  ends_P = (np.diff(index_W) > 1) | (np.diff(words.size_W[index_W]) != 0)
  parts = np.split(index_W, np.flatnonzero(ends_P) + 1)
  texts = [words.string(part) for part in parts
           if len(part) and words.size_W[part[0]] < STAMP * height]
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


def _lines(words: Words, index_W: np.ndarray, turn: int, view: View,
           edges: list[np.ndarray]) -> list[list[Line]]:
  """Words that stand one way → of each page, runs on one baseline, cut at wide gaps and at the
  edges of ruled cells.

  Args:
    index_W: of the words.
    edges: of the ruled cells of each page, as in tables.Grid, [E, 3].
  """
  characters, text = words.characters, words.characters.text
  place_W2, ends_W24 = words.place_W2[index_W], levelled(words.box_W24[index_W], turn, view)
  box_W4 = spans(ends_W24)
  page_W, (_, _, _, width, height, _, slack) = words.page_W[index_W], _turned(view, turn)
  length_W = place_W2[:, 1] - place_W2[:, 0]
  start_R, hyphens = _runs(words, index_W, box_W4, _between(words, index_W, box_W4, edges))
  end_R = np.append(start_R[1:], len(index_W))
  order_W = np.arange(len(index_W))[::-1]   # of words as long, the first
  longest_R = np.maximum.reduceat(length_W * len(index_W) + order_W, start_R)
  mark_R = len(index_W) - 1 - longest_R % len(index_W)
  x0_R = np.minimum.reduceat(box_W4[:, 0], start_R)
  x1_R = np.maximum.reduceat(box_W4[:, 2], start_R)
  origin_R4, page_R = characters.origins(place_W2[mark_R, 0]), page_W[start_R]
  base_R = levelled(displayed(origin_R4, view), turn, view)[:, 1]
  size_R = words.size_W[index_W[mark_R]]
  mono_R = words.mono_W[index_W[start_R]] & words.mono_W[index_W[end_R - 1]]
  last = characters.each('FPDFText_GetTextObject', place_W2[end_R[mono_R] - 1, 1] - 1)
  fonts = map(calls()['FPDFTextObj_GetFont'], map(Object, last))
  mono_R[mono_R] = list(map(words.fixed.__contains__, zip(
    page_R[mono_R].tolist(), fonts, strict=True)))
  spaces = []                               # of lines in fixed width, as wide as they are
  if mono_R.any():
    advance_R = np.maximum(box_W4[mark_R, 2] - box_W4[mark_R, 0], 0.1) / length_W[mark_R]
    gap_W = (box_W4[1:, 0] - box_W4[:-1, 2]) / advance_R.repeat(end_R - start_R)[1:]
    gap_W = np.where(words.glued_W[index_W[1:]], 0, gap_W.round().clip(1, 40))
    spaces = [0, *gap_W.astype(int).tolist()]
  odd_W = words.odd_W[index_W]
  odd_W[1:] |= (index_W[1:] - index_W[:-1] > 1) & (page_W[1:] == page_W[:-1])
  odd_R = np.logical_or.reduceat(odd_W, start_R)
  level_W = words.level_W[index_W]
  level_R = np.maximum.reduceat(level_W, start_R)
  of_level_W = length_W * (level_W == level_R.repeat(end_R - start_R))
  level_R[4 * np.add.reduceat(of_level_W, start_R) < 3 * np.add.reduceat(length_W, start_R)] = 0
  places, pairs = place_W2.tolist(), has_halves(text)
  lines: list[list[Line]] = [[] for _ in edges]
  for page, start, end, first, last, hyphen, x0, x1, mark, base, size, mono, odd, level in zip(
      page_R.tolist(), start_R.tolist(), end_R.tolist(), place_W2[start_R, 0].tolist(),
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
      run = ''.join([' ' * space + words.raised.get(w, '') + text[a:b] for w, space, (a, b) in zip(
        index_W[start:end].tolist(), spaces[start:end], places[start:end], strict=True)])
      run = run.lstrip(' ')
    elif odd:
      run = words.string(index_W[start:end])
    else:
      run = ' '.join(text[first:last].split())
    if hyphen:
      run += BREAK
    lines[page].append(Line(x0, base - 0.8 * size, x1, base + 0.2 * size,
                            whole(run) if pairs else run, size, mono, level))
  return lines


def _between(words: Words, index_W: np.ndarray, box_W4: np.ndarray,
             edges: list[np.ndarray]) -> np.ndarray:
  """Whether a word begins in another cell than the one before it, and is drawn for itself."""
  edge_W, place_W2 = np.zeros(len(index_W), bool), words.place_W2[index_W]
  for page, edge_E3 in enumerate(edges):
    of_page = words.characters.words_on(page, place_W2) if len(edge_E3) else slice(0)
    box_Q4 = box_W4[of_page]
    if len(box_Q4) < 2:
      continue
    x_E, top_E, bottom_E = edge_E3.T
    left_P, right_P = np.sort(np.stack([box_Q4[:-1, 0], box_Q4[1:, 0]]), 0) + 1
    (over_Q,) = holding(x_E, left_P, right_P).nonzero()
    left_Q1, right_Q1 = left_P[over_Q, None], right_P[over_Q, None]
    y_Q1 = (box_Q4[over_Q + 1, 1:2] + box_Q4[over_Q + 1, 3:]) / 2
    edge_W[of_page.start + over_Q + 1] = ((left_Q1 < x_E) & (x_E < right_Q1)
                                          & (top_E <= y_Q1) & (y_Q1 <= bottom_E)).any(1)
  (at_Q,) = edge_W.nonzero()
  pairs = np.stack([place_W2[at_Q - 1, 1] - 1, place_W2[at_Q, 0]], 1).ravel()
  drawn_by = words.characters.each('FPDFText_GetTextObject', pairs)
  edge_W[at_Q] = [a != b for a, b in zip(drawn_by[::2], drawn_by[1::2], strict=True)]
  return edge_W


def _runs(words: Words, index_W: np.ndarray, box_W4: np.ndarray,
          edge_W: np.ndarray) -> tuple[np.ndarray, list[bool]]:
  """The first words of runs that stand together on a line, and whether a hyphen ends each run."""
  text, code_N, page_W = words.characters.text, words.characters.code_N, words.page_W[index_W]
  place_W2, lifted_W = words.place_W2[index_W], words.lifted_W[index_W]
  a_P4, b_P4 = box_W4[:-1], box_W4[1:]
  height_W = box_W4[:, 3] - box_W4[:, 1]    # where letters are drawings, no higher than each
  height_W = np.maximum(height_W, np.minimum(0.8 * words.size_W[index_W], 2 * height_W))
  size_P = np.maximum(np.maximum(height_W[:-1], height_W[1:]), 0.1)
  gap_P = np.maximum(b_P4[:, 0] - a_P4[:, 2], a_P4[:, 0] - b_P4[:, 2])    # either way of writing
  shift_P = np.abs(b_P4[:, 1] + b_P4[:, 3] - a_P4[:, 1] - a_P4[:, 3])
  newline_P, hyphen_P = (_contain(words.characters, c, place_W2) for c in ('\n', BREAK))
  # pdfium ends a line after every letter of a column, and around superscripts.
  newline_P &= ~(words.stacked_W[index_W[1:]]
                 | (lifted_W[:-1] | lifted_W[1:]) & (np.abs(gap_P) < 0.5 * size_P))
  other_P = page_W[1:] != page_W[:-1]
  apart_P = ((gap_P > 0.75 * size_P) | (shift_P > size_P) | newline_P | hyphen_P | edge_W[1:]
             | other_P)
  for i in np.flatnonzero((b_P4[:, 2] < a_P4[:, 0]) & ~apart_P).tolist():
    apart_P[i] = not pdf_layout.RTL.search(text[slice(*place_W2[i + 1])])
  hyphen_P[other_P] = code_N[place_W2[:-1][other_P, 1]] == ord(BREAK)
  ends_P = np.flatnonzero(apart_P)
  hyphens = [*hyphen_P[ends_P].tolist(), text[place_W2[-1, 1]] == BREAK]
  return np.append(0, ends_P + 1), hyphens


def _contain(characters: Characters, character: str, place_W2: np.ndarray) -> np.ndarray:
  """Whether the gap after each word but the last has a character: bool [W - 1]."""
  if character not in characters.text:
    return np.zeros(len(place_W2) - 1, bool)
  (at_Q,) = (characters.code_N == ord(character)).nonzero()
  return at_Q.searchsorted(place_W2[1:, 0]) > at_Q.searchsorted(place_W2[:-1, 1])
