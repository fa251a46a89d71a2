"""The words of pages: their letters, where they stand, which way up, and whether they are seen.

Several pages at once: a step of numpy costs as much for the words of one as for those of a dozen.

For a child process, see pdfium.
"""

import ctypes
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium

from data_beam.pdf.characters import Characters
from data_beam.pdf.drawn import WHITE, grounds
from data_beam.pdf.layout import BREAK
from data_beam.pdf.lines import BOLD
from data_beam.pdf.pdfium import (
  Object,
  View,
  calls,
  displayed,
  fill_colours,
  levelled,
  spans,
)

ASKEW = 4                    # as a turn: neither level nor upright, a stamp across the page
CJK = 0x2e80                 # of the code points from here on, nearly all are as wide as high
RAISED = 0.1                 # of a box's height: so much higher stands what is raised at least
CAPITAL = 0.75               # of a font's size: about as high are its capitals
GRID = 2.0                   # points, in which words are looked for that are drawn twice
TINY = 0.0012                # of the page's height: no letter of that size can be read
INVISIBLE = pdfium.FPDF_TEXTRENDERMODE_INVISIBLE

_GAPS = np.zeros(1 << 16, bool)
_GAPS[[*(c for c in range(0x3001) if chr(c).isspace()), ord(BREAK)]] = True
_NARROW = np.zeros(128, bool)
_NARROW[[ord(c) for c in "fijlrtI.,:;'!|()[]"]] = True
_name = ctypes.create_string_buffer(80)
_FORCE_BOLD = 1 << 18
_BOLD = re.compile(rb'(?i)bold|black|heavy|-medi\b|medi$|cmbx|sfbx|cmb\d')
_HAN = ((0x2e80, 0x3130), (0x31f0, 0xa4d0), (0xf900, 0xfb00), (0xff00, 0xff9e))    # and kana
_NUMBER = re.compile(r'[(\[]?[+\-−–]?\d[\d.,;–-]*[)\]]?')
_NUMERAL = re.compile(r'(?:\d|\b[IVXLC]+)$')
_ORDINAL = re.compile(r'(?i)st|nd|rd|th|[eè]?r?e?|[eè]me|os?|as?')
_SHORTENED = re.compile(r'(?i)mes?|lles?|gr|rs?|tm|sm')


class Words(NamedTuple):
  """Words between spaces, and parts of them where the font's size changes, in the file's order."""
  characters: Characters
  place_W2: np.ndarray      # where each begins and ends among these
  page_W: np.ndarray        # on which of the pages it stands
  box_W24: np.ndarray       # of its first and its last character, as displayed
  turn_W: np.ndarray        # quarters clockwise by which it is turned, as displayed; or ASKEW
  stacked_W: np.ndarray     # whether it is one of upright letters in a column that runs downwards
  size_W: np.ndarray        # points of the font with which it begins
  mono_W: np.ndarray        # whether the font with which it begins is of fixed width
  fixed: set[tuple[int, int]]       # pages, and fonts that are of fixed width there
  level_W: np.ndarray       # see Line
  glued_W: np.ndarray       # whether it goes on with the word before it
  seen_W: np.ndarray        # whether a reader sees it
  raised: dict[int, str]    # superscripts, and what marks each
  lifted_W: np.ndarray      # whether it is one, or the mark that begins a note
  odd_W: np.ndarray         # whether it does not follow the one before as it does in the text
  hidden_P: np.ndarray      # share of characters that are invisible, as those under a scan are

  def string(self, index_W: np.ndarray) -> str:
    """Some of the words, with spaces between."""
    out, text = '', self.characters.text
    for i, glued, (a, b) in zip(index_W.tolist(), self.glued_W[index_W].tolist(),
                                self.place_W2[index_W].tolist(), strict=True):
      out += (' ' if out and not glued else '') + self.raised.get(i, '') + text[a:b]
    return out


def words_of(characters: Characters, pages: Sequence[Any], view: View,
             edges: Sequence[np.ndarray], unseen: bool,
             levels: Sequence[Mapping[int, int]]) -> Words:
  """The words of some pages.

  Args:
    characters: of the pages.
    pages: themselves.
    view: of them all.
    edges: of each page (x, y0, y1) of the upright rules of tables, as displayed, [E, 3]: words are
      cut there.
    unseen: whether to keep what no reader sees.
    levels: of each page's headings, by the numbers of their marked contents.
  """
  code_N = characters.code_N
  solid = np.zeros(len(code_N) + 2, bool)
  solid[1:-1] = ~_GAPS.take(code_N, mode='clip')
  place_W2 = np.flatnonzero(solid[1:] != solid[:-1]).reshape(-1, 2)
  box_W24 = displayed(characters.ends(place_W2), view)
  at_edges = _at_edges(characters, place_W2, box_W24, edges, view)
  at_sizes = _at_sizes(characters, place_W2, box_W24, view)
  if at_edges or at_sizes:
    cuts = np.array(sorted({*at_edges, *at_sizes}))
    at = np.searchsorted(place_W2.ravel(), cuts)
    ends_C24 = displayed(characters.ends(cuts[:, None] + [-1, 1]), view)
    place_W2 = np.insert(place_W2, np.repeat(at, 2), np.repeat(cuts, 2)).reshape(-1, 2)
    box_W24 = np.insert(box_W24.reshape(-1, 4), np.repeat(at, 2), ends_C24.reshape(-1, 4),
                        axis=0).reshape(-1, 2, 4)
  page_W = characters.page_of(place_W2[:, 0])
  turn_W, stacked_W, size_W, mono_W, fixed, level_W, invisible_W, seen_W = _drawn_how(
    characters, pages, place_W2, page_W, box_W24, view, levels)
  length_W = place_W2[:, 1] - place_W2[:, 0]
  hidden_P = np.bincount(page_W, length_W * invisible_W, len(pages)) / np.maximum(
    1, np.bincount(page_W, length_W, len(pages)))
  cut_N = np.zeros(len(code_N) + 1, bool)
  cut_N[at_sizes] = True
  glued_W = cut_N[place_W2[:, 0]]
  raised, lifted_W = _raised(characters, place_W2, page_W, box_W24, size_W, turn_W, glued_W, view)
  # Where most is invisible, it is somebody's OCR under a scan.
  seen_W |= unseen | invisible_W & (hidden_P > 0.5)[page_W]
  glued_W[1:] |= stacked_W[1:] & stacked_W[:-1]
  if code_N.max() >= CJK:
    glued_W[1:] |= _justified(code_N, place_W2, box_W24)
  glued_W[1:] &= page_W[1:] == page_W[:-1]
  odd_W = lifted_W | glued_W
  if at_edges:
    cut_N[at_edges] = True
    odd_W |= cut_N[place_W2[:, 0]]
  return Words(characters, place_W2, page_W, box_W24, turn_W, stacked_W, size_W, mono_W, fixed,
               level_W, glued_W, seen_W, raised, lifted_W, odd_W, hidden_P)


def _justified(code_N: np.ndarray, place_W2: np.ndarray, box_W24: np.ndarray) -> np.ndarray:
  """Whether what parts a word from the one before is none of the text's spaces: two letters of Han
  or kana on a line that are only set a little apart. bool [W - 1]."""
  a_P, b_P = code_N[place_W2[:-1, 1] - 1], code_N[place_W2[1:, 0]]
  han_P = np.logical_and(*(np.logical_or.reduce([(first <= c) & (c < end) for first, end in _HAN])
                           for c in (a_P, b_P)))
  a_P4, b_P4 = box_W24[:-1, 1], box_W24[1:, 0]
  size_P = a_P4[:, 3] - a_P4[:, 1]
  gap_P = b_P4[:, 0] - a_P4[:, 2]
  return han_P & (np.abs(a_P4[:, 3] - b_P4[:, 3]) < 0.1 * size_P) & (
    gap_P > -0.1 * size_P) & (gap_P < 0.35 * size_P)


def _at_edges(characters: Characters, place_W2: np.ndarray, box_W24: np.ndarray,
              edges: Sequence[np.ndarray], view: View) -> list[int]:
  """Where a piece drawn for itself begins within a word, beyond the edge of a cell: no space was
  left there. What merely runs over an edge stays whole."""
  places: list[int] = []
  for page, edge_E3 in enumerate(edges):
    if not len(edge_E3):
      continue
    of_page = characters.words_on(page, place_W2)
    box_W4, (x_E, top_E, bottom_E) = spans(box_W24[of_page]), edge_E3.T
    (over_Q,) = holding(x_E, box_W4[:, 0] + 2, box_W4[:, 2] - 2).nonzero()
    if not len(over_Q):
      continue
    x0_Q1, _, x1_Q1, _ = box_W4[over_Q].T[..., None]
    y_Q1 = box_W24[of_page][over_Q][..., 1::2].mean((1, 2))[:, None]
    through_QE = (x0_Q1 + 2 < x_E) & (x_E < x1_Q1 - 2) & (top_E <= y_Q1) & (y_Q1 <= bottom_E)
    for q in np.flatnonzero(through_QE.any(1)).tolist():
      start, end = place_W2[of_page][over_Q[q]].tolist()
      drawn_by = characters.each('FPDFText_GetTextObject', np.arange(start, end))
      begins = np.array([i for i in range(start + 1, end)
                         if drawn_by[i - start] != drawn_by[i - start - 1]], int)
      left_B = displayed(characters.boxes(begins), view)[:, 0]
      places += begins[left_B > x_E[through_QE[q]][0] - 1][:1].tolist()
  return places


def holding(x_E: np.ndarray, left_N: np.ndarray, right_N: np.ndarray) -> np.ndarray:
  """Whether any of some places lies between each left and right: bool [N]."""
  x_E = np.sort(x_E)
  return x_E.searchsorted(right_N) > x_E.searchsorted(left_N, 'right')


def _at_sizes(characters: Characters, place_W2: np.ndarray, box_W24: np.ndarray,
              view: View) -> list[int]:
  """Where letters are raised or lowered within a word: exponents, marks of notes. Asked of words
  whose first and last letters stand so, or that have a digit after a letter or after the sign that
  follows one."""
  code_N = characters.code_N
  bottom_W2, high_W = box_W24[..., 3], box_W24[:, 0, 3] - box_W24[:, 0, 1]
  odd_W = np.abs(bottom_W2[:, 0] - bottom_W2[:, 1]) > RAISED * np.abs(high_W)
  digit_N, letter_N = code_N - 48 < 10, ((code_N | 32) - 97 < 26) | (code_N >= 0xc0)
  after_N = letter_N[:-1] & digit_N[1:]
  after_N[1:] |= letter_N[:-2] & ~letter_N[1:-1] & digit_N[2:]
  (at_A,) = np.nonzero(after_N)
  if len(at_A):
    odd_W |= (np.searchsorted(at_A, place_W2[:, 1] - 1) > np.searchsorted(at_A, place_W2[:, 0]))
  if not odd_W.any():
    return []
  index_N = np.concatenate([np.arange(a, b) for a, b in place_W2[odd_W].tolist()])
  box_N4 = displayed(characters.boxes(index_N), view)
  high_N = box_N4[:, 3] - box_N4[:, 1]
  change_P = np.abs(np.diff(box_N4[:, 3])) > RAISED * np.maximum(high_N[1:], high_N[:-1])
  begins = np.zeros(len(code_N) + 1, bool)
  begins[place_W2[:, 0]] = True
  cut_C = index_N[1:][change_P & ~begins[index_N[1:]]]
  if not len(cut_C):
    return []
  # Boxes of letters that are drawings (Type 3) are as high as each: these have one line and size.
  pairs = np.stack([cut_C - 1, cut_C], 1).ravel()
  base_C2 = displayed(characters.origins(pairs), view)[:, 1].reshape(-1, 2)
  size_C2 = np.array(characters.each('FPDFText_GetFontSize', pairs)).reshape(-1, 2)
  alike_C = (np.ptp(base_C2, 1) < 0.01) & (np.ptp(size_C2, 1) == 0)
  return cut_C[~alike_C].tolist()


def _raised(characters: Characters, place_W2: np.ndarray, page_W: np.ndarray, box_W24: np.ndarray,
            size_W: np.ndarray, turn_W: np.ndarray, glued_W: np.ndarray,
            view: View) -> tuple[dict[int, str], np.ndarray]:
  """Superscripts, and the mark before each, '^' or none; and with them `lifted_W`. `glued_W` is put
  right with that: they stand at their base, and the mark that begins a note stands apart."""
  found: dict[int, str] = {}
  text, same_P = characters.text, page_W[1:] == page_W[:-1]
  same_P &= (turn_W[1:] == turn_W[:-1]) & (turn_W[1:] != ASKEW)
  turns = np.unique(turn_W[turn_W % ASKEW > 0]).tolist()
  box_W24 = _levelled(box_W24, turn_W, turns, view)
  a_P4, b_P4 = box_W24[:-1, 1], box_W24[1:, 0]
  a_P, b_P = a_P4[:, 3] - a_P4[:, 1], b_P4[:, 3] - b_P4[:, 1]      # heights
  rise_P = a_P4[:, 3] - b_P4[:, 3]
  (at_Q,) = np.nonzero((b_P < 0.9 * a_P) & (rise_P > 0.1 * a_P) & (rise_P < a_P)
                       & (np.abs(b_P4[:, 0] - a_P4[:, 2]) < 0.3 * a_P)
                       & same_P)
  if len(at_Q):
    pairs = np.stack([place_W2[at_Q, 1] - 1, place_W2[at_Q + 1, 0]], 1).ravel()
    origin_N4 = displayed(characters.origins(pairs), view)
    origin_Q24 = _levelled(origin_N4.reshape(-1, 2, 4), turn_W[at_Q], turns, view)
    below_Q, above_Q = origin_Q24[..., 1].T
    large_Q, small_Q = size_W[at_Q], size_W[at_Q + 1]
    rise_Q, ratio_Q = (below_Q - above_Q) / large_Q, small_Q / large_Q
    fit_Q = (rise_Q > 0.15) & (rise_Q < 0.8) & (ratio_Q > 0.4) & (ratio_Q < 0.9)
    for i, ratio in zip((at_Q[fit_Q] + 1).tolist(), ratio_Q[fit_Q].tolist(), strict=True):
      base, script = (text[slice(*place_W2[j])] for j in (i - 1, i))
      if script[0].isalpha() and ratio < 0.55:
        continue                            # after an initial of two lines
      found[i] = _mark(base, script)
      glued_W[i] = True
  near_P = same_P & (a_P < 0.9 * b_P) & (np.abs(a_P4[:, 2] - b_P4[:, 0]) < 0.12 * b_P)
  for i in np.flatnonzero(near_P).tolist():
    glued_W[i + 1] |= i in found            # a comma after a mark
  lifted_W = np.zeros(len(place_W2), bool)
  lifted_W[list(found)] = True
  notes_P = near_P & (-rise_P > 0.1 * b_P) & ~lifted_W[:-1]
  glued_W[1:] &= ~notes_P
  lifted_W[:-1] |= notes_P
  return found, lifted_W


def _levelled(box_W24: np.ndarray, turn_W: np.ndarray, turns: list[int],
              view: View) -> np.ndarray:
  """Boxes of words as if each lay level, given the turns that occur."""
  for turn in turns:
    box_W24 = np.where((turn_W == turn)[:, None, None], levelled(box_W24, turn, view), box_W24)
  return box_W24


def _mark(base: str, script: str) -> str:
  """'^' before a superscript that would else be read as a part of its base; not the letters of
  ordinals and abbreviations, nor signs."""
  if not script[0].isalnum() and not _NUMBER.fullmatch(script):
    return ''
  after = _ORDINAL if _NUMERAL.search(base) else _SHORTENED
  return '' if after.fullmatch(script) else '^'


def _drawn_how(characters: Characters, pages: Sequence[Any], place_W2: np.ndarray,
               page_W: np.ndarray, box_W24: np.ndarray, view: View,
               levels: Sequence[Mapping[int, int]]) -> tuple[Any, ...]:
  """Of each word `turn_W`, `stacked_W`, `size_W`, `mono_W`; `fixed`; `level_W`, whether each is
  invisible (as text under a scan is), and whether it is seen. What tells stands with the objects
  that draw words."""
  item_W = np.array(characters.each('FPDFText_GetTextObject', place_W2[:, 0]), np.uint64)
  change_W = np.ones(len(item_W), bool)
  change_W[1:] = item_W[1:] != item_W[:-1]
  first_O, of_W = np.flatnonzero(change_W), change_W.cumsum() - 1
  items, page_O = list(map(Object, item_W[first_O].tolist())), page_W[first_O]
  starts = place_W2[first_O, 0]
  matrix_O6 = characters.matrices(starts)
  size_O = characters.each('FPDFText_GetFontSize', starts) * np.hypot(*matrix_O6[:, 2:4].T)
  quarter_O = np.arctan2(-matrix_O6[:, 1], matrix_O6[:, 0]) / (np.pi / 2)
  quarter_O += view.quarters
  turn_W, stacked_W = _turns(quarter_O, of_W, characters.code_N, place_W2, page_W, box_W24)
  # Fonts are judged by what there is of each on a page.
  font_O = np.array(list(map(calls()['FPDFTextObj_GetFont'], items)), np.uint64)
  fonts, font_O = np.unique(font_O, return_inverse=True)
  used_F, used_O = np.unique(page_O * len(fonts) + font_O, return_inverse=True)
  page_F, fonts_F = used_F // len(fonts), fonts[used_F % len(fonts)]
  size_W = _sizes(size_O[of_W], used_O[of_W], turn_W, box_W24)
  mono_W, fixed_F = _monospaced(
    characters, fonts_F, used_O[of_W], size_W, turn_W, place_W2, box_W24)
  fixed = set(zip(page_F[fixed_F].tolist(), fonts_F[fixed_F].tolist(), strict=True))
  mode_O = np.array(list(map(calls()['FPDFTextObj_GetTextRenderMode'], items)))
  colour_O4, invisible_O = fill_colours(items), mode_O == INVISIBLE
  white_O = colour_O4[:, :3].min(1) >= WHITE
  blank_O = (colour_O4[:, 3] == 0) | white_O & (mode_O % 4 == 0)
  seen_W = size_W > TINY * view.height
  doubtful_O = blank_O | invisible_O
  if doubtful_O.any():
    for page in np.unique(page_O[doubtful_O]).tolist():
      (index_D,) = np.nonzero(doubtful_O[of_W] & (page_W == page))
      box_D4 = spans(box_W24[index_D])
      x_D1, y_D1 = ((box_D4[:, i] + box_D4[:, i + 2])[:, None] / 2 for i in (0, 1))
      x0_G, y0_G, x1_G, y1_G = displayed(grounds(pages[page]), view).T
      seen_W[index_D] = ((x0_G <= x_D1) & (x_D1 <= x1_G) & (y0_G <= y_D1) & (y_D1 <= y1_G)).any(1)
  seen_W &= ~_again(characters.code_N, place_W2, page_W, box_W24)
  bold_F = np.array([bool(_is_bold(font)) for font in fonts.tolist()])
  level_O = np.where(bold_F[font_O], BOLD, 0)
  if any(levels):
    numbers = map(calls()['FPDFPageObj_GetMarkedContentID'], items)
    tagged_O = np.array([levels[page].get(number, 0)
                         for page, number in zip(page_O.tolist(), numbers, strict=True)])
    level_O = np.where(tagged_O > 0, tagged_O, level_O)
  return turn_W, stacked_W, size_W, mono_W, fixed, level_O[of_W], invisible_O[of_W], seen_W


def _sizes(size_W: np.ndarray, font_W: np.ndarray, turn_W: np.ndarray,
           box_W24: np.ndarray) -> np.ndarray:
  """The sizes of words, those made good that the file tells in a unit of the font's own: of letters
  that are drawings (Type 3), which stand many times as high."""
  side_W2 = box_W24[:, 0, 2:] - box_W24[:, 0, :2]
  high_W = np.abs(np.where(turn_W % 2, side_W2[:, 0], side_W2[:, 1]))
  small_W = size_W < 0.2 * high_W
  if not small_W.any():
    return size_W
  size_W = size_W.copy()
  for font in np.unique(font_W[small_W]).tolist():
    of_font_W = font_W == font
    if np.count_nonzero(small_W & of_font_W) > 0.5 * np.count_nonzero(of_font_W):
      ratio_Q = high_W[of_font_W] / size_W[of_font_W].clip(1e-6)
      size_W[of_font_W] *= np.quantile(ratio_Q, 0.9) / CAPITAL
  return size_W


def _again(code_N: np.ndarray, place_W2: np.ndarray, page_W: np.ndarray,
           box_W24: np.ndarray) -> np.ndarray:
  """Whether a word was drawn before at the same place, for bold letters or a shadow: bool [W].
  Looked for on pages where a few words share their squares of a coarse grid with others."""
  again_W = np.zeros(len(place_W2), bool)
  x_W, y_W = (box_W24[:, 0, :2] / GRID).astype(np.int64).T
  length_W = place_W2[:, 1] - place_W2[:, 0]
  key_W = ((y_W << 16) + x_W << 24) + (length_W << 20) + code_N[place_W2[:, 0]]
  if _repeated(key_W * 61 + page_W) < 3:
    return again_W
  for page in range(page_W[-1] + 1):
    of_page = slice(*page_W.searchsorted([page, page + 1]))
    if _repeated(key_W[of_page]) < 3:
      continue
    before: dict[bytes, list[list[float]]] = {}
    box_W8 = box_W24[of_page].reshape(-1, 8).tolist()
    for w, ((a, b), box) in enumerate(zip(place_W2[of_page].tolist(), box_W8, strict=True),
                                      of_page.start):
      others = before.setdefault(code_N[a:b].tobytes(), [])
      near = 0.15 * abs(box[3] - box[1])
      again_W[w] = any(max(abs(x - y) for x, y in zip(box, other, strict=True)) < near
                       for other in others)
      if not again_W[w]:
        others.append(box)
  return again_W


def _repeated(key_W: np.ndarray) -> int:
  """How many keys there are beyond those that differ."""
  key_W = np.sort(key_W)
  return np.count_nonzero(key_W[1:] == key_W[:-1])


def _turns(quarter_O: np.ndarray, of_W: np.ndarray, code_N: np.ndarray, place_W2: np.ndarray,
           page_W: np.ndarray, box_W24: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`turn_W` and `stacked_W`: by the angles of the objects that draw the words, clockwise in
  quarters, and by where the next letter stands in vertical Japanese and Chinese."""
  whole_O = quarter_O.round()
  turn_O = whole_O.astype(int) % 4
  turn_O[np.abs(quarter_O - whole_O) > 0.1] = ASKEW
  turn_W, stacked_W = turn_O[of_W], np.zeros(len(of_W), bool)
  length_W, middle_W22 = place_W2[:, 1] - place_W2[:, 0], box_W24[..., :2] + box_W24[..., 2:]
  (dx_W, dy_W) = np.abs(middle_W22[:, 1] - middle_W22[:, 0]).T
  down_W = (length_W > 2) & (dy_W > dx_W) & ((turn_W == 0) | (turn_W == 2))
  same_P = page_W[1:] == page_W[:-1]
  if down_W.any():
    turn_W[down_W] = np.where(middle_W22[:, 1, 1] > middle_W22[:, 0, 1], 1, 3)[down_W]
    for i in np.flatnonzero(~down_W[1:] & (length_W[1:] < 3) & same_P).tolist():
      before, after = middle_W22[i, 1], middle_W22[i + 1, 0]
      down_W[i + 1] = down_W[i] and abs(after[0] - before[0]) < abs(after[1] - before[1])
      if down_W[i + 1]:                     # one or two letters in such a line
        turn_W[i + 1] = turn_W[i]
  if code_N.max() < CJK:
    return turn_W, stacked_W
  single_W = (length_W == 1) & (code_N[place_W2[:, 0]] >= CJK) & (turn_W == 0)
  singles_G, words_G = np.bincount(page_W, single_W), np.bincount(page_W)
  if (singles_G <= np.maximum(7, words_G / 2)).all():
    return turn_W, stacked_W
  size_P = np.maximum(box_W24[1:, 0, 2] - box_W24[1:, 0, 0], 1)
  dx_P, dy_P = (middle_W22[1:, 0] - middle_W22[:-1, 0]).T / 2 / size_P
  below_P = (np.abs(dx_P) < 0.3) & (dy_P > 0.7) & (dy_P < 2.5) & single_W[1:] & single_W[:-1]
  below_G = np.bincount(page_W[1:], below_P & same_P, len(words_G))
  stacked_G = (singles_G > np.maximum(7, words_G / 2)) & (below_G > 0.6 * singles_G)
  stacked_W = single_W & stacked_G[page_W]
  turn_W[stacked_W] = 1
  return turn_W, stacked_W


@functools.lru_cache(256)
def _bold_name(name: bytes) -> bool:
  return bool(_BOLD.search(name))


def _is_bold(font: int) -> bool:
  """Whether a font is bold, by its flags or its name."""
  if not font or calls()['FPDFFont_GetFlags'](font) & _FORCE_BOLD:
    return bool(font)
  calls()['FPDFFont_GetBaseFontName'](font, ctypes.addressof(_name), len(_name))
  return _bold_name(_name.value)


def _monospaced(characters: Characters, fonts: np.ndarray, of_W: np.ndarray, size_W: np.ndarray,
                turn_W: np.ndarray, place_W2: np.ndarray,
                box_W24: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whether a word's font is of fixed width, and whether each font is: the letters with which its
  words begin, or some words at all, are as wide, though some are narrow by nature. Where there are
  none of these, the font's flag tells."""
  code_N = characters.code_N
  code_W, box_W4 = code_N[place_W2[:, 0]], box_W24[:, 0]
  width_W = np.where(turn_W % 2, box_W4[:, 3] - box_W4[:, 1], box_W4[:, 2] - box_W4[:, 0])
  (plain_Q,) = np.nonzero((code_W > 32) & (code_W < 127) & (turn_W != ASKEW) & (size_W > 0))
  of_Q, width_Q = of_W[plain_Q], width_W[plain_Q] / size_W[plain_Q]
  count_F, sum_F, square_F, narrow_F = (np.bincount(of_Q, weights, len(fonts)) for weights in (
    None, width_Q, width_Q ** 2, _NARROW[code_W[plain_Q]]))
  mean_F = sum_F / np.maximum(count_F, 1)
  fixed_F = square_F / np.maximum(count_F, 1) - mean_F ** 2 <= (0.03 * mean_F) ** 2
  told_F = (narrow_F > 0) & (narrow_F < count_F)
  for f in np.flatnonzero(fixed_F & ~told_F).tolist():
    flags = calls()['FPDFFont_GetFlags'](int(fonts[f]))
    fixed_F[f] = flags > 0 and flags & 1
    if count_F[f] < 3:
      continue
    few = place_W2[plain_Q[of_Q == f][:9]]
    index_N = np.concatenate([np.zeros(0, int), *(np.arange(a, b) for a, b in few.tolist())])
    width_N2 = np.ptp(characters.boxes(index_N).reshape(-1, 2, 2), axis=1)
    # Of level letters and turned ones, the lesser side of the box.
    widths = [width_N2[_NARROW.take(code_N[index_N], mode='clip') == narrow].min(1)
              for narrow in (False, True)]
    if min(map(len, widths)):
      usual, narrow = map(np.median, widths)
      fixed_F[f] = abs(usual - narrow) < 0.03 * usual
  return fixed_F[of_W] & (code_W < CJK), fixed_F
