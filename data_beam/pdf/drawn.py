"""What is drawn on a page beside its text: rules, pictures, and what white text can be read on.

For a child process, see pdfium.
"""

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium

from data_beam.pdf import tables as pdf_tables
from data_beam.pdf.lines import Box
from data_beam.pdf.pdfium import (
  Object,
  View,
  bounds,
  calls,
  each,
  fill_colours,
  handle_of,
  objects,
  written,
)

MAX_OBJECTS = 20_000         # of a page that are looked at for rules
MAX_RULES = 2_000            # more make no table
WHITE = 250                  # of 255, in each colour: on paper it cannot be read

_DRAWN = (pdfium.FPDF_PAGEOBJ_PATH, pdfium.FPDF_PAGEOBJ_IMAGE)


class Drawn(NamedTuple):
  """Boxes in page space, as a character's: left, top, right, bottom."""
  rules_R4: np.ndarray      # thin straight lines
  pictures_P4: np.ndarray


def drawn(pages: Sequence[Any]) -> list[Drawn]:
  """The rules and pictures of each of some pages."""
  found = [(item, kind == pdfium.FPDF_PAGEOBJ_IMAGE, page) for page, of_page in enumerate(pages)
           for item, kind in objects(handle_of(of_page), MAX_OBJECTS) if kind in _DRAWN]
  if not found:
    return [Drawn(np.zeros((0, 4)), np.zeros((0, 4)))] * len(pages)
  items, *told = zip(*found, strict=True)
  picture_N, page_N = map(np.array, told)
  box_N4 = bounds(items)[:, [0, 3, 2, 1]]
  thin_N = ~picture_N & ((box_N4[:, 2] - box_N4[:, 0] <= pdf_tables.THICK) | (
    box_N4[:, 1] - box_N4[:, 3] <= pdf_tables.THICK))
  few_P = np.bincount(page_N[thin_N], minlength=len(pages)) <= MAX_RULES
  others = np.flatnonzero(~thin_N & ~picture_N & few_P[page_N])
  stroke_R4, of_R = _strokes([items[i] for i in others.tolist()])
  rules_R4 = np.concatenate([box_N4[thin_N], stroke_R4])
  page_R = np.concatenate([page_N[thin_N], page_N[others][of_R]])
  rules = _by_page(rules_R4, page_R, len(pages))
  pictures = _by_page(box_N4[picture_N], page_N[picture_N], len(pages))
  return [Drawn(rules_R4 if len(rules_R4) <= MAX_RULES else rules_R4[:0], pictures_P4)
          for rules_R4, pictures_P4 in zip(rules, pictures, strict=True)]    # many: a drawing


def _by_page(boxes_N4: np.ndarray, page_N: np.ndarray, pages: int) -> list[np.ndarray]:
  """The boxes on each of some pages."""
  order_N = page_N.argsort(kind='stable')
  return np.split(boxes_N4[order_N], page_N[order_N].searchsorted(np.arange(1, pages)))


def figures(pictures_P4: np.ndarray, view: View) -> list[Box]:
  """Those of displayed pictures that are neither dots nor the page itself, the first 20, as Boxes.
  """
  if not len(pictures_P4):
    return []
  wide, high = ((pictures_P4[:, i + 2] - pictures_P4[:, i]) / max(1.0, size)
                for i, size in enumerate((view.width, view.height)))
  fit = (wide > .05) & (high > .05) & (wide * high > .01) & (wide * high < .8)
  return [tuple(box) for box in pictures_P4[fit][:20].round(1).tolist()]


def _strokes(paths: list[Object]) -> tuple[np.ndarray, np.ndarray]:
  """The straight level or upright lines of stroked paths, boxes of cells, many rules in one:
  [R, 4], as in Drawn; and of which of the paths each is, [R]."""
  none = np.zeros((0, 4)), np.zeros(0, int)
  if not paths:
    return none
  _, stroke_P = _draw_modes(paths)
  counts = [calls()['FPDFPath_CountSegments'](path) if stroke else 0
            for path, stroke in zip(paths, stroke_P.tolist(), strict=True)]
  kept = [i for i, count in enumerate(counts) if 1 < count <= MAX_RULES]
  if not kept:
    return none
  segments = [segment for i in kept
              for segment in each('FPDFPath_GetPathSegment', paths[i], range(counts[i]))]
  point_S2, _ = written('FPDFPathSegment_GetPoint', 'f4', 2, 2, segments)
  matrix_P6, _ = written('FPDFPageObj_GetMatrix', 'f4', 6, 1, [paths[i] for i in kept])
  kind_S, close_S = (np.array(list(map(calls()[f'FPDFPathSegment_Get{what}'], segments)))
                     for what in ('Type', 'Close'))
  of_S = np.repeat(np.arange(len(kept)), [counts[i] for i in kept])
  a, b, c, d, e, f = matrix_P6[of_S].T
  point_S2 = np.stack([a * point_S2[:, 0] + c * point_S2[:, 1] + e,
                       b * point_S2[:, 0] + d * point_S2[:, 1] + f], 1)
  index_S = np.arange(len(segments))
  start_S = np.maximum.accumulate(np.where(kind_S == pdfium.FPDF_SEGMENT_MOVETO, index_S, 0))
  (lines,), (closes,) = np.nonzero(kind_S == pdfium.FPDF_SEGMENT_LINETO), np.nonzero(close_S)
  to_L = np.append(lines, closes)
  from_L2 = point_S2[np.append(np.maximum(lines - 1, 0), closes)]
  to_L2 = point_S2[np.append(lines, start_S[closes])]
  straight_L = np.abs(from_L2 - to_L2).min(1) < 1
  low_L2, high_L2 = (pick(from_L2, to_L2)[straight_L] for pick in (np.minimum, np.maximum))
  return np.stack([low_L2[:, 0], high_L2[:, 1], high_L2[:, 0], low_L2[:, 1]], 1), (
    np.array(kept)[of_S[to_L[straight_L]]])


def _draw_modes(paths: list[Object]) -> tuple[np.ndarray, np.ndarray]:
  """How each path is filled, and whether it is stroked; 0 if not."""
  fill_P, stroke_P = written('FPDFPath_GetDrawMode', 'i4', 2, 2, paths)[0].T
  return fill_P, stroke_P


def _matrix(item: Object) -> list[float]:
  return written('FPDFPageObj_GetMatrix', 'f4', 6, 1, [item])[0][0].tolist()


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
  fill, stroke = np.concatenate(_draw_modes([path])).tolist()
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
