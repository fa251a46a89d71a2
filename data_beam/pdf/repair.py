"""Damaged PDFs → files that open: what qpdf can mend, and the pages of files that end too early.

pdfium itself copes with wrong offsets and lengths. What it refuses is mostly a file without its
end, where the catalogue and the table of objects stand: of Common Crawl's cut files 97 %. There the
objects are found by their own marks, those packed into object streams are unpacked, and a new
catalogue lists the pages among them. For a child process (see text).
"""

import io
import re
import zlib
from collections.abc import Iterator

import pikepdf

MAX_BYTES = 64 << 20            # inflated, of all object streams together
MAX_OBJECTS = 500_000

_OBJECT = re.compile(rb'(?<![0-9])([0-9]{1,9})[\s\0]+[0-9]{1,5}[\s\0]+obj\b')
_PAGE = re.compile(rb'/Type[\s\0]*/Page(?![A-Za-z])')
_PACKED = re.compile(rb'/Type[\s\0]*/ObjStm\b')
_NUMBER = {key: re.compile(rb'/%s[\s\0]+([0-9]{1,9})' % key) for key in (b'N', b'First')}


def repaired(body: bytes) -> Iterator[bytes]:
  """Versions of a damaged file that may open, the likeliest to hold all of it first.

  Encrypted files give none: their key stands in what is lost.
  """
  yield from by_qpdf(body)
  if b'/Encrypt' not in body:
    rebuilt = _rebuilt(body)
    if rebuilt:
      yield rebuilt


def by_qpdf(body: bytes) -> Iterator[bytes]:
  """The file as qpdf mends and writes it, if it can."""
  try:
    with pikepdf.open(io.BytesIO(body)) as pdf:
      out = io.BytesIO()
      pdf.save(out)
    yield out.getvalue()
  except (pikepdf.PdfError, pikepdf.PasswordError, ValueError, RuntimeError):
    return


def _rebuilt(body: bytes) -> bytes | None:
  """The file with its packed objects laid open and a catalogue of the pages found; None if none."""
  starts = []
  for match in _OBJECT.finditer(body):
    starts.append((int(match[1]), match.end()))
    if len(starts) > MAX_OBJECTS:
      return None
  if not starts:
    return None
  pages, loose, budget = {}, [], MAX_BYTES
  ends = [start for _, start in starts[1:]] + [len(body)]
  for (number, start), end in zip(starts, ends, strict=True):
    head = body[start:min(end, start + 4096)].partition(b'stream')[0]
    if _PACKED.search(head):
      found, used = _unpacked(body, start, head, budget)
      loose, budget = loose + found, budget - used
    elif _PAGE.search(head):
      pages[number] = None
  # An object that stands in the file by itself is newer than one of that number in a stream.
  plain = {number for number, _ in starts}
  loose = [(number, data) for number, data in loose if number not in plain]
  pages |= {number: None for number, data in loose if _PAGE.search(data[:4096])}
  if not pages:
    return None
  last = max(plain | {number for number, _ in loose})
  whole = body[:body.rfind(b'endobj') + 6] if body.rfind(b'endobj') > 0 else body
  parts = [whole, b'\n', *(b'%d 0 obj\n%s\nendobj\n' % item for item in loose)]
  kids = b' '.join(b'%d 0 R' % number for number in pages)
  parts.append(b'%d 0 obj\n<</Type/Pages/Count %d/MediaBox[0 0 612 792]/Kids[%s]>>\nendobj\n'
               % (last + 1, len(pages), kids))
  parts.append(b'%d 0 obj\n<</Type/Catalog/Pages %d 0 R>>\nendobj\ntrailer\n'
               b'<</Root %d 0 R/Size %d>>\nstartxref\n0\n%%%%EOF\n'
               % (last + 2, last + 1, last + 2, last + 3))
  return b''.join(parts)


def _unpacked(body: bytes, start: int, head: bytes,
              budget: int) -> tuple[list[tuple[int, bytes]], int]:
  """Objects of the object stream whose dictionary is `head`, and the bytes it inflates to."""
  count, first = (rule.search(head) for rule in _NUMBER.values())
  at = body.find(b'stream', start + len(head))
  if not count or not first or at < 0 or b'FlateDecode' not in head:
    return [], 0
  at += 8 if body[at + 6:at + 8] == b'\r\n' else 7
  try:
    data = zlib.decompressobj().decompress(body[at:at + (16 << 20)], max(1, budget))
  except zlib.error:
    return [], 0
  head_words = data[:int(first[1])].split()[:2 * int(count[1])]
  if not all(word.isdigit() for word in head_words):
    return [], len(data)
  numbers, offsets = ([int(word) for word in head_words[i::2]] for i in (0, 1))
  places = [int(first[1]) + offset for offset in offsets] + [len(data)]
  return [(number, data[places[i]:places[i + 1]])
          for i, number in enumerate(numbers[:len(offsets)])], len(data)
