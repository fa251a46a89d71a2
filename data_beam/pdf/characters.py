"""The characters of pages, as pdfium has them, in the order and the spelling of the text.

For a child process, see pdfium.
"""

import ctypes
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_beam.pdf.layout import BREAK
from data_beam.pdf.pdfium import calls, character_boxes, each, matrices, origins

NOTHING = '\u200b'           # in the place of a character that has gone elsewhere
REACH = 48                   # characters from an accent within which its letter may be

_LAM_ALEF = re.compile('[\u0622\u0623\u0625\u0627]\u0644')
_ACCENTS = dict(zip('`´ˆ^˜~¯˘˙¨˚˝ˇ¸˛', map(chr, (
  0x300, 0x301, 0x302, 0x302, 0x303, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30a, 0x30b, 0x30c, 0x327,
  0x328)), strict=True))
_ACCENT = re.compile(f'[{re.escape("".join(_ACCENTS))}]')
_LOOSE_NOTHING = re.compile(rf'(?<=\s){NOTHING}+|{NOTHING}+(?=\s|$)')
_DOTLESS = {'ı': 'i', 'ȷ': 'j'}
_HALF = re.compile('[\ud800-\udfff]')


class Characters(NamedTuple):
  """The characters of some pages, one page after the other, with a line break after each. What is
  asked of pdfium about some of them takes their places, in order."""
  text: str                 # a character for each of pdfium's, see `together`
  code_N: np.ndarray        # their code points
  start_P: np.ndarray       # where each page begins
  handles: Sequence[ctypes.c_void_p]        # the text pages

  def page_of(self, index_N: np.ndarray) -> np.ndarray:
    """On which of the pages characters stand."""
    return self.start_P.searchsorted(index_N, 'right') - 1

  def place(self, page: int) -> slice:
    """Where a page's characters stand."""
    end = self.start_P[page + 1] if page + 1 < len(self.start_P) else len(self.text)
    return slice(int(self.start_P[page]), int(end) - 1)

  def words_on(self, page: int, place_W2: np.ndarray) -> slice:
    """Which of some words, in order, stand on a page."""
    of_page = self.place(page)
    return slice(*place_W2[:, 0].searchsorted([of_page.start, of_page.stop]).tolist())

  def _arguments(self, index_N: np.ndarray) -> tuple[Iterator[ctypes.c_void_p], list[int]]:
    """For each of some characters the text page and pdfium's index."""
    if len(self.handles) == 1:
      return itertools.repeat(self.handles[0]), index_N.tolist()
    counts = np.diff(index_N.searchsorted(self.start_P), append=len(index_N))
    handles = map(itertools.repeat, self.handles, counts.tolist())
    return itertools.chain.from_iterable(handles), (
      index_N - self.start_P.repeat(counts)).tolist()

  def each(self, name: str, index_N: np.ndarray) -> list:
    """What a call of pdfium gives for each of some characters."""
    return list(map(calls()[name], *self._arguments(index_N)))

  def boxes(self, index_N: np.ndarray) -> np.ndarray:
    """See pdfium.character_boxes."""
    return character_boxes(*self._arguments(index_N))

  def ends(self, place_W2: np.ndarray) -> np.ndarray:
    """Boxes of each word's first and last character, in page space: float32 [W, 2, 4]."""
    index_N = (place_W2 - [0, 1]).ravel()
    other_N = np.ones(len(index_N), bool)   # a word of one character has one box
    other_N[1:] = index_N[1:] != index_N[:-1]
    return self.boxes(index_N[other_N])[other_N.cumsum() - 1].reshape(-1, 2, 4)

  def matrices(self, index_N: np.ndarray) -> np.ndarray:
    """See pdfium.matrices."""
    return matrices(*self._arguments(index_N))

  def origins(self, index_N: np.ndarray) -> np.ndarray:
    """See pdfium.origins."""
    return origins(*self._arguments(index_N))


def text_of(handle: ctypes.c_void_p, count: int) -> str:
  """The first characters of a text page as pdfium spells them, one for each of its indices: beyond
  the basic plane, halves of surrogate pairs, which `whole` joins."""
  buffer = np.empty(count + 1, np.uint16)
  got = calls()['FPDFText_GetText'](handle, 0, count, ctypes.c_void_p(buffer.ctypes.data))
  text = buffer[:max(0, got - 1)].tobytes().decode('utf-16-le', 'replace')
  if len(text) != count:                    # pairs; or pdfium left some out: ask one by one
    codes = each('FPDFText_GetUnicode', handle, range(count))
    text = ''.join([chr(c) if 0 < c < 0x110000 else '\ufffd' for c in codes])
  return text


def together(pages: Sequence[tuple[ctypes.c_void_p, str]]) -> Characters:
  """The characters of pages, of each its text page and its text, spelled as on the page: letters
  with their accents, Arabic in its order, hyphens that are seen; `BREAK` for those at a line's end.
  """
  handles, texts = zip(*pages, strict=True)
  start_P = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
  found = _characters('\n'.join([*texts, '']), start_P, handles)
  text = found.text
  if not text.isascii() and _LAM_ALEF.search(text):
    text = _ligatures_in_order(found)
  if _ACCENT.search(text):
    text = _accented(found._replace(text=text))
  if '\xad' in text:
    text = _hyphens_drawn(found._replace(text=text))
  text = text.replace('\x02', BREAK)
  return found if text == found.text else _characters(text, start_P, handles)


def _characters(text: str, start_P: np.ndarray,
                handles: Sequence[ctypes.c_void_p]) -> Characters:
  code_N = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
  return Characters(text, code_N, start_P, handles)


def whole(text: str) -> str:
  """Text with its surrogate pairs joined; a half alone is U+FFFD."""
  if not has_halves(text):
    return text
  return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def has_halves(text: str) -> bool:
  """Whether text has surrogate pairs, or half of one."""
  return not text.isascii() and bool(_HALF.search(text))


def _hyphens_drawn(characters: Characters) -> str:
  """Soft hyphens as what they are on a page: hyphens, in the fonts that call theirs so, but for
  those of no width."""
  text = characters.text
  at = [i for i, character in enumerate(text) if character == '\xad']
  x0_A, y1_A, x1_A, y0_A = characters.boxes(np.array(at)).T
  out = list(text)
  for i, drawn in zip(at, (x1_A - x0_A > 0.05 * (y1_A - y0_A)).tolist(), strict=True):
    if drawn:
      out[i] = BREAK if text[i + 1:i + 2] in ('\r', '\n') else '-'
  return ''.join(out)


def _ligatures_in_order(characters: Characters) -> str:
  """Arabic with lam before alef where one glyph is both. pdfium turns a line round letter by
  letter, and these two with it; the article, alef before lam, has a box for each."""
  out = list(characters.text)
  spans_M2 = np.array([match.span() for match in _LAM_ALEF.finditer(characters.text)])
  boxes_M24 = characters.ends(spans_M2)
  one_M = np.abs(boxes_M24[:, 0] - boxes_M24[:, 1]).max(1) < 0.01
  for i in spans_M2[one_M, 0].tolist():
    out[i], out[i + 1] = out[i + 1], out[i]
  return ''.join(out)


def _accented(characters: Characters) -> str:
  """Accents that were drawn over a letter put on it: TeX's old fonts have no letter with one. What
  an accent leaves behind has no width; where no letter has it in Unicode, a mark follows the
  letter."""
  text = characters.text
  near_A = np.array([match.start() for match in _ACCENT.finditer(text)])
  page_A, end_P = characters.page_of(near_A), np.append(characters.start_P[1:], len(text)) - 2
  window_AK = (near_A[:, None] + np.arange(-REACH, REACH + 1)).clip(
    first_A1 := characters.start_P[page_A][:, None], end_P[page_A][:, None])
  asked, of_AK = np.unique(window_AK, return_inverse=True)
  box_AK4 = characters.boxes(asked)[of_AK.reshape(window_AK.shape)]
  x0_AK, y1_AK, x1_AK, y0_AK = np.moveaxis(box_AK4, -1, 0)
  mark_A4 = box_AK4[:, REACH, :, None]      # left, top, right, bottom of the accents
  wide_A1, high_A1 = mark_A4[:, 2] - mark_A4[:, 0], mark_A4[:, 1] - mark_A4[:, 3]
  over_AK = np.minimum(x1_AK, mark_A4[:, 2]) - np.maximum(x0_AK, mark_A4[:, 0])
  beside_AK = np.minimum(y1_AK, mark_A4[:, 1]) - np.maximum(y0_AK, mark_A4[:, 3])
  share_AK = over_AK / np.maximum(np.minimum(wide_A1, x1_AK - x0_AK), 0.1)
  share_AK[(beside_AK < 0.5 * high_A1) | (window_AK == near_A[:, None])] = 0
  (over_Q,) = (share_AK >= 0.6).any(1).nonzero()
  out = list(text) if len(over_Q) else []
  for a in over_Q.tolist():
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
        characters.each('FPDFText_IsGenerated', np.array([between])) == [1]):
      out[between] = NOTHING
    if letter < at and text[at + 1:at + 2] == ' ' and at > first_A1[a, 0] + 1:
      last = boxes[REACH - 2 if out[at - 1] == NOTHING else REACH - 1]
      if boxes[REACH + 2][0] - last[2] < 0.15 * (last[1] - last[3]):
        out[at + 1] = NOTHING
  # Words begin and end with what is there.
  return _LOOSE_NOTHING.sub(lambda match: ' ' * len(match[0]), ''.join(out)) if out else text
