"""What is drawn on a page beside its text: rules, pictures, and what white text can be read on.

For a child process, see pdfium.
"""

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium

from data_beam.pdf import tables as pdf_tables
from data_beam.pdf.layout import Box
from data_beam.pdf.pdfium import Object, View, bounds, calls, fill_colours, handle_of, objects

MAX_OBJECTS = 20_000         # of a page that are looked at for rules
MAX_RULES = 2_000            # more make no table
WHITE = 250                  # of 255, in each colour: on paper it cannot be read

_DRAWN = (pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_IMAGE)


class Drawn(NamedTuple):
  """Boxes in page space, as a character's: left, top, right, bottom."""
  rules_R4: np.ndarray      # thin straight lines
  pictures_P4: np.ndarray


def drawn(page: Any) -> Drawn:
  """The rules and pictures of a page."""
  found = [(item, kind) for item, kind in objects(handle_of(page), MAX_OBJECTS) if kind in _DRAWN]
  rules, pictures = [], []
  for (item, kind), (left, bottom, right, top) in zip(
      found, bounds([item for item, _ in found]).tolist(), strict=True):
    if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
      pictures.append((left, top, right, bottom))
    elif right - left <= pdf_tables.THICK or top - bottom <= pdf_tables.THICK:
      rules.append((left, top, right, bottom))
    else:
      rules += _strokes(item)
    if len(rules) > MAX_RULES:              # a drawing
      rules = []
      break
  return Drawn(*(np.array(boxes, np.float32).reshape(-1, 4) for boxes in (rules, pictures)))


def figures(pictures_P4: np.ndarray, view: View) -> list[Box]:
  """Those of displayed pictures that are neither dots nor the page itself, the first 20, as Boxes.
  """
  wide, high = ((pictures_P4[:, i + 2] - pictures_P4[:, i]) / max(1.0, size)
                for i, size in enumerate((view.width, view.height)))
  fit = (wide > .05) & (high > .05) & (wide * high > .01) & (wide * high < .8)
  return [tuple(box) for box in pictures_P4[fit][:20].round(1).tolist()]


def _strokes(item: Object) -> list[tuple[float, float, float, float]]:
  """The straight level or upright lines of a stroked path: boxes of cells, many rules in one."""
  _, stroke = _draw_mode(item)
  count = calls()['FPDFPath_CountSegments'](item)
  if not stroke or count > MAX_RULES:
    return []
  x, y = ctypes.c_float(), ctypes.c_float()
  a, b, c, d, e, f = _matrix(item)
  out, start, last = [], (0.0, 0.0), (0.0, 0.0)

  def line(p, q):
    if min(abs(p[0] - q[0]), abs(p[1] - q[1])) < 1:
      out.append((min(p[0], q[0]), max(p[1], q[1]), max(p[0], q[0]), min(p[1], q[1])))

  for i in range(count):
    segment = calls()['FPDFPath_GetPathSegment'](item, i)
    calls()['FPDFPathSegment_GetPoint'](segment, ctypes.addressof(x), ctypes.addressof(y))
    point = (a * x.value + c * y.value + e, b * x.value + d * y.value + f)
    kind = calls()['FPDFPathSegment_GetType'](segment)
    if kind == pdfium.FPDF_SEGMENT_MOVETO:
      start = point
    elif kind == pdfium.FPDF_SEGMENT_LINETO:
      line(last, point)
    if calls()['FPDFPathSegment_GetClose'](segment):
      line(point, start)
    last = point
  return out


def _draw_mode(item: Object) -> tuple[int, int]:
  """How a path is filled, and whether it is stroked; 0 if not."""
  fill, stroke = ctypes.c_int(), ctypes.c_int()
  calls()['FPDFPath_GetDrawMode'](item, ctypes.addressof(fill), ctypes.addressof(stroke))
  return fill.value, stroke.value


def _matrix(item: Object) -> list[float]:
  matrix = (ctypes.c_float * 6)()
  calls()['FPDFPageObj_GetMatrix'](item, ctypes.addressof(matrix))
  return list(matrix)


def grounds(page: Any) -> np.ndarray:
  """Boxes of all that white text could be read on, [G, 4] in page space as a character's: pictures,
  shadings, and areas that are not white, also those within form objects."""
  out: list[np.ndarray] = []

  def look(handle: ctypes.c_void_p, of: str, matrix_32: np.ndarray, depth: int) -> None:
    dark = []
    for item, kind in objects(handle, MAX_OBJECTS, of):
      if kind == pdfium.FPDF_PAGEOBJ_FORM and depth:
        inner_32 = np.array(_matrix(item)).reshape(3, 2)
        inner_32[:2] = inner_32[:2] @ matrix_32[:2]
        inner_32[2] = inner_32[2] @ matrix_32[:2] + matrix_32[2]
        look(item, 'FPDFFormObj', inner_32, depth - 1)
      elif kind in (pdfium.FPDF_PAGEOBJ_IMAGE, pdfium.FPDF_PAGEOBJ_SHADING) or (
          kind == pdfium.FPDF_PAGEOBJ_PATH and _opaque(item)):
        dark.append(item)
    if dark:
      box_G4 = bounds(dark)
      corners_G42 = box_G4[:, [[0, 1], [0, 3], [2, 1], [2, 3]]] @ matrix_32[:2] + matrix_32[2]
      (left, bottom), (right, top) = corners_G42.min(1).T, corners_G42.max(1).T
      out.append(np.stack([left, top, right, bottom], 1))

  look(handle_of(page), 'FPDFPage', np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), 3)
  return np.concatenate([np.zeros((0, 4)), *out])


def _opaque(path: Object) -> bool:
  """Whether a path covers an area in a colour that is not white. A line as thick as a letter, too,
  is an area."""
  fill, stroke = _draw_mode(path)
  if not fill:
    return bool(stroke) and calls()['FPDFPath_CountSegments'](path) == 2
  red, green, blue, opacity = fill_colours([path])[0].tolist()
  return opacity > 0 and min(red, green, blue) < WHITE


def picture_share(page: Any) -> float:
  """Share of the page under pictures, overlaps counted twice, at most 1; 500 objects seen."""
  def seen(handle: ctypes.c_void_p, of: str, depth: int) -> Iterator[tuple[Object, int]]:
    for item, kind in objects(handle, 500, of):
      yield item, kind
      if kind == pdfium.FPDF_PAGEOBJ_FORM and depth:
        yield from seen(item, 'FPDFFormObj', depth - 1)

  left, bottom, right, top = page.get_bbox()
  pictures = [item for item, kind in itertools.islice(seen(handle_of(page), 'FPDFPage', 2), 500)
              if kind == pdfium.FPDF_PAGEOBJ_IMAGE]
  area = sum(max(0.0, min(x1, right) - max(x0, left)) * max(0.0, min(y1, top) - max(y0, bottom))
             for x0, y0, x1, y1 in bounds(pictures).tolist())
  return min(1.0, area / max(1.0, (right - left) * (top - bottom)))
