"""What annotations show on a page: values of forms, marked boxes, and text written on it.

For a child process, see pdfium.
"""

import ctypes
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium

from data_beam.pdf.lines import Line
from data_beam.pdf.pdfium import View, calls, displayed, each, handle_of, levelled

MAX_ANNOTATIONS = 5_000      # of a page
CHECKED, UNCHECKED = '[x]', '[ ]'

_UNSEEN = pdfium.FPDF_ANNOT_FLAG_HIDDEN | pdfium.FPDF_ANNOT_FLAG_NOVIEW
_PASSWORD = 1 << 13
_CHOICES = (pdfium.FPDF_FORMFIELD_COMBOBOX, pdfium.FPDF_FORMFIELD_LISTBOX)
_BOXES = (pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON)
_LEADERS = re.compile(r'[_.…·]{3,}|(?:[_.…·] ){3,}[_.…·]?')
_SIZE = re.compile(r'([\d.]+)\s+Tf')


class Note(NamedTuple):
  """Text that an annotation shows."""
  box: list[float]          # x0, y0, x1, y1, in the frame of the page's text
  text: str
  size: float               # points of its font, 0 if not known


def notes(document: Any, page: Any, turn: int, view: View) -> list[Note]:
  """What the annotations of a page show, top to bottom.

  Args:
    document: forms, if it has any, have been begun (`init_forms`).
    turn: of the frame in whose coordinates the boxes are.
  """
  handle, found = handle_of(page), []
  count = min(calls()['FPDFPage_GetAnnotCount'](handle), MAX_ANNOTATIONS)
  items = each('FPDFPage_GetAnnot', handle, range(count))
  for item, kind in zip(items, map(calls()['FPDFAnnot_GetSubtype'], items), strict=True):
    if kind in (pdfium.FPDF_ANNOT_WIDGET, pdfium.FPDF_ANNOT_FREETEXT):
      found += _note(document, ctypes.cast(item, pdfium.FPDF_ANNOTATION), kind)
  list(map(calls()['FPDFPage_CloseAnnot'], items))
  if not found:
    return []
  box_N4 = levelled(displayed(np.array([note.box for note in found]), view), turn, view)
  return sorted([note._replace(box=box) for note, box in zip(found, box_N4.tolist(), strict=True)],
                key=lambda note: note.box[1])


def _note(document: Any, item: Any, kind: int) -> Iterator[Note]:
  """What an annotation shows, if anything, its box in page space as a character's."""
  rect, size = pdfium.FS_RECTF(), ctypes.c_float()
  if pdfium.FPDFAnnot_GetFlags(item) & _UNSEEN or not pdfium.FPDFAnnot_GetRect(item, rect):
    return
  if kind == pdfium.FPDF_ANNOT_FREETEXT:
    text = _text(pdfium.FPDFAnnot_GetStringValue, item, b'Contents')
    if match := _SIZE.search(_text(pdfium.FPDFAnnot_GetStringValue, item, b'DA')):
      size.value = float(match[1])
  else:
    form = document.formenv.raw if document.formenv else None
    text = _value(form, item) if form else _own_value(item)
    if form:
      pdfium.FPDFAnnot_GetFontSize(form, item, size)
  if text.strip():
    left, right = sorted((rect.left, rect.right))
    bottom, top = sorted((rect.bottom, rect.top))
    yield Note([left, top, right, bottom], text.strip(), size.value)


def _value(form: Any, item: Any) -> str:
  """The value of a form's field as it is shown, of a box its mark."""
  kind = pdfium.FPDFAnnot_GetFormFieldType(form, item)
  if kind in _BOXES:
    return CHECKED if pdfium.FPDFAnnot_IsChecked(form, item) else UNCHECKED
  if kind in _CHOICES:
    chosen = [_text(pdfium.FPDFAnnot_GetOptionLabel, form, item, i)
              for i in range(min(pdfium.FPDFAnnot_GetOptionCount(form, item), MAX_ANNOTATIONS))
              if pdfium.FPDFAnnot_IsOptionSelected(form, item, i)]
    return ', '.join(chosen) or _text(pdfium.FPDFAnnot_GetFormFieldValue, form, item)
  if kind == pdfium.FPDF_FORMFIELD_TEXTFIELD:
    hidden = pdfium.FPDFAnnot_GetFormFieldFlags(form, item) & _PASSWORD
    return '' if hidden else _text(pdfium.FPDFAnnot_GetFormFieldValue, form, item)
  return _own_value(item) if kind < 0 else ''


def _own_value(item: Any) -> str:
  """The value of a field that its form has lost."""
  kind = _text(pdfium.FPDFAnnot_GetStringValue, item, b'FT')
  if kind == 'Btn':
    state = _text(pdfium.FPDFAnnot_GetStringValue, item, b'AS')
    return '' if not state else UNCHECKED if state == 'Off' else CHECKED
  return _text(pdfium.FPDFAnnot_GetStringValue, item, b'V') if kind in ('Tx', 'Ch') else ''


def _text(call: Callable, *arguments: Any) -> str:
  """A string of pdfium's, which is asked for its length first."""
  length = min(call(*arguments, None, 0), 1 << 20)
  if length <= 2:
    return ''
  buffer = (ctypes.c_ushort * (length // 2 + 1))()
  call(*arguments, buffer, length)
  return bytes(buffer)[:length].decode('utf-16-le', 'replace').partition('\0')[0]


# Among the lines of the page.

def put(lines: list[Line], found: list[Note]) -> list[Line]:
  """Adds notes to the lines of a page where they stand, and returns those that lie over its text.

  A value takes the place of the dots or underscores that it is written on, a box stands before the
  words that it lies close to, and what is written beside a line is as high as that.
  """
  aside: list[Line] = []
  for note in sorted(found, key=lambda note: -note.box[0]):
    x0, y0, x1, y1 = note.box
    near = [line for line in lines if _level(line, y0, y1)]
    under = [line for line in near if line.x0 < x1 and line.x1 > x0]
    parts = [part.strip() for part in re.split(r'\r\n?|\n', note.text) if part.strip()]
    if note.text in (CHECKED, UNCHECKED) and _at_words(near, note):
      continue
    if len(parts) == 1 and any(_written_in(line, note) for line in under):
      continue
    covered = sum(min(line.x1, x1) - max(line.x0, x0) for line in under)
    size = note.size if 4 < note.size < 40 else max(4.0, min(10.0, 0.8 * (y1 - y0) / len(parts)))
    top = (y0 + y1 - size) / 2 if len(parts) == 1 else y0
    beside = [line for line in near if abs(line.middle - top - size / 2) < 1.5 * line.size]
    if beside and not under:
      line = min(beside, key=lambda line: max(line.x0 - x1, x0 - line.x1))
      top, size = line.y0, line.size
    put_at = aside if covered > 0.3 * (x1 - x0) else lines
    put_at += [Line(x0, top + 1.2 * size * i, x1, top + 1.2 * size * i + size, part, size)
               for i, part in enumerate(parts)]
  return aside


def _level(line: Line, y0: float, y1: float) -> bool:
  """Whether a line stands beside something."""
  return y0 - 0.3 * line.size < line.middle < y1 + 0.3 * line.size


def _at_words(near: list[Line], note: Note) -> bool:
  """Puts the mark of a box before or after the words close to it, if there are any."""
  x0, _, x1, _ = note.box
  best, place = 2.5, None
  for line in near:
    before, after = (line.x0 - x1) / line.size, (x0 - line.x1) / line.size
    for gap, where in ((before, 'start'), (after, 'end')):
      if -0.7 < gap < best:
        best, place = gap, (line, where)
    if before < 0 and after < 0 and line.x0 < x0 and line.x1 > x1:
      return _insert(line, x0, note.text)
  if not place:
    return False
  line, where = place
  line.text = f'{note.text} {line.text}' if where == 'start' else f'{line.text} {note.text}'
  return True


def _written_in(line: Line, note: Note) -> bool:
  """Puts a value in the place of the leaders that it lies over, if it does."""
  edges = _edges(line)
  for match in _LEADERS.finditer(line.text):
    shared = min(edges[match.end()], note.box[2]) - max(edges[match.start()], note.box[0])
    if shared > 0.3 * (note.box[2] - note.box[0]):
      before, after = line.text[:match.start()], line.text[match.end():]
      line.text = f'{before.rstrip()} {note.text} {after.lstrip()}'.strip()
      return True
  return False


def _edges(line: Line) -> list[float]:
  """About where the letters of a line begin, and its end: some are half as wide as others."""
  widths = [1.0 if letter in " .,:;'|!ijl" else 2.0 for letter in line.text]
  scale = (line.x1 - line.x0) / max(1.0, sum(widths))
  return [line.x0 + scale * width for width in itertools.accumulate(widths, initial=0.0)]


def _insert(line: Line, x: float, text: str) -> bool:
  """Puts text between two words of a line, at x."""
  edges = _edges(line)
  spaces = [match.start() for match in re.finditer(' ', line.text)]
  if spaces:
    at = min(spaces, key=lambda space: abs(edges[space] - x))
    line.text = f'{line.text[:at]} {text}{line.text[at:]}'
  return bool(spaces)
