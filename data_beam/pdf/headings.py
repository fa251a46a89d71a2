"""Which paragraphs are headings: by the tags of a file, the size of the font, bold, or numbers."""

import collections
import re
from collections.abc import Sequence

from data_beam.pdf.lines import BOLD, Line

MAX_HEADING = 200           # characters

_LETTERS = re.compile(r'[^\W\d_]{2}')
_ITEM = re.compile(r'[•·°◦●○▪■□‣▶►❖➢*–-]\s|\(?(?:\d{1,3}|[a-z])\)\s')
_NUMBERED = re.compile(
  r'(?i:(?:chapter|section|part|appendix|kapitel|abschnitt|teil|chapitre|partie|cap[ií]tulo|sección|'
  r'parte|capitolo|sezione)\s+)?(?:\d{1,2}(?:\.\d{1,2}){0,3}\.?|§\s?\d{1,3}|[IVX]{1,5}\.)\s+'
  r'(?=[^\W\d_a-zß-ÿ])')


def sizes(pages: Sequence[Sequence[Line]]) -> list[float]:
  """Sizes of the fonts of a document's headings, the largest first: those clearly larger than the
  one most of the text is in, signs and initials apart. Points, in steps of a half."""
  characters: collections.Counter[float] = collections.Counter()
  for page in pages:
    for line in page:
      characters[round(2 * line.size) / 2] += len(line.text)
  usual = max(characters, key=characters.__getitem__, default=0.0)
  return sorted((size for size, count in characters.items() if size > 1.12 * usual and count > 9),
                reverse=True)


def mark(text: str, size: float, level: int, following: str, larger_than_text: Sequence[float],
         bold: bool) -> str:
  """Markdown's mark of a heading, '' for other text: a line or two with letters.

  Args:
    text: the paragraph.
    size: of its font.
    level: of its lines, see Line.
    following: the next paragraph.
    larger_than_text: see `sizes`.
    bold: whether bold tells a heading, on a page that is not mostly so.
  """
  if '\n' in text or len(text) > MAX_HEADING or not _LETTERS.search(text):
    return ''
  above = [other for other in larger_than_text if other > size + 0.25]
  found = len(above) + 1 if len(above) < len(larger_than_text) else 0
  if 0 < level < BOLD:
    found = level
  elif not found and text[-1] not in '.,;:!?' and not _ITEM.match(text):
    number = _NUMBERED.match(text)
    if (level == BOLD and bold) or (number and len(text) < 100 and len(following) > 150
                                    and not _NUMBERED.match(following)):
      depth = len(re.findall(r'\d+', number[0])) if number else 1
      found = len(larger_than_text) + max(1, depth)
  return f'{"#" * min(6, found)} ' if found else ''
