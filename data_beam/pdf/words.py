"""The words of a page: their letters, where they stand, which way up, and whether they are seen.

For a child process, see pdfium.
"""

import ctypes
import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium

from data_beam.pdf.drawn import WHITE, grounds
from data_beam.pdf.layout import BREAK
from data_beam.pdf.lines import BOLD
from data_beam.pdf.pdfium import (
  Object,
  View,
  calls,
  character_boxes,
  displayed,
  each,
  fill_colours,
  matrices,
  origins,
  spans,
)

ASKEW = 4                    # as a turn: neither level nor upright, a stamp across the page
CJK = 0x2e80                 # of the code points from here on, nearly all are as wide as high
NOTHING = '\u200b'           # in the place of a character that has gone elsewhere
REACH = 48                   # characters from an accent within which its letter may be
RAISED = 0.1                 # of a box's height: so much higher stands what is raised at least
CAPITAL = 0.75               # of a font's size: about as high are its capitals
GRID = 2.0                   # points, in which words are looked for that are drawn twice
TINY = 0.0012                # of the page's height: no letter of that size can be read
INVISIBLE = pdfium.FPDF_TEXTRENDERMODE_INVISIBLE

_GAPS = np.zeros(1 << 16, bool)
_GAPS[[*(c for c in range(0x3001) if chr(c).isspace()), ord(BREAK)]] = True
_LAM_ALEF = re.compile('[\u0622\u0623\u0625\u0627]\u0644')
_NARROW = np.zeros(128, bool)
_NARROW[[ord(c) for c in "fijlrtI.,:;'!|()[]"]] = True
_ACCENTS = dict(zip('`´ˆ^˜~¯˘˙¨˚˝ˇ¸˛', map(chr, (
  0x300, 0x301, 0x302, 0x302, 0x303, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30a, 0x30b, 0x30c, 0x327,
  0x328)), strict=True))
_ACCENT = re.compile(f'[{re.escape("".join(_ACCENTS))}]')
_LOOSE_NOTHING = re.compile(rf'(?<=\s){NOTHING}+|{NOTHING}+(?=\s|$)')
_DOTLESS = {'ı': 'i', 'ȷ': 'j'}
_name = ctypes.create_string_buffer(80)
_FORCE_BOLD = 1 << 18
_BOLD = re.compile(rb'(?i)bold|black|heavy|-medi\b|medi$|cmbx|sfbx|cmb\d')
_HALF = re.compile('[\ud800-\udfff]')
_HAN = ((0x2e80, 0x3130), (0x31f0, 0xa4d0), (0xf900, 0xfb00), (0xff00, 0xff9e))    # and kana
_NUMBER = re.compile(r'[(\[]?[+\-−–]?\d[\d.,;–-]*[)\]]?')
_NUMERAL = re.compile(r'(?:\d|\b[IVXLC]+)$')
_ORDINAL = re.compile(r'(?i)st|nd|rd|th|[eè]?r?e?|[eè]me|os?|as?')
_SHORTENED = re.compile(r'(?i)mes?|lles?|gr|rs?|tm|sm')


class Words(NamedTuple):
  """Words between spaces, and parts of them where the font's size changes, in the file's order."""
  text: str                 # of the page, a character for each of pdfium's, see `characters`
  code_N: np.ndarray        # its code points
  place_W2: np.ndarray      # where each begins and ends there
  box_W24: np.ndarray       # of its first and its last character, as displayed
  turn_W: np.ndarray        # quarters clockwise by which it is turned, as displayed; or ASKEW
  stacked_W: np.ndarray     # whether it is one of upright letters in a column that runs downwards
  size_W: np.ndarray        # points of the font with which it begins
  mono_W: np.ndarray        # whether the font with which it begins is of fixed width
  fixed: set[int]           # fonts of fixed width
  level_W: np.ndarray       # see Line
  glued_W: np.ndarray       # whether it goes on with the word before it
  seen_W: np.ndarray        # whether a reader sees it
  raised: dict[int, str]    # superscripts, and what marks each
  lifted_W: np.ndarray      # whether it is one, or the mark that begins a note
  odd_W: np.ndarray         # whether it does not follow the one before as it does in the text
  hidden: float             # share of characters that are invisible, as those under a scan are

  def string(self, index_W: np.ndarray) -> str:
    """Some of the words, with spaces between."""
    out = ''
    for i, glued, (a, b) in zip(index_W.tolist(), self.glued_W[index_W].tolist(),
                                self.place_W2[index_W].tolist(), strict=True):
      out += (' ' if out and not glued else '') + self.raised.get(i, '') + self.text[a:b]
    return out


# Characters.

def characters(text_page: Any, handle: ctypes.c_void_p, count: int) -> str:
  """The page's characters, one for each of pdfium's indices: beyond the basic plane, halves of
  surrogate pairs, which `whole` joins."""
  buffer = (ctypes.c_ushort * (count + 1))()
  got = pdfium.FPDFText_GetText(text_page, 0, count, buffer)
  text = bytes(buffer)[:2 * max(0, got - 1)].decode('utf-16-le', 'replace')
  if len(text) != count:                    # pairs; or pdfium left some out: ask one by one
    codes = each('FPDFText_GetUnicode', handle, range(count))
    text = ''.join([chr(c) if 0 < c < 0x110000 else '\ufffd' for c in codes])
  if not text.isascii() and _LAM_ALEF.search(text):
    text = _ligatures_in_order(handle, text)
  if _ACCENT.search(text):
    text = _accented(handle, text)
  if '\xad' in text:
    text = _hyphens_drawn(handle, text)
  return text.replace('\x02', BREAK)


def whole(text: str) -> str:
  """Text with its surrogate pairs joined; a half alone is U+FFFD."""
  if not has_halves(text):
    return text
  return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def has_halves(text: str) -> bool:
  """Whether text has surrogate pairs, or half of one."""
  return not text.isascii() and bool(_HALF.search(text))


def _hyphens_drawn(handle: ctypes.c_void_p, text: str) -> str:
  """Soft hyphens as what they are on a page: hyphens, in the fonts that call theirs so, but for
  those of no width."""
  at = [i for i, character in enumerate(text) if character == '\xad']
  x0_A, y1_A, x1_A, y0_A = character_boxes(handle, at).T
  out = list(text)
  for i, drawn in zip(at, (x1_A - x0_A > 0.05 * (y1_A - y0_A)).tolist(), strict=True):
    if drawn:
      out[i] = BREAK if text[i + 1:i + 2] in ('\r', '\n') else '-'
  return ''.join(out)


def _ligatures_in_order(handle: ctypes.c_void_p, text: str) -> str:
  """Arabic with lam before alef where one glyph is both. pdfium turns a line round letter by
  letter, and these two with it; the article, alef before lam, has a box for each."""
  out, spans_M2 = list(text), np.array([match.span() for match in _LAM_ALEF.finditer(text)])
  boxes_M24 = _ends(handle, spans_M2)
  one_M = np.abs(boxes_M24[:, 0] - boxes_M24[:, 1]).max(1) < 0.01
  for i in spans_M2[one_M, 0].tolist():
    out[i], out[i + 1] = out[i + 1], out[i]
  return ''.join(out)


def _accented(handle: ctypes.c_void_p, text: str) -> str:
  """Accents that were drawn over a letter put on it: TeX's old fonts have no letter with one. What
  an accent leaves behind has no width; where no letter has it in Unicode, a mark follows the
  letter."""
  out = list(text)
  near_A = np.array([match.start() for match in _ACCENT.finditer(text)])
  window_AK = (near_A[:, None] + np.arange(-REACH, REACH + 1)).clip(0, len(text) - 1)
  asked, of_AK = np.unique(window_AK, return_inverse=True)
  box_AK4 = character_boxes(handle, asked.tolist())[of_AK.reshape(window_AK.shape)]
  x0_AK, y1_AK, x1_AK, y0_AK = np.moveaxis(box_AK4, -1, 0)
  mark_A4 = box_AK4[:, REACH, :, None]      # left, top, right, bottom of the accents
  wide_A1, high_A1 = mark_A4[:, 2] - mark_A4[:, 0], mark_A4[:, 1] - mark_A4[:, 3]
  over_AK = np.minimum(x1_AK, mark_A4[:, 2]) - np.maximum(x0_AK, mark_A4[:, 0])
  beside_AK = np.minimum(y1_AK, mark_A4[:, 1]) - np.maximum(y0_AK, mark_A4[:, 3])
  share_AK = over_AK / np.maximum(np.minimum(wide_A1, x1_AK - x0_AK), 0.1)
  share_AK[(beside_AK < 0.5 * high_A1) | (window_AK == near_A[:, None])] = 0
  for a in (share_AK >= 0.6).any(1).nonzero()[0].tolist():
    at, boxes = int(near_A[a]), box_AK4[a]
    share, letter = max((share, i) for share, i in zip(
      share_AK[a].tolist(), window_AK[a].tolist(), strict=True) if share == 0 or text[i].isalpha())
    if share < 0.6:
      continue
    base, mark = _DOTLESS.get(out[letter], out[letter]), _ACCENTS[text[at]]
    whole = unicodedata.normalize('NFC', base + mark)
    if len(whole) == 1:
      out[letter], out[at] = whole, NOTHING
    elif abs(letter - at) == 1:             # the letter, then its mark
      out[min(letter, at)], out[max(letter, at)] = base, mark
    else:
      continue
    # Spaces that pdfium has seen around the accent.
    between = at + (1 if letter > at else -1)
    if text[between:between + 1] == ' ' and (
        calls()['FPDFText_IsGenerated'](handle, between) == 1):
      out[between] = NOTHING
    if letter < at and text[at + 1:at + 2] == ' ' and at > 1:
      last = boxes[REACH - 2 if out[at - 1] == NOTHING else REACH - 1]
      if boxes[REACH + 2][0] - last[2] < 0.15 * (last[1] - last[3]):
        out[at + 1] = NOTHING
  # Words begin and end with what is there.
  return _LOOSE_NOTHING.sub(lambda match: ' ' * len(match[0]), ''.join(out))


# Words.

def _ends(handle: ctypes.c_void_p, place_W2: np.ndarray) -> np.ndarray:
  """Boxes of each word's first and last character, in page space: float32 [W, 2, 4]."""
  return character_boxes(handle, (place_W2 - [0, 1]).ravel().tolist()).reshape(-1, 2, 4)


def words_of(handle: ctypes.c_void_p, page: Any, text: str, view: View, edge_E3: np.ndarray,
             unseen: bool, levels: Mapping[int, int]) -> Words:
  """The words of a page.

  Args:
    text: its characters.
    edge_E3: (x, y0, y1) of the upright rules of tables, as displayed: words are cut there.
    unseen: whether to keep what no reader sees.
    levels: of headings, by the numbers of their marked contents.
  """
  code_N = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
  solid = np.zeros(len(code_N) + 2, bool)
  solid[1:-1] = ~_GAPS.take(code_N, mode='clip')
  place_W2 = np.flatnonzero(solid[1:] != solid[:-1]).reshape(-1, 2)
  box_W24 = displayed(_ends(handle, place_W2), view)
  at_edges = _at_edges(handle, place_W2, box_W24, edge_E3, view)
  at_sizes = _at_sizes(handle, code_N, place_W2, box_W24, view)
  if at_edges or at_sizes:
    cuts = sorted({*at_edges, *at_sizes})
    at = np.searchsorted(place_W2.ravel(), cuts)
    ends_C24 = displayed(_ends(handle, np.array(cuts)[:, None] + [-1, 1]), view)
    place_W2 = np.insert(place_W2, np.repeat(at, 2), np.repeat(cuts, 2)).reshape(-1, 2)
    box_W24 = np.insert(box_W24.reshape(-1, 4), np.repeat(at, 2), ends_C24.reshape(-1, 4),
                        axis=0).reshape(-1, 2, 4)
  turn_W, stacked_W, size_W, mono_W, fixed, level_W, invisible_W, seen_W = _drawn_how(
    handle, page, code_N, place_W2, box_W24, view, levels)
  length_W = place_W2[:, 1] - place_W2[:, 0]
  hidden = float(length_W[invisible_W].sum() / max(1, length_W.sum()))
  cut_N = np.zeros(len(code_N) + 1, bool)
  cut_N[at_sizes] = True
  glued_W = cut_N[place_W2[:, 0]]
  raised, lifted_W = _raised(handle, text, place_W2, box_W24, size_W, turn_W, glued_W, view)
  if unseen or hidden > 0.5:                # the latter is somebody's OCR under a scan
    seen_W |= unseen or invisible_W
  glued_W[1:] |= stacked_W[1:] & stacked_W[:-1]
  if code_N.max() >= CJK:
    glued_W[1:] |= _justified(code_N, place_W2, box_W24)
  odd_W = lifted_W | glued_W
  if at_edges:
    cut_N[at_edges] = True
    odd_W |= cut_N[place_W2[:, 0]]
  return Words(text, code_N, place_W2, box_W24, turn_W, stacked_W, size_W, mono_W, fixed, level_W,
               glued_W, seen_W, raised, lifted_W, odd_W, hidden)


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


def _at_edges(handle: ctypes.c_void_p, place_W2: np.ndarray, box_W24: np.ndarray,
              edge_E3: np.ndarray, view: View) -> list[int]:
  """Where a piece drawn for itself begins within a word, beyond the edge of a cell: no space was
  left there. What merely runs over an edge stays whole."""
  if not len(edge_E3):
    return []
  box_W4, (x_E, top_E, bottom_E) = spans(box_W24), edge_E3.T
  (over_Q,) = holding(x_E, box_W4[:, 0] + 2, box_W4[:, 2] - 2).nonzero()
  if not len(over_Q):
    return []
  x0_Q1, _, x1_Q1, _ = box_W4[over_Q].T[..., None]
  y_Q1 = box_W24[over_Q][..., 1::2].mean((1, 2))[:, None]
  through_QE = (x0_Q1 + 2 < x_E) & (x_E < x1_Q1 - 2) & (top_E <= y_Q1) & (y_Q1 <= bottom_E)
  places = []
  for q in np.flatnonzero(through_QE.any(1)).tolist():
    start, end = place_W2[over_Q[q]].tolist()
    drawn_by = each('FPDFText_GetTextObject', handle, range(start, end))
    begins = np.array([i for i in range(start + 1, end)
                       if drawn_by[i - start] != drawn_by[i - start - 1]], int)
    left_B = displayed(_ends(handle, begins[:, None] + [0, 1]), view)[:, 0, 0]
    places += begins[left_B > x_E[through_QE[q]][0] - 1][:1].tolist()
  return places


def holding(x_E: np.ndarray, left_N: np.ndarray, right_N: np.ndarray) -> np.ndarray:
  """Whether any of some places lies between each left and right: bool [N]."""
  x_E = np.sort(x_E)
  return x_E.searchsorted(right_N) > x_E.searchsorted(left_N, 'right')


def _at_sizes(handle: ctypes.c_void_p, code_N: np.ndarray, place_W2: np.ndarray,
              box_W24: np.ndarray, view: View) -> list[int]:
  """Where letters are raised or lowered within a word: exponents, marks of notes. Asked of words
  whose first and last letters stand so, or that have a digit after a letter or after the sign that
  follows one."""
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
  box_N4 = displayed(character_boxes(handle, index_N.tolist()), view)
  high_N = box_N4[:, 3] - box_N4[:, 1]
  change_P = np.abs(np.diff(box_N4[:, 3])) > RAISED * np.maximum(high_N[1:], high_N[:-1])
  begins = np.zeros(len(code_N) + 1, bool)
  begins[place_W2[:, 0]] = True
  cut_C = index_N[1:][change_P & ~begins[index_N[1:]]]
  if not len(cut_C):
    return []
  # Boxes of letters that are drawings (Type 3) are as high as each: these have one line and size.
  pairs = np.stack([cut_C - 1, cut_C], 1).ravel().tolist()
  base_C2 = displayed(origins(handle, pairs), view)[:, 1].reshape(-1, 2)
  size_C2 = np.array(each('FPDFText_GetFontSize', handle, pairs)).reshape(-1, 2)
  alike_C = (np.ptp(base_C2, 1) < 0.01) & (np.ptp(size_C2, 1) == 0)
  return cut_C[~alike_C].tolist()


def _raised(handle: ctypes.c_void_p, text: str, place_W2: np.ndarray, box_W24: np.ndarray,
            size_W: np.ndarray, turn_W: np.ndarray, glued_W: np.ndarray,
            view: View) -> tuple[dict[int, str], np.ndarray]:
  """Superscripts, and the mark before each, '^' or none; and with them `lifted_W`. `glued_W` is put
  right with that: they stand at their base, and the mark that begins a note stands apart."""
  found: dict[int, str] = {}
  a_P4, b_P4 = box_W24[:-1, 1], box_W24[1:, 0]
  a_P, b_P = a_P4[:, 3] - a_P4[:, 1], b_P4[:, 3] - b_P4[:, 1]      # heights
  rise_P = a_P4[:, 3] - b_P4[:, 3]
  (at_Q,) = np.nonzero((b_P < 0.9 * a_P) & (rise_P > 0.1 * a_P) & (rise_P < a_P)
                       & (np.abs(b_P4[:, 0] - a_P4[:, 2]) < 0.3 * a_P)
                       & (turn_W[1:] == 0) & (turn_W[:-1] == 0))
  if len(at_Q):
    origin_N4 = origins(handle, np.append(place_W2[at_Q, 1] - 1, place_W2[at_Q + 1, 0]).tolist())
    below_Q, above_Q = np.split(displayed(origin_N4, view)[:, 1], 2)
    large_Q, small_Q = size_W[at_Q], size_W[at_Q + 1]
    rise_Q, ratio_Q = (below_Q - above_Q) / large_Q, small_Q / large_Q
    fit_Q = (rise_Q > 0.15) & (rise_Q < 0.8) & (ratio_Q > 0.4) & (ratio_Q < 0.9)
    for i, ratio in zip((at_Q[fit_Q] + 1).tolist(), ratio_Q[fit_Q].tolist(), strict=True):
      base, script = (text[slice(*place_W2[j])] for j in (i - 1, i))
      if script[0].isalpha() and ratio < 0.55:
        continue                            # after an initial of two lines
      found[i] = _mark(base, script)
      glued_W[i] = True
  near_P = (a_P < 0.9 * b_P) & (np.abs(a_P4[:, 2] - b_P4[:, 0]) < 0.12 * b_P)
  for i in np.flatnonzero(near_P).tolist():
    glued_W[i + 1] |= i in found            # a comma after a mark
  lifted_W = np.zeros(len(place_W2), bool)
  lifted_W[list(found)] = True
  notes_P = near_P & (-rise_P > 0.1 * b_P) & ~lifted_W[:-1]
  glued_W[1:] &= ~notes_P
  lifted_W[:-1] |= notes_P
  return found, lifted_W


def _mark(base: str, script: str) -> str:
  """'^' before a superscript that would else be read as a part of its base; not the letters of
  ordinals and abbreviations, nor signs."""
  if not script[0].isalnum() and not _NUMBER.fullmatch(script):
    return ''
  after = _ORDINAL if _NUMERAL.search(base) else _SHORTENED
  return '' if after.fullmatch(script) else '^'


def _drawn_how(handle: ctypes.c_void_p, page: Any, code_N: np.ndarray, place_W2: np.ndarray,
               box_W24: np.ndarray, view: View, levels: Mapping[int, int]) -> tuple[Any, ...]:
  """Of each word `turn_W`, `stacked_W`, `size_W`, `mono_W`; `fixed`; `level_W`, whether each is
  invisible (as text under a scan is), and whether it is seen. What tells stands with the objects
  that draw words."""
  item_W = np.array(each('FPDFText_GetTextObject', handle, place_W2[:, 0].tolist()), np.uint64)
  change_W = np.ones(len(item_W), bool)
  change_W[1:] = item_W[1:] != item_W[:-1]
  first_O, of_W = np.flatnonzero(change_W), change_W.cumsum() - 1
  items = list(map(Object, item_W[first_O].tolist()))
  starts = place_W2[first_O, 0].tolist()
  matrix_O6 = matrices(handle, starts)
  size_O = each('FPDFText_GetFontSize', handle, starts) * np.hypot(*matrix_O6[:, 2:4].T)
  quarter_O = np.arctan2(-matrix_O6[:, 1], matrix_O6[:, 0]) / (np.pi / 2)
  quarter_O += page.get_rotation() // 90
  turn_W, stacked_W = _turns(quarter_O, of_W, code_N, place_W2, box_W24)
  font_O = np.array(list(map(calls()['FPDFTextObj_GetFont'], items)), np.uint64)
  fonts, font_O = np.unique(font_O, return_inverse=True)
  size_W = _sizes(size_O[of_W], font_O[of_W], turn_W, box_W24)
  mono_W, fixed = _monospaced(
    handle, fonts, font_O[of_W], size_W, turn_W, code_N, place_W2, box_W24)
  mode_O = np.array(list(map(calls()['FPDFTextObj_GetTextRenderMode'], items)))
  colour_O4, invisible_O = fill_colours(items), mode_O == INVISIBLE
  white_O = colour_O4[:, :3].min(1) >= WHITE
  blank_O = (colour_O4[:, 3] == 0) | white_O & (mode_O % 4 == 0)
  seen_W = size_W > TINY * view.height
  doubtful_O = blank_O | invisible_O
  if doubtful_O.any():
    doubtful_W = doubtful_O[of_W]
    box_W4 = spans(box_W24)
    ground_G4 = displayed(grounds(page), view)
    x_D1, y_D1 = ((box_W4[doubtful_W, i] + box_W4[doubtful_W, i + 2])[:, None] / 2 for i in (0, 1))
    x0_G, y0_G, x1_G, y1_G = ground_G4.T
    seen_W[doubtful_W] = ((x0_G <= x_D1) & (x_D1 <= x1_G) & (y0_G <= y_D1) & (y_D1 <= y1_G)).any(1)
  seen_W &= ~_again(code_N, place_W2, box_W24)
  bold_F = np.array([bool(_is_bold(font)) for font in fonts.tolist()])
  level_O = np.where(bold_F[font_O], BOLD, 0)
  if levels:
    numbers = map(calls()['FPDFPageObj_GetMarkedContentID'], items)
    tagged_O = np.array([levels.get(number, 0) for number in numbers])
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


def _again(code_N: np.ndarray, place_W2: np.ndarray, box_W24: np.ndarray) -> np.ndarray:
  """Whether a word was drawn before at the same place, for bold letters or a shadow: bool [W].
  Looked for where a few words share their squares of a coarse grid with others."""
  again_W = np.zeros(len(place_W2), bool)
  x_W, y_W = (box_W24[:, 0, :2] / GRID).astype(np.int64).T
  length_W = place_W2[:, 1] - place_W2[:, 0]
  key_W = ((y_W << 16) + x_W << 24) + (length_W << 20) + code_N[place_W2[:, 0]]
  key_W.sort()
  if np.count_nonzero(key_W[1:] == key_W[:-1]) < 3:
    return again_W
  before: dict[bytes, list[list[float]]] = {}
  box_W8 = box_W24.reshape(-1, 8).tolist()
  for w, ((a, b), box) in enumerate(zip(place_W2.tolist(), box_W8, strict=True)):
    others = before.setdefault(code_N[a:b].tobytes(), [])
    near = 0.15 * abs(box[3] - box[1])
    again_W[w] = any(max(abs(x - y) for x, y in zip(box, other, strict=True)) < near
                     for other in others)
    if not again_W[w]:
      others.append(box)
  return again_W


def _turns(quarter_O: np.ndarray, of_W: np.ndarray, code_N: np.ndarray, place_W2: np.ndarray,
           box_W24: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`turn_W` and `stacked_W`: by the angles of the objects that draw the words, clockwise in
  quarters, and by where the next letter stands in vertical Japanese and Chinese."""
  whole_O = quarter_O.round()
  turn_O = whole_O.astype(int) % 4
  turn_O[np.abs(quarter_O - whole_O) > 0.1] = ASKEW
  turn_W, stacked_W = turn_O[of_W], np.zeros(len(of_W), bool)
  length_W, middle_W22 = place_W2[:, 1] - place_W2[:, 0], box_W24[..., :2] + box_W24[..., 2:]
  (dx_W, dy_W) = np.abs(middle_W22[:, 1] - middle_W22[:, 0]).T
  down_W = (length_W > 2) & (dy_W > dx_W) & ((turn_W == 0) | (turn_W == 2))
  if down_W.any():
    turn_W[down_W] = np.where(middle_W22[:, 1, 1] > middle_W22[:, 0, 1], 1, 3)[down_W]
    for i in np.flatnonzero(~down_W[1:] & (length_W[1:] < 3)).tolist():
      before, after = middle_W22[i, 1], middle_W22[i + 1, 0]
      down_W[i + 1] = down_W[i] and abs(after[0] - before[0]) < abs(after[1] - before[1])
      if down_W[i + 1]:                     # one or two letters in such a line
        turn_W[i + 1] = turn_W[i]
  if code_N.max() < CJK:
    return turn_W, stacked_W
  single_W = (length_W == 1) & (code_N[place_W2[:, 0]] >= CJK) & (turn_W == 0)
  if np.count_nonzero(single_W) > max(7, len(turn_W) / 2):
    size_P = np.maximum(box_W24[1:, 0, 2] - box_W24[1:, 0, 0], 1)
    dx_P, dy_P = (middle_W22[1:, 0] - middle_W22[:-1, 0]).T / 2 / size_P
    below_P = (np.abs(dx_P) < 0.3) & (dy_P > 0.7) & (dy_P < 2.5) & single_W[1:] & single_W[:-1]
    if below_P.sum() > 0.6 * single_W.sum():
      stacked_W = single_W
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


def _monospaced(handle: ctypes.c_void_p, fonts: np.ndarray, of_W: np.ndarray, size_W: np.ndarray,
                turn_W: np.ndarray, code_N: np.ndarray, place_W2: np.ndarray,
                box_W24: np.ndarray) -> tuple[np.ndarray, set[int]]:
  """Whether a word's font is of fixed width, and these fonts: the letters with which its words
  begin, or some words at all, are as wide, though some are narrow by nature. Where there are none
  of these, the font's flag tells."""
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
    width_N2 = np.ptp(character_boxes(handle, index_N.tolist()).reshape(-1, 2, 2), axis=1)
    # Of level letters and turned ones, the lesser side of the box.
    widths = [width_N2[_NARROW.take(code_N[index_N], mode='clip') == narrow].min(1)
              for narrow in (False, True)]
    if min(map(len, widths)):
      usual, narrow = map(np.median, widths)
      fixed_F[f] = abs(usual - narrow) < 0.03 * usual
  return fixed_F[of_W] & (code_W < CJK), set(fonts[fixed_F].tolist())
