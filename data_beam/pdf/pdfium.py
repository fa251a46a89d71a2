"""pdfium's calls made for each word or object, and pages as they are displayed.

For a child process (see text): pdfium is not thread-safe, and a hostile file can crash it.
"""

import ctypes
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pypdfium2.raw as pdfium


class Object(ctypes.c_void_p):
  """A thing drawn on a page. As the type of a result it stays a pointer, and makes no int."""


@functools.cache
def calls() -> dict[str, Any]:
  """pdfium's calls made for each word or object, by bare pointers: 3x cheaper than checked ones.

  Where no types of arguments are told, handles must be ctypes' pointers, and ints go as C's: that
  halves the cost once more.
  """
  pointer, number = ctypes.c_void_p, ctypes.c_int
  shapes = {
    'FPDFText_GetText': (number,),
    'FPDFText_GetUnicode': (ctypes.c_uint,),
    'FPDFText_GetLooseCharBox': (number,),
    'FPDFText_GetCharOrigin': (number,),
    'FPDFText_GetFontSize': (ctypes.c_double,),
    'FPDFText_GetMatrix': (number,),
    'FPDFText_HasUnicodeMapError': (number,),
    'FPDFText_GetTextObject': (ctypes.c_size_t,),
    'FPDFText_IsGenerated': (number,),
    'FPDFTextObj_GetTextRenderMode': (number,),
    'FPDFTextObj_GetFont': (ctypes.c_size_t,),
    'FPDFFont_GetFlags': (number, pointer),
    'FPDFFont_GetBaseFontName': (ctypes.c_size_t, pointer, pointer, ctypes.c_size_t),
    'FPDFPageObj_GetFillColor': (number,),
    'FPDFPageObj_GetMarkedContentID': (number,),
    'FPDFPage_GetAnnotCount': (number,),
    'FPDFPage_GetAnnot': (Object,),
    'FPDFPage_CloseAnnot': (None, pointer),
    'FPDFAnnot_GetSubtype': (number, pointer),
    'FPDFPage_CountObjects': (number,),
    'FPDFPage_GetObject': (Object,),
    'FPDFFormObj_CountObjects': (number,),
    'FPDFFormObj_GetObject': (Object, pointer, ctypes.c_ulong),
    'FPDFPageObj_GetType': (number,),
    'FPDFPageObj_GetBounds': (number,),
    'FPDFPageObj_GetMatrix': (number,),
    'FPDFPath_CountSegments': (number,),
    'FPDFPath_GetDrawMode': (number,),
    'FPDFPath_GetPathSegment': (Object,),
    'FPDFPathSegment_GetPoint': (number,),
    'FPDFPathSegment_GetType': (number,),
    'FPDFPathSegment_GetClose': (number,),
  }
  return {name: ctypes.PYFUNCTYPE(*shape)(ctypes.cast(getattr(pdfium, name), pointer).value)
          for name, shape in shapes.items()}


def each(name: str, handle: ctypes.c_void_p, *arguments: Iterable) -> list:
  """What a call of pdfium gives for a handle and each of the arguments."""
  return list(map(calls()[name], itertools.repeat(handle), *arguments))


def addresses(array: np.ndarray) -> range:
  """Where in memory the rows of an array are."""
  start, step = array.ctypes.data, array.strides[0] or 1    # 0 where there are no rows
  return range(start, start + step * len(array), step)


def handle_of(wrapped: Any) -> ctypes.c_void_p:
  """pdfium's pointer, of one of pypdfium2's objects."""
  return ctypes.cast(wrapped.raw, ctypes.c_void_p)


@functools.cache
def _room(dtype: str, width: int, columns: int) -> tuple[np.ndarray, list[list[ctypes.c_void_p]]]:
  """Rows for pdfium to write, and pointers to the first columns of each: made anew they would cost
  as much as calls."""
  room_NX = np.zeros((4096, width), dtype)
  return room_NX, [list(map(ctypes.c_void_p, addresses(room_NX[:, column:])))
                   for column in range(columns)]


def written(name: str, dtype: str, width: int, columns: int, things: Sequence[Any],
            handles: Iterator[ctypes.c_void_p] | None = None) -> tuple[np.ndarray, list[int]]:
  """What a call of pdfium writes for each of some things, [N, width], and what it returns.

  Args:
    name: of the call.
    dtype: of what it writes; zeros where it writes nothing.
    width: numbers that it writes for a thing.
    columns: of these, how many are arguments of their own, the first ones.
    things: what it is asked of.
    handles: what comes before each among the arguments.
  """
  room_NX, pointers = _room(dtype, width, columns)
  out_NX, results = np.zeros((len(things), width), dtype), []
  for start in range(0, len(things), len(room_NX)):
    part = things[start:start + len(room_NX)]
    room_NX[:len(part)] = 0
    first = [] if handles is None else [itertools.islice(handles, len(part))]
    results += map(calls()[name], *first, part, *pointers)
    out_NX[start:start + len(part)] = room_NX[:len(part)]
  return out_NX, results


def character_boxes(handles: Iterator[ctypes.c_void_p], indices: list[int]) -> np.ndarray:
  """Boxes of characters, each of a text page, as high as their font, in page space: float32 [N, 4],
  each left, top, right, bottom; zeros where pdfium has none."""
  return written('FPDFText_GetLooseCharBox', 'f4', 4, 1, indices, handles)[0]


def matrices(handles: Iterator[ctypes.c_void_p], indices: list[int]) -> np.ndarray:
  """How characters are scaled, turned and moved, in page space: [N, 6]; as they are where pdfium
  does not know."""
  out_N6, known = written('FPDFText_GetMatrix', 'f4', 6, 1, indices, handles)
  if not all(known):
    out_N6[~np.array(known, bool)] = 1, 0, 0, 1, 0, 0
  return out_N6.astype(float)


def origins(handles: Iterator[ctypes.c_void_p], indices: list[int]) -> np.ndarray:
  """Where characters stand on their baselines, as boxes in page space of no size: [N, 4]."""
  out_N2, _ = written('FPDFText_GetCharOrigin', 'f8', 2, 2, indices, handles)
  return np.tile(out_N2, 2)


def objects(handle: ctypes.c_void_p, most: int,
            of: str = 'FPDFPage') -> Iterator[tuple[Object, int]]:
  """The first objects of a page, or of='FPDFFormObj', and their kinds."""
  items = each(f'{of}_GetObject', handle, range(min(calls()[f'{of}_CountObjects'](handle), most)))
  return zip(items, map(calls()['FPDFPageObj_GetType'], items), strict=True)


def bounds(items: Sequence[Object]) -> np.ndarray:
  """Boxes of objects: float32 [N, 4], left, bottom, right, top; zeros where pdfium has none."""
  return written('FPDFPageObj_GetBounds', 'f4', 4, 4, items)[0]


def fill_colours(items: list[Object]) -> np.ndarray:
  """Red, green, blue and opacity of what fills objects, 0 to 255: uint32 [N, 4]. Black where it is
  no plain colour, a pattern for one."""
  out_N4, known = written('FPDFPageObj_GetFillColor', 'u4', 4, 4, items)
  if not all(known):
    out_N4[~np.array(known, bool)] = 0, 0, 0, 255
  return out_N4


# Pages as they are displayed.

class View(NamedTuple):
  """Which way up a page is displayed."""
  order_4: list[int] | None # of a box's coordinates, None where it is theirs
  sign_4: np.ndarray
  shift_4: np.ndarray
  width: float              # points, as displayed
  height: float
  quarters: int             # by which the page is turned clockwise when it is displayed
  slack: int                # how many pages beyond each edge of the page text is kept


def view_of(page: Any) -> View:
  """How a page is displayed, see `displayed`. Pages that are displayed alike have the same one."""
  # Outside a crop box stand printers' marks; beyond the edge of the sheet, an overlong table.
  slack = 0 if page.get_cropbox(False) not in (None, page.get_mediabox(False)) else 1
  return _view(page.get_bbox(), page.get_rotation() // 90, *page.get_size(), slack)


@functools.lru_cache(64)
def _view(box: tuple[float, ...], quarters: int, width: float, height: float, slack: int) -> View:
  left, bottom, right, top = box
  order, sign, shift = (
    (None, (1, -1, 1, -1), (-left, top, -left, top)),
    ([3, 0, 1, 2], (1, 1, 1, 1), (-bottom, -left, -bottom, -left)),
    ([2, 3, 0, 1], (-1, 1, -1, 1), (right, -bottom, right, -bottom)),
    ([1, 2, 3, 0], (-1, -1, -1, -1), (top, right, top, right)),
  )[quarters]
  return View(order, np.array(sign, float), np.array(shift, float), width, height, quarters, slack)


def displayed(boxes: np.ndarray, view: View) -> np.ndarray:
  """pdfium's (left, top, right, bottom) in page space → (x0, y0, x1, y1) from the top left."""
  ordered = boxes if view.order_4 is None else boxes.take(view.order_4, -1)
  return ordered * view.sign_4 + view.shift_4


def levelled(boxes: np.ndarray, turn: int, view: View) -> np.ndarray:
  """Displayed boxes turned back by quarter turns, so that text which stands so lies level.

  Args:
    turn: of the text, quarters clockwise: 1 runs down the page, 2 stands on its head, 3 runs up.
      Others are left as they are.
  """
  if turn not in (1, 2, 3):
    return boxes
  x0, y0, x1, y1 = (boxes[..., i] for i in range(4))
  if turn == 1:
    return np.stack([y0, view.width - x1, y1, view.width - x0], -1)
  if turn == 2:
    return np.stack([view.width - x1, view.height - y1, view.width - x0, view.height - y0], -1)
  return np.stack([view.height - y1, x0, view.height - y0, x1], -1)


def spans(ends_N24: np.ndarray) -> np.ndarray:
  """The boxes around pairs of boxes: [N, 4]."""
  a_N4, b_N4 = ends_N24[:, 0], ends_N24[:, 1]
  return np.concatenate([np.minimum(a_N4[:, :2], b_N4[:, :2]),
                         np.maximum(a_N4[:, 2:], b_N4[:, 2:])], 1)
