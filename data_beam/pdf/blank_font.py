"""A font for Chinese, Japanese and Korean text whose own font is neither in the file nor here.

pdfium passes over text that it cannot draw: of such fonts a letter that stands alone, as in a cell,
or each in a column. All that it needs is a letter of some size, so here is a font that has one,
of no ink, for every character.
"""

import ctypes
import functools
import struct
from typing import Any

import pypdfium2.raw as pdfium

_CHARSETS = (pdfium.FXFONT_SHIFTJIS_CHARSET, pdfium.FXFONT_HANGEUL_CHARSET,
             pdfium.FXFONT_GB2312_CHARSET, pdfium.FXFONT_CHINESEBIG5_CHARSET)
_OURS = 1                    # what stands for the font, as a pointer
_kept: list[Any] = []        # what pdfium calls must outlive this module's functions


@functools.cache
def font() -> bytes:
  """The font, as TrueType: one letter, a line of no width from the lower left to the upper right
  of an em, which all characters share (a `cmap` of format 13)."""
  left, bottom, right, top = 0, -120, 1000, 880
  box = struct.pack('>4h', left, bottom, right, top)
  line = (struct.pack('>h', 1) + box + struct.pack('>HH', 1, 0) + b'\x01\x01'
          + struct.pack('>4h', left, right, bottom, top - bottom))
  tables = {
    b'cmap': struct.pack('>HHHHI', 0, 1, 3, 10, 12) + struct.pack(
      '>HHIIIIII', 13, 0, 28, 0, 1, 0x21, 0x10ffff, 1),
    b'glyf': line,
    b'head': struct.pack('>IIIIHHqq', 0x10000, 0x10000, 0, 0x5f0f3cf5, 0, 1000, 0, 0) + box
             + struct.pack('>HHhhh', 0, 8, 2, 1, 0),
    b'hhea': struct.pack('>IhhhHhhh', 0x10000, top, bottom, 0, 1000, 0, 0, 1000)
             + struct.pack('>hhh8xhH', 1, 0, 0, 0, 2),
    b'hmtx': struct.pack('>HhHh', 1000, 0, 1000, 0),
    b'loca': struct.pack('>III', 0, 0, len(line)),
    b'maxp': struct.pack('>IHHH22x', 0x10000, 2, 2, 1),
  }
  head = struct.pack('>IHHHH', 0x10000, len(tables), 64, 2, len(tables) * 16 - 64)
  data, at = b'', len(head) + 16 * len(tables)
  for name, table in tables.items():
    head += name + struct.pack('>III', 0, at + len(data), len(table))
    data += table + bytes(-len(table) % 4)
  return head + data


@functools.cache
def install() -> None:
  """Has pdfium use it where it would find no font for these languages."""
  default = pdfium.FPDF_GetDefaultSystemFontInfo()
  if not default:
    return
  given, types = default.contents, dict(pdfium.FPDF_SYSFONTINFO._fields_)

  def map_font(_: Any, weight: int, italic: int, charset: int, pitch: int, face: Any,
               exact: Any) -> int | None:
    found = given.MapFont(default, weight, italic, charset, pitch, face, exact)
    return found or (_OURS if charset in _CHARSETS else None)

  def font_data(_: Any, handle: int, table: int, buffer: Any, size: int) -> int:
    if handle != _OURS:
      return given.GetFontData(default, handle, table, buffer, size)
    if table:
      return 0
    if buffer and size >= len(font()):
      ctypes.memmove(buffer, font(), len(font()))
    return len(font())

  def face_name(_: Any, handle: int, buffer: Any, size: int) -> int:
    return 0 if handle == _OURS else given.GetFaceName(default, handle, buffer, size)

  def charset_of(_: Any, handle: int) -> int:
    return (pdfium.FXFONT_SHIFTJIS_CHARSET if handle == _OURS
            else given.GetFontCharset(default, handle))

  def delete(_: Any, handle: int) -> None:
    if handle != _OURS:
      given.DeleteFont(default, handle)

  calls = {
    'Release': lambda _: None,
    'EnumFonts': lambda _, mapper: given.EnumFonts(default, mapper),
    'MapFont': map_font,
    'GetFont': lambda _, face: given.GetFont(default, face),
    'GetFontData': font_data, 'GetFaceName': face_name, 'GetFontCharset': charset_of,
    'DeleteFont': delete,
  }
  ours = pdfium.FPDF_SYSFONTINFO(version=given.version, **{
    name: types[name](call) for name, call in calls.items()})
  _kept.extend((default, ours))
  pdfium.FPDF_SetSystemFontInfo(ctypes.byref(ours))
