"""The structure tree of a tagged PDF: which marked contents of a page are headings, of what level.

Its order is not asked for: where it differs from geometry's, tables and spaces are worse for it
(experiments/log/pdf.md).
For a child process, see pdfium.
"""

import ctypes
from typing import Any

import pypdfium2.raw as pdfium

MAX_ELEMENTS = 50_000        # of a page
MAX_DEPTH = 60

_LEVELS = {'Title': 1, 'H': 1, **{f'H{level}': level for level in range(1, 7)}}


def heading_levels(page: Any) -> dict[int, int]:
  """The levels of the headings on a page, by the numbers of their marked contents."""
  tree = pdfium.FPDF_StructTree_GetForPage(page)
  if not tree:
    return {}
  found: dict[int, int] = {}
  seen = 0

  def look(element: Any, level: int, depth: int) -> None:
    nonlocal seen
    seen += 1
    if not element or depth > MAX_DEPTH or seen > MAX_ELEMENTS:
      return
    level = _LEVELS.get(_kind(element), level)
    for i in range(pdfium.FPDF_StructElement_CountChildren(element)):
      number = pdfium.FPDF_StructElement_GetChildMarkedContentID(element, i)
      if number < 0:
        look(pdfium.FPDF_StructElement_GetChildAtIndex(element, i), level, depth + 1)
      elif level:
        found[number] = level

  for i in range(pdfium.FPDF_StructTree_CountChildren(tree)):
    look(pdfium.FPDF_StructTree_GetChildAtIndex(tree, i), 0, 0)
  pdfium.FPDF_StructTree_Close(tree)
  return found


def _kind(element: Any) -> str:
  """The role of an element, as its document's map of roles has it."""
  buffer = ctypes.create_string_buffer(64)
  length = pdfium.FPDF_StructElement_GetType(element, buffer, len(buffer))
  return buffer.raw[:min(length, 64)].decode('utf-16-le', 'replace').rstrip('\0')
