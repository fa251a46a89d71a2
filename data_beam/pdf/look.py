"""Which pages of a document are read by OCR, and what is kept of each.

The features of the text layer decide (router). Where they are in doubt, the picture does: text that
is hidden or lies on a picture of the whole page is somebody's OCR, good or bad. A few of its lines
are cut out of the picture and read, which costs a fifth of reading the page, and the layer stays
where it says the same. Of a document three pages are looked at so; what they say holds for the
others of their kind.

One page that cannot be read costs that page: its text layer stays if it has one, and the reason
stands in its features.
"""

import collections
import ctypes
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_beam import sandbox
from data_beam.pdf import ocr as pdf_ocr
from data_beam.pdf.errors import PdfError
from data_beam.pdf.layout import BREAK, Line

MIN_CONFIDENCE = 0.6         # mean OCR confidence under which a page is noise
LOOKS = 3                    # of a document, for each reason
LINES = 6                    # that are compared at each
SURE = 0.7                   # confidence of the engine from which its word counts
SAME_LETTERS = 0.94          # of the layer and of what is read, in order
SAME_GARBLED = 0.9           # the same where a font is in doubt: what it garbles is no word at all
SAME_CAPITALS = 0.6          # layers made for searching have none
WHOLE_PICTURE = 0.6          # of a page, from which text lies on a picture
COVERED = 0.85               # of what OCR reads of a page with pictures, that its layer has too


class Reader:
  """Reads the pages of one document by OCR, in their order."""

  def __init__(self, document: Any, languages: Sequence[str], server: Mapping[str, str] | None,
               decide: Callable[[dict[str, Any]], str], mode: str):
    """Sets up the reader.

    Args:
      document: of pypdfium2.
      languages: ISO 639-1 codes expected.
      server: see ocr.
      decide: of a page's features, why it needs OCR, or ''; see router.
      mode: of text.OCR_MODES.
    """
    self.document, self.languages, self.server = document, tuple(languages), server
    self.decide, self.mode = decide, mode
    self._agreed: dict[str, list[bool]] = collections.defaultdict(list)
    self._backdrops: list[bool] = []

  def wants(self, index: int, layer: Sequence[Line], feature: dict[str, Any]) -> str:
    """Why a page should be read by OCR, or ''; notes in its features how a look has ended."""
    why = self.decide(feature)
    if self.mode != 'auto' or not layer or pdf_ocr.engine() is None or why == 'picture':
      return why
    if not why and not self._on_picture(index, feature):
      return ''
    agreed = self._agreed[why]
    if len(agreed) < LOOKS:
      same = self._look(index, layer, feature, SAME_GARBLED if why == 'garbled' else SAME_LETTERS)
      if same is None:
        return why
      agreed.append(same)
    else:
      same = 2 * sum(agreed) > len(agreed)
    return '' if same else why or 'disagrees'

  def read(self, index: int, layer: Sequence[Line], feature: dict[str, Any],
           ) -> tuple[list[Line], str, float | None]:
    """A page's lines by OCR, what became of it, and the confidence if any.

    'ocr' with lines; without, 'text' (the layer has all that OCR reads), 'blank', 'noise', or
    'failed', whose reason is then `ocr_failed` of the features.
    """
    sandbox.tick()
    try:
      seen, sure = pdf_ocr.read_page(self.document, index, self.languages, self.server)
    except PdfError as error:
      feature['ocr_failed'] = error.detail or error.reason
      return [], 'failed', None
    if not seen or sure is None:
      return [], 'blank', None
    if sure < MIN_CONFIDENCE:
      return [], 'noise', sure
    if self.mode == 'auto' and feature.get('ocr_wanted') == 'picture' and layer:
      read, have = _letters(seen), _letters(layer)
      feature['agreement'] = round(_common(read, have) / max(1, len(read)), 3)
      if feature['agreement'] >= COVERED:
        feature['ocr_wanted'] = ''
        return [], 'text', sure
    return seen, 'ocr', sure

  def _on_picture(self, index: int, feature: dict[str, Any]) -> bool:
    """Whether a page's text lies on a picture of it; where the first pages have none, the others
    are not loaded once more to see."""
    if feature['picture'] > WHOLE_PICTURE:
      return True
    if feature['characters'] < 200 or (
        len(self._backdrops) >= LOOKS and not any(self._backdrops)):
      return False
    page = self.document[index]
    found = _backdrop(page) > WHOLE_PICTURE
    page.close()
    self._backdrops.append(found)
    return found

  def _look(self, index: int, layer: Sequence[Line], feature: dict[str, Any], least: float,
            ) -> bool | None:
    """Whether a layer says what a picture shows; None where that cannot be told."""
    width, height = self.document.get_page_size(index)
    lines = [line for line in layer if sum(map(str.isalpha, line.text)) >= 12 and (
      0 <= line.x0 < line.x1 <= width) and 0 <= line.y0 < line.y1 <= height]
    letters = _letters(lines)
    if sum(c < '\u0250' for c in letters) < 0.9 * len(letters):
      # No engine here reads that script.
      return True if feature['hidden'] > 0.5 and not self.server else None
    if not lines:
      return None
    lines = [lines[i] for i in sorted({round(x) for x in np.linspace(0, len(lines) - 1, LINES)})]
    sandbox.tick()
    try:
      read, sure = pdf_ocr.read_lines(self.document, index, lines, self.languages)
    except PdfError:
      return None
    if sure < SURE:
      return None
    seen, have = (re.sub(r'\W|[\d_]', '', text) for text in (read, ' '.join(
      line.text.replace(BREAK, '') for line in lines)))
    same = 2 * _common(seen.lower(), have.lower()) / max(1, len(seen) + len(have))
    capitals = [collections.Counter(filter(str.isupper, text)) for text in (seen, have)]
    kept = (capitals[0] & capitals[1]).total() / max(1, capitals[0].total())
    feature['agreement'] = round(same, 3)
    return same >= least and (kept >= SAME_CAPITALS or capitals[0].total() < 8)


def _letters(lines: Iterable[Line]) -> str:
  return ''.join(c for line in lines for c in line.text if c.isalpha()).lower()


def _common(a: str, b: str) -> int:
  """Letters of `a` that stand in `b`, in runs of the same order."""
  return sum(block.size for block in difflib.SequenceMatcher(
    None, a, b, autojunk=False).get_matching_blocks())


def _backdrop(page: Any) -> float:
  """Share of a page under its largest picture, of those drawn first and last: where what scans a
  page and writes text over or under it puts the scan."""
  import pypdfium2.raw as pdfium

  count = pdfium.FPDFPage_CountObjects(page)
  left, bottom, right, top = page.get_bbox()
  edges, best = [ctypes.c_float() for _ in range(4)], 0.0
  for i in sorted({*range(min(8, count)), *range(max(0, count - 8), count)}):
    item = pdfium.FPDFPage_GetObject(page, i)
    if pdfium.FPDFPageObj_GetType(item) == pdfium.FPDF_PAGEOBJ_IMAGE and (
        pdfium.FPDFPageObj_GetBounds(item, *map(ctypes.byref, edges))):
      x0, y0, x1, y1 = (edge.value for edge in edges)
      width, height = min(x1, right) - max(x0, left), min(y1, top) - max(y0, bottom)
      best = max(best, max(0.0, width) * max(0.0, height))
  return best / max(1.0, (right - left) * (top - bottom))
